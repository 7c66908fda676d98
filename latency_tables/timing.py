"""Timing one closure: warm-up, inner loops for what takes microseconds, robust summaries."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search_spaces.errors import InputError

Clock = Callable[[], float]
"""Returns seconds; only differences matter."""

_SHORTEST_SAMPLE_S = 2e-4
_FASTEST_RUN_S = 1e-8
_MOST_SAMPLES = 200
_FEWEST_SAMPLES = 3
_WARMUP_SHARE = 0.2
_FEWEST_WARMUPS = 2
_BETWEEN_S = 0.05


@dataclass(frozen=True, slots=True)
class Timing:
    """Robust summary of repeated runs, milliseconds per run.

    ``runs`` counts every timed run, those inside an inner loop included.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Milliseconds per run, one entry per timed loop of ``loop`` runs each.

    ``canaries`` holds what each canary took before, after and in between, on average; () where none was
    watched.
    """

    ms: tuple[float, ...]
    loop: int
    canaries: tuple[float, ...] = ()

    def to_dict(self, decimals: int | None = None) -> dict[str, Any]:
        """Return what :meth:`from_dict` reads, rounded to so many decimals if any, for JSON."""
        found: dict[str, Any] = {"loop": self.loop}
        for name, values in (("ms", self.ms), ("canaries", self.canaries)):
            if values:
                found[name] = [value if decimals is None else round(value, decimals) for value in values]
        return found

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Samples:
        """Return the samples of a record.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it holds none, or a time that is not positive.
        """
        ms, canaries = (tuple(map(float, found)) for found in (record["ms"], record.get("canaries", ())))
        if not ms or not all(0 < value < math.inf for value in (*ms, *canaries)):
            raise ValueError(record)
        return cls(ms, int(record["loop"]), canaries)


def take_samples(
    run: Callable[[], None],
    *,
    seconds: float,
    min_runs: int = _FEWEST_SAMPLES,
    clock: Clock = time.perf_counter,
    between: Callable[[], None] | None = None,
) -> Samples:
    """Time ``run`` for about ``seconds``.

    A fifth of the time (and at least two runs) warms up: caches, allocators, worker threads that another
    closure left asleep. What takes less than 0.2 ms is looped inside one sample, so that the clock's own
    cost stays below a thousandth.

    Parameters
    ----------
    run
        Closure to be timed.
    seconds
        Time to spend, warm-up included; exceeded where ``min_runs`` needs it.
    min_runs
        Fewest timed runs.
    clock
        Source of seconds.
    between
        Called before the first sample, after the last one, and in between after every 50 ms.
    """
    if not seconds > 0 or min_runs < 1:
        raise InputError(
            f"timing needs a positive time and at least one run, not {seconds} s and {min_runs} runs"
        )
    start = clock()
    fastest = math.inf
    warmups = 0
    while warmups < _FEWEST_WARMUPS or clock() - start < _WARMUP_SHARE * seconds:
        before = clock()
        run()
        fastest = min(fastest, clock() - before)
        warmups += 1
    loop = max(1, math.ceil(_SHORTEST_SAMPLE_S / max(fastest, _FASTEST_RUN_S)))
    wanted = max(_FEWEST_SAMPLES, math.ceil(min_runs / loop))
    found: list[float] = []
    last = -math.inf
    while len(found) < wanted or (len(found) < _MOST_SAMPLES and clock() - start < seconds):
        if between is not None and clock() - last >= _BETWEEN_S:
            between()
            last = clock()
        before = clock()
        for _ in range(loop):
            run()
        found.append((clock() - before) * 1e3 / loop)
    if between is not None:
        between()
    return Samples(tuple(found), loop)


def take_pulse(run: Callable[[], None], *, seconds: float, clock: Clock = time.perf_counter) -> float:
    """Return the median milliseconds of a few runs that take about ``seconds``, after one that warms up."""
    run()
    start = clock()
    found: list[float] = []
    while len(found) < _FEWEST_SAMPLES or clock() - start < seconds:
        before = clock()
        run()
        found.append((clock() - before) * 1e3)
    return float(np.median(found))


def middle_of(pulses: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the median of each canary; () if there are none, or some visits had others."""
    found = list(pulses)
    if not found or len({len(pulse) for pulse in found}) > 1:
        return ()
    return tuple(np.median(np.array(found), axis=0).tolist())


def summarise(ms: Sequence[float], runs: int) -> Timing:
    """Return median and the 10th and 90th percentile of samples, in milliseconds."""
    if not ms:
        raise InputError("a timing needs at least one sample")
    p10, median, p90 = np.percentile(np.asarray(ms, dtype=np.float64), (10, 50, 90)).tolist()
    return Timing(median_ms=median, p10_ms=p10, p90_ms=p90, runs=runs)
