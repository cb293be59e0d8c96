"""A word-level LSTM language model, for training on streams or sentences and for stock `generate()`.

Zaremba et al. 2014 (dropout on non-recurrent connections), with the projections of Sak et al. 2014 and the sampled softmax
of Jozefowicz et al. 2016. The model keeps no state between calls: recurrent states are an argument and an output. A row's
vectors depend on its own tokens alone; padding may stand left, right or between.

Letters: B rows, T positions, V words, E embedding, P outputs (hidden size), D cells, L layers, N predictions, R rows of
the states.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils import can_return_tuple

from .auto_map import AUTO_MAP
from .checks import check_ids, check_shape
from .configuration_lstm_lm import LstmLMConfig
from .losses import mean_of_all
from .outputs_lstm_lm import LstmLMModelOutput, LstmLMOutput
from .packing import unflatten
from .recurrent_cache import RecurrentCache
from .vocabulary_softmax import log_probabilities, make_softmax, target_loss

FEW_ROWS = 16  # with more of them oneDNN is the faster one
BUFFER = 2**22  # log probabilities that `token_scores` holds at a time


def run_lstm(
    layer: nn.LSTM, inputs: Tensor, state: tuple[Tensor, Tensor], lengths: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run one layer over left-aligned rows.

    Args:
        layer: of one direction, batch first.
        inputs: (B, T, I).
        state: h (B, P) and c (B, D) to start from.
        lengths: (B,) positions of each row, 0 allowed; None means that all rows are full.

    Returns:
        Outputs (B, T, P), of no meaning behind a row's end, and each row's own last state.
    """
    before = tuple(part.to(inputs.dtype) for part in state)
    if lengths is None and _is_small_step(layer, inputs):
        h, c = torch.lstm_cell(inputs[:, 0], before, *layer.all_weights[0])
        return h.unsqueeze(1), (h, c)
    start = tuple(part.unsqueeze(0).contiguous() for part in before)
    if lengths is None:
        outputs, (h, c) = layer(inputs, start)
        return outputs, (h[0], c[0])
    some = lengths.cpu().clamp(min=1)  # torch packs no empty row; what comes of its one step is dropped below
    packed = pack_padded_sequence(inputs, some, batch_first=True, enforce_sorted=False)
    outputs, after = layer(packed, start)
    outputs, _ = pad_packed_sequence(outputs, batch_first=True, total_length=inputs.shape[1])
    read = (lengths > 0)[:, None]
    h, c = (torch.where(read, new[0], old) for new, old in zip(after, before, strict=True))
    return outputs, (h, c)


