"""`heirloom finetune`: a task head on a biLM."""

from typing import Annotated

import typer


def finetune(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `heirloom recipes`) or a YAML file.")],
) -> None:
    """Fine-tune a biLM on tagging or sentence classification.

    A recipe comes first, then any option of it or of Trainer:

    \b
    data     --train_file F --validation_file F --text_column C --label_column C
    model    --model CHECKPOINT --freeze_bilm --from_scratch --head_dropout X ...
    Trainer  --output_dir D --num_train_epochs N --learning_rate X --seed N ...

    Example: heirloom finetune tagging --model runs/bilm --train_file train.jsonl --validation_file dev.jsonl
    """
    from ..training.arguments import FinetuneArguments
    from ..training.recipes import parse

    arguments, training_arguments = parse(recipe, context.args, FinetuneArguments)
    from ..sharing.runs import run_finetuning

    run_finetuning(arguments, training_arguments)
