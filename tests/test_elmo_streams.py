"""A biLM over two endless streams: against the naive one, cut in pieces, beside whole sentences, and with bad batches."""

import pytest
import torch
from reference.bilm_files import build, char_ids, difference, random_weights, state_dict, tiny_options
from reference.bilm_naive import NaiveBilm, character_ids
from reference.bilm_streams_naive import read_streams, stream_losses
from torch.nn import functional as F

from heirloom.modeling.modeling_elmo import ElmoForPreTraining, ElmoModel

WORDS = 9  # lines of the vocabulary: <S>, </S>, <UNK> and a..f
OPTIONS = tiny_options(cnn_max_characters_per_token=8)
KINDS = {  # options, weights
    "characters": (OPTIONS, random_weights(OPTIONS, words=WORDS)),
    "words": (
        OPTIONS | {"char_cnn": None},
        random_weights(OPTIONS | {"char_cnn": None}, words=WORDS, word_size=6),
    ),
    "both": (OPTIONS, random_weights(OPTIONS, words=WORDS, word_size=5)),
}
SPELLED = [None, "<S>", "</S>", "<UNK>", *"abcdef"]  # by word id
TEXT = [[1, 4, 5, 6, 2, 1, 7], [5, 2, 1, 9, 9, 8, 4]]
BACK = [[2, 8, 8, 4, 1, 2, 9], [1, 2, 6, 5, 4, 1, 2]]
LABELS = [[4, 5, 6, 2, 1, 7, 3], [2, 1, 9, 9, 8, 4, -100]]
BACK_LABELS = [[8, 8, 4, 1, 2, 9, 9], [-100, 6, 5, 4, 1, 2, -100]]


def model_of(kind: str, dtype=torch.float64, **changes) -> ElmoForPreTraining:
    return build(ElmoForPreTraining, *KINDS[kind], dtype, **({"dropout": 0.0} | changes))


def spelled(rows) -> torch.Tensor:
    return char_ids([[SPELLED[word] for word in row] for row in rows], 8)


def batch_of(
    kind: str, text=TEXT, back=BACK, labels=LABELS, back_labels=BACK_LABELS
) -> dict[str, torch.Tensor]:
    batch = {}
    for prefix, rows, targets in (("", text, labels), ("backward_", back, back_labels)):
        if kind != "characters":
            batch[f"{prefix}input_ids"] = torch.tensor(rows)
        if kind != "words":
            batch[f"{prefix}char_ids"] = spelled(rows)
        if targets is not None:
            batch[f"{prefix}labels"] = torch.tensor(targets)
    return batch


def without_labels(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if "labels" not in name}


def part_of(batch: dict, lanes=slice(None), steps=slice(None)) -> dict:
    return {name: value[lanes, steps] for name, value in batch.items()}


def given_states(rows=2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, rows, size, generator=generator).double() for size in (12, 20))


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("carried", [False, True])
def test_the_naive_bilm_reads_the_same(kind, carried):
    states = given_states() if carried else None
    model, naive = model_of(kind), NaiveBilm(*KINDS[kind])
    lanes = [
        [[(word, character_ids(SPELLED[word], 8)) for word in row] for row in rows] for rows in (TEXT, BACK)
    ]
    top, after = read_streams(naive, *lanes, states)
    batch = batch_of(kind)
    found = model(**batch, states=states)
    assert [difference(*pair) < 1e-12 for pair in zip(found.states, after, strict=True)] == [True, True]
    losses = stream_losses(naive, top, LABELS, BACK_LABELS)
    assert found.forward_loss.item() == pytest.approx(losses[0], abs=1e-12)
    assert found.backward_loss.item() == pytest.approx(losses[1], abs=1e-12)
    assert found.loss.item() == pytest.approx(sum(losses) / 2, abs=1e-12)
    assert found.loss.dtype == torch.float64
    assert (found.sampled_loss, found.forward_logits, found.hidden_states) == (None, None, None)
    ids = [(batch.get(f"{prefix}input_ids"), batch.get(f"{prefix}char_ids")) for prefix in ("", "backward_")]
    hidden, again = model.elmo.read_streams(*ids, states)
    assert difference(hidden, top) < 1e-12
    assert all(map(torch.equal, again, found.states))


