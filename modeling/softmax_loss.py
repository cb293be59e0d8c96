"""Cross-entropy over a whole vocabulary, a slice of positions at a time: exact, in memory that does not grow with the batch.

Logits, probabilities and their gradient share one small buffer that stays in the processor's cache; the gradients of
the softmax's inputs and weights are made in the same pass. The readable twin is `F.cross_entropy(F.linear(...))`.

Letters: N positions, P features, V classes.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BUFFER = 2**21  # logits held at a time, 8 MB in float32


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
    with torch.autocast(hidden.device.type, enabled=False):
        return _SoftmaxLoss.apply(hidden.to(kind), weight.to(kind), bias.to(kind), targets)


class _SoftmaxLoss(torch.autograd.Function):
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


__all__ = ["softmax_loss"]
