"""Model cards: what a checkpoint is, rendered from the templates in `model_cards/`, and rendered again from `card.json`."""

import hashlib
import json
import math
import platform
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from huggingface_hub import EvalResult
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard_data import eval_results_to_model_index
from huggingface_hub.utils import validate_repo_id, yaml_dump

from .. import __version__
from .citations import bibtex
from .result_files import result_file

if TYPE_CHECKING:
    from transformers import TrainingArguments

FOLDER = Path(__file__).resolve().parent.parent / "model_cards"
CARD, RECORD = "README.md", "card.json"
RESULTS = ".eval_results/heirloom.yaml"
LANGUAGE = re.compile(r"multilingual|code|[a-z]{2,3}(-[A-Za-z0-9]{1,8})*")  # ISO 639, as in BCP 47
METRIC_TYPES = {
    "macro_f1": "f1",
    "entity_f1": "f1",
    "chrf": "chrf",
    "rouge1": "rouge",
    "rouge2": "rouge",
    "rougeL": "rouge",
}


@dataclass
class CardFacts:
    """What a card says; every field is a fact of the run.

    Args:
        name: of the checkpoint.
        auto_class: Auto class that loads it.
        summary: one paragraph.
        data: what it was trained on.
        results: {measure: value}, as readers see them.
        training: {option: value}.
        pictures: files beside the card.
        example: words of the usage example.
        language: code; "" if nobody has said it.
        license: of the weights; "unknown" asks the author to decide.
        tags: for the Hub.
        limits: what the model is not good for.
        scores: {measure: number}, for the Hub's `model-index`.
        dataset: what `scores` were measured on.
        dataset_task: which of the data set's tasks, where it is a benchmark on the Hub.
        task: one of the Hub's pipeline tags.
        base_model: name on the Hub of the checkpoint it began with.
        datasets: names of data sets on the Hub.
        citations: entries of `citations.bib` besides the template's own.
    """

    name: str
    auto_class: str
    summary: str
    data: str
    results: dict[str, str]
    training: dict[str, str]
    pictures: list[str] = field(default_factory=list)
    example: list[str] = field(default_factory=lambda: ["The", "old", "clock", "struck", "nine", "."])
    language: str = ""
    license: str = "unknown"
    tags: list[str] = field(default_factory=list)
    limits: str = (
        "It was trained and evaluated on the data above and on nothing else. How it does on other text, and which prejudices of "
        "its text it has learned, has not been measured."
    )
    scores: dict[str, float] = field(default_factory=dict)
    dataset: str = ""
    dataset_task: str = "default"
    task: str = ""
    base_model: str = ""
    datasets: list[str] = field(default_factory=list)
    citations: list[str] = field(default_factory=list)


def render_card(facts: CardFacts, template: str = "elmo.md") -> str:
    """The card's Markdown.

    Args:
        facts: what to say.
        template: a file in `model_cards/`, which fills in the blocks of `card.md`.

    Returns:
        Text with a YAML head, as the Hub reads it.
    """
    return _render(vars(facts), template)


def write_card(folder: Path | str, facts: CardFacts, template: str = "elmo.md") -> str:
    """Write `README.md`, the file of results, and `card.json`, from which `update_card` writes them again.

    Args:
        folder: of the checkpoint.
        facts: as in `render_card`.
        template: as in `render_card`.

    Returns:
        The card.
    """
    return _write(Path(folder), dict(vars(facts)), template)


def update_card(folder: Path | str, changes: dict[str, str] | None = None, force: bool = False) -> str:
    """Write a card again from `card.json`, with the pictures that lie beside it now.

    Args:
        folder: of the checkpoint.
        changes: facts that the run could not know, such as `license`; they are recorded.
        force: write over a card that somebody edited.

    Returns:
        The card.

    Raises:
        FileExistsError: somebody edited the card or the file of results, or wrote one, since they were last rendered.
        FileNotFoundError: the folder has no `card.json`.
        ValueError: a `card.json` that cannot be read, or does not hold what the template needs; a name or a language that the
            Hub would not take.
    """
    folder, changes = Path(folder), changes or {}
    _check_changes(changes)
    record = _read_record(folder / RECORD)
    for name, mark in ((CARD, record["rendered"]), (RESULTS, record.get("results", ""))):
        if not force and not _is_ours(folder / name, mark):
            raise FileExistsError(
                f"{folder / name} has been edited since heirloom wrote it. Keep it as it is; or put the changes into {RECORD} "
                "and write the card again with --force, which drops what was edited."
            )
    return _write(folder, _facts_now(folder, record) | changes, record["template"])


def _check_changes(changes: dict[str, str]) -> None:
    """Refuse what the Hub would not take."""
    try:
        validate_repo_id(changes.get("name", "name"))
    except HFValidationError as error:
        raise ValueError(
            f"name {changes['name']!r} is none that the Hub takes: expected USER/NAME of letters, digits, '-', '_' and '.', "
            f"96 characters at most ({str(error).rstrip('.')}). Change it."
        ) from error
    language = changes.get("language", "")
    if language and not LANGUAGE.fullmatch(language):
        raise ValueError(
            f"language {language!r} is no code that the Hub takes: expected one such as de, gsw or pt-BR (ISO 639), "
            "multilingual or code. Change it."
        )


