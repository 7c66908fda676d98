"""Scores of detected people against annotations: average precision by object keypoint similarity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from supernet.pose.scoring import CROWD_LEVELS, DetectedPeople, ScoringProtocol, TruePeople, read_people

__all__ = ["ScoringProtocol", "keypoint_ap"]

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


def _as_coco(truth: TruePeople, found: DetectedPeople) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ground truth and detections in COCO's format, with only what OKS evaluation reads."""
    annotations = [
        {
            "id": at + 1,
            "image_id": int(truth.image_ids[truth.image[at]]),
            "category_id": truth.category_id,
            "keypoints": truth.keypoints[at].ravel().tolist(),
            "num_keypoints": int(not truth.ignored[at]),  # 0 is all that matters
            "area": float(truth.area[at]),
            "bbox": truth.box[at].tolist(),
            "iscrowd": int(truth.crowd[at]),
        }
        for at in range(len(truth.image))
    ]
    keypoints = np.pad(found.keypoints, ((0, 0), (0, 0), (0, 1))).reshape(-1, 3 * truth.keypoints.shape[1])
    detections = [
        {
            "image_id": int(truth.image_ids[found.image[at]]),
            "category_id": truth.category_id,
            "keypoints": keypoints[at].tolist(),
            "score": float(found.score[at]),
            "bbox": found.box[at].tolist(),
        }
        for at in range(len(found.image))
    ]
    images = [{"id": int(image_id)} for image_id in truth.image_ids]
    categories = [{"id": truth.category_id}]
    return {"images": images, "annotations": annotations, "categories": categories}, detections


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
        If there is nobody to find, if there are several categories, or if annotations, detections, sigmas
        and joints do not fit together.
    """
    truth, found, scored = read_people(ground_truth, detections, sigmas, joints, protocol)
    content, people = _as_coco(truth, found)
    coco = COCO(content)
    results = coco.loadRes(people)

    def run(image_ids: NDArray[np.int64]) -> COCOeval_faster:
        runner = COCOeval_faster(
            coco,
            results,
            iouType="keypoints" if protocol == "coco" else "keypoints_crowd",
            print_function=_silent,
            kpt_oks_sigmas=[float(sigmas[joint]) for joint in scored],
            use_area=True,  # for CrowdPose the box's area has been put in its place
        )
        runner.params.imgIds = image_ids.tolist()
        runner.params.maxDets = [max_detections]
        runner.evaluate()
        runner.accumulate()
        return runner

    runner = run(truth.image_ids)
    rows = _COCO_STATS if protocol == "coco" else _CROWDPOSE_STATS
    stats = {name: _mean(runner, what, threshold, area) for name, what, threshold, area in rows}
    if protocol == "crowdpose":
        for level in CROWD_LEVELS:
            part = truth.image_ids[truth.level(level)]
            stats[f"AP_{level}"] = _mean(run(part), "precision", None, "all") if len(part) else -1.0
    return stats


def _silent(*_: object) -> None:
    """Print nothing."""


def _mean(runner: COCOeval_faster, what: str, threshold: float | None, area: str) -> float:
    """Return the mean precision or recall of one OKS threshold (or all) and area, or -1 if undefined."""
    params = runner.params
    values = np.asarray(runner.eval[what])[..., params.areaRngLbl.index(area), -1]
    if threshold is not None:
        values = values[np.isclose(params.iouThrs, threshold)]
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
