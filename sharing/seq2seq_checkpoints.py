"""Encoder-decoders of any kind and their tokenizers: opened, and asked what they can read and write.

A source is what its tokenizer makes of it when called, as in training.

Letters: B rows, S source positions, V words.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from ..training.checkpoints import load_whole
from ..training.generated_text import decode, until_end
from ..training.parallel_text import half_of, open_tokenizers, positions_of

LONGEST = 256  # tokens of a target, where neither the user nor the checkpoint says so


def vocabulary_size(config: PreTrainedConfig, side: str) -> int | None:
    """V of one half; None where the config does not say."""
    own = getattr(config, "encoder_vocab_size", None) if side == "encoder" else None
    return own or getattr(half_of(config, side), "vocab_size", None)


def source_limit(config: PreTrainedConfig, tokenizer: Tokenizer) -> int | None:
    """How many tokens a source may have; None for any number. A tokenizer without a limit of its own says 1e30."""
    known = [
        limit for limit in (positions_of(config, "encoder"), tokenizer.model_max_length) if limit is not None
    ]
    shortest = min(known, default=None)
    return None if shortest is None or shortest > 10**9 else int(shortest)


def encode(
    config: PreTrainedConfig,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_source_tokens: int | None = None,
    first: int = 1,
) -> tuple[list[list[int]], int]:
    """Ids of sources.

    Args:
        config: of the model.
        tokenizer: of the source.
        texts: the sources.
        max_source_tokens: cut those that are longer; None refuses those that the model cannot read.
        first: number of the first text, for messages.

    Returns:
        Lists of ids, and how many were cut.

    Raises:
        ValueError: a source that is too long, or a tokenizer of another model.
    """
    options = {"return_attention_mask": False, "verbose": False}
    rows = tokenizer(list(texts), **options)["input_ids"] if len(texts) else []
    limit, words, cut = (
        max_source_tokens or source_limit(config, tokenizer),
        vocabulary_size(config, "encoder"),
        0,
    )
    for place, row in enumerate(rows):
        if limit is not None and len(row) > limit:
            if max_source_tokens is None:
                raise ValueError(
                    f"text {first + place} has {len(row)} tokens, but the model reads {limit} at most. Split it, or "
                    f"cut such texts: --max-source-tokens {limit} (max_source_tokens; truncation=True in a pipeline)."
                )
            cut += 1
            shorter = tokenizer(texts[place], truncation=True, max_length=limit, **options)["input_ids"]
            rows[place] = row = shorter
        if row and words and max(row) >= words:
            raise ValueError(
                f"the source's tokenizer made the id {max(row)}, but the model has {words} words. Use the tokenizer of "
                "this model."
            )
    return rows, cut


def longest_target(model: PreTrainedModel, max_new_tokens: int | None) -> int | None:
    """How many tokens a target may get.

    Args:
        model: an encoder-decoder.
        max_new_tokens: what the user said, or None.

    Returns:
        A number; None where the model's generation config has one.

    Raises:
        ValueError: more than the decoder has positions.
    """
    positions, defaults = positions_of(model.config, "decoder"), model.generation_config
    if max_new_tokens is not None:
        if positions is not None and max_new_tokens > positions:
            raise ValueError(
                f"the model writes {positions} tokens at most, found max_new_tokens {max_new_tokens}. Lower it."
            )
        return max_new_tokens
    if defaults.max_new_tokens is not None or defaults.max_length is not None:
        return None
    return LONGEST if positions is None else min(LONGEST, positions)


def check_seq2seq(config: PreTrainedConfig, name: str) -> None:
    """Refuse what is no encoder-decoder.

    Args:
        config: of a model.
        name: of it, for the message.

    Raises:
        ValueError: another kind of model.
    """
    if not getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is a {config.model_type} model; an encoder-decoder is expected, as heirloom convert seq2seq or "
            "train-seq2seq makes it, or BART, T5, Marian and their kin."
        )


def padded(rows: Sequence[Sequence[int]], filling: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, S), padding right."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(mask.shape, filling)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    return ids.to(device), mask.long().to(device)


def end_ids(model: PreTrainedModel) -> set[int]:
    """The tokens that end a target."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """How each token reads by itself."""
    found = []
    for token, name in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        text = tokenizer.decode([token]).strip()
        found.append(text if text and "\ufffd" not in text else str(name))
    return found


def load(checkpoint: str) -> tuple[PreTrainedModel, Tokenizer, Tokenizer]:
    """An encoder-decoder in evaluation mode, on the GPU if there is one, and the tokenizers of both sides.

    Args:
        checkpoint: folder or Hub name.

    Returns:
        Model, source's tokenizer, target's tokenizer.

    Raises:
        FileNotFoundError: a folder without a config.json or a tokenizer, or no such folder.
        ValueError: another model, or one that is not whole.
    """
    path = Path(checkpoint)
    if (path.exists() or checkpoint.startswith((".", "/"))) and not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{checkpoint} holds no config.json. Give a checkpoint folder, as heirloom train-seq2seq writes it."
        )
    check_seq2seq(AutoConfig.from_pretrained(checkpoint), checkpoint)
    tokenizers = load_tokenizers(checkpoint)
    model = load_whole(AutoModelForSeq2SeqLM, checkpoint)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), *tokenizers


def load_tokenizers(checkpoint: str) -> tuple[Tokenizer, Tokenizer]:
    """The tokenizers of both sides, which are one where the checkpoint has one.

    Args:
        checkpoint: folder or Hub name.

    Returns:
        Source's and target's.

    Raises:
        FileNotFoundError: there is none, or only one of two.
    """
    try:
        pair = open_tokenizers(checkpoint)
    except (FileNotFoundError, OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{checkpoint} holds no tokenizer that can be read. Save one into it, or two into its folders "
            "source_tokenizer and target_tokenizer."
        ) from error
    for side, tokenizer in (("source", pair.source), ("target", pair.target)):
        if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
            raise FileNotFoundError(
                f"{checkpoint} holds no tokenizer of the {side}. Save it: "
                f"tokenizer.save_pretrained('{checkpoint}/{side}_tokenizer')"
            )
    return pair.source, pair.target


__all__ = [
    "check_seq2seq",
    "decode",
    "encode",
    "end_ids",
    "load",
    "load_tokenizers",
    "longest_target",
    "padded",
    "positions_of",
    "source_limit",
    "token_texts",
    "until_end",
    "vocabulary_size",
]
