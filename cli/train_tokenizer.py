"""`heirloom train-tokenizer`: a vocabulary for LSTM language models from your text."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Kind(StrEnum):
    """What the tokens are."""

    word = "word"
    bpe = "bpe"
    unigram = "unigram"


def train_tokenizer(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")],
    train_file: Annotated[
        list[str],
        typer.Option(
            metavar="F", help="Text, table, pattern, folder or Hub data set; may be given repeatedly."
        ),
    ],
    kind: Annotated[Kind, typer.Option(help="bpe: on bytes, knows any text.")] = Kind.word,
    vocab_size: Annotated[int, typer.Option(metavar="N", help="Ids at the most, 3 special.")] = 10_000,
    min_count: Annotated[int, typer.Option(metavar="N", help="Leave out rarer words, or bpe merges.")] = 1,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Read all text in lower case.")] = False,
    tokenized: Annotated[
        bool, typer.Option("--tokenized", help="Words stand between spaces (kind word).")
    ] = False,
    column: Annotated[str | None, typer.Option(metavar="C", help="Column of a table.")] = None,
) -> None:
    """Train a tokenizer for an LSTM language model, and tell how well it covers the text.

    Text is read as a stream. Equal texts and options give equal files.

    Example: heirloom train-tokenizer runs/words --train-file corpus.txt --kind word --vocab-size 50000
    """
    from ..conversion.saving import new_folder
    from ..sharing.quiet import quiet_libraries
    from ..training.text_files import open_shards
    from ..training.tokenizers import train_tokenizer as train

    with new_folder(out) as folder, quiet_libraries():
        rows = Rows(open_shards(train_file, column))
        tokenizer, coverage = train(rows, kind.value, vocab_size, min_count, lowercase, tokenized)
        tokenizer.save_pretrained(folder)
    table = {
        "vocabulary": f"{len(tokenizer):,}",
        "sentences": f"{coverage.rows:,}",
        "words": f"{coverage.words:,}",
        "tokens": f"{coverage.tokens:,}",
        "tokens per word": f"{coverage.tokens / coverage.words:.3f}",
        "<unk>": f"{coverage.unknown / coverage.tokens:.2%}",
    }
    for row in (table, table.values()):
        print(
            "  ".join(cell.rjust(max(map(len, pair))) for cell, pair in zip(row, table.items(), strict=True))
        )
    print(f"\nwritten: {out}")


class Rows:
    """The rows of several shards, to be read again and again."""

    def __init__(self, shards):
        self.shards = shards

    def __iter__(self):
        for shard in self.shards:
            yield from shard
