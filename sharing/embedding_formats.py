"""Files that hold the vectors of sentences; each writer gets shards of {sentence number: vectors} in order."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

FileFormat = Literal["hdf5", "hdf5-bilm", "parquet", "safetensors"]
Shards = Iterable[dict[str, np.ndarray]]


def write_hdf5(path: Path, sentences: Sequence[list[str]], shards: Shards) -> None:
    """AllenNLP's layout: a dataset for each sentence's number, and `sentence_to_index` with {sentence: number} as JSON.

    Args:
        path: file to write.
        sentences: words of every sentence; of equal sentences the last one's number is kept.
        shards: {number: (L + 1, n, 2 P) or (n, 2 P)}.
    """
    import h5py

    with h5py.File(path, "w") as file:
        _write_datasets(file, shards)
        index = {" ".join(words): str(number) for number, words in enumerate(sentences)}
        dataset = file.create_dataset("sentence_to_index", (1,), dtype=h5py.string_dtype())
        dataset[0] = json.dumps(index)


def write_hdf5_bilm(path: Path, sentences: Sequence[list[str]], shards: Shards) -> None:
    """bilm-tf's layout: a dataset for each sentence's number, nothing else; see `write_hdf5`."""
    import h5py

    with h5py.File(path, "w") as file:
        _write_datasets(file, shards)


def write_safetensors(path: Path, sentences: Sequence[list[str]], shards: Shards) -> None:
    """One tensor for each sentence's number; the words as JSON in the metadata `sentences`. Held in memory while written."""
    from safetensors.numpy import save_file

    tensors = {number: vectors for shard in shards for number, vectors in shard.items()}
    save_file(tensors, path, metadata={"format": "heirloom-embed", "sentences": json.dumps(list(sentences))})


def write_parquet(path: Path, sentences: Sequence[list[str]], shards: Shards) -> None:
    """A row for each sentence: `words`, and `vectors` (n lists of 2 P numbers), or `layer_0`, `layer_1`, ... for all layers."""
    import pyarrow
    from pyarrow import parquet

    writer = None
    for shard in shards:
        numbers = sorted(shard, key=int)
        columns = {
            "words": pyarrow.array(
                [sentences[int(number)] for number in numbers], pyarrow.list_(pyarrow.string())
            )
        }
        layered = shard[numbers[0]].ndim == 3
        for layer in range(shard[numbers[0]].shape[0] if layered else 1):
            arrays = [shard[number][layer] if layered else shard[number] for number in numbers]
            columns[f"layer_{layer}" if layered else "vectors"] = _ragged(arrays)
        table = pyarrow.table(columns)
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is None:
        parquet.write_table(
            pyarrow.table({"words": pyarrow.array([], pyarrow.list_(pyarrow.string()))}), path
        )
    else:
        writer.close()


def _ragged(arrays: list[np.ndarray]):
    """Matrices (n, 2 P) of several n as one Arrow column, without copying number by number."""
    import pyarrow

    offsets = np.cumsum([0, *[len(array) for array in arrays]], dtype=np.int32)
    flat = pyarrow.array(np.concatenate(arrays).reshape(-1))
    rows = pyarrow.FixedSizeListArray.from_arrays(flat, arrays[0].shape[1])
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), rows)


def _write_datasets(file, shards: Shards) -> None:
    for shard in shards:
        for number, vectors in sorted(shard.items(), key=lambda item: int(item[0])):
            file.create_dataset(number, data=vectors, dtype="float32")


WRITERS: dict[str, Callable[[Path, Sequence[list[str]], Shards], None]] = {
    "hdf5": write_hdf5,
    "hdf5-bilm": write_hdf5_bilm,
    "parquet": write_parquet,
    "safetensors": write_safetensors,
}
