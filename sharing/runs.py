"""What a training verb leaves behind besides the checkpoint: plots, a card, and a last word on what to do next."""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import Trainer, TrainingArguments

from ..training.arguments import DataArguments, FinetuneArguments, PretrainArguments
from ..training.finetuning import finetune
from ..training.new_models import model_type_of
from ..training.plots import plot_curves, plot_layer_weights
from ..training.pretraining import pretrain
from ..training.seq2seq import train_seq2seq
from ..training.seq2seq_arguments import Seq2SeqArguments
from ..training.trainer import read_log
from .cards import CardFacts, training_facts, write_card
from .quiet import quiet_libraries
from .run_facts import TASKS, facts_of_run, own_options, push_if_asked
from .run_folder import run_folder

MEASURES = {
    "eval_perplexity": "held-out perplexity, whole vocabulary",
    "eval_forward_loss": "forward loss, nats a target",
    "eval_backward_loss": "backward loss, nats a target",
    "eval_accuracy": "accuracy",
    "eval_macro_f1": "macro F1",
    "eval_entity_f1": "entity F1 (seqeval)",
    "eval_pearson": "Pearson correlation",
    "eval_spearman": "Spearman correlation",
    "eval_bleu": "BLEU",
    "eval_chrf": "chrF2",
    "eval_rouge1": "ROUGE-1",
    "eval_rouge2": "ROUGE-2",
    "eval_rougeL": "ROUGE-L",
    "eval_loss": "loss",
    "eval_task_loss": "task loss",
    "eval_lm_loss": "language model's loss",
    "eval_source_lm_ppl": "source LM, held-out perplexity",
    "eval_target_lm_ppl": "target LM, held-out perplexity",
    "eval_source_forgetting": "source LM, perplexity by that at the start",
    "eval_target_forgetting": "target LM, perplexity by that at the start",
}

JOINT_LOSSES = ("task_loss", "eval_task_loss", "lm_loss", "eval_lm_loss")

PRETRAINED = {
    "elmo": ("AutoModel", "An ELMo biLM pre-trained with heirloom."),
    "lstm-lm": ("AutoModelForCausalLM", "An LSTM language model, left to right, pre-trained with heirloom."),
}


def run_pretraining(arguments: PretrainArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Pre-train and write the run's folder; see `training.pretraining.pretrain`.

    Args:
        arguments: data and sizes.
        training_arguments: Trainer's.

    Returns:
        The last evaluation.

    Raises:
        FileExistsError: `output_dir` holds something.
        ValueError: bad options or data.
    """
    return _run(pretrain, arguments, training_arguments, *PRETRAINED[model_type_of(arguments)])


def run_finetuning(arguments: FinetuneArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Fine-tune and write the run's folder; see `training.finetuning.finetune`.

    Args:
        arguments: data, checkpoint and head.
        training_arguments: Trainer's.

    Returns:
        The last evaluation.

    Raises:
        FileExistsError: `output_dir` holds something.
        ValueError: bad options or data.
    """
    origin = "the same sizes as" if arguments.from_scratch else "the language model"
    summary = f"A model for {arguments.task}, fine-tuned with heirloom from {origin} `{Path(arguments.model).name}`."
    return _run(finetune, arguments, training_arguments, TASK_CLASSES[arguments.task], summary)


TASK_CLASSES = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "entailment": "AutoModelForSequenceClassification",
    "similarity": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
}


def run_seq2seq(arguments: Seq2SeqArguments, training_arguments: TrainingArguments) -> dict[str, float]:
    """Train an encoder-decoder and write the run's folder; see `training.seq2seq.train_seq2seq`.

    Args:
        arguments: checkpoint, pairs and monolingual text.
        training_arguments: Trainer's.

    Returns:
        The last evaluation.

    Raises:
        FileExistsError: `output_dir` holds something.
        ValueError: bad options or data.
    """
    origin = "the same sizes as" if arguments.from_scratch else "the checkpoint"
    summary = (
        f"A translator from source to target text, trained with heirloom from {origin} `{Path(arguments.model).name}` "
        f"({KEEPING[arguments.forgetting]})."
    )
    return _run(train_seq2seq, arguments, training_arguments, "AutoModelForSeq2SeqLM", summary)


KEEPING = {
    "lm_loss": "going on to train the language models in it",
    "ewc": "holding the language models in it by elastic weight consolidation",
    "l2sp": "holding the language models in it by an L2 penalty on their way",
    "freeze": "with the language models in it frozen at first",
    "none": "on pairs alone",
}


