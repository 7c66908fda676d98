"""``nas tables export-trtexec`` and ``import-trtexec``: TensorRT's own tool, on a device of the user's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from latency_tables import calibrate
from latency_tables.holding import held_table
from latency_tables.predictor import FEWEST_NETWORKS
from latency_tables.target import read_target
from latency_tables.tensorrt import read_work, write_work
from nas.console import note, print_json, progress_bar, show
from nas.latency import draw_networks, work_list
from nas.tables import clean, refuse_overwriting

__all__ = ["run_export", "run_import"]

_LISTED = 5


def run_export(
    folder: Path,
    wanted: Sequence[str],
    *,
    networks: int,
    blocks: bool,
    precision: str,
    repeats: int,
    joints: int,
) -> None:
    """Carry out ``nas tables export-trtexec``.

    Raises
    ------
    InputError
        If something that was given is wrong, or there is nothing to time.
    """
    every, named, spaces = work_list(wanted, joints)
    pieces = list(every) if blocks else []
    archs = draw_networks(spaces, named, len(named) + networks)
    with progress_bar("models") as bar:
        script = write_work(
            folder,
            pieces,
            archs,
            precision=precision,
            repeats=repeats,
            progress=lambda done, total: bar.update(done, total),
        )
    note(
        f"copy '{folder}' to the device and run {script.name} there; then: nas tables import-trtexec {folder}"
    )


def run_import(
    folder: Path,
    target: Path,
    source: str,
    *,
    own_device: bool,
    version: str | None,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Carry out ``nas tables import-trtexec``.

    Raises
    ------
    InputError
        If the target or a file is wrong, nothing was measured, or a table would be overwritten.
    """
    described = read_target(target)
    path = output / f"{described.name}.csv"
    refuse_overwriting(path, force)
    found = read_work(
        folder,
        described,
        source,
        own_device=own_device,
        version=version,
        command=" ".join(["nas", *sys.argv[1:]]),
    )
    table = found.table
    whole = [block for network in table.networks for block in network.blocks]
    if len(table.networks) >= FEWEST_NETWORKS and not table.missing(whole):
        table = calibrate(table)
    with held_table(path):
        refuse_overwriting(path, force)  # it may be there since
        table.save(path)
    if as_json:
        print_json(
            {
                "table": str(path),
                "rows": len(table),
                "networks": len(table.networks),
                "calibrated": table.calibration is not None,
                "provenance": table.provenance,
                "unmeasured": list(found.unmeasured),
                "spanning": {name: list(blocks) for name, blocks in found.spanning.items()},
            }
        )
        return
    lines = {
        "table": str(path),
        "rows": str(len(table)),
        "whole networks": str(len(table.networks)),
        "provenance": table.provenance,
    }
    if table.calibration is None:
        lines["calibration"] = f"none: it takes {FEWEST_NETWORKS} whole networks whose blocks all have rows"
    if found.unmeasured:
        lines["not measured yet"] = _some(found.unmeasured)
    if found.spanning:
        names = sorted({name for blocks in found.spanning.values() for name in blocks})
        lines["no row, layers of the engine shared"] = f"{_some(names)}, in {len(found.spanning)} networks"
    show({key: clean(value) for key, value in lines.items()})


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
