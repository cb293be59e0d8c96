"""Model cards: what a checkpoint is, rendered from the templates in `model_cards/`."""

import platform
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
import torch
import transformers
from transformers import TrainingArguments

FOLDER = Path(__file__).resolve().parent.parent / "model_cards"


@dataclass
class CardFacts:
    """What a card says; every field is a fact of the run.

    Args:
        name: of the checkpoint.
        auto_class: Auto class that loads it.
        summary: one paragraph.
        data: what it was trained on.
        results: {measure: value}.
        training: {option: value}.
        pictures: files beside the card.
        example: words of the usage example.
        language: code.
        license: of the weights; "unknown" asks the author to decide.
        tags: for the Hub.
        limits: what the model is not good for.
    """

    name: str
    auto_class: str
    summary: str
    data: str
    results: dict[str, str]
    training: dict[str, str]
    pictures: list[str] = field(default_factory=list)
    example: list[str] = field(default_factory=lambda: ["The", "old", "clock", "struck", "nine", "."])
    language: str = "en"
    license: str = "unknown"
    tags: list[str] = field(default_factory=list)
    limits: str = "A small model of little text: a demonstration, not a product."


def render_card(facts: CardFacts, template: str = "elmo.md") -> str:
    """The card's Markdown.

    Args:
        facts: what to say.
        template: a file in `model_cards/`, which fills in the blocks of `card.md`.

    Returns:
        Text with a YAML head, as the Hub reads it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(vars(facts))


def training_facts(arguments: TrainingArguments, seconds: float) -> dict[str, str]:
    """The options that decide a run's numbers, and where it ran.

    Args:
        arguments: Trainer's.
        seconds: wall time of training.

    Returns:
        {option: value} for a card.
    """
    names = (
        "learning_rate",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "num_train_epochs",
        "max_steps",
        "seed",
    )
    facts = {name: str(getattr(arguments, name)) for name in names}
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    return facts | {
        "training time": f"{seconds:.0f} s on {device}",
        "versions": f"transformers {transformers.__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
