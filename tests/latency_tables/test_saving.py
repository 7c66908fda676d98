"""Tables saved: a kill leaves the former or the new one, and no two commands lose each other's rows."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from latency_tables import (
    Calibration,
    LatencyTable,
    Row,
    Target,
    available_tables,
    find_table,
    profile,
    validate_table,
)
from latency_tables.catalogue import catalogue
from latency_tables.holding import held_table
from latency_tables.table import scan_table
from search_spaces import InputError, Layer, RunError
from tests.full_disk import room_for
from tests.latency_tables.fakes import LAYERS as FAKE_LAYERS
from tests.latency_tables.fakes import QUICK, TARGET, FakeRuntime

ROOT = Path(__file__).resolve().parents[2]
PI = Target("pi", "Cortex-A72", "ncnn", "fp32", 4)
LAYERS = tuple(Layer("conv", 8 * (i + 1), 16, 1, 1, 1, 8, 8) for i in range(6))
CALIBRATION = Calibration(0.5, 1.1, 12, 0.02, 0.05, 0.2, 0.04, 0.9)
SESSION = {"date": "2026-01-31T10:00:00+00:00", "command": "nas profile", "runtime_version": "1.0"}


def row(ms: float) -> Row:
    return Row(ms, 0.95 * ms, 1.1 * ms, 20, "measured-here", "ncnn 1.0")


FORMER = LatencyTable(PI, {LAYERS[0]: row(1.0), LAYERS[1]: row(2.0)}, (SESSION,), CALIBRATION)
NEWER = replace(FORMER, rows={LAYERS[0]: row(1.5), LAYERS[2]: row(3.0)}, calibration=None)

KILLED = """
import os, sys
from pathlib import Path
from latency_tables import LatencyTable
table = LatencyTable.load(sys.argv[1])
rename, calls = Path.replace, iter(range(int(sys.argv[3]), -1, -1))
def until(self, target):
    if next(calls) == 0:
        os._exit(9)
    return rename(self, target)
Path.replace = until
table.save(sys.argv[2])
os._exit(0)
"""


KILLED_PROFILE = """
import os, sys
from pathlib import Path
rename = Path.replace
def once(self, target):
    rename(self, target)
    os._exit(9)
