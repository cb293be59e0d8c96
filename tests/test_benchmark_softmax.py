"""benchmarks/softmax.py on the smallest table: every way has its row, and the exact ways agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "softmax.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[str, dict]:
    """What the benchmark prints and writes for 50 words, for 5 (no more than it samples), and for too many."""
    file = tmp_path_factory.mktemp("softmax") / "numbers.json"
    options = [
        "--vocabularies",
        "50",
        "5",
        str(10**12),
        "--positions",
        "2",
        "3",
        "--size",
        "8",
        "--samples",
        "5",
    ]
    options += ["--threads", "1", "--seconds", "0", "--json", str(file)]
    done = subprocess.run([sys.executable, SCRIPT, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(file.read_text(encoding="utf-8"))


def test_every_way_has_a_row(run):
    printed, numbers = run
    rows = [line.split(" | ")[:2] for line in printed.splitlines() if line.startswith("| 50 ")]
    assert rows == [["| 50", "full"], ["| 50", "chunked"], ["| 50", "sampled"], ["| 50", "adaptive"]]
    assert "threads: 1" in printed
    assert "seed 0" in printed
    for row in numbers["rows"][:4]:
        assert row["tokens_per_second"] > 0, row
        assert row["loss_seconds"] > 0, row
        assert row["step_extra"] >= 0, row
        assert row["loss_extra"] >= 0, row


def test_full_and_chunked_have_the_same_loss(run):
    losses = {row["way"]: row["loss_of_step_0"] for row in run[1]["rows"] if row["vocabulary"] == 50}
    assert losses["full"] == pytest.approx(losses["chunked"], abs=1e-6)
    assert losses["full"] != pytest.approx(losses["sampled"], abs=1e-6)


def test_impossible_cells_say_why_and_spoil_no_other(run):
    printed, numbers = run
    assert "| 5 | sampled | not run: 5 samples of 5 words |" in printed
    assert "| 1,000,000,000,000 | full | not run: needs ~276000.0 GB, " in printed
    assert ["not_run" in row for row in numbers["rows"][4:]] == [False, False, True, False, *[True] * 4]
