"""Sampled softmax: each position is told apart from one shared draw of classes instead of the whole vocabulary.

Jean et al. 2015 with the sampler of bilm-tf (TensorFlow's log-uniform sampler), for vocabularies in order of falling
frequency. The loss is a training signal and no perplexity: with the same weights its exp is far below the full softmax's.

Letters: N positions, P features, V classes, S sampled classes, T draws that it took to find S distinct ones.
"""

import contextlib
import math
import mmap

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LARGE = 2**25  # bytes of a table; the C library takes that much from the system anew each time


def draw_log_uniform(classes: int, count: int) -> tuple[Tensor, int]:
    """Draw distinct classes, frequent ones more often: P(k) = ln((k + 2) / (k + 1)) / ln(V + 1).

    The draw comes from torch's generator on the CPU, whatever the device of the model, so that a run resumes exactly.

    Args:
        classes: V.
        count: S.

    Returns:
        (S,) classes in the order of their first draw, and T.

    Raises:
        ValueError: S is not below V.
    """
    if not 0 < count < classes:
        raise ValueError(
            f"a sampled softmax needs fewer samples than classes, found {count} samples of {classes} classes. Lower "
            "num_sampled, or use the full softmax."
        )
    drawn = torch.empty(0, dtype=torch.long, device="cpu")
    while True:
        uniform = torch.rand(2 * count + len(drawn), dtype=torch.float64, device="cpu")
        more = (uniform * math.log(classes + 1)).exp().long() - 1
        drawn = torch.cat([drawn, more % classes])
        values, inverse = drawn.unique(return_inverse=True)
        if len(values) >= count:
            first = torch.full_like(values, len(drawn))
            first.scatter_reduce_(0, inverse, torch.arange(len(drawn), device="cpu"), "amin")
            first = first.sort().values[:count]
            return drawn[first], int(first[-1]) + 1


def expected_counts(ids: Tensor, classes: int, count: int, draws: int) -> Tensor:
    """How often classes are expected among the samples: Q(k) = 1 - (1 - P(k))^T, and S P(k) where T = S.

    Args:
        ids: classes of any shape.
        classes: V.
        count: S.
        draws: T.

    Returns:
        Q in float64, of the shape of `ids`; without rejected draws (T = S) it may exceed 1.
    """
    ids = ids.double()
    chance = ((ids + 2) / (ids + 1)).log() / math.log(classes + 1)
    return count * chance if draws == count else -torch.expm1(draws * torch.log1p(-chance))


def rows_of(weight: Tensor, ids: Tensor) -> Tensor:
    """Some rows of a table; on Linux, the gradient of a large one is made in half the time.

    The gradient is dense, as every optimizer wants it, and its zeros are most of a sampled softmax's work where a
    table has 800,000 rows. In pages of 2 MB the system clears them faster than in those of 4 KB that torch gets, and only those
    that hold one of the rows. (4 KB pages made on the first write would be faster still here, and twice as slow in the optimizer.)

    Args:
        weight: (V, P).
        ids: (S,), rows; they may repeat.

    Returns:
        (S, P). Second derivatives are not supported for large tables.
    """
    usual = weight.device.type != "cpu" or torch.compiler.is_compiling() or not hasattr(mmap, "MADV_HUGEPAGE")
    return weight.index_select(0, ids) if usual or weight.nbytes < LARGE else _Rows.apply(weight, ids)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight.shape, weight.dtype, weight.nbytes
        return weight.index_select(0, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        shape, dtype, size = ctx.weight
        zeros = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a system built without large pages
            zeros.madvise(mmap.MADV_HUGEPAGE)
        table = torch.frombuffer(zeros, dtype=dtype).view(shape)
        return table.index_add_(0, ctx.saved_tensors[0], gradient), None


def sampled_softmax_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    sampled: Tensor,
    draws: int,
    skip: int = 0,
) -> Tensor:
    """Summed cross-entropy of each target against the sampled classes, all logits less ln Q.

    Samples that happen to be a position's target are left out for it.

    Args:
        hidden: (N, P).
        weight: (skip + V, P).
        bias: (skip + V,).
        targets: (N,) rows of the weights, not below `skip`.
        sampled: (S,) distinct classes, as `draw_log_uniform` gives them.
        draws: T, of the same draw.
        skip: first rows, which are no classes.

    Returns:
        () sum over positions, in float32 at least.
    """
    sampled = sampled.to(targets.device) + skip
    kind = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        ids = torch.cat([targets, sampled])
        rows, biases = rows_of(weight, ids).to(kind), bias.index_select(0, ids).to(kind)
        expected = expected_counts(ids - skip, len(weight) - skip, len(sampled), draws)
        biases = biases - expected.log().to(kind)
        hidden, known = hidden.to(kind), len(targets)
        true_logits = (hidden * rows[:known]).sum(1) + biases[:known]  # (N,)
        logits = torch.addmm(biases[known:], hidden, rows[known:].t())  # (N, S)
        logits = logits.masked_fill(targets[:, None] == sampled, -torch.inf)
        logits = torch.cat([true_logits[:, None], logits], 1)
        return F.cross_entropy(logits, torch.zeros_like(targets), reduction="sum")


__all__ = ["draw_log_uniform", "expected_counts", "rows_of", "sampled_softmax_loss"]
