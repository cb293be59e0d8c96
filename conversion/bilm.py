"""bilm-tf's options.json + weights.hdf5 (the format of the published ELMo models) to heirloom and back, bit for bit.

What the arrays are called and how they map to parameters: rules.py; what the options mean: options.py.

Letters: V words, P projection.
"""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from .closed_world import ClosedWorld, Hdf5Source
from .options import BYTE_INVENTORY, BilmOptions, make_config, mark_ids, read_options, write_options
from .rules import bilm_rules, canonical_name, option_hint, softmax_rules
from .vocabulary import check_size, read_vocabulary, repeated_words, special_ids, write_vocabulary

if TYPE_CHECKING:
    from ..modeling.configuration_elmo import ElmoConfig
    from ..modeling.modeling_elmo import ElmoForPreTraining, ElmoModel, ElmoPreTrainedModel
    from ..tokenization.tokenization_elmo import ElmoTokenizer

SPECIAL_WORDS = {"bos_token": "<S>", "eos_token": "</S>", "unk_token": "<UNK>"}


@dataclass
class Conversion:
    """A converted model, and what is needed to verify it and to save it with its tokenizer.

    Args:
        model: the model, in float32 and evaluation mode.
        world: the rules that made it, with their files.
        notes: what was odd, but usable.
        tokenizer: arguments of ElmoTokenizer; None where no tokenizer fits the model.
        words: of the vocabulary, in order; None means specials only.
        characters: of a model that reads code points, in order.
        extras: scalar mixes and the like, by name.
    """

    model: "ElmoPreTrainedModel"
    world: ClosedWorld
    notes: list[str] = field(default_factory=list)
    tokenizer: dict[str, object] | None = None
    words: list[str] | None = None
    characters: list[str] | None = None
    extras: dict[str, object] = field(default_factory=dict)

    def make_tokenizer(self) -> "ElmoTokenizer | None":
        """The tokenizer that belongs to the model; None where none fits."""
        if self.tokenizer is None:
            return None
        from ..tokenization.tokenization_elmo import ElmoTokenizer

        taken, pad = set(self.words or ()), "<pad>"  # a name for id 0 that is no word
        while pad in taken:
            pad = f"<{pad}>"
        files = {"vocab_file": self.words, "char_vocab_file": self.characters}
        return ElmoTokenizer(**files, **self.tokenizer, pad_token=pad)


def from_bilm(
    options: str | Path | Mapping,
    weights: str | Path,
    softmax: str | Path | None = None,
    vocab: str | Path | Sequence[str] | None = None,
) -> "ElmoModel | ElmoForPreTraining":
    """Load a biLM from bilm-tf's files.

    Args:
        options: `options.json`, or its contents.
        weights: the HDF5 file.
        softmax: the HDF5 file with `softmax/W` (V, P) and `softmax/b` (V,); by default the weights' own, if there.
        vocab: the vocabulary, one word a line, or its words; V is checked against it.

    Returns:
        `ElmoForPreTraining` where there is a softmax, else `ElmoModel`; float32, in evaluation mode.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: files that are broken, no ELMo, or do not belong together; all mismatches are named in one message.
    """
    conversion = read_bilm(options, weights, softmax, vocab)
    for note in conversion.notes:
        warnings.warn(note, stacklevel=2)
    return conversion.model


def to_bilm(
    model: "ElmoPreTrainedModel",
    folder: str | Path,
    vocab: "str | Path | Sequence[str] | object | None" = None,
) -> None:
    """Write a biLM as bilm-tf's `options.json`, `weights.hdf5` and, where it has a softmax, `softmax.hdf5`.

    Args:
        model: any ELMo model; of a model with a task head, the biLM is written.
        folder: where to; it is made. Files that are there already are not replaced.
        vocab: a vocabulary file, its words, or an ElmoTokenizer, to be written as `vocab.txt`.

    Raises:
        FileExistsError: one of the files is there.
        ValueError: a model that the format cannot hold, or a vocabulary of another size.
    """
    for note in write_bilm(model, folder, vocab):
        warnings.warn(note, stacklevel=2)


