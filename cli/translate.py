"""`heirloom translate`: lines through an encoder-decoder."""

from pathlib import Path
from typing import Annotated

import typer


def translate(
    checkpoint: Annotated[str, typer.Argument(help="Encoder-decoder, ours or BART, T5 ...: folder or name.")],
    source: Annotated[
        str, typer.Argument(metavar="[INPUT]", help="A source a line; or a table; - or none: standard input.")
    ] = "-",
    output: Annotated[Path | None, typer.Option(metavar="F", help="File; default: standard output.")] = None,
    num_beams: Annotated[int | None, typer.Option(metavar="N", min=1, help="As the checkpoint says.")] = None,
    n_best: Annotated[int, typer.Option(metavar="N", min=1, help="Lines a source, best first.")] = 1,
    scores: Annotated[
        bool, typer.Option("--scores", help="Log-likelihood and a tab before each line.")
    ] = False,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Sources at a time.")] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Of a target; or as the checkpoint says, or 256.")
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(metavar="X", help="Divide scores by length^X; as the checkpoint says, or 1."),
    ] = None,
    max_source_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Cut longer sources; or they fail.")
    ] = None,
    column: Annotated[str | None, typer.Option(metavar="C", help="Column of a table.")] = None,
    attention: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Heat maps of the first five sentences.")
    ] = None,
) -> None:
    """Translate, or summarise, every line; order and blank lines are kept.

    Example: heirloom translate runs/en-de test.en --output test.de --num-beams 5
    """
    from ..sharing.translation import translate_file

    lines = translate_file(
        checkpoint,
        source,
        output,
        column,
        attention,
        num_beams=num_beams,
        n_best=n_best,
        scores=scores,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
        max_source_tokens=max_source_tokens,
    )
    for line in lines:
        typer.echo(line, err=True)
