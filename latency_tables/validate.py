"""What makes a latency table hard to believe, each finding with file, line, field and value.

Errors are what no user of a table can live with: it cannot be read, a row does not say what it is or where it
comes from, a measurement has no date, two times contradict each other grossly. Warnings are what makes
numbers weak: few runs, wide intervals, a machine that drifted, no calibration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from math import exp
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from latency_tables.catalogue import CANARY_STEP, canary_steps, plain, session_date
from latency_tables.table import Calibration, Row, Scan, scan_table
from latency_tables.target import Target, elsewhere, processors_differ
from search_spaces.errors import shown
from search_spaces.layers import Block, Layer, Piece, layers_of

__all__ = ["Finding", "validate_table"]

Level = Literal["error", "warning"]

FEWEST_RUNS = 10
"""Of fewer, the 10th and the 90th percentile are no more than the shortest and the longest run."""

WIDEST_INTERVAL = 2.0
"""Largest p90_ms / p10_ms that raises no doubt."""

GROSS, ABSURD = 1.5, 4.0
"""From which factor on a layer may not take longer than one with more work: doubt; error."""

ENOUGH_NETWORKS = 10
LARGEST_ERROR = 0.1
WIDEST_FACTOR = 1.5
CLOCK_STEP = 0.1

_NOISE_MS = 0.01
"""Differences below that are the cost of calling a runtime."""
_ALIGNED = 16
"""Channels in other numbers than multiples of it may be slower than more of them: vectors stay part empty.
On a CPU with AVX-512, ONNX Runtime took twice as long for 8 channels as for 16."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason to doubt a table.

    Attributes
    ----------
    level
        ``error`` or ``warning``.
    rule
        Which rule is broken, in a word or two.
    file
        The file that shows it.
    line
        Its line, from 1; None where no single line does.
    field
        Column, or key of the metadata such as ``sessions[0].date``; empty where there is none.
    value
        What stands there.
    message
        All of it in one line.
    """

    level: Level
    rule: str
    file: Path
    line: int | None
    field: str
    value: str
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, for JSON."""
        return {**asdict(self), "file": str(self.file)}


def validate_table(
    path: str | Path, needed: Iterable[Piece] = (), *, now: datetime | None = None
) -> list[Finding]:
    """Return everything that makes a table hard to believe, errors first.

    Parameters
    ----------
    path
        The table's CSV or YAML file.
    needed
        Layers that it must hold, such as those of a search space; a layer that it lacks is an error.
    now
        Nothing was measured after it; by default the present.
    """
    scan = scan_table(path)
    found = [
        Finding("error", "unreadable", fault.file, fault.line, fault.field, fault.value, fault.message)
        for fault in scan.faults
    ]
    found += _rows(scan)
    found += _contradictions(scan)
    beside = scan.path.with_suffix(".yaml")
    told = not any(fault.file == beside and not fault.field for fault in scan.faults)
    if told:  # of a file that cannot be read nobody knows what it lacks
        found += _sessions(scan, now or datetime.now(UTC))
    if scan.calibration is not None:
        found += _calibration(scan, scan.calibration)
    elif told and scan.rows and not any(fault.field == "calibration" for fault in scan.faults):
        found.append(
            _told(
                scan, "warning", "calibration", "calibration", None,
                "there is none: whole networks are predicted as plain sums of layers",
            )
        )  # fmt: skip
    if scan.target is not None:
        found += _machines(scan, scan.target)
    if scan.target is not None and scan.path.stem != scan.target.name:
        found.append(
            _told(
                scan, "warning", "name", "target", scan.target.name,
                f"the file is called '{scan.path.stem}', the target '{scan.target.name}'",
            )
        )  # fmt: skip
    if scan.rows:
        found += _missing(scan, needed)
    return sorted(found, key=lambda finding: finding.level)


def _at(scan: Scan, layer: Piece, level: Level, rule: str, column: str, value: object, text: str) -> Finding:
    """Return a finding about a row."""
    line, _ = scan.lines[layer]
    message = f"latency table '{scan.path}' line {line}: {column} {text} ({layer.key})"
    return Finding(level, rule, scan.path, line, column, str(value), message)


