"""`heirloom evaluate`: BLEU, chrF and ROUGE of an encoder-decoder, perplexity of a language model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Metric(StrEnum):
    """What to measure."""

    bleu = "bleu"
    chrf = "chrf"
    rouge = "rouge"


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Encoder-decoder or language model: folder or name.")],
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Sources and references; a table; an LM's text.")
    ],
    metric: Annotated[list[Metric] | None, typer.Option(help="Default: bleu and chrf. Repeat it.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="F", help="File for what was generated.")] = None,
    source_column: Annotated[str | None, typer.Option(metavar="C", help="Of a table.")] = None,
    target_column: Annotated[str | None, typer.Option(metavar="C", help="Of a table.")] = None,
    num_beams: Annotated[int | None, typer.Option(metavar="N", min=1, help="As in translate.")] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Texts at a time.")] = 32,
    max_new_tokens: Annotated[int | None, typer.Option(metavar="N", min=1, help="As in translate.")] = None,
    length_penalty: Annotated[float | None, typer.Option(metavar="X", help="As in translate.")] = None,
    max_source_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="As in translate.")
    ] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="BLEU and chrF without case.")] = False,
    tokenize: Annotated[str, typer.Option(metavar="T", help="sacreBLEU's: 13a, none, intl, char.")] = "13a",
    stem: Annotated[bool, typer.Option("--stem", help="ROUGE of English stems.")] = False,
    tokenized: Annotated[
        bool, typer.Option("--tokenized", help="An LM's words stand between spaces.")
    ] = False,
) -> None:
    """Score an encoder-decoder on sources with references, or a language model on a text.

    Example: heirloom evaluate runs/en-de test.en test.de --num-beams 5
    """
    from ..sharing.evaluation import evaluate as run

    scores, notes = run(
        checkpoint,
        data,
        [name.value for name in metric or []],
        output,
        source_column,
        target_column,
        lowercase,
        tokenize,
        stem,
        tokenized,
        batch_size,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        length_penalty=length_penalty,
        max_source_tokens=max_source_tokens,
    )
    for score in scores:
        details = f"{score.details}  " if score.details else ""
        print(f"{score.name:<8} {score.score:>9.3f}  {details}{score.signature}")
    for note in notes:
        typer.echo(note, err=True)
