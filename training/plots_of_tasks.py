"""Pictures of a task's predictions. Each function returns a Figure; nothing is shown on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERS = 20  # classes whose cells have room for a count


def plot_confusion(names: Sequence[str], counts: Sequence[Sequence[int]], title: str = "") -> Figure:
    """How often each class was taken for each other one; shades are shares of a gold class's rows.

    Args:
        names: K classes.
        counts: (K, K), gold by predicted.
        title: over the picture.

    Returns:
        The picture, larger for more classes.

    Raises:
        ValueError: other numbers of classes than counts.
    """
    from matplotlib.figure import Figure

    if [len(row) for row in counts] != [len(names)] * len(names):
        raise ValueError(
            f"counts must be ({len(names)}, {len(names)}), one row and column a class, found rows of "
            f"{[len(row) for row in counts]}."
        )
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    longest = max(map(len, names))
    side = max(2.4, 0.42 * len(names))
    margin = 0.6 + 0.075 * min(longest, 30)
    figure = Figure(figsize=(side + margin, side + margin), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= MOST_NUMBERS:
        for row, line in enumerate(counts):
            for place, count in enumerate(line):
                if count:
                    colour = "white" if shares[row][place] > 0.5 else "black"
                    axes.text(place, row, count, ha="center", va="center", color=colour, fontsize=7)
    # A dollar sign would begin a formula.
    shown = [name.replace("$", r"\$") for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), shown, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("gold")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)
    return figure


__all__ = ["plot_confusion"]
