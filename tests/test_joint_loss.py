"""The joint-loss models: losses and gradients of a plain two-pass twin, exact parts, pooling, and what costs nothing."""

import pytest
import torch
from reference.joint_loss_naive import (
    HEADS,
    KINDS,
    MASK,
    POSITIONS,
    VOCAB,
    batch,
    examples,
    gradients,
    joint,
    language_model,
    largest_difference,
    naive_lm_loss,
    naive_task_loss,
    pad,
)

from heirloom.modeling.modeling_joint_loss import JointLossForSequenceClassification, task_mean
from heirloom.modeling.reading_joint_loss import pool_rows

CASES = [
    (kind, head, reduction)
    for kind in KINDS
    for head in HEADS
    for reduction in ("example", "token")
    if not (kind == "elmo" and reduction == "example")
]


def made(kind, head="classes", **options):
    texts, labels = examples(head)
    return joint(kind, head, **options), batch(kind, head, texts, labels), texts, labels


@pytest.mark.parametrize(("kind", "head", "reduction"), CASES)
def test_losses_and_gradients_are_the_twins(kind, head, reduction):
    model, whole, texts, labels = made(kind, head, lm_loss_reduction=reduction, lm_loss_weight=0.7)
    task, lm = naive_task_loss(model, kind, head, texts, labels), naive_lm_loss(model, kind, texts)
    (task + 0.7 * lm).backward()
    expected = gradients(model)
    found = model.train()(**whole)
    assert found.task_loss.item() == pytest.approx(task.item(), abs=1e-6)
    assert found.lm_loss.item() == pytest.approx(lm.item(), abs=1e-6)
    assert found.loss.item() == pytest.approx((task + 0.7 * lm).item(), abs=1e-6)
    found.loss.backward()
    assert largest_difference(gradients(model), expected) < 1e-6
    assert expected["classifier.weight"].abs().max() > 0.01
    assert max(value.abs().max() for name, value in expected.items() if "classifier" not in name) > 0.01


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_sum_to_the_whole(kind, head):
    """Cut anywhere, also so that a part has no label at all."""
    for reduction in ("example", "token") if kind != "elmo" else ("token",):
        model, whole, _, _ = made(kind, head, lm_loss_reduction=reduction)
        loss = model(**whole).loss
        loss.backward()
        expected = gradients(model)
        counts = {
            "num_items_in_batch": model.count_task_items(whole),
            "num_lm_items_in_batch": model.count_lm_items(whole),
        }
        total = 0.0
        for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
            piece = model(**{name: value[part] for name, value in whole.items()}, **counts)
            assert piece.loss.item() == pytest.approx(
                piece.task_loss.item() + 0.5 * piece.lm_loss.item(), abs=1e-6
            )
            piece.loss.backward()
            total += piece.loss.item()
        assert total == pytest.approx(loss.item(), abs=1e-6)
        assert largest_difference(gradients(model), expected) < 1e-6


def test_counts():
    model, whole, texts, _ = made("gpt2", "choices", lm_loss_reduction="example")
    assert int(model.count_task_items(whole)) == 5
    assert int(model.count_lm_items(whole)) == 18
    model.config.lm_loss_reduction = "token"
    assert int(model.count_lm_items(whole)) == sum(len(row) - 1 for rows in texts for row in rows)
    model, whole, texts, _ = made("elmo")
    assert int(model.count_lm_items(whole)) == sum(len(rows[0]) + 1 for rows in texts)
    model, whole, _, _ = made("bert")
    assert int(model.count_lm_items({**whole, "lm_targets": None})) == 0
    assert int(model.count_task_items({})) == 0


