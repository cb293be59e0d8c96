"""What two language models are worth to a translator: the ablation of Ramachandran, Liu & Le (2017), section 4, in small.

    python benchmarks/translation.py OUT --language-models lm-en lm-de --data multi30k [--rows full ...] [--pairs 5000] [--seeds 1 2 3]
    python benchmarks/translation.py OUT

The folder DATA holds train, val and mono, each .en and .de. Each run is `heirloom train-seq2seq seq2seq-small` on a model that
`from_language_models` made, then beam search on the validation pairs; its result is a JSON file in OUT. Runs that have one are
left out, so a list may be cut short, or shared by two processes. Without language models it only prints the tables of OUT.
"""

import argparse
import json
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
from transformers import AutoConfig, AutoTokenizer, set_seed
from transformers.utils import logging

from heirloom import LstmSeq2SeqForConditionalGeneration
from heirloom.sharing.evaluation import evaluate
from heirloom.training.arguments import PretrainArguments
from heirloom.training.parallel_text import TokenizerPair
from heirloom.training.pretraining import pretrain
from heirloom.training.recipes import parse
from heirloom.training.seq2seq import train_seq2seq
from heirloom.training.seq2seq_arguments import Seq2SeqArguments

PARTS = ("embeddings", "lstm", "softmax")
RECIPE = "seq2seq-small"
UPPER_SIZE = 256
EPOCHS = {1_000: 16, 5_000: 12, 29_000: 4}
LM_BATCH = 16  # sentences of each language beside 32 pairs
PARALLEL_LM_EPOCHS = 10


@dataclass(frozen=True)
class Row:
    """One line of the ablation.

    Args:
        sides: which of the two begin as a language model.
        parts: what each takes of it.
        weight: of both language models' losses; 0 leaves their text away.
        parallel_lms: language models of the parallel text alone.
    """

    sides: tuple[str, ...] = ("source", "target")
    parts: tuple[str, ...] = PARTS
    weight: float = 1.0
    parallel_lms: bool = False


ROWS = {
    "full": Row(),
    "no pre-training": Row(sides=()),
    "no pre-training, no LM loss": Row(sides=(), weight=0.0),
    "no LM loss": Row(weight=0.0),
    "only the encoder": Row(sides=("source",)),
    "only the decoder": Row(sides=("target",)),
    "no softmax": Row(parts=("embeddings", "lstm")),
    "only embeddings": Row(parts=("embeddings",)),
    "LMs of the parallel text": Row(parallel_lms=True),
    "LM loss x 0.3": Row(weight=0.3),
    "LM loss x 0.1": Row(weight=0.1),
}
COLUMNS = {"bleu": "BLEU", "chrf": "chrF2", "perplexity": "dev perplexity"}
TEXTS = {"source": "source LM", "target": "target LM"}


def run(row: Row, pairs: int, seed: int, models: dict[str, str], data: Path, folder: Path) -> dict:
    """Make a model, train and score it.

    Args:
        row: what to do.
        pairs: of the training set, the first so many.
        seed: of what is random in the model, and of training.
        models: folders of the language models by side.
        data: folder of the files.
        folder: for checkpoints; thrown away by the caller.

    Returns:
        Scores and perplexities of the checkpoint with the best dev perplexity.
    """
    texts = {"source": data / "train.en", "target": data / "train.de"}
    if row.parallel_lms:
        models = {
            side: _language_model(models[side], text, pairs, seed, folder) for side, text in texts.items()
        }
    tokenizers = {side: AutoTokenizer.from_pretrained(name) for side, name in models.items()}
    set_seed(seed)
    model = LstmSeq2SeqForConditionalGeneration.from_language_models(
        *(models[side] if side in row.sides or not row.sides else None for side in models),
        parts=row.parts,
        source_tokenizer=tokenizers["source"],
        target_tokenizer=tokenizers["target"],
        upper_size=UPPER_SIZE,
    )
    model.save_pretrained(folder / "start")
    TokenizerPair(**tokenizers).save_pretrained(folder / "start")
    options = {
        "model": folder / "start",
        "output_dir": folder / "run",
        "seed": seed,
        "train_pairs": pairs,
        "train_source": texts["source"],
        "train_target": texts["target"],
        "validation_source": data / "val.en",
        "validation_target": data / "val.de",
        "num_train_epochs": EPOCHS[pairs],
        "early_stopping_patience": 99,
        "from_scratch": not row.sides,
        "disable_tqdm": True,
    }
    if row.weight:
        options |= {
            "source_monolingual": data / "mono.en",
            "target_monolingual": data / "mono.de",
            "source_lm_weight": row.weight,
            "target_lm_weight": row.weight,
            "source_monolingual_batch_size": LM_BATCH,
            "target_monolingual_batch_size": LM_BATCH,
        }
    else:
        options["forgetting"] = "none"
    start = time.time()
    trainer = train_seq2seq(*parse(RECIPE, _words(options), Seq2SeqArguments))
    seconds = time.time() - start
    log = trainer.state.log_history
    last = next(entry for entry in reversed(log) if "eval_perplexity" in entry)
    curve = [(entry["step"], entry["eval_perplexity"]) for entry in log if "eval_perplexity" in entry]
    scores, _ = evaluate(str(folder / "run"), [str(data / "val.en"), str(data / "val.de")], num_beams=4)
    return {
        "bleu": scores[0].score,
        "chrf": scores[1].score,
        "signature": scores[0].signature,
        "perplexity": last["eval_perplexity"],
        **{side: last[f"eval_{side}_lm_ppl"] for side in TEXTS},
        **{f"{side}_start": log[0][f"eval_{side}_lm_ppl"] for side in TEXTS},
        "updates": trainer.state.global_step,
        "curve": curve,
        "seconds": seconds,
    }


