"""Our numbers against the original implementations' (AllenNLP 2.10, bilm-tf on TensorFlow 1.2.1), file by file.

The files lie outside the repository, in ../shared/oracles/elmo (its README says how they were made). Every array of every
file is compared: results are collected under the files' own keys. The naive biLM must pass what the fast one passes.
"""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.bilm_files import build, difference, padded, read, state_dict
from reference.bilm_naive import NaiveBilm, character_ids, scalar_mix

from heirloom import ElmoTokenizer
from heirloom.modeling.modeling_elmo import ElmoModel
from heirloom.modeling.scalar_mix import ScalarMix

ORACLE = Path(__file__).resolve().parents[2] / "shared" / "oracles" / "elmo"
CASES = sorted(path.parent.name for path in ORACLE.glob("*/expected.npz"))
pytestmark = pytest.mark.skipif(not CASES, reason="the oracle files (../shared/oracles/elmo) are not here")
ATOL = {torch.float32: 1e-5, torch.float64: 1e-6}


@functools.cache
def batches() -> tuple[dict, list]:
    data = json.loads((ORACLE / "sentences.json").read_text())
    return data["batches"], data["stateful_order"]


@functools.cache
def files(case: str) -> tuple[dict, dict]:
    return read(ORACLE / case)


def model_of(case: str, dtype=torch.float32) -> ElmoModel:
    return build(ElmoModel, *files(case), dtype)


def ids_of(case: str, sentences) -> torch.Tensor:
    size = files(case)[0]["char_cnn"]["max_characters_per_token"]
    tokenizer = ElmoTokenizer(max_characters_per_token=size)
    return tokenizer(sentences, is_split_into_words=True, padding=True, return_tensors="pt")["char_ids"]


def mixer(weights, gamma, do_layer_norm, dtype) -> ScalarMix:
    mix = ScalarMix(len(weights), do_layer_norm, initial_scalar_parameters=weights)
    torch.nn.init.constant_(mix.gamma, float(gamma))
    return mix.to(dtype)


