"""ElmoTokenizer: words to word ids and character ids, as ELMo's biLM reads them (Peters et al. 2018).

Letters: B sentences, T words of the longest one, C characters a word (both word marks included), N words.

A word becomes C character ids: begin of word, its UTF-8 bytes, end of word, filling. Every id is one higher than in the
original code, so that 0 is free for padding: bytes are 1..256. A word also has a word id, its line in `vocab.txt` counted
from 1; id 0 is padding and has no line. Other character inventories come from `char_vocab.txt`, one JSON string a line
(line breaks and all kinds of spaces survive so), the line counted from 1 is the id.
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import regex
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import TruncationStrategy
from transformers.utils import PaddingStrategy, to_py_obj

PADDING = 0
BYTE_MARKS = {"bos": 257, "eos": 258, "begin": 259, "end": 260, "fill": 261}
# ELMoForManyLangs swapped the two word marks by mistake, in training too: its words begin with `<eow>`.
CODE_POINT_MARKS = {"bos": "<bos>", "eos": "<eos>", "begin": "<eow>", "end": "<bow>", "fill": "<pad>"}
UNKNOWN_CHARACTER = "<oov>"
SKIPPED_LINE = "!!!MAXTERMID"

# Runs of letters, marks, digits and _, with single ' ’ . - inside; else one visible character at a time.
WORD = regex.compile(r"[\p{L}\p{M}\p{N}_]+(?:['’.\-‐‑][\p{L}\p{M}\p{N}_]+)*|(?!\s)\X")


def words_to_char_ids(
    words: Sequence[str], max_characters_per_token: int = 50, boundaries: tuple[str, str] = ("<S>", "</S>")
) -> np.ndarray:
    """Spell words in UTF-8 bytes.

    Args:
        words: N words. Lone surrogates vanish; what does not fit is cut, also in the middle of a character.
        max_characters_per_token: C, at least 3.
        boundaries: the words that become the patterns of a sentence's begin and end.

    Returns:
        Character ids (N, C), int64.

    Raises:
        ValueError: a single text instead of a list of words, or C below 3.
    """
    size, words = _checked_size(max_characters_per_token), _checked_words(words)
    bodies = [word.encode("utf-8", "ignore")[: size - 2] for word in words]
    symbols = np.frombuffer(b"".join(bodies), np.uint8).astype(np.int64) + 1
    return _framed(words, list(map(len, bodies)), symbols, size, BYTE_MARKS, boundaries)


def _framed(words, lengths: list[int], symbols: np.ndarray, size: int, marks: dict, boundaries) -> np.ndarray:
    """Put marks around N bodies, which follow one another in `symbols`, and fill them up: (N, C)."""
    ends = np.array(lengths, np.int64)
    ids = np.full((len(ends), size), marks["fill"], np.int64)
    ids[:, 0] = marks["begin"]
    ids[:, 1:-1][np.arange(size - 2) < ends[:, None]] = symbols
    ids[np.arange(len(ends)), ends + 1] = marks["end"]
    for token, mark in zip(boundaries, ("bos", "eos"), strict=True):
        if rows := [row for row, word in enumerate(words) if word == token]:
            ids[rows, 1:] = [marks[mark], marks["end"], *[marks["fill"]] * (size - 3)]
    return ids


class ElmoTokenizer(PreTrainedTokenizer):
    """Words to `input_ids` (B, T), `char_ids` (B, T, C) and `attention_mask` (B, T); no boundary tokens.

    Words that are already split map one to one, also empty words and words with spaces (`[]` is one empty sentence):

        tok([["The", "cat"], ["Hi"]], is_split_into_words=True, padding=True, return_tensors="pt")

    Raw text is split by `WORD`: runs of letters, marks, digits and _ with inner apostrophes, hyphens and dots are words,
    every other visible character is one of its own. `"Mr. O'Neil's 3.5-inch disk."` gives Mr, ., O'Neil's, 3.5-inch, disk
    and a dot; no word is special, `<S>` gives three. Text that a corpus tool has split should be split at its spaces and
    passed as words, without Moses' escapes (`&apos;`), which no published ELMo has seen; languages without spaces need a
    segmenter first.

    A word that is not in the vocabulary has the id of `unk_token` and its own character ids; so has a word that is
    spelled like `pad_token`. With `char_vocab_file`, characters are code points, words are cut to C-2 of them, unknown
    ones become `<oov>`, and the marks are ELMoForManyLangs' (begin is `<eow>`, end is `<bow>`).

    Args:
        vocab_file: a file with one word a line in UTF-8, or the words; None means the three special words only. Lines
            `!!!MAXTERMID` count for nothing, as in bilm-tf; of equal words the last one's id is used.
        char_vocab_file: a file with one character a line, each a JSON string, or the characters, among them `<bos>`,
            `<eos>`, `<oov>`, `<pad>`, `<bow>` and `<eow>`; None means UTF-8 bytes.
        max_characters_per_token: C, at least 3.
        pad_token: the name of id 0, no word of the vocabulary.
        bos_token: the word for the begin of a sentence.
        eos_token: the word for its end.
        unk_token: the word for all others.
        **kwargs: of `PreTrainedTokenizer`.

    Raises:
        ValueError: a file that does not hold what it should, or C below 3.
    """

    vocab_files_names = {"vocab_file": "vocab.txt", "char_vocab_file": "char_vocab.txt"}  # noqa: RUF012
    model_input_names = ["input_ids", "char_ids", "attention_mask"]  # noqa: RUF012
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab_file: str | os.PathLike | Sequence[str] | None = None,
        char_vocab_file: str | os.PathLike | Sequence[str] | None = None,
        max_characters_per_token: int = 50,
        pad_token: str | AddedToken = "<pad>",
        bos_token: str | AddedToken = "<S>",
        eos_token: str | AddedToken = "</S>",
        unk_token: str | AddedToken = "<UNK>",
        **kwargs,
    ):
        self.max_characters_per_token = _checked_size(max_characters_per_token)
        named = {"bos_token": bos_token, "eos_token": eos_token, "unk_token": unk_token}
        specials = list(map(str, named.values()))
        self._words, label = _read_words(specials if vocab_file is None else vocab_file)
        self._word_ids = {word: number for number, word in enumerate(self._words, 1)}
        _require(specials, self._word_ids, label, "Add them as lines, or name the file's own special words")
        if str(pad_token) in self._word_ids:
            raise ValueError(
                f"{label} holds the padding token {str(pad_token)!r} as a word, but padding has id 0 and no line. "
                "Choose another pad_token."
            )
        self._characters, self._character_ids, self._marks = None, None, BYTE_MARKS
        if char_vocab_file is not None:
            self._characters, label = _read_characters(char_vocab_file)
            self._character_ids = {character: number for number, character in enumerate(self._characters, 1)}
            needed = [*CODE_POINT_MARKS.values(), UNKNOWN_CHARACTER]
            _require(needed, self._character_ids, label, "Add them as lines")
            self._marks = {name: self._character_ids[mark] for name, mark in CODE_POINT_MARKS.items()}
        kwargs.pop("added_tokens_decoder", None)  # the files say where the special words are
        super().__init__(
            max_characters_per_token=max_characters_per_token, pad_token=pad_token, **named, **kwargs
        )

    @classmethod
    def from_words(cls, words: Iterable[str] = (), **kwargs) -> "ElmoTokenizer":
        """Make a tokenizer of words in order of ids, usually by falling frequency.

        Special words that are missing come first. Repeated words count once; the padding token and words that no line
        of `vocab.txt` can hold (line breaks, lone surrogates) are left out.
        """
        words = dict.fromkeys(_checked_words(words if isinstance(words, str) else list(words)))
        defaults = {"pad_token": "<pad>", "bos_token": "<S>", "eos_token": "</S>", "unk_token": "<UNK>"}
        pad, *specials = (str(kwargs.get(name, default)) for name, default in defaults.items())
        missing = [word for word in specials if word not in words]
        return cls([*missing, *(word for word in words if word != pad and _fits_a_line(word))], **kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of word ids: words and padding."""
        return len(self._words) + 1

    @property
    def char_vocab_size(self) -> int:
        """Number of character ids: characters, marks and padding."""
        return (max(BYTE_MARKS.values()) if self._characters is None else len(self._characters)) + 1

    @property
    def is_fast(self) -> bool:
        """True: offsets and word ids are to be had, which is what pipelines ask by this name."""
        return True

    def __len__(self) -> int:
        return self.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Ids by word, the padding token among them."""
        return {self.pad_token: PADDING, **self._word_ids}

    def get_special_tokens_mask(
        self, token_ids_0: list, token_ids_1: list | None = None, **kwargs
    ) -> list[int]:
        """1 for padding, 0 for all words: nothing else is ever added."""
        return [int(number == PADDING) for number in (*token_ids_0, *(token_ids_1 or ()))]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write `vocab.txt`, and `char_vocab.txt` where characters are no bytes; return their paths."""
        contents = {"vocab_file": self._words}
        if self._characters is not None:
            contents["char_vocab_file"] = map(json.dumps, self._characters)
        paths = []
        for kind, lines in contents.items():
            name = "-".join(filter(None, (filename_prefix, self.vocab_files_names[kind])))
            paths.append(os.path.join(save_directory, name))
            Path(paths[-1]).write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
        return tuple(paths)

    def tokenize(self, text: str, **kwargs) -> list[str]:
        """Split a text into words by `WORD`."""
        if not isinstance(text, str):
            raise ValueError(f"tokenize splits one text (str), but {_described(text)} came.")
        return WORD.findall(text)

    def char_ids_of(self, words: Sequence[str]) -> np.ndarray:
        """Spell N words: character ids (N, C), int64."""
        size, boundaries = self.max_characters_per_token, (self.bos_token, self.eos_token)
        if self._characters is None:
            return words_to_char_ids(words, size, boundaries)
        words = [word[: size - 2] for word in _checked_words(words)]
        get, unknown = self._character_ids.get, self._character_ids[UNKNOWN_CHARACTER]
        symbols = np.array([get(character, unknown) for character in chain.from_iterable(words)], np.int64)
        return _framed(words, list(map(len, words)), symbols, size, self._marks, boundaries)

    def _encode_plus(
        self,
        text,
        text_pair=None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy: TruncationStrategy = TruncationStrategy.DO_NOT_TRUNCATE,
        max_length: int | None = None,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors=None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        **kwargs,
    ) -> BatchEncoding:
        if text_pair is not None:
            raise ValueError("a second text came, but ELMo encodes no pairs of texts. Join the two yourself.")
        if return_overflowing_tokens:
            raise ValueError("ElmoTokenizer returns no overflowing tokens. Split long texts before the call.")
        side = padding_side or self.padding_side
        if side not in ("left", "right"):
            raise ValueError(f"padding_side is {side!r}; expected 'left' or 'right'.")
        sentences, spans, batched = _split_into_words(text) if is_split_into_words else _split(text)
        numbers = [list(range(len(words))) for words in sentences]
        if truncation_strategy != TruncationStrategy.DO_NOT_TRUNCATE and max_length is not None:
            right = self.truncation_side == "right"
            sentences, spans, numbers = (
                [row[:max_length] if right else row[max(0, len(row) - max_length) :] for row in rows]
                for rows in (sentences, spans, numbers)
            )
        words, lengths = list(chain.from_iterable(sentences)), np.array(list(map(len, sentences)), np.int64)
        width = int(lengths.max(initial=0))
        rectangular = padding_strategy != PaddingStrategy.DO_NOT_PAD
        if padding_strategy == PaddingStrategy.MAX_LENGTH:
            width = max(width, max_length)
        if rectangular and pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        if return_tensors is not None and not rectangular and (lengths != width).any():
            raise ValueError(f"one tensor cannot hold {lengths.min()} and {width} words. Pass padding=True.")
        rectangular |= return_tensors is not None

        def place(values: np.ndarray, padding: int = PADDING) -> np.ndarray | list[np.ndarray]:
            """Values of the N words (N, ...) by sentence: (B, T, ...), or B arrays of their own lengths."""
            if not rectangular:
                return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []
            filled = np.arange(width) < lengths[:, None]
            placed = np.full((*filled.shape, *values.shape[1:]), padding, np.int64)
            placed[filled if side == "right" else filled[:, ::-1]] = values
            return placed

        distinct = list(dict.fromkeys(words))  # each is looked up and spelled once
        row_of = dict(zip(distinct, range(len(distinct)), strict=True))
        rows = np.fromiter(map(row_of.__getitem__, words), np.int64, len(words))
        data = {"input_ids": place(np.array(self.word_ids_of(distinct), np.int64)[rows])}
        if "char_ids" in self.model_input_names:
            data["char_ids"] = place(self.char_ids_of(distinct)[rows])
        if return_attention_mask is None:
            return_attention_mask = "attention_mask" in self.model_input_names
        if return_attention_mask:
            data["attention_mask"] = place(np.ones_like(rows))
        if return_special_tokens_mask:
            data["special_tokens_mask"] = place(np.zeros_like(rows), padding=1)
        if return_offsets_mapping:
            flat = list(chain.from_iterable(spans))
            data["offset_mapping"] = place(np.array(flat, np.int64).reshape(-1, 2))
        if return_length:
            data["length"] = lengths
        if return_tensors is None:
            data = {name: [part.tolist() for part in parts] for name, parts in data.items()}
            data = data if batched else {name: parts[0] for name, parts in data.items()}

        def around(row: list, padding: object) -> list:
            gap = [padding] * (width - len(row) if rectangular else 0)
            return gap + row if side == "left" else row + gap

        encodings = [  # what BatchEncoding's tokens(), word_ids() and sequence_ids() look up
            SimpleNamespace(
                tokens=around(row, self.pad_token),
                word_ids=around(number, None),
                sequence_ids=around([0] * len(row), None),
            )
            for row, number in zip(sentences, numbers, strict=True)
        ]
        return BatchEncoding(data, encodings, tensor_type=return_tensors, n_sequences=1)

    def _pad(self, encoded_inputs: dict, *args, padding_side: str | None = None, **kwargs) -> dict:
        """Pad one sentence as usual; its `char_ids` become an array (T, C) with rows of zeros."""
        length, size = len(encoded_inputs["input_ids"]), self.max_characters_per_token
        padded = super()._pad(dict(encoded_inputs), *args, padding_side=padding_side, **kwargs)
        if "char_ids" in padded:
            rows = np.asarray(padded["char_ids"], np.int64)
            if length and rows.shape != (length, size):
                raise ValueError(f"char_ids are {rows.shape}, but input_ids and C say {(length, size)}.")
            gap = len(padded["input_ids"]) - length
            gaps = (gap, 0) if (padding_side or self.padding_side) == "left" else (0, gap)
            padded["char_ids"] = np.pad(rows.reshape(length, size), (gaps, (0, 0)))
        return padded

    def decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str | list[str]:
        """Join words with spaces, from word ids (T,) or (B, T) or character ids (B, T, C)."""
        if _depth(token_ids) == 3:
            return [" ".join(words) for words in self.decode_char_ids(token_ids, skip_special_tokens)]
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens, **kwargs)

    def decode_char_ids(self, char_ids, skip_special_tokens: bool = False) -> list[str] | list[list[str]]:
        """Read words back from their spelling.

        Args:
            char_ids: (T, C) or (B, T, C), an array, a tensor or lists.
            skip_special_tokens: leave out begins and ends of sentences.

        Returns:
            The words of a sentence, or of each sentence. Rows of zeros (padding) are left out; bytes that are no
            UTF-8, and unknown characters, become U+FFFD.

        Raises:
            ValueError: ids out of range, or a row that is no word.
        """
        if len(char_ids) == 0:
            return []
        if _depth(char_ids) == 3:
            return [self.decode_char_ids(sentence, skip_special_tokens) for sentence in char_ids]
        ids = np.array(to_py_obj(char_ids))
        if (
            ids.ndim != 2
            or ids.dtype.kind not in "iu"
            or not 0 <= ids.min() <= ids.max() < self.char_vocab_size
        ):
            raise ValueError(
                f"char_ids {_described(ids.tolist())} are {ids.dtype} of shape {ids.shape}; expected integers of shape "
                f"(T, C) or (B, T, C), from 0 to {self.char_vocab_size - 1}."
            )
        words = [self._spelled(row) for row in ids if row.any()]
        special = (self.bos_token, self.eos_token) if skip_special_tokens else ()
        return [word for word in words if word not in special]

    def _spelled(self, row: np.ndarray) -> str:
        """The word of one row (C,) that is no padding."""
        marks = self._marks
        ends = np.flatnonzero(row == marks["end"])
        body = row[1 : ends[0]].tolist() if len(ends) else [PADDING]
        for token, mark in ((self.bos_token, "bos"), (self.eos_token, "eos")):
            if body == [marks[mark]]:
                return token
        largest = 256 if self._characters is None else len(self._characters)
        if row[0] != marks["begin"] or not all(PADDING < number <= largest for number in body):
            raise ValueError(
                f"char_ids {row.tolist()} are no word: expected {marks['begin']}, 1 to {largest}, {marks['end']}."
            )
        if self._characters is None:
            return bytes(number - 1 for number in body).decode("utf-8", "replace")
        characters = (self._characters[number - 1] for number in body)
        return "".join("\ufffd" if character == UNKNOWN_CHARACTER else character for character in characters)

    def word_ids_of(self, words: Iterable[str]) -> list[int]:
        """Word ids of words in a text; ELMoForManyLangs cuts words before it looks them up."""
        get, unknown = self._word_ids.get, self._word_ids[self.unk_token]
        if self._characters is not None:
            words = (word[: self.max_characters_per_token - 2] for word in words)
        return [get(word, unknown) for word in words]

    def _convert_token_to_id(self, token: str) -> int:
        return PADDING if token == self.pad_token else self.word_ids_of([token])[0]

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"word id {index} is out of range; the vocabulary has 0 to {len(self) - 1}.")
        return self.pad_token if index == PADDING else self._words[index - 1]

    def _add_tokens(self, new_tokens: Sequence[str | AddedToken], special_tokens: bool = False) -> int:
        vocab = self.get_vocab()
        for token in map(str, new_tokens):
            if token not in vocab:
                raise ValueError(f"{token!r} is no word of this vocabulary. Make a new one with from_words.")
            if special_tokens:
                self._added_tokens_decoder[vocab[token]] = AddedToken(token, special=True, normalized=False)
                self._added_tokens_encoder[token] = vocab[token]
        return 0


