"""`heirloom plot`: the pictures of a run, drawn again."""

from pathlib import Path
from typing import Annotated

import typer


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, also one that still trains.")],
    svg: Annotated[bool, typer.Option("--svg", help="SVG instead of PNG.")] = False,
) -> None:
    """Draw the curves of a run from its log, and what else its files hold: scores, layer weights, forgetting.

    Example: heirloom plot runs/quickstart
    """
    from ..sharing.run_plots import draw_run

    for picture in draw_run(run, "svg" if svg else "png"):
        print(f"drawn: {picture}")
