"""What a machine tells about its speed, from a faked /sys and /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from latency_tables import bench, machine, profiler
from latency_tables.machine import machine_state, system_name
from tests.latency_tables.fakes import LAYERS, QUICK, TARGET, FakeRuntime


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


CPU = "sys/devices/system/cpu"
BOARD: dict[str, str | bytes] = {
    **{f"{CPU}/cpu{i}/cpufreq/scaling_governor": "ondemand\n" for i in range(3)},
    **{f"{CPU}/cpu{i}/cpufreq/scaling_cur_freq": f"{600 + 600 * i}000\n" for i in range(3)},
    **{f"{CPU}/cpu{i}/cpufreq/scaling_max_freq": "1800000\n" for i in range(3)},
    f"{CPU}/cpufreq/boost": "0\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "sys/class/thermal/thermal_zone1/temp": "51250\n",
    "sys/class/thermal/thermal_zone2/temp": "-274000\n",
    "proc/loadavg": "0.52 0.58 0.59 1/467 12345\n",
    "proc/cpuinfo": "processor : 0\ncpu MHz : 99.0\n",
}


def state(root: Path) -> dict[str, object]:
    return machine_state(root / "sys", root / "proc")


def test_a_board_tells_everything(tmp_path: Path) -> None:
    assert state(write(tmp_path, BOARD)) == {
        "load_1min": 0.52,
        "governor": "ondemand",
        "mhz": 1200.0,
        "mhz_max": 1800.0,
        "boost": False,
        "celsius": 51.2,
    }


def test_a_virtual_machine_tells_what_it_can(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {
        "proc/loadavg": "2.0 1 1 1/2 3\n",
        "proc/cpuinfo": "cpu MHz\t\t: 2000.000\nmodel name : X\ncpu MHz : 2400.0\n",
    }
    assert state(write(tmp_path, files)) == {"load_1min": 2.0, "mhz": 2200.0}
    assert state(tmp_path / "nothing") == {}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({f"{CPU}/cpu1/cpufreq/scaling_governor": "performance"}, {"governor": "ondemand,performance"}),
        ({f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "<unknown>"}, {"mhz": 1500.0}),
        ({f"{CPU}/cpu0/cpufreq/scaling_max_freq": "2400000"}, {"mhz_max": 2400.0}),
        ({"sys/class/thermal/thermal_zone1/temp": b"\xff\x00"}, {"celsius": 48.3}),
        ({"sys/class/thermal/thermal_zone1/temp": "nan"}, {"celsius": 48.3}),
        ({f"{CPU}/cpufreq/boost": "1"}, {"boost": True}),
        ({f"{CPU}/cpufreq/boost": "", f"{CPU}/intel_pstate/no_turbo": "1"}, {"boost": False}),
        ({"proc/loadavg": "\n"}, {"load_1min": None}),
    ],
)
def test_what_differs_or_is_nonsense(
    tmp_path: Path, changed: dict[str, str | bytes], expected: dict[str, object]
) -> None:
    found = state(write(tmp_path, {**BOARD, **changed}))
    assert {key: found.get(key) for key in expected} == expected


def test_the_profiler_notes_it_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = write(tmp_path / "board", BOARD)

    def told() -> dict[str, object]:
        found = state(board)
        write(board, {"sys/class/thermal/thermal_zone1/temp": "60000"})
        return found

    monkeypatch.setattr(bench, "machine_state", told)
    runtime = FakeRuntime()
    table = profiler.profile(
        TARGET, LAYERS[:3], out=tmp_path, settings=QUICK, bench=runtime.bench(), command="me"
    )
    (session,) = table.sessions
    assert session["machine_before"] == {**session["machine_after"], "celsius": 51.2}
    assert session["machine_after"]["celsius"] == 60.0
    assert (session["command"], session["runtime_version"], session["system"]) == ("me", "1.0", system_name())
    assert session["date"] <= session["finished"]


def test_here_it_holds_what_it_promises() -> None:
    known = {"load_1min", "governor", "mhz", "mhz_max", "boost", "celsius"}
    assert machine.machine_state().keys() <= known
    assert system_name()
