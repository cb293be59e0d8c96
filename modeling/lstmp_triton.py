"""A step's cells of `lstmp` as one Triton kernel: without gradients, and for training there and back.

Read only where Triton is there: see `lstmp_cuda.py` and `lstmp_cuda_training.py`. Tried in Triton's interpreter alone.

Letters: R rows, D cells.
"""

import importlib

from torch import Tensor

# Not by import statements: what those name in a file that lies beside weights is demanded of whoever loads them.
triton = importlib.import_module("triton")
tl = importlib.import_module("triton.language")

BLOCK = 256  # cells of one program


@triton.jit(do_not_specialize=["step"])
def cells_kernel(gates, recurrent, c, m, lengths, step, cells, clip, BLOCK: tl.constexpr):
    """One row's BLOCK cells; sums are float32 whatever is read."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < cells
    first = row * 4 * cells + column
    i = tl.load(gates + first, inside).to(tl.float32) + tl.load(recurrent + first, inside).to(tl.float32)
    first += cells
    f = tl.load(gates + first, inside).to(tl.float32) + tl.load(recurrent + first, inside).to(tl.float32)
    first += cells
    g = tl.load(gates + first, inside).to(tl.float32) + tl.load(recurrent + first, inside).to(tl.float32)
    first += cells
    o = tl.load(gates + first, inside).to(tl.float32) + tl.load(recurrent + first, inside).to(tl.float32)
    place = row * cells + column
    # tanh(x) = 2 sigmoid(2 x) - 1, exact to 2e-7: Triton's own tanh is another name in each version.
    new = tl.sigmoid(f) * tl.load(c + place, inside) + tl.sigmoid(i) * (2 * tl.sigmoid(2 * g) - 1)
    new = tl.where(new > clip, clip, new)  # minimum and maximum would hide a NaN
    new = tl.where(new < -clip, -clip, new)
    tl.store(c + place, new, inside & (step < tl.load(lengths + row)))
    out = tl.sigmoid(o) * (2 * tl.sigmoid(2 * new) - 1)
    tl.store(m + place, out.to(m.dtype.element_ty), inside)


def cells_by_triton(
    gates: Tensor, recurrent: Tensor, c: Tensor, m: Tensor, lengths: Tensor, step: int, clip: float
) -> None:
    """As `cells_plain` of lstmp_cells.py, by one kernel; all tensors contiguous."""
    rows, cells = c.shape
    grid = rows, triton.cdiv(cells, BLOCK)
    cells_kernel[grid](gates, recurrent, c, m, lengths, step, cells, clip, BLOCK)


@triton.jit
def activate_kernel(gates, before, c, m, cells, clip, BLOCK: tl.constexpr):
    """One row's BLOCK cells; gates become activations."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < cells
    place = row * cells + column
    input_gate = gates + row * 4 * cells + column
    i = tl.sigmoid(tl.load(input_gate, inside))
    f = tl.sigmoid(tl.load(input_gate + cells, inside))
    g = 2 * tl.sigmoid(2 * tl.load(input_gate + 2 * cells, inside)) - 1
    o = tl.sigmoid(tl.load(input_gate + 3 * cells, inside))
    new = f * tl.load(before + place, inside) + i * g
    new = tl.where(new > clip, clip, new)
    new = tl.where(new < -clip, -clip, new)
    tl.store(input_gate, i, inside)
    tl.store(input_gate + cells, f, inside)
    tl.store(input_gate + 2 * cells, g, inside)
    tl.store(input_gate + 3 * cells, o, inside)
    tl.store(c + place, new, inside)
    tl.store(m + place, o * (2 * tl.sigmoid(2 * new) - 1), inside)


@triton.jit(do_not_specialize=["step"])
def derive_kernel(gates, before, c, dm, dc, lengths, step, cells, clip, BLOCK: tl.constexpr):
    """One row's BLOCK cells; activations become gradients, c becomes o tanh(c), and dc that of the step before."""
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < cells
    alive = step < tl.load(lengths + row)
    place = row * cells + column
    input_gate = gates + row * 4 * cells + column
    i = tl.load(input_gate, inside)
    f = tl.load(input_gate + cells, inside)
    g = tl.load(input_gate + 2 * cells, inside)
    o = tl.load(input_gate + 3 * cells, inside)
    new = tl.load(c + place, inside)
    d_out = tl.load(dm + place, inside)
    tanh_c = 2 * tl.sigmoid(2 * new) - 1
    out = o * tanh_c
    d_new = tl.load(dc + place, inside) + d_out * o * (1 - tanh_c * tanh_c)
    d_new *= (tl.abs(new) < clip).to(tl.float32)  # a product, so that a NaN stays
    d_forget = d_new * tl.load(before + place, inside) * f * (1 - f)
    tl.store(input_gate, tl.where(alive, d_new * g * i * (1 - i), 0.0), inside)
    tl.store(input_gate + cells, tl.where(alive, d_forget, 0.0), inside)
    tl.store(input_gate + 2 * cells, tl.where(alive, d_new * i * (1 - g * g), 0.0), inside)
    tl.store(input_gate + 3 * cells, tl.where(alive, d_out * out * (1 - o), 0.0), inside)
    tl.store(dc + place, d_new * f, inside & alive)
    tl.store(c + place, out, inside)


def activate_by_triton(gates: Tensor, before: Tensor, c: Tensor, m: Tensor, clip: float) -> None:
    """As `activate_plain` of lstmp_cells.py, by one kernel; all tensors contiguous and float32."""
    grid = len(c), triton.cdiv(c.shape[1], BLOCK)
    activate_kernel[grid](gates, before, c, m, c.shape[1], clip, BLOCK)


def derive_by_triton(
    gates: Tensor, before: Tensor, c: Tensor, dm: Tensor, dc: Tensor, lengths: Tensor, step: int, clip: float
) -> None:
    """As `derive_plain` of lstmp_cells.py, likewise."""
    grid = len(c), triton.cdiv(c.shape[1], BLOCK)
    derive_kernel[grid](gates, before, c, dm, dc, lengths, step, c.shape[1], clip, BLOCK)


__all__ = ["activate_by_triton", "cells_by_triton", "derive_by_triton"]
