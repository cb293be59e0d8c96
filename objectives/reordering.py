"""Segments of a paragraph in random order, whose order a model must tell, as ERNIE 2.0 (Sun et al. 2020, section 4.2.2).

Classes are all orders of 1 to m segments, 1 + 2 + .. + m! of them: 9 for m = 3 and 33 for m = 4. Orders of fewer segments
come first, and those of as many segments are sorted.

Letters: P paragraphs.
"""

import random
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .documents import Documents, gathered, special_id
from .token_batch import NOWHERE, generator


def orders_of(m: int) -> list[tuple[int, ...]]:
    """The order that each class stands for, for 1 to `m` segments.

    Place i of an order says which segment of the text stands there.
    """
    return [order for size in range(1, m + 1) for order in permutations(range(size))]


class SentenceReorderingDataset(Dataset):
    """Rows `[CLS] segment [SEP] .. segment [SEP]` of paragraphs, with the class of their order as `labels`.

    A paragraph is as many sentences of one document as fit. It is cut between sentences into 1 to m segments, each number
    equally likely, and these get a random order.

    Args:
        documents: `Documents`, or lists of sentences as `Documents.of` reads them.
        tokenizer: has the special tokens, and reads texts.
        m: most segments.
        max_length: most tokens of a row with the special ones.
        label_name: what the model calls the class.
        seed: equal seeds and epochs give equal rows.

    Raises:
        ValueError: a number out of range, or a tokenizer without special tokens.
    """

    def __init__(
        self,
        documents: Documents | list,
        tokenizer: PreTrainedTokenizerBase,
        m: int = 3,
        max_length: int = 512,
        label_name: str = "labels",
        seed: int = 0,
    ):
        if not 1 <= m <= 6:
            raise ValueError(f"m is {m}; expected 1 to 6: seven segments have 5913 classes")
        if max_length < 2 * m + 1:
            raise ValueError(f"max_length is {max_length}; expected {2 * m + 1} or more for {m} segments")
        self.documents = Documents.of(documents, tokenizer)
        self.cls, self.sep = special_id(tokenizer, "cls"), special_id(tokenizer, "sep")
        self.m, self.max_length, self.label_name, self.seed = m, max_length, label_name, seed
        self.orders = orders_of(m)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the segments and orders of this epoch; Trainer calls it."""
        draw = random.Random(int(generator(self.seed, epoch).integers(2**62)))
        self.table = np.array(
            paragraphs(self.documents, draw, self.m, self.max_length - self.m - 1, self.orders), np.int32
        )

    def __len__(self) -> int:
        """Count paragraphs."""
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """One row: `input_ids` (L,), `token_type_ids` (L,) of 0, `word_ids` (L,) if known, and the class."""
        *edges, label = self.table[index].tolist()
        order = self.orders[label]
        spans = [(edges[segment], edges[segment + 1]) for segment in order]
        marks = [self.cls, *[self.sep] * len(spans)]
        row = {
            name: gathered(column, spans, marks, None if name == "input_ids" else NOWHERE)
            for name, column in self.documents.columns().items()
        }
        row["token_type_ids"] = np.zeros(len(row["input_ids"]), np.int64)
        return row | {self.label_name: label}


def paragraphs(
    documents: Documents, draw: random.Random, m: int, most: int, orders: Sequence[tuple[int, ...]]
) -> list[list[int]]:
    """Cut documents into paragraphs of up to `most` tokens, and these into segments.

    Returns:
        For each where its segments begin (m + 1 places, the last ones equal), and its class.
    """
    edges, starts = memoryview(documents.sentences), documents.documents.tolist()
    class_of = {order: number for number, order in enumerate(orders)}
    found = []
    for first, last in pairwise(starts):
        begin = first
        while begin < last:
            # At least one sentence, cut if it is longer.
            end = max(bisect_left(edges, edges[begin] + most + 1, begin + 1, last + 1) - 1, begin + 1)
            size = draw.randint(1, min(m, end - begin))
            cuts = [begin, *sorted(draw.sample(range(begin + 1, end), size - 1)), end]
            places = [edges[cut] for cut in cuts]
            places[-1] = min(places[-1], places[0] + most)
            order = list(range(size))
            draw.shuffle(order)
            found.append([*places, *[places[-1]] * (m - size), class_of[tuple(order)]])
            begin = end
    return found


__all__ = ["SentenceReorderingDataset", "orders_of"]
