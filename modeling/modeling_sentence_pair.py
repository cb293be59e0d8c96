"""A masked language model that also tells how the two texts of a row belong together, with as many classes as wanted.

`loss = mlm_loss + pair_loss`. With three classes it is the model of StructBERT (Wang et al. 2020, section 2.2): next,
previous or random. With other numbers it serves any objective over pairs or over the order of sentences, also for models
that have no such head in Transformers. The head is BERT's: softmax(W tanh(V x_1)) of the first token's vector x_1.

The language model is the attribute `language_model`, any masked one; `model.language_model.save_pretrained(...)` writes a
stock checkpoint again, without the head.

Letters: B rows, T positions, M masked places, H features, V tokens, K classes.
"""

import copy
import inspect
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple, logging

from .auto_map import AUTO_MAP
from .backbones_joint_loss import build_language_model, open_language_model, position_limit
from .checks import check_ids, check_shape
from .configuration_sentence_pair import SentencePairConfig
from .gathered_head import mlm_head, mlm_logits
from .several_losses import SeveralLosses


@dataclass
class SentencePairOutput(ModelOutput):
    """What a sentence-pair model returns.

    Args:
        loss: `mlm_loss + pair_loss`.
        logits: (B, T, V) of the masked language model; not made where there are labels.
        pair_logits: (B, K).
        mlm_loss: mean over the masked places.
        pair_loss: mean over the pairs.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pair_logits: Tensor | None = None
    mlm_loss: Tensor | None = None
    pair_loss: Tensor | None = None


class SentencePairHead(nn.Module):
    """BERT's pooler and a linear layer.

    Args:
        hidden_size: H.
        num_labels: K.
    """

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(self, first: Tensor) -> Tensor:
        """Logits (B, K) of the first tokens' vectors (B, H)."""
        return self.classifier(torch.tanh(self.pooler(first)))


