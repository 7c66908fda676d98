"""Training batches of people: crops, their targets, and what varies."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from search_spaces import InputError, RunError
from supernet.pose.boxes import Box, crop_transform
from supernet.pose.crops import (
    MAP_STRIDES,
    Person,
    PersonCache,
    PersonCrops,
    augment_person,
    draw_joints,
    gather_people,
    in_cells,
    lower_joints,
)
from supernet.pose.dataset import PoseDataset
from supernet.pose.heatmaps import decode_heatmaps
from supernet.pose.loader import gather
from supernet.pose.losses import teach_heatmaps
from supernet.pose.skeleton import COCO17, CROWDPOSE14, Skeleton
from supernet.pose.synthetic import SyntheticPeople, write_dataset
from supernet.pose.transforms import MEAN_COLOUR, Augmentation
from tests.supernet.pose.beacon import LIGHTS, picture, three_lights

pytestmark = pytest.mark.usefixtures("one_thread")

STILL = Augmentation.none()
LIVELY = Augmentation(
    rotation=40, scale=(0.7, 1.3), translate=20, half_body=0.3, hue=30, brightness=0.2, gray=0.1
)


@pytest.fixture(scope="module")
def data() -> SyntheticPeople:
    return SyntheticPeople(10, 4, size=(96, 120), people=(1, 3))


@pytest.fixture(scope="module")
def people(data: SyntheticPeople) -> PersonCrops:
    return PersonCrops(data)


def lamp(turn: float = 0.0) -> Person:
    """Return a picture of three lights with the joints where the lights are."""
    at = three_lights(150, 120, turn)
    joints = np.array([[*each, 2] for each in at], np.float32)
    low, high = joints[:, :2].min(axis=0) - 5, joints[:, :2].max(axis=0) + 5
    return Person(picture(150, 120, at), joints, Box(*low.tolist(), *(high - low).tolist()))


def brightest(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return where each light is in a crop: x, y of the centre of what is bright, per colour."""
    places = []
    for channel in range(3):
        weight = np.maximum(image[..., channel].astype(float) - 150, 0)
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        places.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    return np.array(places)


# -- the entries ---------------------------------------------------------------------------------------------


def test_one_entry_per_labelled_person(data: SyntheticPeople, people: PersonCrops) -> None:
    expected = [(index, p) for index in range(len(data)) for p in range(len(data.joints(index)))]
    assert len(people) == len(expected)
    assert people.skeleton is data.skeleton
    assert people.where == data.where
    for place, (index, person) in enumerate(expected):
        assert people.picture(place) == index
        assert people.file_name(place) == data.file_name(index)
        assert (people.joints(place) == data.joints(index)[person]).all()
        assert (people.labelled_joints(place) == (data.joints(index)[person][:, 2] > 0)).all()
        loaded = people.load(place)
        assert (loaded.image == data.load_image(index)).all()
        assert loaded.box == people.box(place)


def test_people_without_joints_are_left_out_and_told(data: SyntheticPeople) -> None:
    content = data.ground_truth()
    for place, joints, crowd in ((0, 0, 0), (3, 0, 0), (5, 17, 1)):
        content["annotations"][place]["iscrowd"] = crowd
        if not joints:
            content["annotations"][place]["keypoints"] = [0] * 51
    images = {image_id: data.load_image(index) for index, image_id in enumerate(data.ids)}
    fewer = PersonCrops(PoseDataset.from_dict(content, images))
    assert len(fewer) == len(PersonCrops(data)) - 3
    assert fewer.left_out == 2
    for annotation in content["annotations"]:
        annotation["keypoints"] = [0] * 51
    with pytest.raises(InputError, match="nobody with a labelled joint"):
        PersonCrops(PoseDataset.from_dict(content, images))


def test_given_boxes_take_the_place_of_annotated_ones(data: SyntheticPeople, people: PersonCrops) -> None:
    box = Box(1, 2, 30, 40, 0.5)
    boxes = {image_id: [box] * len(data.joints(index)) for index, image_id in enumerate(data.ids)}
    other = PersonCrops(data, boxes)
    assert all(other.box(place) == box for place in range(len(other)))
    assert other.fingerprint != people.fingerprint
    assert PersonCrops(data, padding=1.5).fingerprint != people.fingerprint
    assert PersonCrops(data).fingerprint == people.fingerprint
    boxes[data.ids[2]] = []
    with pytest.raises(InputError, match=f"image {data.ids[2]} .* but 0 boxes"):
        PersonCrops(data, boxes)


def test_an_epoch_shows_everybody_once(people: PersonCrops) -> None:
    order = people.epoch_order(np.random.default_rng(0))
    assert sorted(order) == list(range(len(people)))
    assert list(order) != sorted(order)


