"""Cross-entropy over a whole vocabulary: exact, in memory that does not grow with positions times vocabulary.

Logits are made a block at a time, and the gradients in the same pass: blocks of positions for small vocabularies, blocks
of the vocabulary (with a second product instead of stored logits) for large ones, where a block of positions would be too
thin. The readable twin is `F.cross_entropy(F.linear(...))`.

Letters: N positions, P features, V classes.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BUFFER = 2**23  # logits held at a time, 32 MB in float32
FEWEST_POSITIONS = 64  # in a block; thinner products cost more than making the logits twice


def softmax_loss(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of softmax(hidden W^T + b) against the targets, computed in float32 at least.

    Args:
        hidden: (N, P).
        weight: (V, P).
        bias: (V,).
        targets: (N,) classes in 0..V-1.

    Returns:
        () sum of -log p(target), 0 without positions. Gradients flow to hidden, weight and bias, once.
    """
    kind = torch.promote_types(hidden.dtype, torch.float32)
    thin = BUFFER // len(weight) < min(FEWEST_POSITIONS, len(hidden))
    loss = _ByVocabulary if thin else _ByPosition
    with torch.autocast(hidden.device.type, enabled=False):
        return loss.apply(hidden.to(kind), weight.to(kind), bias.to(kind), targets)


class _ByPosition(torch.autograd.Function):
    """Blocks of positions: logits, probabilities and their gradient share one buffer."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets):
        needs = any(ctx.needs_input_grad)
        d_hidden, d_weight, d_bias = (
            torch.zeros_like(tensor) if needs else None for tensor in (hidden, weight, bias)
        )
        rows, total = max(1, BUFFER // len(weight)), hidden.new_zeros(())
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = torch.addmm(bias, hidden[part], weight.t())  # (n, V)
            target = targets[part].unsqueeze(1)  # (n, 1)
            largest = logits.amax(1, keepdim=True)
            chosen = logits.gather(1, target) - largest
            sums = logits.sub_(largest).exp_().sum(1, keepdim=True)
            total += (sums.log() - chosen).sum()
            if needs:
                d_logits = logits.div_(sums)
                d_logits.scatter_add_(1, target, d_logits.new_full(target.shape, -1.0))
                torch.mm(d_logits, weight, out=d_hidden[part])
                d_weight.addmm_(d_logits.t(), hidden[part])
                d_bias += d_logits.sum(0)
        if needs:
            ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, d_total):
        return *(gradient * d_total for gradient in ctx.saved_tensors), None


class _ByVocabulary(torch.autograd.Function):
    """Blocks of the vocabulary: a running log-sum-exp first, then each block's logits again for the gradients."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets):
        blocks = range(0, len(weight), max(1, BUFFER // 4 // max(1, len(hidden))))
        largest = hidden.new_full((len(hidden), 1), -torch.inf)
        sums = torch.zeros_like(largest)
        for start in blocks:
            logits = _logits(hidden, weight, bias, start, blocks.step)  # (N, v)
            higher = torch.maximum(largest, logits.amax(1, keepdim=True))
            sums = sums * (largest - higher).exp() + logits.sub_(higher).exp_().sum(1, keepdim=True)
            largest = higher
        log_sums = largest + sums.log()  # (N, 1)
        chosen = (hidden * weight[targets]).sum(1) + bias[targets]
        ctx.save_for_backward(hidden, weight, bias, targets, log_sums)
        return (log_sums.squeeze(1) - chosen).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, d_total):
        hidden, weight, bias, targets, log_sums = ctx.saved_tensors
        d_hidden, d_weight, d_bias = (torch.zeros_like(tensor) for tensor in (hidden, weight, bias))
        size = max(1, BUFFER // 4 // max(1, len(hidden)))
        order = targets.argsort()
        bounds = torch.arange(0, len(weight) + size, size, device=targets.device)
        bounds = torch.searchsorted(targets[order], bounds).tolist()
        for block, start in enumerate(range(0, len(weight), size)):
            part = slice(start, start + size)
            d_logits = _logits(hidden, weight, bias, start, size).sub_(log_sums).exp_()
            rows = order[bounds[block] : bounds[block + 1]]  # whose target lies in this block
            d_logits[rows, targets[rows] - start] -= 1
            d_logits *= d_total
            d_hidden.addmm_(d_logits, weight[part])
            torch.mm(d_logits.t(), hidden, out=d_weight[part])
            d_bias[part] = d_logits.sum(0)
        return d_hidden, d_weight, d_bias, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor, start: int, size: int) -> Tensor:
    return torch.addmm(bias[start : start + size], hidden, weight[start : start + size].t())


__all__ = ["softmax_loss"]
