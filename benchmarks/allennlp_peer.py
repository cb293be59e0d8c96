"""AllenNLP's own ELMo classes as the peer of benchmarks/elmo.py, on any torch, from `pip install --no-deps allennlp==2.10.1`.

AllenNLP pins an old torch and imports spaCy and more at its top; its four ELMo files need none of that. So they are loaded
here without the packages' own `__init__`, and what they import but do not use in a biLM's forward is replaced by empty names.
"""

import importlib
import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from heirloom.conversion.bilm import write_bilm
from heirloom.modeling.modeling_elmo import ElmoModel

PACKAGES = ("", ".common", ".data", ".data.token_indexers", ".data.tokenizers", ".modules", ".nn")
EMPTY = (  # modules that the ELMo files import names from
    ".common.file_utils",
    ".common.util",
    ".data.batch",
    ".data.fields",
    ".data.instance",
    ".data.token_indexers.elmo_indexer",
    ".data.tokenizers.token_class",
    ".data.vocabulary",
    ".nn.initializers",
)


class Hollow(ModuleType):
    """Has every name that is asked for: an empty class."""

    def __getattr__(self, name: str) -> type:
        """The class, which is kept."""
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (), {})
        setattr(self, name, found)
        return found


def load_classes() -> ModuleType:
    """The module `allennlp.modules.elmo`.

    Raises:
        SystemExit: AllenNLP is not installed, or another version that needs more.
    """
    spec = importlib.util.find_spec("allennlp")
    if spec is None:
        raise SystemExit("--peer allennlp needs AllenNLP: pip install --no-deps allennlp==2.10.1")
    root = Path(spec.origin).parent
    for name in PACKAGES:
        package = Hollow(f"allennlp{name}")
        package.__path__ = [str(root.joinpath(*name.split(".")))]
        sys.modules[package.__name__] = package
    for name in EMPTY:
        sys.modules[f"allennlp{name}"] = Hollow(f"allennlp{name}")
    sys.modules["allennlp.common.file_utils"].cached_path = str
    sys.modules["allennlp.nn.initializers"].block_orthogonal = lambda *_: None  # weights are read afterwards
    sys.modules["allennlp.common.util"].int_to_device = torch.device
    indexer = sys.modules["allennlp.data.token_indexers.elmo_indexer"]

    class Marks:
        beginning_of_sentence_characters = [258, 256, 259] + [260] * 47
        end_of_sentence_characters = [258, 257, 259] + [260] * 47

    indexer.ELMoCharacterMapper = Marks
    try:
        return importlib.import_module("allennlp.modules.elmo")
    except (ImportError, AttributeError, TypeError) as error:
        raise SystemExit(
            f"--peer allennlp: AllenNLP's files cannot be loaded ({error}); 2.10.1 can."
        ) from error


class AllenNlpPeer:
    """As `ElmoStepwise`, by AllenNLP, with copies of the weights."""

    def __init__(self, model: ElmoModel):
        module = load_classes()
        self.size = model.config.projection_size
        with tempfile.TemporaryDirectory() as folder:
            write_bilm(model, folder)
            files = f"{folder}/options.json", f"{folder}/weights.hdf5"
            self.bilm = module._ElmoBiLm(*files, requires_grad=True)
        lstm = self.bilm._elmo_lstm
        self.cells = [*lstm.forward_layers, *lstm.backward_layers]

    def parameters(self) -> list[Tensor]:
        """Weights of the LSTMs, four of each direction and layer."""
        return [
            weight
            for cell in self.cells
            for weight in (
                cell.input_linearity.weight,
                cell.state_linearity.weight,
                cell.state_linearity.bias,
                cell.state_projection.weight,
            )
        ]

    def __call__(self, char_ids: Tensor) -> list[Tensor]:
        """Layers 0..L (B, S, 2 P), from zero states."""
        self.bilm._elmo_lstm.reset_states()
        return self.bilm(char_ids)["activations"]

    def make_table(self, char_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Put a vocabulary (V, C) into AllenNLP's cache of words; what is returned is not used."""
        with torch.no_grad():
            vectors = [
                self.bilm._token_embedder(part.unsqueeze(1))["token_embedding"] for part in char_ids.split(64)
            ]
        vectors = torch.cat(vectors)  # (V, 3, P)
        table, marks = vectors[:, 1], vectors[0, ::2]
        table[0] = 0
        self.bilm._bos_embedding, self.bilm._eos_embedding = marks
        self.bilm._word_embedding = torch.nn.Embedding.from_pretrained(table, padding_idx=0)
        return table, marks

    def look_up(self, word_ids: Tensor, table: Tensor, marks: Tensor) -> list[Tensor]:
        """Layers 0..L from AllenNLP's cache of words."""
        self.bilm._elmo_lstm.reset_states()
        return self.bilm(word_ids, word_ids)["activations"]

    def stacks(self, vectors: Tensor, lengths: Tensor) -> list[Tensor]:
        """LSTM layers 1..L (B, S, 2 P) of token vectors (B, S, P)."""
        self.bilm._elmo_lstm.reset_states()
        mask = torch.arange(vectors.shape[1]) < lengths[:, None]
        return list(self.bilm._elmo_lstm(vectors, mask))
