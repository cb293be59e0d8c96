"""What a fine-tuned model says to each validation row: predictions, a table of confusions, a picture of it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from ..objectives.collators import IGNORED
from .plots_of_tasks import plot_confusion

READ = ("input_ids", "attention_mask", "char_ids")
PREDICTIONS, CONFUSION, PICTURE = "predictions.jsonl", "confusion.md", "confusion.png"
MOST_CLASSES = 40  # of a table or picture that can be read


@torch.no_grad()
def predict(
    model: PreTrainedModel, rows: Dataset, collate: Callable, batch_size: int
) -> list[tuple[Tensor, Tensor]]:
    """The model's outputs for rows in their order, without the language model's head.

    Args:
        model: with a task head; it is put into evaluation mode.
        rows: of the task.
        collate: rows to a batch.
        batch_size: rows at once.

    Returns:
        Of each row the logits (..., K) on the CPU in float32, and its labels, () or (T,).
    """
    model.eval()
    found = []
    for start in range(0, len(rows), batch_size):
        batch = collate([rows[number] for number in range(start, min(start + batch_size, len(rows)))])
        inputs = {name: batch[name].to(model.device) for name in READ if name in batch}
        logits = model(**inputs).logits.float().cpu()
        found += zip(logits, batch["labels"], strict=True)
    return found


def describe(logits: Tensor, labels: Tensor, names: Sequence[str], regression: bool) -> dict:
    """The gold label, the prediction and its probability of one row.

    Args:
        logits: (K,), or (T, K) with a label at each word's place.
        labels: () or (T,).
        names: of classes; empty for choices, which are numbers.
        regression: the prediction is a number, and has no probability.

    Returns:
        `gold`, `predicted` and, for classes, `score`; lists of them for words. Gold is None where it is unknown.
    """
    if regression:
        gold = None if labels == IGNORED else round(float(labels), 6)
        return {"gold": gold, "predicted": round(float(logits.squeeze(-1)), 6)}

    def name(number: int) -> str | int | None:
        if number == IGNORED:
            return None
        return names[number] if names else number

    if labels.dim():
        known = labels != IGNORED
        scores, predicted = logits[known].softmax(-1).max(-1)
        return {
            "gold": [name(number) for number in labels[known].tolist()],
            "predicted": [name(number) for number in predicted.tolist()],
            "score": [round(score, 4) for score in scores.tolist()],
        }
    score, predicted = logits.softmax(-1).max(-1)
    return {"gold": name(int(labels)), "predicted": name(int(predicted)), "score": round(float(score), 4)}


def write_results(
    folder: Path,
    model: PreTrainedModel,
    rows: Dataset,
    collate: Callable,
    batch_size: int,
    label_names: Sequence[str] = (),
    regression: bool = False,
) -> None:
    """Write `predictions.jsonl`, and for classes `confusion.md` and `confusion.png`.

    Args:
        folder: of the run.
        model: see `predict`.
        rows: their columns but labels and length are repeated in the predictions.
        collate: see `predict`.
        batch_size: see `predict`.
        label_names: class names in the order of their ids; none for numbers and choices.
        regression: labels are numbers.
    """
    folder, pairs = Path(folder), []
    with open(folder / PREDICTIONS, "w", encoding="utf-8") as file:
        found = predict(model, rows, collate, batch_size)
        for row, (logits, labels) in zip(rows, found, strict=True):
            result = describe(logits, labels, label_names, regression)
            texts = {name: value for name, value in row.items() if name not in ("labels", "length")}
            file.write(json.dumps(texts | result, ensure_ascii=False) + "\n")
            if isinstance(result["gold"], list):
                pairs += zip(result["gold"], result["predicted"], strict=True)
            elif result["gold"] is not None:
                pairs.append((result["gold"], result["predicted"]))
    if label_names:
        names, counts = confusion(pairs, label_names)
        (folder / CONFUSION).write_text(confusion_table(names, counts), encoding="utf-8")
        plot_confusion(names, counts).savefig(folder / PICTURE)


def confusion(pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """How often each class was taken for each other one.

    Args:
        pairs: gold and predicted names.
        names: all classes; of more than `MOST_CLASSES` the most frequent stay, and "(others)" stands for the rest.

    Returns:
        Names, and counts (gold, predicted).
    """
    shown = list(names)
    if len(names) > MOST_CLASSES:
        often = dict.fromkeys(names, 0)
        for gold, _ in pairs:
            often[gold] += 1
        kept = set(sorted(names, key=lambda name: -often[name])[: MOST_CLASSES - 1])
        shown = [name for name in names if name in kept] + ["(others)"]
    places = {name: shown.index(name) if name in shown else len(shown) - 1 for name in names}
    counts = [[0] * len(shown) for _ in shown]
    for gold, predicted in pairs:
        counts[places[gold]][places[predicted]] += 1
    return shown, counts


def confusion_table(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """The counts as Markdown: a row for each gold class, with its recall; a last row with each class's precision.

    Args:
        names: K classes.
        counts: (K, K), gold by predicted.
    """

    def share(part: int, whole: int) -> str:
        return f"{part / whole:.3f}" if whole else "-"

    cells = [name.replace("|", r"\|") for name in names]
    lines = [f"| gold \\ predicted | {' | '.join(cells)} | recall |", "|---" * (len(names) + 2) + "|"]
    for number, (cell, row) in enumerate(zip(cells, counts, strict=True)):
        recall = share(row[number], sum(row))
        lines.append(f"| {cell} | {' | '.join(map(str, row))} | {recall} |")
    columns = [share(counts[k][k], sum(row[k] for row in counts)) for k in range(len(names))]
    lines.append(f"| precision | {' | '.join(columns)} | |")
    return "\n".join(lines) + "\n"


__all__ = ["confusion", "confusion_table", "describe", "predict", "write_results"]
