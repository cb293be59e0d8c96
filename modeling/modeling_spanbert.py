"""SpanBERT: a masked language model that also tells each token of a hidden span from the two tokens around the span.

Joshi et al. 2020, sections 3.1 and 3.2: `loss = mlm_loss + span_loss_weight * sbo_loss`. For token i of the span (s..e),
y_i = f([x_{s-1}; x_{e+1}; p_{i-s}]) with two layers f, and the table of words as the last layer. A collator hides whole
spans; targets of the boundary loss come as a flat list, so a row may have any number of them.

The language model is the attribute `language_model`, any masked one; `model.language_model.save_pretrained(...)` writes a
stock checkpoint again.

Letters: B rows, T positions, M masked places, P targets of spans, H features, E embedding, V tokens.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .checks import check_shape
from .configuration_spanbert import SpanBertConfig
from .language_model_wrapper import LanguageModelWrapper, summed_cross_entropy

FIELDS = ("row", "left", "right", "offset", "label")


@dataclass
class SpanBertOutput(ModelOutput):
    """What SpanBERT returns.

    Args:
        loss: `mlm_loss + span_loss_weight * sbo_loss`.
        logits: (B, T, V) of the masked language model; not made where there are labels.
        mlm_loss: mean over the masked places.
        sbo_loss: mean over the targets of spans.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    mlm_loss: Tensor | None = None
    sbo_loss: Tensor | None = None


class SpanBoundaryHead(nn.Module):
    """f of section 3.2: two layers, each with GeLU and a layer norm, that end in the space of the word embeddings.

    Args:
        config: of the whole model.
        hidden_size: H.
        embedding_size: E.
        vocab_size: V.
    """

    def __init__(self, config: SpanBertConfig, hidden_size: int, embedding_size: int, vocab_size: int):
        super().__init__()
        self.positions = nn.Embedding(config.max_span_positions, config.span_position_size)
        self.inner = nn.Linear(2 * hidden_size + config.span_position_size, hidden_size)
        self.inner_norm = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.outer = nn.Linear(hidden_size, embedding_size)
        self.outer_norm = nn.LayerNorm(embedding_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, left: Tensor, right: Tensor, offset: Tensor, words: Tensor) -> Tensor:
        """Scores of all tokens.

        Args:
            left: (P, H) vectors of the tokens before the spans.
            right: (P, H) of those after them.
            offset: (P,) which token of its span is meant, 0 for the first.
            words: (V, E) table of word embeddings.

        Returns:
            (P, V) logits.
        """
        vectors = torch.cat([left, right, self.positions(offset)], 1)
        vectors = self.inner_norm(F.gelu(self.inner(vectors)))
        vectors = self.outer_norm(F.gelu(self.outer(vectors)))
        return F.linear(vectors, words, self.bias)

    def resize(self, vocab_size: int) -> None:
        """Another number of tokens; new ones have no bias."""
        wider = F.pad(self.bias.detach(), (0, max(0, vocab_size - len(self.bias))))
        self.bias = nn.Parameter(wider[:vocab_size].clone(), requires_grad=self.bias.requires_grad)


