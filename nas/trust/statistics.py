"""How well two rankings of the same networks agree, and how sure that is.

Networks are few (some twenty) and were drawn from a space, so what is asked is how the figures would vary
with other networks: they are drawn anew, with replacement. Kendall's tau-b (Kendall, Biometrika 33, 1945) is
made for that: a network drawn twice makes a pair that is tied on both sides, which tau-b leaves out of both
its numerator and its denominator, so a resample's tau is that of its distinct pairs, weighted. Intervals are
percentiles: simulated with 20 networks (bivariate normal, true tau 0 to 0.9), those of 95% held the true tau
in 95% to 98% of the cases; bias-corrected and accelerated ones held it hardly more often and were up to 13%
wider. With 10 networks and a true tau of 0.9 it was 87%: where all pairs agree, no resample shows any doubt.

A ranking in which all are equal orders nothing: its tau and rho are 0 here, where SciPy's are undefined.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Self

import numpy as np

from search_spaces import InputError
from supernet.pose.bootstrap import Comparison, Interval
from supernet.pose.matching import Matches
from supernet.pose.scoring import FloatArray, IntArray

__all__ = [
    "CLOSE",
    "TOP",
    "Bootstrap",
    "Ceiling",
    "ClosePairs",
    "Measured",
    "Ranking",
    "TrustStatistics",
    "close_pairs",
    "kendall_tau",
    "spearman_rho",
    "statistics",
    "top_regret",
    "trusted_difference",
]

TOP: Final = (1, 3, 5)
"""Of how many of a ranking's first networks the best is compared with the best of all."""
CLOSE: Final = 1.3
"""MACs of two networks are similar if their ratio is at most this."""
_EQUAL: Final = 1e-12
"""APs that differ by less are equal, but for rounding."""
_IMAGE_DRAWS: Final = 200
"""Resamples of the images; their spread needs fewer than the ends of an interval."""


# -- agreement -----------------------------------------------------------------------------------------------


def _signs(values: FloatArray) -> FloatArray:
    """Return the sign of every difference, (..., n, n)."""
    differences = values[..., :, None] - values[..., None, :]
    return np.where(np.abs(differences) < _EQUAL, 0.0, np.sign(differences))


def _pairs(weights: IntArray, of: FloatArray) -> FloatArray:
    """Return the sum over ordered pairs, each as often as both its members count, (B,)."""
    counts = weights.astype(np.float64)
    return np.asarray(((counts[:, None, :] @ of)[:, 0] * counts).sum(axis=1), np.float64)


def _ones(values: FloatArray, weights: IntArray | None) -> IntArray:
    return np.ones((1, np.shape(values)[-1]), np.int64) if weights is None else np.atleast_2d(weights)


def kendall_tau(first: FloatArray, second: FloatArray, weights: IntArray | None = None) -> FloatArray:
    """Return Kendall's tau-b of two scores of n networks; 0 where either holds all of them equal.

    Parameters
    ----------
    first, second
        (n,), or (B, n) for scores that differ between the resamples.
    weights
        (B, n): how often each network counts; by default once. The result equals that of scores in which each
        is repeated so often.

    Returns
    -------
    (B,), in -1..1.
    """
    weights = _ones(first, weights)
    a, b = _signs(np.asarray(first, np.float64)), _signs(np.asarray(second, np.float64))
    untied = _pairs(weights, np.abs(a)) * _pairs(weights, np.abs(b))
    agreed = _pairs(weights, a * b)
    return _ratio(agreed, untied)


def spearman_rho(first: FloatArray, second: FloatArray, weights: IntArray | None = None) -> FloatArray:
    """Return Spearman's rho (Pearson's r of mid-ranks) of two scores; as :func:`kendall_tau` otherwise."""
    weights = _ones(first, weights)
    a, b = (_ranks(np.asarray(scores, np.float64), weights) for scores in (first, second))
    total = weights.sum(axis=1, keepdims=True)
    a, b = (ranks - (weights * ranks).sum(axis=1, keepdims=True) / total for ranks in (a, b))
    product = (weights * a * b).sum(axis=1)
    return _ratio(product, (weights * a * a).sum(axis=1) * (weights * b * b).sum(axis=1))


def _ratio(product: FloatArray, squares: FloatArray) -> FloatArray:
    """Return ``product / sqrt(squares)`` in -1..1, 0 where nothing varies."""
    varies = squares > 1e-9
    ratio = np.divide(
        product, np.sqrt(np.where(varies, squares, 1)), where=varies, out=np.zeros_like(product)
    )
    return np.asarray(np.clip(ratio, -1, 1), np.float64)


