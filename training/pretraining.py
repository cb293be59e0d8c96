"""Pre-training language models on raw text with Trainer: ELMo biLMs and LSTM LMs."""

import math
from itertools import chain

from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from ..modeling.configuration_elmo import ElmoConfig
from ..modeling.modeling_elmo import ElmoForPreTraining
from ..objectives.collators import LanguageModelingCollator
from ..tokenization.tokenization_elmo import ElmoTokenizer
from .arguments import PretrainArguments
from .data import TokenEncoder, WordSplitter, most_frequent, read_table, sentences
from .new_models import (
    elmo_splitter,
    elmo_tokenizer,
    lstm_tokenizer,
    make_model,
    model_type_of,
    needs_counts,
)
from .running_text import make_batches, open_text, steps_of_an_epoch
from .trainer import PretrainingTrainer, train_evaluate_save

logger = logging.get_logger(__name__)

HELD_OUT = 0.02  # of the rows, where no validation file is given


def pretrain(arguments: PretrainArguments, training_arguments: TrainingArguments) -> PretrainingTrainer:
    """Train a new language model on text, or go on training one, and save it with its tokenizer.

    Args:
        arguments: data, model and sizes.
        training_arguments: Trainer's; the checkpoint lands in `output_dir`.

    Returns:
        The Trainer after training; `trainer.state.log_history` ends with the evaluation.

    Raises:
        FileNotFoundError: a file, checkpoint or tokenizer that is not there.
        ValueError: no text, or options that contradict each other.
    """
    if not arguments.train_file:
        raise ValueError("train_file is empty: name the text to train on, e.g. --train_file corpus.txt")
    if arguments.early_stopping_patience is not None and not training_arguments.load_best_model_at_end:
        raise ValueError(
            "early_stopping_patience needs load_best_model_at_end: true, with eval_strategy and save_strategy alike."
        )
    in_a_table = arguments.batching == "sentences" and not arguments.streaming
    if in_a_table and model_type_of(arguments) == "elmo":
        return _pretrain_on_table(arguments, training_arguments)
    return _pretrain_on_running_text(arguments, training_arguments)


def _pretrain_on_table(
    arguments: PretrainArguments, training_arguments: TrainingArguments
) -> PretrainingTrainer:
    splitter = elmo_splitter(arguments)
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
    tokenizer = splitter
    if needs_counts(arguments):
        tokenizer = make_tokenizer(
            train, arguments.vocab_size, arguments.min_count, arguments.max_characters_per_token
        )
    set_seed(training_arguments.seed)
    model = make_model(arguments, tokenizer)
    trainer = _trainer(
        model, tokenizer, training_arguments, train, validation, LanguageModelingCollator(tokenizer)
    )
    return _run(trainer, arguments.early_stopping_patience)


def _pretrain_on_running_text(
    arguments: PretrainArguments, training_arguments: TrainingArguments
) -> PretrainingTrainer:
    is_elmo = model_type_of(arguments) == "elmo"
    tokenizer = elmo_splitter(arguments) if is_elmo else lstm_tokenizer(arguments)
    encode = WordSplitter(tokenizer, arguments.tokenized) if is_elmo else TokenEncoder(tokenizer)
    text = open_text(arguments, encode)
    steps = None
    if training_arguments.max_steps <= 0 or (is_elmo and needs_counts(arguments)):
        logger.info("counting the words of the training text")
        text.count()
        steps = steps_of_an_epoch(text, arguments, training_arguments)
    if is_elmo:
        tokenizer = elmo_tokenizer(arguments, tokenizer, text.counts)
    if training_arguments.max_steps <= 0:
        training_arguments.max_steps = max(1, math.floor(steps * training_arguments.num_train_epochs))
    train, validation, collate = make_batches(text, arguments, training_arguments, tokenizer)
    set_seed(training_arguments.seed)
    model = make_model(arguments, tokenizer)
    trainer = _trainer(model, tokenizer, training_arguments, train, validation, collate, steps)
    return _run(trainer, arguments.early_stopping_patience)


def _trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training_arguments: TrainingArguments,
    train,
    validation,
    collate,
    steps_per_epoch: float | None = None,
) -> PretrainingTrainer:
    logger.info(
        f"{type(model).__name__} with {model.num_parameters():,} parameters, {len(tokenizer):,} words"
    )
    training_arguments.remove_unused_columns = False  # the collators make the model's inputs
    return PretrainingTrainer(
        model=model,
        args=training_arguments,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate,
        processing_class=tokenizer,
        steps_per_epoch=steps_per_epoch,
    )


def _run(trainer: PretrainingTrainer, early_stopping_patience: int | None = None) -> PretrainingTrainer:
    if early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience))
    train_evaluate_save(trainer)
    return trainer


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
    model = ElmoForPreTraining(ElmoConfig(vocab_size=len(tokenizer), **sizes))
    collate = LanguageModelingCollator(tokenizer)
    return _run(_trainer(model, tokenizer, training_arguments, train, validation, collate))