@pytest.mark.parametrize("kind", ["gpt2", "bert", "elmo"])
def test_unlabelled_rows_train_the_language_model_only(kind):
    model, whole, texts, _ = made(kind)
    whole["labels"] = torch.full((6,), -100)
    found = model(**whole)
    assert found.task_loss == 0
    found.loss.backward()
    grads = gradients(model)
    assert grads["classifier.weight"].abs().max() == 0
    (0.5 * naive_lm_loss(model, kind, texts)).backward()
    assert largest_difference(grads, gradients(model)) < 1e-6
    without = {name: value for name, value in whole.items() if name != "labels"}
    lm_targets = whole.get("lm_targets", whole["input_ids"].masked_fill(whole["attention_mask"] == 0, -100))
    alone = model(**without | {"lm_targets": lm_targets})
    assert alone.task_loss is None
    assert alone.loss.item() == pytest.approx(found.loss.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "elmo"])
def test_rows_can_be_kept_from_the_language_model(kind):
    model, whole, texts, labels = made(kind)
    targets = whole.get("lm_targets", whole["input_ids"]).clone()
    targets[[1, 4]] = -100
    found = model(**whole | {"lm_targets": targets})
    assert found.lm_loss.item() == pytest.approx(
        naive_lm_loss(model, kind, texts, skip=(1, 4)).item(), abs=1e-6
    )
    assert found.task_loss.item() == pytest.approx(
        naive_task_loss(model, kind, "classes", texts, labels).item(), abs=1e-6
    )
    nothing = model(**whole | {"lm_targets": torch.full_like(targets, -100)})
    assert nothing.lm_loss == 0
    nothing.loss.backward()
    assert all(value.isfinite().all() for value in gradients(model).values())


@pytest.mark.parametrize("head", HEADS)
def test_the_side_of_the_padding_does_not_matter(head):
    for kind in ("llama", "lstm-lm", "elmo"):  # positions are relative, or there are none
        texts, labels = examples(head)
        model = joint(kind, head)
        right, left = (model(**batch(kind, head, texts, labels, side)) for side in (False, True))
        assert left.task_loss.item() == pytest.approx(right.task_loss.item(), abs=1e-6)
        assert left.lm_loss.item() == pytest.approx(right.lm_loss.item(), abs=1e-6)


def test_the_stock_trainers_count_is_enough_for_labelled_rows():
    """With `num_items_in_batch` alone, parts of a fully labelled batch sum exactly for the reduction "example"."""
    model, whole, _, _ = made("gpt2")
    whole["labels"] = torch.tensor([0, 1, 2, 0, 1, 2])
    expected = model(**whole).loss.item()
    parts = [{name: value[part] for name, value in whole.items()} for part in (slice(0, 4), slice(4, 6))]
    assert sum(model(**part, num_items_in_batch=6).loss.item() for part in parts) == pytest.approx(
        expected, abs=1e-6
    )
    model.config.lm_loss_reduction = "token"
    expected = model(**whole).loss.item()
    inexact = sum(model(**part, num_items_in_batch=6).loss.item() for part in parts)
    assert 1e-4 < abs(inexact - expected) < 0.2 * expected  # near, and not twice as much


def break_head(model):
    def head(*_, **__):
        raise AssertionError("the head over the vocabulary was computed")

    model.get_output_embeddings().forward = head


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt", "llama", "bert", "roberta", "lstm-lm"])
def test_lambda_zero_never_computes_the_head(kind):
    texts, labels = examples("classes")
    whole = batch(kind, "classes", texts, labels)
    model = joint(kind, lm_loss_weight=0.0).train()
    expected = joint(kind)(**whole)
    break_head(model)
    found = model(**whole)
    assert found.lm_loss is None
    assert found.loss.item() == found.task_loss.item() == pytest.approx(expected.task_loss.item(), abs=1e-6)
    other = joint(kind)
    break_head(other)
    assert other(**whole, lm_loss_weight=0.0).lm_loss is None
    del whole["labels"]
    whole.pop("lm_targets", None)
    torch.testing.assert_close(
        other(**whole).logits, expected.logits
    )  # no labels: nothing but the task's logits
    assert other(**whole).loss is None
    with pytest.raises(AssertionError, match="head over the vocabulary"):
        other(**whole, labels=torch.tensor(labels), lm_targets=whole["input_ids"])


