"""Rows for pre-training, cut out of documents in the way of each paper.

Each class is called with documents, a tokenizer, the longest row and a seed, and returns a data set.
"""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..objectives.documents import Documents, special_id
from ..objectives.permutation_lanes import pack_permutation_lanes
from ..objectives.sentence_pairs import SentencePairDataset
from ..objectives.sequence_noise import SpanCorruption
from ..objectives.text_packing import (
    TextBlocks,
    pack_contiguous,
    pack_doc_sentences,
    pack_full_sentences,
)
from ..objectives.token_batch import Vocabulary
from ..objectives.token_lanes import pack_lanes


@dataclass(frozen=True)
class Blocks:
    """As many whole sentences as fit between two special tokens; rows with nothing to hide are left out.

    Args:
        across: sentences of several documents in one row, with a separator between documents.
        sentence_ids: rows say which sentence each token belongs to.
    """

    across: bool = False
    sentence_ids: bool = False

    def __call__(
        self, documents: Documents, tokenizer: PreTrainedTokenizerBase, max_tokens: int, seed: int = 0
    ) -> Dataset:
        """Cut rows of `max_tokens` at the most, the special tokens included."""
        marks = special_id(tokenizer, "cls"), special_id(tokenizer, "sep")
        vocabulary = Vocabulary.from_tokenizer(tokenizer)
        if self.across:
            return pack_full_sentences(documents, max_tokens, marks[1], *marks).with_text(vocabulary)
        blocks = pack_doc_sentences(documents, max_tokens, *marks)
        if self.sentence_ids:
            sizes = np.diff(documents.sentences)
            number = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
            blocks = TextBlocks(blocks.columns | {"sentence_ids": number}, blocks.edges, *blocks.marks)
        return blocks.with_text(vocabulary)


@dataclass(frozen=True)
class Pairs:
    """Two texts with a label, drawn anew every epoch; see `SentencePairDataset`."""

    objective: str

    def __call__(
        self, documents: Documents, tokenizer: PreTrainedTokenizerBase, max_tokens: int, seed: int = 0
    ) -> Dataset:
        """Cut rows of `max_tokens` at the most, the special tokens included."""
        return SentencePairDataset(documents, tokenizer, self.objective, max_tokens, seed=seed)


@dataclass(frozen=True)
class Contiguous:
    """Full rows, cut anywhere, with an end-of-text token behind each document."""

    def __call__(
        self, documents: Documents, tokenizer: PreTrainedTokenizerBase, max_tokens: int, seed: int = 0
    ) -> Dataset:
        """Cut rows of `max_tokens`; a corpus that is shorter is one row."""
        few = len(documents.tokens) + len(documents) < max_tokens
        return pack_contiguous(documents, max_tokens, special_id(tokenizer, "eos"), drop_last=not few)


@dataclass(frozen=True)
class Laned:
    """Full rows that go on from batch to batch, with an end-of-text token behind each document.

    Args:
        reuse_len: the first part of each row, which alone becomes memory, before two segments; see `PermutationLanes`. None
            for rows that become memory whole; see `TokenLanes`.
    """

    reuse_len: int | None = None

    def __call__(
        self, documents: Documents, tokenizer: PreTrainedTokenizerBase, max_tokens: int, seed: int = 0
    ) -> Dataset:
        """Cut rows of `max_tokens`, in one lane until a trainer knows how many rows a batch has."""
        if self.reuse_len is not None:
            return pack_permutation_lanes(documents, max_tokens, self.reuse_len, tokenizer, seed=seed)
        return pack_lanes(documents, max_tokens, special_id(tokenizer, "eos"))


@dataclass(frozen=True)
class SpanRows:
    """Full rows without special tokens, so long that span corruption makes inputs of `max_tokens`, 568 for 512."""

    corruption: SpanCorruption

    def __call__(
        self, documents: Documents, tokenizer: PreTrainedTokenizerBase, max_tokens: int, seed: int = 0
    ) -> Dataset:
        """Cut rows; a corpus that is shorter is one row."""
        length, _ = self.corruption.raw_length(max_tokens)
        return pack_contiguous(documents, length, drop_last=len(documents.tokens) >= length)


__all__ = ["Blocks", "Contiguous", "Laned", "Pairs", "SpanRows"]
