"""Vocabulary files of the originals: one word a line, the line's number is the word's row."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .closed_world import existing_file

NOT_A_WORD = "!!!MAXTERMID"  # a line of 1B-Word vocabularies that has no row


def read_vocabulary(vocab: "str | Path | Sequence[str] | object") -> tuple[list[str], str]:
    """The words of a vocabulary, in order.

    Args:
        vocab: a file with one word a line in UTF-8, the words themselves, or an ElmoTokenizer.

    Returns:
        The words, and a name for messages.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is no UTF-8, or that is empty.
    """
    if isinstance(vocab, str | Path):
        path = existing_file(vocab, "a vocabulary, one word a line")
        try:
            words, label = path.read_bytes().decode("utf-8-sig").split("\n"), str(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text ({error}); expected one word a line.") from error
        words = words[:-1] if words[-1] == "" else words
        words = [word for line in words if (word := line.removesuffix("\r")) != NOT_A_WORD]
    elif hasattr(vocab, "convert_ids_to_tokens"):
        words, label = vocab.convert_ids_to_tokens(range(1, vocab.vocab_size)), "the tokenizer"
    else:
        words, label = list(vocab), "the vocabulary"
    if not words:
        raise ValueError(f"{label} holds no words; expected one word a line.")
    return words, label


def write_vocabulary(words: Sequence[str], path: Path) -> None:
    """Write one word a line.

    Args:
        words: in order.
        path: the file.

    Raises:
        ValueError: a word that holds a line break.
    """
    if broken := [word for word in words if "\n" in word or word.endswith("\r")]:
        raise ValueError(f"{path} cannot hold words with line breaks: {broken[:5]}.")
    path.write_bytes("".join(f"{word}\n" for word in words).encode("utf-8"))


def check_size(words: Sequence[str], label: str, rows: int, where: str) -> None:
    """Refuse a vocabulary that does not belong to a table.

    Args:
        words: the vocabulary.
        label: its name.
        rows: of the table.
        where: what and where the table is.

    Raises:
        ValueError: another number of words than rows.
    """
    if len(words) != rows:
        raise ValueError(
            f"{label} holds {len(words)} words, but {where} has {rows} rows. Give the vocabulary that the model was "
            "trained with."
        )


def repeated_words(words: Sequence[str], label: str, rows: str | None) -> list[str]:
    """Refuse, or note, words that stand twice: a tokenizer gives them the last id.

    Args:
        words: the vocabulary.
        label: its name.
        rows: the model's table with a row for each word; None where it has none.

    Returns:
        A note, if there are such words.

    Raises:
        ValueError: there are, and the model has a row for each of them.
    """
    first: dict[str, int] = {}
    twice = [
        f"{word!r} (lines {first[word]} and {line})"
        for line, word in enumerate(words, 1)
        if first.setdefault(word, line) != line
    ]
    if not twice:
        return []
    told = f"{label} repeats {', '.join(twice[:5])}{f' and {len(twice) - 5} more' if len(twice) > 5 else ''}"
    if rows:
        raise ValueError(
            f"{told}, but {rows} has a row for every line, and a word can have one id only. Give the vocabulary that the "
            "model was trained with, or tell repeated words apart."
        )
    return [f"{told}: of a repeated word the last line counts"]


def special_ids(words: Sequence[str], label: str, specials: Mapping[str, str]) -> dict[str, int]:
    """Where the special words stand.

    Args:
        words: the vocabulary.
        label: its name.
        specials: `bos_token`, `eos_token` and `unk_token`.

    Returns:
        `bos_token_id` and `eos_token_id` for ElmoConfig: line + 1.

    Raises:
        ValueError: one of them is not there.
    """
    lines = {word: number for number, word in enumerate(words, 1)}  # of a repeated word, the last counts
    if missing := [word for word in specials.values() if word not in lines]:
        raise ValueError(
            f"{label} lacks {missing}; such vocabularies hold {list(specials.values())} among their first lines."
        )
    return {f"{name}_id": lines[specials[name]] for name in ("bos_token", "eos_token")}


__all__ = ["check_size", "read_vocabulary", "repeated_words", "special_ids", "write_vocabulary"]
