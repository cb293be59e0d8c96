"""ElectraJointConfig: a generator and a discriminator that are trained together (Clark et al. 2020, sections 2 and 3.2).

Stock configs are made by `AutoConfig`: to import their classes here could close a circle, since our files are loaded by the
import of Transformers' Auto classes, which those need.
"""

import copy
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig

from .configuration_heirloom import HeirloomConfig

SHARED = ("vocab_size", "embedding_size", "max_position_embeddings", "type_vocab_size")
HEAD_SIZE = 64


def generator_of(discriminator: PreTrainedConfig, size: float = 0.25, depth: float = 1.0) -> PreTrainedConfig:
    """The config of a generator for a discriminator, as the released code derives it.

    Args:
        discriminator: its `ElectraConfig`.
        size: hidden size over the discriminator's: 1/4 for small and large models, 1/3 for base.
        depth: number of layers over the discriminator's.

    Returns:
        A new config with heads of 64 and inner layers of four times the hidden size.

    Raises:
        ValueError: sizes that leave nothing.
    """
    hidden = round(discriminator.hidden_size * size)
    layers = round(discriminator.num_hidden_layers * depth)
    if hidden < 1 or layers < 1:
        raise ValueError(
            f"a generator needs at least one unit and one layer, found {hidden} and {layers} from size={size} and "
            f"depth={depth} of {discriminator.hidden_size} units and {discriminator.num_hidden_layers} layers."
        )
    heads = next(n for n in range(max(1, hidden // HEAD_SIZE), 0, -1) if hidden % n == 0)
    fields = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
    }
    return _own(discriminator.to_dict() | fields)


@strict
class ElectraJointConfig(HeirloomConfig):
    """Two ELECTRA models and how their losses are added.

    Args:
        discriminator_config: an `ElectraConfig`, which is copied, or a dict of its fields; by default ELECTRA-small.
        generator_config: the same for the generator; by default `generator_of(discriminator_config)`.
        discriminator_weight: lambda of the discriminator's loss.
        temperature: by which the generator's logits are divided before it draws tokens.
        tie_word_embeddings: whether both models have one table of words, positions and types, and one layer norm on them.

    Raises:
        StrictDataclassError: a field of the wrong type, numbers out of range, or two models that do not fit each other.
    """

    model_type = "electra-joint"
    sub_configs: ClassVar[dict[str, type]] = {
        "discriminator_config": AutoConfig,
        "generator_config": AutoConfig,
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["mlm_loss", "rtd_loss", "corrupted_ids"]
    _built_by: ClassVar[str] = "from_electra_pretrained"

    discriminator_config: dict | PreTrainedConfig | None = None
    generator_config: dict | PreTrainedConfig | None = None

    discriminator_weight: float | int = 50.0
    temperature: float | int = 1.0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        self.discriminator_config = _own(self.discriminator_config or {})
        if self.generator_config is None:
            self.generator_config = generator_of(self.discriminator_config)
        self.generator_config = _own(self.generator_config)
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder=None, encoder=None) -> PreTrainedConfig:
        """The discriminator's, which is what is passed on."""
        return self.discriminator_config

    def validate_losses(self):
        """Refuse a weight and a temperature out of range."""
        if not 0 < self.discriminator_weight < float("inf"):
            raise ValueError(
                f"discriminator_weight must be positive, found {self.discriminator_weight}. To train the generator alone "
                "use ElectraForMaskedLM."
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be positive, found {self.temperature}.")

    def validate_pair(self):
        """Refuse models with different vocabularies, or with tables that cannot be one."""
        generator, discriminator = self.generator_config, self.discriminator_config
        for name in SHARED if self.tie_word_embeddings else SHARED[:1]:
            mine, other = getattr(generator, name), getattr(discriminator, name)
            if mine != other:
                advice = "Give both the same, or set tie_word_embeddings=False."
                if name == "vocab_size":
                    advice = (
                        "The discriminator reads what the generator writes: give both the same tokenizer."
                    )
                raise ValueError(
                    f"{name} of generator and discriminator must be equal, found {mine} and {other}. {advice}"
                )
        if generator.is_decoder or discriminator.is_decoder:
            raise ValueError(
                "generator and discriminator read in both directions, found is_decoder=True. Leave it out."
            )


def _own(config: dict | PreTrainedConfig) -> PreTrainedConfig:
    """A copy as an `ElectraConfig`."""
    fields = dict(config) if isinstance(config, dict) else {"model_type": config.model_type}
    if (kind := fields.pop("model_type", "electra")) != "electra":
        raise ValueError(
            f"generator and discriminator must be ELECTRA models, found {kind!r}. Give an ElectraConfig."
        )
    return AutoConfig.for_model(kind, **fields) if isinstance(config, dict) else copy.deepcopy(config)


__all__ = ["ElectraJointConfig", "generator_of"]
