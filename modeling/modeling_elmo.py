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
from .configuration_elmo import ElmoConfig
from .inputs_elmo import check_labels, check_states, check_streams, word_mask
from .layers_elmo import ElmoLstm, ElmoTokenEncoder, LstmpLayer
from .losses import classification_loss, mean_of_all
from .outputs_elmo import ElmoClassifierOutput, ElmoForPreTrainingOutput, ElmoModelOutput
from .packing import around_sentences, inside_sentences, unflatten
from .pooling import pool
from .scalar_mix import ScalarMix
from .vocabulary_softmax import init_softmax, log_probabilities, make_softmax, target_loss


class ElmoPreTrainedModel(PreTrainedModel):
    """Initial weights, and saving with the code and the whole `auto_map`."""

    config: ElmoConfig
    config_class = ElmoConfig
    base_model_prefix = "elmo"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
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

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """As in Transformers, for models with a table of words.

        Raises:
            ValueError: the model reads characters alone, or its softmax is adaptive.
        """
        config, same = self.config, new_num_tokens is None and pad_to_multiple_of is None
        if not same and (not config.word_embedding_size or config.softmax == "adaptive"):
            found = "an adaptive softmax" if config.word_embedding_size else "characters alone"
            raise ValueError(
                f"only a table of words can be resized, with a softmax that has a row for each; found {found}. A model "
                "that reads characters knows every word already; for another softmax make a new model."
            )
        return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)


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
        mask = word_mask(self.config, input_ids, char_ids, attention_mask, inputs_embeds)
        check_states(self.config, states)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        lengths = mask.sum(1)  # (B,)
        index = around_sentences(lengths)  # (N + 2 B,) into the words and the two marks
        if inputs_embeds is None:
            pairs = zip((input_ids, char_ids), self._boundary_ids(), strict=True)
            ids = [None if one is None else torch.cat([one[mask], marks.to(one)]) for one, marks in pairs]
            vectors, words = self.token_encoder.distinct(*ids)  # (U, P), (N + 2,)
            index = words[index]
        else:
            words = inputs_embeds[mask]
            vectors = torch.cat([words, self.boundary_vectors().to(words.dtype)])
        layers, states = self.lstm(vectors, lengths + 2, states, index)

        if output_hidden_states:
            inputs = vectors.index_select(0, index)  # (N + 2 B, P)
            layers = [torch.cat([inputs, inputs], 1), *layers]
        else:
            layers = layers[-1:]
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
        return self.token_encoder(*self._boundary_ids())

    def _boundary_ids(self) -> tuple[Tensor, Tensor]:
        """Word ids (2,) and character ids (2, C) of `<S>` and `</S>`."""
        config, device = self.config, self.device
        ids = torch.tensor([config.bos_token_id, config.eos_token_id], device=device)
        chars = torch.full((2, config.max_characters_per_token), config.pad_char_id, device=device)
        chars[:, 0], chars[:, 2] = config.bow_char_id, config.eow_char_id
        chars[:, 1] = torch.tensor([config.bos_char_id, config.eos_char_id], device=device)
        return ids, chars

    def read_streams(
        self, forward: tuple, backward: tuple, states: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Read two streams of text, the second in reverse order already; nothing is added to them.

        Args:
            forward: `input_ids` (B, T) and `char_ids` (B, T, C), each a tensor or None.
            backward: the same of the backward stream.
            states: as in `forward`.

        Returns:
            Top layer (B, T, 2 P) and the states. The second half at step t has read the backward stream up to t.
        """
        pairs = zip(forward, backward, strict=True)
        ids = [None if one is None or other is None else torch.stack([one, other]) for one, other in pairs]
        batch, steps = next(both.shape[1:3] for both in ids if both is not None)
        flat = [None if both is None else both.flatten(0, 2) for both in ids]
        vectors, words = self.token_encoder.distinct(*flat)  # words that both streams hold are encoded once
        lengths = torch.full((batch,), steps, device=words.device)
        forward_words, backward_words = words.chunk(2)  # (B T,) each
        layers, states = self.lstm(vectors, lengths, states, forward_words, backward_words)
        return layers[-1].unflatten(0, (batch, steps)), states


class ElmoForPreTraining(ElmoPreTrainedModel):
    """The biLM with its softmax: predicts each next and each previous word, in sentences or in endless streams."""

    _auto_class = "AutoModelForPreTraining"
    _tied_weights_keys = {"softmax.weight": "elmo.token_encoder.word_embeddings.weight"}  # noqa: RUF012
    accepts_loss_kwargs = True

    def __init__(self, config: ElmoConfig):
        super().__init__(config)
        self.elmo = ElmoModel(config)
        # Id 0, padding, is no word: row 0 of a linear layer is never used, an adaptive one has none for it.
        classes = config.vocab_size - (1 if config.softmax == "adaptive" else 0)
        self.softmax = make_softmax(config.projection_size, classes, config.softmax, config.adaptive_cutoffs)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear) and any(module is part for part in self.softmax.modules()):
            init_softmax(module, init)
        else:
            super()._init_weights(module)

    def get_output_embeddings(self) -> nn.Linear | None:
        """The softmax that both directions share; None where it is adaptive, whose rows are no words."""
        return self.softmax if isinstance(self.softmax, nn.Linear) else None

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the softmax."""
        self.softmax = new_embeddings

    @staticmethod
    def count_targets(batch: dict) -> Tensor:
        """Targets of one direction in a batch, for exact means: a sentence's words and one mark, or a stream's labels."""
        labels = batch["labels"]
        if "backward_labels" in batch:
            return (labels != -100).sum()
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
        backward_input_ids: Tensor | None = None,
        backward_char_ids: Tensor | None = None,
        backward_labels: Tensor | None = None,
    ) -> ElmoForPreTrainingOutput:
        """Language-model losses over sentences, or over streams where `backward_...` inputs are given.

        Sentences get their marks and their backward direction here. Streams (bilm-tf's training) are two texts of their
        own, cut anywhere, marks included, with the target of each position given.

        Args:
            input_ids: as in `ElmoModel`; of streams, (B, T) with B lanes.
            char_ids: as in `ElmoModel`.
            attention_mask: as in `ElmoModel`; not for streams.
            labels: (B, T) word ids; -100 is not predicted, padding is ignored. Of a sentence, its own words; of a
                stream, the word that follows each position.
            states: as in `ElmoModel`.
            output_hidden_states: as in `ElmoModel`; not for streams.
            num_items_in_batch: targets of all accumulated batches (`count_targets`); None means this batch only.
            backward_input_ids: (B, T) word ids of the backward stream, in reverse order.
            backward_char_ids: (B, T, C) character ids of it.
            backward_labels: (B, T) the word that comes before each of its positions in the text.

        Returns:
            `ElmoForPreTrainingOutput`: with labels the losses, without labels the logits. In training the loss is that
            of `config.softmax`, in evaluation it always covers the whole vocabulary.

        Raises:
            ValueError: bad inputs as in `ElmoModel`, or labels that are no words of the vocabulary.
        """
        check_states(self.config, states)
        if any(given is not None for given in (backward_input_ids, backward_char_ids, backward_labels)):
            streams = (input_ids, char_ids), (backward_input_ids, backward_char_ids)
            check_streams(self.config, *streams, attention_mask)
            return self._read_streams(*streams, labels, backward_labels, states, num_items_in_batch)
        mask = word_mask(self.config, input_ids, char_ids, attention_mask)
        if labels is not None:
            check_labels(self.config, "labels", labels, mask)
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
            sides = (left, inner - 1), (right, inner)
            logits = [unflatten(self._logits(side.index_select(0, index)), mask) for side, index in sides]
            return ElmoForPreTrainingOutput(forward_logits=logits[0], backward_logits=logits[1], **parts)
        marks = labels.new_tensor([self.config.bos_token_id, self.config.eos_token_id])
        words = torch.cat([labels[mask], marks]).index_select(0, around_sentences(lengths))  # (N + 2 B,)
        targets = words[1:][follows], words[:-1][follows]
        return ElmoForPreTrainingOutput(**self._losses((left, right), targets, num_items_in_batch), **parts)

    def _read_streams(self, forward, backward, labels, backward_labels, states, num_items_in_batch):
        hidden, states = self.elmo.read_streams(forward, backward, states)
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        sides = hidden.chunk(2, -1)  # (B, T, P) each
        if labels is None and backward_labels is None:
            logits = [self._logits(side.flatten(0, 1)).unflatten(0, side.shape[:2]) for side in sides]
            return ElmoForPreTrainingOutput(
                forward_logits=logits[0], backward_logits=logits[1], states=states
            )
        if labels is None or backward_labels is None:
            raise ValueError("streams need both labels and backward_labels, found only one of them.")
        everywhere = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        check_labels(self.config, "labels", labels, everywhere)
        check_labels(self.config, "backward_labels", backward_labels, everywhere)
        sides = [side.flatten(0, 1) for side in sides]
        targets = labels.flatten(), backward_labels.flatten()
        return ElmoForPreTrainingOutput(**self._losses(sides, targets, num_items_in_batch), states=states)

    def _losses(self, sides, targets, num_items_in_batch) -> dict[str, Tensor]:
        """The named losses of both directions from (N, P) outputs and (N,) targets each."""
        losses, sampled = [], self.training and self.config.softmax == "sampled"
        for hidden, words in zip(sides, targets, strict=True):
            known = words != -100
            if not known.all():
                hidden, words = hidden[known], words[known]
            total = target_loss(
                self.softmax, hidden, words, self.config.num_sampled if sampled else 0, skip=1
            )
            losses.append(mean_of_all(total, known.sum(), num_items_in_batch))
        loss = (losses[0] + losses[1]) / 2
        parts = {"loss": loss, "forward_loss": losses[0], "backward_loss": losses[1]}
        return parts | ({"sampled_loss": loss} if sampled else {})

    def _logits(self, hidden: Tensor) -> Tensor:
        """(N, V) from (N, P), -inf at padding."""
        if not isinstance(self.softmax, nn.Linear):
            return log_probabilities(self.softmax, hidden, skip=1)
        logits = self.softmax(hidden)
        logits[:, 0] = -torch.inf
        return logits


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
        mask = word_mask(self.config, input_ids, char_ids, attention_mask)
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
