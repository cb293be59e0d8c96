"""bilm-tf's `options.json`, in all the forms it is found in, to an ElmoConfig and back.

Facts of the format: the hdf5 rows decide about the size of the character inventory, `n_characters` (261 as training writes
it, 262 as prediction wants it) informs only; a missing `n_layers` means 1, a missing `use_skip_connections` means false.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..modeling.configuration_elmo import ElmoConfig
from .closed_world import existing_file

TRAINING_KEYS = {
    "all_clip_norm_val",
    "batch_size",
    "bidirectional",
    "char_cnn",
    "dropout",
    "learning_rate",
    "lstm",
    "n_epochs",
    "n_negative_samples_batch",
    "n_tokens_vocab",
    "n_train_tokens",
    "sample_softmax",
    "share_embedding_softmax",
    "unroll_steps",
}
LSTM_KEYS = {"cell_clip", "dim", "n_layers", "proj_clip", "projection_dim", "use_skip_connections"}
CHAR_KEYS = {
    "activation",
    "embedding",
    "filters",
    "max_characters_per_token",
    "n_characters",
    "n_highway",
}
BYTE_INVENTORY = 261  # 256 bytes and five marks


@dataclass
class BilmOptions:
    """What an `options.json` says, as fields of ElmoConfig.

    Args:
        label: the file's name, for messages.
        fields: of ElmoConfig, all but those that depend on the weights.
        has_characters: False in word mode.
        num_words: `n_tokens_vocab`, where it is given.
        num_characters: `n_characters`, likewise.
        notes: what was odd, but usable.
    """

    label: str
    fields: dict[str, object]
    has_characters: bool
    num_words: int | None = None
    num_characters: int | None = None
    notes: list[str] = field(default_factory=list)


def read_options(options: str | Path | Mapping) -> BilmOptions:
    """Read and check bilm-tf's options.

    Args:
        options: the path of an `options.json`, or its contents.

    Returns:
        `BilmOptions`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no JSON, no ELMo options, or a value that no ELMo can have; the message names the option.
    """
    label = "options"
    if not isinstance(options, Mapping):
        label = str(options)
        options = read_json(options, "ELMo's options.json")
    read = OptionReader(label, options)
    if not isinstance(options.get("lstm"), Mapping):
        raise ValueError(
            f"{label} holds no ELMo options: expected the keys 'lstm' and 'char_cnn' (or 'n_tokens_vocab' for a word "
            f"model), found {sorted(map(str, options))[:8]}."
        )
    if options.get("bidirectional") is False:
        raise ValueError(
            f"{label}: option bidirectional is false: that is a forward language model only. An ELMo needs both directions."
        )
    fields = {
        "projection_size": read.integer("lstm.projection_dim", 1),
        "cell_size": read.integer("lstm.dim", 1),
        "num_hidden_layers": read.integer("lstm.n_layers", 1, default=1),
        "use_skip_connections": read.boolean("lstm.use_skip_connections", default=False),
        "cell_clip": read.clip("lstm.cell_clip"),
        "proj_clip": read.clip("lstm.proj_clip"),
        "forget_bias": 1.0,
    }
    if fields["projection_size"] > fields["cell_size"]:
        raise ValueError(
            f"{label}: option lstm.projection_dim ({fields['projection_size']}) must not exceed lstm.dim "
            f"({fields['cell_size']}): an LSTM projects its cells down."
        )
    dropout = options.get("dropout")
    if isinstance(dropout, int | float) and 0 <= dropout < 1:
        fields["dropout"] = float(dropout)
    result = BilmOptions(label, fields, has_characters=options.get("char_cnn") is not None)
    if "n_tokens_vocab" in options:
        result.num_words = read.integer("n_tokens_vocab", 1)
    if result.has_characters:
        fields |= _character_fields(read)
        result.num_characters = read.integer("char_cnn.n_characters", 1, default=None)
    else:
        fields |= {"char_embedding_size": 0, "char_filters": (), "num_highway_layers": 0}
        fields["word_embedding_size"] = fields["projection_size"]
    result.notes = read.notes
    unknown = read.unknown("", TRAINING_KEYS) + read.unknown("lstm", LSTM_KEYS)
    if result.has_characters:
        unknown += read.unknown("char_cnn", CHAR_KEYS)
    if unknown:
        result.notes.append(f"{label}: unknown options are ignored: {unknown}")
    return result


def mark_ids(rows: int, label: str) -> tuple[dict[str, int], str | None]:
    """The ids of the five marks in a table of `rows` characters.

    Args:
        rows: of the table, without the padding row.
        label: what holds the table, for messages.

    Returns:
        Fields of ElmoConfig, and a note where the ids are a guess.

    Raises:
        ValueError: fewer than five rows.
    """
    names = ("bos_char_id", "eos_char_id", "bow_char_id", "eow_char_id", "pad_char_id")
    if rows < len(names):
        raise ValueError(f"{label} has {rows} rows; an ELMo needs at least five, for its marks.")
    first = min(rows, BYTE_INVENTORY) - len(names) + 1  # 257 where all bytes have a row
    note = None
    if rows < BYTE_INVENTORY:
        note = (
            f"{label} has {rows} rows, fewer than the {BYTE_INVENTORY} of bytes and marks: the marks <S>, </S>, begin and "
            f"end of word and padding are taken to be its last five rows (ids {first}..{rows}). Check that with whoever "
            "trained it, and make char_ids yourself."
        )
    return {name: first + position for position, name in enumerate(names)}, note


def make_config(label: str, **fields) -> ElmoConfig:
    """An ElmoConfig, whose complaints name the options' file.

    Args:
        label: the options' file.
        fields: of ElmoConfig.

    Returns:
        The config.

    Raises:
        ValueError: sizes that contradict each other.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        return ElmoConfig(**fields)
    except StrictDataclassError as error:
        raise ValueError(f"{label}: {error.__cause__ or error}") from error