def test_lambda_zero_of_the_bilm():
    texts, labels = examples("classes")
    model = joint("elmo", lm_loss_weight=0)
    model.language_model.forward = None
    found = model(**batch("elmo", "classes", texts, labels))
    expected = naive_task_loss(model, "elmo", "classes", texts, labels)
    assert found.loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert found.forward_loss is None


def test_both_directions_of_the_bilm_are_named():
    model, whole, _, _ = made("elmo")
    found = model(**whole)
    assert (found.forward_loss + found.backward_loss).item() / 2 == pytest.approx(found.lm_loss.item())
    assert abs(found.forward_loss - found.backward_loss) > 1e-3
    assert set(found) == {"loss", "logits", "task_loss", "lm_loss", "forward_loss", "backward_loss"}


def test_the_bilm_over_characters():
    from heirloom.modeling.configuration_elmo import ElmoConfig
    from heirloom.modeling.modeling_elmo import ElmoForPreTraining
    from heirloom.tokenization.tokenization_elmo import ElmoTokenizer

    tokenizer = ElmoTokenizer.from_words(["a", "b", "c"], max_characters_per_token=10)
    sizes = {
        "char_filters": [[1, 4], [2, 4]],
        "char_embedding_size": 4,
        "projection_size": 8,
        "cell_size": 12,
    }
    config = ElmoConfig(
        **sizes, vocab_size=len(tokenizer), max_characters_per_token=10, num_highway_layers=1, dropout=0.0
    )
    bilm = ElmoForPreTraining(config)
    model = JointLossForSequenceClassification.from_backbone_pretrained(bilm, num_labels=2, lm_loss_weight=2)
    tokens = tokenizer(
        [["a", "b", "new"], ["c"]], is_split_into_words=True, padding=True, return_tensors="pt"
    )
    found = model(**tokens, labels=torch.tensor([0, 1]))
    expected = bilm(char_ids=tokens["char_ids"], labels=tokens["input_ids"])
    assert found.lm_loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    assert found.loss.item() == pytest.approx((found.task_loss + 2 * expected.loss).item(), abs=1e-6)
    vectors = bilm.elmo(char_ids=tokens["char_ids"]).last_hidden_state
    pooled = torch.stack([vectors[0].mean(0), vectors[1, 0]])
    torch.testing.assert_close(found.logits, model.classifier(pooled))
    replay = {"lm_char_ids": tokens["char_ids"][:1], "lm_input_ids": tokens["input_ids"][:1]}
    one = model(**tokens, labels=torch.tensor([0, 1]), **replay).lm_loss
    alone = bilm(char_ids=tokens["char_ids"][:1], labels=tokens["input_ids"][:1]).loss
    assert one.item() == pytest.approx(alone.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_second_text_is_for_the_language_model_alone(kind):
    """Clean text for the task and its corrupted copy, or text from elsewhere in another shape, for the language model."""
    model, whole, texts, labels = made(kind)
    clean = {name: value for name, value in whole.items() if name != "lm_targets"}
    flat = [row for rows in texts for row in rows]
    clean["input_ids"] = pad(flat, 0, clean["input_ids"].shape[1])
    more, _ = examples("classes", count=9)
    other = batch(kind, "classes", more, [0] * 9)
    stream = {"lm_input_ids": other["input_ids"], "lm_attention_mask": other["attention_mask"]}
    if kind == "bert":
        stream["lm_targets"] = other["lm_targets"]
    found = model(**clean, **stream)
    task = joint(kind, lm_loss_weight=0)(**clean).loss
    lm = naive_lm_loss(model, kind, more)
    assert found.task_loss.item() == pytest.approx(task.item(), abs=1e-6)
    assert found.lm_loss.item() == pytest.approx(lm.item(), abs=1e-6)
    assert int(model.count_lm_items({**clean, **stream})) == 9
    # Unhidden rows, as a causal model's: the twin hides tokens of masked models only.
    task_alone = naive_task_loss(model, "gpt2", "classes", texts, labels)
    task_alone.backward()
    (0.5 * lm).backward()
    expected = gradients(model)
    found.loss.backward()
    assert largest_difference(gradients(model), expected) < 1e-6
    assert task_alone.item() == pytest.approx(task.item(), abs=1e-6)


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt", "llama", "lstm-lm"])
def test_no_position_sees_the_future(kind):
    lm = language_model(kind)
    before = lm.config.to_dict(), getattr(lm.config, "_attn_implementation", None)
    ids = torch.randint(5, MASK, (2, 7))
    other = ids.clone()
    other[:, -1] = 5 + (other[:, -1] - 4) % 30
    alone = lm(ids).logits
    model = HEADS["tokens"].from_backbone_pretrained(lm, num_labels=3)
    assert (lm.config.to_dict(), getattr(lm.config, "_attn_implementation", None)) == before
    torch.testing.assert_close(model.language_model(ids).logits, alone, rtol=0, atol=0)
    fresh = HEADS["tokens"](model.config)  # built from the config, not handed over
    for one in (model, fresh):
        first, second = one.eval()(ids).logits, one(other).logits
        torch.testing.assert_close(first[:, :-1], second[:, :-1])
        assert (first[:, -1] - second[:, -1]).abs().max() > 1e-4


def test_token_types_reach_masked_models_only():
    types = torch.ones(1, 5, dtype=torch.long)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    for kind, differs in (("gpt2", False), ("openai-gpt", False), ("bert", True), ("lstm-lm", False)):
        model = joint(kind)
        change = (model(ids, token_type_ids=types).logits - model(ids).logits).abs().max()
        assert bool(change > 1e-6) == differs, kind


def test_pooling():
    hidden = torch.randn(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    rows = torch.arange(3)
    assert torch.equal(pool_rows(hidden, mask, "last"), hidden[rows, [1, 3, 3]])
    assert torch.equal(pool_rows(hidden, mask, "first"), hidden[rows, [0, 1, 0]])
    mean = torch.stack([hidden[0, :2].mean(0), hidden[1, 1:].mean(0), hidden[2].mean(0)])
    torch.testing.assert_close(pool_rows(hidden, mask, "mean"), mean)
    ids = torch.tensor([[5, 9, 9, 9], [9, 5, 9, 9], [5, 9, 5, 9]])
    assert torch.equal(pool_rows(hidden, mask, "classify_token", ids, 9), hidden[rows, [1, 2, 1]])
    with pytest.raises(ValueError, match="token 9, found 1 of 3 rows without it. Put it at the end"):
        pool_rows(hidden, mask, "classify_token", ids.masked_fill(rows[:, None] == 0, 5), 9)
    with pytest.raises(ValueError, match="pass input_ids, not inputs_embeds"):
        pool_rows(hidden, mask, "classify_token", None, 9)


def test_pooling_goes_by_the_mask_and_not_by_a_padding_token():
    """Where the padding token is the end mark too, the end mark is read all the same; no padding token is needed."""
    ids = torch.tensor([[7, 8, 1], [7, 8, 9]])
    with_pad, without = joint("gpt2", backbone={"pad_token_id": 1}), joint("gpt2")
    assert without.config.text_config.pad_token_id is None
    found = with_pad(ids).logits
    torch.testing.assert_close(found, without(ids).logits)
    vectors = with_pad.language_model.transformer(ids).last_hidden_state
    torch.testing.assert_close(found, with_pad.classifier(vectors[:, -1]))
    longer = torch.cat([ids, torch.full((2, 2), 1)], 1)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 2)
    torch.testing.assert_close(found, with_pad(longer, mask).logits)


def test_reading_at_the_classify_token():
    model = joint("gpt2", pooling="classify_token", classify_token_id=38)
    ids = torch.tensor([[7, 8, 38, 9], [38, 8, 9, 38]])
    vectors = model.language_model.transformer(ids).last_hidden_state
    torch.testing.assert_close(model(ids).logits, model.classifier(vectors[[0, 1], [2, 0]]))


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_vectors_instead_of_tokens(kind):
    model, whole, _, _ = made(kind)
    embedded = model.get_input_embeddings()(whole["input_ids"])
    targets = whole.get("lm_targets", whole["input_ids"])
    expected = model(**whole | {"lm_targets": targets})
    del whole["input_ids"]
    found = model(**whole | {"inputs_embeds": embedded, "lm_targets": targets})
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)


