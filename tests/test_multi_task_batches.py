"""Batches of one task: their order, schedules, rows of several processes, and rows to tensors."""

import math
from collections import Counter
from itertools import islice

import pytest
import torch
from reference import multi_task_naive as naive
from reference.multi_task_rows import NAMES, SIZES, TASKS, WORDS, dataset, datasets, planned
from torch.utils.data import DataLoader

from heirloom.objectives.multi_task import ContinualSchedule, MultiTaskCollator

# The order of batches


def test_an_epoch_is_mt_dnn_s():
    """Algorithm 1: all mini-batches of all tasks, each row once, merged and shuffled; another order each epoch."""
    batches = dataset()
    assert batches.batches_per_epoch == 4 + 2 + 2 + 2 + 3
    epochs = planned(batches, 26)
    for epoch in (epochs[:13], epochs[13:]):
        assert Counter(name for name, _ in epoch) == naive.epoch_counts(SIZES, 4)
        for name, size in SIZES.items():
            rows = [number for task, unit in epoch for number in unit if task == name]
            assert sorted(rows) == list(range(size))
    assert epochs[:13] != epochs[13:]
    order = [name for name, _ in epochs[:13]]
    assert order != sorted(order, key=NAMES.index)
    assert planned(dataset(), 26) == epochs
    assert planned(dataset(seed=1), 26) != epochs


@pytest.mark.parametrize(("temperature", "power"), [(1.0, 1.0), (2.0, 0.5), (math.inf, 0.0)])
def test_temperature(temperature, power):
    sizes = {"sst": 900, "mnli": 90, "sts": 10}
    batches = dataset(10, datasets=datasets(**sizes), sampling="temperature", temperature=temperature)
    found = Counter(name for name, _ in planned(batches, 6000))
    shares = {name: size**power for name, size in sizes.items()}
    for name, share in shares.items():
        p = share / sum(shares.values())
        assert found[name] / 6000 == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 6000))
    epochs = [unit for name, unit in planned(batches, 6000) if name == "mnli"][:18]
    for start in (0, 9):  # each task goes through its own rows
        assert sorted(number for unit in epochs[start : start + 9] for number in unit) == list(range(90))


def test_tiny_temperatures_take_the_largest_task():
    batches = dataset(datasets=datasets(sst=400, mnli=8), sampling="temperature", temperature=0.001)
    assert {name for name, _ in planned(batches, 50)} == {"sst"}


def test_every_batch_is_of_one_task_for_any_number_of_workers():
    batches = dataset(3)
    loaders = [DataLoader(batches, batch_size=None, num_workers=workers) for workers in (0, 2)]
    for ours, others in zip(*(list(islice(loader, 20)) for loader in loaders), strict=True):
        assert len(set(ours["task_id"].tolist())) == 1
        assert ours.keys() == others.keys()
        assert all(torch.equal(ours[name], others[name]) for name in ours)


def test_a_place_is_found_again():
    whole = list(islice(dataset(3), 40))
    for later, expected in zip(islice(dataset(3, start=17), 23), whole[17:], strict=True):
        assert all(torch.equal(later[name], expected[name]) for name in later)


def test_processes_and_accumulation_share_rows():
    """Two processes of 2 rows see what one of 4 sees, in batches that one step takes too; none is ever empty."""
    collate = lambda some: {"input_ids": torch.tensor([one["text"] for one in some])}  # noqa: E731
    some = {
        "sst": [{"text": number} for number in range(13)],
        "sts": [{"text": -number} for number in range(1, 8)],
    }
    whole = list(islice(dataset(4, collate, datasets=some), 13))
    halves = [
        list(islice(dataset(2, collate, datasets=some, rank=rank, world_size=2), 13)) for rank in (0, 1)
    ]
    for *ours, both in zip(*halves, whole, strict=True):
        kept = [batch["input_ids"] for batch in ours if "lm_targets" not in batch]
        assert torch.cat(kept).tolist() == both["input_ids"].tolist()
    units = list(islice(dataset(1, collate, datasets=some, accumulate=4)._global_batches(), 24))
    for start in range(0, 24, 4):
        assert len({name for name, _, _ in units[start : start + 4]}) == 1


def test_rows_that_fill_up_teach_nothing():
    batches = dataset(2, datasets=datasets(sst=5, qnli=1), world_size=2, rank=1)
    silent = 0
    for (name, numbers, _), batch in zip(islice(batches._global_batches(), 12), batches, strict=False):
        known = (batch["labels"] != -100).any()
        if len(numbers) <= 2:
            silent += 1
            assert not known
            assert (batch["lm_targets"] == -100).all()
            assert batch["lm_targets"].shape == batch["input_ids"].shape
        else:
            assert "lm_targets" not in batch
        assert len(batch["task_id"]) == max(1, len(numbers) - 2)
        assert NAMES[int(batch["task_id"][0])] == name
    assert silent >= 4


# ERNIE 2.0


