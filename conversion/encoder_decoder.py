"""Two of Transformers' own language models to its own `EncoderDecoderModel`, which begins as the very target LM.

After Rothe, Narayan & Severyn 2020 (warm starts) and Ramachandran, Liu & Le 2017 (the LM must survive the start). Stock
`from_encoder_decoder_pretrained` makes cross-attention random, which destroys the LM, and leaves ids out. Here:

- Output projections of cross-attention are zero, so a decoder that normalises before attention (GPT-2) is the LM exactly.
- Where normalisation comes after (BERT's family), the block would still normalise twice, LN2(LN1(x) + 0). Gain and bias of
  LN1 therefore move to LN2, and LN1 gets 1 and 0: the LM again, up to rounding. Such a decoder is the LM only where it
  reads states, be they zeros; without any it skips LN2.
- `decoder_start_token_id`, `bos`, `eos`, `pad` and `vocab_size` stand in the config and the decoder's, ids also in the
  generation config.

Nothing of heirloom is in the folder.

Letters: B batch, T target length.
"""

import contextlib
import copy
import itertools
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    PreTrainedModel,
)

from ..modeling.inheritance_lstm_seq2seq import Origin
from .saving import new_folder
from .seq2seq import VerifiedOrigin, save_tokenizers
from .stock_models import (
    TARGETS,
    find_tokenizer,
    fit_tokenizer,
    is_causal,
    label_of,
    load_weights,
    model_type,
    quiet,
    some_ids,
    source_config,
    special_ids,
    target_config,
    tokenizer_beside,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OUTPUTS = ("crossattention.c_proj", "crossattention.output.dense", "encoder_attn.out_proj")
NORMS = (  # of self-attention, and of the cross-attention after it; only of use where both follow their attention
    ("attention.output.LayerNorm", "crossattention.output.LayerNorm"),
    ("self_attn_layer_norm", "encoder_attn_layer_norm"),
)


@dataclass
class Beginning:
    """An encoder-decoder as two language models make it.

    Args:
        model: in evaluation mode.
        wanted: what parameters must be that are not random.
        origins: where those come from, by name.
        facts: what was measured.
        oddities: what is usable, but not as one would think.
    """

    model: EncoderDecoderModel
    wanted: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)
    oddities: list[str] = field(default_factory=list)

    def set(self, name: str, values: Tensor, origin: str) -> None:
        """Give a parameter its numbers, and remember them and where they come from."""
        with torch.no_grad():
            self.model.get_parameter(name).copy_(values)
        self.wanted[name], self.origins[name] = values.detach(), origin

    def table(self) -> list[Origin]:
        """One row a parameter, in the model's order."""
        ties, rows = _ties(self.model), []
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            values = {0.0: "zero", 1.0: "one"}
            first = parameter.flatten()[0].item()
            is_constant = first in values and bool((parameter == first).all())
            origin = self.origins.get(name, values[first] if is_constant else "random")
            origin = f"shares {ties[name]}" if name in ties else origin
            unused = ", not used" if name.startswith("encoder.pooler.") else ""
            rows.append(Origin(name, tuple(parameter.shape), origin + unused))
        return rows


def convert_stock(
    source: str | Path, target: str | Path, folder: str | Path
) -> tuple[list[VerifiedOrigin], list[str]]:
    """Make an `EncoderDecoderModel` of two models of Transformers, load it again and compare it with them.

    Args:
        source: as in `encoder_decoder`, by folder or name.
        target: likewise.
        folder: a new one; tokenizers go into it, as `convert_seq2seq` writes them.

    Returns:
        One `VerifiedOrigin` a parameter, and notes.

    Raises:
        FileExistsError: the folder holds something.
        FileNotFoundError: there is no such language model.
        OSError: the folder cannot be written.
        ValueError: as in `encoder_decoder`, or what was loaded again differs; no folder is made then.
    """
    names = {"source": source, "target": target}
    with new_folder(folder) as place, quiet():
        for side, name in names.items():
            model_type(name, side)
        tokenizers = {side: tokenizer_beside(name) for side, name in names.items()}
        made = _begin(source, target, *tokenizers.values())
        notes = [*made.oddities, *made.facts]
        notes += _give_pads(tokenizers, made.model.config)
        made.model.save_pretrained(place)
        notes += save_tokenizers(tokenizers, names, place)
        rows = _compare(made, EncoderDecoderModel.from_pretrained(place))
    return rows, notes


