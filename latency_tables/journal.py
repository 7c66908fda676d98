"""The profiler's journal: measurements as they arrive, one JSON object per line, that a kill cannot lose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latency_tables.timing import Samples, middle_of
from search_spaces.jsonl import JsonLines, damaged, open_lines, read_lines

_DECIMALS = 7


@dataclass
class Measurements:
    """What a journal holds.

    Attributes
    ----------
    visits
        Samples of each layer key, by round: ``visits[round][key]``.
    overhead
        Samples of the empty call, in the order taken, by round.
    pulses
        What the canaries took whenever they were timed, milliseconds, by start of a process and round: all of
        them with each visit, or the first one alone among visits.
    starts
        What was noted about the machine whenever a process began or resumed.
    rounds_of_start
        Rounds in which anything was visited after each start.
    """

    visits: dict[int, dict[str, Samples]] = field(default_factory=dict)
    overhead: dict[int, list[Samples]] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    pulses: dict[tuple[int, int], list[tuple[float, ...]]] = field(default_factory=dict)
    rounds_of_start: dict[int, set[int]] = field(default_factory=dict)

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
            for rounds in (self.visits, self.overhead):
                rounds.pop(int(record["round"]), None)
            for place in [each for each in self.pulses if each[1] == int(record["round"])]:
                del self.pulses[place]
            for touched in self.rounds_of_start.values():
                touched.discard(int(record["round"]))
            return
        index = int(record["round"])
        samples = Samples.from_dict(record)
        start = len(self.starts) - 1
        self.rounds_of_start.setdefault(start, set()).add(index)
        if kind == "layer":
            self.visits.setdefault(index, {})[str(record["key"])] = samples
        pulse = middle_of((ms,) for ms in samples.ms) if kind == "canary" else samples.canaries
        if pulse:
            self.pulses.setdefault((start, index), []).append(pulse)
        if kind == "overhead":
            self.overhead.setdefault(index, []).append(samples)
        if kind not in ("layer", "canary", "overhead"):
            raise ValueError(kind)


class Journal:
    """An open journal, and what it holds."""

    def __init__(self, lines: JsonLines) -> None:
        self.found = Measurements()
        self._lines = lines
        for number, record in lines.records():
            _take_in(self.found, lines.path, number, record)

    def write(self, kind: str, **values: Any) -> None:
        """Append one record and take it in."""
        record = {"kind": kind, **values}
        self._lines.write(record)
        self.found.add(record)

    def samples(self, kind: str, index: int, samples: Samples, **values: Any) -> None:
        """Append the samples of one visit in round ``index``."""
        self.write(kind, round=index, **values, **samples.to_dict(_DECIMALS))

    def discard(self, rounds: Iterable[int]) -> None:
        """Declare what was measured in some rounds void."""
        for index in rounds:
            self.write("discard", round=index)
        self._lines.sync()

    def remove(self) -> None:
        """Delete the journal's file: what it held is in the table."""
        self._lines.remove()


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
    with open_lines(path, header, doing="profiling", what="profile") as lines:
        yield Journal(lines)


def journaled_keys(path: Path) -> set[str]:
    """Return the keys of all layers that a journal mentions; none if there is no such file."""
    if not path.exists():
        return set()
    found = Measurements()
    for number, record in read_lines(path):
        if number > 1:
            _take_in(found, path, number, record)
    return {key for visits in found.visits.values() for key in visits}


def _take_in(found: Measurements, path: Path, number: int, record: Mapping[str, Any]) -> None:
    try:
        found.add(record)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise damaged(path, number) from None
