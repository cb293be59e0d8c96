"""What verbs are given by mistake: broken tables, columns of text, repeated words, foreign code; and files that are whole."""

import builtins
import json
import os
import signal
import time

import pytest
import torch
from datasets import Dataset
from small_checkpoints import save_elmo, save_lstm_lm
from typer.testing import CliRunner

from heirloom.cli import main
from heirloom.cli.main import app
from heirloom.conversion.vocabulary import repeated_words
from heirloom.modeling.modeling_elmo import ElmoForPreTraining, ElmoModel
from heirloom.sharing.cards import CardFacts, update_card, write_card
from heirloom.sharing.lines import new_text_file
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer
from heirloom.training.data import read_table
from heirloom.training.text_files import open_shards


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, kind in (("elmo", ElmoForPreTraining), ("body", ElmoModel)):
        save_elmo(folder / name, kind)
    save_lstm_lm(folder / "lm")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the bank\n")
    return lambda *words, **options: CliRunner().invoke(app, [str(word) for word in words], **options)


def test_tables_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "lines.csv").write_text("\n\n")
    Dataset.from_list([{"text": "the bank"}] * 500).to_parquet("whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[: len(data) // 2])
    cases = {
        "folder.csv": (FileNotFoundError, "^folder.csv is a folder. Give a path to a file"),
        "none.csv": (FileNotFoundError, "^none.csv does not exist. Give a path to a file"),
        "empty.csv": (ValueError, "^found files without content: empty.csv; expected rows. Leave them out"),
        "lines.csv": (
            ValueError,
            "^cannot read lines.csv: No columns to parse from file. Is the file complete",
        ),
        "cut.parquet": (ValueError, "^cannot read cut.parquet: Parquet magic bytes not found in footer"),
    }
    for name, (kind, message) in cases.items():
        with pytest.raises(kind, match=message) as caught:
            read_table(name)
        assert "An error occurred" not in str(caught.value)


def test_text_has_no_columns(checkpoints, run, tmp_path):
    message = (
        "column 'words' is of a table (.csv .json .jsonl .parquet .tsv), but {} holds lines of text. Leave"
    )
    for verb, model, out in (("score", "lm", []), ("embed", "elmo", ["out"])):
        told = run(verb, checkpoints / model, "text.txt", *out, "--column", "words").stderr
        assert f"heirloom: {message.format('text.txt')}" in told
        assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt"]
    for verb in ("score", "translate"):
        told = run(verb, checkpoints / "lm", "-", "--column", "words", input="the\n").stderr
        assert f"heirloom: {message.format('standard input')}" in told
    assert run("score", checkpoints / "lm", "text.txt", "--column", "text").exit_code == 0
    (tmp_path / "rows.jsonl").write_text('{"words": "the"}\n')
    assert len(open_shards(["text.txt", "rows.jsonl"], "words")) == 2


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "out.txt"
    with new_text_file(path) as file:
        file.write("first\n")
        assert not path.exists()
    assert path.read_text() == "first\n"
    path.unlink()
    with pytest.raises(RuntimeError), new_text_file(path) as file:
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileExistsError, match="exists. Choose another name"), new_text_file(path) as file:
        path.write_text("somebody's")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("out.txt", "somebody's")]


def test_a_killed_process_leaves_no_half_file(tmp_path):
    read, write = os.pipe()
    if not (child := os.fork()):
        with new_text_file(tmp_path / "out.txt") as file:
            file.write("half")
            file.flush()
            os.write(write, b"written")
            time.sleep(60)
        os._exit(0)
    assert os.read(read, 7) == b"written"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    assert [path.name for path in tmp_path.iterdir()] == [f".out.txt.partial-{child}"]


