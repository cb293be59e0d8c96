"""Batches of joint training (Ramachandran, Liu & Le 2017, section 2.4): pairs, and monolingual texts beside them.

A pair is `input_ids` and `labels`, as the tokenizer makes them; a monolingual sentence is read `<eos> w1 .. wn <eos>`. A
joint batch holds all three under names that do not clash, each with rows of its own number.

Letters: B rows, S source positions, T target positions, W processes.
"""

import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from .collators import IGNORED

Side = Literal["source", "target"]


@dataclass
class ParallelCollator:
    """Pairs of token ids, for training and evaluation.

    Args:
        source_pad: fills up sources; masks say where, so that it may be any id.
    """

    source_pad: int = 0

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Collate rows with `input_ids` and `labels` into `input_ids` and `attention_mask` (B, S), and `labels` (B, T).

        -100 stands where there is no label.
        """
        input_ids, mask = _padded([row["input_ids"] for row in rows], self.source_pad)
        labels, _ = _padded([row["labels"] for row in rows], IGNORED)
        return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


@dataclass
class MonolingualCollator:
    """Sentences of one language, labels of themselves.

    Args:
        side: whose language model reads them.
        begin: ids before a sentence; what the decoder reads first, on the target's side.
        end: ids behind it.
        pad: fills up short sentences; masks say where.
    """

    side: Side
    begin: Sequence[int]
    end: Sequence[int]
    pad: int = 0

    def __call__(self, rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Collate lists of ids into `{side}_lm_input_ids` and `{side}_lm_attention_mask`, both (B, T)."""
        ids, mask = _padded([[*self.begin, *row, *self.end] for row in rows], self.pad)
        return {f"{self.side}_lm_input_ids": ids, f"{self.side}_lm_attention_mask": mask}


class TokenRows(Sequence):
    """Many lists of ids in one flat array.

    Args:
        rows: the lists.
    """

    def __init__(self, rows: Iterable[Sequence[int]] = ()):
        self.ids, lengths = array("i"), array("q", [0])
        for row in rows:
            self.ids.extend(row)
            lengths.append(len(row))
        self.ends = array("q", accumulate(lengths))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"row {place} of {len(self)}")
        place %= len(self)
        return self.ids[self.ends[place] : self.ends[place + 1]].tolist()


class MonolingualBatches:
    """Batches without end, any of which can be made at once: one shuffle of the sentences after another.

    Batch k of W processes with B rows has the sentences of batch k of one process with W * B rows; g batches of B rows have
    those of one batch of g * B rows.

    Args:
        rows: lists of ids.
        collate: makes a batch of B of them.
        batch_size: B of one process.
        seed: equal seeds give equal batches.
        rank: which process this is.
        world_size: W.

    Raises:
        ValueError: no rows, or no batch size.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        collate: MonolingualCollator,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        if not len(rows) or batch_size < 1:
            raise ValueError(
                f"the {collate.side}'s monolingual text has {len(rows)} sentences and batches of {batch_size}; expected at "
                "least 1 of each. Name a file with text and a batch size."
            )
        self.rows, self.collate, self.batch_size, self.seed = rows, collate, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._orders: dict[int, list[int]] = {}  # of the passes that the last batch touched

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Batch `number`, from 0 on."""
        start = (number * self.world_size + self.rank) * self.batch_size
        return self.collate([self.rows[place] for place in self._places(start)])

    def _places(self, start: int) -> Iterator[int]:
        touched = [divmod(start + step, len(self.rows)) for step in range(self.batch_size)]
        passes = {number for number, _ in touched}
        self._orders = {number: self._orders.get(number) or self._order(number) for number in passes}
        return (self._orders[number][place] for number, place in touched)

    def _order(self, number: int) -> list[int]:
        # A text as seed keeps sides, seeds and passes apart; the global random numbers are left alone.
        seed = random.Random(f"{self.collate.side} {self.seed} {number}").getrandbits(63)
        chance = torch.Generator().manual_seed(seed)
        return torch.randperm(len(self.rows), generator=chance).tolist()


def joint_batch(parallel: dict, *monolingual: dict) -> dict:
    """One batch of a parallel one and monolingual ones.

    Args:
        parallel: of `ParallelCollator`.
        *monolingual: of `MonolingualCollator`, one a side.

    Returns:
        All their entries.

    Raises:
        ValueError: two of them have the same entry.
    """
    joint = dict(parallel)
    for batch in monolingual:
        if both := sorted(joint.keys() & batch.keys()):
            raise ValueError(f"two parts of a joint batch have {both}. Give each side one monolingual text.")
        joint |= batch
    return joint


def _padded(rows: Sequence[Sequence[int]], filling: int) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T), padding right."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]  # (B, T)
    ids = torch.full(mask.shape, filling)
    ids[mask] = torch.tensor([token for row in rows for token in row], dtype=torch.long)
    return ids, mask.long()


__all__ = [
    "MonolingualBatches",
    "MonolingualCollator",
    "ParallelCollator",
    "TokenRows",
    "joint_batch",
]
