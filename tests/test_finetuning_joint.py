"""`heirloom finetune` with joint losses: every form on every kind of language model, what a run leaves, and bad input."""

import json
import math

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from stock_lms import bert, gpt2, save, tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    TrainingArguments,
    pipeline,
)

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.objectives.joint_tagging import JointTaggingCollator
from heirloom.sharing.runs import run_finetuning
from heirloom.training import task_rows
from heirloom.training.arguments import FinetuneArguments
from heirloom.training.finetuning import finetune
from heirloom.training.joint_finetuning import make_model, with_layout
from heirloom.training.joint_presets import OPENAI_ARGUMENTS, OpenAIAdam
from heirloom.training.metrics import pearson, ranks, regression_scores
from heirloom.training.plots_of_tasks import plot_confusion
from heirloom.training.recipes import parse, read_recipe
from heirloom.training.task_results import confusion, confusion_table
from heirloom.training.task_rows import read_task_rows
from heirloom.training.trainer import read_log

WORDS = 40
ROWS = {
    "sequence-classification": [
        {"text": f"w{5 + n} w9 w{6 + n % 3}", "label": "odd" if n % 2 else "even"} for n in range(8)
    ],
    "token-classification": [
        {"tokens": [f"w{5 + n}", "w8", "w9"][: 1 + n % 3], "tags": ["B-x", "I-x", "O"][: 1 + n % 3]}
        for n in range(8)
    ],
    "entailment": [{"sentence1": f"w{5 + n} w7", "sentence2": "w8", "label": "yn"[n % 2]} for n in range(8)],
    "similarity": [{"sentence1": f"w{5 + n}", "sentence2": "w8 w9", "score": n / 2} for n in range(8)],
    "multiple-choice": [
        {"context": f"w{5 + n} w7", "question": "w10", "choices": ["w8", "w9 w6"], "label": n % 2}
        for n in range(8)
    ],
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lms")
    save(gpt2(WORDS), folder / "gpt2", tokenizer(WORDS))
    names = {"pad_token": "[PAD]", "cls_token": "[BOS]", "sep_token": "[EOS]", "mask_token": "[MASK]"}
    save(bert(WORDS), folder / "bert", tokenizer(WORDS, ("[PAD]", "[BOS]", "[EOS]", "[MASK]"), **names))
    lstm = LstmLMForCausalLM(
        LstmLMConfig(vocab_size=WORDS, embedding_size=8, cell_size=8, projection_size=None)
    )
    save(lstm, folder / "lstm", tokenizer(WORDS))
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def options(model, folder, task, train=None, validation=None, **more):
    folder.mkdir(exist_ok=True)
    train = write(folder / "train.jsonl", train or ROWS[task])
    validation = write(folder / "dev.jsonl", validation or ROWS[task])
    return FinetuneArguments(
        model=str(model), task=task, train_file=[train], validation_file=[validation], **more
    )


def training(folder, **more):
    given = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01, "logging_steps": 1}
    given |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(str(folder / "run"), dataloader_pin_memory=False, **given | more)


RUNS = [("gpt2", "token-classification"), ("gpt2", "multiple-choice"), ("gpt2", "sequence-classification")]
RUNS += [("bert", "token-classification"), ("bert", "entailment"), ("bert", "similarity")]
RUNS += [("lstm", "sequence-classification"), ("lstm", "similarity")]


