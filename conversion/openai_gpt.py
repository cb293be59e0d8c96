"""The released model of openai/finetune-transformer-lm (Radford et al. 2018) as a stock checkpoint with its tokenizer.

A folder holds `params_shapes.json`, `params_0.npy`, `params_1.npy`, ... (one long line of numbers, cut anywhere),
`encoder_bpe_40000.json` and `vocab_40000.bpe`. The arrays have no names but an order: positions, tokens, then twelve for each
block, 146 in the released model. How many heads there are is written nowhere.

Transformers' tokenizer has neither the original's ftfy nor its spaCy, so some words come out in other pieces.

Letters: V tokens, P positions, H features.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .closed_world import Comparison, existing_file
from .saving import new_folder

if TYPE_CHECKING:
    from transformers import OpenAIGPTLMHeadModel, OpenAIGPTTokenizer

SHAPES_FILE, VOCABULARY_FILE, MERGES_FILE = "params_shapes.json", "encoder_bpe_40000.json", "vocab_40000.bpe"
POSITIONS, TOKENS = "transformer.positions_embed.weight", "transformer.tokens_embed.weight"
HEADS = 12  # of the released model


@dataclass
class OpenAIGPTFiles:
    """What a folder holds.

    Args:
        arrays: by the name of the parameter that each becomes, in the order of the files.
        vocabulary: id of each piece.
        merges: pairs of pieces, the first ones first.
    """

    arrays: dict[str, np.ndarray]
    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]

    def state(self) -> dict:
        """Tensors by the names of `OpenAIGPTLMHeadModel`, whose head is the table of tokens."""
        import torch

        return {name: torch.from_numpy(array) for name, array in self.arrays.items()}

    def tokenizer(self) -> "OpenAIGPTTokenizer":
        """Transformers' tokenizer of the same pieces."""
        from transformers import OpenAIGPTTokenizer

        return OpenAIGPTTokenizer(vocab=self.vocabulary, merges=self.merges)


def parameter_shapes(blocks: int, tokens: int, positions: int, size: int) -> dict[str, tuple[int, ...]]:
    """Names of the parameters in the order of the files, with the shapes that Transformers gives them.

    Args:
        blocks: of the model.
        tokens: V.
        positions: P.
        size: H.
    """
    block = {
        "attn.c_attn.weight": (size, 3 * size),
        "attn.c_attn.bias": (3 * size,),
        "attn.c_proj.weight": (size, size),
        "attn.c_proj.bias": (size,),
        "ln_1.weight": (size,),
        "ln_1.bias": (size,),
        "mlp.c_fc.weight": (size, 4 * size),
        "mlp.c_fc.bias": (4 * size,),
        "mlp.c_proj.weight": (4 * size, size),
        "mlp.c_proj.bias": (size,),
        "ln_2.weight": (size,),
        "ln_2.bias": (size,),
    }
    shapes = {POSITIONS: (positions, size), TOKENS: (tokens, size)}
    for number in range(blocks):
        shapes |= {f"transformer.h.{number}.{name}": shape for name, shape in block.items()}
    return shapes


def read_openai_gpt(folder: str | Path) -> OpenAIGPTFiles:
    """Read a folder and check every shape.

    Args:
        folder: of the released files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: files that do not fit one another, or no such model.
    """
    folder = Path(folder)
    shapes = _shapes(existing_file(folder / SHAPES_FILE, "the shapes of the arrays"))
    arrays = _arrays(folder, shapes)
    vocabulary = json.loads(
        existing_file(folder / VOCABULARY_FILE, "the vocabulary").read_text(encoding="utf-8")
    )
    rows = arrays[TOKENS].shape[0]
    if sorted(vocabulary.values()) != list(range(rows)):
        raise ValueError(
            f"{VOCABULARY_FILE} must number {rows} pieces from 0, as many as the table of tokens has rows, found "
            f"{len(vocabulary)}. Take both files from one release."
        )
    merges = _merges(existing_file(folder / MERGES_FILE, "the merges"))
    unknown = [pair for pair in merges if not {*pair, "".join(pair)} <= vocabulary.keys()]
    if unknown:
        raise ValueError(
            f"{MERGES_FILE} joins pieces that {VOCABULARY_FILE} does not know, {unknown[:3]} and {len(unknown)} in all. Take "
            "both files from one release."
        )
    return OpenAIGPTFiles(arrays, vocabulary, merges)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Parameters in the order of the files, with the files' own shapes."""
    found = [tuple(shape) for shape in json.loads(file.read_text(encoding="utf-8"))]
    blocks, rest = divmod(len(found) - 2, 12)
    if rest or blocks < 1 or len(found[0]) != 2 or len(found[1]) != 2:
        raise ValueError(
            f"{file.name} must hold the shapes of positions (P, H), tokens (V, H) and 12 arrays a block (146 for 12 blocks), "
            f"found {len(found)} arrays that begin {found[:2]}."
        )
    (positions, size), (tokens, _) = found[:2]
    expected = parameter_shapes(blocks, tokens, positions, size)
    for number, (shape, (name, wanted)) in enumerate(zip(found, expected.items(), strict=True)):
        # The original's weights are kernels of a convolution over one position: (1, in, out).
        if shape != wanted and not (shape == (1, *wanted) and len(wanted) == 2 and number > 1):
            raise ValueError(
                f"array {number} of {file.name} is {name} and must have the shape {wanted}, found {shape}. This is not a "
                "model of openai/finetune-transformer-lm."
            )
    return expected


