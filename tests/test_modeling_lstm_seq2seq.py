"""The LSTM encoder-decoder against its naive twin; padding, ablations, caches, dropout, clear errors."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from reference.lstm_lm_naive import close
from reference.lstm_seq2seq_naive import (
    ADAPTIVE,
    KINDS,
    SIZES,
    SOURCES,
    TARGETS,
    TEXTS,
    batch,
    naive_decode,
    naive_encode,
    naive_layer,
    naive_logits,
    padded,
    tiny,
)
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.recurrent_cache import RecurrentCache


@pytest.mark.parametrize("how", ["right", "left", "holes"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_attention_and_gradients_are_the_twins(kind, how):
    model = tiny(**KINDS[kind])
    ids, mask = padded(SOURCES, how)
    targets, places = padded(TARGETS, how)
    outputs = model(ids, mask, targets, places, output_attentions=True, output_hidden_states=True)
    weights, total, naive_total = torch.randn_like(outputs.logits), 0, 0
    for number, (source, target) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        where, columns = places[number].nonzero().flatten(), mask[number].bool()
        naive = naive_decode(model, source, target)
        logits = naive_logits(model, source, target)
        for step, place in enumerate(where.tolist()):
            assert close([outputs.logits[number, place]], [logits[step]])
            looks = outputs.cross_attentions[0][number, 0, place]
            assert close([looks[columns]], [naive[step][1]])
            assert (looks[~columns] == 0).all()
            total = total + (outputs.logits[number, place] * weights[number, place]).sum()
            naive_total = naive_total + (logits[step] * weights[number, place]).sum()
        layers, _ = naive_encode(model, source)
        for layer, vectors in zip(outputs.encoder_hidden_states, layers, strict=True):
            assert not len(vectors) or close([layer[number][columns]], [torch.stack(vectors)])
            assert (layer[number][~columns] == 0).all()
    assert outputs.logits.shape == (4, 7, 13)
    assert len(outputs.decoder_hidden_states) == model.config.num_hidden_layers + 1
    names, parameters = zip(
        *[pair for pair in model.named_parameters() if "encoder_lm_head" not in pair[0]], strict=True
    )
    gradients = torch.autograd.grad(total, parameters, materialize_grads=True)
    expected = torch.autograd.grad(naive_total, parameters, materialize_grads=True)
    for name, one, other in zip(names, gradients, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-8), name
        assert (one != 0).any(), name  # everything is trained


def test_without_padding_nothing_is_packed(monkeypatch):
    model = tiny(projection_size=6)
    ids, targets = torch.randint(1, 11, (3, 5)), torch.randint(1, 13, (3, 4))
    expected = model(ids, decoder_input_ids=targets).logits
    monkeypatch.setattr("heirloom.modeling.modeling_lstm_lm.pack_padded_sequence", None)
    assert torch.equal(model(ids, torch.ones(3, 5), targets, torch.ones(3, 4)).logits, expected)
    assert close([expected[1]], [torch.stack(naive_logits(model, ids[1].tolist(), targets[1].tolist()))])


def test_a_batch_is_its_rows_one_by_one():
    model = tiny(projection_size=6)
    ids, mask = padded(SOURCES, "left")
    targets, places = padded(TARGETS, "left")
    logits = model(ids, mask, targets, places).logits
    for number, (source, target) in enumerate(zip(SOURCES[:3], TARGETS, strict=False)):
        alone = model(torch.tensor([source]), decoder_input_ids=torch.tensor([target])).logits
        assert close([logits[number, -len(target) :]], [alone[0]])


def test_the_first_layers_are_language_models():
    """The decoder's first layer starts from zero, whatever the source; the layers above start from the encoder."""
    model, targets = tiny(), torch.tensor([[1, 5, 7], [1, 5, 7]])
    sources = torch.tensor([[2, 3, 4], [9, 8, 1]])
    outputs = model(sources, decoder_input_ids=targets, output_hidden_states=True)
    layers = outputs.decoder_hidden_states
    vectors = [model.decoder.embed_tokens.weight[token] for token in (1, 5, 7)]
    assert torch.equal(layers[1][0], layers[1][1])
    assert close([layers[1][0]], [torch.stack(naive_layer(model.decoder.layers[0], vectors)[0])])
    for layer in layers[2:]:
        assert not torch.allclose(layer[0], layer[1])
    encoded = model.encoder(sources)
    assert close([encoded.first_hidden_state], [model.encoder.read_text(sources, None)])
    for depth in (2, 3):
        _, states = naive_encode(model, [2, 3, 4])
        assert close([encoded.final_h[0, depth - 2], encoded.final_c[0, depth - 2]], states[depth - 1])


