"""Resampled AP against the evaluator on images that are really there twice; intervals that cover."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from search_spaces.errors import InputError
from supernet.pose import matching
from supernet.pose.bootstrap import bootstrap_ap, compare_ap
from supernet.pose.matching import Matches, match_detections
from supernet.pose.metrics import ScoringProtocol, keypoint_ap
from tests.supernet.pose.people import random_case, scorable

Content = tuple[dict[str, Any], list[dict[str, Any]]]
SIGMAS = [0.07] * 6


def repeated(truth: dict[str, Any], detections: list[dict[str, Any]], weights: NDArray[np.int64]) -> Content:
    """Return the data set in which each image is there as often as its weight says, copies side by side."""
    images, annotations, found = [], [], []
    for image, weight in zip(truth["images"], weights.tolist(), strict=True):
        for number in range(weight):
            new = 100 * image["id"] + number
            images.append({**image, "id": new})
            for entries, target in ((truth["annotations"], annotations), (detections, found)):
                target += [{**each, "image_id": new} for each in entries if each["image_id"] == image["id"]]
    for number, each in enumerate(annotations, start=1):
        each["id"] = number
    return {**truth, "images": images, "annotations": annotations}, found


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    weights=st.lists(st.integers(0, 4), min_size=6, max_size=6),
    protocol=st.sampled_from(["coco", "crowdpose"]),
    tied=st.booleans(),
)
def test_a_weight_is_an_image_that_is_there_so_often(
    seed: int, weights: list[int], protocol: ScoringProtocol, tied: bool
) -> None:
    truth, detections = random_case(seed, 6, 6)
    if tied:  # equal scores in different images, as the evaluator orders them
        places: dict[int, int] = {}
        for each in detections:
            places[each["image_id"]] = places.get(each["image_id"], 0) + 1
            each["score"] = 1.0 / places[each["image_id"]]
    counts = np.array(weights)
    larger, found = repeated(truth, detections, counts)
    if not scorable(truth):
        return
    matches = match_detections(truth, detections, SIGMAS, protocol=protocol)
    values = {name: float(matches.values(name, counts)[0]) for name in matches.names}
    if not scorable(larger):
        assert all(np.isnan(value) for value in values.values())
        return
    expected = keypoint_ap(larger, found, SIGMAS, protocol=protocol)
    assert set(values) == set(expected)
    for name, value in values.items():
        assert (-1.0 if np.isnan(value) else value) == pytest.approx(expected[name], abs=1e-9), name


def test_many_selections_at_once_are_each_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, detections = random_case(3, 6, 30)
    weights = np.random.default_rng(0).integers(0, 3, (50, 30))
    matches = match_detections(truth, detections, SIGMAS)
    together = matches.values("AP", weights)
    assert len(np.unique(together)) > 40
    np.testing.assert_allclose(together, [matches.ap(row)[0] for row in weights], rtol=1e-12)
    # Nothing depends on the parts in which it is computed: not the matches, not the figures.
    monkeypatch.setattr(matching, "_CELLS", 64)
    parts = match_detections(truth, detections, SIGMAS)
    np.testing.assert_array_equal(parts.right, matches.right)
    np.testing.assert_array_equal(parts.ignored, matches.ignored)
    np.testing.assert_allclose(parts.values("AP", weights), together, rtol=1e-12)


def test_a_subset_is_the_data_set_of_those_images() -> None:
    truth, detections = random_case(5, 6, 12)
    chosen = [2, 3, 7, 11]
    part = {
        **truth,
        "images": [each for each in truth["images"] if each["id"] in chosen],
        "annotations": [each for each in truth["annotations"] if each["image_id"] in chosen],
    }
    found = [each for each in detections if each["image_id"] in chosen]
    matches = match_detections(truth, detections, SIGMAS, protocol="crowdpose").subset(chosen)
    assert matches.stats() == pytest.approx(keypoint_ap(part, found, SIGMAS, protocol="crowdpose"), abs=1e-9)
    assert matches.image_ids.tolist() == chosen
    with pytest.raises(InputError, match="image 99 is not among the 4"):
        matches.subset([2, 99])


def test_no_detections_are_an_interval_at_zero() -> None:
    truth, _ = random_case(11, 6, 6)
    interval = bootstrap_ap(match_detections(truth, [], SIGMAS), 50, np.random.default_rng(0))
    assert (interval.value, interval.low, interval.high) == (0.0, 0.0, 0.0)


def test_images_without_anybody_are_drawn_too() -> None:
    """An image that only holds false detections is a part of what could have been drawn."""
    truth, detections = random_case(4, 6, 20)
    larger = copy.deepcopy(truth)
    larger["images"] += [{"id": 1000 + n} for n in range(100)]
    few = bootstrap_ap(match_detections(truth, detections, SIGMAS), 400, np.random.default_rng(0))
    many = bootstrap_ap(match_detections(larger, detections, SIGMAS), 400, np.random.default_rng(0))
    assert few.value == many.value
    assert many.resamples <= 400
    assert (many.low, many.high) != (few.low, few.high)


def test_intervals_follow_the_generator_and_the_confidence() -> None:
    matches = match_detections(*random_case(4, 6, 40), SIGMAS)

    def interval(seed: int, confidence: float = 0.95) -> tuple[float, float]:
        found = bootstrap_ap(matches, 500, np.random.default_rng(seed), confidence)
        assert found.low < found.value < found.high
        assert json.loads(json.dumps(found.to_json()))["resamples"] == 500
        return found.low, found.high

    assert interval(0) == interval(0) != interval(1)
    wide, narrow = interval(0, 0.99), interval(0, 0.5)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    recall = bootstrap_ap(matches, 200, np.random.default_rng(0), name="AR50")
    assert recall.value == pytest.approx(matches.stats()["AR50"])
    assert recall.low < recall.value < recall.high


def population(seed: int, images: int, noise: float) -> Content:
    """Return people of one size on many images and what a network of some accuracy finds."""
    people = np.random.default_rng(0)
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        hard = people.gamma(2.0, 0.5)
        for slot in range(people.integers(1, 4)):
            points = people.uniform(0, 100, (6, 2)) + np.array([300.0 * slot, 0.0])
            keypoints = np.column_stack([points, np.full(6, 2.0)])
            common = {"image_id": image, "category_id": 1}
            annotations.append(
                {
                    **common,
                    "id": len(annotations) + 1,
                    "bbox": [300.0 * slot, 0.0, 100.0, 100.0],
                    "area": 1e4,
                    "keypoints": keypoints.ravel().tolist(),
                    "num_keypoints": 6,
                }
            )
            error = noise * hard * rng.gamma(2.0, 0.5)
            keypoints[:, :2] += rng.normal(0, error, (6, 2))
            found = {**common, "keypoints": keypoints.ravel().tolist()}
            detections.append({**found, "score": float(np.exp(-error / 20) + rng.normal(0, 0.1))})
    truth = {
        "images": [{"id": i} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    return truth, detections


def drawn(matches: Matches, rng: np.random.Generator, images: int) -> list[int]:
    return rng.choice(matches.image_ids, images, replace=False).tolist()


def test_intervals_cover_the_figure_of_the_population() -> None:
    """Of 95% intervals from 60 images each, 90% to 99% hold the AP of all 3,000 images that they are from."""
    everything = match_detections(*population(1, 3000, 10.0), SIGMAS)
    real = float(everything.ap()[0])
    assert 0.3 < real < 0.8
    rng = np.random.default_rng(0)
    intervals = [bootstrap_ap(everything.subset(drawn(everything, rng, 60)), 200, rng) for _ in range(150)]
    covered = np.mean([each.low <= real <= each.high for each in intervals])
    assert 0.90 <= covered <= 0.99
    assert np.mean([each.high - each.low for each in intervals]) < 0.2  # not by being wide
    below = np.mean([each.high < real for each in intervals])
    assert below < 0.07  # nor by missing on one side only


def test_differences_cover_the_difference_of_the_populations() -> None:
    truth, one = population(1, 3000, 10.0)
    first = match_detections(truth, one, SIGMAS)
    second = match_detections(truth, population(2, 3000, 11.0)[1], SIGMAS)
    real = float(first.ap()[0] - second.ap()[0])
    assert 0.01 < real < 0.1
    rng = np.random.default_rng(0)
    compared, single = [], []
    for number in range(120):
        ids = drawn(first, rng, 60)
        compared.append(compare_ap(first.subset(ids), second.subset(ids), 150, rng))
        if number < 20:
            single.append(bootstrap_ap(first.subset(ids), 150, rng))
    covered = np.mean([each.low <= real <= each.high for each in compared])
    assert 0.90 <= covered <= 0.99
    # The same images are hard for both, so the difference is known better than two figures by themselves.
    unpaired = np.sqrt(2) * np.mean([each.high - each.low for each in single])
    assert np.mean([each.high - each.low for each in compared]) < 0.9 * unpaired
    assert np.mean([each.probability for each in compared]) > 0.6


def test_a_tie_is_not_a_win() -> None:
    truth, one = population(1, 300, 10.0)
    first = match_detections(truth, one, SIGMAS)
    second = match_detections(truth, population(2, 300, 10.0)[1], SIGMAS)
    same = compare_ap(first, first, 200, np.random.default_rng(0))
    assert (same.value, same.low, same.high, same.probability, same.shown) == (0.0, 0.0, 0.0, 0.5, False)
    rng = np.random.default_rng(0)
    equal = [
        compare_ap(first.subset(ids), second.subset(ids), 200, rng)
        for ids in (drawn(first, rng, 100) for _ in range(5))
    ]
    assert sum(each.shown for each in equal) <= 1  # networks that are equally good
    _, worse = population(2, 300, 20.0)
    clear = compare_ap(first, match_detections(truth, worse, SIGMAS), 200, rng)
    assert clear.shown and clear.low > 0 and clear.probability == 1.0
    back = compare_ap(match_detections(truth, worse, SIGMAS), first, 200, rng)
    assert back.shown and back.high < 0 and back.probability == 0.0
    assert json.loads(json.dumps(back.to_json()))["shown"] is True


def test_what_makes_no_sense_is_refused() -> None:
    truth, detections = random_case(11, 6, 6)
    matches = match_detections(truth, detections, SIGMAS)
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="at least 1 resample, not 0"):
        bootstrap_ap(matches, 0, rng)
    with pytest.raises(InputError, match="between 0 and 1, not 95"):
        bootstrap_ap(matches, 10, rng, 95)
    with pytest.raises(InputError, match=r"no stat 'AP5' .* did you mean 'AP"):
        bootstrap_ap(matches, 10, rng, name="AP5")
    with pytest.raises(InputError, match=r"integers \(B, 6\), not float64"):
        matches.ap(np.ones(6))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"integers \(B, 6\), not int64 \(1, 5\)"):
        matches.ap(np.ones(5, np.int64))
    with pytest.raises(InputError, match="the least is -1"):
        matches.ap(np.array([1, 1, 1, 1, 1, -1]))
    with pytest.raises(InputError, match="these differ"):
        compare_ap(matches, matches.subset([1, 2]), 10, rng)
    for each in truth["annotations"]:
        each["area"] = 200.0**2
    with pytest.raises(InputError, match="nobody to find for AP_medium"):
        bootstrap_ap(match_detections(truth, detections, SIGMAS), 10, rng, name="AP_medium")
