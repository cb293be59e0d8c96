"""The readable twin of the pull towards a frozen language model: one row and one token at a time, without padding."""

import torch

from reference.joint_loss_naive import hidden_row, target_row


def naive_divergence(model, frozen, kind: str, texts) -> torch.Tensor:
    """Mean KL(frozen || current) over the targets, or over rows of each row's mean."""
    means, counts = [], []
    for row in (row for rows in texts for row in rows):
        ids = torch.tensor([hidden_row(kind, row)])
        now = model.language_model(input_ids=ids).logits[0]
        before = frozen(input_ids=ids).logits[0].detach()
        each = []
        for place, target in enumerate(target_row(kind, row)):
            reader = place if kind in ("bert", "roberta") else place - 1
            if target == -100 or reader < 0:
                continue
            old, new = before[reader].softmax(0), now[reader].softmax(0)
            each.append(sum(old[word] * (old[word] / new[word]).log() for word in range(len(old))))
        means.append(sum(each) / len(each))
        counts.append(len(each))
    if model.config.lm_loss_reduction == "example":
        return sum(means) / len(means)
    return sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
