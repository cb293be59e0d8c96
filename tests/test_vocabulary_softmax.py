"""Full, sampled and adaptive softmax: the layers and losses by themselves, and the language model that trains with them."""

import math
from itertools import chain

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from reference.bilm_files import SENTENCES, build, char_ids, config, difference, random_weights, tiny_options
from reference.softmax_naive import adaptive_log_probability, chance, draw, expected_count, sampled_loss
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForPreTraining
from transformers import initialization as init

from heirloom.modeling import sampled_softmax, vocabulary_softmax
from heirloom.modeling import softmax_loss as blocks
from heirloom.modeling.modeling_elmo import ElmoForPreTraining
from heirloom.modeling.sampled_softmax import draw_log_uniform, expected_counts, rows_of, sampled_softmax_loss
from heirloom.modeling.vocabulary_softmax import init_softmax, log_probabilities, make_softmax, target_loss

CLASSES, SIZE, POSITIONS = 12, 16, 9
OPTIONS = tiny_options(lstm_projection_dim=16, lstm_dim=18)
WEIGHTS = random_weights(OPTIONS, words=CLASSES)
BODY = {name: array for name, array in WEIGHTS.items() if not name.startswith("softmax")}
WORDS_ONLY = OPTIONS | {"char_cnn": None}
LABELS = torch.tensor([[3, 4, 5, 6, 7, 8, 9], [10, 11] + 5 * [-100], [3, 3, -100, 12, 4, -100, -100]])
IDS = char_ids(SENTENCES[:3])


def made(positions=POSITIONS, classes=CLASSES):
    generator = torch.Generator().manual_seed(0)
    shapes = (positions, SIZE), (classes, SIZE), (classes,)
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    targets = torch.randint(0, classes, (positions,), generator=generator)
    return [tensor.requires_grad_() for tensor in tensors], targets


def adaptive(classes=CLASSES, cutoffs=(4, 8)):
    """A layer with weights that are far from even."""
    softmax = make_softmax(SIZE, classes, "adaptive", cutoffs).double()
    for parameter in softmax.parameters():
        nn.init.normal_(parameter)
    return softmax


def language_model(dtype=torch.float64, **changes) -> ElmoForPreTraining:
    """Without dropout; an adaptive softmax with random weights."""
    if changes.get("softmax") != "adaptive":
        return build(ElmoForPreTraining, OPTIONS, WEIGHTS, dtype, dropout=0.0, **changes)
    torch.manual_seed(0)
    model = ElmoForPreTraining(config(OPTIONS, WEIGHTS, dropout=0.0, **changes)).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


ADAPTIVE = {"softmax": "adaptive", "adaptive_cutoffs": [3, 7]}


@pytest.mark.parametrize(("classes", "count"), [(12, 1), (12, 6), (12, 11), (1000, 40), (1000, 999), (2, 1)])
def test_the_draw_is_the_twins(classes, count, monkeypatch):
    """From the same uniform numbers: the same classes, in the same order, after the same number of draws."""
    seen, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: seen.append(rand(*args, **kwargs)) or seen[-1])
    for _ in range(5):
        seen.clear()
        found, draws = draw_log_uniform(classes, count)
        uniform = iter(list(chain.from_iterable(part.tolist() for part in seen)))
        assert (found.tolist(), draws) == draw(uniform, classes, count)
        assert found.dtype == torch.long
        assert len(set(found.tolist())) == count <= draws
        assert all(0 <= word < classes for word in found.tolist())


def test_draws_with_and_without_rejections_happen():
    rejected = {draws > 3 for _, draws in (draw_log_uniform(CLASSES, 3) for _ in range(50))}
    assert rejected == {True, False}


def test_single_draws_have_their_frequencies():
    draws = 20_000
    counts = [0] * CLASSES
    for _ in range(draws):
        counts[int(draw_log_uniform(CLASSES, 1)[0])] += 1
    for word, count in enumerate(counts):
        p = chance(word, CLASSES)
        assert abs(count - draws * p) < 5 * math.sqrt(draws * p * (1 - p)), word
    assert sum(chance(word, CLASSES) for word in range(CLASSES)) == pytest.approx(1)


def test_the_draw_is_of_torchs_cpu_generator():
    draws = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        draws.append([draw_log_uniform(1000, 20)[0].tolist() for _ in range(2)])
    assert draws[0] == draws[1] != draws[2]
    assert draws[0][0] != draws[0][1]
    torch.manual_seed(3)
    with torch.device("meta"):  # where new tensors go by default does not matter
        assert draw_log_uniform(1000, 20)[0].tolist() == draws[0][0]


