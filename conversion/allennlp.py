"""AllenNLP's ELMo state dicts (`.th`) to heirloom.

What differs from heirloom: the forget bias of 1 is already in the bias (`forget_bias` becomes 0), a highway is one linear
layer [transform; carry] whose carry gate has the other sign, the character table has its padding row, and AllenNLP always
projects the cells and always has residual connections. The state dict may be that of a whole model: the biLM is found by
its names, other parts are reported as not part of ELMo.

Letters: K characters with padding, E character embedding, F filters, P projection, D cells.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .bilm import SPECIAL_WORDS, Conversion
from .closed_world import ClosedWorld, Rule, TorchSource
from .options import BYTE_INVENTORY, make_config, mark_ids, read_options
from .rules import same_rule
from .vocabulary import read_vocabulary, repeated_words, special_ids

if TYPE_CHECKING:
    from ..modeling.configuration_elmo import ElmoConfig
    from ..modeling.modeling_elmo import ElmoModel
    from ..modeling.scalar_mix import ScalarMix

TABLE = "_token_embedder._char_embedding_weights"
BOUNDARIES = ("_beginning_of_sentence_characters", "_end_of_sentence_characters")


def from_allennlp(
    options: str | Path | Mapping,
    weights: str | Path,
    vocab: str | Path | Sequence[str] | None = None,
) -> "ElmoModel":
    """Load a biLM from an AllenNLP state dict.

    Args:
        options: `options.json`, or its contents.
        weights: the state dict of an `Elmo`, of its biLM, or of a model that has one.
        vocab: a vocabulary, one word a line, or its words; it sets `vocab_size`.

    Returns:
        `ElmoModel`, float32, in evaluation mode; its scalar mixes: `scalar_mixes`.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: files that are broken, hold no ELMo, or do not belong together; all mismatches in one message.
    """
    conversion = read_allennlp(options, weights, vocab)
    for note in conversion.notes:
        warnings.warn(note, stacklevel=2)
    return conversion.model


def scalar_mixes(weights: str | Path, do_layer_norm: bool = False) -> "list[ScalarMix]":
    """The learned mixes of an AllenNLP `Elmo`, in order.

    Args:
        weights: the state dict.
        do_layer_norm: whether the `Elmo` was made with it; the state dict does not tell.

    Returns:
        One `ScalarMix` a representation; none where the state dict holds only the biLM.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no state dict, or none with an ELMo.
    """
    source = TorchSource(weights)
    return _mixes(source, _prefix(source), do_layer_norm)[0]


def read_allennlp(
    options: str | Path | Mapping,
    weights: str | Path,
    vocab: str | Path | Sequence[str] | None = None,
) -> Conversion:
    """As `from_allennlp`, with all that belongs to the model.

    Args:
        options: as in `from_allennlp`.
        weights: as in `from_allennlp`.
        vocab: as in `from_allennlp`.

    Returns:
        The conversion; `extras` holds `scalar_mixes`.

    Raises:
        FileNotFoundError: as in `from_allennlp`.
        ValueError: as in `from_allennlp`.
    """
    from ..modeling.modeling_elmo import ElmoModel

    settings = read_options(options)
    if not settings.has_characters:
        raise ValueError(
            f"{settings.label}: option char_cnn is missing; AllenNLP's ELMo always reads characters."
        )
    if not settings.fields["use_skip_connections"]:
        raise ValueError(
            f"{settings.label}: option lstm.use_skip_connections must be true: AllenNLP's biLM always has them. Take the "
            "options that belong to the weights."
        )
    source = TorchSource(weights)
    prefix = _prefix(source)
    shape = source.shapes[f"{prefix}{TABLE}"]
    marks, note = mark_ids(shape[0] - 1 if shape else 0, f"{prefix}{TABLE} (its padding row left out)")
    fields = settings.fields | marks | {"char_vocab_size": shape[0]}
    fields |= {"forget_bias": 0.0, "use_token_projection": True}
    words, repeated = None, []
    if vocab is not None:
        words, label = read_vocabulary(vocab)
        repeated = repeated_words(words, label, None)
        fields |= special_ids(words, label, SPECIAL_WORDS) | {"vocab_size": len(words) + 1}
    config = make_config(settings.label, **fields)

    world = ClosedWorld(settings.label, _hint)
    rules = encoder_rules(config, f"{prefix}_token_embedder.")
    world.add(source, rules + lstm_rules(config, f"{prefix}_elmo_lstm."))
    _check_boundaries(source, prefix, config, world)
    mixes, names = _mixes(source, prefix, do_layer_norm=False)
    for name in names:
        world.leave(source, name)
    if f"{prefix}_word_embedding.weight" in source:
        world.leave(source, f"{prefix}_word_embedding.weight", "it is a cache of word vectors")
    owner = _owner(prefix)
    outside = [name for name in source.original if not name.startswith(owner)]
    for name in outside:
        world.leave(source, name)
    model = world.build(ElmoModel, config)
    notes = [*settings.notes, *([note] if note else []), *repeated, *world.notes]
    if mixes:
        shares = ["[" + ", ".join(f"{share:.3f}" for share in mix.weights().tolist()) + "]" for mix in mixes]
        gammas = [f"{mix.gamma.item():.3f}" for mix in mixes]
        found = "; ".join(f"{share}, gamma {gamma}" for share, gamma in zip(shares, gammas, strict=True))
        notes.append(
            f"scalar mixes of {source.path.name} (layers' shares; heirloom.conversion.scalar_mixes): {found}"
        )
    if outside:
        parts = sorted({name.split(".")[0] for name in outside})
        notes.append(f"{len(outside)} tensor(s) of {source.path.name} are not part of ELMo: {parts}")
    tokenizer = {"max_characters_per_token": config.max_characters_per_token, **SPECIAL_WORDS}
    if config.char_vocab_size <= BYTE_INVENTORY:
        tokenizer = None
    return Conversion(model, world, notes, tokenizer, words, extras={"scalar_mixes": mixes})


def encoder_rules(config: "ElmoConfig", prefix: str) -> list[Rule]:
    """The tensors of AllenNLP's character encoder.

    Args:
        config: of the model.
        prefix: of their names.

    Returns:
        The rules.
    """
    dim = "char_cnn.embedding.dim"
    shape = config.char_vocab_size, config.char_embedding_size
    table = "token_encoder.char_embeddings.weight"
    rules = [same_rule(f"{prefix}_char_embedding_weights", shape, ("char_cnn.n_characters", dim), table)]
    names = [f"{prefix}char_conv_{number}" for number in range(len(config.char_filters))]
    rules += convolution_rules(config, names, "char_cnn.filters", dim)
    rules += highway_rules(config, f"{prefix}_highways._layers.", "char_cnn.filters")
    options = "lstm.projection_dim", "char_cnn.filters"
    return rules + linear_rules(config, f"{prefix}_projection", options)


def convolution_rules(
    config: "ElmoConfig", names: Sequence[str], filters: str, dim: str, encoder: str = "token_encoder"
) -> list[Rule]:
    """The convolutions, in torch's own layout.

    Args:
        config: of the model.
        names: of each convolution.
        filters: the option that sets widths and counts.
        dim: the option that sets E.
        encoder: the parameters' prefix.

    Returns:
        The rules.
    """
    rules = []
    for number, (name, (width, count)) in enumerate(zip(names, config.char_filters, strict=True)):
        target, shape = f"{encoder}.convolutions.{number}", (count, config.char_embedding_size, width)
        rules.append(same_rule(f"{name}.weight", shape, (filters, dim, filters), f"{target}.weight"))
        rules.append(same_rule(f"{name}.bias", (count,), (filters,), f"{target}.bias"))
    return rules


def highway_rules(config: "ElmoConfig", prefix: str, filters: str) -> list[Rule]:
    """AllenNLP's highways: one linear layer [transform; carry], where carry is what keeps the input.

    Args:
        config: of the model.
        prefix: of their names, up to the number.
        filters: the option that sets F.

    Returns:
        The rules.
    """
    rules, count = [], config.num_filters
    for number in range(config.num_highway_layers):
        for array, shape in (("weight", (2 * count, count)), ("bias", (2 * count,))):
            targets = [f"token_encoder.highways.{number}.{part}.{array}" for part in ("transform", "gate")]
            rule = f"{prefix}{number}.{array}", shape, (filters,) * len(shape), tuple(targets)
            rules.append(Rule(*rule, _split_highway, _join_highway))
    return rules


def linear_rules(config: "ElmoConfig", name: str, options: tuple[str, str]) -> list[Rule]:
    """The projection to P features.

    Args:
        config: of the model.
        name: of the layer.
        options: that set P and the number of features.

    Returns:
        The rules.
    """
    shape, target = (config.projection_size, config.num_features), "token_encoder.projection"
    return [
        same_rule(f"{name}.weight", shape, options, f"{target}.weight"),
        same_rule(f"{name}.bias", shape[:1], options[:1], f"{target}.bias"),
    ]


def lstm_rules(
    config: "ElmoConfig", prefix: str, options: tuple[str, str] = ("lstm.projection_dim", "lstm.dim")
) -> list[Rule]:
    """The LSTMs, gates in torch's order; input and recurrent weights apart.

    Args:
        config: of the model.
        prefix: of their names.
        options: that set P and D.

    Returns:
        The rules.
    """
    rules, (size, cells), (projection, dim) = [], (config.projection_size, config.cell_size), options
    for layer in range(config.num_hidden_layers):
        for direction in ("forward", "backward"):
            name, target = f"{prefix}{direction}_layer_{layer}", f"lstm.{direction}_layers.{layer}"
            kernel = (4 * cells, size), (dim, projection)
            rules += [
                same_rule(f"{name}.input_linearity.weight", *kernel, f"{target}.weight_ih"),
                same_rule(f"{name}.state_linearity.weight", *kernel, f"{target}.weight_hh"),
                same_rule(f"{name}.state_linearity.bias", (4 * cells,), (dim,), f"{target}.bias"),
            ]
            if cells != size:
                matrix = f"{name}.state_projection.weight", (size, cells), (projection, dim)
                rules.append(same_rule(*matrix, f"{target}.weight_proj"))
    return rules


def _split_highway(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    transform, carry = np.split(array, 2)
    return transform, -carry


def _join_highway(transform: np.ndarray, gate: np.ndarray) -> np.ndarray:
    return np.concatenate([transform, -gate])


def _prefix(source: TorchSource) -> str:
    """What stands before the biLM's names."""
    found = [name.removesuffix(TABLE) for name in source.original if name.endswith(TABLE)]
    if not found:
        raise ValueError(
            f"{source.path} holds no AllenNLP ELMo: no tensor is called ...{TABLE}. Found {list(source.original)[:5]}, ..."
        )
    if len(found) > 1:
        raise ValueError(
            f"{source.path} holds {len(found)} biLMs, by their prefixes {found}. Save them apart."
        )
    return found[0]


