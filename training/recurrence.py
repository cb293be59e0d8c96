"""States carried from batch to batch: a model's recurrent output becomes an input of its next batch, without gradient.

Models keep nothing between calls; this is the one place that does. It serves every model with an argument and an output
of the same name: `states` of our LSTMs, `mems` of Transformer-XL's kind (Dai et al. 2019, section 3.2).
"""

import inspect
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NAMES = ("states", "mems")


def recurrent_name(model: nn.Module) -> str | None:
    """The name under which a model takes and returns its state; None if it has none."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in NAMES if name in known), None)


class SegmentRecurrence:
    """Holds the state of one series of batches.

    Args:
        name: of the model's argument and output.
    """

    def __init__(self, name: str):
        self.name = name
        self.state: tuple[Tensor, ...] | None = None

    def reset(self) -> None:
        """Begin a new series: the next batch starts from the model's own zero state."""
        self.state = None

    def feed(self, inputs: dict) -> dict:
        """The inputs of a batch with the state of the batch before."""
        return inputs if self.state is None else inputs | {self.name: self.state}

    def keep(self, outputs: dict) -> None:
        """Remember the state that a batch left behind.

        Raises:
            ValueError: the model returned none.
        """
        state = outputs.get(self.name)
        if state is None:
            raise ValueError(
                f"the model takes `{self.name}` but returned none, so nothing can be carried to the next batch. Turn it "
                "on in the model's config (XLNet: use_mems_train=True and mem_len)."
            )
        self.state = tuple(tensor.detach() for tensor in state)

    def save(self, path: Path) -> None:
        """Write the state as safetensors; nothing if there is none yet."""
        if self.state is not None:
            tensors = {f"{number:03}": tensor.contiguous() for number, tensor in enumerate(self.state)}
            save_file(tensors, path)

    def load(self, path: Path, device: torch.device) -> None:
        """Read what `save` wrote."""
        tensors = load_file(path, device=str(device))
        self.state = tuple(tensors[name] for name in sorted(tensors))
