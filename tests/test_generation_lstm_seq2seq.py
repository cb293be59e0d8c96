"""Stock `generate()` with the LSTM encoder-decoder: the same text with and without its cache, in a batch and alone."""

import copy

import pytest
import torch
from reference.lstm_lm_naive import close
from reference.lstm_seq2seq_naive import KINDS, naive_decode, naive_logits, tiny
from torch.nn import functional as F
from transformers import DynamicCache, EncoderDecoderCache
from transformers.utils import logging as transformers_logging

from heirloom.modeling.recurrent_cache import RecurrentCache, RecurrentLayer

SOURCES = [[1, 5, 2, 10], [7, 3], [4, 9, 4, 8, 2]]
IDS = F.pad(torch.tensor([[1, 5, 2], [7, 3, 9], [4, 9, 4]]), (0, 1), value=2)
GREEDY = {"max_new_tokens": 10}
ADAPTIVE = {"softmax": "adaptive", "adaptive_cutoffs": [4, 9], "cell_size": 16}
MODELS = {name: KINDS[name] for name in ("plain", "projection", "bidirectional", "joint")} | {
    "adaptive": ADAPTIVE
}


def padded(rows, side, fill=0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + 1
    ids, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        places = torch.arange(len(row)) + (0 if side == "right" else width - len(row))
        ids[number, places], mask[number, places] = torch.tensor(row), 1
    return ids, mask


def generated(model, ids=IDS, seed=3, **options):
    torch.manual_seed(seed)
    return model.generate(ids, return_dict_in_generate=True, output_scores=True, **options)


def agree(one, other) -> bool:
    """The same tokens with the same scores, of sequences and of every step."""
    if one.sequences.tolist() != other.sequences.tolist() or not close(one.scores, other.scores):
        return False
    return "sequences_scores" not in one or close([one.sequences_scores], [other.sequences_scores])


def texts(sequences) -> list[list[int]]:
    """What was generated, up to the end mark."""
    rows = sequences[:, 1:].tolist()
    return [row[: row.index(1) + 1] if 1 in row else row for row in rows]


@pytest.mark.parametrize("kind", ["plain", "projection", "bidirectional"])
def test_greedy_is_the_twins(kind):
    model = tiny(**KINDS[kind])
    for source in SOURCES:
        found = generated(model, torch.tensor([source]), **GREEDY)
        expected = [1]
        while len(expected) < 11 and (len(expected) == 1 or expected[-1] != 1):
            expected.append(int(naive_logits(model, source, expected)[-1].argmax()))
        assert found.sequences.tolist() == [expected]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "num_return_sequences": 3, "top_k": 5, "temperature": 2.0},
        {"num_beams": 2},
        {"num_beams": 4, "length_penalty": 0.0, "early_stopping": "never"},
        {"num_beams": 4, "length_penalty": 1.0, "num_return_sequences": 3},
        {"num_beams": 10, "early_stopping": True, "num_return_sequences": 4},
        {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "min_new_tokens": 4},
    ],
    ids=str,
)
def test_cached_is_uncached(kind, options):
    model, steps = tiny(**MODELS[kind]), 0
    ids, mask = padded(SOURCES, "left", fill=6)
    for seed in (3, 4):
        cached, full = (
            generated(model, ids, seed, attention_mask=mask, **GREEDY, **options, use_cache=use)
            for use in (True, False)
        )
        assert agree(cached, full)
        assert isinstance(cached.past_key_values, RecurrentCache)
        assert full.get("past_key_values") is None
        steps += len(cached.scores)
    assert steps > 6  # not all texts end at once


