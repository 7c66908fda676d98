"""Mutated annotation files and damaged images, all the way: one clear line, or a correct result.

Never another exception, never a person or an image that is silently left out, and the check of a data set
says the same as the reader.
"""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from search_spaces.errors import InputError
from search_spaces.files import read_json
from supernet.pose.check import DatasetReport, check_dataset
from supernet.pose.dataset import PoseDataset, decode_image, read_image
from supernet.pose.loader import collate
from supernet.pose.metrics import keypoint_ap
from supernet.pose.transforms import Augmentation

JOINTS = ["nose", "left_hand", "right_hand", "left_foot", "right_foot"]
SIZE = {"a.png": (40, 56), "b.jpg": (64, 48)}


def content() -> dict[str, Any]:
    """Return a small sound file: people full, half labelled, without joints, a crowd, another category."""
    full = [10, 8, 2, 4, 20, 2, 18, 21, 1, 6, 34, 2, 14, 35, 2]
    half = [30, 12, 2, 0, 0, 0, 40, 30.5, 1, 0, 0, 0, 0, 0, 0]
    value = {
        "info": {"description": "fuzzed"},
        "images": [
            {"id": 7, "file_name": "a.png", "height": 40, "width": 56, "crowdIndex": 0.3},
            {"id": 3, "file_name": "b.jpg", "height": 64, "width": 48, "crowdIndex": 0.9},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 2, "bbox": [2, 4, 20, 34], "area": 400.5, "iscrowd": 0,
             "keypoints": full, "num_keypoints": 5, "segmentation": [[2, 4, 22, 4, 22, 38, 2, 38]]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [26, 8, 18, 26], "area": 300, "iscrowd": 0,
             "keypoints": half, "num_keypoints": 2},
            {"id": 5, "image_id": 3, "category_id": 2, "bbox": [1, 2, 30, 40], "area": 900, "iscrowd": 1,
             "keypoints": [0] * 15, "num_keypoints": 0,
             "segmentation": {"size": [64, 48], "counts": [100, 60, 2912]}},
            {"id": 6, "image_id": 3, "category_id": 2, "bbox": [20, 30, 10, 12], "num_keypoints": 0,
             "segmentation": [[20, 30, 30, 30, 30, 42]]},
            {"id": 8, "image_id": 3, "category_id": 2, "bbox": [4, 6, 30, 50], "area": 800,
             "keypoints": full, "num_keypoints": 5},
            {"id": 9, "image_id": 3, "category_id": 4, "bbox": [0, 0, 5, 5]},
        ],
        "categories": [
            {"id": 2, "name": "person", "supercategory": "person", "keypoints": JOINTS,
             "skeleton": [[1, 2], [1, 3], [1, 4], [1, 5]]},
            {"id": 4, "name": "kite"},
        ],
    }  # fmt: skip
    return copy.deepcopy(value)  # nothing shared that a mutation could change twice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fuzzed")
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZE.items():
        pixels = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (width, height))
        assert cv2.imwrite(str(place / name), pixels)
    return place


# -- what is done with a data set ----------------------------------------------------------------------------


