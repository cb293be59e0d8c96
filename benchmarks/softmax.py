"""Speed and memory of training an LSTM language model with each way to the loss of its softmax, side by side.

    python benchmarks/softmax.py [--vocabularies V ...] [--positions B T] [--size P] [--device cuda] [--json OUT]

The ways: full is `F.cross_entropy(F.linear(...))`, the yardstick; chunked is heirloom's softmax="full"; sampled and adaptive
are heirloom's too. One layer, embeddings, cells and outputs of one size P, no dropout, float32. Tokens are drawn from the
log-uniform distribution, the same ones for every way; a new batch each time.

Step: forward, backward, gradient clipping, Adagrad. Since Adagrad and the embedding's dense gradient walk over all weights,
which hides the loss in a large vocabulary, the loss alone is timed too: its forward and backward, with the gradients of the
softmax's weights and of the vectors that come in. Times are the fastest of as many calls as fit into `--seconds`.

Memory: the extra bytes at the peak, above all weights, gradients and Adagrad sums, which are made and written to before
the measurement. That base is not there for nothing: a step throws its gradients away before it makes new ones, and the
loss alone starts without the softmax's, so 0 means that a way fits into the memory which training needs anyhow. On a
GPU it is PyTorch's count of allocated bytes; on a CPU the peak of the process's resident memory (`ru_maxrss`). That never
falls, so first memory is taken up a megabyte at a time until the peak moves, and from there on every byte shows. Only the
first call counts, while the C library (glibc) must give freed tensors back at once: later peaks depend on the holes in its
heap. Adagrad has buffers as large as a table of weights, which hides small losses in the step's memory; see the loss alone.

Each cell has two processes of its own, one that begins with steps and one that begins with the loss alone. Memory comes from
what was first, times are the better of both. All cells run once before any runs for the second time, so that a busy hour
hurts all alike. A cell that would not fit into free memory, or that a layer refuses, says so in the table.

Letters: B rows, T positions of a row, N = B T, P features, V words, S samples.
"""

import argparse
import ctypes
import json
import math
import multiprocessing
import resource
import sys
import time
import traceback
from datetime import date
from pathlib import Path

import psutil
import torch
from tokenizer_speed import processor
from torch import Tensor, nn
from torch.nn import functional as F

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.modeling.vocabulary_softmax import CUTOFFS, target_loss

WAYS = ("full", "chunked", "sampled", "adaptive")
PHASES = ("step", "loss")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
COLUMNS = {  # of the table: the name in a record, its unit, and how it is printed
    "tokens/s": ("tokens_per_second", 1, ",.0f"),
    "loss alone, ms": ("loss_seconds", 1e-3, ",.1f"),
    "extra memory of a step, MB": ("step_extra", 1e6, ",.0f"),
    "extra memory of the loss alone, MB": ("loss_extra", 1e6, ",.0f"),
}


class NotRunError(Exception):
    """Why a cell has no numbers."""


