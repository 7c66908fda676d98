"""From heatmaps and tags to people: peak picking, grouping by associative embedding, refinement.

The conventions are HigherHRNet's and LitePose's (arXiv 1908.10357 and 2205.01271, their published test
settings); the code works on whole arrays. Every stage is a function of its own:
:func:`find_peaks` -> :func:`match` -> :func:`adjust` -> :func:`person_scores` -> :func:`refine`;
:func:`decode` runs them all.

Coordinates are pixels of the map. Peaks and matches carry integer pixel indices; adjusted and refined
joints lie in the continuous frame in which pixel ``i`` covers ``[i, i + 1)``, so a map coordinate times
(image size / map size) is the image coordinate of that frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from search_spaces.errors import InputError

__all__ = ["GroupingConfig", "adjust", "decode", "find_peaks", "match", "person_scores", "refine"]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

# Refinement looks for a missing joint among the pixels above these values first. On LitePose-M's maps of 92
# photos 9% of the missing joints (24% with flip test) remain for the whole map after the second.
_REFINE_LEVELS = (0.05, 0.002)


@dataclass(frozen=True)
class GroupingConfig:
    """How people are put together from peaks.

    Attributes
    ----------
    max_people
        Peaks kept per joint, and people that a joint may be matched to.
    nms_kernel
        Odd side in pixels of the window in which a peak must be the maximum.
    detection_threshold
        Peaks at or below it are dropped.
    tag_threshold
        A joint joins a person only if its tag is nearer than this to the person's mean tag.
    use_detection_value
        Whether matching rounds tag distances, so that the peaks' scores decide among near ones.
    ignore_too_much
        Whether joints are dropped, rather than opening further people, once there are ``max_people``.
    adjust
        Whether peaks move a quarter pixel toward the higher neighbour, then to the pixel's centre.
    refine
        Whether joints that a person misses are filled in from the heatmaps.
    """

    max_people: int = 30
    nms_kernel: int = 5
    detection_threshold: float = 0.1
    tag_threshold: float = 1.0
    use_detection_value: bool = True
    ignore_too_much: bool = False
    adjust: bool = True
    refine: bool = True

    def __post_init__(self) -> None:
        if self.max_people < 1:
            raise InputError(f"grouping: max_people must be at least 1, not {self.max_people}")
        if self.nms_kernel < 1 or self.nms_kernel % 2 == 0:
            raise InputError(f"grouping: nms_kernel must be odd and positive, not {self.nms_kernel}")
        if not self.detection_threshold >= 0.0:
            raise InputError(
                f"grouping: detection_threshold must be at least 0, not {self.detection_threshold}"
            )
        if not self.tag_threshold > 0.0:
            raise InputError(f"grouping: tag_threshold must be positive, not {self.tag_threshold}")


def find_peaks(
    det: FloatArray, tags: FloatArray, config: GroupingConfig | None = None
) -> tuple[FloatArray, IntArray, FloatArray]:
    """Return the highest local maxima of each joint's heatmap.

    A pixel is a peak if none in its ``nms_kernel`` window is higher and it is above the detection
    threshold. Of pixels of equal height within one window (a plateau) the first is taken.

    Parameters
    ----------
    det
        Heatmaps (J, H, W).
    tags
        Tags (J, H, W, T).
    config
        ``max_people`` (K), ``nms_kernel`` and ``detection_threshold`` are used.

    Returns
    -------
    val_k, loc_k, tag_k
        Values (J, K), falling; positions (J, K, 2) as x, y; tags (J, K, T). Rows beyond a joint's last
        peak are 0.
    """
    config = config or GroupingConfig()
    joints = len(det)
    keep = config.max_people
    val_k = np.zeros((joints, keep), np.float32)
    loc_k = np.zeros((joints, keep, 2), np.int64)
    tag_k = np.zeros((joints, keep, tags.shape[3]), np.float32)
    window = np.ones((config.nms_kernel, config.nms_kernel), np.uint8)
    for joint in range(joints):
        heat = np.ascontiguousarray(det[joint], dtype=np.float32)
        highest = np.asarray(cv2.dilate(heat, window))
        # Of a row of pixels in memory: far quicker than np.nonzero in two dimensions.
        at = np.flatnonzero((heat == highest) & (heat > config.detection_threshold))
        y, x = np.divmod(at, heat.shape[1])
        value = heat[y, x]
        order = np.argsort(-value, kind="stable")[: 4 * keep]
        value, x, y = value[order], x[order], y[order]
        if (value[1:] == value[:-1]).any():
            first = _first_of_plateaus(value, x, y, config.nms_kernel // 2)
            value, x, y = value[first], x[first], y[first]
        value, x, y = value[:keep], x[:keep], y[:keep]
        found = len(value)
        val_k[joint, :found] = value
        loc_k[joint, :found, 0] = x
        loc_k[joint, :found, 1] = y
        tag_k[joint, :found] = tags[joint, y, x]
    return val_k, loc_k, tag_k


def _first_of_plateaus(value: FloatArray, x: IntArray, y: IntArray, reach: int) -> NDArray[np.bool_]:
    """Mark the peaks that have no equal, earlier kept peak within ``reach`` pixels."""
    near = (
        (value[:, None] == value[None, :])
        & (np.abs(x[:, None] - x[None, :]) <= reach)
        & (np.abs(y[:, None] - y[None, :]) <= reach)
    )
    kept = np.zeros(len(value), bool)
    for index in range(len(value)):
        kept[index] = not (near[index, :index] & kept[:index]).any()
    return kept


def match(
    val_k: FloatArray,
    loc_k: IntArray,
    tag_k: FloatArray,
    config: GroupingConfig | None = None,
    joint_order: Sequence[int] | None = None,
) -> FloatArray:
    """Group peaks into people, joint by joint, by an optimal assignment on tag distance.

    For each joint in ``joint_order`` the cost of giving a peak to a person is ``round(|tag - mean tag of
    the person|) * 100 - value``, or the plain distance without ``use_detection_value``. Peaks left over or
    farther than ``tag_threshold`` open new people.

    Parameters
    ----------
    val_k, loc_k, tag_k
        Peaks, as :func:`find_peaks` returns them.
    config
        Thresholds.
    joint_order
        Permutation of the joints: which are grouped first. By default 0, 1, 2, ...

    Returns
    -------
    people
        (P, J, 3 + T): x, y (pixel indices), value, tags; zeros where a person lacks a joint.

    Raises
    ------
    InputError
        If ``joint_order`` is not a permutation of the joints.
    """
    config = config or GroupingConfig()
    joints, _, dims = tag_k.shape
    order = range(joints) if joint_order is None else [int(joint) for joint in joint_order]
    if sorted(order) != list(range(joints)):
        raise InputError(f"a joint order lists each of the {joints} joints once, not {list(order)}")

    counts = (val_k > config.detection_threshold).sum(axis=1)
    people = np.zeros((int(counts.sum()), joints, 3 + dims), np.float32)
    tag_sum = np.zeros((len(people), dims))
    tag_count = np.zeros((len(people), 1))
    total = 0
    for joint in order:
        found = int(counts[joint])
        if not found or (config.ignore_too_much and total >= config.max_people):
            continue
        tags = tag_k[joint, :found].astype(np.float64)
        owner = np.full(found, -1)
        grouped = min(total, config.max_people)
        if grouped:
            mean = tag_sum[:grouped] / tag_count[:grouped]
            distance = np.sqrt(np.square(tags[:, None] - mean[None]).sum(axis=2))
            cost = distance
            if config.use_detection_value:
                # Rounded costs tie often. Ties are left to the (deterministic) solver, whose choice is by
                # rank; going by the plain distance cost .005 to .008 AP on 92 COCO val images.
                cost = np.round(distance) * 100.0 - val_k[joint, :found, None]
            rows, columns = linear_sum_assignment(cost)
            near = distance[rows, columns] < config.tag_threshold
            owner[rows[near]] = columns[near]
        new = owner < 0
        owner[new] = total + np.arange(new.sum())
        total += int(new.sum())
        people[owner, joint, :2] = loc_k[joint, :found]
        people[owner, joint, 2] = val_k[joint, :found]
        people[owner, joint, 3:] = tag_k[joint, :found]
        tag_sum[owner] += tags
        tag_count[owner] += 1.0
    return people[:total]


def _toward_higher(
    det: FloatArray, joint: IntArray, x: IntArray, y: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return the centre of each pixel moved a quarter pixel toward its higher neighbour in x and in y."""
    height, width = det.shape[1:]
    right = det[joint, y, np.minimum(x + 1, width - 1)] > det[joint, y, np.maximum(x - 1, 0)]
    below = det[joint, np.minimum(y + 1, height - 1), x] > det[joint, np.maximum(y - 1, 0), x]
    return (
        (x + np.where(right, 0.75, 0.25)).astype(np.float32),
        (y + np.where(below, 0.75, 0.25)).astype(np.float32),
    )


