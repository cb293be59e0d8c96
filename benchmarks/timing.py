"""Times of several systems that do the same work in turn, on a machine that others use too, and what that machine can do.

Each repeat runs all systems one after the other (A B C A B C), so that a slow minute hurts all alike. With one thread a
sample is the process's CPU time. With more it is wall time, and a sample is quiet where other processes used no more than a
tenth of the CPUs meanwhile; only quiet samples count if there are at least three.
"""

import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from heirloom.modeling.packed_linear import multiplier, why_not_packed

STAT = Path("/proc/stat")
ENOUGH = 3  # quiet samples
SHARE = 0.1  # of the CPUs, that others may use
SECONDS = 0.3  # for each ceiling
PRODUCT = 512, 2048, 4096  # rows, inputs, outputs of the product that shows the peak


@dataclass
class Sample:
    """One run: seconds by the clock that counts, and whether nobody else was busy."""

    seconds: float
    quiet: bool


def clock(threads: int) -> Callable[[], float]:
    """The clock that counts with so many threads."""
    return time.process_time if threads == 1 else time.perf_counter


def busy_seconds() -> float | None:
    """CPU seconds that all processes of the machine (and, if it is virtual, of its neighbours) have used; None if unknown."""
    if not STAT.is_file():
        return None
    user, nice, system, _, _, irq, softirq, steal = map(int, STAT.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def take(work: Callable[[], object], threads: int) -> Sample:
    """Time one call."""
    busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    work()
    wall, own = time.perf_counter() - start, time.process_time() - own
    if busy is None:
        return Sample(own if threads == 1 else wall, True)
    others = busy_seconds() - busy - own
    slack = 2 / os.sysconf("SC_CLK_TCK")  # the counters' steps
    return Sample(own if threads == 1 else wall, others <= SHARE * wall * os.cpu_count() + slack)


def in_turn(
    systems: dict[str, Callable[[int], object]], repeats: int, threads: int
) -> dict[str, list[Sample]]:
    """Samples of every system; each is called with the number of the repeat."""
    samples = {name: [] for name in systems}
    for repeat in range(repeats):
        for name, work in systems.items():
            samples[name].append(take(lambda work=work, repeat=repeat: work(repeat), threads))
    return samples


def summary(samples: list[Sample], threads: int, parts: int = 1) -> dict:
    """Median and minimum of samples of `parts` equal parts each, and how many samples there are."""
    quiet = [one.seconds for one in samples if one.quiet]
    used = quiet if threads > 1 and len(quiet) >= ENOUGH else [one.seconds for one in samples]
    return {
        "median": statistics.median(used) / parts,
        "min": min(used) / parts,
        "samples": len(samples),
        "quiet": len(quiet),
        "used": len(used),
        "clock": "CPU" if threads == 1 else "wall",
    }


def fastest(work: Callable[[], object], threads: int) -> float:
    """Seconds of the fastest of as many calls as fit into `SECONDS`, at least two after one to warm up."""
    now, times = clock(threads), []
    work()
    while len(times) < 2 or sum(times) < SECONDS:
        start = now()
        work()
        times.append(now() - start)
    return min(times)


@torch.no_grad()
def product_peak(dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of a large matrix product."""
    rows, inputs, outputs = PRODUCT
    x, weight = torch.rand(rows, inputs).to(dtype), torch.nn.Parameter(torch.rand(outputs, inputs))
    packed = not why_not_packed()
    multiply = multiplier(weight, packed, half=dtype == torch.bfloat16)
    return 2 * rows * inputs * outputs / fastest(lambda: multiply(x), threads)


def read_bandwidth(size: int, threads: int) -> float:
    """Bytes/s of reading so many bytes over and over, by the best of three operations that do little else."""
    numbers = torch.ones(max(1, size // 4096), 1024)  # float32
    flat, vector = numbers.flatten(), torch.ones(1024)
    calls = max(1, 2**22 // numbers.nbytes)  # small sets are read several times a sample
    works = numbers.sum, lambda: flat.dot(flat), lambda: numbers.mv(vector)
    seconds = [fastest(lambda work=work: [work() for _ in range(calls)], threads) for work in works]
    return calls * numbers.nbytes / min(seconds)


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def apart(work: Callable[..., dict], *arguments) -> dict:
    """The result of `work` in a process of its own, which is forked; `not_run` says why there is none."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return {"not_run": "this system cannot fork"}
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, *arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        process.join()
        result = {"not_run": f"the process ended with {process.exitcode} (memory ran out?)"}
    process.join()
    return result


def _send(connection, work: Callable[..., dict], *arguments) -> None:
    connection.send(work(*arguments))
