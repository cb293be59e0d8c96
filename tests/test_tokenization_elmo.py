"""ElmoTokenizer: ids against the originals' and a slow twin, and Transformers' habits one by one."""

import copy
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from reference.char_ids_naive import character_ids, code_point_ids, random_words
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding
from transformers.utils import to_py_obj

from heirloom.tokenization.tokenization_elmo import WORD, ElmoTokenizer, words_to_char_ids

ORACLE = Path(__file__).resolve().parents[2] / "shared" / "oracles" / "elmo"
SENTENCES = [["The", "cat", "sat", "."], ["Hi"], [], ["", "New York", "<pad>"]]
CHARACTERS = ["<bos>", "<eos>", "<oov>", "<pad>", "<bow>", "<eow>", "a", "b", "\n", "\u3000", "é"]
EFML = {"pad_token": "<padding>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<oov>"}


@pytest.fixture
def tok() -> ElmoTokenizer:
    return ElmoTokenizer.from_words(["The", "cat", "sat", ".", ""], max_characters_per_token=8)


@pytest.fixture
def efml() -> ElmoTokenizer:
    words = ["<bos>", "<eos>", "<oov>", "<pad>", "ab", "aba"]
    return ElmoTokenizer(words, CHARACTERS, max_characters_per_token=5, **EFML)


@pytest.mark.skipif(not ORACLE.is_dir(), reason="the oracle files (../shared/oracles/elmo) are not here")
@pytest.mark.parametrize(("case", "size"), [("std_2hw_skip", 50), ("maxchars25", 25)])
@pytest.mark.parametrize("batch", "abcd")
def test_char_ids_are_the_originals(case, size, batch):
    sentences = json.loads((ORACLE / "sentences.json").read_text())["batches"][batch]
    expected = np.load(ORACLE / case / "expected.npz")[f"ids/{batch}"]
    tok = ElmoTokenizer(max_characters_per_token=size)
    found = tok(sentences, is_split_into_words=True, padding=True, return_tensors="pt")["char_ids"]
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("size", [3, 4, 5, 7, 25, 50, 200])
def test_char_ids_are_the_slow_twins(size):
    words = random_words(300, size)
    expected = [character_ids(word, size) for word in words]
    assert words_to_char_ids(words, size).tolist() == expected
    assert words_to_char_ids([], size).shape == (0, size)


def test_char_ids_of_the_specification():
    ids = words_to_char_ids(["U", "\u0100t", "", "<S>", "</S>"], 6).tolist()
    assert ids == [
        [259, 86, 260, 261, 261, 261],
        [259, 197, 129, 117, 260, 261],
        [259, 260, 261, 261, 261, 261],
        [259, 257, 260, 261, 261, 261],
        [259, 258, 260, 261, 261, 261],
    ]


@pytest.mark.parametrize("size", [3, 5, 9, 50])
def test_code_points_are_the_slow_twins(size):
    draw = random.Random(size)
    words = ["<bos>", "<eos>", "<pad>", "", "a" * 60, "\n\u3000é"]
    words += ["".join(draw.choices("abcé\n\u3000\ud83d日", k=draw.randrange(12))) for _ in range(200)]
    tok = ElmoTokenizer(None, CHARACTERS, max_characters_per_token=size, **EFML)
    assert tok.char_ids_of(words).tolist() == [code_point_ids(word, size, CHARACTERS) for word in words]
    assert tok.char_vocab_size == len(CHARACTERS) + 1


def test_boundary_words_are_the_tokenizers_own():
    tok = ElmoTokenizer(bos_token="<s>", eos_token="</s>", unk_token="<unk>", max_characters_per_token=5)
    assert tok.char_ids_of(["<s>", "</s>"])[:, 1].tolist() == [257, 258]
    assert tok.char_ids_of(["<S>"])[0].tolist() == [259, 61, 84, 63, 260]
    assert tok.char_vocab_size == 262


