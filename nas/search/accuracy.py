"""What a network's AP is expected to be before it is measured: a Gaussian process, kept as look-up tables.

The AP is modelled as a sum: a constant, an effect of every gene, an effect of every pair of genes, and noise. Each
effect has mean zero over the values of its genes (a functional analysis of variance; Durrande et al. 2013, "ANOVA
kernels and RKHS of zero mean functions for model-based sensitivity analysis"; Duvenaud et al. 2011, "Additive
Gaussian processes"), and neighbouring values of a gene have similar effects. Such a function is nothing but a table
with an entry per value of a gene and one per pair of values: so are the posterior's mean and every sample of it. A
whole space is therefore looked up as quickly as it is priced, and joint samples over all of its networks are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag, cho_factor, cho_solve

from search_spaces import Genotypes, InputError
from search_spaces.space import Choice

__all__ = ["AccuracyPredictor", "Effects", "Surface"]

Floats = npt.NDArray[np.float64]

_CHUNK: Final = 2**14
_LEARNED_FROM: Final = 160
"""The variances are learned from so many of the measured networks at most; all of them are conditioned on."""
_LENGTH: Final = 0.7
"""Length scale over a gene's values, whose logarithms are spread over 0..1."""
_ROUGHNESS: Final = 0.03
"""Share of an effect that neighbouring values do not have in common."""
_ROUNDS: Final = (6, 14)
"""Steps of learning without and with effects of pairs."""
_EXPECTED: Final = {"genes": 1.0, "pairs": 0.1, "noise": 0.003}
"""Prior modes of the variances, of standardised APs; that of the genes is shared among them."""


@dataclass(frozen=True)
class Surface:
    """A function of genotypes: a constant, an entry per value of every gene, an entry per pair of values.

    Attributes
    ----------
    shape
        Number of values of every gene.
    constant
        What all networks have.
    single
        Shape (values,), the values of all genes one after the other.
    pair
        Shape (values, values), symmetric; 0 between values of the same gene.
    """

    shape: tuple[int, ...]
    constant: float
    single: Floats
    pair: Floats

    def at(self, genotypes: Genotypes) -> Floats:
        """Return the function at genotypes of shape (n, genes), as shape (n,)."""
        return self.constant + self._among(genotypes, 0)

    def everywhere(self) -> Floats:
        """Return the function at every network, shape (count,), in the order of ``SearchSpace.genotypes``.

        The genes are parted in two; what the pairs across add is one product of matrices.
        """
        genes = _halfway(self.shape)
        cut = sum(self.shape[:genes])
        first, second = _settings(self.shape[:genes]), _settings(self.shape[genes:])
        values = _one_hot(first, self.shape[:genes]) @ self.pair[:cut, cut:]
        values = values @ _one_hot(second, self.shape[genes:]).T
        values += self.constant + self._among(first, 0)[:, None]
        values += self._among(second, genes)
        flat: Floats = values.reshape(-1)
        return flat

    def _among(self, genotypes: Genotypes, start: int) -> Floats:
        """Return what genes from ``start`` on add, themselves and in pairs; ``genotypes`` holds these alone."""
        total = np.empty(len(genotypes))
        offsets = _offsets(self.shape)[start : start + genotypes.shape[1]]
        varied = [i for i in range(genotypes.shape[1]) if self.shape[start + i] > 1]
        for at in range(0, len(genotypes), _CHUNK):
            places = genotypes[at : at + _CHUNK, varied] + offsets[varied]
            total[at : at + _CHUNK] = self.single[places].sum(axis=1)
            for i in range(1, len(varied)):
                total[at : at + _CHUNK] += self.pair[places[:, i, None], places[:, :i]].sum(axis=1)
        return total