def test_the_decoder_at_zero_is_its_language_model_to_the_bit():
    model = tiny(zero_init=True)
    torch.nn.init.zeros_(model.decoder.combine.weight)
    torch.nn.init.zeros_(model.decoder.combine.bias)
    inputs = batch()
    labels = torch.tensor([[5, 2, 1]] * 4)
    text = torch.tensor([[1, 5, 2, 1]] * 4)
    outputs = model(inputs["input_ids"], inputs["attention_mask"], labels=labels, target_lm_input_ids=text)
    assert torch.equal(outputs.seq2seq_loss, outputs.target_lm_loss)
    outputs.seq2seq_loss.backward()
    assert (model.decoder.combine.weight.grad != 0).any()  # it learns from the first step on
    fresh = LstmSeq2SeqConfig(**SIZES, zero_init=True)
    fresh = type(model)(fresh)
    assert not fresh.decoder.combine.weight.any()
    assert fresh.decoder.layers[1].weight_ih_l0.any()


@pytest.mark.parametrize("switch", ["residual", "attention_tanh", "multi_layer_attention"])
def test_switches_of_the_ablations(switch):
    """Each changes the logits, and by what it names alone."""
    model, other = tiny(), tiny(**{switch: False})
    state, columns = model.state_dict(), slice(4, 12)  # of [s; c^1; c^L], where c^1 stands
    weight = state["decoder.combine.weight"].clone()
    if switch == "multi_layer_attention":
        state["decoder.combine.weight"] = torch.cat([weight[:, :4], weight[:, 12:]], 1)
    other.load_state_dict(state)
    ids, targets = torch.tensor([[2, 3, 4]]), torch.tensor([[1, 5, 7]])
    one, two = (m(ids, decoder_input_ids=targets).logits for m in (model, other))
    assert not torch.allclose(one, two)
    first = model.decoder.read_text(targets, None)
    if switch == "residual":
        assert close([one - two], [first @ model.lm_head.weight.T])
    if switch == "attention_tanh":
        added = [
            F.linear(logits - model.lm_head(first), torch.linalg.pinv(model.lm_head.weight))
            for logits in (one, two)
        ]
        assert close([added[0]], [added[1].tanh()])
    if switch == "multi_layer_attention":
        with torch.no_grad():
            model.decoder.combine.weight[:, columns] = 0.0
        assert close([model(ids, decoder_input_ids=targets).logits], [two])


def test_the_weights_of_the_last_layer_pool_the_first():
    """Where they lie on one source token, the first layer's context is that token's state."""
    model, ids = tiny(residual=False, attention_tanh=False), torch.tensor([[2, 3, 4]])
    with torch.no_grad():
        model.decoder.combine.weight.zero_()
        model.decoder.combine.bias.zero_()
        model.decoder.combine.weight[:, 4:12] = torch.eye(8)
    source, start = model.encoder(ids), torch.tensor([[1]])
    query = model(encoder_outputs=source, decoder_input_ids=start, output_hidden_states=True)
    for place in range(3):
        source.last_hidden_state = torch.zeros(1, 3, 4, dtype=torch.float64)
        source.last_hidden_state[0, place] = 1e4 * query.decoder_hidden_states[-1][0, 0].sign()
        outputs = model(encoder_outputs=source, decoder_input_ids=start, output_attentions=True)
        assert outputs.cross_attentions[0].flatten().argmax() == place
        assert close([outputs.logits[0, 0]], [model.lm_head(source.first_hidden_state[0, place])])


