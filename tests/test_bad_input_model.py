"""Inputs and configs that no model should take, by the words of their errors; and strange ones that it should."""

import logging

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from reference.bilm_files import build, char_ids, difference, random_weights, tiny_options
from transformers.utils import logging as transformers_logging

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.modeling_elmo import (
    ElmoForPreTraining,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoModel,
)

OPTIONS = tiny_options()
WEIGHTS = random_weights(OPTIONS, words=8)
BODY = {name: array for name, array in WEIGHTS.items() if not name.startswith("softmax")}
BOTH = random_weights(OPTIONS, words=8, word_size=5)  # reads words and characters
BOTH = {name: array for name, array in BOTH.items() if not name.startswith("softmax")}
IDS = char_ids([["a", "b"], ["c"]])
H, C = torch.zeros(2, 3, 12), torch.zeros(2, 3, 20)
CLASSES = torch.tensor([[0, 1], [2, -100]])


def characters() -> ElmoModel:
    return build(ElmoModel, OPTIONS, BODY)


def words_and_characters() -> ElmoModel:
    return build(ElmoModel, OPTIONS, BOTH)


def language_model() -> ElmoForPreTraining:
    return build(ElmoForPreTraining, OPTIONS, WEIGHTS)


def tagger() -> ElmoForTokenClassification:
    return build(ElmoForTokenClassification, OPTIONS, BODY, num_labels=3)


def classifier() -> ElmoForSequenceClassification:
    return build(ElmoForSequenceClassification, OPTIONS, BODY, num_labels=3)


def changed(place, value, ids=IDS):
    ids = ids.clone()
    ids[place] = value
    return ids


BAD = [
    (characters, {}, r"reads characters: pass char_ids \(B, T, C\), as ElmoTokenizer makes them"),
    (characters, {"input_ids": IDS[..., 0]}, "reads characters: pass char_ids"),
    (
        characters,
        {"char_ids": IDS[0]},
        r"char_ids must be \(B, T, C\) character ids, shape \(any, any, 50\); found \(2, 50\)",
    ),
    (
        characters,
        {"char_ids": IDS[..., :25]},
        r"shape \(any, any, 50\); found \(2, 2, 25\).*tokenizer that belongs",
    ),
    (characters, {"char_ids": IDS.float()}, r"char_ids must be integers \(torch.long\), found torch.float32"),
    (characters, {"char_ids": IDS.bool()}, "char_ids must be integers .*found torch.bool"),
    (characters, {"char_ids": changed((0, 0, 3), 262)}, r"char_ids must lie in 0\.\.261, found 0\.\.262"),
    (characters, {"char_ids": changed((0, 0, 3), -1)}, r"char_ids must lie in 0\.\.261, found -1\.\.261"),
    (
        characters,
        {"char_ids": IDS, "input_ids": IDS[:1, :, 0]},
        r"inputs must agree in \(B, T\).*input_ids.*\(1, 2\)",
    ),
    (characters, {"char_ids": IDS, "attention_mask": torch.ones(2, 3)}, r"agree in \(B, T\).*whole output"),
    (characters, {"char_ids": IDS, "attention_mask": torch.ones(2)}, r"agree in \(B, T\)"),
    (
        characters,
        {"char_ids": IDS, "attention_mask": torch.ones(2, 2, 1)},
        r"attention_mask be \(B, T\) of 0 and 1",
    ),
    (
        characters,
        {"char_ids": IDS, "attention_mask": torch.ones(2, 2)},
        "marks 1 position.*ids are all padding",
    ),
    (characters, {"char_ids": IDS, "states": (H,)}, r"states must be \(h, c\)"),
    (
        characters,
        {"char_ids": IDS, "states": (C, H)},
        r"states must be \(h, c\) of shapes \(2, R, 12\) and \(2, R, 20\)",
    ),
    (characters, {"char_ids": IDS, "states": (H[0], C[0])}, r"found \[\(3, 12\), \(3, 20\)\]"),
    (characters, {"char_ids": IDS, "states": (H[:, :2], C)}, r"states must be \(h, c\)"),
    (characters, {"char_ids": IDS, "states": (H[:1], C[:1])}, "Pass the `states` that this model returned"),
    (characters, {"inputs_embeds": torch.zeros(2, 2, 6)}, "inputs_embeds need an attention_mask"),
    (
        characters,
        {"inputs_embeds": torch.zeros(2, 2, 5), "attention_mask": torch.ones(2, 2)},
        r"inputs_embeds must be \(B, T, P\) token vectors, shape \(any, any, 6\); found \(2, 2, 5\)",
    ),
    (
        characters,
        {"inputs_embeds": torch.zeros(2, 2, 6), "attention_mask": torch.ones(2, 3)},
        r"inputs must agree in \(B, T\)",
    ),
    (words_and_characters, {"char_ids": IDS}, r"reads whole words: pass input_ids \(B, T\)"),
    (words_and_characters, {"input_ids": IDS[..., 0].clamp(max=8)}, "reads characters: pass char_ids"),
    (words_and_characters, {"input_ids": IDS, "char_ids": IDS}, r"input_ids must be \(B, T\) word ids"),
    (
        words_and_characters,
        {"input_ids": torch.tensor([[3, 9], [1, 0]]), "char_ids": IDS},
        r"input_ids must lie in 0\.\.8, found 0\.\.9",
    ),
    (
        language_model,
        {"char_ids": IDS, "labels": torch.tensor([[3, 4]])},
        r"labels must be \(B, T\) = \(2, 2\) word ids",
    ),
    (language_model, {"char_ids": IDS, "labels": torch.ones(2, 2)}, "labels must be .*found .*torch.float32"),
    (
        language_model,
        {"char_ids": IDS, "labels": torch.tensor([[3, 9], [1, 0]])},
        r"word ids in 1\.\.8 or -100, found 1\.\.9",
    ),
    (
        language_model,
        {"char_ids": IDS, "labels": torch.tensor([[3, 0], [1, 0]])},
        r"word ids in 1\.\.8 or -100, found 0\.\.3",
    ),
    (
        tagger,
        {"char_ids": IDS, "labels": CLASSES[0]},
        r"labels must be \(B, T\) = \(2, 2\) classes, found \(2,\)",
    ),
    (
        tagger,
        {"char_ids": IDS, "labels": CLASSES + 1},
        r"labels must lie in 0\.\.2 \(or be -100\), found -99\.\.3",
    ),
    (tagger, {"char_ids": IDS, "labels": CLASSES - 1}, "Set num_labels to the number of classes"),
    (tagger, {"char_ids": IDS[0], "labels": CLASSES}, "char_ids must be"),
    (classifier, {"char_ids": IDS, "labels": torch.tensor([3, 0])}, r"labels must lie in 0\.\.2"),
    (
        classifier,
        {"char_ids": IDS, "labels": CLASSES},
        r"labels must be \(2,\) class ids, found shape \(2, 2\)",
    ),
    (
        classifier,
        {"char_ids": IDS, "labels": torch.ones(2)},
        r"multi_label_classification needs labels of shape \(2, 3\), found \(2,\)",
    ),
]


