"""MultiTaskModel: the twins' losses and gradients for all kinds of heads, parts that sum to a step, checkpoints, errors."""

import json
import os
import subprocess
import sys

import pytest
import torch
from reference import multi_task_naive as naive
from reference.joint_loss_naive import MASK, VOCAB, gradients, language_model, largest_difference, pad
from transformers import AutoConfig, AutoModel

from heirloom.modeling import heads_multi_task
from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_multi_task import MultiTaskConfig
from heirloom.modeling.heads_multi_task import AnswerNetwork, kept_steps
from heirloom.modeling.modeling_multi_task import MultiTaskModel

TASKS = [
    {"name": "sst", "kind": "classification", "num_labels": 2},
    {"name": "mnli", "kind": "pair", "num_labels": 3, "weight": 0.5},
    {"name": "sts", "kind": "regression", "weight": 2.0},
    {"name": "qnli", "kind": "ranking"},
    {"name": "train", "kind": "tokens", "num_labels": 4},  # a name that means something else to a ModuleDict
]
NAMES = [task["name"] for task in TASKS]


def made(kind="bert", dtype=torch.float64, **options) -> MultiTaskModel:
    """A model with heads far from their initial values, without dropout."""
    options = {"tasks": TASKS, "classifier_dropout": 0.0} | options
    model = MultiTaskModel.from_backbone_pretrained(language_model(kind), **options)
    torch.manual_seed(2)
    for parameter in model.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.to(dtype)


def examples(name: str, count: int = 4) -> list[dict]:
    """Rows of ids of different lengths and labels, one of them missing."""
    draw = torch.Generator().manual_seed(NAMES.index(name) + 7)
    found = []
    for number in range(count):
        lengths = [4 + (3 * number + 2 * view) % 6 for view in range(3 if name == "qnli" else 1)]
        rows = [torch.randint(5, MASK, (length,), generator=draw).tolist() for length in lengths]
        classes = {"sst": 2, "mnli": 3, "qnli": 3, "train": 4}.get(name)
        label = number % classes if classes else 0.3 * number
        if name == "train":
            label = [(number + place) % 4 if place != 1 else -100 for place in range(lengths[0])]
        elif number == 2:
            label = -100
        found.append({"rows": rows, "label": label, "split": 2 + number % 2})
    return found