def test_problem_types():
    logits, numbers = torch.randn(4, 1), torch.tensor([0.5, -100, 2.0, 1.0])
    known = numbers != -100
    expected = torch.nn.functional.mse_loss(logits[known, 0], numbers[known])
    torch.testing.assert_close(task_mean(logits, numbers), expected)
    torch.testing.assert_close(task_mean(logits, numbers, "regression", 6), expected / 2)
    several, logits = torch.tensor([[0, 1.0], [-100, 1], [-100, -100]]), torch.randn(3, 2)
    known = several != -100
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], several[known])
    torch.testing.assert_close(task_mean(logits, several), expected)
    torch.testing.assert_close(
        task_mean(logits, several.long(), "multi_label_classification", 6), expected / 2
    )
    model = joint("gpt2", "similarity", num_labels=1)
    ids = torch.randint(5, MASK, (3, 2, 6))
    found = model(ids, labels=torch.tensor([1.0, -100, 0.0]))
    expected = (found.logits[0, 0] - 1) ** 2 / 2 + found.logits[2, 0] ** 2 / 2
    assert found.task_loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_similarity_does_not_know_an_order():
    model, ids = joint("gpt2", "similarity"), torch.randint(5, MASK, (3, 2, 6))
    torch.testing.assert_close(model(ids).logits, model(ids.flip(1)).logits)


