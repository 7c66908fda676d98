"""The experiment on extraction: on a tiny run, and that it would notice."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from nas.data import open_datasets
from nas.run import RunDirectory
from nas.train import make_evaluator, open_supernet, train
from tests.nas import tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def experiment() -> ModuleType:
    spec = importlib.util.spec_from_file_location("extraction", ROOT / "experiments" / "extraction.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["extraction"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose hardly trained networks see people everywhere, so that there is something to compare."""
    folder = tmp_path_factory.mktemp("extraction")
    recipe = tiny.recipe(folder, evaluate__grouping={"detection_threshold": 0.001}, train__epochs=1)
    run = RunDirectory.create(folder / "run", recipe)
    with run.locked():
        train(run)
    return run


def test_every_form_is_the_same_network(
    experiment: ModuleType, run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--archs", "4", "--onnx", "1", "--record", "--results", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["extraction.py", str(run.folder), *arguments])
    assert experiment.main() == 0
    record = json.loads((tmp_path / "extraction.json").read_text())
    assert [set(each["ap"]) for each in record["networks"]] == [
        set(experiment.FORMS),
        *[set(experiment.FORMS) - {"ONNX"}] * 3,
    ]
    for each in record["networks"]:
        assert each["equal"] and len(set(each["people"].values())) == 1
        assert each["people"]["extracted"] > 0
        assert all(px < 1e-2 for px in each["moved_px"].values())
        assert each["moved_px"]["reloaded"] == 0
    page = (tmp_path / "extraction.md").read_text()
    assert page.count("| yes |") == 4 and "in 4 of 4 networks" in page
    assert str(run.folder) not in page + json.dumps(record)


def test_a_network_that_was_spoilt_on_the_way_is_noticed(experiment: ModuleType, run: RunDirectory) -> None:
    data = open_datasets(run.recipe)
    space = run.recipe.build_space(data.skeleton)
    supernet = open_supernet(run, space)
    evaluator = make_evaluator(run, data, supernet, on="val")
    played = open_supernet(run, space)
    with torch.no_grad():
        next(iter(played.parameters())).mul_(1.5)  # its own forward pass is then another function
        found = experiment.measure(space.largest(), played, evaluator, data, space, False)
    assert found.moved_px["supernet"] > 1
    assert found.moved_px["reloaded"] == 0


def test_what_counts_as_equal(experiment: ModuleType) -> None:
    def person(image: int, x: float) -> dict[str, object]:
        return {"image_id": image, "keypoints": [x, 2.0, 1.0] * 3}

    assert experiment.moved([person(1, 5.0)], [person(1, 5.0)]) == 0
    assert experiment.moved([person(1, 5.25)], [person(1, 5.0)]) == 0.25
    assert np.isinf(experiment.moved([person(1, 5.0)], []))
    assert np.isinf(experiment.moved([person(1, 5.0)], [person(2, 5.0)]))
    assert experiment.moved([], []) == 0
    arch = None
    for off, equal in ((0.0, True), (4e-6, True), (2e-5, False)):
        each = experiment.Parity(arch, 1, {"extracted": 0.5, "ONNX": 0.5 + off}, {}, {})
        assert each.equal is equal
