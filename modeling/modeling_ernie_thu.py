"""ERNIE of Tsinghua: BERT layers, then layers that fuse the text with vectors of the entities it names.

Zhang et al. 2019, section 3: the text encoder is a stock `BertModel`, `layers_ernie_thu` has the layers above it. It is
pre-trained by `loss = mlm_loss + nsp_loss + dea_loss`; the last part finds each token's entity among those of the batch,
of which a collator hid or exchanged some. It is not the ERNIE of Baidu, which Transformers has.

The vectors of entities are never parameters: a collator looks up those of a batch, and gives each token the row of its own.

Letters: B rows, T positions, H features, E features of an entity, N entities of the batch, V tokens.
"""

import copy
import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .auto_map import AUTO_MAP
from .checks import check_ids, check_shape
from .configuration_ernie_thu import ErnieThuConfig
from .layers_ernie_thu import FusionLayer
from .several_losses import SeveralLosses

# BERT's names of what both models have; `{}` is the number of a fusion layer.
FROM_BERT = (
    (r"bert\.(embeddings\..*)", r"ernie.text_encoder.\1"),
    (r"layer\.(\d+)\.attention\.self\.(query|key|value)\.(.*)", r"ernie.layers.{}.attention.\2.\3"),
    (r"layer\.(\d+)\.attention\.output\.dense\.(.*)", r"ernie.layers.{}.attention.dense.\2"),
    (r"layer\.(\d+)\.attention\.output\.LayerNorm\.(.*)", r"ernie.layers.{}.attention.norm.\2"),
    (r"layer\.(\d+)\.intermediate\.dense\.(.*)", r"ernie.layers.{}.inner.\2"),
    (r"layer\.(\d+)\.output\.dense\.(.*)", r"ernie.layers.{}.outer.\2"),
    (r"layer\.(\d+)\.output\.LayerNorm\.(.*)", r"ernie.layers.{}.norm.\2"),
    (r"bert\.pooler\.dense\.(.*)", r"ernie.pooler.\1"),
    (r"cls\.predictions\.transform\.dense\.(.*)", r"token_dense.\1"),
    (r"cls\.predictions\.transform\.LayerNorm\.(.*)", r"token_norm.\1"),
    (r"cls\.predictions\.bias", "token_bias"),
    (r"cls\.seq_relationship\.(.*)", r"next_sentence.\1"),
)
SHARED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
)
SHARED += (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
)
SHARED += ("layer_norm_eps", "initializer_range", "pad_token_id")


