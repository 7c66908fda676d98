"""Which archs a training step trains: rules by their names in the recipe.

Every step takes one batch, draws one resolution and one or more archs of it, and updates the shared weights:

- ``uniform``: one arch at random (single path; Guo et al., arXiv 1904.00420);
- ``anchored``: the largest arch in ``largest_share`` of the steps, one at random in the others: where time is
  short, the widest weights, which every arch shares, learn first (ours);
- ``progressive``: the largest alone for the first ``full_share`` of the run; then as ``anchored``, with more
  and more of every choice's values opened, from the largest down. After progressive shrinking (Cai et al.,
  arXiv 1908.09791), which opens one dimension after another and distils from the largest network throughout;
  here all dimensions open together, and a teacher is a setting of its own;
- ``sandwich``: the largest, the smallest and ``random_archs`` at random (Yu & Huang, arXiv 1903.05134, with
  two at random). Their gradients are averaged, where the paper adds them up, so that a learning rate means
  the same under every rule. The largest comes first: it can teach the others.

An arch at random is drawn in one of two ways:

- ``uniform``: every arch of the space alike. Costs are sums over many choices, so nearly all archs drawn lie
  in a narrow part of the range of costs; what a search ranks beyond it was hardly ever trained;
- ``spread``: first a level ``u``, uniformly from 0..1, then of every choice the value number
  ``Binomial(values - 1, u)``, from the smallest. Every value of every choice is trained as often as under
  ``uniform`` (a binomial number of a uniform level is uniform: the Beta-binomial distribution with
  a = b = 1), but an arch's choices lean the same way, so costs cover their range (ours; AttentiveNAS, Wang
  et al., arXiv 2011.09011, draws a cost first, then an arch that has about it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from search_spaces import Arch, SearchSpace

__all__ = ["DRAWS", "RULES", "Draw", "RuleSettings", "step_archs"]

_Indices = npt.NDArray[np.int64]

_RESOLUTION_STREAM, _ARCH_STREAM = 1, 2


class RuleSettings(Protocol):
    """What a rule reads of :class:`supernet.training.TrainConfig`, where the fields are described."""

    @property
    def rule(self) -> str: ...

    @property
    def random_archs(self) -> int: ...

    @property
    def draw(self) -> str: ...

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

    def arch(self, opened: float = 1.0) -> Arch:
        """Return an arch at random; of every choice the share ``opened`` of values, from the largest down."""
        sizes = np.array(self.space.shape)
        least = np.floor((sizes - 1) * (1 - opened)).astype(np.int64)
        return self.space.decode(DRAWS[self.config.draw](self.rng, least, sizes))


def _spread(rng: np.random.Generator, least: _Indices, sizes: _Indices) -> _Indices:
    level = rng.random()
    return least + rng.binomial(sizes - 1 - least, level)


DRAWS: Final[Mapping[str, Callable[[np.random.Generator, _Indices, _Indices], _Indices]]] = {
    "spread": _spread,
    "uniform": lambda rng, least, sizes: rng.integers(least, sizes),
}
"""Value numbers of every choice, at random from ``least`` up to and without ``sizes``."""


def _uniform(draw: Draw) -> list[Arch]:
    return [draw.arch()]


def _sandwich(draw: Draw) -> list[Arch]:
    others = (draw.arch() for _ in range(draw.config.random_archs))
    return [draw.space.largest(), draw.space.smallest(), *others]


def _anchored(draw: Draw) -> list[Arch]:
    return [draw.space.largest() if draw.rng.random() < draw.config.largest_share else draw.arch()]


def _progressive(draw: Draw) -> list[Arch]:
    shrinking = draw.progress - draw.config.full_share
    if shrinking < 0 or draw.rng.random() < draw.config.largest_share:
        return [draw.space.largest()]
    # All values are open after half of the shrinking, so that the smallest have time to learn.
    return [draw.arch(opened=min(1.0, 2 * shrinking / (1 - draw.config.full_share)))]


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
