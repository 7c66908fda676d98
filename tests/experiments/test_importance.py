"""The comparison of channel orders: on few pictures, and what it writes down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "experiments/importance.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_random_order_loses_most(shared: Path, tmp_path: Path) -> None:
    done = run(
        *("--shared", str(shared), "--resolution", "128", "--calibration", "8", "--images", "4"),
        *("--cuts", "stage2 72 to 56", "--orders", "random 0", "as trained", "reading"),
        *("--record", "--results", str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "importance.json").read_text(encoding="utf-8"))
    page = (tmp_path / "importance.md").read_text(encoding="utf-8")
    lost = {name: sum(each) / len(each) for name, each in report["cuts"]["stage2 72 to 56"].items()}
    assert list(lost) == ["random 0", "as trained", "reading"]
    assert 0 < lost["as trained"] < lost["random 0"]
    assert f"| stage2 72 to 56 | {lost['random 0']:.4f} | {lost['as trained']:.4f} |" in page
    assert report["machine"]["processor"] in page
    assert str(shared.parent) not in page + json.dumps(report)


def test_an_order_that_there_is_not_is_told(shared: Path) -> None:
    done = run(
        "--shared",
        str(shared),
        "--resolution",
        "64",
        "--calibration",
        "1",
        "--images",
        "1",
        "--orders",
        "readin",
    )
    assert done.returncode == 2
    assert done.stderr == "error: --orders: there is no order 'readin'; did you mean 'reading'?\n"
