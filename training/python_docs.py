"""Text that every machine has: CPython's language reference and the standard library's docstrings.

About 300,000 words of English. The docstrings also make a task with known answers: which module is this from?
"""

import ast
import hashlib
import sysconfig
from collections import defaultdict
from functools import cache
from pathlib import Path

# Test suites, demos and other people's packages are no documentation.
SKIPPED = {"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "pydoc_data", "site-packages"}


def language_reference() -> list[str]:
    """Paragraphs of Python's language reference, which `help()` shows."""
    from pydoc_data.topics import topics

    return [paragraph for name in sorted(topics) for paragraph in paragraphs(topics[name])]


@cache
def docstrings() -> dict[str, list[str]]:
    """The standard library's distinct docstrings of each top-level module, read from source without importing it.

    Returns:
        {module: docstrings}, both sorted by source file and line.

    Raises:
        FileNotFoundError: this Python comes without the sources of its library.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED & set(parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
                text := ast.get_docstring(node)
            ):
                found[parts[0].removesuffix(".py")][text] = None
    if not found:
        raise FileNotFoundError(
            f"{root} holds no Python sources. Use a Python that comes with its standard library."
        )
    return {module: list(texts) for module, texts in found.items()}


def paragraphs(text: str) -> list[str]:
    """The pieces of a text between blank lines."""
    return [" ".join(piece.split()) for piece in text.split("\n\n") if piece.strip()]


def is_held_out(text: str, share: float = 0.2) -> bool:
    """Whether a text belongs to the held-out part: decided by its own hash, so by nobody's taste."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "replace")).digest()[:4], "big") < share * 2**32


def module_task(modules: int = 20) -> tuple[list[str], list[tuple[str, int]], list[tuple[str, int]]]:
    """The task "which module is this docstring from?", for the modules with the most docstrings.

    Args:
        modules: how many classes.

    Returns:
        Module names, and (docstring, class) pairs to train on and held out; a docstring that two modules share is left out.
    """
    texts = docstrings()
    largest = sorted(sorted(texts, key=lambda module: (-len(texts[module]), module))[:modules])
    owners = defaultdict(set)
    for module, pieces in texts.items():
        for text in pieces:
            owners[text].add(module)
    pairs = [
        (text, number)
        for number, module in enumerate(largest)
        for text in texts[module]
        if len(owners[text]) == 1
    ]
    train = [pair for pair in pairs if not is_held_out(pair[0])]
    return largest, train, [pair for pair in pairs if is_held_out(pair[0])]
