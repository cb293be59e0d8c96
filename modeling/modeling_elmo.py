"""ELMo: a bidirectional language model over characters, and what is passed down from it (Peters et al. 2018).

Same numbers as AllenNLP and bilm-tf, but without state between calls: recurrent states are an argument and an output.
A sentence's vectors depend on its words alone, not on its batch mates, their order or the padding; words may be padded
on either side.

Letters: B sentences, T words of the longest, C characters a word, P projection (hidden size 2 P), D cells, L layers,
N words of a batch without padding, R rows of the states.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .auto_map import AUTO_MAP
from .checks import check_ids, check_shape
from .configuration_elmo import ElmoConfig
from .layers_elmo import ElmoLstm, ElmoTokenEncoder, LstmpLayer
from .losses import classification_loss, mean_of_all
from .outputs_elmo import ElmoClassifierOutput, ElmoForPreTrainingOutput, ElmoModelOutput
from .packing import around_sentences, inside_sentences, unflatten
from .pooling import pool
from .scalar_mix import ScalarMix
from .softmax_loss import softmax_loss


class ElmoPreTrainedModel(PreTrainedModel):
    """Initial weights, and saving with the code and the whole `auto_map`."""

    config: ElmoConfig
    config_class = ElmoConfig
    base_model_prefix = "elmo"
    main_input_name = "input_ids"
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module):
        encoder = self.base_model.token_encoder
        if any(module is part for part in encoder.modules()):
            encoder.init_weights(module, init)
        elif isinstance(module, LstmpLayer):
            module.init_weights(init)
        elif isinstance(module, ScalarMix):
            init.zeros_(module.scalar_parameters)
            init.ones_(module.gamma)
        else:
            super()._init_weights(module)

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers; the checkpoint also names every Auto class that can load it."""
        self.config.auto_map = dict(AUTO_MAP[self.config.model_type])
        return super().save_pretrained(save_directory, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The word table in word mode, else the character table."""
        encoder = self.base_model.token_encoder
        return encoder.char_embeddings if encoder.word_embeddings is None else encoder.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the table that `get_input_embeddings` returns."""
        encoder = self.base_model.token_encoder
        setattr(encoder, "char_embeddings" if encoder.word_embeddings is None else "word_embeddings", value)


class ElmoModel(ElmoPreTrainedModel):
    """The biLM: context-free vectors from characters, then two stacks of LSTMs."""

    _auto_class = "AutoModel"

    def __init__(self, config: ElmoConfig):
        super().__init__(config)
        self.token_encoder = ElmoTokenEncoder(config)
        self.lstm = ElmoLstm(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        char_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        states: tuple[Tensor, Tensor] | None = None,
        output_hidden_states: bool | None = None,
        keep_boundaries: bool = False,
        inputs_embeds: Tensor | None = None,
    ) -> ElmoModelOutput:
        """Turn sentences into contextual vectors; `<S>` and `</S>` are put around each sentence here.

        Args:
            input_ids: (B, T) word ids; read in word mode, and by models with a word part.
            char_ids: (B, T, C) character ids, 0 = padding; C is the model's `max_characters_per_token`.
            attention_mask: (B, T), 1 at words; by default where the ids are not padding.
            states: h (L, R, 2 P) and c (L, R, 2 D) to start rows 0..R-1 from; None starts from zero. Rows beyond the
                batch are kept, missing rows are zero.
            output_hidden_states: return all L + 1 layers.
            keep_boundaries: return the positions of `<S>` and `</S>` too: (B, T + 2, ...), left-aligned.
            inputs_embeds: (B, T, P) token vectors, instead of ids (a cached vocabulary); needs `attention_mask`.

        Returns:
            `ElmoModelOutput`.

        Raises:
            ValueError: missing, float, misshapen or out-of-range inputs, or states of another model.
        """
        mask = self.word_mask(input_ids, char_ids, attention_mask, inputs_embeds)
        self._check_states(states)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        lengths = mask.sum(1)  # (B,)
        if inputs_embeds is None:
            words = self.token_encoder(*[ids if ids is None else ids[mask] for ids in (input_ids, char_ids)])
        else:
            words = inputs_embeds[mask]
        inputs = torch.cat([words, self.boundary_vectors().to(words.dtype)])  # (N + 2, P)
        inputs = inputs.index_select(0, around_sentences(lengths))  # (N + 2 B, P)
        layers, states = self.lstm(inputs, lengths + 2, states)

        layers = [torch.cat([inputs, inputs], 1), *layers] if output_hidden_states else layers[-1:]
        if keep_boundaries:
            steps = torch.arange(mask.shape[1] + 2, device=mask.device)
            mask = steps < (lengths + 2)[:, None]  # (B, T + 2)
        else:
            inner = inside_sentences(lengths)
            layers = [layer.index_select(0, inner) for layer in layers]  # (N, 2 P)
        hidden_states = tuple(unflatten(layer, mask) for layer in layers)
        return ElmoModelOutput(
            last_hidden_state=hidden_states[-1],
            hidden_states=hidden_states if output_hidden_states else None,
            states=states,
            attention_mask=mask,
        )

    def boundary_vectors(self) -> Tensor:
        """Token vectors of `<S>` and `</S>`: (2, P)."""
        config, device = self.config, self.device
        ids = torch.tensor([config.bos_token_id, config.eos_token_id], device=device)
        chars = torch.full((2, config.max_characters_per_token), config.pad_char_id, device=device)
        chars[:, 0], chars[:, 2] = config.bow_char_id, config.eow_char_id
        chars[:, 1] = torch.tensor([config.bos_char_id, config.eos_char_id], device=device)
        return self.token_encoder(ids, chars)

    def word_mask(
        self,
        input_ids: Tensor | None,
        char_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Check a batch's inputs and say where its words are.

        Args:
            input_ids: as in `forward`.
            char_ids: as in `forward`.
            attention_mask: as in `forward`.
            inputs_embeds: as in `forward`.

        Returns:
            (B, T) bool.

        Raises:
            ValueError: what was expected, what came, and what to do.
        """
        config, encoder = self.config, self.token_encoder
        if inputs_embeds is not None:
            check_shape(
                "inputs_embeds",
                inputs_embeds,
                (None, None, config.projection_size),
                "(B, T, P) token vectors",
            )
            if attention_mask is None:
                raise ValueError(
                    "inputs_embeds need an attention_mask (B, T): vectors do not tell words from padding."
                )
            mask = None
        if inputs_embeds is None and encoder.word_embeddings is not None:
            if input_ids is None:
                raise ValueError(
                    "this model reads whole words: pass input_ids (B, T), as ElmoTokenizer makes them."
                )
            check_ids("input_ids", input_ids, (None, None), "(B, T) word ids", config.vocab_size)
            mask = input_ids != config.pad_token_id
        if inputs_embeds is None and encoder.char_embeddings is not None:
            if char_ids is None:
                raise ValueError(
                    "this model reads characters: pass char_ids (B, T, C), as ElmoTokenizer makes them."
                )
            chars = config.max_characters_per_token
            check_ids(
                "char_ids", char_ids, (None, None, chars), "(B, T, C) character ids", config.char_vocab_size
            )
            mask = (char_ids > 0).any(2)
        given = {"input_ids": input_ids, "char_ids": char_ids, "attention_mask": attention_mask}
        given |= {"inputs_embeds": inputs_embeds}
        shapes = {name: tuple(tensor.shape[:2]) for name, tensor in given.items() if tensor is not None}
        if len(set(shapes.values())) > 1 or (attention_mask is not None and attention_mask.dim() != 2):
            raise ValueError(
                f"inputs must agree in (B, T), and attention_mask be (B, T) of 0 and 1; found {shapes}. Pass the "
                "tokenizer's whole output."
            )
        if attention_mask is None:
            return mask
        attention_mask = attention_mask.bool()
        if mask is not None and bool((attention_mask & ~mask).any()):
            raise ValueError(
                f"attention_mask marks {int((attention_mask & ~mask).sum())} position(s) as words whose ids are all "
                "padding. Let the tokenizer make both, or leave attention_mask out."
            )
        return attention_mask

    def _check_states(self, states) -> None:
        if states is None:
            return
        config = self.config
        shapes = [tuple(state.shape) for state in states]
        layers, p, d = config.num_hidden_layers, 2 * config.projection_size, 2 * config.cell_size
        if (
            len(states) != 2
            or any(
                len(shape) != 3 or (shape[0], shape[2]) != (layers, size)
                for shape, size in zip(shapes, (p, d), strict=True)
            )
            or shapes[0][1] != shapes[1][1]
        ):
            raise ValueError(
                f"states must be (h, c) of shapes ({layers}, R, {p}) and ({layers}, R, {d}), found {shapes}. Pass the "
                "`states` that this model returned."
            )


class ElmoForPreTraining(ElmoPreTrainedModel):
    """The biLM with its softmax: predicts each next and each previous word of a sentence."""

    _auto_class = "AutoModelForPreTraining"
    accepts_loss_kwargs = True

    def __init__(self, config: ElmoConfig):
        super().__init__(config)
        self.elmo = ElmoModel(config)
        self.softmax = nn.Linear(config.projection_size, config.vocab_size)  # row 0, padding, is never used
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if module is self.softmax:
            init.normal_(module.weight, std=self.config.projection_size**-0.5)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def get_output_embeddings(self) -> nn.Linear:
        """The softmax that both directions share."""
        return self.softmax

    @staticmethod
    def count_targets(labels: Tensor) -> Tensor:
        """Targets of one direction in a batch, for exact means: labelled words and one sentence mark a row."""
        return (labels > 0).sum() + len(labels)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        char_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        states: tuple[Tensor, Tensor] | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ElmoForPreTrainingOutput:
        """Language-model losses over sentences, with the full softmax.

        Args:
            input_ids: as in `ElmoModel`.
            char_ids: as in `ElmoModel`.
            attention_mask: as in `ElmoModel`.
            labels: (B, T) word ids; -100 is not predicted, padding is ignored. The backward direction is made here.
            states: as in `ElmoModel`.
            output_hidden_states: as in `ElmoModel`.
            num_items_in_batch: targets of all accumulated batches (`count_targets`); None means this batch only.

        Returns:
            `ElmoForPreTrainingOutput`: with labels the losses, without labels the logits.

        Raises:
            ValueError: bad inputs as in `ElmoModel`, or labels that are no words of the vocabulary.
        """
        mask = self.elmo.word_mask(input_ids, char_ids, attention_mask)
        if labels is not None:
            self._check_labels(labels, mask)
        outputs = self.elmo(
            input_ids, char_ids, mask, states, output_hidden_states=output_hidden_states, keep_boundaries=True
        )
        hidden = outputs.last_hidden_state[outputs.attention_mask]  # (N + 2 B, 2 P)
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        lengths, half = mask.sum(1), self.config.projection_size
        follows = torch.ones(max(0, len(hidden) - 1), dtype=torch.bool, device=mask.device)
        follows[(lengths + 2).cumsum(0)[:-1] - 1] = False  # the next position begins another sentence
        left, right = hidden[:-1][follows, :half], hidden[1:][follows, half:]  # (N + B, P) each
        parts = {"states": outputs.states, "hidden_states": outputs.hidden_states}
        if labels is None:
            inner = inside_sentences(lengths) - torch.arange(
                len(lengths), device=mask.device
            ).repeat_interleave(lengths)
            logits = [
                self._logits(side.index_select(0, index), mask)
                for side, index in ((left, inner - 1), (right, inner))
            ]
            return ElmoForPreTrainingOutput(forward_logits=logits[0], backward_logits=logits[1], **parts)
        marks = labels.new_tensor([self.config.bos_token_id, self.config.eos_token_id])
        words = torch.cat([labels[mask], marks]).index_select(0, around_sentences(lengths))  # (N + 2 B,)
        forward_loss = self._loss(left, words[1:][follows], num_items_in_batch)
        backward_loss = self._loss(right, words[:-1][follows], num_items_in_batch)
        return ElmoForPreTrainingOutput(
            loss=(forward_loss + backward_loss) / 2,
            forward_loss=forward_loss,
            backward_loss=backward_loss,
            **parts,
        )

    def _loss(self, hidden: Tensor, targets: Tensor, num_items_in_batch) -> Tensor:
        known = targets != -100
        if not known.all():
            hidden, targets = hidden[known], targets[known]
        total = softmax_loss(hidden, self.softmax.weight[1:], self.softmax.bias[1:], targets - 1)
        return mean_of_all(total, known.sum(), num_items_in_batch)

    def _logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        logits = self.softmax(hidden)  # (N, V)
        logits[:, 0] = float("-inf")
        return unflatten(logits, mask)

    def _check_labels(self, labels: Tensor, mask: Tensor) -> None:
        if labels.shape != mask.shape or labels.is_floating_point():
            raise ValueError(
                f"labels must be (B, T) = {tuple(mask.shape)} word ids, found {tuple(labels.shape)} of {labels.dtype}."
            )
        words = labels[mask & (labels != -100)]
        if len(words) and not (words.min() > 0 and words.max() < self.config.vocab_size):
            raise ValueError(
                f"labels must be word ids in 1..{self.config.vocab_size - 1} or -100, found {int(words.min())}.."
                f"{int(words.max())}. Use the tokenizer that this model was made with."
            )


class ElmoTaskModel(ElmoPreTrainedModel):
    """What the task heads share: the biLM, frozen or not, a learned mix of its layers, dropout, a linear classifier."""

    accepts_loss_kwargs = True

    def __init__(self, config: ElmoConfig):
        super().__init__(config)
        self.elmo = ElmoModel(config)
        normalise = config.mix_layer_norm != "none"
        self.mix = ScalarMix(config.num_hidden_layers + 1, normalise, layers=config.mix_layers)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.elmo.requires_grad_(not config.freeze_bilm)
        self.post_init()

    def train(self, mode: bool = True):
        """As in torch; a frozen biLM stays in evaluation mode, without dropout.

        `from_pretrained` puts new parameters, which want gradients, in the place of frozen ones, and then calls this.
        """
        super().train(mode)
        if self.config.freeze_bilm:
            self.elmo.eval().requires_grad_(False)
        return self

    def _mixed(self, input_ids, char_ids, attention_mask, states) -> tuple[Tensor, Tensor, ElmoModelOutput]:
        """Mixed and dropped vectors (B, T, 2 P), zero at padding; the words' mask (B, T); the biLM's output."""
        mask = self.elmo.word_mask(input_ids, char_ids, attention_mask)
        keep_boundaries = self.config.mix_layer_norm == "allennlp"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_bilm):
            outputs = self.elmo(
                input_ids, char_ids, mask, states, output_hidden_states=True, keep_boundaries=keep_boundaries
            )
        mixed = self.mix(outputs.hidden_states, outputs.attention_mask)
        flat = mixed[outputs.attention_mask]
        if keep_boundaries:
            flat = flat.index_select(0, inside_sentences(mask.sum(1)))
        flat = F.dropout(flat, self.config.head_dropout, self.training)
        return unflatten(flat, mask), mask, outputs

    def _loss(self, logits: Tensor, labels: Tensor, num_items_in_batch) -> Tensor:
        """Task loss and, once in a whole batch, the L2 term of the mix."""
        loss = classification_loss(logits, labels, self.config.problem_type, num_items_in_batch)
        if not self.config.mix_l2:
            return loss
        items = (labels != -100).sum()
        share = mean_of_all(items.float(), items, num_items_in_batch)
        return loss + self.config.mix_l2 * share * self.mix.l2()


class ElmoForTokenClassification(ElmoTaskModel):
    """A label for every word: tagging, named entities."""

    _auto_class = "AutoModelForTokenClassification"

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        char_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        states: tuple[Tensor, Tensor] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ElmoClassifierOutput:
        """Classify each word.

        Args:
            input_ids: as in `ElmoModel`.
            char_ids: as in `ElmoModel`.
            attention_mask: as in `ElmoModel`.
            labels: (B, T) classes, -100 for none.
            states: as in `ElmoModel`.
            num_items_in_batch: labelled words of all accumulated batches; None means this batch only.

        Returns:
            `ElmoClassifierOutput` with logits (B, T, num_labels).

        Raises:
            ValueError: bad inputs as in `ElmoModel`, or classes that do not exist.
        """
        mixed, mask, outputs = self._mixed(input_ids, char_ids, attention_mask, states)
        logits = self.classifier(mixed)
        loss = None
        if labels is not None:
            if labels.shape != mask.shape:
                raise ValueError(
                    f"labels must be (B, T) = {tuple(mask.shape)} classes, found {tuple(labels.shape)}."
                )
            loss = self._loss(logits.flatten(0, 1), labels.flatten(), num_items_in_batch)
        return ElmoClassifierOutput(loss, logits, outputs.hidden_states, outputs.states)


class ElmoForSequenceClassification(ElmoTaskModel):
    """A label or a number for every sentence."""

    _auto_class = "AutoModelForSequenceClassification"

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        char_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        states: tuple[Tensor, Tensor] | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ElmoClassifierOutput:
        """Classify each sentence by one vector pooled over its words.

        Args:
            input_ids: as in `ElmoModel`.
            char_ids: as in `ElmoModel`.
            attention_mask: as in `ElmoModel`.
            labels: (B,) classes with -100 for none, (B,) or (B, K) numbers, or (B, K) floats of 0 and 1.
            states: as in `ElmoModel`.
            num_items_in_batch: labels of all accumulated batches; None means this batch only.

        Returns:
            `ElmoClassifierOutput` with logits (B, num_labels).

        Raises:
            ValueError: bad inputs as in `ElmoModel`, or classes that do not exist.
        """
        mixed, mask, outputs = self._mixed(input_ids, char_ids, attention_mask, states)
        logits = self.classifier(pool(mixed, mask, self.config.pooling))
        loss = None if labels is None else self._loss(logits, labels, num_items_in_batch)
        return ElmoClassifierOutput(loss, logits, outputs.hidden_states, outputs.states)


__all__ = [
    "ElmoForPreTraining",
    "ElmoForSequenceClassification",
    "ElmoForTokenClassification",
    "ElmoModel",
    "ElmoPreTrainedModel",
]
