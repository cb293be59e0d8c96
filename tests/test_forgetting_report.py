"""The forgetting report: exact means by the plain reference, the same masks each time, and files that say the same."""

import json
import math
from pathlib import Path

import pytest
import torch
from reference.joint_loss_naive import (
    VOCAB,
    batch,
    examples,
    joint,
    language_model,
    naive_lm_loss,
    target_row,
    tokenizer,
)
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification, Trainer, TrainerState, TrainingArguments

from heirloom.training.forgetting_report import ForgettingReport, lm_loss, records_of
from heirloom.training.joint_trainer import JointLossTrainer
from heirloom.training.plots import plot_forgetting

TEXTS, LABELS = examples("classes", 7)
ROWS = [row for rows in TEXTS for row in rows]
OTHER = [[5, 6, 7], [8], [9, 10, 11, 12]]


def collate(rows, kind="gpt2"):
    return batch(kind, "classes", [rows for rows, _ in rows], [label for _, label in rows])


def train(
    folder, report, kind="gpt2", resume=None, processing_class=None, trainer=JointLossTrainer, **options
):
    options = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "learning_rate": 0.05,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "remove_unused_columns": False,
    } | options
    data = list(zip(TEXTS, LABELS, strict=True))
    made = trainer(
        joint(kind, dtype=torch.float32, lm_loss_weight=0.0 if kind == "bert" else 0.5),
        TrainingArguments(**options),
        lambda rows: collate(rows, kind),
        train_dataset=data,
        eval_dataset=data,
        processing_class=processing_class,
        callbacks=[report],
    )
    made.train(resume)
    return made


def begin(report, model, words=None):
    """What the report records before the first step."""
    state = TrainerState()
    report.on_train_begin(None, state, None, model=model, processing_class=words)
    return state.log_history


@pytest.mark.parametrize("kind", ["gpt2", "llama", "lstm-lm", "elmo"])
def test_the_mean_is_exact(kind):
    """Of rows with very different lengths in batches, and by each token whatever the model's own reduction is."""
    model = joint(kind, **({} if kind == "elmo" else {"lm_loss_reduction": "token"}))
    expected = naive_lm_loss(model, kind, TEXTS).item()
    if kind != "elmo":
        model.config.lm_loss_reduction = "example"
    batches = [
        batch(kind, "classes", TEXTS[start : start + 3], LABELS[start : start + 3]) for start in (0, 3, 6)
    ]
    loss, count = lm_loss(model.train(), batches)
    assert loss == pytest.approx(expected, abs=1e-6)
    assert count == sum(map(len, ROWS)) + (len(ROWS) if kind == "elmo" else -len(ROWS))
    assert model.training
    assert lm_loss(model.language_model, batches)[0] == pytest.approx(expected, abs=1e-6)
    second = [{"input_ids": torch.tensor([[4]]), "lm_input_ids": b["input_ids"], "lm_attention_mask": b["attention_mask"]} for b in batches]  # fmt: skip
    assert lm_loss(model, second)[0] == pytest.approx(expected, abs=1e-6)


def test_a_masked_models_targets_count():
    model = joint("bert", lm_loss_reduction="token")
    batches = [
        batch("bert", "classes", TEXTS[start : start + 3], LABELS[start : start + 3]) for start in (0, 3, 6)
    ]
    loss, count = lm_loss(model, batches)
    assert loss == pytest.approx(naive_lm_loss(model, "bert", TEXTS).item(), abs=1e-6)
    assert count == sum(target != -100 for row in ROWS for target in target_row("bert", row))


def test_a_run_is_reported(tmp_path):
    data = list(zip(TEXTS, LABELS, strict=True))
    report = ForgettingReport(
        {"task": DataLoader(data, 3, collate_fn=collate), "general": OTHER}, batch_size=2
    )
    trainer = train(tmp_path, report)
    records = records_of(trainer.state.log_history)
    assert [record["step"] for record in records] == [0, 2, 4]
    fresh = joint("gpt2", dtype=torch.float32, lm_loss_reduction="token")
    rows = [[row] for row in OTHER if len(row) > 1]
    for model, record in ((fresh, records[0]), (trainer.model, records[-1])):
        model.config.lm_loss_reduction = "token"
        losses = [naive_lm_loss(model.eval(), "gpt2", texts).item() for texts in (TEXTS, rows)]
        assert record["forgetting_task_lm_loss"] == pytest.approx(losses[0], abs=1e-4)
        assert record["forgetting_general_lm_loss"] == pytest.approx(losses[1], abs=1e-4)
    first, last = records[0], records[-1]
    assert first["forgetting_task_lm_loss_change"] == 0
    for name in ("task", "general"):
        key = f"forgetting_{name}_lm_loss"
        assert last[f"{key}_change"] == last[key] - first[key]
    assert last["forgetting_task_lm_loss_change"] < -0.2  # trained on it
    written = json.loads((tmp_path / "forgetting.json").read_text())
    assert written["records"] == records
    assert written["texts"]["general"]["tokens"] == 5
    assert written["texts"]["task"]["after"] == last["forgetting_task_lm_loss"]
    table = (tmp_path / "forgetting.md").read_text()
    line = "| task | {} | {:.3f} | {:.3f} | {:+.3f} |"
    numbers = [first["forgetting_task_lm_loss"], last["forgetting_task_lm_loss"]]
    assert line.format(written["texts"]["task"]["tokens"], *numbers, numbers[1] - numbers[0]) in table
    assert "nats a token, before training and after step 4" in table
    assert (tmp_path / "forgetting.png").read_bytes()[:4] == b"\x89PNG"
    figure = plot_forgetting(records)
    lines = {line.get_label(): line.get_ydata()[-1] for line in figure.axes[0].get_lines()[1:]}
    assert list(lines) == [
        f"task ({numbers[0]:.2f} before)",
        f"general ({first['forgetting_general_lm_loss']:.2f} before)",
    ]
    assert next(iter(lines.values())) == pytest.approx(numbers[1] - numbers[0])
    with pytest.raises(ValueError, match="found no forgetting_.*_lm_loss in 1 records"):
        plot_forgetting([{"loss": 1.0}])
    trainer.evaluate()  # measures nothing that is known
    assert len(records_of(trainer.state.log_history)) == 3


