"""Of people who were found twice, one remains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from search_spaces import InputError
from supernet.pose.skeleton import COCO17
from supernet.pose.suppression import oks_nms, person_scores, similarities, soft_oks_nms

SIGMAS = COCO17.sigmas


def crowd(seed: int, count: int = 12) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return people (P, 17, 3), some of them nearly the same, their scores and areas."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(0, 300, (4, 1, 2)) + rng.uniform(0, 120, (4, 17, 2))
    spread = rng.choice([0.5, 4, 12], (count, 1, 1))
    people = base[rng.integers(0, 4, count)] + spread * rng.normal(0, 1, (count, 17, 2))
    joints = np.concatenate([people, rng.random((count, 17, 1))], axis=2)
    return joints, rng.random(count).round(1), rng.uniform(4000, 20000, count)


def plain_oks(a: NDArray[np.float64], b: NDArray[np.float64], area_a: float, area_b: float) -> float:
    total = 0.0
    for joint, sigma in enumerate(SIGMAS):
        square = (a[joint, 0] - b[joint, 0]) ** 2 + (a[joint, 1] - b[joint, 1]) ** 2
        total += math.exp(-square / (2 * sigma) ** 2 / ((area_a + area_b) / 2) / 2)
    return total / len(SIGMAS)


def plain_nms(
    people: NDArray[np.float64], scores: NDArray[np.float64], areas: NDArray[np.float64], limit: float
) -> list[int]:
    kept: list[int] = []
    for each in sorted(range(len(people)), key=lambda place: -scores[place]):
        if all(plain_oks(people[each], people[o], areas[each], areas[o]) <= limit for o in kept):
            kept.append(each)
    return kept


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
def test_the_same_remain_as_pair_by_pair(seed: int, limit: float) -> None:
    people, scores, areas = crowd(seed)
    assert oks_nms(people, scores, areas, SIGMAS, limit).tolist() == plain_nms(people, scores, areas, limit)


def test_likeness_is_that_of_cocos_evaluation() -> None:
    people, _, areas = crowd(3)
    alike = similarities(people, areas, SIGMAS)
    for a in range(len(people)):
        for b in range(len(people)):
            assert alike[a, b] == pytest.approx(plain_oks(people[a], people[b], areas[a], areas[b]))
    assert np.diag(alike) == pytest.approx(1)
    assert 0 < (alike > 0.5).sum() - len(people) < alike.size - len(people)


def test_a_person_found_twice_remains_once_and_neighbours_stay() -> None:
    people, _, _ = crowd(0, count=3)
    people[1] = people[0] + 0.5
    people[2] = people[0] + [200, 0, 0]
    areas = [9000.0] * 3
    assert oks_nms(people, [0.4, 0.9, 0.2], areas, SIGMAS).tolist() == [1, 2]
    order, scores = soft_oks_nms(people, [0.4, 0.9, 0.2], areas, SIGMAS)
    assert order.tolist() == [1, 2, 0]
    assert scores[:2] == pytest.approx([0.9, 0.2])
    assert scores[2] == pytest.approx(0.4 * math.exp(-1 / 0.9), rel=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 1.0))
def test_soft_scores_are_those_of_the_plain_loop(seed: int, limit: float) -> None:
    people, scores, areas = crowd(seed, 9)
    left, rest, expected = scores.tolist(), list(range(9)), []
    while rest:
        best = max(rest, key=lambda place: left[place])
        rest.remove(best)
        expected.append((best, left[best]))
        for other in rest:
            oks = plain_oks(people[best], people[other], areas[best], areas[other])
            left[other] *= math.exp(-oks * oks / limit)
    order, final = soft_oks_nms(people, scores, areas, SIGMAS, limit)
    assert final == pytest.approx([score for _, score in expected])
    assert sorted(order) == list(range(9))
    assert (np.diff(final) <= 1e-12).all()
    first, values = soft_oks_nms(people, scores, areas, SIGMAS, limit, most=4)
    assert first.tolist() == order[:4].tolist()
    assert values.tolist() == final[:4].tolist()


def test_nobody_is_nobody() -> None:
    empty = np.zeros((0, 17, 3))
    assert oks_nms(empty, [], [], SIGMAS).tolist() == []
    order, scores = soft_oks_nms(empty, [], [], SIGMAS)
    assert len(order) == len(scores) == 0


def test_joints_that_are_sure_make_the_score() -> None:
    values = np.array([[0.9, 0.5, 0.2, 0.1], [0.2, 0.1, 0.0, -1.0]])
    assert person_scores(values, [0.5, 1.0]) == pytest.approx([0.35, 0.0])
    assert person_scores(values, [1.0, 1.0], threshold=0.0) == pytest.approx([0.425, 0.15])


def test_what_does_not_fit_is_refused() -> None:
    people, scores, areas = crowd(1)
    for limit in (0.0, 1.1, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            oks_nms(people, scores, areas, SIGMAS, limit)
    with pytest.raises(InputError, match="finite score"):
        oks_nms(people, scores[:-1], areas, SIGMAS)
    with pytest.raises(InputError, match="finite score"):
        soft_oks_nms(people, np.where(scores > 0.5, np.nan, scores), areas, SIGMAS)
    with pytest.raises(InputError, match="sigmas"):
        oks_nms(people, scores, areas, SIGMAS[:14])
    with pytest.raises(InputError, match="finite places"):
        oks_nms(people * math.nan, scores, areas, SIGMAS)
    with pytest.raises(InputError, match="finite places"):
        oks_nms(people, scores, -areas, SIGMAS)
