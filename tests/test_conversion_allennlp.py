"""AllenNLP's state dicts to heirloom: the same biLM as from bilm-tf's files, mixes, and parts of whole models."""

import re

import numpy as np
import pytest
import torch
from reference.bilm_files import SENTENCES, char_ids, random_weights, tiny_options
from weights import allennlp_state, read_arrays, write_bilm_files

from heirloom.conversion import from_allennlp, from_bilm, scalar_mixes, to_bilm

MIXES = {
    "scalar_mix_0.gamma": [2.0],
    "scalar_mix_0.scalar_parameters.0": [0.0],
    "scalar_mix_0.scalar_parameters.1": [1.0],
    "scalar_mix_0.scalar_parameters.2": [-1.0],
    "scalar_mix_1.gamma": [0.5],
    "scalar_mix_1.scalar_parameters.0": [0.0],
    "scalar_mix_1.scalar_parameters.1": [0.0],
    "scalar_mix_1.scalar_parameters.2": [0.0],
}


@pytest.fixture
def original(tmp_path):
    """Options, bilm-tf's paths and datasets, and the bare biLM's state."""
    options = tiny_options()
    arrays = random_weights(options, dtype=np.float32)
    return options, write_bilm_files(tmp_path / "bilm", options, arrays), arrays, allennlp_state(arrays, 2, 2)


def save(path, state, prefix=""):
    torch.save({prefix + name: torch.tensor(np.asarray(array)) for name, array in state.items()}, path)
    return path


def test_the_same_model_as_from_hdf5(original, tmp_path):
    options, paths, arrays, state = original
    model = from_allennlp(options, save(tmp_path / "weights.th", state))
    assert model.config.forget_bias == 0.0
    ids = char_ids(SENTENCES)
    for dtype, atol in ((torch.float32, 1e-5), (torch.float64, 1e-6)):
        found = model.to(dtype)(char_ids=ids, output_hidden_states=True).hidden_states
        expected = from_bilm(**paths).to(dtype)(char_ids=ids, output_hidden_states=True).hidden_states
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)
    with pytest.warns(UserWarning, match="largest rounding difference 0"):
        to_bilm(model.float(), tmp_path / "back")
    back = read_arrays(tmp_path / "back" / "weights.hdf5")
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_allclose(back[name], array, rtol=0, atol=1.2e-7 * name.endswith("/B"), err_msg=name)


@pytest.mark.parametrize("outer", ["", "text_field_embedder.token_embedder_elmo._elmo."])
def test_whole_modules_and_models(original, tmp_path, outer):
    options, _, _, state = original
    bare = from_allennlp(options, save(tmp_path / "bare.th", state)).state_dict()
    whole = {f"{outer}_elmo_lstm.{name}": array for name, array in state.items()}
    whole |= {outer + name: np.array(numbers) for name, numbers in MIXES.items()}
    inner = np.full(50, 261)
    for name, mark in (("beginning", 257), ("end", 258)):
        buffer = inner.copy()
        buffer[:3] = 259, mark, 260
        whole[f"{outer}_elmo_lstm._token_embedder._{name}_of_sentence_characters"] = buffer
    if outer:
        whole |= {"encoder.weight": np.zeros((2, 2)), "crf.transitions": np.zeros(3)}
    path = save(tmp_path / "whole.th", whole)
    with pytest.warns(UserWarning, match="scalar mixes of whole.th") as caught:
        model = from_allennlp(options, path)
    said = "\n".join(str(warning.message) for warning in caught)
    assert all(torch.equal(weight, bare[name]) for name, weight in model.state_dict().items())
    assert "[0.245, 0.665, 0.090], gamma 2.000; [0.333, 0.333, 0.333], gamma 0.500" in said
    assert ("2 tensor(s) of whole.th are not part of ELMo: ['crf', 'encoder']" in said) == bool(outer)

    first, second = scalar_mixes(path)
    hidden = model(char_ids=char_ids(SENTENCES), output_hidden_states=True).hidden_states
    shares = torch.tensor([0.0, 1.0, -1.0]).softmax(0)
    expected = 2 * sum(share * layer for share, layer in zip(shares, hidden, strict=True))
    torch.testing.assert_close(first(hidden), expected)
    torch.testing.assert_close(second(hidden), sum(hidden) / 6)
    assert scalar_mixes(save(tmp_path / "bare.th", state)) == []
    assert scalar_mixes(path, do_layer_norm=True)[0].do_layer_norm


