"""What a run's card says besides its losses: numbers for the Hub, papers, names on the Hub, the verb's own options; and its push."""

from dataclasses import MISSING, fields
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import Trainer

from .citations import citations_of

TASKS = {
    "AutoModel": "feature-extraction",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForSeq2SeqLM": "translation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
}


def facts_of_run(trainer: Trainer, arguments, scores: dict[str, float], measures: dict[str, str]) -> dict:
    """Fields of `CardFacts` that are the same for every verb.

    Args:
        trainer: after training.
        arguments: the verb's own, a dataclass.
        scores: of the last evaluation.
        measures: {key of an evaluation: name}, those that a card shows.

    Returns:
        `results`, `scores`, `dataset`, `base_model`, `datasets` and `citations`.
    """
    found = {key: scores[key] for key in measures if key in scores}
    data = [*_listed(arguments, "train_file"), *_listed(arguments, "validation_file")]
    held_out = ("validation_file", "validation_source", "validation_target")
    names = [
        Path(item).name if Path(item).exists() else item
        for key in held_out
        for item in _listed(arguments, key)
    ]
    start = getattr(arguments, "model", "") or ""
    return {
        "results": {measures[key]: f"{value:.4g}" for key, value in found.items()},
        "scores": {key.removeprefix("eval_"): value for key, value in found.items()},
        "dataset": ", ".join(names) or "held-out part of the training data",
        "base_model": start
        if start and not _local(start) and not getattr(arguments, "from_scratch", False)
        else "",
        "datasets": sorted({item for item in data if not _local(item) and not Path(item).suffix}),
        "citations": citations_of(trainer.model.config, vars(arguments)),
    }


def push_if_asked(trainer: Trainer) -> None:
    """Push a run's folder with the card that it has by now, where `push_to_hub` says so; each process calls this.

    Args:
        trainer: after training.
    """
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def own_options(trainer: Trainer, arguments) -> dict[str, str]:
    """The size of the model, and the verb's options that are not the default; of a path only its last name.

    Args:
        trainer: after training.
        arguments: the verb's own, a dataclass.

    Returns:
        {option: value} for a card.
    """
    told = {}
    for item in fields(arguments):
        value = getattr(arguments, item.name)
        usual = item.default if item.default_factory is MISSING else item.default_factory()
        if value != usual and value not in (None, "", []):
            values = value if isinstance(value, list | tuple) else [value]
            told[item.name] = ", ".join(
                Path(v).name if isinstance(v, str) and _local(v) else str(v) for v in values
            )
    return {"parameters": f"{trainer.model.num_parameters():,}"} | told


def _listed(arguments, name: str) -> list[str]:
    value = getattr(arguments, name, None) or []
    return [value] if isinstance(value, str) else [str(item) for item in value]


def _local(name: str) -> bool:
    """A file, folder, pattern or config, and no name on the Hub."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return Path(name).exists()


__all__ = ["TASKS", "facts_of_run", "own_options", "push_if_asked"]
