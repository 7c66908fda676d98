"""LatencyTable: milliseconds per layer for exactly one target, every row with its provenance.

A table is two files side by side. ``NAME.csv`` holds one row per layer, sorted by key, so that ``diff`` and
``git merge`` work on it; ``NAME.yaml`` holds the target, the circumstances of the measurements, and the
calibration on whole networks where there is one.
"""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from latency_tables.target import Target
from search_spaces.errors import InputError, MissingLayerError, did_you_mean
from search_spaces.files import check_keys, read_text, read_yaml, write_text, write_yaml
from search_spaces.layers import Layer

Provenance = Literal["measured-here", "measured-by-others", "calibrated-estimate"]
"""How far a number can be trusted, best first."""

COLUMNS = ("key", "median_ms", "p10_ms", "p90_ms", "runs", "provenance", "source")
"""Columns of a table's CSV file, in order."""

_FORMAT = 1
_TRUST: tuple[Provenance, ...] = get_args(Provenance)
_NAMED = 5
_WIDEST = 10.0
"""Largest sensible logarithm of an interval's factor; exp of it is 22,000."""


def weakest(provenances: Iterable[Provenance]) -> Provenance:
    """Return the least trustworthy of some provenances: a sum is no better than its weakest part."""
    found = set(provenances)
    if not found:
        raise InputError("there is no provenance of nothing")
    return max(found, key=_TRUST.index)


