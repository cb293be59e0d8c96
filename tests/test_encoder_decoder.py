"""Two stock language models to a stock encoder-decoder: what it begins as, and what is written."""

import json
import subprocess
import sys

import pytest
import torch
from stock_lms import (
    BERT,
    IDS,
    SOURCE_WORDS,
    TARGET_WORDS,
    bert,
    bert_lm,
    fuzz,
    gpt2,
    roberta,
    save,
    tokenizer,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    ElectraConfig,
    ElectraForCausalLM,
    EncoderDecoderModel,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForCausalLM,
    XGLMConfig,
    XGLMForCausalLM,
)

from heirloom.conversion.encoder_decoder import convert_stock, encoder_decoder
from heirloom.modeling.seq2seq_losses import StockSeq2SeqLosses

pytestmark = pytest.mark.filterwarnings("ignore")  # notes are warnings, tested by their words below

PAIRS = {"bert-gpt2": (bert, gpt2), "roberta-gpt2": (roberta, gpt2), "bert-bert": (bert, bert_lm)}
pairs = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    source = torch.randint(3, SOURCE_WORDS, (3, 7), generator=generator)
    return source, torch.randint(3, TARGET_WORDS, (3, 9), generator=generator)


@torch.no_grad()
def step_zero(model, lm):
    """The largest difference of conditional logits to the LM's, over sources, padded or not."""
    worst = 0.0
    for seed in range(3):
        source, target = batch(seed)
        mask = torch.ones_like(source)
        mask[0, 4:] = 0
        expected = lm(input_ids=target).logits
        for each in (None, mask):
            found = model(input_ids=source, attention_mask=each, decoder_input_ids=target).logits
            worst = max(worst, (found - expected).abs().max().item())
    return worst


# What it begins as


@pytest.mark.parametrize("make", [bert, roberta, gpt2], ids=["bert", "roberta", "gpt2"])
def test_gpt2_is_kept_exactly(make):
    lm = gpt2()
    model, _ = encoder_decoder(make(), lm)
    assert type(model) is EncoderDecoderModel
    assert step_zero(model, lm) == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: XGLMForCausalLM(
            XGLMConfig(
                vocab_size=TARGET_WORDS, d_model=16, ffn_dim=32, num_layers=2, attention_heads=2, **IDS
            )
        ),
        lambda: RobertaPreLayerNormForCausalLM(
            RobertaPreLayerNormConfig(vocab_size=TARGET_WORDS, is_decoder=True, **BERT)
        ),
    ],
    ids=["xglm", "roberta-prelayernorm"],
)
def test_others_that_normalise_first_are_kept_exactly(make):
    lm = fuzz(make())
    assert step_zero(encoder_decoder(bert(), lm)[0], lm) == 0.0


@pytest.mark.parametrize(
    "make",
    [
        bert_lm,
        lambda: RobertaForCausalLM(RobertaConfig(vocab_size=TARGET_WORDS, is_decoder=True, **BERT)),
        lambda: ElectraForCausalLM(
            ElectraConfig(vocab_size=TARGET_WORDS, is_decoder=True, embedding_size=12, **BERT)
        ),
    ],
    ids=["bert", "roberta", "electra"],
)
def test_those_that_normalise_afterwards_are_kept_up_to_rounding(make):
    """Zeros alone do not do it: without the moved gains, logits are off by tenths."""
    lm = fuzz(make())
    model, _ = encoder_decoder(bert(), lm)
    assert step_zero(model, lm) < 1e-5
    _, target = batch()
    with torch.no_grad():
        expected = lm(input_ids=target).logits
        zeros = torch.zeros(3, 1, 16)
        alone = model.decoder(input_ids=target, encoder_hidden_states=zeros).logits
        assert (alone - expected).abs().max() < 1e-5
        assert (model.decoder(input_ids=target).logits - expected).abs().max() > 0.05
        for layer in model.decoder.base_model.encoder.layer:  # back to where the gains were
            one, two = layer.attention.output.LayerNorm, layer.crossattention.output.LayerNorm
            for name, constant in (("weight", 1.0), ("bias", 0.0)):
                getattr(one, name).copy_(getattr(two, name))
                getattr(two, name).fill_(constant)
        assert step_zero(model, lm) > 0.05


def test_gains_stay_where_they_do_no_harm():
    lm = bert_lm()
    with torch.no_grad():
        for layer in lm.bert.encoder.layer:
            layer.attention.output.LayerNorm.weight.fill_(1)
            layer.attention.output.LayerNorm.bias.zero_()
    with pytest.warns(UserWarning, match="are never read") as caught:
        model, origins = encoder_decoder(bert(), lm, None, tokenizer(40))
    assert step_zero(model, lm) < 1e-5
    assert not any("moved" in row.origin for row in origins)
    assert not any("moved" in str(each.message) for each in caught)


