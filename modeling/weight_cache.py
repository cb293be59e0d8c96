"""What is made of a parameter once and used until it changes: weights in the order that a fast kernel reads."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

Made = TypeVar("Made")


class WeightCache(Generic[Made]):
    """Calls `make(weight)` once for each state of a weight.

    The results lie here and not in the model, since packed weights can be neither copied nor pickled; they die with the
    weight. In-place changes are seen by the weight's version, a new storage by its address. Writing through `.data` of an
    older torch changes neither; no optimizer and no loader does so.

    Args:
        make: from a weight to what is kept.
    """

    def __init__(self, make: Callable[[Tensor], Made]):
        self.make = make
        self._kept = WeakIdKeyDictionary()
        self._lock = threading.Lock()

    def __call__(self, weight: Tensor) -> Made:
        """What belongs to the weight as it is now."""
        if weight.is_inference():  # has no version
            return self.make(weight)
        state = weight._version, weight.data_ptr(), weight.dtype, weight.device
        with self._lock:
            found = self._kept.get(weight)
            if found is None or found[0] != state:
                found = state, self.make(weight.detach())
                self._kept[weight] = found
            return found[1]


__all__ = ["WeightCache"]
