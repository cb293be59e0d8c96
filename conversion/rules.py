"""The arrays of bilm-tf's files, by name, and the parameters that they are.

What differs: gates in torch's order (TensorFlow's is input, candidate, forget, output), matrices transposed, one kernel split
into its input and its recurrent rows, a zero row before each table. The forget bias of 1 is in neither: the model adds it
at run time, which is what makes the way back exact.

Letters: V words, K characters of the inventory, E character embedding, F filters, P projection, D cells.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .closed_world import Rule

if TYPE_CHECKING:
    from ..modeling.configuration_elmo import ElmoConfig

CELL = re.compile(
    r"(RNN_[01])/(?:RNN|rnn)/(?:(?:MultiRNNCell/Cell|multi_rnn_cell/cell_)(\d+)/)?(?:LSTMCell|lstm_cell)/"
    r"(W_0|kernel|B|bias|W_P_0|projection/kernel)"
)
CELL_ARRAYS = {"kernel": "W_0", "bias": "B", "projection/kernel": "W_P_0"}


def canonical_name(name: str) -> str:
    """A dataset's name as the published files have it.

    Args:
        name: in the file: also with a leading slash or `lm/`, TensorFlow's own spelling, or the form for one layer.

    Returns:
        The name; one that is not known stays as it is.
    """
    name = name.lstrip("/").removesuffix(":0").removeprefix("lm/")
    if match := CELL.fullmatch(name):
        direction, layer, array = match.groups()
        return _cell(direction, int(layer or 0), CELL_ARRAYS.get(array, array))
    return name


def bilm_rules(config: "ElmoConfig", prefix: str = "", tied_softmax: bool = False) -> list[Rule]:
    """The datasets of `weights.hdf5` for a config.

    Args:
        config: of the model.
        prefix: of the biLM's parameters in the model.
        tied_softmax: the word table is the softmax's weight too.

    Returns:
        The rules.
    """
    encoder, size = f"{prefix}token_encoder", config.projection_size
    projection, cells = "lstm.projection_dim", "lstm.dim"
    rules = []
    if config.char_embedding_size:
        rules += _character_rules(config, encoder)
    else:
        tables = [f"{encoder}.word_embeddings.weight"] + ["softmax.weight"] * tied_softmax
        shape = config.vocab_size - 1, size
        rules.append(table_rule("embedding", shape, ("n_tokens_vocab", projection), tables))
    for direction, stack in (("RNN_0", "forward_layers"), ("RNN_1", "backward_layers")):
        for layer in range(config.num_hidden_layers):
            cell = f"{prefix}lstm.{stack}.{layer}"
            kernel = _cell(direction, layer, "W_0"), (2 * size, 4 * config.cell_size), (projection, cells)
            bias = _cell(direction, layer, "B"), (4 * config.cell_size,), (cells,)
            rules.append(
                Rule(*kernel, (f"{cell}.weight_ih", f"{cell}.weight_hh"), _split_kernel, _join_kernel)
            )
            rules.append(Rule(*bias, (f"{cell}.bias",), lambda array: [_gates(array)], _gates))
            if config.cell_size != size:
                shape = _cell(direction, layer, "W_P_0"), (config.cell_size, size), (cells, projection)
                rules.append(transposed_rule(*shape, f"{cell}.weight_proj"))
    return rules


def softmax_rules(config: "ElmoConfig", tied: bool = False) -> list[Rule]:
    """The datasets of a softmax file.

    Args:
        config: of the model.
        tied: only the bias is there; the weight is the word table.

    Returns:
        The rules.
    """
    rows, options = config.vocab_size - 1, ("", "lstm.projection_dim")
    weight = table_rule("softmax/W", (rows, config.projection_size), options, ["softmax.weight"])
    return [weight] * (not tied) + [table_rule("softmax/b", (rows,), ("",), ["softmax.bias"])]


def table_rule(name: str, shape: tuple, options: tuple, parameters: Sequence[str]) -> Rule:
    """A table without the padding row; in the model it has one, of zeros.

    Args:
        name: as in `Rule`.
        shape: as in `Rule`.
        options: as in `Rule`.
        parameters: that all hold the table.

    Returns:
        The rule.
    """

    def split(array: np.ndarray) -> list[np.ndarray]:
        padded = np.zeros((len(array) + 1, *array.shape[1:]), array.dtype)
        padded[1:] = array
        return [padded, *[padded.copy() for _ in parameters[1:]]]

    return Rule(name, shape, options, tuple(parameters), split, lambda *tables: tables[0][1:])


def transposed_rule(name: str, shape: tuple, options: tuple, parameter: str) -> Rule:
    """A matrix that the file holds transposed.

    Args:
        name: as in `Rule`.
        shape: as in `Rule`.
        options: as in `Rule`.
        parameter: the parameter.

    Returns:
        The rule.
    """
    return Rule(name, shape, options, (parameter,), lambda array: [array.T], np.transpose)


def same_rule(name: str, shape: tuple, options: tuple, parameter: str) -> Rule:
    """An array that is the parameter.

    Args:
        name: as in `Rule`.
        shape: as in `Rule`.
        options: as in `Rule`.
        parameter: the parameter.

    Returns:
        The rule.
    """
    return Rule(name, shape, options, (parameter,), lambda array: [array], lambda array: array)


def option_hint(name: str) -> str:
    """The option to look at when a dataset of this name is missing or left over.

    Args:
        name: canonical name.

    Returns:
        The option; "" where none decides.
    """
    hints = {
        r"char_embed|CNN/.*": "char_cnn.filters",
        r"CNN_high.*": "char_cnn.n_highway",
        r"CNN_proj/.*": "char_cnn.filters, lstm.projection_dim",
        r"RNN_.*/W_P_0": "lstm.projection_dim, lstm.dim, lstm.n_layers",
        r"RNN_.*": "lstm.n_layers",
        r"embedding": "char_cnn",
    }
    return next((hint for pattern, hint in hints.items() if re.fullmatch(pattern, name)), "")


def _character_rules(config: "ElmoConfig", encoder: str) -> list[Rule]:
    size, count = config.char_embedding_size, config.num_filters
    dim, filters = "char_cnn.embedding.dim", "char_cnn.filters"
    rules = [
        table_rule(
            "char_embed",
            (config.char_vocab_size - 1, size),
            ("char_cnn.n_characters", dim),
            [f"{encoder}.char_embeddings.weight"],
        )
    ]
    for number, (width, outputs) in enumerate(config.char_filters):
        convolution, options = f"{encoder}.convolutions.{number}", ("", filters, dim, filters)
        shape = 1, width, size, outputs
        kernel = f"CNN/W_cnn_{number}", shape, options, (f"{convolution}.weight",)
        # (1, width, E, n) in the file; (n, E, width) in torch
        rules.append(Rule(*kernel, lambda array: [array[0].T], lambda weight: weight.T[None]))
        rules.append(same_rule(f"CNN/b_cnn_{number}", (outputs,), (filters,), f"{convolution}.bias"))
    for number in range(config.num_highway_layers):
        highway = f"{encoder}.highways.{number}"
        for array, part in (("carry", "gate"), ("transform", "transform")):
            matrix = f"CNN_high_{number}/W_{array}", (count, count), (filters, filters)
            rules.append(transposed_rule(*matrix, f"{highway}.{part}.weight"))
            bias = f"CNN_high_{number}/b_{array}", (count,), (filters,)
            rules.append(same_rule(*bias, f"{highway}.{part}.bias"))
    if config.has_token_projection:
        size, projection = config.projection_size, "lstm.projection_dim"
        matrix = "CNN_proj/W_proj", (count, size), (filters, projection)
        rules.append(transposed_rule(*matrix, f"{encoder}.projection.weight"))
        rules.append(same_rule("CNN_proj/b_proj", (size,), (projection,), f"{encoder}.projection.bias"))
    return rules


def _cell(direction: str, layer: int, array: str) -> str:
    return f"{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/{array}"


def _gates(array: np.ndarray) -> np.ndarray:
    """Swap the second and third of four blocks in the last axis: i, j, f, o to i, f, g, o, and back."""
    first, second, third, fourth = np.split(array, 4, axis=-1)
    return np.concatenate([first, third, second, fourth], axis=-1)


def _split_kernel(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(2 P, 4 D), input rows first, to weight_ih and weight_hh (4 D, P)."""
    inputs, recurrent = np.split(_gates(array), 2)
    return inputs.T, recurrent.T


def _join_kernel(weight_ih: np.ndarray, weight_hh: np.ndarray) -> np.ndarray:
    return _gates(np.concatenate([weight_ih.T, weight_hh.T]))


__all__ = [
    "bilm_rules",
    "canonical_name",
    "option_hint",
    "same_rule",
    "softmax_rules",
    "table_rule",
    "transposed_rule",
]
