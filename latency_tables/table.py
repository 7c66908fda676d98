"""LatencyTable: milliseconds per layer for exactly one target, every row with its provenance.

A table is two files side by side. ``NAME.csv`` holds one row per layer, sorted by key, so that ``diff`` and
``git merge`` work on it; ``NAME.yaml`` holds the target, the circumstances of the measurements, and the
calibration on whole networks where there is one.

Both are saved together: the YAML file says which rows it was saved with, by their digest (``rows_sha256``;
a file written by hand needs none). It is replaced first, while the new CSV file lies complete beside it,
under a hidden name. So whenever a kill comes, the table is the former one or the new one: where rows do not
fit the digest, those in that hidden file do, and where there is none, the table is refused as a mixture.
"""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from latency_tables.fit import FitRecord
from latency_tables.roofline import Roofline
from latency_tables.speed import MOST_FOLLOWED
from latency_tables.target import Target
from search_spaces.arch import Arch
from search_spaces.errors import InputError, MissingLayerError, RunError, did_you_mean, shown
from search_spaces.files import check_keys, put_in_place, read_text, read_yaml, write_texts, yaml_text
from search_spaces.layers import Block, Piece, layers_of, piece_from_key
from search_spaces.registry import arch_from_json

Provenance = Literal["measured-here", "measured-by-others", "calibrated-estimate"]
"""How far a number can be trusted, best first."""

TRUST: tuple[Provenance, ...] = get_args(Provenance)
"""The same as a tuple."""

COLUMNS = ("key", "median_ms", "p10_ms", "p90_ms", "runs", "provenance", "source")
"""Columns of a table's CSV file, in order."""

_FORMAT = 1
_NAMED = 5
_WIDEST = 10.0
"""Largest sensible logarithm of an interval's factor; exp of it is 22,000."""
_ROUNDED = 1e-4
"""Coverages may be rounded."""
_REACH = 1.25
_SHORTEST_MS, _LONGEST_MS = 1e-9, 1e9
"""What no layer takes; sums and ratios of what lies between are finite."""
_SENSIBLE_CANARY_MS = (1e-7, 1e7)
"""What a canary may take: the last digit that is kept of it, and hours."""
_CANARIES = 2
_MOST_DIGITS = 12
_READINGS = 5
_SEPARATORS = {";": "semicolons", "\t": "tabs"}
_DIGEST = re.compile("[0-9a-f]{64}")
_DEEPEST, _MOST_VALUES = 12, 100_000
"""How deeply metadata may be nested, and how many values it may hold, aliases counted each time."""


def weakest(provenances: Iterable[Provenance]) -> Provenance:
    """Return the least trustworthy of some provenances: a sum is no better than its weakest part."""
    found = set(provenances)
    if not found:
        raise InputError("there is no provenance of nothing")
    return max(found, key=TRUST.index)


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
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        for _, _, message in _row_faults(values):
            raise InputError(message)


