"""heirloom train-tokenizer: layout of ids, round trips, equal bytes from equal text, coverage, and clear errors."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import models
from transformers import AutoTokenizer
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer
from heirloom.training import tokenizers
from heirloom.training.tokenizers import train_tokenizer

KINDS = ["word", "bpe", "unigram"]
TEXT = [
    "the cat sat on the mat .",
    "the dog sat on the cat 's mat .",
    "a na\u00efve caf\u00e9 , the dog 's caf\u00e9 !",
    "zebra yak the",
]
STRANGE = "  Tabs\tand   spaces, \u00c5ngstr\u00f6m \U0001f468\u200d\U0001f469\u200d\U0001f467 \u65e5\u672c e\u0301 \ufffd\x07 end "


@pytest.fixture(scope="module")
def prose() -> list[str]:
    """Enough text of this checkout for merges and pieces to compete."""
    root = Path(__file__).parents[1]
    files = [root / "LICENSE", root / "README.md", *sorted((root / "docs").glob("*.md"))]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [re.sub(r"<(eos|unk|UNK)>", r"\1", line) for line in lines]  # marks are no text


def trained(rows, kind, size=300, **options):
    return train_tokenizer(rows, kind, size, **options)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_about_unknown_words(kind):
    """The library's unigram trainer dies of a literal <UNK>: `likelihood is NAN`."""
    tokenizer = trained(["a cat, <UNK> and a dog, <UNK>"] * 3, kind)
    text = "a dog and <UNK>"
    assert (
        kind == "word"
        or tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])[:9] == "a dog and"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_the_layout_of_a_language_model(kind, tmp_path):
    trained(TEXT, kind).save_pretrained(tmp_path)
    tok = AutoTokenizer.from_pretrained(tmp_path)
    assert tok.convert_tokens_to_ids(["<pad>", "<eos>", "<unk>"]) == [0, 1, 2]
    assert (tok.pad_token_id, tok.bos_token_id, tok.eos_token_id, tok.unk_token_id) == (0, 1, 1, 2)
    assert tok.padding_side == "right"
    assert tok.model_max_length > 10**20
    batch = tok(["the cat", "the dog sat on the mat ."], padding=True, return_tensors="np")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][:, 0].tolist() == [1, 1]
    assert not (batch["input_ids"][:, 1:] == 1).any()
    width = int(batch["attention_mask"][0].sum())
    assert batch["input_ids"][0, width:].tolist() == [0] * (batch["input_ids"].shape[1] - width)
    bare = tok("the cat", add_special_tokens=False)["input_ids"]
    assert batch["input_ids"][0, :width].tolist() == [1, *bare]
    assert tok.decode([1, *bare, 1], skip_special_tokens=True) == "the cat"
    assert tok.decode([1, *bare, 1]).replace(" ", "") == "<eos>thecat<eos>"
    assert len(tok) == len(set(tok.get_vocab().values())) == max(tok.get_vocab().values()) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_found_beside_a_model_too(kind, tmp_path):
    from heirloom.modeling.configuration_lstm_lm import LstmLMConfig

    tok = trained(TEXT, kind)
    tok.save_pretrained(tmp_path)
    LstmLMConfig(vocab_size=len(tok)).save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXT)["input_ids"] == tok(TEXT)["input_ids"]
    assert again.decode(again(TEXT[0])["input_ids"], skip_special_tokens=True) == TEXT[0]


def test_words_are_in_order_of_frequency_then_of_the_alphabet():
    tok = trained(TEXT, "word", 9, tokenized=True)
    assert tok.convert_ids_to_tokens(range(9)) == [
        *("<pad>", "<eos>", "<unk>"),
        *("the", "'s", ".", "caf\u00e9", "cat", "dog"),
    ]
    assert tok("the purple cat", add_special_tokens=False)["input_ids"] == [3, 2, 7]
    frequent = trained(TEXT, "word", 100, tokenized=True, min_count=2)
    assert sorted(frequent.get_vocab())[:4] == ["'s", ".", "<eos>", "<pad>"]
    assert not {"zebra", "a", ",", "!"} & set(frequent.get_vocab())
    assert {"on", "sat", "mat"} <= set(frequent.get_vocab())


