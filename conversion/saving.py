"""Conversions into new folders: all or nothing, and verified before the folder gets its name."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .bilm import Conversion, bilm_state, read_bilm, write_bilm
from .closed_world import Comparison

if TYPE_CHECKING:
    from ..modeling.modeling_elmo import ElmoPreTrainedModel


def save_checkpoint(conversion: Conversion, folder: str | Path) -> list[Comparison]:
    """Write a converted model with its tokenizer, load both again and compare them with the original.

    Args:
        conversion: its model is given away to save memory.
        folder: a new one.

    Returns:
        One `Comparison` a group of the original's arrays.

    Raises:
        FileExistsError: the folder holds something.
        OSError: it cannot be written.
        ValueError: what was loaded again is not what the original holds; the folder is not made then.
    """
    from transformers import AutoModel, AutoModelForPreTraining, AutoTokenizer

    from ..modeling.modeling_elmo import ElmoForPreTraining

    with new_folder(folder) as place:
        auto_class = (
            AutoModelForPreTraining if isinstance(conversion.model, ElmoForPreTraining) else AutoModel
        )
        conversion.model.save_pretrained(place)
        conversion.model = None
        tokenizer = conversion.make_tokenizer()
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
        rows = conversion.world.compare(auto_class.from_pretrained(place).state_dict())
        _refuse_differences(rows, "the checkpoint")
        if tokenizer is not None:
            loaded = AutoTokenizer.from_pretrained(place)
            if type(loaded) is not type(tokenizer) or loaded.get_vocab() != tokenizer.get_vocab():
                raise ValueError(
                    f"The tokenizer changed on its way through {folder}; that is a bug of heirloom."
                )
    return rows


def save_bilm(
    model: "ElmoPreTrainedModel", folder: str | Path, vocab: object | None = None
) -> tuple[list[Comparison], list[str]]:
    """Write a model as bilm-tf's files, read them again and compare.

    Args:
        model: as in `to_bilm`.
        folder: a new one.
        vocab: as in `to_bilm`.

    Returns:
        One `Comparison` a group of arrays, and what the format could not keep.

    Raises:
        FileExistsError: the folder holds something.
        OSError: it cannot be written.
        ValueError: a model that the format cannot hold, or files that differ from the model; no folder is made then.
    """
    import torch

    state, _ = bilm_state(model)
    with new_folder(folder) as place:
        notes = write_bilm(model, place, vocab)
        softmax, words = place / "softmax.hdf5", place / "vocab.txt"
        found = read_bilm(
            place / "options.json",
            place / "weights.hdf5",
            softmax if softmax.exists() else None,
            words if words.exists() else None,
        )
        tensors = {name: torch.from_numpy(array) for name, array in state.items()}
        for name in tensors.keys() & {"softmax.weight", "softmax.bias"}:
            tensors[name] = tensors[name].clone()
            tensors[name][0] = 0  # padding has random scores in a new model, which nothing reads nor keeps
        rows = found.world.compare(tensors | {f"elmo.{name}": tensor for name, tensor in tensors.items()})
        _refuse_differences(rows, "what was written")
    return rows, notes


def refuse_existing(folder: str | Path) -> None:
    """Refuse a folder that holds something.

    Args:
        folder: where something new shall go.

    Raises:
        FileExistsError: a file, or a folder that is not empty.
    """
    folder = Path(folder)
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} is there already and not empty. Choose another folder or delete it.")


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which gets its name only when all has gone well.

    Args:
        folder: its name; an empty folder may be there.

    Yields:
        A temporary folder beside it.

    Raises:
        FileExistsError: the folder holds something.
        OSError: it cannot be made.
    """
    folder = Path(os.path.abspath(folder))
    refuse_existing(folder)
    place = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place.mkdir()
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written: {error.strerror or error}. Choose a folder that you may write to."
        ) from error
    try:
        yield place
        refuse_existing(folder)
        if folder.is_dir():
            folder.rmdir()
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _refuse_differences(rows: list[Comparison], what: str) -> None:
    if wrong := [row.group for row in rows if row.difference > 0 or not row.exact]:
        raise ValueError(
            f"Verification failed: {what} differs from the original in {wrong}. Nothing was kept."
        )


__all__ = ["new_folder", "refuse_existing", "save_bilm", "save_checkpoint"]
