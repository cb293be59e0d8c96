"""The ways to run one ELMo that benchmarks/elmo.py compares: each path and precision of `lstmp`, and the peer.

Letters: B sentences, S positions of the longest with marks, N positions, U distinct words, P projection.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import elmo_setup as setup
import timing
import torch
from torch import Tensor

from heirloom.modeling.lstmp_paths import lstmp_path, lstmp_paths
from heirloom.modeling.modeling_elmo import ElmoModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from reference.elmo_stepwise import ElmoStepwise

SYSTEMS = {  # name: way of `lstmp`, precision
    "loop": ("loop", "fp32"),
    "packed": ("packed", "fp32"),
    "native": ("native", "fp32"),
    "packed bf16": ("packed", "bf16"),
    "native bf16": ("native", "bf16"),
}
PEER, CACHED_PEER = "peer", "peer, cached vocabulary"
TOLERANCE, CLIPPED = 2e-5, 1e-3
# Now and then one cell in millions ends so near to its clip that it passes its gradient in one system and not in the other:
# 5e-5 were seen. Without such a cell, 2e-6.
GRADIENT_TOLERANCE = 1e-4
CAPACITY = 20_000  # words of a warm cache


class CountingTwin(ElmoStepwise):
    """Counts the cells that run into their clip."""

    cells = clipped = 0

    def cell_step(self, cell, *arguments) -> tuple[Tensor, Tensor]:
        """As in the twin."""
        h, c = super().cell_step(cell, *arguments)
        self.cells += c.numel()
        self.clipped += int((c.abs() >= cell.cell_clip).sum())
        return h, c


def make_peer(model: ElmoModel, name: str):
    """The twin, or AllenNLP's classes with the model's weights."""
    if name == "stepwise":
        return ElmoStepwise(model)
    from allennlp_peer import AllenNlpPeer

    return AllenNlpPeer(model)


class Bench:
    """A model of one size, its peer, and the words read so far.

    Args:
        size: a key of `SIZES`.
        peer: "stepwise" or "allennlp".
        seed: of weights and text.
    """

    def __init__(self, size: str, peer: str, seed: int):
        self.size, self.corpus = size, setup.Corpus(seed)
        self.model = setup.make_model(size, seed)
        self.config, self.peer = self.model.config, make_peer(self.model, peer)
        closed = lstmp_paths()
        self.systems = {name: one for name, one in SYSTEMS.items() if not closed[one[0]]}
        self.closed = {name: closed[way] for name, (way, _) in SYSTEMS.items() if closed[way]}
        self.warm, self.seen = {}, set()

    def is_half(self, name: str) -> bool:
        """Whether a system's products are of bfloat16."""
        return name in self.systems and self.systems[name][1] == "bf16"

    def fill_caches(self) -> None:
        """Give each system a model with a word cache of its own, filled with text that is not timed."""
        self.seen |= {word for words in self.corpus.take(setup.FILL) for word in words}
        char_ids = setup.word_char_ids(sorted(self.seen), self.config)
        for name in self.systems:
            model = self.warm[name] = copy.copy(self.model)  # shares the weights
            model._modules = dict(model._modules, token_encoder=copy.copy(model.token_encoder))
            model.token_encoder.cached_words = CAPACITY
            with torch.no_grad():
                for part in char_ids.split(1024):
                    model.token_encoder(None, part)

    @torch.no_grad()
    def clipped(self) -> float:
        """The share of cells that are clipped in some sentences; too few end the program."""
        (batch,), _ = setup.make_batches([self.corpus.take(4)], self.config)
        twin = CountingTwin(self.model)
        twin(batch.char_ids)
        share = twin.clipped / twin.cells
        if share <= CLIPPED:
            raise SystemExit(f"only {share:.3%} of the cells are clipped, expected more than {CLIPPED:.1%}.")
        return share

    @contextmanager
    def choose(self, name: str) -> Iterator[None]:
        """Run `lstmp` as a system does."""
        path, self.config.precision = self.systems[name]
        try:
            with lstmp_path(path):
                yield
        finally:
            self.config.precision = "fp32"

    @torch.no_grad()
    def run(self, name: str, batch: setup.Batch, warm: bool = False) -> tuple[Tensor, ...]:
        """Layers 0..L (B, S, 2 P) by a system."""
        model = self.warm[name] if warm else self.model
        with self.choose(name):
            return model(
                char_ids=batch.char_ids, output_hidden_states=True, keep_boundaries=True
            ).hidden_states

    @torch.no_grad()
    def vectors(self, batch: setup.Batch) -> tuple[Tensor, Tensor]:
        """Vectors of the distinct words (U, P), and of all positions as the peer wants them (B, S, P)."""
        padded = self.peer(batch.char_ids)[0][:, :, : self.config.projection_size]
        vectors = padded.new_empty(batch.distinct, padded.shape[2])
        vectors[batch.index] = padded[batch.mask]
        return vectors, padded.contiguous()

    def floor(self, name: str, batch: setup.Batch, ceilings: dict, encoded: int) -> float:
        """The least seconds of a system that makes so many words' vectors."""
        if name in (PEER, CACHED_PEER):  # all columns, and nothing once for several positions
            work = encoded, batch.positions, self.config.max_characters_per_token
        else:
            work = encoded, batch.distinct, setup.used_columns(batch, self.config)
        return setup.floor(self.config, batch, ceilings, *work, self.is_half(name))

    def ceilings(self, threads: int) -> dict[str, float]:
        """FLOP/s and bytes/s of this machine now."""
        found = {}
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            size = setup.recurrent_bytes(self.config, name == "bf16")
            found[name] = timing.product_peak(dtype, threads)
            found[f"{name} weights"] = timing.read_bandwidth(size, threads)
        return found


def compare(name: str, wanted: list[Tensor], found: list[Tensor], half: bool) -> dict:
    """Differences of layers (N, H); in float32 more than the tolerance ends the program."""
    pairs = list(zip(found, wanted, strict=True))
    largest = max(float((one - other).abs().max()) for one, other in pairs)
    if not half and not largest <= TOLERANCE:
        raise SystemExit(f"{name} differs from the peer by {largest:.1e}, expected at most {TOLERANCE:.0e}.")
    layers = []
    for one, other in pairs:
        cosines = torch.cosine_similarity(one.double(), other.double(), dim=1)
        layers.append(
            {
                "relative_rms": float((one - other).norm() / other.norm()),
                "mean_cosine": float(cosines.mean()),
                "worst_cosine": float(cosines.min()),
            }
        )
    return {"largest": largest, "layers": layers}


def compare_gradients(name: str, wanted: list[Tensor], found: list[Tensor]) -> float:
    """The largest relative difference of any gradient; more than the tolerance ends the program."""
    pairs = zip(found, wanted, strict=True)
    largest = max(float((one - other).norm() / other.norm()) for one, other in pairs)
    if not largest <= GRADIENT_TOLERANCE:
        raise SystemExit(
            f"gradients of {name} differ from the peer's by {largest:.1e}, expected at most {GRADIENT_TOLERANCE:.0e}."
        )
    return largest
