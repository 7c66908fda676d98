"""What a network's AP is expected to be before it is measured: a Gaussian process over genotypes.

The prior is the usual one for smooth functions, a squared exponential with a length scale of its own for
every gene (Rasmussen and Williams 2006, sections 4.2.1 and 5.1), so that genes which matter little are
learned to matter little. What is particular is how it is asked: both the posterior's mean and a sample of it
are a sum of bells and waves over genotypes, which split into a factor for the first half of the genes and one
for the second. A whole space is therefore looked up by two products of small matrices, hundreds of thousands
of networks in a few hundredths of a second, and a sample is one function for all of them: what is good
together in it is good together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import Bounds, minimize

from search_spaces import Genotypes, InputError
from search_spaces.space import Choice

__all__ = ["AccuracyPredictor", "Surface"]

Floats = npt.NDArray[np.float64]

_CHUNK: Final = 2**13
_LEARNED_FROM: Final = 128
"""Length scales are learned from so many of the measured networks at most; all of them are conditioned on."""
_STEPS: Final = 20
_NOISES: Final = (0.002, 0.3)
"""Where the climbs start, at little noise and at much: one can end where noise is taken for what genes do."""
_WAVES: Final = 256
"""Of a sample's prior part. The error of its covariances falls with the root: about 6% of the variance."""
_CONSTANT: Final = 1.0
"""Variance of what all networks have in common, in units of the APs' own variance."""
_PRIORS: Final = {"amplitude": (2.0, 1.5), "length": (2.0, 0.7), "noise": (0.002, 2.0)}
"""Log-normal priors: median, and standard deviation of the logarithm. A gene's values span 0 to 1; variances
are in units of the APs' own variance."""


@dataclass(frozen=True)
class Surface:
    """A function of genotypes: a constant, bells around the measured networks, waves.

    Attributes
    ----------
    tables
        For every gene the coordinates of its values in units of its length scale, shape (values, columns); a
        gene of one value has no columns.
    constant
        What all networks have.
    centres, heights
        Of the bells: coordinates, shape (bells, columns), and heights, shape (bells,).
    frequencies, phases, amplitudes
        Of the waves, shape (waves, columns), (waves,) and (waves,).
    """

    tables: tuple[Floats, ...]
    constant: float
    centres: Floats
    heights: Floats
    frequencies: Floats
    phases: Floats
    amplitudes: Floats

    def at(self, genotypes: Genotypes) -> Floats:
        """Return the function at genotypes of shape (n, genes), as shape (n,)."""
        found = np.full(len(genotypes), self.constant)
        for start in range(0, len(genotypes), _CHUNK):
            at = _placed(self.tables, genotypes[start : start + _CHUNK])
            found[start : start + _CHUNK] += _bells(at, self.centres) @ self.heights
            found[start : start + _CHUNK] += np.cos(at @ self.frequencies.T + self.phases) @ self.amplitudes
        return found

    def everywhere(self) -> Floats:
        """Return the function at every network, shape (count,), in the order of ``SearchSpace.genotypes``."""
        genes = _halfway([len(table) for table in self.tables])
        cut = sum(table.shape[1] for table in self.tables[:genes])
        first, second = _every_setting(self.tables[:genes]), _every_setting(self.tables[genes:])
        # exp(-(u^2 + v^2) / 2) = exp(-u^2 / 2) exp(-v^2 / 2);  cos(u + v) = cos u cos v - sin u sin v
        bells = _bells(first, self.centres[:, :cut]), _bells(second, self.centres[:, cut:])
        values = (bells[0] * self.heights) @ bells[1].T
        u, v = first @ self.frequencies[:, :cut].T + self.phases, second @ self.frequencies[:, cut:].T
        values += (np.cos(u) * self.amplitudes) @ np.cos(v).T
        values -= (np.sin(u) * self.amplitudes) @ np.sin(v).T
        values += self.constant
        flat: Floats = values.reshape(-1)
        return flat


