"""Budgets as people write them: bounds on costs, an AP that is good enough, a network to be as cheap as.

>>> parse_budget("macs<=1G, latency@pixel4<=40ms, ap>=0.4").max_latency
('40ms@pixel4',)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

from nas.search.objectives import (
    AP,
    BYTES_PER_PARAMETER,
    MACS,
    PARAMS,
    SIZE,
    Constraint,
    Objective,
    latency,
    parse_constraints,
)
from search_spaces import Arch, InputError, get_arch
from search_spaces.errors import did_you_mean

__all__ = [
    "Budget",
    "BudgetText",
    "Like",
    "parse_budget",
    "parse_like",
    "parse_min_ap",
    "parse_objectives",
]

_COSTS: Final = ("macs", "params", "size", "latency")


@dataclass(frozen=True, slots=True)
class BudgetText:
    """A budget in words, each part as its option takes it; see :meth:`budget`.

    Attributes
    ----------
    max_macs, max_params, max_size
        ``1.5G``, ``2M``, ``8MB``.
    max_latency
        ``30ms@TARGET``, each target once.
    min_ap
        ``0.4``.
    like
        ``litepose-s`` or ``litepose-s*0.8``.
    """

    max_macs: str | None = None
    max_params: str | None = None
    max_size: str | None = None
    max_latency: tuple[str, ...] = ()
    min_ap: str | None = None
    like: str | None = None

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return any(getattr(self, field.name) for field in fields(self))

    def with_common(self, common: BudgetText, where: str) -> BudgetText:
        """Return this budget with what the options state for every budget.

        Raises
        ------
        InputError
            If both state the same part; ``where`` names this one.
        """
        merged: dict[str, str | None] = {}
        for name in ("max_macs", "max_params", "max_size", "min_ap", "like"):
            own, other = getattr(self, name), getattr(common, name)
            if own is not None and other is not None:
                raise InputError(
                    f"{where} and --{name.replace('_', '-')} {other} state the same; give one of them"
                )
            merged[name] = own if own is not None else other
        return BudgetText(
            merged["max_macs"],
            merged["max_params"],
            merged["max_size"],
            (*self.max_latency, *common.max_latency),
            merged["min_ap"],
            merged["like"],
        )

    def budget(self, targets: Sequence[str] | None = None) -> Budget:
        """Return what the words mean.

        Parameters
        ----------
        targets
            Names of the targets that have a latency table; None leaves them unchecked.

        Raises
        ------
        InputError
            Naming the part that is malformed, or the target that is bounded twice.
        """
        bounds = parse_constraints(
            max_macs=self.max_macs,
            max_params=self.max_params,
            max_size=self.max_size,
            max_latency=self.max_latency,
            targets=targets,
        )
        return Budget(
            bounds,
            None if self.min_ap is None else parse_min_ap(self.min_ap),
            None if self.like is None else parse_like(self.like),
        )


@dataclass(frozen=True)
class Like:
    """A network whose cost is a budget.

    Attributes
    ----------
    name, arch
        As the user named it, and what that is.
    factor
        By which its costs are multiplied; above 0.
    """

    name: str
    arch: Arch
    factor: float = 1.0

    def bounds(
        self, costs: Sequence[Objective], joints: int, latencies: Mapping[str, Callable[[Arch], float]]
    ) -> tuple[Constraint, ...]:
        """Return the bounds on these costs.

        Parameters
        ----------
        costs
            What is bounded.
        joints
            Keypoints that the networks predict.
        latencies
            By target, the milliseconds that budgets are held against.
        """
        cost = self.arch.cost(joints)
        plain = {MACS: cost.macs, PARAMS: cost.params, SIZE: cost.params * BYTES_PER_PARAMETER}
        return tuple(
            Constraint(
                objective,
                self.factor
                * (plain[objective] if objective.target is None else latencies[objective.target](self.arch)),
            )
            for objective in costs
        )


@dataclass(frozen=True)
class Budget:
    """What a search is held to.

    Attributes
    ----------
    constraints
        Upper bounds on costs.
    min_ap
        The AP that is good enough; see :class:`~nas.search.result.SearchResult`.
    like
        A network whose costs are further bounds, until :meth:`settled` has made such of it.
    """

    constraints: tuple[Constraint, ...] = ()
    min_ap: float | None = None
    like: Like | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets whose latency is bounded."""
        return tuple(c.objective.target for c in self.constraints if c.objective.target is not None)

    def objectives(self, wanted: Sequence[Objective] = ()) -> tuple[Objective, ...]:
        """Return what is traded off: AP and what is ``wanted``.

        Where nothing is: MACs, unless a latency is bounded and MACs are not; then the latencies bounded.
        """
        if wanted:
            return tuple(dict.fromkeys((AP, *wanted)))
        bounded = [c.objective for c in self.constraints]
        plain = (MACS,) if MACS in bounded or not self.targets else ()
        return (AP, *plain, *(latency(target) for target in self.targets))

    def settled(
        self,
        wanted: Sequence[Objective],
        joints: int,
        latencies: Mapping[str, Callable[[Arch], float]],
    ) -> Budget:
        """Return the budget with the network that it names replaced by bounds.

        They are on the costs ``wanted`` for trading off, on MACs where there are none.

        Raises
        ------
        InputError
            If one of these is bounded already.
        """
        if self.like is None:
            return self
        costs = [objective for objective in wanted if objective.is_cost] or [MACS]
        bounded = {c.objective for c in self.constraints}
        for objective in costs:
            if objective in bounded:
                raise InputError(
                    f"like {self.like.name} bounds {objective}, which is bounded already; give one bound, or"
                    " another --objective"
                )
        further = self.like.bounds(costs, joints, latencies)
        return Budget((*further, *self.constraints), self.min_ap)

    @property
    def parts(self) -> tuple[str, ...]:
        """The bounds in words."""
        least = [] if self.min_ap is None else [f"ap >= {self.min_ap:g}"]
        return (*map(str, self.constraints), *least)

    def __str__(self) -> str:
        return ", ".join(self.parts) or "unbounded"


