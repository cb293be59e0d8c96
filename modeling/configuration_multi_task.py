"""MultiTaskConfig: one language model with a head for each of several tasks (MT-DNN, Liu et al. 2019, section 3).

The language model's config is nested, and the options of its own loss are those of `JointLossConfig`.
"""

import difflib
import re
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_joint_loss import JointLossConfig

# Outputs of a kind's head; None means that the task says how many classes it has.
KINDS: dict[str, int | None] = {
    "classification": None,
    "pair": None,
    "tokens": None,
    "regression": 1,
    "ranking": 1,
    "masked_lm": 0,
}
FIELDS: dict[str, Any] = {"name": None, "kind": None, "num_labels": None, "weight": 1.0, "dropout": None}
PAIR_FIELDS: dict[str, Any] = {"steps": 5, "prediction_dropout": 0.1}


def complete_task(task: dict) -> dict:
    """A task with all its fields, checked.

    Args:
        task: as in `MultiTaskConfig.tasks`.

    Returns:
        A new dict.

    Raises:
        ValueError: an unknown kind or field, or a number out of range.
    """
    name, kind = task.get("name"), task.get("kind")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"a task's name must be letters, digits, - and _, found {name!r} in {task}.")
    if kind not in KINDS:
        raise ValueError(f"kind of task {name!r} must be one of {sorted(KINDS)}, found {kind!r}.")
    known = FIELDS | (PAIR_FIELDS if kind == "pair" else {})
    for field in task:
        if field not in known:
            near = difflib.get_close_matches(field, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(known)}."
            raise ValueError(f"task {name!r} of kind {kind!r} has no field {field!r}. {hint}")
    full = known | task
    outputs = KINDS[kind]
    full["num_labels"] = outputs if full["num_labels"] is None else full["num_labels"]
    classes = full["num_labels"]
    fits = isinstance(classes, int) and (classes > 1 if outputs is None else classes == outputs)
    if not fits:
        wanted = "the number of its classes, 2 or more" if outputs is None else "left out: it has one output"
        raise ValueError(f"num_labels of {kind} task {name!r} must be {wanted}; found {classes!r}.")
    if not 0 < full["weight"] < float("inf"):
        raise ValueError(f"weight of task {name!r} must be positive, found {full['weight']}.")
    for rate in {"dropout", "prediction_dropout"} & full.keys():
        if full[rate] is not None and not 0 <= full[rate] < 1:
            raise ValueError(f"{rate} of task {name!r} must lie in [0, 1), found {full[rate]}.")
    if full.get("steps", 1) < 1:
        raise ValueError(f"steps of task {name!r} must be at least 1, found {full['steps']}.")
    return full


@strict
class MultiTaskConfig(JointLossConfig):
    """A language model and the tasks that share it; further arguments are those of `JointLossConfig`.

    Args:
        tasks: a list, whose places are the tasks' numbers. Each is a dict with `name`; `kind`: "classification" of a text,
            "pair" of two texts by a stochastic answer network, "tokens", "regression", "ranking" of candidates, or
            "masked_lm" by the language model's own head; `num_labels` for the first three; and optionally `weight` of its loss (1) and `dropout` on what its head reads
            (`classifier_dropout`); for "pair" also `steps` (5) and `prediction_dropout` (0.1) of the network.
        lm_loss_weight: of the language model's own loss; 0, as in MT-DNN, leaves it out.

    Raises:
        ValueError: an unknown kind or field of a task, a number out of range, or a name that comes twice.
    """

    model_type = "multi-task"
    keys_to_ignore_at_inference: ClassVar[list[str]] = list(JointLossConfig.keys_to_ignore_at_inference)

    tasks: list | None = None
    lm_loss_weight: float | int = 0.0

    def __post_init__(self, **kwargs):
        self.tasks = [complete_task(task) for task in self.tasks or []]
        if len(set(self.task_names)) < len(self.tasks):
            raise ValueError(f"tasks must have different names, found {self.task_names}.")
        super().__post_init__(**kwargs)

    @property
    def task_names(self) -> list[str]:
        """Names in the order of the tasks' numbers."""
        return [task["name"] for task in self.tasks]


__all__ = ["KINDS", "MultiTaskConfig", "complete_task"]