@dataclass
class Seq2SeqFacts(CardFacts):
    """What a translator's card says besides.

    Args:
        family: model type.
        separate: source and target have tokenizers of their own.
    """

    family: str = "lstm-seq2seq"
    separate: bool = False


@dataclass
class JointFacts(CardFacts):
    """What the card of a joint-loss model says besides.

    Args:
        form: how a row is laid out, a key of `objectives.input_forms.FORMS`, or "tagging".
        regression: it predicts a number.
    """

    form: str = "classification"
    regression: bool = False


def _facts(trainer: Trainer, **facts) -> tuple[CardFacts, str]:
    """What a run's card says, and its template."""
    kind = trainer.model.config.model_type
    if kind == "joint-loss":
        form = getattr(trainer.data_collator, "form", "tagging")
        regression = trainer.model.config.problem_type == "regression"
        return JointFacts(**facts, form=form, regression=regression), "joint-loss.md"
    if not trainer.model.config.is_encoder_decoder:
        return CardFacts(**facts), f"{kind}.md"
    tokenizers = trainer.processing_class
    separate = tokenizers.source is not tokenizers.target
    return Seq2SeqFacts(**facts, family=kind, separate=separate), "lstm-seq2seq.md"


def _run(
    train,
    arguments: DataArguments | Seq2SeqArguments,
    training_arguments: TrainingArguments,
    auto_class: str,
    summary: str,
) -> dict:
    start, main = time.time(), training_arguments.process_index == 0  # of several processes, one writes
    with run_folder(training_arguments) as folder, quiet_libraries():
        trainer = train(arguments, training_arguments)
    seconds = time.time() - start
    scores = next(record for record in reversed(trainer.state.log_history) if "eval_loss" in record)
    if not main:
        push_if_asked(trainer)
        return scores
    pictures = _draw(folder, trainer)
    facts, template = _facts(
        trainer,
        name=folder.name,
        auto_class=auto_class,
        summary=summary,
        data=f"Trained on {_files(_data(arguments, 'train'))}; evaluated on "
        f"{_files(_data(arguments, 'validation')) or 'a held-out part'}.",
        training=own_options(trainer, arguments) | training_facts(training_arguments, seconds),
        pictures=pictures,
        task=TASKS[auto_class],
        **facts_of_run(trainer, arguments, scores, MEASURES),
    )
    write_card(folder, facts, template)
    push_if_asked(trainer)
    console = Console(highlight=False)
    for key, name in MEASURES.items():
        if key in scores:
            console.print(f" {name:<46} {scores[key]:.4f}")
    console.print(
        f"\n saved   {folder}   ({seconds:.0f} s; checkpoint, tokenizer, card, plots, log.jsonl)",
        soft_wrap=True,
    )
    if isinstance(arguments, Seq2SeqArguments):
        console.print(f" next    heirloom translate {folder} sentences.txt", soft_wrap=True)
    if isinstance(arguments, FinetuneArguments):
        console.print(
            f"         {folder / 'predictions.jsonl'} says what it takes each row for", soft_wrap=True
        )
    if isinstance(arguments, PretrainArguments):
        hints = [f"heirloom score {folder} sentences.txt"]
        if model_type_of(arguments) == "elmo":
            hints += [
                f"heirloom embed {folder} sentences.txt vectors.hdf5",
                f"heirloom finetune tagging --model {folder} --train_file ... --validation_file ...",
            ]
        for start, hint in zip((" next   ", "        ", "        "), hints, strict=False):
            console.print(start, hint, soft_wrap=True)
    return scores


def _data(arguments: DataArguments | Seq2SeqArguments, what: str) -> list[str]:
    names = [f"{what}_file"]
    if isinstance(arguments, Seq2SeqArguments):
        names += [f"{what}_source", f"{what}_target"]
        names += [f"{side}_monolingual" for side in ("source", "target") if what == "train"]
    return [file for name in names for file in getattr(arguments, name)]


def _files(files: list[str]) -> str:
    """File names without their folders: a card tells nothing about somebody's disk."""
    return ", ".join(f"`{Path(file).name}`" for file in files)


def _draw(folder: Path, trainer: Trainer) -> list[str]:
    keys = JOINT_LOSSES if trainer.model.config.model_type == "joint-loss" else ("loss", "eval_loss")
    plot_curves(read_log(folder), folder.name, keys).savefig(folder / "curves.png")
    pictures = ["curves.png"]
    mix = getattr(trainer.model, "mix", None)
    if mix is not None:
        plot_layer_weights(mix.weights().tolist()).savefig(folder / "layer_weights.png")
        pictures.append("layer_weights.png")
    return pictures + [name for name in ("confusion.png", "forgetting.png") if (folder / name).is_file()]
