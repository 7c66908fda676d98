"""``nas eval``: models and detections scored, compared, written; what is told, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas.eval_report import difference_line
from nas.evaluation import EvalOptions, evaluate_model
from search_spaces.errors import InputError
from supernet.checkpoint import save_network
from supernet.pose.metrics import keypoint_ap
from supernet.pose.skeleton import COCO17
from supernet.pose.synthetic import write_dataset
from supernet.registry import build_network
from tests.nas import tiny
from tests.nas.conftest import Outcome

FEW = EvalOptions(resamples=100)


def detections(truth: dict[str, Any], noise: float, seed: int = 0) -> list[dict[str, Any]]:
    """Return everybody, with joints off by so many pixels, and scores that fall with the error."""
    rng = np.random.default_rng(seed)
    found = []
    for each in truth["annotations"]:
        points = np.reshape(each["keypoints"], (17, 3)).copy()
        off = noise * rng.gamma(2.0, 0.5)
        points[:, :2] += rng.normal(0, 1, (17, 2)) * off
        common = {"image_id": each["image_id"], "category_id": 1}
        found.append({**common, "keypoints": points.ravel().tolist(), "score": 1 / (1 + off)})
    return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty drawn pictures, detections of several qualities, and an untrained network."""
    folder = tmp_path_factory.mktemp("eval")
    write_dataset(folder / "val", 40, seed=7, size=(96, 96))
    truth = json.loads((folder / "val" / "annotations.json").read_text())
    for name, noise in (("exact", 0.0), ("good", 1.5), ("bad", 4.0)):
        (folder / f"{name}.json").write_text(json.dumps(detections(truth, noise)))
    arch = tiny.recipe(folder).build_space(COCO17).smallest()
    network = build_network(arch, 17, torch.Generator().manual_seed(0))
    for name, weight in network.named_parameters():
        if name.endswith("project.weight"):
            weight.data *= 1e4  # maps with peaks
    save_network(folder / "net.safetensors", network, {"skeleton": COCO17.to_json()})
    return folder


def run(shop: Path, model: str, options: EvalOptions = FEW, **further: Any) -> dict[str, Any]:
    return evaluate_model(
        shop / model,
        str(shop / "val" / "annotations.json"),
        options,
        **{name: shop / value for name, value in further.items()},
    )


def test_detections_are_scored_as_they_are(shop: Path) -> None:
    report = run(shop, "good.json")
    truth = json.loads((shop / "val" / "annotations.json").read_text())
    expected = keypoint_ap(truth, json.loads((shop / "good.json").read_text()), COCO17.sigmas)
    assert report["stats"] == pytest.approx(expected)
    assert 0.2 < report["stats"]["AP"] < 0.9
    interval = report["interval"]
    assert interval["value"] == pytest.approx(expected["AP"])
    assert interval["low"] < interval["value"] < interval["high"]
    assert (report["images"], interval["resamples"]) == (40, 100)
    assert "network_ms_per_image" not in report
    assert report["errors"]["AP"] == pytest.approx(expected["AP"])
    assert report["pck"]["joints"] == report["joints_scored"] == list(COCO17.joints)

    exact = run(shop, "exact.json")
    assert exact["stats"]["AP"] == exact["interval"]["low"] == exact["interval"]["high"] == pytest.approx(1.0)
    assert exact["pck"]["mean_of_all"] == 1.0


def test_the_same_command_gives_the_same_interval(shop: Path) -> None:
    assert run(shop, "good.json") == run(shop, "good.json")
    assert "interval" not in run(shop, "good.json", EvalOptions(resamples=0))


@pytest.mark.usefixtures("one_thread")
def test_a_network_is_timed_and_its_detections_are_worth_the_same(shop: Path) -> None:
    few = EvalOptions(resamples=100, limit=8)
    measured = run(shop, "net.safetensors", few, images="val/images", detections="found/net.json")
    assert measured["network_ms_per_image"] > 0 and measured["decode_ms_per_image"] > 0
    time = measured["network_ms_per_image"] + measured["decode_ms_per_image"]
    assert measured["images_per_second"] == pytest.approx(1e3 / time, rel=0.01)
    assert measured["people_found"] > 0
    read = run(shop, "found/net.json", few)
    for what in ("stats", "interval", "pck", "errors", "people_found", "images"):
        assert read[what] == measured[what], what


@pytest.mark.usefixtures("one_thread")
def test_several_scales_are_averaged(shop: Path, nas_: Callable[..., Outcome]) -> None:
    where = (str(shop / "net.safetensors"), str(shop / "val" / "annotations.json"))
    few = ("--images", str(shop / "val" / "images"), "--limit", "4", "--bootstrap", "0")
    told = nas_("eval", *where, *few, "--scales", "0.5,1,1.5", "--detections", str(shop / "several.json"))
    assert told.code == 0
    assert "scales 0.5/1/1.5" in told.out
    plain = nas_("eval", *where, *few, "--detections", str(shop / "one.json"))
    assert "scales" not in plain.out
    several, one = (json.loads((shop / f"{name}.json").read_text()) for name in ("several", "one"))
    assert several and one and several != one
    for text, words in (("1,two", "such as 0.5,1,1.5"), ("0.5", "contain 1"), ("1,1.3", "1.3 makes")):
        refused = nas_("eval", *where, *few, "--scales", text)
        assert refused.code == 2
        assert words in refused.err


