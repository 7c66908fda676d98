"""The benchmarks of training: both ways compute the same, and what is measured is recorded."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import single_thread

SCRIPTS = Path(__file__).resolve().parents[2] / "experiments/benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let benchmarks find what they share; threads are as before afterwards."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    with single_thread():
        yield


def recorded(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, *arguments: str) -> dict[str, Any]:
    """Run a benchmark as from the command line; return its record, in which no folder is named."""
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--record", "--results", str(folder)])
    runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    text, page = ((folder / f"{name}.{kind}").read_text() for kind in ("json", "md"))
    assert str(folder) not in text + page
    report: dict[str, Any] = json.loads(text)
    for case, figures in report["cases"].items():
        assert case in page
        assert figures["baseline_ms"]["median"] > 0 < figures["ours_ms"]["median"]
    return report


def test_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = ("--demo", "2", "32", "--litepose-s", "2", "32", "--steps", "1", "--repeats", "1")
    report = recorded(monkeypatch, tmp_path, "training", *sizes)
    assert list(report["cases"]) == ["demo space: 2 images of 32 px", "around LitePose-S: 2 images of 32 px"]
    assert report["command"].endswith("training.py --repeats 1 --steps 1 --demo 2 32 --litepose-s 2 32")


@pytest.mark.parametrize("parts", [1, 2])
def test_losses_agree_step_by_step_and_a_difference_would_be_seen(parts: int) -> None:
    script = runpy.run_path(str(SCRIPTS / "training.py"))
    space = script["load_recipe"](script["DEMO"]).build_space(script["get_skeleton"]("coco17"))
    work = script["Work"](space, 32, 4, 3, "cpu")
    plain, ours = work.plain(parts)(), work.ours(parts)()
    assert len(plain) == 3 and len(set(plain)) == 3
    agree = script["agreement"](1e-4)
    assert agree(plain, ours) is None
    assert "loss of step 1" in agree(plain, [ours[0], ours[1] * 1.001, ours[2]])
    assert agree(plain, [float("nan")] * 3) is not None
    # The second step's loss rests on the first one's gradients: without them it would be another.
    monkey = {**vars(script["CONFIG"]), "learning_rate": 1e-12}
    script["Work"].plain.__globals__["CONFIG"] = script["TrainConfig"](**monkey)
    assert agree(work.plain(parts)(), ours) is not None


def test_depthwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = recorded(
        monkeypatch, tmp_path, "depthwise", "--demo", "1", "32", "--litepose-s", "1", "32", "--repeats", "1"
    )
    names = list(report["cases"])
    assert "LitePose-S, 1 images: 96 x 16x16, kernel 7, stride 2 (1 layer)" in names
    assert sum(name.startswith("demo") for name in names) > 5


def test_depthwise_covers_every_layer_that_training_gives_it() -> None:
    script = runpy.run_path(str(SCRIPTS / "depthwise.py"))
    arch = script["get_arch"]("litepose-s")
    found = script["shapes"](arch, 256)
    large = [each for each in arch.layers(17, (256, 256)) if each.kind == "dwconv" and each.kernel > 3]
    assert found.total() == len(large) == 38
    assert found[96, 64, 64, 7, 1] == 5
    for shape in [(6, 13, 9, 5, 1), (6, 13, 9, 7, 2)]:
        x, grad = script["drawn"](2, shape, 0, torch.channels_last)
        gradients = [script[way](x, grad, *shape[3:]) for way in ("torchs_own", "weight_gradient")]
        assert script["disagreement"](*gradients) is None
        assert "differ by" in script["disagreement"](gradients[0], gradients[1] * 1.001)
        assert "shapes" in script["disagreement"](gradients[0], gradients[1][1:])
