"""`heirloom quickstart`: the whole story on text that every machine has."""

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    folder: Annotated[Path, typer.Argument(help="New folder for the run.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Show the whole story in minutes: pre-train, fine-tune, compare.

    Pre-trains a small biLM on Python's own documentation and fine-tunes a classifier with and without it. Takes a few minutes on two CPU cores, no network, no account. Writes a checkpoint that AutoModel loads, its
    tokenizer, a card, plots and log.jsonl, and both classifiers.

    Example: heirloom quickstart runs/quickstart
    """
    from ..sharing.quickstart import quickstart as run

    run(folder, seed)
