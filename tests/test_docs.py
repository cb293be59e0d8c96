"""The examples in README.md and docs/ run; the rules are in docs/contributing.md, "How the documents are tested"."""

import contextlib
import dataclasses
import functools
import io
import itertools
import re
import shlex
from pathlib import Path

import pytest
from forked_cli import ForkedCommands

ROOT = Path(__file__).resolve().parents[1]
heirloom = ForkedCommands()
BLOCK = re.compile(r"^```(python|bash)(?: (no-run))?\n(.*?)^```$|^<!--(setup)\n(.*?)^-->$", re.M | re.S)
PROMISE = re.compile(r"^\s*# -> ?(.*)$", re.M)


def blocks(path: Path):
    """(kind, whether to run it, code, line of the file where the code begins) of each block, in order."""
    text = path.read_text(encoding="utf-8")
    fences = re.findall(r"^ *```(?:py|bash|sh).*$", text, re.M)
    assert len(fences) == sum(bool(found[0]) for found in BLOCK.findall(text)), f"one is not seen: {fences}"
    for found in BLOCK.finditer(text):
        kind, no_run, code, setup, setup_code = found.groups()
        yield kind or setup, no_run is None, code or setup_code or "", text[: found.start()].count("\n") + 2


def run_python(path: Path, line: int, code: str, namespace: dict, run: bool) -> None:
    """Run a block so that tracebacks name the document's lines, and compare what it prints with its `# ->` lines."""
    program = compile("\n" * (line - 1) + code, str(path), "exec")
    if run:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(program, namespace)
        if promised := PROMISE.findall(code):
            found = [text.rstrip() for text in printed.getvalue().splitlines()]
            assert found == promised, f"{path.name}:{line} prints something else than its `# ->` lines say"


@pytest.fixture(scope="module", autouse=True)
def command_line():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setenv("NO_COLOR", "1")
        yield
        heirloom.close()


@functools.cache
def help_of(*verb: str) -> str:
    done = heirloom(*verb, "--help")
    assert done.returncode == 0, f"no verb `heirloom {' '.join(verb)}`: {done.stderr}"
    return done.stdout


def check_options(where: str, arguments: list[str]) -> None:
    """The verb exists and its help names each option; verbs with recipes know their options and Trainer's."""
    verb = arguments[:1]
    if f"\n  {' '.join(arguments[1:2])} " in help_of(*verb).partition("\nCommands:")[2]:
        verb = arguments[:2]
    known = set(re.findall(r"--[\w-]+", help_of(*verb)))
    if verb[0] in ("pretrain", "finetune", "train-seq2seq"):
        from transformers import TrainingArguments

        from heirloom.training.arguments import FinetuneArguments, PretrainArguments
        from heirloom.training.seq2seq_arguments import Seq2SeqArguments

        own = {
            "pretrain": PretrainArguments,
            "finetune": FinetuneArguments,
            "train-seq2seq": Seq2SeqArguments,
        }[verb[0]]
        fields = (*dataclasses.fields(TrainingArguments), *dataclasses.fields(own))
        known |= {f"--{field.name}" for field in fields}
    named = {word.split("=")[0] for word in arguments if word.startswith("--")}
    assert named <= known, f"{where}: `heirloom {' '.join(verb)}` has no {sorted(named - known)}"


def run_bash(path: Path, line: int, code: str, run: bool) -> None:
    """Run each `heirloom` line of a block, or only check its options."""
    for command in code.replace("\\\n", " ").splitlines():
        where = f"{path.name}, block at line {line}: {command}"
        words = shlex.shlex(command, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        words = list(words)
        for operator, part in itertools.groupby(words, lambda word: word in ("&&", ";", "|", ">")):
            if not operator and (part := list(part))[0] == "heirloom":
                check_options(where, part[1:])
        if run and words:
            assert words[0] == "heirloom", f"{where}: only `heirloom` lines can run; or say `bash no-run`"
            done = heirloom(*words[1:])
            assert done.returncode == 0, f"{where}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.name
)
def test_document(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "document"}
    for kind, run, code, line in blocks(path):
        if kind == "bash":
            run_bash(path, line, code, run)
        else:
            run_python(path, line, code, namespace, run)
