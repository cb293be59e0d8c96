"""benchmarks/gpu_probe.py on a CPU at the smallest sizes: every experiment has its lines, and all ways agree."""

import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_probe.py"


@pytest.fixture
def probe(monkeypatch):
    """Runs the script with some options."""
    spec = importlib.util.spec_from_file_location("gpu_probe", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*options) -> None:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *options])
        script.main()

    return run


def test_every_experiment_has_lines_that_agree(probe, tmp_path, capsys):
    file = tmp_path / "numbers.json"
    probe("--device", "cpu", "--tiny", "--batches", "1", "8", "--seconds", "0", "--json", str(file))
    rows, printed = json.loads(file.read_text(encoding="utf-8"))["rows"], capsys.readouterr().out
    assert "failed" not in printed
    assert all(row["ms"] > 0 and row["name"] in printed for row in rows)
    assert sorted({row["experiment"] for row in rows}) == [0, 1, 2, 3, 6, 7]  # 4 needs streams
    notes = {row["name"]: row["note"] for row in rows}
    assert 0 < float(re.search(r"([\d.]+)% of last cells", notes["B 8 step by step fp32"])[1]) < 10
    for name, limit in {"loop fp32": 1e-6, "loop bf16": 2e-2, "cuda fp32": 1e-6, "cuda bf16": 2e-2}.items():
        error = float(re.search(r"rel. RMS (\S+),", notes[f"B 8 {name}"])[1])
        assert limit / 1e3 < error < limit, name
    for shape, way in itertools.product(("B 8 T 5", "B 6 T 4"), ("loop", "cuda")):
        assert 1e-9 < float(notes[f"{shape} training {way} fp32"].split()[-1]) < 2e-6


def test_a_way_that_fails_does_not_end_the_others(probe, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(torch.nn, "LSTM", broken)
    probe("--device", "cpu", "--tiny", "--batches", "1", "--seconds", "0")
    printed = capsys.readouterr().out
    assert re.search(r"B 1 nn.LSTM\(proj\) fp32 +- ms  failed: RuntimeError\('no such kernel'\)", printed)
    assert "training loop fp32" in printed


def test_a_training_that_fails_does_not_end_the_others(probe, monkeypatch, capsys):
    function = sys.modules["probed.lstmp_autograd"].LstmpFunction
    monkeypatch.setattr(function, "backward", staticmethod(lambda *_: 1 / 0))
    probe("--device", "cpu", "--tiny", "--batches", "1", "--seconds", "0")
    printed = capsys.readouterr().out
    words = r"B 1 T 5 training loop fp32 +- ms  failed: ZeroDivisionError\('division by zero'\)"
    assert re.search(words, printed)
    assert re.search(r"B 6 T 4 training cuda tf32 +[\d.]+ ms .* of fp32, x[\d.]+ of tf32, gradients", printed)


def test_no_gpu(probe, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        probe()
    words = "there is no CUDA device; `--device cpu --tiny` shows that the script works."
    assert words in capsys.readouterr().err
