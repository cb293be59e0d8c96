"""A masked language model with a head for pairs: the twin's losses, exact steps, checkpoints, StructBERT, errors."""

import json
import random

import pytest
import torch
from own_code import check_own_code
from reference.joint_loss_naive import (
    BERTS,
    MASK,
    POSITIONS,
    VOCAB,
    gradients,
    language_model,
    largest_difference,
    pad,
)
from stock_lms import tokenizer
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertConfig,
    BertForPreTraining,
    SqueezeBertConfig,
    SqueezeBertForMaskedLM,
    TrainingArguments,
)
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_sentence_pair import SentencePairConfig
from heirloom.modeling.modeling_sentence_pair import SentencePairForPreTraining
from heirloom.training.objectives import find_objective
from heirloom.training.stock_objectives import encode, open_model
from heirloom.training.stock_pretraining import StockPretrainingTrainer

PLACES = {"max_position_embeddings": POSITIONS}
GROUPS = ("q", "k", "v", "post_attention", "intermediate", "output")
NAMES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
WORDS = tokenizer(VOCAB, ("[PAD]", "[CLS]", "[SEP]", "[MASK]", "."), **NAMES)
IGNORED = -100


def made(kind="bert", dtype=torch.float64, **options) -> SentencePairForPreTraining:
    """A tiny model without dropout, its new head far from its initial values."""
    torch.manual_seed(1)
    if kind == "squeezebert":  # a head that `gathered_head` does not know
        groups = {f"{name}_groups": 1 for name in GROUPS}
        encoder = SqueezeBertForMaskedLM(
            SqueezeBertConfig(**BERTS | PLACES | groups, embedding_size=16)
        ).eval()
    else:
        encoder = language_model(kind, **{"type_vocab_size": 1} if kind == "roberta" else {})
    model = SentencePairForPreTraining.from_encoder(encoder, **options)
    for parameter in model.pair_head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.to(dtype)


