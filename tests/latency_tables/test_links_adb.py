"""Profiling a phone over ADB, against a simulated one: see :mod:`tests.latency_tables.phone`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from latency_tables import LatencyTable, profile
from latency_tables.links import (
    AdbLink,
    LinkDescription,
    LinkDownError,
    ModelWriter,
    parse_benchmark,
    read_linked_target,
)
from latency_tables.profiler import CANARY
from nas.latency import bench_of
from search_spaces import InputError, RunError, UnavailableError
from tests.latency_tables.devices import LAYERS, QUICK
from tests.latency_tables.phone import BINARY, TARGET, Phone, make_phone, true_us, write_model


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    phone = make_phone(tmp_path)
    phone.install()
    return phone


# -- what the program prints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "mean", "ms", "runs"),
    [
        ("count=50 first=249 curr=250 min=247 max=254 avg=249.6 std=1", "249.6", 0.2496, 50),
        ("count=52 first=3 curr=2 min=1 max=9 avg=2.95034e+06 std=10", "2.95034e+06", 2950.34, 52),
        (
            "count=25 first=187 curr=1 min=1 max=195 avg=145528 std=1 p5=140 median=141253 p95=1",
            "1",
            141.253,
            25,
        ),
        ("count=1 curr=3512391", "3.51239e+06", 3512.39, 1),
        ("count=3 curr=12 (all same)", "12", 0.012, 3),
    ],
)
def test_timings_of_all_wordings_are_read(line: str, mean: str, ms: float, runs: int) -> None:
    """The last count is the measurement's: the one before is the warm-up's."""
    text = (
        f"STARTING!\nI tflite: count=9 curr=9 min=9\nI tflite: {line}\n\nI tflite: Inference timings in us:"
        f" Init: 11203, First inference: 24120, Warmup (avg): 7e+09, Inference (avg): {mean}\nNote: ...\n"
    )
    assert parse_benchmark(text) == (pytest.approx(ms), runs)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "STARTING!\nERROR: Failed to load model",
        "count=5 curr=1\nInference (avg): nan",
        "Inference (avg): 3",
    ],
)
def test_output_without_a_timing_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="told no timing"):
        parse_benchmark(text)


# -- the way it goes -----------------------------------------------------------------------------------------


def test_a_table_is_measured_on_a_phone(phone: Phone, tmp_path: Path) -> None:
    with phone.bench() as bench:
        table = profile(TARGET, LAYERS, out=tmp_path, settings=QUICK, bench=bench)
    for layer in LAYERS:
        assert table.rows[layer].median_ms == pytest.approx((true_us(layer) - true_us(None)) / 1e3, rel=1e-4)
        assert table.rows[layer].runs == QUICK.rounds * 3 * 7
    assert LatencyTable.load(tmp_path / f"{TARGET.name}.csv") == table
    (session,) = table.sessions
    assert (session["processor"], session["system"].split()[:2]) == ("Pixel 4 SM8150", ["Android", "13"])
    assert session["pinned"].endswith("by taskset")
    assert "one for each call" in session["samples"]
    assert session["runtime_version"].startswith("benchmark_model sha256:")
    assert "load_1min" in session["machine_before"]
    assert not list((phone.root / "litepose-nas").iterdir()), "files do not pile up"
    assert all("--use_xnnpack=true" in call and "--num_threads=1" in call for call in phone.calls())


def test_a_whole_network_is_timed(phone: Phone, tmp_path: Path) -> None:
    path = tmp_path / "network.tflite"
    path.write_bytes(write_model(CANARY)[0])
    with phone.bench(calls=2) as bench:
        samples = bench.time_model(path, (64, 64), 0.1, 4)
        assert samples.ms == pytest.approx([true_us(CANARY) / 1e3] * 2)
        assert samples.loop == 7
        phone.install(newer=True)
        assert bench.time(CANARY, 0.1, 4) == samples
        with pytest.raises(InputError, match="does not exist"):
            bench.time_model(tmp_path / "absent.tflite", (64, 64), 0.1, 4)
    assert all("--num_runs=2" in call for call in phone.calls())


def test_delegates_and_processors(phone: Phone) -> None:
    with phone.bench(delegate="gpu", cores="0") as bench:
        bench.time(None, 0.01, 1)
        assert bench.system()["pinned"] == "processors 0, by taskset"
    assert all("--use_gpu=true --gpu_precision_loss_allowed=false" in call for call in phone.calls())
    with phone.bench(cores="all") as bench:
        assert bench.system()["pinned"] == "not pinned, as asked"
    with pytest.raises(InputError, match="not all of '4000': correct 'cores'"):
        phone.bench(cores="4000")
    with pytest.raises(InputError, match="a delegate is one of xnnpack, none, gpu, not 'npu'"):
        phone.bench(delegate="npu")


def test_the_command_takes_a_phone(phone: Phone, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the target's runtime, its precision and its link."""
    link = LinkDescription(adb="R58M", binary=BINARY, delegate="none")
    with pytest.raises(UnavailableError, match="no files of the runtime 'test' can be written"):
        bench_of(replace(TARGET, runtime="test"), link)
    asked: list[str] = []

    def make(precision: str) -> ModelWriter:
        asked.append(precision)
        return write_model

    monkeypatch.setattr("nas.latency.MODEL_WRITERS", {"litert": make})
    with bench_of(TARGET, link) as bench:
        assert bench.time(None, 0.01, 3).loop == 7
    assert asked == ["fp32"]
    assert all("--use_xnnpack=false" in call for call in phone.calls())


