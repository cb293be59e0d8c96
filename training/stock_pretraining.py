"""Pre-training with exact means of stock models (BERT, RoBERTa, ALBERT, ELECTRA, BART, T5, XLNet, GPT-2 and their kin), and
of ours that hold one and have several losses (joint ELECTRA, SpanBERT, ERNIE with entities).

However a step is cut into batches and spread over processes, its loss is the sum of its named parts, each a mean over the
part's targets in the whole step.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import ModelOutput

from ..modeling.gathered_head import KINDS, StockPretrainingLosses
from ..objectives.permutation import DataCollatorForPermutationLanguageModeling
from ..objectives.token_lanes import TokenLanes
from .recurrence import SegmentRecurrence, check_made_as_configured, check_memories
from .trainer import PretrainingTrainer, perplexity

WITH_PERPLEXITY = ("mlm_loss", "lm_loss", "seq2seq_loss")


class StockPretrainingTrainer(PretrainingTrainer):
    """`PretrainingTrainer` for stock models, and for ours with several losses; our language models train as they do there.

    Training logs `loss` and the parts that the model has: `mlm_loss`, `nsp_loss`, `sop_loss`, `rtd_loss`, `sbo_loss`,
    `dea_loss`, `lm_loss` or `seq2seq_loss`. Evaluation gives `eval_loss`, the weighted sum of the parts, `eval_{part}`, each a
    mean over its targets, and `eval_perplexity` of the tokens. Masked language models make logits of masked positions alone.

    Over `TokenLanes`, an XLNet with `attn_type="uni"` is a Transformer-XL: its memories go from each batch to the next, and
    begin anew with each epoch and in each evaluation, which leaves those of the training alone. There are as many lanes as
    rows of a batch, of all processes together. A checkpoint keeps the memories; it resumes only with as many lanes. Over
    `PermutationLanes`, an XLNet that sees both sides keeps the first part of each row, as in its own pre-training.

    Columns of the data set all reach the collator. Each epoch's number reaches `set_epoch` of the data set and of the
    collator; in evaluation the collator's epoch is 0, so that every evaluation has the same masks.

    Args:
        model: stock or our own.
        args: as in Trainer.

    Raises:
        ValueError: a model without a known pre-training head, a collator that does not fit it, or options under which
            losses would not be exact.
    """

    def __init__(self, model: nn.Module, args: TrainingArguments, *more, **kwargs):
        args = copy.copy(args)
        args.remove_unused_columns = False  # strategies read word_ids, which no model does
        super().__init__(model, args, *more, **kwargs)
        self._epoch = 0
        self._part_sums = torch.zeros(0)
        self.add_callback(_Epochs(self))
        plain = self.accelerator.unwrap_model(self.model)
        self.stock: StockPretrainingLosses | _SeveralLosses | None = None
        if hasattr(plain, "count_items") or not hasattr(plain, "count_targets"):
            several = hasattr(plain, "count_items")
            self.stock = (
                _SeveralLosses(plain) if several else StockPretrainingLosses(plain, not args.torch_compile)
            )
            self._check_options()
            self._check_collator(plain)
            self.label_smoother = None
            self.model_accepts_loss_kwargs = True
        self.train_dataset = self._spread(self.train_dataset, args.train_batch_size)

    def _check_options(self) -> None:
        args = self.args
        if self.compute_loss_func is not None or args.label_smoothing_factor:
            raise ValueError(
                "compute_loss_func and label_smoothing_factor replace the loss, and with it its parts. Leave them out."
            )
        if self.compute_metrics is not None or self.preprocess_logits_for_metrics is not None:
            raise ValueError(
                "compute_metrics needs logits of all positions, but only losses are kept here. Evaluate with a stock "
                "Trainer."
            )
        if args.world_size > 1 and not args.average_tokens_across_devices:
            raise ValueError(
                "average_tokens_across_devices=False makes a mean of each process's means. Leave it at True."
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"one process with {args.n_gpu} GPUs (DataParallel) cannot weigh losses by their targets. Start one process "
                "a GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one."
            )
        if args.dataloader_num_workers and args.dataloader_persistent_workers:
            raise ValueError(
                "dataloader_persistent_workers=True keeps workers that do not hear of a new epoch, and with it every epoch's "
                "masks. Leave it out."
            )

    def _check_collator(self, model: nn.Module) -> None:
        collator, kind = self.data_collator, self.stock.kind
        fits = getattr(collator, "fits", None)
        if fits is not None and kind is not None and kind not in fits:
            wanted = " or ".join(KINDS.get(fit, fit) for fit in fits)
            raise ValueError(
                f"{type(collator).__name__} makes batches for {wanted}, but {type(model).__name__} is {KINDS[kind]}."
            )
        vocabulary = getattr(collator, "vocabulary", None)
        rows = model.get_input_embeddings().weight.shape[0]
        if vocabulary is not None and vocabulary.size > rows:
            raise ValueError(
                f"the tokenizer has {vocabulary.size} ids, but {type(model).__name__} embeds {rows}. Call "
                "model.resize_token_embeddings(len(tokenizer))."
            )

    # Lanes

    def _spread(self, dataset, rows: int):
        """Lanes as many as a batch of all processes has rows; other data as they are."""
        if not isinstance(dataset, TokenLanes):
            return dataset
        model = self.accelerator.unwrap_model(self.model)
        reuse_len = getattr(dataset, "reuse_length", None)
        check_memories(model.config, reuse_len)
        check_made_as_configured(model)
        self._check_parts(reuse_len)
        if self.args.auto_find_batch_size or self.args.accelerator_config.split_batches:
            raise ValueError(
                "auto_find_batch_size and split_batches change the rows of a batch, and with them which row goes on from "
                "which. Leave them out with TokenLanes."
            )
        return dataset.spread(rows * self.args.world_size)

    def _check_parts(self, reuse_len: int | None) -> None:
        """Refuse a collator whose parts of a row are not those that become memory."""
        collator = self.data_collator
        permuted = isinstance(collator, DataCollatorForPermutationLanguageModeling)
        if permuted != (reuse_len is not None):
            raise ValueError(
                f"{type(collator).__name__} does not fit these lanes: PermutationLanes go with "
                "DataCollatorForPermutationLanguageModeling, TokenLanes with DataCollatorForTokenLanes."
            )
        if permuted and collator.targets.reuse_length != reuse_len:
            raise ValueError(
                f"the collator's targets have reuse_length={collator.targets.reuse_length}, but {reuse_len} tokens of each "
                "row become memory, and would have seen what must be told later. Give "
                f"DataCollatorForPermutationLanguageModeling(tokenizer, PermutationTargets(reuse_length={reuse_len}))."
            )

    def _carried(self, dataset) -> SegmentRecurrence | None:
        return SegmentRecurrence("mems") if isinstance(dataset, TokenLanes) else super()._carried(dataset)

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if isinstance(dataset, TokenLanes):
            return SequentialSampler(dataset)
        return super()._get_train_sampler(train_dataset)

    def _get_eval_sampler(self, eval_dataset):
        if isinstance(eval_dataset, TokenLanes):
            return SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As in Trainer; lanes as many as a batch has rows."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        return super().get_eval_dataloader(self._spread(dataset, self.args.eval_batch_size))

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """As in Trainer; lanes as many as a batch has rows."""
        return super().get_test_dataloader(self._spread(test_dataset, self.args.eval_batch_size))

    # Epochs

    def begin_epoch(self, epoch: int, inside: bool = False) -> None:
        """Tell the training set and the collator of an epoch, and begin lanes anew.

        Args:
            epoch: its number.
            inside: a resumed training goes on in the middle of it.
        """
        self._epoch = epoch
        if isinstance(self.train_dataset, TokenLanes) and (not inside or self.args.ignore_data_skip):
            self._recurrence.reset()
        if hasattr(self.train_dataset, "set_epoch"):
            self.train_dataset.set_epoch(epoch)
        self._tell_collator(epoch)

    def _tell_collator(self, epoch: int) -> None:
        if hasattr(self.data_collator, "set_epoch"):
            self.data_collator.set_epoch(epoch)

    @contextmanager
    def _collating_as_in(self, epoch: int) -> Iterator[None]:
        """The collator in another epoch for a while."""
        self._tell_collator(epoch)
        try:
            yield
        finally:
            self._tell_collator(self._epoch)

    # Exact means

    def _get_num_items_in_batch(self, batch_samples, device):
        if self.stock is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        counts = torch.zeros(len(self.stock.parts), dtype=torch.long, device=device)
        for batch in batch_samples:  # none where an epoch is shorter than the first
            counts += self.stock.count(batch).to(device)
        counts = self.accelerator.reduce(counts, "sum") if self.args.world_size > 1 else counts
        self._targets += counts[0]
        return counts

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in Trainer, with a count for each part."""
        if self.stock is not None:
            model = _Exact(self.stock, model)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As in Trainer; of stock models the loss alone."""
        loss_only = prediction_loss_only or self.stock is not None
        return super().prediction_step(model, inputs, loss_only, ignore_keys)

    def _evaluated_loss(self, model, inputs):
        if self.stock is None:
            return super()._evaluated_loss(model, inputs)
        rows = len(next(iter(inputs.values())))
        kept = rows if self._recurrence is not None else self._rows_of_their_own(rows)
        if kept < rows:
            inputs = self.stock.first_rows(inputs, kept)
        # A mean over one item is a sum.
        outputs = model(**inputs, num_items_in_batch=torch.ones(len(self.stock.parts), dtype=torch.long))
        if kept:
            sums = [float(outputs[part]) if part in outputs else 0.0 for part in self.stock.parts]
            self._part_sums += torch.tensor([sums, self.stock.count(inputs).tolist()], dtype=torch.float64)
        return outputs.loss, outputs

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """As in Trainer, with exact means of all parts."""
        if self.stock is None:
            with self._collating_as_in(0):
                return super().evaluation_loop(
                    dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs
                )
        parts = self.stock.parts
        self._part_sums = torch.zeros(2, len(parts), dtype=torch.float64)
        with self._collating_as_in(0):
            output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums, counts = self._over_processes(self._part_sums).tolist()
        means = {part: total / count for part, total, count in zip(parts, sums, counts, strict=True) if count}
        weights = dict(zip(parts, self.stock.weights, strict=True))
        metrics = means | {"loss": sum(weights[part] * mean for part, mean in means.items())}
        if parts[0] in WITH_PERPLEXITY and parts[0] in means:
            metrics["perplexity"] = perplexity(means[parts[0]])
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    def _nats_of_perplexity(self, logs: dict[str, float]) -> float | None:
        if self.stock is None:
            return super()._nats_of_perplexity(logs)
        return logs.get(self.stock.parts[0]) if self.stock.parts[0] in WITH_PERPLEXITY else None


class _SeveralLosses:
    """One of our models with several losses, as `StockPretrainingLosses` shows a stock one."""

    kind = None

    def __init__(self, model: nn.Module):
        self.model, self.parts, self.weights = model, model.loss_names, model.loss_weights()
        self.count, self.first_rows = model.count_items, model.first_rows

    def __call__(self, wrapped: nn.Module, **batch) -> ModelOutput:
        return wrapped(**batch)


class _Exact:
    """A model as Trainer calls it, with exact losses."""

    def __init__(self, losses: StockPretrainingLosses | _SeveralLosses, model: nn.Module):
        self.losses, self.model, self.training = losses, model, model.training

    def __call__(self, **batch) -> ModelOutput:
        return self.losses(wrapped=self.model, **batch)


class _Epochs(TrainerCallback):
    """Tells data set and collator of each epoch. Trainer tells the data set, but with several processes it does not."""

    def __init__(self, trainer: StockPretrainingTrainer):
        self.trainer, self.next, self.inside = trainer, 0, False

    def on_train_begin(self, args, state, control, **kwargs):
        """A resumed training goes on in its epoch."""
        epoch = state.epoch or 0.0
        self.next = int(epoch + 1e-9)
        self.inside = epoch - self.next > 1e-9

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Before the epoch's first batch."""
        self.trainer.begin_epoch(self.next, self.inside)
        self.next, self.inside = self.next + 1, False


__all__ = ["StockPretrainingTrainer"]
