"""Grouping: equality with recorded outputs and with plain loops, and maps that are empty, flat or crowded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from search_spaces.errors import InputError
from supernet.pose.decode import (
    Adjustment,
    GroupingConfig,
    adjust,
    decode,
    decode_batch,
    find_peaks,
    match,
    person_scores,
    refine,
)
from supernet.pose.skeleton import COCO17

GOLDEN = ("decode_border", "decode_clean_j14_128_5people", "decode_noisy_j17_128_10people")


@pytest.fixture(params=GOLDEN)
def golden(request: pytest.FixtureRequest, shared: Path) -> Mapping[str, NDArray[Any]]:
    """Recorded maps and the outputs of every stage of another implementation."""
    with np.load(shared / "golden" / f"{request.param}.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def published_order(joints: int) -> tuple[int, ...]:
    """Order of the recorded outputs: COCO's, cut short for the 14 joints of CrowdPose."""
    return tuple(COCO17.grouping_order[:joints])


def test_every_stage_equals_the_recorded_one(golden: Mapping[str, NDArray[Any]]) -> None:
    det, tags = golden["det"][0], golden["tag"][0]
    config = GroupingConfig()
    val_k, loc_k, tag_k = find_peaks(det, tags, config)
    above = golden["val_k"][0] > config.detection_threshold
    np.testing.assert_array_equal(val_k > 0, above)
    np.testing.assert_array_equal(val_k[above], golden["val_k"][0][above])
    np.testing.assert_array_equal(loc_k[above], golden["loc_k"][0][above])
    np.testing.assert_array_equal(tag_k[above], golden["tag_k"][0][above])

    people = match(val_k, loc_k, tag_k, config, published_order(len(det)))
    np.testing.assert_allclose(people, golden["match"], atol=1e-5)
    people = adjust(people, det)
    if "adjusted" in golden:
        np.testing.assert_allclose(people, golden["adjusted"], atol=1e-5)
        np.testing.assert_allclose(people, golden["unrefined"], atol=1e-5)
    np.testing.assert_allclose(person_scores(people), golden["scores"], atol=1e-6)
    final = golden["refined" if "refined" in golden else "final"]
    np.testing.assert_allclose(refine(people, det, tags), final, atol=1e-5)


def test_decode_equals_the_recorded_people(golden: Mapping[str, NDArray[Any]]) -> None:
    det, tags = golden["det"][0], golden["tag"][0]
    people, scores = decode(det, tags, joint_order=published_order(len(det)))
    np.testing.assert_allclose(people, golden["refined" if "refined" in golden else "final"], atol=1e-5)
    np.testing.assert_allclose(scores, golden["scores"], atol=1e-6)
    if "unrefined" in golden:
        people, _ = decode(det, tags, GroupingConfig(refine=False), published_order(len(det)))
        np.testing.assert_allclose(people, golden["unrefined"], atol=1e-5)


def test_tag_planes_may_lie_in_memory_in_any_order(golden: Mapping[str, NDArray[Any]]) -> None:
    det, tags = golden["det"][0], golden["tag"][0]
    planes = np.moveaxis(np.ascontiguousarray(np.moveaxis(tags, -1, 1)), 1, -1)
    for got, want in zip(decode(det, planes), decode(det, tags)):
        np.testing.assert_array_equal(got, want)


def draw_people(
    people: NDArray[np.float64], tags: NDArray[np.float64], size: tuple[int, int], sigma: float = 1.5
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return ideal maps of people (P, J, 2), whose joints lie in the frame of decoded coordinates."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    joints = people.shape[1]
    det = np.zeros((joints, *size), np.float32)
    tag = np.zeros((joints, *size, tags.shape[1]), np.float32)
    for person, own in zip(people, tags):
        for joint, (px, py) in enumerate(person):
            blob = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * sigma**2))
            tag[joint][blob > np.maximum(det[joint], 0.01)] = own
            det[joint] = np.maximum(det[joint], blob)
    return det, tag


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), dims=st.integers(1, 3))
def test_people_that_are_drawn_are_found(seed: int, count: int, dims: int) -> None:
    rng = np.random.default_rng(seed)
    joints, size = 5, (60, 80)
    grid = np.stack(np.meshgrid(np.arange(4) * 20 + 10, np.arange(3) * 20 + 10), -1).reshape(-1, 2)
    centres = grid[rng.permutation(len(grid))[:count]]
    truth = centres[:, None] + rng.uniform(-4, 4, (count, joints, 2))
    own = np.repeat(rng.permutation(count)[:, None] * 3.0, dims, axis=1)
    people, scores = decode(*draw_people(truth, own, size), joint_order=rng.permutation(joints).tolist())
    assert people.shape == (count, joints, 3 + dims)
    assert (scores > 0.9).all()
    nearest = np.abs(people[:, None, 0, :2] - truth[None, :, 0]).max(axis=2).argmin(axis=1)
    assert sorted(nearest) == list(range(count))
    assert np.abs(people[:, :, :2] - truth[nearest]).max() <= 0.25 + 1e-5
    np.testing.assert_allclose(people[:, :, 3:], np.broadcast_to(own[nearest, None], people[:, :, 3:].shape))


