"""Training of several tasks on one language model: exact means of each task, its own lines in the log, scores by kind.

The loss of an optimizer step is `sum_t weight_t * mean over the step's items of task t`, plus the language model's own, however
the step is cut into batches and spread over processes.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import TrainingArguments

from ..objectives.multi_task import ContinualSchedule, MultiTaskDataset, TaskRows
from .joint_trainer import JointLossTrainer


class TaskScores:
    """Sums from which a task's scores are exact over all batches and processes.

    Args:
        kind: of the task.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.sums = torch.zeros(6 if kind == "regression" else 2, dtype=torch.float64)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch; logits and labels as in `MultiTaskModel`, -100 is left out."""
        known = labels != -100
        if self.kind == "regression":
            found, wanted = logits[known].double().cpu(), labels[known].double().cpu()
            pairs = torch.stack([found, wanted, found**2, wanted**2, found * wanted])
            self.sums += torch.cat([torch.tensor([len(found)]), pairs.sum(1)])
        else:
            hits = (logits.argmax(-1) == labels)[known]
            self.sums += torch.tensor([hits.sum(), hits.numel()])

    @staticmethod
    def of(kind: str, sums: Tensor) -> dict[str, float]:
        """The scores: `accuracy`, or for regression `pearson` (0 where either side is constant).

        Args:
            kind: of the task.
            sums: of all processes.

        Returns:
            Scores by name; none without labels.
        """
        if kind != "regression":
            hits, count = sums.tolist()
            return {"accuracy": hits / count} if count else {}
        count, x, y, xx, yy, xy = sums.tolist()
        if not count:
            return {}
        spread = math.sqrt(max(0.0, count * xx - x * x)) * math.sqrt(max(0.0, count * yy - y * y))
        return {"pearson": (count * xy - x * y) / spread if spread > 0 else 0.0}


class MultiTaskTrainer(JointLossTrainer):
    """Trainer for `MultiTaskModel`.

    Training logs `loss`, `task_loss` (the weighted sum), and of each task that came since the last log `{task}_loss`, a mean
    over the steps in which it came. Evaluation gives `eval_{task}_loss`, `eval_{task}_accuracy` or for regression
    `eval_{task}_pearson`, and `eval_loss`, the weighted sum of the tasks' losses without the language model's.

    Without `max_steps` a training takes `num_train_epochs` of the training set's `batches_per_epoch`.

    Args:
        train_dataset: a `MultiTaskDataset`.
        eval_dataset: rows by the tasks' names.

    Raises:
        ValueError: another kind of data set, an unknown task, sizes that differ from the arguments', or a training longer
            than its schedule.
    """

    def __init__(
        self,
        model,
        args: TrainingArguments,
        *more,
        train_dataset: MultiTaskDataset | None = None,
        eval_dataset: Mapping | None = None,
        **kwargs,
    ):
        names, args = model.config.task_names, copy.copy(args)
        args.remove_unused_columns = False  # collators read texts
        if train_dataset is not None:
            _check_training_set(train_dataset, names, args)
            args = _arguments_for(args, train_dataset)
            kwargs.setdefault(
                "steps_per_epoch", train_dataset.batches_per_epoch / args.gradient_accumulation_steps
            )
        if eval_dataset is not None:
            eval_dataset = _by_task(eval_dataset, names)
        super().__init__(model, args, *more, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self._task_items: Tensor | None = None
        self._task_sums: dict[str, float] = defaultdict(float)
        self._task_steps: dict[str, set[int]] = defaultdict(set)
        self._scores: TaskScores | None = None

    # Exact means

    def _get_num_items_in_batch(self, batch_samples, device):
        model = self._joint_model()
        counts = torch.zeros(len(model.config.tasks) + 1, dtype=torch.long)
        for batch in batch_samples:
            counts[:-1] += model.count_items_by_task(batch)
            counts[-1] += int(model.count_lm_items(batch))
        counts = counts.to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        self._task_items, self._lm_items = counts[:-1], counts[-1]
        return self._task_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in Trainer, with a count for each task; remembers each task's part for the log."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            for task, items in zip(self._tasks(), self._task_items.tolist(), strict=True):
                if items:
                    self._task_steps[task["name"]].add(self.state.global_step)
            if outputs.get("task_loss") is not None:
                task = self._tasks()[self._joint_model().task_of(inputs.get("task_id"))]
                self._task_sums[task["name"]] += outputs["task_loss"].detach().double() / task["weight"]
        return (loss, outputs) if return_outputs else loss

    def _tasks(self) -> list[dict]:
        return self._joint_model().config.tasks

    # Evaluation, one task after another

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        """As in Trainer.

        Args:
            eval_dataset: rows by the tasks' names, or a `TaskRows`; None means the trainer's own.
            ignore_keys: as in Trainer.
            metric_key_prefix: as in Trainer.

        Returns:
            The scores of all tasks and `{prefix}_loss`.
        """
        if isinstance(eval_dataset, Mapping):
            eval_dataset = _by_task(eval_dataset, self._joint_model().config.task_names)
        several = isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, Mapping)
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if several:
            weights = {f"{metric_key_prefix}_{task['name']}_loss": task["weight"] for task in self._tasks()}
            total = sum(weight * metrics[name] for name, weight in weights.items() if name in metrics)
            metrics[f"{metric_key_prefix}_loss"] = total
            self.log({f"{metric_key_prefix}_loss": total})
            # Early stopping looks here.
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _evaluated_loss(self, model, inputs):
        loss, outputs = super()._evaluated_loss(model, inputs)
        inputs = self._without_repeats(inputs)
        if self._scores is not None and "labels" in inputs:
            self._scores.add(outputs["logits"], inputs["labels"])
        return loss, outputs

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """As in Trainer, of one task, with its exact mean loss and scores."""
        rows = dataloader.dataset
        if not isinstance(rows, TaskRows):
            raise ValueError(
                f"evaluation needs rows by task or a TaskRows, found {type(rows).__name__}. Give {{'task name': rows}}."
            )
        task = next(task for task in self._tasks() if task["name"] == rows.task)
        self._scores = TaskScores(task["kind"])
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        scores, self._scores = self._scores, None
        metrics = output.metrics
        if (weighted := metrics.pop(f"{metric_key_prefix}_task_loss", None)) is not None:
            metrics[f"{metric_key_prefix}_loss"] = weighted / task["weight"]
        if f"{metric_key_prefix}_lm_loss" not in metrics:
            metrics.pop(f"{metric_key_prefix}_lm_weight", None)
        sums = self._over_processes(scores.sums)
        for name, value in TaskScores.of(task["kind"], sums).items():
            metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    # Log

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in Trainer, with each task's mean loss over the steps in which it came since the last log."""
        if self.steps_per_epoch:
            self.state.epoch = self.state.global_step / self.steps_per_epoch
        if "loss" in logs and self.state.global_step > self._last_logged_step:
            for name in self._joint_model().config.task_names:
                if steps := len(self._task_steps[name]):
                    logs[f"{name}_loss"] = float(self._over_processes(self._task_sums[name])) / steps
            self._task_sums.clear()
            self._task_steps.clear()
        super().log(logs, *args, **kwargs)


