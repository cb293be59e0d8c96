"""Layers from bottom to top: groups of every kind of model, their rates, gradual unfreezing, and how many are kept."""

import copy

import pytest
import torch
from reference.joint_loss_naive import batch, examples, joint, language_model
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    XLMConfig,
    XLMWithLMHeadModel,
)

from heirloom.modeling.modeling_elmo import ElmoForSequenceClassification
from heirloom.training.layerwise import (
    GradualUnfreezing,
    layer_groups,
    layerwise_parameter_groups,
    transfer_layers,
)

EXPECTED = ["embeddings", "layer 0", "layer 1", "head"]
ABOVE = {  # of the language model
    "gpt2": {"transformer.ln_f.weight", "transformer.ln_f.bias"},
    "openai-gpt": set(),
    "llama": {"model.norm.weight", "lm_head.weight"},
    "lstm-lm": {"lm_head.weight", "lm_head.bias"},
    "elmo": {"softmax.weight", "softmax.bias"},
}


def named(model):
    return dict(layer_groups(model))


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt", "llama", "bert", "roberta", "lstm-lm", "elmo"])
def test_groups_of_joint_models(kind):
    model = joint(kind)
    groups = named(model)
    assert list(groups) == EXPECTED
    everything = [name for names in groups.values() for name in names]
    assert sorted(everything) == sorted(dict(model.named_parameters()))
    for number in (0, 1):
        assert all(f".{number}." in name for name in groups[f"layer {number}"])
    if kind in ABOVE:
        above = {f"language_model.{name}" for name in ABOVE[kind]}
        assert set(groups["head"]) == above | {"classifier.weight", "classifier.bias"}
    else:
        assert {"language_model.bert.embeddings.LayerNorm.bias"} <= set(
            groups["embeddings"]
        ) or kind != "bert"
        assert not any("embeddings" in name or ".layer." in name for name in groups["head"])
    tables = {name for name, p in model.named_parameters() if p is model.get_input_embeddings().weight}
    assert tables <= set(groups["embeddings"])
    if kind == "elmo":
        assert len(groups["layer 1"]) == 8  # both directions


def test_groups_of_other_models():
    for model in (
        GPT2ForSequenceClassification(language_model("gpt2").config),
        BertForSequenceClassification(language_model("bert").config),
        ElmoForSequenceClassification(language_model("elmo").config),
        language_model("lstm-lm"),
    ):
        assert list(named(model)) == EXPECTED
    assert "mix" in " ".join(named(ElmoForSequenceClassification(language_model("elmo").config))["head"])
    # lists side by side, and layers that are one and the same
    xlm = XLMWithLMHeadModel(XLMConfig(vocab_size=40, emb_dim=16, n_layers=3, n_heads=2))
    groups = named(xlm)
    assert list(groups) == ["embeddings", "layer 0", "layer 1", "layer 2", "head"]
    parts = {name.split(".")[1] for name in groups["layer 2"]}
    assert parts == {"attentions", "layer_norm1", "ffns", "layer_norm2"}
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "embedding_size": 8}
    albert = AlbertModel(AlbertConfig(vocab_size=40, num_hidden_layers=3, **sizes))
    assert list(named(albert)) == ["embeddings", "layer 0", "head"]


class Recurrent(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self, config, stack=True):
        super().__init__(config)
        self.table = nn.Embedding(9, 4)
        self.rnn = nn.LSTM(4, 4, 3, bidirectional=True) if stack else nn.Linear(4, 4)
        self.top = nn.Linear(8, 2)


def test_layers_of_one_lstm_and_no_layers():
    groups = named(Recurrent(PreTrainedConfig()))
    assert list(groups) == ["embeddings", "layer 0", "layer 1", "layer 2", "head"]
    assert len(groups["layer 2"]) == 8
    assert all("_l2" in name for name in groups["layer 2"])
    with pytest.raises(ValueError, match="Recurrent has no stack of layers"):
        layer_groups(Recurrent(PreTrainedConfig(), stack=False))
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(ValueError, match="is an encoder-decoder with two stacks of layers, expected one"):
        layer_groups(t5)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_rates_fall_from_layer_to_layer(kind):
    model = joint(kind)
    model.language_model.get_input_embeddings().weight.requires_grad_(False)
    groups = layerwise_parameter_groups(model, 0.1, 0.5, 0.01)
    assert groups[0]["lr"] == 0.1
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rate)
    expected = {"head": 0.1, "layer 1": 0.05, "layer 0": 0.025, "embeddings": 0.0125}
    parameters = dict(model.named_parameters())
    stock = set(Trainer.get_decay_parameter_names(None, model))
    for group, names in layer_groups(model):
        for name in names:
            if parameters[name].requires_grad:
                assert rate.pop(id(parameters[name])) == pytest.approx(expected[group])
                assert decay[id(parameters[name])] == (0.01 if name in stock else 0.0)
    assert not rate
    assert decay[id(model.classifier.bias)] == 0.0
    assert decay[id(model.classifier.weight)] == 0.01
    for wrong in (0, -1, 1.5):
        with pytest.raises(ValueError, match=rf"must lie in \(0, 1\], found {wrong}"):
            layerwise_parameter_groups(model, 0.1, wrong)


