"""Files that are broken, no ELMo, or do not belong together: each a clear error, by its words."""

import json
import re

import h5py
import numpy as np
import pytest
import torch
from reference.bilm_files import random_weights, tiny_options
from weights import write_arrays, write_bilm_files, write_vocabulary

from heirloom import ElmoConfig, ElmoModel
from heirloom.conversion import from_bilm, to_bilm
from heirloom.conversion.closed_world import ClosedWorld, Hdf5Source
from heirloom.conversion.rules import bilm_rules


@pytest.fixture
def original(tmp_path):
    """Paths, datasets and options of a small ELMo with a softmax file."""
    options = tiny_options()
    arrays = random_weights(options, words=7, dtype=np.float32)
    softmax = {name: arrays.pop(name) for name in ("softmax/W", "softmax/b")}
    return write_bilm_files(tmp_path / "original", options, arrays, softmax), arrays, options


def refused(match: str, *args, error=ValueError, **kwargs):
    with pytest.raises(error, match=match) as caught:
        from_bilm(*args, **kwargs)
    return str(caught.value)


def test_missing_files(original, tmp_path):
    paths, _, _ = original
    nowhere = tmp_path / "nowhere"
    for name in paths:
        refused(f"{nowhere} does not exist, expected", **(paths | {name: nowhere}), error=FileNotFoundError)
        refused("is a folder, expected", **(paths | {name: tmp_path}))
    refused("does not exist, expected a vocabulary", **paths, vocab=nowhere, error=FileNotFoundError)


@pytest.mark.parametrize("kept", [0, 1, 100, 1000, 0.3, 0.6, 0.9, -1])
def test_truncated_hdf5(original, kept):
    paths, _, _ = original
    raw = paths["weights"].read_bytes()
    paths["weights"].write_bytes(raw[: int(kept * len(raw)) if isinstance(kept, float) else kept])
    refused(r"weights\.hdf5.*(is no complete HDF5 file|cannot be read).*Fetch", **paths)


def test_files_of_another_kind(original):
    paths, _, _ = original
    paths["weights"].write_text("<html>404</html>")
    refused(r"is no complete HDF5 file \(16 bytes\)", **paths)
    write_arrays(paths["weights"], {"0": np.zeros((3, 7, 12))})
    message = refused(r"missing: \['char_embed', ", **paths)
    assert "never read: ['0']" in message


@pytest.mark.parametrize(
    ("dataset", "number", "words"),
    [
        ("char_embed", np.nan, r"'char_embed' \(1 of 1,044 numbers\)"),
        ("RNN_1/RNN/MultiRNNCell/Cell0/LSTMCell/B", np.inf, r"Cell0/LSTMCell/B' \(1 of 40 numbers\)"),
    ],
)
def test_numbers_that_are_none(original, dataset, number, words):
    paths, arrays, _ = original
    arrays[dataset].flat[3] = number
    write_arrays(paths["weights"], arrays)
    message = refused(f"NaN or infinite weights in .*{words}", **paths)
    assert str(paths["weights"]) in message


def test_numbers_of_another_type(original):
    paths, arrays, _ = original
    write_arrays(paths["weights"], arrays | {"CNN/b_cnn_0": np.arange(4)})
    refused("CNN/b_cnn_0 holds int64, expected floating-point numbers", **paths)
    with h5py.File(paths["weights"], "a") as file:
        del file["CNN/b_cnn_0"]
        file["CNN/b_cnn_0"] = "text"
    refused("CNN/b_cnn_0 holds object, expected floating-point numbers", **paths)


def test_the_world_is_closed(original):
    """One message names everything: missing, left over and misshapen, with file, found and expected shape."""
    paths, arrays, _ = original
    arrays["CNN_proj/b_proj"] = np.zeros(5)
    del arrays["CNN/b_cnn_1"]
    write_arrays(paths["weights"], arrays | {"extra/weight": np.zeros(3)})
    write_arrays(
        paths["softmax"], {"softmax/W": np.zeros((7, 6)), "softmax/b": np.zeros(8), "step": np.zeros(1)}
    )
    message = refused("The weights are not those that", **paths)
    for words in (
        f"in {paths['weights']}:",
        "missing: ['CNN/b_cnn_1']; see option char_cnn.filters",
        "never read: ['extra/weight']",
        "CNN_proj/b_proj has shape (5,), expected (6,); see option lstm.projection_dim",
        f"in {paths['softmax']}:",
        "never read: ['step']",
        "softmax/b has shape (8,), expected (7,)",
    ):
        assert words in message, words


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lstm.projection_dim", 5),
        ("lstm.dim", 11),
        ("lstm.n_layers", 1),
        ("lstm.n_layers", 3),
        ("char_cnn.embedding.dim", 3),
        ("char_cnn.filters", [[1, 4], [2, 5]]),
        ("char_cnn.filters", [[1, 4], [2, 5], [3, 7]]),
        ("char_cnn.filters", [[1, 4], [3, 5], [3, 6]]),
        ("char_cnn.n_highway", 1),
        ("char_cnn.n_highway", 3),
    ],
)
def test_options_that_contradict_the_weights_are_named(original, option, value):
    paths, _, options = original
    *parents, last = option.split(".")
    place = options
    for parent in parents:
        place = place[parent]
    place[last] = value
    message = refused("not those that options describes", options, paths["weights"])
    assert re.search(f"see option [^\n]*{re.escape(option)}", message), message


