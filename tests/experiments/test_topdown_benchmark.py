"""The benchmark of top-down decoding: both ways find the same, and what is measured is recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_both_ways_agree_and_are_recorded(tmp_path: Path) -> None:
    small = ("--repeats", "1", "--people", "3", "--sizes", "32x24", "--found", "7")
    done = subprocess.run(
        [sys.executable, "experiments/benchmarks/topdown.py", *small, "--record", "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "topdown.json").read_text(encoding="utf-8"))
    cases = ["argmax, 32x24 maps", "quarter, 32x24 maps", "dark, 32x24 maps", "OKS-NMS, 7 people"]
    assert list(report["cases"]) == cases
    assert report["errors_in_cells"]["0"]["dark"] < report["errors_in_cells"]["0"]["quarter"] / 100
    page = (tmp_path / "topdown.md").read_text(encoding="utf-8")
    for name, figures in report["cases"].items():
        assert figures["ours_ms"]["median"] > 0
        assert name in page
    assert str(tmp_path) not in page + json.dumps(report)
