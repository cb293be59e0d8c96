"""`heirloom pretrain`: a biLM from raw text."""

from typing import Annotated

import typer


def pretrain(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `heirloom recipes`) or a YAML file.")],
) -> None:
    """Pre-train an ELMo biLM on your text.

    A recipe comes first, then any option of it or of Trainer:

    \b
    data     --train_file F ... --validation_file F --text_column C --tokenized
    model    --vocab_size --projection_size --cell_size --num_hidden_layers ...
    Trainer  --output_dir D --num_train_epochs N --learning_rate X --seed N ...

    Example: heirloom pretrain elmo_english --train_file corpus.txt --output_dir runs/bilm
    """
    from ..training.arguments import PretrainArguments
    from ..training.recipes import parse

    arguments, training_arguments = parse(recipe, context.args, PretrainArguments)
    from ..sharing.runs import run_pretraining

    run_pretraining(arguments, training_arguments)