def test_word_options_over_characters_and_the_reverse(original, tmp_path):
    paths, _, options = original
    del options["char_cnn"]
    message = refused(r"missing: \['embedding'\]; see option char_cnn", options, paths["weights"])
    assert "never read: ['CNN/W_cnn_0'" in message
    options["n_tokens_vocab"] = 9
    words = random_weights(options, words=7, word_size=6, dtype=np.float32)
    weights = write_arrays(tmp_path / "words.hdf5", words)
    refused("option n_tokens_vocab is 9, but embedding in .* has 7 rows", options, weights)


def test_a_softmax_of_another_shape(original):
    paths, _, _ = original
    write_arrays(paths["softmax"], {"softmax/W": np.zeros((6, 7)), "softmax/b": np.zeros(7)})
    message = refused(
        r"softmax/W has shape \(6, 7\), expected \(6, 6\); see option lstm\.projection_dim", **paths
    )
    assert "softmax/b has shape (7,), expected (6,)" in message
    write_arrays(paths["softmax"], {"W": np.zeros((7, 6))})
    refused(r"missing: \['softmax/W', 'softmax/b'\]", **paths)


def test_a_vocabulary_of_another_length(original, tmp_path):
    paths, _, _ = original
    vocab = write_vocabulary(tmp_path / "vocab.txt", 8)
    message = refused(
        r"vocab\.txt holds 8 words, but softmax/W in .*softmax\.hdf5 has 7 rows", **paths, vocab=vocab
    )
    assert "Give the vocabulary" in message
    vocab.write_text("a\nb\nc\nd\ne\nf\ng\n")
    refused(r"vocab\.txt lacks \['<S>', '</S>', '<UNK>'\]", **paths, vocab=vocab)
    vocab.write_bytes(b"\xff\xfe\n")
    refused(r"vocab\.txt is no UTF-8 text", **paths, vocab=vocab)
    vocab.write_text("")
    refused(r"vocab\.txt holds no words", **paths, vocab=vocab)


@pytest.mark.parametrize(
    "cell", ["rnn/MultiRNNCell/Cell{}/LSTMCell/{}", "RNN_0/RNN/MultiRNNCell/Cell{}/LSTMCell/{}"]
)
def test_half_an_elmo(original, cell):
    paths, arrays, options = original
    one = {name: array for name, array in arrays.items() if not name.startswith("RNN_")}
    for name, array in arrays.items():
        if name.startswith("RNN_0"):
            parts = name.split("/")
            kind = {"W_0": "kernel", "B": "bias", "W_P_0": "projection/kernel"}[parts[-1]]
            one[cell.format(parts[3][-1], kind if cell.startswith("rnn") else parts[-1])] = array
    write_arrays(paths["weights"], one)
    refused("holds a forward language model only", **paths)
    options["bidirectional"] = False
    refused("bidirectional is false: that is a forward language model only", options, paths["weights"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is no JSON"),
        ("[1, 2]", "holds a JSON list, expected an object"),
        (
            '{"model_type": "bert"}',
            r"holds no ELMo options: expected the keys 'lstm' and 'char_cnn'.*\['model_type'\]",
        ),
        ('{"lstm": 3}', "holds no ELMo options"),
    ],
)
def test_options_that_are_none(original, text, words):
    paths, _, _ = original
    paths["options"].write_text(text)
    assert str(paths["options"]) in refused(words, **paths)


