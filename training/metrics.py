"""Scores of a task, from predictions that Trainer gathered."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor
from transformers import EvalPrediction
from transformers.utils import logging

logger = logging.get_logger(__name__)


def most_likely(logits: Tensor, labels: Tensor) -> Tensor:
    """Keep only the predicted classes (for Trainer's `preprocess_logits_for_metrics`): (..., K) to (...)."""
    return logits.argmax(-1)


def classification_scores(label_names: Sequence[str]) -> Callable[[EvalPrediction], dict[str, float]]:
    """A `compute_metrics` for Trainer.

    Args:
        label_names: class names in the order of their ids; B-/I- names give entity scores too.

    Returns:
        A function from gathered class ids and labels (-100 is skipped) to accuracy and macro F1, and for entities
        `entity_f1` by seqeval.
    """
    entities = has_entities(label_names)

    def scores(gathered: EvalPrediction) -> dict[str, float]:
        predicted, labels = gathered.predictions, gathered.label_ids
        known = labels != -100
        result = {
            "accuracy": float((predicted == labels)[known].mean()) if known.any() else 0.0,
            "macro_f1": macro_f1(predicted[known], labels[known]),
        }
        if entities:
            result |= _entity_scores(predicted, labels, label_names)
        return result

    return scores


def numbers(predicted: Tensor, labels: Tensor) -> Tensor:
    """Keep the one number of a row (for `preprocess_logits_for_metrics`): (N, 1) to (N,), in float32."""
    return predicted.float().squeeze(-1)


def choice_scores(gathered: EvalPrediction) -> dict[str, float]:
    """A `compute_metrics` for multiple choice: accuracy over rows with a label."""
    known = gathered.label_ids != -100
    right = gathered.predictions == gathered.label_ids
    return {"accuracy": float(right[known].mean()) if known.any() else 0.0}


def regression_scores(gathered: EvalPrediction) -> dict[str, float]:
    """A `compute_metrics` for numbers: Pearson's and Spearman's correlation and the mean squared error, -100 left out."""
    labels = np.asarray(gathered.label_ids, dtype=np.float64).reshape(-1)
    predicted = np.asarray(gathered.predictions, dtype=np.float64).reshape(-1)
    known = labels != -100
    predicted, labels = predicted[known], labels[known]
    return {
        "pearson": pearson(predicted, labels),
        "spearman": pearson(ranks(predicted), ranks(labels)),
        "mse": float(((predicted - labels) ** 2).mean()) if len(labels) else 0.0,
    }


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two rows of numbers, (N,) each; 0 where one of them does not vary."""
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))


def ranks(values: np.ndarray) -> np.ndarray:
    """Places from 1 in rising order, (N,); equal values share the mean of their places."""
    _, kinds, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[kinds]


def check_entity_scores(label_names: Sequence[str]) -> None:
    """Refuse, before training, to tag entities where nothing could score them.

    Args:
        label_names: class names.

    Raises:
        ImportError: B-/I- names without seqeval.
    """
    if not has_entities(label_names):
        return
    try:
        import seqeval  # noqa: F401
    except ImportError as error:
        raise ImportError("entity F1 needs seqeval: pip install 'heirloom-lm[train]'") from error


def has_entities(label_names: Sequence[str]) -> bool:
    """Whether labels are of the BIO kind."""
    return any(name.startswith("I-") for name in label_names)


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur of F1 = 2 TP / (2 TP + FP + FN).

    Args:
        predicted: (N,) class ids.
        labels: (N,) class ids.

    Returns:
        A number in 0..1; 0 without labels.
    """
    f1 = []
    for kind in np.union1d(predicted, labels):
        hits = ((predicted == kind) & (labels == kind)).sum()
        f1.append(2 * hits / ((predicted == kind).sum() + (labels == kind).sum()))
    return float(np.mean(f1)) if f1 else 0.0


def _entity_scores(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    try:
        from seqeval.metrics import f1_score, precision_score, recall_score
    except ImportError:
        logger.warning_once(
            "Entity F1 needs seqeval: pip install 'heirloom-lm[train]'. Only accuracy is reported."
        )
        return {}
    tags = [
        [[names[item] for item in row[mask]] for row, mask in zip(rows, labels != -100, strict=True)]
        for rows in (labels, predicted)
    ]
    return {
        "entity_f1": float(f1_score(*tags)),
        "entity_precision": float(precision_score(*tags)),
        "entity_recall": float(recall_score(*tags)),
    }
