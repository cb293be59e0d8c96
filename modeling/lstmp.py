"""lstmp: one LSTM with projection and clips over a packed batch, for any device and dtype.

Sak et al. 2014 (arXiv:1402.1128), section 2, with the clips of bilm-tf. What makes it fast, exactly: the input product of
all time steps is one matrix product before the loop, rows are sorted by length so that no step touches padding, and in
the backward pass every weight gradient is one product after the loop. The readable twin: tests/reference/lstmp_naive.py.

Letters: N positions of the packed batch, n rows alive at a step, R rows, I inputs, P outputs, D cells.
"""

import itertools

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


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
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM with projection over a packed batch: step by step, rows sorted by falling length.

    Args:
        inputs: (N, I), the rows of step 0, then those of step 1, ... as in `torch.nn.utils.rnn.PackedSequence`.
        batch_sizes: rows alive at each step; never rising, summing to N.
        weight_ih: (4 D, I), gates in torch's order: input, forget, cell, output.
        weight_hh: (4 D, P).
        bias: (4 D,), one bias, a constant for the forget gate included.
        weight_proj: (P, D); None means that outputs are the cells' (P = D) and `proj_clip` has no effect.
        state: h (R, P) and c (R, D) before step 0, R = batch_sizes[0]; None means zeros.
        cell_clip: c is clipped to [-cell_clip, cell_clip] before it is used; None turns it off.
        proj_clip: h likewise, after the projection.

    Returns:
        Outputs (N, P) in the order of the inputs, and each row's own last state (h (R, P), c (R, D)). Gradients flow
        to all tensors; second derivatives are not supported.

    Raises:
        ValueError: shapes that do not belong together, by name.
    """
    cells, size = weight_hh.shape[0] // 4, weight_hh.shape[1]
    rows = batch_sizes[0] if batch_sizes else 0
    if state is None:
        state = inputs.new_zeros(rows, size), inputs.new_zeros(rows, cells)
    expected = {
        "inputs": (inputs, (sum(batch_sizes), weight_ih.shape[1])),
        "weight_ih": (weight_ih, (4 * cells, weight_ih.shape[1])),
        "weight_hh": (weight_hh, (4 * cells, size if weight_proj is not None else cells)),
        "bias": (bias, (4 * cells,)),
        "state h": (state[0], (rows, size)),
        "state c": (state[1], (rows, cells)),
    }
    if weight_proj is not None:
        expected["weight_proj"] = weight_proj, (size, cells)
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"lstmp: {name} has shape {tuple(tensor.shape)}, expected {shape}.")
    if any(later > earlier for earlier, later in itertools.pairwise(batch_sizes)):
        raise ValueError("lstmp: batch_sizes must not rise; sort the rows by falling length.")

    # One precision for the whole recurrence: autocast would cast each step's products but not the in-place sums.
    with torch.autocast(inputs.device.type, enabled=False):
        tensors = [inputs, *state, weight_ih, weight_hh, bias, weight_proj]
        tensors = [tensor if tensor is None else tensor.to(weight_hh.dtype) for tensor in tensors]
        outputs, h, c = _Lstmp.apply(*tensors, batch_sizes, cell_clip, proj_clip)
    return outputs, (h, c)


class _Lstmp(torch.autograd.Function):
    """The recurrence and its derivative; activations are saved once, gate gradients computed over them."""

    @staticmethod
    def forward(
        ctx, inputs, h0, c0, weight_ih, weight_hh, bias, weight_proj, batch_sizes, cell_clip, proj_clip
    ):
        cells, projected = c0.shape[1], weight_proj is not None
        gates = torch.addmm(bias, inputs, weight_ih.t())  # (N, 4 D)
        states = torch.empty_like(gates[:, :cells])  # (N, D)
        outputs = inputs.new_empty(len(inputs), h0.shape[1])  # (N, P)
        h_last, c_last = h0.clone(), c0.clone()
        h, c, start = h0, c0, 0
        recurrent, projection = weight_hh.t(), weight_proj.t() if projected else None
        for n in batch_sizes:
            step = slice(start, start + n)
            gate = gates[step].addmm_(h[:n], recurrent)  # (n, 4 D)
            candidate = gate[:, 2 * cells : 3 * cells].tanh()
            gate.sigmoid_()  # the candidate's block too: one call over all is cheaper than two over parts
            gate[:, 2 * cells : 3 * cells] = candidate
            i, f, _, o = gate.chunk(4, 1)
            c = torch.mul(f, c[:n], out=states[step]).addcmul_(i, candidate)
            if cell_clip is not None:
                c.clamp_(-cell_clip, cell_clip)
            if projected:
                h = torch.mm(c.tanh().mul_(o), projection, out=outputs[step])
                if proj_clip is not None:
                    h.clamp_(-proj_clip, proj_clip)
            else:
                h = torch.mul(c.tanh(), o, out=outputs[step])
            h_last[:n], c_last[:n] = h, c
            start += n
        ctx.save_for_backward(inputs, h0, c0, weight_ih, weight_hh, weight_proj, gates, states, outputs)
        ctx.options = batch_sizes, cell_clip, proj_clip
        return outputs, h_last, c_last

    @staticmethod
    @once_differentiable
    def backward(ctx, d_outputs, d_h_last, d_c_last):
        inputs, h0, c0, weight_ih, weight_hh, weight_proj, gates, states, outputs = ctx.saved_tensors
        batch_sizes, cell_clip, proj_clip = ctx.options
        projected = weight_proj is not None
        before = _previous(
            batch_sizes, inputs.device
        )  # (N,): where each position's previous step lies behind the R rows
        i, f, g, o = gates.chunk(4, 1)
        c_before = torch.cat([c0, states]).index_select(0, before)  # (N, D)
        tanh_c = states.tanh()
        c_per_m = o * (1 - tanh_c * tanh_c)  # how c moves with the cell output m = o tanh(c)
        inside = None if cell_clip is None else (states.abs() < cell_clip).to(states.dtype)
        # d gates = factor * (dc, dc, dc, dm): the part that needs no recurrence, at once for all positions
        factor = torch.stack(
            [g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], 1
        )
        d_gates = torch.empty_like(factor)  # (N, 4, D)
        d_raw = d_outputs.clone()  # (N, P), becomes the gradient at the unclipped projection
        unclipped = None
        if projected and proj_clip is not None:
            unclipped = (outputs.abs() < proj_clip).to(outputs.dtype)
        d_h, d_c, stop = d_h_last.clone(), d_c_last.clone(), len(inputs)
        for n in reversed(batch_sizes):
            step = slice(stop - n, stop)
            raw = d_raw[step].add_(d_h[:n])
            if unclipped is not None:
                raw.mul_(unclipped[step])
            dm = raw.mm(weight_proj) if projected else raw
            dc = d_c[:n].addcmul_(dm, c_per_m[step])
            if inside is not None:
                dc.mul_(inside[step])
            torch.mul(factor[step, :3], dc.unsqueeze(1), out=d_gates[step, :3])
            torch.mul(factor[step, 3], dm, out=d_gates[step, 3])
            torch.mm(d_gates[step].flatten(1), weight_hh, out=d_h[:n])
            dc.mul_(f[step])
            stop -= n
        d_gates = d_gates.flatten(1)  # (N, 4 D)
        h_before = torch.cat([h0, outputs]).index_select(0, before)  # (N, P)
        needs = ctx.needs_input_grad
        return (
            d_gates.mm(weight_ih) if needs[0] else None,
            d_h if needs[1] else None,
            d_c if needs[2] else None,
            d_gates.t().mm(inputs) if needs[3] else None,
            d_gates.t().mm(h_before) if needs[4] else None,
            d_gates.sum(0) if needs[5] else None,
            d_raw.t().mm(o * tanh_c) if projected and needs[6] else None,
            None,
            None,
            None,
        )


def _previous(batch_sizes: list[int], device: torch.device) -> Tensor:
    """For each packed position, the index of its row's previous step in [initial rows; packed positions]."""
    rows = batch_sizes[0] if batch_sizes else 0
    sizes = torch.tensor(batch_sizes, dtype=torch.long)
    offsets = sizes.cumsum(0) - sizes
    starts = F.pad(rows + offsets, (1, 0))[: len(sizes)]  # of the rows one step before
    within = torch.arange(int(sizes.sum())) - offsets.repeat_interleave(sizes)
    return (starts.repeat_interleave(sizes) + within).to(device)


__all__ = ["lstmp"]