# -- what it survives, what it refuses -----------------------------------------------------------------------


def test_a_phone_that_is_unplugged_for_a_moment(phone: Phone) -> None:
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            phone.works()

    with phone.bench(sleep=sleep) as bench:
        phone.answers("adb: device 'R58M' not found")
        assert bench.time(LAYERS[0], 0.01, 3).ms == pytest.approx([true_us(LAYERS[0]) / 1e3] * 3)
        assert len(waits) == 2
        waits += [0.0]
        phone.answers("error: device offline")
        with pytest.raises(RunError, match=r"gave up timing the empty call on the phone .*is kept"):
            bench.time(None, 0.01, 3)


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("adb: no devices/emulators found", LinkDownError, "the phone R58M is not attached: plug it in"),
        ("error: device unauthorized.", UnavailableError, "has not authorised this computer: unlock it"),
        ("adb: more than one device/emulator", InputError, "name one as 'adb: SERIAL'"),
        ("error: device offline", LinkDownError, "the ADB link to the phone R58M is down"),
        ("", LinkDownError, "the ADB link to the phone R58M ended"),
    ],
)
def test_phones_that_are_not_reached(phone: Phone, said: str, kind: type[Exception], told: str) -> None:
    phone.answers(said, 1 if said else 255)
    with pytest.raises(kind, match=told) as error:
        phone.bench()
    assert "\n" not in str(error.value)


def test_without_adb_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnavailableError, match="the phone needs the program 'adb' here: install it"):
        AdbLink().run("true")


def test_a_phone_without_the_program(phone: Phone) -> None:
    (phone.root / "benchmark_model").chmod(0o644)
    with pytest.raises(UnavailableError, match=r"benchmark_model' may not be executed on the phone R58M"):
        phone.bench()
    (phone.root / "benchmark_model").unlink()
    with pytest.raises(UnavailableError, match=r"benchmark_model' is not there on the phone R58M") as error:
        phone.bench()
    assert f"adb -s R58M push benchmark_model {BINARY} && adb -s R58M shell chmod 755" in str(error.value)


