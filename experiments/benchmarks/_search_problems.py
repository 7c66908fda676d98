"""Search problems whose exact front is known, and how far a search got in one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from nas.pareto import hypervolume, pareto_front
from nas.search import MACS, Constraint, LatencyPricer
from nas.search.guided import improvements
from nas.search.objectives import Direction
from nas.search.tabular import Listed, Table
from search_spaces import Genotypes, SearchSpace, litepose_native

Floats = npt.NDArray[np.float64]
DIRECTIONS: tuple[Direction, Direction] = ("minimize", "maximize")

STAGES = (32, 64, 96, 160)
DEPTHS = (6, 8, 10, 10)
STEPS = (64, 48, 32)


def made_up_ap(values: Mapping[str, Floats]) -> Floats:
    """Return an AP that behaves as networks do, though it is made up; roughly LitePose's own figures.

    Widths and depths have diminishing returns. The backbone is as good as its weaker stages (a power mean of
    exponent -2), and what resolution brings depends on the backbone; later deconv steps matter more at high
    resolution; a kernel fits a resolution best and loses on both sides. Everything is multiplied, so no sum
    over single values or pairs of values is exact.

    Parameters
    ----------
    values
        Columns by name, as in :attr:`Arch.values`, each of shape (n,).
    """
    resolution = values["resolution"]
    quality = [
        1.0 - np.exp(-1.6 * (values[f"stage{i}.width"] / width) * np.sqrt(values[f"stage{i}.depth"] / depth))
        for i, (width, depth) in enumerate(zip(STAGES, DEPTHS, strict=True))
    ]
    weights = (0.15, 0.2, 0.3, 0.35)
    backbone = sum(w * q**-2.0 for w, q in zip(weights, quality, strict=True)) ** -0.5
    pixels = 1.0 - np.exp(-(resolution / 256.0) * (0.4 + 0.9 * backbone))
    finer = resolution / 512.0
    steps = [1.0 - np.exp(-1.5 * values[f"head.deconv{i}.width"] / width) for i, width in enumerate(STEPS)]
    head = 0.72 + 0.28 * (0.45 * steps[0] + 0.35 * steps[1] + 0.3 * finer * steps[2])
    stem = 1.0 - 0.12 * np.exp(-values["stem_width"] / 9.0)
    best_kernel = 7.0 * np.sqrt(resolution / 448.0)
    misfit = sum(np.log2(values[f"stage{i}.kernel"] / best_kernel) ** 2 for i in range(4)) / 4
    ap: Floats = 0.87 * backbone**0.5 * pixels * head * stem * (1.0 - 0.12 * misfit)
    return ap


class Problem(ABC):
    """Networks with their cost and AP, and how a search gets at them.

    Attributes
    ----------
    name, title
        A key, and what it is in a line.
    space
        Whose networks they are.
    macs, aps
        Of every network, shape (networks,). The APs are the true ones: what counts in the end.
    offered
        Which networks are on offer, shape (networks,).
    constraints, pricers
        What keeps our searches to those.
    limit
        No search of this problem goes further; None: as far as is asked.
    """

    name: str
    title: str
    space: SearchSpace
    macs: Floats
    aps: Floats
    offered: npt.NDArray[np.bool_]
    constraints: tuple[Constraint, ...] = ()
    pricers: tuple[LatencyPricer, ...] = ()
    limit: int | None = None

    @abstractmethod
    def find(self, genotype: Genotypes) -> int:
        """Return the place of the network that is measured for a genotype, shape (genes,)."""

    def measured(self, place: int, seed: int) -> float:
        """Return the AP that measuring a network gives; the same whenever it is measured with this seed."""
        del seed
        return float(self.aps[place])

    @cached_property
    def reference(self) -> tuple[float, float]:
        """The largest MACs and the least AP of the networks on offer."""
        return float(self.macs[self.offered].max()), float(self.aps[self.offered].min())

    @cached_property
    def front(self) -> Floats:
        """MACs and AP of the true front, shape (networks, 2)."""
        points = np.column_stack([self.macs, self.aps])[self.offered]
        return np.asarray(points[pareto_front(points, DIRECTIONS)])

    @cached_property
    def volume(self) -> float:
        """The true hypervolume."""
        return hypervolume(self.front, self.reference, DIRECTIONS)


class Analytic(Problem):
    """A made-up AP over LitePose's native space, 245,760 networks.

    Parameters
    ----------
    noise
        Standard deviation of what is added to a network's AP when it is measured.
    max_macs
        The budget; None: there is none.
    """

    def __init__(self, noise: float = 0.0, max_macs: float | None = None) -> None:
        self.noise = noise
        self.space = litepose_native(joints=14)
        genotypes = self.space.genotypes()
        self.aps = made_up_ap(
            {
                choice.name: np.array(choice.values, dtype=np.float64)[genotypes[:, gene]]
                for gene, choice in enumerate(self.space.choices)
            }
        )
        self.macs = self.space.costs(genotypes).macs.astype(np.float64)
        self.offered = np.ones(len(genotypes), dtype=bool)
        words = [f"noise of sd {noise:g}" if noise else "no noise"]
        if max_macs is not None:
            self.constraints = (Constraint(MACS, max_macs),)
            self.offered = self.macs <= max_macs
            words.append(f"at most {max_macs / 1e9:g} GMACs")
        self.name = "analytic" + "-noisy" * (noise > 0) + "-budget" * (max_macs is not None)
        self.title = f"made-up AP, {', '.join(words)}"

    def find(self, genotype: Genotypes) -> int:
        """Return the network's number in the space."""
        return int(np.ravel_multi_index(tuple(genotype), self.space.shape))

    def measured(self, place: int, seed: int) -> float:
        """Return the true AP and this network's noise."""
        off = np.random.default_rng([seed, place]).normal(0.0, self.noise) if self.noise else 0.0
        return max(0.0, float(self.aps[place]) + off)


