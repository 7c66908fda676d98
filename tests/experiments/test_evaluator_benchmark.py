"""The evaluator's benchmark: both ways give the same AP, and it records what it says."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from nas.search.result import SearchResult
from search_spaces import Arch, get_arch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the benchmark's script defines."""
    folder = ROOT / "experiments" / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    return SimpleNamespace(**runpy.run_path(str(folder / "evaluator.py")))


SMALL = (
    *("--images", "16", "--calibration", "8", "--resolution", "64", "--candidates", "2"),
    *("--evaluations", "4", "--threads", "1", "--repeats", "1"),
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "experiments/benchmarks/evaluator.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def check(report: dict[str, object], page: str) -> None:
    found = report["ap"]
    assert isinstance(found, list) and len(found) == 2
    assert all(abs(each["baseline"] - each["ours"]) <= 5e-4 for each in found)
    assert max(each["baseline"] for each in found) > 0.05, "an AP of 0 would be equal whatever was done"
    assert isinstance(report["largest_ap_difference"], float)
    assert "naive loop" in page


def test_both_ways_agree_and_are_recorded(tmp_path: Path) -> None:
    done = run(*SMALL, "--record", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "evaluator-litepose-xs.json").read_text(encoding="utf-8"))
    page = (tmp_path / "evaluator-litepose-xs.md").read_text(encoding="utf-8")
    check(report, page)
    names = [name.partition(", ")[2] for name in report["cases"]]
    whole = "a whole search (0 of 4 ended early)"  # there are too few pictures to stop
    assert names == ["alone", "in a search", whole]
    assert [figures["items"] for figures in report["cases"].values()] == [2, 2, 4]
    assert all(figures["ours_ms"]["median"] > 0 for figures in report["cases"].values())
    assert max(each["baseline"] for each in report["search"]) > 0.05
    assert all(abs(each["baseline"] - each["ours"]) < 5e-3 for each in report["search"])
    assert str(tmp_path) not in page + json.dumps(report)


def searched(*found: tuple[int, float, bool]) -> tuple[list[Arch], SearchResult]:
    """Return networks, and a search that found (MACs, AP, ended early) of them."""
    archs = [get_arch("litepose-xs").replace(resolution=64 * (1 + place)) for place in range(len(found))]
    records = tuple(
        SimpleNamespace(arch=arch, macs=macs, ap=ap, partial=partial)
        for arch, (macs, ap, partial) in zip(archs, found, strict=True)
    )
    return archs, cast(SearchResult, SimpleNamespace(records=records))


@pytest.mark.parametrize(
    ("baseline", "found", "wrong"),
    [
        ((0.3, 0.2), [(9, 0.3, False), (5, 0.2, False)], None),
        ((0.3, 0.2), [(9, 0.3, False), (5, 0.21, False)], "differ by 0.01000"),
        ((0.3, 0.303), [(9, 0.3004, False), (5, 0.3, False)], "on the average"),
        ((0.3, 0.31, 0.1), [(9, 0.3, False), (5, 0.31, False), (7, 0.15, True)], None),
        ((0.3, 0.2, 0.25), [(9, 0.3, False), (5, 0.2, False), (7, 0.15, True)], "was stopped, but is on"),
        ((0.3, 0.2, 0.204), [(9, 0.3, False), (5, 0.2, False), (7, 0.15, True)], None),
    ],
)
def test_what_a_search_finds_is_what_the_loop_finds(
    script: SimpleNamespace,
    baseline: tuple[float, ...],
    found: list[tuple[int, float, bool]],
    wrong: str | None,
) -> None:
    archs, ours = searched(*found)
    told = script.same_finding(dict(zip(archs, baseline, strict=True)), ours)
    assert told is None if wrong is None else told is not None and wrong in told
    assert script.same_finding({archs[0]: baseline[0]}, ours) is not None  # other networks


def test_a_front_by_hand(script: SimpleNamespace) -> None:
    assert script.front([1, 2, 3, 2], [0.1, 0.3, 0.2, 0.2]) == [0, 1]
    assert script.front([2, 2], [0.3, 0.3]) == [0, 1]


def test_options_that_do_not_fit_are_refused() -> None:
    done = run("--run", "x", "--data", "x", "--base", "litepose-s")
    assert done.returncode == 2 and "--run has its own networks" in done.stderr
    done = run("--data", "x")
    assert done.returncode == 2
    assert "go together" in done.stderr and "Traceback" not in done.stderr