@pytest.mark.parametrize("size", [2, 2.5, "50", True, None])
def test_too_few_characters(size):
    with pytest.raises(ValueError, match=r"max_characters_per_token is .* expected an int of at least 3"):
        ElmoTokenizer(max_characters_per_token=size)
    with pytest.raises(ValueError, match="expected an int of at least 3"):
        words_to_char_ids(["a"], size)


def test_word_ids_are_lines(tmp_path):
    lines = "<S>\n</S>\r\n<UNK>\n!!!MAXTERMID\n a \n\nthe\ncat\u2028s\nthe"
    (tmp_path / "vocab.txt").write_bytes(lines.encode())
    tok = ElmoTokenizer(tmp_path / "vocab.txt")
    assert tok.convert_ids_to_tokens([0, 1, 2, 3, 4]) == ["<pad>", "<S>", "</S>", "<UNK>", " a "]
    assert tok.convert_ids_to_tokens([5, 6, 7, 8]) == ["", "the", "cat\u2028s", "the"]
    assert tok.convert_tokens_to_ids(["the", " a ", "a", "!!!MAXTERMID", "", "<pad>"]) == [8, 4, 3, 3, 5, 0]
    assert len(tok) == tok.vocab_size == 9
    assert (tok.pad_token_id, tok.bos_token_id, tok.eos_token_id, tok.unk_token_id) == (0, 1, 2, 3)
    tok.save_pretrained(tmp_path / "again")
    again = ElmoTokenizer.from_pretrained(tmp_path / "again")
    assert len(again) == 9
    assert again.get_vocab() == tok.get_vocab()


