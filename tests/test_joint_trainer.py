"""JointLossTrainer: the same step however a batch is cut or spread, exact parts in the log, schedules of lambda."""

import copy
import math

import pytest
import torch
from reference.joint_loss_naive import (
    VOCAB,
    batch,
    examples,
    joint,
    language_model,
    naive_lm_loss,
    naive_task_loss,
)
from reference.kl_naive import naive_divergence
from transformers import GPT2ForSequenceClassification, Trainer, TrainingArguments
from two_processes import run_in_two_processes

from heirloom.training.joint_presets import OpenAIAdam, openai_optimizers
from heirloom.training.joint_trainer import LM_WEIGHT_SCHEDULES, JointLossTrainer
from heirloom.training.layerwise import GradualUnfreezing, layer_groups
from heirloom.training.trainer import read_log, train_evaluate_save

ROWS = 16
OF_TRAINER = (
    "lm_weight_schedule",
    "compute_metrics",
    "layer_lr_decay",
    "frozen_lm",
    "kl_weight",
    "callbacks",
)
OF_TRAINER += ("optimizers", "optimizer_cls_and_kwargs")


def data(head, count=ROWS) -> list[dict]:
    """Examples of very different lengths; a third of them unlabelled, three in a row."""
    texts, labels = examples(head, count)
    for number in (3, 4, 5, 10):
        labels[number % count] = [-100] * len(labels[number % count]) if head == "tokens" else -100
    return [{"texts": rows, "labels": label} for rows, label in zip(texts, labels, strict=True)]


def arguments(folder, size=8, accumulate=1, **options) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": size,
            "per_device_eval_batch_size": 3,
            "gradient_accumulation_steps": accumulate,
            "max_steps": 2,
            "learning_rate": 0.1,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "train_sampling_strategy": "sequential",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "remove_unused_columns": False,
            "dataloader_pin_memory": False,
        }
        | options
    )


def make_trainer(
    folder, kind="gpt2", head="classes", size=8, accumulate=1, trainer=JointLossTrainer, **options
):
    chosen = {name: options.pop(name) for name in list(options) if name.startswith(("lm_loss", "classifier"))}
    more = {name: options.pop(name) for name in list(options) if name in OF_TRAINER}

    def collate(rows):
        return batch(kind, head, [row["texts"] for row in rows], [row["labels"] for row in rows])

    return trainer(
        model=joint(kind, head, **chosen),
        args=arguments(folder, size, accumulate, **options),
        train_dataset=data(head),
        eval_dataset=data(head, 7),
        data_collator=collate,
        **more,
    )


def trained(*parts, **options):
    """Weights and log after training."""
    trainer = make_trainer(*parts, **options)
    trainer.train()
    logs = [record for record in trainer.state.log_history if "loss" in record]
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}, logs


def far(one, other) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


SETTINGS = [
    ("gpt2", "classes", {"lm_loss_reduction": "example"}),
    ("gpt2", "classes", {"lm_loss_reduction": "token"}),
    ("llama", "tokens", {"lm_loss_reduction": "token"}),
    ("llama", "tokens", {"lm_loss_reduction": "example"}),
    ("bert", "choices", {"lm_loss_reduction": "token"}),
    ("bert", "similarity", {"lm_loss_reduction": "example"}),
    ("lstm-lm", "classes", {}),
    ("elmo", "tokens", {}),
]


@pytest.mark.parametrize(("kind", "head", "options"), SETTINGS)
def test_accumulation_changes_nothing(kind, head, options, tmp_path):
    expected, logs = trained(tmp_path, kind, head, 8, 1, **options)
    start = dict(joint(kind, head, **options).named_parameters())
    assert far(expected, {name: value.detach() for name, value in start.items()}) > 1e-3
    for size, accumulate in ((4, 2), (2, 4)):
        weights, other = trained(tmp_path, kind, head, size, accumulate, **options)
        assert far(weights, expected) < 1e-6
        for ours, whole in zip(other, logs, strict=True):
            for part in ("loss", "task_loss", "lm_loss"):
                assert ours[part] == pytest.approx(whole[part], abs=1e-5)


