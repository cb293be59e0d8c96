"""The LSTM language model against its naive twin; padding, streams, losses, dropout, and clear errors."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from reference.lstm_lm_naive import ADAPTIVE, SAMPLED, SIZES, TIED, close, naive_losses, naive_row, tiny
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.utils import logging as transformers_logging

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import FEW_ROWS, run_lstm
from heirloom.modeling.recurrent_cache import RecurrentCache

ROWS = [[1, 5, 2, 12, 3], [7, 3], [4, 4, 9], []]


def padded(rows, how="right", width=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, T); padding holds real ids, which must not be read."""
    width = width or max(map(len, rows)) + 2
    ids, mask = torch.full((len(rows), width), 6), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        if how == "holes":
            places = torch.randperm(width)[: len(row)].sort().values
        else:
            places = torch.arange(len(row)) + (0 if how == "right" else width - len(row))
        ids[number, places], mask[number, places] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def random_states(model, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    config = model.config
    h, c = (
        torch.randn(config.num_hidden_layers, rows, n, dtype=model.dtype)
        for n in (config.hidden_size, config.cell_size)
    )
    return 0.5 * h, c


@pytest.mark.parametrize("how", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("projection", [None, 4])
def test_outputs_states_and_gradients_are_the_twins(projection, how):
    model = tiny(projection_size=projection)
    rows = [[1, 5, 2, 12], [3, 3, 7, 0]] if how == "none" else ROWS
    ids, mask = padded(rows, how) if how != "none" else (torch.tensor(rows), None)
    states = random_states(model, len(rows))
    outputs = model.model(ids, mask, states, output_hidden_states=True)
    weights = [torch.randn_like(layer) for layer in outputs.hidden_states]
    total = sum((layer * weight).sum() for layer, weight in zip(outputs.hidden_states, weights, strict=True))
    parameters = list(model.model.parameters())
    gradients = torch.autograd.grad(total, parameters)

    where = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    expected, naive_total = [torch.zeros_like(layer) for layer in outputs.hidden_states], 0
    for number, row in enumerate(rows):
        vectors, last = naive_row(model, row, [(h[number], c[number]) for h, c in zip(*states, strict=True)])
        for place, token in zip(where[number].nonzero().flatten().tolist(), vectors, strict=True):
            for layer, vector in enumerate(token):
                expected[layer][number, place] = vector.detach()
                naive_total = naive_total + (vector * weights[layer][number, place]).sum()
        for part in (0, 1):
            assert close(outputs.states[part][:, number], [state[part] for state in last])
    assert close(outputs.hidden_states, expected)
    assert torch.equal(outputs.last_hidden_state, outputs.hidden_states[-1])
    assert not any(state.requires_grad for state in outputs.states)
    assert close(gradients, torch.autograd.grad(naive_total, parameters))
    for held, state in zip(
        zip(*map(outputs.past_key_values.state, (0, 1)), strict=True), outputs.states, strict=True
    ):
        assert torch.equal(torch.stack(held), state)


@pytest.mark.parametrize("how", ["right", "left", "holes"])
@pytest.mark.parametrize("changes", [{}, {"projection_size": 4}, TIED])
def test_loss_and_scores_are_the_twins(changes, how):
    model = tiny(**changes)
    ids, mask = padded(ROWS, how)
    losses = [naive_losses(model, row) for row in ROWS]
    flat = [loss for row in losses for loss in row]
    for labels in (ids, ids.masked_fill(mask == 0, -100)):
        loss = model(ids, mask, labels=labels).loss
        assert close([loss], [sum(flat) / len(flat)])
        assert model.count_targets({"labels": labels, "attention_mask": mask}) == len(flat) == 7
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    assert close(gradients, torch.autograd.grad(sum(flat) / len(flat), parameters))
    scores = model.token_scores(ids, mask)
    assert (scores[mask == 0] == 0).all()
    for number, row in enumerate(losses):
        found = scores[number][mask[number].bool()]
        assert not len(found) or found[0] == 0
        assert close(found[1:], [-loss.detach() for loss in row])


def test_scores_do_not_depend_on_the_block(monkeypatch):
    model, (ids, mask) = tiny(), padded(ROWS)
    scores = model.token_scores(ids, mask)
    monkeypatch.setattr("heirloom.modeling.modeling_lstm_lm.BUFFER", 2 * 13)
    assert close(model.token_scores(ids, mask), scores)
    assert model.token_scores(ids[:, :1]).tolist() == [[0.0]] * 4


def test_unlabelled_positions_do_not_count():
    model, ids = tiny(), torch.tensor([[1, 5, 2, 12, 3]])
    labels = torch.tensor([[1, 5, -100, -100, 3]])
    losses = naive_losses(model, ids[0].tolist())
    assert close([model(ids, labels=labels).loss], [(losses[0] + losses[3]) / 2])
    assert model.count_targets({"labels": labels}) == 2
    assert model(ids, labels=torch.full_like(ids, -100)).loss == 0


def test_shifted_labels_reach_over_the_window():
    """Two windows of a stream, the state handed on, are one run; the last target lies in the next window."""
    model, stream = tiny(), torch.randint(0, 13, (3, 11))
    inputs, targets = stream[:, :-1], stream[:, 1:]
    whole = model(inputs, shift_labels=targets)
    first = model(inputs[:, :6], shift_labels=targets[:, :6])
    second = model(inputs[:, 6:], shift_labels=targets[:, 6:], states=first.states)
    assert close([(first.loss * 18 + second.loss * 12) / 30], [whole.loss])
    assert close([torch.cat([first.logits, second.logits], 1)], [whole.logits])
    assert close(second.states, whole.states)
    assert not torch.allclose(model(inputs[:, 6:]).logits, second.logits)  # the state matters
    assert model.count_targets({"shift_labels": targets}) == 30
    ids, mask = padded(ROWS[:3])
    shifted = model.count_targets({"shift_labels": ids, "attention_mask": mask})
    assert shifted == 10  # a row's first token too: its label is the token after it
    nowhere = ids.masked_fill(mask == 0, -100)
    assert model(ids, mask, shift_labels=ids).loss == model(ids, mask, shift_labels=nowhere).loss


@pytest.mark.parametrize("changes", [{}, ADAPTIVE, SAMPLED])
def test_parts_of_a_batch_sum_to_its_loss(changes):
    model, (ids, mask) = tiny(**changes), padded(ROWS)
    count = model.count_targets({"labels": ids, "attention_mask": mask})
    parts = [
        model(ids[n : n + 1], mask[n : n + 1], labels=ids[n : n + 1], num_items_in_batch=count)
        for n in range(4)
    ]
    assert torch.isclose(
        sum(part.loss for part in parts).double(), model(ids, mask, labels=ids).loss.double()
    )
    assert parts[1].loss > 0


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_a_step_of_few_rows_is_the_layers_step(rows, monkeypatch):
    """The cell runs without gradients, for few rows of one token, and only there."""
    cells = []
    cell = torch.lstm_cell
    monkeypatch.setattr(torch, "lstm_cell", lambda *given: cells.append(rows) or cell(*given))
    layer = torch.nn.LSTM(3, 4, batch_first=True)
    inputs, state = torch.randn(rows, 1, 3), (torch.randn(rows, 4), torch.randn(rows, 4))
    outputs, after = run_lstm(layer, inputs, state)
    assert not cells
    with torch.no_grad():
        fast, fast_after = run_lstm(layer, inputs, state)
        assert len(cells) == (rows <= FEW_ROWS)
        run_lstm(layer, inputs.expand(-1, 2, -1), state)
        run_lstm(layer, inputs, state, torch.ones(rows, dtype=torch.long))
        run_lstm(torch.nn.LSTM(3, 4, batch_first=True, proj_size=2), inputs, (state[0][:, :2], state[1]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            run_lstm(layer, inputs, state)
    assert len(cells) == (rows <= FEW_ROWS)
    torch.testing.assert_close(fast, outputs)
    torch.testing.assert_close(fast_after, after)


def test_missing_rows_of_the_states_are_zero_and_further_rows_are_kept():
    model, ids = tiny(), torch.randint(0, 13, (3, 4))
    h, c = random_states(model, 5)
    copies = h.clone(), c.clone()
    some, zeros = (h[:, :2], c[:, :2]), [torch.zeros_like(part[:, :1]) for part in (h, c)]
    filled = tuple(torch.cat(pair, 1) for pair in zip(some, zeros, strict=True))
    assert close(model.model(ids, states=some)[0], model.model(ids, states=filled)[0])
    states = model.model(ids, states=(h, c)).states
    for after, before, copy in zip(states, (h, c), copies, strict=True):
        assert torch.equal(after[:, 3:], before[:, 3:])
        assert not torch.allclose(after[:, :3], before[:, :3])
        assert torch.equal(before, copy)  # what came in was not changed


def test_a_row_without_tokens_keeps_its_state():
    model, ids = tiny(), torch.randint(0, 13, (2, 3))
    states = random_states(model, 2)
    outputs = model(ids, torch.zeros(2, 3), states, labels=ids)
    assert close(outputs.states, states)
    assert outputs.loss == 0
    assert (model.model(ids, torch.zeros(2, 3)).last_hidden_state == 0).all()


def test_vectors_instead_of_ids():
    model, (ids, mask) = tiny(), padded(ROWS)
    vectors = model.model.embed_tokens(ids)
    one, other = model(ids, mask, labels=ids), model(inputs_embeds=vectors, attention_mask=mask, labels=ids)
    assert close([one.loss, one.logits], [other.loss, other.logits])


def test_full_masks_and_no_mask_do_not_pack(monkeypatch):
    model, ids = tiny(), torch.randint(0, 13, (2, 3))
    expected = model(ids).logits
    monkeypatch.setattr("heirloom.modeling.modeling_lstm_lm.pack_padded_sequence", None)
    assert torch.equal(model(ids, torch.ones(2, 3)).logits, expected)
    shorter = model(
        F.pad(ids, (2, 1)), F.pad(torch.ones(2, 3), (2, 1))
    ).logits  # padding, but rows of one length
    assert close([shorter[:, 2:5]], [expected])


def test_chunks_through_the_cache_with_masks_are_one_run():
    """A mask over past and new positions, as generate() passes it: the last columns are read."""
    model = tiny()
    ids, mask = padded(ROWS[:3], "holes", width=9)
    whole = model.model(ids, mask)
    cache, parts = RecurrentCache(2), []
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        outputs = model.model(ids[:, start:stop], mask[:, :stop], past_key_values=cache)
        assert outputs.past_key_values is cache
        assert cache.get_seq_length() == stop
        parts.append(outputs.last_hidden_state)
    assert close([torch.cat(parts, 1)], [whole.last_hidden_state])
    assert close(outputs.states, whole.states)


def test_when_a_cache_is_returned():
    model, ids = tiny(), torch.tensor([[1, 2, 3]])
    assert model(ids).past_key_values.get_seq_length() == 3
    assert model(ids, use_cache=False).past_key_values is None
    assert model(ids, labels=ids).past_key_values is None
    model.train()
    assert model(ids).past_key_values is None
    assert model(ids, use_cache=True).past_key_values is not None
    model.config.use_cache = False
    assert model.eval()(ids).past_key_values is None


def test_logits_to_keep_and_to_skip():
    model, (ids, mask) = tiny(), padded(ROWS[:3], "left")
    logits = model(ids, mask).logits
    assert close([model(ids, mask, logits_to_keep=2).logits], [logits[:, -2:]])
    assert close([model(ids, mask, logits_to_keep=torch.tensor([0, 3])).logits], [logits[:, [0, 3]]])
    assert model(ids, mask, skip_logits=True).logits is None
    assert model(ids, mask, labels=ids).logits is not None
    model.train()
    assert model(ids, mask).logits is not None
    assert model(ids, mask, labels=ids).logits is None
    assert model(ids, mask, shift_labels=ids).logits is None
    assert model(ids, mask, labels=ids, skip_logits=False).logits is not None


def test_the_sampled_loss_is_named_and_only_for_training():
    model, full, ids = tiny(**SAMPLED), tiny(), torch.randint(0, 13, (4, 8))
    full.load_state_dict(model.state_dict())
    expected = full(ids, labels=ids)
    outputs = model(ids, labels=ids)
    assert outputs.sampled_loss is None
    assert torch.equal(outputs.loss, expected.loss)
    outputs = model.train()(ids, labels=ids)
    assert outputs.sampled_loss is outputs.loss
    assert not torch.isclose(outputs.loss, expected.loss)
    assert full.train()(ids, labels=ids).sampled_loss is None


def test_adaptive_logits_are_log_probabilities():
    model, ids = tiny(**ADAPTIVE), torch.randint(0, 13, (4, 8))
    outputs = model(ids, labels=ids)
    assert close([outputs.logits.exp().sum(-1)], [torch.ones(4, 8, dtype=torch.float64)])
    found = outputs.logits[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    assert torch.isclose(-found.mean(), outputs.loss.double())
    assert torch.allclose(found, model.token_scores(ids)[:, 1:])


@pytest.mark.parametrize("name", ["embed_tokens", "layers.0", "layers.1"])
def test_dropout_stands_between_layers_and_not_inside(name, monkeypatch):
    """What each layer reads is a dropped copy of what the layer below put out; the head reads a dropped copy too."""
    model = tiny(dropout=0.5).train()
    seen, reads, ids = {}, {}, torch.randint(0, 13, (20, 9))
    for part, module in [*model.model.named_modules(), ("lm_head", model.lm_head)]:

        def keep(module, inputs, output, part=part):
            reads[part], seen[part] = inputs[0], output[0] if isinstance(output, tuple) else output

        module.register_forward_hook(keep)
    model(ids)
    above = {"embed_tokens": "layers.0", "layers.0": "layers.1", "layers.1": "lm_head"}[name]
    kept = reads[above] != 0
    assert 0.4 < kept.double().mean() < 0.6
    assert torch.equal(reads[above], torch.where(kept, 2 * seen[name], 0))
    # the recurrence itself runs without: the layer alone, fed the same, puts out the same
    if name != "embed_tokens":
        layer = model.model.get_submodule(name)
        assert layer.dropout == 0
        assert close([layer(reads[name])[0]], [seen[name]])


def test_no_dropout_in_evaluation():
    model, ids = tiny(dropout=0.5), torch.randint(0, 13, (2, 5))
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("changes", [{}, {"projection_size": 4}, SAMPLED, ADAPTIVE])
def test_bfloat16(changes):
    model, ids = tiny(0.3, **changes), torch.randint(0, 13, (3, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [0] + [1] * 5])
    exact = model(ids, mask, labels=ids)
    half = model.to(torch.bfloat16)(ids, mask, labels=ids)
    assert half.loss.dtype == torch.float32
    assert half.states[0].dtype == torch.bfloat16
    assert abs(half.loss - exact.loss) < 0.05
    again = model(ids, mask, states=half.states, labels=ids)
    again.loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.float()(ids, mask, labels=ids, states=again.states)
    assert mixed.states[1].dtype == torch.float32
    assert mixed.loss.isfinite()


IDS = torch.tensor([[1, 5, 2], [3, 4, 12]])
H, C = torch.zeros(2, 2, 4), torch.zeros(2, 2, 7)
BAD = [
    ({}, r"either input_ids \(B, T\) or inputs_embeds.*found neither\. Pass one"),
    ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 3, 5)}, "found both. Pass one"),
    ({"input_ids": IDS.float()}, r"input_ids must be integers \(torch.long\), found torch.float32"),
    ({"input_ids": IDS[0]}, r"input_ids must be \(B, T\) token ids, shape \(any, any\); found \(3,\)"),
    ({"input_ids": IDS + 1}, r"input_ids must lie in 0\.\.12, found 2\.\.13. Use the tokenizer"),
    ({"input_ids": IDS - 2}, r"found -1\.\.10"),
    ({"input_ids": IDS[:, :0]}, r"at least one row and one position, found \(B, T\) = \(2, 0\)"),
    ({"inputs_embeds": torch.zeros(2, 3, 6)}, r"inputs_embeds must be .*\(any, any, 5\); found \(2, 3, 6\)"),
    ({"input_ids": IDS, "attention_mask": torch.ones(2, 4)}, r"attention_mask must be \(B, T\) = \(2, 3\) of 0 and 1, found \(2, 4\)"),
    ({"input_ids": IDS, "attention_mask": torch.ones(2, 1, 3, 3)}, r"found \(2, 1, 3, 3\). Pass the tokenizer's"),
    ({"input_ids": IDS, "states": (H, C[:1])}, r"states must be \(h, c\) of shapes \(2, R, 4\) and \(2, R, 7\), found"),
    ({"input_ids": IDS, "states": (C, H)}, r"found \[\(2, 2, 7\), \(2, 2, 4\)\]. Pass the `states`"),
    ({"input_ids": IDS, "states": (H, C[:, :1])}, r"found \[\(2, 2, 4\), \(2, 1, 7\)\]"),
    ({"input_ids": IDS, "states": (H,)}, r"found \[\(2, 2, 4\)\]"),
    ({"input_ids": IDS, "states": (H, C), "past_key_values": RecurrentCache(2)}, "states and past_key_values .*found both"),
    ({"input_ids": IDS, "past_key_values": RecurrentCache(3)}, r"must hold 2 layer\(s\), found 3"),
    ({"input_ids": IDS, "labels": IDS, "shift_labels": IDS}, "shift_labels already are; found both"),
    ({"input_ids": IDS, "labels": IDS[:, 1:]}, r"labels must be \(B, T\) = \(2, 3\) token ids or -100, found \(2, 2\)"),
    ({"input_ids": IDS, "shift_labels": IDS.float()}, r"shift_labels must be .*of torch.float32"),
    ({"input_ids": IDS, "labels": IDS + 1}, r"labels must lie in 0\.\.12 \(or be -100\), found 5\.\.13|found 3\.\.13"),
    ({"input_ids": IDS, "shift_labels": IDS - 3}, r"shift_labels must lie in 0\.\.12 \(or be -100\), found -2\.\.9"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "words"), BAD)
def test_bad_inputs(inputs, words):
    with pytest.raises(ValueError, match=words):
        tiny(projection_size=4, dtype=torch.float32)(**inputs)


def test_bad_caches():
    model = tiny(dtype=torch.float32)
    foreign = DynamicCache()
    foreign.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), 0)
    with pytest.raises(
        TypeError, match="must be a RecurrentCache or an empty cache, found a DynamicCache. Pass"
    ):
        model(IDS, past_key_values=foreign)
    with pytest.raises(TypeError, match="found a tuple"):
        model(IDS, past_key_values=((H, C),))
    empty = model(IDS, past_key_values=DynamicCache()).past_key_values
    assert isinstance(empty, RecurrentCache)
    with pytest.raises(
        ValueError, match=r"one row for each row of the input, found.*batch_repeat_interleave"
    ):
        model(IDS[:1], past_key_values=empty)
    wider = tiny(cell_size=8, dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"past_key_values must hold states of shapes \[\(2, 8\), \(2, 8\)\]"
    ):
        wider(IDS, past_key_values=empty)
    with pytest.raises(ValueError, match=r"or \(B, past \+ T\) = \(2, 6\) of 0 and 1, found \(2, 5\)"):
        model(IDS, torch.ones(2, 5), past_key_values=empty)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, found 0"),
        ({"projection_size": 7}, r"projection_size must lie in 1\.\.6, below cell_size, found 7. Use None"),
        ({"projection_size": 0}, r"projection_size must lie in 1\.\.6"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), found 1.0"),
        ({"initializer_range": 0.0}, "initializer_range must be positive, found 0.0"),
        ({"eos_token_id": 13}, r"eos_token_id must lie in 0\.\.12, found 13. Use None"),
        ({"softmax": "sampled"}, r'num_sampled in 1\.\.12, below vocab_size, found 8192.*use softmax="full"'),
        ({"softmax": "hierarchical"}, "softmax"),
        ({"cell_size": 7.5}, "cell_size"),
        (
            {"tie_word_embeddings": True},
            "embedding_size equal to hidden_size .*found 5 and 7. Make them equal",
        ),
        (
            {**ADAPTIVE, "embedding_size": 16, "tie_word_embeddings": True},
            "one row a word, found the adaptive one",
        ),
    ],
)
def test_bad_configs(changes, words):
    with pytest.raises(StrictDataclassError, match=words):
        LstmLMConfig(**SIZES | changes)


def test_bad_cutoffs():
    with pytest.raises(ValueError, match=r"adaptive_cutoffs must rise inside 1\.\.12, found \[9, 4\]"):
        tiny(**ADAPTIVE | {"adaptive_cutoffs": [9, 4]})


def test_a_misspelt_field_is_named(caplog):
    transformers_logging.enable_propagation()
    LstmLMConfig(num_sample=100)
    transformers_logging.disable_propagation()
    assert "LstmLMConfig has no field `num_sample`. Did you mean `num_sampled`?" in caplog.text
