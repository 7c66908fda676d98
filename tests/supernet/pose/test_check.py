"""The check of data sets: every kind of finding is found where it is, and nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from search_spaces.files import read_json
from supernet.pose.census import Census, PersonFacts, PictureFacts, scale_name
from supernet.pose.check import DatasetReport, check_dataset, shared_images
from supernet.pose.dataset import PoseDataset
from supernet.pose.findings import EXAMPLES, RULES, Example, Gathered
from supernet.pose.likeness import Print, image_print, likeness
from supernet.pose.skeleton import COCO17, CROWDPOSE14, Skeleton
from supernet.pose.synthetic import SyntheticPeople

JOINTS = ["nose", "left_hand", "right_hand", "left_foot", "right_foot"]
FULL = [30, 8, 2, 14, 20, 2, 38, 21, 1, 16, 54, 2, 34, 55, 2]


def person(number: int, image: int, **fields: Any) -> dict[str, Any]:
    sound = {"id": number, "image_id": image, "category_id": 1, "bbox": [12, 6, 28, 52], "area": 900.0,
             "iscrowd": 0, "keypoints": list(FULL), "num_keypoints": 5,
             "segmentation": [[12, 6, 40, 6, 40, 58]]}  # fmt: skip
    return {**sound, **fields}


def sound() -> dict[str, Any]:
    """Return a file that nothing is wrong with."""
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "height": 64, "width": 48, "crowdIndex": 0.1},
            {"id": 2, "file_name": "b.png", "height": 64, "width": 48, "crowdIndex": 0.9},
        ],
        "annotations": [person(11, 1), person(12, 2)],
        "categories": [{"id": 1, "name": "person", "keypoints": list(JOINTS), "skeleton": [[1, 2], [1, 3]]}],
    }


def picture(seed: int, height: int = 64, width: int = 48) -> NDArray[np.uint8]:
    """Return a smooth picture of blobs; another seed gives another one."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.png", "b.png")):
        assert cv2.imwrite(str(tmp_path / name), picture(seed))
    return tmp_path


def codes(report: DatasetReport) -> set[str]:
    return {each.code for each in report.findings}


def found(report: DatasetReport, code: str) -> tuple[int, list[str]]:
    (finding,) = (each for each in report.findings if each.code == code)
    return finding.count, [each.text for each in finding.examples]


Change = Callable[[dict[str, Any]], object]


def edit(table: str, row: int, **fields: Any) -> Change:
    return lambda value: value[table][row].update(fields)


def first(**fields: Any) -> Change:
    return edit("annotations", 0, **fields)


def drop(table: str, row: int, key: str) -> Change:
    return lambda value: value[table][row].pop(key)


def add(table: str, row: object) -> Change:
    return lambda value: value[table].append(row)


def joints(**changes: tuple[float, float, int]) -> list[float]:
    """Return the keypoints with some joints elsewhere."""
    values = np.array(FULL, dtype=np.float64).reshape(-1, 3)
    for name, value in changes.items():
        values[JOINTS.index(name)] = value
    return [float(value) for value in values.ravel()]


