"""Clear errors for tensors that a model cannot use."""

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: tuple, meaning: str) -> None:
    """Refuse a tensor of another shape.

    Args:
        name: of the argument.
        tensor: what came.
        shape: what is expected; None stands for any size.
        meaning: what the argument is, for the message.

    Raises:
        ValueError: the shapes differ.
    """
    fits = tensor.dim() == len(shape)
    if not fits or any(size not in (None, found) for size, found in zip(shape, tensor.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} must be {meaning}, shape ({wanted}); found {tuple(tensor.shape)}. Use the tokenizer that belongs to "
            "this model, with padding=True and return_tensors='pt'."
        )


def check_ids(name: str, ids: Tensor, shape: tuple, meaning: str, size: int) -> None:
    """Refuse ids of another shape, of no integer type, or outside 0..size-1; arguments as in `check_shape`.

    Raises:
        ValueError: what is wrong with them.
    """
    check_shape(name, ids, shape, meaning)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} must be integers (torch.long), found {ids.dtype}.")
    if ids.numel() and not (ids.min() >= 0 and ids.max() < size):
        raise ValueError(
            f"{name} must lie in 0..{size - 1}, found {int(ids.min())}..{int(ids.max())}. Use the tokenizer that belongs "
            "to this model."
        )


__all__ = ["check_ids", "check_shape"]
