"""ElmoConfig: what a character-aware bidirectional language model is made of (Peters et al. 2018, section 3).

Letters: C characters a word, E character embedding, P projection (size of one direction), D cell, L layers.
"""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_heirloom import HeirloomConfig


@strict
class ElmoConfig(HeirloomConfig):
    """Sizes and choices of an ELMo biLM; the defaults are the published "original" model (93.6 M parameters).

    Args:
        vocab_size: number of word ids, the padding id 0 included (id = line of the vocabulary file + 1).
        char_vocab_size: number of character ids, the padding id 0 included (261 symbols + 1).
        max_characters_per_token: C, counted with both word marks.
        char_embedding_size: E; 0 means that words are not read by characters (word mode).
        word_embedding_size: size of a word table put before the character features; 0 means none. Word mode has
            P here and no characters; ELMoForManyLangs has both parts.
        char_filters: (width, count) of each character convolution.
        char_activation: after the max over positions; the highways always use relu.
        num_highway_layers: highway layers after the convolutions.
        use_token_projection: whether a linear layer leads from the token features to P; None means "where the
            sizes differ", as bilm-tf does.
        projection_size: P. The model's `hidden_size` is 2 P.
        cell_size: D. Equal to P, the cells have no projection.
        num_hidden_layers: L, LSTM layers of each direction.
        use_skip_connections: add each LSTM layer's input to its output, from the second layer on.
        cell_clip: cell states are clipped to [-c, c] before they are used; None turns it off.
        proj_clip: projected outputs are clipped likewise; without a projection it has no effect.
        forget_bias: added to the forget gate at run time. bilm-tf files leave out this 1; AllenNLP's and
            ELMoForManyLangs' weights already hold it (then 0).
        dropout: rate on the input of every LSTM layer and on the last output, in training (bilm-tf's recipe).
        precision: of the LSTM products without gradients: "fp32", or "bf16" (faster where the CPU multiplies bfloat16,
            with a relative error near 0.5 %; cells and sums stay float32).
        softmax: "full"; "sampled", which trains on samples and evaluates in full; or "adaptive" (Grave et al. 2017). The
            last two need word ids in order of falling frequency.
        num_sampled: words drawn for each batch and direction by the sampled softmax.
        adaptive_cutoffs: where the adaptive softmax's clusters begin; None means 2,000, 10,000, 50,000 and 200,000.
        tie_word_embeddings: the softmax's weights are the word table (word mode with `word_embedding_size` = P).
        bos_char_id: the single inner character of `<S>`.
        eos_char_id: the single inner character of `</S>`.
        bow_char_id: mark before each word's characters.
        eow_char_id: mark after them.
        pad_char_id: fills a word up to C.
        freeze_bilm: task heads train the scalar mix and the classifier only; the biLM runs without gradients.
        head_dropout: rate on the mixed vectors in task heads (0.5 in the paper).
        mix_layers: layers that the heads mix, 0 = token vector; None means all.
        mix_layer_norm: normalise layers before mixing: "allennlp" counts the boundary tokens into the statistics,
            "bilm-tf" does not.
        mix_l2: weight of the L2 term on the mix weights in the heads' loss (0.001 in the paper).
        pooling: how ElmoForSequenceClassification makes one vector of a sentence, over its words only.
        problem_type: "regression", "single_label_classification" or "multi_label_classification"; None decides
            by the labels.

    Raises:
        StrictDataclassError: a field of the wrong type, or sizes that contradict each other.
    """

    model_type = "elmo"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "hidden_states",
        "states",
        "attention_mask",
        "forward_loss",
        "backward_loss",
        "sampled_loss",
    ]

    vocab_size: int = 4
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2

    char_vocab_size: int = 262
    max_characters_per_token: int = 50
    char_embedding_size: int = 16
    word_embedding_size: int = 0
    char_filters: list | tuple = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))
    char_activation: Literal["relu", "tanh"] = "relu"
    num_highway_layers: int = 2
    use_token_projection: bool | None = None

    projection_size: int = 512
    cell_size: int = 4096
    num_hidden_layers: int = 2
    use_skip_connections: bool = True
    cell_clip: float | int | None = 3.0
    proj_clip: float | int | None = 3.0
    forget_bias: float | int = 1.0
    dropout: float | int = 0.1
    precision: Literal["fp32", "bf16"] = "fp32"

    softmax: Literal["full", "sampled", "adaptive"] = "full"
    num_sampled: int = 8192
    adaptive_cutoffs: list | tuple | None = None
    tie_word_embeddings: bool = False

    bos_char_id: int = 257
    eos_char_id: int = 258
    bow_char_id: int = 259
    eow_char_id: int = 260
    pad_char_id: int = 261

    freeze_bilm: bool = False
    head_dropout: float | int = 0.5
    mix_layers: list | tuple | None = None
    mix_layer_norm: Literal["none", "allennlp", "bilm-tf"] = "none"
    mix_l2: float | int = 0.0
    pooling: Literal["mean", "max", "boundary"] = "mean"
    problem_type: str | None = None

    @property
    def hidden_size(self) -> int:
        """2 P: both directions side by side."""
        return 2 * self.projection_size

    @property
    def num_features(self) -> int:
        """Size of a token's features before the projection."""
        return self.word_embedding_size + self.num_filters

    @property
    def num_filters(self) -> int:
        """Outputs of all character convolutions together; 0 in word mode."""
        return sum(count for _, count in self.char_filters) if self.char_embedding_size else 0

    @property
    def has_token_projection(self) -> bool:
        """Whether a linear layer leads from the token features to P."""
        if self.use_token_projection is None:
            return self.num_features != self.projection_size
        return self.use_token_projection

    def validate_sizes(self):
        """Refuse sizes that contradict each other, by name."""
        positive = ["projection_size", "cell_size", "num_hidden_layers", "vocab_size", "char_vocab_size"]
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if self.cell_size < self.projection_size:
            raise ValueError(
                f"projection_size {self.projection_size} must not exceed cell_size {self.cell_size}: an LSTM projects "
                "its cells down."
            )
        for name in ("cell_clip", "proj_clip"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(
                    f"{name} must be positive, found {getattr(self, name)}. Use None to turn clipping off."
                )
        for name in ("dropout", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), found {getattr(self, name)}.")
        if not self.has_token_projection and self.num_features != self.projection_size:
            raise ValueError(
                f"without a token projection the token features ({self.num_features}) must equal projection_size "
                f"({self.projection_size})."
            )
        if self.mix_layers is not None and not (
            self.mix_layers and all(0 <= layer <= self.num_hidden_layers for layer in self.mix_layers)
        ):
            raise ValueError(
                f"mix_layers must name layers 0..{self.num_hidden_layers}, found {self.mix_layers}."
            )

    def validate_softmax(self):
        """Refuse a softmax that cannot be built or drawn from."""
        words = self.vocab_size - 1  # id 0 is padding
        if self.softmax == "sampled" and not 0 < self.num_sampled < words:
            raise ValueError(
                f"a sampled softmax needs num_sampled below the {words} words of the vocabulary, found "
                f"{self.num_sampled}. Lower it, or use softmax='full'."
            )
        if not self.tie_word_embeddings:
            return
        if self.softmax == "adaptive" or self.word_embedding_size != self.projection_size:
            raise ValueError(
                f"tie_word_embeddings needs a word table as wide as projection_size ({self.projection_size}) and no "
                f"adaptive softmax; found word_embedding_size {self.word_embedding_size}, softmax {self.softmax!r}."
            )

    def validate_inputs(self):
        """Refuse inputs that no word could be read from, and marks outside the character table."""
        if not self.char_embedding_size and not self.word_embedding_size:
            raise ValueError(
                "a token needs char_embedding_size or word_embedding_size above 0, found neither."
            )
        if not self.char_embedding_size:
            return
        if not self.char_filters or any(len(pair) != 2 or min(pair) < 1 for pair in self.char_filters):
            raise ValueError(
                f"char_filters must be (width, count) pairs of at least 1, found {self.char_filters}."
            )
        widest = max(width for width, _ in self.char_filters)
        if self.max_characters_per_token < max(3, widest):
            raise ValueError(
                f"max_characters_per_token must be at least 3 (two marks and a character) and reach over the widest "
                f"filter ({widest}), found {self.max_characters_per_token}."
            )
        marks = ("bos_char_id", "eos_char_id", "bow_char_id", "eow_char_id", "pad_char_id")
        if outside := [name for name in marks if not 0 < getattr(self, name) < self.char_vocab_size]:
            raise ValueError(f"{outside} must lie in 1..char_vocab_size-1 = {self.char_vocab_size - 1}.")


__all__ = ["ElmoConfig"]
