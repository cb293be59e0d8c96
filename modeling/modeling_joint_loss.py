"""Fine-tuning with the language model's own loss beside the task's (Radford et al. 2018, section 3.2).

`loss = task_loss + lm_loss_weight * lm_loss`, around any causal or masked language model of Transformers, our LSTM one or
ELMo's biLM. The language model is the attribute `language_model`, whole and with its head: one checkpoint holds both, and
`model.language_model.save_pretrained(...)` writes a stock checkpoint again.

Both means are exact however a batch is cut into parts, once the counts of the whole batch are given. Where it leaves the
original: positions are no tokens, and dropout falls on vectors and not on the table of embeddings.

Letters: B examples, C choices, N rows (B, 2 B or B C), T positions, E embedding, H features, K labels.
"""

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import can_return_tuple, logging

from .auto_map import AUTO_MAP
from .backbones_joint_loss import build_language_model, open_language_model, position_limit
from .checks import check_ids, check_shape
from .configuration_joint_loss import JointLossConfig
from .losses import classification_loss, mean_of_all
from .outputs_joint_loss import JointLossOutput
from .reading_joint_loss import Reading, count_items, pool_rows, predicted, read, token_mask

logger = logging.get_logger(__name__)

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", "char_ids")


def task_mean(
    logits: Tensor, labels: Tensor, problem_type: str | None = None, items: Tensor | int | None = None
) -> Tensor:
    """Task loss over what is labelled.

    Args:
        logits: (N, K).
        labels: as in `classification_loss`; here -100 means "unlabelled" among numbers too.
        problem_type: as in Transformers; None decides by K and the labels' type.
        items: labels of the whole batch; None means this part only.

    Returns:
        () loss, 0 where nothing is labelled.

    Raises:
        ValueError: labels of the wrong shape, or classes that do not exist.
    """
    if problem_type is None and logits.shape[-1] == 1 and not labels.is_floating_point():
        raise ValueError(
            f"labels are whole numbers ({labels.dtype}) but num_labels is 1, and a single class teaches nothing. Set "
            "num_labels to the number of classes, or give numbers to predict as floats."
        )
    several = problem_type in ("regression", "multi_label_classification")
    if problem_type is None:
        several = logits.shape[-1] == 1 or labels.is_floating_point()
        problem_type = "regression" if logits.shape[-1] == 1 else None
    if not several or labels.numel() != logits.numel():
        return classification_loss(logits, labels, problem_type, items)
    known = labels.view_as(logits) != -100
    # Both losses are sums over elements, so each labelled element is a row of its own.
    problem_type = problem_type or "multi_label_classification"
    return classification_loss(
        logits[known].unsqueeze(1), labels.view_as(logits)[known].unsqueeze(1), problem_type, items
    )