@dataclass(frozen=True, slots=True)
class Row:
    """What is known about one layer.

    Attributes
    ----------
    median_ms, p10_ms, p90_ms
        Milliseconds per run, batch 1: median, 10th and 90th percentile.
    runs
        Timed runs behind them; 0 for an estimate.
    provenance
        ``measured-here``, ``measured-by-others`` or ``calibrated-estimate``.
    source
        Where it comes from, in a few words: a runtime's version, a citation, a script.

    Raises
    ------
    InputError
        On construction, naming the field that is wrong.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    provenance: Provenance
    source: str

    def __post_init__(self) -> None:
        for what in ("median_ms", "p10_ms", "p90_ms"):
            value = getattr(self, what)
            if not isinstance(value, float) or not math.isfinite(value) or value <= 0:
                raise InputError(f"{what} is a positive number of milliseconds, not {value!r}")
        if not self.p10_ms <= self.median_ms <= self.p90_ms:
            raise InputError(
                f"p10_ms <= median_ms <= p90_ms must hold, not {self.p10_ms}, {self.median_ms}, {self.p90_ms}"
            )
        if self.provenance not in _TRUST:
            raise InputError(
                f"provenance is one of {', '.join(_TRUST)}, not '{self.provenance}'"
                f"{did_you_mean(str(self.provenance), _TRUST)}"
            )
        fewest = 0 if self.provenance == "calibrated-estimate" else 1
        if not isinstance(self.runs, int) or isinstance(self.runs, bool) or self.runs < fewest:
            raise InputError(
                f"runs is a whole number from {fewest} for a {self.provenance} row, not {self.runs!r}"
            )
        if "\n" in self.source or "\r" in self.source:
            raise InputError("source is one line of text")


@dataclass(frozen=True, slots=True)
class Calibration:
    """``t = a_ms + b * sum`` fitted on whole networks that were measured on the target.

    Attributes
    ----------
    a_ms, b
        Intercept (not negative) and slope.
    networks
        How many networks it was fitted on.
    median_error, worst_error
        Relative errors ``|predicted / measured - 1|`` when each network is left out of the fit in turn.
    raw_error
        Median of the same error for the plain sum of layers (a = 0, b = 1).
    half_width
        The interval is the prediction divided and multiplied by ``exp(half_width)``; conformal, from the
        left-out residuals (see :func:`latency_tables.predictor.calibrate`).
    coverage
        Share of new networks that the interval is made to hold.

    Raises
    ------
    InputError
        On construction, naming the field that is wrong.
    """

    a_ms: float
    b: float
    networks: int
    median_error: float
    worst_error: float
    raw_error: float
    half_width: float
    coverage: float

    def __post_init__(self) -> None:
        for what in ("a_ms", "b", "median_error", "worst_error", "raw_error", "half_width", "coverage"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"a calibration's {what} is a finite number, not {value!r}")
            if what == "half_width" and value > _WIDEST:
                raise InputError(f"a calibration's half_width is at most {_WIDEST} (a factor), not {value!r}")
            if value < 0 or (what in ("b", "coverage") and value == 0):
                raise InputError(
                    f"a calibration's {what} is not negative (b and coverage positive), not {value}"
                )
        if not isinstance(self.networks, int) or isinstance(self.networks, bool) or self.networks < 1:
            raise InputError(f"a calibration's networks is a whole number from 1, not {self.networks!r}")

    @classmethod
    def from_dict(cls, value: object, where: str) -> Calibration:
        """Return the calibration that a mapping describes; errors (:class:`InputError`) name ``where``."""
        names = {field.name for field in fields(cls)}
        given = check_keys(value, names, where)
        for name in sorted(names - given.keys()):
            raise InputError(f"{where} lacks '{name}'")
        try:
            return cls(**given)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds per layer for one target.

    Attributes
    ----------
    target
        What the numbers hold for.
    rows
        One row per layer.
    sessions
        Circumstances of each measuring session, oldest first: date, runtime version, drift, and so on.
    calibration
        The affine fit on whole networks, or None.
    """

    target: Target
    rows: Mapping[Layer, Row]
    sessions: tuple[Mapping[str, Any], ...] = ()
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError(f"the latency table '{self.target.name}' needs at least one row")
        ordered = sorted(self.rows.items(), key=lambda item: item[0].key)
        object.__setattr__(self, "rows", MappingProxyType(dict(ordered)))

    @property
    def name(self) -> str:
        """The target's name, which is also the table's."""
        return self.target.name

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, layer: object) -> bool:
        return layer in self.rows

    @cached_property
    def provenances(self) -> Mapping[Provenance, int]:
        """How many rows there are of each provenance, best first."""
        counts = Counter(row.provenance for row in self.rows.values())
        return MappingProxyType({kind: counts[kind] for kind in _TRUST if counts[kind]})

    @property
    def provenance(self) -> Provenance:
        """The weakest provenance among all rows."""
        return weakest(self.provenances)

    def missing(self, layers: Iterable[Layer]) -> tuple[Layer, ...]:
        """Return the layers without a row, each once, in order."""
        return tuple(dict.fromkeys(layer for layer in layers if layer not in self.rows))

    def require(self, layers: Iterable[Layer]) -> None:
        """Raise :class:`MissingLayerError` naming the layers without a row, if there are any."""
        wanted = tuple(dict.fromkeys(layers))
        missing = self.missing(wanted)
        if missing:
            named = [f"{layer.key} ({layer.name})" if layer.name else layer.key for layer in missing[:_NAMED]]
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            raise MissingLayerError(
                f"the latency table '{self.name}' lacks {len(missing)} of the {len(wanted)} distinct layers"
                f" needed: {', '.join(named)}{more}; measure them with 'nas profile' on that target"
            )

    def latency_ms(self, layers: Iterable[Layer]) -> float:
        """Return the plain sum of medians over ``layers`` (repeated ones counted every time).

        Raises
        ------
        MissingLayerError
            If a layer has no row.
        """
        wanted = tuple(layers)
        self.require(wanted)
        return math.fsum(self.rows[layer].median_ms for layer in wanted)

    def merge(self, other: LatencyTable) -> LatencyTable:
        """Return the rows of both; where both have a layer, this table's row stays.

        The calibration stays too: it was fitted on this table's rows, which do not change.

        Raises
        ------
        InputError
            If the targets differ.
        """
        if other.target != self.target:
            raise InputError(
                f"tables of different targets are never merged: {self.target} and {other.target}"
            )
        return replace(self, rows={**other.rows, **self.rows}, sessions=(*self.sessions, *other.sessions))

    # -- files ------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (CSV) and the YAML file beside it, each atomically; return the CSV file's path."""
        path = csv_path(path)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for layer, row in self.rows.items():
            numbers = (repr(value) for value in (row.median_ms, row.p10_ms, row.p90_ms))
            writer.writerow([layer.key, *numbers, row.runs, row.provenance, row.source])
        metadata: dict[str, Any] = {"format": _FORMAT, "target": self.target.to_dict()}
        if self.calibration is not None:
            metadata["calibration"] = asdict(self.calibration)
        metadata["sessions"] = [dict(session) for session in self.sessions]
        write_yaml(path.with_suffix(".yaml"), metadata)
        write_text(path, text.getvalue())
        return path

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Return the table in ``path`` (its CSV or its YAML file).

        Raises
        ------
        InputError
            Naming the file, the line, the field and the value that is wrong.
        """
        path = csv_path(path)
        rows = _read_rows(path)
        beside = path.with_suffix(".yaml")
        where = f"latency table metadata '{beside}'"
        given = check_keys(
            read_yaml(beside, "latency table metadata"),
            {"format", "target", "calibration", "sessions"},
            where,
        )
        if given.get("format") != _FORMAT:
            raise InputError(f"{where}: 'format' is {_FORMAT}, not {given.get('format')!r}")
        sessions = given.get("sessions") or []
        if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
            raise InputError(f"{where}: 'sessions' is a list of mappings, not {sessions!r}")
        calibration = given.get("calibration")
        return cls(
            target=Target.from_dict(given.get("target"), f"{where}: target"),
            rows=rows,
            sessions=tuple(sessions),
            calibration=None
            if calibration is None
            else Calibration.from_dict(calibration, f"{where}: calibration"),
        )


def csv_path(path: str | Path) -> Path:
    """Return the CSV file of the table that ``path`` (CSV, YAML or neither suffix) stands for."""
    path = Path(path)
    return path.with_suffix(".csv") if path.suffix in (".yaml", ".yml", ".csv") else Path(f"{path}.csv")


def _number(text: str, column: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{column} is a number of milliseconds, not '{text}'") from None


def _read_rows(path: Path) -> dict[Layer, Row]:
    text = read_text(path, "latency table")
    reader = csv.reader(io.StringIO(text, newline=""))
    header = next(reader, [])
    for column in COLUMNS:
        if column not in header:
            raise InputError(f"latency table '{path}' line 1 lacks the column '{column}'")
    for column in header:
        if column not in COLUMNS or header.count(column) > 1:
            raise InputError(f"latency table '{path}' line 1 has an unknown or repeated column '{column}'")
    rows: dict[Layer, Row] = {}
    try:
        for cells in reader:
            if not cells:
                continue
            where = f"latency table '{path}' line {reader.line_num}"
            if len(cells) != len(header):
                raise InputError(f"{where} has {len(cells)} fields, not {len(header)}")
            layer, row = _row(dict(zip(header, cells, strict=True)), where)
            if layer in rows:
                raise InputError(f"{where}: the key '{layer.key}' stands there twice; keep one of the rows")
            rows[layer] = row
    except csv.Error as error:
        raise InputError(f"latency table '{path}' line {reader.line_num} is not valid CSV: {error}") from None
    if not rows:
        raise InputError(f"latency table '{path}' has no rows")
    return rows


def _row(cells: Mapping[str, str], where: str) -> tuple[Layer, Row]:
    try:
        layer = Layer.from_key(cells["key"])
        if not cells["runs"].isdecimal():
            raise InputError(f"runs is a whole number, not '{cells['runs']}'")
        return layer, Row(
            median_ms=_number(cells["median_ms"], "median_ms"),
            p10_ms=_number(cells["p10_ms"], "p10_ms"),
            p90_ms=_number(cells["p90_ms"], "p90_ms"),
            runs=int(cells["runs"]),
            provenance=cells["provenance"],  # type: ignore[arg-type]
            source=cells["source"],
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def available_tables(folders: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Return the CSV file of every table in ``folders`` and among the packaged ones, by name.

    A table is a CSV file with a YAML file beside it. Folders come first: a user's own table hides a packaged
    one of the same name. A folder that does not exist holds none.
    """
    packaged = Path(str(resources.files("latency_tables"))) / "devices"
    found: dict[str, Path] = {}
    for folder in (*map(Path, folders), packaged):
        for path in sorted(folder.glob("*.csv")):
            if path.with_suffix(".yaml").is_file():
                found.setdefault(path.stem, path)
    return found


def find_table(name: str | Path, folders: Sequence[str | Path] = ()) -> LatencyTable:
    """Return the table called ``name`` in one of the folders or among the packaged ones, or at that path.

    Raises
    ------
    InputError
        If there is none; the message names the nearest known one, and how to make one.
    """
    tables = available_tables(folders)
    if str(name) in tables:
        return LatencyTable.load(tables[str(name)])
    path = Path(name)
    if path.suffix in (".csv", ".yaml", ".yml") or path.parent != Path():
        return LatencyTable.load(path)
    raise InputError(
        f"there is no latency table '{name}'{did_you_mean(str(name), tables)}"
        f"{'' if tables else '; there is none at all yet'}; 'nas profile' makes one"
    )
