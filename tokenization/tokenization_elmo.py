"""ElmoTokenizer: words one to one, as word ids and as the character ids that ELMo reads (Peters et al. 2018).

Character ids work on UTF-8 bytes: `[begin] byte+1 ... [end] [pad] ...`, cut to C ids; 0 is padding. Models with a
character table of their own (ELMoForManyLangs) bring a `char_vocab.txt` and work on code points. No sentence marks are
added here: the model puts `<S>` and `</S>` around each sentence itself.

Letters: B sentences, T words of the longest, C ids of a word's characters, N words.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import regex
from transformers import BatchEncoding, PreTrainedTokenizer
from transformers.utils import PaddingStrategy

# A word is a run of letters, marks, digits and _, with single ' ’ . - inside; any other visible character stands alone:
# "Don't e-mail U.S. firms (now)!" -> Don't | e-mail | U.S | . | firms | ( | now | ) | !
WORD = regex.compile(r"[\p{L}\p{M}\p{N}_]+(?:['’.\-][\p{L}\p{M}\p{N}_]+)*|\S")

NOT_A_WORD = "!!!MAXTERMID"  # a line of 1B-Word vocabulary files that holds no id, as in bilm-tf
BOS, EOS, BOW, EOW, PAD = 257, 258, 259, 260, 261  # symbols behind the 256 bytes, all ids shifted by one


class ElmoTokenizer(PreTrainedTokenizer):
    """Splits text into words and gives each word its id and its characters.

    Text that is split already should be passed as lists with `is_split_into_words=True`: words then map one to one, also
    empty ones and words with spaces. Raw text is split by `WORD`. Corpora that were prepared with Moses contain escapes
    such as `&apos;`; undo them first, since this splitter takes them apart.

    Args:
        vocab_file: one word a line, UTF-8, as bilm-tf writes it; id = line + 1, 0 is padding. None means only the
            three special words. Of a repeated word the last line counts.
        char_vocab_file: one JSON string a line, for models that read code points; id = line + 1. Holds `<bos>`, `<eos>`,
            `<oov>`, `<pad>`, `<bow>` and `<eow>`. None means bytes.
        max_characters_per_token: C, both marks included.
        pad_token: name of id 0; must not be a line of the vocabulary.
        bos_token: word that stands for the begin of a sentence.
        eos_token: word that stands for its end.
        unk_token: word whose id words outside the vocabulary get. Their characters stay intact.

    Raises:
        ValueError: a broken vocabulary, by file and line.
    """

    vocab_files_names = {"vocab_file": "vocab.txt", "char_vocab_file": "char_vocab.txt"}  # noqa: RUF012
    model_input_names = ["input_ids", "char_ids", "attention_mask"]  # noqa: RUF012
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        vocab_file: str | None = None,
        char_vocab_file: str | None = None,
        max_characters_per_token: int = 50,
        pad_token: str = "<pad>",
        bos_token: str = "<S>",
        eos_token: str = "</S>",
        unk_token: str = "<UNK>",
        **kwargs,
    ):
        if not isinstance(max_characters_per_token, int) or max_characters_per_token < 3:
            raise ValueError(
                f"max_characters_per_token must be an integer of at least 3 (two marks and a character), found "
                f"{max_characters_per_token!r}."
            )
        self.max_characters_per_token = max_characters_per_token
        specials = [str(token) for token in (bos_token, eos_token, unk_token)]
        lines = specials if vocab_file is None else _read_words(vocab_file)
        self._set_words(lines, str(pad_token), specials, vocab_file or "the vocabulary")
        self._char_numbers = None if char_vocab_file is None else _read_characters(char_vocab_file)
        kwargs.setdefault("special_tokens_pattern", "none")
        super().__init__(
            max_characters_per_token=max_characters_per_token,
            pad_token=pad_token,
            bos_token=bos_token,
            eos_token=eos_token,
            unk_token=unk_token,
            **kwargs,
        )

    @classmethod
    def from_words(cls, words: Iterable[str] = (), **kwargs) -> "ElmoTokenizer":
        """Make a tokenizer of a list of words, most frequent first.

        Args:
            words: distinct words; the special words are put first. Words that no line of a file can hold (line breaks,
                lone surrogates) and the padding token are left out.
            kwargs: as for the class.

        Returns:
            The tokenizer.
        """
        tokenizer = cls(**kwargs)
        specials = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token]
        fitting = [word for word in words if word != tokenizer.pad_token and _fits_a_line(word)]
        tokenizer._set_words(
            list(dict.fromkeys([*specials, *fitting])), tokenizer.pad_token, specials, "words"
        )
        tokenizer._update_total_vocab_size()
        return tokenizer

    def _set_words(self, lines: list[str], pad_token: str, specials: list[str], source: str) -> None:
        if pad_token in lines:
            raise ValueError(
                f"{source}: the padding token {pad_token!r} is a word of the vocabulary; pass another pad_token."
            )
        self._lines = lines
        self._word_numbers = {word: number for number, word in enumerate(lines, 1)}
        if missing := [word for word in specials if word not in self._word_numbers]:
            raise ValueError(
                f"{source}: the special words {missing} are missing. Add them as the first lines, or name the words that "
                "play their part by bos_token, eos_token and unk_token."
            )

    # What Transformers asks of every tokenizer.

    @property
    def vocab_size(self) -> int:
        """Number of word ids, padding included."""
        return len(self._lines) + 1

    def __len__(self) -> int:
        return max(self.vocab_size, 1 + max(self._added_tokens_decoder, default=0))

    def get_vocab(self) -> dict[str, int]:
        """Words and their ids, padding and added tokens included."""
        return {
            str(self._special_tokens_map["pad_token"]): 0,
            **self._word_numbers,
            **self._added_tokens_encoder,
        }

    def _convert_token_to_id(self, token: str) -> int:
        if token == self.pad_token:
            return 0
        return self._word_numbers.get(token, self._word_numbers[self.unk_token])

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"word ids must lie in 0..{self.vocab_size - 1}, found {index}.")
        return self._lines[index - 1] if index else self.pad_token

    def tokenize(self, text: str, **kwargs) -> list[str]:
        """Split raw text into words by `WORD`."""
        return WORD.findall(text)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Words joined by spaces."""
        return " ".join(tokens)

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """None: the model adds the sentence marks."""
        return 0

    def build_inputs_with_special_tokens(self, token_ids_0: list, token_ids_1: list | None = None) -> list:
        """The ids as they are: the model adds the sentence marks."""
        return token_ids_0 if token_ids_1 is None else token_ids_0 + token_ids_1

    def get_special_tokens_mask(
        self, token_ids_0, token_ids_1=None, already_has_special_tokens=False
    ) -> list[int]:
        """1 at padding, else 0."""
        return [int(number == 0) for number in [*token_ids_0, *(token_ids_1 or [])]]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write `vocab.txt`, and `char_vocab.txt` where the characters are code points."""
        contents = {"vocab_file": self._lines}
        if self._char_numbers is not None:
            contents["char_vocab_file"] = [json.dumps(character) for character in self._char_numbers]
        paths = []
        for kind, lines in contents.items():
            name = self.vocab_files_names[kind]
            paths.append(
                os.path.join(save_directory, f"{filename_prefix}-{name}" if filename_prefix else name)
            )
            with open(paths[-1], "w", encoding="utf-8", newline="") as file:
                file.writelines(line + "\n" for line in lines)
        return tuple(paths)

    # Encoding.

    def word_ids_of(self, words: Sequence[str]) -> list[int]:
        """Ids of words: the unknown word's where there is none, and for a text word that looks like padding."""
        unknown = self._word_numbers[self.unk_token]
        added = self._added_tokens_encoder
        return [self._word_numbers.get(word) or added.get(word, unknown) for word in words]

    def char_ids_of(self, words: Sequence[str]) -> np.ndarray:
        """Character ids of words, each distinct word once.

        Args:
            words: N strings.

        Returns:
            (N, C) int64.
        """
        numbers: dict[str, int] = {}
        inverse = [numbers.setdefault(word, len(numbers)) for word in words]
        distinct, size = list(numbers), self.max_characters_per_token
        begin, end, filler, marks = BOW, EOW, PAD, {self.bos_token: BOS, self.eos_token: EOS}
        if self._char_numbers is None:
            bodies = [word.encode("utf-8", "ignore")[: size - 2] for word in distinct]
            symbols = np.frombuffer(b"".join(bodies), dtype=np.uint8).astype(np.int64) + 1
        else:
            table = self._char_numbers
            # ELMoForManyLangs trained with the two marks swapped.
            begin, end, filler, unknown = table["<eow>"], table["<bow>"], table["<pad>"], table["<oov>"]
            marks = {self.bos_token: table["<bos>"], self.eos_token: table["<eos>"]}
            bodies = [[table.get(symbol, unknown) for symbol in word[: size - 2]] for word in distinct]
            symbols = np.array([number for body in bodies for number in body], dtype=np.int64)
        lengths = np.array([len(body) for body in bodies], dtype=np.int64)
        rows = np.full((len(distinct), size), filler, dtype=np.int64)
        rows[:, 0] = begin
        row = np.repeat(np.arange(len(distinct)), lengths)
        column = 1 + np.arange(len(symbols)) - np.repeat(lengths.cumsum() - lengths, lengths)
        rows[row, column] = symbols
        rows[np.arange(len(distinct)), lengths + 1] = end
        for word, mark in marks.items():
            if word in numbers:
                rows[numbers[word], 1:] = [mark, end, *[filler] * (size - 3)]
        return rows[np.array(inverse, dtype=np.int64)]

    def _encode_plus(
        self,
        text,
        text_pair=None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        truncation_strategy=None,
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
            raise ValueError(
                "ELMo reads single sentences, not pairs. Encode the two texts one by one, or join them."
            )
        if return_overflowing_tokens:
            raise ValueError(
                "ElmoTokenizer does not return overflowing tokens. Cut long texts into sentences first."
            )
        rows, batched = self._rows(text, is_split_into_words)
        if (
            max_length is not None
            and str(getattr(truncation_strategy, "value", truncation_strategy)) != "do_not_truncate"
        ):
            cut = (
                slice(0, max_length) if self.truncation_side == "right" else slice(-max_length or None, None)
            )
            rows = [(words[cut], offsets[cut]) for words, offsets in rows]
        data = {"input_ids": [self.word_ids_of(words) for words, _ in rows]}
        lengths = [len(words) for words, _ in rows]
        chars = self.char_ids_of([word for words, _ in rows for word in words])  # (N, C)
        starts = np.cumsum([0, *lengths])
        if return_offsets_mapping:
            data["offset_mapping"] = [offsets for _, offsets in rows]
        if return_special_tokens_mask:
            data["special_tokens_mask"] = [[0] * length for length in lengths]
        if return_length:
            data["length"] = lengths
        encodings = [
            WordEncoding(words, ids, offsets)
            for (words, offsets), ids in zip(rows, data["input_ids"], strict=True)
        ]
        # The characters stay one array while the short rows are padded; only then do they find their places in it.
        width = max(lengths, default=0) if padding_strategy == PaddingStrategy.LONGEST else max_length
        padded = padding_strategy != PaddingStrategy.DO_NOT_PAD
        data = (
            self.pad(
                data,
                padding=PaddingStrategy.MAX_LENGTH if padded else False,
                max_length=width if padded else None,
                pad_to_multiple_of=pad_to_multiple_of,
                padding_side=padding_side,
                return_attention_mask=return_attention_mask,
            )
            if rows
            else {"input_ids": [], "attention_mask": []}
        )
        side = padding_side or self.padding_side
        data = dict(data)
        places = []
        for encoding, ids, length in zip(encodings, data["input_ids"], lengths, strict=True):
            left = len(ids) - length if side == "left" else 0
            encoding.pad(left, len(ids) - length - left)
            places.append(slice(left, left + length))
        widths = {len(ids) for ids in data["input_ids"]}
        if return_tensors is not None and len(widths) == 1:
            array = np.zeros((len(rows), widths.pop(), self.max_characters_per_token), dtype=np.int64)
            for number, place in enumerate(places):
                array[number, place] = chars[starts[number] : starts[number + 1]]
            data["char_ids"] = array
        else:
            nothing = [0] * self.max_characters_per_token
            data["char_ids"] = [
                [nothing] * place.start
                + chars[starts[number] : starts[number + 1]].tolist()
                + [nothing] * (len(data["input_ids"][number]) - place.stop)
                for number, place in enumerate(places)
            ]
        order = [*self.model_input_names, *[key for key in data if key not in self.model_input_names]]
        data = {key: data[key] for key in order if key in data}
        if return_tensors is not None:
            data = {
                key: np.asarray(value, dtype=np.int64) if key != "char_ids" and len(widths) < 2 else value
                for key, value in data.items()
            }
        if not batched and return_tensors is None:
            data = {key: value[0] for key, value in data.items()}
        return BatchEncoding(data, encodings, tensor_type=return_tensors)

    def _rows(
        self, text, is_split_into_words: bool
    ) -> tuple[list[tuple[list[str], list[tuple[int, int]]]], bool]:
        """Each sentence's words with their offsets, and whether the text was a batch."""
        if is_split_into_words:
            if not isinstance(text, (list, tuple)):
                raise ValueError(
                    f"is_split_into_words=True needs a list of words or of such lists, found {_shown(text)}."
                )
            batched = bool(text) and all(isinstance(row, (list, tuple)) for row in text)
            rows = [list(row) for row in text] if batched else [list(text)]
            for row in rows:
                if wrong := [word for word in row if not isinstance(word, str)]:
                    raise ValueError(f"words must be strings, found {_shown(wrong[0])} in {_shown(row)}.")
            return [(row, [(0, len(word)) for word in row]) for row in rows], batched
        batched = isinstance(text, (list, tuple))
        texts = list(text) if batched else [text]
        for item in texts:
            if not isinstance(item, str):
                hint = (
                    " Pass is_split_into_words=True for lists of words."
                    if isinstance(item, (list, tuple))
                    else ""
                )
                raise ValueError(f"text must be a string or a list of strings, found {_shown(item)}.{hint}")
        rows = []
        for item in texts:
            matches = list(WORD.finditer(item))
            rows.append(([match.group() for match in matches], [match.span() for match in matches]))
        return rows, batched

    def _pad(self, encoded_inputs, *args, padding_side: str | None = None, **kwargs):
        before = len(encoded_inputs["input_ids"])
        padded = super()._pad(encoded_inputs, *args, padding_side=padding_side, **kwargs)
        missing = len(padded["input_ids"]) - before
        fillers = {"char_ids": [0] * self.max_characters_per_token, "offset_mapping": (0, 0)}
        for key, filler in fillers.items():
            if key in padded and missing:
                rows, filling = list(padded[key]), [filler] * missing
                left = (padding_side or self.padding_side) == "left"
                padded[key] = filling + rows if left else rows + filling
        return padded

    # Decoding.

    def _decode(self, token_ids, skip_special_tokens: bool = False, **kwargs) -> str:
        token_ids = np.asarray(token_ids)
        if token_ids.ndim == 2:
            return " ".join(self.decode_char_ids(token_ids))
        return " ".join(self.convert_ids_to_tokens(token_ids.reshape(-1).tolist(), skip_special_tokens))

    def decode(self, token_ids, skip_special_tokens: bool = False, **kwargs):
        """Word ids or character ids back to text, words joined by spaces.

        Args:
            token_ids: word ids () or (T,) or (B, T), or character ids (T, C) or (B, T, C). Two axes mean characters where
                every row is a word between its marks, or padding.
            skip_special_tokens: leave out padding, sentence marks and unknown words.

        Returns:
            A string, or a list of strings for a batch.

        Raises:
            ValueError: ids that do not exist.
        """
        rows = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        depth = _depth(rows)
        if depth == 2 and self._are_words(rows):
            return self._decode(rows)
        if depth < 2:
            return self._decode(rows, skip_special_tokens)
        return [self._decode(row, skip_special_tokens) for row in rows]

    def batch_decode(self, sequences, skip_special_tokens: bool = False, **kwargs) -> list[str]:
        """Decode each sentence of a batch; see `decode`."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def decode_char_ids(self, char_ids) -> list[str]:
        """Spell out words: (T, C) character ids to at most T words, padding left out.

        Args:
            char_ids: (T, C) integers.

        Returns:
            Words; cut or broken characters appear as U+FFFD.

        Raises:
            ValueError: ids that are no characters.
        """
        spelled = []
        begin, end, filler, marks, inventory = self._symbols()
        for row in np.asarray(char_ids).reshape(-1, np.shape(char_ids)[-1]).tolist():
            if not any(row):
                continue
            body = row[1:] if row[0] == begin else row
            body = body[: body.index(end)] if end in body else [number for number in body if number != filler]
            if len(body) == 1 and body[0] in marks:
                spelled.append(marks[body[0]])
                continue
            if wrong := [number for number in body if not 0 < number <= inventory]:
                raise ValueError(f"character ids inside a word must lie in 1..{inventory}, found {wrong[0]}.")
            spelled.append(self._spell(body))
        return spelled

    def _spell(self, body: list[int]) -> str:
        if self._char_numbers is None:
            return bytes(number - 1 for number in body).decode("utf-8", "replace")
        characters = list(self._char_numbers)
        return "".join(
            "\ufffd" if characters[number - 1] == "<oov>" else characters[number - 1] for number in body
        )

    def _symbols(self) -> tuple[int, int, int, dict[int, str], int]:
        """Begin and end mark, filler, sentence marks by id, and the largest id of an inner character."""
        table = self._char_numbers
        if table is None:
            return BOW, EOW, PAD, {BOS: self.bos_token, EOS: self.eos_token}, 256
        marks = {table["<bos>"]: self.bos_token, table["<eos>"]: self.eos_token}
        return table["<eow>"], table["<bow>"], table["<pad>"], marks, len(table)

    def _are_words(self, rows: Sequence[Sequence[int]]) -> bool:
        begin, end, *_ = self._symbols()
        if any(len(row) != self.max_characters_per_token for row in rows):
            return False
        used = [row for row in rows if any(row)]
        return bool(used) and all(row[0] == begin and end in row for row in used)


@dataclass
class WordEncoding:
    """What `BatchEncoding` asks for word by word (`word_ids()`, `tokens()`, ...), for words that map one to one."""

    tokens: list[str]
    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None] = field(init=False)
    n_sequences: int = 1

    def __post_init__(self):
        self.word_ids = list(range(len(self.tokens)))

    def pad(self, left: int, right: int) -> None:
        """Put places without a word before and behind."""
        self.tokens = [""] * left + list(self.tokens) + [""] * right
        self.ids = [0] * left + list(self.ids) + [0] * right
        self.offsets = [(0, 0)] * left + list(self.offsets) + [(0, 0)] * right
        self.word_ids = [None] * left + self.word_ids + [None] * right

    @property
    def sequence_ids(self) -> list[int | None]:
        """0 at words, None at padding."""
        return [None if number is None else 0 for number in self.word_ids]

    @property
    def attention_mask(self) -> list[int]:
        """1 at words, 0 at padding."""
        return [int(number is not None) for number in self.word_ids]

    @property
    def special_tokens_mask(self) -> list[int]:
        """1 at padding, 0 at words."""
        return [int(number is None) for number in self.word_ids]

    def char_to_token(self, position: int, sequence_index: int = 0) -> int | None:
        """The word that covers a character of the raw text."""
        spans = enumerate(self.offsets)
        return next((number for number, (start, stop) in spans if start <= position < stop), None)


def _read_words(path: str) -> list[str]:
    words = [word for word in _read_lines(path) if word != NOT_A_WORD]
    if not words:
        raise ValueError(f"{path} is empty. A vocabulary has one word a line, <S>, </S> and <UNK> first.")
    return words


def _read_characters(path: str) -> dict[str, int]:
    table = {}
    for number, line in enumerate(_read_lines(path), 1):
        try:
            table[json.loads(line)] = number
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: expected a JSON string, found {line!r}.") from error
    if missing := [
        name for name in ("<bos>", "<eos>", "<oov>", "<pad>", "<bow>", "<eow>") if name not in table
    ]:
        raise ValueError(f"{path}: the character vocabulary lacks {missing}.")
    return table


def _read_lines(path: str) -> list[str]:
    with open(path, "rb") as file:
        raw = file.read().split(b"\n")
    lines = []
    for number, line in enumerate(raw[:-1] if raw[-1] == b"" else raw, 1):
        try:
            lines.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not UTF-8: {line[:40]!r}. Convert the file to UTF-8."
            ) from error
    return lines


def _fits_a_line(word: str) -> bool:
    return not any("\ud800" <= symbol <= "\udfff" or symbol in "\r\n" for symbol in word)


def _depth(rows) -> int:
    depth = 0
    while isinstance(rows, (list, tuple)):
        depth += 1
        rows = rows[0] if len(rows) else None
    return depth


def _shown(value) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


__all__ = ["WORD", "ElmoTokenizer"]
