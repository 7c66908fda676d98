"""Average precision and its confidence interval: ours against pycocotools, run anew or accumulated anew.

By default people are made up from a seed: none in some images, many in few, of all sizes, with crowds and
people of whom nothing is labelled, and detections from exact to far off. With ``--data`` the people are those
of an annotation file, disturbed the same way; with ``--detections`` the detections are a file's, too.

Run: python experiments/benchmarks/evaluation.py [--record]
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _common import Case, parser, tell
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from search_spaces.files import read_json
from supernet.pose.bootstrap import bootstrap_ap
from supernet.pose.dataset import PoseDataset
from supernet.pose.matching import match_detections
from supernet.pose.metrics import keypoint_ap
from supernet.pose.skeleton import COCO17, Skeleton

Truth = dict[str, Any]
People = list[dict[str, Any]]
NAMES = ("AP", "AP50", "AP75", "AP_medium", "AP_large", "AR", "AR50", "AR75", "AR_medium", "AR_large")
DIGITS = 5e-6


def made_up(images: int, seed: int) -> Truth:
    """Return annotated people: none in some images, many in few."""
    rng = np.random.default_rng([seed, images])
    annotations: People = []
    for image in range(1, images + 1):
        for _ in range(min(int(rng.geometric(0.35)) - 1, 20)):
            height = float(np.exp(rng.uniform(np.log(20), np.log(450))))
            corner, size = rng.uniform(0, 400, 2), np.array([0.45 * height, height])
            labelled = (rng.random(17) < rng.choice([0.0, 0.6, 1.0], p=[0.15, 0.4, 0.45])) * 2.0
            points = (corner + rng.random((17, 2)) * size) * (labelled > 0)[:, None]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": [*corner.tolist(), *size.tolist()],
                    "area": float(0.6 * size.prod()),
                    "iscrowd": int(rng.random() < 0.02),
                    "keypoints": np.column_stack([points, labelled]).ravel().tolist(),
                    "num_keypoints": int((labelled > 0).sum()),
                }
            )
    records = [{"id": image} for image in range(1, images + 1)]
    return {"images": records, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def disturbed(truth: Truth, skeleton: Skeleton, seed: int) -> People:
    """Return detections of most people, some twice, and of nobody; those farther off have lower scores."""
    rng = np.random.default_rng(seed)
    count, found = len(skeleton), []
    for each in truth["annotations"]:
        points = np.reshape(each["keypoints"], (count, 3))[:, :2]
        for _ in range(rng.choice([0, 1, 2], p=[0.1, 0.75, 0.15])):
            off = 0.08 * each["area"] ** 0.5 * rng.gamma(1.0)
            moved = points + rng.normal(0, 1, points.shape) * off
            if rng.random() < 0.2:
                moved = moved + 3 * each["bbox"][3]
            guess = np.column_stack([moved, np.ones(count)]).ravel().tolist()
            score = float(np.exp(-off / 10) * rng.uniform(0.5, 1))
            ids = {key: each[key] for key in ("image_id", "category_id")}
            found.append({**ids, "keypoints": guess, "score": score})
    return found


def repeated(truth: Truth, found: People, weights: NDArray[np.int64]) -> tuple[Truth, People]:
    """Return the data set in which each image is there as often as its weight says."""
    by_image: dict[int, tuple[People, People]] = {image["id"]: ([], []) for image in truth["images"]}
    for place, entries in enumerate((truth["annotations"], found)):
        for each in entries:
            by_image[each["image_id"]][place].append(each)
    images, annotations, detections = [], [], []
    for image, weight in zip(truth["images"], weights.tolist(), strict=True):
        for copied in range(weight):
            new = int(weights.max() + 1) * image["id"] + copied
            images.append({"id": new})
            people, guesses = by_image[image["id"]]
            annotations += [{**each, "image_id": new, "id": 0} for each in people]
            detections += [{**each, "image_id": new} for each in guesses]
    for number, each in enumerate(annotations, start=1):
        each["id"] = number
    return {**truth, "images": images, "annotations": annotations}, detections


def official(truth: Truth, found: People, skeleton: Skeleton) -> COCOeval:
    """Return pycocotools' evaluation, accumulated."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        runner = COCOeval(coco, coco.loadRes(found), "keypoints")
        runner.params.kpt_oks_sigmas = np.array(skeleton.sigmas)
        runner.evaluate()
        runner.accumulate()
    return runner


def summary(runner: COCOeval) -> dict[str, float]:
    """Return the ten figures."""
    with contextlib.redirect_stdout(io.StringIO()):
        runner.summarize()
    return dict(zip(NAMES, runner.stats.tolist(), strict=True))


def average_precision(runner: COCOeval) -> float:
    """Return the first figure alone."""
    precision = runner.eval["precision"][:, :, 0, 0, 0]
    return float(precision[precision > -1].mean())


