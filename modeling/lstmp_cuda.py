"""The way "cuda" of `lstmp`: padded pieces of text, whose loop over time is one CUDA graph with one Triton kernel a step.

Not tried on any GPU so far: it is off unless `lstmp_path("cuda")` or HEIRLOOM_LSTMP=cuda asks for it, and a forced run is to be
compared with the way "loop" first. What a graph would replay, `Piece.steps`, runs on any device and is tested on CPUs.
Training is in `lstmp_cuda_training.py`.

A graph has fixed shapes, so the text is cut into pieces whose steps and rows are rounded up. A row that has ended keeps its c
by a mask. Its h goes on as noise, like all of the rows that fill up a batch, which no other row reads: each row's last h is
taken from the outputs. A model with two directions runs them `in_streams`.

A graph keeps the workspace that cuBLAS had when it was made, one for each stream. Two graphs with the same one must not run
at the same time, so that each is made in the stream that it will run in, and every stream has graphs and tensors of its own.

Letters: N positions of the packed batch, U distinct inputs, R rows, D cells, P outputs; of a piece: T steps, B rows, n positions.
"""

import functools
import importlib.util
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from .lstmp_cells import cells_plain
from .packed_linear import multiplier
from .weight_cache import WeightCache

STEPS = 8, 16, 24, 32, 48, 64  # of a piece
POSITIONS = 2048  # of a piece of more than 8 steps: 134 MB of gates at the original size in float32
GRAPHS = 8  # kept for each recurrent weight

Made = TypeVar("Made")

_halves = WeightCache(lambda weight: weight.bfloat16())
_pieces = WeightCache(lambda weight: OrderedDict())  # of each state of a recurrent weight; they die with it
lock = threading.Lock()  # from a piece's filling to the reading of its results, no other thread may use it


@functools.cache
def why_not_cuda() -> str:
    """Why this way is closed on this machine, or nothing."""
    if not torch.cuda.is_available():
        return "there is no CUDA device"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


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
        self.graph = capture(self.steps) if graph else None
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


def capture(work: Callable[[], None]) -> "torch.cuda.CUDAGraph":
    """What `work` does on the current device, as a graph for the current stream."""
    work()  # compiles the kernel, which cannot be done in a capture
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    if stream == torch.cuda.default_stream():
        stream = None  # nothing can be captured there; torch then takes its own stream for captures
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        work()
    return graph


def round_up(rows: int, steps: int) -> tuple[int, int]:
    """Steps T and rows B of the piece that a batch of these rows, with so many steps to go, begins with."""
    rows = 1 << (rows - 1).bit_length() if rows <= 8 else rows + -rows % 8
    allowed = [bucket for bucket in STEPS if bucket * rows <= POSITIONS] or STEPS[:1]
    return next((bucket for bucket in allowed if bucket >= steps), allowed[-1]), rows


def on_device(numbers: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU's on a device, which the CPU does not wait for."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)


@functools.lru_cache(maxsize=256)
def plan(
    sizes: tuple[int, ...], rows: int, device: torch.device, _settings: object = None
) -> tuple[Tensor, Tensor]:
    """Where each position of some steps lies in (T, B), and how many steps each of the B rows has; for one stream."""
    alive = torch.arange(rows) < torch.tensor(sizes)[:, None]
    return on_device(alive.flatten().nonzero().squeeze(1), device), on_device(alive.sum(0).int(), device)


def settings(device: torch.device) -> tuple:
    """What a graph keeps from when it was made: whether float32 products may be of TF32, and the stream."""
    matmul = torch.backends.cuda.matmul
    tf32 = getattr(matmul, "fp32_precision", None) or matmul.allow_tf32  # torch 2.9 has a new name
    return tf32, torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def keep(kept: OrderedDict, key: tuple, make: Callable[[], Made], most: int) -> Made:
    """What is kept for a key, else something new, for which the one unused for longest makes room."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    if len(kept) > most:
        _, old = kept.popitem(last=False)
        if old.done is not None:
            old.done.synchronize()  # its graph may still run
    return kept[key]


def _piece(
    steps: int, rows: int, weight_hh: Tensor, weight_proj: Tensor | None, clips: tuple, half: bool
) -> Piece:
    """One that is kept, or a new one."""
    operands = [
        weight if weight is None or not half else _halves(weight) for weight in (weight_hh, weight_proj)
    ]
    if any(weight is not None and weight.is_inference() for weight in (weight_hh, weight_proj)):
        return Piece(steps, rows, *operands, clips, graph=False)  # nobody knows whether they have changed
    addresses = tuple(None if operand is None else operand.data_ptr() for operand in operands)
    key = steps, rows, addresses, clips, settings(weight_hh.device)
    make = functools.partial(Piece, steps, rows, *operands, clips, graph=weight_hh.is_cuda)
    return keep(_pieces(weight_hh), key, make, GRAPHS)


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
    with lock, torch.cuda.device_of(gates):
        while step < len(batch_sizes):
            rows = batch_sizes[step]
            piece = _piece(
                *round_up(rows, len(batch_sizes) - step), weight_hh, weight_proj, (cell_clip, proj_clip), half
            )
            sizes = tuple(batch_sizes[step : step + len(piece.gates)])
            place, lengths = plan(sizes, len(piece.c), gates.device, settings(gates.device))
            vectors = index[start : start + len(place)]
            found, c[:rows] = piece.run(gates, vectors, place, lengths, h[:rows], c[:rows])
            h = found[len(found) - sizes[-1] :]
            outputs.append(found)
            start, step = start + len(found), step + len(sizes)
    return torch.cat(outputs).to(weight_hh.dtype), c


@functools.cache
def _side_streams(device: torch.device, count: int) -> "list[torch.cuda.Stream]":
    return [torch.cuda.Stream(device) for _ in range(count)]


def in_streams(work: Callable[..., Made], calls: list[tuple]) -> list[Made]:
    """Call a function for several lists of arguments, on CUDA each in a stream of its own, elsewhere one after another.

    The streams begin where the caller's stands, and it goes on after all of them. PyTorch runs an operation's derivative
    in the operation's stream, so that the ways back are beside one another too.

    Args:
        work: its results are tensors, or tuples and lists of them.
        calls: its arguments; those that hold tensors likewise, on one device.

    Returns:
        The results in the order of the calls.
    """
    device = next((tensor.device for tensor in _tensors(calls)), None)
    if device is None or device.type != "cuda":
        return [work(*arguments) for arguments in calls]
    main, results = torch.cuda.current_stream(device), []
    streams = _side_streams(device, len(calls))
    for stream, arguments in zip(streams, calls, strict=True):
        stream.wait_stream(main)
        for tensor in _tensors(arguments):  # else memory could be used anew while a derivative still reads it
            tensor.record_stream(stream)
        with torch.cuda.stream(stream):
            results.append(work(*arguments))
    for stream, result in zip(streams, results, strict=True):
        main.wait_stream(stream)
        for tensor in _tensors(result):
            tensor.record_stream(main)
    return results


def _tensors(nested: object) -> Iterator[Tensor]:
    """The tensors in tuples and lists."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, (tuple, list)):
        for one in nested:
            yield from _tensors(one)


__all__ = [
    "POSITIONS",
    "capture",
    "in_streams",
    "keep",
    "lock",
    "on_device",
    "plan",
    "round_up",
    "run_pieces",
    "settings",
    "why_not_cuda",
]
