"""SpanBERT: the twin's losses and gradients, parts that sum to a step, stock checkpoints, errors."""

import json

import pytest
import torch
from own_code import check_own_code
from reference import spanbert_naive as naive
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
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    SqueezeBertConfig,
    SqueezeBertForMaskedLM,
    TrainingArguments,
)

from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_spanbert import SpanBertConfig
from heirloom.modeling.modeling_spanbert import SpanBertForPreTraining, SpanBoundaryHead
from heirloom.training.stock_pretraining import StockPretrainingTrainer

PLACES = {"max_position_embeddings": POSITIONS}
OTHERS = {  # factorised embeddings, other names, and a head that `gathered_head` does not know
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**BERTS | PLACES | {"embedding_size": 8})),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**BERTS | PLACES | {"embedding_size": 8})),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(
            vocab_size=VOCAB, dim=16, n_layers=2, n_heads=2, hidden_dim=24, dropout=0.0, attention_dropout=0.0,
            max_position_embeddings=POSITIONS, initializer_range=0.3,
        )
    ),
    "squeezebert": lambda: SqueezeBertForMaskedLM(
        SqueezeBertConfig(
            **BERTS | PLACES, q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1, intermediate_groups=1,
            output_groups=1, embedding_size=16,
        )
    ),
}  # fmt: skip


def made(kind="bert", dtype=torch.float64, **options) -> SpanBertForPreTraining:
    """A tiny model without dropout, its new head far from its initial values."""
    options = {"max_span_positions": 3, "span_position_size": 6} | options
    torch.manual_seed(1)
    encoder = OTHERS[kind]().eval() if kind in OTHERS else language_model(kind)
    model = SpanBertForPreTraining.from_encoder(encoder, **options)
    for parameter in model.span_head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.to(dtype)


SPANS = [
    [(2, 3)],
    [(1, 5), (7, 7)],
    [(0, 1), (3, 6), (9, 10)],
    [],
    [(4, 8)],
]  # at both ends too, and longer than 3


def examples() -> tuple[list[list[int]], list[list[int]]]:
    """Rows of ids with `SPANS` hidden, some by a word or by nothing, and the labels."""
    draw = torch.Generator().manual_seed(5)
    rows, labels = [], []
    for spans, length in zip(SPANS, (6, 9, 11, 5, 13), strict=True):
        row = torch.randint(1, MASK, (length,), generator=draw).tolist()
        hidden = {
            place: number for number, (start, end) in enumerate(spans) for place in range(start, end + 1)
        }
        labels.append([one if place in hidden else -100 for place, one in enumerate(row)])
        rows.append(
            [(MASK, 7, one)[hidden[place]] if place in hidden else one for place, one in enumerate(row)]
        )
    return rows, labels


def batch(start: int = 0, stop: int = 5, most: int = 3) -> dict:
    """Keyword arguments of `forward`, of some of the rows."""
    rows, labels = (some[start:stop] for some in examples())
    width = max(map(len, rows))
    targets = naive.targets(rows, labels, SPANS[start:stop], most)
    return {
        "input_ids": pad(rows, 0, width),
        "attention_mask": pad([[1] * len(row) for row in rows], 0, width),
        "labels": pad(labels, -100, width),
        "span_boundary_targets": torch.tensor(targets, dtype=torch.long).reshape(-1, 5),
    }


@pytest.mark.parametrize("kind", ["bert", "roberta", "albert", "electra", "distilbert", "squeezebert"])
def test_losses_and_gradients_are_the_twins(kind):
    model = made(kind)
    loss, mlm, sbo = naive.step_loss(model, *examples(), SPANS)
    loss.backward()
    expected = gradients(model)
    found = model.train()(**batch())
    assert found.mlm_loss.item() == pytest.approx(mlm.item(), abs=1e-6)
    assert found.sbo_loss.item() == pytest.approx(sbo.item(), abs=1e-6)
    assert found.loss.item() == pytest.approx(mlm.item() + sbo.item(), abs=1e-6)
    found.loss.backward()
    assert largest_difference(gradients(model), expected) < 1e-6
    assert all(
        expected[f"span_head.{name}"].abs().max() > 0 for name, _ in model.span_head.named_parameters()
    )


def test_parts_sum_to_the_step():
    model = made(span_loss_weight=0.5)
    whole = model(**batch())
    whole.loss.backward()
    expected = gradients(model)
    assert whole.loss.item() == pytest.approx(whole.mlm_loss.item() + 0.5 * whole.sbo_loss.item())
    for size in (1, 2, 3):
        parts = [batch(start, min(5, start + size)) for start in range(0, 5, size)]
        counts = sum(model.count_items(part) for part in parts)
        assert counts.tolist() == [21, 12]
        outputs = [model(**part, num_items_in_batch=counts) for part in parts]
        sum(output.loss for output in outputs).backward()
        assert largest_difference(gradients(model), expected) < 1e-6
        assert sum(one.sbo_loss.item() for one in outputs) == pytest.approx(whole.sbo_loss.item(), abs=1e-6)
        single = [model(**part, num_items_in_batch=counts[0]) for part in parts]
        assert sum(one.mlm_loss.item() for one in single) == pytest.approx(whole.mlm_loss.item(), abs=1e-6)
    first = model.first_rows(batch(), 2)
    torch.testing.assert_close(model(**first).loss, model(**batch(0, 2)).loss)  # wider by padding only
    assert first["span_boundary_targets"].tolist() == batch(0, 2)["span_boundary_targets"].tolist()


