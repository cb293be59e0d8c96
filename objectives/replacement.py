"""What stands in place of chosen tokens, and the shuffled trigrams of StructBERT, with their labels.

Devlin et al. 2019, section 3.1; Joshi et al. 2020, section 3.1, for whole spans; Wang et al. 2020, section 2.2.

Letters: B rows, L positions, V ids, M windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .collators import IGNORED
from .token_batch import TokenBatch, check_rate
from .word_runs import LAST, runs, smallest


@dataclass(frozen=True)
class Replacement:
    """What stands in place of chosen tokens: the mask, a random token, or else the token itself. All are targets.

    Args:
        mask: share of mask tokens.
        random: share of random tokens; the rest stays.
        per: decide for each "token", as BERT, or for each "span" of neighbouring places, as SpanBERT. Random tokens
            are drawn for each token either way.
        draw_from: random tokens come from "all" ids, as in BERT, or only from "ordinary" ones, as in RoBERTa.
        counts: how frequent each id is (V,), to draw from these as SpanBERT; None for equal chances.
    """

    mask: float = 0.8
    random: float = 0.1
    per: Literal["token", "span"] = "token"
    draw_from: Literal["all", "ordinary"] = "all"
    counts: Sequence[float] | None = None

    def __post_init__(self):
        check_rate("mask", self.mask)
        check_rate("random", self.random)
        if self.mask + self.random > 1 + 1e-9:
            raise ValueError(f"mask and random must not exceed 1 together, got {self.mask} + {self.random}")
        if self.per not in ("token", "span"):
            raise ValueError(f'per must be "token" or "span", got {self.per!r}')
        if self.draw_from not in ("all", "ordinary"):
            raise ValueError(f'draw_from must be "all" or "ordinary", got {self.draw_from!r}')

    def drawn(self, rng: np.random.Generator, batch: TokenBatch, number: int) -> np.ndarray:
        """Random ids (`number`,)."""
        vocabulary = batch.vocabulary
        if self.counts is None:
            if self.draw_from == "all":
                return rng.integers(0, vocabulary.size, number)
            return rng.choice(vocabulary.ordinary_ids, number)
        weights = np.asarray(self.counts, np.float64)
        if weights.shape != (vocabulary.size,) or weights.min() < 0 or not weights.any():
            raise ValueError(
                f"expected counts of {vocabulary.size} ids, some above 0, got shape {weights.shape}"
            )
        if self.draw_from == "ordinary":
            weights = np.where(vocabulary.is_special, 0, weights)
        edges = np.cumsum(weights)
        return np.searchsorted(edges, rng.random(number) * edges[-1], side="right")

    def __call__(self, rng: np.random.Generator, batch: TokenBatch, chosen: np.ndarray) -> TokenBatch:
        """The batch with `chosen` (B, L) replaced, and with labels there."""
        if self.per == "span":
            number = runs(chosen)
            uniform = rng.random((len(chosen), int(number.max(initial=0)) + 1))
            uniform = np.take_along_axis(uniform, number, 1)[chosen]
        else:
            uniform = rng.random(int(chosen.sum()))
        row, place = np.nonzero(chosen)
        input_ids, labels = batch.input_ids.copy(), np.full(batch.input_ids.shape, IGNORED, np.int64)
        labels[row, place] = input_ids[row, place]
        if self.mask:
            hidden = uniform < self.mask
            input_ids[row[hidden], place[hidden]] = batch.vocabulary.needed_mask_id()
        other = (uniform >= self.mask) & (uniform < self.mask + self.random)
        input_ids[row[other], place[other]] = self.drawn(rng, batch, int(other.sum()))
        return batch.changed(input_ids=input_ids, labels=labels, maskable=batch.maskable & ~chosen)


@dataclass(frozen=True)
class TrigramShuffle:
    """Three neighbouring tokens in another order, and the model must tell the right one, as StructBERT.

    Comes after masking and leaves masked tokens alone. Rows are cut into windows from a random offset; of those with
    ordinary tokens only, `rate` are shuffled (rounded up or down at random). One shuffle in six changes nothing. All
    tokens of a chosen window become labels, moved or not.

    Args:
        rate: share of the windows.
        size: tokens of a window.
    """

    rate: float = 0.05
    size: int = 3

    def __post_init__(self):
        check_rate("rate", self.rate)
        if self.size < 2:
            raise ValueError(f"size must be 2 or more, got {self.size}: fewer tokens cannot change places")

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """The batch with shuffled windows and labels for them, beside the labels that it has."""
        input_ids = batch.input_ids.copy()
        labels = np.full(input_ids.shape, IGNORED, np.int64) if batch.labels is None else batch.labels.copy()
        offset = int(rng.integers(0, self.size))
        windows = (input_ids.shape[1] - offset) // self.size
        if windows < 1:
            return batch.changed(input_ids=input_ids, labels=labels)
        part = slice(offset, offset + windows * self.size)
        shape = (len(input_ids), windows, self.size)
        free = (batch.maskable & (labels == IGNORED))[:, part].reshape(shape).all(2)
        counts = np.floor(self.rate * free.sum(1) + rng.random(len(free))).astype(np.int64)
        counts = np.minimum(counts, free.sum(1))
        chosen = smallest(np.where(free, rng.random(free.shape), LAST), counts)
        inner, targets = input_ids[:, part].reshape(shape), labels[:, part].reshape(shape)
        right = inner[chosen]  # (M, size)
        targets[chosen] = right
        inner[chosen] = np.take_along_axis(right, np.argsort(rng.random(right.shape), axis=1), 1)
        input_ids[:, part], labels[:, part] = inner.reshape(len(inner), -1), targets.reshape(len(inner), -1)
        return batch.changed(input_ids=input_ids, labels=labels)
