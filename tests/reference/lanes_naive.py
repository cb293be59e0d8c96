"""Lanes of sentences one target at a time, straight from the specification of bilm-tf's batches."""

from collections.abc import Iterable, Iterator


def targets_of(words: list, marks: tuple, backward: bool) -> list[tuple]:
    """(input, target) of each position of one sentence, in the order of reading."""
    items = [marks[0], *words, marks[1]]
    if backward:
        items.reverse()
    return [(items[place], items[place + 1]) for place in range(len(items) - 1)]


def lanes(
    sentences: Iterable[list], rows: int, steps: int, marks: tuple, backward: bool = False
) -> Iterator[list[list[tuple | None]]]:
    """Batches of R rows with T pairs (input, target), None where the text is over; without end if the text has none."""
    sentences = iter(sentences)
    waiting = [[] for _ in range(rows)]
    while True:
        batch = []
        for row in range(rows):
            batch.append([])
            for _ in range(steps):
                if not waiting[row]:
                    for words in sentences:
                        waiting[row] = targets_of(words, marks, backward)
                        break
                batch[row].append(waiting[row].pop(0) if waiting[row] else None)
        if all(pair is None for line in batch for pair in line):
            return
        yield batch


def without_incomplete(batches: Iterable[list[list[tuple | None]]]) -> Iterator[list[list[tuple]]]:
    """The batches before the first one with a gap."""
    for batch in batches:
        if any(pair is None for line in batch for pair in line):
            return
        yield batch


def halves(batch: list[list[tuple | None]]) -> tuple[list[list], list[list]]:
    """Inputs and targets (R, T) of pairs (R, T)."""
    return tuple([[pair and pair[half] for pair in line] for line in batch] for half in (0, 1))


def reused_rows(count: int, length: int, reuse: int, lanes: int) -> list[list[tuple[list[int], list[int]]]]:
    """For each lane, (first part, what follows it) of each row of XLNet's, as places in a text of `count` tokens."""
    texts = [list(range(lane * count // lanes, (lane + 1) * count // lanes)) for lane in range(lanes)]
    found, begin = [[] for _ in texts], 0
    while True:
        end = begin + length - 3  # without the three special tokens
        for rows, text in zip(found, texts, strict=True):
            rows.append((text[begin:end][:reuse], text[begin:end][reuse:]))
        if end >= max(map(len, texts)):
            return found
        begin += reuse
