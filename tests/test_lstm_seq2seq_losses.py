"""The losses of the LSTM encoder-decoder: the naive twin's, exact over micro-batches, smoothed, weighted, counted."""

import pytest
import torch
from reference.lstm_lm_naive import close
from reference.lstm_seq2seq_naive import (
    ADAPTIVE,
    KINDS,
    SAMPLED,
    SOURCES,
    TARGETS,
    TEXTS,
    batch,
    mean,
    naive_decode,
    naive_encode,
    naive_lm_losses,
    naive_logits,
    naive_losses,
    padded,
    tiny,
)
from torch.nn import functional as F
from transformers import DataCollatorForSeq2Seq

from heirloom.modeling.inputs_lstm_seq2seq import shift_right


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


@pytest.mark.parametrize("how", ["right", "left", "holes"])
@pytest.mark.parametrize("kind", ["plain", "projection", "joint", "tied"])
def test_losses_and_gradients_are_the_twins(kind, how):
    model, inputs = tiny(**KINDS[kind], source_lm_loss_weight=0.3, target_lm_loss_weight=2.0), batch(how)
    outputs = model(**inputs)
    pairs = [naive_losses(model, *pair) for pair in zip(SOURCES, TARGETS, strict=True)]
    texts = {side: [naive_lm_losses(model, side, row) for row in rows] for side, rows in TEXTS.items()}
    assert close([outputs.seq2seq_loss], [mean(pairs)])
    assert close(
        [outputs.source_lm_loss, outputs.target_lm_loss], [mean(texts["source"]), mean(texts["target"])]
    )
    expected = mean(pairs) + 0.3 * mean(texts["source"]) + 2.0 * mean(texts["target"])
    assert close([outputs.loss], [expected])
    assert model.count_targets(inputs) == sum(map(len, TARGETS)) == 11
    counts = model.count_lm_targets(inputs)
    assert counts == {"num_source_lm_items": 6, "num_target_lm_items": 10}
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(outputs.loss, parameters)
    for one, other in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-8)


