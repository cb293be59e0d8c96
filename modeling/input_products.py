"""The input products of an LSTM, in blocks that stay small.

They are the largest tensors of a run: 57 MB for 32 sentences of 25 words at ELMo's original size. The C library takes memory
of more than 32 MB from the system anew each time, which clears it page by page: one product of 864 rows took 133 ms, the
same in blocks 35. Of small models a block stays in the caches until its steps are done. (glibc, two threads, measured on the
CPU this was built on.)

Letters: N positions of the packed batch, U distinct inputs, I inputs, D cells.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

ROWS, BYTES = 512, 2**24  # of a block at most; the rows still fill a product


class InputProducts:
    """Products x W^T + b, of distinct inputs at once, of others when their turn comes.

    Args:
        inputs: (N, I), or (U, I) with an index.
        index: (N,), which input stands at each position, or None.
        multiply: of inputs (n, I) to products with bias (n, 4 D).
        row: bytes of a product.

    Raises:
        ValueError: an index that points to no input.
    """

    def __init__(self, inputs: Tensor, index: Tensor | None, multiply: Callable[[Tensor], Tensor], row: int):
        self.inputs, self.index, self.multiply = inputs, index, multiply
        self.rows = max(1, min(ROWS, BYTES // row))
        self.distinct = None
        if index is not None:
            low, high = map(int, index.aminmax()) if len(index) else (0, -1)
            if low < 0 or high >= len(inputs):
                raise ValueError(f"lstmp: index goes from {low} to {high}, expected 0 to {len(inputs) - 1}.")
            self.distinct = [multiply(part) for part in inputs.split(self.rows)]

    def pieces(self, batch_sizes: list[int]) -> Iterator[tuple[int, list[int]]]:
        """Steps whose positions fill a block, or one step where that is more: first position, and rows at each step."""
        start, sizes = 0, []
        for n in batch_sizes:
            if sizes and sum(sizes) + n > self.rows:
                yield start, sizes
                start, sizes = start + sum(sizes), []
            sizes.append(n)
        if sizes:
            yield start, sizes

    def blocks(self, start: int, stop: int) -> tuple[list[Tensor], Tensor | None]:
        """Blocks of `rows` products each, the last of fewer, and which of them the positions want; None means their order."""
        if self.index is not None:
            return self.distinct, self.index[start:stop]
        return [self.multiply(part) for part in self.inputs[start:stop].split(self.rows)], None

    def gates(self, start: int, stop: int) -> Tensor:
        """Products (n, 4 D) of the positions, in memory that may be written to."""
        blocks, index = self.blocks(start, stop)
        if index is None:
            return blocks[0] if len(blocks) == 1 else torch.cat(blocks)
        if len(blocks) == 1:
            return blocks[0].index_select(0, index)
        gates = blocks[0].new_empty(len(index), blocks[0].shape[1])
        numbers = index // self.rows
        for number, block in enumerate(blocks):
            here = (numbers == number).nonzero()[:, 0]
            gates[here] = block[index[here] - number * self.rows]
        return gates


__all__ = ["InputProducts"]