def _ranks(scores: FloatArray, weights: IntArray) -> FloatArray:
    """Return every network's mid-rank among the weighted, (B, n)."""
    signs, counts = _signs(scores), weights.astype(np.float64)[..., None]
    below, equal = ((each.astype(np.float64) @ counts)[..., 0] for each in (signs > 0, signs == 0))
    return np.asarray(below + (equal + 1) / 2, np.float64)


# -- what follows from it ------------------------------------------------------------------------------------


def top_regret(truth: FloatArray, score: FloatArray, top: int) -> float:
    """Return by how much the best of the ``top`` networks of a ranking is below the best of all, in AP.

    Of networks that score alike, those that are worse in truth are taken first: a ranking gets no credit for
    what it does not tell apart.
    """
    if not 1 <= top <= len(truth):
        raise InputError(f"the best are 1 to {len(truth)} of {len(truth)} networks, not {top}")
    order = np.lexsort((truth, -np.round(np.asarray(score, np.float64), 12)))
    return float(np.max(truth) - np.max(np.asarray(truth)[order[:top]]))


def trusted_difference(truth: FloatArray, score: FloatArray, share: float = 0.95) -> float | None:
    """Return the least difference in score from which on that share of the pairs is ordered rightly.

    None if not even the pair that differs most is. A pair that is equal in truth counts half.
    """
    at, other = np.triu_indices(len(truth), 1)
    gaps = np.abs(score[at] - score[other])
    right = (1 + _signs(truth)[at, other] * _signs(score)[at, other]) / 2
    order = np.argsort(-gaps, kind="stable")
    shares = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Pairs of one difference stand or fall together.
    last = np.append(np.diff(gaps[order]) < -_EQUAL, True)
    good = np.flatnonzero((shares >= share) & last)
    return float(gaps[order][good[-1]]) if len(good) else None


def close_pairs(truth: FloatArray, score: FloatArray, macs: FloatArray) -> tuple[int, float]:
    """Return how many pairs of networks have similar MACs, and how many of them a ranking orders rightly.

    A search within a budget compares networks of similar cost. A pair that is equal in truth or in score
    counts half.
    """
    at, other = np.triu_indices(len(truth), 1)
    costs = np.asarray(macs, np.float64)
    near = np.maximum(costs[at], costs[other]) <= CLOSE * np.minimum(costs[at], costs[other])
    right = (1 + _signs(truth)[at, other] * _signs(np.asarray(score, np.float64))[at, other]) / 2
    return int(near.sum()), float(right[near].sum())


# -- intervals -----------------------------------------------------------------------------------------------


def _percentiles(value: float, draws: FloatArray, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high), confidence, len(draws))


def _draw(networks: int, resamples: int, rng: np.random.Generator) -> IntArray:
    """Return how often each network is drawn in each resample, (B, n)."""
    drawn = rng.integers(0, networks, (resamples, networks))
    return np.stack([np.bincount(row, minlength=networks) for row in drawn])


@dataclass(frozen=True)
class Bootstrap:
    """Intervals of statistics over one set of resamples (B, n) of the networks."""

    draws: IntArray
    confidence: float

    @classmethod
    def over(
        cls, networks: int, resamples: int, rng: np.random.Generator, confidence: float = 0.95
    ) -> Bootstrap:
        """Return the bootstrap of so many resamples of so many networks."""
        return cls(_draw(networks, resamples, rng), confidence)

    def __call__(self, statistic: Callable[[IntArray], FloatArray]) -> tuple[Interval, FloatArray]:
        """Return a statistic of how often each network counts with its interval, and its draws."""
        value = float(statistic(np.ones((1, self.draws.shape[1]), np.int64))[0])
        values = statistic(self.draws)
        return _percentiles(value, values, self.confidence), values


@dataclass(frozen=True)
class Ranking:
    """How well a ranking agrees with the stand-alone one.

    Attributes
    ----------
    kendall, spearman
        Tau-b and rho with their 95% intervals over the networks.
    regret
        For each of :data:`TOP` (as far as there are so many networks): by how much the best of the ranking's
        first is below the best of all, in stand-alone AP.
    """

    kendall: Interval
    spearman: Interval
    regret: dict[int, float]

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as a mapping."""
        return asdict(self) | {"regret": {str(top): value for top, value in self.regret.items()}}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return what :meth:`to_json` described."""
        return cls(
            Interval(**value["kendall"]),
            Interval(**value["spearman"]),
            {int(top): float(regret) for top, regret in value["regret"].items()},
        )