@dataclass(frozen=True)
class Effects:
    """How much the parts of the model vary, in units of the measured APs' variance.

    Attributes
    ----------
    constant
        Variance of the constant.
    genes
        Variance of each gene's effect, shape (genes,); 0 where a gene has one value.
    heredity
        How much each gene takes part in effects of pairs, shape (genes,): the effect of a pair has the variance
        ``pairs * heredity[i] * heredity[j]``. Genes of large effects are expected to interact more.
    pairs
        Variance of all pairs' effects together.
    noise
        Variance of what genes and pairs do not explain.
    """

    constant: float
    genes: Floats
    heredity: Floats
    pairs: float
    noise: float


@dataclass(frozen=True)
class AccuracyPredictor:
    """The posterior of AP given the networks measured so far. Make one with :meth:`fit`.

    Attributes
    ----------
    shape
        Number of values of every gene.
    mean, scale
        Of the measured APs: what is modelled is (AP - mean) / scale.
    effects
        The learned variances.
    """

    shape: tuple[int, ...]
    mean: float
    scale: float
    effects: Effects
    _likeness: tuple[Floats, ...]
    _genotypes: Genotypes
    _targets: Floats
    _factor: tuple[Floats, bool]

    @classmethod
    def fit(cls, choices: Sequence[Choice], genotypes: Genotypes, aps: npt.ArrayLike) -> AccuracyPredictor:
        """Learn the variances from measured networks, and condition on these.

        The variances maximise the marginal likelihood under weak inverse-gamma priors, by a fixed number of
        majorise-minimise steps from a fixed start (Zhou et al. 2019, "MM algorithms for variance components
        models", section 3). The same networks in the same order give the same predictor.

        Parameters
        ----------
        choices
            Of the search space.
        genotypes
            Measured networks, shape (n, genes), at least two.
        aps
            Their APs, shape (n,).

        Raises
        ------
        InputError
            If there are fewer than two networks, or not a finite AP for each.
        """
        values = np.asarray(aps, dtype=np.float64)
        if len(genotypes) < 2 or values.shape != (len(genotypes),) or not np.isfinite(values).all():
            raise InputError(
                "an accuracy predictor learns from 2 networks up with a finite AP each, not from"
                f" {len(genotypes)} networks with {np.isfinite(values).sum()} finite APs"
            )
        likeness = tuple(map(_likeness_of, choices))
        mean, scale = float(values.mean()), float(values.std()) or 1.0
        targets = (values - mean) / scale
        chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), _LEARNED_FROM)).round()).astype(int)
        effects = _learn(likeness, genotypes[chosen], targets[chosen])
        covariance = _covariance(likeness, effects, genotypes, genotypes)
        covariance[np.diag_indices_from(covariance)] += effects.noise
        factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
        shape = tuple(len(choice.values) for choice in choices)
        return cls(shape, mean, scale, effects, likeness, np.asarray(genotypes), targets, factor)

    def expected(self) -> Surface:
        """Return the posterior's mean."""
        values = sum(self.shape)
        return self._corrected(Surface(self.shape, 0.0, np.zeros(values), np.zeros((values, values))), 0.0)

    def sample(self, rng: np.random.Generator) -> Surface:
        """Return a function drawn from the posterior: what the AP of all networks may be, jointly.

        A function of the prior is corrected by what it misses at the measured networks (Wilson et al. 2020,
        "Efficiently sampling functions from Gaussian process posteriors", section 3.2: Matheron's rule).
        """
        effects = self.effects
        roots = block_diag(*(np.linalg.cholesky(each + _jitter(each)) for each in self._likeness))
        values = len(roots)
        constant = math.sqrt(effects.constant) * rng.standard_normal()
        single = np.sqrt(np.repeat(effects.genes, self.shape)) * (roots @ rng.standard_normal(values))
        shared = np.sqrt(np.repeat(effects.heredity, self.shape))[:, None] * roots
        pair = math.sqrt(effects.pairs) * (shared @ rng.standard_normal((values, values)) @ shared.T)
        pair = np.where(_later(self.shape), pair, 0.0)
        noise = math.sqrt(effects.noise) * rng.standard_normal(len(self._targets))
        return self._corrected(Surface(self.shape, constant, single, pair + pair.T), noise)

    def deviation(self, genotypes: Genotypes) -> Floats:
        """Return the posterior's standard deviation at genotypes of shape (n, genes), noise left out."""
        found = np.empty(len(genotypes))
        for start in range(0, len(genotypes), _CHUNK):
            part = genotypes[start : start + _CHUNK]
            across = _covariance(self._likeness, self.effects, part, self._genotypes)
            known = across * cho_solve(self._factor, across.T, check_finite=False).T
            found[start : start + _CHUNK] = self._prior_variance(part) - known.sum(axis=1)
        return self.scale * np.sqrt(np.maximum(found, 0.0))

    def _prior_variance(self, genotypes: Genotypes) -> Floats:
        own = np.concatenate([each.diagonal() for each in self._likeness])[
            genotypes + _offsets(self.shape)
        ]
        weighted = own * self.effects.heredity
        pairs = (weighted.sum(axis=1) ** 2 - (weighted**2).sum(axis=1)) / 2
        variance: Floats = self.effects.constant + own @ self.effects.genes + self.effects.pairs * pairs
        return variance

    def _corrected(self, prior: Surface, noise: Floats | float) -> Surface:
        """Return a function of the prior, corrected by what it misses at the measured networks, as APs."""
        missed = self._targets - prior.at(self._genotypes) - noise
        shares = cho_solve(self._factor, missed, check_finite=False)
        # Row i: how like each value of each gene is to the one that measured network i has.
        like = block_diag(*self._likeness)[self._genotypes + _offsets(self.shape)].sum(axis=1)
        single = np.repeat(self.effects.genes, self.shape) * (shares @ like)
        weighted = like * np.repeat(self.effects.heredity, self.shape)
        pair = np.where(_later(self.shape), weighted.T @ (weighted * shares[:, None]), 0.0)
        return Surface(
            self.shape,
            self.mean + self.scale * (prior.constant + self.effects.constant * float(shares.sum())),
            self.scale * (prior.single + single),
            self.scale * (prior.pair + self.effects.pairs * (pair + pair.T)),
        )


