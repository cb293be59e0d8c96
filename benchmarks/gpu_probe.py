"""What a GPU makes of ELMo's LSTMs: the machine's limits, then each way from launch-bound to a CUDA graph. Minutes in all.

    python benchmarks/gpu_probe.py [--batches B ...] [--seconds S] [--json OUT] [--device cpu --tiny]

Runs from a checkout; heirloom need not be installed. The work is the original biLM's two stacks of two layers over 27
positions (a sentence of 25 words with its marks) of random vectors. Random weights, seed 0; the clips are small enough
that about 1 % of the cells meet theirs. Times are medians by CUDA events. Every way is compared with the step-by-step loop
of the same run, which does what AllenNLP does for each step, operation for operation. "products" are the times of a run's
matrix products alone, each shape in a graph of its own: what no way with separate products can beat. Training is forward
and backward with all weights' gradients, for the largest batch, and for 128 rows of 20 positions as bilm-tf trains; aim: the
way "cuda" at least 6 times as fast as step by step. An experiment that fails says why, and the next one goes on. Without a
GPU, `--device cpu --tiny` only shows that the script works.

Letters: B rows, T positions, P outputs and inputs, D cells.
"""

import argparse
import importlib
import itertools
import json
import statistics
import sys
import time
import types
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

package = types.ModuleType("probed")  # the files as they lie beside weights: no other room is needed
package.__path__ = [str(Path(__file__).resolve().parents[1] / "modeling")]
sys.modules["probed"] = package
lstmp = importlib.import_module("probed.lstmp").lstmp
lstmp_path = importlib.import_module("probed.lstmp_paths").lstmp_path
cuda_files = [importlib.import_module(f"probed.lstmp_cuda{end}") for end in ("", "_training")]
run_pieces, in_streams = cuda_files[0].run_pieces, cuda_files[0].in_streams
LstmpCudaFunction = cuda_files[1].LstmpCudaFunction

SIZES = {False: (27, 512, 4096), True: (5, 24, 96)}  # tiny or not: T, P, D
RECIPE = {False: (128, 20), True: (6, 4)}  # B, T
WORKING_SETS = 5, 10, 20, 40, 80, 160, 1024  # MiB
LAYERS, CALLS, CLIP = 2, 20, 1.5  # of a direction; of a product in a graph; of cells and outputs
PRECISIONS = "fp32", "tf32", "bf16"


class Probe:
    """The machine, the weights, and the records so far."""

    def __init__(self, options: argparse.Namespace):
        self.device, self.seconds, self.cuda = options.device, options.seconds, options.device == "cuda"
        self.steps, self.size, self.cells = SIZES[options.tiny]
        self.records, self.products = [], {}
        wide, narrow = 1.5 / self.size**0.5, 1.5 / self.cells**0.5
        shapes = [(4 * self.cells, self.size), (4 * self.cells, self.size), (4 * self.cells,)]
        shapes, scales = [*shapes, (self.size, self.cells)], (wide, wide, 0.5, narrow)
        layer = lambda: [self.random(*a) * b for a, b in zip(shapes, scales, strict=True)]  # noqa: E731
        self.weights = [[layer() for _ in range(LAYERS)] for _ in range(2)]  # of each direction and layer

    def random(self, *shape: int) -> Tensor:
        """Normal numbers."""
        return torch.randn(*shape, device=self.device)

    def milliseconds(self, work) -> float:
        """The median of calls, after one that is not timed."""
        work()
        samples, end = [], time.perf_counter() + self.seconds
        while len(samples) < 3 or (time.perf_counter() < end and len(samples) < 200):
            begun = time.perf_counter()
            if self.cuda:
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                work()
                stop.record()
                stop.synchronize()
            else:
                work()
            samples.append(start.elapsed_time(stop) if self.cuda else (time.perf_counter() - begun) * 1e3)
        return statistics.median(samples)

    def in_graph(self, work, calls: int = CALLS) -> float:
        """Milliseconds of one call among many in a graph."""
        work()
        replay = lambda: [work() for _ in range(calls)]  # noqa: E731
        if self.cuda:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                replay()
            replay = graph.replay
        return self.milliseconds(replay) / calls

    def say(self, experiment: int, name: str, ms: float | None, note: str = "") -> None:
        """Print and keep one line; ms None where it failed."""
        self.records.append({"experiment": experiment, "name": name, "ms": ms, "note": note})
        print(f"{experiment}  {name:<40} {'-' if ms is None else f'{ms:.4f}':>10} ms  {note}", flush=True)

    def stacks(self, layer, inputs: list[Tensor], rows: int, precision: str, beside=False) -> Tensor:
        """Both directions (2, T B, P): `layer` gets inputs (T B, P), rows, precision and a layer's weights."""

        def stack(hidden: Tensor, layers: list[list[Tensor]]) -> Tensor:
            for weights in layers:
                hidden = layer(hidden, rows, precision, *weights)
            return hidden

        calls = list(zip(inputs, self.weights, strict=True))
        return torch.stack(in_streams(stack, calls) if beside else list(itertools.starmap(stack, calls)))


