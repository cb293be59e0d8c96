"""Words a minute of ElmoTokenizer on one core, beside a word-at-a-time reference from the tests.

python benchmarks/tokenizer_speed.py [--file F] [--json OUT]
"""

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import transformers

from heirloom.tokenization.tokenization_elmo import ElmoTokenizer

RUNS, SIZE, WORDS = 5, 50, 25  # a sentence has 25 words


def read(file: str | None) -> str:
    """The text of a file, or Python's own documentation, which lies on every machine."""
    if file is not None:
        return Path(file).read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n".join(topics.values())


def naive(batch: list[list[str]], vocab: dict[str, int], spell: Callable) -> dict[str, torch.Tensor]:
    """What the tokenizer gives, one word after the other."""
    width, unknown = max(map(len, batch)), vocab["<UNK>"]
    rows = {"input_ids": [], "char_ids": [], "attention_mask": []}
    for words in batch:
        gap = width - len(words)
        rows["input_ids"].append([vocab.get(word, unknown) for word in words] + [0] * gap)
        rows["char_ids"].append([spell(word, SIZE) for word in words] + [[0] * SIZE] * gap)
        rows["attention_mask"].append([1] * len(words) + [0] * gap)
    return {name: torch.tensor(values) for name, values in rows.items()}


def median_seconds(run: Callable, batches: list) -> float:
    """The median time of RUNS passes over all batches."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        for batch in batches:
            run(batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def processor() -> str:
    """The processor's model name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(text: str, batch_size: int, spell: Callable) -> dict:
    """Time every way of calling on one text; `spell` is the reference's character ids of a word."""
    words = text.split()
    sentences = [words[start : start + WORDS] for start in range(0, len(words), WORDS)]
    batches = [sentences[start : start + batch_size] for start in range(0, len(sentences), batch_size)]
    texts = [[" ".join(sentence) for sentence in batch] for batch in batches]
    tok = ElmoTokenizer.from_words(words, max_characters_per_token=SIZE)
    vocab, split = tok.get_vocab(), {"is_split_into_words": True, "padding": True}
    slow, fast = naive(batches[0], vocab, spell), tok(batches[0], return_tensors="pt", **split)
    if not all(torch.equal(slow[name], fast[name]) for name in slow):
        raise SystemExit("The tokenizer and the reference disagree: run the tests.")
    ways = {
        "pre-split, np": (batches, lambda batch: tok(batch, return_tensors="np", **split)),
        "pre-split, pt": (batches, lambda batch: tok(batch, return_tensors="pt", **split)),
        "raw text, pt": (texts, lambda batch: tok(batch, return_tensors="pt", padding=True)),
        "reference, pt": (batches, lambda batch: naive(batch, vocab, spell)),
    }
    rows = []
    for way, (data, run) in ways.items():
        count = sum(len(tok.tokenize(one)) for one in chain(*texts)) if data is texts else len(words)
        seconds = median_seconds(run, data)
        rows.append({"way": way, "words": count, "seconds": seconds, "rate": count / seconds * 60 / 1e6})
    for row in rows:
        row["ratio"] = row["rate"] / rows[-1]["rate"]
    modules = {"numpy": np, "torch": torch, "transformers": transformers}
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "versions": {"python": platform.python_version()}
        | {name: module.__version__ for name, module in modules.items()},
        "distinct_words": len(set(words)),
        "batch_size": batch_size,
        "rows": rows,
    }


def main() -> None:
    """Measure, print a table, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", help="a UTF-8 text; default: the topics of Python's documentation")
    parser.add_argument("--batch-size", type=int, default=32, help=f"sentences of {WORDS} words a call")
    parser.add_argument("--json", help="write the numbers there too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from reference.char_ids_naive import character_ids

    result = measure(read(arguments.file), arguments.batch_size, character_ids)
    print(f"{result['date']}, {result['processor']}, one thread")
    print(", ".join(f"{name} {version}" for name, version in result["versions"].items()))
    print(
        f"{result['distinct_words']:,} distinct words, {result['batch_size']} sentences of {WORDS} words a call"
    )
    print(
        f"median of {RUNS} passes\n\n{'':16}{'words':>10}{'seconds':>10}{'M words/min':>13}{'x reference':>13}"
    )
    for row in result["rows"]:
        numbers = f"{row['words']:>10,}{row['seconds']:>10.4f}{row['rate']:>13.2f}{row['ratio']:>13.1f}"
        print(f"{row['way']:16}{numbers}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
