"""The COCO-format reader: mapping of joints, masks, ground truth, splits, and one clear line per fault."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InputError
from supernet.pose.dataset import PoseDataset, read_image
from supernet.pose.skeleton import COCO17, CROWDPOSE14

JOINTS = ["left_hand", "right_hand", "tail"]


def content() -> dict[str, Any]:
    """Return a small file: two images, four animals (full, crowd, without keypoints, tail only)."""
    return {
        "images": [
            {"id": 4, "file_name": "b.png", "height": 40, "width": 60, "crowdIndex": 0.5},
            {"id": 2, "file_name": "a.png", "height": 50, "width": 30},
        ],
        "annotations": [
            {"id": 1, "image_id": 2, "category_id": 9, "bbox": [1, 1, 20, 40], "area": 300, "iscrowd": 0,
             "keypoints": [3, 4, 2, 10, 11, 1, 99, 99, 0], "num_keypoints": 2},
            {"id": 2, "image_id": 4, "category_id": 9, "bbox": [0, 0, 10, 10], "area": 60, "iscrowd": 1,
             "segmentation": {"size": [40, 60], "counts": [0, 80, 2320]}, "keypoints": [0] * 9},
            {"id": 3, "image_id": 4, "category_id": 9, "bbox": [30.0, 10.0, 9.5, 20.0]},
            {"id": 5, "image_id": 4, "category_id": 9, "keypoints": [0, 0, 0, 0, 0, 0, 50, 30, 2],
             "segmentation": [[44, 20, 55, 20, 55, 35, 44, 35]]},
            {"id": 1, "image_id": 4, "category_id": 7, "bbox": [0, 0, 1, 1]},
        ],
        "categories": [
            {"id": 7, "name": "box"},
            {"id": 9, "name": "monkey", "keypoints": JOINTS, "skeleton": [[1, 3], [2, 3]]},
        ],
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, height, width in (("a.png", 50, 30), ("b.png", 40, 60)):
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return tmp_path


def open_file(folder: Path, value: object, **options: Any) -> PoseDataset:
    path = folder / "annotations.json"
    path.write_text(json.dumps(value))
    return PoseDataset(path, folder, **options)


class TestReading:
    def test_samples(self, folder: Path) -> None:
        data = open_file(folder, content())
        assert data.ids == (2, 4)
        assert data.skeleton.joints == tuple(JOINTS)
        assert data.skeleton.limbs == ((0, 2), (1, 2))
        assert data.skeleton.flip_pairs == ((0, 1),)
        assert data.labelled.all()
        first, second = data.load(0), data.load(1)
        assert (first.image_id, first.image.shape) == (2, (50, 30, 3))
        stored = cv2.imread(str(folder / "a.png"))
        np.testing.assert_array_equal(first.image, stored[..., ::-1])
        np.testing.assert_array_equal(first.joints, [[[3, 4, 2], [10, 11, 1], [0, 0, 0]]])
        assert first.joints.dtype == np.float32
        assert first.mask.all()
        np.testing.assert_array_equal(second.joints, [[[0, 0, 0], [0, 0, 0], [50, 30, 2]]])

    @pytest.mark.parametrize(
        ("box", "masked"),
        [([-50, -50, 20, 20], 0), ([-50, 10, 20, 20], 0), ([-5, -5, 10, 10], 36), ([500, 500, 9, 9], 0)],
    )
    def test_boxes_beyond_the_image_mask_only_what_they_cover(
        self, folder: Path, box: list[int], masked: int
    ) -> None:
        value = content()
        value["annotations"] = [{"id": 3, "image_id": 4, "category_id": 9, "bbox": box}]
        assert (~open_file(folder, value).load(1).mask).sum() == masked

    def test_joints_far_outside_any_image_are_refused(self, folder: Path) -> None:
        value = content()
        value["annotations"][0]["keypoints"][0] = 1e300
        with pytest.raises(InputError, match=r"annotation 1 has joint 0 at \[1e\+300, 4.0\], far outside"):
            open_file(folder, value)

    def test_fingerprints_follow_people_and_images(self, folder: Path) -> None:
        whole = open_file(folder, content())
        assert whole.fingerprint == open_file(folder, content()).fingerprint
        assert whole.subset([2]).fingerprint != whole.fingerprint
        assert whole.subset([2, 4]).fingerprint == whole.fingerprint
        moved = content()
        moved["annotations"][0]["keypoints"][0] = 3.5
        assert open_file(folder, moved).fingerprint != whole.fingerprint

    def test_files_are_told_by_their_true_paths(self, folder: Path) -> None:
        data = open_file(folder, content())
        (folder / "link").symlink_to(folder, target_is_directory=True)
        linked = PoseDataset(folder / "annotations.json", folder / "link")
        assert data.files() == linked.files() == {folder.resolve() / n: n for n in ("a.png", "b.png")}
        assert many(2).files() == {}

    def test_links_and_detours_do_not_hide_a_file(self, folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "sub" / "b.png").symlink_to(folder / "b.png")
        moved = content()
        for image, name in zip(moved["images"], ("sub/b.png", "sub/../a.png"), strict=True):
            image["file_name"] = name
        assert set(open_file(folder, moved).files()) == set(open_file(folder, content()).files())

    def test_crowds_and_people_without_joints_are_masked(self, folder: Path) -> None:
        mask = open_file(folder, content()).load(1).mask
        expected = np.ones((40, 60), np.bool_)
        expected[:, :2] = False  # the crowd's run length code: two columns
        expected[10:31, 30:41] = False  # the box of the one without keypoints
        np.testing.assert_array_equal(mask, expected)

    def test_people_without_joints_of_the_target_are_masked(self, folder: Path) -> None:
        hands = open_file(folder, content()).skeleton
        target = type(hands)("hands", ("right_hand", "left_hand", "nose"), ((0, 1),), (0.1,) * 3, ())
        data = open_file(folder, content(), skeleton=target)
        assert data.labelled.tolist() == [True, True, False]
        np.testing.assert_array_equal(data.load(0).joints, [[[10, 11, 1], [3, 4, 2], [0, 0, 0]]])
        sample = data.load(1)
        assert sample.joints.shape == (0, 3, 3)
        assert not sample.mask[21:35, 45:55].any(), "the polygon of the one with a tail only"
        assert [a["num_keypoints"] for a in data.ground_truth()["annotations"]] == [2, 0, 0, 0]
        assert data.with_people().ids == (2,)

    def test_ground_truth(self, folder: Path) -> None:
        data = open_file(folder, content())
        truth = data.ground_truth()
        assert [image["id"] for image in truth["images"]] == [2, 4]
        assert truth["images"][1]["crowdIndex"] == 0.5
        by_id = {a["id"]: a for a in truth["annotations"]}
        assert set(by_id) == {1, 2, 3, 5}
        assert by_id[1]["keypoints"] == [3, 4, 2, 10, 11, 1, 0, 0, 0]
        assert (by_id[1]["area"], by_id[1]["bbox"], by_id[2]["iscrowd"]) == (300, [1, 1, 20, 40], 1)
        assert by_id[3]["area"] == pytest.approx(9.5 * 20 * 0.53)
        assert by_id[5]["bbox"] == [50, 30, 0, 0]
        assert truth["categories"][0]["keypoints"] == JOINTS
        assert data.ground_truth([4])["images"] == truth["images"][1:]
        with pytest.raises(InputError, match="image id 77 is not in"):
            data.ground_truth([77])

    def test_people_whose_joints_the_file_does_not_count_are_trained_on_but_not_scored(
        self, folder: Path
    ) -> None:
        """CrowdPose's num_keypoints leave out head and neck."""
        value = content()
        value["annotations"][0]["num_keypoints"] = 0
        data = open_file(folder, value)
        assert len(data.joints(0)) == 1 and data.load(0).mask.all()
        person = data.ground_truth([2])["annotations"][0]
        assert (person["num_keypoints"], person["keypoints"][:3]) == (0, [3, 4, 2])
        assert PoseDataset.from_dict(data.ground_truth(), folder).ground_truth() == data.ground_truth()
        assert data.fingerprint != open_file(folder, content()).fingerprint

    def test_ground_truth_can_be_read_again(self, folder: Path) -> None:
        data = open_file(folder, content())
        again = PoseDataset.from_dict(data.ground_truth(), folder)
        assert again.ground_truth() == data.ground_truth()

    def test_images_in_memory(self) -> None:
        images = {2: np.zeros((50, 30, 3), np.uint8), 4: np.ones((40, 60, 3), np.uint8)}
        data = PoseDataset.from_dict(content(), images)
        assert data.load_image(1) is images[4]
        images[4] = np.ones((40, 61, 3), np.uint8)
        with pytest.raises(InputError, match=r"image 4 .* must be uint8 \(40, 60, 3\)"):
            data.load(1)
        with pytest.raises(InputError, match=r"1 of 2 images .* are not given: id 4"):
            PoseDataset.from_dict(content(), {2: images[2]})

    def test_without_images_there_is_ground_truth_only(self) -> None:
        data = PoseDataset.from_dict(content(), None)
        assert len(data.ground_truth()["annotations"]) == 4
        with pytest.raises(InputError, match="without an image folder"):
            data.load(0)


