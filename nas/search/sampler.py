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

__all__ = ["Estimates", "Known", "Sampler"]


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimates:
    """Networks whose evaluation ended early, since each was sure to lose against one that costs no more.

    Attributes
    ----------
    genotypes
        Shape (n, genes), in the order of their trials.
    aps
        Estimates of their APs on all images, shape (n,).
    deviations
        Standard errors of these, shape (n,).
    """

    genotypes: Genotypes
    aps: Floats
    deviations: Floats


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
        Networks whose AP was measured on all images, shape (n, genes), in the order of their trials.
    aps
        Their APs, shape (n,).
    seen
        Keys (:func:`nas.search.pricing.key`) of networks that are evaluated or about to be.
    losers
        Networks whose evaluation ended early. They tell where AP is low, but are no rivals: none will be
        chosen.
    """

    pricing: Pricing
    objectives: Sequence[Objective]
    genotypes: Genotypes
    aps: Floats
    seen: Set[bytes]
    losers: Estimates | None = None

    def lessons(self) -> tuple[Genotypes, Floats, Floats]:
        """Return every network that AP can be learned from, its AP, and the standard error of that."""
        exact = np.zeros(len(self.aps))
        if self.losers is None:
            return self.genotypes, self.aps, exact
        return (
            np.concatenate([self.genotypes, self.losers.genotypes]),
            np.concatenate([self.aps, self.losers.aps]),
            np.concatenate([exact, self.losers.deviations]),
        )


class Sampler:
    """One way of proposing the candidates of a generation: at random, where a subclass does nothing else.

    A sampler has no state: what it proposes follows from what it is told and from the generator, so that a
    generation which is asked again after a kill is the same one. The engine prices every proposal, drops what
    exceeds a constraint or repeats a network, and evaluates the rest.
    """

    name: ClassVar[str]

    breeds: ClassVar[bool] = False
    """Whether later generations are asked of the Optuna sampler; nothing is proposed then."""

    def check(self, pricing: Pricing) -> None:
        """Raise :class:`InputError` if the sampler cannot search this space."""
        del pricing

    def origin(self, known: Known) -> str:
        """Return what the records of its proposals say about where they come from."""
        del known
        return "sample"

    def optuna_sampler(self, population: int, seed: int) -> BaseSampler:
        """Return the Optuna sampler of one generation, seeded for it alone."""
        del population
        return optuna.samplers.RandomSampler(seed=seed)

    def propose(self, known: Known, rng: np.random.Generator, n: int) -> Genotypes:
        """Return up to ``n`` distinct new networks that meet every constraint, shape (at most n, genes).

        Where fewer are returned, the engine completes the generation: mutants of the front, random networks.
        """
        return known.pricing.sample(rng, n, known.seen)
