"""ElmoModel against the naive biLM in every variation of the files, and what a sentence's vectors may depend on."""

import copy
import pickle

import pytest
import torch
from reference.bilm_files import (
    SENTENCES,
    build,
    char_ids,
    config,
    difference,
    naive_batch,
    padded,
    random_weights,
    state_dict,
    tiny_options,
)
from reference.bilm_naive import MARKS, NaiveBilm

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.layers_elmo import ElmoLstm
from heirloom.modeling.modeling_elmo import ElmoModel

VARIATIONS = {
    "published": {},
    "one layer": {"lstm_n_layers": 1},
    "three layers": {"lstm_n_layers": 3},
    "four layers without residual": {"lstm_n_layers": 4, "lstm_use_skip_connections": False},
    "no highway": {"cnn_n_highway": 0},
    "one highway": {"cnn_n_highway": 1},
    "three highways and tanh": {"cnn_n_highway": 3, "cnn_activation": "tanh"},
    "no CNN projection": {"cnn_filters": [[1, 2], [2, 4]]},
    "no LSTM projection": {"lstm_dim": 6, "lstm_proj_clip": 0.01},
    "no projection at all": {"lstm_dim": 6, "cnn_filters": [[1, 2], [2, 4]]},
    "tight clips": {"lstm_cell_clip": 0.2, "lstm_proj_clip": 0.1},
    "no clips": {"lstm_cell_clip": None, "lstm_proj_clip": None},
    "only the cell clipped": {"lstm_cell_clip": 0.2, "lstm_proj_clip": None},
    "C = 10": {"cnn_max_characters_per_token": 10},
    "C = 25": {"cnn_max_characters_per_token": 25},
    "wide filter of all columns": {"cnn_max_characters_per_token": 9, "cnn_filters": [[9, 4], [1, 3]]},
    "filters in falling order": {"cnn_filters": [[7, 3], [2, 4], [5, 2]]},
}


def model_and_twin(options, sentences=SENTENCES, dtype=torch.float64, **choices):
    weights = random_weights(options, **choices)
    size = options["char_cnn"]["max_characters_per_token"]
    layers, states = NaiveBilm(options, weights).run(naive_batch(sentences, size))
    return build(ElmoModel, options, weights, dtype), char_ids(sentences, size), layers, states


def tiny(dtype=torch.float64, **changes) -> ElmoModel:
    options = tiny_options(**changes)
    return build(ElmoModel, options, random_weights(options), dtype)


@pytest.mark.parametrize("variation", VARIATIONS)
def test_equals_the_naive_bilm(variation):
    model, ids, layers, states = model_and_twin(tiny_options(**VARIATIONS[variation]))
    with torch.no_grad():
        full = model(char_ids=ids, output_hidden_states=True, keep_boundaries=True)
        words = model(char_ids=ids, output_hidden_states=True)
    for found, expected in ((full, padded(layers)), (words, padded(layers, boundaries=False))):
        assert len(found.hidden_states) == len(expected)
        assert max(map(difference, found.hidden_states, expected)) < 1e-10
        assert max(map(difference, found.states, states)) < 1e-10
        assert found.last_hidden_state is found.hidden_states[-1]
    assert full.attention_mask.sum(1).tolist() == [len(words) + 2 for words in SENTENCES]
    assert words.attention_mask.sum(1).tolist() == [len(words) for words in SENTENCES]


@pytest.mark.parametrize(
    "variation", ["published", "three highways and tanh", "tight clips", "no projection at all"]
)
def test_float32_equals_the_naive_bilm(variation):
    model, ids, layers, _ = model_and_twin(
        tiny_options(**VARIATIONS[variation]), dtype=torch.float32, scale=0.3
    )
    with torch.no_grad():
        found = model(char_ids=ids, output_hidden_states=True, keep_boundaries=True)
    assert max(map(difference, found.hidden_states, padded(layers))) < 1e-5


