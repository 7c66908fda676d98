"""Who proposes candidates: a sampler only proposes, the engine prices, de-duplicates and evaluates."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import optuna

from nas.search.guided import Guided
from nas.search.objectives import MACS
from nas.search.pricing import EXACT_LIMIT, Pricing
from nas.search.sampler import Known, Sampler
from search_spaces import Genotypes, InputError

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

__all__ = ["NSGA2", "SAMPLERS", "Exhaustive", "Guided", "Known", "Random", "Sampler"]


class _ReplayableNSGAII(optuna.samplers.NSGAIISampler):
    """NSGA-II whose parents are always listed in trial order.

    Optuna hands the elite out in order of fitness the first time and, once cached, in order of trials.
    Sorting makes a generation that is asked again after a kill the same as the one that was lost.
    """

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


class NSGA2(Sampler):
    """NSGA-II (Deb et al. 2002): constrained domination, elitism, crowding; uniform crossover of choices."""

    name = "nsga2"
    breeds = True

    def optuna_sampler(self, population: int, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return _ReplayableNSGAII(
                population_size=population,
                seed=seed,
                crossover=optuna.samplers.nsgaii.UniformCrossover(swapping_prob=0.5),
            )


class Random(Sampler):
    """Networks within the budget, drawn uniformly without repetition: the baseline to be beaten."""

    name = "random"


class Exhaustive(Sampler):
    """Every network within the budget, by rising cost.

    Networks of equal cost come in the space's own order. So a search that ends early knows the exact front up
    to the cost that it has reached. The cost is the first that the search trades off, or MACs.
    """

    name = "exhaustive"
    origin = "enumeration"

    def check(self, pricing: Pricing) -> None:
        if not pricing.exact:
            raise InputError(
                f"the sampler 'exhaustive' goes through spaces of up to {EXACT_LIMIT:,} networks; this"
                f" {pricing.space.name} space has {pricing.space.count():,}: take 'guided', or offer fewer"
                " values"
            )

    def propose(self, known: Known, rng: np.random.Generator, n: int) -> Genotypes:
        cost = next((objective for objective in known.objectives if objective.is_cost), MACS)
        affordable = known.pricing.affordable([cost])
        fresh = affordable.unseen(known.seen)
        order = np.argsort(affordable.costs[fresh, 0], kind="stable")
        return affordable.genotypes(fresh[order[:n]])


SAMPLERS: Mapping[str, Sampler] = {
    sampler.name: sampler for sampler in (Guided(), NSGA2(), Random(), Exhaustive())
}
"""Every sampler by name."""
