"""Which tokens a model must guess, and what stands in their place.

A strategy reads a `TokenBatch` and returns the chosen places as one array (B, L) of booleans; `Replacement` hides them
and makes the labels. Defaults are those of the originals: BERT (Devlin et al. 2019, section 3.1), BERT-wwm, ALBERT (Lan
et al. 2020, section 4), SpanBERT (Joshi et al. 2020, section 3.1), ERNIE 1.0 (Sun et al. 2019, section 3.2), StructBERT
(Wang et al. 2020, section 2.2).

Every row has at least one target: without any, the loss of a batch is not a number. So where the originals choose
nothing, since no word fits into the budget, the shortest word is taken whole.

Letters: B rows, L positions, W words of the longest row, T proposals, N longest n-gram.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from .replacement import Replacement, TrigramShuffle
from .token_batch import NOWHERE, TokenBatch, check_rate
from .word_runs import LAST, WordRuns, smallest

__all__ = [
    "Budget",
    "Chance",
    "KnowledgeMasking",
    "MaskingStrategy",
    "NgramMasking",
    "Replacement",
    "SpanMasking",
    "TokenMasking",
    "TrigramShuffle",
    "WholeWordMasking",
]


class MaskingStrategy(Protocol):
    """Chooses places (B, L) of a batch."""

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> np.ndarray:
        """Choose places (B, L), at least one of each row."""
        ...


@dataclass(frozen=True)
class Budget:
    """How many tokens of each row are chosen, exactly.

    Args:
        rate: their share.
        rounding: "nearest" as BERT, "up" as SpanBERT, or "random" as RoBERTa: int(rate * n + U[0, 1)).
        of: what n counts: all tokens of the row with the special ones, as BERT, or only "maskable" ones, as SpanBERT.
        most: never more than these, `max_predictions_per_seq` of BERT.
    """

    rate: float = 0.15
    rounding: Literal["nearest", "up", "random"] = "nearest"
    of: Literal["row", "maskable"] = "row"
    most: int | None = None

    def __post_init__(self):
        check_rate("rate", self.rate)
        if self.rounding not in ("nearest", "up", "random"):
            raise ValueError(f'rounding must be "nearest", "up" or "random", got {self.rounding!r}')
        if self.of not in ("row", "maskable"):
            raise ValueError(f'of must be "row" or "maskable", got {self.of!r}')
        if self.most is not None and self.most < 1:
            raise ValueError(f"most must be 1 or more, got {self.most}")

    def counts(self, rng: np.random.Generator, batch: TokenBatch, maskable: np.ndarray) -> np.ndarray:
        """How many of `maskable` (B, L) to choose (B,): at least one and no more than there are.

        Raises:
            ValueError: a row without any.
        """
        available = check_rows(maskable)
        wanted = self.rate * (batch.lengths if self.of == "row" else available)
        if self.rounding == "random":
            wanted = np.floor(wanted + rng.random(len(wanted)))
        else:
            wanted = np.rint(wanted) if self.rounding == "nearest" else np.ceil(wanted)
        most = available if self.most is None else np.minimum(available, self.most)
        return np.minimum(np.maximum(wanted.astype(np.int64), 1), most)


@dataclass(frozen=True)
class Chance:
    """Each token or word is chosen on its own, so that the number varies from row to row.

    Args:
        rate: how likely.
    """

    rate: float = 0.15

    def __post_init__(self):
        check_rate("rate", self.rate)

    def chosen(self, rng: np.random.Generator, there: np.ndarray) -> np.ndarray:
        """Choose among what is `there` (B, M), at least one of each row."""
        keys = np.where(there, rng.random(there.shape), LAST)
        found = keys < self.rate
        empty = np.flatnonzero(~found.any(1))
        found[empty, keys[empty].argmin(1)] = True
        return found


def check_rows(maskable: np.ndarray) -> np.ndarray:
    """Count the maskable tokens of each row (B,).

    Raises:
        ValueError: a row without any.
    """
    available = maskable.sum(1)
    if not available.all():
        raise ValueError(
            f"row {int(available.argmin())} of the batch has no token that can be masked, only special tokens, padding "
            "or tokens without a word: leave such rows out of the data set"
        )
    return available


@dataclass(frozen=True)
class TokenMasking:
    """Single tokens, as BERT and RoBERTa.

    Args:
        budget: how many.
    """

    budget: Budget | Chance = Budget()

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> np.ndarray:
        """Choose places (B, L)."""
        if isinstance(self.budget, Chance):
            check_rows(batch.maskable)
            return self.budget.chosen(rng, batch.maskable)
        counts = self.budget.counts(rng, batch, batch.maskable)
        return smallest(np.where(batch.maskable, rng.random(batch.maskable.shape), LAST), counts)


def greedy_words(words: WordRuns, keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Walk over words by their `keys` (B, W) and take each that fits into what is left of `counts` (B,) tokens.

    All words up to the first that does not fit are taken at once; there are about as many rounds as a word has tokens.

    Returns:
        Taken words (B, W).
    """
    order = np.argsort(np.where(words.there, keys, LAST), axis=1)
    sizes = np.take_along_axis(words.size, order, 1)
    left, taken = counts.copy(), np.zeros(sizes.shape, bool)
    some = int(counts.max())  # words that nearly always suffice
    for part in (slice(0, some), slice(some, None)):
        size = sizes[:, part]
        waiting = size > 0
        while left.any():
            waiting &= size <= left[:, None]
            now = waiting & (np.cumsum(np.where(waiting, size, 0), axis=1) <= left[:, None])
            if not now.any():
                break
            taken[:, part] |= now
            waiting &= ~now
            left -= np.where(now, size, 0).sum(1)
    found = np.zeros_like(taken)
    np.put_along_axis(found, order, taken, 1)
    return at_least_one(words, found)