def test_no_vocabulary_is_three_words():
    tok = ElmoTokenizer()
    assert tok.get_vocab() == {"<pad>": 0, "<S>": 1, "</S>": 2, "<UNK>": 3}
    assert tok(["cat", "<S>"], is_split_into_words=True)["input_ids"] == [3, 1]
    assert ElmoTokenizer(**EFML).get_vocab() == {"<padding>": 0, "<bos>": 1, "<eos>": 2, "<oov>": 3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "vocab.txt is empty; expected one entry a line"),
        (b"<S>\n</S>\nthe\n", "vocab.txt lacks <UNK>. Add them as lines"),
        (b"the\ncat\n", "lacks <S>, </S>, <UNK>"),
        (b"<S>\n</S>\n<UNK>\n<pad>\n", "holds the padding token '<pad>' as a word.*Choose another pad_token"),
        (b"<S>\n</S>\n<UNK>\ncaf\xe9\n", "vocab.txt, line 4, is no UTF-8 .*Convert it"),
    ],
)
def test_broken_vocabularies(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ElmoTokenizer(tmp_path / "vocab.txt")


def test_words_that_no_file_can_hold():
    for word in ["a\nb", "a\r", "\ud83d", "!!!MAXTERMID"]:
        with pytest.raises(ValueError, match=r"the vocabulary holds .* cannot be a line of vocab.txt"):
            ElmoTokenizer(["<S>", "</S>", "<UNK>", word])
    tok = ElmoTokenizer.from_words(["a\nb", "\ud83d", "<pad>", "fits"])
    assert tok.convert_ids_to_tokens([4]) == ["fits"]
    assert len(tok) == 5


def test_from_words():
    options = {"max_characters_per_token": 9, "padding_side": "left"}
    tok = ElmoTokenizer.from_words(iter(["b", "a", "b", "</S>", "a"]), **options)
    assert tok.get_vocab() == {"<pad>": 0, "<S>": 1, "<UNK>": 2, "b": 3, "a": 4, "</S>": 5}
    assert (tok.max_characters_per_token, tok.padding_side) == (9, "left")
    with pytest.raises(ValueError, match=r"expected a list of words .* but str 'abc' came"):
        ElmoTokenizer.from_words("abc")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"a"\nb\n', r"char_vocab.txt, line 2, is 'b'; expected a JSON string"),
        ('"a"\n7\n', "line 2, is '7'; expected a JSON string"),
        ('"a"\n', "char_vocab.txt lacks <bos>, <eos>, <eow>, <bow>, <pad>, <oov>"),
    ],
)
def test_broken_character_vocabularies(tmp_path, content, message):
    (tmp_path / "char_vocab.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        ElmoTokenizer(char_vocab_file=tmp_path / "char_vocab.txt")


def test_words_cannot_be_added(tok):
    with pytest.raises(ValueError, match=r"'dog' is no word of this vocabulary.*from_words"):
        tok.add_tokens(["dog"])
    assert tok.add_special_tokens({"sep_token": "</S>"}) == 0
    assert (tok.sep_token_id, len(tok)) == (2, 9)


def test_words_map_one_to_one(tok):
    batch = tok(SENTENCES, is_split_into_words=True)
    assert list(batch) == ["input_ids", "char_ids", "attention_mask"]
    assert batch["input_ids"] == [[4, 5, 6, 7], [3], [], [8, 3, 3]]
    assert batch["attention_mask"] == [[1] * 4, [1], [], [1] * 3]
    assert batch["char_ids"] == [[character_ids(word, 8) for word in words] for words in SENTENCES]
    single = tok(SENTENCES[3], is_split_into_words=True)
    assert single["input_ids"] == [8, 3, 3]
    assert single["char_ids"] == batch["char_ids"][3]
    assert tok(np.array(["The", "dog"]), is_split_into_words=True)["input_ids"] == [4, 3]
    assert tok((("The",), ("cat", "sat")), is_split_into_words=True)["input_ids"] == [[4], [5, 6]]


@pytest.mark.parametrize("kind", ["np", "pt", None])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({"padding": True}, 4),
        ({"padding": "max_length", "max_length": 6}, 6),
        ({"padding": True, "pad_to_multiple_of": 8}, 8),
        ({"padding": True, "truncation": True, "max_length": 2}, 2),
    ],
)
def test_padding(tok, kind, side, options, width):
    batch = tok(SENTENCES, is_split_into_words=True, padding_side=side, return_tensors=kind, **options)
    expected_type = {"np": np.ndarray, "pt": torch.Tensor, None: list}[kind]
    assert {type(value) for value in batch.values()} == {expected_type}
    arrays = {name: np.array(to_py_obj(value)) for name, value in batch.items()}
    assert arrays["input_ids"].shape == arrays["attention_mask"].shape == (4, width)
    assert arrays["char_ids"].shape == (4, width, 8)
    for row, words in enumerate(SENTENCES):
        words = words[:width]
        places = slice(width - len(words), width) if side == "left" else slice(len(words))
        found = {name: array[row, places].tolist() for name, array in arrays.items()}
        assert found["char_ids"] == [character_ids(word, 8) for word in words]
        assert found["input_ids"] == [tok.get_vocab().get(word) or 3 for word in words]
        assert found["attention_mask"] == [1] * len(words)
        assert [np.delete(array[row], places, 0).any() for array in arrays.values()] == [
            False
        ] * 3  # only zeros


@pytest.mark.parametrize(
    ("text", "split", "batch"),
    [([[], []], True, 2), ([], True, 1), ([], False, 0), ("", False, 1), (["", " "], False, 2)],
)
def test_nothing(tok, text, split, batch):
    for kind in ("np", "pt"):
        found = tok(text, is_split_into_words=split, padding=True, return_tensors=kind)
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        assert shapes == {"input_ids": (batch, 0), "char_ids": (batch, 0, 8), "attention_mask": (batch, 0)}
        assert found["input_ids"].dtype in (np.int64, torch.int64)


