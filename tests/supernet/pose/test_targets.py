"""Heatmaps and tag indices: equal to the published conventions' outputs, at any size, for whole batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import SPACES
from search_spaces.errors import InputError
from supernet.pose.loader import STRIDES, map_size
from supernet.pose.targets import draw_heatmaps, tag_indices

GOLDENS = ["targets_j14_128_5people.npz", "targets_j17_128_5people.npz"]


@pytest.mark.parametrize("name", GOLDENS)
def test_equal_to_goldens(shared: Path, name: str) -> None:
    golden = np.load(shared / "golden" / name)
    joints = golden["joints"]
    batch = np.stack([joints, np.zeros_like(joints), joints[::-1]])
    drawn = draw_heatmaps(batch, 128, 128).numpy()
    np.testing.assert_array_equal(drawn[0], golden["heatmap_sigma2"])
    np.testing.assert_array_equal(drawn[2], golden["heatmap_sigma2"])
    assert not drawn[1].any()
    np.testing.assert_array_equal(tag_indices(batch, 128, 128)[0], golden["joints_idx"])
    np.testing.assert_array_equal(tag_indices(joints, 128, 128), golden["joints_idx"])
    flat = tag_indices(joints, 128, 128, tag_per_joint=False)
    np.testing.assert_array_equal(flat, golden["joints_idx_notagperjoint"])


def random_joints(
    seed: int, shape: tuple[int, ...], height: int, width: int, grid: float = 0.25
) -> np.ndarray:
    """Return joints in and around a map, on a grid, so that cells and borders are hit exactly."""
    rng = np.random.default_rng(seed)
    low, high = (-6.0, -6.0, 0.0), (width + 6.0, height + 6.0, 3.0)
    return rng.uniform(low, high, size=(*shape, 3)) // (grid, grid, 1) * (grid, grid, 1)


def by_definition(joints: np.ndarray, height: int, width: int, sigma: float) -> np.ndarray:
    """Draw one image's heatmaps pixel by pixel from the formula."""
    y, x = np.mgrid[:height, :width]
    expected = np.zeros((joints.shape[1], height, width), np.float32)
    reach = np.ceil(3 * sigma) + 1
    for person in joints:
        for joint, (jx, jy, v) in enumerate(person):
            cx, cy = np.trunc(jx), np.trunc(jy)
            if v <= 0 or not (0 <= cx < width and 0 <= cy < height):
                continue
            bump = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * sigma**2)).astype(np.float32)
            bump[(abs(x - cx) > reach) | (abs(y - cy) > reach)] = 0
            expected[joint] = np.maximum(expected[joint], bump)
    return expected


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(0, 3), st.integers(0, 6), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    sigma=st.one_of(st.sampled_from([0.5, 1.0, 2.0, 3.0]), st.floats(0.5, 6.0)),
)
def test_heatmaps_are_the_definition_to_the_bit(
    seed: int, shape: tuple[int, int, int], size: tuple[int, int], sigma: float
) -> None:
    joints = random_joints(seed, shape, *size)
    drawn = draw_heatmaps(joints, *size, sigma)
    assert (tuple(drawn.shape), drawn.dtype) == ((shape[0], shape[2], *size), torch.float32)
    for image, people in zip(drawn, joints, strict=True):
        np.testing.assert_array_equal(image.numpy(), by_definition(people, *size, sigma))


def test_many_joints_at_once_and_float32_joints() -> None:
    """More joints than are drawn in one go, in the type that the loader has."""
    joints = random_joints(0, (4, 30, 17), 48, 48).astype(np.float32)
    drawn = draw_heatmaps(joints, 48, 48).numpy()
    assert (joints[..., 2] > 0).sum() > 32768 // 15**2 * 2
    for image, people in zip(drawn, joints, strict=True):
        np.testing.assert_array_equal(image, by_definition(people, 48, 48, 2.0))


def test_maps_have_the_network_s_memory_layout() -> None:
    drawn = draw_heatmaps(random_joints(1, (2, 3, 5), 9, 7), 9, 7)
    assert drawn.is_contiguous(memory_format=torch.channels_last)