@pytest.mark.parametrize("count", [0, -1, CLASSES, CLASSES + 1])
def test_as_many_samples_as_classes_are_refused(count):
    with pytest.raises(ValueError, match=rf"fewer samples than classes, found {count} .* Lower num_sampled"):
        draw_log_uniform(CLASSES, count)


@pytest.mark.parametrize("draws", [5, 6, 200])
def test_expected_counts_are_the_twins(draws):
    found = expected_counts(torch.arange(CLASSES).view(3, 4), CLASSES, 5, draws)
    expected = [expected_count(word, CLASSES, 5, draws) for word in range(CLASSES)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64).view(3, 4))
    assert bool((found > 1).any()) == (draws == 5)


@pytest.mark.parametrize(
    ("sampled", "draws"),
    [([0, 3, 1, 7, 5], 5), ([0, 3, 1, 7, 5], 9), ([4], 1), ([*range(1, 12)], 60)],
    ids=["no draw rejected", "some rejected", "one sample", "all but one"],
)
def test_the_sampled_loss_is_the_twins(sampled, draws):
    tensors, targets = made()
    found = sampled_softmax_loss(*tensors, targets, torch.tensor(sampled), draws)
    expected = sampled_loss(*tensors, targets, sampled, draws)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(0.3 * loss, tensors) for loss in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    hits = (targets[:, None] == torch.tensor(sampled)).any(1)
    assert len(sampled) == 1 or (hits.any() and not hits.all())


def test_a_target_that_is_sampled_is_not_its_own_rival():
    (hidden, weight, bias), _ = made(1)
    loss = sampled_softmax_loss(hidden, weight, bias, torch.tensor([4]), torch.tensor([4]), 1)
    assert loss.item() == 0


def test_the_sampled_loss_of_no_positions():
    tensors, targets = made(0)
    loss = sampled_softmax_loss(*tensors, targets, torch.tensor([1, 2]), 2)
    loss.backward()
    assert loss == 0
    assert all((tensor.grad == 0).all() for tensor in tensors)


def test_the_sampled_loss_of_half_precision_is_summed_in_float32():
    tensors, targets = made()
    halves = [tensor.detach().bfloat16() for tensor in tensors]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = sampled_softmax_loss(*halves, targets, torch.tensor([1, 2, 5]), 4)
    assert found.dtype == torch.float32
    expected = sampled_softmax_loss(*[half.double() for half in halves], targets, torch.tensor([1, 2, 5]), 4)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_sampled_gradients_lead_where_full_ones_do():
    """Many draws: their mean gradient points in the direction of the full softmax's."""
    tensors, targets = made(classes=60)
    softmax = nn.Linear(SIZE, 60).double()
    softmax.weight.data, softmax.bias.data = 0.1 * tensors[1].detach(), tensors[2].detach()
    hidden = tensors[0]
    (full,) = torch.autograd.grad(target_loss(softmax, hidden, targets), hidden)
    mean = 0
    for _ in range(300):
        mean = mean + torch.autograd.grad(target_loss(softmax, hidden, targets, 30), hidden)[0] / 300
    assert F.cosine_similarity(mean.flatten(), full.flatten(), dim=0) > 0.97


@pytest.mark.parametrize("num_sampled", [0, 4])
@pytest.mark.parametrize("dtype", [torch.long, torch.int32])
def test_classes_that_are_no_words_are_skipped(num_sampled, dtype):
    """Neither their weights nor their gradients count; an adaptive layer has no rows for them."""
    (hidden, weight, bias), targets = made()
    softmax = nn.Linear(SIZE, CLASSES + 2).double()
    softmax.weight.data[2:], softmax.bias.data[2:] = weight.detach(), bias.detach()
    softmax.bias.data[:2] = 100.0
    torch.manual_seed(5)
    found = target_loss(softmax, hidden, (targets + 2).to(dtype), num_sampled, skip=2)
    torch.manual_seed(5)
    if num_sampled:
        expected = sampled_loss(hidden, weight, bias, targets, *draw_log_uniform(CLASSES, num_sampled))
    else:
        expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="sum")
    torch.testing.assert_close(found, expected)
    found.backward()
    assert not softmax.weight.grad[:2].any()
    assert softmax.weight.grad[2:].any()
    logs = log_probabilities(softmax, hidden, skip=2)
    assert (logs[:, :2] == -torch.inf).all()
    torch.testing.assert_close(logs[:, 2:], F.linear(hidden, weight, bias).log_softmax(1))