def words_only(forget_bias=1.0):
    """Word ids alone, as bilm-tf trains without characters."""
    options = {key: value for key, value in tiny_options().items() if key != "char_cnn"}
    weights = random_weights(options, words=9, word_size=6)
    naive = NaiveBilm(options, weights, forget_bias=forget_bias)
    return build(ElmoModel, options, weights, torch.float64, forget_bias=forget_bias), naive


def words_and_characters(forget_bias=0.0):
    """A word table before the character features, as ELMoForManyLangs has; its forget bias lies in the weights."""
    options = tiny_options()
    weights = random_weights(options, words=9, word_size=5)
    naive = NaiveBilm(options, weights, forget_bias=forget_bias)
    return build(ElmoModel, options, weights, torch.float64, forget_bias=forget_bias), naive


@pytest.mark.parametrize("kind", [words_only, words_and_characters])
def test_models_with_a_word_table(kind):
    model, naive = kind()
    sentences, ids = [["a", "b", "c"], ["d"], ["same", "same"]], [[3, 9, 4], [1], [5, 6]]
    input_ids = torch.tensor([row + [0] * (3 - len(row)) for row in ids])
    inputs = (
        {"input_ids": input_ids}
        if kind is words_only
        else {"input_ids": input_ids, "char_ids": char_ids(sentences)}
    )
    layers, _ = naive.run(naive_batch(sentences, word_ids=ids))
    with torch.no_grad():
        found = model(**inputs, output_hidden_states=True, keep_boundaries=True)
    assert max(map(difference, found.hidden_states, padded(layers))) < 1e-10


def test_another_inventory_of_characters():
    """300 characters, marks at other ids, as models over code points have."""
    options, marks = tiny_options(), {"bos": 3, "eos": 4, "bow": 5, "eow": 6, "pad": 2}
    weights = random_weights(options, char_rows=299)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 300, (2, 3, 50), generator=generator)
    ids[:, :, 20:], ids[1, 2] = 2, 0
    sentences = [[(0, ids[0, t].tolist()) for t in range(3)], [(0, ids[1, t].tolist()) for t in range(2)]]
    assert marks.keys() == MARKS.keys()
    layers, _ = NaiveBilm(options, weights, marks=marks).run(sentences)
    changes = {f"{name}_char_id": value for name, value in marks.items()}
    model = build(ElmoModel, options, weights, torch.float64, **changes)
    with torch.no_grad():
        found = model(char_ids=ids, output_hidden_states=True, keep_boundaries=True)
    assert max(map(difference, found.hidden_states, padded(layers))) < 1e-10


def test_the_defaults_are_the_published_original():
    with torch.device("meta"):
        model = ElmoModel(ElmoConfig())
    padding_row = 16
    assert sum(parameter.numel() for parameter in model.parameters()) - padding_row == 93_600_848


def alone(model, words, **inputs) -> torch.Tensor:
    """All layers (L + 1, n, 2 P) of one sentence in a batch of its own."""
    with torch.no_grad():
        return torch.stack(model(char_ids=char_ids([words]), output_hidden_states=True).hidden_states)[:, 0]


def stacked(model, ids, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(
            model(char_ids=ids, output_hidden_states=True, **inputs).hidden_states
        )  # (L + 1, B, T, H)


def test_the_same_input_gives_the_same_numbers():
    model, ids = tiny(torch.float32), char_ids(SENTENCES)
    assert torch.equal(stacked(model, ids), stacked(model, ids))


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [1, 1, 2]], ids=str)
def test_a_sentence_depends_on_its_words_alone(order, padding):
    model = tiny(torch.float32)
    sentences = [SENTENCES[row] for row in order]
    width = max(map(len, sentences)) + 3
    ids = torch.zeros(len(sentences), width, 50, dtype=torch.long)
    for row, words in enumerate(sentences):
        places = {"right": range(len(words)), "left": range(width - len(words), width)}
        places["holes"] = sorted(torch.randperm(width)[: len(words)].tolist())
        ids[row, list(places[padding])] = char_ids([words])[0]
    found, mask = stacked(model, ids), (ids > 0).any(2)
    for row, words in enumerate(sentences):
        assert difference(found[:, row, mask[row]], alone(model, words)) < 1e-6
    assert (found[:, ~mask] == 0).all()


