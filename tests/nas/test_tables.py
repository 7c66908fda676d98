"""``nas tables``: what people and programs are told, exit codes, and what is never overwritten."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latency_tables import Calibration, LatencyTable, MeasuredNetwork, Row, Target, calibrate, fill_table
from latency_tables.holding import held_table
from latency_tables.machine import processor_name
from nas.console import print_table
from nas.latency import table_folders
from search_spaces import Arch, Layer, get_arch, litepose_native
from tests.nas.conftest import Outcome

Nas = Callable[..., Outcome]

PI = Target("pi", "Cortex-A72", "ncnn", "fp32", 4)
SESSION = {
    "date": "2026-01-31T10:00:00+00:00",
    "command": "nas profile pi.yaml",
    "runtime_version": "1.0",
    "machine_before": {"governor": "ondemand", "mhz": 1500.0, "celsius": 48.3},
    "machine_after": {"governor": "ondemand", "mhz": 1500.0, "celsius": 61.0},
    "drift": 0.02,
}
CALIBRATION = Calibration(0.5, 1.1, 12, 0.02, 0.05, 0.2, 0.0953, 0.9)
LAYERS = tuple(Layer("conv", 8 * (i + 1), 16, 1, 1, 1, 8, 8) for i in range(4))


def row(ms: float, **changes: Any) -> Row:
    values = {"median_ms": ms, "p10_ms": 0.95 * ms, "p90_ms": 1.1 * ms, "runs": 20}
    return Row(**{**values, "provenance": "measured-here", "source": "ncnn 1.0", **changes})


TABLE = LatencyTable(PI, {x: row(1.0 + i) for i, x in enumerate(LAYERS)}, (SESSION,), CALIBRATION)
OTHER = replace(TABLE, rows={LAYERS[0]: row(2.0, runs=99), LAYERS[1]: row(2.0, runs=5)}, calibration=None)
NAME = PI.name


@pytest.fixture
def tables(box: Path) -> Path:
    """The box, with a table in its default folder and another beside it."""
    TABLE.save(box / "tables" / f"{NAME}.csv")
    OTHER.save(box / "other.csv")
    return box


def damage(path: Path) -> None:
    path.write_text(re.sub(r",\d+,measured", ",many,measured", path.read_text(), count=1))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- list --------------------------------------------------------------------------------------------------


def test_list_says_where_it_looked_when_there_is_none(
    box: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latency_tables.catalogue.packaged_folder", lambda: box / "nothing packaged")
    told = nas_("tables", "list")
    assert (told.code, told.err) == (0, "")
    assert "no latency tables in 'tables'" in told.out
    assert json.loads(nas_("tables", "list", "--json").out) == {"folders": ["tables"], "tables": []}


def test_list(tables: Path, nas_: Nas) -> None:
    OTHER.save(tables / "mine" / "second.csv")
    TABLE.save(tables / "mine" / f"{NAME}.csv")
    damage(tables / "mine" / "second.csv")
    told = nas_("tables", "list", "--tables", "mine")
    assert (told.code, told.err) == (0, "")
    for words in ("4 measured-here", "2.0%, 5.0%", "-9% to +10% (90%)", "2026-01-31", NAME):
        assert words in told.out
    assert "damaged: latency table 'mine/second.csv' line 2: runs" in told.out
    assert f"hidden: 'tables/{NAME}.csv'" in told.out
    found = json.loads(nas_("tables", "list", "--tables", "mine", "--json").out)
    own = [entry for entry in found["tables"] if not entry["packaged"]]
    assert [entry["name"] for entry in own] == [NAME, "second", NAME]
    sound, damaged, hidden = own
    assert sound["provenance"] == {"measured-here": 4, "measured-by-others": 0, "calibrated-estimate": 0}
    assert sound["calibration"]["interval_factor"] == pytest.approx(1.1, rel=1e-3)
    assert (sound["date"], sound["rows"], sound["target"]) == ("2026-01-31", 4, PI.to_dict())
    assert "runs is a whole number, not 'many'" in damaged["damaged"]
    assert hidden["hidden"] is True and sound["hidden"] is False


# -- show --------------------------------------------------------------------------------------------------


def test_show(tables: Path, nas_: Nas) -> None:
    told = nas_("tables", "show", NAME, "--rows", 2)
    assert (told.code, told.err) == (0, "")
    for words in (
        *("Cortex-A72, ncnn fp32, 4 threads", "4 measured-here", "0.5 ms + 1.100 x sum of layers"),
        *("fitted on 12 whole networks", "governor ondemand", "temperature 48.3 to 61.0 °C", "drift 2.0%"),
        *("'nas profile pi.yaml'", "conv 1x1", "100.0%", "the 2 slowest rows", LAYERS[3].key),
    ):
        assert words in told.out
    assert LAYERS[0].key not in told.out
    found = json.loads(nas_("tables", "show", f"tables/{NAME}.yaml", "--json").out)
    assert (found["file"], found["rows"], found["total_ms"]) == (f"tables/{NAME}.csv", 4, 10.0)
    assert found["sessions"] == [SESSION]
    assert found["calibration"]["networks"] == 12
    assert len(found["slowest"]) == 4


def test_nothing_is_cut_off_in_a_narrow_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", ("key", "value"), [("k" * 300, "v" * 200)])
    told = capsys.readouterr().out
    assert (told.count("k"), told.count("v"), told.count("…")) == (300 + 1, 200 + 1, 0)


def test_what_a_terminal_must_not_see_is_escaped(box: Path, nas_: Nas) -> None:
    evil = replace(
        TABLE,
        target=replace(PI, processor="\x1b[31mred\a"),
        rows={LAYERS[0]: row(1.0, source="\x1b[2J[bold]gone")},
        sessions=({**SESSION, "command": "a\nb\ud800"},),
    )
    evil.save(box / "evil.csv")
    for command in ("show", "validate"):
        told = nas_("tables", command, "evil.csv")
        assert told.code == 0
        assert "\x1b" not in told.out and "\a" not in told.out
    shown = nas_("tables", "show", "evil.csv").out
    assert "\\x1b[31mred\\x07" in shown and "[bold]gone" in shown and "a\\nb\\ud800" in shown


# -- validate ----------------------------------------------------------------------------------------------


def test_validate_a_sound_table(tables: Path, nas_: Nas) -> None:
    told = nas_("tables", "validate", NAME)
    assert (told.code, told.err) == (0, "")
    assert told.out == f"tables/{NAME}.csv: nothing speaks against it\n"
    found = json.loads(nas_("tables", "validate", NAME, "--json").out)
    assert found == {
        "sound": True,
        "tables": [{"file": f"tables/{NAME}.csv", "errors": 0, "warnings": 0, "findings": []}],
    }


def test_validate_tells_of_every_table_and_then_fails(tables: Path, nas_: Nas) -> None:
    damage(tables / "other.csv")
    told = nas_("tables", "validate", "other.csv", NAME)
    assert told.code == 2
    assert told.err == (
        "error: 1 error in 1 of 2 latency tables (other.csv); they are listed on standard output\n"
    )
    assert (
        "other.csv: 1 error, 2 warnings" in told.out and "  error: line 2: runs is a whole number" in told.out
    )
    assert f"tables/{NAME}.csv: nothing speaks against it" in told.out
    again = nas_("tables", "validate", "other.csv", NAME, "--json")
    assert again.code == 2 and again.err == told.err
    found = json.loads(again.out)
    assert found["sound"] is False
    first = found["tables"][0]["findings"][0]
    assert (first["file"], first["line"], first["field"], first["value"]) == (
        "other.csv",
        2,
        "runs",
        "'many'",
    )


def test_warnings_are_no_failure_and_many_are_counted(tables: Path, nas_: Nas) -> None:
    layers = [Layer("conv", 8 * (i + 1), 16, 1, 1, 1, 8, 8) for i in range(9)]
    rows = {layer: row(1.0 + i, runs=3) for i, layer in enumerate(layers)}
    replace(TABLE, rows=rows).save(tables / "tables" / f"{NAME}.csv")
    told = nas_("tables", "validate", NAME)
    assert (told.code, told.err) == (0, "")
    assert told.out.count("percentiles need 10") == 5
    assert "warning: and 4 more of 'few runs'" in told.out
    assert len(json.loads(nas_("tables", "validate", NAME, "--json").out)["tables"][0]["findings"]) == 9


def test_validate_for_a_network_tells_what_is_missing(tables: Path, nas_: Nas) -> None:
    told = nas_("tables", "validate", NAME, "--for", "litepose-xs", "--json")
    assert told.code == 2
    space = litepose_native(joints=14)
    findings = json.loads(told.out)["tables"][0]["findings"]
    missing = {finding["value"] for finding in findings if finding["rule"] == "missing"}
    assert missing and missing <= {block.key for block in space.distinct_blocks()}
    assert "no space, recipe, run or arch" in nas_("tables", "validate", NAME, "--for", "xs").err


# -- diff --------------------------------------------------------------------------------------------------


def test_diff_of_the_same(tables: Path, nas_: Nas) -> None:
    told = nas_("tables", "diff", NAME, f"tables/{NAME}.csv")
    assert (told.code, told.err) == (0, "")
    assert "are the same: 4 rows, 0 whole networks" in told.out


def test_diff(tables: Path, nas_: Nas) -> None:
    told = nas_("tables", "diff", NAME, "other.csv")
    assert (told.code, told.err) == (1, "")
    assert "2; 0 equal, 1 within their intervals, 1 beyond" in told.out
    assert f"only in first   2: {LAYERS[2].key}, {LAYERS[3].key}" in told.out
    assert "2.0000 (1.9000 to 2.2000)" in told.out and "comparable" not in told.out
    found = json.loads(nas_("tables", "diff", NAME, "other.csv", "--json").out)
    assert (found["same"], found["comparable"], found["common"]) == (False, True, 2)
    assert found["ratio"]["median"] == pytest.approx(1.5)
    assert [change["beyond_intervals"] for change in found["changes"]] == [True, False]


def test_diff_of_other_targets_says_that_times_are_not_comparable(tables: Path, nas_: Nas) -> None:
    replace(TABLE, target=replace(PI, threads=1)).save(tables / "single.csv")
    told = nas_("tables", "diff", NAME, "single.csv")
    assert told.code == 1
    assert "the targets differ, so the times are not comparable: threads '4' and '1'" in told.out


# -- merge -------------------------------------------------------------------------------------------------


def test_merge(tables: Path, nas_: Nas) -> None:
    before = files(tables)
    told = nas_("tables", "merge", NAME, "other.csv", "-o", "both.csv")
    assert (told.code, told.err) == (0, "")
    words = " ".join(told.out.split())
    # The second row of the other has five runs, too few; of the first it has 99, so it goes first.
    assert f"from tables/{NAME}.csv 3 of 4 rows that are not fitted, 0 of 0 whole networks" in words
    assert "from other.csv 1 of 2 rows that are not fitted" in words
    assert words.count("first where nothing else decides") == 1
    assert "calibration none: 0 whole networks are too few, it takes 5" in words
    assert f"the calibration of tables/{NAME}.csv was dropped" in told.out
    assert f"once it is called {NAME}, measures whole networks for a new one" in told.out
    table = LatencyTable.load(tables / "both.csv")
    assert [table.rows[layer].median_ms for layer in LAYERS] == [2.0, 2.0, 3.0, 4.0]
    assert table.rows[LAYERS[1]].runs == 20
    assert table.calibration is None
    measured, merging = table.sessions
    assert measured == SESSION
    none = {"networks": 0, "networks_taken": 0}
    assert merging["merged"] == [
        {"table": f"tables/{NAME}.csv", "rows": 4, "taken": 3, **none, "rank": 1},
        {"table": "other.csv", "rows": 2, "taken": 1, **none, "rank": 0},
    ]
    assert merging["fitted"] == {"left_out": 0, "anew": 0, "dropped": 0}
    after = files(tables)
    assert after.keys() - before.keys() == {"both.csv", "both.yaml"}
    assert all(after[name] == content for name, content in before.items())
    assert nas_("tables", "validate", "both.csv").code == 0
    assert "merged by" in nas_("tables", "show", "both.csv").out


def test_a_merge_says_what_it_brought_to_one_speed_and_what_gave_nothing(tables: Path, nas_: Nas) -> None:
    def saved(
        name: str, day: int, layers: Sequence[Layer], canary_ms: float, wide: float, **more: Any
    ) -> None:
        speed = {"canaries": ["one", "other"], "canaries_ms": [canary_ms, 1.0]}
        speed |= {"exponents": [0.5, 0.0], "network_exponents": [0.25, 0.0]}
        own = {**SESSION, "date": f"2026-01-0{day}T00:00:00+00:00", "speed": speed, **more}
        times = {layer: row(canary_ms, p90_ms=wide * canary_ms) for layer in layers}
        LatencyTable(PI, times, (own,)).save(tables / f"{name}.csv")

    saved("first", 2, LAYERS[:3], 1.0, 1.2)
    saved("second", 3, LAYERS, 1.21, 1.5)
    saved("third", 1, LAYERS[:2], 9.0, 1.9, drifted=True)
    told = nas_("tables", "merge", "first.csv", "second.csv", "third.csv", "-o", "all.csv")
    assert (told.code, told.err) == (0, "")
    words = " ".join(told.out.split())
    assert "1 of 4 rows that are not fitted, 0 of 0 whole networks; brought to the first one's speed" in words
    assert "rows times 0.909, whole networks times 0.953" in words and "doubt" not in words
    table = LatencyTable.load(tables / "all.csv")
    assert table.rows[LAYERS[3]].median_ms == pytest.approx(1.21 / 1.1)
    *measured, merging = table.sessions
    assert [each.get("drifted") for each in measured] == [None, None]
    first, second, third = merging["merged"]
    assert second["brought"] == {"rows": 0.90909, "networks": 0.95346} and "brought" not in first
    assert third["taken"] == 0 and third["sessions"][0]["drifted"] is True
    assert "sessions" not in first and "sessions" not in second
    shown = " ".join(nas_("tables", "show", "all.csv").out.split())
    assert shown.count("brought to the speed of another session") == 1
    again = json.loads(nas_("tables", "merge", "all.csv", "third.csv", "-o", "more.csv", "--json").out)
    assert again["sources"][1]["taken"] == 0 and LatencyTable.load(tables / "more.csv").rows == table.rows


def test_merge_into_a_folder_as_json(tables: Path, nas_: Nas) -> None:
    (tables / "out").mkdir()
    told = nas_("tables", "merge", NAME, "other.csv", "-o", "out", "--json")
    found = json.loads(told.out)
    assert (found["table"], found["rows"]) == (f"out/{NAME}.csv", 4)
    assert found["calibrations_dropped"] == [f"tables/{NAME}.csv"]
    assert (found["calibration"], found["doubts"]) == (None, [])
    assert "too few" in found["uncalibrated"]
    assert len(LatencyTable.load(found["table"])) == 4


SPACE = litepose_native(joints=14, resolutions=(64,))
ARCHS = tuple(SPACE.decode(genes) for genes in SPACE.sample_genotypes(np.random.default_rng(3), 12))


def profiled(archs: Sequence[Arch], speed: float = 1.0) -> LatencyTable:
    """A table with all blocks of a space, but every fifth fitted, calibrated on some networks."""
    rows = {
        block: row(speed * (0.02 + sum(layer.macs for layer in block.layers) / 4e6))
        for block in SPACE.distinct_blocks()
    }
    networks = tuple(
        MeasuredNetwork(arch, 14, row(1.2 * sum(rows[block].median_ms for block in arch.blocks(14))))
        for arch in archs
    )
    measured = {block: each for i, (block, each) in enumerate(rows.items()) if i % 5}
    return calibrate(fill_table(LatencyTable(PI, measured, (SESSION,), networks=networks), rows))


def test_merging_profiles_fits_and_calibrates_anew(tables: Path, nas_: Nas) -> None:
    profiled(ARCHS[:6]).save(tables / "monday.csv")
    profiled(ARCHS[4:], 1.1).save(tables / "tuesday.csv")
    told = nas_("tables", "merge", "monday.csv", "tuesday.csv", "-o", "week.csv")
    assert (told.code, told.err) == (0, "")
    words = " ".join(told.out.split())
    table = LatencyTable.load(tables / "week.csv")
    count = sum(row.runs == 0 for row in table.rows.values())
    assert f"fitted {count} rows, anew on what is measured in all of them; {2 * count} fitted rows" in words
    assert "calibration fitted anew on 12 whole networks: left out in turn" in words
    assert "dropped" not in words
    assert "share take 1.10 times as long in the second" in words
    assert table.calibration is not None and table.calibration.networks == len(table.networks) == 12
    assert table.sessions[-1]["calibration"] == "fitted anew on 12 whole networks"
    assert "share take 1.10 times" in " ".join(nas_("tables", "show", "week.csv").out.split())
    shown = " ".join(nas_("tables", "show", "week.csv").out.split())
    assert table.fit is not None
    assert f"fitted on {table.fit.samples} measured pieces; {table.fit.checks} of them left out" in shown
    again = json.loads(nas_("tables", "merge", "monday.csv", "tuesday.csv", "-o", "x.csv", "--json").out)
    assert again["fitted"] == {"left_out": 2 * count, "anew": count, "dropped": 0}
    assert again["calibration"]["networks"] == 12 and again["uncalibrated"] is None
    assert len(again["doubts"]) == 1


def test_whole_networks_are_shown_and_compared(tables: Path, nas_: Nas) -> None:
    first, second = profiled(ARCHS[:6]), profiled(ARCHS[4:], 1.3)
    first.save(tables / "monday.csv")
    second.save(tables / "tuesday.csv")
    shown = " ".join(nas_("tables", "show", "monday.csv").out.split())
    times = sorted(network.row.median_ms for network in first.networks)
    assert f"whole networks 6 measured, {times[0]:.4g} to {times[-1]:.4g} ms" in shown
    assert "predicted worst: " in shown
    reach = f"{times[0]:.4g} to {times[-1]:.4g} ms"
    assert f"from 6 networks of {reach} (nothing supports it far beyond)" in shown
    assert "as wide as the worst of their errors: so few support no more" in shown
    told = nas_("tables", "diff", "monday.csv", "tuesday.csv")
    assert told.code == 1
    words = " ".join(told.out.split())
    assert "networks in both 2; 0 equal, 0 within their intervals, 2 beyond" in words
    assert f"networks only in first 4: {first.networks[0].name}" in words
    assert "networks only in second 6: " in words and "and 1 more" in words
    assert "networks, second / first median 1.300" in words
    assert "predictions, second / first median 1.3" in words
    assert "calibration.networks" in words
    assert "2 of 2 networks that differ beyond their intervals" in words
    replace(first, networks=first.networks[:5], calibration=None).save(tables / "fewer.csv")
    assert nas_("tables", "diff", "monday.csv", "fewer.csv").code == 1


def test_a_table_that_another_command_writes_is_not_merged_into(
    tables: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.tables.held_table", partial(held_table, patience_s=0.0))
    with held_table(tables / "both.csv"):
        told = nas_("tables", "merge", NAME, "other.csv", "-o", "both.csv")
    assert told.code == 2 and told.err.count("\n") == 1
    assert "another command is writing the latency table 'both.csv': wait for it" in told.err
    assert not (tables / "both.csv").exists()


def test_rows_that_were_added_until_the_merge_begins_are_in_it(
    tables: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a profile into one of the tables, which is to be overwritten, ends meanwhile."""

    @contextmanager
    def late(path: Path) -> Iterator[Path]:
        with held_table(path) as file:
            added = LatencyTable.load(file)
            replace(added, rows={**added.rows, LAYERS[3]: row(44.0, runs=500)}).save(file)
            yield file

    monkeypatch.setattr("nas.tables.held_table", late)
    assert nas_("tables", "merge", NAME, "other.csv", "-o", "other.csv", "--force").code == 0
    table = LatencyTable.load(tables / "other.csv")
    assert table.rows[LAYERS[3]].median_ms == 44.0
    assert table.sessions[-1]["merged"][1]["rows"] == 3


