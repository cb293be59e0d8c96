"""What a biLM is worth for POS tagging: frozen, fine-tuned, and the same model without pre-training.

    python benchmarks/tagging.py runs/elmo_english --train train.jsonl --validation dev.jsonl [--seeds 1 2 3] [--json OUT]

Every run is `heirloom finetune tagging` with the options printed in the table; all three systems share one recipe.
Prints a Markdown table of held-out accuracy: mean and standard deviation over the seeds.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import datasets
import torch
from transformers.utils import logging

from heirloom.training.arguments import FinetuneArguments
from heirloom.training.finetuning import finetune
from heirloom.training.recipes import parse

SYSTEMS = {
    "no pre-training, trained": ["--from_scratch"],
    "biLM, fine-tuned": [],
    "no pre-training, frozen": ["--from_scratch", "--freeze_bilm"],  # a linear head on random features
    "biLM, frozen": ["--freeze_bilm"],
}
EPOCHS = {1.0: "2", 0.1: "10"}  # a tenth of the rows, five times as often


def accuracy(bilm: str, files: list[str], system: str, fraction: float, seed: int) -> float:
    """Held-out accuracy of one run; its checkpoint is thrown away."""
    folder = tempfile.mkdtemp(prefix="tagging-")
    options = [
        "--model",
        bilm,
        *files,
        "--output_dir",
        folder,
        "--train_fraction",
        str(fraction),
        "--seed",
        str(seed),
    ]
    options += ["--num_train_epochs", EPOCHS[fraction], "--eval_strategy", "no", "--disable_tqdm", "true"]
    trainer = finetune(*parse("tagging", [*options, *SYSTEMS[system]], FinetuneArguments))
    shutil.rmtree(folder)
    return next(
        record["eval_accuracy"] for record in reversed(trainer.state.log_history) if "eval_accuracy" in record
    )


def main() -> None:
    """Run all systems on all fractions and seeds, print the table as it grows, and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bilm")
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", required=True)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    files = ["--train_file", arguments.train, "--validation_file", arguments.validation]
    results, start = {}, time.time()
    for fraction in EPOCHS:
        for system in arguments.systems:
            scores = []
            for seed in arguments.seeds:
                scores.append(accuracy(arguments.bilm, files, system, fraction, seed))
                print(
                    f"{time.time() - start:6.0f} s  {fraction:4.0%}  {system:<25} seed {seed}  {scores[-1]:.4f}",
                    flush=True,
                )
            results[f"{system}|{fraction}"] = scores
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=1))
    print(
        f"\n{date.today()}, torch {torch.__version__}, {torch.get_num_threads()} threads, seeds {arguments.seeds}\n"
    )
    print(
        "| | "
        + " | ".join(f"{fraction:.0%} of the rows, {epochs} epochs" for fraction, epochs in EPOCHS.items())
        + " |"
    )
    print("|---" * (1 + len(EPOCHS)) + "|")
    for system in arguments.systems:
        cells = [results[f"{system}|{fraction}"] for fraction in EPOCHS]
        spread = [statistics.stdev(scores) if len(scores) > 1 else 0.0 for scores in cells]
        row = [
            f"{100 * statistics.mean(scores):.2f} ± {100 * s:.2f}"
            for scores, s in zip(cells, spread, strict=True)
        ]
        print(f"| {system} | " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
