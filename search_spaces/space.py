"""SearchSpace: an ordered set of named choices, priced whole by table look-up."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.arch import Arch, Family, Value
from search_spaces.errors import InputError, did_you_mean
from search_spaces.layers import Block, Cost, Layer

Genotypes = npt.NDArray[np.int64]
"""Integer array, shape (genes,) for one arch or (n, genes) for many: the index of each choice's value."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that is searched.

    Attributes
    ----------
    name
        The arch value it sets, e.g. ``stage0.width``; of a choice that sets several, a name for all.
    values
        The distinct values it may take, ascending for numbers.
    nominal
        How many options it was declared with; rounding may make some of them coincide.
    sets
        Names of the arch values that it sets together, where they cannot be chosen one by one (a layer that
        may be absent has neither width nor kernel then); () for the one that it is called after.
    settings
        What each of ``values`` sets those to, in their order, the largest last; () likewise. The values are
        names for them.

    Raises
    ------
    InputError
        On construction, if a value or a setting stands there twice or the settings do not fit the values.
    """

    name: str
    values: tuple[Value, ...]
    nominal: int
    sets: tuple[str, ...] = ()
    settings: tuple[tuple[Value, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.values or len(set(self.values)) != len(self.values):
            raise InputError(
                f"the choice '{self.name}' needs at least one value and no value twice, not {self.values}"
            )
        whole = all(len(setting) == len(self.sets) for setting in self.settings)
        if self.sets and (len(set(self.settings)) != len(self.values) or not whole):
            raise InputError(
                f"the choice '{self.name}' needs one setting of {', '.join(self.sets)} for each of its"
                f" {len(self.values)} values and none twice, not {self.settings}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arch values that it sets."""
        return self.sets or (self.name,)

    def setting(self, gene: int) -> dict[str, Value]:
        """Return what the value number ``gene`` sets, by name."""
        if not self.sets:
            return {self.name: self.values[gene]}
        return dict(zip(self.sets, self.settings[gene], strict=True))

    def gene(self, arch: Arch) -> int | None:
        """Return the number of the value that an arch has; None if it is not offered."""
        if not self.sets:
            value = arch[self.name]
            return self.values.index(value) if value in self.values else None
        found = tuple(arch[name] for name in self.sets)
        return self.settings.index(found) if found in self.settings else None


@dataclass(frozen=True)
class Costs:
    """Costs of many archs: int64 arrays of shape (n,), in the order of the genotypes priced."""

    params: npt.NDArray[np.int64]
    macs: npt.NDArray[np.int64]
    macs_paper: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Term:
    """The blocks that depend on the same genes; ``variants[v]`` are those executed for their v-th setting."""

    genes: tuple[int, ...]
    shape: tuple[int, ...]
    variants: tuple[tuple[Block, ...], ...]

    def variant(self, columns: Genotypes) -> npt.NDArray[np.int64]:
        """Return the setting's number for every genotype, shape (n,); ``columns`` has shape (genes, n)."""
        flat = np.zeros(columns.shape[1], dtype=np.int64)
        for gene, size in zip(self.genes, self.shape, strict=True):
            if size > 1:
                flat *= size
                flat += columns[gene]
        return flat


