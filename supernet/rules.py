"""Which archs a training step trains: rules by their names in the recipe.

Every step takes one batch, draws one resolution and one or more archs of it, and updates the shared weights:

- ``uniform``: one arch, uniformly from the space (single path; Guo et al., arXiv 1904.00420);
- ``anchored``: the largest arch in ``largest_share`` of the steps, a uniform one in the others: where time is
  short, the widest weights, which every arch shares, learn first;
- ``progressive``: the largest alone for the first ``full_share`` of the run; then as ``anchored``, with more
  and more of every choice's values opened, from the largest down (progressive shrinking; Cai et al., arXiv
  1908.09791, who open one dimension after another);
- ``sandwich``: the largest, the smallest and ``random_archs`` uniform ones, gradients accumulated
  (Yu & Huang, arXiv 1903.05134).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from search_spaces import Arch, SearchSpace

__all__ = ["RULES", "Draw", "RuleSettings", "step_archs"]

_RESOLUTION_STREAM, _ARCH_STREAM = 1, 2


class RuleSettings(Protocol):
    """What a rule reads of :class:`supernet.training.TrainConfig`, where the fields are described."""

    @property
    def rule(self) -> str: ...

    @property
    def random_archs(self) -> int: ...

    @property
    def full_share(self) -> float: ...

    @property
    def largest_share(self) -> float: ...


@dataclass(frozen=True)
class Draw:
    """What a rule draws from: the space, the step's own random numbers, the progress of the run (0..1)."""

    space: SearchSpace
    rng: np.random.Generator
    progress: float
    config: RuleSettings


def _uniform(draw: Draw) -> list[Arch]:
    return [draw.space.sample(draw.rng)]


def _sandwich(draw: Draw) -> list[Arch]:
    others = (draw.space.sample(draw.rng) for _ in range(draw.config.random_archs))
    return [draw.space.largest(), draw.space.smallest(), *others]


def _anchored(draw: Draw) -> list[Arch]:
    return [
        draw.space.largest() if draw.rng.random() < draw.config.largest_share else draw.space.sample(draw.rng)
    ]


def _progressive(draw: Draw) -> list[Arch]:
    shrinking = draw.progress - draw.config.full_share
    if shrinking < 0 or draw.rng.random() < draw.config.largest_share:
        return [draw.space.largest()]
    # All values are open after half of the shrinking, so that the smallest have time to learn.
    opened = min(1.0, 2 * shrinking / (1 - draw.config.full_share))
    sizes = np.array(draw.space.shape)
    least = np.floor((sizes - 1) * (1 - opened)).astype(np.int64)
    return [draw.space.decode(draw.rng.integers(least, sizes))]


RULES: Final[Mapping[str, Callable[[Draw], list[Arch]]]] = {
    "anchored": _anchored,
    "progressive": _progressive,
    "sandwich": _sandwich,
    "uniform": _uniform,
}


def step_archs(
    space: SearchSpace, seed: int, step: int, steps: int, config: RuleSettings
) -> tuple[int, list[Arch]]:
    """Return the resolution of step ``step`` (from 0) of ``steps`` and the archs trained at it.

    A pure function of its arguments. Archs that coincide (in a space of few networks) are trained once.
    """
    resolutions = next(choice.values for choice in space.choices if choice.name == "resolution")
    resolution = int(np.random.default_rng([seed, _RESOLUTION_STREAM, step]).choice(np.array(resolutions)))
    rng = np.random.default_rng([seed, _ARCH_STREAM, step])
    drawn = RULES[config.rule](Draw(space, rng, step / steps, config))
    return resolution, list(dict.fromkeys(arch.replace(resolution=resolution) for arch in drawn))
