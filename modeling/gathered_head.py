"""Losses of stock models in pre-training: the softmax at masked positions alone, and means over a whole batch.

Stock masked language models make logits of all positions, of which 15 per cent are used; here their head reads only these
rows, and loss and gradients stay the same. Stock heads also ignore `num_items_in_batch`, so that Trainer multiplies their
gradients by the accumulation steps; here each part of the loss is a sum divided by the targets of the whole batch.

Letters: B rows, L positions, N masked positions, H features, V words, K parts of a loss.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import ModelOutput

from .backbones_joint_loss import check_decoder, position_limit
from .losses import classification_loss, mean_of_all
from .seq2seq_losses import StockSeq2SeqLosses

# The modules that make logits of hidden states, one after the other, by `model_type`. The first one reads (.., H).
HEADS: dict[str, tuple[str, ...]] = {
    "albert": ("predictions",),
    "bert": ("cls.predictions",),
    "camembert": ("lm_head",),
    "deberta-v2": ("cls",),  # of a legacy config; see `mlm_head`
    "distilbert": ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
    "electra": ("generator_predictions", "generator_lm_head"),
    "ernie": ("cls.predictions",),
    "megatron-bert": ("cls.predictions",),
    "modernbert": ("head", "decoder"),
    "mpnet": ("lm_head",),
    "roberta": ("lm_head",),
    "xlm-roberta": ("lm_head",),
}

DISCRIMINATORS = {"ElectraForPreTraining"}
ALIGNED = {"FlaubertWithLMHeadModel", "XLMWithLMHeadModel", "XLNetLMHeadModel"}  # labels are not shifted
CAUSAL = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) - ALIGNED
PAIRS = {  # label: its loss and its logits
    "next_sentence_label": ("nsp_loss", "seq_relationship_logits"),
    "sentence_order_label": ("sop_loss", "sop_logits"),
}
KINDS = {
    "masked": "a masked language model (BertForMaskedLM, BertForPreTraining, AlbertForPreTraining ...)",
    "discriminator": "a discriminator (ElectraForPreTraining)",
    "aligned": "a permutation language model (XLNetLMHeadModel)",
    "causal": "a causal language model (GPT2LMHeadModel ...)",
    "seq2seq": "an encoder-decoder (BART, T5, EncoderDecoderModel ...)",
}


def kind_of(model: nn.Module) -> str:
    """Which of `KINDS` a stock model is, by its class or the class that it is derived from.

    Raises:
        ValueError: none of them, or a causal head on positions that see each other.
    """
    names = [kind.__name__ for kind in type(model).__mro__]
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return "seq2seq"
    for name in names:
        for kind, known in (("discriminator", DISCRIMINATORS), ("aligned", ALIGNED), ("causal", CAUSAL)):
            if name in known:
                check_decoder(model.config, kind)
                return kind
        if name.endswith(("ForMaskedLM", "ForPreTraining")):
            return "masked"
    raise ValueError(f"expected {', '.join(KINDS.values())}, got {names[0]}, which has no such head.")


# The head


def mlm_head(model: nn.Module) -> tuple[nn.Module, ...] | None:
    """The modules that make logits of hidden states, one after the other; None if the model is not in `HEADS`."""
    names = HEADS.get(getattr(model.config, "model_type", None))
    if names is None or kind_of(model) != "masked":
        return None
    if names == ("cls",) and not model.legacy:
        names = ("lm_predictions",)
    try:
        return tuple(attrgetter(name)(model) for name in names)
    except AttributeError:  # a class of the same family with other modules
        return None


def mlm_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """The logits of some hidden states, as the model's own forward makes them of all.

    Args:
        model: a stock masked language model.
        hidden: (.., H), last states of its encoder.

    Returns:
        (.., V).

    Raises:
        ValueError: a model whose head is not known.
    """
    head = mlm_head(model)
    if head is None:
        raise ValueError(
            f"the head of {type(model).__name__} is not known; expected one of {', '.join(HEADS)} with ForMaskedLM or "
            "ForPreTraining. Call the model instead."
        )
    more = (model.get_input_embeddings(),) if head[0] is getattr(model, "lm_predictions", None) else ()
    hidden = head[0](hidden, *more)
    for module in head[1:]:
        hidden = module(hidden)
    return hidden


@contextmanager
def gathered(model: nn.Module, places: Tensor) -> Iterator[None]:
    """Within, the model's head reads only `places` (B, L), bool, so that its logits are (N, V) and not (B, L, V).

    The model is called as ever, through DistributedDataParallel too. Nothing happens where the head is not known.
    """
    head = mlm_head(model)
    if head is None:
        yield
        return
    hook = head[0].register_forward_pre_hook(lambda _, inputs: (inputs[0][places], *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


# The losses


@dataclass
class StockPretrainingOutput(ModelOutput):
    """The parts of a stock model's loss, in nats.

    Args:
        loss: their sum.
        mlm_loss: mean over the masked tokens.
        nsp_loss: mean over the pairs, of `next_sentence_label`.
        sop_loss: mean over the pairs, of `sentence_order_label`.
        rtd_loss: mean over all tokens, of a discriminator.
        lm_loss: mean over the tokens that are predicted, of a causal or permutation language model.
        seq2seq_loss: mean over the labels of a decoder.
        mems: what XLNet keeps for the next segment.
    """

    loss: Tensor | None = None
    mlm_loss: Tensor | None = None
    nsp_loss: Tensor | None = None
    sop_loss: Tensor | None = None
    rtd_loss: Tensor | None = None
    lm_loss: Tensor | None = None
    seq2seq_loss: Tensor | None = None
    mems: tuple[Tensor, ...] | None = None


class StockPretrainingLosses:
    """A stock model with named losses that are means over all targets of a step.

    Args:
        model: unwrapped.
        gather: let the head of a masked language model read masked positions alone. Not under torch.compile, which may
            keep the positions of an earlier batch.

    Raises:
        ValueError: a model of no known kind.
    """

    def __init__(self, model: nn.Module, gather: bool = True):
        self.model, self.gather, self.kind = model, gather, kind_of(model)
        self.accepted = set(inspect.signature(model.forward).parameters)
        # RoBERTa has one type, DistilBERT none; an EncoderDecoderModel hands types on to its encoder.
        types = getattr(model.config, "type_vocab_size", 2)
        self.has_types = model.config.model_type == "encoder-decoder" or (
            "token_type_ids" in self.accepted and types > 1
        )
        self.pairs = {name: PAIRS[name] for name in PAIRS if self.kind == "masked" and name in self.accepted}
        first = {"masked": "mlm_loss", "discriminator": "rtd_loss", "seq2seq": "seq2seq_loss"}
        self.parts = (first.get(self.kind, "lm_loss"), *(part for part, _ in self.pairs.values()))
        self.weights = (1.0,) * len(self.parts)
        self.seq2seq = StockSeq2SeqLosses(model) if self.kind == "seq2seq" else None
        self.longest = {"input_ids": position_limit(model)}
        if self.kind == "seq2seq":
            self.longest["labels"] = position_limit(model.get_decoder())

    def count(self, batch: dict) -> Tensor:
        """How many targets each of `parts` has in a batch (K,).

        Raises:
            ValueError: no labels, or labels that the model does not read.
        """
        name = type(self.model).__name__
        for label in PAIRS:
            if label in batch and label not in self.pairs:
                reads = f" reads {', '.join(self.pairs)}" if self.pairs else " has no head for pairs"
                raise ValueError(
                    f"the batch has `{label}`, but {name}{reads}. Name the label so in the data set (label_name of "
                    "SentencePairDataset), leave it out, or take a model for it such as BertForPreTraining."
                )
        targets = self._targets(batch)
        pairs = [batch.get(label, targets[:0]) for label in self.pairs]
        return torch.stack([labels.ne(-100).sum() for labels in (targets, *pairs)])

    def total(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum of those of `parts` that there are."""
        return sum(w * parts[part] for part, w in zip(self.parts, self.weights, strict=True) if part in parts)

    def first_rows(self, batch: dict, rows: int) -> dict:
        """The first rows of a batch, one at least."""
        return {name: value[: max(1, rows)] for name, value in batch.items()}

    def __call__(
        self,
        wrapped: nn.Module | None = None,
        num_items_in_batch: Tensor | None = None,
        **batch,
    ) -> StockPretrainingOutput:
        """Run the model.

        Args:
            wrapped: the same model as it is called in training, for instance by DistributedDataParallel.
            num_items_in_batch: (K,), targets of each of `parts` in all accumulated batches; None means this batch only.
            **batch: inputs of the model with `labels` (B, L), and labels of pairs (B,) if the model reads them.

        Returns:
            The parts that the batch has, and their sum.

        Raises:
            ValueError: no labels, labels out of range, rows beyond the model's positions, or an XLNet in half precision.
        """
        self._check_length(batch)
        model = self.model if wrapped is None else wrapped
        items = self.count(batch) if num_items_in_batch is None else num_items_in_batch
        output = StockPretrainingOutput()
        if not self.has_types:
            batch.pop("token_type_ids", None)
        if self.seq2seq is not None:
            self._targets(batch)
            pairs = self.seq2seq(wrapped=model, num_items_in_batch=items[0], **batch)
            output["seq2seq_loss"] = pairs.seq2seq_loss
        else:
            targets = self._targets(batch)
            ours = {"labels", "shift_labels", *self.pairs}
            inputs = {name: value for name, value in batch.items() if name not in ours}
            self._check_precision(inputs)
            if self.kind == "causal" and "use_cache" in self.accepted:
                inputs["use_cache"] = False
            places = targets != -100
            with gathered(self.model, places) if self.gather else nullcontext():
                found = model(**inputs)
            total = self._summed(found, targets, places)
            output[self.parts[0]] = mean_of_all(total, 1, items[0])
            for number, (label, (part, logits)) in enumerate(self.pairs.items(), 1):
                if label in batch:
                    output[part] = classification_loss(
                        found[logits], batch[label].view(-1), "single_label_classification", items[number]
                    )
            if self.kind == "aligned" and found.get("mems") is not None:
                output["mems"] = found["mems"]
        output["loss"] = self.total(output)
        return output

    def _check_length(self, batch: dict) -> None:
        for name, longest in self.longest.items():
            if longest is not None and name in batch and batch[name].shape[1] > longest:
                raise ValueError(
                    f"{type(self.model).__name__} has {longest} positions, found {name} of {batch[name].shape[1]}. Cut "
                    f"rows when tokenizing (truncation=True, max_length={longest})."
                )

    def _check_precision(self, inputs: dict) -> None:
        """XLNet's second stream multiplies its weights with numbers of float32, unless autocast is on."""
        mapping, dtype = inputs.get("target_mapping"), self.model.dtype
        if (
            mapping is not None
            and mapping.dtype != dtype
            and not torch.is_autocast_enabled(mapping.device.type)
        ):
            raise ValueError(
                f"{type(self.model).__name__} has weights of {dtype}, with which Transformers cannot run its second stream. "
                "Load it with dtype=torch.float32; bf16=True of TrainingArguments computes in half precision all the same."
            )

    def _targets(self, batch: dict) -> Tensor:
        """(B, L) at the places of the logits, -100 where there is none."""
        if self.kind == "causal" and batch.get("shift_labels") is not None:
            return batch["shift_labels"]
        labels = batch.get("labels")
        if labels is None:
            raise ValueError(
                f"{type(self.model).__name__} needs `labels` for a loss, but the batch has {sorted(batch)}. Use a data "
                "collator that makes them."
            )
        # As the model would shift logits, without a copy of these.
        return F.pad(labels[:, 1:], (0, 1), value=-100) if self.kind == "causal" else labels

    def _summed(self, found: ModelOutput, targets: Tensor, places: Tensor) -> Tensor:
        """() summed loss of the targets (B, L)."""
        logits = found["prediction_logits"] if "prediction_logits" in found else found["logits"]
        precise = torch.promote_types(logits.dtype, torch.float32)
        wanted = targets[places]
        if self.kind == "discriminator":
            if len(wanted) and int(wanted.max()) > 1:
                raise ValueError(
                    f"{type(self.model).__name__} needs labels 0 (original) and 1 (replaced), got {int(wanted.max())}. "
                    "Use DataCollatorForReplacedTokenDetection(tokenizer, noise=ReplacedTokenNoise())."
                )
            chosen = logits[places].to(precise)
            return F.binary_cross_entropy_with_logits(chosen, wanted.to(chosen), reduction="sum")
        rows = logits if logits.dim() == 2 else logits[places]  # (N, V)
        return F.cross_entropy(rows.to(precise), wanted, reduction="sum")


__all__ = [
    "HEADS",
    "KINDS",
    "StockPretrainingLosses",
    "StockPretrainingOutput",
    "gathered",
    "kind_of",
    "mlm_head",
    "mlm_logits",
]
