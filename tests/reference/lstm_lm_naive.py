"""The readable twin of `heirloom.modeling.modeling_lstm_lm`: one row at a time, one token at a time, gates written out.

Also the tiny models of its tests, with weights so large that the state matters.
"""

import torch
from torch import Tensor

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM

SIZES = {"vocab_size": 13, "embedding_size": 5, "cell_size": 7, "num_hidden_layers": 2, "dropout": 0.0}

TIED = {"embedding_size": 4, "projection_size": 4, "tie_word_embeddings": True}
ADAPTIVE = {"softmax": "adaptive", "adaptive_cutoffs": [4, 9], "projection_size": None, "cell_size": 16}
SAMPLED = {"softmax": "sampled", "num_sampled": 6}


def close(one, other) -> bool:
    """Whether tensors are pairwise the same but for rounding in float64."""
    return all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(one, other, strict=True))


def tiny(scale: float = 0.9, dtype=torch.float64, **changes) -> LstmLMForCausalLM:
    """A model for evaluation, its weights uniform in [-scale, scale], its logits up to 4 times as far apart."""
    model = LstmLMForCausalLM(LstmLMConfig(**SIZES | changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.uniform_(-scale, scale).mul_(4 if name.startswith("lm_head") else 1)
    return model.to(dtype).eval()


def naive_step(weights: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next h (P,) and c (D,) of one layer."""
    gates = (
        weights["weight_ih_l0"] @ x
        + weights["bias_ih_l0"]
        + weights["weight_hh_l0"] @ h
        + weights["bias_hh_l0"]
    )
    i, f, g, o = gates.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (weights["weight_hr_l0"] @ h if "weight_hr_l0" in weights else h), c


def naive_row(model, ids: list[int], state=None) -> tuple[list[list[Tensor]], list[tuple[Tensor, Tensor]]]:
    """One row of tokens through `LstmLMForCausalLM`'s own parameters.

    Args:
        model: whose parameters to use.
        ids: tokens of the row.
        state: h (P,) and c (D,) of each layer, zeros by default.

    Returns:
        For each token L + 1 vectors, the embedding first; and each layer's last state.
    """
    config, table = model.config, model.model.embed_tokens.weight
    layers = [dict(layer.named_parameters()) for layer in model.model.layers]
    zeros = table.new_zeros(config.hidden_size), table.new_zeros(config.cell_size)
    state = list(state or [zeros] * len(layers))
    outputs = []
    for token in ids:
        vectors = [table[token]]
        for number, weights in enumerate(layers):
            state[number] = naive_step(weights, vectors[-1], *state[number])
            vectors.append(state[number][0])
        outputs.append(vectors)
    return outputs, state


def naive_losses(model, ids: list[int], state=None) -> list[Tensor]:
    """-log p of each token of a row but the first, by a full softmax."""
    outputs, _ = naive_row(model, ids, state)
    weight, bias = model.lm_head.weight, model.lm_head.bias
    losses = []
    for vectors, target in zip(outputs[:-1], ids[1:], strict=True):
        logits = weight @ vectors[-1] + bias
        losses.append(logits.exp().sum().log() - logits[target])
    return losses