def tf32(precision: str) -> None:
    """Whether products of float32 may be of TF32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def step_by_step(inputs: Tensor, rows: int, _, w_ih: Tensor, w_hh: Tensor, bias, w_p: Tensor) -> Tensor:
    """As AllenNLP's LstmCellWithProjection: the input product and copies of the states in each step."""
    x, cells = inputs.view(-1, rows, inputs.shape[1]), w_hh.shape[0] // 4
    h, c = inputs.new_zeros(rows, w_hh.shape[1]), inputs.new_zeros(rows, cells)
    outputs = torch.zeros_like(x)
    for step in range(len(x)):
        gates_x, gates_h = F.linear(x[step], w_ih), F.linear(h[:rows].clone(), w_hh, bias)
        parts = (slice(k * cells, (k + 1) * cells) for k in range(4))
        i, f, g, o = (gates_x[:, part] + gates_h[:, part] for part in parts)
        new_c = (i.sigmoid() * g.tanh() + f.sigmoid() * c[:rows].clone()).clamp(-CLIP, CLIP)
        new_h = F.linear(o.sigmoid() * new_c.tanh(), w_p).clamp(-CLIP, CLIP)
        h, c = h.detach().clone(), c.detach().clone()
        h[:rows], c[:rows] = new_h, new_c
        outputs[step, :rows] = new_h
    return outputs.flatten(0, 1)


