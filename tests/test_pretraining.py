"""Pre-training on running text: states carried, resumed to the bit, the same in two processes, told apart from broken data."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, XLNetConfig, XLNetLMHeadModel, set_seed
from two_processes import run_in_two_processes

from heirloom.modeling.modeling_elmo import ElmoForPreTraining
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.objectives.streams import Stream, TokenStreamCollator
from heirloom.sharing.cards import update_card
from heirloom.sharing.runs import run_pretraining
from heirloom.training.arguments import PretrainArguments
from heirloom.training.pretraining import pretrain
from heirloom.training.recurrence import SegmentRecurrence
from heirloom.training.resuming import last_whole_checkpoint
from heirloom.training.tokenizers import train_tokenizer
from heirloom.training.trainer import PretrainingTrainer, read_log

TEXT = "the cat sat on a mat and the dog ran to the old house where it slept until morning came ."
WORDS = TEXT.split()
SIZES = {"projection_size": 6, "cell_size": 8, "num_hidden_layers": 2, "dropout": 0.2}
ELMO = {"model_type": "elmo", "char_filters": "[[1, 4], [2, 4]]", "char_embedding_size": 4, "min_count": 1}
ELMO |= {"max_characters_per_token": 8, "num_highway_layers": 1, "unroll_steps": 4, **SIZES}
LSTM = {"model_type": "lstm-lm", "embedding_size": 6, "unroll_steps": 4, **SIZES}
FAMILIES = ["elmo", "lstm-lm"]


def sentences(count: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length, start = torch.randint(1, 12, (2,), generator=generator).tolist()
        found.append(" ".join(WORDS[(start + step) % len(WORDS)] for step in range(length)))
    return found


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for number in range(3):
        (folder / f"train-{number}.txt").write_text("\n".join(sentences(30, number)) + "\n")
    (folder / "dev.txt").write_text("\n".join(sentences(20, 9)) + "\n")
    rows = [line for seed in range(3) for line in sentences(30, seed)]
    train_tokenizer(rows, "word", 100)[0].save_pretrained(folder / "words")
    return folder


def options(text: Path, family: str, **changes) -> PretrainArguments:
    given = {
        "train_file": [str(text / "train-*.txt")],
        "validation_file": [str(text / "dev.txt")],
        "batching": "stream",
        "shuffle_buffer": 20,
        **(ELMO if family == "elmo" else LSTM | {"tokenizer": str(text / "words")}),
    }
    return PretrainArguments(**given | changes)


def settings(folder: Path, **changes) -> TrainingArguments:
    given = {
        "max_steps": 8,
        "per_device_train_batch_size": 3,
        "per_device_eval_batch_size": 3,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_steps": 2,
        "save_strategy": "steps",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(output_dir=str(folder), **given | changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


class Dies(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def die_at(monkeypatch, step: int) -> None:
    made = PretrainingTrainer.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.add_callback(Dies(step))

    monkeypatch.setattr(PretrainingTrainer, "__init__", init)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_resumed_training_is_the_same_to_the_bit(family, workers, text, tmp_path, monkeypatch):
    """With dropout, the sampled softmax, accumulation, evaluation in between, and text over several epochs."""
    changes = {"softmax": "sampled", "num_sampled": 5}
    own = {"gradient_accumulation_steps": 2, "dataloader_num_workers": workers, "max_steps": 30}
    own |= {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 5}
    pretrain(options(text, family, **changes), settings(tmp_path / "whole", **own))
    with monkeypatch.context() as patch:
        die_at(patch, 17)
        with pytest.raises(KeyboardInterrupt):
            pretrain(options(text, family, **changes), settings(tmp_path / "cut", **own))
    resumed = settings(tmp_path / "cut", resume_from_checkpoint="true", **own)
    trainer = pretrain(options(text, family, **changes), resumed)
    assert_same(tmp_path / "cut", tmp_path / "whole")
    logs = [
        [
            (record["step"], *(record.get(part) for part in ("loss", "forward_loss", "sampled_loss")))
            for record in read_log(tmp_path / name)
            if "loss" in record
        ]
        for name in ("cut", "whole")
    ]
    assert [step for step, *_ in logs[0]] == list(range(1, 31))  # nothing twice, nothing lost
    assert logs[0] == logs[1]
    if family == "elmo":  # whose vocabulary is counted, so that the length of the text is known
        assert trainer.state.epoch > 1


@pytest.mark.parametrize("batching", ["stream", "sentences"])
def test_resumed_sentences_of_streamed_text(batching, text, tmp_path):
    """Half of a training and then the rest, against the whole; without what the checkpoint keeps it would differ."""
    arguments = options(text, "lstm-lm", batching=batching, max_words=5)
    constant = {"lr_scheduler_type": "constant"}
    pretrain(arguments, settings(tmp_path / "whole", **constant))
    pretrain(arguments, settings(tmp_path / "half", max_steps=4, **constant))
    states = list((tmp_path / "half" / "checkpoint-4").glob("recurrent_state_0.safetensors"))
    assert len(states) == (batching == "stream")
    pretrain(arguments, settings(tmp_path / "half", resume_from_checkpoint="true", **constant))
    assert_same(tmp_path / "half", tmp_path / "whole")


@pytest.mark.parametrize(("family", "workers"), [("elmo", 0), ("lstm-lm", 2)])
def test_killed_while_it_runs(family, workers, text, tmp_path):
    """kill -9 at some moment after the first checkpoint, by way of the shell."""
    recipe = tmp_path / "recipe.yaml"
    given = {
        **{key: value for key, value in vars(options(text, family)).items() if value not in (None, "", [])},
        **{"max_steps": 80, "per_device_train_batch_size": 3, "save_steps": 3, "logging_steps": 5},
        **{"learning_rate": 0.05, "disable_tqdm": True, "use_cpu": True, "dataloader_num_workers": workers},
    }
    recipe.write_text(json.dumps(given))
    command = [sys.executable, "-m", "heirloom", "pretrain", str(recipe), "--output_dir"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([*command, str(tmp_path / "cut")], env=environment, cwd=tmp_path)
    while not list((tmp_path / "cut").glob("checkpoint-*/files.json")):
        assert run.poll() is None
        time.sleep(0.02)
    time.sleep(0.2 * random.Random().random())
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL  # it had not finished
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resume = [*command, str(tmp_path / "cut"), "--resume_from_checkpoint", "true"]
    for line in (resume, [*command, str(tmp_path / "whole")]):
        subprocess.run(line, env=environment, cwd=tmp_path, check=True, capture_output=True)
    assert_same(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision(family, text, tmp_path):
    """bfloat16 by autocast: losses near those of float32, weights and softmax in float32."""
    losses = []
    for name, changes in (("bf16", {"bf16": True}), ("fp32", {})):
        trainer = pretrain(
            options(text, family, dropout=0.0), settings(tmp_path / name, max_steps=4, **changes)
        )
        losses.append([record["loss"] for record in trainer.state.log_history if "loss" in record])
        assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "file", ["optimizer.pt", "model.safetensors", "recurrent_state_0.safetensors", "files.json"]
)
def test_a_cut_checkpoint_is_passed_over(file, text, tmp_path, caplog):
    arguments = options(text, "lstm-lm")
    pretrain(arguments, settings(tmp_path / "run"))
    expected = {name: tensor.clone() for name, tensor in weights(tmp_path / "run").items()}
    newest = tmp_path / "run" / "checkpoint-8" / file
    newest.write_bytes(newest.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").addHandler(caplog.handler)
        pretrain(arguments, settings(tmp_path / "run", resume_from_checkpoint="true"))
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert "checkpoint-8 is not whole" in caplog.text
    assert file in caplog.text
    for name, tensor in weights(tmp_path / "run").items():
        assert torch.equal(tensor, expected[name])


def test_the_list_of_an_earlier_try_vouches_for_nothing(text, tmp_path, monkeypatch):
    """A process that dies while it writes a checkpoint anew leaves files of two tries, of the right sizes."""
    trainer = pretrain(options(text, "lstm-lm"), settings(tmp_path / "run"))
    assert last_whole_checkpoint(tmp_path / "run").endswith("checkpoint-8")
    monkeypatch.delattr(Trainer, "_save_checkpoint")
    with pytest.raises(AttributeError):
        trainer._save_checkpoint(trainer.model, None)
    assert last_whole_checkpoint(tmp_path / "run").endswith("checkpoint-6")


def test_no_whole_checkpoint(tmp_path):
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(FileNotFoundError, match="has no whole checkpoint to resume from. Start anew"):
        last_whole_checkpoint(tmp_path)


def test_another_text_is_no_place_to_resume(text, tmp_path):
    pretrain(options(text, "elmo"), settings(tmp_path / "run", max_steps=2))
    changed = settings(tmp_path / "run", resume_from_checkpoint="true", per_device_train_batch_size=4)
    with pytest.raises(ValueError, match=r"cannot resume .* at its place in the text: changed rows 3 to 4"):
        pretrain(options(text, "elmo"), changed)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_is_carried(family, text, tmp_path):
    """Trainer's losses against a loop that carries the state by hand; learning rate 0, so that weights stay."""
    pretrain(options(text, family, dropout=0.0), settings(tmp_path / "learned", max_steps=20))
    own = {"learning_rate": 0.0, "max_steps": 5, "seed": 3}
    arguments = options(text, family, model=str(tmp_path / "learned"))
    trainer = pretrain(arguments, settings(tmp_path / "run", **own))
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    trainer.train_dataset.start = 0
    for carried in (True, False):
        states, found = None, []
        for batch, _ in zip(DataLoader(trainer.train_dataset, batch_size=None), range(5), strict=False):
            with torch.no_grad():
                outputs = trainer.model(**batch, states=states)
            states = outputs.states if carried else None
            found.append(outputs.loss.item())
        assert (found == pytest.approx(losses, abs=1e-6)) == carried
    evaluated, states, total, count = trainer.evaluate(), None, 0.0, 0
    for batch in DataLoader(trainer.eval_dataset, batch_size=None):
        with torch.no_grad():
            outputs = trainer.model.eval()(**batch, states=states, num_items_in_batch=1)
        states, total = outputs.states, total + outputs.loss.item()
        count += int(trainer.model.count_targets(batch))
    words = sum(len(line.split()) + 1 for line in (text / "dev.txt").read_text().splitlines())
    assert count == words  # each target of the held-out text once
    assert evaluated["eval_loss"] == pytest.approx(total / count, abs=1e-6)
    assert evaluated["eval_perplexity"] == pytest.approx(2.718281828459045 ** (total / count), rel=1e-6)


