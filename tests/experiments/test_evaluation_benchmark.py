"""The benchmark of evaluation: both sides give the same figures, and what is measured is recorded."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from supernet.pose.matching import match_detections
from supernet.pose.skeleton import COCO17
from supernet.pose.synthetic import write_dataset

SCRIPTS = Path(__file__).resolve().parents[2] / "experiments/benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("evaluation")


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluation", *map(str, arguments)])
    script.main()


def test_it_records(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = ("--images", 40, "--bootstrap-images", 30, "--resamples", 3, "--repeats", 1)
    run(script, monkeypatch, *small, "--record", "--results", tmp_path)
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert [case["items"] for case in report["cases"].values()] == [1, 1, 3, 3]
    assert all(case["ratio"]["median"] > 0 for case in report["cases"].values())
    assert set(report["seconds_of_1000_resamples"]) == {"40 images", "30 images"}
    page = (tmp_path / "evaluation.md").read_text()
    assert "3 resamples of 30 images: run anew" in page
    assert str(tmp_path) not in page + json.dumps(report)


def test_a_users_data_can_be_measured(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_dataset(tmp_path / "drawn", 8, seed=3, size=(64, 64))
    truth = json.loads(path.read_text())
    found = tmp_path / "found.json"
    found.write_text(json.dumps(script.disturbed(truth, COCO17, seed=0)))
    run(script, monkeypatch, "--data", path, "--detections", found, "--resamples", 2, "--repeats", 1)
    assert "2 resamples of 8 images" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(script, monkeypatch, "--detections", found)


def test_the_baselines_are_what_they_say(script: ModuleType) -> None:
    """Figures that are worth comparing, by three ways that share no code."""
    truth = script.made_up(30, seed=5)
    found = script.disturbed(truth, COCO17, seed=6)
    weights = np.random.default_rng(0).integers(0, 3, (4, 30))
    arguments: tuple[Any, ...] = (truth, found, COCO17, weights)
    anew = script.run_anew(*arguments)
    assert len(set(anew.tolist())) == 4 and (anew > 0.1).all() and (anew < 0.9).all()
    np.testing.assert_allclose(script.accumulated_anew(*arguments), anew, atol=1e-9)
    ours = match_detections(truth, found, COCO17.sigmas).ap(weights)
    assert script.agree_each(anew, ours) is None
    assert script.agree_each(anew, ours + 1e-4) is not None