def test_people_beyond_the_limit_of_peaks_keep_together() -> None:
    """Every joint shows at most ``max_people`` people, but different joints show different ones."""
    count, limit = 24, 10
    x, y = np.meshgrid(np.arange(6) * 14 + 8.0, np.arange(4) * 20 + 8.0)
    heads = np.stack([x.ravel(), y.ravel()], axis=1)
    truth = np.stack([heads, heads + np.array([0, 7])], axis=1)
    det, tags = draw_people(truth[:, [0, 0, 1]], np.arange(count)[:, None] * 3.0, (80, 90))
    shown = [range(10), range(7, 17), range(14, 24)]
    for joint, visible in enumerate(shown):
        for hidden in set(range(count)) - set(visible):
            row, column = (int(v) for v in truth[hidden, joint // 2, ::-1])
            det[joint, row - 3 : row + 4, column - 3 : column + 4] = 0
    people, _ = decode(det, tags, GroupingConfig(max_people=limit, refine=False))
    assert len(people) == count
    found = people[:, :, 2] > 0
    for joint, visible in enumerate(shown):
        assert sorted(people[found[:, joint], joint, 3] / 3) == list(visible)
    several = people[found.sum(axis=1) > 1]
    assert len(several) == 6
    assert all(len(set(person[person[:, 2] > 0, 3])) == 1 for person in several)


def test_more_people_than_the_limit_are_still_separate() -> None:
    config = GroupingConfig(max_people=4)
    truth = np.array([[[5.0 + 10 * i, 8.0], [5.0 + 10 * i, 28.0]] for i in range(8)])
    own = np.arange(8.0)[:, None] * 3
    det, tags = draw_people(truth, own, (40, 80))
    det *= np.linspace(1.0, 0.5, 80, dtype=np.float32)  # the left ones are the surest
    people, _ = decode(det, tags, config)
    assert len(people) == 4
    assert people[:, :, 0].max() < 40

    # Joints of two different fours: all eight are people, unless further ones are to be ignored.
    det[0, :, 40:], det[1, :, :40] = 0, 0
    people, scores = decode(det, tags, GroupingConfig(max_people=4, refine=False))
    assert len(people) == 8
    assert (scores < 0.51).all()
    people, _ = decode(det, tags, GroupingConfig(max_people=4, refine=False, ignore_too_much=True))
    assert len(people) == 4


def reference_match(
    val_k: NDArray[Any], loc_k: NDArray[Any], tag_k: NDArray[Any], config: GroupingConfig
) -> NDArray[Any]:
    """Group peaks one by one; the best assignment of each joint is found by trying all."""
    joints, _, dims = tag_k.shape
    people: list[dict[int, int]] = []
    for joint in range(joints):
        peaks = [k for k in range(len(val_k[joint])) if val_k[joint, k] > config.detection_threshold]
        means = [np.mean([tag_k[j, k] for j, k in person.items()], axis=0) for person in people]
        distance = np.array([[np.linalg.norm(tag_k[joint, k] - mean) for mean in means] for k in peaks])
        # Person or nobody for each peak; as many peaks as possible get a person.
        places: list[int | None] = [*range(len(people)), *[None] * max(0, len(peaks) - len(people))]

        def cost(chosen: Sequence[int | None], distance: NDArray[Any] = distance) -> float:
            return sum(float(distance[i, p]) for i, p in enumerate(chosen) if p is not None)

        best = min(permutations(places, len(peaks)), key=cost)
        for i, (k, place) in enumerate(zip(peaks, best)):
            if place is not None and distance[i, place] < config.tag_threshold:
                people[place][joint] = k
            else:
                people.append({joint: k})
    out = np.zeros((len(people), joints, 3 + dims), np.float32)
    for row, person in zip(out, people):
        for joint, k in person.items():
            row[joint] = [*loc_k[joint, k], val_k[joint, k], *tag_k[joint, k]]
    return out


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), dims=st.integers(2, 3), spread=st.sampled_from([0.5, 2.0]))
def test_matching_equals_trying_all_assignments(seed: int, dims: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    joints, peaks = 4, 4
    val_k = -np.sort(-rng.uniform(0, 1, (joints, peaks)).astype(np.float32), axis=1)
    loc_k = rng.integers(0, 50, (joints, peaks, 2))
    tag_k = rng.normal(0, spread, (joints, peaks, dims)).astype(np.float32)
    # Rounded distances would tie; plain ones have one best assignment.
    config = GroupingConfig(detection_threshold=0.2, use_detection_value=False)
    got = match(val_k, loc_k, tag_k, config)
    np.testing.assert_array_equal(got, reference_match(val_k, loc_k, tag_k, config))


@pytest.mark.parametrize(("by_value", "chosen"), [(True, 0), (False, 1)])
def test_among_near_peaks_the_surer_or_the_nearer_one_is_taken(by_value: bool, chosen: int) -> None:
    val_k = np.array([[0.8, 0.0], [0.9, 0.5]], np.float32)
    loc_k = np.arange(8).reshape(2, 2, 2)
    tag_k = np.array([[[0.0], [0.0]], [[0.3], [0.1]]], np.float32)
    people = match(val_k, loc_k, tag_k, GroupingConfig(use_detection_value=by_value))
    assert len(people) == 2
    assert people[0, 1].tolist() == [*loc_k[1, chosen], val_k[1, chosen], *tag_k[1, chosen]]
    assert people[1, 1, 2] == val_k[1, 1 - chosen]


def reference_peaks(det: NDArray[Any], config: GroupingConfig) -> list[list[tuple[float, int, int]]]:
    """Look at every pixel and its window; of equal ones in a window the first stays."""
    reach, height, width = config.nms_kernel // 2, *det.shape[1:]
    out = []
    for heat in det:
        peaks: list[tuple[float, int, int]] = []
        for y in range(height):
            for x in range(width):
                window = heat[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
                if heat[y, x] > config.detection_threshold and heat[y, x] == window.max():
                    near = (
                        value == heat[y, x] and abs(px - x) <= reach and abs(py - y) <= reach
                        for value, px, py in peaks
                    )
                    if not any(near):
                        peaks.append((float(heat[y, x]), x, y))
        out.append(sorted(peaks, key=lambda peak: -peak[0])[: config.max_people])
    return out


@settings(deadline=None, max_examples=120)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.sampled_from([1, 3, 5, 7]),
    level=st.sampled_from([0.0, 0.5, 0.98]),  # everything above it, half, nearly nothing
    steps=st.sampled_from([12, 100000]),
)
def test_peaks_equal_a_look_at_every_window(
    seed: int, size: tuple[int, int], kernel: int, level: float, steps: int
) -> None:
    rng = np.random.default_rng(seed)
    det = (np.round(rng.uniform(0, 1, (3, *size)) * steps) / steps).astype(np.float32)
    det[0] *= rng.random() < 0.5
    tags = rng.normal(size=(3, *size, 2)).astype(np.float32)
    config = GroupingConfig(nms_kernel=kernel, detection_threshold=level, max_people=400)
    val_k, loc_k, tag_k = find_peaks(det, tags, config)
    for joint, peaks in enumerate(reference_peaks(det, config)):
        found = int((val_k[joint] > 0).sum())
        got = [(float(v), int(x), int(y)) for v, (x, y) in zip(val_k[joint, :found], loc_k[joint])]
        assert got == peaks
        x, y = loc_k[joint, :found].T
        np.testing.assert_array_equal(tag_k[joint, :found], tags[joint, y, x])
    few = find_peaks(det, tags, GroupingConfig(nms_kernel=kernel, detection_threshold=level, max_people=100))
    for full, part in zip((val_k, loc_k, tag_k), few):
        np.testing.assert_array_equal(full[:, :100], part)


def reference_refine(people: NDArray[Any], det: NDArray[Any], tags: NDArray[Any]) -> NDArray[Any]:
    """Fill in missing joints from whole maps, one at a time."""
    filled = people.copy()
    for person, row in enumerate(people):
        mean = row[row[:, 2] > 0, 3:].mean(axis=0)
        for joint in np.flatnonzero(row[:, 2] == 0):
            fit = det[joint] - np.round(np.sqrt(((tags[joint] - mean) ** 2).sum(axis=-1)))
            y, x = np.unravel_index(int(fit.argmax()), fit.shape)
            if det[joint, y, x] > 0:
                padded = np.pad(det[joint], 1, mode="edge")
                right = padded[y + 1, x + 2] > padded[y + 1, x]
                below = padded[y + 2, x + 1] > padded[y, x + 1]
                filled[person, joint, 0] = x + (0.75 if right else 0.25)
                filled[person, joint, 1] = y + (0.75 if below else 0.25)
                filled[person, joint, 2] = det[joint, y, x]
    return filled


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(2, 70), st.integers(2, 70)),
    peak=st.sampled_from([0.005, 0.3, 1.0]),
    power=st.sampled_from([1, 3, 31]),  # values spread evenly, or nearly all close to 0
    steps=st.sampled_from([3, 20, 100000]),
    smooth=st.booleans(),
    far=st.sampled_from([0.0, 1.0, 30.0]),
)
def test_refinement_equals_a_search_of_whole_maps(
    seed: int, size: tuple[int, int], peak: float, power: int, steps: int, smooth: bool, far: float
) -> None:
    rng = np.random.default_rng(seed)
    joints = 3
    # Coarse steps make equal values, of which the first counts; negative values must never be taken.
    values = rng.uniform(-0.5, 1.0, (joints, *size)) ** power
    det = (np.round(values * steps) / steps * peak).astype(np.float32)
    tags = rng.normal(0, 2, (joints, *size, 2)).astype(np.float32)
    if smooth:
        y, x = np.mgrid[: size[0], : size[1]]
        tags = (tags * 0.01 + np.stack([x / 10, y / 10], axis=-1)).astype(np.float32)
    people = np.zeros((4, joints, 5), np.float32)
    for person in range(4):
        people[person, person % joints] = [3.25, 4.75, 0.5, *rng.normal(far, 2, 2)]
    np.testing.assert_array_equal(refine(people, det, tags), reference_refine(people, det, tags))


