"""The shell face: one file a verb; heavy imports inside the verbs, so that `heirloom --help` is quick."""

import builtins
import json
import os
import re
from typing import Annotated

import typer
from typer.core import TyperGroup

from . import (
    card,
    convert,
    embed,
    env,
    evaluate,
    finetune,
    objectives,
    plot,
    pretrain,
    push,
    quickstart,
    recipes,
    score,
    train_seq2seq,
    train_tokenizer,
    translate,
)

KNOWN_ERRORS = (ValueError, OSError, ImportError)
KNOWN_MODULES = ("huggingface_hub", "safetensors")
FOREIGN_CODE = re.compile(r"The repository (.+?) (?:contains|references) custom code")  # of Transformers


def explain(error: Exception) -> str | None:
    """What to tell about an error that is no bug; None for those that may be one.

    Args:
        error: what a verb raised.

    Returns:
        The error's own words, or ours where other libraries name neither the file nor the cure.
    """
    if type(error).__name__ == "SafetensorError":
        return (
            f"a file of weights (.safetensors) is damaged or cut short ({error}). Copy or download the checkpoint again, "
            "and compare the sizes of its files."
        )
    if isinstance(error, json.JSONDecodeError):
        return (
            f"a JSON file of a checkpoint or its tokenizer is damaged or cut short ({error}). Copy or download the "
            "checkpoint again."
        )
    if isinstance(error, UnicodeDecodeError):
        return (
            f"a file that should be text is no UTF-8 ({error}). Convert it to UTF-8, or name the right file."
        )
    if isinstance(error, ValueError) and "trust_remote_code" in str(error):
        who = FOREIGN_CODE.search(str(error))
        return (
            f"{who[1] if who else 'a checkpoint'} needs code of its own (auto_map in its JSON files), and heirloom's verbs "
            "run no code that comes with a checkpoint. Take one of a model type that Transformers or heirloom has, or load "
            "this one in Python, where you can decide to trust it."
        )
    is_known = isinstance(error, KNOWN_ERRORS) or type(error).__module__.startswith(KNOWN_MODULES)
    return str(error) if is_known else None


def _answer_nobody(prompt: str = "") -> str:
    """In place of `input`: Transformers would ask whether to run a checkpoint's code, and take a line of our input for yes."""
    raise ValueError(prompt)


class Verbs(TyperGroup):
    """Tells a failure in one message on stderr, with exit status 1; HEIRLOOM_DEBUG=1 shows the traceback."""

    def invoke(self, ctx):
        """Run the verb."""
        ask, builtins.input = builtins.input, _answer_nobody
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except KeyboardInterrupt as error:
            typer.echo(" ".join(["heirloom: interrupted.", *map(str, error.args)]), err=True)
            raise typer.Exit(130) from None
        except Exception as error:
            if os.environ.get("HEIRLOOM_DEBUG") == "1" or (message := explain(error)) is None:
                raise
            typer.echo(f"heirloom: {message}", err=True)
            raise typer.Exit(1) from None
        finally:
            builtins.input = ask

    def format_options(self, ctx, formatter):
        """All in one line, so that every verb has room on a small screen."""
        formatter.write_paragraph()
        formatter.write_text(
            "Options: " + ", ".join("/".join(option.opts) for option in self.get_params(ctx))
        )
        self.format_commands(ctx, formatter)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
REST = {"allow_extra_args": True, "ignore_unknown_options": True}  # what follows is read by the verb itself

# The verbs, in the order of `heirloom --help`.
app.command()(quickstart.quickstart)
app.add_typer(convert.app, name="convert")
app.command()(embed.embed)
app.command()(score.score)
app.command()(translate.translate)
app.command()(evaluate.evaluate)
app.command()(train_tokenizer.train_tokenizer)
app.command(context_settings=REST)(pretrain.pretrain)
app.command(context_settings=REST)(finetune.finetune)
app.command(context_settings=REST)(train_seq2seq.train_seq2seq)
app.command()(plot.plot)
app.command()(card.card)
app.command()(push.push)
app.add_typer(objectives.app, name="objectives")
app.command()(recipes.recipes)
app.command()(env.env)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"heirloom {__version__}")
        raise typer.Exit


@app.callback()
def heirloom(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """\b
    Pass a language model's weights down, with Transformers 5.
    Example: heirloom quickstart
    """


def main() -> None:
    """Run the command line."""
    app(prog_name="heirloom")


if __name__ == "__main__":
    main()
