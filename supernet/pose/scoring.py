"""What scoring reads: annotated and detected people, checked once and held as arrays."""

from __future__ import annotations

import contextlib
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError
from supernet.pose.dataset import BOX_AREA

__all__ = ["CROWD_LEVELS", "DetectedPeople", "ScoringProtocol", "TruePeople", "check_protocol", "read_people"]

ScoringProtocol = Literal["coco", "crowdpose"]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

CROWD_LEVELS: Final[Mapping[str, tuple[float, float]]] = {
    "easy": (-np.inf, 0.2),
    "medium": (0.2, 0.8),
    "hard": (0.8, np.inf),
}
"""CrowdPose's levels: least ``crowdIndex`` of an image, and the first that is too large."""


@dataclass(frozen=True)
class TruePeople:
    """P annotated people on I images.

    Attributes
    ----------
    image_ids
        Ids of the images, ascending: I of them, those without anybody among them.
    crowd_index
        (I,) under the CrowdPose protocol, else empty.
    category_id
        Of everybody.
    image
        (P,): each person's image as index into ``image_ids``. People stand in the file's order.
    keypoints
        (P, J, 3): x, y in pixels and v; a joint is labelled where v > 0.
    area
        (P,): the square of a person's scale, pixels^2.
    box
        (P, 4): x, y, width, height.
    ignored
        (P,): people who need not be found and do no harm if they are: crowds, nobody labelled.
    crowd
        (P,): regions that any number of detections may fall on.
    """

    image_ids: IntArray
    crowd_index: FloatArray
    category_id: int
    image: IntArray
    keypoints: FloatArray
    area: FloatArray
    box: FloatArray
    ignored: BoolArray
    crowd: BoolArray

    def level(self, name: str) -> BoolArray:
        """Return which images are of a CrowdPose level, (I,)."""
        low, high = CROWD_LEVELS[name]
        return (low <= self.crowd_index) & (self.crowd_index < high)


@dataclass(frozen=True)
class DetectedPeople:
    """N detected people, in the order in which they were given.

    Attributes
    ----------
    image
        (N,): indices into :attr:`TruePeople.image_ids`.
    keypoints
        (N, J, 2): pixels.
    score
        (N,).
    box
        (N, 4): x, y, width, height, the detection's own or that of its joints.
    """

    image: IntArray
    keypoints: FloatArray
    score: FloatArray
    box: FloatArray

    @property
    def area(self) -> FloatArray:
        """(N,): what decides whether an unmatched detection is of a size that counts."""
        return self.box[:, 2] * self.box[:, 3]


def _number(entry: Mapping[str, Any], key: str, what: str) -> float:
    value = entry.get(key)
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise InputError(
            f"{what} needs a finite number as '{key}' to be evaluated, not {reprlib.repr(value)}"
        )
    return number


def _box(entry: Mapping[str, Any], what: str) -> list[float]:
    box = entry.get("bbox")
    try:
        numbers = [float(value) for value in box or ()]
    except (TypeError, ValueError, OverflowError):
        numbers = []
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise InputError(
            f"{what} needs a 'bbox' [x, y, width, height] to be evaluated, not {reprlib.repr(box)}"
        )
    return numbers


def _flat_keypoints(entry: Mapping[str, Any], count: int, what: str) -> Sequence[float]:
    flat = entry.get("keypoints")
    if not isinstance(flat, list | tuple | np.ndarray) or len(flat) != 3 * count:
        raise InputError(
            f"{what} must have {3 * count} keypoint numbers ({count} joints), "
            f"not {len(flat) if isinstance(flat, list | tuple | np.ndarray) else 'none'}"
        )
    return cast("Sequence[float]", flat)


def _stacked(rows: list[Sequence[float]], count: int, joints: Sequence[int], names: list[str]) -> FloatArray:
    """Return flat keypoints as an array (rows, len(joints), 3)."""
    try:
        table = np.array(rows, np.float64).reshape(-1, count, 3)
    except (TypeError, ValueError, OverflowError):
        table = np.full((len(rows), count, 3), np.nan)
        for at, row in enumerate(rows):  # which of them is it?
            with contextlib.suppress(TypeError, ValueError, OverflowError):
                table[at] = np.asarray(row, np.float64).reshape(count, 3)
    bad = np.flatnonzero(~np.isfinite(table).all(axis=(1, 2)))
    if len(bad):
        raise InputError(f"{names[bad[0]]} has keypoints that are no finite numbers; drop it")
    return table[:, list(joints)]


def _index_of(entry: Mapping[str, Any], known: Mapping[Any, int], category: int, what: str) -> int:
    """Return the index of an entry's image."""
    image = entry.get("image_id")
    if isinstance(image, list | dict) or image not in known:
        raise InputError(f"{what} is on image {reprlib.repr(image)}, which the ground truth lacks")
    given = entry.get("category_id")
    if given != category:
        raise InputError(f"{what} has category_id {reprlib.repr(given)}, which the ground truth lacks")
    return known[image]


