"""A corpus in lanes for XLNet's memories: each row is text that becomes memory, and two segments that do not.

As in the released code of Yang et al. 2019 (section 2.5): a row of 512 tokens is 256 of running text, the part that is
reused, then `A <sep> B <sep> <cls>`. A is what follows the first part; B is what follows A, or in half of the rows a text
from elsewhere. The next row of the lane begins right behind the first part. So memories are those of one running text,
and each token is read twice: as new text with a row's second part, then as the first part of a later row.

The first part of a row must see nothing of the second one (`PermutationTargets(reuse_length=...)`), and the model must keep
the first part alone (`reuse_len` of its config). `StockPretrainingTrainer` sees to both.

Letters: N tokens, R lanes, L positions.
"""

import numpy as np
from transformers import PreTrainedTokenizerBase

from .documents import Documents, gathered, special_id
from .text_packing import separated
from .token_batch import NOWHERE, generator
from .token_lanes import TokenLanes

MARKS = 3  # two separators and the token for classes
FOLLOWS = 0.5  # share of rows whose B follows A


class PermutationLanes(TokenLanes):
    """Rows for permutation language modelling with memories; row `s * R + k` is step s of lane k.

    Rows are a function of seed, epoch and index. Only the last row of a lane may be shorter than L, so that nothing but text
    becomes memory. B from elsewhere begins with a sentence, and its lane has not read it before, or the memory would hold
    the answers. Where there is no such text, as at the end of a single lane, B follows. A row with fewer than two tokens
    behind its first part has no B.

    Args:
        documents: of the corpus, with what stands between them.
        length: L, tokens of a row with its special ones.
        reuse_length: tokens of the first part.
        cls: id of the token behind each row.
        sep: id of the token behind A and B.
        lanes: R.
        seed: of the choice of A and B.

    Raises:
        ValueError: no room for two segments, or too few tokens for so many lanes.
    """

    def __init__(
        self,
        documents: Documents,
        length: int,
        reuse_length: int,
        cls: int,
        sep: int,
        lanes: int = 1,
        seed: int = 0,
    ):
        super().__init__(documents.tokens, length, lanes)
        most = length - MARKS - 2
        if not 1 <= reuse_length <= most:
            raise ValueError(
                f"reuse_len is {reuse_length}; expected 1 to {most}, since rows of {length} tokens have two more segments and "
                f"{MARKS} special tokens. The paper has 256 of 512."
            )
        if len(self.tokens) < 4 * lanes:
            raise ValueError(
                f"{len(self.tokens)} tokens do not fill {lanes} lanes of four or more, one for each row of a batch (of all "
                "processes together): give more text, or a smaller batch size"
            )
        self.documents, self.reuse_length, self.seed, self.epoch = documents, reuse_length, seed, 0
        self.marks = cls, sep
        self.edges = np.arange(lanes + 1) * len(self.tokens) // lanes
        rest = int(np.diff(self.edges).max()) - (length - MARKS)  # behind the first row
        self.steps = 1 + -(-max(rest, 0) // reuse_length)

    def spread(self, lanes: int) -> "PermutationLanes":
        """The same text in another number of lanes."""
        if lanes == self.lanes:
            return self
        other = PermutationLanes(
            self.documents, self.length, self.reuse_length, *self.marks, lanes, self.seed
        )
        other.set_epoch(self.epoch)
        return other

    def identity(self) -> dict[str, int]:
        """What the rows are a function of, besides text and epoch: a training resumes only with the same."""
        return super().identity() | {"reuse_length": self.reuse_length, "seed": self.seed}

    def set_epoch(self, epoch: int) -> None:
        """Choose other second parts from now on."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One row: `input_ids`, `token_type_ids` (0 with the first separator, 1 with the second, 2) and, if known,
        `word_ids`, all (L,), int64 arrays of their own.
        """
        self._check_index(index)
        step, lane = divmod(index, self.lanes)
        begin = int(self.edges[lane]) + step * self.reuse_length
        end = min(begin + self.length - MARKS, int(self.edges[lane + 1]))
        middle = min(begin + self.reuse_length, end)
        spans = self._segments(generator(self.seed, self.epoch, index), lane, (begin, middle, end))
        sizes = [last - first + 1 for first, last in spans]
        cls, sep = self.marks
        marks = [-1, *[sep] * len(spans), cls]
        row = {
            name: gathered(column, [*spans, (0, 0)], marks, None if name == "input_ids" else NOWHERE)
            for name, column in self.documents.columns().items()
        }
        row["token_type_ids"] = np.repeat([*range(len(spans)), 2], [*sizes, 1])
        return row

    def _segments(
        self, rng: np.random.Generator, lane: int, edges: tuple[int, int, int]
    ) -> list[tuple[int, int]]:
        """The first part with A, and B, as places in the corpus.

        Args:
            rng: random numbers.
            lane: of the row.
            edges: where the row begins, where its first part ends, and where it ends if B follows.
        """
        begin, middle, end = edges
        if end - middle < 2:
            return [(begin, end)]
        starts = self.documents.sentences[:-1]
        cuts = starts[np.searchsorted(starts, middle + 1) : np.searchsorted(starts, end)]
        cut = int(rng.choice(cuts)) if len(cuts) else (middle + end) // 2
        size = end - cut
        # Sentences before the lane and behind the row, from where so many tokens go on.
        before = int(np.searchsorted(starts, self.edges[lane] - size, side="right"))
        behind = np.searchsorted(starts, [end, len(self.tokens) - size + 1])
        places = before + max(int(behind[1] - behind[0]), 0)
        if not places or (len(cuts) and rng.random() < FOLLOWS):
            return [(begin, cut), (cut, end)]
        place = int(rng.integers(places))
        other = int(starts[place if place < before else behind[0] + place - before])
        return [(begin, cut), (other, other + size)]


def pack_permutation_lanes(
    documents: Documents | list,
    length: int,
    reuse_length: int,
    tokenizer: PreTrainedTokenizerBase,
    lanes: int = 1,
    seed: int = 0,
) -> PermutationLanes:
    """Lanes of a corpus with the tokenizer's special tokens; see `PermutationLanes`.

    Behind each document stands `<eod>`, as in the released code, or the end-of-text token of a tokenizer without one.

    Args:
        documents: see `Documents.of`; texts get `word_ids`.
        length: L, tokens of a row with its special ones.
        reuse_length: tokens of the first part.
        tokenizer: has the special tokens.
        lanes: R; `StockPretrainingTrainer` sets it to the rows of a batch.
        seed: of the choice of A and B.
    """
    separator = tokenizer.get_vocab().get("<eod>")
    separator = special_id(tokenizer, "eos") if separator is None else separator
    corpus = separated(Documents.of(documents, tokenizer, words=True), separator)
    marks = special_id(tokenizer, "cls"), special_id(tokenizer, "sep")
    return PermutationLanes(corpus, length, reuse_length, *marks, lanes, seed)


__all__ = ["PermutationLanes", "pack_permutation_lanes"]