def card_for(folder: Path | str, name: str) -> str | None:
    """The card as it reads under another name; nothing is written.

    Args:
        folder: of the checkpoint.
        name: of the repository, "user/name".

    Returns:
        The card; None if the one in the folder is somebody's own or edited, or bears a repository's name already.
    """
    folder = Path(folder)
    try:
        record = _read_record(folder / RECORD)
        written = _is_ours(folder / CARD, record["rendered"]) and (folder / CARD).is_file()
        old = record["facts"]["name"]
        if not written or ("/" in old and not _is_here(folder, old)):
            return None
        return _render(_facts_now(folder, record) | {"name": name}, record["template"])
    except (FileNotFoundError, ValueError, KeyError):  # the card that is there will do
        return None


def local_names(folder: Path | str, card: str) -> list[str]:
    """What a card's examples load that is the folder itself, or another place on this disk.

    Args:
        folder: of the checkpoint.
        card: its Markdown.

    Returns:
        Names, each once.
    """
    folder = Path(folder)
    names = dict.fromkeys(re.findall(r"""(?:from_pretrained\(\s*|model=)["']([^"'\n]+)["']""", card))
    return [
        name
        for name in names
        if _is_here(folder, name) or Path(name).exists() or name.startswith((".", "/", "~"))
    ]


def _is_here(folder: Path, name: str) -> bool:
    return folder.resolve().as_posix().endswith(f"/{name}")


def _is_ours(file: Path, mark: str) -> bool:
    """Nobody has written or edited a file since it was rendered."""
    return not file.is_file() or _mark(file.read_text(encoding="utf-8")) == mark


def _facts_now(folder: Path, record: dict) -> dict:
    """What was recorded, with defaults for what is newer, and the pictures that are there."""
    known = {item.name: _default(item) for item in fields(CardFacts) if _default(item) is not MISSING}
    facts = known | record["facts"]
    drawn = sorted(file.name for file in folder.glob("*.png"))
    facts["pictures"] = list(dict.fromkeys(name for name in [*facts["pictures"], *drawn] if name in drawn))
    return facts


def _write(folder: Path, facts: dict, template: str) -> str:
    text, results = _render(facts, template), result_file(facts)
    record = {"heirloom": __version__, "template": template, "rendered": _mark(text)}
    record |= {"results": _mark(results)} if results else {}
    record |= {"facts": facts}
    (folder / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(text, encoding="utf-8")
    if results:
        (folder / RESULTS).parent.mkdir(exist_ok=True)
        (folder / RESULTS).write_text(results, encoding="utf-8")
    else:
        (folder / RESULTS).unlink(missing_ok=True)
    return text


def _read_record(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(
            f"expected {path}, which a training verb of heirloom leaves in a run's folder; found none. Write README.md by hand; "
            "`heirloom push` sends a minimal one otherwise."
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        record["template"], record["rendered"], record["facts"]["pictures"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} must be JSON with template, rendered and facts, as heirloom wrote it ({type(error).__name__}: {error})."
        ) from error
    return record


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _default(item):
    return item.default if item.default_factory is MISSING else item.default_factory()


def _render(facts: dict, template: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["cell"] = lambda value: " ".join(str(value).replace("|", "\\|").split())
    environment.globals["cite"] = lambda key: f"```bibtex\n{bibtex(key)}\n```"
    try:
        return environment.get_template(template).render(facts | {"model_index": _model_index(facts)})
    except jinja2.TemplateNotFound as error:
        raise ValueError(f"expected the name of a template in model_cards/, found {template!r}.") from error
    except (jinja2.UndefinedError, AttributeError, TypeError) as error:
        raise ValueError(f"the facts of this card do not fit its template {template}: {error}.") from error


def _model_index(facts: dict) -> str:
    """The Hub's `model-index` in YAML; "" without numbers."""
    scores = {key: value for key, value in facts["scores"].items() if math.isfinite(value)}
    results = [
        EvalResult(
            task_type=facts["task"] or "other",
            dataset_type=facts["dataset"],
            dataset_name=facts["dataset"],
            metric_type=METRIC_TYPES.get(key, key),
            metric_name=key.replace("_", " "),
            metric_value=float(f"{value:.6g}"),
        )
        for key, value in scores.items()
    ]
    if not results:
        return ""
    return yaml_dump({"model-index": eval_results_to_model_index(facts["name"], results)})


OPTIONS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "num_train_epochs",
    "max_steps",
    "seed",
)
UNUSUAL = ("bf16", "fp16", "data_seed", "label_smoothing_factor", "load_best_model_at_end")  # told if set


def training_facts(arguments: "TrainingArguments", seconds: float) -> dict[str, str]:
    """The options that decide a run's numbers, and where it ran.

    Args:
        arguments: Trainer's.
        seconds: wall time of training.

    Returns:
        {option: value} for a card.
    """
    import datasets
    import tokenizers
    import torch
    import transformers

    names = [*OPTIONS, *(name for name in UNUSUAL if getattr(arguments, name))]
    facts = {
        name: str(getattr(getattr(arguments, name), "value", getattr(arguments, name))) for name in names
    }
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} threads"
    )
    versions = {"heirloom": __version__, "Python": platform.python_version()}
    versions |= {
        module.__name__: module.__version__ for module in (transformers, torch, datasets, tokenizers)
    }
    return facts | {
        "training time": f"{seconds:.0f} s on {device}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


__all__ = [
    "CardFacts",
    "card_for",
    "local_names",
    "render_card",
    "training_facts",
    "update_card",
    "write_card",
]