def _row_faults(values: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """Yield (field, value, message) for every rule that the values of a :class:`Row` break."""
    times = {what: values[what] for what in ("median_ms", "p10_ms", "p90_ms")}
    wrong = {
        what: value
        for what, value in times.items()
        if not isinstance(value, float) or not math.isfinite(value) or value <= 0
    }
    for what, value in wrong.items():
        yield what, value, f"{what} is a positive number of milliseconds, not {value!r}"
    for what, value in times.items():
        if what not in wrong and not _SHORTEST_MS <= value <= _LONGEST_MS:
            yield what, value, f"{what} is from {_SHORTEST_MS} to {_LONGEST_MS} milliseconds, not {value!r}"
    median, p10, p90 = times.values()
    if not wrong and not p10 <= median <= p90:
        # The median is the middle one: what lies on the wrong side of it is named.
        what = "p10_ms" if p10 > median else "p90_ms"
        message = f"p10_ms <= median_ms <= p90_ms must hold, not {p10}, {median}, {p90}"
        yield what, times[what], message
    provenance, runs, source = values["provenance"], values["runs"], values["source"]
    if provenance not in TRUST:
        yield (
            "provenance",
            provenance,
            f"provenance is one of {', '.join(TRUST)}, not {shown(provenance)}"
            f"{did_you_mean(str(provenance), TRUST)}",
        )
    fewest = 0 if provenance == "calibrated-estimate" else 1
    if not isinstance(runs, int) or isinstance(runs, bool) or runs < fewest:
        yield "runs", runs, f"runs is a whole number from {fewest} for a {provenance} row, not {runs!r}"
    if "\n" in source or "\r" in source:
        yield "source", source, "source is one line of text"


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
        Share of new networks that the interval is made to hold; of n networks at most n / (n + 1).
    least_ms, most_ms
        The fastest and the slowest of the networks, as measured; None where nobody has noted them. Of
        networks far beyond, the interval knows nothing (:meth:`reaches`).

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
    least_ms: float | None = None
    most_ms: float | None = None

    def __post_init__(self) -> None:
        for what in ("a_ms", "b", "median_error", "worst_error", "raw_error", "half_width", "coverage"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
                raise InputError(f"a calibration's {what} is a finite number, not {shown(value)}")
            if what == "half_width" and value > _WIDEST:
                raise InputError(f"a calibration's half_width is at most {_WIDEST} (a factor), not {value!r}")
            if value < 0 or (what in ("b", "coverage") and value == 0):
                raise InputError(
                    f"a calibration's {what} is not negative (b and coverage positive), not {value}"
                )
        if not isinstance(self.networks, int) or isinstance(self.networks, bool) or self.networks < 1:
            raise InputError(f"a calibration's networks is a whole number from 1, not {self.networks!r}")
        if self.coverage > (most := self.networks / (self.networks + 1)) + _ROUNDED:
            raise InputError(
                f"a calibration's coverage is at most n / (n + 1), {most:.4g} for its {self.networks}"
                f" networks, not {self.coverage}: no interval promises more"
            )
        ends = (self.least_ms, self.most_ms)
        if ends != (None, None) and not all(_is_time(value) for value in ends):
            raise InputError(
                "a calibration's least_ms and most_ms are two positive numbers of milliseconds, or both left"
                f" out, not {shown(self.least_ms)} and {shown(self.most_ms)}"
            )
        if self.least_ms is not None and self.most_ms is not None and self.least_ms > self.most_ms:
            raise InputError(
                f"a calibration's least_ms is at most its most_ms {self.most_ms}, not {self.least_ms}"
            )

    def reaches(self, ms: float) -> bool:
        """Return whether networks of about as many milliseconds are among those that it was fitted on.

        That is from a fifth less than the fastest to a quarter more than the slowest. Where they are not
        noted, it is taken to.
        """
        if self.least_ms is None or self.most_ms is None:
            return True
        return self.least_ms / _REACH <= ms <= self.most_ms * _REACH

    @classmethod
    def from_dict(cls, value: object, where: str) -> Calibration:
        """Return the calibration that a mapping describes; errors (:class:`InputError`) name ``where``."""
        names = {field.name for field in fields(cls)}
        given = check_keys(value, names, where)
        for name in sorted(names - given.keys() - {"least_ms", "most_ms"}):
            raise InputError(f"{where} lacks '{name}'")
        try:
            return cls(**given)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the values as YAML holds them, without what nobody has noted."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class MeasuredNetwork:
    """A whole network that was timed on the target: what calibrations are fitted on.

    Attributes
    ----------
    arch, joints
        The network.
    row
        Its times.
    """

    arch: Arch
    joints: int
    row: Row

    @property
    def name(self) -> str:
        """What tells it from others: the arch's id, and its joints."""
        return f"{self.arch.id} ({self.joints} joints)"

    @property
    def blocks(self) -> tuple[Block, ...]:
        """What it executes."""
        return self.arch.blocks(self.joints)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as YAML holds them; the arch is a line of JSON."""
        return {"arch": json.dumps(self.arch.to_json()), "joints": self.joints, **asdict(self.row)}

    @classmethod
    def from_dict(cls, value: object, where: str) -> MeasuredNetwork:
        """Return the network that a mapping describes; errors (:class:`InputError`) name ``where``."""
        names = {"arch", "joints", *(field.name for field in fields(Row))}
        given = dict(check_keys(value, names, where))
        for name in sorted(names - given.keys()):
            raise InputError(f"{where} lacks '{name}'")
        text, joints = given.pop("arch"), given.pop("joints")
        try:
            arch = arch_from_json(json.loads(text) if isinstance(text, str) else text, f"{where}: arch")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: arch is no JSON ({error}): {shown(text)}") from None
        if not isinstance(joints, int) or isinstance(joints, bool) or joints < 1:
            raise InputError(f"{where}: joints is a whole number from 1, not {shown(joints)}")
        for what in ("median_ms", "p10_ms", "p90_ms"):
            if isinstance(given[what], int) and not isinstance(given[what], bool):
                given[what] = float(given[what])
        given["source"] = str(given["source"])
        try:
            return cls(arch, joints, Row(**given))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds per layer or block for one target.

    Attributes
    ----------
    target
        What the numbers hold for.
    rows
        One row per layer or block.
    sessions
        Circumstances of each measuring session, oldest first: date, runtime version, drift, and so on.
    calibration
        The affine fit on whole networks, or None.
    roofline
        What layers without a row are estimated from, or None.
    networks
        Whole networks that were timed on the target.
    fit
        How far its fitted rows can be believed, or None where it has none.
    """

    target: Target
    rows: Mapping[Piece, Row]
    sessions: tuple[Mapping[str, Any], ...] = ()
    calibration: Calibration | None = None
    roofline: Roofline | None = None
    networks: tuple[MeasuredNetwork, ...] = ()
    fit: FitRecord | None = None

    def __post_init__(self) -> None:
        if not self.rows:
            raise InputError(f"the latency table '{self.target.name}' needs at least one row")
        object.__setattr__(self, "rows", MappingProxyType(_sorted(self.rows)))

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
        return MappingProxyType({kind: counts[kind] for kind in TRUST if counts[kind]})

    @property
    def provenance(self) -> Provenance:
        """The weakest provenance among all rows."""
        return weakest(self.provenances)

    def answers(self, piece: Piece) -> tuple[Row, ...] | None:
        """Return the rows whose sum a piece takes: its own, or those of a block's layers; else None."""
        if piece in self.rows:
            return (self.rows[piece],)
        rows = tuple(self.rows[layer] for layer in layers_of(piece) if layer in self.rows)
        return rows if len(rows) == len(layers_of(piece)) else None

    def missing(self, pieces: Iterable[Piece]) -> tuple[Piece, ...]:
        """Return what has no row, each once, in order: layers, and blocks of which a layer lacks one, too.

        Of such a block the layers without a row are returned if the table has some of it in layers, else the
        block.
        """
        found: dict[Piece, None] = {}
        for piece in pieces:
            if self.answers(piece) is None:
                absent = [layer for layer in layers_of(piece) if layer not in self.rows]
                found.update(dict.fromkeys(absent if len(absent) < len(layers_of(piece)) else [piece]))
        return tuple(found)

    def require(self, pieces: Iterable[Piece]) -> None:
        """Raise :class:`MissingLayerError` naming the layers and blocks without a row, if there are any."""
        wanted = tuple(dict.fromkeys(pieces))
        missing = self.missing(wanted)
        if missing:
            named = [f"{piece.key} ({piece.name})" if piece.name else piece.key for piece in missing[:_NAMED]]
            more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
            what = "blocks" if any(isinstance(piece, Block) for piece in missing) else "layers"
            raise MissingLayerError(
                f"the latency table '{self.name}' lacks {len(missing)} of the {len(wanted)} distinct {what}"
                f" needed: {', '.join(named)}{more}; measure them with 'nas profile' on that target"
            )

    def latency_ms(self, pieces: Iterable[Piece]) -> float:
        """Return the plain sum of medians (what is repeated is counted every time).

        Raises
        ------
        MissingLayerError
            If a layer or a block has no row.
        """
        wanted = tuple(pieces)
        self.require(wanted)
        return math.fsum(row.median_ms for piece in wanted for row in self.answers(piece) or ())

    # -- files ------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write ``path`` (CSV) and the YAML file beside it; return the CSV file's path.

        Neither is replaced before both are on the disk, and a kill in between leaves this table or the former
        one. Who changes a table that others may change, too, holds it from loading to saving
        (:func:`latency_tables.holding.held_table`).

        Raises
        ------
        RunError
            If the files cannot be written; then nothing was changed.
        """
        path = csv_path(path)
        text = _rows_text(self.rows)
        metadata: dict[str, Any] = {"format": _FORMAT, "target": self.target.to_dict()}
        if self.calibration is not None:
            metadata["calibration"] = self.calibration.to_dict()
        if self.roofline is not None:
            metadata["roofline"] = self.roofline.to_dict()
        if self.fit is not None:
            metadata["fit"] = self.fit.to_dict()
        if self.networks:
            metadata["networks"] = [network.to_dict() for network in self.networks]
        metadata["sessions"] = [dict(session) for session in self.sessions]
        metadata["rows_sha256"] = _digest(text)
        write_texts({path.with_suffix(".yaml"): yaml_text(metadata), path: text})
        return path

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Return the table in ``path`` (its CSV or its YAML file).

        Raises
        ------
        InputError
            Naming the file, the line, the field and the value that is wrong.
        """
        scan = scan_table(path)
        for fault in scan.faults:
            raise InputError(fault.message)
        if scan.target is None:  # a scan without a fault has one
            raise InputError(f"latency table '{scan.path}' has no target")
        given = (scan.sessions, scan.calibration, scan.roofline, scan.networks, scan.fit)
        return cls(scan.target, scan.rows, *given)


def _rows_text(rows: Mapping[Piece, Row]) -> str:
    """Return rows as a CSV file holds them, in the order given."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for layer, row in rows.items():
        numbers = (repr(value) for value in (row.median_ms, row.p10_ms, row.p90_ms))
        writer.writerow([layer.key, *numbers, row.runs, row.provenance, row.source])
    return text.getvalue()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _fits(digest: str, text: str, rows: Mapping[Piece, Row]) -> bool:
    """Return whether a file's rows are those of a digest, however the file orders and spells them."""
    return _digest(text) == digest or _digest(_rows_text(_sorted(rows))) == digest


def _sorted(rows: Mapping[Piece, Row]) -> dict[Piece, Row]:
    return dict(sorted(rows.items(), key=lambda item: item[0].key))


def csv_path(path: str | Path) -> Path:
    """Return the CSV file of the table that ``path`` (CSV, YAML or neither suffix) stands for."""
    path = Path(path)
    return path.with_suffix(".csv") if path.suffix in (".yaml", ".yml", ".csv") else Path(f"{path}.csv")


# -- reading ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """Something in a table's files that keeps it from being used.

    Attributes
    ----------
    file
        The file.
    line
        Its line, from 1; None where the whole file is meant.
    field
        Column or key of the metadata; empty where there is none.
    value
        What stands there, as a message shows it.
    message
        All of that as one line, with the rule that is broken.
    """

    file: Path
    line: int | None
    field: str
    value: str
    message: str


@dataclass
class Scan:
    """All that can be read of a table's two files, and everything that cannot.

    Attributes
    ----------
    path
        The CSV file.
    rows
        The rows that are sound.
    lines
        For each of them its line and its key as the file spells it.
    target, sessions, calibration, roofline, networks, fit
        As in :class:`LatencyTable`; None or empty where they cannot be read.
    faults
        What is wrong; a table without a fault can be loaded.
    digest
        Of the rows that the YAML file was saved with; None where it does not say.
    torn
        Whether the rows are sound and not those.
    left
        The hidden file that the rows were read from; None where they are in their place.
    """

    path: Path
    rows: dict[Piece, Row] = field(default_factory=dict)
    lines: dict[Piece, tuple[int, str]] = field(default_factory=dict)
    target: Target | None = None
    sessions: tuple[Mapping[str, Any], ...] = ()
    calibration: Calibration | None = None
    roofline: Roofline | None = None
    networks: tuple[MeasuredNetwork, ...] = ()
    fit: FitRecord | None = None
    faults: list[Fault] = field(default_factory=list)
    digest: str | None = None
    torn: bool = False
    left: Path | None = None


def scan_table(path: str | Path) -> Scan:
    """Return what the CSV and YAML file of a table hold, with every fault in them; never raises for one.

    Where a kill came between the two files of a table, the rows are those that the YAML file was saved with.
    """
    files = (csv_path(path), csv_path(path).with_suffix(".yaml"))
    for _ in range(_READINGS):
        before = [*map(file_identity, files)]
        scan = _scan(path)
        if not scan.torn or [*map(file_identity, files)] == before:
            break  # else somebody has saved it between our reading the one file and the other
    if scan.torn:
        beside = scan.path.with_suffix(".yaml")
        message = (
            f"latency table '{scan.path}' does not hold the rows that '{beside}' was saved with: one of the"
            " files was edited or comes from another table; put the right ones side by side or, if the edit"
            f" was meant, delete 'calibration' and 'rows_sha256' in '{beside.name}'"
        )
        scan.faults.append(Fault(beside, None, "rows_sha256", "", message))
    return scan


def _scan(path: str | Path) -> Scan:
    """Return what the files hold; what stands where the YAML file's rows should is judged by the caller."""
    scan = Scan(csv_path(path))
    _scan_metadata(scan)
    told, scan.faults = scan.faults, []
    text = ""
    try:
        text = read_text(scan.path, "latency table")
    except InputError as error:
        scan.faults.append(Fault(scan.path, None, "", "", str(error)))
    else:
        _scan_rows(scan, text)
    whole = not scan.faults and (scan.digest is None or _fits(scan.digest, text, scan.rows))
    if not whole and scan.digest is not None and (left := _left_rows(scan)) is not None:
        scan.rows, scan.lines, scan.faults, scan.left, whole = left.rows, left.lines, [], left.left, True
    scan.torn = not whole and not scan.faults
    scan.faults += told
    return scan


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file from the one that replaces it; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def leftover_rows(path: Path) -> list[Path]:
    """Return the hidden files in which the rows of a table may lie that was being saved when a kill came."""
    return sorted(path.parent.glob(f".{glob.escape(path.stem[:80])}-????????.csv"))


def _left_rows(scan: Scan) -> Scan | None:
    """Return the rows that the metadata was saved with, from the file in which a kill has left them."""
    for path in leftover_rows(scan.path):
        found = Scan(scan.path)
        try:
            text = read_text(path, "latency table")
        except InputError:
            continue  # renamed meanwhile, by who was saving it
        if _digest(text) == scan.digest:
            _scan_rows(found, text)
            found.left = path
            return found
    return None


def finish_save(path: str | Path) -> None:
    """Put the rows of a table in their place where a kill has left them beside it; else do nothing.

    The table is the same before and after, but for programs that read the CSV file alone. Nobody else may be
    saving it meanwhile.

    Raises
    ------
    RunError
        If the file cannot be renamed; then nothing was changed.
    """
    file = csv_path(path)
    left = _scan(file).left if leftover_rows(file) else None
    if left is not None:
        try:
            put_in_place(left, file)
        except OSError as error:
            raise RunError(f"cannot write {file}: {error.strerror or error}; nothing was changed") from None


def _scan_rows(scan: Scan, text: str) -> None:
    path = scan.path
    reader = csv.reader(io.StringIO(text, newline=""))
    line = after = 1  # where a row begins, and the next: a quoted cell may go on over several lines

    def fault(message: str, column: str = "", value: object = "") -> None:
        where = f"latency table '{path}' line {line}"
        told = shown(value) if value != "" else ""
        scan.faults.append(Fault(path, line, column, told, f"{where}{message}"))

    try:
        header = next(reader, [])
        if len(header) == 1 and (other := next((sep for sep in _SEPARATORS if sep in header[0]), None)):
            fault(
                f" separates its columns by {_SEPARATORS[other]}, as some spreadsheets do; a table's are"
                " separated by commas, and its numbers have a point: save it as CSV in that form"
            )
            return
        for column in COLUMNS:
            if column not in header:
                scan.faults.append(
                    Fault(path, 1, column, "", f"latency table '{path}' line 1 lacks the column '{column}'")
                )
        for column in dict.fromkeys(header):
            if column not in COLUMNS or header.count(column) > 1:
                message = f"latency table '{path}' line 1 has an unknown or repeated column {shown(column)}"
                scan.faults.append(Fault(path, 1, column, "", message))
        if scan.faults:
            return
        after = reader.line_num + 1
        for cells in reader:
            line, after = after, reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                fault(f" has {len(cells)} fields, not {len(header)}")
                continue
            named = dict(zip(header, cells, strict=True))
            layer, row, wrong = _parse(named)
            for column, message in wrong:
                fault(f": {message}", column, named[column])
            if layer is None or row is None:
                continue
            if layer in scan.rows:
                fault(f": the key '{layer.key}' stands there twice; keep one of the rows", "key", layer.key)
                continue
            scan.rows[layer] = row
            scan.lines[layer] = (line, named["key"])
    except csv.Error as error:
        line = after
        fault(f" is not valid CSV: {error}")
    if not scan.rows and not scan.faults:
        scan.faults.append(Fault(path, None, "", "", f"latency table '{path}' has no rows"))


def _parse(cells: Mapping[str, str]) -> tuple[Piece | None, Row | None, list[tuple[str, str]]]:
    """Return layer and row of a line's cells, and (column, message) for whatever is wrong with them."""
    wrong: list[tuple[str, str]] = []
    layer = None
    try:
        layer = piece_from_key(cells["key"])
    except InputError as error:
        wrong.append(("key", str(error)))
    values: dict[str, Any] = {"provenance": cells["provenance"], "source": cells["source"]}
    for column in ("median_ms", "p10_ms", "p90_ms"):
        try:
            values[column] = float(cells[column])
        except ValueError:
            point = ", with a point where it has a comma" if "," in cells[column] else ""
            wrong.append((column, f"{column} is a number of milliseconds{point}, not {shown(cells[column])}"))
    if cells["runs"].isdecimal() and len(cells["runs"]) <= _MOST_DIGITS:
        values["runs"] = int(cells["runs"])
    else:
        wrong.append(("runs", f"runs is a whole number, not {shown(cells['runs'])}"))
    if len(values) < len(fields(Row)):
        return layer, None, wrong
    broken = [(column, message) for column, _, message in _row_faults(values)]
    return layer, None if broken else Row(**values), wrong + broken


_PARTS: dict[str, type[Calibration | Roofline | FitRecord]] = {
    "calibration": Calibration,
    "roofline": Roofline,
    "fit": FitRecord,
}
"""Parts of a table's metadata that are read alike."""


def _scan_metadata(scan: Scan) -> None:
    path = scan.path.with_suffix(".yaml")
    where = f"latency table metadata '{path}'"

    def fault(key: str, message: str, value: object = "") -> None:
        told = shown(value) if value != "" else ""
        scan.faults.append(Fault(path, None, key, told, message))

    try:
        given = read_yaml(path, "latency table metadata")
        _check_extent(given, where)
        known = {"format", "target", "calibration", "roofline", "fit", "networks", "sessions", "rows_sha256"}
        check_keys(given, known, where)
    except InputError as error:
        fault("", str(error))
        return
    if given.get("format") != _FORMAT:
        message = f"{where}: 'format' is {_FORMAT}, not {shown(given.get('format'))}"
        fault("format", message, given.get("format"))
    digest = given.get("rows_sha256")
    if digest is None or (isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        scan.digest = digest
    else:
        message = f"{where}: 'rows_sha256' is 64 hexadecimal digits, not {shown(digest)}"
        fault("rows_sha256", message, digest)
    sessions = given.get("sessions") or []
    if isinstance(sessions, list) and all(isinstance(session, dict) for session in sessions):
        scan.sessions = tuple(sessions)
    else:
        fault("sessions", f"{where}: 'sessions' is a list of mappings, not {shown(sessions)}", sessions)
    for number, session in enumerate(scan.sessions):
        for name, value, rule in speed_faults(session):
            key = f"sessions[{number}].{name}"
            fault(key, f"{where}: {key} is {rule}, not {shown(value)}", value)
    try:
        scan.target = Target.from_dict(given.get("target"), f"{where}: target")
    except InputError as error:
        fault("target", str(error), given.get("target"))
    for name, kind in _PARTS.items():
        try:
            if (part := given.get(name)) is not None:
                setattr(scan, name, kind.from_dict(part, f"{where}: {name}"))
        except InputError as error:
            fault(name, str(error), given.get(name))
    networks = given.get("networks") or []
    if not isinstance(networks, list):
        fault("networks", f"{where}: 'networks' is a list of mappings, not {shown(networks)}", networks)
        return
    found = []
    for number, network in enumerate(networks):
        try:
            found.append(MeasuredNetwork.from_dict(network, f"{where}: networks[{number}]"))
        except InputError as error:
            fault(f"networks[{number}]", str(error), network)
    scan.networks = tuple(found)
    if scan.calibration is not None and networks and scan.calibration.networks != len(networks):
        message = (
            f"{where}: calibration: networks is {scan.calibration.networks}, and the table holds"
            f" {len(networks)}: delete 'calibration', or put the right networks beside it"
        )
        fault("calibration.networks", message, scan.calibration.networks)


def speed_faults(session: Mapping[str, Any]) -> Iterator[tuple[str, object, str]]:
    """Yield (field, value, rule) of what cannot be in what a session tells of the machine's speed.

    What was measured is brought to another speed by it (:mod:`latency_tables.speed`).
    """
    if "speed" not in session:
        return
    speed = session["speed"]
    if not isinstance(speed, dict):
        yield "speed", speed, "a mapping"
        return
    least, most = _SENSIBLE_CANARY_MS
    times = f"two numbers of milliseconds from {least:g} to {most:g}"
    powers = f"two numbers from 0 to {MOST_FOLLOWED}"
    rules: dict[str, tuple[Callable[[object], bool], str]] = {
        "canaries": (lambda each: isinstance(each, str) and bool(each.strip()), "the keys of two canaries"),
        "canaries_ms": (lambda each: _between(each, least, most), times),
        "exponents": (lambda each: _between(each, 0.0, MOST_FOLLOWED), powers),
        "network_exponents": (lambda each: _between(each, 0.0, MOST_FOLLOWED), powers),
        "measured_at_ms": (lambda each: _between(each, least, most), times),
    }
    for name, (sound, rule) in rules.items():
        value = speed.get(name)
        if name == "measured_at_ms" and name not in speed:
            continue
        if not isinstance(value, list) or len(value) != _CANARIES or not all(map(sound, value)):
            yield f"speed.{name}", value, rule


def _between(value: object, least: float, most: float) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and least <= value <= most  # type: ignore[operator]


def _check_extent(value: object, where: str) -> None:
    """Refuse what YAML's aliases make endless: a list within itself, or lists of lists of lists of one."""
    waiting, seen = [(value, 0)], 0
    while waiting:
        each, depth = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_VALUES:
            raise InputError(f"{where} is nested too deeply or holds too many values")
        if isinstance(each, dict):
            waiting += [(inner, depth + 1) for inner in each.values()]
        elif isinstance(each, list | tuple | set):
            waiting += [(inner, depth + 1) for inner in each]


def _is_time(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and _is_finite(value) and value > 0  # type: ignore[arg-type, operator]


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


# -- finding ---------------------------------------------------------------------------------------------


def packaged_folder() -> Path:
    """Return the folder of the tables that come with the package; it need not exist."""
    return Path(str(resources.files("latency_tables"))) / "devices"


def files_in(folder: Path, suffix: str) -> list[Path]:
    """Return a folder's files of one kind, sorted; without what is being written or a kill has left."""
    return sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))


def available_tables(folders: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Return the CSV file of every table in ``folders`` and among the packaged ones, by name.

    A table is a CSV file with a YAML file beside it (a YAML file alone where a kill came while the table was
    saved for the first time, and its rows are still to be had). Folders come first: a user's own table hides
    a packaged one of the same name. A folder that does not exist holds none.
    """
    found: dict[str, Path] = {}
    for folder in (*map(Path, folders), packaged_folder()):
        for path in (each.with_suffix(".csv") for each in files_in(folder, ".yaml")):
            if path.is_file() or leftover_rows(path):
                found.setdefault(path.stem, path)
    return found


def locate_table(name: str | Path, folders: Sequence[str | Path] = ()) -> Path:
    """Return the CSV file of the table called ``name`` in a folder or among the packaged ones, or of a path.

    A device's name stands for its table, where there is one: in the folders, or else among the packaged ones.
    A path need not lead to a sound table, nor to any: whoever reads it tells.

    Raises
    ------
    InputError
        If no table is called so, or several tables are of that device; the message names them, or the nearest
        known one, the devices with packaged tables, and how to make one.
    """
    tables = available_tables(folders)
    if str(name) in tables:
        return tables[str(name)]
    path = Path(name)
    if path.suffix in (".csv", ".yaml", ".yml") or path.parent != Path():
        return csv_path(path)
    found = device_table(str(name), folders)
    if found is not None:
        return found
    packaged = sorted({each for path in available_tables().values() if (each := _device(path)) is not None})
    hint = did_you_mean(str(name), {*tables, *packaged})
    coming = f"; devices with a table that comes with the package: {', '.join(packaged)}" if packaged else ""
    raise InputError(f"there is no latency table '{name}'{hint}{coming}; 'nas profile' makes one")


def device_table(device: str, folders: Sequence[str | Path] = ()) -> Path | None:
    """Return the CSV file of the one table of a device: in the folders, or else among the packaged ones.

    Raises
    ------
    InputError
        If there are several, naming them.
    """
    of_device = {
        name: path
        for name, path in available_tables(folders).items()
        if name.startswith(f"{device}-") and _device(path) in (device, None)
    }
    found = {name: path for name, path in of_device.items() if not is_packaged(path)} or of_device
    if len(found) > 1:
        raise InputError(f"several latency tables are of '{device}': {', '.join(found)}; name one of them")
    return next(iter(found.values()), None)


def is_packaged(path: Path) -> bool:
    """Return whether a table's file is one that comes with the package."""
    return path.resolve().parent == packaged_folder().resolve()


def _device(path: Path) -> str | None:
    """Return the device that a table is of; None where its metadata cannot be read."""
    try:
        given = read_yaml(path.with_suffix(".yaml"))
    except InputError:
        return None
    target = given.get("target") if isinstance(given, dict) else None
    device = target.get("device") if isinstance(target, dict) else None
    return device if isinstance(device, str) else None


def find_table(name: str | Path, folders: Sequence[str | Path] = ()) -> LatencyTable:
    """Return the table called ``name`` in one of the folders or among the packaged ones, or at that path.

    Raises
    ------
    InputError
        If there is none (see :func:`locate_table`), or it is damaged.
    """
    return LatencyTable.load(locate_table(name, folders))
