"""Noise that comes with its own targets for a decoder: span corruption (T5) and fragments (MASS).

Raffel et al. 2020 (T5), section 3.1.4, with the exact counts of its code; Song et al. 2019 (MASS), section 3.2.

Letters: B rows, L positions, S spans of the longest row.
"""

from dataclasses import dataclass, field

import numpy as np

from .collators import IGNORED
from .masking import check_rows
from .replacement import Replacement
from .token_batch import TokenBatch, check_rate
from .word_runs import LAST, runs, smallest


@dataclass(frozen=True)
class SpanCorruption:
    """Spans become sentinels, and the target tells what they hid, as T5. Every row has the exact counts of its length.

    Of n tokens, round(`density` * n) are noise, in round(noise / `mean`) spans; all ways to share noise and the rest
    out are equally likely, and the row begins with the rest. Special tokens and word ids leave the row; both sides end with
    the vocabulary's `eos_id`.

    Args:
        density: share of noise.
        mean: tokens of a span.
    """

    density: float = 0.15
    mean: float = 3.0

    def __post_init__(self):
        if not 0 < self.density < 1:
            raise ValueError(f"density must lie between 0 and 1, got {self.density}")
        if self.mean < 1:
            raise ValueError(f"mean must be 1 or more, got {self.mean}")

    def counts(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Noise tokens and spans of rows of `lengths` (B,) tokens."""
        noise = np.clip(np.rint(lengths * self.density), 1, lengths - 1).astype(np.int64)
        spans = np.maximum(1, np.rint(noise / self.mean)).astype(np.int64)
        return noise, np.minimum(spans, lengths - noise)

    def raw_length(self, input_length: int) -> tuple[int, int]:
        """How many tokens to read so that inputs have at most `input_length`, and the length of the targets then.

        Raises:
            ValueError: an `input_length` below 3, in which no row of two tokens fits.
        """
        if input_length < 3:
            raise ValueError(
                f"rows for span corruption have 3 tokens or more: one, a sentinel and the end; got {input_length}"
            )
        length = max(2, input_length - 1)  # a short row may grow by one
        while True:
            noise, spans = self.counts(np.array([length + 1]))
            if length + 1 - noise[0] + spans[0] + 1 > input_length:
                break
            length += 1
        noise, spans = self.counts(np.array([length]))
        return length, int(noise[0] + spans[0] + 1)

    def noise_mask(self, rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
        """Which tokens are noise (B, L) in rows of `lengths` (B,) tokens."""
        noise, spans = self.counts(lengths)
        width = int(lengths.max())
        parts = np.stack([composition(rng, lengths - noise, spans), composition(rng, noise, spans)], axis=2)
        edges = np.cumsum(parts.reshape(len(lengths), -1), axis=1)
        size = len(lengths) * (width + 1)
        flips = np.bincount((edges + np.arange(len(lengths))[:, None] * (width + 1)).ravel(), minlength=size)
        odd = np.cumsum(flips.reshape(len(lengths), width + 1), axis=1)[:, :width] % 2 == 1
        return odd & (np.arange(width) < lengths[:, None])

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """Corrupt rows."""
        vocabulary = batch.vocabulary
        if not vocabulary.sentinel_ids or vocabulary.eos_id is None:
            raise ValueError(
                "span corruption needs sentinels <extra_id_0>, <extra_id_1>, ... and an end-of-text token, but the "
                "tokenizer has none: choose one of T5, or add them as special tokens"
            )
        ids, lengths = packed(batch.input_ids, batch.maskable, vocabulary.pad_id)
        if lengths.min() < 2:
            raise ValueError(
                f"row {int(lengths.argmin())} of the batch has {int(lengths.min())} tokens besides special ones, and "
                "span corruption needs 2: leave such rows out of the data set"
            )
        mask = self.noise_mask(rng, lengths)
        begins = mask.copy()
        begins[:, 1:] &= ~mask[:, :-1]
        number = runs(mask)
        if number.max() >= len(vocabulary.sentinel_ids):
            raise ValueError(
                f"needed {number.max() + 1} sentinels, but the tokenizer has {len(vocabulary.sentinel_ids)}: take "
                "shorter rows or add sentinels"
            )
        sentinels = np.array(vocabulary.sentinel_ids)[number]
        rest = (np.arange(mask.shape[1]) < lengths[:, None]) & ~mask
        inputs, input_lengths = packed(
            np.where(begins, sentinels, ids), rest | begins, vocabulary.pad_id, room=1
        )
        # A span's sentinel stands in the targets before its tokens: twice the width, sentinels at even places.
        pairs = np.stack([sentinels, ids], axis=2).reshape(len(mask), -1)
        labels, label_lengths = packed(
            pairs, np.stack([begins, mask], axis=2).reshape(len(mask), -1), IGNORED, room=1
        )
        maskable = (np.arange(inputs.shape[1]) < input_lengths[:, None]) & ~vocabulary.is_special[inputs]
        for array, ends in ((inputs, input_lengths), (labels, label_lengths)):
            array[np.arange(len(array)), ends] = vocabulary.eos_id
        return TokenBatch(inputs, maskable, input_lengths + 1, vocabulary, labels=labels)


def packed(array: np.ndarray, keep: np.ndarray, fill: int, room: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """What is at `keep` (B, L), moved together and filled up, with `room` more columns; and the lengths (B,)."""
    lengths = keep.sum(1)
    found = np.full((len(array), int(lengths.max()) + room), fill, np.int64)
    found[np.arange(found.shape[1]) < lengths[:, None]] = array[keep]
    return found, lengths


def composition(rng: np.random.Generator, totals: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Share `totals` (B,) items out to `parts` (B,) that get one each at least, every way equally likely.

    Returns:
        Sizes (B, S), 0 after the last part.
    """
    width = max(1, int(totals.max()) - 1)
    keys = np.where(np.arange(width) < (totals - 1)[:, None], rng.random((len(totals), width)), LAST)
    cuts = smallest(keys, parts - 1)
    edges = np.repeat(totals[:, None], int(parts.max()) + 1, axis=1)
    edges[:, 0] = 0
    row, place = np.nonzero(cuts)
    nth = np.cumsum(cuts, axis=1)[row, place]
    edges[row, nth] = place + 1
    return np.diff(edges, axis=1)


@dataclass(frozen=True)
class MassFragment:
    """One fragment is hidden, and the decoder tells it from the rest, as MASS.

    The encoder sees the row with the fragment replaced; `decoder_input_ids` are the tokens one before each of the
    fragment, with their own `decoder_position_ids`; `labels` are the fragment. The first token of a row is never part
    of it, for nothing comes before.

    Args:
        rate: share of the tokens, rounded to the nearest number.
        begin: how likely the fragment stands at the beginning.
        end: how likely it stands at the end; otherwise it may stand anywhere.
        replacement: of the fragment's tokens.
    """

    rate: float = 0.5
    begin: float = 0.2
    end: float = 0.2
    replacement: Replacement = field(default_factory=Replacement)

    def __post_init__(self):
        for name in ("rate", "begin", "end"):
            check_rate(name, getattr(self, name))
        if self.begin + self.end > 1 + 1e-9:
            raise ValueError(f"begin and end must not exceed 1 together, got {self.begin} + {self.end}")

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> TokenBatch:
        """Hide a fragment of each row."""
        check_rows(batch.maskable[:, 1:])
        width = batch.input_ids.shape[1]
        first = np.maximum(batch.maskable.argmax(1), 1)
        last = width - batch.maskable[:, ::-1].argmax(1)
        size = np.clip(np.rint(self.rate * batch.maskable.sum(1)).astype(np.int64), 1, last - first)
        kind = rng.random(len(size))
        start = rng.integers(first, last - size + 1)
        start = np.where(kind < self.begin, first, np.where(kind >= 1 - self.end, last - size, start))
        places = start[:, None] + np.arange(int(size.max()))
        inside = np.arange(places.shape[1]) < size[:, None]
        places = np.where(inside, places, 1)
        fragment = np.zeros(batch.input_ids.shape, bool)
        fragment[np.nonzero(inside)[0], places[inside]] = True
        noisy = self.replacement(rng, batch, fragment & batch.maskable)
        target = np.take_along_axis(batch.input_ids, places, 1)
        before = np.take_along_axis(batch.input_ids, places - 1, 1)
        return noisy.changed(
            labels=np.where(inside, target, IGNORED),
            decoder_input_ids=np.where(inside, before, batch.vocabulary.pad_id),
            decoder_position_ids=np.where(inside, places - 1, 0),
        )
