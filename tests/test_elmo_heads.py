"""Losses and logits of the four models with heads: against the naive biLM, under accumulation, frozen, in half precision."""

import math

import numpy as np
import pytest
import torch
from reference.bilm_files import (
    SENTENCES,
    build,
    char_ids,
    config,
    difference,
    naive_batch,
    random_weights,
    tiny_options,
)
from reference.bilm_naive import NaiveBilm, scalar_mix

from heirloom.modeling.losses import classification_loss, mean_of_all
from heirloom.modeling.modeling_elmo import (
    ElmoForPreTraining,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
)
from heirloom.modeling.pooling import pool

WORDS = 12  # lines of the vocabulary, ids 1..12
OPTIONS = tiny_options()
WEIGHTS = random_weights(OPTIONS, words=WORDS)
BODY = {name: array for name, array in WEIGHTS.items() if not name.startswith("softmax")}
LABELS = [[3, 4, 5, 6, 7, 8, 9], [10, 11], [3, 3, -100, 12, 4, -100], [5], []]


def language_model(dtype=torch.float64) -> ElmoForPreTraining:
    return build(ElmoForPreTraining, OPTIONS, WEIGHTS, dtype)


def head(model_class, dtype=torch.float64, **changes):
    """A head on the same biLM, its classifier and mix far from their initial values, without dropout."""
    torch.manual_seed(0)
    choices = {"head_dropout": 0.0, "dropout": 0.0, "num_labels": 3} | changes
    model = build(model_class, OPTIONS, BODY, dtype, **choices)
    torch.nn.init.normal_(model.classifier.weight)
    torch.nn.init.normal_(model.mix.scalar_parameters)
    torch.nn.init.constant_(model.mix.gamma, 0.7)
    return model


def table(rows, fill=-100) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows])


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("fill", [-100, 0, 7])
def test_the_language_models_losses_are_the_twins(fill):
    model = language_model()
    found = model(char_ids=char_ids(SENTENCES), labels=table(LABELS, fill))
    forward, backward = NaiveBilm(OPTIONS, WEIGHTS).losses(naive_batch(SENTENCES), LABELS)
    assert found.forward_loss.item() == pytest.approx(forward, abs=1e-6)
    assert found.backward_loss.item() == pytest.approx(backward, abs=1e-6)
    assert found.loss.item() == pytest.approx((forward + backward) / 2, abs=1e-6)
    assert found.forward_logits is None
    assert abs(forward - backward) > 1e-2


def test_the_language_model_does_not_care_for_the_side_of_the_padding():
    model, ids, labels = language_model(), char_ids(SENTENCES), table(LABELS)
    left, left_labels = torch.zeros_like(ids), torch.full_like(labels, -100)
    for row, words in enumerate(SENTENCES):
        if words:
            left[row, -len(words) :] = ids[row, : len(words)]
            left_labels[row, -len(words) :] = labels[row, : len(words)]
    assert model(char_ids=left, labels=left_labels).loss.item() == pytest.approx(
        model(char_ids=ids, labels=labels).loss.item(), abs=1e-6
    )
    right, logits = model(char_ids=ids).forward_logits, model(char_ids=left).forward_logits
    assert difference(logits[0, :, 1:], right[0, :, 1:]) < 1e-12
    assert difference(logits[1, -2:, 1:], right[1, :2, 1:]) < 1e-12


def test_logits_stand_at_the_word_that_they_predict():
    model, ids = language_model(), char_ids(SENTENCES)
    found = model(char_ids=ids, output_hidden_states=True)
    naive = NaiveBilm(OPTIONS, WEIGHTS)
    layers, _ = naive.run(naive_batch(SENTENCES))
    size = OPTIONS["lstm"]["projection_dim"]
    for row, words in enumerate(SENTENCES):
        for t in range(len(words)):  # position t of the words is t + 1 with marks
            from_left = naive.log_probabilities(layers[row][-1][t, :size])
            from_right = naive.log_probabilities(layers[row][-1][t + 2, size:])
            for logits, expected in ((found.forward_logits, from_left), (found.backward_logits, from_right)):
                logs = logits[row, t].log_softmax(0)
                assert logs[0] == -math.inf  # padding is no word
                assert difference(logs[1:], expected) < 1e-10
    assert found.forward_logits.shape == (5, 7, WORDS + 1)
    assert len(found.hidden_states) == 3
    assert found.loss is None


