"""Two tables held against each other, and several of one target made into one."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

import numpy as np

from latency_tables.catalogue import CANARY_STEP, canary_steps, network_residuals, plain, session_date
from latency_tables.common_speed import Brought, at_one_speed, known_speed
from latency_tables.predictor import FEWEST_NETWORKS, LatencyPredictor, calibrate, fill_table, is_fitted
from latency_tables.table import TRUST, Calibration, LatencyTable, Row
from latency_tables.target import Target
from latency_tables.validate import FEWEST_RUNS, WIDEST_INTERVAL
from search_spaces.errors import InputError, MissingLayerError
from search_spaces.layers import Piece

__all__ = [
    "Change",
    "Difference",
    "Merged",
    "NetworkDifference",
    "compare_tables",
    "merge_tables",
    "target_differences",
]

Ratios = tuple[float, float, float]
"""10th percentile, median and 90th percentile."""

Key = TypeVar("Key", Piece, str)

SYSTEMATIC = 0.05
"""Share by which what two tables have in common may differ in the median before merging them raises doubt."""

_FEWEST_COMMON = 5


@dataclass(frozen=True, slots=True)
class Change:
    """A layer, a block or a whole network of both tables.

    Attributes
    ----------
    key
        What it is called: the key of a layer or block, or a network's id and joints.
    first, second
        Its rows.
    """

    key: str
    first: Row
    second: Row

    @property
    def ratio(self) -> float:
        """The second's median over the first's."""
        return self.second.median_ms / self.first.median_ms

    @property
    def beyond(self) -> bool:
        """Whether neither median lies in the other's interval from ``p10_ms`` to ``p90_ms``."""
        one, other = self.first, self.second
        return not (
            other.p10_ms <= one.median_ms <= other.p90_ms or one.p10_ms <= other.median_ms <= one.p90_ms
        )


@dataclass(frozen=True)
class NetworkDifference:
    """What tells the whole networks of two tables apart; fields as in :class:`Difference`."""

    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    common: int
    changes: tuple[Change, ...]
    ratios: Ratios | None

    @property
    def same(self) -> bool:
        """Whether both have the same networks with the same times."""
        return not (self.only_first or self.only_second or self.changes)

    @property
    def beyond(self) -> tuple[Change, ...]:
        """The changes beyond the rows' intervals."""
        return tuple(change for change in self.changes if change.beyond)


