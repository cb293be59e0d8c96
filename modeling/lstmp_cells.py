"""A step's cells in plain torch: what the kernels of `lstmp_triton.py` do on a GPU, and are compared with.

Letters: B rows, D cells.
"""

import torch
from torch import Tensor


def cells_plain(
    gates: Tensor, recurrent: Tensor, c: Tensor, m: Tensor, lengths: Tensor, step: int, clip: float
) -> None:
    """A step's cells: changes c in the rows that have not ended, and writes o tanh(c) to m.

    Args:
        gates: (B, 4 D), input products with bias; input, forget, cell, output.
        recurrent: (B, 4 D), products with the h before.
        c: (B, D), float32.
        m: (B, D), to write to; noise in rows that have ended.
        lengths: (B,), steps of each row.
        step: from 0.
        clip: of c; infinity turns it off.
    """
    i, f, g, o = (gates.float() + recurrent.float()).chunk(4, 1)
    new = (f.sigmoid() * c + i.sigmoid() * g.tanh()).clamp(-clip, clip)
    m.copy_(o.sigmoid() * new.tanh())
    c.copy_(torch.where((step < lengths)[:, None], new, c))


def activate_plain(gates: Tensor, before: Tensor, c: Tensor, m: Tensor, clip: float) -> None:
    """A step's cells.

    Args:
        gates: (B, 4 D), input, forget, cell, output; they become activations.
        before: (B, D), c of the step before.
        c: (B, D), to write to.
        m: (B, D), to write o tanh(c) to.
        clip: of c; infinity turns it off.
    """
    i, f, g, o = gates.chunk(4, 1)
    for gate in (i, f, o):
        gate.sigmoid_()
    c.copy_((f * before + i * g.tanh_()).clamp_(-clip, clip))
    m.copy_(o * c.tanh())


def derive_plain(
    gates: Tensor, before: Tensor, c: Tensor, dm: Tensor, dc: Tensor, lengths: Tensor, step: int, clip: float
) -> None:
    """The derivative of a step's cells. Rows that have ended keep dc and get zeros for gates; a clipped c passes nothing on.

    Args:
        gates: (B, 4 D) activations; they become the gradients at the gates.
        before: (B, D), c of the step before.
        c: (B, D); it becomes o tanh(c).
        dm: (B, D), gradients at o tanh(c).
        dc: (B, D), gradients at c; they become those at `before`.
        lengths: (B,), steps of each row.
        step: from 0.
        clip: of c.
    """
    i, f, g, o = gates.chunk(4, 1)
    tanh_c, alive = c.tanh(), (step < lengths)[:, None]
    m = o * tanh_c
    now = (dc + dm * o * (1 - tanh_c * tanh_c)) * (c.abs() < clip)  # a product, so that a NaN stays
    factors = now * g * i * (1 - i), now * before * f * (1 - f), now * i * (1 - g * g), dm * m * (1 - o)
    dc.copy_(torch.where(alive, now * f, dc))
    gates.copy_(torch.where(alive, torch.cat(factors, 1), 0.0))
    c.copy_(m)


__all__ = ["activate_plain", "cells_plain", "derive_plain"]
