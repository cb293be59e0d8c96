"""Initial values, saving and loading: bodies into heads and back, Auto classes, remote code where heirloom is not."""

import json
import math
import os
import re
import subprocess
import sys

import pytest
import torch
from reference.bilm_files import SENTENCES, build, char_ids, config, difference, random_weights, tiny_options
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.modeling_elmo import (
    ElmoForPreTraining,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoModel,
)

OPTIONS = tiny_options()
WEIGHTS = random_weights(OPTIONS, words=12)
BODY = {name: array for name, array in WEIGHTS.items() if not name.startswith("softmax")}
AUTO = {
    ElmoModel: AutoModel,
    ElmoForPreTraining: AutoModelForPreTraining,
    ElmoForSequenceClassification: AutoModelForSequenceClassification,
    ElmoForTokenClassification: AutoModelForTokenClassification,
}
BIG = {
    "projection_size": 64,
    "cell_size": 96,
    "char_embedding_size": 8,
    "char_filters": [[1, 64], [3, 64]],
    "vocab_size": 200,
    "max_characters_per_token": 10,
}
LSTM_BOUND = math.sqrt(6 / (2 * 64 + 4 * 96))
INITIAL = {  # which parameter: how far it reaches at most (None for a normal distribution) and its deviation
    r"char_embeddings\.weight": (1.0, 1 / math.sqrt(3)),
    r"word_embeddings\.weight": (math.sqrt(6 / (200 + 32)), math.sqrt(2 / (200 + 32))),
    r"convolutions\..\.weight": (0.05, 0.05 / math.sqrt(3)),
    r"convolutions\..\.bias": (0.0, 0.0),
    r"highways\..\.(transform|gate)\.weight": (None, 1 / math.sqrt(128)),
    r"highways\..\.transform\.bias": (0.0, 0.0),
    r"encoder\.projection\.weight": (None, 1 / math.sqrt(128 + 32)),
    r"encoder\.projection\.bias": (0.0, 0.0),
    r"weight_[ih]h": (LSTM_BOUND, LSTM_BOUND / math.sqrt(3)),
    r"layers\..\.bias": (0.0, 0.0),
    r"weight_proj": (math.sqrt(6 / (64 + 96)), math.sqrt(2 / (64 + 96))),
    r"softmax\.weight": (None, 1 / math.sqrt(64)),
    r"softmax\.bias": (0.0, 0.0),
    r"classifier\.weight": (None, 0.02),
    r"classifier\.bias": (0.0, 0.0),
    r"mix\.scalar_parameters": (0.0, 0.0),
}


def check_initial(name: str, parameter: torch.Tensor, table=INITIAL) -> None:
    """The parameter is drawn as its row of the table says."""
    if name.endswith("gate.bias") or name.endswith("mix.gamma"):
        assert (parameter == (-2.0 if name.endswith("gate.bias") else 1.0)).all(), name
        return
    (limit, deviation), *others = [row for pattern, row in table.items() if re.search(pattern, name)]
    assert not others, name
    parameter = parameter.detach()[1:] if "embeddings" in name else parameter.detach()
    if limit is not None:
        assert parameter.abs().max() <= limit, name
        assert parameter.abs().max() >= 0.95 * limit, name
    assert parameter.std(correction=0).item() == pytest.approx(deviation, rel=0.12), name


def same(one, other, prefix="", other_prefix="") -> bool:
    one = {name.removeprefix(prefix): value for name, value in one.items() if name.startswith(prefix)}
    other = {n.removeprefix(other_prefix): value for n, value in other.items() if n.startswith(other_prefix)}
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(model_class, folder, **changes):
    weights = WEIGHTS if model_class is ElmoForPreTraining else BODY
    model = build(model_class, OPTIONS, weights, **changes)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("model_class", AUTO)
def test_initial_values(model_class):
    model = model_class(ElmoConfig(**BIG, word_embedding_size=32))
    names = [name for name, _ in model.named_parameters()]
    assert len(names) > 20
    for name, parameter in model.named_parameters():
        check_initial(name, parameter)
    tables = [p for name, p in model.named_parameters() if "embeddings" in name]
    assert len(tables) == 2
    assert all((table[0] == 0).all() for table in tables)


