"""Pairs of text segments for objectives over sentences, drawn anew every epoch.

Chunks of sentences and their random partners are those of BERT (Devlin et al. 2019, appendix A.2, and its released
code): sentences fill up a target length, a random cut makes A and B, and where B comes from elsewhere, the sentences
that it replaces begin the next chunk. Two things differ: a random document is never the same one (BERT gives up after ten
tries), and the tokens that are cut off are drawn at once.

Labels are those of the originals:

| objective | 0 | 1 | 2 | original |
|---|---|---|---|---|
| nsp | B follows A | B is random | | BERT |
| ernie | B is random | B follows A | | ERNIE 1.0 |
| xlnet | B is random | B follows A | | XLNet, `A [SEP] B [SEP] [CLS]` |
| sop | in order | swapped | | ALBERT |
| structural | B follows A | A follows B | B is random | StructBERT; the order of classes is ours |
| distance | adjacent | same document, apart | other document | ERNIE 2.0 |
| dialogue | a turn is random | real | | ERNIE 1.0, dialogues of two or three turns |

Letters: P pairs.
"""

import random
from bisect import bisect_left
from typing import Literal

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .documents import Documents, gathered, special_id
from .token_batch import NOWHERE, check_rate, generator

Objective = Literal["nsp", "ernie", "xlnet", "sop", "structural", "distance", "dialogue"]

FOLLOWS, SWAPPED, APART, OTHER = range(4)  # what B is to A
LABELS = {
    "nsp": {FOLLOWS: 0, OTHER: 1},
    "ernie": {FOLLOWS: 1, OTHER: 0},
    "xlnet": {FOLLOWS: 1, OTHER: 0},
    "sop": {FOLLOWS: 0, SWAPPED: 1, OTHER: 1},
    "structural": {FOLLOWS: 0, SWAPPED: 1, OTHER: 2},
    "distance": {FOLLOWS: 0, APART: 1, OTHER: 2},
    "dialogue": {FOLLOWS: 1, OTHER: 0},
}
CHOICES = {name: (FOLLOWS, SWAPPED) if name == "sop" else tuple(labels) for name, labels in LABELS.items()}