def test_raw_text(tok):
    text = "Mr. O'Neil’s co-op: 3.5\u00a0kg, cafe\u0301s -- x_y (U.S.)  \U0001f468\u200d\U0001f469 हिन्दी!\n"
    words = tok.tokenize(text)
    split = "Mr . O'Neil’s co-op : 3.5 kg , cafe\u0301s - - x_y ( U.S . ) \U0001f468\u200d\U0001f469 हिन्दी !"
    assert " ".join(words) == split == " ".join(WORD.findall(text))
    batch = tok([text, "The cat"], padding=True, return_offsets_mapping=True)
    assert [text[a:b] for a, b in batch["offset_mapping"][0]] == words
    assert batch["offset_mapping"][1][:3] == [[0, 3], [4, 7], [0, 0]]
    assert batch["input_ids"][1][:3] == [4, 5, 0]
    assert batch["char_ids"][0] == tok.char_ids_of(words).tolist()
    assert tok("The cat")["input_ids"] == [4, 5] == tok.encode("The cat")
    assert tok("The cat", return_tensors="pt")["char_ids"].shape == (1, 2, 8)
    assert tok("<S> <pad>")["input_ids"] == [3] * 6


def test_extras(tok):
    wanted = [
        "return_offsets_mapping",
        "return_special_tokens_mask",
        "return_length",
        "is_split_into_words",
        "padding",
    ]
    batch = tok(
        SENTENCES[:2], return_tensors="pt", return_attention_mask=False, **dict.fromkeys(wanted, True)
    )
    assert list(batch) == ["input_ids", "char_ids", "special_tokens_mask", "offset_mapping", "length"]
    assert batch["length"].tolist() == [4, 1]
    assert batch["special_tokens_mask"].tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]
    assert batch["offset_mapping"][:, :2].tolist() == [[[0, 3], [0, 3]], [[0, 2], [0, 0]]]
    assert tok("The cat", return_length=True)["length"] == 2
    assert tok.num_special_tokens_to_add() == tok.num_special_tokens_to_add(pair=True) == 0
    assert tok.get_special_tokens_mask([1, 2, 3, 0], already_has_special_tokens=True) == [0, 0, 0, 1]
    assert tok("The cat", add_special_tokens=True)["input_ids"] == [4, 5]
    tok.model_input_names = ["input_ids"]
    assert list(tok("The cat")) == ["input_ids"]  # a model of words alone


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation(tok, side):
    tok.truncation_side = side
    batch = tok("The cat sat .", truncation=True, max_length=3, return_offsets_mapping=True)
    expected = {"right": ([4, 5, 6], [0, 1, 2], [0, 4, 8]), "left": ([5, 6, 7], [1, 2, 3], [4, 8, 12])}[side]
    assert (batch["input_ids"], batch.word_ids(), [a for a, _ in batch["offset_mapping"]]) == expected
    assert len(batch["char_ids"]) == 3
    assert tok("The cat sat .", truncation=True, max_length=0)["input_ids"] == []
    tok.model_max_length = 2
    assert len(tok("The cat sat .", truncation=True)["input_ids"]) == 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_word_ids(tok, side):
    batch = tok(SENTENCES, is_split_into_words=True, padding=True, padding_side=side, return_tensors="pt")
    left, right = ([None] * 3, []) if side == "left" else ([], [None] * 3)
    assert batch.word_ids(0) == [0, 1, 2, 3]
    assert batch.word_ids(batch_index=1) == [*left, 0, *right]
    assert batch.tokens(1) == ["<pad>" for _ in left] + ["Hi"] + ["<pad>" for _ in right]
    assert batch.sequence_ids(1) == [*left, 0, *right]
    assert batch.is_fast
    assert tok.is_fast
    assert pickle.loads(pickle.dumps(batch)).word_ids(1) == batch.word_ids(1)