def test_logits_and_losses_agree():
    """On a sentence whose words are all labels, the losses are the logits' plus that of the mark."""
    model, labels = language_model(), torch.tensor([[3, 4]])
    one, two = char_ids([["a", "b"]]), char_ids([["a", "b", "c"]])
    logits = model(char_ids=one).forward_logits.log_softmax(-1)
    end = model(char_ids=two).forward_logits[0, 2].log_softmax(0)[2]  # P(</S> | <S> a b)
    expected = -(logits[0, 0, 3] + logits[0, 1, 4] + end) / 3
    assert model(char_ids=one, labels=labels).forward_loss.item() == pytest.approx(expected.item(), abs=1e-6)


def language_batches():
    ids, labels = char_ids(SENTENCES), table(LABELS)
    parts = [slice(0, 1), slice(1, 3), slice(3, 5)]
    model = language_model().train()
    model.elmo.lstm.dropout = model.config.dropout = 0.0
    counts = lambda labels: ElmoForPreTraining.count_targets({"labels": labels})  # noqa: E731
    return model, [{"char_ids": ids[part], "labels": labels[part]} for part in parts], counts


def head_batches(model_class, problem=None, **changes):
    ids, parts = char_ids(SENTENCES), [slice(0, 1), slice(1, 3), slice(3, 5)]
    generator = torch.Generator().manual_seed(1)
    if model_class is ElmoForTokenClassification:
        labels = torch.randint(0, 3, ids.shape[:2], generator=generator)
        labels[(ids == 0).all(2)] = -100
    elif problem == "single_label_classification":
        labels = torch.tensor([0, 2, -100, 1, 1])
    elif problem == "regression":
        labels = torch.randn(5, generator=generator)
        changes["num_labels"] = 1
    else:
        labels = torch.randint(0, 2, (5, 3), generator=generator).double()
    model = head(model_class, mix_l2=0.3, problem_type=problem, **changes)
    counts = lambda labels: (labels != -100).sum()  # noqa: E731, as Trainer counts
    return model, [{"char_ids": ids[part], "labels": labels[part]} for part in parts], counts


