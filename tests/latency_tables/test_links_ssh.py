"""Profiling over SSH, for real: against a server that listens on this machine's loopback."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import yaml
from onnx import TensorProto, helper

from latency_tables import RUNTIMES, LatencyTable, Row, Target, profile
from latency_tables.links import LinkDownError
from latency_tables.links.archive import agent_archive, agent_name
from latency_tables.runtimes import Program
from latency_tables.runtimes.ncnn_runtime import write_network
from nas.cli import main
from search_spaces import InputError, RunError, UnavailableError, piece_from_key
from tests.latency_tables.devices import (
    LAYERS,
    NEEDED,
    TARGET,
    VISITS,
    SshDevice,
    measure,
    python_with,
    script,
    ssh_device,
)
from tests.nas import tiny

ROOT = Path(__file__).resolve().parents[2]
CSV = f"{TARGET.name}.csv"
JOURNAL = f"{TARGET.name}.partial.jsonl"
AGENT = agent_name(agent_archive())


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshDevice]:
    with ssh_device(tmp_path_factory.mktemp("device")) as device:
        yield device


def one_line(error: Exception) -> str:
    text = str(error)
    assert "\n" not in text
    return text


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def visits(folder: Path) -> int:
    lines = (folder / JOURNAL).read_text().splitlines()
    return sum(json.loads(line)["kind"] == "layer" for line in lines if line.endswith("}"))


# -- the way it goes -----------------------------------------------------------------------------------------


def test_a_table_is_measured_over_ssh(device: SshDevice, tmp_path: Path) -> None:
    """The device's Python has nothing but NumPy and the runtime: no torch, scipy or yaml."""
    python = python_with(tmp_path / "bare", NEEDED)
    table = measure(device.bench(python=python), tmp_path)
    assert set(table.rows) == set(LAYERS)
    assert LatencyTable.load(tmp_path / CSV) == table
    (session,) = table.sessions
    assert session["pinned"].startswith("processors ")
    assert session["python"] == ".".join(map(str, sys.version_info[:3]))
    assert session["machine_before"]["load_1min"] >= 0
    assert session["processes"] == 1
    assert AGENT in {path.name for path in device.home.iterdir()}
    until(lambda: not device.connections())
    for package in ("yaml", "scipy", "torch", "latency_tables"):
        there = subprocess.run([python, "-c", f"import {package}"], capture_output=True)
        assert there.returncode != 0, package


def test_files_are_pushed_once_and_networks_removed_at_the_end(device: SshDevice, tmp_path: Path) -> None:
    device.home.mkdir(exist_ok=True)
    (device.home / AGENT).write_bytes(agent_archive())
    agent = (device.home / AGENT).stat()
    path = tmp_path / "tiny.onnx"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 3, 8, 6)) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tiny", [x], [y])
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    with device.bench() as bench:
        first = bench.time_model(path, (8, 6), 0.01, 3)
        (pushed,) = (device.home / "models").iterdir()
        inode = pushed.stat().st_ino
        second = bench.time_model(path, (8, 6), 0.01, 3)
        assert pushed.stat().st_ino == inode
        assert min(*first.ms, *second.ms) > 0
        with pytest.raises(InputError, match=r"on device: .*takes 1x3x8x6, not one picture of 1x3x9x6"):
            bench.time_model(path, (9, 6), 0.01, 3)
        with pytest.raises(InputError, match="does not exist"):
            bench.time_model(tmp_path / "absent.onnx", (8, 6), 0.01, 3)
    assert not (device.home / "models").exists()
    again = (device.home / AGENT).stat()
    assert (agent.st_ino, agent.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)


def test_a_network_of_two_files_arrives_whole(device: SshDevice, tmp_path: Path) -> None:
    """Networks for ncnn are a text and the numbers beside it; the text, which is asked for, comes last."""
    if reason := RUNTIMES["ncnn"].unavailable():
        pytest.skip(reason)
    program = Program.of(piece_from_key("conv_k3_s2_g1_3x8x6_8+bn+relu6"))
    path = write_network(program, tmp_path / "tiny.param")
    with device.bench(target=replace(TARGET, runtime="ncnn")) as bench:
        assert min(bench.time_model(path, (8, 6), 0.01, 3).ms) > 0
        pushed = sorted((device.home / "models").iterdir())
        assert [file.suffix for file in pushed] == [".bin", ".param"]
        assert len({file.stem for file in pushed}) == 1
        path.with_suffix(".bin").unlink()
        with pytest.raises(InputError, match=r"'.*tiny\.bin' does not exist"):
            bench.time_model(path, (8, 6), 0.01, 3)