def read_bilm(
    options: str | Path | Mapping,
    weights: str | Path,
    softmax: str | Path | None = None,
    vocab: str | Path | Sequence[str] | None = None,
) -> Conversion:
    """As `from_bilm`, with all that belongs to the model.

    Args:
        options: as in `from_bilm`.
        weights: as in `from_bilm`.
        softmax: as in `from_bilm`.
        vocab: as in `from_bilm`.

    Returns:
        The conversion.

    Raises:
        FileNotFoundError: as in `from_bilm`.
        ValueError: as in `from_bilm`.
    """
    from ..modeling.modeling_elmo import ElmoForPreTraining, ElmoModel

    settings = read_options(options)
    source = Hdf5Source(weights, canonical_name)
    _refuse_one_direction(source)
    world = ClosedWorld(settings.label, option_hint)
    fields, notes = dict(settings.fields), list(settings.notes)
    if settings.has_characters and "char_embed" in source:
        inventory, note = _inventory(source, settings)
        fields |= inventory
        notes += note
    if fields.get("char_embedding_size") and "embedding" in source:
        world.leave(
            source,
            "embedding",
            "it is bilm-tf's dumped table of word vectors, which this model computes from characters",
        )
    softmax_source = source if softmax is None else Hdf5Source(softmax, canonical_name)
    has_softmax = softmax is not None or "softmax/W" in source or "softmax/b" in source
    if softmax is not None:
        for name in ("softmax/W", "softmax/b"):
            if name in source:
                world.leave(source, name, f"the softmax is taken from {softmax_source.path.name}")
    shared = not settings.has_characters and has_softmax and "softmax/W" not in softmax_source
    rows = _rows(softmax_source, "softmax/b" if shared else "softmax/W") if has_softmax else None
    if not settings.has_characters:
        rows = _rows(source, "embedding") or settings.num_words
        if settings.num_words not in (None, rows):
            raise ValueError(
                f"{settings.label}: option n_tokens_vocab is {settings.num_words}, but embedding in {source.path} has {rows} "
                "rows. Take the options that belong to the weights."
            )
    elif rows is not None and settings.num_words not in (None, rows):
        notes.append(
            f"{settings.label}: option n_tokens_vocab is {settings.num_words}, the softmax has {rows} rows"
        )
    words = None
    if vocab is not None:
        words, label = read_vocabulary(vocab)
        where = None
        if rows is not None:
            where = "embedding" if not settings.has_characters else "softmax/b" if shared else "softmax/W"
            where = f"{where} in {(softmax_source if has_softmax else source).path}"
            check_size(words, label, rows, where)
        notes += repeated_words(words, label, where)
        fields |= special_ids(words, label, SPECIAL_WORDS)
        rows = len(words)
    if rows is not None:
        fields["vocab_size"] = rows + 1
    fields["tie_word_embeddings"] = shared
    projected = "CNN_proj/W_proj" in source or "CNN_proj/b_proj" in source
    if settings.has_characters and projected:
        filters = sum(count for _, count in fields["char_filters"])
        fields["use_token_projection"] = True if filters == fields["projection_size"] else None
    config = make_config(settings.label, **fields)

    prefix = "elmo." if has_softmax else ""
    world.add(source, bilm_rules(config, prefix, tied_softmax=shared))
    if has_softmax:
        world.add(softmax_source, softmax_rules(config, tied=shared))
    model = world.build(ElmoForPreTraining if has_softmax else ElmoModel, config)
    if shared:
        model.tie_weights()
        world.notes.append(
            f"{source.path.name}: no softmax/W; embedding is used for it (share_embedding_softmax)"
        )
    tokenizer = {"max_characters_per_token": config.max_characters_per_token, **SPECIAL_WORDS}
    if config.char_embedding_size and config.char_vocab_size <= BYTE_INVENTORY:
        tokenizer = None
    return Conversion(model, world, notes + world.notes, tokenizer, words)


def write_bilm(model, folder, vocab=None) -> list[str]:
    """As `to_bilm`.

    Args:
        model: as in `to_bilm`.
        folder: as in `to_bilm`.
        vocab: as in `to_bilm`.

    Returns:
        What the format could not keep.

    Raises:
        FileExistsError: as in `to_bilm`.
        ValueError: as in `to_bilm`.
    """
    config, folder = model.config, Path(folder)
    refuse_unwritable(config)
    words = None
    if vocab is not None:
        words, label = read_vocabulary(vocab)
        check_size(words, label, config.vocab_size - 1, "the model (vocab_size - 1)")
    state, notes = bilm_state(model)
    options, files = write_options(config), {"weights.hdf5": bilm_rules(config)}
    if "softmax.weight" in state:
        files["softmax.hdf5"] = softmax_rules(config, tied=config.tie_word_embeddings)
        if config.tie_word_embeddings:
            options["share_embedding_softmax"] = True
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("options.json", *files, *(["vocab.txt"] if words else [])):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} is there already. Choose another folder or delete it.")
    (folder / "options.json").write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    for name, rules in files.items():
        with h5py.File(folder / name, "x") as file:
            for rule in rules:
                array = rule.join(*[state[parameter] for parameter in rule.parameters])
                file.create_dataset(rule.name, data=np.ascontiguousarray(array, dtype=np.float32))
    if words:
        write_vocabulary(words, folder / "vocab.txt")
    return notes


