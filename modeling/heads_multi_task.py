"""The heads of MT-DNN (Liu et al. 2019, section 3), among them the stochastic answer network (Liu et al. 2018).

Letters: B pairs of texts, T positions, H features, K classes, S steps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def kept_steps(rows: int, steps: int, dropout: float, device: torch.device) -> Tensor:
    """Which steps' answers count: each with probability 1 - dropout, and one of each row in any case.

    Args:
        rows: B.
        steps: S.
        dropout: probability.
        device: of the result.

    Returns:
        (B, S) bool.
    """
    kept = torch.rand(rows, steps, device=device) >= dropout
    sure = torch.randint(steps, (rows, 1), device=device)
    return kept.scatter(1, sure, True)


class AnswerNetwork(nn.Module):
    """SAN: reads the premise again and again from a state that begins as the hypothesis, and answers at each step.

    With memories M^p, M^h of both texts and k = 1 .. S (MT-DNN, equations 1 to 5):
    s_0 = sum_j softmax_j(theta_1 M^h_j) M^h_j; x_k = sum_j softmax_j(s_{k-1} theta_2 M^p_j) M^p_j; s_k = GRU(s_{k-1}, x_k);
    P_k = softmax(theta_3 [s_k; x_k; |s_k - x_k|; s_k x_k]). The answer is the mean of P_k over the steps, in training over
    those that were not dropped. The released code divides by S (1 - dropout) whatever was dropped; here an answer is
    always a distribution.

    Args:
        hidden_size: H.
        num_labels: K.
        steps: S.
        prediction_dropout: probability that a step's answer is left out in training.
        dropout: rate on what an answer is made of.
    """

    def __init__(
        self,
        hidden_size: int,
        num_labels: int,
        steps: int = 5,
        prediction_dropout: float = 0.1,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.steps, self.prediction_dropout, self.dropout = steps, prediction_dropout, dropout
        self.summary = nn.Linear(hidden_size, 1, bias=False)  # theta_1
        self.attention = nn.Linear(hidden_size, hidden_size, bias=False)  # theta_2
        self.cell = nn.GRUCell(hidden_size, hidden_size)
        self.answer = nn.Linear(4 * hidden_size, num_labels)  # theta_3

    def forward(self, hidden: Tensor, premise: Tensor, hypothesis: Tensor) -> Tensor:
        """Answer.

        Args:
            hidden: (B, T, H) of rows with both texts.
            premise: (B, T) bool, true at the first text; at least one place a row.
            hypothesis: (B, T) bool, true at the second text; at least one place a row.

        Returns:
            (B, K) log probabilities, in float32 at least; cross-entropy takes them for logits.
        """
        state = _attend(hidden, self.summary(hidden).squeeze(2), hypothesis)  # (B, H)
        answers = []
        for _ in range(self.steps):
            scores = (hidden @ self.attention(state).unsqueeze(2)).squeeze(2)  # (B, T)
            found = _attend(hidden, scores, premise)  # (B, H)
            state = self.cell(found, state)
            both = torch.cat([state, found, (state - found).abs(), state * found], 1)
            logits = self.answer(F.dropout(both, self.dropout, self.training))
            answers.append(logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1))
        answers = torch.stack(answers, 1)  # (B, S, K)
        rate = self.prediction_dropout if self.training else 0.0
        kept = kept_steps(len(hidden), self.steps, rate, hidden.device)
        answers = answers.masked_fill(~kept.unsqueeze(2), float("-inf"))
        return answers.logsumexp(1) - kept.sum(1, keepdim=True).to(answers.dtype).log()


def _attend(hidden: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """(B, H): mean of vectors (B, T, H) by the softmax of scores (B, T) where the mask is true."""
    weights = scores.masked_fill(~mask, float("-inf")).softmax(1)
    return (weights.unsqueeze(1) @ hidden).squeeze(1)


def make_head(task: dict, hidden_size: int, bias: bool, dropout: float) -> nn.Module:
    """The head of a task with new weights.

    Args:
        task: complete, as in `MultiTaskConfig.tasks`.
        hidden_size: H.
        bias: whether linear heads have one.
        dropout: of the answer network.

    Returns:
        A linear layer, an `AnswerNetwork` for kind "pair", or nothing for "masked_lm": the language model has its own.
    """
    if task["kind"] == "masked_lm":
        return nn.Identity()
    if task["kind"] == "pair":
        return AnswerNetwork(
            hidden_size, task["num_labels"], task["steps"], task["prediction_dropout"], dropout
        )
    return nn.Linear(hidden_size, task["num_labels"], bias=bias)


__all__ = ["AnswerNetwork", "kept_steps", "make_head"]