def test_evaluation_leaves_the_training_state_alone(text, tmp_path):
    own = {"eval_strategy": "steps", "eval_steps": 1}
    pretrain(options(text, "elmo"), settings(tmp_path / "without"))
    pretrain(options(text, "elmo"), settings(tmp_path / "with", **own))
    assert_same(tmp_path / "with", tmp_path / "without")


def test_gradients_end_where_a_batch_ends():
    recurrence = SegmentRecurrence("states")
    recurrence.keep({"states": (torch.ones(2, requires_grad=True) * 2,)})
    assert not recurrence.feed({})["states"][0].requires_grad


def xlnet(text: Path, folder: Path, **config) -> PretrainingTrainer:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "n_layer": 2, "n_head": 2, "d_inner": 16, "dropout": 0.0, "mem_len": 64}
    model = XLNetLMHeadModel(XLNetConfig(vocab_size=50, attn_type="uni", **sizes, **config))
    rows = [[number % 50 for number in range(start, start + 9)] for start in range(40)]
    stream = Stream([rows], list, TokenStreamCollator("labels"), 2, 5, (0, 0), shuffle_buffer=0)
    arguments = settings(folder, max_steps=4, learning_rate=0.0, save_strategy="no")
    return PretrainingTrainer(model=model, args=arguments, train_dataset=stream)


