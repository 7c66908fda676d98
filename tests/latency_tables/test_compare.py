"""Differences between tables, and tables merged: the algebra holds, and nothing that is known is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables import Calibration, LatencyTable, Provenance, Row, Target
from latency_tables.catalogue import catalogue, describe, kind_name
from latency_tables.compare import compare_tables, merge_tables
from latency_tables.table import TRUST
from search_spaces import InputError, Layer

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
    assert [change.layer for change in found.changes] == [LAYERS[2], LAYERS[1], LAYERS[0]]
    assert [change.layer for change in found.beyond] == [LAYERS[2], LAYERS[1]]
    assert found.ratios == pytest.approx(np.percentile([1.05, 2.0, 0.25], (10, 50, 90)))
    back = compare_tables(second, first)
    assert [change.layer for change in back.beyond] == [LAYERS[2], LAYERS[1]]
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


rows = st.builds(row, st.floats(0.1, 10), st.sampled_from((1, 2, 10, 99)), st.sampled_from(TRUST))
tables = st.builds(
    lambda found, days: LatencyTable(PI, found, tuple(map(session, days))),
    st.dictionaries(st.sampled_from(LAYERS), rows, min_size=1),
    st.lists(st.integers(1, 5), unique=True, max_size=3).map(sorted),
)


def worth(of: Row) -> tuple[int, int]:
    return -TRUST.index(of.provenance), min(of.runs, 10)


@settings(max_examples=40, deadline=None)
@given(st.lists(tables, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_the_algebra_of_merging(found: list[LatencyTable], random: Any) -> None:
    merged = merge_tables(found).table
    assert merged.rows.keys() == set().union(*(table.rows for table in found))
    for layer, kept in merged.rows.items():
        offered = [table.rows[layer] for table in found if layer in table.rows]
        best = [each for each in offered if worth(each) == max(map(worth, offered))]
        assert kept == best[-1], "the later one of equals"
    told = [each["date"] for each in merged.sessions]
    assert told == sorted({each["date"] for table in found for each in table.sessions})
    # Idempotent, also in its own company; associative; commutative where nothing ties.
    assert merge_tables([merged, merged]).table == merged
    assert merge_tables([*found, merged]).table == merged
    assert merge_tables([merge_tables(found[:1]).table, *found[1:]]).table == merged
    assert merge_tables([*found[:1], merge_tables(found[1:] or found).table]).table == merged
    shuffled = list(found)
    random.shuffle(shuffled)
    other = merge_tables(shuffled).table
    assert other.sessions == merged.sessions
    for layer, kept in merged.rows.items():
        assert worth(other.rows[layer]) == worth(kept)
        equals = {table.rows[layer] for table in found if layer in table.rows}
        if sum(worth(each) == worth(kept) for each in equals) == 1:
            assert other.rows[layer] == kept


def test_sessions_are_in_order_whatever_their_time_zones() -> None:
    dates = (
        *("no date", "2026-01-31", "2026-01-31T09:00:00+09:00", "2026-01-31T02:00:00+00:00"),
        *("2026-01-31T03:00:00.5+00:00", "2026-01-30T23:00:00-05:00"),
    )
    rows = {LAYERS[0]: row()}
    merged = merge_tables([LatencyTable(PI, rows, ({"date": date},)) for date in reversed(dates)]).table
    assert [each["date"] for each in merged.sessions] == list(dates)


def test_where_rows_come_from_is_counted() -> None:
    first = LatencyTable(PI, {LAYERS[0]: row(1.0, 50), LAYERS[1]: row(1.0)}, calibration=CALIBRATION)
    second = LatencyTable(PI, {LAYERS[0]: row(2.0, 5), LAYERS[1]: row(2.0), LAYERS[2]: row(2.0)})
    found = merge_tables([first, second])
    assert [found.table.rows[layer].median_ms for layer in LAYERS[:3]] == [1.0, 2.0, 2.0]
    assert (found.taken, found.dropped, found.table.calibration) == ((1, 2), (0,), None)


def test_the_faster_of_two_measurements_does_not_win_by_its_runs() -> None:
    """In the same time a faster machine makes more runs: that would make every merged table too fast."""
    fast = LatencyTable(PI, {layer: row(1.0, 120) for layer in LAYERS})
    slow = LatencyTable(PI, {layer: row(1.5, 80) for layer in LAYERS})
    assert merge_tables([fast, slow]).taken == (0, len(LAYERS))
    assert merge_tables([slow, fast]).taken == (0, len(LAYERS))
    few = LatencyTable(PI, {layer: row(1.0, 9) for layer in LAYERS})
    assert merge_tables([slow, few]).taken == (len(LAYERS), 0)


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
        return LatencyTable(PI, {LAYERS[0]: row()}, (session(day, canary="c", **more),))

    assert merge_tables([made(1, canary_ms=0.10), made(2, canary_ms=0.11)]).doubts == ()
    (slower,) = merge_tables([made(1, canary_ms=0.10), made(2, canary_ms=0.15)]).doubts
    assert "up to 50% slower" in slower
    (versions,) = merge_tables([made(1), made(2, runtime_version="2.0")]).doubts
    assert "1.0, 2.0" in versions


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
