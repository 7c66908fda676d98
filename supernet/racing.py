"""When an evaluation ends early: a network that has surely lost need not be looked at further.

All networks see the same images in one fixed random order, and are looked at after growing shares of them. At
each look the AP so far is computed on the same resamples of those images for every network, so that a network
is compared with another as two are compared on one set of images: resample by resample. That is much sharper
than two separate intervals, since both find the same images hard. And since the other one's AP on all images
is known, what it tells of the images that are still to come is known as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from search_spaces import InputError
from supernet.pose.bootstrap import on_grid, resample_ap
from supernet.pose.matching import Matches
from supernet.pose.scoring import FloatArray

__all__ = ["EarlyStop", "Look", "Looks", "Rival", "Verdict"]

_STREAM: Final = 1
"""Tells the draws of resamples from the draw of the images' order."""
_LEAST: Final = 3
"""From fewer images no standard error is told."""
_EQUAL: Final = 1e-9
"""APs nearer to each other are equal."""


@dataclass(frozen=True)
class Look:
    """A network's AP on the first images.

    Attributes
    ----------
    ap
        On those images.
    resampled
        On resamples of them, shape (resamples,); NaN where one holds nobody to find. The same images are
        drawn for every network.
    """

    ap: float
    resampled: FloatArray


Looks = Mapping[str, Look]
"""What was seen of a network at each look, by the look's name."""


@dataclass(frozen=True)
class Rival:
    """A network that another one must not be sure to lose against.

    Attributes
    ----------
    ap
        On all images.
    looks
        What was seen of it. Where a look lacks, nothing is compared there.
    """

    ap: float
    looks: Looks


@dataclass(frozen=True)
class Verdict:
    """That a network has lost, and what it would have had on all images.

    Attributes
    ----------
    look
        Name of the look at which it was sure.
    images
        How many images had been looked at.
    estimate, deviation
        The AP on all images as it is expected, and the standard error of that.
    """

    look: str
    images: int
    estimate: float
    deviation: float


@dataclass(frozen=True)
class EarlyStop:
    """The rule: after which shares of the images a network is compared, and how sure a loss must be.

    The images so far are a sample of all of them, drawn without replacement. From it the network's AP on all
    images is told by the regression estimate of survey sampling (Cochran 1977, "Sampling Techniques", section
    7.1): its AP so far, corrected by ``b`` times what the rival's AP on all images is above its AP so far.
    The variances, and ``b``, the slope of the network's AP on the rival's, come from the resamples, and are
    reduced by the share of the images that is known already (the finite population correction). The network
    has lost if the upper end of the interval around that, by Student's quantile, lies below the rival's AP.

    The risk ``level`` is shared evenly among the looks (Bonferroni). So it bounds the probability that a
    network is stopped at any of them though it would have been no worse than its rival on all images. There
    is one rival: several would share the risk. ``experiments/results/racing.md`` has the risk as measured,
    and what other rules would have stopped.

    Attributes
    ----------
    shares
        Ascending shares of the images after which is compared.
    level
        Probability of stopping a network wrongly, over all looks.
    least
        Images without which there is no look: from a few, standard errors of AP come out too small.
    resamples
        At each look.
    seed
        Of the images' order and of the resamples.
    """

    shares: tuple[float, ...] = (0.125, 0.25, 0.5)
    level: float = 0.01
    least: int = 40
    resamples: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.shares or list(self.shares) != sorted(set(self.shares)):
            raise InputError(f"an evaluation stops early at ascending shares, not {list(self.shares)}")
        if not all(0 < share < 1 for share in self.shares):
            raise InputError(f"shares of the images lie between 0 and 1, not {list(self.shares)}")
        if not 0 < self.level < 0.5:
            raise InputError(f"the risk of a wrong stop lies between 0 and .5, not {self.level}")
        if min(self.least, self.resamples) < 1:
            raise InputError(
                f"a stop needs at least 1 image and 1 resample, not {self.least} and {self.resamples}"
            )

    def __str__(self) -> str:
        """Return the whole rule in words."""
        shares = ", ".join(f"{share:g}" for share in self.shares)
        return (
            f"regression on a rival after {shares} of the images, {self.least} at least, risk {self.level:g},"
            f" {self.resamples} resamples, seed {self.seed}"
        )

    def looks(self, images: int) -> dict[str, int]:
        """Return how many images each look is on, by the name under which its AP is kept."""
        counts = {f"AP@{share:g}": round(share * images) for share in self.shares}
        return {name: count for name, count in counts.items() if self.least <= count < images}

    def order(self, ids: Sequence[int]) -> list[int]:
        """Return the image ids in the order in which they are evaluated."""
        shuffled = np.random.default_rng([self.seed, len(ids)]).permutation(len(ids))
        return [ids[place] for place in shuffled]

    def look(self, matches: Matches) -> Look:
        """Return what is seen of a network on the images so far: the same draws for every network."""
        rng = np.random.default_rng([self.seed, len(matches), _STREAM])
        return Look(matches.stats()["AP"], on_grid(resample_ap(matches, self.resamples, rng)))

    def judge(self, own: Look, rival: Look, rival_ap: float, images: int, of: int) -> tuple[float, float]:
        """Return what a network's AP on all images is expected to be, and the standard error of that.

        Parameters
        ----------
        own, rival
            What was seen of both on the same images.
        rival_ap
            The rival's AP on all images.
        images, of
            How many images were looked at, and how many there are.
        """
        known = ~np.isnan(own.resampled + rival.resampled)
        if not known.any():
            return own.ap, math.inf
        one, other = own.resampled[known], rival.resampled[known]
        # A network that finds nobody has an AP of 0 on all resamples, which tells no slope.
        varied = np.ptp(one) > 0 and np.ptp(other) > 0
        one, other = one - one.mean(), other - other.mean()
        slope = float(one @ other / (other @ other)) if varied else 1.0
        freedom = max(images - 2, 1)
        sample, unseen = math.sqrt(images / freedom), math.sqrt(1 - images / of)
        error = float((one - slope * other).std()) * sample * unseen
        return own.ap + slope * (rival_ap - rival.ap), error

    def verdict(self, own: Looks, rival: Rival, counts: Mapping[str, int], images: int) -> Verdict | None:
        """Return what the first look that is sure says; None where none is.

        It follows from what was seen alone, so that it can also be told of a network that was evaluated
        before, against another rival or against none.

        Parameters
        ----------
        own
            What was seen of the network so far.
        rival
            What it must not lose against.
        counts
            How many images each look is on (:meth:`looks`).
        images
            How many there are in all.
        """
        level = self.level / max(len(counts), 1)
        for name, count in counts.items():
            if name not in own or name not in rival.looks:
                continue
            one, other = own[name], rival.looks[name]
            if one.resampled.shape != other.resampled.shape or count < _LEAST:
                continue
            estimate, error = self.judge(one, other, rival.ap, count, images)
            if estimate + stats.t.isf(level, count - 2) * error < rival.ap - _EQUAL:
                return Verdict(name, count, max(estimate, 0.0), error)
        return None
