"""Masking strategies: exact budgets, distributions of the originals, and equality with slow twins."""

from collections import Counter

import numpy as np
import pytest
from reference import masking_naive as naive
from scipy.stats import chisquare

from heirloom.objectives.masking import (
    Budget,
    Chance,
    KnowledgeMasking,
    NgramMasking,
    Replacement,
    SpanMasking,
    TokenMasking,
    TrigramShuffle,
    WholeWordMasking,
    add_spans,
    greedy_ngrams,
    greedy_words,
)
from heirloom.objectives.token_batch import TokenBatch, Vocabulary, generator
from heirloom.objectives.word_runs import WordRuns, runs

PAD, CLS, SEP, MASK, SIZE = 0, 1, 2, 3, 1000
VOCABULARY = Vocabulary(SIZE, (PAD, CLS, SEP, MASK), PAD, MASK, SEP)


def rows_of(lengths, new_word: float = 0.77, seed: int = 0) -> list[dict]:
    """Rows `[CLS] .. [SEP]` of these lengths in all, with words of 1 / `new_word` tokens on average."""
    rng, rows = np.random.default_rng(seed), []
    for length in lengths:
        ids = rng.integers(4, SIZE, length)
        words = np.cumsum(rng.random(length) < new_word)
        ids[0], ids[-1], words[0], words[-1] = CLS, SEP, -1, -1
        rows.append({"input_ids": ids, "word_ids": words})
    return rows


def batch_of(lengths, new_word: float = 0.77, seed: int = 0) -> TokenBatch:
    return TokenBatch.from_rows(rows_of(lengths, new_word, seed), VOCABULARY)


