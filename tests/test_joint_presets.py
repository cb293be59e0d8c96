"""The preset of openai/finetune-transformer-lm, against transcriptions of its code: losses, dropout, Adam, rate, clip, updates."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from stock_lms import gpt2, save, tokenizer
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from heirloom.modeling.modeling_joint_loss import (
    JointLossForMultipleChoice,
    JointLossForSequenceClassification,
)
from heirloom.training.joint_presets import (
    OPENAI_HEAD,
    OpenAIAdam,
    openai_arguments,
    openai_collator,
    openai_model,
    openai_optimizers,
    openai_template,
    openai_updates,
    warmup_linear,
)
from heirloom.training.joint_trainer import JointLossTrainer

WORDS, PLACES = 40, 16
START, DELIMITER, CLASSIFY = 40, 41, 42


def openai_gpt(**options):
    sizes = {"vocab_size": WORDS, "n_positions": PLACES, "n_embd": 16, "n_layer": 2, "n_head": 2}
    torch.manual_seed(0)
    model = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**sizes, initializer_range=0.3, **options))
    return model


def preset(folder, head=JointLossForMultipleChoice, form="multiple_choice", **options):
    backbone = openai_gpt(embd_pdrop=0.3, resid_pdrop=0.0)
    words = tokenizer(WORDS)
    save(backbone, folder, words)
    template = openai_template(PLACES)
    torch.manual_seed(1)
    model = openai_model(head, folder, words, template, **options)
    return model, openai_collator(words, template, form)


def story(number):
    """Uneven texts, some of them too long for half the places."""
    spell = lambda first, count: " ".join(f"w{3 + (first + k) % 36}" for k in range(count))  # noqa: E731
    endings = [spell(7 * number, 1 + number % 4), spell(11 * number + 5, 2 + 3 * (number % 3))]
    return {"context": spell(5 * number, 2 + 4 * (number % 3)), "choices": endings, "label": number % 2}


def arguments(folder, **options):
    quiet = {
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return openai_arguments(folder, **(quiet | options))


# Layout and losses


def transform_roc(stories):
    """The original's batches, train.py: token ids (B, 2, n_ctx) and mask."""
    ids = np.zeros((len(stories), 2, PLACES), dtype=np.int64)
    mask = np.zeros((len(stories), 2, PLACES), dtype=np.float32)
    max_len = PLACES // 2 - 2
    for number, row in enumerate(stories):
        context, *endings = [[int(w[1:]) for w in t.split()] for t in (row["context"], *row["choices"])]
        for choice, ending in enumerate(endings):
            x = [START, *context[:max_len], DELIMITER, *ending[:max_len], CLASSIFY]
            ids[number, choice, : len(x)] = x
            mask[number, choice, : len(x)] = 1
    return torch.tensor(ids), torch.tensor(mask)


def original_loss(model, stories):
    """train.py's `model` and `mgpu_train` without dropout: per-row means of the language model, 0.5 of their mean, the head
    on the last block's output at the first `_classify_`."""
    X, M = transform_roc(stories)
    X, M = X.flatten(0, 1), M.flatten(0, 1)
    gpt = model.language_model
    h = gpt.transformer(X).last_hidden_state
    lm_logits = h[:, :-1] @ gpt.transformer.tokens_embed.weight.T
    lm_losses = F.cross_entropy(lm_logits.transpose(1, 2), X[:, 1:], reduction="none")
    lm_losses = (lm_losses * M[:, 1:]).sum(1) / M[:, 1:].sum(1)
    pool_idx = (X == CLASSIFY).float().argmax(1)
    clf_h = h[torch.arange(len(h)), pool_idx]
    clf_logits = (clf_h @ model.classifier.weight.T + model.classifier.bias).view(-1, 2)
    clf_losses = F.cross_entropy(
        clf_logits, torch.tensor([row["label"] for row in stories]), reduction="none"
    )
    return clf_losses.mean() + 0.5 * lm_losses.mean()


