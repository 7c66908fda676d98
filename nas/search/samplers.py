"""Who proposes candidates: a sampler only proposes, the engine prices, de-duplicates and evaluates."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import optuna

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial


class _ReplayableNSGAII(optuna.samplers.NSGAIISampler):
    """NSGA-II whose parents are always listed in trial order.

    Optuna hands the elite out in order of fitness the first time and, once cached, in order of trials.
    Sorting makes a generation that is asked again after a kill the same as the one that was lost.
    """

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        return sorted(super().select_parent(study, generation), key=lambda trial: trial.number)


class Sampler(ABC):
    """One way of proposing the candidates of a generation.

    The first generation is always drawn by the engine: the archs it was given, then random networks within
    the budget.
    """

    name: ClassVar[str]

    breeds: ClassVar[bool]
    """Whether later generations are asked of the Optuna sampler; otherwise they are drawn like the first."""

    @abstractmethod
    def optuna_sampler(self, population: int, seed: int) -> BaseSampler:
        """Return the Optuna sampler of one generation, seeded for it alone."""


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
    breeds = False

    def optuna_sampler(self, population: int, seed: int) -> BaseSampler:
        return optuna.samplers.RandomSampler(seed=seed)


SAMPLERS: Mapping[str, Sampler] = {sampler.name: sampler for sampler in (NSGA2(), Random())}
"""Every sampler by name."""