def encoder_decoder(
    source: "str | Path | PreTrainedModel",
    target: "str | Path | PreTrainedModel",
    source_tokenizer: "str | Path | PreTrainedTokenizerBase | None" = None,
    target_tokenizer: "str | Path | PreTrainedTokenizerBase | None" = None,
) -> tuple[EncoderDecoderModel, list[Origin]]:
    """Make an `EncoderDecoderModel` whose decoder is, before any training, the target LM whatever the source.

    What is odd, such as a pad that had to be chosen, is warned of.

    Args:
        source: an encoder, masked or causal LM of Transformers.
        target: a causal LM of Transformers that can have cross-attention.
        source_tokenizer: of the source; by default the one beside it.
        target_tokenizer: of the target; likewise. Ids that its config lacks are taken from it.

    Returns:
        The model in evaluation mode, and one `Origin` a parameter.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: models that cannot be used, or a tokenizer that does not fit.
    """
    pairs = ((source, source_tokenizer), (target, target_tokenizer))
    with quiet():
        made = _begin(source, target, *(find_tokenizer(model, tokenizer) for model, tokenizer in pairs))
    for oddity in made.oddities:
        warnings.warn(oddity, stacklevel=2)
    return made.model, made.table()


def _give_pads(tokenizers: dict, config: EncoderDecoderConfig) -> list[str]:
    """Tokenizers that cannot pad get the token that pads now; notes about it."""
    pads, notes = {"source": config.encoder.pad_token_id, "target": config.pad_token_id}, []
    for side, tokenizer in tokenizers.items():
        if tokenizer is None or tokenizer.pad_token is not None:
            continue
        pad = tokenizer.eos_token if pads[side] is None else tokenizer.convert_ids_to_tokens(pads[side])
        if pad is not None:
            tokenizer.pad_token = pad
            notes.append(f"the {side}'s tokenizer had no pad_token; the one that was written has {pad}")
    return notes


def _begin(source, target, source_tokenizer, target_tokenizer) -> Beginning:
    labels = {"source": label_of(source, "source"), "target": label_of(target, "target")}
    configs = {
        "source": source_config(source, labels["source"]),
        "target": target_config(target, labels["target"]),
    }
    oddities = fit_tokenizer(configs["source"], source_tokenizer, "source", labels["source"])
    oddities += fit_tokenizer(configs["target"], target_tokenizer, "target", labels["target"])
    ids, more = special_ids(configs["target"], target_tokenizer, labels["target"])
    encoder, random = load_weights(AutoModel, source, configs["source"], labels["source"])
    lm, _ = load_weights(AutoModelForCausalLM, target, configs["target"], labels["target"])
    if not is_causal(lm):
        raise ValueError(
            f"{labels['target']} is no causal language model: what comes later changes its predictions. Expected "
            f"{TARGETS}. To begin from a masked LM all the same, save it as a decoder first: "
            "AutoModelForCausalLM.from_pretrained(NAME, is_decoder=True).save_pretrained(FOLDER)."
        )
    made = Beginning(_random_model(encoder, lm, ids, labels["target"]), oddities=oddities + more)
    if is_causal(encoder):
        made.oddities.append(f"{labels['source']} reads from left to right only, as an encoder too")
    _inherit(made, encoder, lm, random)
    _keep_the_lm(made, lm, labels["target"])
    return made


def _random_model(
    encoder: PreTrainedModel, lm: PreTrainedModel, ids: dict[str, int], label: str
) -> EncoderDecoderModel:
    """The architecture with all ids in its configs, random numbers, and cross-attention."""
    decoder_config = copy.deepcopy(lm.config)
    for name, token in ids.items():
        setattr(decoder_config, name, token)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        copy.deepcopy(encoder.config), decoder_config, vocab_size=decoder_config.vocab_size, **ids
    )
    try:
        model = EncoderDecoderModel(config)
    except NotImplementedError as error:
        raise ValueError(f"{label} cannot have cross-attention: {error}. Expected {TARGETS}.") from error
    for name, token in ids.items():
        setattr(model.generation_config, name, token)
    if not _cross_attention(model.decoder):
        raise ValueError(
            f"{label} is {lm.config.model_type!r}, whose cross-attention is not known here. Expected {TARGETS}."
        )
    return model.to(device=lm.device, dtype=torch.promote_types(encoder.dtype, lm.dtype)).eval()


def _cross_attention(decoder: nn.Module) -> dict[str, str]:
    """The output projections of cross-attention, by the block that they are in."""
    found = {}
    for block, module in decoder.named_modules():
        for path in OUTPUTS:
            with contextlib.suppress(AttributeError):
                module.get_submodule(path)
                found[block] = f"{block}.{path}"
    return found


def _inherit(made: Beginning, encoder: PreTrainedModel, lm: PreTrainedModel, random: list[str]) -> None:
    """Copy both models but what is random in the encoder; tied weights must be tied as they were."""
    _refuse_other_ties(made.model, _ties(encoder, "encoder.") | _ties(lm, "decoder."))
    for name, parameter in encoder.named_parameters(remove_duplicate=False):
        if name not in random:
            made.set(f"encoder.{name}", parameter, "source LM")
    for name, parameter in lm.named_parameters(remove_duplicate=False):
        made.set(f"decoder.{name}", parameter, "target LM")


