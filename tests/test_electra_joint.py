"""Joint ELECTRA: the twin's losses and gradients, what the discriminator reads, ties, stock checkpoints, errors."""

import json
import os
import subprocess
import sys

import pytest
import torch
from reference import electra_naive as naive
from reference.joint_loss_naive import gradients, largest_difference, pad
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    BertConfig,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    TrainingArguments,
)

from heirloom.modeling import modeling_electra_joint
from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_electra_joint import ElectraJointConfig, generator_of
from heirloom.modeling.modeling_electra_joint import EMBEDDINGS, ElectraForJointPreTraining, draw_tokens
from heirloom.training.stock_pretraining import StockPretrainingTrainer

VOCAB, MASK, POSITIONS = 40, 39, 16
SIZES = {"vocab_size": VOCAB, "embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": POSITIONS}
SIZES |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}


def made(dtype=torch.float64, sizes=None, **options) -> ElectraForJointPreTraining:
    """A tiny pair without dropout, its weights so large that every place matters."""
    torch.manual_seed(3)
    discriminator = ElectraConfig(**SIZES | (sizes or {}))
    options = {"generator_config": generator_of(discriminator, 0.5)} | options
    config = ElectraJointConfig(discriminator_config=discriminator, **options)
    return ElectraForJointPreTraining(config).eval().to(dtype)


def examples(count: int = 5) -> tuple[list[list[int]], list[list[int]]]:
    """Rows of ids of different lengths, some hidden and one chosen but kept; the last row has no target."""
    draw = torch.Generator().manual_seed(5)
    rows, labels = [], []
    for number in range(count):
        row = torch.randint(1, MASK, (5 + 2 * number,), generator=draw).tolist()
        chosen = range(1, len(row), 3) if number < count - 1 else ()
        labels.append([one if place in chosen else -100 for place, one in enumerate(row)])
        rows.append([MASK if place in chosen and place != 4 else one for place, one in enumerate(row)])
    return rows, labels


def batch(rows: list[list[int]], labels: list[list[int]]) -> dict:
    """Keyword arguments of `forward`."""
    width = max(map(len, rows))
    mask = pad([[1] * len(row) for row in rows], 0, width)
    return {"input_ids": pad(rows, 0, width), "attention_mask": mask, "labels": pad(labels, -100, width)}


def unpadded(ids: torch.Tensor, rows: list[list[int]]) -> list[list[int]]:
    return [one[: len(row)].tolist() for one, row in zip(ids, rows, strict=True)]


def most_likely(logits, temperature=1.0):
    """In place of drawing, so that cutting a step changes nothing."""
    return logits.detach().argmax(1)


def test_losses_and_gradients_are_the_twins():
    model, (rows, labels) = made(), examples()
    found = model.train()(**batch(rows, labels))
    loss, mlm, rtd = naive.step_loss(model, rows, labels, unpadded(found.corrupted_ids, rows))
    loss.backward()
    expected = gradients(model)
    assert found.mlm_loss.item() == pytest.approx(mlm.item(), abs=1e-6)
    assert found.rtd_loss.item() == pytest.approx(rtd.item(), abs=1e-6)
    assert found.loss.item() == pytest.approx(mlm.item() + 50 * rtd.item(), abs=1e-5)
    found.loss.backward()
    assert largest_difference(gradients(model), expected) < 1e-6
    assert all(value.abs().max() > 0 for value in expected.values())
    assert found.logits.shape == (5, 13)


def test_parts_sum_to_the_step(monkeypatch):
    """However a step is cut, also where a part has no target: with both counts the gradients are the twin's."""
    monkeypatch.setattr(modeling_electra_joint, "draw_tokens", most_likely)
    model, (rows, labels) = made().train(), examples()
    corrupted = unpadded(model(**batch(rows, labels)).corrupted_ids, rows)
    loss, mlm, rtd = naive.step_loss(model, rows, labels, corrupted)
    loss.backward()
    expected = gradients(model)
    for size in (1, 2, 3):
        parts = [
            batch(rows[start : start + size], labels[start : start + size]) for start in range(0, 5, size)
        ]
        counts = sum(model.count_items(part) for part in parts)
        assert counts.tolist() == [sum(label != -100 for one in labels for label in one), sum(map(len, rows))]
        outputs = [model(**part, num_items_in_batch=counts) for part in parts]
        sum(output.loss for output in outputs).backward()
        assert largest_difference(gradients(model), expected) < 1e-6
        assert sum(output.mlm_loss.item() for output in outputs) == pytest.approx(mlm.item(), abs=1e-6)
        assert sum(output.rtd_loss.item() for output in outputs) == pytest.approx(rtd.item(), abs=1e-6)
        # The stock Trainer knows only the targets: the generator's mean is exact all the same.
        single = [model(**part, num_items_in_batch=counts[0]) for part in parts]
        assert sum(output.mlm_loss.item() for output in single) == pytest.approx(mlm.item(), abs=1e-6)
        assert sum(output.rtd_loss.item() for output in single) == pytest.approx(rtd.item(), rel=0.3)
    assert int(model.count_targets(parts[0])) == int(model.count_items(parts[0])[0])
    first = model.first_rows(parts[0], 1)
    assert first["input_ids"].shape[0] == first["labels"].shape[0] == 1


