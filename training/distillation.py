"""A small model learns what a large one answers: distillation of stock masked and causal language models.

Sanh et al. 2019, section 2: `kl_weight T^2 KL(teacher || student) + hard_weight (the stock losses) + cosine_weight (1 - cos)`,
the first with both softmaxes at temperature T (Hinton et al. 2015), the last between the last hidden states of each token.
Beside it, `mse_weight (z_student - z_teacher)^2`, the mean over the vocabulary of squared differences of logits (Ba and
Caruana 2014, section 2; MT-DNN's code can learn so too). KL and squares are means over the targets, the cosine over all tokens, each over the whole step,
however it is cut into batches. Where it leaves DistilBERT: its KL reads all tokens by default.

Letters: B rows, L positions, H features, N targets, V words, K parts of the loss.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainingArguments

from ..modeling.gathered_head import StockPretrainingLosses, StockPretrainingOutput, gathered
from ..modeling.losses import mean_of_all
from .frozen_lm import summed_divergence
from .stock_pretraining import StockPretrainingTrainer

KINDS = ("masked", "causal")


@dataclass(frozen=True)
class Distillation:
    """Weights of the parts, as of DistilBERT.

    Args:
        temperature: T; higher ones show more of what the teacher thinks of improbable words.
        kl_weight: of `kl_loss`, which has the factor T^2 in it, so that its gradients keep their size.
        hard_weight: of the loss on the labels.
        cosine_weight: of `cosine_loss`; 0 for hidden states of different sizes.
        mse_weight: of `mse_loss`, which knows no temperature. `Distillation(kl_weight=0, mse_weight=1)` learns logits in
            place of probabilities.

    Raises:
        ValueError: a temperature that is not positive, a negative weight, or only zeros.
    """

    temperature: float = 2.0
    kl_weight: float = 5.0
    hard_weight: float = 2.0
    cosine_weight: float = 1.0
    mse_weight: float = 0.0

    def __post_init__(self):
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive, found {self.temperature}. The usual one is 2.")
        weights = (self.kl_weight, self.hard_weight, self.cosine_weight, self.mse_weight)
        if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
            raise ValueError(
                "kl_weight, hard_weight, cosine_weight and mse_weight must be 0 or more, and not all 0, found "
                f"{weights}."
            )


@dataclass
class DistillationOutput(StockPretrainingOutput):
    """The parts without their weights, and their weighted sum.

    Args:
        kl_loss: T^2 KL(teacher || student), mean over the targets.
        mse_loss: squared difference of logits, mean over the vocabulary and the targets.
        cosine_loss: 1 - cos of the last states, mean over the tokens.
    """

    kl_loss: Tensor | None = None
    mse_loss: Tensor | None = None
    cosine_loss: Tensor | None = None


class DistillationLosses(StockPretrainingLosses):
    """Losses of a student beside a frozen teacher.

    Args:
        model: the student, unwrapped; a stock masked or causal language model.
        teacher: of the same kind, with the same vocabulary. It is put into evaluation mode and gets no gradients.
        distillation: temperature and weights.
        gather: as in `StockPretrainingLosses`.

    Raises:
        ValueError: other kinds of models, or a teacher that does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: PreTrainedModel,
        distillation: Distillation | None = None,
        gather: bool = True,
    ):
        super().__init__(model, gather)
        self.teacher = StockPretrainingLosses(teacher, gather)
        self.distillation = Distillation() if distillation is None else distillation
        self._check()
        teacher.eval().requires_grad_(False)
        self.hard_parts = self.parts
        how = self.distillation
        weights = dict.fromkeys(self.hard_parts, how.hard_weight) | {"kl_loss": how.kl_weight}
        more = {"mse_loss": how.mse_weight, "cosine_loss": how.cosine_weight}
        weights |= {part: weight for part, weight in more.items() if weight}
        self.parts, self.weights = tuple(weights), tuple(weights.values())

    def count(self, batch: dict) -> Tensor:
        """Targets of each of `parts` in a batch (K,); see `StockPretrainingLosses`."""
        counts = super().count(batch)
        tokens = self._tokens(batch).sum().to(counts)
        more = [tokens if part == "cosine_loss" else counts[0] for part in self.parts[len(counts) :]]
        return torch.cat([counts, torch.stack(more)])

    def __call__(
        self, wrapped: nn.Module | None = None, num_items_in_batch: Tensor | None = None, **batch
    ) -> DistillationOutput:
        """Run student and teacher; arguments and errors as in `StockPretrainingLosses`."""
        model = self.model if wrapped is None else wrapped
        items = self.count(batch) if num_items_in_batch is None else num_items_in_batch
        seen = []

        def student(**inputs):
            seen.append(model(**inputs, output_hidden_states=True))
            return seen[0]

        hard = super().__call__(student, items, **batch)
        targets = self._targets(batch)
        places, tokens = targets != -100, self._tokens(batch)
        taught = self._taught(batch, places)
        temperature = self.distillation.temperature
        ours, theirs = (_rows(one, places) for one in (seen[0], taught))  # (N, V) each
        kl = summed_divergence(ours / temperature, theirs / temperature, targets[places], "token")
        output = DistillationOutput(**hard)
        output["kl_loss"] = mean_of_all(temperature**2 * kl, 1, items[len(self.hard_parts)])
        if self.distillation.mse_weight:
            squares = (ours - theirs).pow(2).mean(1).sum()
            output["mse_loss"] = mean_of_all(squares, 1, items[self.parts.index("mse_loss")])
        if self.distillation.cosine_weight:
            states = [_precise(one.hidden_states[-1][tokens]) for one in (seen[0], taught)]
            output["cosine_loss"] = mean_of_all(
                (1 - F.cosine_similarity(*states, dim=-1)).sum(), 1, items[-1]
            )
        output["loss"] = self.total(output)
        return output

    @torch.no_grad()
    def _taught(self, batch: dict, places: Tensor):
        """What the teacher makes of a batch."""
        teacher = self.teacher.model.to(places.device)
        labels = {"labels", "shift_labels", *self.pairs}
        left_out = labels if self.teacher.has_types else {*labels, "token_type_ids"}
        inputs = {name: value for name, value in batch.items() if name not in left_out}
        if self.kind == "causal" and "use_cache" in self.teacher.accepted:
            inputs["use_cache"] = False
        if not self.gather:
            return teacher(**inputs, output_hidden_states=True)
        with gathered(teacher, places):
            return teacher(**inputs, output_hidden_states=True)

    @staticmethod
    def _tokens(batch: dict) -> Tensor:
        """(B, L), bool: not padding."""
        mask = batch.get("attention_mask")
        if mask is None or mask.dim() != 2:
            ids = next(batch[name] for name in ("input_ids", "labels", "shift_labels") if name in batch)
            return torch.ones_like(ids, dtype=torch.bool)
        return mask.bool()

    def _check(self) -> None:
        student, teacher = self.model, self.teacher.model
        names = f"a student {type(student).__name__} and a teacher {type(teacher).__name__}"
        if self.kind not in KINDS or self.teacher.kind != self.kind:
            raise ValueError(
                f"distillation needs two masked or two causal language models, found {names}. Take a teacher of the "
                "student's kind."
            )
        if student is teacher:
            raise ValueError(
                "student and teacher are one object, found no second model. Pass copy.deepcopy(model)."
            )
        for field, advice in (
            ("vocab_size", "Take a teacher with the student's tokenizer."),
            ("hidden_size", "Set cosine_weight=0."),
        ):
            sizes = [getattr(one.config.get_text_config(), field) for one in (student, teacher)]
            if sizes[0] != sizes[1] and (field == "vocab_size" or self.distillation.cosine_weight):
                raise ValueError(
                    f"student and teacher must have the same {field}, found {sizes[0]} and {sizes[1]}. {advice}"
                )