Path.replace = once
"""


def save_killed(table: LatencyTable, path: Path, before_rename: int) -> None:
    """Save a table in a process that is gone right before one of its renames, with no time to tidy up."""
    source = table.save(path.parent / "source" / "source.csv")
    command = [sys.executable, "-c", KILLED, str(source), str(path), str(before_rename)]
    assert subprocess.run(command, check=False).returncode == (9 if before_rename < 2 else 0)
    shutil.rmtree(source.parent)


@pytest.mark.parametrize(("renames", "expected"), [(0, FORMER), (1, NEWER), (2, NEWER)])
def test_a_kill_leaves_the_former_table_or_the_new_one(
    tmp_path: Path, renames: int, expected: LatencyTable
) -> None:
    path = FORMER.save(tmp_path / f"{PI.name}.csv")
    old = path.read_bytes()
    save_killed(NEWER, path, renames)
    hidden = [each for each in tmp_path.iterdir() if each.name.startswith(".")]
    assert len(hidden) == 2 - renames
    assert (path.read_bytes() == old) == (renames < 2)
    assert LatencyTable.load(path) == expected == find_table(PI.name, [tmp_path])
    assert {finding.rule for finding in validate_table(path)} <= {"calibration"}
    # What follows, such as the profiler adding rows, starts from that table, and tidies up.
    with held_table(path) as file:
        table = LatencyTable.load(file)
        replace(table, rows={**table.rows, LAYERS[3]: row(4.0)}).save(file)
    assert LatencyTable.load(path).rows == {**expected.rows, LAYERS[3]: row(4.0)}
    assert {each.name for each in tmp_path.iterdir()} == {path.name, f"{PI.name}.yaml"}


@pytest.mark.parametrize(("renames", "there"), [(0, False), (1, True)])
def test_a_kill_while_a_table_is_saved_for_the_first_time(tmp_path: Path, renames: int, there: bool) -> None:
    path = tmp_path / f"{PI.name}.csv"
    save_killed(NEWER, path, renames)
    assert not path.exists()
    assert (PI.name in available_tables([tmp_path])) == there
    found = [each for each in catalogue([tmp_path]) if not each.packaged]
    assert [(each.path, each.table) for each in found] == [(path, NEWER)] * there
    # A block that saves nothing takes nothing away, and finishes what was cut.
    with held_table(path):
        pass
    assert path.exists() == there
    assert (PI.name in available_tables([tmp_path])) == there


def test_files_of_two_tables_are_no_table(tmp_path: Path) -> None:
    """As when somebody copies both files of a folder in which a kill came between them, or one of them."""
    path = FORMER.save(tmp_path / "pi.csv")
    other = NEWER.save(tmp_path / "other.csv")
    path.write_bytes(other.read_bytes())
    with pytest.raises(InputError) as caught:
        LatencyTable.load(path)
    for words in (f"'{path}'", "pi.yaml", "was saved with", "delete 'calibration' and 'rows_sha256'"):
        assert words in str(caught.value)
    (found,) = (each for each in validate_table(path) if each.level == "error")
    assert (found.rule, found.field, found.file) == ("unreadable", "rows_sha256", path.with_suffix(".yaml"))
    # The way out that it names.
    beside = path.with_suffix(".yaml")
    kept = [line for line in beside.read_text().splitlines() if not line.startswith("rows_sha256")]
    beside.write_text("\n".join(kept) + "\n")
    assert LatencyTable.load(path).rows == NEWER.rows


def test_line_ends_order_and_spelling_are_no_other_rows(tmp_path: Path) -> None:
    path = FORMER.save(tmp_path / "pi.csv")
    head, *lines = path.read_text().splitlines()
    path.write_bytes(
        "\r\n".join([head, *reversed(lines)]).replace("1.0,0.95", "1.00,0.950").encode("utf-8-sig")
    )
    assert LatencyTable.load(path) == FORMER


@pytest.mark.parametrize("digest", ["0", "X" * 64, "7"])
def test_a_digest_that_is_none_is_a_fault(tmp_path: Path, digest: str) -> None:
    beside = FORMER.save(tmp_path / "pi.csv").with_suffix(".yaml")
    text = beside.read_text()
    beside.write_text(text[: text.index("rows_sha256")] + f"rows_sha256: {digest}\n")
    with pytest.raises(InputError, match="'rows_sha256' is 64 hexadecimal digits, not"):
        LatencyTable.load(beside)


def test_a_reader_sees_no_mixture_while_somebody_saves(tmp_path: Path) -> None:
    path = FORMER.save(tmp_path / "pi.csv")
    stop = threading.Event()
    failures: list[BaseException] = []

    def save_in_turn() -> None:
        while not stop.is_set():
            for table in (NEWER, FORMER):
                table.save(path)

    writer = threading.Thread(target=save_in_turn)
    writer.start()
    try:
        for _ in range(80):
            found = LatencyTable.load(path)
            if found not in (FORMER, NEWER):
                failures.append(AssertionError(found))
    finally:
        stop.set()
        writer.join()
    assert not failures


@pytest.mark.parametrize("former", [0, 10])
def test_a_profile_that_was_killed_while_it_saved_is_finished_before_its_journal_goes(
    tmp_path: Path, former: int
) -> None:
    def profiled(layers: tuple[Layer, ...]) -> LatencyTable:
        return profile(TARGET, layers, out=tmp_path, settings=QUICK, bench=FakeRuntime().bench())

    path, journal = (tmp_path / f"{TARGET.name}{end}" for end in (".csv", ".partial.jsonl"))
    if former:
        profiled(FAKE_LAYERS[:former])
    script = (
        "from tests.latency_tables.fakes import *; profile(TARGET, LAYERS, out=sys.argv[1], settings=QUICK,"
    )
    command = [sys.executable, "-c", KILLED_PROFILE + script + "bench=FakeRuntime().bench())", str(tmp_path)]
    assert subprocess.run(command, check=False, cwd=ROOT).returncode == 9
    assert journal.exists() and path.exists() == bool(former)
    assert len(LatencyTable.load(path)) == len(FAKE_LAYERS), "from the hidden file"
    profiled(FAKE_LAYERS)
    assert {each.name for each in tmp_path.iterdir()} == {path.name, f"{TARGET.name}.yaml"}
    assert len(path.read_text().splitlines()) == 1 + len(FAKE_LAYERS)
    assert path.stat().st_mode == path.with_suffix(".yaml").stat().st_mode


@pytest.mark.parametrize("room", [200, 5_000, 9_003])
def test_a_disk_that_fills_up_while_profiling_keeps_what_was_measured(tmp_path: Path, room: int) -> None:
    runtime = FakeRuntime()
    journal = tmp_path / f"{TARGET.name}.partial.jsonl"
    with room_for(room), pytest.raises(RunError) as caught:
        profile(TARGET, FAKE_LAYERS, out=tmp_path, settings=QUICK, bench=runtime.bench())
    for words in (
        f"cannot write the journal '{journal}'",
        "before is kept in it: free space",
        "same command",
    ):
        assert words in str(caught.value)
    kept = journal.read_text().splitlines()
    done = sum('"kind": "layer"' in line for line in kept)
    assert (room < 1000) == (done == 0)
    table = profile(TARGET, FAKE_LAYERS, out=tmp_path, settings=QUICK, bench=runtime.bench())
    assert table.rows.keys() == set(FAKE_LAYERS) and not journal.exists()
    assert len(runtime.order) - QUICK.rounds * len(FAKE_LAYERS) in (0, 1), "but a visit that found no room"


# -- held tables -------------------------------------------------------------------------------------------


def test_a_held_table_is_refused_to_others_and_free_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pi.csv"
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)

    with held_table(path.with_suffix(".yaml")) as file:
        assert file == path
        clock = iter(range(100))
        with (
            pytest.raises(RunError, match=r"another command is writing the latency table '.*pi\.csv': wait"),
            held_table(path, patience_s=3, clock=lambda: float(next(clock)), sleep=sleep),
        ):
            raise AssertionError("two at once")
        assert len(waited) == 2
        with held_table(path.with_name("other.csv"), patience_s=0):
            pass  # another table is free
    with held_table(path, patience_s=0):
        pass
    assert [*path.parent.iterdir()] == [], "nothing stays"


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    """Also where the file that holds the table is removed by one while others wait for it."""
    path = FORMER.save(tmp_path / "pi.csv")

    def add(i: int) -> None:
        with held_table(path, sleep=lambda seconds: time.sleep(0.001)) as file:
            table = LatencyTable.load(file)
            layer = Layer("conv", 8, 16 * (i + 2), 1, 1, 1, 8, 8)
            replace(table, rows={**table.rows, layer: row(1.0)}).save(file)

    every = [threading.Thread(target=add, args=(i,)) for i in range(12)]
    for each in every:
        each.start()
    for each in every:
        each.join()
    assert len(LatencyTable.load(path)) == 2 + 12
    assert {each.name for each in tmp_path.iterdir()} == {"pi.csv", "pi.yaml"}


def test_who_waits_gets_the_table_as_the_other_has_left_it(tmp_path: Path) -> None:
    path = FORMER.save(tmp_path / "pi.csv")
    holding = threading.Event()

    def slowly() -> None:
        with held_table(path) as file:
            table = LatencyTable.load(file)
            holding.set()
            time.sleep(0.3)
            replace(table, rows={**table.rows, LAYERS[4]: row(5.0)}).save(file)

    other = threading.Thread(target=slowly)
    other.start()
    assert holding.wait(10)
    with held_table(path) as file:
        table = LatencyTable.load(file)
        replace(table, rows={**table.rows, LAYERS[5]: row(6.0)}).save(file)
    other.join()
    assert LatencyTable.load(path).rows.keys() == {*FORMER.rows, LAYERS[4], LAYERS[5]}


def test_a_folder_that_cannot_be_written_to_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to"), held_table(tmp_path / "file" / "pi.csv"):
        pass


# -- files of spreadsheets ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_columns_separated_otherwise_are_one_clear_error(tmp_path: Path, separator: str, name: str) -> None:
    path = FORMER.save(tmp_path / "pi.csv")
    path.write_text(path.read_text().replace(",", separator), encoding="utf-8-sig")
    (fault,) = scan_table(path).faults
    assert (fault.file, fault.line) == (path, 1)
    assert f"'{path}' line 1 separates its columns by {name}" in fault.message
    assert "separated by commas" in fault.message


def test_decimal_commas_are_named(tmp_path: Path) -> None:
    path = FORMER.save(tmp_path / "pi.csv")
    path.write_text(path.read_text().replace(",2.0,", ',"2,0",'))
    with pytest.raises(
        InputError, match=r"line 2: median_ms is a number .* with a point where it has a comma"
    ):
        LatencyTable.load(path)


def test_a_mark_in_front_is_no_fault(tmp_path: Path) -> None:
    path = FORMER.save(tmp_path / "pi.csv")
    for file in (path, path.with_suffix(".yaml")):
        file.write_text(file.read_text(), encoding="utf-8-sig")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert LatencyTable.load(path) == FORMER
