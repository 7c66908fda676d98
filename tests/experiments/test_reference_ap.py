"""The comparison with the research pipeline: on one photo, and what it writes down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_it_prints_and_records(shared: Path, tmp_path: Path) -> None:
    golden = json.loads((shared / "golden" / "reference-ap.json").read_text(encoding="utf-8"))
    small = ("--limit", "1", "--threads", "1", "--record", "--results", str(tmp_path))
    done = subprocess.run(
        [sys.executable, "experiments/reference_ap.py", *small],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "reference-ap.json").read_text(encoding="utf-8"))
    page = (tmp_path / "reference-ap.md").read_text(encoding="utf-8")
    assert set(report["settings"]) == {name for name in golden if "flip" in name}
    for name, figures in report["settings"].items():
        assert (figures["images"], figures["resolution"]) == (1, 448)
        assert len(figures["joints_scored"]) == 12
        assert figures["flip"] == (not name.startswith("no-flip"))
        assert figures["project"] == name.endswith("project-to-image")
        assert figures["research_AP"] is None  # of all photos, so nothing to compare one with
        assert f"| {name} | - | {figures['stats']['AP']:.4f} |" in page
    assert report["machine"]["processor"] in page
    assert str(ROOT.parent) not in page + json.dumps(report)
