"""Checkpoints of heirloom's own families, made in no time."""

from pathlib import Path

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer
from heirloom.training.tokenizers import train_tokenizer

SIZES = {"char_filters": [[1, 4]], "char_embedding_size": 4, "projection_size": 8, "cell_size": 16}


def save_elmo(folder: Path, kind: type, **sizes: object) -> None:
    """A new model of a class, and a tokenizer that knows "the" and "bank"."""
    words = ElmoTokenizer.from_words(["<S>", "</S>", "<UNK>", "the", "bank"])
    kind(ElmoConfig(**SIZES | {"num_highway_layers": 1} | sizes, vocab_size=len(words))).save_pretrained(
        folder
    )
    words.save_pretrained(folder)


def save_lstm_lm(folder: Path) -> None:
    """A new language model and a tokenizer of the same words."""
    tokenizer, _ = train_tokenizer(["the bank"] * 2, "word", 50, tokenized=True)
    config = LstmLMConfig(vocab_size=len(tokenizer), embedding_size=4, cell_size=4)
    LstmLMForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
