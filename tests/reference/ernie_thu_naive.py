"""The readable twin of ERNIE's fusion and losses: one row without padding, one head, one token, one entity at a time."""

import math

import torch
from torch import Tensor

from heirloom.modeling.modeling_ernie_thu import ErnieThuForPreTraining


def linear(layer, vector: Tensor) -> Tensor:
    return layer.weight @ vector + (0 if layer.bias is None else layer.bias)


def normed(norm, vector: Tensor) -> Tensor:
    vector = (vector - vector.mean()) / (vector.var(unbiased=False) + norm.eps).sqrt()
    return vector * norm.weight + norm.bias


def gelu(vector: Tensor) -> Tensor:
    return vector * 0.5 * (1 + torch.erf(vector / 2**0.5))


def attended(attention, vectors: dict[int, Tensor]) -> dict[int, Tensor]:
    """Self-attention among some places: each head by itself, then residual and layer norm."""
    queries, keys, values = (
        {place: linear(layer, vector).chunk(attention.heads) for place, vector in vectors.items()}
        for layer in (attention.query, attention.key, attention.value)
    )
    found = {}
    for place, vector in vectors.items():
        heads = []
        for head in range(attention.heads):
            query = queries[place][head]
            scores = torch.stack(
                [query @ key[head] / math.sqrt(len(query)) for key in keys.values()]
            ).softmax(0)
            heads.append(sum(p * value[head] for p, value in zip(scores, values.values(), strict=True)))
        found[place] = normed(attention.norm, linear(attention.dense, torch.cat(heads)) + vector)
    return found


def read(model: ErnieThuForPreTraining, row: list[int], entities: list[int], vectors: Tensor) -> list[Tensor]:
    """(H,) of each token of a row; `entities` are rows of `vectors`, -1 for none."""
    words = dict(enumerate(model.ernie.text_encoder(torch.tensor([row])).last_hidden_state[0]))
    named = {place: vectors[number] for place, number in enumerate(entities) if number >= 0}
    for layer in model.ernie.layers:
        words = attended(layer.attention, words)
        if layer.entity_attention is not None:
            named = attended(layer.entity_attention, named)
        renewed = {}
        for place, word in words.items():
            both = linear(layer.inner, word)
            if place in named:
                both = both + linear(layer.entity_inner, named[place])
            both = gelu(both)
            words[place] = normed(layer.norm, linear(layer.outer, both) + word)
            if place in named and layer.entity_outer is not None:
                renewed[place] = normed(layer.entity_norm, linear(layer.entity_outer, both) + named[place])
        named = renewed
    return list(words.values())


def step_loss(model: ErnieThuForPreTraining, examples: list[dict], vectors: Tensor) -> list[Tensor]:
    """The means of the three losses over a whole step.

    Args:
        model: for its weights.
        examples: dicts of `row`, `entities`, `labels`, `following` and `entity_labels`.
        vectors: (N, E) the candidates.
    """
    mlm, nsp, dea = [], [], []
    for one in examples:
        hidden = read(model, one["row"], one["entities"], vectors)
        for place, label in enumerate(one["labels"]):
            if label != -100:
                vector = normed(model.token_norm, gelu(linear(model.token_dense, hidden[place])))
                scores = model.get_input_embeddings().weight @ vector + model.token_bias
                mlm.append(-scores.log_softmax(0)[label])
        if one["following"] != -100:
            scores = linear(model.next_sentence, linear(model.ernie.pooler, hidden[0]).tanh())
            nsp.append(-scores.log_softmax(0)[one["following"]])
        for place, label in enumerate(one["entity_labels"]):
            if label != -100:
                vector = normed(model.entity_norm, gelu(linear(model.entity_dense, hidden[place])))
                dea.append(-torch.stack([entity @ vector for entity in vectors]).log_softmax(0)[label])
    return [sum(losses) / len(losses) for losses in (mlm, nsp, dea)]
