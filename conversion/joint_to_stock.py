"""A joint-loss checkpoint as a stock model of Transformers with a task head, where one can hold the same numbers.

Stock classes with layers of their own between the vectors and the classifier (BERT's pooler, RoBERTa's dense layer) cannot:
no weights make them the identity. The language model itself always comes out, by `model.language_model.save_pretrained`.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from .saving import new_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..modeling.modeling_joint_loss import JointLossPreTrainedModel

ROWS, WIDTH = 8, 12  # of the random batch on which logits are compared


def load_joint(checkpoint: str | Path) -> "JointLossPreTrainedModel":
    """A joint-loss model in its own class.

    Args:
        checkpoint: a folder, or a name on the Hub.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: a checkpoint of another kind, or one that is not whole.
        OSError: there is no such checkpoint.
    """
    from transformers import AutoConfig

    from ..modeling import modeling_joint_loss
    from ..training.checkpoints import load_whole

    config = AutoConfig.from_pretrained(checkpoint)
    name = (config.architectures or [""])[0]
    if config.model_type != "joint-loss" or name not in modeling_joint_loss.__all__:
        raise ValueError(
            f"{checkpoint} is a checkpoint of {config.model_type!r} ({name or 'no architecture'}), expected one of "
            "heirloom's JointLossFor... models."
        )
    return load_whole(getattr(modeling_joint_loss, name), checkpoint)


def to_stock(model: "JointLossPreTrainedModel", pad_token_id: int | None = None) -> "PreTrainedModel":
    """The stock model with the same body and head, checked by its logits.

    Args:
        model: a joint-loss model.
        pad_token_id: stock causal classifiers find a row's end by it; None takes the language model's own.

    Returns:
        A model of Transformers, in evaluation mode.

    Raises:
        ValueError: there is no stock class, or it cannot hold this head; what differs is named.
    """
    import transformers

    config = copy.deepcopy(model.config.text_config)
    auto_name = _auto_name(model)
    auto_class = getattr(transformers, auto_name)
    if pad_token_id is not None and "Sequence" in auto_name:  # elsewhere it may move RoBERTa's positions
        config.pad_token_id = pad_token_id
    if type(config) not in auto_class._model_mapping or not type(config).__module__.startswith(
        "transformers."
    ):
        raise ValueError(
            f"Transformers has no class for {config.model_type!r} under {auto_name}. Keep the joint-loss checkpoint; its "
            "language model alone is model.language_model.save_pretrained(...)."
        )
    if "Sequence" in auto_name and config.pad_token_id is None:
        raise ValueError(
            "the stock classifier reads the last token that is not pad_token_id, and refuses batches without one; this "
            "language model has none. Give the id that your tokenizer pads with (--pad-token-id)."
        )
    for name in ("id2label", "label2id", "problem_type"):
        setattr(config, name, copy.deepcopy(getattr(model.config, name)))
    if hasattr(config, "classifier_dropout"):
        config.classifier_dropout = float(model.config.classifier_dropout)
    stock = auto_class.from_config(config, dtype=model.dtype).eval()
    head = _take_over(model, stock)
    _check_head(model, stock, head)
    difference, rounding = compare_logits(model, stock)
    if difference > rounding:
        raise ValueError(
            f"{type(stock).__name__} gives other logits on the same rows (largest difference {difference:g}). Nothing was "
            "kept; use the joint-loss checkpoint."
        )
    return stock


def _auto_name(model) -> str:
    """The Auto class of the stock twin."""
    name = type(model).__name__
    if name == "JointLossForSimilarity":
        raise ValueError(
            "no class of Transformers reads two texts in both orders, as JointLossForSimilarity does. Keep the joint-loss "
            "checkpoint; its language model alone is model.language_model.save_pretrained(...)."
        )
    wanted, pooling = "last" if model.config.lm_objective == "causal" else "first", model.config.pooling
    if name != "JointLossForTokenClassification" and pooling != wanted:
        raise ValueError(
            f"stock classifiers on such a language model read the {wanted} token, this model pooling={pooling!r}. Train "
            f"with pooling={wanted!r} to export it."
        )
    return name.replace("JointLoss", "AutoModel")


def _take_over(model, stock) -> str:
    """Copy the body; the name of the stock model's linear layer on top, if there is nothing else beside the body."""
    body, source = stock.base_model, model.language_model.base_model
    missing, unexpected = body.load_state_dict(source.state_dict(), strict=False)
    prefix = stock.base_model_prefix + "."
    others = {name for name, _ in stock.named_parameters() if not name.startswith(prefix)}
    heads = {name.rsplit(".", 1)[0] for name in others}
    extra = sorted({prefix + name for name in missing} | (others if len(heads) != 1 else set()))
    if extra or unexpected:
        raise ValueError(
            f"{type(stock).__name__} has layers between the language model and its classifier that a joint-loss model "
            f"has not, or lacks some: {extra + sorted(unexpected)}. Keep the joint-loss checkpoint."
        )
    return heads.pop()


