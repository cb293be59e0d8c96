"""A masked language model that also tells how the two texts of a row belong together, with as many classes as wanted.

`loss = mlm_loss + pair_loss`. With three classes it is the model of StructBERT (Wang et al. 2020, section 2.2): next,
previous or random. With other numbers it serves any objective over pairs or over the order of sentences, also for models
that have no such head in Transformers. The head is BERT's: softmax(W tanh(V x_1)) of the first token's vector x_1.

The language model is the attribute `language_model`, any masked one; `model.language_model.save_pretrained(...)` writes a
stock checkpoint again, without the head.

Letters: B rows, T positions, M masked places, H features, V tokens, K classes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple, logging

from .checks import check_ids
from .configuration_sentence_pair import SentencePairConfig
from .language_model_wrapper import LanguageModelWrapper, summed_cross_entropy


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


class SentencePairForPreTraining(LanguageModelWrapper):
    """A masked language model with a head for pairs of texts beside its own.

    `from_encoder(name)` puts a new head on a pre-trained language model.
    """

    config: SentencePairConfig
    config_class = SentencePairConfig
    loss_names: ClassVar[tuple[str, ...]] = ("mlm_loss", "pair_loss")

    def __init__(self, config: SentencePairConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config, language_model)
        sizes = self.config.text_config.get_text_config()
        self.pair_head = SentencePairHead(sizes.hidden_size, config.num_pair_labels)
        self._types = getattr(sizes, "type_vocab_size", None)
        if self._types is not None and self._types < 2:  # RoBERTa embeds one type
            self._accepted.discard("token_type_ids")
        self.post_init()

    @classmethod
    def from_encoder(
        cls, name_or_path: str | PreTrainedModel, backbone_kwargs: dict | None = None, **options
    ) -> "SentencePairForPreTraining":
        """As in `LanguageModelWrapper`; a checkpoint that has BERT's pooler lends it to the head, a loaded model has none."""
        model = super().from_encoder(name_or_path, backbone_kwargs, **options)
        if not isinstance(name_or_path, PreTrainedModel):
            _copy_pooler(name_or_path, model.pair_head.pooler, backbone_kwargs or {})
        return model

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
        self._check_rows(rows, labels)
        shape = tuple(rows["input_ids"].shape)
        if self._types is not None and "token_type_ids" in self._inputs(rows):
            check_ids("token_type_ids", rows["token_type_ids"], shape, "0 or 1", self._types)
        if pairs is not None:
            known, classes = pairs.masked_fill(pairs == -100, 0), self.config.num_pair_labels
            check_ids("next_sentence_label", known, shape[:1], "the class of each pair, or -100", classes)

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
        if labels is None:
            hidden, logits = self._read(rows, torch.ones_like(input_ids, dtype=torch.bool))
            pair_logits = self.pair_head(_first(hidden, attention_mask))
            return SentencePairOutput(logits=logits.view(*input_ids.shape, -1), pair_logits=pair_logits)
        masked = labels != -100
        hidden, logits = self._read(rows, masked)
        pair_logits = self.pair_head(_first(hidden, attention_mask))
        totals = [
            summed_cross_entropy(logits, labels[masked]),
            summed_cross_entropy(pair_logits, next_sentence_label),
        ]
        counts = self.count_items({"labels": labels, "next_sentence_label": next_sentence_label})
        return SentencePairOutput(
            pair_logits=pair_logits, **self.added_up(totals, counts, num_items_in_batch)
        )


def _first(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H): the vector of each row's first token, on whichever side padding is."""
    if mask is None:
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.int().argmax(1)]


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
