"""Which language models a joint-loss model can hold: their objective, how they are loaded or built, how long a row may be."""

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from .modeling_elmo import ElmoForPreTraining
from .modeling_lstm_lm import LstmLMForCausalLM

logger = logging.get_logger(__name__)

OWN_MODELS = {"elmo": (ElmoForPreTraining, "bidirectional"), "lstm-lm": (LstmLMForCausalLM, "causal")}
STOCK = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM}
NAMES = {"causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "masked": MODEL_FOR_MASKED_LM_MAPPING_NAMES}
# Listed by Transformers as causal, but without further inputs a position sees what comes after it.
SEE_THE_FUTURE = ("cpmant", "xlm", "xlnet")
TWO_WAY = ("bert-generation",)  # like the masked types, an encoder unless told otherwise
POSITION_TABLES = ("embed_positions", "position_embeddings", "positions_embed", "wpe")


def find_objective(config: PreTrainedConfig, class_names: list[str]) -> str:
    """What a language model was trained to predict.

    Args:
        config: of the model.
        class_names: its class, or those that its checkpoint names; they decide where a type has both kinds of heads.

    Returns:
        "causal", "masked" or "bidirectional".

    Raises:
        ValueError: an encoder-decoder, or a type without such a head.
    """
    kind = config.model_type
    if kind in OWN_MODELS:
        return OWN_MODELS[kind][1]
    if config.is_encoder_decoder:
        raise ValueError(
            f"a joint-loss model holds one stack with one language-model head, found the encoder-decoder {kind!r}. Use "
            "its encoder or decoder alone (lm_objective='causal' takes the decoder where Transformers has such a class)."
        )
    by_name = [one for one, names in NAMES.items() if set(class_names) & set(names.values())]
    by_type = [one for one, names in NAMES.items() if kind in names]
    # BERT's family has both heads: a decoder is causal, all else masked.
    usual = "causal" if getattr(config, "is_decoder", False) else "masked"
    for found in (by_name, by_type):
        if found:
            return found[0] if len(found) == 1 else usual
    raise ValueError(
        f"{kind!r} has neither a causal nor a masked language-model head in Transformers. Choose a model of "
        "AutoModelForCausalLM or AutoModelForMaskedLM."
    )


def check_objective(config: PreTrainedConfig, objective: str) -> None:
    """Refuse an objective that a model cannot be trained with.

    Args:
        config: of the model.
        objective: "causal", "masked" or "bidirectional".

    Raises:
        ValueError: what is wrong with it.
    """
    kind = config.model_type
    if kind in OWN_MODELS or objective == "bidirectional":
        wanted = OWN_MODELS[kind][1] if kind in OWN_MODELS else "causal' or 'masked"
        if objective != wanted:
            raise ValueError(f"lm_objective of {kind!r} must be '{wanted}', found {objective!r}.")
        return
    if objective not in STOCK:
        raise ValueError(f"lm_objective must be 'causal' or 'masked', found {objective!r}.")
    if kind not in NAMES[objective]:
        raise ValueError(
            f"{kind!r} has no {objective} language-model head in Transformers. Leave lm_objective out to find its own."
        )
    if objective == "causal" and kind in SEE_THE_FUTURE:
        raise ValueError(
            f"{kind!r} sees the tokens that it would have to predict, so its causal loss would teach nothing. Choose "
            "another language model."
        )


def check_decoder(config: PreTrainedConfig, objective: str) -> None:
    """Refuse a causal loss of a model whose positions see each other: BERT's family is causal only as a decoder.

    Args:
        config: of the model, as it is loaded.
        objective: "causal", "masked" or "bidirectional".

    Raises:
        ValueError: no decoder.
    """
    both_ways = config.model_type in (*NAMES["masked"], *TWO_WAY) and not config.is_encoder_decoder
    if objective == "causal" and both_ways and getattr(config, "is_decoder", None) is False:
        raise ValueError(
            f"{config.model_type!r} sees the tokens that it would have to predict, unless it is a decoder, found "
            "is_decoder=False. Load it with is_decoder=True, or use lm_objective='masked' where it has that head."
        )


def open_language_model(
    model: str | PreTrainedModel, objective: str | None = None, **kwargs
) -> tuple[PreTrainedModel, str]:
    """A language model with its head, and its objective.

    Args:
        model: a folder, a name on the Hub, or a loaded model, which is taken over as it is.
        objective: None finds it.
        kwargs: for its `from_pretrained`.

    Returns:
        The model and "causal", "masked" or "bidirectional".

    Raises:
        ValueError: a model without a language-model head, or one that does not fit the objective.
    """
    if isinstance(model, PreTrainedModel):
        return _check_loaded(model, objective)
    config = AutoConfig.from_pretrained(
        model, **{key: kwargs[key] for key in ("revision", "token") if key in kwargs}
    )
    if config.model_type == "joint-loss":
        raise ValueError(
            f"{model} is a joint-loss checkpoint already. Load it with from_pretrained; its language model alone is "
            "its `language_model`."
        )
    objective = objective or find_objective(config, config.architectures or [])
    check_objective(config, objective)
    kind = OWN_MODELS[config.model_type][0] if config.model_type in OWN_MODELS else STOCK[objective]
    loaded, report = kind.from_pretrained(model, output_loading_info=True, **kwargs)
    if missing := sorted(report["missing_keys"]):
        logger.warning(
            f"{model} HAS NO LANGUAGE-MODEL HEAD, or a part of one: {missing} start from random numbers. Until they are "
            "trained, lm_loss pushes noise into the pre-trained weights. Use a checkpoint with its head, or "
            "lm_loss_weight=0."
        )
    return _check_loaded(loaded, objective)


def _check_loaded(model: PreTrainedModel, objective: str | None) -> tuple[PreTrainedModel, str]:
    name, kind = type(model).__name__, model.config.model_type
    own = OWN_MODELS[kind][0].__name__ if kind in OWN_MODELS else None
    heads = {head for names in NAMES.values() for head in names.values()}
    if name != own if own else name not in heads:
        raise ValueError(
            f"a joint-loss model needs a language model with its head, found {name}. Load it with "
            f"{own or 'AutoModelForCausalLM or AutoModelForMaskedLM'}."
        )
    objective = objective or find_objective(model.config, [name])
    if kind not in OWN_MODELS and objective in NAMES and name not in NAMES[objective].values():
        raise ValueError(
            f"{name} has no {objective} language-model head. Load the model with {STOCK[objective].__name__}."
        )
    check_objective(model.config, objective)
    check_decoder(model.config, objective)
    if model.config.is_encoder_decoder:
        find_objective(model.config, [name])  # says why not
    return model, objective


def build_language_model(config: PreTrainedConfig, objective: str) -> PreTrainedModel:
    """A language model with new weights, to be filled from a checkpoint.

    Args:
        config: of the model.
        objective: "causal", "masked" or "bidirectional".

    Returns:
        The model, in torch's default type, whatever type its config remembers.

    Raises:
        ValueError: it has no such head.
    """
    check_objective(config, objective)
    check_decoder(config, objective)
    if config.model_type in OWN_MODELS:
        return OWN_MODELS[config.model_type][0](config)
    if config.is_encoder_decoder:
        find_objective(config, [])  # says why not
    return STOCK[objective].from_config(config, dtype=torch.get_default_dtype())


def position_limit(model: PreTrainedModel) -> int | None:
    """Positions that a model's table of them holds; None where there is no table.

    Args:
        model: the language model.

    Returns:
        The longest row, without the places that tables like RoBERTa's and OPT's keep free.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in POSITION_TABLES:
            free = getattr(module, "offset", 0 if module.padding_idx is None else module.padding_idx + 1)
            return module.num_embeddings - free
    return None


__all__ = [
    "build_language_model",
    "check_objective",
    "find_objective",
    "open_language_model",
    "position_limit",
]