Change = Callable[[dict[str, Any]], object]


def drop(key: str) -> Change:
    return lambda value: value.pop(key)


def edit(table: str, row: int, **fields: Any) -> Change:
    return lambda value: value[table][row].update(fields)


FAULTS: list[tuple[str, Change, str]] = [
    ("no-images", drop("images"), "lacks 'images'"),
    ("no-annotations", drop("annotations"), "lacks 'annotations'"),
    ("no-categories", drop("categories"), "lacks 'categories'"),
    ("table-type", lambda value: value.update(images={}), "'images' must be a list of mappings"),
    ("boxes-only", edit("categories", 1, keypoints=[]), "no category has 'keypoints'"),
    ("two-categories", edit("categories", 0, keypoints=["a"]), r"several categories .*\(box, monkey\)"),
    ("category-id", edit("categories", 1, id="x"), "needs an integer 'id', got 'x'"),
    ("category-limbs", edit("categories", 1, skeleton=[["a", "b"]]), "pairs of 1-based joints"),
    ("limb-range", edit("categories", 1, skeleton=[[0, 1]]), "limbs must be pairs of two different joints"),
    ("image-id", edit("images", 0, id=None), "an image needs an integer 'id', got None"),
    ("image-twice", edit("images", 0, id=2), "image id 2 is there more than once"),
    ("no-file-name", lambda value: value["images"][1].pop("file_name"), "image 2 needs a 'file_name'"),
    (
        "no-height",
        lambda value: value["images"][1].pop("height"),
        "image 2 needs a positive integer 'height'",
    ),
    ("annotation-id", edit("annotations", 1, id="7"), "an annotation needs an integer 'id', got '7'"),
    ("annotation-twice", edit("annotations", 1, id=1), "annotation id 1 is there more than once"),
    ("unknown-image", edit("annotations", 0, image_id=3), "annotation 1 is of unknown image_id 3"),
    ("keypoint-count", edit("annotations", 0, keypoints=[1, 2, 2]), r"annotation 1 needs 9 .* got 3"),
    (
        "nan",
        edit("annotations", 0, keypoints=[1, 1, 2, float("nan"), 1, 2, 0, 0, 0]),
        "not a finite.*joint 1",
    ),
    ("text", edit("annotations", 0, keypoints=["a"] * 9), "'keypoints' that are not numbers"),
    ("visibility", edit("annotations", 0, keypoints=[1, 1, 3] * 3), "visibility 3 at joint 0"),
    ("box", edit("annotations", 0, bbox=[1, 2, -3, 4]), "annotation 1 needs a 'bbox'"),
    ("area", edit("annotations", 0, area=-1), "annotation 1 needs an 'area'"),
    ("nothing", lambda value: value["annotations"][2].pop("bbox"), "annotation 3 has neither keypoints"),
    ("missing-image", edit("images", 0, file_name="c.png"), "1 of 2 images .* first 'c.png'"),
]


