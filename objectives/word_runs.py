"""Words of padded rows as arrays: where each begins and ends, which tokens belong to it; and how to choose some.

Letters: B rows, L positions, W words of the longest row.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

LAST = 2.0  # sorts behind every random number


def smallest(keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The places of the `counts` (B,) smallest of `keys` (B, M) in each row."""
    ordered = np.sort(keys, axis=1)
    last = np.take_along_axis(ordered, np.maximum(counts - 1, 0)[:, None], 1)
    return (keys <= last) & (counts > 0)[:, None]


def columns(mask: np.ndarray) -> np.ndarray:
    """The columns of the true places of a mask (B, L), row by row: `np.nonzero(mask)[1]`, several times as fast."""
    return np.flatnonzero(mask) % mask.shape[1]


def runs(mask: np.ndarray) -> np.ndarray:
    """Number runs of neighbouring true places in each row (B, L) from 0 on; what lies outside has any number."""
    begins = mask.copy()
    begins[:, 1:] &= ~mask[:, :-1]
    return np.maximum(np.cumsum(begins, axis=1) - 1, 0)


@dataclass(frozen=True)
class WordRuns:
    """Runs of neighbouring tokens with equal word ids.

    Args:
        index: (B, L), the number of each token's word in its row, W outside of words.
        start: (B, W), the position of its first token.
        end: (B, W), the position after its last token.
        count: (B,), number of words.
    """

    index: np.ndarray
    start: np.ndarray
    end: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, word_ids: np.ndarray, maskable: np.ndarray) -> "WordRuns":
        """Find words among `maskable` tokens (B, L) with a word id of 0 or more."""
        inside = maskable & (word_ids >= 0)
        begins = inside.copy()
        begins[:, 1:] &= (word_ids[:, 1:] != word_ids[:, :-1]) | ~inside[:, :-1]
        ends = inside.copy()
        ends[:, :-1] &= begins[:, 1:] | ~inside[:, 1:]
        count = begins.sum(1)
        width = max(1, int(count.max()))
        there = np.arange(width) < count[:, None]
        start, end = np.zeros(there.shape, np.int64), np.zeros(there.shape, np.int64)
        start[there], end[there] = columns(begins), columns(ends) + 1
        index = np.where(inside, np.cumsum(begins, axis=1) - 1, width)
        return cls(index, start, end, count)

    @cached_property
    def limit(self) -> np.ndarray:
        """(B, W), the number after the last word that follows without a gap, as special tokens are."""
        breaks = np.ones(self.start.shape, bool)
        breaks[:, :-1] = self.end[:, :-1] != self.start[:, 1:]
        width = breaks.shape[1]
        following = np.where(breaks, np.arange(1, width + 1), width)
        return np.minimum.accumulate(following[:, ::-1], axis=1)[:, ::-1]

    @cached_property
    def there(self) -> np.ndarray:
        """(B, W), true where a row has this word."""
        return np.arange(self.start.shape[1]) < self.count[:, None]

    @cached_property
    def inside(self) -> np.ndarray:
        """(B, L), true for the tokens of words."""
        return self.index < self.start.shape[1]

    @cached_property
    def size(self) -> np.ndarray:
        """(B, W), the number of tokens of each word, 0 where there is none."""
        return self.end - self.start

    @cached_property
    def total(self) -> np.ndarray:
        """(B, W + 1), the number of tokens of all words before."""
        sums = np.cumsum(self.size, axis=1)
        return np.concatenate([np.zeros((len(sums), 1), np.int64), sums], axis=1)

    def tokens(self, words: np.ndarray) -> np.ndarray:
        """The tokens (B, L) of some words (B, W)."""
        padded = np.concatenate([words, np.zeros((len(words), 1), bool)], axis=1)
        return np.take_along_axis(padded, self.index, 1)
