"""What a machine tells about itself, and about its speed before and after a measurement."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["available_threads", "machine_state", "processor_name", "system_name"]

_COLDEST, _HOTTEST = -50.0, 200.0
"""A sensor that says something beyond is not connected (many say -274)."""


def machine_state(sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> dict[str, Any]:
    """Return what this machine tells about its speed.

    Only what can be read is in it; a virtual machine usually tells the load, and perhaps a clock.

    Parameters
    ----------
    sys, proc
        Where Linux shows itself.

    Returns
    -------
    dict
        ``load_1min``: processes that want to run, mean of the last minute. ``governor``: what chooses the
        clock; several, sorted and joined by commas, where processors differ. ``mhz``: the processors' clock
        at the moment, median. ``mhz_max``: the highest that the governor may choose on any of them.
        ``boost``: whether clocks may exceed the nominal one. ``celsius``: the hottest sensor.
    """
    state: dict[str, Any] = {}
    load = _text(proc / "loadavg")
    if load is not None and (mean := _number(load.split(maxsplit=1)[0])) is not None:
        state["load_1min"] = round(mean, 2)
    frequencies = sorted(sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq"))
    governors = {text for folder in frequencies if (text := _text(folder / "scaling_governor"))}
    if governors:
        state["governor"] = ",".join(sorted(governors))
    clocks = [khz / 1e3 for folder in frequencies if (khz := _value(folder / "scaling_cur_freq"))]
    clocks = clocks or list(_clocks_told(proc / "cpuinfo"))
    if clocks:
        state["mhz"] = round(statistics.median(clocks), 1)
    highest = [khz / 1e3 for folder in frequencies if (khz := _value(folder / "scaling_max_freq"))]
    if highest:
        state["mhz_max"] = round(max(highest), 1)
    boost = _text(sys / "devices/system/cpu/cpufreq/boost")
    no_turbo = _text(sys / "devices/system/cpu/intel_pstate/no_turbo")
    if boost in ("0", "1"):
        state["boost"] = boost == "1"
    elif no_turbo in ("0", "1"):
        state["boost"] = no_turbo == "0"
    sensors = (_value(path) for path in sys.glob("class/thermal/thermal_zone[0-9]*/temp"))
    degrees = [value / 1e3 for value in sensors if value is not None]
    degrees = [value for value in degrees if _COLDEST < value < _HOTTEST]
    if degrees:
        state["celsius"] = round(max(degrees), 1)
    return state


def system_name() -> str:
    """Return the operating system, its version and its architecture, such as ``Linux 6.6.31 aarch64``."""
    return " ".join(filter(None, (platform.system(), platform.release(), platform.machine())))


def available_threads() -> int:
    """Return how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """Return this machine's processor as its system names it; where it does not, its architecture."""
    cpuinfo, model = Path("/proc/cpuinfo"), Path("/proc/device-tree/model")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    if model.is_file():
        text = model.read_text(encoding="utf-8", errors="replace").strip("\x00 \n")
        if text:
            return text
    return platform.processor() or platform.machine() or "unknown processor"


def _clocks_told(cpuinfo: Path) -> Iterator[float]:
    """Yield the clock of each processor as x86 kernels tell it where there is no frequency scaling."""
    for line in (_text(cpuinfo) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "cpu MHz" and (mhz := _number(value)):
            yield mhz


def _text(path: Path) -> str | None:
    """Return a file's text; None where there is none, and where the kernel refuses to tell."""
    try:
        return os.fsdecode(path.read_bytes()).strip() or None
    except OSError:
        return None


def _value(path: Path) -> float | None:
    text = _text(path)
    return None if text is None else _number(text)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e12 else None  # neither infinite nor nan
