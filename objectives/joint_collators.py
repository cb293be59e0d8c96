"""From rows with texts to batches for the joint-loss models: the head's rows, labels, and what the language model predicts.

A causal model predicts the very rows that the head reads (Radford et al. 2018): `_delimiter_` and `_classify_` are targets,
`_start_` and padding are not. A masked model needs a second stream, since the head should read clean text: the same rows
with tokens hidden as in Devlin et al. 2019, appendix A.1, a fixed number a row. In place of both the language model may read
general text again (replay), so as not to forget it.

Letters: B examples, N rows (B, 2 B or B C), M rows of the second stream, T positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from transformers import PreTrainedTokenizerBase

from .collators import IGNORED
from .input_forms import FORMS, InputTemplate

FLOAT_LABELS = ("regression", "multi_label_classification")


class ReplaySentences:
    """Sentences of general text without end: each once a pass, in another random order each pass.

    Each worker of a `DataLoader` goes through orders of its own.

    Args:
        sentences: plain texts, as a list or a column of a data set.
        seed: of the orders.

    Raises:
        ValueError: no sentences.
    """

    def __init__(self, sentences: Sequence[str], seed: int = 0):
        if not len(sentences):
            raise ValueError("replay needs at least one sentence, found none.")
        self.sentences, self.seed = sentences, seed
        self._worker: int | None = None
        self._order: Iterator[int] | None = None

    def draw(self, count: int) -> list[str]:
        """The next `count` sentences."""
        worker = get_worker_info()
        seed = None if worker is None else worker.seed
        if self._order is None or seed != self._worker:
            self._worker, self._order = seed, self._endless(self.seed + (seed or 0))
        return [self.sentences[next(self._order)] for _ in range(count)]

    def _endless(self, seed: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed % 2**63)
        while True:
            yield from torch.randperm(len(self.sentences), generator=generator).tolist()


@dataclass
class TokenHider:
    """Hides tokens for a masked language model: of those chosen 80 % become the mask, 10 % a random word, 10 % stay.

    Args:
        tokenizer: says which ids are special; those are neither chosen nor put in.
        kept: other ids that are never chosen.
        rate: share of each row's words that is chosen, rounded, and at least one.
        generator: of random numbers. None takes torch's own, which Trainer seeds and restores; so do the workers of a
            `DataLoader`, whose copies of one generator would hide the same places.

    Raises:
        ValueError: a tokenizer without mask token, or a rate outside (0, 1].
    """

    tokenizer: PreTrainedTokenizerBase
    kept: Sequence[int] = ()
    rate: float = 0.15
    generator: torch.Generator | None = None
    _special: Tensor = field(init=False, repr=False)
    _words: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        if self.tokenizer.mask_token_id is None:
            raise ValueError(
                'the tokenizer has no mask token, found lm_objective="masked". Use "causal" for a causal model, or set '
                "tokenizer.mask_token."
            )
        if not 0 < self.rate <= 1:
            raise ValueError(f"the share of hidden tokens must lie in (0, 1], found {self.rate}.")
        special = {*self.tokenizer.all_special_ids, *self.kept}
        self._special = torch.tensor(sorted(special))
        self._words = torch.tensor(sorted(set(self.tokenizer.get_vocab().values()) - special))

    def __call__(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Hide tokens of (M, T) rows.

        Args:
            input_ids: (M, T).
            mask: (M, T), 1 at tokens.

        Returns:
            The rows with tokens hidden, and the targets, -100 where nothing was chosen; both (M, T).
        """
        generator = None if get_worker_info() is not None else self.generator
        free = mask.bool() & ~torch.isin(input_ids, self._special)
        scores = torch.rand(input_ids.shape, generator=generator).masked_fill(~free, 2.0)
        words = free.sum(1, keepdim=True)
        wanted = (words * self.rate).round().long().clamp(min=1).minimum(words)  # (M, 1)
        chosen = scores.argsort(1).argsort(1) < wanted
        fate = torch.rand(input_ids.shape, generator=generator)
        random = self._words[torch.randint(len(self._words), input_ids.shape, generator=generator)]
        hidden = torch.where(chosen & (fate < 0.8), self.tokenizer.mask_token_id, input_ids)
        hidden = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), random, hidden)
        return hidden, input_ids.masked_fill(~chosen, IGNORED)