def test_repeated_words_are_named(checkpoints, run, tmp_path):
    words = ["<S>", "</S>", "<UNK>", "the", "the"]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("".join(f"{word}\n" for word in words))
    for name, softmax in (("elmo", ["--softmax", "elmo-out/softmax.hdf5"]), ("body", [])):
        out = f"{name}-out"
        assert run("convert", "elmo-to-bilm", checkpoints / name, out).exit_code == 0
        files = ["--options", f"{out}/options.json", "--weights", f"{out}/weights.hdf5", *softmax]
        result = run("convert", "elmo", f"{name}-new", *files, "--vocab", vocabulary)
        if softmax:
            told = f"heirloom: {vocabulary} repeats 'the' (lines 4 and 5), but softmax/W in"
            assert told in result.stderr
            assert "has a row for every line, and a word can have one id only. Give the" in result.stderr
            assert not (tmp_path / "elmo-new").exists()
        else:
            assert result.exit_code == 0, result.output
            note = (
                f"note: {vocabulary} repeats 'the' (lines 4 and 5): of a repeated word the last line counts"
            )
            assert note in result.stdout
    assert repeated_words(["a", "b"], "v", "softmax/W") == []
    with pytest.raises(
        ValueError, match=r"v repeats 'a' \(lines 1 and 2\), .* and 2 more, but softmax/W has"
    ):
        repeated_words(["a"] * 8, "v", "softmax/W")


def test_a_tokenizer_without_words_makes_no_decoder(checkpoints, run, tmp_path):
    ElmoTokenizer().save_pretrained(tmp_path / "specials")
    result = run(
        "convert", "seq2seq", "--source", checkpoints / "lm", "--target-tokenizer", "specials", "out"
    )
    assert result.exit_code == 1
    assert "heirloom: the tokenizer in specials knows no words, only ['" in result.stderr
    assert "so the target would have none. Name one with words in --target-tokenizer" in result.stderr
    assert not (tmp_path / "out").exists()


def test_cards_have_names_and_languages_of_the_hub(run, tmp_path):
    write_card(tmp_path, CardFacts("run", "AutoModel", "A model.", "Text.", {}, {}))
    before = (tmp_path / "README.md").read_text()
    for name in ("a b", "a/b/c", "-a", "a--b", "x" * 97):
        result = run("card", tmp_path, "--name", name) if name[0] != "-" else None
        if result:
            assert f"heirloom: name {name!r} is none that the Hub takes: expected USER/NAME" in result.stderr
        with pytest.raises(ValueError, match="is none that the Hub takes"):
            update_card(tmp_path, {"name": name})
    for language in ("German", "de_DE", "d", "de en", "DE"):
        result = run("card", tmp_path, "--language", language)
        assert (
            f"heirloom: language {language!r} is no code that the Hub takes: expected one such"
            in result.stderr
        )
    assert (tmp_path / "README.md").read_text() == before
    for language in ("de", "gsw", "pt-BR", "zh-Hant", "multilingual", "code", ""):
        assert "More Information" not in update_card(
            tmp_path, {"language": language, "name": "ada/small.elmo"}
        )


def test_code_of_checkpoints_is_never_asked_for(checkpoints, run, tmp_path):
    folder = tmp_path / "foreign"
    folder.mkdir()
    maps = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "unknown-kind", "auto_map": maps}))
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('run').touch()\nclass Config: pass\n")
    start = time.monotonic()
    for words in (
        ["score", "foreign", "-"],
        ["embed", "foreign", "text.txt", "out"],
        ["translate", "foreign", "text.txt"],
        [
            "finetune",
            "subj",
            "--model",
            "foreign",
            "--train_file",
            "text.txt",
            "--validation_file",
            "text.txt",
        ],
        ["pretrain", "elmo-small", "--model", "foreign", "--train_file", "text.txt"],
        ["convert", "export", "foreign", "out"],
    ):
        result = run(*words, input="y\ny\n")
        assert result.exit_code == 1, result.output
        assert "heirloom: foreign needs code of its own (auto_map in its JSON files)" in result.stderr
        assert "trust_remote_code" not in result.output
        assert "[y/N]" not in result.output
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - start < 15
    assert builtins.input is not main._answer_nobody
    assert signal.alarm(0) == 0
    assert os.path.exists("foreign/evil.py")