def test_cross_attention_that_the_target_brings_is_switched_off():
    lm = gpt2(add_cross_attention=True)
    model, origins = encoder_decoder(bert(), lm)
    assert step_zero(model, lm) == 0.0
    found = {row.parameter.partition("crossattention.")[2]: row.origin for row in origins}
    assert (found["q_attn.weight"], found["c_proj.weight"]) == ("target LM", "zero")


@pairs
def test_zeros_learn_at_once(pair):
    source, target = (make() for make in pair)
    model, _ = encoder_decoder(source, target)
    ids, labels = batch()
    model(input_ids=ids, labels=labels).loss.backward()
    outputs = [
        (name, parameter.grad)
        for name, parameter in model.named_parameters()
        if "crossattention" in name and ("c_proj" in name or "output.dense" in name)
    ]
    assert len(outputs) == 4
    for name, gradient in outputs:
        assert gradient.abs().max() > 1e-4, name
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(10):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    with torch.no_grad():
        one = model(input_ids=ids, decoder_input_ids=labels).logits
        two = model(input_ids=ids.flip(0), decoder_input_ids=labels).logits
    assert (one - two).abs().max() > 1e-3  # now the source counts


def test_a_source_that_was_a_decoder_reads_both_ways():
    source = bert_lm(add_cross_attention=True)
    model, rows = encoder_decoder(source, gpt2())
    assert (model.config.encoder.is_decoder, model.config.encoder.add_cross_attention) == (False, False)
    assert not any("crossattention" in row.parameter for row in rows if row.parameter.startswith("encoder"))
    one, two = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 9]])
    with torch.no_grad():
        first, second = (model.encoder(input_ids=ids)[0][:, 0] for ids in (one, two))
    assert (first - second).abs().max() > 1e-3


def test_half_precision_is_kept_and_sides_are_promoted():
    lm = gpt2().to(torch.bfloat16)
    model, _ = encoder_decoder(bert().to(torch.bfloat16), lm)
    assert model.dtype == torch.bfloat16
    assert step_zero(model, lm) == 0.0
    assert encoder_decoder(bert(), lm)[0].dtype == torch.float32


def test_the_caller_keeps_models_and_random_numbers():
    source, target = bert(), gpt2()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    configs = source.config.to_dict(), target.config.to_dict()
    model, _ = encoder_decoder(source, target)
    with torch.no_grad():
        model.decoder.transformer.wte.weight.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
    assert (source.config.to_dict(), target.config.to_dict()) == configs
    torch.manual_seed(3)
    one = encoder_decoder(source, target)[0].state_dict()
    torch.manual_seed(3)
    two = encoder_decoder(source, target)[0].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


# The table of origins


@pairs
def test_every_parameter_is_in_one_row_that_is_true(pair):
    source, target = (make() for make in pair)
    model, rows = encoder_decoder(source, target)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    assert [row.parameter for row in rows] == list(parameters)
    theirs = {f"encoder.{name}": tensor for name, tensor in source.base_model.state_dict().items()}
    theirs |= {f"decoder.{name}": tensor for name, tensor in target.state_dict().items()}
    for row in rows:
        parameter, origin = parameters[row.parameter], row.origin.removesuffix(", not used")
        assert row.shape == tuple(parameter.shape)
        if origin in ("source LM", "target LM"):
            assert torch.equal(parameter, theirs[row.parameter]), row
            assert row.parameter.startswith("encoder" if origin == "source LM" else "decoder")
        elif origin.startswith("target LM, moved from "):
            assert torch.equal(parameter, theirs[origin.removeprefix("target LM, moved from ")]), row
        elif origin.startswith("shares "):
            assert parameter is parameters[origin.removeprefix("shares ")]
        elif origin in ("zero", "one"):
            assert (parameter == (origin == "one")).all(), row
        else:
            assert origin == "random"
            assert parameter.std() > 0.001, row
            assert row.parameter not in theirs
    origins = [row.origin for row in rows]
    assert origins.count("random, not used") <= 2  # a masked LM has no pooler
    assert "shares" in " ".join(origins)  # the softmax is the embedding
    if target.config.model_type == "bert":
        assert sum("moved from" in origin for origin in origins) == 4
    random = {row.parameter.split(".")[-2] for row in rows if row.origin == "random"}
    assert random <= {"q_attn", "c_attn", "enc_to_dec_proj", "query", "key", "value"}


# Ids


def all_ids(config):
    names = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    return tuple(getattr(config, name) for name in names)


