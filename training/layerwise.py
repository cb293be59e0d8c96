"""Layers of a model from bottom to top: their own learning rates, gradual unfreezing, and how many keep their weights.

- Learning rates that fall from layer to layer: Howard and Ruder 2018 (ULMFiT), section 3.2, by a factor of 1 / 2.6; models of
  BERT's kind usually take 0.8 to 0.95 (Clark et al. 2020, appendix B).
- Gradual unfreezing: ULMFiT, section 3.3.
- Layers transferred: Radford et al. 2018, figure 2; `n_transfer` in their code.

Nothing here knows architectures: the stack is the longest list of modules that holds most of the backbone's parameters.
"""

import copy
import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback

RECURRENT = re.compile(r"_l(\d+)(_reverse)?$")  # nn.LSTM(num_layers=2): weight_ih_l0, weight_ih_l1, ...


def layer_groups(model: PreTrainedModel) -> list[tuple[str, list[str]]]:
    """Names of all parameters, from the bottom of a model to its top.

    Lists of equal length side by side are one stack: both directions of a biLM, or XLM's attentions and ffns. A parameter
    of the backbone that is registered before the stack belongs to the embeddings, as do all embedding tables; what follows
    the stack (a last norm) and all that is not in the backbone (task head, untied language-model head) is the head. A shared
    parameter counts where it comes first, so a tied language-model head is embeddings. OPT registers its last norm before
    its layers, where it counts as embeddings.

    Args:
        model: a backbone, or one under heads, such as `JointLossFor...` or a stock `...ForSequenceClassification`.

    Returns:
        [("embeddings", names), ("layer 0", names), ..., ("head", names)], without groups that have no parameters.

    Raises:
        ValueError: no stack of layers, or an encoder-decoder, which has two.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder with two stacks of layers, expected one. Use options for single "
            "layers with language models and task heads on them."
        )
    backbone = model
    while getattr(backbone, "base_model", backbone) is not backbone:
        backbone = backbone.base_model
    prefix = next(name for name, module in model.named_modules() if module is backbone)
    prefix = f"{prefix}." if prefix else ""
    places = _places(backbone)
    groups: dict[str, list[str]] = {"embeddings": []}
    groups |= {f"layer {number}": [] for number in range(1 + max(places.values(), default=-1))}
    groups["head"] = []
    tables = {
        f"{name}." for name, module in backbone.named_modules() if isinstance(module, nn.Embedding) and name
    }
    reached = False
    for name, _ in model.named_parameters():
        inside = name.removeprefix(prefix) if name.startswith(prefix) else None
        place = places.get(inside)
        reached = reached or place is not None
        if place is not None:
            groups[f"layer {place}"].append(name)
        elif inside is not None and (not reached or any(inside.startswith(table) for table in tables)):
            groups["embeddings"].append(name)
        else:
            groups["head"].append(name)
    return [(group, names) for group, names in groups.items() if names]


def _places(backbone: nn.Module) -> dict[str, int]:
    """The layer that each parameter of the stack belongs to."""
    modules = dict(backbone.named_modules())
    stacks = {name: len(module) for name, module in modules.items() if isinstance(module, nn.ModuleList)}
    stacks |= {name: module.num_layers for name, module in modules.items() if isinstance(module, nn.RNNBase)}
    sizes = {name: sum(p.numel() for p in modules[name].parameters()) for name in stacks}
    best = max(stacks, key=lambda name: (sizes[name], stacks[name]), default=None)
    if best is None or not sizes[best]:
        raise ValueError(
            f"{type(backbone).__name__} has no stack of layers (a ModuleList, or an LSTM of several layers), so it has no "
            "bottom and top. Leave layer-wise options out, or make parameter groups by hand."
        )
    parent = best.rpartition(".")[0]
    kind = type(modules[best])
    places = {}
    for stack, length in stacks.items():
        beside = stack.rpartition(".")[0] == parent and isinstance(modules[stack], kind)
        if length != stacks[best] or not beside:
            continue
        for name, _ in modules[stack].named_parameters():
            found = RECURRENT.search(name)
            layer = name.split(".")[0] if isinstance(modules[stack], nn.ModuleList) else found and found[1]
            if layer is not None:
                places[f"{stack}.{name}" if stack else name] = int(layer)
    return places


def check_layer_decay(decay: float) -> None:
    """Refuse a factor that is none.

    Args:
        decay: of the learning rate from a layer to the one below it.

    Raises:
        ValueError: not in (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(
            f"the layers' learning-rate factor must lie in (0, 1], found {decay}. ULMFiT takes 1 / 2.6 = 0.385, BERT-like "
            "models 0.8 to 0.95; 1 gives all layers the same rate."
        )


def layerwise_parameter_groups(
    model: PreTrainedModel, learning_rate: float, decay: float, weight_decay: float = 0.0
) -> list[dict]:
    """Groups for an optimizer whose learning rate falls by a factor from each layer to the one below it.

    With an optimizer of one's own, such as the OpenAI preset's:
    `OpenAIAdam(layerwise_parameter_groups(model, 6.25e-5, 0.9, 0.01))`.

    Args:
        model: as for `layer_groups`; parameters without `requires_grad` are left out.
        learning_rate: of the head.
        decay: learning rate of a group over that of the group above it, in (0, 1].
        weight_decay: of all but biases and gains of norms, as Trainer chooses them.

    Returns:
        Dicts with `params`, `lr` and `weight_decay`, the head first: Trainer logs the first group's rate.

    Raises:
        ValueError: a factor out of range, or as for `layer_groups`.
    """
    check_layer_decay(decay)
    parameters = dict(model.named_parameters())
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    groups = []
    for depth, (_, names) in enumerate(reversed(layer_groups(model))):
        trained = [name for name in names if parameters[name].requires_grad]
        for part in ([n for n in trained if n in decayed], [n for n in trained if n not in decayed]):
            if part:
                groups.append(
                    {
                        "params": [parameters[name] for name in part],
                        "lr": learning_rate * decay**depth,
                        "weight_decay": weight_decay if part[0] in decayed else 0.0,
                    }
                )
    return groups


class GradualUnfreezing(TrainerCallback):
    """Train the head alone first, and one more group of `layer_groups` from the top in each period.

    Frozen parameters get gradients of zero, which no clipping counts and which every process has, and none at all when the
    optimizer steps: no weight decay and no momentum. `requires_grad` stays as it is, so DDP needs no
    `find_unused_parameters`; the backward pass is therefore as long as without freezing. What is frozen depends on the
    step alone, so a resumed training goes on as it would have. Not for DeepSpeed and FSDP, which keep gradients elsewhere.

    Args:
        every_epochs: length of a period in epochs; 1 where neither is given.
        every_steps: or in optimizer steps; use this with endless text.

    Raises:
        ValueError: both given, or a period that is not positive.
    """

    def __init__(self, every_epochs: float | None = None, every_steps: int | None = None):
        if every_epochs is not None and every_steps is not None:
            raise ValueError(
                f"a period has one length, found every_epochs={every_epochs} and every_steps={every_steps}. Give one."
            )
        self.every_steps = every_steps
        self.every_epochs = 1.0 if every_epochs is None and every_steps is None else every_epochs
        if (self.every_steps or self.every_epochs or 0) <= 0:
            raise ValueError(
                f"a period must be longer than 0, found every_epochs={every_epochs}, every_steps={every_steps}."
            )
        self._groups: list[list[nn.Parameter]] = []  # the top first
        self._hooks: dict[nn.Parameter, torch.utils.hooks.RemovableHandle] = {}

    def groups_trained(self, state) -> int:
        """How many groups move in the coming step, counted from the top.

        Args:
            state: Trainer's.
        """
        if self.every_steps is not None:
            return 1 + state.global_step // self.every_steps
        return 1 + int((state.epoch or 0.0) / self.every_epochs + 1e-6)  # 1/3 + 1/3 + 1/3 may miss 1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Find the groups and freeze."""
        self._release()
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        groups = [[parameters[n] for n in names if n in parameters] for _, names in layer_groups(model)]
        self._groups = [group for group in reversed(groups) if group]
        self._hooks = {
            parameter: parameter.register_hook(torch.zeros_like)
            for group in self._groups
            for parameter in group
        }
        self._thaw(state)

    def on_step_begin(self, args, state, control, **kwargs):
        """Let go what is due."""
        self._thaw(state)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Hide the frozen parameters from the optimizer."""
        for parameter in self._hooks:
            parameter.grad = None

    def on_train_end(self, args, state, control, **kwargs):
        """Leave nothing behind."""
        self._release()

    def _thaw(self, state) -> None:
        for group in self._groups[: self.groups_trained(state)]:
            self._release(group)

    def _release(self, parameters: Iterable[Tensor] | None = None) -> None:
        for parameter in list(self._hooks) if parameters is None else parameters:
            if parameter in self._hooks:
                self._hooks.pop(parameter).remove()


@torch.no_grad()
def transfer_layers(model: PreTrainedModel, count: int) -> None:
    """Keep what is pre-trained of the embeddings and the first layers; all above gets the model's own new weights.

    Above are the other layers, the last norm, the heads, and the language model's own head unless it is tied to the
    embeddings. The new numbers come from torch's global generator.

    Args:
        model: as for `layer_groups`, changed in place.
        count: layers to keep; 0 keeps the embeddings alone, all layers keep everything.

    Raises:
        ValueError: fewer than 0 or more layers than there are, or as for `layer_groups`.
    """
    groups = layer_groups(model)
    layers = [group for group, _ in groups if group.startswith("layer ")]
    if not 0 <= count <= len(layers):
        raise ValueError(
            f"{type(model).__name__} has {len(layers)} layers, found {count} to transfer. Give 0 (the embeddings alone) to "
            f"{len(layers)} (everything)."
        )
    if count == len(layers):
        return
    kept = {"embeddings", *layers[:count]}
    fresh = dict(type(model)(copy.deepcopy(model.config)).named_parameters())
    parameters = dict(model.named_parameters())
    for group, names in groups:
        for name in names if group not in kept else ():
            parameters[name].copy_(fresh[name])


__all__ = [
    "GradualUnfreezing",
    "check_layer_decay",
    "layer_groups",
    "layerwise_parameter_groups",
    "transfer_layers",
]
