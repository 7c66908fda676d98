"""Detections matched to people once, and from the matches the AP of any selection of the images.

The matching is that of COCO's evaluation, for all images and OKS thresholds at once. The average precision of
a selection in which images may occur several times then needs only weighted counts along the detections'
order, so that thousands of resamples cost about as much as a few runs of the evaluator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import InputError, did_you_mean
from supernet.pose.scoring import (
    CROWD_LEVELS,
    BoolArray,
    DetectedPeople,
    FloatArray,
    IntArray,
    ScoringProtocol,
    TruePeople,
    read_people,
)

__all__ = ["AREA_RANGES", "OKS_THRESHOLDS", "Matches", "Pairs", "assign", "match_detections", "pair_people"]

OKS_THRESHOLDS: Final = np.linspace(0.5, 0.95, 10)
RECALLS: Final = np.linspace(0.0, 1.0, 101)
"""Recalls at which COCO's evaluation reads the precision."""
AREA_RANGES: Final[Mapping[str, tuple[float, float]]] = MappingProxyType(
    {"all": (0.0, 1e5**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e5**2)}
)
"""COCO's sizes of people, pixels^2; both ends belong to a range."""
_CELLS: Final = 2**17
"""Most elements of an intermediate array: what the cache of a processor core about holds."""


class _Stat(NamedTuple):
    """One figure: its mean over OKS thresholds, the people and the images that it looks at."""

    thresholds: slice
    area: str = "all"
    level: str | None = None
    recall: bool = False


_EVERY, _AT50, _AT75 = slice(None), slice(0, 1), slice(5, 6)
_ALL_SIZES: Final = {
    f"{what}{name}": _Stat(part, recall=what == "AR")
    for what in ("AP", "AR")
    for name, part in (("", _EVERY), ("50", _AT50), ("75", _AT75))
}
_STATS: Final[Mapping[ScoringProtocol, Mapping[str, _Stat]]] = {
    "coco": _ALL_SIZES
    | {
        f"{what}_{size}": _Stat(_EVERY, size, recall=what == "AR")
        for what in ("AP", "AR")
        for size in ("medium", "large")
    },
    "crowdpose": _ALL_SIZES | {f"AP_{level}": _Stat(_EVERY, level=level) for level in CROWD_LEVELS},
}


# -- Similarity and assignment -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Object keypoint similarity of every detection with every person of its image.

    Attributes
    ----------
    order
        (N,): the detections that count (the best of each image) by image, then by falling score.
    first
        (I + 1,): where each image's detections begin in ``order``.
    detection, person
        (pairs,): places in ``order``, and people; by detection, then by person.
    oks
        (pairs,): in 0..1.
    """

    order: IntArray
    first: IntArray
    detection: IntArray
    person: IntArray
    oks: FloatArray


def _starts(groups: IntArray, count: int) -> IntArray:
    """Return where each of ``count`` groups begins among sorted group numbers, and the end."""
    return np.searchsorted(groups, np.arange(count + 1))


def _ranges(lengths: IntArray) -> IntArray:
    """Return 0, 1, .. length - 1 for each of the lengths, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def pair_people(
    truth: TruePeople, found: DetectedPeople, sigmas: FloatArray, max_detections: int = 20
) -> Pairs:
    """Return the similarities within each image, as COCO's evaluation defines them.

    ``OKS = mean over labelled joints of exp(-d^2 / (2 s^2 k^2))`` with the distance d, the person's scale s
    (the root of its area) and ``k = 2 sigma``. For a person without a labelled joint, d is measured from
    its box, enlarged by its own size on every side.

    Parameters
    ----------
    truth, found
        Both sides, with the same J joints.
    sigmas
        (J,).
    max_detections
        Best detections that count per image.
    """
    size = len(truth.image_ids)
    order = np.lexsort((-found.score, found.image))  # stable: equal scores stay in the order given
    first = _starts(found.image[order], size)
    rank = np.arange(len(order)) - first[found.image[order]]
    order = order[rank < max_detections]
    image = found.image[order]
    people = np.argsort(truth.image, kind="stable")
    begin = _starts(truth.image[people], size)
    lengths = (begin[1:] - begin[:-1])[image]
    detection = np.repeat(np.arange(len(order)), lengths)
    person = people[np.repeat(begin[image], lengths) + _ranges(lengths)]
    oks = np.zeros(len(detection))
    labelled = (truth.keypoints[..., 2] > 0).sum(axis=1)
    for count in np.unique(labelled[person]):
        # People with equally many labelled joints together: their means add up in the evaluator's order.
        for part in _parts(np.flatnonzero(labelled[person] == count), truth.keypoints.shape[1]):
            points = found.keypoints[order[detection[part]]]
            oks[part] = _similarity(truth, person[part], points, sigmas, int(count))
    return Pairs(order, _starts(image, size), detection, person, oks)


