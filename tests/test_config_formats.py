"""Configs that a newer heirloom saved, and configs of other models: refused in words, for each class of the table."""

import importlib
import json

import pytest
import transformers
from reference.joint_loss_naive import language_model
from transformers import AutoConfig, BertConfig

from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_heirloom import FORMAT

BUILT_BY = {
    "electra-joint": "from_electra_pretrained",
    "ernie-thu": "from_bert_pretrained",
    "infoword": "from_encoder",
    "joint-loss": "from_backbone_pretrained",
    "lstm-seq2seq": "from_language_models",
    "multi-task": "from_backbone_pretrained",
    "sentence-pair": "from_encoder",
    "spanbert": "from_encoder",
}
MODELS = sorted({(kind, place) for kind, t in AUTO_MAP.items() for auto, place in t.items() if auto != "AutoConfig"})  # fmt: skip


def load(place):
    file, name = place.split(".")
    return getattr(importlib.import_module(f"heirloom.modeling.{file}"), name)


def written(folder, **changes):
    path = folder / "config.json"
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in record.items() if value is not ...}))
    return folder


@pytest.mark.parametrize("kind", AUTO_MAP)
def test_a_config_of_a_newer_heirloom_is_refused(kind, tmp_path):
    config_class = load(AUTO_MAP[kind]["AutoConfig"])
    config_class().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["heirloom_format"] == FORMAT
    plain = config_class.from_pretrained(tmp_path)
    assert "heirloom_format" not in vars(plain)
    old = AutoConfig.from_pretrained(written(tmp_path, heirloom_format=...))
    assert type(old) is config_class
    assert old.to_diff_dict() == plain.to_diff_dict()
    words = (
        rf"has heirloom_format {FORMAT + 1}, and this heirloom reads heirloom_format {FORMAT} and older: a newer "
        r"heirloom saved it. Run `pip install -U heirloom-lm`; or load it with trust_remote_code=True, .* that does "
        "not import heirloom"
    )
    # Fields that this code does not know, or with values that it would refuse, do not come first.
    written(tmp_path, heirloom_format=FORMAT + 1, tie_word_embeddings="by layer", initializer_range="new")
    for loader in (AutoConfig, config_class, *(load(place) for k, place in MODELS if k == kind)):
        with pytest.raises(ValueError, match=words):
            loader.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has heirloom_format 'two'"):
        AutoConfig.from_pretrained(written(tmp_path, heirloom_format="two"))
    with pytest.raises(ValueError, match=f"has heirloom_format {FORMAT + 1}"):
        config_class(heirloom_format=FORMAT + 1)  # so come nested configs


def test_what_was_nested_has_the_number_and_no_such_attribute(tmp_path):
    load(AUTO_MAP["joint-loss"]["AutoConfig"])(text_config={"model_type": "lstm-lm"}).save_pretrained(
        tmp_path
    )
    nested = AutoConfig.from_pretrained(tmp_path).text_config
    assert "heirloom_format" not in vars(nested)
    nested.save_pretrained(tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / "config.json").read_text())["heirloom_format"] == FORMAT


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    language_model("bert").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "place"), MODELS, ids=[place for _, place in MODELS])
def test_a_bare_language_model_is_refused_with_what_to_call(kind, place, bert):
    model_class = load(place)
    words = f"expected a checkpoint of model type '{kind}', found one of 'bert'. Load that with its own class or an Auto class"
    with pytest.raises(ValueError, match=words) as raised:
        model_class.from_pretrained(bert)
    told = str(raised.value)
    if kind not in BUILT_BY:
        assert told.endswith("Auto class.")
        return
    assert f"to build a '{kind}' model on it, call {BUILT_BY[kind]} of " in told
    names = told.split(" of ")[-1].removesuffix(".").split(" or ")
    assert place.split(".")[1] in names or place.split(".")[1] == "ErnieThuModel"
    for name in names:  # what the advice names is there
        file = next(place for _, place in MODELS if place.endswith(f".{name}")).split(".")[0]
        assert callable(getattr(load(f"{file}.{name}"), BUILT_BY[kind]))


def test_a_class_of_the_users_own_may_begin_with_any_checkpoint(tmp_path):
    class OwnConfig(load(AUTO_MAP["elmo"]["AutoConfig"])):
        model_type = "own-elmo"

    load(AUTO_MAP["elmo"]["AutoConfig"])(projection_size=9, cell_size=9).save_pretrained(tmp_path)
    assert OwnConfig.from_pretrained(tmp_path).projection_size == 9


def test_a_language_model_is_taken_out_of_a_joint_checkpoint(tmp_path):
    lstm = load(AUTO_MAP["lstm-lm"]["AutoConfig"])
    text = lstm(cell_size=7)
    load(AUTO_MAP["joint-loss"]["AutoConfig"])(text_config=text).save_pretrained(tmp_path)
    assert lstm.from_pretrained(tmp_path).cell_size == 7  # as Transformers does for parts of a config


def test_a_part_that_is_another_models_config_names_it():
    elmo = load(AUTO_MAP["elmo"]["AutoConfig"])
    with pytest.raises(ValueError, match="model type 'elmo', found one of 'bert'"):
        elmo.from_dict(BertConfig().to_dict())
    assert transformers.AutoConfig.for_model("elmo").model_type == "elmo"
