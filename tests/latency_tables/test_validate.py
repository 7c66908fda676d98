"""Validation: what it finds, where, and that it finds nothing in what is sound. No file makes it crash."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables import Calibration, LatencyTable, Row, Target
from latency_tables.catalogue import catalogue, describe
from latency_tables.compare import compare_tables
from latency_tables.table import COLUMNS, scan_table
from latency_tables.validate import Finding, validate_table
from search_spaces import InputError, Layer

PI = Target("pi", "Cortex-A72", "ncnn", "fp32", 4)
SESSION = {"date": "2026-01-31T10:00:00+00:00", "command": "nas profile", "runtime_version": "1.0"}
CALIBRATION = Calibration(0.5, 1.1, 12, 0.02, 0.05, 0.2, 0.04, 0.9)
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Hundreds of tables are saved here, and none is to outlast a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


def conv(channels: int, size: int = 16, **changes: Any) -> Layer:
    return replace(Layer("conv", channels, channels, 1, 1, 1, size, size, norm=True), **changes)


def row(ms: float = 1.0, **changes: Any) -> Row:
    times = {"median_ms": ms, "p10_ms": 0.95 * ms, "p90_ms": 1.1 * ms}
    return Row(**{**times, "runs": 20, "provenance": "measured-here", "source": "ncnn 1.0", **changes})


LADDER = {conv(16 * i): row(0.1 * i * i) for i in range(1, 7)}


def saved(folder: Path, rows: dict[Layer, Row], session: dict[str, Any] | None = None) -> Path:
    sessions = (SESSION if session is None else session,)
    return LatencyTable(PI, rows, sessions, CALIBRATION).save(folder / f"{PI.name}.csv")


def check(path: Path, *needed: Layer) -> list[Finding]:
    return validate_table(path, needed, now=NOW)


def edit(path: Path, change: Callable[[str], str]) -> None:
    text = path.read_text()
    changed = change(text)
    assert changed != text
    path.write_text(changed)


def test_nothing_speaks_against_a_sound_table(tmp_path: Path) -> None:
    assert check(saved(tmp_path, LADDER)) == []


# -- rows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "level", "rule", "field", "value"),
    [
        ({"source": " "}, "error", "source", "source", " "),
        ({"runs": 9}, "warning", "few runs", "runs", "9"),
        ({"runs": 1, "provenance": "measured-by-others"}, "warning", "few runs", "runs", "1"),
        ({"p90_ms": 2.5, "p10_ms": 1.2}, "warning", "wide interval", "p90_ms", "2.5"),
    ],
)
def test_weak_rows(
    tmp_path: Path, changes: dict[str, Any], level: str, rule: str, field: str, value: str
) -> None:
    rows = {**LADDER, conv(64): row(1.6, **changes)}
    path = saved(tmp_path, rows)
    (found,) = check(path)
    line = 2 + sorted(layer.key for layer in rows).index(conv(64).key)
    assert (found.level, found.rule, found.file, found.line) == (level, rule, path, line)
    assert (found.field, found.value) == (field, value)
    assert f"line {line}" in found.message and conv(64).key in found.message


def test_estimates_need_no_runs(tmp_path: Path) -> None:
    estimate = {"runs": 0, "provenance": "calibrated-estimate", "source": "a script"}
    assert check(saved(tmp_path, {conv(16): row(0.1, **estimate)})) == []


def test_a_key_is_spelt_as_the_layer_spells_it(tmp_path: Path) -> None:
    layer = conv(64, add=True)
    path = saved(tmp_path, {layer: row()})
    edit(path, lambda text: text.replace("+add+bn", "+bn+add"))
    assert LatencyTable.load(path).rows.keys() == {layer}, "it stays readable"
    (found,) = check(path)
    assert (found.level, found.rule, found.line, found.field) == ("error", "key", 2, "key")
    assert "+bn+add" in found.value and layer.key in found.message


def test_every_fault_is_told_not_only_the_first(tmp_path: Path) -> None:
    path = saved(tmp_path, LADDER)
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace("conv_", "pool_").replace("ncnn", "")
    lines[2] = lines[2].replace(",20,measured-here", ",-3,guessed")
    cells = lines[3].split(",")
    lines[3] = ",".join([cells[0], cells[2], cells[1], *cells[3:]])
    lines.append(lines[4])
    lines.append("a,b")
    path.write_text("\n".join(lines) + "\n")
    edit(
        path.with_suffix(".yaml"),
        lambda text: text.replace("threads: 4", "threads: -1").replace("b: 1.1", ""),
    )
    errors = [found for found in check(path) if found.level == "error"]
    assert [(found.line, found.field, found.rule) for found in errors] == [
        (2, "key", "unreadable"),
        (3, "runs", "unreadable"),
        (4, "p10_ms", "unreadable"),
        (8, "key", "unreadable"),
        (9, "", "unreadable"),
        (None, "target", "unreadable"),
        (None, "calibration", "unreadable"),
    ]
    assert "'-3'" in errors[1].message
    with pytest.raises(InputError) as caught:
        LatencyTable.load(path)
    assert str(caught.value) == errors[0].message


def test_a_row_of_several_lines_is_told_where_it_begins(tmp_path: Path) -> None:
    path = saved(tmp_path, {**LADDER, conv(64): row(1.6, runs=3)})
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace("ncnn 1.0", '"ncnn\n\n1.0"')
    path.write_text("\n".join(lines) + '\n\n"never closed,1,1\n1,1\n')
    broken, unclosed, few = check(path)
    assert (broken.line, broken.field) == (2, "source")
    assert unclosed.line == len(lines) + 4 and "has 1 fields, not 7" in unclosed.message
    number = next(i for i, line in enumerate(lines) if line.startswith(f"{conv(64).key},"))
    assert (few.rule, few.line) == ("few runs", number + 3)


# -- contradictions --------------------------------------------------------------------------------------


def test_the_row_that_contradicts_the_others_is_blamed(tmp_path: Path) -> None:
    slow = {**LADDER, conv(32): row(9.0)}
    (found,) = check(saved(tmp_path, slow))
    assert (found.level, found.rule, found.field, found.value) == (
        "error",
        "contradiction",
        "median_ms",
        "9.0",
    )
    assert conv(32).key in found.message and "more than 4 layers with more work" in found.message
    fast = {**LADDER, conv(96): row(0.15)}
    (found,) = check(saved(tmp_path, fast))
    assert f"({conv(96).key})" in found.message and "less than 4 layers with less work" in found.message


def test_a_table_that_is_wrong_throughout_is_told_in_time(tmp_path: Path) -> None:
    """Of 2,400 rows in which more work takes less time nearly every pair contradicts each other."""
    shapes = itertools.product(range(8, 24, 2), range(1, 21), range(1, 16))
    layers = [conv(16 * a, size, c_out=16 * b) for size, a, b in shapes]
    path = saved(tmp_path, {layer: row(1e4 / layer.macs**0.5) for layer in layers})
    began = time.process_time()
    found = [each for each in check(path) if each.rule == "contradiction"]
    assert len(layers) == 2400 and len(found) > 1500
    assert time.process_time() - began < 8  # with all pairs in sets: 15 to 20 s; now 1 s
    assert f"more than {len(layers)} " not in found[0].message and "layers with more work" in found[0].message


def test_small_contradictions_raise_doubt_alone(tmp_path: Path) -> None:
    (found,) = check(saved(tmp_path, {**LADDER, conv(80): row(3.6 * 1.6)}))
    assert (found.level, found.rule) == ("warning", "contradiction")
    assert "a layer with more work" in found.message
    assert check(saved(tmp_path, {**LADDER, conv(80): row(3.6 * 1.4)})) == []


@pytest.mark.parametrize(
    "other",
    [
        conv(24),  # vectors stay part empty
        conv(32, activation="relu"),
        conv(32, stride=2),
        conv(32, kernel=3),
        conv(32, c_out=128),
        conv(32, h_in=64),
        replace(conv(32), kind="dwconv", groups=32),
    ],
)
def test_only_like_is_compared_with_like(tmp_path: Path, other: Layer) -> None:
    assert check(saved(tmp_path, {conv(64): row(0.5), other: row(3.0)})) == []


def test_overlapping_intervals_and_what_is_below_the_noise_are_no_contradiction(tmp_path: Path) -> None:
    wide = row(9.0, p10_ms=5.0)
    assert check(saved(tmp_path, {conv(16): wide, conv(32): row(4.9, p90_ms=5.1)})) == []
    assert check(saved(tmp_path, {conv(16): row(0.011), conv(32): row(0.002)})) == []


scales = st.lists(st.floats(0.9, 1.1), min_size=6, max_size=6)


@settings(max_examples=20, deadline=None)
@given(scales, st.integers(0, 5), st.sampled_from([0.001, 1000.0]))
def test_one_wild_row_among_many_is_found_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, noise: list[float], which: int, wild: float
) -> None:
    """Times grow with work up to 10% of noise; one is a thousandfold off. Ends can be off on one side."""
    layers = [conv(16 * 2**i) for i in range(6)]
    rows = {layer: row(0.1 * 4**i * noise[i]) for i, layer in enumerate(layers)}
    path = saved(tmp_path_factory.mktemp("tables"), rows)
    assert check(path) == []
    rows[layers[which]] = row(rows[layers[which]].median_ms * wild)
    contradicting = sum(
        (rows[a].median_ms > 4 * rows[b].median_ms) for i, a in enumerate(layers) for b in layers[i + 1 :]
    )
    blamed = [found.message for found in check(saved(path.parent, rows)) if found.rule == "contradiction"]
    if contradicting > 1:
        assert len(blamed) == 1 and f"({layers[which].key})" in blamed[0]
    else:
        assert len(blamed) == (contradicting == 1)


# -- metadata --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "level", "field"),
    [
        ({"date": None}, "error", "sessions[0].date"),
        ({"date": "yesterday"}, "error", "sessions[0].date"),
        ({"date": "2027-01-01"}, "error", "sessions[0].date"),
        ({"runtime_version": None}, "error", "sessions[0].runtime_version"),
        ({"runtime_version": ["1.0"]}, "error", "sessions[0].runtime_version"),
        ({"command": ""}, "warning", "sessions[0].command"),
        ({"drifted": True, "drift": 0.3}, "warning", "sessions[0].drift"),
        (
            {"machine_before": {"mhz": 1800.0}, "machine_after": {"mhz": 600}},
            "warning",
            "sessions[0].machine_after.mhz",
        ),
    ],
)
def test_weak_sessions(tmp_path: Path, changes: dict[str, Any], level: str, field: str) -> None:
    session = {key: value for key, value in {**SESSION, **changes}.items() if value is not None}
    path = saved(tmp_path, LADDER, session)
    (found,) = check(path)
    assert (found.level, found.field, found.file) == (level, field, path.with_suffix(".yaml"))
    assert f"'{found.file}': {field}: " in found.message
    assert check(saved(tmp_path, LADDER, {**session, "merged": []}))[0].field == "sessions"


def test_dates_may_be_written_in_every_way_that_yaml_has(tmp_path: Path) -> None:
    for date in (datetime(2026, 1, 31, 10), datetime(2026, 1, 31).date(), "2026-01-31", "2026-01-31T10:00Z"):
        assert check(saved(tmp_path, LADDER, {**SESSION, "date": date})) == []


def test_measured_rows_need_a_session(tmp_path: Path) -> None:
    path = saved(tmp_path, LADDER)
    LatencyTable(PI, LADDER, (), CALIBRATION).save(path)
    assert [(found.level, found.rule) for found in check(path)] == [("error", "session")]
    cited = {conv(16): row(provenance="measured-by-others", source="a paper")}
    LatencyTable(PI, cited, (), CALIBRATION).save(path)
    assert [(found.level, found.rule) for found in check(path)] == [("warning", "session")]


def test_rows_of_several_versions_raise_doubt(tmp_path: Path) -> None:
    path = saved(tmp_path, LADDER)
    LatencyTable(PI, LADDER, (SESSION, {**SESSION, "runtime_version": "2.0"}), CALIBRATION).save(path)
    (found,) = check(path)
    assert found.rule == "versions" and "1.0, 2.0" in found.message


def test_a_step_of_the_machine_between_sessions_raises_doubt(tmp_path: Path) -> None:
    path = saved(tmp_path, LADDER)
    for ms, told in ((0.11, 0), (0.15, 1)):
        sessions = tuple({**SESSION, "canary": "c", "canary_ms": each} for each in (0.1, ms))
        LatencyTable(PI, LADDER, sessions, CALIBRATION).save(path)
        found = check(path)
        assert [(each.level, each.rule) for each in found] == [("warning", "canary")] * told
    assert "up to 50% slower" in found[0].message


@pytest.mark.parametrize("text", [None, "", "{", "format: 1\nmore: 1\n"])
def test_metadata_that_cannot_be_read_is_not_said_to_lack_anything(tmp_path: Path, text: str | None) -> None:
    path = saved(tmp_path, LADDER)
    beside = path.with_suffix(".yaml")
    beside.unlink() if text is None else beside.write_text(text)
    assert [(found.rule, found.file) for found in check(path)] == [("unreadable", beside)]


@pytest.mark.parametrize(
    ("changes", "level", "field"),
    [
        ({"worst_error": 0.01}, "error", "worst_error"),
        ({"networks": 5, "coverage": 0.8}, "warning", "networks"),
        ({"median_error": 0.2, "worst_error": 0.3}, "warning", "median_error"),
        ({"half_width": 0.5}, "warning", "half_width"),
    ],
)
def test_weak_calibrations(tmp_path: Path, changes: dict[str, Any], level: str, field: str) -> None:
    path = saved(tmp_path, LADDER)
    LatencyTable(PI, LADDER, (SESSION,), replace(CALIBRATION, **changes)).save(path)
    (found,) = check(path)
    assert (found.level, found.field, found.value) == (level, f"calibration.{field}", str(changes[field]))


def test_another_machine_raises_doubt(tmp_path: Path) -> None:
    path = saved(tmp_path, LADDER, {**SESSION, "processor": "Cortex-A76"})
    (found,) = check(path)
    assert (found.level, found.rule, found.field) == ("warning", "machine", "sessions[0].processor")
    assert "is 'Cortex-A76', where the target's is 'Cortex-A72'" in found.message
    assert check(saved(tmp_path, LADDER, {**SESSION, "processor": "4 x  cortex-a72, 1.5 GHz"})) == []
    here = Target("this-machine", "Cortex-A72 elsewhere", "ncnn", "fp32", 1)
    path = LatencyTable(here, LADDER, (SESSION,), CALIBRATION).save(tmp_path / f"{here.name}.csv")
    (found,) = check(path)
    assert (found.level, found.rule, found.field) == ("warning", "machine", "target.device")
    assert "measured on 'Cortex-A72 elsewhere', and here is" in found.message


def test_no_calibration_and_another_name(tmp_path: Path) -> None:
    path = LatencyTable(PI, LADDER, (SESSION,)).save(tmp_path / "mine.csv")
    assert [(found.level, found.rule) for found in check(path)] == [
        ("warning", "calibration"),
        ("warning", "name"),
    ]


def test_layers_that_are_needed(tmp_path: Path) -> None:
    path = saved(tmp_path, LADDER)
    gone = conv(1280, name="stem")
    (found,) = check(path, conv(16), gone, gone)
    assert (found.level, found.rule, found.value) == ("error", "missing", gone.key)


# -- hostile files -----------------------------------------------------------------------------------------


def survives(path: Path) -> None:
    """Whatever the files hold: a clear error or a result, in one line each, as JSON can hold it."""
    found = check(path)
    assert all("\n" not in json.dumps(finding.to_dict(), allow_nan=False) for finding in found)
    broken = [finding for finding in found if finding.rule == "unreadable"]
    listed = [entry for entry in catalogue([path.parent]) if entry.path == path]
    try:
        table = LatencyTable.load(path)
    except InputError as error:
        assert broken and str(error) == broken[0].message
        assert [entry.problem for entry in listed] == [str(error)]
        return
    assert not broken
    assert listed[0].table is not None
    json.dumps(describe(table), allow_nan=False)
    assert compare_tables(table, LatencyTable.load(path)).same
    table.save(path)
    again = LatencyTable.load(path)
    assert again.rows == table.rows and again.target == table.target


@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200), st.booleans())
def test_random_bytes(
    tmp_path_factory: pytest.TempPathFactory, csv: bytes, metadata: bytes, headed: bool
) -> None:
    path = saved(tmp_path_factory.mktemp("tables"), LADDER)
    path.write_bytes((",".join(COLUMNS) + "\n").encode() * headed + csv)
    survives(path)
    saved(path.parent, LADDER)
    path.with_suffix(".yaml").write_bytes(metadata)
    survives(path)


CELLS = st.one_of(
    st.sampled_from(
        [
            *("", "nan", "inf", "-1", "1e-320", "1e308", "1e-9", "1_0", "9" * 5000, "٣", '"', "a\nb", "\0"),
            *("conv_k1_s1_g1_8x8x8_8", "conv_k0_s1_g1_8x8x8_8", f"conv_k{'9' * 5000}_s1_g1_8x8x8_8"),
            *("conv_k999999999_s1_g1_999999999x999999999x999999999_999999999", "measured-here", "\x1b[31m"),
        ]
    ),
    st.text(max_size=8),
)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_edited_and_shuffled_rows(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = saved(tmp_path_factory.mktemp("tables"), LADDER)
    lines = path.read_text().splitlines()
    grid = [line.split(",") for line in lines]
    for _ in range(data.draw(st.integers(0, 3))):
        y = data.draw(st.integers(0, len(grid) - 1))
        x = data.draw(st.integers(0, len(COLUMNS) - 1))
        grid[y][x] = data.draw(CELLS)
    body = data.draw(st.permutations(grid[1:]))
    text = "\n".join(",".join(cells) for cells in [grid[0], *body])
    path.write_text(text, newline=data.draw(st.sampled_from(["\n", "\r\n"])))
    survives(path)


def test_the_order_of_rows_and_columns_says_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, LADDER)
    table = LatencyTable.load(path)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    turned = [lines[0], *lines[:0:-1]]
    path.write_text("".join(",".join(reversed(cells)) + "\r\n" for cells in turned))
    assert LatencyTable.load(path) == table
    assert check(path) == []


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(), st.datetimes()
    )
    | st.sampled_from([10**400, -(10**400), "\ud800", b"bytes", float("nan")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("date", "runtime_version", "command", "drifted", "drift", "machine_before", "canary_ms", "merged")


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
    st.dictionaries(st.sampled_from(("a_ms", "b", "networks", "coverage", "half_width")), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(("threads", "device", "processor")), VALUES, max_size=1),
)
def test_any_metadata(
    tmp_path_factory: pytest.TempPathFactory,
    session: dict[str, Any],
    calibration: dict[str, Any],
    target: dict[str, Any],
) -> None:
    path = saved(tmp_path_factory.mktemp("tables"), LADDER)
    beside = path.with_suffix(".yaml")
    metadata = yaml.safe_load(beside.read_text())
    metadata["sessions"][0] |= session
    metadata["calibration"] |= calibration
    metadata["target"] |= target
    beside.write_text(yaml.safe_dump(metadata))
    survives(path)


@pytest.mark.parametrize(
    "text",
    [
        "format: 1\nsessions: &a [{x: *a}]\n",
        "format: 1\nsessions:\n- a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"  {chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(8)
        ),
    ],
)
def test_endless_metadata_is_refused(tmp_path: Path, text: str) -> None:
    path = saved(tmp_path, LADDER)
    path.with_suffix(".yaml").write_text(text)
    (fault,) = scan_table(path).faults
    assert re.search("contains itself through a YAML alias|its aliases make [0-9]+ values", fault.message)