def _owner(prefix: str) -> str:
    """The prefix of the `Elmo` module around the biLM, which holds the mixes."""
    return prefix.removesuffix("_elmo_lstm.")


def _mixes(source: TorchSource, prefix: str, do_layer_norm: bool) -> tuple["list[ScalarMix]", list[str]]:
    """The mixes, and the names that were read."""
    import torch

    from ..modeling.scalar_mix import ScalarMix

    pattern = re.compile(re.escape(_owner(prefix)) + r"scalar_mix_(\d+)\.(gamma|scalar_parameters\.(\d+))")
    numbers: dict[int, dict[int, float]] = {}
    names = []
    for name in source.original:
        if match := pattern.fullmatch(name):
            array = source.array(name)
            if array.size != 1 or not np.isfinite(array).all():
                raise ValueError(f"{source.path}: {name} must be one finite number, found {array.tolist()}.")
            numbers.setdefault(int(match[1]), {})[-1 if match[3] is None else int(match[3])] = array.item()
            names.append(name)
    mixes = []
    for number in sorted(numbers):
        parts = numbers[number]
        if sorted(parts) != list(range(-1, len(parts) - 1)) or len(parts) < 2:
            raise ValueError(
                f"{source.path}: scalar_mix_{number} needs gamma and scalar_parameters 0, 1, ...; found "
                f"{[name for name in names if f'scalar_mix_{number}.' in name]}."
            )
        weights = [parts[layer] for layer in range(len(parts) - 1)]
        mix = ScalarMix(len(weights), do_layer_norm, initial_scalar_parameters=weights)
        with torch.no_grad():
            mix.gamma.fill_(parts[-1])
        mixes.append(mix.eval())
    return mixes, names


