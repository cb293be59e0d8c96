"""What the LSTM language model returns. Letters: B rows, T positions, V words, E embedding, P outputs, D cells, L layers,
R rows of the states.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from .recurrent_cache import RecurrentCache


@dataclass
class LstmLMModelOutput(ModelOutput):
    """What `LstmLMModel` returns.

    Args:
        last_hidden_state: top layer, (B, T, P), zeros at padding.
        hidden_states: L + 1 tensors, first the embeddings (B, T, E), then each layer's output (B, T, P).
        states: h (L, R, P) and c (L, R, D) after the batch, without gradient.
        past_key_values: the same states of the batch's rows, as `generate()` carries them.
        attention_mask: (B, T) bool, true at tokens; None where there is no padding.
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    states: tuple[Tensor, Tensor] | None = None
    past_key_values: RecurrentCache | None = None
    attention_mask: Tensor | None = None


@dataclass
class LstmLMOutput(ModelOutput):
    """What `LstmLMForCausalLM` returns.

    Args:
        loss: mean over the targets, in nats.
        logits: (B, T, V) for the token after each position; log probabilities with the adaptive softmax. At padding they
            repeat those of the last token before it.
        sampled_loss: `loss` again where it comes from the sampled softmax: a training signal, no perplexity.
        past_key_values: as in `LstmLMModelOutput`.
        hidden_states: as in `LstmLMModelOutput`.
        states: as in `LstmLMModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    sampled_loss: Tensor | None = None
    past_key_values: RecurrentCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    states: tuple[Tensor, Tensor] | None = None


__all__ = ["LstmLMModelOutput", "LstmLMOutput"]
