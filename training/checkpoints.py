"""Opening an ELMo checkpoint, with a clear error where it is none."""

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from ..modeling.configuration_elmo import ElmoConfig
from ..tokenization.tokenization_elmo import ElmoTokenizer


def open_checkpoint(name: str) -> tuple[ElmoConfig, ElmoTokenizer]:
    """The configuration and the tokenizer of an ELMo checkpoint.

    Args:
        name: a folder, or a name on the Hub.

    Returns:
        Both.

    Raises:
        FileNotFoundError: a folder without a config.json, or no such folder.
        ValueError: a checkpoint of another model, or without its tokenizer.
    """
    if (Path(name).exists() or name.startswith((".", "/"))) and not (Path(name) / "config.json").is_file():
        raise FileNotFoundError(
            f"{name} holds no config.json. Give a checkpoint folder, as heirloom convert or heirloom pretrain writes it."
        )
    config = AutoConfig.from_pretrained(name)
    if config.model_type != "elmo":
        raise ValueError(f"{name} is a {config.model_type} checkpoint; an ELMo checkpoint is expected.")
    tokenizer = AutoTokenizer.from_pretrained(name)
    if not isinstance(tokenizer, ElmoTokenizer):
        raise ValueError(
            f"{name} has no ElmoTokenizer beside it. Save one: tokenizer.save_pretrained({name!r})"
        )
    return config, tokenizer
