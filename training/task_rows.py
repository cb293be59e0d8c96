"""Rows of labelled tasks for the joint-loss heads, from tables with columns of any names.

What comes out has the columns of the form that the task takes (`objectives.input_forms.FORMS`, or `words` for tagging),
`labels`, and `length` in words, by which Trainer can group rows. Rows without a label (None) keep labels of -100: they train
the language model only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from datasets import ClassLabel, Dataset

from ..objectives.collators import IGNORED
from .arguments import FinetuneArguments
from .data import column, read_table

TEXTS = ("text", "sentence", "words", "tokens")
FIRST = ("premise", "sentence1", "text1", "question1", "first")
SECOND = ("hypothesis", "sentence2", "text2", "question2", "second")
CONTEXTS = ("context", "premise", "startphrase", "sent1")
CHOICES = ("choices", "endings")
CLASSES = ("label", "labels", "intent", "gold_label")
TAGS = ("labels", "tags", "upos", "ner_tags")
NUMBERS = ("score", "relatedness", "similarity", "label", "labels")

FORM_OF = {
    "sequence-classification": "classification",
    "token-classification": "tagging",
    "entailment": "entailment",
    "similarity": "similarity",
    "multiple-choice": "multiple_choice",
}


@dataclass
class TaskRows:
    """A task's rows, ready for a collator.

    Args:
        task: as in `FinetuneArguments`.
        train: rows with the form's columns, `labels` and `length`.
        validation: the same.
        label_names: class names in the order of their ids; empty for numbers and choices.
        regression: labels are numbers.
    """

    task: str
    train: Dataset
    validation: Dataset
    label_names: list[str]
    regression: bool = False

    @property
    def form(self) -> str:
        """How a row is laid out: a key of `FORMS`, or "tagging"."""
        return FORM_OF[self.task]


def read_task_rows(arguments: FinetuneArguments, seed: int) -> TaskRows:
    """Read the rows of a task, with labels as numbers.

    Args:
        arguments: files, task and columns.
        seed: chooses the rows of `train_fraction` and `train_rows`.

    Returns:
        The rows; class ids follow the training labels in order, by number where all are whole numbers.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: missing columns, or texts, labels and choices that do not fit the task.
    """
    train = sample_rows(read_table(arguments.train_file), arguments, seed)
    validation = read_table(arguments.validation_file, "validation")
    for table, option in ((train, "train_file"), (validation, "validation_file")):
        if not len(table):
            raise ValueError(f"{option} holds no rows. At least one labelled row is expected.")
    regression = arguments.task == "similarity" if arguments.regression is None else arguments.regression
    if regression and arguments.task in ("token-classification", "multiple-choice"):
        raise ValueError(
            f"regression predicts one number a row, which {arguments.task} has not. Leave it out."
        )
    texts, text_columns = _text_reader(arguments, train)
    candidates = TAGS if arguments.task == "token-classification" else NUMBERS if regression else CLASSES
    label = column(train, arguments.label_column, candidates, "labels")
    for name in (*text_columns, label):
        column(validation, name, (), "the validation rows")
    names: list[str] = []
    if regression:
        convert = _number
    elif arguments.task == "multiple-choice":
        convert = _choice
    else:
        names, convert = _class_reader(train, validation, label, arguments.task)

    def read(row: dict, number: int) -> dict:
        place = f"row {number + 1}"
        found = texts(row, place)
        labels = convert(row[label], found, place)
        return found | {"labels": labels, "length": _length(found)}

    tables = [
        table.map(
            read,
            with_indices=True,
            remove_columns=table.column_names,
            desc="Reading",
            load_from_cache_file=False,
        )
        for table in (train, validation)
    ]
    if arguments.task == "multiple-choice":
        _check_choices(*tables)
    return TaskRows(arguments.task, *tables, names, regression)


def sample_rows(table: Dataset, arguments: FinetuneArguments, seed: int) -> Dataset:
    """The training rows that `train_fraction` or `train_rows` choose.

    Raises:
        ValueError: more rows than there are, or both options.
    """
    if not 0 < arguments.train_fraction <= 1:
        raise ValueError(f"train_fraction must lie in (0, 1], found {arguments.train_fraction}.")
    rows = len(table)
    if arguments.train_rows is not None:
        if arguments.train_fraction < 1:
            raise ValueError("train_fraction and train_rows both choose rows. Give one of them.")
        if not 0 < arguments.train_rows <= rows:
            raise ValueError(
                f"train_rows must lie in 1..{rows}, as many as the data has, found {arguments.train_rows}."
            )
        rows = arguments.train_rows
    elif arguments.train_fraction < 1:
        rows = max(1, round(rows * arguments.train_fraction))
    return table if rows == len(table) else table.shuffle(seed=seed).select(range(rows))


# Texts


def _text_reader(arguments: FinetuneArguments, table: Dataset) -> tuple[Callable, list[str]]:
    """What makes the form's texts of a row, and the columns that it reads."""
    task = arguments.task
    if task == "multiple-choice":
        return _choices_reader(arguments, table)
    if task in ("entailment", "similarity"):
        first = column(table, arguments.text_column, FIRST, "first texts")
        second = column(table, arguments.second_text_column, SECOND, "second texts")
        one, other = ("premise", "hypothesis") if task == "entailment" else ("first", "second")

        def pair(row: dict, place: str) -> dict:
            return {one: _text(row[first], place, first), other: _text(row[second], place, second)}

        return pair, [first, second]
    if task == "token-classification":
        name = column(table, arguments.text_column, ("tokens", "words", "text"), "words")

        def words(row: dict, place: str) -> dict:
            return {"words": _words(row[name], place, name)}

        return words, [name]
    name = column(table, arguments.text_column, TEXTS, "text")

    def text(row: dict, place: str) -> dict:
        return {"text": _text(row[name], place, name)}

    return text, [name]


