"""InfoWordConfig: a masked language model with a contrastive objective over n-grams beside its own (Kong et al. 2020)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_language_model_wrapper import LanguageModelWrapperConfig

CONTRASTS = ("infonce", "margin")
NEGATIVES = ("in_batch", "shuffled", "replaced")


@strict
class InfoWordConfig(LanguageModelWrapperConfig):
    """A masked language model that also knows the n-gram that is missing in a row from others.

    Args:
        text_config: of the language model: a config, which is copied, or a dict with its `model_type`; by default BERT-base.
        contrast: "infonce", the cross-entropy of the right n-gram among all; or "margin", the ranking loss of Collobert and
            Weston 2008.
        negatives: "in_batch", the n-grams of the other rows; or made of the right one by a collator, "shuffled" or with one
            token "replaced".
        temperature: by which scores are divided; the paper has none.
        mlm_loss_weight: of the masked language model's loss.
        contrastive_loss_weight: of the contrastive loss. The paper's two weights are not verified; here both are 1.
        tie_word_embeddings: of nothing; the language model's own flag is in `text_config`.

    Raises:
        StrictDataclassError: a field of the wrong type, an unknown choice, or a number out of range.
    """

    model_type = "infoword"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["mlm_loss", "contrastive_loss"]

    contrast: str = "infonce"
    negatives: str = "in_batch"
    temperature: float | int = 1.0
    mlm_loss_weight: float | int = 1.0
    contrastive_loss_weight: float | int = 1.0

    def validate_contrast(self):
        """Refuse unknown choices and numbers out of range."""
        for name, known in (("contrast", CONTRASTS), ("negatives", NEGATIVES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, found {getattr(self, name)!r}.")
        for name in ("temperature", "mlm_loss_weight", "contrastive_loss_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} must be positive, found {getattr(self, name)}. Without a contrastive loss use the masked "
                    "language model alone."
                )


__all__ = ["InfoWordConfig"]
