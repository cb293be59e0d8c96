"""Training on the way "cuda" of `lstmp`: the loop over time and the loop back, each a CUDA graph with one kernel for a step's cells.

Not tried on any GPU so far, as `lstmp_cuda.py`, which also says when this way is taken. On CPUs the same loops run without a
graph and with `activate_plain` and `derive_plain` for the kernels; so they are tested. The formulas are those of
`lstmp_autograd.py`.

A batch is cut into pieces of 16, 8 and 4 steps, not one of a bucket's length: three graphs then serve every length with at
most three steps too many (20 steps, as bilm-tf trains, are 16 and 4), and their memory does not grow with the text. Back
through the pieces the order is reversed, and the gradients of h and c are handed on. A piece has the batch's rows, or a half
or quarter of them once so few are left. What autograd keeps is copied out, so that the next forward pass may use the piece.
Graphs read the parameters' own memory: an optimizer's step needs nothing, and a parameter that moved gets graphs of its own.

Letters: N positions of the packed batch, U distinct inputs, R rows, D cells, P outputs; of a piece: T steps, B rows, n positions.
"""

import functools
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.weak import WeakIdKeyDictionary

from .lstmp_autograd import last_positions
from .lstmp_cells import activate_plain, derive_plain
from .lstmp_cuda import POSITIONS, capture, keep, lock, on_device, plan, round_up, settings

STEPS = 16, 8, 4  # of a piece, more than the last only up to POSITIONS
PIECES = 32  # kept for each recurrent weight

_pieces = WeakIdKeyDictionary()  # of each recurrent weight; they die with it, not with its state