def adjust(people: FloatArray, det: FloatArray) -> FloatArray:
    """Move each found joint a quarter pixel toward its higher neighbours, then to the pixel's centre (+.5).

    Parameters
    ----------
    people
        (P, J, 3 + T) from :func:`match`.
    det
        Heatmaps (J, H, W).
    """
    moved = people.copy()
    person, joint = np.nonzero(people[:, :, 2] > 0)
    x, y = people[person, joint, :2].astype(np.int64).T
    moved[person, joint, 0], moved[person, joint, 1] = _toward_higher(det, joint, x, y)
    return moved


def refine(people: FloatArray, det: FloatArray, tags: FloatArray) -> FloatArray:
    """Fill in the joints that people lack, from the pixels whose tags fit them best.

    A missing joint is looked for at ``argmax(det - round(|tag - mean tag of the person's joints|))`` and
    taken (with a quarter-pixel shift) if the heatmap is positive there. Its tags stay 0.

    Parameters
    ----------
    people
        (P, J, 3 + T) from :func:`match` or :func:`adjust`.
    det
        Heatmaps (J, H, W).
    tags
        Tags (J, H, W, T).
    """
    filled = people.copy()
    found = people[:, :, 2] > 0
    counts = found.sum(axis=1)
    missing = ~found & (counts > 0)[:, None]
    mean = (people[:, :, 3:] * found[:, :, None]).sum(axis=1) / np.maximum(counts, 1)[:, None]
    mean = mean.astype(np.float32)
    joints, _, width = det.shape
    planes = [tags[:, :, :, t].reshape(joints, -1) for t in range(tags.shape[3])]
    heat = det.reshape(joints, -1)
    for joint in np.flatnonzero(missing.any(axis=0)):
        person = np.flatnonzero(missing[:, joint])
        best = _best_pixels(heat[joint], [plane[joint] for plane in planes], mean[person])
        value = heat[joint, best]
        person, best, value = person[value > 0], best[value > 0], value[value > 0]
        x, y = _toward_higher(det, np.full(len(best), joint), best % width, best // width)
        filled[person, joint, 0] = x
        filled[person, joint, 1] = y
        filled[person, joint, 2] = value
    return filled


def _best_pixels(heat: FloatArray, planes: Sequence[FloatArray], mean: FloatArray) -> IntArray:
    """Return, for each person, the first pixel with the highest ``heat - round(|tag - mean|)``.

    A pixel's score is at most its heat. So whenever the best among the pixels above some level scores
    above that level it is the best of the whole map, and only the few pixels above it are looked at.

    Parameters
    ----------
    heat
        (H * W,).
    planes
        T arrays (H * W,), the tags.
    mean
        (P, T), the people's mean tags.
    """
    best = np.zeros(len(mean), np.int64)
    waiting = np.arange(len(mean))
    for level in _REFINE_LEVELS:
        pixels = np.flatnonzero(heat > level)
        if not len(pixels):
            continue
        at, score = _fit(heat[pixels], [plane[pixels] for plane in planes], mean[waiting])
        sure = score > level
        best[waiting[sure]] = pixels[at[sure]]
        waiting = waiting[~sure]
        if not len(waiting):
            return best
    for person in waiting:  # one by one, so that temporaries stay in the cache
        at, _ = _fit(heat, planes, mean[person, None])
        best[person] = at[0]
    return best


def _fit(heat: FloatArray, planes: Sequence[FloatArray], mean: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return where, and how high, ``heat - round(|tag - mean|)`` is highest for each person."""
    squared = planes[0] - mean[:, 0, None]
    np.square(squared, out=squared)
    for t in range(1, len(planes)):
        further = planes[t] - mean[:, t, None]
        squared += np.square(further, out=further)
    score = np.rint(np.sqrt(squared, out=squared), out=squared)
    np.subtract(heat, score, out=score)
    at = score.argmax(axis=1)
    return at, score[np.arange(len(at)), at]


def person_scores(people: FloatArray) -> FloatArray:
    """Return each person's score: the mean over all joints of the peaks' values, missing ones counting 0.

    Parameters
    ----------
    people
        (P, J, 3 + T), not yet refined: joints filled in later do not raise the score.
    """
    scores: FloatArray = people[:, :, 2].mean(axis=1)
    return scores


def decode(
    det: FloatArray,
    tags: FloatArray,
    config: GroupingConfig | None = None,
    joint_order: Sequence[int] | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return the people in one image's maps.

    Parameters
    ----------
    det
        Heatmaps (J, H, W).
    tags
        Tags (J, H, W, T).
    config
        Thresholds and stages; by default LitePose's.
    joint_order
        Permutation of the joints in which they are grouped, e.g. ``Skeleton.grouping_order``. By default
        0, 1, 2, ...

    Returns
    -------
    people, scores
        (P, J, 3 + T): x, y in map pixels (see the module's note on frames), value, tags; and (P,). Both
        have P = 0 if there is nobody.

    Raises
    ------
    InputError
        If shapes disagree or ``joint_order`` is not a permutation of the joints.
    """
    config = config or GroupingConfig()
    if det.ndim != 3 or tags.ndim != 4 or tags.shape[:3] != det.shape:
        raise InputError(
            f"heatmaps and tags must be (J, H, W) and (J, H, W, T), not {det.shape} and {tags.shape}"
        )
    people = match(*find_peaks(det, tags, config), config, joint_order)
    if config.adjust:
        people = adjust(people, det)
    scores = person_scores(people)
    if config.refine:
        people = refine(people, det, tags)
    return people, scores
