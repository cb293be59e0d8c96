"""Batches for ERNIE of Tsinghua: masked tokens, and entities of which some are exchanged or dropped.

Zhang et al. 2019, section 3.4 (dEA): of the alignments of tokens and entities 5 per cent are exchanged for a random entity
of the batch and 15 per cent are dropped; the model finds all true ones among the entities of the batch. Vectors are looked
up here, and a batch has those of its own entities alone.

Letters: B rows, L positions, M entities of the whole table, N entities of the batch, E features of an entity.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .collators import IGNORED
from .pretraining_collators import DataCollatorForMaskedLanguageModeling
from .token_batch import NOWHERE, check_rate, filled, generator, unpadded


@dataclass
class DataCollatorForEntityAlignment(DataCollatorForMaskedLanguageModeling):
    """Batches for `ErnieThuForPreTraining`.

    Rows have `entity_ids`, for each token the row of its entity in `entity_vectors` and -1 for none. Where all tokens of a
    mention have it, its first token keeps it. The original leaves out rows with fewer than five entities; do so in the data
    set.

    Args:
        tokenizer, masking, replacement, noise, extras, seed, epoch: as in `DataCollatorForMaskedLanguageModeling`.
        entity_vectors: (M, E), an array, a memory map or a tensor; never trained.
        random: share of the alignments that name a random entity of the batch, which may be the true one.
        dropped: share of the alignments that the model does not see.

    Raises:
        ValueError: vectors of another shape, shares that are none, or a tokenizer without a mask token.
    """

    fits = ("ErnieThuForPreTraining",)

    entity_vectors: np.ndarray | Tensor = field(kw_only=True)
    random: float = field(default=0.05, kw_only=True)
    dropped: float = field(default=0.15, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        check_rate("random", self.random)
        check_rate("dropped", self.dropped)
        if self.random + self.dropped > 1:
            raise ValueError(
                f"random and dropped are shares of the same alignments and must be 1 at most together, got {self.random} "
                f"and {self.dropped}"
            )
        if np.ndim(self.entity_vectors) != 2 or not len(self.entity_vectors):
            raise ValueError(
                f"entity_vectors must be (M, E), a row for each entity, got shape {np.shape(self.entity_vectors)}"
            )

    def __call__(self, rows: Sequence[Mapping]) -> dict[str, Tensor]:
        """Collate rows.

        Returns:
            What `DataCollatorForMaskedLanguageModeling` returns, `entity_vectors` (N, E) of the batch's entities in the
            order of their ids (a row of zeros if there is none), and `entities` and `entity_labels` (B, L): rows of
            `entity_vectors`, as the model sees them with -1 for none, and the true ones with -100 for none.

        Raises:
            ValueError: as there; rows without `entity_ids`, with too many or too few of them, or with entities that have
                no vector or no finite one.
        """
        rows = unpadded(rows)
        arrays = super().__call__(rows)
        true = self._first_tokens(rows, arrays["input_ids"].shape[1])
        named = true != NOWHERE
        entities, labels = np.unique(true[named], return_inverse=True)
        step = zlib.crc32(true.tobytes(), zlib.crc32(arrays["input_ids"].numpy().tobytes()))
        rng = generator(self.seed, self.epoch, step)
        draw, other = rng.random(len(labels)), rng.integers(max(1, len(entities)), size=len(labels))
        seen = np.where(draw < self.random, other, labels)
        seen[(draw >= self.random) & (draw < self.random + self.dropped)] = NOWHERE
        arrays["entities"] = _placed(seen, named, NOWHERE)
        arrays["entity_labels"] = _placed(labels, named, IGNORED)
        arrays["entity_vectors"] = self._vectors(entities)
        return arrays

    def _first_tokens(self, rows: Sequence[Mapping], width: int) -> np.ndarray:
        """(B, L) entities at the first tokens of their mentions."""
        for number, row in enumerate(rows):
            if "entity_ids" not in row:
                raise ValueError(
                    "entity alignment needs a column 'entity_ids' in the data set, the number of each token's entity or -1, "
                    f"got {sorted(row)}. An entity linker makes it."
                )
            if len(row["entity_ids"]) != len(row["input_ids"]):
                raise ValueError(
                    f"row {number} of the batch has {len(row['entity_ids'])} entity_ids for {len(row['input_ids'])} tokens; "
                    "expected one for each"
                )
        ids = filled([row["entity_ids"] for row in rows], width, NOWHERE)
        if ids.max() >= len(self.entity_vectors):
            raise ValueError(
                f"expected entity_ids below {len(self.entity_vectors)}, the rows of entity_vectors, got {int(ids.max())}: "
                "they belong to another table"
            )
        before = np.pad(ids, ((0, 0), (1, 0)), constant_values=NOWHERE)[:, :-1]
        return np.where((ids >= 0) & (ids != before), ids, NOWHERE)

    def _vectors(self, entities: np.ndarray) -> Tensor:
        """(N, E), float32."""
        if not len(entities):
            return torch.zeros(1, self.entity_vectors.shape[1])
        if isinstance(self.entity_vectors, Tensor):
            chosen = self.entity_vectors.detach()[torch.from_numpy(entities)].float().cpu()
        else:
            chosen = torch.from_numpy(np.array(self.entity_vectors[entities], dtype=np.float32))
        wrong = ~chosen.isfinite().all(1)
        if wrong.any():
            raise ValueError(
                f"expected finite entity_vectors, got NaN or infinity for entity {int(entities[wrong.numpy()][0])}"
            )
        return chosen


def _placed(values: np.ndarray, named: np.ndarray, fill: int) -> Tensor:
    """(B, L) with the values where there is an entity."""
    array = np.full(named.shape, fill, np.int64)
    array[named] = values
    return torch.from_numpy(array)


__all__ = ["DataCollatorForEntityAlignment"]
