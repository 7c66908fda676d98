"""Scores of detected people against annotations: average precision by object keypoint similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from search_spaces.errors import InputError

__all__ = ["ScoringProtocol", "keypoint_ap"]

ScoringProtocol = Literal["coco", "crowdpose"]

_COCO_STATS = (
    ("AP", "precision", None, "all"),
    ("AP50", "precision", 0.5, "all"),
    ("AP75", "precision", 0.75, "all"),
    ("AP_medium", "precision", None, "medium"),
    ("AP_large", "precision", None, "large"),
    ("AR", "recall", None, "all"),
    ("AR50", "recall", 0.5, "all"),
    ("AR75", "recall", 0.75, "all"),
    ("AR_medium", "recall", None, "medium"),
    ("AR_large", "recall", None, "large"),
)
_CROWDPOSE_STATS = tuple(row for row in _COCO_STATS if row[3] == "all")
_CROWD_LEVELS = (("AP_easy", 0.0, 0.2), ("AP_medium", 0.2, 0.8), ("AP_hard", 0.8, np.inf))


def _number(entry: Mapping[str, Any], key: str, what: str) -> float:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise InputError(f"{what} needs a finite number as '{key}' to be evaluated, not {value!r}")
    return float(value)


def _box(entry: Mapping[str, Any], what: str) -> list[float]:
    box = entry.get("bbox")
    if not isinstance(box, list | tuple) or len(box) != 4:
        raise InputError(f"{what} needs a 'bbox' [x, y, width, height] to be evaluated, not {box!r}")
    return [float(value) for value in box]


def _picked(entry: Mapping[str, Any], count: int, joints: Sequence[int], what: str) -> NDArray[np.float64]:
    """Return the keypoints of ``joints`` as (len(joints), 3)."""
    flat = entry.get("keypoints")
    if flat is None or len(flat) != 3 * count:
        raise InputError(
            f"{what} must have {3 * count} keypoint numbers ({count} joints), "
            f"not {'none' if flat is None else len(flat)}"
        )
    return np.asarray(flat, np.float64).reshape(count, 3)[list(joints)]


def _reduced_truth(
    truth: Mapping[str, Any], count: int, joints: Sequence[int], protocol: ScoringProtocol
) -> dict[str, Any]:
    """Return a copy of the ground truth with some joints and only what OKS evaluation reads."""
    annotations = []
    for number, annotation in enumerate(truth["annotations"], start=1):
        what = f"annotation {annotation.get('id')}"
        if "keypoints" in annotation:
            keypoints = _picked(annotation, count, joints, what)
        else:
            keypoints = np.zeros((len(joints), 3))
        box = _box(annotation, what)
        crowd = bool(annotation.get("iscrowd", 0))
        labelled = int((keypoints[:, 2] > 0).sum())
        if annotation.get("num_keypoints") == 0 or annotation.get("ignore"):
            labelled = 0
        annotations.append(
            {
                "id": number,
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "keypoints": keypoints.ravel().tolist(),
                "num_keypoints": labelled,
                "area": _number(annotation, "area", what) if protocol == "coco" else 0.53 * box[2] * box[3],
                "bbox": box,
                "iscrowd": int(crowd),
            }
        )
    return {
        "images": [dict(image) for image in truth["images"]],
        "annotations": annotations,
        "categories": [dict(category) for category in truth["categories"]],
    }


def _reduced_detections(
    detections: Sequence[Mapping[str, Any]], count: int, joints: Sequence[int], truth: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return copies of the detections with some joints; without a box of their own they get their joints'."""
    reduced = []
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    whole = list(joints) == list(range(count))
    for number, detection in enumerate(detections, start=1):
        what = f"detection {number}"
        if detection.get("image_id") not in images:
            raise InputError(f"{what} is on image {detection.get('image_id')}, which the ground truth lacks")
        if detection.get("category_id") not in categories:
            raise InputError(
                f"{what} has category_id {detection.get('category_id')}, which the ground truth lacks"
            )
        keypoints = _picked(detection, count, joints, what)
        score = _number(detection, "score", what)
        if not np.isfinite(keypoints).all():
            raise InputError(f"{what} has keypoints that are no finite numbers; drop it")
        low, high = keypoints[:, :2].min(axis=0), keypoints[:, :2].max(axis=0)
        box = [*low.tolist(), *(high - low).tolist()]
        if whole and detection.get("bbox"):
            box = _box(detection, what)
        reduced.append(
            {
                "image_id": detection["image_id"],
                "category_id": detection["category_id"],
                "keypoints": keypoints.ravel().tolist(),
                "score": score,
                "bbox": box,
            }
        )
    return reduced