@pytest.mark.parametrize(("kind", "task"), RUNS)
def test_every_form_on_every_kind_of_language_model(kind, task, checkpoints, tmp_path):
    arguments = options(checkpoints / kind, tmp_path, task)
    trainer = finetune(arguments, training(tmp_path))
    model, log = trainer.model, read_log(tmp_path / "run")
    assert model.config.lm_objective == ("masked" if kind == "bert" else "causal")
    for record in log:
        if "task_loss" in record:
            assert record["loss"] == pytest.approx(record["task_loss"] + 0.5 * record["lm_loss"], abs=2e-4)
    scores = next(record for record in log if "eval_loss" in record)
    wanted = {"eval_pearson", "eval_spearman"} if task == "similarity" else {"eval_accuracy"}
    wanted |= {"eval_entity_f1"} if task == "token-classification" else set()
    assert wanted <= set(scores)
    assert all(math.isfinite(scores[name]) for name in wanted)
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    label = {"token-classification": "tags", "similarity": "score"}.get(task, "label")
    assert [line["gold"] for line in lines] == [row[label] for row in ROWS[task]]
    if task not in ("similarity", "token-classification"):  # the file and Trainer's own count agree
        right = sum(line["gold"] == line["predicted"] for line in lines) / 8
        assert right == pytest.approx(scores["eval_accuracy"])
    assert (tmp_path / "run" / "confusion.png").is_file() == (task not in ("similarity", "multiple-choice"))


def test_the_folder_of_a_run(checkpoints, tmp_path):
    arguments = options(checkpoints / "gpt2", tmp_path, "entailment")
    general = write(tmp_path / "general.jsonl", [{"text": f"w{n} w7 w8"} for n in range(5, 12)])
    arguments.replay_file = arguments.forgetting_file = [general]
    arguments.kl_weight, arguments.layer_lr_decay, arguments.unfreeze_every_epochs = 0.1, 0.9, 0.5
    arguments.lm_weight_schedule, arguments.transferred_layers = "linear", 1
    scores = run_finetuning(arguments, training(tmp_path, train_sampling_strategy="group_by_length"))
    folder = tmp_path / "run"
    assert scores["eval_kl_loss"] >= 0
    names = {path.name for path in folder.iterdir()}
    assert names >= {"README.md", "curves.png", "confusion.md", "confusion.png", "predictions.jsonl"}
    assert names >= {"forgetting.json", "forgetting.md", "forgetting.png"}
    card = (folder / "README.md").read_text()
    assert str(tmp_path) not in card
    assert "![forgetting](forgetting.png)" in card
    assert "joint-loss" in card
    use = card.split("```python\n")[1].split("```")[0].replace('"run"', repr(str(folder)))
    exec(use, {})
    assert [record["lm_weight"] for record in read_log(folder) if "task_loss" in record] == [0.5, 0.25]

    # The saved tokenizer writes the layout that the head was trained on.
    saved = AutoTokenizer.from_pretrained(folder)
    assert saved.convert_ids_to_tokens(saved("w5", "w7")["input_ids"]) == [
        "_start_",
        "w5",
        "_delimiter_",
        "w7",
        "_classify_",
    ]
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    classify = pipeline("text-classification", str(folder), device="cpu")
    pairs = [{"text": line["premise"], "text_pair": line["hypothesis"]} for line in lines]
    for line, found in zip(lines, classify(pairs), strict=True):
        assert found["label"] == line["predicted"]
        assert found["score"] == pytest.approx(line["score"], abs=1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.language_model.save_pretrained(tmp_path / "lm")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "lm").config.vocab_size == WORDS + 3


@pytest.mark.parametrize("task", ["token-classification", "similarity", "multiple-choice"])
def test_the_card_can_be_followed(task, checkpoints, tmp_path):
    run_finetuning(options(checkpoints / "bert", tmp_path, task), training(tmp_path, max_steps=1))
    card = (tmp_path / "run" / "README.md").read_text()
    exec(card.split("```python\n")[1].split("```")[0].replace('"run"', repr(str(tmp_path / "run"))), {})


