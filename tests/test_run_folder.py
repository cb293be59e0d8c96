"""The folder of a run: a second run, a resumed one with other options, a killed one; and checkpoints that are not whole."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import save_elmo, save_lstm_lm
from stock_lms import gpt2, save, tokenizer
from transformers import TrainerCallback, TrainingArguments
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.conversion.seq2seq import convert_seq2seq
from heirloom.modeling.modeling_elmo import ElmoForPreTraining, ElmoForSequenceClassification
from heirloom.sharing import run_folder as folders
from heirloom.training.arguments import FinetuneArguments
from heirloom.training.forgetting import fisher_of_language_model
from heirloom.training.joint_finetuning import open_backbone
from heirloom.training.trainer import JsonLinesLog

QUICK = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "no"]
QUICK += ["--load_best_model_at_end", "false", "--disable_tqdm", "true", "--report_to", "none"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints of each family, and text and tasks to train them on."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("files")
    kinds = {"elmo": ElmoForPreTraining, "tagger": ElmoForSequenceClassification, "wide": ElmoForPreTraining}
    for name, kind in kinds.items():
        save_elmo(folder / name, kind, num_hidden_layers=1, cell_size=16 if name == "wide" else 8)
    save_lstm_lm(folder / "lm")
    convert_seq2seq(str(folder / "lm"), str(folder / "lm"), folder / "seq2seq")
    save(gpt2(40), folder / "gpt2", tokenizer(40))
    (folder / "pairs.yaml").write_text("forgetting: none\n")
    (folder / "text.txt").write_text("the bank\nthe\n" * 8)
    rows = [{"text": "the bank", "label": "a"}, {"text": "the", "label": "b"}] * 4
    (folder / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows += [{"text": "bank", "label": "c"}] * 2
    (folder / "three.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def tagged(files, model, out="run", train="two.jsonl"):
    data = ["--train_file", files / train, "--validation_file", files / "two.jsonl"]
    return ["finetune", "subj", "--model", model, *data, *QUICK, "--output_dir", out]


def raw(files, model, out="run", recipe="elmo-small"):
    data = ["--train_file", files / "text.txt", "--validation_file", files / "text.txt"]
    return ["pretrain", recipe, "--model", model, *data, *QUICK, "--output_dir", out]


def paired(files, model, out="run"):
    text = files / "text.txt"
    data = ["--train_source", text, "--train_target", text, "--validation_source", text]
    data += ["--validation_target", text, "--model", model]
    return ["train-seq2seq", files / "pairs.yaml", *data, *QUICK, "--output_dir", out]


USES = [
    ("elmo", "lstm.forward_layers.0.bias", tagged),
    ("elmo", "lstm.forward_layers.0.bias", raw),
    ("elmo", "softmax.weight", raw),
    ("lm", "lm_head.weight", lambda *names: raw(*names, recipe="lstm-lm-small")),
    ("lm", "lm_head.weight", tagged),
    ("gpt2", "transformer.ln_f.bias", tagged),
    ("seq2seq", "decoder.combine.weight", paired),
]


@pytest.mark.parametrize(("name", "weight", "command"), USES)
def test_training_does_not_begin_with_gaps(files, run, tmp_path, name, weight, command):
    broken = tmp_path / "broken"
    shutil.copytree(files / name, broken)
    tensors = load_file(broken / "model.safetensors")
    key = next(key for key in sorted(tensors) if key.endswith(weight))
    shape = tuple(tensors[key].shape)
    kept = {other: tensor for other, tensor in tensors.items() if other != key}
    damages = [
        (kept, "lacks weights of its model: ", weight),
        (kept | {key: torch.zeros(3, 1, 2)}, "holds weights of other shapes", f"{weight} has (3, 1, 2)"),
        (kept | {key: torch.full(shape, float("inf"))}, "holds NaN or infinite weights: ", weight),
    ]
    for state, what, which in damages:
        save_file(state, broken / "model.safetensors", {"format": "pt"})
        result = run(*command(files, broken))
        assert result.exit_code == 1, result.output
        message = result.stderr.splitlines()[-1]
        assert message.startswith(f"heirloom: {broken} {what}"), message
        assert f"{which}" in message
        assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_head_of_its_own_may_be_new(files, run, tmp_path):
    """The task's always; the language model's only where nothing reads it."""
    result = run(*tagged(files, files / "tagger", train="three.jsonl"))  # of two classes before
    assert result.exit_code == 0, result.output
    assert load_file("run/model.safetensors")["classifier.weight"].shape[0] == 3
    shutil.copytree(files / "gpt2", "headless")
    config = json.loads((files / "gpt2" / "config.json").read_text()) | {"tie_word_embeddings": False}
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config))
    result = run(*tagged(files, "headless", "second"))
    assert "headless lacks weights of its model: lm_head.weight." in result.stderr
    assert "--lm_loss_weight 0 trains the task alone." in result.stderr
    alone = {"model": "headless", "lm_loss_weight": 0.0}
    assert open_backbone(FinetuneArguments(**alone))[1] == "causal"
    for reader in ({"kl_weight": 1.0}, {"forgetting_file": ["text.txt"]}):
        with pytest.raises(ValueError, match="^headless lacks weights of its model: lm_head.weight"):
            open_backbone(FinetuneArguments(**alone, **reader))


def test_language_models_with_nan_become_no_translator(files, run):
    shutil.copytree(files / "lm", "lm")
    tensors = load_file("lm/model.safetensors")
    tensors["lm_head.bias"][0] = float("nan")
    save_file(tensors, "lm/model.safetensors", {"format": "pt"})
    result = run("convert", "seq2seq", "--target", "lm", "out")
    assert "heirloom: target_lm lm holds NaN or infinite weights: softmax bias. Copy" in result.stderr
    with pytest.raises(ValueError, match=r"lm holds NaN or infinite weights: lm_head.bias"):
        fisher_of_language_model("lm", [[3]], [1], [2])


def test_stock_models_with_gaps_become_no_translator(files, run):
    shutil.copytree(files / "gpt2", "broken")
    whole = load_file("broken/model.safetensors")
    for state, what in (
        (whole | {"transformer.ln_f.bias": torch.zeros(3)}, "other shapes than its config.json says"),
        (whole | {"transformer.ln_f.bias": whole["transformer.ln_f.bias"] / 0}, "NaN or infinite weights"),
    ):
        save_file(state, "broken/model.safetensors", {"format": "pt"})
        result = run("convert", "seq2seq", "--source", files / "gpt2", "--target", "broken", "out")
        assert f"heirloom: target broken holds {what}: transformer.ln_f.bias" in " ".join(
            result.stderr.split()
        ).replace("weights of other", "other")


def test_a_second_run_goes_on_or_is_told_how(files, run, tmp_path):
    command = tagged(files, files / "elmo")
    assert run(*command).exit_code == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    message = "run is not empty. Choose another --output_dir, or delete it. To go on where it stopped: the same command"
    message += " with --resume_from_checkpoint true."
    assert message in run(*command).stderr
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    other = run(*tagged(files, files / "elmo", "notes")).stderr
    assert "notes is not empty. Choose another --output_dir, or delete it." in other
    elsewhere = run(*tagged(files, files / "elmo", "notes"), "--resume_from_checkpoint", "run/checkpoint-1")
    assert "notes is not empty and run/checkpoint-1 is of another run." in elsewhere.stderr
    (tmp_path / "a file").write_text("mine")
    assert "a file is a file. Choose another" in run(*tagged(files, files / "elmo", "a file")).stderr
    for given, told in (
        (
            ["--resume_from_checkpoint", "false"],
            "false is no checkpoint to resume from: it has no trainer_state",
        ),
        (
            ["--resume_from_checkpoint", "true", "--output_dir", "new"],
            "new has no whole checkpoint to resume",
        ),
    ):
        assert told in run(*command, *given).stderr
    changed = tagged(files, files / "elmo", train="three.jsonl")
    result = run(*changed, "--resume_from_checkpoint", "true")
    assert (
        "heirloom: cannot resume from run/checkpoint-2: its weights or its optimizer are of" in result.stderr
    )
    assert "size mismatch for classifier.weight" in result.stderr
    assert "Resume with the options and data of the run's beginning" in result.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert run(*raw(files, files / "elmo", "raw")).exit_code == 0
    result = run(*raw(files, files / "wide", "raw"), "--resume_from_checkpoint", "true")
    assert "heirloom: cannot resume from raw: its weights or its optimizer" in result.stderr


def test_a_run_that_was_stopped_says_how_to_go_on(files, run, tmp_path, monkeypatch):
    class Stops(TrainerCallback):
        at = 1

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == self.at:
                raise KeyboardInterrupt

    told, command = JsonLinesLog.on_train_begin, [*tagged(files, files / "elmo"), "--max_steps", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(JsonLinesLog, "on_step_end", Stops.on_step_end)
        patch.setattr(JsonLinesLog, "at", 1, raising=False)
        result = run(*command)
        assert result.exit_code == 130
        assert "No checkpoint was saved yet: save earlier with --save_steps. The run's folder is run." in (
            result.stderr
        )
        assert "run is not empty. Choose another" in run(*command).stderr
        shutil.rmtree("run")
        patch.setattr(JsonLinesLog, "at", 3)
        result = run(*command)
        assert (
            "heirloom: interrupted. To go on where it stopped: the same command with --resume"
            in result.stderr
        )
    assert JsonLinesLog.on_train_begin is told
    (tmp_path / "run" / "checkpoint-2" / "trainer_state.json").unlink()  # killed while it was written
    heard = []
    monkeypatch.setattr(folders.logger, "warning", heard.append)
    result = run(*command, "--resume_from_checkpoint", "true", "--learning_rate", "0.5")
    assert result.exit_code == 0, result.output
    assert heard[0].startswith("run/checkpoint-2 is not whole (it has no trainer_state.json)")
    assert heard[1].startswith("learning_rate 0.5 is not read: run/checkpoint-1 goes on with the rate")
    state = json.loads((tmp_path / "run" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["global_step"] == 3


def test_other_errors_stay_what_they_are(tmp_path):
    arguments = TrainingArguments(str(tmp_path / "run"))
    with pytest.raises(RuntimeError, match="^size mismatch$"), folders.run_folder(arguments):
        raise RuntimeError("size mismatch")
    whole = tmp_path / "run" / "checkpoint-10"
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-old"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "trainer_state.json").write_text("{}")
    assert [path.name for path in folders.checkpoints(tmp_path / "run")] == ["checkpoint-10", "checkpoint-9"]
    arguments.resume_from_checkpoint = "true"
    with pytest.raises(RuntimeError, match="^else$"), folders.run_folder(arguments):
        raise RuntimeError("else")
    assert arguments.resume_from_checkpoint == str(whole)
    (whole / "files.json").write_text('{"model.safetensors": 5}')
    assert [path.name for path in folders.checkpoints(tmp_path / "run")] == ["checkpoint-9"]


def test_text_without_held_out_sentences_is_found_before_training(files, run, tmp_path):
    command = raw(files, files / "elmo")
    (tmp_path / "blank.txt").write_text("\n \n")
    result = run(*command, "--validation_file", "blank.txt")
    assert "found no sentence in blank.txt; expected" in result.stderr
    assert "Name text to evaluate on in --validation_file." in result.stderr
    assert not (tmp_path / "run").exists()
