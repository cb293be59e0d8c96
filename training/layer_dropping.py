"""A student that begins as some layers of its teacher, as DistilBERT (Sanh et al. 2019, section 3)."""

import copy
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

ADVICE = "Make the student by hand, from a config with fewer layers."


def student_of(teacher: PreTrainedModel, layers: Sequence[int] | None = None) -> PreTrainedModel:
    """A copy of a stock model with some of its layers.

    Embeddings and heads are the teacher's. DistilBERT's code takes 0, 2, 4, 7, 9 and 11 of 12, and leaves out BERT's types
    and pooler; here the student is of the teacher's class, with all else that it has.

    Args:
        teacher: one stack of layers (BERT, RoBERTa, GPT-2 and their kin); stays as it is.
        layers: numbers of its layers from 0 on, in order; None takes every second one, the first included.

    Returns:
        The student, in evaluation mode, with weights of its own.

    Raises:
        ValueError: a model without one list of layers, or layers that it does not have, or not in such places.
    """
    name, count = layer_list(teacher)
    chosen = list(range(0, count, 2)) if layers is None else list(layers)
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= count:
        raise ValueError(
            f"layers must be different numbers from 0 to {count - 1} in rising order, found {chosen}."
        )
    config = copy.deepcopy(teacher.config)
    sizes = config.get_text_config()
    sizes.num_hidden_layers = len(chosen)
    if getattr(sizes, "layer_types", None):  # of models whose layers differ
        sizes.layer_types = [sizes.layer_types[number] for number in chosen]
    student = type(teacher)(config).to(device=teacher.device, dtype=teacher.dtype)
    places = {str(old): str(new) for new, old in enumerate(chosen)}
    weights = {}
    for key, value in teacher.state_dict().items():
        if key.startswith(f"{name}."):
            number, _, rest = key.removeprefix(f"{name}.").partition(".")
            if number not in places:
                continue
            key = f"{name}.{places[number]}.{rest}"
        weights[key] = value
    if different := sorted(weights.keys() ^ student.state_dict().keys()):
        raise ValueError(
            f"layers {chosen} of {type(teacher).__name__} do not fit into the places of a smaller one, found {different[0]} "
            "on one side alone. Some models have another first layer: keep 0."
        )
    student.load_state_dict(weights)
    return student.eval()


def layer_list(model: PreTrainedModel) -> tuple[str, int]:
    """The name of the one list of layers that a model has, and its length.

    Raises:
        ValueError: no such list, or several.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"expected a model of Transformers, found {type(model).__name__}. {ADVICE}")
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if model.config.is_encoder_decoder or len(found) != 1:
        raise ValueError(
            f"expected one list of num_hidden_layers={count} layers in {type(model).__name__}, found "
            f"{', '.join(found) or 'none'}. Encoder-decoders have two, and ALBERT's layers share their weights. {ADVICE}"
        )
    return found[0], count


__all__ = ["layer_list", "student_of"]