class DistillationTrainer(StockPretrainingTrainer):
    """`StockPretrainingTrainer` of a student, with the parts `kl_loss`, `mse_loss` and `cosine_loss` beside the stock ones.

    `loss` and `eval_loss` are weighted sums; the parts have no weights in them.

    Args:
        model: the student, a stock masked or causal language model.
        args: as in Trainer.
        teacher: stays as it is, and is not saved.
        distillation: temperature and weights.

    Raises:
        ValueError: as `StockPretrainingTrainer`; a teacher that does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *more,
        teacher: PreTrainedModel,
        distillation: Distillation | None = None,
        **kwargs,
    ):
        super().__init__(model, args, *more, **kwargs)
        if not isinstance(self.stock, StockPretrainingLosses):
            raise ValueError(
                f"distillation is for stock masked and causal language models, found {type(model).__name__}."
            )
        self.stock = DistillationLosses(self.stock.model, teacher, distillation, gather=self.stock.gather)


def _rows(found, places: Tensor) -> Tensor:
    """(N, V) logits of the targets."""
    logits = found["prediction_logits"] if "prediction_logits" in found else found["logits"]
    return _precise(logits if logits.dim() == 2 else logits[places])


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


__all__ = ["Distillation", "DistillationLosses", "DistillationOutput", "DistillationTrainer"]