class JointLossPreTrainedModel(PreTrainedModel):
    """A language model with a linear head beside its own, and the two losses; what a head reads is up to the subclass."""

    config: JointLossConfig
    config_class = JointLossConfig
    base_model_prefix = "language_model"  # a checkpoint of the bare language model loads too
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    # The language model says what it can; these flags must not stand in its way.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _middle: ClassVar[tuple[str, ...]] = ()  # axes between B and T

    def __init__(self, config: JointLossConfig, language_model: PreTrainedModel | None = None):
        super().__init__(copy.deepcopy(config))
        if language_model is None:
            language_model = build_language_model(self.config.text_config, config.lm_objective)
        self.language_model = language_model
        # One object inside one model, so that both see a resize. No other model and no caller holds it.
        self.config.text_config = language_model.config
        self.supports_gradient_checkpointing = language_model.supports_gradient_checkpointing
        hidden_size = language_model.config.get_text_config().hidden_size
        self.classifier = nn.Linear(hidden_size, self._num_outputs(), bias=config.classifier_bias)
        self._longest = position_limit(language_model)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: all new values go through `transformers.initialization`.

        Otherwise Transformers would leave out the buffers that a container fills for its children.
        """
        return False

    @classmethod
    def from_backbone_pretrained(
        cls,
        name_or_path: str | PreTrainedModel,
        lm_objective: str | None = None,
        backbone_kwargs: dict | None = None,
        **options,
    ) -> "JointLossPreTrainedModel":
        """Put a new head on a pre-trained language model.

        Args:
            name_or_path: folder or name on the Hub of a language model, or a loaded one, which is taken over and not
                copied.
            lm_objective: "causal" or "masked"; None finds it.
            backbone_kwargs: for the language model's `from_pretrained`, such as `dtype` or `attn_implementation`.
            options: fields of `JointLossConfig`, such as `num_labels` and `lm_loss_weight`.

        Returns:
            The model, in evaluation mode; a checkpoint without language-model head is taken with a loud warning.

        Raises:
            ValueError: an encoder-decoder, a model without such a head, or one that sees what it should predict.
        """
        language_model, objective = open_language_model(name_or_path, lm_objective, **(backbone_kwargs or {}))
        config = cls.config_class(text_config=language_model.config, lm_objective=objective, **options)
        model = cls(config, language_model)
        model.classifier.to(device=language_model.device, dtype=language_model.dtype)
        return model.eval()

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers; the checkpoint also names every Auto class that can load it."""
        self.config.auto_map = dict(AUTO_MAP[self.config.model_type])
        if type(self).__module__ == __name__:  # one Auto class has two models; this is the one
            self.config.auto_map[self._auto_class] = f"modeling_joint_loss.{type(self).__name__}"
        return super().save_pretrained(save_directory, **kwargs)

    def get_output_embeddings(self) -> nn.Module | None:
        """The language model's."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's."""
        self.language_model.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """As in Transformers; the language model keeps its ties and its bias. The original draws N(0, 0.02) instead."""
        return self.language_model.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    # Counts, for means over batches that come in parts

    @staticmethod
    def count_task_items(batch: dict) -> Tensor:
        """Labels in a batch, -100 left out: what `num_items_in_batch` is a sum of."""
        labels = batch.get("labels")
        return torch.tensor(0) if labels is None else (labels != -100).sum()

    def count_lm_items(self, batch: dict) -> Tensor:
        """Rows or targets of the language model in a batch: what `num_lm_items_in_batch` is a sum of."""
        targets = self.lm_targets_of(batch)
        if targets is None:
            return torch.tensor(0)
        return count_items(targets, self.config.lm_objective, self.config.lm_loss_reduction)

    def lm_targets_of(self, batch: dict) -> Tensor | None:
        """What the language model has to predict in a batch.

        Args:
            batch: keyword arguments of `forward`.

        Returns:
            (N, T) token ids, -100 where nothing is predicted; by default the text itself. None for a masked model
            without `lm_targets`, and for text that came as vectors.
        """
        return self._targets(self._lm_stream(batch) or self._rows(batch), batch.get("lm_targets"))

    def _targets(self, stream: dict[str, Tensor], targets: Tensor | None) -> Tensor | None:
        if targets is None:
            targets = None if self.config.lm_objective == "masked" else stream.get("input_ids")
            if targets is None:
                return None
        targets = targets.flatten(0, -2)
        mask = token_mask(self.config.text_config, stream)
        if targets.shape != mask.shape:
            raise ValueError(
                f"lm_targets must be token ids at their own positions, {tuple(mask.shape)} like the text that the language "
                f"model reads, found {tuple(targets.shape)}. Shift nothing; use -100 for what is not predicted."
            )
        vocab = self.config.text_config.get_text_config().vocab_size
        check_ids(
            "lm_targets", targets.masked_fill(targets == -100, 0), (None, None), "token ids or -100", vocab
        )
        return predicted(targets, mask, self.config.lm_objective)

    def _rows(self, batch: dict) -> dict[str, Tensor]:
        """The task's text as N rows, checked."""
        rows, shapes = {}, set()
        for name in INPUTS:
            if (tensor := batch.get(name)) is None:
                continue
            last = {"inputs_embeds": ("E",), "char_ids": ("characters",)}.get(name, ())
            letters = ("B", *self._middle, "T", *last)
            sizes = [int(letter) if letter.isdigit() else None for letter in letters]
            check_shape(name, tensor, tuple(sizes), f"({', '.join(letters)}) for {type(self).__name__}")
            rows[name] = tensor.flatten(0, len(self._middle))
            shapes.add(tuple(rows[name].shape[:2]))
        self._check(rows, shapes, "")
        return rows

    def _lm_stream(self, batch: dict) -> dict[str, Tensor]:
        """The language model's own text as rows, checked; empty where it reads the task's."""
        stream = {name: batch.get(f"lm_{name}") for name in ("input_ids", "attention_mask", "char_ids")}
        last = {"char_ids": -3}
        stream = {
            name: tensor.flatten(0, last.get(name, -2))
            for name, tensor in stream.items()
            if tensor is not None
        }
        self._check(stream, {tuple(tensor.shape[:2]) for tensor in stream.values()}, "lm_")
        return stream

    def _check(self, rows: dict[str, Tensor], shapes: set, prefix: str) -> None:
        if not shapes and prefix:
            return
        if len(shapes) != 1 or not rows.keys() & {"input_ids", "inputs_embeds", "char_ids"}:
            names = ", ".join(f"{prefix}{name}" for name in rows)
            raise ValueError(
                f"inputs must hold {prefix}input_ids and agree in rows and positions, found ({names}) of {len(shapes)} "
                "shapes. Pass the tokenizer's whole output."
            )
        width = shapes.pop()[1]
        if self._longest is not None and width > self._longest:
            raise ValueError(
                f"the language model has {self._longest} positions, found rows of {width}. Cut them when tokenizing "
                f"(truncation=True, max_length={self._longest})."
            )
        text_config = self.config.text_config.get_text_config()
        if "input_ids" in rows and text_config.model_type != "elmo":  # ELMo checks its own
            meaning = "token ids"
            check_ids(f"{prefix}input_ids", rows["input_ids"], (None, None), meaning, text_config.vocab_size)

    # The two losses

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        char_ids: Tensor | None = None,
        labels: Tensor | None = None,
        lm_targets: Tensor | None = None,
        lm_input_ids: Tensor | None = None,
        lm_attention_mask: Tensor | None = None,
        lm_char_ids: Tensor | None = None,
        lm_loss_weight: float | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_lm_items_in_batch: Tensor | int | None = None,
    ) -> JointLossOutput:
        """Classify, and with `labels` or `lm_targets` compute the losses.

        Args:
            input_ids: (B, T) token ids; (B, 2, T) for similarity, (B, C, T) for choices.
            attention_mask: of the same shape, 1 at tokens; None means that all are. The head pools by it, never by a
                padding id.
            token_type_ids: for masked models; causal ones do not get them.
            position_ids: as the language model takes them.
            inputs_embeds: token vectors (..., T, E), instead of ids.
            char_ids: (..., T, characters) for ELMo.
            labels: (B,) classes or numbers, (B, K) floats of 0 and 1, (B, T) classes of tokens, or (B,) right choices;
                -100 means unlabelled: such rows train the language model only.
            lm_targets: what the language model predicts, ids at their own positions and -100 for none; shifted here. By
                default the text that it reads, which for a masked model tells nothing: there a collator makes them.
            lm_input_ids: (M, T') a text of its own for the language model, read in a second pass: the task's text with
                some tokens hidden, or text replayed from elsewhere. Any leading axes; by default it reads the task's text.
            lm_attention_mask: of that text.
            lm_char_ids: of that text, for ELMo.
            lm_loss_weight: lambda of this call; by default the config's. With 0 the language model's head is not computed.
            num_items_in_batch: labels of all parts of the batch (`count_task_items`), None means this part only.
            num_lm_items_in_batch: rows or targets of all parts (`count_lm_items`). Where only `num_items_in_batch` is
                known (stock Trainer), a part's `lm_loss` gets the share that it has of the labels.

        Returns:
            `JointLossOutput`.

        Raises:
            ValueError: missing, misshapen or out-of-range inputs, labels or targets; rows beyond the model's positions;
                training of a masked model without `lm_targets`.
        """
        given = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, char_ids
        batch = dict(zip(INPUTS, given, strict=True))
        batch |= {
            "lm_input_ids": lm_input_ids,
            "lm_attention_mask": lm_attention_mask,
            "lm_char_ids": lm_char_ids,
        }
        rows, stream = self._rows(batch), self._lm_stream(batch)
        weight = self.config.lm_loss_weight if lm_loss_weight is None else lm_loss_weight
        if not 0 <= weight < float("inf"):
            raise ValueError(
                f"lm_loss_weight must be at least 0, found {weight}. Use 0 to train the task alone."
            )
        targets = None
        if weight > 0 and (labels is not None or lm_targets is not None):
            targets = self._targets(stream or rows, lm_targets)
            if targets is None and self.training:
                raise ValueError(
                    f"lm_loss_weight is {weight}, but nothing says what the language model shall predict. For a masked "
                    "model use a collator that hides tokens and gives lm_targets; with inputs_embeds or char_ids alone "
                    "give lm_targets too. Or set lm_loss_weight=0."
                )

        reading = self._read(rows, None if stream else targets)
        examples = next(len(tensor) for tensor in given if tensor is not None)
        logits = self._logits(reading, rows.get("input_ids"), examples)
        losses, loss = {}, None
        if labels is not None:
            losses["task_loss"] = loss = self._task_loss(logits, labels, num_items_in_batch)
        if targets is not None:
            if stream:
                reading = self._read(stream, targets)
            share = self._share(labels, num_items_in_batch, num_lm_items_in_batch)
            for name, total in {"lm_loss": reading.total, **reading.parts}.items():
                losses[name] = share * mean_of_all(total, reading.count, num_lm_items_in_batch)
            loss = weight * losses["lm_loss"] + (0 if loss is None else loss)
        return JointLossOutput(loss=loss, logits=logits, **losses)

    def _read(self, rows: dict[str, Tensor], targets: Tensor | None) -> Reading:
        config = self.config
        return read(self.language_model, config.lm_objective, config.lm_loss_reduction, rows, targets)

    def _share(self, labels: Tensor | None, items, lm_items) -> Tensor | float:
        """What a part's mean LM loss weighs in the batch; all of it where the LM's own count is known, or no part is."""
        if items is None or lm_items is not None or labels is None:
            return 1.0
        known = labels != -100
        if labels.dim() == 1 and not bool(known.all()):
            logger.warning_once(
                "Rows without labels count for nothing in the language-model loss, since num_items_in_batch counts labels "
                "alone. Use heirloom's JointLossTrainer, which also gives num_lm_items_in_batch."
            )
        return mean_of_all(known.sum().float(), known.sum(), items)

    # What a task is

    def _num_outputs(self) -> int:
        return self.config.num_labels

    def _logits(self, reading: Reading, ids: Tensor | None, examples: int) -> Tensor:
        raise NotImplementedError

    def _task_loss(self, logits: Tensor, labels: Tensor, items) -> Tensor:
        return task_mean(logits, labels, self.config.problem_type, items)

    def _pooled(self, reading: Reading, ids: Tensor | None) -> Tensor:
        config = self.config
        return pool_rows(reading.hidden, reading.mask, config.pooling, ids, config.classify_token_id)

    def _dropped(self, vectors: Tensor) -> Tensor:
        return F.dropout(vectors, self.config.classifier_dropout, self.training)