def _ties(model: nn.Module, prefix: str = "") -> dict[str, str]:
    """Parameters that are one with another: their names, and that one's."""
    first, found = {}, {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), prefix + name)
        if other != prefix + name:
            found[prefix + name] = other
    return found


def _refuse_other_ties(model: nn.Module, expected: dict[str, str]) -> None:
    if (found := _ties(model)) != expected:
        raise ValueError(
            f"Verification failed: the encoder-decoder ties {found or 'nothing'}, expected {expected or 'nothing'} as in "
            "the language models. Nothing was kept."
        )


@torch.no_grad()
def _keep_the_lm(made: Beginning, lm: PreTrainedModel, label: str) -> None:
    """Begin cross-attention without effect, measure, and move gains where a second normalisation is left."""
    for output in _cross_attention(made.model.decoder).values():
        for name, parameter in made.model.get_submodule(f"decoder.{output}").named_parameters():
            made.set(f"decoder.{output}.{name}", torch.zeros_like(parameter), "zero")
    try:
        plain, _ = _differences(made.model, lm)
    except RuntimeError as error:
        raise ValueError(f"{label} cannot read a source: {error}. Expected {TARGETS}.") from error
    if plain == 0:
        made.facts.append(f"before training the decoder is {label}, whatever the source: logits are equal")
        return
    scale = lm(input_ids=some_ids(lm.config.vocab_size, lm.device)).logits.abs().max().item()
    rounding = scale * max(1e-5, 4 * torch.finfo(made.model.dtype).eps)
    reached = plain
    if plain > rounding and _move_gains(made):
        reached, alone = _differences(made.model, lm)
        made.oddities.append(
            "normalisation comes after attention here, so gains were moved behind cross-attention (without this, logits "
            f"would differ by up to {plain:.2g}). Where the decoder shall be a language model, give it "
            "encoder_hidden_states of zeros (B, 1, hidden_size); with none, logits differ by up to "
            f"{alone:.2g}"
        )
    if reached > 0.05 * scale:
        raise ValueError(
            f"{label} cannot be kept: with cross-attention switched off, {type(lm).__name__}'s logits of up to {scale:.2g} "
            f"still change by up to {reached:.2g} once there is a source. Expected {TARGETS}."
        )
    made.facts.append(
        f"before training the decoder is {label}, whatever the source, up to rounding: logits of up to {scale:.2g} differ "
        f"by up to {reached:.2g}"
    )


def _move_gains(made: Beginning) -> bool:
    """Make LN2(LN1(x) + 0) what LN1(x) was, where there are two."""
    parameters, moved = dict(made.model.named_parameters()), False
    for block, (one, two) in itertools.product(_cross_attention(made.model.decoder), NORMS):
        for name, constant in (("weight", 1.0), ("bias", 0.0)):
            first, second = (f"decoder.{block}.{norm}.{name}" for norm in (one, two))
            if first in parameters and second in parameters:
                gain = made.wanted[first]
                made.set(second, gain, f"target LM, moved from {first}")
                made.set(first, torch.full_like(gain, constant), "one" if constant else "zero")
                moved = True
    return moved


@torch.no_grad()
def _differences(model: EncoderDecoderModel, lm: PreTrainedModel) -> tuple[float, float]:
    """How far the decoder's logits are from the language model's, with random sources and without any."""
    ids = some_ids(lm.config.vocab_size, lm.device)
    sources = some_ids(model.config.encoder.vocab_size, lm.device, length=9)
    expected = lm(input_ids=ids).logits
    with_sources = model(input_ids=sources, decoder_input_ids=ids).logits
    alone = model.decoder(input_ids=ids).logits
    return (with_sources - expected).abs().max().item(), (alone - expected).abs().max().item()


def _compare(made: Beginning, loaded: EncoderDecoderModel) -> list[VerifiedOrigin]:
    """Every parameter of the loaded model beside the language models', or else beside what was saved."""
    _refuse_other_ties(loaded, _ties(made.model))
    wanted = dict(made.model.named_parameters(remove_duplicate=False)) | made.wanted
    found, rows = dict(loaded.named_parameters(remove_duplicate=False)), []
    for row in made.table():
        one, other = (tensors[row.parameter].detach().double().cpu() for tensors in (found, wanted))
        difference = (one - other).abs().max().item()
        rows.append(VerifiedOrigin(row.parameter, row.shape, row.origin, difference))
    if wrong := [row.parameter for row in rows if not row.difference == 0]:
        raise ValueError(
            f"Verification failed: the checkpoint differs from the language models in {wrong}. Nothing was kept."
        )
    return rows


__all__ = ["convert_stock", "encoder_decoder"]
