"""Word vectors: files of every kind written by hand, rows of every kind of model, and clear errors."""

import struct

import numpy as np
import pytest
import torch
from stock_lms import BERT, gpt2, tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from heirloom.conversion.word_vectors import init_embeddings, load_word_vectors
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_elmo import ElmoModel
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration

WORDS = ["the", "caf\u00e9", "a\u00a0b", "\u732b", "."]
VECTORS = np.array([[0.5, -1.25], [2.0, 1e-3], [3.5, 0.0], [-4.0, 7.0], [1.0, 2.0]], np.float32)


def text_of(words=WORDS, vectors=VECTORS, header=True, end="\n", space=" "):
    lines = [f"{len(words)} {vectors.shape[1]}"] if header else []
    lines += [space.join([word, *map(str, row.tolist())]) for word, row in zip(words, vectors, strict=True)]
    return (end.join(lines) + end).encode()


def binary_of(words=WORDS, vectors=VECTORS, end=b"\n"):
    rows = (
        word.encode() + b" " + struct.pack("<2f", *row) + end
        for word, row in zip(words, vectors, strict=True)
    )
    return f"{len(words)} 2\n".encode() + b"".join(rows)


FILES = {
    "word2vec.txt": text_of(),
    "glove.txt": text_of(header=False),
    "fasttext.vec": text_of(end=" \n"),
    "windows.txt": text_of(end="\r\n"),
    "tabs.txt": text_of(header=False, space="\t"),
    "google.bin": binary_of(),
    "joined.bin": binary_of(end=b""),
    "without-a-name": binary_of(),
}


@pytest.mark.parametrize("name", FILES)
def test_all_kinds_of_files(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])
    words, vectors = load_word_vectors(tmp_path / name)
    assert words == WORDS
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, VECTORS)


def test_words_with_spaces_and_words_that_come_twice(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_bytes(b"the 1 2\n. . . 3 4\nat name@domain.com 5 6\nthe 7 8\n")
    words, vectors = load_word_vectors(str(path))
    assert words == ["the", ". . .", "at name@domain.com"]
    assert vectors.tolist() == [[1, 2], [3, 4], [5, 6]]
    path.write_bytes(binary_of(["a", "b", "a", "c", "b"]))
    words, vectors = load_word_vectors(path)
    assert words == ["a", "b", "c"]
    assert np.array_equal(vectors, VECTORS[[0, 1, 3]])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no word vectors"),
        (b"3 2\n", "holds no word vectors"),
        (b"the 1 2\ncat 1\n", "line 2: expected a word and 2 numbers, found 2 fields"),
        (b"2 2\nthe 1 2\ncat 1 x\n", "line 3: expected a word and 2 numbers"),
        (b"the\ncat\n", "line 1: expected a word and 0 numbers"),
        (b"3 2\nthe 1 2\ncat 3 4\n", "holds 2 words, but its first line says 3. Fetch"),
        (b"the 1 2\ncaf\xe9 1 2\n", "line 2: .* is no UTF-8"),
        (b"the 1 2\ncat nan 2\n", "NaN or infinity for 1 words, 'cat' is the first"),
        (binary_of()[:40], "is too short for 5 words with 2 features"),
        (binary_of()[:-6], "breaks off at word 5 of 5 with 2 features"),
        (b"2 2\na \0\0\0\0\0\0\0\0" + b"b" * 30, "breaks off at word 2 of 2 with 2 features"),
    ],
    ids=range(11),
)
def test_broken_files(content, words, tmp_path):
    (tmp_path / "vectors").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_word_vectors(tmp_path / "vectors")


