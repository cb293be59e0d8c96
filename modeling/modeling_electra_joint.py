"""ELECTRA: a small generator changes tokens, a discriminator finds them (Clark et al. 2020, sections 2 and 3.2).

The generator is a masked language model. At each masked place a token is drawn from it, and the discriminator says of
every token of the row whether it is the original one: `loss = mlm_loss + discriminator_weight * rtd_loss`. A token that
happens to be right counts as original. No gradient goes from the discriminator through the drawing; both models share
their embeddings.

Both are stock models: `model.discriminator.save_pretrained(...)` writes an `ElectraForPreTraining`, and
`model.generator.save_pretrained(...)` an `ElectraForMaskedLM`.

Letters: B rows, T positions, M masked places, V tokens.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedModel
from transformers.utils import ModelOutput, can_return_tuple

from .auto_map import AUTO_MAP
from .checks import check_ids, check_shape
from .configuration_electra_joint import ElectraJointConfig
from .several_losses import SeveralLosses

EMBEDDINGS = (
    "word_embeddings.weight",
    "position_embeddings.weight",
    "token_type_embeddings.weight",
    "LayerNorm.weight",
    "LayerNorm.bias",
)


@dataclass
class ElectraJointOutput(ModelOutput):
    """What the joint model returns.

    Args:
        loss: `mlm_loss + discriminator_weight * rtd_loss`.
        logits: (B, T) of the discriminator; above 0 means replaced.
        replaced: (B, T) bool, where the drawn token is not the original one.
        corrupted_ids: (B, T) what the discriminator read.
        mlm_loss: mean over the masked places.
        rtd_loss: mean over all tokens, padding left out.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    replaced: Tensor | None = None
    corrupted_ids: Tensor | None = None
    mlm_loss: Tensor | None = None
    rtd_loss: Tensor | None = None


