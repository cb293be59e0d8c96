"""Noise that a model learns to undo: each takes a `TokenBatch` and returns another one, and `Compose` chains them.

Lewis et al. 2020 (BART), section 2.2, with the procedures and defaults of fairseq. Special tokens stay where they are.

Letters: B rows, L positions, M positions afterwards, S spans of the longest row.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .collators import IGNORED
from .masking import MaskingStrategy, TokenMasking
from .replacement import Replacement
from .sequence_noise import MassFragment, SpanCorruption
from .token_batch import NOWHERE, TokenBatch, check_rate
from .word_runs import LAST, WordRuns, columns, smallest

__all__ = [
    "Compose",
    "DocumentRotation",
    "Masking",
    "MassFragment",
    "Noise",
    "ReplacedTokenNoise",
    "SentencePermutation",
    "SpanCorruption",
    "TextInfilling",
    "TokenDeletion",
    "denoising",
]

Noise = Callable[[np.random.Generator, TokenBatch], TokenBatch]


@dataclass(frozen=True)
class Compose:
    """One noise after the other."""

    noises: tuple[Noise, ...]

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """Apply all."""
        for noise in self.noises:
            batch = noise(rng, batch)
        return batch


def denoising(rng: np.random.Generator, batch: TokenBatch, noise: Noise) -> TokenBatch:
    """The batch with noise, and with all original tokens as `labels` (B, L)."""
    labels = np.where(batch.attention_mask == 1, batch.input_ids, IGNORED)
    return noise(rng, batch).changed(labels=labels)


@dataclass(frozen=True)
class Masking:
    """Hides chosen tokens, and makes labels for them as in masked language models.

    Args:
        strategy: chooses places.
        replacement: what stands there.
    """

    strategy: MaskingStrategy = field(default_factory=TokenMasking)
    replacement: Replacement = field(default_factory=Replacement)

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """Hide tokens."""
        return self.replacement(rng, batch, self.strategy(rng, batch))


@dataclass(frozen=True)
class ReplacedTokenNoise:
    """Random tokens for a model that tells which are replaced, as ELECTRA without a generator.

    Labels of all tokens are 1 where the token is another one now and 0 elsewhere; a random token may equal the original.

    Args:
        strategy: chooses places.
        replacement: draws tokens, here only random ones.
    """

    strategy: MaskingStrategy = field(default_factory=TokenMasking)
    replacement: Replacement = field(
        default_factory=lambda: Replacement(mask=0.0, random=1.0, draw_from="ordinary")
    )

    def __post_init__(self):
        if self.replacement.mask:
            raise ValueError(
                f"replaced tokens must not be masks, got Replacement(mask={self.replacement.mask})"
            )

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """Replace tokens."""
        noisy = self.replacement(rng, batch, self.strategy(rng, batch))
        labels = (noisy.input_ids != batch.input_ids).astype(np.int64)
        return noisy.changed(labels=np.where(batch.attention_mask == 1, labels, IGNORED))


@dataclass(frozen=True)
class TokenDeletion:
    """Random tokens disappear without a trace.

    Args:
        rate: share of the tokens that can be masked, rounded to the nearest number.
    """

    rate: float = 0.15

    def __post_init__(self):
        check_rate("rate", self.rate)

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """Delete tokens."""
        counts = np.rint(self.rate * batch.maskable.sum(1)).astype(np.int64)
        gone = smallest(np.where(batch.maskable, rng.random(batch.maskable.shape), LAST), counts)
        return batch.kept((batch.attention_mask == 1) & ~gone)


@dataclass(frozen=True)
class TextInfilling:
    """Each span becomes one mask token, a span without tokens too. Lengths are Poisson distributed.

    As fairseq does it: lengths are drawn until they reach `rate` of the words, and the last is cut; spans begin at
    random words and may run into one another, so that a little less disappears (0.266 of the tokens, not 0.3); masks
    of empty spans go to random places at last. Spans end with their text, where fairseq knows only the end of the row.

    Args:
        rate: share of the words, rounded up.
        mean: of the Poisson distribution, empty spans included.
        random: share of spans that become a random token instead of the mask.
        whole_words: spans consist of words and need `word_ids`; else of tokens.
        overlapping: False puts spans beside one another in random order, so that exactly `rate` disappears.
    """

    rate: float = 0.3
    mean: float = 3.0
    random: float = 0.0
    whole_words: bool = False
    overlapping: bool = True

    def __post_init__(self):
        check_rate("rate", self.rate)
        check_rate("random", self.random)
        if self.mean <= 0:
            raise ValueError(f"mean must be above 0, got {self.mean}")

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """Fill spans in."""
        mask_id = batch.vocabulary.needed_mask_id()
        places = np.broadcast_to(np.arange(batch.input_ids.shape[1]), batch.input_ids.shape)
        words = WordRuns.of(batch.column("word_ids") if self.whole_words else places, batch.maskable)
        lengths, used = poisson_lengths(rng, self.mean, np.ceil(words.count * self.rate).astype(np.int64))
        inserted = (used & (lengths == 0)).sum(1)
        real = used & (lengths > 0)
        order = np.argsort(~real, axis=1, kind="stable")
        lengths = np.take_along_axis(np.where(real, lengths, 0), order, 1)[
            :, : max(1, int(real.sum(1).max()))
        ]
        spans = scattered if self.overlapping else side_by_side
        masked, gone = spans(rng, words, lengths)
        input_ids = np.where(masked, mask_id, batch.input_ids)
        if self.random:
            row, place = np.nonzero(masked)
            other = rng.random(len(row)) < self.random
            drawn = Replacement(draw_from="ordinary").drawn(rng, batch, int(other.sum()))
            input_ids[row[other], place[other]] = drawn
        word_ids = None if batch.word_ids is None else np.where(masked, NOWHERE, batch.word_ids)
        changes = {"input_ids": input_ids, "maskable": batch.maskable & ~masked, "word_ids": word_ids}
        return with_masks(rng, batch.changed(**changes), (batch.attention_mask == 1) & ~gone, inserted)


def poisson_lengths(
    rng: np.random.Generator, mean: float, budgets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw lengths for each row until they reach its budget (B,), and cut the last.

    Returns:
        Lengths (B, S), and which of them are used.
    """
    usual = 8 + int(1.3 * budgets.max() / mean)
    lengths = rng.poisson(mean, (len(budgets), usual))
    while (lengths.sum(1) < budgets).any():
        lengths = np.concatenate([lengths, rng.poisson(mean, lengths.shape)], axis=1)
    sums = np.cumsum(lengths, axis=1)
    before = sums - lengths
    # A row without a budget uses none. Empty spans before the budget is reached are used.
    used = before < budgets[:, None]
    return np.where(used, np.minimum(lengths, budgets[:, None] - before), 0), used


