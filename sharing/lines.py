"""Lines of text in and out: a file, a table or standard input, in order, and never held at once."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ..training.text_files import BYTE_ORDER_MARK, open_shards, refuse_column

SEPARATOR = re.compile(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")


def read_lines(source: str, text_column: str | None = None) -> Iterator[str]:
    """The rows of a text, blank ones included.

    Args:
        source: whatever `open_shards` opens, or "-" for standard input.
        text_column: column of a table; lists of words are joined by spaces.

    Returns:
        One text a row.

    Raises:
        FileNotFoundError: nothing of this name.
        ValueError: a text that is no UTF-8, or no such column.
    """
    if source == "-":
        refuse_column(text_column, "standard input")
        return read_standard_input()
    shards = open_shards(source, text_column, keep_blank=True)
    return (row if isinstance(row, str) else " ".join(row) for shard in shards for row in shard)


def is_blank(text: str) -> bool:
    """Whether a text has nothing but spaces."""
    return not text or text.isspace()


def one_line(text: str) -> str:
    """The text without tabs and line ends, so that it fills one line and one cell."""
    return SEPARATOR.sub(" ", text)


def refuse_existing(output: Path | None) -> None:
    """Refuse to overwrite.

    Args:
        output: the file to write; None means standard output.

    Raises:
        FileExistsError: it exists.
        FileNotFoundError: its folder does not.
    """
    if output is not None and output.exists():
        raise FileExistsError(f"{output} exists. Choose another name, or delete it.")
    if output is not None and not output.parent.is_dir():
        raise FileNotFoundError(f"the folder {output.parent} does not exist. Create it first.")


@contextlib.contextmanager
def new_text_file(output: Path | None) -> Iterator[io.TextIOBase]:
    """A new file, written beside its name and moved there at the end, so that it is whole; or standard output."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    unfinished = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            yield file
        refuse_existing(output)  # somebody may have written it meanwhile
        unfinished.rename(output)
    finally:
        unfinished.unlink(missing_ok=True)


def read_standard_input() -> Iterator[str]:
    """The lines of standard input, without their ends; a line that is no UTF-8, or has NUL bytes, is a ValueError."""
    for number, data in enumerate(sys.stdin.buffer, 1):
        if b"\0" in data:
            raise ValueError(
                f"standard input, line {number}, holds NUL bytes, so it is no text in UTF-8 but binary or UTF-16. Convert "
                "it first."
            )
        if number == 1:
            data = data.removeprefix(BYTE_ORDER_MARK)
        try:
            yield data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"standard input, line {number}, is no UTF-8 at byte {error.start}. Convert it first."
            ) from error


__all__ = ["is_blank", "new_text_file", "one_line", "read_lines", "read_standard_input", "refuse_existing"]
