"""Which way `lstmp` takes: chosen by itself, shown by `heirloom env`, and forced by HEIRLOOM_LSTMP or `lstmp_path`."""

import contextlib
import functools
import os
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .lstmp_cuda import why_not_cuda
from .lstmp_native import fits, library, machine_level
from .packed_linear import multiplier, why_not_packed

logger = logging.get_logger(__name__)

PATHS = {
    "native": "a C kernel that does all steps",
    "packed": "oneDNN products of packed weights",
    "loop": "plain torch, any device and dtype",
    "cuda": "CUDA graphs of the steps; untried on hardware, so only when forced",
}
PACKED_FROM = 2**18  # numbers of a weight: below 1 MB, packing costs more than it gains

_forced = ContextVar("lstmp_path", default=None)


@contextlib.contextmanager
def lstmp_path(name: str) -> Iterator[None]:
    """Force a way of `lstmp` inside a `with`.

    Args:
        name: "native", "packed", "loop", "cuda" or "auto".

    Raises:
        ValueError: another name, or a way that is not open on this machine.
    """
    _check(name, "lstmp_path")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def lstmp_paths() -> dict[str, str]:
    """Each way, and why it is closed on this machine; nothing where it is open. May build the kernel."""
    return {"native": library()[1], "packed": why_not_packed(), "loop": "", "cuda": why_not_cuda()}


def _check(name: str, source: str) -> None:
    if name != "auto" and name not in PATHS:
        raise ValueError(f"{source} must be one of auto, {', '.join(PATHS)}, got {name!r}.")
    if name != "auto" and (reason := lstmp_paths()[name]):
        raise ValueError(f"{source} {name!r} is not open on this machine: {reason}.")


@functools.cache
def _from_environment(name: str) -> str:
    _check(name, "HEIRLOOM_LSTMP")
    return name


def choose_path(weight_hh: Tensor) -> str:
    """The way for these weights.

    Args:
        weight_hh: (4 D, P).

    Returns:
        A key of `PATHS`. A forced way that cannot do the device, the dtype or the sizes gives way to the next.

    Raises:
        ValueError: HEIRLOOM_LSTMP names none, or one that is not open.
    """
    forced, device = forced_path(), weight_hh.device.type
    if forced == "loop" or weight_hh.dtype != torch.float32 or torch.compiler.is_compiling():
        return "loop"
    if device != "cpu":
        return "cuda" if forced == device == "cuda" else "loop"
    if forced != "packed" and fits(weight_hh.shape[0] // 4, weight_hh.shape[1]):
        reason = library()[1]
        if not reason:
            return "native"
        logger.warning_once(f"ELMo runs without its C kernel, at about half its speed: {reason}.")
    return "loop" if why_not_packed() else "packed"


def forced_path() -> str:
    """What `lstmp_path` or HEIRLOOM_LSTMP says, else "auto"."""
    return _forced.get() or _from_environment(os.environ.get("HEIRLOOM_LSTMP") or "auto")


def packs(weight: Tensor, path: str) -> bool:
    """Whether products with this weight use oneDNN's order on this way."""
    large = weight.numel() >= PACKED_FROM or forced_path() == "packed"
    return path in ("native", "packed") and large and not why_not_packed()


def dense(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """What the layer makes of inputs (n, I), by packed weights where `lstmp` uses them and no gradients are wanted."""
    weight = layer.weight
    wanted = torch.is_grad_enabled() or torch.is_autocast_enabled(inputs.device.type)
    if wanted or inputs.dtype != weight.dtype or not packs(weight, choose_path(weight)):
        return layer(inputs)
    return multiplier(weight, packed=True)(inputs, layer.bias)


def describe_paths() -> str:
    """One line for bug reports: the way that large models take, and why no better one or that it is forced."""
    try:
        forced = forced_path()
    except ValueError as error:
        return f"none: {error}"
    parts = []
    for name, reason in lstmp_paths().items():
        if forced not in ("auto", name):
            continue
        if not reason:
            level = f" ({machine_level()})" if name == "native" else ""
            return "; ".join([f"{name}{level}", *parts, *([] if forced == "auto" else ["forced"])])
        parts.append(f"not {name}: {reason}")
    return "loop"


__all__ = [
    "PATHS",
    "choose_path",
    "dense",
    "describe_paths",
    "forced_path",
    "lstmp_path",
    "lstmp_paths",
    "packs",
]