def test_layout_is_the_originals(tmp_path):
    stories = [story(number) for number in range(9)]
    _, collate = preset(tmp_path)
    batch = collate(stories)
    X, M = transform_roc(stories)
    width = batch["input_ids"].shape[2]
    assert width == int(M.sum(2).max())
    assert int((M.sum(2) == width).sum()) > 0
    assert int(M.sum(2).min()) < width
    assert torch.equal(batch["input_ids"], X[..., :width])
    assert torch.equal(batch["attention_mask"], M[..., :width].long())


def test_loss_and_gradients_are_the_originals(tmp_path):
    model, collate = preset(tmp_path)
    stories = [story(number) for number in range(9)]
    expected = original_loss(model, stories)
    expected.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    found = model(**collate(stories))
    assert found.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    found.loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], atol=1e-6, rtol=1e-5)
    # a mean over tokens, or over right endings only, would be another number
    model.config.lm_loss_reduction = "token"
    assert abs(model(**collate(stories)).loss.item() - expected.item()) > 1e-3


def test_four_towers_are_one_batch(tmp_path):
    """The original's mean of four devices' gradients is the gradient of 32 rows at once."""
    model, collate = preset(tmp_path)
    stories = [story(number) for number in range(32)]
    towers = sum(original_loss(model, stories[k : k + 8]) for k in range(0, 32, 8)) / 4
    assert model(**collate(stories)).loss.item() == pytest.approx(towers.item(), abs=1e-6)


# Model


def test_model_has_the_originals_numbers(tmp_path):
    model, _ = preset(tmp_path)
    config, body = model.config, model.config.text_config
    assert (config.lm_loss_weight, config.lm_loss_reduction, config.classifier_dropout) == (
        0.5,
        "example",
        0.1,
    )
    assert (config.pooling, config.classify_token_id) == ("classify_token", CLASSIFY)
    rates = [m.p for m in model.language_model.modules() if isinstance(m, torch.nn.Dropout)]
    assert len(rates) >= 5
    assert set(rates) == {0.1}
    assert (body.embd_pdrop, body.attn_pdrop, body.resid_pdrop) == (0.1, 0.1, 0.1)
    assert model.get_input_embeddings().weight.shape[0] == 43
    assert bool((model.classifier.bias == 0).all())
    assert model.classifier.weight.shape == (1, 16)
    old = openai_gpt().transformer.tokens_embed.weight
    assert torch.equal(model.get_input_embeddings().weight[:40], old)
    assert not model.training


def test_options_go_over_the_preset(tmp_path):
    model, _ = preset(
        tmp_path, JointLossForSequenceClassification, "classification", num_labels=3, lm_loss_weight=0
    )
    assert model.config.lm_loss_weight == 0
    assert model.classifier.weight.shape[0] == 3
    assert OPENAI_HEAD["lm_loss_weight"] == 0.5


def test_choices_share_a_dropout_mask(tmp_path):
    """Equal endings get equal logits even in training; noise [B, 1, n_embd] differs between examples."""
    model, collate = preset(tmp_path)
    for module in model.language_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    same = {"context": "w5 w6 w7", "choices": ["w8 w9", "w8 w9"], "label": 0}
    torch.nn.init.normal_(model.classifier.weight)
    logits = model.train()(**collate([same] * 20)).logits
    assert torch.equal(logits[:, 0], logits[:, 1])
    assert len(logits[:, 0].unique()) > 5


# Adam and its rate


def original_warmup_linear(x, warmup=0.002):
    s = float(x <= warmup)
    return (s * (x / warmup) + (1 - s)) * (1 - x)


def original_adam(start, gradients, lr, t_total, l2, vector_l2=False, b1=0.9, b2=0.999, e=1e-8):
    """opt.py, an update at a time in numpy."""
    p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(gradients):
        tt = t + 1
        lrt = lr * np.sqrt(1 - b2**tt) / (1 - b1**tt)
        lrt *= original_warmup_linear(t / t_total)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        if p.ndim > 1 or vector_l2:
            p = p - lrt * (m / (np.sqrt(v) + e) + l2 * p)
        else:
            p = p - lrt * (m / (np.sqrt(v) + e))
    return p


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = torch.nn.Parameter(torch.randn(4, 3, dtype=torch.double))
        self.vector = torch.nn.Parameter(torch.randn(5, dtype=torch.double))
        self.frozen = torch.nn.Parameter(torch.randn(2, 2, dtype=torch.double), requires_grad=False)


