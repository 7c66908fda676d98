"""Two tables held against each other, and several of one target made into one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from math import inf
from typing import Any

import numpy as np

from latency_tables.catalogue import CANARY_STEP, canary_steps, plain, session_date
from latency_tables.table import TRUST, Calibration, LatencyTable, MeasuredNetwork, Row
from latency_tables.target import Target
from latency_tables.validate import FEWEST_RUNS
from search_spaces.arch import Arch
from search_spaces.errors import InputError
from search_spaces.layers import Piece

__all__ = ["Change", "Difference", "Merged", "compare_tables", "merge_tables", "target_differences"]


@dataclass(frozen=True, slots=True)
class Change:
    """A layer of both tables that is not the same in them.

    Attributes
    ----------
    layer
        The layer.
    first, second
        Its rows.
    """

    layer: Piece
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
    """

    target: Mapping[str, tuple[Any, Any]]
    metadata: Mapping[str, tuple[Any, Any]]
    only_first: tuple[Piece, ...]
    only_second: tuple[Piece, ...]
    common: int
    changes: tuple[Change, ...]
    ratios: tuple[float, float, float] | None

    @property
    def same(self) -> bool:
        """Whether both tables say the same in every respect."""
        return not (self.target or self.metadata or self.only_first or self.only_second or self.changes)

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

        names = ("p10", "median", "p90")
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
            "ratio": None if self.ratios is None else dict(zip(names, self.ratios, strict=True)),
            "changes": [
                {
                    "key": change.layer.key,
                    "ratio": change.ratio,
                    "beyond_intervals": change.beyond,
                    "first": asdict(change.first),
                    "second": asdict(change.second),
                }
                for change in self.changes
            ],
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
    both = [layer for layer in first.rows if layer in second.rows]
    pairs = [Change(layer, first.rows[layer], second.rows[layer]) for layer in both]
    changes = [each for each in pairs if each.first != each.second]
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
    if list(map(_text, first.sessions)) != list(map(_text, second.sessions)):
        metadata |= _session_differences(first.sessions, second.sessions)
    ratios = None
    if pairs:
        low, middle, high = np.percentile([each.ratio for each in pairs], (10, 50, 90)).tolist()
        ratios = (low, middle, high)
    return Difference(
        target=target_differences(first.target, second.target),
        metadata=metadata,
        only_first=tuple(layer for layer in first.rows if layer not in second.rows),
        only_second=tuple(layer for layer in second.rows if layer not in first.rows),
        common=len(pairs),
        changes=tuple(sorted(changes, key=lambda each: (-max(each.ratio, 1 / each.ratio), each.layer.key))),
        ratios=ratios,
    )


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
        The result; without a calibration.
    taken
        How many of its rows come from each table.
    dropped
        Which of the tables had a calibration.
    doubts
        What speaks against believing the rows together, in one line each.
    """

    table: LatencyTable
    taken: tuple[int, ...]
    dropped: tuple[int, ...]
    doubts: tuple[str, ...]


def merge_tables(tables: Sequence[LatencyTable], names: Sequence[str] = ()) -> Merged:
    """Return one table with every layer that any of the tables has.

    Where several have a layer, the better provenance wins, then ten runs over fewer, then the later table.
    More runs than ten win nothing: in the same time a machine makes more runs the faster it is at the moment,
    so the most runs would be the shortest times. All sessions are kept, oldest first, equal ones once.
    Calibrations are dropped: each was fitted on other rows.

    Parameters
    ----------
    tables
        At least one, all of one target.
    names
        How messages call them; by default their targets' names.

    Raises
    ------
    InputError
        If there is none, or the targets differ: the fields that do and their values.
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
    winners: dict[Piece, tuple[Row, int]] = {}
    for i, table in enumerate(tables):
        for layer, row in table.rows.items():
            if layer not in winners or _worth(row) >= _worth(winners[layer][0]):
                winners[layer] = (row, i)
    networks: dict[tuple[Arch, int], MeasuredNetwork] = {}
    for each in (network for table in tables for network in table.networks):
        known = networks.get((each.arch, each.joints))
        if known is None or _worth(each.row) >= _worth(known.row):
            networks[each.arch, each.joints] = each
    sessions = {_text(session): session for table in tables for session in table.sessions}
    ordered = [sessions[text] for text in sorted(sessions, key=lambda text: (_when(sessions[text]), text))]
    taken = tuple(sum(source == i for _, source in winners.values()) for i in range(len(tables)))
    return Merged(
        table=LatencyTable(
            tables[0].target,
            {layer: row for layer, (row, _) in winners.items()},
            tuple(ordered),
            networks=tuple(networks.values()),
        ),
        taken=taken,
        dropped=tuple(i for i, table in enumerate(tables) if table.calibration is not None),
        doubts=tuple(_doubts(ordered)),
    )


def _worth(row: Row) -> tuple[int, int]:
    return -TRUST.index(row.provenance), min(row.runs, FEWEST_RUNS)


def _when(session: Mapping[str, Any]) -> float:
    """Return the seconds from 1970 on, whatever the time zone; without a date a session is the oldest."""
    date = session_date(session)
    if date is None:
        return -inf
    return ((date if date.tzinfo else date.replace(tzinfo=UTC)) - _EPOCH).total_seconds()


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _doubts(sessions: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    versions = sorted({str(plain(each["runtime_version"])) for each in sessions if "runtime_version" in each})
    if len(versions) > 1:
        found.append(f"rows of several runtime versions stand side by side: {', '.join(versions)}")
    for key, step in canary_steps(sessions).items():
        if step > CANARY_STEP:
            found.append(f"the machine was up to {step:.0%} slower in one session than in another ({key})")
    return found