def _told(scan: Scan, level: Level, rule: str, field: str, value: object, text: str) -> Finding:
    """Return a finding about the metadata."""
    path = scan.path.with_suffix(".yaml")
    told = "" if value is None else shown(plain(value))
    return Finding(level, rule, path, None, field, told, f"latency table metadata '{path}': {field}: {text}")


def _rows(scan: Scan) -> Iterator[Finding]:
    for layer, row in scan.rows.items():
        _, key = scan.lines[layer]
        if key != layer.key:
            text = f"is written '{key}'; the layer is called '{layer.key}'"
            yield _at(scan, layer, "error", "key", "key", key, text)
        if not row.source.strip():
            text = f"is empty: a {row.provenance} row says where it comes from"
            yield _at(scan, layer, "error", "source", "source", row.source, text)
        if row.provenance != "calibrated-estimate" and row.runs < FEWEST_RUNS:
            text = f"is {row.runs}: percentiles need {FEWEST_RUNS}"
            yield _at(scan, layer, "warning", "few runs", "runs", row.runs, text)
        if row.runs and row.p90_ms > WIDEST_INTERVAL * row.p10_ms:  # an estimate has no runs that spread
            text = (
                f"is {row.p90_ms:g}, {row.p90_ms / row.p10_ms:.2f} times p10_ms {row.p10_ms:g}"
                f" (at most {WIDEST_INTERVAL:g} raises no doubt)"
            )
            yield _at(scan, layer, "warning", "wide interval", "p90_ms", row.p90_ms, text)


# -- times that contradict each other ----------------------------------------------------------------------


def _contradictions(scan: Scan) -> Iterator[Finding]:
    """Yield the rows that take much longer than, or much less than, rows with more, or less, work.

    Two layers that differ in channels and sizes alone are compared where one has at least as much of each
    and more multiply-accumulates. It contradicts the other if its whole interval lies below the other's and
    its median by more than the factor ``GROSS``. Of all contradictions, the row that is in most of them is
    blamed first; the others in them are then not.
    """
    alike: dict[tuple[object, ...], list[Piece]] = {}
    for piece in scan.rows:
        branches = piece.branches if isinstance(piece, Block) else ()
        alike.setdefault((branches, *map(_form, layers_of(piece))), []).append(piece)
    for layers in alike.values():
        yield from _blamed(scan, sorted(layers, key=lambda piece: piece.key))


def _form(layer: Layer) -> tuple[object, ...]:
    """Return what layers have in common that differ in channels and sizes alone."""
    groups = layer.kind == "dwconv" or layer.groups
    behind = (layer.bias, layer.norm, layer.activation, layer.add)
    return (layer.kind, layer.kernel, layer.stride, groups, *behind)


class _Alike:
    """Rows of one form as arrays, to tell which of them contradict a given one.

    Nothing is kept for pairs of rows: in a table that is wrong throughout nearly all of them contradict.
    """

    def __init__(self, rows: Sequence[tuple[Piece, Row]]) -> None:
        every = [layers_of(piece) for piece, _ in rows]
        channels = np.array([[n for x in own for n in (x.c_in, x.c_out)] for own in every], np.int64)
        sizes = np.array([[n for x in own for n in (x.h_in, x.w_in)] for own in every], np.int64)
        # One contiguous array for each channel or size in which the rows differ at all, each once.
        self._channels = _distinct(channels)
        self._shapes = (*self._channels, *_distinct(sizes))
        self._unaligned = [column % _ALIGNED != 0 for column in self._channels]
        self._work = np.array([float(sum(layer.macs for layer in own)) for own in every])
        self._low = np.array([row.p10_ms for _, row in rows])
        self.ms = np.array([row.median_ms for _, row in rows])
        self._high = np.array([row.p90_ms for _, row in rows])

    def against(self, i: int) -> npt.NDArray[np.bool_]:
        """Return which rows contradict row ``i``, shape (rows,)."""
        ms = self.ms[i]
        slower = (
            (self._work < self._work[i])
            & (self._high[i] < self._low)
            & (ms * GROSS < self.ms)
            & (ms + _NOISE_MS < self.ms)
        )
        faster = (
            (self._work > self._work[i])
            & (self._high < self._low[i])
            & (self.ms * GROSS < ms)
            & (self.ms + _NOISE_MS < ms)
        )
        # Of a sound table, the times leave nothing of which shapes must be compared.
        if slower.any():
            for column in self._shapes:
                slower &= column <= column[i]
            for column, unaligned in zip(self._channels, self._unaligned, strict=True):
                slower &= ~unaligned | (column == column[i])
        if faster.any():
            for column in self._shapes:
                faster &= column >= column[i]
            for column, unaligned in zip(self._channels, self._unaligned, strict=True):
                if unaligned[i]:
                    faster &= column == column[i]
        return np.asarray(slower | faster)