@pytest.mark.parametrize("cutoffs", [(4, 8), (1,), (11,)])
@pytest.mark.parametrize("skip", [0, 1])
def test_adaptive_is_the_twin(cutoffs, skip):
    softmax = adaptive(cutoffs=cutoffs)
    (hidden, *_), _ = made(CLASSES)
    targets = torch.arange(CLASSES)
    expected = torch.stack([adaptive_log_probability(softmax, hidden[word], word) for word in range(CLASSES)])
    found = target_loss(softmax, hidden, targets + skip, skip=skip)
    torch.testing.assert_close(found, -expected.sum())
    sources = [hidden, *softmax.parameters()]
    gradients = [torch.autograd.grad(loss, sources) for loss in (found, -expected.sum())]
    torch.testing.assert_close(*gradients)
    logs = log_probabilities(softmax, hidden, skip=skip)
    assert logs.shape == (CLASSES, CLASSES + skip)
    assert (logs[:, :skip] == -torch.inf).all()
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(CLASSES, dtype=torch.float64))
    torch.testing.assert_close(logs[targets, targets + skip], expected)


def test_adaptive_without_positions():
    softmax, hidden = adaptive(), torch.zeros(0, SIZE, dtype=torch.float64, requires_grad=True)
    loss = target_loss(softmax, hidden, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert log_probabilities(softmax, hidden, skip=1).shape == (0, CLASSES + 1)


def test_adaptive_half_precision_is_computed_in_float32():
    softmax = adaptive().bfloat16()
    (hidden, *_), targets = made()
    hidden = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = target_loss(softmax, hidden, targets)
    found.backward()
    assert found.dtype == torch.float32
    assert hidden.grad.dtype == softmax.head.weight.grad.dtype == torch.bfloat16
    exact = target_loss(softmax.double(), hidden.double(), targets)
    assert found.item() == pytest.approx(exact.item(), rel=1e-6)


def test_cutoffs_by_default_are_those_inside_the_vocabulary():
    assert make_softmax(64, 30_000, "adaptive").cutoffs == [2_000, 10_000, 30_000]
    assert make_softmax(64, 10_000, "adaptive", []).cutoffs == [2_000, 10_000]


@pytest.mark.parametrize("cutoffs", [None, [], [8, 4], [4, 4], [0, 4], [4, 12], [4, 13]])
def test_cutoffs_outside_the_vocabulary_are_refused(cutoffs):
    with pytest.raises(ValueError, match=r"adaptive_cutoffs must rise inside 1\.\.11, found .*full softmax"):
        make_softmax(SIZE, CLASSES, "adaptive", cutoffs)


def test_more_clusters_than_the_size_has_quarters_are_refused():
    make_softmax(16, CLASSES, "adaptive", [4, 8])
    with pytest.raises(ValueError, match="size 15 cannot have 2 cutoffs.*Name fewer adaptive_cutoffs"):
        make_softmax(15, CLASSES, "adaptive", [4, 8])


@pytest.mark.parametrize("kind", ["full", "adaptive"])
def test_initial_values(kind):
    softmax = make_softmax(256, 3000, kind, [1000])
    for layer in softmax.modules():
        if isinstance(layer, nn.Linear):
            init_softmax(layer, init)
            assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_full_losses_are_the_plain_cross_entropy(rows, monkeypatch):
    monkeypatch.setattr(blocks, "BUFFER", 4 * rows * CLASSES)
    model = language_model().train()
    found = model(char_ids=IDS, labels=LABELS)
    totals, counts = [0, 0], [0, 0]
    for sentence, labels in zip(SENTENCES[:3], LABELS, strict=True):
        words = torch.cat([torch.tensor([1]), labels[: len(sentence)], torch.tensor([2])])
        top = model.elmo(char_ids=char_ids([sentence]), keep_boundaries=True).last_hidden_state[0]
        for side, (vectors, targets) in enumerate(((top[:-1, :16], words[1:]), (top[1:, 16:], words[:-1]))):
            logits = model.softmax(vectors)[:, 1:]
            totals[side] += F.cross_entropy(
                logits, torch.where(targets < 0, targets, targets - 1), reduction="sum"
            )
            counts[side] += int((targets != -100).sum())
    losses = [total / count for total, count in zip(totals, counts, strict=True)]
    torch.testing.assert_close([found.forward_loss, found.backward_loss], losses)
    torch.testing.assert_close(found.loss, sum(losses) / 2)
    assert found.sampled_loss is None


def test_sampled_in_training_and_full_in_evaluation(monkeypatch):
    model, plain = language_model(softmax="sampled", num_sampled=5), language_model()
    evaluated = model.eval()(char_ids=IDS, labels=LABELS)
    torch.testing.assert_close(evaluated.loss, plain(char_ids=IDS, labels=LABELS).loss)
    assert evaluated.sampled_loss is None
    draws = []

    def recorded(classes, count):
        assert (classes, count) == (CLASSES, 5)
        draws.append(draw_log_uniform(classes, count))
        return draws[-1]

    monkeypatch.setattr(vocabulary_softmax, "draw_log_uniform", recorded)
    found = model.train()(char_ids=IDS, labels=LABELS)
    assert found.sampled_loss is found.loss
    assert len(draws) == 2  # one a direction
    found.loss.backward()
    assert model.softmax.weight.grad.any(1).sum() > 5
    hidden, targets = [], []
    target = vocabulary_softmax.target_loss
    monkeypatch.setattr(
        "heirloom.modeling.modeling_elmo.target_loss",
        lambda softmax, *args, **kwargs: (
            hidden.append(args[0]) or targets.append(args[1]) or target(softmax, *args, **kwargs)
        ),
    )
    monkeypatch.setattr(vocabulary_softmax, "draw_log_uniform", lambda *_: again.pop(0))
    again = list(draws)
    model(char_ids=IDS, labels=LABELS)
    weight, bias = model.softmax.weight[1:], model.softmax.bias[1:]
    for part, sampled in enumerate(draws):
        count = len(targets[part])
        expected = sampled_loss(
            hidden[part], weight, bias, targets[part] - 1, sampled[0].tolist(), sampled[1]
        )
        loss = (found.forward_loss, found.backward_loss)[part]
        torch.testing.assert_close(loss, expected / count)


def test_the_sampled_loss_repeats_with_the_seed():
    model, losses = language_model(softmax="sampled", num_sampled=5).train(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model(char_ids=IDS, labels=LABELS).loss.item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("count", [0, CLASSES, CLASSES + 1])
def test_a_config_without_enough_words_to_draw_from_is_refused(count):
    words = rf"num_sampled below the {CLASSES} words of the vocabulary, found {count}\. .*softmax='full'"
    with pytest.raises(StrictDataclassError, match=words):
        config(OPTIONS, WEIGHTS, softmax="sampled", num_sampled=count)
    config(OPTIONS, WEIGHTS, softmax="sampled", num_sampled=CLASSES - 1)


@pytest.mark.parametrize("training", [True, False])
def test_adaptive_losses_are_those_of_its_logits(training):
    model = language_model(**ADAPTIVE).train(training)
    logits = model(char_ids=IDS).forward_logits
    assert logits.shape == (*LABELS.shape, CLASSES + 1)
    words = (IDS > 0).any(2)
    assert (logits[words][:, 0] == -torch.inf).all()
    assert logits[words][:, 1:].isfinite().all()
    torch.testing.assert_close(logits[words].exp().sum(1), torch.ones(int(words.sum()), dtype=torch.float64))
    found = model(char_ids=IDS, labels=LABELS)
    top = model.elmo(char_ids=IDS, keep_boundaries=True)
    total, count = 0, 0
    for row, sentence in enumerate(SENTENCES[:3]):
        known = LABELS[row, : len(sentence)]
        total = total - logits[row, : len(sentence)][known > 0].gather(1, known[known > 0, None]).sum()
        last = top.last_hidden_state[row, len(sentence), :16]  # after the last word: predicts </S>, class 1
        total = total - adaptive_log_probability(model.softmax, last, 1)
        count += int((known > 0).sum()) + 1
    torch.testing.assert_close(found.forward_loss, total / count)
    found.loss.backward()
    assert all(parameter.grad.any() for parameter in model.softmax.parameters())


def test_adaptive_round_trip(tmp_path):
    model = language_model(torch.float32, **ADAPTIVE)
    assert model.get_output_embeddings() is None
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(model(char_ids=IDS, labels=LABELS).loss, loaded(char_ids=IDS, labels=LABELS).loss)
    assert "softmax.head.weight" in load_file(tmp_path / "model.safetensors")


def test_adaptive_initial_values_and_default_cutoffs():
    model = ElmoForPreTraining(config(OPTIONS, WEIGHTS, softmax="adaptive", vocab_size=4000))
    assert model.softmax.cutoffs == [2000, 3999]  # padding has no row
    assert model.softmax.head.weight.std().item() == pytest.approx(1 / 4, rel=0.05)
    assert not model.softmax.head.bias.any()
    with pytest.raises(ValueError, match=r"adaptive_cutoffs must rise inside 1\.\.11, found \[\]"):
        ElmoForPreTraining(config(OPTIONS, WEIGHTS, softmax="adaptive"))


def tied(**changes) -> ElmoForPreTraining:
    weights = random_weights(tiny_options(**{"lstm_projection_dim": 16, "lstm_dim": 18}) | {"char_cnn": None})
    changes = {"word_embedding_size": 16, "tie_word_embeddings": True, "dropout": 0.0} | changes
    return ElmoForPreTraining(config(WORDS_ONLY, weights, vocab_size=CLASSES + 1, **changes))


IDS_OF_WORDS = LABELS.clamp(min=0)


def test_tied_weights_are_one_in_memory_and_in_the_file(tmp_path):
    model = tied()
    table = model.elmo.token_encoder.word_embeddings
    assert model.softmax.weight is table.weight
    assert not table.weight[0].any()
    names = [name for name, _ in model.named_parameters()]
    assert "softmax.weight" not in names
    nn.init.normal_(table.weight[1:])
    nn.init.normal_(model.softmax.bias)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert sorted(stored) == sorted(names)
    for loader in (ElmoForPreTraining, AutoModelForPreTraining):
        loaded, report = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        assert loaded.softmax.weight is loaded.elmo.token_encoder.word_embeddings.weight
        assert loaded.config.tie_word_embeddings
        assert torch.equal(loaded.softmax.weight, table.weight)
        found = loaded.eval()(input_ids=IDS_OF_WORDS, labels=LABELS)
        assert torch.equal(found.loss, model.eval()(input_ids=IDS_OF_WORDS, labels=LABELS).loss)


@pytest.mark.parametrize("softmax", ["full", "sampled"])
def test_tied_gradients_are_the_sum_of_both_uses(softmax):
    model = tied(softmax=softmax, num_sampled=5).double().train()
    loose = tied(softmax=softmax, num_sampled=5, tie_word_embeddings=False).double().train()
    loose.load_state_dict(model.state_dict())
    assert loose.softmax.weight is not loose.elmo.token_encoder.word_embeddings.weight
    for one in (model, loose):
        torch.manual_seed(1)
        one(input_ids=IDS_OF_WORDS, labels=LABELS).loss.backward()
    inputs, outputs = loose.elmo.token_encoder.word_embeddings.weight.grad, loose.softmax.weight.grad
    assert inputs.any()
    assert outputs.any()
    assert difference(model.softmax.weight.grad, inputs + outputs) < 1e-12
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert model.softmax.weight is model.elmo.token_encoder.word_embeddings.weight
    assert not model.softmax.weight[0].any()


def test_word_mode_by_itself_is_not_tied(tmp_path):
    model = tied(tie_word_embeddings=False)
    assert model.softmax.weight is not model.elmo.token_encoder.word_embeddings.weight
    model.save_pretrained(tmp_path)
    assert "softmax.weight" in load_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"word_embedding_size": 5, "use_token_projection": True},
            "found word_embedding_size 5, softmax 'full'",
        ),
        ({**ADAPTIVE}, "no adaptive softmax; found word_embedding_size 16, softmax 'adaptive'"),
    ],
    ids=["another width", "adaptive"],
)
def test_what_cannot_be_tied_is_refused(changes, words):
    with pytest.raises(StrictDataclassError, match=words):
        tied(**changes)


def test_a_model_of_characters_has_nothing_to_tie():
    with pytest.raises(
        StrictDataclassError, match=r"as wide as projection_size \(16\).*word_embedding_size 0"
    ):
        config(OPTIONS, WEIGHTS, tie_word_embeddings=True)


@pytest.mark.parametrize("large", [0, 2**25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_of_a_table_and_their_gradient(dtype, large, monkeypatch):
    monkeypatch.setattr(sampled_softmax, "LARGE", large)
    table = torch.randn(7, 3).to(dtype).requires_grad_()
    twin = table.detach().clone().requires_grad_()
    ids, probe = torch.tensor([5, 0, 5, 2]), torch.randn(4, 3).to(dtype)
    for _ in range(2):  # gradients add up
        found, expected = rows_of(table, ids), twin[ids]
        assert torch.equal(found, expected)
        (found * probe).sum().backward()
        (expected * probe).sum().backward()
    torch.testing.assert_close(table.grad, twin.grad)
    assert table.grad.is_contiguous()
    table.grad.zero_()
