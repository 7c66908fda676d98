"""Where people are: boxes from annotations or from a detector's file, and the crop that shows a box.

Top-down networks see one person at a time. A box is padded to the shape of the network's input, and the
picture is warped so that it fills the input (:func:`crop_transform`).

Pixel centres sit at integer coordinates, so a picture of W x H pixels covers x from -0.5 to W - 0.5. A crop
carries the edges of the padded box to the edges of the input: cropping a mirrored picture is mirroring the
crop, exactly, and no half pixel is lost between picture, input and heatmap.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError, shown
from search_spaces.files import read_json
from supernet.pose.annotations import FARTHEST
from supernet.pose.transforms import AffineTransform

__all__ = [
    "ASPECT",
    "JOINT_MARGIN",
    "PADDING",
    "Box",
    "FoundBoxes",
    "annotated_boxes",
    "box_of_joints",
    "crop_extent",
    "crop_size",
    "crop_transform",
    "read_boxes",
    "unlabelled_boxes",
    "whole_image",
]

ASPECT: Final = (4, 3)
"""Height and width of the network's input, as a ratio."""
PADDING: Final = 1.25
"""How much of a picture a crop shows around a box (SimpleBaseline, arXiv 1804.06208): 1 is the box itself."""
JOINT_MARGIN: Final = 0.1
"""How far a body reaches beyond its joints, as a share of the longer side of their box. In COCO's boxes it is
0.07 on either side, 0.14 above and 0.09 below (medians of 531 people with at least ten labelled joints)."""
_THINNEST: Final = 1.0
"""Sides of boxes below this, pixels, are no people."""
_SMALLEST: Final = 1e-3
"""Least sides of boxes, pixels: below it arithmetic breaks down."""
_GRID: Final = 32
"""Input heights are multiples of it, so that maps at 1/4 and 1/8 have whole cells."""


@dataclass(frozen=True)
class Box:
    """A person's box.

    Attributes
    ----------
    x, y
        Its left and upper edge, pixels.
    width, height
        Its size, pixels.
    score
        How sure it is that it shows a person, at least 0; 1 for annotated people.

    Raises
    ------
    InputError
        If a number is not finite or too large, the box is empty, or the score is negative.
    """

    x: float
    y: float
    width: float
    height: float
    score: float = 1.0

    def __post_init__(self) -> None:
        sides = (self.x, self.y, self.width, self.height)
        if not all(-FARTHEST <= value <= FARTHEST for value in sides) or min(sides[2:]) < _SMALLEST:
            raise InputError(
                "a person's box needs a finite x, y and a positive width, height (at least"
                f" {_SMALLEST} pixels), got {shown(list(sides))}"
            )
        if not 0 <= self.score < math.inf:
            raise InputError(f"a person's box needs a finite score of at least 0, got {shown(self.score)}")

    @property
    def centre(self) -> tuple[float, float]:
        """The middle: x, y."""
        return self.x + self.width / 2, self.y + self.height / 2


def whole_image(height: int, width: int) -> Box:
    """Return the box of a whole picture, for pictures of one person."""
    return Box(-0.5, -0.5, float(width), float(height))


def box_of_joints(joints: NDArray[np.floating], margin: float = JOINT_MARGIN) -> Box:
    """Return the box around labelled joints, a body's ``margin`` wider on every side.

    Parameters
    ----------
    joints
        (J, 3): x, y and v; those with v = 0 do not count.
    margin
        As a share of the longer side of the joints' box (which is taken to be at least a pixel).

    Raises
    ------
    InputError
        If no joint is labelled.
    """
    points = np.asarray(joints, dtype=np.float64)
    points = points[points[:, 2] > 0, :2]
    if not len(points):
        raise InputError("a box around joints needs a labelled joint, got none")
    low, high = points.min(axis=0), points.max(axis=0)
    return _widened(low, high, margin)


def _widened(low: NDArray[np.float64], high: NDArray[np.float64], margin: float) -> Box:
    """Return the box from ``low`` to ``high``, wider on every side; never thinner than the margins."""
    reach = margin * max(float((high - low).max()), _THINNEST)
    size = np.maximum(high - low + 2 * reach, _THINNEST)
    x, y = (low + high - size) / 2
    return Box(float(x), float(y), float(size[0]), float(size[1]))


# -- boxes of a data set -------------------------------------------------------------------------------------


