"""`heirloom pretrain`: a language model from raw text."""

from typing import Annotated

import typer


def pretrain(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe's name (see `heirloom recipes`) or a YAML file.")],
) -> None:
    """Pre-train a language model on your text: an ELMo biLM, an LSTM LM, or with --objective a stock model.

    A recipe comes first, then any option of it or of Trainer. Files may be patterns, folders or a data set of the Hub.

    \b
    data     --train_file F ... --validation_file F --batching sentences|stream
    model    --model_type elmo|lstm-lm --softmax full|sampled|adaptive --cell_size ...
             --model CHECKPOINT goes on from there
    stock    --objective NAME (see `heirloom objectives`) --model CHECKPOINT --tokenizer T
             --max_tokens N --segmenter jieba|gazetteer:FILE, or both with + between
             --mem_len N --reuse_len N (memories of xlnet and transformer-xl)
    Trainer  --output_dir D --num_train_epochs N --learning_rate X --seed N
             --resume_from_checkpoint true

    Example: heirloom pretrain elmo-small --train_file corpus.txt --output_dir runs/bilm
    """
    from ..training.arguments import PretrainArguments
    from ..training.recipes import parse

    arguments, training_arguments = parse(recipe, context.args, PretrainArguments)
    if arguments.objective:
        from ..sharing.stock_runs import run_stock_pretraining

        run_stock_pretraining(arguments, training_arguments)
        return
    from ..sharing.runs import run_pretraining

    run_pretraining(arguments, training_arguments)
