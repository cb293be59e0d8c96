"""The readable twin of joint ELECTRA: one row at a time without padding, the stock heads at every place, one token at a time."""

import math

import torch


def row_losses(model, row: list[int], labels: list[int], corrupted: list[int]) -> tuple[list, list]:
    """The generator's losses at masked places and the discriminator's at all tokens.

    Args:
        model: an `ElectraForJointPreTraining`.
        row: ids as a collator left them, without padding.
        labels: original ids at masked places, -100 elsewhere.
        corrupted: what the discriminator reads.
    """
    written = model.generator(torch.tensor([row])).logits[0].log_softmax(1)
    mlm = [-written[place, label] for place, label in enumerate(labels) if label != -100]
    scores = model.discriminator(torch.tensor([corrupted])).logits[0]
    rtd = []
    for place, (given, label) in enumerate(zip(row, labels, strict=True)):
        original = given if label == -100 else label
        fake = corrupted[place] != original
        rtd.append(-torch.nn.functional.logsigmoid(scores[place] if fake else -scores[place]))
    return mlm, rtd


def step_loss(model, rows: list, labels: list, corrupted: list) -> tuple:
    """`L_G + 50 L_D` over a whole step, and both means; arguments are lists of rows as in `row_losses`."""
    mlm, rtd = [], []
    for one in zip(rows, labels, corrupted, strict=True):
        written, found = row_losses(model, *one)
        mlm, rtd = mlm + written, rtd + found
    first = sum(mlm) / len(mlm) if mlm else torch.tensor(0.0)
    second = sum(rtd) / len(rtd)
    return first + 50 * second, first, second


def chi_square(counts: list[int], probabilities: list[float]) -> float:
    """Pearson's statistic in standard deviations from its mean."""
    total, degrees = sum(counts), len(counts) - 1
    statistic = sum(
        (found - total * p) ** 2 / (total * p) for found, p in zip(counts, probabilities, strict=True)
    )
    return (statistic - degrees) / math.sqrt(2 * degrees)
