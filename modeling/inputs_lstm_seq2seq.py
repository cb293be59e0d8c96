"""What comes into the LSTM encoder-decoder: checked, masked, and shifted.

Letters: B rows, S source positions, T target positions, E embedding, P and U outputs of first and upper layers, L layers.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import check_ids, check_shape
from .outputs_lstm_seq2seq import LstmSeq2SeqEncoderOutput
from .packing import unflatten


class Alignment:
    """Rows moved to the left for an LSTM that must not read padding, and back.

    Args:
        mask: (B, T) bool, true at tokens; None where all are.
    """

    def __init__(self, mask: Tensor | None):
        self.mask, self.lengths, self.left, self.is_full = mask, None, mask, True
        if mask is None:
            return
        self.lengths = mask.sum(1)  # (B,)
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()):  # padding stands before a token
            steps = torch.arange(max(1, int(self.lengths.max())), device=mask.device)
            self.left = steps < self.lengths[:, None]  # (B, longest row)
        self.is_full = bool(self.left.all())

    def to_left(self, tokens: Tensor) -> Tensor:
        """(B, longest row, H), tokens first, from (B, T, H); of no meaning behind a row's end."""
        return tokens if self.left is self.mask else unflatten(tokens[self.mask], self.left)

    def back(self, hidden: Tensor) -> Tensor:
        """(B, T, H) with zeros at padding, from (B, longest row, H)."""
        if self.mask is None:
            return hidden
        if self.left is self.mask:
            return hidden.masked_fill(~self.mask.unsqueeze(2), 0.0)
        return unflatten(hidden[self.left], self.mask)

    def flip(self, tokens: Tensor) -> Tensor:
        """Every row from its end to its beginning, padding left where it is: (B, longest row, H) from such."""
        if self.lengths is None:
            return tokens.flip(1)
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        places = torch.where(
            steps < self.lengths[:, None], self.lengths[:, None] - 1 - steps, steps
        )  # (B, longest)
        return tokens.gather(1, places.unsqueeze(2).expand_as(tokens))


def check_text(name: str, ids: Tensor | None, embeds: Tensor | None, config, vocab_size: int) -> None:
    """Refuse a side's ids, or vectors in their place, that cannot be read.

    Args:
        name: of the ids' argument.
        ids: (B, T).
        embeds: (B, T, E).
        config: of the model.
        vocab_size: of this side.

    Raises:
        ValueError: neither or both, or what is wrong with them.
    """
    if (ids is None) == (embeds is None):
        found = "neither" if ids is None else "both"
        raise ValueError(
            f"the model reads either {name} (B, T) or their vectors (B, T, E), found {found}. Pass one."
        )
    if ids is None:
        check_shape("inputs_embeds", embeds, (None, None, config.embedding_size), "(B, T, E) token vectors")
    else:
        check_ids(name, ids, (None, None), "(B, T) token ids", vocab_size)
    shape = tuple((embeds if ids is None else ids).shape[:2])
    if 0 in shape:
        raise ValueError(f"{name} must have at least one row and one position, found (B, T) = {shape}.")


