"""LstmSeq2SeqConfig: what an LSTM encoder-decoder that begins as two language models is made of (Ramachandran, Liu & Le
2017, sections 2 and 3).

Letters: V words, E embedding, P outputs of the first layer, D its cells, U units of the layers above, L layers a side.
"""

from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict

from .configuration_heirloom import HeirloomConfig


@strict
class LstmSeq2SeqConfig(HeirloomConfig):
    """Sizes and choices of an LSTM encoder-decoder.

    The first layers have the sizes of a one-layer `LstmLMConfig`, on both sides alike. The target reads `<eos> w1 .. wn`
    and predicts `w1 .. wn <eos>`; the source is read as it comes.

    Args:
        vocab_size: V of the target.
        encoder_vocab_size: V of the source; None means that both sides share one joint vocabulary.
        pad_token_id: fills up short targets, and sources of a joint vocabulary.
        encoder_pad_token_id: fills up sources of a separate vocabulary; None means that masks say what is padding.
        bos_token_id: begins a target sentence.
        eos_token_id: ends it.
        decoder_start_token_id: what the decoder reads first.
        embedding_size: E.
        cell_size: D.
        projection_size: P, below D; None means no projection (then P is D).
        upper_size: U; those layers have no projection.
        num_hidden_layers: L, at least 2.
        bidirectional_encoder: read the source both ways, each with half of every size. Such an encoder holds no language
            model: it cannot begin as one, and has no source LM loss.
        multi_layer_attention: attend to the encoder's first layer besides its last.
        residual: add the decoder's first layer to what the softmax reads.
        attention_tanh: put a tanh around the combination of decoder state and contexts.
        zero_init: begin that combination at zero, so that the untrained decoder is exactly its language model.
        dropout: rate on the input of every layer, of the combination and of the softmax, in training.
        label_smoothing: probability that training gives to all words alike, in the seq2seq loss only.
        softmax: as in `LstmLMConfig`, for both sides.
        num_sampled: as in `LstmLMConfig`.
        adaptive_cutoffs: as in `LstmLMConfig`.
        source_lm_loss_weight: of the source language model's loss, where batches hold its text.
        target_lm_loss_weight: likewise of the target's.
        tie_word_embeddings: whether each softmax shares its side's embedding; needs E = P and no adaptive softmax.
        initializer_range: as in `LstmLMConfig`.
        use_cache: return the decoder's states as `past_key_values` for `generate()`.

    Raises:
        StrictDataclassError: a field of the wrong type, or choices that contradict each other.
    """

    model_type = "lstm-seq2seq"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "seq2seq_loss",
        "source_lm_loss",
        "target_lm_loss",
        "past_key_values",
        "decoder_hidden_states",
        "cross_attentions",
        "encoder_last_hidden_state",
        "encoder_hidden_states",
    ]
    _built_by: ClassVar[str] = "from_language_models"

    vocab_size: int = 10_000
    encoder_vocab_size: int | None = None
    pad_token_id: int | None = 0
    encoder_pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | None = 1
    decoder_start_token_id: int = 1
    is_encoder_decoder: bool = True

    embedding_size: int = 512
    cell_size: int = 512
    projection_size: int | None = None
    upper_size: int = 512
    num_hidden_layers: int = 2
    bidirectional_encoder: bool = False
    multi_layer_attention: bool = True
    residual: bool = True
    attention_tanh: bool = True
    zero_init: bool = False
    dropout: float | int = 0.2
    label_smoothing: float | int = 0.0

    softmax: Literal["full", "sampled", "adaptive"] = "full"
    num_sampled: int = 8192
    adaptive_cutoffs: list | tuple | None = None
    source_lm_loss_weight: float | int = 1.0
    target_lm_loss_weight: float | int = 1.0
    tie_word_embeddings: bool = False

    initializer_range: float | int = 0.05
    use_cache: bool = True

    @property
    def hidden_size(self) -> int:
        """P: what the first layer puts out and the softmax reads, the projection or else the cells."""
        return self.projection_size or self.cell_size

    @property
    def source_vocab_size(self) -> int:
        """V of the source, whether joint or separate."""
        return self.vocab_size if self.encoder_vocab_size is None else self.encoder_vocab_size

    def validate_sizes(self):
        """Refuse sizes that contradict each other, by name."""
        for name in ("vocab_size", "encoder_vocab_size", "embedding_size", "cell_size", "upper_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}.")
        if self.num_hidden_layers < 2:
            raise ValueError(
                f"num_hidden_layers must be at least 2, found {self.num_hidden_layers}: the first layer of each side is a "
                "language model's, those above it carry the source to the target."
            )
        if self.projection_size is not None and not 0 < self.projection_size < self.cell_size:
            raise ValueError(
                f"projection_size must lie in 1..{self.cell_size - 1}, below cell_size, found {self.projection_size}. "
                "Use None for no projection."
            )
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), found {getattr(self, name)}.")
        for name in ("source_lm_loss_weight", "target_lm_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"{name} must not be negative, found {getattr(self, name)}. Use 0 for no such loss."
                )
        if self.initializer_range <= 0:
            raise ValueError(f"initializer_range must be positive, found {self.initializer_range}.")

    def validate_tokens(self):
        """Refuse special tokens outside their vocabulary."""
        sides = dict.fromkeys(("pad", "bos", "eos", "decoder_start"), self.vocab_size)
        for side, size in (sides | {"encoder_pad": self.source_vocab_size}).items():
            token = getattr(self, f"{side}_token_id")
            if token is not None and not 0 <= token < size:
                raise ValueError(
                    f"{side}_token_id must lie in 0..{size - 1}, found {token}. Use None if there is no such token."
                )
        if self.encoder_vocab_size is None and self.encoder_pad_token_id is not None:
            raise ValueError(
                f"encoder_pad_token_id is for a separate source vocabulary, found {self.encoder_pad_token_id} without "
                "encoder_vocab_size. Set both, or neither: a joint vocabulary has one pad_token_id."
            )

    def validate_encoder(self):
        """Refuse an encoder that cannot be halved, and a beginning at zero that nothing is added to."""
        sizes = ("cell_size", "projection_size", "upper_size")
        odd = {name: size for name in sizes if (size := getattr(self, name)) is not None and size % 2}
        if self.bidirectional_encoder and odd:
            raise ValueError(
                f"a bidirectional_encoder gives each direction half of every size, found odd sizes {odd}. Make them even."
            )
        if self.zero_init and not self.residual:
            raise ValueError(
                "zero_init begins with nothing but the residual connection, found residual=False. Use zero_init=False."
            )

    def validate_softmax(self):
        """Refuse a softmax that the sizes do not allow."""
        smallest = min(self.vocab_size, self.source_vocab_size)
        if self.softmax == "sampled" and not 0 < self.num_sampled < smallest:
            raise ValueError(
                f"the sampled softmax needs num_sampled in 1..{smallest - 1}, below the vocabulary's size, found "
                f'{self.num_sampled}. For a small vocabulary use softmax="full".'
            )
        if self.label_smoothing and self.softmax != "full":
            raise ValueError(
                f"label_smoothing needs the full softmax, found {self.softmax!r}. Use label_smoothing=0, or "
                'softmax="full".'
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


__all__ = ["LstmSeq2SeqConfig"]