def perfect(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Return detections that are the annotated people."""
    return [
        {
            "image_id": each["image_id"],
            "category_id": each["category_id"],
            "keypoints": each["keypoints"],
            "score": 0.9,
        }
        for each in truth["annotations"]
        if each["num_keypoints"] and not each["iscrowd"]
    ]


def walk_through(data: PoseDataset, protocol: Any = "coco") -> dict[str, float]:
    """Load, augment and batch every image, and score perfect detections."""
    for index in range(len(data)):
        sample = data.load(index)
        assert sample.image.dtype == np.uint8 and sample.image.shape == (*sample.mask.shape, 3)
        assert np.isfinite(sample.joints).all() and set(np.unique(sample.joints[..., 2])) <= {0, 1, 2}
        assert (sample.joints[..., 2] > 0).any(axis=1).all()
        batch = collate(data, [index], 32, Augmentation(), seed=1, epoch=index)
        for tensor in (batch.images, *batch.heatmaps, *batch.masks):
            assert bool(tensor.isfinite().all())
    truth = data.ground_truth()
    return keypoint_ap(truth, perfect(truth), data.skeleton.sigmas, protocol=protocol)


def one_clear_line(error: InputError) -> None:
    text = str(error)
    assert "\n" not in text and 10 < len(text) < 700, text


def errors_of(report: DatasetReport) -> set[str]:
    return {each.code for each in report.findings if each.severity == "error"}


def agree(value: Any, folder: Path, path: Path) -> PoseDataset | None:
    """Hold reader and check against each other; return the data set where both take the file."""
    path.write_text(json.dumps(value), encoding="utf-8")
    report = check_dataset(read_json(path), folder, where=f"annotation file '{path}'", workers=1)
    json.dumps(report.to_json(), allow_nan=False)
    assert "refused" not in errors_of(report), "the check knows everything that the reader refuses"
    try:
        data = PoseDataset(path, folder)
        for index in range(len(data)):
            data.load(index)
    except InputError as error:
        one_clear_line(error)
        assert str(folder) in str(error), "the file is named"
        assert report.errors, str(error)
        return None
    return data


# -- mutated files -------------------------------------------------------------------------------------------

NASTY: list[Any] = [
    None, True, False, 0, 1, 2, -1, 3, 7, 0.5, 1e308, -1e308, 5e-324, 10**30, -(10**310), math.nan, math.inf,
    -math.inf, "", "x", "7", "\ud800", "a\0b", "é" * 400, "../a.png", [], {}, [[]], [None], [1], [1, 2, 3, 4],
    [math.nan] * 4, [0.0] * 15, [2] * 15, [True] * 15, ["1"] * 15, [[1, 2, 2]] * 5, [10**310] * 4,
    [[1, 2, 3, 4, 5, 6]], [[1e9] * 8], {"size": [64, 48], "counts": "ab"},
    {"size": [64, 48], "counts": [3072]}, {"size": [64, 48], "counts": [-5, 3077]},
    {"id": 1}, {"a": {"b": [{}]}},
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON tree."""
    if path:
        yield path
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from places(child, (*path, key))


PLACES = list(places(content()))


def holder(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        value = value[key]
    return value


def mutate(value: Any, path: tuple[Any, ...], how: str, nasty: Any) -> None:
    """Change one place; where an earlier change took it away, do nothing."""
    try:
        parent = holder(value, path)
        match how:
            case "replace":
                parent[path[-1]] = copy.deepcopy(nasty)
            case "drop":
                del parent[path[-1]]
            case "wrap":
                parent[path[-1]] = [parent[path[-1]]]
            case "double" if isinstance(parent, list):
                parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
            case "scale":
                parent[path[-1]] *= -1000
    except (KeyError, IndexError, TypeError, OverflowError):
        pass


MUTATIONS = st.tuples(
    st.sampled_from(PLACES),
    st.sampled_from(["replace", "replace", "drop", "wrap", "double", "scale"]),
    st.sampled_from(NASTY),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(MUTATIONS, min_size=1, max_size=3))
def test_mutated_files_end_in_one_line_or_a_correct_result(
    folder: Path, mutations: list[tuple[tuple[Any, ...], str, Any]]
) -> None:
    value = content()
    for path, how, nasty in mutations:
        mutate(value, path, how, nasty)
    data = agree(value, folder, folder / "annotations.json")
    if data is None:
        return
    # Nobody and nothing is left out: what the file lists is what is handed out.
    truth = data.ground_truth()
    category = truth["categories"][0]["id"]
    kept = {each["id"]: each for each in value["annotations"] if each["category_id"] == category}
    assert sorted(each["id"] for each in truth["annotations"]) == sorted(kept)
    assert sorted(each["id"] for each in truth["images"]) == sorted(each["id"] for each in value["images"])
    sound = {each["id"]: each for each in content()["annotations"]}
    for person in truth["annotations"]:
        if kept[person["id"]] == sound.get(person["id"]) and len(data.skeleton) == len(JOINTS):
            wanted = sound[person["id"]].get("keypoints", [0] * 15)
            np.testing.assert_array_equal(person["keypoints"], wanted)
    try:
        stats = walk_through(data)
    except InputError as error:
        one_clear_line(error)
        assert "no person with a labelled joint" in str(error)
        return
    report = check_dataset(value, folder, where="again", workers=1)
    if not report.errors and not {f.code for f in report.findings} & {"people-twice"}:
        assert stats["AP"] == pytest.approx(1.0), "perfect detections"


@pytest.mark.parametrize("path", [p for p in PLACES if len(p) <= 4], ids=lambda p: ".".join(map(str, p)))
def test_every_field_removed(folder: Path, path: tuple[Any, ...]) -> None:
    value = content()
    mutate(value, path, "drop", None)
    data = agree(value, folder, folder / "annotations.json")
    if data is not None:
        walk_through(data)


def test_the_sound_file_is_sound(folder: Path) -> None:
    """Else the tests above would test nothing."""
    data = agree(content(), folder, folder / "annotations.json")
    assert data is not None and data.ids == (3, 7)
    for protocol in ("coco", "crowdpose"):
        assert walk_through(data, protocol)["AP"] == pytest.approx(1.0)
    assert not data.load(0).mask.all()


# -- images --------------------------------------------------------------------------------------------------


def photo(height: int, width: int) -> NDArray[np.uint8]:
    """Return a smooth colour picture, RGB, unlike its mirror images and turns."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = [255 * x / width, 255 * y / height, 127 + 120 * np.sin(x / 9) * np.cos(y / 7)]
    return np.stack(planes, axis=-1).round().astype(np.uint8)


PHOTO = photo(64, 48)
GRAY = PHOTO[..., 1]
SEEN_GRAY = np.repeat(GRAY[..., None], 3, axis=2)


def png(pixels: NDArray[Any], mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, "PNG")
    return stream.getvalue()


def jpeg(pixels: NDArray[np.uint8], mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", quality=97, subsampling=0, **options)
    return stream.getvalue()


def stored(pixels: NDArray[np.uint8], kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return stream.getvalue()


def deep(pixels: NDArray[np.uint8]) -> bytes:
    """Return a 16 bit PNG."""
    wide = pixels.astype(np.uint16) * 257
    done, data = cv2.imencode(".png", wide[..., ::-1] if wide.ndim == 3 else wide)
    assert done
    return data.tobytes()


def translucent() -> bytes:
    alpha = np.full((64, 48, 1), 128, np.uint8)
    return png(np.concatenate([PHOTO, alpha], axis=2))


KINDS: dict[str, tuple[bytes, NDArray[np.uint8], float]] = {
    "png": (png(PHOTO), PHOTO, 0),
    "png-gray": (png(GRAY), SEEN_GRAY, 0),
    "png-gray-alpha": (png(GRAY, "LA"), SEEN_GRAY, 0),
    "png-transparent": (translucent(), PHOTO, 0),
    "png-16-bit": (deep(PHOTO), PHOTO, 1),
    "png-16-bit-gray": (deep(GRAY), SEEN_GRAY, 1),
    "png-palette": (png(PHOTO // 64 * 64, "P"), PHOTO // 64 * 64, 60),
    "jpeg": (jpeg(PHOTO), PHOTO, 6),
    "jpeg-gray": (jpeg(GRAY, "L"), SEEN_GRAY, 6),
    "jpeg-progressive": (jpeg(PHOTO, progressive=True), PHOTO, 6),
    "jpeg-cmyk": (jpeg(PHOTO, "CMYK"), PHOTO, 40),
    "bmp": (stored(PHOTO, "BMP"), PHOTO, 0),
    "webp": (stored(PHOTO, "WEBP"), PHOTO, 0),
    "tiff": (stored(PHOTO, "TIFF"), PHOTO, 0),
    "jpeg-with-more-behind": (jpeg(PHOTO) + b"\0" * 100, PHOTO, 6),
}


def one_image(folder: Path, data: bytes, height: int = 64, width: int = 48) -> dict[str, Any]:
    """Write the image, and return an annotation file of it alone."""
    (folder / "one.jpg").write_bytes(data)
    value = content()
    value["images"] = [{"id": 3, "file_name": "one.jpg", "height": height, "width": width}]
    value["annotations"] = [each for each in value["annotations"] if each["image_id"] == 3]
    if (height, width) != (64, 48):
        value["annotations"] = [value["annotations"][2]]
    return value


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_every_kind_are_seen_as_they_are(tmp_path: Path, kind: str) -> None:
    data, expected, tolerance = KINDS[kind]
    found = agree(one_image(tmp_path, data), tmp_path, tmp_path / "fuzzed.json")
    assert found is not None
    difference = np.abs(found.load_image(0).astype(int) - expected)
    assert difference.max() <= tolerance
    assert walk_through(found)["AP"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"<html>404</html>",
        "é".encode() * 99,
        png(PHOTO)[:33],
        b"BM" * 40,
    ],
    ids=["empty", "nul", "jpeg-head", "gif-head", "html", "text", "png-head", "bmp-head"],
)
def test_what_is_no_image_is_one_line(tmp_path: Path, data: bytes) -> None:
    value = one_image(tmp_path, data)
    assert agree(value, tmp_path, tmp_path / "fuzzed.json") is None
    report = check_dataset(value, tmp_path)
    assert errors_of(report) == {"image-unreadable"}
    with pytest.raises(InputError, match=rf"one.jpg' \({len(data)} bytes\) is truncated or not an image"):
        read_image(tmp_path / "one.jpg")


@pytest.mark.parametrize("kind", ["jpeg", "png", "jpeg-progressive", "png-16-bit"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_truncated_images_are_refused_or_whole(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """A cut that leaves every pixel (the end mark alone is missing) may pass; gray bands may not."""
    whole = KINDS[kind][0]
    kept = data.draw(st.one_of(st.integers(0, len(whole) - 1), st.integers(len(whole) - 40, len(whole) - 1)))
    found = agree(one_image(tmp_path, whole[:kept]), tmp_path, tmp_path / "fuzzed.json")
    if found is not None:
        np.testing.assert_array_equal(found.load_image(0), decode_image(whole, "whole"))


@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp", "bmp"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_bytes_never_crash(tmp_path: Path, kind: str, changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(KINDS[kind][0])
    for place, byte in changes:
        damaged[place % len(damaged)] = byte
    found = agree(one_image(tmp_path, bytes(damaged)), tmp_path, tmp_path / "fuzzed.json")
    if found is not None:
        assert walk_through(found)["AP"] == pytest.approx(1.0)


def exif(orientation: int) -> bytes:
    mark = Image.Exif()
    mark[0x0112] = orientation
    return mark.tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_noted_orientations(tmp_path: Path, orientation: int) -> None:
    """Annotations are of the pixels as stored; where their size says otherwise, of the turned picture."""
    data = jpeg(PHOTO, exif=exif(orientation))
    value = one_image(tmp_path, data)
    found = agree(value, tmp_path, tmp_path / "fuzzed.json")
    assert found is not None
    assert np.abs(found.load_image(0).astype(int) - PHOTO).max() <= 6
    codes = {each.code for each in check_dataset(value, tmp_path).findings}
    turns = orientation >= 5
    assert ("image-rotation-ignored" in codes) == turns
    assert ("image-turn-unclear" in codes) == (2 <= orientation <= 4)
    value = one_image(tmp_path, data, height=48, width=64)
    found = agree(value, tmp_path, tmp_path / "fuzzed.json")
    report = check_dataset(value, tmp_path)
    if not turns:
        assert found is None and errors_of(report) == {"image-other-size"}
        return
    assert found is not None
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.abs(found.load_image(0).astype(int) - turned).max() <= 3
    assert "image-turned" in {each.code for each in report.findings}


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (2, 3)])
def test_tiny_images(tmp_path: Path, height: int, width: int) -> None:
    value = one_image(tmp_path, png(photo(height, width)), height, width)
    found = agree(value, tmp_path, tmp_path / "fuzzed.json")
    assert found is not None
    walk_through(found)