def scattered(
    rng: np.random.Generator, words: WordRuns, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Spans of `lengths` (B, S) words at different random words; a longer one swallows those that begin inside.

    Returns:
        Places (B, L) of masks, and places of tokens that disappear; where both are true, the mask is swallowed.
    """
    keys = np.where(words.there, rng.random(words.size.shape), LAST)
    width = words.index.shape[1]
    first = np.argsort(keys, axis=1)[:, : lengths.shape[1]]
    rows, lengths = np.arange(len(first))[:, None], lengths[:, : first.shape[1]]
    there = (lengths > 0) & words.there[rows, first]
    start = words.start[rows, first]
    stop = words.end[rows, np.minimum(first + np.maximum(lengths, 1), words.limit[rows, first]) - 1]
    begin = np.where(there, start + 1, 0)
    base = rows * (width + 1)
    size = len(first) * (width + 1)
    change = np.bincount((begin + base).ravel(), minlength=size)
    change -= np.bincount((np.where(there, stop, 0) + base).ravel(), minlength=size)
    gone = np.cumsum(change.reshape(len(first), width + 1), axis=1)[:, :width] > 0
    masked = np.zeros(gone.shape, bool)
    masked[np.broadcast_to(rows, first.shape)[there], start[there]] = True
    return masked, gone


def side_by_side(
    rng: np.random.Generator, words: WordRuns, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Spans of `lengths` (B, S) words that neither meet nor touch where there is room. See `scattered`.

    Each span goes into another gap between words that stay, every choice of gaps equally likely. A special token inside
    a span parts it in two, with a mask each.
    """
    number = (lengths > 0).sum(1)
    order = np.argsort(np.where(lengths > 0, rng.random(lengths.shape), LAST), axis=1)
    lengths = np.take_along_axis(lengths, order, 1)
    stay = words.count - lengths.sum(1)
    gaps = np.arange(words.start.shape[1] + 1) <= stay[:, None]
    gaps = smallest(np.where(gaps, rng.random(gaps.shape), LAST), np.minimum(number, stay + 1))
    cuts = np.repeat(stay[:, None], lengths.shape[1], axis=1)  # words that stay before each span
    row, place = np.nonzero(gaps)
    cuts[row, np.cumsum(gaps, axis=1)[row, place] - 1] = place
    valid = lengths > 0
    first = np.where(valid, cuts + np.cumsum(lengths, axis=1) - lengths, 0)
    width = words.start.shape[1]
    rows = np.arange(len(first))[:, None]
    chosen, heads = np.zeros((len(first), width), bool), np.zeros((len(first), width), bool)
    long = lengths[valid]
    inner = np.arange(int(long.sum())) - np.repeat(np.cumsum(long) - long, long)
    row = np.broadcast_to(rows, first.shape)[valid]
    chosen[np.repeat(row, long), np.repeat(first[valid], long) + inner] = True
    heads[row, first[valid]] = True
    tokens = words.tokens(chosen)
    begins = np.zeros(tokens.shape, bool)
    begins[rows[np.nonzero(heads)[0], 0], words.start[heads]] = True
    fresh = tokens.copy()
    fresh[:, 1:] &= ~tokens[:, :-1]
    masked = begins | fresh
    return masked, tokens & ~masked


def with_masks(
    rng: np.random.Generator, batch: TokenBatch, keep: np.ndarray, counts: np.ndarray
) -> TokenBatch:
    """Only the tokens at `keep` (B, L), and `counts` (B,) masks at random places between first and last token."""
    if not counts.any():
        return batch.kept(keep)
    rest = keep.sum(1)
    lengths = rest + counts
    place = np.arange(int(lengths.max()))
    body = batch.body
    text = body.any(1)
    head = np.where(text, body.argmax(1), 0)
    tail = batch.lengths - np.where(text, body.shape[1] - body[:, ::-1].argmax(1), 0)
    free = (place >= head[:, None]) & (place < (lengths - tail)[:, None])
    new = smallest(np.where(free, rng.random(free.shape), LAST), counts)
    source = np.zeros(new.shape, np.int64)
    source[~new & (place < lengths[:, None])] = columns(keep)
    moved = batch.gathered(source, lengths)
    moved.input_ids[new] = batch.vocabulary.needed_mask_id()  # arrays of its own, fresh from `gathered`
    moved.maskable[new] = False
    for array in (moved.word_ids, *moved.columns.values()):
        if array is not None:
            array[new] = NOWHERE
    if moved.labels is not None and moved.labels is not batch.labels:
        moved.labels[new] = IGNORED
    return moved


@dataclass(frozen=True)
class SentencePermutation:
    """Sentences in random order.

    Args:
        end_ids: tokens that end a sentence, the first one of neighbouring ones as in fairseq. Not needed with a
            column `sentence_ids`.
        rate: share of the sentences, rounded up, that change places among themselves.
    """

    end_ids: tuple[int, ...] = ()
    rate: float = 1.0

    def __post_init__(self):
        check_rate("rate", self.rate)

    def sentences(self, batch: TokenBatch) -> np.ndarray:
        """The number of each token's sentence in its row (B, L), from 0 on."""
        body = batch.body
        if "sentence_ids" in batch.columns:
            ids = batch.columns["sentence_ids"]
            change = np.zeros(body.shape, bool)
            change[:, 1:] = ids[:, 1:] != ids[:, :-1]
            number = np.cumsum(change, axis=1)
            return number - number[np.arange(len(body)), body.argmax(1)][:, None]
        if not self.end_ids:
            raise ValueError(
                "sentence permutation must know where sentences end: give `end_ids`, say "
                '(tokenizer.convert_tokens_to_ids("."),), or a column `sentence_ids`'
            )
        ends = np.zeros(batch.vocabulary.size, bool)
        ends[list(self.end_ids)] = True
        stop = ends[batch.input_ids] & body
        change = np.zeros(body.shape, bool)
        change[:, 2:] = stop[:, 1:-1] & ~stop[:, :-2]
        change[:, 1] = stop[:, 0]
        return np.cumsum(change & body, axis=1)

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """Permute sentences."""
        body, number = batch.body, self.sentences(batch)
        number = np.where(body, number, 0)
        count = number.max(1) + 1
        keys = rng.random((len(body), int(count.max())))
        rank = np.broadcast_to(np.arange(keys.shape[1]), keys.shape)
        there = rank < count[:, None]
        moving = smallest(
            np.where(there, rng.random(keys.shape), LAST), np.ceil(count * self.rate).astype(np.int64)
        )
        # Those that move take the places of one another, in the order of their keys.
        slots = np.argsort(np.where(moving, rank, keys.shape[1]), axis=1, kind="stable")
        takers = np.argsort(np.where(moving, keys, LAST), axis=1)
        filled = np.arange(keys.shape[1]) < moving.sum(1)[:, None]
        position = rank.copy()
        row, column = np.nonzero(filled)
        position[row, takers[row, column]] = slots[row, column]
        return rearranged(batch, body, np.take_along_axis(position, number, 1))


def rearranged(batch: TokenBatch, body: np.ndarray, keys: np.ndarray) -> TokenBatch:
    """The batch with the tokens of `body` (B, L) ordered by `keys` (B, L), all others at their places."""
    width = body.shape[1]
    # Each key with its place is one number: sorting numbers is far faster than argsort.
    numbers = np.where(body, keys, keys.max() + 1) * width + np.arange(width)
    order = np.sort(numbers.astype(np.min_scalar_type(int(numbers.max()))), axis=1) % width
    source = np.broadcast_to(np.arange(width), body.shape).copy()
    source[body] = order[np.arange(width) < body.sum(1)[:, None]]
    return batch.gathered(source, batch.lengths)


@dataclass(frozen=True)
class DocumentRotation:
    """The row begins at a random token; what stood before goes to the end.

    Of m tokens, 0 to m go to the end, each number equally likely as in fairseq, so that two of m + 1 change nothing.

    Args:
        rate: share of the rows.
    """

    rate: float = 1.0

    def __post_init__(self):
        check_rate("rate", self.rate)

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """Rotate rows."""
        body = batch.body
        count = body.sum(1)
        shift = rng.integers(0, count + 1) * (rng.random(len(count)) < self.rate)
        place = np.cumsum(body, axis=1) - 1
        return rearranged(batch, body, (place - shift[:, None]) % np.maximum(count, 1)[:, None])