def test_initial_convolutions_of_a_tanh_model():
    model = ElmoModel(ElmoConfig(**BIG, char_activation="tanh"))
    for name, parameter in model.named_parameters():
        if re.search(r"convolutions\..\.weight", name):
            assert parameter.std().item() == pytest.approx(1 / math.sqrt(8 * parameter.shape[2]), rel=0.12)


@pytest.mark.parametrize("model_class", AUTO)
def test_round_trip(model_class, tmp_path):
    model = saved(model_class, tmp_path)
    for loader in (model_class, AUTO[model_class]):
        loaded, report = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is model_class
        assert not any(report.values())
        assert same(model.state_dict(), loaded.state_dict())
        assert not loaded.training
        ids = char_ids(SENTENCES)
        assert torch.equal(loaded(char_ids=ids)[0], model(char_ids=ids)[0])
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ElmoConfig)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == set(model.state_dict())  # no hidden state, nothing else


def test_every_checkpoint_names_all_auto_classes(tmp_path):
    saved(ElmoForTokenClassification, tmp_path)
    AutoModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert AUTO_MAP["elmo"].items() <= auto_map.items()
        for place in auto_map.values():
            assert (folder / f"{place.split('.')[0]}.py").exists()


HEADS = [ElmoForPreTraining, ElmoForSequenceClassification, ElmoForTokenClassification]


@pytest.mark.parametrize("model_class", HEADS)
def test_a_body_into_a_head(model_class, tmp_path):
    ElmoModel(ElmoConfig(**BIG)).save_pretrained(tmp_path)
    head, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    new = {name for name, _ in head.named_parameters() if not name.startswith("elmo.")}
    assert set(report["missing_keys"]) == new
    assert same(load_file(tmp_path / "model.safetensors"), head.state_dict(), "", "elmo.")
    for name in new:
        check_initial(name, head.get_parameter(name))


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("model_class", HEADS)
def test_a_head_into_another_and_into_a_body(model_class, freeze, tmp_path):
    model = saved(ElmoForPreTraining, tmp_path)
    other = model_class.from_pretrained(tmp_path, freeze_bilm=freeze, num_labels=5)
    assert same(model.state_dict(), other.state_dict(), "elmo.", "elmo.")
    other.save_pretrained(tmp_path / "other")
    body = AutoModel.from_pretrained(tmp_path / "other")
    assert same(model.state_dict(), body.state_dict(), "elmo.", "")
    assert all(parameter.requires_grad for parameter in body.parameters())


@pytest.mark.parametrize("model_class", HEADS[1:])
def test_a_frozen_bilm_stays_frozen_and_can_be_freed(model_class, tmp_path):
    saved(model_class, tmp_path, freeze_bilm=True)
    frozen = model_class.from_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in frozen.elmo.parameters())
    assert all(p.requires_grad for p in (*frozen.mix.parameters(), *frozen.classifier.parameters()))
    assert not frozen.train().elmo.training
    freed = model_class.from_pretrained(tmp_path, freeze_bilm=False)
    assert all(parameter.requires_grad for parameter in freed.parameters())
    assert freed.train().elmo.training


def test_parameters_missing_from_a_checkpoint_are_drawn_and_the_others_kept(tmp_path):
    model = ElmoModel(ElmoConfig(**BIG))
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.75)
    model.save_pretrained(tmp_path)
    names = [
        "convolutions.1.weight",
        "highways.0.gate.bias",
        "highways.1.transform.weight",
        "projection.bias",
    ]
    names = [f"token_encoder.{name}" for name in names]
    names += [f"lstm.backward_layers.1.{name}" for name in ("weight_hh", "bias", "weight_proj")]
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if k not in names}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    loaded, report = ElmoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == set(names)
    for name, parameter in loaded.named_parameters():
        if name in names:
            check_initial(
                name, parameter, INITIAL | {r"encoder\.projection\.weight": (None, 1 / math.sqrt(128))}
            )
        else:
            kept = parameter[1:] if "embeddings" in name else parameter
            assert (kept == 0.75).all(), name


