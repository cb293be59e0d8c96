"""Word vectors from files of word2vec, GloVe and fastText, and embeddings that begin with them.

Texts have a line for each word with its d numbers behind it, those of word2vec and of fastText (.vec) below a line with V
and d, those of GloVe without one. A word may have ASCII spaces in it, as some of GloVe's have: the last d fields are
numbers. A word2vec binary has the line with V and d, then for each word its name, a space and d little-endian float32.

Letters: V words, d features of a vector.
"""

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from .closed_world import existing_file

MISSING = ("mean", "normal")
LONGEST_WORD = 2**16  # bytes; more than that without a space is no binary of word2vec
BYTE_SPACE, UNIGRAM_SPACE = "\u0120", "\u2581"
CONTROL = set(range(9)) | set(range(14, 32))  # bytes that no text has


def load_word_vectors(path: str | Path) -> tuple[list[str], np.ndarray]:
    """Read word vectors: word2vec's text and binary, GloVe's text, fastText's .vec.

    Of a word that stands there twice the first vector is kept, as the most frequent words come first.

    Args:
        path: the file.

    Returns:
        V words, all different, and their vectors (V, d), float32.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an empty, cut or broken file; the line, or the word of a binary, is named.
    """
    path = existing_file(path, "a file of word vectors")
    with open(path, "rb") as file:
        first = file.readline()
        sizes = _sizes(first)
        binary = path.suffix == ".bin" or (sizes is not None and _is_binary(file.read(LONGEST_WORD)))
    if binary and sizes is None:
        raise ValueError(
            f"{path} begins with {first[:40]!r}; a binary of word2vec begins with the numbers of words and of features. "
            "Of a fastText .bin, which holds a whole model, take the .vec beside it."
        )
    words, vectors = _read_binary(path, *sizes) if binary else _read_text(path, sizes)
    wrong = ~np.isfinite(vectors).all(1)
    if wrong.any():
        raise ValueError(
            f"{path} holds NaN or infinity for {int(wrong.sum())} words, {words[int(wrong.argmax())]!r} is the first. Take "
            "them out."
        )
    places = {}
    for number, word in enumerate(words):
        places.setdefault(word, number)
    return list(places), vectors[list(places.values())] if len(places) < len(words) else vectors


def init_embeddings(
    model: PreTrainedModel,
    words: Sequence[str],
    vectors: np.ndarray,
    tokenizer: Tokenizer,
    missing: str = "mean",
    side: str = "source",
    seed: int = 0,
) -> int:
    """Put word vectors into a model's table of input embeddings, in place.

    A token takes the vector of its own text: of BERT's pieces those that begin words, of byte-level and Unigram vocabularies
    those that stand behind a space, or else those that are the word as they are. Where there is none, the lower-cased word
    counts. Softmaxes that share the table change with it.

    Args:
        model: stock, our LSTM language model, or our LSTM encoder-decoder.
        words: V words.
        vectors: (V, d), as long as the model's embeddings.
        tokenizer: of the table's vocabulary.
        missing: what tokens without a vector get: "mean", the mean of the vectors that were found, or "normal", numbers
            with these vectors' mean and standard deviation of each feature. The padding row stays as it is.
        side: "source" or "target", for the encoder-decoder.
        seed: of the normal numbers.

    Returns:
        How many rows of the table got a vector of their own.

    Raises:
        ValueError: sizes that do not fit, no word in common, or an unknown option.
    """
    if missing not in MISSING:
        raise ValueError(f"missing must be one of {MISSING}, found {missing!r}.")
    table = _table(model, side)
    rows, size = table.weight.shape
    vectors = np.asarray(vectors)
    if vectors.shape != (len(words), size):
        raise ValueError(
            f"vectors must be ({len(words)}, {size}), a row for each word and as long as the model's embeddings, found "
            f"{vectors.shape}. Make the model with embeddings of that size, or take other vectors."
        )
    known = tokenizer.get_vocab()
    if max(known.values()) >= rows:
        raise ValueError(
            f"the tokenizer has ids up to {max(known.values())}, but the table has {rows} rows. Resize the embeddings, or "
            "use the tokenizer of this model."
        )
    pad = tokenizer.pad_token_id if table.padding_idx is None else table.padding_idx
    pairs = _matches(tokenizer, words)
    pairs.pop(pad, None)
    if not pairs:
        raise ValueError(
            f"none of the {len(words)} words ({', '.join(map(repr, words[:3]))} ...) is a token of the tokenizer "
            f"({', '.join(map(repr, sorted(known)[:3]))} ...). Take vectors of the same language and spelling."
        )
    ids, numbers = np.array(sorted(pairs.items())).T
    found = torch.from_numpy(np.array(vectors[numbers], dtype=np.float32))  # (found, d)
    filled = found.mean(0).expand(rows, size).clone()
    if missing == "normal":
        draw = torch.Generator().manual_seed(seed)
        filled += found.std(0, correction=0) * torch.randn(rows, size, generator=draw)
    filled[torch.from_numpy(ids)] = found
    with torch.no_grad():
        if pad is not None:
            filled[pad] = table.weight[pad].float().cpu()
        table.weight.copy_(filled)
    return len(ids)


