"""`heirloom push`: a checkpoint to the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or a checkpoint.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="USER/NAME; made if there is none.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List files, sizes and warnings; send nothing.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Of a new repository.", show_default=True)
    ] = True,
    revision: Annotated[str | None, typer.Option(metavar="R", help="Branch; default: main.")] = None,
    message: Annotated[str | None, typer.Option(metavar="M", help="Title of the commit.")] = None,
) -> None:
    """Send a checkpoint to the Hugging Face Hub: config, weights, tokenizer, code, card and plots in one commit.

    Refuses files with access tokens or paths of your disk. After a failure the same command sends only what has not
    arrived.

    Example: heirloom push runs/quickstart ada/small-elmo --dry-run
    """
    from ..sharing.pushing import plan_push
    from ..sharing.pushing import push as send

    plan = plan_push(run, repo)
    sizes = plan.sizes()
    for name, size in sizes.items():
        print(f"{size:>15,}  {name}")
    print(f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files")
    if plan.left_out:
        print(f"left out: {', '.join(plan.left_out)}")
    for note in plan.notes:
        print(note)
    for warning in plan.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if dry_run:
        visibility = "private" if private else "public"
        print(f"nothing was sent; a new repository {repo} would be {visibility}")
        return
    done = send(plan, private, revision, message)
    visibility = "private" if done.private else "public"
    if done.removed:
        print(f"removed from the Hub: {', '.join(done.removed)}")
    print(f"{'pushed' if done.changed else 'nothing has changed'}: {done.url} ({visibility})")
    if done.private != private:
        typer.echo(
            f"warning: {done.repo} existed and is {visibility}; change that in its settings on the Hub",
            err=True,
        )
