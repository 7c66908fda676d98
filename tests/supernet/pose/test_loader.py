"""Batches depend on seed, epoch and index only; targets fit the pictures and the network's maps."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search_spaces import InputError, RunError
from supernet.pose.dataset import PoseDataset, PoseSample
from supernet.pose.loader import Batch, BatchLoader, Job, SampleCache, collate, gather, map_size
from supernet.pose.skeleton import CROWDPOSE14
from supernet.pose.synthetic import SyntheticPeople, write_dataset
from supernet.pose.transforms import IMAGENET_MEAN, IMAGENET_STD, Augmentation
from tests.supernet import tiny


@pytest.fixture(scope="module")
def people() -> SyntheticPeople:
    return SyntheticPeople(12, seed=5, size=(96, 128))


def cache_of(loader: BatchLoader) -> SampleCache:
    """Return where a loader's pictures are kept."""
    (cache,) = loader._gather.args  # type: ignore[attr-defined]
    assert isinstance(cache, SampleCache)
    return cache


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


def test_targets_can_be_drawn_on_another_device(people: SyntheticPeople) -> None:
    raw = gather(people, [1, 4], 96, Augmentation(), 0, 0)
    here, there = raw.draw(), raw.draw(device="meta")
    for mine, theirs in zip(tensors(here), tensors(there), strict=True):
        assert (theirs.device.type, theirs.shape, theirs.dtype) == ("meta", mine.shape, mine.dtype)
        assert theirs.stride() == mine.stride()
    loader = BatchLoader(people, [([0, 1], 64, 0)] * 3, None, 0, workers=2, device="meta")
    assert [batch.images.device.type for batch in loader] == ["meta"] * 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_the_same_bits(people: SyntheticPeople) -> None:
    jobs: list[Job] = [([3, 4, 5], 127, 0), ([0, 1, 2], 96, 0)]
    here = BatchLoader(people, jobs, Augmentation(), 0)
    there = BatchLoader(people, jobs, Augmentation(), 0, workers=2, device="cuda")
    for mine, theirs in zip(here, there, strict=True):
        assert theirs.images.is_cuda
        assert same(mine, theirs.to("cpu"))


