"""Evaluation end to end: a network that knows the answers, and the published one on photos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.errors import InputError
from supernet.checkpoint import import_research
from supernet.export import fold_batchnorm
from supernet.onnx_modules import through_onnx
from supernet.pose.dataset import PoseDataset
from supernet.pose.evaluate import evaluate
from supernet.pose.inference import predict_dataset
from supernet.pose.maps import EvalConfig, predict_maps
from supernet.pose.skeleton import CROWDPOSE14, Skeleton
from supernet.pose.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_size, resize_for_eval

# --- A data set whose images carry their number in red and their left half in green, and a network that
# --- reads both and draws the maps of the people it knows to be there.

SKELETON = Skeleton(
    name="kite",
    joints=("top", "left", "right", "tail"),
    flip_pairs=((1, 2),),
    sigmas=(0.05, 0.05, 0.05, 0.05),
    limbs=((0, 1), (0, 2), (1, 3), (2, 3)),
)
SIZES = ((120, 200), (200, 120), (120, 200), (150, 150), (128, 192), (120, 200), (97, 131))


class Kites:
    """Seven images of different sizes with two kites each, one of them small."""

    skeleton = SKELETON
    labelled = np.array([True, True, True, True])
    ids = tuple(10 + 7 * number for number in range(len(SIZES)))

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        shape = np.array([(0.0, -1.0), (-0.8, 0.0), (0.8, 0.0), (0.0, 1.0)])
        self.people = []
        for height, width in SIZES:
            # Whatever lies beyond the short side's band survives resizing too: the long side is padded.
            centres = np.array([(0.3, 0.4), (0.7, 0.6)]) * (width, height)
            radii = np.array([0.25, 0.15])[:, None, None] * min(height, width)
            self.people.append(centres[:, None] + radii * shape + rng.uniform(-1, 1, (2, 4, 2)))

    def load_image(self, index: int) -> NDArray[np.uint8]:
        image = np.zeros((*SIZES[index], 3), np.uint8)
        image[..., 0] = 20 * (index + 1)
        image[:, : SIZES[index][1] // 2, 1] = 200
        return image

    def ground_truth(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
        wanted = [self.ids.index(image_id) for image_id in (self.ids if ids is None else ids)]
        annotations = []
        for index in wanted:
            for person in self.people[index]:
                low, high = person.min(axis=0), person.max(axis=0)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": self.ids[index],
                        "category_id": 5,
                        "bbox": [*low.tolist(), *(high - low).tolist()],
                        "area": float((high - low).prod()),
                        "keypoints": np.column_stack([person, np.full(4, 2.0)]).ravel().tolist(),
                        "num_keypoints": 4,
                    }
                )
        return {
            "images": [{"id": self.ids[index]} for index in wanted],
            "annotations": annotations,
            "categories": [{"id": 5, "name": "kite"}],
        }


class Oracle(nn.Module):
    """Returns the ideal maps of whatever image it is shown, mirrored ones included."""

    def __init__(self, data: Kites, resolution: int) -> None:
        super().__init__()
        self.forth = [
            resize_for_eval(data.load_image(i), resolution)[1].inverse()(people)
            for i, people in enumerate(data.people)
        ]
        self.resolution = resolution
        self.batches: list[int] = []
        self.modes: list[bool] = []

    def maps(
        self, people: NDArray[np.float64], height: int, width: int, stride: int
    ) -> tuple[Tensor, Tensor]:
        y, x = np.mgrid[: height // stride, : width // stride] + 0.5
        det, tag = np.zeros((2, 4, *x.shape))
        for number, person in enumerate(people):
            for joint, (px, py) in enumerate(person / stride):
                blob = np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * 2.0**2))
                tag[joint][blob > np.maximum(det[joint], 0.01)] = 4.0 * number
                det[joint] = np.maximum(det[joint], blob)
        return torch.from_numpy(det), torch.from_numpy(tag)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(images))
        self.modes.append(self.training)
        height, width = images.shape[2:]
        quarter, half = [], []
        for image in images:
            pixels = image.permute(1, 2, 0) * torch.tensor(IMAGENET_STD) + torch.tensor(IMAGENET_MEAN)
            row = pixels[height // 2] * 255.0
            index = round(float(row[width // 2, 0]) / 20.0) - 1
            people = self.forth[index] * (min(height, width) / self.resolution)
            if row[width // 4, 1] < 100.0:  # the mirrored image: left is right
                people = people[:, SKELETON.flip_index] * (-1, 1) + (width, 0)
            det, tag = self.maps(people, height, width, 4)
            quarter.append(torch.cat([det, tag]))
            half.append(self.maps(people, height, width, 2)[0])
        return torch.stack(quarter).float(), torch.stack(half).float()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_a_network_that_knows_the_answers_is_found_right(
    flip: bool, project: bool, scales: tuple[float, ...]
) -> None:
    data = Kites()
    network = Oracle(data, 128)
    config = EvalConfig(128, flip=flip, project=project, batch_size=2, scales=scales)
    result = evaluate(network, data, config)
    assert result.images == len(SIZES)
    assert [each["image_id"] for each in result.detections] == [i for i in data.ids for _ in range(2)]
    assert {each["category_id"] for each in result.detections} == {5}
    assert result.stats["AP"] > 0.99
    assert result.seconds_network > 0.0 and result.seconds_decode > 0.0
    for index, people in enumerate(data.people):
        pixel = min(SIZES[index]) / 128 * (1 if project else 2)  # a cell of the map, in pixels of the image
        found = np.array(
            [np.reshape(each["keypoints"], (4, 3)) for each in result.detections[2 * index :][:2]]
        )
        order = np.abs(found[:, None, 0, :2] - people[None, :, 0]).max(axis=2).argmin(axis=1)
        assert sorted(order) == [0, 1]
        assert np.abs(found[:, :, :2] - people[order]).max() < 0.8 * pixel


def test_results_do_not_depend_on_batches_or_the_order_of_images() -> None:
    data = Kites()
    network = Oracle(data, 128)
    network.train()
    one = predict_dataset(network, data, EvalConfig(128, batch_size=1, flip=True))
    assert set(network.batches) == {1}
    assert not any(network.modes) and network.training  # evaluated in eval mode, given back as it was
    steps: list[tuple[int, int]] = []
    network.batches.clear()
    many = predict_dataset(
        network,
        data,
        EvalConfig(128, batch_size=3, flip=True),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert max(network.batches) == 3 and sum(network.batches) == 2 * len(SIZES)
    assert steps[-1] == (len(SIZES), len(SIZES)) and steps == sorted(steps)
    assert len(one) == len(many)
    for a, b in zip(one, many):
        assert (a["image_id"], a["score"]) == (b["image_id"], pytest.approx(b["score"], abs=1e-6))
        np.testing.assert_allclose(a["keypoints"], b["keypoints"], atol=1e-4)

    some = [data.ids[4], data.ids[1]]
    chosen = predict_dataset(network, data, EvalConfig(128, flip=True), ids=some)
    assert [each["image_id"] for each in chosen] == [some[0]] * 2 + [some[1]] * 2
    by_image = {image_id: [each for each in one if each["image_id"] == image_id] for image_id in some}
    np.testing.assert_allclose(chosen[0]["keypoints"], by_image[some[0]][0]["keypoints"], atol=1e-4)


def test_an_interval_is_there_where_it_is_asked_for() -> None:
    data = Kites()
    network, config = Oracle(data, 128), EvalConfig(128)
    assert evaluate(network, data, config).interval is None
    ids = data.ids[:5]
    result = evaluate(network, data, config, ids=ids, resamples=60, rng=np.random.default_rng(0))
    assert result.interval is not None
    assert result.interval.value == pytest.approx(result.stats["AP"])
    assert (result.interval.resamples, result.interval.confidence) == (60, 0.95)
    with pytest.raises(InputError, match="60 bootstrap resamples need a generator"):
        evaluate(network, data, config, resamples=60)


def test_joints_that_the_data_lacks_are_not_scored() -> None:
    data = Kites()
    full = evaluate(Oracle(data, 128), data, EvalConfig(128))

    class Part(Kites):
        labelled = np.array([True, False, True, False])

        def ground_truth(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
            truth = super().ground_truth(ids)
            for each in truth["annotations"]:
                kept = np.reshape(each["keypoints"], (4, 3)) * self.labelled[:, None]
                each.update(keypoints=kept.ravel().tolist(), num_keypoints=2)
            return truth

    part = evaluate(Oracle(data, 128), Part(), EvalConfig(128))
    assert part.stats["AP"] > 0.99
    assert part.detections == full.detections
    only = evaluate(Oracle(data, 128), data, EvalConfig(128), joints=[0, 2])
    assert only.stats == part.stats


def test_only_the_best_detections_are_kept() -> None:
    data = Kites()
    everyone = predict_dataset(Oracle(data, 128), data, EvalConfig(128))
    best = predict_dataset(Oracle(data, 128), data, EvalConfig(128, max_detections=1))
    assert best == everyone[::2]
    scores = [each["score"] for each in everyone]
    assert all(first >= second for first, second in zip(scores[::2], scores[1::2]))


class Convolutions(nn.Module):
    """A small random network of the right output shapes."""

    def __init__(self, joints: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.low = nn.Conv2d(3, 2 * joints, 5, stride=4, padding=2)
        self.high = nn.Conv2d(3, joints, 3, stride=2, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.low(images), self.high(images)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def test_maps_are_merged_as_stated(images: Tensor) -> None:
    network = Convolutions(4)
    with torch.no_grad():
        quarter, half = network(images)
    up = functional.interpolate(quarter, scale_factor=2, mode="bilinear", align_corners=False)
    det, tags = predict_maps(network, images, None, EvalConfig(32))
    torch.testing.assert_close(det, (up[:, :4] + half) / 2)
    torch.testing.assert_close(tags, up[:, 4:, :, :, None])
    assert not det.requires_grad

    large, large_tags = predict_maps(network, images, None, EvalConfig(32, project=True))
    expected = functional.interpolate(det, size=(32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(large, expected)
    assert large_tags.shape == (2, 4, 32, 48, 1)


@pytest.mark.parametrize("project", [False, True])
def test_the_flip_test_treats_both_directions_alike(images: Tensor, project: bool) -> None:
    network, index = Convolutions(4), SKELETON.flip_index
    config = EvalConfig(32, flip=True, project=project)
    det, tags = predict_maps(network, images, index, config)
    mirrored, mirrored_tags = predict_maps(network, images.flip(3), index, config)
    torch.testing.assert_close(mirrored.flip(3)[:, index], det)
    torch.testing.assert_close(mirrored_tags.flip(3)[:, index].flip(4), tags)
    plain, plain_tags = predict_maps(network, images, index, EvalConfig(32, project=project))
    torch.testing.assert_close(tags[..., :1], plain_tags)
    assert (det - plain).abs().max() > 0.01


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("flip", [False, True])
def test_scales_are_averaged_as_stated(flip: bool, project: bool) -> None:
    """Heatmaps at the size of the largest scale, or of the input at scale 1; tags are those of scale 1."""
    network, index = Convolutions(4), SKELETON.flip_index
    large = torch.randn(2, 3, 48, 96, generator=torch.Generator().manual_seed(2))
    size = (32, 64) if project else (24, 48)
    heats = []
    for sides in ((48, 96), (32, 64), (16, 32)):
        shrunk = large
        if sides != (48, 96):
            shrunk = functional.interpolate(large, sides, mode="bilinear", antialias=True)
        one, own = predict_maps(network, shrunk, index, EvalConfig(32, flip=flip))
        heats.append(functional.interpolate(one, size, mode="bilinear"))
        if sides == (32, 64):
            planes = own.movedim(-1, 0)
            expected_tags = [functional.interpolate(plane, size, mode="bilinear") for plane in planes]
    config = EvalConfig(32, flip=flip, project=project, scales=(0.5, 1.0, 1.5), multiple=32)
    det, tags = predict_maps(network, large, index, config)
    torch.testing.assert_close(det, (heats[0] + heats[1] + heats[2]) / 3)
    torch.testing.assert_close(tags, torch.stack(expected_tags, dim=-1))


@settings(max_examples=200)
@given(
    height=st.integers(20, 2000),
    width=st.integers(20, 2000),
    resolution=st.integers(32, 512),
    multiple=st.sampled_from([16, 32, 64]),
    scales=st.sets(st.sampled_from([0.25, 0.5, 0.75, 1.25, 1.5, 2.0])),
)
def test_every_scale_shows_the_same_view(
    height: int, width: int, resolution: int, multiple: int, scales: set[float]
) -> None:
    config = EvalConfig(resolution, multiple=multiple, scales=(1.0, *scales))
    base = np.array(eval_size(height, width, resolution, multiple))
    large = np.array(eval_size(height, width, *config.input_grid))
    largest = max(config.scales)
    for scale in config.scales:
        sides = large * scale / largest
        np.testing.assert_array_equal(sides, np.round(sides))
    # What is resized for the largest scale is the picture of scale 1, enlarged: but for the long side, whose
    # rest below one pixel is cut off at one scale and not at the other.
    assert min(large) == min(base) * largest
    assert abs(max(large) / largest - max(base)) in (0, multiple)


def test_networks_and_ids_that_do_not_fit_are_named(images: Tensor) -> None:
    data = Kites()
    with pytest.raises(InputError, match=r"finds 6 joints, but .* 'kite' has 4"):
        predict_dataset(Convolutions(6), data, EvalConfig(64))
    with pytest.raises(InputError, match="no image with id 3"):
        predict_dataset(Convolutions(4), data, EvalConfig(64), ids=[3])
    with pytest.raises(InputError, match="flip test needs one mirrored joint for each"):
        predict_maps(Convolutions(4), images, None, EvalConfig(64, flip=True))
    with pytest.raises(InputError, match="batch_size must be a positive integer, not 0"):
        EvalConfig(64, batch_size=0)


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ((0.5, 2.0), "contain 1, from which tags are taken"),
        ((), "contain 1"),
        ((1.0, 0.5, 0.5), "different numbers"),
        ((1.0, 1.3), r"whole pixels of 64 \('multiple'\), such as 0.5 or 1.5; 1.3 makes 83.2"),
        ((1.0, -1.0), "lies above 0 and is at most 8"),
        ((1.0, float("nan")), "lies above 0 and is at most 8"),
        ((1.0, 9.0), "at most 8, not at 9.0"),
        ((1.0, float("inf")), "lies above 0 and is at most 8"),
    ],
)
def test_scales_that_do_not_fit_are_named(scales: tuple[float, ...], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        EvalConfig(64, scales=scales)
    assert "\n" not in str(caught.value)


def test_an_untrained_and_a_broken_network_give_no_crash() -> None:
    data = Kites()
    network = Convolutions(4)
    stats = evaluate(network, data, EvalConfig(64)).stats
    assert 0.0 <= stats["AP"] < 0.2
    for parameter in network.parameters():
        parameter.data.fill_(float("nan"))
    result = evaluate(network, data, EvalConfig(64))
    assert result.detections == [] and result.stats["AP"] == 0.0


def test_the_published_network_is_no_worse_than_in_its_own_pipeline(shared: Path) -> None:
    """Reading, resizing, network, merging, grouping, mapping back and scoring, on all 92 photos.

    The recorded AP is the research pipeline's, with the same weights, photos and settings; this is the
    quickest of three. ``experiments/reference_ap.py`` compares all.
    """
    data = PoseDataset(
        shared / "data" / "coco" / "annotations" / "person_keypoints_val.json",
        shared / "data" / "coco" / "images" / "val",
        CROWDPOSE14,
    )
    golden = json.loads((shared / "golden" / "reference-ap.json").read_text(encoding="utf-8"))
    recorded = golden["no-flip+map-resolution"]["stats"]
    network = import_research(shared / "weights" / "litepose-m-crowdpose.reference.pth")
    network = fold_batchnorm(network, in_place=True)
    network.to(memory_format=torch.channels_last)  # quicker on a CPU
    through_onnx(network)  # quicker still, and what a search does
    stats = evaluate(network, data, EvalConfig(448, batch_size=1)).stats
    assert stats["AP"] >= recorded["AP"] - 5e-6  # recorded with five digits


def test_what_a_protocol_lacks_is_told_before_anybody_is_looked_for() -> None:
    class Never(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError("the network ran")

    with pytest.raises(InputError, match=r"image 10 needs a 'crowdIndex' .* not None; score by"):
        evaluate(Never(), Kites(), EvalConfig(128), protocol="crowdpose")
