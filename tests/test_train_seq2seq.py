"""Joint training from files: resumed to the bit, the same over processes, unusual pairs, the verb, clear errors."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from seq2seq_training import (
    TRANSFORMER,
    assert_same,
    bart,
    both,
    make_files,
    options,
    ours,
    plain,
    sentences,
    weights,
)
from transformers import (
    BartConfig,
    GPT2Config,
    TrainerCallback,
)
from two_processes import run_in_two_processes

from heirloom.cli.main import app
from heirloom.sharing.cards import update_card
from heirloom.sharing.runs import run_seq2seq
from heirloom.training.parallel_text import PairEncoder, open_tokenizers
from heirloom.training.seq2seq import train_seq2seq
from heirloom.training.seq2seq_trainer import JointSeq2SeqTrainer
from heirloom.training.trainer import read_log


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("files"))


class Dies(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 17:
            raise KeyboardInterrupt


def test_resumed_training_is_the_same_to_the_bit(files, tmp_path, monkeypatch):
    """With dropout, accumulation with a remainder, evaluation in between, and monolingual text over several passes."""
    own = {"gradient_accumulation_steps": 3, "max_steps": 30, "save_strategy": "steps", "save_steps": 5}
    own |= {"eval_strategy": "steps", "eval_steps": 4}
    train_seq2seq(options(files), plain(tmp_path / "whole", **own))
    with monkeypatch.context() as patch:
        made = JointSeq2SeqTrainer.__init__
        patch.setattr(
            JointSeq2SeqTrainer,
            "__init__",
            lambda self, *args, **kwargs: [made(self, *args, **kwargs), self.add_callback(Dies())][0],
        )
        with pytest.raises(KeyboardInterrupt):
            train_seq2seq(options(files), plain(tmp_path / "cut", **own))
    train_seq2seq(options(files), plain(tmp_path / "cut", resume_from_checkpoint="true", **own))
    assert_same(tmp_path / "cut", tmp_path / "whole")
    timeless = {
        "tokens_per_second",
        "train_runtime",
        "train_samples_per_second",
        "train_steps_per_second",
        "total_flos",
    }
    logs = [
        [
            {
                key: value
                for key, value in record.items()
                if key not in timeless and "runtime" not in key and "second" not in key
            }
            for record in read_log(tmp_path / name)
            if "train_loss" not in record
        ]
        for name in ("cut", "whole")
    ]
    assert logs[0] == logs[1]  # also every part of the loss and all forgetting
    assert any("eval_forgetting" in record for record in logs[0])


def test_equal_seeds_give_equal_trainings(files, tmp_path):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        train_seq2seq(options(files), plain(tmp_path / name, max_steps=3, seed=seed))
    assert_same(tmp_path / "two", tmp_path / "one")
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "three", tmp_path / "one")


def test_two_processes_are_one_with_twice_the_batch(files, tmp_path):
    run_in_two_processes(__file__, tmp_path, f"suite.both(pathlib.Path({str(files)!r}), folder, 2)")
    both(files, tmp_path, 1)
    for name in ("ours", "ewc", "bert to gpt2"):
        logs = [read_log(tmp_path / f"{name} {count}") for count in (2, 1)]
        for key in (
            "loss",
            "seq2seq_loss",
            "target_lm_loss",
            "ewc_loss",
            "eval_loss",
            "eval_target_lm_ppl",
            "eval_forgetting",
        ):
            ours, theirs = ([record[key] for record in log if key in record] for log in logs)
            assert len(ours) == len(theirs)
            assert ours == pytest.approx(theirs, abs=1e-5), (name, key)
        assert any("eval_target_lm_ppl" in record for record in logs[0])
        ours, theirs = weights(tmp_path / f"{name} 2"), weights(tmp_path / f"{name} 1")
        for key in theirs:
            torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-5)


def test_early_stopping_on_dev_perplexity(files, tmp_path):
    with pytest.raises(ValueError, match="early_stopping_patience needs load_best_model_at_end: true"):
        train_seq2seq(options(files, early_stopping_patience=1), plain(tmp_path / "run"))
    own = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
    }
    own |= {"save_steps": 2, "learning_rate": 3.0, "max_steps": 60}
    trainer = train_seq2seq(options(files, early_stopping_patience=1), plain(tmp_path / "run", **own))
    assert trainer.state.global_step < 60
    best = min(log["eval_perplexity"] for log in trainer.state.log_history if "eval_perplexity" in log)
    assert trainer.evaluate()["eval_perplexity"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("kind", ["joint", "separate"])
def test_the_folder_of_a_run_tells_what_it_is(kind, files, tmp_path, capsys, monkeypatch):
    """The card's example is run as a reader would."""
    monkeypatch.chdir(tmp_path)
    changes = {} if kind == "joint" else {"model": str(files / "separate")}
    scores = run_seq2seq(options(files, **changes), plain(Path("run"), max_steps=2))
    assert {"eval_source_lm_ppl", "eval_target_lm_ppl", "eval_source_forgetting"} <= scores.keys()
    card = ModelCard.load("run/README.md")
    assert card.data.tags == ["lstm-seq2seq", "heirloom"]
    written = Path("run/README.md").read_text()
    assert update_card("run") == written
    assert "source LM, perplexity by that at the start" in card.content
    assert "`mono.de`" in card.content
    exec(card.content.split("```python\n")[1].split("```")[0], {})
    shown = capsys.readouterr().out
    assert "heirloom translate run" in shown
    tokenizers = open_tokenizers("run")
    assert (tokenizers.source is tokenizers.target) == (kind == "joint")
    again = train_seq2seq(options(files, model="run"), plain(Path("again"), max_steps=1))
    assert again.state.global_step == 1
    with pytest.raises(FileExistsError, match="is not empty"):
        run_seq2seq(options(files), plain(Path("run")))