def test_dropout_is_one_mask_for_all_choices():
    model = joint("gpt2", "choices", classifier_dropout=0.5).train()
    ids = torch.randint(5, MASK, (1, 1, 6)).expand(4, 3, 6)  # equal choices
    scores = model(ids).logits
    torch.testing.assert_close(scores, scores[:, :1].expand_as(scores))
    assert len(set(scores[:, 0].tolist())) > 1
    for head in ("classes", "tokens"):
        model = joint("gpt2", head, classifier_dropout=0.5)
        rows = ids[:, 0]
        assert torch.equal(model(rows).logits, model(rows).logits)
        model.train()
        assert not torch.equal(model(rows).logits, model(rows).logits)


def test_lambda_of_one_call():
    model, whole, _, _ = made("gpt2")
    found = model(**whole, lm_loss_weight=3.0)
    assert found.loss.item() == pytest.approx((found.task_loss + 3 * found.lm_loss).item(), abs=1e-6)
    assert model.config.lm_loss_weight == 0.5


def test_outputs_as_a_tuple():
    model, whole, _, _ = made("gpt2")
    found, parts = model(**whole), model(**whole, return_dict=False)
    assert all(map(torch.equal, found.to_tuple(), parts))
    assert list(found) == ["loss", "logits", "task_loss", "lm_loss"]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_activation_checkpointing_changes_nothing(kind):
    model, whole, _, _ = made(kind)
    model.train()(**whole).loss.backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model(**whole).loss.backward()
    assert largest_difference(gradients(model), expected) < 1e-9