class TestFaults:
    @pytest.mark.parametrize(("change", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
    def test_a_wrong_file_is_one_clear_line(self, folder: Path, change: Change, message: str) -> None:
        value = content()
        change(value)
        with pytest.raises(InputError, match=message) as caught:
            open_file(folder, value)
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value), "the file is named"

    @pytest.mark.parametrize(
        "segmentation", [[[1, 2, 3]], [["a", "b"]], {"size": [4, 4], "counts": [16]}, {"counts": [1]}, "xyz"]
    )
    def test_a_wrong_segmentation(self, folder: Path, segmentation: object) -> None:
        value = content()
        value["annotations"][2]["segmentation"] = segmentation
        with pytest.raises(InputError, match="annotation 3 has a 'segmentation'"):
            open_file(folder, value).load(1)

    def test_a_wrong_category_name(self, folder: Path) -> None:
        with pytest.raises(InputError, match=r"no category 'monkeys'.*did you mean 'monkey'"):
            open_file(folder, content(), category="monkeys")

    def test_a_foreign_skeleton(self, folder: Path) -> None:
        with pytest.raises(InputError, match=r"annotates no joint of skeleton 'coco17'.*it has left_hand"):
            open_file(folder, content(), skeleton=COCO17)

    def test_files_that_are_not_there(self, folder: Path) -> None:
        with pytest.raises(InputError, match=r"annotation file '.*nowhere.json' does not exist"):
            PoseDataset(folder / "nowhere.json", folder)
        (folder / "half.json").write_text('{"images": [')
        with pytest.raises(InputError, match=r"half.json' is not valid JSON: .* line 1"):
            PoseDataset(folder / "half.json", folder)
        (folder / "list.json").write_text("[]")
        with pytest.raises(InputError, match="must be a COCO-format mapping, not list"):
            PoseDataset(folder / "list.json", folder)
        with pytest.raises(InputError, match=r"image folder '.*images' does not exist"):
            open_file(folder, content())
            PoseDataset(folder / "annotations.json", folder / "images")

    @pytest.mark.parametrize("suffix", [".png", ".jpg"])
    @pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.97])
    def test_truncated_images(self, tmp_path: Path, suffix: str, kept: float) -> None:
        path = tmp_path / f"image{suffix}"
        image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(path), image)
        assert read_image(path, 64, 64).shape == (64, 64, 3)
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(InputError, match=rf"image '.*image{suffix}' .* is truncated or not an image"):
            read_image(path, 64, 64)

    def test_images_of_another_size(self, folder: Path) -> None:
        value = content()
        value["images"][1]["height"] = 51
        with pytest.raises(InputError, match=r"a.png' is 30x50 pixels but its annotations are for 30x51"):
            open_file(folder, value).load(0)
        (folder / "a.png").unlink()
        with pytest.raises(InputError, match=r"image '.*a.png' does not exist"):
            read_image(folder / "a.png")

    def test_stored_orientation_counts_where_the_annotations_say_so(self, tmp_path: Path) -> None:
        path = tmp_path / "turned.jpg"
        cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))
        data = path.read_bytes()
        exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
        path.write_bytes(data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:])
        assert read_image(path).shape == (20, 30, 3)
        assert read_image(path, 20, 30).shape == (20, 30, 3)
        assert read_image(path, 30, 20).shape == (30, 20, 3)


