"""Joint-loss models as stock classes of Transformers: where it works, the words where it does not, and the verb."""

import pytest
import torch
from reference.joint_loss_naive import batch, examples, joint, language_model, tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaForTokenClassification,
)
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.conversion.joint_to_stock import compare_logits, to_stock

EXPORTS = [
    ("gpt2", "classes", {"classifier_bias": False}, GPT2ForSequenceClassification),
    ("openai-gpt", "classes", {"classifier_bias": False}, None),
    ("llama", "classes", {"classifier_bias": False}, None),
    ("gpt2", "tokens", {}, None),
    ("llama", "tokens", {}, LlamaForTokenClassification),
    ("bert", "tokens", {}, None),
    ("roberta", "tokens", {"classifier_bias": False}, None),
]


@pytest.mark.parametrize(("kind", "head", "options", "expected"), EXPORTS)
def test_stock_twins(kind, head, options, expected, tmp_path):
    model = joint(
        kind, head, torch.float32, num_labels=4, problem_type="single_label_classification", **options
    )
    stock = to_stock(model, pad_token_id=0)
    assert expected is None or type(stock) is expected
    assert type(stock).__module__.startswith("transformers.")
    assert stock.config.num_labels == 4
    assert stock.config.pad_token_id == (0 if head == "classes" else model.config.text_config.pad_token_id)
    assert model.config.text_config.num_labels == 2  # our own was left alone
    whole = batch(kind, head, *examples(head))
    ids = {key: whole[key] for key in ("input_ids", "attention_mask")}
    ours, theirs = model(**ids).logits, stock(**ids).logits
    if head == "tokens":
        ours, theirs = (one[ids["attention_mask"].bool()] for one in (ours, theirs))
    torch.testing.assert_close(ours, theirs)
    difference, rounding = compare_logits(model, stock)
    assert difference <= rounding < 1e-3
    with torch.no_grad():
        next(p for name, p in stock.named_parameters() if "embed" in name or "wte" in name)[5:].mul_(1.1)
    assert compare_logits(model, stock)[0] > 10 * rounding  # the check has teeth


@pytest.mark.parametrize(
    ("kind", "head", "options", "pad_token", "words"),
    [
        (
            "gpt2",
            "classes",
            {"classifier_bias": False},
            None,
            "pad_token_id.*language model has none.*--pad-token-id",
        ),
        (
            "gpt2",
            "classes",
            {},
            0,
            "score has no bias, the joint-loss classifier has one. Train with classifier_bias=False",
        ),
        ("bert", "classes", {}, 0, r"BertForSequenceClassification has layers between .*bert.pooler.dense"),
        (
            "roberta",
            "classes",
            {},
            1,
            r"RobertaForSequenceClassification has layers between .*classifier.dense",
        ),
        ("gpt2", "classes", {"pooling": "mean"}, 0, "read the last token, this model pooling='mean'"),
        ("gpt2", "similarity", {}, 0, "reads two texts in both orders"),
        ("gpt2", "choices", {}, 0, "no class for 'gpt2' under AutoModelForMultipleChoice"),
        ("lstm-lm", "classes", {}, 0, "no class for 'lstm-lm' under AutoModelForSequenceClassification"),
        ("elmo", "tokens", {}, 0, "no class for 'elmo' under AutoModelForTokenClassification"),
    ],
)
def test_heads_without_a_stock_twin(kind, head, options, pad_token, words):
    with pytest.raises(ValueError, match=words):
        to_stock(joint(kind, head, torch.float32, **options), pad_token)


def test_the_verb(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["convert", "joint-to-stock", *map(str, arguments)])

    model = joint("gpt2", dtype=torch.float32, classifier_bias=False)
    source, out = tmp_path / "joint", tmp_path / "out"
    model.save_pretrained(source)
    failed = run(source, out)
    assert failed.exit_code == 1
    assert "--pad-token-id" in failed.stderr
    assert not out.exists()
    assert run(source, out, "--pad-token-id", 0).exit_code == 0
    tokenize = tokenizer(source, pad_token="<pad>")
    again = run(source, out)
    assert again.exit_code == 1
    assert "is there already and not empty" in again.stderr
    result = run(source, tmp_path / "second")
    assert result.exit_code == 0, result.output
    assert "GPT2ForSequenceClassification: logits of 8 random rows, largest difference" in result.output
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "second")
    assert type(stock) is GPT2ForSequenceClassification
    assert (tmp_path / "second" / "tokenizer.json").is_file()
    tokens = tokenize(["w5 w6 w7", "w8"], padding=True, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    torch.testing.assert_close(stock(**tokens).logits, model(**tokens).logits)
    BertForSequenceClassification(language_model("bert").config).save_pretrained(tmp_path / "bert")
    wrong = run(tmp_path / "bert", tmp_path / "third")
    assert wrong.exit_code == 1
    assert "a checkpoint of 'bert' (BertForSequenceClassification), expected" in wrong.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "joint", "out", "second"]
    assert "Example: heirloom convert joint-to-stock" in run("--help").output
