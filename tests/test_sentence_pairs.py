"""Pairs of segments and orders of segments: the procedures and labels of the originals."""

import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from reference import pairs_naive as naive
from scipy.stats import chisquare
from tokenizers import Tokenizer, models
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    BertConfig,
    BertForPreTraining,
    PreTrainedTokenizerFast,
)

from heirloom.objectives.collators import IGNORED
from heirloom.objectives.documents import Documents
from heirloom.objectives.reordering import SentenceReorderingDataset, orders_of
from heirloom.objectives.sentence_pairs import LABELS, SentencePairDataset, as_many, pairs, truncated

ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
CLS, SEP, FIRST = 2, 3, 5
WORDS = Tokenizer(
    models.WordLevel({w: n for n, w in enumerate([*ROLES.values(), "a", "b"])}, unk_token="[UNK]")
)
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=WORDS, **ROLES)


def corpus(sizes, mean: int = 12, seed: int = 0) -> Documents:
    """Documents of so many sentences. Each id comes once, so that it says where it stood."""
    rng, number, documents = np.random.default_rng(seed), FIRST, []
    for size in sizes:
        documents.append([])
        for length in rng.poisson(mean, size) + 1:
            documents[-1].append(list(range(number, number + length)))
            number += length
    return Documents.of(documents)


SIZES = np.random.default_rng(1).integers(1, 14, 300)
CORPUS = corpus(SIZES)
DOCUMENT_OF = np.repeat(np.arange(300), np.diff(CORPUS.sentences[CORPUS.documents]))


def parts(row) -> list[list[int]]:
    """The segments of a row."""
    ids = row["input_ids"].tolist()
    assert ids[0] == CLS
    assert ids[-1] == SEP
    segments, current = [], []
    for token in ids[1:]:
        if token == SEP:
            segments.append(current)
            current = []
        else:
            current.append(token)
    return segments


def table_of(objective, documents=CORPUS, short=0.1, most=61, single_sentence="other", seed=0):
    """Begin and end of A and of B before truncation, labels, and whether both are of one document."""
    table = pairs(documents, random.Random(seed), objective, most, short, single_sentence).T
    owner = np.searchsorted(documents.sentences[documents.documents], table[[0, 2]], side="right")
    return *table, owner[0] == owner[1]


def contiguous(part) -> bool:
    return (np.diff(part) == 1).all()


def third(end, label, documents) -> bool:
    """Whether classes are as likely, without the lone sentences at the ends of documents, which are always random."""
    labels = label[~((label == 2) & np.isin(end, documents.sentences[documents.documents]))]
    return np.bincount(labels) / len(labels) == pytest.approx([1 / 3] * 3, abs=3 * 0.47 / len(labels) ** 0.5)


def half(labels) -> bool:
    return np.mean(labels) == pytest.approx(0.5, abs=3 * 0.5 / len(labels) ** 0.5)


def test_rows_and_segments():
    dataset = SentencePairDataset(CORPUS, TOKENIZER, max_length=64)
    assert dataset.table.dtype == np.int32
    for index in range(200):
        row = dataset[index]
        a, b = parts(row)
        assert a
        assert b
        assert contiguous(np.array(a))
        assert contiguous(np.array(b))
        assert len(row["input_ids"]) <= 64
        assert row["token_type_ids"].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert set(row) == {"input_ids", "token_type_ids", "next_sentence_label"}


def test_next_sentences_have_labels_of_bert():
    first, end, begin, stop, label, same = table_of("nsp")
    assert (begin < stop).all()
    assert np.array_equal(same, label == 0)
    assert (begin == end)[label == 0].all()
    # Sentences that a random B replaces begin the next chunk, so that A and true B cover the corpus.
    covered = np.where(label == 0, stop, end)
    assert np.array_equal(covered, np.append(first[1:], len(CORPUS.tokens)))


def test_half_of_the_pairs_that_may_be_are_next_and_lone_sentences_are_random():
    singles = corpus([1] * 500 + [2] * 500)
    dataset = SentencePairDataset(singles, TOKENIZER, max_length=512, short_seq_prob=0)
    labels = Counter((int(a >= singles.sentences[500]), label) for a, *_, label in dataset.table.tolist())
    assert labels[0, 0] == 0
    assert labels[0, 1] == 500
    assert labels[1, 0] == pytest.approx(250, abs=3 * 11.2)
    # Whoever gets a random B leaves the second sentence over, which is a lone one then.
    assert labels[1, 1] == 2 * (500 - labels[1, 0])