class SpanBertForPreTraining(LanguageModelWrapper):
    """A masked language model with the span boundary head beside its own.

    `from_encoder(name)` puts a new head on a pre-trained language model.
    """

    config: SpanBertConfig
    config_class = SpanBertConfig
    loss_names: ClassVar[tuple[str, ...]] = ("mlm_loss", "sbo_loss")

    def __init__(self, config: SpanBertConfig, language_model: PreTrainedModel | None = None):
        super().__init__(config, language_model)
        sizes, words = self.config.text_config.get_text_config(), self.language_model.get_input_embeddings()
        self.span_head = SpanBoundaryHead(
            config, sizes.hidden_size, words.embedding_dim, words.num_embeddings
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SpanBoundaryHead):
            init.zeros_(module.bias)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """As in Transformers; the language model keeps its ties, and both heads follow."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        self.span_head.resize(embeddings.num_embeddings)
        return embeddings

    def loss_weights(self) -> tuple[float, ...]:
        """1 and `span_loss_weight`."""
        return 1.0, float(self.config.span_loss_weight)

    def count_items(self, batch: dict) -> Tensor:
        """Masked places and targets of spans in a batch, (2,): what the vector `num_items_in_batch` is a sum of."""
        labels, targets = batch.get("labels"), batch.get("span_boundary_targets")
        masked = torch.tensor(0) if labels is None else (labels != -100).sum()
        return torch.stack([masked, masked.new_tensor(0 if targets is None else len(targets))])

    def first_rows(self, batch: dict, rows: int) -> dict:
        """The first rows of a batch, with the targets of spans in them."""
        kept = super().first_rows(
            {name: value for name, value in batch.items() if name != "span_boundary_targets"}, rows
        )
        if (targets := batch.get("span_boundary_targets")) is not None:
            kept["span_boundary_targets"] = targets[targets[:, 0] < max(1, rows)]
        return kept

    def _check_targets(self, targets: Tensor, rows: dict[str, Tensor]) -> None:
        check_shape(
            "span_boundary_targets", targets, (None, len(FIELDS)), f"one target a line: {', '.join(FIELDS)}"
        )
        if targets.is_floating_point():
            raise ValueError(f"span_boundary_targets must be integers (torch.long), found {targets.dtype}.")
        number, width = rows["input_ids"].shape
        limits = (number, width, width, self.config.max_span_positions, self._vocab_size)
        for name, column, limit in zip(FIELDS, targets.unbind(1), limits, strict=True):
            if column.numel() and not (column.min() >= 0 and column.max() < limit):
                advice = ""
                if name == "offset":
                    advice = " Leave out later tokens of a span, or raise max_span_positions of a new model."
                raise ValueError(
                    f"span_boundary_targets: {name} must lie in 0..{limit - 1}, found {int(column.min())}..{int(column.max())}."
                    + advice
                )
        row, left, right, offset, _ = targets.unbind(1)
        mask = rows.get("attention_mask")
        inside = left + 1 + offset < right
        if mask is not None:
            inside = inside & mask[row, left].bool() & mask[row, right].bool()
        if not bool(inside.all()):
            first = targets[~inside][0].tolist()
            raise ValueError(
                "span_boundary_targets: left and right must be the tokens around a span, and offset must count from its first "
                f"token; found {dict(zip(FIELDS, first, strict=True))}. A span that touches the end of a text has no targets."
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        span_boundary_targets: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> SpanBertOutput:
        """Predict hidden tokens from their own places and from the boundaries of their spans.

        Args:
            input_ids: (B, T) token ids, spans of them hidden by a collator.
            attention_mask: (B, T), 1 at tokens; None means that all are.
            token_type_ids: (B, T), for models that have such embeddings.
            labels: (B, T) the original ids at masked places, -100 elsewhere.
            span_boundary_targets: (P, 5) one target a line: its row, the places of the tokens before and after its span, which
                token of the span it is (0 for the first), and its original id. May have no lines.
            num_items_in_batch: (2,) masked places and targets of spans of the whole step (`count_items`); or masked places
                alone, of which `sbo_loss` then gets this part's share. None means this batch only.

        Returns:
            `SpanBertOutput`; without labels only the logits.

        Raises:
            ValueError: missing, misshapen or out-of-range inputs, labels or targets; rows beyond the model's positions.
        """
        if input_ids is None:
            raise ValueError("SpanBERT needs input_ids (B, T), found none. Pass the collator's whole output.")
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        rows = {name: tensor for name, tensor in given.items() if tensor is not None}
        if (labels is None) != (span_boundary_targets is None) or (labels is None and self.training):
            missing = "labels" if labels is None else "span_boundary_targets"
            raise ValueError(
                f"the loss needs labels (B, T) and span_boundary_targets (P, {len(FIELDS)}), found no {missing}. Use a collator that "
                "hides spans and lists their targets."
            )
        self._check_rows(rows, labels)
        if labels is None:
            _, logits = self._read(rows, torch.ones_like(input_ids, dtype=torch.bool))
            return SpanBertOutput(logits=logits.view(*input_ids.shape, -1))
        self._check_targets(span_boundary_targets, rows)
        masked = labels != -100
        hidden, logits = self._read(rows, masked)
        totals = [
            summed_cross_entropy(logits, labels[masked]),
            self._boundary_total(hidden, span_boundary_targets),
        ]
        counts = self.count_items({"labels": labels, "span_boundary_targets": span_boundary_targets})
        return SpanBertOutput(**self.added_up(totals, counts, num_items_in_batch))

    def _boundary_total(self, hidden: Tensor, targets: Tensor) -> Tensor:
        row, left, right, offset, label = targets.unbind(1)
        words = self.language_model.get_input_embeddings().weight
        logits = self.span_head(hidden[row, left], hidden[row, right], offset, words)
        return summed_cross_entropy(logits, label)


__all__ = ["SpanBertForPreTraining", "SpanBertOutput", "SpanBoundaryHead"]
