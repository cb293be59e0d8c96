"""Checkpoints of a training that can be trusted: which are whole, and where in the text they were made.

A process may be killed while it writes. So a list of all files with their sizes is written last, and a checkpoint counts
only if it has one and every file is of its size.
"""

import json
import re
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback
from transformers.utils import logging

from ..objectives.streams import EndlessBatches
from ..objectives.token_lanes import TokenLanes

logger = logging.get_logger(__name__)

FILES = "files.json"
POSITION = "text_position.json"


class MarkWholeCheckpoints(TrainerCallback):
    """Writes the list of files once all processes have saved theirs."""

    def on_save(self, args, state, control, **kwargs):
        """List the newest checkpoint's files with their sizes."""
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
            (folder / FILES).write_text(json.dumps(sizes, indent=1))


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint: a missing list, or a file that is missing or cut; None if nothing."""
    try:
        sizes = json.loads((checkpoint / FILES).read_text())
    except (OSError, ValueError):
        return f"it has no readable {FILES}, which is written last"
    for name, size in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return None


def last_whole_checkpoint(folder: str | Path) -> str:
    """The newest checkpoint of a run that is whole; a warning names those that are not.

    Args:
        folder: the run's `output_dir`.

    Returns:
        The checkpoint's folder.

    Raises:
        FileNotFoundError: there is none.
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if not (problem := fault(path)):
            return str(path)
        logger.warning(f"{path} is not whole ({problem}); going back to the checkpoint before it.")
    raise FileNotFoundError(
        f"{folder} has no whole checkpoint to resume from. Start anew in another --output_dir, and save earlier with "
        "--save_steps."
    )


def save_position(batches: EndlessBatches | TokenLanes, seen: int, processes: int, checkpoint: Path) -> None:
    """Write how many batches of a text a process has seen, and what made them.

    Args:
        batches: the training text.
        seen: batches of one process.
        processes: how many there are.
        checkpoint: the folder.
    """
    position = {"batches": seen, "processes": processes, **batches.identity()}
    (checkpoint / POSITION).write_text(json.dumps(position, indent=1))


def load_position(batches: EndlessBatches | TokenLanes, processes: int, checkpoint: Path) -> int:
    """How many batches to skip.

    Args:
        batches: the training text now.
        processes: how many there are now.
        checkpoint: the folder.

    Returns:
        The number of batches that a process had seen.

    Raises:
        ValueError: the text is cut or shuffled in another way than it was.
    """
    path = checkpoint / POSITION
    if not path.is_file():
        raise ValueError(f"{checkpoint} has no {POSITION}: it was not made by a training on streamed text.")
    position = json.loads(path.read_text())
    now = {"processes": processes, **batches.identity()}
    changed = [
        f"{name} {position.get(name)} to {value}"
        for name, value in now.items()
        if position.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"cannot resume {checkpoint} at its place in the text: changed {', '.join(changed)}. Resume with the same "
            "data, seed, batch size and number of processes."
        )
    return position["batches"]