def inner(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Take away the sentence marks of (B, T + 2, H), left-aligned; zeros at padding."""
    lengths = mask.sum(1) - 2
    words = torch.arange(mask.shape[1] - 2) < lengths[:, None]
    return hidden[:, 1:-1] * words[..., None]


@functools.cache
def ours(case: str, dtype) -> dict[str, np.ndarray]:
    """What our model says, under the keys of expected.npz (and expected64.npz, which holds some of them)."""
    model, found = model_of(case, dtype), {}
    file = np.load(ORACLE / case / "expected.npz")
    found["mix_weights"], found["mix_gamma"] = file["mix_weights"], file["mix_gamma"]  # inputs
    plain = np.zeros(len(file["mix_weights"])), 1.0
    mixes = {"mix0": plain, "mix1": (file["mix_weights"].tolist(), file["mix_gamma"])}
    sentences, order = batches()
    with torch.no_grad():
        for name, batch in sentences.items():
            ids = found[f"ids/{name}"] = ids_of(case, batch)
            full = ids_of(case, [["<S>", *words, "</S>"] for words in batch])
            tokens = model.token_encoder(None, full.flatten(0, 1)).unflatten(0, full.shape[:2])
            outputs = model(char_ids=ids, output_hidden_states=True, keep_boundaries=True)
            words = model(char_ids=ids, output_hidden_states=True)
            hidden, mask = outputs.hidden_states, outputs.attention_mask
            found |= {f"ids_full/{name}": full, f"mask_full/{name}": mask, f"token/{name}": tokens}
            found |= {f"stateless/{name}/layer{k}": layer for k, layer in enumerate(hidden)}
            found |= dict(zip((f"stateless/{name}/h", f"stateless/{name}/c"), outputs.states, strict=True))
            found |= {f"mask/{name}": words.attention_mask, f"mask_keep/{name}": mask}
            for mix, (weights, gamma) in mixes.items():
                found[f"{mix}/{name}"] = mixer(weights, gamma, False, dtype)(words.hidden_states)
                found[f"{mix}_keep/{name}"] = mixer(weights, gamma, False, dtype)(hidden)
                normal = mixer(weights, gamma, True, dtype)(hidden, mask)
                found[f"{mix}_ln/{name}"], found[f"{mix}_ln_keep/{name}"] = inner(normal, mask), normal
        states = None
        for step, name in enumerate(order):
            outputs = model(
                char_ids=found[f"ids/{name}"], states=states, output_hidden_states=True, keep_boundaries=True
            )
            states = outputs.states
            found |= {f"stateful/{step}/layer{k}": layer for k, layer in enumerate(outputs.hidden_states)}
            found[f"stateful/{step}/h"], found[f"stateful/{step}/c"] = states
    return {key: np.asarray(value) for key, value in found.items()}


@functools.cache
def ours_as_tensorflow(case: str) -> dict[str, np.ndarray]:
    """The same under the keys of expected_tf.npz: a memory of 8 rows, and bilm-tf's own mixes."""
    al, file, found = ours(case, torch.float32), np.load(ORACLE / case / "expected.npz"), {}
    weights, gamma = file["mix_weights"].tolist(), file["mix_gamma"]
    for key, value in al.items():
        if key.startswith("state") and key.endswith(("/h", "/c")):
            value = np.pad(value, ((0, 0), (0, 8 - value.shape[1]), (0, 0)))
        found[key] = value
    for name, batch in batches()[0].items():
        mask = torch.tensor(al[f"mask_full/{name}"])
        layers = [torch.tensor(al[f"stateless/{name}/layer{k}"]) for k in range(len(weights))]
        layers, words = [inner(layer, mask) for layer in layers], torch.tensor(al[f"mask/{name}"])
        found[f"lengths/{name}"] = np.array([len(sentence) for sentence in batch])
        found[f"lm_embeddings/{name}"] = torch.stack(layers, 1).numpy()
        with torch.no_grad():
            found[f"tfmix/{name}"] = mixer(weights, gamma, False, torch.float32)(layers).numpy()
            found[f"tfmix_ln/{name}"] = mixer(weights, gamma, True, torch.float32)(layers, words).numpy()
        found[f"tfmix_top/{name}"] = float(gamma) * layers[-1].numpy()
    return found


@functools.cache
def twins(case: str) -> dict[str, np.ndarray]:
    """What the naive biLM says: layers, states and mixes under the keys of expected.npz."""
    options, weights = files(case)
    naive, found = NaiveBilm(options, weights), {}
    vector = naive.token_vector
    naive.token_vector = functools.cache(
        lambda word: vector((0, word))
    )  # the test's patience, not the twin's work
    size = options["char_cnn"]["max_characters_per_token"]
    boundary = naive.boundary
    naive.boundary = lambda mark, word: tuple(boundary(mark, word)[1])
    file = np.load(ORACLE / case / "expected.npz")
    mixes = {
        "mix0": (np.zeros(len(file["mix_weights"])), 1.0),
        "mix1": (file["mix_weights"], file["mix_gamma"]),
    }
    sentences, order = batches()
    sentences = {
        name: [[tuple(character_ids(word, size)) for word in words] for words in batch]
        for name, batch in sentences.items()
    }
    for name, batch in sentences.items():
        layers, (h, c) = naive.run(batch)
        found |= {f"stateless/{name}/layer{k}": layer for k, layer in enumerate(padded(layers))}
        found |= {f"stateless/{name}/h": h, f"stateless/{name}/c": c}
        for mix, (mix_weights, gamma) in mixes.items():
            for suffix, norm in (("", None), ("_ln", "allennlp")):
                mixed = scalar_mix(layers, mix_weights, gamma, norm)
                found[f"{mix}{suffix}/{name}"] = padded([[plane] for plane in mixed])[0]
        found[f"tfmix_ln/{name}"] = padded(
            [[plane] for plane in scalar_mix(layers, *mixes["mix1"], "bilm-tf")]
        )[0]
    states = None
    for step, name in enumerate(order):
        layers, states = naive.run(sentences[name], states)
        found |= {f"stateful/{step}/layer{k}": layer for k, layer in enumerate(padded(layers))}
        found |= {f"stateful/{step}/h": states[0], f"stateful/{step}/c": states[1]}
    return found


def compare(found: dict, file, atol: float, only=None) -> None:
    """Every key of the file is in `found` and within `atol`; integers and masks exactly."""
    keys = [key for key in file if only is None or only(key)]
    assert keys
    exact = {key for key in keys if file[key].dtype.kind in "iub"}
    wrong = {key: difference(found[key], file[key]) for key in keys}
    wrong = {key: error for key, error in wrong.items() if not error <= (0 if key in exact else atol)}
    assert not wrong


@pytest.mark.parametrize("case", CASES)
def test_allennlp_float32(case):
    compare(ours(case, torch.float32), np.load(ORACLE / case / "expected.npz"), 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_allennlp_float64(case):
    compare(ours(case, torch.float64), np.load(ORACLE / case / "expected64.npz"), 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_bilm_tf(case):
    file, found = dict(np.load(ORACLE / case / "expected_tf.npz")), ours_as_tensorflow(case)
    for name in batches()[0]:  # bilm-tf leaves vectors in the padding of layer 0, and the mixes made of it
        words, full = found[f"mask/{name}"][..., None], found[f"mask_full/{name}"][..., None]
        file[f"token/{name}"] = np.where(full, file[f"token/{name}"], found[f"token/{name}"])
        file[f"lm_embeddings/{name}"][:, 0] *= words
        for key in (f"tfmix/{name}", f"tfmix_ln/{name}", f"tfmix_top/{name}"):
            file[key] = np.where(words, file[key], found[key])
    compare(found, file, 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_naive_twin(case):
    found, file = twins(case), np.load(ORACLE / case / "expected.npz")
    compare(found, file, 1e-5, lambda key: key in found)
    compare(found, np.load(ORACLE / case / "expected64.npz"), 1e-6)
    words = np.load(ORACLE / case / "expected_tf.npz")
    for name in batches()[0]:
        mask = words[f"mask/{name}"]
        assert difference(found[f"tfmix_ln/{name}"][mask], words[f"tfmix_ln/{name}"][mask]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_conversion_puts_the_weights_where_we_do(case):
    from heirloom.conversion import from_bilm

    model = from_bilm(ORACLE / case / "options.json", ORACLE / case / "weights.hdf5")
    expected, found = state_dict(files(case)[1]), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def gradients_by_our_names(file) -> dict[str, np.ndarray]:
    """AllenNLP's parameter names and layouts to ours: its highways hold [transform; -carry]."""
    found = {}
    for key in file:
        name = key.removeprefix("grad/bilm.")
        parts = name.split(".")
        kind = parts[-1]
        if not key.startswith("grad/bilm."):
            continue
        if parts[1] == "_char_embedding_weights":
            found["token_encoder.char_embeddings.weight"] = file[key]
        elif parts[1].startswith("char_conv"):
            found[f"token_encoder.convolutions.{parts[1].rsplit('_', 1)[1]}.{kind}"] = file[key]
        elif parts[1] == "_highways":
            transform, carry = np.split(file[key], 2)
            found[f"token_encoder.highways.{parts[3]}.transform.{kind}"] = transform
            found[f"token_encoder.highways.{parts[3]}.gate.{kind}"] = -carry
        elif parts[1] == "_projection":
            found[f"token_encoder.projection.{kind}"] = file[key]
        else:
            direction, _, number = parts[1].split("_")
            ours = {
                "input_linearity": "weight_ih",
                "state_linearity": "weight_hh",
                "state_projection": "weight_proj",
            }
            last = "bias" if kind == "bias" else ours[parts[2]]
            found[f"lstm.{direction}_layers.{number}.{last}"] = file[key]
    return found


@pytest.mark.parametrize("case", [case for case in CASES if (ORACLE / case / "grads.npz").exists()])
def test_gradients(case):
    file, model = np.load(ORACLE / case / "grads.npz"), model_of(case, torch.float64)
    inputs = np.load(ORACLE / case / "expected.npz")
    mix = mixer(inputs["mix_weights"].tolist(), inputs["mix_gamma"], False, torch.float64)
    outputs = model(char_ids=ids_of(case, batches()[0]["a"]), output_hidden_states=True)
    loss = (torch.tensor(file["R"]) * mix(outputs.hidden_states)).sum()
    loss.backward()
    assert loss.item() == pytest.approx(float(file["loss"]), rel=0, abs=1e-6)
    expected, found = gradients_by_our_names(file), {n: p.grad for n, p in model.named_parameters()}
    assert expected.keys() == found.keys()
    wrong = {name: difference(found[name], expected[name]) for name in found}
    assert max(wrong.values()) <= 1e-6, wrong
    scalars = [float(file[f"grad/scalar_mix_1.scalar_parameters.{k}"][0]) for k in range(mix.num_layers)]
    assert difference(mix.scalar_parameters.grad, scalars) <= 1e-6
    assert mix.gamma.grad.item() == pytest.approx(float(file["grad/scalar_mix_1.gamma"][0]), rel=0, abs=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if (ORACLE / case / "cached_vocab.npz").exists()])
def test_cached_vocabulary(case):
    file, model = np.load(ORACLE / case / "cached_vocab.npz"), model_of(case)
    with torch.no_grad():
        table = model.token_encoder(None, ids_of(case, [file["words"].tolist()])[0])
        assert difference(table[1:], file["table"][1:]) <= 1e-5
        assert difference(model.boundary_vectors(), np.stack([file["bos"], file["eos"]])) <= 1e-5
        word_ids = torch.tensor(file["word_ids"])
        cached = torch.tensor(file["table"])[word_ids]
        outputs = model(
            inputs_embeds=cached, attention_mask=word_ids > 0, output_hidden_states=True, keep_boundaries=True
        )
    assert difference(outputs.attention_mask, file["mask"]) == 0
    for number, layer in enumerate(outputs.hidden_states):
        assert difference(layer, file[f"layer{number}"]) <= 1e-5


@pytest.mark.parametrize("case", [case for case in CASES if (ORACLE / case / "lstm_only.npz").exists()])
@pytest.mark.parametrize("dtype", ATOL)
def test_the_lstm_alone_with_empty_rows(case, dtype):
    file, lstm, states = np.load(ORACLE / case / "lstm_only.npz"), model_of(case, dtype).lstm, None
    empty = 0
    for call in range(4):
        mask = torch.tensor(file[f"mask/{call}"])
        empty += int((~mask.any(1)).sum())
        with torch.no_grad():
            layers, states = lstm(torch.tensor(file[f"inputs/{call}"]).to(dtype)[mask], mask.sum(1), states)
        for layer, expected in zip(layers, file[f"out/{call}"], strict=True):
            assert difference(layer, expected[mask.numpy()]) <= 1e-5  # the file is float32
            assert np.abs(expected[~mask.numpy()]).max(initial=0) == 0
        for state, name in zip(states, "hc", strict=True):
            assert difference(state, file[f"{name}/{call}"]) <= 1e-5
    assert empty == 3


def dump(name: str) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(ORACLE / "dumps" / name) as file:
        return {key: file[key][()] for key in file}


def dumped_sentences() -> list[list[str]]:
    return [line.split() for line in (ORACLE / "dumps" / "sentences.txt").read_text("utf-8").splitlines()]


def carried(batch_size: int) -> list[np.ndarray]:
    """All layers (L + 1, n, 2 P) of each dumped sentence, states carried from batch to batch."""
    case, found, states = "std_2hw_skip", [], None
    model, sentences = model_of(case), dumped_sentences()
    for start in range(0, len(sentences), batch_size):
        batch = sentences[start : start + batch_size]
        with torch.no_grad():
            outputs = model(char_ids=ids_of(case, batch), states=states, output_hidden_states=True)
        states, layers = outputs.states, torch.stack(outputs.hidden_states, 1)
        found += [layers[row, :, : len(words)].numpy() for row, words in enumerate(batch)]
    return found


def test_bilm_tf_dumps():
    file, found = dump("bilm_layers.hdf5"), carried(1)
    assert sorted(file) == [str(row) for row in range(len(found))]
    assert max(difference(layers, file[str(row)]) for row, layers in enumerate(found)) <= 1e-5
    words = (ORACLE / "dumps" / "vocab.txt").read_text("utf-8").splitlines()
    with torch.no_grad():
        table = model_of("std_2hw_skip").token_encoder(None, ids_of("std_2hw_skip", [words])[0])
    assert difference(table, dump("bilm_token_embeddings.hdf5")["embedding"]) <= 1e-5


@pytest.mark.parametrize("kind", ["all", "top", "average"])
def test_allennlp_dumps(kind):
    choose = {"all": lambda x: x, "top": lambda x: x[-1], "average": lambda x: x.mean(0)}[kind]
    file, found = dump(f"allennlp_elmo_{kind}.hdf5"), carried(2)
    index = json.loads(file.pop("sentence_to_index")[0])
    assert index == {" ".join(words): str(row) for row, words in enumerate(dumped_sentences())}
    assert sorted(file) == [str(row) for row in range(len(found))]
    assert max(difference(choose(layers), file[str(row)]) for row, layers in enumerate(found)) <= 1e-5