def test_memories_of_a_transformer_are_carried_alike(text, tmp_path):
    trainer = xlnet(text, tmp_path, use_mems_train=True)
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    for carried in (True, False):
        mems, found = None, []
        for batch, _ in zip(DataLoader(trainer.train_dataset, batch_size=None), range(4), strict=False):
            with torch.no_grad():
                outputs = trainer.model.train()(**batch, mems=mems)
            mems = outputs.mems if carried else None
            found.append(outputs.loss.item())
        assert (found == pytest.approx(losses, abs=1e-6)) == carried
    with pytest.raises(ValueError, match=r"takes `mems` but returned none.*use_mems_train=True"):
        xlnet(text, tmp_path / "none", use_mems_train=False).train()


def test_the_original_optimizer_without_its_scaled_gradients(text, tmp_path):
    """Adagrad on loss x unroll_steps, sums from 1, clip 10, equals Adagrad on the loss, sums from 1/T^2, clip 10/T."""
    steps = 4
    own = {
        "optim": "adagrad",
        "optim_args": f"initial_accumulator_value={steps**-2},eps=0",
        "learning_rate": 0.2,
    }
    own |= {"max_grad_norm": 0.9 / steps, "lr_scheduler_type": "constant", "max_steps": 6}
    trainer = pretrain(options(text, "elmo", dropout=0.0), settings(tmp_path / "run", **own))
    set_seed(42)
    model = ElmoForPreTraining(trainer.model.config).train()
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.2, initial_accumulator_value=1.0, eps=0)
    states, clipped = None, 0
    trainer.train_dataset.start = 0
    for batch, _ in zip(DataLoader(trainer.train_dataset, batch_size=None), range(6), strict=False):
        outputs = model(**batch, states=states)
        states = outputs.states
        optimizer.zero_grad()
        (outputs.loss * steps).backward()
        clipped += torch.nn.utils.clip_grad_norm_(model.parameters(), 0.9) > 0.9
        optimizer.step()
    assert clipped
    for ours, theirs in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_a_sampled_loss_is_called_so(text, tmp_path):
    changes = {"softmax": "sampled", "num_sampled": 5}
    for family in FAMILIES:
        pretrain(options(text, family, **changes), settings(tmp_path / family))
        train = [record for record in read_log(tmp_path / family) if "loss" in record]
        assert all(record["sampled_loss"] == pytest.approx(record["loss"], abs=1e-6) for record in train)
        assert not any("perplexity" in record for record in train)
        assert not any("sampled_loss" in record for record in read_log(tmp_path / family)[-1:])
    pretrain(options(text, "elmo"), settings(tmp_path / "full"))
    train = [record for record in read_log(tmp_path / "full") if "loss" in record]
    assert all(record["perplexity"] > 1 and record["tokens_per_second"] > 0 for record in train)


