"""benchmarks/objectives.py with tiny models: only the objective differs, taggers begin where they should, nothing is done twice."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "objectives.py"
WORDS = ["the", "cats", "sat", "on", "a", "mat", "unhappily", "today"]
TAGS = ["DET", "NOUN", "VERB"]


def spied(plain, calls: list):
    """The function, and a list of what it was called with and gave back."""

    def spy(arguments, training_arguments):
        trainer = plain(arguments, training_arguments)
        calls.append((arguments, training_arguments, trainer))
        return trainer

    return spy


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The script with tiny sizes, its calls of training, and the options that all calls share."""
    spec = importlib.util.spec_from_file_location("objectives_benchmark", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.MODEL = script.MODEL | {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
    script.OBJECTIVES, script.WORDS, script.ROW = ("mlm", "span"), 60, 16
    script.PRETRAINING = script.PRETRAINING | {"num_train_epochs": 1, "per_device_train_batch_size": 16}
    script.TAGGING = {"all": (None, 1), "500": (4, 2)}
    text, tagged = tmp_path / "masc_speeches", tmp_path / "ud_ewt_pos"
    for folder in (text, tagged):
        folder.mkdir()
    for split, count in (("train", 40), ("dev", 12)):
        rows = [[WORDS[(n + k * n) % 8] for k in range(5)] for n in range(count)]
        lines = [" ".join(row) + ("\n" if n % 4 == 3 else "") for n, row in enumerate(rows)]
        (text / f"{split}.txt").write_text("\n".join(lines) + "\n")
        rows = [{"tokens": row, "upos": [TAGS[len(word) % 3] for word in row]} for row in rows]
        (tagged / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {"pretrain_stock": [], "finetune": []}
    for name, calls in made.items():
        monkeypatch.setattr(script, name, spied(getattr(script, name), calls))
    return script, made, [str(tmp_path / "out"), "--data", str(tmp_path), "--seeds", "1"]


def test_only_the_objective_differs_and_nothing_is_done_twice(bench, capsys):
    script, made, options = bench
    script.main(options)
    out = Path(options[0])
    one, other = ({**vars(arguments)} for arguments, _, _ in made["pretrain_stock"])
    assert [one.pop("objective"), other.pop("objective")] == ["mlm", "span"]
    assert one == other
    left, right = (vars(arguments) for _, arguments, _ in made["pretrain_stock"])
    for name in (
        "learning_rate",
        "num_train_epochs",
        "per_device_train_batch_size",
        "seed",
        "warmup_steps",
        "weight_decay",
    ):
        assert left[name] == right[name], name
    collators = [type(trainer.data_collator.masking).__name__ for *_, trainer in made["pretrain_stock"]]
    assert collators == ["TokenMasking", "SpanMasking"]

    found = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert len(found) == 1 + 2 + 6
    for name in ("mlm", "span"):
        one = found[f"pretraining_{name}"]
        # Measured again on the saved model, under masks that are the same in each evaluation.
        assert one["held_out"][name] == pytest.approx(one["curve"][-1][1], rel=1e-5)
        assert one["updates"] > 0
    assert found["pretraining_mlm"]["held_out"] != found["pretraining_span"]["held_out"]
    assert 0 < found["frequencies"]["loss"] < 5

    taggers = [arguments for arguments, _, _ in made["finetune"]]
    assert [Path(one.model).name for one in taggers] == ["mlm", "mlm", "span"] * 2
    assert [one.from_scratch for one in taggers] == [True, False, False] * 2
    assert [one.train_rows for one in taggers] == [None] * 3 + [4] * 3
    assert {one.lm_loss_weight for one in taggers} == {0}
    assert [len(trainer.train_dataset) for *_, trainer in made["finetune"]] == [40] * 3 + [4] * 3
    assert not list(out.glob("*.run"))
    printed = capsys.readouterr().out
    assert "| pre-trained with | loss, `mlm` masks | loss, `span` masks | updates | CPU time |" in printed
    assert "| accuracy (1 seeds) | all sentences, 1 epochs | 500 sentences, 2 epochs |" in printed
    table = script.tagging_table(out)
    assert table[2].startswith("| no pre-training | ")
    assert table[3] == (
        f"| `mlm` | {found['tagging_mlm_all_1']['accuracy']:.2f} | {found['tagging_mlm_500_1']['accuracy']:.2f} |"
    )

    script.main(options)
    script.main(options[:1])
    assert len(made["pretrain_stock"]) == 2
    assert len(made["finetune"]) == 6
