"""The records of a COCO-format keypoint file, field by field: sound values, or what is wrong with them.

:class:`~supernet.pose.dataset.PoseDataset` stops at the first flaw, :mod:`supernet.pose.check` gathers all of
them; both ask the functions here, so that they agree about what a data set may hold.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from search_spaces.errors import InputError, did_you_mean, shown

__all__ = [
    "BOX_AREA",
    "FARTHEST",
    "FieldError",
    "check_below",
    "choose_category",
    "person_area",
    "person_box",
    "read_crowd_flag",
    "read_file_name",
    "read_id",
    "read_image_size",
    "read_keypoints",
    "read_reference",
    "read_table",
    "region",
    "runs_or_polygons",
]

FARTHEST: Final = 1e6
"""Pixels from the origin beyond which a joint or a box is an error of the file."""
BOX_AREA: Final = 0.53
"""Area of a person as share of its box where a file gives no area (CrowdPose's evaluation)."""
_MOST_PIXELS: Final = 2**30
"""Largest picture that OpenCV decodes."""
_LONGEST_OUTLINE: Final = 1e7
"""Pixels; pycocotools keeps every point of a polygon's outline in memory."""

Record = Mapping[str, Any]


class FieldError(InputError):
    """What is wrong with one field of a record.

    Attributes
    ----------
    code
        Kind of flaw; see :data:`supernet.pose.findings.RULES`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object, most: float = FARTHEST) -> bool:
    """Whether ``value`` is a number of at most ``most`` either way; NaN is not, nor is a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -most <= value <= most


# -- tables and categories -----------------------------------------------------------------------------------


def read_table(content: object, key: str, where: str) -> list[object]:
    """Return the rows of ``images``, ``annotations`` or ``categories``, whatever they are."""
    if not isinstance(content, Mapping):
        raise FieldError("file", f"{where} must be a COCO-format mapping, not {type(content).__name__}")
    rows = content.get(key)
    if rows is None:
        raise FieldError(
            "file", f"{where} lacks '{key}'; COCO keypoint files have images, annotations and categories"
        )
    if not isinstance(rows, list):
        raise FieldError("file", f"{where}: '{key}' must be a list of mappings, not {type(rows).__name__}")
    return rows


def choose_category(categories: Sequence[Record], name: str | None, where: str) -> Record:
    """Return the one category that has keypoints, or the one of that name."""
    posed = [each for each in categories if each.get("keypoints")]
    names = [str(each.get("name", "")) for each in posed]
    if not posed:
        raise FieldError(
            "category", f"{where}: no category has 'keypoints'; a keypoint file is needed, not one of boxes"
        )
    if name is not None and name not in names:
        raise FieldError(
            "category", f"{where} has no category '{name}' with keypoints{did_you_mean(name, names)}"
        )
    matching = [each for each, other in zip(posed, names, strict=True) if name in (None, other)]
    if len(matching) > 1:
        named = ", ".join(names) if name is None else f"of the name '{name}'"
        raise FieldError(
            "category", f"{where} has several categories with keypoints ({named}); name the one to use"
        )
    chosen = matching[0]
    number = chosen.get("id")
    if not _is_int(number):
        raise FieldError(
            "category",
            f"{where}: category '{chosen.get('name')}' needs an integer 'id', got {shown(number)}",
        )
    if sum(_is_int(each.get("id")) and each.get("id") == number for each in categories) > 1:
        raise FieldError("category", f"{where}: category id {number} is there more than once")
    return chosen


# -- images --------------------------------------------------------------------------------------------------


def read_id(record: Record, what: str, where: str) -> int:
    """Return the 'id' of a record; ``what`` is "an image" or "an annotation"."""
    number = record.get("id")
    if not isinstance(number, int) or isinstance(number, bool):
        code = "image-id" if "image" in what else "annotation-id"
        raise FieldError(code, f"{where}: {what} needs an integer 'id', got {shown(number)}")
    return number


def read_file_name(record: Record, where: str) -> str:
    """Return the 'file_name' of an image's record."""
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        raise FieldError("file-name", f"{where}: image {record['id']} needs a 'file_name', got {shown(name)}")
    return name


def check_below(folder: Path, name: str, where: str) -> None:
    """Refuse a file name that leads out of the folder of the images; links that lie in it may lead anywhere.

    Raises
    ------
    FieldError
        Beginning with ``where``.
    """
    if name.startswith("/") or ".." in name.split("/"):
        top = os.path.abspath(folder)  # noqa: PTH100 - links are not to be resolved
        if os.path.commonpath([top, os.path.abspath(Path(top, name))]) != top:  # noqa: PTH100
            raise FieldError(
                "file-name",
                f"{where} has the 'file_name' {shown(name)}, which leads out of the image folder '{folder}':"
                " name a folder that holds all of them",
            )


def read_image_size(record: Record, where: str) -> tuple[int, int]:
    """Return (height, width) of an image's record, pixels."""
    for key in ("height", "width"):
        value = record.get(key)
        if not _is_int(value) or record[key] < 1:
            raise FieldError(
                "image-size",
                f"{where}: image {record['id']} needs a positive integer '{key}', got {shown(value)}",
            )
    height, width = record["height"], record["width"]
    if height * width > _MOST_PIXELS:
        raise FieldError(
            "image-size",
            f"{where}: image {record['id']} needs a 'height' and 'width' of at most {_MOST_PIXELS} pixels in "
            f"all, got {shown(height)} and {shown(width)}",
        )
    return height, width


# -- annotations ---------------------------------------------------------------------------------------------


def read_reference(
    annotation: Record, key: str, known: Mapping[Any, object] | set[Any], what: str, where: str
) -> int:
    """Return 'category_id' or 'image_id' of an annotation, which ``known`` must hold."""
    number = annotation.get(key)
    label = f"{where}: annotation {shown(annotation.get('id'))}"
    if not isinstance(number, int) or isinstance(number, bool):
        raise FieldError(f"annotation-{what}", f"{label} needs an integer '{key}', got {shown(number)}")
    if number not in known:
        raise FieldError(f"annotation-{what}", f"{label} is of unknown {key} {shown(number)}")
    return number


def read_keypoints(annotation: Record, joints: int, where: str) -> NDArray[np.float64]:
    """Return the annotation's keypoints, (J, 3); all 0 where it has none, as are unlabelled joints."""
    label = f"{where}: annotation {annotation['id']}"
    values = annotation.get("keypoints")
    if values is None or (isinstance(values, list) and not values):
        return np.zeros((joints, 3))
    try:
        array = np.asarray(values) if isinstance(values, list | tuple | np.ndarray) else None
    except (TypeError, ValueError, OverflowError):
        array = None
    if array is None or array.dtype.kind not in "iuf" or bool in set(map(type, values)):
        raise FieldError("keypoints-number", f"{label} has 'keypoints' that are not numbers")
    if array.shape != (3 * joints,):
        got = f"{array.size}" if array.ndim == 1 else "lists within the list"
        raise FieldError(
            "keypoints-count",
            f"{label} needs {3 * joints} keypoint values (x, y, v of {joints} joints), got {got}",
        )
    array = array.astype(np.float64).reshape(joints, 3)
    seen = array[:, 2]
    if not (np.abs(array).max() <= FARTHEST and ((seen == 0) | (seen == 1) | (seen == 2)).all()):
        _refuse_keypoints(array, label)
    return np.where(array[:, 2:] > 0, array, 0.0)


def _refuse_keypoints(array: NDArray[np.float64], label: str) -> NoReturn:
    """Say what is wrong with keypoints (J, 3) that are not all finite, near and of known visibility."""
    if not np.isfinite(array).all():
        joint = _first(~np.isfinite(array).all(axis=1))
        raise FieldError(
            "keypoints-number", f"{label} has a keypoint that is not a finite number: joint {joint}"
        )
    far = (np.abs(array[:, :2]) > FARTHEST).any(axis=1)
    if far.any():
        joint = _first(far)
        raise FieldError(
            "keypoints-far",
            f"{label} has joint {joint} at {array[joint, :2].tolist()}, far outside any image",
        )
    joint = _first(~np.isin(array[:, 2], (0, 1, 2)))
    raise FieldError(
        "visibility",
        f"{label} has visibility {array[joint, 2]:g} at joint {joint}; 0, 1 or 2 is needed",
    )


def _first(flags: Any) -> int:
    return int(np.flatnonzero(flags)[0])


def person_box(annotation: Record, keypoints: NDArray[np.float64], where: str) -> list[float]:
    """Return x, y, width, height; where the annotation has no 'bbox', that of its labelled joints."""
    label = f"{where}: annotation {annotation['id']}"
    box = annotation.get("bbox")
    if box is None:
        known = keypoints[keypoints[:, 2] > 0, :2]
        if not len(known) and not annotation.get("segmentation"):
            raise FieldError("nothing", f"{label} has neither keypoints, nor 'bbox', nor 'segmentation'")
        low, high = (known.min(axis=0), known.max(axis=0)) if len(known) else (np.zeros(2), np.zeros(2))
        return [float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or min(box[2:]) < 0:
        raise FieldError("box", f"{label} needs a 'bbox' of x, y, width, height, got {shown(box)}")
    return box


def person_area(annotation: Record, box: Sequence[float], where: str) -> float:
    """Return the 'area' in square pixels; where the annotation has none, :data:`BOX_AREA` of the box."""
    area = annotation.get("area")
    if area is None:
        return box[2] * box[3] * BOX_AREA
    if not _is_number(area, FARTHEST**2) or area < 0:
        raise FieldError(
            "area",
            f"{where}: annotation {annotation['id']} needs an 'area' of at least 0, got {shown(area)}",
        )
    stated: float = area
    return stated


def read_crowd_flag(annotation: Record, where: str) -> int:
    """Return 'iscrowd', 0 where there is none."""
    value = annotation.get("iscrowd")
    if value is not None and not (isinstance(value, int) and value in (0, 1)):
        raise FieldError(
            "crowd-flag",
            f"{where}: annotation {annotation['id']} needs an 'iscrowd' of 0 or 1, got {shown(value)}",
        )
    return int(bool(value))


# -- regions -------------------------------------------------------------------------------------------------


def runs_or_polygons(
    annotation: Record, height: int, width: int, where: str
) -> NDArray[np.int64] | list[NDArray[np.float64]] | None:
    """Return the segmentation: run lengths, column by column and background first, or polygons (N, 2).

    None where the annotation has none. What is returned is safe to draw on an image of that size.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    try:
        if isinstance(segmentation, Mapping):
            return _runs(segmentation, height, width)
        if not isinstance(segmentation, list):
            raise TypeError(f"it is {shown(segmentation)}")
        return [_polygon(each, height, width) for each in segmentation]
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        told = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise FieldError(
            "segmentation",
            f"{where}: annotation {annotation['id']} has a 'segmentation' that is neither polygons nor a run "
            f"length code of the image: {told}",
        ) from None


def _runs(code: Record, height: int, width: int) -> NDArray[np.int64]:
    if not isinstance(code["size"], list | tuple) or list(code["size"]) != [height, width]:
        raise ValueError(f"its size is {shown(code['size'])}, the image's {[height, width]}")
    counts = code["counts"]
    runs = _decompressed(counts) if isinstance(counts, str | bytes) else counts
    if not isinstance(runs, list) or not all(_is_int(run) and run >= 0 for run in runs):
        raise ValueError("'counts' must be runs of at least 0 pixels")
    if sum(runs) != height * width:
        raise ValueError(f"its runs make {shown(sum(runs))} pixels, the image has {height * width}")
    return np.array(runs, dtype=np.int64)


def _decompressed(text: str | bytes) -> list[int]:
    """Return the runs in COCO's compressed code.

    Each is written in groups of five bits, lowest first, as characters from '0' on; bit 5 says that another
    group follows, and from the fourth run on it is the difference from the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text.encode("ascii") if isinstance(text, str) else text:
        group = character - 48
        if not 0 <= group < 64 or shift > 60:
            raise ValueError("'counts' is not COCO's run length code")
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            if group & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("'counts' breaks off")
    return runs


def _polygon(values: object, height: int, width: int) -> NDArray[np.float64]:
    if not isinstance(values, list | tuple) or not all(map(_is_number, values)):
        raise TypeError("a polygon is a list of numbers x, y")
    if len(values) < 6 or len(values) % 2:
        raise ValueError("a polygon is a list of at least three x, y")
    points = np.array(values, dtype=np.float64).reshape(-1, 2)
    size = np.array([width, height])
    if (points < -size).any() or (points > 2 * size).any():
        raise ValueError("a polygon reaches far beyond the image")
    if np.abs(np.diff(points, axis=0)).max(axis=1).sum() > _LONGEST_OUTLINE:
        raise ValueError("a polygon's outline is endless")
    return points


def region(
    annotation: Record, box: Sequence[float], height: int, width: int, where: str
) -> NDArray[np.bool_]:
    """Return the pixels of an annotation, bool (H, W): its segmentation, or its box where it has none."""
    outline = runs_or_polygons(annotation, height, width, where)
    if outline is None:
        x, y, box_width, box_height = box
        inside = np.zeros((height, width), dtype=np.bool_)
        top, left = max(0, math.floor(y)), max(0, math.floor(x))
        # A box that ends left of or above the image must not count from its far side.
        bottom, right = max(0, math.ceil(y + box_height) + 1), max(0, math.ceil(x + box_width) + 1)
        inside[top:bottom, left:right] = True
        return inside
    if isinstance(outline, list):
        codes = coco_mask.frPyObjects([points.ravel().tolist() for points in outline], height, width)
        return np.asarray(coco_mask.decode(coco_mask.merge(codes)), dtype=np.bool_)
    values = np.arange(len(outline)) % 2 == 1
    return np.repeat(values, outline).reshape(width, height).T