def configuration(options: argparse.Namespace, classes: int, way: str) -> LstmLMConfig:
    """The model of a cell."""
    if way == "sampled" and options.samples >= classes:
        raise NotRunError(f"{options.samples:,} samples of {classes:,} words")
    small = way == "adaptive" and classes <= CUTOFFS[0]
    return LstmLMConfig(
        vocab_size=classes,
        embedding_size=options.size,
        cell_size=options.size,
        dropout=0.0,
        softmax=way if way in ("sampled", "adaptive") else "full",
        num_sampled=options.samples,
        adaptive_cutoffs=[classes // 5] if small else None,
    )


def check_memory(options: argparse.Namespace, config: LstmLMConfig, way: str) -> None:
    """Refuse a cell whose weights and largest buffers, by a rough estimate, are more than what is free."""
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in LstmLMForCausalLM(config).parameters())
    classes, positions = config.vocab_size, math.prod(options.positions)
    table, cuda = classes * options.size, options.device == "cuda"
    loss = {
        "full": 3 * positions * classes,
        "chunked": 2**24 + table,
        "sampled": 4 * positions * options.samples + table,
        "adaptive": 0.3 * positions * classes,  # one target in ten lies in the largest cluster
    }
    needed = 4 * (3 * weights + max(loss[way], 2 * weights if cuda else table))
    free = torch.cuda.mem_get_info()[0] if cuda else psutil.virtual_memory().available
    if needed > free:
        raise NotRunError(f"needs ~{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def log_uniform(classes: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Word ids with P(k) = ln((k + 2) / (k + 1)) / ln(V + 1), in the order of falling frequency."""
    uniform = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (uniform * math.log(classes + 1)).exp().long().sub(1).clamp(max=classes - 1)


def loss_of(way: str, softmax: nn.Module, hidden: Tensor, targets: Tensor, samples: int = 0) -> Tensor:
    """() mean loss of vectors (N, P) by one of the ways."""
    if way == "full":
        return F.cross_entropy(F.linear(hidden, softmax.weight, softmax.bias), targets)
    return target_loss(softmax, hidden, targets, samples if way == "sampled" else 0) / len(targets)


def peak_memory(device: str) -> int:
    """The most bytes that the process has held so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back(at_once: bool) -> None:
    """Let the C library hand tensors that are freed back to the system at once, or keep them as it usually does."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**16 if at_once else 2**25)  # 32 MB is what it comes to by itself
        mallopt(M_TRIM_THRESHOLD, 2**16 if at_once else 2**26)


def raise_to_peak(device: str) -> list[Tensor]:
    """Make what is held now the peak; what it takes to get there is returned and must be kept."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return []
    ballast, peak = [], peak_memory(device)
    while peak_memory(device) == peak:
        ballast.append(torch.ones(2**18))
    return ballast


class Cell:
    """The model of one cell with its optimizer, and the two things that are timed."""

    def __init__(self, options: argparse.Namespace, config: LstmLMConfig, way: str):
        torch.manual_seed(options.seed)
        self.options, self.way = options, way
        self.model = LstmLMForCausalLM(config).to(options.device).train()
        self.parameters, self.softmax = list(self.model.parameters()), self.model.lm_head
        self.optimizer = torch.optim.Adagrad(self.parameters, lr=0.2, initial_accumulator_value=1.0)
        for parameter in self.parameters:
            parameter.grad = torch.ones_like(parameter)

    def batch(self, call: int) -> tuple[Tensor, Tensor]:
        """(B, T) ids and the ids after them, the same for every way."""
        rows, steps = self.options.positions
        ids = log_uniform(self.model.config.vocab_size, (rows, steps + 1), self.options.seed + call)
        ids = ids.to(self.options.device)
        return ids[:, :-1], ids[:, 1:].contiguous()

    def step(self, ids: Tensor, targets: Tensor) -> Tensor:
        """One step of training."""
        self.optimizer.zero_grad()
        if self.way == "full":
            hidden = self.model.model(ids).last_hidden_state.flatten(0, 1)
            loss = loss_of("full", self.softmax, hidden, targets.flatten())
        else:
            loss = self.model(ids, shift_labels=targets).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 10.0)
        self.optimizer.step()
        return loss.detach()

    def vectors(self, call: int) -> tuple[Tensor, Tensor]:
        """(N, P) vectors that want gradients, and (N,) targets; the softmax has no gradients any more."""
        ids, targets = self.batch(call)
        self.softmax.zero_grad()
        with torch.no_grad():
            hidden = self.model.model(ids).last_hidden_state.flatten(0, 1)
        return hidden.requires_grad_(), targets.flatten()

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Forward and backward of the loss alone."""
        loss = loss_of(self.way, self.softmax, hidden, targets, self.options.samples)
        loss.backward()
        return loss.detach()

    def time(self, phase: str, seconds: float) -> tuple[list[float], float]:
        """Seconds of each call, at least one and as many as fit into the time, and the loss that the first returned."""
        prepare, call = {"step": (self.batch, self.step), "loss": (self.vectors, self.loss)}[phase]
        synchronize = torch.cuda.synchronize if self.options.device == "cuda" else lambda: None
        times, first = [], None
        while not times or sum(times) < seconds:
            inputs = prepare(len(times))
            synchronize()
            start = time.perf_counter()
            loss = call(*inputs)
            synchronize()
            times.append(time.perf_counter() - start)
            first = loss.item() if first is None else first
        return times, first


def warm_up(options: argparse.Namespace, way: str) -> None:
    """Run a cell with few words, so that the libraries' code and buffers are there from now on."""
    small = argparse.Namespace(**vars(options) | {"samples": 5})
    cell = Cell(small, configuration(small, 50, way), way)
    for phase in PHASES:
        cell.time(phase, 0)


def measure(options: argparse.Namespace, classes: int, way: str, phases: tuple[str, ...]) -> dict:
    """Both phases of a cell in this order, and the extra memory of the first."""
    if options.threads:
        torch.set_num_threads(options.threads)
    config = configuration(options, classes, way)
    check_memory(options, config, way)
    give_back(at_once=True)
    warm_up(options, way)
    cell, cuda = Cell(options, config, way), options.device == "cuda"
    ballast = raise_to_peak(options.device)
    base = torch.cuda.memory_allocated() if cuda else peak_memory(options.device)
    times, loss = cell.time(phases[0], 0)
    result = {f"{phases[0]}_extra": peak_memory(options.device) - base, "loss_of_step_0": loss}
    ballast.clear()
    give_back(at_once=False)
    for phase in phases:
        if not times or sum(times) < options.seconds:
            times += cell.time(phase, options.seconds - sum(times))[0]
        result |= {f"{phase}_seconds": min(times), f"{phase}_calls": len(times)}
        times = []
    return result | {
        "state": 3 * sum(parameter.nbytes for parameter in cell.parameters),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def send_measure(connection, *arguments) -> None:
    """`measure` in a process of its own: sends the record, or one that says why there is none."""
    try:
        result = measure(*arguments)
    except NotRunError as reason:
        result = {"not_run": str(reason)}
    except (
        Exception
    ) as error:  # one cell's trouble, such as memory that ran out, is no reason to lose the others
        traceback.print_exc()
        result = {
            "not_run": f"{type(error).__name__}: " + " ".join(str(error).split())[:160].replace("|", "/")
        }
    connection.send(result)


def run_apart(options: argparse.Namespace, *arguments) -> dict:
    """The record of `measure` from a new process."""
    # Forking saves importing torch 24 times; CUDA does not live through it.
    fork = options.device == "cpu" and "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_measure, args=(sender, options, *arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        result = {"not_run": f"the process ended with {process.exitcode} (memory ran out?)"}
    process.join()
    return result


def merge(first: dict, second: dict) -> dict:
    """One record of two: the faster times, and of everything else what the first has."""
    for record in (first, second):
        if "not_run" in record:
            return {"not_run": record["not_run"]}
    faster = {f"{phase}_seconds": min(r[f"{phase}_seconds"] for r in (first, second)) for phase in PHASES}
    return second | first | faster


def run_all(options: argparse.Namespace) -> list[dict]:
    """The records of all cells; what is going on goes to standard error."""
    cells, start = [(classes, way) for classes in options.vocabularies for way in WAYS], time.time()
    records = {}
    for phases in (PHASES, PHASES[::-1]):
        for cell in cells:
            result = run_apart(options, *cell, phases)
            said = result.get("not_run") or ", ".join(f"{p} {result[f'{p}_seconds']:.4f} s" for p in phases)
            print(
                f"{time.time() - start:6.0f} s  {cell[0]:>9,}  {cell[1]:<8}  {said}",
                file=sys.stderr,
                flush=True,
            )
            records[cell] = merge(records[cell], result) if cell in records else result
    rows = [{"vocabulary": classes, "way": way} | records[classes, way] for classes, way in cells]
    for row in rows:
        if "not_run" not in row:
            row["tokens_per_second"] = math.prod(options.positions) / row["step_seconds"]
    return rows


def table(rows: list[dict]) -> str:
    """The Markdown table; in parentheses each number divided by that of full."""
    names = ["vocabulary", "loss by", *COLUMNS, "weights, gradients, sums, MB", "loss of step 0"]
    lines = ["| " + " | ".join(names) + " |", "|---" * 2 + "|---:" * (len(names) - 2) + "|"]
    full = {row["vocabulary"]: row for row in rows if row["way"] == "full"}
    for row in rows:
        cells = [f"{row['vocabulary']:,}", row["way"]]
        if "not_run" in row:
            cells += [f"not run: {row['not_run']}"] + [""] * (len(names) - 3)
        else:
            for name, unit, style in COLUMNS.values():
                yardstick = full[row["vocabulary"]].get(name)
                ratio = f"{row[name] / yardstick:.2f}" if yardstick else "–"
                cells.append(f"{row[name] / unit:{style}} ({ratio})")
            cells += [f"{row['state'] / 1e6:,.0f}", f"{row['loss_of_step_0']:.5f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[10_000, 100_000, 800_000])
    parser.add_argument("--positions", type=int, nargs=2, default=[32, 20], metavar=("B", "T"))
    parser.add_argument("--size", type=int, default=256, help="of embeddings, cells and outputs")
    parser.add_argument("--samples", type=int, default=8192, help="of the sampled softmax")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="default: PyTorch's choice")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="each cell, twice for steps and twice for the loss"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    rows = run_all(options)
    done = [row for row in rows if "not_run" not in row]
    facts = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "gpu": done[0]["gpu"] if done else None,
        "threads": done[0]["threads"] if done else options.threads,
        "torch": torch.__version__,
        "seed": options.seed,
        "positions": options.positions,
        "size": options.size,
        "samples": options.samples,
    }
    print(
        f"{facts['date']}, {facts['gpu'] or facts['processor']}, torch {facts['torch']}, threads: {facts['threads']}"
    )
    print("{} x {} positions a step, size {}, ".format(*options.positions, options.size), end="")
    print(f"{options.samples:,} samples, seed {options.seed}; in parentheses: divided by that of full\n")
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
