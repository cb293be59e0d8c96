"""BLEU and ROUGE during training: those of `heirloom evaluate`, whatever the order; and weights that change with the steps."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from seq2seq_training import bert_to_gpt2, make, make_files, options, ours, plain, run, settings, texts
from transformers import EvalPrediction, Seq2SeqTrainingArguments
from typer.testing import CliRunner

import heirloom
from heirloom.cli.main import app
from heirloom.sharing.evaluation import evaluate
from heirloom.training.generated_text import GenerationScores
from heirloom.training.joint_trainer import LM_WEIGHT_SCHEDULES
from heirloom.training.parallel_text import open_tokenizers
from heirloom.training.seq2seq import train_seq2seq
from heirloom.training.text_metrics import text_scores
from heirloom.training.tokenizers import train_tokenizer
from heirloom.training.trainer import read_log

EVALUATING = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize("kind", ["joint", "separate"])
def test_scores_in_training_are_those_of_evaluate(kind, files, tmp_path):
    arguments = options(
        files,
        model=str(files / kind),
        predict_with_generate=True,
        metrics=["rouge", "bleu", "chrf"],
        generation_max_length=9,
        generation_num_beams=2,
    )
    own = {"max_steps": 12, "learning_rate": 0.05, "train_sampling_strategy": "group_by_length"}
    trainer = train_seq2seq(arguments, plain(tmp_path / "run", **own))  # validation comes sorted, too
    logged = trainer.state.log_history[-1]
    scores, _ = evaluate(
        str(tmp_path / "run"),
        [str(files / "val.en"), str(files / "val.de")],
        ["rouge", "bleu", "chrf"],
        num_beams=2,
        max_new_tokens=8,
        batch_size=3,
    )
    found = [logged[f"eval_{name}"] for name in ("rouge1", "rouge2", "rougeL", "bleu", "chrf")]
    assert found == pytest.approx([score.score for score in scores], abs=1e-9)
    assert found[0] > 1
    assert {"eval_loss", "eval_perplexity", "eval_target_lm_ppl"} <= logged.keys()


def test_the_best_checkpoint_by_bleu(files, tmp_path):
    own = EVALUATING | {"load_best_model_at_end": True, "metric_for_best_model": "bleu", "max_steps": 8}
    arguments = options(files, predict_with_generate=True, generation_max_length=9)
    trainer = train_seq2seq(arguments, plain(tmp_path / "run", learning_rate=0.05, **own))
    scores = [log["eval_bleu"] for log in read_log(tmp_path / "run") if "eval_bleu" in log]
    assert len(scores) == 5  # four evaluations, and the best once more
    assert trainer.state.best_metric == max(scores) == scores[-1]
    assert trainer.args.greater_is_better


def test_trainers_own_kind_of_settings_is_not_changed(files, tmp_path):
    given = settings(tmp_path / "run", max_steps=1, predict_with_generate=True, generation_num_beams=2)
    trainer = train_seq2seq(options(files), given)
    assert "eval_bleu" in trainer.state.log_history[-1]
    assert (trainer.args.generation_num_beams, trainer.args.generation_max_length) == (2, 257)
    assert given.generation_max_length is None
    assert isinstance(given, Seq2SeqTrainingArguments)


@pytest.mark.parametrize(
    ("changes", "own", "message"),
    [
        ({}, {"metric_for_best_model": "eval_bleu"}, "metric_for_best_model is bleu, of generated targets"),
        (
            {"predict_with_generate": True},
            {"metric_for_best_model": "rougeL"},
            r"metric_for_best_model is rougeL, but metrics are \['bleu', 'chrf'\]. Name it there too",
        ),
        ({"predict_with_generate": True, "metrics": ["meteor"]}, {}, r"metrics must be some of .*meteor"),
        (
            {
                "lm_weight_schedule": "linear",
                "forgetting": "none",
                "source_monolingual": [],
                "target_monolingual": [],
            },
            {},
            "lm_weight_schedule is of the language models' losses, found linear with forgetting none",
        ),
    ],
)
def test_options_that_contradict_each_other(changes, own, message, files, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_seq2seq(options(files, **changes), plain(tmp_path / "run", **own))


def test_recipes_know_these_options(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(
        json.dumps(
            {
                "model": str(files / "joint"),
                **{
                    f"{part}_{side}": [str(files / f"{name}.{end}")]
                    for part, name in (("train", "train"), ("validation", "val"))
                    for side, end in (("source", "en"), ("target", "de"))
                },
                "target_monolingual": [str(files / "mono.de")],
                "predict_with_generate": True,
                "generation_max_length": 8,
                "generation_num_beams": 2,
                "metrics": ["chrf"],
                "lm_weight_schedule": "linear",
                "max_steps": 2,
                "logging_steps": 1,
                "use_cpu": True,
            }
        )
    )
    result = CliRunner().invoke(app, ["train-seq2seq", "tiny.yaml", "--output_dir", "out"])
    assert result.exit_code == 0, result.output
    log = read_log(Path("out"))
    assert [record["target_lm_weight"] for record in log if "loss" in record] == [1.0, 0.5]
    assert "eval_chrf" in log[-1]
    assert "eval_bleu" not in log[-1]


# Scores alone


def prediction(rows: list[list[int]], labels: list[list[int]]) -> EvalPrediction:
    width = max(map(len, rows + labels))
    fill = [[*row, *[-100] * (width - len(row))] for row in rows + labels]
    return EvalPrediction(predictions=np.array(fill[: len(rows)]), label_ids=np.array(fill[len(rows) :]))


def test_references_are_found_by_their_labels():
    texts = ["a cat sat", "the cat ran", "a dog ran off"]
    tokenizer = train_tokenizer(texts, "word", 50, tokenized=True)[0]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    references = ["a cat sat", "the cat ran", "a dog ran far away"]  # the last was cut
    scores = GenerationScores(tokenizer, {1}, ids, references, ["chrf"])
    said = [ids[0], ids[2], ids[2]]
    expected = text_scores([texts[0], texts[2], texts[2]], references, ["chrf"])[0].score
    rows = [[1, *row, 1, 5, 5] for row in said]  # what comes after the end does not count
    assert scores(prediction(rows, ids)) == {"chrf": expected}
    order = [2, 0, 1, 2]  # as two processes with a repeated row would have it
    found = scores(prediction([rows[number] for number in order], [ids[number] for number in order]))
    assert found["chrf"] == pytest.approx(expected)
    assert scores(prediction(rows[::-1], ids)) != {"chrf": expected}
    with pytest.raises(ValueError, match="3 validation pairs, but predictions of 2. Evaluate on all"):
        scores(prediction(rows[:2], ids[:2]))
    with pytest.raises(ValueError, match=r"labels \[7, 7\] are of no validation pair"):
        scores(prediction(rows, [[7, 7], *ids[1:]]))


# Weights of the language models' losses


@pytest.mark.parametrize("schedule", [*LM_WEIGHT_SCHEDULES, "own"])
def test_weights_change_with_the_steps(schedule, tmp_path):
    def own(progress):
        return 3.0 - progress

    factor = own if schedule == "own" else LM_WEIGHT_SCHEDULES[schedule]
    torch.manual_seed(0)
    trainer, _ = make(
        ours(source_lm_loss_weight=0.5), tmp_path, texts(), max_steps=4, lm_weight_schedule=factor
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 4
    for step, log in enumerate(logs):
        assert log["target_lm_weight"] == pytest.approx(factor(step / 4))
        assert log["source_lm_weight"] == pytest.approx(0.5 * factor(step / 4))
        total = log["seq2seq_loss"] + sum(
            log[f"{side}_lm_weight"] * log[f"{side}_lm_loss"] for side in ("source", "target")
        )
        assert log["loss"] == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("name", ["ours", "bert to gpt2"])
def test_accumulation_changes_nothing_under_a_schedule(name, tmp_path):
    sides = ("source", "target") if name == "ours" else ("target",)
    results = [
        run(name, tmp_path, batch, 16 // batch, texts(sides, batch), lm_weight_schedule="cosine")
        for batch in (16, 2)
    ]
    constant = run(name, tmp_path, 16, 1, texts(sides, 16))[1]
    (logs, gradients), (other_logs, other_gradients) = results
    assert logs[1]["target_lm_weight"] == other_logs[1]["target_lm_weight"] == pytest.approx(0.5)
    for step, (one, theirs) in enumerate(zip(other_gradients, gradients, strict=True)):
        assert other_logs[step]["loss"] == pytest.approx(logs[step]["loss"], abs=1e-5)
        for key in theirs:
            torch.testing.assert_close(one[key], theirs[key], rtol=0, atol=1e-5)
    assert any((constant[1][key] - gradients[1][key]).abs().max() > 1e-3 for key in gradients[1])


def test_a_resumed_training_goes_on_in_the_schedule(files, tmp_path):
    own = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    arguments = options(files, lm_weight_schedule="linear")
    train_seq2seq(arguments, plain(tmp_path / "whole", **own))
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "cut" / "checkpoint-3")
    train_seq2seq(arguments, plain(tmp_path / "cut", resume_from_checkpoint="true", **own))
    keys = ("loss", "source_lm_weight", "target_lm_weight")
    found, expected = (
        [[log[key] for key in keys] for log in read_log(tmp_path / name) if "loss" in log][-3:]
        for name in ("cut", "whole")
    )
    assert found == expected
    assert [row[1] for row in expected] == pytest.approx([0.5, 1 / 3, 1 / 6])


def test_an_unknown_schedule_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lm_weight_schedule must be one of .*warm-up.* found 'warmup'"):
        make(bert_to_gpt2(), tmp_path, lm_weight_schedule="warmup")


def test_the_face():
    assert heirloom.JointSeq2SeqTrainer.__name__ == "JointSeq2SeqTrainer"
    assert heirloom.open_tokenizers is open_tokenizers
    names = {"MonolingualText", "ParallelCollator", "MonolingualCollator", "StepDecay", "train_seq2seq"}
    assert names | {"Seq2SeqArguments", "GenerationScores"} <= set(heirloom.__all__)