def batch(name: str, some: list[dict]) -> dict:
    """Keyword arguments of `forward`."""
    flat = [row for example in some for row in example["rows"]]
    width, labels = max(map(len, flat)), [example["label"] for example in some]
    result = {
        "input_ids": pad(flat, 0, width),
        "attention_mask": pad([[1] * len(row) for row in flat], 0, width),
    }
    if name == "qnli":
        result = {key: value.view(len(some), 3, width) for key, value in result.items()}
    if name == "mnli":
        texts = [[int(place >= one["split"]) for place in range(len(one["rows"][0]))] for one in some]
        result["text_ids"] = pad(texts, -1, width)
    result["labels"] = (
        pad(labels, -100, width)
        if name == "train"
        else torch.tensor(labels, dtype=torch.float64 if name == "sts" else None)
    )
    return result | {"task_id": torch.full((len(some),), NAMES.index(name))}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_the_twins(kind, name):
    model, some = made(kind), examples(name)
    loss, means = naive.step_loss(model, [(name, example) for example in some])
    loss.backward()
    expected = gradients(model)
    for head in model.classifier.values():
        if isinstance(head, AnswerNetwork):
            head.prediction_dropout = 0.0
    found = model.train()(**batch(name, some))
    assert found.loss.item() == pytest.approx(loss.item(), abs=1e-6)
    assert found.task_loss.item() == pytest.approx(loss.item(), abs=1e-6)
    assert len(means) == 1
    found.loss.backward()
    others = [p.grad for key, p in model.classifier.named_parameters() if not key.startswith(f"task_{name}.")]
    assert others
    assert all(grad is None for grad in others)
    assert largest_difference(gradients(model), expected) < 1e-6
    own = [value for key, value in expected.items() if f"task_{name}." in key]
    assert all(value.abs().max() > 1e-4 for value in own if value.ndim > 1)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_parts_sum_to_the_step(kind):
    """Batches of all tasks, cut differently: with a count for each task the gradients are the twin's."""
    model = made(kind).train()
    model.classifier["task_mnli"].prediction_dropout = 0.0
    everything = [(name, example) for name in NAMES for example in examples(name)]
    loss, _ = naive.step_loss(model, everything)
    loss.backward()
    expected = gradients(model)
    for size in (1, 3, 4):
        parts = [
            batch(name, examples(name)[start : start + size]) for name in NAMES for start in range(0, 4, size)
        ]
        counts = sum(model.count_items_by_task(part) for part in parts)
        assert counts[:4].tolist() == [3, 3, 3, 3]
        total = 0.0
        for part in parts:
            found = model(**part, num_items_in_batch=counts).loss
            found.backward()
            total += found.item()
        assert total == pytest.approx(loss.item(), abs=1e-6)
        assert largest_difference(gradients(model), expected) < 1e-6


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_the_language_model_trains_beside_every_task(kind):
    model, weight = made(kind, lm_loss_weight=0.4), 0.4
    parts = [batch(name, examples(name)) for name in ("sst", "qnli")]
    for part in parts:
        if kind == "bert":
            part["lm_targets"] = part["input_ids"].masked_fill(
                torch.arange(part["input_ids"].shape[-1]) % 3 != 1, -100
            )
    counts = {
        "num_items_in_batch": sum(model.count_items_by_task(part) for part in parts),
        "num_lm_items_in_batch": sum(model.count_lm_items(part) for part in parts),
    }
    assert int(counts["num_lm_items_in_batch"]) == 4 + 12
    losses = [model(**part, **counts) for part in parts]
    for part, found in zip(parts, losses, strict=True):
        alone = model(**part)
        rows = int(model.count_lm_items(part))
        assert found.lm_loss.item() == pytest.approx(alone.lm_loss.item() * rows / 16, abs=1e-6)
        assert found.loss.item() == pytest.approx(
            found.task_loss.item() + weight * found.lm_loss.item(), abs=1e-6
        )
    assert model(**parts[0], lm_loss_weight=0.0).lm_loss is None


def test_the_answer_network_is_its_twin(monkeypatch):
    """In training too: answers of steps that were dropped count for nothing, and the mean stays a distribution."""
    torch.manual_seed(0)
    head = AnswerNetwork(6, 3, steps=4, prediction_dropout=0.5).double().train()
    hidden = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]).bool()
    places = torch.tensor([[-1, 0, 0, 0, 1, 1, -1], [0, 1, 1, 1, 1, -1, -1], [1, 1, -1, 0, 0, 0, 0]])
    monkeypatch.setattr(heads_multi_task, "kept_steps", lambda *_: kept)
    found = head(hidden, places == 0, places == 1)
    twins = torch.stack(
        [
            naive.answer_network(head, row[place == 0], row[place == 1], steps.tolist())
            for row, place, steps in zip(hidden, places, kept, strict=True)
        ]
    )
    torch.testing.assert_close(found, twins)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3, dtype=torch.float64))
    chance = torch.randn(3, 3, dtype=torch.float64)
    parameters = [hidden, *head.parameters()]
    both = [torch.autograd.grad((one * chance).sum(), parameters) for one in (found, twins)]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other)


def test_prediction_dropout_keeps_one_step():
    kept = kept_steps(4000, 5, 0.3, torch.device("cpu"))
    # each step survives by its own luck, or else as the sure one of five
    assert kept.float().mean().item() == pytest.approx(0.7 + 0.3 / 5, abs=0.01)
    assert kept_steps(500, 5, 0.99, torch.device("cpu")).any(1).all()
    assert kept_steps(9, 5, 0.0, torch.device("cpu")).all()
    model, some = made("bert"), batch("mnli", examples("mnli"))
    assert torch.equal(model(**some).logits, model(**some).logits)
    model.train()
    assert len({model(**some).loss.item() for _ in range(5)}) > 1


def test_ranking_is_cross_entropy_over_the_candidates():
    model, some = made("bert"), batch("qnli", examples("qnli"))
    found = model(**some)
    assert found.logits.shape == (4, 3)
    wanted = torch.nn.functional.cross_entropy(found.logits, some["labels"], ignore_index=-100)
    assert found.loss.item() == pytest.approx(wanted.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "lstm-lm"])