def examples() -> list[dict]:
    """Rows of different lengths: some hidden places, classes of pairs, one row without each."""
    draw, rows = torch.Generator().manual_seed(5), []
    for number, length in enumerate((6, 9, 11, 5, 13)):
        ids = torch.randint(1, MASK, (length,), generator=draw).tolist()
        hidden = {3, length - 2} if number != 3 else set()
        rows.append(
            {
                "input_ids": [MASK if place in hidden else one for place, one in enumerate(ids)],
                "token_type_ids": [int(place > length // 2) for place in range(length)],
                "labels": [one if place in hidden else IGNORED for place, one in enumerate(ids)],
                "next_sentence_label": (2, 0, IGNORED, 1, 2)[number],
            }
        )
    return rows


def batch(start: int = 0, stop: int = 5) -> dict:
    """Keyword arguments of `forward`, of some of the rows."""
    rows = examples()[start:stop]
    width = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": 0, "token_type_ids": 0, "labels": IGNORED}
    made = {name: pad([row[name] for row in rows], fill, width) for name, fill in fills.items()}
    made["attention_mask"] = pad([[1] * len(row["input_ids"]) for row in rows], 0, width)
    return made | {"next_sentence_label": torch.tensor([row["next_sentence_label"] for row in rows])}


def twin(model: SentencePairForPreTraining) -> tuple[torch.Tensor, torch.Tensor]:
    """Both means, one row at a time without padding, by the stock model's own outputs."""
    mlm, pairs, types = [], [], model.config.text_config.type_vocab_size > 1
    for row in examples():
        inputs = {"input_ids": torch.tensor([row["input_ids"]])}
        if types:
            inputs["token_type_ids"] = torch.tensor([row["token_type_ids"]])
        outputs = model.language_model(**inputs, output_hidden_states=True)
        for place, label in enumerate(row["labels"]):
            if label != IGNORED:
                mlm.append(-outputs.logits[0, place].log_softmax(0)[label])
        if row["next_sentence_label"] != IGNORED:
            head, first = model.pair_head, outputs.hidden_states[-1][0, 0]
            logits = head.classifier(torch.tanh(head.pooler(first)))
            pairs.append(-logits.log_softmax(0)[row["next_sentence_label"]])
    assert (len(mlm), len(pairs)) == (8, 4)
    return sum(mlm) / 8, sum(pairs) / 4


@pytest.mark.parametrize("kind", ["bert", "roberta", "squeezebert"])
def test_losses_and_gradients_are_the_twins(kind):
    model = made(kind)
    mlm, pair = twin(model)
    (mlm + pair).backward()
    expected = gradients(model)
    found = model.train()(**batch())
    assert found.mlm_loss.item() == pytest.approx(mlm.item(), abs=1e-6)
    assert found.pair_loss.item() == pytest.approx(pair.item(), abs=1e-6)
    assert found.loss.item() == pytest.approx(mlm.item() + pair.item(), abs=1e-6)
    found.loss.backward()
    assert largest_difference(gradients(model), expected) < 1e-6
    plain = {name: value for name, value in batch().items() if not name.startswith(("labels", "next"))}
    shown = model.eval()(**plain)
    assert shown.logits.shape == (5, 13, VOCAB)
    losses = F.cross_entropy(shown.logits.flatten(0, 1), batch()["labels"].flatten())
    assert losses.item() == pytest.approx(mlm.item(), abs=1e-6)
    torch.testing.assert_close(shown.pair_logits, found.pair_logits)


def test_parts_sum_to_the_step():
    model = made()
    whole = model(**batch())
    whole.loss.backward()
    expected = gradients(model)
    for size in (1, 2, 3):
        parts = [batch(start, min(5, start + size)) for start in range(0, 5, size)]
        counts = sum(model.count_items(part) for part in parts)
        assert counts.tolist() == [8, 4]
        outputs = [model(**part, num_items_in_batch=counts) for part in parts]
        sum(output.loss for output in outputs).backward()
        assert largest_difference(gradients(model), expected) < 1e-6
        assert sum(one.pair_loss.item() for one in outputs) == pytest.approx(whole.pair_loss.item(), abs=1e-6)


def test_padding_may_stand_on_the_left():
    model, some = made(), batch(0, 2)
    wanted = model(**some).pair_logits
    places = {"input_ids": 0, "attention_mask": 0, "token_type_ids": 0, "labels": IGNORED}
    moved = some | {name: F.pad(some[name], (0, 3), value=fill) for name, fill in places.items()}
    torch.testing.assert_close(model(**moved).pair_logits, wanted)
    left = {name: F.pad(some[name], (3, 0), value=fill) for name, fill in places.items()}
    positions = model.language_model.bert.embeddings.position_embeddings.weight
    with torch.no_grad():
        positions[:] = positions[:1].clone()  # so that a shift changes nothing else
    torch.testing.assert_close(model(**some | left).pair_logits, model(**some).pair_logits)


# StructBERT


@pytest.fixture(scope="module")
def documents():
    draw = random.Random(0)
    sentence = lambda: " ".join(f"w{draw.randrange(5, VOCAB)}" for _ in range(draw.randint(4, 8))) + " ."  # noqa: E731
    return [[sentence() for _ in range(draw.randint(3, 6))] for _ in range(30)]


@pytest.fixture(scope="module")
def structbert(documents):
    """Rows of the objective."""
    objective = find_objective("structbert")
    return objective.rows(encode(objective, documents, WORDS), WORDS, POSITIONS, 0)


def test_batches_of_structbert(structbert):
    rows = [structbert[number] for number in range(len(structbert))]
    found = find_objective("structbert").make_collator(WORDS, 3)(rows)
    assert set(found["next_sentence_label"].tolist()) == {0, 1, 2}
    width = found["input_ids"].shape[1]
    original = pad([row["input_ids"].tolist() for row in rows], 0, width)
    labels = found["labels"]
    known = labels != IGNORED
    assert torch.equal(labels[known], original[known])
    changed = found["input_ids"] != original
    assert not (changed & ~known).any()
    masked = sum(round(0.15 * len(row["input_ids"])) for row in rows)
    assert (known.sum() - masked) % 3 == 0  # all of a window
    assert known.sum() > masked
    assert (known & changed & (found["input_ids"] != WORDS.mask_token_id)).any()


def collated(rows, count: int = 8) -> dict:
    return find_objective("structbert").make_collator(WORDS)([rows[number] for number in range(count)])


def test_accumulation_changes_nothing(structbert, tmp_path):
    """8x1, 2x4 and 1x8 rows a step; rows have different numbers of labels."""
    whole = collated(structbert)
    cut = lambda some: {name: value[[row["n"] for row in some]] for name, value in whole.items()}  # noqa: E731
    steps, logs, metrics = [], [], []
    for size in (8, 2, 1):
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size, max_steps=1,
            per_device_eval_batch_size=3, learning_rate=1.0, optim="sgd", max_grad_norm=0, logging_steps=1, report_to=[],
            use_cpu=True, save_strategy="no", train_sampling_strategy="sequential", disable_tqdm=True,
        )  # fmt: skip
        rows, model = [{"n": number} for number in range(8)], made()
        before = torch.cat([value.detach().flatten().clone() for value in model.parameters()])
        trainer = StockPretrainingTrainer(
            model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=cut
        )
        metrics.append(trainer.evaluate())
        trainer.train()
        steps.append(torch.cat([value.detach().flatten() for value in model.parameters()]) - before)
        logs.append(next(log for log in trainer.state.log_history if "loss" in log))
    wanted = made()(**whole)
    for step, log, evaluated in zip(steps, logs, metrics, strict=True):
        assert float(step @ steps[0] / (steps[0] @ steps[0])) == pytest.approx(1, abs=1e-6)
        assert (step - steps[0]).abs().max() < 1e-9
        for part in ("loss", "mlm_loss", "pair_loss"):
            assert log[part] == pytest.approx(wanted[part].item(), rel=1e-4)
            assert evaluated[f"eval_{part}"] == pytest.approx(wanted[part].item(), rel=1e-6)
        assert evaluated["eval_perplexity"] == pytest.approx(wanted.mlm_loss.exp().item(), rel=1e-6)


def test_structbert_is_learned(structbert):
    whole, objective = collated(structbert), find_objective("structbert")
    config = {"model_type": "bert", **BERTS, **PLACES, "initializer_range": 0.02}
    torch.manual_seed(0)
    model = open_model(objective, json.dumps(config), WORDS).train()
    assert model.config.num_pair_labels == 3
    optimizer, losses = torch.optim.AdamW(model.parameters(), 1e-2), []
    for _ in range(60):
        found = model(**whole)
        found.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((found.mlm_loss.item(), found.pair_loss.item()))
    assert losses[0][1] == pytest.approx(1.0986, abs=0.1)
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1] < 0.2


