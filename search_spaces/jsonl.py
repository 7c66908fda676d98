"""Files of one JSON object per line that grow while something long runs, and that a kill cannot spoil."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from search_spaces.errors import RunError
from search_spaces.files import append_whole, locked, make_folder, room_for_it

__all__ = ["JsonLines", "damaged", "open_lines", "read_lines", "read_records"]

_SYNC_EVERY_S = 1.0


class JsonLines:
    """An open file of records: each is handed to the system at once and forced to the disk every second."""

    def __init__(self, path: Path, stream: TextIO) -> None:
        self.path = path
        self._stream = stream
        self._synced = time.monotonic()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; the file holds all of it or, if this fails, nothing of it.

        Raises
        ------
        RunError
            If the disk does not take it.
        """
        line = json.dumps(record, allow_nan=False) + "\n"
        try:
            append_whole(self._stream.fileno(), line.encode())
        except OSError as error:
            raise self._unwritten(error) from None
        if time.monotonic() - self._synced > _SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Force everything to the disk.

        Raises
        ------
        RunError
            If the disk does not take it.
        """
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise self._unwritten(error) from None
        self._synced = time.monotonic()

    def _unwritten(self, error: OSError) -> RunError:
        return RunError(
            f"cannot write the journal '{self.path}': {error.strerror or error}; what was done before is kept"
            f" in it: {room_for_it(error)}, then run the same command again"
        )

    def records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the line numbers and records so far, without the header."""
        for number, record in read_lines(self.path):
            if number > 1:
                yield number, record

    def remove(self) -> None:
        """Delete the file: what it held has been written elsewhere."""
        self.path.unlink(missing_ok=True)


@contextmanager
def open_lines(path: Path, header: Mapping[str, Any], *, doing: str, what: str) -> Iterator[JsonLines]:
    """Open a file of records to append to, continuing the one at ``path`` if there is one.

    Parameters
    ----------
    path
        The file; its folder is made.
    header
        What the records hold for: its first line. A file can only be continued with an equal one.
    doing, what
        Words for the errors: "profiling", "profile".

    Raises
    ------
    RunError
        If another process holds it, if its header differs, if it is damaged, or if it cannot be written.
    """
    make_folder(path.parent)
    busy = f"another process is {doing} into '{path}': wait for it, or choose another folder"
    with locked(path, busy) as stream:
        # A kill in the middle of a line: what was never complete is cut off before anything is appended.
        stream.truncate(_complete_bytes(path))
        found = next(iter(read_lines(path)), None)
        lines = JsonLines(path, stream)
        if found is None:
            lines.write({"kind": "header", **header})
        else:
            _check_header(path, found[1], header, what)
        try:
            yield lines
        except BaseException:
            with suppress(RunError):  # what went wrong first is told
                lines.sync()
            raise
        if path.exists():
            lines.sync()


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number (from 1) and record of every complete line; a torn last one is left out.

    Raises
    ------
    RunError
        If a line is no JSON object.
    """
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                raise damaged(path, number) from None
            if not isinstance(record, dict):
                raise damaged(path, number)
            yield number, record


def read_records(path: Path, header: Mapping[str, Any], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line numbers and records of a file that another process may be writing, without the header.

    Raises
    ------
    RunError
        If a line is no JSON object, or the header is another one (``what`` names the file's kind).
    """
    for number, record in read_lines(path):
        if number == 1:
            _check_header(path, record, header, what)
        else:
            yield number, record


def damaged(path: Path, number: int) -> RunError:
    """Return the error that line ``number`` is none of the records that it should be."""
    return RunError(f"the journal '{path}' is damaged at line {number}: delete it to start over")


def _complete_bytes(path: Path) -> int:
    """Return where the last complete line ends."""
    with path.open("rb") as stream:
        return sum(len(line) for line in stream if line.endswith(b"\n"))


def _check_header(path: Path, record: dict[str, Any], header: Mapping[str, Any], what: str) -> None:
    if record.pop("kind", None) != "header":
        raise damaged(path, 1)
    if record != dict(header):
        differing = sorted(key for key in {*record, *header} if record.get(key) != header.get(key))
        changes = ", ".join(f"{key} {record.get(key)} there, {header.get(key)} now" for key in differing)
        raise RunError(
            f"an unfinished {what} with other settings lies at '{path}' ({changes}):"
            " finish it with those, or delete it"
        )