def test_what_the_discriminator_reads():
    model = made(torch.float32)
    with torch.no_grad():
        model.generator.generator_lm_head.bias[MASK] = -1e4
    ids = torch.randint(1, MASK, (30, 12))
    chosen = torch.rand(ids.shape) < 0.3
    hidden = ids.masked_fill(chosen & (torch.rand(ids.shape) < 0.85), MASK)
    labels = ids.masked_fill(~chosen, -100)
    found = model(input_ids=hidden, labels=labels)
    assert not (found.corrupted_ids == MASK).any()
    assert torch.equal(found.replaced, found.corrupted_ids != ids)
    assert torch.equal(found.corrupted_ids[~chosen], ids[~chosen])
    right = chosen & ~found.replaced
    assert right.any()  # a correct guess counts as original
    assert torch.equal(found.logits, model.discriminator(input_ids=found.corrupted_ids).logits)
    assert not torch.equal(model(input_ids=hidden, labels=labels).corrupted_ids, found.corrupted_ids)
    assert torch.equal(model(input_ids=ids).logits, model.discriminator(input_ids=ids).logits)


def test_no_gradient_goes_through_the_drawing():
    model, (rows, labels) = made(), examples()
    found = model(**batch(rows, labels))
    own = [p for name, p in model.generator.named_parameters() if "embeddings." not in name]
    assert len(own) > 20
    assert all(grad is None for grad in torch.autograd.grad(found.rtd_loss, own, allow_unused=True))


def test_drawing_follows_the_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5])
    for temperature in (1.0, 2.0):
        drawn = draw_tokens(logits.expand(20000, 5), temperature)
        expected = (logits / temperature).softmax(0).tolist()
        assert abs(naive.chi_square(torch.bincount(drawn, minlength=5).tolist(), expected)) < 4
    assert naive.chi_square(torch.bincount(drawn, minlength=5).tolist(), logits.softmax(0).tolist()) > 100
    assert draw_tokens(torch.zeros(0, 5)).tolist() == []


def test_new_pairs_are_fooled_rarely():
    """A new generator draws evenly, so of 15 per cent of the tokens all but one in V are replaced."""
    model = made(torch.float32, sizes={"initializer_range": 0.02})
    ids = torch.randint(0, VOCAB, (100, 16))
    labels = ids.masked_fill(torch.rand(ids.shape) >= 0.15, -100)
    found = model(input_ids=ids.masked_fill(labels != -100, MASK), labels=labels)
    assert found.replaced.float().mean().item() == pytest.approx(0.15 * (1 - 1 / VOCAB), abs=0.025)
    assert found.mlm_loss.item() == pytest.approx(torch.tensor(float(VOCAB)).log().item(), abs=0.05)
    assert found.rtd_loss.item() == pytest.approx(0.6931, abs=0.05)


def test_a_batch_without_targets_has_a_finite_loss():
    model = made().train()
    ids = torch.tensor([[5, 6, 7]])
    found = model(input_ids=ids, labels=torch.full_like(ids, -100))
    assert found.mlm_loss.item() == 0
    assert found.loss.item() == pytest.approx(50 * found.rtd_loss.item())
    assert torch.equal(found.corrupted_ids, ids)
    found.loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


def shared_tables(model) -> int:
    """How many of the generator's tensors are the discriminator's."""
    pairs = [("generator_lm_head.weight", f"electra.embeddings.{EMBEDDINGS[0]}")]
    pairs += [(f"electra.embeddings.{name}", f"electra.embeddings.{name}") for name in EMBEDDINGS]
    return sum(
        model.generator.get_parameter(mine) is model.discriminator.get_parameter(other)
        for mine, other in pairs
    )


