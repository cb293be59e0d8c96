"""LanguageModelWrapperConfig: what the configs of models around a masked language model have in common."""

import copy
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_heirloom import HeirloomConfig


@strict
class LanguageModelWrapperConfig(HeirloomConfig):
    """The config of a language model, nested in that of the model around it.

    Args:
        text_config: of the language model: a config, which is copied, or a dict with its `model_type`; by default BERT-base.
        tie_word_embeddings: of the heads beside the language model's; its own flag is in `text_config`.
    """

    # Under this name `get_text_config()` finds it: resizing, weight decay and Trainer read sizes and special tokens there.
    sub_configs: ClassVar[dict[str, type]] = {"text_config": AutoConfig}
    _built_by: ClassVar[str] = "from_encoder"

    text_config: dict | PreTrainedConfig | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.text_config, PreTrainedConfig):
            self.text_config = copy.deepcopy(self.text_config)
        else:
            fields = dict(self.text_config or {})
            self.text_config = AutoConfig.for_model(fields.pop("model_type", "bert"), **fields)
        super().__post_init__(**kwargs)


__all__ = ["LanguageModelWrapperConfig"]