def test_shares_of_sources_are_shares_of_people() -> None:
    few, many = (SyntheticPeople(n, n, size=(48, 48), people=(2, 2)) for n in (2, 12))
    people = PersonCrops(PoseDataset.combine([few, many], shares=[1, 1]))
    order = people.epoch_order(np.random.default_rng(0))
    assert len(order) == len(people)
    first = np.array([people.picture(each % len(people)) < 2 for each in order])
    assert abs(first.sum() - len(people) / 2) <= 1
    batch = gather_people(people, [int(each) for each in order], 128, LIVELY, 0, 0)
    assert len(batch) == len(people)


def test_a_source_without_labels_gives_boxes_for_a_teacher() -> None:
    drawn = [SyntheticPeople(n, n, size=(48, 48), people=(1, 2)) for n in (3, 4)]
    told = PersonCrops(drawn[0])
    images = {image_id: drawn[1].load_image(index) for index, image_id in enumerate(drawn[1].ids)}
    blank = PoseDataset.from_dict(drawn[1].ground_truth(), images, labels=[])
    both = PersonCrops(PoseDataset.combine([drawn[0], blank]))
    assert len(both) == len(told) + len(PersonCrops(drawn[1]))
    assert both.left_out == 0
    batch = gather_people(both, list(range(len(both))), 128, LIVELY, 0, 0).draw()
    assert not batch.labelled[len(told) :].any()
    assert batch.labelled[: len(told)].any(dim=1).all()
    boxes = [both.box(place) for place in range(len(told), len(both))]
    assert boxes == [PersonCrops(drawn[1]).box(place) for place in range(len(boxes))]
    lesson = teach_heatmaps(batch, torch.rand(batch.heatmaps[0].shape), 0.5)
    assert lesson.labelled.all()