def test_more_layers_than_the_checkpoint(tmp_path):
    ElmoModel(ElmoConfig(**BIG)).save_pretrained(tmp_path)
    deeper = ElmoModel.from_pretrained(tmp_path, num_hidden_layers=3)
    for name in ("weight_ih", "weight_hh", "bias", "weight_proj"):
        for direction in ("forward", "backward"):
            name_of_new = f"lstm.{direction}_layers.2.{name}"
            check_initial(name_of_new, deeper.get_parameter(name_of_new))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_remembered(dtype, tmp_path):
    saved(ElmoModel, tmp_path, dtype=dtype)
    assert AutoModel.from_pretrained(tmp_path).dtype == dtype
    assert AutoModel.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_input_and_output_embeddings():
    characters, words = build(ElmoModel, OPTIONS, BODY), ElmoModel(ElmoConfig(**BIG, word_embedding_size=4))
    assert characters.get_input_embeddings() is characters.token_encoder.char_embeddings
    assert words.get_input_embeddings() is words.token_encoder.word_embeddings
    model = ElmoForPreTraining(config(OPTIONS, WEIGHTS))
    assert model.get_output_embeddings() is model.softmax
    table = torch.nn.Embedding(262, 4)
    model.set_input_embeddings(table)
    assert model.elmo.token_encoder.char_embeddings is table


def test_only_a_table_of_words_is_resized():
    model = ElmoForPreTraining(config(OPTIONS, WEIGHTS))
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    words = "only a table of words can be resized, .*; found characters alone. A model that reads characters knows every"
    with pytest.raises(ValueError, match=words):
        model.resize_token_embeddings(300)
    sizes = BIG | {"word_embedding_size": 4, "vocab_size": 20}
    words = ElmoForPreTraining(ElmoConfig(**sizes))
    words.resize_token_embeddings(25)
    assert (words.config.vocab_size, words.softmax.out_features) == (25, 25)
    assert words.get_input_embeddings().num_embeddings == 25
    adaptive = ElmoConfig(**sizes | {"softmax": "adaptive", "adaptive_cutoffs": [5]})
    with pytest.raises(ValueError, match="found an adaptive softmax"):
        ElmoForPreTraining(adaptive).resize_token_embeddings(25)


REMOTE = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "heirloom":
            raise ModuleNotFoundError("heirloom is not here")


sys.meta_path.insert(0, Absent())
folder = sys.argv[1]

import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForTokenClassification

found, ids = {}, torch.load(folder + "/ids.pt")
for place in (folder, folder + "/again", folder + "/finetuned"):
    for auto in (AutoModel, AutoModelForPreTraining, AutoModelForTokenClassification):
        torch.manual_seed(0)
        model = auto.from_pretrained(place, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        found[place, auto.__name__] = model(char_ids=ids)[0].detach()
        if place == folder:
            name = {"AutoModelForPreTraining": "/again", "AutoModelForTokenClassification": "/finetuned"}
            if auto.__name__ in name:
                model.save_pretrained(folder + name[auto.__name__])
assert not [name for name in sys.modules if name.split(".")[0] == "heirloom"]
torch.save(found, folder + "/found.pt")
"""


def test_remote_code_where_heirloom_is_not_installed(tmp_path):
    """A checkpoint loads by itself; what is saved there loads by itself again, by every Auto class."""
    folder = tmp_path / "checkpoint"
    model, ids = saved(ElmoForPreTraining, folder), char_ids(SENTENCES)
    torch.save(ids, folder / "ids.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", REMOTE, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, body, logits = torch.load(folder / "found.pt"), model.elmo(char_ids=ids)[0], model(char_ids=ids)[0]
    assert len(found) == 9
    for (place, auto), value in found.items():
        if auto == "AutoModel":
            assert difference(value, body) < 1e-6, place
        elif auto == "AutoModelForPreTraining" and place != f"{folder}/finetuned":  # it has no softmax
            assert difference(value[..., 1:], logits[..., 1:]) < 1e-6, place
    finetuned = AutoModelForTokenClassification.from_pretrained(
        folder / "finetuned"
    )  # and here by our own classes
    assert type(finetuned) is ElmoForTokenClassification
    assert (
        difference(
            finetuned(char_ids=ids)[0], found[f"{folder}/finetuned", "AutoModelForTokenClassification"]
        )
        < 1e-6
    )
