"""The anchored supernet's measurements: on drawn people, killed and continued, and what they write down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nas.data import open_datasets
from nas.recipe import load_recipe
from supernet.checkpoint import save_network
from supernet.registry import build_network
from tests.nas import tiny
from tests.supernet.tiny import space

ROOT = Path(__file__).resolve().parents[2]


def recipe_in(folder: Path) -> Path:
    """Write a recipe like the real one's: two sources, one of them the teacher's, and a checkpoint."""
    whole = space(resolutions=[64]).largest()
    save_network(folder / "start.safetensors", build_network(whole, 17, torch.Generator().manual_seed(1)))
    values = tiny.values(
        init="start.safetensors",
        space__resolutions=[64],
        evaluate__grouping={"detection_threshold": 0.01},
        train__distill={"source": "teacher", "teacher": "start.safetensors"},
    )
    drawn = values["data"]["train"]
    drawn["synthetic"]["size"] = [64, 64]
    other = {"synthetic": {**drawn["synthetic"], "seed": 9}, "labels": "none", "share": 1}
    values["data"]["train"] = [{**drawn, "share": 1}, other]
    path = folder / "anchored.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def command(recipe: Path, run: Path, results: Path) -> list[str]:
    options = ("--random", "2", "--resamples", "20", "--threads", "1", "--record")
    script = [sys.executable, "experiments/anchored.py", str(recipe)]
    return [*script, "--output", str(run), "--results", str(results), *options]


def finish(line: list[str]) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], str]:
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    results = Path(line[line.index("--results") + 1])
    assert done.returncode in (0, 1), done.stderr
    return done, json.loads((results / "anchored.json").read_text()), (results / "anchored.md").read_text()


def figures(record: dict[str, Any]) -> dict[str, Any]:
    return {key: record[key] for key in ("checkpoint", "networks", "largest_against_checkpoint", "steps")}


def test_killed_and_continued_it_records_what_it_would_have(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    done, record, page = finish(command(recipe, tmp_path / "run", tmp_path))
    names = [each["network"] for each in record["networks"]]
    assert names == ["largest", "smallest", "random 1", "random 2"]
    assert len({each["id"] for each in record["networks"]}) == 4
    assert record["networks"][0]["macs"] > record["networks"][1]["macs"]
    for each in (record["checkpoint"], *(each["after"] for each in record["networks"])):
        low, high = each["interval"]
        assert 0 <= low <= high <= 1
    against = record["largest_against_checkpoint"]["AP"]
    assert against == record["networks"][0]["after"]["AP"] - record["checkpoint"]["AP"]
    assert done.returncode == (1 if against < -0.02 else 0)
    assert record["images"]["val"] == 6 and record["steps"] == record["images"]["train"] // 4 * 2
    assert f"| largest | {record['networks'][0]['macs'] / 1e9:.3f} |" in page
    assert str(tmp_path) not in page and str(ROOT.parent) not in page

    second = tmp_path / "second"
    line = command(recipe, second, tmp_path)
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while time.monotonic() < until and len(list((second / "anchored").glob("before-*.json"))) < 2:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(list((second / "anchored").glob("before-*.json"))) >= 2
    again = finish(line)[1]
    assert figures(again) == figures(record)


def test_the_real_recipe_can_be_opened(shared: Path) -> None:
    recipe = load_recipe(ROOT / "experiments/recipes/coco-lspet-anchored.yaml")
    assert recipe.init is not None and recipe.init.is_file()
    assert recipe.train.distill.teacher is not None and recipe.train.distill.teacher.is_file()
    data = open_datasets(recipe)
    coco, lspet = data.train.sources()
    assert len(lspet) > len(coco) > 100
    assert coco.labelled_joints(0).sum() == 12 and not lspet.labelled_joints(0).any()
    assert len(data.search.sources()[1]) == 0 and len(data.search) > 0
    order = data.train.epoch_order(np.random.default_rng(0)) % len(data.train)
    assert (order < len(coco)).mean() == pytest.approx(0.5, abs=0.01)
    steps = recipe.train.epochs * (len(data.train) // recipe.train.batch_size)
    assert 900 <= steps <= 1000