def token_mask(config, side: str, ids: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Where tokens are, by the mask or else by the padding id.

    Args:
        config: of the model.
        side: "source" or "target", whose vocabulary and padding it is.
        ids: (B, T).
        mask: (B, T) as passed.

    Returns:
        (B, T) of 0 and 1; None where nothing says so, as when the padding id also begins or ends sentences.
    """
    pad, marks = (
        config.pad_token_id,
        (config.bos_token_id, config.eos_token_id, config.decoder_start_token_id),
    )
    if side == "source" and config.encoder_vocab_size is not None:
        pad, marks = config.encoder_pad_token_id, ()
    return mask if mask is not None or ids is None or pad is None or pad in marks else ids != pad


def position_mask(name: str, mask: Tensor | None, shape: tuple[int, int], past: int = 0) -> Tensor | None:
    """A mask of the new positions.

    Args:
        name: of the argument.
        mask: (B, T), or (B, past + T) as `generate()` passes it, 1 at tokens.
        shape: B and T.
        past: positions read before.

    Returns:
        (B, T) bool; None where all are tokens.

    Raises:
        ValueError: a mask of another shape.
    """
    if mask is None:
        return None
    rows, steps = shape
    if tuple(mask.shape) not in ((rows, steps), (rows, past + steps)):
        wanted = f"(B, T) = {shape}" + (f" or (B, past + T) = {(rows, past + steps)}" if past else "")
        raise ValueError(
            f"{name} must be {wanted} of 0 and 1, found {tuple(mask.shape)}. Pass the tokenizer's whole output."
        )
    mask = mask[:, -steps:].bool()
    return None if bool(mask.all()) else mask


def shift_right(labels: Tensor, start: int, pad: int | None) -> Tensor:
    """What the decoder reads to predict the labels: before each the one before it, and the start before a row's first.

    Args:
        labels: (B, T), -100 for padding, wherever it stands.
        start: `decoder_start_token_id`.
        pad: fills up padding; None takes the start.

    Returns:
        (B, T) ids.
    """
    known = labels != -100
    steps = torch.arange(1, labels.shape[1] + 1, device=labels.device)
    before = F.pad((steps * known).cummax(1).values, (1, 0))[
        :, :-1
    ]  # place + 1 of the label before; 0 for none
    tokens = labels.gather(1, (before - 1).clamp(min=0)).masked_fill(before == 0, start)
    return tokens.masked_fill(~known, start if pad is None else pad)


def check_targets(name: str, targets: Tensor, shape: tuple[int, int], vocab_size: int) -> None:
    """Refuse targets that are no tokens.

    Args:
        name: of the argument.
        targets: (B, T), -100 for none.
        shape: B and T.
        vocab_size: of the target.

    Raises:
        ValueError: what is wrong with them.
    """
    if targets.shape != shape or targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(
            f"{name} must be (B, T) = {tuple(shape)} token ids or -100, found {tuple(targets.shape)} of {targets.dtype}."
        )
    known = targets[targets != -100]
    if len(known) and not (known.min() >= 0 and known.max() < vocab_size):
        raise ValueError(
            f"{name} must lie in 0..{vocab_size - 1} (or be -100), found {int(known.min())}..{int(known.max())}. Use the "
            "tokenizer of the target that belongs to this model."
        )


def as_encoder_output(given, config, rows: int) -> LstmSeq2SeqEncoderOutput:
    """The encoder's output, in whatever form it comes back.

    Args:
        given: what the encoder returned; a dictionary or a tuple of its fields will do.
        config: of the model.
        rows: B of the decoder.

    Returns:
        The same as `LstmSeq2SeqEncoderOutput`.

    Raises:
        ValueError: another model's output, or that of other rows.
    """
    if isinstance(given, list | tuple) and not hasattr(given, "_fields") and not hasattr(given, "keys"):
        given = LstmSeq2SeqEncoderOutput(*given[:5])
    elif isinstance(given, dict) and not isinstance(given, LstmSeq2SeqEncoderOutput):
        given = {
            name: given.get(name) for name in LstmSeq2SeqEncoderOutput.__dataclass_fields__ if name in given
        }
        given = LstmSeq2SeqEncoderOutput(**given)
    upper = config.num_hidden_layers - 1
    wanted = {
        "last_hidden_state": (rows, None, config.upper_size),
        "first_hidden_state": (rows, None, config.hidden_size),
        "final_h": (rows, upper, config.upper_size),
        "final_c": (rows, upper, config.upper_size),
        "attention_mask": (rows, None),
    }
    for name, shape in wanted.items():
        tensor = getattr(given, name, None)
        found = None if tensor is None else tuple(tensor.shape)
        if (
            found is None
            or len(found) != len(shape)
            or any(size not in (None, n) for size, n in zip(shape, found, strict=True))
        ):
            sizes = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(
                f"encoder_outputs must be what this model's encoder returned for {rows} row(s), with {name} of shape "
                f"({sizes}); found {found}. Pass model.get_encoder()(input_ids, attention_mask), whole."
            )
    return given


__all__ = [
    "Alignment",
    "as_encoder_output",
    "check_targets",
    "check_text",
    "position_mask",
    "shift_right",
    "token_mask",
]
