"""ELMoForManyLangs folders (44 languages) to heirloom.

What differs from bilm-tf: characters are code points with a dictionary of their own, a token is [word vector; highway of the
character convolutions] and then a projection, weights come as two PyTorch files in AllenNLP's layout, biases hold the
forget bias. A bug that was frozen into the training is kept: the mark before a word is the character called `<eow>`,
the mark behind it `<bow>`.

Letters: V words, K characters, E character embedding, W word embedding, P projection, D cells.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .allennlp import convolution_rules, highway_rules, linear_rules, lstm_rules
from .bilm import Conversion
from .closed_world import ClosedWorld, TorchSource, existing_file
from .options import OptionReader, make_config, read_json
from .rules import table_rule

if TYPE_CHECKING:
    from ..modeling.modeling_elmo import ElmoModel
    from ..tokenization.tokenization_elmo import ElmoTokenizer

SPECIAL_WORDS = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<oov>"}
WORD_MARKS = ("<bos>", "<eos>", "<oov>", "<pad>")
CHARACTER_MARKS = (*WORD_MARKS, "<bow>", "<eow>")
IDEOGRAPHIC_SPACE = "\u3000"


def from_efml(folder: str | Path) -> "tuple[ElmoModel, ElmoTokenizer]":
    """Load a biLM from a folder of ELMoForManyLangs.

    Args:
        folder: with `config.json`, `token_embedder.pkl`, `encoder.pkl`, `char.dic` and `word.dic`; the architecture that
            `config.json` names is looked for in the folder and in `configs/` in it or beside it.

    Returns:
        The model, float32 and in evaluation mode, and its tokenizer.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: files that are broken or do not belong together; all mismatches in one message.
    """
    conversion = read_efml(folder)
    for note in conversion.notes:
        warnings.warn(note, stacklevel=2)
    return conversion.model, conversion.make_tokenizer()


def read_efml(folder: str | Path) -> Conversion:
    """As `from_efml`, with all that belongs to the model.

    Args:
        folder: as in `from_efml`.

    Returns:
        The conversion.

    Raises:
        FileNotFoundError: as in `from_efml`.
        ValueError: as in `from_efml`.
    """
    from ..modeling.modeling_elmo import ElmoModel

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder, expected one of ELMoForManyLangs with a config.json."
        )
    label, fields, notes = _architecture(folder)
    words = characters = None
    if fields["char_embedding_size"]:
        characters = read_dictionary(folder / "char.dic", CHARACTER_MARKS)
        names = {
            "bos": "<bos>",
            "eos": "<eos>",
            "bow": "<eow>",
            "eow": "<bow>",
            "pad": "<pad>",
        }  # bow, eow: the bug
        fields |= {f"{mark}_char_id": characters.index(name) + 1 for mark, name in names.items()}
        fields["char_vocab_size"] = len(characters) + 1
    if fields["word_embedding_size"]:
        words = read_dictionary(folder / "word.dic", WORD_MARKS)
    vocabulary = words or list(SPECIAL_WORDS.values())
    fields["vocab_size"] = len(vocabulary) + 1
    fields["bos_token_id"] = vocabulary.index("<bos>") + 1
    fields["eos_token_id"] = vocabulary.index("<eos>") + 1
    config = make_config(label, **fields)

    world = ClosedWorld(label)
    embedder, encoder = TorchSource(folder / "token_embedder.pkl"), TorchSource(folder / "encoder.pkl")
    prefix = _prefix(embedder, "projection.weight")
    rules = []
    for part, rows, size, table in (
        ("word", config.vocab_size, config.word_embedding_size, "word_embeddings"),
        ("char", config.char_vocab_size, config.char_embedding_size, "char_embeddings"),
    ):
        if size:
            name, options = f"{prefix}{part}_emb_layer.embedding.weight", ("", f"token_embedder.{part}_dim")
            if (shape := embedder.shapes.get(name)) and shape[0] != rows - 1:
                raise ValueError(
                    f"{folder / part}.dic holds {rows - 1} entries, but {name} in {embedder.path} has {shape[0]} rows. Take "
                    "the dictionary that belongs to the weights."
                )
            rules.append(table_rule(name, (rows - 1, size), options, [f"token_encoder.{table}.weight"]))
    if config.char_embedding_size:
        filters = "token_embedder.filters"
        names = [f"{prefix}convolutions.{number}" for number in range(len(config.char_filters))]
        rules += convolution_rules(config, names, filters, "token_embedder.char_dim")
        rules += highway_rules(config, f"{prefix}highways._layers.", filters)
    options = "encoder.projection_dim", "token_embedder.filters, token_embedder.word_dim"
    world.add(embedder, rules + linear_rules(config, f"{prefix}projection", options))
    prefix = _prefix(encoder, "forward_layer_0.input_linearity.weight")
    world.add(encoder, lstm_rules(config, prefix, ("encoder.projection_dim", "encoder.dim")))
    model = world.build(ElmoModel, config)
    tokenizer = {"max_characters_per_token": config.max_characters_per_token, **SPECIAL_WORDS}
    # A model of words alone has no characters, but the tokenizer must know that words are cut as code points.
    inventory = characters or list(CHARACTER_MARKS)
    return Conversion(model, world, notes + world.notes, tokenizer, vocabulary, inventory)


def read_dictionary(path: Path, marks: Sequence[str]) -> list[str]:
    """The entries of a `.dic` file, by id.

    Args:
        path: lines of "entry<TAB>id"; a line that holds an id alone is U+3000, which the originals strip away.
        marks: entries that must be there.

    Returns:
        The entries; their ids are 0, 1, ...

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no UTF-8, a line of another form, an id or an entry that is there twice, a gap, a missing mark.
    """
    try:
        lines = existing_file(path, "lines of entry<TAB>id").read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}).") from error
    entries: dict[int, str] = {}
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        parts = line.strip().split("\t")
        entry, identity = parts if len(parts) == 2 else (IDEOGRAPHIC_SPACE, parts[0])
        if len(parts) > 2 or not identity.isdecimal():
            raise ValueError(f"{path}, line {number}: expected entry<TAB>id, found {line[:60]!r}.")
        if int(identity) in entries:
            raise ValueError(
                f"{path}, line {number}: id {identity} is there twice, for {entries[int(identity)]!r} and {entry!r}."
            )
        entries[int(identity)] = entry
    if gaps := sorted(set(range(max(entries, default=0) + 1)) - set(entries)):
        raise ValueError(f"{path}: the ids must be 0, 1, ... without gaps; missing: {gaps[:10]}.")
    ordered = [entries[identity] for identity in range(len(entries))]
    numbers = {entry: identity for identity, entry in enumerate(ordered)}
    if twice := [entry for identity, entry in enumerate(ordered) if numbers[entry] != identity]:
        raise ValueError(f"{path}: entries that are there twice: {twice[:5]}.")
    if missing := [mark for mark in marks if mark not in numbers]:
        raise ValueError(f"{path} lacks {missing}; is it a dictionary of ELMoForManyLangs?")
    return ordered


def _architecture(folder: Path) -> tuple[str, dict[str, object], list[str]]:
    """The file that `config.json` names, fields of ElmoConfig, and notes."""
    config = read_json(folder / "config.json", "ELMoForManyLangs' config.json")
    given = config.get("config_path")
    if not isinstance(given, str) or not given:
        raise ValueError(
            f"{folder / 'config.json'} names no config_path. Expected a folder of ELMoForManyLangs."
        )
    base = given.replace("\\", "/").rpartition("/")[2]  # the path before it is often somebody's home
    places = [folder / base, folder / "configs" / base, folder.parent / "configs" / base]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder / 'config.json'} names the architecture {given!r}; {base} lies at none of "
            f"{[str(place) for place in places]}. Put it into the folder."
        )
    label = str(path)
    read = OptionReader(label, read_json(path, "an architecture of ELMoForManyLangs"))
    for part, wanted in (("token_embedder", "cnn"), ("encoder", "elmo")):
        name = read.get(f"{part}.name", wanted)
        if str(name).lower() != wanted:
            raise ValueError(
                f"{label}: option {part}.name must be {wanted!r}, found {name!r}: that is no biLM."
            )
    fields = {
        "projection_size": read.integer("encoder.projection_dim", 1),
        "cell_size": read.integer("encoder.dim", 1),
        "num_hidden_layers": read.integer("encoder.n_layers", 1),
        "cell_clip": read.clip("encoder.cell_clip"),
        "proj_clip": read.clip("encoder.proj_clip"),
        "use_skip_connections": True,
        "forget_bias": 0.0,
        "use_token_projection": True,
        "max_characters_per_token": read.integer("token_embedder.max_characters_per_token", 3),
        "word_embedding_size": read.integer("token_embedder.word_dim", 0, default=0),
        "char_embedding_size": read.integer("token_embedder.char_dim", 0, default=0),
        "char_filters": (),
        "num_highway_layers": 0,
    }
    if fields["projection_size"] >= fields["cell_size"]:
        raise ValueError(
            f"{label}: option encoder.projection_dim ({fields['projection_size']}) must be smaller than encoder.dim "
            f"({fields['cell_size']})."
        )
    if fields["char_embedding_size"]:
        fields["char_activation"] = read.activation("token_embedder.activation")
        fields["char_filters"] = read.filters("token_embedder.filters")
        fields["num_highway_layers"] = read.integer("token_embedder.n_highway", 0, default=0)
    return label, fields, read.notes


def _prefix(source: TorchSource, name: str) -> str:
    """What stands before the names of a state dict that was saved as part of something."""
    found = [key.removesuffix(name) for key in source.original if key == name or key.endswith(f".{name}")]
    if not found:
        raise ValueError(
            f"{source.path} holds no {name}. Expected a part of ELMoForManyLangs; found {list(source.original)[:5]}."
        )
    return min(found, key=len)


__all__ = ["from_efml", "read_dictionary", "read_efml"]
