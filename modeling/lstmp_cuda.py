"""The way "cuda" of `lstmp`: padded pieces of text, whose loop over time is one CUDA graph with one Triton kernel a step.

Not tried on any GPU so far: it is off unless `lstmp_path("cuda")` or HEIRLOOM_LSTMP=cuda asks for it, and a forced run is to be
compared with the way "loop" first. What a graph would replay, `Piece.steps`, runs on any device and is tested on CPUs.

A graph has fixed shapes, so the text is cut into pieces whose steps and rows are rounded up. A row that has ended keeps its c
by a mask. Its h goes on as noise, like all of the rows that fill up a batch, which no other row reads: each row's last h is
taken from the outputs. Both directions run behind one another, in the caller's stream.

Letters: N positions of the packed batch, U distinct inputs, R rows, D cells, P outputs; of a piece: T steps, B rows, n positions.
"""

import functools
import importlib.util
import math
import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from .packed_linear import multiplier
from .weight_cache import WeightCache

STEPS = 8, 16, 24, 32, 48, 64  # of a piece
POSITIONS = 2048  # of a piece of more than 8 steps: 134 MB of gates at the original size in float32
GRAPHS = 8  # kept for each recurrent weight

_halves = WeightCache(lambda weight: weight.bfloat16())
_pieces = WeightCache(lambda weight: OrderedDict())  # of each state of a recurrent weight; they die with it
_lock = threading.Lock()


@functools.cache
def why_not_cuda() -> str:
    """Why this way is closed on this machine, or nothing."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


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


class Piece:
    """The loop over T steps of B rows, on tensors of its own that stay where they are.

    Args:
        steps: T.
        rows: B.
        weight_hh: (4 D, P), as it is multiplied.
        weight_proj: (P, D), likewise, or None.
        clips: of cells and of the projection, as in `lstmp`.
        graph: whether `run` replays a CUDA graph.
    """

    def __init__(
        self,
        steps: int,
        rows: int,
        weight_hh: Tensor,
        weight_proj: Tensor | None,
        clips: tuple[float | None, float | None],
        graph: bool,
    ):
        self.weight_hh = weight_hh.detach()  # keeps the memory that the graph reads
        self.weight_proj = None if weight_proj is None else weight_proj.detach()
        self.cell_clip, self.proj_clip = math.inf if clips[0] is None else clips[0], clips[1]
        cells, size = weight_hh.shape[0] // 4, weight_hh.shape[1]
        with torch.inference_mode(False):  # its tensors could not be written to outside of it
            new = functools.partial(torch.zeros, dtype=weight_hh.dtype, device=weight_hh.device)
            self.gates = new(steps, rows, 4 * cells)
            self.recurrent, self.m = new(rows, 4 * cells), new(rows, cells)
            self.first, self.outputs = new(rows, size), new(steps, rows, size)
            self.c = new(rows, cells, dtype=torch.float32)
            self.lengths = new(rows, dtype=torch.int32)
        self.step_cells = cells_plain
        if weight_hh.is_cuda:
            from .lstmp_triton import cells_by_triton

            self.step_cells = cells_by_triton
        self.graph = _capture(self.steps) if graph else None
        self.done = torch.cuda.Event() if weight_hh.is_cuda else None

    def steps(self) -> None:
        """Fill `outputs` and move `c` on, from `gates`, `first`, `c` and `lengths`."""
        h = self.first
        for step, gates in enumerate(self.gates):
            torch.mm(h, self.weight_hh.t(), out=self.recurrent)
            h = self.outputs[step]
            m = h if self.weight_proj is None else self.m
            self.step_cells(gates, self.recurrent, self.c, m, self.lengths, step, self.cell_clip)
            if self.weight_proj is not None:
                torch.mm(m, self.weight_proj.t(), out=h)
                if self.proj_clip is not None:
                    h.clamp_(-self.proj_clip, self.proj_clip)

    def run(
        self, gates: Tensor, vectors: Tensor, place: Tensor, lengths: Tensor, h: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run the piece.

        Args:
            gates: (U, 4 D), input products of distinct vectors.
            vectors: (n,), which of them stands at each position.
            place: (n,), where that position lies in (T, B).
            lengths: (B,), steps of each row.
            h: (R, P), R <= B.
            c: (R, D).

        Returns:
            Outputs (n, P) and c (R, D).
        """
        if self.done is not None:
            self.done.wait()  # another stream may still read from the last run
        padded = torch.zeros(self.gates.shape[:2], dtype=torch.long, device=gates.device)
        padded.view(-1)[place] = vectors
        torch.index_select(gates, 0, padded.view(-1), out=self.gates.view(-1, gates.shape[1]))
        self.lengths.copy_(lengths)
        self.first[: len(h)], self.c[: len(c)] = h, c
        if self.graph is None:
            self.steps()
        else:
            self.graph.replay()
        results = self.outputs.flatten(0, 1).index_select(0, place), self.c[: len(c)].clone()
        if self.done is not None:
            self.done.record()
        return results


