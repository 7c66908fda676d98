"""The ``nas tables`` commands: latency tables listed, shown, checked, compared, merged. Thin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["tables_app"]

tables_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Latency tables: list, show, check, compare and merge them.",
)

_TABLE = "A target's name, or a table's .csv or .yaml."
Folders = Annotated[
    list[Path] | None,
    typer.Option("--tables", help="Folder of latency tables (before ./tables). Repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Rows = Annotated[int, typer.Option(min=0, help="Rows listed.")]


@tables_app.command("list")
def list_(tables: Folders = None, as_json: Json = False) -> None:
    """Every latency table there is: rows by provenance, calibration error and interval, date.

    Looks into the folders given, ./tables, and the package. Damaged tables are named, with the reason.

    Example: nas tables list --json
    """
    from nas.tables import list_tables

    list_tables(tables, as_json=as_json)


@tables_app.command()
def show(
    table: Annotated[str, typer.Argument(metavar="TABLE", help=_TABLE)],
    tables: Folders = None,
    rows: Rows = 10,
    as_json: Json = False,
) -> None:
    """What a latency table holds, under which circumstances it was measured, how far it is calibrated.

    Example: nas tables show this-machine-onnxruntime-fp32-2t --rows 20
    """
    from nas.tables import show_table

    show_table(table, tables, slowest=rows, as_json=as_json)


@tables_app.command()
def validate(
    names: Annotated[
        list[str], typer.Argument(metavar="TABLE...", help="Targets' names, or tables' .csv or .yaml files.")
    ],
    wanted: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="SPACE|RECIPE|RUN|ARCH",
            help="Whose layers must be there: a kind of space, a recipe, a run, or a named arch. Repeatable.",
        ),
    ] = None,
    joints: Annotated[int, typer.Option(min=1, help="Keypoints, for a kind of space or an arch.")] = 14,
    tables: Folders = None,
    as_json: Json = False,
) -> None:
    """What makes latency tables hard to believe: file, line, field, value. Exit code 2 if there are errors.

    Errors: what cannot be read, keys of no layer, keys twice, percentiles out of order, rows without a
    source, measurements without a date or a runtime version, times that contradict each other grossly,
    layers that --for needs. Warnings: few runs, wide intervals, drift, no calibration or a poor one, a
    'this-machine' that is another one.

    Example: nas tables validate this-machine-onnxruntime-fp32-2t --for litepose-native
    """
    from nas.tables import run_validate

    run_validate(names, tables, wanted=wanted or [], joints=joints, as_json=as_json)


@tables_app.command("export-trtexec")
def export_trtexec(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    wanted: Annotated[
        list[str],
        typer.Option(
            "--for",
            metavar="SPACE|RECIPE|RUN|ARCH",
            help="Whose networks are timed: a kind of space, a recipe, a run, or a named arch. Repeatable.",
        ),
    ],
    networks: Annotated[int, typer.Option(min=0, help="Networks drawn from the space.")] = 20,
    blocks: Annotated[bool, typer.Option("--blocks", help="Every distinct block alone, too.")] = False,
    precision: Annotated[str, typer.Option(help="fp32 or fp16.")] = "fp16",
    repeats: Annotated[int, typer.Option(min=1, help="Times that each engine is timed.")] = 3,
    joints: Annotated[int, typer.Option(min=1, help="Keypoints, for a kind of space or an arch.")] = 14,
) -> None:
    """Write the models and the script that time networks with TensorRT on a Jetson.

    Copy the folder to the device, run its run.sh there, copy it back, and read it with
    'nas tables import-trtexec'. Not run on a Jetson by us.

    Example: nas tables export-trtexec jetson --for litepose-s --for litepose-native --networks 20
    """
    from nas.trtexec import run_export

    run_export(
        folder,
        wanted,
        networks=networks,
        blocks=blocks,
        precision=precision,
        repeats=repeats,
        joints=joints,
    )


@tables_app.command("import-trtexec")
def import_trtexec(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="What export-trtexec wrote, with what run.sh added.")
    ],
    target: Annotated[
        Path, typer.Option("--target", metavar="FILE", help="A .yaml file that describes the device.")
    ],
    source: Annotated[str, typer.Option(help="Whose measurement it is, in a few words.")],
    own_device: Annotated[
        bool, typer.Option("--own-device", help="You measured it: rows are 'measured-here'.")
    ] = False,
    runtime_version: Annotated[
        str | None, typer.Option(help="TensorRT's version, where the logs do not tell it.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the table.")] = Path("tables"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite a table that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Make a latency table of the profiles that TensorRT's trtexec has exported on a device.

    A block that shares a layer of the engine with another gets no row, and is named. Rows are
    'measured-by-others' unless you say that the device is yours.

    Example: nas tables import-trtexec jetson --target nano.yaml --source "my Nano, 10 W" --own-device
    """
    from nas.trtexec import run_import

    run_import(
        folder,
        target,
        source,
        own_device=own_device,
        version=runtime_version,
        output=output,
        force=force,
        as_json=as_json,
    )


@tables_app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help=_TABLE)],
    second: Annotated[str, typer.Argument(metavar="B", help=_TABLE)],
    tables: Folders = None,
    rows: Rows = 20,
    as_json: Json = False,
) -> None:
    """How two latency tables differ. Exit code 0 if they are the same, 1 if not, as diff has it.

    Rows, whole networks, calibrations, and what both predict for the networks. A row differs beyond the
    intervals if neither median lies between the other's p10 and p90. Tables of
    different targets are compared too, with a word that their times are not comparable.

    Example: nas tables diff tables/this-machine-onnxruntime-fp32-2t.csv before.csv
    """
    from nas.tables import run_diff

    if not run_diff(first, second, tables, most=rows, as_json=as_json):
        raise typer.Exit(1)


@tables_app.command()
def merge(
    names: Annotated[
        list[str], typer.Argument(metavar="TABLE TABLE...", help="Tables of one and the same target.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The table to write: its .csv, or a folder for it.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Overwrite a table that is there.")] = False,
    tables: Folders = None,
    as_json: Json = False,
) -> None:
    """Make one latency table of several of the same target.

    Where several have a layer or a network, the better provenance wins, then a table without a session that
    drifted, ten runs over fewer, p90 at most twice p10, then the table that has measured more exactly what
    they share; the one named later if nothing else decides. Fitted rows are fitted anew on what all have
    measured, and the result is calibrated on all whole networks where there are five. Tables that
    tell at which speed of the machine their times are, are brought to one speed. It warns where they still
    differ throughout by more than 5%: then the machine was another one, or at a speed that nobody told.

    Example: nas tables merge monday.csv tuesday.csv --output both.csv
    """
    from nas.tables import run_merge

    run_merge(names, output, tables, force=force, as_json=as_json)
