"""Heatmaps and tag indices: equal to the published conventions' outputs, at any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InputError
from supernet.pose.targets import heatmaps, tag_indices

GOLDENS = ["targets_j14_128_5people.npz", "targets_j17_128_5people.npz"]


@pytest.mark.parametrize("name", GOLDENS)
def test_equal_to_goldens(shared: Path, name: str) -> None:
    golden = np.load(shared / "golden" / name)
    joints = golden["joints"]
    np.testing.assert_array_equal(heatmaps(joints, 128, 128), golden["heatmap_sigma2"])
    np.testing.assert_array_equal(tag_indices(joints, 128, 128), golden["joints_idx"])
    flat = tag_indices(joints, 128, 128, tag_per_joint=False)
    np.testing.assert_array_equal(flat, golden["joints_idx_notagperjoint"])


people = st.integers(0, 2**32 - 1).map(
    lambda seed: (
        np.random.default_rng(seed).uniform((-6, -6, 0), (40, 30, 3), size=(1 + seed % 6, 1 + seed % 5, 3))
        // (0.25, 0.25, 1)
        * (0.25, 0.25, 1)
    )
)


@given(people, st.floats(0.5, 3.0))
def test_heatmap_is_the_definition(joints: np.ndarray, sigma: float) -> None:
    height, width = 24, 33
    y, x = np.mgrid[:height, :width]
    expected = np.zeros((joints.shape[1], height, width))
    reach = np.ceil(3 * sigma) + 1
    for person in joints:
        for joint, (jx, jy, v) in enumerate(person):
            cx, cy = np.trunc(jx), np.trunc(jy)
            if v <= 0 or not (0 <= cx < width and 0 <= cy < height):
                continue
            bump = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2))
            bump[(abs(x - cx) > reach) | (abs(y - cy) > reach)] = 0
            expected[joint] = np.maximum(expected[joint], bump)
    np.testing.assert_allclose(heatmaps(joints, height, width, sigma), expected, atol=1e-7)


@given(people)
def test_tags_point_at_the_peaks(joints: np.ndarray) -> None:
    height, width = 24, 33
    maps = heatmaps(joints, height, width).ravel()
    tags = tag_indices(joints, height, width)
    assert tags.shape == (30, joints.shape[1], 2)
    index, seen = tags[..., 0], tags[..., 1] == 1
    assert (maps[index[seen]] == 1).all()
    assert (index[~seen] == 0).all()
    # A joint has a tag exactly where it has a cell: every cell at 1 is some person's.
    assert set(index[seen].tolist()) == set(np.flatnonzero(maps == 1).tolist())


def test_the_people_with_most_joints_are_kept() -> None:
    joints = np.zeros((40, 2, 3))
    joints[:, :, 0] = np.arange(40)[:, None]
    joints[:, 0, 2] = 2
    joints[5:36, 1, 2] = 2
    tags = tag_indices(joints, 4, 64, max_people=30)
    assert tags[:, 0, 0].tolist() == list(range(5, 35))
    assert (tags[..., 1] == 1).all()


def test_empty_picture() -> None:
    none = np.zeros((0, 17, 3))
    assert heatmaps(none, 8, 9).shape == (17, 8, 9)
    assert not tag_indices(none, 8, 9).any()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="positive sigma, got 0"):
        heatmaps(np.zeros((1, 2, 3)), 8, 8, sigma=0)
    with pytest.raises(InputError, match=r"shape \(people, joints, 3\), got \(2, 3\)"):
        heatmaps(np.zeros((2, 3)), 8, 8)
    with pytest.raises(InputError, match="max_people=0"):
        tag_indices(np.zeros((1, 2, 3)), 8, 8, max_people=0)