def test_one_step_is_the_twins(tmp_path):
    """The gradient of the whole accumulated batch, by the plain reference."""
    weights, logs = trained(tmp_path, "gpt2", "classes", 2, 4, max_steps=1)
    model, rows = joint("gpt2"), data("classes")[:8]
    texts, labels = [row["texts"] for row in rows], [row["labels"] for row in rows]
    task = naive_task_loss(model, "gpt2", "classes", texts, labels)
    lm = naive_lm_loss(model, "gpt2", texts)
    (task + 0.5 * lm).backward()
    expected = {name: (p - 0.1 * p.grad).detach() for name, p in model.named_parameters()}
    assert far(weights, expected) < 1e-6
    assert logs[0]["task_loss"] == pytest.approx(task.item(), abs=1e-5)
    assert logs[0]["lm_loss"] == pytest.approx(lm.item(), abs=1e-5)


def test_the_stock_trainer_is_exact_where_its_count_says_enough(tmp_path):
    """Reduction "example" and every row labelled."""

    def step(trainer, size, accumulate):
        made = make_trainer(tmp_path, size=size, accumulate=accumulate, trainer=trainer)
        for row in made.train_dataset:
            row["labels"] = max(0, row["labels"])
        made.train()
        return {name: p.detach() for name, p in made.model.named_parameters()}

    expected = step(JointLossTrainer, 8, 1)
    assert far(step(Trainer, 8, 1), expected) < 1e-6
    assert far(step(Trainer, 2, 4), expected) < 1e-6


def test_a_stock_head_is_not(tmp_path):
    """Negative control: under accumulation by 4 a stock classifier moves about four times as far in a step."""
    moved = []
    for size, accumulate in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        config = language_model("gpt2", pad_token_id=0).config
        config.num_labels = 3
        model = GPT2ForSequenceClassification(config)
        before = model.score.weight.detach().clone()

        def collate(rows):
            return batch(
                "gpt2", "classes", [row["texts"] for row in rows], [max(0, row["labels"]) for row in rows]
            )

        options = arguments(tmp_path, size, accumulate, max_steps=1, learning_rate=1e-3)
        Trainer(model, options, train_dataset=data("classes"), data_collator=collate).train()
        moved.append((model.score.weight - before).norm().item())
    assert moved[1] / moved[0] == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize("window", [1, 2])
def test_the_parts_in_the_log_add_up(window, tmp_path):
    trainer = make_trainer(tmp_path, size=4, accumulate=2, lm_loss_weight=0.7, logging_steps=window)
    train_evaluate_save(trainer)
    records = [record for record in read_log(tmp_path) if "loss" in record]
    assert len(records) == 2 // window
    for record in records:
        assert record["loss"] == pytest.approx(record["task_loss"] + 0.7 * record["lm_loss"], abs=1e-5)
        assert record["lm_weight"] == 0.7
        assert "perplexity" not in record
    assert (tmp_path / "model.safetensors").is_file()


@pytest.mark.parametrize(("kind", "head", "options"), SETTINGS)
def test_evaluation_is_exact(kind, head, options, tmp_path):
    """Batches of 3, 3 and 1 rows, of different lengths and with unlabelled ones: a mean of batch means would be another."""
    trainer = make_trainer(tmp_path, kind, head, lm_loss_weight=0.7, **options)
    metrics = trainer.evaluate()
    rows = data(head, 7)
    texts, labels = [row["texts"] for row in rows], [row["labels"] for row in rows]
    with torch.no_grad():
        task = naive_task_loss(trainer.model, kind, head, texts, labels).item()
        lm = naive_lm_loss(trainer.model, kind, texts).item()
    assert metrics["eval_task_loss"] == pytest.approx(task, abs=1e-6)
    assert metrics["eval_lm_loss"] == pytest.approx(lm, abs=1e-6)
    assert metrics["eval_loss"] == pytest.approx(task + 0.7 * lm, abs=1e-6)
    assert metrics["eval_lm_weight"] == 0.7
    assert ("eval_forward_loss" in metrics) == (kind == "elmo")
    assert "eval_perplexity" not in metrics


