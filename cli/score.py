"""`heirloom score`: log-likelihoods and perplexity of sentences."""

from pathlib import Path
from typing import Annotated

import typer


def score(
    checkpoint: Annotated[str, typer.Argument(help="ELMo with its softmax, or LSTM LM: folder or Hub name.")],
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="A sentence a line; or a table; - for standard input.")
    ],
    output: Annotated[
        Path | None, typer.Option(metavar="F.tsv", help="File to write; default: standard output.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Sentences at a time.")] = 32,
    tokenized: Annotated[
        bool, typer.Option("--tokenized", help="Words stand between spaces; default: split the text.")
    ] = False,
    column: Annotated[str | None, typer.Option(metavar="C", help="Column of a table.")] = None,
) -> None:
    """Tell how well a language model expects each sentence, in nats, and its perplexity on all.

    Every line gives one of the table: forward, backward and pseudo log-likelihood (the product of both directions),
    targets (words and the end), unknown words, sentence. Blank lines have no targets. An LSTM LM only reads forward.

    Example: heirloom score elmo-original sentences.txt --output scores.tsv
    """
    from ..sharing.scoring import score_file

    for line in score_file(checkpoint, text, output, batch_size, tokenized, column):
        typer.echo(line, err=True)