def test_an_epoch_is_the_targets_of_the_text(text, tmp_path):
    lines = [line for number in range(3) for line in (text / f"train-{number}.txt").read_text().splitlines()]
    targets = sum(len(line.split()) + 1 for line in lines)
    own = {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "save_strategy": "no"}
    trainer = pretrain(options(text, "lstm-lm"), settings(tmp_path / "run", **own))
    assert trainer.state.global_step == int(2 * targets / (3 * 4 * 2))
    assert trainer.state.epoch == pytest.approx(2, abs=0.05)


def test_text_is_held_out_by_its_content(text, tmp_path):
    (tmp_path / "more.txt").write_text(
        "\n".join(f"{line} {number}" for number, line in enumerate(sentences(400, 7)))
    )
    changes = {"train_file": [str(tmp_path / "more.txt")], "validation_file": []}
    arguments = options(text, "elmo", batching="sentences", streaming=True, **changes)
    trainer = pretrain(arguments, settings(tmp_path / "run", max_steps=2))
    held_out = {" ".join(row["words"]) for row in trainer.eval_dataset}
    assert held_out
    trainer.train_dataset.start = 0
    seen = set()
    for batch, _ in zip(trainer.train_dataset._global_batches(), range(300), strict=False):
        seen |= {" ".join(words) for words in batch}
    assert len(held_out) + len(seen) == 400
    assert not held_out & seen


def test_going_on_from_a_checkpoint(text, tmp_path):
    for family, model_class in (("elmo", ElmoForPreTraining), ("lstm-lm", LstmLMForCausalLM)):
        pretrain(options(text, family), settings(tmp_path / family))
        own = {"learning_rate": 0.0, "max_steps": 1}
        arguments = PretrainArguments(
            train_file=[str(text / "dev.txt")],
            validation_file=[str(text / "dev.txt")],
            model=str(tmp_path / family),
            batching="stream",
            unroll_steps=4,
        )
        trainer = pretrain(arguments, settings(tmp_path / f"{family} on", **own))
        assert isinstance(trainer.model, model_class)
        assert_same(tmp_path / f"{family} on", tmp_path / family)


def test_early_stopping(text, tmp_path):
    arguments = options(text, "elmo", early_stopping_patience=1)
    with pytest.raises(ValueError, match="early_stopping_patience needs load_best_model_at_end: true"):
        pretrain(arguments, settings(tmp_path / "run"))
    own = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 3.0}
    trainer = pretrain(
        arguments, settings(tmp_path / "run", max_steps=40, lr_scheduler_type="constant", **own)
    )
    assert trainer.state.global_step < 40