def test_gradients_are_those_of_the_plain_computation():
    """Logits and torch's own cross-entropy give the gradients that the loss gives."""
    model, batch = model_of("both"), batch_of("both")
    model(**batch).loss.backward()
    found = gradients(model)
    logits = model(**without_labels(batch))
    sides = (logits.forward_logits, batch["labels"]), (logits.backward_logits, batch["backward_labels"])
    (sum(F.cross_entropy(side.flatten(0, 1), labels.flatten()) for side, labels in sides) / 2).backward()
    expected = gradients(model)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert difference(found[name], gradient) < 1e-10, name


@pytest.mark.parametrize("kind", KINDS)
def test_logits_without_labels(kind):
    model, batch = model_of(kind), batch_of(kind)
    found = model(**without_labels(batch))
    losses = model(**batch)
    assert found.loss is None
    for logits, labels, loss in (
        (found.forward_logits, batch["labels"], losses.forward_loss),
        (found.backward_logits, batch["backward_labels"], losses.backward_loss),
    ):
        assert logits.shape == (2, 7, WORDS + 1)
        assert (logits[..., 0] == -torch.inf).all()
        assert F.cross_entropy(logits.flatten(0, 1), labels.flatten()).item() == pytest.approx(loss.item())
    assert all(map(torch.equal, found.states, losses.states))


def test_adaptive_logits_are_log_probabilities():
    model = model_of_adaptive()
    batch = batch_of("characters")
    logits, losses = model(**without_labels(batch)), model(**batch)
    for side, labels, loss in (
        (logits.forward_logits, batch["labels"], losses.forward_loss),
        (logits.backward_logits, batch["backward_labels"], losses.backward_loss),
    ):
        assert side.shape == (2, 7, WORDS + 1)
        torch.testing.assert_close(side.exp().sum(2), torch.ones(2, 7, dtype=torch.float64))
        assert F.nll_loss(side.flatten(0, 1), labels.flatten()).item() == pytest.approx(loss.item())


def model_of_adaptive() -> ElmoForPreTraining:
    options, weights = KINDS["characters"]
    body = {name: array for name, array in weights.items() if not name.startswith("softmax")}
    changes = {"softmax": "adaptive", "adaptive_cutoffs": [4], "vocab_size": WORDS + 1, "dropout": 0.0}
    elmo = build(ElmoModel, options, body, torch.float64, **changes)
    model = ElmoForPreTraining(elmo.config).double().eval()
    model.elmo.load_state_dict(state_dict(body))
    for parameter in model.softmax.parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_as_a_stream_has_the_losses_of_the_sentence(kind):
    model, words = model_of(kind), [4, 7, 5, 9, 5]
    forward, backward = [1, *words, 2], [2, *reversed(words), 1]
    stream = batch_of(kind, [forward[:-1]], [backward[:-1]], [forward[1:]], [backward[1:]])
    sentence = {"labels": torch.tensor([words])}
    if kind != "characters":
        sentence["input_ids"] = sentence["labels"]
    if kind != "words":
        sentence["char_ids"] = spelled([words])
    found, expected = model(**stream), model(**sentence)
    for name in ("forward_loss", "backward_loss", "loss"):
        assert found[name].item() == pytest.approx(expected[name].item(), abs=1e-12)
    assert found.forward_loss.item() != pytest.approx(found.backward_loss.item(), abs=1e-3)
    logits = model(**without_labels(stream))
    whole = model(**without_labels(sentence))
    assert difference(logits.forward_logits[:, :-1, 1:], whole.forward_logits[..., 1:]) < 1e-12
    assert difference(logits.backward_logits[:, :-1, 1:], whole.backward_logits.flip(1)[..., 1:]) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_a_stream_in_two_is_the_stream_in_one(kind, cut):
    model, batch = model_of(kind), without_labels(batch_of(kind))
    whole = model(**batch, states=given_states())
    first = model(**part_of(batch, steps=slice(cut)), states=given_states())
    second = model(**part_of(batch, steps=slice(cut, None)), states=first.states)
    for name in ("forward_logits", "backward_logits"):
        joined = torch.cat([first[name], second[name]], 1)
        assert difference(joined[..., 1:], whole[name][..., 1:]) < 1e-12
    assert max(map(difference, second.states, whole.states)) < 1e-12
    assert not first.states[0].requires_grad
    cold = model(**part_of(batch, steps=slice(cut, None)))
    assert difference(cold.forward_logits[..., 1:], whole.forward_logits[:, cut:, 1:]) > 1e-2


