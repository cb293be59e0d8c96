"""MultiTaskTrainer: one step however it is cut or spread, each task in the log."""

import math

import numpy as np
import pytest
import torch
from reference import multi_task_naive as naive
from reference.joint_loss_naive import language_model
from reference.multi_task_rows import NAMES, TASKS, WORDS, dataset, datasets, row
from transformers import TrainingArguments
from two_processes import run_in_two_processes

from heirloom.modeling.modeling_multi_task import MultiTaskModel
from heirloom.objectives.multi_task import ContinualSchedule, MultiTaskCollator, MultiTaskDataset, TaskRows
from heirloom.training.multi_task import MultiTaskTrainer

# Training


def made(**options) -> MultiTaskModel:
    torch.manual_seed(1)
    options = {"tasks": TASKS, "classifier_dropout": 0.0} | options
    model = MultiTaskModel.from_backbone_pretrained(language_model("bert"), **options)
    torch.manual_seed(2)
    for parameter in model.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double()


class Fixed(MultiTaskDataset):
    """Steps of 4 rows of two tasks, or in two processes with one row each; cut into batches of 2 rows or fewer."""

    STEPS = (
        [("sst", 0), ("sst", 3), ("qnli", 1), ("qnli", 3)],
        [("sts", 1), ("sts", 2), ("mnli", 4), ("mnli", 5)],
        [("pos", 2), ("pos", 4), ("sst", 7), ("sst", 5)],
    )

    def _global_batches(self):
        size = self.batch_size * self.world_size
        for step in self.STEPS:
            for start in range(0, 4, size):
                some = step[start : start + size]
                yield some[0][0], [number for _, number in some], some[0][1]


def arguments(folder, accumulate=1, **options) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_eval_batch_size": 3,
            "gradient_accumulation_steps": accumulate,
            "max_steps": 3,
            "learning_rate": 0.1,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
        }
        | options
    )


def make_trainer(folder, size=4, accumulate=1, batches=dataset, model=None, evaluated=None, **options):
    chosen = {
        name: options.pop(name)
        for name in list(options)
        if name in ("sampling", "lm_objective", "unit", "datasets")
    }
    args = arguments(folder, accumulate, **options)
    objective = chosen.pop("lm_objective", None)
    collate = MultiTaskCollator(
        WORDS, TASKS, lm_objective=objective, generator=torch.Generator().manual_seed(4)
    )
    shared = {"rank": args.process_index, "world_size": args.world_size, "accumulate": chosen.pop("unit", 1)}
    if batches is Fixed:
        batches = Fixed(datasets(), collate, size, **shared)
    else:
        batches = dataset(size, collate, **shared, **chosen)
    return MultiTaskTrainer(
        model or made(lm_loss_weight=0.3 if objective else 0.0),
        args,
        train_dataset=batches,
        eval_dataset=evaluated,
        data_collator=collate,
    )


def trained(*parts, **options):
    trainer = make_trainer(*parts, **options)
    trainer.train()
    logs = [record for record in trainer.state.log_history if "loss" in record]
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}, logs


def far(one, other) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def example(name: str, number: int) -> dict:
    """Ids of a row for the twin, as the collator of a tokenizer without marks makes them."""
    one, columns = (
        row(name, number),
        {"sst": ("text",), "sts": ("first", "second"), "mnli": ("premise", "hypothesis")},
    )
    ids = lambda *texts: [WORDS.convert_tokens_to_ids(word) for text in texts for word in text.split()]  # noqa: E731
    if name == "qnli":
        rows = [ids(one["query"], candidate) for candidate in one["candidates"]]
    elif name == "pos":
        rows = [WORDS.convert_tokens_to_ids(one["words"])]
    else:
        rows = [ids(*(one[column] for column in columns[name]))]
    label = one.get("labels", one.get("label"))
    split = len(one["premise"].split()) if name == "mnli" else None
    return {"rows": rows, "label": -100 if label is None else label, "split": split}


