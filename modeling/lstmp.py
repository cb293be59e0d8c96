"""lstmp: one LSTM with projection and clips over a packed batch, for any device and dtype.

Sak et al. 2014 (arXiv:1402.1128), section 2, with the clips of bilm-tf. What makes it fast, exactly: the input product of
all time steps is one matrix product before the loop, and of distinct inputs only; rows are sorted by length so that no
step touches padding; the recurrent weights lie as the machine reads them best (`lstmp_paths.py` says how). The readable
twin: tests/reference/lstmp_naive.py.

Letters: N positions of the packed batch, U distinct inputs, R rows, I inputs, P outputs, D cells.
"""

import itertools

import torch
from torch import Tensor

from .input_products import InputProducts
from .lstmp_autograd import LstmpFunction, last_positions, run_loop
from .lstmp_cuda import run_pieces
from .lstmp_cuda_training import LstmpCudaFunction
from .lstmp_native import run_steps
from .lstmp_paths import choose_path, packs
from .packed_linear import multiplier


def lstmp(
    inputs: Tensor,
    batch_sizes: list[int],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    weight_proj: Tensor | None = None,
    state: tuple[Tensor, Tensor] | None = None,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
    index: Tensor | None = None,
    precision: str = "fp32",
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM with projection over a packed batch: step by step, rows sorted by falling length.

    Args:
        inputs: (N, I), the rows of step 0, then those of step 1, ... as in `torch.nn.utils.rnn.PackedSequence`; with
            `index` the (U, I) vectors that it points to.
        batch_sizes: rows alive at each step; never rising, summing to N.
        weight_ih: (4 D, I), gates in torch's order: input, forget, cell, output.
        weight_hh: (4 D, P).
        bias: (4 D,), one bias, a constant for the forget gate included.
        weight_proj: (P, D); None means that outputs are the cells' (P = D) and `proj_clip` has no effect.
        state: h (R, P) and c (R, D) before step 0, R = batch_sizes[0]; None means zeros.
        cell_clip: c is clipped to [-cell_clip, cell_clip] before it is used; None turns it off.
        proj_clip: h likewise, after the projection.
        index: (N,), which vector of `inputs` stands at each packed position: repeated words are multiplied once.
        precision: "fp32", or "bf16" for products of bfloat16 with sums and cells in float32. Only without gradients
            and with float32 weights; otherwise it changes nothing.

    Returns:
        Outputs (N, P) in the order of the packed positions, and each row's own last state (h (R, P), c (R, D)).
        Gradients flow to all tensors; second derivatives are not supported.

    Raises:
        ValueError: shapes that do not belong together, by name, or another precision.
    """
    cells, size = weight_hh.shape[0] // 4, weight_hh.shape[1]
    rows, positions = batch_sizes[0] if batch_sizes else 0, sum(batch_sizes)
    if state is None:
        state = inputs.new_zeros(rows, size), inputs.new_zeros(rows, cells)
    vectors = positions if index is None else len(inputs)
    expected = {
        "inputs": (inputs, (vectors, weight_ih.shape[1])),
        "weight_ih": (weight_ih, (4 * cells, weight_ih.shape[1])),
        "weight_hh": (weight_hh, (4 * cells, size if weight_proj is not None else cells)),
        "bias": (bias, (4 * cells,)),
        "state h": (state[0], (rows, size)),
        "state c": (state[1], (rows, cells)),
    }
    if weight_proj is not None:
        expected["weight_proj"] = weight_proj, (size, cells)
    if index is not None:
        expected["index"] = index, (positions,)
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"lstmp: {name} has shape {tuple(tensor.shape)}, expected {shape}.")
    if any(later > earlier for earlier, later in itertools.pairwise(batch_sizes)):
        raise ValueError("lstmp: batch_sizes must not rise; sort the rows by falling length.")
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"lstmp: precision must be fp32 or bf16, got {precision!r}.")

    # One precision for the whole recurrence: autocast would cast each step's products but not the in-place sums.
    with torch.autocast(inputs.device.type, enabled=False):
        tensors = [inputs, *state, weight_ih, weight_hh, bias, weight_proj]
        dtype = weight_hh.dtype
        tensors = [one if one is None or one.dtype == dtype else one.to(dtype) for one in tensors]
        training = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in tensors)
        path = choose_path(weight_hh)
        half = precision == "bf16" and not training and dtype == torch.float32
        clips = cell_clip, proj_clip
        if path == "cuda" and not training and positions:
            outputs, c = run_pieces(*tensors, batch_sizes, index, *clips, half)
        elif path in ("native", "packed") and not training and positions:
            outputs, c = _by_pieces(*tensors, batch_sizes, index, *clips, path, half)
        elif path == "cuda" and positions:
            outputs, *state = LstmpCudaFunction.apply(*tensors, batch_sizes, index, clips)
            return outputs, tuple(state)
        else:
            outputs, h, c = LstmpFunction.apply(*tensors, batch_sizes, index, *clips, path, half, training)
            return outputs, (h, c)
        h = outputs.index_select(0, last_positions(batch_sizes).to(outputs.device))
    return outputs, (h, c)


def _by_pieces(
    inputs: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    weight_proj: Tensor | None,
    batch_sizes: list[int],
    index: Tensor | None,
    cell_clip: float | None,
    proj_clip: float | None,
    path: str,
    half: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs and last c, without gradients, some steps at a time; arguments as in `lstmp`."""
    if half:
        inputs, bias = inputs.bfloat16(), bias.bfloat16()
    multiply = multiplier(weight_ih, packs(weight_ih, path), half)
    products = InputProducts(inputs, index, lambda x: multiply(x, bias), 4 * c.shape[1] * inputs.itemsize)
    options = weight_hh, weight_proj
    if path == "native":
        return run_steps(products, batch_sizes, *options, (h, c), cell_clip, proj_clip, half)
    outputs, c = [], c.clone()  # its rows that have ended stay as they are
    for start, sizes in products.pieces(batch_sizes):
        n, gates = sizes[0], products.gates(start, start + sum(sizes)).to(c.dtype)
        piece = run_loop(gates, *options, h[:n], c[:n], sizes, cell_clip, proj_clip, path, half)
        outputs.append(piece)
        h = piece[-sizes[-1] :]
    return torch.cat(outputs), c


__all__ = ["lstmp"]
