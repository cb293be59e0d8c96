"""Tokenizers for LSTM language models, trained on text: whole words, byte-level BPE, or unigram pieces.

Ids 0, 1, 2 are `<pad>`, `<eos>`, `<unk>` in every kind. A language model reads a sentence as `<eos> w1 .. wn <eos>`:
`tok(text)` gives `<eos> w1 .. wn`, a prompt for `generate()`, and what trains or scores adds the last `<eos>`. All other
ids follow the training text by falling frequency, as sampled and adaptive softmaxes want it, and equal texts give equal
bytes. `<pad>`, `<eos>` and `<unk>` in a text are these marks, not words; WikiText and PTB are written so.

Two corrections of the `tokenizers` library are here. Its trainer of words gives `<unk>` two ids if the text holds it. Its
trainer of unigram pieces adds up in the order of a hash table, so that the last digits of scores, and with them the ids,
differ from run to run (no setting helps); here the pieces are the library's, and the scores come from counts.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, get_args

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from ..tokenization.tokenization_elmo import WORD

Kind = Literal["word", "bpe", "unigram"]
PAD, EOS, UNK = SPECIALS = ("<pad>", "<eos>", "<unk>")  # ids 0, 1, 2
BYTES = 256
ROWS_AT_ONCE = 1000
# What no training text may hold; `<UNK>` is the unigram trainer's own word for unknown, whose score is no number.
MARK = re.compile("|".join(map(re.escape, (*SPECIALS, "<UNK>"))))


@dataclass(frozen=True)
class Coverage:
    """What a tokenizer makes of a text.

    Args:
        rows: sentences that are not blank.
        words: stretches between spaces.
        tokens: without the marks of sentences.
        unknown: tokens among them that are `<unk>`.
    """

    rows: int
    words: int
    tokens: int
    unknown: int


def train_tokenizer(
    rows: Iterable[str | Sequence[str]],
    kind: Kind,
    vocab_size: int,
    min_count: int = 1,
    lowercase: bool = False,
    tokenized: bool = False,
) -> tuple[PreTrainedTokenizerFast, Coverage]:
    """Make a tokenizer from text.

    Args:
        rows: sentences, or lists of words, which are joined by spaces. They are read two or three times, and never held.
        kind: "word"; "bpe", on bytes, whose `decode` gives back the very text; "unigram", on pieces with `▁` for spaces.
        vocab_size: ids at the most, the special ones included.
        min_count: leave out words, or merges of BPE, that are rarer.
        lowercase: read all text in lower case.
        tokenized: words stand between spaces; by default ElmoTokenizer's `WORD` splits (for characters that are younger
            than the library's Unicode tables the split can differ). Only for words.

    Returns:
        The tokenizer, and its coverage of the text.

    Raises:
        ValueError: options that contradict each other, no text, or a vocabulary too small for its bytes or characters.
    """
    _check_options(rows, kind, vocab_size, min_count, tokenized)
    tokenizer, trainer = _untrained(kind, vocab_size, min_count, lowercase, tokenized)
    try:
        tokenizer.train_from_iterator(_pieces(rows), trainer)
    except (ValueError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:  # the library's only kind
        if "not large enough" not in str(error):
            raise
        characters = len(set(chain.from_iterable(_stretches(tokenizer, rows))))
        raise ValueError(
            f"vocab_size {vocab_size} is too small: the text has {characters} different characters, and each needs an id "
            f"beside the {len(SPECIALS)} special ones. Raise it to {2 * (characters + len(SPECIALS))} or more, or use bpe."
        ) from error
    if tokenizer.get_vocab_size() <= len(SPECIALS):
        raise ValueError(
            f"the text holds no word that comes {min_count} times. Give more text, or lower min_count."
        )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    if kind == "unigram":
        _set_scores(tokenizer, lambda piece, score: round(score, 2))
    counts, coverage = _count(tokenizer, rows)
    if kind == "bpe":
        _order_ids(tokenizer, counts)
    elif kind == "unigram":
        total = math.log(coverage.tokens + 0.5 * tokenizer.get_vocab_size())
        _set_scores(tokenizer, lambda piece, score: math.log(counts[piece] + 0.5) - total)
        coverage = _count(tokenizer, rows)[1]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{EOS} $A", pair=f"{EOS} $A {EOS} $B", special_tokens=[(EOS, SPECIALS.index(EOS))]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=EOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    return wrapped, coverage


def _check_options(rows, kind, vocab_size, min_count, tokenized) -> None:
    if iter(rows) is rows:
        raise ValueError(
            "rows can be read only once; a text that can be read again is expected. Pass a list or shards."
        )
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, found {kind!r}.")
    least = len(SPECIALS) + {"word": 1, "bpe": BYTES, "unigram": 1}[kind]
    if vocab_size < least:
        parts = f"{BYTES} bytes and {len(SPECIALS)}" if kind == "bpe" else f"1 word and {len(SPECIALS)}"
        raise ValueError(
            f"vocab_size must be {least} or more for {kind} ({parts} special tokens), found {vocab_size}. Raise it."
        )
    if min_count < 1 or (kind == "unigram" and min_count > 1):
        raise ValueError(
            f"min_count must be 1 or more, and pieces of unigram have none; found {min_count} for {kind}. Leave it out."
        )
    if tokenized and kind != "word":
        raise ValueError(f"tokenized is for kind 'word'; {kind} finds its own pieces. Leave it out.")
    if next(_pieces(rows), None) is None:
        raise ValueError("the text has no words; one sentence a line is expected. Check the files.")


def _untrained(kind, vocab_size, min_count, lowercase, tokenized) -> tuple[Tokenizer, trainers.Trainer]:
    """A tokenizer without vocabulary, and what trains it."""
    options = {"vocab_size": vocab_size, "special_tokens": list(SPECIALS), "show_progress": False}
    if kind == "word":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
        whole = pre_tokenizers.Split(Regex(WORD.pattern), "removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit() if tokenized else whole
        trainer = trainers.WordLevelTrainer(min_frequency=min_count, **options)
    elif kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(min_frequency=min_count, initial_alphabet=alphabet, **options)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=UNK, **options)
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer, trainer


def _texts(rows: Iterable[str | Sequence[str]]) -> Iterator[str]:
    texts = (row if isinstance(row, str) else " ".join(row) for row in rows)
    return (text for text in texts if text and not text.isspace())


def _pieces(rows: Iterable[str | Sequence[str]]) -> Iterator[str]:
    """What stands between the marks in a text."""
    return (piece for text in _texts(rows) for piece in MARK.split(text) if piece)


def _stretches(tokenizer: Tokenizer, rows: Iterable[str | Sequence[str]]) -> Iterator[str]:
    """What the model of a tokenizer sees of a text."""
    for piece in _pieces(rows):
        normal = tokenizer.normalizer.normalize_str(piece) if tokenizer.normalizer else piece
        yield from (part for part, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))


def _count(tokenizer: Tokenizer, rows: Iterable[str | Sequence[str]]) -> tuple[Counter, Coverage]:
    """How often each token stands in a text, and the coverage of the text."""
    texts, ids, number, words = _texts(rows), Counter(), 0, 0
    while part := list(islice(texts, ROWS_AT_ONCE)):
        number += len(part)
        words += sum(len(text.split()) for text in part)
        for encoding in tokenizer.encode_batch_fast(part, add_special_tokens=False):
            ids.update(encoding.ids)
    counts = Counter({tokenizer.id_to_token(token): count for token, count in ids.items()})
    return counts, Coverage(number, words, counts.total(), counts[UNK])


def _order_ids(tokenizer: Tokenizer, counts: Counter) -> None:
    """Number the tokens of a BPE anew, by falling frequency; its merges stay in their order."""
    content = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(set(content["vocab"]) - set(SPECIALS), key=lambda token: (-counts[token], token))
    vocabulary = {token: number for number, token in enumerate((*SPECIALS, *tokens))}
    tokenizer.model = models.BPE(vocabulary, list(map(tuple, content["merges"])))


def _set_scores(tokenizer: Tokenizer, score) -> None:
    """Give the pieces of a unigram model new scores, and ids by falling score."""
    pieces = dict(json.loads(tokenizer.to_str())["model"]["vocab"])
    scores = {piece: score(piece, old) for piece, old in pieces.items() if piece not in SPECIALS}
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    tokenizer.model = models.Unigram(
        [(token, 0.0) for token in SPECIALS] + ranked, unk_id=SPECIALS.index(UNK)
    )


__all__ = ["Coverage", "Kind", "train_tokenizer"]
