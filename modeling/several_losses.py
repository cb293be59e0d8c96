"""Models with several losses, each a mean over items of its own kind, that stay exact however a step is cut into parts."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .losses import mean_of_all


def means_of_parts(
    totals: Sequence[Tensor], counts: Tensor, num_items_in_batch: Tensor | int | None = None
) -> list[Tensor]:
    """Divide summed losses, each by its own items of the whole step, of which this may be a part.

    Args:
        totals: K summed losses of this part.
        counts: (K,) items that they are sums over.
        num_items_in_batch: (K,) items of the whole step; a single number, as the stock Trainer counts, is that of the first
            loss, and the others get the share that this part has of it. None means that this part is the whole.

    Returns:
        K means, 0 where there are no items. With (K,) items the parts of a step sum to its means.

    Raises:
        ValueError: another number of items than of losses.
    """
    if num_items_in_batch is None:
        return [mean_of_all(total, count) for total, count in zip(totals, counts, strict=True)]
    items = torch.as_tensor(num_items_in_batch)
    if items.dim() == 0:
        share = mean_of_all(counts[0], 1, items.to(counts.device))
        others = [share * mean_of_all(one, count) for one, count in zip(totals[1:], counts[1:], strict=True)]
        return [mean_of_all(totals[0], counts[0], items), *others]
    if items.shape != counts.shape:
        raise ValueError(
            f"num_items_in_batch must hold {len(counts)} numbers, one for each loss (a sum of count_items), or be the "
            f"number of the first alone; found shape {tuple(items.shape)}."
        )
    return [mean_of_all(total, 1, item) for total, item in zip(totals, items, strict=True)]


class SeveralLosses:
    """What such a model offers to a trainer. The loss is the sum of its parts, each by its weight."""

    loss_names: ClassVar[tuple[str, ...]] = ()
    accepts_loss_kwargs = True

    def loss_weights(self) -> tuple[float, ...]:
        """Weights (K,) in the order of `loss_names`."""
        raise NotImplementedError

    def count_items(self, batch: dict) -> Tensor:
        """Items of each loss in a batch, (K,): what the vector `num_items_in_batch` is a sum of.

        Args:
            batch: keyword arguments of `forward`.
        """
        raise NotImplementedError

    def count_targets(self, batch: dict) -> Tensor:
        """Items of the first loss in a batch: what a single number `num_items_in_batch` is a sum of."""
        return self.count_items(batch)[0]

    def first_rows(self, batch: dict, rows: int) -> dict:
        """The first rows of a batch, without those that only fill up the last batch of a process.

        Args:
            batch: keyword arguments of `forward`.
            rows: how many to keep; 0 keeps one for the model to read, whose losses are nobody's.
        """
        return {name: value[: max(1, rows)] for name, value in batch.items()}

    def added_up(
        self, totals: Sequence[Tensor], counts: Tensor, num_items_in_batch: Tensor | int | None
    ) -> dict[str, Tensor]:
        """`loss` and its parts by name; arguments as in `means_of_parts`."""
        means = means_of_parts(totals, counts, num_items_in_batch)
        loss = sum(weight * mean for weight, mean in zip(self.loss_weights(), means, strict=True))
        return {"loss": loss, **dict(zip(self.loss_names, means, strict=True))}


__all__ = ["SeveralLosses", "means_of_parts"]