KINDS = {
    "language model": language_batches,
    "tokens": lambda: head_batches(ElmoForTokenClassification),
    "tokens, frozen": lambda: head_batches(ElmoForTokenClassification, freeze_bilm=True),
    "classes": lambda: head_batches(ElmoForSequenceClassification, "single_label_classification"),
    "regression": lambda: head_batches(ElmoForSequenceClassification, "regression"),
    "several labels": lambda: head_batches(ElmoForSequenceClassification, "multi_label_classification"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_batch_sum_to_the_whole(kind):
    model, parts, count = KINDS[kind]()
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    loss = model(**whole).loss
    loss.backward()
    expected, items = gradients(model), count(whole["labels"])
    again = model(**whole, num_items_in_batch=items).loss
    losses = [model(**part, num_items_in_batch=items).loss for part in parts]
    sum(losses).backward()
    found = gradients(model)
    assert again.item() == pytest.approx(loss.item(), abs=1e-6)
    assert sum(losses).item() == pytest.approx(loss.item(), abs=1e-6)
    assert found.keys() == expected.keys()
    assert max(difference(found[name], expected[name]) for name in found) < 1e-6
    assert all(gradient.abs().max() > 0 for gradient in found.values())
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained
    if kind == "tokens, frozen":
        heads = {"mix.scalar_parameters", "mix.gamma", "classifier.weight", "classifier.bias"}
        assert trained == heads


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_learn_is_zero_and_not_nan(kind):
    model, (part, *_), _ = KINDS[kind]()
    if part["labels"].is_floating_point():
        part = {name: value[:0] for name, value in part.items()}
    elif kind != "language model":  # a language model still predicts the sentence marks
        part["labels"] = torch.full_like(part["labels"], -100)
    else:
        part = {name: value[:0] for name, value in part.items()}
    loss = model(**part).loss
    loss.backward()
    assert loss == 0
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_a_language_model_without_known_words_predicts_the_marks():
    model = language_model()
    unknown = [[-100] * len(words) for words in SENTENCES]
    found = model(char_ids=char_ids(SENTENCES), labels=table(unknown))
    forward, backward = NaiveBilm(OPTIONS, WEIGHTS).losses(naive_batch(SENTENCES), unknown)
    assert (found.forward_loss.item(), found.backward_loss.item()) == pytest.approx(
        (forward, backward), abs=1e-6
    )


def test_targets_are_labelled_words_and_one_mark_a_row():
    for fill in (-100, 0):
        assert ElmoForPreTraining.count_targets({"labels": table(LABELS, fill)}) == 7 + 2 + 4 + 1 + 5


@pytest.mark.parametrize("norm", ["none", "allennlp", "bilm-tf"])
def test_token_logits_are_the_twins_mix_and_a_linear_layer(norm):
    model = head(ElmoForTokenClassification, mix_layer_norm=norm)
    found = model(char_ids=char_ids(SENTENCES))
    layers, _ = NaiveBilm(OPTIONS, BODY).run(naive_batch(SENTENCES))
    weights, gamma = model.mix.scalar_parameters.detach().numpy(), model.mix.gamma.item()
    mixed = scalar_mix(layers, weights, gamma, None if norm == "none" else norm)
    weight, bias = model.classifier.weight.detach().numpy(), model.classifier.bias.detach().numpy()
    for row, plane in enumerate(mixed):
        assert difference(found.logits[row, : len(plane)], plane @ weight.T + bias) < 1e-10
        assert difference(found.logits[row, len(plane) :], np.tile(bias, (7 - len(plane), 1))) < 1e-12


@pytest.mark.parametrize("pooling", ["mean", "max", "boundary"])
def test_sentence_logits_are_pooled_over_words_only(pooling):
    model = head(ElmoForSequenceClassification, pooling=pooling, mix_layers=[0, 2])
    found = model(char_ids=char_ids(SENTENCES)).logits
    layers, _ = NaiveBilm(OPTIONS, BODY).run(naive_batch(SENTENCES))
    kept = [[sentence[0], sentence[2]] for sentence in layers]
    weights = model.mix.scalar_parameters.detach().numpy()[[0, 2]]
    weight, bias = model.classifier.weight.detach().numpy(), model.classifier.bias.detach().numpy()
    for row, plane in enumerate(scalar_mix(kept, weights, model.mix.gamma.item())):
        half = plane.shape[1] // 2
        if not len(plane):
            vector = np.zeros(plane.shape[1])
        elif pooling == "boundary":
            vector = np.concatenate([plane[-1, :half], plane[0, half:]])
        else:
            vector = plane.mean(0) if pooling == "mean" else plane.max(0)
        assert difference(found[row], weight @ vector + bias) < 1e-10


@pytest.mark.parametrize("pooling", ["mean", "max", "boundary"])
def test_pooling_with_holes_and_without_words(pooling):
    vectors = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[0, 1, 0, 1, 0], [0] * 5]).bool()
    found = pool(vectors, mask, pooling)
    words = vectors[0, [1, 3]]
    expected = {
        "mean": words.mean(0),
        "max": words.amax(0),
        "boundary": torch.cat([words[1, :2], words[0, 2:]]),
    }
    torch.testing.assert_close(found, torch.stack([expected[pooling], torch.zeros(4)]))
    assert pool(vectors[:, :0], mask[:, :0], pooling).tolist() == [[0.0] * 4] * 2
    assert pool(vectors[:0], mask[:0], pooling).shape == (0, 4)


@pytest.mark.parametrize("freeze", [True, False])
def test_freezing_begins_with_the_model(freeze):
    model = ElmoForTokenClassification(config(OPTIONS, BODY, freeze_bilm=freeze))
    assert {parameter.requires_grad for parameter in model.elmo.parameters()} == {not freeze}


def test_the_frozen_bilm_has_no_dropout_and_no_graph():
    model = head(ElmoForTokenClassification, freeze_bilm=True, dropout=0.5).train()
    ids = char_ids(SENTENCES)
    assert not model.elmo.training
    assert model.training
    first, second = model(char_ids=ids), model(char_ids=ids)
    assert torch.equal(first.logits, second.logits)
    assert not any(layer.requires_grad for layer in first.hidden_states)
    free = head(ElmoForTokenClassification, dropout=0.5).train()
    assert free.elmo.training
    assert not torch.equal(free(char_ids=ids).logits, free(char_ids=ids).logits)
    assert torch.equal(free.eval()(char_ids=ids).logits, first.logits)


