"""Collators for pre-training stock models: what batches hold, equal seeds, and what is said of rows that do not fit."""

import numpy as np
import pytest
import torch
from stock_lms import tokenizer

from heirloom.objectives.masking import (
    Budget,
    KnowledgeMasking,
    NgramMasking,
    SpanMasking,
    TokenMasking,
    TrigramShuffle,
    WholeWordMasking,
)
from heirloom.objectives.noise import Compose, DocumentRotation, Masking, ReplacedTokenNoise, TokenDeletion
from heirloom.objectives.pretraining_collators import (
    DataCollatorForDenoising,
    DataCollatorForMaskedLanguageModeling,
    DataCollatorForMass,
    DataCollatorForReplacedTokenDetection,
    DataCollatorForSpanCorruption,
    SpanBoundaryTargets,
)
from heirloom.objectives.replacement import Replacement
from heirloom.objectives.sentence_pairs import SentencePairDataset
from heirloom.objectives.sequence_noise import MassFragment, SpanCorruption
from heirloom.objectives.token_batch import TokenBatch, Vocabulary

WORDS = 200
SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[MASK]", ".")
PAD, CLS, SEP, MASK, STOP = range(5)
NAMES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
BERT = tokenizer(WORDS, SPECIAL, **NAMES)
UNMASKED = tokenizer(WORDS, SPECIAL, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
SENTINELS = tuple(f"<extra_id_{number}>" for number in reversed(range(32)))
T5 = tokenizer(WORDS, ("<pad>", "</s>", *SENTINELS), pad_token="<pad>", eos_token="</s>")
IGNORED = -100


def rows_of(*lengths, word=2, seed=0, **more):
    """Rows `[CLS] .. [SEP]` of these lengths in all, in words of `word` tokens."""
    rng, rows = np.random.default_rng(seed), []
    for length in lengths:
        ids = rng.integers(len(SPECIAL), WORDS, length)
        ids[0], ids[-1] = CLS, SEP
        words = np.arange(length) // word
        words[[0, -1]] = -1
        rows.append({"input_ids": ids.tolist(), "word_ids": words.tolist(), **more})
    return rows


def originals(batch, labels="labels"):
    return torch.where(batch[labels] == IGNORED, batch["input_ids"], batch[labels])


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


COLLATORS = [
    DataCollatorForMaskedLanguageModeling(BERT, WholeWordMasking(), seed=3),
    DataCollatorForReplacedTokenDetection(BERT, seed=3),
    DataCollatorForDenoising(BERT, seed=3),
    DataCollatorForMass(BERT, seed=3),
]


@pytest.mark.parametrize("collator", COLLATORS, ids=lambda collator: type(collator).__name__)
def test_a_batch_follows_from_seed_epoch_and_rows(collator):
    rows = rows_of(40, 31, 9)
    before = [dict(row) for row in rows]
    first = collator(rows)
    assert same(first, collator(rows))
    assert all(tensor.dtype == torch.int64 for tensor in first.values())
    collator.set_epoch(1)
    assert not same(first, collator(rows))
    collator.set_epoch(0)
    assert same(first, collator(rows))
    assert not same(first, type(collator)(BERT, seed=4)(rows))
    assert rows == before


def test_masked_tokens_and_whole_words():
    rows = rows_of(42, 22, 12)
    batch = DataCollatorForMaskedLanguageModeling(BERT, WholeWordMasking())(rows)
    assert list(batch) == ["input_ids", "attention_mask", "labels"]
    chosen = batch["labels"] != IGNORED
    assert chosen.sum(1).tolist() == [6, 3, 2]  # round(0.15 n), and words of two tokens
    assert batch["attention_mask"].sum(1).tolist() == [42, 22, 12]
    plain = originals(batch)
    for number, row in enumerate(rows):
        assert plain[number, : len(row["input_ids"])].tolist() == row["input_ids"]
        assert (plain[number, len(row["input_ids"]) :] == PAD).all()
    wide = DataCollatorForMaskedLanguageModeling(BERT, pad_to_multiple_of=32)(rows)
    assert wide["input_ids"].shape == (3, 64)


def test_other_columns_reach_the_strategy():
    rows = rows_of(30, 30)
    for row in rows:
        row["entity_ids"] = np.where(np.arange(30) // 5 == 2, 0, -1).tolist()  # one entity of five tokens
        row["doc_id"] = 7  # no number for each token
    masking = KnowledgeMasking(columns=("entity_ids",), budget=Budget(rate=1.0))
    batch = DataCollatorForMaskedLanguageModeling(BERT, masking, Replacement(1.0, 0.0))(rows)
    assert (batch["input_ids"][:, 10:15] == MASK).all()
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


def test_pairs_keep_their_types_and_labels():
    documents = [[[10 + sentence, 50, 51, 60 + number] for sentence in range(6)] for number in range(4)]
    for objective, label in (("nsp", "next_sentence_label"), ("sop", "sentence_order_label")):
        dataset = SentencePairDataset(documents, BERT, objective, max_length=24)
        rows = [dataset[number] for number in range(4)]
        batch = DataCollatorForMaskedLanguageModeling(BERT)(rows)
        assert batch[label].tolist() == [row[label] for row in rows]
        for row, types in zip(rows, batch["token_type_ids"], strict=True):
            size = len(row["input_ids"])
            assert types[:size].tolist() == row["token_type_ids"].tolist()
            assert (types[size:] == 0).all()


def test_shuffled_trigrams_come_beside_masks():
    rows = rows_of(60, 40)
    collator = DataCollatorForMaskedLanguageModeling(BERT, noise=TrigramShuffle(rate=0.5))
    masked = DataCollatorForMaskedLanguageModeling(BERT)(rows)
    batch = collator(rows)
    hidden = masked["labels"] != IGNORED
    assert torch.equal(batch["input_ids"][hidden], masked["input_ids"][hidden])
    assert torch.equal(batch["labels"][hidden], masked["labels"][hidden])
    shuffled = (batch["labels"] != IGNORED) & ~hidden
    assert shuffled.sum() % 3 == 0
    assert (batch["input_ids"] != originals(batch))[shuffled].any()
    assert torch.equal(originals(batch), originals(masked))


def test_span_boundaries():
    rows = rows_of(80, 50, 7)
    collator = DataCollatorForMaskedLanguageModeling(
        BERT, SpanMasking(), Replacement(per="span"), extras=[SpanBoundaryTargets(3)]
    )
    batch = collator(rows)
    naive = []
    for row, labels in enumerate(batch["labels"].tolist()):
        inside = [label != IGNORED for label in labels] + [False]
        start = 0
        while start < len(labels):
            stop = start
            while inside[stop]:
                stop += 1
            naive += [
                [row, start - 1, stop, place - start, labels[place]]
                for place in range(start, min(stop, start + 3))
            ]
            start = max(stop, start + 1)
    targets = batch["span_boundary_targets"]
    assert targets.tolist() == naive
    assert (targets[:, 3] == 2).any()
    for side in (1, 2):
        assert (batch["labels"][targets[:, 0], targets[:, side]] == IGNORED).all()


def test_a_span_at_the_edge_of_a_row_has_no_boundary():
    ids = np.array([[7, 8, 9, 10, 0], [7, 8, 9, 10, 11]])
    labels = np.array([[7, -100, 9, 10, -100], [-100, 8, 9, -100, -100]])
    batch = TokenBatch(ids, ids > 0, np.array([4, 5]), Vocabulary(WORDS, (PAD,)), labels=labels)
    found = SpanBoundaryTargets()(batch)["span_boundary_targets"]
    assert found.tolist() == [[1, 0, 3, 0, 8], [1, 0, 3, 1, 9]]


def test_replaced_tokens():
    rows = rows_of(100, 61, seed=1)
    joint = DataCollatorForReplacedTokenDetection(BERT)
    batch = joint(rows)
    chosen = batch["labels"] != IGNORED
    assert chosen.sum(1).tolist() == [15, 9]
    hidden = batch["input_ids"] == MASK
    assert (hidden <= chosen).all()
    assert torch.equal(batch["input_ids"][chosen & ~hidden], batch["labels"][chosen & ~hidden])
    detection = DataCollatorForReplacedTokenDetection(BERT, ReplacedTokenNoise())
    found = detection(rows)
    for number, row in enumerate(rows):
        size = len(row["input_ids"])
        other = found["input_ids"][number, :size] != torch.tensor(row["input_ids"])
        assert found["labels"][number, :size].tolist() == other.long().tolist()
        assert (found["labels"][number, size:] == IGNORED).all()
    assert not (found["input_ids"] == MASK).any()
    assert joint.fits == ("masked",)
    assert detection.fits == ("discriminator",)
    DataCollatorForReplacedTokenDetection(UNMASKED, ReplacedTokenNoise())(rows)  # needs no mask token


def test_denoising():
    rows = rows_of(60, 41)
    for row in rows:
        row["input_ids"][20] = row["input_ids"][35] = STOP
    noisy = DataCollatorForDenoising(BERT)(rows)
    for number, row in enumerate(rows):
        size = len(row["input_ids"])
        assert noisy["labels"][number, :size].tolist() == row["input_ids"]
        assert (noisy["labels"][number, size:] == IGNORED).all()
        width = int(noisy["attention_mask"][number].sum())
        inputs = noisy["input_ids"][number, :width].tolist()
        assert inputs[0] == CLS
        assert inputs[-1] == SEP
        assert MASK in inputs
        assert set(inputs) <= {*row["input_ids"], MASK}
        assert width < size
    several = DataCollatorForDenoising(BERT, Compose((TokenDeletion(0.5), DocumentRotation())))(rows)
    assert several["attention_mask"].sum(1).tolist() == [60 - 29, 41 - 20]  # the nearest even number
    assert torch.equal(several["labels"], noisy["labels"])


def test_span_corruption_has_exact_lengths():
    collator = DataCollatorForSpanCorruption(T5)
    assert collator.corruption.raw_length(512) == (568, 114)
    length, target = SpanCorruption().raw_length(64)
    ids = np.random.default_rng(0).integers(40, WORDS, (4, length))
    batch = collator([{"input_ids": row} for row in ids])
    assert batch["input_ids"].shape == (4, 64)
    assert batch["labels"].shape == (4, target)
    assert (batch["labels"] != IGNORED).all()
    sentinels = set(collator.vocabulary.sentinel_ids)
    for row, inputs, labels in zip(ids, batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        assert inputs.pop() == labels.pop() == 1
        spans = {}
        for token in labels:
            if token in sentinels:
                spans[token] = []
            else:
                spans[next(reversed(spans))].append(token)
        whole = [item for token in inputs for item in spans.get(token, [token])]
        assert whole == row.tolist()


def test_fragments_keep_their_positions():
    rows = rows_of(40, 21)
    batch = DataCollatorForMass(BERT, MassFragment(replacement=Replacement(1.0, 0.0)))(rows)
    for number, row in enumerate(rows):
        size = int(batch["decoder_attention_mask"][number].sum())
        places = batch["decoder_position_ids"][number, :size]
        ids = torch.tensor(row["input_ids"])
        assert size == round(0.5 * (len(ids) - 2))
        assert torch.equal(batch["decoder_input_ids"][number, :size], ids[places])
        assert torch.equal(batch["labels"][number, :size], ids[places + 1])
        assert (batch["labels"][number, size:] == IGNORED).all()
        hidden = batch["input_ids"][number] == MASK
        assert hidden.nonzero().flatten().tolist() == (places + 1).tolist()


def bare(*lengths):
    return [{"input_ids": row["input_ids"]} for row in rows_of(*lengths)]


NO_TOKEN = "row 1 of the batch has no token that can be masked, only special tokens"


@pytest.mark.parametrize("collator", [*COLLATORS, DataCollatorForReplacedTokenDetection(BERT)], ids=repr)
def test_rows_of_special_tokens_alone(collator):
    rows = rows_of(9, 2)  # [CLS] [SEP]
    with pytest.raises(ValueError, match=NO_TOKEN):
        collator(rows)
    single = [row | {"input_ids": row["input_ids"][:1], "word_ids": [-1]} for row in rows[1:]]
    with pytest.raises(ValueError, match="row 0 of the batch has no token that can be masked"):
        collator(single)


@pytest.mark.parametrize("collator", COLLATORS, ids=lambda collator: type(collator).__name__)
def test_the_shortest_row_has_a_target(collator):
    batch = collator(rows_of(3, 20))
    assert (batch["labels"] != IGNORED).any(1).all()


@pytest.mark.parametrize(
    "make",
    [
        DataCollatorForMaskedLanguageModeling,
        DataCollatorForReplacedTokenDetection,
        DataCollatorForDenoising,
        DataCollatorForMass,
    ],
)
def test_no_mask_token(make):
    with pytest.raises(
        ValueError, match=r"needs a mask token, but the tokenizer has none: .*add_special_tokens"
    ):
        make(UNMASKED)


@pytest.mark.parametrize("masking", [WholeWordMasking(), NgramMasking(), SpanMasking()], ids=repr)
def test_no_word_ids(masking):
    with pytest.raises(ValueError, match=r"needs a column 'word_ids' .*make it with .*add_word_ids"):
        DataCollatorForMaskedLanguageModeling(BERT, masking)(bare(9, 8))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected rows with input_ids, got none"),
        ([{"text": "w5"}], r"expected rows with input_ids, got \['text'\]: tokenize texts"),
        ([*bare(9), *rows_of(9)], r"row 0 has \['input_ids'\] and row 1 has \['input_ids', 'word_ids'\]"),
        ([{"input_ids": [1, WORDS, 2]}], r"expected ids from 0 to 199, got 200: the rows come from another"),
        ([{"input_ids": []}], "a batch needs rows with at least one token each"),
    ],
)
def test_rows_that_are_none(rows, message):
    with pytest.raises(ValueError, match=message):
        DataCollatorForMaskedLanguageModeling(BERT, TokenMasking())(rows)


def test_what_else_is_wrong():
    with pytest.raises(ValueError, match="most must be 1 or more, got 0"):
        SpanBoundaryTargets(0)
    with pytest.raises(ValueError, match=r"needs sentinels <extra_id_0>.*choose one of T5"):
        DataCollatorForSpanCorruption(BERT)(bare(20))
    with pytest.raises(ValueError, match="row 0 of the batch has 1 tokens besides special ones"):
        DataCollatorForSpanCorruption(T5)([{"input_ids": [50, 1]}])
    endless = tokenizer(WORDS, ("[PAD]", "[CLS]", "[SEP]", "[MASK]"), **NAMES)  # no "."
    with pytest.raises(ValueError, match=r"must know where sentences end: .*sentence_ids"):
        DataCollatorForDenoising(endless)(bare(20))
    DataCollatorForDenoising(endless)([row | {"sentence_ids": [0] * 20} for row in bare(20)])
    with pytest.raises(ValueError, match="needs a mask token"):
        DataCollatorForReplacedTokenDetection(UNMASKED, Masking())