@pytest.mark.parametrize(
    ("text", "split", "message"),
    [
        (7, False, "expected a text .* but int 7 came"),
        ({"a": 1}, False, "but dict .* came"),
        (b"bytes", False, "but bytes b'bytes' came"),
        (["a", None], False, "or a list of texts, but NoneType None came"),
        ([["a", "b"]], False, r"but list \['a', 'b'\] came. Pass is_split_into_words=True"),
        ([("a", "b")], False, "pairs of texts are not encoded"),
        ("text", True, "expected a list of words .* but str 'text' came"),
        ([1, 2], True, "expected a list of words .* but int 1 came"),
        (["a", 2], True, "expected words .* but word 1 is int 2"),
        ([["a"], "b"], True, "but str 'b' came"),
        ([["a", ["b"]]], True, r"word 1 is list \['b'\]"),
        ([[b"a"]], True, "word 0 is bytes"),
    ],
)
def test_wrong_types(tok, text, split, message):
    with pytest.raises(ValueError, match=message):
        tok(text, is_split_into_words=split)


def test_wrong_calls(tok):
    with pytest.raises(ValueError, match="ELMo encodes no pairs of texts"):
        tok("The", "cat")
    with pytest.raises(ValueError, match=r"one tensor cannot hold 1 and 2 words[.] Pass padding=True"):
        tok(["The", "The cat"], return_tensors="pt")
    with pytest.raises(ValueError, match=r"no overflowing tokens. Split long texts"):
        tok("The cat", truncation=True, max_length=1, return_overflowing_tokens=True)
    with pytest.raises(ValueError, match="padding_side is 'middle'; expected 'left' or 'right'"):
        tok("The", padding_side="middle")
    with pytest.raises(ValueError, match=r"splits one text .* but list"):
        tok.tokenize(["a"])
    with pytest.raises(ValueError, match="but str 'abc' came"):
        words_to_char_ids("abc")


def test_efml_words_are_cut_first(efml):
    batch = efml(["abaXX", "abX", "<pad>", "ab", "<padding>"], is_split_into_words=True)
    assert batch["input_ids"] == [6, 3, 3, 5, 3]  # "<pad>" is a line, but longer than the cut allows
    assert efml.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>", "<oov>", "<padding>"]) == [3, 1, 2, 3, 0]
    long = ElmoTokenizer(["<bos>", "<eos>", "<oov>", "<pad>"], CHARACTERS, max_characters_per_token=7, **EFML)
    assert long(["<pad>", "<bos>"], is_split_into_words=True)["input_ids"] == [4, 1]
    assert long.char_ids_of(["<bos>x"])[0].tolist() == [6, 1, 5, 4, 4, 4, 4]


def test_efml_round_trip(efml, tmp_path):
    efml.save_pretrained(tmp_path)
    assert (tmp_path / "char_vocab.txt").read_text().splitlines()[8:] == ['"\\n"', '"\\u3000"', '"\\u00e9"']
    again = ElmoTokenizer.from_pretrained(tmp_path)
    words = ["a\n\u3000", "éb", "<bos>", "Z"]
    assert again.char_ids_of(words).tolist() == efml.char_ids_of(words).tolist()
    assert again.max_characters_per_token == 5
    assert again.decode_char_ids(again.char_ids_of(["a\n\u3000", "éX", ""])) == ["a\n\u3000", "é\ufffd", ""]
    marks = ElmoTokenizer(None, CHARACTERS, max_characters_per_token=9, **EFML)
    assert marks.decode_char_ids(marks.char_ids_of(["<bos>", "a", "<eos>"]), skip_special_tokens=True) == [
        "a"
    ]


def features(tok: ElmoTokenizer, kind: str | None) -> list[dict]:
    rows = []
    for words in SENTENCES:
        row = tok(words, is_split_into_words=True, return_tensors=kind)
        row = {name: value if kind is None else value[0] for name, value in row.items()}
        rows.append(row | {"labels": [1] * len(words)})
    return rows


