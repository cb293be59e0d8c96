"""How good a checkpoint is on a test set: translations against references, or the perplexity of a text.

Perplexity is exp(-sum / count) over all targets of all sentences, not a mean of means.
"""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from transformers import AutoConfig
from transformers.utils import logging

from ..training.data import FORMATS
from ..training.parallel_text import read_pairs
from ..training.text_metrics import TextScore, need_libraries, text_scores
from . import scoring
from .lines import is_blank, new_text_file, one_line, read_lines, refuse_existing
from .quiet import quiet_libraries
from .seq2seq_checkpoints import load as load_seq2seq
from .translation import CHUNK, Translator


def evaluate(
    checkpoint: str,
    data: Sequence[str],
    metrics: Sequence[str] = (),
    output: Path | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    lowercase: bool = False,
    tokenize: str = "13a",
    stem: bool = False,
    tokenized: bool = False,
    batch_size: int = 32,
    **options,
) -> tuple[list[TextScore], list[str]]:
    """Score an encoder-decoder's outputs against references, or a language model on a text.

    Args:
        checkpoint: folder or Hub name.
        data: of an encoder-decoder a file of sources and one of references, line by line, or one table with both; of a
            language model the texts.
        metrics: as in `text_scores`, by default BLEU and chrF; of a language model nothing but perplexity.
        output: a file for the outputs, must not exist; None keeps none. Not for language models.
        source_column: of a table; of a language model the texts' column.
        target_column: of a table.
        lowercase: as in `text_scores`.
        tokenize: likewise.
        stem: likewise.
        tokenized: a language model's words stand between spaces; by default its tokenizer splits the text.
        batch_size: texts at a time.
        **options: of `Translator`.

    Returns:
        Scores, and notes on what was cut, left out or unknown.

    Raises:
        FileExistsError: the output exists.
        FileNotFoundError: no such checkpoint, data or output folder.
        ImportError: a library that is not installed; told before any work.
        ValueError: other data than the checkpoint needs, files that are not aligned, or contradicting options.
    """
    if not _is_seq2seq(checkpoint):
        given = [name for name, value in options.items() if value is not None]
        given += [name for name, value in (("metrics", metrics), ("output", output)) if value]
        if given:
            raise ValueError(
                f"{checkpoint} is no encoder-decoder, of which only the perplexity is measured; found {', '.join(given)}. "
                "Leave them out."
            )
        return evaluate_language_model(checkpoint, data, source_column, tokenized, batch_size)
    metrics = list(metrics) or ["bleu", "chrf"]
    need_libraries(metrics)
    refuse_existing(output)
    with quiet_libraries():
        pairs = _pairs(data, source_column, target_column)
    sources, references = pairs["source"], pairs["target"]
    if all(map(is_blank, references)):
        raise ValueError(f"{' '.join(data)}: found no reference that is not blank; expected one a source.")
    with quiet_libraries():
        loaded = load_seq2seq(checkpoint)
    translator = Translator(*loaded, batch_size=batch_size, **options)
    outputs = []
    with logging.tqdm(total=len(sources), desc="Translating", unit=" sentences") as bar:
        for start in range(0, len(sources), CHUNK):
            chunk = sources[start : start + CHUNK]
            outputs += [one_line(best[0].text) for best in translator(chunk, start + 1, bar.update)]
    if output is not None:
        with new_text_file(output) as file:
            file.writelines(f"{text}\n" for text in outputs)
    scores = text_scores(outputs, references, metrics, lowercase, tokenize, stem)
    return scores, [f"{len(outputs):,} pairs", *_oddities(sources, references, metrics), *translator.notes()]


def evaluate_language_model(
    checkpoint: str,
    data: Sequence[str],
    text_column: str | None = None,
    tokenized: bool = False,
    batch_size: int = 32,
) -> tuple[list[TextScore], list[str]]:
    """The perplexity of texts, as `score_sentences` adds it up.

    Args:
        checkpoint: ELMo with its softmax, or an LSTM LM; folder or Hub name.
        data: whatever `open_shards` opens, all of it together.
        text_column: of tables.
        tokenized: words stand between spaces.
        batch_size: sentences at a time.

    Returns:
        One score a direction, and notes.

    Raises:
        FileNotFoundError: no such checkpoint or data.
        ValueError: another model, or no words.
    """
    lines = (line for source in data for line in read_lines(source, text_column) if not is_blank(line))
    with quiet_libraries():
        model, tokenizer = scoring.load(checkpoint)
    directions = ("forward", "backward") if model.config.model_type == "elmo" else ("forward",)
    sums, targets, sentences, unknown = dict.fromkeys(directions, 0.0), 0, 0, 0
    with logging.tqdm(desc="Scoring", unit=" sentences") as bar:
        while chunk := list(islice(lines, CHUNK)):
            rows = [line.split() for line in chunk] if tokenized else chunk
            for found in scoring.score_sentences(model, tokenizer, rows, batch_size):
                for name in directions:
                    sums[name] += getattr(found, name)
                targets, unknown = targets + found.targets, unknown + found.unknown
            sentences += len(chunk)
            bar.update(len(chunk))
    if not targets:
        raise ValueError(f"{' '.join(data)} holds no words. One sentence a line is expected.")
    words = targets - sentences
    return [
        TextScore(
            f"{name} perplexity" if len(directions) > 1 else "perplexity",
            math.exp(min(700.0, -total / targets)),
            f"exp of {-total / targets:.4f} nats a target, {targets:,} targets (words and ends)",
        )
        for name, total in sums.items()
    ], [f"{sentences:,} sentences", f"{unknown:,} of {words:,} words unknown ({unknown / max(1, words):.2%})"]


def _is_seq2seq(checkpoint: str) -> bool:
    """Whether to translate; anything else, folders without a config included, is left to `scoring.load` to judge."""
    path = Path(checkpoint)
    if (path.exists() or checkpoint.startswith((".", "/"))) and not (path / "config.json").is_file():
        return False
    return bool(getattr(AutoConfig.from_pretrained(checkpoint), "is_encoder_decoder", False))


def _pairs(data: Sequence[str], source_column: str | None, target_column: str | None):
    """Sources and references."""
    tables = [name for name in data if FORMATS.get(Path(name).suffix.lower(), "text") != "text"]
    is_table = len(data) == 1 and (tables or not Path(data[0]).exists())
    if not is_table and (len(data) != 2 or tables):
        raise ValueError(
            "an encoder-decoder is evaluated on a file of sources and a file of references, or on one table with columns of "
            f"both; found {', '.join(data)}."
        )
    if is_table:
        return read_pairs([], [], list(data), source_column, target_column, "test")
    if source_column or target_column:
        raise ValueError("columns are those of a table, found two files of lines. Leave the columns out.")
    return read_pairs([data[0]], [data[1]], what="test")


def _oddities(sources: Sequence[str], references: Sequence[str], metrics: Sequence[str]) -> list[str]:
    """What makes scores less telling than they seem."""
    found = []
    for name, texts in (("sources", sources), ("references", references)):
        if blank := sum(map(is_blank, texts)):
            found.append(f"blank {name}: {blank:,}")
    letters = sum(letter.isalpha() for text in references for letter in text)
    foreign = sum(letter.isalpha() and not letter.isascii() for text in references for letter in text)
    if "rouge" in metrics and foreign > 0.02 * letters:
        found.append(
            f"ROUGE reads only a-z and 0-9: {foreign / letters:.0%} of the references' letters are others"
        )
    return found


__all__ = ["evaluate", "evaluate_language_model"]
