"""The cache that carries a recurrent model's state through `generate()`: h and c of every LSTM layer, nothing else.

Unlike a cache of keys and values it does not grow, and it cannot be shortened: what it holds is the state after the last
token. Rows come first, so that beam search can repeat, reorder and select them.

Letters: B rows, P outputs, D cells.
"""

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RecurrentLayer(CacheLayerMixin):
    """The state of one LSTM layer: h (B, P) in `keys` and c (B, D) in `values`, where stock code looks for tensors.

    Tensors are replaced and never changed, so that whoever holds an earlier state keeps it.
    """

    is_compileable = False  # else generate() would build four-dimensional masks for attention
    is_croppable = False
    supports_early_init = False

    def __init__(self):
        super().__init__()
        self.cumulative_length = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Remember type and device of the first state."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, tokens: int = 1) -> tuple[Tensor, Tensor]:
        """Take the state after `tokens` more positions.

        Args:
            key_states: h, (B, P).
            value_states: c, (B, D).
            tokens: positions read, padding included, as masks count them.

        Returns:
            h and c.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        self.cumulative_length += tokens
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Positions read so far, padding included."""
        return self.cumulative_length

    def get_max_length(self) -> int:
        """-1: there is no longest sequence."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns of the mask over past and new positions, and its offset."""
        return self.cumulative_length + query_length, 0

    def reset(self) -> None:
        """Forget the state."""
        self.keys = self.values = None
        self.is_initialized = False
        self.cumulative_length = 0

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to take tokens back; 0 is allowed.

        Raises:
            ValueError: for any other number.
        """
        if tokens_to_remove:
            raise ValueError(
                f"a recurrent state cannot be cropped (asked for {tokens_to_remove}): it holds the last step only. Keep "
                "a copy.deepcopy of the cache from before those tokens, or run the shorter text again."
            )

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row `repeats` times."""
        if self.is_initialized:
            self.keys = self.keys.repeat_interleave(repeats, dim=0)
            self.values = self.values.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows at the indices."""
        if self.is_initialized:
            self.keys, self.values = self.keys[indices], self.values[indices]


class RecurrentCache(Cache):
    """The states of all LSTM layers of a model, as `generate()` carries them from token to token.

    Args:
        num_layers: LSTM layers.
    """

    def __init__(self, num_layers: int):
        super().__init__(layers=[RecurrentLayer() for _ in range(num_layers)])

    @classmethod
    def of(cls, past_key_values: Cache | None, num_layers: int) -> "RecurrentCache":
        """A cache for a model: the given one, or a new one in the place of none or of another kind that is still empty.

        Args:
            past_key_values: what the caller passed.
            num_layers: LSTM layers of the model.

        Returns:
            A cache with as many layers.

        Raises:
            TypeError: another kind of cache that holds something, or no cache at all.
            ValueError: the cache of a model with another number of layers.
        """
        if past_key_values is None:
            return cls(num_layers)
        if isinstance(past_key_values, cls):
            if len(past_key_values.layers) != num_layers:
                raise ValueError(
                    f"past_key_values must hold {num_layers} layer(s), found {len(past_key_values.layers)}. Pass the "
                    "cache that this model returned, or None."
                )
            return past_key_values
        if isinstance(past_key_values, Cache) and not past_key_values.get_seq_length():
            return cls(num_layers)
        raise TypeError(
            f"past_key_values must be a RecurrentCache or an empty cache, found a {type(past_key_values).__name__}. Pass "
            "the cache that this model returned, or None."
        )

    def state(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """h (B, P) and c (B, D) of a layer; None before the first token."""
        held = self.layers[layer]
        return (held.keys, held.values) if held.is_initialized else None


__all__ = ["RecurrentCache", "RecurrentLayer"]
