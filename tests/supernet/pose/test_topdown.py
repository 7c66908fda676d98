"""People found box by box: in the right place, whatever runs at once."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from search_spaces import InputError
from supernet.pose.boxes import crop_extent, whole_image
from supernet.pose.dataset import PoseDataset
from supernet.pose.inference import Inference
from supernet.pose.metrics import keypoint_ap
from supernet.pose.synthetic import SyntheticPeople
from supernet.pose.topdown import (
    PersonPictures,
    TopDownConfig,
    predict_heatmaps,
    predict_people,
)
from supernet.pose.transforms import IMAGENET_MEAN, IMAGENET_STD
from tests.supernet.pose.beacon import LIGHTS, picture, three_lights

pytestmark = pytest.mark.usefixtures("one_thread")


class Lamps(nn.Module):
    """Heatmaps at 1/4 or 1/8 show how far a crop's colours are above those of the surroundings."""

    def __init__(self, stride: int = 4) -> None:
        super().__init__()
        self.stride = stride
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).reshape(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        colours = functional.relu(2 * (images * self.std + self.mean) - 1)
        return (functional.avg_pool2d(colours, self.stride),)


class Fixed(nn.Module):
    """Untrained but not constant: 17 joints from random weights."""

    def __init__(self, joints: int = 17) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(
                nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, joints, 3, 2, 1)
            )

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.layers(images),)


SIZES = ((150, 120), (90, 200), (240, 130), (64, 64))


