"""What fine-tuning does to the language model: its loss on some texts before, during and after, as numbers, table and plot.

Losses are means over all predicted tokens of a text, in nats, whatever the training's own reduction is. Letters: N rows,
T positions.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from ..modeling.backbones_joint_loss import open_language_model, position_limit
from ..modeling.reading_joint_loss import predicted, read, token_mask
from ..objectives.collators import IGNORED
from ..objectives.joint_collators import TokenHider
from .plots import plot_forgetting

NAMES = ("input_ids", "attention_mask", "char_ids")


def language_model_of(model: PreTrainedModel) -> tuple[PreTrainedModel, str]:
    """The language model in a model, with its head, and its objective.

    Args:
        model: of `JointLossFor...`, or a language model itself.

    Returns:
        It, and "causal", "masked" or "bidirectional".

    Raises:
        ValueError: there is none.
    """
    if hasattr(model, "language_model") and hasattr(model.config, "lm_objective"):
        return model.language_model, model.config.lm_objective
    try:
        return open_language_model(model)
    except ValueError as error:
        raise ValueError(
            f"a forgetting report measures a language model's loss, but {type(model).__name__} has no language-model head. "
            "Use JointLossFor..., which keeps it, also with lm_loss_weight=0."
        ) from error


def collate_rows(
    rows: Sequence[Sequence[int]], objective: str, hide: TokenHider | None = None
) -> dict[str, Tensor]:
    """Rows of ids as a batch for `lm_loss`.

    Args:
        rows: N lists of token ids, as the language model was pre-trained on them.
        objective: "causal", "masked" or "bidirectional".
        hide: chooses what a masked model predicts.

    Returns:
        `input_ids`, `attention_mask` and `lm_targets`, (N, T) each.
    """
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    targets = ids.masked_fill(mask == 0, IGNORED)
    if objective == "masked":
        ids, targets = hide(ids, mask)
    return {"input_ids": ids, "attention_mask": mask, "lm_targets": targets}


@torch.no_grad()
def lm_loss(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> tuple[float, int]:
    """A language model's exact mean loss on a text, with dropout off.

    Args:
        model: of `JointLossFor...`, or a language model.
        batches: `input_ids` (or `char_ids`), `attention_mask` and `lm_targets`, or the same names with `lm_` before them:
            batches of a joint-loss collator. Without targets the text itself is predicted.

    Returns:
        Nats a token, and the tokens; the biLM's sentence marks count too.

    Raises:
        ValueError: no language model, nothing to predict, or a masked model without targets.
    """
    language_model, objective = language_model_of(model)
    device, training = language_model.device, model.training
    total, count = 0.0, 0
    model.eval()
    try:
        for batch in batches:
            rows, targets = _read(language_model.config, objective, batch)
            rows = {name: tensor.to(device) for name, tensor in rows.items()}
            reading = read(language_model, objective, "token", rows, targets.to(device))
            total, count = total + float(reading.total), count + int(reading.count)
    finally:
        model.train(training)
    if not count:
        raise ValueError(
            "the text has no token to predict: a causal model predicts none of a row's first token. Give longer rows."
        )
    return total / count, count


def _read(config, objective: str, batch: Mapping) -> tuple[dict[str, Tensor], Tensor]:
    """A batch as flat rows, and what is predicted."""
    second = any(batch.get(f"lm_{name}") is not None for name in ("input_ids", "char_ids"))
    rows = {name: batch.get(f"lm_{name}" if second else name) for name in NAMES}
    rows = {
        name: value.flatten(0, -3 if name == "char_ids" else -2)
        for name, value in rows.items()
        if value is not None
    }
    targets = batch.get("lm_targets")
    if targets is None and objective != "masked":
        targets = rows.get("input_ids")
    if targets is None or not rows:
        raise ValueError(
            f"a batch for a {objective} language model needs its text and lm_targets, found {sorted(batch)}. Give rows of "
            "token ids, or batches of a JointLossCollator."
        )
    targets, mask = targets.flatten(0, -2), token_mask(config, rows)
    if targets.shape != mask.shape:
        raise ValueError(
            f"lm_targets must have the text's shape {tuple(mask.shape)}, found {tuple(targets.shape)}."
        )
    return rows, predicted(targets, mask, objective)


class ForgettingReport(TrainerCallback):
    """Measures language-model losses before the first step, at each evaluation and at the end, and reports the change.

    `trainer.state.log_history` gets `forgetting_{name}_lm_loss` and, from the start, `forgetting_{name}_lm_loss_change`;
    it is part of a checkpoint, so that a resumed run still compares with its very beginning. At the end `output_dir` has
    `forgetting.json`, the table `forgetting.md` and the picture `forgetting.png`. With `load_best_model_at_end` the last
    record is that of the chosen model. Every process measures everything, so that all have the same history.

    Batches are made once and kept in memory: a masked model predicts the same hidden tokens each time. The training's
    random numbers are not touched.

    Args:
        texts: {name: text}, such as the task's text and held-out general text: lists of token ids, or collated batches
            (a `DataLoader`; needed for ELMo's characters).
        tokenizer: for masked models, to hide tokens; None takes Trainer's `processing_class`.
        batch_size: rows of ids that are read at once.
        mlm_rate: share of words that is hidden from a masked model.
        seed: of what is hidden, and of a `DataLoader`'s random numbers.

    Raises:
        ValueError: no texts, or an empty one.
    """

    def __init__(
        self,
        texts: Mapping[str, Iterable],
        tokenizer: PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        mlm_rate: float = 0.15,
        seed: int = 0,
    ):
        if not texts:
            raise ValueError(
                'a forgetting report needs texts, found none. Give {"general": rows of token ids}.'
            )
        for name, text in texts.items():
            if hasattr(text, "__len__") and not len(text):
                raise ValueError(
                    f"text {name!r} of the forgetting report is empty. Give it rows, or leave it out."
                )
        self.texts, self.tokenizer, self.batch_size = texts, tokenizer, batch_size
        self.mlm_rate, self.seed = mlm_rate, seed
        self._batches: dict[str, list[Mapping]] = {}
        self._tokens: dict[str, int] = {}

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **kwargs):
        """Make the batches, and measure what the language model knows before any step."""
        if model is None:
            raise ValueError(
                "a forgetting report measures its trainer's model, found none. Give it to Trainer in `callbacks`, or with "
                "trainer.add_callback."
            )
        language_model, objective = language_model_of(model)
        devices = range(torch.cuda.device_count())
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            self._batches = {
                name: self._collated(name, list(text), language_model, objective, processing_class)
                for name, text in self.texts.items()
            }
        if not records_of(state.log_history):
            self._measure(state, model)

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """Measure, once a step."""
        records = records_of(state.log_history)
        if records and records[-1]["step"] != state.global_step:
            self._measure(state, model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """Measure what is left, and write the report."""
        if args.load_best_model_at_end or records_of(state.log_history)[-1]["step"] != state.global_step:
            self._measure(state, model)
        if state.is_world_process_zero:
            if not self._tokens:  # resumed at its end
                self._tokens = {name: lm_loss(model, batches)[1] for name, batches in self._batches.items()}
            write_report(records_of(state.log_history), self._tokens, args.output_dir)

    def _measure(self, state, model: PreTrainedModel) -> None:
        known = records_of(state.log_history)
        record = {"epoch": state.epoch or 0.0, "step": state.global_step}
        for name, batches in self._batches.items():
            key = f"forgetting_{name}_lm_loss"
            record[key], self._tokens[name] = lm_loss(model, batches)
            before = next((one[key] for one in known if key in one), record[key])
            record[f"{key}_change"] = record[key] - before
        state.log_history.append(record)

    def _collated(self, name: str, text: list, model: PreTrainedModel, objective: str, tokenizer) -> list:
        if text and isinstance(text[0], Mapping):
            return text
        rows = [list(row) for row in text if len(row) > (objective == "causal")]
        if not rows:
            raise ValueError(
                f"text {name!r} of the forgetting report has no token to predict in {len(text)} rows. Give rows of at least "
                "two token ids."
            )
        longest, limit = max(map(len, rows)), position_limit(model)
        if limit is not None and longest > limit:
            raise ValueError(
                f"text {name!r} has a row of {longest} tokens, but the language model has {limit} positions. Cut the rows."
            )
        words = model.config.get_text_config().vocab_size
        if (highest := max(map(max, rows))) >= words:
            raise ValueError(f"text {name!r} has the token id {highest}, expected ids below {words}.")
        hide = self._hider(tokenizer) if objective == "masked" else None
        return [
            collate_rows(rows[start : start + self.batch_size], objective, hide)
            for start in range(0, len(rows), self.batch_size)
        ]

    def _hider(self, tokenizer) -> TokenHider:
        tokenizer = self.tokenizer or tokenizer
        if tokenizer is None:
            raise ValueError(
                "a masked language model predicts hidden tokens, for which the report needs a tokenizer. Give it one, or "
                "Trainer a processing_class, or collated batches with lm_targets."
            )
        return TokenHider(tokenizer, rate=self.mlm_rate)


def records_of(log_history: Iterable[dict]) -> list[dict]:
    """The records of a forgetting report, oldest first.

    Args:
        log_history: of a trainer's state.
    """
    return [record for record in log_history if any(key.startswith("forgetting_") for key in record)]


def write_report(records: Sequence[dict], tokens: Mapping[str, int], folder: str | Path) -> None:
    """Write `forgetting.json`, `forgetting.md` and `forgetting.png`.

    Args:
        records: of `records_of`.
        tokens: of each text, by name.
        folder: where to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    texts, lines = {}, []
    for name, count in tokens.items():
        key = f"forgetting_{name}_lm_loss"
        losses = [record[key] for record in records if key in record]
        before, after = losses[0], losses[-1]
        texts[name] = {"tokens": count, "before": before, "after": after, "change": after - before}
        lines.append(f"| {name} | {count} | {before:.3f} | {after:.3f} | {after - before:+.3f} |")
    report = {"unit": "nats a token", "texts": texts, "records": list(records)}
    (folder / "forgetting.json").write_text(json.dumps(report, indent=2) + "\n")
    head = [
        f"Language-model loss in nats a token, before training and after step {records[-1]['step']}; more is worse.",
        "",
        "| text | tokens | before | after | change |",
        "|---|--:|--:|--:|--:|",
    ]
    (folder / "forgetting.md").write_text("\n".join([*head, *lines]) + "\n")
    plot_forgetting(records).savefig(folder / "forgetting.png")


__all__ = [
    "ForgettingReport",
    "collate_rows",
    "language_model_of",
    "lm_loss",
    "records_of",
    "write_report",
]