@pytest.mark.parametrize("kind", [None, "np", "pt"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_collators(tok, kind, side):
    tok.padding_side = side
    expected = tok(SENTENCES, is_split_into_words=True, padding=True, return_tensors="pt")
    batch = DataCollatorForTokenClassification(tok)(features(tok, kind))
    for name, value in expected.items():
        assert torch.equal(batch[name], value), name
    assert torch.equal(batch["labels"] == 1, expected["attention_mask"] == 1)
    rows = [{name: row[name] for name in ("input_ids", "char_ids")} for row in features(tok, kind)]
    batch = DataCollatorWithPadding(tok, pad_to_multiple_of=8)(rows)
    assert batch["char_ids"].shape == (4, 8, 8)
    batch = DataCollatorWithPadding(tok, return_tensors="np")(rows)
    np.testing.assert_array_equal(batch["char_ids"], expected["char_ids"].numpy())


def test_pad(tok):
    one = tok(["The", "cat"], is_split_into_words=True)
    padded = tok.pad(one, padding="max_length", max_length=3)
    assert padded["input_ids"] == [4, 5, 0]
    assert padded["char_ids"].tolist() == [*one["char_ids"], [0] * 8]
    assert padded["attention_mask"] == [1, 1, 0]
    left = tok.pad(one, padding="max_length", max_length=3, padding_side="left", return_tensors="pt")
    assert left["char_ids"].tolist() == [[0] * 8, *one["char_ids"]]
    assert tok.pad([one, one], return_tensors="np")["char_ids"].shape == (2, 2, 8)
    empty = tok([[], []], is_split_into_words=True)
    assert tok.pad(empty, return_tensors="pt")["char_ids"].shape == (2, 0, 8)
    assert tok.pad([{"input_ids": [4]}, {"input_ids": [4, 5]}])["input_ids"] == [[4, 0], [4, 5]]
    other = ElmoTokenizer(max_characters_per_token=9)
    with pytest.raises(ValueError, match=r"char_ids are \(2, 8\), but input_ids and C say \(2, 9\)"):
        other.pad(one)
    with pytest.raises(ValueError, match=r"input_ids and C say \(1, 8\)"):
        tok.pad({"input_ids": [4], "char_ids": one["char_ids"]})


def test_decode_word_ids(tok):
    batch = tok([["The", "dog", "<S>"], ["cat"]], is_split_into_words=True, padding=True, return_tensors="pt")
    assert tok.decode(batch["input_ids"]) == ["The <UNK> <S>", "cat <pad> <pad>"]
    assert tok.batch_decode(batch["input_ids"].numpy(), skip_special_tokens=True) == ["The", "cat"]
    assert tok.decode([4, 5]) == "The cat"
    assert tok.decode(5) == "cat"
    assert tok.decode([]) == ""
    for wrong in (9, -1):
        with pytest.raises(ValueError, match=f"word id {wrong} is out of range; the vocabulary has 0 to 8"):
            tok.decode([4, wrong])


@pytest.mark.parametrize("form", [lambda ids: ids, lambda ids: ids.numpy(), lambda ids: ids.tolist()])
def test_decode_char_ids(form):
    tok = ElmoTokenizer(max_characters_per_token=8)
    sentences = [["naïve", "", "New Yo"], ["<S>", "日本語", "</S>"], []]
    ids = form(tok(sentences, is_split_into_words=True, padding=True, return_tensors="pt")["char_ids"])
    read = [["naïve", "", "New Yo"], ["<S>", "日本", "</S>"], []]  # 8 ids hold two characters of three bytes
    assert tok.decode_char_ids(ids) == read
    assert tok.decode_char_ids(ids[1], skip_special_tokens=True) == ["日本"]
    assert tok.decode(ids) == [" ".join(words) for words in read] == tok.batch_decode(ids)
    assert tok.decode_char_ids(tok.char_ids_of(["xx日本"])) == ["xx日\ufffd"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([259, 262, 260], r"char_ids list \[\[259, 262, 260\]\] are int64 .* from 0 to 261"),
        ([259, -1, 260], "from 0 to 261"),
        ([260, 98, 261], r"char_ids \[260, 98, 261\] are no word"),
        ([259, 98, 99], "are no word: expected 259, 1 to 256, 260"),
        ([259, 0, 260], "are no word"),
        ([259, 261, 260], "are no word"),
        ([0.5, 1.0, 2.0], "are float64 of shape"),
    ],
)
def test_undecodable(row, message):
    with pytest.raises(ValueError, match=message):
        ElmoTokenizer().decode_char_ids([row])


def test_auto_tokenizer(tok, tmp_path):
    tok.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["auto_map"] == {"AutoTokenizer": ["tokenization_elmo.ElmoTokenizer", None]}
    assert {"vocab.txt", "tokenization_elmo.py"} <= {path.name for path in tmp_path.iterdir()}
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(again, ElmoTokenizer)
    assert (again.get_vocab(), again.max_characters_per_token) == (tok.get_vocab(), 8)
    assert again.special_tokens_map == tok.special_tokens_map
    assert again("The cat") == tok("The cat")
    renamed = ElmoTokenizer.from_pretrained(tmp_path, pad_token="[PAD]", padding_side="left")
    assert (renamed.pad_token, renamed.pad_token_id, renamed.padding_side) == ("[PAD]", 0, "left")
    assert renamed.convert_tokens_to_ids(["[PAD]", "<pad>"]) == [0, 3]
    renamed.pad_token = "[NONE]"
    assert renamed.pad_token_id == 0
    tok.save_vocabulary(tmp_path, "my")
    assert (tmp_path / "my-vocab.txt").read_text() == "<S>\n</S>\n<UNK>\nThe\ncat\nsat\n.\n\n"


def test_own_special_words_survive(tmp_path):
    words = ["the", "<unk>", "<s>", "</s>"]
    tok = ElmoTokenizer(words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<p>")
    tok.save_pretrained(tmp_path)
    again = ElmoTokenizer.from_pretrained(tmp_path)
    assert again.special_tokens_map == tok.special_tokens_map
    assert (again.pad_token_id, again.bos_token_id, again.eos_token_id, again.unk_token_id) == (0, 3, 4, 2)


def test_remote_code(tok, tmp_path):
    """The saved folder needs no heirloom: its own copy of the class loads where the package cannot be imported."""
    tok.save_pretrained(tmp_path / "saved")
    code = f"""
import sys
sys.modules["heirloom"] = None
from transformers import AutoTokenizer
tok = AutoTokenizer.from_pretrained({str(tmp_path / "saved")!r}, trust_remote_code=True)
assert "transformers_modules" in type(tok).__module__, type(tok)
print(tok(["The", "dog"], is_split_into_words=True)["input_ids"], tok.max_characters_per_token)
"""
    environment = {
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == "[4, 3] 8", run.stderr


def test_copies_and_fingerprints(tok, tmp_path):
    fingerprint = pytest.importorskip("datasets.fingerprint").Hasher
    before = fingerprint.hash(tok)
    tok(SENTENCES, is_split_into_words=True, padding=True)
    for other in (copy.deepcopy(tok), pickle.loads(pickle.dumps(tok))):
        assert other(SENTENCES, is_split_into_words=True) == tok(SENTENCES, is_split_into_words=True)
        assert other.pad_token_id == 0
    assert fingerprint.hash(tok) == before
    assert fingerprint.hash(ElmoTokenizer.from_words(["The"])) != before


def test_datasets_map(tok):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"words": SENTENCES})
    mapped = rows.map(lambda batch: tok(batch["words"], is_split_into_words=True), batched=True)
    assert mapped["input_ids"][:] == [[4, 5, 6, 7], [3], [], [8, 3, 3]]
    assert tok(rows["words"], is_split_into_words=True)["input_ids"] == mapped["input_ids"][:]
