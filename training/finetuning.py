"""Fine-tuning a language model on a task: a biLM with the stock Trainer, all others with a joint loss."""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import AutoConfig, Trainer, TrainingArguments, set_seed

from ..modeling.modeling_elmo import ElmoForSequenceClassification, ElmoForTokenClassification
from ..objectives.collators import ClassificationCollator
from ..tokenization.tokenization_elmo import ElmoTokenizer
from .arguments import FinetuneArguments
from .checkpoints import load_whole, open_checkpoint
from .data import column, read_table, split_words
from .joint_finetuning import finetune_joint
from .metrics import classification_scores, most_likely
from .task_results import write_results
from .task_rows import sample_rows
from .trainer import train_evaluate_save

MODELS = {
    "token-classification": ElmoForTokenClassification,
    "sequence-classification": ElmoForSequenceClassification,
}
# Options of the joint-loss heads that would change nothing here; a recipe's lambda is for whatever model comes.
JOINT_ONLY = (
    "replay_file",
    "forgetting_file",
    "kl_weight",
    "preset",
    "layer_lr_decay",
    "unfreeze_every_epochs",
    "transferred_layers",
    "regression",
)


@dataclass
class Task:
    """A task's rows: tables with `words`, `labels` and `length`, and the class names in the order of their ids."""

    kind: str
    train: Dataset
    validation: Dataset
    label_names: list[str]


def finetune(arguments: FinetuneArguments, training_arguments: TrainingArguments) -> Trainer:
    """Read a task's data, put a head on a language model, train, evaluate, save it and write its predictions.

    An ELMo checkpoint gets ELMo's own heads, any other causal or masked language model one of the joint-loss heads.

    Args:
        arguments: data, checkpoint and head.
        training_arguments: Trainer's; the checkpoint lands in `output_dir`.

    Returns:
        The Trainer after training; `trainer.state.log_history` ends with the evaluation.

    Raises:
        FileNotFoundError: files or checkpoints that do not exist.
        ValueError: missing files or columns, or labels that the training rows do not have.
    """
    for option in ("model", "train_file", "validation_file"):
        if not getattr(arguments, option):
            raise ValueError(
                f"{option} is empty: fine-tuning needs --model, --train_file and --validation_file."
            )
    if _model_type(arguments.model) != "elmo":
        return finetune_joint(arguments, training_arguments)
    if arguments.task not in MODELS:
        raise ValueError(
            f"{arguments.model} is an ELMo checkpoint, whose heads are {', '.join(MODELS)}; task {arguments.task} needs "
            "another language model."
        )
    if unread := [name for name in JOINT_ONLY if getattr(arguments, name) != vars(FinetuneArguments())[name]]:
        raise ValueError(
            f"{arguments.model} is an ELMo checkpoint, whose heads train the task alone and do not read "
            f"{', '.join(unread)}. Leave that out."
        )
    _, tokenizer = open_checkpoint(arguments.model)
    task = read_task(arguments, tokenizer, training_arguments.seed)
    head = {name: getattr(arguments, name) for name in ("freeze_bilm", "mix_l2", "pooling")}
    if arguments.head_dropout is not None:
        head["head_dropout"] = arguments.head_dropout
    trainer = train_task(task, arguments.model, tokenizer, training_arguments, arguments.from_scratch, **head)
    if trainer.is_world_process_zero():
        size = training_arguments.per_device_eval_batch_size
        model = trainer.accelerator.unwrap_model(trainer.model)
        folder = Path(training_arguments.output_dir)
        write_results(folder, model, task.validation, trainer.data_collator, size, task.label_names)
    return trainer


def _model_type(name: str) -> str:
    """Which family a checkpoint belongs to.

    Raises:
        FileNotFoundError: a folder without a config.json, or no such folder.
    """
    if (Path(name).exists() or name.startswith((".", "/"))) and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"{name} holds no config.json. Give the checkpoint folder of a language model, as heirloom pretrain writes it."
        )
    return AutoConfig.from_pretrained(name).model_type


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
    train = sample_rows(train, arguments, seed)
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
    network = model_class(config) if from_scratch else load_whole(model_class, model, True, config=config)
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
