"""Three kinds of masks compared: one small BERT each, from scratch, then POS tagging.

    python benchmarks/objectives.py OUT --data ../shared/data [--seeds 1 2 3]
    python benchmarks/objectives.py OUT

A WordPiece tokenizer is trained on masc_speeches, then a BERT is pre-trained with each objective as by `heirloom pretrain
bert-small --objective NAME`, all else equal, and its loss on held-out text is taken under the masks of all three. Then
`heirloom finetune ud_ewt_pos` tags with each of them and with random weights; seeds draw the rows, the head and their order.
Models and results (JSON files) lie in OUT; what is there is not made again. Without data it only prints the tables of OUT.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizer, TrainingArguments
from transformers.utils import logging

from heirloom.training.arguments import FinetuneArguments, PretrainArguments
from heirloom.training.finetuning import finetune
from heirloom.training.objectives import find_objective
from heirloom.training.recipes import parse
from heirloom.training.stock_objectives import encode, pretrain_stock, read_documents
from heirloom.training.stock_pretraining import StockPretrainingTrainer

OBJECTIVES = ("mlm", "wwm", "span")
SCRATCH = "no pre-training"
# BERT-tiny of Turc et al. 2019, with fewer words and shorter rows.
MODEL = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
}
WORDS, ROW = 8_000, 128
SEED = 1  # of pre-training, and of the masks on held-out text
PRETRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 0.001}
# Of the tagged sentences: how many (None for all), and passes over them.
TAGGING = {"all": (None, 1), "500": (500, 20)}


class Bench:
    """Makes what is missing in a folder.

    Args:
        out: folder of models and results.
        data: folder with masc_speeches and ud_ewt_pos.
    """

    def __init__(self, out: Path, data: Path):
        self.out, self.data = out, data
        self.text, self.held_out = (data / "masc_speeches" / f"{split}.txt" for split in ("train", "dev"))

    def tokenizer(self) -> Path:
        """The folder of a tokenizer of the training text."""
        folder = self.out / "tokenizer"
        if not folder.is_dir():
            with self.text.open(encoding="utf-8") as lines:
                empty = BertTokenizer(do_lower_case=False)
                empty.train_new_from_iterator(lines, WORDS, show_progress=False).save_pretrained(folder)
        return folder

    def count(self) -> None:
        """Write what the frequencies of the training text alone reach, in nats a token; a model must be better."""
        result = self.out / "frequencies.json"
        if result.exists():
            return
        tokenizer, objective = AutoTokenizer.from_pretrained(self.tokenizer()), find_objective(OBJECTIVES[0])
        train, held_out = (
            encode(objective, read_documents([str(file)]), tokenizer).tokens
            for file in (self.text, self.held_out)
        )
        counts = np.bincount(train, minlength=len(tokenizer)) + 1
        loss = float(-np.log(counts[held_out] / counts.sum()).mean())
        write(result, {"train_tokens": len(train), "held_out_tokens": len(held_out), "loss": loss})

    def pretrained(self, name: str) -> Path:
        """The folder of a model that has learned an objective."""
        folder, result = self.out / name, self.out / f"pretraining_{name}.json"
        if result.exists() and folder.is_dir():
            return folder
        options = {
            "objective": name,
            "model": json.dumps(MODEL),
            "tokenizer": self.tokenizer(),
            "train_file": self.text,
            "validation_file": self.held_out,
            "max_tokens": ROW,
            "output_dir": folder,
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": SEED,
            **PRETRAINING,
        }
        start = time.process_time()
        trainer = pretrain_stock(*parse("bert-small", words(options), PretrainArguments))
        seconds = time.process_time() - start
        log = trainer.state.log_history
        found = {
            "objective": name,
            "parameters": trainer.model.num_parameters(),
            "rows": len(trainer.train_dataset),
            "updates": trainer.state.global_step,
            "cpu_seconds": seconds,
            "train_curve": [(one["step"], one["mlm_loss"]) for one in log if "mlm_loss" in one],
            "curve": [(one["step"], one["eval_mlm_loss"]) for one in log if "eval_mlm_loss" in one],
            "held_out": {masks: self.loss(folder, masks) for masks in OBJECTIVES},
        }
        write(result, found)
        return folder

    def loss(self, folder: Path, masks: str) -> float:
        """Nats a hidden token of the held-out text under the masks of an objective, the same ones for each model."""
        objective, tokenizer = find_objective(masks), AutoTokenizer.from_pretrained(folder)
        documents = encode(objective, read_documents([str(self.held_out)]), tokenizer)
        options = {"report_to": "none", "disable_tqdm": True, "dataloader_pin_memory": False}
        trainer = StockPretrainingTrainer(
            AutoModelForMaskedLM.from_pretrained(folder),
            TrainingArguments(str(folder), per_device_eval_batch_size=32, **options),
            eval_dataset=objective.rows(documents, tokenizer, ROW, SEED),
            data_collator=objective.make_collator(tokenizer, SEED),
        )
        return trainer.evaluate()["eval_mlm_loss"]

    def tag(self, name: str, rows: str, seed: int) -> None:
        """Train and score a tagger, and write its result.

        Args:
            name: of an objective, or `SCRATCH`.
            rows: a key of `TAGGING`.
            seed: of the rows chosen and of the training.
        """
        result = self.out / f"tagging_{name.replace(' ', '-')}_{rows}_{seed}.json"
        if result.exists():
            return
        number, epochs = TAGGING[rows]
        folder = result.with_suffix(".run")
        options = {
            "model": self.pretrained(OBJECTIVES[0] if name == SCRATCH else name),
            "train_file": self.data / "ud_ewt_pos" / "train.jsonl",
            "validation_file": self.data / "ud_ewt_pos" / "dev.jsonl",
            "max_tokens": ROW,
            "lm_loss_weight": 0,
            "from_scratch": name == SCRATCH,
            "num_train_epochs": epochs,
            "eval_strategy": "no",
            "output_dir": folder,
            "disable_tqdm": True,
            "seed": seed,
        }
        if number:
            options["train_rows"] = number
        start = time.process_time()
        trainer = finetune(*parse("ud_ewt_pos", words(options), FinetuneArguments))
        found = {"name": name, "rows": rows, "seed": seed, "epochs": epochs}
        found |= {"updates": trainer.state.global_step, "cpu_seconds": time.process_time() - start}
        last = next(one for one in reversed(trainer.state.log_history) if "eval_accuracy" in one)
        write(result, found | {"accuracy": 100 * last["eval_accuracy"]})
        shutil.rmtree(folder)


def words(options: dict) -> list[str]:
    """Options as on the command line."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def write(file: Path, found: dict) -> None:
    """Write a result, and tell it."""
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(file.stem, {name: value for name, value in found.items() if "curve" not in name}, flush=True)


