"""What a language model passes on to a task, what it forgets meanwhile, and what lambda and replay do about it.

    python benchmarks/forgetting.py ../shared/data --lm runs/forgetting-lm [--seeds 1 2 3] [--ablation] [--json OUT]

First a small GPT-2 is pre-trained on general text and on the tasks' texts without labels; `--lm` keeps it. Then it is
fine-tuned by JointLossTrainer: POS tagging with few sentences, beside the same model from random numbers, and SUBJ with few
labels, lambda on the task's text or on replayed general text. Language-model losses are in nats a token, of held-out
sentences as plain text, without marks. `--ablation` asks instead what lambda is worth as labels become more.
"""

import argparse
import csv
import json
import logging
import os
import random
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import datasets
import torch
from transformers import (
    AutoTokenizer,
    DataCollatorForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from heirloom.modeling.modeling_joint_loss import (
    JointLossForSequenceClassification,
    JointLossForTokenClassification,
)
from heirloom.objectives.collators import TokenSentenceCollator
from heirloom.objectives.input_forms import InputTemplate
from heirloom.objectives.joint_collators import JointLossCollator, ReplaySentences
from heirloom.objectives.text_packing import DataCollatorForCausalLanguageModeling, pack_contiguous
from heirloom.training.joint_trainer import JointLossTrainer
from heirloom.training.tokenizers import train_tokenizer
from heirloom.training.trainer import PretrainingTrainer

GENERAL = ("masc_speeches", "novels_pd")
TASKS = ("subj", "snips")  # one text a row
VOCABULARY, SIZE, LAYERS, POSITIONS = 3000, 128, 3, 64
BATCH = 8
ROWS = 32  # of a batch of pre-training
WAYS = {  # of SUBJ, all from the pre-trained model: lambda, what the language model reads, weight of KL(frozen LM || LM)
    "λ = 0": (0.0, "nothing", 0.0),
    "λ = 0.5 on the task's text": (0.5, "task", 0.0),
    "λ = 0.5 on replayed general text": (0.5, "replay", 0.0),
    "λ = 0, KL 0.5 on the task's text": (0.0, "task", 0.5),
}
TAGGING = {  # of POS tagging: whether pre-trained, and lambda on the task's text
    "from scratch, λ = 0": (False, 0.0),
    "from scratch, λ = 0.5": (False, 0.5),
    "pre-trained, λ = 0": (True, 0.0),
    "pre-trained, λ = 0.5": (True, 0.5),
}
EPOCHS = {200: 10, 2000: 4, None: 2}  # of the ablation, by labels; None is all


# Text


def general_text(data: Path, split: str) -> list[str]:
    """Lines of general text, none empty."""
    return [
        line.strip()
        for name in GENERAL
        for line in (data / name / f"{split}.txt").read_text(encoding="utf-8-sig").splitlines()
        if line.strip()
    ]


def task_rows(data: Path, task: str, split: str) -> list[dict]:
    """Rows with `text` and `label`, a number by the alphabet."""
    with (data / task / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    names = sorted({row["label"] for row in rows})
    return [{"text": row["text"], "label": names.index(row["label"])} for row in rows]


def tagged_rows(data: Path, split: str) -> list[dict]:
    """Rows with `tokens` and `upos`."""
    lines = (data / "ud_ewt_pos" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def encode_tagged(rows: list[dict], tags: list[str], tokenizer) -> list[dict]:
    """Token ids, and each word's tag at its last piece, where a causal model has read it whole."""
    encoded = []
    for row in rows:
        ids, labels = [tokenizer.bos_token_id], [-100]
        pieces = tokenizer([f" {word}" for word in row["tokens"]], add_special_tokens=False)["input_ids"]
        for piece, tag in zip(pieces, row["upos"], strict=True):
            ids += piece
            labels += [-100] * (len(piece) - 1) + [tags.index(tag)]
        encoded.append({"input_ids": ids[:POSITIONS], "labels": labels[:POSITIONS]})
    return encoded


# The language model


def arguments(folder: str | Path, seed: int, **options) -> TrainingArguments:
    """What all trainings share."""
    common = {
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "per_device_eval_batch_size": 64,
        "logging_steps": 100,
    }
    return TrainingArguments(str(folder), seed=seed, **(common | options))


def pretrain(data: Path, folder: Path, steps: int) -> None:
    """Train a tokenizer and a GPT-2 on general text and on the tasks' texts; seed 0."""
    texts = general_text(data, "train")
    texts += [row["text"] for task in TASKS for row in task_rows(data, task, "train")]
    texts += [" ".join(row["tokens"]) for row in tagged_rows(data, "train")]
    random.Random(0).shuffle(texts)
    tokenizer, _ = train_tokenizer(texts[:20_000], "bpe", VOCABULARY)
    documents = [[text] for text in texts[: ROWS * steps * 2]]  # more than enough
    blocks = pack_contiguous(documents, POSITIONS, tokenizer.eos_token_id, tokenizer)
    set_seed(0)
    options = {"max_steps": steps, "per_device_train_batch_size": ROWS, "learning_rate": 2e-3}
    trainer = PretrainingTrainer(
        new_model(len(tokenizer), tokenizer.eos_token_id),
        arguments(folder, 0, **options),
        train_dataset=blocks,
        data_collator=DataCollatorForCausalLanguageModeling(tokenizer),
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trainer.save_model(folder)
    tokenizer.save_pretrained(folder)


def new_model(words: int, mark: int) -> GPT2LMHeadModel:
    """A GPT-2 of random numbers."""
    sizes = {"n_positions": POSITIONS, "n_embd": SIZE, "n_layer": LAYERS, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(vocab_size=words, bos_token_id=mark, eos_token_id=mark, **sizes))


@torch.no_grad()
def lm_loss(model: GPT2LMHeadModel, tokenizer, texts: list[str]) -> float:
    """Nats a token of texts; the marks around them are no targets."""
    model.eval()
    collate = TokenSentenceCollator(tokenizer)
    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=POSITIONS - 2)["input_ids"]
    ids = sorted(filter(None, ids), key=len)
    total, count = 0.0, 0
    for start in range(0, len(ids), 64):
        batch = collate([{"words": row} for row in ids[start : start + 64]])
        batch["labels"][batch["labels"] == tokenizer.eos_token_id] = -100
        targets = int((batch["labels"] != -100).sum())
        total += model(**batch).loss.item() * targets
        count += targets
    return total / count


# The tasks


def accuracy(predicted) -> dict[str, float]:
    """Share of right labels, -100 left out."""
    known = predicted.label_ids != -100
    return {"accuracy": float((predicted.predictions == predicted.label_ids)[known].mean())}


class Bench:
    """Data, the pre-trained model, and what a run measures.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self.options, self.data = options, options.data
        self.tokenizer = AutoTokenizer.from_pretrained(options.lm)
        self.general = general_text(self.data, "train")
        held_out = general_text(self.data, "dev")
        self.held_out = random.Random(0).sample(held_out, min(len(held_out), options.eval_rows))
        self.tagged = {split: tagged_rows(self.data, split) for split in ("train", "dev")}
        self.tags = sorted({tag for rows in self.tagged.values() for row in rows for tag in row["upos"]})
        self.rows = {
            task: {split: task_rows(self.data, task, split) for split in ("train", "dev")} for task in TASKS
        }

    def backbone(self, pretrained: bool = True) -> GPT2LMHeadModel:
        """The pre-trained model, or one like it."""
        if pretrained:
            return GPT2LMHeadModel.from_pretrained(self.options.lm)
        return new_model(len(self.tokenizer), self.tokenizer.eos_token_id)

    def before(self, task: str) -> dict[str, float]:
        """Losses of the pre-trained model."""
        return self._losses(self.backbone(), self.tokenizer, self._texts(task))

    def _texts(self, task: str) -> list[str]:
        if task == "pos":
            texts = [" ".join(row["tokens"]) for row in self.tagged["dev"]]
        else:
            texts = [row["text"] for row in self.rows[task]["dev"]]
        return texts[: self.options.eval_rows]

    def _losses(self, model, tokenizer, texts: list[str]) -> dict[str, float]:
        return {
            "task_lm": lm_loss(model, tokenizer, texts),
            "general_lm": lm_loss(model, tokenizer, self.held_out),
        }

    def tag(self, pretrained: bool, weight: float, seed: int) -> dict[str, float]:
        """POS tagging with as many sentences as `--sentences`."""
        set_seed(seed)
        model = JointLossForTokenClassification.from_backbone_pretrained(
            self.backbone(pretrained), num_labels=len(self.tags), lm_loss_weight=weight
        )
        chosen = random.Random(seed).sample(self.tagged["train"], self.options.sentences)
        train, dev = (
            encode_tagged(rows, self.tags, self.tokenizer)
            for rows in (chosen, self.tagged["dev"][: self.options.eval_rows])
        )
        collate = DataCollatorForTokenClassification(self.tokenizer)
        return self._run(model, self.tokenizer, train, dev, collate, 2 * self.options.epochs, seed, "pos")

    def classify(
        self, task: str, labels: int | None, weight: float, reads: str, kl: float, seed: int, epochs: float
    ) -> dict[str, float]:
        """A task with so many labels, from the pre-trained model.

        Args:
            task: "subj" or "snips".
            labels: how many; None for all.
            weight: lambda.
            reads: the language model's text: "nothing", "task" or "replay".
            kl: weight of the divergence from the language model as it was.
            seed: of the rows chosen and of the training.
            epochs: passes over them.
        """
        set_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(self.options.lm)  # gets marks of its own
        template = InputTemplate(max_length=POSITIONS)
        template.prepare(tokenizer)
        rows = self.rows[task]
        model = JointLossForSequenceClassification.from_backbone_pretrained(
            self.backbone(),
            num_labels=1 + max(row["label"] for row in rows["train"]),
            lm_loss_weight=weight,
            **template.model_options(tokenizer),
        )
        template.prepare(tokenizer, model)
        collate = JointLossCollator(
            tokenizer,
            template,
            "classification",
            lm_objective=None if reads == "nothing" else "causal",
            replay=ReplaySentences(self.general, seed) if reads == "replay" else None,
        )
        train = rows["train"]
        train = random.Random(seed).sample(train, len(train) if labels is None else labels)
        dev = rows["dev"][: self.options.eval_rows]
        return self._run(model, tokenizer, train, dev, collate, epochs, seed, task, kl)

    def _run(self, model, tokenizer, train, dev, collate, epochs, seed, task, kl=0.0) -> dict[str, float]:
        start = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            trainer = JointLossTrainer(
                model,
                arguments(
                    folder,
                    seed,
                    per_device_train_batch_size=BATCH,
                    num_train_epochs=epochs,
                    learning_rate=5e-4,
                    logging_steps=1,
                ),
                train_dataset=train,
                eval_dataset=dev,
                data_collator=collate,
                compute_metrics=accuracy,
                kl_weight=kl,
                preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            seconds = time.process_time() - start
            last = next(record for record in reversed(trainer.state.log_history) if "loss" in record)
            result = {"accuracy": 100 * trainer.evaluate()["eval_accuracy"]}
        result |= self._losses(model.language_model, tokenizer, self._texts(task))
        result |= {"lm_weight": last["lm_weight"], "trained_lm_loss": last.get("lm_loss")}
        return result | {"steps": trainer.state.global_step, "cpu_seconds": seconds}


# Tables

COLUMNS = {
    "accuracy": ("accuracy", 1),
    "task_lm": ("LM loss, task's text", 2),
    "general_lm": ("LM loss, general text", 2),
    "cpu_seconds": ("CPU s of training", 0),
}


def spread(numbers: list[float], digits: int) -> str:
    """Mean and standard deviation over the seeds."""
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return f"{statistics.mean(numbers):.{digits}f} ± {deviation:.{digits}f}"


def table(title: str, cells: dict[str, list[dict]], before: dict[str, float] | None = None) -> str:
    """A Markdown table, a line for each condition."""
    lines = [f"| {title} | " + " | ".join(name for name, _ in COLUMNS.values()) + " |"]
    lines.append("|---" * (1 + len(COLUMNS)) + "|")
    if before:
        numbers = [f"{before[key]:.2f}" if key in before else "" for key in COLUMNS]
        lines.append("| pre-trained, before | " + " | ".join(numbers) + " |")
    for name, runs in cells.items():
        numbers = [spread([run[key] for run in runs], digits) for key, (_, digits) in COLUMNS.items()]
        lines.append(f"| {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def gain(one: list[dict], other: list[dict], key: str) -> list[float]:
    """Differences seed by seed."""
    return [first[key] - second[key] for first, second in zip(one, other, strict=True)]


def findings(tagging: dict[str, list[dict]], subj: dict[str, list[dict]]) -> list[dict]:
    """What the benchmark is there to show, with the smallest difference that counts as shown."""
    scratch, _, pretrained, _ = tagging.values()
    none, task, replay, _ = subj.values()
    found = [
        ("POS accuracy, pre-trained above scratch, λ = 0", gain(pretrained, scratch, "accuracy"), 10),
        ("LM loss of the task's text, λ = 0.5 on it below λ = 0", gain(none, task, "task_lm"), 0.5),
        ("LM loss of general text, replay below λ = 0", gain(none, replay, "general_lm"), 0.2),
    ]
    return [
        {"what": what, "by_seed": by_seed, "at_least": least, "shown": statistics.mean(by_seed) >= least}
        for what, by_seed, least in found
    ]


# The command


def repeat(name: str, run, options: argparse.Namespace) -> list[dict]:
    """One run for each seed, told as it ends."""
    runs = []
    for seed in options.seeds:
        runs.append(run(seed) | {"seed": seed})
        last = runs[-1]
        told = ", ".join(f"{key} {last[key]:.2f}" for key in COLUMNS)
        print(f"{time.process_time():6.0f} CPU s  {name}, seed {seed}: {told}", flush=True)
    return runs


def replicate(bench: Bench) -> dict:
    """Tagging and SUBJ in all conditions."""
    options = bench.options
    tagging = {
        name: repeat(f"POS {name}", lambda seed, way=way: bench.tag(*way, seed), options)
        for name, way in TAGGING.items()
    }
    subj = {
        name: repeat(
            f"SUBJ {name}",
            lambda seed, way=way: bench.classify("subj", options.labels, *way, seed, options.epochs),
            options,
        )
        for name, way in WAYS.items()
    }
    before = {task: bench.before(task) for task in ("pos", "subj")}
    found = findings(tagging, subj)
    print("\n" + table(f"POS tagging, {options.sentences} sentences", tagging, before["pos"]))
    print("\n" + table(f"SUBJ, {options.labels} labels, pre-trained", subj, before["subj"]) + "\n")
    print("| difference | mean | by seed | at least | shown |\n|---|---|---|---|---|")
    for row in found:
        seeds = ", ".join(f"{number:.2f}" for number in row["by_seed"])
        mean = f"{statistics.mean(row['by_seed']):.2f}"
        print(f"| {row['what']} | {mean} | {seeds} | {row['at_least']} | {'yes' if row['shown'] else 'NO'} |")
    return {"before": before, "tagging": tagging, "subj": subj, "findings": found}


def ablate(bench: Bench) -> dict:
    """Lambda 0 and 0.5 on the task's text, at several numbers of labels."""
    options, results = bench.options, {}
    for task in TASKS:
        for labels in options.sizes:
            ways = {"λ = 0": (0.0, "nothing", 0.0), "λ = 0.5": (0.5, "task", 0.0)}
            epochs = EPOCHS.get(labels or None, options.epochs)
            results[f"{task}, {labels or 'all'} labels"] = {
                name: repeat(
                    f"{task} {labels or 'all'} {name}",
                    lambda seed, way=way, task=task, labels=labels, epochs=epochs: bench.classify(
                        task, labels or None, *way, seed, epochs
                    ),
                    options,
                )
                for name, way in ways.items()
            }
    print("\n| | λ = 0 | λ = 0.5 | difference | by seed |\n|---|---|---|---|---|")
    for name, ways in results.items():
        none, task = ways.values()
        by_seed = gain(task, none, "accuracy")
        cells = [spread([run["accuracy"] for run in runs], 1) for runs in (none, task)]
        seeds = ", ".join(f"{number:+.1f}" for number in by_seed)
        print(f"| {name} | {' | '.join(cells)} | {statistics.mean(by_seed):+.1f} | {seeds} |")
    return results


def main(arguments: list[str] | None = None) -> dict:
    """Pre-train once, run all conditions and seeds, print Markdown tables, and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "data", type=Path, help="folder with novels_pd, masc_speeches, ud_ewt_pos, subj, snips"
    )
    parser.add_argument(
        "--lm", type=Path, required=True, help="the pre-trained model; made if it is not there"
    )
    parser.add_argument("--lm-steps", type=int, default=1000, help="of pre-training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--sentences", type=int, default=50, help="with tags")
    parser.add_argument("--labels", type=int, default=200, help="of SUBJ")
    parser.add_argument("--epochs", type=float, default=10, help="of SUBJ; tagging has twice as many")
    parser.add_argument("--eval-rows", type=int, default=1000, help="of each held-out text")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--ablation", action="store_true", help="lambda at several numbers of labels, nothing else"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[200, 2000, 0], help="of --ablation; 0 is all"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    logging.getLogger("heirloom").setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    wall = time.time()
    facts = {"date": date.today().isoformat(), "torch": torch.__version__, "threads": options.threads}
    if not (options.lm / "config.json").is_file():
        start = time.process_time()
        pretrain(options.data, options.lm, options.lm_steps)
        facts["pretraining_cpu_seconds"] = time.process_time() - start
        print(f"pre-trained in {facts['pretraining_cpu_seconds']:.0f} CPU s", flush=True)
    bench = Bench(options)
    results = ablate(bench) if options.ablation else replicate(bench)
    facts |= {"cpu_seconds": time.process_time(), "wall_seconds": time.time() - wall, "cores": os.cpu_count()}
    print(
        f"\n{facts['date']}, torch {facts['torch']}, {options.threads} threads, {facts['cores']} cores, "
        f"{facts['cpu_seconds']:.0f} CPU s, {facts['wall_seconds']:.0f} s, mean ± standard deviation of seeds {options.seeds}"
    )
    results = {"facts": facts, "seeds": options.seeds, "results": results}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