def _check_head(model, stock, head: str) -> None:
    """Copy the classifier into the stock model's linear layer."""
    import torch

    layer, ours = stock.get_submodule(head), model.classifier
    if not isinstance(layer, torch.nn.Linear) or layer.weight.shape != ours.weight.shape:
        raise ValueError(
            f"{type(stock).__name__}.{head} is no linear layer of shape {tuple(ours.weight.shape)}."
        )
    if layer.bias is None and ours.bias is not None and bool(ours.bias.any()):
        raise ValueError(
            f"{type(stock).__name__}.{head} has no bias, the joint-loss classifier has one. Train with "
            "classifier_bias=False to export it."
        )
    with torch.no_grad():
        layer.weight.copy_(ours.weight)
        if layer.bias is not None:
            layer.bias.copy_(torch.zeros_like(layer.bias) if ours.bias is None else ours.bias)


def compare_logits(model: "JointLossPreTrainedModel", stock: "PreTrainedModel") -> tuple[float, float]:
    """Run both models on a random batch with padding on the right.

    Args:
        model: a joint-loss model.
        stock: its stock twin.

    Returns:
        The largest difference of their logits, and what rounding may make of it: one classifies what it pooled, the other
        pools what it classified.
    """
    import torch

    config = stock.config.get_text_config()
    draw = torch.Generator().manual_seed(0)
    longest = model._longest or WIDTH
    width = min(WIDTH, longest)
    ids = torch.randint(0, config.vocab_size, (ROWS, width), generator=draw)
    lengths = torch.randint(1, width + 1, (ROWS,), generator=draw)
    lengths[0] = width
    mask = torch.arange(width) < lengths[:, None]
    if (pad := config.pad_token_id) is not None:
        ids = torch.where(ids == pad, (pad + 1) % config.vocab_size, ids).masked_fill(~mask, pad)
    training, device = model.training, model.device
    inputs = {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}
    with torch.no_grad():
        ours, theirs = model.eval()(**inputs).logits, stock.to(device)(**inputs).logits
    model.train(training)
    if ours.dim() == 3:
        ours, theirs = ours[mask.to(device)], theirs[mask.to(device)]
    rounding = 64 * torch.finfo(ours.dtype).eps * max(1.0, ours.abs().max().item())
    return (ours - theirs).abs().max().item(), rounding


def save_stock(
    checkpoint: str | Path, folder: str | Path, pad_token_id: int | None = None
) -> tuple["PreTrainedModel", float]:
    """Write a joint-loss checkpoint as a stock one, with its tokenizer, load it again and compare logits.

    Args:
        checkpoint: a folder, or a name on the Hub.
        folder: a new one.
        pad_token_id: as in `to_stock`; None takes the tokenizer's, or else the language model's.

    Returns:
        The model that was loaded again, and the largest difference of its logits.

    Raises:
        FileExistsError: the folder holds something.
        OSError: no such checkpoint, or the folder cannot be written.
        ValueError: as in `to_stock`; the folder is not made then.
    """
    from transformers import AutoTokenizer

    model = load_joint(checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError):
        tokenizer = None
    if pad_token_id is None:
        pad_token_id = getattr(tokenizer, "pad_token_id", None)
    stock = to_stock(model, pad_token_id)
    with new_folder(folder) as place:
        stock.save_pretrained(place)
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
        loaded = type(stock).from_pretrained(place)
        difference, rounding = compare_logits(model, loaded)
        if difference > rounding:
            raise ValueError(
                f"Verification failed: the logits changed by {difference:g} on their way through {folder}; that is a bug "
                "of heirloom."
            )
    return loaded, difference


__all__ = ["compare_logits", "load_joint", "save_stock", "to_stock"]