def loss_table(out: Path) -> list[str]:
    """The lines of a Markdown table: held-out losses under all masks; none without results."""
    files = [out / f"pretraining_{name}.json" for name in OBJECTIVES]
    results = [json.loads(file.read_text("utf-8")) for file in files if file.exists()]
    lines = []
    if (known := out / "frequencies.json").exists():
        loss = json.loads(known.read_text("utf-8"))["loss"]
        lines.append(f"| frequencies of tokens alone | {loss:.2f} |" + " |" * (len(OBJECTIVES) + 1))
    for one in results:
        cells = [f"`{one['objective']}`", *(f"{one['held_out'][masks]:.3f}" for masks in OBJECTIVES)]
        cells += [f"{one['updates']:,}", f"{one['cpu_seconds']:.0f} s"]
        lines.append("| " + " | ".join(cells) + " |")
    heads = ["pre-trained with", *(f"loss, `{masks}` masks" for masks in OBJECTIVES), "updates", "CPU time"]
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines] if lines else []


def tagging_table(out: Path) -> list[str]:
    """The lines of a Markdown table: accuracy, mean and standard deviation over the seeds; none without results."""
    lines, counts = [], set()
    for name in (SCRATCH, *OBJECTIVES):
        cells = []
        for rows in TAGGING:
            files = sorted(out.glob(f"tagging_{name.replace(' ', '-')}_{rows}_*.json"))
            scores = [json.loads(file.read_text("utf-8"))["accuracy"] for file in files]
            spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            cells.append(f"{statistics.mean(scores):.2f}{spread}" if scores else "")
            counts.add(len(scores))
        if any(cells):
            lines.append(f"| {name if name == SCRATCH else f'`{name}`'} | " + " | ".join(cells) + " |")
    seeds = "-".join(map(str, sorted({min(counts), max(counts)})))
    heads = [f"accuracy ({seeds} seeds)"]
    heads += [f"{rows} sentences, {epochs} epochs" for rows, (_, epochs) in TAGGING.items()]
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *lines] if lines else []


def main(arguments: list[str] | None = None) -> None:
    """Make what has no result yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, help="folder with masc_speeches and ud_ewt_pos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of tagging")
    arguments = parser.parse_args(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if arguments.data:
        bench = Bench(arguments.out, arguments.data)
        bench.count()
        for name in OBJECTIVES:
            if not (arguments.out / f"pretraining_{name}.json").exists():
                bench.pretrained(name)
        for seed in arguments.seeds:
            for rows in TAGGING:
                for name in (SCRATCH, *OBJECTIVES):
                    bench.tag(name, rows, seed)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for table in (loss_table, tagging_table):
        print("\n".join(["", *table(arguments.out)]))


if __name__ == "__main__":
    main()
