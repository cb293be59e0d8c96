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


def check_memories(config: PreTrainedConfig, reuse_len: int | None = None) -> None:
    """Refuse a model that cannot read lanes: an XLNet that keeps its memories is wanted.

    Args:
        config: of the model.
        reuse_len: tokens of each row that become memory, as XLNet does it with both sides in view; None for all of them,
            as Transformer-XL does it from left to right.

    Raises:
        ValueError: which fields are wrong.
    """
    sides = "uni" if reuse_len is None else "bi"
    if config.model_type != "xlnet":
        raise ValueError(
            f"segments that go on need an XLNet with attn_type='{sides}', which keeps memories, but the model is "
            f"{config.model_type}. Other causal models read rows of pack_contiguous."
        )
    wanted = {"attn_type": sides, "use_mems_train": True, "use_mems_eval": True, "bi_data": False}
    wrong = [
        f"{name}={getattr(config, name)!r} instead of {value!r}"
        for name, value in wanted.items()
        if getattr(config, name) != value
    ]
    if not config.mem_len:
        wrong.append(f"mem_len={config.mem_len} instead of a number of tokens to keep")
    if (config.reuse_len or None) != reuse_len:
        wrong.append(
            f"reuse_len={config.reuse_len}, which would keep the wrong tokens, instead of {reuse_len}"
        )
    if wrong and reuse_len is not None:
        raise ValueError(
            f"rows whose first part is reused need an XLNet that sees both sides and keeps memories, but its config has "
            f"{', '.join(wrong)}. The fields are read when a model is made: name them in from_pretrained(..., "
            f"mem_len=384, reuse_len={reuse_len}, use_mems_train=True), or --mem_len and --reuse_len."
        )
    if wrong:
        raise ValueError(
            f"segments that go on need an XLNet that sees no later token and keeps memories, but its config has "
            f"{', '.join(wrong)}. A model that was trained with attn_type='bi' would see the tokens that it has to tell: "
            "take new weights. The other fields may be set in its config.json."
        )


def check_made_as_configured(model: nn.Module) -> None:
    """Refuse an XLNet whose config was changed after it was made, since it reads these fields only once.

    Args:
        model: an XLNet with a head, or without.

    Raises:
        ValueError: which fields differ.
    """
    body = model.base_model
    names = ("attn_type", "bi_data", "mem_len", "reuse_len")
    changed = [
        f"{name}={getattr(model.config, name)!r} (made with {getattr(body, name)!r})"
        for name in names
        if getattr(model.config, name) != getattr(body, name)
    ]
    if changed:
        raise ValueError(
            f"the config of the model was changed after the model was made: {', '.join(changed)}. XLNet reads these fields only "
            "then: name them in from_pretrained(...), or make the model of the changed config."
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