def test_metrics_see_every_prediction(tmp_path):
    seen = {}

    def count(predicted):
        seen["logits"], seen["labels"] = predicted.predictions, predicted.label_ids
        return {"rows": len(predicted.label_ids)}

    trainer = make_trainer(tmp_path, compute_metrics=count)
    metrics = trainer.evaluate()
    assert metrics["eval_rows"] == 7
    assert seen["logits"].shape == (7, 3)
    rows = data("classes", 7)
    assert seen["labels"].tolist() == [row["labels"] for row in rows]
    whole = batch("gpt2", "classes", [row["texts"] for row in rows], [row["labels"] for row in rows])
    torch.testing.assert_close(
        torch.tensor(seen["logits"]), trainer.model(**whole).logits.detach(), check_dtype=False
    )
    assert metrics["eval_loss"] > metrics["eval_task_loss"] > 0
    predictions = trainer.predict(trainer.eval_dataset)
    assert predictions.metrics["test_task_loss"] == metrics["eval_task_loss"]


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]),
        ("warm-up", [0, 0.25, 0.5, 0.75]),
        (lambda progress: 2.0 if progress >= 0.5 else 0.0, [0, 0, 2, 2]),
    ],
)
def test_schedules_of_lambda(schedule, factors, tmp_path):
    trainer = make_trainer(tmp_path, size=4, max_steps=4, lm_loss_weight=0.6, lm_weight_schedule=schedule)
    trainer.train()
    records = [record for record in trainer.state.log_history if "loss" in record]
    for record, factor in zip(records, factors, strict=True):
        assert record["lm_weight"] == pytest.approx(0.6 * factor)
        assert ("lm_loss" in record) == (factor > 0)  # nothing is computed for nothing
        lm_loss = record.get("lm_loss", 0.0)
        assert record["loss"] == pytest.approx(record["task_loss"] + 0.6 * factor * lm_loss, abs=1e-5)
    assert trainer.model.config.lm_loss_weight == 0.6
    assert trainer.evaluate()["eval_lm_weight"] == 0.6


def test_lambda_zero_logs_the_task_alone(tmp_path):
    trainer = make_trainer(tmp_path, lm_loss_weight=0)
    trainer.model.get_output_embeddings().forward = None
    trainer.train()
    record = trainer.state.log_history[0]
    assert record["loss"] == pytest.approx(record["task_loss"], abs=1e-5)
    assert record["lm_weight"] == 0
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == metrics["eval_task_loss"]
    assert "eval_lm_loss" not in metrics


