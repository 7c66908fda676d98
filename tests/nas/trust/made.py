"""Matches and scores made by hand, with APs that are known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nas.trust.statistics import Measured
from supernet.pose.matching import OKS_THRESHOLDS, Matches


def matches(found: Sequence[bool]) -> Matches:
    """Return the matches of images of one person each, who is found at every threshold, or not at all.

    Nothing else is found, so the AP is the share of those found, but for COCO's reading of the precision at
    101 recalls.
    """
    right = np.broadcast_to(np.ones(sum(found), bool), (3, len(OKS_THRESHOLDS), sum(found)))
    return Matches(
        protocol="coco",
        image_ids=np.arange(len(found)),
        image=np.flatnonzero(found),
        right=right.copy(),
        ignored=np.zeros_like(right),
        people=np.ones((3, len(found)), np.int64),
        levels={},
    )


def with_ap(ap: float, images: int = 40, seed: int = 0) -> Matches:
    """Return matches whose AP is about this one, each network's misses on other images."""
    order = np.random.default_rng([seed, images]).permutation(images)
    return matches((order < round(ap * images)).tolist())


def measured(
    supernet: Sequence[float], standalone: Sequence[Sequence[float]], macs: Sequence[float] | None = None
) -> Measured:
    """Return what would have been measured had the APs been these."""
    return Measured(
        macs=np.arange(1.0, len(supernet) + 1) if macs is None else np.array(macs, np.float64),
        supernet=np.array(supernet, np.float64),
        standalone=np.array(standalone, np.float64),
        supernet_matches=[with_ap(ap, seed=i) for i, ap in enumerate(supernet)],
        standalone_matches=[[with_ap(ap, seed=100 + i) for i, ap in enumerate(aps)] for aps in standalone],
    )