def test_the_openai_preset(checkpoints, tmp_path):
    recipe = read_recipe("openai")
    assert {key: recipe[key] for key in OPENAI_ARGUMENTS if key in recipe} == {
        key: value for key, value in OPENAI_ARGUMENTS.items() if key in recipe
    }
    assert set(OPENAI_ARGUMENTS) - set(recipe) == {"remove_unused_columns"}
    arguments = options(checkpoints / "gpt2", tmp_path, "multiple-choice", preset="openai")
    trainer = finetune(arguments, training(tmp_path))
    assert isinstance(getattr(trainer.optimizer, "optimizer", trainer.optimizer), OpenAIAdam)
    assert trainer.data_collator.template.truncation == "halves"
    assert trainer.model.language_model.config.resid_pdrop == 0.1
    model = AutoModelForMultipleChoice.from_pretrained(tmp_path / "run")
    assert model.config.classify_token_id == WORDS + 2


@pytest.mark.parametrize("scratch", [False, True])
def test_from_scratch_and_lambda_zero(scratch, checkpoints, tmp_path):
    arguments = options(
        checkpoints / "gpt2", tmp_path, "sequence-classification", from_scratch=scratch, lm_loss_weight=0.0
    )
    trainer = finetune(arguments, training(tmp_path, learning_rate=0.0))
    stock = AutoModelForCausalLM.from_pretrained(checkpoints / "gpt2").transformer.h[0].mlp.c_fc.weight
    ours = trainer.model.language_model.transformer.h[0].mlp.c_fc.weight
    assert torch.equal(stock, ours) != scratch
    assert not any("lm_loss" in record for record in read_log(tmp_path / "run"))


def test_marks_that_the_tokenizer_has_are_not_added(checkpoints, tmp_path):
    arguments = options(checkpoints / "bert", tmp_path, "entailment", start_token="[BOS]", max_tokens=9)
    task, marked = read_task_rows(arguments, 0), AutoTokenizer.from_pretrained(checkpoints / "bert")
    model, template = make_model(arguments, task, marked)
    assert model.get_input_embeddings().weight.shape[0] == len(marked) == WORDS + 2
    assert template.max_length == 9
    assert template.ids(marked)[0] == 1
    saved = with_layout(marked, template, "entailment")
    assert len(saved("w5 " * 20, "w6 " * 20, truncation=True)["input_ids"]) == 9
    assert saved is not marked
    assert marked("w5")["input_ids"] == [5]


# Rows


def test_numbers_of_rows(checkpoints, tmp_path):
    def texts(**more):
        task = read_task_rows(options("m", tmp_path, "similarity", **more), 1)
        return task.train["first"]

    assert len(texts(train_rows=3)) == 3
    assert len(texts(train_fraction=0.5)) == 4
    assert texts(train_rows=3) == texts(train_rows=3)
    assert sorted(texts(train_rows=8)) == sorted(texts())
    with pytest.raises(ValueError, match=r"train_rows must lie in 1..8.* found 9"):
        texts(train_rows=9)
    with pytest.raises(ValueError, match="both choose rows"):
        texts(train_rows=3, train_fraction=0.5)


def test_columns_of_all_shapes(tmp_path, monkeypatch):
    rows = [{"sent1": "a", "ending0": "b", "ending1": "c", "gold": str(n % 2)} for n in range(4)]
    arguments = options("m", tmp_path, "multiple-choice", rows, rows, label_column="gold")
    arguments.choices_column = ["ending0", "ending1"]
    task = read_task_rows(arguments, 0)
    assert task.train[1] == {"context": "a", "choices": ["b", "c"], "labels": 1, "length": 3}

    numbers = [{"tokens": ["a", "b"], "intent": n} for n in (10, 9, 2, 10)]
    task = read_task_rows(options("m", tmp_path, "sequence-classification", numbers, numbers), 0)
    assert task.label_names == ["2", "9", "10"]
    assert task.train["text"][0] == "a b"

    hub = Dataset.from_dict(
        {"sentence": ["a", "b", "c"], "label": [1, 0, -1]},
        features=Features({"sentence": Value("string"), "label": ClassLabel(names=["no", "yes"])}),
    )
    monkeypatch.setattr(task_rows, "read_table", lambda *source: hub)
    task = read_task_rows(FinetuneArguments(train_file=["hub"], validation_file=["hub"]), 0)
    assert task.label_names == ["no", "yes"]
    assert task.train["labels"] == [1, 0, -100]


