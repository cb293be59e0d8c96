"""Pictures of a run, drawn from its saved files. Each function returns a Figure; nothing is shown on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

COLOURS = ("#1f5a85", "#c8553d", "#588157", "#8d6a9f")
NAMES = {
    "loss": "training",
    "eval_loss": "held out",
    "forward_loss": "forward",
    "backward_loss": "backward",
    "task_loss": "task, training",
    "eval_task_loss": "task, held out",
    "lm_loss": "language model, training",
    "eval_lm_loss": "language model, held out",
}


def plot_curves(
    records: Sequence[dict], title: str = "", keys: Sequence[str] = ("loss", "eval_loss")
) -> Figure:
    """Losses over the steps of a run.

    Args:
        records: of `log.jsonl`.
        title: over the picture.
        keys: which numbers to draw; those that never occur are left out.

    Returns:
        The picture.

    Raises:
        ValueError: none of the keys occurs.
    """
    curves = {key: [(record["step"], record[key]) for record in records if key in record] for key in keys}
    curves = {key: points for key, points in curves.items() if points}
    if not curves:
        raise ValueError(f"the log has none of {list(keys)}. Was the run stopped before its first log?")
    figure, axes = _figure(title)
    for colour, (key, points) in zip(COLOURS * len(curves), curves.items(), strict=False):
        style = {"marker": "o", "markersize": 4} if len(points) < 20 else {}
        axes.plot(*zip(*points, strict=True), color=colour, label=NAMES.get(key, key), linewidth=1.6, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("nats a target")
    axes.legend(frameon=False)
    return figure


def plot_comparison(curves: dict[str, Sequence[tuple[float, float]]], title: str, ylabel: str) -> Figure:
    """Several runs' scores over their epochs.

    Args:
        curves: {run: [(epoch, score), ...]}.
        title: over the picture.
        ylabel: what the score is.

    Returns:
        The picture.
    """
    figure, axes = _figure(title)
    for colour, (name, points) in zip(COLOURS * len(curves), curves.items(), strict=False):
        axes.plot(
            *zip(*points, strict=True), color=colour, label=name, linewidth=1.6, marker="o", markersize=4
        )
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False)
    return figure


def plot_layer_weights(shares: Sequence[float], title: str = "What the task reads from each layer") -> Figure:
    """A bar for each layer's share in a scalar mix.

    Args:
        shares: softmax of the mix weights, token layer first.
        title: over the picture.

    Returns:
        The picture.
    """
    figure, axes = _figure(title)
    names = ["characters", *[f"LSTM {number}" for number in range(1, len(shares))]]
    bars = axes.bar(names, shares, color=COLOURS[0], width=0.6)
    axes.bar_label(bars, fmt="%.2f", padding=2)
    axes.axhline(1 / len(shares), color=COLOURS[1], linewidth=1, linestyle="--", label="before training")
    axes.set_ylabel("share of the mix")
    axes.set_ylim(0, max(shares) * 1.25)
    axes.legend(frameon=False)
    return figure


def plot_forgetting(
    records: Sequence[dict], title: str = "What the language model forgot and learnt"
) -> Figure:
    """How far each text's language-model loss moved from where it was before training.

    Args:
        records: of a forgetting report, with `step` and `forgetting_{name}_lm_loss`.
        title: over the picture.

    Returns:
        The picture; above the line a text is predicted worse than before.

    Raises:
        ValueError: no such numbers.
    """
    start, end = "forgetting_", "_lm_loss"
    keys = dict.fromkeys(k for record in records for k in record if k.startswith(start) and k.endswith(end))
    if not keys:
        raise ValueError(
            f"found no {start}*{end} in {len(records)} records. Train with the callback ForgettingReport."
        )
    figure, axes = _figure(title)
    axes.axhline(0, color="#999999", linewidth=1, linestyle="--")
    for colour, key in zip(COLOURS * len(keys), keys, strict=False):
        points = [(record["step"], record[key]) for record in records if key in record]
        before = points[0][1]
        steps, changes = zip(*((step, loss - before) for step, loss in points), strict=True)
        name = key.removeprefix(start).removesuffix(end)
        label = f"{name} ({before:.2f} before)"
        axes.plot(steps, changes, color=colour, label=label, linewidth=1.6, marker="o", markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel("change, nats a token")
    axes.legend(frameon=False)
    return figure


def plot_attention(
    weights: np.ndarray, source: Sequence[str], target: Sequence[str], title: str = ""
) -> Figure:
    """A heat map of what each target token looked at.

    Args:
        weights: (T, S), how much each target token looked at each source token.
        source: S tokens.
        target: T tokens.
        title: over the picture.

    Returns:
        The picture, larger for longer sentences.

    Raises:
        ValueError: other numbers of tokens than weights.
    """
    if weights.shape != (len(target), len(source)):
        raise ValueError(
            f"weights must be (target tokens, source tokens) = {(len(target), len(source))}, found {weights.shape}."
        )
    # A picture of a whole article would have more points than matplotlib draws.
    width, height = (min(40.0, max(2.6, 0.26 * len(tokens) + 1.2)) for tokens in (source, target))
    figure, axes = _figure(title, (width, height))
    axes.spines[:].set_visible(False)
    axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    # A dollar sign would begin a formula.
    axes.set_xticks(range(len(source)), [token.replace("$", r"\$") for token in source], rotation=90)
    axes.set_yticks(range(len(target)), [token.replace("$", r"\$") for token in target])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelsize=8)
    return figure


def _figure(title: str, size: tuple[float, float] = (5.2, 3.4)):
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, fontsize=11)
    return figure, axes
