"""The study of predicted and measured latency: its arithmetic, and a tiny run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from latency_tables import LatencyTable, MeasuredNetwork, Row, Target, calibrate
from search_spaces import layers_of, litepose_native
from search_spaces.layers import Piece

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "latency_study.py"
SPACE = litepose_native(joints=14, resolutions=(64, 128))


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("latency_study", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["latency_study"] = module
    spec.loader.exec_module(module)
    return module


def block_ms(piece: Piece) -> float:
    return 0.02 + sum(layer.macs for layer in layers_of(piece)) / 5e6


def timed(ms: float) -> Row:
    return Row(ms, 0.98 * ms, 1.03 * ms, 20, "measured-here", "a clock")


def table(factors: np.ndarray) -> LatencyTable:
    """A table whose networks take ``1 + 1.2 * sum``, times these factors."""
    archs = [SPACE.decode(genes) for genes in SPACE.sample_genotypes(np.random.default_rng(0), len(factors))]
    networks = tuple(
        MeasuredNetwork(arch, 14, timed((1 + 1.2 * sum(map(block_ms, SPACE.blocks(arch)))) * factor))
        for arch, factor in zip(archs, factors.tolist(), strict=True)
    )
    rows = {block: timed(block_ms(block)) for block in SPACE.distinct_blocks()}
    return LatencyTable(Target("bench", "a clock", "fake"), rows, networks=networks)


def test_errors_are_those_of_held_out_networks(study: ModuleType) -> None:
    exact = table(np.ones(20))
    calibrated = calibrate(exact)
    off = tuple(
        replace(network, row=timed(network.row.median_ms * factor))
        for network, factor in zip(exact.networks, [1.0] * 16 + [1 / 1.2] * 4, strict=True)
    )
    found = study.judged(calibrated, off)
    assert found["median_error"] == pytest.approx(0, abs=1e-3)
    assert found["within_10"] == 0.8
    assert found["worst_error"] == pytest.approx(0.2, abs=2e-3)
    assert found["spearman"] <= 1.0
    noisy = calibrate(table(np.exp(0.05 * np.random.default_rng(1).standard_normal(40))))
    assert study.judged(noisy, exact.networks)["coverage"] == 1.0
    assert study.judged(exact, exact.networks)["bias"] < -0.1, "plain sums lack a fifth"


def test_networks_are_chosen_by_the_upper_end(study: ModuleType) -> None:
    calibrated = calibrate(table(np.exp(0.05 * np.random.default_rng(1).standard_normal(30))))
    predictor = study.LatencyPredictor(calibrated)
    chosen = study.chosen_under_budgets(calibrated, SPACE, 5, seed=3)
    assert len({budget for budget, _ in chosen}) == 5
    for budget, arch in chosen:
        upper = predictor.predict(SPACE.blocks(arch)).high_ms
        assert 0.9 * budget < upper <= budget


def test_a_tiny_run_is_recorded_and_goes_on(tmp_path: Path) -> None:
    def run() -> str:
        words = ["--only", "onnxruntime-1t", "--resolutions", "64", "--networks", "6", "3", "2"]
        words += [
            "--seconds",
            "0.002",
            "--rounds",
            "1",
            "--max-rounds",
            "1",
            "--on-drift",
            "warn",
            "--record",
        ]
        done = subprocess.run(
            [sys.executable, SCRIPT, "--output", tmp_path / "tables", "--results", tmp_path, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "of 2 networks exceed their budget" in run()
    page = (tmp_path / "latency-here.md").read_text()
    first = json.loads((tmp_path / "latency-here.json").read_text())["targets"]["onnxruntime-1t"]
    assert first["blocks"] == len(litepose_native(joints=14, resolutions=(64,)).distinct_blocks())
    assert set(first["rows"]) >= {"all blocks", "plain sum of blocks", "30% of the blocks"}
    assert "| onnxruntime-1t | all blocks |" in page and (tmp_path / "latency-here.png").is_file()
    run()
    again = json.loads((tmp_path / "latency-here.json").read_text())["targets"]["onnxruntime-1t"]
    assert again == first, "nothing is measured twice"
