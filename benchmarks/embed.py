"""`heirloom embed` from file to file beside the same work with step-by-step LSTMs, and its memory.

    python benchmarks/embed.py TEXT [--sentences N] [--threads N] [--json OUT]

The model is ELMo small (two layers of 1024 cells, 128 outputs a direction) with random weights, seed 0. Both systems read the
same lines through `embed_file`, in the same batches, and write the same HDF5 file; the step-by-step one has the biLM of
tests/reference/elmo_stepwise.py in the model's place. Each runs once, in turn, ours first; files are compared. Memory is the
peak of a process that embeds a part of the text, all of it, and one sentence of 5,000 words with the original size.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import torch
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference.elmo_stepwise import ElmoStepwise

from heirloom import ElmoConfig, ElmoModel, ElmoTokenizer
from heirloom.modeling.lstmp_paths import describe_paths
from heirloom.sharing import embedding

SIZES = {
    "small": {"projection_size": 128, "cell_size": 1024, "num_highway_layers": 1},
    "original": {},
}
CLOSE = 2e-5
LONG = 5000


class Stepwise:
    """What `embed_file` asks of a model, answered step by step."""

    def __init__(self, model: ElmoModel):
        self.model, self.twin = model, ElmoStepwise(model)
        self.config, self.device, self.state_dict = model.config, model.device, model.state_dict

    def __call__(self, char_ids, **_) -> SimpleNamespace:
        """All layers of a batch (B, T, C), without marks."""
        layers = tuple(layer[:, 1:-1] for layer in self.twin(char_ids))
        return SimpleNamespace(hidden_states=layers, last_hidden_state=layers[-1], states=None)


def make(folder: Path, size: str) -> str:
    """A checkpoint with random weights; its folder."""
    torch.manual_seed(0)
    ElmoModel(ElmoConfig(**SIZES[size])).save_pretrained(folder / size)
    ElmoTokenizer().save_pretrained(folder / size)
    return str(folder / size)


def embed_stepwise(checkpoint: str, source: Path, target: Path) -> None:
    """`embed_file` with the step-by-step biLM."""
    load = embedding.load
    try:
        embedding.load = lambda *given: (load(*given)[0], Stepwise(load(*given)[1]), None)
        embedding.embed_file(checkpoint, source, target)
    finally:
        embedding.load = load


def timed(function, *arguments) -> float:
    """Seconds: of the processor with one thread, of the clock with more."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    function(*arguments)
    return clock() - start


def largest_difference(one: Path, other: Path) -> float:
    """Over all vectors of two files with the same sentences."""
    with h5py.File(one) as first, h5py.File(other) as second:
        if first.keys() != second.keys():
            raise SystemExit(f"{one} and {other} hold other sentences.")
        names = [name for name in first if name != "sentence_to_index"]
        return max(float(np.abs(first[name][:] - second[name][:]).max(initial=0)) for name in names)


def peak(checkpoint: str, source: Path, target: Path, threads: int) -> float:
    """Megabytes of a process of its own that embeds the file."""
    command = [
        sys.executable,
        __file__,
        str(source),
        "--alone",
        checkpoint,
        str(target),
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--sentences", type=int, help="only the first so many lines that are not blank")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--long", choices=SIZES, default="original", help="size of the model for one long sentence"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--alone", nargs=2, metavar=("CHECKPOINT", "OUT"), help="embed and print the peak, in MB"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    if options.alone:
        embedding.embed_file(options.alone[0], options.text, Path(options.alone[1]))
        # Not getrusage, whose peak begins with that of the process which started this one.
        status = Path("/proc/self/status").read_text()
        print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
        return
    lines = [line for line in options.text.read_text("utf-8").splitlines() if line.strip()][
        : options.sentences
    ]
    words = sum(len(line.split()) for line in lines)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, whole, quarter, long = (make(folder, "small"), *(folder / f"{n}.txt" for n in "wql"))
        whole.write_text("\n".join(lines) + "\n", "utf-8")
        quarter.write_text("\n".join(lines[: len(lines) // 4]) + "\n", "utf-8")
        long.write_text(" ".join((" ".join(lines)).split()[:LONG]) + "\n", "utf-8")
        ours = timed(embedding.embed_file, checkpoint, whole, folder / "ours.hdf5")
        theirs = timed(embed_stepwise, checkpoint, whole, folder / "theirs.hdf5")
        difference = largest_difference(folder / "ours.hdf5", folder / "theirs.hdf5")
        if difference > CLOSE:
            raise SystemExit(f"the files differ by {difference:.1e}")
        result = {
            "date": str(date.today()),
            "torch": torch.__version__,
            "lstmp": describe_paths(),
            "threads": options.threads,
            "words": words,
            "seconds": ours,
            "stepwise_seconds": theirs,
            "ratio": theirs / ours,
            "largest_difference": difference,
            "peak_quarter_mb": peak(checkpoint, quarter, folder / "a.hdf5", options.threads),
            "peak_whole_mb": peak(checkpoint, whole, folder / "b.hdf5", options.threads),
            "peak_long_mb": peak(make(folder, options.long), long, folder / "c.hdf5", options.threads),
            "long_words": len(long.read_text("utf-8").split()),
        }
    print("\n".join(f"{name:<20} {value}" for name, value in result.items()))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
