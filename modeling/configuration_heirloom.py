"""HeirloomConfig: what our configs have in common beside Transformers': a number of their format, and words about mistakes."""

import difflib
from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

from .auto_map import AUTO_MAP

logger = logging.get_logger(__name__)

# Goes up only where code that reads the number before would load a checkpoint wrongly. Configs without it are of format 1.
FIELD, FORMAT = "heirloom_format", 1


def check_format(found: dict[str, Any]) -> None:
    """Refuse a config that a newer heirloom saved in a format that this one does not know.

    Args:
        found: fields of the config.

    Raises:
        ValueError: a higher number, or none.
    """
    number = found.get(FIELD, FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise ValueError(
            f"this checkpoint has {FIELD} {number!r}, and this heirloom reads {FIELD} {FORMAT} and older: a newer heirloom "
            "saved it. Run `pip install -U heirloom-lm`; or load it with trust_remote_code=True, at a revision whose code "
            "is its own, in a Python that does not import heirloom."
        )


def check_kind(kind: str, built_by: str, found: dict[str, Any]) -> None:
    """Refuse the config of another model, such as that of a bare language model.

    Args:
        kind: model type that is expected.
        built_by: class method that makes such a model from other checkpoints; "" if there is none.
        found: fields of the config.

    Raises:
        ValueError: another model type.
    """
    came = found.get("model_type", kind)
    if came == kind or kind not in AUTO_MAP:  # a class of the user's own may begin with any checkpoint
        return
    table = AUTO_MAP[kind]
    places = [place for auto, place in table.items() if auto not in ("AutoConfig", "AutoModel")]
    names = [place.split(".")[1] for place in places or [table["AutoModel"]]]
    advice = f"; to build a {kind!r} model on it, call {built_by} of {' or '.join(names)}" if built_by else ""
    raise ValueError(
        f"expected a checkpoint of model type {kind!r}, found one of {came!r}. Load that with its own class or an Auto "
        f"class{advice}."
    )


def hint_at_fields(config: PreTrainedConfig, unknown: dict[str, Any]) -> None:
    """Warn of names that are no fields, but nearly: Transformers takes unknown names without a sound.

    Args:
        config: a dataclass.
        unknown: names that came beside its fields.
    """
    known = [field.name for field in fields(config)]
    for name in unknown:
        if near := difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            logger.warning(f"{type(config).__name__} has no field `{name}`. Did you mean `{near[0]}`?")


@strict
class HeirloomConfig(PreTrainedConfig):
    """A config that says which format it is saved in, and reads no other model's.

    The number is written on every save and is no field: nobody sets it, and what is loaded is saved as what it is now.
    """

    _auto_class = "AutoConfig"
    _built_by: ClassVar[str] = ""  # class method of the models that takes other checkpoints

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs) -> "HeirloomConfig":
        """As in Transformers, once it is clear that these fields can be read.

        Args:
            config_dict: fields.
            kwargs: as in Transformers.

        Returns:
            The config.

        Raises:
            ValueError: the config of a newer heirloom, or of another model.
        """
        check_format(config_dict)  # before fields that this code may not know are checked
        check_kind(cls.model_type, cls._built_by, config_dict)
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        check_format(kwargs)
        kwargs.pop(FIELD, None)
        hint_at_fields(self, kwargs)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As in Transformers, with the number of the format."""
        return super().to_dict() | {FIELD: FORMAT}


__all__ = ["HeirloomConfig"]
