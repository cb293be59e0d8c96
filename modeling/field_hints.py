"""A word to whoever misspells a field of a config: Transformers takes unknown names without a sound."""

import difflib
from collections.abc import Iterable
from dataclasses import fields

from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)


def hint_at_fields(config: PreTrainedConfig, unknown: Iterable[str]) -> None:
    """Warn of names that are no fields, but nearly.

    Args:
        config: a dataclass.
        unknown: names that came beside its fields.
    """
    known = [field.name for field in fields(config)]
    for name in unknown:
        if near := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            logger.warning(f"{type(config).__name__} has no field `{name}`. Did you mean `{near[0]}`?")


__all__ = ["hint_at_fields"]