def annotated_boxes(truth: Mapping[str, Any]) -> dict[int, tuple[Box, ...]]:
    """Return the boxes of the annotated people of each picture: those with labelled joints, crowds left out.

    They stand in the order of :meth:`supernet.pose.dataset.PoseDataset.joints`. A box is the annotation's.
    Where the file has none, or one that is thinner than a pixel, it is that of the joints with a margin.

    Parameters
    ----------
    truth
        What :meth:`supernet.pose.dataset.PoseDataset.ground_truth` returns.
    """
    boxes: dict[int, list[Box]] = {int(image["id"]): [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        joints = np.reshape(np.asarray(annotation["keypoints"], dtype=np.float64), (-1, 3))
        if not annotation["iscrowd"] and (joints[:, 2] > 0).any():
            boxes[int(annotation["image_id"])].append(_annotated_box(annotation, joints))
    return {image_id: tuple(each) for image_id, each in boxes.items()}


def unlabelled_boxes(truth: Mapping[str, Any]) -> dict[int, tuple[Box, ...]]:
    """Return the annotated boxes of the people of whom no joint is labelled, crowds left out, by picture."""
    boxes: dict[int, list[Box]] = {int(image["id"]): [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        nothing = not any(value > 0 for value in annotation["keypoints"][2::3])
        if nothing and not annotation["iscrowd"] and min(width, height) >= _THINNEST:
            boxes[int(annotation["image_id"])].append(Box(float(x), float(y), float(width), float(height)))
    return {image_id: tuple(each) for image_id, each in boxes.items()}


def _annotated_box(annotation: Mapping[str, Any], joints: NDArray[np.float64]) -> Box:
    x, y, width, height = annotation["bbox"]
    if min(width, height) < _THINNEST:
        return box_of_joints(joints)
    if annotation.get("box_of_joints"):
        low, high = np.array([x, y]), np.array([x + width, y + height])
        return _widened(low, high, JOINT_MARGIN)
    return Box(float(x), float(y), float(width), float(height))


@dataclass(frozen=True)
class FoundBoxes:
    """What a detector found.

    Attributes
    ----------
    by_image
        Boxes of each image by falling score; images of which the file tells nothing are there, without any.
    other_category, below_threshold, beyond_most, of_other_images, empty
        How many entries of the file were left out: boxes of other categories, with too low a score, those
        beyond the most that are taken per image, those of images that the data set lacks, and those without
        any width or height, which detectors write where they clip at the picture's edge.
    """

    by_image: Mapping[int, tuple[Box, ...]]
    other_category: int
    below_threshold: int
    beyond_most: int
    of_other_images: int = 0
    empty: int = 0


def read_boxes(
    path: str | Path,
    ids: Collection[int],
    *,
    category: int = 1,
    threshold: float = 0.0,
    most: int | None = None,
    subset: bool = False,
) -> FoundBoxes:
    """Read people's boxes from a file of COCO results: a list of ``image_id``, ``bbox``, ``score``.

    Parameters
    ----------
    path
        The JSON file. ``bbox`` is x, y, width, height in pixels. Entries may have a ``category_id``.
    ids
        The images that the data set has.
    category
        Boxes with another ``category_id`` are left out; those without any are people.
    threshold
        Least score of a box that is taken.
    most
        Most boxes taken per image, by score; by default all.
    subset
        Whether the data set may be a part of what the detector saw: boxes of other images are then left out,
        as long as there are some of these.

    Raises
    ------
    InputError
        If the file is not such a list; if an entry lacks a field, or has one that is no finite number or a
        negative size; if it is of an image that the data set lacks; if no entry is of the category; if the
        threshold or ``most`` is out of its range.
    """
    if not 0 <= threshold < math.inf:
        raise InputError(f"the least score of boxes must be at least 0, not {threshold}")
    if most is not None and most < 1:
        raise InputError(f"at least one box per image is taken, not {most}")
    where = f"detection file '{path}'"
    rows = read_json(path, "detection file")
    if not isinstance(rows, list):
        raise InputError(
            f"{where} must be a list of COCO results (image_id, bbox, score), not {type(rows).__name__}"
        )
    known = frozenset(ids)
    found: dict[int, list[Box]] = {image_id: [] for image_id in known}
    other = low = elsewhere = empty = 0
    for place, row in enumerate(rows):
        at = f"{where}: entry {place}"
        image_id, box, of_people = _read_row(row, at, category)
        if image_id not in known:
            elsewhere += 1
            if not subset or elsewhere == len(rows):
                raise InputError(
                    f"{at} is of image_id {image_id}, which the data set lacks; "
                    "take the detections of this data set, or leave out those of other images"
                )
        elif not of_people:
            other += 1
        elif box is None:
            empty += 1
        elif box.score < threshold:
            low += 1
        else:
            found[image_id].append(box)
    if other and other + elsewhere == len(rows):
        raise InputError(
            f"{where} has no box of category_id {category}, which are the data set's people; "
            f"all {other} are of other categories"
        )
    sorted_ = {i: tuple(sorted(each, key=lambda box: -box.score)) for i, each in found.items()}
    kept = {image_id: each[:most] for image_id, each in sorted_.items()}
    beyond = sum(map(len, sorted_.values())) - sum(map(len, kept.values()))
    return FoundBoxes(kept, other, low, beyond, elsewhere, empty)


def _read_row(row: object, where: str, category: int) -> tuple[int, Box | None, bool]:
    """Return the image, the box (None if it is empty), and whether it is of the category."""
    if not isinstance(row, dict):
        raise InputError(f"{where} must be a mapping with image_id, bbox and score, got {shown(row)}")
    image_id, kind = row.get("image_id"), row.get("category_id", category)
    for key, value in (("image_id", image_id), ("category_id", kind)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{where} needs an integer '{key}', got {shown(value)}")
    assert isinstance(image_id, int)
    sides, score = row.get("bbox"), row.get("score")
    if not isinstance(sides, list) or len(sides) != 4 or not all(map(_is_number, sides)):
        raise InputError(f"{where} needs a 'bbox' of x, y, width, height in pixels, got {shown(sides)}")
    if min(sides[2:]) < 0:
        raise InputError(f"{where} needs a 'bbox' of positive width and height, got {shown(sides)}")
    if not _is_number(score) or score < 0:
        raise InputError(f"{where} needs a 'score' that is a finite number of at least 0, got {shown(score)}")
    x, y, width, height = map(float, sides)
    box = None if min(width, height) < _SMALLEST else Box(x, y, width, height, float(score))
    return image_id, box, kind == category


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number of a size that boxes have; NaN is not, nor is a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -FARTHEST <= value <= FARTHEST


# -- crops ---------------------------------------------------------------------------------------------------


def crop_size(resolution: int) -> tuple[int, int]:
    """Return height and width of the network's input: ``resolution`` is its height, the width 3/4 of it.

    Raises
    ------
    InputError
        If the resolution is not a positive multiple of 32.
    """
    if resolution < _GRID or resolution % _GRID:
        raise InputError(
            f"a top-down network's resolution is the input's height, a multiple of {_GRID} such as 256 "
            f"(256x192), not {resolution}"
        )
    return resolution, resolution * ASPECT[1] // ASPECT[0]


def crop_extent(box: Box, size: tuple[int, int], padding: float = PADDING) -> tuple[float, float]:
    """Return width and height, in pixels of the picture, of what a crop shows: the box padded.

    The shorter side is padded to the aspect of ``size`` (height, width), then both by ``padding``.

    Raises
    ------
    InputError
        If the padding is not positive.
    """
    if not 0 < padding < math.inf:
        raise InputError(f"the padding of boxes is a positive factor such as {PADDING}, not {padding}")
    height, width = size
    wide = padding * max(box.width, box.height * width / height)
    return wide, wide * height / width


def crop_transform(
    box: Box,
    size: tuple[int, int],
    padding: float = PADDING,
    rotation: float = 0.0,
    scale: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    flip: bool = False,
) -> AffineTransform:
    """Return the map from the picture to the network's input that shows a box; its aspect is kept.

    Parameters
    ----------
    box
        The person's box.
    size
        Height and width of the input, pixels.
    padding
        How much is shown around the box, after it was padded to the input's aspect.
    rotation
        Degrees, clockwise on screen, about the middle of the crop.
    scale
        Of what is shown: at 1.5 more of the picture, so that the person comes out smaller.
    shift
        By how much the middle of the crop is away from the box's, in x and y, as shares of its extent.
    flip
        Whether the crop is mirrored, last.

    Raises
    ------
    InputError
        If padding or scale is not positive.
    """
    if not 0 < scale < math.inf:
        raise InputError(f"the scale of a crop is a positive factor, not {scale}")
    height, width = size
    wide, high = crop_extent(box, size, padding * scale)
    x, y = box.centre
    middle = ((width - 1) / 2, (height - 1) / 2)
    transform = AffineTransform.about(
        (x + shift[0] * wide, y + shift[1] * high), middle, width / wide, rotation
    )
    if flip:
        transform = transform.then(AffineTransform(np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0]])))
    return transform