def test_shares_and_lengths_are_those_of_bert():
    # The shares of single sentences of the measured corpus: 870 of 2500 documents.
    sizes = np.random.default_rng(3).integers(2, 20, 1630)
    documents = corpus([*[1] * 870, *sizes], mean=20)
    lists = [
        [
            documents.tokens[slice(*documents.sentences[s : s + 2])].tolist()
            for s in range(*documents.documents[d : d + 2])
        ]
        for d in range(2500)
    ]
    expected = naive.next_sentences(lists, 125, 0.1, random.Random(0))
    share = np.mean([other for _, _, other, _ in expected])
    several = [other for _, _, other, size in expected if size > 1]
    assert np.mean(several) == pytest.approx(0.5, abs=3 * 0.5 / len(several) ** 0.5)
    found, lengths = [], []
    for epoch in range(2):
        dataset = SentencePairDataset(documents, TOKENIZER, max_length=128)
        dataset.set_epoch(epoch)
        found.append(dataset.table[:, 4].mean())
        lengths.append((dataset.table[:, 1] - dataset.table[:, 0]).mean())
        assert len(dataset) == pytest.approx(len(expected), rel=0.03)
    assert np.mean(found) == pytest.approx(share, abs=0.02)
    assert share > 0.55  # not one half, since lone sentences are always random
    cut = [len(naive.truncate(a, b, 125, random.Random(0))[0]) for a, b, _, _ in expected]
    assert np.mean(lengths) == pytest.approx(np.mean(cut), rel=0.03)


def test_truncation_is_that_of_bert():
    rng, draw = np.random.default_rng(0), random.Random(0)
    sizes = rng.integers(1, 60, (400, 2))
    table = np.stack(
        [np.zeros(400, int), sizes[:, 0], np.full(400, 100), 100 + sizes[:, 1], sizes[:, 0]], axis=1
    )
    found = truncated(rng, table, 40)
    front = []
    for (a, b), (begin, end, start, stop) in zip(sizes.tolist(), found.tolist(), strict=True):
        one, other = naive.truncate(range(a), range(100, 100 + b), 40, draw)
        assert (end - begin, stop - start) == (len(one), len(other))
        assert 0 <= begin <= end <= a
        assert 100 <= start <= stop <= 100 + b
        front.append((begin - one[0]) + (start - other[0]))
    assert abs(np.mean(front)) < 3 * np.std(front) / 20


def test_sentence_order_of_albert():
    begin, end, start, stop, label, same = table_of("sop", single_sentence="drop")
    assert same.all()
    assert np.array_equal(np.where(label == 0, end, stop), np.where(label == 0, start, begin))
    assert half(label)
    *_, label, same = table_of("sop")
    assert (~same).any()
    assert (label[~same] == 1).all()


def test_structure_of_structbert():
    documents = corpus([40] * 200)
    begin, end, start, stop, label, same = table_of("structural", documents, short=0, most=97)
    assert np.array_equal(same, label < 2)
    assert (end == start)[label == 0].all()
    assert (stop == begin)[label == 1].all()
    assert third(end, label, documents)


def test_distance_of_ernie():
    documents = corpus([40] * 200)
    begin, end, start, stop, label, same = table_of("distance", documents, short=0, most=97)
    assert np.array_equal(same, label < 2)
    assert (end == start)[label == 0].all()
    gap = np.where(start > begin, start - end, begin - stop)[label == 1]
    edges = set(documents.sentences.tolist())
    assert {begin.min(), *end, *start, *stop} <= edges
    assert (gap > 0).all()  # and so a whole sentence at least
    assert 0.2 < (start > begin)[label == 1].mean() < 0.8
    assert third(end, label, documents)
    assert set(table_of("distance", corpus([2] * 50))[4]) == {0, 2}  # nothing is apart in these


def test_ernie_and_xlnet_say_one_for_a_true_pair():
    for objective in ("ernie", "xlnet"):
        *_, label, same = table_of(objective)
        assert np.array_equal(same, label == 1)
    row = SentencePairDataset(CORPUS, TOKENIZER, "xlnet", max_length=32)[0]
    ids, types = row["input_ids"].tolist(), row["token_type_ids"].tolist()
    assert ids[-2:] == [SEP, CLS]
    assert types[-1] == 2
    cut = ids.index(SEP)
    assert types == [0] * (cut + 1) + [1] * (len(ids) - cut - 2) + [2]


