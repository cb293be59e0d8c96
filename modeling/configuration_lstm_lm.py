"""LstmLMConfig: what a word-level LSTM language model is made of (Zaremba et al. 2014; Jozefowicz et al. 2016, section 3).

Letters: V words, E embedding, P projection (the model's hidden size), D cell, L layers.
"""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_heirloom import HeirloomConfig


@strict
class LstmLMConfig(HeirloomConfig):
    """Sizes and choices of an LSTM language model.

    A sentence reads `<eos> w1 .. wn <eos>`: by default the token that ends one sentence also begins the next.

    Args:
        vocab_size: V, number of token ids.
        embedding_size: E.
        cell_size: D.
        projection_size: P, below D; None means no projection (then P is D).
        num_hidden_layers: L.
        dropout: rate on the input of every layer and on the last output, in training; never on the recurrence.
        softmax: "full"; "sampled", which trains against a shared draw of words and evaluates with the full softmax; or
            "adaptive" (Grave et al. 2017), whose logits are log probabilities. The last two want ids in order of
            falling frequency.
        num_sampled: words drawn for each batch by the sampled softmax.
        adaptive_cutoffs: ids where the clusters of the adaptive softmax begin; None chooses by `vocab_size`.
        tie_word_embeddings: whether the softmax shares the embedding's table; needs E = P and no adaptive softmax.
        initializer_range: new weights are drawn uniformly from [-r, r]; biases are 0, those of forget gates 1.
        pad_token_id: fills up short rows; what counts as padding is said by `attention_mask`.
        bos_token_id: begins a sentence.
        eos_token_id: ends a sentence.
        use_cache: return the states as `past_key_values` for `generate()`.

    Raises:
        StrictDataclassError: a field of the wrong type, or choices that contradict each other.
    """

    model_type = "lstm-lm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "sampled_loss",
        "past_key_values",
        "hidden_states",
        "states",
        "attention_mask",
    ]

    vocab_size: int = 10_000
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 1

    embedding_size: int = 512
    cell_size: int = 512
    projection_size: int | None = None
    num_hidden_layers: int = 1
    dropout: float | int = 0.2

    softmax: Literal["full", "sampled", "adaptive"] = "full"
    num_sampled: int = 8192
    adaptive_cutoffs: list | tuple | None = None
    tie_word_embeddings: bool = False

    initializer_range: float | int = 0.05
    use_cache: bool = True

    @property
    def hidden_size(self) -> int:
        """P: what a layer puts out, the projection or else the cells."""
        return self.projection_size or self.cell_size

    def validate_sizes(self):
        """Refuse sizes that contradict each other, by name."""
        for name in ("vocab_size", "embedding_size", "cell_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if self.projection_size is not None and not 0 < self.projection_size < self.cell_size:
            raise ValueError(
                f"projection_size must lie in 1..{self.cell_size - 1}, below cell_size, found {self.projection_size}. "
                "Use None for no projection."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), found {self.dropout}.")
        if self.initializer_range <= 0:
            raise ValueError(f"initializer_range must be positive, found {self.initializer_range}.")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"{name} must lie in 0..{self.vocab_size - 1}, found {token}. Use None if there is no such token."
                )

    def validate_softmax(self):
        """Refuse a softmax that the sizes do not allow."""
        if self.softmax == "sampled" and not 0 < self.num_sampled < self.vocab_size:
            raise ValueError(
                f"the sampled softmax needs num_sampled in 1..{self.vocab_size - 1}, below vocab_size, found "
                f'{self.num_sampled}. For a small vocabulary use softmax="full".'
            )
        if not self.tie_word_embeddings:
            return
        if self.softmax == "adaptive":
            raise ValueError(
                "tie_word_embeddings needs a softmax with one row a word, found the adaptive one. Use softmax="
                '"full" or "sampled", or tie_word_embeddings=False.'
            )
        if self.embedding_size != self.hidden_size:
            raise ValueError(
                f"tie_word_embeddings needs embedding_size equal to hidden_size (the projection, or else the cells), "
                f"found {self.embedding_size} and {self.hidden_size}. Make them equal, or use "
                "tie_word_embeddings=False."
            )


__all__ = ["LstmLMConfig"]
