"""The folder of a training run: what may be in it at the start, and what to do with what is in it after an interruption."""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.utils import logging

from ..training.resuming import FILES, fault

logger = logging.get_logger(__name__)

WRITTEN_LAST = "trainer_state.json"  # of a checkpoint's files, where there is no list of them
GO_ON = "To go on where it stopped: the same command with --resume_from_checkpoint true"


@contextlib.contextmanager
def run_folder(arguments: TrainingArguments) -> Iterator[Path]:
    """Refuse a folder that a run would damage; name what fails in a resumed run; tell how to go on after Ctrl-C.

    Args:
        arguments: Trainer's. Where the newest checkpoint is not whole, `resume_from_checkpoint` becomes one before it.

    Yields:
        `output_dir`.

    Raises:
        FileExistsError: it holds something, and no run that is to be resumed.
        FileNotFoundError: there is no checkpoint to resume from.
        ValueError: the checkpoint is of another model than options and data make now.
        KeyboardInterrupt: with what to do.
    """
    folder, resume = Path(arguments.output_dir), arguments.resume_from_checkpoint
    if arguments.process_index == 0 and folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Choose another --output_dir.")
    if resume is None:
        if arguments.process_index == 0 and folder.exists() and any(folder.iterdir()):
            hint = f" {GO_ON}." if checkpoints(folder) else ""
            raise FileExistsError(f"{folder} is not empty. Choose another --output_dir, or delete it.{hint}")
    else:
        arguments.resume_from_checkpoint = resume = _checkpoint(folder, resume, arguments.learning_rate)
    try:
        yield folder
    except KeyboardInterrupt:
        told = (
            f"{GO_ON}."
            if checkpoints(folder)
            else "No checkpoint was saved yet: save earlier with --save_steps."
        )
        raise KeyboardInterrupt(f"{told} The run's folder is {folder}.") from None
    except (RuntimeError, ValueError, KeyError) as error:
        if resume is None or not OTHER_MODEL.search(str(error)):
            raise
        told = " ".join(str(error).split())
        raise ValueError(
            f"cannot resume from {folder if resume == 'true' else resume}: its weights or its optimizer are of another model "
            f"than these options and data make ({told[:300]}). Resume with the options and data of the run's beginning, or start "
            "in another --output_dir."
        ) from error


OTHER_MODEL = re.compile(r"loading state_dict|size mismatch|loaded state dict")


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints of a run, the newest first; those that are not are warned of."""
    found = []
    for path in folder.glob("checkpoint-*"):
        if not re.fullmatch(r"checkpoint-\d+", path.name):
            continue
        if (path / FILES).is_file():
            problem = fault(path)
        else:
            problem = None if (path / WRITTEN_LAST).is_file() else f"it has no {WRITTEN_LAST}"
        if problem:
            logger.warning(f"{path} is not whole ({problem}) and will not be used.")
        else:
            found.append(path)
    return sorted(found, key=lambda path: -int(path.name.split("-")[1]))


def _checkpoint(folder: Path, resume: str | bool, learning_rate: float) -> str:
    """The checkpoint to resume from."""
    if str(resume).lower() == "true":
        found = checkpoints(folder)
        if not found:
            raise FileNotFoundError(
                f"{folder} has no whole checkpoint to resume from. Leave out --resume_from_checkpoint and start in an empty "
                "--output_dir; --save_steps saves earlier."
            )
        # Where lists of files are written, a checkpoint without one is not whole: its Trainer chooses.
        name, path = "true" if any((one / FILES).is_file() for one in found) else str(found[0]), found[0]
    else:
        name, path = str(resume), Path(resume)
        if not (path / WRITTEN_LAST).is_file():
            raise FileNotFoundError(
                f"{resume} is no checkpoint to resume from: it has no {WRITTEN_LAST}. Name a run's folder checkpoint-N, or "
                "true for the newest in --output_dir."
            )
        if path.resolve().parent != folder.resolve() and folder.is_dir() and any(folder.iterdir()):
            raise FileExistsError(
                f"{folder} is not empty and {resume} is of another run. Choose another --output_dir, or delete it."
            )
    _tell_rate(path, learning_rate)
    return name


def _tell_rate(checkpoint: Path, learning_rate: float) -> None:
    """The optimizer's rates come from the checkpoint, whatever the options say: warn of an option that is not read."""
    path = checkpoint / "scheduler.pt"
    rates = torch.load(path, weights_only=True).get("base_lrs") if path.is_file() else None
    if rates and not math.isclose(max(rates), learning_rate, rel_tol=1e-6):
        logger.warning(
            f"learning_rate {learning_rate:g} is not read: {checkpoint} goes on with the rate of its beginning, "
            f"{max(rates):g}. For another rate start a new run from it: --model {checkpoint} and another --output_dir."
        )


__all__ = ["checkpoints", "run_folder"]
