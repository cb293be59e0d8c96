"""Distillation: the twin's losses and gradients, a frozen teacher, means that no accumulation changes, and clear errors."""

import copy

import pytest
import torch
from reference import distillation_naive as naive
from stock_lms import fuzz
from stock_pretraining_models import COMMON, STILL, WORDS, batch_of, collator_of, make, rows_of
from transformers import BertConfig, BertForMaskedLM, TrainingArguments

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.training.distillation import Distillation, DistillationLosses, DistillationTrainer

PAIRS = {"bert": "bert", "distilbert": "bert", "gpt2": "gpt2", "bert pairs": "bert pairs"}
FIRST = {"gpt2": "lm_loss"}


def teacher_of(name):
    return fuzz(make(PAIRS[name]))  # away from a student that was made alike


def gradients(model):
    found = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    return found


def differs(one, other, tolerance=1e-6):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one) > tolerance


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2"])
def test_losses_and_gradients_are_the_twins(name):
    student, teacher, batch = make(name).double(), teacher_of(name).double(), batch_of(name)
    batch.pop("token_type_ids", None)
    means = naive.step_loss(student, teacher, batch, name == "gpt2", 3.0)
    expected_loss = 4 * means["kl_loss"] + 0.5 * means["hard"] + 2 * means["cosine_loss"]
    expected_loss.backward()
    expected = gradients(student)
    how = Distillation(temperature=3.0, kl_weight=4.0, hard_weight=0.5, cosine_weight=2.0)
    for gather in (True, False):
        found = DistillationLosses(student, teacher, how, gather=gather)(**batch)
        assert found.kl_loss.item() == pytest.approx(means["kl_loss"].item(), abs=1e-6)
        assert found[FIRST.get(name, "mlm_loss")].item() == pytest.approx(means["hard"].item(), abs=1e-6)
        assert found.cosine_loss.item() == pytest.approx(means["cosine_loss"].item(), abs=1e-6)
        assert found.loss.item() == pytest.approx(expected_loss.item(), abs=1e-6)
        found.loss.backward()
        assert not differs(gradients(student), expected)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_squares_of_logits_are_the_twins(name):
    student, teacher, batch = make(name).double(), teacher_of(name).double(), batch_of(name)
    batch.pop("token_type_ids", None)
    mse = naive.mean_square(student, teacher, batch, name == "gpt2")
    mse.backward()
    expected = gradients(student)
    how = Distillation(temperature=7.0, kl_weight=0, hard_weight=0, cosine_weight=0, mse_weight=1.0)
    losses = DistillationLosses(student, teacher, how)
    found = losses(**batch)
    assert found.loss.item() == found.mse_loss.item() == pytest.approx(mse.item(), rel=1e-9)
    found.loss.backward()
    own = gradients(student)
    assert not differs({key: own[key] for key in expected}, expected)
    assert losses.parts == (FIRST.get(name, "mlm_loss"), "kl_loss", "mse_loss")
    parts = [{key: value[start : start + 3] for key, value in batch.items()} for start in (0, 3, 6)]
    counts = sum(losses.count(part) for part in parts)
    summed = sum(losses(**part, num_items_in_batch=counts).mse_loss.item() for part in parts)
    assert summed == pytest.approx(mse.item(), rel=1e-9)
    every = DistillationLosses(student, teacher, Distillation(mse_weight=0.5))
    assert every.parts[1:] == ("kl_loss", "mse_loss", "cosine_loss")
    assert every.weights == (2.0, 5.0, 0.5, 1.0)
    assert every.count(batch)[-1] == batch["attention_mask"].sum()


@pytest.mark.parametrize("name", ["bert", "gpt2", "bert pairs"])
def test_parts_sum_to_the_step(name):
    student, teacher, batch = make(name).double(), teacher_of(name).double(), batch_of(name)
    losses = DistillationLosses(student, teacher)
    whole = losses(**batch)
    whole.loss.backward()
    expected = gradients(student)
    for size in (1, 3):
        rows = len(batch["input_ids"])
        parts = [
            {key: value[start : start + size] for key, value in batch.items()}
            for start in range(0, rows, size)
        ]
        counts = sum(losses.count(part) for part in parts)
        assert counts.tolist() == losses.count(batch).tolist()
        assert counts[-1] == batch["attention_mask"].sum()
        outputs = [losses(**part, num_items_in_batch=counts) for part in parts]
        sum(output.loss for output in outputs).backward()
        assert not differs(gradients(student), expected)
        assert sum(output.kl_loss.item() for output in outputs) == pytest.approx(
            whole.kl_loss.item(), abs=1e-6
        )


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    student = make("bert").double()
    found = DistillationLosses(student, copy.deepcopy(student), Distillation(hard_weight=0.0))(
        **batch_of("bert")
    )
    assert found.kl_loss.item() == pytest.approx(0, abs=1e-9)
    assert found.cosine_loss.item() == pytest.approx(0, abs=1e-9)
    found.loss.backward()
    assert max(value.abs().max().item() for value in gradients(student).values()) < 1e-9


