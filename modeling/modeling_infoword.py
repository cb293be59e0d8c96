"""InfoWord: a masked language model that also finds the n-gram that is missing in a row (Kong et al. 2020, section 4).

The row without its n-gram and the n-gram alone go through the same encoder; g is the first state of each, and a score is
their inner product. `loss = mlm_loss_weight * mlm_loss + contrastive_loss_weight * contrastive_loss`, with InfoNCE:
-log exp(s_real) / (exp(s_real) + sum over negatives of exp(s)). Or with a margin, as Collobert and Weston 2008, section 5:
max(0, 1 - s_real + s_negative), mean over the negatives of a row.

The language model is the attribute `language_model`, any masked one, and there are no other weights;
`model.language_model.save_pretrained(...)` writes a stock checkpoint again. The paper's weights of the two losses are not
verified.

Letters: B rows, T positions, N positions of n-grams, K negatives of a row, M masked places, H features, V tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple, logging

from .checks import check_ids, check_shape
from .configuration_infoword import InfoWordConfig
from .gathering_infoword import is_spread, rows_of_all
from .language_model_wrapper import LanguageModelWrapper, summed_cross_entropy

logger = logging.get_logger(__name__)

NGRAMS = ("ngram_context_ids", "ngram_ids", "ngram_mask", "negative_ngram_ids")


@dataclass
class InfoWordOutput(ModelOutput):
    """What InfoWord returns.

    Args:
        loss: weighted sum of both losses.
        logits: (B, T, V) of the masked language model; not made where there are labels.
        mlm_loss: mean over the masked places.
        contrastive_loss: mean over the rows.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mlm_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None


class NgramContrastiveHead(nn.Module):
    """Compares rows with n-grams. It has no weights.

    Args:
        loss: "infonce" or "margin".
        negatives: "in_batch", the n-grams of the other rows; "shuffled" and "replaced" are given, one for each row.
        temperature: by which scores are divided.
    """

    def __init__(self, loss: str = "infonce", negatives: str = "in_batch", temperature: float = 1.0):
        super().__init__()
        self.loss, self.negatives, self.temperature = loss, negatives, temperature

    def forward(self, contexts: Tensor, ngrams: Tensor, others: Tensor, same: Tensor) -> Tensor:
        """The summed loss of all rows; a row without negatives adds nothing.

        Args:
            contexts: (B, H) vectors of the rows.
            ngrams: (B, H) vectors of their n-grams.
            others: (K, H) n-grams that are negatives of all rows, or (B, K, H) of each.
            same: (B, K) bool, which of them are the row's own n-gram, and so no negatives.

        Returns:
            () loss in float32 at least.
        """
        precise = torch.promote_types(contexts.dtype, torch.float32)
        contexts, ngrams, others = (one.to(precise) for one in (contexts, ngrams, others))
        real = (contexts * ngrams).sum(1, keepdim=True) / self.temperature  # (B, 1)
        scores = (others @ contexts.unsqueeze(2)).squeeze(2) if others.dim() == 3 else contexts @ others.T
        scores = scores / self.temperature  # (B, K)
        if self.loss == "infonce":
            every = torch.cat([real, scores.masked_fill(same, float("-inf"))], 1)
            return (every.logsumexp(1) - real.squeeze(1)).sum()
        losses = F.relu(1 - real + scores).masked_fill(same, 0.0)
        return (losses.sum(1) / (~same).sum(1).clamp(min=1)).sum()


