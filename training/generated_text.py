"""What an encoder-decoder generates, as text, and its scores during training."""

from collections import defaultdict, deque
from collections.abc import Sequence

from transformers import EvalPrediction
from transformers import PreTrainedTokenizerBase as Tokenizer

from .text_metrics import need_libraries, text_scores

NAMES = {"BLEU": "bleu", "chrF2": "chrf", "ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


def until_end(row: list[int], ends: set[int]) -> list[int]:
    """The ids up to the first end, which is kept."""
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    return row


def decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of a target: without marks, but with the word for unknown ones, which readers should see."""
    marks = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.cls_token_id}
    marks |= {tokenizer.sep_token_id} | set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return tokenizer.decode([token for token in ids if token not in marks]).strip()


class GenerationScores:
    """BLEU and others of an evaluation with `predict_with_generate`, as `heirloom evaluate` counts them.

    References are the texts themselves, found by their labels: a reference that was cut, or has unknown words, counts whole.
    The order of the evaluation does not matter, and rows that were repeated to give every process as many count once.

    Args:
        tokenizer: of the target.
        ends: ids that end a target.
        labels: of every pair.
        references: the target's text of every pair.
        metrics: as in `text_scores`.

    Raises:
        ImportError: a library that is not installed.
        ValueError: an unknown metric.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        ends: set[int],
        labels: Sequence[Sequence[int]],
        references: Sequence[str],
        metrics: Sequence[str] = ("bleu", "chrf"),
    ):
        need_libraries(metrics)
        self.tokenizer, self.ends, self.metrics = tokenizer, ends, list(metrics)
        # Seq2SeqTrainer fills labels up with one of these; ends are left out on both sides of the comparison alike.
        self.fill = {-100, tokenizer.pad_token_id, tokenizer.eos_token_id, *ends}
        self.pairs = [
            (self._without_fill(row), reference) for row, reference in zip(labels, references, strict=True)
        ]

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Scores in percent: `bleu`, `chrf`, `rouge1`, `rouge2`, `rougeL`.

        Args:
            prediction: ids (N, T) that begin with the decoder's start, and labels (N, T'), -100 for padding.

        Returns:
            By name.

        Raises:
            ValueError: labels of no pair, or pairs without a prediction.
        """
        waiting = defaultdict(deque)
        for labels, reference in self.pairs:
            waiting[labels].append(reference)
        texts, references = [], []
        for ids, labels in zip(prediction.predictions.tolist(), prediction.label_ids.tolist(), strict=True):
            known = self._without_fill(labels)
            if known not in waiting:
                raise ValueError(
                    f"labels {list(known[:8])} are of no validation pair; expected those of the pairs that the scores were "
                    "made with. Give each data set scores of its own."
                )
            if waiting[known]:
                row = [token for token in ids[1:] if token >= 0]
                texts.append(decode(self.tokenizer, until_end(row, self.ends)))
                references.append(waiting[known].popleft())
        if len(texts) < len(self.pairs):
            raise ValueError(
                f"{len(self.pairs)} validation pairs, but predictions of {len(texts)}. Evaluate on all of them."
            )
        scores = text_scores(texts, references, self.metrics)
        return {NAMES[score.name]: score.score for score in scores}

    def _without_fill(self, labels: Sequence[int]) -> tuple[int, ...]:
        """Labels without what stands behind them."""
        count = len(labels)
        while count and labels[count - 1] in self.fill:
            count -= 1
        return tuple(labels[:count])


__all__ = ["GenerationScores", "decode", "until_end"]
