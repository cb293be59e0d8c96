"""One padded batch of ids, which every strategy and every noise reads, and the random numbers that they draw from.

An objective is one padded integer batch, a choice of places, a replacement and targets, all in numpy. A `TokenBatch` is
never changed in place: each step returns another one, so rows of a data set stay as they are.

Letters: B rows, L positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from .collators import IGNORED

NOWHERE = -1  # the word of special tokens and of padding


def generator(
    seed: int, epoch: int = 0, step: int = 0, rank: int = 0, worker: int = 0
) -> np.random.Generator:
    """The random numbers of one batch: equal arguments give equal batches.

    Args:
        seed: of the run.
        epoch: another one gives other masks for the same rows.
        step: number of the batch in its epoch.
        rank: number of the process.
        worker: number of the worker, where each counts steps of its own. Leave it at 0 where `step` counts the batches
            of all workers: then the number of workers changes nothing.

    Raises:
        ValueError: a negative number.
    """
    numbers = {"seed": seed, "rank": rank, "worker": worker, "epoch": epoch, "step": step}
    for name, number in numbers.items():
        if number < 0:
            raise ValueError(f"{name} must be 0 or more, got {number}")
    return np.random.default_rng(list(numbers.values()))


@dataclass(frozen=True)
class Vocabulary:
    """What strategies must know of a tokenizer.

    Args:
        size: number of ids.
        special_ids: ids that are never masked, deleted or moved. The unknown word is not among them, as in BERT.
        pad_id: fills up rows.
        mask_id: stands for a hidden token; None if there is no such id.
        eos_id: ends a text; None if there is no such id.
        sentinel_ids: stand for spans in the order of T5, `<extra_id_0>` first.
    """

    size: int
    special_ids: tuple[int, ...] = ()
    pad_id: int = 0
    mask_id: int | None = None
    eos_id: int | None = None
    sentinel_ids: tuple[int, ...] = ()

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "Vocabulary":
        """Read the ids of any tokenizer of Transformers."""
        roles = ("bos", "eos", "sep", "cls", "pad", "mask")
        taken = {getattr(tokenizer, f"{role}_token_id", None) for role in roles}
        unknown = None if tokenizer.unk_token_id in taken else tokenizer.unk_token_id  # GPT-2: <unk> is <eos>
        sentinels = [
            (int(token[len("<extra_id_") : -1]), number)
            for token, number in tokenizer.get_vocab().items()
            if token.startswith("<extra_id_") and token[len("<extra_id_") : -1].isdigit()
        ]
        special = {*tokenizer.all_special_ids, *(number for _, number in sentinels)} - {unknown}
        end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        pad = tokenizer.pad_token_id
        return cls(
            size=len(tokenizer),
            special_ids=tuple(sorted(special)),
            pad_id=(end or 0) if pad is None else pad,
            mask_id=tokenizer.mask_token_id,
            eos_id=end,
            sentinel_ids=tuple(number for _, number in sorted(sentinels)),
        )

    @cached_property
    def is_special(self) -> np.ndarray:
        """For each id (V,) whether it is special."""
        table = np.zeros(self.size, bool)
        table[list(self.special_ids)] = True
        return table

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """The ids that are not special."""
        return np.flatnonzero(~self.is_special)

    def needed_mask_id(self) -> int:
        """`mask_id`, or an error that says what to do without one."""
        if self.mask_id is None:
            raise ValueError(
                "masking needs a mask token, but the tokenizer has none: choose a tokenizer with a mask token, or add "
                'one with tokenizer.add_special_tokens({"mask_token": "[MASK]"}) and resize the embeddings'
            )
        return self.mask_id


@dataclass(frozen=True)
class TokenBatch:
    """What a strategy sees: rows of ids, filled up at the right.

    Args:
        input_ids: (B, L), int64.
        maskable: (B, L), true for tokens that are neither special nor padding.
        lengths: (B,), the number of tokens of each row with its special ones.
        vocabulary: of the tokenizer.
        word_ids: (B, L), equal for the tokens of one word, -1 elsewhere; or None.
        labels: (B, L) or (B, M), targets with -100 where there is none; or None.
        columns: further arrays (B, L) like `word_ids`, say `entity_ids`.
        decoder_input_ids: (B, M), for objectives that make them.
        decoder_position_ids: (B, M), for objectives that make them.
    """

    input_ids: np.ndarray
    maskable: np.ndarray
    lengths: np.ndarray
    vocabulary: Vocabulary
    word_ids: np.ndarray | None = None
    labels: np.ndarray | None = None
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    decoder_input_ids: np.ndarray | None = None
    decoder_position_ids: np.ndarray | None = None

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Mapping],
        vocabulary: Vocabulary,
        columns: Sequence[str] = (),
        pad_to_multiple_of: int | None = None,
    ) -> "TokenBatch":
        """Fill up rows with `input_ids` and, where they have them, `special_tokens_mask`, `word_ids` and `columns`.

        What their `attention_mask` says is padding is no token; see `unpadded`.

        Raises:
            ValueError: no rows, rows with different columns, a row without tokens, a column that is not one number for each
                token, or an id that the vocabulary does not have.
            KeyError: one of `columns` is missing.
        """
        rows = unpadded(rows)
        if not all(len(row["input_ids"]) for row in rows):
            raise ValueError("a batch needs rows with at least one token each; leave empty rows out")
        lengths = np.fromiter((len(row["input_ids"]) for row in rows), np.int64, len(rows))
        width = int(lengths.max())
        if pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        input_ids = filled([row["input_ids"] for row in rows], width, vocabulary.pad_id)
        if input_ids.max() >= vocabulary.size or input_ids.min() < 0:
            wrong = int(input_ids.max() if input_ids.max() >= vocabulary.size else input_ids.min())
            raise ValueError(
                f"expected ids from 0 to {vocabulary.size - 1}, got {wrong}: the rows come from another tokenizer"
            )
        maskable = (np.arange(width) < lengths[:, None]) & ~vocabulary.is_special[input_ids]
        if "special_tokens_mask" in rows[0]:
            maskable &= column_of(rows, "special_tokens_mask", width, 1) == 0
        names = [*columns, *(["word_ids"] if "word_ids" in rows[0] else [])]
        for name in names:
            if name not in rows[0]:
                raise KeyError(f"expected a column {name!r}, got {sorted(rows[0])}")
        arrays = {name: column_of(rows, name, width, NOWHERE) for name in names}
        return cls(input_ids, maskable, lengths, vocabulary, arrays.pop("word_ids", None), columns=arrays)

    @property
    def attention_mask(self) -> np.ndarray:
        """(B, L), 1 for tokens and 0 for padding."""
        return (np.arange(self.input_ids.shape[1]) < self.lengths[:, None]).astype(np.int64)

    @property
    def body(self) -> np.ndarray:
        """(B, L), true for tokens of the text, hidden ones included, and false for the special ones around it."""
        if self.vocabulary.mask_id is None:
            return self.maskable
        return self.maskable | ((self.input_ids == self.vocabulary.mask_id) & (self.attention_mask == 1))

    def column(self, name: str) -> np.ndarray:
        """`word_ids` or one of `columns` (B, L), or an error that says how to get it."""
        found = self.word_ids if name == "word_ids" else self.columns.get(name)
        if found is None:
            raise ValueError(
                f"this objective needs a column {name!r} in the data set: make it with "
                "heirloom.objectives.word_ids.add_word_ids"
            )
        return found

    def changed(self, **changes) -> "TokenBatch":
        """Another batch with some fields changed."""
        return replace(self, **changes)

    def gathered(self, places: np.ndarray, lengths: np.ndarray) -> "TokenBatch":
        """Another batch whose position t holds what stood at `places` (B, M) before, and padding past `lengths` (B,)."""
        inside = np.arange(places.shape[1]) < lengths[:, None]
        width = self.input_ids.shape[1]
        source = places + np.arange(0, self.input_ids.size, width)[:, None]  # counts through the rows
        fills = {
            "input_ids": self.vocabulary.pad_id,
            "maskable": False,
            "word_ids": NOWHERE,
            "labels": IGNORED,
        }

        def moved(name: str, array: np.ndarray | None) -> np.ndarray | None:
            if array is None or array.shape != self.input_ids.shape:
                return array
            return np.where(inside, array.ravel()[source], fills.get(name, NOWHERE))

        arrays = {item.name: getattr(self, item.name) for item in fields(self) if item.name in fills}
        return replace(
            self,
            lengths=lengths,
            columns={name: moved(name, array) for name, array in self.columns.items()},
            **{name: moved(name, array) for name, array in arrays.items()},
        )

    def kept(self, keep: np.ndarray) -> "TokenBatch":
        """Another batch with only the tokens at `keep` (B, L), moved together."""
        lengths = keep.sum(1)
        places = np.zeros((len(keep), max(1, int(lengths.max()))), np.int64)
        places[np.arange(places.shape[1]) < lengths[:, None]] = np.flatnonzero(keep) % keep.shape[1]
        return self.gathered(places, lengths)


def unpadded(rows: Sequence[Mapping]) -> Sequence[Mapping]:
    """Rows without padding, as `tokenizer(..., padding=True)` makes it on either side; rows without any as they are.

    Args:
        rows: with `input_ids`, and where they are padded with an `attention_mask` that is 0 there. All columns with a value
            for each token are cut.

    Raises:
        ValueError: no rows, rows without `input_ids`, with different columns or a mask of another length.
    """
    if not rows or "input_ids" not in rows[0]:
        raise ValueError(
            f"expected rows with input_ids, got {sorted(rows[0]) if rows else 'none'}: tokenize texts with add_word_ids"
        )
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise ValueError(
                f"expected all rows of a batch to have the same columns, but row 0 has {sorted(rows[0])} and row "
                f"{number} has {sorted(row)}"
            )
    if "attention_mask" not in rows[0]:
        return rows
    found = []
    for number, row in enumerate(rows):
        mask = np.asarray(row["attention_mask"], bool)
        if mask.shape != np.shape(row["input_ids"]):
            raise _wrong_length("attention_mask", number, len(row["attention_mask"]), len(row["input_ids"]))
        found.append(row if mask.all() else {name: _cut(value, mask) for name, value in row.items()})
    return found


def _cut(value: object, mask: np.ndarray) -> object:
    return np.asarray(value)[mask] if np.shape(value) == mask.shape else value


def _wrong_length(name: str, number: int, found: int, tokens: int) -> ValueError:
    return ValueError(
        f"row {number} of the batch has {found} {name} for {tokens} tokens; expected one for each. Leave out a column that "
        "means something else"
    )


def column_of(rows: Sequence[Mapping], name: str, width: int, fill: int) -> np.ndarray:
    """A column of rows with a number for each token, or None for `fill`, as one array (B, L), int64.

    Raises:
        ValueError: another number of them than of tokens, or no numbers.
    """
    values = [row[name] for row in rows]
    for number, (row, value) in enumerate(zip(rows, values, strict=True)):
        if len(value) != len(row["input_ids"]):
            raise _wrong_length(name, number, len(value), len(row["input_ids"]))
    try:
        return filled(values, width, fill)
    except (TypeError, ValueError):
        pass  # BatchEncoding.word_ids() has None at special tokens
    try:
        return filled([[fill if one is None else one for one in value] for value in values], width, fill)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a column {name!r} of whole numbers, got {values[0]!r:.60}") from error


def filled(rows: Sequence[Sequence[int]], width: int, fill: int) -> np.ndarray:
    """Lists or arrays of numbers as one array (B, L), int64."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    if all(isinstance(row, np.ndarray) for row in rows):
        flat = np.concatenate(rows)
    else:
        flat = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
    if (lengths == width).all():
        return flat.astype(np.int64, copy=False).reshape(len(rows), width)
    array = np.full((len(rows), width), fill, np.int64)
    array[np.arange(width) < lengths[:, None]] = flat
    return array


def check_rate(name: str, value: float) -> None:
    """Raise a ValueError unless a rate lies between 0 and 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}; 15 per cent are 0.15")