FLAWS: list[tuple[str, Change, str]] = [
    ("row", add("annotations", 7), r"annotations\[2\] is 7"),
    ("category", edit("categories", 0, keypoints=[]), "no category has 'keypoints'"),
    ("category", add("categories", {"id": 1, "name": "kite"}), "category id 1 is there more than once"),
    ("category", add("categories", {"id": 2, "name": "dog", "keypoints": ["nose"]}), "several categories"),
    ("joints", edit("categories", 0, keypoints=["nose"] * 5), "must be distinct; 'nose'"),
    ("joints", edit("categories", 0, skeleton=[[1, 9]]), "limbs must be pairs of two different joints"),
    ("image-id", edit("images", 0, id="1"), "an image needs an integer 'id', got '1'"),
    ("image-id-twice", edit("images", 1, id=1), "image 1"),
    ("file-name", drop("images", 0, "file_name"), "image 1 needs a 'file_name', got None"),
    ("file-name-twice", edit("images", 1, file_name="a.png"), "'a.png' is image 1 and image 2"),
    ("image-size", edit("images", 0, width=0), "image 1 needs a positive integer 'width', got 0"),
    ("image-size", edit("images", 0, width=10**6, height=10**6), "of at most 1073741824 pixels"),
    ("image-missing", edit("images", 0, file_name="c.png"), r"'c.png' \(image 1\)"),
    ("image-missing", edit("images", 0, file_name="c" * 300), r"'c+' \(image 1\)"),
    ("image-missing", edit("images", 0, file_name="a\0.png"), r"\(image 1\)"),
    ("image-other-size", edit("images", 0, width=50), r"'a.png' is 48x64, annotated as 50x64 \(image 1\)"),
    ("annotation-id", drop("annotations", 0, "id"), "an annotation needs an integer 'id', got None"),
    ("annotation-id-twice", edit("annotations", 1, id=11), "annotation 11"),
    ("annotation-image", first(image_id=5), "annotation 11 is of unknown image_id 5"),
    ("annotation-image", first(image_id=[1]), r"needs an integer 'image_id', got \[1\]"),
    ("annotation-category", first(category_id=5), "annotation 11 is of unknown category_id 5"),
    ("annotation-category", drop("annotations", 0, "category_id"), "an integer 'category_id', got None"),
    ("keypoints-number", first(keypoints=["1"] * 15), "annotation 11 has 'keypoints' that"),
    ("keypoints-number", first(keypoints=[float("nan")] * 15), "not a finite number: joint 0"),
    ("keypoints-count", first(keypoints=[1, 2, 2]), r"needs 15 keypoint values .* got 3"),
    ("keypoints-far", first(keypoints=joints(nose=(1e7, 3, 2))), "joint 0 at .*far outside"),
    ("visibility", first(keypoints=joints(left_hand=(20, 20, 3))), "visibility 3 at joint 1"),
    ("nothing", lambda value: value["annotations"].append({"id": 13, "image_id": 1, "category_id": 1}),
     "annotation 13 has neither keypoints, nor 'bbox', nor 'segmentation'"),
    ("box", first(bbox=[1, 2, -3, 4]), r"annotation 11 needs a 'bbox' .* got \[1, 2, -3, 4\]"),
    ("area", first(area="large"), "annotation 11 needs an 'area' of at least 0, got 'large'"),
    ("area-zero", first(area=0), "annotation 11"),
    ("crowd-flag", first(iscrowd="0"), "annotation 11 needs an 'iscrowd' of 0 or 1, got '0'"),
    ("segmentation", first(iscrowd=1, segmentation={"size": [64, 48], "counts": [9]}),
     "annotation 11 has a 'segmentation' .* its runs make 9 pixels, the image has 3072"),
    ("segmentation", first(keypoints=[0] * 15, num_keypoints=0, segmentation=[[1, 2, 3]]),
     "at least three x, y"),
    ("fractions", lambda value: [a.update(keypoints=[0.5, 0.25, 2] * 5) for a in value["annotations"]],
     r"no joint is beyond 1, 1; annotation 11 has one at \[0.5, 0.25\]"),
    ("nobody", lambda value: value["annotations"].clear(), "2 images, 0 annotations of people"),
    ("nobody", lambda value: [a.update(keypoints=[0] * 15, num_keypoints=0) for a in value["annotations"]],
     "2 images, 2 annotations of people"),
]  # fmt: skip
WARNINGS: list[tuple[str, Change, str]] = [
    ("flip-pairs", lambda value: value["categories"][0]["keypoints"].__setitem__(2, "tail"), "left_hand"),
    ("flip-pairs", edit("categories", 0, keypoints=list("abcde")), "no joint is named left or right"),
    ("joint-never", lambda value: [a.update(keypoints=joints(nose=(0, 0, 0)), num_keypoints=4)
                                   for a in value["annotations"]], "nose"),
    ("crowd-index", drop("images", 0, "crowdIndex"), "image 1 has crowdIndex None"),
    ("num-keypoints", first(num_keypoints=4), r"annotation 11 \(a.png\) says 4, 5 are labelled"),
    ("num-keypoints", first(num_keypoints=[5]), r"says \[5\], 5 are labelled"),
    ("num-keypoints-zero", first(num_keypoints=0), "annotation 11 .* says 0, 5 are labelled"),
    ("joint-outside-image", first(keypoints=joints(left_hand=(-3, 20, 2)), bbox=None),
     r"annotation 11 \(a.png\): left_hand at -3, 20 on 48x64"),
    ("joint-outside-box", first(bbox=[12, 6, 28, 30]), "right_foot at 34, 55, box"),
    ("joint-at-origin", first(keypoints=joints(nose=(0, 0, 2)), bbox=None), "nose at 0, 0"),
    ("joints-stacked", first(keypoints=joints(left_foot=(34, 55, 1))),
     "left_foot, right_foot at 34, 55"),
    ("people-twice", add("annotations", person(13, 1, keypoints=joints(nose=(30.5, 8, 2)))),
     r"annotations 11 and 13 \(a.png\)"),
    ("box-degenerate", first(bbox=[12, 6, 28, 0]), r"annotation 11 \(a.png\): \[12, 6, 28, 0\]"),
    ("box-outside-image", first(bbox=[12, 6, 39, 52]), r"\[12, 6, 39, 52\] on 48x64"),
    ("box-corners", lambda value: [a.update(bbox=[12, 6, 40, 59]) for a in value["annotations"]],
     r"annotation 11 has \[12.0, 6.0, 40.0, 59.0\]"),
    ("area-over-box", first(area=1500), "area 1500 of a box of 1456"),
    ("segmentation-unused", first(segmentation=[[1, 2, 3]]), "at least three x, y"),
]  # fmt: skip
NOTES: list[tuple[str, Change, str]] = [
    ("category-other", lambda value: (value["categories"].append({"id": 4, "name": "kite"}),
                                      value["annotations"].append({"id": 1, "category_id": 4})),
     "1 of category 4"),
    ("image-empty", lambda value: value["annotations"].pop(), "b.png"),
    ("people-unlabelled", add("annotations", person(13, 1, keypoints=[0] * 15, num_keypoints=0)), "tion 13"),
    ("people-unlabelled", add("annotations", person(13, 1, keypoints=[], num_keypoints=0)), "annotation 13"),
    ("crowd", add("annotations", person(13, 1, iscrowd=1)), "annotation 13"),
    ("box-missing", first(bbox=None), "annotation 11"),
    ("area-missing", drop("annotations", 0, "area"), "annotation 11"),
    ("crowd-index-range", edit("images", 0, crowdIndex=1.5), "image 1 has crowdIndex 1.5"),
]  # fmt: skip