# -- text that people write ------------------------------------------------------------------------------


def parse_budget(text: str, option: str = "--budget") -> BudgetText:
    """Return the parts of ``macs<=1G, latency@TARGET<=40ms, ap>=0.4, like litepose-s*0.8``.

    Raises
    ------
    InputError
        If a part is none of these or stands twice; bounds themselves are read by :meth:`BudgetText.budget`.
    """
    found: dict[str, str] = {}
    latencies: list[str] = []
    for part in text.split(","):
        like = re.fullmatch(r"\s*like\b[\s=]*(.*?)\s*", part)
        bound = re.fullmatch(r"\s*([^<>=]*?)\s*(<=|>=|[<>=])\s*([^<>=]*?)\s*", part)
        if like is not None:
            name, value = "like", like.group(1)
        elif bound is not None and bound.group(1) and bound.group(3):
            name, value = _part(*bound.groups(), part=part, option=option), bound.group(3)
        else:
            raise InputError(
                f"{option} takes bounds with commas between, such as 'macs<=1G, latency@TARGET<=40ms,"
                f" ap>=0.4', not '{part.strip()}' as in '{text}'"
            )
        if name.startswith("latency"):
            latencies.append(value + name.removeprefix("latency"))
        elif name in found:
            raise InputError(f"{option} '{text}' states {name.rpartition('_')[2]} twice")
        else:
            found[name] = value
    return BudgetText(
        found.get("max_macs"),
        found.get("max_params"),
        found.get("max_size"),
        tuple(latencies),
        found.get("min_ap"),
        found.get("like"),
    )


def _part(what: str, relation: str, value: str, *, part: str, option: str) -> str:
    """Return which part of a :class:`BudgetText` it is; ``latency@TARGET`` as such."""
    kind, target = _kind_and_target(what)
    least = kind == "ap"
    if kind not in ("ap", *_COSTS):
        raise InputError(
            f"{option}: unknown '{what}' in '{part.strip()}'{did_you_mean(kind, ('ap', *_COSTS))}"
        )
    if kind != "latency" and target is not None:
        raise InputError(f"{option}: only a latency has a target; '{kind}' cannot have '@{target}'")
    if relation not in ({">=", ">"} if least else {"<=", "<"}):
        wanted = f"a least AP: 'ap>={value}'" if least else f"an upper bound: '{what}<={value}'"
        raise InputError(f"{option}: a budget states {wanted}, not '{part.strip()}'")
    if kind == "latency":
        return "latency" if target is None else f"latency@{target}"
    return "min_ap" if least else f"max_{kind}"


def _kind_and_target(text: str) -> tuple[str, str | None]:
    """Return the parts of ``latency@TARGET`` (or ``latency[TARGET]``, as results write it)."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:@\s*(.+?)|\[\s*(.+?)\s*\])?\s*", text)
    if match is None:
        return text.strip(), None
    return match.group(1).lower(), match.group(2) or match.group(3)


def parse_min_ap(text: str) -> float:
    """Return the AP that ``0.4`` or ``.40`` states.

    Raises
    ------
    InputError
        If it is no number between 0 and 1.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise InputError(f"--min-ap takes an AP between 0 and 1 such as 0.40, not '{text}'")
    return value


def parse_like(text: str) -> Like:
    """Return the network and factor that ``litepose-s*0.8``, or an arch file with or without one, states.

    Raises
    ------
    InputError
        If there is no such network, or the factor is no number above 0.
    """
    name, times, factor = text.strip().rpartition("*")
    if not times:
        name, factor = text.strip(), "1"
    try:
        value = float(factor)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise InputError(f"--like takes a network and a factor above 0 such as litepose-s*0.8, not '{text}'")
    try:
        return Like(name.strip(), get_arch(name.strip()), value)
    except InputError as error:
        raise InputError(f"--like: {error}") from None


def parse_objectives(texts: Sequence[str]) -> tuple[Objective, ...]:
    """Return the objectives that ``macs``, ``latency@TARGET``, ... name.

    Raises
    ------
    InputError
        If one is none, or stands twice.
    """
    found: list[Objective] = []
    for text in texts:
        kind, target = _kind_and_target(text)
        try:
            objective = Objective.parse(kind if target is None else f"{kind}[{target}]")
        except InputError as error:
            raise InputError(f"--objective: {error}") from None
        if objective in found:
            raise InputError(f"--objective {objective} stands twice")
        found.append(objective)
    return tuple(found)