def test_a_full_phone(phone: Phone) -> None:
    with phone.bench() as bench:
        text = (phone.adb).read_text()
        phone.adb.write_text(
            text.replace(
                "push)", "push) echo 'adb: error: write failed: No space left on device'; exit 1;;\nx)"
            )
        )
        with pytest.raises(RunError, match="the disk of the phone R58M is full: no room for"):
            bench.time(None, 0.01, 3)


def test_pieces_that_the_program_or_the_delegate_refuses(phone: Phone) -> None:
    with phone.bench() as bench:
        phone.install(executed="will not")
        with pytest.raises(UnavailableError, match="'xnnpack' on the phone R58M does not execute"):
            bench.time(None, 0.01, 3)
    with phone.bench() as bench:
        (phone.root / "benchmark_model").write_text("#!/bin/sh\necho 'ERROR: unresolved custom op'; exit 1\n")
        with pytest.raises(UnavailableError, match=r"cannot time .*\(code 1\): .*unresolved custom op"):
            bench.time(CANARY, 0.01, 3)
    assert not list((phone.root / "litepose-nas").iterdir())


def test_files_travel_both_ways(phone: Phone, tmp_path: Path) -> None:
    link, here, back = AdbLink("R58M"), tmp_path / "here", tmp_path / "back"
    here.write_bytes(bytes(range(256)))
    link.push(here, "/data/local/tmp/there")
    link.pull("/data/local/tmp/there", back)
    assert back.read_bytes() == here.read_bytes()
    with pytest.raises(RunError, match="cannot read '/data/local/tmp/absent' on the phone R58M"):
        link.pull("/data/local/tmp/absent", back)


# -- target files --------------------------------------------------------------------------------------------


def test_target_files_say_how_to_get_there(tmp_path: Path) -> None:
    path = tmp_path / "target.yaml"
    path.write_text(yaml.safe_dump(TARGET.to_dict()))
    assert read_linked_target(path) == (TARGET, None)
    path.write_text(
        yaml.safe_dump({**TARGET.to_dict(), "link": {"ssh": "pi@kitchen", "port": 2222, "cores": 3}})
    )
    target, link = read_linked_target(path)
    assert target == TARGET
    assert link == LinkDescription(ssh="pi@kitchen", port=2222, cores="3")
    assert link.to_dict() == {"ssh": "pi@kitchen", "port": 2222, "cores": "3"}


@pytest.mark.parametrize(
    ("link", "told"),
    [
        ({}, "names one way"),
        ({"ssh": "pi@a", "adb": "any"}, "names one way"),
        ({"shs": "pi@a"}, "unknown key 'shs'; did you mean 'ssh'"),
        ({"ssh": "pi@a", "port": 0}, "'port' is a whole number"),
        ({"ssh": "pi@a", "port": "22"}, "'port' is a whole number"),
        ({"ssh": ["pi@a"]}, "'ssh' is a line of text"),
        ({"ssh": "pi@a", "cores": "3-1"}, "cores are processor numbers"),
        ({"ssh": "pi@a", "delegate": "gpu"}, "'delegate' is for the benchmark program"),
        ({"adb": "any", "delegate": "npu"}, "'delegate' is one of"),
        ({"adb": "any", "python": "python3"}, "'port' and 'python' are for ssh"),
        ("pi@a", "must be a mapping"),
    ],
)
def test_wrong_links_are_refused(tmp_path: Path, link: object, told: str) -> None:
    path = tmp_path / "target.yaml"
    path.write_text(yaml.safe_dump({**TARGET.to_dict(), "link": link}))
    with pytest.raises(InputError, match=told) as error:
        read_linked_target(path)
    assert str(error.value).startswith(f"target file '{path}': link")


def test_hosts_are_no_options(tmp_path: Path) -> None:
    for wrong in ("-oProxyCommand=x", "a b"):
        with pytest.raises(InputError, match="an SSH host is"):
            LinkDescription(ssh=wrong).open()
        with pytest.raises(InputError, match="an ADB serial is"):
            LinkDescription(adb=wrong).open()
