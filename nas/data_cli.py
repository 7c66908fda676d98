"""The ``nas data`` commands: check data sets, fetch the public ones. Thin, like :mod:`nas.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["data_app"]

data_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Check data sets, and fetch the public ones.",
)


@data_app.command()
def check(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="ANNOTATIONS|RECIPE|RUN",
            help="A COCO-format .json; or a recipe .yaml or a run directory: all its data sets.",
        ),
    ],
    images: Annotated[Path | None, typer.Option(help="Folder of the images, for a .json.")] = None,
    skeleton: Annotated[
        str | None,
        typer.Option(help="Joints that you want to train: a known skeleton or a file; default: the file's."),
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="The category to check, where several have keypoints.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="OTHER.json", help="Another data set, such as val: what both show is told."),
    ] = None,
    against_images: Annotated[Path | None, typer.Option(help="Folder of its images.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for report.json, a contact sheet and histograms."),
    ] = None,
    pixels: Annotated[
        bool, typer.Option("--pixels/--no-pixels", help="Decode every image, or only see that it is there.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """What is wrong with a data set, and what is in it. Exit code 1 if training would be refused or wrong.

    Every problem is listed with its count and the first examples, whatever else is wrong.

    Example: nas data check data/train.json --images data/train --output checked
    """
    from nas.checking import run_check

    sound = run_check(
        source,
        images=images,
        skeleton=skeleton,
        category=category,
        against=against,
        against_images=against_images,
        output=output,
        pixels=pixels,
        as_json=as_json,
    )
    if not sound:
        raise typer.Exit(1)


@data_app.command()
def fetch(
    data_set: Annotated[
        str,
        typer.Argument(
            metavar="coco|crowdpose|FILE", help="Which; or a .json or .yaml that describes another alike."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for it (default: data/NAME).")
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(metavar="PART,...", help="Only some parts, such as annotations,val; --list names them."),
    ] = None,
    keep_archives: Annotated[
        bool, typer.Option("--keep-archives", help="Keep the downloads once they are unpacked.")
    ] = False,
    mirror: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Another host that has the same files below this address."),
    ] = None,
    only_list: Annotated[
        bool,
        typer.Option("--list", "--dry-run", help="Tell what, from where, how large, how far; fetch nothing."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON on standard output.")
    ] = False,
) -> None:
    """Download a public data set, verify and unpack it, and say how a recipe uses it.

    Stopped or cut off, the same command goes on where it was. What is complete is not fetched again.

    Example: nas data fetch coco --output data/coco --parts annotations,val
    """
    from nas.fetching import run_fetch

    run_fetch(
        data_set,
        output=output,
        parts=parts,
        keep_archives=keep_archives,
        mirror=mirror,
        only_list=only_list,
        as_json=as_json,
    )
