"""From a network and a data set to average precision: batched inference, grouping, OKS evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from search_spaces.errors import InputError
from supernet.pose.decode import FloatArray, GroupingConfig, decode
from supernet.pose.skeleton import Skeleton
from supernet.pose.transforms import AffineTransform, normalise, resize_for_eval

__all__ = [
    "EvalConfig",
    "EvalResult",
    "EvaluationDataset",
    "Progress",
    "ScoringProtocol",
    "evaluate",
    "keypoint_ap",
    "predict_dataset",
    "predict_maps",
]

Progress = Callable[[int, int], None]
"""Called as ``progress(images done, images in all)``."""

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


class EvaluationDataset(Protocol):
    """What evaluation needs of a data set; :class:`supernet.pose.dataset.PoseDataset` has it."""

    @property
    def skeleton(self) -> Skeleton:
        """The joints of a person."""

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """Which joints the data set annotates: bool (J,)."""

    @property
    def ids(self) -> tuple[int, ...]:
        """The images' ids, in order."""

    def load_image(self, index: int) -> NDArray[np.uint8]:
        """Return image ``index``: RGB uint8 (H, W, 3)."""

    def ground_truth(self, ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Return the annotations of some images in COCO's format and the data set's skeleton."""


@dataclass(frozen=True)
class EvalConfig:
    """How a network is evaluated.

    Attributes
    ----------
    resolution
        Short side of the network's input, pixels.
    flip
        Whether the mirrored image is run too: heatmaps are averaged, its tags become a second dimension.
    project
        Whether maps are resized to the input's size before grouping ("project2image" in the published
        test settings: slower, a little more accurate).
    batch_size
        Images that run through the network at once; they must have the same evaluated size.
    grouping
        Thresholds and stages of grouping.
    multiple
        Input sides are rounded up to a multiple of it, pixels.
    max_detections
        People kept per image, by score.
    """

    resolution: int
    flip: bool = False
    project: bool = False
    batch_size: int = 8
    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    multiple: int = 64
    max_detections: int = 20

    def __post_init__(self) -> None:
        for what in ("resolution", "batch_size", "multiple", "max_detections"):
            value = getattr(self, what)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"evaluation: {what} must be a positive integer, not {value!r}")


@dataclass(frozen=True)
class EvalResult:
    """What :func:`evaluate` found.

    Attributes
    ----------
    stats
        Average precision and recall, see :func:`keypoint_ap`.
    detections
        COCO results, see :func:`predict_dataset`.
    images
        Number of images.
    seconds_network, seconds_decode
        Wall-clock time in the network (with resizing of its maps) and in grouping.
    """

    stats: dict[str, float]
    detections: list[dict[str, Any]]
    images: int
    seconds_network: float
    seconds_decode: float


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[2:]) == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _heatmaps_and_tags(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of both heatmaps and the tags, (N, J, H/2, W/2) each."""
    quarter, half = network(images)
    joints = half.shape[1]
    if quarter.shape[1] != 2 * joints:
        raise InputError(f"a tagging network gives 2J and J maps, not {quarter.shape[1]} and {joints}")
    quarter = _resize(quarter, (half.shape[2], half.shape[3]))
    return (quarter[:, :joints] + half) / 2.0, quarter[:, joints:]


@torch.no_grad()
def predict_maps(
    network: nn.Module, images: Tensor, flip_index: NDArray[np.int64] | None, config: EvalConfig
) -> tuple[Tensor, Tensor]:
    """Run a network and merge its outputs into one stack of maps, as HigherHRNet does.

    The 1/4 maps are resized (bilinearly) to 1/2 and their heatmaps averaged with the 1/2 heatmaps. With
    ``config.flip`` heatmaps are averaged with the mirrored image's (mirrored back, left and right joints
    exchanged), whose tags become a second tag dimension. With ``config.project`` all maps are then resized
    to the input's size.

    Parameters
    ----------
    network
        Returns ``(quarter (N, 2J, H/4, W/4), half (N, J, H/2, W/2))``; should be in eval mode.
    images
        Normalised images (N, 3, H, W).
    flip_index
        (J,): joint that each joint becomes in the mirror; needed with ``config.flip``.
    config
        ``flip`` and ``project`` are used.

    Returns
    -------
    det, tags
        (N, J, H', W') and (N, J, H', W', T), float32 on the images' device; T is 2 with flip, else 1.

    Raises
    ------
    InputError
        If flip is asked without ``flip_index`` or if the network's maps are not as stated.
    """
    det, first_tags = _heatmaps_and_tags(network, images)
    tags = [first_tags]
    if config.flip:
        if flip_index is None or len(flip_index) != det.shape[1]:
            raise InputError(
                f"flip test needs one mirrored joint for each of the network's {det.shape[1]} joints"
            )
        index = torch.as_tensor(flip_index, device=det.device)
        mirrored, mirrored_tags = _heatmaps_and_tags(network, images.flip(3))
        det = (det + mirrored.flip(3)[:, index]) / 2.0
        tags.append(mirrored_tags.flip(3)[:, index])
    if config.project:
        size = (images.shape[2], images.shape[3])
        det = _resize(det, size)
        tags = [_resize(each, size) for each in tags]
    # One contiguous plane per tag dimension: grouping reads whole planes.
    return det.float().contiguous(), torch.stack(tags, dim=2).float().movedim(2, -1)


@dataclass
class _Picture:
    """One resized image on its way to the network."""

    position: int
    image: NDArray[np.uint8]
    back: AffineTransform


