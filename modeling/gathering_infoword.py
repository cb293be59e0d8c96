"""Rows of all processes in each of them, with gradients: what in-batch negatives need so that two processes are as one.

Every process must come here equally often: one that comes alone waits for the others. Letters: B rows of a process, K rows of
all.
"""

import torch
from torch import Tensor, distributed


def is_spread() -> bool:
    """Whether several processes work on one step, each with rows of its own."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def rows_of_all(vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Put the rows of all processes together, in the order of processes.

    Args:
        vectors: (B, H); B may differ between processes. Gradients go back to the process that they belong to.
        ids: (B, N) 0 or more, or -1 for none; N may differ too.

    Returns:
        Vectors (K, H) and ids (K, N) with the largest N, filled up with -1.
    """
    own = torch.tensor(ids.shape, device=vectors.device)
    shapes = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(shapes, own)
    sizes, widths = torch.stack(shapes).T.tolist()
    wide = ids.new_full((len(ids), max(widths)), -1)
    wide[:, : ids.shape[1]] = ids
    return _RowsOfAll.apply(vectors, sizes), _gathered(wide, sizes)


class _RowsOfAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, sizes: list[int]) -> Tensor:
        before = sum(sizes[: distributed.get_rank()])
        ctx.own = slice(before, before + len(rows))
        return _gathered(rows, sizes)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous().clone()  # is summed in place
        distributed.all_reduce(gradient)
        return gradient[ctx.own], None


def _gathered(rows: Tensor, sizes: list[int]) -> Tensor:
    """(K, ...) of rows (B, ...); all processes send as many, of which the last may mean nothing."""
    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows
    found = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(found, padded)
    return torch.cat([some[:size] for some, size in zip(found, sizes, strict=True)])


__all__ = ["is_spread", "rows_of_all"]
