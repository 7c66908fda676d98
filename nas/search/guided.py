"""Predictor-guided search: candidates are those that would enlarge the front most if a guess of all APs were
true.

Each candidate of a generation has a guess of its own: a sample of the accuracy predictor's posterior over
every network within the budget. Where little is known the guesses differ, so the candidates explore; where
much is known they agree, and the candidates fill the predicted Pareto front up. Of one guess that network is
taken which adds most hypervolume to the networks measured and the candidates taken before, all valued by the
same guess: so a lucky measurement is no benchmark to be beaten, and the candidates of a generation spread
over the front by themselves (Thompson sampling for hypervolume improvement; Bradford et al. 2018, "Efficient
multiobjective optimization employing Gaussian processes, spectral sampling and a genetic algorithm"; Daulton
et al. 2021, "Parallel Bayesian optimization of multiple noisy objectives with expected hypervolume
improvement").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from nas.pareto import pareto_front
from nas.search.accuracy import AccuracyPredictor, Surface
from nas.search.objectives import Objective
from nas.search.pricing import Affordable, key
from nas.search.sampler import Known, Sampler
from search_spaces import Genotypes

__all__ = ["Guided", "improvements"]

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]

_BEGINNING: Final = 8
"""From fewer measured networks nothing is learned."""
_MARGIN: Final = 1.01
"""The reference is a little dearer than the dearest network, so that this one counts too."""
_AIMED: Final = 24
_DIRECTIONS: Final = 256
_DRAWN: Final = 512
_CHILDREN: Final = 512
_ROUNDS: Final = 8


class Guided(Sampler):
    """Proposes what an accuracy predictor takes for promising, the price of everything being known."""

    name = "guided"

    def origin(self, known: Known) -> str:
        """Return ``guided``, or ``sample`` while next to nothing is known."""
        return "guided" if len(known.genotypes) >= _BEGINNING else "sample"

    def propose(self, known: Known, rng: np.random.Generator, n: int) -> Genotypes:
        """Return up to ``n`` new networks within the budget; random ones while next to nothing is known."""
        if len(known.genotypes) < _BEGINNING:
            return super().propose(known, rng, n)
        predictor = AccuracyPredictor.fit(known.pricing.space.choices, *known.lessons())
        pool = _whole(known) if known.pricing.exact else _drawn(known, predictor, rng)
        measured = _costs(known, known.genotypes)
        most = np.concatenate([measured, pool.costs]).max(axis=0) * _MARGIN
        fresh = np.zeros(len(pool.costs), dtype=bool)
        fresh[pool.fresh] = True
        taken: list[int] = []
        for _ in range(min(n, len(pool.fresh))):
            surface = predictor.sample(rng)
            guess = pool.guess(surface)
            rivals = np.concatenate([measured, pool.costs[taken]])
            values = np.concatenate([surface.at(known.genotypes), guess[taken]])
            floor = float(guess.min())
            guess[~fresh] = -np.inf
            place = _most_improving(pool.costs, guess, pool.order, rivals, values, most, floor, rng)
            if place is not None:
                taken.append(place)
                fresh[place] = False
        return pool.genotypes(np.array(taken, dtype=np.intp))


def improvements(
    costs: Floats, aps: Floats, rival_costs: Floats, rival_aps: Floats, most: float, floor: float
) -> Floats:
    """Return the hypervolume that each network alone would add to its rivals', shape (n,).

    Parameters
    ----------
    costs, aps
        Of the networks, shape (n,) each.
    rival_costs, rival_aps
        Of the networks that are there already, shape (rivals,) each, in any order.
    most, floor
        The reference: only networks below this cost and above this AP have a volume.
    """
    order = np.argsort(rival_costs, kind="stable")
    steps = np.minimum(rival_costs[order], most)
    heights = np.maximum.accumulate(np.concatenate([[floor], rival_aps[order]]))
    begin, end = np.concatenate([[-np.inf], steps]), np.append(steps, most)
    widths = np.maximum(end - np.maximum(begin, costs[:, None]), 0.0)
    gains = np.maximum(aps[:, None] - heights, 0.0)
    total: Floats = (widths * gains).sum(axis=1)
    return total


def _most_improving(
    costs: Floats,
    guess: Floats,
    order: Places,
    rival_costs: Floats,
    rival_aps: Floats,
    most: Floats,
    floor: float,
    rng: np.random.Generator,
) -> int | None:
    """Return the place of the network that adds most hypervolume by this guess; None if none adds any."""
    if costs.shape[1] == 0:
        places = np.array([guess.argmax()])  # a network that is better still is looked for to the end
        gains = guess[places] - floor
    elif costs.shape[1] == 1:
        # Only the front of the guess can add most: in order of cost, whatever is better than all before.
        along = guess[order]
        before = np.concatenate([[floor], np.maximum.accumulate(along)[:-1]])
        places = order[along > before]
        gains = improvements(costs[places, 0], guess[places], rival_costs[:, 0], rival_aps, most[0], floor)
    else:
        places, gains = _along_directions(costs, guess, rival_costs, rival_aps, most, floor, rng)
    if len(places) == 0 or gains.max() <= 0:
        return None
    return int(places[gains.argmax()])


def _along_directions(
    costs: Floats,
    guess: Floats,
    rival_costs: Floats,
    rival_aps: Floats,
    most: Floats,
    floor: float,
    rng: np.random.Generator,
) -> tuple[Places, Floats]:
    """Return places of promising networks, and what each adds to the hypervolume, for several costs.

    The hypervolume is, up to a constant, the mean over random directions of the power of how far the networks
    reach along each (Zhang and Golovin 2020, "Random hypervolume scalarizations for provable multi-objective
    black box optimization", lemma 5). Only the networks that reach furthest along some direction are
    considered.
    """
    axes = costs.shape[1] + 1
    directions = np.abs(rng.standard_normal((_DIRECTIONS, axes)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    least, height = costs.min(axis=0), max(float(guess.max()), float(rival_aps.max())) - floor

    def normalised(some_costs: Floats, aps: Floats) -> Floats:
        better = (most - some_costs) / (most - least)
        return np.column_stack([better, (aps - floor) / (height or 1.0)])

    def reach(gains: Floats, direction: Floats) -> Floats:
        return np.asarray((gains / direction).min(axis=1))

    everything = normalised(costs, guess)
    places = np.unique([reach(everything, direction).argmax() for direction in directions[:_AIMED]])
    candidates, rivals = everything[places], normalised(rival_costs, rival_aps)
    gains = np.zeros(len(places))
    for direction in directions:
        known = max(float(reach(rivals, direction).max()), 0.0)
        gains += np.maximum(reach(candidates, direction), known) ** axes - known**axes
    return places, gains


# -- the networks that are considered ----------------------------------------------------------------------


class _Pool(Protocol):
    """Networks within the budget.

    Attributes
    ----------
    costs
        Shape (networks, costs traded off).
    order
        Places by rising first cost.
    fresh
        Places of those that were not seen yet.
    """

    costs: Floats
    order: Places
    fresh: Places

    def guess(self, surface: Surface) -> Floats:
        """Return a guess of every network's AP, shape (networks,)."""
        ...

    def genotypes(self, places: Places) -> Genotypes:
        """Return the networks at some places, shape (places, genes)."""
        ...


@dataclass
class _Whole:
    affordable: Affordable
    costs: Floats
    order: Places
    fresh: Places
    everything: bool

    def guess(self, surface: Surface) -> Floats:
        values = surface.everywhere()
        return values if self.everything else values[self.affordable.numbers]

    def genotypes(self, places: Places) -> Genotypes:
        return self.affordable.genotypes(places)


@dataclass
class _Drawn:
    networks: Genotypes
    costs: Floats
    order: Places
    fresh: Places

    def guess(self, surface: Surface) -> Floats:
        return surface.at(self.networks)

    def genotypes(self, places: Places) -> Genotypes:
        return self.networks[places]


def _axes(known: Known) -> tuple[Objective, ...]:
    return tuple(objective for objective in known.objectives if objective.is_cost)


def _costs(known: Known, genotypes: Genotypes) -> Floats:
    """Return the traded-off costs of genotypes, shape (n, costs)."""
    prices, axes = known.pricing.prices(genotypes), _axes(known)
    return np.array([prices[axis] for axis in axes]).reshape(len(axes), len(genotypes)).T


def _by_cost(costs: Floats) -> Places:
    return np.argsort(costs[:, 0], kind="stable") if costs.shape[1] else np.arange(len(costs))


def _whole(known: Known) -> _Pool:
    """Return every network within the budget, of a space that is priced whole."""
    affordable = known.pricing.affordable(_axes(known))
    costs, everything = affordable.costs, len(affordable.numbers) == known.pricing.space.count()
    return _Whole(affordable, costs, _by_cost(costs), affordable.unseen(known.seen), everything)


def _drawn(known: Known, predictor: AccuracyPredictor, rng: np.random.Generator) -> _Pool:
    """Return new networks within the budget of a larger space, bred from guesses of the predictor.

    Round by round, mutants of a guess's front join the pool; each round has a guess of its own.
    """
    pricing, seen = known.pricing, set(known.seen)
    networks = pricing.sample(rng, _DRAWN, seen)
    seen.update(map(key, networks))
    for _ in range(_ROUNDS):
        surface = predictor.sample(rng)
        everybody = np.concatenate([networks, known.genotypes])
        losses = np.column_stack([-surface.at(everybody), _costs(known, everybody)])
        parents = everybody[pareto_front(losses, ["minimize"] * losses.shape[1])]
        children = np.unique(pricing.neighbours(parents, rng, _CHILDREN), axis=0)
        children = children[pricing.feasible(pricing.prices(children))]
        children = children[[key(child) not in seen for child in children]]
        seen.update(map(key, children))
        networks = np.concatenate([networks, children])
    costs = _costs(known, networks)
    return _Drawn(networks, costs, _by_cost(costs), np.arange(len(networks)))
