"""ErnieThuConfig: a text encoder that takes in vectors of entities (ERNIE, Zhang et al. 2019, section 3)."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_heirloom import HeirloomConfig


@strict
class ErnieThuConfig(HeirloomConfig):
    """Sizes of ERNIE; the defaults are the paper's on BERT-base.

    Args:
        vocab_size: number of tokens.
        hidden_size: of tokens.
        num_hidden_layers: of both encoders together.
        num_text_layers: how many of them, from the bottom, read text alone; those above fuse it with entities.
        num_attention_heads: over tokens.
        intermediate_size: of inner layers, in which both kinds meet.
        entity_size: of the vectors of entities.
        num_entity_heads: of the attention over entities.
        hidden_act: of inner layers and heads.
        hidden_dropout_prob: rate on the outputs of sub-layers.
        attention_probs_dropout_prob: rate on attention.
        max_position_embeddings: longest row.
        type_vocab_size: number of kinds of texts in a row.
        initializer_range: standard deviation of new weights.
        layer_norm_eps: of layer norms.
        pad_token_id: the token that fills up rows.
        tie_word_embeddings: the head always reads the table of words, so this has no effect.

    Raises:
        StrictDataclassError: a field of the wrong type, or sizes that do not fit each other.
    """

    model_type = "ernie-thu"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["mlm_loss", "nsp_loss", "dea_loss", "entity_logits"]
    _built_by: ClassVar[str] = "from_bert_pretrained"

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_text_layers: int = 5
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    entity_size: int = 100
    num_entity_heads: int = 4
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float | int = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = False

    def validate_sizes(self):
        """Refuse numbers of layers and heads that do not fit."""
        if not 0 <= self.num_text_layers < self.num_hidden_layers:
            raise ValueError(
                f"num_text_layers must leave a layer of num_hidden_layers={self.num_hidden_layers} for the entities, found "
                f"{self.num_text_layers}."
            )
        for size, heads in (("hidden_size", "num_attention_heads"), ("entity_size", "num_entity_heads")):
            if getattr(self, heads) < 1 or getattr(self, size) % getattr(self, heads):
                raise ValueError(
                    f"{size} must be a multiple of {heads}, found {getattr(self, size)} and {getattr(self, heads)}."
                )


__all__ = ["ErnieThuConfig"]
