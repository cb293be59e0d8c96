"""What ELMo models return. Letters: B sentences, T words, P projection, D cells, L layers, R rows of the states."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class ElmoModelOutput(ModelOutput):
    """What `ElmoModel` returns.

    Args:
        last_hidden_state: top layer, (B, T, 2 P), zeros at padding.
        hidden_states: L + 1 tensors like it, layer 0 = the token vector twice.
        states: h (L, R, 2 P) and c (L, R, 2 D) after the batch, forward half first, without gradient.
        attention_mask: (B, T) bool, true at words; with boundaries (B, T + 2), left-aligned.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    states: tuple[Tensor, Tensor] | None = None
    attention_mask: Tensor | None = None


@dataclass
class ElmoForPreTrainingOutput(ModelOutput):
    """What `ElmoForPreTraining` returns.

    Args:
        loss: mean of the two parts, in nats a target.
        forward_loss: of each next word, `</S>` at last.
        backward_loss: of each previous word, `<S>` at last.
        sampled_loss: the same as `loss` where that comes from the sampled softmax, which is no perplexity; else None.
        forward_logits: (B, T, vocab_size) of the word *at* each position from its left; only without labels. For
            streams, of the word that follows each position. An adaptive softmax gives log probabilities.
        backward_logits: the same from its right, or of the backward stream.
        hidden_states: as in `ElmoModelOutput`.
        states: as in `ElmoModelOutput`.
    """

    loss: Tensor | None = None
    forward_loss: Tensor | None = None
    backward_loss: Tensor | None = None
    sampled_loss: Tensor | None = None
    forward_logits: Tensor | None = None
    backward_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    states: tuple[Tensor, Tensor] | None = None


@dataclass
class ElmoClassifierOutput(ModelOutput):
    """What the task heads return: `loss`, `logits` ((B, K) or (B, T, K)), and `hidden_states` and `states` of the biLM."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    states: tuple[Tensor, Tensor] | None = None


__all__ = ["ElmoClassifierOutput", "ElmoForPreTrainingOutput", "ElmoModelOutput"]
