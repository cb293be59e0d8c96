"""The pictures of a run from the files in its folder; the model is not loaded."""

import json
import math
from pathlib import Path

from ..training.plots import plot_comparison, plot_curves, plot_forgetting, plot_layer_weights

LOSSES = ("task_loss", "eval_task_loss", "lm_loss", "eval_lm_loss"), ("loss", "eval_loss")
SCORES = {
    "eval_accuracy": "accuracy",
    "eval_macro_f1": "macro F1",
    "eval_entity_f1": "entity F1",
    "eval_pearson": "Pearson correlation",
    "eval_spearman": "Spearman correlation",
    "eval_bleu": "BLEU",
    "eval_chrf": "chrF2",
    "eval_rouge1": "ROUGE-1",
    "eval_rouge2": "ROUGE-2",
    "eval_rougeL": "ROUGE-L",
}
MIX = "mix.scalar_parameters"  # of a task head on ELMo


def draw_run(folder: Path | str, ending: str = "png") -> list[Path]:
    """Draw what the folder holds numbers for: losses, scores, layer weights, forgetting.

    Args:
        folder: of a run.
        ending: of the files, "png" or "svg".

    Returns:
        The files drawn, in the run's folder.

    Raises:
        FileNotFoundError: no such folder, or no log in it.
        ValueError: a log without losses, or a broken one.
    """
    folder = Path(folder)
    records = run_records(folder)
    joint, plain = LOSSES
    keys = joint if any(key in record for record in records for key in joint) else plain
    figures = {"curves": plot_curves(records, folder.resolve().name, keys)}
    curves = {
        name: [(record["epoch"], record[key]) for record in records if key in record and "epoch" in record]
        for key, name in SCORES.items()
    }
    if curves := {name: points for name, points in curves.items() if len(points) > 1}:
        figures["scores"] = plot_comparison(curves, folder.resolve().name, "on held-out text")
    if shares := _layer_shares(folder):
        figures["layer_weights"] = plot_layer_weights(shares)
    if (folder / "forgetting.json").is_file():
        figures["forgetting"] = plot_forgetting(_read(folder / "forgetting.json").get("records", []))
    drawn = [folder / f"{name}.{ending}" for name in figures]
    for figure, file in zip(figures.values(), drawn, strict=True):
        figure.savefig(file)
    return drawn


def run_records(folder: Path) -> list[dict]:
    """What a run logged: `log.jsonl`, or Trainer's `trainer_state.json`, the folder's or its newest checkpoint's.

    Args:
        folder: of the run. It may still train: a line that is not whole yet is left out.

    Returns:
        One dict a record, oldest first.

    Raises:
        FileNotFoundError: no such folder, or no log in it.
        ValueError: a broken log.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"expected the folder of a run, found no folder {folder}.")
    if (folder / "log.jsonl").is_file():
        try:
            lines = (folder / "log.jsonl").read_text(encoding="utf-8").split("\n")
            records = [json.loads(line) for line in lines[:-1] if line]  # each whole line ends in a line end
            if strange := [record for record in records if not isinstance(record, dict)]:
                raise ValueError(f"found {str(strange[0])[:60]}")
            return records
        except ValueError as error:
            raise ValueError(f"{folder / 'log.jsonl'} must hold one JSON record a line ({error}).") from error
    states = [folder / "trainer_state.json", *folder.glob("checkpoint-*/trainer_state.json")]
    found = [_read(file) for file in states if file.is_file()]
    if not found:
        raise FileNotFoundError(
            f"expected log.jsonl or trainer_state.json in {folder}, found neither. Give the folder of a run."
        )
    return max(found, key=lambda state: state.get("global_step", 0)).get("log_history", [])


def _read(file: Path) -> dict:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}).") from error


def _layer_shares(folder: Path) -> list[float]:
    """Softmax of a head's mix weights; [] if there is no head with a mix."""
    from safetensors import safe_open

    if not (folder / "model.safetensors").is_file():
        return []
    with safe_open(folder / "model.safetensors", "numpy") as file:
        weights = file.get_tensor(MIX).tolist() if MIX in file.keys() else []  # noqa: SIM118 (no dict)
    kept = _read(folder / "config.json").get("mix_layers") if (folder / "config.json").is_file() else None
    kept = range(len(weights)) if kept is None else kept
    top = max((weights[layer] for layer in kept), default=0)
    parts = [math.exp(weight - top) if layer in kept else 0.0 for layer, weight in enumerate(weights)]
    return [part / sum(parts) for part in parts]


__all__ = ["draw_run", "run_records"]