class SearchSpace(ABC):
    """What may be searched: a product of choices over the values of one family.

    Distinct genotypes build distinct networks (options that coincide after rounding are merged), so the
    genotype is canonical and ``count()`` is exact.
    """

    # -- what an implementation states -----------------------------------------------------------------

    @property
    @abstractmethod
    def name(self) -> str:
        """The kind of space, as recipes call it."""

    @property
    @abstractmethod
    def family(self) -> Family:
        """The construction rules of its archs."""

    joints: int
    """Number of keypoints that the networks predict."""

    @property
    @abstractmethod
    def choices(self) -> tuple[Choice, ...]:
        """The choices in the family's order; every value name of the family is set by exactly one."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Return a JSON-able description from which :func:`search_spaces.space_from_config` rebuilds it."""

    # -- points -----------------------------------------------------------------------------------------

    @cached_property
    def searched(self) -> tuple[Choice, ...]:
        """The choices with more than one value."""
        return tuple(choice for choice in self.choices if len(choice.values) > 1)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of values of every choice."""
        return tuple(len(choice.values) for choice in self.choices)

    @cached_property
    def most(self) -> Mapping[str, Value]:
        """The last (for numbers, the largest) value of every name, as the family's rules take them."""
        return {
            name: value
            for choice in self.choices
            for name, value in choice.setting(len(choice.values) - 1).items()
        }

    def count(self) -> int:
        """Return how many distinct networks the space holds."""
        return math.prod(self.shape)

    def nominal_count(self) -> int:
        """Return how many option combinations were declared, coinciding ones included."""
        return math.prod(choice.nominal for choice in self.choices)

    def decode(self, genotype: npt.ArrayLike) -> Arch:
        """Return the arch of a genotype, shape (genes,).

        Raises
        ------
        InputError
            If its length or an index is out of range.
        """
        genes = np.asarray(genotype)
        if genes.shape != (len(self.choices),) or not np.issubdtype(genes.dtype, np.integer):
            raise InputError(
                f"a genotype of this space is {len(self.choices)} integers,"
                f" not {genes.dtype} of shape {genes.shape}"
            )
        values: dict[str, Value] = {}
        for choice, gene in zip(self.choices, genes.tolist(), strict=True):
            if not 0 <= gene < len(choice.values):
                raise InputError(f"gene '{choice.name}' lies in 0..{len(choice.values) - 1}, not {gene}")
            values |= choice.setting(gene)
        return self.family.arch(values)

    def encode(self, arch: Arch) -> Genotypes:
        """Return the genotype of an arch, shape (genes,).

        Raises
        ------
        InputError
            If the arch is not in the space; the message lists every value that is not offered.
        """
        outside = self.differences(arch)
        if outside:
            raise InputError(f"the arch is not in this {self.name} space: {'; '.join(outside)}")
        return np.array([c.gene(arch) for c in self.choices], dtype=np.int64)

    def differences(self, arch: Arch) -> list[str]:
        """Return one line for every value of the arch that the space does not offer."""
        if arch.family != self.family:
            return [f"its family is {arch.family.name}, the space's is {self.family.name}"]
        return [
            f"{', '.join(f'{name} = {arch[name]}' for name in c.names)} is not one of"
            f" {', '.join(map(str, c.values))}"
            for c in self.choices
            if c.gene(arch) is None
        ]

    def __contains__(self, arch: object) -> bool:
        return isinstance(arch, Arch) and not self.differences(arch)

    def arch(self, values: dict[str, Value] | None = None) -> Arch:
        """Return the space's largest arch with some values set by name.

        Raises
        ------
        InputError
            If the space has no such value, or the arch is none of its networks.
        """
        merged = dict(self.most)
        for name, value in (values or {}).items():
            if name not in merged:
                raise InputError(f"the space has no value '{name}'{did_you_mean(name, merged)}")
            merged[name] = value
        arch = self.family.arch(merged)
        self.encode(arch)
        return arch

    def largest(self) -> Arch:
        """Return the arch with the last (largest) value of every choice."""
        return self.decode([len(c.values) - 1 for c in self.choices])

    def smallest(self) -> Arch:
        """Return the arch with the first (smallest) value of every choice."""
        return self.decode([0] * len(self.choices))

    # -- moving about -----------------------------------------------------------------------------------

    def sample_genotypes(self, rng: np.random.Generator, n: int) -> Genotypes:
        """Return ``n`` genotypes drawn uniformly from the distinct networks, shape (n, genes)."""
        return rng.integers(0, np.array(self.shape), size=(n, len(self.shape)), dtype=np.int64)

    def sample(self, rng: np.random.Generator) -> Arch:
        """Return an arch drawn uniformly from the distinct networks."""
        return self.decode(self.sample_genotypes(rng, 1)[0])

    def mutate(self, arch: Arch, rng: np.random.Generator, probability: float = 0.1) -> Arch:
        """Return a neighbour: each searched gene moves with ``probability``, at least one does.

        A space with a single network returns that network.

        Raises
        ------
        InputError
            If the probability is not in 0..1, or the arch is none of the space's.
        """
        if not 0 <= probability <= 1:
            raise InputError(f"a mutation probability lies in 0..1, not {probability}")
        genes = self.encode(arch)
        searched = [i for i, size in enumerate(self.shape) if size > 1]
        if not searched:
            return arch
        moved = [i for i in searched if rng.random() < probability] or [int(rng.choice(searched))]
        for i in moved:
            genes[i] = (genes[i] + rng.integers(1, self.shape[i])) % self.shape[i]
        return self.decode(genes)

    def crossover(self, first: Arch, second: Arch, rng: np.random.Generator) -> Arch:
        """Return a child that takes each gene from either parent with equal chance."""
        a, b = self.encode(first), self.encode(second)
        return self.decode(np.where(rng.random(len(a)) < 0.5, a, b))

    def genotypes(self, start: int = 0, stop: int | None = None) -> Genotypes:
        """Return the genotypes number ``start`` to ``stop`` (default: all) of the space's fixed order.

        Shape (stop - start, genes); the last choice varies fastest.

        Raises
        ------
        InputError
            If the numbers are not in 0..``count()``, or the space is too large to be numbered.
        """
        stop = self.count() if stop is None else stop
        if not 0 <= start <= stop <= self.count():
            raise InputError(f"genotype numbers lie in 0..{self.count()}, not {start}..{stop}")
        if self.count() > np.iinfo(np.int64).max:
            raise InputError(f"a space of {self.count()} networks is too large to be enumerated by number")
        numbers = np.arange(start, stop, dtype=np.int64)
        genes = np.empty((len(numbers), len(self.shape)), dtype=np.int64)
        for i in range(len(self.shape) - 1, -1, -1):
            numbers, genes[:, i] = np.divmod(numbers, self.shape[i])
        return genes

    def __iter__(self) -> Iterator[Arch]:
        """Yield every arch in the space's fixed order."""
        ranges = [range(size) for size in self.shape]
        return (self.decode(np.array(genes, dtype=np.int64)) for genes in itertools.product(*ranges))

    # -- costs ------------------------------------------------------------------------------------------

    def blocks(self, arch: Arch, size: tuple[int, int] | None = None) -> tuple[Block, ...]:
        """Return the blocks that the arch executes for this space's joints, in order."""
        return arch.blocks(self.joints, size)

    def layers(self, arch: Arch, size: tuple[int, int] | None = None) -> tuple[Layer, ...]:
        """Return the layers that the arch executes for this space's joints, in order."""
        return arch.layers(self.joints, size)

    def cost(self, arch: Arch, size: tuple[int, int] | None = None) -> Cost:
        """Return parameters and MACs of the arch."""
        return arch.cost(self.joints, size)

    @cached_property
    def _terms(self) -> tuple[_Term, ...]:
        position = {name: i for i, choice in enumerate(self.choices) for name in choice.names}
        together: dict[tuple[int, ...], list[str]] = {}
        for name, depends in self.family.block_dependencies(self.most):
            genes = tuple(dict.fromkeys(position[value] for value in depends))
            together.setdefault(genes, []).append(name)
        terms = []
        for genes, names in together.items():
            variants = []
            settings = ([self.choices[gene].setting(i) for i in range(self.shape[gene])] for gene in genes)
            for setting in itertools.product(*settings):
                values = {name: value for part in setting for name, value in part.items()}
                blocks = (self.family.block(name, values, self.joints) for name in names)
                variants.append(tuple(block for block in blocks if block is not None))
            terms.append(_Term(genes, tuple(self.shape[gene] for gene in genes), tuple(variants)))
        return tuple(terms)

    def _columns(self, genotypes: npt.ArrayLike) -> Genotypes:
        """Return checked genotypes as contiguous columns, shape (genes, n)."""
        genes = np.atleast_2d(np.asarray(genotypes))
        if (
            genes.shape[1] != len(self.shape)
            or not np.issubdtype(genes.dtype, np.integer)
            or (genes < 0).any()
            or (genes >= np.array(self.shape)).any()
        ):
            raise InputError(
                f"genotypes of this space are integers of shape (n, {len(self.shape)}), below {self.shape}"
            )
        return np.ascontiguousarray(genes.T, dtype=np.int64)

    def price(
        self, genotypes: npt.ArrayLike, block_price: Callable[[Block], float]
    ) -> npt.NDArray[np.float64]:
        """Return the sum of ``block_price`` over the blocks of every genotype.

        Parameters
        ----------
        genotypes
            Shape (n, genes).
        block_price
            Any additive price; called once for every distinct block that these genotypes execute.

        Returns
        -------
        numpy.ndarray
            float64, shape (n,).
        """
        prices: dict[tuple[Layer, ...], float] = {}

        def price(block: Block) -> float:
            if block.layers not in prices:
                prices[block.layers] = block_price(block)
            return prices[block.layers]

        columns = self._columns(genotypes)
        total = np.zeros(columns.shape[1])
        for term in self._terms:
            variant = term.variant(columns)
            table = np.full(len(term.variants), np.nan)
            for v in np.flatnonzero(np.bincount(variant, minlength=len(table))):
                table[v] = sum(price(block) for block in term.variants[v])
            total += table[variant]
        return total

    @cached_property
    def _cost_tables(self) -> tuple[npt.NDArray[np.int64], ...]:
        """For every term the (params, macs, macs_paper) of each variant, shape (3, variants)."""
        known: dict[tuple[Layer, ...], Cost] = {}

        def cost(block: Block) -> Cost:
            if block.layers not in known:
                known[block.layers] = Cost.of(block.layers)
            return known[block.layers]

        tables = []
        for term in self._terms:
            table = np.zeros((3, len(term.variants)), dtype=np.int64)
            for v, blocks in enumerate(term.variants):
                for c in map(cost, blocks):
                    table[:, v] += (c.params, c.macs, c.macs_paper)
            tables.append(table)
        return tuple(tables)

    def costs(self, genotypes: npt.ArrayLike) -> Costs:
        """Return parameters and MACs of many archs at once; exact integers.

        Parameters
        ----------
        genotypes
            Shape (n, genes).

        Raises
        ------
        InputError
            If the shape is wrong or an index is out of range.
        """
        columns = self._columns(genotypes)
        total = np.zeros((3, columns.shape[1]), dtype=np.int64)
        for term, table in zip(self._terms, self._cost_tables, strict=True):
            variant = term.variant(columns)
            for row, sums in zip(table, total, strict=True):
                sums += row[variant]
        return Costs(*total)

    def distinct_blocks(self) -> tuple[Block, ...]:
        """Return every block that some network of the space executes, each once (names of the first use)."""
        found: dict[tuple[Layer, ...], Block] = {}
        for term in self._terms:
            for blocks in term.variants:
                for block in blocks:
                    found.setdefault(block.layers, block)
        return tuple(found.values())

    def block_frequencies(self) -> dict[Block, float]:
        """Return how many times a network drawn at random executes each distinct block, on average."""
        found: dict[Block, float] = {}
        for term in self._terms:
            for blocks in term.variants:
                for block in blocks:
                    found[block] = found.get(block, 0.0) + 1 / len(term.variants)
        return found

    def distinct_layers(self) -> tuple[Layer, ...]:
        """Return every layer that some network of the space executes, each once: the profiler's work list."""
        found: dict[Layer, Layer] = {}
        for block in self.distinct_blocks():
            for layer in block.layers:
                found.setdefault(layer, layer)
        return tuple(found.values())

    # -- identity ---------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify the set of networks and the number of joints."""
        text = json.dumps([self.family.name, self.joints, [[c.name, list(c.values)] for c in self.choices]])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)