def _split(text: str | Sequence[str]) -> tuple[list, list, bool]:
    """Words and spans of each text, and whether a list of texts came."""
    batched = _is_list(text)
    texts = list(text) if batched else [text]
    if wrong := [one for one in texts if not isinstance(one, str)]:
        hint = " Pass is_split_into_words=True with lists of words; pairs of texts are not encoded."
        hint = hint if batched and _is_list(wrong[0]) else ""
        raise ValueError(f"expected a text (str) or a list of texts, but {_described(wrong[0])} came.{hint}")
    spans = [[match.span() for match in WORD.finditer(one)] for one in texts]
    return [[one[a:b] for a, b in row] for one, row in zip(texts, spans, strict=True)], spans, batched


def _split_into_words(text: Sequence[str] | Sequence[Sequence[str]]) -> tuple[list, list, bool]:
    """Words and spans of each sentence, and whether a list of sentences came."""
    batched = _is_list(text) and len(text) > 0 and not isinstance(text[0], str)
    sentences = [_checked_words(words) for words in (text if batched else [text])]
    return sentences, [[(0, len(word)) for word in words] for words in sentences], batched


def _is_list(values: object) -> bool:
    """Whether this is a list, a tuple, an array, a data set's column or the like."""
    listed = all(hasattr(values, name) for name in ("__len__", "__getitem__", "__iter__"))
    return listed and not isinstance(values, str | bytes | Mapping)