@pytest.mark.usefixtures("one_thread")
def test_two_are_compared_on_the_same_images(shop: Path) -> None:
    compared = run(shop, "good.json", compare="bad.json")["compare"]
    difference = compared["difference"]
    bad = run(shop, "bad.json")
    assert compared["stats"] == bad["stats"]
    better = run(shop, "good.json")["stats"]["AP"] - bad["stats"]["AP"]
    assert difference["value"] == pytest.approx(better)
    assert difference["low"] > 0 and difference["shown"]
    back = run(shop, "bad.json", compare="good.json")["compare"]["difference"]
    assert back["high"] == pytest.approx(-difference["low"], abs=1e-9)
    same = run(shop, "good.json", compare="good.json")["compare"]["difference"]
    assert (same["value"], same["probability"], same["shown"]) == (0.0, 0.5, False)
    few = EvalOptions(resamples=100, limit=8)
    mixed = run(shop, "good.json", few, compare="net.safetensors", images="val/images")["compare"]
    assert mixed["difference"]["shown"] and mixed["network_ms_per_image"] > 0


def test_differences_in_words() -> None:
    difference = {"value": 0.02, "low": 0.01, "high": 0.03, "confidence": 0.95, "resamples": 1000}
    shown = difference_line({**difference, "probability": 0.999, "shown": True}, "a", "b")
    assert shown == (
        "+0.0200 AP (95% interval +0.0100 to +0.0300; ahead in 99.9% of 1,000 resamples): a is better than b"
    )
    lost = {**difference, "value": -0.02, "low": -0.03, "high": -0.01, "probability": 0.0, "shown": True}
    assert difference_line(lost, "a", "b").endswith(": b is better than a")
    open_ = {**difference, "low": -0.01, "probability": 0.9, "shown": False}
    assert difference_line(open_, "a", "b").endswith(": no difference shown")


def test_only_the_first_images_count(shop: Path) -> None:
    limited = run(shop, "good.json", EvalOptions(resamples=100, limit=7))
    truth = json.loads((shop / "val" / "annotations.json").read_text())
    ids = {image["id"] for image in truth["images"][:7]}
    assert limited["images"] == 7
    assert limited["errors"]["people"] == sum(
        each["image_id"] in ids and each["num_keypoints"] > 0 for each in truth["annotations"]
    )
    assert limited["people_found"] == sum(each["image_id"] in ids for each in truth["annotations"])


def test_people_read_it(shop: Path, nas_: Callable[..., Outcome]) -> None:
    words = ("eval", shop / "good.json", shop / "val" / "annotations.json", "--bootstrap", 50)
    text = nas_(*words, "--compare", shop / "bad.json").out
    report = run(shop, "good.json", EvalOptions(resamples=50), compare="bad.json")
    first = next(line for line in text.splitlines() if line.startswith("AP "))
    interval = report["interval"]
    assert f"{report['stats']['AP']:.4f}  (95% interval {interval['low']:.4f} to" in first
    assert "is better than" in text and "50 resamples" in text
    for word in ("left_ankle", "PCK@0.2", "inversion", "missed people", "What each kind of error costs"):
        assert word in text
    assert json.loads(nas_(*words, "--json").out)["interval"]["resamples"] == 50


def test_what_makes_no_sense_is_refused(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--compare needs resamples"):
        run(shop, "good.json", EvalOptions(resamples=0), compare="bad.json")
    with pytest.raises(InputError, match="needs the folder of its images"):
        run(shop, "net.safetensors")
    with pytest.raises(InputError, match="are no COCO results: a list"):
        run(shop, "val/annotations.json")
    with pytest.raises(InputError, match="0 for none, not -1"):
        EvalOptions(resamples=-1)
    found = json.loads((shop / "good.json").read_text())
    path = tmp_path / "odd.json"

    def refused(changed: list[Any], words: str) -> None:
        path.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=words) as caught:
            run(shop, str(path))
        assert "\n" not in str(caught.value)

    refused([{**found[0], "image_id": 12345}], "detection 1 is on image 12345")
    refused([{**found[0], "image_id": [1]}], r"detection 1 is on image \[1\]")
    refused([{**found[0], "keypoints": [0.0] * 42}], "have 14 joints, those of skeleton 'coco17' 17; name")
    refused([{**found[0], "keypoints": [0.0] * 50}], "must have 51 keypoint numbers")
    refused([{**found[0], "score": None}], "'score'")
    refused([17], "are no COCO results")
    refused([{**found[0], "keypoints": ["x"] * 51}], "no finite numbers")
