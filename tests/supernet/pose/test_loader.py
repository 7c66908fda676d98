"""Batches depend on seed, epoch and index only; targets fit the pictures and the network's maps."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from search_spaces.errors import InputError
from supernet.pose.dataset import PoseDataset
from supernet.pose.loader import Batch, BatchLoader, Job, collate, map_size
from supernet.pose.skeleton import CROWDPOSE14
from supernet.pose.synthetic import SyntheticPeople
from supernet.pose.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation


@pytest.fixture(scope="module")
def people() -> SyntheticPeople:
    return SyntheticPeople(12, seed=5, size=(96, 128))


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.images, *batch.heatmaps, *batch.masks, batch.tags, batch.labelled]


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize("resolution", [96, 101, 127])
def test_shapes(people: SyntheticPeople, resolution: int) -> None:
    batch = collate(people, [0, 3, 5], resolution, Augmentation(), 0, 0)
    half = -(-resolution // 2)
    quarter = -(-half // 2)
    assert batch.images.shape == (3, 3, resolution, resolution)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert [tuple(each.shape) for each in batch.heatmaps] == [(3, 17, quarter, quarter), (3, 17, half, half)]
    assert [tuple(each.shape) for each in batch.masks] == [(3, quarter, quarter), (3, half, half)]
    assert (batch.tags.shape, batch.tags.dtype) == ((3, 30, 17, 2), torch.int64)
    assert len(batch) == 3
    assert all(each.dtype == torch.float32 for each in (*batch.heatmaps, *batch.masks, batch.images))
    assert batch.to("meta").images.device.type == "meta"


def test_map_sizes_are_those_of_two_strided_convolutions() -> None:
    for resolution in range(33, 70):
        picture = torch.zeros(1, 1, resolution, resolution)
        weight = torch.zeros(1, 1, 3, 3)
        half = torch.nn.functional.conv2d(picture, weight, stride=2, padding=1)
        quarter = torch.nn.functional.conv2d(half, weight, stride=2, padding=1)
        assert map_size(resolution, 2) == half.shape[-1]
        assert map_size(resolution, 4) == quarter.shape[-1]


def test_targets_lie_on_the_joints(people: SyntheticPeople) -> None:
    batch = collate(people, [2], 96, None, 0, 0)
    joints = people.load(2).joints.copy()
    joints[..., 0] -= 16  # the centred square of a 96 x 128 picture
    seen = 0
    for x, y, v, joint in ((*row, j) for person in joints for j, row in enumerate(person)):
        if v > 0 and 0 <= x < 96 and 0 <= y < 96:
            seen += 1
            assert batch.heatmaps[0][0, joint, int(y / 4), int(x / 4)] == 1
            assert batch.heatmaps[1][0, joint, int(y / 2), int(x / 2)] == 1
            assert joint * 24 * 24 + int(y / 4) * 24 + int(x / 4) in batch.tags[0, :, :, 0]
    assert seen == int(batch.tags[..., 1].sum()) > 0
    pixels = batch.images[0].permute(1, 2, 0) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
    np.testing.assert_allclose(pixels.numpy() * 255, people.load_image(2)[:, 16:112], atol=1e-3)


def test_a_picture_depends_on_seed_epoch_and_index_only(people: SyntheticPeople) -> None:
    augmentation = Augmentation()
    batch = collate(people, [4, 7], 64, augmentation, 1, 2)
    assert same(batch, collate(people, [4, 7], 64, augmentation, 1, 2))
    alone = collate(people, [7], 64, augmentation, 1, 2)
    assert torch.equal(alone.images[0], batch.images[1])
    assert not torch.equal(collate(people, [7], 64, augmentation, 1, 3).images, alone.images)
    assert not torch.equal(collate(people, [7], 64, augmentation, 2, 2).images, alone.images)


def test_unlabelled_joints_are_told(people: SyntheticPeople) -> None:
    images = {image_id: people.load_image(index) for index, image_id in enumerate(people.ids)}
    mapped = PoseDataset.from_dict(people.ground_truth(), images, CROWDPOSE14)
    batch = collate(mapped, [0, 1, 2], 64, None, 0, 0)
    assert batch.labelled.tolist() == [True] * 12 + [False] * 2
    assert not batch.heatmaps[0][:, 12:].any()
    assert batch.heatmaps[0][:, :12].any()


def schedule() -> list[Job]:
    rng = np.random.default_rng(0)
    return [
        (rng.permutation(12)[:3].tolist(), int(rng.choice([48, 64, 80])), epoch)
        for epoch in range(2)
        for _ in range(5)
    ]


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 0), (1, 4), (3, 2)])
def test_worker_count_changes_nothing(people: SyntheticPeople, workers: int, prefetch: int) -> None:
    plain = list(BatchLoader(people, schedule(), Augmentation(), 3))
    threaded = list(BatchLoader(people, schedule(), Augmentation(), 3, workers, prefetch))
    assert len(plain) == len(threaded) == 10
    assert all(same(a, b) for a, b in zip(plain, threaded, strict=True))


def loader_threads() -> int:
    return sum(thread.name.startswith("batch-loader") for thread in threading.enumerate())


def test_stopping_early_ends_the_threads_and_reads_ahead_little(people: SyntheticPeople) -> None:
    drawn: list[int] = []

    def endless() -> Iterator[Job]:
        while True:
            drawn.append(len(drawn))
            yield [len(drawn) % 12], 48, 0

    iterator = iter(BatchLoader(people, endless(), None, 0, workers=2, prefetch=1))
    for _ in range(4):
        next(iterator)
    assert loader_threads() > 0
    assert len(drawn) <= 4 + 2 + 1
    del iterator
    deadline = time.monotonic() + 5
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert loader_threads() == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_picture_is_an_error_where_it_is_due(workers: int) -> None:
    good = SyntheticPeople(3, seed=0, size=(48, 48))
    images = {image_id: good.load_image(index) for index, image_id in enumerate(good.ids)}
    images[2] = np.zeros((1, 1, 3), np.uint8)
    data = PoseDataset.from_dict(good.ground_truth(), images)
    jobs: Sequence[Job] = [([0], 32, 0), ([1], 32, 0), ([2], 32, 0)]
    got = []
    with pytest.raises(InputError, match="image 2 of annotations must be uint8"):
        for batch in BatchLoader(data, jobs, None, 0, workers):
            got.append(batch)
    assert len(got) == 1
    assert loader_threads() == 0


def test_wrong_arguments(people: SyntheticPeople) -> None:
    with pytest.raises(InputError, match="got 0 and 64"):
        collate(people, [], 64, None, 0, 0)
    with pytest.raises(InputError, match="got -1 and 2"):
        BatchLoader(people, [], None, 0, workers=-1)