def ids(rows: list[tuple[str, Change, str]]) -> list[str]:
    return [f"{code}-{number}" for number, (code, _, _) in enumerate(rows)]


class TestFindings:
    def test_a_sound_file_has_none(self, folder: Path) -> None:
        report = check_dataset(sound(), folder)
        assert report.findings == () and report.errors == 0
        assert report.skeleton is not None and report.skeleton.joints == tuple(JOINTS)

    @pytest.mark.parametrize(("code", "change", "text"), FLAWS, ids=ids(FLAWS))
    def test_errors(self, folder: Path, code: str, change: Change, text: str) -> None:
        value = sound()
        change(value)
        report = check_dataset(value, folder)
        finding = next(each for each in report.findings if each.code == code)
        assert (finding.severity, finding.rule.severity) == ("error", "error")
        assert "refused" not in codes(report)
        assert re.search(text, finding.examples[0].text), finding.examples[0].text

    @pytest.mark.parametrize(("code", "change", "text"), WARNINGS, ids=ids(WARNINGS))
    def test_warnings(self, folder: Path, code: str, change: Change, text: str) -> None:
        self._without_errors(folder, code, change, text, "warning")

    @pytest.mark.parametrize(("code", "change", "text"), NOTES, ids=ids(NOTES))
    def test_notes(self, folder: Path, code: str, change: Change, text: str) -> None:
        self._without_errors(folder, code, change, text, "note")

    @staticmethod
    def _without_errors(folder: Path, code: str, change: Change, text: str, severity: str) -> None:
        value = sound()
        change(value)
        report = check_dataset(value, folder)
        finding = next(each for each in report.findings if each.code == code)
        assert finding.severity == severity
        assert re.search(text, finding.examples[0].text), finding.examples[0].text
        assert report.errors == 0
        data = PoseDataset.from_dict(value, folder)
        assert [data.load(index).image_id for index in range(len(data))] == list(data.ids)

    def test_one_flaw_does_not_hide_another(self, folder: Path) -> None:
        """Flaws of different people and images are all told, and what is sound is still counted."""
        value = sound()
        value["images"] += [
            {"id": 3, "file_name": "none.png", "height": 64, "width": 48, "crowdIndex": 0},
            {"id": 4, "height": 64, "width": 48, "crowdIndex": 0},
            {"file_name": "x.png"},
            "no mapping",
        ]
        value["annotations"] += [
            person(13, 1, keypoints=[1]),
            person(14, 1, area=-1),
            person(15, 99),
            person(11, 2, bbox="box"),
            person(16, 3, iscrowd=7, bbox=[-9, 0, 9, 9]),
            {"id": None, "category_id": 1},
            None,
        ]
        report = check_dataset(value, folder)
        errors = {each.code: each.count for each in report.findings if each.severity == "error"}
        assert errors == {
            **dict.fromkeys(("image-missing", "file-name", "image-id", "keypoints-count", "area"), 1),
            **dict.fromkeys(("annotation-image", "annotation-id-twice", "annotation-id"), 1),
            **{"box": 1, "crowd-flag": 1, "row": 2},
        }
        assert found(report, "box-outside-image")[0] == 1
        severities = [each.severity for each in report.findings]
        assert severities == sorted(severities), "errors, notes and warnings stand together"
        assert severities[0] == "error"
        assert (len(report.census.pictures), len(report.census.labelled)) == (3, 3)

    @pytest.mark.parametrize(
        "content", [None, [], 7, "x", {}, {"images": 3}, {"images": [], "annotations": []}]
    )
    def test_what_is_no_coco_file(self, content: object) -> None:
        report = check_dataset(content, None)
        assert "file" in codes(report) and report.errors
        json.dumps(report.to_json())

    def test_every_rule_is_tested(self) -> None:
        tested = {code for code, _, _ in (*FLAWS, *WARNINGS, *NOTES)}
        elsewhere = {
            *("file", "skeleton", "image-unreadable", "refused", "leak-file", "leak-bytes", "leak-name"),
            *("limbs", "image-turn-unclear", "images-equal", "images-alike", "leak-pixels", "joints-masked"),
            *("joints-unused", "image-turned", "image-rotation-ignored", "images-unseen", "pixels-unseen"),
        }
        assert tested | elsewhere == set(RULES) and not tested & elsewhere

    def test_examples_are_the_worst_and_not_too_many(self) -> None:
        gathered = Gathered()
        for number in range(10 * EXAMPLES):
            gathered.add("box", Example(f"{number}", weight=number % 37))
        (finding,) = gathered.findings()
        assert (finding.count, len(finding.examples)) == (10 * EXAMPLES, EXAMPLES)
        assert finding.examples[0].weight == 36
        assert min(each.weight for each in finding.examples) >= 32

    def test_crowdpose_ap_needs_what_coco_ap_does_not(self, folder: Path) -> None:
        value = sound()
        del value["images"][0]["crowdIndex"]
        value["annotations"][0]["bbox"] = [12, 6, 28, 0]
        lax, strict = (check_dataset(value, folder, protocol=p) for p in ("coco", "crowdpose"))
        assert (lax.errors, strict.errors) == (0, 2)


