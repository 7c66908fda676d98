"""Joints, masks and pixels move together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces.errors import InputError
from supernet.pose.dataset import PoseSample
from supernet.pose.skeleton import COCO17
from supernet.pose.transforms import (
    AffineTransform,
    Augmentation,
    _normalise_there,
    augment,
    eval_size,
    normalise,
    resize_for_eval,
)

LEFT, RIGHT = COCO17.joints.index("left_wrist"), COCO17.joints.index("right_wrist")


def dot_sample(height: int, width: int, x: float, y: float, radius: float) -> PoseSample:
    """Return a black picture with one bright disc, which is a left wrist."""
    image = np.zeros((height, width, 3), np.uint8)
    center = (round(x * 16), round(y * 16))
    cv2.circle(image, center, round(radius * 16), (255, 255, 255), -1, cv2.LINE_AA, 4)
    joints = np.zeros((1, 17, 3), np.float32)
    joints[0, LEFT] = x, y, 2
    return PoseSample(image, joints, np.ones((height, width), np.bool_), 7)


def bright_spot(image: np.ndarray) -> np.ndarray:
    weight = image[..., 0].astype(np.float64)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    size=st.tuples(st.integers(60, 200), st.integers(60, 200)),
    where=st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7)),
    resolution=st.integers(64, 200),
)
def test_a_joint_follows_the_warp(
    seed: int, size: tuple[int, int], where: tuple[float, float], resolution: int
) -> None:
    height, width = size
    radius = 3.0 * min(size) / resolution
    sample = dot_sample(height, width, where[0] * width, where[1] * height, radius)
    augmentation = Augmentation(translate=20)
    image, joints, mask, _ = augment(
        sample, resolution, augmentation, np.random.default_rng(seed), COCO17.flip_index
    )
    assert image.shape == (resolution, resolution, 3)
    assert mask.shape == (resolution, resolution)
    moved = joints[0, [LEFT, RIGHT]]
    x, y = moved[moved[:, 2] > 0][0, :2] if (moved[:, 2] > 0).any() else (-1, -1)
    if min(x, y) < 8 or max(x, y) > resolution - 9:
        return
    assert (moved[:, 2] > 0).sum() == 1
    assert np.hypot(*(bright_spot(image) - (x, y))) < 1
    assert mask[round(float(y)), round(float(x))]


def test_the_mirror_swaps_sides_and_pixels() -> None:
    sample = dot_sample(80, 80, 20, 30, 3)
    plain = augment(sample, 80, Augmentation.none(), np.random.default_rng(0), COCO17.flip_index)
    mirror = Augmentation(rotation=0, scale=(1, 1), translate=0, flip=1)
    image, joints, _, mirrored = augment(sample, 80, mirror, np.random.default_rng(0), COCO17.flip_index)
    assert mirrored and not plain[3]
    np.testing.assert_array_equal(plain[0], sample.image)
    np.testing.assert_array_equal(plain[1], sample.joints)
    np.testing.assert_array_equal(image, sample.image[:, ::-1])
    assert joints[0, RIGHT].tolist() == [59, 30, 2]
    assert joints[0, LEFT, 2] == 0
    again = PoseSample(image, joints, sample.mask, 7)
    twice, back, *_ = augment(again, 80, mirror, np.random.default_rng(0), COCO17.flip_index)
    np.testing.assert_array_equal(twice, sample.image)
    np.testing.assert_array_equal(back[0, LEFT], sample.joints[0, LEFT])


def test_joints_out_of_the_frame_lose_their_label() -> None:
    sample = dot_sample(60, 200, 10, 30, 3)
    _, joints, *_ = augment(sample, 60, Augmentation.none(), np.random.default_rng(0), COCO17.flip_index)
    assert joints[0, LEFT, 0] == -60
    assert joints[0, LEFT, 2] == 0


def test_the_mask_follows_and_ends_with_the_picture() -> None:
    sample = dot_sample(100, 100, 50, 50, 3)
    sample.mask[:, :50] = False
    zoom_out = Augmentation(rotation=0, scale=(2, 2), translate=0, flip=0)
    _, _, mask, _ = augment(sample, 100, zoom_out, np.random.default_rng(0), COCO17.flip_index)
    expected = np.zeros((100, 100), np.bool_)
    expected[25:75, 50:75] = True
    assert (mask != expected).sum() < 2 * 100
    assert abs(int(mask.sum()) - 1250) < 100


def test_scale_range_is_of_the_short_side() -> None:
    sample = dot_sample(100, 300, 150, 50, 3)
    sample.joints[0, RIGHT] = 160, 50, 2
    rng = np.random.default_rng(0)
    augmentation = Augmentation(rotation=0, translate=0, flip=0)
    spans = []
    for _ in range(300):
        _, joints, *_ = augment(sample, 200, augmentation, rng, COCO17.flip_index)
        spans.append(abs(float(joints[0, RIGHT, 0] - joints[0, LEFT, 0])))
    assert 20 / 1.5 - 1e-3 < min(spans) < 14
    assert 26 < max(spans) < 20 / 0.75 + 1e-3


def test_shift_is_a_share_of_the_frame() -> None:
    sample = dot_sample(100, 100, 50, 50, 3)
    augmentation = Augmentation(rotation=0, scale=(1, 1), translate=40, flip=0)
    for resolution in (64, 256):
        rng = np.random.default_rng(1)
        x = [
            float(augment(sample, resolution, augmentation, rng, COCO17.flip_index)[1][0, LEFT, 0])
            for _ in range(300)
        ]
        assert 0.195 < (max(x) - resolution / 2) / resolution <= 0.2
        assert 0.195 < (resolution / 2 - min(x)) / resolution <= 0.2


amount = st.one_of(st.just(0.0), st.floats(0.0, 0.99))
augmentations = st.builds(
    Augmentation,
    rotation=st.one_of(st.just(0.0), st.floats(0, 180)),
    scale=st.sampled_from([(1.0, 1.0), (0.75, 1.5), (0.3, 4.0)]),
    translate=st.sampled_from([0.0, 40.0, 200.0]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    brightness=amount,
    contrast=amount,
    saturation=amount,
    hue=st.one_of(st.just(0.0), st.floats(0, 180)),
    gray=st.sampled_from([0.0, 0.5, 1.0]),
)


@settings(deadline=None)
@given(augmentations, st.integers(0, 2**32))
def test_every_call_draws_alike(augmentation: Augmentation, seed: int) -> None:
    sample = dot_sample(60, 60, 30, 30, 3)
    a, b = np.random.default_rng(seed), np.random.default_rng(seed)
    augment(sample, 32, Augmentation.none(), a, COCO17.flip_index)
    augment(sample, 48, augmentation, b, COCO17.flip_index)
    assert a.random() == b.random()


def test_the_random_numbers_of_a_picture_are_fixed() -> None:
    """What each of them is for, in an order that never changes: a recipe gives what it always gave."""
    turn, zoom, x, y, mirror, *_ = np.random.default_rng(11).random(10)
    sample = dot_sample(100, 140, 40, 30, 3)
    _, joints, *_ = augment(sample, 100, Augmentation(), np.random.default_rng(11), COCO17.flip_index)
    side = 100 * (0.75 + 0.75 * zoom)
    center = (70 + (2 * x - 1) * side / 5, 50 + (2 * y - 1) * side / 5)
    where = AffineTransform.about(center, (50, 50), 100 / side, 30 * (2 * turn - 1))(np.array([40.0, 30.0]))
    assert mirror < 0.5
    np.testing.assert_allclose(joints[0, RIGHT, :2], (99 - where[0], where[1]), atol=1e-4)


@settings(deadline=None)
@given(
    augmentations,
    st.integers(0, 2**32),
    st.tuples(st.integers(20, 90), st.integers(20, 90)),
    st.integers(16, 96),
    st.sampled_from([0.0, 0.02, 1.0]),
)
def test_a_strided_mask_is_every_other_pixel_of_the_full_one(
    augmentation: Augmentation, seed: int, size: tuple[int, int], resolution: int, holes: float
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = rng.random(size) >= holes
    sample = PoseSample(image, np.zeros((0, 17, 3), np.float32), mask, 1)

    def run(stride: int, sample: PoseSample = sample) -> tuple[np.ndarray, np.ndarray]:
        draws = np.random.default_rng(seed)
        image, _, mask, _ = augment(sample, resolution, augmentation, draws, COCO17.flip_index, stride)
        return image, mask

    picture, full = run(1)
    assert full.shape == (resolution, resolution)
    for stride in (2, 4):
        image_, strided = run(stride)
        np.testing.assert_array_equal(strided, full[::stride, ::stride])
        np.testing.assert_array_equal(image_, picture)
    # Without holes it is True exactly where the picture is: nothing is guessed where no warp is made. A pixel
    # between centres shows at least a quarter of the picture's corner, one beyond an edge at most half of it.
    if not holes:
        white = PoseSample(np.full((*size, 3), 255, np.uint8), sample.joints, mask, 1)
        plain = replace(augmentation, brightness=0, contrast=0, saturation=0, hue=0, gray=0)
        draws = np.random.default_rng(seed)
        shown = augment(white, resolution, plain, draws, COCO17.flip_index)[0][..., 0]
        assert not (full & (shown < 55)).any() and not (~full & (shown > 135)).any()


def test_colours_change_within_bounds_and_geometry_does_not() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(60, 180, (64, 64, 3), dtype=np.uint8)
    sample = PoseSample(image, np.zeros((0, 17, 3), np.float32), np.ones((64, 64), np.bool_), 1)
    gains = []
    for seed in range(100):
        augmentation = Augmentation(rotation=0, scale=(1, 1), translate=0, flip=0, brightness=0.3)
        out, *_ = augment(sample, 64, augmentation, np.random.default_rng(seed), COCO17.flip_index)
        gains.append(float(out.mean() / image.mean()))
    assert 0.69 < min(gains) < 0.75 < 1.25 < max(gains) < 1.31
    augmentation = Augmentation(rotation=0, scale=(1, 1), translate=0, flip=0, saturation=0.99)
    out, *_ = augment(sample, 64, augmentation, np.random.default_rng(1), COCO17.flip_index)
    gray = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(int) for each in (image, out)]
    assert not np.array_equal(out, image)
    assert abs(gray[0] - gray[1]).mean() < 2


def colours(image: np.ndarray, seed: int, **settings: float) -> np.ndarray:
    """Return the picture as it is after changes of colour alone."""
    joints, mask = np.zeros((0, 17, 3), np.float32), np.ones(image.shape[:2], np.bool_)
    augmentation = Augmentation(rotation=0, scale=(1, 1), translate=0, flip=0, **settings)
    sample = PoseSample(image, joints, mask, 1)
    rng = np.random.default_rng(seed)
    return augment(sample, image.shape[0], augmentation, rng, COCO17.flip_index)[0]


LUMA = np.array([0.299, 0.587, 0.114])


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    *(st.one_of(st.just(0.0), st.floats(0.0, 0.9)) for _ in range(3)),
    st.sampled_from([0.0, 0.5]),
)
def test_colours_are_changed_by_the_formulas(
    seed: int, brightness: float, contrast: float, saturation: float, gray: float
) -> None:
    """Saturation, then contrast about the mean, then brightness, one after another in floats, +- 1."""
    image = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    draws = np.random.default_rng(seed).random(10)[5:]
    b, c, s = 1 + (2 * draws[:3] - 1) * (brightness, contrast, saturation)
    if draws[4] < gray:
        s = 0.0
    out = image.astype(np.float64)
    luma = (out @ LUMA)[..., None]
    out = luma + (out - luma) * s
    out = (out.mean() + (out - out.mean()) * c) * b
    got = colours(image, seed, brightness=brightness, contrast=contrast, saturation=saturation, gray=gray)
    assert np.abs(got - np.clip(np.rint(out), 0, 255)).max() <= 1


def test_gray_is_gray_as_often_as_told() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    outs = [colours(image, seed, gray=0.3) for seed in range(400)]
    grays = [out for out in outs if np.ptp(out.astype(int), axis=2).max() <= 1]
    assert len(grays) / 400 == pytest.approx(0.3, abs=5 * np.sqrt(0.21 / 400))
    assert all(np.array_equal(out, image) for out in outs if np.ptp(out.astype(int), axis=2).max() > 1)
    assert np.abs(grays[0][..., 0] - image @ LUMA).max() <= 1


def test_hue_turns_colours_and_keeps_luma_and_gray() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(100, 156, (16, 16, 3), dtype=np.uint8)  # no colour reaches the end of the range
    image[0] = image[0, :, :1]
    turned = [colours(image, seed, hue=180) for seed in range(60)]
    for out in turned:
        assert np.abs(out @ LUMA - image @ LUMA).max() < 1.5
        assert np.abs(out[0].astype(int) - image[0]).max() <= 1
    chroma = [(out[5, 5] - image[5, 5] @ LUMA)[[0, 2]] for out in turned]
    angles = np.sort([np.arctan2(*each) for each in chroma])
    assert np.diff(angles).max() < 1.2  # all around the circle
    small = [np.abs(colours(image, seed, hue=5).astype(int) - image).max() for seed in range(30)]
    assert 0 < max(small) < 15


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rotation": 200}, "rotation must be 0..180 degrees, got 200"),
        ({"scale": (1.5, 0.75)}, "scale must be"),
        ({"scale": (0, 1)}, "scale must be"),
        ({"translate": -1}, "translate must be"),
        ({"flip": 2}, "flip is a probability"),
        ({"gray": -0.1}, "gray is a probability"),
        ({"hue": 181}, "hue must be 0..180 degrees, got 181"),
        ({"contrast": 1.0}, "contrast must be"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation(**wrong)


@given(st.floats(-180, 180), st.floats(0.1, 10), st.tuples(st.floats(-500, 500), st.floats(-500, 500)))
def test_inverse_undoes(rotation: float, scale: float, center: tuple[float, float]) -> None:
    transform = AffineTransform.about(center, (10.0, 20.0), scale, rotation)
    points = np.array([[0.0, 0.0], [100.0, -50.0], list(center)])
    np.testing.assert_allclose(transform(points)[2], [10, 20], atol=1e-6)
    np.testing.assert_allclose(transform.inverse()(transform(points)), points, atol=1e-6)
    np.testing.assert_allclose(transform.then(transform.inverse())(points), points, atol=1e-6)


def test_rotation_is_clockwise_on_screen() -> None:
    quarter = AffineTransform.about((0.0, 0.0), (0.0, 0.0), 1.0, 90.0)
    np.testing.assert_allclose(quarter(np.array([1.0, 0.0])), [0, 1], atol=1e-12)


@pytest.mark.parametrize(
    ("picture", "resolution", "multiple", "expected"),
    [
        ((480, 640), 448, 64, (448, 640)),
        ((640, 480), 448, 64, (640, 448)),
        ((427, 640), 512, 64, (512, 768)),
        ((500, 500), 256, 64, (256, 256)),
        ((480, 640), 300, 64, (320, 448)),
        ((480, 640), 448, 32, (448, 608)),
    ],
)
def test_evaluation_sizes(
    picture: tuple[int, int], resolution: int, multiple: int, expected: tuple[int, int]
) -> None:
    assert eval_size(*picture, resolution, multiple) == expected


@settings(max_examples=30)
@given(st.integers(60, 400), st.integers(60, 400), st.sampled_from([64, 128, 192]))
def test_evaluation_picture_maps_back(height: int, width: int, resolution: int) -> None:
    x, y = 0.45 * width, 0.6 * height
    sample = dot_sample(height, width, x, y, 4 * min(height, width) / resolution)
    image, back = resize_for_eval(sample.image, resolution)
    assert image.shape[:2] == eval_size(height, width, resolution)
    tolerance = max(1.0, min(height, width) / resolution)
    assert np.hypot(*(back(bright_spot(image)) - (x, y))) < tolerance


def test_evaluation_refuses_nonsense() -> None:
    with pytest.raises(InputError, match="resolution 0"):
        eval_size(10, 10, 0)


def test_normalise() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    before = images.copy()
    out = normalise(images)
    expected = (images / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(out.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(images, before)
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    for each in (images, every, every[:, ::2, 1:], every[:0]):
        tensor = torch.from_numpy(each)
        assert torch.equal(normalise(each), _normalise_there(tensor))  # what a GPU computes
        assert torch.equal(normalise(each), normalise(tensor))


def test_what_was_noted_before_half_bodies_came_stays_the_same() -> None:
    """Trainings, and files of statistics, are known by what their augmentation is called."""
    assert "half_body" not in repr(Augmentation())
    assert repr(Augmentation(half_body=0.3)).endswith("half_body=0.3)")
    assert repr(Augmentation(rotation=5)) != repr(Augmentation())
