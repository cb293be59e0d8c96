"""The C kernel of `lstmp`: compiled for this machine when it is first wanted, and called through ctypes.

Nothing here is required: without a C compiler, or beside a checkpoint whose folder holds no C file, `lstmp` takes another way.
The kernel reads weights in an order of its own, which lies in a cache beside the parameters and follows their changes.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .input_products import InputProducts
from .weight_cache import WeightCache

SOURCE = Path(__file__).with_name("lstmp_native.c")
GROUP, BLOCK = 16, 64  # as in the C file
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma")
LEVELS = {  # instructions and how a compiler is told of them, from the best
    "avx512_bf16": (*AVX512, "-mavx512bf16"),
    "avx512": AVX512,
    "avx2": ("-mavx2", "-mfma"),
    "any": (),
}
# No -ffast-math: with it, loading the library would change how the whole process treats tiny numbers.
OPTIONS = (
    "-O3",
    "-std=gnu11",
    "-fPIC",
    "-shared",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
)
SECONDS = 120  # for the compiler

_lock = threading.Lock()


class Run(ctypes.Structure):
    """`Run` of the C file."""

    _fields_ = (
        ("inputs", ctypes.c_void_p),
        ("batch_sizes", ctypes.c_void_p),
        ("steps", ctypes.c_int64),
        ("cells", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("recurrent", ctypes.c_void_p),
        ("projection", ctypes.c_void_p),
        ("cell_clip", ctypes.c_float),
        ("proj_clip", ctypes.c_float),
        ("h", ctypes.c_void_p),
        ("c", ctypes.c_void_p),
        ("m", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("rounded", ctypes.c_void_p),
    )


@functools.cache
def machine_level() -> str:
    """The best of `LEVELS` that this machine can run; ATEN_CPU_CAPABILITY lowers it, as it lowers torch's own."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "any"
    capability = torch.backends.cpu.get_cpu_capability()
    if capability.startswith("AVX512"):
        has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)()
        return "avx512_bf16" if has_bf16 else "avx512"
    return "avx2" if capability == "AVX2" else "any"


def cache_folder() -> Path:
    """Where compiled kernels are kept: `heirloom` in XDG_CACHE_HOME, by default ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "heirloom"


@functools.cache
def _build(level: str) -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    try:
        text = SOURCE.read_bytes()
    except OSError:
        return None, f"{SOURCE.name} is not beside {Path(__file__).name}; install heirloom to have it"
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    mark = hashlib.sha256(text + repr((OPTIONS, LEVELS[level], compiler, sys.platform)).encode()).hexdigest()[
        :16
    ]
    name = f"lstmp-{level}-{mark}"
    for kept in cache_folder().glob(f"{name}-*.so"):
        if kept.stem.endswith(
            f"-{kept.stat().st_size}"
        ):  # whole: loading a part of a library ends the process
            try:
                return _load(kept), ""
            except OSError:
                pass  # of another machine
    if compiler is None:
        return None, "no C compiler was found; install one (cc, gcc or clang) or name it in CC"
    folder = None
    try:
        folder, lasting = _new_folder()
        made = folder / f"{name}.so"
        if reason := _compile(compiler, level, made):
            return None, reason
        if lasting:  # moved at once, so that no other process sees a part of it
            made = made.replace(folder.parent / f"{name}-{made.stat().st_size}.so")
        return _load(made), ""
    except OSError as error:
        return None, f"the compiled kernel cannot be kept or loaded: {error}"
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> tuple[Path, bool]:
    """A folder to compile in, and whether it lies in the cache; one that cannot be written is for this process alone."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="build-", dir=cache_folder())), True
    except OSError:
        return Path(tempfile.mkdtemp(prefix="heirloom-")), False