RAGGED = [512, 300, 128, 40, 17, 9, 5, 3]
STRATEGIES = [
    TokenMasking(),
    TokenMasking(Chance()),
    WholeWordMasking(),
    WholeWordMasking(Chance()),
    NgramMasking(),
    NgramMasking(max_n=5, unit="token"),
    SpanMasking(),
    KnowledgeMasking(columns=()),
    KnowledgeMasking(columns=(), basic="word", budget=Budget()),
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_never_special_always_a_target_and_deterministic(strategy):
    batch = batch_of(RAGGED)
    before = batch.input_ids.copy()
    for step in range(20):
        mask = strategy(generator(3, step=step), batch)
        assert mask.dtype == bool
        assert mask.any(1).all()
        assert not (mask & ~batch.maskable).any()
        assert np.array_equal(mask, strategy(generator(3, step=step), batch))
        assert not np.array_equal(mask, strategy(generator(3, epoch=1, step=step), batch))
    assert np.array_equal(batch.input_ids, before)


def test_the_numbers_of_a_generator_all_count():
    draws = [generator(*(int(i == j) for j in range(5))).random() for i in range(6)]
    assert len(set(draws)) == 6
    with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
        generator(0, step=-1)


def test_token_budget_is_that_of_bert():
    batch = batch_of(RAGGED)
    expected = [min(max(1, round(0.15 * n)), n - 2) for n in RAGGED]
    for step in range(20):
        assert TokenMasking()(generator(0, step=step), batch).sum(1).tolist() == expected
    most = TokenMasking(Budget(most=20))(generator(0), batch).sum(1)
    assert most.tolist() == [min(20, n) for n in expected]
    random = [TokenMasking(Budget(rounding="random"))(generator(0, step=s), batch).sum(1) for s in range(400)]
    assert set(np.ptp(random, axis=0)) <= {0, 1}
    assert np.mean(random, axis=0)[:4] == pytest.approx([0.15 * n for n in RAGGED[:4]], abs=0.1)


def test_each_token_is_as_likely():
    batch = batch_of([42] * 8)
    counts = sum(TokenMasking()(generator(0, step=step), batch).sum(0) for step in range(500))
    assert chisquare(counts[1:-1]).pvalue > 1e-3


def test_chance_has_no_budget():
    batch = batch_of([512] * 32)
    for strategy in (TokenMasking(Chance()), WholeWordMasking(Chance()), KnowledgeMasking(columns=())):
        counts = np.concatenate([strategy(generator(0, step=step), batch).sum(1) for step in range(20)])
        assert counts.mean() / 510 == pytest.approx(0.15, abs=0.005)
        assert counts.std() > 5


def test_whole_words_fill_the_budget_and_hang_together():
    batch = batch_of([512] * 32)
    words = WordRuns.of(batch.word_ids, batch.maskable)
    mask = WholeWordMasking()(generator(0), batch)
    assert set(mask.sum(1)) == {77}
    inside = np.zeros((32, words.start.shape[1] + 1), int)
    np.add.at(inside, (np.arange(32)[:, None], words.index), mask)
    assert set(np.unique(inside[:, :-1][words.there] / words.size[words.there])) == {0.0, 1.0}


def assert_rows(mask, twin, batch, *arrays):
    """Whether each row equals its twin, which gets the words and one row of each array."""
    for number, row in enumerate(mask):
        words = naive.words_of(batch.word_ids[number], batch.maskable[number])
        assert set(np.flatnonzero(row).tolist()) == twin(words, *(array[number] for array in arrays))


@pytest.mark.parametrize("new_word", [1.0, 0.77, 0.4, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_twins(new_word, seed):
    batch = batch_of([*RAGGED, 60, 61, 62, 63], new_word, seed)
    batch.word_ids[8:, 30] = -1  # two segments
    batch.maskable[8:, 30] = False
    words, rng = WordRuns.of(batch.word_ids, batch.maskable), generator(seed)
    counts = Budget().counts(rng, batch, words.inside)
    keys = rng.random(words.size.shape)
    assert_rows(words.tokens(greedy_words(words, keys, counts)), naive.whole_words, batch, keys, counts)
    sizes = rng.integers(1, 4, words.size.shape)
    mask = words.tokens(greedy_ngrams(words, keys, sizes, counts))
    assert_rows(mask, naive.ngrams, batch, keys, sizes, counts)
    anchors, sizes = rng.random((len(counts), 70)), rng.integers(1, 11, (len(counts), 70))
    mask, left = np.zeros(batch.input_ids.shape, bool), counts
    for part in (slice(0, 3), slice(3, 40), slice(40, 70)):
        mask, left = add_spans(words, anchors[:, part], sizes[:, part], mask, left)
    assert np.array_equal(mask.sum(1) + left, counts)
    assert_rows(mask, naive.spans, batch, anchors, sizes, counts)


def test_one_token_words_are_masked_like_tokens():
    batch = batch_of([130] * 64, new_word=1.0)
    mask = np.concatenate([WholeWordMasking()(generator(0, step=step), batch) for step in range(50)])
    assert set(mask.sum(1)) == {20}
    assert chisquare(mask.sum(0)[1:-1]).pvalue > 1e-3


def test_a_word_that_exceeds_the_budget_is_taken_if_there_is_no_other():
    batch = TokenBatch.from_rows(
        [{"input_ids": [CLS, 7, 8, 9, 7, 8, SEP], "word_ids": [-1, 0, 0, 0, 1, 1, -1]}], VOCABULARY
    )
    for strategy in (WholeWordMasking(), NgramMasking()):
        assert strategy(generator(0), batch)[0].tolist() == [False] * 4 + [True] * 2 + [False]


def test_ngrams_of_albert():
    assert NgramMasking().pmf() == pytest.approx([6 / 11, 3 / 11, 2 / 11])
    assert NgramMasking(max_n=5).pmf() == pytest.approx(1 / np.arange(1, 6) / 2.28333, abs=1e-5)
    batch = batch_of([512] * 32, new_word=1.0)
    sizes = []
    for step in range(10):
        mask = NgramMasking()(generator(0, step=step), batch)
        assert set(mask.sum(1)) == {77}
        sizes.append(77 / (runs(mask).max(1) + 1))
    assert np.mean(sizes) == pytest.approx(1.75, abs=0.1)
    unilm = NgramMasking(probabilities=(0.8, 0.1, 0.1))
    assert set(unilm(generator(0), batch).sum(1)) == {77}


def test_spans_of_spanbert():
    strategy = SpanMasking()
    expected = [0.2241, 0.1792, 0.1434, 0.1147, 0.0918, 0.0734, 0.0587, 0.0470, 0.0376, 0.0301]
    assert strategy.pmf() == pytest.approx(expected, abs=1e-4)
    assert strategy.pmf() @ np.arange(1, 11) == pytest.approx(3.797, abs=1e-3)
    batch = batch_of([512] * 32, new_word=1 / 1.08)
    words, number = [], []
    index = WordRuns.of(batch.word_ids, batch.maskable).index
    for step in range(10):
        mask = strategy(generator(0, step=step), batch)
        assert set(mask.sum(1)) == {77}
        for row in range(32):
            spans = runs(mask)[row][mask[row]]
            number.append(spans.max() + 1)
            words += Counter(np.unique(np.stack([spans, index[row][mask[row]]]), axis=1)[0]).values()
    assert np.mean(number) == pytest.approx(18.5, abs=0.7)
    assert 3.7 < np.mean(words) < 4.0
    ragged = batch_of(RAGGED)
    assert strategy(generator(0), ragged).sum(1).tolist() == [int(np.ceil(0.15 * (n - 2))) for n in RAGGED]
    assert SpanMasking(budget=Budget(rate=1.0))(generator(0), ragged).sum() == ragged.maskable.sum()


def test_lengths_of_spans_are_geometric():
    # One span in a long row: nothing meets, nothing is cut.
    strategy = SpanMasking(budget=Budget(rate=0.2))
    batch = batch_of([52] * 2000, new_word=1.0)
    mask = strategy(generator(0), batch)
    assert set(mask.sum(1)) == {10}
    from heirloom.objectives.masking import lengths_from

    drawn = lengths_from(strategy.pmf(), generator(1).random(20000))
    assert chisquare(np.bincount(drawn, minlength=11)[1:], strategy.pmf() * 20000).pvalue > 1e-3


def test_entities_come_before_phrases():
    row = {
        "input_ids": [CLS, *range(10, 20), SEP],
        "phrase_ids": [-1, 0, 0, 0, 0, -1, -1, 1, 1, -1, -1, -1],
        "entity_ids": [-1, -1, 0, 0, -1, -1, -1, -1, -1, 1, 1, -1],
    }
    batch = TokenBatch.from_rows([row] * 200, VOCABULARY, columns=("phrase_ids", "entity_ids"))
    units = [[1], [2, 3], [4], [5], [6], [7, 8], [9, 10]]
    masks = np.concatenate([KnowledgeMasking()(generator(0, step=step), batch) for step in range(50)])
    for unit in units:
        assert set(masks[:, unit].sum(1)) == {0, len(unit)}
    assert not masks[:, [0, 11]].any()
    alone = masks.sum(1) == 0
    assert not alone.any()
    phrases = KnowledgeMasking(columns=("phrase_ids",))(generator(0), batch)
    assert set(phrases[:, 1:5].sum(1)) == {0, 4}


@pytest.mark.parametrize("per", ["token", "span"])
def test_replacement_shares(per):
    batch, seen = batch_of([512] * 32), Counter()
    for step in range(25):
        rng = generator(0, step=step)
        mask = SpanMasking()(rng, batch)
        done = Replacement(per=per)(rng, batch, mask)
        assert np.array_equal(done.labels != -100, mask)
        assert np.array_equal(done.labels[mask], batch.input_ids[mask])
        assert np.array_equal(done.input_ids[~mask], batch.input_ids[~mask])
        kind = np.where(done.input_ids == MASK, 0, np.where(done.input_ids == batch.input_ids, 2, 1))
        seen.update(kind[mask].tolist())
        if per == "span":
            same = [len(set(kind[row][mask[row] & (runs(mask)[row] == 0)])) for row in range(32)]
            assert np.mean(np.array(same) == 1) > 0.9
    total = sum(seen.values())
    assert [seen[kind] / total for kind in range(3)] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_random_tokens():
    batch = batch_of([512] * 32)
    everywhere = TokenMasking(Budget(rate=1.0))(generator(0), batch)
    everything = Replacement(0.0, 1.0)(generator(0), batch, everywhere).input_ids[everywhere]
    assert chisquare(np.bincount(everything, minlength=SIZE)).pvalue > 1e-3
    ordinary = Replacement(0.0, 1.0, draw_from="ordinary")(generator(0), batch, everywhere).input_ids[
        everywhere
    ]
    assert ordinary.min() == 4
    counts = np.zeros(SIZE)
    counts[[5, 9]] = 1, 3
    drawn = Replacement(0.0, 1.0, counts=counts)(generator(0), batch, everywhere).input_ids[everywhere]
    assert set(drawn) == {5, 9}
    assert np.mean(drawn == 9) == pytest.approx(0.75, abs=0.02)


def test_electra_has_no_random_tokens():
    batch = batch_of([512] * 32)
    mask = TokenMasking()(generator(0), batch)
    done = Replacement(0.85, 0.0)(generator(0), batch, mask)
    assert np.isin(done.input_ids[mask], [MASK]).mean() == pytest.approx(0.85, abs=0.02)
    assert ((done.input_ids == MASK) | (done.input_ids == batch.input_ids)).all()


def test_trigrams_of_structbert():
    batch = batch_of([512] * 32)
    same = windows = free = 0
    for step in range(40):
        rng = generator(0, step=step)
        masked = Replacement()(rng, batch, TokenMasking()(rng, batch))
        done = TrigramShuffle()(rng, masked)
        new = (done.labels != -100) & (masked.labels == -100)
        assert np.array_equal(done.labels[~new], masked.labels[~new])
        assert np.array_equal(done.input_ids[~new], masked.input_ids[~new])
        assert np.array_equal(done.labels[new], batch.input_ids[new])
        assert not (new & ~batch.maskable).any()
        targets, inputs = done.labels[new].reshape(-1, 3), done.input_ids[new].reshape(-1, 3)
        assert np.array_equal(np.sort(targets), np.sort(inputs))
        same, windows = same + (targets == inputs).all(1).sum(), windows + len(targets)
        free += (masked.maskable.sum(1) / 3).sum()
    assert same / windows == pytest.approx(1 / 6, abs=0.02)
    assert 0.6 * 0.05 < windows / free < 0.05  # only windows without a masked token
    alone = TrigramShuffle(rate=1.0)(generator(0), batch)
    assert (alone.labels != -100).sum(1).min() > 500


WRONG = [
    (lambda: Budget(rate=15), "rate must lie between 0 and 1, got 15; 15 per cent are 0.15"),
    (lambda: Budget(rounding="down"), "rounding must be"),
    (lambda: Budget(of="words"), "of must be"),
    (lambda: Budget(most=0), "most must be 1 or more"),
    (lambda: Chance(-0.1), "rate must lie between 0 and 1"),
    (lambda: NgramMasking(max_n=0), "max_n must be 1 or more"),
    (lambda: NgramMasking(probabilities=(0.5, 0.5)), "expected 3 probabilities"),
    (lambda: NgramMasking(unit="letter"), "unit must be"),
    (lambda: SpanMasking(geometric=0), "geometric must lie between 0 and 1"),
    (lambda: SpanMasking(max_length=0), "max_length must be 1 or more"),
    (lambda: Replacement(0.8, 0.3), "must not exceed 1 together"),
    (lambda: Replacement(per="word"), "per must be"),
    (lambda: Replacement(draw_from="some"), "draw_from must be"),
    (lambda: KnowledgeMasking(basic="letter"), "basic must be"),
    (lambda: TrigramShuffle(size=1), "size must be 2 or more"),
]


@pytest.mark.parametrize(("make", "words"), WRONG)
def test_wrong_options(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_missing_columns_and_masks():
    rows = [{"input_ids": [CLS, 7, 8, SEP]}]
    batch = TokenBatch.from_rows(rows, VOCABULARY)
    for strategy in (WholeWordMasking(), NgramMasking(), SpanMasking()):
        with pytest.raises(ValueError, match="needs a column 'word_ids' in the data set: make it with"):
            strategy(generator(0), batch)
    with pytest.raises(ValueError, match="'entity_ids'"):
        KnowledgeMasking()(generator(0), batch)
    bare = TokenBatch.from_rows(rows, Vocabulary(SIZE, (PAD, CLS, SEP)))
    with pytest.raises(ValueError, match="the tokenizer has none: choose a tokenizer with a mask token"):
        Replacement()(generator(0), bare, TokenMasking()(generator(0), bare))
    with pytest.raises(ValueError, match="expected counts of 1000 ids"):
        Replacement(0.0, 1.0, counts=[1.0])(generator(0), batch, batch.maskable)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
def test_rows_of_special_tokens_only(strategy):
    rows = [*rows_of([9]), {"input_ids": [CLS, SEP], "word_ids": [-1, -1]}]
    with pytest.raises(ValueError, match="row 1 of the batch has no token that can be masked"):
        strategy(generator(0), TokenBatch.from_rows(rows, VOCABULARY))


def test_batches_of_rows():
    rows = [
        {"input_ids": [CLS, 7, MASK, SEP], "special_tokens_mask": [1, 0, 0, 1]},
        {"input_ids": [CLS, 8], "special_tokens_mask": [1, 1]},
    ]
    batch = TokenBatch.from_rows(rows, VOCABULARY, pad_to_multiple_of=8)
    assert batch.input_ids.tolist() == [[CLS, 7, MASK, SEP, 0, 0, 0, 0], [CLS, 8, 0, 0, 0, 0, 0, 0]]
    assert batch.maskable.sum() == 1
    assert batch.body.sum() == 2
    assert batch.attention_mask.sum(1).tolist() == [4, 2]
    with pytest.raises(ValueError, match="expected ids from 0 to 999, got 1000"):
        TokenBatch.from_rows([{"input_ids": [1000]}], VOCABULARY)
    with pytest.raises(ValueError, match="at least one token"):
        TokenBatch.from_rows([{"input_ids": []}], VOCABULARY)
    with pytest.raises(KeyError, match="expected a column 'entity_ids'"):
        TokenBatch.from_rows(rows, VOCABULARY, columns=("entity_ids",))
