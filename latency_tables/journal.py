"""The profiler's journal: measurements as they arrive, one JSON object per line, that a kill cannot lose."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from latency_tables.timing import Samples
from search_spaces.errors import RunError
from search_spaces.files import locked, make_folder, read_text

_SYNC_EVERY_S = 1.0


@dataclass
class Measurements:
    """What a journal holds.

    Attributes
    ----------
    visits
        Samples of each layer key, by round: ``visits[round][key]``.
    canary, overhead
        Samples of the canary layer and of the empty call, in the order taken, by round.
    starts
        What was noted about the machine whenever a process began or resumed.
    """

    visits: dict[int, dict[str, Samples]] = field(default_factory=dict)
    canary: dict[int, list[Samples]] = field(default_factory=dict)
    overhead: dict[int, list[Samples]] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in one record of the journal.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is not one.
        """
        kind = record["kind"]
        if kind == "start":
            self.starts.append(dict(record["facts"]))
            return
        if kind == "discard":
            for rounds in (self.visits, self.canary, self.overhead):
                rounds.pop(int(record["round"]), None)
            return
        index = int(record["round"])
        samples = Samples(tuple(float(ms) for ms in record["ms"]), int(record["loop"]))
        if kind == "layer":
            self.visits.setdefault(index, {})[str(record["key"])] = samples
        elif kind == "canary":
            self.canary.setdefault(index, []).append(samples)
        elif kind == "overhead":
            self.overhead.setdefault(index, []).append(samples)
        else:
            raise ValueError(kind)


class Journal:
    """An open journal; every line is handed to the system at once and forced to the disk every second."""

    def __init__(self, path: Path, stream: TextIO, found: Measurements) -> None:
        self.path = path
        self.found = found
        self._stream = stream
        self._synced = time.monotonic()

    def write(self, kind: str, **values: Any) -> None:
        """Append one record and take it in."""
        record = {"kind": kind, **values}
        self._write_line(record)
        self.found.add(record)

    def samples(self, kind: str, index: int, samples: Samples, **values: Any) -> None:
        """Append the samples of one visit in round ``index``."""
        ms = [round(value, 7) for value in samples.ms]
        self.write(kind, round=index, **values, loop=samples.loop, ms=ms)

    def discard(self, rounds: Iterable[int]) -> None:
        """Declare what was measured in some rounds void."""
        for index in rounds:
            self.write("discard", round=index)
        self.sync()

    def sync(self) -> None:
        """Force everything to the disk."""
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def remove(self) -> None:
        """Delete the journal's file: what it held is in the table."""
        self.path.unlink(missing_ok=True)

    def _write_line(self, record: Mapping[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(record, allow_nan=False) + "\n")
            self._stream.flush()
            if time.monotonic() - self._synced > _SYNC_EVERY_S:
                self.sync()
        except OSError as error:
            raise RunError(
                f"cannot write the journal '{self.path}': {error.strerror}; what it holds so far is kept"
            ) from None


@contextmanager
def open_journal(path: Path, header: Mapping[str, Any]) -> Iterator[Journal]:
    """Open a journal to append to, continuing the one at ``path`` if there is one.

    Parameters
    ----------
    path
        The journal's file.
    header
        What its measurements hold for; a journal can only be continued with an equal one.

    Raises
    ------
    RunError
        If another process holds it, if its header differs, if it is damaged, or if it cannot be written.
    """
    make_folder(path.parent)
    busy = f"another process is profiling into '{path}': wait for it, or choose another folder"
    with locked(path, busy) as stream:
        lines, torn = _complete_lines(path)
        if torn:
            # A kill in the middle of a line: what was never complete is cut off before anything is appended.
            stream.truncate(sum(len(line.encode()) + 1 for line in lines))
        found = _read(path, lines, header)
        journal = Journal(path, stream, found)
        if not lines:
            journal._write_line({"kind": "header", **header})
        try:
            yield journal
        finally:
            if path.exists():
                journal.sync()


def journaled_keys(path: Path) -> set[str]:
    """Return the keys of all layers that a journal mentions; none if there is no such file."""
    if not path.exists():
        return set()
    lines, _ = _complete_lines(path)
    found = Measurements()
    for number, line in enumerate(lines[1:], start=2):
        _take_in(found, path, number, line)
    return {key for visits in found.visits.values() for key in visits}


def _complete_lines(path: Path) -> tuple[list[str], bool]:
    """Return the lines that end in a line break, and whether a torn one follows."""
    *lines, rest = read_text(path, "journal").split("\n")
    return lines, bool(rest)


def _take_in(found: Measurements, path: Path, number: int, line: str) -> None:
    try:
        found.add(json.loads(line))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(path, number) from None


def _damaged(path: Path, number: int) -> RunError:
    return RunError(f"the journal '{path}' is damaged at line {number}: delete it to start over")


def _read(path: Path, lines: list[str], header: Mapping[str, Any]) -> Measurements:
    found = Measurements()
    if not lines:
        return found
    try:
        record = json.loads(lines[0])
        kind = record.pop("kind")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(path, 1) from None
    if kind != "header" or record != dict(header):
        differing = sorted(key for key in {*record, *header} if record.get(key) != header.get(key))
        changes = ", ".join(f"{key} {record.get(key)} there, {header.get(key)} now" for key in differing)
        raise RunError(
            f"an unfinished profile with other settings lies at '{path}' ({changes}):"
            " finish it with those, or delete it"
        )
    for number, line in enumerate(lines[1:], start=2):
        _take_in(found, path, number, line)
    return found