@dataclass
class ErnieThuOutput(ModelOutput):
    """What ERNIE returns in pre-training.

    Args:
        loss: `mlm_loss + nsp_loss + dea_loss`.
        logits: (B, T, V) of tokens; not made where there is a loss.
        seq_relationship_logits: (B, 2), as of BERT: 0 means the second text follows the first.
        entity_logits: (places of `entity_labels`, N) scores of the batch's entities.
        mlm_loss: mean over the masked places.
        nsp_loss: mean over the labelled rows.
        dea_loss: mean over the labelled entities.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    entity_logits: Tensor | None = None
    mlm_loss: Tensor | None = None
    nsp_loss: Tensor | None = None
    dea_loss: Tensor | None = None


class ErnieThuPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config: ErnieThuConfig
    config_class = ErnieThuConfig
    base_model_prefix = "ernie"
    main_input_name = "input_ids"
    _supports_sdpa = True

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: all new values go through `transformers.initialization`."""
        return False

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers; the checkpoint also names every Auto class that can load it."""
        self.config.auto_map = dict(AUTO_MAP[self.config.model_type])
        return super().save_pretrained(save_directory, **kwargs)


class ErnieThuModel(ErnieThuPreTrainedModel):
    """The text encoder, the layers that fuse, and BERT's pooler."""

    _auto_class = "AutoModel"

    def __init__(self, config: ErnieThuConfig):
        super().__init__(copy.deepcopy(config))
        fields = {name: getattr(config, name) for name in SHARED} | {
            "num_hidden_layers": config.num_text_layers
        }
        self.text_encoder = AutoModel.from_config(
            AutoConfig.for_model("bert", **fields),
            add_pooling_layer=False,
            dtype=torch.get_default_dtype(),
            attn_implementation=config._attn_implementation,
        )
        number = config.num_hidden_layers - config.num_text_layers
        self.layers = nn.ModuleList(
            FusionLayer(config, place == 0, place == number - 1) for place in range(number)
        )
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's."""
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's."""
        self.text_encoder.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        entities: Tensor | None = None,
        entity_vectors: Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Read text and its entities.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 at tokens; None means that all are.
            token_type_ids: (B, T).
            entities: (B, T) rows of `entity_vectors` at the first tokens of mentions, -1 elsewhere. None means no
                entities.
            entity_vectors: (N, E), which get no gradient.

        Returns:
            `last_hidden_state` (B, T, H) and `pooler_output` (B, H).

        Raises:
            ValueError: missing, misshapen or out-of-range inputs; rows beyond the model's positions.
        """
        self._check(input_ids, attention_mask, token_type_ids, entities, entity_vectors)
        words = self.text_encoder(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, return_dict=True
        ).last_hidden_state
        tokens = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if entities is None:
            entities = torch.full_like(input_ids, -1)
        nothing = words.new_zeros(1, self.config.entity_size)
        table = nothing if entity_vectors is None else torch.cat([nothing, entity_vectors.detach().to(words)])
        vectors = table[entities + 1]  # (B, T, E)
        for layer in self.layers:
            words, vectors = layer(words, vectors, tokens.bool(), entities >= 0)
        return BaseModelOutputWithPooling(words, self.pooler(words[:, 0]).tanh())

    def _check(self, ids, mask, types, entities, vectors) -> None:
        config = self.config
        if ids is None:
            raise ValueError("ERNIE needs input_ids (B, T), found none. Pass the collator's whole output.")
        check_ids("input_ids", ids, (None, None), "token ids (B, T)", config.vocab_size)
        shape = tuple(ids.shape)
        if shape[1] > config.max_position_embeddings:
            raise ValueError(
                f"the model has {config.max_position_embeddings} positions, found rows of {shape[1]}. Cut them when "
                f"tokenizing (truncation=True, max_length={config.max_position_embeddings})."
            )
        if mask is not None:
            check_shape("attention_mask", mask, shape, "1 at tokens and 0 at padding, like input_ids")
        if types is not None:
            check_ids("token_type_ids", types, shape, "text numbers, like input_ids", config.type_vocab_size)
        number = 0
        if vectors is not None:
            size = (None, config.entity_size)
            check_shape("entity_vectors", vectors, size, "the vectors of the batch's entities (N, E)")
            if not bool(vectors.isfinite().all()):
                raise ValueError(
                    "entity_vectors must be finite, found NaN or infinity. Look at the file they come from."
                )
            number = len(vectors)
        if entities is None:
            return
        check_shape("entities", entities, shape, "rows of entity_vectors or -1, like input_ids")
        if entities.is_floating_point() or not -1 <= entities.min() <= entities.max() < number:
            raise ValueError(
                f"entities must name one of the {number} rows of entity_vectors, or be -1 for none; found {entities.dtype} "
                f"{entities.min().item()}..{entities.max().item()}. Give the vectors of all entities of the batch."
            )
        if mask is not None and bool(((entities >= 0) & (mask == 0)).any()):
            raise ValueError("entities must be -1 at padding, found some where attention_mask is 0.")


class ErnieThuForPreTraining(SeveralLosses, ErnieThuPreTrainedModel):
    """ERNIE with heads for hidden tokens, for the next sentence and for the entities of tokens.

    `from_bert_pretrained(name)` starts from BERT, as the paper does.
    """

    loss_names: ClassVar[tuple[str, ...]] = ("mlm_loss", "nsp_loss", "dea_loss")
    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: ErnieThuConfig):
        super().__init__(copy.deepcopy(config))
        self.ernie = ErnieThuModel(self.config)
        self.config = self.ernie.config  # one object, so that both see a resize
        self.activation = ACT2FN[config.hidden_act]
        self.token_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.token_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.token_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.next_sentence = nn.Linear(config.hidden_size, 2)
        self.entity_dense = nn.Linear(config.hidden_size, config.entity_size)
        self.entity_norm = nn.LayerNorm(config.entity_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text encoder's, which the head reads too."""
        return self.ernie.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the text encoder's."""
        self.ernie.set_input_embeddings(value)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.token_bias)

    @classmethod
    def from_bert_pretrained(cls, name: str, **options) -> "ErnieThuForPreTraining":
        """Start from BERT: its lower layers read the text, its upper ones become the text's side of the fusion.

        Args:
            name: folder or name on the Hub of a BERT with its pre-training heads.
            options: fields of `ErnieThuConfig` that BERT does not have.

        Returns:
            The model, in evaluation mode; all that is about entities is new. Without entities it is that BERT.

        Raises:
            ValueError: another kind of model.
            StrictDataclassError: sizes that do not fit.
        """
        bert = AutoModelForPreTraining.from_pretrained(name)
        if bert.config.model_type != "bert":
            raise ValueError(
                f"from_bert_pretrained needs a BERT, found {bert.config.model_type!r} in {name}."
            )
        model = cls(ErnieThuConfig(**{field: getattr(bert.config, field) for field in SHARED}, **options))
        model.load_state_dict(renamed(bert.state_dict(), model.config.num_text_layers), strict=False)
        return model.to(bert.dtype).eval()

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """As in Transformers; the head, which reads the table of words, follows."""
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        number, old = embeddings.num_embeddings, self.token_bias
        wider = F.pad(old.detach(), (0, max(0, number - len(old))))[:number].clone()
        self.token_bias = nn.Parameter(wider, requires_grad=old.requires_grad)
        return embeddings

    def loss_weights(self) -> tuple[float, ...]:
        """Three times 1."""
        return 1.0, 1.0, 1.0

    def count_items(self, batch: dict) -> Tensor:
        """Masked places, labelled rows and labelled entities, (3,): what the vector `num_items_in_batch` is a sum of."""
        nothing = batch["input_ids"].new_full((), -100)
        given = [batch.get(name) for name in ("labels", "next_sentence_label", "entity_labels")]
        return torch.stack([((nothing if one is None else one) != -100).sum() for one in given])

    def first_rows(self, batch: dict, rows: int) -> dict:
        """The first rows of a batch, with the vectors of all its entities."""
        vectors = {name: batch[name] for name in ("entity_vectors",) if name in batch}
        return super().first_rows(batch, rows) | vectors

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        entities: Tensor | None = None,
        entity_vectors: Tensor | None = None,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        entity_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ErnieThuOutput:
        """Read as `ErnieThuModel`, and with any labels compute the three losses; one without labels is 0.

        Args:
            input_ids: (B, T), some hidden by a collator.
            attention_mask: (B, T).
            token_type_ids: (B, T).
            entities: (B, T) what the model sees; the paper exchanges 5 and drops 15 of 100 alignments.
            entity_vectors: (N, E) of all entities of the batch, seen or true; these are the candidates.
            labels: (B, T) original ids at masked places, -100 elsewhere.
            next_sentence_label: (B,) 0 where the second text follows the first, 1 where it is any other.
            entity_labels: (B, T) rows of `entity_vectors`, the true entities of the tokens that have one, -100 elsewhere.
            num_items_in_batch: (3,) of the whole step (`count_items`), or the masked places alone. None means this batch.

        Returns:
            `ErnieThuOutput`.

        Raises:
            ValueError: as `ErnieThuModel`; labels that do not fit; training without any.
        """
        outputs = self.ernie(input_ids, attention_mask, token_type_ids, entities, entity_vectors)
        hidden, pooled = outputs.last_hidden_state, outputs.pooler_output
        following = self.next_sentence(pooled)
        shape = tuple(input_ids.shape)
        if all(one is None for one in (labels, next_sentence_label, entity_labels)):
            if self.training:
                raise ValueError(
                    "training needs some of labels, next_sentence_label and entity_labels; found none. Use a collator that "
                    "makes them."
                )
            return ErnieThuOutput(logits=self._token_logits(hidden), seq_relationship_logits=following)
        candidates = hidden.new_zeros(0, self.config.entity_size)
        if entity_vectors is not None:
            candidates = entity_vectors.detach().to(hidden)
        words = _checked("labels", labels, input_ids, shape, self.config.vocab_size)
        order = _checked("next_sentence_label", next_sentence_label, input_ids, shape[:1], 2)
        named = _checked("entity_labels", entity_labels, input_ids, shape, len(candidates))
        vectors = self.entity_norm(self.activation(self.entity_dense(hidden[named != -100])))
        scores = vectors @ candidates.T
        totals = [
            _summed(self._token_logits(hidden[words != -100]), words),
            _summed(following[order != -100], order),
            _summed(scores, named),
        ]
        counts = torch.stack([(one != -100).sum() for one in (words, order, named)])
        losses = self.added_up(totals, counts, num_items_in_batch)
        return ErnieThuOutput(seq_relationship_logits=following, entity_logits=scores, **losses)

    def _token_logits(self, vectors: Tensor) -> Tensor:
        """(..., V) of (..., H)."""
        vectors = self.token_norm(self.activation(self.token_dense(vectors)))
        return F.linear(vectors, self.get_input_embeddings().weight, self.token_bias)