def _check_training_set(batches, names: list[str], args: TrainingArguments) -> None:
    if not isinstance(batches, MultiTaskDataset):
        raise ValueError(f"train_dataset must be a MultiTaskDataset, found {type(batches).__name__}.")
    if unknown := set(batches.sizes) - set(names):
        raise ValueError(
            f"train_dataset has rows of unknown tasks {sorted(unknown)}; the model's are {names}."
        )
    if (batches.rank, batches.world_size) != (args.process_index, args.world_size):
        raise ValueError(
            f"this is process {args.process_index} of {args.world_size}, but the MultiTaskDataset was made for rank "
            f"{batches.rank} of {batches.world_size}. Pass rank=args.process_index, world_size=args.world_size."
        )


def _arguments_for(args: TrainingArguments, batches: MultiTaskDataset) -> TrainingArguments:
    """A copy of the arguments with a number of steps, and with gradients that are shared after every batch."""
    args, accumulate = copy.copy(args), args.gradient_accumulation_steps
    if args.max_steps <= 0:
        args.max_steps = math.ceil(args.num_train_epochs * batches.batches_per_epoch / accumulate)
    if (
        isinstance(batches.sampling, ContinualSchedule)
        and args.max_steps * accumulate > batches.batches_per_epoch
    ):
        raise ValueError(
            f"the schedule has {batches.batches_per_epoch} batches, but {args.max_steps} steps of {accumulate} take more. "
            "Leave out max_steps and set num_train_epochs=1."
        )
    if args.world_size > 1 and accumulate > 1:
        # Otherwise a head that only an earlier batch of the step used would keep each process's own gradient.
        args.accelerator_config = copy.copy(args.accelerator_config)
        options = dict(args.accelerator_config.gradient_accumulation_kwargs or {})
        args.accelerator_config.gradient_accumulation_kwargs = options | {"sync_each_batch": True}
    return args


def _by_task(datasets, names: list[str]) -> dict[str, TaskRows]:
    if not isinstance(datasets, Mapping):
        raise ValueError(f"eval_dataset must be rows by task, found {type(datasets).__name__}.")
    if unknown := set(datasets) - set(names):
        raise ValueError(
            f"eval_dataset has rows of unknown tasks {sorted(unknown)}; the model's are {names}."
        )
    return {
        name: rows if isinstance(rows, TaskRows) else TaskRows(name, rows) for name, rows in datasets.items()
    }


__all__ = ["MultiTaskTrainer", "TaskScores"]