def test_marks_in_the_text_are_marks_and_no_words():
    rows = ["a <unk> b <unk> <unk>", "<eos> a <pad> c"]
    tok, coverage = train_tokenizer(rows, "word", 100, tokenized=True)
    assert tok.convert_ids_to_tokens(range(len(tok))) == ["<pad>", "<eos>", "<unk>", "a", "b", "c"]
    assert tok("a <unk> b", add_special_tokens=False)["input_ids"] == [3, 2, 4]
    assert (coverage.tokens, coverage.unknown) == (9, 3)


def test_raw_text_is_split_as_elmo_splits_it(prose):
    tok, elmo = trained(prose, "word"), ElmoTokenizer()
    split = tok.backend_tokenizer.pre_tokenizer.pre_tokenize_str
    for line in [*prose, STRANGE, "Mr. O'Neil's 3.5-inch disk\u2019s x_y--z\u2028\U0001f44d\U0001f3fd"]:
        assert [word for word, _ in split(line)] == elmo.tokenize(line)


def test_bytes_give_back_any_text(prose):
    tok = trained(prose, "bpe", 400)
    random.seed(0)
    noise = "".join(chr(random.choice([*range(32, 0xD800), *range(0xE000, 0x11000)])) for _ in range(500))
    for text in [*prose, STRANGE, noise]:
        ids = tok(text)["input_ids"]
        assert 2 not in ids
        assert tok.decode(ids, skip_special_tokens=True) == text
    assert len(tok) == 400
    assert len(trained(["x"], "bpe", 259)) == 259


def test_pieces_give_back_text_and_unknown_characters_are_unknown(prose):
    tok = trained(prose, "unigram", 300)
    line = max(prose, key=len)
    ids = tok(" ".join(line.split()))["input_ids"]
    assert tok.decode(ids, skip_special_tokens=True) == " ".join(line.split())
    assert 2 in tok("\u65e5\u672c", add_special_tokens=False)["input_ids"]


def test_lower_case(prose):
    for kind in KINDS:
        tok = trained(prose, kind, lowercase=True)
        assert tok("The APACHE licence")["input_ids"] == tok("the apache licence")["input_ids"]
        assert not any(word != word.lower() for word in tok.get_vocab() if kind == "word")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_ids_follow_the_frequency_of_pieces(kind, prose):
    tok = trained(prose, kind, 400)
    counts = tokenizers._count(tok.backend_tokenizer, prose)[0]
    ranks = [counts[token] for token in tok.convert_ids_to_tokens(range(3, len(tok)))]
    falling = sum(before >= after for before, after in pairwise(ranks))
    assert falling == len(ranks) - 1 if kind == "bpe" else falling > 0.85 * len(ranks)


def test_reordered_bytes_encode_as_the_library_does(prose):
    tokenizer, trainer = tokenizers._untrained("bpe", 400, 1, False, False)
    tokenizer.train_from_iterator(iter(prose), trainer)
    ours = trained(prose, "bpe", 400).backend_tokenizer
    for line in prose:
        assert ours.encode(line, add_special_tokens=False).tokens == tokenizer.encode(line).tokens


def test_scores_from_counts_expect_the_text_no_less_than_the_librarys(prose):
    """Sum of the best segmentation's log-likelihoods, with scores normalised over all pieces."""
    ours = trained(prose, "unigram", 400).backend_tokenizer
    theirs, trainer = tokenizers._untrained("unigram", 400, 1, False, False)
    theirs.train_from_iterator(iter(prose), trainer)
    likelihood = {}
    for name, tokenizer in (("ours", ours), ("theirs", theirs)):
        counts, _ = tokenizers._count(tokenizer, prose)
        scores = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
        likelihood[name] = sum(count * scores[piece] for piece, count in counts.items())
    assert isinstance(ours.model, models.Unigram)
    assert set(ours.get_vocab()) == set(theirs.get_vocab())
    assert likelihood["ours"] > likelihood["theirs"]


