"""The model and tokenizer that a pre-training starts with: new ones, or those of a checkpoint."""

import json
from collections import Counter
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..modeling.configuration_elmo import ElmoConfig
from ..modeling.configuration_lstm_lm import LstmLMConfig
from ..modeling.modeling_elmo import ElmoForPreTraining
from ..modeling.modeling_lstm_lm import LstmLMForCausalLM
from ..tokenization.tokenization_elmo import ElmoTokenizer
from .arguments import PretrainArguments
from .checkpoints import load_whole
from .data import most_frequent

MODELS = {"elmo": ElmoForPreTraining, "lstm-lm": LstmLMForCausalLM}


def model_type_of(arguments: PretrainArguments) -> str:
    """`elmo` or `lstm-lm`: that of the checkpoint to go on from, else the recipe's.

    Raises:
        FileNotFoundError: a folder without a checkpoint.
        ValueError: a checkpoint of another kind.
    """
    if not arguments.model:
        return arguments.model_type
    found = AutoConfig.from_pretrained(_existing(arguments.model, "config.json", "checkpoint")).model_type
    if found not in MODELS:
        raise ValueError(f"{arguments.model} is a {found} checkpoint; expected one of {sorted(MODELS)}.")
    return found


def elmo_splitter(arguments: PretrainArguments) -> ElmoTokenizer:
    """A tokenizer that splits text into words, before there is a vocabulary.

    Raises:
        ValueError: a vocabulary file that is broken, or lacks a special word.
    """
    if arguments.model:
        return _open_tokenizer(arguments.model)
    vocab_file = arguments.vocab_file and _existing_file(arguments.vocab_file)
    return ElmoTokenizer(vocab_file, max_characters_per_token=arguments.max_characters_per_token)


def needs_counts(arguments: PretrainArguments) -> bool:
    """Whether the vocabulary has to be counted from the text."""
    return not (arguments.model or arguments.vocab_file)


def elmo_tokenizer(
    arguments: PretrainArguments, splitter: ElmoTokenizer, counts: Counter | None
) -> ElmoTokenizer:
    """The tokenizer with its vocabulary: the splitter's own, or the most frequent of the counted words."""
    if not needs_counts(arguments):
        return splitter
    words = most_frequent(counts, arguments.vocab_size, arguments.min_count)
    return ElmoTokenizer.from_words(words, max_characters_per_token=arguments.max_characters_per_token)


def lstm_tokenizer(arguments: PretrainArguments) -> PreTrainedTokenizerBase:
    """The fast tokenizer of an LSTM LM.

    Raises:
        ValueError: none is named, or it has no token to end a sentence with.
    """
    name = arguments.tokenizer or arguments.model
    if not name:
        raise ValueError(
            "an lstm-lm needs a tokenizer: make one with `heirloom train-tokenizer` and name its folder in --tokenizer"
        )
    tokenizer = _open_tokenizer(name)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer {name} has no eos_token, which ends each sentence. Set one, or make a tokenizer with "
            "`heirloom train-tokenizer`."
        )
    return tokenizer


def make_model(arguments: PretrainArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new language model of the recipe's sizes, or that of the checkpoint.

    Args:
        arguments: sizes, or `model`.
        tokenizer: its vocabulary is what the softmax predicts.

    Returns:
        `ElmoForPreTraining` or `LstmLMForCausalLM`.

    Raises:
        ValueError: sizes that contradict each other, a checkpoint that is not whole, or a tokenizer of another vocabulary
            than its own.
    """
    kind = model_type_of(arguments)
    if arguments.model:
        model = load_whole(MODELS[kind], arguments.model)
        if len(tokenizer) != model.config.vocab_size:
            raise ValueError(
                f"{arguments.model} predicts {model.config.vocab_size} words, its tokenizer has {len(tokenizer)}. Use the "
                "tokenizer that the checkpoint was trained with."
            )
        return model
    shared = {
        name: getattr(arguments, name)
        for name in (
            "cell_size",
            "num_hidden_layers",
            "dropout",
            "softmax",
            "num_sampled",
            "tie_word_embeddings",
        )
    }
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    if kind == "lstm-lm":
        return LstmLMForCausalLM(
            LstmLMConfig(
                vocab_size=len(tokenizer),
                embedding_size=arguments.embedding_size,
                projection_size=arguments.projection_size or None,
                **shared,
                **ids,
            )
        )
    own = {
        name: getattr(arguments, name)
        for name in (
            "max_characters_per_token",
            "char_embedding_size",
            "word_embedding_size",
            "num_highway_layers",
            "projection_size",
        )
    }
    filters = read_char_filters(arguments.char_filters)
    return ElmoForPreTraining(
        ElmoConfig(vocab_size=len(tokenizer), char_filters=filters, **own, **shared, **ids)
    )


def read_char_filters(text: str) -> list[list[int]]:
    """Read `[[width, count], ...]`.

    Raises:
        ValueError: no JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"char_filters must be JSON like [[1, 16], [2, 32]], found {text!r}.") from error


def _open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(_existing(name, "tokenizer_config.json", "tokenizer"))


def _existing(name: str, file: str, what: str) -> str:
    """Refuse local folders that do not hold what they should, before the Hub is asked for them."""
    looks_local = Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not (Path(name) / file).is_file():
        raise FileNotFoundError(f"{name} holds no {file}; expected the folder of a {what}.")
    return name


def _existing_file(name: str) -> str:
    if not Path(name).is_file():
        raise FileNotFoundError(f"vocab_file {name} does not exist; expected a file with one word a line.")
    return name
