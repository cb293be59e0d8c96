"""From rows of ids to batches for pre-training stock models: masked tokens, denoising, spans, fragments, replaced tokens.

Each collator fills rows up, draws its random numbers from seed, epoch and the ids of the batch alone, and applies a strategy
of `masking.py`, `noise.py` or `sequence_noise.py`. The rows of the data set stay as they are. Unified and permutation language
models have theirs in `attention_masks.py` and `permutation.py`, causal ones in `text_packing.py`.

Letters: B rows, L positions, M positions of a decoder, K targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .attention_masks import batch_generator
from .collators import IGNORED
from .masking import MaskingStrategy, TokenMasking, check_rows
from .noise import (
    Compose,
    Masking,
    Noise,
    ReplacedTokenNoise,
    SentencePermutation,
    TextInfilling,
    denoising,
)
from .replacement import Replacement
from .sequence_noise import MassFragment, SpanCorruption
from .token_batch import TokenBatch, Vocabulary
from .word_runs import runs

TYPES = ("token_type_ids", "task_type_ids")  # inputs of a model for each token
PAIR_LABELS = ("next_sentence_label", "sentence_order_label")


class Extra(Protocol):
    """Makes further arrays of a masked batch."""

    def __call__(self, batch: TokenBatch) -> dict[str, np.ndarray]:
        """Arrays by the names of the model's arguments; `batch` has `labels`."""
        ...


@dataclass(frozen=True)
class SpanBoundaryTargets:
    """What SpanBERT tells from the tokens on both sides of a span (Joshi et al. 2020, section 3.2).

    Spans are runs of neighbouring masked tokens, so their outer neighbours are never masked. A span without a token on
    both sides gives none.

    Args:
        most: only the first tokens of longer spans.
    """

    most: int = 20

    def __post_init__(self):
        if self.most < 1:
            raise ValueError(f"most must be 1 or more, got {self.most}")

    def __call__(self, batch: TokenBatch) -> dict[str, np.ndarray]:
        """`span_boundary_targets` (K, 5): row, left neighbour, right neighbour, place in the span from 0 on, label."""
        chosen = batch.labels != IGNORED
        number = runs(chosen)
        row, place = np.nonzero(chosen)
        span = row * (chosen.shape[1] + 1) + number[row, place]
        _, first, which, count = np.unique(span, return_index=True, return_inverse=True, return_counts=True)
        begin = place[first][which]
        end = begin + count[which]
        offset = place - begin
        kept = (begin > 0) & (end < batch.lengths[row]) & (offset < self.most)
        columns = (row, begin - 1, end, offset, batch.labels[row, place])
        return {"span_boundary_targets": np.stack(columns, axis=1)[kept]}


@dataclass
class PretrainingCollator:
    """What the collators of this file share.

    Args:
        tokenizer: says which tokens are special and which id fills up.
        seed: equal seeds, epochs and rows give equal batches.
        epoch: another one gives other batches of the same rows.
        pad_to_multiple_of: makes widths multiples of this, of rows as they are before any noise.
    """

    fits: ClassVar[tuple[str, ...] | None] = None  # kinds of stock models, of `gathered_head.KINDS`

    tokenizer: PreTrainedTokenizerBase
    seed: int = field(default=0, kw_only=True)
    epoch: int = field(default=0, kw_only=True)
    pad_to_multiple_of: int | None = field(default=None, kw_only=True)

    def __post_init__(self):
        self.vocabulary = Vocabulary.from_tokenizer(self.tokenizer)

    def set_epoch(self, epoch: int) -> None:
        """Give other masks to the same rows from now on."""
        self.epoch = epoch

    def read(self, rows: Sequence[Mapping]) -> tuple[np.random.Generator, TokenBatch]:
        """Random numbers and a batch of rows, with all columns that have a number for each token.

        Raises:
            ValueError: a row without ordinary tokens, or rows with different columns.
        """
        names = [
            name
            for name, value in (rows[0] if rows else {}).items()
            if name.endswith("_ids") and name not in ("input_ids", "word_ids") and np.ndim(value) == 1
        ]
        batch = TokenBatch.from_rows(rows, self.vocabulary, names, self.pad_to_multiple_of)
        check_rows(batch.maskable)
        return batch_generator(self.seed, self.epoch, batch), batch

    def inputs(self, batch: TokenBatch) -> dict[str, np.ndarray]:
        """`input_ids`, `attention_mask` and the types that rows have, each (B, L)."""
        arrays = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        for name in TYPES:
            if name in batch.columns:
                types = batch.columns[name]
                fill = self.tokenizer.pad_token_type_id if name == "token_type_ids" else 0
                arrays[name] = np.where(types < 0, fill, types)
        return arrays


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Arrays as tensors."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


