"""Tables: files that survive a round trip, validation that names the culprit, strict sums."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables import (
    Calibration,
    LatencyTable,
    MeasuredNetwork,
    Row,
    Target,
    available_tables,
    find_table,
)
from latency_tables.catalogue import catalogue
from latency_tables.table import COLUMNS, Provenance, weakest
from search_spaces import InputError, Layer, MissingLayerError, RunError, get_arch, litepose_native
from search_spaces.errors import shown

PI = Target("raspberry-pi-4", "Cortex-A72 1.5 GHz", "ncnn", "fp32", 4)
LAYERS = litepose_native(joints=14, resolutions=(256,)).distinct_layers()
CALIBRATION = Calibration(0.5, 1.1, 12, 0.02, 0.05, 0.2, 0.04, 0.9)


def row(ms: float = 1.0, provenance: Provenance = "measured-here", **changes: Any) -> Row:
    return Row(**{
        **{"median_ms": ms, "p10_ms": 0.9 * ms, "p90_ms": 1.2 * ms},
        **{"runs": 20, "provenance": provenance, "source": "ncnn 1.0", **changes},
    })  # fmt: skip


milliseconds = st.floats(1e-6, 1e5, allow_nan=False)


def ordered_row(numbers: tuple[float, ...], runs: int, provenance: Provenance, source: str) -> Row:
    low, middle, high = sorted(numbers)
    return Row(middle, low, high, runs, provenance, source)


rows = st.builds(
    ordered_row,
    st.tuples(milliseconds, milliseconds, milliseconds),
    st.integers(1, 10**6),
    st.sampled_from(("measured-here", "measured-by-others", "calibrated-estimate")),
    st.text(st.characters(exclude_categories=("C", "Z"))),
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(LAYERS), rows, min_size=1, max_size=8), st.booleans())
def test_files_round_trip_exactly(
    tmp_path_factory: pytest.TempPathFactory, found: dict[Layer, Row], calibrated: bool
) -> None:
    path = tmp_path_factory.mktemp("tables") / "pi.csv"
    session = {"date": "2026-01-01T00:00:00+00:00", "canary_ms": 0.25, "canary_by_round": [0.0, 0.01]}
    table = LatencyTable(PI, found, (session,), CALIBRATION if calibrated else None)
    table.save(path)
    assert LatencyTable.load(path) == table
    assert LatencyTable.load(path.with_suffix(".yaml")) == table
    before = path.read_bytes()
    LatencyTable.load(path).save(path)
    assert path.read_bytes() == before


def test_the_csv_is_sorted_whatever_the_order_of_measuring(tmp_path: Path) -> None:
    one, other = LAYERS[:10], LAYERS[9::-1]
    LatencyTable(PI, dict.fromkeys(one, row())).save(tmp_path / "one.csv")
    LatencyTable(PI, dict.fromkeys(other, row())).save(tmp_path / "other.csv")
    text = (tmp_path / "one.csv").read_text()
    assert text == (tmp_path / "other.csv").read_text()
    keys = [line.partition(",")[0] for line in text.splitlines()[1:]]
    assert keys == sorted(keys)
    assert len(keys) == 10


KEY = "conv_k1_s1_g1_16x64x64_96+bn+relu6"
GOOD = f"{KEY},1.0,0.9,1.2,20,measured-here,ncnn 1.0"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([GOOD.replace("1.0,0.9", "fast,0.9")], ["line 2", "median_ms", "'fast'"]),
        ([GOOD.replace("1.0,0.9", "-1.0,-2")], ["line 2", "median_ms", "-1.0"]),
        ([GOOD.replace("1.0,0.9", "nan,0.9")], ["line 2", "median_ms", "nan"]),
        ([GOOD.replace("1.0,0.9", "0,0")], ["line 2", "median_ms", "0"]),
        ([GOOD.replace("1.0,0.9", "1.0,1.1")], ["line 2", "p10_ms <= median_ms", "1.1"]),
        ([GOOD.replace("1.2", "inf")], ["line 2", "p90_ms", "inf"]),
        ([GOOD.replace(",20,", ",many,")], ["line 2", "runs", "'many'"]),
        ([GOOD.replace(",20,", ",0,")], ["line 2", "runs", "0"]),
        ([GOOD.replace("measured-here", "measured")], ["line 2", "provenance", "did you mean"]),
        ([GOOD.replace("conv_k1", "pool_k1")], ["line 2", "pool_k1", "not a layer key"]),
        ([GOOD + ",more"], ["line 2", "8 fields, not 7"]),
        ([GOOD, GOOD], ["line 3", KEY, "twice"]),
        ([], ["no rows"]),
    ],
)
def test_every_row_is_validated(tmp_path: Path, lines: list[str], words: list[str]) -> None:
    path = tmp_path / "pi.csv"
    LatencyTable(PI, {Layer.from_key(KEY): row()}).save(path)
    path.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    with pytest.raises(InputError) as caught:
        LatencyTable.load(path)
    for word in ["pi.csv", *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = tmp_path / "pi.csv"
    path.write_text(",".join(c for c in COLUMNS if c != column) + "\n")
    with pytest.raises(InputError, match=f"line 1 lacks the column '{column}'"):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("format: 1", "format: 7"), ["format", "7"]),
        (("threads: 4", "threads: none"), ["target", "threads", "none"]),
        (("networks: 12", "networks: -1"), ["calibration", "networks", "-1"]),
        (("  b: 1.1\n", ""), ["calibration", "lacks 'b'"]),
        (("b: 1.1", "b: .nan"), ["calibration", "b is a finite number"]),
        (("sessions:", "session:"), ["session", "did you mean 'sessions'"]),
    ],
)
def test_metadata_is_validated(tmp_path: Path, change: tuple[str, str], words: list[str]) -> None:
    path = tmp_path / "pi.csv"
    LatencyTable(PI, {LAYERS[0]: row()}, calibration=CALIBRATION).save(path)
    text = path.with_suffix(".yaml").read_text()
    assert change[0] in text
    path.with_suffix(".yaml").write_text(text.replace(*change))
    with pytest.raises(InputError) as caught:
        LatencyTable.load(path)
    for word in ["pi.yaml", *words]:
        assert word in str(caught.value)


def test_a_table_without_its_metadata_is_refused(tmp_path: Path) -> None:
    path = LatencyTable(PI, {LAYERS[0]: row()}).save(tmp_path / "pi.csv")
    path.with_suffix(".yaml").unlink()
    with pytest.raises(InputError, match=r"pi\.yaml' does not exist"):
        LatencyTable.load(path)


@pytest.mark.parametrize("fails", [1, 2])
def test_a_disk_that_is_full_for_either_file_changes_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    path = LatencyTable(PI, {LAYERS[0]: row()}, calibration=CALIBRATION).save(tmp_path / "pi.csv")
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    calls = iter(range(1, 100))
    sync = os.fsync

    def full(handle: int) -> None:
        if next(calls) == fails:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device; nothing was changed"):
        LatencyTable(PI, {LAYERS[1]: row()}).save(path)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_what_a_kill_while_saving_has_left_is_no_table(tmp_path: Path) -> None:
    path = LatencyTable(PI, {LAYERS[0]: row()}).save(tmp_path / "pi.csv")
    for suffix in (".csv", ".yaml"):
        (tmp_path / f".pi-abcd1234{suffix}").write_bytes(path.with_suffix(suffix).read_bytes())
    (tmp_path / ".half-abcd1234.yaml").write_bytes(path.with_suffix(".yaml").read_bytes())
    found = {name: each for name, each in available_tables([tmp_path]).items() if each.parent == tmp_path}
    assert found == {"pi": path}
    assert [each.path for each in catalogue([tmp_path]) if each.path.parent == tmp_path] == [path]


def test_sums_count_repeated_layers_and_never_missing_ones() -> None:
    table = LatencyTable(PI, {LAYERS[0]: row(1.5), LAYERS[1]: row(0.25)})
    assert table.latency_ms([LAYERS[0], LAYERS[1], LAYERS[0]]) == 3.25
    with pytest.raises(MissingLayerError) as caught:
        table.latency_ms(LAYERS[:10])
    message = str(caught.value)
    for word in (table.name, "lacks 8 of the 10", LAYERS[2].key, LAYERS[2].name, "3 more", "nas profile"):
        assert word in message


def test_provenance_is_that_of_the_weakest_row() -> None:
    table = LatencyTable(
        PI, {LAYERS[0]: row(), LAYERS[1]: row(), LAYERS[2]: row(1.0, "calibrated-estimate", runs=0)}
    )
    assert table.provenances == {"measured-here": 2, "calibrated-estimate": 1}
    assert table.provenance == "calibrated-estimate"
    assert weakest(["measured-by-others", "measured-here"]) == "measured-by-others"


def test_tables_are_found_by_name_in_folders_and_by_path(tmp_path: Path) -> None:
    table = LatencyTable(PI, {LAYERS[0]: row()})
    path = table.save(tmp_path / "mine" / f"{PI.name}.csv")
    (tmp_path / "mine" / "notes.csv").write_text("not a table: no YAML beside it")
    folders = [tmp_path / "absent", tmp_path / "mine"]
    assert available_tables(folders)[PI.name] == path
    assert "notes" not in available_tables(folders)
    assert find_table(PI.name, folders) == table
    assert find_table(path) == table
    with pytest.raises(InputError, match=f"did you mean '{PI.name}'"):
        find_table("raspbery-pi-4-ncnn-fp32-4t", folders)
    with pytest.raises(InputError, match="does not exist"):
        find_table(tmp_path / "absent.csv")


SPEED = {
    "canaries": ["conv_a", "conv_b"],
    "canaries_ms": [0.2, 1],
    "exponents": [0, 1.25],
    "network_exponents": [0.5, 0.25],
}


@pytest.mark.parametrize(
    ("field", "lie"),
    [
        ("", None),
        ("", [0.2, 1.0]),
        ("canaries", ["conv_a"]),
        ("canaries", ["conv_a", " "]),
        ("canaries", "ab"),
        ("canaries_ms", None),
        *(
            ("canaries_ms", [lie, 1.0])
            for lie in ("x", -1.0, 0, float("nan"), float("inf"), 1e300, True, 1e-300)
        ),
        *((what, ["a", "b"]) for what in ("exponents", "network_exponents")),
        *((what, [0.5, 1.26]) for what in ("exponents", "network_exponents")),
        ("exponents", [-0.1, 0.5]),
        ("exponents", [0.5]),
        ("exponents", {0: 0.5, 1: 0.5}),
        ("network_exponents", [float("nan"), False]),
    ],
)
def test_a_lie_about_the_speed_is_a_fault(tmp_path: Path, field: str, lie: object) -> None:
    def saved(speed: object) -> Path:
        sessions = ({"date": "2026-01-01"}, {"date": "2026-01-02", "speed": speed})
        return LatencyTable(PI, {LAYERS[0]: row()}, sessions).save(tmp_path / "pi.csv")

    assert LatencyTable.load(saved(SPEED)).sessions[1]["speed"] == SPEED
    with pytest.raises(InputError) as caught:
        LatencyTable.load(saved({**SPEED, field: lie} if field else lie))
    where = f"sessions[1].speed{'.' if field else ''}{field} is "
    assert f"latency table metadata '{tmp_path / 'pi.yaml'}': {where}" in str(caught.value)
    assert str(caught.value).endswith(f"not {shown(lie)}")


def test_a_calibration_that_promises_what_none_can_is_a_fault(tmp_path: Path) -> None:
    networks = (MeasuredNetwork(get_arch("litepose-xs"), 14, row()),) * 12
    path = tmp_path / "pi.csv"
    table = LatencyTable(PI, {LAYERS[0]: row()}, calibration=CALIBRATION, networks=networks)
    assert LatencyTable.load(table.save(path)) == table
    replace(table, networks=()).save(path)
    assert LatencyTable.load(path).calibration == CALIBRATION, "whose networks nobody has noted"
    replace(table, networks=networks[:11]).save(path)
    with pytest.raises(
        InputError, match=r"pi.yaml': calibration: networks is 12, and the table holds 11: del"
    ):
        LatencyTable.load(path)
    for n, coverage, told in ((5, 1.0, "0.8333 for its 5"), (9, 0.91, "0.9 for its 9"), (12, 1.5, "0.9231")):
        with pytest.raises(InputError, match=rf"coverage is at most n / \(n \+ 1\), {told}.* not {coverage}"):
            replace(CALIBRATION, networks=n, coverage=coverage)
    replace(CALIBRATION, networks=9, coverage=0.9)