@pytest.mark.parametrize(
    ("group", "change", "words"),
    [
        (
            "lstm",
            {"projection_dim": None},
            r"option lstm\.projection_dim must be a whole number >= 1, found None",
        ),
        ("lstm", {"dim": -4}, r"option lstm\.dim must be a whole number >= 1, found -4"),
        ("lstm", {"dim": 4}, r"lstm\.projection_dim \(6\) must not exceed lstm\.dim \(4\)"),
        ("lstm", {"n_layers": 1.5}, r"option lstm\.n_layers must be a whole number"),
        ("lstm", {"n_layers": True}, r"option lstm\.n_layers must be a whole number"),
        ("lstm", {"cell_clip": -1}, r"option lstm\.cell_clip must be null or a number > 0, found -1"),
        ("lstm", {"proj_clip": float("nan")}, r"option lstm\.proj_clip must be null or a number"),
        (
            "lstm",
            {"use_skip_connections": "yes"},
            r"lstm\.use_skip_connections must be true or false, found 'yes'",
        ),
        (
            "char_cnn",
            {"activation": "gelu"},
            r"option char_cnn\.activation must be 'relu' or 'tanh', found 'gelu'",
        ),
        ("char_cnn", {"filters": [[1]]}, r"option char_cnn\.filters must be a list of \[width, count\]"),
        ("char_cnn", {"embedding": 4}, r"option char_cnn\.embedding\.dim is missing"),
        ("char_cnn", {"n_highway": -1}, r"option char_cnn\.n_highway must be a whole number >= 0"),
        (
            "char_cnn",
            {"max_characters_per_token": 2},
            r"max_characters_per_token must be a whole number >= 3",
        ),
        (
            "char_cnn",
            {"filters": [[9, 4]], "max_characters_per_token": 8},
            r"\(8\) must reach over the widest.*\(9\)",
        ),
    ],
)
def test_options_that_no_elmo_has(original, group, change, words):
    paths, _, options = original
    options[group] |= change
    refused(words, options, paths["weights"])


def test_options_that_are_missing(original):
    paths, _, options = original
    for group, name in (
        ("lstm", "dim"),
        ("lstm", "projection_dim"),
        ("char_cnn", "activation"),
        ("char_cnn", "filters"),
    ):
        less = json.loads(json.dumps(options))
        del less[group][name]
        refused(f"option {group}.{name} is missing", less, paths["weights"])


def test_a_table_too_small_for_the_marks(original):
    paths, arrays, _ = original
    write_arrays(paths["weights"], arrays | {"char_embed": np.zeros((4, 4))})
    refused(r"char_embed in .* has 4 rows; an ELMo needs at least five", **paths)


def test_names_that_mean_the_same(original):
    paths, arrays, _ = original
    write_arrays(paths["weights"], arrays | {"lm/char_embed": arrays["char_embed"]})
    refused("holds the same array twice: 'char_embed' and 'lm/char_embed'", **paths)


TINY = {
    "char_filters": [[1, 4]],
    "projection_size": 6,
    "cell_size": 10,
    "char_embedding_size": 4,
    "num_highway_layers": 0,
}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"word_embedding_size": 3}, "reads words and characters together"),
        ({"char_embedding_size": 0, "word_embedding_size": 3}, "its word vectors are projected"),
        ({"bow_char_id": 260, "eow_char_id": 259}, r"not bytes with bilm-tf's marks.*'bow_char_id': 260"),
    ],
)
def test_models_that_the_format_cannot_hold(tmp_path, fields, words):
    model = ElmoModel(ElmoConfig(**(TINY | fields)))
    with pytest.raises(ValueError, match=f"cannot be written as bilm-tf files: .*{words}"):
        to_bilm(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_that_the_model_does_not_have(tmp_path):
    model = ElmoModel(ElmoConfig(**TINY))
    with pytest.raises(ValueError, match=r"holds 4 words, but the model \(vocab_size - 1\) has 3 rows"):
        to_bilm(model, tmp_path / "out", vocab=["<S>", "</S>", "<UNK>", "more"])


def test_parameters_that_nobody_wrote(original):
    """A rule that is forgotten does not leave a parameter at chance."""
    paths, _, options = original
    source, world = Hdf5Source(paths["weights"]), ClosedWorld("options")
    config = from_bilm(options, paths["weights"]).config
    forgotten, *rules = bilm_rules(config)
    world.add(source, rules)
    world.leave(source, forgotten.name)
    with pytest.raises(
        ValueError, match=r"token_encoder\.char_embeddings\.weight needs \(262, 4\), made None"
    ):
        world.build(ElmoModel, config)


def test_a_comparison_sees_every_bit(original):
    paths, _, options = original
    source, world = Hdf5Source(paths["weights"]), ClosedWorld("options")
    model = from_bilm(options, paths["weights"])
    world.add(source, bilm_rules(model.config))
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert all(row.exact and row.difference == 0 for row in world.compare(state))
    source.array = lambda name: np.zeros(source.shapes[name], np.float32)
    negative = {name: -0.0 * torch.ones_like(weight) for name, weight in state.items()}
    assert not any(row.exact or row.difference for row in world.compare(negative))
