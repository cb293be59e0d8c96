"""A corpus of documents as one flat array of ids, with the places where sentences and documents begin.

Pairs, packing and token labels are tables of positions in it; they copy ids only for the rows that are asked for.

Letters: N tokens, S sentences, D documents.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from transformers import PreTrainedTokenizerBase

from .token_batch import NOWHERE
from .word_ids import Segmenter, bert_words, spans_of, token_word_ids

Sentence = str | Sequence[int] | Mapping[str, Sequence[int]]
SENTENCES_AT_ONCE = 10_000


@dataclass(frozen=True)
class Documents:
    """Ids of a corpus without special tokens.

    Args:
        tokens: (N,), int32.
        sentences: (S + 1,), where each sentence begins in `tokens`, and N at last.
        documents: (D + 1,), where each document begins in `sentences`, and S at last.
        word_ids: (N,), int32, equal for the tokens of one word and different for neighbouring words, -1 for none; or
            None.
    """

    tokens: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    word_ids: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        documents: "Iterable[Iterable[Sentence]] | Documents",
        tokenizer: PreTrainedTokenizerBase | None = None,
        words: bool = False,
        segmenter: Segmenter | None = None,
    ) -> "Documents":
        """Read documents, which are lists of sentences. Empty sentences and documents are left out.

        Args:
            documents: sentences are texts, lists of ids without special tokens, or rows with `input_ids` and
                `word_ids` of that kind.
            tokenizer: for texts.
            words: whether to find the words of texts; needs a fast tokenizer.
            segmenter: where they are; see `add_word_ids`.

        Raises:
            ValueError: no sentence at all; texts without a tokenizer; sentences of several kinds.
            TypeError: something that is not a list of lists of sentences.
        """
        if isinstance(documents, Documents):
            return documents
        found = [_listed(document) for document in documents]
        sentences = [sentence for document in found for sentence in document]
        kinds = {
            "texts" if isinstance(one, str) else "rows" if isinstance(one, Mapping) else "ids"
            for one in sentences
        }
        if len(kinds) > 1:
            raise ValueError(f"expected sentences of one kind, got {' and '.join(sorted(kinds))}")
        word_ids = None
        if kinds == {"texts"}:
            ids, word_ids = _encoded(
                sentences, tokenizer, (segmenter or bert_words) if words or segmenter else None
            )
        elif kinds == {"rows"}:
            ids = [row["input_ids"] for row in sentences]
            word_ids = [row["word_ids"] for row in sentences] if "word_ids" in sentences[0] else None
        else:
            ids = sentences
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        if not lengths.sum():
            raise ValueError(
                "found no sentence in the documents; expected lists of sentences, some of them not empty"
            )
        _same_lengths(lengths, word_ids)
        counts = _sums(np.fromiter(map(len, found), np.int64, len(found)))
        kept = _sums(lengths > 0)[counts]  # documents in sentences that are not empty
        return cls(
            _flat(ids, lengths),
            _sums(lengths[lengths > 0]),
            np.unique(kept),
            None if word_ids is None else _numbered(_flat(word_ids, lengths), lengths),
        )

    def __len__(self) -> int:
        """Count documents."""
        return len(self.documents) - 1

    def columns(self) -> dict[str, np.ndarray]:
        """`input_ids` (N,) and, if known, `word_ids` (N,)."""
        return {"input_ids": self.tokens} | ({} if self.word_ids is None else {"word_ids": self.word_ids})


def _listed(document: Iterable[Sentence]) -> list[Sentence]:
    if isinstance(document, str | Mapping):
        raise TypeError(
            f"expected a document as a list of sentences, got {document!r:.60}: put the sentences of each document into "
            "a list of their own"
        )
    sentences = list(document)
    if sentences and isinstance(sentences[0], int | np.integer):
        raise TypeError(
            "expected a document as a list of sentences, got a list of ids: a document is [[ids], [ids], ..]"
        )
    return sentences


def _encoded(
    texts: list[str], tokenizer: PreTrainedTokenizerBase | None, segmenter: Segmenter | None
) -> tuple[list, list | None]:
    if tokenizer is None:
        raise ValueError("sentences are texts, which need a tokenizer: give one, or lists of ids")
    if segmenter and not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"words need a fast tokenizer, which knows where its tokens are in the text, got {type(tokenizer).__name__}"
        )
    ids, word_ids = [], [] if segmenter else None
    for start in range(0, len(texts), SENTENCES_AT_ONCE):
        part = texts[start : start + SENTENCES_AT_ONCE]
        options = {"return_offsets_mapping": True} if segmenter else {}
        encoded = tokenizer(
            part, add_special_tokens=False, return_attention_mask=False, verbose=False, **options
        )
        ids += encoded["input_ids"]
        if segmenter:
            for text, tokens, offsets in zip(
                part, encoded["input_ids"], encoded["offset_mapping"], strict=True
            ):
                spans = spans_of(text, segmenter(text))
                word_ids.append(token_word_ids(text, offsets, [0] * len(tokens), spans))
    return ids, word_ids


def _same_lengths(lengths: np.ndarray, word_ids: list | None) -> None:
    if word_ids is not None and (found := list(map(len, word_ids))) != lengths.tolist():
        first = int(np.flatnonzero(lengths != found)[0])
        raise ValueError(f"sentence {first} has {lengths[first]} ids but {found[first]} word ids")


def _flat(rows: list, lengths: np.ndarray) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))


def _numbered(word_ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Number words through the corpus, so that neighbours in different sentences differ."""
    change = np.ones(len(word_ids), bool)
    change[1:] = word_ids[1:] != word_ids[:-1]
    change[_sums(lengths)[:-1][lengths > 0]] = True
    return np.where(word_ids < 0, NOWHERE, np.cumsum(change) - 1).astype(np.int32)


def _sums(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def gathered(
    column: np.ndarray, spans: Sequence[tuple[int, int]], marks: Sequence[int], fill: int | None = None
):
    """One row `m0 span0 m1 span1 .. mk` of a flat column, int64.

    Args:
        column: (N,).
        spans: (begin, end) of k pieces.
        marks: k + 1 special ids before, between and behind them; a negative one is left out.
        fill: what to put in place of special ids in other columns than the ids.
    """
    parts = []
    for mark, span in zip(marks, [*spans, (0, 0)], strict=True):
        if mark >= 0:
            parts.append(np.array([mark if fill is None else fill]))
        parts.append(column[span[0] : span[1]])
    return np.concatenate(parts).astype(np.int64, copy=False)


def special_id(tokenizer: PreTrainedTokenizerBase, role: str) -> int:
    """The id of the "cls" or "sep" token, or another role, or an error that says what to do without one."""
    found = getattr(tokenizer, f"{role}_token_id", None)
    if found is None:
        raise ValueError(
            f"this objective needs the token {role}, but the tokenizer has none: choose a tokenizer with one, or add it "
            f'with tokenizer.add_special_tokens({{"{role}_token": "[{role.upper()}]"}}) and resize the embeddings'
        )
    return found


__all__ = ["Documents", "gathered", "special_id"]
