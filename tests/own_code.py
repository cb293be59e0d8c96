"""Load a checkpoint in a process that has no heirloom: its code must be all beside its weights."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel

CODE = """
import sys, torch, transformers
sys.modules["heirloom"] = None
expected = torch.load("expected")
auto_class = getattr(transformers, expected["auto_class"])
model = auto_class.from_pretrained("model", trust_remote_code=True)
torch.testing.assert_close(model(**expected["batch"]).loss, expected["loss"])
assert type(model).__module__.startswith("transformers_modules")
"""


def check_own_code(model: PreTrainedModel, batch: dict, folder: Path) -> None:
    """Save a model, load it where heirloom cannot be imported, and compare the losses.

    Args:
        model: of a class of ours.
        batch: keyword arguments of `forward`, with which it has a loss.
        folder: for the checkpoint and the code cache of the other process.

    Raises:
        AssertionError: the other process failed; its words are the message.
    """
    model.save_pretrained(folder / "model")
    expected = {"auto_class": model._auto_class, "batch": batch, "loss": model(**batch).loss.detach()}
    torch.save(expected, folder / "expected")
    environment = {**os.environ, "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
