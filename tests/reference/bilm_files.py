"""Options, weights and batches for both the naive biLM and heirloom's: tiny ones made up here, or read from files.

`state_dict` says in tests' own words where each dataset of a bilm-tf file belongs in heirloom's model.
"""

import json
from pathlib import Path

import numpy as np
import torch

from heirloom.modeling.configuration_elmo import ElmoConfig
from reference.bilm_naive import character_ids

SENTENCES = [
    ["the", "quick", "quiet", "fox", "jumps", "over", "dogs"],
    ["Stop", "!"],
    ["it", "was", "überschwänglich", "\U0001f600", "x" * 60, "a" + "日本語" * 9],
    ["yes"],
    [],
]


def tiny_options(**changes) -> dict:
    """A published-looking options.json of a few thousand weights; a change is `lstm_...`, `cnn_...` or a top key."""
    options = {
        "lstm": {
            "projection_dim": 6,
            "dim": 10,
            "n_layers": 2,
            "cell_clip": 3,
            "proj_clip": 3,
            "use_skip_connections": True,
        },
        "char_cnn": {
            "activation": "relu",
            "filters": [[1, 4], [2, 5], [3, 6]],
            "n_highway": 2,
            "embedding": {"dim": 4},
            "n_characters": 262,
            "max_characters_per_token": 50,
        },
    }
    for name, value in changes.items():
        part, _, key = name.partition("_")
        if part not in ("lstm", "cnn"):
            options[name] = value
        elif part == "cnn":
            options["char_cnn"][key] = value
        else:
            options["lstm"][key] = value
    return options


def random_weights(options: dict, seed=0, words=0, char_rows=261, word_size=0, scale=0.5, dtype=np.float64):
    """Weights of the file's names and shapes; with `words` a softmax, with `word_size` a word table too."""
    draw = np.random.default_rng(seed)
    lstm, cnn = options["lstm"], options.get("char_cnn")
    size, cells, layers = lstm["projection_dim"], lstm["dim"], lstm.get("n_layers", 1)
    shapes, features = {}, word_size
    if word_size:
        shapes["embedding"] = words, word_size
    if cnn:
        filters, width = cnn["filters"], sum(count for _, count in cnn["filters"])
        features += width
        shapes["char_embed"] = char_rows, cnn["embedding"]["dim"]
        for number, (reach, count) in enumerate(filters):
            shapes[f"CNN/W_cnn_{number}"] = 1, reach, cnn["embedding"]["dim"], count
            shapes[f"CNN/b_cnn_{number}"] = (count,)
        for number in range(cnn.get("n_highway", 0)):
            for part in ("carry", "transform"):
                shapes[f"CNN_high_{number}/W_{part}"] = width, width
                shapes[f"CNN_high_{number}/b_{part}"] = (width,)
    if features != size:
        shapes["CNN_proj/W_proj"], shapes["CNN_proj/b_proj"] = (features, size), (size,)
    for direction in (0, 1):
        for layer in range(layers):
            name = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
            shapes[name + "W_0"], shapes[name + "B"] = (2 * size, 4 * cells), (4 * cells,)
            if cells != size:
                shapes[name + "W_P_0"] = cells, size
    if words:
        shapes["softmax/W"], shapes["softmax/b"] = (words, size), (words,)
    weights = {name: scale * draw.standard_normal(shape) for name, shape in shapes.items()}
    return {name: array.astype(np.float32).astype(dtype) for name, array in weights.items()}


def read(folder: Path) -> tuple[dict, dict]:
    """options.json and the datasets of weights.hdf5."""
    import h5py

    options, weights = json.loads((folder / "options.json").read_text()), {}
    with h5py.File(folder / "weights.hdf5") as file:
        file.visititems(
            lambda name, item: weights.update({name: item[...]}) if isinstance(item, h5py.Dataset) else None
        )
    return options, weights


def config(options: dict, weights: dict, **changes) -> ElmoConfig:
    """The config that an options.json stands for."""
    lstm, cnn = options["lstm"], options.get("char_cnn")
    fields = {
        "projection_size": lstm["projection_dim"],
        "cell_size": lstm["dim"],
        "num_hidden_layers": lstm.get("n_layers", 1),
        "cell_clip": lstm.get("cell_clip"),
        "proj_clip": lstm.get("proj_clip"),
        "use_skip_connections": lstm.get("use_skip_connections", False),
        "char_embedding_size": 0,
    }
    if cnn:
        fields |= {
            "char_vocab_size": len(weights["char_embed"]) + 1,
            "char_embedding_size": cnn["embedding"]["dim"],
            "char_filters": cnn["filters"],
            "char_activation": cnn["activation"],
            "num_highway_layers": cnn.get("n_highway", 0),
            "max_characters_per_token": cnn["max_characters_per_token"],
        }
    for name in ("embedding", "softmax/W"):
        if name in weights:
            fields["vocab_size"] = len(weights[name]) + 1
    if "embedding" in weights:
        fields["word_embedding_size"] = weights["embedding"].shape[1]
    return ElmoConfig(**(fields | changes))


