"""How sure an average precision is, and a difference of two: bootstrap over images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from search_spaces.errors import InputError
from supernet.pose.matching import Matches
from supernet.pose.scoring import FloatArray, IntArray

__all__ = [
    "GRID",
    "Comparison",
    "Interval",
    "bootstrap_ap",
    "compare_ap",
    "compare_resamples",
    "interval_of",
    "on_grid",
    "resample_ap",
]

GRID: Final = 65534
"""Resampled figures that are kept are multiples of the inverse: two bytes hold one, and NaN."""
_CELLS = 2**22
"""Most weights that are drawn at once."""
_EQUAL = 1e-12
"""Differences below it are rounding."""


@dataclass(frozen=True)
class Interval:
    """A figure with a bootstrap confidence interval.

    Attributes
    ----------
    value
        The figure on the images as they are.
    low, high
        Ends of the interval.
    confidence
        Its nominal coverage, e.g. .95.
    resamples
        From how many it comes; resamples in which there was nobody to find are left out.
    """

    value: float
    low: float
    high: float
    confidence: float
    resamples: int

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as a mapping."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison(Interval):
    """The difference of two figures on the same images, first minus second, with its interval.

    Attributes
    ----------
    probability
        Share of the resamples in which the first is higher; equal ones count half.
    """

    probability: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out 0: otherwise no difference is shown."""
        return self.low > 0 or self.high < 0

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as a mapping, ``shown`` among them."""
        return {**asdict(self), "shown": self.shown}


def _draws(images: int, resamples: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """Yield how often each image is drawn in each resample, in parts (b, images)."""
    step = max(1, _CELLS // images)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, images, (rows, images)) + np.arange(rows)[:, None] * images
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)


def _check(matches: Matches, resamples: int, confidence: float) -> None:
    if resamples < 1:
        raise InputError(f"a bootstrap needs at least 1 resample, not {resamples}")
    if not 0 < confidence < 1:
        raise InputError(f"the confidence of an interval is between 0 and 1, not {confidence}")
    if len(matches) == 0:
        raise InputError("a bootstrap needs at least one image")


def _ends(values: FloatArray, confidence: float) -> tuple[float, float]:
    """Return the ends of the percentile interval."""
    if len(values) == 0:
        raise InputError("no resample holds anybody to find; draw more of them")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def resample_ap(matches: Matches, resamples: int, rng: np.random.Generator, name: str = "AP") -> FloatArray:
    """Return a figure on resamples of the images, (resamples,); NaN where one holds nobody to find.

    Equal generators draw equal images: what two networks have on the resamples of the same images can then be
    compared one by one, also long after the matches are gone.

    Parameters and errors are those of :func:`bootstrap_ap`.
    """
    _check(matches, resamples, 0.5)
    return np.concatenate([matches.values(name, part) for part in _draws(len(matches), resamples, rng)])


def on_grid(values: FloatArray) -> FloatArray:
    """Return values in 0..1, or NaN, rounded to :data:`GRID`: what is kept of them is then exact."""
    return np.asarray(np.rint(values * GRID) / GRID)


def interval_of(value: float, resampled: FloatArray, confidence: float = 0.95) -> Interval:
    """Return a figure with the percentile interval of what it is on resamples.

    Raises
    ------
    InputError
        If no resample holds anybody to find.
    """
    known = resampled[~np.isnan(resampled)]
    return Interval(value, *_ends(known, confidence), confidence, len(known))


def compare_resamples(value: float, differences: FloatArray, confidence: float = 0.95) -> Comparison:
    """Return a difference of two figures with its interval.

    Parameters
    ----------
    value
        The difference, first minus second, on the images as they are.
    differences
        The same on each of their resamples; NaN where one holds nobody to find.
    confidence
        Nominal coverage.

    Raises
    ------
    InputError
        If no resample holds anybody to find.
    """
    values = differences[~np.isnan(differences)]
    values = np.where(np.abs(values) < _EQUAL, 0.0, values)
    probability = float((np.sign(values) + 1).mean() / 2) if len(values) else 0.5
    value = 0.0 if abs(value) < _EQUAL else value
    return Comparison(value, *_ends(values, confidence), confidence, len(values), probability)


def bootstrap_ap(
    matches: Matches,
    resamples: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
    name: str = "AP",
) -> Interval:
    """Return a figure with its percentile bootstrap interval: images are drawn anew, with replacement.

    It tells how much the figure would vary with other images of the same kind. People of one image stay
    together, since their errors are not independent.

    Parameters
    ----------
    matches
        From :func:`supernet.pose.matching.match_detections`.
    resamples
        How many; the ends of a 95% interval settle from about 1,000.
    rng
        Draws the images; equal generators give equal intervals.
    confidence
        Nominal coverage.
    name
        The figure: one of ``matches.names``.

    Raises
    ------
    InputError
        If an argument is out of its range, the name is unknown, or there is nobody to find.
    """
    _check(matches, resamples, confidence)
    value = float(matches.values(name)[0])
    if np.isnan(value):
        raise InputError(f"there is nobody to find for {name} in the {len(matches)} images")
    return interval_of(value, resample_ap(matches, resamples, rng, name), confidence)


def compare_ap(
    first: Matches,
    second: Matches,
    resamples: int,
    rng: np.random.Generator,
    confidence: float = 0.95,
    name: str = "AP",
) -> Comparison:
    """Return ``first - second`` with its interval, both scored on the same resamples of the same images.

    Both networks find the same images easy or hard, so the difference is known much better than either
    figure.

    Parameters
    ----------
    first, second
        Matches of two sets of detections on the same ground truth.
    resamples, rng, confidence, name
        As for :func:`bootstrap_ap`.

    Raises
    ------
    InputError
        As :func:`bootstrap_ap` does, and if the two are of different images, people or protocols.
    """
    _check(first, resamples, confidence)
    if (
        first.protocol != second.protocol
        or not np.array_equal(first.image_ids, second.image_ids)
        or not np.array_equal(first.people, second.people)
    ):
        raise InputError("two figures are compared on the same images, people and protocol; these differ")
    value = float(first.values(name)[0] - second.values(name)[0])
    if np.isnan(value):
        raise InputError(f"there is nobody to find for {name} in the {len(first)} images")
    parts = [
        first.values(name, part) - second.values(name, part) for part in _draws(len(first), resamples, rng)
    ]
    return compare_resamples(value, np.concatenate(parts), confidence)
