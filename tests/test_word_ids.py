"""Word ids of WordPiece, byte-BPE and Unigram tokenizers, and of Chinese."""

import functools
import importlib.util

import numpy as np
import pytest
from datasets import Dataset
from reference.masking_naive import naive_word_ids
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from heirloom.objectives.masking import WholeWordMasking
from heirloom.objectives.token_batch import TokenBatch, Vocabulary, generator
from heirloom.objectives.word_ids import (
    FirstOf,
    Gazetteer,
    JiebaSegmenter,
    add_word_ids,
    bert_words,
    spans_of,
    token_word_ids,
)
from heirloom.training.stock_objectives import open_segmenter

TEXTS = [
    "The unbelievable harbour isn't hard. It costs $5, she said!",
    "We visited Harbin's ice festival -- twice; a wonderful, wonderful time.",
    "  leading spaces,  double  spaces\nand new lines...",
    "Ünïcödé wörds, naïve cafés (and brackets).",
]
CHINESE = "哈尔滨是黑龙江的省会，冰雪节很有名。"
SEGMENTED = ["哈尔滨", "是", "黑龙江", "的", "省会", "，", "冰雪节", "很", "有名", "。"]
KINDS = ["wordpiece", "byte-bpe trimmed", "byte-bpe untrimmed", "unigram"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@functools.cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tiny tokenizer of this kind, trained on the texts."""
    if kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=130, special_tokens=SPECIAL, show_progress=False)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    tokenizer.train_from_iterator([*TEXTS, CHINESE], trainer)
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    steps = [processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)]
    if kind.startswith("byte-bpe"):
        steps.insert(0, processors.ByteLevel(trim_offsets=kind == "byte-bpe trimmed"))
    tokenizer.post_processor = processors.Sequence(steps)
    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(roles, SPECIAL, strict=True)))


def words_of(text: str, tokenizer, row: dict) -> list[str]:
    """The text of each word, from the characters of its tokens."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    found = {}
    for word, (begin, end) in zip(row["word_ids"], offsets, strict=True):
        if word >= 0:
            old = found.get(word, (begin, end))
            found[word] = min(old[0], begin), max(old[1], end)
    return ["".join(text[begin:end].split()) for begin, end in found.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_the_text(kind):
    tokenizer = tokenizer_of(kind)
    dataset = add_word_ids(Dataset.from_dict({"text": TEXTS}), tokenizer)
    for text, row in zip(TEXTS, dataset, strict=True):
        assert len(row["word_ids"]) == len(row["input_ids"])
        assert row["word_ids"][0] == row["word_ids"][-1] == -1
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        spans = bert_words(text)
        assert row["word_ids"] == naive_word_ids(text, offsets, row["special_tokens_mask"], spans)
        joined = [text[begin:end] for begin, end in spans]
        found = words_of(text, tokenizer, row)
        assert "".join(found) == "".join(joined)
        if kind == "wordpiece":
            assert found == joined
            assert len(found) < len(row["input_ids"]) - 2  # some words have several pieces


@pytest.mark.parametrize("kind", KINDS)
def test_chinese_words_are_those_of_the_segmenter(kind):
    # A byte of a character is a token of byte-BPE, and Metaspace makes a token of the missing space before the text.
    tokenizer = tokenizer_of(kind)
    row = add_word_ids(Dataset.from_dict({"text": [CHINESE]}), tokenizer, segmenter=lambda text: SEGMENTED)[0]
    assert len(set(row["word_ids"]) - {-1}) <= len(SEGMENTED)
    if kind != "unigram":  # whose tokens may be longer than words
        assert [ids for ids in dict.fromkeys(row["word_ids"]) if ids >= 0] == list(range(len(SEGMENTED)))
    if kind == "wordpiece":
        assert row["word_ids"] == [-1, 0, 0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 6, 6, 7, 8, 8, 9, -1]


def test_harbin_is_masked_as_one():
    tokenizer = tokenizer_of("wordpiece")
    rows = list(
        add_word_ids(Dataset.from_dict({"text": [CHINESE]}), tokenizer, segmenter=lambda _: SEGMENTED)
    )
    batch = TokenBatch.from_rows(rows, Vocabulary.from_tokenizer(tokenizer))
    masks = np.array([WholeWordMasking()(generator(0, step=step), batch)[0, 1:4] for step in range(100)])
    assert set(masks.sum(1).tolist()) == {0, 3}


def test_trimmed_and_untrimmed_offsets_give_the_same_masks():
    offsets = [
        tokenizer_of(kind)(TEXTS[1], return_offsets_mapping=True)["offset_mapping"] for kind in KINDS[1:3]
    ]
    assert offsets[0] != offsets[1]
    one, other = (
        add_word_ids(Dataset.from_dict({"text": TEXTS}), tokenizer_of(kind)).to_list() for kind in KINDS[1:3]
    )
    assert [row["word_ids"] for row in one] == [row["word_ids"] for row in other]
    vocabulary = Vocabulary.from_tokenizer(tokenizer_of(KINDS[1]))
    masks = [
        WholeWordMasking()(generator(1), TokenBatch.from_rows(rows, vocabulary)) for rows in (one, other)
    ]
    assert np.array_equal(*masks)


def test_one_segmentation_gives_the_same_words_with_every_tokenizer():
    def at_spaces(text):
        return text.split()

    counts = []
    for kind in KINDS:
        row = add_word_ids(Dataset.from_dict({"text": TEXTS[:2]}), tokenizer_of(kind), segmenter=at_spaces)
        counts.append(
            [words_of(text, tokenizer_of(kind), one) for text, one in zip(TEXTS, row, strict=False)]
        )
    assert counts[0] == [text.split() for text in TEXTS[:2]]
    assert all(count == counts[0] for count in counts)


def test_words_that_share_a_token_are_one():
    # Tokens "ab", "cd", "e" over words "a", "bc", "de": all hang together.
    assert token_word_ids(
        "abcde", [(0, 2), (2, 4), (4, 5)], [0, 0, 0], [(0, 1), (1, 3), (3, 5)]
    ).tolist() == [0, 0, 0]
    assert token_word_ids("ab cd", [(0, 2), (2, 5)], [0, 0], [(0, 1), (1, 2), (3, 5)]).tolist() == [0, 1]


def test_a_word_that_truncation_cuts_belongs_to_none():
    offsets, special = [(0, 0), (0, 2), (3, 5), (0, 0)], [1, 0, 0, 1]
    text, spans = "ab cdef", [(0, 2), (3, 7)]
    assert token_word_ids(text, offsets, special, spans, truncated=True).tolist() == [-1, 0, -1, -1]
    assert token_word_ids(text, offsets, special, spans).tolist() == [-1, 0, 1, -1]
    tokenizer = tokenizer_of("wordpiece")
    row = add_word_ids(Dataset.from_dict({"text": ["hard unbelievable"]}), tokenizer, max_length=5)[0]
    assert len(row["input_ids"]) == 5
    assert row["word_ids"][-2:] == [-1, -1]


def test_texts_without_words():
    dataset = add_word_ids(Dataset.from_dict({"text": ["", "  "]}), tokenizer_of("unigram"))
    assert all(set(row["word_ids"]) == {-1} for row in dataset)


def test_entities_from_a_column_and_phrases_from_a_gazetteer():
    tokenizer = tokenizer_of("byte-bpe untrimmed")
    text = "Visit Harbin in Heilongjiang province"
    rows = {"text": [text], "entities": [[(6, 12), (16, 28)]]}
    spans = {
        "entity_ids": "entities",
        "phrase_ids": Gazetteer(["in Heilongjiang", "Visit Harb", "Heilongjiang"]),
    }
    row = add_word_ids(Dataset.from_dict(rows), tokenizer, spans=spans)[0]
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    joined = {}
    for name in spans:
        parts = [(number, text[b:e].strip()) for number, (b, e) in zip(row[name], offsets, strict=True)]
        joined[name] = ["".join(part for number, part in parts if number == wanted) for wanted in (-1, 0, 1)]
    assert joined["entity_ids"][1:] == ["Harbin", "Heilongjiang"]
    assert joined["phrase_ids"][1:] == ["inHeilongjiang", ""]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (["zz"], "not in the rest of its text"),
        ([(0, 9)], "within 3 characters"),
        ([(1, 2), (0, 1)], "spans in order"),
    ],
)
def test_a_wrong_segmenter(found, words):
    with pytest.raises(ValueError, match=words):
        spans_of("a b", found)


