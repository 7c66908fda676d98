"""Networks that are raced against each other in tests: drawn outcomes, matched as if they were detections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from supernet.pose.matching import Matches


def simulated(rng: np.random.Generator, hard: NDArray[np.float64], alike: float, level: float) -> Matches:
    """Return matches of a network on images of three people each, of whom some are harder to find."""
    own = rng.normal(size=hard.shape)
    oks = 1 / (1 + np.exp(-level - 1.2 * (np.sqrt(alike) * hard + np.sqrt(1 - alike) * own)))
    order = np.argsort(-(oks + rng.normal(0, 0.15, oks.shape)).ravel(), kind="stable")
    right = np.stack([oks.ravel()[order] >= np.linspace(0.5, 0.95, 10)[:, None]] * 3)
    images, people = hard.shape
    return Matches(
        protocol="coco",
        image_ids=np.arange(images),
        image=np.repeat(np.arange(images), people)[order],
        right=right,
        ignored=np.zeros_like(right),
        people=np.full((3, images), people),
        levels={},
    )
