"""Differences between tables, and tables merged: the algebra holds, and nothing that is known is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables import (
    Calibration,
    LatencyTable,
    MeasuredNetwork,
    Provenance,
    Row,
    Target,
    calibrate,
    fill_table,
    select_pieces,
)
from latency_tables.catalogue import catalogue, describe, kind_name
from latency_tables.common_speed import known_speed
from latency_tables.compare import compare_tables, merge_tables
from latency_tables.predictor import is_fitted
from latency_tables.table import TRUST
from search_spaces import Arch, InputError, Layer, Piece, layers_of, litepose_native

PI = Target("pi", "Cortex-A72", "ncnn", "fp32", 4)
CALIBRATION = Calibration(0.5, 1.1, 12, 0.02, 0.05, 0.2, 0.04, 0.9)
LAYERS = tuple(Layer("conv", 8 * (i + 1), 16, 1, 1, 1, 8, 8) for i in range(6))


def row(ms: float = 1.0, runs: int = 20, provenance: Provenance = "measured-here", **changes: Any) -> Row:
    times = {"median_ms": ms, "p10_ms": 0.9 * ms, "p90_ms": 1.2 * ms}
    return Row(**{**times, "runs": runs, "provenance": provenance, "source": "x", **changes})


def session(day: int, **more: Any) -> dict[str, Any]:
    return {"date": f"2026-01-{day:02}T00:00:00+00:00", "runtime_version": "1.0", **more}


# -- differences -----------------------------------------------------------------------------------------


def test_a_table_is_the_same_as_itself() -> None:
    table = LatencyTable(PI, {LAYERS[0]: row()}, (session(1),), CALIBRATION)
    found = compare_tables(table, table)
    assert found.same and found.comparable
    assert (found.common, found.ratios) == (1, (1.0, 1.0, 1.0))


def test_rows_are_told_apart_by_their_intervals() -> None:
    first = LatencyTable(
        PI, {LAYERS[0]: row(1.0), LAYERS[1]: row(1.0), LAYERS[2]: row(1.0), LAYERS[3]: row()}
    )
    second = LatencyTable(
        PI, {LAYERS[0]: row(1.05), LAYERS[1]: row(2.0), LAYERS[2]: row(0.25), LAYERS[4]: row(7.0)}
    )
    found = compare_tables(first, second)
    assert not found.same and found.comparable
    assert found.only_first == (LAYERS[3],) and found.only_second == (LAYERS[4],)
    assert found.common == 3
    assert [change.key for change in found.changes] == [LAYERS[2].key, LAYERS[1].key, LAYERS[0].key]
    assert [change.key for change in found.beyond] == [LAYERS[2].key, LAYERS[1].key]
    assert found.ratios == pytest.approx(np.percentile([1.05, 2.0, 0.25], (10, 50, 90)))
    back = compare_tables(second, first)
    assert [change.key for change in back.beyond] == [LAYERS[2].key, LAYERS[1].key]
    assert back.changes[0].ratio == pytest.approx(4.0)
    assert json.loads(json.dumps(found.to_dict()))["beyond_intervals"] == 2


def test_one_median_within_the_other_interval_is_enough() -> None:
    wide = row(1.0, p90_ms=3.0)
    assert not compare_tables(
        LatencyTable(PI, {LAYERS[0]: wide}), LatencyTable(PI, {LAYERS[0]: row(2.9)})
    ).beyond


def test_other_targets_are_compared_and_it_says_so() -> None:
    other = replace(PI, threads=1, runtime="onnxruntime")
    found = compare_tables(LatencyTable(PI, {LAYERS[0]: row()}), LatencyTable(other, {LAYERS[1]: row()}))
    assert not found.comparable and not found.same
    assert found.target == {"threads": (4, 1), "runtime": ("ncnn", "onnxruntime")}
    assert (found.common, found.ratios) == (0, None)


def test_metadata_is_compared() -> None:
    rows = {LAYERS[0]: row()}
    first = LatencyTable(PI, rows, (session(1, canary_ms=float("nan")),), CALIBRATION)
    cases: dict[str, LatencyTable] = {
        "sessions[0].runtime_version": replace(
            first, sessions=({**first.sessions[0], "runtime_version": "2.0"},)
        ),
        "sessions": replace(first, sessions=()),
        "calibration.b": replace(first, calibration=replace(CALIBRATION, b=2.0)),
        "calibration": replace(first, calibration=None),
    }
    for name, second in cases.items():
        found = compare_tables(first, second)
        assert set(found.metadata) == {name} and not found.same, name
        json.dumps(found.to_dict(), allow_nan=False)


# -- merging -----------------------------------------------------------------------------------------------


rows = st.builds(
    lambda ms, runs, provenance, wide: row(ms, runs, provenance, p90_ms=wide * ms),
    st.floats(0.1, 10),
    st.sampled_from((1, 2, 10, 99)),
    st.sampled_from(TRUST),
    st.sampled_from((1.1, 1.3, 4.0)),
)
tables = st.builds(
    lambda found, days, drifted: LatencyTable(
        PI, found, tuple(session(day, drifted=drifted) for day in days)
    ),
    st.dictionaries(st.sampled_from(LAYERS), rows, min_size=1),
    st.lists(st.integers(1, 5), unique=True, min_size=1, max_size=3).map(sorted),
    st.booleans(),
)


def worth(of: Row, table: LatencyTable) -> tuple[object, ...]:
    drifted = any(each["drifted"] for each in table.sessions)
    return -TRUST.index(of.provenance), not drifted, of.runs >= 10, of.p90_ms <= 2 * of.p10_ms


@settings(max_examples=60, deadline=None)
@given(st.lists(tables, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_algebra_of_merging(found: list[LatencyTable], random: Any) -> None:
    done = merge_tables(found)
    merged = done.table
    assert merged.rows.keys() == set().union(*(table.rows for table in found))
    assert sorted(done.ranks) == list(range(len(found))) and sum(done.taken) == len(merged)
    for layer, kept in merged.rows.items():
        offered = [(i, table) for i, table in enumerate(found) if layer in table.rows]
        most = max(worth(table.rows[layer], table) for _, table in offered)
        best = [i for i, table in offered if worth(table.rows[layer], table) == most]
        assert kept == found[min(best, key=done.ranks.__getitem__)].rows[layer], "of equals, by rank"
    assert {each["date"] for each in merged.sessions} == {
        each["date"] for i, table in enumerate(found) if done.taken[i] for each in table.sessions
    }
    assert merge_tables([merged, merged]).table == merged
    # Whatever the order in which the tables are named, unless two are as exact.
    shuffled = list(found)
    random.shuffle(shuffled)
    other = merge_tables(shuffled)
    for layer, kept in merged.rows.items():
        offers = [table for table in found if layer in table.rows]
        most = max(worth(table.rows[layer], table) for table in offers)
        equals = {table.rows[layer] for table in offers if worth(table.rows[layer], table) == most}
        assert other.table.rows[layer] in equals
        if len(equals) == 1:
            assert other.table.rows[layer] == kept


def test_sessions_are_in_order_whatever_their_time_zones() -> None:
    dates = (
        *("no date", "2026-01-31", "2026-01-31T09:00:00+09:00", "2026-01-31T02:00:00+00:00"),
        *("2026-01-31T03:00:00.5+00:00", "2026-01-30T23:00:00-05:00"),
    )
    every = reversed([*zip(LAYERS, dates, strict=True)])
    merged = merge_tables([LatencyTable(PI, {x: row()}, ({"date": date},)) for x, date in every]).table
    assert [each["date"] for each in merged.sessions] == list(dates)


def test_where_rows_come_from_is_counted() -> None:
    first = LatencyTable(PI, {LAYERS[0]: row(1.0, 50), LAYERS[1]: row(1.0)}, calibration=CALIBRATION)
    second = LatencyTable(PI, {LAYERS[0]: row(2.0, 5), LAYERS[1]: row(2.0), LAYERS[2]: row(2.0)})
    found = merge_tables([first, second])
    assert [found.table.rows[layer].median_ms for layer in LAYERS[:3]] == [1.0, 1.0, 2.0]
    assert (found.taken, found.dropped, found.table.calibration) == ((2, 1), (0,), None)
    assert found.ranks == (0, 1), "fifty runs of one layer are more exact than five"
    assert found.uncalibrated == "0 whole networks are too few, it takes 5"


def test_the_faster_of_two_measurements_does_not_win_by_its_runs() -> None:
    """In the same time a faster machine makes more runs: that would make every merged table too fast."""
    fast = LatencyTable(PI, {layer: row(1.0, 120) for layer in LAYERS})
    slow = LatencyTable(PI, {layer: row(1.5, 80) for layer in LAYERS})
    assert merge_tables([fast, slow]).taken == (0, len(LAYERS))
    assert merge_tables([slow, fast]).taken == (0, len(LAYERS))
    few = LatencyTable(PI, {layer: row(1.0, 9) for layer in LAYERS})
    assert merge_tables([slow, few]).taken == (len(LAYERS), 0)


@pytest.mark.parametrize(
    "worse",
    [
        {"rows": {"runs": 9}},
        {"rows": {"p10_ms": 0.5, "p90_ms": 1.5}},  # beyond twice
        {"rows": {"p10_ms": 0.8, "p90_ms": 1.4}},  # merely wider
        {"rows": {"runs": 12}},  # fewer rounds: in as good a time, less of it
        {"session": {"drifted": True, "drift": 0.4}},
        {"rows": {"provenance": "measured-by-others"}},
    ],
)
def test_a_worse_session_does_not_win_by_being_named_last(worse: dict[str, dict[str, Any]]) -> None:
    good = LatencyTable(PI, {layer: row(1.0) for layer in LAYERS[:5]}, (session(1),))
    bad = LatencyTable(
        PI,
        {layer: row(1.02, **worse.get("rows", {})) for layer in LAYERS},
        (session(2, **worse.get("session", {})),),
    )
    for tables_, taken in (([good, bad], (5, 1)), ([bad, good], (1, 5))):
        found = merge_tables(tables_)
        assert found.taken == taken, "what only the worse one has is taken from it"
        assert found.doubts == ()


def test_one_wild_row_does_not_cost_a_table_its_others() -> None:
    """Rows come from one session as far as they can, and a row that is worth nothing from the other."""
    exact = {layer: row(1.0) for layer in LAYERS}
    wild = {**exact, LAYERS[2]: row(9.0, p10_ms=1.0, p90_ms=20.0)}
    wider = {layer: row(1.0, p90_ms=1.4) for layer in LAYERS}
    found = merge_tables([LatencyTable(PI, wild), LatencyTable(PI, wider)])
    assert (found.ranks, found.taken) == ((0, 1), (5, 1))
    assert found.table.rows[LAYERS[2]] == wider[LAYERS[2]]


def test_tables_that_differ_throughout_raise_doubt() -> None:
    own = Layer("conv", 80, 80, 1, 1, 1, 8, 8)
    first = LatencyTable(PI, {own: row(), **{layer: row(1.0) for layer in LAYERS}})
    other = replace(own, c_in=88)
    for factor, doubtful in ((1.04, False), (1.08, True), (0.9, True)):
        second = LatencyTable(PI, {layer: row(factor) for layer in (*LAYERS, other)})
        alone = LatencyTable(PI, {layer: row(9.0, p90_ms=18.0) for layer in LAYERS})
        assert merge_tables([alone, first]).doubts == (), "all rows are of one"
        found = merge_tables([first, second], ["a.csv", "b.csv"]).doubts
        assert len(found) == doubtful
        if doubtful:
            assert f"the 6 rows that 'a.csv' and 'b.csv' share take {factor:.2f} times as long" in found[0]
            assert "another speed" in found[0] and "rows of both stand side by side" in found[0]
    # Here and there is not throughout; and neither are a handful of rows, nor estimates.
    mixed = LatencyTable(PI, {layer: row(1.0 if i % 3 else 2.0) for i, layer in enumerate(LAYERS[:5])})
    assert merge_tables([first, mixed]).doubts == ()
    assert merge_tables([first, LatencyTable(PI, {layer: row(2.0) for layer in LAYERS[:4]})]).doubts == ()


# -- fitted rows, whole networks, calibrations -------------------------------------------------------------

SPACE = litepose_native(joints=14, resolutions=(64, 96))
BLOCKS = SPACE.distinct_blocks()
ARCHS = tuple(SPACE.decode(genes) for genes in SPACE.sample_genotypes(np.random.default_rng(3), 24))


def block_ms(piece: Piece) -> float:
    return 0.02 + sum(layer.macs for layer in layers_of(piece)) / 4e6


def part(
    pieces: Sequence[Piece], archs: Sequence[Arch], day: int, speed: float = 1.0, fitted: bool = True
) -> LatencyTable:
    """What a session that measured some of the blocks, and some networks, makes of all blocks."""
    networks = tuple(
        MeasuredNetwork(arch, 14, row(speed * (0.3 + 1.2 * sum(map(block_ms, arch.blocks(14))))))
        for arch in archs
    )
    table = LatencyTable(
        PI,
        {piece: row(speed * block_ms(piece)) for piece in pieces},
        (session(day),),
        networks=networks,
    )
    if fitted:
        table = fill_table(table, BLOCKS)
    return calibrate(table) if len(networks) >= 5 else table


HALVES = (
    select_pieces(dict.fromkeys(BLOCKS, 1.0), 0.4),
    (*select_pieces(dict.fromkeys(BLOCKS, 1.0), 0.3), *BLOCKS[::5]),
)


def test_two_halves_make_a_whole() -> None:
    """Nothing fitted outlives a measurement or a newer fit, and all networks calibrate the result."""
    first, second = part(HALVES[0], ARCHS[:8], 1), part(HALVES[1], ARCHS[6:14], 2)
    assert any(map(is_fitted, first.rows.values())) and any(map(is_fitted, second.rows.values()))
    found = merge_tables([first, second])
    measured = {*HALVES[0], *HALVES[1]}
    assert found.table.rows.keys() == set(BLOCKS)
    for piece, kept in found.table.rows.items():
        assert is_fitted(kept) == (piece not in measured)
        if piece in measured:
            assert kept.median_ms == pytest.approx(block_ms(piece))
        else:
            assert f"{len(measured)} measured pieces" in kept.source
    assert found.refitted == len(BLOCKS) - len(measured) > 0
    assert found.outdated == sum(is_fitted(each) for t in (first, second) for each in t.rows.values())
    assert (found.unfitted, found.uncalibrated, found.dropped) == (0, "", ())
    assert {network.arch for network in found.table.networks} == set(ARCHS[:14])
    assert found.table.calibration is not None and found.table.calibration.networks == 14
    assert found.table == calibrate(replace(found.table, calibration=None)), "on the merged rows"
    assert found.table.calibration.b == pytest.approx(1.2, rel=0.02)
    assert found.doubts == ()


def test_a_machine_at_two_speeds_is_noticed_by_its_networks_where_no_row_is_shared() -> None:
    first = part(BLOCKS[::2], ARCHS[:8], 1, fitted=False)
    assert first.missing(ARCHS[0].blocks(14)) and merge_tables([first]).doubts == ()
    second = part(BLOCKS[1::2], ARCHS[8:16], 2, speed=1.2, fitted=False)
    (doubt,) = merge_tables([first, second], ["slow.csv", "fast.csv"]).doubts
    assert "the whole networks of 'fast.csv' take 1." in doubt and "another speed" in doubt


def test_what_nothing_tells_any_more_is_dropped_and_counted() -> None:
    row_of = {piece: row(block_ms(piece)) for piece in BLOCKS[:3]}
    stale = replace(row(1.0), runs=0, provenance="calibrated-estimate", source="fitted on 99 measured pieces")
    table = LatencyTable(PI, {**row_of, BLOCKS[5]: stale})
    found = merge_tables([table, LatencyTable(PI, row_of)])
    assert (found.unfitted, found.refitted, found.outdated) == (1, 0, 1)
    assert BLOCKS[5] not in found.table
    with pytest.raises(InputError, match="nothing measured to merge: pi-ncnn-fp32-4t hold fitted rows"):
        merge_tables([LatencyTable(PI, {BLOCKS[5]: stale})])


def test_networks_whose_blocks_are_unknown_leave_the_table_uncalibrated() -> None:
    table = part(BLOCKS[:3], (), 1, fitted=False)
    networks = tuple(MeasuredNetwork(arch, 14, row(1.0)) for arch in ARCHS[:6])
    found = merge_tables([replace(table, networks=networks, calibration=CALIBRATION), table])
    assert found.table.calibration is None and found.dropped == (0,)
    assert "lacks" in found.uncalibrated and len(found.table.networks) == 6


def test_the_better_of_two_measurements_of_a_network_is_kept() -> None:
    hasty = MeasuredNetwork(ARCHS[0], 14, row(1.1, 3))
    thorough = MeasuredNetwork(ARCHS[0], 14, row(1.0, 30))
    made = [LatencyTable(PI, {LAYERS[0]: row()}, networks=(each,)) for each in (thorough, hasty)]
    found = merge_tables(made)
    assert (found.table.networks, found.networks_taken) == ((thorough,), (1, 0))


def test_whole_networks_are_compared() -> None:
    first, second = part(BLOCKS, ARCHS[:8], 1), part(BLOCKS, ARCHS[6:12], 1, speed=1.1)
    second = calibrate(replace(second, rows=first.rows))
    found = compare_tables(first, second)
    assert not found.same and found.common == len(BLOCKS) and not found.changes
    whole = found.networks
    assert (len(whole.only_first), len(whole.only_second), whole.common) == (6, 4, 2)
    assert whole.ratios == pytest.approx((1.1, 1.1, 1.1))
    assert found.predicted == pytest.approx((1.1, 1.1, 1.1), rel=1e-3)
    told = json.loads(json.dumps(found.to_dict()))["networks"]
    assert told["only_first"] == [network.name for network in first.networks[:6]]
    assert (told["common"], told["equal"], told["ratio"]["median"]) == (2, 0, pytest.approx(1.1))
    assert compare_tables(first, first).networks.same and compare_tables(first, first).same
    fewer = replace(first, networks=first.networks[1:])
    assert not compare_tables(first, fewer).same, "networks alone tell tables apart"


def test_whole_networks_are_described() -> None:
    table = part(BLOCKS, ARCHS[:8], 1)
    off = table.networks[2]
    table = replace(table, networks=(*table.networks[:2], replace(off, row=row(2 * off.row.median_ms))))
    found = describe(table)["networks"]
    times = sorted(network.row.median_ms for network in table.networks)
    assert (found["count"], found["predictable"]) == (3, 3)
    assert (found["least_ms"], found["median_ms"], found["most_ms"]) == tuple(times)
    assert found["worst"]["name"] == off.name
    assert found["worst"]["measured_ms"] / found["worst"]["predicted_ms"] == pytest.approx(2, rel=0.01)
    assert found["spread"] == pytest.approx(1.2 / 0.9)
    assert describe(LatencyTable(PI, {LAYERS[0]: row()}))["networks"] is None


def test_only_tables_of_one_target_are_merged() -> None:
    table = LatencyTable(PI, {LAYERS[0]: row()})
    other = LatencyTable(replace(PI, threads=2, precision="int8"), {LAYERS[1]: row()})
    with pytest.raises(InputError) as caught:
        merge_tables([table, table, other], ["a.csv", "b.csv", "c.csv"])
    assert str(caught.value) == (
        "tables of different targets are never merged: 'a.csv' and 'c.csv' differ in precision 'fp32' and"
        " 'int8', threads '4' and '2'"
    )
    with pytest.raises(InputError, match="nothing to merge"):
        merge_tables([])


def test_what_speaks_against_rows_side_by_side_is_told() -> None:
    def made(day: int, **more: Any) -> LatencyTable:
        return LatencyTable(PI, {LAYERS[day]: row()}, (session(day, canary="c", **more),))

    assert merge_tables([made(1, canary_ms=0.10), made(2, canary_ms=0.11)]).doubts == ()
    (slower,) = merge_tables([made(1, canary_ms=0.10), made(2, canary_ms=0.15)]).doubts
    assert "up to 50% slower" in slower
    (versions,) = merge_tables([made(1), made(2, runtime_version="2.0")]).doubts
    assert "runtime versions" in versions and "1.0, 2.0" in versions
    (processors,) = merge_tables([made(1, processor="A72"), made(2, processor="A76")]).doubts
    assert "several processors" in processors and "A72, A76" in processors


# -- one speed ---------------------------------------------------------------------------------------------

CANARIES = ("one", "other")


def at_speed(
    day: int,
    layers: Sequence[Piece],
    canaries_ms: tuple[float, float],
    *,
    ms: float = 1.0,
    networks: Sequence[Arch] = (),
    wide: float = 1.2,
    **more: Any,
) -> LatencyTable:
    """A table of a session that tells its speed; the canaries count .5 and .25, in networks .4 and .1."""
    speed = {
        "canaries": list(more.pop("canaries", CANARIES)),
        "canaries_ms": list(canaries_ms),
        "exponents": [0.5, 0.25],
        "network_exponents": [0.4, 0.1],
    }
    return LatencyTable(
        PI,
        {layer: row(ms, p90_ms=wide * ms) for layer in layers},
        (session(day, canary="one", canary_ms=canaries_ms[0], speed=speed, **more),),
        networks=tuple(MeasuredNetwork(arch, 14, row(20 * ms)) for arch in networks),
    )


def test_tables_are_brought_to_the_speed_of_the_first_where_both_tell_it() -> None:
    slower = 1.2**0.5 * 1.1**0.25
    first = at_speed(1, LAYERS, (0.2, 1.0))
    other = Layer("conv", 80, 80, 1, 1, 1, 8, 8)
    networks = ARCHS[:2]
    second = at_speed(2, [*LAYERS, other], (0.24, 1.1), ms=slower, networks=networks, wide=1.5)
    for tables in ([first, second], [second, first]):
        found = merge_tables(tables, ["a", "b"])
        where = tables.index(second)
        assert found.ranks[where] == 1 and found.taken[where] == 1 and found.networks_taken[where] == 2
        assert found.table.rows[other].median_ms == pytest.approx(1.0, rel=1e-6)
        assert found.table.rows[other].p90_ms == pytest.approx(1.5, rel=1e-6)
        for network in found.table.networks:
            assert network.row.median_ms == pytest.approx(20 * slower / (1.2**0.4 * 1.1**0.1), rel=1e-6)
        assert found.brought.keys() == {where}
        assert found.brought[where].rows == pytest.approx(1 / slower)
        assert found.doubts == (), "nothing remains of 13%, and no canary speaks against it"
        # All sessions tell the speed that all times are at: what is profiled later is brought there, too.
        assert known_speed(found.table) == (0.2, 1.0)
        told = [each["speed"] for each in found.table.sessions]
        assert [each["canaries_ms"] for each in told] == [[0.2, 1.0], [0.2, 1.0]]
        assert [each.get("measured_at_ms") for each in told] == [None, [0.24, 1.1]]
        again = merge_tables([found.table, found.table])
        assert (again.table, again.brought) == (found.table, {})
        assert len(merge_tables([found.table, second]).table.sessions) == 2


def test_what_remains_at_one_speed_raises_doubt() -> None:
    own = Layer("conv", 80, 80, 1, 1, 1, 8, 8)
    first = at_speed(1, LAYERS, (0.2, 1.0))
    second = at_speed(2, [*LAYERS, own], (0.24, 1.0), ms=1.08 * 1.2**0.5, wide=1.5)
    (doubt,) = merge_tables([first, second], ["a", "b"]).doubts
    assert "the 6 rows that 'a' and 'b' share take 1.08 times as long" in doubt


def test_tables_stay_as_they_are_where_not_both_tell_a_speed_of_one_machine() -> None:
    own = Layer("conv", 80, 80, 1, 1, 1, 8, 8)
    first = at_speed(1, LAYERS, (0.2, 1.0))
    untold = LatencyTable(PI, {own: row(1.3)}, (session(2),))
    mixed = at_speed(2, [own], (0.24, 1.0), ms=1.3)
    mixed = replace(mixed, sessions=(*untold.sessions, *mixed.sessions))
    two = at_speed(2, [own], (0.24, 1.0), ms=1.3)
    two = replace(two, sessions=(*two.sessions, *at_speed(3, [own], (0.3, 1.0)).sessions))
    others = at_speed(2, [own], (0.24, 1.0), ms=1.3, canaries=("one", "another"))
    far = at_speed(2, [own], (200.0, 1.0), ms=1.3)
    for second in (untold, mixed, two, others, far):
        found = merge_tables([first, second])
        assert found.brought == {} and found.table.rows[own].median_ms == 1.3
        assert len(found.table.sessions) == len(first.sessions) + len(second.sessions)


def test_sessions_of_a_table_that_gives_nothing_are_not_of_the_merged_one() -> None:
    """Neither their speed nor their drift is that of any row."""
    kept = at_speed(2, LAYERS, (0.2, 1.0), drifted=False)
    unused = at_speed(1, LAYERS[:3], (0.5, 2.0), ms=2.0, drifted=True)
    found = merge_tables([unused, kept])
    assert found.taken == (0, len(LAYERS)) and found.table.sessions == kept.sessions
    assert (found.brought, found.doubts) == ({}, ())
    assert found.table.rows == kept.rows
    assert merge_tables([found.table, at_speed(3, LAYERS, (0.2, 1.0), wide=1.3)]).ranks == (0, 1)


# -- what there is -----------------------------------------------------------------------------------------


def test_the_catalogue_names_what_is_damaged_and_what_is_hidden(tmp_path: Path) -> None:
    table = LatencyTable(PI, {LAYERS[0]: row()})
    good = table.save(tmp_path / "a" / f"{PI.name}.csv")
    hidden = table.save(tmp_path / "b" / f"{PI.name}.csv")
    bare = tmp_path / "b" / "bare.csv"
    bare.write_text("key\n")
    widow = table.save(tmp_path / "b" / "widow.csv")
    widow.unlink()
    (tmp_path / "b" / "kitchen.yaml").write_text("device: kitchen\n")
    (tmp_path / "b" / "torn.yaml").write_text("{")
    found = {entry.path: entry for entry in catalogue([tmp_path / "none", tmp_path / "a", tmp_path / "b"])}
    mine = {path: entry for path, entry in found.items() if tmp_path in path.parents}
    assert mine.keys() == {good, hidden, bare, widow}
    assert mine[good].table == table and not mine[good].hidden
    assert mine[hidden].hidden
    assert "line 1 lacks the column" in str(mine[bare].problem)
    assert f"'{widow}' does not exist" in str(mine[widow].problem)


def test_a_folder_under_two_names_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LatencyTable(PI, {LAYERS[0]: row()}).save(tmp_path / "tables" / f"{PI.name}.csv")
    monkeypatch.chdir(tmp_path)
    found = [each for each in catalogue([tmp_path / "tables", "tables"]) if each.path.stem == PI.name]
    assert [(each.path, each.hidden) for each in found] == [(tmp_path / "tables" / f"{PI.name}.csv", False)]


def test_a_table_is_described_by_kinds() -> None:
    depthwise = Layer("dwconv", 8, 8, 7, 2, 8, 16, 16)
    table = LatencyTable(PI, {LAYERS[0]: row(1.0), LAYERS[1]: row(2.0), depthwise: row(5.0)}, (session(3),))
    found = describe(table, slowest=2)
    assert found["total_ms"] == 8.0
    assert found["kinds"] == [
        {"kind": "dwconv 7x7 stride 2", "rows": 1, "sum_ms": 5.0, "share": 0.625},
        {"kind": "conv 1x1", "rows": 2, "sum_ms": 3.0, "share": 0.375},
    ]
    assert [each["key"] for each in found["slowest"]] == [depthwise.key, LAYERS[1].key]
    assert kind_name(Layer("deconv", 8, 8, 4, 2, 1, 8, 8)) == "deconv 4x4 stride 2"