@dataclass(frozen=True)
class Difference:
    """What tells two tables apart.

    Attributes
    ----------
    target
        ``field: (first's, second's)`` where the targets differ: then no times are comparable.
    metadata
        The same for whether and how the tables were measured and calibrated.
    only_first, only_second
        Layers of one table alone.
    common
        How many layers both have.
    changes
        Those of them whose rows are not equal, by the largest ratio (either way) first.
    ratios
        10th percentile, median and 90th percentile of the second's median over the first's, of all common
        layers; None where there is none.
    networks
        The same for whole networks.
    predicted
        The same percentiles of the milliseconds that the second table predicts over the first's, of the
        networks of either that both can predict: what all differences come to. None where there is none.
    """

    target: Mapping[str, tuple[Any, Any]]
    metadata: Mapping[str, tuple[Any, Any]]
    only_first: tuple[Piece, ...]
    only_second: tuple[Piece, ...]
    common: int
    changes: tuple[Change, ...]
    ratios: Ratios | None
    networks: NetworkDifference
    predicted: Ratios | None

    @property
    def same(self) -> bool:
        """Whether both tables say the same in every respect."""
        rows = self.only_first or self.only_second or self.changes
        return self.networks.same and not (self.target or self.metadata or rows)

    @property
    def comparable(self) -> bool:
        """Whether the times are of one and the same target."""
        return not self.target

    @property
    def beyond(self) -> tuple[Change, ...]:
        """The changes beyond the rows' intervals."""
        return tuple(change for change in self.changes if change.beyond)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it in values that JSON can hold."""

        def pairs(of: Mapping[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
            return {name: {"first": plain(a), "second": plain(b)} for name, (a, b) in of.items()}

        networks = self.networks
        return {
            "same": self.same,
            "comparable": self.comparable,
            "target": pairs(self.target),
            "metadata": pairs(self.metadata),
            "only_first": [layer.key for layer in self.only_first],
            "only_second": [layer.key for layer in self.only_second],
            "common": self.common,
            "equal": self.common - len(self.changes),
            "beyond_intervals": len(self.beyond),
            "ratio": _named(self.ratios),
            "changes": list(map(_change, self.changes)),
            "networks": {
                "only_first": list(networks.only_first),
                "only_second": list(networks.only_second),
                "common": networks.common,
                "equal": networks.common - len(networks.changes),
                "beyond_intervals": len(networks.beyond),
                "ratio": _named(networks.ratios),
                "changes": list(map(_change, networks.changes)),
            },
            "predicted_ratio": _named(self.predicted),
        }


def _named(ratios: Ratios | None) -> dict[str, float] | None:
    return None if ratios is None else dict(zip(("p10", "median", "p90"), ratios, strict=True))


def _change(change: Change) -> dict[str, Any]:
    return {
        "key": change.key,
        "ratio": change.ratio,
        "beyond_intervals": change.beyond,
        "first": asdict(change.first),
        "second": asdict(change.second),
    }


def target_differences(first: Target, second: Target) -> dict[str, tuple[Any, Any]]:
    """Return ``field: (first's, second's)`` for every field in which two targets differ."""
    return {
        field.name: (a, b)
        for field in fields(Target)
        if (a := getattr(first, field.name)) != (b := getattr(second, field.name))
    }


def compare_tables(first: LatencyTable, second: LatencyTable) -> Difference:
    """Return what tells two tables apart; tables of different targets are compared too, and it says so."""
    pairs = [Change(x.key, row, second.rows[x]) for x, row in first.rows.items() if x in second.rows]
    metadata: dict[str, tuple[Any, Any]] = {}
    if first.calibration is not None and second.calibration is not None:
        metadata |= {
            f"calibration.{field.name}": (a, b)
            for field in fields(Calibration)
            if (a := getattr(first.calibration, field.name)) != (b := getattr(second.calibration, field.name))
        }
    elif first.calibration != second.calibration:
        one, other = (
            None if table.calibration is None else asdict(table.calibration) for table in (first, second)
        )
        metadata["calibration"] = (one, other)
    if first.roofline != second.roofline:
        one, other = (
            None if table.roofline is None else table.roofline.to_dict() for table in (first, second)
        )
        metadata["roofline"] = (one, other)
    if list(map(_text, first.sessions)) != list(map(_text, second.sessions)):
        metadata |= _session_differences(first.sessions, second.sessions)
    return Difference(
        target=target_differences(first.target, second.target),
        metadata=metadata,
        only_first=tuple(layer for layer in first.rows if layer not in second.rows),
        only_second=tuple(layer for layer in second.rows if layer not in first.rows),
        common=len(pairs),
        changes=_changes(pairs),
        ratios=_ratios([each.ratio for each in pairs]),
        networks=_network_differences(first, second),
        predicted=_predicted(first, second),
    )


def _changes(pairs: Iterable[Change]) -> tuple[Change, ...]:
    """Return the pairs that are not equal, those that differ most first."""
    found = [each for each in pairs if each.first != each.second]
    return tuple(sorted(found, key=lambda each: (-max(each.ratio, 1 / each.ratio), each.key)))


def _ratios(ratios: Sequence[float]) -> Ratios | None:
    if not ratios:
        return None
    low, middle, high = np.percentile(ratios, (10, 50, 90)).tolist()
    return low, middle, high


def _network_differences(first: LatencyTable, second: LatencyTable) -> NetworkDifference:
    one, other = ({network.name: network.row for network in t.networks} for t in (first, second))
    pairs = [Change(name, row, other[name]) for name, row in one.items() if name in other]
    return NetworkDifference(
        only_first=tuple(name for name in one if name not in other),
        only_second=tuple(name for name in other if name not in one),
        common=len(pairs),
        changes=_changes(pairs),
        ratios=_ratios([each.ratio for each in pairs]),
    )


def _predicted(first: LatencyTable, second: LatencyTable) -> Ratios | None:
    """Return by how much the predictions of two tables differ, of the networks measured for either."""
    networks = {network.name: network for table in (first, second) for network in table.networks}
    one, other = (network_residuals(table, networks.values()) for table in (first, second))
    ratios = [other[name].predicted_ms / one[name].predicted_ms for name in one if name in other]
    return _ratios(ratios)


def _session_differences(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[Any, Any]]:
    """Return the differences by session and key, where there are as many; else how many there are."""
    if len(first) != len(second) or not first:
        return {"sessions": (len(first), len(second))}
    found: dict[str, tuple[Any, Any]] = {}
    for i, (one, other) in enumerate(zip(first, second, strict=True)):
        for key in sorted({*map(str, one), *map(str, other)}):
            if _text(one.get(key)) != _text(other.get(key)):
                found[f"sessions[{i}].{key}"] = (one.get(key), other.get(key))
    return found or {"sessions": (len(first), len(second))}


def _text(value: object) -> str:
    """Return a text that equal values of YAML share, whatever their order of keys."""
    return json.dumps(plain(value), sort_keys=True)


# -- merging -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Merged:
    """Several tables made into one.

    Attributes
    ----------
    table
        The result: fitted anew, and calibrated where its whole networks are enough.
    taken, networks_taken
        How many of its measured rows, and of its whole networks, come from each table.
    ranks
        The place of each table among them, 0 for the one whose rows are taken where nothing else decides.
    refitted
        How many rows were fitted anew on what all tables have measured together.
    outdated
        How many fitted rows of the tables were left out: measured by another table, or fitted anew.
    unfitted
        How many of them nothing stands for any more: what is measured does not tell them.
    dropped
        Which of the tables had a calibration that nothing replaces.
    uncalibrated
        Why the result has no calibration; empty where it has one.
    rooflines_dropped
        Which of the tables had a roofline, unless all had the same, which the result then has.
    brought
        By table, what its times were multiplied by to be at the speed of the first.
    doubts
        What speaks against believing the rows together, in one line each.
    """

    table: LatencyTable
    taken: tuple[int, ...]
    networks_taken: tuple[int, ...]
    ranks: tuple[int, ...]
    refitted: int
    outdated: int
    unfitted: int
    dropped: tuple[int, ...]
    uncalibrated: str
    rooflines_dropped: tuple[int, ...]
    brought: Mapping[int, Brought]
    doubts: tuple[str, ...]


def merge_tables(tables: Sequence[LatencyTable], names: Sequence[str] = ()) -> Merged:
    """Return one table with every layer that any of the tables has.

    Where several have a layer or a network, the first of these that tells them apart decides:

    1. the better provenance;
    2. a table none of whose sessions drifted;
    3. ten runs or more, which percentiles need;
    4. a 90th percentile of at most twice the 10th;
    5. the table that has measured more exactly what several have (the median, over those rows, of the spread
       ``ln(p90 / p10)`` over the root of the time spent timing, to two digits): so rows come from one session
       as far as they can, and a hasty session does not win because it was named last;
    6. the table named later.

    More runs alone win nothing: in the same time a machine makes more runs the faster it is at the moment, so
    the most runs would be the shortest times. That is why the time spent counts in 5, runs times median.

    Where tables tell at which speed of the machine their times are, they are brought to one speed, that of
    the first (5) that gives anything (:mod:`latency_tables.common_speed`); else they stay as they are.

    Fitted rows of the tables are left out, and fitted anew on all that is measured. Sessions of the tables
    that give anything are kept, oldest first, equal ones once. With enough whole networks the result is
    calibrated on those; the tables' own calibrations were fitted on other rows. Rooflines are kept only if
    all tables have the same one.

    Parameters
    ----------
    tables
        At least one, all of one target. Rows do not say which session they are from, so merge all tables at
        once: in a merged table, one session that drifted counts against every row.
    names
        How messages call them; by default their targets' names.

    Raises
    ------
    InputError
        If there is none, the targets differ (the fields that do and their values), or nothing is left.
    """
    if not tables:
        raise InputError("there is nothing to merge: no table was given")
    names = names or [table.name for table in tables]
    for name, table in zip(names, tables, strict=True):
        differing = target_differences(tables[0].target, table.target)
        if differing:
            told = ", ".join(f"{what} '{a}' and '{b}'" for what, (a, b) in differing.items())
            raise InputError(
                f"tables of different targets are never merged: '{names[0]}' and '{name}' differ in {told}"
            )
    own = [{x: row for x, row in table.rows.items() if not is_fitted(row)} for table in tables]
    fitted = {x: row for table in tables for x, row in table.rows.items() if is_fitted(row)}
    drifted = [any(each.get("drifted") is True for each in table.sessions) for table in tables]
    ranks = _ranks(tables, own, drifted)

    def worth(i: int, row: Row) -> tuple[int, bool, bool, bool, int]:
        exact = row.p90_ms <= WIDEST_INTERVAL * row.p10_ms
        return (-TRUST.index(row.provenance), not drifted[i], row.runs >= FEWEST_RUNS, exact, -ranks[i])

    rows = _best(own, worth)
    networks = _best([{each.name: each.row for each in table.networks} for table in tables], worth)
    if not rows:
        raise InputError(f"there is nothing measured to merge: {', '.join(names)} hold fitted rows alone")
    given = [sum(source == i for _, source in rows.values()) for i in range(len(tables))]
    networks_given = [sum(source == i for _, source in networks.values()) for i in range(len(tables))]
    used = sorted((i for i in range(len(tables)) if given[i] + networks_given[i]), key=ranks.__getitem__)
    levelled, brought = at_one_speed(tables, used)
    times = [{each.name: each for each in table.networks} for table in levelled]
    sessions = {_text(session): session for i in used for session in levelled[i].sessions}
    ordered = [sessions[text] for text in sorted(sessions, key=lambda text: (_when(sessions[text]), text))]
    roofline = tables[0].roofline if all(t.roofline == tables[0].roofline for t in tables) else None
    table = LatencyTable(
        tables[0].target,
        {layer: levelled[source].rows[layer] for layer, (_, source) in rows.items()},
        tuple(ordered),
        roofline=roofline,
        networks=tuple(times[source][name] for name, (_, source) in networks.items()),
    )
    lacking = [x for x in fitted if table.answers(x) is None]
    table, unfitted = _refitted(table, lacking)
    table, uncalibrated = _calibrated(table)
    return Merged(
        table=table,
        taken=tuple(given),
        networks_taken=tuple(networks_given),
        ranks=tuple(ranks),
        refitted=len(lacking) - unfitted,
        outdated=sum(map(is_fitted, (row for each in tables for row in each.rows.values()))),
        unfitted=unfitted,
        dropped=tuple(i for i, each in enumerate(tables) if uncalibrated and each.calibration is not None),
        uncalibrated=uncalibrated,
        rooflines_dropped=tuple(
            i for i, each in enumerate(tables) if roofline is None and each.roofline is not None
        ),
        brought=brought,
        doubts=(
            *_doubts(ordered, known_speed(table) is not None),
            *_systematic(levelled, used, given, networks_given, names),
            *_biased(table, {name: source for name, (_, source) in networks.items()}, names),
        ),
    )


def _best(
    offered: Sequence[Mapping[Key, Row]], worth: Callable[[int, Row], tuple[Any, ...]]
) -> dict[Key, tuple[Row, int]]:
    """Return of each key the row that is worth most, and which of the tables it is from."""
    found: dict[Key, tuple[Row, int]] = {}
    for i, rows in enumerate(offered):
        for key, row in rows.items():
            if key not in found or worth(i, row) >= worth(found[key][1], found[key][0]):
                found[key] = (row, i)
    return found


def _ranks(
    tables: Sequence[LatencyTable], own: Sequence[Mapping[Piece, Row]], drifted: Sequence[bool]
) -> list[int]:
    """Return each table's place by how exactly it has measured what another table has measured, too."""
    often = Counter(x for rows in own for x, row in rows.items() if row.runs)
    loose = []
    for table, rows in zip(tables, own, strict=True):
        common = [row for x, row in rows.items() if row.runs and often[x] > 1]
        among = common or [row for row in rows.values() if row.runs] or list(table.rows.values())
        # To two digits: what is about as exact is as exact, and then the table named later is first.
        loose.append(float(f"{np.median([_looseness(row) for row in among]):.2g}"))
    order = sorted(range(len(tables)), key=lambda i: (drifted[i], loose[i], -i))
    return [order.index(i) for i in range(len(tables))]


