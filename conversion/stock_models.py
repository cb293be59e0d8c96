"""Language models of Transformers, read to become an `EncoderDecoderModel`: which are refused, and which ids they have.

Letters: B batch, T length.
"""

import contextlib
import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from ..modeling.auto_map import AUTO_MAP
from ..training.checkpoints import refuse_gaps
from .seq2seq import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TARGETS = "GPT-2, XGLM, or BERT, RoBERTa, ELECTRA and their like trained with is_decoder=True"
PADDED_ROWS = 128  # embeddings are often padded to a multiple of up to this
TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model")


def is_stock(source: str | Path | None, target: str | Path | None) -> bool:
    """Whether an encoder-decoder of these would be one of Transformers, not one of heirloom.

    Args:
        source: folder or name of a checkpoint; or None.
        target: likewise.

    Returns:
        True where both are models of Transformers, False where neither is.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: one of each, no checkpoint, or only one side of Transformers.
    """
    kinds = {
        f"{side} {name}": model_type(name, side)
        for side, name in (("source", source), ("target", target))
        if name is not None
    }
    ours = {label for label, kind in kinds.items() if kind in AUTO_MAP}
    if not kinds or len(ours) == len(kinds):
        return False
    if ours:
        found = " and ".join(f"{label} is {kind!r}" for label, kind in kinds.items())
        raise ValueError(
            f"{found}: one is heirloom's, the other Transformers' own. Expected two LSTM language models, or two of "
            "Transformers'; give both sides the same kind."
        )
    if len(kinds) == 1:
        raise ValueError(f"{next(iter(kinds))} is alone. Expected both --source and --target.")
    return True


def label_of(model: "str | Path | PreTrainedModel", side: str) -> str:
    """What messages call a model."""
    return f"{side} {model if isinstance(model, str | Path) else type(model).__name__}"


def model_type(name: str | Path, side: str) -> str | None:
    """What kind of checkpoint it is; the errors say where none is."""
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(
            f"{side} {name} holds no config.json; expected a checkpoint folder (save_pretrained)."
        )
    if not path.exists() and (str(name).startswith((".", "/", "~")) or str(name).count("/") > 1):
        raise FileNotFoundError(f"{side} {name} does not exist, expected a checkpoint folder.")
    return PreTrainedConfig.get_config_dict(name)[0].get("model_type")


def _config(model, label: str) -> PreTrainedConfig:
    """A copy of a stock model's config."""
    if isinstance(model, str | Path):
        model_type(model, label.partition(" ")[0])
        config = AutoConfig.from_pretrained(model)
    else:
        config = copy.deepcopy(model.config)
    if not type(config).__module__.startswith("transformers."):
        raise ValueError(
            f"{label} is {config.model_type!r}, which is not of Transformers; the folder could not be read without its "
            "package. Expected a model of Transformers."
        )
    if config.is_encoder_decoder:
        raise ValueError(
            f"{label} is an encoder-decoder already ({config.model_type!r}). Expected a model of one language: an encoder "
            "or a language model."
        )
    return config


def source_config(model: "str | Path | PreTrainedModel", label: str) -> PreTrainedConfig:
    """The config of an encoder; refused where the model reads no text."""
    config = _config(model, label)
    kind = MODEL_MAPPING.get(type(config), None)
    if getattr(kind, "main_input_name", None) != "input_ids" or not hasattr(config, "hidden_size"):
        raise ValueError(
            f"{label} is {config.model_type!r}, which reads no text that an encoder could take. Expected an encoder or a "
            "language model such as BERT, RoBERTa, ELECTRA or GPT-2."
        )
    for switch in ("is_decoder", "add_cross_attention"):
        if getattr(config, switch, False):
            setattr(config, switch, False)
    return config


def target_config(model: "str | Path | PreTrainedModel", label: str) -> PreTrainedConfig:
    """The config of a target; refused where it has no language model, or none that could read a source."""
    config = _config(model, label)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if kind is None:
        raise ValueError(
            f"{label} is {config.model_type!r}, of which Transformers has no causal language model. Expected {TARGETS}."
        )
    if "encoder_hidden_states" not in inspect.signature(kind.forward).parameters:
        raise ValueError(
            f"{label} is {config.model_type!r}, and {kind.__name__} has no cross-attention: it cannot read a source. "
            f"Expected {TARGETS}."
        )
    return config


