"""A corpus in lanes that go on from batch to batch, as Transformer-XL reads it (Dai et al. 2019, section 3.2).

Unlike the streams of `streams.py`, lanes have an end: an epoch reads the corpus once, in its order. As in the released
code, the corpus is cut into R lanes of equal length and these into segments; but here nothing is left over, and the
last token of a lane is told in it and read again by the next lane.

Letters: N tokens, R lanes, T positions, B rows of one process, W processes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, from_numpy
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from .collators import IGNORED
from .documents import Documents
from .text_packing import separated
from .token_batch import Vocabulary, filled


class TokenLanes(Dataset):
    """Rows of tokens and of the tokens that follow them; row `s * R + k` is segment s of lane k.

    Batches in this order, B rows each, are dealt to W processes in turns, as accelerate does it. With R = B * W, row b of
    a process's batches is then one lane from the first batch to the last. `StockPretrainingTrainer` sees to both.

    All tokens but the last are inputs once, all but the first are labels once. Lanes differ by one token at the most; the
    last rows of a lane are shorter or empty.

    Args:
        tokens: (N,), ids.
        length: T, tokens of a row.
        lanes: R.

    Raises:
        ValueError: fewer tokens than lanes.
    """

    def __init__(self, tokens: np.ndarray, length: int, lanes: int = 1):
        for name, value in (("length", length), ("lanes", lanes)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")
        if len(tokens) <= lanes:
            raise ValueError(
                f"{len(tokens)} tokens do not fill {lanes} lanes, one for each row of a batch (of all processes together): "
                "give more text, or a smaller batch size"
            )
        self.tokens, self.length, self.lanes = tokens, length, lanes
        self.edges = np.arange(lanes + 1) * (len(tokens) - 1) // lanes
        self.steps = -(-int(np.diff(self.edges).max()) // length)

    def spread(self, lanes: int) -> "TokenLanes":
        """The same text in another number of lanes."""
        return self if lanes == self.lanes else TokenLanes(self.tokens, self.length, lanes)

    def identity(self) -> dict[str, int]:
        """What the rows are a function of, besides the text: a training resumes only with the same."""
        return {"tokens": len(self.tokens), "lanes": self.lanes, "length": self.length}

    def __len__(self) -> int:
        """Count rows."""
        return self.steps * self.lanes

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One row: `input_ids` and `labels`, which need no shift, int64 arrays of their own."""
        self._check_index(index)
        step, lane = divmod(index, self.lanes)
        begin, end = np.minimum(
            self.edges[lane] + self.length * np.array([step, step + 1]), self.edges[lane + 1]
        )
        return {
            "input_ids": self.tokens[begin:end].astype(np.int64),
            "labels": self.tokens[begin + 1 : end + 1].astype(np.int64),
        }

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self):
            raise IndexError(f"expected a row of 0 to {len(self) - 1}, got {index}")


def pack_lanes(
    documents: Documents | list,
    length: int,
    separator: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    lanes: int = 1,
) -> TokenLanes:
    """Lanes of a corpus; see `TokenLanes`.

    Args:
        documents: see `Documents.of`.
        length: T, tokens of a row.
        separator: an id behind each document; None for none.
        tokenizer: for texts.
        lanes: R; `StockPretrainingTrainer` sets it to the rows of a batch.
    """
    return TokenLanes(separated(Documents.of(documents, tokenizer), separator).tokens, length, lanes)


class DataCollatorForTokenLanes:
    """Rows of `TokenLanes` as a batch for a model that does not shift labels: XLNetLMHeadModel with `attn_type="uni"`.

    No position sees a later one, and only the last rows of a lane are filled up, so there is no `attention_mask`.

    Args:
        tokenizer: says which id fills up.
    """

    fits = ("aligned",)

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.vocabulary = Vocabulary.from_tokenizer(tokenizer)

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows into `input_ids` and `labels` (B, L).

        Raises:
            ValueError: rows without labels.
        """
        if "labels" not in rows[0]:
            raise ValueError(f"expected rows of TokenLanes (pack_lanes), got rows with {sorted(rows[0])}")
        width = max(1, *(len(row["input_ids"]) for row in rows))
        fills = {"input_ids": self.vocabulary.pad_id, "labels": IGNORED}
        return {
            name: from_numpy(filled([row[name] for row in rows], width, fill)) for name, fill in fills.items()
        }


__all__ = ["DataCollatorForTokenLanes", "TokenLanes", "pack_lanes"]
