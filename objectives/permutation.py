"""Permutation language models: which tokens are guessed, in which order, and who sees whom, for the stock XLNetLMHeadModel.

Yang et al. 2019 (XLNet), sections 2.2 to 2.4, with the procedure of the released code: of 512 tokens 85 are guessed, in
spans with a context of six times their length, and the two halves of a row have an order each. The first half never sees
the second, so that it can be kept as memory (`permutation_lanes.py`). Inputs are not masked: the model's query stream
hides each target from itself alone. The collator of the same name in Transformers puts masks there, after which no target
sees another one.

Letters: B rows, L positions, H the longer part of a row, R = 2 * B parts (or B), P targets, T rounds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, from_numpy
from transformers import PreTrainedTokenizerBase

from .attention_masks import batch_generator, permutation_mask
from .collators import IGNORED
from .masking import check_rows, cover, lengths_from
from .token_batch import NOWHERE, TokenBatch, Vocabulary
from .word_runs import LAST, WordRuns, smallest

TARGETS_OF_TOKENS = 6  # one token in six


@dataclass(frozen=True)
class PermutationTargets:
    """Targets, their order and the masks of XLNet.

    Args:
        num_predict: tokens to guess in each row, fewer only if it has fewer, and one always stays; None for one in six, 85 of 512.
        reuse_length: the first part of each row, which does not see the rest; None for half of the longest row, 0 for no
            parts.
        max_n: longest span; p(n) ~ 1 / n.
        context: tokens around a span, as a multiple of n.
        unit: what n counts, "word" as the paper says, or "token" as the released code does. With `word_ids`, spans of
            tokens begin at words too.
    """

    num_predict: int | None = None
    reuse_length: int | None = None
    max_n: int = 5
    context: int = 6
    unit: Literal["word", "token"] = "word"

    def __post_init__(self):
        for name, least in (("num_predict", 1), ("reuse_length", 0), ("max_n", 1), ("context", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected {least} or more")
        if self.unit not in ("word", "token"):
            raise ValueError(f'unit must be "word" or "token", got {self.unit!r}')

    def pmf(self) -> np.ndarray:
        """The probabilities of 1 to `max_n`."""
        weights = 1 / np.arange(1, self.max_n + 1)
        return weights / weights.sum()

    def parts(self, width: int) -> list[tuple[int, int]]:
        """Where the parts of rows of this width begin and end."""
        border = width - width // 2 if self.reuse_length is None else self.reuse_length
        return [(0, border), (border, width)] if 0 < border < width else [(0, width)]

    def counts(self, batch: TokenBatch, maskable: np.ndarray, parts: list[tuple[int, int]]) -> np.ndarray:
        """How many targets each part of each row has (parts, B), in proportion to its tokens, the first rounded up.

        An ordinary token of the first part is left out: a target that sees no token attends to all alike, itself too.

        Raises:
            ValueError: a row with a single ordinary token.
        """
        available = np.stack([maskable[:, begin:end].sum(1) for begin, end in parts])
        available[0] = np.minimum(available[0], np.maximum(batch.maskable[:, : parts[0][1]].sum(1) - 1, 0))
        if not available.any(0).all():
            raise ValueError(
                f"row {int(available.any(0).argmin())} of the batch has one ordinary token, which would be told from none: "
                "leave rows of fewer than two out of the data set"
            )
        wanted = batch.lengths // TARGETS_OF_TOKENS if self.num_predict is None else self.num_predict
        wanted = np.minimum(np.maximum(wanted, 1), available.sum(0))
        if len(parts) == 1:
            return wanted[None]
        first = -(-wanted * np.minimum(batch.lengths, parts[0][1]) // batch.lengths)
        second = np.minimum(wanted - np.minimum(first, available[0]), available[1])
        return np.stack([wanted - second, second])

    def __call__(self, rng: np.random.Generator, batch: TokenBatch) -> dict[str, np.ndarray]:
        """Draw targets and an order.

        Returns:
            `perm_mask` (B, L, L), bool, true where a position does not see another one; `target_mapping` (B, P, L),
            float32, a row of zeros where a row has fewer targets; `labels` (B, P).

        Raises:
            ValueError: a row with fewer than two ordinary tokens, or no `word_ids`.
        """
        size, width = batch.input_ids.shape
        parts = self.parts(width)
        long = max(end - begin for begin, end in parts)

        def stacked(array: np.ndarray, fill) -> np.ndarray:
            """(B, L) as (R, H), part below part."""
            if len(parts) == 1:
                return array
            stack = np.full((len(parts), size, long), fill, array.dtype)
            for number, (begin, end) in enumerate(parts):
                stack[number, :, : end - begin] = array[:, begin:end]
            return stack.reshape(-1, long)

        word_ids = batch.word_ids if self.unit == "token" else batch.column("word_ids")
        maskable = (
            batch.maskable if word_ids is None or self.unit == "token" else batch.maskable & (word_ids >= 0)
        )
        check_rows(maskable)
        counts = self.counts(batch, maskable, parts).reshape(-1)
        free = stacked(maskable, False)
        words = None if word_ids is None else stacked(word_ids, NOWHERE)
        lengths = np.concatenate([np.clip(batch.lengths - begin, 0, end - begin) for begin, end in parts])
        targets = spread_spans(rng, free, words, lengths, counts, self.pmf(), self.context, self.unit)
        functional = (batch.attention_mask == 1) & ~batch.maskable
        order = random_order(rng, targets | stacked(functional, False))

        def beside(stack: np.ndarray) -> np.ndarray:
            """(R, H) as (B, L) again."""
            blocks = stack.reshape(len(parts), size, long)
            return np.concatenate(
                [block[:, : end - begin] for block, (begin, end) in zip(blocks, parts, strict=True)], 1
            )

        chosen, order = beside(targets), beside(order)
        part = np.repeat(np.arange(len(parts)), [end - begin for begin, end in parts])
        perm_mask = permutation_mask(order, chosen, functional, part)
        row, place = np.nonzero(chosen)
        found = chosen.sum(1)
        slot = np.arange(len(row)) - np.repeat(np.cumsum(found) - found, found)
        most = int(found.max()) if self.num_predict is None else self.num_predict
        target_mapping = np.zeros((size, most, width), np.float32)
        target_mapping[row, slot, place] = 1
        labels = np.full((size, most), IGNORED, np.int64)
        labels[row, slot] = batch.input_ids[row, place]
        return {"perm_mask": perm_mask, "target_mapping": target_mapping, "labels": labels}


def random_order(rng: np.random.Generator, members: np.ndarray) -> np.ndarray:
    """A random place from 0 on for each of the `members` (R, H) among those of its row (R, H), 0 for the others."""
    count = members.sum(1)
    there = np.arange(int(count.max())) < count[:, None]
    order = np.zeros(members.shape, np.int64)
    order[members] = np.argsort(np.where(there, rng.random(there.shape), LAST), axis=1)[there]
    return order


def spread_spans(
    rng: np.random.Generator,
    free: np.ndarray,
    word_ids: np.ndarray | None,
    lengths: np.ndarray,
    counts: np.ndarray,
    pmf: np.ndarray,
    context: int,
    unit: str,
) -> np.ndarray:
    """Walk through rows and take a span out of every stretch of text; random tokens fill up what is missing at last.

    Args:
        rng: random numbers.
        free: (R, H), tokens that can be taken.
        word_ids: (R, H), the word of each token; None if every token is one.
        lengths: (R,), tokens of each row. A span that would reach the end of its row ends the walk, as in the original.
        counts: (R,), tokens to take, no more than there are.
        pmf: of span lengths from 1 on.
        context: tokens of a stretch, as a multiple of the span's length.
        unit: "word" or "token", what span lengths count.

    Returns:
        Taken tokens (R, H).
    """
    places = np.broadcast_to(np.arange(free.shape[1]), free.shape)
    words = WordRuns.of(places if word_ids is None else word_ids, free)
    units = words if word_ids is None or unit == "word" else WordRuns.of(places, free)
    rounds = free.shape[1] // (context + 1) + 2
    sizes = lengths_from(pmf, rng.random((rounds, len(free))))
    front = (rng.random(sizes.shape) * (sizes * context)).astype(np.int64)
    begins, stops = walk(words, units, lengths, counts, sizes, front, context)
    taken = cover(begins, stops, free.shape[1]) & free
    keys = np.where(free & ~taken, rng.random(free.shape), LAST)
    return taken | smallest(keys, counts - taken.sum(1))


def walk(
    words: WordRuns,
    units: WordRuns,
    lengths: np.ndarray,
    counts: np.ndarray,
    sizes: np.ndarray,
    front: np.ndarray,
    context: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Where spans begin and end, both (R, T).

    Args:
        words: spans begin at these.
        units: spans consist of these, the same ones or single tokens.
        lengths: (R,), tokens of each row.
        counts: (R,), most tokens to take; the last span is cut.
        sizes: (T, R), units of each span.
        front: (T, R), tokens before each span.
        context: tokens before and behind it, as a multiple of its size.
    """
    height, width = words.index.shape
    # All places count through the rows; behind each row stands one more, where walks end.
    base = np.arange(height)[:, None] * (width + 1)
    over = base + width
    heads = np.repeat(over, width + 1)
    starts = (words.start + base)[words.there]
    heads[starts] = starts
    following = np.minimum.accumulate(heads[::-1])[::-1]  # the next word, or `over` of the row
    first = np.arange(height)[:, None] * units.start.shape[1]
    outside = units.start.size  # a unit of its own, behind everything
    unit_at = np.full((height, width + 1), outside)
    unit_at[:, :-1] = np.where(units.inside, units.index + first, outside)
    unit_at = unit_at.ravel()
    limits = np.append((units.limit + first - 1).ravel(), outside)
    ends = np.append((units.end + base).ravel(), height * (width + 1))
    base, over = base[:, 0], over[:, 0]
    place, begins, stops = base, [], []
    for more, before, behind in zip(sizes - 1, front, sizes * context - front, strict=True):
        begin = following[np.minimum(place + before, over)]
        unit = unit_at[begin]
        stop = ends[np.minimum(unit + more, limits[unit])]
        place = stop + behind
        begins.append(begin)
        stops.append(stop)
        if (begin == over).all():
            break
    begins, stops = np.stack(begins, axis=1), np.stack(stops, axis=1)
    used = np.cumsum(stops - begins, axis=1) - (stops - begins)  # before each span, as long as none is cut
    stops = np.minimum(stops, begins + np.maximum(counts[:, None] - used, 0))
    alive = stops < (base + lengths)[:, None]  # none behind one that is not
    return np.where(alive, begins - base[:, None], 0), np.where(alive, stops - base[:, None], 0)


