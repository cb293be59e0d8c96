"""Fine-tuning any causal or masked language model on a task, with its own loss beside the task's (Radford et al. 2018)."""

import copy
from pathlib import Path

from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from ..modeling.backbones_joint_loss import (
    OWN_MODELS,
    STOCK,
    build_language_model,
    check_objective,
    find_objective,
    open_language_model,
    position_limit,
)
from ..modeling.modeling_joint_loss import (
    JointLossForMultipleChoice,
    JointLossForSequenceClassification,
    JointLossForSimilarity,
    JointLossForTokenClassification,
    JointLossPreTrainedModel,
)
from ..objectives.input_forms import InputTemplate
from ..objectives.joint_collators import JointLossCollator, ReplaySentences
from ..objectives.joint_tagging import JointTaggingCollator
from .arguments import FinetuneArguments
from .checkpoints import load_whole
from .data import column, read_table
from .forgetting_report import ForgettingReport
from .joint_presets import OPENAI_DROPOUT, OPENAI_HEAD, openai_optimizers
from .joint_trainer import JointLossTrainer
from .layerwise import GradualUnfreezing, transfer_layers
from .metrics import (
    check_entity_scores,
    choice_scores,
    classification_scores,
    most_likely,
    numbers,
    regression_scores,
)
from .task_results import write_results
from .task_rows import TaskRows, read_task_rows
from .trainer import train_evaluate_save

HEADS = {
    "sequence-classification": JointLossForSequenceClassification,
    "entailment": JointLossForSequenceClassification,
    "token-classification": JointLossForTokenClassification,
    "similarity": JointLossForSimilarity,
    "multiple-choice": JointLossForMultipleChoice,
}
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json")
REPORTED_ROWS = 1000  # of each text in a forgetting report, which is measured again at each evaluation
USUAL_LENGTH = 256  # tokens, where the model has as many positions
Collator = JointLossCollator | JointTaggingCollator


def finetune_joint(arguments: FinetuneArguments, training_arguments: TrainingArguments) -> Trainer:
    """Read a task's rows, put a head beside a language model's own, train, evaluate, save and write the predictions.

    Args:
        arguments: data, checkpoint, task and losses.
        training_arguments: Trainer's; the checkpoint and the results land in `output_dir`.

    Returns:
        The Trainer after training; `trainer.state.log_history` ends with the evaluation.

    Raises:
        FileNotFoundError: files or checkpoints that do not exist.
        ImportError: tags of entities without seqeval.
        ValueError: data that do not fit the task, or options that do not fit the model.
    """
    _check(arguments)
    tokenizer = open_tokenizer(arguments.model)
    task = read_task_rows(arguments, training_arguments.seed)
    check_entity_scores(task.label_names)
    set_seed(training_arguments.seed)
    model, template = make_model(arguments, task, tokenizer)
    collate = make_collator(arguments, task, model, tokenizer, template, training_arguments.seed)
    training_arguments.remove_unused_columns = False  # the collator makes the model's inputs from texts
    if training_arguments.train_sampling_strategy == "group_by_length":
        training_arguments.length_column_name = "length"
    trainer = JointLossTrainer(
        model=model,
        args=training_arguments,
        train_dataset=task.train,
        eval_dataset=task.validation,
        data_collator=collate,
        processing_class=with_layout(tokenizer, template, task.form),
        compute_metrics=_scores(task),
        preprocess_logits_for_metrics=numbers if task.regression else most_likely,
        **_trainer_options(arguments, training_arguments, model, len(task.train)),
    )
    for callback in _callbacks(arguments, task, collate):
        trainer.add_callback(callback)
    train_evaluate_save(trainer)
    if trainer.is_world_process_zero():
        write_results(
            Path(training_arguments.output_dir),
            trainer.accelerator.unwrap_model(trainer.model),
            task.validation,
            collate,
            training_arguments.per_device_eval_batch_size,
            task.label_names,
            task.regression,
        )
    return trainer


