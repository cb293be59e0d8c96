"""What a recipe of joint seq2seq training may say besides Trainer's own options."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Seq2SeqArguments:
    """An encoder-decoder from pairs of lines and monolingual text."""

    model: str = field(
        default="",
        metadata={"help": "Checkpoint (folder or Hub name), e.g. of `heirloom convert seq2seq`."},
    )
    from_scratch: bool = field(
        default=False, metadata={"help": "Same model, random weights: what the language models are worth."}
    )
    dropout: float | None = field(
        default=None, metadata={"help": "lstm-seq2seq: instead of the checkpoint's."}
    )
    source_tokenizer: str = field(
        default="", metadata={"help": "Folder or Hub name, instead of the checkpoint's own."}
    )
    target_tokenizer: str = field(
        default="", metadata={"help": "Folder or Hub name, instead of the checkpoint's own."}
    )

    train_source: list[str] = field(
        default_factory=list, metadata={"help": "Files with one source a line; the same lines as the target."}
    )
    train_target: list[str] = field(default_factory=list, metadata={"help": "Files with one target a line."})
    validation_source: list[str] = field(
        default_factory=list,
        metadata={"help": "The same for evaluation; without it part of the pairs is held out."},
    )
    validation_target: list[str] = field(default_factory=list, metadata={"help": "Likewise."})
    train_file: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Instead of two files: a table (.tsv .csv .jsonl .parquet) or data set of the Hub."
        },
    )
    validation_file: list[str] = field(default_factory=list, metadata={"help": "Likewise for evaluation."})
    source_column: str | None = field(default=None, metadata={"help": "Of a table."})
    target_column: str | None = field(default=None, metadata={"help": "Of a table."})
    max_source_tokens: int = field(default=256, metadata={"help": "Of a source; see too_long."})
    max_target_tokens: int = field(default=256, metadata={"help": "Of a target; see too_long."})
    too_long: Literal["error", "truncate", "truncate_source", "drop"] = field(
        default="error", metadata={"help": "What to do with pairs of which a side is too long."}
    )
    empty_pairs: Literal["error", "drop"] = field(
        default="error", metadata={"help": "What to do with pairs of which a side is blank."}
    )
    train_pairs: int = field(
        default=0, metadata={"help": "Use only so many pairs, from the first on; 0 for all."}
    )

    source_monolingual: list[str] = field(
        default_factory=list,
        metadata={"help": "Source text to go on training its language model on: files, folders, patterns."},
    )
    target_monolingual: list[str] = field(default_factory=list, metadata={"help": "Likewise of the target."})
    source_monolingual_validation: list[str] = field(
        default_factory=list,
        metadata={"help": "Text for its perplexity; without it the sources of the validation pairs."},
    )
    target_monolingual_validation: list[str] = field(default_factory=list, metadata={"help": "Likewise."})
    source_monolingual_batch_size: int | None = field(
        default=None,
        metadata={"help": "Sentences beside one batch of pairs, a device; by default as many as pairs."},
    )
    target_monolingual_batch_size: int | None = field(default=None, metadata={"help": "Likewise."})
    source_lm_weight: float = field(
        default=1.0, metadata={"help": "Of the language model's loss; the seq2seq loss has 1."}
    )
    target_lm_weight: float = field(default=1.0, metadata={"help": "Likewise."})
    lm_weight_schedule: Literal["constant", "linear", "cosine", "warm-up"] = field(
        default="constant", metadata={"help": "How both weights change: linear and cosine fall to 0."}
    )

    forgetting: Literal["lm_loss", "ewc", "l2sp", "freeze", "none"] = field(
        default="lm_loss", metadata={"help": "What keeps the language models from being forgotten."}
    )
    forgetting_weight: float = field(
        default=1.0, metadata={"help": "Of ewc (1 stands for an LM loss of weight 1) or l2sp (try 0.01)."}
    )
    inherited: list[str] = field(
        default_factory=list,
        metadata={"help": "ewc, l2sp, freeze: which parameters, by the beginnings of their names."},
    )
    freeze_steps: int = field(default=1000, metadata={"help": "freeze: for so many steps."})
    source_fisher: str = field(
        default="",
        metadata={
            "help": "ewc: folder of the source's language model; measured and stored there if need be."
        },
    )
    target_fisher: str = field(default="", metadata={"help": "Likewise."})
    fisher_sentences: int = field(default=1000, metadata={"help": "ewc: measure on so many sentences."})

    predict_with_generate: bool = field(
        default=False,
        metadata={"help": "Score generated validation targets at each evaluation; see metrics."},
    )
    metrics: list[str] = field(
        default_factory=lambda: ["bleu", "chrf"],
        metadata={"help": "Of them bleu, chrf, rouge: logs eval_bleu, eval_rougeL and so on."},
    )
    generation_max_length: int | None = field(
        default=None, metadata={"help": "Of them, with the start; by default max_target_tokens + 1."}
    )
    generation_num_beams: int | None = field(default=None, metadata={"help": "By default the checkpoint's."})

    lr_decay_every: int = field(
        default=0, metadata={"help": "The paper's schedule: multiply the rate every so many steps."}
    )
    lr_decay_after: int = field(default=0, metadata={"help": "Steps with a constant rate before that."})
    lr_decay_factor: float = field(default=0.8, metadata={"help": "The factor."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better dev perplexity."}
    )