class TrainingPiece:
    """T steps of B rows, there and back, on tensors of its own that stay where they are.

    Args:
        steps: T.
        rows: B.
        weight_hh: (4 D, P).
        weight_proj: (P, D), or None.
        clips: of cells and of the projection, as in `lstmp`.
        graphs: whether the loops are CUDA graphs.
    """

    def __init__(
        self,
        steps: int,
        rows: int,
        weight_hh: Tensor,
        weight_proj: Tensor | None,
        clips: tuple[float | None, float | None],
        graphs: bool,
    ):
        self.weight_hh = weight_hh.detach()  # keeps the memory that the graphs read
        self.weight_proj = None if weight_proj is None else weight_proj.detach()
        self.cell_clip = math.inf if clips[0] is None else clips[0]
        self.proj_clip = None if weight_proj is None else clips[1]
        cells, size = weight_hh.shape[0] // 4, weight_hh.shape[1]
        with torch.inference_mode(False):
            new = functools.partial(torch.zeros, dtype=weight_hh.dtype, device=weight_hh.device)
            self.gates = new(steps, rows, 4 * cells)
            self.states, self.outputs = (
                new(steps + 1, rows, cells),
                new(steps + 1, rows, size),
            )  # first: before
            self.d_outputs, self.unclipped = new(steps + 1, rows, size), new(steps, rows, size)
            self.m, self.d_c = new(rows, cells), new(rows, cells)
            self.lengths = new(rows, dtype=torch.int32)
        self.activate, self.derive = activate_plain, derive_plain
        if weight_hh.is_cuda:
            from .lstmp_triton import activate_by_triton, derive_by_triton

            self.activate, self.derive = activate_by_triton, derive_by_triton
        self.play_forward = capture(self.forward_steps).replay if graphs else self.forward_steps
        self.play_back = capture(self.back_steps).replay if graphs else self.back_steps
        self.done = torch.cuda.Event() if weight_hh.is_cuda else None

    def forward_steps(self) -> None:
        """From `gates` and the first of `states` and `outputs`, fill the others; gates become activations.

        Rows that have ended go on as noise, which no other row reads.
        """
        for step, gates in enumerate(self.gates):
            h = self.outputs[step + 1]
            gates.addmm_(self.outputs[step], self.weight_hh.t())
            m = h if self.weight_proj is None else self.m
            self.activate(gates, self.states[step], self.states[step + 1], m, self.cell_clip)
            if self.weight_proj is not None:
                torch.mm(m, self.weight_proj.t(), out=h)
                if self.proj_clip is not None:
                    h.clamp_(-self.proj_clip, self.proj_clip)

    def back_steps(self) -> None:
        """Back again, with `lengths`: activations become gradients, states o tanh(c), d_outputs those before the clip.

        `d_c` and the first of `d_outputs` become the gradients at the states before.
        """
        for step in reversed(range(len(self.gates))):
            dm = raw = self.d_outputs[step + 1]
            if self.proj_clip is not None:
                raw.mul_(self.unclipped[step])
            if self.weight_proj is not None:
                dm = torch.mm(raw, self.weight_proj, out=self.m)
            states, gates = (self.states[step], self.states[step + 1]), self.gates[step]
            self.derive(gates, *states, dm, self.d_c, self.lengths, step, self.cell_clip)
            self.d_outputs[step].addmm_(gates, self.weight_hh)

    def forward(
        self,
        gates: Tensor,
        vectors: Tensor,
        place: Tensor,
        state: tuple[Tensor, Tensor],
        results: tuple[Tensor, ...],
    ) -> None:
        """Run the piece.

        Args:
            gates: (U, 4 D), input products of distinct vectors.
            vectors: (n,), which of them stands at each position.
            place: (n,), where that position lies in (T, B).
            state: h (R, P) and c (R, D), R <= B.
            results: to write to: activations (n, 4 D), c (n, D), outputs (n, P) and the h before each (n, P).
        """
        if self.done is not None:
            self.done.wait()  # another stream may still read from the last run
        padded = torch.zeros(self.gates.shape[:2], dtype=torch.long, device=gates.device).view(-1)
        padded[place] = vectors
        torch.index_select(gates, 0, padded, out=self.gates.view(-1, gates.shape[1]))
        for own, given in zip((self.outputs, self.states), state, strict=True):
            own[0, : len(given)] = given
        self.play_forward()
        sources = self.gates, self.states[1:], self.outputs[1:], self.outputs[:-1]
        for source, result in zip(sources, results, strict=True):
            torch.index_select(source.flatten(0, 1), 0, place, out=result)
        if self.done is not None:
            self.done.record()

    def back(
        self,
        saved: tuple[Tensor, ...],
        place: Tensor,
        lengths: Tensor,
        before: Tensor,
        d_c: Tensor,
        results: tuple[Tensor, ...],
    ) -> Tensor:
        """Run it back.

        Args:
            saved: activations (n, 4 D), c (n, D), gradients at the outputs (n, P), and (n, P) what is unclipped of
                these, or None.
            place: (n,).
            lengths: (B,), steps of each row.
            before: (R, D), c before the piece.
            d_c: (R, D), gradients at each row's last c in the piece; they become those at `before`.
            results: to write to: gradients at the gates (n, 4 D), o tanh(c) (n, D), gradients before the clip (n, P).

        Returns:
            Gradients at the h before the piece (R, P).
        """
        if self.done is not None:
            self.done.wait()
        self.d_outputs.zero_()  # places without a position add nothing
        own = self.gates, self.states[1:], self.d_outputs[1:], self.unclipped
        for target, given in zip(own, saved, strict=True):
            if given is not None:
                target.flatten(0, 1).index_copy_(0, place, given)
        self.lengths.copy_(lengths)
        self.states[0, : len(before)], self.d_c[: len(d_c)] = before, d_c
        self.play_back()
        for source, result in zip(own[:3], results, strict=True):
            torch.index_select(source.flatten(0, 1), 0, place, out=result)
        d_c.copy_(self.d_c[: len(d_c)])
        d_h = self.d_outputs[0, : len(d_c)].clone()
        if self.done is not None:
            self.done.record()
        return d_h


def cut(batch_sizes: list[int]) -> Iterator[tuple[int, int, int]]:
    """First step, steps T and rows B of each piece of a batch."""
    rows, step = round_up(batch_sizes[0], 1)[1], 0
    while step < len(batch_sizes):
        while batch_sizes[step] <= rows // 2:
            rows //= 2
        left = len(batch_sizes) - step
        steps = next((size for size in STEPS[:-1] if size <= left and size * rows <= POSITIONS), STEPS[-1])
        yield step, steps, rows
        step += steps