@pytest.mark.parametrize("broken", ["reorder_cache", "update"])
@pytest.mark.parametrize("beams", [2, 4, 10])
def test_a_broken_cache_is_noticed(broken, beams, monkeypatch):
    """The comparison above has teeth: a cache that is not reordered, or forgets, gives other texts or scores."""
    model, options = tiny(), {**GREEDY, "num_beams": beams, "length_penalty": 0.0}
    full = generated(model, **options, use_cache=False)
    assert agree(generated(model, **options), full)
    if broken == "reorder_cache":
        monkeypatch.setattr(RecurrentLayer, "reorder_cache", lambda self, index: None)
    else:
        monkeypatch.setattr(RecurrentCache, "state", lambda self, layer: None)
    assert not agree(generated(model, **options), full)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 4, "length_penalty": 0.0}])
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_batch_is_its_rows_one_by_one(side, options, use_cache):
    model, (ids, mask) = tiny(), padded(SOURCES, side, fill=6)
    options = {**GREEDY, **options, "use_cache": use_cache}
    batch = generated(model, ids, attention_mask=mask, **options)
    alone = [generated(model, torch.tensor([row]), **options) for row in SOURCES]
    found = [texts(one.sequences)[0] for one in alone]
    assert texts(batch.sequences) == found
    assert len(set(map(tuple, found))) >= 2
    if "num_beams" in options:
        assert close([batch.sequences_scores], [torch.cat([one.sequences_scores for one in alone])])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_padding_is_found_without_a_mask(options):
    """generate() makes no mask for an encoder; this encoder does, and carries it to the attention."""
    model, (ids, mask) = tiny(), padded(SOURCES, "left")
    options = {**GREEDY, **options}
    assert agree(generated(model, ids, **options), generated(model, ids, attention_mask=mask, **options))


def test_n_best_lists_and_their_scores():
    """Scores are the summed log probabilities of what was written."""
    model = tiny()
    options = {**GREEDY, "num_beams": 5, "num_return_sequences": 5, "length_penalty": 0.0}
    found = generated(model, **options)
    scores = found.sequences_scores.view(3, 5)
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    for number, text in enumerate(texts(found.sequences)):
        source = IDS[number // 5].tolist()
        logits = naive_logits(model, source, [1, *text[:-1]])
        total = sum(row.log_softmax(0)[token] for row, token in zip(logits, text, strict=True))
        assert total.item() == pytest.approx(float(found.sequences_scores[number]), abs=1e-5)  # float32 there
    assert all(len({tuple(text) for text in texts(found.sequences)[n : n + 5]}) == 5 for n in (0, 5, 10))


def test_attention_for_plots():
    """Beam search's attention, followed through the beams, is that of the text it wrote."""
    model, (ids, mask) = tiny(), padded(SOURCES, "left", fill=6)
    greedy = generated(model, ids, attention_mask=mask, **GREEDY, output_attentions=True)
    found = torch.cat([step[0] for step in greedy.cross_attentions], 2)  # (B, 1, T, S)
    assert found.shape == (3, 1, len(greedy.scores), ids.shape[1])
    for number, (source, text) in enumerate(zip(SOURCES, texts(greedy.sequences), strict=True)):
        for step, (_, looks) in enumerate(naive_decode(model, source, [1, *text[:-1]])):
            assert close([found[number, 0, step][mask[number].bool()]], [looks])
    options = {**GREEDY, "num_beams": 4, "attention_mask": mask}
    beams = generated(model, ids, **options, output_attentions=True, output_hidden_states=True)
    whole = model(ids, mask, beams.sequences[:, :-1], output_attentions=True).cross_attentions[0]
    for number, text in enumerate(texts(beams.sequences)):
        for step in range(len(text)):
            beam = int(beams.beam_indices[number, step])
            assert close([beams.cross_attentions[step][0][beam, 0, 0]], [whole[number, 0, step]])


def test_outputs_of_the_encoder_are_not_changed():
    """The stock method repeats them for beams in place; a second call would then give three times as many texts."""
    model, (ids, mask) = tiny(), padded(SOURCES, "right")
    encoded = model.get_encoder()(ids, mask)
    expected = generated(model, ids, attention_mask=mask, **GREEDY, num_beams=3)
    for _ in range(2):
        assert agree(generated(model, None, encoder_outputs=encoded, **GREEDY, num_beams=3), expected)
    assert encoded.last_hidden_state.shape[0] == 3


def test_from_vectors():
    model = tiny()
    vectors = model.get_input_embeddings()(IDS)
    for options in (GREEDY, {**GREEDY, "num_beams": 3}):
        assert torch.equal(model.generate(inputs_embeds=vectors, **options), model.generate(IDS, **options))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 4}])