def test_what_travels_is_a_tenth(people: SyntheticPeople) -> None:
    raw = gather(people, list(range(8)), 448, Augmentation(), 0, 0)
    sent = raw.joints.nbytes + sum(each.nbytes for each in (raw.images, raw.mask, raw.tags, raw.labelled))
    assert 8 * sent < sum(each.nbytes for each in tensors(raw.draw()))


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


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(12)),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    resolution=st.sampled_from([48, 61, 64]),
    seed=st.integers(0, 2**31),
    parts=st.integers(1, 12),
)
def test_company_changes_no_picture(
    people: SyntheticPeople, order: list[int], cuts: list[int], resolution: int, seed: int, parts: int
) -> None:
    """However pictures are put into batches, and batches into shards, each of them is the same."""
    augmentation = Augmentation(brightness=0.3, hue=40, gray=0.2)
    whole = collate(people, order, resolution, augmentation, seed, 3)
    bounds = [0, *sorted(cuts), 12]
    chunks = [order[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    pieces = [collate(people, chunk, resolution, augmentation, seed, 3) for chunk in chunks]
    shards = whole.split(parts)
    assert len(shards) == parts
    for several in (pieces, shards):
        assert same(whole, joined(several))


def joined(batches: Sequence[Batch]) -> Batch:
    def together(name: str) -> Any:
        values = [getattr(batch, name) for batch in batches]
        if isinstance(values[0], tuple):
            return tuple(torch.cat(each) for each in zip(*values, strict=True))
        return torch.cat(values)

    return Batch(**{field.name: together(field.name) for field in fields(Batch)})


def test_a_training_resumed_within_an_epoch_sees_the_same_batches(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, batch_size=2, epochs=3)

    def batches(step: int, workers: int) -> list[Batch]:
        trainer.step = step
        return list(BatchLoader(tiny.people(), trainer._schedule(), Augmentation(), 0, workers))

    straight, resumed = batches(0, 0), batches(4, 2)
    assert trainer.epoch_steps == 3 and len(straight) == 9
    assert len(resumed) == 5
    assert all(same(a, b) for a, b in zip(straight[4:], resumed, strict=True))


def test_unlabelled_joints_are_told(people: SyntheticPeople) -> None:
    images = {image_id: people.load_image(index) for index, image_id in enumerate(people.ids)}
    mapped = PoseDataset.from_dict(people.ground_truth(), images, CROWDPOSE14)
    batch = collate(mapped, [0, 1, 2], 64, None, 0, 0)
    assert batch.labelled.tolist() == 3 * [[True] * 12 + [False] * 2]
    assert not batch.heatmaps[0][:, 12:].any()
    assert batch.heatmaps[0][:, :12].any()


def test_the_labels_of_one_side_change_sides_in_the_mirror(people: SyntheticPeople) -> None:
    content = people.ground_truth()
    left = [name for name in people.skeleton.joints if not name.startswith("right_")]
    places = [people.skeleton.joints.index(name) for name in left]
    content["categories"][0].update(keypoints=left, skeleton=[])
    for each in content["annotations"]:
        points = np.reshape(each["keypoints"], (-1, 3))[places]
        each.update(keypoints=points.ravel().tolist(), num_keypoints=int((points[:, 2] > 0).sum()))
    images = {image_id: people.load_image(index) for index, image_id in enumerate(people.ids)}
    one_sided = PoseDataset.from_dict(content, images, people.skeleton)
    for flip, absent in ((0.0, "right_"), (1.0, "left_")):
        batch = collate(one_sided, range(12), 64, Augmentation(flip=flip), 0, 0)
        expected = [not name.startswith(absent) for name in people.skeleton.joints]
        assert batch.labelled.tolist() == 12 * [expected]
        assert not batch.heatmaps[0][:, ~batch.labelled[0]].any()
        assert batch.heatmaps[0][:, batch.labelled[0]].any()


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


def test_threads_live_over_all_epochs(people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set[int]()
    load = people.load
    monkeypatch.setattr(people, "load", lambda index: seen.add(threading.get_ident()) or load(index))
    jobs: list[Job] = [([place], 48, epoch) for epoch in range(5) for place in range(12)]
    assert len(list(BatchLoader(people, jobs, None, 0, workers=2))) == 60
    assert len(seen) <= 2 and threading.get_ident() not in seen


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


def failing(people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(index: int) -> PoseSample:
        raise MemoryError("no room for the picture")

    monkeypatch.setattr(people, "load", load)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unforeseen_error_names_the_file(
    people: SyntheticPeople, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(people, monkeypatch)
    with pytest.raises(RunError, match=r"image '000007.png' of synthetic.*MemoryError: no room") as caught:
        list(BatchLoader(people, [([7, 8], 48, 0)], None, 0, workers))
    assert isinstance(caught.value.__cause__, MemoryError)
    assert "\n" not in str(caught.value)
    assert loader_threads() == 0


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    annotations = write_dataset(tmp_path, 3, 0, (48, 48))
    path = tmp_path / "images" / "000001.png"
    path.write_bytes(path.read_bytes()[:100])
    data = PoseDataset(annotations, tmp_path / "images")
    with pytest.raises(InputError, match=r"000001\.png.*truncated"):
        list(BatchLoader(data, [([0, 1, 2], 32, 0)], None, 0, 1))


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_stopping_does_not_wait_for_a_batch(
    people: SyntheticPeople, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of a minute is begun by two threads; closing and Ctrl-C wait for one picture of it."""
    started = threading.Event()
    load = people.load

    def slow(index: int) -> PoseSample:
        if started.is_set():
            time.sleep(0.1)
        return load(index)

    monkeypatch.setattr(people, "load", slow)
    jobs: list[Job] = [([0], 32, 0), ([0] * 600, 32, 0), ([0] * 600, 32, 0)]
    iterator = iter(BatchLoader(people, jobs, None, 0, workers=2, prefetch=0))
    next(iterator)
    started.set()
    if how == "close":
        began = time.monotonic()
        iterator.close()
    else:
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            next(iterator)
    assert time.monotonic() - began < 10
    assert loader_threads() == 0


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> PoseDataset:
    folder = tmp_path_factory.mktemp("people")
    return PoseDataset(write_dataset(folder, 6, 3, (64, 64)), folder / "images")


@pytest.mark.parametrize("room", [0, 2, 6])
def test_the_cache_saves_reading_and_changes_nothing(
    on_disk: PoseDataset, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = on_disk.load(0).image.nbytes * 4 // 3 + on_disk.load(0).joints.nbytes
    sizes = [64 * 64 * 4 + on_disk.joints(index).nbytes for index in range(6)]
    assert sizes[0] == size
    limit = room and sum(sorted(sizes)[-room:])
    jobs: list[Job] = [([4, 1, 3], 48, 0), ([0, 5, 2], 64, 0), ([2, 1, 0], 48, 1), ([3, 4, 5], 64, 1)]
    plain = list(BatchLoader(on_disk, jobs, Augmentation(), 0))
    reads: list[int] = []
    load = on_disk.load_image
    monkeypatch.setattr(on_disk, "load_image", lambda index: reads.append(index) or load(index))
    loader = BatchLoader(on_disk, jobs, Augmentation(), 0, cache_bytes=limit)
    first, second = list(loader), list(loader)
    assert all(same(a, b) for several in (first, second) for a, b in zip(plain, several, strict=True))
    assert len(reads) == {0: 24, 2: 6 + 3 * 4, 6: 6}[room]
    assert cache_of(loader).held <= limit


def test_the_cache_is_shared_by_threads_within_its_bound(on_disk: PoseDataset) -> None:
    size = 64 * 64 * 4 + max(on_disk.joints(index).nbytes for index in range(6))
    jobs: list[Job] = [([int(index)], 48, 0) for index in np.random.default_rng(0).integers(0, 6, 60)]
    plain = list(BatchLoader(on_disk, jobs, Augmentation(), 0))
    loader = BatchLoader(on_disk, jobs, Augmentation(), 0, workers=4, cache_bytes=3 * size)
    assert all(same(a, b) for a, b in zip(plain, loader, strict=True))
    held = cache_of(loader)._samples
    assert cache_of(loader).held <= 3 * size
    assert cache_of(loader).held == sum(
        each.image.nbytes + each.mask.nbytes + each.joints.nbytes for each in held.values()
    )
    assert len(held) == 3


def test_pictures_in_memory_are_not_kept_twice(people: SyntheticPeople) -> None:
    cache = SampleCache(people, 1 << 30)
    assert np.array_equal(cache.load(3).image, people.load_image(3))
    assert cache.held == 0


def test_wrong_arguments(people: SyntheticPeople) -> None:
    with pytest.raises(InputError, match="got 0 and 64"):
        collate(people, [], 64, None, 0, 0)
    with pytest.raises(InputError, match="got -1 and 2"):
        BatchLoader(people, [], None, 0, workers=-1)
    with pytest.raises(InputError, match="0 bytes, not -1"):
        BatchLoader(people, [], None, 0, cache_bytes=-1)
