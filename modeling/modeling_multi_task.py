"""Several tasks on one language model, a head for each (MT-DNN, Liu et al. 2019), and optionally the model's own loss.

Every batch is of one task: `loss = weight * mean loss of the task + lm_loss_weight * lm_loss`. With the counts of a whole
step (`count_items_by_task`) the parts of the step sum to `sum_t weight_t * mean over the step's items of task t`, however
the step is cut. Where it leaves MT-DNN: heads read the vector of `config.pooling`, which for a masked model is [CLS], and
any causal model serves too.

Letters: B examples, C candidates, N rows (B or B C), T positions, H features, K classes.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import can_return_tuple

from .checks import check_ids, check_shape
from .configuration_multi_task import MultiTaskConfig, complete_task
from .gathered_head import HEADS, mlm_head, mlm_logits
from .heads_multi_task import make_head
from .losses import mean_of_all
from .modeling_joint_loss import INPUTS, JointLossPreTrainedModel, task_mean
from .outputs_joint_loss import JointLossOutput
from .reading_joint_loss import Reading


class MultiTaskModel(JointLossPreTrainedModel):
    """A language model with a head for each task of its config.

    `from_backbone_pretrained(name, tasks=[...])` puts new heads on a pre-trained language model.

    Raises:
        ValueError: no tasks.
    """

    config: MultiTaskConfig
    config_class = MultiTaskConfig
    _auto_class = "AutoModel"

    def __init__(self, config: MultiTaskConfig, language_model: PreTrainedModel | None = None):
        if not config.tasks:
            raise ValueError(
                "a multi-task model needs at least one task, found none. Give tasks=[{'name': ..., 'kind': ...}]."
            )
        super().__init__(config, language_model)
        # In place of the parent's one layer. A prefix keeps a task's name from meaning a method of ModuleDict.
        self.classifier = nn.ModuleDict(
            {f"task_{task['name']}": self._new_head(task) for task in self.config.tasks}
        )
        self.post_init()

    def _num_outputs(self) -> int:
        return 1

    def _new_head(self, task: dict) -> nn.Module:
        if task["kind"] == "masked_lm" and mlm_head(self.language_model) is None:
            raise ValueError(
                f"task {task['name']!r} of kind 'masked_lm' needs a masked language model of {', '.join(HEADS)}, found "
                f"{type(self.language_model).__name__}. Leave the task out, or take another model."
            )
        hidden_size = self.language_model.config.get_text_config().hidden_size
        return make_head(task, hidden_size, self.config.classifier_bias, self._dropout(task))

    def _dropout(self, task: dict) -> float:
        return self.config.classifier_dropout if task["dropout"] is None else task["dropout"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.GRUCell):
            bound = 1 / math.sqrt(module.hidden_size)  # PyTorch's own
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        else:
            super()._init_weights(module)

    def add_task(self, **task) -> None:
        """Add a task with a new head; it gets the next number, and the others keep theirs.

        Args:
            task: fields as in `MultiTaskConfig.tasks`.

        Raises:
            ValueError: bad fields, or a name that is taken.
        """
        task = complete_task(task)
        if task["name"] in self.config.task_names:
            raise ValueError(f"the model has a task {task['name']!r} already. Give another name.")
        head = self._new_head(task).to(self.device, self.dtype)
        head.apply(self._init_weights)
        self.config.tasks = [*self.config.tasks, task]
        self.classifier[f"task_{task['name']}"] = head.train(self.training)

    # One task a batch

    def task_of(self, task_id: Tensor | int | None) -> int:
        """The number of the one task of a batch.

        Args:
            task_id: (B,) numbers, all equal, or a number; may be left out where there is one task.

        Returns:
            The number.

        Raises:
            ValueError: several tasks, or one that does not exist.
        """
        names = self.config.task_names
        if task_id is None and len(names) == 1:
            return 0
        found = [] if task_id is None else torch.as_tensor(task_id).flatten().unique().tolist()
        if len(found) > 1:
            raise ValueError(
                f"every batch must be of one task, found task_id {found}. Use MultiTaskDataset, which makes such batches."
            )
        if not found or found[0] not in range(len(names)):
            listed = ", ".join(f"{number} = {name}" for number, name in enumerate(names))
            raise ValueError(f"task_id must be the number of a task ({listed}), found {found or task_id}.")
        return int(found[0])

    def count_items_by_task(self, batch: dict) -> Tensor:
        """Labels in a batch by task, -100 left out: what the vector `num_items_in_batch` is a sum of.

        Args:
            batch: keyword arguments of `forward`.

        Returns:
            (tasks,) numbers.
        """
        counts = torch.zeros(len(self.config.tasks), dtype=torch.long)
        counts[self.task_of(batch.get("task_id"))] = int(self.count_task_items(batch))
        return counts

    def _rows(self, batch: dict) -> dict[str, Tensor]:
        task = self.config.tasks[self.task_of(batch.get("task_id"))]
        if task["kind"] != "ranking":
            return super()._rows(batch)
        flat = {}
        for name in INPUTS:
            if (tensor := batch.get(name)) is not None:
                deeper = name in ("inputs_embeds", "char_ids")
                shape = (None,) * (3 + deeper)
                check_shape(name, tensor, shape, f"(B, candidates, T) for ranking task {task['name']!r}")
                flat[name] = tensor.flatten(0, 1)
        return super()._rows(flat)

    def _task_types(self, ids: Tensor, shape: tuple[int, int]) -> Tensor:
        """Numbers for the language model's table of task embeddings as rows, checked."""
        config = self.config.text_config.get_text_config()
        if not getattr(config, "use_task_id", False):
            raise ValueError(
                f"task_type_ids need a language model with task embeddings (ERNIE with use_task_id=True), found "
                f"{config.model_type!r} without. Leave them out."
            )
        ids, meaning = ids.flatten(0, -2), "the number of a task at each token, like input_ids"
        check_ids("task_type_ids", ids, shape, meaning, config.task_type_vocab_size)
        return ids

    # Losses

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        char_ids: Tensor | None = None,
        text_ids: Tensor | None = None,
        task_id: Tensor | int | None = None,
        task_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        lm_targets: Tensor | None = None,
        lm_input_ids: Tensor | None = None,
        lm_attention_mask: Tensor | None = None,
        lm_char_ids: Tensor | None = None,
        lm_loss_weight: float | None = None,
        num_items_in_batch: Tensor | int | None = None,
        num_lm_items_in_batch: Tensor | int | None = None,
    ) -> JointLossOutput:
        """Do one task, and with `labels` or `lm_targets` compute the losses.

        Args:
            input_ids: (B, T) token ids; (B, C, T) for ranking.
            attention_mask: of the same shape, 1 at tokens.
            token_type_ids: for masked models.
            position_ids: as the language model takes them.
            inputs_embeds: token vectors (..., T, E), instead of ids.
            char_ids: (..., T, characters) for ELMo.
            text_ids: (B, T) for kind "pair": 0 at tokens of the first text, 1 at those of the second, -1 elsewhere.
            task_id: (B,) number of the task, the same for all, or one number.
            task_type_ids: of the shape of input_ids, which row of the language model's task embeddings each token gets, for
                ERNIE with `use_task_id`; by default row 0.
            labels: (B,) classes, numbers (regression) or right candidates (ranking); (B, T) classes of tokens, or original
                ids of hidden ones ("masked_lm"). -100 means unlabelled.
            lm_targets: as for the `JointLossFor...` models, like the next three.
            lm_input_ids: a text of its own for the language model.
            lm_attention_mask: of that text.
            lm_char_ids: of that text.
            lm_loss_weight: lambda of this call; by default the config's.
            num_items_in_batch: (tasks,) labels of the whole step by task (`count_items_by_task`). A single number is taken
                as it is, so with the stock Trainer, which counts the labels of all tasks together, the loss is a mean over
                all of them. None means this batch only.
            num_lm_items_in_batch: rows or targets of the whole step (`count_lm_items`).

        Returns:
            `JointLossOutput`; `task_loss` is weighted. Logits are (B, K), (B,) for regression, (B, C) for ranking,
            (B, T, K) for tokens, (B, T, V) for "masked_lm", in training (M, V) of the M labelled places alone; those of a
            pair are log probabilities.

        Raises:
            ValueError: several tasks in a batch, one that does not exist, labels that are missing in training or do not
                fit the task, or inputs that do not fit the model.
        """
        given = input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, char_ids
        batch = dict(zip(INPUTS, given, strict=True)) | {"task_id": task_id}
        batch |= {
            "lm_input_ids": lm_input_ids,
            "lm_attention_mask": lm_attention_mask,
            "lm_char_ids": lm_char_ids,
        }
        number = self.task_of(task_id)
        task = self.config.tasks[number]
        rows, stream = self._rows(batch), self._lm_stream(batch)
        if task_type_ids is not None:
            rows["task_type_ids"] = self._task_types(task_type_ids, next(iter(rows.values())).shape[:2])
        weight = self.config.lm_loss_weight if lm_loss_weight is None else lm_loss_weight
        if self.training and labels is None and (weight == 0 or lm_targets is None):
            raise ValueError(
                f"a training batch of task {task['name']!r} has no labels. Give labels, -100 where a row has none."
            )
        targets = None
        if weight > 0 and (labels is not None or lm_targets is not None):
            targets = self._targets(stream or rows, lm_targets)
            if targets is None and self.training:
                raise ValueError(
                    f"lm_loss_weight is {weight}, but nothing says what the language model shall predict. Give the "
                    "collator the model's lm_objective, or set lm_loss_weight=0."
                )
        reading = self._read(rows, None if stream else targets)
        examples = next(len(tensor) for tensor in given if tensor is not None)
        if task["kind"] == "masked_lm":
            logits, labels = self._masked_logits(task, reading.hidden, labels)
        else:
            logits = self._task_logits(task, reading, rows.get("input_ids"), text_ids, examples)
        items = num_items_in_batch
        by_task = isinstance(items, Tensor) and items.dim() == 1
        losses, loss = {}, None
        if labels is not None:
            mean = _task_loss(task, logits, labels, items[number] if by_task else items)
            losses["task_loss"] = loss = task["weight"] * mean
        if targets is not None:
            if stream:
                reading = self._read(stream, targets)
            share = self._share(labels, items.sum() if by_task else items, num_lm_items_in_batch)
            for name, total in {"lm_loss": reading.total, **reading.parts}.items():
                losses[name] = share * mean_of_all(total, reading.count, num_lm_items_in_batch)
            loss = weight * losses["lm_loss"] + (0 if loss is None else loss)
        return JointLossOutput(loss=loss, logits=logits, **losses)

    def _masked_logits(
        self, task: dict, hidden: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of all places and the labels as they came; in training of labelled places alone, and their labels."""
        if not self.training or labels is None:
            return mlm_logits(self.language_model, hidden), labels
        _check_label_shape(task, labels, hidden.shape[:2])
        places = labels != -100
        return mlm_logits(self.language_model, hidden[places]), labels[places]

    def _task_logits(
        self, task: dict, reading: Reading, ids: Tensor | None, text_ids: Tensor | None, examples: int
    ) -> Tensor:
        head, kind = self.classifier[f"task_{task['name']}"], task["kind"]
        if kind == "pair":
            return head(reading.hidden, *_both_texts(task, reading.mask, text_ids))
        vectors = reading.hidden if kind == "tokens" else self._pooled(reading, ids)
        logits = head(F.dropout(vectors, self._dropout(task), self.training))
        if kind == "ranking":
            return logits.view(examples, -1)
        return logits.squeeze(1) if kind == "regression" else logits


def _both_texts(task: dict, mask: Tensor, text_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where the first and the second text of each row are, (B, T) bool."""
    name = task["name"]
    if text_ids is None or text_ids.shape != mask.shape:
        found = "none" if text_ids is None else f"shape {tuple(text_ids.shape)}"
        raise ValueError(
            f"pair task {name!r} needs text_ids {tuple(mask.shape)}, 0 at the first text, 1 at the second and -1 elsewhere; "
            f"found {found}. MultiTaskCollator makes them."
        )
    texts = tuple((text_ids == number) & mask for number in (0, 1))
    for text, which in zip(texts, ("first", "second"), strict=True):
        if not bool(text.any(1).all()):
            raise ValueError(
                f"pair task {name!r} needs two texts in each row, found {int((~text.any(1)).sum())} of {len(text)} rows "
                f"without a token of the {which}. Leave out examples with an empty text."
            )
    return texts


def _check_label_shape(task: dict, labels: Tensor, shape: torch.Size) -> None:
    if labels.shape != shape:
        raise ValueError(
            f"labels of {task['kind']} task {task['name']!r} must have shape {tuple(shape)}, found {tuple(labels.shape)}."
        )


def _task_loss(task: dict, logits: Tensor, labels: Tensor, items: Tensor | int | None) -> Tensor:
    kind, name = task["kind"], task["name"]
    _check_label_shape(task, labels, logits.shape if kind == "regression" else logits.shape[:-1])
    if kind == "regression":
        return task_mean(logits.unsqueeze(1), labels.to(logits.dtype), "regression", items)
    known = labels[labels != -100]
    if labels.is_floating_point() or (len(known) and not 0 <= known.min() <= known.max() < logits.shape[-1]):
        what = "right candidates" if kind == "ranking" else "classes"
        raise ValueError(
            f"labels of {kind} task {name!r} must be whole numbers of {what} in 0..{logits.shape[-1] - 1} (or -100), found "
            f"{labels.dtype} {sorted(set(known.flatten().tolist()))[:9]}."
        )
    flat = logits.flatten(0, -2), labels.flatten()
    return task_mean(*flat, "single_label_classification", items)


__all__ = ["MultiTaskModel"]
