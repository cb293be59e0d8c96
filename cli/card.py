"""`heirloom card`: the card of a run, written again."""

from pathlib import Path
from typing import Annotated

import typer


def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    name: Annotated[str | None, typer.Option(metavar="USER/NAME", help="Its name on the Hub.")] = None,
    license: Annotated[str | None, typer.Option(metavar="ID", help="Such as mit or cc-by-4.0.")] = None,
    language: Annotated[str | None, typer.Option(metavar="CODE", help="Such as de.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Also over a card that somebody edited.")] = False,
) -> None:
    """Write a run's card (README.md) again, from what the run recorded in card.json.

    A card that somebody edited stays as it is, unless --force. What the options say is recorded too; other facts may be
    changed in card.json.

    Example: heirloom card runs/quickstart --license mit --language en
    """
    from ..sharing.cards import CARD, RESULTS, update_card
    from ..sharing.push_checks import card_warnings

    given = {"name": name, "license": license, "language": language}
    text = update_card(run, {key: value for key, value in given.items() if value is not None}, force)
    for file in (CARD, RESULTS):
        if (run / file).is_file():
            print(f"written: {run / file}")
    for warning in card_warnings(text, [file.name for file in run.iterdir()]):
        typer.echo(f"warning: {warning}", err=True)
