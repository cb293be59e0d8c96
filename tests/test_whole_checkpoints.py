"""Verbs that use a checkpoint refuse one that is not whole, in words; other libraries' errors get words of ours."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoints import save_elmo, save_lstm_lm
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.conversion.seq2seq import convert_seq2seq
from heirloom.conversion.vocabulary import read_vocabulary
from heirloom.modeling.modeling_elmo import ElmoForPreTraining, ElmoForTokenClassification
from heirloom.modeling.modeling_joint_loss import JointLossForSequenceClassification


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A folder with one checkpoint of each family."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("whole")
    for name, kind in (("elmo", ElmoForPreTraining), ("tagger", ElmoForTokenClassification)):
        save_elmo(folder / name, kind)
    save_lstm_lm(folder / "lm")
    convert_seq2seq(str(folder / "lm"), str(folder / "lm"), folder / "seq2seq")
    gpt = GPT2LMHeadModel(
        GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, bos_token_id=1, eos_token_id=1)
    )
    JointLossForSequenceClassification.from_backbone_pretrained(gpt, num_labels=2).save_pretrained(
        folder / "joint"
    )
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the bank\n")
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


USES = [
    ("elmo", "lstm.forward_layers.0.bias", ["embed", "CHECKPOINT", "text.txt", "out"]),
    ("tagger", "mix.gamma", ["embed", "CHECKPOINT", "text.txt", "out", "--layers", "mix"]),
    ("elmo", "softmax.weight", ["score", "CHECKPOINT", "text.txt", "--output", "out"]),
    ("elmo", "softmax.weight", ["evaluate", "CHECKPOINT", "text.txt"]),
    ("elmo", "softmax.weight", ["convert", "elmo-to-bilm", "CHECKPOINT", "out"]),
    ("lm", "lm_head.weight", ["score", "CHECKPOINT", "text.txt", "--output", "out"]),
    ("lm", "lm_head.weight", ["convert", "export", "CHECKPOINT", "out"]),
    ("seq2seq", "decoder.combine.weight", ["translate", "CHECKPOINT", "text.txt", "--output", "out"]),
    ("joint", "language_model.transformer.ln_f.bias", ["convert", "joint-to-stock", "CHECKPOINT", "out"]),
]


@pytest.mark.parametrize(
    ("name", "weight", "words"), USES, ids=[" ".join(use[2][:2]) + use[0] for use in USES]
)
def test_a_checkpoint_that_is_not_whole_is_refused(checkpoints, run, tmp_path, name, weight, words):
    broken = tmp_path / "broken"
    shutil.copytree(checkpoints / name, broken)
    tensors = load_file(broken / "model.safetensors")
    key = next(key for key in sorted(tensors) if key.endswith(weight))
    shape = tuple(tensors[key].shape)
    kept = {other: tensor for other, tensor in tensors.items() if other != key}
    damages = [
        (kept, f"broken lacks weights of its model: {weight}. Copy or convert the checkpoint again"),
        (
            kept | {key: torch.zeros(3, 1, 2)},
            f"other shapes than its config.json says: {weight} has (3, 1, 2), expected {shape}",
        ),
        (
            kept | {key: torch.full(shape, float("nan"))},
            f"broken holds NaN or infinite weights: {weight}. Copy",
        ),
    ]
    for state, message in damages:
        save_file(state, broken / "model.safetensors", {"format": "pt"})
        result = run(*(broken if word == "CHECKPOINT" else word for word in words))
        assert (result.exit_code, message in result.stderr) == (1, True), result.output
        assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "text.txt"]


def test_many_gaps_are_counted(checkpoints, run, tmp_path):
    shutil.copytree(checkpoints / "elmo", tmp_path / "broken")
    save_file({"other": torch.zeros(1)}, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
    message = run("embed", "broken", "text.txt", "out").stderr.splitlines()[-1]
    assert message.count(", ") < 7
    assert " and 20 more. Copy" in message


def test_damaged_files_get_words(checkpoints, run, tmp_path):
    lm, other = tmp_path / "lm", tmp_path / "other"
    shutil.copytree(checkpoints / "lm", lm)
    shutil.copytree(checkpoints / "elmo", other)
    weights = (lm / "model.safetensors").read_bytes()
    (lm / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (other / "tokenizer_config.json").write_text('{"a')
    cases = [
        (
            ["score", "lm", "text.txt"],
            "a file of weights (.safetensors) is damaged or cut short (Error while deserializing",
        ),
        (["embed", "other", "text.txt", "out"], "a JSON file of a checkpoint or its tokenizer is damaged"),
    ]
    for words, message in cases:
        result = run(*words)
        assert (result.exit_code, f"heirloom: {message}" in result.stderr) == (1, True), result.output
    (lm / "tokenizer.json").write_text('{"a')
    (lm / "model.safetensors").write_bytes(weights)
    result = run("score", "lm", "text.txt")
    assert "lm holds no tokenizer that can be read (Unterminated string" in result.stderr
    assert "Save the model's own into it: tokenizer.save_pretrained('lm')" in result.stderr
    (lm / "tokenizer.json").write_bytes((checkpoints / "lm" / "tokenizer.json").read_bytes())
    wrong = load_file(lm / "model.safetensors") | {"lm_head.weight": torch.zeros(3, 3)}
    save_file(wrong, lm / "model.safetensors", {"format": "pt"})
    result = run("convert", "seq2seq", "--source", "lm", "out")
    assert result.exit_code == 1
    assert "heirloom: source_lm lm holds weights of other shapes than its config.json says." in result.stderr


def test_what_is_no_bug():
    from heirloom.cli.main import explain

    assert explain(RuntimeError("something else")) is None
    assert explain(KeyError("x")) is None
    assert explain(ValueError("plain")) == "plain"
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    assert "a file that should be text is no UTF-8 ('utf-8' codec" in explain(error)


def test_words_that_stay_behind_are_told(checkpoints, run, tmp_path):
    folder = tmp_path / "elmo"
    shutil.copytree(checkpoints / "elmo", folder)
    assert load_file(folder / "model.safetensors")["softmax.weight"][0].any()  # as pre-training leaves it
    whole = run("convert", "elmo-to-bilm", folder, "whole").output
    assert "every bit equal" in whole
    assert "no vocab.txt" not in whole
    (folder / "tokenizer_config.json").write_text('{"a')
    told = run("convert", "elmo-to-bilm", folder, "without")
    assert "note: no vocab.txt: the checkpoint holds no tokenizer with the softmax's words" in told.output
    assert not (tmp_path / "without" / "vocab.txt").exists()


def test_rows_that_are_no_text_are_named(checkpoints, run, tmp_path):
    rows = [{"text": "the bank"}, {"text": None}, {"text": 5}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("embed", checkpoints / "elmo", "rows.jsonl", "out")
    assert result.exit_code == 1
    assert "row 3 of the input holds int '5'; expected a text or a list of words." in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "text.txt"]
    assert "is a folder. Give a text" in run("embed", checkpoints / "elmo", checkpoints, "out").stderr


def test_a_byte_order_mark_is_no_letter(checkpoints, run, tmp_path):
    import h5py

    text = "the bank\nthe\n"
    for name, data in (("plain", text.encode()), ("marked", text.encode("utf-8-sig"))):
        (tmp_path / f"{name}.txt").write_bytes(data)
        assert run("embed", checkpoints / "elmo", f"{name}.txt", f"{name}.hdf5").exit_code == 0
    with h5py.File("plain.hdf5") as plain, h5py.File("marked.hdf5") as marked:
        assert sorted(plain) == sorted(marked)
        assert json.loads(marked["sentence_to_index"][0]) == {"the bank": "0", "the": "1"}
        for number in "01":
            assert (plain[number][:] == marked[number][:]).all()
    scores = [
        CliRunner().invoke(app, ["score", str(checkpoints / "lm"), "-"], input=data).stdout
        for data in (text.encode(), text.encode("utf-8-sig"))
    ]
    assert scores[0] == scores[1]


def test_nul_bytes_are_no_text(checkpoints, run, tmp_path):
    data = "the bank\nthe\n".encode("utf-16-le")
    (tmp_path / "wide.txt").write_bytes(data)
    result = run("embed", checkpoints / "elmo", "wide.txt", "out")
    assert result.exit_code == 1
    assert "wide.txt is no text: it holds NUL bytes (byte 1), as binary files and UTF-16 do." in result.stderr
    result = CliRunner().invoke(app, ["score", str(checkpoints / "lm"), "-"], input=data)
    assert result.exit_code == 1
    assert "standard input, line 1, holds NUL bytes" in result.stderr


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
def test_a_length_penalty_is_a_number(checkpoints, run, number):
    result = run("translate", checkpoints / "seq2seq", "text.txt", f"--length-penalty={number}")
    assert result.exit_code == 1
    assert f"length_penalty must be a finite number, found {number}. Change it." in result.stderr


def test_a_quickstart_needs_a_folder_of_its_own(run):
    assert "text.txt is a file. Name another folder" in run("quickstart", "text.txt").stderr


def test_a_vocabulary_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("<S>\n</S>\n".encode("utf-8-sig"))
    assert read_vocabulary(tmp_path / "vocab.txt")[0] == ["<S>", "</S>"]


@pytest.mark.parametrize("log", [b'{"loss": 1}\n5\n', b"\xff\n"])
def test_a_log_of_something_else_is_named(run, tmp_path, log):
    (tmp_path / "log.jsonl").write_bytes(log)
    result = run("plot", tmp_path)
    assert result.exit_code == 1
    assert f"{tmp_path}/log.jsonl must hold one JSON record a line (" in result.stderr
