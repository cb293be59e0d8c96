"""Fine-tuning a biLM on a task, with the stock Trainer."""

from dataclasses import dataclass

from datasets import Dataset
from transformers import AutoConfig, Trainer, TrainingArguments, set_seed

from ..modeling.modeling_elmo import ElmoForSequenceClassification, ElmoForTokenClassification
from ..objectives.collators import ClassificationCollator
from ..tokenization.tokenization_elmo import ElmoTokenizer
from .arguments import FinetuneArguments
from .checkpoints import open_checkpoint
from .data import column, read_table, split_words
from .metrics import classification_scores, most_likely
from .trainer import train_evaluate_save

MODELS = {
    "token-classification": ElmoForTokenClassification,
    "sequence-classification": ElmoForSequenceClassification,
}


@dataclass
class Task:
    """A task's rows: tables with `words`, `labels` and `length`, and the class names in the order of their ids."""

    kind: str
    train: Dataset
    validation: Dataset
    label_names: list[str]


def finetune(arguments: FinetuneArguments, training_arguments: TrainingArguments) -> Trainer:
    """Read a task's data, put a head on a biLM, train, evaluate and save it.

    Args:
        arguments: data, checkpoint and head.
        training_arguments: Trainer's; the checkpoint lands in `output_dir`.

    Returns:
        The Trainer after training; `trainer.state.log_history` ends with the evaluation.

    Raises:
        ValueError: missing files or columns, or labels that the training rows do not have.
    """
    for option in ("model", "train_file", "validation_file"):
        if not getattr(arguments, option):
            raise ValueError(
                f"{option} is empty: fine-tuning needs --model, --train_file and --validation_file."
            )
    _, tokenizer = open_checkpoint(arguments.model)
    task = read_task(arguments, tokenizer, training_arguments.seed)
    head = {name: getattr(arguments, name) for name in ("freeze_bilm", "head_dropout", "mix_l2", "pooling")}
    return train_task(task, arguments.model, tokenizer, training_arguments, arguments.from_scratch, **head)


def read_task(arguments: FinetuneArguments, tokenizer: ElmoTokenizer, seed: int) -> Task:
    """The rows of a task, with labels as numbers.

    Args:
        arguments: files and columns.
        tokenizer: splits raw text.
        seed: chooses the rows of `train_fraction`.

    Returns:
        The task; class ids follow the alphabet of the training rows' labels.

    Raises:
        ValueError: a missing column, labels that do not fit the task, or labels the training rows do not have.
    """
    each_word = arguments.task == "token-classification"
    train, validation = read_table(arguments.train_file), read_table(arguments.validation_file, "validation")
    if arguments.train_fraction < 1:
        rows = max(1, round(len(train) * arguments.train_fraction))
        train = train.shuffle(seed=seed).select(range(rows))
    text = column(train, arguments.text_column, ("words", "tokens", "text", "sentence"), "text")
    label_columns = ("labels", "tags", "upos", "ner_tags") if each_word else ("label", "labels", "intent")
    label = column(train, arguments.label_column, label_columns, "labels")

    def names(table: Dataset) -> set[str]:
        rows = table[label]
        if rows and isinstance(rows[0], list) != each_word:
            raise ValueError(f"column {label!r} holds {rows[0]!r}, which does not fit {arguments.task}.")
        return {str(name) for row in rows for name in (row if each_word else [row])}

    label_names = sorted(names(train))
    if unknown := sorted(names(validation) - set(label_names)):
        raise ValueError(f"the validation rows have labels that no training row has: {unknown[:5]}.")
    numbers = {name: number for number, name in enumerate(label_names)}

    def convert(row: dict) -> dict:
        words = split_words(row[text], tokenizer, arguments.tokenized)[: arguments.max_words]
        value = row[label]
        labels = (
            [numbers[str(name)] for name in value][: arguments.max_words]
            if each_word
            else numbers[str(value)]
        )
        if each_word and len(labels) != len(words):
            raise ValueError(
                f"{len(words)} words but {len(labels)} labels in the row that begins {words[:6]}."
            )
        return {"words": words, "labels": labels, "length": len(words)}

    tables = [
        table.map(convert, remove_columns=table.column_names, desc="Reading") for table in (train, validation)
    ]
    return Task(arguments.task, *tables, label_names)


def train_task(
    task: Task,
    model: str,
    tokenizer: ElmoTokenizer,
    training_arguments: TrainingArguments,
    from_scratch: bool = False,
    **head,
) -> Trainer:
    """Train a task head on a checkpoint, or the same model from random weights.

    Args:
        task: the rows.
        model: checkpoint of a biLM.
        tokenizer: the checkpoint's.
        training_arguments: Trainer's.
        from_scratch: take the checkpoint's configuration but not its weights.
        head: fields of `ElmoConfig` that belong to the head.

    Returns:
        The Trainer after training, evaluation and saving.
    """
    set_seed(training_arguments.seed)
    labels = dict(enumerate(task.label_names))
    ids = {name: number for number, name in labels.items()}
    config = AutoConfig.from_pretrained(model, id2label=labels, label2id=ids, **head)
    model_class = MODELS[task.kind]
    network = model_class(config) if from_scratch else model_class.from_pretrained(model, config=config)
    training_arguments.remove_unused_columns = False  # the collator makes the model's inputs from `words`
    trainer = Trainer(
        model=network,
        args=training_arguments,
        train_dataset=task.train,
        eval_dataset=task.validation,
        data_collator=ClassificationCollator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=classification_scores(task.label_names),
        preprocess_logits_for_metrics=most_likely,
    )
    train_evaluate_save(trainer)
    return trainer