def _looseness(row: Row) -> float:
    """Return what the error of a median grows with: the spread over the root of the time spent."""
    return math.log(row.p90_ms / row.p10_ms) / math.sqrt(max(row.runs, 1) * row.median_ms)


def _refitted(table: LatencyTable, lacking: Sequence[Piece]) -> tuple[LatencyTable, int]:
    """Return the table with rows fitted for what it lacks, and how many of that it knows nothing of."""
    if not lacking:
        return table, 0
    every = (*table.rows, *lacking)
    try:
        return fill_table(table, every), 0
    except MissingLayerError:
        predictor = LatencyPredictor(table, priced=every)
    able = []
    for piece in lacking:
        try:
            predictor.predict([piece])
        except MissingLayerError:
            continue
        able.append(piece)
    return fill_table(table, (*table.rows, *able)), len(lacking) - len(able)


def _calibrated(table: LatencyTable) -> tuple[LatencyTable, str]:
    """Return the table calibrated on its whole networks, or as it is and why."""
    if len(table.networks) < FEWEST_NETWORKS:
        return table, f"{len(table.networks)} whole networks are too few, it takes {FEWEST_NETWORKS}"
    try:
        return calibrate(table), ""
    except MissingLayerError as error:
        return table, str(error)


def _when(session: Mapping[str, Any]) -> float:
    """Return the seconds from 1970 on, whatever the time zone; without a date a session is the oldest."""
    date = session_date(session)
    if date is None:
        return -math.inf
    return ((date if date.tzinfo else date.replace(tzinfo=UTC)) - _EPOCH).total_seconds()


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _doubts(sessions: Sequence[Mapping[str, Any]], one_speed: bool) -> Iterator[str]:
    for key, what in (("runtime_version", "runtime versions"), ("processor", "processors")):
        told = sorted({str(plain(each[key])) for each in sessions if key in each})
        if len(told) > 1:
            yield f"rows of several {what} stand side by side: {', '.join(told)}"
    for key, step in canary_steps(sessions).items():
        if step > CANARY_STEP and not one_speed:
            yield f"the machine was up to {step:.0%} slower in one session than in another ({key})"


