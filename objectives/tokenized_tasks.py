"""Batches for `MultiTaskModel` of rows that are ids already, as the tasks of ERNIE 2.0 are (Sun et al. 2020, section 4.2), and
the rows of its capitalization task.

Letters: B rows, L positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from .collators import IGNORED
from .documents import Documents, special_id
from .multi_task import task_number
from .pretraining_collators import DataCollatorForMaskedLanguageModeling
from .text_packing import TextBlocks, pack_doc_sentences
from .token_batch import unpadded
from .token_labels import capital_labels
from .word_ids import bert_words

KINDS = ("classification", "masked_lm", "regression", "tokens")


@dataclass
class TokenizedTaskCollator:
    """Rows of ids of one task to a batch for `MultiTaskModel`; `MultiTaskCollator` does so with texts.

    Rows have `input_ids` with the special ones, `token_type_ids` or not, and `labels`: a class, a number, or a class of each
    token. Of a task of kind "masked_lm" the masker makes batches, labels too.

    Args:
        tokenizer: says what fills up.
        tasks: the model's `config.tasks`.
        masker: for "masked_lm"; None hides as BERT does.
        task_types: whether batches have `task_type_ids`, the number of the task at each token, for ERNIE with `use_task_id`.

    Raises:
        ValueError: a tokenizer without a padding token.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[Mapping]
    masker: DataCollatorForMaskedLanguageModeling | None = None
    task_types: bool = False

    def __post_init__(self):
        special_id(self.tokenizer, "pad")
        if self.masker is None and any(task["kind"] == "masked_lm" for task in self.tasks):
            self.masker = DataCollatorForMaskedLanguageModeling(self.tokenizer)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate.

        Args:
            rows: of one task, with its name in the column `task`.

        Returns:
            `input_ids`, `attention_mask` and, where rows have them, `token_type_ids` (B, L), `labels` (B,) or (B, L),
            `task_id` (B,), and `task_type_ids` (B, L).

        Raises:
            ValueError: rows of several tasks or an unknown one, of a kind that reads texts, without a column, or with
                labels that do not fit.
        """
        number = task_number(rows, self.tasks)
        task = self.tasks[number]
        if task["kind"] not in KINDS:
            raise ValueError(
                f"{task['kind']} task {task['name']!r} reads texts, and here are rows of ids. Use MultiTaskCollator for it."
            )
        masked = task["kind"] == "masked_lm"
        wanted = {"input_ids"} if masked else {"input_ids", "labels"}
        for row in rows:
            if missing := wanted - row.keys():
                raise ValueError(
                    f"{task['kind']} task {task['name']!r} needs rows with {', '.join(sorted(wanted))}; a row has no "
                    f"{', '.join(sorted(missing))}, but {sorted(row)}."
                )
        rows = unpadded(rows)
        if masked:
            batch = self.masker([{name: row[name] for name in row if name != "task"} for row in rows])
        else:
            batch = self._padded(rows) | {"labels": self._labels(task, rows)}
        batch["task_id"] = torch.full((len(rows),), number)
        if self.task_types:
            batch["task_type_ids"] = torch.full_like(batch["input_ids"], number)
        return batch

    def _padded(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        tokenizer = self.tokenizer
        ids = _column(rows, "input_ids")
        batch = {
            "input_ids": pad_sequence(ids, True, tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0),
        }
        if "token_type_ids" in rows[0]:
            types = _column(rows, "token_type_ids")
            batch["token_type_ids"] = pad_sequence(types, True, tokenizer.pad_token_type_id)
        return batch

    def _labels(self, task: Mapping, rows: Sequence[Mapping]) -> Tensor:
        if task["kind"] != "tokens":
            numbers = [IGNORED if row["labels"] is None else row["labels"] for row in rows]
            return torch.tensor(numbers, dtype=torch.float if task["kind"] == "regression" else torch.long)
        for row in rows:
            found, expected = np.shape(row["labels"]), np.shape(row["input_ids"])
            if found != expected:
                raise ValueError(
                    f"tokens task {task['name']!r} needs a label for each token, found labels of shape {found} for "
                    f"{expected} ids."
                )
        return pad_sequence(_column(rows, "labels"), True, IGNORED)


def _column(rows: Sequence[Mapping], name: str) -> list[Tensor]:
    return [torch.as_tensor(row[name], dtype=torch.long) for row in rows]


def capitalization_blocks(
    documents: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, max_length: int = 512
) -> TextBlocks:
    """Rows `[CLS] sentences of one document [SEP]` with `labels`: 1 for tokens of words that begin with a capital as they are
    written, 0 for others, also of punctuation, -100 for special tokens.

    Args:
        documents: lists of sentences, which must be texts: ids of a tokenizer that lower-cases have no capitals.
        tokenizer: a fast one with the special tokens.
        max_length: most tokens of a row with the special ones.

    Raises:
        ValueError: sentences that are not texts, or a tokenizer without offsets.
    """
    flat = isinstance(documents, Documents) or any(isinstance(some, str) for some in documents)
    sentences = [] if flat else [one for some in documents for one in some]
    if not sentences or not all(isinstance(one, str) for one in sentences):
        raise ValueError(
            "capitals need documents as lists of sentences that are texts, found others or none."
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"capitals need a fast tokenizer, which knows where its tokens are in the text, got {type(tokenizer).__name__}"
        )
    encoded = tokenizer(
        sentences,
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    found = [
        capital_labels(text, offsets, [0] * len(offsets), bert_words)
        for text, offsets in zip(sentences, encoded["offset_mapping"], strict=True)
    ]
    counts = iter(map(len, documents))
    ids = iter(encoded["input_ids"])
    corpus = Documents.of([[next(ids) for _ in range(count)] for count in counts])
    marks = {"before": special_id(tokenizer, "cls"), "after": special_id(tokenizer, "sep")}
    blocks = pack_doc_sentences(corpus, max_length, **marks)
    columns = corpus.columns() | {"labels": np.concatenate(found).astype(np.int8)}
    return TextBlocks(columns, blocks.edges, *marks.values(), fills={"labels": IGNORED})


__all__ = ["TokenizedTaskCollator", "capitalization_blocks"]
