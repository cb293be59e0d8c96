"""`heirloom embed`: contextual vectors for a file."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Layers(StrEnum):
    """Which layers to write."""

    all = "all"
    top = "top"
    average = "average"
    mix = "mix"


class Precision(StrEnum):
    """Of the LSTM products."""

    fp32 = "fp32"
    bf16 = "bf16"


class FileFormat(StrEnum):
    """What to write."""

    hdf5 = "hdf5"
    hdf5_bilm = "hdf5-bilm"
    parquet = "parquet"
    safetensors = "safetensors"


def embed(
    checkpoint: Annotated[str, typer.Argument(help="ELMo checkpoint: folder or Hub name.")],
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help=".txt, a tokenised sentence a line; or a table.")
    ],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="File to write.")],
    layers: Annotated[Layers, typer.Option(help="mix: as a task head learned it.")] = Layers.all,
    file_format: Annotated[
        FileFormat, typer.Option("--format", help="hdf5 is AllenNLP's layout.")
    ] = FileFormat.hdf5,
    column: Annotated[
        str | None, typer.Option(help="Column of a .jsonl, .csv, .tsv or .parquet INPUT.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Split the text into words; default: at spaces.")
    ] = False,
    stateful_batch: Annotated[
        int, typer.Option(metavar="N", min=0, help="Carry states over batches of N, as the old tools did.")
    ] = 0,
    precision: Annotated[
        Precision, typer.Option(help="bf16 is faster where the CPU can, with errors near 0.5 %.")
    ] = Precision.fp32,
) -> None:
    """Write the contextual vectors of every word of a file.

    Interrupted, the same command goes on where it stopped.

    Example: heirloom embed runs/quickstart sentences.txt vectors.hdf5 --layers average
    """
    from ..sharing.embedding import embed_file

    count = embed_file(
        checkpoint,
        source,
        target,
        layers.value,
        file_format.value,
        column,
        raw,
        stateful_batch,
        precision.value,
    )
    print(f"{count:,} sentences in {target}")
