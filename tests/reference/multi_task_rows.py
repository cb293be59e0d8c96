"""Rows of five small tasks, one of each kind, for the tests of multi-task learning; every fourth has no label."""

from itertools import islice

from stock_lms import tokenizer

from heirloom.objectives.multi_task import MultiTaskCollator, MultiTaskDataset
from reference.joint_loss_naive import VOCAB

TASKS = [
    {"name": "sst", "kind": "classification", "num_labels": 2},
    {"name": "mnli", "kind": "pair", "num_labels": 3, "weight": 0.5, "prediction_dropout": 0.0},
    {"name": "sts", "kind": "regression", "weight": 2.0},
    {"name": "qnli", "kind": "ranking"},
    {"name": "pos", "kind": "tokens", "num_labels": 4},
]
NAMES = [task["name"] for task in TASKS]
SIZES = {"sst": 13, "mnli": 8, "sts": 6, "qnli": 5, "pos": 9}
WORDS = tokenizer(VOCAB, ("[PAD]", "[CLS]", "[SEP]", "[MASK]"), pad_token="[PAD]", mask_token="[MASK]")


def text(number: int, more: int = 0) -> str:
    return " ".join(
        f"w{5 + (7 * number + 3 * place + more) % 30}" for place in range(2 + (number + more) % 5)
    )


def row(name: str, number: int) -> dict:
    label = None if number % 4 == 3 else number
    if name == "sst":
        return {"text": text(number), "label": None if label is None else label % 2}
    if name == "mnli":
        label = None if label is None else label % 3
        return {"premise": text(number), "hypothesis": text(number, 2), "label": label}
    if name == "sts":
        return {
            "first": text(number),
            "second": text(number, 1),
            "label": None if label is None else 0.3 * label,
        }
    if name == "qnli":
        label = None if label is None else label % 3
        return {
            "query": text(number),
            "candidates": [text(number, more) for more in (1, 2, 4)],
            "label": label,
        }
    words = text(number).split()
    return {"words": words, "labels": [(number + place) % 4 for place in range(len(words))]}


def datasets(**sizes) -> dict[str, list[dict]]:
    return {name: [row(name, number) for number in range(size)] for name, size in (sizes or SIZES).items()}


def dataset(batch_size=4, collate=None, **options) -> MultiTaskDataset:
    rows = options.pop("datasets", None) or datasets()
    return MultiTaskDataset(rows, collate or MultiTaskCollator(WORDS, TASKS), batch_size, **options)


def planned(batches: MultiTaskDataset, count: int) -> list[tuple[str, list[int]]]:
    return list(islice(batches.plan(), count))
