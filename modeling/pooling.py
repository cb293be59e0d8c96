"""One vector of a sentence from the vectors of its words."""

import torch
from torch import Tensor


def pool(vectors: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """One vector of each sentence, over its words only.

    Args:
        vectors: (B, T, 2 P).
        mask: (B, T) bool, true at words.
        pooling: "mean", "max", or "boundary": the forward half of the last word and the backward half of the first.

    Returns:
        (B, 2 P); zeros for a sentence without words.
    """
    words = mask.unsqueeze(2)
    if pooling == "mean":
        return (vectors * words).sum(1) / words.sum(1).clamp(min=1)
    empty = ~mask.any(1, keepdim=True)
    if mask.shape[1] == 0:
        return vectors.sum(1)
    if pooling == "max":
        highest = vectors.masked_fill(~words, float("-inf")).amax(1)
        return highest.masked_fill(empty, 0.0)
    rows, half = torch.arange(len(mask), device=mask.device), vectors.shape[2] // 2
    first = mask.int().argmax(1)
    last = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
    return torch.cat([vectors[rows, last, :half], vectors[rows, first, half:]], 1).masked_fill(empty, 0.0)


__all__ = ["pool"]