def at_least_one(words: WordRuns, taken: np.ndarray) -> np.ndarray:
    """Take the shortest word where a row has none."""
    empty = np.flatnonzero(~taken.any(1))
    if len(empty):
        sizes = np.where(words.there[empty], words.size[empty], np.iinfo(np.int64).max)
        taken[empty, sizes.argmin(1)] = True
    return taken


def choose_words(
    rng: np.random.Generator, batch: TokenBatch, ids: np.ndarray, budget: Budget | Chance
) -> np.ndarray:
    """Choose whole runs of equal `ids` (B, L)."""
    words = WordRuns.of(ids, batch.maskable)
    check_rows(words.inside)
    if isinstance(budget, Chance):
        return words.tokens(budget.chosen(rng, words.there))
    counts = budget.counts(rng, batch, words.inside)
    return words.tokens(greedy_words(words, rng.random(words.size.shape), counts))


@dataclass(frozen=True)
class WholeWordMasking:
    """All tokens of a word or none, as BERT-wwm: words in random order, skipping those that exceed the budget.

    Args:
        budget: how many tokens; with `Chance`, how likely a word.
    """

    budget: Budget | Chance = Budget()

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> np.ndarray:
        """Choose places (B, L). Needs `word_ids`."""
        return choose_words(rng, batch, batch.column("word_ids"), self.budget)


@dataclass(frozen=True)
class KnowledgeMasking:
    """Words, phrases or entities, as ERNIE 1.0: each unit with its own chance.

    A token in several units belongs to the first of `columns` that has it, so entities come before phrases. Tokens
    outside are units by themselves. The three stages of the paper are `columns=()`, `("phrase_ids",)` and
    `("entity_ids", "phrase_ids")`.

    Args:
        columns: whose runs of equal numbers are units.
        basic: what a unit outside of these is, a "token" or a "word".
        budget: ERNIE's is no budget but a chance for each unit.
    """

    columns: tuple[str, ...] = ("entity_ids", "phrase_ids")
    basic: Literal["token", "word"] = "token"
    budget: Budget | Chance = Chance()

    def __post_init__(self):
        if self.basic not in ("token", "word"):
            raise ValueError(f'basic must be "token" or "word", got {self.basic!r}')

    def units(self, batch: TokenBatch) -> np.ndarray:
        """The number of each token's unit (B, L)."""
        width = batch.input_ids.shape[1]
        places = np.broadcast_to(np.arange(width), batch.input_ids.shape)
        found = [batch.column(name) for name in self.columns]
        found.append(batch.column("word_ids") if self.basic == "word" else places)
        step = 1 + max(int(ids.max()) for ids in found)
        units = np.full(batch.input_ids.shape, NOWHERE, np.int64)
        for level, ids in enumerate(found):
            units = np.where((units < 0) & (ids >= 0), ids + level * step, units)
        return units

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> np.ndarray:
        """Choose places (B, L)."""
        return choose_words(rng, batch, self.units(batch), self.budget)


