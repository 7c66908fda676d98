"""Made-up annotated and detected people, with everything that evaluation has a rule for; the official AP."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_NAMES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")
LEVELS = {"AP_easy": (0.0, 0.2), "AP_medium": (0.2, 0.8), "AP_hard": (0.8, 2.0)}
SIDES = (20.0, 32.0, 60.0, 96.0, 200.0)  # 32^2 and 96^2 are the ends of COCO's area ranges


def random_case(
    seed: int, joints: int, images: int, *, ties: bool = False, boxes: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ground truth and detections of mixed quality.

    Among them: images without people, without detections, and with more detections than are scored; crowds;
    people of whom nothing is labelled; sizes at the ends of the area ranges; joints out of the frame;
    detections of the same person. With ``ties`` many scores are equal, with ``boxes`` detections have boxes.
    Images have a ``crowdIndex``.
    """
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []

    def detect(image: int, points: np.ndarray[Any, np.dtype[np.float64]]) -> None:
        score = rng.integers(1, 4) / 4 if ties else rng.random()
        found = {
            "image_id": image,
            "category_id": 1,
            "keypoints": np.column_stack([points, np.ones(joints)]).ravel().tolist(),
            "score": float(score),
        }
        if boxes:
            side = float(rng.choice(SIDES))
            found["bbox"] = [*points[0].tolist(), side, side]
        detections.append(found)

    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 5)):
            side = float(rng.choice(SIDES))
            corner = rng.uniform(-50, 400, 2)
            points = corner + rng.uniform(0, side, (joints, 2))
            visible = (rng.random(joints) < rng.choice([0.0, 0.5, 1.0])) * rng.integers(1, 3, joints)
            keypoints = np.column_stack([points, visible]) * (visible > 0)[:, None]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": [*corner.tolist(), side, side],
                    "area": side * side * float(rng.choice([0.6, 1.0])),
                    "iscrowd": int(rng.random() < 0.15),
                    "keypoints": keypoints.ravel().tolist(),
                    "num_keypoints": int((visible > 0).sum()),
                }
            )
            for _ in range(rng.integers(0, 3)):
                noise = rng.normal(0, side * rng.choice([0.0, 0.005, 0.05, 0.2]), points.shape)
                detect(image, points + noise)
        if rng.random() < 0.2:
            for _ in range(25):
                detect(image, rng.uniform(-100, 500, (joints, 2)))
    category = {"id": 1, "name": "person", "keypoints": [str(j) for j in range(joints)], "skeleton": []}
    truth = {
        "info": {},
        "images": [
            {
                "id": i,
                "height": 400,
                "width": 400,
                "crowdIndex": float(rng.choice([0, 0.1, 0.2, 0.5, 0.8, 1])),
            }
            for i in range(1, images + 1)
        ],
        "annotations": annotations,
        "categories": [category],
    }
    order = rng.permutation(len(detections))
    return truth, [detections[i] for i in order]


def scorable(truth: dict[str, Any]) -> bool:
    """Return whether there is anybody to find."""
    return any(each["num_keypoints"] and not each["iscrowd"] for each in truth["annotations"])


def official(
    truth: dict[str, Any], detections: list[dict[str, Any]], sigmas: Sequence[float]
) -> dict[str, float]:
    """AP by pycocotools, with at least one detection."""
    runner = _run(truth, detections, sigmas)
    with contextlib.redirect_stdout(io.StringIO()):
        runner.summarize()
    return dict(zip(COCO_NAMES, runner.stats.tolist()))


def official_crowdpose(
    truth: dict[str, Any], detections: list[dict[str, Any]], sigmas: Sequence[float]
) -> dict[str, float]:
    """AP by pycocotools with CrowdPose's scale, all sizes together, and image by image of each level."""
    truth = copy.deepcopy(truth)
    for each in truth["annotations"]:
        each["area"] = 0.53 * each["bbox"][2] * each["bbox"][3]
    runner = _run(truth, detections, sigmas)
    with contextlib.redirect_stdout(io.StringIO()):
        runner.summarize()
    named = dict(zip(COCO_NAMES, runner.stats.tolist()))
    stats = {name: named[name] for name in ("AP", "AP50", "AP75", "AR", "AR50", "AR75")}
    for name, (low, high) in LEVELS.items():
        ids = [image["id"] for image in truth["images"] if low <= image["crowdIndex"] < high]
        precision = _run(truth, detections, sigmas, ids).eval["precision"][..., 0, 0] if ids else -np.ones(1)
        stats[name] = float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0
    return stats


def _run(
    truth: dict[str, Any],
    detections: list[dict[str, Any]],
    sigmas: Sequence[float],
    ids: Sequence[int] | None = None,
) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        runner = COCOeval(coco, coco.loadRes(copy.deepcopy(detections)), "keypoints")
        runner.params.kpt_oks_sigmas = np.asarray(sigmas)
        if ids is not None:
            runner.params.imgIds = list(ids)
        runner.evaluate()
        runner.accumulate()
    return runner