def _check_boundaries(source: TorchSource, prefix: str, config: "ElmoConfig", world: ClosedWorld) -> None:
    """Read the buffers that some versions save: the character ids of `<S>` and `</S>`."""
    for buffer, inner in zip(BOUNDARIES, (config.bos_char_id, config.eos_char_id), strict=True):
        name = f"{prefix}_token_embedder.{buffer}"
        if name not in source:
            continue
        expected = np.full(config.max_characters_per_token, config.pad_char_id)
        expected[:3] = config.bow_char_id, inner, config.eow_char_id
        found = source.state[name].numpy()
        if found.shape != expected.shape or (found != expected).any():
            raise ValueError(
                f"{source.path}: {name} is {found.tolist()[:5]}..., {found.shape}; expected {expected.tolist()[:5]}..., "
                f"{expected.shape} by option char_cnn.max_characters_per_token."
            )
        world.leave(source, name)


def _hint(name: str) -> str:
    hints = {
        r".*_highways\..*": "char_cnn.n_highway",
        r".*char_conv_.*": "char_cnn.filters",
        r".*state_projection\..*": "lstm.n_layers, lstm.dim (AllenNLP projects even where it equals projection_dim)",
        r".*_layer_\d+\..*": "lstm.n_layers",
    }
    return next((hint for pattern, hint in hints.items() if re.fullmatch(pattern, name)), "")


__all__ = ["from_allennlp", "read_allennlp", "scalar_mixes"]
