"""Writing the originals' files for the tests of conversion."""

import json
from pathlib import Path

import h5py
import numpy as np

ORACLE = Path(__file__).resolve().parents[2] / "shared" / "oracles" / "elmo"


def write_bilm_files(
    folder: Path, options: dict, arrays: dict, softmax: dict | None = None
) -> dict[str, Path]:
    """`options.json`, `weights.hdf5` and `softmax.hdf5`, as arguments of `from_bilm`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"options": folder / "options.json", "weights": folder / "weights.hdf5"}
    paths["options"].write_text(json.dumps(options))
    write_arrays(paths["weights"], arrays)
    if softmax:
        paths["softmax"] = folder / "softmax.hdf5"
        write_arrays(paths["softmax"], softmax)
    return paths


def write_arrays(path: Path, arrays: dict) -> Path:
    """An HDF5 file of named arrays, in their own dtypes (float64 becomes float32)."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            array = np.asarray(array)
            file[name] = array.astype(np.float32) if array.dtype == np.float64 else array
    return path


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All datasets of an HDF5 file."""
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    return arrays


def write_vocabulary(path: Path, count: int) -> Path:
    """A vocabulary of `count` words, the special ones first."""
    words = ["<S>", "</S>", "<UNK>", *(f"word{number}" for number in range(count - 3))]
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return path


def allennlp_state(arrays: dict, layers: int, highways: int) -> dict[str, np.ndarray]:
    """What AllenNLP would hold for bilm-tf's arrays (elmo.md 1.3, 1.4, 1.8)."""
    embedder, lstm = "_token_embedder.", "_elmo_lstm."
    table = arrays["char_embed"]
    state = {f"{embedder}_char_embedding_weights": np.concatenate([np.zeros_like(table[:1]), table])}
    for name in [name for name in arrays if name.startswith("CNN/W_cnn_")]:
        number = name.rsplit("_", 1)[1]
        state[f"{embedder}char_conv_{number}.weight"] = arrays[name][0].transpose(2, 1, 0)
        state[f"{embedder}char_conv_{number}.bias"] = arrays[f"CNN/b_cnn_{number}"]
    for k in range(highways):
        high = {
            part: arrays[f"CNN_high_{k}/{part}"]
            for part in ("W_transform", "W_carry", "b_transform", "b_carry")
        }
        name = f"{embedder}_highways._layers.{k}"
        state[f"{name}.weight"] = np.concatenate([high["W_transform"].T, -high["W_carry"].T])
        state[f"{name}.bias"] = np.concatenate([high["b_transform"], -high["b_carry"]])
    state[f"{embedder}_projection.weight"] = arrays["CNN_proj/W_proj"].T
    state[f"{embedder}_projection.bias"] = arrays["CNN_proj/b_proj"]
    for direction, name in enumerate(("forward", "backward")):
        for layer in range(layers):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
            kernel, bias = arrays[cell + "W_0"], arrays[cell + "B"].astype(np.float32)
            i, j, f, o = np.split(kernel.T, 4)
            inputs, recurrent = np.split(np.concatenate([i, f, j, o]), 2, axis=1)
            i, j, f, o = np.split(bias, 4)
            target = f"{lstm}{name}_layer_{layer}"
            state[f"{target}.input_linearity.weight"] = inputs
            state[f"{target}.state_linearity.weight"] = recurrent
            state[f"{target}.state_linearity.bias"] = np.concatenate([i, f + np.float32(1), j, o])
            state[f"{target}.state_projection.weight"] = arrays[cell + "W_P_0"].T
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in state.items()}
