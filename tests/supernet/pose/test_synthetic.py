"""Drawn people: the same for a seed, truthfully annotated, varied."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from search_spaces.errors import InputError
from supernet.pose.dataset import PoseDataset
from supernet.pose.skeleton import COCO17
from supernet.pose.synthetic import VERSION, SyntheticPeople, annotate, generate, render, write_dataset


@pytest.fixture(scope="module")
def people() -> SyntheticPeople:
    return SyntheticPeople(120, seed=11)


class TestSeeds:
    def test_a_picture_is_the_same_however_many_are_asked_for(self) -> None:
        few = list(generate(3, 7, (64, 80)))
        more = list(generate(5, 7, (64, 80)))
        later = list(generate(2, 7, (64, 80), first=1))
        for a, b in ((few[2], more[2]), (few[1], later[0]), (few[2], later[1])):
            np.testing.assert_array_equal(a[0], b[0])
            assert a[1:] == b[1:]

    def test_pictures_and_seeds_differ(self) -> None:
        pictures = [render(seed, index, (64, 64))[0] for seed in (0, 1) for index in (0, 1)]
        for i, a in enumerate(pictures):
            for b in pictures[:i]:
                assert not np.array_equal(a, b)

    def test_a_change_of_what_is_drawn_needs_a_new_version(self) -> None:
        _, annotations = render(0, 0)
        left_shoulders = [round(a["keypoints"][15]) for a in annotations]
        assert (VERSION, left_shoulders) == (1, [131, 47])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ((-1, 0), "seed >= 0"),
            ((0, 0, (16, 64)), "32 pixels"),
            ((0, 0, (64, 64), (0, 2)), r"1 to 20 people .* got \(0, 2\)"),
            ((0, 0, (64, 64), (2, 21)), "1 to 20 people"),
        ],
    )
    def test_wrong_arguments(self, arguments: tuple[int, int], message: str) -> None:
        with pytest.raises(InputError, match=message):
            render(*arguments)
        with pytest.raises(InputError, match="count >= 1"):
            SyntheticPeople(0, 0)


class TestAnnotations:
    def test_cocos_own_tools_accept_them(
        self, people: SyntheticPeople, capsys: pytest.CaptureFixture[str]
    ) -> None:
        truth = COCO()
        truth.dataset = people.ground_truth()
        truth.createIndex()
        found = truth.loadRes(
            [
                {"image_id": a["image_id"], "category_id": 1, "keypoints": a["keypoints"], "score": 1.0}
                for a in truth.dataset["annotations"]
                if a["num_keypoints"] > 0
            ]
        )
        evaluation = COCOeval(truth, found, "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        capsys.readouterr()
        assert evaluation.stats[0] == pytest.approx(1.0)

    def test_visible_joints_lie_on_their_person(self) -> None:
        joints = outside = 0
        for image, _, found in generate(60, 3):
            for annotation in found:
                mask = np.zeros(image.shape[:2], np.uint8)
                outlines = [np.array(each).reshape(-1, 2) for each in annotation["segmentation"]]
                cv2.drawContours(mask, outlines, -1, 1, -1)
                left, top, wide, high = annotation["bbox"]
                assert cv2.boundingRect(mask) == (left, top, wide, high) or annotation["area"] < 30
                assert mask.sum() >= annotation["area"] * 0.97
                for x, y, v in np.array(annotation["keypoints"]).reshape(17, 3):
                    if v == 2:
                        joints += 1
                        outside += not mask[round(y), round(x)]
        assert joints > 800
        assert outside <= joints * 0.002, "specks of less than three pixels have no outline"

    def test_a_covered_joint_is_occluded_and_a_joint_outside_unlabelled(self) -> None:
        owner = np.zeros((40, 40), np.uint8)
        owner[5:35, 5:35] = 2  # the torso of figure 0, which owns 1 to 12
        owner[20:35, 5:35] = 14  # the torso of figure 1
        xy = np.full((17, 2), 100.0)
        shoulder, hip, eye = 5, 11, 1
        xy[shoulder], xy[hip], xy[eye] = (10, 10), (10, 30), (12, 8)
        hidden = np.zeros(17, np.bool_)
        annotation = annotate(xy, hidden, owner, 1)
        assert annotation is not None
        keypoints = np.array(annotation["keypoints"]).reshape(17, 3)
        assert keypoints[shoulder].tolist() == [10, 10, 2]
        assert keypoints[hip].tolist() == [10, 30, 1], "another figure covers it"
        assert keypoints[eye, 2] == 1, "its own torso covers it"
        assert annotation["num_keypoints"] == 3
        assert annotation["area"] == 15 * 30
        assert annotation["bbox"] == [5, 5, 30, 15]
        hidden[eye] = True
        again = annotate(xy, hidden, owner, 1)
        assert again is not None
        assert again["num_keypoints"] == 2
        assert annotate(xy, hidden, owner, 100) is None

    def test_left_and_right_can_be_told(self, people: SyntheticPeople) -> None:
        """Who shows a face has the left side at the right of the picture; who shows none, at the left."""
        agree = total = 0
        for index in range(len(people)):
            for person in people.joints(index):
                left, right = person[COCO17.joints.index("left_shoulder")], person[6]
                if min(left[2], right[2]) == 0 or abs(left[0] - right[0]) < 12:
                    continue
                if (person[:3, 2] == 1).any():
                    continue
                face = (person[:3, 2] > 0).sum() >= 2
                total += 1
                agree += bool((left[0] > right[0]) == face)
        assert total > 100
        assert agree >= 0.97 * total


def test_pictures_vary_as_promised(people: SyntheticPeople) -> None:
    counts = [len(people.joints(index)) for index in range(len(people))]
    assert min(counts) == 1
    assert max(counts) == 4
    v = np.concatenate([people.joints(index)[..., 2].ravel() for index in range(len(people))])
    assert (v == 2).mean() > 0.7
    assert (v == 1).mean() > 0.01
    heights = [a["bbox"][3] / 192 for a in people.ground_truth()["annotations"]]
    assert 0.45 < np.median(heights) < 0.9
    assert max(heights) - min(heights) > 0.4


def test_memory_and_file_agree(tmp_path: Path) -> None:
    calls: list[int] = []
    path = write_dataset(tmp_path / "set", 4, 2, (64, 96), (1, 2), progress=calls.append)
    assert calls == [1, 2, 3, 4]
    stored = PoseDataset(path, tmp_path / "set" / "images")
    drawn = SyntheticPeople(4, 2, (64, 96), (1, 2))
    assert stored.skeleton is drawn.skeleton is COCO17
    assert stored.ground_truth() == drawn.ground_truth()
    for index in range(4):
        a, b = stored.load(index), drawn.load(index)
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.joints, b.joints)
        assert a.image.shape == (64, 96, 3)


def test_writing_is_skipped_where_all_is_there_and_done_where_it_is_not(tmp_path: Path) -> None:
    def write(seed: int = 2) -> int:
        calls: list[int] = []
        write_dataset(tmp_path, 3, seed, (48, 48), progress=calls.append)
        return len(calls)

    assert write() == 3
    assert write() == 0
    damaged = tmp_path / "images" / "000001.png"
    sound = damaged.read_bytes()
    damaged.write_bytes(sound[:100])
    assert write() == 3
    assert damaged.read_bytes() == sound
    damaged.unlink()
    assert write() == 3
    assert write(seed=3) == 3
    (tmp_path / "annotations.json").write_text("{")
    assert write(seed=3) == 3


def test_parts_of_the_memory_set(people: SyntheticPeople) -> None:
    parts = people.split({"train": 0.8, "val": 0.2}, seed=0)
    train, val = parts["train"], parts["val"]
    assert isinstance(train, SyntheticPeople)
    assert len(train) + len(val) == 120
    index = people.ids.index(val.ids[0])
    np.testing.assert_array_equal(val.load_image(0), people.load_image(index))
    with pytest.raises(ValueError, match="read-only"):
        val.load_image(0)[0, 0] = 0
