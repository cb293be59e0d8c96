"""Who may see whom: the masks of UniLM, of prefix language models and of XLNet's permutations, and UniLM's batches.

Dong et al. 2019 (UniLM), section 2.2; Yang et al. 2019 (XLNet), section 2.2. Masks for stock models are numbers to add to
the scores of attention: booleans would be added as 0 and 1 under `attn_implementation="eager"`, which masks nothing.

Letters: B rows, L positions.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from torch import Tensor, from_numpy
from transformers import PreTrainedTokenizerBase

from .masking import MaskingStrategy, NgramMasking
from .replacement import Replacement
from .token_batch import TokenBatch, Vocabulary, check_rate, generator

KINDS = ("bidirectional", "seq2seq", "left-to-right", "right-to-left")
BIDIRECTIONAL, SEQ2SEQ, LEFT_TO_RIGHT, RIGHT_TO_LEFT = range(4)


def visible(kinds: np.ndarray, source_lengths: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """Which positions each position sees (B, L, L), true for those that it does. Padding sees itself alone.

    Args:
        kinds: (B,), places in `KINDS`.
        source_lengths: (B,), tokens of the source of "seq2seq", which the whole row sees.
        lengths: (B,), tokens of each row.
        width: L.
    """
    place = np.arange(width, dtype=np.int32)
    kind, length = np.asarray(kinds)[:, None], np.asarray(lengths, np.int32)[:, None]
    source = np.asarray(source_lengths, np.int32)[:, None]
    upper = np.where(kind == BIDIRECTIONAL, length, np.where(kind == RIGHT_TO_LEFT, length, place + 1))
    upper = np.where(kind == SEQ2SEQ, np.maximum(source, upper), upper)
    lower = np.where(kind == RIGHT_TO_LEFT, place, 0)
    padding = place >= length
    upper, lower = np.where(padding, place + 1, upper), np.where(padding, place, lower)
    seen = place < upper.astype(np.int32)[:, :, None]
    seen &= place >= lower.astype(np.int32)[:, :, None]
    return seen


def additive(seen: np.ndarray) -> np.ndarray:
    """(B, L, L) booleans as `attention_mask` (B, 1, L, L) of a stock model: 0 where true, else the least float32."""
    return ((seen.view(np.int8) - np.int8(1)) * np.finfo(np.float32).max)[:, None]  # faster than np.where


def unified_lm_mask(
    kinds: Sequence[str] | np.ndarray,
    source_lengths: np.ndarray,
    lengths: np.ndarray,
    width: int | None = None,
) -> np.ndarray:
    """The masks of UniLM's four objectives, to be added to scores (B, 1, L, L), float32.

    Args:
        kinds: (B,), names in `KINDS` or their places there.
        source_lengths: (B,), tokens of the source with its special ones; read for "seq2seq" alone.
        lengths: (B,), tokens of each row.
        width: L, by default that of the longest row.

    Raises:
        ValueError: an unknown kind, or lengths that do not fit one another.
    """
    unknown = {kind for kind in kinds if isinstance(kind, str)} - set(KINDS)
    if unknown:
        raise ValueError(f"expected kinds of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    kinds = np.array([KINDS.index(kind) if isinstance(kind, str) else kind for kind in kinds])
    source_lengths, lengths = np.asarray(source_lengths), np.asarray(lengths)
    width = int(lengths.max()) if width is None else width
    if not len(kinds) == len(source_lengths) == len(lengths):
        raise ValueError(
            f"expected as many kinds as lengths, got {len(kinds)} kinds, {len(source_lengths)} source lengths and "
            f"{len(lengths)} lengths"
        )
    if (source_lengths > lengths).any() or source_lengths.min() < 0 or lengths.max() > width:
        raise ValueError(
            f"expected 0 <= source length <= length <= {width}, got source lengths {source_lengths.tolist()[:8]} and "
            f"lengths {lengths.tolist()[:8]}"
        )
    return additive(visible(kinds, source_lengths, lengths, width))


def prefix_lm_mask(prefix_lengths: np.ndarray, lengths: np.ndarray, width: int | None = None) -> np.ndarray:
    """A prefix that all see and a text behind it from left to right (B, 1, L, L), float32; see `unified_lm_mask`."""
    return unified_lm_mask(["seq2seq"] * len(lengths), prefix_lengths, lengths, width)


def permutation_mask(
    order: np.ndarray, targets: np.ndarray, functional: np.ndarray, part: np.ndarray | None = None
) -> np.ndarray:
    """Which positions must not see which (B, L, L), true for those that must not, as `perm_mask` of XLNet.

    Within a part, all see plain tokens, and plain tokens see neither targets nor functional tokens. A target sees targets
    and functional tokens before it in the order, but not itself; a functional token also sees itself. All of a part sees
    all of earlier parts and nothing of later ones.

    Args:
        order: (B, L), the place of each target and functional token in the factorisation order, different numbers from 0 on
            in a part; those of plain tokens are not read.
        targets: (B, L), the tokens that are guessed.
        functional: (B, L), special tokens, which are not guessed and whose place is in the order.
        part: (L,), the number of each position's part from 0 on; None for one part.
    """
    # A part's numbers lie above all of the part before. Plain tokens come first in theirs, one number for all.
    key = np.where(targets | functional, order.astype(np.int64) + 1, 0)
    key += 0 if part is None else part * (int(key.max(initial=0)) + 1)
    query = np.where(targets, key, key + 1)
    small = np.min_scalar_type(int(query.max(initial=0)))  # one byte for rows of 512: the smaller, the faster
    return query.astype(small)[:, :, None] <= key.astype(small)[:, None, :]


def batch_generator(seed: int, epoch: int, batch: TokenBatch) -> np.random.Generator:
    """Random numbers that depend on seed, epoch and the ids of the batch alone: the number of workers changes nothing."""
    return generator(seed, epoch, zlib.crc32(batch.input_ids.tobytes()))


@dataclass
class DataCollatorForUnifiedLM:
    """Masked tokens under UniLM's four attention masks, for BERT and models like it.

    Each row gets one of the four kinds. The source of "seq2seq" is the part with `token_type_ids` 0, and the last token of
    its target can be masked too, so that the model learns to stop. Labels of pairs count for bidirectional rows alone; if
    rows have them, the first row is bidirectional where otherwise none is, since BERT's loss is not a number without any.

    Args:
        tokenizer: has the mask token.
        mix: shares of "bidirectional", "seq2seq", "left-to-right" and "right-to-left".
        masking: which tokens are guessed: single ones and in a fifth of the cases two or three.
        replacement: what stands there.
        seed: equal seeds, epochs and rows give equal batches.
        epoch: another one gives other batches of the same rows.
    """

    fits: ClassVar[tuple[str, ...]] = ("masked",)  # kinds of stock models, of `gathered_head.KINDS`

    tokenizer: PreTrainedTokenizerBase
    mix: tuple[float, float, float, float] = (1 / 3, 1 / 3, 1 / 6, 1 / 6)
    masking: MaskingStrategy = field(
        default_factory=lambda: NgramMasking(max_n=3, unit="token", probabilities=(0.8, 0.1, 0.1))
    )
    replacement: Replacement = field(default_factory=Replacement)
    seed: int = 0
    epoch: int = 0

    def __post_init__(self):
        for share in self.mix:
            check_rate("each of mix", share)
        if len(self.mix) != 4 or abs(sum(self.mix) - 1) > 1e-6:
            raise ValueError(
                f"expected four shares in mix that add up to 1, of {', '.join(KINDS)}, got {self.mix}"
            )
        self.vocabulary = Vocabulary.from_tokenizer(self.tokenizer)
        self.vocabulary.needed_mask_id()

    def set_epoch(self, epoch: int) -> None:
        """Give other masks to the same rows from now on."""
        self.epoch = epoch

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows with `input_ids` and `token_type_ids` into ids, types, mask (B, 1, L, L) and labels (B, L).

        Raises:
            ValueError: rows without a second segment where "seq2seq" is in the mix.
        """
        names = [name for name in ("token_type_ids",) if rows and name in rows[0]]
        batch = TokenBatch.from_rows(rows, self.vocabulary, names)
        rng = batch_generator(self.seed, self.epoch, batch)
        width = batch.input_ids.shape[1]
        kinds = np.searchsorted(np.cumsum(self.mix)[:-1], rng.random(len(rows)), side="right")
        pair_labels = "next_sentence_label" in rows[0]
        if pair_labels and self.mix[BIDIRECTIONAL] and not (kinds == BIDIRECTIONAL).any():
            kinds[0] = BIDIRECTIONAL
        types = np.zeros(batch.input_ids.shape, np.int64)
        for name in names:
            types = np.maximum(batch.columns[name], 0)
        source = np.where((types == 0) & (batch.attention_mask == 1), 1, 0).sum(1)
        if self.mix[SEQ2SEQ] and (source == batch.lengths).any():
            raise ValueError(
                "seq2seq needs rows of two segments, with token_type_ids 0 for the source and 1 for the target, but row "
                f"{int((source == batch.lengths).argmax())} has one: use SentencePairDataset, or mix with 0 for seq2seq"
            )
        last = np.flatnonzero(kinds == SEQ2SEQ)
        maskable = batch.maskable.copy()
        maskable[last, batch.lengths[last] - 1] = True
        batch = batch.changed(maskable=maskable)
        hidden = self.replacement(rng, batch, self.masking(rng, batch))
        arrays = {
            "input_ids": hidden.input_ids,
            "token_type_ids": types,
            "attention_mask": unified_lm_mask(kinds, source, batch.lengths, width),
            "labels": hidden.labels,
        }
        if pair_labels:
            given = np.array([row["next_sentence_label"] for row in rows])
            arrays["next_sentence_label"] = np.where(kinds == BIDIRECTIONAL, given, -100)
        return {name: from_numpy(array) for name, array in arrays.items()}


__all__ = [
    "KINDS",
    "DataCollatorForUnifiedLM",
    "additive",
    "batch_generator",
    "permutation_mask",
    "prefix_lm_mask",
    "unified_lm_mask",
    "visible",
]
