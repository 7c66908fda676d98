"""``nas tables``: what people and programs are told, exit codes, and what is never overwritten."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latency_tables import Calibration, LatencyTable, Row, Target
from nas.console import print_table
from nas.latency import table_folders
from search_spaces import Layer, litepose_native
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


def test_list_says_where_it_looked_when_there_is_none(box: Path, nas_: Nas) -> None:
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
    assert [entry["name"] for entry in found["tables"]] == [NAME, "second", NAME]
    sound, damaged, hidden = found["tables"]
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
    assert "are the same: 4 rows" in told.out


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
    assert f"from tables/{NAME}.csv" in told.out and "3 of 4" in told.out
    assert f"the calibration of tables/{NAME}.csv was dropped" in told.out
    assert f"once it is called {NAME}, fits a new one" in told.out
    table = LatencyTable.load(tables / "both.csv")
    assert [table.rows[layer].median_ms for layer in LAYERS] == [2.0, 2.0, 3.0, 4.0]
    assert table.calibration is None
    measured, merging = table.sessions
    assert measured == SESSION
    assert merging["merged"] == [
        {"table": f"tables/{NAME}.csv", "rows": 4, "taken": 3},
        {"table": "other.csv", "rows": 2, "taken": 1},
    ]
    after = files(tables)
    assert after.keys() - before.keys() == {"both.csv", "both.yaml"}
    assert all(after[name] == content for name, content in before.items())
    assert nas_("tables", "validate", "both.csv").code == 0
    assert "merged by" in nas_("tables", "show", "both.csv").out


def test_merge_into_a_folder_as_json(tables: Path, nas_: Nas) -> None:
    (tables / "out").mkdir()
    told = nas_("tables", "merge", NAME, "other.csv", "-o", "out", "--json")
    found = json.loads(told.out)
    assert (found["table"], found["rows"]) == (f"out/{NAME}.csv", 4)
    assert found["calibrations_dropped"] == [f"tables/{NAME}.csv"]
    assert found["doubts"] == []
    assert len(LatencyTable.load(found["table"])) == 4


def test_what_a_kill_has_left_keeps_nobody_from_using_the_folder(tables: Path, nas_: Nas) -> None:
    text = (tables / "tables" / f"{NAME}.csv").read_text()
    (tables / "tables" / f".{NAME}-abcd1234.csv").write_text(text[:100])
    told = nas_("tables", "list")
    assert "1 latency table" in told.out and "damaged" not in told.out
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