def _likeness_of(choice: Choice) -> Floats:
    """Return the correlations of a gene's effect between its values: mean 0 over them, mean variance 1.

    Numbers are compared by their logarithms; named options are unlike each other.
    """
    n = len(choice.values)
    if n == 1:
        return np.zeros((1, 1))
    like = np.eye(n)
    numbers = [value for value in choice.values if isinstance(value, int)]
    if len(numbers) == n and min(numbers) >= 0:
        at = np.log1p(np.array(numbers, dtype=np.float64))
        at = (at - at.min()) / np.ptp(at)
        smooth = np.exp(-0.5 * ((at[:, None] - at) / _LENGTH) ** 2)
        like = (1 - _ROUGHNESS) * smooth + _ROUGHNESS * like
    centred = np.eye(n) - 1.0 / n
    like = centred @ like @ centred
    return np.asarray(like * (n / np.trace(like)))


def _jitter(matrix: Floats) -> Floats:
    """Return what makes a matrix without full rank decomposable; too little to be seen."""
    return np.asarray(1e-10 * np.eye(len(matrix)))


def _learn(likeness: Sequence[Floats], genotypes: Genotypes, targets: Floats) -> Effects:
    """Return the variances under which the standardised APs are likely."""
    varied = [gene for gene, each in enumerate(likeness) if len(each) > 1]
    parts = np.ones((1 + len(varied), len(targets), len(targets)))
    for place, gene in enumerate(varied, start=1):
        parts[place] = likeness[gene][np.ix_(genotypes[:, gene], genotypes[:, gene])]
    each = _EXPECTED["genes"] / max(1, len(varied))
    expected = np.array([1.0, *[each] * len(varied), _EXPECTED["noise"]])
    found = _likely(parts, targets, expected, expected, _ROUNDS[0])
    heredity = np.zeros(len(likeness))
    pairs = 0.0
    if len(varied) > 1:
        weights = np.sqrt(found[1:-1])
        weights /= math.sqrt((weights.sum() ** 2 - (weights**2).sum()) / 2)
        heredity[varied] = weights
        both = _in_pairs((weight * part for weight, part in zip(weights, parts[1:], strict=True)), parts[0])
        parts = np.concatenate([parts, both[None]])
        start = np.array([*found[:-1], _EXPECTED["pairs"], found[-1]])
        expected = np.array([*expected[:-1], _EXPECTED["pairs"], expected[-1]])
        found = _likely(parts, targets, start, expected, _ROUNDS[1])
        pairs = float(found[-2])
    genes = np.zeros(len(likeness))
    genes[varied] = found[1 : 1 + len(varied)]
    return Effects(float(found[0]), genes, heredity, pairs, float(found[-1]))


