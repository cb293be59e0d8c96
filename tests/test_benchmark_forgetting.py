"""benchmarks/forgetting.py on very little text: the tables, and that each condition trains what it says."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STORY = "the old house by the sea was quiet until the dog ran out of it and down to the boats"


def write(folder: Path) -> None:
    """All the files that the benchmark reads, of a few words."""
    words = STORY.split()
    lines = [" ".join(words[start % 9 : 9 + start % 10]) for start in range(40)]
    for name in ("masc_speeches", "novels_pd", "subj", "snips", "ud_ewt_pos"):
        (folder / name).mkdir(parents=True)
    for split in ("train", "dev"):
        for name in ("masc_speeches", "novels_pd"):
            (folder / name / f"{split}.txt").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
        for name, kinds in (("subj", ("objective", "subjective")), ("snips", ("a", "b", "c"))):
            rows = [f"{line}\t{kinds[number % len(kinds)]}" for number, line in enumerate(lines)]
            (folder / name / f"{split}.tsv").write_text(
                "text\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8"
            )
        rows = [line.split() for line in lines]
        rows = [{"tokens": row, "upos": ["NOUN" if len(word) > 3 else "DET" for word in row]} for row in rows]
        text = "\n".join(json.dumps(row) for row in rows)
        (folder / "ud_ewt_pos" / f"{split}.jsonl").write_text(text + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The script with small sizes, its data, and the options that all calls share."""
    spec = importlib.util.spec_from_file_location(
        "forgetting_benchmark", ROOT / "benchmarks" / "forgetting.py"
    )
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.VOCABULARY, script.SIZE, script.LAYERS = 300, 16, 1
    folder = tmp_path_factory.mktemp("forgetting")
    write(folder / "data")
    options = [str(folder / "data"), "--lm", str(folder / "lm"), "--lm-steps", "3", "--eval-rows", "12"]
    options += ["--epochs", "1", "--labels", "32", "--sentences", "16", "--seeds", "1", "2"]
    return script, folder, options


def test_tables_and_conditions(bench, capsys):
    script, folder, options = bench
    results = script.main([*options, "--json", str(folder / "out.json")])
    printed = capsys.readouterr().out
    head = "| accuracy | LM loss, task's text | LM loss, general text | CPU s of training |"
    assert f"| POS tagging, 16 sentences {head}" in printed
    assert f"| SUBJ, 32 labels, pre-trained {head}" in printed
    for name in (*script.TAGGING, *script.WAYS):
        assert sum(line.startswith(f"| {name} |") for line in printed.splitlines()) == 1, name
    assert (
        json.loads((folder / "out.json").read_text())["results"]["findings"] == results["results"]["findings"]
    )
    assert (folder / "lm" / "tokenizer.json").is_file()

    tagging, subj, before = (results["results"][name] for name in ("tagging", "subj", "before"))
    for name, runs in (tagging | subj).items():
        assert [run["seed"] for run in runs] == [1, 2]
        for run in runs:
            assert run["lm_weight"] == (0.5 if "λ = 0.5" in name else 0.0)
            assert (run["trained_lm_loss"] is not None) == ("0.5" in name)
            assert 0 <= run["accuracy"] <= 100
    assert [tagging[name][0]["steps"] for name in tagging] == [4] * 4
    assert [subj[name][0]["steps"] for name in subj] == [4] * 4
    # every condition begins with the same weights and rows, and ends with its own
    ends = {tuple(run["general_lm"] for run in runs) for runs in subj.values()}
    assert len(ends) == len(script.WAYS)
    assert all(abs(run["general_lm"] - before["subj"]["general_lm"]) < 1 for run in subj["λ = 0"])


def test_the_pretrained_model_is_kept_and_ablation_counts_labels(bench, capsys):
    script, folder, options = bench
    if not (folder / "lm").is_dir():
        script.main(options)
    written = (folder / "lm" / "model.safetensors").stat().st_mtime_ns
    results = script.main([*options, "--ablation", "--sizes", "16", "0", "--epochs", "1"])
    assert (folder / "lm" / "model.safetensors").stat().st_mtime_ns == written
    steps = {name: ways["λ = 0"][0]["steps"] for name, ways in results["results"].items()}
    assert steps == {
        "subj, 16 labels": 2,
        "subj, all labels": 10,
        "snips, 16 labels": 2,
        "snips, all labels": 10,
    }
    printed = capsys.readouterr().out
    assert "| | λ = 0 | λ = 0.5 | difference | by seed |" in printed
    assert "| snips, all labels |" in printed


def test_tags_stand_at_the_last_piece(bench):
    script, folder, options = bench
    if not (folder / "lm").is_dir():
        script.main(options)
    tokenizer = script.AutoTokenizer.from_pretrained(folder / "lm")
    row = {"tokens": ["the", "unseenlongword"], "upos": ["DET", "NOUN"]}
    encoded = script.encode_tagged([row], ["DET", "NOUN"], tokenizer)[0]
    assert len(encoded["input_ids"]) == len(encoded["labels"]) > 4
    assert encoded["labels"][-1] == 1
    assert [label for label in encoded["labels"] if label != -100] == [0, 1]
    assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True).split() == row["tokens"]


def test_findings_are_paired_by_seed(bench):
    script = bench[0]

    def runs(key, *numbers):
        return [{"accuracy": 0.0, "task_lm": 0.0, "general_lm": 0.0} | {key: number} for number in numbers]

    tagging = dict(
        zip("abcd", (runs("accuracy", *pair) for pair in ((50, 60), (0, 0), (65, 69), (0, 0))), strict=True)
    )
    subj = {
        "none": runs("general_lm", 6, 7),
        "task": runs("task_lm", -1, 0),
        "replay": runs("general_lm", 5, 6.9),
        "kl": runs("general_lm", 0, 0),
    }
    found = script.findings(tagging, subj)
    assert [row["by_seed"] for row in found] == [[15, 9], [1, 0], [1, pytest.approx(0.1)]]
    assert [row["shown"] for row in found] == [True, True, True]
    subj["replay"] = runs("general_lm", 5.9, 6.9)
    assert script.findings(tagging, subj)[2]["shown"] is False