def _systematic(
    tables: Sequence[LatencyTable],
    used: Sequence[int],
    given: Sequence[int],
    networks_given: Sequence[int],
    names: Sequence[str],
) -> Iterator[str]:
    """Yield which pairs of the tables used differ in what they have in common as a whole, not here and there.

    What is compared are their times at one speed, where they tell it.
    """
    measured = [
        {x.key: row for x, row in each.rows.items() if row.runs and not is_fitted(row)} for each in tables
    ]
    whole = [{each.name: each.row for each in table.networks} for table in tables]
    for what, every, gave in (("rows", measured, given), ("whole networks", whole, networks_given)):
        for i, j in itertools.combinations(sorted(used), 2):
            ratios = [row.median_ms / every[i][x].median_ms for x, row in every[j].items() if x in every[i]]
            middle = float(np.median(ratios)) if len(ratios) >= _FEWEST_COMMON else 1.0
            if max(middle, 1 / middle) - 1 > SYSTEMATIC:
                side = (
                    f"{what} of both" if gave[i] and gave[j] else "rows of the one and networks of the other"
                )
                yield (
                    f"the {len(ratios)} {what} that '{names[i]}' and '{names[j]}' share take {middle:.2f}"
                    " times as long in the second: the machine was at another speed, or is another one;"
                    f" {side} stand side by side all the same, so keep one of the tables, or measure one anew"
                )


def _biased(table: LatencyTable, sources: Mapping[str, int], names: Sequence[str]) -> Iterator[str]:
    """Yield whose networks the calibration of the merged table gets wrong one way: another speed."""
    if table.calibration is None:
        return
    errors: dict[int, list[float]] = {}
    for name, residual in network_residuals(table).items():
        errors.setdefault(sources[name], []).append(math.log(residual.ratio))
    told = {i: float(np.median(found)) for i, found in errors.items() if len(found) >= _FEWEST_COMMON}
    if len(told) < 2:
        return
    low, high = min(told, key=told.__getitem__), max(told, key=told.__getitem__)
    if math.expm1(told[high] - told[low]) > SYSTEMATIC:
        yield (
            f"against the merged table's predictions, the whole networks of '{names[high]}' take"
            f" {math.exp(told[high] - told[low]):.2f} times as long as those of '{names[low]}': the machine"
            " was at another speed in one of them, and intervals are as wide as both together need"
        )
