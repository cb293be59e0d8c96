"""`heirloom train-seq2seq`: an encoder-decoder from pairs of lines, and the language models in it."""

from typing import Annotated

import typer


def train_seq2seq(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `heirloom recipes`) or a YAML file.")],
) -> None:
    """Train a translator or summariser that began as two language models.

    A recipe comes first, then any option of it or of Trainer. Line n of the source belongs to line n of the target.

    \b
    model    --model CHECKPOINT (heirloom convert seq2seq, or BART, T5, Marian ...)
    pairs    --train_source F --train_target F --validation_source F --validation_target F
             or --train_file TABLE; --too_long truncate --max_source_tokens 600
    text     --source_monolingual F --target_monolingual F --source_lm_weight X
    keeping  --forgetting lm_loss|ewc|l2sp|freeze|none
    Trainer  --output_dir D --max_steps N --learning_rate X --seed N --bf16 true

    Example: heirloom train-seq2seq seq2seq-small --model runs/en-de --train_source train.en
    --train_target train.de --source_monolingual mono.en --target_monolingual mono.de
    """
    from ..training.recipes import parse
    from ..training.seq2seq_arguments import Seq2SeqArguments

    arguments, training_arguments = parse(recipe, context.args, Seq2SeqArguments)
    from ..sharing.runs import run_seq2seq

    run_seq2seq(arguments, training_arguments)