def test_dialogues():
    dataset = SentencePairDataset(CORPUS, TOKENIZER, "dialogue", max_length=200)
    for row in (dataset[index] for index in range(300)):
        turns = [np.array(part) - FIRST for part in parts(row)]
        assert 2 <= len(turns) <= 3
        assert all(contiguous(turn) for turn in turns)
        owners = Counter(DOCUMENT_OF[turn[0]] for turn in turns)
        assert (len(owners) == 1) == (row["next_sentence_label"] == 1)
        assert max(owners.values()) >= len(turns) - 1
    assert half(dataset.table[:, -1])
    dataset = SentencePairDataset(CORPUS, TOKENIZER, "dialogue", max_length=20)
    rows = [dataset[i] for i in range(200)]
    assert max(len(row["input_ids"]) for row in rows) in (19, 20)
    assert min(len(part) for row in rows for part in parts(row)) > 0
    assert {len(set(row["token_type_ids"])) for row in rows} == {2, 3}


@pytest.mark.parametrize("objective", LABELS)
def test_epochs_differ_and_seeds_repeat(objective):
    before = CORPUS.tokens.copy()
    one, other = (SentencePairDataset(CORPUS, TOKENIZER, objective, max_length=40, seed=4) for _ in range(2))
    assert np.array_equal(one.table, other.table)
    one[0]["input_ids"][:] = 0
    one.set_epoch(1)
    assert one.table.shape != other.table.shape or not np.array_equal(one.table, other.table)
    other.set_epoch(1)
    assert np.array_equal(one.table, other.table)
    assert np.array_equal(CORPUS.tokens, before)
    differing = SentencePairDataset(CORPUS, TOKENIZER, objective, max_length=40, seed=5)
    assert not np.array_equal(
        differing.table[:50], SentencePairDataset(CORPUS, TOKENIZER, objective, 40).table[:50]
    )


@pytest.mark.parametrize("objective", LABELS)
def test_every_epoch_has_as_many_rows(objective):
    dataset = SentencePairDataset(CORPUS, TOKENIZER, objective, max_length=40, seed=4)
    number = len(dataset)
    for epoch in (1, 2, 3, 4):
        dataset.set_epoch(epoch)
        assert len(dataset) == number
        begins, times = np.unique(dataset.table, axis=0, return_counts=True)
        assert len(begins) > 0.85 * number
        assert times.max() <= 2
        assert (np.diff(dataset.table[:, 0]) >= 0).mean() > 0.5  # still in the order of the corpus


def test_rows_that_are_left_out_or_come_twice_are_random():
    table = np.arange(100)[:, None]
    fewer, more = (as_many(np.random.default_rng(1), table, number)[:, 0] for number in (80, 130))
    assert len(set(fewer.tolist())) == 80
    assert max(fewer) > 90
    assert min(fewer) < 10
    assert set(more.tolist()) == set(range(100))
    twice = more[1:][more[1:] == more[:-1]]
    assert (len(twice), max(twice) > 80, min(twice) < 20) == (30, True, True)


def test_words_of_texts():
    documents = [["a b a", "b"], ["a a"], ["b b", "", "a"]]
    found = Documents.of(documents, TOKENIZER, words=False)
    assert found.word_ids is None
    assert found.tokens.tolist() == [
        TOKENIZER.convert_tokens_to_ids(w) if w != "x" else 1 for w in found_words(documents)
    ]
    rows = [
        [{"input_ids": [7, 8, 9], "word_ids": [0, 0, 1]}, {"input_ids": [7], "word_ids": [1]}],
        [{"input_ids": [6, 6], "word_ids": [-1, 3]}],
    ]
    documents = Documents.of(rows)
    assert documents.word_ids.tolist() == [0, 0, 1, 2, -1, 4]
    row = SentencePairDataset(documents, TOKENIZER, max_length=20)[0]
    ids, words = row["input_ids"], row["word_ids"]
    assert ((words == -1) == np.isin(ids, [CLS, SEP]) | ((ids == 6) & (words == -1))).all()


def found_words(documents) -> list[str]:
    """The tiny tokenizer has no pre-tokenizer: a sentence that is no word is unknown."""
    return [s if s in ("a", "b") else "[UNK]" for document in documents for s in document if s]


