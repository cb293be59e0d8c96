"""What benchmarks/elmo.py measures with: models of random weights, text, and the least time that a machine could take.

Letters: B sentences, T words of the longest, N positions with marks, U distinct words, C characters, P projection, D cells,
L layers.
"""

import math
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.modeling_elmo import ElmoModel
from heirloom.modeling.packing import around_sentences, pack
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer

# A sample has so many sentences and batches at least: single short runs say nothing about a busy machine.
SIZES = {
    "original": {"config": {}, "sentences": 4, "batches": 1},
    "small": {
        "config": {"projection_size": 128, "cell_size": 1024, "num_highway_layers": 1},
        "sentences": 32,
        "batches": 4,
    },
}
TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "multi30k" / "train.en"
WORDS = 25  # of a sentence of equal length
FILL = 2_000  # sentences that warm the word cache
INPUT_SCALE, STATE_SCALE, OUTPUT_SCALE = (
    1.0,
    1.0,
    1.3,
)  # of random LSTM weights; about 1 % of the cells are clipped
SYLLABLES = [
    "ka",
    "ro",
    "mi",
    "te",
    "lo",
    "shu",
    "ben",
    "dar",
    "in",
    "es",
    "gor",
    "plan",
    "vi",
    "do",
    "thra",
    "ul",
    "sey",
    "quo",
]


@dataclass
class Batch:
    """Sentences and their ids.

    Args:
        sentences: lists of words.
        char_ids: (B, T, C).
        word_ids: (B, T), ids in a vocabulary of all words that are timed; 0 is padding.
        index: (N,), which distinct word stands at each position, marks included.
    """

    sentences: list[list[str]]
    char_ids: Tensor
    word_ids: Tensor
    index: Tensor

    @property
    def lengths(self) -> Tensor:
        """(B,) positions of each sentence with its marks."""
        return (self.word_ids > 0).sum(1) + 2

    @property
    def words(self) -> list[str]:
        """Of all sentences."""
        return [word for sentence in self.sentences for word in sentence]

    @property
    def mask(self) -> Tensor:
        """(B, T + 2), true at the positions of sentences."""
        return torch.arange(self.word_ids.shape[1] + 2) < self.lengths[:, None]

    @property
    def distinct(self) -> int:
        """U, marks included."""
        return int(self.index.max()) + 1

    @property
    def positions(self) -> int:
        """N, marks included."""
        return len(self.index)

    @property
    def batch_sizes(self) -> list[int]:
        """Rows alive at each step."""
        return pack(self.lengths)[1]


class Corpus:
    """Pairs of Multi30k's sentences, each taken once; without the data, words of syllables with a natural frequency."""

    def __init__(self, seed: int):
        generator = random.Random(seed)
        if TEXT.is_file():
            lines = [
                re.findall(r"\w+|[^\w\s]", line) for line in TEXT.read_text(encoding="utf-8").splitlines()
            ]
            self.pairs = [first + second for first, second in zip(lines[::2], lines[1::2], strict=False)]
            generator.shuffle(self.pairs)
            self.origin = "pairs of Multi30k"
        else:
            self.pairs = [drawn_sentence(generator) for _ in range(4 * FILL)]
            self.origin = "drawn words"
        self.place = 0

    def take(self, count: int, equal: bool = False) -> list[list[str]]:
        """The next sentences, of their natural length or all of `WORDS` words; from the start again at the end."""
        found = []
        while len(found) < count:
            words = self.pairs[self.place % len(self.pairs)]
            self.place += 1
            if not equal:
                found.append(words)
            elif len(words) >= WORDS:
                found.append(words[:WORDS])
        return found


def drawn_sentence(generator: random.Random) -> list[str]:
    """14 to 40 words; word k has a frequency near 1 / k and is spelled by the digits of k."""
    words = []
    for _ in range(generator.randint(14, 40)):
        number, word = int(math.exp(generator.random() * math.log(20_000))), ""
        while number:
            number, digit = divmod(number, len(SYLLABLES))
            word += SYLLABLES[digit]
        words.append(word)
    return words