def test_prompts_of_the_decoder(options, side):
    """Begun texts, also padded ones, are gone on with: cached, uncached, and alone."""
    model, prompts = tiny(), [[1, 5, 7], [1, 9], [1, 3, 3]]
    begun, places = padded(
        prompts, side, fill=1
    )  # generate() wants the start first; the mask says that it is padding
    inputs = {"decoder_input_ids": begun, "decoder_attention_mask": places, **GREEDY, **options}
    cached, full = (generated(model, **inputs, use_cache=use) for use in (True, False))
    assert agree(cached, full)
    for number, prompt in enumerate(prompts):
        alone = generated(
            model, IDS[number : number + 1], decoder_input_ids=torch.tensor([prompt]), **GREEDY, **options
        )
        found = cached.sequences[number, begun.shape[1] :].tolist()
        assert found[: alone.sequences.shape[1] - len(prompt)] == alone.sequences[0, len(prompt) :].tolist()


def test_going_on_from_a_cache():
    model = tiny()
    first = generated(model, max_new_tokens=4, min_new_tokens=4)
    held = copy.deepcopy(first.past_key_values)
    assert held.get_seq_length() == 4
    inputs = {
        "decoder_input_ids": first.sequences,
        "decoder_attention_mask": torch.ones(3, 5, dtype=torch.long),
    }
    again = generated(model, past_key_values=held, **inputs, **GREEDY)
    assert agree(again, generated(model, **inputs, **GREEDY))
    assert again.past_key_values is held


@pytest.mark.parametrize("kind", ["dynamic", "static", "offloaded"])
def test_other_kinds_of_cache_are_ignored(kind):
    model, expected = tiny(), None
    expected = generated(model, **GREEDY)
    transformers_logging.set_verbosity_error()
    assert agree(generated(model, **GREEDY, cache_implementation=kind), expected)
    transformers_logging.set_verbosity_warning()
    stock = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert agree(generated(model, past_key_values=stock, **GREEDY), expected)


def test_should_the_stock_default_come_back(monkeypatch):
    """If a later Transformers drops the private hook, generate() brings an empty cache of its own; that works too."""
    model = tiny()
    expected = generated(model, **GREEDY, num_beams=3)
    monkeypatch.setattr(type(model), "_supports_default_dynamic_cache", classmethod(lambda cls: True))
    assert agree(generated(model, **GREEDY, num_beams=3), expected)


def test_what_a_recurrent_model_cannot_do():
    model = tiny()
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        model.generate(IDS[:1], assistant_model=tiny(), max_new_tokens=4)
    with pytest.raises(ValueError, match=r"not used by the model: \['atention_mask'\]"):
        model.generate(IDS, atention_mask=torch.ones(3, 4))


def test_a_training_batch_can_be_passed_whole():
    """As Seq2SeqTrainer's predict_with_generate does."""
    model = tiny()
    more = {
        "source_lm_input_ids": IDS,
        "target_lm_input_ids": IDS,
        "target_lm_attention_mask": torch.ones_like(IDS),
    }
    for options in ({}, {"num_beams": 3}):
        found = generated(model, labels=IDS, **more, **GREEDY, **options)
        assert agree(found, generated(model, **GREEDY, **options))


def test_a_model_in_training_generates_with_its_cache():
    """generate() sends the last token only, so a model that made no cache in training would lose the context."""
    model = tiny().train()
    model.config.use_cache = False  # as Trainer sets it
    assert agree(generated(model, **GREEDY), generated(model.eval(), **GREEDY))


def test_the_start_is_the_end_mark():
    model = tiny(eos_token_id=3, decoder_start_token_id=3, bos_token_id=3)
    assert model.generation_config.decoder_start_token_id == model.generation_config.eos_token_id == 3
    found = model.generate(IDS, **GREEDY)
    assert found[:, 0].tolist() == [3, 3, 3]
