"""COCO files of what was found are read back by our own data set, by pycocotools and by evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from supernet.pose.coco_json import FoundPicture, write_dataset_json, write_results_json
from supernet.pose.dataset import PoseDataset
from supernet.pose.metrics import keypoint_ap
from supernet.pose.skeleton import COCO17


def found(seed: int, image_id: int, people: int) -> FoundPicture:
    """Return random people in a picture of 120 x 100 pixels; not all of their joints are shown."""
    rng = np.random.default_rng(seed)
    joints = np.round(rng.uniform(0, [119, 99, 1], (people, 17, 3)), 4)
    scores = np.sort(np.round(rng.random(people), 6))[::-1]
    shown = rng.random((people, 17)) > 0.3
    shown[1::3] = False
    return FoundPicture(image_id, f"a/é {image_id}.jpg", 100, 120, joints, scores, shown)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.lists(st.integers(0, 5), max_size=4))
def test_files_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, seed: int, counts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("coco")
    pictures = [found(seed + i, 10 * i + 3, count) for i, count in enumerate(counts)]
    write_dataset_json(folder / "set.json", pictures, COCO17, {"description": "x"})
    write_results_json(folder / "results.json", pictures)
    data = PoseDataset(folder / "set.json", None)
    assert data.skeleton == COCO17
    assert data.ids == tuple(picture.id for picture in pictures)
    results = json.loads((folder / "results.json").read_text())
    assert len(results) == sum(counts)
    for index, picture in enumerate(pictures):
        assert data.file_name(index) == picture.file_name
        kept = picture.shown.any(axis=1)
        expected = np.where(picture.shown[..., None], [1, 1, 0] * picture.people + [0, 0, 2], 0)[kept]
        np.testing.assert_array_equal(data.joints(index), expected.astype(np.float32))
        rows = [each for each in results if each["image_id"] == picture.id]
        assert [each["score"] for each in rows] == picture.scores.tolist()
        assert [each["keypoints"] for each in rows] == picture.people.reshape(-1, 51).tolist()
    truth = json.loads((folder / "set.json").read_text())
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        joints = np.reshape(annotation["keypoints"], (17, 3))
        joints = joints[joints[:, 2] > 0]
        assert len(joints) == annotation["num_keypoints"] > 0
        assert (joints[:, 0] >= x - 1e-3).all() and (joints[:, 0] <= x + width + 1e-3).all()
        assert (joints[:, 1] >= y - 1e-3).all() and (joints[:, 1] <= y + height + 1e-3).all()
        assert annotation["area"] > 0 and len(annotation["keypoint_scores"]) == 17
    assert len({each["id"] for each in truth["annotations"]}) == len(truth["annotations"])


def test_results_score_fully_against_the_data_set_of_the_same_people(tmp_path: Path) -> None:
    picture = found(1, 7, 1)
    everything = FoundPicture(7, "7.jpg", 100, 120, picture.people, picture.scores, np.ones((1, 17), bool))
    write_dataset_json(tmp_path / "set.json", [everything], COCO17, {}, [{"id": 1, "name": "v.mp4"}])
    write_results_json(tmp_path / "results.json", [everything])
    coco = COCO(str(tmp_path / "set.json"))
    assert coco.loadRes(str(tmp_path / "results.json")).getAnnIds(imgIds=[7]) == [1]
    truth = json.loads((tmp_path / "set.json").read_text())
    results = json.loads((tmp_path / "results.json").read_text())
    assert keypoint_ap(truth, results, COCO17.sigmas)["AP"] == pytest.approx(1.0)
    assert truth["videos"] == [{"id": 1, "name": "v.mp4"}]
    assert list(tmp_path.iterdir()) and not list(tmp_path.glob(".*"))