def sub_pixel_errors(
    sigma: float, noise: float, way: Adjustment, height: float = 1.0, refined: bool = False
) -> NDArray[np.floating]:
    """Return how far (pixels) 200 joints, drawn between pixels, are found from where they are."""
    rng = np.random.default_rng([int(10 * sigma), int(100 * noise)])
    side = int(16 * sigma)
    truth = rng.uniform(0.35 * side, 0.65 * side, (200, 2))
    y, x = np.mgrid[:side, :side] + 0.5
    square = (x - truth[:, 0, None, None]) ** 2 + (y - truth[:, 1, None, None]) ** 2
    det = height * np.exp(-square / (2 * sigma**2)) + rng.normal(0, noise, square.shape)
    det = det.astype(np.float32)
    config = GroupingConfig(adjust=way, sigma=sigma)
    people = np.zeros((1, len(det), 4), np.float32)
    if refined:  # one more joint is there, the others are filled in
        det = np.concatenate([det, det[:1]])
        people = np.zeros((1, len(det), 4), np.float32)
        people[0, -1] = 0.5, 0.5, 1.0, 0.0
        found = refine(people, det, np.zeros((*det.shape, 1), np.float32), config)[0, :-1]
    else:
        for joint, heat in enumerate(det):
            row, column = np.unravel_index(int(heat.argmax()), heat.shape)
            people[0, joint] = column, row, heat.max(), 0.0
        found = adjust(people, det, config)[0]
    errors: NDArray[np.floating] = np.linalg.norm(found[:, :2] - truth, axis=1)
    return errors