class InfoWordForPreTraining(LanguageModelWrapper):
    """A masked language model with a contrastive loss over n-grams.

    With negatives "in_batch" these are the n-grams of the other rows of the same batch, of all processes together where
    torch.distributed runs several, so that two processes are as one with twice the rows. All of them must then call the model
    together, in evaluation too: one that calls it alone with n-grams waits for the others. A process that has no row left in
    the last batch of an evaluation calls it with `first_rows(batch, 0)`.

    Batches of gradient accumulation have their own negatives each. So this loss depends on how a step is cut into these, and
    bigger batches are harder. The mean over the rows of the step is exact all the same. With "shuffled" and "replaced"
    nothing depends on the cut.

    A negative with the same tokens as the right n-gram is no negative: it is left out, and gets no gradient. A row whose
    `ngram_mask` is 0 everywhere has no n-gram: it counts for `mlm_loss` alone, and is no negative.

    `from_encoder(name)` puts the losses on a pre-trained language model.
    """

    config: InfoWordConfig
    config_class = InfoWordConfig
    loss_names: ClassVar[tuple[str, ...]] = ("mlm_loss", "contrastive_loss")

    def __init__(self, config: InfoWordConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config, language_model)
        self.contrast = NgramContrastiveHead(config.contrast, config.negatives, config.temperature)
        self.post_init()

    def loss_weights(self) -> tuple[float, ...]:
        """`mlm_loss_weight` and `contrastive_loss_weight`."""
        return float(self.config.mlm_loss_weight), float(self.config.contrastive_loss_weight)

    def count_items(self, batch: dict) -> Tensor:
        """Masked places and n-grams in a batch, (2,): what the vector `num_items_in_batch` is a sum of."""
        labels, mask = batch.get("labels"), batch.get("ngram_mask")
        masked = torch.tensor(0) if labels is None else (labels != -100).sum()
        return torch.stack([masked, masked.new_tensor(0) if mask is None else (mask != 0).any(1).sum()])

    def first_rows(self, batch: dict, rows: int) -> dict:
        """The first rows of a batch; of none of them, one without an n-gram, so that it is no negative of other processes."""
        kept = super().first_rows(batch, rows)
        if not rows and (mask := kept.get("ngram_mask")) is not None:
            kept["ngram_mask"] = torch.zeros_like(mask)
        return kept

    def _check(self, rows: dict[str, Tensor]) -> None:
        self._check_rows(rows, rows.get("labels"))
        if "labels" in rows:
            vocab, shape = self._vocab_size, tuple(rows["input_ids"].shape)
            check_ids("ngram_context_ids", rows["ngram_context_ids"], shape, "ids like input_ids", vocab)
            small = (shape[0], rows["ngram_ids"].shape[-1])
            self._check_length(small[1], "n-grams")
            for name in ("ngram_ids", "negative_ngram_ids"):
                if name in rows:
                    check_ids(name, rows[name], small, "ids of one n-gram for each row", vocab)
            check_shape("ngram_mask", rows["ngram_mask"], small, "1 at tokens, like ngram_ids")

    def _check_length(self, length: int, found: str = "rows", cut: str = "rows") -> None:
        super()._check_length(length, found, cut)  # shorter rows have shorter n-grams

    def _needed(self) -> tuple[str, ...]:
        given = self.config.negatives != "in_batch"
        return ("labels", *NGRAMS) if given else ("labels", *NGRAMS[:-1])

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        ngram_context_ids: Tensor | None = None,
        ngram_ids: Tensor | None = None,
        ngram_mask: Tensor | None = None,
        negative_ngram_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> InfoWordOutput:
        """Predict hidden tokens, and find the n-gram that is missing in each row.

        Args:
            input_ids: (B, T) token ids, some of them hidden by a collator.
            attention_mask: (B, T), 1 at tokens; None means that all are.
            token_type_ids: (B, T), for models that have such embeddings.
            labels: (B, T) the original ids at masked places, -100 elsewhere.
            ngram_context_ids: (B, T) the original rows, each with one n-gram masked out.
            ngram_ids: (B, N) these n-grams, each between the special tokens of a row.
            ngram_mask: (B, N), 1 at tokens; 0 everywhere in a row without an n-gram.
            negative_ngram_ids: (B, N) wrong n-grams of the same lengths, which all negatives but "in_batch" need.
            num_items_in_batch: (2,) masked places and rows of the whole step (`count_items`); or masked places alone, of
                which `contrastive_loss` then gets this part's share. None means this batch only.

        Returns:
            `InfoWordOutput`; without labels only the logits.

        Raises:
            ValueError: missing, misshapen or out-of-range inputs, labels or n-grams; rows beyond the model's positions.
        """
        if input_ids is None:
            raise ValueError("InfoWord needs input_ids (B, T), found none. Pass the collator's whole output.")
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        given |= {"labels": labels, "ngram_context_ids": ngram_context_ids, "ngram_ids": ngram_ids}
        given |= {"ngram_mask": ngram_mask, "negative_ngram_ids": negative_ngram_ids}
        given = {name: tensor for name, tensor in given.items() if tensor is not None}
        missing = [name for name in self._needed() if name not in given]
        targets = any(name in given for name in ("labels", *NGRAMS))
        if missing and (targets or self.training):
            raise ValueError(
                f"the loss with negatives={self.config.negatives!r} needs {', '.join(self._needed())}, found no "
                f"{', '.join(missing)}. Use DataCollatorForNgramContrast with NgramPairs({self.config.negatives!r})."
            )
        if self.config.negatives == "in_batch" and negative_ngram_ids is not None:
            raise ValueError(
                "found negative_ngram_ids, which negatives='in_batch' does not read. Set negatives of InfoWordConfig to those "
                "of the collator's NgramPairs."
            )
        self._check(given)
        rows = {
            name: given[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in given
        }
        if not targets:
            _, logits = self._read(rows, torch.ones_like(input_ids, dtype=torch.bool))
            return InfoWordOutput(logits=logits.view(*input_ids.shape, -1))
        masked = labels != -100
        _, logits = self._read(rows, masked)
        mlm = summed_cross_entropy(logits, labels[masked])
        contexts = self._first_states(rows | {"input_ids": ngram_context_ids})
        totals = [mlm, self._contrast(contexts, ngram_ids, ngram_mask, negative_ngram_ids)]
        counts = self.count_items({"labels": labels, "ngram_mask": ngram_mask})
        return InfoWordOutput(**self.added_up(totals, counts, num_items_in_batch))

    def _contrast(self, contexts: Tensor, ids: Tensor, mask: Tensor, negatives: Tensor | None) -> Tensor:
        """() summed contrastive loss."""
        none = (mask == 0).all(1)  # (B,)
        read = mask.masked_fill(none.unsqueeze(1), 1)  # attention to nothing at all is not a number
        ngrams = self._first_states({"input_ids": ids, "attention_mask": read})
        ids = ids.masked_fill(mask == 0, -1)
        if self.config.negatives == "in_batch":
            every, others = ids, ngrams
            if is_spread():
                precise = torch.promote_types(ngrams.dtype, torch.float32)  # sums of gradients too
                others, every = rows_of_all(ngrams.to(precise), ids)
                ids = F.pad(ids, (0, every.shape[1] - ids.shape[1]), value=-1)
            absent = (every < 0).all(1)  # (K,)
            # (B, K), each with itself too
            same = (ids.unsqueeze(1) == every).all(2) | absent | none.unsqueeze(1)
            if len(every) == 1:
                logger.warning_once(
                    "A batch of one row has no negatives in it, so its contrastive loss is 0. Use a batch size of 2 or "
                    "more, or negatives='shuffled'."
                )
            return self.contrast(contexts, ngrams, others, same)
        others = self._first_states({"input_ids": negatives, "attention_mask": read})
        same = (ids == negatives.masked_fill(mask == 0, -1)).all(1, keepdim=True)
        return self.contrast(contexts, ngrams, others.unsqueeze(1), same)

    def _first_states(self, rows: dict[str, Tensor]) -> Tensor:
        """(B, H)."""
        encoder = self.language_model.base_model
        return encoder(**self._inputs(rows), return_dict=True).last_hidden_state[:, 0]


__all__ = ["InfoWordForPreTraining", "InfoWordOutput", "NgramContrastiveHead"]
