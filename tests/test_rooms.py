"""Who may import whom: rooms look down, and the files that travel with checkpoints stand alone."""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ["tokenization", "modeling", "objectives", "training", "conversion", "sharing", "cli"]  # low to high
PUSHED = ["tokenization", "modeling"]  # `save_pretrained` copies their files flat beside the weights
PUSHED_MAY_NEED = {"torch", "numpy", "transformers", "huggingface_hub", "regex", "tokenizers"}
SLOW_TO_IMPORT = {
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "matplotlib",
    "pandas",
    "sklearn",
    "scipy",
}

ROOM_FILES = [file for room in ROOMS for file in sorted((ROOT / room).rglob("*.py"))]
PUSHED_FILES = [f for f in ROOM_FILES if f.parent.name in PUSHED and f.name != "__init__.py"]
ALL_FILES = [*sorted(ROOT.glob("*.py")), *ROOM_FILES] + [
    file
    for folder in (".ci", "benchmarks", "examples", "tests")
    for file in sorted((ROOT / folder).rglob("*.py"))
]


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, when_loaded: bool = False) -> Iterator[tuple[int, str, list[str]]]:
    """(dots, module, names) of each import; `when_loaded` leaves out functions and what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif when_loaded and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        elif when_loaded and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from imports(ast.Module(node.orelse, []), when_loaded)
        else:
            yield from imports(node, when_loaded)


def rooms_of(level: int, module: str, names: list[str], here: str) -> list[str]:
    """The rooms that an import reaches; the package's root counts as none."""
    if level == 1:
        return [here]
    parts = module.split(".") if module else []
    if level == 0 and parts[0] != "heirloom":
        return []
    inside = parts if level else parts[1:]
    return [name for name in inside[:1] or names if name in ROOMS]


def faults_of_room(here: str, source: str) -> list[str]:
    """What a file of the room `here` may not import."""
    tree, found = ast.parse(source), []
    for level, module, names in imports(tree):
        said = f"from {'.' * level}{module} import {', '.join(names)}" if names else f"import {module}"
        if level > 2:
            found.append(f"`{said}` leaves the package")
        if level == 0 and module.split(".")[0] in ROOMS:
            found.append(f"`{said}` takes the checkout's folder, a second copy of each class")
        if level == 2 and not module and set(names) & set(ROOMS):
            found.append(f"`{said}`: name the file, `from ..room.file import name`")
        for room in rooms_of(level, module, names, here):
            if ROOMS.index(room) > ROOMS.index(here):
                found.append(f"`{said}`: {here} looks up to {room}")
    for level, module, names in imports(tree, when_loaded=True):
        top = module.split(".")[0]
        if level == 0 and top == "h5py" and here not in ("conversion", "sharing"):
            found.append("h5py: only conversion and sharing import it when loaded")
        if level == 0 and top == "matplotlib":
            found.append("matplotlib: import it inside the function that draws")
        if here == "cli" and (
            (level == 0 and top in SLOW_TO_IMPORT) or set(rooms_of(level, module, names, here)) - {here}
        ):
            found.append(f"`{top or module or names}`: import it inside the verb, `--help` must be fast")
    return found


def faults_of_pushed(source: str, neighbours: set[str]) -> list[str]:
    """What would break a file once it lies alone with its neighbours beside weights."""
    found = []
    for level, module, names in imports(ast.parse(source)):
        top = module.split(".")[0]
        if level == 1 and not module:
            found.append(f"`from . import {', '.join(names)}` is not seen by the copier")
        elif level == 1 and module not in neighbours:
            found.append(f"`.{module}` is not a file beside it")
        elif level > 1:
            found.append(f"`{'.' * level}{module}` does not exist in a flat folder")
        elif level == 0 and top == "heirloom":
            found.append(f"`{module}` would make checkpoints need heirloom")
        elif level == 0 and top not in PUSHED_MAY_NEED | set(sys.stdlib_module_names):
            found.append(f"`{module}` would be demanded of whoever loads a checkpoint")
    return found


@pytest.mark.parametrize("file", ROOM_FILES, ids=name_of)
def test_rooms_look_down(file):
    assert faults_of_room(file.relative_to(ROOT).parts[0], file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("file", PUSHED_FILES, ids=name_of)
def test_pushed_files_stand_alone(file):
    neighbours = {other.stem for other in file.parent.glob("*.py")} - {"__init__"}
    assert faults_of_pushed(file.read_text(encoding="utf-8"), neighbours) == []


@pytest.mark.parametrize("file", PUSHED_FILES, ids=name_of)
def test_transformers_copies_what_python_imports(file):
    """The copier reads lines, not Python: it would take a line of a docstring that looks like an import."""
    from transformers.dynamic_module_utils import get_relative_imports

    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert set(get_relative_imports(file)) == {module for level, module, _ in imports(tree) if level}


def test_pushed_rooms_are_flat_and_their_names_differ():
    names = Counter(file.name for file in PUSHED_FILES)
    assert [name for name, count in names.items() if count > 1] == []
    assert [name_of(file) for file in ROOM_FILES if file.parent.name not in ROOMS] == []


def test_the_face_is_light():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    loaded = {module.split(".")[0] for level, module, _ in imports(tree, when_loaded=True) if level == 0}
    assert not loaded & SLOW_TO_IMPORT


@pytest.mark.parametrize("file", ALL_FILES, ids=name_of)
def test_no_file_is_long(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 500


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("modeling", "from ..training.trainer import x"),
        ("tokenization", "def f():\n    from heirloom.modeling.lstmp import lstmp"),
        ("training", "from ..sharing import cards"),
        ("training", "from .. import objectives"),
        ("training", "from heirloom import cli"),
        ("conversion", "from modeling.lstmp import lstmp"),
        ("conversion", "from ...x import y"),
        ("training", "try:\n    import h5py\nexcept ImportError:\n    pass"),
        ("training", "import matplotlib.pyplot as plt"),
        ("cli", "import torch"),
        ("cli", "from ..training.recipes import parse"),
    ],
)
def test_a_bad_room_is_caught(room, source):
    assert len(faults_of_room(room, source)) == 1


@pytest.mark.parametrize(
    ("room", "source"),
    [
        (
            "training",
            "from ..modeling.lstmp import lstmp\nfrom heirloom.tokenization.x import y\nfrom .data import z",
        ),
        ("training", "def f():\n    import h5py\n    import matplotlib.pyplot"),
        ("training", "if TYPE_CHECKING:\n    from matplotlib.figure import Figure"),
        (
            "cli",
            "from .. import __version__\nfrom .tables import t\ndef f():\n    from ..sharing.runs import r",
        ),
    ],
)
def test_a_good_room_passes(room, source):
    assert faults_of_room(room, source) == []


@pytest.mark.parametrize(
    "source",
    [
        "from . import layers",
        "from .ghost import x",
        "from .sub.layers import x",
        "from ..modeling.layers import x",
        "from heirloom.modeling.layers import x",
        "def f():\n    import h5py",
        "if TYPE_CHECKING:\n    from .ghost import x",
    ],
)
def test_a_bad_pushed_file_is_caught(source):
    assert len(faults_of_pushed(source, {"layers"})) == 1
    assert faults_of_pushed("import math\nimport torch\nfrom .layers import x", {"layers"}) == []
