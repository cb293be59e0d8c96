"""A thin Trainer for language models: it logs every named part of a loss, and its means are means over targets.

A model returns its parts beside `loss` under names that end in `_loss`. A model whose targets are not just its labels
says how many there are in `count_targets(labels)`.
"""

import json
import math
import time
from collections import defaultdict
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import ProgressCallback, Trainer, TrainerCallback

from ..objectives.streams import EndlessBatches, Stream
from .recurrence import SegmentRecurrence, recurrent_name
from .resuming import FILES, MarkWholeCheckpoints, last_whole_checkpoint, load_position, save_position
from .shareable_arguments import ShareableState, shareable_arguments

DRAFT = "the information the Trainer had access to"  # a comment in every card of Trainer's


class PretrainingTrainer(Trainer):
    """Trainer with the parts of the loss in its log and an evaluation whose `exp` is the perplexity.

    Transformers' own `eval_loss` is a mean of batch means; here it is the sum over all targets by their number, in nats.

    Data sets of `objectives.streams` hand out whole batches. Over a `Stream`, the model's recurrent state goes from each
    batch to the next, in training and, apart from it, in evaluation; a checkpoint keeps it and the place in the text.

    Args:
        steps_per_epoch: optimizer steps of one pass over a text without end, for the log's `epoch`.
    """

    def __init__(self, *args, steps_per_epoch: float | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps_per_epoch = steps_per_epoch
        self._train_parts: dict[str, float] = defaultdict(float)
        self._eval_sums: dict[str, float] = defaultdict(float)
        self._eval_targets = 0.0
        self._last_logged_step = 0
        self._seen_batches = 0
        self._targets, self._seconds, self._clock = 0.0, 0.0, time.perf_counter()
        self._recurrence: SegmentRecurrence | None = None  # of the series of batches that is running
        self.add_callback(ShareableState())
        self.add_callback(MarkWholeCheckpoints())

    # Texts without end

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As in Trainer; `True` resumes from the newest checkpoint that is whole.

        Raises:
            FileNotFoundError: no whole checkpoint.
            ValueError: a checkpoint that was made on another text, or with other sizes.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
        self._seen_batches, self._last_logged_step = 0, 0
        self._train_parts.clear()
        if (
            resume_from_checkpoint
            and (state := Path(resume_from_checkpoint) / "trainer_state.json").is_file()
        ):
            self._last_logged_step = json.loads(state.read_text())["global_step"]
        self._recurrence = self._carried(self.train_dataset)
        if resume_from_checkpoint and self._has_a_place():
            self._restore(Path(resume_from_checkpoint))
        if isinstance(self.train_dataset, EndlessBatches):
            self.args.ignore_data_skip = (
                True  # a text goes to its place by itself, without making the batches
            )
            self.train_dataset.start = self._seen_batches
        self._clock = time.perf_counter()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _has_a_place(self) -> bool:
        """Whether what a batch means depends on the batches before it."""
        return self._recurrence is not None or isinstance(self.train_dataset, EndlessBatches)

    def _restore(self, checkpoint: Path) -> None:
        self._seen_batches = load_position(self.train_dataset, self.args.world_size, checkpoint)
        if self._recurrence is not None:
            self._recurrence.load(checkpoint / self._state_file(), self.args.device)

    def _state_file(self) -> str:
        return f"recurrent_state_{self.args.process_index}.safetensors"

    def _save_checkpoint(self, model, trial):
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # The list of an earlier try must not vouch for half of this one.
            (folder / FILES).unlink(missing_ok=True)
        if self._has_a_place():
            folder.mkdir(parents=True, exist_ok=True)
            if self.args.should_save:
                save_position(self.train_dataset, self._seen_batches, self.args.world_size, folder)
            if self._recurrence is not None:
                self._recurrence.save(folder / self._state_file())
        super()._save_checkpoint(model, trial)

    # Both write `training_args.bin`, which goes to the Hub.

    def _save(self, *args, **kwargs):
        with shareable_arguments(self):
            super()._save(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder):
        with shareable_arguments(self):
            super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(self, *args, **kwargs) -> None:
        """As in Trainer, unless the run's folder has a card that is no draft of Trainer's: that one stays."""
        card = Path(self.args.output_dir) / "README.md"
        if not card.is_file() or DRAFT in card.read_text(encoding="utf-8"):
            super().create_model_card(*args, **kwargs)

    def _carried(self, dataset) -> SegmentRecurrence | None:
        """What carries the state over a data set's batches; None where each batch stands alone."""
        name = recurrent_name(self.accelerator.unwrap_model(self.model))
        return SegmentRecurrence(name) if isinstance(dataset, Stream) and name else None

    def get_train_dataloader(self) -> DataLoader:
        """As in Trainer; endless batches come as they are."""
        if isinstance(self.train_dataset, EndlessBatches):
            return self._loader(self.train_dataset)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As in Trainer; endless batches come as they are."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, EndlessBatches):
            return self._loader(dataset)
        return super().get_eval_dataloader(eval_dataset)

    def _loader(self, batches: EndlessBatches) -> DataLoader:
        # Each process makes its own rows, so accelerate has nothing to deal out. A generator of its own leaves the
        # global random numbers alone, without which a resumed training would have other dropout.
        return DataLoader(
            batches,
            batch_size=None,
            num_workers=self.args.dataloader_num_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),
        )

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        """As in Trainer; `optim_args` may also set Adagrad's `initial_accumulator_value`."""
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if optimizer is torch.optim.Adagrad:
            given = dict(
                pair.split("=") for pair in (args.optim_args or "").replace(" ", "").split(",") if pair
            )
            names = "initial_accumulator_value", "eps", "lr_decay"
            options |= {name: float(given[name]) for name in names if name in given}
        return optimizer, options

    # Exact means

    def _count(self, batch: dict) -> torch.Tensor:
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "count_targets"):
            return model.count_targets(batch)
        return batch["labels"].ne(-100).sum()

    def _get_num_items_in_batch(self, batch_samples, device):
        count = sum(self._count(batch) for batch in batch_samples).to(device)
        count = self.accelerator.gather(count).sum() if self.args.world_size > 1 else count
        self._targets += count
        return count

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in Trainer; remembers the parts for the log, and carries the state over a stream."""
        if self._recurrence is not None:
            inputs = self._recurrence.feed(inputs)
        if model.training:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            self._seen_batches += 1
            for name, part in outputs.items():
                if name.endswith("_loss") and part is not None:
                    self._train_parts[name] += part.detach()
        else:
            loss, outputs = self._evaluated_loss(model, inputs)
        if self._recurrence is not None:
            self._recurrence.keep(outputs)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As in Trainer; where only the loss is wanted, targets may have any name."""
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def _evaluated_loss(self, model, inputs):
        rows = len(next(iter(inputs.values())))
        kept = rows if self._recurrence is not None else self._rows_of_their_own(rows)
        if kept < rows:
            inputs = {name: value[: max(1, kept)] for name, value in inputs.items()}
        targets = self._count(inputs) if kept else 0
        counts = hasattr(self.accelerator.unwrap_model(self.model), "count_targets")
        # A mean over one item is a sum; both directions of a biLM then count each target once.
        loss, outputs = super().compute_loss(
            model, inputs | ({"num_items_in_batch": 1} if counts else {}), True
        )
        factor = (1 if kept else 0) if counts else targets
        for name, part in outputs.items():
            if (name == "loss" or name.endswith("_loss")) and part is not None:
                self._eval_sums[name] += part.detach().double() * factor
        self._eval_targets += targets
        return loss, outputs

    def _rows_of_their_own(self, rows: int) -> int:
        """Rows of this process's batch that are not repeated to give every process as many."""
        state = self.accelerator.gradient_state
        if self.args.world_size == 1 or not state.end_of_dataloader or state.remainder <= 0:
            return rows
        return min(max(state.remainder - self.args.process_index * rows, 0), rows)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """As in Trainer, with exact means and the perplexity exp(loss)."""
        self._seconds += time.perf_counter() - self._clock
        self._eval_sums.clear()
        self._eval_targets = 0.0
        training, self._recurrence = self._recurrence, self._carried(dataloader.dataset)
        try:
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        finally:
            self._recurrence = training
        if self._eval_sums:
            targets = float(self._over_processes(self._eval_targets))
            for name, total in self._eval_sums.items():
                output.metrics[f"{metric_key_prefix}_{name}"] = float(self._over_processes(total)) / max(
                    targets, 1
                )
            output.metrics[f"{metric_key_prefix}_perplexity"] = perplexity(
                output.metrics[f"{metric_key_prefix}_loss"]
            )
        self._clock = time.perf_counter()
        return output

    # Log

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in Trainer, with the mean of every part since the last log, targets a second, and the epoch of the text.

        A sampled loss stands under its own name and has no perplexity.
        """
        steps = self.state.global_step - self._last_logged_step
        if self.steps_per_epoch:
            self.state.epoch = self.state.global_step / self.steps_per_epoch
        if "loss" in logs and steps:
            for name, total in self._train_parts.items():
                logs[name] = float(self._over_processes(total)) / steps
            if (nats := self._nats_of_perplexity(logs)) is not None:
                logs["perplexity"] = perplexity(nats)
            seconds = self._seconds + time.perf_counter() - self._clock
            logs["tokens_per_second"] = round(float(self._targets) / max(seconds, 1e-9))
            self._train_parts.clear()
            self._targets, self._seconds, self._clock = 0.0, 0.0, time.perf_counter()
            self._last_logged_step = self.state.global_step
        super().log(logs, *args, **kwargs)

    def _nats_of_perplexity(self, logs: dict[str, float]) -> float | None:
        """Which loss of a training log is one of all words; None if none is."""
        return None if "sampled_loss" in logs else logs["loss"]

    def _over_processes(self, value) -> torch.Tensor:
        value = torch.as_tensor(value, dtype=torch.float64, device=self.args.device)
        return self.accelerator.reduce(value, "sum") if self.args.world_size > 1 else value


def perplexity(nats: float) -> float:
    """exp(nats), finite."""
    return math.exp(min(nats, 700.0))


class JsonLinesLog(TrainerCallback):
    """Writes each log record as a line of `log.jsonl` in the run's folder; plots read it."""

    def on_train_begin(self, args, state, control, **kwargs):
        """Start a new file; a resumed run keeps what was logged up to its checkpoint."""
        if state.is_world_process_zero:
            path = Path(args.output_dir)
            path.mkdir(parents=True, exist_ok=True)
            lines = (path / "log.jsonl").read_text().splitlines() if (path / "log.jsonl").is_file() else []
            kept = [line for line in lines if _step(line) <= state.global_step] if state.global_step else []
            (path / "log.jsonl").write_text("".join(f"{line}\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append a record: the step, the epoch and every number logged."""
        if state.is_world_process_zero and logs:
            record = {"step": state.global_step} | logs
            with open(Path(args.output_dir) / "log.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")


def _step(line: str) -> float:
    """The step of a log's line; infinite for a line that was cut when the process died."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


class LossBar(ProgressCallback):
    """Trainer's progress bar with the latest losses at its end, instead of a printed dict for every log."""

    SHOWN = (
        ("sampled_loss", "sampled loss", ".3f"),
        ("loss", "loss", ".3f"),
        ("perplexity", "perplexity", ".1f"),
        ("tokens_per_second", "tokens/s", ",.0f"),
        ("eval_perplexity", "held-out perplexity", ".1f"),
        ("eval_loss", "held-out loss", ".3f"),
        ("eval_accuracy", "accuracy", ".3f"),
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.shown: dict[str, str] = {}

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the losses behind the bar."""
        if state.is_world_process_zero and self.training_bar is not None:
            known = dict(logs)
            if "sampled_loss" in known:
                known.pop("loss", None)
            if "eval_perplexity" in known:
                known.pop("eval_loss", None)
            self.shown |= {name: format(known[key], form) for key, name, form in self.SHOWN if key in known}
            if self.shown:
                self.training_bar.set_postfix(self.shown)


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