def test_models_for_structbert(tmp_path):
    objective = find_objective("structbert")
    made(dtype=torch.float32).language_model.save_pretrained(tmp_path / "bert")
    first = open_model(objective, str(tmp_path / "bert"), WORDS)
    assert torch.equal(
        first.get_input_embeddings().weight, made(dtype=torch.float32).get_input_embeddings().weight
    )
    first.save_pretrained(tmp_path / "pairs")
    again = open_model(objective, str(tmp_path / "pairs"), WORDS)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    with pytest.raises(
        ValueError, match="objective structbert needs one of sentence-pair, bert.*config is gpt2"
    ):
        open_model(objective, '{"model_type": "gpt2"}', WORDS)


def test_structbert_can_be_looked_at(tmp_path):
    WORDS.save_pretrained(tmp_path)
    text = " ".join(f"w{number} w{number + 1} ." for number in range(5, 35))
    command = ["objectives", "show", "structbert", "--model", str(tmp_path), "--text", text]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "next_sentence_label" in shown.output
    assert "[MASK](" in shown.output


# Checkpoints


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_round_trip_and_stock_checkpoints(kind, tmp_path):
    model = made(kind, torch.float32, num_pair_labels=4)
    model.train()(**batch()).loss.backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    model.eval().save_pretrained(tmp_path / "pairs")
    loaded, report = AutoModelForPreTraining.from_pretrained(tmp_path / "pairs", output_loading_info=True)
    assert type(loaded) is SentencePairForPreTraining
    assert not any(report.values())
    assert loaded.config.num_pair_labels == 4
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.config.text_config is loaded.language_model.config
    saved = json.loads((tmp_path / "pairs" / "config.json").read_text())
    assert saved["architectures"] == ["SentencePairForPreTraining"]
    assert saved["auto_map"] == AUTO_MAP["sentence-pair"]
    loaded.language_model.save_pretrained(tmp_path / "lm")
    stock, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "lm", output_loading_info=True)
    assert not any(report.values())
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(stock(ids).logits, model(ids).logits)


