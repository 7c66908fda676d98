"""Taking the machine's speed of the moment out of timings, by canaries timed just before and after each.

Neighbours on a shared processor, heat and clocks change a machine's speed from one second to the next, and
what is timed follows: much of the spread between a piece's visits is common to everything that runs. Two
canaries tell it, one bound by arithmetic, one by memory. How far timings follow each (an exponent each,
between 0 and about 1) is learnt from the visits themselves: within a piece's visits, the logarithm of its
time is regressed on those of the canaries, non-negatively. These are control variates (e.g. Glasserman,
*Monte Carlo Methods in Financial Engineering*, section 4.1): where nothing is followed, nothing is corrected.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from latency_tables.timing import Samples

__all__ = ["Speed", "learn_speed"]

_FEWEST_VISITS = 20
"""Fewest visits beyond one of each piece to learn exponents from."""

_MOST_FOLLOWED = 1.25
"""Largest sum of exponents: nothing gets much slower than everything else."""

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Speed:
    """How far timings follow the canaries.

    Attributes
    ----------
    reference
        Milliseconds of each canary at the speed that timings are brought to; () where none was watched.
    exponents
        Of each canary's ratio to its reference, in what timings take.
    """

    reference: tuple[float, ...] = ()
    exponents: tuple[float, ...] = ()

    def corrected(self, samples: Samples) -> Samples:
        """Return samples as they would have been at the speed of reference."""
        if len(samples.canaries) != len(self.reference) or not any(self.exponents):
            return samples
        ratios = np.log(np.divide(samples.canaries, self.reference))
        factor = float(np.exp(-ratios @ np.asarray(self.exponents)))
        return replace(samples, ms=tuple(ms * factor for ms in samples.ms))

    def to_dict(self) -> dict[str, Any]:
        """Return what a table's metadata tell of it."""
        return {
            "canaries_ms": [round(ms, 7) for ms in self.reference],
            "exponents": [round(each, 4) for each in self.exponents],
        }


def learn_speed(
    visits: Sequence[Mapping[str, Samples]],
    keys: Iterable[str],
    reference: Sequence[float] | None = None,
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
    """
    pulses = {s.canaries for visited in visits for s in visited.values() if s.canaries}
    if not pulses or len({len(pulse) for pulse in pulses}) > 1:
        return Speed()
    middle = tuple(np.median(np.array(sorted(pulses)), axis=0).tolist())
    if reference is None or len(reference) != len(middle):
        reference = middle
    rows, times = [np.empty((0, len(middle)))], [np.empty(0)]
    for key in keys:
        own = [visited[key] for visited in visits if key in visited and visited[key].canaries]
        if len(own) > 1:
            x, y = np.log([s.canaries for s in own]), np.log([np.median(s.ms) for s in own])
            rows.append(x - x.mean(axis=0))
            times.append(y - y.mean())
    if sum(map(len, times)) - len(times) + 1 < _FEWEST_VISITS:
        return Speed(tuple(reference), (0.0,) * len(middle))
    found = optimize.nnls(np.concatenate(rows), np.concatenate(times))[0]
    found *= min(1.0, _MOST_FOLLOWED / max(found.sum(), 1e-9))
    return Speed(tuple(reference), tuple(found.tolist()))
