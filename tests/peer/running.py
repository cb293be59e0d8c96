"""Runs the suite in a process of its own and makes the tables of docs/compatibility.md from what it found."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from peer.sdist import UnreachableError, fetch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- made by `tests/peer/run --write` -->\n", "<!-- end of what it made -->"
NAMED = re.compile(
    r"<class '[\w.]+'>|\b[A-Z]\w+(?= class has| has no _keep| does not support g)|\b\w+Config(?= not in)"
)
Found = dict[str, dict[str, list[str]]]


def run_suite(arguments: list[str], checkout: Path | None = None) -> tuple[Found, int]:
    """Run Transformers' tests on our models.

    Args:
        arguments: for pytest.
        checkout: a clone of Transformers, instead of the sdist.

    Returns:
        Outcome and reason of each test by model, and pytest's exit status.

    Raises:
        UnreachableError: the sdist cannot be had.
    """
    version = importlib.metadata.version("transformers")
    folders = fetch(version, ROOT / "build" / "peer", checkout and checkout.resolve())
    with tempfile.TemporaryDirectory() as work:
        results = Path(work) / "results.json"
        paths = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "HEIRLOOM_PEER_RESULTS": str(results),
            "HF_HUB_OFFLINE": "1",
        }
        options = ["-q", "--tb=short", "-p", "no:cacheprovider", "--disable-warnings"]
        # Files are named from the root folder and the current one: from the checkout's, `tests` would be ours.
        options += ["-c", str(HERE / "suite.ini"), "--rootdir", str(HERE), "--confcutdir", str(HERE.parent)]
        command = [sys.executable, "-m", "pytest", *options, str(HERE), *arguments]
        status = subprocess.run(command, cwd=work, env=environment).returncode
        return (json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}), status


def show(found: Found) -> str:
    """The tables: counts by model, exceptions, and reasons of the suite's own skips."""
    outcomes = ("passed", "skipped", "excepted", "failed")
    lines = ["| model | passed | skipped | exceptions | failed |", "|---|---|---|---|---|"]
    reasons, exceptions = Counter(), defaultdict(set)
    for model, tests in sorted((model.removesuffix("Test"), tests) for model, tests in found.items()):
        counts = Counter(outcome for outcome, _ in tests.values())
        lines.append(f"| {model} | {' | '.join(str(counts[outcome]) for outcome in outcomes)} |")
        for test, (outcome, reason) in tests.items():
            if outcome == "skipped":
                reasons[NAMED.sub("the model", " ".join(reason.split()))] += 1
            elif outcome == "excepted":
                exceptions[(test, reason.removeprefix("exception: "))].add(model)
    lines += ["", "Exceptions:", "", "| test | models | reason |", "|---|---|---|"]
    lines += [
        f"| `{test}` | {', '.join(sorted(models))} | {reason} |"
        for (test, reason), models in sorted(exceptions.items())
    ]
    lines += ["", "What the suite itself skips:", "", "| reason, in its words | tests |", "|---|---|"]
    lines += [f"| {reason.replace('|', '/')} | {number} |" for reason, number in sorted(reasons.items())]
    return "\n".join(lines)


def write(found: Found) -> None:
    """Put the tables into the page, between its two marks."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{show(found)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


__all__ = ["UnreachableError", "run_suite", "show", "write"]
