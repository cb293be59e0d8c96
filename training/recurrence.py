"""States carried from batch to batch: a model's recurrent output becomes an input of its next batch, without gradient.

Models keep nothing between calls; this is the one place that does. It serves every model with an argument and an output
of the same name: `states` of our LSTMs, `mems` of Transformer-XL's kind (Dai et al. 2019, section 3.2).
"""

import inspect
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedConfig

NAMES = ("states", "mems")


def recurrent_name(model: nn.Module) -> str | None:
    """The name under which a model takes and returns its state; None if it has none."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in NAMES if name in known), None)


def check_memories(config: PreTrainedConfig) -> None:
    """Refuse a model that cannot read lanes as Transformer-XL does: an XLNet from left to right that keeps its memories.

    Args:
        config: of the model.

    Raises:
        ValueError: which fields are wrong.
    """
    if config.model_type != "xlnet":
        raise ValueError(
            f"segments that go on need an XLNet with attn_type='uni', which keeps memories, but the model is "
            f"{config.model_type}. Other causal models read rows of pack_contiguous."
        )
    wanted = {"attn_type": "uni", "use_mems_train": True, "use_mems_eval": True, "bi_data": False}
    wrong = [
        f"{name}={getattr(config, name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if getattr(config, name) != value
    ]
    if not config.mem_len:
        wrong.append(f"mem_len={config.mem_len} instead of a number of tokens to keep")
    if config.reuse_len:
        wrong.append(f"reuse_len={config.reuse_len}, which would keep the wrong tokens, instead of None")
    if wrong:
        raise ValueError(
            f"segments that go on need an XLNet that sees no later token and keeps memories, but its config has "
            f"{', '.join(wrong)}. A model that was trained with attn_type='bi' would see the tokens that it has to tell: "
            "take new weights. The other fields may be set in its config.json."
        )


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
