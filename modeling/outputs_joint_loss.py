"""What joint-loss models return. Letters: B examples, T positions, C choices, K labels."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class JointLossOutput(ModelOutput):
    """What the joint-loss models return; a part that was not asked for, or weighs 0, is None and was not computed.

    Args:
        loss: `task_loss + lm_loss_weight * lm_loss`, or the one of them that there is.
        logits: (B, K), of tokens (B, T, K), of choices (B, C).
        task_loss: mean over the labelled rows or tokens.
        lm_loss: mean over rows or targets, as `lm_loss_reduction` says, in nats.
        forward_loss: of the biLM, each word from its left; `lm_loss` is the mean of both directions.
        backward_loss: of the biLM, each word from its right.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    task_loss: Tensor | None = None
    lm_loss: Tensor | None = None
    forward_loss: Tensor | None = None
    backward_loss: Tensor | None = None


__all__ = ["JointLossOutput"]
