"""Places of joints from heatmaps of one person each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from search_spaces import InputError
from supernet.pose.crops import draw_joints
from supernet.pose.heatmaps import HeatmapDecoding, decode_heatmaps, flip_maps
from supernet.pose.skeleton import COCO17

pytestmark = pytest.mark.usefixtures("one_thread")

HEIGHT, WIDTH = 64, 48
METHODS: tuple[HeatmapDecoding, ...] = ("argmax", "quarter", "dark")
FACTOR_CLEAN, FACTOR_NOISY = 500, 9
"""How many times nearer DARK is than the quarter offset, at least: on clean maps (measured: 870 and more),
and with noise of 0.01 and 0.02 where a peak is 1 (measured: 20 and 11)."""


def centres(seed: int = 0, margin: float = 9.0, count: int = 40) -> NDArray[np.float32]:
    """Return joints (count, 17, 3) in cells at random places, away from the border."""
    rng = np.random.default_rng(seed)
    joints = np.full((count, 17, 3), 2, np.float32)
    joints[..., 0] = rng.uniform(margin, WIDTH - 1 - margin, joints.shape[:2])
    joints[..., 1] = rng.uniform(margin, HEIGHT - 1 - margin, joints.shape[:2])
    return joints


def drawn(joints: NDArray[np.float32], sigma: float = 2.0) -> NDArray[np.float32]:
    return np.ascontiguousarray(draw_joints(joints, HEIGHT, WIDTH, sigma).numpy())


def error(maps: NDArray[np.float32], joints: NDArray[np.float32], method: Any, sigma: float = 2.0) -> float:
    """Return the mean distance of found joints to true ones, cells."""
    found = decode_heatmaps(maps, method, sigma)[..., :2] - 0.5
    return float(np.linalg.norm(found - joints[..., :2], axis=2).mean())


def noisy(maps: NDArray[np.float32], amount: float, seed: int = 1) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(0, amount, maps.shape)
    return (maps + noise).astype(np.float32)


@pytest.mark.parametrize("sigma", [1.5, 2.0, 3.0])
def test_dark_finds_centres_between_cells(sigma: float) -> None:
    joints = centres()
    clean = drawn(joints, sigma)
    argmax, quarter, dark = (error(clean, joints, method, sigma) for method in METHODS)
    assert argmax == pytest.approx(0.383, abs=0.02)  # mean distance of a cell's points to its middle
    assert quarter == pytest.approx(argmax / 2, rel=0.05)
    assert dark < quarter / FACTOR_CLEAN


@pytest.mark.parametrize("amount", [0.01, 0.02])
def test_dark_is_nearer_on_noisy_maps(amount: float) -> None:
    joints = centres(2)
    maps = noisy(drawn(joints), amount)
    assert error(maps, joints, "dark") < error(maps, joints, "quarter") / FACTOR_NOISY


@pytest.mark.parametrize("amount", [0.0, 0.02])
def test_dark_is_nearer_next_to_the_border_too(amount: float) -> None:
    joints = centres(3, margin=0.0, count=300)
    maps = noisy(drawn(joints), amount)
    far = [
        np.linalg.norm(decode_heatmaps(maps, method)[..., :2] - 0.5 - joints[..., :2], axis=2)
        for method in ("quarter", "dark")
    ]
    last = np.array([WIDTH - 1, HEIGHT - 1])
    away = np.minimum(joints[..., :2], last - joints[..., :2]).min(axis=2)
    for cells, factor in ((0, 1.05), (1, 1.2), (2, 2.8), (3, 7)):  # measured: 1.09 to 1.15, 1.27, 3.1, 8
        ring = (away >= cells) & (away < cells + 1)
        assert ring.sum() > 300
        assert far[1][ring].mean() < far[0][ring].mean() / factor


@pytest.mark.parametrize("method", METHODS)
def test_low_and_scaled_maps_are_decoded_alike(method: HeatmapDecoding) -> None:
    maps = drawn(centres(3, count=4))
    found, low = decode_heatmaps(maps, method), decode_heatmaps(0.125 * maps, method)
    assert np.abs(found[..., :2] - low[..., :2]).max() < 1e-3
    assert low[..., 2] == pytest.approx(0.125 * found[..., 2])
    assert found[..., 2] == pytest.approx(maps.max(axis=(2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_joints_come_from_their_own_maps(method: HeatmapDecoding) -> None:
    maps = drawn(centres(4, count=3))
    whole = decode_heatmaps(maps, method)
    for person in range(3):
        for joint in range(17):
            alone = decode_heatmaps(maps[person : person + 1, joint : joint + 1], method)
            assert whole[person, joint] == pytest.approx(alone[0, 0], abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_mirrored_maps_have_mirrored_joints(method: HeatmapDecoding) -> None:
    maps = noisy(drawn(centres(5, margin=1.0, count=10)), 0.02)
    found, other = decode_heatmaps(maps, method), decode_heatmaps(maps[..., ::-1], method)
    assert WIDTH - found[..., 0] == pytest.approx(other[..., 0], abs=1e-3)
    assert found[..., 1:] == pytest.approx(other[..., 1:], abs=1e-3)


def test_peaks_at_the_border_and_flat_maps_do_not_move() -> None:
    maps = np.zeros((1, 6, HEIGHT, WIDTH), np.float32)
    places = [(0, 0), (WIDTH - 1, HEIGHT - 1), (0, 30), (20, HEIGHT - 1)]
    for joint, (x, y) in enumerate(places):
        maps[0, joint, y, x] = 1.0
    maps[0, 5] = -3.0
    for method in METHODS:
        found = decode_heatmaps(maps, method)[0]
        assert found[:4, :2].tolist() == [[x + 0.5, y + 0.5] for x, y in places]
        assert found[4].tolist() == [0.5, 0.5, 0.0]
        assert found[5].tolist() == [0.5, 0.5, -3.0]


def test_a_step_never_goes_far() -> None:
    """Maps of noise alone have ridges and saddles, on which a Newton step would leave the map."""
    maps = np.random.default_rng(0).random((30, 17, HEIGHT, WIDTH), dtype=np.float32)
    found, cells = decode_heatmaps(maps, "dark"), decode_heatmaps(maps, "argmax")
    assert np.isfinite(found).all()
    moved = np.abs(found - cells)[..., :2]
    assert 0 < moved.max() <= 2.0


def test_nothing_that_is_no_heatmap() -> None:
    maps = np.zeros((2, 3, 8, 6), np.float32)
    with pytest.raises(InputError, match=r"\(N, J, h, w\)"):
        decode_heatmaps(maps[0])
    with pytest.raises(InputError, match="argmax, quarter, dark"):
        decode_heatmaps(maps, "best")  # type: ignore[arg-type]
    for sigma in (0.0, float("nan"), 101.0):
        with pytest.raises(InputError, match="sigma"):
            decode_heatmaps(maps, "dark", sigma)
    assert decode_heatmaps(maps[:0]).shape == (0, 3, 3)


# -- flip test -----------------------------------------------------------------------------------------------


class Even(nn.Module):
    """A network to which a mirrored picture is a mirrored picture: its weights are mirror images."""

    def __init__(self, joints: int, flip_index: NDArray[np.int64]) -> None:
        super().__init__()
        weight = torch.randn(joints, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        twin = weight.flip(3)[torch.from_numpy(flip_index)]
        self.weight = nn.Parameter((weight + twin) / 2)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (functional.avg_pool2d(functional.conv2d(images, self.weight, padding=1), 4),)


def test_maps_of_a_mirrored_picture_mirrored_back_are_the_maps() -> None:
    network = Even(17, COCO17.flip_index)
    images = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps, other = network(images)[0], network(images.flip(3))[0]
    assert torch.allclose(flip_maps(other, COCO17.flip_index), maps, atol=1e-5)
    assert not torch.allclose(other.flip(3), maps, atol=0.1)  # left and right must change places, too
    with pytest.raises(InputError, match="one mirrored joint for each of the network's 17"):
        flip_maps(other, COCO17.flip_index[:14])