class SentencePairForPreTraining(SeveralLosses, PreTrainedModel):
    """A masked language model with a head for pairs of texts beside its own.

    `from_encoder(name)` puts a new head on a pre-trained language model.
    """

    config: SentencePairConfig
    config_class = SentencePairConfig
    base_model_prefix = "language_model"  # a checkpoint of the bare language model loads too
    main_input_name = "input_ids"
    loss_names: ClassVar[tuple[str, ...]] = ("mlm_loss", "pair_loss")
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # the language model says what it can
    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: SentencePairConfig, language_model: PreTrainedModel | None = None):
        super().__init__(copy.deepcopy(config))
        if language_model is None:
            language_model = build_language_model(self.config.text_config, "masked")
        self.language_model = language_model
        # One object inside one model, so that both see a resize.
        self.config.text_config = language_model.config
        self.supports_gradient_checkpointing = language_model.supports_gradient_checkpointing
        sizes = language_model.config.get_text_config()
        self.pair_head = SentencePairHead(sizes.hidden_size, config.num_pair_labels)
        self._longest = position_limit(language_model)
        self._accepted = set(inspect.signature(language_model.forward).parameters)
        self._types = getattr(sizes, "type_vocab_size", None)
        if self._types is not None and self._types < 2:  # RoBERTa embeds one type
            self._accepted.discard("token_type_ids")
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: all new values go through `transformers.initialization`."""
        return False

    @classmethod
    def from_encoder(
        cls, name_or_path: str | PreTrainedModel, backbone_kwargs: dict | None = None, **options
    ) -> "SentencePairForPreTraining":
        """Put a new head for pairs on a pre-trained masked language model.

        A checkpoint that has BERT's pooler lends it to the head; the classes are always new.

        Args:
            name_or_path: folder or name on the Hub of a masked language model, or a loaded one, which is taken over and
                not copied, and which has no pooler.
            backbone_kwargs: for the language model's `from_pretrained`, such as `dtype` or `attn_implementation`.
            options: fields of `SentencePairConfig`.

        Returns:
            The model, in evaluation mode; a checkpoint without language-model head is taken with a loud warning.

        Raises:
            ValueError: a model that has no masked language-model head.
        """
        language_model, _ = open_language_model(name_or_path, "masked", **(backbone_kwargs or {}))
        model = cls(cls.config_class(text_config=language_model.config, **options), language_model)
        if not isinstance(name_or_path, PreTrainedModel):
            _copy_pooler(name_or_path, model.pair_head.pooler, backbone_kwargs or {})
        model.pair_head.to(device=language_model.device, dtype=language_model.dtype)
        return model.eval()

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers; the checkpoint also names every Auto class that can load it."""
        self.config.auto_map = dict(AUTO_MAP[self.config.model_type])
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
        """As in Transformers; the language model keeps its ties."""
        return self.language_model.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)

    def loss_weights(self) -> tuple[float, ...]:
        """1 and 1."""
        return 1.0, 1.0

    def count_items(self, batch: dict) -> Tensor:
        """Masked places and labelled pairs in a batch, (2,): what the vector `num_items_in_batch` is a sum of.

        Raises:
            ValueError: the label of a pair under the name that ALBERT has for it.
        """
        if "sentence_order_label" in batch:
            raise ValueError(
                "the batch has `sentence_order_label`, but this model reads next_sentence_label. Name the label so in the "
                "data set (label_name of SentencePairDataset)."
            )
        labels, pairs = batch.get("labels"), batch.get("next_sentence_label")
        masked = torch.tensor(0) if labels is None else (labels != -100).sum()
        labelled = masked.new_tensor(0) if pairs is None else (pairs != -100).sum()
        return torch.stack([masked, labelled.to(masked.device)])

    def _check(self, rows: dict[str, Tensor], labels: Tensor | None, pairs: Tensor | None) -> None:
        vocab, shape = self.config.text_config.get_text_config().vocab_size, rows["input_ids"].shape
        check_ids("input_ids", rows["input_ids"], (None, None), "token ids (B, T)", vocab)
        if self._longest is not None and shape[1] > self._longest:
            raise ValueError(
                f"the language model has {self._longest} positions, found rows of {shape[1]}. Cut them when tokenizing "
                f"(truncation=True, max_length={self._longest})."
            )
        for name in ("attention_mask", "token_type_ids"):
            if name in rows:
                check_shape(name, rows[name], tuple(shape), "a number for each token, like input_ids")
        if self._types is not None and {"token_type_ids"} <= rows.keys() & self._accepted:
            check_ids("token_type_ids", rows["token_type_ids"], tuple(shape), "0 or 1", self._types)
        if labels is not None:
            meaning = "the original ids at masked places and -100 elsewhere, like input_ids"
            check_ids("labels", labels.masked_fill(labels == -100, 0), tuple(shape), meaning, vocab)
        if pairs is not None:
            known, classes = pairs.masked_fill(pairs == -100, 0), self.config.num_pair_labels
            check_ids("next_sentence_label", known, (shape[0],), "the class of each pair, or -100", classes)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SentencePairOutput:
        """Predict hidden tokens, and the class of each pair.

        Args:
            input_ids: (B, T) token ids of `[CLS] A [SEP] B [SEP]`, some hidden or moved by a collator.
            attention_mask: (B, T), 1 at tokens; None means that all are.
            token_type_ids: (B, T), 0 at A and 1 at B, for models that tell these apart; others do not get them.
            labels: (B, T) the original ids at hidden and moved places, -100 elsewhere.
            next_sentence_label: (B,) class of each pair; -100 where a row has none.
            num_items_in_batch: (2,) masked places and pairs of the whole step (`count_items`); or masked places alone, of
                which `pair_loss` then gets this part's share. None means this batch only.

        Returns:
            `SentencePairOutput`; without labels only the logits.

        Raises:
            ValueError: missing, misshapen or out-of-range inputs or labels; rows beyond the model's positions.
        """
        if input_ids is None:
            raise ValueError(
                "a sentence-pair model needs input_ids (B, T), found none. Pass the collator's whole output."
            )
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        rows = {name: tensor for name, tensor in given.items() if tensor is not None}
        if (labels is None) != (next_sentence_label is None) or (labels is None and self.training):
            missing = "labels" if labels is None else "next_sentence_label"
            raise ValueError(
                f"the loss needs labels (B, T) and next_sentence_label (B,), found no {missing}. Use SentencePairDataset and a "
                "collator that hides tokens."
            )
        self._check(rows, labels, next_sentence_label)
        rows = {name: tensor for name, tensor in rows.items() if name in self._accepted}
        if labels is None:
            hidden, logits = self._read(rows, torch.ones_like(input_ids, dtype=torch.bool))
            pair_logits = self.pair_head(_first(hidden, attention_mask))
            return SentencePairOutput(logits=logits.view(*input_ids.shape, -1), pair_logits=pair_logits)
        masked = labels != -100
        hidden, logits = self._read(rows, masked)
        pair_logits = self.pair_head(_first(hidden, attention_mask))
        totals = [_summed(logits, labels[masked]), _summed(pair_logits, next_sentence_label)]
        counts = self.count_items({"labels": labels, "next_sentence_label": next_sentence_label})
        return SentencePairOutput(
            pair_logits=pair_logits, **self.added_up(totals, counts, num_items_in_batch)
        )

    def _read(self, rows: dict[str, Tensor], masked: Tensor) -> tuple[Tensor, Tensor]:
        """The top layer (B, T, H), and logits (M, V) at some places; where the head is known, no others are made."""
        model = self.language_model
        if mlm_head(model) is None:
            outputs = model(**rows, output_hidden_states=True, return_dict=True)
            return outputs.hidden_states[-1], outputs.logits[masked]
        hidden = model.base_model(**rows, return_dict=True).last_hidden_state
        return hidden, mlm_logits(model, hidden[masked])


def _first(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H): the vector of each row's first token, on whichever side padding is."""
    if mask is None:
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.int().argmax(1)]


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy in float32 at least, without what is labelled -100; 0 of nothing."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, reduction="sum")


@torch.no_grad()
def _copy_pooler(name: str, pooler: nn.Linear, options: dict) -> None:
    """Fill `pooler` from the checkpoint's own, where it has one of this kind."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the loading report was shown with the language model
    try:
        encoder, report = AutoModel.from_pretrained(name, output_loading_info=True, **options)
    finally:
        logging.set_verbosity(level)
    found = getattr(encoder, "pooler", None)
    found = getattr(found, "dense", found)  # ALBERT's is a layer itself
    new = any("pooler" in key for key in report["missing_keys"])
    if isinstance(found, nn.Linear) and found.weight.shape == pooler.weight.shape and not new:
        pooler.load_state_dict(found.state_dict())


__all__ = ["SentencePairForPreTraining", "SentencePairHead", "SentencePairOutput"]