def _checked_words(words: Sequence[str]) -> list[str]:
    if not _is_list(words):
        raise ValueError(f"expected a list of words (str) or of such lists, but {_described(words)} came.")
    words = words if isinstance(words, list) else list(words)
    if set(map(type, words)) <= {str}:  # quicker than a look at each
        return words
    if wrong := [number for number, word in enumerate(words) if not isinstance(word, str)]:
        raise ValueError(f"expected words (str), but word {wrong[0]} is {_described(words[wrong[0]])}.")
    return words


def _checked_size(size: int) -> int:
    if not isinstance(size, int) or size < 3:
        raise ValueError(f"max_characters_per_token is {_described(size)}; expected an int of at least 3.")
    return size


def _described(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _depth(values: object) -> int:
    """Number of dimensions of an array, a tensor or nested lists, by the first entry that is not empty."""
    if not isinstance(values, list | tuple):
        return getattr(values, "ndim", 0)
    filled = (value for value in values if not isinstance(value, list | tuple) or value)
    return 1 + _depth(next(filled, values[0] if values else None))


def _read_lines(path: str | os.PathLike) -> list[str]:
    data = Path(path).read_bytes()
    try:
        lines = [line.removesuffix("\r") for line in data.decode("utf-8").split("\n")]
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}, is no UTF-8 ({error.reason}). Convert it.") from error
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty; expected one entry a line.")
    return lines