@dataclass(frozen=True)
class AccuracyPredictor:
    """The posterior of AP, given the networks measured so far. Make one with :meth:`fit`.

    Attributes
    ----------
    mean, scale
        Of the measured APs; what is modelled is (AP - mean) / scale.
    amplitude, noise
        Variances of what genes explain, and of what they do not: among it that APs are measured on a few
        images.
    tables
        Coordinates of every gene's values in units of its learned length scale; see :class:`Surface`. Those
        of a gene that matters little lie close together.
    """

    mean: float
    scale: float
    amplitude: float
    noise: float
    tables: tuple[Floats, ...]
    _centres: Floats
    _targets: Floats
    _noises: Floats
    _factor: tuple[Floats, bool]

    @classmethod
    def fit(
        cls,
        choices: Sequence[Choice],
        genotypes: Genotypes,
        aps: npt.ArrayLike,
        deviations: npt.ArrayLike | None = None,
    ) -> AccuracyPredictor:
        """Learn how far each gene reaches from measured networks, and condition on all of them.

        The marginal likelihood times weak priors is climbed from fixed starts for a fixed number of steps:
        the same networks in the same order give the same predictor.

        Parameters
        ----------
        choices
            Of the search space.
        genotypes
            Measured networks, shape (n, genes), at least two.
        aps
            Their APs, shape (n,).
        deviations
            Standard error of each, shape (n,), where some were measured less well than others: the noise of
            a network is its square more. By default none.

        Raises
        ------
        InputError
            If there are fewer than two networks, or not a finite AP for each, or a deviation is below 0.
        """
        values = np.asarray(aps, dtype=np.float64)
        if len(genotypes) < 2 or values.shape != (len(genotypes),) or not np.isfinite(values).all():
            raise InputError(
                "an accuracy predictor learns from 2 networks up with a finite AP each, not from"
                f" {len(genotypes)} networks with {np.isfinite(values).sum()} finite APs"
            )
        errors = np.zeros(len(values)) if deviations is None else np.asarray(deviations, dtype=np.float64)
        if errors.shape != values.shape or not (np.isfinite(errors) & (errors >= 0)).all():
            raise InputError(f"{len(values)} APs take as many standard errors, each finite and at least 0")
        mean, scale = float(values.mean()), float(values.std()) or 1.0
        targets, extra = (values - mean) / scale, (errors / scale) ** 2
        tables = tuple(map(_coordinates, choices))
        chosen = np.unique(
            np.linspace(0, len(values) - 1, min(len(values), _LEARNED_FROM)).round().astype(int)
        )
        amplitude, lengths, noise = _learn(tables, genotypes[chosen], targets[chosen], extra[chosen])
        scaled = tuple(table / length for table, length in zip(tables, lengths, strict=True))
        centres = _placed(scaled, genotypes)
        covariance = amplitude * _bells(centres, centres) + _CONSTANT
        noises = noise + extra
        covariance[np.diag_indices_from(covariance)] += noises
        factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
        return cls(mean, scale, amplitude, noise, scaled, centres, targets, noises, factor)

    def expected(self) -> Surface:
        """Return the posterior's mean."""
        return self._corrected(np.zeros(len(self._targets)), 0.0, self._waves(np.random.default_rng(0), 0))

    def sample(self, rng: np.random.Generator) -> Surface:
        """Return a function drawn from the posterior: what the AP of all networks may be, together.

        A function of the prior, waves at random (Rahimi and Recht 2007, "Random features for large-scale
        kernel machines"), is corrected by what it misses at the measured networks (Wilson et al. 2020,
        "Efficiently sampling functions from Gaussian process posteriors", section 3).
        """
        constant = math.sqrt(_CONSTANT) * rng.standard_normal()
        frequencies, phases, amplitudes = waves = self._waves(rng, _WAVES)
        prior = constant + np.cos(self._centres @ frequencies.T + phases) @ amplitudes
        noise = np.sqrt(self._noises) * rng.standard_normal(len(self._targets))
        return self._corrected(prior + noise, constant, waves)

    def deviation(self, genotypes: Genotypes) -> Floats:
        """Return the posterior's standard deviation at genotypes of shape (n, genes), noise left out."""
        found = np.empty(len(genotypes))
        for start in range(0, len(genotypes), _CHUNK):
            at = _placed(self.tables, genotypes[start : start + _CHUNK])
            across = self.amplitude * _bells(at, self._centres) + _CONSTANT
            known = across * cho_solve(self._factor, across.T, check_finite=False).T
            found[start : start + _CHUNK] = self.amplitude + _CONSTANT - known.sum(axis=1)
        return self.scale * np.sqrt(np.maximum(found, 0.0))

    def _waves(self, rng: np.random.Generator, n: int) -> tuple[Floats, Floats, Floats]:
        """Return frequencies, phases and amplitudes of random waves: a function of the prior."""
        frequencies = rng.standard_normal((n, self._centres.shape[1]))
        phases = rng.uniform(0.0, 2.0 * math.pi, n)
        return frequencies, phases, rng.standard_normal(n) * math.sqrt(2.0 * self.amplitude / max(n, 1))

    def _corrected(self, prior: Floats, constant: float, waves: tuple[Floats, Floats, Floats]) -> Surface:
        """Return a function, corrected by what its values ``prior`` at the measured networks miss, as APs."""
        shares = cho_solve(self._factor, self._targets - prior, check_finite=False)
        frequencies, phases, amplitudes = waves
        return Surface(
            self.tables,
            self.mean + self.scale * (constant + _CONSTANT * float(shares.sum())),
            self._centres,
            self.scale * self.amplitude * shares,
            frequencies,
            phases,
            self.scale * amplitudes,
        )