def _language_model(like: str, text: Path, pairs: int, seed: int, folder: Path) -> str:
    """A language model of a side of the pairs, of the same sizes and words as another."""
    out, part = folder / f"lm{text.suffix}", folder / f"part{text.suffix}"
    part.write_text("".join(text.read_text().splitlines(keepends=True)[:pairs]))
    config = AutoConfig.from_pretrained(like)
    options = {
        "tokenizer": like,
        "train_file": part,
        "validation_file": text.with_name(f"val{text.suffix}"),
        "output_dir": out,
        "batching": "sentences",
        "seed": seed,
        "max_words": 60,
        "embedding_size": config.embedding_size,
        "cell_size": config.cell_size,
        "tie_word_embeddings": False,
        "learning_rate": 0.002,
        "num_train_epochs": PARALLEL_LM_EPOCHS,
        "disable_tqdm": True,
    }
    pretrain(*parse("lstm-lm-small", _words(options), PretrainArguments))
    return str(out)


def _words(options: dict) -> list[str]:
    """Options as on the command line."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def table(out: Path, pairs: int) -> list[str]:
    """The lines of a Markdown table: mean and standard deviation over the seeds.

    Args:
        out: folder of the results.
        pairs: which of them.

    Returns:
        The lines, or none where there are no results.
    """
    lines = []
    for name in ROWS:
        files = sorted(out.glob(f"{pairs}_{_slug(name)}_*.json"))
        results = [json.loads(file.read_text()) for file in files]
        if not results:
            continue
        cells = [f"{name} ({len(results)})"]
        for column in COLUMNS:
            values = [result[column] for result in results]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        for side in TEXTS:
            now = statistics.mean(result[side] for result in results)
            start = statistics.mean(result[f"{side}_start"] for result in results)
            cells.append(f"{start:.1f} to {now:.1f}")
        cells.append(f"{statistics.mean(result['seconds'] for result in results):.0f} s")
        lines.append("| " + " | ".join(cells) + " |")
    if lines:
        heads = [f"{pairs:,} pairs, {EPOCHS[pairs]} epochs (seeds)", *COLUMNS.values()]
        heads += [f"{text} perplexity" for text in TEXTS.values()]
        lines = ["| " + " | ".join([*heads, "time"]) + " |", "|---" * (len(heads) + 1) + "|", *lines]
    return lines


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "-")


def main(arguments: list[str] | None = None) -> None:
    """Run what has no result yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--language-models", nargs=2, metavar=("SOURCE", "TARGET"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--pairs", type=int, nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if arguments.language_models:
        models = dict(zip(("source", "target"), arguments.language_models, strict=True))
        todo = [(s, p, r) for s in arguments.seeds for p in arguments.pairs for r in arguments.rows]
        for seed, pairs, name in todo:
            result = arguments.out / f"{pairs}_{_slug(name)}_{seed}.json"
            folder = result.with_suffix(".run")
            if result.exists():
                continue
            try:
                folder.mkdir()
            except FileExistsError:  # at work in another process, or cut short
                print(f"{folder.name} exists without a result: remove it to run that again")
                continue
            found = run(ROWS[name], pairs, seed, models, arguments.data, folder)
            result.write_text(json.dumps({"row": name, "pairs": pairs, "seed": seed, **found}, indent=1))
            shutil.rmtree(folder)
            print(result.name, {column: round(found[column], 2) for column in COLUMNS}, flush=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for pairs in EPOCHS:
        print("\n".join(["", *table(arguments.out, pairs)]))


if __name__ == "__main__":
    main()
