"""Time of ranking candidates with a context that is read once for all of them, and once for each.

OMP_NUM_THREADS=1 python benchmarks/zero_shot.py [--context 200] [--candidates 4] [--tokens 5] [--repeats 11]

A GPT-2 with random weights ranks random words behind random contexts, all tokens of one word each, with and without
`ZeroShotScorer.reuses_context`. Both run in turn; medians of processor time, which a busy machine disturbs least. Their
scores are compared in the same run: if they differ by more than 1e-4 nats a token, there is no time but an error.
"""

import argparse
import json
from datetime import date
from pathlib import Path

import numpy as np
import torch
from timing import in_turn, summary
from tokenizer_speed import processor
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from heirloom.sharing.zero_shot import ZeroShotScorer

SIZES = {  # by which a model is asked for, and what it is by default
    "context": 200,
    "candidates": 4,
    "tokens": 5,
    "contexts": 4,
    "layers": 4,
    "hidden": 256,
    "words": 8000,
    "repeats": 11,
    "seed": 0,
}
NEAR = 1e-4  # nats a token; sums of float32 in another order differ too
ONCE, EACH = "context read once", "context read for each"


def make_scorer(options: argparse.Namespace) -> ZeroShotScorer:
    """A scorer with a random GPT-2, whose words are w0, w1 .."""
    torch.manual_seed(options.seed)
    config = GPT2Config(
        vocab_size=options.words,
        n_embd=options.hidden,
        n_layer=options.layers,
        n_head=4,
        n_positions=options.context + options.tokens + 1,
        bos_token_id=0,
        eos_token_id=0,
    )
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(options.words)}, "w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w0", eos_token="w0")
    return ZeroShotScorer(GPT2LMHeadModel(config).eval(), tokenizer)


def compare(options: argparse.Namespace) -> dict:
    """Seconds of both ways, and the largest difference of their scores in nats a token.

    Raises:
        RuntimeError: scores that are not the same, or no cache to compare with.
    """
    scorer, rng = make_scorer(options), np.random.default_rng(options.seed)
    if not scorer.reuses_context:
        raise RuntimeError("this GPT-2 has no cache that can be reused, so there is nothing to compare")

    def texts(count: int, tokens: int) -> list[str]:
        drawn = rng.integers(1, options.words, (count, tokens))
        return [" ".join(f"w{number}" for number in row) for row in drawn]

    contexts = texts(options.contexts, options.context)
    candidates = [texts(options.candidates, options.tokens) for _ in contexts]
    found = {}

    def ranking(reuse: bool, name: str) -> None:
        scorer.reuses_context = reuse
        ranked = scorer.rank(contexts, candidates)
        found[name] = torch.tensor(
            [[one.score for one in sorted(own, key=lambda one: one.index)] for own in ranked]
        )

    ways = {ONCE: lambda _: ranking(True, ONCE), EACH: lambda _: ranking(False, EACH)}
    for work in ways.values():
        work(0)  # to warm up
    difference = float((found[ONCE] - found[EACH]).abs().max())
    if not difference <= NEAR:
        raise RuntimeError(
            f"the scores of both ways differ by {difference} nats a token; one of them is wrong"
        )
    samples = in_turn(ways, options.repeats, 1)
    return {"difference": difference, "ways": {name: summary(some, 1) for name, some in samples.items()}}


def main() -> None:
    """Measure, print a table, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{default} by default")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = compare(options)
    sizes = {name: getattr(options, name) for name in SIZES}
    facts = {"date": date.today().isoformat(), "processor": processor(), "torch": torch.__version__} | sizes
    print(f"{facts['date']}, {facts['processor']}, torch {facts['torch']}, one thread, seed {options.seed}")
    print(
        f"GPT-2 of {options.layers} layers and {options.hidden} features, {options.words:,} words; ", end=""
    )
    print(
        f"{options.contexts} contexts of {options.context} tokens, {options.candidates} candidates of ",
        end="",
    )
    print(f"{options.tokens} tokens each\n")
    print("| way | ms a ranking, median | fastest | times as long |\n|---|---|---|---|")
    fast = found["ways"][ONCE]["median"]
    for name, row in found["ways"].items():
        print(f"| {name} | {row['median'] * 1e3:.1f} | {row['min'] * 1e3:.1f} | {row['median'] / fast:.2f} |")
    print(f"\nlargest difference of scores: {found['difference']:.1e} nats a token")
    if options.json:
        options.json.write_text(json.dumps(facts | found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