def test_a_table_that_is_there_since_is_not_overwritten(
    tables: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another command saves it after this one has looked."""

    @contextmanager
    def late(path: Path) -> Iterator[Path]:
        with held_table(path) as file:
            file.write_text("another's")
            yield file

    monkeypatch.setattr("nas.tables.held_table", late)
    told = nas_("tables", "merge", NAME, "other.csv", "-o", "both.csv")
    assert told.code == 2 and "'both.csv' exists already" in told.err
    assert (tables / "both.csv").read_text() == "another's"


# -- machines, terminals -------------------------------------------------------------------------------------


def test_a_table_of_another_machine_is_told_of_once(box: Path, nas_: Nas) -> None:
    here = Target("this-machine", "Cortex-A72 of another machine", "onnxruntime", "fp32", 1)
    rows = {block: row(1.0) for block in get_arch("litepose-xs").blocks(14)}
    table = LatencyTable(here, rows, ({**SESSION, "processor": here.processor},))
    path = table.save(box / "tables" / f"{here.name}.csv")
    target = ("--latency", here.name)
    told = nas_("cost", "litepose-xs", *target, *target, "--json")
    assert told.code == 0 and json.loads(told.out)["latency"]
    assert told.err.count("\n") == 1
    assert f"the latency table '{here.name}' is not of this machine" in told.err
    assert "'Cortex-A72 of another machine', and here is" in told.err
    assert nas_("cost", "litepose-xs", *target, "--json").err == told.err, "once a command, not for ever"
    checked = nas_("tables", "validate", here.name)
    assert "target.device: is 'this-machine', but it was measured on" in checked.out
    mine = replace(here, processor=processor_name())
    replace(table, target=mine, sessions=({**SESSION, "processor": mine.processor},)).save(path)
    assert nas_("cost", "litepose-xs", *target).err == ""


def test_a_table_measured_here_under_another_name_is_told_of_once(box: Path, nas_: Nas) -> None:
    """As by a target file that names another device and lacks its link; with a link, words may differ."""
    pi = Target("kitchen-pi", "Cortex-A76", "onnxruntime", "fp32", 1)
    rows = {block: row(1.0) for block in get_arch("litepose-xs").blocks(14)}
    here = {**SESSION, "processor": "Intel Xeon"}
    path = box / "tables" / f"{pi.name}.csv"
    for session, told in (
        (here, 1),
        ({**here, "pinned": "0"}, 0),
        ({**here, "processor": "Cortex-A76 2 GHz"}, 0),
    ):
        LatencyTable(pi, rows, (session, session)).save(path)
        found = nas_("cost", "litepose-xs", "--latency", pi.name)
        assert (found.code, found.err.count("\n")) == (0, told)
        assert (
            "its processor is 'Cortex-A76', but it was measured without a link on 'Intel" in found.err
        ) == told


def test_terminals_without_unicode(tables: Path) -> None:
    strange = replace(TABLE, sessions=({**SESSION, "system": "Línux 6 aarch64"},))
    strange.save(tables / "größe.csv")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for command in ("show größe.csv", f"diff größe.csv {NAME}"):
        found = subprocess.run(
            [sys.executable, "-m", "nas", "tables", *command.split()],
            capture_output=True,
            env=environment,
            check=False,
        )
        assert found.returncode == (1 if command.startswith("diff") else 0), found.stderr
        assert b"Traceback" not in found.stderr
        assert (b"\\xb0C" in found.stdout) == command.startswith("show")
        assert b"gr\\xf6\\xdfe.csv" in found.stdout


def test_what_a_kill_has_left_keeps_nobody_from_using_the_folder(tables: Path, nas_: Nas) -> None:
    text = (tables / "tables" / f"{NAME}.csv").read_text()
    (tables / "tables" / f".{NAME}-abcd1234.csv").write_text(text[:100])
    told = nas_("tables", "list")
    assert NAME in told.out and "damaged" not in told.out
    assert table_folders([tables / "tables"]) == [tables / "tables", Path("tables")]


def test_nothing_is_overwritten_unless_forced(tables: Path, nas_: Nas) -> None:
    (tables / "kitchen.yaml").write_text("device: kitchen\n")
    before = files(tables)
    merge = ("tables", "merge", NAME, "other.csv", "-o")
    for output, words in (
        ("other.csv", "'other.csv' is one of the tables to merge"),
        ("./tables", "is one of the tables to merge"),
        ("other.yaml", "is one of the tables to merge"),
        ("kitchen", "'kitchen.yaml' exists already"),
    ):
        told = nas_(*merge, output)
        assert told.code == 2 and words in told.err and "--force" in told.err, output
        assert files(tables) == before
    assert nas_(*merge, "other.csv", "--force").code == 0
    assert len(LatencyTable.load(tables / "other.csv")) == 4


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("merge other.csv -o x.csv", "at least two tables, not 'other.csv' alone"),
        ("merge other.csv single.csv ./other.yaml -o x.csv", "'other.csv' is named twice"),
        ("merge other.csv single.csv -o x.csv", "'other.csv' and 'single.csv' differ in threads '4' and '1'"),
        ("merge other.csv gone.csv -o x.csv", "'gone.csv' does not exist"),
        ("merge other.csv other.csv", "--output"),
        (f"merge other.csv {NAME} -o other.yaml/x.csv", "cannot write to other.yaml"),
        ("show pi-ncnn-fp32-4", f"did you mean '{NAME}'"),
        ("show tables", "there is no latency table 'tables'"),
        ("show gone.csv", "latency table 'gone.csv' does not exist"),
        ("show other.csv --rows -1", "--rows"),
        ("diff other.csv", "missing argument 'B'"),
        ("diff other.csv gone.csv", "'gone.csv' does not exist"),
        ("validate gone.csv", "1 of 1 latency tables (gone.csv)"),
        ("list --tables gone", "--tables: 'gone' does not exist"),
    ],
)
def test_mistakes_are_one_line(tables: Path, nas_: Nas, line: str, words: str) -> None:
    replace(TABLE, target=replace(PI, threads=1)).save(tables / "single.csv")
    before = files(tables)
    told = nas_("tables", *line.split())
    assert told.code == 2
    assert told.err.startswith("error: ") and told.err.count("\n") == 1
    assert words.lower() in told.err.lower()
    assert files(tables) == before


def test_a_full_disk_leaves_what_was_there(tables: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(tables)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = nas_("tables", "merge", NAME, "other.csv", "-o", "other.csv", "--force")
    assert told.code == 2 and "No space left on device" in told.err
    assert files(tables) == before


def test_tables_answer_without_loading_torch(tables: Path) -> None:
    code = (
        "import sys; from nas.cli import main\n"
        f"try: main(['tables', 'validate', '{NAME}'])\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.strip() == "False"
    assert "nothing speaks against it" in found.stdout
