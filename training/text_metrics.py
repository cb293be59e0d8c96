"""Scores of texts against references: BLEU and chrF by sacreBLEU, ROUGE by rouge-score.

Each score carries a signature, which says all that another must do to get a comparable number.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version

LIBRARIES = {"bleu": ("sacrebleu", "sacreBLEU"), "chrf": ("sacrebleu", "sacreBLEU")}
LIBRARIES |= {"rouge": ("rouge_score", "rouge-score")}


@dataclass(frozen=True)
class TextScore:
    """One number, and how it came about.

    Args:
        name: as printed.
        score: in percent.
        signature: of the library, its version and options.
        details: what else the library tells of it.
    """

    name: str
    score: float
    signature: str
    details: str = ""


def need_libraries(metrics: Sequence[str]) -> None:
    """Refuse metrics that cannot be had here, before any work is done.

    Args:
        metrics: any of "bleu", "chrf", "rouge".

    Raises:
        ValueError: an unknown metric, or none.
        ImportError: a library that is not installed, with the command that installs it.
    """
    if not metrics or set(metrics) - set(LIBRARIES):
        raise ValueError(f"metrics must be some of {', '.join(LIBRARIES)}, found {list(metrics)}.")
    for metric in metrics:
        module, name = LIBRARIES[metric]
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ImportError(f"{metric} needs {name}: pip install 'heirloom-lm[train]' ({error})") from error


def text_scores(
    texts: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "chrf"),
    lowercase: bool = False,
    tokenize: str = "13a",
    stem: bool = False,
) -> list[TextScore]:
    """Score texts, each against its reference.

    Args:
        texts: what was generated.
        references: what was expected, as many.
        metrics: any of "bleu", "chrf", "rouge" (F1 of words, pairs of words and longest common subsequences, means over
            the texts; only the letters a-z and digits count).
        lowercase: BLEU and chrF of texts in lower case; ROUGE is always so.
        tokenize: sacreBLEU's splitter for BLEU: "13a", "intl", "char", "zh", "none" and others.
        stem: ROUGE of English stems.

    Returns:
        Scores in the order of the metrics; three for ROUGE.

    Raises:
        ValueError: no texts, other numbers of texts and references, or an unknown metric or splitter.
        ImportError: a library that is not installed.
    """
    need_libraries(metrics)
    if isinstance(texts, str) or len(texts) != len(references) or not len(texts):
        found = (
            "one text" if isinstance(texts, str) else f"{len(texts)} texts and {len(references)} references"
        )
        raise ValueError(f"lists of equally many texts and references are expected, found {found}.")
    makers: dict[str, Callable[[], list[TextScore]]] = {
        "bleu": lambda: [_bleu(texts, references, lowercase, tokenize)],
        "chrf": lambda: [_chrf(texts, references, lowercase)],
        "rouge": lambda: _rouge(texts, references, stem),
    }
    return [score for metric in dict.fromkeys(metrics) for score in makers[metric]()]


def _bleu(texts, references, lowercase: bool, tokenize: str) -> TextScore:
    from sacrebleu.metrics import BLEU

    if tokenize not in BLEU.TOKENIZERS:
        raise ValueError(f"tokenize must be one of {', '.join(BLEU.TOKENIZERS)}, found {tokenize!r}.")
    metric = BLEU(lowercase=lowercase, tokenize=tokenize, force=True)  # tokenised text is what one may have
    found = metric.corpus_score(list(texts), [list(references)])
    return TextScore("BLEU", found.score, str(metric.get_signature()), str(found).split(" ", 3)[3])


def _chrf(texts, references, lowercase: bool) -> TextScore:
    from sacrebleu.metrics import CHRF

    metric = CHRF(lowercase=lowercase)
    found = metric.corpus_score(list(texts), [list(references)])
    return TextScore("chrF2", found.score, str(metric.get_signature()))


def _rouge(texts, references, stem: bool) -> list[TextScore]:
    from rouge_score.rouge_scorer import RougeScorer

    kinds = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    scorer = RougeScorer(list(kinds), use_stemmer=stem)
    rows = [scorer.score(reference, text) for text, reference in zip(texts, references, strict=True)]
    signature = (
        f"nrefs:1|stem:{'yes' if stem else 'no'}|mean F1 of {len(rows)}|version:{version('rouge-score')}"
    )
    return [
        TextScore(name, 100 * sum(row[kind].fmeasure for row in rows) / len(rows), signature)
        for kind, name in kinds.items()
    ]


__all__ = ["TextScore", "need_libraries", "text_scores"]
