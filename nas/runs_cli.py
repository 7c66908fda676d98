"""The ``nas runs`` commands: run directories listed, shown, compared, resumed, pruned, relocated. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search_spaces import InputError

__all__ = ["runs_app"]

runs_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Runs: list, show and compare them, go on with them, prune them, find their moved data again.",
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Run = Annotated[Path, typer.Argument(help="A run directory.")]


@runs_app.command("list")
def list_(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Runs, or folders of runs; default: ./runs."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Every run: how far it is, whether a command is at work on it, best AP, searches, networks, size.

    Damaged runs and folders that are none are told; nothing is held or changed by looking.

    Example: nas runs list runs
    """
    from nas.runs_report import list_runs

    list_runs(folders or [Path("runs")], as_json=as_json)


@runs_app.command()
def show(run: Run, as_json: Json = False) -> None:
    """What there is of one run: its training, each search, emitted networks, sizes, what is damaged.

    Example: nas runs show runs/mine --json
    """
    from nas.runs_report import show_run

    show_run(run, as_json=as_json)


@runs_app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="Two run directories or more.")],
    as_json: Json = False,
) -> None:
    """What runs were made with, setting by setting, and what came of it: loss, APs, fronts.

    APs are held against each other only where they were measured on the same images in the same way.

    Example: nas runs compare runs/one runs/two
    """
    from nas.runs_report import print_comparison

    print_comparison(runs, as_json=as_json)


@runs_app.command()
def resume(run: Run, as_json: Json = False) -> None:
    """Go on with whatever was stopped in a run: its training, then each search with its own settings.

    Example: nas runs resume runs/mine
    """
    from nas.runs_report import resume_and_tell

    resume_and_tell(run, as_json=as_json)


@runs_app.command()
def prune(
    run: Run,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Leave it: statistics, previous, leftovers or deleted-studies. Repeatable.",
        ),
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Remove it, too: study:NAME, emitted:NAME, last (the last checkpoint) or tensorboard."
            " Repeatable.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, it is only listed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list it: the default.")] = False,
    as_json: Json = False,
) -> None:
    """What a run can do without, with its bytes; --yes removes it.

    That is what commands make again (BN statistics, the last checkpoint but one of a finished training) and
    what kills and deleted searches have left. Weights, searches and emitted networks go only if named.

    Example: nas runs prune runs/mine --keep statistics --yes
    """
    from nas.runs_report import prune_and_tell

    if yes and dry_run:
        raise InputError("--yes removes and --dry-run does not; give one of them")
    prune_and_tell(run, keep or [], also or [], remove=yes, as_json=as_json)


@runs_app.command()
def relocate(
    run: Run,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="OLD=NEW",
            help="What began with OLD is in NEW now: a folder or a file. Repeatable; none: paths are listed.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a run find its images, pretrained network and teacher where they are now.

    Images are recognised by the digest of their annotations; if they are others, nothing is changed.

    Example: nas runs relocate runs/mine --data OLD/data=NEW/data
    """
    from nas.runs_report import relocate_and_tell

    relocate_and_tell(run, data or [], as_json=as_json)
