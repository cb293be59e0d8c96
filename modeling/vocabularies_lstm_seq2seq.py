"""The two vocabularies of the LSTM encoder-decoder: whose tables and softmaxes they are, and how they are resized.

The stock `resize_token_embeddings` would resize the source's table together with the target's softmax.
"""

from torch import nn


class TwoVocabularies:
    """Embeddings and softmaxes of both sides, for a model with `encoder`, `decoder`, `lm_head` and `encoder_lm_head`."""

    def get_input_embeddings(self) -> nn.Embedding:
        """The source's table."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the source's table."""
        self.encoder.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """The target's softmax; None for the adaptive one, which has no row for each word."""
        return self.lm_head if isinstance(self.lm_head, nn.Linear) else None

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Resize a joint vocabulary: tables and softmaxes of both sides.

        Raises:
            ValueError: the vocabularies are separate, or as in `LstmLMForCausalLM`.
        """
        if new_num_tokens is None and pad_to_multiple_of is None:
            return self.get_input_embeddings()
        if self.config.encoder_vocab_size is not None:
            raise ValueError(
                f"source and target have vocabularies of their own ({self.config.encoder_vocab_size} and "
                f"{self.config.vocab_size} words), so one new size says too little. Call resize_source_embeddings or "
                "resize_target_embeddings."
            )
        options = new_num_tokens, pad_to_multiple_of, mean_resizing
        self._resize("target", *options)
        self._resize("source", *options)
        self.tie_weights()
        return self.get_input_embeddings()

    def resize_source_embeddings(
        self, new_num_tokens: int, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize a separate source vocabulary: the encoder's table and softmax.

        Args:
            new_num_tokens: as in `resize_token_embeddings`.
            pad_to_multiple_of: as in `resize_token_embeddings`.
            mean_resizing: as in `resize_token_embeddings`.

        Returns:
            The table.

        Raises:
            ValueError: the vocabulary is joint, or as in `LstmLMForCausalLM`.
        """
        return self._resize_one("source", new_num_tokens, pad_to_multiple_of, mean_resizing)

    def resize_target_embeddings(
        self, new_num_tokens: int, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """Resize a separate target vocabulary: the decoder's table and softmax.

        Args:
            new_num_tokens: as in `resize_token_embeddings`.
            pad_to_multiple_of: as in `resize_token_embeddings`.
            mean_resizing: as in `resize_token_embeddings`.

        Returns:
            The table.

        Raises:
            ValueError: the vocabulary is joint, or as in `LstmLMForCausalLM`.
        """
        return self._resize_one("target", new_num_tokens, pad_to_multiple_of, mean_resizing)

    def _resize_one(self, side: str, *options) -> nn.Embedding:
        if self.config.encoder_vocab_size is None:
            raise ValueError(
                f"source and target share a joint vocabulary, found a new size for the {side} alone. Call "
                "resize_token_embeddings, or make the model with encoder_vocab_size."
            )
        table = self._resize(side, *options)
        self.tie_weights()
        return table

    def _resize(self, side: str, size: int | None, multiple: int | None, mean: bool) -> nn.Embedding:
        config = self.config
        if config.softmax == "adaptive":
            raise ValueError(
                "the adaptive softmax cannot be resized: its clusters belong to one vocabulary. Make a new model with "
                'that vocab_size, or one with softmax="full".'
            )
        if config.softmax == "sampled" and size is not None and size <= config.num_sampled:
            raise ValueError(
                f"the sampled softmax draws num_sampled = {config.num_sampled} words and needs more than that, found "
                f'new_num_tokens = {size}. Lower config.num_sampled, or set config.softmax to "full".'
            )
        stack, head = (self.encoder, "encoder_lm_head") if side == "source" else (self.decoder, "lm_head")
        table = self._get_resized_embeddings(stack.embed_tokens, size, multiple, mean)
        table.requires_grad_(stack.embed_tokens.weight.requires_grad)
        stack.embed_tokens = table
        if (softmax := getattr(self, head)) is not None:
            resized = self._get_resized_lm_head(softmax, table.num_embeddings, mean_resizing=mean)
            resized.requires_grad_(softmax.weight.requires_grad)
            setattr(self, head, resized)
        if side == "target":
            config.vocab_size = table.num_embeddings
        elif config.encoder_vocab_size is not None:
            config.encoder_vocab_size = table.num_embeddings
        return table


__all__ = ["TwoVocabularies"]
