"""The whole story on text that every machine has: pre-train a biLM, pass it down to a classifier, show what it was worth."""

import time
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import Trainer, TrainingArguments

from ..tokenization.tokenization_elmo import ElmoTokenizer
from ..training.data import sentences
from ..training.finetuning import Task, train_task
from ..training.plots import plot_comparison, plot_curves, plot_layer_weights
from ..training.pretraining import make_tokenizer, train_bilm
from ..training.python_docs import docstrings, is_held_out, language_reference, module_task, paragraphs
from ..training.trainer import read_log
from .cards import CardFacts, training_facts, write_card
from .quiet import quiet_libraries

MAX_WORDS = 32  # of a docstring that the classifier reads, and of a sentence that the biLM learns from
SIZES = {
    "max_characters_per_token": 20,
    "char_filters": [[1, 16], [2, 16], [3, 32], [4, 64], [5, 64]],
    "num_highway_layers": 1,
    "projection_size": 64,
    "cell_size": 256,
    "num_hidden_layers": 2,
}


@quiet_libraries()
def quickstart(
    folder: Path, seed: int = 0, pretrain_epochs: float = 2, finetune_epochs: float = 4
) -> dict[str, float]:
    """Pre-train, fine-tune with and without, and write the run folder.

    Args:
        folder: a folder that does not exist or is empty; the biLM's checkpoint lands in it, the classifiers' below it.
        seed: of everything random.
        pretrain_epochs: passes over the documentation.
        finetune_epochs: passes over the labelled docstrings.

    Returns:
        Held-out accuracy of both classifiers and the biLM's perplexity.

    Raises:
        FileExistsError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise FileExistsError(f"{folder} {what}. Name another folder: heirloom quickstart runs/again")
    console, start = Console(highlight=False), time.time()

    names, train_pairs, held_out_pairs = module_task()
    texts = language_reference()
    texts += [
        piece
        for pieces in docstrings().values()
        for text in pieces
        if not is_held_out(text)
        for piece in paragraphs(text)
    ]
    splitter = ElmoTokenizer(max_characters_per_token=SIZES["max_characters_per_token"])
    corpus = sentences(Dataset.from_dict({"text": texts}), splitter, max_words=MAX_WORDS)
    parts = corpus.train_test_split(0.02, seed=seed)
    tokenizer = make_tokenizer(parts["train"], 6000, 2, SIZES["max_characters_per_token"])
    console.print(
        f"\n1  Pre-training a biLM on {sum(corpus['length']):,} words of Python's documentation "
        f"({len(tokenizer):,} words in its vocabulary)"
    )
    options = {"per_device_train_batch_size": 64, "train_sampling_strategy": "group_by_length"}
    bilm_arguments = _arguments(folder, seed, pretrain_epochs, learning_rate=4e-3, **options)
    bilm = train_bilm(parts["train"], parts["test"], tokenizer, bilm_arguments, **SIZES)
    pretrain_seconds = time.time() - start

    train, held_out = (_labelled(pairs, splitter) for pairs in (train_pairs, held_out_pairs))
    task = Task("sequence-classification", train, held_out, names)
    runs, finetune_start = {}, time.time()
    for number, name in enumerate(("from scratch", "from the biLM"), 2):
        console.print(
            f"\n{number}  Which module is a docstring from? {len(names)} modules, {len(train):,} rows, {name}"
        )
        target = folder / ("classifier" if name == "from the biLM" else "classifier_from_scratch")
        arguments = _arguments(
            target, seed, finetune_epochs, learning_rate=5e-3, per_device_train_batch_size=32
        )
        runs[name] = train_task(
            task, str(folder), tokenizer, arguments, name == "from scratch", head_dropout=0.1
        )
    results = {name: _last(run, "eval_accuracy") for name, run in runs.items()}
    results["perplexity"] = _last(bilm, "eval_perplexity")

    _draw(folder, runs)
    facts = training_facts(bilm_arguments, pretrain_seconds) | {
        "fine-tuning time, both": f"{time.time() - finetune_start:.0f} s"
    }
    _write_cards(folder, results, runs, facts)
    _print_results(console, runs, results, held_out, time.time() - start)
    console.print(
        f"\n saved   {folder}   (checkpoint, tokenizer, card, plots, log.jsonl; both classifiers below it)\n"
        f" try     echo 'Return a list of the keys .' > s.txt && heirloom embed {folder} s.txt vectors.hdf5\n"
        f" next    heirloom recipes   lists pre-training and tagging on your own text\n",
        soft_wrap=True,
    )
    return results


def _arguments(folder: Path, seed: int, epochs: float, **options) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_eval_batch_size=128,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        logging_steps=50,  # a whole round of `group_by_length`, whose batches go from long to short
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=False,  # its default follows the verbosity, which is turned down here
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
        **options,
    )


def _labelled(pairs: list[tuple[str, int]], splitter: ElmoTokenizer) -> Dataset:
    words = [splitter.tokenize(text)[:MAX_WORDS] for text, _ in pairs]
    return Dataset.from_dict(
        {"words": words, "labels": [label for _, label in pairs], "length": [len(row) for row in words]}
    )


def _last(run: Trainer, key: str) -> float:
    return next(record[key] for record in reversed(run.state.log_history) if key in record)


def _draw(folder: Path, runs: dict[str, Trainer]) -> None:
    plot_curves(read_log(folder), "Pre-training the biLM").savefig(folder / "curves.png")
    curves = {
        name: [
            (record["epoch"], record["eval_accuracy"])
            for record in run.state.log_history
            if "eval_accuracy" in record
        ]
        for name, run in runs.items()
    }
    plot_comparison(curves, "Which module is this docstring from?", "held-out accuracy").savefig(
        folder / "accuracy.png"
    )
    shares = runs["from the biLM"].model.mix.weights().tolist()
    figure = plot_layer_weights(shares)
    for target in (folder, folder / "classifier"):
        figure.savefig(target / "layer_weights.png")


def _write_cards(
    folder: Path, results: dict[str, float], runs: dict[str, Trainer], training: dict[str, str]
) -> None:
    data = (
        "CPython's language reference (`pydoc_data.topics`) and the docstrings of the standard library, as installed "
        "with Python under its licence (PSF-2.0); every fifth docstring, by its hash, is held out of both pre-training and fine-tuning."
    )
    scores = {
        "held-out perplexity (mean of both directions)": f"{results['perplexity']:.1f}",
        "docstring-to-module accuracy, from this biLM": f"{results['from the biLM']:.3f}",
        "docstring-to-module accuracy, same model from scratch": f"{results['from scratch']:.3f}",
    }
    common = {
        "data": data,
        "results": scores,
        "training": training,
        "license": "other",
        "language": "en",
        "dataset": "docstrings of Python's standard library, every fifth",
        "tags": ["quickstart"],
        "limits": "A small model of little text: a demonstration, not a product.",
    }
    bilm = CardFacts(
        name=folder.name,
        auto_class="AutoModel",
        summary="A small ELMo biLM of Python's documentation, made by `heirloom quickstart`.",
        pictures=["curves.png", "accuracy.png", "layer_weights.png"],
        task="feature-extraction",
        scores={"perplexity": results["perplexity"]},
        **common,
    )
    classifier = CardFacts(
        name=f"{folder.name}/classifier",
        auto_class="AutoModelForSequenceClassification",
        summary="Tells which module of Python's standard library a docstring comes from; made by `heirloom quickstart`.",
        pictures=["layer_weights.png"],
        task="text-classification",
        scores={"accuracy": results["from the biLM"]},
        **common,
    )
    write_card(folder, bilm)
    write_card(folder / "classifier", classifier)


def _print_results(
    console: Console, runs: dict[str, Trainer], results: dict[str, float], held_out: Dataset, seconds: float
):
    table = Table(
        title=f"\n{len(held_out):,} held-out docstrings, {seconds:.0f} s in all", title_justify="left"
    )
    for name in ("classifier", "accuracy", "macro F1", "loss"):
        table.add_column(name, justify="left" if name == "classifier" else "right")
    for name, run in runs.items():
        scores = [_last(run, f"eval_{key}") for key in ("accuracy", "macro_f1", "loss")]
        table.add_row(name, *[f"{score:.3f}" for score in scores])
    console.print(table)
    console.print(f"biLM perplexity on held-out documentation: {results['perplexity']:.1f}")