def _is_small_step(layer: nn.LSTM, inputs: Tensor) -> bool:
    """Whether it is one token of few rows on a CPU, where oneDNN spends its time on laying out the weights anew."""
    few = inputs.shape[1] == 1 and len(inputs) <= FEW_ROWS
    plain = not (layer.proj_size or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"))
    return few and plain and inputs.device.type == "cpu" and inputs.dtype == layer.weight_ih_l0.dtype


def last_tokens(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """At each position the vector of the last token up to it, itself included: (B, T, P) from (B, T, P).

    Without padding (mask None) nothing changes; before a row's first token stays what was there.
    """
    if mask is None:
        return hidden
    steps = torch.arange(mask.shape[1], device=mask.device)
    places = (steps * mask).cummax(1).values  # (B, T)
    return hidden.gather(1, places.unsqueeze(2).expand_as(hidden))


def has_left_context(mask: Tensor) -> Tensor:
    """Where tokens stand that have a token before them in their row: (B, T) bool from such."""
    return mask & (mask.cumsum(1) > 1)


class LstmLMPreTrainedModel(PreTrainedModel):
    """Initial weights, and saving with the code and the whole `auto_map`."""

    config: LstmLMConfig
    config_class = LstmLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module):
        if not isinstance(module, nn.LSTM | nn.Linear | nn.Embedding):
            return
        bound = self.config.initializer_range
        for name, parameter in module.named_parameters(recurse=False):
            if not name.startswith("bias"):
                init.uniform_(parameter, -bound, bound)
            elif name.startswith("bias_ih"):
                gates = torch.zeros_like(parameter)
                gates[len(gates) // 4 : len(gates) // 2] = 1.0  # forget gate; `bias_hh` is added to it
                init.copy_(parameter, gates)
            else:
                init.zeros_(parameter)

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers; the checkpoint also names every Auto class that can load it."""
        self.config.auto_map = dict(AUTO_MAP[self.config.model_type])
        return super().save_pretrained(save_directory, **kwargs)


class LstmLMModel(LstmLMPreTrainedModel):
    """Embeddings and a stack of LSTM layers, without the softmax."""

    _auto_class = "AutoModel"

    def __init__(self, config: LstmLMConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_size)
        sizes = [config.embedding_size] + [config.hidden_size] * (config.num_hidden_layers - 1)
        projection = config.projection_size or 0
        self.layers = nn.ModuleList(
            nn.LSTM(size, config.cell_size, batch_first=True, proj_size=projection) for size in sizes
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        states: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> LstmLMModelOutput:
        """Turn rows of tokens into vectors that know what stands left of them.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 at tokens; None means that all are. With a cache also (B, past + T), as
                `generate()` passes it.
            states: h (L, R, P) and c (L, R, D) to start rows 0..R-1 from; None starts from zero. Rows beyond the batch
                are kept, missing rows are zero.
            past_key_values: the cache that an earlier call returned, instead of `states`; it is brought up to date.
            use_cache: return a cache where none is given; by default as in the config, and never in training.
            output_hidden_states: return all L + 1 layers.
            inputs_embeds: (B, T, E) token vectors, instead of ids.

        Returns:
            `LstmLMModelOutput`.

        Raises:
            ValueError: missing, doubled, float, misshapen or out-of-range inputs, or states of another model.
            TypeError: a cache of another kind.
        """
        config = self.config
        shape = self._check_inputs(input_ids, inputs_embeds)
        if states is not None and past_key_values is not None:
            raise ValueError(
                "states and past_key_values both say where to start from, found both. Pass `states` in training on "
                "streams, `past_key_values` in generation."
            )
        cache = None
        if past_key_values is not None or (
            config.use_cache and not self.training if use_cache is None else use_cache
        ):
            cache = RecurrentCache.of(past_key_values, config.num_hidden_layers)
        mask = self._token_mask(attention_mask, shape, cache)
        h, c = self._start(states, cache, shape[0])
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states

        tokens = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        layers, h_last, c_last = self._run(tokens, mask, (h, c))
        if cache is not None:
            for number, state in enumerate(zip(h_last, c_last, strict=True)):
                cache.update(*state, number, tokens=shape[1])
        rows = shape[0]
        return LstmLMModelOutput(
            last_hidden_state=layers[-1],
            hidden_states=tuple(layers) if output_hidden_states else None,
            states=(torch.cat([h_last, h[:, rows:]], 1), torch.cat([c_last, c[:, rows:]], 1)),
            past_key_values=cache,
            attention_mask=mask,
        )

    def _run(self, tokens: Tensor, mask: Tensor | None, states) -> tuple[list[Tensor], Tensor, Tensor]:
        """Embeddings and all layers' outputs, each (B, T, ...) with zeros at padding; h (L, B, P) and c (L, B, D)."""
        rows, lengths = len(tokens), None
        if mask is not None:
            lengths = mask.sum(1)  # (B,)
            steps = torch.arange(max(1, int(lengths.max())), device=mask.device)
            left = steps < lengths[:, None]  # (B, longest row)
            full, flat = bool(left.all()), tokens[mask]  # (N, E)
            hidden, tokens = unflatten(flat, left), unflatten(flat, mask)
        else:
            hidden, full = tokens, True
        layers, last = [tokens], []
        for layer, h, c in zip(self.layers, *states, strict=True):
            inputs = F.dropout(hidden, self.config.dropout, self.training)
            hidden, state = run_lstm(layer, inputs, (h[:rows], c[:rows]), None if full else lengths)
            last.append([part.detach().to(h.dtype) for part in state])
            layers.append(hidden if mask is None else unflatten(hidden[left], mask))
        h, c = (torch.stack(parts) for parts in zip(*last, strict=True))
        return layers, h, c

    def _start(self, states, cache: RecurrentCache | None, rows: int) -> tuple[Tensor, Tensor]:
        """h (L, R, P) and c (L, R, D) with at least B rows, from the states, the cache or zeros."""
        config, weight = self.config, self.layers[0].weight_hh_l0
        count, sizes = config.num_hidden_layers, (config.hidden_size, config.cell_size)
        if states is not None:
            self._check_states(states)
            missing = max(0, rows - states[0].shape[1])
            return tuple(F.pad(part.detach().to(weight), (0, 0, 0, missing)) for part in states)
        held = [None] if cache is None else [cache.state(number) for number in range(count)]
        if held[0] is None:
            return tuple(weight.new_zeros(count, rows, size) for size in sizes)
        for state in held:
            shapes = [tuple(part.shape) for part in state]
            if shapes != [(rows, size) for size in sizes]:
                raise ValueError(
                    f"past_key_values must hold states of shapes {[(rows, size) for size in sizes]}, one row for each "
                    f"row of the input, found {shapes}. Pass the cache that this model returned for these rows "
                    "(batch_repeat_interleave repeats them for beams)."
                )
        return tuple(torch.stack(parts).to(weight) for parts in zip(*held, strict=True))

    def _check_inputs(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[int, int]:
        """B and T of what came, if it can be read."""
        if (input_ids is None) == (inputs_embeds is None):
            found = "neither" if input_ids is None else "both"
            raise ValueError(
                f"the model reads either input_ids (B, T) or inputs_embeds (B, T, E), found {found}. Pass one of them."
            )
        if input_ids is None:
            size = self.config.embedding_size
            check_shape("inputs_embeds", inputs_embeds, (None, None, size), "(B, T, E) token vectors")
        else:
            check_ids("input_ids", input_ids, (None, None), "(B, T) token ids", self.config.vocab_size)
        shape = tuple((inputs_embeds if input_ids is None else input_ids).shape[:2])
        if 0 in shape:
            raise ValueError(f"inputs must have at least one row and one position, found (B, T) = {shape}.")
        return shape

    @staticmethod
    def _token_mask(
        mask: Tensor | None, shape: tuple[int, int], cache: RecurrentCache | None
    ) -> Tensor | None:
        """(B, T) bool for the new positions; None where all are tokens."""
        if mask is None:
            return None
        rows, steps = shape
        past = 0 if cache is None else cache.get_seq_length()
        if tuple(mask.shape) not in ((rows, steps), (rows, past + steps)):
            wanted = f"(B, T) = {shape}" + (f" or (B, past + T) = {(rows, past + steps)}" if past else "")
            raise ValueError(
                f"attention_mask must be {wanted} of 0 and 1, found {tuple(mask.shape)}. Pass the tokenizer's whole "
                "output."
            )
        mask = mask[:, -steps:].bool()
        return None if bool(mask.all()) else mask

    def _check_states(self, states) -> None:
        config = self.config
        shapes = [tuple(state.shape) for state in states]
        layers, sizes = config.num_hidden_layers, [config.hidden_size, config.cell_size]
        fit = len(shapes) == 2 and all(len(shape) == 3 and shape[0] == layers for shape in shapes)
        if not fit or [shape[2] for shape in shapes] != sizes or shapes[0][1] != shapes[1][1]:
            raise ValueError(
                f"states must be (h, c) of shapes ({layers}, R, {sizes[0]}) and ({layers}, R, {sizes[1]}), found "
                f"{shapes}. Pass the `states` that this model returned."
            )


class LstmLMForCausalLM(LstmLMPreTrainedModel, GenerationMixin):
    """The language model with its softmax: predicts each next token."""

    _auto_class = "AutoModelForCausalLM"
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    accepts_loss_kwargs = True

    def __init__(self, config: LstmLMConfig):
        super().__init__(config)
        self.model = LstmLMModel(config)
        self.lm_head = make_softmax(
            config.hidden_size, config.vocab_size, config.softmax, config.adaptive_cutoffs
        )
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear | None:
        """The softmax; None for the adaptive one, which has no row for each word."""
        return self.lm_head if isinstance(self.lm_head, nn.Linear) else None

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As in Transformers.

        Raises:
            ValueError: the softmax is adaptive, or would have no more words than the sampled softmax draws.
        """
        config = self.config
        if config.softmax == "adaptive" and (new_num_tokens or pad_to_multiple_of):
            raise ValueError(
                "the adaptive softmax cannot be resized: its clusters belong to one vocabulary. Make a new model with "
                'that vocab_size, or one with softmax="full".'
            )
        if (
            config.softmax == "sampled"
            and new_num_tokens is not None
            and new_num_tokens <= config.num_sampled
        ):
            raise ValueError(
                f"the sampled softmax draws num_sampled = {config.num_sampled} words and needs more than that, found "
                f'new_num_tokens = {new_num_tokens}. Lower config.num_sampled, or set config.softmax to "full".'
            )
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # else generate() makes a cache of keys and values; the model makes its own

    def generate(self, inputs: Tensor | None = None, **kwargs):
        """As in Transformers; an earlier state comes in as `past_key_values`.

        Raises:
            ValueError: `states` were passed, which `generate()` could neither repeat for beams nor carry on.
        """
        if kwargs.get("states") is not None:
            raise ValueError(
                "generate() carries its state in past_key_values, found `states`. Run the model once with `states` and "
                "use_cache=True, and pass the past_key_values that it returns, with all tokens as input_ids."
            )
        return super().generate(inputs, **kwargs)

    @staticmethod
    def count_targets(batch: dict) -> Tensor:
        """Targets in a batch, for exact means: labelled tokens, where `labels` are shifted here without a row's first.

        Args:
            batch: `labels` or `shift_labels`, and `attention_mask` where there is padding; other keys are not read.

        Returns:
            () number.
        """
        shifted = batch.get("shift_labels") is not None
        labels = batch["shift_labels" if shifted else "labels"]
        mask = batch.get("attention_mask")
        mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
        return ((mask if shifted else has_left_context(mask)) & (labels != -100)).sum()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        states: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> LstmLMOutput:
        """Predict the token after each position.

        Args:
            input_ids: as in `LstmLMModel`.
            attention_mask: as in `LstmLMModel`.
            states: as in `LstmLMModel`.
            past_key_values: as in `LstmLMModel`.
            labels: (B, T) token ids at their own positions, usually the input again; shifted here. -100 and padding are
                not predicted, nor is a row's first token.
            shift_labels: (B, T) the token after each position, -100 for none, instead of `labels`: on a stream the last
                target of a window is the first token of the next.
            inputs_embeds: as in `LstmLMModel`.
            use_cache: as in `LstmLMModel`; with targets only where asked for.
            output_hidden_states: as in `LstmLMModel`.
            logits_to_keep: make logits for that many last positions, or for these positions; 0 means all.
            skip_logits: make none; by default where there are targets in training, since (B, T, V) may not fit.
            num_items_in_batch: targets of all accumulated batches (`count_targets`); None means this batch only.

        Returns:
            `LstmLMOutput`.

        Raises:
            ValueError: bad inputs as in `LstmLMModel`, both kinds of targets, or targets that are no tokens.
            TypeError: a cache of another kind.
        """
        if labels is not None and shift_labels is not None:
            raise ValueError(
                "labels are shifted by the model, shift_labels already are; found both. Pass `labels` for sentences or "
                "`shift_labels` for streams."
            )
        targets = labels if shift_labels is None else shift_labels
        if use_cache is None and targets is not None:
            use_cache = False
        outputs = self.model(
            input_ids, attention_mask, states, past_key_values, use_cache, output_hidden_states, inputs_embeds
        )
        mask = outputs.attention_mask
        hidden = F.dropout(outputs.last_hidden_state, self.config.dropout, self.training)
        hidden = last_tokens(hidden, mask)  # (B, T, P), what is known at each position
        loss, logits, sampled = None, None, 0
        if targets is not None:
            sampled = self.config.num_sampled if self.config.softmax == "sampled" and self.training else 0
            loss = self._loss(hidden, mask, targets, shift_labels is not None, sampled, num_items_in_batch)
        if not (self.training and targets is not None if skip_logits is None else skip_logits):
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self._logits(hidden[:, keep])
        return LstmLMOutput(
            loss=loss,
            logits=logits,
            sampled_loss=loss if sampled else None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            states=outputs.states,
        )

    @torch.no_grad()
    def token_scores(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """How well the model expects each token; sums over a row are log probabilities of sentences. Call `eval()` first.

        Args:
            input_ids: as in `LstmLMModel`.
            attention_mask: as in `LstmLMModel`.

        Returns:
            (B, T) log p(token | those before it) in nats by the whole softmax; 0 at a row's first token and at padding.
        """
        outputs = self.model(input_ids, attention_mask, use_cache=False)
        mask = outputs.attention_mask
        hidden = F.dropout(outputs.last_hidden_state, self.config.dropout, self.training)
        hidden = last_tokens(hidden, mask)[:, :-1]
        known = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask
        known = has_left_context(known)
        hidden, targets = hidden[known[:, 1:]], input_ids[known].unsqueeze(1)  # (N, P), (N, 1)
        size = max(1, BUFFER // self.config.vocab_size)
        scores = [
            log_probabilities(self.lm_head, hidden[start : start + size]).gather(
                1, targets[start : start + size]
            )
            for start in range(0, max(1, len(hidden)), size)
        ]
        return unflatten(torch.cat(scores), known).squeeze(2)

    def _loss(
        self, hidden: Tensor, mask: Tensor | None, targets: Tensor, shifted: bool, sampled: int, items
    ) -> Tensor:
        """() mean loss of the targets, each predicted from what is known one position before it."""
        name, vocab = "shift_labels" if shifted else "labels", self.config.vocab_size
        if targets.shape != hidden.shape[:2] or targets.is_floating_point() or targets.dtype == torch.bool:
            raise ValueError(
                f"{name} must be (B, T) = {tuple(hidden.shape[:2])} token ids or -100, found {tuple(targets.shape)} of "
                f"{targets.dtype}."
            )
        known = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
        known = (known if shifted else has_left_context(known)) & (targets != -100)
        targets = targets[known]  # (N,)
        if len(targets) and not (targets.min() >= 0 and targets.max() < vocab):
            raise ValueError(
                f"{name} must lie in 0..{vocab - 1} (or be -100), found {int(targets.min())}..{int(targets.max())}. Use "
                "the tokenizer that belongs to this model."
            )
        hidden = hidden[known] if shifted else hidden[:, :-1][known[:, 1:]]  # (N, P)
        total = target_loss(self.lm_head, hidden, targets, num_sampled=sampled)
        return mean_of_all(total, len(targets), items)

    def _logits(self, hidden: Tensor) -> Tensor:
        if isinstance(self.lm_head, nn.Linear):
            return self.lm_head(hidden)
        return unflatten(
            log_probabilities(self.lm_head, hidden.flatten(0, 1)),
            hidden.new_ones(hidden.shape[:2], dtype=torch.bool),
        )


__all__ = ["LstmLMForCausalLM", "LstmLMModel", "LstmLMPreTrainedModel", "run_lstm"]