def test_the_continual_schedule_is_the_paper_s_table():
    schedule = ContinualSchedule(("masking", "capitals", "reordering", "distance"))
    table = [[stage.get(task, 0) // 1000 for task in schedule.tasks] for stage in schedule.stages]
    assert table == [[20, 0, 0, 0], [10, 30, 0, 0], [10, 10, 40, 0], [10, 10, 10, 50]]
    assert all(sum(column) == 50 for column in zip(*table, strict=True))
    assert schedule.weights(0) == {"masking": 1, "capitals": 0, "reordering": 0, "distance": 0}
    assert list(schedule.weights(19_999).values()) == [1, 0, 0, 0]
    assert list(schedule.weights(20_000).values()) == [0.25, 0.75, 0, 0]
    assert list(schedule.weights(60_000).values()) == pytest.approx([1 / 6, 1 / 6, 4 / 6, 0])
    assert list(schedule.weights(10**9).values()) == [0.125, 0.125, 0.125, 0.625]


def test_a_schedule_orders_the_batches():
    schedule = ContinualSchedule(("qnli", "sst", "sts"), total=20, carry=4)
    batches = dataset(datasets=datasets(sst=13, sts=6, qnli=5), sampling=schedule)
    order = [name for name, _ in batches.plan()]
    assert len(order) == batches.batches_per_epoch == 60
    for start, stage in zip((0, 12, 32), schedule.stages, strict=True):
        part = order[start : start + sum(stage.values())]
        assert Counter(part) == stage
    assert order[12:32] != sorted(order[12:32])


# Rows to batches


def test_labels_of_words_stand_at_their_first_tokens():
    class Split:
        """Every word is two tokens."""

        def __call__(self, words, second, **options):
            width = 2 * max(map(len, words))
            ids = torch.zeros(len(words), width).long()
            result = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

            class Encoded(dict):
                def word_ids(self, number):
                    places = [place // 2 for place in range(2 * len(words[number]))]
                    return places + [None] * (width - len(places))

            return Encoded(result)

    rows = [
        {"words": ["a", "b"], "labels": [3, 1]},
        {"words": ["c"], "labels": [2]},
        {"words": ["d"], "labels": None},
    ]
    batch = MultiTaskCollator(Split(), TASKS)([{**one, "task": "pos"} for one in rows])
    assert batch["labels"].tolist() == [[3, -100, 1, -100], [2, -100, -100, -100], [-100] * 4]
    assert batch["task_id"].tolist() == [4, 4, 4]


def collated(*rows, **options):
    return MultiTaskCollator(WORDS, TASKS, **options)(list(rows))


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (
            lambda: collated({"text": "w5", "task": "cola"}),
            r"`task` must be one of \['mnli', .*\], found 'cola'",
        ),
        (lambda: collated({"text": "w5"}), "found None"),
        (
            lambda: collated({"text": "w5", "task": "sst"}, {"words": ["w5"], "task": "pos"}),
            r"every batch must be of one task, found rows of \['pos', 'sst'\]. Use MultiTaskDataset",
        ),
        (
            lambda: collated({"txt": "w5", "task": "sst"}),
            "task 'sst' reads the columns text; a row has no text",
        ),
        (
            lambda: collated({"text": "w5", "task": "sst", "label": "good"}),
            "task 'sst' must be numbers, found",
        ),
        (
            lambda: collated({"words": ["w5", "w6"], "task": "pos", "labels": [1]}),
            "needs one label a word, found 1 labels for 2 words",
        ),
        (
            lambda: collated(
                {"query": "w5", "candidates": ["w6"], "task": "qnli"},
                {"query": "w5", "candidates": ["w6", "w7"], "task": "qnli"},
            ),
            r"ranking task 'qnli' must have as many candidates, found \[1, 2\]",
        ),
        (lambda: collated(columns={"cola": ["text"]}), "columns name the task 'cola'"),
        (
            lambda: collated(columns={"mnli": ["text"]}),
            "columns of pair task 'mnli' must be a list of 2 names",
        ),
        (lambda: collated(columns={"sst": "text"}), "must be a list of 1 or 2 names, found 'text'"),
        (lambda: collated(lm_objective="prefix"), 'lm_objective must be "causal", "masked" or None'),
        (lambda: dataset(datasets={"sst": []}), r"every task needs at least one row, found {'sst': 0}"),
        (lambda: dataset(sampling="equal"), "sampling must be .* found 'equal'"),
        (
            lambda: dataset(temperature=0),
            "temperature must be positive and accumulate at least 1, found 0 and 1",
        ),
        (lambda: dataset(accumulate=0), "found 1.0 and 0"),
        (
            lambda: dataset(sampling=ContinualSchedule(("sst", "cola"))),
            "schedule's tasks must be those of the data sets",
        ),
        (
            lambda: ContinualSchedule(("a", "b", "c"), total=20, carry=10),
            "The first task would begin with 0 batches",
        ),
    ],
)
def test_bad_rows_and_options(action, words):
    with pytest.raises(ValueError, match=words):
        action()