def test_padding_is_found_by_its_id():
    model = tiny()
    ids, mask = padded(SOURCES[:3], fill=0)
    labels = torch.tensor([[5, 1]] * 3)
    assert torch.equal(model(ids, labels=labels).loss, model(ids, mask, labels=labels).loss)
    text = {"target_lm_input_ids": padded(TEXTS["target"], fill=0)[0]}
    mask = padded(TEXTS["target"], fill=0)[1]
    assert torch.equal(model(**text).loss, model(**text, target_lm_attention_mask=mask).loss)
    joint = tiny(**KINDS["joint"], pad_token_id=1)  # padding that also ends sentences says nothing
    ones = torch.tensor([[1, 4, 1]])
    assert torch.equal(
        joint(ones, labels=labels[:1]).loss, joint(ones, torch.ones(1, 3), labels=labels[:1]).loss
    )
    assert joint.count_lm_targets({"target_lm_input_ids": ones})["num_target_lm_items"] == 2


def test_when_a_cache_and_logits_are_made():
    model, ids, labels = tiny(), torch.tensor([[2, 3]]), torch.tensor([[5, 1]])
    start = torch.tensor([[1, 5]])
    assert model(ids, decoder_input_ids=start).past_key_values.get_seq_length() == 2
    assert model(ids, decoder_input_ids=start, use_cache=False).past_key_values is None
    assert model(ids, labels=labels).past_key_values is None
    logits = model(ids, labels=labels).logits
    assert close([model(ids, labels=labels, logits_to_keep=1).logits], [logits[:, -1:]])
    assert model(ids, labels=labels, skip_logits=True).logits is None
    model.train()
    assert model(ids, decoder_input_ids=start).past_key_values is None
    assert model(ids, labels=labels).logits is None
    assert model(ids, labels=labels, skip_logits=False).logits is not None


def test_chunks_through_the_cache_with_masks_are_one_run():
    model = tiny(projection_size=6)
    ids, mask = padded(SOURCES, "left")
    targets, places = padded([*TARGETS[:3], [2, 3, 4]], "holes", width=9)
    source = model.encoder(ids, mask)
    whole = model(encoder_outputs=source, decoder_input_ids=targets, decoder_attention_mask=places)
    cache, parts = RecurrentCache(3), []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        outputs = model(
            encoder_outputs=source,
            decoder_input_ids=targets[:, start:stop],
            decoder_attention_mask=places[:, :stop],
            past_key_values=cache,
        )
        assert outputs.past_key_values is cache
        parts.append(outputs.logits)
    found, known = torch.cat(parts, 1), places.bool()
    assert close([found[known]], [whole.logits[known]])


def test_vectors_and_outputs_of_the_encoder_instead_of_ids():
    model, (ids, mask) = tiny(), padded(SOURCES)
    labels = torch.tensor([[5, 2, 1]] * 4)
    expected = model(ids, mask, labels=labels).loss
    vectors = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=vectors, attention_mask=mask, labels=labels).loss, expected)
    encoded = model.get_encoder()(ids, mask)
    for form in (encoded, dict(encoded), encoded.to_tuple()):
        assert torch.equal(model(encoder_outputs=form, labels=labels).loss, expected)
    assert isinstance(model(ids, mask, labels=labels, return_dict=False), tuple)


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_dropout_on_every_input_and_not_inside(name):
    model = tiny(dropout=0.5).train()
    seen, reads = {}, {}
    side = model.get_submodule(name)
    ids, labels = torch.randint(1, 11, (20, 9)), torch.randint(1, 13, (20, 7))
    for part, module in [*side.named_modules(), ("lm_head", model.lm_head)]:

        def keep(module, inputs, output, part=part):
            reads[part], seen[part] = (
                inputs[0] if inputs else None,
                output[0] if isinstance(output, tuple) else output,
            )

        module.register_forward_hook(keep)
    model(ids, labels=labels, skip_logits=False)
    for below, above in (("embed_tokens", "layers.0"), ("layers.0", "layers.1"), ("layers.1", "layers.2")):
        kept = reads[above] != 0
        assert 0.4 < kept.double().mean() < 0.6
        assert torch.equal(reads[above], torch.where(kept, 2 * seen[below], 0))
        assert model.get_submodule(f"{name}.{above}").dropout == 0
    if name == "decoder":
        assert 0.4 < (reads["combine"] == 0).double().mean() < 0.6
        assert 0.4 < (reads["lm_head"] == 0).double().mean() < 0.6
    model.eval()
    assert torch.equal(model(ids, labels=labels).logits, model(ids, labels=labels).logits)


