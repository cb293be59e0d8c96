"""What must not be pushed, or not so: tokens, paths of somebody's disk, code that is missing, cards with gaps."""

import json
import re
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open

TEXT = (".json", ".md", ".py", ".txt", ".yaml", ".jinja", ".svg")
VOCABULARIES = (
    "tokenizer.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "char_vocab.txt",
    "merges.txt",
)
TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}")
# Folders that people work in; /usr/share, or a route such as /api/models, tells nothing about anybody.
ROOTS = "cluster|content|data|export|gpfs|home|kaggle|lustre|media|mnt|nfs|opt|private|projects|root|scratch|srv|tmp|Users"
ROOTS += "|var|work|workspace"
LOCAL_PATH = re.compile(
    rf"(?:(?<=file://)|(?<![\w./:~*-]))/(?:{ROOTS})/[^\s\"'`<>|,;)\]}}]+|(?<!\w)[A-Z]:\\{{1,2}}[^\s\"'`<>|,;)\]}}]+"
)

RELATIVE_IMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.M)


def find_private(files: dict[str, Path | bytes], token: str | None) -> list[str]:
    """Look for access tokens and absolute local paths in texts, and in the metadata of weights.

    Args:
        files: {name: where it lies, or its content}. Words of vocabularies may look like paths: they are searched for tokens
            only.
        token: the user's own.

    Returns:
        One line for each find; empty if all is well.
    """
    own = [str(place) for place in (Path.home(), Path.cwd()) if len(place.parts) > 2]
    found = []
    for name, content in files.items():
        for number, line in enumerate(_text(name, content).splitlines(), 1):
            if (match := TOKEN.search(line)) or (token and token in line):
                start = match[0][:6] if match else token[:6]
                found.append(f"{name}, line {number}: an access token ({start}...)")
            if name.split("/")[-1] in VOCABULARIES:
                continue
            match = LOCAL_PATH.search(line)
            paths = [match[0]] if match else [place for place in own if place in line]
            found += [f"{name}, line {number}: the local path {path}" for path in paths[:1]]
    return found


def _text(name: str, content: Path | bytes) -> str:
    if name.endswith(".safetensors"):
        try:
            with safe_open(content, "np") as file:
                return json.dumps(file.metadata())
        except SafetensorError as error:
            raise ValueError(
                f"{name} is no whole safetensors file ({error}). Save the checkpoint again."
            ) from error
    if not name.endswith(TEXT) and not name.startswith("LICENSE"):
        return ""
    data = content if isinstance(content, bytes) else content.read_bytes()
    return data.decode("utf-8", "replace")


def missing_files(folder: Path) -> list[str]:
    """Files that the checkpoint's JSON files and its code name, and that are not there.

    Args:
        folder: of the checkpoint.

    Returns:
        Their names.
    """
    wanted = {f"{place.split('.')[0]}.py" for place in _places_of_code(folder) if "--" not in place}
    if not (folder / "model.safetensors").is_file():
        wanted |= set(_read(folder / "model.safetensors.index.json").get("weight_map", {}).values())
    for file in folder.glob("*.py"):
        wanted |= {f"{name}.py" for name in RELATIVE_IMPORT.findall(file.read_text("utf-8", "replace"))}
    return sorted(name for name in wanted if not (folder / name).is_file())


def foreign_code(folder: Path) -> list[str]:
    """Other repositories whose code a checkpoint runs.

    Args:
        folder: of the checkpoint.

    Returns:
        Their names, as its JSON files give them.
    """
    return sorted({place.split("--")[0] for place in _places_of_code(folder) if "--" in place})


def _places_of_code(folder: Path) -> set[str]:
    """What stands in `auto_map`: file.Class, after USER/NAME-- where it lies in another repository."""
    found = set()
    for name in ("config.json", "tokenizer_config.json"):
        for places in (_read(folder / name).get("auto_map") or {}).values():
            found |= {place for place in (places if isinstance(places, list) else [places]) if place}
    return found


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}). Save the checkpoint again.") from error


def card_warnings(card: str, files: list[str]) -> list[str]:
    """What is wrong with a model card, as far as can be told without the Hub.

    Args:
        card: its Markdown.
        files: names of what lies beside it.

    Returns:
        One line for each gap.
    """
    try:
        data = ModelCard(card).data
    except (ValueError, TypeError, yaml.YAMLError) as error:
        return [
            f"the YAML head of README.md cannot be read, the Hub will refuse it: {' '.join(str(error).split())}"
        ]
    found = []
    if not data.to_dict():
        found.append(
            "README.md has no YAML head; begin it with `---`, `license: ...`, `language: ...`, `---`"
        )
    else:
        if data.license in (None, "unknown"):
            found.append("the license is unknown; write `license:` and what your data and their owners allow")
        if not data.language:
            found.append("the language is not named; write `language:` and its code")
    if gaps := len(re.findall(r"More Information Needed|Not stated", card)):
        found.append(f"README.md has {gaps} gaps (Not stated, More Information Needed)")
    pictures = re.findall(r"!\[[^\]]*\]\(([^):]+)\)", card)
    found += [f"README.md shows {name}, which is not there" for name in pictures if name not in files]
    return found


__all__ = ["card_warnings", "find_private", "foreign_code", "missing_files"]