def test_adam_is_the_originals():
    model, updates = Two(), 60
    start = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    gradients = {
        name: [np.random.default_rng(k).normal(size=p.shape) for k in range(updates)]
        for name, p in start.items()
    }
    optimizer, schedule = openai_optimizers(model, updates, learning_rate=0.02)
    for k in range(updates):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = torch.tensor(gradients[name][k])
        optimizer.step()
        schedule.step()
    for name in ("matrix", "vector"):
        expected = original_adam(start[name], gradients[name], 0.02, updates, l2=0.01)
        found = getattr(model, name).detach().numpy()
        assert abs(found - expected).max() < 1e-12
        assert abs(found - start[name]).max() > 0.05
    assert (model.frozen.numpy() == start["frozen"]).all()
    # without decay the matrix would be elsewhere
    undecayed = original_adam(start["matrix"], gradients["matrix"], 0.02, updates, l2=0.0)
    assert abs(model.matrix.detach().numpy() - undecayed).max() > 1e-4


def test_decay_is_scaled_by_the_bias_correction():
    """With no gradient an update is decay alone: AdamW's is lr * 0.01, the original's less at first."""
    model = Two()
    optimizer = OpenAIAdam([{"params": [model.matrix]}], lr=0.1, weight_decay=0.01)
    before = model.matrix.detach().clone()
    model.matrix.grad = torch.zeros_like(model.matrix)
    optimizer.step()
    share = (before - model.matrix.detach()) / before / (0.1 * 0.01)
    torch.testing.assert_close(share, torch.full_like(share, math.sqrt(1 - 0.999) / (1 - 0.9)))
    assert share[0, 0] < 0.32


def test_the_rate():
    for x in (0.0, 0.0005, 0.001, 0.002, 0.0021, 0.5, 0.999, 1.0):
        assert warmup_linear(x) == pytest.approx(original_warmup_linear(x), abs=1e-15)
    assert warmup_linear(0.0) == 0.0
    assert warmup_linear(0.001) == pytest.approx(0.5 * 0.999)
    assert warmup_linear(0.002) == pytest.approx(0.998)
    assert warmup_linear(0.25) == 0.75
    assert warmup_linear(1.0) == 0.0
    assert warmup_linear(1.01) == 0.0  # and never negative
    optimizer, schedule = openai_optimizers(Two(), 1000)
    rates = []
    for _ in range(1000):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0
    assert rates[:4] == pytest.approx([0, 6.25e-5 * 0.5 * 0.999, 6.25e-5 * 0.998, 6.25e-5 * 0.997])
    assert rates[500] == pytest.approx(6.25e-5 / 2)
    assert rates[999] == pytest.approx(6.25e-5 / 1000)


def test_what_decays(tmp_path):
    model, _ = preset(tmp_path)
    optimizer, _ = openai_optimizers(model, 10)
    decays, not_decays = optimizer.param_groups
    assert (decays["weight_decay"], not_decays["weight_decay"]) == (0.01, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for p in decays["params"]}
    kept = {names[id(p)] for p in not_decays["params"]}
    assert decayed | kept == set(names.values())
    assert not decayed & kept
    body = "language_model.transformer"
    for name in (f"{body}.tokens_embed.weight", f"{body}.positions_embed.weight", "classifier.weight"):
        assert name in decayed
    assert all(name.endswith("weight") and "ln" not in name for name in decayed)
    assert {"classifier.bias", f"{body}.h.0.ln_1.weight", f"{body}.h.1.attn.c_attn.bias"} <= kept
    assert len(decays["params"]) == len({id(p) for p in decays["params"]})  # the tied table once


# Trainer


