"""The layers of ERNIE that fuse tokens and entities (Zhang et al. 2019, section 3.3, equations 3 to 6).

Where it leaves the released code: the first token has no place among the entities unless one is aligned to it, so text
without entities is read as BERT reads it; and the sum of both inner products has one bias.

Letters: B rows, T positions, D features of either kind, H of tokens, E of entities.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from .configuration_ernie_thu import ErnieThuConfig


class Attention(nn.Module):
    """Multi-head self-attention with its residual and layer norm, as in BERT.

    Args:
        config: of the model.
        size: D.
        heads: number of heads.
    """

    def __init__(self, config: ErnieThuConfig, size: int, heads: int):
        super().__init__()
        self.heads = heads
        self.inner_dropout, self.dropout = config.attention_probs_dropout_prob, config.hidden_dropout_prob
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.dense = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Let places look at places.

        Args:
            vectors: (B, T, D).
            mask: (B, T) bool, the places that can be seen; the others see themselves too, which keeps all finite.

        Returns:
            (B, T, D).
        """
        split = [
            layer(vectors).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]  # (B, heads, T, D / heads)
        own = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        rate = self.inner_dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(*split, attn_mask=mask[:, None, None] | own, dropout_p=rate)
        new = self.dense(seen.transpose(1, 2).flatten(2))
        return self.norm(F.dropout(new, self.dropout, self.training) + vectors)


class FusionLayer(nn.Module):
    """A layer of the K-encoder: both kinds attend among themselves, then meet.

    h_j = gelu(W_t w_j + W_e e_k + b), w_j' = LN(W_o h_j + w_j), e_k' = LN(W_oe h_j + e_k), where entity k is aligned to token
    j; at other tokens e is 0.

    Args:
        config: of the model.
        first: whether entities come as they are, without attention.
        last: whether nothing reads the entities any more.
    """

    def __init__(self, config: ErnieThuConfig, first: bool, last: bool):
        super().__init__()
        hidden, inner, entity = config.hidden_size, config.intermediate_size, config.entity_size
        self.dropout, self.activation = config.hidden_dropout_prob, ACT2FN[config.hidden_act]
        self.attention = Attention(config, hidden, config.num_attention_heads)
        self.entity_attention = None if first else Attention(config, entity, config.num_entity_heads)
        self.inner = nn.Linear(hidden, inner)
        self.entity_inner = nn.Linear(entity, inner, bias=False)
        self.outer = nn.Linear(inner, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        # A last layer's would have no gradient, which data parallelism takes for a mistake.
        self.entity_outer = None if last else nn.Linear(inner, entity)
        self.entity_norm = None if last else nn.LayerNorm(entity, eps=config.layer_norm_eps)

    def forward(
        self, words: Tensor, entities: Tensor, tokens: Tensor, aligned: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            words: (B, T, H).
            entities: (B, T, E).
            tokens: (B, T) bool, false at padding.
            aligned: (B, T) bool, true at tokens that have an entity.

        Returns:
            Both, renewed.
        """
        words = self.attention(words, tokens)
        if self.entity_attention is not None:
            entities = self.entity_attention(entities, aligned)
        entities = entities * aligned.unsqueeze(2)
        both = self.activation(self.inner(words) + self.entity_inner(entities))
        words = self.norm(self._dropped(self.outer(both)) + words)
        if self.entity_outer is not None:
            entities = self.entity_norm(self._dropped(self.entity_outer(both)) + entities)
        return words, entities

    def _dropped(self, vectors: Tensor) -> Tensor:
        return F.dropout(vectors, self.dropout, self.training)


__all__ = ["Attention", "FusionLayer"]
