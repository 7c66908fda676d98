"""AP against the official values, against pycocotools on random cases; and what is refused."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.errors import InputError
from supernet.pose.matching import match_detections
from supernet.pose.metrics import keypoint_ap
from supernet.pose.skeleton import COCO17, CROWDPOSE14
from tests.supernet.pose.people import COCO_NAMES, official, official_crowdpose, random_case, scorable


def load(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", ["coco1", "coco4", "crowdpose4"])
def test_ap_equals_the_official_values(shared: Path, case: str) -> None:
    folder = shared / "data" / "eval_cases"
    expected = load(folder / "expected.json")[case]
    skeleton = COCO17 if expected["protocol"] == "coco" else CROWDPOSE14
    arguments = (
        load(folder / case / expected["gt"]),
        load(folder / case / expected["dt"]),
        skeleton.sigmas,
        None,
        expected["protocol"],
    )
    stats = keypoint_ap(*arguments)
    assert match_detections(*arguments).stats() == pytest.approx(stats, abs=1e-9)
    if expected["protocol"] == "coco":
        assert stats == pytest.approx(dict(zip(COCO_NAMES, expected["stats"])), abs=6e-6)
    else:  # the official tool rounds its three levels to four digits
        for name, value in expected["stats"].items():
            digits = 5.1e-5 if name in ("AP_easy", "AP_medium", "AP_hard") else 6e-6
            assert stats[name] == pytest.approx(value, abs=digits), name


def approx(stats: dict[str, float]) -> Any:
    return pytest.approx(stats, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans(), boxes=st.booleans())
def test_ap_equals_pycocotools_on_random_cases(seed: int, ties: bool, boxes: bool) -> None:
    truth, detections = random_case(seed, 6, 6, ties=ties, boxes=boxes)
    if not scorable(truth) or not detections:
        return
    sigmas = np.random.default_rng(seed).uniform(0.03, 0.1, 6).tolist()
    untouched = copy.deepcopy((truth, detections))
    expected = official(truth, detections, sigmas)
    assert keypoint_ap(truth, detections, sigmas) == approx(expected)
    assert match_detections(truth, detections, sigmas).stats() == approx(expected)
    assert (truth, detections) == untouched


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), ties=st.booleans())
def test_crowdpose_ap_equals_pycocotools_with_its_rules(seed: int, ties: bool) -> None:
    truth, detections = random_case(seed, 6, 8, ties=ties)
    if not scorable(truth) or not detections:
        return
    sigmas = np.random.default_rng(seed).uniform(0.03, 0.1, 6).tolist()
    expected = official_crowdpose(truth, detections, sigmas)
    assert keypoint_ap(truth, detections, sigmas, protocol="crowdpose") == approx(expected)
    assert match_detections(truth, detections, sigmas, protocol="crowdpose").stats() == approx(expected)


def test_the_random_cases_have_what_evaluation_has_rules_for() -> None:
    """Otherwise the comparisons above would prove less than they seem to."""
    seen = set()
    for seed in range(20):
        truth, detections = random_case(seed, 6, 6, ties=True)
        people = truth["annotations"]
        per_image = [sum(d["image_id"] == i["id"] for d in detections) for i in truth["images"]]
        populated = {each["image_id"] for each in people}
        facts = {
            "crowd": any(each["iscrowd"] and each["num_keypoints"] for each in people),
            "unlabelled": any(not each["num_keypoints"] and not each["iscrowd"] for each in people),
            "many": max(per_image) > 20,
            "no detections": 0 in per_image,
            "nobody": len(populated) < len(truth["images"]),
            "ghosts only": any(n and i["id"] not in populated for n, i in zip(per_image, truth["images"])),
            "outside": any(min(each["keypoints"]) < 0 for each in people),
            "edges": {32.0**2, 96.0**2} <= {each["area"] for each in people},
            "ties": len({d["score"] for d in detections}) < len(detections) / 2,
            "levels": {0.2, 0.8} <= {each["crowdIndex"] for each in truth["images"]},
        }
        seen |= {name for name, there in facts.items() if there}
    assert seen == set(facts)


@pytest.mark.parametrize("part", ["sample/test_crowdpose.json", "crowdpose_val.json"])
def test_real_crowds_are_scored_as_crowdpose_does(shared: Path, part: str) -> None:
    """Real annotations and levels; detections are the annotations, disturbed, doubled and left out."""
    truth = load(shared / "data" / "crowdpose" / part)
    truth["images"] = truth["images"][::8] if len(truth["images"]) > 8 else truth["images"]
    kept = {image["id"] for image in truth["images"]}
    truth["annotations"] = [each for each in truth["annotations"] if each["image_id"] in kept]
    rng = np.random.default_rng(0)
    detections = []
    for each in truth["annotations"]:
        each.setdefault("num_keypoints", sum(v > 0 for v in each["keypoints"][2::3]))
        for _ in range(rng.integers(0, 3)):
            points = np.reshape(each["keypoints"], (14, 3)).astype(float)
            points[:, :2] += rng.normal(0, each["bbox"][2] * rng.choice([0.02, 0.1]), (14, 2))
            detections.append(
                {
                    "image_id": each["image_id"],
                    "category_id": each["category_id"],
                    "keypoints": points.ravel().tolist(),
                    "score": round(float(rng.random()), 2),
                }
            )
    expected = official_crowdpose(truth, detections, CROWDPOSE14.sigmas)
    arguments = (truth, detections, CROWDPOSE14.sigmas, None, "crowdpose")
    assert keypoint_ap(*arguments) == approx(expected)
    assert match_detections(*arguments).stats() == approx(expected)
    assert 0.1 < expected["AP"] < 0.9


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_scoring_some_joints_equals_a_data_set_that_has_no_others(seed: int) -> None:
    truth, detections = random_case(seed, 8, 6)
    joints = [1, 2, 5, 6]
    fewer, guesses = copy.deepcopy((truth, detections))
    for entry in [*fewer["annotations"], *guesses]:
        kept = np.reshape(entry["keypoints"], (8, 3))[joints]
        entry["keypoints"] = kept.ravel().tolist()
        if "num_keypoints" in entry:
            entry["num_keypoints"] = int((kept[:, 2] > 0).sum())
    if not guesses or not scorable(fewer):
        return
    sigmas = np.linspace(0.03, 0.1, 8)
    stats = keypoint_ap(truth, detections, sigmas.tolist(), joints)
    assert stats == pytest.approx(official(fewer, guesses, sigmas[joints].tolist()), abs=1e-9)


def test_annotation_id_zero_counts_like_any_other() -> None:
    truth, detections = random_case(11, 6, 6)
    sigmas = [0.07] * 6
    expected = keypoint_ap(truth, detections, sigmas)
    for each in truth["annotations"]:
        each["id"] -= 1
    assert keypoint_ap(truth, detections, sigmas) == expected


def test_no_detections_give_zeros() -> None:
    truth, _ = random_case(11, 6, 6)
    stats = keypoint_ap(truth, [], [0.07] * 6)
    assert set(stats) == set(COCO_NAMES)
    assert set(stats.values()) == {0.0}


def test_far_away_is_far_and_no_warning() -> None:
    """Coordinates whose squares are no numbers any more."""
    truth, detections = random_case(11, 6, 6)
    sigmas = [0.07] * 6
    ghosts = [{**each, "keypoints": [1e200] * 18, "score": 1e-9} for each in detections]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stats = match_detections(truth, detections + ghosts, sigmas).stats()
    assert stats == approx(match_detections(truth, detections, sigmas).stats())


def test_a_range_without_people_is_undefined() -> None:
    truth, detections = random_case(11, 6, 6)
    for each in truth["annotations"]:
        each["area"] = 200.0**2
    stats = keypoint_ap(truth, detections, [0.07] * 6)
    assert stats["AP_medium"] == stats["AR_medium"] == -1.0
    assert stats["AP_large"] > 0.0


Change = Callable[[dict[str, Any], list[dict[str, Any]]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda truth, _: truth["annotations"].clear(), "no person with a labelled joint"),
        (lambda truth, _: truth.pop("annotations"), "a list 'annotations'"),
        (
            lambda truth, _: truth["annotations"][0].pop("area"),
            "annotation 1 needs a finite number as 'area'",
        ),
        (lambda truth, _: truth["annotations"][0].pop("bbox"), "annotation 1 needs a 'bbox'"),
        (lambda truth, _: truth["annotations"][0]["keypoints"].pop(), r"annotation 1 must have 18 .* not 17"),
        (lambda _, found: found[0].update(image_id=99), "detection 1 is on image 99"),
        (lambda _, found: found[0].update(category_id=7), "detection 1 has category_id 7"),
        (lambda _, found: found[0].update(score=float("nan")), "'score'"),
        (lambda _, found: found[0]["keypoints"].__setitem__(0, float("inf")), "finite"),
        (lambda _, found: found[0].pop("keypoints"), "not none"),
        (lambda _, found: found[0].update(score=10**400), "'score'"),
        (lambda _, found: found[0].update(score=True), "'score'"),
        (lambda _, found: found[0]["keypoints"].__setitem__(3, 10**400), "finite"),
        (lambda _, found: found[0]["keypoints"].__setitem__(3, "far"), "detection 1 .* finite"),
        (lambda _, found: found[0]["keypoints"].__setitem__(3, [1, 2]), "detection 1 .* finite"),
        (lambda _, found: found[0].update(image_id={}), "detection 1 is on image {}"),
        (lambda truth, _: truth["images"][0].pop("id"), "id is None"),
        (lambda truth, _: truth["images"].append(truth["images"][0]), "7 images have only 6 different ids"),
        (lambda truth, _: truth["annotations"][0].update(image_id=77), "annotation 1 is on image 77"),
        (lambda truth, _: truth["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1 needs a 'bbox'"),
        (lambda truth, _: truth["annotations"][0].update(bbox=[1, 2, 3, 10**400]), "needs a 'bbox'"),
        (lambda truth, _: truth["categories"].append({"id": 2}), "one category .* not of 2"),
    ],
)
def test_bad_annotations_and_detections_are_named(change: Change, words: str) -> None:
    truth, detections = random_case(11, 6, 6)
    change(truth, detections)
    with pytest.raises(InputError, match=words) as caught:
        keypoint_ap(truth, detections, [0.07] * 6)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"joints": [0, 6]}, r"0\.\.5"),
        ({"joints": []}, "must be different ones"),
        ({"protocol": "mpii"}, "one of coco, crowdpose, not 'mpii'"),
        ({"protocol": "crowdpose"}, "image 1 needs a 'crowdIndex'"),
    ],
)
def test_bad_options_are_named(arguments: dict[str, Any], words: str) -> None:
    truth, detections = random_case(11, 6, 6)
    del truth["images"][0]["crowdIndex"]
    with pytest.raises(InputError, match=words):
        keypoint_ap(truth, detections, [0.07] * 6, **arguments)
