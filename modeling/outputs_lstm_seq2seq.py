"""What the LSTM encoder-decoder and its halves return.

Letters: B rows, S source positions, T target positions, V words, E embedding, P outputs of the first layer, U units of the
layers above, L layers.
"""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput

from .recurrent_cache import RecurrentCache


@dataclass
class LstmSeq2SeqEncoderOutput(ModelOutput):
    """What the encoder returns.

    `generate()` repeats the tensors for beams along their first axis, and only those that are fields by themselves.

    Args:
        last_hidden_state: top layer, (B, S, U), zeros at padding.
        first_hidden_state: first layer, (B, S, P), zeros at padding.
        final_h: states of the layers above the first after each row's last token, (B, L - 1, U).
        final_c: their cells, (B, L - 1, U).
        attention_mask: (B, S) bool, true at tokens.
        hidden_states: L + 1 tensors, first the embeddings (B, S, E), then each layer's output.
        attentions: None; an LSTM has none.
    """

    last_hidden_state: Tensor | None = None
    first_hidden_state: Tensor | None = None
    final_h: Tensor | None = None
    final_c: Tensor | None = None
    attention_mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class LstmSeq2SeqDecoderOutput(ModelOutput):
    """What the decoder returns.

    Args:
        last_hidden_state: what the softmax reads, before dropout, (B, T, P).
        past_key_values: states of all layers, as `generate()` carries them.
        hidden_states: L + 1 tensors, first the embeddings (B, T, E), then each layer's output.
        cross_attentions: one tensor (B, 1, T, S), how much each target position looks at each source position.
        attention_mask: (B, T) bool, true at tokens; None where there is no padding.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: RecurrentCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    attention_mask: Tensor | None = None


@dataclass
class LstmSeq2SeqOutput(ModelOutput):
    """What `LstmSeq2SeqForConditionalGeneration` returns.

    Args:
        loss: seq2seq_loss + source_lm_loss_weight * source_lm_loss + target_lm_loss_weight * target_lm_loss, of the parts
            that the batch has.
        logits: (B, T, V) for the token after each decoder position; log probabilities with the adaptive softmax.
        seq2seq_loss: mean over the labels, in nats.
        source_lm_loss: mean over the source text's tokens, in nats.
        target_lm_loss: likewise of the target text.
        past_key_values: as in `LstmSeq2SeqDecoderOutput`.
        decoder_hidden_states: its `hidden_states`.
        decoder_attentions: None; an LSTM has none.
        cross_attentions: as in `LstmSeq2SeqDecoderOutput`.
        encoder_last_hidden_state: as in `LstmSeq2SeqEncoderOutput`.
        encoder_hidden_states: its `hidden_states`.
        encoder_attentions: None.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    seq2seq_loss: Tensor | None = None
    source_lm_loss: Tensor | None = None
    target_lm_loss: Tensor | None = None
    past_key_values: RecurrentCache | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder_last_hidden_state: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None


__all__ = ["LstmSeq2SeqDecoderOutput", "LstmSeq2SeqEncoderOutput", "LstmSeq2SeqOutput"]