# Files


def _sizes(line: bytes) -> tuple[int, int] | None:
    """V and d of a first line that is no vector."""
    fields = line.split()
    return tuple(map(int, fields)) if len(fields) == 2 and all(field.isdigit() for field in fields) else None


def _is_binary(start: bytes) -> bool:
    """Whether a file has bytes that no text has, as nearly all float32 have."""
    return bool(CONTROL.intersection(start))


def _read_binary(path: Path, count: int, size: int) -> tuple[list[str], np.ndarray]:
    if size < 1 or path.stat().st_size < count * (4 * size + 1):
        raise ValueError(
            f"{path} is too short for {count} words with {size} features, as its first line says. Fetch it again."
        )
    words, vectors = [], np.empty((count, size), np.float32)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        place = data.find(b"\n") + 1
        for number in range(count):
            space = data.find(b" ", place, place + LONGEST_WORD)
            end = space + 1 + 4 * size
            if space < 0 or end > len(data):
                raise ValueError(
                    f"{path} breaks off at word {number + 1} of {count} with {size} features. Fetch it again."
                )
            # The original ends each vector with a line's end, others do not.
            words.append(_decoded(data[place:space].lstrip(b"\n"), path, f"word {number + 1}"))
            vectors[number] = np.frombuffer(data[space + 1 : end], "<f4")
            place = end
    return words, vectors


def _read_text(path: Path, sizes: tuple[int, int] | None) -> tuple[list[str], np.ndarray]:
    words, rows = [], []
    size = None if sizes is None else sizes[1]
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            # Only ASCII spaces and tabs part fields: a word may be a no-break space.
            fields = line.rstrip(b" \t\r\n").replace(b"\t", b" ").split(b" ")
            if (number == 1 and sizes is not None) or fields == [b""]:
                continue
            size = len(fields) - 1 if size is None else size
            values = None
            if 1 <= size < len(fields):
                values = _numbers(fields[-size:])
            if values is None:
                raise ValueError(
                    f"{path}, line {number}: expected a word and {size} numbers, found {len(fields)} fields: "
                    f"{line[:60]!r}. Repair or take out the line."
                )
            words.append(_decoded(b" ".join(fields[:-size]), path, f"line {number}"))
            rows.append(values)
    if not words:
        raise ValueError(f"{path} holds no word vectors. A line for each word with its numbers is expected.")
    if sizes is not None and len(words) != sizes[0]:
        raise ValueError(
            f"{path} holds {len(words)} words, but its first line says {sizes[0]}. Fetch the file again."
        )
    return words, np.stack(rows)


def _numbers(fields: list[bytes]) -> np.ndarray | None:
    try:
        return np.array(fields).astype(np.float32)
    except ValueError:
        return None


def _decoded(word: bytes, path: Path, place: str) -> str:
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, {place}: {word[:40]!r} is no UTF-8. Write the file in UTF-8.") from error


# Tables


def _table(model: PreTrainedModel, side: str) -> nn.Embedding:
    if side not in ("source", "target"):
        raise ValueError(f'side must be "source" or "target", found {side!r}.')
    if side == "target":
        decoder = getattr(model, "decoder", None)
        table = getattr(decoder, "embed_tokens", None)
        if table is None:
            raise ValueError(
                f'side="target" is for the LSTM encoder-decoder, found {type(model).__name__}. Leave it out.'
            )
    else:
        try:
            table = model.get_input_embeddings()
        except NotImplementedError:
            table = None
    if not isinstance(table, nn.Embedding) or model.config.model_type == "elmo":
        raise ValueError(
            f"{type(model).__name__} has no table of token embeddings; word vectors fit stock models and our LSTM models. "
            "ELMo makes its vectors of characters."
        )
    return table


def _matches(tokenizer: Tokenizer, words: Sequence[str]) -> dict[int, int]:
    """For each token id the number of its word."""
    places = {}
    for number, word in enumerate(words):
        places.setdefault(word, number)
    known, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    mark = _space_mark(known)
    pairs = {}
    for token, row in known.items():
        if mark and not token.startswith(mark) and mark + token in known:
            continue  # goes on with a word, the other one begins it
        text = token.removeprefix(mark)
        if mark == BYTE_SPACE:  # whose letters stand for bytes
            text = tokenizer.convert_tokens_to_string([text])
        number = places.get(text)
        if number is None and row not in special:
            number = places.get(text.lower())
        if number is not None:
            pairs[row] = number
    return pairs


def _space_mark(known: dict[str, int]) -> str:
    """What the tokens of a vocabulary that begin a word begin with."""
    for mark in (BYTE_SPACE, UNIGRAM_SPACE):
        if sum(token.startswith(mark) for token in known) * 10 > len(known):
            return mark
    return ""


__all__ = ["MISSING", "init_embeddings", "load_word_vectors"]
