"""The LSTM language model's initial values, saving and loading, ties, resizing, tokenizers, and remote code."""

import json
import os
import subprocess
import sys

import pytest
import torch
from reference.lstm_lm_naive import ADAPTIVE, SAMPLED, TIED, close, tiny
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM, LstmLMModel


def test_initial_values():
    config = LstmLMConfig(
        vocab_size=300,
        embedding_size=40,
        cell_size=60,
        projection_size=50,
        num_hidden_layers=2,
        initializer_range=0.1,
    )
    for name, parameter in LstmLMForCausalLM(config).named_parameters():
        if "bias_ih" in name:
            assert parameter.view(4, 60).mean(1).tolist() == [0, 1, 0, 0]
            assert parameter.std() > 0
            assert set(parameter.tolist()) == {0.0, 1.0}
        elif "bias" in name:
            assert (parameter == 0).all(), name
        else:
            assert 0.095 < parameter.abs().max() <= 0.1, name
            assert parameter.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.1), name


def same(one: dict, other: dict, prefix: str = "") -> bool:
    one = {name.removeprefix(prefix): value for name, value in one.items() if name.startswith(prefix)}
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "changes", [{}, {"projection_size": 4, "num_hidden_layers": 1}, ADAPTIVE, SAMPLED, TIED]
)
def test_round_trip(changes, tmp_path):
    model, ids = tiny(**changes), torch.randint(0, 13, (2, 5))
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is LstmLMForCausalLM
    assert not any(report.values())
    assert same(model.state_dict(), loaded.state_dict())
    assert close([loaded(ids).logits], [model(ids).logits])
    assert isinstance(AutoConfig.from_pretrained(tmp_path), LstmLMConfig)
    files = set(load_file(tmp_path / "model.safetensors"))
    assert files == set(model.state_dict()) - (
        {"lm_head.weight"} if "tie_word_embeddings" in changes else set()
    )
    body = AutoModel.from_pretrained(tmp_path)
    assert type(body) is LstmLMModel
    assert same(model.state_dict(), body.state_dict(), "model.")
    body.save_pretrained(tmp_path / "body")
    head, report = AutoModelForCausalLM.from_pretrained(tmp_path / "body", output_loading_info=True)
    assert same(head.state_dict(), body.state_dict(), "model.")
    new = {name for name in model.state_dict() if name.startswith("lm_head")}
    assert set(report["missing_keys"]) == new - (
        {"lm_head.weight"} if "tie_word_embeddings" in changes else set()
    )
    for folder in (tmp_path, tmp_path / "body"):
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert auto_map == AUTO_MAP["lstm-lm"]
        assert all((folder / f"{place.split('.')[0]}.py").exists() for place in auto_map.values())


def test_loaded_biases_are_kept_and_new_layers_drawn(tmp_path):
    model = tiny(dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.75)
    model.save_pretrained(tmp_path)
    deeper = LstmLMForCausalLM.from_pretrained(tmp_path, num_hidden_layers=3)
    for name, parameter in deeper.named_parameters():
        if "layers.2.bias_ih" in name:
            assert parameter.view(4, 7).mean(1).tolist() == [0, 1, 0, 0]
        else:
            assert (parameter == 0.75).all() == ("layers.2." not in name), name


def test_ties_survive(tmp_path):
    model = tiny(**TIED)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.resize_token_embeddings(20)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model(torch.tensor([[19]])).logits.shape == (1, 1, 20)


@pytest.mark.parametrize("changes", [{}, SAMPLED, TIED])
def test_resizing(changes, tmp_path):
    model, ids = tiny(**changes), torch.randint(0, 10, (2, 5))
    old = model(ids).logits.detach()  # a living graph would remember the old sizes
    for size in (17, 10):
        model.resize_token_embeddings(size)
        assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == size
        assert model.lm_head.bias.shape == (size,)
        assert close([model(ids).logits[..., :10]], [old[..., :10]])
    model.train()(ids, labels=ids).loss.backward()
    model.save_pretrained(tmp_path)
    assert close([AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits], [model.eval()(ids).logits])


def test_resizing_refused():
    with pytest.raises(ValueError, match="adaptive softmax cannot be resized.*Make a new model"):
        tiny(**ADAPTIVE).resize_token_embeddings(20)
    with pytest.raises(ValueError, match="num_sampled = 6 .*new_num_tokens = 6.*Lower"):
        tiny(**SAMPLED).resize_token_embeddings(6)
    assert tiny(**ADAPTIVE).get_output_embeddings() is None
    model = tiny()
    assert model.get_output_embeddings() is model.lm_head


def test_any_fast_tokenizer_belongs_to_it(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"w{number}" for number in range(10)), "<unk>"]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **marks).save_pretrained(tmp_path)
    tiny().save_pretrained(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert tokenizer.is_fast
    batch = tokenizer(["<eos> w1 w2 w3", "<eos> nothing"], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == [[1, 3, 4, 5], [0, 0, 1, 12]]
    assert batch.keys() == {"input_ids", "attention_mask"}
    assert model(**batch, labels=batch["input_ids"]).loss > 0
    assert model.generate(**batch, max_new_tokens=3).shape[0] == 2


REMOTE = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "heirloom":
            raise ModuleNotFoundError("heirloom is not here")


sys.meta_path.insert(0, Absent())
folder = sys.argv[1]

import torch
from transformers import AutoModel, AutoModelForCausalLM

found, ids = {}, torch.tensor([[1, 4, 5], [1, 9, 2]])
for place in (folder, folder + "/again"):
    body = AutoModel.from_pretrained(place, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(place, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    found[place] = body(ids)[0].detach(), model.generate(ids, num_beams=3, max_new_tokens=6)
    model.save_pretrained(folder + "/again")
assert not [name for name in sys.modules if name.split(".")[0] == "heirloom"]
torch.save(found, folder + "/found.pt")
"""


def test_remote_code_where_heirloom_is_not_installed(tmp_path):
    folder, model = tmp_path / "checkpoint", tiny(**SAMPLED, **TIED)
    model.save_pretrained(folder)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", REMOTE, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids, found = torch.tensor([[1, 4, 5], [1, 9, 2]]), torch.load(folder / "found.pt")
    assert len(found) == 2
    for vectors, sequences in found.values():
        assert close([vectors], [model.model(ids)[0]])
        assert torch.equal(sequences, model.generate(ids, num_beams=3, max_new_tokens=6))