CHOICES = {"context": "a", "choices": ["b", "c"], "label": 0}
PAIR = {"sentence1": "a", "sentence2": "b"}
BAD_ROWS = [
    (
        "sequence-classification",
        [{"text": "a", "label": "x"}] * 2,
        {},
        "has 1 classes .x., and fewer than two",
    ),
    (
        "sequence-classification",
        [{"text": "a", "kind": "x"}],
        {},
        r"no column with labels: .*\['text', 'kind'\]",
    ),
    (
        "sequence-classification",
        [{"text": "a", "label": "x"}],
        {"text_column": "t"},
        "no column 't' with text",
    ),
    (
        "sequence-classification",
        [{"text": " ", "label": n} for n in (0, 1)],
        {},
        "row 1: column 'text' must hold a text",
    ),
    ("sequence-classification", [{"text": "a", "label": 0.5}], {}, "holds 0.5, which does not fit"),
    ("token-classification", [{"tokens": ["a"], "tags": ["x", "y"]}], {}, "row 1: 1 words but 2 labels"),
    (
        "token-classification",
        [{"tokens": ["a"], "tags": "x"}],
        {},
        "holds 'x', which does not fit token-class",
    ),
    ("entailment", [{"sentence1": "a", "label": "x"}], {}, "no column with second texts"),
    (
        "similarity",
        [PAIR | {"score": 1.0}, PAIR | {"score": None}],
        {"regression": False, "label_column": "score"},
        "holds 1.0, which does",
    ),
    (
        "similarity",
        [PAIR | {"score": "1"}, PAIR | {"score": "high"}],
        {},
        "row 2: the label must be a number, found 'high'",
    ),
    ("multiple-choice", [CHOICES | {"label": 2}], {}, r"row 1: .* number of the right choice, 0..1, found 2"),
    ("multiple-choice", [CHOICES | {"label": -1}], {}, "number of the right choice, 0..1, found -1"),
    (
        "multiple-choice",
        [CHOICES, CHOICES | {"choices": ["a", "b", "c"]}],
        {},
        "the first has 2, row 2 has 3",
    ),
    ("multiple-choice", [CHOICES | {"choices": ["a"]}], {}, "a list of at least two choices"),
    ("multiple-choice", [CHOICES], {"regression": True}, "regression predicts one number a row"),
]