def test_activation_checkpointing_is_refused_where_the_language_model_has_none():
    with pytest.raises(ValueError, match="does not support"):
        joint("openai-gpt").gradient_checkpointing_enable()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind, head):
    texts, labels = examples(head)
    whole = batch(kind, head, texts, labels)
    expected = joint(kind, head, torch.float32)(**whole).loss.item()
    for autocast in (True, False):
        model = joint(kind, head, torch.float32 if autocast else torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(**whole).loss
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=0.1)
        assert all(value.isfinite().all() for value in gradients(model).values())


IDS = torch.randint(5, MASK, (2, 6), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("head", "options", "inputs", "words"),
    [
        ("classes", {}, {"labels": torch.tensor([0, 3])}, r"labels must lie in 0..2 .*found 0..3"),
        (
            "classes",
            {"num_labels": 1},
            {"labels": LABELS},
            "num_labels is 1, and a single class teaches nothing",
        ),
        ("tokens", {"num_labels": 1}, {"labels": IDS}, "a single class teaches nothing"),
        ("tokens", {}, {"labels": LABELS}, r"labels must be \(B, T\) = \(2, 6\) classes, found \(2,\)"),
        ("similarity", {}, {}, r"input_ids must be \(B, 2, T\) for JointLossForSimilarity.*found \(2, 6\)"),
        ("choices", {}, {}, r"input_ids must be \(B, C, T\) for JointLossForMultipleChoice"),
        (
            "choices",
            {},
            {"input_ids": IDS[:, None].expand(2, 3, 6), "labels": torch.tensor([0, 3])},
            r"numbers of right choices in 0..2 \(or -100\), found shape \(2,\) and \[0, 3\]",
        ),
        (
            "classes",
            {},
            {"input_ids": torch.full((1, POSITIONS + 1), 5)},
            f"has {POSITIONS} positions, found rows of {POSITIONS + 1}. Cut them when tokenizing",
        ),
        ("classes", {}, {"input_ids": IDS + VOCAB}, r"input_ids must lie in 0..39, found"),
        (
            "classes",
            {},
            {"input_ids": None},
            r"must hold input_ids and agree in rows and positions, found \(\)",
        ),
        ("classes", {}, {"attention_mask": torch.ones(2, 5)}, r"\(input_ids, attention_mask\) of 2 shapes"),
        (
            "classes",
            {},
            {"lm_targets": IDS[:, 1:]},
            r"lm_targets must be .* \(2, 6\) .*found \(2, 5\). Shift nothing",
        ),
        ("classes", {}, {"lm_targets": IDS + VOCAB}, r"lm_targets must lie in 0..39, found"),
        ("classes", {}, {"lm_targets": IDS - VOCAB}, r"lm_targets must lie in 0..39, found"),
        ("classes", {}, {"lm_attention_mask": IDS}, r"must hold lm_input_ids"),
        ("classes", {}, {"lm_loss_weight": -0.5}, r"lm_loss_weight must be at least 0, found -0.5"),
        ("classes", {}, {"lm_loss_weight": float("nan")}, r"lm_loss_weight must be at least 0, found nan"),
        ("classes", {}, {"lm_input_ids": IDS + VOCAB}, r"lm_input_ids must lie in 0..39"),
    ],
)
def test_bad_inputs(head, options, inputs, words):
    for kind in ("gpt2", "roberta"):
        with pytest.raises(ValueError, match=words):
            joint(kind, head, **options)(**{"input_ids": IDS} | inputs)


def test_a_masked_model_is_not_trained_on_what_it_sees():
    model = joint("bert")
    assert model(IDS, labels=LABELS).lm_loss is None  # evaluation without targets: the task alone
    with pytest.raises(
        ValueError, match="lm_loss_weight is 0.5, but nothing says.*collator that hides tokens"
    ):
        model.train()(IDS, labels=LABELS)
    assert model(IDS, labels=LABELS, lm_loss_weight=0).loss > 0
    with pytest.raises(ValueError, match="with inputs_embeds or char_ids alone give lm_targets too"):
        joint("gpt2").train()(inputs_embeds=torch.randn(2, 6, 16).double(), labels=LABELS)
