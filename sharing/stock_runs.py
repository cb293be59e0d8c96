"""What `heirloom pretrain --objective` leaves behind: checkpoint, card and curves of a stock model."""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import Trainer, TrainingArguments

from ..training.arguments import PretrainArguments
from ..training.objectives import Objective, find_objective
from ..training.plots import plot_curves
from ..training.stock_objectives import pretrain_stock
from ..training.trainer import read_log
from .cards import CardFacts, training_facts, write_card
from .quiet import quiet_libraries
from .run_facts import TASKS, facts_of_run, own_options, push_if_asked
from .run_folder import run_folder

MEASURES = {
    "eval_mlm_loss": "hidden tokens, nats a token",
    "eval_nsp_loss": "pairs, nats a pair",
    "eval_sop_loss": "order of pairs, nats a pair",
    "eval_sbo_loss": "tokens by the span's boundaries, nats a token",
    "eval_rtd_loss": "replaced tokens, nats a token",
    "eval_lm_loss": "tokens told, nats a token",
    "eval_seq2seq_loss": "tokens written, nats a token",
    "eval_perplexity": "held-out perplexity",
    "eval_loss": "loss",
}


@dataclass
class StockFacts(CardFacts):
    """What the card of a stock model says besides.

    Args:
        family: model type.
        objective: its name.
        paper: of the objective.
        about: what is learned.
        ours: the class comes with heirloom.
    """

    family: str = ""
    objective: str = ""
    paper: str = ""
    about: str = ""
    ours: bool = False


def run_stock_pretraining(
    arguments: PretrainArguments, training_arguments: TrainingArguments
) -> dict[str, float]:
    """Pre-train and write the run's folder; see `training.stock_objectives.pretrain_stock`.

    Args:
        arguments: objective, model and text.
        training_arguments: Trainer's.

    Returns:
        The last evaluation.

    Raises:
        FileExistsError: `output_dir` holds something.
        ValueError: bad options or data, or a model that does not fit the objective.
    """
    start, objective = time.time(), find_objective(arguments.objective)
    main = training_arguments.process_index == 0  # of several processes, one writes
    with run_folder(training_arguments) as folder, quiet_libraries():
        trainer = pretrain_stock(arguments, training_arguments)
    scores = next(record for record in reversed(trainer.state.log_history) if "eval_loss" in record)
    if main:
        _write(folder, objective, trainer, arguments, scores, time.time() - start)
    push_if_asked(trainer)
    return scores


def _write(
    folder: Path,
    objective: Objective,
    trainer: Trainer,
    arguments: PretrainArguments,
    scores: dict[str, float],
    seconds: float,
) -> None:
    plot_curves(read_log(folder), folder.name, ("loss", "eval_loss")).savefig(folder / "curves.png")
    held_out = ", ".join(f"`{Path(file).name}`" for file in arguments.validation_file)
    auto_class = "AutoModelForPreTraining" if objective.models.ours else objective.models.auto
    facts = StockFacts(
        name=folder.name,
        auto_class=auto_class,
        summary=f"{objective.about} `{type(trainer.model).__name__}`, trained so with heirloom.",
        data=f"Trained on {', '.join(f'`{Path(file).name}`' for file in arguments.train_file)}; evaluated on "
        f"{held_out or 'a held-out part'}.",
        training=own_options(trainer, arguments) | training_facts(trainer.args, seconds),
        task="" if "Seq2Seq" in auto_class else TASKS.get(auto_class, ""),
        **facts_of_run(trainer, arguments, scores, MEASURES),
        pictures=["curves.png"],
        family=trainer.model.config.model_type,
        objective=objective.name,
        paper=objective.paper,
        about=objective.about,
        ours=bool(objective.models.ours),
    )
    write_card(folder, facts, "stock.md")
    console = Console(highlight=False)
    for key, name in MEASURES.items():
        if key in scores:
            console.print(f" {name:<46} {scores[key]:.4f}")
    console.print(
        f"\n saved   {folder}   ({seconds:.0f} s; checkpoint, tokenizer, card, plots, log.jsonl)",
        soft_wrap=True,
    )
    if objective.part:
        console.print(f"         {folder / objective.part} is the stock model alone", soft_wrap=True)
