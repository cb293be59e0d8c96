"""Originals to checkpoints and back."""

import importlib

_LAZY = {
    "convert_seq2seq": "seq2seq",
    "encoder_decoder": "encoder_decoder",
    "from_allennlp": "allennlp",
    "from_bilm": "bilm",
    "from_efml": "efml",
    "scalar_mixes": "allennlp",
    "to_bilm": "bilm",
}
__all__ = list(_LAZY)


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