class TestSkeletons:
    def test_joints_of_another_skeleton(self, folder: Path) -> None:
        hands = Skeleton("hands", ("left_hand", "right_hand", "tail"), ((0, 1),), (0.1,) * 3, ())
        report = check_dataset(sound(), folder, skeleton=hands)
        assert found(report, "joints-masked") == (1, ["tail"])
        assert found(report, "joints-unused") == (3, ["nose, left_foot, right_foot"])
        assert report.errors == 0
        none = Skeleton("none", ("tail",), (), (0.1,), ())
        report = check_dataset(sound(), folder, skeleton=none)
        assert found(report, "skeleton")[1] == [f"wanted are tail; the file has {', '.join(JOINTS)}"]

    def test_regions_that_only_another_skeleton_masks(self, folder: Path) -> None:
        """Who shows no joint of the skeleton is masked, so the segmentation is read."""
        value = sound()
        value["annotations"][0]["segmentation"] = [[1, 2]]
        value["annotations"][0]["keypoints"] = joints(nose=(0, 0, 0))
        nose = Skeleton("nose", ("nose",), (), (0.1,), ())
        assert "segmentation-unused" in codes(check_dataset(value, folder))
        assert "segmentation" in codes(check_dataset(value, folder, skeleton=nose))

    def test_published_limbs_of_another_skeleton(self) -> None:
        names = [*CROWDPOSE14.joints]
        category = {"id": 1, "name": "person", "keypoints": names, "skeleton": [[16, 14], [1, 2]]}
        value = {"images": [], "annotations": [], "categories": [category]}
        assert found(check_dataset(value, None), "limbs") == (1, ["limb [16, 14] of 14 joints (1-based)"])

    def test_a_category_by_name(self, folder: Path) -> None:
        value = sound()
        value["categories"].append({"id": 2, "name": "dog", "keypoints": ["nose", "tail"]})
        report = check_dataset(value, folder, category="person")
        assert report.errors == 0
        report = check_dataset(value, folder, category="persn")
        assert "no category 'persn' with keypoints; did you mean 'person'?" in found(report, "category")[1][0]