def state_dict(weights: dict) -> dict[str, torch.Tensor]:
    """Datasets of the file to the parameters of `ElmoModel` (and `softmax.*`)."""
    first = lambda rows: np.concatenate([np.zeros_like(rows[:1]), rows])  # noqa: E731, a padding row
    encoder, found = "token_encoder.", {}
    for name, array in weights.items():
        *group, last = name.split("/")
        number = last.rsplit("_", 1)[-1]
        if name == "char_embed":
            found[encoder + "char_embeddings.weight"] = first(array)
        elif name == "embedding":
            found[encoder + "word_embeddings.weight"] = first(array)
        elif last.startswith("W_cnn"):
            found[encoder + f"convolutions.{number}.weight"] = array[0].transpose(2, 1, 0)
        elif last.startswith("b_cnn"):
            found[encoder + f"convolutions.{number}.bias"] = array
        elif group[0].startswith("CNN_high"):
            part = {"carry": "gate", "transform": "transform"}[number]
            kind = {"W": "weight", "b": "bias"}[last[0]]
            found[encoder + f"highways.{group[0].rsplit('_', 1)[1]}.{part}.{kind}"] = array.T
        elif group[0] == "CNN_proj":
            found[encoder + f"projection.{'weight' if last[0] == 'W' else 'bias'}"] = array.T
        elif group[0] == "softmax":
            row = np.zeros_like(array[:1])
            found[f"softmax.{'weight' if last == 'W' else 'bias'}"] = np.concatenate([row, array])
        else:
            direction = {"RNN_0": "forward", "RNN_1": "backward"}[group[0]]
            layer = f"lstm.{direction}_layers.{group[3].removeprefix('Cell')}."
            if last == "W_P_0":
                found[layer + "weight_proj"] = array.T
                continue
            i, j, f, o = np.split(array.T, 4)
            gates = np.concatenate([i, f, j, o])  # torch's order
            if last == "B":
                found[layer + "bias"] = gates
            else:
                found[layer + "weight_ih"], found[layer + "weight_hh"] = np.split(gates, 2, 1)
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in found.items()}


def build(model_class, options: dict, weights: dict, dtype=torch.float32, **changes):
    """A model in evaluation mode holding the file's weights, every one of them and no other in its biLM."""
    model = model_class(config(options, weights, **changes)).to(dtype)
    parameters = state_dict(weights)
    softmax = {name: parameters.pop(name) for name in list(parameters) if name.startswith("softmax.")}
    model.base_model.load_state_dict(parameters)
    if hasattr(model, "softmax"):
        model.softmax.load_state_dict({name.removeprefix("softmax."): w for name, w in softmax.items()})
    return model.eval()


def char_ids(sentences: list[list[str]], size=50) -> torch.Tensor:
    """(B, T, C), zeros at padding."""
    batch = torch.zeros(len(sentences), max(map(len, sentences), default=0), size, dtype=torch.long)
    for row, sentence in enumerate(sentences):
        for t, word in enumerate(sentence):
            batch[row, t] = torch.tensor(character_ids(word, size))
    return batch


def naive_batch(sentences, size=50, word_ids=None):
    """The same batch for the naive biLM: word ids (or 0) and character ids of each token."""
    return [
        [(word_ids[row][t] if word_ids else 0, character_ids(word, size)) for t, word in enumerate(sentence)]
        for row, sentence in enumerate(sentences)
    ]


def padded(layers: list[list[np.ndarray]], boundaries=True) -> list[np.ndarray]:
    """The naive biLM's layers of each sentence as L + 1 arrays (B, T + 2, 2 P), or (B, T, 2 P) without boundaries."""
    cut = slice(None) if boundaries else slice(1, -1)
    longest = max(len(sentence[0][cut]) for sentence in layers)
    planes = []
    for number in range(len(layers[0])):
        plane = np.zeros((len(layers), longest, layers[0][0].shape[1]), layers[0][0].dtype)
        for row, sentence in enumerate(layers):
            plane[row, : len(sentence[number][cut])] = sentence[number][cut]
        planes.append(plane)
    return planes


def difference(found, expected) -> float:
    """The largest absolute difference; infinite if shapes differ or anything is not a number."""
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    if found.shape != expected.shape or not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected).max()) if found.size else 0.0
