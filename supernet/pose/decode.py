"""From heatmaps and tags to people: peak picking, grouping by associative embedding, refinement.

The conventions are HigherHRNet's and LitePose's (arXiv 1908.10357 and 2205.01271, their published test
settings); the code works on whole arrays. Every stage is a function of its own:
:func:`find_peaks` -> :func:`match` -> :func:`adjust` -> :func:`person_scores` -> :func:`refine`;
:func:`decode` runs them all.

Coordinates are pixels of the map. Peaks and matches carry integer pixel indices; adjusted and refined
joints lie in the continuous frame in which pixel ``i`` covers ``[i, i + 1)``, so a map coordinate times
(image size / map size) is the image coordinate of that frame. A peak that is exactly pixel ``i``'s lies at
``i + 0.5`` in it, whatever the adjustment: training draws a joint's Gaussian around the pixel that the joint
lies in (:mod:`supernet.pose.targets` truncates), which is half a pixel less than the joint on average.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from search_spaces.errors import InputError

__all__ = [
    "Adjustment",
    "GroupingConfig",
    "adjust",
    "decode",
    "decode_batch",
    "find_peaks",
    "match",
    "newton_steps",
    "person_scores",
    "refine",
]

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
Adjustment = Literal["none", "quarter", "dark"]

# Above this share of pixels over the threshold, maxima are found by dilating whole maps.
_CROWDED: Final = 1 / 16
# Refinement looks for missing joints among the highest of a map's pixels first: these shares of them.
_SHARES: Final = (1 / 64, 1 / 16)
# Above this share of a map's pixels it is quicker to look at all of them.
_MANY: Final = 1 / 8
# Pixels of a map that are sampled to find the values which these shares lie above.
_SAMPLES: Final = 2048
# Pixels below each other that are judged together where these shares did not do.
_TALL: Final = 16
# Numbers in a temporary array of refinement: small enough for the cache.
_AT_ONCE: Final = 1 << 17


@dataclass(frozen=True)
class GroupingConfig:
    """How people are put together from peaks.

    Attributes
    ----------
    max_people
        Peaks kept per joint. People are not limited: different joints may show different ones.
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
        Where in its pixel a joint lies: ``none`` (at the centre), ``quarter`` (a quarter pixel from there
        toward the higher neighbours) or ``dark`` (at the top of a Gaussian through the surroundings, see
        :func:`adjust`).
    sigma
        Standard deviation in map pixels of the Gaussians that ``dark`` expects: those of training, times the
        ratio of the map's side to the side of the maps trained on.
    refine
        Whether joints that a person misses are filled in from the heatmaps.
    """

    max_people: int = 30
    nms_kernel: int = 5
    detection_threshold: float = 0.1
    tag_threshold: float = 1.0
    use_detection_value: bool = True
    ignore_too_much: bool = False
    adjust: Adjustment = "quarter"
    sigma: float = 2.0
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
        if self.adjust not in get_args(Adjustment):
            raise InputError(
                f"grouping: adjust is one of {', '.join(get_args(Adjustment))}, not {self.adjust!r}"
            )
        if not 0.0 < self.sigma <= 100.0:
            raise InputError(f"grouping: sigma lies above 0 and is at most 100 pixels, not {self.sigma}")


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
    joints, height, width = det.shape
    keep, reach = config.max_people, config.nms_kernel // 2
    heat = np.ascontiguousarray(det, dtype=np.float32)
    at = _maxima(heat, config.detection_threshold, reach)
    joint = at // (height * width)
    value = heat.reshape(-1)[at]
    falling = np.lexsort((-value, joint))  # stable: of equal ones the first in the map
    at, joint, value = at[falling], joint[falling], value[falling]
    rank = _ranks(joint, joints)
    # A plateau has many maxima; that of a flat map would be quadratic work.
    few = rank < 4 * keep
    at, joint, value = at[few], joint[few], value[few]
    y, x = np.divmod(at - joint * (height * width), width)
    first = np.ones(len(at), bool)
    for twice in np.unique(joint[1:][(value[1:] == value[:-1]) & (joint[1:] == joint[:-1])]):
        own = joint == twice
        first[own] = _first_of_plateaus(value[own], x[own], y[own], reach)
    joint, y, x, value = joint[first], y[first], x[first], value[first]
    rank = _ranks(joint, joints)
    best = rank < keep
    joint, y, x, value, rank = joint[best], y[best], x[best], value[best], rank[best]
    val_k = np.zeros((joints, keep), np.float32)
    loc_k = np.zeros((joints, keep, 2), np.int64)
    tag_k = np.zeros((joints, keep, tags.shape[3]), np.float32)
    val_k[joint, rank] = value
    loc_k[joint, rank, 0] = x
    loc_k[joint, rank, 1] = y
    tag_k[joint, rank] = tags[joint, y, x]
    return val_k, loc_k, tag_k


def _maxima(heat: FloatArray, threshold: float, reach: int) -> IntArray:
    """Return where (J, H, W) is above the threshold and nothing within ``reach`` is higher: flat, rising.

    Few pixels of a network's maps are above the threshold, so only they are looked at: first each against
    its four neighbours, which leaves little, then against the rest of the window.
    """
    _, height, width = heat.shape
    flat = heat.reshape(-1)
    at = np.flatnonzero(flat > threshold)
    if len(at) > _CROWDED * flat.size:
        window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
        highest = np.stack([np.asarray(cv2.dilate(plane, window)) for plane in heat]).reshape(-1)
        crowded: IntArray = at[flat[at] == highest[at]]
        return crowded
    if reach == 0:
        return at
    for step, place, last in ((1, 1, width - 1), (width, width, height - 1)):
        for sign, end in ((1, last), (-1, 0)):
            inside = at // place % (last + 1) != end
            at = at[flat[at] >= flat[at + sign * step * inside]]
    joint, pixel = np.divmod(at, height * width)
    y, x = np.divmod(pixel, width)
    dy, dx = (side.reshape(-1) for side in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    rest = np.abs(dy) + np.abs(dx) > 1
    rows = np.clip(y[:, None] + dy[rest], 0, height - 1)
    columns = np.clip(x[:, None] + dx[rest], 0, width - 1)
    around = flat[(joint[:, None] * height + rows) * width + columns]
    peaks: IntArray = at[(flat[at][:, None] >= around).all(axis=1)]
    return peaks


def _ranks(joint: IntArray, joints: int) -> IntArray:
    """Return each entry's place among those of its joint; entries are sorted by joint."""
    starts = np.searchsorted(joint, np.arange(joints))
    ranks: IntArray = np.arange(len(joint)) - starts[joint]
    return ranks


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
        if total:
            mean = tag_sum[:total] / tag_count[:total]
            distance = np.sqrt(np.square(tags[:, None] - mean[None]).sum(axis=2))
            cost = distance
            if config.use_detection_value:
                # Rounded costs tie often. Ties are left to the (deterministic) solver, whose choice is by
                # rank; going by the plain distance cost .005 to .013 AP on 191 COCO train images.
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


