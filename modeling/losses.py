"""Losses that stay exact under gradient accumulation and data parallelism."""

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_of_all(total: Tensor, count: Tensor | int, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Divide a summed loss by the items of the whole batch, of which this may be a part.

    Args:
        total: () summed loss of this part.
        count: items of this part.
        num_items_in_batch: items of all parts (accumulation steps and processes), as Trainer counts them; None means
            that this part is the whole batch.

    Returns:
        () loss; 0 rather than NaN where there are no items. The parts' losses sum to the whole batch's mean.
    """
    items = count if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(items, device=total.device).clamp(min=1)


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    problem_type: str | None = None,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy, squared error or per-label binary cross-entropy, each a mean over the labelled rows.

    Args:
        logits: (N, K).
        labels: (N,) classes with -100 for "none", (N,) or (N, K) floats for regression, (N, K) floats for several labels.
        problem_type: as in Transformers; None decides by K and the labels' type.
        num_items_in_batch: see `mean_of_all`.

    Returns:
        () loss.

    Raises:
        ValueError: labels of the wrong shape, or a class that does not exist.
    """
    num_labels = logits.shape[-1]
    if problem_type is None:
        whole = not labels.is_floating_point()
        kinds = {True: "single_label_classification", False: "multi_label_classification"}
        problem_type = "regression" if num_labels == 1 else kinds[whole]
    logits = logits.float()
    if problem_type == "single_label_classification":
        if labels.shape != logits.shape[:1]:
            raise ValueError(
                f"labels must be {tuple(logits.shape[:1])} class ids, found shape {tuple(labels.shape)}."
            )
        known = labels[labels != -100]
        if len(known) and not (known.min() >= 0 and known.max() < num_labels):
            raise ValueError(
                f"labels must lie in 0..{num_labels - 1} (or be -100), found {int(known.min())}..{int(known.max())}. "
                "Set num_labels to the number of classes."
            )
        total = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        return mean_of_all(total, len(known), num_items_in_batch)
    if labels.numel() != logits.numel():
        raise ValueError(
            f"{problem_type} needs labels of shape {tuple(logits.shape)}, found {tuple(labels.shape)}."
        )
    loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    total = loss(logits, labels.view_as(logits).float(), reduction="sum")
    # Trainer counts label elements, as the mean over elements does.
    return mean_of_all(total, labels.numel(), num_items_in_batch)


__all__ = ["classification_loss", "mean_of_all"]
