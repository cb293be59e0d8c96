"""The readable twins of multi-task learning: the stochastic answer network one pair and one step at a time, heads and losses one
example at a time without padding, and MT-DNN's algorithm 1 as a list."""

import math

import torch
from torch import Tensor


def answer_network(head, premise: Tensor, hypothesis: Tensor, kept: list[bool]) -> Tensor:
    """(K,) log of the mean answer of one pair.

    Args:
        head: an `AnswerNetwork`, for its weights.
        premise: (m, H).
        hypothesis: (n, H).
        kept: which steps count.
    """
    alpha = torch.stack([vector @ head.summary.weight[0] for vector in hypothesis]).softmax(0)
    state = sum(weight * vector for weight, vector in zip(alpha, hypothesis, strict=True))
    probabilities = []
    for _ in range(head.steps):
        scores = torch.stack([vector @ (head.attention.weight @ state) for vector in premise])
        found = sum(weight * vector for weight, vector in zip(scores.softmax(0), premise, strict=True))
        state = gru(head.cell, found, state)
        both = torch.cat([state, found, abs(state - found), state * found])
        probabilities.append((head.answer.weight @ both + head.answer.bias).softmax(0))
    chosen = [one for one, keep in zip(probabilities, kept, strict=True) if keep]
    return (sum(chosen) / len(chosen)).log()


def gru(cell, inputs: Tensor, state: Tensor) -> Tensor:
    """(H,): one step of a GRU (Cho et al. 2014) with PyTorch's order of gates."""
    from_input = (cell.weight_ih @ inputs + cell.bias_ih).chunk(3)
    from_state = (cell.weight_hh @ state + cell.bias_hh).chunk(3)
    reset, update = (
        (one + other).sigmoid() for one, other in zip(from_input[:2], from_state[:2], strict=True)
    )
    candidate = (from_input[2] + reset * from_state[2]).tanh()
    return (1 - update) * candidate + update * state


def vectors(model, row: list[int]) -> Tensor:
    """(T, H) of one row of ids by the base model."""
    return model.language_model.base_model(torch.tensor([row])).last_hidden_state[0]


def loss_of(model, task: dict, example: dict) -> list[Tensor]:
    """The losses of one example's labelled items.

    Args:
        model: a `MultiTaskModel`.
        task: one of its config's.
        example: `rows` of ids, one or for ranking several; `label`; `split`, where the second text of a pair begins.
    """
    head, place = model.classifier[f"task_{task['name']}"], {"first": 0, "last": -1}[model.config.pooling]
    read = [vectors(model, row) for row in example["rows"]]
    label, kind = example["label"], task["kind"]
    if kind == "tokens":
        logits = [head.weight @ vector + head.bias for vector in read[0]]
        return [-one.log_softmax(0)[k] for one, k in zip(logits, label, strict=True) if k != -100]
    if label == -100:
        return []
    if kind == "pair":
        split = example["split"]
        answer = answer_network(head, read[0][:split], read[0][split:], [True] * head.steps)
        return [-answer[label]]
    scores = torch.stack([head.weight @ one[place] + head.bias for one in read])
    if kind == "regression":
        return [(scores[0, 0] - label) ** 2]
    return [-(scores[:, 0] if kind == "ranking" else scores[0]).log_softmax(0)[label]]


def step_loss(model, examples: list[tuple[str, dict]]) -> tuple[Tensor, dict[str, Tensor]]:
    """`sum_t weight_t * mean over items of t`, and the means by task.

    Args:
        model: a `MultiTaskModel`.
        examples: names of tasks and their examples, in any order.
    """
    losses = {}
    for name, example in examples:
        task = next(task for task in model.config.tasks if task["name"] == name)
        losses.setdefault(name, []).extend(loss_of(model, task, example))
    means = {name: sum(some) / len(some) for name, some in losses.items() if some}
    weights = {task["name"]: task["weight"] for task in model.config.tasks}
    return sum(weights[name] * mean for name, mean in means.items()), means


def epoch_counts(sizes: dict[str, int], batch_size: int) -> dict[str, int]:
    """Batches of each task in an epoch of MT-DNN's algorithm 1."""
    return {name: math.ceil(size / batch_size) for name, size in sizes.items()}