def _batches(
    dataset: EvaluationDataset, indices: Sequence[int], config: EvalConfig
) -> Iterator[list[_Picture]]:
    """Yield lists of at most ``batch_size`` images of one size; full ones as soon as they are full."""
    waiting: dict[tuple[int, ...], list[_Picture]] = {}
    for position, index in enumerate(indices):
        image, back = resize_for_eval(dataset.load_image(index), config.resolution, config.multiple)
        same = waiting.setdefault(image.shape, [])
        same.append(_Picture(position, image, back))
        if len(same) == config.batch_size:
            yield waiting.pop(image.shape)
    yield from waiting.values()


def _results(
    people: FloatArray,
    scores: FloatArray,
    picture: _Picture,
    map_size: tuple[int, int],
    limit: int,
) -> list[tuple[list[float], float]]:
    """Return keypoints (flat x, y, value in pixels of the original image) and score of the best people."""
    best = np.argsort(-scores, kind="stable")[:limit]
    keypoints = people[best, :, :3].astype(np.float64)
    size = np.array(picture.image.shape[1::-1]) / np.array(map_size[::-1])
    keypoints[..., :2] = picture.back(keypoints[..., :2] * size)
    return [(person.ravel().tolist(), float(scores[at])) for at, person in zip(best, keypoints)]


def _predict(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: EvalConfig,
    *,
    progress: Progress | None,
    device: str | torch.device,
    ids: Sequence[int] | None,
) -> EvalResult:
    """Return the detections and times; the stats stay empty."""
    known = {image_id: index for index, image_id in enumerate(dataset.ids)}
    wanted = list(dataset.ids if ids is None else ids)
    for image_id in wanted:
        if image_id not in known:
            raise InputError(f"the data set has no image with id {image_id}")
    category = int(dataset.ground_truth(wanted[:1])["categories"][0]["id"])
    skeleton = dataset.skeleton
    order = skeleton.grouping_order
    target = torch.device(device)
    found: list[list[tuple[list[float], float]]] = [[] for _ in wanted]
    seconds_network = seconds_decode = 0.0
    done = 0
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        for batch in _batches(dataset, [known[image_id] for image_id in wanted], config):
            images = normalise(np.stack([picture.image for picture in batch])).to(target)
            start = time.perf_counter()
            det, tags = predict_maps(network, images, skeleton.flip_index, config)
            if det.shape[1] != len(skeleton.joints):
                raise InputError(
                    f"the network finds {det.shape[1]} joints, but the data set's skeleton '{skeleton.name}' "
                    f"has {len(skeleton.joints)}; read the data set with the network's skeleton"
                )
            heat, tag = det.cpu().numpy(), tags.cpu().numpy()
            middle = time.perf_counter()
            for slot, picture in enumerate(batch):
                people, scores = decode(heat[slot], tag[slot], config.grouping, order)
                found[picture.position] = _results(
                    people, scores, picture, (heat.shape[2], heat.shape[3]), config.max_detections
                )
            seconds_network += middle - start
            seconds_decode += time.perf_counter() - middle
            done += len(batch)
            if progress is not None:
                progress(done, len(wanted))
    finally:
        for module, training in modes:
            module.training = training
    detections = [
        {"image_id": image_id, "category_id": category, "keypoints": keypoints, "score": score}
        for image_id, each in zip(wanted, found)
        for keypoints, score in each
    ]
    return EvalResult({}, detections, len(wanted), seconds_network, seconds_decode)


def predict_dataset(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: EvalConfig,
    *,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    ids: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Find the people in a data set's images.

    Images of equal evaluated size run through the network together; results do not depend on
    ``batch_size`` beyond rounding. The network is put in eval mode meanwhile.

    Parameters
    ----------
    network
        Returns ``(quarter, half)`` maps, see :func:`predict_maps`; it must lie on ``device``.
    dataset
        Images and skeleton.
    config
        Resolution, flip test, grouping.
    progress
        Called after each batch with the images done and the images in all.
    device
        Where the network runs.
    ids
        Image ids; by default all.

    Returns
    -------
    list of dict
        COCO results, by image in the order of ``ids``, then by falling score: ``image_id``,
        ``category_id``, ``keypoints`` (x, y, value per joint, pixels of the original image), ``score``.

    Raises
    ------
    InputError
        If an id is unknown, an image cannot be read, or the network's joints are not the data set's.
    """
    return _predict(network, dataset, config, progress=progress, device=device, ids=ids).detections


def evaluate(
    network: nn.Module,
    dataset: EvaluationDataset,
    config: EvalConfig,
    *,
    joints: Sequence[int] | None = None,
    protocol: ScoringProtocol = "coco",
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    ids: Sequence[int] | None = None,
) -> EvalResult:
    """Find the people in a data set's images and score them against its annotations.

    Parameters
    ----------
    network, dataset, config, progress, device, ids
        As for :func:`predict_dataset`.
    joints
        Joints that are scored; by default those that the data set annotates.
    protocol
        ``coco`` or ``crowdpose``, see :func:`keypoint_ap`.

    Raises
    ------
    InputError
        As :func:`predict_dataset` and :func:`keypoint_ap` do.
    """
    if joints is None and not np.all(dataset.labelled):
        joints = [int(joint) for joint in np.flatnonzero(dataset.labelled)]
    truth = dataset.ground_truth(ids)
    result = _predict(network, dataset, config, progress=progress, device=device, ids=ids)
    stats = keypoint_ap(
        truth, result.detections, dataset.skeleton.sigmas, joints, protocol, config.max_detections
    )
    return EvalResult(stats, result.detections, result.images, result.seconds_network, result.seconds_decode)


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
