"""Batches for contrastive pre-training: masked tokens, and of each row an n-gram and what is left without it.

Kong et al. 2020, section 4 (InfoWord), with the lengths of SpanBERT; wrong n-grams after Collobert and Weston 2008, section 5.

Letters: B rows, L positions, N positions of n-grams, S tokens of all n-grams.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from .masking import MaskingStrategy, SpanMasking, TokenMasking, add_spans, check_rows, lengths_from
from .pretraining_collators import PretrainingCollator, tensors
from .replacement import Replacement
from .token_batch import TokenBatch
from .word_runs import WordRuns


@dataclass(frozen=True)
class NgramPairs:
    """One n-gram of each row, and a wrong one.

    An n-gram begins at the word of a random token, and is cut where a special token or the row ends. Rows without
    `word_ids` have n-grams of tokens.

    Args:
        negatives: "in_batch" makes no wrong n-grams, since those of other rows are, of all processes. "shuffled" puts the
            tokens in another order, where there is one; "replaced" changes the middle token.
        geometric: p of the geometric distribution of lengths.
        max_length: most words of an n-gram.
    """

    negatives: Literal["in_batch", "shuffled", "replaced"] = "in_batch"
    geometric: float = 0.2
    max_length: int = 10

    def __post_init__(self):
        if self.negatives not in ("in_batch", "shuffled", "replaced"):
            raise ValueError(
                f'negatives must be "in_batch", "shuffled" or "replaced", got {self.negatives!r}'
            )
        self.lengths()

    @property
    def unit(self) -> str:
        """What `max_length` counts."""
        return "word"

    def lengths(self) -> SpanMasking:
        """SpanBERT's strategy, which has the distribution."""
        return SpanMasking(self.geometric, self.max_length)

    def chosen(self, rng: np.random.Generator, batch: TokenBatch) -> np.ndarray:
        """Places (B, L) of one n-gram in each row."""
        ids = batch.word_ids
        if ids is None:
            ids = np.broadcast_to(np.arange(batch.input_ids.shape[1]), batch.input_ids.shape)
        words = WordRuns.of(ids, batch.maskable)
        available = check_rows(words.inside)
        shape = (len(available), 1)
        sizes = lengths_from(self.lengths().pmf(), rng.random(shape))
        return add_spans(words, rng.random(shape), sizes, np.zeros(batch.input_ids.shape, bool), available)[0]

    def wrong(self, rng: np.random.Generator, batch: TokenBatch, chosen: np.ndarray) -> np.ndarray:
        """Tokens (S,) of wrong n-grams, row after row."""
        row, tokens = np.nonzero(chosen)[0], batch.input_ids[chosen]
        sizes = chosen.sum(1)
        first = np.cumsum(sizes) - sizes
        if self.negatives == "replaced":
            middle = first + (sizes - 1) // 2
            ordinary = batch.vocabulary.ordinary_ids
            drawn = rng.integers(0, len(ordinary) - 1, len(middle))
            drawn += drawn >= np.searchsorted(ordinary, tokens[middle])  # any but the token itself
            found = tokens.copy()
            found[middle] = ordinary[drawn]
            return found
        found = tokens[np.lexsort((rng.random(len(row)), row))]
        following = np.arange(1, len(row) + 1)
        following[first + sizes - 1] = first
        unchanged = np.bincount(row, found != tokens, len(sizes)) == 0
        return np.where(unchanged[row], tokens[following], found)


@dataclass
class DataCollatorForNgramContrast(PretrainingCollator):
    """Batches of `InfoWordForPreTraining`: masked tokens as BERT's, and beside them rows without one of their n-grams.

    Rows have `input_ids`, `word_ids` for n-grams of whole words, and what the strategy needs.

    Args:
        tokenizer: has the mask token; n-grams stand between its "cls" and "sep" tokens, where it has them.
        masking: which tokens are guessed.
        replacement: what stands there.
        ngrams: which n-grams, and which wrong ones.

    Raises:
        ValueError: a tokenizer without a mask token.
    """

    fits = ("masked",)

    masking: MaskingStrategy = field(default_factory=TokenMasking)
    replacement: Replacement = field(default_factory=Replacement)
    ngrams: NgramPairs = field(default_factory=NgramPairs)

    def __post_init__(self):
        super().__post_init__()
        self.vocabulary.needed_mask_id()

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows.

        Returns:
            `input_ids`, `attention_mask`, `labels` (B, L) and `token_type_ids` (B, L) where rows have them;
            `ngram_context_ids` (B, L), `ngram_ids`, `ngram_mask` and perhaps `negative_ngram_ids` (B, N).

        Raises:
            ValueError: a row without ordinary tokens, or without a column that the strategy needs.
        """
        rng, batch = self.read(rows)
        hidden = self.replacement(rng, batch, self.masking(rng, batch))
        arrays = self.inputs(hidden) | {"labels": hidden.labels}
        chosen = self.ngrams.chosen(rng, batch)
        arrays["ngram_context_ids"] = np.where(chosen, self.vocabulary.needed_mask_id(), batch.input_ids)
        sizes = chosen.sum(1)
        arrays["ngram_ids"], arrays["ngram_mask"] = self._framed(batch.input_ids[chosen], sizes)
        if self.ngrams.negatives != "in_batch":
            arrays["negative_ngram_ids"], _ = self._framed(self.ngrams.wrong(rng, batch, chosen), sizes)
        return tensors(arrays)

    def _framed(self, tokens: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """N-grams between special tokens (B, N) and their mask, of tokens (S,) and of how many each has (B,)."""
        begin, end = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        before, after = int(begin is not None), int(end is not None)
        place = np.arange(before + int(sizes.max()) + after)
        ends = before + sizes[:, None]  # (B, 1)
        found = np.full((len(sizes), len(place)), self.vocabulary.pad_id, np.int64)
        found[(place >= before) & (place < ends)] = tokens
        if before:
            found[:, 0] = begin
        if after:
            found[place == ends] = end
        return found, (place < ends + after).astype(np.int64)


__all__ = ["DataCollatorForNgramContrast", "NgramPairs"]