def test_training_and_evaluation_in_parts(tmp_path):
    """A row without spans among them, which accumulates a language-model loss alone."""
    models, logs = [], []
    for size in (4, 1):
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size, max_steps=2,
            per_device_eval_batch_size=3, learning_rate=0.1, optim="sgd", max_grad_norm=0, logging_steps=1, report_to=[],
            use_cpu=True, save_strategy="no", train_sampling_strategy="sequential", disable_tqdm=True,
        )  # fmt: skip
        rows = [{"number": number} for number in range(4)]
        trainer = StockPretrainingTrainer(
            made(span_loss_weight=0.5),
            arguments,
            train_dataset=rows,
            eval_dataset=rows,
            data_collator=lambda some: batch(some[0]["number"], some[-1]["number"] + 1),
        )
        trainer.train()
        models.append({name: value.detach() for name, value in trainer.model.named_parameters()})
        logs.append([log for log in trainer.state.log_history if "loss" in log])
        metrics = trainer.evaluate()
        whole = trainer.model(**batch(0, 4))
        for part in ("loss", "mlm_loss", "sbo_loss"):
            assert metrics[f"eval_{part}"] == pytest.approx(whole[part].item(), rel=1e-6)
    assert largest_difference(*models) < 1e-7
    for one, other in zip(*logs, strict=True):
        for part in ("loss", "mlm_loss", "sbo_loss"):
            assert one[part] == pytest.approx(other[part], rel=1e-4)
        assert one["loss"] == pytest.approx(one["mlm_loss"] + 0.5 * one["sbo_loss"], rel=1e-4)


def test_the_boundary_loss_reads_boundaries_only():
    """Of the top layer only the tokens around spans get a gradient, and of the table of places only those used."""
    model, some = made(), batch()
    hidden = torch.randn(5, 13, 16, dtype=torch.float64, requires_grad=True)
    model._boundary_total(hidden, some["span_boundary_targets"]).backward()
    touched = {tuple(place) for place in hidden.grad.abs().sum(2).nonzero().tolist()}
    assert touched == {
        (row, place) for row, *both, _, _ in some["span_boundary_targets"].tolist() for place in both
    }
    used = batch(most=2)["span_boundary_targets"]
    model.zero_grad()
    model._boundary_total(hidden, used).backward()
    assert model.span_head.positions.weight.grad.abs().sum(1).ne(0).tolist() == [True, True, False]


def test_the_head_has_the_papers_size():
    with torch.device("meta"):
        head = SpanBoundaryHead(SpanBertConfig(), 768, 768, 28996)
    assert sum(parameter.numel() for parameter in head.parameters()) == 1_960_676


def test_batches_without_targets_have_finite_losses():
    model = made().train()
    found = model(**batch(3, 4))
    assert (found.loss.item(), found.mlm_loss.item(), found.sbo_loss.item()) == (0, 0, 0)
    found.loss.backward()
    assert all(grad.isfinite().all() for grad in gradients(model).values())
    some = batch(0, 1) | {"span_boundary_targets": torch.zeros(0, 5).long()}
    found = model(**some)
    assert found.loss.item() == found.mlm_loss.item() > 0


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_round_trip_and_stock_checkpoints(kind, tmp_path):
    model = made(kind, torch.float32)
    model.train()(**batch()).loss.backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    model.eval().save_pretrained(tmp_path / "span")
    loaded, report = AutoModelForPreTraining.from_pretrained(tmp_path / "span", output_loading_info=True)
    assert type(loaded) is SpanBertForPreTraining
    assert not any(report.values())
    torch.testing.assert_close(loaded(**batch()).loss, model(**batch()).loss)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.config.text_config is loaded.language_model.config
    saved = json.loads((tmp_path / "span" / "config.json").read_text())
    assert saved["architectures"] == ["SpanBertForPreTraining"]
    assert saved["auto_map"] == AUTO_MAP["spanbert"]
    assert (tmp_path / "span" / "gathered_head.py").is_file()
    loaded.language_model.save_pretrained(tmp_path / "lm")
    stock, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "lm", output_loading_info=True)
    assert type(stock) is type(model.language_model)
    assert not any(report.values())
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(stock(ids).logits, model(ids).logits)
    again = SpanBertForPreTraining.from_encoder(tmp_path / "lm", max_span_positions=15)
    assert again.span_head.positions.num_embeddings == 15
    assert not again.training