def test_words_that_repeat_are_found_in_order():
    assert spans_of("a b a", ["a", " ", "b", "a"]) == [(0, 1), (2, 3), (4, 5)]


def test_what_an_earlier_segmenter_finds_stays_whole():
    text = "in New York City today"
    entities, words = Gazetteer(["New York"]), ["in", "New York City", "today"]
    found = FirstOf([entities, lambda _: words])(text)
    assert [text[begin:end] for begin, end in found] == ["in", "New York", " City", "today"]
    found = FirstOf([lambda _: words, entities])(text)
    assert [text[begin:end] for begin, end in found] == words
    assert FirstOf([entities, Gazetteer(["York City"])])("New York") == [(0, 8)]
    assert FirstOf([entities])("nothing") == FirstOf([entities])("") == []
    # a space that an entity leaves over of a phrase is no unit
    assert FirstOf([Gazetteer(["a"]), Gazetteer(["a "])])("a b") == [(0, 1)]


def test_errors_say_what_to_do():
    dataset = Dataset.from_dict({"sentence": ["a"]})
    with pytest.raises(ValueError, match=r"expected a column 'text' in the data set, got \['sentence'\]"):
        add_word_ids(dataset, tokenizer_of("wordpiece"))
    with pytest.raises(ValueError, match="needs a fast tokenizer"):
        add_word_ids(dataset, object())
    with pytest.raises(ValueError, match="at least one phrase"):
        Gazetteer([])


def test_jieba_is_optional():
    if importlib.util.find_spec("jieba") is None:
        with pytest.raises(ImportError, match=r"pip install 'heirloom-lm\[chinese\]'"):
            JiebaSegmenter()
    else:
        assert JiebaSegmenter()("我 来到") == [(0, 1), (2, 4)]


def test_segmenters_of_the_command_line(tmp_path):
    (tmp_path / "c++.txt").write_text("New York\n")
    (tmp_path / "phrases.txt").write_text("York City\nin\n")
    one, other = f"gazetteer:{tmp_path / 'c++.txt'}", f"gazetteer:{tmp_path / 'phrases.txt'}"
    text = "in New York City"
    assert open_segmenter(one)(text) == [(3, 11)]
    assert open_segmenter(f"{other}+{other}")(text) == [(0, 2), (7, 16)]
    assert open_segmenter("") is None