def test_unlabelled_positions_and_derived_inputs():
    labels = torch.tensor([[5, 2, 1, -100], [-100, -100, 7, 1], [-100, 3, -100, 1], [-100] * 4])
    found = shift_right(labels, 1, 0)
    assert found.tolist() == [[1, 5, 2, 0], [0, 0, 1, 7], [0, 1, 0, 3], [0, 0, 0, 0]]
    assert shift_right(labels, 9, None)[1].tolist() == [9, 9, 9, 7]
    model = tiny()
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == found.tolist()
    ids, mask = padded(SOURCES)
    assert model(ids, mask, labels=torch.full((4, 3), -100)).loss == 0
    given = model(ids, mask, torch.tensor([[1, 5, 2, 9]] * 4), labels=torch.tensor([[-100, 2, -100, 1]] * 4))
    losses = [naive_losses(model, source, [5, 2, 9, 1]) for source in SOURCES]
    assert close([given.loss], [mean([[row[1], row[3]] for row in losses])])


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_stock_collator(side):
    """Its decoder inputs are the model's own, also where labels are padded on the left."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(13)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w2")),
        pad_token="w0",
        eos_token="w1",
        padding_side=side,
    )
    model = tiny()
    rows = [
        {"input_ids": source or [8], "labels": target}
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    collated = DataCollatorForSeq2Seq(tokenizer, model=model)(rows)
    assert "decoder_input_ids" in collated
    losses = [naive_losses(model, row["input_ids"], row["labels"]) for row in rows]
    assert close([model(**collated).loss], [mean(losses)])
    assert model.count_targets(collated) == 11


def parts_of(outputs) -> torch.Tensor:
    names = ("loss", "seq2seq_loss", "source_lm_loss", "target_lm_loss")
    return torch.stack([outputs.get(name, torch.tensor(0.0)).double() for name in names])


def row_of(inputs, number) -> dict:
    return {name: tensor[number : number + 1] for name, tensor in inputs.items() if number < len(tensor)}


@pytest.mark.parametrize("changes", [{}, SAMPLED, ADAPTIVE])
def test_parts_of_micro_batches_sum_to_the_whole(changes):
    """Pairs and texts in different numbers over the micro-batches, the last of them without texts."""
    model, inputs = tiny(**changes), batch()
    counts = {"num_items_in_batch": model.count_targets(inputs), **model.count_lm_targets(inputs)}
    whole = model(**inputs)
    total = sum(parts_of(model(**row_of(inputs, number), **counts)) for number in range(4))
    assert torch.allclose(total, parts_of(whole))
    assert model(**row_of(inputs, 3), **counts).source_lm_loss is None
    # the same, with pairs and texts in batches of their own
    pairs = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
    texts = {name: inputs[name] for name in inputs if name not in pairs}
    total = parts_of(model(**pairs, **counts)) + parts_of(model(**texts, **counts))
    assert torch.allclose(total, parts_of(whole))
    alone = model(**texts)
    assert alone.logits is None
    assert torch.equal(alone.target_lm_loss, whole.target_lm_loss)


def test_gradients_of_micro_batches_sum_to_the_whole():
    model, inputs = tiny(), batch("left")
    counts = {"num_items_in_batch": model.count_targets(inputs), **model.count_lm_targets(inputs)}
    model(**inputs).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for number in range(4):
        model(**row_of(inputs, number), **counts).loss.backward()
    assert close([parameter.grad for parameter in model.parameters()], expected)


def test_without_their_own_totals_texts_count_by_the_share_of_labels():
    model, inputs = tiny(), batch()
    plain, scaled = model(**inputs), model(**inputs, num_items_in_batch=44)
    assert close([parts_of(scaled)], [parts_of(plain) / 4])
    mixed = model(**inputs, num_items_in_batch=44, num_target_lm_items=10)
    assert close(
        [mixed.target_lm_loss, mixed.source_lm_loss], [plain.target_lm_loss, plain.source_lm_loss / 4]
    )
    with pytest.raises(
        ValueError,
        match=r"source_lm_input_ids came with num_items_in_batch but without labels.*Pass num_source_lm_items",
    ):
        model(source_lm_input_ids=inputs["source_lm_input_ids"], num_items_in_batch=44)
    nothing = model(**inputs | {"labels": torch.full((4, 3), -100)}, num_items_in_batch=44)
    assert nothing.loss == 0


def test_counting():
    model = tiny()
    assert model.count_targets({}) == 0
    assert model.count_lm_targets({}) == {"num_source_lm_items": 0, "num_target_lm_items": 0}
    ids = torch.tensor([[1, 5, 1], [1, 2, 0]])  # 0 is padding
    assert model.count_lm_targets({"target_lm_input_ids": ids})["num_target_lm_items"] == 3
    assert model.count_lm_targets({"source_lm_input_ids": ids})["num_source_lm_items"] == 3
    apart = tiny(encoder_pad_token_id=None)  # then only masks say so
    assert apart.count_lm_targets({"source_lm_input_ids": ids})["num_source_lm_items"] == 4
    labels, mask = torch.tensor([[5, 1]]), torch.tensor([[1, 0]])
    assert model.count_targets({"labels": labels, "decoder_attention_mask": mask}) == 1
    loss = model(
        torch.tensor([[3]]),
        decoder_input_ids=torch.tensor([[1, 5]]),
        decoder_attention_mask=mask,
        labels=labels,
    )
    assert close([loss.loss], [naive_losses(model, [3], [5])[0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_label_smoothing_is_torchs_in_training_only(smoothing):
    model, inputs = tiny(label_smoothing=smoothing), batch()
    labels = inputs["labels"]
    plain = model(**inputs)
    expected = F.cross_entropy(plain.logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    found = model.train()(**inputs)
    assert close([found.seq2seq_loss], [expected])
    assert close([found.target_lm_loss], [plain.target_lm_loss])  # language models are not smoothed
    parameters = [model.lm_head.weight, model.lm_head.bias, model.decoder.combine.weight]
    gradients = torch.autograd.grad(found.seq2seq_loss, parameters)
    assert close(gradients, torch.autograd.grad(expected, parameters))
    assert (found.seq2seq_loss == plain.seq2seq_loss) == (smoothing == 0)


def test_weights_of_the_losses():
    inputs = batch()
    model = tiny(source_lm_loss_weight=0.0)
    outputs = model(**inputs)
    assert outputs.source_lm_loss > 0  # still told
    assert close([outputs.loss], [outputs.seq2seq_loss + outputs.target_lm_loss])
    outputs.loss.backward()
    assert not model.encoder_lm_head.weight.grad.any()


@pytest.mark.parametrize("softmax", [SAMPLED, ADAPTIVE])
def test_other_softmaxes(softmax):
    model, inputs = tiny(**softmax), batch()
    outputs = model(**inputs)
    known = inputs["labels"] != -100
    scores = outputs.logits.log_softmax(2)[known]
    expected = -scores.gather(1, inputs["labels"][known].unsqueeze(1)).mean()
    assert torch.allclose(outputs.seq2seq_loss.double(), expected)
    trained = model.train()(**inputs)
    assert (trained.loss == outputs.loss) == ("num_sampled" not in softmax)
    trained.loss.backward()
    assert model.encoder.embed_tokens.weight.grad.any()


def test_a_language_model_in_training_is_dropped_like_one():
    """The text's loss in training is that of an LstmLMForCausalLM with the same random numbers."""
    from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
    from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM

    model = tiny(dropout=0.5).train()
    lm = (
        LstmLMForCausalLM(LstmLMConfig(vocab_size=13, embedding_size=6, cell_size=8, dropout=0.5))
        .double()
        .train()
    )
    lm.model.embed_tokens.load_state_dict(model.decoder.embed_tokens.state_dict())
    lm.model.layers[0].load_state_dict(model.decoder.layers[0].state_dict())
    lm.lm_head.load_state_dict(model.lm_head.state_dict())
    ids = torch.randint(1, 13, (4, 9))
    torch.manual_seed(5)
    expected = lm(ids, labels=ids).loss
    torch.manual_seed(5)
    assert torch.equal(model(target_lm_input_ids=ids).loss, expected)