def run_anew(
    truth: Truth, found: People, skeleton: Skeleton, weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the AP of each resample by running the evaluator on the data set that it is."""
    return np.array([average_precision(official(*repeated(truth, found, row), skeleton)) for row in weights])


def accumulated_anew(
    truth: Truth, found: People, skeleton: Skeleton, weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the same by evaluating once and accumulating the images of each resample."""
    runner = official(truth, found, skeleton)
    whole, params = runner.evalImgs, copy.deepcopy(runner.params)
    values = []
    for row in weights:
        chosen = np.repeat(np.arange(len(row)), row)
        runner.params = copy.deepcopy(params)
        runner.params.areaRng, runner.params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
        runner.params.imgIds = list(range(len(chosen)))
        runner._paramsEval = copy.deepcopy(runner.params)
        runner.evalImgs = [whole[i] for i in chosen]
        with contextlib.redirect_stdout(io.StringIO()):
            runner.accumulate()
        values.append(average_precision(runner))
    return np.array(values)


def agree(theirs: Mapping[str, float], ours: Mapping[str, float]) -> str | None:
    """Return None where all figures are equal to five digits."""
    for name, value in theirs.items():
        if not abs(value - ours[name]) <= DIGITS:
            return f"{name}: {value:.6f} and {ours[name]:.6f}"
    return None


def agree_each(theirs: NDArray[np.float64], ours: NDArray[np.float64]) -> str | None:
    """Return None where the APs of all resamples are equal to five digits."""
    return agree(*(dict(zip(map(str, range(len(each))), each.tolist())) for each in (theirs, ours)))


NOTES = (
    "*One evaluation*: from annotations and detections as read from JSON to the ten figures; pycocotools"
    " against `keypoint_ap` (faster-coco-eval) and against `match_detections(...).stats()`.",
    "*Resamples*, per resample, what matching takes included: pycocotools on a data set in which images"
    " really are there several times (*run anew*), or run once, then accumulating the images of each"
    " resample, people of all sizes only (*accumulated anew*); ours is `match_detections` and"
    " `Matches.ap(weights)` in both. All figures are equal to five digits.",
)


def main() -> None:
    """Time, tell and record."""
    options = parser("evaluation", __doc__ or "", repeats=3)
    options.add_argument("--images", type=int, default=2000, help="images made up for one evaluation")
    options.add_argument("--bootstrap-images", type=int, default=200, help="images made up for resamples")
    options.add_argument("--resamples", type=int, default=20)
    options.add_argument("--data", type=Path, help="annotation file instead of made-up people")
    options.add_argument("--detections", type=Path, help="COCO results on it instead of disturbed people")
    given = options.parse_args()
    if min(given.images, given.bootstrap_images, given.resamples) < 1:
        options.error("--images, --bootstrap-images and --resamples are at least 1")
    if given.detections is not None and given.data is None:
        options.error("--detections needs the annotations that they are of: --data")
    skeleton = COCO17
    if given.data is None:
        sets = [made_up(count, seed=1) for count in (given.images, given.bootstrap_images)]
    else:
        data = PoseDataset(given.data, None)
        skeleton, sets = data.skeleton, [data.ground_truth()] * 2
    read = None if given.detections is None else read_json(given.detections, "detections")
    found = [disturbed(truth, skeleton, seed=2) if read is None else read for truth in sets]
    # pycocotools writes into what it is given, so it gets its own.
    theirs = copy.deepcopy((sets, found))
    sigmas = skeleton.sigmas
    weights = np.random.default_rng(3).multinomial(
        len(sets[1]["images"]), [1 / len(sets[1]["images"])] * len(sets[1]["images"]), given.resamples
    )

    def plain() -> dict[str, float]:
        return summary(official(theirs[0][0], theirs[1][0], skeleton))

    def resampled() -> NDArray[np.float64]:
        return match_detections(sets[1], found[1], sigmas).ap(weights)

    sizes = [f"{len(truth['images']):,} images" for truth in sets]
    few = f"{given.resamples} resamples of {sizes[1]}"
    cases = [
        Case(f"one evaluation, {sizes[0]}", plain, lambda: keypoint_ap(sets[0], found[0], sigmas), agree),
        Case(
            f"one evaluation from matches, {sizes[0]}",
            plain,
            lambda: match_detections(sets[0], found[0], sigmas).stats(),
            agree,
        ),
        Case(
            f"{few}: run anew",
            lambda: run_anew(theirs[0][1], theirs[1][1], skeleton, weights),
            resampled,
            agree_each,
            given.resamples,
        ),
        Case(
            f"{few}: accumulated anew",
            lambda: accumulated_anew(theirs[0][1], theirs[1][1], skeleton, weights),
            resampled,
            agree_each,
            given.resamples,
        ),
    ]
    further: dict[str, Any] = {"seconds_of_1000_resamples": {}}
    for truth, people, size in zip(sets, found, sizes, strict=True):
        start = time.perf_counter()
        bootstrap_ap(match_detections(truth, people, sigmas), 1000, np.random.default_rng(0))
        further["seconds_of_1000_resamples"][size] = round(time.perf_counter() - start, 3)
    for size, seconds in further["seconds_of_1000_resamples"].items():
        print(f"AP with an interval from 1,000 resamples, {size}: {seconds} s")
    title = f"AP of {len(skeleton)} joints; per evaluation, and per resample"
    tell("evaluation", "AP and its confidence interval", title, cases, options, given, NOTES, further)


if __name__ == "__main__":
    main()