def _arrays(folder: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    numbered = {}
    for path in folder.glob("params_*.npy"):
        if match := re.fullmatch(r"params_(\d+)\.npy", path.name):
            numbered[int(match[1])] = path
    if sorted(numbered) != list(range(len(numbered))) or not numbered:
        raise FileNotFoundError(
            f"{folder} must hold params_0.npy, params_1.npy, ... without a gap, found {sorted(numbered)}. Copy all of them."
        )
    try:
        parts = [np.load(numbered[number], allow_pickle=False).reshape(-1) for number in range(len(numbered))]
    except (ValueError, EOFError) as error:
        raise ValueError(
            f"a params_*.npy of {folder} is no array of numbers: {error}. Copy it again."
        ) from error
    line = np.concatenate(parts)
    wanted = sum(math.prod(shape) for shape in shapes.values())
    if line.dtype != np.float32 or len(line) != wanted:
        raise ValueError(
            f"params_*.npy must hold {wanted:,} numbers of float32 in all, as {SHAPES_FILE} says, found {len(line):,} of "
            f"{line.dtype} in {len(parts)} files. Copy all of them again."
        )
    if not np.isfinite(line).all():
        raise ValueError(f"params_*.npy of {folder} hold numbers that are not finite. Copy them again.")
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = np.split(line, ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), pieces, strict=True)}


def _merges(file: Path) -> list[tuple[str, str]]:
    """Pairs; the file's first line is a version, as in the original's reader."""
    lines = [line for line in file.read_text(encoding="utf-8").split("\n")[1:] if line.strip()]
    pairs = [tuple(line.split()) for line in lines]
    wrong = [line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2]
    if wrong:
        raise ValueError(f"{file.name} must have two pieces on each line, found {wrong[0]!r:.80}.")
    return pairs


def to_openai_gpt(files: OpenAIGPTFiles, heads: int = HEADS) -> "OpenAIGPTLMHeadModel":
    """The stock model with these numbers.

    Args:
        files: of `read_openai_gpt`.
        heads: of each block.

    Returns:
        A model of Transformers, in evaluation mode.

    Raises:
        ValueError: features that do not divide by the heads.
    """
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    (tokens, size), positions = files.arrays[TOKENS].shape, files.arrays[POSITIONS].shape[0]
    if heads < 1 or size % heads:
        raise ValueError(f"{size} features must divide by the number of heads, found {heads}. Give --heads.")
    blocks = (len(files.arrays) - 2) // 12
    config = OpenAIGPTConfig(
        vocab_size=tokens, n_positions=positions, n_embd=size, n_layer=blocks, n_head=heads
    )
    model = OpenAIGPTLMHeadModel(config)
    missing, unexpected = model.load_state_dict(files.state(), strict=False)
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ValueError(
            f"Transformers' openai-gpt has other parameters than expected: {missing} and {unexpected}; that is a bug of "
            "heirloom."
        )
    return model.eval()


def save_openai_gpt(
    folder: str | Path, out: str | Path, heads: int = HEADS
) -> tuple[list[Comparison], list[str]]:
    """Convert a folder, load the checkpoint again and compare every number.

    Args:
        folder: of the released files.
        out: a new folder.
        heads: of each block.

    Returns:
        One `Comparison` a group of arrays, and what was odd but usable.

    Raises:
        FileExistsError: the new folder holds something.
        FileNotFoundError: a file is missing.
        ValueError: as `read_openai_gpt` and `to_openai_gpt`, or a checkpoint that differs; no folder is made then.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with new_folder(out) as place:
        files = read_openai_gpt(folder)
        to_openai_gpt(files, heads).save_pretrained(place)
        files.tokenizer().save_pretrained(place)
        rows = _compare(files, AutoModelForCausalLM.from_pretrained(place).state_dict())
        if not all(row.exact for row in rows):
            raise ValueError(f"{out} would differ from {folder}; that is a bug of heirloom.")
        if AutoTokenizer.from_pretrained(place).get_vocab() != files.vocabulary:
            raise ValueError(f"The tokenizer changed on its way through {out}; that is a bug of heirloom.")
    return rows, ["text is not cleaned by ftfy and spaCy as in the original: some words have other pieces"]


def _compare(files: OpenAIGPTFiles, state: dict) -> list[Comparison]:
    rows: dict[str, Comparison] = {}
    for name, array in [*files.arrays.items(), ("lm_head.weight", files.arrays[TOKENS])]:
        group = "lm_head (tied)" if name == "lm_head.weight" else ".".join(name.split(".")[1:3])
        row = rows.setdefault(group.removesuffix(".weight"), Comparison(group.removesuffix(".weight")))
        found = state[name].numpy()
        if name != "lm_head.weight":
            row.arrays, row.numbers = row.arrays + 1, row.numbers + array.size
        row.shape = max(row.shape, array.shape, key=math.prod)
        row.difference = max(row.difference, float(abs(found - array).max()))
        row.exact = row.exact and found.tobytes() == array.tobytes()
    return list(rows.values())


__all__ = [
    "OpenAIGPTFiles",
    "parameter_shapes",
    "read_openai_gpt",
    "save_openai_gpt",
    "to_openai_gpt",
]