def loop(inputs: Tensor, rows: int, precision: str, *weights: Tensor) -> Tensor:
    """`lstmp` by its way "loop"."""
    half = "bf16" if precision == "bf16" else "fp32"
    with lstmp_path("loop"):
        return lstmp(inputs, [rows] * (len(inputs) // rows), *weights, None, CLIP, CLIP, precision=half)[0]


def graph(inputs: Tensor, rows: int, precision: str, *weights: Tensor) -> Tensor:
    """The way "cuda", on any device."""
    zeros = inputs.new_zeros(rows, weights[1].shape[1]), inputs.new_zeros(rows, len(weights[1]) // 4)
    options = [rows] * (len(inputs) // rows), None, CLIP, CLIP, precision == "bf16"
    return run_pieces(inputs, *zeros, *weights, *options)[0]


def graph_with_gradients(inputs: Tensor, rows: int, _, *weights: Tensor) -> Tensor:
    """The way "cuda" in training, on any device."""
    zeros = inputs.new_zeros(rows, weights[1].shape[1]), inputs.new_zeros(rows, len(weights[1]) // 4)
    sizes = [rows] * (len(inputs) // rows)
    return LstmpCudaFunction.apply(inputs, *zeros, *weights, sizes, None, (CLIP, CLIP))[0]


def machine(probe: Probe, batches: list[int]) -> None:
    """Experiment 0: reads by working set, the gap between a graph's kernels, products."""
    for mib in WORKING_SETS[:2] if probe.size < 100 else WORKING_SETS:
        data = torch.ones(mib * 2**18, device=probe.device)
        ms = probe.in_graph(data.sum)
        probe.say(0, f"read {mib} MiB", ms, f"{mib * 2**20 / ms / 1e9:.2f} TB/s")
    small = torch.ones(64, device=probe.device)
    probe.say(0, "one tiny kernel in a graph", probe.in_graph(lambda: small.add_(1)))
    for precision, rows in itertools.product(PRECISIONS, batches):
        tf32(precision)
        total = 0.0
        for weight, count in zip(probe.weights[0][0], (probe.steps, 1, None, 1), strict=True):
            if count:  # W_ih multiplies all steps at once; W_hh and W_p each for itself
                weight = weight.to(torch.bfloat16 if precision == "bf16" else torch.float32)
                x = probe.random(rows * count, weight.shape[1]).to(weight.dtype)
                ms = probe.in_graph(lambda x=x, weight=weight: F.linear(x, weight))
                total += ms * probe.steps / count
                speed = f"{2e-9 * len(x) * weight.numel() / ms:.2f} TFLOP/s"
                probe.say(0, f"{precision} ({len(x)}, {x.shape[1]}) -> {len(weight)}", ms, speed)
        probe.products[rows, precision] = 2 * LAYERS * total


@torch.no_grad()
def inference(probe: Probe, batches: list[int]) -> None:
    """Experiments 1 to 4 for each number of rows: first the yardstick."""
    for rows in batches:
        tf32("fp32")
        inputs = [probe.random(probe.steps * rows, probe.size) for _ in range(2)]
        c = lstmp(inputs[0], [rows] * probe.steps, *probe.weights[0][0], None, CLIP, CLIP)[1][1]
        expected = probe.stacks(step_by_step, inputs, rows, "fp32")
        base = probe.milliseconds(lambda: probe.stacks(step_by_step, inputs, rows, "fp32"))  # noqa: B023
        clipped = (c.abs() >= CLIP).float().mean()
        probe.say(1, f"B {rows} step by step fp32", base, f"{clipped:.1%} of last cells clipped")
        ways = [(1, "nn.LSTM(proj)", None, False), (2, "loop", loop, False), (3, "cuda", graph, False)]
        ways += [(4, "cuda, two streams", graph, True)] if probe.cuda else []
        for (number, name, layer, beside), precision in itertools.product(ways, PRECISIONS):
            tf32(precision)
            ms, note = None, "other values: no clips"
            try:
                if layer is None:
                    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
                    options = {"proj_size": probe.size, "device": probe.device, "dtype": dtype}
                    net = nn.LSTM(probe.size, probe.cells, LAYERS, **options)
                    given = [x.view(probe.steps, rows, -1).to(dtype) for x in inputs]
                    work = lambda: [net(x) for x in given]  # noqa: B023, E731
                else:
                    work = lambda: probe.stacks(layer, inputs, rows, precision, beside)  # noqa: B023, E731
                    found = work()
                    error = (found - expected).norm() / expected.norm()
                    worst = F.cosine_similarity(found, expected, dim=2).min()
                    note = f"rel. RMS {error:.1e}, worst cosine {worst:.5f}"
                ms = probe.milliseconds(work)
                note = f"x{base / ms:.2f}, products {probe.products[rows, precision]:.4f} ms, {note}"
            except Exception as failure:  # the next way may still work
                note = f"failed: {failure!r:.300}"
            probe.say(number, f"B {rows} {name} {precision}", ms, note)


def training(probe: Probe, batches: list[int]) -> None:
    """Experiments 6 and 7: the largest batch, and the recipe's."""
    shapes = (max(batches), probe.steps), RECIPE[probe.size < 100]
    flat = [one.requires_grad_() for layers in probe.weights for layer in layers for one in layer]
    ways = [
        ("step by step", step_by_step, False),
        ("loop", loop, False),
        ("cuda", graph_with_gradients, False),
    ]
    ways += [("cuda, two streams", graph_with_gradients, True)] if probe.cuda else []
    for number, (rows, steps) in enumerate(shapes, 6):
        inputs, expected, bases = [probe.random(steps * rows, probe.size) for _ in range(2)], None, {}
        for (name, layer, beside), precision in itertools.product(ways, PRECISIONS[:2]):
            tf32(precision)
            loss = lambda: probe.stacks(layer, inputs, rows, precision, beside).square().mean()  # noqa: B023, E731
            work = lambda: torch.autograd.grad(loss(), flat)  # noqa: B023, E731
            ms = None
            try:
                found = work()
                expected = expected or found
                error = max((a - b).norm() / b.norm() for a, b in zip(found, expected, strict=True))
                ms = probe.milliseconds(work)
                bases.setdefault(precision, ms)
                ratios = ", ".join(f"x{base / ms:.2f} of {kind}" for kind, base in bases.items())
                note = f"{rows * steps / ms:.0f} k positions/s, {ratios}, gradients {error:.1e}"
            except Exception as failure:  # the next way may still work
                note = f"failed: {failure!r:.300}"
            probe.say(number, f"B {rows} T {steps} training {name} {precision}", ms, note)


def main() -> None:
    """Run all experiments that work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each median")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; `--device cpu --tiny` shows that the script works.")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    heading = f"{name}, torch {torch.__version__}, seed 0, {date.today()}"
    print(heading, flush=True)
    probe, start = Probe(options), time.perf_counter()
    for experiment in (machine, inference, training):
        try:
            experiment(probe, options.batches)
        except Exception as failure:
            probe.say(-1, experiment.__name__, None, f"failed: {failure!r:.500}")
    print(f"{time.perf_counter() - start:.0f} s")
    if options.json:
        numbers = {"machine": heading, "rows": probe.records}
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
