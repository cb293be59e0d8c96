"""The tests that a released Transformers carries in its sdist, laid out so that they can be imported as `tests`.

So far it has the files at the top of `tests/` only. Three modules that these import are not in it: two mixins become empty
classes, and a dict of settings is written out anew.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

STUBS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": """config_common_kwargs = {
    "output_hidden_states": True,
    "output_attentions": True,
    "return_dict": False,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["BertModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}
""",
}


class UnreachableError(RuntimeError):
    """The sdist or a package that its tests need cannot be had."""


def fetch(version: str, cache: Path, checkout: Path | None = None) -> list[Path]:
    """Folders to put on `PYTHONPATH`: the sdist's `tests` package, and what it imports.

    Args:
        version: of Transformers; the tests must be those of the installed one.
        cache: a folder; what lies there from an earlier call is used again.
        checkout: a clone of Transformers, instead of the sdist.

    Returns:
        Two folders.

    Raises:
        UnreachableError: pip cannot download the sdist or install `parameterized`, or the clone has no tests.
    """
    folders = [checkout or cache / version, cache / "packages"]
    if not folders[1].is_dir():
        _pip("parameterized", "install", "--target", folders[1], "parameterized")
    if checkout and not (checkout / "tests" / "test_modeling_common.py").is_file():
        raise UnreachableError(
            f"a clone of Transformers has tests/test_modeling_common.py, found none in {checkout}."
        )
    if not folders[0].is_dir():
        with tempfile.TemporaryDirectory() as work:
            name = f"transformers=={version}"
            _pip(name, "download", "--no-deps", "--no-binary", "transformers", "--dest", work, name)
            sdist = next(Path(work).glob("transformers-*.tar.gz"))
            _lay_out(sdist, folders[0])
    return folders


def _pip(what: str, *arguments) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UnreachableError(
            f"{what} could not be had from pip's package index ({last}). Set pip up for an index that has it "
            "(PIP_INDEX_URL), or give --checkout a clone of Transformers."
        )


def _lay_out(sdist: Path, folder: Path) -> None:
    """`folder/tests`, made whole before it gets its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        with tarfile.open(sdist) as archive:
            members = [member for member in archive if Path(member.name).parts[1:2] == ("tests",)]
            archive.extractall(work, members, filter="data")
        root = next(Path(work).iterdir())
        for name, text in STUBS.items():
            file = root / "tests" / name
            if not file.exists():
                file.parent.mkdir(exist_ok=True)
                file.write_text(text, encoding="utf-8")
        for package in (root / "tests").rglob("*.py"):
            (package.parent / "__init__.py").touch()
        root.rename(folder)