def check_protocol(truth: Mapping[str, Any], protocol: ScoringProtocol) -> None:
    """Refuse ground truth that a protocol cannot score, before time is spent on finding people.

    Raises
    ------
    InputError
        Naming the image that lacks what the protocol needs.
    """
    if protocol == "crowdpose":
        for image in truth["images"]:
            _crowd_index(image)


def _crowd_index(image: Mapping[str, Any]) -> float:
    value = image.get("crowdIndex")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            f"image {image.get('id')} needs a 'crowdIndex' under the crowdpose protocol, not"
            f" {reprlib.repr(value)}; score by the protocol coco, or take CrowdPose's own annotations"
        )
    return float(value)


def _true_people(
    truth: Mapping[str, Any], count: int, joints: Sequence[int], protocol: ScoringProtocol
) -> TruePeople:
    for key in ("images", "annotations", "categories"):
        if not isinstance(truth.get(key), list):
            raise InputError(f"ground truth in COCO's format has a list '{key}'")
    if len(truth["categories"]) != 1:
        raise InputError(f"people of one category are scored at a time, not of {len(truth['categories'])}")
    for entry in (*truth["images"], *truth["categories"]):
        if not isinstance(entry.get("id"), int):
            raise InputError(
                f"ground truth has an image or category whose id is {reprlib.repr(entry.get('id'))}"
            )
    category = truth["categories"][0]["id"]
    images = sorted(truth["images"], key=lambda image: int(image["id"]))
    known = {image["id"]: index for index, image in enumerate(images)}
    if len(known) != len(images):
        raise InputError(f"the ground truth's {len(images)} images have only {len(known)} different ids")
    size, nothing = len(truth["annotations"]), [0.0] * (3 * count)
    image = np.zeros(size, np.int64)
    area, box = np.zeros(size), np.zeros((size, 4))
    crowd, unlabelled = np.zeros((2, size), np.bool_)
    rows: list[Sequence[float]] = []
    names: list[str] = []
    for at, annotation in enumerate(truth["annotations"]):
        what = f"annotation {annotation.get('id')}"
        image[at] = _index_of(annotation, known, category, what)
        names.append(what)
        rows.append(_flat_keypoints(annotation, count, what) if "keypoints" in annotation else nothing)
        box[at] = _box(annotation, what)
        area[at] = (
            _number(annotation, "area", what) if protocol == "coco" else BOX_AREA * box[at, 2] * box[at, 3]
        )
        crowd[at] = bool(annotation.get("iscrowd", 0))
        unlabelled[at] = annotation.get("num_keypoints") == 0
    keypoints = _stacked(rows, count, joints, names)
    ignored = crowd | unlabelled | (keypoints[..., 2] <= 0).all(axis=1)
    if ignored.all():
        raise InputError(f"the ground truth has no person with a labelled joint in its {len(images)} images")
    index = [_crowd_index(each) for each in images] if protocol == "crowdpose" else []
    ids = np.array([int(each["id"]) for each in images], np.int64)
    return TruePeople(ids, np.array(index, np.float64), category, image, keypoints, area, box, ignored, crowd)


def _detected_people(
    detections: Sequence[Mapping[str, Any]], count: int, joints: Sequence[int], truth: TruePeople
) -> DetectedPeople:
    known = {int(image_id): index for index, image_id in enumerate(truth.image_ids)}
    size = len(detections)
    image, score, box = np.zeros(size, np.int64), np.zeros(size), np.zeros((size, 4))
    own, whole = np.zeros(size, np.bool_), list(joints) == list(range(count))
    rows: list[Sequence[float]] = []
    names: list[str] = []
    for at, detection in enumerate(detections):
        what = f"detection {at + 1}"
        image[at] = _index_of(detection, known, truth.category_id, what)
        rows.append(_flat_keypoints(detection, count, what))
        names.append(what)
        score[at] = _number(detection, "score", what)
        if whole and detection.get("bbox"):
            own[at], box[at] = True, _box(detection, what)
    keypoints = _stacked(rows, count, joints, names)[..., :2]
    low = keypoints.min(axis=1)
    around = np.concatenate([low, keypoints.max(axis=1) - low], axis=1)
    box = np.where(own[:, None], box, around)
    return DetectedPeople(image, keypoints, score, box)


def read_people(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    joints: Sequence[int] | None,
    protocol: ScoringProtocol,
) -> tuple[TruePeople, DetectedPeople, list[int]]:
    """Return both sides of a comparison with only the joints that count, and which those are.

    Parameters are those of :func:`supernet.pose.metrics.keypoint_ap`, and so are the errors.
    """
    if protocol not in get_args(ScoringProtocol):
        raise InputError(
            f"the evaluation protocol is one of {', '.join(get_args(ScoringProtocol))}, not '{protocol}'"
        )
    count = len(sigmas)
    scored = list(range(count)) if joints is None else [int(joint) for joint in joints]
    if not scored or not all(0 <= joint < count for joint in scored) or len(set(scored)) != len(scored):
        raise InputError(f"the joints to be scored must be different ones of 0..{count - 1}, not {scored}")
    truth = _true_people(ground_truth, count, scored, protocol)
    return truth, _detected_people(detections, count, scored, truth), scored
