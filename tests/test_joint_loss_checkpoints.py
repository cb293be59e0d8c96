"""Joint-loss checkpoints: in and out through the Auto classes, the language model back out, remote code."""

import copy
import json
import logging
import os
import subprocess
import sys

import pytest
import torch
from reference.joint_loss_naive import HEADS, KINDS, VOCAB, batch, examples, joint, language_model, tokenizer
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BartConfig,
    BartForConditionalGeneration,
    BertLMHeadModel,
    BertModel,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPT2Model,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    XLNetConfig,
    XLNetLMHeadModel,
)

from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.backbones_joint_loss import find_objective, position_limit
from heirloom.modeling.configuration_joint_loss import JointLossConfig
from heirloom.modeling.modeling_joint_loss import JointLossForSequenceClassification

AUTO = {
    "classes": AutoModelForSequenceClassification,
    "similarity": AutoModelForSequenceClassification,
    "choices": AutoModelForMultipleChoice,
    "tokens": AutoModelForTokenClassification,
}
STOCK = {"bert": AutoModelForMaskedLM, "roberta": AutoModelForMaskedLM, "elmo": AutoModelForPreTraining}
CLASSES = JointLossForSequenceClassification


def inputs(kind, head="classes"):
    return batch(kind, head, *examples(head))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, head, tmp_path):
    model, whole = joint(kind, head, torch.float32, lm_loss_weight=0.25), inputs(kind, head)
    model.save_pretrained(tmp_path)
    loaded, report = AUTO[head].from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is HEADS[head]
    assert not any(report.values())
    first, second = model(**whole), loaded(**whole)
    torch.testing.assert_close(
        second.logits, first.logits
    )  # loaded weights lie elsewhere in memory: other kernels
    torch.testing.assert_close(second.loss, first.loss)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    text_config = loaded.config.text_config
    assert type(text_config) is type(model.language_model.config)
    assert text_config is loaded.language_model.config
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == [HEADS[head].__name__]
    key = AUTO[head].__name__
    expected = AUTO_MAP["joint-loss"] | {key: f"modeling_joint_loss.{HEADS[head].__name__}"}
    assert saved["auto_map"] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_language_model_comes_back_out(kind, tmp_path):
    model, whole = joint(kind, dtype=torch.float32), inputs(kind)
    model.train()(**whole).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    model.eval().save_pretrained(tmp_path / "joint")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "joint")
    for number, one in enumerate((model, loaded)):  # also after the way through a joint checkpoint
        folder = tmp_path / f"lm{number}"
        one.language_model.save_pretrained(folder)
        stock, report = STOCK.get(kind, AutoModelForCausalLM).from_pretrained(
            folder, output_loading_info=True
        )
        assert type(stock) is KINDS[kind][0]
        assert not any(report.values())
        name = "forward_logits" if kind == "elmo" else "logits"
        ids = {key: whole[key] for key in ("input_ids", "attention_mask")}
        torch.testing.assert_close(stock(**ids)[name], model.language_model(**ids)[name])
        weights = model.language_model.state_dict()
        assert all(torch.equal(value, weights[key]) for key, value in stock.state_dict().items())
        again = CLASSES.from_backbone_pretrained(folder, num_labels=3)
        torch.testing.assert_close(again.language_model(**ids)[name], stock(**ids)[name])
        assert again.config.lm_objective == model.config.lm_objective