def test_round_trip_and_stock_checkpoints(tmp_path):
    model, (rows, labels) = made(torch.float32), examples()
    assert shared_tables(model) == 6
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()(**batch(rows, labels)).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path / "pair")
    names = set(load_file(tmp_path / "pair" / "model.safetensors"))
    assert len(names) == len(model.state_dict()) - 6
    loaded, report = AutoModelForPreTraining.from_pretrained(tmp_path / "pair", output_loading_info=True)
    assert type(loaded) is ElectraForJointPreTraining
    assert not any(report.values())
    assert shared_tables(loaded) == 6
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    saved = json.loads((tmp_path / "pair" / "config.json").read_text())
    assert saved["architectures"] == ["ElectraForJointPreTraining"]
    assert saved["auto_map"] == AUTO_MAP["electra-joint"]
    assert (tmp_path / "pair" / "several_losses.py").is_file()
    ids = torch.tensor([[5, 6, 7]])
    for part, stock in (("discriminator", ElectraForPreTraining), ("generator", ElectraForMaskedLM)):
        getattr(loaded, part).save_pretrained(tmp_path / part)
        alone, report = stock.from_pretrained(tmp_path / part, output_loading_info=True)
        assert not any(report.values())
        torch.testing.assert_close(alone(ids).logits, getattr(model, part)(ids).logits)
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path / "discriminator")) is ElectraForPreTraining
    again = ElectraForJointPreTraining.from_electra_pretrained(
        tmp_path / "discriminator", tmp_path / "generator", discriminator_weight=20.0
    )
    assert shared_tables(again) == 6
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert again.loss_weights() == (1.0, 20.0)


def test_resizing_keeps_ties(tmp_path):
    model, ids = made(torch.float32), torch.tensor([[5, 6, 7]])
    before = model(ids).logits, model.generator(ids).logits
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    torch.testing.assert_close(model(ids).logits, before[0])
    torch.testing.assert_close(model.generator(ids).logits[..., :VOCAB], before[1])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    for one in (model, loaded):
        assert shared_tables(one) == 6
        assert (
            one.config.discriminator_config.vocab_size == one.config.generator_config.vocab_size == VOCAB + 3
        )
        assert one.generator.generator_lm_head.bias.shape == (VOCAB + 3,)
        assert one(torch.tensor([[VOCAB + 2]]), labels=torch.tensor([[VOCAB + 2]])).loss.isfinite()


def test_an_untied_pair(tmp_path):
    wide = generator_of(ElectraConfig(**SIZES | {"embedding_size": 12}), 2.0)
    model = made(torch.float32, generator_config=wide, tie_word_embeddings=False)
    assert shared_tables(model) == 0
    table = model.generator.get_input_embeddings().weight
    assert model.generator.get_output_embeddings().weight is table  # its own config's tie
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert loaded.generator.electra.embeddings.word_embeddings.weight.shape == (VOCAB, 12)


def test_generators_of_the_paper():
    found = [
        (one.hidden_size, one.num_attention_heads, one.intermediate_size, one.num_hidden_layers)
        for one in (
            generator_of(ElectraConfig()),
            generator_of(ElectraConfig(hidden_size=768, num_attention_heads=12), 1 / 3),
            generator_of(ElectraConfig(hidden_size=1024, num_hidden_layers=24), 0.25),
        )
    ]
    assert found == [(64, 1, 256, 12), (256, 4, 1024, 12), (256, 4, 1024, 24)]
    config = ElectraJointConfig()
    assert config.generator_config.hidden_size == 64
    assert config.get_text_config() is config.discriminator_config
    mine = ElectraConfig(**SIZES)
    model = ElectraForJointPreTraining(ElectraJointConfig(discriminator_config=mine))
    model.resize_token_embeddings(VOCAB + 1)
    assert mine.vocab_size == VOCAB


def test_configs_go_round(tmp_path):
    config = ElectraJointConfig(
        discriminator_config=SIZES, generator_config=SIZES | {"hidden_size": 8}, temperature=0.5
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is ElectraJointConfig
    assert (loaded.generator_config.hidden_size, loaded.temperature) == (8, 0.5)
    assert loaded.discriminator_config.to_dict() == config.discriminator_config.to_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"generator_config": SIZES | {"vocab_size": 41}},
            "vocab_size of generator and discriminator must be equal, found 41 and 40. The discriminator reads",
        ),
        (
            {"generator_config": SIZES | {"embedding_size": 16}},
            "embedding_size of .* must be equal, found 16 and 8. Give both the same, or set tie_word_embeddings=False",
        ),
        (
            {"generator_config": SIZES | {"max_position_embeddings": 8}},
            "max_position_embeddings of .* found 8 and 16",
        ),
        ({"generator_config": SIZES | {"vocab_size": 41}, "tie_word_embeddings": False}, "found 41 and 40"),
        ({"generator_config": BertConfig()}, "must be ELECTRA models, found 'bert'"),
        ({"generator_config": SIZES | {"is_decoder": True}}, "found is_decoder=True"),
        ({"discriminator_weight": 0}, "discriminator_weight must be positive, found 0"),
        ({"temperature": 0.0}, "temperature must be positive, found 0.0"),
    ],
)
def test_bad_configs(options, words):
    with pytest.raises(Exception, match=words):
        ElectraJointConfig(discriminator_config=SIZES, **options)