def write_options(config: ElmoConfig) -> dict:
    """bilm-tf's options for a config, in the form that prediction wants (`n_characters` 262).

    Args:
        config: of a model that the format can hold.

    Returns:
        What `options.json` holds.
    """
    options = {
        "lstm": {
            "use_skip_connections": config.use_skip_connections,
            "projection_dim": config.projection_size,
            "cell_clip": _plain(config.cell_clip),
            "proj_clip": _plain(config.proj_clip),
            "dim": config.cell_size,
            "n_layers": config.num_hidden_layers,
        }
    }
    if not config.char_embedding_size:
        return options | {"n_tokens_vocab": config.vocab_size - 1}
    options["char_cnn"] = {
        "activation": config.char_activation,
        "filters": [list(pair) for pair in config.char_filters],
        "n_highway": config.num_highway_layers,
        "embedding": {"dim": config.char_embedding_size},
        "n_characters": config.char_vocab_size,
        "max_characters_per_token": config.max_characters_per_token,
    }
    return options


def read_json(path: str | Path, what: str) -> dict:
    """Read a JSON object.

    Args:
        path: the file.
        what: what was expected, for messages.

    Returns:
        The object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no JSON object.
    """
    path = existing_file(path, what)
    try:
        found = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); expected {what}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a JSON {type(found).__name__}, expected an object: {what}.")
    return found


class OptionReader:
    """Options by dotted name, each checked."""

    def __init__(self, label: str, options: Mapping):
        self.label, self.options, self.notes = label, options, []

    def get(self, name: str, default: object = ...) -> object:
        """The option as it is; missing or null, the default; without a default an error."""
        value = self.options
        for part in name.split("."):
            value = value.get(part, ...) if isinstance(value, Mapping) else ...
        if value is ... or (value is None and default is not ...):
            if default is ...:
                raise ValueError(f"{self.label}: option {name} is missing.")
            return default
        return value

    def integer(self, name: str, lowest: int, default: object = ...) -> int | None:
        """A whole number of at least `lowest`."""
        value = self.get(name, default)
        if value is default:
            return value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise ValueError(
                f"{self.label}: option {name} must be a whole number >= {lowest}, found {value!r}."
            )
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """True or false, nothing else."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.label}: option {name} must be true or false, found {value!r}.")
        return value

    def clip(self, name: str) -> float | None:
        """A bound for clipping; None where it is missing, null or 0."""
        value = self.get(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ValueError(f"{self.label}: option {name} must be null or a number > 0, found {value!r}.")
        if value == 0:
            self.notes.append(f"{self.label}: option {name} is 0, which is taken as no clipping")
            return None
        return float(value)

    def activation(self, name: str) -> str:
        """relu or tanh."""
        value = self.get(name)
        if value not in ("relu", "tanh"):
            raise ValueError(f"{self.label}: option {name} must be 'relu' or 'tanh', found {value!r}.")
        return value

    def filters(self, name: str) -> tuple[tuple[int, int], ...]:
        """(width, count) of each convolution."""
        value = self.get(name)
        if (
            not isinstance(value, list | tuple)
            or not value
            or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value)
            or not all(type(size) is int and size > 0 for pair in value for size in pair)
        ):
            raise ValueError(
                f"{self.label}: option {name} must be a list of [width, count], found {str(value)[:80]}."
            )
        return tuple((width, count) for width, count in value)

    def unknown(self, group: str, known: set[str]) -> list[str]:
        """Options of a group ("" for the outermost) that nobody knows."""
        keys = self.options[group] if group else self.options
        return [f"{group}.{key}".lstrip(".") for key in keys if key not in known]


def _character_fields(read: OptionReader) -> dict[str, object]:
    filters = read.filters("char_cnn.filters")
    fields = {
        "char_activation": read.activation("char_cnn.activation"),
        "char_embedding_size": read.integer("char_cnn.embedding.dim", 1),
        "char_filters": filters,
        "num_highway_layers": read.integer("char_cnn.n_highway", 0, default=0),
        "max_characters_per_token": read.integer("char_cnn.max_characters_per_token", 3),
    }
    widest = max(width for width, _ in filters)
    if fields["max_characters_per_token"] < widest:
        raise ValueError(
            f"{read.label}: option char_cnn.max_characters_per_token ({fields['max_characters_per_token']}) must reach over "
            f"the widest of char_cnn.filters ({widest})."
        )
    return fields


def _plain(clip: float | None) -> float | int | None:
    return int(clip) if clip is not None and float(clip).is_integer() else clip


__all__ = [
    "BilmOptions",
    "OptionReader",
    "make_config",
    "mark_ids",
    "read_json",
    "read_options",
    "write_options",
]