@dataclass
class DataCollatorForPermutationLanguageModeling:
    """Batches for the stock XLNetLMHeadModel.

    Args:
        tokenizer: says which tokens are special.
        targets: how many, in which spans and parts.
        seed: equal seeds, epochs and rows give equal batches.
        epoch: another one gives other batches of the same rows.
        pad_to_multiple_of: makes widths multiples of this.
    """

    fits: ClassVar[tuple[str, ...]] = ("aligned",)  # kinds of stock models, of `gathered_head.KINDS`

    tokenizer: PreTrainedTokenizerBase
    targets: PermutationTargets = PermutationTargets()
    seed: int = 0
    epoch: int = 0
    pad_to_multiple_of: int | None = None

    def __post_init__(self):
        self.vocabulary = Vocabulary.from_tokenizer(self.tokenizer)

    def set_epoch(self, epoch: int) -> None:
        """Give other targets to the same rows from now on."""
        self.epoch = epoch

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows with `input_ids` and, for `unit="word"`, `word_ids`.

        Returns:
            `input_ids`, `attention_mask` (B, L), `perm_mask` (B, L, L), `target_mapping` (B, P, L), `labels` (B, P) and
            `token_type_ids` (B, L) if rows have them.
        """
        names = [name for name in ("token_type_ids",) if rows and name in rows[0]]
        batch = TokenBatch.from_rows(rows, self.vocabulary, names, self.pad_to_multiple_of)
        arrays = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        for name in names:
            fill = getattr(self.tokenizer, "pad_token_type_id", 0)
            arrays[name] = np.where(batch.columns[name] < 0, fill, batch.columns[name])
        arrays |= self.targets(batch_generator(self.seed, self.epoch, batch), batch)
        return {name: from_numpy(array) for name, array in arrays.items()}


__all__ = ["DataCollatorForPermutationLanguageModeling", "PermutationTargets", "spread_spans", "walk"]
