"""Batches of one task each, from several data sets (MT-DNN, Liu et al. 2019, algorithm 1; ERNIE 2.0, Sun et al. 2020).

Letters: B rows of a batch, W processes, A batches in a row that share a task, C candidates, T positions.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .collators import IGNORED
from .joint_collators import TokenHider
from .streams import EndlessBatches

COLUMNS: dict[str, tuple[str, ...]] = {
    "classification": ("text",),
    "pair": ("premise", "hypothesis"),
    "regression": ("first", "second"),
    "ranking": ("query", "candidates"),
    "tokens": ("words",),
}


@dataclass(frozen=True)
class ContinualSchedule:
    """Sequential multi-task learning of ERNIE 2.0: each stage adds a task and goes on with those before it.

    All tasks get `total` batches. From its second stage on a task gets `carry` a stage, so it starts with the rest. The
    defaults are the paper's table of four tasks: 20k, 30k, 40k and 50k in their first stages, 10k in later ones.

    Args:
        tasks: names in the order in which they are added.
        total: batches of each task.
        carry: batches of an old task in each new stage.

    Raises:
        ValueError: nothing would be left for a task's first stage.
    """

    tasks: tuple[str, ...]
    total: int = 50_000
    carry: int = 10_000

    def __post_init__(self):
        object.__setattr__(self, "tasks", tuple(self.tasks))
        first = self.total - self.carry * (len(self.tasks) - 1)
        if not self.tasks or self.carry < 0 or first <= 0:
            raise ValueError(
                f"total must be above carry * (tasks - 1), found total={self.total}, carry={self.carry} and "
                f"{len(self.tasks)} tasks. The first task would begin with {first} batches."
            )

    @property
    def stages(self) -> list[dict[str, int]]:
        """Batches of each task by stage."""
        last = len(self.tasks) - 1
        table = []
        for stage, new in enumerate(self.tasks):
            old = dict.fromkeys(self.tasks[:stage], self.carry)
            table.append(old | {new: self.total - self.carry * (last - stage)})
        return table

    def weights(self, batch: int) -> dict[str, float]:
        """Shares of the tasks around a batch; they sum to 1.

        Args:
            batch: its number from 0; after the last stage they stay as they were.

        Returns:
            Share by task, in the order of `tasks`.
        """
        for stage in self.stages:
            size = sum(stage.values())
            if batch < size:
                break
            batch -= size
        return {task: stage.get(task, 0) / size for task in self.tasks}


class MultiTaskDataset(EndlessBatches):
    """Batches of one task each, without end, for `MultiTaskTrainer`.

    The batches are a function of the data sets' sizes, the seed and the options: any number of workers makes the same, W
    processes with B rows see what one with W B rows sees, and a training goes on at its place.

    Args:
        datasets: rows by the tasks' names; each has a length and is indexed by numbers.
        collate: makes a batch of rows that have a further column `task`, for instance `MultiTaskCollator`.
        batch_size: B, rows of a batch of one process.
        sampling: "all", each epoch takes every row of every task once and shuffles the tasks' batches (MT-DNN's
            algorithm 1); "temperature" draws each batch's task with p proportional to n^(1/temperature), 1 is proportional
            to size, large ones are equal; or a `ContinualSchedule`, exactly as many batches of each task as it says.
        temperature: see `sampling`.
        seed: equal seeds give equal batches.
        accumulate: A, how many batches in a row share a task. With Trainer's `gradient_accumulation_steps` each step is of
            one task, as in MT-DNN; with 1 a step mixes tasks.
        rank: which process this is; it takes its rows of every global batch.
        world_size: W.
        start: the number of batches to skip.

    Raises:
        ValueError: no rows of a task, unknown sampling, a schedule of other tasks, or a number out of range.
    """

    def __init__(
        self,
        datasets: Mapping[str, Sequence[Mapping]],
        collate: Callable[[list[dict]], dict[str, Tensor]],
        batch_size: int,
        sampling: str | ContinualSchedule = "all",
        temperature: float = 1.0,
        seed: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
    ):
        super().__init__(collate, batch_size, rank, world_size, start)
        self.datasets, self.sampling, self.temperature = dict(datasets), sampling, temperature
        self.seed, self.accumulate = seed, accumulate
        self.sizes = {name: len(rows) for name, rows in self.datasets.items()}
        if not self.sizes or not all(self.sizes.values()):
            raise ValueError(
                f"every task needs at least one row, found {self.sizes}. Leave out tasks without data."
            )
        if isinstance(sampling, ContinualSchedule):
            if set(sampling.tasks) != set(self.sizes):
                raise ValueError(
                    f"the schedule's tasks must be those of the data sets, {sorted(self.sizes)}; found "
                    f"{sorted(sampling.tasks)}."
                )
        elif sampling not in ("all", "temperature"):
            raise ValueError(
                f'sampling must be "all", "temperature" or a ContinualSchedule, found {sampling!r}.'
            )
        if not temperature > 0 or accumulate < 1:
            raise ValueError(
                f"temperature must be positive and accumulate at least 1, found {temperature} and {accumulate}."
            )

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every row of every task comes once, or all of a schedule."""
        if isinstance(self.sampling, ContinualSchedule):
            return self.accumulate * len(self.sampling.tasks) * self.sampling.total
        return self.accumulate * sum(-(-size // self._unit) for size in self.sizes.values())

    @property
    def _unit(self) -> int:
        return self.batch_size * self.world_size * self.accumulate

    def identity(self) -> dict[str, object]:
        """Everything that the order is a function of."""
        return {
            "rows": self.batch_size * self.world_size,
            "sizes": self.sizes,
            "sampling": str(self.sampling),
            "temperature": self.temperature,
            "seed": self.seed,
            "accumulate": self.accumulate,
        }

    def plan(self) -> Iterator[tuple[str, list[int]]]:
        """Yield the task and the row numbers, at most W B A, of one unit of A global batches after another."""
        return self._epochs() if self.sampling == "all" else self._draws()

    def _epochs(self) -> Iterator[tuple[str, list[int]]]:
        for epoch in count():
            units = [(name, unit) for name in self.sizes for unit in self._units(name, epoch)]
            self._random("epoch", epoch).shuffle(units)
            yield from units

    def _draws(self) -> Iterator[tuple[str, list[int]]]:
        supplies = {name: self._supply(name) for name in self.sizes}
        for name in self._tasks():
            yield name, next(supplies[name])

    def _supply(self, name: str) -> Iterator[list[int]]:
        for epoch in count():
            yield from self._units(name, epoch)

    def _tasks(self) -> Iterator[str]:
        if isinstance(self.sampling, ContinualSchedule):
            for number, stage in enumerate(self.sampling.stages):
                order = [name for name, batches in stage.items() for _ in range(batches)]
                self._random("stage", number).shuffle(order)
                yield from order
            return
        chance = self._random("tasks")
        # Relative to the largest, or n^(1/T) of a tiny T would be beyond a float.
        largest = max(self.sizes.values())
        shares = [(size / largest) ** (1 / self.temperature) for size in self.sizes.values()]
        while True:
            yield chance.choices(list(self.sizes), shares)[0]

    def _units(self, name: str, epoch: int) -> Iterator[list[int]]:
        """A task's rows in a new order each epoch, cut into units; the last may be short."""
        order = list(range(self.sizes[name]))
        self._random("rows", name, epoch).shuffle(order)
        return (order[start : start + self._unit] for start in range(0, len(order), self._unit))

    def _random(self, *place: object) -> random.Random:
        return random.Random(" ".join(map(str, (self.seed, *place))))

    def _global_batches(self) -> Iterator[tuple[str, list[int], int]]:
        """Yield the task, the numbers of rows, and one that fills up where there are none."""
        size = self.batch_size * self.world_size
        for name, unit in self.plan():
            for start in range(0, self._unit, size):
                yield name, unit[start : start + size], unit[0]

    def _collated(self, batch: tuple[str, list[int], int]) -> dict[str, Tensor]:
        name, numbers, filler = batch
        mine = numbers[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        made = self.collate([{**self.datasets[name][number], "task": name} for number in mine or [filler]])
        return made if mine else _without_targets(made)


def _without_targets(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with nothing to learn, for a process that has no row where others do."""
    silent = dict(batch)
    if "labels" in batch:
        silent["labels"] = torch.full_like(batch["labels"], IGNORED)
    silent["lm_targets"] = torch.full_like(batch.get("lm_targets", batch["input_ids"]), IGNORED)
    return silent


class TaskRows(Dataset):
    """The rows of one task with a column `task`, for evaluation.

    Args:
        task: its name.
        rows: with a length, indexed by numbers.
    """

    def __init__(self, task: str, rows: Sequence[Mapping]):
        self.task, self.rows = task, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict:
        return {**self.rows[number], "task": self.task}


def task_number(rows: Sequence[Mapping], tasks: Sequence[Mapping]) -> int:
    """The number of the one task of a batch.

    Args:
        rows: each with the name of its task in the column `task`.
        tasks: the model's `config.tasks`.

    Raises:
        ValueError: rows of several tasks, or of one that is none of these.
    """
    found = {row.get("task") for row in rows}
    if len(found) > 1:
        raise ValueError(
            f"every batch must be of one task, found rows of {sorted(map(str, found))}. Use MultiTaskDataset for "
            "training and TaskRows, one a task, for evaluation."
        )
    (name,), names = found, [task["name"] for task in tasks]
    if name not in names:
        raise ValueError(f"a row's column `task` must be one of {sorted(names)}, found {name!r}.")
    return names.index(name)


@dataclass
class MultiTaskCollator:
    """Rows of one task to a batch for `MultiTaskModel`.

    Two texts share a row, laid out as the tokenizer does it. The label is in the column `labels` or `label`: a class, a
    number, the place of the right candidate, or a class of each word, which its first token gets; None means unlabelled.

    Args:
        tokenizer: with a padding token; a fast one for pairs and tokens.
        tasks: the model's `config.tasks`.
        columns: names of a task's one or two columns of text by its name; `COLUMNS` has those of its kind. Classification
            and regression take one or two.
        max_length: longest row in tokens; None means the tokenizer's own limit.
        lm_objective: the model's `lm_objective`, for a model with `lm_loss_weight`; None makes no hidden tokens.
        mlm_rate: share of words that are hidden from a masked model.
        generator: of what is hidden, as in `TokenHider`.

    Raises:
        ValueError: columns of an unknown task, or not one or two; an unknown objective.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[Mapping]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    max_length: int | None = None
    lm_objective: str | None = None
    mlm_rate: float = 0.15
    generator: torch.Generator | None = None
    _numbers: dict[str, int] = field(init=False, repr=False)
    _hide: TokenHider | None = field(init=False, repr=False, default=None)

    def __post_init__(self):
        self._numbers = {task["name"]: number for number, task in enumerate(self.tasks)}
        for name, columns in self.columns.items():
            if name not in self._numbers:
                raise ValueError(f"columns name the task {name!r}, but tasks are {sorted(self._numbers)}.")
            kind = _text_kind(self.tasks[self._numbers[name]])
            allowed = (1, 2) if kind in ("classification", "regression") else (len(COLUMNS[kind]),)
            if isinstance(columns, str) or len(columns) not in allowed:
                raise ValueError(
                    f"columns of {kind} task {name!r} must be a list of {' or '.join(map(str, allowed))} names, found "
                    f"{columns!r}."
                )
        if self.lm_objective not in ("causal", "masked", None):
            raise ValueError(f'lm_objective must be "causal", "masked" or None, found {self.lm_objective!r}.')
        if self.lm_objective == "masked":
            self._hide = TokenHider(self.tokenizer, (), self.mlm_rate, self.generator)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate.

        Args:
            rows: examples of one task.

        Returns:
            What `MultiTaskModel` takes: `input_ids` (B, T), (B, C, T) for ranking, and what else the tokenizer makes,
            `task_id` (B,), `labels` where any row has such a column, `text_ids` for pairs, and the language model's own text.

        Raises:
            ValueError: rows of several tasks or an unknown one, a missing column, candidates of different counts, words
                and labels of different counts, or labels that are no numbers.
        """
        task = self.tasks[task_number(rows, self.tasks)]
        first, second = self._texts(task, rows)
        words = task["kind"] == "tokens"
        encoded = self.tokenizer(
            first,
            second,
            is_split_into_words=words,
            truncation=True,
            max_length=self.max_length,
            padding=True,
            return_tensors="pt",
        )
        batch = dict(encoded)
        if self._hide is not None:
            hidden, targets = self._hide(batch["input_ids"], batch["attention_mask"])
            lm = {"lm_input_ids": hidden, "lm_attention_mask": batch["attention_mask"], "lm_targets": targets}
        if task["kind"] == "ranking":
            batch = {name: tensor.unflatten(0, (len(rows), -1)) for name, tensor in batch.items()}
        if task["kind"] == "pair":
            texts = [encoded.sequence_ids(number) for number in range(len(rows))]
            batch["text_ids"] = torch.tensor([[-1 if one is None else one for one in row] for row in texts])
        if (labels := self._labels(task, rows, encoded)) is not None:
            batch["labels"] = labels
        batch["task_id"] = torch.full((len(rows),), self._numbers[task["name"]])
        return batch | (lm if self._hide is not None else {})

    def _texts(self, task: Mapping, rows: Sequence[Mapping]) -> tuple[list, list | None]:
        name, kind = task["name"], _text_kind(task)
        columns = self.columns.get(name, COLUMNS[kind])
        for row in rows:
            if missing := [column for column in columns if row.get(column) is None]:
                raise ValueError(
                    f"{kind} task {name!r} reads the columns {', '.join(columns)}; a row has no {', '.join(missing)}, but "
                    f"{sorted(row)}. Name yours in `columns`."
                )
        first, *rest = ([row[column] for row in rows] for column in columns)
        if kind != "ranking":
            return first, rest[0] if rest else None
        counts = {len(candidates) for candidates in rest[0]}
        if len(counts) > 1 or 0 in counts:
            raise ValueError(
                f"every example of a batch of ranking task {name!r} must have as many candidates, found {sorted(counts)}. "
                "Fill up with wrong ones."
            )
        queries = [query for query, candidates in zip(first, rest[0], strict=True) for _ in candidates]
        return queries, [candidate for candidates in rest[0] for candidate in candidates]

    def _labels(self, task: Mapping, rows: Sequence[Mapping], encoded) -> Tensor | None:
        labels = [row["labels"] if "labels" in row else row.get("label") for row in rows]
        if not any("labels" in row or "label" in row for row in rows):
            return None
        if task["kind"] == "tokens":
            column = self.columns.get(task["name"], COLUMNS["tokens"])[0]
            labels = [
                _spread(task["name"], label, encoded.word_ids(number), len(rows[number][column]))
                for number, label in enumerate(labels)
            ]
        labels = [IGNORED if label is None else label for label in labels]
        try:
            return torch.tensor(labels, dtype=torch.float if task["kind"] == "regression" else torch.long)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"labels of {task['kind']} task {task['name']!r} must be numbers, found {labels!r:.200}. Map names to 0, 1, "
                "... first."
            ) from error


def _text_kind(task: Mapping) -> str:
    """The kind of a task whose rows are texts."""
    if task["kind"] not in COLUMNS:
        raise ValueError(
            f"{task['kind']} task {task['name']!r} reads rows of ids. Use TokenizedTaskCollator, which hides tokens of them."
        )
    return task["kind"]


def _spread(name: str, labels: Sequence[int] | None, words: Sequence[int | None], expected: int) -> list[int]:
    """Labels of words for a row's tokens: at each word's first one, else -100."""
    if labels is not None and len(labels) != expected:
        raise ValueError(
            f"tokens task {name!r} needs one label a word, found {len(labels)} labels for {expected} words."
        )
    spread, before = [], None
    for word in words:
        begins = labels is not None and word is not None and word != before
        spread.append(labels[word] if begins else IGNORED)
        before = word
    return spread


__all__ = ["COLUMNS", "ContinualSchedule", "MultiTaskCollator", "MultiTaskDataset", "TaskRows", "task_number"]
