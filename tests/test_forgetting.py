"""EWC, L2-SP and freezing: values and gradients by hand, Fisher diagonals by hand, beside language models, and in training."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from seq2seq_training import (
    WORDS,
    assert_same,
    bart,
    bert_to_gpt2,
    ids,
    make_files,
    options,
    ours,
    plain,
    sentences,
)
from torch.nn import functional as F

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration
from heirloom.objectives.seq2seq import MonolingualCollator
from heirloom.training.forgetting import (
    ewc,
    fisher_diagonal,
    fisher_in_seq2seq,
    fisher_of_language_model,
    inherited_names,
    l2sp,
    load_fisher,
)
from heirloom.training.parallel_text import open_tokenizers
from heirloom.training.seq2seq import fisher_of_side, train_seq2seq
from heirloom.training.trainer import read_log

LM = {"vocab_size": WORDS, "embedding_size": 6, "cell_size": 8, "num_hidden_layers": 1, "dropout": 0.2}
LM |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.4}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


def lm(**changes) -> LstmLMForCausalLM:
    return LstmLMForCausalLM(LstmLMConfig(**LM | changes))


def test_value_and_gradient_of_ewc_are_the_formulas():
    model = ours().double()
    fisher = {name: torch.rand_like(p) for name, p in model.named_parameters() if "lm_head" in name}
    penalty = ewc(model, fisher, 0.7)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter)
            parameter.grad = torch.randn_like(parameter)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    term = sum(
        (0.7 / 2 * fisher[name].float().double() * (p - start[name]) ** 2).sum()
        for name, p in model.named_parameters()
        if name in fisher
    )
    gradients = dict(
        zip(
            fisher,
            torch.autograd.grad(term, [dict(model.named_parameters())[name] for name in fisher]),
            strict=True,
        )
    )
    value = penalty.after_backward(dict(model.named_parameters()), step=3)
    assert value.keys() == {"ewc_loss"}
    assert float(value["ewc_loss"]) == pytest.approx(float(term.detach()), rel=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name] + gradients.get(name, 0.0))
    scaled = {name: p.grad.clone() for name, p in model.named_parameters()}
    penalty.after_backward(dict(model.named_parameters()), step=3, scale=64.0)
    for name, gradient in gradients.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, scaled[name] + 64 * gradient)


def test_l2sp_is_ewc_with_ones():
    model = ours().double()
    names = inherited_names(model)
    ones = {name: torch.ones_like(p) for name, p in model.named_parameters() if name in names}
    two = [l2sp(model, names, 0.3), ewc(model, ones, 0.3)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.5
    count = sum(p.numel() for name, p in model.named_parameters() if name in names)
    gradients = []
    for penalty in two:
        model.zero_grad()
        (value,) = penalty.after_backward(dict(model.named_parameters()), 0).values()
        assert float(value) == pytest.approx(0.3 / 2 * 0.25 * count)
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_the_fisher_diagonal_is_by_hand():
    model = lm().double().train()
    found = fisher_diagonal(
        model,
        ids(5, 3),
        lambda row: (
            model(input_ids=torch.tensor([[1, *row, 1]]), labels=torch.tensor([[1, *row, 1]])).loss
            * (len(row) + 1),
            len(row) + 1,
        ),
    )
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    tokens = 0
    for row in ids(5, 3):
        model.zero_grad()
        logits = model(input_ids=torch.tensor([[1, *row]])).logits[0]
        F.cross_entropy(logits, torch.tensor([*row, 1]), reduction="sum").backward()
        for name, parameter in model.named_parameters():
            totals[name] += parameter.grad**2
        tokens += len(row) + 1
    assert found.keys() == totals.keys()
    for name, total in totals.items():
        torch.testing.assert_close(found[name].double(), total / tokens, rtol=1e-5, atol=1e-9)
    with pytest.raises(ValueError, match="needs sentences, found none"):
        fisher_diagonal(model, [], lambda row: None)


def test_the_same_diagonal_beside_the_language_model_and_inside_the_seq2seq(tmp_path):
    torch.manual_seed(0)
    lms = {side: lm() for side in ("source", "target")}
    model = LstmSeq2SeqForConditionalGeneration.from_language_models(
        *lms.values(), encoder_vocab_size=WORDS, encoder_pad_token_id=0, upper_size=6
    )
    for side, one in lms.items():
        one.save_pretrained(tmp_path / side)
        fisher_of_language_model(tmp_path / side, ids(6, 4), [1], [1])
        stored = load_fisher(tmp_path / side)
        assert {"model.embed_tokens.weight", "lm_head.bias"} < stored.keys()
        outside = fisher_in_seq2seq(stored, side, model)
        inside = fisher_of_side(model, ids(6, 4), MonolingualCollator(side, [1], [1]))
        assert outside.keys() == inside.keys()
        assert len(outside) == 1 + 4 + 2
        for name, tensor in inside.items():
            assert tensor.max() > 0
            torch.testing.assert_close(outside[name], tensor)
    with pytest.raises(FileNotFoundError, match="fisher.safetensors does not exist. Measure it"):
        load_fisher(tmp_path)
    with pytest.raises(ValueError, match="of which LstmSeq2SeqForConditionalGeneration has none"):
        fisher_in_seq2seq({"transformer.wte.weight": torch.ones(2)}, "target", model)
    other = lm(vocab_size=9)
    with pytest.raises(ValueError, match=r"is \(9, 6\), the parameter \(23, 6\)"):
        ewc(model, {"decoder.embed_tokens.weight": other.model.embed_tokens.weight.detach()})
    with pytest.raises(ValueError, match="none of which is to be kept in this model"):
        ewc(model, inside, names=["nothing"])


def test_a_stock_decoder_has_a_diagonal_too(tmp_path):
    torch.manual_seed(0)
    model = bert_to_gpt2()
    model.decoder.save_pretrained(tmp_path)
    stored = fisher_of_language_model(tmp_path, ids(4, 5), [1], [1])
    outside = fisher_in_seq2seq(stored, "target", model)
    inside = fisher_of_side(model, ids(4, 5), MonolingualCollator("target", [1], [1]))
    assert outside.keys() == inside.keys()
    assert not any("crossattention" in name for name in inside)  # it takes no part
    for name, tensor in inside.items():
        torch.testing.assert_close(outside[name], tensor, rtol=1e-4, atol=1e-8)


def test_which_parameters_are_inherited():
    model = ours()
    names = inherited_names(model)
    halves = {name.split(".")[0] for name in names}
    assert halves == {"encoder", "decoder", "lm_head", "encoder_lm_head"}
    assert not any(".layers.1." in name or "combine" in name for name in names)
    assert "encoder.layers.0.weight_ih_l0" in names
    assert inherited_names(model, ["lm_head"]) == ["lm_head.weight", "lm_head.bias"]
    assert all(
        "crossattention" not in name and "ln_cross" not in name for name in inherited_names(bert_to_gpt2())
    )
    assert len(inherited_names(bart(), ["model.decoder"])) > 10
    with pytest.raises(
        ValueError, match=r"inherited names \['lm_hea'\], but no parameter begins so. Expected some of"
    ):
        inherited_names(model, ["lm_hea"])
    with pytest.raises(ValueError, match="BartForConditionalGeneration did not begin as two language models"):
        inherited_names(bart())


# In training

QUIET = {"source_monolingual": [], "target_monolingual": []}


def moved(folder: Path, names: list[str], start: Path, fisher: Path | None) -> float:
    """How far parameters went, each as it matters."""
    start, end = load_file(start / "model.safetensors"), load_file(folder / "model.safetensors")
    matters = load_fisher(fisher) if fisher else dict.fromkeys(names, 1.0)
    return sum(float((matters[name] * (end[name] - start[name]).square()).sum()) for name in names)


@pytest.mark.parametrize("method", ["ewc", "l2sp", "freeze"])
def test_what_is_held_moves_less(method, files, tmp_path):
    names = inherited_names(LstmSeq2SeqForConditionalGeneration.from_pretrained(files / "joint"))
    train_seq2seq(options(files, **QUIET, forgetting="none"), plain(tmp_path / "none", max_steps=30))
    changes = {"ewc": {}, "l2sp": QUIET, "freeze": QUIET}[method]
    arguments = options(files, **changes, forgetting=method, forgetting_weight=100.0, freeze_steps=25)
    train_seq2seq(arguments, plain(tmp_path / method, max_steps=30))
    where = files / "joint", tmp_path / method if method == "ewc" else None
    assert moved(tmp_path / method, names, *where) < 0.5 * moved(tmp_path / "none", names, *where)
    logs = {name: read_log(tmp_path / name) for name in ("none", method)}
    ends = {name: log[-2 if "train_loss" in log[-1] else -1] for name, log in logs.items()}
    assert "eval_forgetting" in ends["none"]  # measured on the sides of the validation pairs
    training = [record for record in logs[method] if "loss" in record]
    assert not any("source_lm_loss" in record for record in training)
    if method != "freeze":
        assert training[-1][f"{method}_loss"] > 0
        assert training[0][f"{method}_loss"] == 0
        parts = training[-1]["seq2seq_loss"] + training[-1][f"{method}_loss"]
        assert training[-1]["loss"] == pytest.approx(parts, abs=1e-4)
    assert (tmp_path / method / "fisher.safetensors").is_file() == (method == "ewc")


def test_ewc_without_the_text(files, tmp_path):
    """Measured once beside the language models, then read; resumed to the bit."""
    tokenizer = open_tokenizers(str(files / "joint")).target
    folders = {}
    for number, side in enumerate(("source", "target")):
        torch.manual_seed(number)
        lm(vocab_size=len(tokenizer)).save_pretrained(tmp_path / side)
        folders[f"{side}_fisher"] = str(tmp_path / side)
    with pytest.raises(FileNotFoundError, match="source/fisher.safetensors does not exist. Measure it"):
        train_seq2seq(options(files, **QUIET, **folders, forgetting="ewc"), plain(tmp_path / "run"))
    own = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    arguments = options(files, **folders, forgetting="ewc", fisher_sentences=10)
    train_seq2seq(arguments, plain(tmp_path / "with", **own))
    assert (tmp_path / "source" / "fisher.safetensors").is_file()
    train_seq2seq(options(files, **QUIET, **folders, forgetting="ewc"), plain(tmp_path / "without", **own))
    assert_same(tmp_path / "without", tmp_path / "with")
    again = plain(tmp_path / "with", resume_from_checkpoint=str(tmp_path / "with" / "checkpoint-3"), **own)
    train_seq2seq(arguments, again)
    assert_same(tmp_path / "with", tmp_path / "without")
    with pytest.raises(ValueError, match="ewc, which needs Fisher diagonals: give .*--source_fisher"):
        train_seq2seq(options(files, **QUIET, forgetting="ewc"), plain(tmp_path / "run"))


def test_only_the_decoder_is_held(files, tmp_path):
    """As Varis and Bojar (2019) do it."""
    names = ["decoder.embed_tokens", "decoder.layers.0", "lm_head"]
    arguments = options(files, source_monolingual=[], forgetting="ewc", inherited=names)
    trainer = train_seq2seq(arguments, plain(tmp_path / "run", max_steps=2))
    held = trainer.forgetting.start.keys()
    assert held == set(inherited_names(trainer.model, names))


def test_the_text_is_not_all_from_the_beginning(files, tmp_path):
    from heirloom.training.seq2seq import _some

    assert _some([[number] for number in range(10)], 3) == [[0], [3], [6]]
    assert _some([[1], [2]], 5) == [[1], [2]]
    assert sentences(2, 0) != sentences(2, 1)
