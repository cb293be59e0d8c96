"""Each deliberate mistake that a biLM could plausibly hold is seen by comparing it to the naive twin.

One config shows them all: tanh in the CNN, two highways, three layers, clips that cut, unsorted sentences of very
different lengths, words longer than C, and a second call that carries the states on.
"""

import functools
import types

import pytest
import torch
from reference.bilm_files import (
    SENTENCES,
    build,
    char_ids,
    difference,
    naive_batch,
    padded,
    random_weights,
    tiny_options,
)
from reference.bilm_naive import NaiveBilm

from heirloom.modeling import layers_elmo
from heirloom.modeling.lstmp import lstmp
from heirloom.modeling.modeling_elmo import ElmoModel

OPTIONS = tiny_options(lstm_n_layers=3, lstm_cell_clip=0.5, lstm_proj_clip=0.4, cnn_activation="tanh")
WEIGHTS = random_weights(OPTIONS, scale=0.6)
CALLS = [SENTENCES, [SENTENCES[3], SENTENCES[0], SENTENCES[2]]]


def model() -> ElmoModel:
    return build(ElmoModel, OPTIONS, WEIGHTS, torch.float64)


@functools.cache
def expected() -> list:
    """The twin's layers and states of both calls."""
    naive, states, found = NaiveBilm(OPTIONS, WEIGHTS), None, []
    for sentences in CALLS:
        layers, states = naive.run(naive_batch(sentences), states)
        found += [*padded(layers), *states]
    return found


def error(model, change=lambda ids: ids) -> float:
    """The largest difference to the twin anywhere in both calls; `change` spoils the character ids."""
    states, found = None, []
    for sentences in CALLS:
        with torch.no_grad():
            outputs = model(
                char_ids=change(char_ids(sentences)),
                states=states,
                output_hidden_states=True,
                keep_boundaries=True,
            )
        states = outputs.states
        found += [*outputs.hidden_states, *states]
    return max(difference(one, other) for one, other in zip(found, expected(), strict=True))


def cells(model):
    return [*model.lstm.forward_layers, *model.lstm.backward_layers]


def change_cells(spoil):
    """A mistake in every LSTM layer."""

    def mistake(model, monkeypatch):
        with torch.no_grad():
            for layer in cells(model):
                spoil(layer)

    return mistake


def blocks(order):
    def spoil(layer):
        for weight in (layer.weight_ih, layer.weight_hh, layer.bias):
            parts = weight.clone().chunk(4)
            weight.copy_(torch.cat([parts[place] for place in order]))

    return spoil


def swap(layer):
    layer.weight_ih.data, layer.weight_hh.data = layer.weight_hh.data, layer.weight_ih.data


def stepwise(after):
    """An LSTM that lets `after(inputs, h, c)` change the state between steps."""

    def run(inputs, batch_sizes, weight_ih, weight_hh, bias, weight_proj, state, *clips_index_precision):
        cell_clip, proj_clip, index, _ = clips_index_precision
        inputs = inputs if index is None else inputs[index]
        outputs, start, (h, c) = [], 0, [part.clone() for part in state]
        for n in batch_sizes:
            x = inputs[start : start + n]
            inner_clip = None if after is clip_late else cell_clip
            weights = weight_ih, weight_hh, bias, weight_proj
            output, (new_h, new_c) = lstmp(x, [n], *weights, (h[:n], c[:n]), inner_clip, proj_clip)
            h[:n], c[:n] = after(x, new_h, new_c)
            outputs.append(output)
            start += n
        return torch.cat(outputs), (h, c)

    return run


def clip_late(inputs, h, c):
    return h, c.clamp(-0.5, 0.5)


def clip_after_the_output(model, monkeypatch):
    monkeypatch.setattr(layers_elmo, "lstmp", stepwise(clip_late))


