"""`heirloom objectives`: what a stock model can be pre-trained on, and what a model then reads."""

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=False,
    add_completion=False,
    rich_markup_mode=None,
)
COLOURS = {"masked": "bold red", "replaced": "bold magenta", "kept": "bold yellow", "special": "dim"}
TEXTS = (
    "The old clock struck nine. Nobody had wound it for years. Rain ran down the windows of the library. The keeper "
    "lit a candle and opened the heavy book.",
    "Ships from the north bring wool and amber. The harbour is full in summer. Merchants shout their prices from the "
    "walls. In winter the harbour is quiet and the sailors mend their nets.",
)


@app.callback(invoke_without_command=True)
def objectives(context: typer.Context) -> None:
    """List the objectives for stock models: what is learned, paper, models and defaults.

    Example: heirloom objectives
    """
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console
    from rich.text import Text

    from ..training.objectives import OBJECTIVES

    console = Console(highlight=False)
    for one in OBJECTIVES:
        classes = [one.models.ours] if one.models.ours else []
        console.print(Text(f"{one.name:<16}", "bold").append(one.about, "not bold"), soft_wrap=True)
        for name, value in (
            ("paper", one.paper),
            ("models", ", ".join([*classes, *one.models.classes()])),
            ("defaults", one.defaults()),
            ("options", one.usage()),
        ):
            console.print(Text(f"  {name:<9} {value}", "dim"), soft_wrap=True)
    console.print("\nheirloom pretrain bert-small OPTIONS --train_file corpus.txt --output_dir runs/new")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An objective of `heirloom objectives`.")],
    model: Annotated[str, typer.Option(metavar="M", help="Checkpoint or tokenizer (folder or Hub name).")],
    text: Annotated[
        list[str] | None, typer.Option(metavar="T", help="A document; may be given repeatedly.")
    ] = None,
    segmenter: Annotated[
        str, typer.Option(metavar="S", help="What words are: jieba, or gazetteer:FILE.")
    ] = "",
    max_tokens: Annotated[int, typer.Option(metavar="N", help="Longest row.")] = 64,
    seed: Annotated[int, typer.Option(metavar="N", help="Another one hides other tokens.")] = 0,
) -> None:
    """Show one example in colours: what a model reads, and what it must tell.

    Sentences end at . ! or ?, or at the end of a line. Pairs take their random partner from a text of ours if only one
    is given.

    Example: heirloom objectives show wwm --model google-bert/bert-base-uncased --text "An unhurried morning."
    """
    from rich.console import Console
    from rich.text import Text

    from ..sharing.quiet import quiet_libraries
    from ..training.objective_examples import example_of, split_sentences
    from ..training.objectives import find_objective
    from ..training.stock_objectives import check_fit, encode, open_any_tokenizer, open_segmenter

    with quiet_libraries():
        objective = find_objective(name)
        check_fit(objective, model)
        tokenizer = open_any_tokenizer(model)
        documents = [split_sentences(document) for document in text or TEXTS]
        if len(documents) == 1 and objective.paired:
            documents.append(split_sentences(TEXTS[1]))
        corpus = encode(objective, documents, tokenizer, open_segmenter(segmenter))
        example = example_of(objective, objective.rows(corpus, tokenizer, max_tokens, seed), tokenizer, seed)
    console = Console(highlight=False)
    for title, pieces in (("reads", example.reads), ("writes", example.writes)):
        line = Text(f"{title:<7}")
        for piece in pieces:
            line.append(" ").append(piece.text, COLOURS.get(piece.kind, ""))
            if piece.target and piece.kind != "kept":
                line.append(f"({piece.target})", "green")
        if pieces:
            console.print(line)
    for label, value in example.labels.items():
        console.print(f"{label} {value}")
    legend = Text("\n")
    for kind, colour in COLOURS.items():
        legend.append(kind, colour).append("  ")
    console.print(legend.append("(what must be told)", "green"))
