"""A checkpoint to the Hugging Face Hub in one commit: which files belong, what must not go, what went wrong in plain words."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from .. import __version__
from .cards import CARD, CardFacts, card_for, local_names, render_card
from .push_checks import card_warnings, find_private, foreign_code, missing_files

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER += (
    "vocab.json",
    "vocab.txt",
    "char_vocab.txt",
    "target_vocab.json",
    "merges.txt",
    "*.model",
    "*.spm",
)
TOKENIZER += ("chat_template.jinja", "tokenization_*.py")
BELONGS = (
    "config.json",
    "generation_config.json",
    *WEIGHTS,
    *TOKENIZER,
    "*.py",
    "README.md",
    "LICENSE*",
    "*.png",
)
BELONGS += ("*.svg", ".eval_results/*.yaml")
BELONGS += tuple(f"{side}_tokenizer/{name}" for side in ("source", "target") for name in TOKENIZER)


@dataclass
class PushPlan:
    """What a push will send.

    Args:
        repo: repository, "user/name".
        files: {path in the repository: file, or its content}, sorted.
        left_out: what else lies in the folder; folders end in "/".
        warnings: gaps in the card, and what is missing that users will want.
        title: of the commit.
        notes: what is sent otherwise than it lies there.
        invented: the card is made for want of one; one that is on the Hub stays.
    """

    repo: str
    files: dict[str, Path | bytes]
    left_out: list[str]
    warnings: list[str]
    title: str
    notes: list[str] = field(default_factory=list)
    invented: bool = False

    def sizes(self) -> dict[str, int]:
        """{path in the repository: bytes}."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }


@dataclass
class Pushed:
    """What a push has done.

    Args:
        repo: repository, "user/name".
        url: of the commit.
        private: only its owner sees the repository.
        changed: False if the Hub had all of it already.
        removed: weights of an earlier push that are no part of this one.
    """

    repo: str
    url: str
    private: bool
    changed: bool
    removed: list[str]


@dataclass
class _MinimalFacts(CardFacts):
    """What is known about a folder without a card.

    Args:
        family: model type.
    """

    family: str = ""


def plan_push(folder: Path | str, repo: str) -> PushPlan:
    """Choose what belongs to a checkpoint and check it; asks nobody.

    Args:
        folder: a checkpoint, or a run's folder with one, which stays as it is. A card is written for it if it has none; one
            that heirloom wrote and nobody edited is sent with the repository's name.
        repo: repository, "user/name".

    Returns:
        What `push` takes.

    Raises:
        FileNotFoundError: no checkpoint in the folder, or one with parts missing.
        ValueError: a malformed name, a file that cannot be read; or a token or an absolute local path in a file.
    """
    _check_name(repo)
    folder = Path(folder)
    config = _read_config(folder)
    files = {path.relative_to(folder).as_posix(): path for name in BELONGS for path in folder.glob(name)}
    if missing := missing_files(folder):
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}, named in its other files: nobody could load it from the Hub. Load it where "
            "heirloom is installed, and save it again with save_pretrained."
        )
    warnings, notes = [], []
    if invented := CARD not in files:
        files[CARD] = _minimal_card(repo, config).encode()
        warnings.append(f"{folder} has no README.md; a card of what config.json says will be sent")
    elif renamed := card_for(folder, repo):
        files[CARD] = renamed.encode()
        notes.append(f"README.md is sent with the name {repo} in it; the one in {folder} stays as it is")
    if not any(name.endswith("tokenizer_config.json") for name in files):
        warnings.append("no tokenizer; save it into the folder if the model reads text")
    warnings += [
        f"the checkpoint runs code of {name}, which can change or vanish; save it again where heirloom is installed to send "
        "its code along"
        for name in foreign_code(folder)
        if name != repo
    ]
    files = dict(sorted(files.items()))
    card = files[CARD]
    text = card.decode() if isinstance(card, bytes) else card.read_text("utf-8", "replace")
    warnings += card_warnings(text, list(files))
    warnings += [
        f"an example in README.md loads {name!r}, which only your disk has; write {repo} there"
        for name in local_names(folder, text)
        if name != repo
    ]
    if found := find_private(files, get_token()):
        raise ValueError(
            "these files must not be pushed as they are:\n  " + "\n  ".join(found) + "\n"
            "Take the lines out and push again. A token that others may have seen wants to be revoked: "
            "https://huggingface.co/settings/tokens"
        )
    taken = {name.split("/")[0] for name in files}
    left_out = [f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()]
    left_out = sorted(name for name in left_out if name.removesuffix("/") not in taken)
    architecture = (config.get("architectures") or [config.get("model_type", "checkpoint")])[0]
    title = f"{architecture}, pushed by heirloom {__version__}"
    return PushPlan(repo, files, left_out, warnings, title, notes, invented)