def _similarity(
    truth: TruePeople, people: IntArray, points: FloatArray, sigmas: FloatArray, count: int
) -> FloatArray:
    """Return the OKS (n,) of points (n, J, 2) with people who have ``count`` labelled joints."""
    keypoints = truth.keypoints[people]
    with np.errstate(over="ignore"):  # infinitely far is far
        if count == 0:
            chosen = np.broadcast_to(np.arange(len(sigmas)), points.shape[:2])
            squared = _outside(points, truth.box[people])
        else:
            chosen = np.argsort(keypoints[..., 2] <= 0, axis=1, kind="stable")[:, :count]
            offset = np.take_along_axis(points - keypoints[..., :2], chosen[..., None], axis=1)
            squared = offset[..., 0] ** 2 + offset[..., 1] ** 2
        exponent = squared / (sigmas[chosen] * 2) ** 2 / (truth.area[people, None] + np.spacing(1)) / 2
    return np.asarray(np.exp(-exponent).sum(axis=1) / squared.shape[1], np.float64)


def _parts(items: IntArray, width: int) -> Iterator[IntArray]:
    """Yield the items in parts that, with ``width`` numbers for each, are no larger than ``_CELLS``."""
    step = max(1, _CELLS // width)
    for start in range(0, len(items), step):
        yield items[start : start + step]


def _outside(points: FloatArray, box: FloatArray) -> FloatArray:
    """Return the squared distances (n, J) of points (n, J, 2) from enlarged boxes (n, 4)."""
    corner, size = box[:, None, :2], box[:, None, 2:]
    beyond = np.maximum(corner - size - points, 0) + np.maximum(points - (corner + size * 2), 0)
    return np.asarray(beyond[..., 0] ** 2 + beyond[..., 1] ** 2)


def assign(
    truth: TruePeople,
    pairs: Pairs,
    thresholds: FloatArray = OKS_THRESHOLDS,
    areas: Sequence[str] = ("all",),
) -> NDArray[np.int32]:
    """Give each detection the person that it is, greedily by score, as COCO's evaluation does.

    In falling score, a detection takes the most similar free person of at least the threshold (of equal ones
    the last). People who are ignored, or whose area is out of the range, are taken only where no other is;
    crowds stay free.

    Returns
    -------
    (areas, thresholds, N): indices of people, or -1, in the order of ``pairs.order``.
    """
    count, size = len(pairs.order), len(pairs.first) - 1
    partner = np.full((len(areas), len(thresholds), count), -1, np.int32)
    held = np.array([AREA_RANGES[name] for name in areas])
    limits = np.minimum(thresholds, 1 - 1e-10)
    outside = (truth.area[:, None] < held[:, 0]) | (truth.area[:, None] > held[:, 1])
    ignored = truth.ignored[:, None] | outside  # (P, areas)
    detections = pairs.first[1:] - pairs.first[:-1]
    begin = _starts(pairs.detection, count)
    people = np.zeros(size, np.int64)
    with_any = np.flatnonzero(detections)
    people[with_any] = (begin[1:] - begin[:-1])[pairs.first[with_any]]
    images = np.flatnonzero(people)
    images = images[np.argsort(people[images], kind="stable")]  # images of like size share an array
    start = 0
    while start < len(images):
        each = len(areas) * len(thresholds) * people[images[start:]] * np.arange(1, len(images) - start + 1)
        stop = start + max(1, int(np.searchsorted(each, _CELLS, side="right")))
        block = images[start:stop]
        block = block[np.argsort(-detections[block], kind="stable")]
        _assign_block(partner, pairs, block, begin, people, detections, ignored, truth.crowd, limits)
        start = stop
    return partner


def _assign_block(
    partner: NDArray[np.int32],
    pairs: Pairs,
    block: IntArray,
    begin: IntArray,
    people: IntArray,
    detections: IntArray,
    ignored: BoolArray,
    crowd: BoolArray,
    limits: FloatArray,
) -> None:
    """Assign the detections of some images, those with most detections first, rank by rank."""
    areas, thresholds, _ = partner.shape
    most = int(people[block].max())
    column = np.arange(most)
    exists = column < people[block, None]
    at = np.where(exists, begin[pairs.first[block], None] + column, 0)
    whom = pairs.person[at]  # (images, most)
    passed_over = ignored[whom].transpose(0, 2, 1)[:, :, None, :]  # (images, areas, 1, most)
    stays = (crowd[whom] & exists)[:, None, None, :]
    free = np.broadcast_to(exists[:, None, None, :], (len(block), areas, thresholds, most)).copy()
    for rank in range(int(detections[block[0]])):
        alive = int(np.searchsorted(-detections[block], -rank))  # images that have so many detections
        place = pairs.first[block[:alive]] + rank
        oks = np.where(
            exists[:alive], pairs.oks[np.where(exists[:alive], begin[place, None] + column, 0)], -1
        )
        near = oks[:, None, None, :]
        good = free[:alive] & (near >= limits[:, None])
        counted = good & ~passed_over[:alive]
        good = np.where(counted.any(axis=-1, keepdims=True), counted, good)
        best = most - 1 - np.argmax(np.where(good, near, -1)[..., ::-1], axis=-1)  # the last of equal ones
        taken = good & (column == best[..., None])
        found = taken.any(axis=-1)
        free[:alive] &= ~taken | stays[:alive]
        chosen = whom[np.arange(alive)[:, None, None], best]
        partner[:, :, place] = np.where(found, chosen, -1).transpose(1, 2, 0)


# -- Average precision of weighted images --------------------------------------------------------------------


@dataclass(frozen=True)
class Matches:
    """Which detections are right at which threshold, on I images with N detections that count.

    Made by :func:`match_detections`.

    Attributes
    ----------
    protocol
        Decides which stats there are.
    image_ids
        (I,): ascending; images without people or detections among them.
    image
        (N,): index of each detection's image. Detections stand by falling score, equal ones by image.
    right, ignored
        (areas, 10, N) for each range of :data:`AREA_RANGES` (CrowdPose: the first) and each OKS threshold:
        detections that found a person who counts, and those that neither help nor harm.
    people
        (areas, I): people who count.
    levels
        CrowdPose's levels as (I,) masks by name; empty under COCO's protocol.
    """

    protocol: ScoringProtocol
    image_ids: IntArray
    image: IntArray
    right: BoolArray
    ignored: BoolArray
    people: IntArray
    levels: Mapping[str, BoolArray]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the stats, as :func:`supernet.pose.metrics.keypoint_ap` returns them."""
        return tuple(_STATS[self.protocol])

    def subset(self, image_ids: Sequence[int]) -> Matches:
        """Return the matches on some of the images.

        Raises
        ------
        InputError
            If an image is unknown.
        """
        keep = np.isin(self.image_ids, np.asarray(image_ids, np.int64))
        if keep.sum() != len(set(image_ids)):
            unknown = sorted(set(image_ids) - set(self.image_ids.tolist()))
            raise InputError(f"image {unknown[0]} is not among the {len(self)} that were matched")
        shows = keep[self.image]
        return replace(
            self,
            image_ids=self.image_ids[keep],
            image=(np.cumsum(keep) - 1)[self.image[shows]],
            right=self.right[..., shows],
            ignored=self.ignored[..., shows],
            people=self.people[:, keep],
            levels={name: mask[keep] for name, mask in self.levels.items()},
        )

    def stats(self) -> dict[str, float]:
        """Return what :func:`supernet.pose.metrics.keypoint_ap` returns, -1 where nobody is in the range."""
        values = {name: float(self.values(name)[0]) for name in self.names}
        return {name: -1.0 if np.isnan(value) else value for name, value in values.items()}

    def ap(self, weights: NDArray[np.integer[Any]] | None = None) -> FloatArray:
        """Return :meth:`values` of ``AP``."""
        return self.values("AP", weights)

    def values(self, name: str = "AP", weights: NDArray[np.integer[Any]] | None = None) -> FloatArray:
        """Return a stat for selections of the images.

        Equals the evaluator's figure for a data set that holds each image as often as its weight says, the
        copies next to each other. (Where one image has several detections of the same score, the evaluator's
        order of such ties among copies is arbitrary; here copies of one detection stay together.)

        Parameters
        ----------
        name
            One of :attr:`names`.
        weights
            (B, I) or (I,): how often each image occurs, integers from 0. By default all once.

        Returns
        -------
        (B,), in 0..1; NaN where a selection has nobody to find.

        Raises
        ------
        InputError
            If the name is unknown or the weights do not fit.
        """
        stats = _STATS[self.protocol]
        if name not in stats:
            raise InputError(
                f"no stat '{name}' under the {self.protocol} protocol{did_you_mean(name, stats)}"
            )
        stat, size = stats[name], len(self)
        given = np.ones((1, size), np.int64) if weights is None else np.atleast_2d(weights)
        if given.ndim != 2 or given.shape[1] != size or given.dtype.kind not in "iu":
            raise InputError(f"weights are integers (B, {size}), not {given.dtype} {given.shape}")
        if given.size and given.min() < 0:
            raise InputError(f"weights count images, so none is below 0; the least is {given.min()}")
        if stat.level is not None:
            given = given * self.levels[stat.level]
        return self._curves[[*AREA_RANGES].index(stat.area)].means(given, stat)

    @cached_property
    def _curves(self) -> tuple[_Curves, ...]:
        sides = zip(self.right, self.ignored, self.people, strict=True)
        return tuple(_Curves(self.image, *each) for each in sides)


class _Curves:
    """The precision-recall curves of one area range, at each threshold.

    A curve rises in recall only where a detection is right, so it is drawn over those alone; how many
    detections stand before each of them comes from one running sum that all thresholds share.
    """

    def __init__(self, image: IntArray, right: BoolArray, ignored: BoolArray, people: IntArray) -> None:
        self.image, self.people = image, people
        self.hits = [np.flatnonzero(row) for row in right]
        self.passed = [np.flatnonzero(row) for row in ignored]
        size = len(people)
        self.found = np.stack([np.bincount(image[hits], minlength=size) for hits in self.hits])  # (10, I)

    def means(self, weights: IntArray, stat: _Stat) -> FloatArray:
        """Return a stat for weighted images (B, I), NaN where nobody is to be found."""
        total = weights @ self.people
        if stat.recall:
            shares = weights @ self.found[stat.thresholds].T / np.maximum(total, 1)[:, None]
            means = np.asarray(shares.mean(axis=1), np.float64)
        else:
            means = np.empty(len(weights))
            for part in _parts(np.arange(len(weights)), len(self.image) + 1):
                means[part] = self._precision(weights[part], total[part], stat.thresholds)
        return np.where(total > 0, means, np.nan)

    def _precision(self, weights: IntArray, total: IntArray, thresholds: slice) -> FloatArray:
        size = len(weights)
        claims = _running(weights[:, self.image])
        need = _needed(total)
        rows = np.arange(size)[:, None]
        apart = rows * (
            int(total.max(initial=0)) + 2
        )  # keeps the rows in order when they are searched as one
        out = []
        for hits, passed in zip(self.hits[thresholds], self.passed[thresholds], strict=True):
            if len(hits) == 0:
                out.append(np.zeros(size))
                continue
            found = np.cumsum(weights[:, self.image[hits]], axis=1)
            claimed = claims[:, hits + 1]
            if len(passed):
                claimed -= _running(weights[:, self.image[passed]])[:, np.searchsorted(passed, hits)]
            # Precision at a recall is the best at this or any higher recall.
            curve = (found / (claimed + np.spacing(1)))[:, ::-1]
            best = np.maximum.accumulate(curve, axis=1)[:, ::-1].ravel()
            at = np.searchsorted((found + apart).ravel(), need + apart)
            reached = at < (rows + 1) * len(hits)
            out.append(np.where(reached, best[np.where(reached, at, 0)], 0.0).mean(axis=1))
        return np.asarray(np.mean(out, axis=0), np.float64)


def _running(values: IntArray) -> IntArray:
    """Return the sums of the first 0, 1, .. of each row, (B, n + 1)."""
    sums = np.zeros((values.shape[0], values.shape[1] + 1), np.int64)
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def _needed(total: IntArray) -> IntArray:
    """Return (B, 101): the fewest people found of ``total`` (B,) with which each recall is reached."""
    people = np.maximum(total, 1)[:, None]
    need = np.maximum(np.floor(RECALLS * people).astype(np.int64) - 1, 0)
    for _ in range(3):  # by the very comparison of the evaluator, since 29 / 100 may be less than 0.29
        need += need / people < RECALLS
    return need


def match_detections(
    ground_truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    joints: Sequence[int] | None = None,
    protocol: ScoringProtocol = "coco",
    max_detections: int = 20,
) -> Matches:
    """Match detections to people, once for all resamples; see :class:`Matches`.

    Parameters and errors are those of :func:`supernet.pose.metrics.keypoint_ap`.
    """
    truth, found, scored = read_people(ground_truth, detections, sigmas, joints, protocol)
    pairs = pair_people(truth, found, np.asarray(sigmas, np.float64)[scored], max_detections)
    return matches_of(truth, found, pairs, protocol)


def matches_of(truth: TruePeople, found: DetectedPeople, pairs: Pairs, protocol: ScoringProtocol) -> Matches:
    """Return the matches of paired people."""
    areas = tuple(AREA_RANGES) if protocol == "coco" else ("all",)
    partner = assign(truth, pairs, OKS_THRESHOLDS, areas)
    held = np.array([AREA_RANGES[name] for name in areas])[:, :, None]
    passed_over = truth.ignored | (truth.area < held[:, 0]) | (truth.area > held[:, 1])  # (areas, P)
    outside = (found.area[pairs.order] < held[:, 0]) | (found.area[pairs.order] > held[:, 1])
    matched = partner >= 0
    at = np.arange(len(areas))[:, None, None]
    if len(truth.image):
        harmless = np.where(matched, passed_over[at, np.maximum(partner, 0)], outside[:, None, :])
    else:
        harmless = np.broadcast_to(outside[:, None, :], partner.shape)
    best = np.argsort(-found.score[pairs.order], kind="stable")
    size = len(truth.image_ids)
    people = np.stack([np.bincount(truth.image[~each], minlength=size) for each in passed_over])
    return Matches(
        protocol=protocol,
        image_ids=truth.image_ids,
        image=found.image[pairs.order][best],
        right=(matched & ~harmless)[..., best],
        ignored=harmless[..., best],
        people=people,
        levels={name: truth.level(name) for name in CROWD_LEVELS} if protocol == "crowdpose" else {},
    )
