"""The pricing benchmark: it runs, agrees with itself, and records what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments/benchmarks/pricing.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_it_prints_and_records(tmp_path: Path) -> None:
    small = ("--networks", "2000", "--sample", "5", "--repeats", "3")
    done = run(*small, "--record", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "pricing.json").read_text())
    assert (report["networks"], report["sampled"], report["repeats"]) == (2000, 5, 3)
    assert report["command"].endswith("pricing.py --repeats 3 --sample 5 --networks 2000")
    for figures in report["prices"].values():
        for name, value in figures.items():
            assert len(value["all"]) == 3, name
            assert min(value["all"]) <= value["median"] <= max(value["all"]), name
            assert value["median"] > 0, name
        # The ratio is what its parts say, repeat by repeat.
        rate, cold, ratio = (figures[key]["all"] for key in ("each_rate", "cold_s", "cold_ratio"))
        for each, seconds, times in zip(rate, cold, ratio, strict=True):
            assert abs(2000 / seconds / each / times - 1) < 1e-3
    page = (tmp_path / "pricing.md").read_text()
    assert "2,000 networks of litepose-native" in page
    assert report["machine"]["processor"] in page
    assert str(tmp_path) not in page + json.dumps(report)


def test_without_record_nothing_is_written(tmp_path: Path) -> None:
    done = run("--networks", "50", "--sample", "2", "--repeats", "1", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "latency" in done.stdout
    assert not list(tmp_path.iterdir())


def test_nonsense_is_refused() -> None:
    for wrong in (["--repeats", "0"], ["--space", "litepose-extended"]):
        done = run(*wrong)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
