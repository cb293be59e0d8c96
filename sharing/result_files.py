"""A run's result as `.eval_results/*.yaml`, which the Hub lists beside others on the page of a benchmark's data set."""

import math

from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id, yaml_dump

# An entry has one value and no name for it; the benchmark knows what it is. This is the measure that a task is known by.
MAIN = ("entity_f1", "macro_f1", "accuracy", "spearman", "pearson", "bleu", "chrf", "rougeL", "perplexity")
FILES = (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt")


def result_file(facts: dict) -> str:
    """The file's YAML.

    Args:
        facts: fields of `cards.CardFacts`, of which `scores`, `dataset` and `dataset_task` are read.

    Returns:
        One entry; "" where the scores are of no data set of the Hub, USER/NAME, or none of them is a task's main measure.
    """
    found = [name for name in MAIN if math.isfinite(facts["scores"].get(name, math.nan))]
    if not found or not _on_the_hub(facts["dataset"]):
        return ""
    value = float(f"{facts['scores'][found[0]]:.6g}")
    entry = EvalResultEntry(facts["dataset"], facts["dataset_task"], value, notes=found[0].replace("_", " "))
    return yaml_dump(eval_result_entries_to_yaml([entry]))


def _on_the_hub(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not name.endswith(FILES)


__all__ = ["result_file"]
