"""Plans for batches without padding: sentences laid flat behind one another, packed by length, and back.

Letters: B sentences, T words of the longest, N words of all, R sentences that are not empty, H features.
"""

import torch
from torch import Tensor


def around_sentences(lengths: Tensor) -> Tensor:
    """Where to take [N words; <S>; </S>] from so that both marks stand around every sentence.

    Args:
        lengths: (B,) words of each sentence.

    Returns:
        (N + 2 B,) indices into the N words followed by the two marks.
    """
    total = lengths.sum()
    rows = torch.arange(len(lengths), device=lengths.device)
    starts = (lengths + 2).cumsum(0) - lengths - 2
    index = torch.arange(int(total) + 2 * len(lengths), device=lengths.device)
    index = index - 1 - 2 * rows.repeat_interleave(lengths + 2)
    index[starts], index[starts + lengths + 1] = total, total + 1
    return index


def inside_sentences(lengths: Tensor) -> Tensor:
    """The words' places among the positions that `around_sentences` makes: (N,) from lengths (B,)."""
    rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    return torch.arange(len(rows), device=lengths.device) + 2 * rows + 1


def unflatten(flat: Tensor, mask: Tensor) -> Tensor:
    """Put rows (N, H) where the mask (B, T) is true; zeros elsewhere: (B, T, H)."""
    padded = flat.new_zeros(*mask.shape, flat.shape[1])
    padded[mask] = flat
    return padded


def pack(lengths: Tensor) -> tuple[Tensor, list[int], tuple[Tensor, Tensor]]:
    """Plan a packed, length-sorted run over flat sentences, forwards and backwards.

    Args:
        lengths: (B,) positions of each sentence, 0 allowed.

    Returns:
        order: (R,) the rows with at least one position, by falling length.
        batch_sizes: rows alive at each step.
        indices: for each direction (N,), the flat position that stands at each packed place.
    """
    device, lengths = lengths.device, lengths.cpu()
    starts = lengths.cumsum(0) - lengths
    rows = int(lengths.count_nonzero())
    sorted_lengths, order = (found[:rows] for found in lengths.sort(descending=True, stable=True))
    starts = starts[order]
    steps = torch.arange(int(sorted_lengths[0]) if rows else 0)[:, None]  # (T, 1)
    alive = steps < sorted_lengths  # (T, R)
    forward, backward = starts + steps, starts + sorted_lengths - 1 - steps
    indices = forward[alive].to(device), backward[alive].to(device)
    return order.to(device), alive.sum(1).tolist(), indices


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct rows of an integer matrix, and which of them each row is.

    Rows are compared by a 64-bit random projection, which `torch.unique` sorts far faster than whole rows; should two
    different rows ever collide, all rows are returned.

    Args:
        rows: (N, K) integers.

    Returns:
        (U, K) distinct rows, (N,) indices into them, and the (U,) projections.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator).to(rows.device)
    all_keys = (rows * weights).sum(1)
    keys, inverse = torch.unique(all_keys, return_inverse=True)
    first = torch.empty_like(keys)
    first[inverse] = torch.arange(len(rows), device=rows.device)
    words = rows[first]
    if not torch.equal(words[inverse], rows):
        return rows, torch.arange(len(rows), device=rows.device), all_keys
    return words, inverse, keys


__all__ = ["around_sentences", "distinct_rows", "inside_sentences", "pack", "unflatten"]