# Unfreezing


def rows():
    texts, labels = examples("classes", 8)
    return [{"texts": text, "labels": max(0, label)} for text, label in zip(texts, labels, strict=True)]


def collate(chosen):
    return batch("gpt2", "classes", [row["texts"] for row in chosen], [row["labels"] for row in chosen])


class Watch(GradualUnfreezing):
    """Keeps the weights before each step and at the end."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        super().on_step_begin(args, state, control, **kwargs)
        self.seen.append(copy.deepcopy(model.state_dict()))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        super().on_train_end(args, state, control, **kwargs)
        self.seen.append(copy.deepcopy(model.state_dict()))
        assert not self._hooks


def run(folder, watch, resume=None, **options):
    options = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 5,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "remove_unused_columns": False,
    } | options
    model = joint("gpt2", dtype=torch.float32)
    trainer = Trainer(
        model, TrainingArguments(**options), collate, train_dataset=rows(), callbacks=[watch] if watch else []
    )
    trainer.train(resume)
    return trainer


def moved(one, other, model):
    """Which groups differ between two states."""
    return [
        group for group, names in layer_groups(model) if any(not torch.equal(one[n], other[n]) for n in names)
    ]


def test_one_group_more_each_epoch(tmp_path):
    watch = Watch()
    trainer = run(tmp_path, watch, max_grad_norm=0.01)
    steps = [moved(*pair, trainer.model) for pair in zip(watch.seen, watch.seen[1:], strict=False)]
    assert steps == [EXPECTED[-1:]] * 2 + [EXPECTED[-2:]] * 2 + [EXPECTED[-3:]] * 2 + [EXPECTED] * 4
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_clipping_and_the_optimizer_see_no_frozen_gradient(tmp_path):
    """While only the head moves, it moves as with all else without gradients, clipped and by Adam."""
    watch = Watch(every_steps=100)
    trainer = run(tmp_path, watch, max_steps=3, max_grad_norm=0.05, train_sampling_strategy="sequential")
    alone = joint("gpt2", dtype=torch.float32)
    head = dict(layer_groups(alone))["head"]
    for name, parameter in alone.named_parameters():
        parameter.requires_grad_(name in head)
    arguments = trainer.args
    other = Trainer(alone, arguments, collate, train_dataset=rows())
    other.train()
    norms = [[r["grad_norm"] for r in t.state.log_history if "grad_norm" in r] for t in (trainer, other)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    for (name, ours), theirs in zip(trainer.model.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)


def test_a_resumed_training_goes_on_as_it_would(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 3, "seed": 5}
    whole = Watch(every_steps=2)
    run(tmp_path, whole, **options)
    resumed = Watch(every_steps=2)
    model = run(tmp_path, resumed, resume=str(tmp_path / "checkpoint-3"), **options).model
    assert moved(*resumed.seen, model) == EXPECTED[-2:]
    for name, value in whole.seen[-1].items():
        torch.testing.assert_close(resumed.seen[-1][name], value, msg=name)


def test_periods():
    for options in ({"every_epochs": 0}, {"every_steps": 0}, {"every_epochs": -1.0}):
        with pytest.raises(ValueError, match="a period must be longer than 0, found"):
            GradualUnfreezing(**options)
    with pytest.raises(ValueError, match="a period has one length, found every_epochs=1.0 and every_steps=5"):
        GradualUnfreezing(1.0, 5)


# Layers transferred


@pytest.mark.parametrize("kind", ["gpt2", "bert", "lstm-lm", "elmo"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_layers_above_start_anew(kind, count):
    model = joint(kind, dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    transfer_layers(model, count)
    changed = moved(before, dict(model.named_parameters()), model)
    assert changed == ([] if count == 2 else EXPECTED[count + 1 :])
    if kind == "gpt2" and count == 0:
        weight = model.language_model.transformer.h[1].mlp.c_fc.weight
        assert weight.std().item() == pytest.approx(0.3, rel=0.15)  # its config's initializer_range
        assert torch.equal(model.language_model.transformer.h[1].ln_1.weight, torch.ones(16))
        assert model.language_model.lm_head.weight is model.language_model.transformer.wte.weight


def test_transferring_changes_nothing_else():
    """The same function of the kept weights, causal as before; as another model that was built so."""
    model = joint("llama", dtype=torch.float32)
    transfer_layers(model, 1)
    ids = torch.randint(5, 30, (2, 7))
    changed = ids.clone()
    changed[:, -1] = 4
    logits = [model.language_model(one).logits[:, :-1] for one in (ids, changed)]
    torch.testing.assert_close(*logits)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"has 2 layers, found {wrong} to transfer. Give 0"):
            transfer_layers(model, wrong)
