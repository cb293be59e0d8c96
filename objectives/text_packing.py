"""Rows without padding or nearly so, cut out of a corpus: contiguous, whole sentences, whole sentences of one document.

Radford et al. 2018 and 2019 (GPT: contiguous, with a token between documents); Liu et al. 2019 (RoBERTa), section 4.2:
FULL-SENTENCES and DOC-SENTENCES. Lanes that go on from batch to batch, as Transformer-XL reads them, are in
`token_lanes.py`.

Letters: N tokens, S sentences, K blocks.
"""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, from_numpy
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .collators import IGNORED
from .documents import Documents, gathered
from .token_batch import NOWHERE, TokenBatch, Vocabulary


class TextBlocks(Dataset):
    """Rows out of flat columns.

    Args:
        columns: `input_ids` (N,) and others like it.
        edges: (K + 1,), where blocks begin in the columns, and where the last one ends.
        before: a special id before each row, -1 for none.
        after: a special id behind each row, -1 for none.
        fills: what other columns hold at special ids, -1 where nothing is said.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        edges: np.ndarray,
        before: int = -1,
        after: int = -1,
        fills: Mapping[str, int] | None = None,
    ):
        self.columns, self.edges, self.marks = columns, edges, (before, after)
        self.fills = dict.fromkeys(columns, NOWHERE) | {"input_ids": None} | dict(fills or {})
        self.kept = np.arange(len(edges) - 1)

    def with_text(self, vocabulary: Vocabulary) -> "TextBlocks":
        """The same without blocks in which nothing can be hidden, such as a separator that had no room behind its sentence.

        Raises:
            ValueError: nothing is left.
        """
        stop = self.edges[-1]  # behind it may be a rest that fills no block
        text = ~vocabulary.is_special[self.columns["input_ids"][:stop]]
        if "word_ids" in self.columns:
            text &= self.columns["word_ids"][:stop] >= 0
        other = copy.copy(self)
        other.kept = self.kept[np.logical_or.reduceat(text, self.edges[:-1])[self.kept]]
        if not len(other):
            raise ValueError(
                "the text has special tokens alone, or no words: expected some that can be hidden"
            )
        return other

    def __len__(self) -> int:
        """Count blocks."""
        return len(self.kept)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One row, int64 arrays of their own."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"expected a block of 0 to {len(self) - 1}, got {index}")
        index = self.kept[index]
        span = [(int(self.edges[index]), int(self.edges[index + 1]))]
        return {
            name: gathered(column, span, self.marks, self.fills[name])
            for name, column in self.columns.items()
        }

    def fill(self, max_length: int) -> float:
        """The share of positions that tokens fill if each row has `max_length` positions."""
        marks = sum(mark >= 0 for mark in self.marks)
        return float((np.diff(self.edges)[self.kept].sum() + marks * len(self)) / (max_length * len(self)))


def pack_contiguous(
    documents: Documents | list,
    max_length: int,
    separator: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    drop_last: bool = True,
) -> TextBlocks:
    """Cut a corpus every `max_length` tokens, wherever that is.

    Args:
        documents: see `Documents.of`.
        max_length: tokens of a row.
        separator: an id behind each document, as `<|endoftext|>` of GPT-2; None for none.
        tokenizer: for texts.
        drop_last: leave out the last row if it is shorter.

    Raises:
        ValueError: not enough text for one row.
    """
    _at_least_one(max_length)
    corpus = separated(Documents.of(documents, tokenizer), separator)
    total = len(corpus.tokens)
    if drop_last and total < max_length:
        raise ValueError(
            f"expected text for one row of {max_length} tokens, got {total}: use drop_last=False"
        )
    stop = total // max_length * max_length
    edges = np.arange(0, stop + 1, max_length)
    return TextBlocks(corpus.columns(), edges if drop_last or stop == total else np.append(edges, total))


def pack_full_sentences(
    documents: Documents | list,
    max_length: int,
    separator: int | None = None,
    before: int = -1,
    after: int = -1,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> TextBlocks:
    """Fill rows with whole sentences, which may come from several documents, as RoBERTa. Only a sentence that is longer
    than a row is cut.

    Args:
        documents: see `Documents.of`.
        max_length: most tokens of a row with `before` and `after`.
        separator: an id behind each document, as `</s>` of RoBERTa; None for none.
        before: a special id before each row, -1 for none.
        after: a special id behind each row, -1 for none.
        tokenizer: for texts.
    """
    corpus, room = separated(Documents.of(documents, tokenizer), separator), _room(max_length, before, after)
    return TextBlocks(corpus.columns(), sentence_blocks(corpus.sentences, room), before, after)


def pack_doc_sentences(
    documents: Documents | list,
    max_length: int,
    before: int = -1,
    after: int = -1,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> TextBlocks:
    """Fill rows with whole sentences of one document each. See `pack_full_sentences`."""
    corpus, room = Documents.of(documents, tokenizer), _room(max_length, before, after)
    edges = sentence_blocks(corpus.sentences, room, corpus.sentences[corpus.documents])
    return TextBlocks(corpus.columns(), edges, before, after)


def sentence_blocks(sentences: np.ndarray, room: int, borders: np.ndarray | None = None) -> np.ndarray:
    """Where blocks of whole sentences begin, each with as many as fit.

    Args:
        sentences: (S + 1,), where sentences begin among the tokens, and where the last one ends.
        room: most tokens of a block; longer sentences are cut into pieces.
        borders: places among the tokens, in order, that no block crosses.

    Returns:
        (K + 1,), where blocks begin among the tokens, and where the last one ends.
    """
    sizes = np.diff(sentences)
    if sizes.max() > room:
        pieces = -(-sizes // room)
        inner = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        sentences = np.append(np.repeat(sentences[:-1], pieces) + inner * room, sentences[-1])
    following = np.searchsorted(sentences, sentences + room, side="right") - 1
    if borders is not None:
        border = borders[np.minimum(np.searchsorted(borders, sentences, side="right"), len(borders) - 1)]
        following = np.minimum(following, np.searchsorted(sentences, border))
    step, place, found = following.tolist(), 0, [0]
    while place < len(sentences) - 1:
        place = step[place]
        found.append(place)
    return sentences[found]


def separated(documents: Documents, separator: int | None) -> Documents:
    """The same documents with an id behind each, which belongs to its last sentence and to no word."""
    if separator is None:
        return documents
    ends = documents.sentences[documents.documents[1:]]
    before = np.searchsorted(documents.documents[1:], np.arange(len(documents.sentences)), side="right")
    words = documents.word_ids
    return Documents(
        np.insert(documents.tokens, ends, separator),
        documents.sentences + before,
        documents.documents,
        None if words is None else np.insert(words, ends, NOWHERE),
    )


def _at_least_one(max_length: int) -> None:
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; expected 1 or more")


def _room(max_length: int, before: int, after: int) -> int:
    marks = (before >= 0) + (after >= 0)
    if max_length <= marks:
        raise ValueError(
            f"max_length is {max_length}; expected more than the {marks} special tokens of a row"
        )
    return max_length - marks


def causal_labels(batch: TokenBatch) -> np.ndarray:
    """All tokens of each row as targets (B, L), -100 behind its end; the model shifts them.

    The length of a row says where it ends, not the id that fills up: with an end-of-text token as padding, as is usual for
    GPT-2, the model would else never learn to end a text.
    """
    return np.where(batch.attention_mask == 1, batch.input_ids, IGNORED)


class DataCollatorForCausalLanguageModeling:
    """Rows with `input_ids` as a batch with `attention_mask` and `labels`, each (B, L); see `causal_labels`.

    Args:
        tokenizer: says which id fills up.
        pad_to_multiple_of: makes widths multiples of this.
    """

    fits = ("causal",)  # kinds of stock models, of `gathered_head.KINDS`

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None):
        self.vocabulary, self.pad_to_multiple_of = Vocabulary.from_tokenizer(tokenizer), pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows."""
        batch = TokenBatch.from_rows(rows, self.vocabulary, pad_to_multiple_of=self.pad_to_multiple_of)
        arrays = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "labels": causal_labels(batch),
        }
        return {name: from_numpy(array) for name, array in arrays.items()}


__all__ = [
    "DataCollatorForCausalLanguageModeling",
    "TextBlocks",
    "causal_labels",
    "pack_contiguous",
    "pack_doc_sentences",
    "pack_full_sentences",
    "sentence_blocks",
]
