"""Endless streams for language models that carry their state from batch to batch, as in bilm-tf (Peters et al. 2018).

Letters: B rows of a batch, W processes, R = W * B rows of a global batch, T positions (`unroll_steps`), C characters.

Each of the R rows is a lane: its sentences follow one another without padding and are cut wherever a batch ends. The
batches are a function of shards, seed, R and T alone. Process r takes rows r*B to r*B + B - 1 of every global batch;
worker w of n makes the global batches w, w + n, ... So W processes with B rows see what one process with W * B rows sees,
and the number of workers changes nothing but the speed. Every process and worker walks the whole text, since cutting it
is cheap, and spells words only for the rows that it hands out.

A shard is anything that can be iterated again and again and yields rows, say lines; its `str` is its name in messages.
Unlike in bilm-tf, which loads one shard after the other whole and shuffles it, rows go through a shuffling buffer: shards
may be larger than memory, and a few files of different kinds are mixed rather than learned one after the other.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice, zip_longest

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from .collators import IGNORED

ROWS_AT_ONCE = 1000  # rows that are encoded together: many for a fast tokenizer, few for the memory
Encode = Callable[[list], list[list]]


class Sentences:
    """The sentences of some shards, in passes over the text.

    With shuffling, every pass takes the shards in a new order and their rows through a buffer.

    Args:
        shards: each can be iterated again and again, and yields rows.
        encode: makes lists of words or ids from a list of rows. A sentence without words counts as one.
        seed: equal seeds give equal orders.
        direction: any text; orders of different directions are independent.
        shuffle_buffer: rows to choose from, 0 for no shuffling; with as many as the text has, the shuffle is perfect.
        one_pass: stop after all shards, instead of starting again.
    """

    def __init__(
        self,
        shards: Sequence[Iterable],
        encode: Encode,
        seed: int = 0,
        direction: str = "forward",
        shuffle_buffer: int = 0,
        one_pass: bool = False,
    ):
        self.shards, self.encode, self.one_pass = list(shards), encode, one_pass
        self.seed, self.direction = seed, direction
        self.shuffle_buffer = _at_least(0, shuffle_buffer=shuffle_buffer)

    def __iter__(self) -> Iterator[list]:
        """Yield sentence after sentence.

        Raises:
            ValueError: a pass over all shards came upon no word.
        """
        for epoch in range(1) if self.one_pass else count():
            words = 0
            for sentence in self._pass(epoch):
                words += len(sentence)
                yield sentence
            if not words:
                raise ValueError(no_sentences(self.shards))

    def identity(self) -> dict[str, int]:
        """What the order is a function of, besides the text."""
        return {"seed": self.seed, "shuffle_buffer": self.shuffle_buffer, "shards": len(self.shards)}

    def _pass(self, epoch: int) -> Iterator[list]:
        order = list(range(len(self.shards)))
        if self.shuffle_buffer:
            self._random(epoch, "shards").shuffle(order)
        rows = chain.from_iterable(self.shards[number] for number in order)
        if self.shuffle_buffer:
            rows = self._shuffled(rows, self._random(epoch, "rows"))
        while part := list(islice(rows, ROWS_AT_ONCE)):
            yield from self.encode(part)

    def _shuffled(self, rows: Iterator, chance: random.Random) -> Iterator:
        """Hand out a random row of the buffer for each new one, and at last the buffer in random order."""
        size = self.shuffle_buffer
        buffer = list(islice(rows, size))
        for row in rows:
            place = int(chance.random() * size)
            buffer[place], row = row, buffer[place]
            yield row
        chance.shuffle(buffer)
        yield from buffer

    def _random(self, *place: object) -> random.Random:
        return random.Random(" ".join(map(str, (self.seed, self.direction, *place))))


class Lanes:
    """Sentences packed into rows of T positions, exactly as bilm-tf does it.

    A row takes the next sentence as soon as its own has no more than one item left, so sentences go to rows on demand.
    A forward sentence is begin, words, end; a backward one is end, words from the last to the first, begin. Inputs are
    all items of it but the last, targets all but the first.

    Args:
        sentences: lists of words or of ids.
        rows: R, how many lanes.
        unroll_steps: T, positions of a batch.
        marks: the items before and behind each sentence.
        backward: read sentences from their ends.
        drop_last: leave out the first batch that cannot be filled, and all behind it, as bilm-tf does. Otherwise the
            last batches have None where there is nothing left, and each target of the text comes once.
    """

    def __init__(
        self,
        sentences: Iterable[list],
        rows: int,
        unroll_steps: int,
        marks: tuple,
        backward: bool = False,
        drop_last: bool = False,
    ):
        self.sentences, self.marks, self.backward, self.drop_last = sentences, marks, backward, drop_last
        self.rows, self.unroll_steps = _at_least(1, rows=rows), _at_least(1, unroll_steps=unroll_steps)

    def __iter__(self) -> Iterator[tuple[list[list], list[list]]]:
        """Yield inputs (R, T) and targets (R, T), lists of lists."""
        (first, last), steps = reversed(self.marks) if self.backward else self.marks, self.unroll_steps
        supply = iter(self.sentences)
        lanes = [[] for _ in range(self.rows)]  # the items that each row has begun and not yet used up
        while True:
            inputs, targets, missing = [], [], 0
            for row, items in enumerate(lanes):
                ins, outs = [], []
                while (room := steps - len(ins)) > 0:
                    if len(items) <= 1:
                        words = next(supply, None)
                        if words is None:
                            break
                        items = [first, *(words[::-1] if self.backward else words), last]
                    ins += items[: min(room, len(items) - 1)]
                    outs += items[1 : room + 1]
                    items = items[room:]
                lanes[row] = items
                if room:
                    missing += room
                    ins += [None] * room
                    outs += [None] * room
                inputs.append(ins)
                targets.append(outs)
            if missing == steps * self.rows or (missing and self.drop_last):
                return
            yield inputs, targets


class EndlessBatches(IterableDataset):
    """Global batches, of which each process takes its rows and each worker of a DataLoader its turns."""

    def __init__(self, collate: Callable, batch_size: int, rank: int, world_size: int, start: int):
        self.collate, self.rank = collate, rank
        self.batch_size = _at_least(1, batch_size=batch_size)
        self.world_size = _at_least(1, world_size=world_size)
        self.start = _at_least(0, start=start)
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank is {rank}; expected 0 to {world_size - 1}, as world_size is {world_size}."
            )

    def __iter__(self) -> Iterator:
        worker = get_worker_info()
        turn, turns = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in islice(self._global_batches(), self.start + turn, None, turns):
            yield self._collated(batch)

    def identity(self) -> dict[str, int]:
        """What the batches are a function of, besides the text: a training resumes only with the same."""
        raise NotImplementedError

    def _global_batches(self) -> Iterator:
        raise NotImplementedError

    def _collated(self, batch) -> dict[str, Tensor]:
        raise NotImplementedError


class Stream(EndlessBatches):
    """Batches of lanes, for `DataLoader(stream, batch_size=None, num_workers=n)`.

    To go on where a training stopped, set `stream.start` to the number of batches already seen, before a loader is made
    of it: they are packed once more, but not collated.

    Args:
        shards: the text; see `Sentences`.
        encode: makes lists of words or ids from a list of rows.
        collate: makes a batch of inputs (B, T) and targets (B, T), and of those of the backward direction if there is
            one; lists of lists, None where a single pass ran out of text.
        batch_size: B, rows of one process.
        unroll_steps: T, positions of a batch.
        marks: the items before and behind each sentence, words or ids as `encode` makes them.
        bidirectional: also read backward, another shuffle of the same text.
        seed: equal seeds give equal batches.
        shuffle_buffer: rows to choose the next one from, 0 for the text's own order.
        one_pass: stop at the end of the text. If directions need different numbers of batches, the shorter one's last
            batches are all None, or with `drop_last` the longer one's are left out.
        drop_last: with `one_pass`, leave out the batches that cannot be filled, as bilm-tf's test does.
        rank: which process this is.
        world_size: W, how many there are.
        start: the number of batches to skip.

    Raises:
        ValueError: no shards, or a number out of range; while iterating, a text without words.
    """

    def __init__(
        self,
        shards: Sequence[Iterable],
        encode: Encode,
        collate: Callable[..., dict[str, Tensor]],
        batch_size: int,
        unroll_steps: int,
        marks: tuple,
        bidirectional: bool = False,
        seed: int = 0,
        shuffle_buffer: int = 100_000,
        one_pass: bool = False,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ):
        super().__init__(collate, batch_size, rank, world_size, start)
        self.drop_last = drop_last
        self.lanes = []
        for direction in ("forward", "backward")[: 1 + bidirectional]:
            sentences = Sentences(_some(shards), encode, seed, direction, shuffle_buffer, one_pass)
            rows, backward = batch_size * world_size, direction == "backward"
            self.lanes.append(Lanes(sentences, rows, unroll_steps, marks, backward, drop_last))

    def identity(self) -> dict[str, int]:
        """Sizes, seed and the number of shards."""
        lanes, sentences = self.lanes[0], self.lanes[0].sentences
        return {"rows": lanes.rows, "unroll_steps": lanes.unroll_steps} | sentences.identity()

    def _global_batches(self) -> Iterator[tuple]:
        """Yield (inputs, targets) (R, T) of each direction."""
        if self.drop_last:
            return zip(*self.lanes, strict=False)
        nothing = [[None] * self.lanes[0].unroll_steps] * self.lanes[0].rows
        return zip_longest(*self.lanes, fillvalue=(nothing, nothing))

    def _collated(self, batch: tuple) -> dict[str, Tensor]:
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        return self.collate(*(matrix[mine] for direction in batch for matrix in direction))


class SentenceBatches(EndlessBatches):
    """Endless batches of whole sentences of similar lengths, from texts that may be larger than memory.

    Blocks of shuffled sentences are sorted by length and cut into batches, whose order is shuffled.

    Args:
        shards: the text; see `Sentences`.
        encode: makes lists of words from a list of rows; empty ones are left out.
        collate: makes a batch of B rows `{"words": [...]}`, for instance `LanguageModelingCollator`.
        batch_size: B, sentences of a batch of one process.
        max_words: longer sentences are cut into pieces.
        seed: equal seeds give equal batches.
        shuffle_buffer: rows to choose the next one from, and about as many sentences are sorted at once; 0 for batches
            in the text's own order.
        rank: which process this is; it takes every W-th sentence of a global batch.
        world_size: W, how many there are.
        start: the number of batches to skip; see `Stream`.

    Raises:
        ValueError: no shards, or a number out of range; while iterating, a text without words.
    """

    def __init__(
        self,
        shards: Sequence[Iterable],
        encode: Encode,
        collate: Callable[[list[dict]], dict[str, Tensor]],
        batch_size: int,
        max_words: int = 64,
        seed: int = 0,
        shuffle_buffer: int = 100_000,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ):
        super().__init__(collate, batch_size, rank, world_size, start)
        self.sentences = Sentences(_some(shards), encode, seed, "sentences", shuffle_buffer)
        self.max_words = _at_least(1, max_words=max_words)

    def identity(self) -> dict[str, int]:
        """Sizes, seed and the number of shards."""
        rows = self.batch_size * self.world_size
        return {"rows": rows, "max_words": self.max_words} | self.sentences.identity()

    def _global_batches(self) -> Iterator[list[list]]:
        """Yield R sentences at a time."""
        size, longest = self.batch_size * self.world_size, self.max_words
        block = max(self.sentences.shuffle_buffer // size, 1) * size  # nothing is left over
        pieces = (
            sentence[start : start + longest]
            for sentence in self.sentences
            for start in range(0, len(sentence), longest)
        )
        for number in count():
            ranked = sorted(islice(pieces, block), key=len)
            starts = list(range(0, block, size))
            random.Random(f"{self.sentences.seed} batches {number}").shuffle(starts)
            yield from (ranked[start : start + size] for start in starts)

    def _collated(self, batch: list[list]) -> dict[str, Tensor]:
        return self.collate([{"words": words} for words in batch[self.rank :: self.world_size]])


@dataclass
class ElmoStreamCollator:
    """Lanes of words for a biLM that trains with carried states. `marks` are the tokenizer's `bos_token`, `eos_token`.

    Args:
        tokenizer: an `ElmoTokenizer`; spells words and knows their ids.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, *matrices: list[list]) -> dict[str, Tensor]:
        """Make `char_ids` (B, T, C), `input_ids` (B, T) and `labels` (B, T), and with two directions also those three
        with `backward_` before their names. Where there is no word, ids are 0 and labels -100.

        Args:
            *matrices: inputs, targets and perhaps backward inputs and targets; B lists of T words or None.
        """
        words = dict.fromkeys(chain.from_iterable(chain.from_iterable(matrices)))  # each is spelled once
        words.pop(None, None)
        row_of = dict(zip((None, *words), count(), strict=False))  # row 0 is padding
        word_ids = np.array([0, *self.tokenizer.word_ids_of(words)], np.int64)
        char_ids = None
        if "char_ids" in self.tokenizer.model_input_names:
            char_ids = np.pad(self.tokenizer.char_ids_of(list(words)), ((1, 0), (0, 0)))
        batch = {}
        for number in range(0, len(matrices), 2):
            prefix = "backward_" if number else ""
            inputs, targets = (
                np.array([[row_of[word] for word in row] for row in matrix], np.int64)
                for matrix in matrices[number : number + 2]
            )
            if char_ids is not None:
                batch[f"{prefix}char_ids"] = torch.from_numpy(char_ids[inputs])
            batch[f"{prefix}input_ids"] = torch.from_numpy(word_ids[inputs])
            batch[f"{prefix}labels"] = torch.from_numpy(np.where(targets == 0, IGNORED, word_ids[targets]))
        return batch


