"""Losses of stock encoder-decoders that stay exact under gradient accumulation, and the language model in their decoder.

Stock models take a mean over each micro-batch, and Trainer does not weigh these means. Here the loss is made of the logits
and divided by the labels of the whole batch. The decoder alone, without the states of an encoder, is a language model: its
cross-attention is left out, or in `EncoderDecoderModel` reads a zero; its softmax is the model's own.

Letters: B rows, S source positions, T target positions, V words.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .inputs_lstm_seq2seq import shift_right
from .losses import mean_of_all


class NoEncoderStates(BaseModelOutput):
    """An encoder's output that holds nothing, so that a model passes None on to its decoder."""

    def __getitem__(self, key):
        return None if key == 0 else super().__getitem__(key)


@dataclass
class StockSeq2SeqOutput(ModelOutput):
    """The parts of a stock model's loss.

    Args:
        loss: their sum.
        logits: (B, T, V).
        seq2seq_loss: mean over the labels, in nats.
        target_lm_loss: mean over the target text's tokens, in nats.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    seq2seq_loss: Tensor | None = None
    target_lm_loss: Tensor | None = None


def summed_loss(logits: Tensor, targets: Tensor, known: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, summed.

    Args:
        logits: (B, T, V).
        targets: (B, T), any number where there is none.
        known: (B, T) bool, true at targets.
        label_smoothing: probability given to all words alike.

    Returns:
        () nats.
    """
    chosen = logits[known].float()  # (N, V)
    return F.cross_entropy(chosen, targets[known], reduction="sum", label_smoothing=label_smoothing)