def test_the_command_describes_and_profiles(
    device: SshDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``nas profile --describe`` prints a target file; with it ``nas profile`` measures."""
    monkeypatch.setenv("PYTHONPATH", "")
    python = script(tmp_path / "python3", f'exec {sys.executable} "$@"')
    (device.folder / "authorized_keys").write_text(
        f'environment="PATH={tmp_path}:/usr/bin:/bin" {(device.folder / "user.pub").read_text()}'
    )
    try:
        assert run(["profile", "ssh:device", "--describe"]) == 0
        text = capsys.readouterr().out
    finally:
        shutil.copy(device.folder / "user.pub", device.folder / "authorized_keys")
    given = yaml.safe_load(text)
    assert given["link"] == {"ssh": "device"}
    assert given["threads"] == len(os.sched_getaffinity(0))
    given |= {"device": "kitchen-pi", "threads": 1}
    given["link"] |= {"python": str(python), "folder": str(tmp_path / "there"), "cores": 0}
    (tmp_path / "kitchen.yaml").write_text(yaml.safe_dump(given))
    recipe = tiny.recipe(tmp_path, space__resolutions=[64], space__multipliers=[1])
    command = ["profile", str(tmp_path / "kitchen.yaml"), "--for", str(tmp_path / "tiny.yaml"), "--json"]
    quick = ["--seconds-per-layer", "0.002", "--rounds", "1", "--networks", "0", "--on-drift", "warn"]
    quick += ["-o", str(tmp_path)]
    assert run([*command, *quick]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == "kitchen-pi-onnxruntime-fp32-1t"
    table = LatencyTable.load(tmp_path / f"{report['target']}.csv")
    assert recipe.name == "tiny" and len(table) > 10
    assert table.sessions[0]["pinned"] == "processors 0"


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


# -- what it survives ----------------------------------------------------------------------------------------


def test_a_dropped_link_is_taken_up_again(
    device: SshDevice, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The connection is killed, then the agent, then the agent hangs: nothing is lost or measured twice."""
    agents: list[int] = []

    def progress(done: int, total: int, text: str) -> None:
        if done in (3, 7, 11):
            agents.append(device.agent())
        if done == 3:
            for connection in device.connections():
                os.kill(connection, signal.SIGKILL)
        elif done == 7:
            os.kill(device.agent(), signal.SIGKILL)
        elif done == 11:
            os.kill(device.agent(), signal.SIGSTOP)

    table = measure(device.bench(patience=4.0), tmp_path, progress)
    assert set(table.rows) == set(LAYERS)
    (session,) = table.sessions
    assert session["processes"] == 1
    assert len(set(agents)) == 3
    told = [record.message for record in caplog.records if "trying again" in record.message]
    assert len(told) == 3
    assert "device" in told[0]  # what ssh says of a cut connection depends on what it was doing
    assert "what ran there was killed" in told[1]
    assert "did not answer 'time' within 4 s" in told[2]
    until(lambda: not any(Path(f"/proc/{agent}").exists() for agent in agents))


def test_a_killed_profiler_resumes(device: SshDevice, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-m", "tests.latency_tables.devices", tmp_path, device.home, "8"],
        env=environment,
        cwd=ROOT,
    )
    assert child.returncode == -signal.SIGKILL
    assert visits(tmp_path) == 8
    agent = device.agent()
    until(lambda: not Path(f"/proc/{agent}").exists())
    begun: list[int] = []
    table = measure(device.bench(), tmp_path, lambda done, total, text: begun.append(done))
    assert begun == list(range(8, VISITS + 1))
    assert table.sessions[0]["processes"] == 2
    assert set(table.rows) == set(LAYERS)


def test_a_device_that_stays_away_loses_nothing(device: SshDevice, tmp_path: Path) -> None:
    waits: list[float] = []

    def progress(done: int, total: int, text: str) -> None:
        if done == 5:
            script(
                device.folder / "bin" / "ssh", 'echo "ssh: connect to host: No route to host" >&2; exit 255'
            )
            for connection in device.connections():
                os.kill(connection, signal.SIGKILL)

    client = (device.folder / "bin" / "ssh").read_text()
    try:
        with pytest.raises(RunError, match="what was measured is kept: run the same command") as error:
            measure(device.bench(sleep=waits.append), tmp_path, progress)
    finally:
        (device.folder / "bin" / "ssh").write_text(client)
    assert "gave up timing" in one_line(error.value) and "No route to host" in str(error.value)
    assert waits == sorted(waits) and len(waits) == 4
    assert visits(tmp_path) == 5


def test_two_profilers_do_not_disturb_each_other(device: SshDevice) -> None:
    with ExitStack() as stack:
        lock = stack.enter_context((device.home / "agent.lock").open("r+"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=r"on device: another profiler measures.*process \d+"):
            device.bench()


def test_another_version_there_is_not_mixed_in(device: SshDevice, tmp_path: Path) -> None:
    """Neither after the agent was started anew, nor into a table that was measured before."""
    row = Row(1.0, 1.0, 1.0, 10, "measured-here", "onnxruntime 0.9.9")
    session = {"runtime_version": "0.9.9", "date": "2026-01-01T00:00:00+00:00"}
    LatencyTable(TARGET, {LAYERS[0]: row}, (session,)).save(tmp_path / CSV)
    with device.bench() as bench:
        with pytest.raises(
            InputError, match=rf"measured with onnxruntime 0\.9\.9, here is {bench.version()}"
        ):
            profile(TARGET, LAYERS, out=tmp_path, bench=bench)
        bench._facts["version"] = "0.9.9"
        os.kill(device.agent(), signal.SIGKILL)
        with pytest.raises(RunError, match=r"onnxruntime on device was 0\.9\.9 when profiling began and is"):
            bench.time(LAYERS[0], 0.01, 3)


# -- what it refuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "kind", "told"),
    [
        ("imposter", UnavailableError, r"imposter shows another host key.*wrong:1\).*ssh-keygen -R"),
        ("unknown", UnavailableError, r"host key of unknown is not known here.*by hand.*: ssh unknown$"),
        ("locked", UnavailableError, r"locked refuses the login.*ssh-copy-id locked"),
        ("gone", LinkDownError, r"gone cannot be reached: is it on.*Connection refused"),
        ("no-such-host.invalid", LinkDownError, r"the name of no-such-host\.invalid is not known"),
    ],
)
def test_connections_that_are_not_made(
    device: SshDevice, host: str, kind: type[Exception], told: str
) -> None:
    before = {name: (device.folder / name).read_bytes() for name in ("known", "wrong")}
    with pytest.raises(kind, match=told) as error:
        device.bench(host)
    one_line(error.value)
    assert {name: (device.folder / name).read_bytes() for name in before} == before
    assert not (device.folder / "none").exists()


def test_a_device_without_python(device: SshDevice, tmp_path: Path) -> None:
    with pytest.raises(
        UnavailableError, match=r"device has no Python as .*install Python 3\.11 or newer"
    ) as error:
        device.bench(python=tmp_path / "python9")
    assert "not found" in one_line(error.value)
    old = script(tmp_path / "old", "echo Welcome; echo 3.6.9 >&2; exit 70")
    with pytest.raises(UnavailableError, match=r"old on device is Python 3\.6\.9, the agent needs 3\.11"):
        device.bench(python=old)


def test_a_device_without_the_runtime(device: SshDevice, tmp_path: Path) -> None:
    bare = python_with(tmp_path / "bare", ())
    with pytest.raises(UnavailableError, match=r"on device: the package 'numpy' is not") as error:
        device.bench(python=bare)
    assert f"{bare} -m pip install numpy" in one_line(error.value)
    half = python_with(tmp_path / "half", ("numpy", "numpy.libs"))
    with pytest.raises(UnavailableError, match=r"the runtime 'onnxruntime' is not available") as error:
        device.bench(python=half)
    assert f"{half} -m pip install onnx onnxruntime (there, on device)" in one_line(error.value)


def test_a_full_disk(device: SshDevice, tmp_path: Path) -> None:
    """The agent is written to a device that is always full."""
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / f"{AGENT}.part").symlink_to("/dev/full")
    with pytest.raises(
        RunError, match=rf"the disk of device is full: no room for '{folder}/{AGENT}'"
    ) as error:
        device.bench(folder=str(folder))
    assert "'folder' in the target file" in one_line(error.value)
    assert not list(folder.glob("agent-*")), "nothing half-written stays"
    with pytest.raises(RunError, match=r"cannot write the folder '/dev/null/x' on device: .*Not a directory"):
        device.bench(folder="/dev/null/x")


def test_processors_that_are_not_there(device: SshDevice) -> None:
    with pytest.raises(InputError, match=r"on device: the processors .* may be used, not all of '4000'"):
        device.bench(cores="4000")
    many = Target("test-device", "a processor", "onnxruntime", threads=4000)
    with pytest.raises(InputError, match="4000 threads need 4000 processors"):
        device.bench(target=many)


def test_greetings_are_tolerated_and_told(device: SshDevice, tmp_path: Path) -> None:
    noisy = script(tmp_path / "noisy", f'printf "Good morning! {{1}}"; exec {sys.executable} "$@"')
    with device.bench(python=noisy) as bench:
        assert bench.version()
    ends = script(
        tmp_path / "ends", 'case "$1" in -c) echo "litepose-nas 3 12 0";; *) echo "disk quota"; exit 3;; esac'
    )
    with pytest.raises(LinkDownError, match=r"the agent on device ended with code 3: .*disk quota"):
        device.bench(python=ends)