def renamed(weights: dict[str, Tensor], text_layers: int) -> dict[str, Tensor]:
    """BERT's weights under ERNIE's names.

    Args:
        weights: of `BertForPreTraining`.
        text_layers: how many of its layers stay as they are.

    Returns:
        What both models have.
    """
    found = {}
    for name, tensor in weights.items():
        layer = re.match(r"bert\.encoder\.(layer\.(\d+)\..*)", name)
        if layer and int(layer[2]) < text_layers:
            found[f"ernie.text_encoder.encoder.{layer[1]}"] = tensor
            continue
        for pattern, new in FROM_BERT:
            if match := re.fullmatch(pattern, layer[1] if layer else name):
                number = int(layer[2]) - text_layers if layer else 0
                found[match.expand(new).format(number)] = tensor
    return found


def _checked(name: str, labels: Tensor | None, ids: Tensor, shape: tuple[int, ...], limit: int) -> Tensor:
    """Labels of a shape, -100 everywhere where there are none."""
    if labels is None:
        return ids.new_full(shape, -100)
    check_shape(name, labels, shape, f"numbers in 0..{limit - 1}, or -100 for none")
    known = labels[labels != -100]
    if labels.is_floating_point() or (known.numel() and not 0 <= known.min() <= known.max() < limit):
        raise ValueError(
            f"{name} must be whole numbers in 0..{limit - 1}, or -100 for none; found {labels.dtype} "
            f"{sorted(set(known.tolist()))[:9]}."
        )
    return labels


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy in float32 at least, of logits (M, K) and those of `labels` that are not -100; 0 of nothing."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    known = labels[labels != -100]
    return F.cross_entropy(logits, known, reduction="sum") if len(known) else logits.sum()


__all__ = ["ErnieThuForPreTraining", "ErnieThuModel", "ErnieThuOutput", "renamed"]
