"""Stock `generate()` over the recurrent cache: the same text with and without it, in a batch and alone; and the cache."""

import copy

import pytest
import torch
from reference.lstm_lm_naive import ADAPTIVE, TIED, close, naive_row, tiny
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from heirloom.modeling.recurrent_cache import RecurrentCache, RecurrentLayer

PROMPTS = [[1, 5, 2, 12], [7, 3], [4, 9, 4]]
IDS = torch.tensor([[1, 5, 2], [7, 3, 11], [4, 9, 4]])
GREEDY = {"max_new_tokens": 12}
KINDS = {
    "plain": {},
    "projection": {"projection_size": 4, "num_hidden_layers": 3},
    "tied": TIED,
    "adaptive": ADAPTIVE,
}


def padded(rows, side) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    fill = [[0] * (width - len(row)) for row in rows]
    ids = [row + more if side == "right" else more + row for row, more in zip(rows, fill, strict=True)]
    masks = [
        [1] * len(row) + more if side == "right" else more + [1] * len(row)
        for row, more in zip(rows, fill, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(masks)


def generated(model, ids=IDS, seed=3, **options):
    torch.manual_seed(seed)
    return model.generate(ids, return_dict_in_generate=True, output_scores=True, **options)


def agree(one, other) -> bool:
    """The same tokens with the same scores, of sequences and of every step."""
    if one.sequences.tolist() != other.sequences.tolist() or not close(one.scores, other.scores):
        return False
    return "sequences_scores" not in one or close([one.sequences_scores], [other.sequences_scores])


def new_tokens(sequences, width) -> list[list[int]]:
    """What was generated, up to the end mark."""
    rows = sequences[:, width:].tolist()
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_is_the_twins(kind):
    model = tiny(**KINDS[kind])
    for row, found in zip(
        PROMPTS, [generated(model, torch.tensor([row]), **GREEDY) for row in PROMPTS], strict=True
    ):
        expected = list(row)
        while len(expected) < len(row) + 12 and (len(expected) == len(row) or expected[-1] != 1):
            top = naive_row(model, expected)[0][-1][-1]
            expected.append(int(model._logits(top.view(1, 1, -1)).argmax()))
        assert found.sequences.tolist() == [expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 5, "temperature": 2.0},
        {"num_beams": 2},
        {"num_beams": 4, "length_penalty": 0.0},
        {"num_beams": 4, "length_penalty": 1.0, "num_return_sequences": 3},
        {"num_beams": 4, "early_stopping": True, "num_return_sequences": 4},
        {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "min_new_tokens": 4},
    ],
    ids=str,
)
def test_cached_is_uncached(kind, options):
    model, steps = tiny(**KINDS[kind]), 0
    for seed in (3, 4):
        cached, full = (
            generated(model, seed=seed, **GREEDY, **options, use_cache=use) for use in (True, False)
        )
        assert agree(cached, full)
        assert isinstance(cached.past_key_values, RecurrentCache)
        assert full.get("past_key_values") is None
        steps += len(cached.scores)
    assert steps > 6  # not all texts end at once


@pytest.mark.parametrize("broken", ["reorder_cache", "update"])
def test_a_broken_cache_is_noticed(broken, monkeypatch):
    """The comparison above has teeth: a cache that is not reordered, or forgets, gives other texts."""
    model, options = tiny(), {**GREEDY, "num_beams": 4, "length_penalty": 0.0}
    full = generated(model, **options, use_cache=False)
    if broken == "reorder_cache":
        monkeypatch.setattr(RecurrentLayer, "reorder_cache", lambda self, index: None)
    else:
        monkeypatch.setattr(RecurrentCache, "state", lambda self, layer: None)
    assert not agree(generated(model, **options), full)


def test_the_state_decides_what_is_generated():
    model = tiny()
    one, other = (generated(model, torch.tensor([row]), **GREEDY) for row in ([5, 2], [9, 2]))
    assert one.sequences[0, 2:].tolist() != other.sequences[0, 2:].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "length_penalty": 0.0}])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_batch_is_its_rows_one_by_one(side, options, use_cache):
    model, (ids, mask) = tiny(), padded(PROMPTS, side)
    options = {**GREEDY, **options, "use_cache": use_cache}
    batch = generated(model, ids, attention_mask=mask, **options)
    alone = [generated(model, torch.tensor([row]), **options) for row in PROMPTS]
    texts = [new_tokens(one.sequences, len(row))[0] for one, row in zip(alone, PROMPTS, strict=True)]
    assert new_tokens(batch.sequences, ids.shape[1]) == texts
    assert len(set(map(tuple, texts))) == 3
    if "num_beams" in options:
        assert close([batch.sequences_scores], [torch.cat([one.sequences_scores for one in alone])])


def test_padding_is_found_by_generate_itself():
    model, (ids, mask) = tiny(), padded(PROMPTS, "left")
    assert agree(generated(model, ids, **GREEDY), generated(model, ids, attention_mask=mask, **GREEDY))