def many(count: int, step: int = 1) -> PoseDataset:
    records = [{"id": 1 + step * i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in range(count)]
    value = {**copy.deepcopy(content()), "images": records, "annotations": []}
    return PoseDataset.from_dict(value, None)


class TestSplit:
    @given(st.integers(0, 2**31), st.floats(0.2, 0.7))
    def test_parts_are_disjoint_and_complete(self, seed: int, share: float) -> None:
        data = many(300)
        parts = data.split({"train": share, "val": 1 - share}, seed)
        ids = [set(part.ids) for part in parts.values()]
        assert ids[0] | ids[1] == set(data.ids)
        assert not ids[0] & ids[1]
        assert abs(len(ids[0]) / 300 - share) < 0.17

    @given(st.integers(0, 2**31))
    def test_more_images_move_none(self, seed: int) -> None:
        few = many(100, step=3).split({"a": 0.5, "b": 0.3}, seed)
        more = many(400).split({"a": 0.5, "b": 0.3}, seed)
        for name, part in few.items():
            assert set(part.ids) <= set(more[name].ids)

    def test_seeds_differ_and_repeat(self) -> None:
        data = many(100)
        first, again, other = (data.split({"a": 0.5}, seed)["a"].ids for seed in (0, 0, 1))
        assert first == again != other

    @pytest.mark.parametrize("fractions", [{}, {"a": 0.0, "b": 1.0}, {"a": 0.7, "b": 0.4}, {"a": -1.0}])
    def test_wrong_fractions(self, fractions: dict[str, float]) -> None:
        with pytest.raises(InputError, match="positive fractions with a sum of at most 1"):
            many(10).split(fractions, 0)

    def test_an_empty_part(self) -> None:
        with pytest.raises(InputError, match=r"split part 'b' \(1e-06 of 10 images"):
            many(10).split({"a": 0.5, "b": 1e-6}, 0)

    def test_subset(self) -> None:
        data = many(10)
        part = data.subset([5, 3])
        assert (part.ids, len(part), len(data)) == ((3, 5), 2, 10)
        assert [image["id"] for image in part.ground_truth()["images"]] == [3, 5]
        with pytest.raises(InputError, match="image id 5000 is not in"):
            data.subset([5000])


class TestRealFiles:
    def test_coco(self, shared: Path) -> None:
        root = shared / "data" / "coco"
        file, images = root / "annotations" / "person_keypoints_val.json", root / "images" / "val"
        data = PoseDataset(file, images)
        assert data.skeleton is COCO17
        assert len(data) == 92
        truth = data.ground_truth()["annotations"]
        assert sum(a["num_keypoints"] > 0 for a in truth) == 324
        raw = {a["id"]: a for a in json.loads(file.read_text())["annotations"]}
        for annotation in truth:
            source = np.array(raw[annotation["id"]]["keypoints"], dtype=np.float64).reshape(-1, 3)
            source[source[:, 2] == 0] = 0
            np.testing.assert_allclose(annotation["keypoints"], source.ravel(), rtol=1e-6)
        mapped = PoseDataset(file, images, CROWDPOSE14)
        assert mapped.labelled.tolist() == [True] * 12 + [False] * 2
        for index in range(8):
            here, there = mapped.load(index), data.load(index)
            kept = there.joints[(there.joints[:, 5:, 2] > 0).any(axis=1)]
            np.testing.assert_array_equal(here.joints[:, :12], kept[:, 5:])
            assert not here.joints[:, 12:].any()

    def test_other_files(self, shared: Path) -> None:
        crowd = PoseDataset(shared / "data" / "crowdpose" / "crowdpose_val.json", None)
        assert (crowd.skeleton, len(crowd)) == (CROWDPOSE14, 2000)
        root = shared / "data" / "lspet"
        sports = PoseDataset(root / "annotations" / "person_keypoints_val.json", root / "images" / "val")
        assert sports.skeleton is CROWDPOSE14
        assert sports.load(0).joints.shape == (1, 14, 3)