def test_a_border_cuts_and_never_wraps() -> None:
    for x, y in [(0, 0), (19, 0), (0, 29), (19, 29), (7, 0), (19, 12)]:
        joints = np.array([[[[x, y, 2.0], [0, 0, 0]]]])
        drawn = draw_heatmaps(joints, 30, 20).numpy()[0]
        assert np.unravel_index(drawn[0].argmax(), (30, 20)) == (y, x) and drawn[0].max() == 1
        far = np.maximum(*(abs(a - b) for a, b in zip(np.mgrid[:30, :20], (y, x), strict=True))) > 7
        assert not drawn[0][far].any() and (drawn[0][~far] > 0).all()
        assert not drawn[1].any()


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), people=st.integers(1, 6), joints=st.integers(1, 5))
def test_tags_point_at_the_peaks(seed: int, people: int, joints: int) -> None:
    height, width = 24, 33
    placed = random_joints(seed, (people, joints), height, width)
    maps = draw_heatmaps(placed[None], height, width)[0].contiguous().numpy().ravel()
    tags = tag_indices(placed, height, width)
    assert tags.shape == (30, joints, 2)
    index, seen = tags[..., 0], tags[..., 1] == 1
    assert (maps[index[seen]] == 1).all()
    assert (index[~seen] == 0).all()
    # A joint has a tag exactly where it has a cell: every cell at 1 is some person's.
    assert set(index[seen].tolist()) == set(np.flatnonzero(maps == 1).tolist())


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    room=st.integers(1, 9),
    per_joint=st.booleans(),
)
def test_padding_and_company_in_a_batch_change_no_tags(
    seed: int, counts: list[int], room: int, per_joint: bool
) -> None:
    batch = np.zeros((len(counts), max(counts), 4, 3))
    for row, count in enumerate(counts):
        batch[row, :count] = random_joints(seed + row, (count, 4), 16, 20, grid=1.0)
    together = tag_indices(batch, 16, 20, room, tag_per_joint=per_joint)
    for row, count in enumerate(counts):
        alone = tag_indices(batch[row, :count], 16, 20, room, tag_per_joint=per_joint)
        np.testing.assert_array_equal(together[row], alone)
        for person, targets in zip(batch[row], alone, strict=False) if count <= room else ():
            inside = [
                (joint * 16 * 20 * per_joint) + int(y) * 20 + int(x)
                for joint, (x, y, v) in enumerate(person)
                if v > 0 and 0 <= np.trunc(x) < 20 and 0 <= np.trunc(y) < 16
            ]
            assert targets.tolist() == [[flat, 1] for flat in inside] + [[0, 0]] * (4 - len(inside))


@pytest.mark.parametrize("kind", sorted(SPACES))
def test_every_resolution_of_every_space(kind: str) -> None:
    """A corner joint of the picture has the last cell of both maps, whatever the side."""
    resolutions = next(c.values for c in SPACES[kind](17).choices if c.name == "resolution")
    for resolution in (*map(int, resolutions), 97, 333):
        corner = np.full((1, 1, 17, 3), resolution - 1, np.float32)
        corner[..., 2] = 2
        for stride in STRIDES:
            side = map_size(resolution, stride)
            scaled = corner / np.float32([stride, stride, 1])
            assert (draw_heatmaps(scaled, side, side)[0, :, -1, -1] == 1).all()
            assert tag_indices(scaled, side, side)[0, 0, :, 0].tolist() == [
                (joint + 1) * side * side - 1 for joint in range(17)
            ]


def test_the_people_with_most_joints_are_kept() -> None:
    joints = np.zeros((40, 2, 3))
    joints[:, :, 0] = np.arange(40)[:, None]
    joints[:, 0, 2] = 2
    joints[5:36, 1, 2] = 2
    tags = tag_indices(joints, 4, 64, max_people=30)
    assert tags[:, 0, 0].tolist() == list(range(5, 35))
    assert (tags[..., 1] == 1).all()


def test_empty_pictures() -> None:
    none = np.zeros((2, 0, 17, 3))
    assert draw_heatmaps(none, 8, 9).shape == (2, 17, 8, 9)
    assert not draw_heatmaps(none, 8, 9).any()
    assert tag_indices(none, 8, 9).shape == (2, 30, 17, 2)
    assert not tag_indices(none, 8, 9).any()


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="positive sigma, got 0"):
        draw_heatmaps(np.zeros((1, 1, 2, 3)), 8, 8, sigma=0)
    with pytest.raises(InputError, match=r"shape \(N, people, joints, 3\), got \(1, 2, 3\)"):
        draw_heatmaps(np.zeros((1, 2, 3)), 8, 8)
    with pytest.raises(InputError, match=r"shape \(..., people, joints, 3\), got \(2, 3\)"):
        tag_indices(np.zeros((2, 3)), 8, 8)
    with pytest.raises(InputError, match="max_people=0"):
        tag_indices(np.zeros((1, 2, 3)), 8, 8, max_people=0)