@pytest.fixture(scope="module")
def lights() -> PoseDataset:
    """Four pictures of three lights each, in different shapes; one is annotated without a box."""
    images, records, annotations = {}, [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        at = three_lights(height, width, turn=0.4 * number)
        images[number] = picture(height, width, at)
        records.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        points = np.array(at)
        low, high = points.min(axis=0) - 6, points.max(axis=0) + 6
        person = {
            "id": number,
            "image_id": number,
            "category_id": 1,
            "iscrowd": 0,
            "keypoints": np.column_stack([points, [2, 2, 2]]).ravel().tolist(),
            "area": 900.0,
        }
        if number != 2:
            person["bbox"] = [*low.tolist(), *(high - low).tolist()]
        annotations.append(person)
    category = {"id": 1, "name": "lamp", "keypoints": list(LIGHTS.joints), "skeleton": []}
    content = {"images": records, "annotations": annotations, "categories": [category]}
    return PoseDataset.from_dict(content, images, LIGHTS)


def joints_of(detection: dict[str, Any]) -> NDArray[np.float64]:
    return np.reshape(detection["keypoints"], (-1, 3))


def truth_of(data: PoseDataset) -> dict[int, NDArray[np.float64]]:
    return {a["image_id"]: joints_of(a) for a in data.ground_truth()["annotations"]}


def offsets(data: PoseDataset, detections: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Return how far each joint is from its true place, pixels of the picture: (people, J, 2)."""
    truth = truth_of(data)
    return np.array([joints_of(each)[:, :2] - truth[each["image_id"]][:, :2] for each in detections])


# -- places --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("resolution", [128, 256])
def test_joints_lie_where_they_are(lights: PoseDataset, stride: int, flip: bool, resolution: int) -> None:
    config = TopDownConfig(resolution, flip=flip, sigma=1.0)
    result = predict_people(Lamps(stride), lights, config)
    assert [each["image_id"] for each in result.detections] == list(lights.ids)
    off = offsets(lights, result.detections)
    assert np.abs(off).max() < 0.5
    assert np.abs(off.mean(axis=(0, 1))).max() < 0.12  # no shift either way


def test_dark_is_nearer_than_quarter_and_quarter_than_argmax(lights: PoseDataset) -> None:
    far = []
    for method in ("argmax", "quarter", "dark"):
        config = TopDownConfig(128, decoding=method, sigma=1.0)
        found = predict_people(Lamps(8), lights, config).detections
        far.append(np.linalg.norm(offsets(lights, found), axis=2).mean())
    assert far[0] > 1.5 * far[1]
    assert far[1] > 1.5 * far[2]


def test_whole_pictures(lights: PoseDataset) -> None:
    config = TopDownConfig(256, boxes=Path("whole-image"), padding=1.0, sigma=1.0)
    result = predict_people(Lamps(), lights, config)
    assert [each["image_id"] for each in result.detections] == list(lights.ids)
    assert np.abs(offsets(lights, result.detections)).max() < 0.5


def test_a_perfect_network_has_perfect_ap(lights: PoseDataset) -> None:
    found = predict_people(Lamps(), lights, TopDownConfig(256, sigma=1.0)).detections
    assert keypoint_ap(lights.ground_truth(), found, LIGHTS.sigmas)["AP"] == pytest.approx(1.0)


# -- boxes and suppression -----------------------------------------------------------------------------------


def detector(folder: Path, data: PoseDataset, copies: int = 3) -> Path:
    """Write a file in which every person was found several times, and in image 4 nobody."""
    rows = []
    for annotation in data.ground_truth()["annotations"]:
        if annotation["image_id"] != 4:
            x, y, width, height = annotation["bbox"]
            for copy in range(copies):
                box = [x - 2 * copy, y + copy, width + 3 * copy, height + copy]
                rows.append({"image_id": annotation["image_id"], "bbox": box, "score": 0.9 - 0.2 * copy})
    path = folder / "boxes.json"
    path.write_text(json.dumps(rows))
    return path


def test_people_found_twice_remain_once(lights: PoseDataset, tmp_path: Path) -> None:
    config = TopDownConfig(256, boxes=detector(tmp_path, lights), sigma=1.0)
    every = predict_people(Lamps(), lights, replace(config, suppression="none")).detections
    assert [each["image_id"] for each in every] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    once = predict_people(Lamps(), lights, config).detections
    assert [each["image_id"] for each in once] == [1, 2, 3]
    assert np.abs(offsets(lights, once)).max() < 0.6
    soft = predict_people(Lamps(), lights, replace(config, suppression="soft")).detections
    assert [each["image_id"] for each in soft] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for before, after in zip(every[::3], soft[::3], strict=True):
        assert before["score"] == after["score"]
    assert all(soft[place]["score"] < 0.6 * every[place]["score"] for place in (1, 2, 4, 5, 7, 8))
    few = predict_people(Lamps(), lights, replace(config, suppression="none", max_detections=2)).detections
    assert few == [each for place, each in enumerate(every) if place % 3 != 2]
    sure = predict_people(Lamps(), lights, replace(config, suppression="none", box_threshold=0.6)).detections
    assert sure == few
    first = predict_people(Lamps(), lights, replace(config, suppression="none", max_boxes=1)).detections
    assert first == every[::3]


def test_scores_are_those_of_boxes_and_joints(lights: PoseDataset, tmp_path: Path) -> None:
    path = detector(tmp_path, lights, copies=1)
    found = predict_people(Lamps(), lights, TopDownConfig(256, boxes=path)).detections
    for each in found:
        assert each["score"] == pytest.approx(0.9 * joints_of(each)[:, 2].mean())


def test_annotated_people_are_all_found_once() -> None:
    data = SyntheticPeople(8, 1, size=(96, 128), people=(1, 4))
    config = TopDownConfig(128, max_detections=1, suppression_threshold=0.01)
    found = predict_people(Fixed(), data, config).detections
    expected = [i for index, i in enumerate(data.ids) for _ in data.joints(index)]
    assert [each["image_id"] for each in found] == expected
    for image_id in data.ids:
        scores = [each["score"] for each in found if each["image_id"] == image_id]
        assert scores == sorted(scores, reverse=True)


def test_faults_of_the_file_are_told(lights: PoseDataset, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps([{"image_id": 99, "bbox": [1, 2, 3, 4], "score": 1}]))
    with pytest.raises(InputError, match=r"boxes\.json': entry 0 .*99"):
        predict_people(Lamps(), lights, TopDownConfig(128, boxes=path))
    with pytest.raises(InputError, match=r"none\.json"):
        predict_people(Lamps(), lights, TopDownConfig(128, boxes=tmp_path / "none.json"))


# -- the machine ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people() -> SyntheticPeople:
    return SyntheticPeople(9, 2, size=(96, 120), people=(1, 4))


def near(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [each["image_id"] for each in found] == [each["image_id"] for each in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-5)
        assert np.abs(joints_of(ours) - joints_of(theirs)).max() < 1e-2


@pytest.mark.parametrize("side_by_side", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_the_same_people_whatever_runs_at_once(
    people: SyntheticPeople, side_by_side: int, batch_size: int
) -> None:
    network = Fixed().train()
    plain = predict_people(network, people, TopDownConfig(128, batch_size=1, flip=True)).detections
    told: list[tuple[int, int]] = []
    inference = Inference(side_by_side, pictures=PersonPictures(people))
    config = TopDownConfig(128, batch_size=batch_size, flip=True)
    for _ in range(2):  # the second time with the crops that were kept
        result = predict_people(
            network, people, config, inference=inference, progress=lambda *each: told.append(each)
        )
        near(result.detections, plain)
        assert result.images == 9
        assert min(result.seconds_network, result.seconds_decode) > 0
        assert told[-1] == (9, 9)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        told.clear()
    assert all(module.training for module in network.modules())


def test_crops_are_made_once(people: SyntheticPeople, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    load = people.load_image
    monkeypatch.setattr(people, "load_image", lambda index: loaded.append(index) or load(index))
    pictures = PersonPictures(people)
    inference, config = Inference(pictures=pictures), TopDownConfig(128)
    first = predict_people(Fixed(), people, config, inference=inference).detections
    assert sorted(loaded) == list(range(9))  # each picture once, however many people it shows
    crops = sum(len(people.joints(index)) for index in range(9))
    assert pictures.held_bytes == crops * 128 * 96 * 3
    assert predict_people(Fixed(), people, config, inference=inference).detections == first
    predict_people(Fixed(), people, config, inference=inference, ids=people.ids[2:4])
    assert len(loaded) == 9
    predict_people(Fixed(), people, replace(config, resolution=192), inference=inference)
    predict_people(Fixed(), people, replace(config, padding=1.0), inference=inference)
    assert len(loaded) == 27
    small = Inference(pictures=PersonPictures(people, 3 * 128 * 96 * 3))
    for _ in range(2):
        assert predict_people(Fixed(), people, config, inference=small).detections == first
    copy = pickle.loads(pickle.dumps(PersonPictures(SyntheticPeople(1, 0, size=(48, 48)))))
    assert copy.held_bytes == 0


def test_entering_tells_the_crops(people: SyntheticPeople) -> None:
    told: list[tuple[int, ...]] = []
    inference = Inference(entering=told.append)
    config = TopDownConfig(128, batch_size=4)
    predict_people(Fixed(), people, config, inference=inference)
    count = sum(len(people.joints(index)) for index in range(9))
    assert [number for batch in told for number in batch] == list(range(count))
    told.clear()
    predict_people(Fixed(), people, config, inference=inference, ids=people.ids[4:6])
    first = sum(len(people.joints(index)) for index in range(4))
    assert told[0][0] == first


def test_some_images_in_another_order(people: SyntheticPeople) -> None:
    config = TopDownConfig(128)
    every = predict_people(Fixed(), people, config).detections
    chosen = [people.ids[5], people.ids[1]]
    some = predict_people(Fixed(), people, config, ids=chosen).detections
    near(some, [each for image_id in chosen for each in every if each["image_id"] == image_id])
    with pytest.raises(InputError, match="no image with id 1000"):
        predict_people(Fixed(), people, config, ids=[1000])


# -- what does not fit ---------------------------------------------------------------------------------------


class Says(nn.Module):
    """A network that answers with something of its own."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images)


def test_networks_of_another_kind_are_refused(people: SyntheticPeople) -> None:
    config = TopDownConfig(128)
    cases = [
        (lambda x: x.new_zeros(len(x), 17, 32, 24), "tuple of its heatmaps alone, not a tensor"),
        (lambda x: (x.new_zeros(len(x), 34, 32, 24), x.new_zeros(len(x), 17, 64, 48)), "alone, not 2"),
        (lambda x: (x.new_zeros(len(x), 17, 64, 48),), "1/4 or 1/8"),
        (lambda x: (x.new_zeros(len(x), 14, 32, 24),), "finds 14 joints.*has 17"),
    ]
    for answer, message in cases:
        network = Says(answer).train()
        with pytest.raises(InputError, match=message):
            predict_people(network, people, config)
        assert network.training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 100}, "multiple of 32"),
        ({"resolution": 0}, "positive integer"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_detections": 2.5}, "max_detections"),
        ({"decoding": "best"}, "argmax, quarter, dark"),
        ({"suppression": "hard"}, "oks, soft, none"),
        ({"suppression_threshold": 0.0}, "suppression_threshold"),
        ({"padding": math.nan}, "padding"),
        ({"box_threshold": -1.0}, "box_threshold"),
        ({"max_boxes": 0}, "max_boxes"),
        ({"sigma": 0.0}, "sigma"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TopDownConfig(**{"resolution": 128, **changes})


def test_flip_averages_both(people: SyntheticPeople) -> None:
    images = torch.randn(2, 3, 128, 96, generator=torch.Generator().manual_seed(0))
    network, index = Fixed().eval(), people.skeleton.flip_index
    plain, mirrored = predict_heatmaps(network, images), predict_heatmaps(network, images.flip(3))
    both = predict_heatmaps(network, images, index)
    assert torch.allclose(both, (plain + mirrored.flip(3)[:, torch.from_numpy(index)]) / 2)
    assert not torch.allclose(both, plain)


def test_areas_are_those_of_the_crops() -> None:
    assert crop_extent(whole_image(64, 48), (128, 96), 1.0) == (48, 64)


# -- real people ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco", "lspet"])
def test_real_people_come_through(shared: Path, name: str) -> None:
    folder = shared / "data" / name
    if not (folder / "images" / "val").is_dir():
        pytest.skip(f"the optional provided {name} images are absent")
    data = PoseDataset(folder / "annotations" / "person_keypoints_val.json", folder / "images" / "val")
    data = data.subset(data.ids[:12])
    found = predict_people(Fixed(len(data.skeleton)), data, TopDownConfig(128, flip=True)).detections
    assert len(found) == sum(len(data.joints(index)) for index in range(12))
    assert 0 <= keypoint_ap(data.ground_truth(), found, data.skeleton.sigmas)["AP"] < 0.5
