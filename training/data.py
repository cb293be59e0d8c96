"""Tables and texts from local files or the Hub, as `datasets`, and sentences of words made from them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, load_dataset
from transformers import PreTrainedTokenizerBase

FORMATS = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def read_table(source: str | Sequence[str], split: str = "train") -> Dataset:
    """Read a table from files or from a data set of the Hub.

    Args:
        source: one or several local files (.txt gives one row a line, column `text`; .jsonl, .csv, .tsv, .parquet), or
            the name of a data set on the Hub.
        split: which split of a Hub data set.

    Returns:
        The rows.

    Raises:
        FileNotFoundError: a file that does not exist, or a folder.
        ValueError: a suffix that is not read, files of several formats, or a file that is broken or empty.
    """
    sources = [source] if isinstance(source, str) else [str(item) for item in source]
    suffixes = {Path(item).suffix.lower() for item in sources}
    if not suffixes & set(FORMATS) and not any(Path(item).exists() for item in sources):
        if len(sources) == 1 and not Path(sources[0]).suffix:
            return load_dataset(sources[0], split=split)
        raise FileNotFoundError(
            f"{sources[0]} is neither a file nor a data set's name. Files end in {sorted(FORMATS)}."
        )
    if missing := [item for item in sources if not Path(item).is_file()]:
        what = "is a folder" if Path(missing[0]).is_dir() else "does not exist"
        raise FileNotFoundError(f"{missing[0]} {what}. Give a path to a file that ends in {sorted(FORMATS)}.")
    if empty := [item for item in sources if not Path(item).stat().st_size]:
        raise ValueError(f"found files without content: {', '.join(empty)}; expected rows. Leave them out.")
    if len(suffixes) > 1 or not suffixes <= set(FORMATS):
        raise ValueError(
            f"data files must share one of the endings {sorted(FORMATS)}, found {sorted(suffixes)}."
        )
    options = {"sep": "\t", "quoting": 3} if suffixes == {".tsv"} else {}
    try:
        return load_dataset(FORMATS[suffixes.pop()], data_files=sources, split="train", **options)
    except Exception as error:  # datasets raises its own kinds for broken files, none of which names the cure
        # "An error occurred while generating the dataset" says nothing; what it came from does.
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        told = " ".join(str(causes[-1]).split()).removesuffix(".")
        raise ValueError(
            f"cannot read {', '.join(sources)}: {told}. Is the file complete and UTF-8?"
        ) from error


def column(table: Dataset, name: str | None, candidates: Sequence[str], what: str) -> str:
    """The name of a column: the given one, or the first of the usual ones that is there.

    Args:
        table: the rows.
        name: what the user said, or None.
        candidates: the usual names.
        what: what the column holds, for the message.

    Returns:
        A column of the table.

    Raises:
        ValueError: there is no such column.
    """
    for candidate in [name] if name else candidates:
        if candidate in table.column_names:
            return candidate
    raise ValueError(
        f"no column {name!r} with {what}: the data has {table.column_names}. Name one of them."
        if name
        else f"no column with {what}: expected one of {list(candidates)}, the data has {table.column_names}. Name one."
    )


def sentences(
    table: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    text_column: str | None = None,
    tokenized: bool = False,
    max_words: int = 64,
) -> Dataset:
    """Cut a column of text into sentences of words, for language modelling.

    Args:
        table: rows with a text, or with a list of words.
        tokenizer: splits raw text into words.
        text_column: the column; by default `text`, `sentence`, `words` or `tokens`.
        tokenized: the text's words are separated by spaces already.
        max_words: longer rows are cut into pieces.

    Returns:
        A table with the columns `words` and `length`; empty rows are left out.

    Raises:
        ValueError: no such column.
    """
    name = column(table, text_column, ("text", "sentence", "words", "tokens"), "text")

    def cut(rows: dict) -> dict:
        pieces = []
        for row in rows[name]:
            words = split_words(row, tokenizer, tokenized)
            pieces += [words[start : start + max_words] for start in range(0, len(words), max_words)]
        return {"words": pieces, "length": [len(piece) for piece in pieces]}

    return table.map(cut, batched=True, remove_columns=table.column_names, desc="Splitting into words")


def split_words(
    row: str | Sequence[str] | None, tokenizer: PreTrainedTokenizerBase, tokenized: bool
) -> list[str]:
    """The words of one row: a list as it is, a text at its spaces or by the tokenizer's splitter."""
    if row is None:
        return []
    if not isinstance(row, str):
        return list(row)
    return row.split() if tokenized else tokenizer.tokenize(row)


@dataclass
class WordSplitter:
    """Rows of text to lists of words; a class, so that workers can take it along.

    Args:
        tokenizer: splits raw text.
        tokenized: words are separated by spaces already.
    """

    tokenizer: PreTrainedTokenizerBase
    tokenized: bool = False

    def __call__(self, rows: Sequence[str | Sequence[str]]) -> list[list[str]]:
        """Split each row."""
        return [split_words(row, self.tokenizer, self.tokenized) for row in rows]


@dataclass
class TokenEncoder:
    """Rows of text to lists of token ids, without special tokens.

    Args:
        tokenizer: a fast tokenizer.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, rows: Sequence[str | Sequence[str]]) -> list[list[int]]:
        """Encode all rows at once; lists of words are joined by spaces."""
        texts = [row if isinstance(row, str) else " ".join(row) for row in rows]
        return self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]


def most_frequent(words: Iterable[str], vocab_size: int, min_count: int = 1) -> list[str]:
    """The most frequent words, by falling count and then by the alphabet, so that equal texts give equal vocabularies.

    Args:
        words: running text, or counts of it.
        vocab_size: how many at the most.
        min_count: leave out rarer words.

    Returns:
        Distinct words.
    """
    counts = words if isinstance(words, Counter) else Counter(words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [word for word in ranked[:vocab_size] if counts[word] >= min_count]