def test_a_step_of_several_tasks_is_the_twin_s(tmp_path):
    """2x2 and 1x4 rows a step, whose batches are of different tasks."""
    model = made()
    expected_logs = []
    for step in Fixed.STEPS:
        loss, means = naive.step_loss(model, [(name, example(name, number)) for name, number in step])
        model.zero_grad()
        loss.backward()
        expected_logs.append(
            {"loss": loss.item(), **{f"{name}_loss": mean.item() for name, mean in means.items()}}
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    expected = {name: p.detach() for name, p in model.named_parameters()}
    assert far(expected, dict(made().named_parameters())) > 1e-2
    for size, accumulate in ((2, 2), (1, 4)):
        weights, logs = trained(tmp_path, size, accumulate, batches=Fixed)
        assert far(weights, expected) < 1e-7
        for found, wanted in zip(logs, expected_logs, strict=True):
            assert {name for name in found if name.endswith("_loss")} == {*wanted, "task_loss"} - {"loss"}
            for name, value in wanted.items():
                assert found[name] == pytest.approx(value, abs=1e-5)
            assert found["task_loss"] == pytest.approx(found["loss"], abs=1e-5)


@pytest.mark.parametrize("objective", [None, "causal"])
def test_accumulation_changes_nothing(objective, tmp_path):
    """Steps of one task, as in MT-DNN: 4x1 = 2x2 = 1x4; also a task whose last rows do not fill a step."""
    results = []
    for size, accumulate in ((4, 1), (2, 2), (1, 4)):
        model = None
        if objective:
            torch.manual_seed(1)
            model = MultiTaskModel.from_backbone_pretrained(
                language_model("gpt2"), tasks=TASKS, classifier_dropout=0.0, lm_loss_weight=0.3
            ).double()
        results.append(
            trained(
                tmp_path, size, accumulate, unit=accumulate, model=model, max_steps=13, lm_objective=objective
            )
        )
    (expected, logs), *others = results
    assert {name for record in logs for name in record} >= {f"{name}_loss" for name in NAMES}
    for weights, other in others:
        assert far(weights, expected) < 1e-7
        for ours, whole in zip(other, logs, strict=True):
            assert {name for name in ours if "loss" in name} == {name for name in whole if "loss" in name}
            assert ours["loss"] == pytest.approx(whole["loss"], abs=1e-5)


def test_a_log_of_several_steps_means_over_those_of_the_task(tmp_path):
    _, single = trained(tmp_path, max_steps=12)
    _, logs = trained(tmp_path, max_steps=12, logging_steps=6)
    for window, found in enumerate(logs):
        steps = single[6 * window : 6 * window + 6]
        for name in NAMES:
            values = [one[f"{name}_loss"] for one in steps if f"{name}_loss" in one]
            assert (f"{name}_loss" in found) == bool(values)
            if values:
                assert found[f"{name}_loss"] == pytest.approx(sum(values) / len(values), abs=1e-5)
    assert single[0]["epoch"] == pytest.approx(1 / 13, abs=1e-3)


def test_epochs_become_steps(tmp_path):
    trainer = make_trainer(tmp_path, 2, 2, max_steps=-1, num_train_epochs=2)
    assert trainer.args.max_steps == math.ceil(2 * (7 + 4 + 3 + 3 + 5) / 2)
    schedule = ContinualSchedule(("sst", "sts"), total=6, carry=2)
    options = {"sampling": schedule, "datasets": datasets(sst=13, sts=6)}
    _, logs = trained(tmp_path, 4, 1, max_steps=-1, num_train_epochs=1, **options)
    assert len(logs) == 12
    assert all("sts_loss" not in record for record in logs[:4])
    assert sum("sts_loss" in record for record in logs) == sum("sst_loss" in record for record in logs) == 6
    with pytest.raises(ValueError, match="schedule has 12 batches, but 13 steps of 1 take more"):
        make_trainer(tmp_path, max_steps=13, **options)


def test_a_training_goes_on(tmp_path):
    expected, _ = trained(tmp_path / "whole", 2, 2, max_steps=6)
    trained(tmp_path / "cut", 2, 2, max_steps=3, save_strategy="steps", save_steps=3)
    trainer = make_trainer(tmp_path / "cut", 2, 2, max_steps=6)
    trainer.train(resume_from_checkpoint=True)
    weights = {name: p.detach() for name, p in trainer.model.named_parameters()}
    assert far(weights, expected) < 1e-7
    trainer = make_trainer(tmp_path / "cut", 2, 2, max_steps=6, sampling="temperature")
    with pytest.raises(ValueError, match="changed sampling all to temperature"):
        trainer.train(resume_from_checkpoint=True)


def check_evaluation(metrics: dict, model, count: int) -> None:
    total = 0.0
    for task in TASKS:
        name, some = task["name"], [example(task["name"], number) for number in range(count)]
        with torch.no_grad():
            _, means = naive.step_loss(model, [(name, one) for one in some])
        assert metrics[f"eval_{name}_loss"] == pytest.approx(means[name].item(), abs=1e-6, rel=1e-6)
        total += task.get("weight", 1.0) * means[name].item()
    assert metrics["eval_loss"] == pytest.approx(total, abs=1e-6, rel=1e-6)


def predictions(model, name: str, count: int):
    whole = MultiTaskCollator(WORDS, TASKS)([{**row(name, number), "task": name} for number in range(count)])
    with torch.no_grad():
        logits, labels = model(**whole).logits, whole["labels"]
    return logits[labels != -100].numpy(), labels[labels != -100].numpy()


def test_evaluation_is_exact_for_each_task(tmp_path):
    trainer = make_trainer(tmp_path, evaluated=datasets(**dict.fromkeys(NAMES, 7)))
    metrics, model = trainer.evaluate(), trainer.model
    check_evaluation(metrics, model, 7)
    for name in NAMES:
        logits, labels = predictions(model, name, 7)
        if name == "sts":
            assert metrics["eval_sts_pearson"] == pytest.approx(np.corrcoef(logits, labels)[0, 1], abs=1e-9)
        else:
            assert metrics[f"eval_{name}_accuracy"] == pytest.approx(
                (logits.argmax(-1) == labels).mean(), abs=1e-9
            )
        assert (f"eval_{name}_accuracy" in metrics) == (name != "sts")
    assert not [name for name in metrics if "lm" in name or "perplexity" in name or "task_loss" in name]
    predicted = trainer.predict(TaskRows("sst", datasets()["sst"][:7]))
    assert predicted.metrics["test_loss"] == pytest.approx(metrics["eval_sst_loss"], abs=1e-9)
    assert predicted.predictions.shape == (7, 2)


def test_the_best_checkpoint_is_kept_by_any_of_these(tmp_path):
    trainer = make_trainer(
        tmp_path,
        evaluated=datasets(sst=5, sts=5),
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    totals = [record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record]
    assert len(totals) == 3
    assert trainer.state.best_metric == min(totals)


def test_two_processes_change_nothing(tmp_path):
    """With batches of several tasks in a step, rows that only one process has, and repeated rows in evaluation."""
    code = """
sets = suite.datasets(**dict.fromkeys(suite.NAMES, 7))
results = []
for batches, steps in ((suite.Fixed, 3), (suite.dataset, 7)):
    size = 1 if batches is suite.Fixed else 2
    trainer = suite.make_trainer(folder, size, 2, batches, evaluated=sets, max_steps=steps, ddp_backend="gloo")
    trainer.train()
    metrics = trainer.evaluate()
    logs = [record for record in trainer.state.log_history if "loss" in record]
    weights = {name: p.detach() for name, p in trainer.model.named_parameters()}
    results.append({"weights": weights, "logs": logs, "eval": metrics})
torch.save(results, folder / f"result{trainer.args.process_index}")
"""
    run_in_two_processes(__file__, tmp_path, code)
    processes = [torch.load(tmp_path / f"result{rank}", weights_only=False) for rank in (0, 1)]
    settings = ((Fixed, 2, 3), (dataset, 4, 7))
    for number, (batches, size, steps) in enumerate(settings):
        one = make_trainer(tmp_path / "one", size, 2, batches, max_steps=steps)
        one.train()
        expected = {name: p.detach() for name, p in one.model.named_parameters()}
        logs = [record for record in one.state.log_history if "loss" in record]
        for process in processes:
            assert far(process[number]["weights"], expected) < 1e-7
            check_evaluation(process[number]["eval"], one.model, 7)
        for ours, whole in zip(processes[0][number]["logs"], logs, strict=True):
            assert {name for name in ours if "loss" in name} == {name for name in whole if "loss" in name}
            for name in whole:
                if name.endswith("loss"):
                    assert ours[name] == pytest.approx(whole[name], abs=1e-5)


def test_hidden_tokens_for_a_masked_model():
    collate = MultiTaskCollator(WORDS, TASKS, lm_objective="masked", mlm_rate=0.5)
    for name in NAMES:
        batch = collate([{**row(name, number), "task": name} for number in range(5)])
        chosen = batch["lm_targets"] != -100
        flat = batch["input_ids"].flatten(0, -2)
        assert chosen.any(1).all()
        assert torch.equal(batch["lm_targets"][chosen], flat[chosen])
        assert (batch["lm_input_ids"] != flat).any()
        assert torch.equal(batch["lm_input_ids"][~chosen], flat[~chosen])
        model = made(lm_loss_weight=0.5).train()
        found = model(**batch)
        assert found.loss.item() == pytest.approx(
            found.task_loss.item() + 0.5 * found.lm_loss.item(), abs=1e-6
        )


def test_data_sets_that_do_not_fit(tmp_path):
    model, args = made(), arguments(tmp_path)

    def refused(words, **options):
        with pytest.raises(ValueError, match=words):
            MultiTaskTrainer(model, args, **options)

    refused("train_dataset must be a MultiTaskDataset, found list", train_dataset=[])
    unknown = dataset(datasets={"cola": [{}]})
    refused(
        r"train_dataset has rows of unknown tasks \['cola'\]; the model's are \['sst'", train_dataset=unknown
    )
    refused(
        "this is process 0 of 1, but the MultiTaskDataset was made for rank 1 of 2",
        train_dataset=dataset(rank=1, world_size=2),
    )
    refused("eval_dataset must be rows by task, found list", eval_dataset=[])
    refused(r"eval_dataset has rows of unknown tasks \['cola'\]", eval_dataset={"cola": []})
    trainer = MultiTaskTrainer(model, args, data_collator=MultiTaskCollator(WORDS, TASKS))
    with pytest.raises(ValueError, match="needs rows by task or a TaskRows, found list"):
        trainer.evaluate([{**row("sst", 0), "task": "sst"}])
