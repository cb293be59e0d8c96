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
    """A language model from raw text: an ELMo biLM, an LSTM LM, or a stock model with one of the objectives."""

    objective: str = field(
        default="", metadata={"help": "What a stock model learns (`heirloom objectives`); by default none."}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "objective: longest row; by default what fits, up to 512."}
    )
    segmenter: str = field(
        default="",
        metadata={
            "help": "objective: what words are: jieba, gazetteer:FILE of phrases, or both with + between."
        },
    )
    mem_len: int | None = field(
        default=None,
        metadata={
            "help": "xlnet, transformer-xl: tokens before a row that stay in memory; by default 0 and 512."
        },
    )
    reuse_len: int | None = field(
        default=None,
        metadata={"help": "xlnet with mem_len: tokens of each row that become memory; by default half."},
    )
    model_type: Literal["elmo", "lstm-lm"] = field(
        default="elmo", metadata={"help": "A biLM over characters, or an LSTM LM over a tokenizer's tokens."}
    )
    model: str = field(
        default="",
        metadata={
            "help": "Checkpoint (folder or Hub name) to go on from; objective: or a config's fields, as JSON."
        },
    )
    batching: Literal["sentences", "stream"] = field(
        default="sentences",
        metadata={"help": "Padded sentences, or lanes of running text with the state carried on (bilm-tf)."},
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read sentences bit by bit: text larger than memory. Streams always do."},
    )
    unroll_steps: int = field(
        default=20, metadata={"help": "Positions of a stream's batch (truncated BPTT)."}
    )
    shuffle_buffer: int = field(
        default=100_000,
        metadata={"help": "Rows to choose the next from when text is read bit by bit; 0: its order."},
    )
    keep_blank: bool = field(default=False, metadata={"help": "Blank lines are sentences without words."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better held-out loss."}
    )

    vocab_file: str | None = field(
        default=None,
        metadata={"help": "elmo: words, one a line, in order of frequency; or counted from the text."},
    )
    vocab_size: int = field(
        default=10_000, metadata={"help": "elmo: words that the softmax can predict, at the most."}
    )
    min_count: int = field(
        default=2,
        metadata={"help": "elmo: rarer words are <UNK> as targets; as inputs they are spelled out."},
    )
    tokenizer: str = field(
        default="",
        metadata={
            "help": "lstm-lm: folder or Hub name of a fast tokenizer (`heirloom train-tokenizer`); objective: where the "
            "model has none."
        },
    )

    softmax: Literal["full", "sampled", "adaptive"] = field(
        default="full", metadata={"help": "The training loss; evaluation always covers the whole vocabulary."}
    )
    num_sampled: int = field(default=8192, metadata={"help": "Words drawn by the sampled softmax."})
    tie_word_embeddings: bool = field(default=False, metadata={"help": "Softmax weights = word table."})
    projection_size: int | None = field(
        default=128, metadata={"help": "Outputs of one direction; lstm-lm: 0 means no projection."}
    )
    cell_size: int = field(default=512, metadata={"help": "LSTM cells of one layer and direction."})
    num_hidden_layers: int = field(default=2, metadata={"help": "LSTM layers of each direction."})
    dropout: float = field(default=0.1, metadata={"help": "On the input of every layer and on the output."})
    embedding_size: int = field(default=128, metadata={"help": "lstm-lm: size of a token's vector."})
    word_embedding_size: int = field(
        default=0,
        metadata={
            "help": "elmo: size of a word table beside the characters (word mode: P and no characters)."
        },
    )
    max_characters_per_token: int = field(
        default=50, metadata={"help": "elmo: characters read of a word, two marks included."}
    )
    char_embedding_size: int = field(
        default=16,
        metadata={"help": "elmo: size of a character's vector; 0 reads no characters (word mode)."},
    )
    char_filters: str = field(
        default="[[1, 16], [2, 16], [3, 32], [4, 64], [5, 64]]",
        metadata={"help": "elmo: [width, count] pairs, as JSON."},
    )
    num_highway_layers: int = field(
        default=1, metadata={"help": "elmo: highway layers over the convolutions."}
    )

    def __post_init__(self):
        names = "max_tokens", "segmenter", "mem_len", "reuse_len"
        given = [f"--{name}" for name in names if getattr(self, name) not in (None, "")]
        if given and not self.objective:
            raise ValueError(
                f"{', '.join(given)}: for stock models only. Name what they learn in --objective (`heirloom objectives` "
                "lists them), or leave these out."
            )


@dataclass
class FinetuneArguments(DataArguments):
    """A task head on a pre-trained language model: ELMo's own heads, or a joint loss around any other one."""

    model: str = field(default="", metadata={"help": "Checkpoint (folder or Hub name) to start from."})
    task: Literal[
        "sequence-classification", "token-classification", "entailment", "similarity", "multiple-choice"
    ] = field(
        default="sequence-classification",
        metadata={
            "help": "A label for each text, each word, or each pair; a pair's similarity; the right choice."
        },
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Column with the label, the list of labels, or the right choice."}
    )
    second_text_column: str | None = field(
        default=None, metadata={"help": "Column with a pair's second text."}
    )
    choices_column: list[str] = field(
        default_factory=list, metadata={"help": "Column with the list of choices, or one column a choice."}
    )
    question_column: str | None = field(
        default=None, metadata={"help": "Column with a question that follows the context of choices."}
    )
    regression: bool | None = field(
        default=None, metadata={"help": "Labels are numbers to predict; by default for similarity only."}
    )
    train_fraction: float = field(
        default=1.0, metadata={"help": "Share of the training rows, chosen by the seed."}
    )
    train_rows: int | None = field(
        default=None, metadata={"help": "So many training rows, chosen by the seed."}
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Same model, random weights: what pre-training is worth."}
    )
    head_dropout: float | None = field(
        default=None, metadata={"help": "On what the head reads; by default 0.5 for ELMo and 0.1 otherwise."}
    )

    freeze_bilm: bool = field(
        default=False, metadata={"help": "elmo: train only the layer mix and the classifier."}
    )
    mix_l2: float = field(
        default=0.0, metadata={"help": "elmo: L2 term on the mix weights; 0.001 in the paper."}
    )
    pooling: Literal["mean", "max", "boundary"] = field(
        default="mean", metadata={"help": "elmo: how sentences are pooled."}
    )

    lm_loss_weight: float = field(
        default=0.5, metadata={"help": "Lambda: weight of the language model's loss beside the task's."}
    )
    lm_objective: Literal["auto", "causal", "masked"] = field(
        default="auto", metadata={"help": "What the language model predicts; auto: what it was trained for."}
    )
    lm_weight_schedule: Literal["constant", "linear", "cosine", "warm-up"] = field(
        default="constant", metadata={"help": "How lambda changes: falling to 0, or (warm-up) rising from 0."}
    )
    lm_on: Literal["all", "gold"] = field(
        default="all", metadata={"help": "Choices that the language model learns: all, or the right one."}
    )
    replay_file: list[str] = field(
        default_factory=list,
        metadata={"help": "General text for the language model's loss, in place of the task's text."},
    )
    forgetting_file: list[str] = field(
        default_factory=list,
        metadata={"help": "Held-out general text: its loss before and after, as table and picture."},
    )
    kl_weight: float = field(
        default=0.0, metadata={"help": "Weight of the divergence from the language model as it was."}
    )
    preset: Literal["none", "openai"] = field(
        default="none",
        metadata={"help": "openai: layout, dropout, optimizer and schedule of GPT's own code."},
    )
    layer_lr_decay: float = field(
        default=1.0, metadata={"help": "Each layer learns at so many times the rate of the one above it."}
    )
    unfreeze_every_epochs: float | None = field(
        default=None, metadata={"help": "Train the head first, then one more layer every so many epochs."}
    )
    transferred_layers: int | None = field(
        default=None, metadata={"help": "Keep the pre-trained weights of so many layers, from the bottom."}
    )
    max_tokens: int | None = field(
        default=None, metadata={"help": "Positions of a row with its marks; by default what fits, up to 256."}
    )
    truncation: Literal["longest_first", "context", "halves"] = field(
        default="longest_first", metadata={"help": "Which of two texts is cut where a row is too long."}
    )
    start_token: str = field(default="_start_", metadata={"help": "Mark before a row, new or known."})
    delimiter_token: str = field(default="_delimiter_", metadata={"help": "Mark between two texts."})
    classify_token: str = field(
        default="_classify_", metadata={"help": "Mark after a row, whose vector the head reads."}
    )