class StockSeq2SeqLosses:
    """A stock encoder-decoder (BART, T5, Marian, EncoderDecoderModel ...) with the losses of joint training.

    Args:
        model: unwrapped.
        label_smoothing: probability that training gives to all words alike, in the seq2seq loss only.
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0):
        self.model, self.label_smoothing = model, label_smoothing

    def __call__(
        self,
        wrapped: nn.Module | None = None,
        labels: Tensor | None = None,
        source_lm_input_ids: Tensor | None = None,
        target_lm_input_ids: Tensor | None = None,
        target_lm_attention_mask: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_target_lm_items: Tensor | int | None = None,
        **inputs,
    ) -> StockSeq2SeqOutput:
        """Run the model on pairs, its decoder on a text, or both.

        Args:
            wrapped: the same model as it is called in training, for instance by DistributedDataParallel.
            labels: (B, T) token ids, -100 for padding; not shifted.
            source_lm_input_ids: refused.
            target_lm_input_ids: (B', T') sentences as the decoder reads them, with the last token; labels of themselves.
            target_lm_attention_mask: (B', T'), 1 at tokens, padding right.
            num_items_in_batch: labels of all accumulated batches; None means this batch only.
            num_target_lm_items: predicted tokens of all their target texts; None means this batch only.
            **inputs: of the model: `input_ids` (B, S), `attention_mask` and others.

        Returns:
            The parts that the batch has, and logits where there are labels.

        Raises:
            ValueError: a source text, or neither labels nor text.
        """
        if source_lm_input_ids is not None:
            raise ValueError(self.no_source_lm())
        output = StockSeq2SeqOutput()
        if labels is not None:
            output.logits, output.seq2seq_loss = self._pairs(wrapped, labels, num_items_in_batch, inputs)
        if target_lm_input_ids is not None:
            text = target_lm_input_ids, target_lm_attention_mask
            output.target_lm_loss = self._text(*text, num_target_lm_items)
        parts = [part for part in (output.seq2seq_loss, output.target_lm_loss) if part is not None]
        if not parts:
            raise ValueError(
                "a batch needs labels or target_lm_input_ids for a loss, found neither. Pass one."
            )
        output.loss = sum(parts)
        return output

    def no_source_lm(self) -> str:
        """Why a stock model has no loss for source texts."""
        return (
            f"{type(self.model).__name__} holds no language model of the source: its encoder has no softmax. Leave the "
            "source's monolingual text out; the target's can stay."
        )

    def count_lm_targets(self, batch: dict) -> dict[str, Tensor]:
        """As `LstmSeq2SeqForConditionalGeneration.count_lm_targets`; there is none on the source's side."""
        ids, mask = batch.get("target_lm_input_ids"), batch.get("target_lm_attention_mask")
        if ids is None:
            return {"num_target_lm_items": torch.tensor(0)}
        return {"num_target_lm_items": (torch.ones_like(ids) if mask is None else mask)[:, 1:].sum()}

    @torch.no_grad()
    def check_language_model(self) -> None:
        """Refuse a model whose decoder does not run alone, or sees what it is to predict.

        Raises:
            ValueError: which of the two.
        """
        name, training = type(self.model).__name__, self.model.training
        ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=self.model.device)
        self.model.eval()
        try:
            logits = self._decoder_logits(ids, torch.ones_like(ids))
        except Exception as error:  # whatever a decoder does that was not made for this
            raise ValueError(
                f"the decoder of {name} does not run without encoder states ({type(error).__name__}: {error}), so it is no "
                "language model. Leave the target's monolingual text out."
            ) from error
        finally:
            self.model.train(training)
        apart = (logits[0] - logits[1]).abs().amax(1)  # (3,), by the last token alone
        if apart[:2].max() > 1e-3 * apart[2]:
            raise ValueError(
                f"the decoder of {name} sees the tokens that it is to predict, so it is no causal language model. Set "
                "is_decoder=True in its config."
            )

    def _pairs(self, wrapped, labels: Tensor, items, inputs: dict) -> tuple[Tensor, Tensor]:
        """(B, T, V) logits and () loss."""
        model, known = self.model, labels != -100
        ids = inputs.pop("decoder_input_ids", None)
        if ids is None:
            ids = self._before(labels)
        logits = (model if wrapped is None else wrapped)(
            decoder_input_ids=ids, use_cache=False, **inputs
        ).logits
        smoothing = self.label_smoothing if model.training else 0.0
        return logits, mean_of_all(summed_loss(logits, labels, known, smoothing), known.sum(), items)

    def _before(self, labels: Tensor) -> Tensor:
        """What the decoder reads to predict the labels."""
        if hasattr(self.model, "prepare_decoder_input_ids_from_labels"):
            return self.model.prepare_decoder_input_ids_from_labels(labels=labels)
        config = self.model.config
        if config.decoder_start_token_id is None:
            raise ValueError(
                f"the config of {type(self.model).__name__} has no decoder_start_token_id, which stands before the first "
                "label. Set it there and in generation_config."
            )
        return shift_right(labels, config.decoder_start_token_id, config.pad_token_id)

    def _text(self, ids: Tensor, mask: Tensor | None, items) -> Tensor:
        """() mean loss of a text, each token predicted from those before it."""
        known = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        logits, known = self._decoder_logits(ids[:, :-1], known[:, :-1].long()), known[:, 1:]
        return mean_of_all(summed_loss(logits, ids[:, 1:], known), known.sum(), items)

    def _decoder_logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, T, V) of the decoder alone.

        It is called past any DistributedDataParallel: all its parameters take part in the wrapped call too, whose one
        backward pass averages both gradients.
        """
        if self.model.config.model_type == "encoder-decoder":
            # Not without states: a decoder with norms behind its layers, as `heirloom convert seq2seq` makes it of BERT, is
            # the language model it was only with its cross-attention in place, and zeros say nothing in it.
            decoder = self.model.decoder
            silence = torch.zeros(
                len(ids), 1, decoder.config.hidden_size, device=ids.device, dtype=decoder.dtype
            )
            return decoder(
                input_ids=ids, attention_mask=mask, encoder_hidden_states=silence, use_cache=False
            ).logits
        return self.model(
            encoder_outputs=NoEncoderStates(),
            decoder_input_ids=ids,
            decoder_attention_mask=mask,
            use_cache=False,
        ).logits


__all__ = ["StockSeq2SeqLosses", "StockSeq2SeqOutput", "summed_loss"]
