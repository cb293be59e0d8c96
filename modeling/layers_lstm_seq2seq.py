"""Encoder and decoder of the LSTM encoder-decoder: each a language model's embedding and LSTM layer with more above it.

Ramachandran, Liu & Le 2017. The decoder's first layer starts from zero, as in its language model; the layers above start
from the encoder's last states of the same layer. Attention takes its weights from the last layer and pools first and last
layer with them; the contexts meet the decoder between its top layer and the softmax, not in the recurrence. The paper
leaves open how state and contexts become one vector; here a = tanh(W [s; c^1; c^L] + b).

Letters: B rows, S source positions, T target positions, E embedding, P outputs of the first layer, D its cells, U units of
the layers above, L layers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils import can_return_tuple

from .configuration_lstm_seq2seq import LstmSeq2SeqConfig
from .inputs_lstm_seq2seq import Alignment, check_text, position_mask, token_mask
from .modeling_lstm_lm import LstmLMPreTrainedModel, last_tokens, run_lstm
from .outputs_lstm_seq2seq import LstmSeq2SeqDecoderOutput, LstmSeq2SeqEncoderOutput
from .recurrent_cache import RecurrentCache


class Combination(nn.Linear):
    """The linear layer of the attention's combination, a class of its own since it may begin at zero."""


class LstmSeq2SeqPreTrainedModel(LstmLMPreTrainedModel):
    """Initial weights, and saving with the code and the whole `auto_map`."""

    config: LstmSeq2SeqConfig
    config_class = LstmSeq2SeqConfig
    base_model_prefix = ""

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Combination) and self.config.zero_init:
            init.zeros_(module.weight)
            init.zeros_(module.bias)