def test_new_heads_are_drawn_and_given_weights_are_kept(tmp_path):
    encoder = language_model("bert")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    model = SpanBertForPreTraining.from_encoder(encoder)
    assert model.language_model is encoder
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    encoder.save_pretrained(tmp_path)
    config = SpanBertConfig(text_config=AutoConfig.from_pretrained(tmp_path))
    loaded, report = SpanBertForPreTraining.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"span_head"}
    for one in (model, loaded):
        head = one.span_head
        assert head.positions.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert head.inner.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert (head.bias == 0).all()
        assert (head.inner_norm.weight == 1).all()


def test_resizing(tmp_path):
    model = made("bert", torch.float32)
    before = model(**batch())
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    assert torch.equal(model.span_head.bias[VOCAB:], torch.zeros(3))
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    for one in (model, loaded):
        some = batch()
        some["labels"][0, 2] = some["input_ids"][0, 1] = VOCAB + 2
        some["span_boundary_targets"][0, 4] = VOCAB + 2
        assert one(**some).loss.isfinite()
        assert one.config.text_config.vocab_size == VOCAB + 3
    model.resize_token_embeddings(VOCAB)
    torch.testing.assert_close(model(**batch()).loss, before.loss)


def test_half_precision_on_the_way_in(tmp_path):
    language_model("bert").save_pretrained(tmp_path)
    model = SpanBertForPreTraining.from_encoder(tmp_path, {"dtype": torch.bfloat16})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    found = model(**batch())
    assert found.loss.dtype == torch.float32
    assert found.loss.isfinite()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_span_positions": 0}, "max_span_positions must be at least 1, found 0"),
        ({"span_position_size": 0}, "span_position_size must be at least 1"),
        ({"span_loss_weight": 0}, "span_loss_weight must be positive, found 0. Without a span boundary loss"),
        ({"span_loss_weight": "much"}, "span_loss_weight"),
    ],
)
def test_bad_configs(options, words):
    with pytest.raises(Exception, match=words):
        SpanBertConfig(**options)


def test_models_that_do_not_fit():
    for kind in ("gpt2", "elmo"):
        with pytest.raises(ValueError, match="masked"):
            SpanBertForPreTraining.from_encoder(language_model(kind))
    with pytest.raises(ValueError, match="with its head, found BertModel"):
        SpanBertForPreTraining.from_encoder(language_model("bert").bert)


def targets(*rows) -> torch.Tensor:
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": None}, "needs input_ids"),
        ({"input_ids": torch.full((5, 13), VOCAB)}, "input_ids must lie in 0..39, found 40..40"),
        ({"input_ids": torch.ones(5, 25).long()}, "24 positions, found rows of 25. Cut them"),
        ({"labels": None}, "the loss needs labels .* found no labels"),
        ({"span_boundary_targets": None}, "found no span_boundary_targets. Use a collator that hides spans"),
        ({"labels": torch.full((5, 13), 40)}, "labels must lie in 0..39"),
        ({"labels": torch.ones(5).long()}, "labels must be the original ids"),
        ({"attention_mask": torch.ones(5)}, "attention_mask must be a number for each token"),
        (
            {"span_boundary_targets": torch.ones(2, 4).long()},
            "one target a line: row, left, right, offset, label",
        ),
        ({"span_boundary_targets": torch.ones(2, 5)}, "span_boundary_targets must be integers"),
        (
            {"span_boundary_targets": targets([5, 1, 4, 0, 7])},
            r"span_boundary_targets: row must lie in 0..4, found 5..5",
        ),
        (
            {"span_boundary_targets": targets([0, -1, 4, 0, 7])},
            r"span_boundary_targets: left must lie in 0..12, found -1..-1",
        ),
        ({"span_boundary_targets": targets([4, 1, 13, 0, 7])}, "right must lie in 0..12, found 13..13"),
        (
            {"span_boundary_targets": targets([4, 1, 9, 3, 7])},
            "offset must lie in 0..2, found 3..3. Leave out later tokens",
        ),
        ({"span_boundary_targets": targets([4, 1, 9, 2, 40])}, "label must lie in 0..39, found 40..40"),
        (
            {"span_boundary_targets": targets([4, 1, 9, 2, 4], [0, 1, 3, 1, 7])},
            "the tokens around a span.*'offset': 1",
        ),
        (
            {"span_boundary_targets": targets([0, 1, 6, 1, 7])},
            "the tokens around a span.*'right': 6",
        ),  # padding
        ({"num_items_in_batch": torch.ones(1)}, "must hold 2 numbers"),
    ],
)
def test_bad_batches(changes, words):
    with pytest.raises(ValueError, match=words):
        made(dtype=torch.float32).train()(**batch() | changes)


@pytest.mark.slow
def test_a_checkpoint_brings_its_own_code(tmp_path):
    """In a process that has no heirloom."""
    check_own_code(made("bert", torch.float32), batch(), tmp_path)
