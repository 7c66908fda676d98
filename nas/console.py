"""What the commands show: progress on standard error, results on standard output."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

__all__ = ["Bar", "begin", "note", "note_once", "open_streams", "print_json", "print_table", "progress_bar"]


def _errors() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    r"""Return a text as a terminal may show it: what would move its cursor, or is no character, is escaped.

    Names come from files of others. An escape sequence in one is shown as ``\\x1b``, a mark that turns the
    direction of writing as ``\\u202e``, the bytes of names that are not UTF-8 as ``\\udcff``; line ends and
    tabs stay.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters, those of line breaks and of direction in Unicode, and halves of surrogate pairs."""


_SAID: ContextVar[set[str] | None] = ContextVar("said", default=None)
"""What the command at work has told once; None outside of commands."""


def open_streams() -> None:
    """Open the standard streams that were closed (``>&-``) on nothing.

    Else a file of ours would get the number of one of them, and what a library prints would land in it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def begin(*streams: TextIO | None) -> None:
    r"""Begin a command's output: nothing was told yet, and what a stream's encoding lacks is ``\xb0``.

    Without that, a degree sign would end a command where ``LANG=C``.
    """
    _SAID.set(set())
    for stream in streams:
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def note_once(text: str) -> None:
    """Tell something on standard error, unless the command has told it before."""
    said = _SAID.get()
    if said is None or text not in said:
        note(text)
    if said is not None:
        said.add(text)


def note(text: str) -> None:
    """Tell something on standard error, which ``--json`` leaves alone."""
    _errors().print(printable(text), markup=False)


class Bar:
    """One progress bar; outside a terminal it prints a line about every tenth part instead."""

    def __init__(self, title: str, total: int | None, progress: Progress | None) -> None:
        self.title, self.total, self._progress = printable(title), total, progress
        self._task = None if progress is None else progress.add_task(self.title, total=total, text="")
        self._tenth = -1

    def update(self, done: int, total: int | None = None, text: str = "") -> None:
        """Show that ``done`` of ``total`` parts are done."""
        self.total = total or self.total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=self.total, text=printable(text))
        elif self.total:
            tenth = 10 * done // self.total
            if tenth != self._tenth:
                self._tenth = tenth
                line = printable(f"{self.title}: {done}/{self.total} {text}").rstrip()
                print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(title: str, total: int | None = None) -> Iterator[Bar]:
    """Show a progress bar on standard error while the block runs."""
    console = _errors()
    if not console.is_terminal:
        yield Bar(title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(title, total, progress)


def print_json(value: object) -> None:
    """Print ``value`` as JSON on standard output."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on standard output; all columns but the first are aligned right."""
    table = Table(title=printable(title), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(printable(str(cell)) for cell in row))
    # Names of the user's may look like markup; they are shown as they are.
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, emoji=False, width=160)
    console.print(table)


def show(rows: Mapping[str, Any]) -> None:
    """Print names and values, one a line, aligned."""
    width = max(map(len, rows), default=0)
    for name, value in rows.items():
        print(printable(f"{name:<{width}}  {value}"))
