"""Words to character ids one word at a time, straight from the specification, and hard words to try it on."""

import random
from collections.abc import Sequence

from reference.bilm_naive import character_ids


def code_point_ids(word: str, size: int, characters: Sequence[str]) -> list[int]:
    """ELMoForManyLangs' ids: code points between marks that its authors swapped, `<bos>` and `<eos>` as one each."""
    number = {character: line for line, character in enumerate(characters, 1)}
    word = word[: size - 2]
    if word in ("<bos>", "<eos>"):
        body = [number[word]]
    else:
        body = [number.get(character, number["<oov>"]) for character in word]
    ids = [number["<eow>"], *body, number["<bow>"]]
    return ids + [number["<pad>"]] * (size - len(ids))


def random_words(count: int, seed: int) -> list[str]:
    """Words of all planes, lone surrogates and boundary words among them."""
    draw = random.Random(seed)
    ranges = [(32, 127), (0, 0x300), (0x4E00, 0x4F00), (0xD800, 0xE000), (0x1F600, 0x1F650), (0, 0x110000)]
    words = ["", "<S>", "</S>", "<s>", "<UNK>", "<pad>", "é" * 30, "x" * 48, "日" * 17]
    for _ in range(count):
        low, high = draw.choice(ranges)
        words.append("".join(chr(draw.randrange(low, high)) for _ in range(draw.randrange(30))))
    return words


__all__ = ["character_ids", "code_point_ids", "random_words"]
