"""SentencePairConfig: a masked language model that also classifies pairs of texts (StructBERT, Wang et al. 2020, section 2.2)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_language_model_wrapper import LanguageModelWrapperConfig


@strict
class SentencePairConfig(LanguageModelWrapperConfig):
    """A masked language model and the head that says how two texts belong together.

    Args:
        text_config: of the language model: a config, which is copied, or a dict with its `model_type`; by default BERT-base.
        num_pair_labels: classes of a pair: 3 for StructBERT and for ERNIE 2.0's distance, 2 for BERT and ALBERT.
        initializer_range: standard deviation of the head's new weights.
        tie_word_embeddings: of the head, which has no words; the language model's own flag is in `text_config`.

    Raises:
        StrictDataclassError: a field of the wrong type, or a number out of range.
    """

    model_type = "sentence-pair"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["mlm_loss", "pair_loss"]

    num_pair_labels: int = 3

    initializer_range: float | int = 0.02

    def validate_head(self):
        """Refuse sizes out of range."""
        if self.num_pair_labels < 2:
            raise ValueError(
                f"num_pair_labels must be at least 2, found {self.num_pair_labels}. Without pairs use the masked language "
                "model alone."
            )
        if not 0 < self.initializer_range < float("inf"):
            raise ValueError(f"initializer_range must be positive, found {self.initializer_range}.")


__all__ = ["SentencePairConfig"]