def test_equal_texts_give_equal_bytes_in_other_processes(prose, tmp_path):
    source = tmp_path / "text.txt"
    source.write_text("\n".join(prose), encoding="utf-8")
    code = """
import sys
from heirloom.cli.main import app
for kind in ("word", "bpe", "unigram"):
    words = [sys.argv[2] + "/" + kind, "--train-file", sys.argv[1], "--kind", kind, "--vocab-size", "500"]
    app(["train-tokenizer", *words], standalone_mode=False)
"""
    digests = []
    for seed, parallel in (("0", "false"), ("1", "true")):
        out = tmp_path / seed
        environment = os.environ | {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel}
        command = [sys.executable, "-c", code, str(source), str(out)]
        subprocess.run(command, check=True, env=environment, cwd=tmp_path, capture_output=True)
        files = sorted(file for file in out.rglob("*") if file.is_file())
        assert {file.name for file in files} == {"tokenizer.json", "tokenizer_config.json"}
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert len(digests[0]) == 6
    assert digests[0] == digests[1]


@pytest.mark.parametrize("size", [100, 300, 1000])
def test_pieces_do_not_depend_on_the_librarys_hash_tables(size, prose):
    """The library draws a new hash seed for every training; `<unk>` and rare characters are where it showed."""
    rows = [*prose[:100], STRANGE]
    contents = {trained(rows, "unigram", size).backend_tokenizer.to_str() for _ in range(6)}
    assert len(contents) == 1


def run(*words):
    return CliRunner().invoke(app, ["train-tokenizer", *map(str, words)])


def test_the_verb_reads_several_files_and_tells_the_coverage(tmp_path):
    (tmp_path / "a.txt").write_text("the cat\n\nthe dog the cat\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"words": ["a", "cat", "purrs"]}) + "\n")
    words = ["--train-file", tmp_path / "a.txt", "--train-file", tmp_path / "b.jsonl"]
    result = run(tmp_path / "out", *words, "--min-count", 2, "--vocab-size", 50, "--tokenized")
    assert result.exit_code == 0, result.output
    head, row = (line.split() for line in result.output.splitlines()[:2])
    assert head == ["vocabulary", "sentences", "words", "tokens", "tokens", "per", "word", "<unk>"]
    assert row == ["5", "3", "9", "9", "1.000", "33.33%"]
    tok = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tok("the cat a")["input_ids"] == [1, 4, 3, 2]
    again = run(tmp_path / "out", *words)
    assert again.exit_code == 1
    assert "is there already and not empty" in again.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.jsonl", "out"]


def test_bad_files_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"fine\n" + "caf\u00e9".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n\n")
    for kind in KINDS:
        latin = run(tmp_path / "out", "--train-file", tmp_path / "latin.txt", "--kind", kind)
        assert latin.exit_code == 1
        assert "latin.txt, line 2, is no UTF-8" in latin.output
        blank = run(tmp_path / "out", "--train-file", tmp_path / "blank.txt", "--kind", kind)
        assert blank.exit_code == 1
        assert "the text has no words" in blank.output
    missing = run(tmp_path / "out", "--train-file", tmp_path / "missing.txt")
    assert missing.exit_code == 1
    assert "no file matches" in missing.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blank.txt", "latin.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"kind": "bpe", "vocab_size": 258},
            r"must be 259 or more for bpe \(256 bytes and 3 special tokens\), found 258",
        ),
        ({"kind": "word", "vocab_size": 3}, "must be 4 or more for word"),
        (
            {"kind": "unigram", "vocab_size": 10},
            r"too small: the text has 2\d different characters.* Raise it to 5\d",
        ),
        ({"kind": "unigram", "vocab_size": 99, "min_count": 2}, "pieces of unigram have none"),
        ({"kind": "word", "vocab_size": 99, "min_count": 0}, "min_count must be 1 or more"),
        ({"kind": "word", "vocab_size": 99, "min_count": 50}, "holds no word that comes 50 times"),
        ({"kind": "bpe", "vocab_size": 999, "tokenized": True}, "tokenized is for kind 'word'"),
        ({"kind": "letters", "vocab_size": 99}, "must be one of word, bpe, unigram, found 'letters'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(TEXT, **options)


def test_rows_must_be_readable_again():
    with pytest.raises(ValueError, match="can be read only once"):
        train_tokenizer(iter(TEXT), "word", 99)