class SentencePairDataset(Dataset):
    """Rows `[CLS] A [SEP] B [SEP]` with `token_type_ids` and the label of the pair.

    Stores the ids of the corpus once and a table of positions, int32, which `set_epoch` draws anew. Every epoch has as many
    rows as the first, so that a training can count its steps and find its place again: of more, random ones are left out; of
    fewer, random ones come twice.

    Args:
        documents: `Documents`, or lists of sentences as `Documents.of` reads them. For "dialogue" a document is a
            dialogue and a sentence is a turn.
        tokenizer: has the special tokens, and reads texts.
        objective: see the table above.
        max_length: most tokens of a row with the special ones.
        short_seq_prob: share of documents with a random shorter target length, 2 tokens at least.
        single_sentence: what becomes of a chunk of one sentence in "sop": "other" takes B from another document with
            label 1, as ALBERT does; "drop" leaves it out. Other objectives always take a random B.
        label_name: what the model calls the label; None for `sentence_order_label` of ALBERT with "sop", else
            `next_sentence_label` of BERT and ERNIE.
        seed: equal seeds and epochs give equal rows.

    Raises:
        ValueError: an unknown objective, too few documents or tokens, a tokenizer without special tokens.
    """

    def __init__(
        self,
        documents: Documents | list,
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective = "nsp",
        max_length: int = 512,
        short_seq_prob: float = 0.1,
        single_sentence: Literal["other", "drop"] = "other",
        label_name: str | None = None,
        seed: int = 0,
    ):
        if objective not in LABELS:
            raise ValueError(f"expected an objective of {', '.join(LABELS)}, got {objective!r}")
        if single_sentence not in ("other", "drop"):
            raise ValueError(f'single_sentence must be "other" or "drop", got {single_sentence!r}')
        check_rate("short_seq_prob", short_seq_prob)
        self.marks = 4 if objective == "dialogue" else 3
        if max_length < self.marks + self.marks:
            raise ValueError(
                f"max_length is {max_length}; expected {2 * self.marks} or more, {self.marks} of which are special tokens"
            )
        self.documents = Documents.of(documents, tokenizer)
        self.objective, self.max_length, self.seed = objective, max_length, seed
        self.short_seq_prob, self.single_sentence = short_seq_prob, single_sentence
        if len(self.documents) < 2 and not (objective == "sop" and single_sentence == "drop"):
            raise ValueError(
                f"{objective} takes random sentences from other documents, but there is only one document: part documents "
                "by blank lines, or give a list for each"
            )
        if len(self.documents.tokens) > np.iinfo(np.int32).max:
            raise ValueError(
                "the corpus has more than 2,147,483,647 tokens: make a data set for each of several parts"
            )
        self.cls, self.sep = special_id(tokenizer, "cls"), special_id(tokenizer, "sep")
        default = "sentence_order_label" if objective == "sop" else "next_sentence_label"
        self.label_name = label_name or default
        self.epoch: int | None = None
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the pairs of this epoch; Trainer calls it, more than once an epoch."""
        if epoch == self.epoch:
            return
        first, self.epoch = self.epoch is None, epoch
        rng = generator(self.seed, epoch)
        draw = random.Random(int(rng.integers(2**62)))
        if self.objective == "dialogue":
            table = dialogues(self.documents, draw)
            shorter = shortened(rng, table, self.max_length - self.marks)
        else:
            table = pairs(
                self.documents,
                draw,
                self.objective,
                self.max_length - self.marks,
                self.short_seq_prob,
                self.single_sentence,
            )
            shorter = truncated(rng, table, self.max_length - self.marks)
        if not len(table):
            raise ValueError(
                f"found nothing for {self.objective} in the documents: all have too few sentences"
            )
        table = np.concatenate([shorter, table[:, -1:]], axis=1).astype(np.int32)
        self.table = table if first else as_many(rng, table, len(self.table))

    def __len__(self) -> int:
        """Count pairs of this epoch."""
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | int]:
        """One row: `input_ids` (L,), `token_type_ids` (L,), `word_ids` (L,) if known, and the label."""
        *places, label = self.table[index].tolist()
        spans = [span for span in zip(places[::2], places[1::2], strict=True) if span[0] < span[1]]
        sizes = [end - begin + 1 for begin, end in spans]
        if self.objective == "xlnet":
            marks, sizes = [-1, *[self.sep] * len(spans)], [*sizes, 1]
            spans.append((0, 0))
            marks.append(self.cls)
        else:
            marks = [self.cls, *[self.sep] * len(spans)]
            sizes[0] += 1
        row = {
            name: gathered(column, spans, marks, None if name == "input_ids" else NOWHERE)
            for name, column in self.documents.columns().items()
        }
        row["token_type_ids"] = np.repeat(np.arange(len(sizes)), sizes)
        return row | {self.label_name: label}


def pairs(
    documents: Documents,
    draw: random.Random,
    objective: str,
    most: int,
    short_seq_prob: float,
    single_sentence: str,
) -> np.ndarray:
    """Walk through all documents as BERT does.

    Args:
        documents: of the corpus.
        draw: random numbers.
        objective: other than "dialogue".
        most: tokens of A and B together.
        short_seq_prob: share of documents with a shorter target.
        single_sentence: see `SentencePairDataset`.

    Returns:
        (P, 5), int64: begin and end of A, begin and end of B, label. A and B are not truncated yet.
    """
    edges, starts = memoryview(documents.sentences), documents.documents.tolist()
    labels, choices, count = LABELS[objective], CHOICES[objective], len(documents)
    chance, found = draw.random, []
    for number in range(count):
        first, last = starts[number], starts[number + 1]
        target = draw.randint(2, most) if chance() < short_seq_prob else most
        begin = first
        while begin < last:
            end = min(bisect_left(edges, edges[begin] + target, begin + 1, last), last)
            size = end - begin
            cut = begin + 1 + int(chance() * (size - 1)) if size > 1 else end
            relation = choices[int(chance() * len(choices))] if size > 1 else OTHER
            need = target - (edges[cut] - edges[begin])
            before, behind = (
                max(begin - 1 - first, 0),
                max(last - cut - 1, 0),
            )  # places where B does not touch A
            if relation == APART and not before + behind:
                relation = (FOLLOWS, OTHER)[int(chance() * 2)]
            if relation == OTHER and size == 1 and single_sentence == "drop" and objective == "sop":
                begin = end
                continue
            a, b = (edges[begin], edges[cut]), (edges[cut], edges[end])
            if relation in (APART, OTHER):
                if relation == APART:
                    spot = int(chance() * (before + behind))
                    start, limit = (
                        (first + spot, begin - 1) if spot < before else (cut + 1 + spot - before, last)
                    )
                else:
                    other = (number + 1 + int(chance() * (count - 1))) % count
                    start, limit = starts[other], starts[other + 1]
                    start += int(chance() * (limit - start))
                stop = min(bisect_left(edges, edges[start] + need, start + 1, limit), limit)
                b, end = (edges[start], edges[stop]), cut  # what b replaces begins the next chunk
            elif relation == SWAPPED:
                a, b = b, a
            found += (*a, *b, labels[relation])
            begin = end
    return np.array(found, np.int64).reshape(-1, 5)


def dialogues(documents: Documents, draw: random.Random) -> np.ndarray:
    """Cut dialogues into three turns each, from a random turn on, and replace a turn in half of them.

    Returns:
        (P, 7), int64: begin and end of three turns, the third of which may be empty, and the label.
    """
    edges, starts = documents.sentences.tolist(), documents.documents.tolist()
    found, count = [], len(documents)
    for number in range(count):
        first, last = starts[number], starts[number + 1]
        for begin in range(first + int(draw.random() * min(3, max(1, last - first - 2))), last - 1, 3):
            turns = [(edges[turn], edges[turn + 1]) for turn in range(begin, min(begin + 3, last))]
            relation = OTHER if draw.random() < 0.5 else FOLLOWS
            if relation == OTHER:
                other = (number + 1 + int(draw.random() * (count - 1))) % count
                turn = draw.randrange(starts[other], starts[other + 1])
                turns[draw.randrange(len(turns))] = (edges[turn], edges[turn + 1])
            turns += [(0, 0)] * (3 - len(turns))
            found += (*turns[0], *turns[1], *turns[2], LABELS["dialogue"][relation])
    return np.array(found, np.int64).reshape(-1, 7)


def as_many(rng: np.random.Generator, table: np.ndarray, number: int) -> np.ndarray:
    """As many rows as `number`, in their order: without random ones of (P, ..), or with random ones twice."""
    order = rng.permutation(len(table))
    return table[np.sort(np.resize(order, number))]


def truncated(rng: np.random.Generator, table: np.ndarray, most: int) -> np.ndarray:
    """Cut A and B down to `most` tokens, always the longer one, at either end with equal chances.

    Args:
        rng: random numbers.
        table: (P, 5), begin and end of A and of B, and more.
        most: tokens of both together.

    Returns:
        (P, 4), int64.
    """
    begins, ends = table[:, 0:4:2], table[:, 1:4:2]
    a, b = (ends - begins).T
    excess = np.maximum(a + b - most, 0)
    level = np.minimum(excess, abs(a - b))  # until both are as long; then b and a by turns
    rest = excess - level
    gone = np.stack(
        [np.where(a > b, level, 0) + rest // 2, np.where(a > b, 0, level) + (rest + 1) // 2], axis=1
    )
    front = rng.binomial(gone, 0.5)
    return np.stack([begins + front, ends - (gone - front)], axis=2).reshape(-1, 4)


def shortened(rng: np.random.Generator, table: np.ndarray, most: int) -> np.ndarray:
    """Cut the ends of the longest of three turns until they have `most` tokens together (P, 6)."""
    begins, ends = table[:, 0:6:2], table[:, 1:6:2]
    size = np.sort(ends - begins, axis=1)
    rest = most - np.cumsum(size, axis=1) + size  # for this and the longer ones
    caps = rest // np.array([3, 2, 1])
    fits = size <= caps
    cap = np.where(fits[:, 0], np.where(fits[:, 1], caps[:, 2], caps[:, 1]), caps[:, 0])
    return np.stack([begins, np.minimum(ends, begins + cap[:, None])], axis=2).reshape(-1, 6)


__all__ = ["LABELS", "SentencePairDataset"]