def bilm_state(model: "ElmoPreTrainedModel") -> tuple[dict[str, np.ndarray], list[str]]:
    """A model's parameters as float32 arrays that leave out a forget bias of 1.

    Args:
        model: any ELMo model.

    Returns:
        Arrays by the names of ElmoModel, `softmax.*` and parts of heads; and what bilm-tf's format cannot keep.
    """
    config, notes = model.config, []
    state = {
        name.removeprefix("elmo."): tensor.detach().float().cpu().numpy()
        for name, tensor in model.state_dict().items()
    }
    if config.forget_bias != 1:
        largest = 0.0
        for name in [name for name in state if name.startswith("lstm.") and name.endswith(".bias")]:
            array = state[name] = state[name].copy()
            forget = slice(len(array) // 4, len(array) // 2)
            before = array[forget] + np.float32(config.forget_bias)
            array[forget] = before - np.float32(1)
            largest = max(largest, float(np.abs(array[forget] + np.float32(1) - before).max(initial=0.0)))
        notes.append(
            f"the model's forget bias is {config.forget_bias:g}, bilm-tf's files leave out 1: the rest was written, rounded "
            f"to float32 (largest rounding difference {largest:.3g})"
        )
    if model.dtype.itemsize > 4:
        notes.append("the model's float64 numbers were rounded to float32")
    if heads := sorted({name.split(".")[0] for name in state} - {"token_encoder", "lstm", "softmax"}):
        notes.append(f"bilm-tf's format has no place for the task head; not written: {heads}")
    if "softmax.head.weight" in state:
        notes.append("bilm-tf's format has no place for an adaptive softmax; only the biLM was written")
    if config.has_token_projection and config.num_features == config.projection_size:
        notes.append(
            "CNN_proj leads from P to P features: AllenNLP reads it, bilm-tf leaves such a layer out"
        )
    return state, notes


def refuse_unwritable(config: "ElmoConfig") -> None:
    """Refuse a model that bilm-tf's format has no form for.

    Args:
        config: of the model.

    Raises:
        ValueError: what about the model does not fit.
    """
    reason = None
    if config.char_embedding_size and config.word_embedding_size:
        reason = "it reads words and characters together (word_embedding_size and char_embedding_size)"
    elif not config.char_embedding_size and (
        config.has_token_projection or config.word_embedding_size != config.projection_size
    ):
        reason = "its word vectors are projected (use_token_projection)"
    elif config.char_embedding_size:
        expected, _ = mark_ids(config.char_vocab_size - 1, "the character table")
        wrong = {name: getattr(config, name) for name in expected if getattr(config, name) != expected[name]}
        if wrong:
            reason = (
                f"its characters are not bytes with bilm-tf's marks ({wrong}, bilm-tf's: "
                f"{ {name: expected[name] for name in wrong} }); a model of code points has no such form"
            )
    if reason:
        raise ValueError(
            f"This model cannot be written as bilm-tf files: {reason}. Keep the checkpoint as it is."
        )


def _rows(source: Hdf5Source, name: str) -> int | None:
    shape = source.shapes.get(name, ())
    return shape[0] if shape else None


def _inventory(source: Hdf5Source, settings: BilmOptions) -> tuple[dict[str, int], list[str]]:
    """Fields of the character table, whose rows decide, and notes."""
    rows = _rows(source, "char_embed")
    if rows is None:
        raise ValueError(f"{source.path}: char_embed must be a table (K, E), found a single number.")
    marks, note = mark_ids(rows, f"char_embed in {source.path}")
    notes = [note] if note else []
    if settings.num_characters not in (None, rows, rows + 1):
        notes.append(
            f"{settings.label}: option char_cnn.n_characters is {settings.num_characters}, char_embed has {rows} rows; the "
            "rows decide"
        )
    return marks | {"char_vocab_size": rows + 1}, notes


def _refuse_one_direction(source: Hdf5Source) -> None:
    backward = any(name.startswith("RNN_1/") for name in source.original)
    forward = [
        label for name, label in source.original.items() if re.match("RNN_0/|rnn/|RNN/|RNN_0_?$", name)
    ]
    if forward and not backward:
        raise ValueError(
            f"{source.path} holds a forward language model only ({forward[0]!r}, ..., and no RNN_1/...). An ELMo needs both "
            "directions; train with bidirectional=true."
        )


__all__ = ["Conversion", "from_bilm", "read_bilm", "to_bilm", "write_bilm"]