@pytest.mark.parametrize(("objective", "stock"), [("nsp", "bert"), ("sop", "albert")])
def test_labels_have_the_names_of_stock_models(objective, stock):
    sizes = {
        "vocab_size": 100,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    if stock == "bert":
        model = BertForPreTraining(BertConfig(**sizes))
    else:
        model = AlbertForPreTraining(AlbertConfig(**sizes, embedding_size=4))
    row = SentencePairDataset(corpus([3, 3], mean=3), TOKENIZER, objective, max_length=30)[0]
    batch = {name: torch.as_tensor(value)[None] for name, value in row.items()}
    labels = torch.where(batch["input_ids"] > 4, batch["input_ids"], IGNORED)
    assert torch.isfinite(model(**batch, labels=labels).loss)


def test_classes_of_orders():
    assert [len(orders_of(m)) for m in (1, 2, 3, 4)] == [1, 3, 9, 33]
    for m in (1, 2, 3, 4):
        orders = orders_of(m)
        assert len(set(orders)) == len(orders)
        assert all(sorted(order) == list(range(len(order))) for order in orders)


def test_reordering_can_be_undone():
    documents = corpus([12] * 200)
    dataset = SentenceReorderingDataset(documents, TOKENIZER, m=3, max_length=100)
    seen = []
    for index in range(len(dataset)):
        row = dataset[index]
        assert len(row["input_ids"]) <= 100
        segments = parts(row)
        order = dataset.orders[row["labels"]]
        assert len(order) == len(segments)
        text = list(chain(*(segments[order.index(number)] for number in range(len(order)))))
        assert contiguous(np.array(text))
        seen.append(row["labels"])
    counts = np.bincount(seen, minlength=9)
    assert chisquare(counts[1:3]).pvalue > 1e-3
    assert chisquare(counts[3:]).pvalue > 1e-3
    assert counts[0] / len(seen) == pytest.approx(1 / 3, abs=0.09)
    assert np.concatenate([dataset.table[:, 0], dataset.table[-1:, 3]]).tolist() == sorted(
        {*dataset.table[:, 0], dataset.table[-1, 3]}
    )
    dataset.set_epoch(1)
    assert seen[:50] != dataset.table[:50, -1].tolist()


ERRORS = [
    ({"objective": "nxt"}, "expected an objective of nsp, ernie"),
    ({"max_length": 5}, "max_length is 5; expected 6 or more"),
    ({"short_seq_prob": 10}, "short_seq_prob must lie between 0 and 1"),
    ({"single_sentence": "keep"}, 'must be "other" or "drop"'),
    ({"documents": [[[7, 8]]]}, "there is only one document"),
    ({"documents": [[], [[]]]}, "found no sentence in the documents"),
    ({"documents": [["a"], [[7]]]}, "sentences of one kind, got ids and texts"),
    (
        {"documents": [[{"input_ids": [7, 8], "word_ids": [0]}], [{"input_ids": [7], "word_ids": [0]}]]},
        "2 ids but 1 word ids",
    ),
    ({"documents": [[[7, 8]], [[9]]], "objective": "dialogue"}, "found nothing for dialogue"),
    ({"seed": -1}, "seed must be 0 or more"),
]


@pytest.mark.parametrize(
    ("options", "words"), ERRORS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_errors_say_what_to_do(options, words):
    with pytest.raises(ValueError, match=words):
        SentencePairDataset(**{"documents": CORPUS, "tokenizer": TOKENIZER, "max_length": 40} | options)


def test_errors_of_documents_and_orders():
    with pytest.raises(TypeError, match="a document as a list of sentences, got 'a b'"):
        Documents.of(["a b"], TOKENIZER)
    with pytest.raises(TypeError, match="got a list of ids"):
        Documents.of([[7, 8]])
    with pytest.raises(ValueError, match="need a tokenizer"):
        Documents.of([["a"]])
    with pytest.raises(ValueError, match="m is 7; expected 1 to 6"):
        SentenceReorderingDataset(CORPUS, TOKENIZER, m=7)
    bare = PreTrainedTokenizerFast(tokenizer_object=WORDS, pad_token="[PAD]")
    with pytest.raises(ValueError, match="needs the token cls, but the tokenizer has none"):
        SentencePairDataset(CORPUS, bare)
