"""Two language models to an encoder-decoder's checkpoint, with their tokenizers, and verified against them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .saving import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..modeling.inheritance_lstm_seq2seq import LanguageModel


@dataclass(frozen=True)
class VerifiedOrigin:
    """Where one parameter of a checkpoint comes from, and how far it is from there.

    Args:
        parameter: its name.
        shape: its shape.
        origin: as in `Origin`.
        difference: the largest, to the language model's numbers, or, where random, to those that were saved.
    """

    parameter: str
    shape: tuple[int, ...]
    origin: str
    difference: float


def convert_seq2seq(
    source: str | Path | None,
    target: str | Path | None,
    folder: str | Path,
    parts: Iterable[str] = ("embeddings", "lstm", "softmax"),
    source_tokenizer: str | Path | None = None,
    target_tokenizer: str | Path | None = None,
    **config,
) -> tuple[list[VerifiedOrigin], list[str]]:
    """Make an encoder-decoder of two language models, load it again and compare it with them.

    Tokenizers are taken from where the language models are. Equal ones are written once, into the folder; others into
    its folders `source_tokenizer` and `target_tokenizer`. A side without language model and tokenizer reads the other's
    vocabulary.

    Args:
        source: folder or name of the source's language model; None leaves the encoder random. The same one may be on both
            sides, which begin as copies of it and are not tied.
        target: likewise for the decoder.
        folder: a new one.
        parts: as in `from_language_models`.
        source_tokenizer: folder or name of the source's tokenizer, instead of the one beside its language model.
        target_tokenizer: likewise.
        **config: as in `from_language_models`.

    Returns:
        One `VerifiedOrigin` a parameter, and notes.

    Raises:
        FileExistsError: the folder holds something.
        FileNotFoundError: there is no such language model or tokenizer.
        OSError: the folder cannot be written.
        ValueError: as in `from_language_models`, or what was loaded again differs; no folder is made then.
    """
    from transformers import AutoModelForSeq2SeqLM

    from ..modeling.inheritance_lstm_seq2seq import inherit, inherited
    from ..modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration

    parts, names = list(parts), {"source": source, "target": target}
    with new_folder(folder) as place:
        models = {side: _read_whole(name, side) for side, name in names.items() if name is not None}
        given = {"source": source_tokenizer, "target": target_tokenizer}
        tokenizers, notes = _tokenizers(names, given)
        options = _special_tokens(names, tokenizers) | config
        model, note = inherit(
            LstmSeq2SeqForConditionalGeneration, source, target, parts, *tokenizers.values(), options
        )
        model.save_pretrained(place)
        notes = [note, *notes, *save_tokenizers(tokenizers, names, place)]
        loaded = AutoModelForSeq2SeqLM.from_pretrained(place)
        rows = _compare(model, loaded, inherited(models, parts))
    return rows, notes


def _read_whole(name: str | Path, side: str) -> "LanguageModel":
    """As `read_language_model`, and nothing but finite numbers of the right shapes in it."""
    from ..modeling.inheritance_lstm_seq2seq import read_language_model

    try:
        model = read_language_model(name, side)
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise ValueError(
            f"{side}_lm {name} holds weights of other shapes than its config.json says. Copy or convert the checkpoint "
            "again, all files of it, or take an earlier one."
        ) from error
    strange = [
        f"{part} {key}"
        for part, tensors in model.tensors.items()
        for key, tensor in tensors.items()
        if not tensor.isfinite().all()
    ]
    if strange:
        raise ValueError(
            f"{model.name} holds NaN or infinite weights: {', '.join(strange)}. Copy or convert the checkpoint again, or "
            "take an earlier one."
        )
    return model


def _tokenizers(names: dict, given: dict) -> tuple[dict, list[str]]:
    """The tokenizers of both sides, None where there is none, and notes."""
    found: dict[str, PreTrainedTokenizerBase | None] = {}
    for side, name in names.items():
        place = name if given[side] is None else given[side]
        found[side] = None if place is None else load_tokenizer(place)
        if given[side] is not None and found[side] is None:
            raise FileNotFoundError(
                f"{given[side]} holds no tokenizer of the {side}. Give the folder of one, as heirloom train-tokenizer makes it."
            )
        if found[side] is not None and not set(found[side].get_vocab()) - set(found[side].all_special_tokens):
            raise ValueError(
                f"the tokenizer in {place} knows no words, only {sorted(found[side].get_vocab())}, so the {side} would have "
                f"none. Name one with words in --{side}-tokenizer, as heirloom train-tokenizer makes it."
            )
    for side, other in (("source", "target"), ("target", "source")):
        if names[side] is None and found[side] is None and found[other] is not None:
            found[side] = found[other]
            note = f"the {side} has neither language model nor --{side}-tokenizer: it reads the {other}'s vocabulary"
            return found, [note]
    return found, []


def _special_tokens(names: dict, tokenizers: dict) -> dict:
    """Fields of the config that only the tokenizer of a random side can tell, where it has a vocabulary of its own."""
    source, target = tokenizers["source"], tokenizers["target"]
    if source is None or target is None or source.get_vocab() == target.get_vocab():
        return {}
    if names["source"] is None:
        pad = source.pad_token_id
        return {"encoder_pad_token_id": None if pad in (source.bos_token_id, source.eos_token_id) else pad}
    if names["target"] is not None:
        return {}
    begin, end = (
        target.cls_token_id if target.bos_token_id is None else target.bos_token_id,
        target.sep_token_id if target.eos_token_id is None else target.eos_token_id,
    )
    if end is None:
        raise ValueError(
            "the target's tokenizer has neither eos_token nor sep_token, so a translation could not end. Set one."
        )
    ids = {"pad_token_id": target.pad_token_id, "bos_token_id": begin, "eos_token_id": end}
    return ids | {"decoder_start_token_id": end if begin is None else begin}


def load_tokenizer(name: str | Path) -> "PreTrainedTokenizerBase | None":
    """The tokenizer beside a language model; None where there is none.

    Args:
        name: a folder, or a name on the Hub.

    Returns:
        The tokenizer.

    Raises:
        ValueError: its files are there, but cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        files = sorted(path.name for path in Path(name).glob("tokenizer*"))
        if files:
            raise ValueError(f"{name} holds {files}, but no tokenizer can be read: {error}") from error
        return None