@pytest.mark.parametrize(
    ("make", "inputs", "words"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
def test_bad_inputs(make, inputs, words):
    with pytest.raises(ValueError, match=words):
        make()(**inputs)


@pytest.mark.parametrize("shape", [(0, 0, 50), (0, 3, 50), (2, 0, 50), (2, 3, 50)], ids=str)
def test_nothing_is_a_batch_too(shape):
    """No sentence, or sentences without words: the right shapes, zeros, and finite losses."""
    ids = torch.zeros(shape, dtype=torch.long)
    batch, steps = shape[:2]
    found = characters()(char_ids=ids, output_hidden_states=True)
    assert found.last_hidden_state.shape == (batch, steps, 12)
    assert len(found.hidden_states) == 3
    assert (found.last_hidden_state == 0).all()
    assert [state.shape for state in found.states] == [(2, batch, 12), (2, batch, 20)]
    kept = characters()(char_ids=ids, keep_boundaries=True)
    assert kept.last_hidden_state.shape == (batch, steps + 2, 12)
    assert kept.attention_mask.sum(1).tolist() == [2] * batch
    nothing = torch.full((batch, steps), -100)
    model = language_model()
    assert model(char_ids=ids).forward_logits.shape == (batch, steps, 9)
    loss = model(char_ids=ids, labels=nothing).loss
    loss.backward()
    assert loss.isfinite()
    assert (loss > 0) == (batch > 0)  # empty sentences still end
    assert tagger()(char_ids=ids, labels=nothing).loss == 0
    assert tagger()(char_ids=ids).logits.shape == (batch, steps, 3)
    assert classifier()(char_ids=ids, labels=torch.zeros(batch, dtype=torch.long)).loss.isfinite()
    assert classifier()(char_ids=ids).logits.shape == (batch, 3)


def test_states_pass_through_an_empty_batch():
    model = characters()
    states = model(char_ids=IDS).states
    again = model(char_ids=IDS[:0], states=states).states
    assert all(map(torch.equal, states, again))


def test_a_sentence_of_5000_words():
    words = ["one", "two", "three", "four", "five"] * 1000
    long = char_ids([words])
    with torch.no_grad():
        found = characters()(char_ids=long).last_hidden_state
        start = characters()(char_ids=long[:, :100]).last_hidden_state
    assert found.shape == (1, 5000, 12)
    assert found.isfinite().all()
    assert (
        difference(found[:, :99, :6], start[:, :99, :6]) < 1e-6
    )  # left halves do not know how long the sentence is
    with torch.no_grad():
        together = characters()(char_ids=torch.cat([long, torch.zeros_like(long)])).last_hidden_state
    assert difference(together[0], found[0]) < 1e-6
    assert (together[1] == 0).all()


CONFIGS = [
    ({"projection_size": 0}, "projection_size must be at least 1, found 0"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
    ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ({"projection_size": 64, "cell_size": 32}, "projection_size 64 must not exceed cell_size 32"),
    ({"cell_clip": 0.0}, "cell_clip must be positive, found 0.0. Use None to turn clipping off"),
    ({"proj_clip": -3}, "proj_clip must be positive, found -3"),
    ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), found 1.0"),
    ({"head_dropout": -0.1}, "head_dropout must lie in"),
    ({"use_token_projection": False}, r"token features \(2048\) must equal projection_size \(512\)"),
    ({"mix_layers": [3]}, r"mix_layers must name layers 0\.\.2, found \[3\]"),
    ({"mix_layers": []}, r"mix_layers must name layers 0\.\.2, found \[\]"),
    ({"char_embedding_size": 0}, "char_embedding_size or word_embedding_size above 0, found neither"),
    ({"char_filters": []}, "char_filters must be"),
    ({"char_filters": [[1, 32, 3]]}, r"char_filters must be \(width, count\) pairs"),
    ({"char_filters": [[0, 32]]}, r"char_filters must be \(width, count\) pairs of at least 1"),
    ({"max_characters_per_token": 6}, r"reach over the widest filter \(7\), found 6"),
    ({"char_filters": [[1, 8]], "max_characters_per_token": 2}, "must be at least 3"),
    ({"char_vocab_size": 100}, r"'bos_char_id', .*must lie in 1\.\.char_vocab_size-1 = 99"),
    ({"pad_char_id": 0}, r"\['pad_char_id'\] must lie in"),
    ({"projection_size": "512"}, "projection_size"),
    ({"projection_size": 512.0}, "projection_size"),
    ({"num_hidden_layers": None}, "num_hidden_layers"),
    ({"char_filters": 7}, "char_filters"),
    ({"char_activation": "gelu"}, "char_activation"),
    ({"mix_layer_norm": True}, "mix_layer_norm"),
    ({"pooling": "cls"}, "pooling"),
    ({"use_skip_connections": "yes"}, "use_skip_connections"),
    ({"cell_clip": "3"}, "cell_clip"),
]


@pytest.mark.parametrize(("fields", "words"), CONFIGS, ids=str)
def test_bad_configs(fields, words):
    with pytest.raises(StrictDataclassError, match=words):
        ElmoConfig(**fields)


def test_integers_are_fine_where_numbers_are_wanted():
    ElmoConfig(cell_clip=3, proj_clip=None, dropout=0, mix_l2=1, forget_bias=0)


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("projection_dim", None),
        ("projecton_size", "projection_size"),
        ("num_hiden_layers", "num_hidden_layers"),
    ],
)
def test_a_misspelt_field_is_named(field, meant, caplog):
    transformers_logging.enable_propagation()
    caplog.set_level(logging.WARNING)
    ElmoConfig(**{field: 3})
    transformers_logging.disable_propagation()
    if meant is None:
        assert "Did you mean" not in caplog.text
    else:
        assert f"ElmoConfig has no field `{field}`. Did you mean `{meant}`?" in caplog.text


def test_a_right_field_is_not_called_misspelt(caplog):
    ElmoConfig(num_labels=3, projection_size=8, cell_size=16, output_hidden_states=True, label2id={"a": 0})
    assert "Did you mean" not in caplog.text
