"""Tables of one target brought to one speed of the machine, where their canaries tell what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from latency_tables.speed import SessionSpeed
from latency_tables.table import LatencyTable, Row, speed_faults

__all__ = ["Brought", "at_one_speed", "known_speed"]

_MOST_APART = 4.0
"""Factor beyond which two speeds are not of one machine, and nothing is brought from one to the other."""

_LEAST_APART = 1e-6
"""What rounding leaves between references that are one."""


@dataclass(frozen=True, slots=True)
class Brought:
    """By what the times of a table were multiplied.

    Attributes
    ----------
    rows, networks
        Of layers and blocks; of whole networks, which may follow the canaries otherwise.
    """

    rows: float
    networks: float


def known_speed(table: LatencyTable) -> tuple[float, ...] | None:
    """Return what the canaries take at the speed that all times of a table are at; None where it is not told.

    That is so only if every session that measured tells it, and the same one.
    """
    told = _told(table)
    return None if told is None else told.reference


def at_one_speed(
    tables: Sequence[LatencyTable], order: Sequence[int]
) -> tuple[list[LatencyTable], dict[int, Brought]]:
    """Return the tables, those that can be brought to the speed of the first one that tells its own.

    A time t becomes ``t * exp(sum_k e_k * log(first_k / own_k))`` with what the canaries took, and the
    exponents e that the table's own session has learnt (:mod:`latency_tables.speed`). Its sessions say so
    (``canaries_ms``, as of now; ``measured_at_ms``, as before).

    Parameters
    ----------
    tables
        Tables of one target.
    order
        Indices of those to be brought together, the first one first; the others are returned as they are.

    Returns
    -------
    tables
        As many, in their order.
    brought
        By index, what was brought to another speed.
    """
    found, brought = list(tables), dict[int, Brought]()
    known = {i: told for i in order if (told := _told(tables[i])) is not None}
    first = next(iter(known.values()), None)
    for i, own in known.items():
        if first is None or own.canaries != first.canaries or _same(own.reference, first.reference):
            continue
        by = Brought(own.pieces.factor(first.reference), own.networks.factor(first.reference))
        if max(abs(math.log(by.rows)), abs(math.log(by.networks))) > math.log(_MOST_APART):
            continue
        found[i] = _at(tables[i], by, first.reference)
        brought[i] = by
    return found, brought


def _at(table: LatencyTable, by: Brought, reference: Sequence[float]) -> LatencyTable:
    return replace(
        table,
        rows={piece: _times(row, by.rows) for piece, row in table.rows.items()},
        networks=tuple(replace(each, row=_times(each.row, by.networks)) for each in table.networks),
        sessions=tuple(_saying(session, reference) for session in table.sessions),
    )


def _times(row: Row, factor: float) -> Row:
    """Return a measured row with its times multiplied, to seven digits; an estimate as it is."""
    if not row.runs:
        return row
    median, p10, p90 = (float(f"{factor * value:.7g}") for value in (row.median_ms, row.p10_ms, row.p90_ms))
    return replace(row, median_ms=median, p10_ms=p10, p90_ms=p90)


def _saying(session: Mapping[str, Any], reference: Sequence[float]) -> Mapping[str, Any]:
    if "merged" in session:
        return session
    speed = session["speed"]
    before = speed.get("measured_at_ms", speed["canaries_ms"])
    return {**session, "speed": {**speed, "canaries_ms": list(reference), "measured_at_ms": before}}


def _told(table: LatencyTable) -> SessionSpeed | None:
    sessions = [session for session in table.sessions if "merged" not in session]
    if any("speed" not in each or any(speed_faults(each)) for each in sessions):
        return None
    speeds = [speed for session in sessions if (speed := SessionSpeed.of(session)) is not None]
    if not speeds:
        return None
    first = speeds[0]
    if any(each.canaries != first.canaries or not _same(each.reference, first.reference) for each in speeds):
        return None
    pieces, networks = (
        speeds[max(range(len(speeds)), key=lambda i: _count(sessions[i], what))]
        for what in ("layers", "networks")
    )
    return replace(first, pieces=pieces.pieces, networks=networks.networks)


def _count(session: Mapping[str, Any], what: str) -> int:
    """Return how much a session says to have measured: exponents are learnt best where that is most."""
    count = session.get(what)
    return count if isinstance(count, int) else 0


def _same(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=_LEAST_APART) for a, b in zip(one, other, strict=True))