def make_layers(config: LstmSeq2SeqConfig, halves: int = 1) -> nn.ModuleList:
    """The LSTM layers of one side; of one direction with half of every size where `halves` is 2."""
    first = nn.LSTM(
        config.embedding_size,
        config.cell_size // halves,
        batch_first=True,
        proj_size=(config.projection_size or 0) // halves,
    )
    sizes = [config.hidden_size] + [config.upper_size] * (config.num_hidden_layers - 2)
    return nn.ModuleList(
        [first, *(nn.LSTM(size, config.upper_size // halves, batch_first=True) for size in sizes)]
    )


def zero_state(layer: nn.LSTM, rows: int) -> tuple[Tensor, Tensor]:
    """h (B, P) and c (B, D) before the first token."""
    sizes = layer.proj_size or layer.hidden_size, layer.hidden_size
    return tuple(layer.weight_hh_l0.new_zeros(rows, size) for size in sizes)


class LstmSeq2SeqSide(LstmSeq2SeqPreTrainedModel):
    """What both sides share: embeddings, LSTM layers, and the language model in the first of them."""

    def __init__(self, config: LstmSeq2SeqConfig, vocab_size: int, halves: int = 1):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(vocab_size, config.embedding_size)
        self.layers = make_layers(config, halves)

    def read_text(self, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        """What this side's language model knows at each position.

        Args:
            input_ids: (B, T).
            mask: (B, T) bool, true at tokens; None where all are.

        Returns:
            (B, T, P), zeros at padding: the first layer from a zero state.
        """
        rows = Alignment(mask)
        tokens = self._drop(rows.to_left(self.embed_tokens(input_ids)))
        hidden, _ = run_lstm(self.layers[0], tokens, zero_state(self.layers[0], len(tokens)))
        return rows.back(hidden)

    def _drop(self, tensor: Tensor) -> Tensor:
        return F.dropout(tensor, self.config.dropout, self.training)


class LstmSeq2SeqEncoder(LstmSeq2SeqSide):
    """Reads the source."""

    main_input_name = "input_ids"

    def __init__(self, config: LstmSeq2SeqConfig):
        both = config.bidirectional_encoder
        super().__init__(config, config.source_vocab_size, halves=2 if both else 1)
        self.backward_layers = make_layers(config, halves=2) if both else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> LstmSeq2SeqEncoderOutput:
        """Turn source rows into the vectors and states that the decoder needs.

        Args:
            input_ids: (B, S) token ids of the source vocabulary.
            attention_mask: (B, S), 1 at tokens; by default where the ids are not padding, and everywhere if the padding
                id also begins or ends sentences.
            inputs_embeds: (B, S, E) token vectors, instead of ids.
            output_attentions: not used; `generate()` passes it.
            output_hidden_states: return all L + 1 layers.

        Returns:
            `LstmSeq2SeqEncoderOutput`.

        Raises:
            ValueError: missing, doubled, float, misshapen or out-of-range inputs.
        """
        config = self.config
        check_text("input_ids", input_ids, inputs_embeds, config, config.source_vocab_size)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        tokens = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        mask = token_mask(config, "source", input_ids, attention_mask)
        mask = position_mask("attention_mask", mask, tuple(tokens.shape[:2]))
        rows = Alignment(mask)
        hidden = rows.to_left(tokens)
        layers, states = [hidden], []
        for number in range(config.num_hidden_layers):
            # Nobody asks for the first layer's last state, so only the others need to know where rows end.
            lengths = None if rows.is_full or not number else rows.lengths
            hidden, state = self._run(number, self._drop(hidden), rows, lengths)
            layers.append(hidden)
            states.append(state)
        h, c = (torch.stack(parts, 1) for parts in zip(*states[1:], strict=True))  # (B, L - 1, U)
        layers = [rows.back(layer) for layer in layers]
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return LstmSeq2SeqEncoderOutput(
            last_hidden_state=layers[-1],
            first_hidden_state=layers[1],
            final_h=h,
            final_c=c,
            attention_mask=mask,
            hidden_states=tuple(layers) if output_hidden_states else None,
        )

    def _run(self, number: int, inputs: Tensor, rows: Alignment, lengths: Tensor | None):
        """One layer's outputs (B, S, H) and last states, forwards and, where it can, backwards."""
        layer = self.layers[number]
        ahead = run_lstm(layer, inputs, zero_state(layer, len(inputs)), lengths)
        if self.backward_layers is None:
            return ahead
        layer = self.backward_layers[number]
        outputs, state = run_lstm(layer, rows.flip(inputs), zero_state(layer, len(inputs)), lengths)
        states = tuple(torch.cat(pair, 1) for pair in zip(ahead[1], state, strict=True))
        return torch.cat([ahead[0], rows.flip(outputs)], 2), states


class LstmSeq2SeqDecoder(LstmSeq2SeqSide):
    """Writes the target, looking at the source between its top layer and the softmax."""

    def __init__(self, config: LstmSeq2SeqConfig):
        super().__init__(config, config.vocab_size)
        contexts = config.upper_size + (config.hidden_size if config.multi_layer_attention else 0)
        self.combine = Combination(config.upper_size + contexts, config.hidden_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        encoder_outputs: LstmSeq2SeqEncoderOutput,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> LstmSeq2SeqDecoderOutput:
        """Turn target rows into the vectors that the softmax reads.

        Args:
            input_ids: (B, T) token ids of the target vocabulary.
            encoder_outputs: the encoder's.
            attention_mask: (B, T), or (B, past + T) with a cache, 1 at tokens; None means that all are.
            past_key_values: the cache that an earlier call returned; it is brought up to date.
            use_cache: return a cache where none is given.
            output_attentions: return the attention.
            output_hidden_states: return all L + 1 layers.

        Returns:
            `LstmSeq2SeqDecoderOutput`.

        Raises:
            ValueError: float, misshapen or out-of-range inputs, or a cache of other rows or sizes.
            TypeError: a cache of another kind.
        """
        config = self.config
        check_text("decoder_input_ids", input_ids, None, config, config.vocab_size)
        source = encoder_outputs
        cache = None
        if past_key_values is not None or use_cache:
            cache = RecurrentCache.of(past_key_values, config.num_hidden_layers)
        past = 0 if cache is None else cache.get_seq_length()
        mask = position_mask("decoder_attention_mask", attention_mask, tuple(input_ids.shape), past)
        rows = Alignment(mask)
        hidden = rows.to_left(self.embed_tokens(input_ids))
        layers, lengths = [hidden], None if rows.is_full or cache is None else rows.lengths
        for number, (layer, start) in enumerate(zip(self.layers, self._start(source, cache), strict=True)):
            hidden, state = run_lstm(layer, self._drop(hidden), start, lengths)
            if cache is not None:
                cache.update(
                    *(new.detach().to(old.dtype) for new, old in zip(state, start, strict=True)),
                    number,
                    tokens=input_ids.shape[1],
                )
            layers.append(hidden)
        layers = [rows.back(layer) for layer in layers]
        output, weights = self._attend(layers[1], layers[-1], source)
        return LstmSeq2SeqDecoderOutput(
            last_hidden_state=last_tokens(output, mask),
            past_key_values=cache,
            hidden_states=tuple(layers) if output_hidden_states else None,
            cross_attentions=(last_tokens(weights, mask).unsqueeze(1),) if output_attentions else None,
            attention_mask=mask,
        )

    def _attend(self, first: Tensor, top: Tensor, source: LstmSeq2SeqEncoderOutput) -> tuple[Tensor, Tensor]:
        """What the softmax reads, (B, T, P), and the attention's weights (B, T, S)."""
        config, mask = self.config, source.attention_mask.bool().unsqueeze(1)  # (B, 1, S)
        last = source.last_hidden_state.to(top.dtype)
        scores = top @ last.transpose(1, 2)  # (B, T, S)
        scores = scores.float() if scores.dtype.itemsize < 4 else scores
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(2)
        weights = weights.masked_fill(~mask, 0.0)  # a source without tokens gives no context
        pooled = weights.to(top.dtype)
        contexts = [pooled @ last]
        if config.multi_layer_attention:
            contexts.insert(0, pooled @ source.first_hidden_state.to(top.dtype))
        output = self.combine(self._drop(torch.cat([top, *contexts], 2)))
        output = output.tanh() if config.attention_tanh else output
        return first + output if config.residual else output, weights

    def _start(self, source: LstmSeq2SeqEncoderOutput, cache: RecurrentCache | None):
        """h and c of each layer to start from: the cache's, or zero for the first layer and the encoder's for others."""
        count = len(source.final_h)
        begin = [zero_state(self.layers[0], count)]
        begin += zip(source.final_h.unbind(1), source.final_c.unbind(1), strict=True)
        if cache is None or cache.state(0) is None:
            return begin
        held = [cache.state(number) for number in range(len(begin))]
        for state, wanted in zip(held, begin, strict=True):
            shapes, expected = ([tuple(part.shape) for part in pair] for pair in (state, wanted))
            if shapes != expected:
                raise ValueError(
                    f"past_key_values must hold states of shapes {expected}, one row for each row of the input, found "
                    f"{shapes}. Pass the cache that this model returned for these rows (batch_repeat_interleave repeats "
                    "them for beams)."
                )
        return held


__all__ = ["LstmSeq2SeqDecoder", "LstmSeq2SeqEncoder", "LstmSeq2SeqPreTrainedModel"]