def test_a_conversation_goes_on_from_its_cache():
    model = tiny()
    first = generated(model, max_new_tokens=4, min_new_tokens=4)
    more = torch.cat([first.sequences, torch.tensor([[2, 3], [3, 4], [4, 5]])], 1)
    length = first.past_key_values.get_seq_length()
    assert length == first.sequences.shape[1] - 1
    held = copy.deepcopy(first.past_key_values)
    again = generated(model, more, past_key_values=held, **GREEDY)
    assert agree(again, generated(model, more, **GREEDY))
    assert again.past_key_values is held
    assert first.past_key_values.get_seq_length() == length


def test_a_stream_goes_on_from_its_states():
    """`states` become a cache by one run of the model, for beams too."""
    model, past, prompt = tiny(), torch.randint(2, 13, (2, 9)), torch.tensor([[3, 4, 5], [6, 7, 8]])
    states = model(past).states
    outputs = model(prompt[:, :-1], states=states)
    whole = generated(model, torch.cat([past, prompt], 1), **GREEDY, num_beams=3)
    cache = outputs.past_key_values
    cache.batch_repeat_interleave(3)
    found = generated(model, prompt, past_key_values=cache, **GREEDY, num_beams=3)
    assert found.sequences[:, 3:].tolist() == whole.sequences[:, 12:].tolist()
    with pytest.raises(
        ValueError, match="carries its state in past_key_values, found `states`. Run the model once"
    ):
        model.generate(prompt, states=states)


def test_from_vectors():
    model = tiny()
    vectors = model.get_input_embeddings()(IDS)
    for options in (GREEDY, {**GREEDY, "num_beams": 3}):
        found = model.generate(inputs_embeds=vectors, **options)
        assert found.tolist() == model.generate(IDS, **options)[:, 3:].tolist()


@pytest.mark.parametrize("kind", ["dynamic", "static", "offloaded"])
def test_other_kinds_of_cache_are_ignored(kind):
    model = tiny()
    transformers_logging.set_verbosity_error()
    assert agree(generated(model, **GREEDY, cache_implementation=kind), generated(model, **GREEDY))
    transformers_logging.set_verbosity_warning()
    assert agree(generated(model, past_key_values=DynamicCache(), **GREEDY), generated(model, **GREEDY))


def test_what_a_recurrent_model_cannot_do():
    model = tiny()
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(IDS[:1], assistant_model=tiny(), max_new_tokens=4)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(IDS[:1], prompt_lookup_num_tokens=2, max_new_tokens=4)


def test_hidden_states_of_generated_tokens():
    found = generated(tiny(), max_new_tokens=3, min_new_tokens=3, output_hidden_states=True)
    assert [[layer.shape for layer in step] for step in found.hidden_states] == [
        [(3, steps, 5), (3, steps, 7), (3, steps, 7)] for steps in (3, 1, 1)
    ]


def test_a_model_in_training_generates_with_its_cache():
    """generate() sends the last token only, so a model that made no cache in training would lose the context."""
    model = tiny().train()
    model.config.use_cache = False  # as Trainer sets it
    assert agree(generated(model, **GREEDY), generated(model.eval(), **GREEDY))


def filled() -> RecurrentCache:
    cache = RecurrentCache(2)
    for layer in (0, 1):
        cache.update(
            torch.arange(6.0).view(3, 2) + layer, torch.arange(9.0).view(3, 3) + layer, layer, tokens=4
        )
    return cache


def test_rows_of_the_cache():
    for change, rows in (
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 2])), [2, 0, 2]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    ):
        cache, before = filled(), filled()
        tensors = cache.state(1)
        assert change(cache) is None
        for layer in (0, 1):
            for new, old in zip(cache.state(layer), before.state(layer), strict=True):
                assert torch.equal(new, old[rows])
        assert close(tensors, before.state(1))  # who holds an earlier state keeps it
        assert cache.get_seq_length() == 4


def test_an_empty_cache():
    cache = RecurrentCache(2)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    cache.reorder_cache(torch.tensor([0]))
    cache.crop(0)
    assert cache.state(0) is None
    assert cache.get_seq_length() == 0
    assert cache.get_max_length() == -1
    assert cache.get_mask_sizes(3, 0) == (3, 0)
    assert filled().get_mask_sizes(3, 1) == (7, 0)
    assert not cache.is_compileable
    assert len(cache) == 2


def test_reset_forgets_and_leaves_the_tensors():
    cache, before = filled(), filled()
    tensors = cache.state(0)
    cache.reset()
    assert cache.state(0) is None
    assert cache.get_seq_length() == 0
    assert close(tensors, before.state(0))


@pytest.mark.parametrize("tokens", [-1, 3])
def test_a_cache_cannot_be_cropped(tokens):
    with pytest.raises(ValueError, match=rf"cannot be cropped \(asked for {tokens}\).*copy.deepcopy"):
        filled().crop(tokens)


def test_a_call_replaces_the_tensors_of_its_cache():
    model, cache = tiny(), RecurrentCache(2)
    model(IDS, past_key_values=cache)
    held = cache.state(0)
    copies = [part.clone() for part in held]
    model(IDS, past_key_values=cache)
    assert all(torch.equal(part, copy) for part, copy in zip(held, copies, strict=True))
    assert not torch.equal(cache.state(0)[0], held[0])