@pytest.mark.parametrize("changed", ["forward", "backward"])
def test_a_direction_knows_nothing_of_the_others_stream(changed):
    model, other = model_of("characters"), [[9, 8, 7, 6, 5, 4, 3]] * 2
    one = model(**batch_of("characters"))
    text, back = (other, BACK) if changed == "forward" else (TEXT, other)
    two = model(**batch_of("characters", text, back))
    same, differs = (1, 0) if changed == "forward" else (0, 1)
    for states, others in zip(one.states, two.states, strict=True):
        assert difference(states.chunk(2, 2)[same], others.chunk(2, 2)[same]) < 1e-12
        assert difference(states.chunk(2, 2)[differs], others.chunk(2, 2)[differs]) > 1e-2
    losses = ("forward_loss", "backward_loss")
    assert one[losses[same]].item() == pytest.approx(two[losses[same]].item(), abs=1e-12)
    assert one[losses[differs]].item() != pytest.approx(two[losses[differs]].item(), abs=1e-3)


@pytest.mark.parametrize("step", [0, 3, 6])
def test_a_word_changes_nothing_before_it_and_nothing_in_other_lanes(step):
    model, (text, back) = model_of("characters"), ([list(row) for row in rows] for rows in (TEXT, BACK))
    one = model(**without_labels(batch_of("characters")))
    text[0][step] = back[0][step] = 3
    two = model(**without_labels(batch_of("characters", text, back)))
    for name in ("forward_logits", "backward_logits"):
        before, after = one[name][..., 1:], two[name][..., 1:]
        assert difference(before[0, :step], after[0, :step]) < 1e-12
        assert difference(before[1], after[1]) < 1e-12
        assert all((before[0, later] - after[0, later]).abs().max() > 1e-6 for later in range(step, 7))


def test_lanes_do_not_care_for_their_mates():
    model, batch = model_of("both"), without_labels(batch_of("both"))
    whole = model(**batch, states=given_states())
    alone = model(**part_of(batch, slice(1, 2)), states=tuple(state[:, 1:] for state in given_states()))
    assert difference(alone.backward_logits[..., 1:], whole.backward_logits[1:, :, 1:]) < 1e-12
    assert difference(alone.states[1], whole.states[1][:, 1:]) < 1e-12


def test_states_of_other_rows_are_kept_and_missing_ones_are_zero():
    model, batch = model_of("characters"), without_labels(batch_of("characters"))
    states = given_states(4)
    found = model(**batch, states=states)
    assert [state.shape[1] for state in found.states] == [4, 4]
    assert all(torch.equal(one[:, 2:], other[:, 2:]) for one, other in zip(found.states, states, strict=True))
    one_row = tuple(state[:, :1] for state in states)
    filled = tuple(F.pad(state, (0, 0, 0, 1)) for state in one_row)
    assert all(map(torch.equal, model(**batch, states=one_row).states, model(**batch, states=filled).states))


def test_no_gradient_flows_into_given_states():
    model, batch = model_of("characters"), batch_of("characters")
    states = tuple(state.requires_grad_() for state in given_states())
    before = [state.detach().clone() for state in states]
    outputs = model(**batch, states=states)
    outputs.loss.backward()
    assert [state.grad for state in states] == [None, None]
    assert all(map(torch.equal, states, before))
    assert not any(state.requires_grad for state in outputs.states)


def test_targets_of_minus_100_are_not_predicted():
    model, batch = model_of("characters"), batch_of("characters")
    whole = model(**without_labels(batch))
    known = torch.rand(2, 7) < 0.5
    batch["labels"] = torch.where(known, batch["labels"], -100)
    expected = F.cross_entropy(whole.forward_logits.flatten(0, 1), batch["labels"].flatten())
    found = model(**batch)
    assert found.forward_loss.item() == pytest.approx(expected.item())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    found = model(**batch)
    assert found.forward_loss == 0
    assert found.loss.item() == pytest.approx(found.backward_loss.item() / 2)
    found.loss.backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())


@pytest.mark.parametrize("softmax", ["full", "sampled", "adaptive"])
@pytest.mark.parametrize("empty", [{"steps": slice(0)}, {"lanes": slice(0)}], ids=["no steps", "no lanes"])
def test_nothing_to_read_is_no_loss(softmax, empty):
    model = (
        model_of_adaptive()
        if softmax == "adaptive"
        else model_of("characters", softmax=softmax, num_sampled=4)
    )
    batch = part_of(batch_of("characters"), **empty)
    found = model.train()(**batch, states=given_states())
    found.loss.backward()
    assert found.loss == 0
    assert all(map(torch.equal, found.states, given_states()))
    assert model(**without_labels(batch)).forward_logits.shape == (*batch["labels"].shape, WORDS + 1)


