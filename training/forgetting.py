"""Against forgetting the language models that an encoder-decoder began as, without their text.

- EWC (Kirkpatrick et al. 2017; for this model Varis and Bojar 2019): weight / 2 * sum F (theta - start)^2, where F is the
  diagonal of the Fisher information a token. The language model's own loss has about this shape around its minimum, so
  weight 1 stands for a language-model loss of weight 1.
- L2-SP (Li et al. 2018): the same with F = 1. Their second term, on new parameters, is Trainer's `weight_decay`.
- Freezing: inherited parameters do not move in the first steps.

All act on gradients, once a step and after they are accumulated and averaged over processes, so that nothing depends on how
a batch is cut.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from ..modeling.inheritance_lstm_seq2seq import PARTS, PLACES
from .checkpoints import load_whole

logger = logging.get_logger(__name__)

METHODS = ("lm_loss", "ewc", "l2sp", "freeze", "none")
FISHER = "fisher.safetensors"
LM_PLACES = dict(zip(PARTS, ("model.embed_tokens", "model.layers.0", "lm_head"), strict=True))
CROSS_ATTENTION = re.compile(r"cross_?att(entio)?n|encoder_attn|EncDecAttention|enc_to_dec_proj")


def inherited_names(model: PreTrainedModel, prefixes: Sequence[str] | None = None) -> list[str]:
    """Parameters that come from language models.

    Args:
        model: an encoder-decoder.
        prefixes: of their names; None takes, of an LSTM encoder-decoder, both sides' embedding, first layer and softmax,
            and of an EncoderDecoderModel all but the cross-attention.

    Returns:
        Names, as in `named_parameters`.

    Raises:
        ValueError: a prefix of no parameter, or a model of which nobody can know.
    """
    names = [name for name, _ in model.named_parameters()]
    if not prefixes:
        if model.config.model_type == "encoder-decoder":
            return [name for name in names if not CROSS_ATTENTION.search(name)]
        if model.config.model_type != "lstm-seq2seq":
            raise ValueError(
                f"{type(model).__name__} did not begin as two language models, so nothing says which of its parameters to "
                "keep. Name them in `inherited`, for instance: --inherited model.decoder lm_head"
            )
        prefixes = [place for side in PLACES.values() for place in side.values()]
        prefixes = [
            prefix for prefix in prefixes if _below(prefix, names)
        ]  # a softmax may be tied or missing
    if strange := [prefix for prefix in prefixes if not _below(prefix, names)]:
        parts = sorted({".".join(name.split(".")[:2]) for name in names})
        raise ValueError(
            f"inherited names {strange}, but no parameter begins so. Expected some of {parts[:12]}..."
        )
    return [name for name in names if any(_below(prefix, [name]) for prefix in prefixes)]


def _below(prefix: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == prefix or name.startswith(prefix.removesuffix(".") + ".")]


@dataclass
class Penalty:
    """A pull back to where training started.

    Args:
        name: of its value in the log.
        weight: of the term.
        start: parameters by name.
        fisher: how much each number matters, by the same names; None for all alike.
    """

    name: str
    weight: float
    start: dict[str, Tensor]
    fisher: dict[str, Tensor] | None = None

    @torch.no_grad()
    def after_backward(
        self, parameters: dict[str, nn.Parameter], step: int, scale: float = 1.0
    ) -> dict[str, Tensor]:
        """Add the gradient of weight / 2 * sum F (theta - start)^2.

        Args:
            parameters: of the model, with the gradients of a whole step.
            step: how many were made.
            scale: factor of all gradients, where a scaler of half precision is at work.

        Returns:
            {name: () value}.
        """
        value = 0.0
        for name, start in self.start.items():
            parameter = parameters[name]
            start = self.start[name] = start.to(parameter.device)
            moved = parameter - start
            pull = self.weight * moved
            if self.fisher is not None:
                fisher = self.fisher[name] = self.fisher[name].to(parameter.device)
                pull *= fisher
            value = value + (pull.double() * moved.double()).sum() / 2
            pull = (scale * pull).to(parameter.dtype)
            parameter.grad = pull if parameter.grad is None else parameter.grad + pull
        return {self.name: torch.as_tensor(value)}


@dataclass
class Freezing:
    """No step of some parameters, for a while.

    Args:
        names: of the parameters.
        steps: how many steps; from then on all move.
    """

    names: Sequence[str]
    steps: int

    def after_backward(
        self, parameters: dict[str, nn.Parameter], step: int, scale: float = 1.0
    ) -> dict[str, Tensor]:
        """Take the gradients away, so that neither clipping nor the optimizer sees them; see `Penalty`."""
        if step < self.steps:
            for name in self.names:
                parameters[name].grad = None
        return {}


def ewc(
    model: nn.Module, fisher: dict[str, Tensor], weight: float = 1.0, names: Iterable[str] | None = None
) -> Penalty:
    """Elastic weight consolidation around the model as it is now.

    Args:
        model: an encoder-decoder.
        fisher: diagonal, by names of its parameters.
        weight: of the term.
        names: only these; None for all that `fisher` has.

    Returns:
        The penalty.

    Raises:
        ValueError: nothing to hold, or numbers for a parameter of another shape.
    """
    parameters = dict(model.named_parameters())
    kept = [name for name in fisher if name in parameters and (names is None or name in set(names))]
    if not kept:
        raise ValueError(
            f"the Fisher diagonal has {sorted(fisher)[:4]}..., none of which is to be kept in this model. Expected "
            f"names like {sorted(parameters)[:4]}."
        )
    for name in kept:
        if fisher[name].shape != parameters[name].shape:
            raise ValueError(
                f"the Fisher diagonal of {name} is {tuple(fisher[name].shape)}, the parameter {tuple(parameters[name].shape)}. "
                "Use that of the language model that this model was made from."
            )
    return Penalty(
        "ewc_loss", weight, _copied(parameters, kept), {name: fisher[name].float() for name in kept}
    )


def l2sp(model: nn.Module, names: Iterable[str], weight: float = 1.0) -> Penalty:
    """Squared distance to the model as it is now.

    Args:
        model: an encoder-decoder.
        names: of the parameters to hold.
        weight: of the term.

    Returns:
        The penalty.
    """
    return Penalty("l2sp_loss", weight, _copied(dict(model.named_parameters()), names))


def _copied(parameters: dict[str, nn.Parameter], names: Iterable[str]) -> dict[str, Tensor]:
    return {name: parameters[name].detach().clone() for name in names}


# The Fisher diagonal


def fisher_diagonal(
    model: nn.Module,
    sentences: Sequence[Sequence[int]],
    summed_loss: Callable[[Sequence[int]], tuple[Tensor, int]],
) -> dict[str, Tensor]:
    """Mean square of a sentence's gradient, a token: 1/N * sum over sentences (d log p(sentence) / d theta)^2.

    Args:
        model: in the state in which it is to be measured; dropout is off meanwhile.
        sentences: what it models.
        summed_loss: of one sentence, in nats, and its predicted tokens; N is the sum of these.

    Returns:
        Diagonal by the names of the parameters that take part.

    Raises:
        ValueError: no sentences.
    """
    if not len(sentences):
        raise ValueError(
            "the Fisher diagonal needs sentences, found none. Name a file with monolingual text."
        )
    training, parameters = model.training, dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    tokens = 0
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            module.train()  # cuDNN makes no gradients otherwise; such layers have no dropout of their own
    try:
        for sentence in sentences:
            loss, count = summed_loss(sentence)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    found[name] = found.get(name, 0.0) + gradient.float().square()
            tokens += int(count)
    finally:
        model.train(training)
    return {name: total / max(1, tokens) for name, total in found.items()}


def fisher_of_language_model(
    folder: str | Path, sentences: Sequence[Sequence[int]], begin: Sequence[int], end: Sequence[int]
) -> dict[str, Tensor]:
    """Measure a causal language model's Fisher diagonal and store it beside the model, as `fisher.safetensors`.

    Args:
        folder: of the checkpoint.
        sentences: lists of ids without marks.
        begin: ids before each.
        end: ids behind each.

    Returns:
        Diagonal by the language model's names.
    """
    model = load_whole(AutoModelForCausalLM, folder)

    def summed_loss(sentence: Sequence[int]) -> tuple[Tensor, int]:
        ids = torch.tensor([[*begin, *sentence, *end]], device=model.device)
        mean = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss
        return mean * (ids.numel() - 1), ids.numel() - 1

    fisher = fisher_diagonal(model, sentences, summed_loss)
    save_fisher(fisher, Path(folder) / FISHER, len(sentences))
    return fisher


def save_fisher(fisher: dict[str, Tensor], path: Path, sentences: int) -> None:
    """Write a Fisher diagonal.

    Args:
        fisher: by the names of parameters.
        path: the file.
        sentences: how many it was measured on.
    """
    tensors = {name: tensor.contiguous().cpu() for name, tensor in fisher.items()}
    save_file(tensors, path, metadata={"format": "pt", "sentences": str(sentences)})


def load_fisher(path: str | Path) -> dict[str, Tensor]:
    """Read a Fisher diagonal.

    Args:
        path: the file, or a folder that holds `fisher.safetensors`.

    Returns:
        Diagonal by the names of parameters.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(path) / FISHER if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist. Measure it: give the language model's monolingual text too, and it is stored there."
        )
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def fisher_in_seq2seq(fisher: dict[str, Tensor], side: str, model: PreTrainedModel) -> dict[str, Tensor]:
    """The same diagonal by the names of an encoder-decoder that was made from the language model.

    Args:
        fisher: by the language model's names.
        side: "source" or "target".
        model: the encoder-decoder, an LSTM or an EncoderDecoderModel.

    Returns:
        Diagonal by the names of those of its parameters that the language model has.

    Raises:
        ValueError: no parameter has such a name.
    """
    if model.config.model_type == "lstm-seq2seq":
        moved = [(LM_PLACES[part], PLACES[side][part]) for part in PARTS]
    else:
        moved = [("", "encoder" if side == "source" else "decoder")]
    known = {name for name, _ in model.named_parameters()}
    found = {}
    for name, tensor in fisher.items():
        for old, new in moved:
            if not old or name.startswith(f"{old}."):
                renamed = f"{new}.{name.removeprefix(old).removeprefix('.')}"
                if renamed in known:
                    found[renamed] = tensor
    if not found:
        raise ValueError(
            f"the {side}'s Fisher diagonal has {sorted(fisher)[:4]}..., of which {type(model).__name__} has none. Give that "
            "of the language model it was made from."
        )
    return found


__all__ = [
    "FISHER",
    "METHODS",
    "Freezing",
    "Penalty",
    "ewc",
    "fisher_diagonal",
    "fisher_in_seq2seq",
    "fisher_of_language_model",
    "inherited_names",
    "l2sp",
    "load_fisher",
    "save_fisher",
]