def test_stock_models_from_files(files, tmp_path):
    """BART, whose tokenizer here begins and ends sentences as ours does, and its decoder's language model."""
    config = {"vocab_size": 23, "decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": 1}
    model = bart()
    assert {name: getattr(model.config, name) for name in config} == config
    model.save_pretrained(tmp_path / "bart")
    open_tokenizers(str(files / "joint")).save_pretrained(tmp_path / "bart")
    arguments = options(files, model=str(tmp_path / "bart"), source_monolingual=[], target_lm_weight=0.5)
    scores = run_seq2seq(arguments, plain(tmp_path / "run", max_steps=2, label_smoothing_factor=0.1))
    assert {"eval_target_lm_ppl", "eval_target_forgetting"} <= scores.keys()
    assert "eval_source_lm_ppl" not in scores
    log = next(record for record in read_log(tmp_path / "run") if "loss" in record)
    assert log["loss"] == pytest.approx(log["seq2seq_loss"] + 0.5 * log["target_lm_loss"], abs=1e-5)
    assert ModelCard.load(tmp_path / "run" / "README.md").data.tags == ["bart", "heirloom"]
    with pytest.raises(
        ValueError, match="BartForConditionalGeneration holds no language model of the source"
    ):
        train_seq2seq(options(files, model=str(tmp_path / "bart")), plain(tmp_path / "both"))


def test_what_the_model_reads(files):
    encode = PairEncoder(open_tokenizers(str(files / "joint")), 1)
    words = [encode.tokenizers.target.convert_tokens_to_ids(word) for word in ("cat", "sat")]
    assert encode.targets(["cat sat", ""]) == [[*words, 1], [1]]
    assert encode.sources(["cat sat"]) == [[1, *words]]
    assert encode.sentences("source", ["cat sat"]) == encode.sentences("target", ["cat sat"]) == [words]
    for side in ("source", "target"):
        batch = encode.collator(side)([words])
        assert batch[f"{side}_lm_input_ids"].tolist() == [[1, *words, 1]]