def test_head_dropout_is_off_in_evaluation():
    model, ids = head(ElmoForSequenceClassification, head_dropout=0.5), char_ids(SENTENCES)
    assert torch.equal(model(char_ids=ids).logits, model(char_ids=ids).logits)
    model.train()
    assert not torch.equal(model(char_ids=ids).logits, model(char_ids=ids).logits)


def test_the_l2_term_is_in_the_loss_once():
    ids, labels = char_ids(SENTENCES), torch.tensor([0, 2, 1, 1, 0])
    plain = head(ElmoForSequenceClassification)(char_ids=ids, labels=labels).loss
    model = head(ElmoForSequenceClassification, mix_l2=0.5)
    expected = plain + 0.5 * model.mix.scalar_parameters.square().sum()
    assert model(char_ids=ids, labels=labels).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_language_models_last_dropout_is_for_training():
    model, ids, labels = language_model(), char_ids(SENTENCES), table(LABELS)
    plain = model(char_ids=ids, labels=labels).loss
    model.config.dropout = 0.5  # the LSTM's own was read when the model was made
    model.elmo.lstm.dropout = 0.0
    assert torch.equal(model(char_ids=ids, labels=labels).loss, plain)
    model.train()
    losses = [model(char_ids=ids, labels=labels).loss.item() for _ in range(2)]
    assert losses[0] != losses[1]
    assert plain.item() not in losses


def test_heads_take_and_return_states():
    ids = char_ids(SENTENCES)
    for model in (language_model(), head(ElmoForTokenClassification), head(ElmoForSequenceClassification)):
        body = model.elmo(char_ids=ids)
        found = model(char_ids=ids)
        assert all(map(torch.equal, found.states, body.states))
        second = model(char_ids=ids, states=found.states)
        expected = model.elmo(char_ids=ids, states=body.states)
        assert max(map(difference, second.states, expected.states)) < 1e-12


def test_classification_losses():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    classes, several = torch.tensor([0, -100, 2, 1]), torch.tensor([[0, 1, 1.0]] * 4)
    cross = torch.nn.functional.cross_entropy(logits, classes)
    torch.testing.assert_close(classification_loss(logits, classes), cross)
    torch.testing.assert_close(
        classification_loss(logits, classes, "single_label_classification", 6), cross / 2
    )
    binary = torch.nn.functional.binary_cross_entropy_with_logits(logits, several)
    torch.testing.assert_close(classification_loss(logits, several), binary)
    numbers = torch.tensor([1.0, 2.0, 3.0, 4.0])
    squares = torch.nn.functional.mse_loss(logits[:, 0], numbers)
    torch.testing.assert_close(classification_loss(logits[:, :1], numbers), squares)
    torch.testing.assert_close(classification_loss(logits[:, :1], numbers.long()), squares)
    torch.testing.assert_close(classification_loss(logits[:, :1], numbers[:, None]), squares)
    torch.testing.assert_close(
        classification_loss(logits, several, "regression"), torch.nn.functional.mse_loss(logits, several)
    )
    assert classification_loss(logits, torch.full((4,), -100)) == 0
    assert mean_of_all(torch.tensor(6.0), 2, torch.tensor(4)) == 1.5
    assert mean_of_all(torch.tensor(0.0), 0) == 0


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind, autocast):
    model, (_, part, _), _ = KINDS[kind]()
    expected = model(**part).loss.item()
    model = model.to(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(**part).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, abs=0.3)
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_the_stock_trainer_accumulates_exactly(tmp_path):
    from transformers import DataCollatorForTokenClassification, Trainer, TrainingArguments

    from heirloom import ElmoTokenizer

    tokenizer, rows = ElmoTokenizer(), []
    for number in range(12):
        words = SENTENCES[0][: 1 + number % 5]
        encoded = tokenizer(words, is_split_into_words=True)
        rows.append({**encoded, "labels": [(number + t) % 3 for t in range(len(words))]})
    weights = []
    for batch, accumulate in ((4, 1), (2, 2), (1, 4)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            max_steps=3,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.5,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        )
        model = head(ElmoForTokenClassification, torch.float32, mix_l2=0.01)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        collator = DataCollatorForTokenClassification(tokenizer)
        trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator)
        trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)
        trainer.train()
        weights.append({name: value.cpu() for name, value in model.state_dict().items()})
        assert all(not torch.equal(weights[-1][name], value) for name, value in start.items())
    for other in weights[1:]:
        assert max(difference(other[name], weights[0][name]) for name in other) < 1e-5