def batches_of_sample(size: str, rows: int) -> int:
    """How many batches of so many sentences a sample has."""
    return max(SIZES[size]["batches"], SIZES[size]["sentences"] // rows)


def make_batches(groups: list[list[list[str]]], config: ElmoConfig) -> tuple[list[Batch], ElmoTokenizer]:
    """Encode batches of sentences, and the vocabulary of all their words."""
    words = {word for sentences in groups for sentence in sentences for word in sentence}
    tokenizer = ElmoTokenizer.from_words(
        sorted(words), max_characters_per_token=config.max_characters_per_token
    )
    batches = []
    for sentences in groups:
        ids = tokenizer(sentences, is_split_into_words=True, padding=True, return_tensors="pt")
        lengths = torch.tensor([len(sentence) for sentence in sentences])
        marks = [tokenizer.vocab_size, tokenizer.vocab_size + 1]
        flat = torch.cat([ids["input_ids"][ids["attention_mask"].bool()], torch.tensor(marks)])
        flat = flat.index_select(0, around_sentences(lengths))
        index = flat.unique(return_inverse=True)[1]
        batches.append(Batch(sentences, ids["char_ids"], ids["input_ids"], index))
    return batches, tokenizer


def word_char_ids(words: Iterable[str], config: ElmoConfig) -> Tensor:
    """(n, C) character ids of words."""
    tokenizer = ElmoTokenizer.from_words((), max_characters_per_token=config.max_characters_per_token)
    sentences = [[word] for word in words]
    return tokenizer(sentences, is_split_into_words=True, return_tensors="pt")["char_ids"][:, 0]


@torch.no_grad()
def make_model(size: str, seed: int) -> ElmoModel:
    """Random weights of a trained model's scale: token vectors near one, and some cells run into their clip."""
    torch.manual_seed(seed)
    model = ElmoModel(ElmoConfig(**SIZES[size]["config"], dropout=0.0)).eval()
    encoder, config = model.token_encoder, model.config
    words = word_char_ids([word for _ in range(8) for word in drawn_sentence(random.Random(seed))], config)
    encoder.cached_words = 0
    encoder.projection.weight.div_(encoder(None, words).std())
    for layers in (model.lstm.forward_layers, model.lstm.backward_layers):
        for layer in layers:
            layer.weight_ih.normal_(std=INPUT_SCALE / math.sqrt(config.projection_size))
            layer.weight_hh.normal_(std=STATE_SCALE / math.sqrt(config.projection_size))
            layer.weight_proj.normal_(std=OUTPUT_SCALE / math.sqrt(config.cell_size))
            layer.bias.normal_(std=0.2)
    return model


def encoder_flops(config: ElmoConfig, columns: int) -> int:
    """FLOPs of one word's vector, convolved over so many of its characters."""
    widths = config.char_filters
    convolutions = sum(
        2 * width * config.char_embedding_size * count * (columns - width + 1) for width, count in widths
    )
    highways = config.num_highway_layers * 4 * config.num_filters**2
    return convolutions + highways + 2 * config.num_filters * config.projection_size


def recurrent_bytes(config: ElmoConfig, half: bool) -> int:
    """Weights of one direction and layer that every step reads."""
    return (2 if half else 4) * 5 * config.cell_size * config.projection_size


def used_columns(batch: Batch, config: ElmoConfig) -> int:
    """Characters that must be convolved: the longest word and one window of padding behind it."""
    longest = max(len(word.encode()) for word in batch.words) + 2
    widest = max(width for width, _ in config.char_filters)
    return min(config.max_characters_per_token, longest + widest)


def floor(
    config: ElmoConfig, batch: Batch, ceilings: dict, encoded: int, distinct: int, columns: int, half: bool
) -> float:
    """The least seconds for a batch: products at the measured peak, each step at that peak or as fast as weights are read.

    Args:
        config: the model's.
        batch: what is computed.
        ceilings: FLOP/s `fp32` and `bf16`, bytes/s `fp32 weights` and `bf16 weights`.
        encoded: words whose vectors are made.
        distinct: inputs of the first layer's product.
        columns: characters of each word that are convolved.
        half: the LSTM's products are of bfloat16; those of the vectors are float32 always.
    """
    name = "bf16" if half else "fp32"
    gates = (
        8 * config.cell_size * config.projection_size
    )  # FLOPs of a direction's input product, per position
    inputs = 2 * gates * (distinct + (config.num_hidden_layers - 1) * batch.positions)
    reading = recurrent_bytes(config, half) / ceilings[f"{name} weights"]
    steps = sum(max(1.25 * gates * rows / ceilings[name], reading) for rows in batch.batch_sizes)
    vectors = encoded * encoder_flops(config, columns) / ceilings["fp32"]
    return vectors + inputs / ceilings[name] + 2 * config.num_hidden_layers * steps
