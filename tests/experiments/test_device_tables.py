"""The script that makes the packaged tables: equal data, equal files; errors say what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from experiments.device_tables import label
from latency_tables.published import published_file
from latency_tables.table import packaged_folder

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments/device_tables.py"
RESULTS = ROOT / "experiments/results"
NAMES = ("jetson-nano", "raspberry-pi-4", "snapdragon-855")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    done = run(
        *("--data", str(shared / "latency"), "--tables", str(folder / "tables")),
        *("--published", str(folder / "published.csv"), "--results", str(folder)),
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_script_makes_what_is_shipped(made: Path) -> None:
    for shipped in packaged_folder().iterdir():
        assert (made / "tables" / shipped.name).read_bytes() == shipped.read_bytes(), shipped.name
    assert (made / "published.csv").read_bytes() == published_file().read_bytes()
    for name in ("device-tables.json", "device-tables.md"):
        assert (made / name).read_bytes() == (RESULTS / name).read_bytes()
    for name in NAMES:
        assert (made / f"device-tables-{name}.png").stat().st_size > 10_000


def test_the_record_says_what_the_tables_say(made: Path) -> None:
    report = json.loads((made / "device-tables.json").read_text())
    assert [each["device"] for each in report["devices"]] == [
        "snapdragon-855",
        "raspberry-pi-4",
        "jetson-nano",
    ]
    for each in report["devices"]:
        worst = max(
            max(net["left_out_ms"] / net["published_ms"], net["published_ms"] / net["left_out_ms"])
            for net in each["networks"]
        )
        assert each["interval_factor"] == pytest.approx(worst, rel=1e-4)
        best = min(each["candidates"], key=lambda model: model["family_left_out"]["rms_log_error"])
        assert best["family_left_out"] == each["candidates"][0]["family_left_out"]
        assert max(model["coefficients"] for model in each["candidates"]) <= 3
        families = each["family_left_out_with_the_choice"]
        assert set(families) == {"LitePose", "EfficientHRNet", "HigherHRNet"}
        assert each["other_runtimes"]
    for counts in report["without_table"]["devices"].values():
        assert counts["timings_of_whole_networks"] > 100
        assert counts["pose_networks_with_layers_at_hand"] == counts["layers_or_blocks_measured"] == 0


def test_nothing_is_written_without_the_measurements(tmp_path: Path) -> None:
    done = run("--data", str(tmp_path / "absent"), "--tables", str(tmp_path / "tables"))
    assert done.returncode == 2
    assert "pose_net_layers.csv' does not exist; --data names the folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "tables").exists()


def test_a_picture_names_every_network_beside_its_own_dot() -> None:
    report = json.loads((RESULTS / "device-tables.json").read_text())
    for device in report["devices"]:
        axes = Figure().add_subplot()
        ends = [x for each in device["networks"] for x in (each["published_ms"], each["left_out_ms"])]
        low, high = min(ends) / 1.5, max(ends) * 1.5
        label(axes, device["networks"], low, high)
        dots = {(each["published_ms"], each["left_out_ms"]) for each in device["networks"]}

        def place(point: tuple[float, float], low: float = low, high: float = high) -> Any:
            return np.log(np.array(point) / low) / np.log(high / low) * (400, 355)

        named = {text.get_text(): text for text in axes.texts}
        assert named.keys() == {"XS", "S", "M", "L", "H-1", "H-2", "H-3", "W16", "W24"}
        for name, text in named.items():
            assert isinstance(text, Annotation)
            there = place(text.xy) + np.array(text.get_position())
            others = [place(dot) for dot in dots - {tuple(text.xy)}]
            assert min(float(np.hypot(*(there - other))) for other in others) > 12, (device["device"], name)
