"""What tables there are, sound or damaged, and what is in one, in plain values."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from latency_tables.predictor import LatencyPredictor
from latency_tables.table import (
    LatencyTable,
    MeasuredNetwork,
    Row,
    files_in,
    is_packaged,
    packaged_folder,
)
from search_spaces.errors import InputError, MissingLayerError
from search_spaces.files import read_yaml
from search_spaces.layers import Block, Layer, Piece

__all__ = [
    "CANARY_STEP",
    "Residual",
    "TableEntry",
    "canary_steps",
    "catalogue",
    "describe",
    "network_residuals",
    "plain",
    "session_date",
]

CANARY_STEP = 0.15
"""Step of the canary between sessions that raises doubt; the profiler refuses to add to a table beyond it."""


@dataclass(frozen=True)
class TableEntry:
    """One table that was found.

    Attributes
    ----------
    path
        Its CSV file, which may be missing.
    table
        The table; None where it is damaged.
    problem
        Why it is damaged.
    hidden
        Whether a table of the same name, found before, answers in its place.
    packaged
        Whether it comes with the package.
    """

    path: Path
    table: LatencyTable | None
    problem: str | None
    hidden: bool
    packaged: bool


def catalogue(folders: Sequence[str | Path] = ()) -> list[TableEntry]:
    """Return every table in ``folders`` and among the packaged ones, in the order of looking for them.

    A CSV file without its YAML file is a damaged table, and so is a YAML file that is the half of one.
    """
    found: list[TableEntry] = []
    answering: set[str] = set()
    places: set[Path] = set()
    for folder in (*map(Path, folders), packaged_folder()):
        if folder.resolve() in places:
            continue  # one folder under two names does not hide its own tables
        places.add(folder.resolve())
        lone = (path.with_suffix(".csv") for path in files_in(folder, ".yaml") if _is_half(path))
        for path in sorted({*files_in(folder, ".csv"), *lone}):
            try:
                table, problem = LatencyTable.load(path), None
            except InputError as error:
                table, problem = None, str(error)
            found.append(TableEntry(path, table, problem, path.stem in answering, is_packaged(path)))
            if path.with_suffix(".yaml").is_file() and (path.is_file() or table is not None):
                answering.add(path.stem)  # as available_tables has it, damaged or not
    return found


def _is_half(path: Path) -> bool:
    """Return whether a YAML file is a table's that lost its CSV file, and not a target's or a recipe."""
    if path.with_suffix(".csv").exists():
        return False
    try:
        given = read_yaml(path)
    except InputError:
        return False
    return isinstance(given, dict) and {"format", "target", "sessions"} <= given.keys()


def describe(table: LatencyTable, slowest: int = 10) -> dict[str, Any]:
    """Return what a table holds, in values that JSON can hold.

    Parameters
    ----------
    table
        The table.
    slowest
        How many of the slowest rows are listed.

    Returns
    -------
    dict
        ``name``; ``target``; ``rows``: how many; ``provenance``: rows by provenance; ``sources``: rows by
        source; ``total_ms``: sum of all medians; ``kinds``: rows, sum and share of it for each kind of layer,
        most expensive first (the share in the table, where each layer stands once: no network's);
        ``slowest``: rows; ``networks``: whole networks, None without any: how many (``count``), the range of
        their times, their ``spread`` p90 / p10 (median and worst), how many of them the table can predict,
        and the one that it predicts ``worst``; ``calibration``; ``roofline``; ``fit``;
        ``sessions``.
    """
    total = math.fsum(row.median_ms for row in table.rows.values())
    kinds: dict[str, list[Row]] = {}
    for layer, row in table.rows.items():
        kinds.setdefault(kind_name(layer), []).append(row)
    sums = {kind: math.fsum(row.median_ms for row in rows) for kind, rows in kinds.items()}
    ranked = sorted(table.rows.items(), key=lambda item: -item[1].median_ms)
    sources = Counter(row.source for row in table.rows.values())
    return {
        "name": table.name,
        "target": table.target.to_dict(),
        "rows": len(table),
        "provenance": dict(table.provenances),
        "sources": dict(sources.most_common()),
        "total_ms": total,
        "kinds": [
            {"kind": kind, "rows": len(kinds[kind]), "sum_ms": ms, "share": ms / total}
            for kind, ms in sorted(sums.items(), key=lambda item: -item[1])
        ],
        "slowest": [{"key": layer.key, **asdict(row)} for layer, row in ranked[:slowest]],
        "networks": _networks(table),
        "calibration": None if table.calibration is None else asdict(table.calibration),
        "roofline": None if table.roofline is None else table.roofline.to_dict(),
        "fit": None if table.fit is None else table.fit.to_dict(),
        "sessions": [plain(session) for session in table.sessions],
    }


@dataclass(frozen=True, slots=True)
class Residual:
    """A whole network's time as measured and as its own table predicts it, milliseconds."""

    measured_ms: float
    predicted_ms: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured_ms / self.predicted_ms


def network_residuals(
    table: LatencyTable, networks: Iterable[MeasuredNetwork] | None = None
) -> dict[str, Residual]:
    """Return of each network's name what was measured and what the table predicts.

    Parameters
    ----------
    table
        The table.
    networks
        By default its own; the fit has seen those, so new networks are off by more. What it cannot predict is
        left out.
    """
    predictor = LatencyPredictor(table)
    found = {}
    for network in table.networks if networks is None else networks:
        try:
            predicted = predictor.predict(network.blocks).ms
        except MissingLayerError:
            continue
        found[network.name] = Residual(network.row.median_ms, predicted)
    return found


def _networks(table: LatencyTable) -> dict[str, Any] | None:
    """Return what the whole networks of a table tell of it; None where it has none."""
    if not table.networks:
        return None
    times = sorted(network.row.median_ms for network in table.networks)
    spreads = sorted(network.row.p90_ms / network.row.p10_ms for network in table.networks)
    residuals = network_residuals(table)
    worst = max(residuals, key=lambda name: abs(math.log(residuals[name].ratio)), default=None)
    told = None
    if worst is not None:
        of = residuals[worst]
        told = {"name": worst, "measured_ms": of.measured_ms, "predicted_ms": of.predicted_ms}
    return {
        "count": len(times),
        "least_ms": times[0],
        "median_ms": statistics.median(times),
        "most_ms": times[-1],
        "spread": statistics.median(spreads),
        "worst_spread": spreads[-1],
        "predictable": len(residuals),
        "worst": told,
    }


def kind_name(piece: Piece) -> str:
    """Return the kind of a layer as people call it, e.g. ``dwconv 7x7 stride 2``; or those of a block."""
    if isinstance(piece, Block):
        return " | ".join(" > ".join(map(_layer_kind, chain)) for chain in piece.chains)
    return _layer_kind(piece)


def _layer_kind(layer: Layer) -> str:
    if layer.kind == "se":
        return "se"
    stride = f" stride {layer.stride}" if layer.stride > 1 else ""
    return f"{layer.kind} {layer.kernel}x{layer.kernel}{stride}"


def session_date(session: Mapping[str, Any]) -> datetime | None:
    """Return when a session was, with its time zone where it tells one; None where it tells no date."""
    given = session.get("date")
    if isinstance(given, datetime):
        return given
    if isinstance(given, date):
        return datetime(given.year, given.month, given.day)
    try:
        return datetime.fromisoformat(given) if isinstance(given, str) else None
    except ValueError:
        return None


def canary_steps(sessions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return for each canary layer how much longer it took in the slowest session than in the fastest."""
    canaries: dict[str, list[float]] = {}
    for each in sessions:
        ms = each.get("canary_ms")
        if isinstance(ms, float) and 0 < ms < 1e9:
            canaries.setdefault(str(plain(each.get("canary"))), []).append(ms)
    return {key: max(times) / min(times) - 1 for key, times in canaries.items()}


def plain(value: object) -> Any:
    """Return a value of YAML as JSON can hold it: dates, bytes, sets and what is not finite as text."""
    if isinstance(value, dict):
        return {
            key if isinstance(key, str) else str(plain(key)): plain(inner) for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, set):
        return sorted(map(str, map(plain, value)))
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def latest(sessions: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the date (without the time) of the latest session that tells one."""
    dates = list(_days(sessions))
    return max(dates, default=None)


def _days(sessions: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for session in sessions:
        if (when := session_date(session)) is not None:
            yield when.date().isoformat()
