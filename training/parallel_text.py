"""Pairs of lines and monolingual text, from files to token ids.

A source is what its tokenizer makes of it when called. A target is likewise, without the decoder's start token and with a
token for its end. Monolingual sentences are kept without marks, which collators add.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import has_file, logging

from ..objectives.seq2seq import MonolingualCollator, TokenRows
from .data import column, read_table
from .text_files import TextFile, open_shards

logger = logging.get_logger(__name__)

SIDES = ("source", "target")
ROWS_AT_ONCE = 1000
SOURCE_COLUMNS = ("source", "src", "document", "article", "text")
TARGET_COLUMNS = ("target", "tgt", "summary", "highlights", "translation")
# Their positions are counted from behind the pad's id, so that many embeddings are never read.
OFFSET = (
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "xmod",
    "longformer",
)
OFFSET += ("data2vec-text", "ibert", "luke", "mpnet", "esm")


# Tokenizers


@dataclass
class TokenizerPair:
    """The tokenizers of both sides; one for both where the vocabulary is joint.

    Args:
        source: of the encoder.
        target: of the decoder.
    """

    source: PreTrainedTokenizerBase
    target: PreTrainedTokenizerBase

    @property
    def pad_token_id(self) -> int | None:
        """Of the target, as Seq2SeqTrainer asks for it."""
        return self.target.pad_token_id

    @property
    def eos_token_id(self) -> int | None:
        """Of the target, as Seq2SeqTrainer asks for it."""
        return self.target.eos_token_id

    @property
    def model_input_names(self) -> list[str]:
        """Of the source, as Trainer asks for them to sort by length."""
        return self.source.model_input_names

    def save_pretrained(self, folder: str | Path, **options) -> None:
        """Write one tokenizer into the folder, or two into its folders `source_tokenizer` and `target_tokenizer`."""
        if self.source is self.target:
            self.target.save_pretrained(folder, **options)
            return
        for side in SIDES:
            getattr(self, side).save_pretrained(Path(folder) / f"{side}_tokenizer", **options)


def has_own_tokenizer(model: str | Path, side: str) -> bool:
    """Whether a checkpoint, a folder or a name on the Hub, has a folder with a tokenizer for one side alone."""
    if Path(model).is_dir():
        return (Path(model) / f"{side}_tokenizer").is_dir()
    try:
        return has_file(str(model), f"{side}_tokenizer/tokenizer_config.json")
    except (OSError, ValueError):  # no such checkpoint; whoever opens it says so
        return False


def open_tokenizers(model: str, source: str = "", target: str = "") -> TokenizerPair:
    """The tokenizers of an encoder-decoder.

    Args:
        model: folder or Hub name of its checkpoint, with one tokenizer, or with two in its folders `source_tokenizer` and
            `target_tokenizer`.
        source: another folder or name for the source's.
        target: likewise for the target's.

    Returns:
        Both; the same object twice where there is one for both sides.

    Raises:
        FileNotFoundError: no tokenizer in a local folder.
    """
    opened: dict[tuple[str, str], PreTrainedTokenizerBase] = {}
    places = []
    for side, given in zip(SIDES, (source, target), strict=True):
        own = not given and has_own_tokenizer(model, side)
        places.append((given or model, f"{side}_tokenizer" if own else ""))
        if places[-1] not in opened:
            opened[places[-1]] = _open(*places[-1], side)
    return TokenizerPair(*(opened[place] for place in places))


def _open(name: str, folder: str, side: str) -> PreTrainedTokenizerBase:
    # Such a folder has no config.json, which AutoTokenizer would insist on for a name on the Hub.
    options = {"subfolder": folder, "config": PreTrainedConfig()} if folder else {}
    try:
        return AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"{name}{'/' * bool(folder)}{folder} holds no tokenizer of the {side} that can be read. Name one with "
            f"--{side}_tokenizer."
        ) from error


# Text to ids


@dataclass
class PairEncoder:
    """Texts to the ids that an encoder-decoder reads and predicts.

    Args:
        tokenizers: of both sides.
        start: `decoder_start_token_id`.

    Raises:
        ValueError: a target tokenizer that has no token for the end.
    """

    tokenizers: TokenizerPair
    start: int

    def __post_init__(self):
        if self.end is None:
            raise ValueError(
                "the target's tokenizer has neither eos_token nor sep_token, which ends each target. Set one."
            )

    @property
    def end(self) -> int | None:
        """The target's last id."""
        target = self.tokenizers.target
        return target.sep_token_id if target.eos_token_id is None else target.eos_token_id

    def sources(self, texts: Sequence[str]) -> list[list[int]]:
        """Input ids of sources."""
        return self.tokenizers.source(list(texts), return_attention_mask=False, verbose=False)["input_ids"]

    def targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Labels of targets."""
        rows = self._target_ids(texts)
        rows = [row[1:] if row[:1] == [self.start] else row for row in rows]
        return [row if row[-1:] == [self.end] else [*row, self.end] for row in rows]

    def sentences(self, side: str, texts: Sequence[str]) -> list[list[int]]:
        """Ids of sentences without marks."""
        if side == "target":
            return self._target_ids(texts, add_special_tokens=False)
        options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False}
        return self.tokenizers.source(list(texts), **options)["input_ids"]

    def _target_ids(self, texts: Sequence[str], **options) -> list[list[int]]:
        options |= {"return_attention_mask": False, "verbose": False}
        return self.tokenizers.target(text_target=list(texts), **options)["input_ids"]

    def collator(self, side: str) -> MonolingualCollator:
        """Marks of a side's sentences: those a language model was trained with, or those the decoder reads and predicts.

        Raises:
            ValueError: a source tokenizer that has no token for the end.
        """
        if side == "target":
            begin = [self.start, *self.targets([""])[0]]
            return MonolingualCollator(side, begin[:-1], begin[-1:], self.tokenizers.target.pad_token_id or 0)
        tokenizer = self.tokenizers.source
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "the source's tokenizer has no eos_token, which ends each sentence of its language model. Set one."
            )
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return MonolingualCollator(side, [begin], [tokenizer.eos_token_id], tokenizer.pad_token_id or 0)


# Pairs


def read_pairs(
    sources: Sequence[str],
    targets: Sequence[str],
    table: Sequence[str] = (),
    source_column: str | None = None,
    target_column: str | None = None,
    what: str = "train",
) -> Dataset:
    """Read pairs of lines, or a table with two columns.

    Args:
        sources: files with one source a line.
        targets: files with one target a line.
        table: instead of both, files or a data set of the Hub.
        source_column: of a table.
        target_column: of a table.
        what: "train" or "validation", for messages and splits.

    Returns:
        A table with `source`, `target` and the number of their `line`; blank lines are kept.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: files of different numbers of lines, only one side, none, or no such column.
    """
    if table and not (sources or targets):
        found = read_table(table, what)
        names = (
            column(found, source_column, SOURCE_COLUMNS, "sources"),
            column(found, target_column, TARGET_COLUMNS, "targets"),
        )
        lines = {side: _texts(found, name) for side, name in zip(("source", "target"), names, strict=True)}
        return _numbered(lines)
    if table or not (sources and targets):
        given = {
            f"{what}_source": sources,
            f"{what}_target": targets,
            f"{what}_file": table,
        }
        raise ValueError(
            f"pairs need {what}_source and {what}_target, or {what}_file alone; found "
            f"{[name for name, files in given.items() if files] or 'none of them'}."
        )
    lines = {"source": list(_lines(sources)), "target": list(_lines(targets))}
    counts = {side: len(rows) for side, rows in lines.items()}
    if counts["source"] != counts["target"]:
        raise ValueError(
            f"the files are not aligned: {', '.join(sources)} has {counts['source']} lines, {', '.join(targets)} has "
            f"{counts['target']}. Line n of one must be the translation of line n of the other."
        )
    return _numbered(lines)


def _numbered(lines: dict[str, list[str]]) -> Dataset:
    return Dataset.from_dict(lines | {"line": range(1, len(lines["source"]) + 1)})


def _lines(files: Sequence[str]) -> Iterable[str]:
    shards = open_shards(files, keep_blank=True)
    if tables := [str(shard) for shard in shards if not isinstance(shard, TextFile)]:
        raise ValueError(
            f"{tables[0]} is a table, not a file of lines. Name it as train_file or validation_file."
        )
    return chain.from_iterable(shards)


def _texts(table: Dataset, name: str) -> list[str]:
    for number, text in enumerate(table[name], 1):
        if not isinstance(text, str):
            raise ValueError(f"row {number}: the column {name!r} holds {text!r:.60}; expected a text.")
    return list(table[name])


def half_of(config: PreTrainedConfig, half: str) -> PreTrainedConfig:
    """The config of the "encoder" or "decoder", where they have their own."""
    found = getattr(config, half, None)
    return found if isinstance(found, PreTrainedConfig) else config


def positions_of(config: PreTrainedConfig, half: str) -> int | None:
    """How many tokens the "encoder" or "decoder" can read; None for any number."""
    own = half_of(config, half)
    names = (f"max_{half}_position_embeddings", "max_position_embeddings")
    found = next((size for name in names if (size := getattr(own, name, None)) is not None), None)
    if found is not None and own.model_type in OFFSET:
        found -= (own.pad_token_id or 0) + 1
    return found


@dataclass
class Limits:
    """What to do with unusual pairs; see `Seq2SeqArguments`."""

    max_source_tokens: int
    max_target_tokens: int
    too_long: str = "error"
    empty_pairs: str = "error"

    def within(self, config: PreTrainedConfig) -> "Limits":
        """The same, not above the positions that a model has."""
        ends = [positions_of(config, half) for half in ("encoder", "decoder")]
        limits = [self.max_source_tokens, self.max_target_tokens]
        limits = [limit if end is None else min(limit, end) for limit, end in zip(limits, ends, strict=True)]
        return Limits(*limits, self.too_long, self.empty_pairs)


def encode_pairs(pairs: Dataset, encode: PairEncoder, limits: Limits, what: str = "train") -> Dataset:
    """Turn pairs of texts into rows for `ParallelCollator`.

    Args:
        pairs: of `read_pairs`.
        encode: texts to ids.
        limits: of tokens, and what to do with other pairs.
        what: of the pairs, for messages.

    Returns:
        A table with `input_ids`, `labels` and the text of the `target`.

    Raises:
        ValueError: pairs that are blank or too long, by their lines, or no pairs at all.
    """
    pairs = _without_blank(pairs, limits.empty_pairs, what)
    rows = {"input_ids": [], "labels": []}
    for start in range(0, len(pairs), ROWS_AT_ONCE):
        block = pairs[start : start + ROWS_AT_ONCE]
        rows["input_ids"] += encode.sources(block["source"])
        rows["labels"] += encode.targets(block["target"])
    found = {
        "input_ids": ("source", limits.max_source_tokens),
        "labels": ("target", limits.max_target_tokens),
    }
    long = {
        name: [number for number, ids in enumerate(rows[name]) if len(ids) > most]
        for name, (_, most) in found.items()
    }
    for name, (side, most) in found.items():
        if not long[name] or limits.too_long == "drop":
            continue
        cuts = limits.too_long == "truncate" or (limits.too_long == "truncate_source" and side == "source")
        first = long[name][0]
        told = (
            f"{what} {side}, line {pairs[first]['line']}: {len(rows[name][first])} tokens, more than "
            f"max_{side}_tokens = {most} ({len(long[name])} of {len(pairs)} pairs)"
        )
        if not cuts:
            raise ValueError(
                f"{told}. Raise it as far as the model reads, or say --too_long truncate or drop."
            )
        logger.warning(f"{told}; cut.")
        for number in long[name]:
            rows[name][number] = _cut(rows[name][number], most, encode if name == "input_ids" else None)
    dropped = set().union(*long.values()) if limits.too_long == "drop" else set()
    if dropped:
        logger.warning(f"left {len(dropped)} of {len(pairs)} {what} pairs out, which are too long.")
    rows["target"] = pairs["target"]
    kept = {name: [one for number, one in enumerate(rows[name]) if number not in dropped] for name in rows}
    if not kept["labels"]:
        raise ValueError(f"no {what} pairs are left. Name files with text on both sides.")
    return Dataset.from_dict(kept)


def _cut(ids: list[int], most: int, source: PairEncoder | None) -> list[int]:
    """The first ids; a source keeps the mark at its end, a target has none where it does not end."""
    if source is not None:
        tokenizer = source.tokenizers.source
        if ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
            return [*ids[: most - 1], ids[-1]]
    return ids[:most]


def _without_blank(pairs: Dataset, empty_pairs: str, what: str) -> Dataset:
    texts = list(zip(pairs["source"], pairs["target"], strict=True))
    blank = [number for number, pair in enumerate(texts) if not all(text.strip() for text in pair)]
    if not blank:
        return pairs
    side = "target" if texts[blank[0]][0].strip() else "source"
    told = f"{what} {side}, line {pairs[blank[0]]['line']} is empty ({len(blank)} of {len(texts)} pairs lack a side)"
    if empty_pairs == "error":
        raise ValueError(f"{told}. Fill or remove the line in both files, or say --empty_pairs drop.")
    logger.warning(f"{told}; left out.")
    return pairs.select(sorted(set(range(len(texts))) - set(blank)))


# Monolingual text


def read_sentences(
    files: Sequence[str], encode: Callable[[list[str]], list[list[int]]], most: int
) -> TokenRows:
    """Read a text, a sentence a line.

    Args:
        files: files, patterns, folders or data sets of the Hub.
        encode: texts to ids.
        most: tokens of a piece; longer sentences are cut into pieces.

    Returns:
        Lists of ids; blank lines are left out.

    Raises:
        FileNotFoundError: nothing of this name.
        ValueError: no sentence.
    """
    return _pieces(chain.from_iterable(open_shards(files)), encode, most, ", ".join(files))


def sentences_of(
    texts: Iterable[str], encode: Callable[[list[str]], list[list[int]]], most: int
) -> TokenRows:
    """The same for texts in memory."""
    return _pieces(texts, encode, most, "the texts")


def _pieces(texts: Iterable, encode: Callable, most: int, name: str) -> TokenRows:
    supply = iter(texts)
    blocks = iter(lambda: list(islice(supply, ROWS_AT_ONCE)), [])
    rows = TokenRows(
        ids[start : start + most]
        for block in blocks
        for ids in encode([text if isinstance(text, str) else " ".join(text) for text in block])
        for start in range(0, len(ids), most)
    )
    if not len(rows):
        raise ValueError(f"found no sentence in {name}; expected lines of text.")
    return rows


__all__ = [
    "Limits",
    "PairEncoder",
    "TokenizerPair",
    "encode_pairs",
    "half_of",
    "has_own_tokenizer",
    "open_tokenizers",
    "positions_of",
    "read_pairs",
    "read_sentences",
    "sentences_of",
]