def test_a_projection_between_equal_sizes(tmp_path):
    """AllenNLP always projects the token features."""
    options = tiny_options(lstm_projection_dim=9, cnn_filters=[[1, 4], [2, 5]])
    arrays = random_weights(options, dtype=np.float32)
    draw = np.random.default_rng(2).standard_normal
    arrays |= {"CNN_proj/W_proj": draw((9, 9)), "CNN_proj/b_proj": draw(9)}
    paths = write_bilm_files(tmp_path, options, arrays)
    model = from_allennlp(options, save(tmp_path / "weights.th", allennlp_state(arrays, 2, 2)))
    ids = char_ids(SENTENCES)
    expected = from_bilm(**paths)(char_ids=ids).last_hidden_state
    torch.testing.assert_close(model(char_ids=ids).last_hidden_state, expected, rtol=0, atol=1e-5)


def refused(match, *args, **kwargs):
    with pytest.raises(ValueError, match=match) as caught:
        from_allennlp(*args, **kwargs)
    return str(caught.value)


def test_the_world_is_closed(original, tmp_path):
    options, _, _, state = original
    state["_token_embedder._projection.bias"] = np.zeros(5)
    state["_token_embedder._projection.weight"][0, 0] = np.nan
    state["_elmo_lstm.more"] = np.zeros(1)
    del state["_elmo_lstm.forward_layer_1.input_linearity.weight"]
    message = refused("never read", options, save(tmp_path / "weights.th", state, "model._elmo_lstm."))
    for words in (
        "missing: ['model._elmo_lstm._elmo_lstm.forward_layer_1.input_linearity.weight']; see option lstm.n_layers",
        "never read: ['model._elmo_lstm._elmo_lstm.more']",
        "_projection.bias has shape (5,), expected (6,); see option lstm.projection_dim",
    ):
        assert words in message, words


def test_bad_state_dicts(original, tmp_path):
    options, _, _, state = original
    path = tmp_path / "weights.th"
    for layers in (1, 3):
        options["lstm"]["n_layers"] = layers
        refused("see option .*lstm.n_layers", options, save(path, state))
    options["lstm"]["n_layers"] = 2
    broken = state | {"_token_embedder.char_conv_0.bias": np.full(4, np.nan)}
    refused(r"NaN or infinite weights in '_token_embedder\.char_conv_0\.bias'", options, save(path, broken))
    refused("holds no AllenNLP ELMo", options, save(path, {"weight": np.zeros(3)}))
    twice = {f"{prefix}.{name}": array for name, array in state.items() for prefix in "ab"}
    refused(re.escape("holds 2 biLMs, by their prefixes ['a.', 'b.']"), options, save(path, twice))
    moved = state | {"_token_embedder._beginning_of_sentence_characters": np.arange(50)}
    refused(r"expected \[259, 257, 260, 261, 261\]", options, save(path, moved))
    refused(
        "scalar_mix_0.gamma must be one finite number",
        options,
        save(path, state | {"scalar_mix_0.gamma": [1, 2.0]}),
    )
    refused(
        "scalar_mix_0 needs gamma", options, save(path, state | {"scalar_mix_0.scalar_parameters.1": [1.0]})
    )
    torch.save([1, 2], path)
    refused(r"must hold a state dict: names and tensors\. Found a list", options, path)
    torch.save({"model": state}, path)
    refused(r"is no complete PyTorch state dict|must hold a state dict", options, path)
    raw = save(path, state).read_bytes()
    for size in (0, 10, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        refused(r"is no complete PyTorch state dict", options, path)


def test_code_in_a_pickle_is_not_run(original, tmp_path):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    path = tmp_path / "weights.th"
    torch.save({"weight": Harm()}, path)
    refused("pickled objects are not loaded, for safety", original[0], path)


def test_options_that_allennlp_never_had(original, tmp_path):
    options, _, _, state = original
    path = save(tmp_path / "weights.th", state)
    options["lstm"]["use_skip_connections"] = False
    refused("use_skip_connections must be true: AllenNLP's biLM always has them", options, path)
    del options["char_cnn"]
    refused("char_cnn is missing", options, path)