@dataclass
class DataCollatorForMaskedLanguageModeling(PretrainingCollator):
    """Masked tokens for BERT and its kin.

    Rows have `input_ids` and what the strategy needs (`word_ids` ...). Where they have `token_type_ids` and the label of a
    pair, as those of `SentencePairDataset`, the batch has them too.

    Args:
        tokenizer: has the mask token.
        masking: which tokens are guessed.
        replacement: what stands there.
        noise: what happens after masking, `TrigramShuffle()` for StructBERT; it must not move masked tokens.
        extras: make further targets, `SpanBoundaryTargets()` for SpanBERT.

    Raises:
        ValueError: a tokenizer without a mask token.
    """

    fits = ("masked",)

    masking: MaskingStrategy = field(default_factory=TokenMasking)
    replacement: Replacement = field(default_factory=Replacement)
    noise: Noise | None = None
    extras: Sequence[Extra] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.replacement.mask:
            self.vocabulary.needed_mask_id()

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows.

        Returns:
            `input_ids`, `attention_mask`, `labels` (B, L), `token_type_ids` (B, L) and pair labels (B,) where rows have
            them, and what `extras` make.

        Raises:
            ValueError: a row without ordinary tokens, or without a column that the strategy needs.
        """
        rng, batch = self.read(rows)
        batch = self.replacement(rng, batch, self.masking(rng, batch))
        if self.noise is not None:
            batch = self.noise(rng, batch)
        arrays = self.inputs(batch) | {"labels": batch.labels}
        for name in PAIR_LABELS:
            if name in rows[0]:
                arrays[name] = np.array([int(row[name]) for row in rows])
        for extra in self.extras:
            arrays |= extra(batch)
        return tensors(arrays)


@dataclass
class DataCollatorForReplacedTokenDetection(PretrainingCollator):
    """Batches of ELECTRA (Clark et al. 2020, section 2).

    By default for a generator and a discriminator that train together: 85 per cent of the chosen tokens become the mask, the
    rest stays, and `labels` are the original tokens. The released code may choose a token twice and masks 14.0 per cent of
    512; here 15 per cent are masked, rounded.

    With `noise=ReplacedTokenNoise()` for the stock ElectraForPreTraining, without a generator: random tokens, and `labels` of
    all tokens that are 1 where another one stands.

    Args:
        tokenizer: has the mask token, which only the default needs.
        noise: hides or replaces tokens and makes labels.
    """

    noise: Noise = field(default_factory=lambda: Masking(replacement=Replacement(mask=0.85, random=0.0)))

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.noise, Masking) and self.noise.replacement.mask:
            self.vocabulary.needed_mask_id()

    @property
    def fits(self) -> tuple[str, ...]:
        """Kinds of stock models."""
        return ("discriminator",) if isinstance(self.noise, ReplacedTokenNoise) else ("masked",)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows into `input_ids`, `attention_mask`, `labels` and, if rows have them, `token_type_ids`, (B, L)."""
        rng, batch = self.read(rows)
        batch = self.noise(rng, batch)
        return tensors(self.inputs(batch) | {"labels": batch.labels})


@dataclass
class DataCollatorForDenoising(PretrainingCollator):
    """Noisy inputs and the whole text as labels, as BART (Lewis et al. 2020, section 2.2).

    The model makes its decoder's inputs of the labels.

    Args:
        tokenizer: has the mask token, if the noise needs one.
        noise: any of `noise.py`. By default BART's: sentences in random order, then infilling of 30 per cent. Sentences end at
            "." or have a column `sentence_ids`.

    Raises:
        ValueError: the default noise, and a tokenizer without a mask token.
    """

    fits = ("seq2seq",)

    noise: Noise | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.noise is None:
            self.vocabulary.needed_mask_id()
            stop = self.tokenizer.get_vocab().get(".")
            ends = () if stop is None else (stop,)
            self.noise = Compose((SentencePermutation(ends), TextInfilling()))

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows into `input_ids`, `attention_mask` (B, L) and `labels` (B, M)."""
        rng, batch = self.read(rows)
        batch = denoising(rng, batch, self.noise)
        return tensors(self.inputs(batch) | {"labels": batch.labels})


@dataclass
class DataCollatorForSpanCorruption(PretrainingCollator):
    """Sentinels in place of spans, and the spans as labels, as T5 (Raffel et al. 2020, section 3.1.4).

    Rows of `corruption.raw_length(512)[0]` tokens, 568 by default, give inputs of exactly 512.

    Args:
        tokenizer: has the sentinels `<extra_id_0>`, `<extra_id_1>` ...
        corruption: how much, in which spans.
    """

    fits = ("seq2seq",)

    corruption: SpanCorruption = field(default_factory=SpanCorruption)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows into `input_ids`, `attention_mask` (B, L) and `labels` (B, M)."""
        rng, batch = self.read(rows)
        batch = self.corruption(rng, batch)
        return tensors(self.inputs(batch) | {"labels": batch.labels})


@dataclass
class DataCollatorForMass(PretrainingCollator):
    """A hidden fragment, which the decoder tells at its original positions, as MASS (Song et al. 2019, section 3.2).

    For EncoderDecoderModel, which hands `decoder_position_ids` on to its decoder; BART and T5 have no such argument.

    Args:
        tokenizer: has the mask token.
        fragment: how long, where, and what stands in its place.
    """

    fits = ("seq2seq",)

    fragment: MassFragment = field(default_factory=MassFragment)

    def __post_init__(self):
        super().__post_init__()
        if self.fragment.replacement.mask:
            self.vocabulary.needed_mask_id()

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows into `input_ids`, `attention_mask` (B, L), and (B, M) `labels`, `decoder_input_ids`,
        `decoder_position_ids` and `decoder_attention_mask`.
        """
        rng, batch = self.read(rows)
        batch = self.fragment(rng, batch)
        decoder = {
            "labels": batch.labels,
            "decoder_input_ids": batch.decoder_input_ids,
            "decoder_position_ids": batch.decoder_position_ids,
            "decoder_attention_mask": (batch.labels != IGNORED).astype(np.int64),
        }
        return tensors(self.inputs(batch) | decoder)


__all__ = [
    "DataCollatorForDenoising",
    "DataCollatorForMaskedLanguageModeling",
    "DataCollatorForMass",
    "DataCollatorForReplacedTokenDetection",
    "DataCollatorForSpanCorruption",
    "PretrainingCollator",
    "SpanBoundaryTargets",
]