def test_the_parts_of_a_batch_sum_to_the_whole():
    # As many targets in both directions: their number is counted once.
    balanced = [[8, 8, 4, 1, 2, 9, 9], [3, 6, 5, 4, -100, 2, 1]]
    model, batch = model_of("characters"), batch_of("characters", back_labels=balanced)
    items = ElmoForPreTraining.count_targets(batch)
    assert items == 13
    whole = model(**batch)
    whole.loss.backward()
    expected = gradients(model)
    losses = [
        model(**part_of(batch, slice(lane, lane + 1)), num_items_in_batch=items).loss for lane in (0, 1)
    ]
    sum(losses).backward()
    found = gradients(model)
    assert sum(losses).item() == pytest.approx(whole.loss.item(), abs=1e-12)
    assert model(**batch, num_items_in_batch=int(items)).loss.item() == pytest.approx(whole.loss.item())
    assert max(difference(found[name], expected[name]) for name in expected) < 1e-12


def test_targets_are_counted_for_sentences_and_for_streams():
    labels = torch.tensor([[4, 5, -100], [6, 0, 0]])
    assert ElmoForPreTraining.count_targets({"labels": labels}) == 3 + 2
    assert ElmoForPreTraining.count_targets({"labels": labels[:, :1], "backward_labels": labels}) == 2
    assert ElmoForPreTraining.count_targets(batch_of("words")) == 13


def test_dropout_is_for_training_only():
    model, batch = model_of("characters", dropout=0.5), batch_of("characters")
    plain = model_of("characters")(**batch)
    assert model(**batch).loss.item() == plain.loss.item()
    model.train()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(**batch).loss.item())
    assert losses[0] == losses[1] != losses[2]
    assert plain.loss.item() not in losses


def test_dropout_is_fresh_for_each_occurrence_of_a_word():
    """Words are encoded once, but each position of each direction has its own mask."""
    model = model_of("characters", dropout=0.5).train()
    same = batch_of("characters", [[4] * 7] * 2, [[4] * 7] * 2)
    ids = [(None, same[f"{prefix}char_ids"]) for prefix in ("", "backward_")]
    seen = []
    for layers in (model.elmo.lstm.forward_layers, model.elmo.lstm.backward_layers):
        layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()))
    model.elmo.read_streams(*ids)
    rows = torch.cat(seen)
    vector = model.elmo.token_encoder(None, spelled([[4]])[0])[0]
    assert rows.shape == (28, 6)
    assert torch.isclose(rows, 2 * vector).logical_or(rows == 0).all()
    assert len((rows == 0).unique(dim=0)) > 10


def test_sampled_in_training_and_full_in_evaluation():
    model, batch = model_of("characters", softmax="sampled", num_sampled=4), batch_of("characters")
    full = model_of("characters")(**batch)
    evaluated = model(**batch)
    assert evaluated.loss.item() == full.loss.item()
    assert evaluated.sampled_loss is None
    trained = model.train()(**batch)
    assert trained.sampled_loss is trained.loss
    assert trained.loss.item() != pytest.approx(full.loss.item(), abs=1e-3)
    assert all(map(torch.equal, trained.states, full.states))


def test_single_precision_is_near_double():
    batch = batch_of("both")
    single, double = model_of("both", torch.float32)(**batch), model_of("both")(**batch)
    assert single.loss.dtype == single.states[0].dtype == torch.float32
    assert double.states[0].dtype == torch.float64
    assert single.loss.item() == pytest.approx(double.loss.item(), abs=1e-5)


def test_ids_that_a_model_does_not_read_do_not_matter():
    """A collator makes word ids too; a model of characters takes them, in one direction or in both, and reads none."""
    model, batch = model_of("characters"), batch_of("characters")
    ids = {"input_ids": torch.tensor(TEXT), "backward_input_ids": torch.tensor(BACK)}
    expected = model(**batch).loss.item()
    for names in (["input_ids"], ["backward_input_ids"], list(ids)):
        assert model(**batch, **{name: ids[name] for name in names}).loss.item() == expected
    assert model(**batch, attention_mask=torch.ones(2, 7)).loss.item() == expected


