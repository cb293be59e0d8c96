"""The LSTM encoder-decoder's initial values, saving and loading, ties, resizing, and remote code."""

import json
import os
import subprocess
import sys

import pytest
import torch
from reference.lstm_lm_naive import close
from reference.lstm_seq2seq_naive import KINDS, tiny
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration


def same(one, other) -> bool:
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_initial_values():
    config = LstmSeq2SeqConfig(
        vocab_size=300, embedding_size=40, cell_size=60, upper_size=50, initializer_range=0.1
    )
    for name, parameter in LstmSeq2SeqForConditionalGeneration(config).named_parameters():
        if "bias_ih" in name:
            assert parameter.view(4, -1).mean(1).tolist() == [0, 1, 0, 0]
        elif "bias" in name:
            assert (parameter == 0).all(), name
        else:
            assert 0.095 < parameter.abs().max() <= 0.1, name


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, tmp_path):
    model, ids = tiny(**KINDS[kind]), torch.randint(1, 11, (2, 5))
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is LstmSeq2SeqForConditionalGeneration
    assert not any(report.values())
    assert same(model, loaded)
    options = {"num_beams": 4, "max_new_tokens": 8}
    assert torch.equal(loaded.generate(ids, **options), model.generate(ids, **options))
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LstmSeq2SeqConfig)
    tied = {"lm_head.weight", "encoder_lm_head.weight"} if kind == "tied" else set()
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict()) - tied
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP["lstm-seq2seq"]
    if kind == "tied":
        assert loaded.lm_head.weight is loaded.decoder.embed_tokens.weight
        assert loaded.encoder_lm_head.weight is loaded.encoder.embed_tokens.weight


def test_a_tied_bidirectional_model_has_one_tie(tmp_path):
    model = tiny(**KINDS["bidirectional"], tie_word_embeddings=True)
    assert model.lm_head.weight is model.decoder.embed_tokens.weight
    assert model.encoder_lm_head is None
    model.save_pretrained(tmp_path)
    assert same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("kind", ["joint", "tied joint"])
def test_resizing_a_joint_vocabulary(kind, tmp_path):
    model = tiny(**KINDS["joint"], **(KINDS["tied"] if kind == "tied joint" else {}))
    ids = torch.randint(1, 10, (2, 5))
    old = model(ids, decoder_input_ids=ids).logits.detach()
    for size in (17, 11):
        table = model.resize_token_embeddings(size)
        assert table is model.encoder.embed_tokens
        assert (model.config.vocab_size, model.config.encoder_vocab_size) == (size, None)
        sizes = [
            len(part.weight)
            for part in (table, model.decoder.embed_tokens, model.lm_head, model.encoder_lm_head)
        ]
        assert sizes == [size] * 4
        assert close([model(ids, decoder_input_ids=ids).logits[..., :11]], [old[..., :11]])
        assert (model.lm_head.weight is model.decoder.embed_tokens.weight) == (kind == "tied joint")
    model(ids, labels=ids, source_lm_input_ids=ids, target_lm_input_ids=ids).loss.backward()
    model.save_pretrained(tmp_path)
    assert same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), model)
    assert model.resize_token_embeddings() is model.encoder.embed_tokens
    with pytest.raises(
        ValueError, match="share a joint vocabulary, found a new size for the target alone. Call resize_token"
    ):
        model.resize_target_embeddings(20)


@pytest.mark.parametrize("kind", ["plain", "tied"])
def test_resizing_separate_vocabularies(kind, tmp_path):
    model, ids = tiny(**KINDS[kind]), torch.randint(1, 10, (2, 5))
    old = model(ids, decoder_input_ids=ids).logits.detach()
    assert model.resize_source_embeddings(12) is model.encoder.embed_tokens
    assert close([model(ids, decoder_input_ids=ids).logits], [old])  # the target is as it was
    assert model.resize_target_embeddings(17) is model.decoder.embed_tokens
    assert (model.config.encoder_vocab_size, model.config.vocab_size) == (12, 17)
    assert len(model.encoder_lm_head.weight) == len(model.encoder_lm_head.bias) == 12
    assert len(model.lm_head.weight) == len(model.lm_head.bias) == 17
    assert close([model(ids, decoder_input_ids=ids).logits[..., :13]], [old])
    model(torch.tensor([[11]]), labels=torch.tensor([[16]]), source_lm_input_ids=ids).loss.backward()
    model.save_pretrained(tmp_path)
    assert same(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), model)
    with pytest.raises(
        ValueError, match=r"vocabularies of their own \(12 and 17 words\).*Call resize_source_embeddings or"
    ):
        model.resize_token_embeddings(20)


def test_resizing_refused():
    with pytest.raises(ValueError, match="adaptive softmax cannot be resized"):
        tiny(softmax="adaptive", adaptive_cutoffs=[4, 9], cell_size=16).resize_target_embeddings(20)
    with pytest.raises(ValueError, match="num_sampled = 6 .*new_num_tokens = 6.*Lower"):
        tiny(softmax="sampled", num_sampled=6).resize_source_embeddings(6)
    assert tiny().get_output_embeddings().out_features == 13


REMOTE = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "heirloom":
            raise ModuleNotFoundError("heirloom is not here")


sys.meta_path.insert(0, Absent())
folder = sys.argv[1]

import torch
from transformers import AutoModelForSeq2SeqLM

found, ids = {}, torch.tensor([[1, 4, 5], [1, 9, 2]])
for place in (folder, folder + "/again"):
    model = AutoModelForSeq2SeqLM.from_pretrained(place, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    loss = model(ids, labels=ids, source_lm_input_ids=ids).loss
    found[place] = loss.detach(), model.generate(ids, num_beams=3, max_new_tokens=6)
    model.save_pretrained(folder + "/again")
assert not [name for name in sys.modules if name.split(".")[0] == "heirloom"]
torch.save(found, folder + "/found.pt")
"""


def test_remote_code_where_heirloom_is_not_installed(tmp_path):
    folder, model = tmp_path / "checkpoint", tiny(**KINDS["tied"])
    model.save_pretrained(folder)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", REMOTE, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids, found = torch.tensor([[1, 4, 5], [1, 9, 2]]), torch.load(folder / "found.pt")
    assert len(found) == 2
    for loss, sequences in found.values():
        assert close([loss], [model(ids, labels=ids, source_lm_input_ids=ids).loss])
        assert torch.equal(sequences, model.generate(ids, num_beams=3, max_new_tokens=6))