def _choices_reader(arguments: FinetuneArguments, table: Dataset) -> tuple[Callable, list[str]]:
    context = column(table, arguments.text_column, CONTEXTS, "contexts")
    several = len(arguments.choices_column) > 1
    given = arguments.choices_column
    choices = (
        [column(table, name, (), "a choice") for name in given]
        if several
        else [column(table, given[0] if given else None, CHOICES, "choices")]
    )
    question = arguments.question_column or ("question" if "question" in table.column_names else None)
    if question:
        column(table, question, (), "questions")

    def read(row: dict, place: str) -> dict:
        texts = [row[name] for name in choices] if several else row[choices[0]]
        if isinstance(texts, str) or not isinstance(texts, Sequence) or len(texts) < 2:
            raise ValueError(
                f"{place}: column {choices[0]!r} must hold a list of at least two choices, found {texts!r:.80}. Or name a "
                "column for each choice in choices_column."
            )
        found = {
            "context": _text(row[context], place, context),
            "choices": [_text(text, place, choices[0]) for text in texts],
        }
        return found | ({"question": _text(row[question], place, question)} if question else {})

    return read, [context, *choices, *([question] if question else [])]


def _text(value: object, place: str, name: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, list) and value and all(isinstance(word, str) for word in value):
        return " ".join(value)
    raise ValueError(f"{place}: column {name!r} must hold a text, found {value!r:.80}.")


def _words(value: object, place: str, name: str) -> list[str]:
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, Sequence) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"{place}: column {name!r} must hold a list of words, found {value!r:.80}.")
    return list(words)


def _length(found: dict) -> int:
    if "words" in found:
        return len(found["words"])
    texts = [text for value in found.values() for text in ([value] if isinstance(value, str) else value)]
    return sum(len(text.split()) for text in texts)


# Labels


def _class_reader(train: Dataset, validation: Dataset, label: str, task: str) -> tuple[list[str], Callable]:
    """Class names, and what makes ids of a row's labels."""
    each_word = task == "token-classification"
    names = _hub_names(train, label)

    def flat(table: Dataset) -> list:
        values = table[label]
        shown = next((value for value in values if value is not None), None)
        if shown is not None and (
            isinstance(shown, list) != each_word or (names is None and isinstance(shown, float))
        ):
            wanted = "a list of labels, one a word" if each_word else "a class name or number"
            raise ValueError(
                f"column {label!r} holds {shown!r:.80}, which does not fit {task}: {wanted} is expected. Name another "
                "label_column, or set task."
            )
        return [item for value in values for item in (value or [] if each_word else [value])]

    def name_of(value: object) -> str | None:
        if value is None or value in ("", IGNORED) or (names and value == -1):
            return None
        return names[value] if names and isinstance(value, int) else str(value)

    seen = {name_of(value) for value in flat(train)} - {None}
    order = sorted(seen, key=int) if all(name.isascii() and name.isdigit() for name in seen) else sorted(seen)
    if names:
        order = [name for name in names if name in seen]
    if len(order) < 2:
        raise ValueError(
            f"column {label!r} of the training rows has {len(order)} classes ({', '.join(order)}), and fewer than two teach "
            "nothing. Check the column, or take more rows."
        )
    unknown = sorted({name_of(value) for value in flat(validation)} - {None} - seen)
    if unknown:
        raise ValueError(
            f"the validation rows have labels that no training row has: {unknown[:5]}. Leave these rows out, or train on "
            "more."
        )
    ids = {name: number for number, name in enumerate(order)} | {None: IGNORED}

    def convert(value: object, found: dict, place: str) -> int | list[int]:
        if not each_word:
            return ids[name_of(value)]
        words = found["words"]
        labels = [IGNORED] * len(words) if value is None else [ids[name_of(item)] for item in value]
        if len(labels) != len(words):
            raise ValueError(
                f"{place}: {len(words)} words but {len(labels)} labels in the row that begins {words[:6]}."
            )
        return labels

    return order, convert


def _hub_names(table: Dataset, label: str) -> list[str] | None:
    """The class names that a Hub data set gives for its numbers."""
    feature = table.features[label]
    feature = getattr(feature, "feature", feature)
    return feature.names if isinstance(feature, ClassLabel) else None


def _number(value: object, found: dict, place: str) -> float:
    if value is None:
        return float(IGNORED)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{place}: the label must be a number, found {value!r:.80}. Name another label_column, or use classes with "
            "regression=false."
        )
    return number


def _choice(value: object, found: dict, place: str) -> int:
    if value is None or value == IGNORED:
        return IGNORED
    count = len(found["choices"])
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if not 0 <= number < count or (isinstance(value, float) and value != number):
        raise ValueError(
            f"{place}: the label must be the number of the right choice, 0..{count - 1}, found {value!r:.80}."
        )
    return number


def _check_choices(train: Dataset, validation: Dataset) -> None:
    counts = [len(choices) for table in (train, validation) for choices in table["choices"]]
    for number, count in enumerate(counts):
        if count != counts[0]:
            where = (
                f"row {number + 1}" if number < len(train) else f"validation row {number + 1 - len(train)}"
            )
            raise ValueError(
                f"every row must have as many choices: the first has {counts[0]}, {where} has {count}. Fill up with wrong "
                "choices, or leave such rows out."
            )


__all__ = ["FORM_OF", "TaskRows", "read_task_rows", "sample_rows"]
