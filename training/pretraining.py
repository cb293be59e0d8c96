"""Pre-training an ELMo biLM on sentences, with Trainer."""

import json
from itertools import chain

from datasets import Dataset
from transformers import TrainingArguments, set_seed
from transformers.utils import logging

from ..modeling.configuration_elmo import ElmoConfig
from ..modeling.modeling_elmo import ElmoForPreTraining
from ..objectives.collators import LanguageModelingCollator
from ..tokenization.tokenization_elmo import ElmoTokenizer
from .arguments import PretrainArguments
from .data import most_frequent, read_table, sentences
from .trainer import PretrainingTrainer, train_evaluate_save

logger = logging.get_logger(__name__)

HELD_OUT = 0.02  # of the rows, where no validation file is given


def pretrain(arguments: PretrainArguments, training_arguments: TrainingArguments) -> PretrainingTrainer:
    """Read text, make a vocabulary, train a biLM and save it with its tokenizer.

    Args:
        arguments: data and sizes.
        training_arguments: Trainer's; the checkpoint lands in `output_dir`.

    Returns:
        The Trainer after training; `trainer.state.log_history` ends with the evaluation.

    Raises:
        ValueError: no text, or options that contradict each other.
    """
    if not arguments.train_file:
        raise ValueError("train_file is empty: name the text to train on, e.g. --train_file corpus.txt")
    splitter = ElmoTokenizer(max_characters_per_token=arguments.max_characters_per_token)
    options = {
        "text_column": arguments.text_column,
        "tokenized": arguments.tokenized,
        "max_words": arguments.max_words,
    }
    train = sentences(read_table(arguments.train_file), splitter, **options)
    if arguments.validation_file:
        validation = sentences(read_table(arguments.validation_file, "validation"), splitter, **options)
    else:
        parts = train.train_test_split(HELD_OUT, seed=training_arguments.seed)
        train, validation = parts["train"], parts["test"]
    if not len(train):
        raise ValueError(f"{arguments.train_file} holds no words. One sentence a line is expected.")
    sizes = {
        name: getattr(arguments, name)
        for name in (
            "max_characters_per_token",
            "char_embedding_size",
            "num_highway_layers",
            "projection_size",
            "cell_size",
            "num_hidden_layers",
            "dropout",
        )
    }
    tokenizer = make_tokenizer(
        train, arguments.vocab_size, arguments.min_count, arguments.max_characters_per_token
    )
    return train_bilm(
        train,
        validation,
        tokenizer,
        training_arguments,
        char_filters=json.loads(arguments.char_filters),
        **sizes,
    )


def make_tokenizer(
    train: Dataset, vocab_size: int, min_count: int, max_characters_per_token: int
) -> ElmoTokenizer:
    """A tokenizer whose vocabulary is the most frequent words of a table of sentences."""
    words = most_frequent(chain.from_iterable(train["words"]), vocab_size, min_count)
    return ElmoTokenizer.from_words(words, max_characters_per_token=max_characters_per_token)


def train_bilm(
    train: Dataset,
    validation: Dataset,
    tokenizer: ElmoTokenizer,
    training_arguments: TrainingArguments,
    **sizes,
) -> PretrainingTrainer:
    """Train a new biLM on tables of sentences and save it.

    Args:
        train: rows with `words` and `length`.
        validation: the same.
        tokenizer: its vocabulary is what the softmax predicts.
        training_arguments: Trainer's.
        sizes: fields of `ElmoConfig`.

    Returns:
        The Trainer after training, evaluation and saving.
    """
    set_seed(training_arguments.seed)
    config = ElmoConfig(vocab_size=len(tokenizer), **sizes)
    model = ElmoForPreTraining(config)
    logger.info(
        f"biLM with {model.num_parameters():,} parameters, {len(train):,} sentences, {len(tokenizer):,} words"
    )
    training_arguments.remove_unused_columns = False  # the collator makes the model's inputs from `words`
    trainer = PretrainingTrainer(
        model=model,
        args=training_arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=LanguageModelingCollator(tokenizer),
        processing_class=tokenizer,
    )
    train_evaluate_save(trainer)
    return trainer
