"""`heirloom finetune`: a task head on a pre-trained language model."""

from typing import Annotated

import typer


def finetune(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `heirloom recipes`) or a YAML file.")],
) -> None:
    """Fine-tune a language model on a task: ELMo, or any causal or masked one with its own loss beside the task's.

    A recipe comes first, then any option of it or of Trainer. Files may also be one data set of the Hub.

    \b
    data     --train_file F --validation_file F --text_column C --label_column C --train_rows N
             pairs: --second_text_column C   choices: --choices_column C --question_column C
    task     --task sequence-classification|token-classification|entailment|similarity|multiple-choice
    model    --model CHECKPOINT --from_scratch --head_dropout X --max_tokens N
    losses   --lm_loss_weight X --lm_weight_schedule linear --replay_file F --kl_weight X
    transfer --layer_lr_decay X --unfreeze_every_epochs X --transferred_layers N --preset openai
    report   --forgetting_file F
    Trainer  --output_dir D --num_train_epochs N --learning_rate X --seed N ...

    Example: heirloom finetune snips --model openai-community/gpt2 --train_file train.tsv --validation_file dev.tsv
    """
    from ..training.arguments import FinetuneArguments
    from ..training.recipes import parse

    arguments, training_arguments = parse(recipe, context.args, FinetuneArguments)
    from ..sharing.runs import run_finetuning

    run_finetuning(arguments, training_arguments)
