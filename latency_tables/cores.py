"""Which processors of a device a measurement may use: ``0-3,6`` read, written and chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from search_spaces.errors import InputError

__all__ = ["cores_text", "fastest_cores", "highest_clocks", "parse_cores"]

_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def parse_cores(text: str) -> tuple[int, ...]:
    """Return the numbers that ``0-3,6`` stands for, in order, each once.

    Raises
    ------
    InputError
        If it is no such list.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InputError(f"cores are processor numbers such as 0-3 or 4,5, not '{text}'")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def cores_text(cores: Iterable[int]) -> str:
    """Return processor numbers as :func:`parse_cores` reads them, neighbours joined: ``0-3,6``."""
    runs: list[list[int]] = []
    for core in sorted(set(cores)):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def highest_clocks(cores: Iterable[int], sys: Path = Path("/sys")) -> dict[int, int]:
    """Return each processor's highest clock in kHz as Linux tells it; 0 where it does not."""
    found = {}
    for core in cores:
        try:
            text = (sys / f"devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq").read_text()
            found[core] = int(text)
        except (OSError, ValueError):
            found[core] = 0
    return found


def fastest_cores(count: int, clocks: Mapping[int, int]) -> tuple[int, ...]:
    """Return the ``count`` processors with the highest clocks; among equals, those with high numbers.

    On phones and boards of unequal processors those are the big ones; where all are equal, the first
    processor, which serves most interrupts, is left alone.

    Raises
    ------
    InputError
        If there are fewer: timings would measure the queue.
    """
    if count > len(clocks):
        raise InputError(
            f"{count} threads need {count} processors, and {cores_text(clocks) or 'none'} may be used:"
            " lower the target's threads"
        )
    ranked = sorted(clocks, key=lambda core: (clocks[core], core), reverse=True)
    return tuple(sorted(ranked[:count]))
