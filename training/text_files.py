"""Text that may be larger than memory, as shards: each can be read again and again, row by row, and can be pickled.

A row is a line, one sentence as a rule, or a list of words.
"""

import glob
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path
from types import SimpleNamespace

from datasets import load_dataset

from ..objectives.streams import ROWS_AT_ONCE, Encode, no_sentences
from .data import FORMATS, column

LONGEST_LINE = 1_000_000  # characters
LONGEST_READ = 4 * LONGEST_LINE + 4  # bytes: no line of so many can be short enough
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class TextFile:
    """The lines of a text file in UTF-8, read one at a time.

    Args:
        path: the file.
        keep_blank: also yield blank lines, as bilm-tf does: sentences without words.
    """

    def __init__(self, path: str | os.PathLike, keep_blank: bool = False):
        self.path, self.keep_blank = os.fspath(path), keep_blank

    def __str__(self) -> str:
        return self.path

    def __iter__(self) -> Iterator[str]:
        """Yield lines without their ends.

        Raises:
            ValueError: a line that is no UTF-8, holds NUL bytes or is longer than `LONGEST_LINE`.
        """
        with open(self.path, "rb") as file:
            for number in count(1):
                data = file.readline(LONGEST_READ)
                if not data:
                    return
                if number == 1:
                    data = data.removeprefix(BYTE_ORDER_MARK)
                line = self._decoded(data, number)
                if self.keep_blank or (line and not line.isspace()):
                    yield line

    def _decoded(self, data: bytes, number: int) -> str:
        place = f"{self.path}, line {number},"
        if b"\0" in data:
            raise ValueError(
                f"{place} holds NUL bytes, so this is no text in UTF-8 but a binary or damaged file, or UTF-16. "
                "Name text files only, and convert them to UTF-8."
            )
        if len(data) >= LONGEST_READ:
            raise ValueError(self._too_long(place, f"at least {len(data):,} bytes"))
        try:
            line = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{place} is no UTF-8 at byte {error.start} of the line ({error.reason}); expected text. Convert it to "
                "UTF-8, and unpack compressed files."
            ) from error
        line = line.removesuffix("\n").removesuffix("\r")
        if len(line) > LONGEST_LINE:
            raise ValueError(self._too_long(place, f"{len(line):,} characters"))
        return line

    @staticmethod
    def _too_long(place: str, size: str) -> str:
        return f"{place} has {size}, more than {LONGEST_LINE:,} characters; one sentence a line is expected. Split it."


class TableShard:
    """A text column of a table in a file, or of a part of a data set on the Hub, read bit by bit.

    Args:
        source: a file (.jsonl, .json, .csv, .tsv, .parquet) or the name of a data set.
        text_column: the column with texts or lists of words; by default `text`, `sentence`, `words` or `tokens`.
        keep_blank: also yield texts without words; rows with no text at all are always left out.
        split: which split of a Hub data set.
        part: which part of a Hub data set, and of how many; None for a file.
    """

    def __init__(
        self,
        source: str,
        text_column: str | None = None,
        keep_blank: bool = False,
        split: str = "train",
        part: tuple[int, int] | None = None,
    ):
        self.source, self.text_column, self.keep_blank = source, text_column, keep_blank
        self.split, self.part = split, part

    def __str__(self) -> str:
        return f"{self.source} (part {self.part[0]})" if self.part else self.source

    def __iter__(self) -> Iterator[str | list[str]]:
        """Yield texts or lists of words.

        Raises:
            ValueError: a broken file, no such column, or a row that is no text.
        """
        name, before = None, 0
        for batch in self._batches():
            if name is None:
                columns = SimpleNamespace(column_names=list(batch))
                name = column(columns, self.text_column, ("text", "sentence", "words", "tokens"), "text")
            rows = batch.get(name, ())
            for number, row in enumerate(rows, before + 1):
                if row is not None and self._has_words(row, number, name):
                    yield row
            before += len(rows)

    def _batches(self) -> Iterator[dict[str, list]]:
        """Many rows at once, by columns."""
        try:
            if self.part:
                table = load_dataset(self.source, split=self.split, streaming=True)
                table = table.shard(num_shards=self.part[1], index=self.part[0])
            else:
                ending = Path(self.source).suffix.lower()
                options = {"sep": "\t", "quoting": 3} if ending == ".tsv" else {}
                table = load_dataset(
                    FORMATS[ending],
                    data_files=glob.escape(self.source),
                    split="train",
                    streaming=True,
                    **options,
                )
            # Plain iteration would deal a table's parts to the workers of a DataLoader; here each reads all.
            yield from table.iter(batch_size=ROWS_AT_ONCE)
        except Exception as error:  # datasets raises kinds of its own, none of which names the cure
            raise ValueError(f"cannot read {self}: {error}. Is the file complete and UTF-8?") from error

    def _has_words(self, row: object, number: int, name: str) -> bool:
        if isinstance(row, str):
            return self.keep_blank or bool(row and not row.isspace())
        if isinstance(row, list) and set(map(type, row)) <= {str}:
            return self.keep_blank or bool(row)
        raise ValueError(
            f"{self}, row {number}: the column {name!r} holds {type(row).__name__} {str(row)[:60]!r}; expected a text "
            "or a list of words. Name another column."
        )