def residual_in_the_state(model, monkeypatch):
    run = stepwise(lambda inputs, h, c: (h + inputs, c))
    for layers in (model.lstm.forward_layers, model.lstm.backward_layers):
        for layer in layers[1:]:
            forward = layer.forward

            def leaking(*inputs, forward=forward):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(layers_elmo, "lstmp", run)
                    return forward(*inputs)

            layer.forward = leaking


def residual_into_the_first_layer(model, monkeypatch):
    for layers in (model.lstm.forward_layers, model.lstm.backward_layers):
        forward = layers[0].forward

        def added(inputs, *rest, forward=forward):
            outputs, state = forward(inputs, *rest)
            read = inputs[rest[2]]  # layer 1 reads distinct words by their index
            return outputs + read, state

        layers[0].forward = added


def no_residual(model, monkeypatch):
    model.lstm.use_skip_connections = False


def directions_swapped(model, monkeypatch):
    model.lstm.forward_layers, model.lstm.backward_layers = (
        model.lstm.backward_layers,
        model.lstm.forward_layers,
    )


def change_highways(spoil):
    def mistake(model, monkeypatch):
        for highway in model.token_encoder.highways:
            spoil(highway)

    return mistake


def negate_gate(highway):
    highway.gate.weight.data.neg_(), highway.gate.bias.data.neg_()


def tanh_highway(highway):
    def forward(self, inputs):
        gate = self.gate(inputs).sigmoid()
        return gate * self.transform(inputs).tanh() + (1 - gate) * inputs

    highway.forward = types.MethodType(forward, highway)


def change_convolutions(spoil):
    def mistake(model, monkeypatch):
        for convolution in model.token_encoder.convolutions:
            spoil(convolution)

    return mistake


def flip(convolution):
    convolution.weight.data = convolution.weight.data.flip(2)


def same(convolution):
    convolution.padding = "same"


def blind_to_padding(model, monkeypatch):
    def convolve(self, ids):
        chars, pooled = self.char_embeddings(ids).transpose(1, 2), []
        for convolution in self.convolutions:
            values = convolution(chars)
            padding = (ids == self.pad_char_id)[
                :, None, : values.shape[2]
            ]  # windows that begin in the padding
            pooled.append(self.activation(values.masked_fill(padding, float("-inf")).amax(2)))
        return torch.cat(pooled, 1)

    model.token_encoder._convolve = types.MethodType(convolve, model.token_encoder)


def trimmed_too_short(model, monkeypatch):
    def trim(self, ids):
        used = (ids != self.pad_char_id).any(0).sum()
        return ids[:, :used]

    encode = model.token_encoder._encode
    model.token_encoder._trim = types.MethodType(trim, model.token_encoder)
    # Beside a word of full length nothing can be cut.
    model.token_encoder._encode = lambda words: torch.cat([encode(word) for word in words.split(1)])


def backward_over_padding(model, monkeypatch):
    forward = model.lstm.forward

    def padded_forward(vectors, lengths, states, index):
        inputs = vectors[index]
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        rectangle = inputs.new_zeros(*mask.shape, inputs.shape[1])
        rectangle[mask] = inputs
        layers, states = forward(rectangle.flatten(0, 1), torch.full_like(lengths, mask.shape[1]), states)
        return [layer[mask.flatten()] for layer in layers], states

    model.lstm.forward = padded_forward


def sorted_states(model, monkeypatch):
    pack = layers_elmo.pack
    monkeypatch.setattr(
        layers_elmo, "pack", lambda lengths: (torch.arange(int((lengths > 0).sum())), *pack(lengths)[1:])
    )


def states_not_carried(model, monkeypatch):
    forward = model.lstm.forward
    model.lstm.forward = lambda inputs, lengths, states, index: forward(
        inputs, lengths, states and (states[0] * 0, states[1] * 0), index
    )


def marks_without_plus_one(model, monkeypatch):
    for mark in ("bos", "eos", "bow", "eow", "pad"):
        setattr(model.config, f"{mark}_char_id", getattr(model.config, f"{mark}_char_id") - 1)