@pytest.mark.parametrize("kind", ["projection", "bidirectional"])
def test_bfloat16(kind):
    model, inputs = tiny(0.3, **KINDS[kind]), batch()
    if kind == "bidirectional":
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
    exact = model(**inputs)
    half = model.to(torch.bfloat16)(**inputs)
    assert half.loss.dtype == torch.float32
    assert abs(half.loss - exact.loss) < 0.1
    half.loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.float()(**inputs).loss.isfinite()
        tokens = model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=3
        )
    assert tokens.shape == (4, 4)


IDS, LABELS = torch.tensor([[1, 5, 2], [3, 4, 10]]), torch.tensor([[5, 12], [3, 1]])
BAD = [
    ({}, r"reads either input_ids \(B, T\) or their vectors.*found neither. Pass one"),
    ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 3, 6), "labels": LABELS}, "found both. Pass one"),
    ({"input_ids": IDS}, "decoder needs decoder_input_ids or labels, found neither. Pass labels for training"),
    ({"labels": LABELS}, r"reads either input_ids .*found neither"),
    ({"input_ids": IDS.float(), "labels": LABELS}, r"input_ids must be integers \(torch.long\), found torch.float32"),
    ({"input_ids": IDS + 1, "labels": LABELS}, r"input_ids must lie in 0\.\.10, found 2\.\.11"),
    ({"input_ids": IDS[:, :0], "labels": LABELS}, r"at least one row and one position, found \(B, T\) = \(2, 0\)"),
    ({"inputs_embeds": torch.zeros(2, 3, 5), "labels": LABELS}, r"inputs_embeds must be .*\(any, any, 6\)"),
    ({"input_ids": IDS, "attention_mask": torch.ones(2, 4), "labels": LABELS}, r"attention_mask must be \(B, T\) = \(2, 3\) of 0 and 1, found \(2, 4\)"),
    ({"input_ids": IDS, "decoder_input_ids": LABELS + 1}, r"decoder_input_ids must lie in 0\.\.12, found 2\.\.13"),
    ({"input_ids": IDS, "decoder_input_ids": LABELS, "decoder_attention_mask": torch.ones(2, 1)}, r"decoder_attention_mask must be \(B, T\) = \(2, 2\)"),
    ({"input_ids": IDS, "labels": LABELS + 1}, r"labels must lie in 0\.\.12 \(or be -100\), found 2\.\.13. Use the tokenizer of the target"),
    ({"input_ids": IDS, "labels": LABELS.float()}, r"labels must be .*of torch.float32"),
    ({"input_ids": IDS, "labels": LABELS[0]}, r"labels must be \(B, T\) token ids, shape \(any, any\); found \(2,\)"),
    ({"input_ids": IDS, "decoder_input_ids": IDS, "labels": LABELS}, r"labels must be \(B, T\) = \(2, 3\) token ids or -100, found \(2, 2\)"),
    ({"input_ids": IDS, "labels": LABELS[:1]}, r"encoder_outputs must be what this model's encoder returned for 1 row\(s\), with last_hidden_state of shape \(1, any, 4\); found \(2, 3, 4\)"),
    ({"encoder_outputs": (torch.zeros(2, 3, 4),), "labels": LABELS}, r"with first_hidden_state of shape \(2, any, 8\); found None. Pass model.get_encoder"),
    ({"source_lm_input_ids": IDS + 1}, r"source_lm_input_ids must lie in 0\.\.10"),
    ({"target_lm_input_ids": IDS + 3}, r"target_lm_input_ids must lie in 0\.\.12"),
    ({"target_lm_input_ids": IDS, "target_lm_attention_mask": torch.ones(2, 2)}, r"target_lm_attention_mask must be"),
    ({"input_ids": IDS, "decoder_input_ids": LABELS, "past_key_values": RecurrentCache(2)}, r"must hold 3 layer\(s\), found 2"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "words"), BAD)