# -- crops ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [128, 256])
def test_joints_follow_the_picture(resolution: int) -> None:
    changes = Augmentation(rotation=40, scale=(0.7, 1.3), translate=20, flip=0.5)
    off, mirrored = [], 0
    for seed in range(30):
        person = lamp(0.2 * seed)
        image, joints = augment_person(person, resolution, changes, np.random.default_rng(seed), LIGHTS)
        assert image.shape == (resolution, resolution * 3 // 4, 3)
        if (joints[:, 2] > 0).all() and ((joints[:, :2] > 20) & (joints[:, :2] < resolution / 2)).any():
            off.append(brightest(image) - joints[:, :2])
        a, b, c = joints[:, :2]
        mirrored += bool((b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0] < 0)
    assert len(off) > 10
    assert np.abs(np.median(off, axis=0)).max() < 0.1
    assert 8 < mirrored < 22


def test_mirrored_joints_change_sides(people: PersonCrops) -> None:
    mirror = Augmentation(rotation=0, scale=(1, 1), translate=0, flip=1)
    person = people.load(0)
    plain, joints = augment_person(person, 128, STILL, np.random.default_rng(0), COCO17)
    other, moved = augment_person(person, 128, mirror, np.random.default_rng(0), COCO17)
    off = np.abs(other[:, ::-1].astype(int) - plain)
    assert off.mean() < 1  # OpenCV's rounding
    expected = joints[COCO17.flip_index]
    assert moved[:, 0] == pytest.approx(95 - expected[:, 0], abs=1e-3)
    assert moved[:, 1:] == pytest.approx(expected[:, 1:], abs=1e-3)


def test_without_augmentation_the_crop_is_the_one_of_evaluation(people: PersonCrops) -> None:
    person = people.load(1)
    _, joints = augment_person(person, 128, None, np.random.default_rng(5), COCO17)
    forth = crop_transform(person.box, (128, 96), person.padding)
    assert joints[:, :2] == pytest.approx(forth(person.joints[:, :2]), abs=1e-3)


def test_outside_of_the_picture_is_the_mean_colour_and_has_no_joints() -> None:
    white = np.full((50, 50, 3), 255, np.uint8)
    joints = np.zeros((17, 3), np.float32)
    joints[0], joints[1] = (10, 10, 2), (200, 10, 2)
    person = Person(white, joints, Box(-60, -30, 80, 80))
    image, moved = augment_person(person, 128, None, np.random.default_rng(0), COCO17)
    assert tuple(image[64, 5]) == tuple(int(each) for each in MEAN_COLOUR)
    assert moved[:2, 2].tolist() == [2, 0]
    assert not moved[2:, 2].any()


def test_halves_of_bodies() -> None:
    """With half_body 1 a crop shows either the upper or the lower joints, with about the same margins."""
    joints = np.full((17, 3), 2, np.float32)
    joints[:, 0] = np.random.default_rng(0).uniform(90, 110, 17)
    joints[:11, 1], joints[11:, 1] = np.linspace(20, 80, 11), np.linspace(120, 180, 6)
    person = Person(np.zeros((200, 200, 3), np.uint8), joints, Box(85, 10, 30, 180))
    half = Augmentation(rotation=0, scale=(1, 1), translate=0, flip=0, half_body=1)
    lower = lower_joints(COCO17)
    assert lower is not None
    shown = {"upper": 0, "lower": 0}
    for seed in range(40):
        _, moved = augment_person(person, 256, half, np.random.default_rng(seed), COCO17)
        seen = moved[:, 2] > 0
        which = "upper" if seen[~lower].all() else "lower"
        assert seen[~lower if which == "upper" else lower].all()
        span = np.ptp(moved[~lower if which == "upper" else lower][:, 1])
        assert span == pytest.approx(256 / 1.5, rel=0.01)
        shown[which] += 1
    assert min(shown.values()) > 8
    for count, expected in ((7, False), (8, True)):
        few = joints.copy()
        few[count:, 2] = 0
        _, moved = augment_person(Person(person.image, few, person.box), 256, half, rng(), COCO17)
        _, plain = augment_person(Person(person.image, few, person.box), 256, STILL, rng(), COCO17)
        assert (moved.tolist() != plain.tolist()) == expected


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_halves_by_names_and_without_them() -> None:
    assert lower_joints(COCO17) is not None
    lower = lower_joints(CROWDPOSE14)
    assert lower is not None
    assert lower.tolist() == [False] * 6 + [True] * 6 + [False] * 2
    nameless = Skeleton("dots", tuple(f"dot{i}" for i in range(6)), (), (0.1,) * 6, ())
    assert lower_joints(nameless) is None
    joints = np.array([[50, y, 2] for y in (10, 20, 30, 70, 80, 90)], np.float32)
    person = Person(np.zeros((100, 100, 3), np.uint8), joints, Box(40, 5, 20, 90))
    half = Augmentation(rotation=0, scale=(1, 1), translate=0, flip=0, half_body=1)
    seen = set()
    for seed in range(20):
        _, moved = augment_person(person, 128, half, rng(seed), nameless)
        seen.add(tuple((moved[:, 2] > 0).tolist()))
    assert seen == {(True,) * 3 + (False,) * 3, (False,) * 3 + (True,) * 3}


def test_draws_do_not_depend_on_the_settings(people: PersonCrops) -> None:
    after = []
    for changes in (None, STILL, LIVELY):
        draws = rng()
        augment_person(people.load(0), 128, changes, draws, COCO17)
        after.append(draws.random())
    assert len(set(after)) == 1


def test_whole_pictures_have_no_halves(data: SyntheticPeople) -> None:
    with pytest.raises(InputError, match="half_body"):
        gather(data, [0], 64, LIVELY, 0, 0)
    with pytest.raises(InputError, match="half_body is a probability"):
        Augmentation(half_body=1.5)


# -- batches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [128, 192, 256])
def test_a_batch(people: PersonCrops, resolution: int) -> None:
    raw = gather_people(people, [0, 3, 5, 7], resolution, LIVELY, 0, 0)
    batch, width = raw.draw(), resolution * 3 // 4
    assert batch.images.shape == (4, 3, resolution, width)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for maps, mask, stride in zip(batch.heatmaps, batch.masks, MAP_STRIDES, strict=True):
        assert maps.shape == (4, 17, resolution // stride, width // stride)
        assert maps.is_contiguous(memory_format=torch.channels_last)
        assert mask.shape == (4, resolution // stride, width // stride)
        assert mask.eq(1).all()
        shown = maps.amax(dim=(2, 3)) > 0
        assert (shown <= batch.labelled).all()
    assert batch.tags.shape == (4, 0, 17, 2)
    assert batch.labelled.dtype == torch.bool
    assert (batch.labelled.numpy() == (raw.joints[..., 2] > 0)).all()
    assert [len(part) for part in batch.split(2)] == [2, 2]
    assert len(batch.to("cpu")) == 4


@pytest.mark.parametrize("stride", MAP_STRIDES)
def test_targets_lie_exactly_where_joints_do(people: PersonCrops, stride: int) -> None:
    raw = gather_people(people, list(range(12)), 256, STILL, 0, 0)
    maps = np.ascontiguousarray(raw.draw().heatmaps[MAP_STRIDES.index(stride)].numpy())
    found = decode_heatmaps(maps)
    pixels = found[..., :2] * stride - 0.5
    margin = 6 * stride
    size = np.array([192, 256])
    inner = ((raw.joints[..., :2] > margin) & (raw.joints[..., :2] < size - margin)).all(axis=2)
    inner &= raw.joints[..., 2] > 0
    assert inner.sum() > 50
    assert np.abs(pixels - raw.joints[..., :2])[inner].max() < 0.05 * stride / 4


def test_cells_divide_the_input_evenly() -> None:
    joints = np.array([[-0.5, 0, 2], [1.5, 3.5, 1], [95.5, 127.5, 2]], np.float32)
    assert in_cells(joints, 4)[:, :2].tolist() == [[-0.5, -0.375], [0, 0.5], [23.5, 31.5]]


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.5])
def test_gaussians_are_gaussians(sigma: float) -> None:
    generator = rng(1)
    joints = generator.uniform(0, 20, (3, 5, 3)).astype(np.float32)
    joints[..., 2] = generator.integers(0, 3, (3, 5))
    maps = draw_joints(joints, 24, 18, sigma).numpy()
    y, x = np.mgrid[:24, :18]
    for person in range(3):
        for joint in range(5):
            at = joints[person, joint]
            plain = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2)) * (at[2] > 0)
            assert np.abs(maps[person, joint] - plain).max() < 2e-6
    assert joints[..., 2].min() == 0