@pairs
def test_ids_are_everywhere(pair, tmp_path):
    source, target = (make() for make in pair)
    expected = (1, 1, 2, 2 if target.config.model_type == "gpt2" else 0)
    convert_stock(save(source, tmp_path / "a"), save(target, tmp_path / "b"), tmp_path / "out")
    model = EncoderDecoderModel.from_pretrained(tmp_path / "out")
    for holder in (model.config, model.config.decoder, model.decoder.config, model.generation_config):
        assert all_ids(holder) == expected, type(holder)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["vocab_size"] == written["decoder"]["vocab_size"] == TARGET_WORDS
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["decoder_start_token_id"], generation["eos_token_id"]) == (1, 2)


def test_ids_come_from_the_tokenizer_where_the_config_has_none():
    lm = bert_lm(bos_token_id=None, eos_token_id=None)
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    words = tokenizer(TARGET_WORDS, special, **names)
    model, _ = encoder_decoder(bert(), lm, target_tokenizer=words)
    assert all_ids(model.config) == all_ids(model.generation_config) == (2, 2, 3, 0)
    defaults = gpt2(bos_token_id=50256, eos_token_id=50256)  # GPT2Config's own, of no word here
    model, _ = encoder_decoder(bert(), defaults, target_tokenizer=tokenizer(TARGET_WORDS))
    assert all_ids(model.config) == (1, 1, 2, 0)


def test_a_pad_that_was_chosen_is_told():
    with pytest.warns(UserWarning, match="has no pad: its eos, 2, was chosen"):
        encoder_decoder(bert(), gpt2())


def test_a_pad_that_is_the_start_is_told_and_true():
    with pytest.warns(UserWarning, match="pad is also decoder_start.*DataCollatorForSeq2Seq"):
        model, _ = encoder_decoder(bert(), gpt2(bos_token_id=2))
    source, labels = batch()
    with torch.no_grad():
        alone = model(input_ids=source, labels=labels).logits
        features = [
            {"input_ids": s, "labels": t} for s, t in zip(source.tolist(), labels.tolist(), strict=True)
        ]
        collated = DataCollatorForSeq2Seq(tokenizer(TARGET_WORDS), model=model)(features)
        collated = model(**collated).logits
        start = torch.full((3, 1), 2)
        right = model(input_ids=source, decoder_input_ids=torch.cat([start, labels[:, :-1]], 1)).logits
    assert (alone - right).abs().max() > 0.01
    assert (collated - right).abs().max() < 1e-5


# Generating, saving, loading


@pairs
@pytest.mark.parametrize("beams", [1, 3])
def test_it_generates_what_the_lm_would(pair, beams):
    source, target = (make() for make in pair)
    model, _ = encoder_decoder(source, target)
    ids, _ = batch()
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "num_beams": beams, "do_sample": False}
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    target.generation_config.pad_token_id = model.config.pad_token_id
    expected = target.generate(torch.ones(1, 1, dtype=torch.long), **options)
    assert torch.equal(found, expected.expand_as(found))


@pairs
def test_loaded_is_what_was_made(pair, tmp_path):
    source, target = (make() for make in pair)
    rows, notes = convert_stock(save(source, tmp_path / "a"), save(target, tmp_path / "b"), tmp_path / "out")
    assert all(row.difference == 0 for row in rows)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    model = EncoderDecoderModel.from_pretrained(tmp_path / "out")
    assert [row.parameter for row in rows] == [
        name for name, _ in model.named_parameters(remove_duplicate=False)
    ]
    exact = target.config.model_type == "gpt2"
    assert step_zero(model, lm) <= (0 if exact else 1e-5)
    assert any(f"before training the decoder is target {tmp_path / 'b'}" in note for note in notes)
    assert any("no tokenizer beside" in note for note in notes)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_tied_as_they_were(tied, tmp_path):
    target = gpt2(tie_word_embeddings=tied)
    rows, _ = convert_stock(save(bert(), tmp_path / "a"), save(target, tmp_path / "b"), tmp_path / "out")
    model = EncoderDecoderModel.from_pretrained(tmp_path / "out")
    decoder = model.decoder
    assert (decoder.lm_head.weight is decoder.transformer.wte.weight) is tied
    origin = {row.parameter: row.origin for row in rows}["decoder.lm_head.weight"]
    assert origin == ("shares decoder.transformer.wte.weight" if tied else "target LM")
    assert torch.equal(decoder.lm_head.weight, target.lm_head.weight)


