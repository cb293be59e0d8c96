"""One pass through a language model for two purposes: vectors for the task head, and the language model's own loss.

Letters: N rows, T positions, V tokens, H features, P one direction of the biLM.
"""

import inspect
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from .inputs_elmo import word_mask
from .packing import inside_sentences, unflatten
from .pooling import pool


@dataclass
class Reading:
    """What one pass gives.

    Args:
        hidden: (N, T, H), the top layer as the stock base model returns it.
        mask: (N, T) bool, true at tokens.
        total: () summed language-model loss; None where there were no targets.
        count: () what it is a sum over: rows or targets, as the reduction says.
        parts: other summed losses by name.
    """

    hidden: Tensor
    mask: Tensor
    total: Tensor | None = None
    count: Tensor | None = None
    parts: dict[str, Tensor] = field(default_factory=dict)


def token_mask(config, rows: dict[str, Tensor]) -> Tensor:
    """(N, T) bool from flat inputs; all true without an `attention_mask`.

    Args:
        config: of the language model.
        rows: its inputs, as for `read`.
    """
    if config.model_type == "elmo":
        return word_mask(config, *(rows.get(name) for name in ("input_ids", "char_ids", "attention_mask")))
    if rows.get("attention_mask") is not None:
        return rows["attention_mask"].bool()
    tokens = rows["inputs_embeds"][..., 0] if rows.get("input_ids") is None else rows["input_ids"]
    return torch.ones_like(tokens, dtype=torch.bool)


def predicted(targets: Tensor, mask: Tensor, objective: str) -> Tensor:
    """The targets that a language model can predict, -100 elsewhere.

    Args:
        targets: (N, T) ids at their own positions, -100 for none.
        mask: (N, T) bool, true at tokens.
        objective: a causal model predicts no row's first token, since nothing but padding stands before it.

    Returns:
        (N, T).
    """
    known = mask
    if objective == "causal":
        known = F.pad(mask[:, :-1], (1, 0), value=False) & mask
    return targets.masked_fill(~known, -100)


def count_items(targets: Tensor, objective: str, reduction: str) -> Tensor:
    """What a language-model loss is a mean over.

    Args:
        targets: (N, T) of `predicted`.
        objective: the biLM counts each row's sentence mark too, as its own loss does.
        reduction: "example", rows with a target, or "token", targets.

    Returns:
        () number.
    """
    known = targets != -100
    rows = known.any(1).sum()
    if objective == "bidirectional":
        return known.sum() + rows
    return rows if reduction == "example" else known.sum()


def sum_losses(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Summed cross-entropy of the targets ("token"), or sum of each row's mean ("example"), in float32 at least.

    Args:
        logits: (N, T, V).
        targets: (N, T), -100 for none.
        reduction: see above.

    Returns:
        () sum.
    """
    known = targets != -100
    chosen = logits[known]  # (targets, V): no row of the softmax is made for nothing
    chosen = chosen.to(torch.promote_types(chosen.dtype, torch.float32))
    losses = F.cross_entropy(chosen, targets[known], reduction="none")
    if reduction == "token":
        return losses.sum()
    each = unflatten(losses.unsqueeze(1), known).squeeze(2)  # (N, T)
    return (each.sum(1) / known.sum(1).clamp(min=1)).sum()


def read(
    model: PreTrainedModel,
    objective: str,
    reduction: str,
    rows: dict[str, Tensor],
    targets: Tensor | None = None,
) -> Reading:
    """Read rows; without targets the head over the vocabulary is never computed.

    Args:
        model: the language model.
        objective: "causal", "masked" or "bidirectional".
        reduction: "example" or "token".
        rows: inputs by name, with N rows each.
        targets: (N, T) of `predicted`.

    Returns:
        `Reading`.
    """
    mask = token_mask(model.config, rows)
    if objective == "bidirectional":
        return _read_bilm(model, rows, mask, targets)
    accepted = inspect.signature(model.forward).parameters
    options = {"use_cache": False} if "use_cache" in accepted else {}
    if objective == "causal" or "token_type_ids" not in accepted:
        # GPTs add embeddings of words at these places.
        rows = {name: value for name, value in rows.items() if name != "token_type_ids"}
    if targets is None and model.base_model is not model:
        hidden = model.base_model(**rows, **options, return_dict=True).last_hidden_state
        return Reading(hidden, mask)
    outputs = model(**rows, **options, output_hidden_states=True, return_dict=True)
    reading = Reading(outputs.hidden_states[-1], mask)
    if targets is not None:
        logits, goals = outputs.logits, targets
        if objective == "causal":
            logits, goals = logits[:, :-1], targets[:, 1:]
        reading.total = sum_losses(logits, goals, reduction)
        reading.count = count_items(targets, objective, reduction)
    return reading


def _read_bilm(
    model: PreTrainedModel, rows: dict[str, Tensor], mask: Tensor, targets: Tensor | None
) -> Reading:
    """As `read`; the biLM computes its own two losses, by whatever softmax it has."""
    wanted = torch.zeros_like(mask[:, 0]) if targets is None else (targets != -100).any(1)  # (N,)
    all_rows = len(wanted) > 0 and bool(wanted.all())
    outputs = None
    if targets is not None:
        # A row without targets must not be asked for its sentence marks either.
        chosen = {name: value[wanted] for name, value in rows.items()}
        outputs = model(**chosen, labels=targets[wanted], output_hidden_states=all_rows, num_items_in_batch=1)
    if all_rows:
        lengths = mask.sum(1)
        steps = torch.arange(mask.shape[1] + 2, device=mask.device)
        flat = outputs.hidden_states[-1][steps < (lengths + 2)[:, None]]  # words and both marks
        hidden = unflatten(flat.index_select(0, inside_sentences(lengths)), mask)
    else:
        hidden = model.base_model(**rows).last_hidden_state
    reading = Reading(hidden, mask)
    if outputs is not None:
        reading.total, reading.count = outputs.loss, count_items(targets, "bidirectional", "token")
        reading.parts = {name: outputs[name] for name in ("forward_loss", "backward_loss")}
    return reading


def pool_rows(
    hidden: Tensor, mask: Tensor, pooling: str, ids: Tensor | None = None, token: int | None = None
) -> Tensor:
    """One vector of each row.

    Args:
        hidden: (N, T, H).
        mask: (N, T) bool, true at tokens; padding may stand on either side.
        pooling: "first", "last", "mean", or "classify_token".
        ids: (N, T) token ids, for "classify_token".
        token: the id whose first place is read, for "classify_token".

    Returns:
        (N, H).

    Raises:
        ValueError: a row without that token.
    """
    if pooling == "mean":
        return pool(hidden, mask, "mean")
    where, last = mask, mask.shape[1] - 1
    if pooling == "classify_token":
        if ids is None:
            raise ValueError("pooling='classify_token' looks for a token: pass input_ids, not inputs_embeds.")
        where = (ids == token) & mask
        if not bool(where.any(1).all()):
            raise ValueError(
                f"pooling='classify_token' reads the vector of token {token}, found {int((~where.any(1)).sum())} of "
                f"{len(ids)} rows without it. Put it at the end of every row after cutting the text, or use pooling='last'."
            )
    places = last - where.int().flip(1).argmax(1) if pooling == "last" else where.int().argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), places]


__all__ = ["Reading", "count_items", "pool_rows", "predicted", "read", "sum_losses", "token_mask"]