def test_round_trip(kind, tmp_path):
    model = made(kind, torch.float32, lm_loss_weight=0.25)
    model.save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is MultiTaskModel
    assert not any(report.values())
    assert loaded.config.tasks == model.config.tasks
    assert loaded.config.text_config is loaded.language_model.config
    for name in NAMES:
        some = batch(name, examples(name))
        torch.testing.assert_close(loaded(**some).logits, model(**some).logits)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["MultiTaskModel"]
    assert saved["auto_map"] == AUTO_MAP["multi-task"]
    assert (tmp_path / "heads_multi_task.py").is_file()
    model.language_model.save_pretrained(tmp_path / "lm")
    stock, report = type(model.language_model).from_pretrained(tmp_path / "lm", output_loading_info=True)
    assert not any(report.values())
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(stock(ids).logits, model.language_model(ids).logits)


@pytest.mark.slow
def test_a_checkpoint_brings_its_own_code(tmp_path):
    """In a process that has no heirloom."""
    model, some = made("bert", torch.float32), batch("mnli", examples("mnli"))
    model.save_pretrained(tmp_path / "model")
    torch.save({"batch": some, "logits": model(**some).logits.detach()}, tmp_path / "expected")
    code = (
        "import sys, torch\n"
        "sys.modules['heirloom'] = None\n"
        "from transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True)\n"
        f"expected = torch.load({str(tmp_path / 'expected')!r})\n"
        "torch.testing.assert_close(model(**expected['batch']).logits, expected['logits'])\n"
        "assert type(model).__module__.startswith('transformers_modules')\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_resizing_keeps_ties(tmp_path):
    model, ids = made("bert", torch.float32), torch.tensor([[5, 6, 7]])
    before = model(ids, task_id=0).logits
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    torch.testing.assert_close(model(ids, task_id=0).logits, before)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert loaded.config.text_config.vocab_size == VOCAB + 3
    assert loaded(torch.tensor([[VOCAB + 2]]), task_id=0).logits.isfinite().all()


def test_new_heads_and_given_weights():
    backbone = language_model("bert")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    wide = [
        {"name": "a", "kind": "classification", "num_labels": 300},
        {"name": "b", "kind": "pair", "num_labels": 3},
    ]
    model = MultiTaskModel.from_backbone_pretrained(backbone, tasks=wide)
    assert model.language_model is backbone
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert model.classifier["task_a"].weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.classifier["task_b"].cell.weight_hh.abs().max() <= 0.25  # 1 / sqrt(16)
    assert not model.training
    assert model.config.tasks[1] == {
        "name": "b", "kind": "pair", "num_labels": 3, "weight": 1.0, "dropout": None, "steps": 5, "prediction_dropout": 0.1,
    }  # fmt: skip
    wide[0]["name"] = "changed"
    assert model.config.task_names == ["a", "b"]


def test_heads_that_a_checkpoint_lacks_are_drawn(tmp_path):
    model = made("bert", torch.float32, tasks=TASKS[:1])
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MultiTaskConfig
    config = MultiTaskConfig(**{**config.to_dict(), "tasks": TASKS})
    loaded, report = MultiTaskModel.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert any("task_mnli.cell" in name for name in report["missing_keys"])
    cell = loaded.classifier["task_mnli"].cell
    assert 0.1 < cell.weight_ih.abs().max() <= 0.25
    assert torch.equal(loaded.classifier["task_sst"].weight, model.classifier["task_sst"].weight)


def test_a_task_can_be_added(tmp_path):
    model, ids = made("bert", torch.float32, tasks=TASKS[:2]), torch.tensor([[5, 6, 7]])
    before = model(ids, task_id=0).logits
    model.add_task(name="cola", kind="classification", num_labels=5)
    assert model(ids, task_id=2).logits.shape == (1, 5)
    assert torch.equal(model(ids, task_id=0).logits, before)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids, task_id=2).logits, model(ids, task_id=2).logits)
    with pytest.raises(ValueError, match="has a task 'cola' already"):
        model.add_task(name="cola", kind="regression")


