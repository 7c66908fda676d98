"""Of people who were found more than once, one remains: suppression by how alike their joints lie.

Likeness is object keypoint similarity (OKS) between two detections, with the mean of both areas for scale, as
in the test code of SimpleBaseline (arXiv 1804.06208).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from search_spaces.errors import InputError

__all__ = ["VALUE_THRESHOLD", "oks_nms", "person_scores", "similarities", "soft_oks_nms"]

FloatArray = NDArray[np.float64]

VALUE_THRESHOLD = 0.2
"""Joints whose value is above it count in a person's score (SimpleBaseline's COCO protocol)."""
_TINY = float(np.spacing(1))


def person_scores(
    values: NDArray[np.floating], box_scores: ArrayLike, threshold: float = VALUE_THRESHOLD
) -> FloatArray:
    """Return the box's score times the mean value of the joints above the threshold; 0 where there is none.

    Parameters
    ----------
    values
        Heights of the joints' heatmaps, (P, J).
    box_scores
        (P,).
    threshold
        What a joint's value must exceed.
    """
    given = np.asarray(values, dtype=np.float64)
    sure = given > threshold
    mean = (given * sure).sum(axis=1) / np.maximum(sure.sum(axis=1), 1)
    scores: FloatArray = mean * np.asarray(box_scores, dtype=np.float64)
    return scores


def similarities(people: NDArray[np.floating], areas: ArrayLike, sigmas: ArrayLike) -> FloatArray:
    """Return the OKS of every pair of people, (P, P): mean over joints of ``exp(-d^2 / (8 sigma^2 area))``.

    Parameters
    ----------
    people
        (P, J, 2 or more): x, y in pixels.
    areas
        (P,): squares of the people's scales, pixels^2; of a pair the mean counts.
    sigmas
        (J,): as in COCO's evaluation.

    Raises
    ------
    InputError
        If counts disagree, an area is negative, or something is no finite number.
    """
    places = np.asarray(people, dtype=np.float64)[..., :2]
    scale, falloff = np.asarray(areas, dtype=np.float64), np.asarray(sigmas, dtype=np.float64)
    if places.ndim != 3 or scale.shape != places.shape[:1] or falloff.shape != places.shape[1:2]:
        raise InputError(
            f"similarity needs people (P, J, 2), areas (P,) and sigmas (J,), not {places.shape},"
            f" {scale.shape} and {falloff.shape}"
        )
    if not (np.isfinite(places).all() and np.isfinite(scale).all() and (scale >= 0).all()):
        raise InputError("similarity needs finite places of joints and areas of at least 0")
    distance = np.square(places[:, None] - places[None]).sum(axis=3)
    area = (scale[:, None] + scale[None]) / 2 + _TINY
    errors = distance / (8 * np.square(falloff) * area[:, :, None])
    oks: FloatArray = np.exp(-errors).mean(axis=2)
    return oks


def _check(people: NDArray[np.floating], scores: FloatArray, threshold: float) -> None:
    if scores.shape != people.shape[:1] or not np.isfinite(scores).all():
        raise InputError(f"each of {len(people)} people needs a finite score, got {scores.shape}")
    if not 0 < threshold <= 1:
        raise InputError(f"people are suppressed above an OKS between 0 and 1, not {threshold}")


def oks_nms(
    people: NDArray[np.floating],
    scores: ArrayLike,
    areas: ArrayLike,
    sigmas: ArrayLike,
    threshold: float = 0.9,
) -> NDArray[np.int64]:
    """Return who remains, by falling score: nobody who is too like somebody with a higher score.

    Parameters
    ----------
    people, areas, sigmas
        As for :func:`similarities`.
    scores
        (P,); of equal ones the first is the higher.
    threshold
        OKS above which two detections are of one person.

    Raises
    ------
    InputError
        As :func:`similarities` does, or if scores or threshold are wrong.
    """
    given = np.asarray(scores, dtype=np.float64)
    _check(people, given, threshold)
    order = np.argsort(-given, kind="stable")
    alike = similarities(people, areas, sigmas)[np.ix_(order, order)] > threshold
    gone = np.zeros(len(order), np.bool_)
    for place in range(len(order)):
        if not gone[place]:
            gone[place + 1 :] |= alike[place, place + 1 :]
    kept: NDArray[np.int64] = order[~gone]
    return kept


def soft_oks_nms(
    people: NDArray[np.floating],
    scores: ArrayLike,
    areas: ArrayLike,
    sigmas: ArrayLike,
    threshold: float = 0.9,
    most: int | None = None,
) -> tuple[NDArray[np.int64], FloatArray]:
    """Return everybody by falling score, scores lowered by likeness to those with higher ones.

    Each time the one with the highest score is taken, and the others' are multiplied by
    ``exp(-OKS^2 / threshold)`` (Soft-NMS, arXiv 1704.04503, with OKS in the place of overlap).

    Parameters
    ----------
    people, scores, areas, sigmas
        As for :func:`oks_nms`.
    threshold
        The smaller, the more scores fall.
    most
        People who are taken; by default all.

    Returns
    -------
    order, scores
        Who they are and their scores, (min(P, most),) each.

    Raises
    ------
    InputError
        As :func:`oks_nms` does.
    """
    left = np.array(scores, dtype=np.float64)
    _check(people, left, threshold)
    decay = np.exp(-np.square(similarities(people, areas, sigmas)) / threshold)
    count = len(left) if most is None else min(most, len(left))
    order, final = np.zeros(count, np.int64), np.zeros(count)
    waiting = np.ones(len(left), np.bool_)
    for place in range(count):
        best = int(np.argmax(np.where(waiting, left, -math.inf)))
        order[place], final[place] = best, left[best]
        waiting[best] = False
        left *= decay[best]
    return order, final
