"""Sampled and adaptive softmax one position at a time, straight from their definitions.

The sampler is TensorFlow's log-uniform one (Jean et al. 2015 for the loss); the adaptive softmax is that of Grave et al.
2017, section 4: a head over frequent words and one class a cluster, then each cluster's own words.

Letters: V classes, S sampled classes, T draws that it took to find S distinct ones.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def chance(word: int, classes: int) -> float:
    """P(k) of one draw."""
    return math.log((word + 2) / (word + 1)) / math.log(classes + 1)


def draw(uniform: Iterator[float], classes: int, count: int) -> tuple[list[int], int]:
    """Draw one class after the other until S distinct ones are there; also says T."""
    found, draws = [], 0
    while len(found) < count:
        word = (math.floor(math.exp(next(uniform) * math.log(classes + 1))) - 1) % classes
        draws += 1
        if word not in found:
            found.append(word)
    return found, draws


def expected_count(word: int, classes: int, count: int, draws: int) -> float:
    """Q(k)."""
    if draws == count:
        return count * chance(word, classes)
    return 1 - (1 - chance(word, classes)) ** draws


def sampled_loss(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, sampled, draws: int
) -> Tensor:
    """The summed loss, in the number format of its inputs."""
    sampled = [int(word) for word in sampled]
    classes, count = len(weight), len(sampled)
    total = hidden.new_zeros(())
    for vector, target in zip(hidden, targets.tolist(), strict=True):
        logits = []
        for word in [target, *sampled]:
            expected = expected_count(word, classes, count, draws)
            logits.append(vector @ weight[word] + bias[word] - math.log(expected))
        hits = F.one_hot(torch.tensor(target), classes)[
            torch.tensor(sampled)
        ].bool()  # samples that are the target
        logits = torch.stack(logits)[torch.cat([torch.tensor([True]), ~hits])]
        total = total - logits[0] + logits.exp().sum().log()
    return total


def adaptive_log_probability(softmax, vector: Tensor, word: int) -> Tensor:
    """log p(word) of torch's adaptive layer: of the head's entry, and inside the cluster where the word is in one."""
    head = softmax.head(vector).log_softmax(0)
    edges = softmax.cutoffs  # the first class of each cluster, and V
    if word < edges[0]:
        return head[word]
    cluster = next(number for number in range(len(edges) - 1) if word < edges[number + 1])
    down, words = softmax.tail[cluster]
    inside = words(down(vector)).log_softmax(0)
    return head[edges[0] + cluster] + inside[word - edges[cluster]]