def test_ties_that_are_lost_are_noticed(tmp_path, monkeypatch):
    load = EncoderDecoderModel.from_pretrained

    def untied(*args, **kwargs):
        model = load(*args, **kwargs)
        model.decoder.lm_head.weight = torch.nn.Parameter(model.decoder.lm_head.weight.detach().clone())
        return model

    folders = save(bert(), tmp_path / "a"), save(gpt2(), tmp_path / "b")
    monkeypatch.setattr(EncoderDecoderModel, "from_pretrained", untied)
    with pytest.raises(ValueError, match="Verification failed: the encoder-decoder ties nothing, expected"):
        convert_stock(*folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "where", ["encoder.encoder.layer.0", "decoder.transformer.h.1.crossattention.c_proj"]
)
def test_numbers_that_change_are_noticed(where, tmp_path, monkeypatch):
    load = EncoderDecoderModel.from_pretrained

    def changed(*args, **kwargs):
        model = load(*args, **kwargs)
        with torch.no_grad():
            next(model.get_submodule(where).parameters()).view(-1)[3] += 1e-6
        return model

    folders = save(bert(), tmp_path / "a"), save(gpt2(), tmp_path / "b")
    monkeypatch.setattr(EncoderDecoderModel, "from_pretrained", changed)
    with pytest.raises(ValueError, match=f"Verification failed: the checkpoint differs.*{where}"):
        convert_stock(*folders, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_the_folder_needs_no_heirloom(tmp_path):
    a = save(bert(), tmp_path / "a", tokenizer(SOURCE_WORDS, prefix="s"))
    b = save(gpt2(), tmp_path / "b", tokenizer(TARGET_WORDS))
    out = tmp_path / "out"
    convert_stock(a, b, out)
    assert not any("heirloom" in path.read_text() for path in out.rglob("*.json"))
    assert not list(out.rglob("*.py"))
    script = """
import sys
sys.modules["heirloom"] = None
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, EncoderDecoderModel
out = sys.argv[1]
model = AutoModelForSeq2SeqLM.from_pretrained(out)
assert type(model) is EncoderDecoderModel
source = AutoTokenizer.from_pretrained(out + "/source_tokenizer")
target = AutoTokenizer.from_pretrained(out + "/target_tokenizer")
ids = source(["s5 s6 s7", "s9"], padding=True, return_tensors="pt")
found = model.generate(**ids, max_new_tokens=5, num_beams=2)
torch.save(found, sys.argv[2])
print(target.decode(found[0]))
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(out), str(tmp_path / "found.pt")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    ids = AutoTokenizer.from_pretrained(out / "source_tokenizer")(
        ["s5 s6 s7", "s9"], padding=True, return_tensors="pt"
    )
    expected = EncoderDecoderModel.from_pretrained(out).generate(**ids, max_new_tokens=5, num_beams=2)
    assert torch.equal(torch.load(tmp_path / "found.pt"), expected)


def test_tokenizers_are_written_and_can_pad(tmp_path):
    names = {"bos_token": "[BOS]", "eos_token": "[EOS]"}
    a = save(gpt2(SOURCE_WORDS), tmp_path / "a", tokenizer(SOURCE_WORDS, prefix="s", **names))
    b = save(gpt2(), tmp_path / "b", tokenizer(TARGET_WORDS, **names))
    _, notes = convert_stock(a, b, tmp_path / "out")
    for side in ("source", "target"):
        found = AutoTokenizer.from_pretrained(tmp_path / "out" / f"{side}_tokenizer")
        assert found.pad_token == "[EOS]"
        assert f"the {side}'s tokenizer had no pad_token; the one that was written has [EOS]" in notes
    assert f"source {a} reads from left to right only, as an encoder too" in notes
    assert AutoTokenizer.from_pretrained(a).pad_token is None


def test_equal_tokenizers_are_written_once(tmp_path):
    a = save(bert(TARGET_WORDS), tmp_path / "a", tokenizer(TARGET_WORDS))
    b = save(bert_lm(), tmp_path / "b", tokenizer(TARGET_WORDS))
    _, notes = convert_stock(a, b, tmp_path / "out")
    assert "the tokenizers are equal: one was written" in notes
    assert AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab() == tokenizer(TARGET_WORDS).get_vocab()


@pytest.mark.parametrize("make", [gpt2, bert_lm], ids=["gpt2", "bert"])
def test_the_language_model_is_still_in_the_decoder(make):
    """What the joint Trainer goes on training: also a decoder whose norms were moved predicts what it did."""
    lm = make()
    ids = batch()[1]
    with torch.no_grad():
        logits = lm(input_ids=ids[:, :-1]).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        model, _ = encoder_decoder(bert(), lm)
        found = StockSeq2SeqLosses(model.eval())(target_lm_input_ids=ids).target_lm_loss
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
