"""Where commands look for latency tables, and what they say of tables of other machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from latency_tables.table import LatencyTable
from latency_tables.target import elsewhere, processors_differ
from nas.console import note_once
from search_spaces import InputError

__all__ = ["DEFAULT_FOLDER", "given_folders", "tell_elsewhere"]

DEFAULT_FOLDER = Path("tables")


def given_folders(tables: Sequence[Path] | None) -> list[Path]:
    """Return the folders in which tables are looked for: those given with ``--tables``, then the default.

    Raises
    ------
    InputError
        If a folder that was given does not exist.
    """
    for folder in tables or []:
        if not folder.is_dir():
            raise InputError(f"--tables: '{folder}' does not exist or is no folder")
    return [*(tables or []), DEFAULT_FOLDER]


def tell_elsewhere(tables: Iterable[LatencyTable]) -> None:
    """Warn, once a command, of each table that was measured on another machine than it says.

    It is called after this machine, or it was measured without a link (which pins what it times, and notes
    to which processors) on a processor that its target does not name.
    """
    for table in tables:
        if why := elsewhere(table.target, table.sessions):
            note_once(f"the latency table '{table.name}' is not of this machine: {why}; its times hold there")
            continue
        told = (each.get("processor") for each in table.sessions if "pinned" not in each)
        for processor in dict.fromkeys(each for each in told if isinstance(each, str)):
            if processors_differ(processor, table.target.processor):
                note_once(
                    f"the latency table '{table.name}' says that its processor is"
                    f" '{table.target.processor}', but it was measured without a link on '{processor}', and"
                    " its times hold there"
                )