def _distinct(columns: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the columns that are not the same number throughout, equal ones once."""
    found = {column.tobytes(): np.ascontiguousarray(column) for column in columns.T if np.ptp(column)}
    return tuple(found.values())


def _blamed(scan: Scan, layers: Sequence[Piece]) -> Iterator[Finding]:
    """Yield the rows to blame among those of one form, which are given in the order of their keys."""
    alike = _Alike([(layer, scan.rows[layer]) for layer in layers])
    partners = np.array([np.count_nonzero(alike.against(i)) for i in range(len(layers))])
    while partners.any():
        worst = int(partners.argmax())
        others = np.flatnonzero(alike.against(worst) & (partners > 0))
        layer, mine = layers[worst], float(alike.ms[worst])
        factors = np.maximum(mine / alike.ms[others], alike.ms[others] / mine)
        most = float(factors.max())
        other = int(others[np.flatnonzero(factors == most)[-1]])
        too_slow = mine > alike.ms[other]
        text = (
            f"is {mine:g}, {'more' if too_slow else 'less'} than"
            f" {'a layer' if len(others) == 1 else f'{len(others)} layers'} with"
            f" {'more' if too_slow else 'less'} work, such as {scan.rows[layers[other]].median_ms:g}"
            f" of {layers[other].key}"
        )
        level: Level = "error" if most > ABSURD else "warning"
        yield _at(scan, layer, level, "contradiction", "median_ms", mine, text)
        partners[others] -= 1
        partners[worst] = 0


# -- metadata ----------------------------------------------------------------------------------------------


def _sessions(scan: Scan, now: datetime) -> Iterator[Finding]:
    measured = any(row.provenance == "measured-here" for row in scan.rows.values())
    sessions = [(f"sessions[{i}]", each) for i, each in enumerate(scan.sessions) if "merged" not in each]
    if not sessions and scan.rows and not any(fault.field == "sessions" for fault in scan.faults):
        if measured:
            text = "there is none: rows measured here need a date and the runtime's version"
            yield _told(scan, "error", "session", "sessions", None, text)
        else:
            text = "there is none: nobody says when and how the table was made"
            yield _told(scan, "warning", "session", "sessions", None, text)
    lacking: Level = "error" if measured else "warning"
    for name, session in sessions:
        date, version = session.get("date"), session.get("runtime_version")
        when = session_date(session)
        if when is None:
            text = "is missing" if date is None else f"is a date such as 2026-01-31, not {shown(plain(date))}"
            yield _told(scan, lacking, "session", f"{name}.date", date, text)
        elif (when if when.tzinfo else when.replace(tzinfo=UTC)) > now + timedelta(days=1):
            yield _told(scan, "error", "session", f"{name}.date", date, f"lies ahead: {when.date()}")
        if not isinstance(version, str | int | float) or not str(version).strip():
            text = "is missing" if version is None else f"is a version, not {shown(plain(version))}"
            yield _told(scan, lacking, "session", f"{name}.runtime_version", version, text)
        if not session.get("command"):
            text = "is missing: nobody can repeat it"
            yield _told(scan, "warning", "session", f"{name}.command", session.get("command"), text)
        if session.get("drifted") is True:
            text = f"the machine's speed changed while measuring, by up to {_share(session.get('drift'))}"
            yield _told(scan, "warning", "drift", f"{name}.drift", session.get("drift"), text)
        yield from _clock(scan, name, session)
    versions = {str(plain(each["runtime_version"])) for _, each in sessions if each.get("runtime_version")}
    if len(versions) > 1:
        text = f"rows of several versions stand side by side: {', '.join(sorted(versions))}"
        yield _told(scan, "warning", "versions", "sessions", None, text)
    for key, step in canary_steps([each for _, each in sessions]).items():
        if step > CANARY_STEP:
            text = f"the machine was up to {step:.0%} slower in one than in another ({key})"
            yield _told(scan, "warning", "canary", "sessions", None, text)


def _machines(scan: Scan, target: Target) -> Iterator[Finding]:
    """Yield whether the table is of another machine than its target's name or description says."""
    if why := elsewhere(target, scan.sessions):
        text = f"is 'this-machine', but {why}: give it a name of its own, or profile this machine"
        yield _told(scan, "warning", "machine", "target.device", target.device, text)
    for i, session in enumerate(scan.sessions):
        processor = session.get("processor")
        if isinstance(processor, str) and processors_differ(processor, target.processor):
            text = f"is '{processor}', where the target's is '{target.processor}'"
            yield _told(scan, "warning", "machine", f"sessions[{i}].processor", processor, text)


def _share(value: object) -> str:
    return f"{value:.0%}" if isinstance(value, float) else "an unknown share"


def _clock(scan: Scan, name: str, session: Mapping[str, Any]) -> Iterator[Finding]:
    before, after = (_mhz(session.get(f"machine_{when}")) for when in ("before", "after"))
    if before is None or after is None:
        return
    if abs(after - before) > CLOCK_STEP * before:
        text = f"the processor's clock went from {before:g} to {after:g} MHz meanwhile"
        yield _told(scan, "warning", "clock", f"{name}.machine_after.mhz", after, text)


def _mhz(state: object) -> float | None:
    """Return the clock in a machine's state, if there is a sensible one."""
    value = state.get("mhz") if isinstance(state, dict) else None
    return float(value) if isinstance(value, float | int) and 0 < value < 1e9 else None


def _calibration(scan: Scan, found: Calibration) -> Iterator[Finding]:
    if found.worst_error < found.median_error:
        text = f"is {found.worst_error:g}, less than median_error {found.median_error:g}"
        yield _told(scan, "error", "calibration", "calibration.worst_error", found.worst_error, text)
    if found.networks < ENOUGH_NETWORKS:
        text = f"is {found.networks}: an interval needs {ENOUGH_NETWORKS} whole networks"
        yield _told(scan, "warning", "calibration", "calibration.networks", found.networks, text)
    if found.median_error > LARGEST_ERROR:
        text = f"is {found.median_error:.1%} of networks left out of the fit (aim: {LARGEST_ERROR:.0%})"
        yield _told(scan, "warning", "calibration", "calibration.median_error", found.median_error, text)
    if exp(found.half_width) > WIDEST_FACTOR:
        text = f"is {found.half_width:.2f}: intervals reach {exp(found.half_width):.2f} times the prediction"
        yield _told(scan, "warning", "calibration", "calibration.half_width", found.half_width, text)


def _missing(scan: Scan, needed: Iterable[Piece]) -> Iterator[Finding]:
    for piece in dict.fromkeys(needed):
        if piece not in scan.rows and not all(layer in scan.rows for layer in layers_of(piece)):
            what = "block" if isinstance(piece, Block) else "layer"
            text = f"latency table '{scan.path}': the {what} {piece.key} is missing"
            yield Finding("error", "missing", scan.path, None, "key", piece.key, text)