def _learn(
    tables: Sequence[Floats], genotypes: Genotypes, targets: Floats, extra: Floats
) -> tuple[float, Floats, float]:
    """Return the amplitude, every gene's length scale and the noise that make the standardised APs likely.

    ``extra`` is the variance that each network has beside the noise that is learned.
    """
    varied = [gene for gene, table in enumerate(tables) if table.shape[1]]
    n = len(targets)
    apart = np.empty((len(varied), n * n))
    for row, gene in enumerate(varied):
        at = tables[gene][genotypes[:, gene]]
        apart[row] = _squares(at, at).reshape(-1)
    named = [_PRIORS["amplitude"], *[_PRIORS["length"]] * len(varied), _PRIORS["noise"]]
    middle, spread = np.log([median for median, _ in named]), np.array([spread for _, spread in named])

    def loss(logs: Floats) -> tuple[float, Floats]:
        """Return the negative log posterior and its gradient (Rasmussen and Williams 2006, equation 5.9)."""
        nearness = np.exp(-2.0 * logs[1:-1])
        bells = np.exp(logs[0] - 0.5 * (nearness @ apart)).reshape(n, n)
        covariance = bells + _CONSTANT
        covariance[np.diag_indices(n)] += math.exp(logs[-1]) + extra
        factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
        inverse = cho_solve(factor, np.eye(n), overwrite_b=True, check_finite=False)
        shares, off = inverse @ targets, (logs - middle) / spread
        slack = inverse - np.outer(shares, shares)
        bells *= slack
        slopes = np.empty(len(logs))
        slopes[0], slopes[-1] = bells.sum(), math.exp(logs[-1]) * np.trace(slack)
        slopes[1:-1] = nearness * (apart @ bells.reshape(-1))
        value = targets @ shares + 2.0 * np.log(factor[0].diagonal()).sum() + off @ off
        return 0.5 * float(value), 0.5 * slopes + off / spread

    bounds = Bounds(middle - 3.0 * spread, middle + 3.0 * spread)
    starts = [np.append(middle[:-1], math.log(noise)) for noise in _NOISES]
    found = [
        minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _STEPS})
        for start in starts
    ]
    learned = np.exp(min(found, key=lambda end: float(end.fun)).x)
    lengths = np.ones(len(tables))
    lengths[varied] = learned[1:-1]
    return float(learned[0]), lengths, float(learned[-1])


def _coordinates(choice: Choice) -> Floats:
    """Return where a gene's values lie, shape (values, columns).

    Numbers lie between 0 and 1 by their logarithms; named options are all one apart; a single value is
    nowhere.
    """
    count = len(choice.values)
    if count == 1:
        return np.empty((1, 0))
    numbers = [value for value in choice.values if isinstance(value, int)]
    if len(numbers) < count:
        return np.eye(count) / math.sqrt(2.0)
    at = np.log1p(np.array(numbers, dtype=np.float64) - min(0, *numbers))
    at = (at - at.min()) / np.ptp(at)
    return np.asarray(at[:, None])


def _placed(tables: Sequence[Floats], genotypes: Genotypes) -> Floats:
    """Return the coordinates of genotypes, shape (n, columns)."""
    return np.concatenate([table[genotypes[:, gene]] for gene, table in enumerate(tables)], axis=1)


def _every_setting(tables: Sequence[Floats]) -> Floats:
    """Return the coordinates of every setting of some genes, the last one varying fastest."""
    shape = [len(table) for table in tables]
    return _placed(tables, np.indices(shape).reshape(len(shape), -1).T)


def _halfway(shape: Sequence[int]) -> int:
    """Return after how many genes, neither none nor all, both sides have about as many settings."""
    logs = np.cumsum(np.log(shape))
    return 1 + int(np.abs(logs[:-1] - logs[-1] / 2).argmin())


def _squares(rows: Floats, columns: Floats) -> Floats:
    """Return the squared distances between coordinates, shape (rows, columns)."""
    total = (rows**2).sum(axis=1)[:, None] + (columns**2).sum(axis=1) - 2.0 * (rows @ columns.T)
    return np.asarray(np.maximum(total, 0.0))


def _bells(rows: Floats, columns: Floats) -> Floats:
    """Return exp(-d^2 / 2) of the distances d between coordinates, shape (rows, columns)."""
    return np.asarray(np.exp(-0.5 * _squares(rows, columns)))
