"""From words with labels to batches for `JointLossForTokenClassification`: tokens, labels, and what the language model predicts.

Each word's label stands at one of its tokens: the last one for a causal model, which has read the whole word only there, and
the first one for a masked model. A row is as the language model was pre-trained on it, with the tokenizer's own special
tokens and none of the marks of `input_forms`.

Letters: B rows, M rows of the language model's own stream, T positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .collators import IGNORED
from .joint_collators import ReplaySentences, TokenHider


def surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Special tokens that a tokenizer puts before and after a text."""
    whole = tokenizer("a")["input_ids"]
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    raise ValueError(
        f"the tokenizer writes 'a' as {inner}, but with special tokens as {whole}. Use one whose special tokens stand "
        "around the text."
    )


@dataclass
class JointTaggingCollator:
    """Rows with columns `words` and `labels` to a batch for a joint-loss model.

    Args:
        tokenizer: splits each word into tokens.
        max_length: positions of a row; words that do not fit are left out whole, with their labels;
            of a first word that does not fit the beginning is read, without its label.
        lm_objective: the model's; None gives no targets, for lambda 0.
        at_last_token: whether labels stand at the last token of a word; None means for causal models only.
        mlm_rate: share of tokens that is hidden from a masked model.
        replay: general text for the language model in place of the task's.

    Raises:
        ValueError: an unknown objective, or no room for a word.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int = 256
    lm_objective: str | None = "causal"
    at_last_token: bool | None = None
    mlm_rate: float = 0.15
    replay: ReplaySentences | None = None
    _hide: TokenHider | None = field(init=False, repr=False, default=None)

    def __post_init__(self):
        if self.lm_objective not in ("causal", "masked", None):
            raise ValueError(f'lm_objective must be "causal", "masked" or None, found {self.lm_objective!r}.')
        if self.at_last_token is None:
            self.at_last_token = self.lm_objective == "causal"
        if self.lm_objective == "masked":
            self._hide = TokenHider(self.tokenizer, rate=self.mlm_rate)
        self._before, self._after = surroundings(self.tokenizer)
        if self.max_length <= len(self._before) + len(self._after):
            raise ValueError(f"max_length={self.max_length} leaves no room for a word.")

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate.

        Args:
            rows: with `words`, and `labels`, one a word.

        Returns:
            `input_ids`, `attention_mask` and `labels` (B, T), -100 at tokens without a label; `lm_targets`, and for a masked
            model or replay `lm_input_ids` and `lm_attention_mask` (M, T').

        Raises:
            ValueError: a row with another number of labels than words.
        """
        pairs = [self._row(row["words"], row["labels"]) for row in rows]
        input_ids, mask = self._padded([ids for ids, _ in pairs])
        labels = torch.full(mask.shape, IGNORED)
        labels[mask.bool()] = torch.tensor([label for _, labels in pairs for label in labels])
        batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
        return batch | self._lm_part(input_ids, mask)

    def _row(self, words: Sequence[str], labels: Sequence[int]) -> tuple[list[int], list[int]]:
        if len(words) != len(labels):
            raise ValueError(f"found {len(words)} words but {len(labels)} labels in {list(words[:8])}...")
        ids, marks = list(self._before), [IGNORED] * len(self._before)
        room = self.max_length - len(self._after)
        for tokens, label in zip(self.split(words), labels, strict=True):
            if len(ids) + len(tokens) > room:
                if len(ids) == len(self._before):  # a first word that does not fit: no row may be empty
                    ids += tokens[: room - len(ids)]
                    marks += [IGNORED] * (len(ids) - len(marks))
                break
            place = len(tokens) - 1 if self.at_last_token else 0
            ids += tokens
            marks += [label if number == place else IGNORED for number in range(len(tokens))]
        return ids + self._after, marks + [IGNORED] * len(self._after)

    def split(self, words: Sequence[str]) -> list[list[int]]:
        """The tokens of each word of a row, at least one.

        Args:
            words: of a row; all but the first get a space before them, which tokenizers of bytes make a part of the word.

        Raises:
            ValueError: a word without tokens, by a tokenizer without an unknown token.
        """
        texts = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        found = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for number, tokens in enumerate(found):
            if not tokens:
                if self.tokenizer.unk_token_id is None:
                    raise ValueError(
                        f"the word {words[number]!r} of {list(words[:8])}... has no tokens. Leave it out."
                    )
                found[number] = [self.tokenizer.unk_token_id]
        return found

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        input_ids = torch.full(mask.shape, self.tokenizer.pad_token_id or 0)
        input_ids[mask] = torch.tensor([token for row in rows for token in row])
        return input_ids, mask.long()

    def _lm_part(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if self.lm_objective is None:
            return {}
        if self.replay is None and self._hide is None:
            return {"lm_targets": _itself(input_ids, mask)}
        if self.replay is not None:
            encoded = self.tokenizer(
                self.replay.draw(len(input_ids)),
                truncation=True,
                max_length=self.max_length,
                split_special_tokens=True,
            )["input_ids"]
            input_ids, mask = self._padded([row or [self.tokenizer.pad_token_id or 0] for row in encoded])
        targets = _itself(input_ids, mask)
        if self._hide is not None:
            input_ids, targets = self._hide(input_ids, mask)
        return {"lm_input_ids": input_ids, "lm_attention_mask": mask, "lm_targets": targets}


def _itself(input_ids: Tensor, mask: Tensor) -> Tensor:
    """The text as its own target, but for each row's first token."""
    targets = input_ids.masked_fill(mask == 0, IGNORED)
    targets[:, 0] = IGNORED
    return targets


__all__ = ["JointTaggingCollator", "surroundings"]
