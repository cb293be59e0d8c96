"""Opening checkpoints: whole ones only, and those of ELMo with a clear error where it is none."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from ..modeling.configuration_elmo import ElmoConfig
from ..tokenization.tokenization_elmo import ElmoTokenizer


def open_checkpoint(name: str) -> tuple[ElmoConfig, ElmoTokenizer]:
    """The configuration and the tokenizer of an ELMo checkpoint.

    Args:
        name: a folder, or a name on the Hub.

    Returns:
        Both.

    Raises:
        FileNotFoundError: a folder without a config.json, or no such folder.
        ValueError: a checkpoint of another model, or without its tokenizer.
    """
    if (Path(name).exists() or name.startswith((".", "/"))) and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"{name} holds no config.json. Give a checkpoint folder, as heirloom convert or heirloom pretrain writes it."
        )
    config = AutoConfig.from_pretrained(name)
    if config.model_type != "elmo":
        raise ValueError(f"{name} is a {config.model_type} checkpoint; an ELMo checkpoint is expected.")
    tokenizer = AutoTokenizer.from_pretrained(name)
    if not isinstance(tokenizer, ElmoTokenizer):
        raise ValueError(
            f"{name} has no ElmoTokenizer beside it. Save one: tokenizer.save_pretrained({name!r})"
        )
    return config, tokenizer


def load_whole(
    kind: type, checkpoint: str | Path, new_head: bool = False, **options: object
) -> PreTrainedModel:
    """A model of which every weight comes from its checkpoint; `from_pretrained` fills gaps with random numbers.

    Args:
        kind: a model's class, or an Auto class.
        checkpoint: a folder, or a name on the Hub.
        new_head: weights outside the base model may be new, as those of a task that has not been learned yet.
        **options: of `from_pretrained`.

    Returns:
        The model, in evaluation mode.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: weights that are missing, of another shape than the config says, NaN or infinite.
    """
    model, report = kind.from_pretrained(
        checkpoint, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    missing, mismatched = report["missing_keys"], report["mismatched_keys"]
    if new_head:
        base = f"{model.base_model_prefix}."
        missing = [name for name in missing if name.startswith(base)]
        mismatched = [row for row in mismatched if row[0].startswith(base)]
    refuse_gaps(str(checkpoint), model, missing, mismatched)
    return model.eval()


def refuse_gaps(
    label: str,
    model: PreTrainedModel,
    missing: Iterable[str] = (),
    mismatched: Iterable[tuple[str, Iterable[int], Iterable[int]]] = (),
) -> None:
    """Refuse a model that lacks numbers.

    Args:
        label: what the message calls the checkpoint.
        model: as it was loaded.
        missing: names of weights that the checkpoint lacks.
        mismatched: names of weights of another shape, with the shape there and that of the model.

    Raises:
        ValueError: there are such weights, or some are NaN or infinite.
    """
    shapes = [
        f"{name} has {tuple(found)}, expected {tuple(wanted)}" for name, found, wanted in sorted(mismatched)
    ]
    strange = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    for wrong, what in (
        (sorted(missing), "lacks weights of its model"),
        (shapes, "holds weights of other shapes than its config.json says"),
        (strange, "holds NaN or infinite weights"),
    ):
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise ValueError(
                f"{label} {what}: {', '.join(wrong[:5])}{more}. Copy or convert the checkpoint again, all files of "
                "it, or take an earlier one."
            )
