"""The benchmarks of targets and loader: both ways make the same, and what is measured is recorded."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from search_spaces import litepose_arch, write_arch
from supernet.pose.synthetic import write_dataset

SCRIPTS = Path(__file__).resolve().parents[2] / "experiments/benchmarks"

Bench = Callable[..., None]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Run a benchmark by name as from the command line, in this process; threads are as before afterwards."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name: str, *arguments: str | os.PathLike[str]) -> None:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")

    yield run
    torch.set_num_threads(threads[0])
    cv2.setNumThreads(threads[1])


def record(folder: Path, name: str) -> tuple[dict[str, Any], str]:
    """Return a record for programs and for people, in which no folder of this machine is named."""
    texts = [(folder / f"{name}.{kind}").read_text() for kind in ("json", "md")]
    assert str(folder) not in "".join(texts)
    return json.loads(texts[0]), texts[1]


def test_targets(bench: Bench, tmp_path: Path) -> None:
    sizes = ("--images", "2", "--people", "1", "4", "--joints", "3", "--sides", "12", "20")
    bench("targets", *sizes, "--repeats", "1", "--record", "--results", tmp_path)
    report, page = record(tmp_path, "targets")
    kinds = [name.split(":")[0] for name in report["cases"]]
    expected = ["heatmaps"] * 4 + ["tag indices"] * 4 + ["embedding loss", "heatmap loss at 1/2"] * 2
    assert kinds == expected
    assert all(case["items"] == 2 and case["ratio"]["median"] > 0 for case in report["cases"].values())
    assert "heatmaps: 4 people, 3 joints, 20x20" in page
    assert report["command"].endswith(
        "targets.py --repeats 1 --images 2 --people 1 4 --joints 3 --sides 12 20"
    )


def test_loader_on_drawn_people_with_training_steps(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = litepose_arch(64, 8, (8, 8, 16, 16), (8, 8, 8), depths=(1, 1, 1, 2), kernels=3, expansions=2)
    write_arch(tmp_path / "small.json", small)
    sizes = ("--count", "8", "--resolutions", "61", "--batch-size", "3", "--steps", "1", "--repeats", "1")
    bench("loader", *sizes, "--arch", tmp_path / "small.json", "--record", "--results", tmp_path)
    report, page = record(tmp_path, "loader")
    assert list(report["cases"]) == [
        f"61 px, {how}" for how in ("one thread", "one thread, decoded pictures kept", "two workers")
    ]
    assert report["images"] == 8
    demo, larger = report["steps"]
    assert (demo["steps"], demo["batch_size"], larger["steps"], larger["batch_size"]) == (4, 12, 1, 4)
    assert larger["training"] == "a supernet of the size of small, 64 px"
    printed = capsys.readouterr().out
    for each in (demo, larger):
        assert 0 <= each["wait_share"]["median"] < 1
        assert each["wait_ms"]["median"] <= each["step_ms"]["median"]
        assert each["prepared_step_ms"]["median"] > 0
        assert each["training"] in page and each["training"][:20] in printed


def test_loader_on_files(bench: Bench, tmp_path: Path) -> None:
    annotations = write_dataset(tmp_path / "data", 5, 0, (70, 90))
    where = ("--data", annotations, "--images", tmp_path / "data/images")
    sizes = ("--resolutions", "48", "--batch-size", "2", "--steps", "0", "--repeats", "1")
    bench("loader", *where, *sizes, "--record", "--results", tmp_path)
    report, page = record(tmp_path, "loader")
    assert (report["images"], report["steps"]) == (5, [])
    assert "5 image files (annotations)" in page


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("targets", ["--sides", "4"], "--sides at least 8"),
        ("targets", ["--people", "31"], "--people (at most 30)"),
        ("loader", ["--data", "x.json"], "--data and --images go together"),
        ("loader", ["--count", "0"], "--count"),
        ("loader", ["--count", "8", "--steps", "2"], "--steps 2 need --count 12 at least"),
    ],
)
def test_nonsense_is_refused(
    bench: Bench, name: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench(name, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
