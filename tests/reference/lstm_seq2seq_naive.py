"""The readable twin of `heirloom.modeling.modeling_lstm_seq2seq`: one row, one token, one sum at a time.

Written from Ramachandran, Liu & Le 2017, with the model's own parameters. Also the tiny models of its tests, with weights
so large that states and attention matter.
"""

import torch
from torch import Tensor

from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration
from reference.lstm_lm_naive import naive_step

SIZES = {
    "vocab_size": 13,
    "encoder_vocab_size": 11,
    "encoder_pad_token_id": 0,
    "embedding_size": 6,
    "cell_size": 8,
    "upper_size": 4,
    "num_hidden_layers": 3,
    "dropout": 0.0,
}
KINDS = {
    "plain": {},
    "projection": {"projection_size": 6},
    "two layers": {"num_hidden_layers": 2},
    "joint": {"encoder_vocab_size": None, "encoder_pad_token_id": None},
    "tied": {"projection_size": 6, "tie_word_embeddings": True},
    "bidirectional": {"bidirectional_encoder": True, "projection_size": 6},
    "no residual": {"residual": False},
    "no tanh": {"attention_tanh": False},
    "one context": {"multi_layer_attention": False},
}
SOURCES = [[1, 5, 2, 10, 3], [7, 3], [4, 4, 9], []]
TARGETS = [[5, 2, 1], [12, 7, 8, 8, 1], [1], [3, 1]]
TEXTS = {
    "source": [[1, 4, 9, 3, 1], [1, 2, 1], [7]],
    "target": [[1, 12, 1], [1, 8, 8, 7, 6, 1], [1, 5, 4, 1]],
}
ADAPTIVE = {"softmax": "adaptive", "adaptive_cutoffs": [4, 9], "cell_size": 16}
SAMPLED = {"softmax": "sampled", "num_sampled": 6}


def padded(rows, how="right", fill=6, width=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (B, T); padding holds real ids by default, which must not be read."""
    width = width or max(map(len, rows)) + 2
    ids, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        if how == "holes":
            places = torch.randperm(width)[: len(row)].sort().values
        else:
            places = torch.arange(len(row)) + (0 if how == "right" else width - len(row))
        ids[number, places], mask[number, places] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask


def batch(how="right") -> dict[str, torch.Tensor]:
    """Everything that a batch may hold."""
    ids, mask = padded(SOURCES, how)
    found = {"input_ids": ids, "attention_mask": mask, "labels": padded(TARGETS, how, fill=-100)[0]}
    for side, rows in TEXTS.items():
        found[f"{side}_lm_input_ids"], found[f"{side}_lm_attention_mask"] = padded(rows, how)
    return found


def mean(losses) -> Tensor:
    """Over all losses of all rows."""
    flat = [loss for row in losses for loss in row]
    return sum(flat) / len(flat)


def tiny(scale: float = 0.9, dtype=torch.float64, **changes) -> LstmSeq2SeqForConditionalGeneration:
    """A model for evaluation, its weights uniform in [-scale, scale], its logits up to 4 times as far apart."""
    model = LstmSeq2SeqForConditionalGeneration(LstmSeq2SeqConfig(**SIZES | changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(-scale, scale).mul_(4 if "lm_head" in name else 1)
    return model.to(dtype).eval()


def naive_layer(layer, inputs: list[Tensor], h: Tensor | None = None, c: Tensor | None = None):
    """Outputs of one LSTM layer, and its last h and c; from zero by default."""
    weights = dict(layer.named_parameters())
    zeros = weights["bias_ih_l0"].new_zeros
    h = zeros(layer.proj_size or layer.hidden_size) if h is None else h
    c = zeros(layer.hidden_size) if c is None else c
    outputs = []
    for x in inputs:
        h, c = naive_step(weights, x, h, c)
        outputs.append(h)
    return outputs, h, c


def naive_encode(model, ids: list[int]) -> tuple[list[list[Tensor]], list[tuple[Tensor, Tensor]]]:
    """Outputs of each layer, the embeddings first, and each layer's last h and c."""
    encoder = model.encoder
    layers, states = [[encoder.embed_tokens.weight[token] for token in ids]], []
    for number, layer in enumerate(encoder.layers):
        outputs, h, c = naive_layer(layer, layers[-1])
        if encoder.backward_layers is not None:
            back, back_h, back_c = naive_layer(encoder.backward_layers[number], layers[-1][::-1])
            outputs = [torch.cat(pair) for pair in zip(outputs, back[::-1], strict=True)]
            h, c = torch.cat([h, back_h]), torch.cat([c, back_c])
        layers.append(outputs)
        states.append((h, c))
    return layers, states


def naive_decode(model, source: list[int], target: list[int]) -> list[tuple[Tensor, Tensor]]:
    """For each target token what the softmax reads (P,), and how much it looks at each source token (S,)."""
    config, decoder = model.config, model.decoder
    layers, states = naive_encode(model, source)
    hidden = [decoder.embed_tokens.weight[token] for token in target]
    first = None
    for number, layer in enumerate(decoder.layers):
        start = (None, None) if number == 0 else states[number]  # the first layer starts from zero
        hidden, _, _ = naive_layer(layer, hidden, *start)
        first = hidden if number == 0 else first
    found = []
    for s1, s in zip(first, hidden, strict=True):
        weights, contexts = s.new_zeros(0), [torch.zeros_like(s1), torch.zeros_like(s)]
        if source:
            scores = torch.stack([s @ h for h in layers[-1]]).exp()
            weights = scores / scores.sum()
            contexts = [
                sum(weight * h for weight, h in zip(weights, layers[depth], strict=True)) for depth in (1, -1)
            ]
        parts = [s, *contexts] if config.multi_layer_attention else [s, contexts[1]]
        a = decoder.combine.weight @ torch.cat(parts) + decoder.combine.bias
        a = a.tanh() if config.attention_tanh else a
        found.append((s1 + a if config.residual else a, weights))
    return found


def naive_logits(model, source: list[int], target: list[int]) -> list[Tensor]:
    """(V,) for the token after each target token."""
    weight, bias = model.lm_head.weight, model.lm_head.bias
    return [weight @ output + bias for output, _ in naive_decode(model, source, target)]


def naive_losses(model, source: list[int], labels: list[int]) -> list[Tensor]:
    """-log p of each label."""
    start = model.config.decoder_start_token_id
    logits = naive_logits(model, source, [start, *labels[:-1]])
    return [row.exp().sum().log() - row[label] for row, label in zip(logits, labels, strict=True)]


def naive_lm_losses(model, side: str, ids: list[int]) -> list[Tensor]:
    """-log p of each token but the first, by one side's language model."""
    stack, head = (
        (model.encoder, model.encoder_lm_head) if side == "source" else (model.decoder, model.lm_head)
    )
    hidden, _, _ = naive_layer(stack.layers[0], [stack.embed_tokens.weight[token] for token in ids])
    losses = []
    for vector, target in zip(hidden[:-1], ids[1:], strict=True):
        logits = head.weight @ vector + head.bias
        losses.append(logits.exp().sum().log() - logits[target])
    return losses