@pytest.mark.parametrize(("task", "rows", "more", "words"), BAD_ROWS)
def test_bad_rows_are_named(task, rows, more, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        read_task_rows(options("m", tmp_path, task, rows, rows, **more), 0)


def test_labels_that_training_never_saw(tmp_path):
    rows = ROWS["entailment"]
    with pytest.raises(ValueError, match=r"labels that no training row has: \['maybe'\]"):
        read_task_rows(options("m", tmp_path, "entailment", rows, [*rows, rows[0] | {"label": "maybe"}]), 0)


BAD_OPTIONS = [
    ({"lm_loss_weight": -0.1}, "lm_loss_weight must be at least 0, found -0.1"),
    ({"max_tokens": 65}, "max_tokens is 65, but .* has 64 positions"),
    ({"lm_objective": "masked"}, "has no masked language-model head"),
    ({"freeze_bilm": True}, "belong to ELMo"),
    ({"replay_file": ["x.txt"], "lm_loss_weight": 0.0}, "whose lm_loss_weight is 0"),
    ({"from_scratch": True, "transferred_layers": 1}, "from_scratch keeps no layer"),
    ({"preset": "openai", "layer_lr_decay": 0.5}, "optimizer of its own"),
    ({"transferred_layers": 9}, "has 2 layers, found 9 to transfer"),
    ({"kl_weight": -1.0}, "kl_weight must be at least 0"),
]


@pytest.mark.parametrize(("more", "words"), BAD_OPTIONS)
def test_bad_options(more, words, checkpoints, tmp_path):
    with pytest.raises(ValueError, match=words):
        finetune(options(checkpoints / "gpt2", tmp_path, "entailment", **more), training(tmp_path))


def test_checkpoints_that_will_not_do(checkpoints, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        finetune(options(tmp_path / "none", tmp_path, "entailment"), training(tmp_path))
    save(gpt2(WORDS), tmp_path / "bare")
    with pytest.raises(ValueError, match="has no tokenizer beside it"):
        finetune(options(tmp_path / "bare", tmp_path, "entailment"), training(tmp_path))


def test_recipes_name_their_columns():
    for name in ("snips", "subj", "sick", "sick-relatedness", "sts", "ecare", "ud_ewt_pos"):
        arguments, _ = parse(name, [], FinetuneArguments)
        assert arguments.train_file == []
        assert arguments.lm_loss_weight == 0.5


# Tagging


def test_labels_stand_where_a_model_has_read_the_word():
    pieces = tokenizer(WORDS)
    pieces.add_tokens(["un", "do"])
    rows = [{"words": ["undo", "w5"], "labels": [3, 4]}, {"words": ["w6"], "labels": [5]}]
    batch = JointTaggingCollator(pieces)(rows)
    assert batch["input_ids"][0].tolist()[2] == 5
    assert batch["labels"].tolist() == [
        [-100, 3, 4],
        [5, -100, -100],
    ]
    assert batch["lm_targets"].tolist()[1] == [-100] * 3
    first = JointTaggingCollator(pieces, lm_objective=None, at_last_token=False)(rows)
    assert first["labels"].tolist()[0] == [3, -100, 4]
    assert "lm_targets" not in first
    short = JointTaggingCollator(pieces, max_length=1)
    assert short(rows)["labels"].tolist() == [[-100], [5]]
    assert short(rows)["attention_mask"].tolist() == [[1], [1]]
    with pytest.raises(ValueError, match="found 1 words but 2 labels"):
        short([{"words": ["a"], "labels": [1, 2]}])


# Scores


def test_correlations_by_hand():
    one, other = np.array([1.0, 2.0, 2.0, 4.0]), np.array([2.0, 1.0, 5.0, 9.0])
    assert ranks(one).tolist() == [1.0, 2.5, 2.5, 4.0]
    # deviations: (-5/4, -1/4, -1/4, 7/4) and (-9/4, -13/4, 3/4, 19/4); sums 11.75, 4.75, 38.75
    assert pearson(one, other) == pytest.approx(11.75 / math.sqrt(4.75 * 38.75))
    gathered = EvalPrediction(predictions=np.append(one, 7.0), label_ids=np.append(other, -100.0))
    scores = regression_scores(gathered)
    # ranks (1, 2.5, 2.5, 4) and (2, 1, 3, 4): sum of products 3, of squares 4.5 and 5
    assert scores["spearman"] == pytest.approx(3 / math.sqrt(4.5 * 5))
    assert scores["mse"] == pytest.approx((1 + 1 + 9 + 25) / 4)
    assert pearson(np.ones(3), one[:3]) == 0.0


def test_confusions():
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), ("a", "a")]
    names, counts = confusion(pairs, ["a", "b"])
    assert counts == [[2, 1], [0, 1]]
    table = confusion_table(names, counts).splitlines()
    assert table[2] == "| a | 2 | 1 | 0.667 |"
    assert table[-1] == "| precision | 1.000 | 0.500 | |"
    many, counts = confusion([("c0", "c41"), ("c1", "c1")], [f"c{n}" for n in range(45)])
    assert len(many) == 40
    assert many[-1] == "(others)"
    assert counts[0][-1] == 1
    assert counts[1][1] == 1
    with pytest.raises(ValueError, match=r"counts must be \(2, 2\)"):
        plot_confusion(["a", "b"], [[1]])
