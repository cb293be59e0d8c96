"""A thin Seq2SeqTrainer that goes on training the language models of both sides (Ramachandran, Liu & Le 2017, section 2.4).

loss = seq2seq + weight * source LM + weight * target LM, each a mean over its own tokens of the whole batch: all accumulation
steps and processes. Monolingual batches are a function of seed, step and place in the step, so a resumed training sees those
it would have seen.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.utils import ModelOutput

from ..modeling.seq2seq_losses import StockSeq2SeqLosses
from ..objectives.seq2seq import MonolingualBatches, MonolingualCollator, joint_batch
from .joint_trainer import LM_WEIGHT_SCHEDULES
from .trainer import PretrainingTrainer, perplexity

SIDES = ("source", "target")
PARTS = ("seq2seq_loss", "source_lm_loss", "target_lm_loss")


@dataclass
class MonolingualText:
    """What one side's language model reads.

    Args:
        collate: makes batches, and says which side.
        train: sentences, lists of ids, to go on training on; None for no such loss.
        validation: sentences to measure the perplexity on; None for no measuring.
        batch_size: sentences beside one micro-batch of pairs; None for as many as pairs.
        weight: of the loss; None takes the model's own, or else 1.
    """

    collate: MonolingualCollator
    train: Sequence[Sequence[int]] | None = None
    validation: Sequence[Sequence[int]] | None = None
    batch_size: int | None = None
    weight: float | None = None


@dataclass(frozen=True)
class StepDecay:
    """The paper's schedule: a constant learning rate, then one that falls in steps.

    Args:
        every: steps between two falls.
        after: steps before the first `every`.
        factor: of each fall.
    """

    every: int
    after: int = 0
    factor: float = 0.8

    def __call__(self, step: int) -> float:
        """The factor of the learning rate after so many steps."""
        return self.factor ** max(0, (step - self.after) // self.every)


class NamedLosses:
    """A model as Trainer calls it, whose loss is the weighted sum of its named parts.

    Args:
        forward: called with a batch; returns parts whose names end in `_loss`.
        training: whether the model trains.
        weights: by part; 1 where there is none.
        options: further arguments of each call.
    """

    def __init__(self, forward: Callable[..., ModelOutput], training: bool, weights: dict, **options):
        self.forward, self.training, self.weights, self.options = forward, training, weights, options

    def __call__(self, **batch) -> ModelOutput:
        """Run the model."""
        outputs = self.forward(**batch, **self.options)
        parts = {name: outputs.get(name) for name in PARTS}
        outputs["loss"] = sum(
            self.weights.get(name, 1.0) * part for name, part in parts.items() if part is not None
        )
        return outputs


class JointSeq2SeqTrainer(PretrainingTrainer, Seq2SeqTrainer):
    """Trainer for encoder-decoders and the language models in them: ours, and stock ones such as BART or T5.

    Training logs `loss`, its parts `seq2seq_loss`, `source_lm_loss` and `target_lm_loss`, the perplexity of the first, and
    the last step's `source_lm_weight` and `target_lm_weight`.
    Evaluation logs `eval_loss`, the mean of the seq2seq loss over the labels, and `eval_perplexity`, by which checkpoints are
    chosen and training is stopped early; and of each text to measure `eval_{side}_lm_loss`, `eval_{side}_lm_ppl` and
    `eval_{side}_forgetting`, its perplexity by that at the start. `eval_forgetting` is the larger of the two.

    Stock models have no language model of the source. Theirs of the target is the decoder without an encoder.

    Args:
        monolingual: texts of one side or both.
        eval_data_collator: of pairs in evaluation; by default `data_collator`.
        forgetting: what acts on gradients: `Penalty` or `Freezing`.
        step_decay: instead of `lr_scheduler_type`; `warmup_steps` hold.
        lm_weight_schedule: a key of `LM_WEIGHT_SCHEDULES`, or a function from progress (0 to 1) to a factor of the language
            models' weights.

    Raises:
        ValueError: options under which losses would not be exact, or texts that the model has no language model for.
    """

    def __init__(
        self,
        *args,
        monolingual: Sequence[MonolingualText] = (),
        eval_data_collator: Callable | None = None,
        forgetting=None,
        step_decay: StepDecay | None = None,
        lm_weight_schedule: str | Callable[[float], float] = "constant",
        **kwargs,
    ):
        _check_kind(kwargs.get("args", args[1] if len(args) > 1 else None))
        super().__init__(*args, **kwargs)
        self.eval_data_collator = eval_data_collator or self.data_collator
        self.forgetting, self.step_decay = forgetting, step_decay
        if not callable(lm_weight_schedule) and lm_weight_schedule not in LM_WEIGHT_SCHEDULES:
            raise ValueError(
                f"lm_weight_schedule must be one of {sorted(LM_WEIGHT_SCHEDULES)} or a function, found "
                f"{lm_weight_schedule!r}."
            )
        self._schedule = LM_WEIGHT_SCHEDULES.get(lm_weight_schedule, lm_weight_schedule)
        self.texts = {text.collate.side: text for text in monolingual}
        if len(self.texts) < len(monolingual):
            raise ValueError(
                f"{len(monolingual)} monolingual texts for {sorted(self.texts)}; expected one a side."
            )
        model = self._plain_model()
        self.stock = None if hasattr(model, "count_lm_targets") else StockSeq2SeqLosses(model)
        self._check_options()
        self._check_texts()
        self.label_smoother = None  # the model, or StockSeq2SeqLosses, smooths
        self.model_accepts_loss_kwargs = True
        self._weights = {
            f"{side}_lm_loss": getattr(model.config, f"{side}_lm_loss_weight", 1.0)
            if text.weight is None
            else text.weight
            for side, text in self.texts.items()
        }
        self._batches: dict[str, MonolingualBatches] = {}
        self._lm_items: dict[str, torch.Tensor] = {}
        self._last_weights: dict[str, float] = {}  # of the last training step
        self._start: dict[str, float] = {}  # perplexity of each side before the first step
        self._is_first_step = True

    def _plain_model(self):
        return self.accelerator.unwrap_model(self.model)

    def _check_options(self) -> None:
        args, smoothing = self.args, self.args.label_smoothing_factor
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func replaces the loss, and with it the language models'. Leave it out."
            )
        if args.world_size > 1 and not args.average_tokens_across_devices:
            raise ValueError(
                "average_tokens_across_devices=False makes a mean of each process's means. Leave it at True."
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"one process with {args.n_gpu} GPUs (DataParallel) cannot weigh losses by their tokens. Start one process a "
                "GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one."
            )
        if self.stock is not None:
            self.stock.label_smoothing = smoothing
        elif smoothing and smoothing != self.model.config.label_smoothing:
            raise ValueError(
                f"label_smoothing_factor={smoothing} would drop the language models' losses; the model smooths by itself, "
                f"with label_smoothing={self.model.config.label_smoothing} in its config. Load it with "
                f"from_pretrained(..., label_smoothing={smoothing})."
            )

    def _check_texts(self) -> None:
        model = self._plain_model()
        if "source" in self.texts and self.stock is not None:
            raise ValueError(self.stock.no_source_lm())
        if "source" in self.texts and getattr(model, "encoder_lm_head", None) is None and self.stock is None:
            raise ValueError(
                "a bidirectional_encoder holds no language model of the source, found its monolingual text. Leave it out."
            )
        if "target" in self.texts and self.stock is not None:
            self.stock.check_language_model()

    # Batches

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """As in Trainer; `True` resumes from the newest checkpoint that is whole."""
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._batches = {
            side: MonolingualBatches(
                text.train,
                text.collate,
                text.batch_size or self.args.per_device_train_batch_size,
                seed,
                self.args.process_index,
                self.args.world_size,
            )
            for side, text in self.texts.items()
            if text.train is not None
        }
        self._start, self._is_first_step = {}, True
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None):
        """As in Trainer, with the collator for evaluation."""
        training, self.data_collator = self.data_collator, self.eval_data_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """As in Trainer; a step's micro-batches get their monolingual ones."""
        if self._is_first_step:
            self._begin()
        first = self.state.global_step * self.args.gradient_accumulation_steps
        joint = (
            joint_batch(batch, *(batches[number] for batches in self._batches.values()))
            for number, batch in enumerate(epoch_iterator, first)
        )
        return super().get_batch_samples(joint, num_batches, device)

    def _begin(self) -> None:
        """Measure the language models before the first step; a resumed training finds that in its log."""
        self._is_first_step = False
        self._train_parts.clear()
        self._last_logged_step = self.state.global_step
        for side in self.texts:
            key = f"eval_{side}_lm_ppl"
            old = next((log[key] for log in self.state.log_history if log["step"] == 0 and key in log), None)
            self._start |= {} if old is None else {side: old}
        if not self._start and self.state.global_step == 0 and (metrics := self._measure_texts("eval")):
            self.log(metrics)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """As in Trainer, or `step_decay`."""
        if self.step_decay is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        decay, warmup = self.step_decay, self.args.get_warmup_steps(num_training_steps)
        self.lr_scheduler = LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: step / warmup if step < warmup else decay(step),
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # Exact means

    def _count_texts(self, batch: dict) -> dict[str, torch.Tensor]:
        return (self._plain_model() if self.stock is None else self.stock).count_lm_targets(batch)

    def _get_num_items_in_batch(self, batch_samples, device):
        counts = [(self._count(batch), self._count_texts(batch)) for batch in batch_samples]
        names = [f"num_{side}_lm_items" for side in self._batches]
        totals = torch.tensor(
            [sum(int(labels) for labels, _ in counts)]
            + [sum(int(texts[name]) for _, texts in counts) for name in names]
        ).to(device)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum")
        self._targets += totals.sum()
        self._lm_items = dict(zip(names, totals[1:], strict=True))
        return totals[0]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in Trainer, with the texts' counts; remembers the parts for the log."""
        if model.training:
            inputs, self._last_weights = inputs | self._lm_items, self.lm_weights()
        return super().compute_loss(self._named(model), inputs, return_outputs, num_items_in_batch)

    def lm_weights(self) -> dict[str, float]:
        """The weights of the language models' losses in the current step, by the names of the losses."""
        factor = self._schedule(min(1.0, self.state.global_step / max(1, self.state.max_steps)))
        return {name: factor * weight for name, weight in self._weights.items()}

    def _named(self, model, **options) -> NamedLosses:
        """The model with named losses."""
        if isinstance(model, NamedLosses):
            return model
        weights = self._last_weights if model.training else self._weights
        if self.stock is None:
            return NamedLosses(model, model.training, weights, **options)
        return NamedLosses(self.stock, model.training, weights, wrapped=model)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in Trainer; the last of a step is followed by what keeps the model from forgetting."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.forgetting is None or not self.accelerator.sync_gradients:
            return loss
        scaler = self.accelerator.scaler
        values = self.forgetting.after_backward(
            dict(self._plain_model().named_parameters()),
            self.state.global_step,
            1.0 if scaler is None else scaler.get_scale(),
        )
        for name, value in values.items():
            self._train_parts[name] += value / self.args.world_size
            loss = loss + value.to(loss)
        return loss

    # Evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None, **gen_kwargs):
        """As in Trainer; with `predict_with_generate` the loss is exact too."""
        if prediction_loss_only:
            skip = {} if self.stock is not None else {"skip_logits": True}
            return super().prediction_step(self._named(model, **skip), inputs, True)
        if self.args.predict_with_generate:
            if "labels" in inputs:
                self.prediction_step(model, inputs, True)
            return Seq2SeqTrainer.prediction_step(self, model, inputs, False, ignore_keys, **gen_kwargs)
        if ignore_keys is None:
            ignore_keys = getattr(self.model.config, "keys_to_ignore_at_inference", [])
        return super().prediction_step(model, inputs, False, [*ignore_keys, *PARTS])

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """As in Trainer, with the perplexities of the language models."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if "Evaluation" in (*args, kwargs.get("description")):
            output.metrics.update(self._measure_texts(metric_key_prefix))
            self._clock = time.perf_counter()
        return output

    @torch.no_grad()
    def _measure_texts(self, prefix: str) -> dict[str, float]:
        """Exact mean loss and perplexity of each text, and what they are to those at the start."""
        model, metrics, ratios = self._plain_model(), {}, {}
        training = model.training
        model.eval()
        for side, text in self.texts.items():
            if text.validation is None:
                continue
            nats = self._mean_loss(side, text, self._named(model))
            ppl = perplexity(nats)
            metrics |= {f"{prefix}_{side}_lm_loss": nats, f"{prefix}_{side}_lm_ppl": ppl}
            if self.state.global_step == 0:
                self._start.setdefault(side, ppl)
            if side in self._start:
                ratios[f"{prefix}_{side}_forgetting"] = ppl / self._start[side]
        model.train(training)
        return metrics | ratios | ({f"{prefix}_forgetting": max(ratios.values())} if ratios else {})

    def _mean_loss(self, side: str, text: MonolingualText, losses: NamedLosses) -> float:
        """Nats a token; each process reads every W-th batch."""
        size, total, count = self.args.eval_batch_size, 0.0, 0.0
        starts = range(0, len(text.validation), size)
        for start in starts[self.args.process_index :: self.args.world_size]:
            rows = [text.validation[place] for place in range(start, min(start + size, len(text.validation)))]
            batch = self._prepare_inputs(text.collate(rows))
            with self.compute_loss_context_manager():
                # A mean over one item is a sum.
                outputs = losses(**batch, **{f"num_{side}_lm_items": 1})
            total += outputs[f"{side}_lm_loss"].double()
            count += float(self._count_texts(batch)[f"num_{side}_lm_items"])
        return float(self._over_processes(total)) / max(1.0, float(self._over_processes(count)))

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in Trainer, with the weights of the language models that train."""
        if "loss" in logs:
            logs |= {f"{side}_lm_weight": self._last_weights[f"{side}_lm_loss"] for side in self._batches}
        super().log(logs, *args, **kwargs)

    def _nats_of_perplexity(self, logs: dict[str, float]) -> float | None:
        sampled = getattr(self.model.config, "softmax", "full") == "sampled"
        smoothed = self.args.label_smoothing_factor or getattr(self.model.config, "label_smoothing", 0.0)
        return None if sampled or smoothed else logs.get("seq2seq_loss")


def _check_kind(args) -> None:
    if not isinstance(args, Seq2SeqTrainingArguments):
        raise ValueError(
            f"JointSeq2SeqTrainer needs args of the kind Seq2SeqTrainingArguments, found {type(args).__name__}."
        )


__all__ = ["JointSeq2SeqTrainer", "MonolingualText", "NamedLosses", "StepDecay"]
