"""Boxes of people, from annotations and from a detector's file; crops of them."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search_spaces import InputError
from supernet.pose.boxes import (
    JOINT_MARGIN,
    Box,
    annotated_boxes,
    box_of_joints,
    crop_extent,
    crop_size,
    crop_transform,
    read_boxes,
    whole_image,
)
from supernet.pose.dataset import PoseDataset
from supernet.pose.skeleton import COCO17, CROWDPOSE14, Skeleton
from supernet.pose.synthetic import SyntheticPeople

GOOD: dict[str, Any] = {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30.5, 40], "score": 0.5}

boxes = st.builds(
    Box,
    st.floats(-50, 300),
    st.floats(-50, 300),
    st.floats(1, 400),
    st.floats(1, 400),
)
sizes = st.sampled_from([(128, 96), (192, 144), (256, 192), (384, 288)])


# -- annotations ---------------------------------------------------------------------------------------------


def content(**annotation: Any) -> dict[str, Any]:
    """Return a data set of one picture with one person, of whom two joints are labelled."""
    keypoints = [0.0] * 51
    keypoints[15:18], keypoints[48:51] = [20.0, 10.0, 2], [30.0, 60.0, 1]
    person = {"id": 5, "image_id": 7, "category_id": 1, "iscrowd": 0, "keypoints": keypoints}
    return {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 100, "width": 80}],
        "annotations": [{**person, **annotation}],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}],
    }


def box_of(**annotation: Any) -> Box:
    truth = PoseDataset.from_dict(content(**annotation), None).ground_truth()
    (box,) = annotated_boxes(truth)[7]
    return box


def test_a_person_has_the_annotated_box() -> None:
    assert box_of(bbox=[15, 5, 20, 70.5]) == Box(15.0, 5.0, 20.0, 70.5)


@pytest.mark.parametrize("annotation", [{}, {"bbox": [20, 10, 0, 50]}, {"bbox": [0, 0, 0, 0]}])
def test_without_a_sound_box_it_is_that_of_the_joints_with_a_margin(annotation: dict[str, Any]) -> None:
    reach = JOINT_MARGIN * 50
    box = box_of(**annotation)
    assert (box.x, box.y) == pytest.approx((20 - reach, 10 - reach))
    assert (box.width, box.height) == pytest.approx((10 + 2 * reach, 50 + 2 * reach))


def test_the_margin_is_about_all_joints_of_the_file() -> None:
    wanted = Skeleton("one", ("left_shoulder",), (), (0.1,), ())
    data = PoseDataset.from_dict(content(), None, wanted)
    (box,) = annotated_boxes(data.ground_truth())[7]
    assert box == box_of()


def test_a_single_joint_has_a_box_too() -> None:
    box = box_of_joints(np.array([[4.0, 5.0, 2.0], [0.0, 0.0, 0.0]]))
    assert box.centre == pytest.approx((4, 5))
    assert min(box.width, box.height) >= 1
    with pytest.raises(InputError, match="labelled joint"):
        box_of_joints(np.zeros((3, 3)))


def test_boxes_stand_in_the_order_of_the_joints_and_crowds_have_none() -> None:
    data = SyntheticPeople(12, 3, size=(96, 96), people=(1, 3))
    truth = data.ground_truth()
    truth["annotations"][1]["iscrowd"] = 1
    kept = annotated_boxes(truth)
    assert sum(map(len, kept.values())) == sum(len(data.joints(i)) for i in range(12)) - 1
    whole = annotated_boxes(data.ground_truth())
    for index, image_id in enumerate(data.ids):
        joints = data.joints(index)
        assert len(joints) == len(whole[image_id])
        for box, person in zip(whole[image_id], joints, strict=True):
            seen = person[person[:, 2] > 0]
            # Boxes are of what is seen; occluded joints may lie outside.
            low, high = np.array([box.x, box.y]), np.array([box.x + box.width, box.y + box.height])
            assert ((seen[:, :2] >= low - 1) & (seen[:, :2] <= high + 1)).all(axis=1).mean() > 0.6


# -- a detector's file ---------------------------------------------------------------------------------------


def write(folder: Path, rows: object) -> Path:
    path = folder / "found.json"
    path.write_text(json.dumps(rows))
    return path


def test_boxes_of_a_file(tmp_path: Path) -> None:
    rows = [
        GOOD,
        {**GOOD, "score": 0.9, "bbox": [1, 2, 3, 4]},
        {"image_id": 9, "bbox": [5, 6, 7, 8], "score": 0.7},
        {**GOOD, "score": 0.04},
        {**GOOD, "category_id": 3},
        {**GOOD, "score": 0.1},
    ]
    found = read_boxes(write(tmp_path, rows), [7, 8, 9], threshold=0.05, most=2)
    assert found.by_image[7] == (Box(1, 2, 3, 4, 0.9), Box(10, 20, 30.5, 40, 0.5))
    assert found.by_image[8] == ()
    assert found.by_image[9] == (Box(5, 6, 7, 8, 0.7),)
    assert (found.other_category, found.below_threshold, found.beyond_most) == (1, 1, 1)
    assert read_boxes(write(tmp_path, []), [7]).by_image == {7: ()}


FAULTS: list[tuple[object, str]] = [
    ({**GOOD, "image_id": 4}, "image_id 4, which the data set lacks"),
    ({**GOOD, "image_id": "7"}, "integer 'image_id', got '7'"),
    ({**GOOD, "image_id": True}, "integer 'image_id', got True"),
    ({"bbox": [1, 2, 3, 4], "score": 1}, "integer 'image_id', got None"),
    ({**GOOD, "category_id": 1.5}, "integer 'category_id', got 1.5"),
    ({"image_id": 7, "score": 1}, "'bbox' of x, y, width, height in pixels, got None"),
    ({**GOOD, "bbox": [1, 2, 3]}, "'bbox'"),
    ({**GOOD, "bbox": [1, 2, math.nan, 4]}, "'bbox'"),
    ({**GOOD, "bbox": [1, -math.inf, 3, 4]}, "'bbox'"),
    ({**GOOD, "bbox": [1, 2, "3", 4]}, "'bbox'"),
    ({**GOOD, "bbox": [1, 2, 3, True]}, "'bbox'"),
    ({**GOOD, "bbox": [1, 2, -3, 4]}, "positive width and height"),
    ({**GOOD, "score": math.nan}, "'score'"),
    ({**GOOD, "score": math.inf}, "'score'"),
    ({**GOOD, "score": -0.1}, "'score'"),
    ({**GOOD, "score": None}, "'score'"),
    ({**GOOD, "score": 10**400}, "'score'"),
    ({**GOOD, "bbox": [1, 2, 10**400, 4]}, "'bbox'"),
    ([1], "must be a mapping"),
]


def test_boxes_without_area_are_left_out_and_counted(tmp_path: Path) -> None:
    """Detectors that clip boxes at the picture's edge write them."""
    rows = [GOOD, {**GOOD, "bbox": [1, 2, 3, 0]}, {**GOOD, "bbox": [1, 2, 0.0, 5]}]
    found = read_boxes(write(tmp_path, rows), [7])
    assert (len(found.by_image[7]), found.empty) == (1, 2)