def test_no_file_and_a_model_of_fasttext(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a file of word vectors"):
        load_word_vectors(tmp_path / "none.txt")
    (tmp_path / "wiki.bin").write_bytes(b"\xba\x16\x4f\x2f\x0c\0\0\0")
    with pytest.raises(ValueError, match=r"take the .vec beside it"):
        load_word_vectors(tmp_path / "wiki.bin")


# Tables

SPACED = tokenizer(12)  # [PAD] [BOS] [EOS] w3 .. w11
KNOWN = ["w9", "W4", "w5", "nowhere", "w5"]
GIVEN = np.array([[1.0, 2.0], [3.0, -2.0], [5.0, 6.0], [70.0, 70.0], [90.0, 90.0]])
SIZES = {"embedding_size": 2, "cell_size": 4, "vocab_size": 12}


def lstm_lm(**options):
    return LstmLMForCausalLM(LstmLMConfig(**SIZES, **options))


MODELS = {
    "bert": lambda: BertForMaskedLM(BertConfig(**BERT | {"vocab_size": 12, "hidden_size": 2})),
    "gpt2": lambda: gpt2(12, n_embd=2),
    "lstm": lstm_lm,
    "seq2seq": lambda: LstmSeq2SeqForConditionalGeneration(LstmSeq2SeqConfig(**SIZES)),
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_models(name):
    model = MODELS[name]()
    table = model.get_input_embeddings().weight
    pad = table[0].clone()
    assert init_embeddings(model, KNOWN, GIVEN, SPACED) == 2
    assert model.get_input_embeddings().weight is table
    assert table[9].tolist() == [1, 2]
    assert table[5].tolist() == [5, 6]  # the first of two
    assert torch.equal(table[0], pad)
    for row in (1, 2, 3, 4, 6, 11):
        assert table[row].tolist() == [3, 4]
    if name in ("bert", "gpt2"):
        assert model.get_output_embeddings().weight is table


def test_lower_cased_words_special_tokens_and_exact_words():
    model = lstm_lm()
    words = tokenizer(12, ("[PAD]", "[BOS]", "[EOS]", "The", "W5"))
    vectors = np.arange(12.0).reshape(6, 2)
    found = init_embeddings(model, ["the", "W5", "w5", "[EOS]", "[bos]", "[PAD]"], vectors, words)
    assert found == 4
    table = model.get_input_embeddings().weight
    assert table[3].tolist() == [0, 1]
    assert table[4].tolist() == [2, 3]
    assert table[5].tolist() == [4, 5]
    assert table[2].tolist() == [6, 7]
    assert table[1].tolist() == table[11].tolist()


def test_normal_rows():
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(3, 900)]
    vectors = rng.normal([1.0, -2.0], [0.1, 3.0], (len(words), 2))
    tables = []
    for seed in (0, 0, 1):
        model = LstmLMForCausalLM(LstmLMConfig(**SIZES | {"vocab_size": 3000}))
        assert init_embeddings(model, words, vectors, tokenizer(3000), "normal", seed=seed) == len(words)
        tables.append(model.get_input_embeddings().weight.detach()[900:])
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    torch.testing.assert_close(tables[0].mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.3)
    torch.testing.assert_close(tables[0].std(0), torch.tensor([0.1, 3.0]), rtol=0.1, atol=0)


def test_pieces():
    """Of two tokens with one text the one that begins a word; bytes stand for letters."""
    vocabulary = ["<pad>", "the", "\u0120the", "\u0120caf\u00c3\u00a9", "ing", "\u0120in"]
    backend = Tokenizer(models.BPE({token: row for row, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    model = LstmLMForCausalLM(LstmLMConfig(**SIZES | {"vocab_size": 6}))
    assert init_embeddings(model, ["the", "caf\u00e9", "ing"], GIVEN[:3], words) == 3
    table = model.get_input_embeddings().weight
    assert [table[row].tolist() for row in (2, 3, 4)] == GIVEN[:3].tolist()
    assert table[1].tolist() == table[5].tolist() == [3, 2]
    unigram = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(
            models.WordLevel({"\u2581the": 0, "the": 1, "\u2581cat": 2}, unk_token="the")
        )
    )
    assert init_embeddings(model, ["the", "cat"], GIVEN[:2], unigram) == 2
    assert table[0].tolist() == [1, 2]
    assert table[1].tolist() == [2, 0]


def test_the_targets_table():
    config = LstmSeq2SeqConfig(**SIZES, encoder_vocab_size=20, encoder_pad_token_id=0, pad_token_id=0)
    model = LstmSeq2SeqForConditionalGeneration(config)
    source = model.get_input_embeddings().weight.clone()
    assert init_embeddings(model, KNOWN, GIVEN, SPACED, side="target") == 2
    assert model.decoder.embed_tokens.weight[9].tolist() == [1, 2]
    assert torch.equal(model.get_input_embeddings().weight, source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"missing": "zero"}, "missing must be one of .*found 'zero'"),
        ({"side": "both"}, 'side must be "source" or "target", found \'both\''),
        ({"side": "target"}, "is for the LSTM encoder-decoder, found LstmLMForCausalLM"),
        ({"vectors": GIVEN[:, :1]}, r"vectors must be \(5, 2\), .* found \(5, 1\). Make the model"),
        ({"vectors": GIVEN[:3]}, r"found \(3, 2\)"),
        (
            {"words": ["un", "deux", "trois", "quatre", "cinq"]},
            r"none of the 5 words \('un', 'deux', 'trois' ...\)",
        ),
        ({"tokenizer": tokenizer(20)}, "ids up to 19, but the table has 12 rows. Resize"),
    ],
)
def test_bad_calls(changes, words):
    arguments = {"model": lstm_lm(), "words": KNOWN, "vectors": GIVEN, "tokenizer": SPACED}
    with pytest.raises(ValueError, match=words):
        init_embeddings(**arguments | changes)


def test_a_model_of_characters_has_no_table():
    sizes = {"char_filters": [[1, 4]], "char_embedding_size": 4, "projection_size": 8, "cell_size": 8}
    model = ElmoModel(ElmoConfig(**sizes, num_highway_layers=1))
    with pytest.raises(ValueError, match="ElmoModel has no table of token embeddings"):
        init_embeddings(model, KNOWN, GIVEN, SPACED)
