"""The interface of those who propose candidates: what they are told, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import optuna

from nas.search.objectives import Objective
from nas.search.pricing import Pricing
from search_spaces import Genotypes

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

__all__ = ["Known", "Sampler"]


@dataclass(frozen=True)
class Known:
    """What a sampler may go by, all of it from earlier generations.

    Attributes
    ----------
    pricing
        The space, its prices, and who meets the constraints.
    objectives
        What the search trades off.
    genotypes
        Networks whose AP was measured on all images, shape (n, genes), in the order of their trials. Those
        whose evaluation ended early are not among them: their APs are estimates, and low ones by choice.
    aps
        Their APs, shape (n,).
    seen
        Keys (:func:`nas.search.pricing.key`) of networks that are evaluated or about to be.
    """

    pricing: Pricing
    objectives: Sequence[Objective]
    genotypes: Genotypes
    aps: npt.NDArray[np.float64]
    seen: Set[bytes]


class Sampler:
    """One way of proposing the candidates of a generation: at random, where a subclass does nothing else.

    A sampler has no state: what it proposes follows from what it is told and from the generator, so that a
    generation which is asked again after a kill is the same one. The engine prices every proposal, drops what
    exceeds a constraint or repeats a network, and evaluates the rest.
    """

    name: ClassVar[str]

    origin: ClassVar[str] = "sample"
    """What the records of its proposals say about where they come from."""

    breeds: ClassVar[bool] = False
    """Whether later generations are asked of the Optuna sampler; nothing is proposed then."""

    def check(self, pricing: Pricing) -> None:
        """Raise :class:`InputError` if the sampler cannot search this space."""
        del pricing

    def optuna_sampler(self, population: int, seed: int) -> BaseSampler:
        """Return the Optuna sampler of one generation, seeded for it alone."""
        del population
        return optuna.samplers.RandomSampler(seed=seed)

    def propose(self, known: Known, rng: np.random.Generator, n: int) -> Genotypes:
        """Return up to ``n`` distinct new networks that meet every constraint, shape (at most n, genes).

        Where fewer are returned, the engine completes the generation: mutants of the front, random networks.
        """
        return known.pricing.sample(rng, n, known.seen)
