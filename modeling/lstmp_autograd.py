"""The recurrence of `lstmp` and its derivative: activations are saved once, every weight gradient is one product at the end.

Letters as in `lstmp.py`; n rows alive at a step.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .lstmp_native import cells_back, cells_forward
from .lstmp_paths import packs
from .packed_linear import multiplier, multiplier_back, outer_sum, turned

WORTH_PACKING = 300  # rows from which one product with a packed weight wins back the packing, measured


class LstmpFunction(torch.autograd.Function):
    """All steps; arguments as in `lstmp`, with the way to take, whether products are of bfloat16, and whether to train."""

    @staticmethod
    def forward(
        ctx,
        inputs,
        h0,
        c0,
        weight_ih,
        weight_hh,
        bias,
        weight_proj,
        batch_sizes,
        index,
        cell_clip,
        proj_clip,
        path,
        half,
        training,
    ):
        """Outputs (N, P), and each row's last h (R, P) and c (R, D)."""
        # In training weights change at every step, so that the packed ones serve this batch alone.
        # (ctx.needs_input_grad says that parameters want gradients under no_grad too.)
        worth = not training or len(inputs) >= WORTH_PACKING
        first = multiplier(weight_ih, worth and packs(weight_ih, path), half)
        rounded = torch.bfloat16 if half else weight_hh.dtype
        gates = first(inputs.to(rounded), bias.to(rounded)).to(weight_hh.dtype)  # (U or N, 4 D)
        if index is not None:
            gates = gates.index_select(0, index)
        states = torch.empty_like(gates[:, : c0.shape[1]]) if training else None  # (N, D)
        c_last = c0.clone()
        options = batch_sizes, cell_clip, proj_clip, path, half
        outputs = run_loop(gates, weight_hh, weight_proj, h0, c_last, *options, states)
        h_last = outputs.index_select(0, last_positions(batch_sizes).to(outputs.device))
        if training:
            ctx.save_for_backward(
                inputs, h0, c0, weight_ih, weight_hh, weight_proj, gates, states, outputs, index
            )
            rows = len(inputs) if ctx.needs_input_grad[0] else 0
            ctx.packed_back = _packed_back(path, weight_ih, weight_hh, weight_proj, rows)
        ctx.options = batch_sizes, cell_clip, proj_clip, path
        return outputs, h_last, c_last

    @staticmethod
    @once_differentiable
    def backward(ctx, d_outputs, d_h_last, d_c_last):
        """Gradients of all tensors, by those at the three results."""
        inputs, h0, c0, weight_ih, weight_hh, weight_proj, gates, states, outputs, index = ctx.saved_tensors
        batch_sizes, cell_clip, proj_clip, path = ctx.options
        projected = weight_proj is not None
        previous = _previous(batch_sizes, gates.device)
        d_gates = torch.empty_like(gates)  # (N, 4 D)
        d_raw = d_outputs.clone(memory_format=torch.contiguous_format)  # (N, P), at the unclipped projection
        unclipped = None
        if projected and proj_clip is not None:
            unclipped = (outputs.abs() < proj_clip).to(outputs.dtype)
        if path == "native":
            m = torch.empty_like(states)  # (N, D), made again in the steps

            def back(step, dm, dc, before):
                cells_back(gates[step], before, states[step], dm, dc, d_gates[step], m[step], cell_clip)
        else:
            c_before = torch.cat([c0, states]).index_select(0, previous)  # (N, D)
            back, m = _cells_back(gates, states, c_before, d_gates, cell_clip)
        inputs_back, recurrent_back, project_back = (
            packed or multiplier_back(weight)
            for packed, weight in zip(ctx.packed_back, (weight_ih, weight_hh, weight_proj), strict=True)
        )
        d_h, d_c = d_h_last.clone(), d_c_last.clone(memory_format=torch.contiguous_format)
        stop = len(gates)
        for number, n in reversed(list(enumerate(batch_sizes))):
            step = slice(stop - n, stop)
            raw = d_raw[step].add_(d_h[:n])
            if unclipped is not None:
                raw.mul_(unclipped[step])
            dm = project_back(raw) if projected else raw
            stop -= n
            before = states[stop - batch_sizes[number - 1] :][:n] if number else c0[:n]
            back(step, dm, d_c[:n], before)
            d_h[:n] = recurrent_back(d_gates[step])
        h_before = torch.cat([h0, outputs]).index_select(0, previous)  # (N, P)
        needs, packed = ctx.needs_input_grad, packs(weight_hh, path)
        d_turned = turned(d_gates, packed)  # (4 D, N)
        of_inputs, of_inputs_turned = d_gates, d_turned
        if index is not None:  # sums over the positions of each distinct input
            of_inputs = d_gates.new_zeros(len(inputs), d_gates.shape[1]).index_add_(0, index, d_gates)
            of_inputs_turned = turned(of_inputs, packed)
        d_weight_proj = None
        if projected and needs[6]:
            d_weight_proj = outer_sum(turned(m, packed), d_raw, packed).t().contiguous()
        return (
            inputs_back(of_inputs) if needs[0] else None,
            d_h if needs[1] else None,
            d_c if needs[2] else None,
            outer_sum(of_inputs_turned, inputs, packed) if needs[3] else None,
            outer_sum(d_turned, h_before, packed) if needs[4] else None,
            d_gates.sum(0) if needs[5] else None,
            d_weight_proj,
            *[None] * 7,
        )


