"""What comes into an ELMo model, checked by name before any of it is computed with.

Letters: B sentences or lanes, T words, C characters a word, P projection, D cells, L layers, R rows of the states.
"""

from torch import Tensor

from .checks import check_ids, check_shape
from .configuration_elmo import ElmoConfig


def word_mask(
    config: ElmoConfig,
    input_ids: Tensor | None,
    char_ids: Tensor | None,
    attention_mask: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
) -> Tensor:
    """Check a batch's inputs and say where its words are.

    Args:
        config: of the model.
        input_ids: as in `ElmoModel.forward`, like all that follow.
        char_ids: likewise.
        attention_mask: likewise.
        inputs_embeds: likewise.

    Returns:
        (B, T) bool.

    Raises:
        ValueError: what was expected, what came, and what to do.
    """
    if inputs_embeds is not None:
        check_shape(
            "inputs_embeds", inputs_embeds, (None, None, config.projection_size), "(B, T, P) token vectors"
        )
        if attention_mask is None:
            raise ValueError(
                "inputs_embeds need an attention_mask (B, T): vectors do not tell words from padding."
            )
        mask = None
    else:
        mask = _check_token_ids(config, input_ids, char_ids)
    given = {"input_ids": input_ids, "char_ids": char_ids, "attention_mask": attention_mask}
    given |= {"inputs_embeds": inputs_embeds}
    shapes = {name: tuple(tensor.shape[:2]) for name, tensor in given.items() if tensor is not None}
    if len(set(shapes.values())) > 1 or (attention_mask is not None and attention_mask.dim() != 2):
        raise ValueError(
            f"inputs must agree in (B, T), and attention_mask be (B, T) of 0 and 1; found {shapes}. Pass the "
            "tokenizer's whole output."
        )
    if attention_mask is None:
        return mask
    attention_mask = attention_mask.bool()
    if mask is not None and bool((attention_mask & ~mask).any()):
        raise ValueError(
            f"attention_mask marks {int((attention_mask & ~mask).sum())} position(s) as words whose ids are all "
            "padding. Let the tokenizer make both, or leave attention_mask out."
        )
    return attention_mask


def _check_token_ids(
    config: ElmoConfig, input_ids: Tensor | None, char_ids: Tensor | None, prefix: str = ""
) -> Tensor:
    """Where the ids are not padding, (B, T); refuses missing and broken ids, with `prefix` before their names."""
    if config.word_embedding_size:
        if input_ids is None:
            raise ValueError(
                f"this model reads whole words: pass {prefix}input_ids (B, T), as ElmoTokenizer makes them."
            )
        check_ids(f"{prefix}input_ids", input_ids, (None, None), "(B, T) word ids", config.vocab_size)
        mask = input_ids != config.pad_token_id
    if config.char_embedding_size:
        if char_ids is None:
            raise ValueError(
                f"this model reads characters: pass {prefix}char_ids (B, T, C), as ElmoTokenizer makes them."
            )
        shape = None, None, config.max_characters_per_token
        check_ids(f"{prefix}char_ids", char_ids, shape, "(B, T, C) character ids", config.char_vocab_size)
        mask = (char_ids > 0).any(2)
    return mask


def check_streams(config: ElmoConfig, forward: tuple, backward: tuple, attention_mask: Tensor | None) -> None:
    """Refuse two streams of text that are broken or do not go together.

    Args:
        config: of the model.
        forward: `input_ids` and `char_ids`, each (B, T, ...) or None.
        backward: the same of the backward stream.
        attention_mask: streams have no padding, so only a mask of ones is taken.

    Raises:
        ValueError: what is wrong.
    """
    shapes = {}
    for prefix, ids in (("", forward), ("backward_", backward)):
        _check_token_ids(config, *ids, prefix)
        names = f"{prefix}input_ids", f"{prefix}char_ids"
        shapes |= {
            name: tuple(one.shape[:2]) for name, one in zip(names, ids, strict=True) if one is not None
        }
    if len(set(shapes.values())) > 1:
        raise ValueError(
            f"both streams must have the same lanes and steps (B, T), found {shapes}. Pass the stream collator's whole "
            "output."
        )
    if attention_mask is not None and not attention_mask.bool().all():
        raise ValueError(
            "streams have no padding: leave attention_mask out, and targets -100 where unwanted."
        )


def check_states(config: ElmoConfig, states: tuple[Tensor, Tensor] | None) -> None:
    """Refuse recurrent states of another model.

    Raises:
        ValueError: shapes that are not (L, R, 2 P) and (L, R, 2 D).
    """
    if states is None:
        return
    shapes = [tuple(state.shape) for state in states]
    layers, p, d = config.num_hidden_layers, 2 * config.projection_size, 2 * config.cell_size
    if (
        len(states) != 2
        or any(
            len(shape) != 3 or (shape[0], shape[2]) != (layers, size)
            for shape, size in zip(shapes, (p, d), strict=True)
        )
        or shapes[0][1] != shapes[1][1]
    ):
        raise ValueError(
            f"states must be (h, c) of shapes ({layers}, R, {p}) and ({layers}, R, {d}), found {shapes}. Pass the "
            "`states` that this model returned."
        )


def check_labels(config: ElmoConfig, name: str, labels: Tensor, mask: Tensor) -> None:
    """Refuse targets that are no words of the vocabulary.

    Args:
        config: of the model.
        name: of the argument.
        labels: (B, T) word ids, -100 for none.
        mask: (B, T), where the words are.

    Raises:
        ValueError: another shape, floats, or an id outside the vocabulary.
    """
    if labels.shape != mask.shape or labels.is_floating_point():
        raise ValueError(
            f"{name} must be (B, T) = {tuple(mask.shape)} word ids, found {tuple(labels.shape)} of {labels.dtype}."
        )
    words = labels[mask & (labels != -100)]
    if len(words) and not (words.min() > 0 and words.max() < config.vocab_size):
        raise ValueError(
            f"{name} must be word ids in 1..{config.vocab_size - 1} or -100, found {int(words.min())}.."
            f"{int(words.max())}. Use the tokenizer that this model was made with."
        )


__all__ = ["check_labels", "check_states", "check_streams", "word_mask"]