def _read_words(source: str | os.PathLike | Sequence[str]) -> tuple[list[str], str]:
    """The words of a vocabulary in order, and its name for messages."""
    if isinstance(source, str | os.PathLike):
        return [line for line in _read_lines(source) if line != SKIPPED_LINE], str(source)
    words, label = _checked_words(source), "the vocabulary"
    if unfit := [word for word in words if not _fits_a_line(word)]:
        raise ValueError(f"{label} holds {unfit[0]!r}, which cannot be a line of vocab.txt. Leave it out.")
    return words, label


def _fits_a_line(word: str) -> bool:
    """Whether a vocabulary file can hold it: no line breaks, no lone surrogates."""
    plain = word.isascii() or word == word.encode("utf-8", "ignore").decode("utf-8")
    return plain and "\n" not in word and not word.endswith("\r") and word != SKIPPED_LINE


def _read_characters(source: str | os.PathLike | Sequence[str]) -> tuple[list[str], str]:
    """The characters of an inventory in order, and its name for messages."""
    if not isinstance(source, str | os.PathLike):
        return _checked_words(source), "the character vocabulary"
    characters = []
    for number, line in enumerate(_read_lines(source), 1):
        with contextlib.suppress(json.JSONDecodeError):
            characters.append(json.loads(line))
        if len(characters) < number or not isinstance(characters[-1], str):
            raise ValueError(f'{source}, line {number}, is {line!r}; expected a JSON string like "a".')
    return characters, str(source)


def _require(needed: Sequence[str], ids: Mapping[str, int], label: str, cure: str) -> None:
    if missing := [entry for entry in needed if entry not in ids]:
        raise ValueError(f"{label} lacks {', '.join(missing)}. {cure}.")


__all__ = ["WORD", "ElmoTokenizer", "words_to_char_ids"]