def find_tokenizer(model, tokenizer) -> "PreTrainedTokenizerBase | None":
    """The tokenizer that was given, or else the one beside the model."""
    if tokenizer is None and isinstance(model, str | Path):
        return tokenizer_beside(model)
    return AutoTokenizer.from_pretrained(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer


def tokenizer_beside(name: str | Path) -> "PreTrainedTokenizerBase | None":
    """The tokenizer of a checkpoint; of a folder without files for one, Transformers makes an empty one, which is None."""
    path = Path(name)
    if path.is_dir() and not any(file for pattern in TOKENIZER_FILES for file in path.glob(pattern)):
        return None
    return load_tokenizer(name)


def fit_tokenizer(config: PreTrainedConfig, tokenizer, side: str, label: str) -> list[str]:
    """Refuse a tokenizer of another vocabulary; a note where rows are left over."""
    if tokenizer is None:
        return []
    rows, ids = config.vocab_size, max(tokenizer.get_vocab().values()) + 1
    if ids > rows or rows - ids >= PADDED_ROWS:
        raise ValueError(
            f"The {side}'s tokenizer has {ids} ids, but {label} has {rows} words. Give the tokenizer that it was trained "
            "with; if both belong together, resize_token_embeddings of the model first."
        )
    return (
        [f"{label} has {rows} words, its tokenizer {ids} ids: the last are never read"] if ids < rows else []
    )


def special_ids(config: PreTrainedConfig, tokenizer, label: str) -> tuple[dict[str, int], list[str]]:
    """All that generation needs to know, of the target's config and its tokenizer; and notes."""
    found: dict[str, int | None] = {}
    for name, alias in (("bos", "cls"), ("eos", "sep"), ("pad", "pad")):
        known = _id_of(config, f"{name}_token_id")
        told = getattr(tokenizer, f"{name}_token_id", None)
        told = getattr(tokenizer, f"{alias}_token_id", None) if told is None else told
        if None not in (known, told) and known != told:
            raise ValueError(
                f"The target's tokenizer has {name}_token_id {told}, but {label} has {known} in its config. Give the "
                "tokenizer that the language model was trained with, or correct the config."
            )
        found[name] = known if told is None else told
    start = _id_of(config, "decoder_start_token_id")
    found["decoder_start"] = found["bos"] if start is None else start
    if missing := [name for name in ("decoder_start", "eos") if found[name] is None]:
        raise ValueError(
            f"{label} has no id for {' and '.join(missing)} within its {config.vocab_size} words, neither in its config nor "
            "its tokenizer's bos, eos, cls and sep. Set bos_token_id and eos_token_id in the config of the target, or give "
            "target_tokenizer."
        )
    notes = []
    if found["pad"] is None:
        found["pad"] = found["eos"]
        notes.append(f"{label} has no pad: its eos, {found['eos']}, was chosen")
    if found["pad"] == found["decoder_start"]:
        notes.append(
            "pad is also decoder_start: an EncoderDecoderModel that is given labels alone hides the start from attention. "
            "Give it decoder_input_ids too, as DataCollatorForSeq2Seq(tokenizer, model=model) does"
        )
    return {f"{name}_token_id": token for name, token in found.items() if token is not None}, notes


def _id_of(config: PreTrainedConfig, name: str) -> int | None:
    """An id in a config, if it is of a word: defaults such as GPT-2's 50256 remain in configs of other sizes."""
    found = getattr(config, name, None)
    found = found[0] if isinstance(found, list) and found else found
    return found if isinstance(found, int) and 0 <= found < config.vocab_size else None


def load_weights(
    auto_class: type, model: "str | Path | PreTrainedModel", config: PreTrainedConfig, label: str
) -> tuple[PreTrainedModel, list[str]]:
    """Load an encoder (`AutoModel`) or a language model.

    Args:
        auto_class: `AutoModel` or `AutoModelForCausalLM`.
        model: a folder or name, or a model to copy.
        config: for the new one.
        label: for messages.

    Returns:
        The model in evaluation mode, and parameters that were not there: only a pooler, which no decoder uses.

    Raises:
        ValueError: other weights are missing, or some are of another shape than the config says, NaN or infinite.
    """
    if isinstance(model, str | Path):
        loaded, report = auto_class.from_pretrained(
            model, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
        missing, mismatched = report["missing_keys"], report["mismatched_keys"]
    else:
        loaded = auto_class.from_config(config).to(model.dtype)
        given = model.base_model if auto_class is AutoModel else model
        missing = loaded.load_state_dict(given.state_dict(), strict=False).missing_keys
        loaded, mismatched = loaded.to(model.device), ()
    if lost := sorted(name for name in missing if not name.startswith("pooler.")):
        is_lm = auto_class is AutoModelForCausalLM
        raise ValueError(
            f"{label} lacks {'language-model weights' if is_lm else 'weights'}: {', '.join(lost[:5])}"
            f"{' ...' if lost[5:] else ''}. Expected a checkpoint "
            f"{f'of {type(loaded).__name__}' if is_lm else 'of an encoder or a language model'}."
        )
    refuse_gaps(label, loaded, mismatched=mismatched)
    return loaded.eval(), sorted(missing)


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether a change of the last token leaves what was computed before it."""
    ids = some_ids(model.config.vocab_size, model.device)
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % model.config.vocab_size
    one, two = (model(input_ids=each)[0][:, :-1].float() for each in (ids, other))
    return (one - two).abs().max().item() <= 1e-6 * one.abs().max().item()


def some_ids(words: int, device: torch.device, length: int = 6) -> Tensor:
    """(B, T) ids that are the same each time, without touching the random numbers of the caller."""
    return torch.randint(words, (4, length), generator=torch.Generator().manual_seed(length)).to(device)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without reports on missing heads and poolers: what matters of them is refused or told here."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


__all__ = [
    "TARGETS",
    "find_tokenizer",
    "fit_tokenizer",
    "is_causal",
    "is_stock",
    "label_of",
    "load_weights",
    "model_type",
    "quiet",
    "some_ids",
    "source_config",
    "special_ids",
    "target_config",
    "tokenizer_beside",
]
