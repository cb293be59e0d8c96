"""Vectors of words that a frozen encoder has met before: texts repeat their words, so that most need no convolutions.

Letters: U distinct words, K ids a word, P vector size.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .weight_cache import state_of


class WordCache:
    """The latest words and their vectors, exact: a word is compared by all its ids.

    Args:
        capacity: words to keep; the one that was not seen for the longest time makes room.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._lock = threading.Lock()
        self._state = None  # of the parameters that the vectors were made with
        self._clear(0, None)

    def __len__(self) -> int:
        return len(self._slots)

    def _clear(self, width: int, like: Tensor | None) -> None:
        self._slots: OrderedDict[int, int] = OrderedDict()  # the word's key -> its row
        with torch.inference_mode(False):  # its tensors could not be written to outside of it
            self._words = torch.empty(self.capacity, width, dtype=torch.int32)
            self._vectors = None
            if like is not None:
                self._vectors = torch.empty(self.capacity, like.shape[1], dtype=like.dtype)

    def __call__(self, words: Tensor, keys: Tensor, state: tuple, encode: Callable) -> Tensor:
        """Vectors (U, P) of distinct words.

        Args:
            words: (U, K) ids.
            keys: (U,) a hash of each; words that share one are told apart, only one of them is kept.
            state: of the parameters; another one empties the cache.
            encode: from words (n, K) to vectors (n, P), for those that are not here.
        """
        words = words.int()
        with self._lock:
            if state != self._state or self._words.shape[1] != words.shape[1]:
                self._clear(words.shape[1], None)
                self._state = state
            names = keys.tolist()
            slots = torch.tensor([self._slots.get(name, -1) for name in names])
            known = slots >= 0
            known[known.clone()] = (self._words[slots[known]] == words[known]).all(1)
            for name in names:
                if name in self._slots:
                    self._slots.move_to_end(name)
            found = None if self._vectors is None else self._vectors[slots[known]]
        if known.all() and found is not None:
            return found
        new = encode(words[~known].long())
        vectors = new.new_empty(len(words), new.shape[1])
        vectors[~known] = new
        if found is not None:
            vectors[known] = found
        with self._lock:
            if state == self._state and self._words.shape[1] == words.shape[1]:
                self._keep(words[~known], keys[~known].tolist(), new)
        return vectors

    def _keep(self, words: Tensor, names: list[int], vectors: Tensor) -> None:
        if self._vectors is None:
            self._clear(words.shape[1], vectors)
        places, rows = [], []
        for row, name in enumerate(names[-self.capacity :], max(0, len(names) - self.capacity)):
            if name in self._slots:  # another word of this key, or another thread was first
                continue
            full = len(self._slots) == self.capacity
            place = self._slots.popitem(last=False)[1] if full else len(self._slots)
            self._slots[name] = place
            places.append(place)
            rows.append(row)
        self._words[places], self._vectors[places] = words[rows], vectors[rows]


_caches: WeakKeyDictionary[nn.Module, WordCache] = WeakKeyDictionary()
_making = threading.Lock()


def word_cache(encoder: nn.Module, capacity: int) -> WordCache:
    """The cache of an encoder, made when it is first asked for. It lies here, so that no copy or checkpoint holds it."""
    with _making:
        cache = _caches.get(encoder)
        if cache is None or cache.capacity != capacity:
            cache = _caches[encoder] = WordCache(capacity)
        return cache


def parameter_state(encoder: nn.Module) -> tuple | None:
    """What changes whenever a parameter does, or None where that cannot be told."""
    states = tuple(state_of(one) for one in encoder.parameters())
    return None if None in states else states


__all__ = ["WordCache", "parameter_state", "word_cache"]
