"""ELMo checkpoints, loaded for conversion back."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..modeling.configuration_elmo import ElmoConfig
    from ..modeling.modeling_elmo import ElmoPreTrainedModel


def load_model(checkpoint: str | Path) -> "ElmoPreTrainedModel":
    """An ELMo model in its own class, float32.

    Args:
        checkpoint: a folder, or a name on the Hub.

    Returns:
        The model.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no checkpoint, that of another model, or one that is not whole.
        OSError: the Hub has no such checkpoint.
    """
    import torch
    from transformers import AutoConfig

    from ..modeling import modeling_elmo
    from ..training.checkpoints import load_whole

    path, name = Path(checkpoint), str(checkpoint)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(
            f"{checkpoint} holds no config.json; expected a checkpoint folder (save_pretrained)."
        )
    if path.is_file():
        raise ValueError(f"{checkpoint} is a file, expected a checkpoint folder.")
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise FileNotFoundError(f"{checkpoint} does not exist, expected a checkpoint folder.")
    config = AutoConfig.from_pretrained(checkpoint)
    if config.model_type != "elmo":
        raise ValueError(f"{checkpoint} is a checkpoint of {config.model_type!r}, expected one of 'elmo'.")
    architecture = (config.architectures or ["ElmoModel"])[0]
    if architecture not in modeling_elmo.__all__:
        raise ValueError(
            f"{checkpoint} is a checkpoint of {architecture}, expected one of heirloom's ELMo models."
        )
    return load_whole(getattr(modeling_elmo, architecture), checkpoint, dtype=torch.float32)


def load_words(checkpoint: str | Path, config: "ElmoConfig") -> list[str] | None:
    """The words of a checkpoint's tokenizer.

    Args:
        checkpoint: as in `load_model`.
        config: of its model.

    Returns:
        The words in the order of their ids; None where there is no tokenizer, one without words, or one for another
        vocabulary.
    """
    from transformers import AutoTokenizer

    from ..tokenization.tokenization_elmo import ElmoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError, KeyError):
        return None
    if not isinstance(tokenizer, ElmoTokenizer) or tokenizer.vocab_size != config.vocab_size:
        return None
    if tokenizer.vocab_size == 1 + len({tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token}):
        return None  # no vocabulary: only the special words
    return tokenizer.convert_ids_to_tokens(range(1, tokenizer.vocab_size))


__all__ = ["load_model", "load_words"]