def _packed_back(path: str, weight_ih: Tensor, weight_hh: Tensor, weight_proj: Tensor | None, rows: int):
    """`multiplier_back` of those weights that are packed, else None.

    Made on the way forward: with checkpoints the way back has other objects for the same weights, and would pack them anew.
    """
    worth = rows >= 3 * WORTH_PACKING  # turned weights take longer
    weights = (weight_ih, worth), (weight_hh, True), (weight_proj, weight_proj is not None)
    return [
        multiplier_back(weight, True) if wanted and packs(weight, path) else None
        for weight, wanted in weights
    ]


def run_loop(
    gates: Tensor,
    weight_hh: Tensor,
    weight_proj: Tensor | None,
    h: Tensor,
    c: Tensor,
    batch_sizes: list[int],
    cell_clip: float | None,
    proj_clip: float | None,
    path: str,
    half: bool,
    states: Tensor | None = None,
) -> Tensor:
    """All steps of a packed batch, a few operations each.

    Args:
        gates: (N, 4 D), input products with bias; they become activations.
        weight_hh: (4 D, P).
        weight_proj: (P, D), or None.
        h: (R, P) before step 0.
        c: (R, D) before step 0; becomes each row's last.
        batch_sizes: as in `lstmp`, and so are the clips.
        cell_clip: of c.
        proj_clip: of h.
        path: "native", "packed" or "loop".
        half: whether products are of bfloat16.
        states: (N, D), to write each position's c to, or None.

    Returns:
        Outputs (N, P).
    """
    recurrent = multiplier(weight_hh, packs(weight_hh, path), half)
    project = None if weight_proj is None else multiplier(weight_proj, packs(weight_proj, path), half)
    rounded = torch.bfloat16 if half else weight_hh.dtype
    forward_step = cells_forward if path == "native" else _cells_forward
    outputs, start = gates.new_empty(len(gates), h.shape[1]), 0
    for n in batch_sizes:
        step = slice(start, start + n)
        gate = gates[step].add_(recurrent(h[:n].to(rounded)))  # (n, 4 D)
        now = c[:n] if states is None else states[step]
        m = forward_step(gate, c[:n], now, cell_clip)
        h = outputs[step]
        if project is None:
            h.copy_(m)
        else:
            h.copy_(project(m.to(rounded)))
            if proj_clip is not None:
                h.clamp_(-proj_clip, proj_clip)
        if states is not None:
            c[:n] = now
        start += n
    return outputs


def last_positions(batch_sizes: list[int]) -> Tensor:
    """(R,): where each row's last step stands among the packed positions."""
    if batch_sizes and batch_sizes[0] == batch_sizes[-1]:
        return torch.arange(sum(batch_sizes) - batch_sizes[0], sum(batch_sizes))
    sizes = torch.tensor(batch_sizes, dtype=torch.long)
    starts = sizes.cumsum(0) - sizes
    rows = torch.arange(batch_sizes[0] if batch_sizes else 0)
    steps = (sizes[:, None] > rows).sum(0)  # of each row
    return starts[steps - 1] + rows


def _cells_forward(gate: Tensor, before: Tensor, c: Tensor, cell_clip: float | None) -> Tensor:
    """A step's cells: gate (n, 4 D) becomes its activations, c (n, D) is written; returns o tanh(c) (n, D)."""
    cells = c.shape[1]
    candidate = gate[:, 2 * cells : 3 * cells].tanh()
    gate.sigmoid_()  # the candidate's block too: one call over all is cheaper than two over parts
    gate[:, 2 * cells : 3 * cells] = candidate
    i, f, _, o = gate.chunk(4, 1)
    torch.mul(f, before, out=c).addcmul_(i, candidate)
    if cell_clip is not None:
        c.clamp_(-cell_clip, cell_clip)
    return c.tanh().mul_(o)


def _cells_back(gates: Tensor, states: Tensor, c_before: Tensor, d_gates: Tensor, cell_clip: float | None):
    """The derivative of a step's cells, with all that needs no recurrence done before for all positions at once.

    Returns:
        A function of a step, dm (n, D) and dc (n, D), which writes d_gates (n, 4 D) and turns dc into that of the step
        before; and o tanh(c) (N, D).
    """
    i, f, g, o = gates.chunk(4, 1)
    tanh_c = states.tanh()
    m = o * tanh_c
    c_per_m = o * (1 - tanh_c * tanh_c)  # how c moves with the cell's output m
    inside = None if cell_clip is None else (states.abs() < cell_clip).to(states.dtype)
    # d gates = factors * (dc, dc, dc, dm)
    factors = torch.stack([g * i * (1 - i), c_before * f * (1 - f), i * (1 - g * g), m * (1 - o)], 1)
    d_gates = d_gates.unflatten(1, (4, -1))

    def back(step: slice, dm: Tensor, dc: Tensor, _: Tensor) -> None:
        dc.addcmul_(dm, c_per_m[step])
        if inside is not None:
            dc.mul_(inside[step])
        torch.mul(factors[step, :3], dc.unsqueeze(1), out=d_gates[step, :3])
        torch.mul(factors[step, 3], dm, out=d_gates[step, 3])
        dc.mul_(f[step])

    return back, m


def _previous(batch_sizes: list[int], device: torch.device) -> Tensor:
    """For each packed position, the index of its row's previous step in [initial rows; packed positions]."""
    rows = batch_sizes[0] if batch_sizes else 0
    sizes = torch.tensor(batch_sizes, dtype=torch.long)
    offsets = sizes.cumsum(0) - sizes
    starts = F.pad(rows + offsets, (1, 0))[: len(sizes)]  # of the rows one step before
    within = torch.arange(int(sizes.sum())) - offsets.repeat_interleave(sizes)
    return (starts.repeat_interleave(sizes) + within).to(device)


__all__ = ["LstmpFunction", "last_positions", "run_loop"]
