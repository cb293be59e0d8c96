"""A thin Trainer for joint losses: exact means of all parts, all parts in the log, schedules of lambda, and two ways to keep
what was learnt before: lower learning rates for lower layers, and a pull towards the frozen language model.

For encoder-decoders that go on as two language models there is `seq2seq_trainer.JointSeq2SeqTrainer`.
"""

import math
from collections import defaultdict
from collections.abc import Callable

import torch
from transformers import PreTrainedModel, Trainer

from .frozen_lm import FrozenLM
from .layerwise import check_layer_decay, layerwise_parameter_groups
from .trainer import PretrainingTrainer

# Factor of lambda from the training's progress, 0 to 1.
LM_WEIGHT_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: (1.0 + math.cos(math.pi * progress)) / 2,
    "warm-up": lambda progress: progress,
}


class JointLossTrainer(PretrainingTrainer):
    """Trainer for the `JointLossFor...` models.

    The task's mean is over labels, the language model's over its own rows or targets, each over the whole batch of all
    accumulation steps and processes; rows labelled -100 train the language model only. Training logs `task_loss`, `lm_loss`
    and `lm_weight` (the last step's), evaluation the same as means over the whole data set, with the lambda of the config:
    `eval_loss = eval_task_loss + eval_lm_weight * eval_lm_loss`. To choose a checkpoint by the task alone use
    `metric_for_best_model="eval_task_loss"`.

    With `kl_weight` the loss has a third term, KL(frozen LM || LM) at the language model's targets and as exact a mean as
    `lm_loss` (Learning without Forgetting, Li and Hoiem 2017; `training.frozen_lm`). It is logged as `kl_loss` in training
    and evaluation, and `eval_loss` has `kl_weight * eval_kl_loss` in it. It needs the language model's logits, so `lm_loss`
    is computed and logged even where lambda is 0.

    Args:
        lm_weight_schedule: a key of `LM_WEIGHT_SCHEDULES`, or a function from progress (0 to 1) to a factor of lambda.
        layer_lr_decay: learning rate of a layer over that of the layer above it, in (0, 1]; the head has
            `args.learning_rate`. None gives all the same.
        frozen_lm: what the language model should stay close to; None copies the model's own as it is now, so give it
            where the model comes from a checkpoint that was fine-tuned already.
        kl_weight: of that term; 0 costs nothing.

    Raises:
        ValueError: an unknown schedule, weights out of range, a biLM with `kl_weight`, or options under which the model's
            own loss, or the layers' learning rates, would not be used.
    """

    def __init__(
        self,
        *args,
        lm_weight_schedule: str | Callable[[float], float] = "constant",
        layer_lr_decay: float | None = None,
        frozen_lm: PreTrainedModel | None = None,
        kl_weight: float = 0.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if not callable(lm_weight_schedule) and lm_weight_schedule not in LM_WEIGHT_SCHEDULES:
            raise ValueError(
                f"lm_weight_schedule must be one of {sorted(LM_WEIGHT_SCHEDULES)} or a function, found "
                f"{lm_weight_schedule!r}."
            )
        if self.args.label_smoothing_factor or self.compute_loss_func is not None:
            raise ValueError(
                "label_smoothing_factor and compute_loss_func replace the model's loss, and with it the language model's. "
                "Leave both out."
            )
        if self.args.world_size > 1 and not self.args.average_tokens_across_devices:
            raise ValueError(
                "average_tokens_across_devices=False makes a mean of each process's means. Leave it at True."
            )
        if layer_lr_decay is not None:
            check_layer_decay(layer_lr_decay)
            if self.optimizer is not None:
                raise ValueError(
                    "layer_lr_decay sets the rates of the optimizer that Trainer makes, found one in `optimizers`. Make it "
                    "with layerwise_parameter_groups(model, rate, decay, weight_decay) and leave layer_lr_decay out."
                )
        if not 0 <= kl_weight < math.inf:
            raise ValueError(f"kl_weight must be at least 0, found {kl_weight}. Use 0 for no such term.")
        if frozen_lm is not None and not kl_weight:
            raise ValueError("frozen_lm is used by kl_weight alone, found kl_weight=0. Give both or none.")
        self.layer_lr_decay = layer_lr_decay
        self._frozen = FrozenLM(self._joint_model(), kl_weight, frozen_lm) if kl_weight else None
        self._schedule = LM_WEIGHT_SCHEDULES.get(lm_weight_schedule, lm_weight_schedule)
        self._lm_items: torch.Tensor | None = None
        self._last_lm_weight = 0.0
        self._sums: dict[str, float] = defaultdict(float)
        self._items: dict[str, float] = defaultdict(float)

    def lm_weight(self) -> float:
        """Lambda of the current step."""
        progress = self.state.global_step / max(1, self.state.max_steps)
        return self._joint_model().config.lm_loss_weight * self._schedule(min(1.0, progress))

    def _joint_model(self):
        return self.accelerator.unwrap_model(self.model)

    def create_optimizer(self, *args, **kwargs):
        """As in Trainer; with `layer_lr_decay` the optimizer gets a group for each layer."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if new and self.layer_lr_decay is not None:
            optimizer.param_groups.clear()
            rate, decay = self.args.learning_rate, self.args.weight_decay
            groups = layerwise_parameter_groups(self._joint_model(), rate, self.layer_lr_decay, decay)
            for group in groups:
                optimizer.add_param_group(group)
        return optimizer

    # Exact means

    def _get_num_items_in_batch(self, batch_samples, device):
        model = self._joint_model()
        counts = [(model.count_task_items(batch), model.count_lm_items(batch)) for batch in batch_samples]
        totals = torch.tensor([[int(count) for count in pair] for pair in counts]).sum(0).to(device)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum")
        self._lm_items = totals[1]
        return totals[0]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in Trainer, with the language model's count and the current lambda; remembers the parts for the log."""
        joint = self._joint_model()
        weight = self.lm_weight() if model.training else joint.config.lm_loss_weight
        if model.training:
            self._last_lm_weight = weight
            inputs = inputs | {"num_lm_items_in_batch": self._lm_items, "lm_loss_weight": weight}
        if self._frozen is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self._frozen.added(joint, weight, self.accelerator.autocast):
            inputs = inputs | {"lm_loss_weight": weight or 1.0}
            result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if model.training and self._frozen.value is not None:
            self._train_parts["kl_loss"] += self._frozen.value
        return result

    def _evaluated_loss(self, model, inputs):
        inputs, joint = self._without_repeats(inputs), self._joint_model()
        # A mean over one item is a sum.
        ones = {"num_items_in_batch": 1, "num_lm_items_in_batch": 1}
        loss, outputs = Trainer.compute_loss(self, model, inputs | ones, True)
        # Not in the outputs, of which Trainer makes predictions.
        divergence = None if self._frozen is None else self._frozen.value
        for name, part in [*outputs.items(), ("kl_loss", divergence)]:
            if name.endswith("_loss") and part is not None:
                self._sums[name] += part.detach().double()
                count = joint.count_task_items if name == "task_loss" else joint.count_lm_items
                self._items[name] += float(count(inputs))
        return loss, outputs

    def _without_repeats(self, inputs: dict) -> dict:
        """No targets in rows that are repeated to give every process as many; their predictions are still gathered."""
        rows = len(next(iter(inputs.values())))
        kept = self._rows_of_their_own(rows)
        if kept == rows:
            return inputs
        inputs, targets = dict(inputs), self._joint_model().lm_targets_of(inputs)
        if targets is not None and len(targets) % rows == 0:
            inputs["lm_targets"] = targets.clone()
            inputs["lm_targets"][kept * len(targets) // rows :] = -100
        if "labels" in inputs:
            inputs["labels"] = inputs["labels"].clone()
            inputs["labels"][kept:] = -100
        return inputs

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """As in Trainer, with the exact mean of each part."""
        self._sums.clear()
        self._items.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        means = {
            name: float(self._over_processes(total))
            / max(1.0, float(self._over_processes(self._items[name])))
            for name, total in self._sums.items()
        }
        if means:
            weight = self._joint_model().config.lm_loss_weight
            means["loss"] = means.get("task_loss", 0.0) + weight * means.get("lm_loss", 0.0)
            if self._frozen is not None:
                means["loss"] += self._frozen.weight * means.get("kl_loss", 0.0)
            means["lm_weight"] = weight
            output.metrics.update({f"{metric_key_prefix}_{name}": mean for name, mean in means.items()})
        return output

    # Log

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in Trainer, with the mean of every part since the last log, and lambda."""
        steps = self.state.global_step - self._last_logged_step
        if "loss" in logs and steps:
            for name, total in self._train_parts.items():
                logs[name] = float(self._over_processes(total)) / steps
            logs["lm_weight"] = self._last_lm_weight
            self._train_parts.clear()
            self._last_logged_step = self.state.global_step
        # Not PretrainingTrainer's, which would take exp(loss) for a perplexity.
        Trainer.log(self, logs, *args, **kwargs)


__all__ = ["LM_WEIGHT_SCHEDULES", "JointLossTrainer"]
