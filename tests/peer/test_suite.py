"""Transformers' suite as a whole, if asked for by `-m slow`; and quickly, what runs it and writes of it."""

import io
import subprocess
import tarfile
import unittest

import pytest
from peer import running
from peer.exceptions import TABLE, must_fail
from peer.sdist import UnreachableError, fetch


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_suite_of_the_installed_release():
    try:
        found, status = running.run_suite([])
    except UnreachableError as error:
        pytest.skip(str(error))
    assert status == 0
    outcomes = {model: [outcome for outcome, _ in tests.values()] for model, tests in found.items()}
    assert len(outcomes) == 14
    assert all(counts.count("passed") > 50 and "failed" not in counts for counts in outcomes.values())


def test_without_an_index_the_reason_is_said(tmp_path, monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "a line\nERROR: no matching distribution\n")
    monkeypatch.setattr("peer.sdist.subprocess.run", lambda *command, **options: done)
    with pytest.raises(
        UnreachableError, match=r"parameterized could not be had .*\(ERROR: no matching.* Set pip up"
    ):
        fetch("5.23.0", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_clone(tmp_path):
    (tmp_path / "packages").mkdir()
    with pytest.raises(UnreachableError, match=r"found none in "):
        fetch("5.23.0", tmp_path, tmp_path / "clone")


def test_the_sdist_is_laid_out_as_a_package(tmp_path, monkeypatch):
    files = {"tests/test_common.py": b"A = 1\n", "src/code.py": b"", "tests/utils/test_deep.py": b""}

    def pip(what, verb, *arguments):
        if verb == "install":
            (tmp_path / "packages").mkdir()
            return
        folder = arguments[arguments.index("--dest") + 1]
        with tarfile.open(f"{folder}/transformers-1.0.tar.gz", "w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(f"transformers-1.0/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    monkeypatch.setattr("peer.sdist._pip", pip)
    folders = fetch("1.0", tmp_path)
    assert fetch("1.0", tmp_path) == folders == [tmp_path / "1.0", tmp_path / "packages"]
    laid = {str(file.relative_to(folders[0])) for file in folders[0].rglob("*.py")}
    stubs = {"generation/test_utils.py", "exporters/test_export.py", "utils/test_configuration_utils.py"}
    expected = (
        {"__init__.py", "test_common.py", "utils/test_deep.py"}
        | stubs
        | {f"{stub.split('/')[0]}/__init__.py" for stub in stubs}
    )
    assert laid == {f"tests/{name}" for name in expected}


def test_an_exception_must_fail():
    class Case(unittest.TestCase):
        def excepted_wrong(self):
            self.fail("as it should")

        def excepted_mended(self):
            pass

        def excepted_elsewhere(self):
            self.fail("another thing")

        wrong = must_fail("wrong", "as it should", "it is meant so")
        mended = must_fail("mended", "as it should", "it was once")
        elsewhere = must_fail("elsewhere", "as it should", "it is meant so")

    result = unittest.TestResult()
    Case("wrong").run(result)
    Case("mended").run(result)
    Case("elsewhere").run(result)
    assert [reason for _, reason in result.skipped] == ["exception: it is meant so"]
    messages = [trace for _, trace in result.failures]
    assert "Case.mended passes or is skipped: take it out" in messages[0]
    assert "Case.elsewhere was expected to fail otherwise" in messages[1]


def test_the_tables(tmp_path, monkeypatch):
    found = {
        "OneTest": {
            "test_a": ["passed", ""],
            "test_b": ["skipped", "needs  a\nGPU"],
            "test_c": ["excepted", "exception: so"],
        },
        "TwoTest": {
            "test_a": ["failed", "E"],
            "test_b": ["skipped", "needs a GPU"],
            "test_c": ["excepted", "exception: so"],
        },
    }
    lines = running.show(found).splitlines()
    assert "| One | 1 | 1 | 1 | 0 |" in lines
    assert "| Two | 0 | 1 | 1 | 1 |" in lines
    assert "| `test_c` | One, Two | so |" in lines
    assert "| needs a GPU | 2 |" in lines
    monkeypatch.setattr(running, "PAGE", tmp_path / "page.md")
    running.PAGE.write_text(f"before\n{running.BEGIN}old\n{running.END}\nafter\n", encoding="utf-8")
    running.write(found)
    running.write(found)
    text = running.PAGE.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{running.BEGIN}\n| model")
    assert text.endswith(f"| needs a GPU | 2 |\n\n{running.END}\nafter\n")


def test_the_page_has_every_exception_and_no_failure():
    text = running.PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| `test_")]
    listed = {
        (model, row[0].strip("| `"), row[2].removesuffix(" |"))
        for row in rows
        for model in row[1].split(", ")
    }
    assert listed == {
        (model.removesuffix("Test"), test, reason) for models, test, _, reason in TABLE for model in models
    }
    counts = [
        line.split(" | ") for line in text.splitlines() if line.startswith(("| Elmo", "| Lstm", "| Joint"))
    ]
    assert counts
    assert all(row[4] == "0 |" for row in counts)