_Place = Callable[[FloatArray, IntArray, IntArray, IntArray, GroupingConfig], tuple[FloatArray, FloatArray]]
"""From heatmaps (J, H, W), the joint and the pixel x, y of each point to its place in the frame."""


def _centre(
    det: FloatArray, joint: IntArray, x: IntArray, y: IntArray, config: GroupingConfig
) -> tuple[FloatArray, FloatArray]:
    """Return the centre of each pixel."""
    return (x + 0.5).astype(np.float32), (y + 0.5).astype(np.float32)


def _toward_higher(
    det: FloatArray, joint: IntArray, x: IntArray, y: IntArray, config: GroupingConfig
) -> tuple[FloatArray, FloatArray]:
    """Return the centre of each pixel moved a quarter pixel toward its higher neighbour in x and in y."""
    height, width = det.shape[1:]
    right = det[joint, y, np.minimum(x + 1, width - 1)] > det[joint, y, np.maximum(x - 1, 0)]
    below = det[joint, np.minimum(y + 1, height - 1), x] > det[joint, np.maximum(y - 1, 0), x]
    return (
        (x + np.where(right, 0.75, 0.25)).astype(np.float32),
        (y + np.where(below, 0.75, 0.25)).astype(np.float32),
    )


def _dark(
    det: FloatArray, joint: IntArray, x: IntArray, y: IntArray, config: GroupingConfig
) -> tuple[FloatArray, FloatArray]:
    """Return the top of a Gaussian at each pixel, found by one Newton step (see :func:`adjust`)."""
    moved_x, moved_y = _toward_higher(det, joint, x, y, config)
    step_x, step_y, sure = newton_steps(det, joint, x, y, config.sigma)
    moved_x = np.where(sure, x + 0.5 + step_x, moved_x).astype(np.float32)
    moved_y = np.where(sure, y + 0.5 + step_y, moved_y).astype(np.float32)
    return moved_x, moved_y


