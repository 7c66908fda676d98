"""``nas tables export-trtexec`` and ``import-trtexec``, and ``nas profile`` with LiteRT."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from latency_tables import RUNTIMES, LatencyTable
from latency_tables.holding import held_table
from latency_tables.machine import processor_name
from tests.latency_tables.test_tensorrt import ARCH, LOG, fused, profile, times
from tests.nas.conftest import Outcome

Nas = Callable[..., Outcome]
TARGET = "device: jetson-nano\nprocessor: 128 Maxwell cores\nruntime: tensorrt\nprecision: fp16\n"


@pytest.fixture
def arch(box: Path) -> str:
    (box / "tiny.json").write_text(json.dumps(ARCH.to_json()))
    return "tiny.json"


@pytest.fixture
def measured(box: Path, nas_: Nas, arch: str) -> Path:
    """A folder that went to a device and came back."""
    told = nas_("tables", "export-trtexec", "jetson", "--for", arch, "--repeats", 1)
    assert told.code == 0
    assert "nas tables import-trtexec jetson" in told.err
    (box / "nano.yaml").write_text(TARGET)
    out = box / "jetson" / "out"
    out.mkdir()
    for model in (box / "jetson" / "models").iterdir():
        (out / f"{model.stem}.1.profile.json").write_text(profile(fused(model)))
        (out / f"{model.stem}.1.times.json").write_text(times([5.0]))
        (out / f"{model.stem}.1.log").write_text(LOG)
    return box


IMPORT = ("tables", "import-trtexec", "jetson", "--target", "nano.yaml", "--source", "my Nano")


def test_profiles_of_a_device_become_a_table(measured: Path, nas_: Nas) -> None:
    told = nas_(*IMPORT, "--own-device")
    assert told.code == 0
    assert "measured-here" in told.out
    table = LatencyTable.load(measured / "tables" / "jetson-nano-tensorrt-fp16-1t.csv")
    assert set(table.rows) == set(ARCH.blocks(14))
    assert table.sessions[0]["command"].startswith("nas")
    again = nas_(*IMPORT)
    assert again.code == 2
    assert "exists already" in again.err
    found: dict[str, Any] = json.loads(nas_(*IMPORT, "--force", "--json").out)
    assert (found["rows"], found["networks"]) == (len(table), 1)
    assert found["provenance"] == "measured-by-others"
    shown = nas_("tables", "show", "jetson-nano-tensorrt-fp16-1t")
    assert shown.code == 0
    assert "runtime version 8201" in shown.out


def test_enough_networks_calibrate_the_table(measured: Path, nas_: Nas) -> None:
    out = measured / "jetson" / "out"
    work = json.loads((measured / "jetson" / "work.json").read_text())
    (model,) = (measured / "jetson" / "models").iterdir()
    records = fused(model)
    for i in range(5):  # other widths of the head: the same layers by other names
        arch = ARCH.replace(head__deconv2__width=16 + 8 * i).to_json()
        work["models"].append({"name": f"n{i}", "arch": arch, "joints": 14})
        (out / f"n{i}.1.profile.json").write_text(profile(records))
        (out / f"n{i}.1.times.json").write_text(times([5.0]))
    (measured / "jetson" / "work.json").write_text(json.dumps(work))
    told = json.loads(nas_(*IMPORT, "--json").out)
    assert (told["networks"], told["calibrated"]) == (6, True)
    table = LatencyTable.load(measured / "tables" / "jetson-nano-tensorrt-fp16-1t.csv")
    assert table.calibration is not None
    assert table.calibration.networks == 6


def test_blocks_are_exported_alone_on_demand(box: Path, nas_: Nas, arch: str) -> None:
    assert nas_("tables", "export-trtexec", "jetson", "--for", arch, "--blocks").code == 0
    models = [path.stem.partition("-")[0] for path in (box / "jetson" / "models").iterdir()]
    assert models.count("piece") == len(set(ARCH.blocks(14)))
    assert models.count("network") == 1
    again = nas_("tables", "export-trtexec", "jetson", "--for", arch)
    assert again.code == 2
    assert "holds something already" in again.err


def test_a_table_that_is_there_since_is_not_overwritten(
    measured: Path, nas_: Nas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when another command saves it after this one has looked."""
    path = measured / "tables" / "jetson-nano-tensorrt-fp16-1t.csv"

    @contextmanager
    def late(file: Path) -> Iterator[Path]:
        with held_table(file) as held:
            held.write_text("another's")
            yield held

    monkeypatch.setattr("nas.trtexec.held_table", late)
    told = nas_(*IMPORT)
    assert told.code == 2 and "exists already; choose another --output" in told.err
    assert path.read_text() == "another's"


def test_a_damaged_profile_is_told_and_nothing_written(measured: Path, nas_: Nas) -> None:
    (path,) = (measured / "jetson" / "out").glob("*.profile.json")
    path.write_text(path.read_text()[:-9])
    told = nas_(*IMPORT)
    assert told.code == 2
    assert f"{path.name}' is not valid JSON" in told.err
    assert not (measured / "tables").exists()


@pytest.mark.skipif(RUNTIMES["litert"].unavailable() is not None, reason="LiteRT is not installed")
def test_a_profile_in_int8_with_litert(box: Path, nas_: Nas, arch: str) -> None:
    (box / "own.yaml").write_text(
        f"device: own\nprocessor: {processor_name()}\nruntime: litert\nprecision: int8\nthreads: 1\n"
    )
    quick = ("--seconds-per-layer", 0.002, "--rounds", 1, "--networks", 1, "--on-drift", "warn")
    told = nas_("profile", "own.yaml", "--for", arch, *quick)
    assert told.code == 0, told.err
    table = LatencyTable.load(box / "tables" / "own-litert-int8-1t.csv")
    assert set(ARCH.blocks(14)) == set(table.rows)
    assert all(row.source.startswith("litert ") for row in table.rows.values())
    assert [network.arch for network in table.networks] == [ARCH]