def test_a_table_and_the_verb(files, tmp_path, monkeypatch, capsys):
    from typer.testing import CliRunner

    rows = zip(sentences(20, 0), sentences(20, 0, 5), strict=True)
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps({"src": a, "summary": b}) for a, b in rows))
    monkeypatch.chdir(tmp_path)
    words = ["train-seq2seq", "seq2seq-small", "--model", str(files / "joint"), "--train_file", "pairs.jsonl"]
    words += [
        "--target_monolingual",
        str(files / "mono.de"),
        "--max_steps",
        "3",
        "--eval_steps",
        "1",
        "--save_steps",
        "1",
    ]
    words += [
        "--logging_steps",
        "1",
        "--output_dir",
        "out",
        "--use_cpu",
        "true",
        "--label_smoothing_factor",
        "0.1",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    config = json.loads(Path("out/config.json").read_text())
    assert config["label_smoothing"] == 0.1
    assert config["dropout"] == 0.3
    assert any("target_lm_loss" in record for record in read_log(Path("out")))
    help_text = CliRunner().invoke(app, ["train-seq2seq", "--help"]).output
    assert "Example: heirloom train-seq2seq" in help_text
    assert len(help_text.splitlines()) <= 24


def test_unusual_pairs(files, tmp_path):
    encode = PairEncoder(open_tokenizers(str(files / "joint")), 1)
    changes = {"too_long": "truncate", "max_source_tokens": 4, "max_target_tokens": 3}
    trainer = train_seq2seq(options(files, **changes), plain(tmp_path / "truncate", max_steps=1))
    whole = encode.sources(sentences(40, 0)), encode.targets(sentences(40, 0, 5))
    for row, source, target in zip(trainer.train_dataset, *whole, strict=True):
        assert row["input_ids"] == source[:4]
        assert row["labels"] == target[:3]  # no end where the target does not end
    trainer = train_seq2seq(
        options(files, **changes | {"too_long": "drop"}), plain(tmp_path / "drop", max_steps=1)
    )
    kept = [source for source, target in zip(*whole, strict=True) if len(source) <= 4 and len(target) <= 3]
    assert 0 < len(kept) < 40
    assert [row["input_ids"] for row in trainer.train_dataset] == kept
    trainer = train_seq2seq(
        options(files, train_pairs=7, from_scratch=True), plain(tmp_path / "few", max_steps=1)
    )
    assert len(trainer.train_dataset) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model is empty: make an encoder-decoder .*convert seq2seq"),
        ({"model": "./nowhere"}, "nowhere holds no config.json"),
        (
            {"train_target": []},
            r"need train_source and train_target, or train_file alone; found \['train_source'\]",
        ),
        ({"train_target": ["short.de"]}, r"not aligned: .*train.en has 40 lines, short.de has 3"),
        (
            {"train_source": ["blank.en"]},
            "train source, line 3 is empty .1 of 40 pairs lack a side.*--empty_pairs drop",
        ),
        ({"train_target": ["blank.en"]}, "train target, line 3 is empty"),
        ({"train_source": ["pairs.tsv"]}, "pairs.tsv is a table, not a file of lines"),
        (
            {"max_source_tokens": 5},
            r"train source, line \d+: \d tokens, more than max_source_tokens = 5 .*--too_long",
        ),
        ({"max_target_tokens": 5}, r"train target, line \d+: \d tokens, more than max_target_tokens = 5"),
        ({"source_monolingual": [], "target_monolingual": []}, "forgetting is lm_loss, which needs text"),
        (
            {"forgetting": "none"},
            "trains on no monolingual text, found source_monolingual.*source_monolingual_validation",
        ),
        ({"source_monolingual": ["nowhere-*.txt"]}, "no file matches"),
        ({"source_tokenizer": "./nowhere"}, "nowhere holds no tokenizer of the source"),
        ({"model": "small"}, "source's tokenizer has 2[0-9] tokens, the model reads 10"),
        ({"model": "no start"}, "no decoder_start_token_id, which stands before"),
        ({"model": "lm"}, "lm is a gpt2, no encoder-decoder"),
    ],
)
def test_what_is_wrong_is_said(changes, message, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("short.de").write_text("a\nb\nc\n")
    Path("blank.en").write_text("\n".join(["a mat", "cat", " ", *["dog"] * 37]) + "\n")
    Path("pairs.tsv").write_text("source\ttarget\na\tb\n")
    open_tokenizers(str(files / "joint")).save_pretrained("small")
    ours(vocab_size=10).save_pretrained("small")
    BartConfig(**TRANSFORMER | {"decoder_start_token_id": None}).save_pretrained("no start")
    GPT2Config(n_layer=1).save_pretrained("lm")
    with pytest.raises((ValueError, OSError), match=message):
        train_seq2seq(options(files, **changes), plain(tmp_path / "run"))


def test_a_schedule_too_many(files, tmp_path):
    with pytest.raises(
        ValueError, match="lr_decay_every is a schedule of its own, found lr_scheduler_type cosine"
    ):
        train_seq2seq(options(files, lr_decay_every=5), plain(tmp_path, lr_scheduler_type="cosine"))