class TestImages:
    def test_damaged_files(self, folder: Path) -> None:
        data = (folder / "a.png").read_bytes()
        (folder / "a.png").write_bytes(data[: len(data) // 2])
        report = check_dataset(sound(), folder)
        count, texts = found(report, "image-unreadable")
        size = len(data) // 2
        assert count == 1
        assert texts == [f"image 'a.png' ({size} bytes) is truncated or not an image; fetch it again"]
        report = check_dataset(sound(), folder, decode=False)
        assert codes(report) == {"pixels-unseen"}

    def test_without_a_folder_it_is_told_that_images_were_not_looked_at(self) -> None:
        report = check_dataset(sound(), None)
        assert report.errors == 0
        assert found(report, "images-unseen") == (2, ["all of them"])

    def test_images_in_memory(self) -> None:
        drawn = SyntheticPeople(4, seed=3, size=(96, 96))
        images = {image_id: drawn.load_image(place) for place, image_id in enumerate(drawn.ids)}
        report = check_dataset(drawn.ground_truth(), images)
        assert report.errors == 0 and report.skeleton is COCO17
        images[drawn.ids[0]] = images[drawn.ids[0]][:50]
        del images[drawn.ids[1]]
        report = check_dataset(drawn.ground_truth(), images)
        assert {"image-other-size", "image-missing"} <= codes(report)

    def test_progress_and_workers(self, folder: Path) -> None:
        steps: list[tuple[int, int]] = []
        first = check_dataset(sound(), folder, workers=1, progress=lambda *step: steps.append(step))
        assert steps == [(1, 2), (2, 2)]
        second = check_dataset(sound(), folder, workers=3)
        assert first.to_json() == second.to_json()

    def test_images_that_are_there_twice(self, folder: Path) -> None:
        (folder / "b.png").write_bytes((folder / "a.png").read_bytes())
        report = check_dataset(sound(), folder)
        assert found(report, "images-equal") == (1, ["'b.png' and 'a.png'"])
        cv2.imwrite(str(folder / "b.png"), cv2.GaussianBlur(picture(0), (3, 3), 0))
        report = check_dataset(sound(), folder)
        assert found(report, "images-alike") == (1, ["'b.png' and 'a.png'"])
        (example,) = next(each for each in report.findings if each.code == "images-alike").examples
        assert (example.image_id, example.other_id) == (2, 1)

    def test_one_file_under_two_names(self, folder: Path) -> None:
        """A name that leads to the same file is the same file."""
        value = sound()
        value["images"][1]["file_name"] = "./a.png"
        assert "file-name-twice" in codes(check_dataset(value, folder))


class TestLeaks:
    def reports(self, folder: Path, other: Path, **options: Any) -> tuple[DatasetReport, DatasetReport]:
        return check_dataset(sound(), folder, **options), check_dataset(sound(), other, **options)

    def kinds(self, pair: tuple[DatasetReport, DatasetReport]) -> dict[str, int]:
        return {each.code: each.count for each in shared_images(*pair)}

    def test_files_bytes_and_pixels(self, folder: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        assert self.kinds(self.reports(folder, folder)) == {"leak-file": 2}
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        assert self.kinds(self.reports(folder, tmp_path / "link")) == {"leak-file": 2}
        (other / "a.png").write_bytes((folder / "b.png").read_bytes())
        cv2.imwrite(str(other / "b.png"), picture(2))
        (finding,) = shared_images(*self.reports(folder, other))
        assert (finding.code, finding.severity, finding.count) == ("leak-bytes", "error", 1)
        assert finding.examples[0].text == "'b.png' (image 2) and 'a.png' (image 1)"
        resized = cv2.resize(picture(1, 128, 96), (48, 64), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(other / "a.png"), resized)
        (finding,) = shared_images(*self.reports(folder, other))
        assert (finding.code, finding.severity) == ("leak-pixels", "warning")

    def test_different_images_are_none(self, folder: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.mkdir()
        for seed, name in enumerate(("a.png", "b.png"), start=7):
            cv2.imwrite(str(other / name), picture(seed))
        assert self.kinds(self.reports(folder, other)) == {}

    def test_names_where_nothing_was_read(self, folder: Path) -> None:
        pair = check_dataset(sound(), None), check_dataset(sound(), None)
        assert self.kinds(pair) == {"leak-name": 2}


class TestLikeness:
    @pytest.mark.parametrize("way", range(5))
    def test_nearly_all_copies_are_found(self, way: int) -> None:
        ways: list[Callable[[NDArray[np.uint8]], Any]] = [
            lambda image: cv2.resize(image, (200, 150)),
            lambda image: cv2.resize(image, (90, 70), interpolation=cv2.INTER_AREA),
            lambda image: cv2.imdecode(
                cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR
            ),
            lambda image: cv2.GaussianBlur(image, (5, 5), 0),
            lambda image: np.clip(image.astype(int) + 3, 0, 255).astype(np.uint8),
        ]
        number = 100
        images = [picture(seed, 96, 128) for seed in range(number)]
        prints = [image_print(n, Path(f"{n}"), b"a%d" % n, image) for n, image in enumerate(images)]
        copies = [
            image_print(n, Path(f"{n}"), b"b%d" % n, ways[way](image)) for n, image in enumerate(images)
        ]
        matches = likeness(prints, copies)
        assert all(match.first == match.second and match.kind == "pixels" for match in matches)
        assert len(matches) >= 0.95 * number

    def test_different_pictures_are_not(self) -> None:
        prints = [image_print(n, Path(f"{n}"), b"%d" % n, picture(n)) for n in range(300)]
        assert likeness(prints) == []

    def test_frames_of_a_film_are_told_once_each(self) -> None:
        """Thousands of frames may all look the same: work and memory must not grow with their pairs."""
        still = picture(0)
        frames = [still ^ np.uint8(number & 1) for number in range(3000)]
        prints = [image_print(n, Path(f"{n}"), b"%d" % n, frame) for n, frame in enumerate(frames)]
        assert [(match.first, match.second) for match in likeness(prints)] == [(n, 0) for n in range(1, 3000)]

    def test_blank_pictures_tell_nothing(self) -> None:
        blank = np.zeros((64, 64, 3), np.uint8)
        prints = [image_print(n, Path(f"{n}"), b"%d" % n, blank + np.uint8(n)) for n in range(3)]
        assert likeness(prints) == []

    def test_the_surest_match_is_told(self) -> None:
        image = picture(0)
        one = image_print(0, Path("/x/one"), b"one", image)
        again = image_print(1, Path("/x/again"), b"one", image)
        blurred = image_print(2, Path("/x/blurred"), b"blurred", np.asarray(cv2.blur(image, (3, 3))))
        assert [m.kind for m in likeness([one], [blurred, again, one])] == ["path"]
        assert [(m.second, m.kind) for m in likeness([one], [blurred, again])] == [(1, "bytes")]
        assert [(m.first, m.second, m.kind) for m in likeness([one, again, blurred])] == [
            (1, 0, "bytes"),
            (2, 0, "pixels"),
        ]
        assert likeness([], [one]) == likeness([one], []) == []

    def test_names_count_only_where_bytes_are_unknown(self) -> None:
        here, there = Print(0, Path("/x/a.png"), 10), Print(0, Path("/y/a.png"), 10)
        assert [match.kind for match in likeness([here], [there])] == ["name"]
        assert likeness([here], [Print(0, Path("/y/a.png"), 11)]) == []


class TestCensus:
    def test_numbers(self) -> None:
        def someone(number: int, image: int, v: list[int], area: float, crowd: bool = False) -> PersonFacts:
            keypoints = np.array([[1, 1, each] for each in v], dtype=np.float64)
            return PersonFacts(number, image, keypoints, (0, 0, 1, 1), area, crowd)

        pictures = [
            PictureFacts(1, "a", 100, 200, 0.1),
            PictureFacts(2, "b", 400, 300, 0.2),
            PictureFacts(3, "c", 100, 200, 1.3),
        ]
        people = [
            someone(1, 1, [2, 1], 100.0),
            someone(2, 1, [0, 2], 3600.0),
            someone(3, 2, [2, 2], 90000.0),
            someone(4, 2, [0, 0], 5.0),
            someone(5, 2, [2, 2], 5.0, crowd=True),
        ]
        census = Census(("head", "tail"), pictures, people)
        value = census.to_json([200])
        counted = ("images", "images_with_people", "people", "labelled_people", "crowds", "labelled_joints")
        assert [value[key] for key in counted] == [3, 2, 4, 3, 1, 5]
        assert value["joints"]["head"] == {"visible": 2, "occluded": 0, "unlabelled": 1}
        assert value["joints"]["tail"] == {"visible": 2, "occluded": 1, "unlabelled": 0}
        assert value["people_per_image"] == {"0": 1, "1": 1, "2": 1}
        assert value["scale"]["coco"] == {"small": 1, "medium": 1, "large": 1}
        assert {k: v for k, v in value["scale"]["histogram"].items() if v} == {
            "0-16": 1,
            "32-64": 1,
            "256-384": 1,
        }
        np.testing.assert_allclose(census.relative_scales(), [0.1, 0.6, 1.0])
        assert value["scale"]["pixels_at_resolution"]["200"]["median"] == 120
        assert value["crowd_index"] == {"easy": 1, "medium": 1, "hard": 1}
        assert value["image_sizes"]["most_common"][0] == {"width": 200, "height": 100, "images": 2}
        assert [scale_name(each) for each in (31.9, 32, 95.9, 96)] == ["small", "medium", "medium", "large"]

    def test_of_nothing(self) -> None:
        value = Census().to_json()
        assert value["labelled_people"] == 0 and value["scale"]["pixels"] == {}
        json.dumps(value)


class TestRealFiles:
    def test_crowdpose(self, shared: Path) -> None:
        """What is known to be odd about the published file, and that it is no error."""
        content = read_json(shared / "data/crowdpose/crowdpose_val.json")
        report = check_dataset(content, None, protocol="crowdpose")
        counts = {each.code: each.count for each in report.findings}
        assert report.errors == 0 and "num-keypoints" not in counts
        assert counts["limbs"] == 3
        assert counts["num-keypoints-zero"] == 888, "head and neck only"
        assert counts["crowd-index-range"] == 96
        truth = PoseDataset.from_dict(content, None).ground_truth()["annotations"]
        scored = sum(each["num_keypoints"] > 0 and not each["iscrowd"] for each in truth)
        assert scored == len(report.census.labelled) - 888
        official = sum(each["num_keypoints"] > 0 and not each["iscrowd"] for each in content["annotations"])
        assert scored == official

    def test_coco(self, shared: Path) -> None:
        root = shared / "data/coco"
        reports = [
            check_dataset(
                read_json(root / f"annotations/person_keypoints_{part}.json"), root / "images" / part
            )
            for part in ("train", "val")
        ]
        assert [report.errors for report in reports] == [0, 0]
        assert [len(report.census.labelled) for report in reports] == [531, 324]
        assert shared_images(*reports) == ()
