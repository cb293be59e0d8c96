"""JointLossConfig: a task head beside a language model's own, trained together (Radford et al. 2018, section 3.2).

L = L_task + lambda L_LM. The language model may be any causal or masked one; its whole config is nested here.
"""

import copy
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_elmo import ElmoConfig
from .configuration_heirloom import HeirloomConfig
from .configuration_lstm_lm import LstmLMConfig

# Resolved here and not by the registry, which does not know them where a checkpoint's code runs without the package.
OWN_CONFIGS = {kind.model_type: kind for kind in (ElmoConfig, LstmLMConfig)}
POOLING = {"causal": "last", "masked": "first", "bidirectional": "mean"}
REDUCTION = {"causal": "example", "masked": "example", "bidirectional": "token"}


@strict
class JointLossConfig(HeirloomConfig):
    """A language model, a task head on it, and how their losses are added.

    Args:
        text_config: of the language model: a config, which is copied, or a dict with its `model_type`.
        lm_objective: "causal", each token from those before it; "masked", tokens that a collator hid; "bidirectional",
            each word from its left and from its right (ELMo's biLM).
        lm_loss_weight: lambda; 0 trains the task alone and never computes the language model's head.
        lm_loss_reduction: "example", mean over each row's targets and then over rows (the original code), or "token",
            mean over all targets; None means "example", or "token" for the biLM, which knows no other.
        pooling: which vector of a row the head reads: "last" or "first" token, "mean" of all, or that of
            `classify_token_id` ("classify_token"). None means the last of a causal model, the first of a masked one and
            the mean of the biLM.
        classify_token_id: the token whose vector is read; its first place in each row.
        classifier_dropout: rate on what the head reads.
        classifier_bias: whether the head has a bias. Most stock classes on causal models have none.
        initializer_range: standard deviation of the new head's weights.
        tie_word_embeddings: of the head, which has none; the language model's own flag is in `text_config`.

    Raises:
        StrictDataclassError: a field of the wrong type, or choices that contradict each other.
    """

    model_type = "joint-loss"
    # Under this name `get_text_config()` finds it: resizing, weight decay and Trainer read sizes and special tokens there.
    sub_configs: ClassVar[dict[str, type]] = {"text_config": AutoConfig}
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "task_loss",
        "lm_loss",
        "forward_loss",
        "backward_loss",
    ]
    _built_by: ClassVar[str] = "from_backbone_pretrained"

    text_config: dict | PreTrainedConfig | None = None

    lm_objective: Literal["causal", "masked", "bidirectional"] = "causal"
    lm_loss_weight: float | int = 0.5
    lm_loss_reduction: Literal["example", "token"] | None = None

    pooling: Literal["last", "first", "mean", "classify_token"] | None = None
    classify_token_id: int | None = None
    classifier_dropout: float | int = 0.1
    classifier_bias: bool = True

    initializer_range: float | int = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.text_config, PreTrainedConfig):
            # What follows resets the attention implementation of nested configs. On the config of a live model that
            # would silently drop its causal mask.
            self.text_config = copy.deepcopy(self.text_config)
        else:
            fields = dict(self.text_config or {})
            kind = fields.pop("model_type", "gpt2")
            own = OWN_CONFIGS.get(kind)
            self.text_config = own(**fields) if own else AutoConfig.for_model(kind, **fields)
        self.pooling = self.pooling or POOLING.get(self.lm_objective)
        self.lm_loss_reduction = self.lm_loss_reduction or REDUCTION.get(self.lm_objective)
        super().__post_init__(**kwargs)

    def validate_losses(self):
        """Refuse weights and rates out of range, and a reduction that the biLM does not know."""
        if not 0 <= self.lm_loss_weight < float("inf"):
            raise ValueError(
                f"lm_loss_weight must be at least 0, found {self.lm_loss_weight}. Use 0 to train the task alone."
            )
        if not 0 <= self.classifier_dropout < 1:
            raise ValueError(f"classifier_dropout must lie in [0, 1), found {self.classifier_dropout}.")
        if self.initializer_range <= 0:
            raise ValueError(f"initializer_range must be positive, found {self.initializer_range}.")
        if self.lm_objective == "bidirectional" and self.lm_loss_reduction != "token":
            raise ValueError(
                "the biLM's loss is a mean over all words: lm_objective='bidirectional' needs lm_loss_reduction='token', "
                f"found {self.lm_loss_reduction!r}."
            )

    def validate_pooling(self):
        """Refuse to pool at a token that is not named."""
        if (self.pooling == "classify_token") != (self.classify_token_id is not None):
            raise ValueError(
                "pooling='classify_token' and classify_token_id belong together, found pooling="
                f"{self.pooling!r} and classify_token_id={self.classify_token_id}. Give both or none."
            )


__all__ = ["JointLossConfig"]
