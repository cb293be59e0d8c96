"""The softmax over words at the top of a language model: one layer, and full, sampled or adaptive ways to its loss.

Letters: N positions, P features, V classes.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from .sampled_softmax import draw_log_uniform, sampled_softmax_loss
from .softmax_loss import softmax_loss

CUTOFFS = (
    2_000,
    10_000,
    50_000,
    200_000,
)  # of the adaptive softmax, as far as they lie inside the vocabulary


def make_softmax(size: int, classes: int, kind: str, cutoffs: list[int] | None = None) -> nn.Module:
    """A new output layer.

    Args:
        size: P.
        classes: V.
        kind: "full", "sampled" or "adaptive" (Grave et al. 2017; classes in order of falling frequency).
        cutoffs: where the adaptive softmax's clusters begin; None takes those of `CUTOFFS` below V.

    Returns:
        `nn.Linear`, or `nn.AdaptiveLogSoftmaxWithLoss`.

    Raises:
        ValueError: cutoffs that do not rise inside the vocabulary, or too many for the size.
    """
    if kind != "adaptive":
        return nn.Linear(size, classes)
    cutoffs = list(cutoffs or [cutoff for cutoff in CUTOFFS if cutoff < classes])
    if not cutoffs or sorted(set(cutoffs)) != cutoffs or cutoffs[0] < 1 or cutoffs[-1] >= classes:
        raise ValueError(
            f"adaptive_cutoffs must rise inside 1..{classes - 1}, found {cutoffs}. For a small vocabulary use the full "
            "softmax."
        )
    if size < 4 ** len(cutoffs):
        raise ValueError(
            f"an adaptive softmax over vectors of size {size} cannot have {len(cutoffs)} cutoffs: each further cluster "
            f"reads a quarter of the size before. Name fewer adaptive_cutoffs than {cutoffs}."
        )
    return nn.AdaptiveLogSoftmaxWithLoss(size, classes, cutoffs, head_bias=True)


def init_softmax(layer: nn.Module, init) -> None:
    """bilm-tf's initial values, N(0, 1 / sqrt(inputs)) and zero bias, for one linear layer of a softmax.

    Args:
        layer: an `nn.Linear`.
        init: `transformers.initialization`.
    """
    init.normal_(layer.weight, std=layer.in_features**-0.5)
    if layer.bias is not None:
        init.zeros_(layer.bias)


def target_loss(
    softmax: nn.Module, hidden: Tensor, targets: Tensor, num_sampled: int = 0, skip: int = 0
) -> Tensor:
    """Summed loss of the targets, in float32 at least and in memory far below N x V.

    Args:
        softmax: of `make_softmax`.
        hidden: (N, P).
        targets: (N,) classes, not below `skip`.
        num_sampled: samples of the sampled softmax; 0 means -log p exactly.
        skip: first classes of a linear layer that are no words and get no probability; an adaptive layer has no rows
            for them.

    Returns:
        () sum.
    """
    targets = targets.long()
    if isinstance(softmax, nn.AdaptiveLogSoftmaxWithLoss):
        if not len(targets):
            return hidden.sum() * 0.0  # torch's layer takes no empty batch
        kind = torch.promote_types(hidden.dtype, torch.float32)
        parameters = {name: parameter.to(kind) for name, parameter in softmax.named_parameters()}
        with torch.autocast(hidden.device.type, enabled=False):
            return -functional_call(softmax, parameters, (hidden.to(kind), targets - skip)).output.sum()
    weight, bias = softmax.weight, softmax.bias
    if num_sampled:
        draw = draw_log_uniform(len(weight) - skip, num_sampled)
        return sampled_softmax_loss(hidden, weight, bias, targets, *draw, skip)
    if skip:  # out of reach for exp; a slice of the weights would cost a copy of their gradient
        bias = F.pad(bias[skip:], (skip, 0), value=-1e30)
    return softmax_loss(hidden, weight, bias, targets)


def log_probabilities(softmax: nn.Module, hidden: Tensor, skip: int = 0) -> Tensor:
    """Log probabilities of all classes.

    Args:
        softmax: of `make_softmax`.
        hidden: (N, P).
        skip: as in `target_loss`.

    Returns:
        (N, V) in float32 at least, -inf at the first `skip` classes.
    """
    kind = torch.promote_types(hidden.dtype, torch.float32)
    if isinstance(softmax, nn.AdaptiveLogSoftmaxWithLoss):
        return F.pad(softmax.log_prob(hidden).to(kind), (skip, 0), value=-torch.inf)
    logits = softmax(hidden).to(kind)
    if skip:
        logits = torch.cat([torch.full_like(logits[:, :skip], -torch.inf), logits[:, skip:]], 1)
    return logits.log_softmax(1)


__all__ = ["init_softmax", "log_probabilities", "make_softmax", "target_loss"]
