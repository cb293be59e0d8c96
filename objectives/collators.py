"""From rows of words to batches: the one place that knows padding and targets.

Character ids are made here and not stored in data sets, where they would take 50 numbers a word.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

IGNORED = -100  # no target here, as everywhere in Transformers


@dataclass
class LanguageModelingCollator:
    """Sentences whose words are their own targets, for `ElmoForPreTraining`.

    Args:
        tokenizer: makes `input_ids`, `char_ids` and `attention_mask` of lists of words.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Collate rows with a column `words` into a batch with `labels` (B, T), -100 at padding."""
        batch = _encode(self.tokenizer, rows)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
        return batch


@dataclass
class TokenSentenceCollator:
    """Sentences of token ids for a causal language model: `<eos> w1 .. wn <eos>` in each row.

    Args:
        tokenizer: says which ids begin and end a sentence, and which one fills up.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Collate rows with a column `words` of ids into `input_ids`, `attention_mask` and `labels`, each (B, T)."""
        tokenizer = self.tokenizer
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        sentences = [[begin, *row["words"], tokenizer.eos_token_id] for row in rows]
        width = max(map(len, sentences))
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        mask = torch.arange(width) < lengths[:, None]  # (B, T)
        input_ids = torch.full(mask.shape, tokenizer.pad_token_id or 0)
        input_ids[mask] = torch.tensor([token for sentence in sentences for token in sentence])
        return {
            "input_ids": input_ids,
            "attention_mask": mask.long(),
            "labels": input_ids.masked_fill(~mask, IGNORED),
        }


@dataclass
class ClassificationCollator:
    """Sentences with a label each, or with a label for each word.

    Args:
        tokenizer: makes `input_ids`, `char_ids` and `attention_mask` of lists of words.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: Sequence[dict]) -> dict[str, Tensor]:
        """Collate rows with columns `words` and `labels` into a batch with `labels` (B,) or (B, T), -100 at padding.

        Raises:
            ValueError: a row with another number of labels than words.
        """
        batch = _encode(self.tokenizer, rows)
        labels = [row["labels"] for row in rows]
        if isinstance(labels[0], Sequence):
            width = batch["input_ids"].shape[1]
            for row, tags in zip(rows, labels, strict=True):
                if len(row["words"]) != len(tags):
                    raise ValueError(
                        f"found {len(row['words'])} words but {len(tags)} labels in {row['words'][:8]}..."
                    )
            labels = [list(tags) + [IGNORED] * (width - len(tags)) for tags in labels]
        batch["labels"] = torch.tensor(labels)
        return batch


def _encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict]) -> dict[str, Tensor]:
    words = [list(row["words"]) for row in rows]
    return dict(tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt"))
