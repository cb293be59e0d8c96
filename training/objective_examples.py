"""One example of an objective, token by token: what the model reads, and what it must tell."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..objectives.collators import IGNORED
from .objectives import Objective

SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*|\n+")
PAIR_LABELS = ("next_sentence_label", "sentence_order_label")


@dataclass(frozen=True)
class Piece:
    """A token of an example.

    Args:
        text: the token, as the tokenizer writes it.
        kind: "text", "special", or of a target "masked", "replaced" or "kept".
        target: the token that must be told, "" for none.
    """

    text: str
    kind: str = "text"
    target: str = ""


@dataclass(frozen=True)
class Example:
    """What a model reads, and writes if it has a decoder.

    Args:
        reads: tokens of the input.
        writes: tokens of the decoder's targets.
        labels: of the pair, by name.
    """

    reads: list[Piece]
    writes: list[Piece]
    labels: dict[str, int]


def split_sentences(text: str) -> list[str]:
    """Sentences of a short text, cut behind . ! ? and at the ends of lines."""
    return [sentence.strip() for sentence in SENTENCE_END.split(text) if sentence.strip()]


def example_of(
    objective: Objective, rows, tokenizer: PreTrainedTokenizerBase, seed: int = 0, row: int = 0
) -> Example:
    """Collate a row and name what became of each token.

    Args:
        objective: of `objectives.py`.
        rows: its data set.
        tokenizer: of the rows.
        seed: of what is hidden.
        row: which one.

    Returns:
        The example.
    """
    batch = objective.make_collator(tokenizer, seed)([rows[row]])
    labels, ids = batch["labels"][0], batch["input_ids"][0]
    pairs = {name: int(batch[name]) for name in PAIR_LABELS if name in batch}
    kind = objective.models.auto
    if kind == "AutoModelForSeq2SeqLM":
        told = labels[labels != IGNORED]
        return Example(_plain(ids, tokenizer), _plain(told, tokenizer), pairs)
    if "target_mapping" in batch:
        labels = _at_their_places(batch, labels)
    elif kind == "AutoModelForCausalLM":
        labels = torch.full_like(labels, IGNORED)  # every next token; nothing is hidden
    return Example(_compared(objective, ids, labels, tokenizer), [], pairs)


def _at_their_places(batch: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Targets of a permutation language model (P,) as labels (L,)."""
    found = torch.full_like(batch["input_ids"][0], IGNORED)
    slot, place = batch["target_mapping"][0].nonzero(as_tuple=True)
    found[place] = labels[slot]
    return found


def _compared(
    objective: Objective, ids: Tensor, labels: Tensor, tokenizer: PreTrainedTokenizerBase
) -> list[Piece]:
    pieces = _plain(ids, tokenizer)
    detects = objective.name == "rtd"  # labels say whether, not what
    for place in (labels == 1 if detects else labels != IGNORED).nonzero().flatten().tolist():
        text = pieces[place].text
        if detects:
            pieces[place] = Piece(text, "replaced")
            continue
        same = int(ids[place]) == int(labels[place])
        kind = "kept" if same else "masked" if ids[place] == tokenizer.mask_token_id else "replaced"
        pieces[place] = Piece(text, kind, tokenizer.convert_ids_to_tokens(int(labels[place])))
    return pieces


def _plain(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    """Tokens; a mask without a label at its place counts as masked."""
    special = set(tokenizer.all_special_ids) - {tokenizer.mask_token_id, tokenizer.unk_token_id}
    pieces = []
    for number, text in zip(ids.tolist(), tokenizer.convert_ids_to_tokens(ids.tolist()), strict=True):
        hidden = number == tokenizer.mask_token_id or text.startswith("<extra_id_")
        pieces.append(Piece(text, "masked" if hidden else "special" if number in special else "text"))
    return pieces


__all__ = ["Example", "Piece", "example_of", "split_sentences"]