def sentence_marks_swapped(model, monkeypatch):
    model.config.bos_char_id, model.config.eos_char_id = model.config.eos_char_id, model.config.bos_char_id


def words_told_apart_by_few_characters(model, monkeypatch):
    distinct = layers_elmo.distinct_rows

    def few(rows):
        _, inverse, keys = distinct(rows[:, :4])
        first = torch.tensor([int((inverse == word).nonzero()[0]) for word in range(int(inverse.max()) + 1)])
        return rows[first], inverse, keys

    monkeypatch.setattr(layers_elmo, "distinct_rows", few)


MISTAKES = {
    "gates read as i, f, g, o": change_cells(blocks([0, 2, 1, 3])),
    "gates o and f swapped": change_cells(blocks([0, 3, 2, 1])),
    "[h, x] instead of [x, h]": change_cells(swap),
    "no forget bias": change_cells(lambda layer: setattr(layer, "forget_bias", 0.0)),
    "forget bias twice": change_cells(lambda layer: setattr(layer, "forget_bias", 2.0)),
    "no cell clip": change_cells(lambda layer: setattr(layer, "cell_clip", None)),
    "no projection clip": change_cells(lambda layer: setattr(layer, "proj_clip", None)),
    "cell clipped after the output": clip_after_the_output,
    "residual also into layer 1": residual_into_the_first_layer,
    "residual missing": no_residual,
    "residual leaks into the state": residual_in_the_state,
    "directions swapped": directions_swapped,
    "highway gate sign": change_highways(negate_gate),
    "highway uses the CNN activation": change_highways(tanh_highway),
    "kernel flipped": change_convolutions(flip),
    "SAME instead of VALID": change_convolutions(same),
    "max ignores padding characters": blind_to_padding,
    "padding cut too short": trimmed_too_short,
    "backward over padding": backward_over_padding,
    "states in length-sorted order": sorted_states,
    "states not carried": states_not_carried,
    "marks without + 1": marks_without_plus_one,
    "sentence marks swapped": sentence_marks_swapped,
    "different words held to be the same": words_told_apart_by_few_characters,
}


def without_plus_one(ids):
    return (ids - 1).clamp(min=0)


def long_words(keep):
    """Words over 48 bytes spelled again from all their bytes."""

    def change(ids):
        sentences = CALLS[0] if len(ids) == len(CALLS[0]) else CALLS[1]
        for row, sentence in enumerate(sentences):
            for t, word in enumerate(sentence):
                if len(word.encode()) > 48:
                    spelled = [259, *[byte + 1 for byte in keep(word)], 260]
                    ids[row, t] = torch.tensor((spelled + [261] * 50)[:50])
        return ids

    return change


SPELLINGS = {
    "characters without + 1": without_plus_one,
    "49 bytes kept": long_words(lambda word: word.encode()[:49]),
    "47 bytes kept": long_words(lambda word: word.encode()[:47]),
    "cut at whole characters": long_words(lambda word: word.encode()[:48].decode(errors="ignore").encode()),
    "padding spelled with the padding id": lambda ids: ids.masked_fill(ids == 261, 0),
}


def test_without_a_mistake_there_is_no_difference():
    assert error(model()) < 1e-12


def test_both_clips_cut_here():
    _, *_, h, c = expected()
    assert (abs(c) == 0.5).mean() > 0.1
    assert (abs(h) == 0.4).mean() > 0.1


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_model_is_seen(mistake, monkeypatch):
    spoiled = model()
    MISTAKES[mistake](spoiled, monkeypatch)
    assert error(spoiled) > 1e-2


@pytest.mark.parametrize("mistake", SPELLINGS)
def test_a_mistake_in_the_spelling_is_seen(mistake):
    assert error(model(), SPELLINGS[mistake]) > 1e-2