def newton_steps(
    maps: FloatArray, plane: IntArray, x: IntArray, y: IntArray, sigma: float, *, reflect: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return the steps from peaks to the tops of the Gaussians that they are samples of (arXiv 1910.06278).

    The map is blurred with a Gaussian of ``sigma``, clipped at 1e-10, its logarithm expanded to second order,
    and the step is ``-H^-1 g``. Only windows around the peaks are blurred.

    Parameters
    ----------
    maps
        Heatmaps (M, H, W).
    plane, x, y
        Which map, column and row of each of S peaks, (S,).
    sigma
        Standard deviation of the blur in pixels.
    reflect
        What lies beyond the border. By default the border's values go on. With ``reflect`` the window is
        continued by what lies on the other side of the peak, as a Gaussian about it would: on drawn ones the
        error 2 to 3 pixels from the border is then a fifth, and steps at the border can be believed, too.

    Returns
    -------
    step_x, step_y, sure
        (S,) each. Steps are to be believed where ``sure``: where H is negative definite, so that there is a
        top, no farther than ``sigma`` in x or y, and the peak is more than a pixel away from the border (or
        ``reflect``).
    """
    height, width = maps.shape[1:]
    # Blurring is linear and separable: each window (S, k, k) becomes the (S, 5, 5) that derivatives need.
    margin = int(2.5 * sigma + 0.5)
    weights = np.exp(-0.5 * np.square(np.arange(-margin, margin + 1) / sigma))
    blur = np.zeros((5, 2 * margin + 5), np.float32)
    for row in range(5):
        blur[row, row : row + 2 * margin + 1] = weights / weights.sum()
    offsets = np.arange(-margin - 2, margin + 3)
    flat = np.ascontiguousarray(maps, dtype=np.float32).reshape(-1)
    steps_x, steps_y = np.zeros((2, len(plane)))
    sure = np.zeros(len(plane), np.bool_)
    at_once = max(1, _AT_ONCE // len(offsets) ** 2)
    for start in range(0, len(plane), at_once):
        part = slice(start, start + at_once)
        rows = _around(y[part, None], offsets, height, reflect)
        columns = _around(x[part, None], offsets, width, reflect)
        windows = flat[((plane[part, None] * height + rows) * width)[:, :, None] + columns[:, None, :]]
        # Two products of large matrices, not one of small ones for every window.
        lines = (windows.reshape(-1, len(offsets)) @ blur.T).reshape(len(rows), len(offsets), 5)
        smooth = (blur @ lines.swapaxes(0, 1).reshape(len(offsets), -1)).reshape(5, len(rows), 5)
        h = np.log(np.maximum(smooth.swapaxes(0, 1), 1e-10)).astype(np.float64)
        dx, dy = (h[:, 2, 3] - h[:, 2, 1]) / 2, (h[:, 3, 2] - h[:, 1, 2]) / 2
        dxx = (h[:, 2, 4] - 2 * h[:, 2, 2] + h[:, 2, 0]) / 4
        dyy = (h[:, 4, 2] - 2 * h[:, 2, 2] + h[:, 0, 2]) / 4
        dxy = (h[:, 3, 3] - h[:, 3, 1] - h[:, 1, 3] + h[:, 1, 1]) / 4
        curvature = dxx * dyy - dxy * dxy
        peaked = (dxx < 0) & (curvature > 0)  # H is negative definite: there is a top
        curvature = np.where(peaked, curvature, 1.0)
        step_x, step_y = (dxy * dy - dyy * dx) / curvature, (dxy * dx - dxx * dy) / curvature
        inner = (x[part] > 1) & (x[part] < width - 2) & (y[part] > 1) & (y[part] < height - 2)
        sure[part] = (reflect | inner) & peaked & (np.maximum(np.abs(step_x), np.abs(step_y)) <= sigma)
        steps_x[part], steps_y[part] = step_x, step_y
    return steps_x, steps_y, sure


def _around(peak: IntArray, offsets: IntArray, side: int, reflect: bool) -> IntArray:
    """Return rows or columns at the offsets (k,) from peaks (S, 1), all inside the map: (S, k)."""
    places = peak + offsets
    if reflect:
        places = np.where((places < 0) | (places >= side), peak - offsets, places)
    inside: IntArray = np.clip(places, 0, side - 1)
    return inside


_PLACES: Final[Mapping[Adjustment, _Place]] = MappingProxyType(
    {"none": _centre, "quarter": _toward_higher, "dark": _dark}
)


def adjust(people: FloatArray, det: FloatArray, config: GroupingConfig | None = None) -> FloatArray:
    """Move each found joint from its pixel's index to its place in the continuous frame.

    ``none`` is the pixel's centre (+.5), ``quarter`` a quarter pixel from there toward the higher neighbour
    in x and in y. ``dark`` (arXiv 1910.06278) takes the surroundings for a Gaussian: the
    heatmap is blurred with the Gaussian of training, clipped at 1e-10, its logarithm expanded to second order
    and the top found by a Newton step ``-H^-1 g``. Where that is no maximum, farther than ``sigma``, or the
    peak lies within two pixels of the border, ``quarter`` holds. Only windows around the peaks are blurred.

    Parameters
    ----------
    people
        (P, J, 3 + T) from :func:`match`.
    det
        Heatmaps (J, H, W).
    config
        ``adjust`` and ``sigma`` are used.
    """
    config = config or GroupingConfig()
    moved = people.copy()
    person, joint = np.nonzero(people[:, :, 2] > 0)
    x, y = people[person, joint, :2].astype(np.int64).T
    moved[person, joint, 0], moved[person, joint, 1] = _PLACES[config.adjust](det, joint, x, y, config)
    return moved


def refine(
    people: FloatArray, det: FloatArray, tags: FloatArray, config: GroupingConfig | None = None
) -> FloatArray:
    """Fill in the joints that people lack, from the pixels whose tags fit them best.

    A missing joint is looked for at ``argmax(det - round(|tag - mean tag of the person's joints|))`` and
    taken (adjusted as the others are) if the heatmap is positive there. Its tags stay 0.

    Parameters
    ----------
    people
        (P, J, 3 + T) from :func:`match` or :func:`adjust`.
    det
        Heatmaps (J, H, W).
    tags
        Tags (J, H, W, T).
    config
        ``adjust`` and ``sigma`` are used.
    """
    config = config or GroupingConfig()
    filled = people.copy()
    found = people[:, :, 2] > 0
    counts = found.sum(axis=1)
    joint, person = np.nonzero((~found & (counts > 0)[:, None]).T)
    if not len(joint):
        return filled
    mean = (people[:, :, 3:] * found[:, :, None]).sum(axis=1) / np.maximum(counts, 1)[:, None]
    mean = mean.astype(np.float32)
    joints, _, width = det.shape
    heat = np.ascontiguousarray(det, dtype=np.float32).reshape(joints, -1)
    planes = [tags[:, :, :, t].reshape(joints, -1) for t in range(tags.shape[3])]
    concerned = np.unique(joint)
    best = np.concatenate(
        [
            _best_pixels(
                heat[each], [plane[each] for plane in planes], width, mean[person[joint == each]], levels
            )
            for each, levels in zip(concerned, _levels(heat, concerned))
        ]
    )
    value = heat[joint, best]
    taken = value > 0
    person, joint, best = person[taken], joint[taken], best[taken]
    x, y = _PLACES[config.adjust](det, joint, best % width, best // width, config)
    filled[person, joint, 0] = x
    filled[person, joint, 1] = y
    filled[person, joint, 2] = value[taken]
    return filled


def _levels(heat: FloatArray, joints: IntArray) -> FloatArray:
    """Return values that about ``_SHARES`` of some joints' pixels reach: (joints, shares), falling."""
    # An odd stride samples every column, too, of maps whose width is even.
    sample = np.sort(heat[:, :: max(1, heat.shape[1] // _SAMPLES) | 1][joints], axis=1)
    count = sample.shape[1]
    levels: FloatArray = sample[:, [count - 1 - int(share * count) for share in _SHARES]]
    return levels


def _best_pixels(
    heat: FloatArray, planes: Sequence[FloatArray], width: int, mean: FloatArray, levels: FloatArray
) -> IntArray:
    """Return, for each person, the first pixel with the highest ``heat - round(|tag - mean|)``.

    A pixel's score is at most its heat. So whenever the best among the pixels that reach some level reaches
    that level too, it is the best of the whole map, and only those few are looked at. Levels decide how long
    the search takes, never what it finds.

    Parameters
    ----------
    heat
        (H * W,).
    planes
        T arrays (H * W,), the tags.
    width
        W.
    mean
        (P, T), the people's mean tags.
    levels
        Falling.
    """
    best = np.zeros(len(mean), np.int64)
    highest = np.full(len(mean), -np.inf, np.float32)
    waiting = np.arange(len(mean))
    for level in levels:
        pixels = np.flatnonzero(heat >= level)
        if not 0 < len(pixels) <= len(heat) * _MANY:  # all values are one, or there is a NaN
            break
        at, highest[waiting] = _fit(heat[pixels], [plane[pixels] for plane in planes], mean[waiting])
        best[waiting] = pixels[at]
        waiting = waiting[highest[waiting] < level]
        if not len(waiting):
            return best
    # The same with columns of a few pixels: none scores above its highest heat with its nearest tag.
    tops = _extremes(heat, width, np.maximum)
    ranges = [(_extremes(p, width, np.minimum), _extremes(p, width, np.maximum)) for p in planes]
    for person in waiting:
        own = mean[person, None]
        nearest = [np.clip(tag, low, high) for tag, (low, high) in zip(own[0], ranges, strict=True)]
        bounds = _scores(tops, nearest, own)[0]
        # The most promising first: it may rule out many.
        for columns in (bounds.argmax(keepdims=True), None):
            if columns is None:
                columns = np.flatnonzero(bounds >= highest[person])
            if len(columns) > len(bounds) * _MANY:
                best[person] = _fit(heat, planes, own)[0][0]
                break
            row, x = np.divmod(columns, width)
            pixels = ((row[:, None] * _TALL + np.arange(_TALL)) * width + x[:, None]).reshape(-1)
            pixels = np.sort(pixels[pixels < len(heat)])
            if len(pixels):
                at, score = _fit(heat[pixels], [plane[pixels] for plane in planes], own)
                best[person], highest[person] = pixels[at[0]], score[0]
    return best


def _extremes(plane: FloatArray, width: int, pick: np.ufunc) -> FloatArray:
    """Return the extremes of columns of ``_TALL`` pixels: (ceil(H / _TALL) * W,)."""
    whole = len(plane) // (_TALL * width) * _TALL * width
    found = [pick.reduce(plane[:whole].reshape(-1, _TALL, width), axis=1)]
    if whole < len(plane):
        found.append(pick.reduce(plane[whole:].reshape(1, -1, width), axis=1))
    extremes: FloatArray = np.concatenate(found).reshape(-1)
    return extremes


def _fit(heat: FloatArray, planes: Sequence[FloatArray], mean: FloatArray) -> tuple[IntArray, FloatArray]:
    """Return where, and how high, ``heat - round(|tag - mean|)`` is highest for each person."""
    best = np.empty(len(mean), np.int64)
    highest = np.empty(len(mean), np.float32)
    at_once = max(1, _AT_ONCE // len(heat))
    for start in range(0, len(mean), at_once):
        some = slice(start, start + at_once)
        score = _scores(heat, planes, mean[some])
        best[some] = score.argmax(axis=1)
        highest[some] = np.take_along_axis(score, best[some, None], axis=1)[:, 0]
    return best, highest


def _scores(heat: FloatArray, planes: Sequence[FloatArray], mean: FloatArray) -> FloatArray:
    """Return ``heat - round(|tag - mean|)`` of every person (rows) and pixel.

    Each step is monotonic in floating point too, so higher heats and nearer tags never score lower.
    """
    squared = planes[0] - mean[:, 0, None]
    np.square(squared, out=squared)
    for t in range(1, len(planes)):
        further = planes[t] - mean[:, t, None]
        squared += np.square(further, out=further)
    score: FloatArray = np.rint(np.sqrt(squared, out=squared), out=squared)
    return np.subtract(heat, score, out=score)


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
    most: int | None = None,
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
    most
        People kept, those with the highest scores first; by default all, as they were found. Scores are known
        before missing joints are filled in, which is most of the work where there are many people; so only
        those kept are filled in.

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
    if det.ndim != 3 or tags.ndim != 4 or tags.shape[:3] != det.shape:
        raise InputError(
            f"heatmaps and tags must be (J, H, W) and (J, H, W, T), not {det.shape} and {tags.shape}"
        )
    config = config or GroupingConfig()
    people = adjust(match(*find_peaks(det, tags, config), config, joint_order), det, config)
    scores = person_scores(people)
    if most is not None:
        best = np.argsort(-scores, kind="stable")[:most]
        people, scores = people[best], scores[best]
    if config.refine:
        people = refine(people, det, tags, config)
    return people, scores


def decode_batch(
    det: FloatArray,
    tags: FloatArray,
    config: GroupingConfig | None = None,
    joint_order: Sequence[int] | None = None,
    most: int | None = None,
) -> list[tuple[FloatArray, FloatArray]]:
    """Return the people of each image of a batch, as :func:`decode` gives them for one.

    Parameters
    ----------
    det
        Heatmaps (N, J, H, W).
    tags
        Tags (N, J, H, W, T).
    config, joint_order, most
        As for :func:`decode`.

    Raises
    ------
    InputError
        As :func:`decode` does.
    """
    if det.ndim != 4 or tags.ndim != 5 or tags.shape[:4] != det.shape:
        raise InputError(
            f"heatmaps and tags of a batch must be (N, J, H, W) and (N, J, H, W, T), not {det.shape} and"
            f" {tags.shape}"
        )
    # One after the other: finding the peaks of all images at once is no quicker, and holds more memory.
    return [decode(heat, tag, config, joint_order, most) for heat, tag in zip(det, tags, strict=True)]
