"""The evaluator's benchmark: both ways give the same AP, and it records what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
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
    assert max(each["ap"] for each in report["search"]) > 0.05
    assert str(tmp_path) not in page + json.dumps(report)


def test_options_that_do_not_fit_are_refused() -> None:
    done = run("--data", "x")
    assert done.returncode == 2
    assert "go together" in done.stderr and "Traceback" not in done.stderr
