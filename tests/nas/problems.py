"""Search problems with known answers, cheap enough to solve many times."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from nas.search import Evaluation
from nas.search.noise import RESAMPLES, pack
from search_spaces import Arch, Genotypes, SearchSpace, get_arch, litepose_native


def small_space() -> SearchSpace:
    """Return 512 distinct networks of 0.33 to 1.38 GMACs."""
    return litepose_native(
        base=get_arch("litepose-xs"), joints=14, resolutions=(256, 320), multipliers=(1.0, 0.5)
    )


def analytic_ap(arch: Arch) -> float:
    """Grow with every width and with resolution, each with diminishing returns; below 1."""
    total = 0.0
    for name, value in arch.values:
        if name.endswith("width"):
            total += 1.0 - math.exp(-float(value) / 24.0)
        elif name == "resolution":
            total += 2.0 * (1.0 - math.exp(-float(value) / 300.0))
    return total / 10.0


@dataclass
class Analytic:
    """Evaluates :func:`analytic_ap`, and remembers what it was asked.

    Attributes
    ----------
    seconds
        How long each evaluation sleeps.
    log
        File to which the id of each arch is appended before and after its evaluation.
    """

    seconds: float = 0.0
    log: Path | None = None
    asked: list[str] = field(default_factory=list)

    def _note(self, text: str) -> None:
        if self.log is not None:
            with self.log.open("a") as stream:
                stream.write(text + "\n")
                stream.flush()
                os.fsync(stream.fileno())

    def evaluate(self, arch: Arch) -> Evaluation:
        self.asked.append(arch.id)
        self._note(f"begin {arch.id}")
        time.sleep(self.seconds)
        self._note(f"end {arch.id}")
        return Evaluation(analytic_ap(arch), {"ap50": min(1.0, analytic_ap(arch) * 1.2)}, self.seconds)


STAGES = {"AP@0.25": 25, "AP@0.5": 50}
STAGE_NOISE = 0.005


@dataclass
class Noisy(Analytic):
    """Evaluates with the AP on resamples of images: a noise that all networks share, and one of their own."""

    def evaluate(self, arch: Arch) -> Evaluation:
        whole = super().evaluate(arch)
        shared = np.random.default_rng(7).normal(0, 0.015, RESAMPLES)
        own = np.random.default_rng(int(arch.id[-6:], 16)).normal(0, 0.005, RESAMPLES)
        return replace(whole, resamples=pack(np.clip(whole.ap + shared + own, 0, 1)))


@dataclass
class Staged(Analytic):
    """Evaluates image by image: the AP on some of them is the true one and a little noise.

    Attributes
    ----------
    images
        How many each evaluation looked at, in the order of ``asked``.
    """

    images: list[int] = field(default_factory=list)

    rule: ClassVar[str] = "a loss of 0.03"

    def evaluate(self, arch: Arch, rival: Evaluation | None = None) -> Evaluation:
        whole = super().evaluate(arch)
        noise = np.random.default_rng(int.from_bytes(arch.id.encode()[-6:])).normal(0, STAGE_NOISE, 2)
        seen = {name: max(0.0, whole.ap + off) for name, off in zip(STAGES, noise, strict=True)}
        everything = replace(whole, stats={**whole.stats, **seen, "images": 100})
        found = self.against(everything, rival)
        assert found is not None
        self.images.append(int(found.stats["images"]))
        return found

    def against(self, evaluation: Evaluation, rival: Evaluation | None) -> Evaluation | None:
        seen: dict[str, float] = {}
        for name, images in STAGES.items():
            if rival is None or name not in evaluation.stats:
                break
            seen[name] = evaluation.stats[name]
            if seen[name] + 0.03 < rival.stats[name]:
                estimate = rival.ap + seen[name] - rival.stats[name]
                stats = {**seen, "images": images}
                return replace(evaluation, ap=estimate, stats=stats, partial=True, deviation=2 * STAGE_NOISE)
        return None if evaluation.partial else evaluation


@dataclass(frozen=True)
class MacsPricer:
    """A made-up target whose latency is affine in MACs and parameters."""

    name: str = "toy"
    ms_per_gmac: float = 20.0

    def latency_ms(self, space: SearchSpace, genotypes: Genotypes) -> np.ndarray:
        costs = space.costs(genotypes)
        return np.asarray(1.0 + self.ms_per_gmac * costs.macs / 1e9 + costs.params / 1e6)
