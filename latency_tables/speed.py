"""Taking the machine's speed of the moment out of timings, by canaries timed just before and after each.

Neighbours on a shared processor, heat and clocks change a machine's speed from one second to the next, and
what is timed follows: much of the spread between a piece's visits is common to everything that runs. Two
canaries tell it, one bound by arithmetic, one by memory. How far timings follow each (an exponent each,
between 0 and about 1) is learnt from the visits themselves: within a piece's visits, the logarithm of its
time is regressed on those of the canaries. These are control variates (e.g. Glasserman, *Monte Carlo Methods
in Financial Engineering*, section 4.1). The regression is bounded, robust (soft-L1) and regularised: the less
the canaries vary, or the fewer visits there are, the more it stays with what is expected, which is a half of
each canary's change unless other timings have told more. So an even change of clock is taken out whole even
where nothing could be learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from latency_tables.timing import Samples, middle_of

__all__ = ["MOST_FOLLOWED", "SessionSpeed", "Speed", "learn_speed"]

Array = npt.NDArray[np.float64]

_EXPECTED = 0.5
"""Exponent of either canary while nothing is known."""

_EXPECTED_WITHIN = 0.25
"""How far from what is expected exponents are, typically."""

_NOISE = 0.05
"""What visits of a piece differ by, as a share, besides the speed; beyond this they weigh less."""

_LEARNT = 10.0
"""How many times as much as the expectation the visits have to tell for exponents to count as learnt."""

MOST_FOLLOWED = 1.25
"""Largest sum of exponents: nothing gets much slower than everything else."""


@dataclass(frozen=True, slots=True)
class Speed:
    """How far timings follow the canaries.

    Attributes
    ----------
    reference
        Milliseconds of each canary at the speed that timings are brought to; () where none was watched.
    exponents
        Of each canary's ratio to its reference, in what timings take.
    learnt
        Whether the exponents were learnt from these timings; if not, they are about what was expected.
    """

    reference: tuple[float, ...] = ()
    exponents: tuple[float, ...] = ()
    learnt: bool = False

    def factor(self, canaries: Sequence[float]) -> float:
        """Return how many times as long as at the speed of reference timings take beside such canaries."""
        if len(canaries) != len(self.reference) or not any(self.exponents):
            return 1.0
        ratios = np.log(np.divide(canaries, self.reference))
        return float(np.exp(ratios @ np.asarray(self.exponents)))

    def corrected(self, samples: Samples) -> Samples:
        """Return samples as they would have been at the speed of reference."""
        factor = self.factor(samples.canaries)
        return replace(samples, ms=tuple(ms / factor for ms in samples.ms))


@dataclass(frozen=True, slots=True)
class SessionSpeed:
    """What a table's session tells of the speed that its timings were brought to.

    Attributes
    ----------
    canaries
        Their keys.
    pieces, networks
        How far layers and blocks, and whole networks, followed them; the reference is the same.
    """

    canaries: tuple[str, ...]
    pieces: Speed
    networks: Speed

    @property
    def reference(self) -> tuple[float, ...]:
        """Milliseconds of each canary at that speed."""
        return self.pieces.reference

    @classmethod
    def of(cls, session: Mapping[str, Any]) -> SessionSpeed | None:
        """Return what a sound session (:func:`latency_tables.table.speed_faults`) tells; None: nothing."""
        told = session.get("speed")
        if told is None:
            return None
        reference = tuple(map(float, told["canaries_ms"]))
        pieces, networks = (
            Speed(reference, tuple(map(float, told[name]))) for name in ("exponents", "network_exponents")
        )
        return cls(tuple(told["canaries"]), pieces, networks)


def learn_speed(
    visits: Sequence[Mapping[str, Samples]],
    keys: Iterable[str],
    reference: Sequence[float] | None = None,
    expected: Sequence[float] | None = None,
) -> Speed:
    """Return how far the timings of some pieces follow the canaries.

    Parameters
    ----------
    visits
        Samples by piece, one mapping a round.
    keys
        The pieces to learn from.
    reference
        Milliseconds of each canary at the speed to bring timings to; by default their medians over all
        visits, so that timings stay where they are in the middle.
    expected
        Exponents that similar timings had.
    """
    middle = middle_of(s.canaries for visited in visits for s in visited.values() if s.canaries)
    if not middle:
        return Speed()
    n = len(middle)
    if reference is None or len(reference) != n:
        reference = middle
    prior = np.full(n, _EXPECTED) if expected is None or len(expected) != n else np.array(expected)
    rows, times = [np.empty((0, n))], [np.empty(0)]
    for key in keys:
        own = [visited[key] for visited in visits if key in visited and visited[key].canaries]
        if len(own) > 1:
            x, y = np.log([s.canaries for s in own]), np.log([np.median(s.ms) for s in own])
            rows.append(x - x.mean(axis=0))
            times.append(y - y.mean())
    x, y = np.concatenate(rows), np.concatenate(times)
    weight = _NOISE / _EXPECTED_WITHIN

    def residuals(exponents: Array) -> Array:
        return np.concatenate([x @ exponents - y, weight * (exponents - prior)])

    def slopes(exponents: Array) -> Array:
        return np.concatenate([x, weight * np.eye(n)])

    found = optimize.least_squares(
        residuals,
        np.clip(prior, 0.0, MOST_FOLLOWED),
        jac=slopes,
        bounds=(0.0, MOST_FOLLOWED),
        loss="soft_l1",
        f_scale=_NOISE,
    ).x
    found *= min(1.0, MOST_FOLLOWED / max(float(found.sum()), 1e-9))
    learnt = bool((x**2).sum() > _LEARNT * weight**2)
    return Speed(tuple(reference), tuple(found.tolist()), learnt)
