"""`heirloom convert`: tables, checkpoints that load, and failures that leave nothing behind."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from reference.bilm_files import random_weights, tiny_options
from test_conversion_efml import make as make_efml
from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer
from typer.testing import CliRunner
from weights import allennlp_state, read_arrays, write_arrays, write_bilm_files, write_vocabulary

from heirloom import ElmoConfig, ElmoForTokenClassification, ElmoModel
from heirloom.cli.main import app
from heirloom.conversion import from_bilm


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def spread(paths, **more):
    return [
        "convert",
        "elmo",
        *[part for name, path in (paths | more).items() for part in (f"--{name}", path)],
    ]


def convert(paths, out, **more):
    return run(*spread(paths, **more), out)


@pytest.fixture
def original(tmp_path):
    """Paths of a small ELMo, and its datasets."""
    options = tiny_options()
    arrays = random_weights(options, words=7, dtype=np.float32)
    softmax = {name: arrays.pop(name) for name in ("softmax/W", "softmax/b")}
    return write_bilm_files(tmp_path / "original", options, arrays, softmax), arrays | softmax


def test_there_and_back(original, tmp_path):
    paths, arrays = original
    out, back = tmp_path / "deep" / "checkpoint", tmp_path / "back"
    out.mkdir(parents=True)  # an empty folder may be there
    vocab = write_vocabulary(tmp_path / "vocab.txt", 7)
    result = convert(paths, out, vocab=vocab)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0].split("  ")[0] == "parameter group"
    assert "max abs difference" in lines[0]
    assert any(line.split() == ["CNN_high_1", "4", "480", "15", "x", "15", "0", "ok"] for line in lines)
    assert any(
        line.split() == ["total", "31", f"{sum(a.size for a in arrays.values()):,}", "0", "ok"]
        for line in lines
    )
    assert "every bit equal" in result.output
    assert f"heirloom embed {out}" in result.output
    assert all(
        len(line) < 110 for line in lines if not line.strip().startswith(("try next", "python -c", "written"))
    )
    assert "\x1b" not in result.output

    model = AutoModelForPreTraining.from_pretrained(out)
    expected = from_bilm(**paths, vocab=vocab)
    assert all(
        torch.equal(weight, expected.state_dict()[name]) for name, weight in model.state_dict().items()
    )
    assert type(AutoModel.from_pretrained(out)) is ElmoModel
    batch = AutoTokenizer.from_pretrained(out)(
        [["word0", "new"]], is_split_into_words=True, return_tensors="pt"
    )
    assert batch["input_ids"].tolist() == [[4, 3]]
    assert torch.isfinite(model(**batch).forward_logits[..., 1:]).all()

    result = run("convert", "elmo-to-bilm", out, back)
    assert result.exit_code == 0, result.output
    assert "read back from HDF5: every bit equal" in result.output
    assert sorted(path.name for path in back.iterdir()) == [
        "options.json",
        "softmax.hdf5",
        "vocab.txt",
        "weights.hdf5",
    ]
    found = read_arrays(back / "weights.hdf5") | read_arrays(back / "softmax.hdf5")
    assert found.keys() == arrays.keys()
    assert all(found[name].tobytes() == array.tobytes() for name, array in arrays.items())
    assert (back / "vocab.txt").read_bytes() == vocab.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "deep", "original", "vocab.txt"]


def test_without_softmax_and_vocabulary(original, tmp_path):
    paths, _ = original
    del paths["softmax"]
    out = tmp_path / "out"
    assert convert(paths, out).exit_code == 0
    assert type(AutoModel.from_pretrained(out)) is ElmoModel
    assert AutoTokenizer.from_pretrained(out).vocab_size == 4
    result = run("convert", "elmo-to-bilm", out, tmp_path / "back")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["options.json", "weights.hdf5"]


@pytest.mark.parametrize("name", ["weights.th", "weights.hdf5"])
def test_allennlp_is_known_by_its_content(original, tmp_path, name):
    paths, arrays = original
    state = {key: torch.tensor(array) for key, array in allennlp_state(arrays, 2, 2).items()}
    path = tmp_path / name
    torch.save(state, path)
    files = {"options": paths["options"], "weights": path}
    result = convert(files, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "_elmo_lstm.forward_layer_0.state_linearity" in result.output
    failed(
        tmp_path, "--softmax belongs to HDF5", *spread(files, softmax=paths["softmax"]), tmp_path / "other"
    )
    path.write_bytes(path.read_bytes()[:2000])
    failed(tmp_path, "is no complete PyTorch state dict (2,000 bytes)", *spread(files), tmp_path / "other")
    result = run("convert", "elmo-to-bilm", tmp_path / "out", tmp_path / "back")
    assert result.exit_code == 0, result.output
    assert "largest rounding difference" in result.output


def test_efml(tmp_path):
    make_efml(tmp_path / "efml")
    out = tmp_path / "out"
    result = run("convert", "efml", tmp_path / "efml", out)
    assert result.exit_code == 0, result.output
    assert "word_emb_layer.embedding" in result.output
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModel.from_pretrained(out)
    batch = tokenizer([["the", "dog"]], is_split_into_words=True, return_tensors="pt")
    assert model(**batch).last_hidden_state.shape == (1, 2, 10)
    result = run("convert", "elmo-to-bilm", out, tmp_path / "back")
    assert result.exit_code == 1
    assert "cannot be written as bilm-tf files: it reads words and characters together" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["efml", "out"]


def test_word_models_need_their_vocabulary(tmp_path):
    options = tiny_options(char_cnn=None, n_tokens_vocab=7)
    arrays = random_weights(options, words=7, word_size=6, dtype=np.float32)
    paths = write_bilm_files(
        tmp_path / "original", {k: v for k, v in options.items() if v is not None}, arrays
    )
    result = convert(paths, tmp_path / "out")
    assert (result.exit_code, "give its vocabulary, --vocab" in result.stderr) == (1, True)
    vocab = write_vocabulary(tmp_path / "vocab.txt", 7)
    assert convert(paths, tmp_path / "out", vocab=vocab).exit_code == 0
    result = run("convert", "elmo-to-bilm", tmp_path / "out", tmp_path / "back")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "back" / "options.json").read_text())["n_tokens_vocab"] == 7


def test_an_inventory_of_its_own_gets_no_tokenizer(tmp_path):
    options = tiny_options()
    paths = write_bilm_files(tmp_path / "original", options, random_weights(options, char_rows=62))
    result = convert(paths, tmp_path / "out")
    assert result.exit_code == 0
    assert "no tokenizer was written: the model has a character inventory of its own" in result.output
    assert "note: char_embed in" in result.output
    assert not (tmp_path / "out" / "vocab.txt").exists()


def test_task_heads_are_left_out_of_bilm_files(original, tmp_path):
    paths, _ = original
    config = from_bilm(paths["options"], paths["weights"]).config
    ElmoForTokenClassification(config).save_pretrained(tmp_path / "tagger")
    result = run("convert", "elmo-to-bilm", tmp_path / "tagger", tmp_path / "back")
    assert result.exit_code == 0, result.output
    assert "note: bilm-tf's format has no place for the task head" in result.output


def failed(tmp_path, words, *arguments):
    """Exit status 1, one message on stderr, nothing on stdout, nothing left behind."""
    before = sorted(tmp_path.rglob("*"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.startswith("heirloom: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_failures_leave_nothing(original, tmp_path):
    paths, arrays = original
    arguments = ["convert", "elmo", "--options", paths["options"], "--weights", paths["weights"]]
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "mine").write_text("")
    file.write_text("")
    failed(tmp_path, "not empty. Choose another folder or delete it", *arguments, full)
    failed(tmp_path, "Choose another folder or delete it", *arguments, file)
    failed(tmp_path, "cannot be written: ", *arguments, file / "below")
    out = tmp_path / "out"
    failed(tmp_path, "does not exist", *arguments[:-1], tmp_path / "nowhere", out)
    vocab = write_vocabulary(tmp_path / "vocab.txt", 8)
    failed(tmp_path, "holds 8 words", *arguments, "--softmax", paths["softmax"], "--vocab", vocab, out)
    write_arrays(paths["weights"], {"char_embed": arrays["char_embed"]})
    failed(tmp_path, "missing: ['CNN/W_cnn_0'", *arguments, out)
    failed(
        tmp_path,
        "is no folder, expected one of ELMoForManyLangs",
        "convert",
        "efml",
        tmp_path / "nowhere",
        out,
    )
    failed(
        tmp_path,
        "does not exist, expected a checkpoint",
        "convert",
        "elmo-to-bilm",
        tmp_path / "nowhere",
        out,
    )
    failed(tmp_path, "holds no config.json", "convert", "elmo-to-bilm", tmp_path / "full", out)
    failed(tmp_path, "is a file, expected a checkpoint folder", "convert", "elmo-to-bilm", file, out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_place(original, tmp_path):
    paths, _ = original
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    result = convert(paths, closed / "out")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr
    assert "Choose a folder that you may write to" in result.stderr


def test_checkpoints_of_other_models(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    failed(
        tmp_path,
        "is a checkpoint of 'bert', expected one of 'elmo'",
        "convert",
        "elmo-to-bilm",
        other,
        tmp_path / "o",
    )
    config = {"model_type": "elmo", "architectures": ["Strange"]}
    (other / "config.json").write_text(json.dumps(config))
    failed(tmp_path, "is a checkpoint of Strange", "convert", "elmo-to-bilm", other, tmp_path / "o")


def spoil(monkeypatch, cls):
    """Loading this class changes one number."""
    load = cls.from_pretrained.__func__

    def spoiled(cls, *args, **kwargs):
        model = load(cls, *args, **kwargs)
        with torch.no_grad():
            next(model.parameters())[-1, -1] += 1e-6
        return model

    monkeypatch.setattr(cls, "from_pretrained", classmethod(spoiled))


def test_a_checkpoint_that_differs_is_not_kept(original, tmp_path, monkeypatch):
    paths, _ = original
    spoil(monkeypatch, ElmoModel)
    arguments = ["convert", "elmo", "--options", paths["options"], "--weights", paths["weights"]]
    failed(
        tmp_path,
        "Verification failed: the checkpoint differs from the original in ['char_embed']",
        *arguments,
        tmp_path / "o",
    )


def test_files_that_differ_are_not_kept(tmp_path, monkeypatch):
    from heirloom.conversion import saving

    config = ElmoConfig(char_filters=[[1, 4]], projection_size=3, cell_size=4, num_highway_layers=0)
    ElmoModel(config).save_pretrained(tmp_path / "checkpoint")
    whole = saving.bilm_state

    def spoiled(model):
        state, notes = whole(model)
        state["lstm.forward_layers.0.bias"] = state["lstm.forward_layers.0.bias"] + np.float32(1)
        return state, notes

    monkeypatch.setattr(saving, "bilm_state", spoiled)
    words = "what was written differs from the original in ['RNN_0/RNN/MultiRNNCell/Cell0/LSTMCell']"
    failed(tmp_path, words, "convert", "elmo-to-bilm", tmp_path / "checkpoint", tmp_path / "out")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (ZeroDivisionError(), None)])
def test_interruption_and_bugs(original, tmp_path, monkeypatch, error, status):
    """An interruption leaves nothing; what nobody foresaw keeps its traceback."""
    paths, _ = original

    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(ElmoModel, "save_pretrained", stop)
    files = {name: paths[name] for name in ("options", "weights")}
    result = convert(files, tmp_path / "out")
    if status is None:
        assert result.exception is error
    else:
        assert (result.exit_code, result.stderr) == (status, "heirloom: interrupted.\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


def test_wrong_usage_and_help(original):
    assert run("convert", "elmo", "out").exit_code == 2
    assert run("convert", "elmos").exit_code == 2
    for verb in ([], ["convert"], ["convert", "elmo"], ["convert", "efml"], ["convert", "elmo-to-bilm"]):
        for flag in ("-h", "--help"):
            result = run(*verb, flag)
            assert result.exit_code == 0
            assert len(result.output.splitlines()) <= 24
            assert max(map(len, result.output.splitlines())) <= 80
            assert "Example: heirloom" in result.output or verb == ["convert"]


def test_the_program(original, tmp_path):
    """The real program, from another folder: status, streams, and no torch for its help."""
    paths, _ = original
    heirloom = [sys.executable, "-m", "heirloom"]
    out = tmp_path / "out"
    command = [
        *heirloom,
        "convert",
        "elmo",
        "--options",
        paths["options"],
        "--weights",
        paths["weights"],
        out,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "every bit equal" in done.stdout
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == f"heirloom: {out} is there already and not empty. Choose another folder or delete it.\n"
    )
    traced = subprocess.run(command, env=os.environ | {"HEIRLOOM_DEBUG": "1"}, capture_output=True, text=True)
    assert (traced.returncode, "Traceback" in traced.stderr) == (1, True)
    code = (
        "import sys; from heirloom.cli.main import app; app(['convert', '--help'], standalone_mode=False); "
        "assert not {'torch', 'transformers', 'numpy', 'h5py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([*heirloom, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("heirloom 0.")
