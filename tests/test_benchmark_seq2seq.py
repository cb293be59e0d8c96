"""benchmarks/seq2seq_speed.py on tiny sizes: the plain twin is our model without its extras, and the systems compare."""

import argparse
import sys
from pathlib import Path

import pytest
import torch

from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SIZES = {
    "vocab_size": 30,
    "encoder_vocab_size": 40,
    "encoder_pad_token_id": 0,
    "embedding_size": 16,
    "cell_size": 24,
    "upper_size": 12,
    "dropout": 0.0,
}
TWO_LAYERS, PROJECTION = {}, {"num_hidden_layers": 3, "projection_size": 20}


@pytest.fixture(scope="module")
def speed():
    """The benchmark as a module; its folder is on the path only while it is imported."""
    sys.path.insert(0, str(FOLDER))
    import seq2seq_speed

    sys.path.remove(str(FOLDER))
    return seq2seq_speed


@pytest.fixture(scope="module")
def batches(speed):
    lengths = [(5, 9), (12, 3), (1, 1), (8, 8)]
    return speed.Batches(LstmSeq2SeqConfig(**SIZES), lengths, seed=0)


def twins(speed, **changes):
    """Our model without residual and first-layer attention, and the plain one with its weights, all of them large."""
    config = LstmSeq2SeqConfig(**SIZES | changes, residual=False, multi_layer_attention=False)
    ours, plain = LstmSeq2SeqForConditionalGeneration(config).eval(), speed.PlainSeq2Seq(config).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.uniform_(-2, 2).mul_(0.1 if "bias" in name else 1)
    pairs = [
        (plain.source_words, ours.encoder.embed_tokens),
        (plain.target_words, ours.decoder.embed_tokens),
        (plain.encoder_first, ours.encoder.layers[0]),
        (plain.decoder_first, ours.decoder.layers[0]),
        (plain.combine, ours.decoder.combine),
        (plain.softmax, ours.lm_head),
    ]
    for module, other in pairs:
        module.load_state_dict(other.state_dict())
    for stack, side in ((plain.encoder_upper, ours.encoder), (plain.decoder_upper, ours.decoder)):
        weights = {}
        for number, layer in enumerate(side.layers[1:]):
            weights |= {name.replace("l0", f"l{number}"): value for name, value in layer.state_dict().items()}
        stack.load_state_dict(weights)
    return ours, plain


@pytest.mark.parametrize("changes", [TWO_LAYERS, PROJECTION], ids=["two layers", "projection"])
def test_plain_is_ours_without_extras(speed, batches, changes):
    ours, plain = twins(speed, **changes)
    batch = batches.pairs(0, 7)
    assert batch["attention_mask"].sum(1).unique().numel() > 1
    losses = ours(**batch).loss, plain(**batch)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for loss in losses:
        loss.backward()
    gradients = ours.decoder.layers[0].weight_hh_l0.grad, plain.decoder_first.weight_hh_l0.grad
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beams", [1, 4])
def test_plain_search_finds_what_generate_finds(speed, batches, beams):
    ours, plain = twins(speed, **PROJECTION)
    for model in (ours, plain):
        speed.never_end(model)
    source = batches.pairs(1, 9)
    del source["labels"]
    found = [
        speed.decode(name, model, source, beams) for name, model in (("ours", ours), (speed.PLAIN, plain))
    ]
    assert found[0].shape == (9, speed.TOKENS)
    assert torch.equal(*found)
    assert len(found[0].unique(dim=0)) > 4
    assert not (found[0] == speed.EOS).any()
    if beams > 1:
        assert not torch.equal(found[1], speed.decode(speed.PLAIN, plain, source, 1))


def test_systems_have_as_many_parameters(speed):
    sizes = SIZES | {
        "vocab_size": 1000,
        "encoder_vocab_size": 900,
        "embedding_size": 32,
        "cell_size": 64,
        "upper_size": 64,
    }
    systems = speed.make_systems(LstmSeq2SeqConfig(**sizes), 0)
    counts = {name: speed.count(model) for name, model in systems.items()}
    assert list(counts) == [speed.PLAIN, speed.OURS, speed.JOINT, speed.TRANSFORMER]
    for name, number in counts.items():
        assert number == pytest.approx(counts[speed.PLAIN], rel=0.03), name
    assert sum(p.numel() for p in systems[speed.OURS].parameters()) > counts[speed.OURS]


def test_a_transformer_that_cannot_be_is_refused(speed):
    with pytest.raises(ValueError, match="no Transformer of 2 layers has 100 parameters"):
        speed.transformer_config(LstmSeq2SeqConfig(**SIZES), 100)


def test_batches_are_equal_for_equal_numbers(batches):
    first, again, other = batches.pairs(3, 5, with_text=True), batches.pairs(3, 5), batches.pairs(4, 5)
    assert torch.equal(first["labels"], again["labels"])
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert first["labels"].shape != other["labels"].shape or not torch.equal(first["labels"], other["labels"])
    known = first["labels"] != -100
    lengths = list(zip(first["attention_mask"].sum(1).tolist(), (known.sum(1) - 1).tolist(), strict=True))
    assert set(lengths) <= set(batches.lengths)
    ends = first["labels"].gather(1, known.sum(1, keepdim=True) - 1)
    assert (ends == 1).all()
    assert (first["labels"] == 1).sum() == 5


def test_every_system_has_its_row(speed):
    options = argparse.Namespace(seed=0, batches=[3], beams=[1, 2], rows=2, steps=1, repeats=1)
    rows, origin = speed.measure(options, LstmSeq2SeqConfig(**SIZES))
    assert origin in ("those of Multi30k", "drawn around 14")
    lines = [line.strip("| ").split(" | ") for line in speed.table(rows).splitlines()]
    assert lines[0] == [
        "system",
        "parameters",
        "training, batch 3, target tokens/s",
        "greedy, sentences/s",
        "beam 2, sentences/s",
    ]
    assert [line[0] for line in lines[2:]] == [speed.PLAIN, speed.OURS, speed.JOINT, speed.TRANSFORMER]
    assert all("(1.00)" in cell for cell in lines[2][2:])
    for row in rows:
        assert len(row["rates"]) == (1 if row["system"] == speed.JOINT else 3)
        assert all(rate > 0 for rate in row["rates"].values()), row


def test_without_the_data_lengths_are_drawn(speed, monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "TEXTS", tmp_path)
    lengths, origin = speed.pair_lengths(0)
    assert origin == "drawn around 14"
    assert lengths == speed.pair_lengths(0)[0]
    for side in zip(*lengths, strict=True):
        assert 13 < sum(side) / len(side) < 15
        assert 3 <= min(side) <= max(side) <= 40