def _of_batch(
    batch_sizes: list[int], weight_hh: Tensor, weight_proj: Tensor | None, clips: tuple
) -> Iterator[tuple[TrainingPiece, slice, tuple[int, ...], Tensor, Tensor]]:
    """Each piece, its positions, rows at its steps, and `plan`."""
    starts = [0, *itertools.accumulate(batch_sizes)]
    addresses = tuple(None if weight is None else weight.data_ptr() for weight in (weight_hh, weight_proj))
    for step, steps, rows in cut(batch_sizes):
        shape, sizes = (steps, rows), tuple(batch_sizes[step : step + steps])
        make = functools.partial(
            TrainingPiece, *shape, weight_hh, weight_proj, clips, graphs=weight_hh.is_cuda
        )
        key = *shape, addresses, clips, settings(weight_hh.device)
        piece = keep(_pieces.setdefault(weight_hh, OrderedDict()), key, make, PIECES)
        here = slice(starts[step], starts[step + len(sizes)])
        yield piece, here, sizes, *plan(sizes, rows, weight_hh.device, settings(weight_hh.device))


class LstmpCudaFunction(torch.autograd.Function):
    """All steps, with gradients; at least one position. Arguments as in `lstmp`, its two clips as one."""

    @staticmethod
    def forward(ctx, inputs, h0, c0, weight_ih, weight_hh, bias, weight_proj, batch_sizes, index, clips):
        """Outputs (N, P), and each row's last h (R, P) and c (R, D)."""
        positions, device = sum(batch_sizes), inputs.device
        vectors = torch.arange(positions, device=device) if index is None else index
        gates = F.linear(inputs, weight_ih, bias)  # (U or N, 4 D)
        sizes = gates.shape[1], c0.shape[1], h0.shape[1], h0.shape[1]
        results = [gates.new_empty(positions, size) for size in sizes]
        _, states, outputs, _ = results
        h, c = h0, c0
        with lock, torch.cuda.device_of(gates):
            # Kept for the way back: with checkpoints `ctx.saved_tensors` has other objects for the same weights.
            ctx.pieces = list(_of_batch(batch_sizes, weight_hh, weight_proj, clips))
            for piece, here, rows, place, _ in ctx.pieces:
                n, parts = rows[0], tuple(result[here] for result in results)
                piece.forward(gates, vectors[here], place, (h[:n], c[:n]), parts)
                h, c = (result[here][-rows[-1] :] for result in (outputs, states))
        last = on_device(last_positions(batch_sizes), device)
        ctx.proj_clip = clips[1] if weight_proj is not None else None
        ctx.save_for_backward(inputs, c0, weight_ih, weight_hh, weight_proj, index, last, *results)
        return outputs, outputs.index_select(0, last), states.index_select(0, last)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_outputs, d_h_last, d_c_last):
        """Gradients of all tensors, by those at the three results."""
        inputs, c0, weight_ih, _, weight_proj, index, last, *saved = ctx.saved_tensors
        activations, states, outputs, h_before = saved
        d_outputs = d_outputs.clone(memory_format=torch.contiguous_format).index_add_(0, last, d_h_last)
        d_c, unclipped = d_c_last.clone(), None
        if ctx.proj_clip is not None:
            unclipped = (outputs.abs() < ctx.proj_clip).to(outputs.dtype)
        results = [torch.empty_like(one) for one in (activations, states, d_outputs)]
        d_h = d_outputs.new_zeros(0, d_outputs.shape[1])
        with lock, torch.cuda.device_of(activations):
            for number, (piece, here, rows, place, lengths) in reversed(list(enumerate(ctx.pieces))):
                n, end = rows[0], here.stop - rows[-1]
                d_outputs[end : end + len(d_h)] += d_h
                before = states[here.start - ctx.pieces[number - 1][2][-1] :][:n] if number else c0[:n]
                given = [
                    None if one is None else one[here] for one in (activations, states, d_outputs, unclipped)
                ]
                parts = tuple(result[here] for result in results)
                d_h = piece.back(given, place, lengths, before, d_c[:n], parts)
        d_gates, m, d_raw = results
        needs, of_inputs = ctx.needs_input_grad, d_gates
        if index is not None and (needs[0] or needs[3]):  # sums over the positions of each distinct input
            of_inputs = d_gates.new_zeros(len(inputs), d_gates.shape[1]).index_add_(0, index, d_gates)
        return (
            of_inputs.mm(weight_ih) if needs[0] else None,
            d_h if needs[1] else None,
            d_c if needs[2] else None,
            of_inputs.t().mm(inputs) if needs[3] else None,
            d_gates.t().mm(h_before) if needs[4] else None,
            d_gates.sum(0) if needs[5] else None,
            d_raw.t().mm(m) if weight_proj is not None and needs[6] else None,
            *[None] * 3,
        )


__all__ = ["LstmpCudaFunction", "TrainingPiece", "cut"]