def test_bad_inputs(inputs, words):
    with pytest.raises(ValueError, match=words):
        tiny(dtype=torch.float32)(**inputs)


def test_bad_caches_and_texts():
    model = tiny(dtype=torch.float32)
    foreign = DynamicCache()
    foreign.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), 0)
    with pytest.raises(TypeError, match="must be a RecurrentCache or an empty cache, found a DynamicCache"):
        model(IDS, decoder_input_ids=LABELS, past_key_values=foreign)
    cache = model(IDS, decoder_input_ids=LABELS).past_key_values
    with pytest.raises(
        ValueError,
        match=r"past_key_values must hold states of shapes \[\(1, 8\), \(1, 8\)\].*found \[\(2, 8\)",
    ):
        model(IDS[:1], decoder_input_ids=LABELS[:1], past_key_values=cache)
    with pytest.raises(
        ValueError, match="bidirectional_encoder holds no language model, found source_lm_input_ids"
    ):
        tiny(**KINDS["bidirectional"])(source_lm_input_ids=IDS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_vocab_size": 0}, "encoder_vocab_size must be at least 1, found 0"),
        ({"upper_size": 0}, "upper_size must be at least 1"),
        ({"num_hidden_layers": 1}, "num_hidden_layers must be at least 2, found 1"),
        ({"projection_size": 8}, r"projection_size must lie in 1\.\.7, below cell_size, found 8"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), found 1.0"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\)"),
        ({"source_lm_loss_weight": -1.0}, "source_lm_loss_weight must not be negative, found -1.0. Use 0"),
        ({"eos_token_id": 13}, r"eos_token_id must lie in 0\.\.12, found 13"),
        ({"decoder_start_token_id": 13}, r"decoder_start_token_id must lie in 0\.\.12, found 13"),
        ({"encoder_pad_token_id": 11}, r"encoder_pad_token_id must lie in 0\.\.10, found 11"),
        (
            {"encoder_vocab_size": None},
            "encoder_pad_token_id is for a separate source vocabulary, found 0 without",
        ),
        (
            {"bidirectional_encoder": True, "upper_size": 5},
            "found odd sizes {'upper_size': 5}. Make them even",
        ),
        ({"zero_init": True, "residual": False}, "zero_init begins with nothing but the residual"),
        ({"softmax": "sampled", "num_sampled": 11}, r"num_sampled in 1\.\.10"),
        ({**ADAPTIVE, "label_smoothing": 0.1}, "label_smoothing needs the full softmax, found 'adaptive'"),
        (
            {"tie_word_embeddings": True},
            "embedding_size equal to hidden_size .*found 6 and 8. Make them equal",
        ),
        ({**ADAPTIVE, "tie_word_embeddings": True}, "one row a word, found the adaptive one"),
        ({"initializer_range": 0.0}, "initializer_range must be positive"),
    ],
)
def test_bad_configs(changes, words):
    with pytest.raises(StrictDataclassError, match=words):
        LstmSeq2SeqConfig(**SIZES | changes)


def test_a_misspelt_field_is_named(caplog):
    transformers_logging.enable_propagation()
    LstmSeq2SeqConfig(uper_size=100)
    transformers_logging.disable_propagation()
    assert "LstmSeq2SeqConfig has no field `uper_size`. Did you mean `upper_size`?" in caplog.text
