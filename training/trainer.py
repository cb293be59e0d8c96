"""A thin Trainer for language models: it logs every named part of a loss, and its means are means over targets.

A model returns its parts beside `loss` under names that end in `_loss`. A model whose targets are not just its labels
says how many there are in `count_targets(labels)`.
"""

import json
import math
from collections import defaultdict
from pathlib import Path

import torch
from transformers import ProgressCallback, Trainer, TrainerCallback


class PretrainingTrainer(Trainer):
    """Trainer with the parts of the loss in its log and an evaluation whose `exp` is the perplexity.

    Transformers' own `eval_loss` is a mean of batch means; here it is the sum over all targets by their number, in nats.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._train_parts: dict[str, float] = defaultdict(float)
        self._eval_sums: dict[str, float] = defaultdict(float)
        self._eval_targets = 0.0
        self._last_logged_step = 0

    def _count(self, batch: dict) -> torch.Tensor:
        model = self.accelerator.unwrap_model(self.model)
        labels = batch["labels"]
        return model.count_targets(labels) if hasattr(model, "count_targets") else labels.ne(-100).sum()

    def _get_num_items_in_batch(self, batch_samples, device):
        count = sum(self._count(batch) for batch in batch_samples).to(device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in Trainer; remembers the parts for the log."""
        if not model.training:
            return self._evaluated_loss(model, inputs, return_outputs)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        for name, part in outputs.items():
            if name.endswith("_loss") and part is not None:
                self._train_parts[name] += part.detach()
        return (loss, outputs) if return_outputs else loss

    def _evaluated_loss(self, model, inputs, return_outputs):
        kept = self._rows_of_their_own(len(inputs["labels"]))
        inputs = {name: value[: max(1, kept)] for name, value in inputs.items()}
        loss, outputs = super().compute_loss(model, inputs, True)
        targets = self._count(inputs) if kept else 0
        for name, part in outputs.items():
            if (name == "loss" or name.endswith("_loss")) and part is not None:
                self._eval_sums[name] += part.detach() * targets
        self._eval_targets += targets
        return (loss, outputs) if return_outputs else loss

    def _rows_of_their_own(self, rows: int) -> int:
        """Rows of this process's batch that are not repeated to give every process as many."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return rows
        return min(max(state.remainder - self.args.process_index * rows, 0), rows)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in Trainer, with the mean of every part since the last log."""
        steps = self.state.global_step - self._last_logged_step
        if "loss" in logs and self._train_parts and steps:
            for name, total in self._train_parts.items():
                logs[name] = float(self._over_processes(total)) / steps
            self._train_parts.clear()
            self._last_logged_step = self.state.global_step
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """As in Trainer, with exact means and the perplexity exp(loss)."""
        self._eval_sums.clear()
        self._eval_targets = 0.0
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self._eval_sums:
            targets = float(self._over_processes(self._eval_targets))
            for name, total in self._eval_sums.items():
                output.metrics[f"{metric_key_prefix}_{name}"] = float(self._over_processes(total)) / targets
            nats = output.metrics[f"{metric_key_prefix}_loss"]
            output.metrics[f"{metric_key_prefix}_perplexity"] = math.exp(min(nats, 700.0))
        return output

    def _over_processes(self, value) -> torch.Tensor:
        value = torch.as_tensor(value, dtype=torch.float32, device=self.args.device)
        return self.accelerator.reduce(value, "sum") if self.args.world_size > 1 else value


class JsonLinesLog(TrainerCallback):
    """Writes each log record as a line of `log.jsonl` in the run's folder; plots read it."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Start a new file unless the run is resumed."""
        if state.is_world_process_zero:
            path = Path(args.output_dir)
            path.mkdir(parents=True, exist_ok=True)
            if state.global_step == 0:
                (path / "log.jsonl").write_text("")

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append a record: the step, the epoch and every number logged."""
        if state.is_world_process_zero and logs:
            record = {"step": state.global_step} | logs
            with open(Path(args.output_dir) / "log.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")


class LossBar(ProgressCallback):
    """Trainer's progress bar with the latest losses at its end, instead of a printed dict for every log."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the losses behind the bar."""
        if state.is_world_process_zero and self.training_bar is not None:
            shown = {
                name: f"{logs[name]:.3f}" for name in ("loss", "eval_loss", "eval_accuracy") if name in logs
            }
            if shown:
                self.training_bar.set_postfix(shown)


def train_evaluate_save(trainer: Trainer) -> None:
    """Train with the log file and the quiet bar, from `resume_from_checkpoint` if that is set; evaluate; save.

    Args:
        trainer: ready to train; the checkpoint lands in its `output_dir`.
    """
    trainer.add_callback(JsonLinesLog())
    if not trainer.args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(LossBar())
    resume = trainer.args.resume_from_checkpoint
    trainer.train(resume_from_checkpoint=True if str(resume).lower() == "true" else resume)
    trainer.evaluate()
    trainer.save_model()


def read_log(folder: Path) -> list[dict]:
    """The records of a run's `log.jsonl`, oldest first.

    Args:
        folder: the run's folder.

    Returns:
        One dict a record.

    Raises:
        FileNotFoundError: the folder holds no log.
    """
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no log.jsonl. Give the folder of a run that heirloom trained."
        )
    return [json.loads(line) for line in path.read_text().splitlines()]