@pytest.mark.parametrize("refined", [False, True])
@pytest.mark.parametrize(
    ("sigma", "noise", "factor"),
    [
        (1.0, 0.0, 50),
        (2.0, 0.0, 50),
        (3.0, 0.0, 50),
        (1.0, 0.03, 5),
        (2.0, 0.03, 5),
        (3.0, 0.03, 5),
        (2.0, 0.1, 3),
    ],
)
def test_dark_is_nearer_to_joints_between_pixels(
    sigma: float, noise: float, factor: float, refined: bool
) -> None:
    ways: tuple[Adjustment, ...] = ("none", "quarter", "dark")
    centre, quarter, dark = (sub_pixel_errors(sigma, noise, way, refined=refined).mean() for way in ways)
    assert dark * factor < quarter < centre


def test_dark_of_weak_joints_is_as_near() -> None:
    """Logarithms do not care how high a Gaussian is: joints that are filled in are as exact."""
    assert sub_pixel_errors(2.0, 0.0, "dark", height=0.05, refined=True).max() < 0.01


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.sampled_from([0.7, 1.0, 2.0, 3.3]))
def test_dark_in_windows_equals_dark_of_whole_maps(seed: int, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    det = cv2.GaussianBlur(rng.normal(size=(24, 31, 3)), (0, 0), 2.0).transpose(2, 0, 1).astype(np.float32)
    det += 0.3
    people = np.zeros((6, 3, 4), np.float32)
    people[:, :, 0] = rng.integers(0, 31, (6, 3))
    people[:, :, 1] = rng.integers(0, 24, (6, 3))
    people[:, :, 2] = 1.0
    got = adjust(people, det, GroupingConfig(adjust="dark", sigma=sigma))
    quarter = adjust(people, det)
    side = 2 * int(2.5 * sigma + 0.5) + 1
    for joint, heat in enumerate(det):
        blurred = cv2.GaussianBlur(heat, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
        h = np.log(np.maximum(blurred, 1e-10)).astype(np.float64)
        for person in range(6):
            x, y = people[person, joint, :2].astype(int)
            expected = quarter[person, joint, :2]
            if 2 <= x < 29 and 2 <= y < 22:
                slope = np.array([h[y, x + 1] - h[y, x - 1], h[y + 1, x] - h[y - 1, x]]) / 2
                cross = (h[y + 1, x + 1] - h[y + 1, x - 1] - h[y - 1, x + 1] + h[y - 1, x - 1]) / 4
                bend = np.array(
                    [
                        [(h[y, x + 2] - 2 * h[y, x] + h[y, x - 2]) / 4, cross],
                        [cross, (h[y + 2, x] - 2 * h[y, x] + h[y - 2, x]) / 4],
                    ]
                )
                highest = float(np.linalg.eigvalsh(bend).max())
                if highest < 0:  # a top
                    step = -np.linalg.solve(bend, slope)
                    if abs(highest) < 1e-3 or abs(np.abs(step).max() - sigma) < 1e-3:
                        continue  # rounding may decide either way
                    if np.abs(step).max() < sigma:
                        expected = np.array([x + 0.5, y + 0.5]) + step
                elif highest < 1e-3:
                    continue
            np.testing.assert_allclose(got[person, joint, :2], expected, atol=5e-3)
    np.testing.assert_array_equal(got[:, :, 2:], people[:, :, 2:])


def test_a_batch_is_its_images(golden: Mapping[str, NDArray[Any]]) -> None:
    det, tags = golden["det"][0], golden["tag"][0]
    batch = np.stack([det, np.zeros_like(det), det[:, ::-1]])
    batch_tags = np.stack([tags, tags, tags[:, ::-1]])
    for config in (GroupingConfig(), GroupingConfig(adjust="dark", max_people=12)):
        order = published_order(len(det))
        found = decode_batch(batch, batch_tags, config, order)
        assert [len(people) > 0 for people, _ in found] == [True, False, True]
        for one, one_tags, got in zip(batch, batch_tags, found, strict=True):
            for a, b in zip(got, decode(one, one_tags, config, order), strict=True):
                np.testing.assert_array_equal(a, b)
    assert decode_batch(batch[:0], batch_tags[:0]) == []


@pytest.mark.parametrize("fill", [0.0, 0.05, -1.0, np.nan])
def test_maps_without_people_give_none(fill: float) -> None:
    people, scores = decode(np.full((6, 20, 30), fill, np.float32), np.zeros((6, 20, 30, 2), np.float32))
    assert people.shape == (0, 6, 5)
    assert scores.shape == (0,)


def test_a_plateau_is_one_peak() -> None:
    det = np.zeros((1, 20, 30), np.float32)
    det[0, 5, 6:8] = 0.7  # a joint exactly between two pixels
    det[0, 15, 6] = det[0, 15, 20] = 0.7  # equal, but far apart
    val_k, loc_k, _ = find_peaks(det, np.zeros((1, 20, 30, 1), np.float32))
    assert (val_k[0] > 0).sum() == 3
    assert loc_k[0, :3].tolist() == [[6, 5], [6, 15], [20, 15]]


def test_a_flat_map_is_handled_quickly() -> None:
    det = np.full((2, 300, 300), 0.5, np.float32)
    people, _ = decode(det, np.zeros((2, 300, 300, 1), np.float32))
    assert 0 < len(people) <= 60


def test_thresholds_are_exclusive_and_sort_out() -> None:
    det = np.zeros((1, 9, 9), np.float32)
    det[0, 4, 4] = 0.25
    tags = np.zeros((1, 9, 9, 1), np.float32)
    assert len(decode(det, tags, GroupingConfig(detection_threshold=0.25))[0]) == 0
    assert len(decode(det, tags, GroupingConfig(detection_threshold=0.24))[0]) == 1

    det = np.zeros((2, 9, 9), np.float32)
    det[:, 4, 4] = 0.9
    tags = np.zeros((2, 9, 9, 1), np.float32)
    tags[1] = 0.9
    assert len(decode(det, tags, GroupingConfig(refine=False))[0]) == 1
    assert len(decode(det, tags, GroupingConfig(refine=False, tag_threshold=0.8))[0]) == 2


def test_joints_at_the_border_stay_inside() -> None:
    det = np.zeros((4, 8, 9), np.float32)
    corners = [(0, 0), (0, 8), (7, 0), (7, 8)]
    for joint, (y, x) in enumerate(corners):
        det[joint, y, x] = 1.0
    people, _ = decode(det, np.zeros((4, 8, 9, 1), np.float32))
    assert len(people) == 1
    for joint, (y, x) in enumerate(corners):
        assert np.abs(people[0, joint, :2] - (x + 0.5, y + 0.5)).max() == 0.25
    for way in ("none", "dark"):  # a window of DARK's that leaves the map is none
        moved, _ = decode(det, np.zeros((4, 8, 9, 1), np.float32), GroupingConfig(adjust=way))
        expected = [(x + 0.5, y + 0.5) for y, x in corners] if way == "none" else people[0, :, :2]
        np.testing.assert_array_equal(moved[0, :, :2], expected)


def test_inputs_are_left_alone(golden: Mapping[str, NDArray[Any]]) -> None:
    det, tags = golden["det"][0].copy(), golden["tag"][0].copy()
    det.flags.writeable = tags.flags.writeable = False
    decode(det, tags)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GroupingConfig(nms_kernel=4), "nms_kernel must be odd"),
        (lambda: GroupingConfig(max_people=0), "max_people must be at least 1, not 0"),
        (lambda: GroupingConfig(tag_threshold=0.0), "tag_threshold must be positive"),
        (lambda: GroupingConfig(detection_threshold=-1.0), "detection_threshold"),
        (lambda: GroupingConfig(adjust="darc"), "adjust is one of none, quarter, dark, not 'darc'"),
        (lambda: GroupingConfig(adjust=True), "adjust is one of none, quarter, dark, not True"),
        (lambda: GroupingConfig(sigma=0.0), "sigma lies above 0"),
        (lambda: decode(np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4), np.float32)), "J, H, W, T"),
        (
            lambda: decode_batch(np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4, 1), np.float32)),
            "of a batch must be",
        ),
        (
            lambda: decode(
                np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4, 1), np.float32), joint_order=(0, 0)
            ),
            "each of the 2 joints once",
        ),
    ],
)
def test_bad_input_is_named(call: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
