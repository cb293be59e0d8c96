"""The readable twin of SpanBERT's losses: one span, one token at a time, without padding."""

import torch
from torch import Tensor


def boundary_scores(model, left: Tensor, right: Tensor, offset: int) -> Tensor:
    """(V,): f([x_{s-1}; x_{e+1}; p_{i-s}]) against each word's embedding (Joshi et al. 2020, section 3.2).

    Args:
        model: a `SpanBertForPreTraining`, for its weights.
        left: (H,) the token before the span.
        right: (H,) the token after it.
        offset: i - s.
    """
    head = model.span_head
    vector = torch.cat([left, right, head.positions.weight[offset]])
    for layer, norm in ((head.inner, head.inner_norm), (head.outer, head.outer_norm)):
        vector = layer.weight @ vector + layer.bias
        vector = vector * 0.5 * (1 + torch.erf(vector / 2**0.5))
        vector = (vector - vector.mean()) / (vector.var(unbiased=False) + norm.eps).sqrt()
        vector = vector * norm.weight + norm.bias
    words = model.language_model.get_input_embeddings().weight
    return torch.stack([word @ vector for word in words]) + head.bias


def row_losses(model, row: list[int], labels: list[int], spans: list[tuple[int, int]]) -> tuple[list, list]:
    """Losses of one row at its masked places and of its spans' tokens.

    Args:
        model: a `SpanBertForPreTraining`.
        row: ids with spans hidden.
        labels: original ids at hidden places, -100 elsewhere.
        spans: first and last place of each.
    """
    ids = torch.tensor([row])
    scores = model.language_model(ids).logits[0].log_softmax(1)
    mlm = [-scores[place, label] for place, label in enumerate(labels) if label != -100]
    hidden, sbo = model.language_model.base_model(ids).last_hidden_state[0], []
    for start, end in spans:
        if start == 0 or end == len(row) - 1:
            continue
        for place in range(start, min(end + 1, start + model.config.max_span_positions)):
            found = boundary_scores(model, hidden[start - 1], hidden[end + 1], place - start)
            sbo.append(-found.log_softmax(0)[labels[place]])
    return mlm, sbo


def step_loss(model, rows: list, labels: list, spans: list) -> tuple[Tensor, Tensor, Tensor]:
    """`L_MLM + L_SBO` of a whole step, and both means; arguments are lists as in `row_losses`."""
    mlm, sbo = [], []
    for one in zip(rows, labels, spans, strict=True):
        first, second = row_losses(model, *one)
        mlm, sbo = mlm + first, sbo + second
    means = [sum(losses) / len(losses) if losses else torch.tensor(0.0) for losses in (mlm, sbo)]
    return sum(means), *means


def targets(rows: list, labels: list, spans: list, most: int) -> list[list[int]]:
    """(row, left, right, offset, label) of each target; arguments as above, and `max_span_positions`."""
    return [
        [number, start - 1, end + 1, place - start, labels[number][place]]
        for number, row in enumerate(rows)
        for start, end in spans[number]
        if start > 0 and end < len(row) - 1
        for place in range(start, min(end + 1, start + most))
    ]
