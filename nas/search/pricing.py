"""Pricing whole populations, and drawing networks that meet every budget without rejection loops."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nas.search.objectives import BYTES_PER_PARAMETER, MACS, PARAMS, SIZE, Constraint, Objective, latency
from search_spaces import BudgetError, Genotypes, InputError, SearchSpace
from search_spaces.errors import did_you_mean

Floats = npt.NDArray[np.float64]
Prices = Mapping[Objective, Floats]
"""Every cost of many archs: an array of shape (n,) per objective."""

EXACT_LIMIT = 2**21
"""Spaces of up to this many networks are priced whole, so that what is said about them is exact."""

_CHUNK = 2**18
_DESCENT_STARTS = 32
_DESCENT_SWEEPS = 100


class LatencyPricer(Protocol):
    """Predicts latencies on one target from its table.

    It must be additive enough to be quick: the search prices hundreds of thousands of archs with it.
    """

    @property
    def name(self) -> str:
        """Name of the target."""
        ...

    def latency_ms(self, space: SearchSpace, genotypes: Genotypes) -> Floats:
        """Return the latency of each genotype, shape (n,), at the upper end of its error bar.

        Raises
        ------
        MissingLayerError
            If the table lacks a layer that one of the networks executes.
        """
        ...


@dataclass(frozen=True)
class Smallest:
    """The least that an objective can be in a space.

    Attributes
    ----------
    value
        In the objective's stored unit.
    genotype
        A network that attains it, shape (genes,).
    exact
        True if the whole space was priced; False if a descent found it.
    """

    value: float
    genotype: Genotypes
    exact: bool


@dataclass(frozen=True)
class Affordable:
    """Every network of a space that meets the constraints, each with some of its costs.

    Attributes
    ----------
    shape
        Of the space: number of values of every choice.
    numbers
        The networks' numbers in the space's fixed order, ascending, shape (networks,).
    costs
        Shape (networks, objectives asked for).
    """

    shape: tuple[int, ...]
    numbers: npt.NDArray[np.int64]
    costs: Floats

    def genotypes(self, places: npt.NDArray[np.intp]) -> Genotypes:
        """Return the networks at some places of the list, shape (places, genes)."""
        return _numbered(self.numbers[places], self.shape)

    def unseen(self, seen: Set[bytes]) -> npt.NDArray[np.intp]:
        """Return the places of the networks whose keys are not in ``seen``, ascending."""
        fresh = ~np.isin(self.numbers, _numbers(seen, self.shape), assume_unique=True)
        return np.flatnonzero(fresh)


class Pricing:
    """Prices the archs of one space, and knows which of them meet the constraints.

    Up to :data:`EXACT_LIMIT` networks the whole space is priced once, on first need; beyond that, networks
    within the budget are drawn by random walks that start within it; see :meth:`sample`.

    Parameters
    ----------
    space
        Where the archs come from.
    constraints
        Upper bounds on costs.
    pricers
        One per latency target.

    Raises
    ------
    InputError
        If a target is priced twice, or a constraint bounds a target without a pricer.
    """

    def __init__(
        self,
        space: SearchSpace,
        constraints: Sequence[Constraint] = (),
        pricers: Iterable[LatencyPricer] = (),
    ) -> None:
        self.space = space
        self.constraints = tuple(constraints)
        self.pricers = tuple(pricers)
        self.targets = tuple(pricer.name for pricer in self.pricers)
        if len(set(self.targets)) != len(self.targets):
            raise InputError(f"each latency target is priced once, not: {', '.join(self.targets)}")
        bounded = [constraint.objective for constraint in self.constraints]
        if len(set(bounded)) != len(bounded):
            raise InputError(f"each cost is bounded once, not: {', '.join(map(str, self.constraints))}")
        for objective in bounded:
            self.require(objective)
        self._affordable: dict[tuple[Objective, ...], Affordable] = {}

    def require(self, objective: Objective) -> None:
        """Raise :class:`InputError` if the objective is the latency of a target without a pricer."""
        if objective.target is not None and objective.target not in self.targets:
            hint = did_you_mean(objective.target, self.targets) or "; no latency table was given"
            raise InputError(f"{objective} needs a latency table for '{objective.target}'{hint}")

    # -- prices -----------------------------------------------------------------------------------------

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """Every cost that is priced."""
        return (MACS, PARAMS, SIZE, *(latency(target) for target in self.targets))

    def prices(self, genotypes: Genotypes) -> dict[Objective, Floats]:
        """Return every cost of the genotypes, shape (n, genes) each."""
        costs = self.space.costs(genotypes)
        found = {
            MACS: costs.macs.astype(np.float64),
            PARAMS: costs.params.astype(np.float64),
            SIZE: costs.params.astype(np.float64) * BYTES_PER_PARAMETER,
        }
        for pricer in self.pricers:
            values = np.asarray(pricer.latency_ms(self.space, genotypes), dtype=np.float64)
            if values.shape != (len(genotypes),) or not np.isfinite(values).all() or (values <= 0).any():
                raise InputError(
                    f"the latency table of '{pricer.name}' prices a network at 0 ms, below, or not at all;"
                    " every network takes a finite time above 0: profile the target again"
                )
            found[latency(pricer.name)] = values
        return found

    def violations(self, prices: Prices, constraints: Sequence[Constraint] | None = None) -> Floats:
        """Return by which share each bound is exceeded, shape (n, constraints); 0 or less: it holds."""
        constraints = self.constraints if constraints is None else constraints
        n = len(next(iter(prices.values())))
        columns = [prices[c.objective] / c.upper - 1.0 for c in constraints]
        return np.stack(columns, axis=1) if columns else np.empty((n, 0))

    def feasible(self, prices: Prices) -> npt.NDArray[np.bool_]:
        """Return which of the priced archs meet every constraint, shape (n,)."""
        meets = np.ones(len(next(iter(prices.values()))), dtype=bool)
        for c in self.constraints:
            meets &= prices[c.objective] <= c.upper
        return meets

    # -- the space as a whole ---------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Whether the whole space is priced."""
        return self.space.count() <= EXACT_LIMIT

    @cached_property
    def _survey(self) -> tuple[npt.NDArray[np.int64], dict[Objective, tuple[float, int]], tuple[float, int]]:
        """Price the whole space: (numbers of the feasible networks, least of each cost, least excess)."""
        feasible: list[npt.NDArray[np.int64]] = []
        least: dict[Objective, tuple[float, int]] = {}
        excess = (math.inf, 0)
        for start in range(0, self.space.count(), _CHUNK):
            genotypes = self.space.genotypes(start, min(start + _CHUNK, self.space.count()))
            prices = self.prices(genotypes)
            feasible.append(start + np.flatnonzero(self.feasible(prices)))
            for objective, values in prices.items():
                at = int(values.argmin())
                least[objective] = min(least.get(objective, (math.inf, 0)), (float(values[at]), start + at))
            total = np.maximum(self.violations(prices), 0).sum(axis=1)
            at = int(total.argmin())
            excess = min(excess, (float(total[at]), start + at))
        return np.concatenate(feasible), least, excess

    def feasible_count(self) -> int | None:
        """Return how many networks meet every constraint; None where the space is too large to count them."""
        if not self.constraints:
            return self.space.count()
        return len(self._survey[0]) if self.exact else None

    def affordable(self, objectives: Sequence[Objective]) -> Affordable:
        """Return every network that meets the constraints, in a space that is priced whole.

        Parameters
        ----------
        objectives
            Costs to be listed with the networks; kept, so that asking again is free.

        Raises
        ------
        InputError
            If the space is not :attr:`exact`.
        """
        if not self.exact:
            raise InputError(
                f"spaces of up to {EXACT_LIMIT:,} networks are listed whole, not this {self.space.name} space"
                f" of {self.space.count():,}; draw from it instead"
            )
        asked = tuple(objectives)
        if asked not in self._affordable:
            numbers = self._feasible_numbers
            costs = np.empty((len(numbers), len(asked)))
            for start in range(0, len(numbers), _CHUNK):
                prices = self.prices(self._genotypes(numbers[start : start + _CHUNK]))
                for column, objective in enumerate(asked):
                    costs[start : start + _CHUNK, column] = prices[objective]
            self._affordable[asked] = Affordable(self.space.shape, numbers, costs)
        return self._affordable[asked]

    @property
    def _feasible_numbers(self) -> npt.NDArray[np.int64]:
        return self._survey[0] if self.constraints else np.arange(self.space.count(), dtype=np.int64)

    def _genotypes(self, numbers: npt.NDArray[np.int64]) -> Genotypes:
        return _numbered(numbers, self.space.shape)

    def smallest(self, objective: Objective) -> Smallest:
        """Return the least that a cost can be in the space: exact, or found by descent in a large space."""
        self.require(objective)
        if self.exact:
            value, number = self._survey[1][objective]
            return Smallest(value, self._genotypes(np.array([number]))[0], True)

        def cost(genotypes: Genotypes) -> Floats:
            return self.prices(genotypes)[objective]

        genotype = self._descend(cost)
        return Smallest(float(cost(genotype[None])[0]), genotype, False)

    def _descend(self, cost: _Cost) -> Genotypes:
        """Return a genotype that no single change improves, best of several descents; a fixed result."""
        starts = self.space.sample_genotypes(np.random.default_rng(0), _DESCENT_STARTS)
        current = np.concatenate([np.zeros((1, len(self.space.shape)), dtype=np.int64), starts])
        values = cost(current)
        for _ in range(_DESCENT_SWEEPS):
            before = values.copy()
            for gene, size in enumerate(self.space.shape):
                if size == 1:
                    continue
                options = np.repeat(current, size, axis=0)
                options[:, gene] = np.tile(np.arange(size), len(current))
                priced = cost(options).reshape(-1, size)
                current[:, gene] = priced.argmin(axis=1)
                values = priced.min(axis=1)
            if (values >= before).all():
                break
        best: Genotypes = current[int(values.argmin())].copy()
        return best

    @cached_property
    def anchor(self) -> Genotypes:
        """A network that meets every constraint, shape (genes,).

        Raises
        ------
        BudgetError
            If there is none (or, in a space too large to be priced whole, none was found); the message names
            the smallest achievable value and the network that attains it.
        """
        if not self.constraints:
            return np.zeros(len(self.space.shape), dtype=np.int64)
        if self.exact:
            numbers, _, (_, nearest) = self._survey
            found = np.array(self._genotypes(np.array([numbers[0] if len(numbers) else nearest]))[0])
        else:
            found = self._descend(lambda g: np.maximum(self.violations(self.prices(g)), 0).sum(axis=1))
        if bool(self.feasible(self.prices(found[None]))[0]):
            return found
        raise self._refusal(found)

    def _refusal(self, nearest: Genotypes) -> BudgetError:
        """Return the error that names the smallest achievable budget; ``nearest`` misses all bounds least."""
        how = "" if self.exact else " (found by descent: the space is too large to be priced whole)"
        space = f"{self.space.name} space of {self.space.count():,} networks"
        for constraint in self.constraints:
            least = self.smallest(constraint.objective)
            if not constraint.holds(least.value):
                arch = self.space.decode(least.genotype)
                return BudgetError(
                    f"no network of this {space} meets {constraint}: the smallest achievable is"
                    f" {constraint.objective.format(least.value, up=True)}{how}, by the network {arch.id} at"
                    f" {arch.number('resolution')} px; raise the budget to that"
                )
        prices = self.prices(nearest[None])
        costs = ", ".join(
            f"{c.objective} = {c.objective.format(float(prices[c.objective][0]), up=True)}"
            for c in self.constraints
        )
        return BudgetError(
            f"no network of this {space} meets {' and '.join(map(str, self.constraints))} together, though"
            f" each alone can be met; the nearest has {costs}{how}, by the network"
            f" {self.space.decode(nearest).id}; loosen a budget"
        )

    # -- drawing ----------------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator, n: int, seen: Set[bytes]) -> Genotypes:
        """Return up to ``n`` distinct networks that meet every constraint and are not in ``seen``.

        In a space that is priced whole the draw is uniform, and fewer than ``n`` are returned exactly if no
        more exist. In a larger space it is nearly so: networks of a uniform draw that exceed a constraint
        walk towards :attr:`anchor`, gene by gene in random order, up to the first network that meets them
        all, and then away from it again, by random changes of single genes within the constraints. The work
        is bounded; fewer than ``n`` are returned if the draws keep repeating.

        Parameters
        ----------
        rng
            Source of randomness.
        n
            How many to return, shape (at most n, genes).
        seen
            Keys (:func:`key`) of networks that are not to be drawn.
        """
        if n <= 0:
            return np.empty((0, len(self.space.shape)), dtype=np.int64)
        if self.exact:
            return self._sample_exact(rng, n, seen)
        anchor, taken = self.anchor, set(seen)
        found: list[Genotypes] = []
        for _ in range(_SAMPLE_ROUNDS):
            draws = self.space.sample_genotypes(rng, 2 * n)
            for genotype in self._spread(self._towards(draws, anchor, rng), rng):
                if len(found) < n and key(genotype) not in taken:
                    taken.add(key(genotype))
                    found.append(genotype)
            if len(found) == n:
                break
        return np.array(found, dtype=np.int64).reshape(-1, len(self.space.shape))

    def _sample_exact(self, rng: np.random.Generator, n: int, seen: Set[bytes]) -> Genotypes:
        pool = self._feasible_numbers
        pool = pool[~np.isin(pool, _numbers(seen, self.space.shape), assume_unique=True)]
        return self._genotypes(rng.choice(pool, size=min(n, len(pool)), replace=False))

    def _towards(self, draws: Genotypes, anchor: Genotypes, rng: np.random.Generator) -> Genotypes:
        """Return, for every draw, the first network that meets the constraints on its way to the anchor."""
        genes = draws.shape[1]
        order = rng.permuted(np.tile(np.arange(genes), (len(draws), 1)), axis=1)
        # Step s of a walk has the anchor's value in the first s genes of the walk's own order.
        replaced = order.argsort(axis=1)[:, None, :] < np.arange(genes + 1)[None, :, None]
        walks = np.where(replaced, anchor, draws[:, None, :])
        meets = self.feasible(self.prices(walks.reshape(-1, genes))).reshape(len(draws), genes + 1)
        first: Genotypes = walks[np.arange(len(draws)), meets.argmax(axis=1)]
        return first

    def _spread(self, networks: Genotypes, rng: np.random.Generator) -> Genotypes:
        """Return networks within the constraints that hardly depend on those they are made from, as many.

        Each gene in turn is offered a random value, which is taken where the constraints still hold: the
        Metropolis algorithm, whose draws become uniform over what such steps can reach.
        """
        shape = np.array(self.space.shape)
        spread = networks.copy()
        for _ in range(_SPREAD_SWEEPS):
            for gene in rng.permutation(np.flatnonzero(shape > 1)):
                offered = spread.copy()
                offered[:, gene] = rng.integers(shape[gene], size=len(spread))
                meets = self.feasible(self.prices(offered))
                spread[meets] = offered[meets]
        return spread

    def neighbours(self, parents: Genotypes, rng: np.random.Generator, n: int) -> Genotypes:
        """Return ``n`` mutants of random parents, shape (n, genes), whether within the budget or not.

        Each searched gene moves to another value with probability 1 / (searched genes); at least one does.
        """
        shape = np.array(self.space.shape)
        searched = np.flatnonzero(shape > 1)
        children = parents[rng.integers(len(parents), size=n)].copy()
        if len(searched) == 0:
            return children
        moves = rng.random((n, len(searched))) < 1.0 / len(searched)
        still = ~moves.any(axis=1)
        moves[still, rng.integers(len(searched), size=n)[still]] = True
        steps = rng.integers(1, shape[searched], size=(n, len(searched)))
        moved = (children[:, searched] + steps) % shape[searched]
        children[:, searched] = np.where(moves, moved, children[:, searched])
        return np.asarray(children)


class _Cost(Protocol):
    def __call__(self, genotypes: Genotypes, /) -> Floats: ...


_SAMPLE_ROUNDS = 32
_SPREAD_SWEEPS = 6


def key(genotype: Genotypes) -> bytes:
    """Return the genotype as a hashable key: equal for equal networks of a space."""
    return np.ascontiguousarray(genotype, dtype=np.int64).tobytes()


def _numbers(keys: Set[bytes], shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Return the numbers, in the space's fixed order, of networks given by their keys; ascending."""
    genotypes = np.array([np.frombuffer(each, dtype=np.int64) for each in keys]).reshape(-1, len(shape))
    numbers: npt.NDArray[np.int64] = np.sort(np.ravel_multi_index(tuple(genotypes.astype(np.int64).T), shape))
    return numbers


def _numbered(numbers: npt.NDArray[np.int64], shape: tuple[int, ...]) -> Genotypes:
    """Return the networks of these numbers in the space's fixed order, shape (n, genes)."""
    columns = np.unravel_index(numbers, shape)
    genotypes: Genotypes = np.stack(columns, axis=1).astype(np.int64)
    return genotypes