def keypoint_ap(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    joints: Sequence[int] | None = None,
    protocol: ScoringProtocol = "coco",
    max_detections: int = 20,
) -> dict[str, float]:
    """Average precision and recall by object keypoint similarity (OKS).

    Parameters
    ----------
    ground_truth
        Annotations in COCO's format (``images``, ``annotations``, ``categories``); not changed.
    detections
        COCO results: ``image_id``, ``category_id``, ``keypoints``, ``score`` and, if wanted, ``bbox``.
    sigmas
        Per joint, as in COCO's evaluation: all J of the annotations' skeleton.
    joints
        Joints that count; the others are removed from both sides, and people with none of them labelled
        are ignored (they neither count nor punish). By default all.
    protocol
        ``coco``: a person's scale is its ``area``; medium and large people are scored on their own.
        ``crowdpose``: its scale is ``0.53 * width * height`` of its box; images are split by their
        ``crowdIndex`` into easy (below .2), medium (below .8) and hard ones.
    max_detections
        Per image, by score.

    Returns
    -------
    dict
        ``AP`` (mean over OKS .50:.05:.95), ``AP50``, ``AP75``, ``AR``, ``AR50``, ``AR75`` and, by protocol,
        ``AP_medium``, ``AP_large``, ``AR_medium``, ``AR_large`` or ``AP_easy``, ``AP_medium``, ``AP_hard``
        in 0..1; -1 where the ground truth has nobody in the range.

    Raises
    ------
    InputError
        If there is nobody to find, or if annotations, detections, sigmas and joints do not fit together.
    """
    if protocol not in get_args(ScoringProtocol):
        raise InputError(
            f"the evaluation protocol is one of {', '.join(get_args(ScoringProtocol))}, not '{protocol}'"
        )
    for key in ("images", "annotations", "categories"):
        if not isinstance(ground_truth.get(key), list):
            raise InputError(f"ground truth in COCO's format has a list '{key}'")
    count = len(sigmas)
    joints = list(range(count)) if joints is None else [int(joint) for joint in joints]
    if not joints or not all(0 <= joint < count for joint in joints) or len(set(joints)) != len(joints):
        raise InputError(f"the joints to be scored must be different ones of 0..{count - 1}, not {joints}")
    truth = _reduced_truth(ground_truth, count, joints, protocol)
    if not any(each["num_keypoints"] and not each["iscrowd"] for each in truth["annotations"]):
        raise InputError(
            f"the ground truth has no person with a labelled joint in its {len(truth['images'])} images"
        )
    images = {image["id"] for image in truth["images"]}
    found = _reduced_detections(detections, count, joints, truth)

    coco = COCO(truth)
    results = coco.loadRes(found)

    def run(image_ids: Sequence[int]) -> COCOeval_faster:
        runner = COCOeval_faster(
            coco,
            results,
            iouType="keypoints" if protocol == "coco" else "keypoints_crowd",
            print_function=_silent,
            kpt_oks_sigmas=[float(sigmas[joint]) for joint in joints],
            use_area=True,  # for CrowdPose the box's area has been put in its place
        )
        runner.params.imgIds = sorted(image_ids)
        runner.params.maxDets = [max_detections]
        runner.evaluate()
        runner.accumulate()
        return runner

    runner = run(sorted(images))
    rows = _COCO_STATS if protocol == "coco" else _CROWDPOSE_STATS
    stats = {name: _mean(runner, what, threshold, area) for name, what, threshold, area in rows}
    if protocol == "crowdpose":
        index = {image["id"]: _crowd_index(image) for image in truth["images"]}
        for name, low, high in _CROWD_LEVELS:
            level = [image_id for image_id, value in index.items() if low <= value < high]
            stats[name] = _mean(run(level), "precision", None, "all") if level else -1.0
    return stats


def _silent(*_: object) -> None:
    """Print nothing."""


def _crowd_index(image: Mapping[str, Any]) -> float:
    value = image.get("crowdIndex")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            f"image {image.get('id')} needs a 'crowdIndex' under the crowdpose protocol, not {value!r}"
        )
    return float(value)


def _mean(runner: COCOeval_faster, what: str, threshold: float | None, area: str) -> float:
    """Return the mean precision or recall of one OKS threshold (or all) and area, or -1 if undefined."""
    params = runner.params
    values = np.asarray(runner.eval[what])[..., params.areaRngLbl.index(area), -1]
    if threshold is not None:
        values = values[np.isclose(params.iouThrs, threshold)]
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
