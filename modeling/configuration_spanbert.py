"""SpanBertConfig: a masked language model with a span boundary objective beside its own (Joshi et al. 2020, section 3.2)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_language_model_wrapper import LanguageModelWrapperConfig


@strict
class SpanBertConfig(LanguageModelWrapperConfig):
    """A masked language model and the head that tells a hidden span's tokens from the two tokens around it.

    Args:
        text_config: of the language model: a config, which is copied, or a dict with its `model_type`; by default BERT-base.
        max_span_positions: how many tokens of a span, from its first one on, can be targets. The released code has 20, its
            command 15.
        span_position_size: of the vectors that say which token of the span is meant.
        span_loss_weight: of the span boundary loss.
        layer_norm_eps: of the head.
        initializer_range: standard deviation of the head's new weights.
        tie_word_embeddings: of the head, which always reads the language model's table of words; the language model's own
            flag is in `text_config`.

    Raises:
        StrictDataclassError: a field of the wrong type, or a number out of range.
    """

    model_type = "spanbert"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["mlm_loss", "sbo_loss"]

    max_span_positions: int = 20
    span_position_size: int = 200
    span_loss_weight: float | int = 1.0

    layer_norm_eps: float = 1e-12
    initializer_range: float | int = 0.02

    def validate_head(self):
        """Refuse sizes and weights out of range."""
        for name in ("max_span_positions", "span_position_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
        for name in ("span_loss_weight", "initializer_range"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} must be positive, found {getattr(self, name)}. Without a span boundary loss use the masked "
                    "language model alone."
                )


__all__ = ["SpanBertConfig"]
