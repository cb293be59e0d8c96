"""Noise: the counts of BART, T5 and MASS, nothing lost that should stay, and equality with slow twins."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from reference import noise_naive as naive
from scipy.stats import poisson

from heirloom.objectives.masking import Replacement, TokenMasking
from heirloom.objectives.noise import (
    Compose,
    DocumentRotation,
    Masking,
    MassFragment,
    ReplacedTokenNoise,
    SentencePermutation,
    SpanCorruption,
    TextInfilling,
    TokenDeletion,
    denoising,
    poisson_lengths,
)
from heirloom.objectives.sequence_noise import composition
from heirloom.objectives.token_batch import TokenBatch, Vocabulary, generator

PAD, BOS, EOS, MASK, STOP, SIZE = 0, 1, 2, 3, 4, 1200
SENTINELS = tuple(range(SIZE - 1, SIZE - 101, -1))
VOCABULARY = Vocabulary(SIZE, (PAD, BOS, EOS, MASK, *SENTINELS), PAD, MASK, EOS, SENTINELS)
RAGGED = [510, 200, 60, 20, 7, 3, 2, 1]


def batch_of(lengths, new_word: float = 1.0, stops: float = 0.05) -> TokenBatch:
    """Rows `<s> .. </s>` with so many tokens between, no two the same in a row but for full stops."""
    rng, rows = np.random.default_rng(0), []
    for length in lengths:
        ids = np.concatenate([[BOS], rng.permutation(np.arange(10, 1000))[:length], [EOS]])
        ids[1:-1][rng.random(length) < stops] = STOP
        words = np.cumsum(rng.random(length + 2) < new_word)
        words[[0, -1]] = -1
        rows.append({"input_ids": ids, "word_ids": words})
    return TokenBatch.from_rows(rows, VOCABULARY)


def rows_of(batch: TokenBatch) -> list[list[int]]:
    return [row[:length].tolist() for row, length in zip(batch.input_ids, batch.lengths, strict=True)]


BART = Compose((SentencePermutation((STOP,)), TextInfilling()))
NOISES = [
    TokenDeletion(),
    TextInfilling(),
    TextInfilling(whole_words=True, random=0.1),
    TextInfilling(overlapping=False),
    SentencePermutation((STOP,)),
    DocumentRotation(),
    BART,
    Compose((TextInfilling(), DocumentRotation(), SentencePermutation((STOP,)))),
    Masking(),
    ReplacedTokenNoise(),
    MassFragment(),
]


@pytest.mark.parametrize("noise", NOISES, ids=repr)
def test_well_formed_and_deterministic(noise):
    batch = batch_of(RAGGED, new_word=0.7)
    before = batch.input_ids.copy()
    for step in range(20):
        noisy = noise(generator(1, step=step), batch)
        again = noise(generator(1, step=step), batch)
        assert np.array_equal(noisy.input_ids, again.input_ids)
        assert noisy.input_ids.shape == noisy.maskable.shape == noisy.word_ids.shape
        assert noisy.input_ids.shape[1] <= batch.input_ids.shape[1] + 9
        for row, number in zip(rows_of(noisy), range(len(RAGGED)), strict=True):
            assert (row[0], row[-1]) == (BOS, EOS)
            assert not {BOS, EOS, PAD} & set(row[1:-1]) or isinstance(noise, Masking | MassFragment)
            assert (noisy.input_ids[number, len(row) :] == PAD).all()
        assert not (
            noisy.maskable & ((noisy.attention_mask == 0) | (noisy.input_ids == BOS))
        ).any() or isinstance(noise, Masking | MassFragment)
    assert np.array_equal(batch.input_ids, before)
    different = noise(generator(1, epoch=1), batch).input_ids
    assert not np.array_equal(different, noise(generator(1), batch).input_ids)


@pytest.mark.parametrize(
    "noise", [TokenDeletion(0), TextInfilling(0), SentencePermutation((STOP,), 0), DocumentRotation(0)]
)
def test_no_noise_changes_nothing(noise):
    batch = batch_of(RAGGED)
    noisy = noise(generator(0), batch)
    assert np.array_equal(noisy.input_ids, batch.input_ids)
    assert np.array_equal(noisy.lengths, batch.lengths)
    assert np.array_equal(noisy.maskable, batch.maskable)


def test_deletion():
    batch = batch_of(RAGGED, stops=0)
    noisy = TokenDeletion()(generator(0), batch)
    assert (batch.lengths - noisy.lengths).tolist() == [round(0.15 * n) for n in RAGGED]
    for row, old in zip(rows_of(noisy), rows_of(batch), strict=True):
        assert [token for token in old if token in set(row)] == row


# mean: masks, length, share of tokens that disappear or are hidden
MEASURED = {3.0: (42.6, 418.3, 0.266), 3.5: (35.8, 412.3, 0.265)}


@pytest.mark.parametrize("mean", MEASURED)
def test_infilling_has_the_statistics_of_fairseq(mean):
    batch, found = batch_of([510] * 32, stops=0), []
    for step in range(30):
        noisy = TextInfilling(mean=mean)(generator(0, step=step), batch)
        masks = (noisy.input_ids == MASK).sum(1)
        found.append([masks.mean(), noisy.lengths.mean(), 1 - noisy.maskable.sum(1).mean() / 510])
    masks, length, removed = np.mean(found, axis=0)
    assert masks == pytest.approx(MEASURED[mean][0], abs=1)
    assert length == pytest.approx(MEASURED[mean][1], abs=1.5)
    assert removed == pytest.approx(MEASURED[mean][2], abs=0.004)


def test_infilling_is_distributed_like_its_twin():
    batch, draw = batch_of([40] * 64, stops=0), random.Random(0)
    rows = [row for step in range(60) for row in rows_of(TextInfilling()(generator(0, step=step), batch))]
    twins = [naive.infilling(row, 0.3, 3.0, MASK, draw) for _ in range(60) for row in rows_of(batch)]

    def summary(rows):
        pairs = [sum(a == b == MASK for a, b in pairwise(row)) for row in rows]
        return [
            np.mean([len(row) for row in rows]),
            np.std([len(row) for row in rows]),
            np.mean([row.count(MASK) for row in rows]),
            np.std([row.count(MASK) for row in rows]),
            np.mean(pairs) * 3,
            np.mean([row[1] == MASK for row in rows]) * 5,
            np.mean([row[-2] == MASK for row in rows]) * 5,
        ]

    assert summary(rows) == pytest.approx(summary(twins), abs=0.15)


def test_infilling_keeps_the_order_of_the_rest():
    batch = batch_of(RAGGED, stops=0)
    for row, old in zip(rows_of(TextInfilling()(generator(0), batch)), rows_of(batch), strict=True):
        rest = [token for token in row if token != MASK]
        assert rest == [token for token in old if token in set(rest)]


def test_infilling_of_whole_words():
    batch, removed = batch_of([510] * 32, new_word=0.77, stops=0), []
    for step in range(20):
        noisy = TextInfilling(whole_words=True)(generator(0, step=step), batch)
        removed.append(1 - noisy.maskable.sum() / batch.maskable.sum())
        for number in range(4):
            kept = set(noisy.input_ids[number][noisy.maskable[number]].tolist())
            for word in set(batch.word_ids[number]) - {-1}:
                tokens = set(batch.input_ids[number][batch.word_ids[number] == word].tolist())
                assert len(tokens & kept) in (0, len(tokens))
    assert np.mean(removed) == pytest.approx(0.267, abs=0.004)


def test_infilling_without_overlap_is_exact():
    batch = batch_of(RAGGED, stops=0)
    for step in range(20):
        noisy = TextInfilling(overlapping=False)(generator(0, step=step), batch)
        assert noisy.maskable.sum(1).tolist() == [n - int(np.ceil(0.3 * n)) for n in RAGGED]


def test_lengths_are_poisson():
    lengths, used = poisson_lengths(generator(0), 3.0, np.full(300, 300))
    assert set(lengths.sum(1)) == {300}
    drawn = lengths[used & (np.cumsum(lengths, axis=1) < 300)]
    shares = np.bincount(drawn, minlength=8)[:8] / len(drawn)
    assert shares == pytest.approx(poisson(3).pmf(range(8)), abs=0.006)
    assert shares[0] == pytest.approx(0.0498, abs=0.004)
    assert poisson_lengths(generator(0), 3.0, np.array([0, 5]))[1][0].sum() == 0


def test_permutation_moves_whole_sentences():
    batch, seen = batch_of(RAGGED), Counter()
    for step in range(50):
        noisy = SentencePermutation((STOP,))(generator(0, step=step), batch)
        for row, old in zip(rows_of(noisy), rows_of(batch), strict=True):
            assert Counter(row) == Counter(old)
        parts = naive.sentences(rows_of(batch)[1][1:-1], {STOP})
        row, order = rows_of(noisy)[1][1:-1], []
        while row:
            number = next(i for i, part in enumerate(parts) if row[: len(part)] == part and i not in order)
            order.append(number)
            row = row[len(parts[number]) :]
        assert sorted(order) == list(range(len(parts)))
        seen[tuple(order)] += 1
    assert len(parts) > 2
    assert len(seen) > 1


def test_permutation_is_uniform_and_rated():
    row = {"input_ids": [BOS, 10, STOP, 11, 12, STOP, 13, EOS]}
    batch = TokenBatch.from_rows([row] * 6000, VOCABULARY)
    orders = Counter(map(tuple, rows_of(SentencePermutation((STOP,))(generator(0), batch))))
    assert len(orders) == 6
    assert max(abs(count - 1000) for count in orders.values()) < 130
    some = Counter(map(tuple, rows_of(SentencePermutation((STOP,), rate=0.5)(generator(0), batch))))
    assert len(some) == 4  # two of three change places, or do not


def test_permutation_by_a_column():
    row = {"input_ids": [BOS, 10, 11, 12, 13, EOS], "sentence_ids": [-1, 0, 0, 1, 1, -1]}
    batch = TokenBatch.from_rows([row] * 50, VOCABULARY, columns=("sentence_ids",))
    found = set(map(tuple, rows_of(SentencePermutation()(generator(0), batch))))
    assert found == {(BOS, 10, 11, 12, 13, EOS), (BOS, 12, 13, 10, 11, EOS)}


def test_rotation():
    batch = TokenBatch.from_rows([{"input_ids": [BOS, 10, 11, 12, EOS]}] * 4000, VOCABULARY)
    found = Counter(map(tuple, rows_of(DocumentRotation()(generator(0), batch))))
    assert set(found) == {(BOS, 10, 11, 12, EOS), (BOS, 11, 12, 10, EOS), (BOS, 12, 10, 11, EOS)}
    assert found[BOS, 10, 11, 12, EOS] / 4000 == pytest.approx(0.5, abs=0.03)


def test_denoising_targets_are_the_original():
    batch = batch_of(RAGGED)
    noisy = denoising(generator(0), batch, BART)
    assert np.array_equal(noisy.labels, np.where(batch.attention_mask == 1, batch.input_ids, -100))


def test_replaced_tokens():
    batch = batch_of([510] * 32)
    noisy = ReplacedTokenNoise()(generator(0), batch)
    real = batch.attention_mask == 1
    assert np.array_equal(noisy.labels[real], (noisy.input_ids != batch.input_ids)[real])
    assert (noisy.labels == 1).sum(1).mean() == pytest.approx(77, abs=0.5)
    assert not (noisy.input_ids == MASK).any()
    assert set(ReplacedTokenNoise()(generator(0), batch_of(RAGGED)).labels[7, 3:]) == {-100}


@pytest.mark.parametrize(("raw", "inputs", "targets"), [(568, 512, 114), (1137, 1024, 229)])
def test_span_corruption_has_the_lengths_of_t5(raw, inputs, targets):
    noise = SpanCorruption()
    assert noise.raw_length(inputs) == (raw, targets)
    ids = np.random.default_rng(0).integers(10, 1000, (8, raw))
    batch = TokenBatch.from_rows([{"input_ids": row} for row in ids], VOCABULARY)
    noisy = noise(generator(0), batch)
    assert noisy.input_ids.shape == (8, inputs)
    assert noisy.labels.shape == (8, targets)
    assert not (noisy.labels == -100).any()
    mask = noise.noise_mask(generator(1), np.full(8, raw))
    if raw == 568:
        assert set(mask.sum(1)) == {85}
        assert set((mask[:, 1:] & ~mask[:, :-1]).sum(1)) == {28}


@pytest.mark.parametrize("noise", [SpanCorruption(), SpanCorruption(0.5, 1.0), SpanCorruption(0.3, 2.0)])
def test_the_longest_rows_that_fit(noise):
    for room in range(3, 60):
        length, targets = noise.raw_length(room)
        widths = [
            noise(generator(0), TokenBatch.from_rows([{"input_ids": range(10, 10 + size)}], VOCABULARY))
            for size in (length, length + 1)
        ]
        assert widths[0].input_ids.shape[1] <= room < widths[1].input_ids.shape[1]
        assert widths[0].labels.shape[1] == targets
    with pytest.raises(ValueError, match="rows for span corruption have 3 tokens or more: .* got 2"):
        noise.raw_length(2)


def test_span_corruption_equals_its_twin():
    lengths = [568, 200, 31, 9, 3, 2]
    batch, noise = batch_of(lengths, stops=0), SpanCorruption()
    mask = noise.noise_mask(generator(5), np.array(lengths))
    noisy = noise(generator(5), batch)
    for number, old in enumerate(rows_of(batch)):
        text = old[1:-1]
        hidden = mask[number, : len(text)].tolist()
        assert not hidden[0]
        assert hidden[-1]
        twin = naive.corrupted(text, hidden, SENTINELS, EOS)
        labels = noisy.labels[number][noisy.labels[number] != -100].tolist()
        assert (rows_of(noisy)[number], labels) == twin
        assert naive.restored(*twin, SENTINELS) == text
        assert (noisy.input_ids[number, noisy.lengths[number] :] == PAD).all()


def test_compositions_are_equally_likely():
    parts = composition(generator(0), np.full(6000, 5), np.full(6000, 3))
    counts = Counter(map(tuple, parts.tolist()))
    assert len(counts) == 6
    assert max(abs(count - 1000) for count in counts.values()) < 130
    ragged = composition(generator(0), np.array([5, 1, 9]), np.array([2, 1, 9]))
    assert ragged.sum(1).tolist() == [5, 1, 9]
    assert (ragged > 0).sum(1).tolist() == [2, 1, 9]


def test_mass():
    batch, noise = batch_of([100] * 64), MassFragment()
    starts = []
    for step in range(40):
        noisy = noise(generator(0, step=step), batch)
        assert noisy.labels.shape == (64, 50)
        places = noisy.decoder_position_ids
        assert (np.diff(places) == 1).all()
        assert np.array_equal(np.take_along_axis(batch.input_ids, places, 1), noisy.decoder_input_ids)
        assert np.array_equal(np.take_along_axis(batch.input_ids, places + 1, 1), noisy.labels)
        outside = np.ones(batch.input_ids.shape, bool)
        np.put_along_axis(outside, places + 1, False, 1)
        assert np.array_equal(noisy.input_ids[outside], batch.input_ids[outside])
        starts += (places[:, 0] + 1).tolist()
    shares = np.bincount(starts, minlength=52) / len(starts)
    assert shares[1] == pytest.approx(0.2 + 0.6 / 51, abs=0.03)
    assert shares[51] == pytest.approx(0.2 + 0.6 / 51, abs=0.03)
    assert shares[2:51].sum() == pytest.approx(0.6 * 49 / 51, abs=0.04)


def test_mass_at_both_ends():
    # One token is a masked language model, all tokens a language model.
    batch = batch_of([20, 9, 1])
    one = MassFragment(rate=0.0, replacement=Replacement(1.0, 0.0))(generator(0), batch)
    assert one.labels.shape == (3, 1)
    assert (one.input_ids == MASK).sum(1).tolist() == [1, 1, 1]
    every = MassFragment(rate=1.0, replacement=Replacement(1.0, 0.0))(generator(0), batch)
    for number, old in enumerate(rows_of(batch)):
        count = len(old) - 2
        assert every.labels[number].tolist() == old[1:-1] + [-100] * (20 - count)
        assert every.decoder_input_ids[number, :count].tolist() == old[:-2]
    bare = TokenBatch.from_rows([{"input_ids": [10, 11, 12]}], VOCABULARY)
    assert MassFragment(rate=1.0)(generator(0), bare).labels.tolist() == [[11, 12]]


WRONG = [
    (lambda: TokenDeletion(1.5), "rate must lie between 0 and 1, got 1.5"),
    (lambda: TextInfilling(mean=0), "mean must be above 0"),
    (lambda: TextInfilling(rate=-1), "rate must lie between 0 and 1"),
    (lambda: SpanCorruption(density=1.0), "density must lie between 0 and 1"),
    (lambda: SpanCorruption(mean=0.5), "mean must be 1 or more"),
    (lambda: MassFragment(begin=0.7, end=0.7), "must not exceed 1 together"),
    (lambda: ReplacedTokenNoise(replacement=Replacement()), "replaced tokens must not be masks"),
]


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_wrong_options(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_what_a_tokenizer_or_a_row_lacks():
    rows = [{"input_ids": [10, 11, 12]}]
    batch = TokenBatch.from_rows(rows, Vocabulary(SIZE))
    with pytest.raises(ValueError, match="masking needs a mask token"):
        TextInfilling()(generator(0), batch)
    with pytest.raises(ValueError, match="needs a column 'word_ids'"):
        TextInfilling(whole_words=True)(generator(0), TokenBatch.from_rows(rows, VOCABULARY))
    with pytest.raises(ValueError, match="span corruption needs sentinels"):
        SpanCorruption()(generator(0), batch)
    with pytest.raises(ValueError, match="where sentences end: give `end_ids`"):
        SentencePermutation()(generator(0), batch)
    few = Vocabulary(SIZE, (0,), eos_id=EOS, sentinel_ids=SENTINELS[:1])
    with pytest.raises(ValueError, match="needed 5 sentinels, but the tokenizer has 1"):
        SpanCorruption()(generator(0), TokenBatch.from_rows([{"input_ids": range(10, 110)}], few))
    for noise, words in (
        (SpanCorruption(), "needs 2: leave such rows out"),
        (MassFragment(), "row 0 of the batch"),
    ):
        with pytest.raises(ValueError, match=words):
            noise(generator(0), TokenBatch.from_rows([{"input_ids": [BOS, EOS]}], VOCABULARY))
    assert TokenMasking()(generator(0), batch).sum() == 1


def test_labels_and_columns_move_with_their_tokens():
    # Masks hide tokens first; then the rest loses and moves tokens, and each label must stay with its mask.
    row = {"input_ids": [BOS, *range(10, 110), EOS], "entity_ids": [-1, *range(100), -1]}
    batch = TokenBatch.from_rows([row] * 8, VOCABULARY, columns=("entity_ids",))
    chain = Compose(
        (Masking(replacement=Replacement(0.0, 0.0)), TokenDeletion(), TextInfilling(), DocumentRotation())
    )
    noisy = chain(generator(0), batch)
    ids, real = noisy.input_ids, noisy.maskable
    assert np.array_equal(noisy.columns["entity_ids"][real], ids[real] - 10)
    assert (noisy.labels[real] == -100).all()
    labelled = noisy.labels != -100
    assert labelled.any()
    plain = labelled & (ids != MASK)
    assert np.array_equal(noisy.labels[plain], ids[plain])