@dataclass
class TokenStreamCollator:
    """Lanes of token ids for a language model of one direction, whose targets are shifted already.

    Args:
        label_name: what the model calls such targets: `shift_labels` or, for XLNet, `labels`.
        padding: the input where a single pass has run out of text.
    """

    label_name: str = "shift_labels"
    padding: int = 0

    def __call__(self, inputs: list[list], targets: list[list]) -> dict[str, Tensor]:
        """Make `input_ids` (B, T) and targets (B, T), -100 where there is none."""
        return {
            "input_ids": _tensor(inputs, self.padding),
            self.label_name: _tensor(targets, IGNORED),
        }


def no_sentences(shards: Sequence[Iterable]) -> str:
    """What to say of shards in which no word was found."""
    names = ", ".join(map(str, shards[:5])) + (" ..." if len(shards) > 5 else "")
    return (
        f"found no sentence in {names}; expected lines of text. Are the files, or their text column, empty?"
    )


def _tensor(matrix: list[list], filling: int) -> Tensor:
    return torch.tensor([[filling if item is None else item for item in row] for row in matrix])


def _some(shards: Sequence[Iterable]) -> Sequence[Iterable]:
    if not shards:
        raise ValueError("shards is empty; expected one at least. Name a file with text.")
    return shards


def _at_least(least: int, **number: int) -> int:
    ((name, value),) = number.items()
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; expected an int of at least {least}.")
    return value


__all__ = [
    "ElmoStreamCollator",
    "EndlessBatches",
    "Lanes",
    "SentenceBatches",
    "Sentences",
    "Stream",
    "TokenStreamCollator",
    "no_sentences",
]