class Tabular(Problem):
    """A table of networks that a supernet was really asked for. What it lacks is not on offer."""

    def __init__(self, table: Table) -> None:
        listed = Listed(table)
        self.table, self.space, self.name = table, table.space, table.name
        self.aps = table.aps
        self.macs = table.space.costs(table.genotypes).macs.astype(np.float64)
        self.offered = np.ones(len(self.aps), dtype=bool)
        self.constraints, self.pricers, self.limit = (listed.constraint,), (listed,), len(self.aps)
        self.title = f"recorded table '{table.name}'"

    def find(self, genotype: Genotypes) -> int:
        """Return the place of the network, or of the one most like it: choices compared by rank."""
        sizes = np.maximum(np.array(self.space.shape) - 1, 1)
        return int((np.abs(self.table.genotypes - genotype) / sizes).sum(axis=1).argmin())


class Course:
    """How much of the true hypervolume a search's networks have, evaluation by evaluation.

    Attributes
    ----------
    shares
        After each evaluation.
    repeated, outside
        How many evaluations were of a network measured before, and of one that was not on offer.
    """

    def __init__(self, problem: Problem, enough: float) -> None:
        self.problem, self.enough = problem, enough
        self.shares: list[float] = []
        self.repeated = self.outside = 0
        self._seen: set[int] = set()
        self._front = np.empty((0, 2))
        self._volume = 0.0

    @property
    def done(self) -> bool:
        """Whether enough of the hypervolume is there."""
        return bool(self.shares) and self.shares[-1] >= self.enough

    def add(self, place: int) -> None:
        """Count one evaluation."""
        if place in self._seen:
            self.repeated += 1
        elif not self.problem.offered[place]:
            self.outside += 1
        else:
            macs, ap = self.problem.macs[[place]], self.problem.aps[[place]]
            most, floor = self.problem.reference
            gain = improvements(macs, ap, self._front[:, 0], self._front[:, 1], most, floor)[0]
            if gain > 0:
                points = np.vstack([self._front, [macs[0], ap[0]]])
                self._front = points[pareto_front(points, DIRECTIONS)]
                self._volume += float(gain)
        self._seen.add(place)
        self.shares.append(self._volume / self.problem.volume)

    def needed(self, share: float) -> int | None:
        """Return after how many evaluations the share was reached; None if it was not."""
        reached = np.array(self.shares) >= share
        return int(reached.argmax()) + 1 if reached.any() else None
