"""What is made of a parameter once and used until it changes: weights in the order that a fast kernel reads."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Made = TypeVar("Made")
SAMPLE = 64  # numbers of a weight that are compared; each costs a look into memory


def state_of(weight: Tensor) -> tuple | None:
    """What changes whenever a weight does, or None where that cannot be told.

    In-place changes are seen by the weight's version, a new storage by its address. Some optimizers write through `.data`,
    which changes neither; on a CPU a sample of the numbers shows them. A hand that changes a few single numbers so stays unseen.

    Args:
        weight: of any shape.
    """
    if weight.is_inference():  # has no version
        return None
    sample = b""
    if weight.device.type == "cpu":
        flat = weight.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLE)].contiguous().view(torch.uint8).numpy().tobytes()
    return weight._version, weight.data_ptr(), weight.dtype, weight.device, sample


class WeightCache(Generic[Made]):
    """Calls `make(weight)` once for each state of a weight.

    The results lie here and not in the model, since packed weights can be neither copied nor pickled; they die with the
    weight.

    Args:
        make: from a weight to what is kept.
    """

    def __init__(self, make: Callable[[Tensor], Made]):
        self.make = make
        self._kept = WeakIdKeyDictionary()
        self._lock = threading.Lock()

    def __call__(self, weight: Tensor) -> Made:
        """What belongs to the weight as it is now."""
        state = state_of(weight)
        if state is None:
            return self.make(weight)
        with self._lock:
            found = self._kept.get(weight)
            if found is None or found[0] != state:
                found = state, self.make(weight.detach())
                self._kept[weight] = found
            return found[1]


__all__ = ["WeightCache", "state_of"]