def test_a_stock_pooler_is_taken_over(tmp_path):
    sizes = BERTS | PLACES
    stock = {
        "bert": BertForPreTraining(BertConfig(**sizes)),
        "albert": AlbertForPreTraining(AlbertConfig(**sizes | {"embedding_size": 8})),
        "masked": language_model("bert"),
    }
    for kind, model in stock.items():
        model.save_pretrained(tmp_path / kind)
        found = SentencePairForPreTraining.from_encoder(tmp_path / kind)
        assert not found.training
        pooler = getattr(model.base_model.pooler, "dense", model.base_model.pooler)
        if kind == "masked":
            assert pooler is None
            assert found.pair_head.pooler.weight.std().item() == pytest.approx(0.02, rel=0.2)
        else:
            assert torch.equal(found.pair_head.pooler.weight, pooler.weight)
            assert torch.equal(found.pair_head.pooler.bias, pooler.bias)
        assert torch.equal(found.get_input_embeddings().weight, model.get_input_embeddings().weight)
        assert found.pair_head.classifier.weight.shape == (3, 16)
    half = SentencePairForPreTraining.from_encoder(tmp_path / "bert", {"dtype": torch.bfloat16})
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half(**batch()).loss.dtype == torch.float32


def test_resizing():
    model = made(dtype=torch.float32)
    before = model(**batch()).loss
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    assert model.config.text_config.vocab_size == VOCAB + 3
    some = batch()
    some["labels"][0, 3] = some["input_ids"][0, 1] = VOCAB + 2
    assert model(**some).loss.isfinite()
    model.resize_token_embeddings(VOCAB)
    torch.testing.assert_close(model(**batch()).loss, before)


@pytest.mark.slow
def test_a_checkpoint_brings_its_own_code(tmp_path):
    """In a process that has no heirloom."""
    check_own_code(made(dtype=torch.float32), batch(), tmp_path)


# Errors


def test_batches_without_targets_have_finite_losses():
    model, some = made().train(), batch()
    some["labels"][:], some["next_sentence_label"][:] = IGNORED, IGNORED
    found = model(**some)
    assert (found.loss.item(), found.mlm_loss.item(), found.pair_loss.item()) == (0, 0, 0)
    found.loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_pair_labels": 1}, "num_pair_labels must be at least 2, found 1. Without pairs use the masked"),
        ({"num_pair_labels": "three"}, "num_pair_labels"),
        ({"initializer_range": 0}, "initializer_range must be positive"),
    ],
)
def test_bad_configs(options, words):
    with pytest.raises(Exception, match=words):
        SentencePairConfig(**options)


def test_models_that_do_not_fit():
    for kind in ("gpt2", "elmo"):
        with pytest.raises(ValueError, match="masked"):
            SentencePairForPreTraining.from_encoder(language_model(kind))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": None}, "needs input_ids"),
        ({"input_ids": torch.full((5, 13), VOCAB)}, "input_ids must lie in 0..39, found 40..40"),
        ({"input_ids": torch.ones(5, 25).long()}, "24 positions, found rows of 25. Cut them"),
        ({"labels": None}, "the loss needs labels .* found no labels"),
        ({"next_sentence_label": None}, "found no next_sentence_label. Use SentencePairDataset"),
        ({"labels": torch.full((5, 13), 40)}, "labels must lie in 0..39"),
        ({"labels": torch.ones(5).long()}, "labels must be the original ids"),
        (
            {"next_sentence_label": torch.tensor([0, 1, 2, 3, 0])},
            "next_sentence_label must lie in 0..2, found 0..3",
        ),
        (
            {"next_sentence_label": torch.zeros(4).long()},
            "next_sentence_label must be the class of each pair",
        ),
        ({"next_sentence_label": torch.zeros(5)}, "next_sentence_label must be integers"),
        ({"attention_mask": torch.ones(5)}, "attention_mask must be a number for each token"),
        ({"token_type_ids": torch.full((5, 13), 2)}, "token_type_ids must lie in 0..1, found 2..2"),
        ({"num_items_in_batch": torch.ones(1)}, "must hold 2 numbers"),
    ],
)
def test_bad_batches(changes, words):
    with pytest.raises(ValueError, match=words):
        made(dtype=torch.float32).train()(**batch() | changes)


def test_albert_s_name_of_the_label():
    with pytest.raises(ValueError, match="this model reads next_sentence_label. Name the label so"):
        made().count_items({"sentence_order_label": torch.zeros(2)})
