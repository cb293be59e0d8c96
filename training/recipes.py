"""Recipes: YAML files whose keys are option names; the command line has the last word.

A recipe is a path, or the name of a file in the package's folder `recipes/`.
"""

import dataclasses
import difflib
import json
from pathlib import Path

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

FOLDER = Path(__file__).resolve().parent.parent / "recipes"


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """The file of a recipe.

    Args:
        name: a path to a YAML file, or the name of a recipe in the package.

    Returns:
        The path.

    Raises:
        FileNotFoundError: neither.
    """
    if Path(name).is_file():
        return Path(name)
    if (path := FOLDER / f"{name}.yaml").is_file():
        return path
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Recipes are {', '.join(recipe_names())}."
    raise FileNotFoundError(f"{name} is neither a YAML file nor a recipe. {hint}")


def read_recipe(name: str) -> dict:
    """The keys and values of a recipe.

    Args:
        name: see `recipe_path`.

    Returns:
        {option: value}.

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: the file is not a YAML mapping.
    """
    path = recipe_path(name)
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `option: value` lines, found {type(content).__name__}.")
    return content


def parse(name: str, overrides: list[str], kind: type) -> tuple:
    """Turn a recipe and command-line overrides into arguments.

    Args:
        name: see `recipe_path`.
        overrides: `--option value ...`, as typed.
        kind: the dataclass of options beside Trainer's.

    Returns:
        An instance of `kind` and `TrainingArguments`.

    Raises:
        FileNotFoundError: no such recipe.
        ValueError: an unknown option, or a value of the wrong type, by name.
    """
    recipe = {
        "report_to": "none",
        "output_dir": f"runs/{Path(name).stem}",
        "dataloader_pin_memory": torch.cuda.is_available(),
        **read_recipe(name),
    }
    recipe.pop("about", None)
    known = {
        field.name for owner in (kind, TrainingArguments) for field in dataclasses.fields(owner) if field.init
    }
    typed = [
        word.removeprefix("--").split("=")[0].replace("-", "_") for word in overrides if word.startswith("--")
    ]
    for option in [*recipe, *typed]:
        if option not in known and option.removeprefix("no_") not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"Did you mean `{near[0]}`?" if near else "`heirloom recipes` shows examples."
            raise ValueError(f"no option `{option}`. {hint}")
    overrides = [
        "=".join([word.split("=")[0].replace("-", "_").replace("__", "--", 1), *word.split("=", 1)[1:]])
        if word.startswith("--")
        else word
        for word in overrides
    ]
    parser = HfArgumentParser((kind, TrainingArguments))
    parser.error = _raise
    return parser.parse_args_into_dataclasses([*_as_typed(recipe), *overrides], look_for_args_file=False)


def _as_typed(recipe: dict) -> list[str]:
    """A recipe as command-line words, so that files and the command line are checked by the same parser."""
    words = []
    for option, value in recipe.items():
        if value is None:
            continue
        words.append(f"--{option}")
        if isinstance(value, dict) or (option == "char_filters" and not isinstance(value, str)):
            words.append(json.dumps(value))
        else:
            words += [str(item) for item in (value if isinstance(value, list) else [value])]
    return words


def _raise(message: str) -> None:
    raise ValueError(message)