def test_one_task_needs_no_number():
    model = made("bert", tasks=TASKS[:1])
    assert model(torch.tensor([[5, 6]])).logits.shape == (1, 2)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (
            {"name": "a", "kind": "answering"},
            r"kind of task 'a' must be one of \['classification', .*found 'answering'",
        ),
        ({"name": "a.b", "kind": "ranking"}, "a task's name must be letters, digits, - and _, found 'a.b'"),
        ({"kind": "ranking"}, "a task's name must be .* found None"),
        ({"name": "a", "kind": "classification"}, "must be the number of its classes, 2 or more; found None"),
        ({"name": "a", "kind": "pair", "num_labels": 1}, "2 or more; found 1"),
        (
            {"name": "a", "kind": "regression", "num_labels": 3},
            "must be left out: it has one output; found 3",
        ),
        ({"name": "a", "kind": "ranking", "wieght": 2}, "has no field 'wieght'. Did you mean 'weight'?"),
        ({"name": "a", "kind": "ranking", "steps": 2}, "task 'a' of kind 'ranking' has no field 'steps'"),
        ({"name": "a", "kind": "ranking", "weight": 0}, "weight of task 'a' must be positive, found 0"),
        (
            {"name": "a", "kind": "ranking", "dropout": 1.0},
            r"dropout of task 'a' must lie in \[0, 1\), found 1.0",
        ),
        (
            {"name": "a", "kind": "pair", "num_labels": 2, "steps": 0},
            "steps of task 'a' must be at least 1, found 0",
        ),
        ({"name": "sst", "kind": "ranking"}, r"tasks must have different names, found \['sst', 'sst'\]"),
    ],
)
def test_bad_tasks(task, words):
    with pytest.raises(ValueError, match=words):
        MultiTaskConfig(tasks=[TASKS[0], task])


def test_no_tasks():
    with pytest.raises(ValueError, match="needs at least one task, found none"):
        MultiTaskModel.from_backbone_pretrained(language_model("bert"))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "sst",
            {"task_id": torch.tensor([0, 0, 1, 0])},
            r"every batch must be of one task, found task_id \[0, 1\]",
        ),
        ("sst", {"task_id": 5}, r"number of a task \(0 = sst, 1 = mnli, .*\), found \[5\]"),
        ("sst", {"task_id": -1}, r"found \[-1\]"),
        ("sst", {"task_id": None}, "number of a task .* found None"),
        (
            "sst",
            {"labels": torch.tensor([0, 1, 2, 0])},
            r"classification task 'sst' must be whole numbers of classes in 0..1",
        ),
        ("sst", {"labels": torch.rand(4)}, "whole numbers of classes"),
        ("sst", {"labels": torch.zeros(4, 1).long()}, r"must have shape \(4,\), found \(4, 1\)"),
        (
            "qnli",
            {"labels": torch.tensor([0, 1, 3, 0])},
            "ranking task 'qnli' must be whole numbers of right candidates in 0..2",
        ),
        (
            "qnli",
            {"input_ids": torch.ones(4, 6).long()},
            r"input_ids must be \(B, candidates, T\) for ranking task 'qnli'",
        ),
        ("train", {"labels": torch.zeros(4).long()}, "labels of tokens task 'train' must have shape"),
        ("mnli", {"text_ids": None}, "pair task 'mnli' needs text_ids .* found none"),
        ("mnli", {"text_ids": torch.zeros(4, 2)}, r"found shape \(4, 2\)"),
        ("sst", {"labels": None}, "training batch of task 'sst' has no labels"),
        ("sst", {"input_ids": torch.full((4, 9), VOCAB)}, "input_ids"),
    ],
)
def test_bad_batches(name, changes, words):
    model = made("bert").train()
    with pytest.raises(ValueError, match=words):
        model(**batch(name, examples(name)) | changes)


def test_a_pair_needs_both_texts():
    model, some = made("bert"), batch("mnli", examples("mnli"))
    some["text_ids"][1] = 0
    with pytest.raises(
        ValueError, match="needs two texts in each row, found 1 of 4 rows without a token of the second"
    ):
        model(**some)


def test_a_masked_model_needs_targets():
    model, some = made("bert", lm_loss_weight=0.5).train(), batch("sst", examples("sst"))
    with pytest.raises(
        ValueError, match="nothing says what the language model shall predict. Give the collator"
    ):
        model(**some)
