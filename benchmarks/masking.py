"""Million tokens a second of each masking strategy and noise on one core, beside the stock collators.

OMP_NUM_THREADS=1 python benchmarks/masking.py [--rows 32] [--length 512] [--runs 20]

From rows of numpy to input ids and labels; medians of processor time, which a busy machine disturbs least. The stock
collators get the same rows; "whole word" gets offsets too.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from tokenizers import Tokenizer, models
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForPermutationLanguageModeling,
    PreTrainedTokenizerFast,
)

from heirloom.objectives.attention_masks import unified_lm_mask
from heirloom.objectives.documents import Documents
from heirloom.objectives.masking import (
    KnowledgeMasking,
    NgramMasking,
    Replacement,
    SpanMasking,
    TrigramShuffle,
    WholeWordMasking,
)
from heirloom.objectives.noise import (
    Compose,
    DocumentRotation,
    Masking,
    MassFragment,
    ReplacedTokenNoise,
    SentencePermutation,
    SpanCorruption,
    TextInfilling,
    TokenDeletion,
    denoising,
)
from heirloom.objectives.permutation import PermutationTargets
from heirloom.objectives.sentence_pairs import pairs, truncated
from heirloom.objectives.text_packing import pack_full_sentences
from heirloom.objectives.token_batch import TokenBatch, Vocabulary, generator

SIZE, STOP, WORD = 30522, 100, 0.77  # a token in four continues a word; a sentence has 25 tokens
ROLES = {"pad_token": "w0", "cls_token": "w1", "sep_token": "w2", "mask_token": "w3"}
SENTINELS = tuple(range(SIZE - 1, SIZE - 201, -1))

OURS = {
    "token": Masking(),
    "whole word": Masking(WholeWordMasking()),
    "n-gram": Masking(NgramMasking()),
    "span": Masking(SpanMasking(), Replacement(per="span")),
    "knowledge": Masking(KnowledgeMasking(columns=(), basic="word")),
    "token, trigram shuffle": Compose((Masking(), TrigramShuffle())),
    "replaced tokens": ReplacedTokenNoise(),
    "deletion": TokenDeletion(),
    "infilling": TextInfilling(),
    "sentence permutation": SentencePermutation((STOP,)),
    "BART: permutation, infilling": Compose((SentencePermutation((STOP,)), TextInfilling())),
    "rotation": DocumentRotation(),
    "MASS": MassFragment(),
    "T5": SpanCorruption(),
    "permutation": PermutationTargets(),
    "permutation, units of tokens": PermutationTargets(unit="token"),
}
DENOISING = ("deletion", "infilling", "sentence permutation", "BART: permutation, infilling", "rotation")
WITHOUT_WORDS = (
    *DENOISING,
    "token",
    "token, trigram shuffle",
    "replaced tokens",
    "MASS",
    "T5",
    "permutation, units of tokens",
)


def rows_of(count: int, length: int) -> list[dict]:
    """Random rows with words and, for the stock collator, offsets."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(count):
        ids = rng.integers(4, SIZE - 200, length)
        ids[rng.random(length) < 0.04] = STOP
        words = np.cumsum(rng.random(length) < WORD)
        ids[0], ids[-1], words[0], words[-1] = 1, 2, -1, -1
        begin = np.arange(length) * 2 + words  # a gap before each word
        special = np.zeros(length, np.int64)
        special[[0, -1]] = 1
        offsets = np.stack([begin, begin + 2], axis=1)
        offsets[[0, -1]] = 0
        rows.append(
            {"input_ids": ids, "word_ids": words, "special_tokens_mask": special, "offset_mapping": offsets}
        )
    return rows


def median_seconds(run: Callable, runs: int) -> float:
    """The median time of some calls, after one that is not counted."""
    run(0)
    times = []
    for number in range(runs):
        start = time.process_time()
        run(number)
        times.append(time.process_time() - start)
    return statistics.median(times)


def stock(rows: list[dict]) -> dict[str, Callable]:
    """The collators of Transformers for the same rows."""
    words = models.WordLevel({f"w{number}": number for number in range(SIZE)}, unk_token="w4")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **ROLES)
    plain = [{"input_ids": r["input_ids"], "special_tokens_mask": r["special_tokens_mask"]} for r in rows]
    spaced = [row | {"offset_mapping": r["offset_mapping"]} for row, r in zip(plain, rows, strict=True)]
    token = DataCollatorForLanguageModeling(tokenizer)
    word = DataCollatorForLanguageModeling(
        tokenizer, whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0
    )
    order = DataCollatorForPermutationLanguageModeling(tokenizer)
    return {
        "stock token": lambda _: token(plain),
        "stock whole word": lambda _: word(spaced),
        "stock permutation": lambda _: order(plain),
    }


def over_the_corpus(tokens: int) -> dict[str, Callable]:
    """Tables over a whole corpus, documents of 1 to 39 sentences of about 25 tokens."""
    rng = np.random.default_rng(0)
    sentences = np.append(0, np.cumsum(rng.poisson(24, tokens // 25) + 1))
    documents = np.unique(np.append(0, np.cumsum(rng.integers(1, 40, len(sentences) // 20))))
    documents = np.append(documents[documents < len(sentences) - 1], len(sentences) - 1)
    corpus = Documents(rng.integers(4, SIZE, sentences[-1]).astype(np.int32), sentences, documents)

    def table(step: int) -> np.ndarray:
        found = pairs(corpus, random.Random(step), "nsp", 125, 0.1, "other")
        return truncated(generator(0, step), found, 125)

    return {
        "pair table": table,
        "full sentences": lambda _: pack_full_sentences(corpus, 512),
    }


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 32), ("length", 512), ("runs", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = rows_of(options.rows, options.length)
    vocabulary = Vocabulary(SIZE, (0, 1, 2, 3, *SENTINELS), 0, 3, 2, SENTINELS)

    def ours(name: str) -> Callable:
        noise = OURS[name]
        names = ("input_ids",) if name in WITHOUT_WORDS else ("input_ids", "word_ids")
        given = [{column: row[column] for column in names} for row in rows]

        def run(step: int) -> TokenBatch:
            batch, rng = TokenBatch.from_rows(given, vocabulary), generator(0, step=step)
            return denoising(rng, batch, noise) if name in DENOISING else noise(rng, batch)

        return run

    seconds = {name: median_seconds(run, options.runs) for name, run in stock(rows).items()}
    slow = seconds["stock token"]
    seconds |= {name: median_seconds(ours(name), options.runs) for name in OURS}
    lengths = np.full(options.rows, options.length)
    seconds["UniLM masks"] = median_seconds(
        lambda _: unified_lm_mask(np.arange(options.rows) % 4, lengths // 2, lengths), options.runs
    )
    print(f"{'':30}{'ms':>8}{'M tokens/s':>12}{'x stock token':>15}")
    for name, time_taken in seconds.items():
        speed = options.rows * options.length / time_taken / 1e6
        print(f"{name:30}{time_taken * 1e3:8.2f}{speed:12.1f}{slow / time_taken:15.1f}")
    size = 1_000_000
    for name, run in over_the_corpus(size).items():
        time_taken = median_seconds(run, 3)
        print(f"{name:30}{time_taken * 1e3:8.2f}{size / time_taken / 1e6:12.1f}")


if __name__ == "__main__":
    main()