class JointLossForSequenceClassification(JointLossPreTrainedModel):
    """A label or a number for each text, or for two texts in one row (entailment)."""

    _auto_class = "AutoModelForSequenceClassification"

    def _logits(self, reading: Reading, ids: Tensor | None, examples: int) -> Tensor:
        return self.classifier(self._dropped(self._pooled(reading, ids)))


class JointLossForSimilarity(JointLossPreTrainedModel):
    """A label or a number for two texts without an order: both orders are read and their vectors added."""

    _auto_class = "AutoModelForSequenceClassification"
    _middle = ("2",)

    def _logits(self, reading: Reading, ids: Tensor | None, examples: int) -> Tensor:
        both = self._pooled(reading, ids).unflatten(0, (examples, 2)).sum(1)  # (B, H)
        return self.classifier(self._dropped(both))


class JointLossForMultipleChoice(JointLossPreTrainedModel):
    """The right one of several texts: one score each, softmax over the choices."""

    _auto_class = "AutoModelForMultipleChoice"
    _middle = ("C",)

    def _num_outputs(self) -> int:
        return 1

    def _logits(self, reading: Reading, ids: Tensor | None, examples: int) -> Tensor:
        vectors = self._pooled(reading, ids).unflatten(0, (examples, -1))  # (B, C, H)
        # One mask for all choices, as in the original: a choice must not win because its rivals lost features.
        return self.classifier(vectors * self._dropped(torch.ones_like(vectors[:, :1]))).squeeze(2)

    def _task_loss(self, logits: Tensor, labels: Tensor, items) -> Tensor:
        choices = logits.shape[1]
        known = labels[labels != -100]
        if labels.shape != logits.shape[:1] or (len(known) and not 0 <= known.min() <= known.max() < choices):
            raise ValueError(
                f"labels must be {len(logits)} numbers of right choices in 0..{choices - 1} (or -100), found shape "
                f"{tuple(labels.shape)} and {sorted(set(known.flatten().tolist()))[:9]}."
            )
        return task_mean(logits, labels, "single_label_classification", items)


class JointLossForTokenClassification(JointLossPreTrainedModel):
    """A label for each token."""

    _auto_class = "AutoModelForTokenClassification"

    def _logits(self, reading: Reading, ids: Tensor | None, examples: int) -> Tensor:
        return self.classifier(self._dropped(reading.hidden))

    def _task_loss(self, logits: Tensor, labels: Tensor, items) -> Tensor:
        if labels.shape != logits.shape[:2]:
            raise ValueError(
                f"labels must be (B, T) = {tuple(logits.shape[:2])} classes, found {tuple(labels.shape)}."
            )
        return task_mean(logits.flatten(0, 1), labels.flatten(), self.config.problem_type, items)


__all__ = [
    "JointLossForMultipleChoice",
    "JointLossForSequenceClassification",
    "JointLossForSimilarity",
    "JointLossForTokenClassification",
    "JointLossPreTrainedModel",
]