def test_the_mask_can_leave_words_out():
    model, ids = tiny(), char_ids(SENTENCES[:1])
    mask = torch.ones(1, 7, dtype=torch.long)
    mask[0, 2:4] = 0
    shorter = [word for t, word in enumerate(SENTENCES[0]) if mask[0, t]]
    found = stacked(model, ids, attention_mask=mask)
    assert difference(found[:, 0, mask[0].bool()], alone(model, shorter)) < 1e-12
    for kind in (torch.bool, torch.float32, torch.int32):
        assert torch.equal(stacked(model, ids, attention_mask=mask.to(kind)), found)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_integer_types_of_ids(dtype):
    model, ids = tiny(), char_ids(SENTENCES)
    assert torch.equal(stacked(model, ids.to(dtype)), stacked(model, ids))


def test_states_belong_to_places_in_the_batch():
    options = tiny_options()
    weights = random_weights(options)
    model, naive = build(ElmoModel, options, weights, torch.float64), NaiveBilm(options, weights)
    states = expected = None
    sizes = []
    for batch in (SENTENCES[:2], SENTENCES[:1], SENTENCES[1:5], SENTENCES[3:4]):
        before = states
        with torch.no_grad():
            found = model(char_ids=char_ids(batch), states=states, keep_boundaries=True)
        layers, expected = naive.run(naive_batch(batch), expected)
        states = found.states
        assert difference(found.last_hidden_state, padded(layers)[-1]) < 1e-10
        assert max(map(difference, states, expected)) < 1e-10
        sizes.append(states[0].shape[1])
        if before is not None and before[0].shape[1] > len(batch):  # rows beyond the batch stay as they were
            assert torch.equal(states[0][:, len(batch) :], before[0][:, len(batch) :])
    assert sizes == [2, 2, 4, 4]


def test_states_are_neither_kept_nor_changed_nor_part_of_the_graph():
    model, ids = tiny(), char_ids(SENTENCES)
    first = model(char_ids=ids)
    given = tuple(state.clone() for state in first.states)
    second = model(char_ids=ids, states=first.states)
    assert all(map(torch.equal, first.states, given))
    assert not any(state.requires_grad for state in (*first.states, *second.states))
    assert torch.equal(model(char_ids=ids).last_hidden_state, first.last_hidden_state)
    assert difference(second.last_hidden_state, first.last_hidden_state) > 1e-2
    single = tuple(state.float() for state in first.states)
    assert difference(model(char_ids=ids, states=single).last_hidden_state, second.last_hidden_state) < 1e-6


def test_pieces_of_a_sentence_are_sentences():
    """Marks are put around each piece: states carried on do not make the pieces one sentence."""
    model, whole = tiny(), SENTENCES[0]
    with torch.no_grad():
        first = model(char_ids=char_ids([whole[:4]]))
        second = model(char_ids=char_ids([whole[4:]]), states=first.states)
    pieces = torch.cat([first.last_hidden_state, second.last_hidden_state], 1)
    assert difference(pieces[0], alone(model, whole)[-1]) > 1e-2


def test_rows_of_length_zero_keep_their_states_in_the_lstm():
    lstm = tiny().lstm
    lengths, generator = torch.tensor([2, 0, 3]), torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    states = torch.randn(2, 4, 12, dtype=torch.float64), torch.randn(2, 4, 20, dtype=torch.float64)
    _, new = lstm(inputs, lengths, states)
    for state, before in zip(new, states, strict=True):
        assert torch.equal(state[:, [1, 3]], before[:, [1, 3]])
        assert difference(state[:, [0, 2]], before[:, [0, 2]]) > 1e-3