def _capture(work: Callable[[], None]) -> "torch.cuda.CUDAGraph":
    """What `work` does on the current device, as a graph."""
    work()  # compiles the kernel, which cannot be done in a capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph


def round_up(rows: int, steps: int) -> tuple[int, int]:
    """Steps T and rows B of the piece that a batch of these rows, with so many steps to go, begins with."""
    rows = 1 << (rows - 1).bit_length() if rows <= 8 else rows + -rows % 8
    allowed = [bucket for bucket in STEPS if bucket * rows <= POSITIONS] or STEPS[:1]
    return next((bucket for bucket in allowed if bucket >= steps), allowed[-1]), rows


@functools.lru_cache(maxsize=64)
def _plan(sizes: tuple[int, ...], rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each position of some steps lies in (T, B), and how many steps each of the B rows has."""
    alive = torch.arange(rows) < torch.tensor(sizes)[:, None]
    return alive.flatten().nonzero().squeeze(1).to(device), alive.sum(0).int().to(device)


def _tf32() -> object:
    """Whether float32 products may be of TF32, which a graph keeps from when it was made."""
    matmul = torch.backends.cuda.matmul
    return getattr(matmul, "fp32_precision", None) or matmul.allow_tf32  # torch 2.9 has a new name


def _piece(
    steps: int, rows: int, weight_hh: Tensor, weight_proj: Tensor | None, clips: tuple, half: bool
) -> Piece:
    """One that is kept, else a new one, for which the one unused for longest makes room."""
    operands = [
        weight if weight is None or not half else _halves(weight) for weight in (weight_hh, weight_proj)
    ]
    if any(weight is not None and weight.is_inference() for weight in (weight_hh, weight_proj)):
        return Piece(steps, rows, *operands, clips, graph=False)  # nobody knows whether they have changed
    kept = _pieces(weight_hh)
    addresses = tuple(None if operand is None else operand.data_ptr() for operand in operands)
    key = steps, rows, addresses, clips, _tf32()
    if key not in kept:
        kept[key] = Piece(steps, rows, *operands, clips, graph=weight_hh.is_cuda)
    kept.move_to_end(key)
    if len(kept) > GRAPHS:
        kept.popitem(last=False)
    return kept[key]


def run_pieces(
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
    half: bool,
) -> tuple[Tensor, Tensor]:
    """All steps of a packed batch without gradients; arguments as in `lstmp`, float32.

    Returns:
        Outputs (N, P) and each row's last c (R, D).
    """
    rounded = torch.bfloat16 if half else inputs.dtype
    gates = multiplier(weight_ih, half=half)(inputs.to(rounded), bias.to(rounded))  # (U or N, 4 D)
    if index is None:
        index = torch.arange(len(inputs), device=inputs.device)
    outputs, c, start, step = [], c.clone(), 0, 0
    with _lock, torch.cuda.device_of(gates):
        while step < len(batch_sizes):
            rows = batch_sizes[step]
            piece = _piece(
                *round_up(rows, len(batch_sizes) - step), weight_hh, weight_proj, (cell_clip, proj_clip), half
            )
            sizes = tuple(batch_sizes[step : step + len(piece.gates)])
            place, lengths = _plan(sizes, len(piece.c), gates.device)
            vectors = index[start : start + len(place)]
            found, c[:rows] = piece.run(gates, vectors, place, lengths, h[:rows], c[:rows])
            h = found[len(found) - sizes[-1] :]
            outputs.append(found)
            start, step = start + len(found), step + len(sizes)
    return torch.cat(outputs).to(weight_hh.dtype), c


__all__ = ["cells_plain", "round_up", "run_pieces", "why_not_cuda"]
