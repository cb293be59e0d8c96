"""Readable twins of `heirloom.objectives.noise`: BART's and T5's procedures, one row and one token at a time."""

import math
import random


def infilling(row: list, rate: float, mean: float, mask, draw: random.Random) -> list:
    """fairseq's text infilling of a row `<s> .. </s>` whose words are single tokens."""
    words = len(row) - 2
    budget = math.ceil(words * rate)
    lengths = []
    while sum(lengths) < budget:
        lengths.append(poisson(mean, draw))
    if lengths:
        lengths[-1] -= sum(lengths) - budget
    empty, lengths = lengths.count(0), [length for length in lengths if length]
    starts = draw.sample(range(1, words + 1), len(lengths))
    row, gone = list(row), set()
    for start in starts:
        row[start] = mask
    for start, length in zip(starts, lengths, strict=True):
        gone |= set(range(start + 1, min(start + length, words + 1)))
    row = [token for place, token in enumerate(row) if place not in gone]
    for _ in range(empty):
        row.insert(draw.randrange(1, len(row)), mask)
    return row


def poisson(mean: float, draw: random.Random) -> int:
    """Knuth's algorithm."""
    number, product = 0, draw.random()
    while product > math.exp(-mean):
        number, product = number + 1, product * draw.random()
    return number


def sentences(row: list, ends) -> list[list]:
    """The sentences of a row without its special tokens; of neighbouring ends, the first is the end."""
    found, current, previous = [], [], None
    for token in row:
        current.append(token)
        if token in ends and previous not in ends:
            found.append(current)
            current = []
        previous = token
    return [*found, current] if current else found


def corrupted(row: list, noise: list[bool], sentinels: list[int], end: int) -> tuple[list, list]:
    """Inputs and targets of T5 from a row without special tokens."""
    inputs, targets, span, inside = [], [], -1, False
    for token, hidden in zip(row, noise, strict=True):
        if hidden:
            if not inside:
                span += 1
                inputs.append(sentinels[span])
                targets.append(sentinels[span])
            targets.append(token)
        else:
            inputs.append(token)
        inside = hidden
    return [*inputs, end], [*targets, end]


def restored(inputs: list, targets: list, sentinels: list[int]) -> list:
    """The row that T5's inputs and targets tell together, without the end."""
    spans, current = {}, None
    for token in targets[:-1]:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    return [token for item in inputs[:-1] for token in (spans[item] if item in sentinels else [item])]
