"""benchmarks/zero_shot.py on a tiny model: both ways have a row, and scores that differ are an error."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = {"context": 12, "candidates": 3, "tokens": 2, "contexts": 2, "layers": 1, "hidden": 8, "words": 50}


@pytest.fixture
def benchmark(monkeypatch):
    """The module, asked for tiny sizes."""
    monkeypatch.syspath_prepend(FOLDER)
    options = [text for name, size in TINY.items() for text in (f"--{name}", str(size))]
    monkeypatch.setattr(sys, "argv", ["zero_shot.py", *options, "--repeats", "2"])
    return importlib.import_module("zero_shot")


def test_both_ways_have_a_row_and_the_same_scores(benchmark, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    sys.argv += ["--json", str(file)]
    benchmark.main()
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (context \S+ [^|]+) \| [\d.]+ \| [\d.]+ \| ([\d.]+) \|$", printed, re.M)
    assert [name for name, _ in rows] == ["context read once", "context read for each"]
    assert rows[0][1] == "1.00"
    assert "2 contexts of 12 tokens, 3 candidates of 2 tokens each" in printed
    numbers = json.loads(file.read_text(encoding="utf-8"))
    assert numbers["difference"] < 1e-5
    assert all(way["samples"] == 2 and way["median"] > 0 for way in numbers["ways"].values())
    assert {name: numbers[name] for name in TINY} == TINY


def test_other_scores_have_no_time(benchmark, monkeypatch):
    scorer = benchmark.ZeroShotScorer
    sums = scorer._sums
    shift = {True: 0.1, False: 0.0}
    monkeypatch.setattr(
        scorer,
        "_sums",
        lambda self, rows: {row: one + shift[self.reuses_context] for row, one in sums(self, rows).items()},
    )
    with pytest.raises(RuntimeError, match=r"scores of both ways differ by 0\.0[45]"):
        benchmark.main()
    monkeypatch.setattr(scorer, "_has_exact_cache", lambda self: False)
    with pytest.raises(RuntimeError, match="no cache that can be reused"):
        benchmark.main()
