"""What a recipe may say besides Trainer's own options: one field an option, the same names in YAML and on the command line."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class DataArguments:
    """Where the text comes from."""

    train_file: list[str] = field(
        default_factory=list,
        metadata={"help": "Files (.txt .jsonl .csv .tsv .parquet), or one data set of the Hub."},
    )
    validation_file: list[str] = field(
        default_factory=list,
        metadata={"help": "The same for evaluation; without it part of the training rows is held out."},
    )
    text_column: str | None = field(default=None, metadata={"help": "Column with text or lists of words."})
    tokenized: bool = field(default=False, metadata={"help": "Words are separated by spaces already."})
    max_words: int = field(
        default=64, metadata={"help": "Longer sentences are cut (pre-training) or truncated (tasks)."}
    )


@dataclass
class PretrainArguments(DataArguments):
    """A biLM from raw text."""

    vocab_size: int = field(
        default=10_000, metadata={"help": "Words that the softmax can predict, at the most."}
    )
    min_count: int = field(
        default=2, metadata={"help": "Rarer words are <UNK> as targets; as inputs they are spelled out."}
    )
    max_characters_per_token: int = field(
        default=50, metadata={"help": "Characters read of a word, two marks included."}
    )
    char_embedding_size: int = field(default=16, metadata={"help": "Size of a character's vector."})
    char_filters: str = field(
        default="[[1, 16], [2, 16], [3, 32], [4, 64], [5, 64]]",
        metadata={"help": "[width, count] pairs, as JSON."},
    )
    num_highway_layers: int = field(default=1, metadata={"help": "Highway layers over the convolutions."})
    projection_size: int = field(
        default=128, metadata={"help": "Size of one direction; vectors have twice that."}
    )
    cell_size: int = field(default=512, metadata={"help": "LSTM cells of one layer and direction."})
    num_hidden_layers: int = field(default=2, metadata={"help": "LSTM layers of each direction."})
    dropout: float = field(default=0.1, metadata={"help": "On the input of every layer and on the output."})


@dataclass
class FinetuneArguments(DataArguments):
    """A task head on a biLM."""

    model: str = field(default="", metadata={"help": "Checkpoint (folder or Hub name) to start from."})
    task: Literal["token-classification", "sequence-classification"] = field(
        default="sequence-classification", metadata={"help": "A label for each word, or for each sentence."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column with the label, or the list of labels."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Same model, random weights: what pre-training is worth."}
    )
    freeze_bilm: bool = field(
        default=False, metadata={"help": "Train only the layer mix and the classifier."}
    )
    head_dropout: float = field(default=0.5, metadata={"help": "On the mixed vectors."})
    mix_l2: float = field(default=0.0, metadata={"help": "L2 term on the mix weights; 0.001 in the paper."})
    pooling: Literal["mean", "max", "boundary"] = field(
        default="mean", metadata={"help": "How sentences are pooled."}
    )
    train_fraction: float = field(
        default=1.0, metadata={"help": "Share of the training rows, chosen by the seed."}
    )
