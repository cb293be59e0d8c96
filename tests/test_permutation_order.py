"""The random order of permutation language modelling, its masks for many targets, and walks that reach the end of a row."""

from collections import Counter

import numpy as np
import pytest
from reference import permutation_naive as naive

from heirloom.objectives.attention_masks import permutation_mask
from heirloom.objectives.permutation import random_order, walk
from heirloom.objectives.word_runs import WordRuns


def test_every_order_is_as_likely():
    members = np.tile(
        np.array([[True, False, True, True, False], [False, False, True, False, True]]), (3000, 1)
    )
    order = random_order(np.random.default_rng(0), members)
    assert not order[~members].any()
    threes = Counter(map(tuple, order[::2, [0, 2, 3]].tolist()))
    twos = Counter(map(tuple, order[1::2, [2, 4]].tolist()))
    assert len(threes) == 6
    assert len(twos) == 2
    assert min(threes.values()) > 420  # 500 are expected
    assert min(twos.values()) > 1400


@pytest.mark.parametrize("width", [40, 280, 70_000])
def test_masks_follow_the_order_however_many_targets_there_are(width):
    order = np.random.default_rng(0).permutation(width)[None]
    shown = order[:, :40]  # numbers above 255, and above 65535, must not wrap around
    mask = permutation_mask(shown, np.ones(shown.shape, bool), np.zeros(shown.shape, bool))
    assert np.array_equal(mask[0], shown >= shown.T)


def test_walks_that_reach_the_end_of_their_row():
    width, rounds = 60, 20
    for seed in range(40):
        rng = np.random.default_rng(seed)
        lengths, counts, context = (
            rng.integers(3, width + 1, 6),
            rng.integers(1, 30, 6),
            int(rng.integers(1, 4)),
        )
        free = np.arange(width) < lengths[:, None]
        words = WordRuns.of(np.cumsum(rng.random(free.shape) < 0.7, axis=1), free)
        units = WordRuns.of(np.broadcast_to(np.arange(width), free.shape), free)
        sizes = rng.integers(1, 6, (rounds, 6))
        front = (rng.random(sizes.shape) * sizes * context).astype(int)
        begins, stops = walk(words, units, lengths, counts, sizes, front, context)
        for row, length in enumerate(lengths):
            starts = np.isin(np.arange(length), words.start[row, : words.count[row]]).tolist()
            expected = naive.spans(starts, length, counts[row], sizes[:, row], front[:, row], context)
            found = {p for b, e in zip(begins[row], stops[row], strict=True) for p in range(b, e)}
            assert found == expected
