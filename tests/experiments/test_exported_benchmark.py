"""The benchmarks of exported networks: every variant computes the same, and what is measured is recorded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from search_spaces import litepose_arch
from search_spaces.registry import write_arch

ROOT = Path(__file__).resolve().parents[2]
ARCH = litepose_arch(64, 8, (8, 16, 8, 8), (8, 16, 8), depths=1, kernels=(3, 5, 7, 7), expansions=2)


def run(name: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, f"experiments/benchmarks/{name}.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_variants_agree_and_are_recorded(tmp_path: Path) -> None:
    write_arch(tmp_path / "tiny.json", ARCH)
    small = ("--repeats", "1", "--threads", "1", "--networks", str(tmp_path / "tiny.json"))
    record = ("--runtimes", "onnxruntime", "openvino", "--record", "--results", str(tmp_path))
    run("exported", *small, *record)
    report = json.loads((tmp_path / "exported.json").read_text(encoding="utf-8"))
    found = report["networks"]["tiny"]
    assert found["rewritten_places"] == {"phases": 6, "interleave": 3, "padding": 5}
    variants = found["variants"]
    wanted = {"PyTorch eager", "ONNX Runtime: plain export", "ONNX Runtime: phases, interleave, padding"}
    assert wanted <= set(variants)
    assert "openvino" in report["left_out"] or "OpenVINO: phases" in variants
    for name, figures in variants.items():
        assert figures["median_ms"] > 0
        assert figures["visits"] == 1
        if "int8" not in name and "bf16" not in name:
            assert figures["largest_error"] < 1e-4, name
    page = (tmp_path / "exported.md").read_text(encoding="utf-8")
    assert all(f"| {name} |" in page for name in variants)
    assert "## tiny, 64x64" in page
    assert str(tmp_path) not in page


def test_rewrites_are_held_against_the_plain_file_and_recorded(tmp_path: Path) -> None:
    write_arch(tmp_path / "tiny.json", ARCH)
    small = ("--repeats", "2", "--threads", "1", "--networks", str(tmp_path / "tiny.json"))
    record = ("--runtimes", "onnxruntime", "--record", "--results", str(tmp_path))
    run("rewrites", *small, *record)
    (case,) = json.loads((tmp_path / "rewrites.json").read_text(encoding="utf-8"))["cases"]
    files = case["networks"]["tiny"]
    names = ["plain export", "batch norm folded", "phases", "phases, interleave"]
    assert list(files) == [*names, "phases, interleave, padding"]
    assert files["plain export"]["ratio"] == 1
    assert all(each["off"] <= 3e-5 and each["fastest_ms"] > 0 for each in files.values())
    assert all(each["ratio_95"][0] <= each["ratio"] <= each["ratio_95"][1] for each in files.values())
    page = (tmp_path / "rewrites.md").read_text(encoding="utf-8")
    assert "## ONNX Runtime, one thread, processor time" in page
    assert str(tmp_path) not in page
