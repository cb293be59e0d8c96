"""A stock masked language model inside another model: what SpanBERT, InfoWord and the model of pairs have in common.

The language model is the attribute `language_model`, whole and with its head, so that
`model.language_model.save_pretrained(...)` writes a stock checkpoint again. Heads of other losses stand beside it.

Letters: B rows, T positions, M places, H features, V tokens.
"""

import copy
import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from .auto_map import AUTO_MAP
from .backbones_joint_loss import build_language_model, open_language_model, position_limit
from .checks import check_ids, check_shape
from .configuration_language_model_wrapper import LanguageModelWrapperConfig
from .gathered_head import mlm_head, mlm_logits
from .several_losses import SeveralLosses


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Summed cross-entropy in nats, without what is labelled -100; 0 of nothing.

    Args:
        logits: (N, K) of any precision.
        labels: (N,) classes.

    Returns:
        () loss in float32 at least.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, reduction="sum")


class LanguageModelWrapper(SeveralLosses, PreTrainedModel):
    """A masked language model with something beside its head.

    A subclass names its config and its losses, makes its heads after `super().__init__`, and then calls `post_init`.

    Args:
        config: is copied.
        language_model: is taken over; None makes a new one from `config.text_config`.
    """

    config: LanguageModelWrapperConfig
    base_model_prefix = "language_model"  # a checkpoint of the bare language model loads too
    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True  # the language model says what it can
    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: LanguageModelWrapperConfig, language_model: PreTrainedModel | None = None):
        super().__init__(copy.deepcopy(config))
        if language_model is None:
            language_model = build_language_model(self.config.text_config, "masked")
        self.language_model = language_model
        # One object inside one model, so that both see a resize.
        self.config.text_config = language_model.config
        self.supports_gradient_checkpointing = language_model.supports_gradient_checkpointing
        self._longest = position_limit(language_model)
        self._accepted = set(inspect.signature(language_model.forward).parameters)

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: all new values go through `transformers.initialization`."""
        return False

    @classmethod
    def from_encoder(
        cls, name_or_path: str | PreTrainedModel, backbone_kwargs: dict | None = None, **options
    ) -> "LanguageModelWrapper":
        """Put what is new on a pre-trained masked language model.

        Args:
            name_or_path: folder or name on the Hub of a masked language model, or a loaded one, which is taken over and
                not copied.
            backbone_kwargs: for the language model's `from_pretrained`, such as `dtype` or `attn_implementation`.
            options: fields of the config.

        Returns:
            The model, in evaluation mode; a checkpoint without language-model head is taken with a loud warning.

        Raises:
            ValueError: a model that has no masked language-model head.
        """
        language_model, _ = open_language_model(name_or_path, "masked", **(backbone_kwargs or {}))
        model = cls(cls.config_class(text_config=language_model.config, **options), language_model)
        for part in model.children():
            if part is not language_model:
                part.to(device=language_model.device, dtype=language_model.dtype)
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

    @property
    def _vocab_size(self) -> int:
        return self.config.text_config.get_text_config().vocab_size

    def _check_rows(self, rows: dict[str, Tensor], labels: Tensor | None) -> None:
        """Refuse rows and labels that the language model cannot read."""
        vocab, shape = self._vocab_size, tuple(rows["input_ids"].shape)
        check_ids("input_ids", rows["input_ids"], (None, None), "token ids (B, T)", vocab)
        self._check_length(shape[1])
        for name in ("attention_mask", "token_type_ids"):
            if name in rows:
                check_shape(name, rows[name], shape, "a number for each token, like input_ids")
        if labels is not None:
            meaning = "the original ids at masked places and -100 elsewhere, like input_ids"
            check_ids("labels", labels.masked_fill(labels == -100, 0), shape, meaning, vocab)

    def _check_length(self, length: int, found: str = "rows", cut: str = "them") -> None:
        if self._longest is not None and length > self._longest:
            raise ValueError(
                f"the language model has {self._longest} positions, found {found} of {length}. Cut {cut} when tokenizing "
                f"(truncation=True, max_length={self._longest})."
            )

    def _inputs(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those that the language model takes."""
        return {name: tensor for name, tensor in rows.items() if name in self._accepted}

    def _read(self, rows: dict[str, Tensor], places: Tensor) -> tuple[Tensor, Tensor]:
        """The top layer (B, T, H), and logits (M, V) at some places; where the head is known, no others are made."""
        model, rows = self.language_model, self._inputs(rows)
        if mlm_head(model) is None:
            outputs = model(**rows, output_hidden_states=True, return_dict=True)
            return outputs.hidden_states[-1], outputs.logits[places]
        hidden = model.base_model(**rows, return_dict=True).last_hidden_state
        return hidden, mlm_logits(model, hidden[places])


__all__ = ["LanguageModelWrapper", "summed_cross_entropy"]
