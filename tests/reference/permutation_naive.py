"""Readable twins of `heirloom.objectives.permutation` and `attention_masks`: one token and one pair of positions at a time."""


def spans(starts: list[bool], length: int, goal: int, sizes, fronts, context: int) -> set[int]:
    """XLNet's walk, for single-token units: starts says where words begin."""
    taken, place, left = set(), 0, goal
    for size, front in zip(sizes, fronts, strict=True):
        begin = place + front
        while begin < length and not starts[begin]:
            begin += 1
        stop = begin + min(size, left)
        if begin >= length or stop >= length:
            break
        taken |= set(range(begin, stop))
        left -= stop - begin
        place = stop + size * context - front
    return taken


def knows(
    query: int, key: int, rank: list[int], targets: set[int], functional: set[int], border: int
) -> bool:
    """Whether the content at `key` may have an effect on what stands at `query`; a target's prediction, if it is one."""
    if (query < border) != (key < border):
        return query >= border
    if key not in targets and key not in functional:
        return True
    if query in targets:
        return rank[key] < rank[query]
    return query in functional and rank[key] <= rank[query]


def sees(kind: str, source: int, query: int, key: int) -> bool:
    """UniLM's four masks."""
    if kind == "bidirectional":
        return True
    if kind == "left-to-right":
        return key <= query
    if kind == "right-to-left":
        return key >= query
    return key < source or source <= key <= query


def single_pass(steps: list, reuse: int, memory: int) -> list[list[bool]]:
    """Who must not see whom if the first parts of XLNet's rows are read in one piece, true for those that must not.

    Args:
        steps: `perm_mask` of each row, at least the first part of it.
        reuse: tokens of the first part.
        memory: tokens that are remembered.
    """
    size, mask = len(steps) * reuse, []
    for query in range(size):
        step, place = divmod(query, reuse)
        mask.append([])
        for key in range(size):
            begin = step * reuse
            if key >= begin + reuse:
                blocked = True
            elif key >= begin:
                blocked = bool(steps[step][place][key - begin])
            else:
                blocked = key < begin - memory
            mask[-1].append(blocked)
    return mask