def test_mirrored_targets_are_targets_mirrored() -> None:
    joints = rng(2).uniform(2, 90, (2, 17, 3)).astype(np.float32)
    joints[..., 2] = 2
    mirrored = joints.copy()
    mirrored[..., 0] = 95 - joints[..., 0]
    for stride in MAP_STRIDES:
        size = 128 // stride, 96 // stride
        a, b = (draw_joints(in_cells(each, stride), *size) for each in (joints, mirrored))
        assert torch.allclose(a.flip(3), b, atol=1e-5)


def test_what_becomes_of_a_person_depends_on_seed_epoch_and_index(people: PersonCrops) -> None:
    def made(indices: list[int], seed: int = 1, epoch: int = 2) -> Any:
        return gather_people(people, indices, 128, LIVELY, seed, epoch)

    one, other = made([4, 2, 9]), made([2, 4])
    assert (one.images[1] == other.images[0]).all()
    assert (one.joints[0] == other.joints[1]).all()
    for raw in (made([4], seed=2), made([4], epoch=3), made([4 + len(people)])):
        assert not (raw.images[0] == one.images[0]).all()


def test_kept_pictures_give_the_same_batches(tmp_path: Path) -> None:
    write_dataset(tmp_path, 6, 0, (96, 96), (2, 3))
    people = PersonCrops(PoseDataset(tmp_path / "annotations.json", tmp_path / "images"))
    cache = PersonCache(people, 1 << 30)
    places = list(range(len(people)))
    plain = gather_people(people, places, 128, LIVELY, 0, 0)
    for _ in range(2):
        kept = gather_people(cache, places, 128, LIVELY, 0, 0)
        assert (kept.images == plain.images).all()
        assert (kept.joints == plain.joints).all()
    assert cache.held == 6 * 96 * 96 * 3  # each picture once
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    assert (gather_people(cache, places, 128, LIVELY, 0, 0).images == plain.images).all()
    small = PersonCache(people, 5)
    with pytest.raises(InputError, match="does not exist"):
        small.load(0)
    with pytest.raises(InputError, match="at least 0 bytes"):
        PersonCache(people, -1)


def test_batches_that_cannot_be(people: PersonCrops, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="needs people"):
        gather_people(people, [], 128, None, 0, 0)
    with pytest.raises(InputError, match="multiple of 32"):
        gather_people(people, [0], 100, None, 0, 0)
    stop = threading.Event()
    stop.set()
    with pytest.raises(RunError, match="stopped"):
        gather_people(people, [0], 128, None, 0, 0, stop)
    monkeypatch.setattr(people, "load", lambda index: 1 / 0)
    with pytest.raises(RunError, match=f"{people.file_name(0)}.*ZeroDivisionError"):
        gather_people(people, [0], 128, None, 0, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same(people: PersonCrops) -> None:
    raw = gather_people(people, [0, 1, 2], 128, LIVELY, 0, 0)
    here, there = raw.draw(), raw.pin().draw(device="cuda")
    assert torch.equal(here.images, there.images.cpu())
    for a, b in zip(here.heatmaps, there.heatmaps, strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-6)


@pytest.mark.parametrize(("name", "count"), [("coco", 324), ("lspet", 500)])
def test_real_people(shared: Path, name: str, count: int) -> None:
    folder = shared / "data" / name
    if not (folder / "images" / "val").is_dir():
        pytest.skip(f"the optional provided {name} images are absent")
    data = PoseDataset(folder / "annotations" / "person_keypoints_val.json", folder / "images" / "val")
    people = PersonCrops(data)
    assert len(people) == count
    batch = gather_people(people, list(range(0, count, 20)), 256, LIVELY, 0, 0).draw()
    plain = gather_people(people, list(range(0, count, 20)), 256, None, 0, 0).draw()
    annotated = np.stack([people.labelled_joints(index) for index in range(0, count, 20)])
    assert plain.labelled.numpy().sum() > 0.97 * annotated.sum()
    assert 0.6 * annotated.sum() < batch.labelled.sum() < annotated.sum()
