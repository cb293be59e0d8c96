"""`training_args.bin` and `trainer_state.json` without the paths and the token of whoever trained: Trainer sends both."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments

from .resuming import FILES

STATE = "trainer_state.json"
TOKENS = ("hub_token", "push_to_hub_token")


@contextmanager
def shareable_arguments(trainer: Trainer) -> Iterator[None]:
    """While this lasts, what is pickled of a Trainer's arguments has no absolute path and no token.

    The arguments stay the same for whoever reads or sets them. Of a path the last name is left; what is no option, such
    as the state of the processes, is left out.

    Args:
        trainer: whose `args` are saved.
    """
    own = trainer.args
    kind = type(own)
    # An object of a subclass with the same attributes, since pickle asks an object's class how to save it.
    shown = object.__new__(type(kind.__name__, (kind,), {"__reduce_ex__": lambda *_: _reduced(own)}))
    shown.__dict__ = own.__dict__
    trainer.args = shown
    try:
        yield
    finally:
        trainer.args = own


def _reduced(arguments: TrainingArguments) -> tuple:
    names = {field.name for field in dataclasses.fields(arguments)} | {"_n_gpu"}
    state = {
        name: None if name in TOKENS else _without_paths(value)
        for name, value in vars(arguments).items()
        if name in names
    }
    plain = object.__new__(type(arguments))
    plain.__dict__ = state
    return plain.__reduce_ex__(
        1
    )  # of protocol 2 and later, pickle wants the class to be that of the object it was given


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_paths(one) for one in value)
    # `type`, not `isinstance`: options of a fixed choice are strings of a class of their own.
    if type(value) is str:
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(value).is_absolute() or value.startswith("~"):
                return kind(value).name
    return _without_paths(str(value)) if isinstance(value, PurePosixPath | PureWindowsPath) else value


class ShareableState(TrainerCallback):
    """Keeps the path of the best checkpoint out of a checkpoint's `trainer_state.json` that goes to the Hub.

    `best_global_step` says the same there; a training that resumes finds the folder again.
    """

    def on_push_begin(self, args, state, control, **kwargs):
        """Between the writing of the newest checkpoint and its upload."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # The push at the end sends no checkpoint, and finds the newest one listed with its sizes.
        if state.is_world_process_zero and (folder / STATE).is_file() and not (folder / FILES).exists():
            written = json.loads((folder / STATE).read_text("utf-8"))
            if written["best_model_checkpoint"] is not None:
                written["best_model_checkpoint"] = None
                (folder / STATE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", "utf-8")

    def on_train_begin(self, args, state, control, **kwargs):
        """Where the best checkpoint of a resumed training lies here."""
        if state.best_model_checkpoint is None and state.best_global_step:
            folder = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            if folder.is_dir():
                state.best_model_checkpoint = str(folder)


__all__ = ["ShareableState", "shareable_arguments"]
