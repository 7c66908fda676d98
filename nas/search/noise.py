"""Which differences of AP in a search are more than noise, and which are ties.

Networks are compared on a sample of images; with other images of the same kind every AP would be another one.
Each evaluation therefore keeps its AP on the same resamples of the images, packed into a short text, so that
any two networks of a study can be compared as they are compared on one set of images: resample by resample.
That is much sharper than two separate intervals, since both find the same images hard.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from nas.search.result import Record
from search_spaces import RunError
from supernet.pose.bootstrap import (
    GRID,
    Comparison,
    Interval,
    compare_resamples,
    interval_of,
    resample_ap,
)
from supernet.pose.matching import Matches
from supernet.pose.scoring import FloatArray

__all__ = ["RESAMPLES", "Step", "compare", "interval", "pack", "resampled", "steps", "tied", "unpack"]

RESAMPLES: Final = 400
"""The ends of a 95% interval from so many vary by a tenth of its width."""
_SEED: Final = 20260
_UNKNOWN: Final = GRID + 1
"""Stands for a resample that shows nobody to find."""


def pack(values: FloatArray) -> str:
    """Return values in 0..1, or NaN, as text: two bytes each, so a step is 1/65534."""
    codes = np.where(np.isnan(values), _UNKNOWN, np.rint(np.nan_to_num(values) * GRID))
    return base64.b64encode(codes.astype("<u2").tobytes()).decode("ascii")


def unpack(text: str) -> FloatArray:
    """Return what :func:`pack` packed.

    Raises
    ------
    RunError
        If it is no such text.
    """
    try:
        codes = np.frombuffer(base64.b64decode(text, validate=True), "<u2")
    except (ValueError, binascii.Error):
        raise RunError(
            f"the resampled APs of a network are damaged ('{text[:20]}'); restore the study or search anew"
        ) from None
    return np.where(codes == _UNKNOWN, np.nan, codes / GRID)


def resampled(matches: Matches) -> str:
    """Return a network's AP on the resamples of the images that all networks are compared on, packed."""
    return pack(resample_ap(matches, RESAMPLES, np.random.default_rng([_SEED, len(matches)])))


def interval(record: Record) -> Interval | None:
    """Return the 95% interval of a network's AP; None where its resamples were not kept."""
    values = unpack(record.resamples)
    return None if np.isnan(values).all() else interval_of(record.require_ap(), values)


def compare(first: Record, second: Record) -> Comparison | None:
    """Return the difference of two networks' APs with its 95% interval, on the same images.

    None where the resamples of one were not kept (a study from before they were).
    """
    one, other = unpack(first.resamples), unpack(second.resamples)
    if one.shape != other.shape or np.isnan(one - other).all():
        return None
    return compare_resamples(first.require_ap() - second.require_ap(), one - other)


@dataclass(frozen=True)
class Step:
    """From one network of a front to the next dearer one.

    Attributes
    ----------
    cheaper, dearer
        The networks.
    gain
        The AP of the dearer less that of the cheaper, with its interval; None where that is not known.
    """

    cheaper: Record
    dearer: Record
    gain: Comparison | None

    @property
    def tie(self) -> bool:
        """Whether the difference is known to be within the noise: nothing shows that the dearer is better."""
        return self.gain is not None and not self.gain.shown

    def to_json(self) -> dict[str, Any]:
        """Return the step as a JSON-able mapping."""
        return {
            "cheaper": self.cheaper.arch.id,
            "dearer": self.dearer.arch.id,
            "gain": None if self.gain is None else self.gain.to_json(),
            "tie": None if self.gain is None else self.tie,
        }


def steps(front: Sequence[Record]) -> tuple[Step, ...]:
    """Return the steps of a front, from its cheapest network to its dearest."""
    return tuple(Step(one, other, compare(other, one)) for one, other in pairwise(front))


def tied(best: Record, others: Sequence[Record]) -> tuple[Record, ...]:
    """Return the networks whose AP is within the noise of that of ``best``, in the order given."""
    found = ((other, compare(best, other)) for other in others if other.arch != best.arch)
    return tuple(other for other, difference in found if difference is not None and not difference.shown)