@torch.no_grad()
def draw_tokens(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """One token from each distribution softmax(logits / temperature).

    Args:
        logits: (M, V).
        temperature: above 0.

    Returns:
        (M,) ids without a gradient.
    """
    if not len(logits):
        return torch.zeros(0, dtype=torch.long, device=logits.device)
    return torch.multinomial((logits.float() / temperature).softmax(1), 1).squeeze(1)


class ElectraForJointPreTraining(SeveralLosses, PreTrainedModel):
    """A generator and a discriminator of ELECTRA that learn together.

    `ElectraForJointPreTraining(ElectraJointConfig(...))` starts from nothing, `from_electra_pretrained` from two stock
    checkpoints.
    """

    config: ElectraJointConfig
    config_class = ElectraJointConfig
    base_model_prefix = "discriminator"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    loss_names: ClassVar[tuple[str, ...]] = ("mlm_loss", "rtd_loss")
    # Names of parameters, since the tables have buffers beside them that must not be tied.
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        f"generator.electra.embeddings.{name}": f"discriminator.electra.embeddings.{name}"
        for name in EMBEDDINGS
    }
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # the two models say what they can
    _auto_class = "AutoModelForPreTraining"

    def __init__(
        self,
        config: ElectraJointConfig,
        discriminator: PreTrainedModel | None = None,
        generator: PreTrainedModel | None = None,
    ):
        super().__init__(copy.deepcopy(config))
        dtype = torch.get_default_dtype()
        if discriminator is None:
            fields = self.config.discriminator_config
            discriminator = AutoModelForPreTraining.from_config(fields, dtype=dtype)
        if generator is None:
            generator = AutoModelForMaskedLM.from_config(self.config.generator_config, dtype=dtype)
        self.discriminator, self.generator = discriminator, generator
        # One object each, so that a resize is seen on both sides.
        self.config.discriminator_config = self.discriminator.config
        self.config.generator_config = self.generator.config
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: all new values go through `transformers.initialization`."""
        return False

    @classmethod
    def from_electra_pretrained(
        cls, discriminator: str, generator: str, **options
    ) -> "ElectraForJointPreTraining":
        """Go on training a stock pair.

        Args:
            discriminator: folder or name on the Hub of an `ElectraForPreTraining`; its embeddings are the ones that stay.
            generator: the same of an `ElectraForMaskedLM`.
            options: fields of `ElectraJointConfig`.

        Returns:
            The model, in evaluation mode.

        Raises:
            StrictDataclassError: models that do not fit each other.
        """
        pair = (
            AutoModelForPreTraining.from_pretrained(discriminator),
            AutoModelForMaskedLM.from_pretrained(generator),
        )
        configs = {"discriminator_config": pair[0].config, "generator_config": pair[1].config}
        return cls(ElectraJointConfig(**configs, **options), *pair).eval()

    def save_pretrained(self, save_directory, **kwargs):
        """As in Transformers; the checkpoint also names every Auto class that can load it."""
        self.config.auto_map = dict(AUTO_MAP[self.config.model_type])
        return super().save_pretrained(save_directory, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The discriminator's, which are the generator's too."""
        return self.discriminator.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace both models' words."""
        self.discriminator.set_input_embeddings(value)
        self.generator.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The generator's."""
        return self.generator.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the generator's."""
        self.generator.set_output_embeddings(new_embeddings)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """As in Transformers, for both models; they keep their ties."""
        self.generator.resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        embeddings = self.discriminator.resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        self.tie_weights()
        return embeddings

    def loss_weights(self) -> tuple[float, ...]:
        """1 and `discriminator_weight`."""
        return 1.0, float(self.config.discriminator_weight)

    def count_items(self, batch: dict) -> Tensor:
        """Masked places and tokens of a batch, (2,): what the vector `num_items_in_batch` is a sum of."""
        ids, labels, mask = (batch.get(name) for name in ("input_ids", "labels", "attention_mask"))
        masked = torch.zeros_like(ids).sum() if labels is None else (labels != -100).sum()
        return torch.stack([masked, torch.ones_like(ids).sum() if mask is None else mask.bool().sum()])

    def _check(self, rows: dict[str, Tensor], labels: Tensor | None) -> None:
        config, shape = self.config.discriminator_config, rows["input_ids"].shape
        check_ids("input_ids", rows["input_ids"], (None, None), "token ids (B, T)", config.vocab_size)
        longest = min(config.max_position_embeddings, self.config.generator_config.max_position_embeddings)
        if shape[1] > longest:
            raise ValueError(
                f"the models have {longest} positions, found rows of {shape[1]}. Cut them when tokenizing "
                f"(truncation=True, max_length={longest})."
            )
        if (mask := rows.get("attention_mask")) is not None:
            check_shape("attention_mask", mask, tuple(shape), "1 at tokens and 0 at padding, like input_ids")
        if (types := rows.get("token_type_ids")) is not None:
            number = min(config.type_vocab_size, self.config.generator_config.type_vocab_size)
            check_ids("token_type_ids", types, tuple(shape), "text numbers, like input_ids", number)
        if labels is None:
            return
        meaning = "the original ids at masked places and -100 elsewhere, like input_ids"
        check_ids("labels", labels.masked_fill(labels == -100, 0), tuple(shape), meaning, config.vocab_size)
        if mask is not None and bool(((labels != -100) & (mask == 0)).any()):
            raise ValueError(
                f"labels must be -100 at padding, found {int(((labels != -100) & (mask == 0)).sum())} targets where "
                "attention_mask is 0. Mask tokens only."
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> ElectraJointOutput:
        """Draw tokens for the masked places, find them, and compute both losses.

        Args:
            input_ids: (B, T) token ids, some of them hidden by a collator: ELECTRA masks 15 per cent of the tokens (25 in
                large models), 85 of 100 of these by [MASK], and leaves the others as they are.
            attention_mask: (B, T), 1 at tokens; None means that all are.
            token_type_ids: (B, T) numbers of the texts.
            labels: (B, T) the original ids at masked places, -100 elsewhere. Without them the discriminator reads
                `input_ids` as they are, and there is no loss.
            num_items_in_batch: (2,) masked places and tokens of the whole step (`count_items`); or masked places alone,
                which is exact for the generator, while a part's `rtd_loss` gets its share of them. None means this batch
                only.

        Returns:
            `ElectraJointOutput`; each call draws anew, in evaluation too.

        Raises:
            ValueError: missing, misshapen or out-of-range inputs or labels; rows beyond the models' positions; training
                without labels.
        """
        if input_ids is None:
            raise ValueError("ELECTRA needs input_ids (B, T), found none. Pass the collator's whole output.")
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        rows = {name: tensor for name, tensor in given.items() if tensor is not None}
        self._check(rows, labels)
        if labels is None:
            if self.training:
                raise ValueError(
                    "training needs labels, the original ids at masked places and -100 elsewhere; found none. Use a "
                    "collator that masks tokens."
                )
            return ElectraJointOutput(logits=self.discriminator(**rows).logits)
        masked = labels != -100
        original = labels[masked]
        logits = self._generator_logits(rows, masked)
        drawn = draw_tokens(logits, self.config.temperature)
        corrupted = input_ids.masked_scatter(masked, drawn.to(input_ids.dtype))
        replaced = torch.zeros_like(masked).masked_scatter(masked, drawn != original)
        found = self.discriminator(**rows | {"input_ids": corrupted}).logits
        tokens = torch.ones_like(masked) if attention_mask is None else attention_mask.bool()
        flat = _at_least_float(found[tokens])
        totals = [
            F.cross_entropy(logits, original, reduction="sum"),
            F.binary_cross_entropy_with_logits(flat, replaced[tokens].to(flat.dtype), reduction="sum"),
        ]
        counts = self.count_items({"labels": labels, "attention_mask": tokens, "input_ids": input_ids})
        losses = self.added_up(totals, counts, num_items_in_batch)
        return ElectraJointOutput(logits=found, replaced=replaced, corrupted_ids=corrupted, **losses)

    def _generator_logits(self, rows: dict[str, Tensor], masked: Tensor) -> Tensor:
        """(M, V) in float32 at least; no row of the softmax is made for nothing."""
        hidden = self.generator.electra(**rows).last_hidden_state[masked]
        return _at_least_float(self.generator.generator_lm_head(self.generator.generator_predictions(hidden)))


def _at_least_float(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


__all__ = ["ElectraForJointPreTraining", "ElectraJointOutput", "draw_tokens"]