def test_cached_token_vectors():
    model, ids = tiny(), char_ids(SENTENCES)
    mask = (ids > 0).any(2)
    with torch.no_grad():
        vectors = model.token_encoder(None, ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
    cached = stacked(model, None, inputs_embeds=vectors, attention_mask=mask)
    assert difference(cached, stacked(model, ids)) < 1e-12


def test_every_parameter_gets_a_gradient_and_inputs_too():
    model, ids = tiny(), char_ids(SENTENCES)
    model(char_ids=ids).last_hidden_state.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())
    assert (model.token_encoder.char_embeddings.weight.grad[0] == 0).all()
    mask, vectors = (ids > 0).any(2), torch.randn(*ids.shape[:2], 6, dtype=torch.float64, requires_grad=True)
    model(inputs_embeds=vectors, attention_mask=mask).last_hidden_state.sum().backward()
    assert (vectors.grad[~mask] == 0).all()
    assert (vectors.grad[mask] != 0).any(1).all()


def test_dropout_works_in_training_only():
    model, ids = tiny(), char_ids(SENTENCES)
    model.lstm.dropout = 0.5
    assert torch.equal(stacked(model, ids), stacked(model, ids))
    model.train()
    one, other = stacked(model, ids), stacked(model, ids)
    assert torch.equal(one[0], other[0])  # the token layer is reported without it
    assert difference(one[1], other[1]) > 1e-2
    model.lstm.dropout = 0.0
    assert torch.equal(stacked(model, ids), stacked(model.eval(), ids))


def test_dropout_lies_outside_the_residual():
    """With everything dropped, an LSTM sees zeros and the residual adds zeros: layer 1 knows nothing of the words."""
    model = tiny()
    model.lstm.dropout = 1.0
    one, other = [stacked(model.train(), char_ids([words])) for words in (["a", "b"], ["c", "d"])]
    assert torch.equal(one[1:], other[1:])
    assert not torch.equal(one[0], other[0])


def test_bfloat16_model_and_autocast():
    ids = char_ids(SENTENCES)
    expected = stacked(tiny(torch.float32), ids)
    half = stacked(tiny(torch.bfloat16), ids)
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = tiny(torch.float32)(char_ids=ids, output_hidden_states=True)
        again = tiny(torch.float32)(char_ids=ids, states=outputs.states)
    mixed = torch.stack([layer.float() for layer in outputs.hidden_states])
    outputs.last_hidden_state.float().sum().backward()
    assert difference(half.float(), expected) < 0.3
    assert difference(mixed, expected) < 0.3
    assert again.last_hidden_state.isfinite().all()


def test_copies():
    model, ids = tiny(), char_ids(SENTENCES)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(stacked(copied, ids), stacked(model, ids))
        assert copied.lstm.forward_layers[0].weight_ih is not model.lstm.forward_layers[0].weight_ih


def test_outputs_of_all_kinds():
    model, ids = tiny(), char_ids(SENTENCES)
    found = model(char_ids=ids)
    assert found.hidden_states is None
    values = model(char_ids=ids, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], found.last_hidden_state)
    model.config.output_hidden_states = True
    assert len(model(char_ids=ids).hidden_states) == 3


def test_different_words_are_never_taken_for_one(monkeypatch):
    """Should the hashes of two words ever collide, every word is encoded for itself."""
    model, ids = tiny(), char_ids(SENTENCES)
    expected = stacked(model, ids)
    monkeypatch.setattr(torch, "randint", lambda *size, **choices: torch.zeros(size[2], dtype=torch.long))
    assert difference(stacked(model, ids), expected) < 1e-12


def test_the_tests_own_loader_leaves_nothing_out():
    options = tiny_options()
    weights = random_weights(options)
    assert state_dict(weights).keys() == ElmoModel(config(options, weights)).state_dict().keys()
    assert isinstance(tiny().lstm, ElmoLstm)