def test_the_gradient_keeps_its_size_at_high_temperatures():
    sizes = []
    for temperature in (50.0, 100.0, 200.0):
        student = make("bert").double()
        how = Distillation(temperature, kl_weight=1.0, hard_weight=0.0, cosine_weight=0.0)
        DistillationLosses(student, teacher_of("bert").double(), how)(**batch_of("bert")).loss.backward()
        sizes.append(sum(value.pow(2).sum() for value in gradients(student).values()).sqrt().item())
    assert sizes[1] == pytest.approx(sizes[0], rel=0.1)
    assert sizes[2] == pytest.approx(sizes[1], rel=0.05)


def test_a_batch_without_targets_has_a_finite_loss():
    batch = batch_of("bert")
    batch["labels"] = torch.full_like(batch["labels"], -100)
    found = DistillationLosses(make("bert"), teacher_of("bert"))(**batch)
    assert found.kl_loss.item() == found.mlm_loss.item() == 0
    assert found.loss.item() == found.cosine_loss.item() > 0


def trainer_of(folder, name, size, accumulate, **more):
    student = more.pop("model", None) or make(name)
    arguments = {
        "output_dir": str(folder),
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": 3,
        "gradient_accumulation_steps": accumulate,
        "max_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return DistillationTrainer(
        student,
        TrainingArguments(**arguments),
        train_dataset=rows_of(name),
        eval_dataset=rows_of(name),
        data_collator=collator_of(name),
        **{"teacher": teacher_of(name)} | more,
    )


class OwnMasks:
    """The same masks for a row whatever its batch is, so that steps can be compared."""

    def __init__(self, name):
        self.whole, self.rows = batch_of(name), rows_of(name)

    def __call__(self, rows):
        numbers = [
            next(n for n, row in enumerate(self.rows) if row["input_ids"] == one["input_ids"]) for one in rows
        ]
        return {key: value[numbers] for key, value in self.whole.items()}


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_accumulation_changes_nothing(name, tmp_path):
    weights, logs, evaluated = [], [], []
    for size, accumulate in ((8, 1), (2, 4)):
        trainer = trainer_of(tmp_path, name, size, accumulate)
        trainer.data_collator = OwnMasks(name)
        before = {key: value.clone() for key, value in trainer.stock.teacher.model.state_dict().items()}
        evaluated.append(trainer.evaluate())
        trainer.train()
        after = trainer.stock.teacher.model.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        weights.append({key: value.detach() for key, value in trainer.model.named_parameters()})
        logs.append(trainer.state.log_history[-2])
    assert not differs(*weights, tolerance=1e-5)
    hard = FIRST.get(name, "mlm_loss")
    for part in ("loss", "kl_loss", "cosine_loss", hard):
        assert logs[0][part] == pytest.approx(logs[1][part], rel=1e-3)
    start = loss_at_the_start(name)
    for record in evaluated:
        assert record["eval_loss"] == pytest.approx(start.loss.item(), rel=1e-4)
        for part in ("kl_loss", "cosine_loss", hard):
            assert record[f"eval_{part}"] == pytest.approx(start[part].item(), rel=1e-4)
        assert record["eval_perplexity"] == pytest.approx(start[hard].exp().item(), rel=1e-3)


def loss_at_the_start(name):
    return DistillationLosses(make(name), teacher_of(name))(**batch_of(name))


def test_only_the_student_is_saved(tmp_path):
    trainer = trainer_of(tmp_path, "bert", 8, 1)
    trainer.save_model(str(tmp_path / "out"))
    loaded = BertForMaskedLM.from_pretrained(tmp_path / "out")
    assert all(
        torch.equal(value, loaded.state_dict()[key]) for key, value in trainer.model.state_dict().items()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0}, "temperature must be positive, found 0"),
        ({"kl_weight": -1.0}, "must be 0 or more, and not all 0"),
        ({"kl_weight": 0, "hard_weight": 0, "cosine_weight": 0}, "not all 0, found"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        Distillation(**options)


def test_models_that_do_not_fit(tmp_path):
    bert, wide = make("bert"), COMMON | STILL | {"hidden_size": 24}
    larger = fuzz(BertForMaskedLM(BertConfig(**wide)))
    with pytest.raises(ValueError, match=r"same hidden_size, found 16 and 24. Set cosine_weight=0"):
        DistillationLosses(bert, larger)
    losses = DistillationLosses(bert, larger, Distillation(cosine_weight=0.0))
    assert losses.parts == ("mlm_loss", "kl_loss")
    found = losses(**batch_of("bert"))
    assert found.cosine_loss is None
    assert found.loss.isfinite()
    other = fuzz(BertForMaskedLM(BertConfig(**COMMON | STILL | {"vocab_size": WORDS + 1})))
    with pytest.raises(ValueError, match=r"same vocab_size, found 60 and 61. Take a teacher"):
        DistillationLosses(bert, other)
    with pytest.raises(ValueError, match="found a student BertForMaskedLM and a teacher GPT2LMHeadModel"):
        DistillationLosses(bert, make("gpt2"))
    with pytest.raises(ValueError, match="two masked or two causal language models"):
        DistillationLosses(make("bart"), make("bart"))
    with pytest.raises(ValueError, match=r"one object, .* Pass copy.deepcopy"):
        DistillationLosses(bert, bert)
    lstm = LstmLMForCausalLM(LstmLMConfig(vocab_size=WORDS, embedding_size=4, cell_size=4))
    with pytest.raises(ValueError, match="stock masked and causal language models, found LstmLMForCausalLM"):
        trainer_of(tmp_path, "gpt2", 8, 1, model=lstm)
