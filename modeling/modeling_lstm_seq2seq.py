"""An LSTM encoder-decoder that begins as two language models and goes on training them (Ramachandran, Liu & Le 2017).

Its softmax reads the sum of the decoder's first layer and a combination of top layer and attention; without the second it
is the target's language model. The source's softmax is kept for the source's language-model loss. The model keeps no state
between calls. A row depends on its own tokens alone; padding may stand left, right or between, on both sides.

Letters: B rows, S source positions, T target positions, V words, E embedding, P outputs of the first layer, U units of the
layers above, L layers, N predictions.
"""

import copy
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.utils import can_return_tuple

from .checks import check_shape
from .configuration_lstm_seq2seq import LstmSeq2SeqConfig
from .inheritance_lstm_seq2seq import Origin, inherit, origins_table
from .inputs_lstm_seq2seq import (
    as_encoder_output,
    check_targets,
    check_text,
    position_mask,
    shift_right,
    token_mask,
)
from .layers_lstm_seq2seq import LstmSeq2SeqDecoder, LstmSeq2SeqEncoder, LstmSeq2SeqPreTrainedModel
from .losses import mean_of_all
from .modeling_lstm_lm import has_left_context, last_tokens
from .outputs_lstm_seq2seq import LstmSeq2SeqEncoderOutput, LstmSeq2SeqOutput
from .packing import unflatten
from .vocabularies_lstm_seq2seq import TwoVocabularies
from .vocabulary_softmax import log_probabilities, make_softmax, target_loss

MONOLINGUAL = (
    "source_lm_input_ids",
    "source_lm_attention_mask",
    "target_lm_input_ids",
    "target_lm_attention_mask",
)
ITEMS = ("num_items_in_batch", "num_source_lm_items", "num_target_lm_items")


