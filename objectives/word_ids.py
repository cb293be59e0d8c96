"""Which tokens make up a word, for any fast tokenizer and any language: columns for a data set, made once.

A segmenter says where words are in the text; tokens are laid upon it by their character offsets. So WordPiece, byte-BPE
(whose offsets may hold the space before a word) and Unigram get the same words, and Chinese gets those of its segmenter.
Offsets are those of the text as written: segment it before any lower-casing.

Words that share a token are one. A word that truncation cuts belongs to none, for half of it can be guessed from nothing.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import regex
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from .token_batch import NOWHERE

Span = tuple[int, int]
Segmenter = Callable[[str], Iterable[Span] | Iterable[str]]

# The words of BERT's basic tokenizer: Chinese characters and punctuation, ASCII symbols with it, stand alone.
BERT_WORDS = regex.compile(r"\p{Han}|[\p{P}$+<=>^`|~]|[^\s\p{Han}\p{P}$+<=>^`|~]+")


def bert_words(text: str) -> list[Span]:
    """Where the words of a text are that needs no segmenter: between white space, punctuation and Chinese characters."""
    return [match.span() for match in BERT_WORDS.finditer(text)]


class JiebaSegmenter:
    """Chinese words by jieba, which must be installed.

    Args:
        hmm: whether jieba may guess words that are not in its dictionary.
    """

    def __init__(self, hmm: bool = True):
        try:
            import jieba  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "JiebaSegmenter needs jieba: pip install 'heirloom-lm[chinese]', or give any function from a text to its words as "
                "`segmenter`"
            ) from error
        self.hmm = hmm

    def __call__(self, text: str) -> list[Span]:
        """Where words are."""
        import jieba

        return [(begin, end) for word, begin, end in jieba.tokenize(text, HMM=self.hmm) if word.strip()]


class Gazetteer:
    """Finds listed phrases or entities in a text, from left to right and the longest first.

    Args:
        phrases: as they are written. Latin ones match whole words only.
    """

    def __init__(self, phrases: Iterable[str]):
        phrases = sorted({phrase for phrase in phrases if phrase}, key=lambda phrase: (-len(phrase), phrase))
        if not phrases:
            raise ValueError("a gazetteer needs at least one phrase, got none")
        self.pattern = re.compile("|".join(map(self._whole, phrases)))

    @staticmethod
    def _whole(phrase: str) -> str:
        before = r"(?<![A-Za-z0-9])" if phrase[0].isascii() and phrase[0].isalnum() else ""
        after = r"(?![A-Za-z0-9])" if phrase[-1].isascii() and phrase[-1].isalnum() else ""
        return before + re.escape(phrase) + after

    def __call__(self, text: str) -> list[Span]:
        """Where phrases are."""
        return [match.span() for match in self.pattern.finditer(text)]


class FirstOf:
    """Several segmenters as one: what an earlier one finds stays whole, later ones get the rest.

    ERNIE 1.0's units are entities, then phrases (Sun et al. 2019, section 3.2): a gazetteer of entities comes first.

    Args:
        segmenters: as for `add_word_ids`.
    """

    def __init__(self, segmenters: Iterable[Segmenter]):
        self.segmenters = tuple(segmenters)

    def __call__(self, text: str) -> list[Span]:
        """Where units are; of one that an earlier unit cuts, each piece is a unit."""
        owner, count = np.zeros(len(text), np.int64), 0
        for segmenter in self.segmenters:
            for begin, end in spans_of(text, segmenter(text)):
                count += 1
                part = owner[begin:end]
                part[part == 0] = count
        edges = np.flatnonzero(np.diff(owner, prepend=0, append=0)).tolist()
        return [(begin, end) for begin, end in pairwise(edges) if owner[begin] and text[begin:end].strip()]


def spans_of(text: str, found: Iterable[Span] | Iterable[str]) -> list[Span]:
    """Spans of characters from what a segmenter gives: spans, or the words themselves in their order.

    Raises:
        ValueError: a word that is not in the rest of the text, spans outside of the text or out of order.
    """
    spans, end = [], 0
    for item in found:
        if isinstance(item, str):
            if not item.strip():
                continue
            begin = text.find(item, end)
            if begin < 0:
                raise ValueError(
                    f"the segmenter gave {item!r}, which is not in the rest of its text, {text[end:][:40]!r}"
                )
            item = (begin, begin + len(item))
        begin, stop = map(int, item)
        if not end <= begin < stop <= len(text):
            raise ValueError(
                f"expected spans in order, without overlap and within {len(text)} characters, got {(begin, stop)} after "
                f"position {end} in {text[:40]!r}"
            )
        spans.append((begin, stop))
        end = stop
    return spans


def characters(text: str, spans: Sequence[Span], every: bool) -> np.ndarray:
    """The number of the span of each character, -1 for none; with `every`, lone characters that are no space get one."""
    numbers = np.full(len(text), NOWHERE, np.int64)
    for number, (begin, end) in enumerate(spans):
        numbers[begin:end] = number
    if every:
        for place in np.flatnonzero(numbers < 0):
            if not text[place].isspace():
                numbers[place] = len(spans) + place  # unlike all others; the order is mended by the caller
        if text:
            for place in np.flatnonzero([char.isspace() for char in text]):
                numbers[place] = NOWHERE
    return numbers


def token_word_ids(
    text: str, offsets: Sequence[Span], special: Sequence[int], spans: Sequence[Span], truncated: bool = False
) -> np.ndarray:
    """The word of each token.

    Args:
        text: as the tokenizer got it.
        offsets: of each token in the text.
        special: 1 for special tokens and padding.
        spans: of words.
        truncated: whether the tokenizer left the end of the text out.

    Returns:
        Numbers (L,) from 0 on, -1 for special tokens.
    """
    numbers = characters(text, spans, every=True)
    real = np.flatnonzero(~np.asarray(special, bool))
    ids = np.full(len(special), NOWHERE, np.int64)
    inked = np.flatnonzero(numbers >= 0)
    if not len(real) or not len(inked):
        return ids
    changes = np.concatenate([[True], numbers[inked][1:] != numbers[inked][:-1]])
    word = np.cumsum(changes) - 1  # of each character that is no space, in order
    begin, end = np.asarray(offsets, np.int64).reshape(-1, 2)[real].T
    # A token of spaces alone goes with the word after it, or with the last one.
    first = np.minimum(np.searchsorted(inked, begin), len(inked) - 1)
    last = np.maximum(np.searchsorted(inked, end) - 1, first)
    reach = np.maximum.accumulate(word[last])
    fresh = np.concatenate([[True], word[first][1:] > reach[:-1]])
    ids[real] = np.cumsum(fresh) - 1
    if truncated and (word[inked >= end.max()][:1] == reach[-1]).any():
        ids[ids == ids[real[-1]]] = NOWHERE
    return ids


def token_span_ids(
    text: str, offsets: Sequence[Span], special: Sequence[int], spans: Sequence[Span]
) -> np.ndarray:
    """The number of the span in which each token begins (L,), spaces at its front aside; -1 for none."""
    numbers = characters(text, spans, every=False)
    ids = np.full(len(special), NOWHERE, np.int64)
    inked = np.flatnonzero([not char.isspace() for char in text])
    if not len(inked):
        return ids
    begin, end = np.asarray(offsets, np.int64).reshape(-1, 2).T
    first = inked[np.minimum(np.searchsorted(inked, begin), len(inked) - 1)]
    return np.where((np.asarray(special) == 0) & (first < end), numbers[first], NOWHERE)


def add_word_ids(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    segmenter: Segmenter | None = None,
    spans: Mapping[str, str | Segmenter] | None = None,
    text_column: str = "text",
    max_length: int | None = None,
):
    """Tokenize a data set, and say which tokens make up a word.

    Args:
        dataset: with a column of texts.
        tokenizer: any fast one.
        segmenter: gives the words of a text, or where they are, say `jieba.lcut` or `JiebaSegmenter()`; None for words
            between white space and punctuation, each Chinese character one.
        spans: further columns to make, say `{"entity_ids": "entities", "phrase_ids": Gazetteer(phrases)}`: from a column
            with lists of (begin, end) in characters or of strings, or from a function like a segmenter.
        text_column: where texts are.
        max_length: most tokens of a row; the rest is cut off.

    Returns:
        The data set with `input_ids`, `special_tokens_mask`, `word_ids` and the columns of `spans`, all int32.

    Raises:
        ValueError: a tokenizer without offsets, or a column that the data set does not have.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"add_word_ids needs a fast tokenizer, which knows where its tokens are in the text, got "
            f"{type(tokenizer).__name__}"
        )
    segmenter, spans = segmenter or bert_words, dict(spans or {})
    names = dataset.column_names  # None for some streams
    for name in [text_column, *(source for source in spans.values() if isinstance(source, str))]:
        if names is not None and name not in names:
            raise ValueError(f"expected a column {name!r} in the data set, got {names}")

    def encode(rows: dict) -> dict:
        texts = rows[text_column]
        encoded = tokenizer(
            texts,
            truncation=max_length is not None,
            max_length=max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
        )
        columns = {"input_ids": encoded["input_ids"], "special_tokens_mask": encoded["special_tokens_mask"]}
        columns |= {name: [] for name in ["word_ids", *spans]}
        for number, text in enumerate(texts):
            where = text, encoded["offset_mapping"][number], encoded["special_tokens_mask"][number]
            cut = max_length is not None and len(encoded["input_ids"][number]) >= max_length
            words = spans_of(text, segmenter(text))
            columns["word_ids"].append(token_word_ids(*where, words, truncated=cut))
            for name, source in spans.items():
                found = rows[source][number] if isinstance(source, str) else source(text)
                columns[name].append(token_span_ids(*where, spans_of(text, found)))
        return {name: [np.asarray(row, np.int32) for row in column] for name, column in columns.items()}

    return dataset.map(encode, batched=True)
