"""Text for pre-training that is read bit by bit, as often as wanted: lanes with carried state, or sentences.

Letters: B rows of a process's batch, W processes, T positions of a stream's batch.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase, TrainingArguments

from ..objectives.collators import LanguageModelingCollator, TokenSentenceCollator
from ..objectives.streams import (
    ElmoStreamCollator,
    EndlessBatches,
    SentenceBatches,
    Stream,
    TokenStreamCollator,
    no_sentences,
)
from ..tokenization.tokenization_elmo import ElmoTokenizer
from .arguments import PretrainArguments
from .text_files import Share, count_words, open_shards


@dataclass
class RunningText:
    """Shards for training and evaluation, and what was counted in the first.

    Args:
        train: shards.
        validation: shards.
        encode: rows to lists of words or of ids.
        sentences: how many the training text has; 0 if nobody counted.
        words: how many.
        counts: of each word.
    """

    train: list[Iterable]
    validation: list[Iterable]
    encode: Callable[[list], list[list]]
    sentences: int = 0
    words: int = 0
    counts: Counter | None = None

    def count(self) -> None:
        """Read the training text once and count it."""
        self.sentences, self.words, self.counts = count_words(self.train, self.encode)


def open_text(arguments: PretrainArguments, encode: Callable[[list], list[list]]) -> RunningText:
    """Find the files of a run; without validation files about one row in fifty is held out, by its content.

    Args:
        arguments: `train_file`, `validation_file`, `text_column` and `keep_blank` are read.
        encode: rows to lists of words or of ids.

    Returns:
        The text; of the held-out part, the first sentence has been read.

    Raises:
        FileNotFoundError: nothing of such a name.
        ValueError: empty files, or no sentence to evaluate on.
    """
    options = {"text_column": arguments.text_column, "keep_blank": arguments.keep_blank}
    train = open_shards(arguments.train_file, **options)
    if arguments.validation_file:
        sides = train, open_shards(arguments.validation_file, split="validation", **options)
    else:
        sides = [[Share(shard, held_out) for shard in train] for held_out in (False, True)]
    # Evaluation would find out too, but only after the training.
    if not any(any(encode([row])) for shard in sides[1] for row in shard):
        raise ValueError(f"{no_sentences(sides[1])} Name text to evaluate on in --validation_file.")
    return RunningText(*sides, encode)


def make_batches(
    text: RunningText,
    arguments: PretrainArguments,
    training_arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[EndlessBatches, object, Callable]:
    """Batches for training and evaluation.

    Args:
        text: of `open_text`.
        arguments: how to batch.
        training_arguments: batch sizes, seed and processes.
        tokenizer: an ElmoTokenizer, or a fast tokenizer of an LSTM LM.

    Returns:
        Training batches without end; one pass over the held-out text, as batches of the same kind or as a list of
        sentences; and the collator of that list.

    Raises:
        ValueError: no held-out text.
    """
    words = isinstance(tokenizer, ElmoTokenizer)
    common = {
        "encode": text.encode,
        "seed": training_arguments.seed,
        "rank": training_arguments.process_index,
        "world_size": training_arguments.world_size,
    }
    train_rows, rows = training_arguments.train_batch_size, training_arguments.eval_batch_size
    collate = LanguageModelingCollator(tokenizer) if words else TokenSentenceCollator(tokenizer)
    if arguments.batching == "sentences":
        train = SentenceBatches(
            text.train,
            collate=collate,
            batch_size=train_rows,
            max_words=arguments.max_words,
            shuffle_buffer=arguments.shuffle_buffer,
            **common,
        )
        return train, held_out_sentences(text, arguments.max_words), collate
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    stream = {
        "collate": ElmoStreamCollator(tokenizer) if words else TokenStreamCollator(),
        "marks": (tokenizer.bos_token, tokenizer.eos_token) if words else (begin, tokenizer.eos_token_id),
        "bidirectional": words,
        "unroll_steps": arguments.unroll_steps,
        **common,
    }
    train = Stream(text.train, batch_size=train_rows, shuffle_buffer=arguments.shuffle_buffer, **stream)
    validation = Stream(text.validation, batch_size=rows, shuffle_buffer=0, one_pass=True, **stream)
    return train, validation, collate


def held_out_sentences(text: RunningText, max_words: int) -> list[dict[str, list]]:
    """The held-out text as rows with `words`, longer sentences cut into pieces.

    Raises:
        ValueError: there is none.
    """
    pieces = [
        {"words": sentence[start : start + max_words]}
        for shard in text.validation
        for row in shard
        for sentence in text.encode([row])
        for start in range(0, len(sentence), max_words)
    ]
    if not pieces:
        raise ValueError(f"{no_sentences(text.validation)} Name a --validation_file.")
    return pieces


def steps_of_an_epoch(
    text: RunningText, arguments: PretrainArguments, training_arguments: TrainingArguments
) -> float:
    """Optimizer steps in which a training sees as many targets as its text has.

    Args:
        text: counted.
        arguments: how it is batched.
        training_arguments: batch size, accumulation and processes.

    Returns:
        Targets / (B W T) for streams, sentences / (B W) for sentences, both by accumulation steps. Pieces of sentences
        above `max_words` are not counted apart.
    """
    rows = training_arguments.train_batch_size * training_arguments.world_size
    rows *= training_arguments.gradient_accumulation_steps
    if arguments.batching == "sentences":
        return text.sentences / rows
    return (text.words + text.sentences) / (rows * arguments.unroll_steps)
