"""The readable twin of InfoWord's losses: one row, one n-gram, one score at a time, without padding."""

import torch
from torch import Tensor


def vector(model, ids: list[int]) -> Tensor:
    """g (H,): the first state of the encoder."""
    return model.language_model.base_model(torch.tensor([ids])).last_hidden_state[0, 0]


def row_contrast(model, context: list[int], ngram: list[int], others: list[list[int]]) -> Tensor:
    """The contrastive loss of one row.

    Args:
        model: an `InfoWordForPreTraining`, for its weights and its config.
        context: ids of the row without its n-gram.
        ngram: ids of the n-gram.
        others: ids of wrong ones; those that are the right one do not count.
    """
    here = vector(model, context)

    def score(ids):
        return sum(one * other for one, other in zip(here, vector(model, ids), strict=True)) / (
            model.config.temperature
        )

    real = score(ngram)
    wrong = [score(other) for other in others if other != ngram]
    if model.config.contrast == "margin":
        losses = [torch.clamp(1 - real + one, min=0) for one in wrong]
        return sum(losses) / max(1, len(losses)) + 0 * real
    return -torch.log(real.exp() / (real.exp() + sum(one.exp() for one in wrong)))


def step_loss(model, rows: list, labels: list, contexts: list, ngrams: list, wrong: list) -> tuple:
    """Both means over a step and their weighted sum.

    Args:
        model: an `InfoWordForPreTraining`.
        rows: ids with tokens hidden.
        labels: original ids at hidden places, -100 elsewhere.
        contexts: rows without their n-grams.
        ngrams: these.
        wrong: of each row, made of its n-gram; the other n-grams stand for them where negatives are "in_batch".
    """
    mlm, contrast = [], []
    for number, row in enumerate(rows):
        scores = model.language_model(torch.tensor([row])).logits[0].log_softmax(1)
        mlm += [-scores[place, label] for place, label in enumerate(labels[number]) if label != -100]
        inside = model.config.negatives == "in_batch"
        others = [one for place, one in enumerate(ngrams) if place != number] if inside else [wrong[number]]
        contrast.append(row_contrast(model, contexts[number], ngrams[number], others))
    means = [sum(mlm) / len(mlm), sum(contrast) / len(contrast)]
    weights = model.config.mlm_loss_weight, model.config.contrastive_loss_weight
    return weights[0] * means[0] + weights[1] * means[1], *means