def _compile(compiler: str, level: str, made: Path) -> str:
    """Compile with OpenMP, else without; why not, or nothing."""
    for threads in (("-fopenmp",), ()):
        command = [*compiler.split(), *OPTIONS, *threads, *LEVELS[level], str(SOURCE), "-o", str(made), "-lm"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"the C compiler cannot be run: {error}"
        if found.returncode == 0:
            return ""
    words = (found.stderr.strip().splitlines() or ["no message"])[0]
    return f"{compiler} cannot compile {SOURCE.name}: {words}"


def _load(file: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(file))
    pointer, long, real, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int
    library.lstmp_run.argtypes = (ctypes.POINTER(Run), number, number)
    library.lstmp_cells.argtypes = (*[pointer] * 4, long, long, real, number)
    library.lstmp_cells_back.argtypes = (*[pointer] * 7, long, long, real, number)
    for function in (library.lstmp_run, library.lstmp_cells, library.lstmp_cells_back):
        function.restype = None
    return library


def library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled kernel, built on first use, or None and why."""
    with _lock:
        return _build(machine_level())


def fits(cells: int, size: int) -> bool:
    """Whether the kernel can do these sizes."""
    return cells % GROUP == 0 and size % GROUP == 0


def in_gate_blocks(weight: Tensor, pairs: bool = False) -> Tensor:
    """Recurrent weights (4 D, P) as the kernel reads them: (D / 16, P, 4, 16), or with pairs (D / 16, P / 2, 4, 16, 2)."""
    cells, size = weight.shape[0] // 4, weight.shape[1]
    blocks = weight.view(4, cells // GROUP, GROUP, size)
    if not pairs:
        return blocks.permute(1, 3, 0, 2).contiguous()
    return blocks.bfloat16().unflatten(3, (size // 2, 2)).permute(1, 3, 0, 2, 4).contiguous()


def in_blocks(weight: Tensor, pairs: bool = False) -> Tensor:
    """Projection (P, D) as the kernel reads it, P filled up to whole blocks: (P / 64, D, 64), or (P / 64, D / 2, 64, 2)."""
    size, cells = weight.shape
    blocks = F.pad(weight, (0, 0, 0, -size % BLOCK)).view(-1, BLOCK, cells)
    if not pairs:
        return blocks.transpose(1, 2).contiguous()
    return blocks.bfloat16().unflatten(2, (cells // 2, 2)).transpose(1, 2).contiguous()


_gates = {pairs: WeightCache(functools.partial(in_gate_blocks, pairs=pairs)) for pairs in (False, True)}
_projections = {pairs: WeightCache(functools.partial(in_blocks, pairs=pairs)) for pairs in (False, True)}


def run_steps(
    products: InputProducts,
    batch_sizes: list[int],
    weight_hh: Tensor,
    weight_proj: Tensor | None,
    state: tuple[Tensor, Tensor],
    cell_clip: float | None,
    proj_clip: float | None,
    half: bool = False,
) -> tuple[Tensor, Tensor]:
    """All steps of a packed batch by the kernel, without gradients.

    Args:
        products: input products with bias of the positions, float32, or bfloat16 if `half`.
        batch_sizes: as in `lstmp`.
        weight_hh: (4 D, P), float32.
        weight_proj: (P, D), float32, or None.
        state: h (R, P) and c (R, D) before step 0, float32; they are not changed.
        cell_clip: as in `lstmp`.
        proj_clip: as in `lstmp`.
        half: whether products are of bfloat16.

    Returns:
        Outputs (N, P) and each row's last c (R, D), float32.
    """
    dtype, positions = torch.bfloat16 if half else torch.float32, sum(batch_sizes)
    h, c = state[0].to(dtype).contiguous(), state[1].clone(memory_format=torch.contiguous_format)
    size, (rows, cells) = weight_hh.shape[1], c.shape
    outputs = c.new_empty(positions, size)
    rounded = torch.empty_like(outputs, dtype=dtype) if half else outputs  # what the next step reads
    m, sizes = torch.empty(rows, cells, dtype=dtype), (ctypes.c_int64 * len(batch_sizes))(*batch_sizes)
    recurrent = _gates[half](weight_hh)
    projection = None if weight_proj is None else _projections[half](weight_proj)
    run = Run(
        cells=cells,
        size=size,
        recurrent=recurrent.data_ptr(),
        projection=None if projection is None else projection.data_ptr(),
        cell_clip=cell_clip or 0,
        proj_clip=(proj_clip or 0) if projection is not None else 0,
        h=h.data_ptr() if h.any() else None,
        c=c.data_ptr(),
        m=m.data_ptr(),
    )
    compiled, threads, step = library()[0], torch.get_num_threads(), 0
    for start, piece in products.pieces(batch_sizes):
        stop = start + sum(piece)
        blocks, index = products.blocks(start, stop)  # which must live until the kernel has read them
        addresses = _addresses(blocks, index, stop - start)
        run.inputs, run.steps = addresses.data_ptr(), len(piece)
        run.batch_sizes = ctypes.addressof(sizes) + step * ctypes.sizeof(ctypes.c_int64)
        run.outputs, run.rounded = outputs[start:].data_ptr(), rounded[start:].data_ptr() if half else None
        compiled.lstmp_run(run, half, threads)
        run.h = rounded[stop - piece[-1] :].data_ptr()
        step += len(piece)
    return (rounded.float() if half and projection is None else outputs), c


def _addresses(blocks: list[Tensor], index: Tensor | None, positions: int) -> Tensor:
    """(N,): where the product of each position lies in memory; blocks are contiguous."""
    first, rows, width = blocks[0].data_ptr(), len(blocks[0]), blocks[0].shape[1] * blocks[0].itemsize
    if len(blocks) == 1:  # the usual case
        if index is None:
            return torch.arange(first, first + positions * width, width)
        return index * width + first
    index = torch.arange(positions) if index is None else index
    starts = torch.tensor([block.data_ptr() for block in blocks])
    return starts[index // rows] + index % rows * width


def cells_forward(gate: Tensor, before: Tensor, c: Tensor, cell_clip: float | None) -> Tensor:
    """A training step's cells, float32: gate (n, 4 D) becomes its activations, c (n, D) is written.

    Args:
        gate: (n, 4 D), sums before their activations.
        before: (n, D), c before the step.
        c: (n, D), to write to.
        cell_clip: as in `lstmp`.

    Returns:
        o tanh(c) (n, D).
    """
    m = torch.empty_like(c)
    pointers = [one.data_ptr() for one in (gate, before, c, m)]
    library()[0].lstmp_cells(*pointers, *c.shape, cell_clip or 0, torch.get_num_threads())
    return m


def cells_back(
    gate: Tensor,
    before: Tensor,
    c: Tensor,
    dm: Tensor,
    dc: Tensor,
    d_gate: Tensor,
    m: Tensor,
    cell_clip: float | None,
) -> None:
    """The derivative of `cells_forward`: writes d_gate (n, 4 D) and o tanh(c) to m (n, D), and dc becomes that before.

    Args:
        gate: (n, 4 D), the activations.
        before: (n, D).
        c: (n, D).
        dm: (n, D), gradient at o tanh(c).
        dc: (n, D), gradient at c from later steps.
        d_gate: (n, 4 D), to write to.
        m: (n, D), to write to.
        cell_clip: as in `lstmp`.
    """
    pointers = [one.data_ptr() for one in (gate, before, c, dm, dc, d_gate, m)]
    library()[0].lstmp_cells_back(*pointers, *c.shape, cell_clip or 0, torch.get_num_threads())


__all__ = ["cells_back", "cells_forward", "fits", "library", "machine_level", "run_steps"]
