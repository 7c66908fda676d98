"""What a candidate is scored by, what bounds it, and how people write both."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Context
from typing import Literal

from search_spaces import InputError
from search_spaces.errors import did_you_mean

Kind = Literal["ap", "macs", "params", "size", "latency"]
Direction = Literal["minimize", "maximize"]

BYTES_PER_PARAMETER = 4
"""The objective ``size`` counts the weights as 32-bit floats."""

_FEW_MACS = 1e8
"""Below it MACs are told in millions."""

_KINDS: Mapping[str, tuple[str, float]] = {
    "ap": ("", 1.0),
    "macs": ("GMACs", 1e9),
    "params": ("M parameters", 1e6),
    "size": ("MB", 1e6),
    "latency": ("ms", 1.0),
}


@dataclass(frozen=True, slots=True)
class Objective:
    """A number by which candidates are compared.

    Attributes
    ----------
    kind
        ``ap`` (to be maximised), ``macs``, ``params``, ``size`` (bytes of 32-bit weights) or ``latency``
        (ms); all but ``ap`` are costs, known without evaluating the network, and are minimised.
    target
        For ``latency``: the name of the target that the latency table is for. None for every other kind.

    Raises
    ------
    InputError
        On construction, if the kind is unknown, a latency lacks its target, or another kind has one.
    """

    kind: Kind
    target: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InputError(f"unknown objective '{self.kind}'{did_you_mean(self.kind, _KINDS)}")
        if self.kind == "latency" and not self.target:
            raise InputError("a latency objective names its target: latency[TARGET]")
        if self.kind != "latency" and self.target is not None:
            raise InputError(f"only a latency has a target; '{self.kind}' cannot have '{self.target}'")

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Return the objective that ``str(objective)`` wrote: ``macs``, ``latency[pixel4-gpu]``, ...

        Raises
        ------
        InputError
            If the text names no objective.
        """
        match = re.fullmatch(r"\s*([a-z]+)\s*(?:\[\s*(.+?)\s*\])?\s*", text)
        if match is None:
            raise InputError(f"an objective is one of {', '.join(_KINDS)} or latency[TARGET], not '{text}'")
        kind, target = match.groups()
        for known in ("ap", "macs", "params", "size", "latency"):
            if kind == known:
                return cls(known, target)
        raise InputError(f"unknown objective '{kind}'{did_you_mean(kind, _KINDS)}")

    @property
    def is_cost(self) -> bool:
        """Whether the value is known without evaluating the network."""
        return self.kind != "ap"

    @property
    def direction(self) -> Direction:
        """Which way is better."""
        return "minimize" if self.is_cost else "maximize"

    @property
    def unit(self) -> str:
        """Unit in which people read the value (``GMACs``, ``ms``, ...)."""
        return _KINDS[self.kind][0]

    @property
    def scale(self) -> float:
        """Factor between the stored value and :attr:`unit` (1e9 MACs are 1 GMACs)."""
        return _KINDS[self.kind][1]

    @property
    def label(self) -> str:
        """Axis label, with the unit."""
        if self.kind == "ap":
            return "AP"
        if self.kind == "latency":
            return f"Latency on {self.target} (ms)"
        name = {"macs": "MACs (G)", "params": "Parameters (M)", "size": "Weights (MB)"}
        return name[self.kind]

    def format(self, value: float, *, up: bool = False) -> str:
        """Return the value with its unit, as people read it: four digits; with ``up`` never too small."""
        if self.kind == "ap":
            return f"{value:.4f}"
        unit, scale = self.unit, self.scale
        if self.kind == "macs" and abs(value) < _FEW_MACS:
            unit, scale = "MMACs", 1e6
        rounding = ROUND_CEILING if up else ROUND_HALF_EVEN
        shown = Context(prec=4, rounding=rounding).create_decimal(repr(value / scale))
        return f"{float(shown):.4g} {unit}"

    def __str__(self) -> str:
        return self.kind if self.target is None else f"{self.kind}[{self.target}]"


AP = Objective("ap")
MACS = Objective("macs")
PARAMS = Objective("params")
SIZE = Objective("size")


def latency(target: str) -> Objective:
    """Return the latency objective of a target."""
    return Objective("latency", target)


@dataclass(frozen=True, slots=True)
class Constraint:
    """An upper bound on a cost.

    Attributes
    ----------
    objective
        A cost (``ap`` cannot be bounded before it is measured).
    upper
        Largest value allowed, in the objective's stored unit (MACs, parameters, bytes, ms); above 0.
    """

    objective: Objective
    upper: float

    def __post_init__(self) -> None:
        if not self.objective.is_cost:
            raise InputError("a budget bounds a cost (macs, params, size, latency[TARGET]), not ap")
        if not (math.isfinite(self.upper) and self.upper > 0):
            raise InputError(f"the budget for {self.objective} is a number above 0, not {self.upper}")

    def violation(self, value: float) -> float:
        """Return by which share of the bound the value exceeds it; 0 or less where the bound holds."""
        return value / self.upper - 1.0

    def holds(self, value: float) -> bool:
        """Whether the value is within the bound."""
        return value <= self.upper

    def __str__(self) -> str:
        return f"{self.objective} <= {self.objective.format(self.upper)}"