def lengths_from(probabilities: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Lengths from 1 on with these probabilities, of uniform random numbers of any shape."""
    edges = np.cumsum(probabilities)[:-1]
    return np.searchsorted(edges, uniform, side="right") + 1


@dataclass(frozen=True)
class NgramMasking:
    """N-grams of whole words that do not overlap, the shorter the likelier: p(n) ~ 1 / n, as ALBERT.

    N-grams begin at words in random order. One that exceeds the budget is cut to the words that fit; one that then
    meets a chosen word is left out. None crosses a special token, where ALBERT's may.

    Args:
        max_n: longest n-gram: 3 for ALBERT, 5 for XLNet.
        unit: what n counts: "word" or "token".
        probabilities: of 1 to `max_n`, for others than 1 / n: (0.8, 0.1, 0.1) for UniLM.
        budget: how many tokens.
    """

    max_n: int = 3
    unit: Literal["word", "token"] = "word"
    probabilities: tuple[float, ...] | None = None
    budget: Budget = Budget()

    def __post_init__(self):
        if self.max_n < 1:
            raise ValueError(f"max_n must be 1 or more, got {self.max_n}")
        if self.unit not in ("word", "token"):
            raise ValueError(f'unit must be "word" or "token", got {self.unit!r}')
        given = self.probabilities
        if given is not None and (len(given) != self.max_n or min(given) < 0 or abs(sum(given) - 1) > 1e-6):
            raise ValueError(f"expected {self.max_n} probabilities (max_n) that add up to 1, got {given}")

    def pmf(self) -> np.ndarray:
        """The probabilities of 1 to `max_n`."""
        if self.probabilities is not None:
            return np.array(self.probabilities)
        weights = 1 / np.arange(1, self.max_n + 1)
        return weights / weights.sum()

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> np.ndarray:
        """Choose places (B, L). Needs `word_ids` if `unit` is "word"."""
        places = np.broadcast_to(np.arange(batch.input_ids.shape[1]), batch.input_ids.shape)
        ids = batch.column("word_ids") if self.unit == "word" else places
        words = WordRuns.of(ids, batch.maskable)
        counts = self.budget.counts(rng, batch, words.inside)
        keys = rng.random(words.size.shape)
        sizes = lengths_from(self.pmf(), rng.random(words.size.shape))
        return words.tokens(greedy_ngrams(words, keys, sizes, counts))


def greedy_ngrams(words: WordRuns, keys: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Walk over words by their `keys` (B, W); take the n-gram of `sizes` (B, W) words that begins there, if it is free.

    Most n-grams are settled at once, from a table of which meets which; where the budget cuts, one after the other.

    Returns:
        Taken words (B, W).
    """
    rows, width = np.arange(len(keys))[:, None], keys.shape[1]
    order = np.argsort(np.where(words.there, keys, LAST), axis=1)
    some = min(width, int(counts.max()))
    first = order[:, :some]
    stop = np.minimum(words.limit[rows, first], first + sizes[rows, first])
    meets = (first[:, :, None] < stop[:, None]) & (first[:, None] < stop[:, :, None])
    taken = settled(meets & np.tri(some, k=-1, dtype=bool), words.there[rows, first])
    tokens = words.total[rows, stop] - words.total[rows, first]
    used = np.where(taken, tokens, 0)
    # Up to the first that exceeds what is left, taken or not: cut, it may be free.
    fits = np.logical_and.accumulate(np.cumsum(used, axis=1) - used + tokens <= counts[:, None], axis=1)
    covered = cover(first, np.where(taken & fits, stop, first), width)
    left, seen = counts - np.where(fits, used, 0).sum(1), fits.sum(1)  # the first proposal that is still open
    lengths = np.arange(1, int(sizes.max()) + 1)
    going = np.flatnonzero((left > 0) & (seen < words.count))
    while len(going):
        begin = order[going, seen[going]][:, None]
        limit = np.minimum(words.limit[going[:, None], begin], begin + sizes[going[:, None], begin])
        ends = np.minimum(begin + lengths, limit)  # (b, N), of n-grams of each length
        tokens = words.total[going[:, None], ends] - words.total[going[:, None], begin]
        fits = tokens <= left[going][:, None]
        places = begin + lengths - 1
        fits &= places < limit
        places = np.minimum(places, width - 1)
        free = ~(covered[going[:, None], places] & fits).any(1)
        fits &= free[:, None]
        row, n = np.nonzero(fits)
        covered[going[row], places[row, n]] = True
        left[going] -= np.where(fits, tokens, 0).max(1)
        seen[going] += 1
        going = going[(left[going] > 0) & (seen[going] < words.count[going])]
    return at_least_one(words, covered)


def settled(blocks: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which proposals (B, T) stand if each is refused that an earlier standing one blocks.

    Args:
        blocks: (B, T, T), whether the second, earlier one would block the first.
        there: (B, T), which are proposals at all.
    """
    standing = there
    while True:  # after n rounds the first n are right, and nearly always all after a few
        again = there & ~(blocks & standing[:, None]).any(2)
        if (again == standing).all():
            return again
        standing = again


def cover(first: np.ndarray, stop: np.ndarray, width: int) -> np.ndarray:
    """The places (B, `width`) in any of the intervals from `first` up to before `stop`, both (B, T)."""
    base = np.arange(len(first))[:, None] * (width + 1)
    size = len(first) * (width + 1)
    change = np.bincount((first + base).ravel(), minlength=size) - np.bincount(
        (stop + base).ravel(), minlength=size
    )
    return np.cumsum(change.reshape(len(first), width + 1), axis=1)[:, :width] > 0


@dataclass(frozen=True)
class SpanMasking:
    """Spans of whole words with geometric lengths, as SpanBERT.

    A span begins at the word of a random token that is not chosen yet. Spans may overlap and touch, and the last one is
    cut where the budget ends. Lengths beyond `max_length` are never drawn: the others share their probability. Use
    with `Replacement(per="span")`.

    Args:
        geometric: p of the geometric distribution.
        max_length: most words of a span.
        budget: how many tokens.
    """

    geometric: float = 0.2
    max_length: int = 10
    budget: Budget = Budget(rounding="up", of="maskable")

    def __post_init__(self):
        if not 0 < self.geometric < 1:
            raise ValueError(f"geometric must lie between 0 and 1, got {self.geometric}")
        if self.max_length < 1:
            raise ValueError(f"max_length must be 1 or more, got {self.max_length}")

    def pmf(self) -> np.ndarray:
        """The probabilities of 1 to `max_length` words."""
        weights = (1 - self.geometric) ** np.arange(self.max_length)
        return weights / weights.sum()

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> np.ndarray:
        """Choose places (B, L). Needs `word_ids`."""
        words = WordRuns.of(batch.column("word_ids"), batch.maskable)
        counts = self.budget.counts(rng, batch, words.inside)
        mask, left = np.zeros(batch.input_ids.shape, bool), counts
        tries = 8 + int(counts.max()) // 2
        while left.any():
            anchors = rng.random((len(counts), tries))
            sizes = lengths_from(self.pmf(), rng.random((len(counts), tries)))
            mask, left = add_spans(words, anchors, sizes, mask, left)
        return mask


def add_spans(
    words: WordRuns, anchors: np.ndarray, sizes: np.ndarray, mask: np.ndarray, left: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Add spans to `mask` (B, L) as long as `left` (B,) tokens may be chosen.

    Args:
        words: of the rows.
        anchors: (B, T), numbers in [0, 1) that stand for one of the tokens of the row.
        sizes: (B, T), words of each span.
        mask: (B, L), what is chosen already.
        left: (B,), how many more to choose.

    Returns:
        The new mask, and how many are still to choose.
    """
    rows, width = np.arange(len(mask))[:, None], mask.shape[1]
    inside = np.argsort(~words.inside, axis=1, kind="stable")  # positions of tokens, in order, first
    anchor = inside[rows, (anchors * words.inside.sum(1)[:, None]).astype(np.int64)]
    word = words.index[rows, anchor]
    first = words.start[rows, word]
    stop = words.end[rows, np.minimum(word + sizes, words.limit[rows, word]) - 1]
    earlier = np.tri(anchors.shape[1], k=-1, dtype=bool)
    hits = (first[:, None] <= anchor[:, :, None]) & (anchor[:, :, None] < stop[:, None]) & earlier
    standing = settled(hits, ~mask[rows, anchor] & (left > 0)[:, None])
    # Which span comes first at each position: paint from the last to the first, each over the ones before.
    row, number = np.nonzero(standing[:, ::-1])
    number = anchors.shape[1] - 1 - number
    long = (stop - first)[row, number]
    inner = np.arange(int(long.sum())) - np.repeat(np.cumsum(long) - long, long)
    painted = np.full(mask.shape, width * (anchors.shape[1] + 1), np.int64)
    place = np.repeat(first[row, number], long) + inner
    painted[np.repeat(row, long), place] = np.repeat(number, long) * width + place
    painted[mask] = painted.max(initial=0)
    new = smallest(painted, left) & (painted < width * anchors.shape[1])
    return mask | new, left - new.sum(1)
