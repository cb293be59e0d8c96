"""Fine-tuning as openai/finetune-transformer-lm does it (Radford et al. 2018): layout, losses, dropout, Adam and its rate.

    template, tokenizer = openai_template(), AutoTokenizer.from_pretrained(gpt)
    model = openai_model(JointLossForMultipleChoice, gpt, tokenizer, template)
    trainer = JointLossTrainer(
        model,
        openai_arguments("runs/roc"),
        data_collator=openai_collator(tokenizer, template, "multiple_choice"),
        train_dataset=train,
        optimizers=openai_optimizers(model, openai_updates(len(train))),
    )

What stays different: positions are no classes of the softmax, dropout falls on vectors and not on the table of embeddings,
batches come in another order, and the norm that gradients are cut by has 1e-6 added to it. Text is as the tokenizer makes
it, without the original's ftfy and spaCy.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..objectives.input_forms import InputTemplate
from ..objectives.joint_collators import JointLossCollator

if TYPE_CHECKING:
    from ..modeling.modeling_joint_loss import JointLossPreTrainedModel

BATCH_SIZE, EPOCHS = 32, 3  # 8 rows on each of 4 devices
# Fields of JointLossConfig. One dropout mask for all choices, as the original has it, is how the model does it anyway.
OPENAI_HEAD = {
    "lm_loss_weight": 0.5,
    "lm_loss_reduction": "example",
    "classifier_dropout": 0.1,
    "classifier_bias": True,
    "initializer_range": 0.02,
}
OPENAI_DROPOUT = {"embd_pdrop": 0.1, "attn_pdrop": 0.1, "resid_pdrop": 0.1}  # fields of GPT configs
OPENAI_ARGUMENTS = {
    "per_device_train_batch_size": BATCH_SIZE,
    "gradient_accumulation_steps": 1,
    "dataloader_drop_last": True,
    "num_train_epochs": EPOCHS,
    "learning_rate": 6.25e-5,
    "max_grad_norm": 1.0,
    "seed": 42,
    "remove_unused_columns": False,
}


def openai_template(max_length: int = 512) -> InputTemplate:
    """The original's layout: each of two texts has `max_length // 2 - 2` places.

    Args:
        max_length: positions of the model.
    """
    return InputTemplate(max_length=max_length, truncation="halves")


def openai_model(
    head: "type[JointLossPreTrainedModel]",
    name_or_path: str,
    tokenizer: PreTrainedTokenizerBase,
    template: InputTemplate,
    **options,
) -> "JointLossPreTrainedModel":
    """A pre-trained causal model with a head, the marks' embeddings and the original's rates of dropout.

    Args:
        head: one of the `JointLossFor...` classes.
        name_or_path: of the language model.
        tokenizer: gets the marks.
        template: whose `classify` the head reads.
        options: fields of `JointLossConfig` that differ, such as `num_labels`.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: a language model that is not causal, or has fewer positions than the template.
    """
    template.prepare(tokenizer)
    config = AutoConfig.from_pretrained(name_or_path)
    dropout = {name: rate for name, rate in OPENAI_DROPOUT.items() if hasattr(config, name)}
    options = OPENAI_HEAD | template.model_options(tokenizer) | options
    model = head.from_backbone_pretrained(name_or_path, "causal", backbone_kwargs=dropout, **options)
    template.prepare(tokenizer, model)
    return model


def openai_collator(
    tokenizer: PreTrainedTokenizerBase,
    template: InputTemplate,
    form: str,
    columns: Mapping[str, str] | None = None,
    problem_type: str | None = None,
) -> JointLossCollator:
    """Batches whose every row trains the language model, wrong choices too.

    Args:
        tokenizer: one that has the marks.
        template: the layout.
        form: a key of `objectives.input_forms.FORMS`.
        columns: as in `JointLossCollator`.
        problem_type: as in `JointLossCollator`.
    """
    return JointLossCollator(tokenizer, template, form, columns or {}, problem_type, lm_on="all")


def openai_arguments(output_dir: str, **options) -> TrainingArguments:
    """Batches of 32 with the last incomplete one left out, 3 epochs, gradients cut at a norm of 1, seed 42.

    Args:
        output_dir: as in Transformers.
        options: of `TrainingArguments`, over the original's. On several processes divide `per_device_train_batch_size`.
    """
    return TrainingArguments(str(output_dir), **(OPENAI_ARGUMENTS | options))


def openai_updates(examples: int, batch_size: int = BATCH_SIZE, epochs: int = EPOCHS) -> int:
    """Updates of the whole training; the last incomplete batch of an epoch is left out.

    Args:
        examples: of the training set.
        batch_size: of an update, over all processes.
        epochs: of the training.

    Raises:
        ValueError: fewer examples than a batch has.
    """
    if examples < batch_size:
        raise ValueError(
            f"a batch has {batch_size} examples, found {examples} in all, which makes no update. Give a smaller batch_size."
        )
    return examples // batch_size * epochs


def warmup_linear(progress: float, warmup: float = 0.002) -> float:
    """Factor of the learning rate: up from 0, and on a line that reaches 0 at the end.

    Args:
        progress: updates made, as a share of all; the first update is at 0 and changes no weight.
        warmup: share of the training.
    """
    rise = progress / warmup if progress <= warmup else 1.0
    return max(0.0, rise * (1 - progress))


def _factor(step: int, updates: int, warmup: float) -> float:
    return warmup_linear(step / updates, warmup)


class OpenAIAdam(Optimizer):
    """Adam as the original has it: decay is scaled by the bias correction too, and eps is added before it.

    Over the first updates decay is therefore weaker than AdamW's, by sqrt(1 - beta2^t) / (1 - beta1^t).

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: of the two running means.
        eps: beside the root of the second.
        weight_decay: of groups that name none.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = OPENAI_ARGUMENTS["learning_rate"],
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> Tensor | None:
        """One update; parameters without gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(parameter.grad, 1 - beta1)
        square.mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        rate = group["lr"] * (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        change = mean / square.sqrt().add_(group["eps"])
        parameter.sub_(change.add_(parameter, alpha=group["weight_decay"]), alpha=rate)


def openai_optimizers(
    model: PreTrainedModel,
    updates: int,
    learning_rate: float = OPENAI_ARGUMENTS["learning_rate"],
    weight_decay: float = 0.01,
    warmup: float = 0.002,
) -> tuple[OpenAIAdam, LambdaLR]:
    """Optimizer and schedule for Trainer's `optimizers`.

    Args:
        model: weights with more than one axis decay, those of tokens and positions too; biases and gains do not.
        updates: of the whole training, as `openai_updates` counts them.
        learning_rate: the highest.
        weight_decay: see above.
        warmup: share of the training.

    Raises:
        ValueError: no updates.
    """
    if updates < 1:
        raise ValueError(
            f"updates must be at least 1, found {updates}. Use openai_updates(len(train_dataset))."
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = OpenAIAdam(groups, lr=learning_rate)
    return optimizer, LambdaLR(optimizer, partial(_factor, updates=updates, warmup=warmup))


__all__ = [
    "OPENAI_ARGUMENTS",
    "OPENAI_DROPOUT",
    "OPENAI_HEAD",
    "OpenAIAdam",
    "openai_arguments",
    "openai_collator",
    "openai_model",
    "openai_optimizers",
    "openai_template",
    "openai_updates",
    "warmup_linear",
]
