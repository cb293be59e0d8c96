"""Contextual vectors for a file of sentences: resumable, in the layouts of the old tools or in newer ones.

Work proceeds in shards of sentences. Each shard is a file of its own in a folder `OUT.partial`, renamed into place when
it is complete; only when all shards are there is OUT written beside them and renamed in turn. So an interrupted run goes
on where it stopped, and a file called OUT is always whole.

Letters: n words of a sentence, P projection (vectors have 2 P), L layers.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers.utils import logging

from ..modeling.modeling_elmo import ElmoForSequenceClassification, ElmoForTokenClassification, ElmoModel
from ..training.checkpoints import load_whole, open_checkpoint
from ..training.data import column, read_table, split_words
from ..training.text_files import BYTE_ORDER_MARK, refuse_column
from .embedding_formats import WRITERS, FileFormat

Layers = Literal["all", "top", "average", "mix"]

SHARD = 1024, 2**14  # sentences and words of a shard; their vectors are in memory until it is written
WORDS = 4096  # padded words a batch, at the most


def embed_file(
    checkpoint: str,
    source: Path,
    target: Path,
    layers: Layers = "all",
    file_format: FileFormat = "hdf5",
    text_column: str | None = None,
    raw: bool = False,
    stateful_batch: int = 0,
    precision: str = "fp32",
) -> int:
    """Write the contextual vectors of every word of a file.

    Args:
        checkpoint: an ELMo checkpoint, folder or Hub name.
        source: .txt with a tokenised sentence a line, or .jsonl, .csv, .tsv, .parquet with a column of text or word lists.
        target: the file to write; must not exist.
        layers: "all" (L + 1, n, 2 P), or (n, 2 P): "top", "average" over layers, "mix" as a task head learned it.
        file_format: "hdf5" (AllenNLP's layout), "hdf5-bilm" (bilm-tf's), "parquet", "safetensors".
        text_column: column of the text.
        raw: split text by the tokenizer instead of at spaces.
        stateful_batch: 0 = sentences do not depend on one another. Otherwise as the old tools did: sentences in file
            order, this many at a time, states carried from batch to batch (bilm-tf 1; AllenNLP its batch size).
        precision: of the LSTM products, "fp32" or "bf16"; see `ElmoConfig`.

    Returns:
        Number of sentences.

    Raises:
        FileExistsError: the target exists.
        FileNotFoundError: no such checkpoint, input or output folder.
        ValueError: no ELMo checkpoint, no such column, or no mix in the checkpoint.
        OSError: the output cannot be written, or the disk is full; run the same command again to go on.
    """
    if target.exists():
        raise FileExistsError(f"{target} exists. Choose another name, or delete it.")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist. Create it first.")
    tokenizer, model, mix = load(checkpoint, layers, precision)
    sentences = Sentences(_read_rows(source, text_column), tokenizer, raw)
    partial = target.with_name(target.name + ".partial")
    options = [layers, stateful_batch, SHARD, model.config.to_json_string(), raw, _fingerprint(model)]
    key = sentences.fingerprint(json.dumps(options))
    with _named_errors(target):
        _prepare(partial, key)
        shards = _embed_shards(partial, sentences, tokenizer, model, mix, layers, stateful_batch)
        if file_format.startswith("hdf5"):
            _refuse_too_little_space(partial, shards, len(sentences))
        unfinished = partial / "output"
        WRITERS[file_format](unfinished, sentences, (load_file(shard) for shard in shards))
        os.replace(unfinished, target)
        shutil.rmtree(partial)
    return len(sentences)


class Sentences(Sequence):
    """The words of every row, split when they are asked for.

    Args:
        rows: texts or lists of words.
        tokenizer: splits a text if `raw`.
        raw: otherwise texts are split at spaces.
    """

    def __init__(self, rows: Sequence[str | list[str]], tokenizer, raw: bool):
        self.rows, self.tokenizer, self.raw = rows, tokenizer, raw

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int | slice) -> list:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        return split_words(self.rows[place], self.tokenizer, not self.raw)

    def fingerprint(self, options: str) -> str:
        """A hash of all rows and of what is done with them; a row that is no text is a ValueError."""
        digest = hashlib.sha256(options.encode())
        for number, row in enumerate(self.rows, 1):
            is_words = isinstance(row, list) and set(map(type, row)) <= {str}
            if not (row is None or isinstance(row, str) or is_words):
                raise ValueError(
                    f"row {number} of the input holds {type(row).__name__} {str(row)[:60]!r}; expected a text or a list "
                    "of words. Name another column with --column."
                )
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


class Lines(Sequence):
    """The lines of a UTF-8 file, read when they are asked for: eight bytes a line are in memory, whatever its length.

    Other line separators than \\n are characters of a sentence.

    Raises:
        ValueError: no UTF-8, or NUL bytes, which UTF-16 has and text has not.
    """

    def __init__(self, path: Path):
        edges, position = array("q", [0]), 0
        self.file = path.open("rb")
        for line in self.file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                place = position + error.start
                raise ValueError(f"{path} is not UTF-8 (byte {place}). Convert it first.") from error
            if b"\0" in line:
                place = position + line.index(b"\0")
                raise ValueError(
                    f"{path} is no text: it holds NUL bytes (byte {place}), as binary files and UTF-16 do. Convert it "
                    "to UTF-8 first."
                )
            if position == 0 and line.startswith(BYTE_ORDER_MARK):
                edges[0] = len(BYTE_ORDER_MARK)
            position += len(line)
            edges.append(position)
        self.edges = edges

    def __len__(self) -> int:
        return len(self.edges) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(number)
        self.file.seek(self.edges[number])
        return self.file.read(self.edges[number + 1] - self.edges[number]).decode("utf-8").removesuffix("\n")


def _read_rows(source: Path, text_column: str | None) -> Sequence:
    """A text's lines, blank ones included, or a table's column."""
    if source.suffix.lower() != ".txt" and not source.is_dir():
        table = read_table(str(source))
        return table[column(table, text_column, ("text", "sentence", "words", "tokens"), "text")]
    if not source.is_file():
        what = "is a folder" if source.is_dir() else "does not exist"
        raise FileNotFoundError(f"{source} {what}. Give a text with a sentence a line, or a table.")
    refuse_column(text_column, str(source))
    return Lines(source)


def load(checkpoint: str, layers: Layers = "all", precision: str = "fp32"):
    """The tokenizer, the biLM in evaluation mode and, for "mix", the learned mix of a task head.

    Args:
        checkpoint: folder or Hub name.
        layers: which layers will be asked for.
        precision: of the LSTM products.

    Returns:
        ElmoTokenizer, ElmoModel, ScalarMix or None.

    Raises:
        FileNotFoundError: a folder without a config.json, or no such folder.
        ValueError: another model, no learned mix, or weights that are not whole.
    """
    config, tokenizer = open_checkpoint(checkpoint)
    if layers != "mix":
        return tokenizer, load_whole(ElmoModel, checkpoint, precision=precision), None
    heads = {head.__name__: head for head in (ElmoForSequenceClassification, ElmoForTokenClassification)}
    kind = next((name for name in config.architectures or [] if name in heads), None)
    if kind is None:
        raise ValueError(
            f"{checkpoint} has no learned mix: its class is {config.architectures}. Use --layers average."
        )
    model = load_whole(heads[kind], checkpoint, precision=precision)
    return tokenizer, model.elmo, model.mix


def _prepare(partial: Path, key: str) -> None:
    """Keep the shards of an interrupted run of the same work; forget those of another."""
    note = partial / "key"
    if partial.exists() and not note.is_file():
        raise FileExistsError(
            f"{partial} is in the way and no work of heirloom's. Move it, or choose another OUT."
        )
    if partial.exists() and note.read_text() != key:
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    note.write_text(key)


def _embed_shards(partial, sentences, tokenizer, model, mix, layers, stateful_batch) -> list[Path]:
    """Make the missing shards; returns all of them in order."""
    shards, states = [], None  # a shard's name is the number of its first sentence
    with logging.tqdm(total=len(sentences), desc="Embedding", unit=" sentences") as bar:
        for start, part in _cut(sentences, stateful_batch or 1):
            shard = partial / f"{start:012d}.safetensors"
            carried = partial / f"{start:012d}.states"
            if shard.is_file() and (not stateful_batch or carried.is_file()):
                states = torch.load(carried, weights_only=True) if stateful_batch else None
                bar.update(len(part))
            else:
                batches = _in_file_order(part, stateful_batch) if stateful_batch else _by_length(part)
                vectors = {}
                for rows in batches:
                    words = [part[row] for row in rows]
                    arrays, new_states = _embed_batch(words, tokenizer, model, mix, layers, states)
                    states = new_states if stateful_batch else None
                    vectors |= {str(start + row): array for row, array in zip(rows, arrays, strict=True)}
                    bar.update(len(rows))
                if stateful_batch:
                    torch.save(states, carried)
                unfinished = shard.with_suffix(".unfinished")
                save_file(vectors, unfinished)
                os.replace(unfinished, shard)
            shards.append(shard)
    return shards


def _cut(sentences: Sentences, step: int) -> Iterator[tuple[int, list]]:
    """Where each shard begins and its sentences: whole batches of `step`, until there are enough sentences or words."""
    start, part, words = 0, [], 0
    for number in range(0, len(sentences), step):
        part += sentences[number : number + step]
        words += sum(len(sentence) for sentence in part[number - start :])
        if len(part) >= SHARD[0] or words >= SHARD[1]:
            yield start, part
            start, part, words = start + len(part), [], 0
    if part:
        yield start, part


def _embed_batch(words, tokenizer, model, mix, layers, states) -> tuple[list[np.ndarray], tuple]:
    """Vectors of each sentence, and the states after the batch."""
    batch = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt").to(model.device)
    boundaries = mix is not None and model.config.mix_layer_norm == "allennlp"
    with torch.inference_mode():
        outputs = model(**batch, states=states, output_hidden_states=True, keep_boundaries=boundaries)
        if layers == "mix":
            chosen = mix(outputs.hidden_states, outputs.attention_mask).unsqueeze(0)
        elif layers == "top":
            chosen = outputs.last_hidden_state.unsqueeze(0)
        else:
            chosen = torch.stack(outputs.hidden_states)  # (L + 1, B, T, 2 P)
        if layers == "average":
            chosen = chosen.mean(0, keepdim=True)
    chosen, first = chosen.float().cpu().numpy(), int(boundaries)
    arrays = [chosen[:, row, first : first + len(sentence)] for row, sentence in enumerate(words)]
    arrays = [np.ascontiguousarray(array if layers == "all" else array[0]) for array in arrays]
    return arrays, outputs.states


def _by_length(part: list[list[str]]) -> Iterator[list[int]]:
    """Batches of similar lengths, the longest first, each of at most WORDS padded words."""
    order, start = sorted(range(len(part)), key=lambda row: -len(part[row])), 0
    while start < len(order):
        size = max(1, WORDS // max(1, len(part[order[start]])))
        yield order[start : start + size]
        start += size


def _in_file_order(part: list[list[str]], size: int) -> Iterator[list[int]]:
    for start in range(0, len(part), size):
        yield list(range(start, min(start + size, len(part))))


def _fingerprint(model: ElmoModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _refuse_too_little_space(folder: Path, shards: list[Path], sentences: int) -> None:
    """HDF5's library crashes the process at its end after a write that failed, so ask before."""
    needed = sum(shard.stat().st_size for shard in shards) + 2048 * sentences + 2**20
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"No space left for {needed:,} bytes")


@contextlib.contextmanager
def _named_errors(target: Path):
    """Say which file could not be written, and that nothing is lost."""
    try:
        yield
    except Exception as error:
        text = str(error)
        full = (
            getattr(error, "errno", None) == errno.ENOSPC or "No space left" in text or "errno = 28" in text
        )
        if full:
            raise OSError(
                f"the disk is full: {target} was not written. Free some space and run the same command again; "
                "finished parts are kept."
            ) from error
        if isinstance(error, PermissionError):
            raise PermissionError(
                f"{target} cannot be written: {error.strerror}. Choose a folder that is yours."
            ) from error
        raise