def _likely(parts: Floats, targets: Floats, start: Floats, expected: Floats, rounds: int) -> Floats:
    """Return variances of covariance parts, shape (parts + 1,); the last is that of independent noise.

    Each step lowers the negative log posterior. The inverse-gamma priors have shape 0 and the modes
    ``expected``: they weigh as much as two measurements, and keep variances above 0.
    """
    variances, weight = start.copy(), 2.0
    flat = parts.reshape(len(parts), -1)
    for _ in range(rounds):
        covariance = (variances[:-1] @ flat).reshape(parts.shape[1:])
        covariance[np.diag_indices_from(covariance)] += variances[-1]
        factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
        inverse = cho_solve(factor, np.eye(len(targets)), overwrite_b=True, check_finite=False)
        shares = inverse @ targets
        fitted = np.append(flat @ np.outer(shares, shares).ravel(), shares @ shares)
        spread = np.append(flat @ inverse.ravel(), np.trace(inverse))
        variances = np.sqrt(
            (variances**2 * fitted + weight * expected) / (spread + weight / variances)
        )
    return np.asarray(variances)


def _in_pairs(parts: Iterator[Floats], like: Floats) -> Floats:
    """Return the sum over all pairs of parts of their products."""
    total, squares = np.zeros_like(like), np.zeros_like(like)
    for part in parts:
        total += part
        squares += part**2
    pairs: Floats = (total**2 - squares) / 2
    return pairs


def _covariance(likeness: Sequence[Floats], effects: Effects, rows: Genotypes, columns: Genotypes) -> Floats:
    """Return the prior's covariance between networks, noise left out, shape (rows, columns)."""
    total = np.full((len(rows), len(columns)), effects.constant)
    weighted, squares = np.zeros_like(total), np.zeros_like(total)
    for gene, like in enumerate(likeness):
        if len(like) > 1:
            part = like[np.ix_(rows[:, gene], columns[:, gene])]
            total += effects.genes[gene] * part
            part *= effects.heredity[gene]
            weighted += part
            squares += part**2
    total += effects.pairs * (weighted**2 - squares) / 2
    return total


def _offsets(shape: Sequence[int]) -> Genotypes:
    """Return where each gene's values begin among the values of all genes."""
    return np.array([0, *accumulate(shape)][:-1], dtype=np.int64)


def _later(shape: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Return which entries of a table of pairs have their column in a later gene than their row."""
    gene = np.repeat(np.arange(len(shape)), shape)
    return np.asarray(gene[:, None] < gene)


def _halfway(shape: Sequence[int]) -> int:
    """Return after how many genes about as many settings lie on either side."""
    logs = np.cumsum(np.log(shape))
    return int(np.abs(logs - logs[-1] / 2).argmin()) + 1


def _settings(shape: Sequence[int]) -> Genotypes:
    """Return every setting of some genes, shape (settings, genes); the last gene varies fastest."""
    return np.indices(shape).reshape(len(shape), -1).T if len(shape) else np.zeros((1, 0), dtype=np.int64)


def _one_hot(genotypes: Genotypes, shape: Sequence[int]) -> Floats:
    made = np.zeros((len(genotypes), sum(shape)))
    np.put_along_axis(made, genotypes + _offsets(shape), 1.0, axis=1)
    return made
