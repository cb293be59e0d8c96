"""A language model that fine-tuning must stay close to: KL(frozen || current) at each token that the language model predicts.

Learning without Forgetting (Li and Hoiem 2017) with the loss of Hinton et al. 2015 at temperature 1: what the old model
answers on the new data is a soft target. In this direction the frozen model's probabilities are the weights, so the current
one must keep some probability wherever the old one had some.

Letters: N rows, T positions, V tokens.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..modeling.losses import mean_of_all
from ..modeling.packing import unflatten
from ..modeling.reading_joint_loss import count_items


def summed_divergence(logits: Tensor, frozen: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """Summed KL(frozen || current) of the predicted places, or sum of each row's mean, in float32 at least.

    Args:
        logits: (N, T, V) of the current model.
        frozen: (N, T, V) of the frozen one.
        targets: (N, T), -100 where nothing is predicted.
        reduction: "token" or "example", as `lm_loss_reduction`.

    Returns:
        () nats.
    """
    known = targets != -100

    def log_probabilities(scores: Tensor) -> Tensor:
        chosen = scores[known]
        return chosen.to(torch.promote_types(chosen.dtype, torch.float32)).log_softmax(-1)

    now, before = log_probabilities(logits), log_probabilities(frozen)
    weights = before.exp()
    # Where a model rules a token out, 0 * (-inf + inf) is meant to be 0.
    each = (weights * (before - now)).masked_fill(weights == 0, 0.0).sum(-1)
    if reduction == "token":
        return each.sum()
    rows = unflatten(each.unsqueeze(1), known).squeeze(2)  # (N, T)
    return (rows.sum(1) / known.sum(1).clamp(min=1)).sum()


class FrozenLM:
    """The third term of a joint-loss model, from the pass that the model makes anyway and one of the frozen model.

    Args:
        model: of `JointLossFor...`.
        weight: of the term.
        frozen: its language model as it should stay; None copies it as it is now.

    Raises:
        ValueError: a biLM, whose two directions give no logits, or other tokens than the model's.
    """

    def __init__(self, model: PreTrainedModel, weight: float, frozen: PreTrainedModel | None = None):
        if model.config.lm_objective == "bidirectional":
            raise ValueError(
                "kl_weight compares what two language models predict by their logits, which ELMo's biLM does not return. Use "
                "kl_weight=0 with ELMo, or replay general text (lm_input_ids)."
            )
        frozen = copy.deepcopy(model.language_model) if frozen is None else frozen
        sizes = [one.config.get_text_config().vocab_size for one in (frozen, model.language_model)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"frozen_lm must predict the same tokens as the model: it has {sizes[0]}, the model {sizes[1]}. Resize it "
                "with the same marks (InputTemplate.prepare), or leave it out to freeze a copy of the model."
            )
        self.weight = weight
        self.frozen = frozen.eval().requires_grad_(False)
        self.value: Tensor | None = None

    @contextmanager
    def added(self, model: PreTrainedModel, lm_weight: float, autocast) -> Iterator[None]:
        """While open, the model's `loss` has the term in it, and `value` is its mean; None where nothing was predicted.

        Args:
            model: without the wrappers of several processes.
            lm_weight: lambda. Where it is 0, call the model with 1, so that it makes logits; its loss is left out again.
            autocast: makes a context for the frozen model's pass.
        """
        read: list[tuple[dict, Tensor]] = []
        self.value = None

        def remember(module, args, rows, outputs):
            read[:] = [(rows, outputs.logits)]  # the language model's own rows come last

        def add(module, args, batch, outputs):
            targets = module.lm_targets_of(batch)
            if targets is None or outputs.loss is None or not read:
                return outputs
            rows, logits = read.pop()
            value = self._mean(module.config, rows, logits, targets, batch, autocast)
            self.value = value.detach()
            task = 0 if outputs.task_loss is None else outputs.task_loss
            outputs["loss"] = (outputs.loss if lm_weight else task) + self.weight * value
            return outputs

        hooks = (
            model.language_model.register_forward_hook(remember, with_kwargs=True),
            model.register_forward_hook(add, with_kwargs=True),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _mean(self, config, rows: dict, logits: Tensor, targets: Tensor, batch: dict, autocast) -> Tensor:
        with torch.no_grad(), autocast():
            frozen = self.frozen.to(logits.device)(**rows | {"output_hidden_states": False}).logits
        if config.lm_objective == "causal":
            logits, frozen, goals = logits[:, :-1], frozen[:, :-1], targets[:, 1:]
        else:
            goals = targets
        reduction = config.lm_loss_reduction
        total = summed_divergence(logits, frozen, goals, reduction)
        count = count_items(targets, config.lm_objective, reduction)
        return mean_of_all(total, count, batch.get("num_lm_items_in_batch"))


__all__ = ["FrozenLM", "summed_divergence"]
