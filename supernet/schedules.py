"""Learning rates over a run: a linear warm-up, then a schedule by its name in the recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final, Protocol

__all__ = ["SCHEDULES", "ScheduleSettings", "learning_rate"]


class ScheduleSettings(Protocol):
    """What a schedule reads of :class:`supernet.training.TrainConfig`, where the fields are described."""

    @property
    def learning_rate(self) -> float: ...

    @property
    def schedule(self) -> str: ...

    @property
    def milestones(self) -> tuple[float, ...]: ...

    @property
    def warmup(self) -> float: ...

    @property
    def final_rate(self) -> float: ...


def _cosine(progress: float, config: ScheduleSettings) -> float:
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


def _step(progress: float, config: ScheduleSettings) -> float:
    return float(0.1 ** sum(progress >= milestone for milestone in config.milestones))


SCHEDULES: Final[Mapping[str, Callable[[float, ScheduleSettings], float]]] = {
    "cosine": _cosine,
    "step": _step,
    "constant": lambda progress, config: 1.0,
}


def learning_rate(step: int, steps: int, config: ScheduleSettings) -> float:
    """Return the learning rate of step ``step`` (from 0) of ``steps``."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    return config.learning_rate * SCHEDULES[config.schedule](step / steps, config)