@pytest.mark.parametrize("kind", ["gpt2", "bert", "lstm-lm"])
def test_ties_and_resizing(kind, tmp_path):
    tied = {"embedding_size": 8, "projection_size": 8, "tie_word_embeddings": True}
    model = joint(kind, dtype=torch.float32, backbone=tied if kind == "lstm-lm" else None)
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits.detach()
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    assert model.config.text_config.vocab_size == model.language_model.config.vocab_size == VOCAB + 3
    torch.testing.assert_close(model(ids).logits, before)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for one in (model, loaded):
        assert one.get_input_embeddings().weight is one.get_output_embeddings().weight
        found = one(
            torch.tensor([[5, VOCAB + 2]]),
            labels=torch.tensor([0]),
            lm_targets=torch.tensor([[5, VOCAB + 2]]),
        )
        assert found.lm_loss > 0
    assert not [name for name in load_file(tmp_path / "model.safetensors") if name.endswith("lm_head.weight")]
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_buffers_that_a_container_fills_survive(tmp_path):
    """Falcon-H1 fills tables of its children when it initialises itself; they are in no checkpoint."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "mamba_chunk_size": 8,
        "mamba_d_ssm": 32,
    }
    sizes |= {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
    model = CLASSES.from_backbone_pretrained(FalconH1ForCausalLM(FalconH1Config(vocab_size=VOCAB, **sizes)))
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 6, 7, 8]])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_an_untied_head_is_saved_and_loaded(tmp_path):
    model = joint("llama", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert "language_model.lm_head.weight" in load_file(tmp_path / "model.safetensors")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight
    assert torch.equal(loaded.language_model.lm_head.weight, model.language_model.lm_head.weight)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "lstm-lm"])
def test_a_bare_language_model_loads_in_one_pass(kind, tmp_path):
    lm = language_model(kind)
    lm.save_pretrained(tmp_path)
    config = JointLossConfig(
        text_config=AutoConfig.from_pretrained(tmp_path),
        lm_objective="masked" if kind == "bert" else "causal",
        num_labels=4,
    )
    model, report = CLASSES.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model.language_model(ids).logits, lm(ids).logits)
    assert model(ids).logits.shape == (1, 4)


def test_new_heads_are_drawn_small_and_given_weights_are_kept():
    lm = language_model("gpt2")
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    model = CLASSES.from_backbone_pretrained(lm, num_labels=400)
    assert model.language_model is lm
    assert all(torch.equal(value, before[name]) for name, value in lm.state_dict().items())
    assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (model.classifier.bias == 0).all()
    assert not model.training


@pytest.mark.parametrize("kind", ["gpt2", "bert", "elmo"])
def test_half_precision_on_the_way_in(kind, tmp_path):
    language_model(kind).save_pretrained(tmp_path / "lm")
    model = CLASSES.from_backbone_pretrained(tmp_path / "lm", backbone_kwargs={"dtype": torch.bfloat16})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(tmp_path / "joint")
    for options, wanted in (({}, torch.bfloat16), ({"dtype": torch.float32}, torch.float32)):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "joint", **options)
        assert {parameter.dtype for parameter in loaded.parameters()} == {wanted}
        assert loaded(torch.tensor([[5, 6]])).logits.isfinite().all()
    config = JointLossConfig(text_config=model.config.text_config, lm_objective=model.config.lm_objective)
    assert {parameter.dtype for parameter in CLASSES(config).parameters()} == {torch.float32}


def test_configs_are_copied():
    lm = language_model("gpt2")
    attention = lm.config._attn_implementation
    config = JointLossConfig(text_config=lm.config)
    assert config.text_config is not lm.config
    assert lm.config._attn_implementation == attention
    first, second = CLASSES(config), CLASSES(config)
    configs = [config.text_config, first.config.text_config, second.config.text_config, lm.config]
    assert len({id(one) for one in configs}) == 4
    first.resize_token_embeddings(VOCAB + 1)
    assert [one.vocab_size for one in configs] == [VOCAB, VOCAB + 1, VOCAB, VOCAB]
    deep = copy.deepcopy(first)
    assert deep.config.text_config is deep.language_model.config is not first.config.text_config


def test_what_the_config_decides_by_itself(tmp_path):
    bilm = JointLossConfig(text_config={"model_type": "elmo"}, lm_objective="bidirectional")
    found = [
        (one.pooling, one.lm_loss_reduction)
        for one in (JointLossConfig(), JointLossConfig(lm_objective="masked"), bilm)
    ]
    assert found == [("last", "example"), ("first", "example"), ("mean", "token")]
    assert JointLossConfig().get_text_config().model_type == "gpt2"
    config = JointLossConfig(
        text_config={"model_type": "lstm-lm", "cell_size": 7}, num_labels=5, pooling="mean"
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is JointLossConfig
    assert (loaded.num_labels, loaded.pooling, loaded.text_config.cell_size) == (5, "mean", 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lm_loss_weight": -0.5}, "lm_loss_weight must be at least 0, found -0.5. Use 0"),
        ({"lm_loss_weight": float("nan")}, "lm_loss_weight must be at least 0, found nan"),
        ({"classifier_dropout": 1.0}, r"classifier_dropout must lie in \[0, 1\), found 1.0"),
        ({"initializer_range": 0}, "initializer_range must be positive"),
        (
            {"pooling": "classify_token"},
            "belong together, found pooling='classify_token' and classify_token_id=None",
        ),
        ({"classify_token_id": 3}, "belong together, found pooling='last' and classify_token_id=3"),
        (
            {"lm_objective": "bidirectional", "lm_loss_reduction": "example"},
            "needs lm_loss_reduction='token'",
        ),
        ({"lm_objective": "prefix"}, "lm_objective"),
    ],
)
def test_bad_configs(options, words):
    with pytest.raises(Exception, match=words):
        JointLossConfig(**options)


def heard(caplog, action) -> str:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        action()
    finally:
        logger.removeHandler(caplog.handler)
    return caplog.text


def test_a_misspelt_option_is_told(caplog):
    text = heard(caplog, lambda: JointLossConfig(lm_loss_weigth=1))
    assert "no field `lm_loss_weigth`. Did you mean `lm_loss_weight`?" in text


@pytest.mark.parametrize(
    ("model_class", "kind", "missing"),
    [(BertModel, "bert", "cls.predictions"), (LlamaModel, "llama", "lm_head")],
)
def test_a_missing_head_is_told_loudly(model_class, kind, missing, tmp_path, caplog):
    torch.manual_seed(0)
    model_class(language_model(kind).config).save_pretrained(tmp_path)
    text = heard(caplog, lambda: CLASSES.from_backbone_pretrained(tmp_path))
    assert "HAS NO LANGUAGE-MODEL HEAD" in text
    assert missing in text
    assert "lm_loss_weight=0" in text
    caplog.clear()
    language_model(kind).save_pretrained(tmp_path / "whole")
    assert "HAS NO" not in heard(caplog, lambda: CLASSES.from_backbone_pretrained(tmp_path / "whole"))


TINY_T5 = {"vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
TINY_BART = {
    "vocab_size": 20,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "max_position_embeddings": 9,
}
TINY_BART |= {
    f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("attention_heads", "ffn_dim")
}


def test_models_that_do_not_fit(tmp_path):
    def refused(words, model, objective=None):
        with pytest.raises(ValueError, match=words):
            CLASSES.from_backbone_pretrained(model, objective)

    refused(
        "needs a language model with its head, found GPT2Model. Load it with AutoModelForCausalLM",
        GPT2Model(language_model("gpt2").config),
    )
    refused(
        "with its head, found LstmLMModel. Load it with LstmLMForCausalLM", language_model("lstm-lm").model
    )
    refused(
        "GPT2LMHeadModel has no masked language-model head. Load the model with AutoModelForMaskedLM",
        language_model("gpt2"),
        "masked",
    )
    refused(
        "lm_objective of 'elmo' must be 'bidirectional', found 'causal'", language_model("elmo"), "causal"
    )
    refused("must be 'causal' or 'masked', found 'bidirectional'", language_model("gpt2"), "bidirectional")
    for model in (
        T5ForConditionalGeneration(T5Config(**TINY_T5)),
        BartForConditionalGeneration(BartConfig(**TINY_BART)),
    ):
        model.save_pretrained(tmp_path / type(model).__name__)
        refused(
            "found the encoder-decoder '(t5|bart)'. Use its encoder or decoder alone",
            tmp_path / type(model).__name__,
        )
    refused("encoder-decoder 'bart'", model)
    refused("encoder-decoder 'bart'", tmp_path / "BartForConditionalGeneration", "masked")
    decoder = CLASSES.from_backbone_pretrained(tmp_path / "BartForConditionalGeneration", "causal")
    decoder.save_pretrained(tmp_path / "decoder")
    ids = torch.tensor([[5, 6, 7]])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "decoder")
    assert torch.equal(loaded(ids).logits, decoder(ids).logits)
    xlnet = XLNetConfig(vocab_size=20, d_model=8, n_layer=1, n_head=2, d_inner=8)
    refused("'xlnet' sees the tokens that it would have to predict", XLNetLMHeadModel(xlnet))
    bert = language_model("bert")
    bert.save_pretrained(tmp_path / "bert")
    words = "'bert' sees the tokens .*, unless it is a decoder, found is_decoder=False. Load it with is_decoder=True"
    refused(words, BertLMHeadModel(bert.config))
    refused(words, tmp_path / "bert", "causal")
    decoder = CLASSES.from_backbone_pretrained(
        tmp_path / "bert", "causal", backbone_kwargs={"is_decoder": True}
    )
    decoder.save_pretrained(tmp_path / "bert decoder")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert decoder")
    assert loaded.language_model.config.is_decoder
    ViTConfig().save_pretrained(tmp_path / "vit")
    refused("'vit' has neither a causal nor a masked language-model head", tmp_path / "vit")
    joint("gpt2").save_pretrained(tmp_path / "joint")
    refused("joint-loss checkpoint already. Load it with from_pretrained", tmp_path / "joint")
    with pytest.raises(ValueError, match="'gpt2' has no masked language-model head"):
        CLASSES(JointLossConfig(lm_objective="masked"))


def test_the_objective_is_found():
    configs = {kind: language_model(kind).config for kind in KINDS}
    found = {kind: find_objective(config, []) for kind, config in configs.items()}
    masked = {"bert": "masked", "roberta": "masked", "elmo": "bidirectional"}
    assert found == {kind: masked.get(kind, "causal") for kind in KINDS}
    bert = configs["bert"]
    assert find_objective(bert, ["BertForPreTraining"]) == "masked"
    assert find_objective(bert, ["BertLMHeadModel"]) == "causal"
    bert.is_decoder = True
    assert find_objective(bert, []) == "causal"
    assert find_objective(bert, ["BertForMaskedLM"]) == "masked"
    assert {kind: position_limit(language_model(kind)) for kind in KINDS} == {
        kind: None if kind in ("llama", "lstm-lm", "elmo") else 24 for kind in KINDS
    }


@pytest.mark.parametrize("kind", ["gpt2", "bert", "lstm-lm"])
def test_the_stock_pipeline(kind, tmp_path):
    from transformers import pipeline

    model = joint(
        kind,
        dtype=torch.float32,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
        num_labels=2,
    )
    model.save_pretrained(tmp_path)
    tokenize = tokenizer(tmp_path, pad_token="<pad>")
    texts = ["w5 w6 w7", "w8 w9 w10 w11 w12"]
    found = pipeline("text-classification", str(tmp_path))(texts, batch_size=2)
    scores = model(**tokenize(texts, padding=True, return_tensors="pt")).logits.softmax(1).max(1)
    assert [one["label"] for one in found] == [["bad", "good"][int(place)] for place in scores.indices]
    assert [one["score"] for one in found] == pytest.approx(scores.values.tolist(), abs=1e-6)


REMOTE = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "heirloom":
            raise ModuleNotFoundError("heirloom is not here")


sys.meta_path.insert(0, Absent())
folder = sys.argv[1]

import torch
from transformers import AutoModelForSequenceClassification

found = {}
for kind in sys.argv[2:]:
    shape = (2, 2, 5) if kind == "elmo" else (2, 5)
    ids = torch.arange(5, 5 + torch.Size(shape).numel()).view(shape)
    model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/{kind}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    model.save_pretrained(f"{folder}/{kind}/again")
    model = AutoModelForSequenceClassification.from_pretrained(f"{folder}/{kind}/again", trust_remote_code=True)
    output = model(ids, labels=torch.tensor([0, 1]))
    found[kind] = type(model).__name__, output.logits.detach(), output.loss.detach()
assert not [name for name in sys.modules if name.split(".")[0] == "heirloom"]
torch.save(found, folder + "/found.pt")
"""


# Where heirloom is absent, Transformers keeps one class an Auto class for the code of several checkpoints: one at a time.
@pytest.mark.parametrize("heads", [{"gpt2": "classes", "lstm-lm": "classes"}, {"elmo": "similarity"}])
def test_remote_code_where_heirloom_is_not_installed(heads, tmp_path):
    models = {kind: joint(kind, head, torch.float32) for kind, head in heads.items()}
    for kind, model in models.items():
        model.save_pretrained(tmp_path / kind)
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-I", "-c", REMOTE, str(tmp_path), *heads]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    for kind, model in models.items():
        shape = (2, 2, 5) if kind == "elmo" else (2, 5)
        ids = torch.arange(5, 5 + torch.Size(shape).numel()).view(shape)
        expected = model(ids, labels=torch.tensor([0, 1]))
        assert found[kind][0] == type(model).__name__
        torch.testing.assert_close(found[kind][1], expected.logits)
        torch.testing.assert_close(found[kind][2], expected.loss)