def test_options_that_would_bypass_the_loss(tmp_path):
    with pytest.raises(
        ValueError, match="label_smoothing_factor and compute_loss_func replace the model's loss"
    ):
        make_trainer(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(
        ValueError, match=r"lm_weight_schedule must be one of \['constant', 'cosine'.*found 'square'"
    ):
        make_trainer(tmp_path, lm_weight_schedule="square")
    assert set(LM_WEIGHT_SCHEDULES) == {"constant", "linear", "cosine", "warm-up"}


# Staying close to a frozen language model


def other_lm(kind):
    """A language model that differs from `joint(kind)`'s."""
    model = language_model(kind).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("lm_weight", [0.5, 0.0])
@pytest.mark.parametrize(
    ("kind", "head", "reduction"),
    [
        ("gpt2", "classes", "example"),
        ("gpt2", "classes", "token"),
        ("llama", "choices", "token"),
        ("bert", "similarity", "example"),
        ("bert", "classes", "token"),
        ("lstm-lm", "classes", "token"),
    ],
)
def test_the_third_term_is_the_twins(kind, head, reduction, lm_weight, tmp_path):
    """Value and gradient, of a batch in parts, with lambda and without."""
    options = {"lm_loss_weight": lm_weight, "lm_loss_reduction": reduction, "frozen_lm": other_lm(kind)}
    trainer = make_trainer(tmp_path, kind, head, 2, 2, max_steps=1, kl_weight=0.7, **options)
    trainer.train()
    model, rows = joint(kind, head, lm_loss_weight=lm_weight, lm_loss_reduction=reduction), data(head)[:4]
    texts, labels = [row["texts"] for row in rows], [row["labels"] for row in rows]
    task = naive_task_loss(model, kind, head, texts, labels)
    lm = naive_lm_loss(model, kind, texts)
    divergence = naive_divergence(model, options["frozen_lm"], kind, texts)
    loss = task + lm_weight * lm + 0.7 * divergence
    loss.backward()
    expected = {n: (p if p.grad is None else p - 0.1 * p.grad).detach() for n, p in model.named_parameters()}
    assert far({n: p.detach() for n, p in trainer.model.named_parameters()}, expected) < 1e-6
    record = trainer.state.log_history[0]
    for name, part in (("loss", loss), ("task_loss", task), ("lm_loss", lm), ("kl_loss", divergence)):
        assert record[name] == pytest.approx(part.item(), abs=1e-5), name
    assert divergence.item() > 0.01
    assert record["lm_weight"] == lm_weight


def test_the_third_term_in_evaluation(tmp_path):
    seen = []

    def count(predicted):
        seen.append(predicted.predictions.shape)
        return {}

    frozen = other_lm("gpt2")
    options = {"kl_weight": 0.7, "frozen_lm": frozen, "compute_metrics": count}
    for weight in (0.5, 0.0):
        trainer = make_trainer(tmp_path, lm_loss_weight=weight, lm_loss_reduction="token", **options)
        metrics = trainer.evaluate()
        texts = [row["texts"] for row in data("classes", 7)]
        expected = naive_divergence(trainer.model, frozen, "gpt2", texts).item()
        assert metrics["eval_kl_loss"] == pytest.approx(expected, abs=1e-6)
        parts = metrics["eval_task_loss"] + weight * metrics["eval_lm_loss"] + 0.7 * expected
        assert metrics["eval_loss"] == pytest.approx(parts, abs=1e-6)
    assert seen == [(7, 3)] * 2  # no part of the loss is a prediction


def test_by_default_the_model_stays_close_to_its_own_beginning(tmp_path):
    far_off = {}
    for weight in (0.0, 1e-9, 5.0):
        trainer = make_trainer(
            tmp_path, kl_weight=weight, max_steps=4, lm_loss_weight=0.0, learning_rate=0.01
        )
        start = copy.deepcopy(trainer.model.language_model)
        trainer.train()
        logs = [record for record in trainer.state.log_history if "loss" in record]
        if not weight:
            assert "kl_loss" not in logs[0]
            assert "lm_loss" not in logs[0]
        else:
            assert logs[0]["kl_loss"] == pytest.approx(0, abs=1e-7)
            frozen = trainer._frozen.frozen
            assert all(
                torch.equal(one, two)
                for one, two in zip(start.parameters(), frozen.parameters(), strict=True)
            )
            far_off[weight] = logs[-1]["kl_loss"]
        assert not trainer.model._forward_hooks
        assert not trainer.model.language_model._forward_hooks
    assert far_off[5.0] < 0.8 * far_off[1e-9]


def test_mistakes_about_the_third_term(tmp_path):
    with pytest.raises(ValueError, match="which ELMo's biLM does not return. Use kl_weight=0 with ELMo"):
        make_trainer(tmp_path, "elmo", "tokens", kl_weight=1.0)
    with pytest.raises(ValueError, match="kl_weight must be at least 0, found -1"):
        make_trainer(tmp_path, kl_weight=-1)
    with pytest.raises(ValueError, match="frozen_lm is used by kl_weight alone, found kl_weight=0"):
        make_trainer(tmp_path, frozen_lm=language_model("gpt2"))
    with pytest.raises(ValueError, match=f"the same tokens as the model: it has 50, the model {VOCAB}"):
        make_trainer(tmp_path, frozen_lm=language_model("gpt2", vocab_size=50), kl_weight=1.0)


# Rates by layer


def test_rates_of_layers(tmp_path):
    """One step of plain gradient descent shows each layer's rate; decay and Trainer's log follow."""
    options = {"max_steps": 1, "layer_lr_decay": 0.5, "weight_decay": 0.1}
    moved = []
    for changes in ({}, {"layer_lr_decay": None, "weight_decay": 0.0}):
        trainer = make_trainer(tmp_path, **options | changes)
        start = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        moved.append({n: p.detach() - start[n] for n, p in trainer.model.named_parameters()})
        assert trainer.state.log_history[0]["learning_rate"] == 0.1
    decayed = trainer.get_decay_parameter_names(trainer.model)
    for depth, (_, names) in enumerate(reversed(layer_groups(trainer.model))):
        for name in names:
            shrunk = 0.1 * 0.1 * start[name] if name in decayed else 0
            torch.testing.assert_close(
                moved[0][name], 0.5**depth * (moved[1][name] - shrunk), rtol=0, atol=1e-7
            )


def test_rates_of_layers_with_another_optimizer(tmp_path):
    kind = (OpenAIAdam, {"lr": 1.0, "betas": (0.8, 0.9)})
    optimizer = make_trainer(tmp_path, layer_lr_decay=0.5, optimizer_cls_and_kwargs=kind).create_optimizer()
    assert isinstance(optimizer, OpenAIAdam)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.0125, 0.025, 0.05, 0.1]
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\], found 2"):
        make_trainer(tmp_path, layer_lr_decay=2)
    made = openai_optimizers(joint("gpt2"), 10)
    with pytest.raises(ValueError, match="the optimizer that Trainer makes, found one in `optimizers`"):
        make_trainer(tmp_path, layer_lr_decay=0.5, optimizers=made)


