"""Readable twins of `heirloom.objectives.sentence_pairs`, `text_packing` and `token_labels`: one sentence or token at a time."""

import random
from itertools import chain


def truncate(a: list, b: list, most: int, draw: random.Random) -> tuple[list, list]:
    """BERT's: drop a token of the longer one, of b if both are as long, at either end."""
    a, b = list(a), list(b)
    while len(a) + len(b) > most:
        longer = a if len(a) > len(b) else b
        longer.pop(0 if draw.random() < 0.5 else -1)
    return a, b


def next_sentences(documents: list[list[list]], most: int, short: float, draw: random.Random) -> list[tuple]:
    """BERT's pairs (A, B, whether random, sentences of the chunk), B not truncated; sentences are lists of ids."""
    found = []
    for number, document in enumerate(documents):
        target = draw.randint(2, most) if draw.random() < short else most
        chunk, place = [], 0
        while place < len(document):
            chunk.append(document[place])
            if place == len(document) - 1 or sum(map(len, chunk)) >= target:
                cut = 1 if len(chunk) == 1 else draw.randint(1, len(chunk) - 1)
                a = list(chain(*chunk[:cut]))
                other = len(chunk) == 1 or draw.random() < 0.5
                if other:
                    b = []
                    another = draw.choice([one for one in range(len(documents)) if one != number])
                    for sentence in documents[another][draw.randrange(len(documents[another])) :]:
                        b += sentence
                        if len(b) >= target - len(a):
                            break
                    place -= len(chunk) - cut  # back to what was not used
                else:
                    b = list(chain(*chunk[cut:]))
                found.append((a, b, other, len(chunk)))
                chunk = []
            place += 1
    return found


def full_sentences(sentences: list[list], room: int) -> list[list]:
    """Blocks of whole sentences, none of which is longer than the room."""
    blocks = []
    for sentence in sentences:
        if not blocks or len(blocks[-1]) + len(sentence) > room:
            blocks.append([])
        blocks[-1] += sentence
    return blocks


def repeated(document: list[list]) -> list[list[bool]]:
    """Whether each token of each segment is in another segment too."""
    return [
        [any(token in other for j, other in enumerate(document) if i != j) for token in segment]
        for i, segment in enumerate(document)
    ]