@dataclass(frozen=True)
class Ceiling:
    """The tau that two stand-alone trainings of the same networks reach with each other.

    A yardstick of chance rather than a bound: both sides of it are noisy, whereas a supernet's ranking may be
    less so, and with several trainings it is held against their mean.

    Attributes
    ----------
    kendall
        With its 95% interval.
    basis
        ``seeds``: trainings with different seeds, compared. ``images``: there is one training of each network
        only, so this is the agreement of its AP on two draws of the search images. It is rather too high:
        what the images favour by chance, both draws do. Chance in the training would lower it further.
    """

    kendall: Interval
    basis: Literal["seeds", "images"]


@dataclass(frozen=True)
class ClosePairs:
    """How pairs of networks of similar MACs are ordered; see :func:`close_pairs`.

    Attributes
    ----------
    pairs
        How many there are.
    supernet, macs
        How many of them the supernet orders as stand-alone, and how many their MACs do.
    """

    pairs: int
    supernet: float
    macs: float


@dataclass(frozen=True)
class TrustStatistics:
    """What the stand-alone trainings say about the supernet's ranking.

    Attributes
    ----------
    networks, repeats
        How many networks, and trainings of each.
    supernet
        The ranking by the supernet's AP.
    macs
        The ranking of the same networks by their MACs alone.
    gain
        Tau of the supernet less tau of MACs, on the same resamples.
    images
        Tau of the supernet on other draws of the search images, the networks being the same: percentiles.
        AP noise is then in the figures twice, so it tends to be lower than ``supernet.kendall``.
    ceiling
        How well two stand-alone trainings agree.
    shift, spread
        Mean of supernet AP less stand-alone AP, and the standard deviation of that difference: what a ranking
        does not tell.
    trusted_difference
        From which difference of supernet APs on 95% of the pairs are ordered as stand-alone; None: from none.
    close
        How pairs of networks of similar MACs are ordered; None in reports of before this was counted.
    """

    networks: int
    repeats: int
    supernet: Ranking
    macs: Ranking
    gain: Comparison
    images: Interval
    ceiling: Ceiling
    shift: float
    spread: float
    trusted_difference: float | None
    close: ClosePairs | None = None

    @property
    def nothing_to_rank(self) -> bool:
        """Whether all networks score alike when trained alone: nothing is known of any ranking then."""
        return self.supernet.kendall.low == -1 and self.supernet.kendall.high == 1

    @property
    def grade(self) -> Literal["high", "fair", "low", "none"]:
        """How far the ranking can be trusted.

        ``none``: the interval of tau holds 0, so no agreement is shown; ``low``: tau below 0.6, or not above
        that of MACs, or fewer than 10 networks; ``high``: tau of at least 0.8, surely above 0.6 and surely
        above that of MACs; ``fair``: all else.
        """
        tau = self.supernet.kendall
        if tau.low <= 0:
            return "none"
        if tau.value < 0.6 or self.gain.value <= 0 or self.networks < 10:
            return "low"
        return "high" if tau.value >= 0.8 and tau.low > 0.6 and self.gain.low > 0 else "fair"

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as a JSON-able mapping, ``grade`` among them."""
        return {
            **asdict(self),
            "supernet": self.supernet.to_json(),
            "macs": self.macs.to_json(),
            "gain": self.gain.to_json(),
            "grade": self.grade,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """Return what :meth:`to_json` described."""
        gain = {name: each for name, each in value["gain"].items() if name != "shown"}
        ceiling = value["ceiling"]
        least, close = value["trusted_difference"], value.get("close")
        return cls(
            networks=int(value["networks"]),
            repeats=int(value["repeats"]),
            supernet=Ranking.from_json(value["supernet"]),
            macs=Ranking.from_json(value["macs"]),
            gain=Comparison(**gain),
            images=Interval(**value["images"]),
            ceiling=Ceiling(Interval(**ceiling["kendall"]), ceiling["basis"]),
            shift=float(value["shift"]),
            spread=float(value["spread"]),
            trusted_difference=None if least is None else float(least),
            close=None
            if close is None
            else ClosePairs(int(close["pairs"]), float(close["supernet"]), float(close["macs"])),
        )


@dataclass(frozen=True)
class Measured:
    """The APs of n networks that are compared; the same networks in the same order everywhere.

    Attributes
    ----------
    macs
        (n,).
    supernet
        (n,): AP of each as a part of the supernet.
    standalone
        (repeats, n): AP of each trained alone.
    supernet_matches, standalone_matches
        What those APs are made of, image by image; the latter for each repeat.
    """

    macs: FloatArray
    supernet: FloatArray
    standalone: FloatArray
    supernet_matches: Sequence[Matches]
    standalone_matches: Sequence[Sequence[Matches]]


def statistics(
    measured: Measured, resamples: int, rng: np.random.Generator, confidence: float = 0.95
) -> TrustStatistics:
    """Return what the APs say about the supernet's ranking.

    The truth is the stand-alone AP, where there are several trainings of each network their mean.

    Raises
    ------
    InputError
        If there are fewer than 3 networks, or the numbers do not fit or are not finite.
    """
    truth = _checked(measured)
    networks = len(truth)
    bootstrap = Bootstrap.over(networks, resamples, rng, confidence)

    def ranking(score: FloatArray) -> Ranking:
        kendall, _ = bootstrap(lambda weights: kendall_tau(truth, score, weights))
        spearman, _ = bootstrap(lambda weights: spearman_rho(truth, score, weights))
        if np.ptp(truth) < _EQUAL:  # nothing is there to be ranked: nothing is known
            kendall = spearman = Interval(0.0, -1.0, 1.0, confidence, resamples)
        return Ranking(kendall, spearman, {n: top_regret(truth, score, n) for n in TOP if n <= networks})

    supernet, macs = ranking(measured.supernet), ranking(measured.macs)
    gain, gains = bootstrap(
        lambda w: kendall_tau(truth, measured.supernet, w) - kendall_tau(truth, measured.macs, w)
    )
    ahead = float((np.where(np.abs(gains) < _EQUAL, 0.0, np.sign(gains)) + 1).mean() / 2)
    drawn = _image_draws(measured, rng)
    on_images = kendall_tau(drawn[1:].mean(axis=0), drawn[0])
    difference = measured.supernet - truth
    (pairs, right), (_, by_macs) = (
        close_pairs(truth, score, measured.macs) for score in (measured.supernet, measured.macs)
    )
    return TrustStatistics(
        networks=networks,
        repeats=len(measured.standalone),
        supernet=supernet,
        macs=macs,
        gain=Comparison(**asdict(gain), probability=ahead),
        images=_percentiles(supernet.kendall.value, on_images, confidence),
        ceiling=_ceiling(measured, drawn, bootstrap),
        shift=float(difference.mean()),
        spread=float(difference.std(ddof=1)),
        trusted_difference=trusted_difference(truth, measured.supernet),
        close=ClosePairs(pairs, right, by_macs),
    )


def _checked(measured: Measured) -> FloatArray:
    """Return the truth."""
    networks = len(measured.macs)
    if networks < 3:
        raise InputError(f"a ranking is of at least 3 networks, not {networks}")
    repeats = len(measured.standalone)
    shapes = (measured.supernet.shape, measured.standalone.shape, len(measured.supernet_matches))
    if shapes != ((networks,), (repeats, networks), networks) or repeats < 1:
        raise InputError(f"there are {networks} networks, but APs of other numbers: {shapes}")
    if any(len(each) != networks for each in measured.standalone_matches):
        raise InputError(f"there are {networks} networks, but matches of another number")
    for name, values in (("supernet", measured.supernet), ("stand-alone", measured.standalone)):
        if not np.isfinite(values).all():
            raise InputError(f"the {name} APs are not all finite: {values.tolist()}")
    return np.asarray(measured.standalone.mean(axis=0), np.float64)


def _image_draws(measured: Measured, rng: np.random.Generator) -> FloatArray:
    """Return the APs on draws of the images, (1 + repeats, draws, n): the supernet's, then each repeat's.

    All networks are scored on the same draws, as they were on the same images.
    """
    sides = [measured.supernet_matches, *measured.standalone_matches]
    images = len(measured.supernet_matches[0])
    weights = _draw(images, _IMAGE_DRAWS, rng)
    aps = np.array([[matches.ap(weights) for matches in side] for side in sides])
    return np.asarray(
        np.nan_to_num(aps.transpose(0, 2, 1)), np.float64
    )  # a draw with nobody to find tells nothing: all 0


def _ceiling(measured: Measured, drawn: FloatArray, bootstrap: Bootstrap) -> Ceiling:
    alone = measured.standalone
    if len(alone) >= 2:
        pairs = list(itertools.combinations(alone, 2))

        def agreement(weights: IntArray) -> FloatArray:
            return np.asarray(np.mean([kendall_tau(one, other, weights) for one, other in pairs], axis=0))

        return Ceiling(bootstrap(agreement)[0], "seeds")
    # Every draw against the one after it: two that know nothing of each other.
    taus = kendall_tau(drawn[1], np.roll(drawn[1], 1, axis=0))
    return Ceiling(_percentiles(float(taus.mean()), taus, bootstrap.confidence), "images")