def test_updates():
    assert openai_updates(1497) == 46 * 3  # ROCStories
    assert openai_updates(64, 32, 1) == 2
    with pytest.raises(ValueError, match="a batch has 32 examples, found 31"):
        openai_updates(31)
    with pytest.raises(ValueError, match="updates must be at least 1, found 0"):
        openai_optimizers(Two(), 0)


def test_arguments(tmp_path):
    found = openai_arguments(tmp_path, use_cpu=True)
    assert (found.per_device_train_batch_size, found.num_train_epochs, found.learning_rate) == (
        32,
        3,
        6.25e-5,
    )
    assert (found.max_grad_norm, found.seed, found.dataloader_drop_last) == (1.0, 42, True)
    assert openai_arguments(tmp_path, use_cpu=True, seed=7).seed == 7


def test_training_counts_its_updates_and_repeats(tmp_path):
    data = [story(number) for number in range(70)]

    def once():
        model, collate = preset(tmp_path / "gpt")
        updates = openai_updates(len(data), 8)
        trainer = JointLossTrainer(
            model,
            arguments(tmp_path / "run", per_device_train_batch_size=8),
            data_collator=collate,
            train_dataset=data,
            optimizers=openai_optimizers(model, updates, learning_rate=5e-3),
        )
        trainer.train()
        return updates, trainer

    updates, trainer = once()
    logs = [record for record in trainer.state.log_history if "loss" in record]
    assert trainer.state.global_step == updates == len(logs) == 24
    rates = [5e-3 * warmup_linear(step / 24) for step in range(24)]
    assert trainer.optimizer.param_groups[0]["lr"] == 0  # the line has reached its end
    assert logs[0]["loss"] == pytest.approx(logs[0]["task_loss"] + 0.5 * logs[0]["lm_loss"], abs=1e-4)
    assert [log["learning_rate"] for log in logs] == pytest.approx(rates, abs=1e-9)
    assert sum(log["lm_loss"] for log in logs[-4:]) < 0.9 * sum(log["lm_loss"] for log in logs[:4])
    _, again = once()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_gradients_are_cut_at_the_norm_of_all(tmp_path):
    """One step of gradient descent at rate 1 goes as far as the gradient is long: 1, and not 1 for each parameter."""
    model, collate = preset(tmp_path / "gpt", lm_loss_weight=5.0)
    before = [p.detach().clone() for p in model.parameters()]
    trainer = JointLossTrainer(
        model,
        arguments(tmp_path / "run", max_steps=1),
        data_collator=collate,
        train_dataset=[story(number) for number in range(32)],
        optimizers=(
            sgd := torch.optim.SGD(model.parameters(), lr=1.0),
            torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 1.0),
        ),
    )
    trainer.train()
    log = next(record for record in trainer.state.log_history if "loss" in record)
    assert log["grad_norm"] > 1.2
    change = math.sqrt(
        sum(((p - q) ** 2).sum().item() for p, q in zip(model.parameters(), before, strict=True))
    )
    assert change == pytest.approx(1.0, abs=1e-3)


def test_other_models_work_too(tmp_path):
    save(gpt2(WORDS), tmp_path / "gpt2")
    words, template = tokenizer(WORDS), openai_template(64)
    model = openai_model(JointLossForSequenceClassification, tmp_path / "gpt2", words, template, num_labels=2)
    assert isinstance(model.language_model, GPT2LMHeadModel)
    assert isinstance(model.config.text_config, GPT2Config)
    with pytest.raises(ValueError, match="64 positions, found max_length=512"):
        openai_model(
            JointLossForSequenceClassification, tmp_path / "gpt2", tokenizer(WORDS), openai_template()
        )


@pytest.mark.parametrize(
    "place",
    [
        "objectives.input_forms",
        "objectives.joint_collators",
        "training.joint_presets",
        "conversion.openai_gpt",
    ],
)
def test_each_file_may_be_imported_first(place):
    """Before Transformers has registered our models."""
    subprocess.run([sys.executable, "-c", f"import heirloom.{place}"], check=True)