def save_tokenizers(tokenizers: dict, names: dict, place: Path) -> list[str]:
    """Write the tokenizers of both sides.

    Args:
        tokenizers: by side; None where there is none.
        names: of the language models, by side.
        place: the checkpoint's folder.

    Returns:
        Notes about what was written and what was not.
    """
    missing = [
        str(names[side]) for side, one in tokenizers.items() if one is None and names[side] is not None
    ]
    notes = [f"no tokenizer beside {name}, so none was written for it" for name in missing]
    found = {side: tokenizer for side, tokenizer in tokenizers.items() if tokenizer is not None}
    if len(found) == 2 and _are_equal(*found.values()):
        found["target"].save_pretrained(place)
        return [*notes, "the tokenizers are equal: one was written"]
    for side, tokenizer in found.items():
        tokenizer.save_pretrained(place / f"{side}_tokenizer")
    return [*notes, *(f"{side} tokenizer: {side}_tokenizer" for side in found)]


def _are_equal(one, other) -> bool:
    """Whether two tokenizers make the same ids of every text."""
    if one.get_vocab() != other.get_vocab():
        return False
    if one.is_fast and other.is_fast:
        return one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()
    return type(one) is type(other)


def _compare(model, loaded, wanted: dict) -> list[VerifiedOrigin]:
    """Every parameter of the loaded model beside the language models' `wanted`, or else beside what was saved."""
    wanted, found, rows = model.state_dict() | wanted, loaded.state_dict(), []
    for row in model.origins:
        difference = (found[row.parameter].double() - wanted[row.parameter].double()).abs().max().item()
        rows.append(VerifiedOrigin(row.parameter, row.shape, row.origin, difference))
    if wrong := [row.parameter for row in rows if not row.difference == 0]:
        raise ValueError(
            f"Verification failed: the checkpoint differs from the language models in {wrong}. Nothing was kept."
        )
    return rows


__all__ = ["VerifiedOrigin", "convert_seq2seq", "load_tokenizer", "save_tokenizers"]
