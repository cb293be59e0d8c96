"""A step's cells of `lstmp` as one Triton kernel. Read only where Triton is there: see `lstmp_cuda.py`.

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
    """As `cells_plain` of lstmp_cuda.py, by one kernel; all tensors contiguous."""
    rows, cells = c.shape
    grid = rows, triton.cdiv(cells, BLOCK)
    cells_kernel[grid](gates, recurrent, c, m, lengths, step, cells, clip, BLOCK)


__all__ = ["cells_by_triton"]
