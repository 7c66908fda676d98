"""The decoding benchmark: both ways find the same people, and it records what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_both_ways_agree_and_are_recorded(tmp_path: Path) -> None:
    small = ("--repeats", "1", "--sizes", "48/2,64/12")
    done = subprocess.run(
        [sys.executable, "experiments/benchmarks/decode.py", *small, "--record", "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "decode.json").read_text(encoding="utf-8"))
    assert list(report["cases"]) == ["48x48 maps, 2 people", "64x64 maps, 12 people"]
    page = (tmp_path / "decode.md").read_text(encoding="utf-8")
    for name, figures in report["cases"].items():
        assert figures["ours_ms"]["median"] > 0
        assert name in page
    assert str(tmp_path) not in page + json.dumps(report)