# -- text that people write ------------------------------------------------------------------------------

_DECIMAL = {"": 0, "k": 3, "m": 6, "g": 9, "b": 9, "t": 12}
_BYTES = {
    **{"": 1, "b": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9},
    **{"kib": 2**10, "mib": 2**20, "gib": 2**30},
}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_MOST = 1e18
_NUMBER = r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+\.)\s*"


def _split(text: str, option: str, example: str) -> tuple[float, str]:
    """Return the number at the start of ``text`` and the lower-case rest."""
    match = re.fullmatch(_NUMBER + r"([A-Za-zµμ]*)\s*", text)
    number = float(match.group(1)) if match else math.nan
    if match is None or not math.isfinite(number) or number <= 0:
        raise InputError(f"{option} takes a number above 0 such as {example}, not '{text}'")
    return number, match.group(2).lower()


def _whole(value: float, option: str, text: str) -> int:
    if not 1 <= value <= _MOST:
        raise InputError(f"{option} lies between 1 and {_MOST:.0e}, not at '{text}'")
    return round(value)


def parse_quantity(text: str, option: str = "a quantity") -> int:
    """Return the whole number that ``1.5G``, ``300M``, ``800k`` or ``1500000000`` stands for (steps of 1000).

    Parameters
    ----------
    text
        What the user wrote.
    option
        Which option it was written for, for the message.

    Raises
    ------
    InputError
        If the text is no number above 0 with one of the suffixes K, M, G (or B), T.
    """
    number, suffix = _split(text, option, "1.5G or 300M")
    if suffix not in _DECIMAL:
        raise InputError(f"{option} takes the suffixes K, M, G or T, not '{suffix}' as in '{text}'")
    return _whole(number * 10 ** _DECIMAL[suffix], option, text)


def parse_size(text: str, option: str = "a size") -> int:
    """Return the bytes that ``2.5MB``, ``800k`` or ``1MiB`` stands for.

    Raises
    ------
    InputError
        If the text is no number above 0 with one of the suffixes B, kB, MB, GB, KiB, MiB, GiB.
    """
    number, suffix = _split(text, option, "2.5MB")
    if suffix not in _BYTES:
        raise InputError(
            f"{option} takes the suffixes B, kB, MB, GB, KiB, MiB or GiB, not '{suffix}' as in '{text}'"
        )
    return _whole(number * _BYTES[suffix], option, text)


def parse_latency(
    text: str, option: str = "a latency", targets: Sequence[str] | None = None
) -> tuple[float, str]:
    """Return ``(milliseconds, target)`` for ``30ms@TARGET`` (``us`` and ``s`` are understood too).

    Parameters
    ----------
    text
        What the user wrote. ``@TARGET`` may be left out where exactly one target is known.
    option
        Which option it was written for, for the message.
    targets
        Names of the targets that have a latency table; None leaves the target unchecked.

    Raises
    ------
    InputError
        If the duration is malformed, or the target is missing or unknown.
    """
    duration, at, target = text.partition("@")
    target = target.strip()
    number, unit = _split(duration, option, "30ms@TARGET")
    factor = _MILLISECONDS.get(unit.replace("µ", "u").replace("μ", "u"))
    if factor is None:
        raise InputError(f"{option} takes a duration in ms, us or s such as 30ms@TARGET, not '{text}'")
    if not target:
        if at or targets is None or len(targets) != 1:
            known = f"; known: {', '.join(sorted(targets))}" if targets else ""
            raise InputError(f"{option} names the target: {duration.strip()}@TARGET, not '{text}'{known}")
        target = targets[0]
    if targets is not None and target not in targets:
        raise InputError(f"{option} has the unknown target '{target}'{unknown_target(target, targets)}")
    return number * factor, target


def unknown_target(target: str, targets: Sequence[str]) -> str:
    """Return what helps whoever names a target that has no table: its likes, and how it gets one."""
    return f"{did_you_mean(target, targets)}; 'nas profile' makes its table, --tables names a folder of some"


def parse_constraints(
    *,
    max_macs: str | None = None,
    max_params: str | None = None,
    max_size: str | None = None,
    max_latency: Sequence[str] = (),
    targets: Sequence[str] | None = None,
) -> tuple[Constraint, ...]:
    """Return the constraints that the options ``--max-macs 1.5G --max-latency 30ms@TARGET ...`` state.

    Raises
    ------
    InputError
        Naming the option and the value that is malformed, or the target that is bounded twice.
    """
    found: list[Constraint] = []
    if max_macs is not None:
        found.append(Constraint(MACS, parse_quantity(max_macs, "--max-macs")))
    if max_params is not None:
        found.append(Constraint(PARAMS, parse_quantity(max_params, "--max-params")))
    if max_size is not None:
        found.append(Constraint(SIZE, parse_size(max_size, "--max-size")))
    for text in max_latency:
        upper, target = parse_latency(text, "--max-latency", targets)
        if any(c.objective.target == target for c in found):
            raise InputError(f"--max-latency bounds the target '{target}' twice; give one bound for each")
        found.append(Constraint(latency(target), upper))
    return tuple(found)