@dataclass
class JointLossCollator:
    """Rows with columns of text to a batch for a `JointLossFor...` model.

    With Trainer set `remove_unused_columns=False`, or it takes the texts away.

    Args:
        tokenizer: one that `template.prepare` has given its marks.
        template: layout, and how long texts are cut.
        form: a key of `FORMS`: "classification", "entailment", "similarity" or "multiple_choice".
        columns: names of the row's columns by the form's own (`FORMS`, and "question"), where they differ. The label is in
            `labels` or `label`; one that is missing, None or -100 leaves a row to the language model.
        problem_type: as in Transformers; "regression" and "multi_label_classification" make labels floats.
        lm_objective: the model's `lm_objective`; None gives no targets, for lambda 0.
        lm_on: "all" rows, or of several choices only the "gold" one. The original trains on wrong endings too.
        mlm_rate: share of words that are hidden from a masked model.
        replay: general text for the language model to read in place of the task's, as many sentences as examples, with the
            tokenizer's own special tokens and without marks.
        generator: of what is hidden, as in `TokenHider`.

    Raises:
        ValueError: an unknown form or objective, or options that contradict each other.
    """

    tokenizer: PreTrainedTokenizerBase
    template: InputTemplate
    form: str
    columns: Mapping[str, str] = field(default_factory=dict)
    problem_type: str | None = None
    lm_objective: str | None = "causal"
    lm_on: str = "all"
    mlm_rate: float = 0.15
    replay: ReplaySentences | None = None
    generator: torch.Generator | None = None
    _hide: TokenHider | None = field(init=False, repr=False, default=None)

    def __post_init__(self):
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {sorted(FORMS)}, found {self.form!r}.")
        if self.lm_objective not in ("causal", "masked", None):
            raise ValueError(
                f'lm_objective must be "causal", "masked" or None, found {self.lm_objective!r}. ELMo reads words, for which '
                "objectives.collators has collators."
            )
        if self.lm_on not in ("all", "gold"):
            raise ValueError(f'lm_on must be "all" or "gold", found {self.lm_on!r}.')
        if self.lm_on == "gold" and (self.form != "multiple_choice" or self.replay is not None):
            raise ValueError(
                'lm_on="gold" chooses among the texts of form "multiple_choice", found form '
                f'{self.form!r}{" with replay" if self.replay is not None else ""}. Use lm_on="all".'
            )
        if self.replay is not None and self.lm_objective is None:
            raise ValueError("replay trains the language model, found lm_objective=None. Name the objective.")
        unknown = set(self.columns) - {*FORMS[self.form], "question"}
        if unknown:
            raise ValueError(
                f"columns of form {self.form!r} are {', '.join(FORMS[self.form])}, found {sorted(unknown)}."
            )
        marks = self.template.ids(self.tokenizer)
        if self.lm_objective == "masked":
            self._hide = TokenHider(self.tokenizer, marks, self.mlm_rate, self.generator)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate.

        Args:
            rows: examples.

        Returns:
            `input_ids` and `attention_mask` (B, T), (B, 2, T) for similarity or (B, C, T) for choices; `labels` where any
            row has one; `lm_targets`, and for a masked model or replay `lm_input_ids` and `lm_attention_mask` (M, T').

        Raises:
            ValueError: a missing column, choices of different counts, or labels that are no numbers.
        """
        layouts = [self._layout(row) for row in rows]
        counts = {len(layout) for layout in layouts}
        if len(counts) > 1:
            raise ValueError(
                f"every example of a batch must have as many choices, found {sorted(counts)}. Group examples by their number "
                "of choices, or fill up with a wrong choice."
            )
        flat = [row for layout in layouts for row in layout]
        input_ids, mask = self._padded(flat)  # (N, T)
        labels = self._labels(rows)
        batch = {"input_ids": input_ids, "attention_mask": mask}
        if self.form in ("similarity", "multiple_choice"):
            shape = (len(rows), counts.pop(), -1)
            batch = {name: tensor.view(shape) for name, tensor in batch.items()}
        if labels is not None:
            batch["labels"] = labels
        return batch | self._lm_part(input_ids, mask, labels, batch["input_ids"].shape)

    # The head's rows

    def _layout(self, row: Mapping) -> list[list[int]]:
        names = {name: self.columns.get(name, name) for name in (*FORMS[self.form], "question")}
        missing = [names[name] for name in FORMS[self.form] if row.get(names[name]) is None]
        if missing:
            raise ValueError(
                f"form {self.form!r} reads the columns {', '.join(names[name] for name in FORMS[self.form])}; a row has no "
                f"{', '.join(missing)}, but {sorted(row)}. Name yours in `columns`; with Trainer set "
                "remove_unused_columns=False."
            )
        return self.template.rows(
            self.tokenizer, self.form, {name: row.get(column) for name, column in names.items()}
        )

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask (N, T); padding stands on the right, as in the original, and is id 0 where there is no pad token."""
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        input_ids = torch.full(mask.shape, self.tokenizer.pad_token_id or 0)
        input_ids[mask] = torch.tensor([token for row in rows for token in row])
        return input_ids, mask.long()

    def _labels(self, rows: Sequence[Mapping]) -> Tensor | None:
        labels = [row["labels"] if "labels" in row else row.get("label") for row in rows]
        if all(label is None for label in labels) and not any("labels" in r or "label" in r for r in rows):
            return None
        known = [label for label in labels if label is not None]
        listed = [label for label in known if isinstance(label, Sequence) and not isinstance(label, str)]
        unlabelled = [IGNORED] * len(listed[0]) if listed else IGNORED
        labels = [unlabelled if label is None else label for label in labels]
        try:
            tensor = torch.tensor(labels)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"labels must be numbers, or lists of as many numbers, found {labels!r:.200}. Map names to 0, 1, ... first."
            ) from error
        floats = self.problem_type in FLOAT_LABELS or tensor.is_floating_point() or bool(listed)
        return tensor.float() if floats else tensor.long()

    # The language model's part

    def _lm_part(
        self, input_ids: Tensor, mask: Tensor, labels: Tensor | None, shape: torch.Size
    ) -> dict[str, Tensor]:
        if self.lm_objective is None:
            return {}
        if self.replay is not None:
            input_ids, mask = self._replayed(shape[0])
            return self._stream(input_ids, mask)
        if self.lm_objective == "masked":
            if self.lm_on == "gold":  # one row an example; the others need not be read a second time
                gold, known = self._gold(labels, shape)
                input_ids, mask = (tensor[gold] for tensor in (input_ids, mask))
                stream = self._stream(input_ids, mask)
                stream["lm_targets"] = stream["lm_targets"].masked_fill(~known[:, None], IGNORED)
                return stream
            return self._stream(input_ids, mask)
        targets = input_ids.masked_fill(mask == 0, IGNORED)
        targets[:, 0] = IGNORED  # nothing stands before _start_
        if self.lm_on == "gold":
            gold, known = self._gold(labels, shape)
            wrong = torch.ones(len(targets), dtype=torch.bool)
            wrong[gold[known]] = False
            targets[wrong] = IGNORED
        return {"lm_targets": targets.view(shape)}

    def _gold(self, labels: Tensor | None, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """The row of each example's right choice (B,), of the first one where there is no label; and where there is one."""
        examples, choices = shape[:2]
        if labels is None:
            labels = torch.full((examples,), IGNORED)
        known = labels != IGNORED
        if labels.shape != (examples,) or bool(((labels < 0) | (labels >= choices))[known].any()):
            raise ValueError(
                f"labels must be numbers of right choices in 0..{choices - 1} (or -100), found {labels.tolist()!r:.200}."
            )
        return torch.arange(examples) * choices + labels.long().clamp(min=0), known

    def _replayed(self, count: int) -> tuple[Tensor, Tensor]:
        """General text as the language model was pre-trained on it; no marks."""
        encoded = self.tokenizer(
            self.replay.draw(count),
            truncation=True,
            max_length=self.template.max_length,
            split_special_tokens=True,
        )["input_ids"]
        return self._padded([row or [self.tokenizer.pad_token_id or 0] for row in encoded])

    def _stream(self, input_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        if self._hide is None:
            targets = input_ids.masked_fill(mask == 0, IGNORED)
            targets[:, 0] = IGNORED
        else:
            input_ids, targets = self._hide(input_ids, mask)
        return {"lm_input_ids": input_ids, "lm_attention_mask": mask, "lm_targets": targets}


__all__ = ["JointLossCollator", "ReplaySentences", "TokenHider"]