def smoothing_excess(softmax: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """What one unit of label smoothing adds to the summed loss, without making logits.

    Args:
        softmax: a linear one.
        hidden: (N, P).
        targets: (N,).

    Returns:
        () sum of the targets' logits less the mean logits.
    """
    kind = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        weight, bias = softmax.weight.to(kind), softmax.bias.to(kind)
        rows = weight[targets] - weight.mean(0)
        return (hidden.to(kind) * rows).sum() + (bias[targets] - bias.mean()).sum()


class LstmSeq2SeqForConditionalGeneration(TwoVocabularies, LstmSeq2SeqPreTrainedModel, GenerationMixin):
    """Encoder, decoder and the softmax of each side."""

    _auto_class = "AutoModelForSeq2SeqLM"
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "decoder.embed_tokens.weight",
        "encoder_lm_head.weight": "encoder.embed_tokens.weight",
    }
    accepts_loss_kwargs = True
    origins: list[Origin] | None = None

    def __init__(self, config: LstmSeq2SeqConfig):
        super().__init__(config)
        self.encoder = LstmSeq2SeqEncoder(config)
        self.decoder = LstmSeq2SeqDecoder(config)
        size, kind, cutoffs = config.hidden_size, config.softmax, config.adaptive_cutoffs
        self.lm_head = make_softmax(size, config.vocab_size, kind, cutoffs)
        if config.bidirectional_encoder:
            self.encoder_lm_head = None
            self._tied_weights_keys = {"lm_head.weight": self._tied_weights_keys["lm_head.weight"]}
        else:
            self.encoder_lm_head = make_softmax(size, config.source_vocab_size, kind, cutoffs)
        self.post_init()

    @classmethod
    def from_language_models(
        cls,
        source_lm,
        target_lm,
        parts: Iterable[str] = ("embeddings", "lstm", "softmax"),
        source_tokenizer=None,
        target_tokenizer=None,
        **config,
    ) -> "LstmSeq2SeqForConditionalGeneration":
        """A new model whose two sides begin as language models; prints where every parameter comes from.

        Args:
            source_lm: a folder or name, an `LstmLMForCausalLM` of one layer, or an `ElmoForPreTraining` whose forward half
                is such a model; None leaves the encoder random.
            target_lm: likewise for the decoder.
            parts: what to take of each: "embeddings", "lstm" (the layer with its projection), "softmax". What is left out
                stays random; so do all layers above the first.
            source_tokenizer: of the source, to compare with its model and with the target's. Equal vocabularies are
                joint, others separate.
            target_tokenizer: of the target.
            **config: fields of `LstmSeq2SeqConfig` that do not come from the language models. Without tokenizers,
                `encoder_vocab_size` makes vocabularies of equal sizes separate.

        Returns:
            The model in evaluation mode, the table as its `origins`.

        Raises:
            ValueError: models of other kinds or sizes, tokenizers that do not belong to them, or contradicting options.
        """
        model, note = inherit(cls, source_lm, target_lm, parts, source_tokenizer, target_tokenizer, config)
        print(f"{origins_table(model.origins)}\n{note}")  # noqa: T201
        return model

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # else generate() makes a cache of keys and values; the model makes its own

    def generate(self, inputs: Tensor | None = None, **kwargs):
        """As in Transformers; `encoder_outputs` stay as they are, where the stock method would repeat them for beams."""
        if isinstance(kwargs.get("encoder_outputs"), LstmSeq2SeqEncoderOutput):
            kwargs["encoder_outputs"] = copy.copy(kwargs["encoder_outputs"])
        return super().generate(inputs, **kwargs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs) -> dict:
        """As in Transformers, without what is there for training only."""
        kwargs = {name: value for name, value in kwargs.items() if name not in (*MONOLINGUAL, *ITEMS)}
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """What the decoder reads to predict labels (B, T), of which -100 is padding: see `shift_right`."""
        return shift_right(labels, self.config.decoder_start_token_id, self.config.pad_token_id)

    def count_targets(self, batch: dict) -> Tensor:
        """Labels in a batch, for exact means: `num_items_in_batch`.

        Args:
            batch: `labels`, and `decoder_attention_mask` where labels stand at padding; without labels the count is 0.

        Returns:
            () number.
        """
        labels = batch.get("labels")
        if labels is None:
            return torch.tensor(0)
        known, mask = labels != -100, batch.get("decoder_attention_mask")
        return (known if mask is None else known & mask.bool()).sum()

    def count_lm_targets(self, batch: dict) -> dict[str, Tensor]:
        """Predicted tokens of a batch's monolingual texts, for exact means.

        Args:
            batch: any of the `..._lm_...` arguments of `forward`.

        Returns:
            () numbers by the names of `forward`'s arguments: `num_source_lm_items` and `num_target_lm_items`.
        """
        counts = {}
        for side in ("source", "target"):
            ids = batch.get(f"{side}_lm_input_ids")
            mask = None if ids is None else self._text_mask(side, ids, batch.get(f"{side}_lm_attention_mask"))
            count = (
                torch.tensor(0) if ids is None else torch.tensor(ids.numel() - len(ids), device=ids.device)
            )
            counts[f"num_{side}_lm_items"] = count if mask is None else has_left_context(mask).sum()
        return counts

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: LstmSeq2SeqEncoderOutput | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        source_lm_input_ids: Tensor | None = None,
        source_lm_attention_mask: Tensor | None = None,
        target_lm_input_ids: Tensor | None = None,
        target_lm_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_source_lm_items: Tensor | int | None = None,
        num_target_lm_items: Tensor | int | None = None,
    ) -> LstmSeq2SeqOutput:
        """Predict the token after each target position, and the next tokens of monolingual texts.

        A batch may hold pairs of source and target, monolingual texts of either side, or all of these.

        Args:
            input_ids: (B, S), as in `LstmSeq2SeqEncoder`.
            attention_mask: (B, S), likewise.
            decoder_input_ids: (B, T) tokens before the labels; by default made from the labels.
            decoder_attention_mask: (B, T), 1 at tokens; with a cache also (B, past + T). By default all are tokens, but
                with labels only those that have a label or are not the padding id.
            encoder_outputs: the encoder's output, instead of a source.
            past_key_values: the cache that an earlier call returned; it is brought up to date.
            inputs_embeds: (B, S, E) source vectors, instead of ids.
            labels: (B, T) token ids, -100 for padding; not shifted.
            source_lm_input_ids: (B', T') sentences `<eos> w1 .. wn <eos>` of the source, labels of themselves.
            source_lm_attention_mask: (B', T'), 1 at tokens; by default as for `input_ids`.
            target_lm_input_ids: likewise of the target.
            target_lm_attention_mask: likewise.
            use_cache: return a cache; by default as in the config, and never in training or with labels.
            output_attentions: return `cross_attentions`.
            output_hidden_states: return all L + 1 layers of both sides.
            logits_to_keep: make logits for that many last positions, or for these positions; 0 means all.
            skip_logits: make none; by default where there are labels in training, since (B, T, V) may not fit.
            num_items_in_batch: labels of all accumulated batches (`count_targets`); None means this batch only.
            num_source_lm_items: predicted tokens of all their source texts (`count_lm_targets`). None means this batch
                only, or, where `num_items_in_batch` is given, that this batch's mean counts by its share of the labels.
            num_target_lm_items: likewise of the target.

        Returns:
            `LstmSeq2SeqOutput`. Parts of accumulated batches sum to those of the whole.

        Raises:
            ValueError: missing, doubled, float, misshapen or out-of-range inputs, or text without a count of its own.
            TypeError: a cache of another kind.
        """
        config, parts, output = self.config, {}, {}
        inputs = input_ids, inputs_embeds, encoder_outputs, decoder_input_ids, labels
        texts = {
            "source": (source_lm_input_ids, source_lm_attention_mask, num_source_lm_items),
            "target": (target_lm_input_ids, target_lm_attention_mask, num_target_lm_items),
        }
        texts = {side: text for side, text in texts.items() if text[0] is not None}
        if any(given is not None for given in inputs) or not texts:
            if labels is not None:
                check_shape("labels", labels, (None, None), "(B, T) token ids")
                check_targets("labels", labels, labels.shape, config.vocab_size)
            if encoder_outputs is None:
                encoder_outputs = self.encoder(
                    input_ids, attention_mask, inputs_embeds, output_hidden_states=output_hidden_states
                )
            hidden, mask, output = self._decode(
                encoder_outputs,
                decoder_input_ids,
                decoder_attention_mask,
                labels,
                past_key_values,
                use_cache,
                output_attentions,
                output_hidden_states,
            )
            if labels is not None:
                parts["seq2seq_loss"] = self._seq2seq_loss(hidden, mask, labels, num_items_in_batch)
            if not (self.training and labels is not None if skip_logits is None else skip_logits):
                keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
                output["logits"] = self._logits(hidden[:, keep])
        for side, (ids, text_mask, items) in texts.items():
            total, count = self._text_loss(side, ids, text_mask)
            part = mean_of_all(total, count, items)
            if items is None and num_items_in_batch is not None:
                part = part * self._share(side, labels, decoder_attention_mask, num_items_in_batch)
            parts[f"{side}_lm_loss"] = part
        weights = {
            "seq2seq_loss": 1.0,
            "source_lm_loss": config.source_lm_loss_weight,
            "target_lm_loss": config.target_lm_loss_weight,
        }
        loss = sum(weights[name] * part for name, part in parts.items()) if parts else None
        return LstmSeq2SeqOutput(loss=loss, **parts, **output)

    def _decode(self, source, ids, mask, labels, cache, use_cache, attentions, hidden_states):
        """What the softmax reads, dropped (B, T, P); the target's mask; fields of the output."""
        config = self.config
        if ids is None and labels is None:
            raise ValueError(
                "the decoder needs decoder_input_ids or labels, found neither. Pass labels for training, or call "
                "generate()."
            )
        if labels is not None:
            if ids is None:
                ids = self.prepare_decoder_input_ids_from_labels(labels)
                mask = labels != -100 if mask is None else mask
            elif mask is None and ids.shape == labels.shape and config.pad_token_id is not None:
                mask = (ids != config.pad_token_id) | (labels != -100)
        if use_cache is None:
            use_cache = config.use_cache and not self.training and labels is None
        if hidden_states is None:
            hidden_states = config.output_hidden_states
        if attentions is None:
            attentions = config.output_attentions
        source = as_encoder_output(source, config, len(ids))
        outputs = self.decoder(ids, source, mask, cache, use_cache, attentions, hidden_states)
        hidden = F.dropout(outputs.last_hidden_state, config.dropout, self.training)
        return (
            hidden,
            outputs.attention_mask,
            {
                "past_key_values": outputs.past_key_values,
                "decoder_hidden_states": outputs.hidden_states,
                "cross_attentions": outputs.cross_attentions,
                "encoder_last_hidden_state": source.last_hidden_state,
                "encoder_hidden_states": source.hidden_states,
            },
        )

    def _seq2seq_loss(self, hidden: Tensor, mask: Tensor | None, labels: Tensor, items) -> Tensor:
        """() mean loss of the labels, each predicted from what is known at its own position."""
        config = self.config
        check_targets("labels", labels, hidden.shape[:2], config.vocab_size)
        known = labels != -100 if mask is None else (labels != -100) & mask
        hidden, targets = hidden[known], labels[known]  # (N, P), (N,)
        total = target_loss(self.lm_head, hidden, targets, self._sampled())
        if self.training and config.label_smoothing:
            total = total + config.label_smoothing * smoothing_excess(self.lm_head, hidden, targets)
        return mean_of_all(total, len(targets), items)

    def _text_loss(self, side: str, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, int]:
        """() summed loss of a monolingual text, and its predicted tokens."""
        config, source = self.config, side == "source"
        stack, softmax = (self.encoder, self.encoder_lm_head) if source else (self.decoder, self.lm_head)
        if softmax is None:
            raise ValueError(
                "a bidirectional_encoder holds no language model, found source_lm_input_ids. Leave them out, or make "
                "the model with bidirectional_encoder=False."
            )
        size = config.source_vocab_size if source else config.vocab_size
        check_text(f"{side}_lm_input_ids", ids, None, config, size)
        mask = self._text_mask(side, ids, mask)
        hidden = F.dropout(stack.read_text(ids, mask), config.dropout, self.training)
        hidden = last_tokens(hidden, mask)
        known = has_left_context(torch.ones_like(ids, dtype=torch.bool) if mask is None else mask)
        targets = ids[known]  # (N,)
        return target_loss(softmax, hidden[:, :-1][known[:, 1:]], targets, self._sampled()), len(targets)

    def _text_mask(self, side: str, ids: Tensor, mask: Tensor | None) -> Tensor | None:
        """(B, T) bool of a monolingual text; None where all are tokens."""
        mask = token_mask(self.config, side, ids, mask)
        return position_mask(f"{side}_lm_attention_mask", mask, tuple(ids.shape))

    def _share(self, side: str, labels: Tensor | None, mask: Tensor | None, items) -> Tensor:
        """() what part of all accumulated labels this batch holds."""
        if labels is None:
            raise ValueError(
                f"{side}_lm_input_ids came with num_items_in_batch but without labels, so nothing says how much they "
                f"count. Pass num_{side}_lm_items, the tokens of all accumulated batches (count_lm_targets)."
            )
        count = self.count_targets({"labels": labels, "decoder_attention_mask": mask})
        return mean_of_all(count.float(), count, items)

    def _sampled(self) -> int:
        return self.config.num_sampled if self.config.softmax == "sampled" and self.training else 0

    def _logits(self, hidden: Tensor) -> Tensor:
        if isinstance(self.lm_head, nn.Linear):
            return self.lm_head(hidden)
        everywhere = hidden.new_ones(hidden.shape[:2], dtype=torch.bool)
        return unflatten(log_probabilities(self.lm_head, hidden.flatten(0, 1)), everywhere)


__all__ = ["LstmSeq2SeqForConditionalGeneration"]