class Share:
    """A fixed share of a shard's rows, chosen by their content, so that equal rows never stand on both sides.

    Args:
        shard: the rows.
        held_out: True for the share, False for all others.
        one_in: the share is about one row in so many.
    """

    def __init__(self, shard: Iterable, held_out: bool, one_in: int = 50):
        self.shard, self.held_out, self.one_in = shard, held_out, one_in

    def __str__(self) -> str:
        return f"the {'held-out' if self.held_out else 'kept'} rows (one in {self.one_in} is held out) of {self.shard}"

    def __iter__(self) -> Iterator:
        """Yield the rows of this side."""
        for row in self.shard:
            chosen = zlib.crc32(repr(row).encode("utf-8", "replace")) % self.one_in == 0
            if chosen == self.held_out:
                yield row


def open_shards(
    sources: str | Sequence[str],
    text_column: str | None = None,
    keep_blank: bool = False,
    split: str = "train",
) -> list[TextFile | TableShard]:
    """Find the shards of a text, without reading them.

    Args:
        sources: each is a file, a pattern like `news/*.txt`, a folder (all its files with endings that are known, also in
            its folders), or the name of a data set on the Hub. Files with unknown endings are taken for text.
        text_column: of tables; see `TableShard`.
        keep_blank: also blank lines, sentences without words.
        split: which split of Hub data sets.

    Returns:
        Shards, those of a pattern or folder in the order of their names.

    Raises:
        FileNotFoundError: nothing of this name.
        ValueError: files without content, or a column of files that are all lines of text.
    """
    shards = []
    for source in [sources] if isinstance(sources, str | os.PathLike) else sources:
        source = os.fspath(source)
        paths = _files(source)
        if not paths:
            shards += _hub_shards(source, text_column, keep_blank, split)
        for path in paths:
            if FORMATS.get(Path(path).suffix.lower(), "text") == "text":
                shards.append(TextFile(path, keep_blank))
            else:
                shards.append(TableShard(path, text_column, keep_blank))
    if not shards:
        raise ValueError(
            "sources is empty; expected a file, a pattern, a folder or a data set's name. Name one."
        )
    if not any(isinstance(shard, TableShard) for shard in shards):
        refuse_column(text_column, ", ".join(map(str, shards[:3])))
    empty = [str(shard) for shard in shards if os.path.exists(str(shard)) and not os.path.getsize(str(shard))]
    if empty:
        raise ValueError(f"found files without content: {', '.join(empty)}; expected text. Leave them out.")
    return shards


def refuse_column(text_column: str | None, source: str) -> None:
    """Refuse the name of a column where there are no columns.

    Args:
        text_column: what the user said; None, or `text`, which tables made of lines have, is fine.
        source: the text, for the message.

    Raises:
        ValueError: another name.
    """
    if text_column not in (None, "text"):
        raise ValueError(
            f"column {text_column!r} is of a table ({' '.join(sorted(set(FORMATS) - {'.txt'}))}), but {source} holds lines "
            "of text. Leave the column out, or name a table."
        )


def count_words(shards: Sequence[Iterable], encode: Encode) -> tuple[int, int, Counter]:
    """Count a text once through, for a vocabulary and for the length of an epoch.

    A pass of lanes over the text has sentences + words targets, since each sentence's end is one too.

    Args:
        shards: the text.
        encode: makes lists of words from a list of rows.

    Returns:
        How many sentences, how many words, and how often each word.

    Raises:
        ValueError: no word in all the shards.
    """
    number, counts = 0, Counter()
    for shard in shards:
        rows = iter(shard)
        while part := list(islice(rows, ROWS_AT_ONCE)):
            sentences = encode(part)
            number += len(sentences)
            counts.update(chain.from_iterable(sentences))
    if not counts:
        raise ValueError(no_sentences(shards))
    return number, counts.total(), counts


def _files(source: str) -> list[str]:
    """The files that a path, a pattern or a folder names."""
    if os.path.isdir(source):
        found = (path for path in Path(source).rglob("*") if path.suffix.lower() in FORMATS)
        visible = (path for path in found if not any(map(_is_hidden, path.relative_to(source).parts)))
        paths = sorted(str(path) for path in visible if path.is_file())
        if not paths:
            raise FileNotFoundError(
                f"no file matches {source}: the folder has none that ends in {sorted(FORMATS)}."
            )
        return paths
    if os.path.isfile(source):
        return [source]
    return sorted(path for path in glob.glob(source, recursive=True) if os.path.isfile(path))


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _hub_shards(source: str, text_column: str | None, keep_blank: bool, split: str) -> list[TableShard]:
    """The parts of a data set on the Hub."""
    message = f"no file matches {source!r}; expected a file, a pattern, a folder"
    is_name = source.count("/") < 2 and Path(source).suffix.lower() not in FORMATS
    if not is_name or glob.has_magic(source) or source.startswith((".", "/", "~")):
        raise FileNotFoundError(f"{message} or a data set's name. Check its spelling.")
    try:
        parts = load_dataset(source, split=split, streaming=True).num_shards
    except Exception as error:
        raise FileNotFoundError(
            f"{message}, or a data set that can be had from the Hub ({error}). Check its spelling, the split "
            f"{split!r} and the connection."
        ) from error
    return [TableShard(source, text_column, keep_blank, split, (part, parts)) for part in range(parts)]


__all__ = ["Share", "TableShard", "TextFile", "count_words", "open_shards", "refuse_column"]