def push(
    plan: PushPlan, private: bool = True, revision: str | None = None, message: str | None = None
) -> Pushed:
    """Send a checkpoint in one commit; the repository is made if there is none.

    Weights that the Hub has already, also from a push that broke off, are not sent again. Weights of an earlier push that are
    no part of this one are removed in the same commit: Transformers might load those.

    Args:
        plan: made by `plan_push`.
        private: a new repository is private; one that exists stays as it is.
        revision: branch; None is "main".
        message: title of the commit.

    Returns:
        What has been done.

    Raises:
        ConnectionError: no network, the Hub failed, or somebody else pushed meanwhile.
        PermissionError: no token, a wrong one, or one that may not write there.
        ValueError: the branch does not exist, or the Hub does not take the card.
    """
    if get_token() is None:
        raise PermissionError(
            "found no token of the Hugging Face Hub. Make one that may write at https://huggingface.co/settings/tokens, and "
            "run `hf auth login` or set HF_TOKEN."
        )
    api, revision = HfApi(), revision or "main"
    with _in_plain_words(plan.repo, revision):
        repo = api.create_repo(plan.repo, private=private, exist_ok=True).repo_id
        before = api.model_info(repo, revision=revision)
        stored = [sibling.rfilename for sibling in before.siblings or []]
        removed = [name for name in stored if _is_weight(name) and name not in plan.files]
        operations = [CommitOperationDelete(name) for name in removed]
        for name, content in plan.files.items():
            if not (
                name == CARD and plan.invented and name in stored
            ):  # a card that somebody wrote is better
                operations.append(CommitOperationAdd(name, content))
        title = message or plan.title
        # With its parent named, a commit never mixes with one that came in between.
        commit = api.create_commit(
            repo, operations, commit_message=title, revision=revision, parent_commit=before.sha
        )
    changed = commit.oid != before.sha
    return Pushed(repo, commit.commit_url, bool(before.private), changed, removed)


def _check_name(repo: str) -> None:
    try:
        validate_repo_id(repo)
        reason = "" if "/" in repo else "USER/ is missing; `hf auth whoami` tells it"
    except HFValidationError as error:
        reason = str(error)
    if reason:
        raise ValueError(
            "a repository's name must be USER/NAME of letters, digits, '-', '_' and '.', at most 96, "
            f"found {repo!r}: {reason}"
        )


def _read_config(folder: Path) -> dict:
    """`config.json` of a folder that holds a checkpoint."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected the folder of a checkpoint, found no folder {folder}. Give a run's folder."
        )
    if not (folder / "config.json").is_file():
        inner = sorted(folder.glob("checkpoint-*/config.json"), key=lambda path: path.stat().st_mtime)
        hint = f"push {inner[-1].parent} instead" if inner else "save one with save_pretrained"
        raise FileNotFoundError(
            f"expected config.json and weights in {folder}, found no config.json; {hint}."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{folder / 'config.json'} is no JSON ({error}). Save the checkpoint again."
        ) from error
    if not any(path for name in WEIGHTS for path in folder.glob(name)):
        raise FileNotFoundError(
            f"expected model.safetensors in {folder}, found no weights. Others, such as pytorch_model.bin, are not pushed: "
            "load the checkpoint and save it again with save_pretrained."
        )
    return config


def _minimal_card(repo: str, config: dict) -> str:
    family = config.get("model_type", "transformers")
    architecture = (config.get("architectures") or [family])[0]
    classes = {place.split(".")[-1]: auto for auto, place in (config.get("auto_map") or {}).items()}
    facts = _MinimalFacts(
        name=repo,
        auto_class=classes.get(architecture, "AutoModel"),
        summary=f"A checkpoint of `{architecture}`.",
        data="Not stated.",
        results={"evaluation": "Not stated"},
        training={"options": "Not stated"},
        limits="Not stated.",
        family=family,
    )
    return render_card(facts, "minimal.md")


def _is_weight(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in WEIGHTS) and "/" not in name


@contextlib.contextmanager
def _in_plain_words(repo: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into errors that say what to do."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"nothing was sent to {repo}: HF_HUB_OFFLINE is set. Unset it and push again."
        ) from error
    except HTTPError as error:
        raise _explain(error, repo, revision) from error
    except json.JSONDecodeError as error:
        raise ConnectionError(
            f"what answered the push to {repo} is no Hub, or one in trouble: it sent no JSON. Check proxies and HF_ENDPOINT, "
            "and run the same command again."
        ) from error
    except RuntimeError as error:  # of the threads that upload
        if isinstance(error.__cause__, HTTPError):
            raise _explain(error.__cause__, repo, revision) from error
        raise ConnectionError(
            f"the upload to {repo} broke off ({error}). Nothing was committed; run the same command again, weights that have "
            "arrived are not sent again."
        ) from error


def _explain(error: HTTPError, repo: str, revision: str) -> Exception:
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(
            f"the Hub could not be reached for {repo} ({error}). Check the network, proxies and HF_ENDPOINT, and push again; "
            "weights that have arrived are not sent again."
        )
    status = error.response.status_code
    said = error.response.headers.get("X-Error-Message") or str(error).strip().splitlines()[0]
    if isinstance(error, RevisionNotFoundError):
        return ValueError(
            f"{repo} has no branch {revision!r}. Make it with `hf repos branch create {repo} {revision}`, or leave --revision "
            "out."
        )
    if isinstance(error, RepositoryNotFoundError):
        return PermissionError(
            f"{repo} does not exist, or this token may not see it ({said}). Check the name, and who you are with `hf auth whoami`."
        )
    if status == 401:
        return PermissionError(
            f"the Hub does not know the token that came with the push to {repo} ({said}). Run `hf auth login`, or correct HF_TOKEN."
        )
    if status == 403:
        return PermissionError(
            f"this token may not write to {repo}: it is somebody else's, or the token only reads ({said}). Choose a name of "
            "your own, or a token that may write; `hf auth whoami` says who you are."
        )
    if status in (409, 412):
        return ConnectionError(
            f"somebody else pushed to {repo} meanwhile ({said}). Nothing of yours was committed; look at what they did, and "
            "push again: weights that have arrived are not sent again."
        )
    if status >= 500 or status == 429:
        return ConnectionError(
            f"the Hub failed in the middle of the push to {repo} ({status}: {said}). Nothing was committed; run the same "
            "command again, weights that have arrived are not sent again."
        )
    return ValueError(f"the Hub refused the push to {repo} ({status}: {said}).")


__all__ = ["PushPlan", "Pushed", "plan_push", "push"]