def _check(arguments: FinetuneArguments) -> None:
    if not 0 <= arguments.lm_loss_weight < float("inf"):
        raise ValueError(
            f"lm_loss_weight must be at least 0, found {arguments.lm_loss_weight}. Use 0 to train the task alone."
        )
    if arguments.replay_file and not (arguments.lm_loss_weight or arguments.kl_weight):
        raise ValueError(
            "replay_file is read by the language model's loss, whose lm_loss_weight is 0. Raise it, or leave the file out."
        )
    if arguments.preset == "openai" and arguments.layer_lr_decay != 1:
        raise ValueError(
            "preset openai has an optimizer of its own, with one rate for all layers. Leave out preset or layer_lr_decay."
        )
    if arguments.max_words != FinetuneArguments.max_words:
        raise ValueError("max_words is ELMo's; other models count tokens. Use max_tokens.")
    if arguments.freeze_bilm or arguments.mix_l2 or arguments.pooling != FinetuneArguments.pooling:
        raise ValueError(
            f"freeze_bilm, mix_l2 and pooling belong to ELMo, but {arguments.model} is another model. Leave them out."
        )


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a language model.

    Args:
        name: folder or name on the Hub.

    Raises:
        ValueError: it has none.
    """
    # Of a model without one Transformers may make an empty tokenizer.
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(
            f"{name} has no tokenizer beside it. Save the model's: tokenizer.save_pretrained({name!r})"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{name} has no tokenizer that Transformers can load ({error}). Save the model's tokenizer beside it: "
            f"tokenizer.save_pretrained({name!r})"
        ) from error
    if not tokenizer.is_fast:
        raise ValueError(f"{name} has a slow tokenizer; one of the tokenizers library is expected.")
    return tokenizer


# The model


def make_model(
    arguments: FinetuneArguments, task: TaskRows, tokenizer: PreTrainedTokenizerBase
) -> tuple[JointLossPreTrainedModel, InputTemplate | None]:
    """A language model with a new head, and the layout that the head reads; the tokenizer gets the layout's marks.

    Args:
        arguments: checkpoint and options of the head.
        task: the rows.
        tokenizer: the checkpoint's.

    Returns:
        The model, and its template; None for tagging, which has no marks.

    Raises:
        ValueError: more `max_tokens` than positions, or options that do not fit the model.
    """
    language_model, objective = open_backbone(arguments)
    template, options = None, _head_options(arguments, task)
    longest = position_limit(language_model)
    if arguments.max_tokens and longest is not None and arguments.max_tokens > longest:
        raise ValueError(
            f"max_tokens is {arguments.max_tokens}, but {arguments.model} has {longest} positions. Give at most "
            f"{longest}: longer texts are cut."
        )
    if task.form != "tagging":
        template = InputTemplate(
            arguments.start_token,
            arguments.delimiter_token,
            arguments.classify_token,
            row_length(arguments, language_model),
            "halves" if arguments.preset == "openai" else arguments.truncation,
        )
        template.prepare(tokenizer, language_model)
        options |= template.model_options(tokenizer)
    model = HEADS[task.task].from_backbone_pretrained(language_model, objective, **options)
    if arguments.transferred_layers is not None:
        transfer_layers(model, arguments.transferred_layers)
    return model, template


def open_backbone(arguments: FinetuneArguments) -> tuple[PreTrainedModel, str]:
    """The language model and its objective, with new weights where `from_scratch` or `transferred_layers` say so.

    Its own head may be missing in the checkpoint where no loss and no report reads it.

    Raises:
        ValueError: a checkpoint that is not whole, or options that contradict it or each other.
    """
    config = AutoConfig.from_pretrained(arguments.model)
    objective = None if arguments.lm_objective == "auto" else arguments.lm_objective
    dropout = {}
    if arguments.preset == "openai":
        dropout = {name: rate for name, rate in OPENAI_DROPOUT.items() if hasattr(config, name)}
    if arguments.from_scratch:
        if arguments.transferred_layers is not None:
            raise ValueError("from_scratch keeps no layer, transferred_layers keeps some. Give one of them.")
        for name, rate in dropout.items():
            setattr(config, name, rate)
        objective = objective or find_objective(config, config.architectures or [])
        return build_language_model(config, objective), objective
    if config.model_type == "joint-loss":
        return open_language_model(arguments.model)  # says why not
    objective = objective or find_objective(config, config.architectures or [])
    check_objective(config, objective)
    kind = OWN_MODELS[config.model_type][0] if config.model_type in OWN_MODELS else STOCK[objective]
    is_read = arguments.lm_loss_weight or arguments.kl_weight or arguments.forgetting_file
    try:
        model = load_whole(kind, arguments.model, new_head=not is_read, **dropout)
    except ValueError as error:
        hint = " Where only the language model's head is missing, --lm_loss_weight 0 trains the task alone."
        raise ValueError(f"{error}{hint if is_read and 'lacks weights' in str(error) else ''}") from error
    return open_language_model(model, objective)


def row_length(arguments: FinetuneArguments, language_model: PreTrainedModel) -> int:
    """Positions of a row: `max_tokens`, or what the model has, up to `USUAL_LENGTH`."""
    return arguments.max_tokens or min(position_limit(language_model) or USUAL_LENGTH, USUAL_LENGTH)


def _head_options(arguments: FinetuneArguments, task: TaskRows) -> dict:
    """Fields of `JointLossConfig`."""
    options = dict(OPENAI_HEAD) if arguments.preset == "openai" else {}
    options["lm_loss_weight"] = arguments.lm_loss_weight
    if arguments.head_dropout is not None:
        options["classifier_dropout"] = arguments.head_dropout
    if task.regression:
        return options | {"num_labels": 1, "problem_type": "regression"}
    if task.label_names:
        options["id2label"] = dict(enumerate(task.label_names))
        options["label2id"] = {name: number for number, name in enumerate(task.label_names)}
    return options


# Batches


def make_collator(
    arguments: FinetuneArguments,
    task: TaskRows,
    model: JointLossPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: InputTemplate | None,
    seed: int,
) -> Collator:
    """What makes a batch of the task's rows.

    Args:
        arguments: how the language model's part is made.
        task: the rows.
        model: its objective.
        tokenizer: with the template's marks.
        template: the layout; None for tagging.
        seed: of the order of replayed text.
    """
    objective = model.config.lm_objective
    wanted = objective if arguments.lm_loss_weight or arguments.kl_weight else None
    replay = None
    if arguments.replay_file:
        replay = ReplaySentences(read_texts(arguments.replay_file, "replay_file"), seed)
    if template is None:
        length = row_length(arguments, model.language_model)
        at_last_token = objective == "causal"
        return JointTaggingCollator(tokenizer, length, wanted, at_last_token, replay=replay)
    problem = "regression" if task.regression else None
    return JointLossCollator(
        tokenizer,
        template,
        task.form,
        problem_type=problem,
        lm_objective=wanted,
        lm_on=arguments.lm_on,
        replay=replay,
    )


def read_texts(files: list[str], option: str) -> list[str]:
    """A column of general text, without empty lines.

    Args:
        files: or the name of a data set.
        option: for the message.

    Raises:
        ValueError: no text in it.
    """
    table = read_table(files)
    name = column(table, None, ("text", "sentence", "words", "tokens"), "text")
    texts = [row if isinstance(row, str) else " ".join(row) for row in table[name] if row]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(f"{option} {files} holds no text. One sentence a line is expected.")
    return texts


def with_layout(
    tokenizer: PreTrainedTokenizerBase, template: InputTemplate | None, form: str
) -> PreTrainedTokenizerBase:
    """A copy that writes the task's layout by itself, to be saved beside the model; so pipelines need not know it.

    Args:
        tokenizer: with the template's marks.
        template: the layout; None leaves the tokenizer as it is.
        form: a key of `FORMS`.

    Returns:
        A tokenizer whose texts are `_start_ text _classify_` and whose pairs have `_delimiter_` between them.
    """
    if template is None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    start, delimiter, classify = template.marks
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start}:0 $A:0 {classify}:0",
        pair=f"{start}:0 $A:0 {delimiter}:0 $B:0 {classify}:0",
        special_tokens=list(zip(template.marks, template.ids(tokenizer), strict=True)),
    )
    tokenizer.model_max_length = template.max_length
    tokenizer.padding_side = "right"
    return tokenizer


# Training


def _scores(task: TaskRows):
    if task.regression:
        return regression_scores
    return classification_scores(task.label_names) if task.label_names else choice_scores


def _trainer_options(
    arguments: FinetuneArguments,
    training_arguments: TrainingArguments,
    model: JointLossPreTrainedModel,
    rows: int,
) -> dict:
    options = {
        "lm_weight_schedule": arguments.lm_weight_schedule,
        "layer_lr_decay": None if arguments.layer_lr_decay == 1 else arguments.layer_lr_decay,
        "kl_weight": arguments.kl_weight,
    }
    if arguments.preset == "openai":
        options["optimizers"] = openai_optimizers(
            model,
            _updates(training_arguments, rows),
            training_arguments.learning_rate,
            training_arguments.weight_decay,
        )
    return options


def _updates(arguments: TrainingArguments, rows: int) -> int:
    """Optimizer steps of the whole training."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    size = arguments.train_batch_size * arguments.world_size
    batches = rows // size if arguments.dataloader_drop_last else -(-rows // size)
    if not batches:
        raise ValueError(
            f"a batch has {size} rows, found {rows} in all, which makes no update. Give a smaller "
            "per_device_train_batch_size."
        )
    return int(-(-batches // arguments.gradient_accumulation_steps) * arguments.num_train_epochs)


def _callbacks(arguments: FinetuneArguments, task: TaskRows, collate: Collator) -> list[TrainerCallback]:
    callbacks = []
    if arguments.unfreeze_every_epochs is not None:
        callbacks.append(GradualUnfreezing(every_epochs=arguments.unfreeze_every_epochs))
    if arguments.forgetting_file:
        texts = {
            "task": plain_texts(task),
            "general": read_texts(arguments.forgetting_file, "forgetting_file"),
        }
        length = collate.template.max_length if hasattr(collate, "template") else collate.max_length
        rows = {
            name: collate.tokenizer(found[:REPORTED_ROWS], truncation=True, max_length=length)["input_ids"]
            for name, found in texts.items()
        }
        callbacks.append(ForgettingReport(rows, collate.tokenizer))
    return callbacks


def plain_texts(task: TaskRows) -> list[str]:
    """The validation rows' texts, one after the other, without layout."""
    texts = []
    for row in task.validation:
        for name, value in row.items():
            if name == "words":
                texts.append(" ".join(value))
            elif name not in ("labels", "length"):
                texts += [value] if isinstance(value, str) else value
    return texts


__all__ = ["finetune_joint", "make_collator", "make_model", "open_backbone", "open_tokenizer", "with_layout"]