def test_a_generator_of_nothing():
    with pytest.raises(ValueError, match="at least one unit and one layer, found 0 and 2 from size=0.01"):
        generator_of(ElectraConfig(**SIZES), 0.01)
    larger = ElectraJointConfig(discriminator_config=SIZES, generator_config=SIZES | {"hidden_size": 32})
    assert larger.generator_config.hidden_size == 32  # odd, but allowed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": None}, "needs input_ids .* found none"),
        ({"input_ids": torch.full((5, 13), VOCAB)}, "input_ids must lie in 0..39, found 40..40"),
        ({"input_ids": torch.ones(5, 17).long()}, "have 16 positions, found rows of 17. Cut them"),
        ({"labels": torch.full((5, 13), VOCAB)}, "labels must lie in 0..39, found 40..40"),
        ({"labels": torch.ones(5).long()}, r"labels must be the original ids .* found \(5,\)"),
        ({"labels": torch.ones(5, 13).long()}, "labels must be -100 at padding, found 20 targets"),
        ({"labels": None}, "training needs labels"),
        ({"attention_mask": torch.ones(5, 4)}, "attention_mask must be"),
        ({"token_type_ids": torch.full((5, 13), 2)}, "token_type_ids must lie in 0..1"),
        ({"num_items_in_batch": torch.ones(3)}, r"must hold 2 numbers, .* found shape \(3,\)"),
    ],
)
def test_bad_batches(changes, words):
    with pytest.raises(ValueError, match=words):
        made(torch.float32).train()(**batch(*examples()) | changes)


def test_training_in_accumulated_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(modeling_electra_joint, "draw_tokens", most_likely)
    rows, labels = examples(4)
    data = [
        {"input_ids": row, "labels": label, "attention_mask": [1] * len(row)}
        for row, label in zip(rows, labels, strict=True)
    ]
    weights, logs, metrics = [], [], []
    for size in (4, 1):
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=size, per_device_eval_batch_size=3, gradient_accumulation_steps=4 // size, max_steps=3,
            learning_rate=1e-4, optim="sgd", max_grad_norm=0, logging_steps=1, report_to=[], use_cpu=True,
            save_strategy="no", remove_unused_columns=False, disable_tqdm=True,
        )  # fmt: skip
        trainer = StockPretrainingTrainer(
            made(),
            arguments,
            train_dataset=data,
            eval_dataset=data,
            data_collator=lambda some: batch(
                *([one[key] for one in some] for key in ("input_ids", "labels"))
            ),
        )
        trainer.train()
        weights.append({name: value.detach().clone() for name, value in trainer.model.named_parameters()})
        logs.append([log for log in trainer.state.log_history if "loss" in log])
        metrics.append(trainer.evaluate())
    assert largest_difference(*weights) < 1e-7
    assert logs[0][0]["loss"] == pytest.approx(logs[0][0]["mlm_loss"] + 50 * logs[0][0]["rtd_loss"], rel=1e-3)
    assert logs[1][2]["rtd_loss"] == pytest.approx(logs[0][2]["rtd_loss"], rel=1e-4)
    assert logs[0][2]["loss"] < logs[0][0]["loss"]
    whole = trainer.model(**batch(rows, labels))
    for found in metrics:
        for part in ("loss", "mlm_loss", "rtd_loss"):
            assert found[f"eval_{part}"] == pytest.approx(whole[part].item(), rel=1e-5)


@pytest.mark.slow
def test_a_checkpoint_brings_its_own_code(tmp_path):
    """In a process that has no heirloom."""
    model, ids = made(torch.float32), torch.tensor([[5, 6, 7]])
    model.save_pretrained(tmp_path / "model")
    torch.save(model(ids).logits.detach(), tmp_path / "expected")
    code = (
        "import sys, torch\n"
        "sys.modules['heirloom'] = None\n"
        "from transformers import AutoModelForPreTraining\n"
        f"model = AutoModelForPreTraining.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True)\n"
        "ids = torch.tensor([[5, 6, 7]])\n"
        f"torch.testing.assert_close(model(ids).logits, torch.load({str(tmp_path / 'expected')!r}))\n"
        "assert model(ids, labels=ids).loss.isfinite()\n"
        "assert type(model).__module__.startswith('transformers_modules')\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_registration_while_a_stock_config_is_being_imported(tmp_path):
    """Its import loads the Auto classes, these load ours, and ours must not need it yet."""
    code = "import heirloom\nfrom transformers import ElectraConfig, AutoModelForPreTraining"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