def test_a_part_of_the_images_takes_its_part_of_the_file(tmp_path: Path) -> None:
    """A detector looks at a whole set; searches and --limit take some of its images."""
    rows = [GOOD, {**GOOD, "image_id": 8}]
    found = read_boxes(write(tmp_path, rows), [7], subset=True)
    assert (set(found.by_image), len(found.by_image[7]), found.of_other_images) == ({7}, 1, 1)
    with pytest.raises(InputError, match="entry 1 is of image_id 8, which the data set lacks"):
        read_boxes(write(tmp_path, rows), [7])
    with pytest.raises(InputError, match="entry 1 is of image_id 8, which the data set lacks"):
        read_boxes(write(tmp_path, rows), [9], subset=True)


@pytest.mark.parametrize(("row", "message"), FAULTS)
def test_faults_name_file_entry_and_field(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path, [GOOD, row])
    with pytest.raises(InputError, match=f"found.json': entry 1 .*{message}") as error:
        read_boxes(path, [7, 9])
    assert "\n" not in str(error.value)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(GOOD)), anything, st.lists(st.floats() | st.integers(), min_size=4, max_size=4))
def test_any_row_is_read_or_refused(key: str, value: object, box: list[float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for row in ({**GOOD, key: value}, {**GOOD, "bbox": box}, value):
            try:
                found = read_boxes(write(Path(folder), [row]), [7])
            except InputError as error:
                assert "found.json" in str(error)
            else:
                for each in found.by_image[7]:
                    assert np.isfinite(crop_transform(each, (128, 96)).matrix).all()


def test_what_is_no_file_of_boxes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="list of COCO results"):
        read_boxes(write(tmp_path, {"annotations": []}), [7])
    with pytest.raises(InputError, match="no box of category_id 1"):
        read_boxes(write(tmp_path, [{**GOOD, "category_id": 2}]), [7])
    with pytest.raises(InputError, match="least score"):
        read_boxes(write(tmp_path, [GOOD]), [7], threshold=math.nan)
    with pytest.raises(InputError, match="at least one box"):
        read_boxes(write(tmp_path, [GOOD]), [7], most=0)
    with pytest.raises(InputError, match=r"missing\.json"):
        read_boxes(tmp_path / "missing.json", [7])


@pytest.mark.parametrize(
    "values", [(0, 0, 0, 5), (0, 0, 5, -1), (math.nan, 0, 5, 5), (0, 0, math.inf, 5), (0, 0, 5, 5, -1.0)]
)
def test_a_box_is_a_box(values: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="a person's box"):
        Box(*values)


# -- crops ---------------------------------------------------------------------------------------------------


@given(boxes, sizes, st.floats(1, 2))
def test_a_crop_shows_the_padded_box_and_keeps_its_aspect(
    box: Box, size: tuple[int, int], padding: float
) -> None:
    wide, high = crop_extent(box, size, padding)
    assert wide / high == pytest.approx(size[1] / size[0])
    assert min(wide / box.width, high / box.height) == pytest.approx(padding)
    transform = crop_transform(box, size, padding)
    x, y = box.centre
    edges = np.array([[x - wide / 2, y - high / 2], [x + wide / 2, y + high / 2]])
    assert transform(edges) == pytest.approx(np.array([[-0.5, -0.5], [size[1] - 0.5, size[0] - 0.5]]))
    linear = transform.matrix[:, :2]
    assert linear == pytest.approx(np.eye(2) * linear[0, 0])


@given(boxes, sizes, st.floats(-180, 180), st.floats(0.5, 2), st.floats(-0.3, 0.3), st.floats(-0.3, 0.3))
def test_turned_and_shifted_about_the_middle(
    box: Box, size: tuple[int, int], rotation: float, scale: float, right: float, down: float
) -> None:
    plain = crop_extent(box, size)
    transform = crop_transform(box, size, rotation=rotation, scale=scale, shift=(right, down))
    x, y = box.centre
    seen = (x + right * plain[0] * scale, y + down * plain[1] * scale)
    assert transform(np.array(seen)) == pytest.approx(np.array([(size[1] - 1) / 2, (size[0] - 1) / 2]))
    zoom = size[1] / (plain[0] * scale)
    turned = transform.matrix[:, :2] @ np.array([1.0, 0.0])
    angle = math.radians(rotation)
    assert turned == pytest.approx(zoom * np.array([math.cos(angle), math.sin(angle)]), abs=1e-9)


@given(boxes, sizes, st.floats(-60, 60), st.floats(-0.2, 0.2), st.integers(50, 400))
def test_the_crop_of_a_mirrored_picture_is_the_mirrored_crop(
    box: Box, size: tuple[int, int], rotation: float, shift: float, width: int
) -> None:
    mirrored = Box(width - 1 - box.x - box.width, box.y, box.width, box.height)
    points = np.random.default_rng(0).uniform(-20, 400, (10, 2))
    other = points * [-1, 1] + [width - 1, 0]
    a = crop_transform(box, size, rotation=rotation, shift=(shift, shift))(points)
    b = crop_transform(mirrored, size, rotation=-rotation, shift=(-shift, shift))(other)
    c = crop_transform(box, size, rotation=rotation, shift=(shift, shift), flip=True)(points)
    assert size[1] - 1 - a[:, 0] == pytest.approx(b[:, 0], abs=1e-6)
    assert size[1] - 1 - a[:, 0] == pytest.approx(c[:, 0], abs=1e-6)
    assert a[:, 1] == pytest.approx(b[:, 1], abs=1e-6)
    assert a[:, 1] == pytest.approx(c[:, 1], abs=1e-6)


def test_pixels_of_mirrored_crops_are_mirrored() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    size = (64, 48)
    box = Box(10, 5, 20, 30)
    other = Box(60 - 1 - 30, 5, 20, 30)

    def crop(image: np.ndarray[Any, Any], of: Box, flip: bool) -> np.ndarray[Any, Any]:
        return cv2.warpAffine(image, crop_transform(of, size, flip=flip).matrix, size[::-1])

    plain = crop(picture, box, False)
    for mirrored in (crop(picture, box, True), crop(picture[:, ::-1].copy(), other, False)):
        # OpenCV interpolates in 1/32 of a pixel, so mirror images differ by rounding, not by a shift.
        off = np.abs(mirrored[:, ::-1].astype(int) - plain)
        assert off.max() <= 12
        assert off.mean() < 3
        shifted = np.abs(mirrored[:, ::-1].astype(int)[:, 1:] - plain[:, :-1])
        assert shifted.mean() > 5 * off.mean()


def test_a_whole_picture_of_the_right_shape_is_only_resized() -> None:
    transform = crop_transform(whole_image(64, 48), (128, 96), padding=1.0)
    assert transform(np.array([[0.0, 0.0], [47.0, 63.0]])) == pytest.approx(
        np.array([[0.5, 0.5], [94.5, 126.5]])
    )
    assert crop_transform(whole_image(128, 96), (128, 96), 1.0).matrix == pytest.approx(np.eye(2, 3))


@settings(max_examples=30)
@given(st.integers(-5, 600))
def test_crops_have_the_shape_of_people(resolution: int) -> None:
    if resolution > 0 and resolution % 32 == 0:
        height, width = crop_size(resolution)
        assert (height, 4 * width) == (resolution, 3 * resolution)
        assert height % 8 == width % 8 == 0
    else:
        with pytest.raises(InputError, match="multiple of 32"):
            crop_size(resolution)


def test_senseless_crops_are_refused() -> None:
    box = Box(0, 0, 10, 10)
    for padding in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="padding"):
            crop_transform(box, (128, 96), padding)
    for scale in (0.0, math.inf, math.nan):
        with pytest.raises(InputError, match="scale"):
            crop_transform(box, (128, 96), scale=scale)


# -- real people ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coco", "lspet"])
def test_boxes_of_real_people_hold_them(shared: Path, name: str) -> None:
    """LSPET's boxes are its joints' with 15% of their longer side about them, cut at the picture's edge."""
    path = shared / "data" / name / "annotations" / "person_keypoints_val.json"
    if not path.is_file():
        pytest.skip(f"the optional provided {name} annotations are absent")
    data = PoseDataset(path, None)
    assert data.skeleton == (COCO17 if name == "coco" else CROWDPOSE14)
    held, padded = [], []
    for index, found in enumerate(annotated_boxes(data.ground_truth()).values()):
        for box, joints in zip(found, data.joints(index), strict=True):
            places = joints[joints[:, 2] > 0, :2]
            inside = (places >= [box.x, box.y]) & (places <= [box.x + box.width, box.y + box.height])
            held.append(inside.all(axis=1).mean())
            crop = crop_transform(box, (256, 192))(places)
            padded.append(((crop >= -0.5) & (crop <= [191.5, 255.5])).all(axis=1).mean())
    assert len(held) == (324 if name == "coco" else 500)
    assert np.mean(held) > 0.9
    assert np.mean(padded) > 0.98
