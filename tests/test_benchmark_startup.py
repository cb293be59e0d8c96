"""benchmarks/startup.py: rows of a short run, medians and ratios of given times, and its two complaints."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "startup.py"
COMMANDS = ["pass", "import typer", "import heirloom", "heirloom --help"]


@pytest.fixture(scope="module")
def startup():
    spec = importlib.util.spec_from_file_location("startup", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_a_short_run(startup, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # must not reach the commands
    file = tmp_path / "numbers.json"
    startup.main(["--repeats", "1", "--json", str(file)])
    numbers, printed = json.loads(file.read_text(encoding="utf-8")), capsys.readouterr().out
    assert [row["command"] for row in numbers["rows"]] == COMMANDS
    assert all(f"| `{row['command']}` | {row['wall']:.3f} | " in printed for row in numbers["rows"])
    assert all(
        0.005 < row["processor"] < 5 for row in numbers["rows"]
    )  # of these processes, not of all before
    assert numbers["rows"][1]["processor"] > numbers["rows"][0]["processor"]
    assert numbers["repeats"] == 1
    assert {"python", "typer"} == set(numbers["versions"])


def test_medians_and_ratios(startup):
    walls = [0.1, 0.1, 0.4], [0.5, 0.2, 0.2], [0.9, 0.2, 0.1], [0.3, 0.2, 0.6]
    processors = [0.3, 0.1, 0.1], [0.4, 0.4, 0.4], [0.2, 0.2, 0.9], [1.0, 1.0, 1.0]
    pairs = [list(zip(*both, strict=True)) for both in zip(walls, processors, strict=True)]
    rows = startup.summary(dict(zip(COMMANDS, pairs, strict=True)))
    assert [row["command"] for row in rows] == COMMANDS
    assert [row["wall"] for row in rows] == [0.1, 0.2, 0.2, 0.3]
    assert [row["fastest"] for row in rows] == [0.1, 0.2, 0.1, 0.2]
    assert [row["wall_ratio"] for row in rows] == pytest.approx([0.5, 1, 1, 1.5])
    assert [row["processor"] for row in rows] == [0.1, 0.4, 0.2, 1.0]
    assert [row["processor_ratio"] for row in rows] == pytest.approx([0.25, 1, 0.5, 2.5])
    assert [row.get("aim_met") for row in rows] == [None, None, True, False]


def test_the_first_round_does_not_count_and_leaves_compiled_files(startup, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    code = (
        "import pathlib, sys, time, email; log = pathlib.Path('log'); old = log.read_text() if log.exists() else '';"
        "compiled = any(pathlib.Path(sys.pycache_prefix).rglob('email/__init__*.pyc'));"
        "log.write_text(old + f'{compiled} ')\n"
        "while not old and time.process_time() < 0.5: pass"
    )
    monkeypatch.chdir(tmp_path)
    found = startup.rounds({"it": [sys.executable, "-c", code]}, 2)
    assert (tmp_path / "log").read_text() == "True True True "
    assert len(found["it"]) == 2
    assert max(processor for _, processor in found["it"]) < 0.45
    assert all(wall > 0 for wall, _ in found["it"])


def test_complaints(startup, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="(?s)`broken` failed: .*no_such_name"):
        startup.rounds({"broken": [sys.executable, "-c", "no_such_name"]}, 1)
    with pytest.raises(SystemExit):
        startup.main(["--repeats", "0"])
    assert "--repeats must be 1 or more, found 0" in capsys.readouterr().err
    monkeypatch.setattr(startup.shutil, "which", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="no command heirloom beside this Python"):
        startup.commands()
