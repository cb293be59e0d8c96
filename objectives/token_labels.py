"""Binary labels of tokens, as in ERNIE 2.0 (Sun et al. 2020, section 4.2.1): is the word capitalised, and does the token
appear again in its document.

Letters: N tokens, K segments.
"""

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from .collators import IGNORED
from .documents import Documents, special_id
from .text_packing import TextBlocks, pack_doc_sentences
from .word_ids import Segmenter, bert_words, spans_of, token_span_ids


def add_capitalization(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    segmenter: Segmenter | None = None,
    text_column: str = "text",
    max_length: int | None = None,
):
    """Tokenize a data set, and say of each token whether its word begins with a capital in the text as it is written.

    So labels are right for a tokenizer that lower-cases, which is the one that can learn from them.

    Args:
        dataset: with a column of texts.
        tokenizer: any fast one.
        segmenter: see `add_word_ids`.
        text_column: where texts are.
        max_length: most tokens of a row; the rest is cut off.

    Returns:
        The data set with `input_ids`, `special_tokens_mask` and `labels`, which are 1, 0 or, outside of words, -100.

    Raises:
        ValueError: a tokenizer without offsets, or a column that the data set does not have.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"capitals need a fast tokenizer, which knows where its tokens are in the text, got {type(tokenizer).__name__}"
        )
    if dataset.column_names is not None and text_column not in dataset.column_names:
        raise ValueError(f"expected a column {text_column!r} in the data set, got {dataset.column_names}")

    def encode(rows: dict) -> dict:
        encoded = tokenizer(
            rows[text_column],
            truncation=max_length is not None,
            max_length=max_length,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=False,
        )
        columns = {name: encoded[name] for name in ("input_ids", "special_tokens_mask")}
        fields = zip(
            rows[text_column], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True
        )
        columns["labels"] = [capital_labels(*field, segmenter or bert_words) for field in fields]
        return {name: [np.asarray(row, np.int32) for row in column] for name, column in columns.items()}

    return dataset.map(encode, batched=True)


def capital_labels(text: str, offsets: list, special: list[int], segmenter: Segmenter) -> np.ndarray:
    """1 for tokens of words that begin with a capital, 0 for those of other words, -100 elsewhere (L,)."""
    spans = spans_of(text, segmenter(text))
    capital = np.array([text[begin].isupper() or text[begin].istitle() for begin, _ in spans] + [False])
    word = token_span_ids(text, offsets, special, spans)
    return np.where(word >= 0, capital[word], IGNORED)


def repeated_in_document(documents: Documents, segments: np.ndarray) -> np.ndarray:
    """Whether each token appears in another segment of its document too.

    Args:
        documents: of the corpus.
        segments: (K + 1,), where segments begin among the tokens, and where the last one ends; none crosses a document.

    Returns:
        (N,), bool.
    """
    tokens = documents.tokens.astype(np.int64)
    size, segment_count = int(tokens.max()) + 1, len(segments) - 1
    of_segment = np.repeat(np.arange(segment_count), np.diff(segments))
    borders = documents.sentences[documents.documents]
    of_document = np.searchsorted(borders, segments[:-1], side="right") - 1
    in_segment = of_segment * size + tokens
    kinds, kind = np.unique(in_segment, return_inverse=True)  # each token once a segment
    in_document = of_document[kinds // size] * size + kinds % size
    _, place, counts = np.unique(in_document, return_inverse=True, return_counts=True)
    return counts[place[kind]] > 1


def token_document_blocks(
    documents: Documents | list, tokenizer: PreTrainedTokenizerBase, max_length: int = 512
) -> TextBlocks:
    """Rows `[CLS] sentences of one document [SEP]` with `labels`: 1 for tokens that appear in another row of their
    document, 0 for others, -100 for special ones.

    Args:
        documents: `Documents`, or lists of sentences as `Documents.of` reads them.
        tokenizer: has the special tokens, and reads texts.
        max_length: most tokens of a row with the special ones.
    """
    corpus = Documents.of(documents, tokenizer)
    ends = {"before": special_id(tokenizer, "cls"), "after": special_id(tokenizer, "sep")}
    blocks = pack_doc_sentences(corpus, max_length, **ends)
    labels = repeated_in_document(corpus, blocks.edges).astype(np.int8)
    return TextBlocks(
        corpus.columns() | {"labels": labels}, blocks.edges, *ends.values(), fills={"labels": IGNORED}
    )


__all__ = ["add_capitalization", "capital_labels", "repeated_in_document", "token_document_blocks"]