def test_word_mode_shares_its_table(text, tmp_path):
    changes = {"char_embedding_size": 0, "word_embedding_size": 6, "tie_word_embeddings": True}
    trainer = pretrain(options(text, "elmo", **changes), settings(tmp_path / "run"))
    assert trainer.model.softmax.weight is trainer.model.elmo.token_encoder.word_embeddings.weight
    again = ElmoForPreTraining.from_pretrained(tmp_path / "run")
    assert again.softmax.weight is again.elmo.token_encoder.word_embeddings.weight
    names = {"softmax.weight", "elmo.token_encoder.word_embeddings.weight"}
    assert len(names & weights(tmp_path / "run").keys()) == 1  # one table in the file


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_file": []}, "train_file is empty"),
        ({"train_file": ["nothing-*.txt"]}, "no file matches 'nothing-"),
        ({"train_file": ["empty.txt"]}, "found files without content: empty.txt"),
        ({"train_file": ["latin.txt"]}, "latin.txt, line 2, is no UTF-8 at byte 3"),
        ({"train_file": ["long.txt"]}, "long.txt, line 1, has at least 4,000,004 bytes"),
        ({"vocab_file": "no_unk.txt"}, "no_unk.txt lacks <UNK>. Add them as lines"),
        ({"vocab_file": "nowhere.txt"}, "vocab_file nowhere.txt does not exist"),
        ({"softmax": "sampled"}, "needs num_sampled below the 2[0-9] words of the vocabulary, found 8192"),
        ({"char_filters": "[[1, 2"}, "char_filters must be JSON"),
        ({"model": "./nowhere"}, "nowhere holds no config.json"),
        ({"model_type": "lstm-lm"}, "an lstm-lm needs a tokenizer"),
        ({"model_type": "lstm-lm", "tokenizer": "./nowhere"}, "nowhere holds no tokenizer_config.json"),
    ],
)
def test_what_is_wrong_is_said(changes, message, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").touch()
    Path("latin.txt").write_bytes("good\ncaf\xe9\n".encode("latin-1"))
    Path("long.txt").write_text("word " * 2_000_000)
    Path("no_unk.txt").write_text("<S>\n</S>\nthe\n")
    with pytest.raises((ValueError, OSError, StrictDataclassError), match=message):
        pretrain(options(text, "elmo", **changes), settings(tmp_path / "run"))


def test_two_processes_are_one_with_twice_the_lanes(text, tmp_path):
    code = f"""
from heirloom.sharing.runs import run_pretraining

text = pathlib.Path({str(text)!r})
for family in suite.FAMILIES:
    arguments = suite.options(text, family, dropout=0.0)
    own = {{"ddp_backend": "gloo", "gradient_accumulation_steps": 2, "max_steps": 4}}
    run_pretraining(arguments, suite.settings(folder / f"{{family}} 2", **own))
"""
    run_in_two_processes(__file__, tmp_path, code)
    for family in FAMILIES:
        own = {"per_device_train_batch_size": 6, "per_device_eval_batch_size": 6}
        own |= {"gradient_accumulation_steps": 2, "max_steps": 4}
        pretrain(options(text, family, dropout=0.0), settings(tmp_path / f"{family} 1", **own))
        logs = [read_log(tmp_path / f"{family} {count}") for count in (2, 1)]
        for key in ("loss", "eval_loss"):
            ours, theirs = ([record[key] for record in log if key in record] for log in logs)
            assert len(ours) == len(theirs) > 0
            assert ours == pytest.approx(theirs, abs=2e-6)
        ours, theirs = weights(tmp_path / f"{family} 2"), weights(tmp_path / f"{family} 1")
        for name in theirs:
            torch.testing.assert_close(
                ours[name], theirs[name], rtol=0, atol=1e-5
            )  # Adam divides small gradients


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_of_a_run_tells_what_it_is(family, text, tmp_path, capsys, monkeypatch):
    """The card's example is run as a reader would."""
    monkeypatch.chdir(tmp_path)
    run_pretraining(options(text, family), settings(tmp_path / "run", max_steps=2))
    assert {"README.md", "curves.png", "log.jsonl", "model.safetensors"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.tags == [family, "heirloom"]
    assert card.data.eval_results[0].metric_type == "perplexity"
    for told in ("| cell_size |", "| optim |", "| seed |", "heirloom ", "## Licence"):
        assert told in card.content
    assert str(tmp_path) not in (tmp_path / "run" / "card.json").read_text()
    written = (tmp_path / "run" / "README.md").read_text()
    assert update_card(tmp_path / "run") == written
    assert "held-out perplexity, whole vocabulary" in card.content
    assert "heirloom score" in capsys.readouterr().out
    example = card.content.split("```python\n")[1].split("```")[0]
    exec(example, {})
    with pytest.raises(FileExistsError, match="is not empty. Choose another --output_dir"):
        run_pretraining(options(text, family), settings(tmp_path / "run", max_steps=2))