@pytest.mark.parametrize("reduction", ["token", "example"])
def test_two_processes_change_nothing(reduction, tmp_path):
    """Seven evaluation rows for two processes with batches of three: some rows are repeated, and must not count.

    The one with a frozen language model and gradual unfreezing too.
    """
    kl_weight = 0.0 if reduction == "token" else 2.0
    extra = {"lm_loss_reduction": reduction, "kl_weight": kl_weight}
    code = f"""
options = dict({extra!r}, ddp_backend="gloo")
options["callbacks"] = [suite.GradualUnfreezing(every_steps=1)] if {kl_weight} else []
options["compute_metrics"] = lambda predicted: {{"rows": len(predicted.label_ids)}}
trainer = suite.make_trainer(folder, "bert", "choices", 2, 2, **options)
trainer.train()
metrics = trainer.evaluate()
if trainer.is_world_process_zero():
    logs = [record for record in trainer.state.log_history if "loss" in record]
    weights = {{name: p.detach() for name, p in trainer.model.named_parameters()}}
    torch.save({{"weights": weights, "logs": logs, "eval": metrics}}, folder / "result")
"""
    run_in_two_processes(__file__, tmp_path, code)
    two = torch.load(tmp_path / "result", weights_only=True)
    extra["callbacks"] = [GradualUnfreezing(every_steps=1)] if kl_weight else []
    one = make_trainer(tmp_path / "one", "bert", "choices", 8, 1, **extra)
    one.train()
    assert far(two["weights"], {name: p.detach() for name, p in one.model.named_parameters()}) < 1e-6
    logs = [record for record in one.state.log_history if "loss" in record]
    for ours, whole in zip(two["logs"], logs, strict=True):
        for part in ("loss", "task_loss", "lm_loss", *(["kl_loss"] if kl_weight else [])):
            assert ours[part] == pytest.approx(whole[part], abs=1e-5)
    metrics = one.evaluate()
    for name in ("eval_loss", "eval_task_loss", "eval_lm_loss", *(["eval_kl_loss"] if kl_weight else [])):
        assert two["eval"][name] == pytest.approx(metrics[name], abs=1e-6)
    assert two["eval"]["eval_rows"] == 7


def test_the_stock_trainer_reads_the_signature(tmp_path):
    trainer = make_trainer(tmp_path, trainer=Trainer)
    assert trainer.label_names == ["labels"]
    assert trainer.model_accepts_loss_kwargs
    assert trainer.model.config.get_text_config().vocab_size == VOCAB