def replaced(kind, **changes):
    batch = batch_of(kind) | changes
    return kind, {name: value for name, value in batch.items() if value is not None}


HIGH, LOW = torch.tensor(TEXT), torch.tensor(TEXT)
HIGH[0, 1], LOW[0, 1] = WORDS + 1, 0
CHARS = spelled(TEXT)
STRANGE = CHARS.clone()
STRANGE[1, 2, 3] = 262
BAD = {
    "labels only": (
        replaced("characters", backward_labels=None),
        "need both labels and backward_labels, found only one",
    ),
    "backward labels only": (replaced("characters", labels=None), "need both labels and backward_labels"),
    "no backward characters": (
        replaced("characters", backward_char_ids=None),
        r"reads characters: pass backward_char_ids \(B, T, C\)",
    ),
    "no characters": (replaced("characters", char_ids=None), r"reads characters: pass char_ids \(B, T, C\)"),
    "word ids instead": (
        replaced("characters", backward_char_ids=None, backward_input_ids=HIGH),
        "reads characters: pass backward_char_ids",
    ),
    "no backward words": (replaced("words", backward_input_ids=None), "whole words: pass backward_input_ids"),
    "half of both": (replaced("both", backward_input_ids=None), "whole words: pass backward_input_ids"),
    "other half of both": (replaced("both", backward_char_ids=None), "characters: pass backward_char_ids"),
    "fewer steps": (
        replaced("characters", char_ids=CHARS[:, :6]),
        r"same lanes and steps \(B, T\), found .*'char_ids': \(2, 6\), 'backward_char_ids': \(2, 7\)",
    ),
    "fewer lanes": (
        replaced("words", backward_input_ids=LOW[:1] + 1),
        r"same lanes and steps .*'backward_input_ids': \(1, 7\)\}\. Pass the stream collator's whole output",
    ),
    "parts that disagree": (
        replaced("both", input_ids=torch.tensor(TEXT)[:, 1:]),
        r"same lanes and steps .*'input_ids': \(2, 6\), 'char_ids': \(2, 7\)",
    ),
    "unread ids that disagree": (
        replaced("characters", input_ids=torch.tensor(TEXT)[:1]),
        r"same lanes and steps .*'input_ids': \(1, 7\)",
    ),
    "padding": (
        replaced("characters", attention_mask=torch.tensor([[1] * 7, [1] * 6 + [0]])),
        "streams have no padding: leave attention_mask out, and targets -100",
    ),
    "word ids too high": (replaced("words", input_ids=HIGH), r"^input_ids must lie in 0\.\.9, found 1\.\.10"),
    "backward word ids": (
        replaced("words", backward_input_ids=HIGH),
        r"^backward_input_ids must lie in 0\.\.9",
    ),
    "characters too high": (
        replaced("characters", backward_char_ids=STRANGE),
        r"^backward_char_ids must lie in 0\.\.261, found \d+\.\.262",
    ),
    "words too long": (
        replaced("characters", backward_char_ids=F.pad(CHARS, (0, 2))),
        r"^backward_char_ids must be \(B, T, C\) .* \(any, any, 8\); found \(2, 7, 10\)",
    ),
    "floats": (replaced("words", input_ids=LOW.float()), "input_ids must be integers"),
    "label too high": (
        replaced("words", labels=HIGH),
        r"^labels must be word ids in 1\.\.9 or -100, found 1\.\.10",
    ),
    "label of padding": (
        replaced("words", backward_labels=LOW),
        r"^backward_labels must be word ids in 1\.\.9",
    ),
    "labels of another shape": (
        replaced("words", backward_labels=LOW[:, 1:]),
        r"^backward_labels must be \(B, T\) = \(2, 7\) word ids, found \(2, 6\)",
    ),
    "labels of floats": (
        replaced("words", labels=LOW.float()),
        r"^labels must be .*found \(2, 7\) of torch.float32",
    ),
    "states": (
        replaced("words", states=tuple(state[..., 1:] for state in given_states())),
        r"states must be \(h, c\) of shapes \(2, R, 12\) and \(2, R, 20\)",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_batches_are_refused_by_words(bad):
    (kind, batch), words = BAD[bad]
    with pytest.raises(ValueError, match=words):
        model_of(kind)(**batch)


def test_int32_labels_are_labels():
    model, batch = model_of("words"), batch_of("words")
    ints = {name: value.int() for name, value in batch.items()}
    assert model(**ints).loss.item() == model(**batch).loss.item()
