"""How an LSTM encoder-decoder begins as two language models: what fits, what is copied, and a table of what came from where.

Ramachandran, Liu & Le 2017, figure 1: embeddings and first layer of each side and the decoder's softmax come from the
language models; the source's softmax is kept for its loss; the rest is random.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .configuration_lstm_seq2seq import LstmSeq2SeqConfig
from .modeling_lstm_lm import LstmLMForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PARTS = ("embeddings", "lstm", "softmax")
PLACES = {
    "source": dict(zip(PARTS, ("encoder.embed_tokens", "encoder.layers.0", "encoder_lm_head"), strict=True)),
    "target": dict(zip(PARTS, ("decoder.embed_tokens", "decoder.layers.0", "lm_head"), strict=True)),
}
SIZES = ("embedding_size", "cell_size", "projection_size")
NO_WORD = -100.0  # logit of a row that ELMo's softmax leaves out: a probability below 1e-40


@dataclass(frozen=True)
class Origin:
    """Where one parameter comes from.

    Args:
        parameter: its name.
        shape: its shape.
        origin: "source LM", "target LM", "source LM, kept for its loss", "random", "zero", or "shares ...".
    """

    parameter: str
    shape: tuple[int, ...]
    origin: str


@dataclass
class LanguageModel:
    """What of a language model an encoder-decoder can take.

    Args:
        name: for messages.
        settings: of the sizes and the softmax, by the names of `LstmLMConfig`.
        tokens: ids of `pad`, `bos` and `eos`.
        tied: whether its softmax is its embedding.
        tensors: for each part, its parameters by the names of `nn.Embedding`, `nn.LSTM` or the softmax.
    """

    name: str
    settings: dict
    tokens: dict[str, int | None]
    tied: bool
    tensors: dict[str, dict[str, Tensor]]


def inherit(
    cls, source_lm, target_lm, parts, source_tokenizer, target_tokenizer, options: dict
) -> tuple["PreTrainedModel", str]:
    """As `from_language_models`, which documents the arguments, without printing.

    Args:
        cls: class of the new model.
        source_lm: of the encoder.
        target_lm: of the decoder.
        parts: what to take.
        source_tokenizer: of the source.
        target_tokenizer: of the target.
        options: fields of the config.

    Returns:
        The model with its `origins`, and a line about the vocabularies.

    Raises:
        ValueError: as in `from_language_models`.
    """
    parts = _checked_parts(parts)
    given = {"source": source_lm, "target": target_lm}
    if source_lm is None and target_lm is None:
        raise ValueError(
            "from_language_models needs source_lm, target_lm or both, found neither. For a model without any, call "
            "the class with a config."
        )
    if source_lm is not None and options.get("bidirectional_encoder"):
        raise ValueError(
            "a bidirectional_encoder cannot begin as a language model, which reads one way; found it with source_lm. "
            "Use bidirectional_encoder=False, or source_lm=None."
        )
    models = {side: read_language_model(lm, side) for side, lm in given.items() if lm is not None}
    tokenizers = {"source": source_tokenizer, "target": target_tokenizer}
    vocabularies = {
        side: _vocabulary(side, tokenizer, models.get(side)) for side, tokenizer in tokenizers.items()
    }
    config = LstmSeq2SeqConfig(**_fields(models, vocabularies, parts, options))
    model = cls(config)
    tables = [lm.tensors["embeddings"]["weight"] for lm in models.values()]
    kind = torch.promote_types(tables[0].dtype, tables[-1].dtype)
    model = model.to(device=tables[-1].device, dtype=kind).eval()
    model.origins = _copy(model, models, parts)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        setattr(model.generation_config, name, getattr(config, name))
    if config.encoder_vocab_size is None:
        note = f"one joint vocabulary of {config.vocab_size:,} tokens"
    else:
        note = f"{config.encoder_vocab_size:,} source and {config.vocab_size:,} target tokens of their own"
    compared = all(vocabulary is not None for vocabulary in vocabularies.values())
    return model, f"vocabularies: {note}, {'' if compared else 'not '}compared by content"


def origins_table(origins: list[Origin]) -> str:
    """The table as text, one line a parameter, and a sum.

    Args:
        origins: of all parameters.

    Returns:
        Lines without a break at the end.
    """
    rows = [("parameter", "shape", "from")]
    rows += [(row.parameter, " x ".join(map(str, row.shape)), row.origin) for row in origins]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    counts = {"language models": 0, "random or zero": 0}
    for row in origins:
        if not row.origin.startswith("shares"):
            size = torch.Size(row.shape).numel()
            counts["language models" if " LM" in row.origin else "random or zero"] += size
    return "\n".join([*lines, "numbers: " + ", ".join(f"{n:,} from {name}" for name, n in counts.items())])


def inherited(models: Mapping[str, LanguageModel], parts: Iterable[str] = PARTS) -> dict[str, Tensor]:
    """What the new model's parameters are to be.

    Args:
        models: by side.
        parts: what to take of each.

    Returns:
        The language models' tensors by the names of the encoder-decoder's parameters.
    """
    return {
        f"{PLACES[side][part]}.{name}": tensor
        for side, model in models.items()
        for part in parts
        for name, tensor in model.tensors[part].items()
    }


def read_language_model(model, side: str) -> LanguageModel:
    """What can be taken of a language model.

    Args:
        model: a folder or name, an `LstmLMForCausalLM`, or an `ElmoForPreTraining`.
        side: "source" or "target", for messages.

    Returns:
        Its parts.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no language model, or one that is not a single LSTM layer from left to right.
    """
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    label = f"{side}_lm {name}"
    if isinstance(model, str | Path):
        model = _load(model, label)
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind == "lstm-lm" and hasattr(model, "lm_head"):
        return _of_lstm_lm(model, label)
    if kind == "elmo" and hasattr(model, "softmax"):
        return _of_elmo(model, label)
    raise ValueError(
        f"{label} is no causal LSTM language model (model type {kind!r}, class {type(model).__name__}). Expected an "
        "LstmLMForCausalLM, as `heirloom pretrain` makes it, or an ElmoForPreTraining."
    )


def _load(name: str | Path, label: str):
    from transformers import (
        AutoModelForPreTraining,  # later: the Auto classes import this file to register its model
    )

    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{label} holds no config.json; expected a checkpoint folder (save_pretrained).")
    if not path.exists() and (
        str(name).startswith((".", "/", "~")) or str(name).count("/") > 1 or path.is_file()
    ):
        raise FileNotFoundError(f"{label} does not exist, expected a checkpoint folder.")
    kind = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    classes = {"lstm-lm": LstmLMForCausalLM, "elmo": AutoModelForPreTraining}
    if kind not in classes:
        raise ValueError(
            f"{label} is a checkpoint of {kind!r}, expected one of a causal LSTM language model, 'lstm-lm' or 'elmo'."
        )
    model, report = classes[kind].from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{label} is no whole language model: {missing} are not in the checkpoint. Save the model with its softmax."
        )
    return model


def _of_lstm_lm(model, label: str) -> LanguageModel:
    config = model.config
    if config.num_hidden_layers != 1:
        raise ValueError(
            f"{label} has {config.num_hidden_layers} layers, expected 1: the encoder-decoder's first layer stands for the "
            "whole language model, whose softmax reads it. Train a language model with num_hidden_layers=1."
        )
    names = (*SIZES, "vocab_size", "dropout", "softmax", "num_sampled", "adaptive_cutoffs")
    return LanguageModel(
        name=label,
        settings={name: getattr(config, name) for name in names},
        tokens={name: getattr(config, f"{name}_token_id") for name in ("pad", "bos", "eos")},
        tied=config.tie_word_embeddings,
        tensors={
            "embeddings": dict(model.model.embed_tokens.named_parameters()),
            "lstm": dict(model.model.layers[0].named_parameters()),
            "softmax": dict(model.lm_head.named_parameters()),
        },
    )


@torch.no_grad()
def _of_elmo(model, label: str) -> LanguageModel:
    """The forward half of a biLM over whole words with one unclipped layer, which is such a language model exactly."""
    config, faults = model.config, []
    if config.char_embedding_size:
        faults.append("it reads words by their characters, not by a table (char_embedding_size)")
    if config.num_hidden_layers != 1:
        faults.append(f"it has {config.num_hidden_layers} layers, expected 1")
    if config.cell_clip is not None:
        faults.append(f"it clips cells at {config.cell_clip:g}, which nn.LSTM cannot (cell_clip)")
    if config.proj_clip is not None and config.cell_size != config.projection_size:
        faults.append(f"it clips projections at {config.proj_clip:g}, which nn.LSTM cannot (proj_clip)")
    if config.softmax == "adaptive":
        faults.append("its adaptive softmax has no row for each id")
    if faults:
        raise ValueError(
            f"The forward half of {label} cannot be an LSTM language model with the same numbers: {'; '.join(faults)}. "
            "Train an lstm-lm, or a biLM in word mode with one layer and no clipping."
        )
    words = torch.arange(config.vocab_size, device=model.device)
    layer, cells = model.elmo.lstm.forward_layers[0], config.cell_size
    forget = torch.zeros_like(layer.bias)
    forget[cells : 2 * cells] = layer.forget_bias
    lstm = {"weight_ih_l0": layer.weight_ih, "weight_hh_l0": layer.weight_hh}
    lstm |= {"bias_ih_l0": layer.bias, "bias_hh_l0": forget}
    if layer.weight_proj is not None:
        lstm["weight_hr_l0"] = layer.weight_proj
    bias = model.softmax.bias.clone()
    bias[0] = NO_WORD
    return LanguageModel(
        name=label,
        settings={
            "embedding_size": config.projection_size,
            "cell_size": cells,
            "projection_size": None if layer.weight_proj is None else config.projection_size,
            "vocab_size": config.vocab_size,
            "dropout": config.dropout,
            "softmax": config.softmax,
            "num_sampled": config.num_sampled,
            "adaptive_cutoffs": None,
        },
        tokens={name: getattr(config, f"{name}_token_id") for name in ("pad", "bos", "eos")},
        tied=config.tie_word_embeddings,
        tensors={
            "embeddings": {"weight": model.elmo.token_encoder(words, None)},
            "lstm": lstm,
            "softmax": {"weight": model.softmax.weight, "bias": bias},
        },
    )


def _checked_parts(parts: Iterable[str]) -> tuple[str, ...]:
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    if not parts or (strange := set(parts) - set(PARTS)):
        found = sorted(strange) if parts else "none"
        raise ValueError(f"parts must be some of {list(PARTS)}, found {found}.")
    return parts


def _vocabulary(side: str, tokenizer, model: LanguageModel | None) -> dict[str, int] | None:
    """The tokens and their ids, if they fit the language model; None without a tokenizer."""
    if tokenizer is None:
        return None
    if isinstance(tokenizer, str | Path):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    vocabulary = tokenizer.get_vocab()
    if model is None:
        return vocabulary
    rows, ids = model.settings["vocab_size"], max(vocabulary.values()) + 1
    if rows != ids:
        raise ValueError(
            f"{side}_tokenizer has {ids} ids, but {model.name} has {rows} words. Give the tokenizer that the language "
            "model was trained with; if both belong together, resize_token_embeddings of the language model first."
        )
    for name, token in model.tokens.items():
        found = getattr(tokenizer, f"{name}_token_id", None)
        if None not in (found, token) and found != token:
            raise ValueError(
                f"{side}_tokenizer has {name}_token_id {found}, but {model.name} has {token}. Give the tokenizer that the "
                "language model was trained with."
            )
    return vocabulary


def _fields(models: Mapping, vocabularies: Mapping, parts, options: dict) -> dict:
    """Fields of the new config: what the language models say, and the options that do not contradict them."""
    known = {field.name for field in fields(LstmSeq2SeqConfig)}
    if strange := sorted(set(options) - known):
        raise ValueError(f"LstmSeq2SeqConfig has no field {strange}; options are its fields.")
    source, target = models.get("source"), models.get("target")
    first = target or source
    if source and target:
        _refuse_other_sizes(source, target)
    found = dict(first.settings) | {
        "upper_size": first.settings["projection_size"] or first.settings["cell_size"]
    }
    linear = {"full", "sampled"}
    for name in (*SIZES, "softmax"):
        if name in options and options[name] != found[name] and not {options[name], found[name]} <= linear:
            raise ValueError(
                f"{name} is {found[name]} in {first.name}, found {options[name]}. Leave it out: it comes from the "
                "language models."
            )
    found |= _vocabulary_fields(models, vocabularies, options)
    tied = all(model.tied for model in models.values())
    whole = {"embeddings", "softmax"} <= set(parts)
    if options.get("tie_word_embeddings") and not (tied and whole):
        loose = [model.name for model in models.values() if not model.tied]
        raise ValueError(
            "tie_word_embeddings=True needs embeddings and softmax from language models that are tied themselves, found "
            f"parts {list(parts)}" + (f" and untied {loose}" if loose else "") + ". Leave it out."
        )
    found["tie_word_embeddings"] = tied and whole
    return found | options


def _vocabulary_fields(models: Mapping, vocabularies: Mapping, options: dict) -> dict:
    """Sizes of the vocabularies, whether they are joint, and the special tokens."""
    sizes = {}
    for side, name in (("source", "encoder_vocab_size"), ("target", "vocab_size")):
        vocabulary, model = vocabularies[side], models.get(side)
        size = model.settings["vocab_size"] if model else None
        if size is None and vocabulary is not None:
            size = max(vocabulary.values()) + 1
        if None not in (size, options.get(name)) and options[name] != size:
            raise ValueError(
                f"{name} is {size} by {model.name if model else f'{side}_tokenizer'}, found {options[name]}. Leave it out."
            )
        sizes[side] = options.get(name) if size is None else size
    joint = _difference(models, vocabularies, sizes)
    if "encoder_vocab_size" in options and options["encoder_vocab_size"] is None and joint:
        raise ValueError(
            f"encoder_vocab_size=None asks for a joint vocabulary, but {joint}. Leave it out for separate vocabularies, or "
            "train both language models with one tokenizer."
        )
    is_joint = not joint and options.get("encoder_vocab_size") is None
    owner = models.get("target") or (models["source"] if is_joint else None)
    found = {"vocab_size": sizes["target"] or sizes["source"]}
    if not is_joint:
        found["encoder_vocab_size"] = sizes["source"]
        if source := models.get("source"):
            pad = source.tokens["pad"]
            found["encoder_pad_token_id"] = (
                None if pad in (source.tokens["bos"], source.tokens["eos"]) else pad
            )
    if owner is None:
        return found
    if owner.tokens["eos"] is None:
        raise ValueError(
            f"{owner.name} has no eos_token_id, so a translation could not end. Set it in the language model's config."
        )
    found |= {f"{name}_token_id": token for name, token in owner.tokens.items()}
    begin, end = owner.tokens["bos"], owner.tokens["eos"]
    return found | {"decoder_start_token_id": end if begin is None else begin}


def _difference(models: Mapping, vocabularies: Mapping, sizes: Mapping) -> str | None:
    """Why the vocabularies are not one and the same, as far as can be known."""
    source, target = vocabularies["source"], vocabularies["target"]
    if source is not None and target is not None:
        ours, theirs = ({number: token for token, number in side.items()} for side in (source, target))
        for number in sorted(ours.keys() | theirs.keys()):
            one, other = ours.get(number), theirs.get(number)
            if one != other:
                return f"id {number} is {one!r} in the source's tokenizer and {other!r} in the target's"
        return None
    if None not in sizes.values() and sizes["source"] != sizes["target"]:
        return f"the source has {sizes['source']} tokens and the target {sizes['target']}"
    if len(models) == 2 and models["source"].tokens != models["target"].tokens:
        return f"the special tokens are {models['source'].tokens} and {models['target'].tokens}"
    return None


def _refuse_other_sizes(source: LanguageModel, target: LanguageModel) -> None:
    names = list(SIZES)
    if "adaptive" in (source.settings["softmax"], target.settings["softmax"]):
        names += ["softmax", "adaptive_cutoffs"]
    pairs = {name: (source.settings[name], target.settings[name]) for name in names}
    if different := [f"{name} {one} and {other}" for name, (one, other) in pairs.items() if one != other]:
        raise ValueError(
            f"{source.name} and {target.name} must have equal sizes, found {', '.join(different)}. Train both with the "
            "same sizes; only their vocabularies may differ."
        )


@torch.no_grad()
def _copy(model, models: Mapping[str, LanguageModel], parts) -> list[Origin]:
    """Copy the parts, and say where each parameter comes from."""
    new, found = dict(model.named_parameters(remove_duplicate=False)), {}
    for name, tensor in inherited(models, parts).items():
        new[name].copy_(tensor)
        side = "source" if name.startswith("encoder") else "target"
        found[name] = f"{side} LM" + (", kept for its loss" if name.startswith("encoder_lm_head") else "")
    if model.config.zero_init:
        found |= {f"decoder.combine.{name}": "zero" for name in ("weight", "bias")}
    rows, seen = [], {}
    for name, parameter in new.items():
        first = seen.setdefault(id(parameter), name)
        origin = found.get(name, "random") if first == name else f"shares {first}"
        rows.append(Origin(name, tuple(parameter.shape), origin))
    return rows


__all__ = ["LanguageModel", "Origin", "inherit", "inherited", "origins_table", "read_language_model"]