def test_the_same_tokens_are_hidden_each_time_and_nothing_else_changes(tmp_path):
    words = tokenizer(tmp_path / "words", mask_token="w39", pad_token="<pad>")

    def run(folder, texts):
        report = ForgettingReport(texts)
        return train(tmp_path / folder, report, "bert", processing_class=words, learning_rate=0.0)

    one = run("one", {"general": ROWS})
    records = records_of(one.state.log_history)
    losses = {record["forgetting_general_lm_loss"] for record in records}
    assert len(records) == 3
    assert len(losses) == 1
    assert 0 < losses.pop() < 20
    torch.manual_seed(8)
    again = begin(ForgettingReport({"general": ROWS}), joint("bert", dtype=torch.float32), words)
    assert again[0]["forgetting_general_lm_loss"] == records[0]["forgetting_general_lm_loss"]
    other = begin(ForgettingReport({"general": ROWS}, words, seed=3), joint("bert", dtype=torch.float32))
    assert other[0]["forgetting_general_lm_loss"] != records[0]["forgetting_general_lm_loss"]
    with pytest.raises(ValueError, match=r"needs a tokenizer. Give it one, or Trainer a processing_class"):
        begin(ForgettingReport({"general": ROWS}), joint("bert"))


def test_random_numbers_of_the_training_are_not_touched(tmp_path):
    report = ForgettingReport(
        {"general": DataLoader(list(zip(TEXTS, LABELS, strict=True)), 3, True, collate_fn=collate)}
    )
    losses = []
    for callback in (report, ForgettingReport({"general": OTHER})):
        trainer = train(tmp_path, callback, logging_steps=1)
        losses.append([record["loss"] for record in trainer.state.log_history if "loss" in record])
    assert losses[0] == losses[1]


def test_a_resumed_run_compares_with_its_beginning(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = train(tmp_path, ForgettingReport({"general": OTHER}), **options)
    records = records_of(whole.state.log_history)
    resumed = train(
        tmp_path, ForgettingReport({"general": OTHER}), resume=str(tmp_path / "checkpoint-2"), **options
    )
    found = records_of(resumed.state.log_history)
    assert [record["step"] for record in found] == [0, 2, 4]
    for one, other in zip(found, records, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert json.loads((tmp_path / "forgetting.json").read_text())["texts"]["general"]["tokens"] == 5


def test_mistakes():
    with pytest.raises(ValueError, match="a forgetting report needs texts, found none"):
        ForgettingReport({})
    with pytest.raises(ValueError, match="text 'general' of the forgetting report is empty"):
        ForgettingReport({"general": []})
    report = ForgettingReport({"general": OTHER})
    with pytest.raises(ValueError, match="measures its trainer's model, found none. Give it to Trainer"):
        report.on_train_begin(None, None, None)
    headless = BertForSequenceClassification(language_model("bert").config)
    with pytest.raises(
        ValueError, match="BertForSequenceClassification has no language-model head. Use JointLossFor"
    ):
        lm_loss(headless, [])
    with pytest.raises(ValueError, match="no token to predict in 2 rows. Give rows of at least two"):
        begin(ForgettingReport({"general": [[5], []]}), joint("gpt2"))
    with pytest.raises(ValueError, match="has a row of 30 tokens, but the language model has 24 positions"):
        begin(ForgettingReport({"general": [[5] * 30]}), joint("gpt2"))
    with pytest.raises(ValueError, match=f"has the token id {VOCAB}, expected ids below {VOCAB}"):
        begin(ForgettingReport({"general": [[5, VOCAB]]}), joint("gpt2"))
    with pytest.raises(
        ValueError, match=r"masked language model needs its text and lm_targets, found \['input_ids'\]"
    ):
        lm_loss(joint("bert"), [{"input_ids": torch.tensor([[5, 6]])}])
    with pytest.raises(ValueError, match=r"must have the text's shape \(1, 2\), found \(1, 3\)"):
        lm_loss(
            joint("gpt2"), [{"input_ids": torch.tensor([[5, 6]]), "lm_targets": torch.tensor([[5, 6, 7]])}]
        )
    with pytest.raises(ValueError, match="no token to predict: a causal model predicts none"):
        lm_loss(joint("gpt2"), [{"input_ids": torch.tensor([[5]])}])


def test_a_stock_trainer(tmp_path):
    """The callback needs nothing of our trainer."""
    trainer = train(tmp_path, ForgettingReport({"general": OTHER}), trainer=Trainer, max_steps=1)
    assert [record["step"] for record in records_of(trainer.state.log_history)] == [0, 1]
    assert math.isfinite(
        json.loads(Path(tmp_path, "forgetting.json").read_text())["texts"]["general"]["change"]
    )
