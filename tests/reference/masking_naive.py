"""Readable twins of `heirloom.objectives.masking` and `word_ids`: one row, one word, one token at a time.

They walk in the order that the originals walk in, from the same random draws.
"""


def words_of(word_ids, maskable) -> list[list[int]]:
    """The positions of each word of one row."""
    words, last = [], None
    for place, (word, may) in enumerate(zip(word_ids, maskable, strict=True)):
        if not may or word < 0:
            last = None
            continue
        if word != last:
            words.append([])
        words[-1].append(place)
        last = word
    return words


def follows(words: list[list[int]], number: int) -> bool:
    """Whether a word stands right behind the one before."""
    return words[number][0] == words[number - 1][-1] + 1


def shortest(words: list[list[int]]) -> set[int]:
    """The first of the shortest words."""
    return set(min(words, key=len))


def whole_words(words: list[list[int]], keys, budget: int) -> set[int]:
    """BERT's greedy walk: words by their keys, each taken if it fits."""
    chosen = set()
    for number in sorted(range(len(words)), key=lambda number: keys[number]):
        if len(chosen) + len(words[number]) <= budget:
            chosen |= set(words[number])
    return chosen or shortest(words)


def ngrams(words: list[list[int]], keys, sizes, budget: int) -> set[int]:
    """ALBERT's walk: n-grams by the keys of their first words, cut to the budget, refused if one word is taken."""
    chosen = set()
    for number in sorted(range(len(words)), key=lambda number: keys[number]):
        gram = [number]
        while len(gram) < sizes[number] and gram[-1] + 1 < len(words) and follows(words, gram[-1] + 1):
            gram.append(gram[-1] + 1)
        while gram and len(chosen) + sum(len(words[word]) for word in gram) > budget:
            gram.pop()
        places = {place for word in gram for place in words[word]}
        if gram and not places & chosen:
            chosen |= places
    return chosen or shortest(words)


def spans(words: list[list[int]], anchors, sizes, budget: int) -> set[int]:
    """SpanBERT's loop: a random token that is not taken, its word and those after it, until the budget ends."""
    tokens = [place for word in words for place in word]
    chosen = set()
    for anchor, size in zip(anchors, sizes, strict=True):
        place = tokens[int(anchor * len(tokens))]
        if place in chosen:
            continue
        number = next(number for number, word in enumerate(words) if place in word)
        for word in range(number, min(number + size, len(words))):
            if word > number and not follows(words, word):
                break
            for other in words[word]:
                if len(chosen) < budget:
                    chosen.add(other)
    return chosen


def naive_word_ids(text: str, offsets, special, spans) -> list[int]:
    """The word of each token: words that share one are joined, a token of spaces goes with the word after it."""
    owner = [None] * len(text)
    for number, (begin, end) in enumerate(spans):
        for place in range(begin, end):
            owner[place] = number
    ids, current, reach = [], -1, -1
    for (begin, end), is_special in zip(offsets, special, strict=True):
        if is_special:
            ids.append(-1)
            continue
        touched = [owner[place] for place in range(begin, end) if owner[place] is not None]
        if not touched:
            after = [number for number in owner[begin:] if number is not None]
            before = [number for number in owner[:begin] if number is not None]
            touched = after[:1] or before[-1:]
        if touched[0] > reach:
            current += 1
        reach = max(reach, touched[-1])
        ids.append(current)
    return ids
