"""What a search's records say beyond its networks: what they cost, how it went on, which choices matter."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from nas.pareto import hypervolume, pareto_front
from nas.search.importance import importances
from nas.search.objectives import Direction, Objective
from nas.search.result import Record, SearchResult

__all__ = ["analyse", "joint_hypervolumes", "seconds_of"]


def seconds_of(*results: SearchResult) -> dict[str, Any]:
    """Return what the evaluations of one or several searches cost, in seconds and in looks at images.

    ``made`` and ``reused`` count them, those that ended early included. ``sum`` and ``median`` are of those
    made in these searches, the median None where there are none; ``saved`` is what the reused ones took where
    they were made. ``images`` is how many images those made looked at, ``ended_early`` how many of them ended
    early, and ``images_saved`` what that left out; None where the searches did not count images.
    """
    looked_at = [r for result in results for r in (*result.evaluated, *result.partial)]
    here = [r for r in looked_at if not r.reused]
    made = [r.seconds for r in here]
    saved = [r.seconds for r in looked_at if r.reused]
    return {
        "made": len(made),
        "reused": len(saved),
        "sum": round(math.fsum(made), 3),
        "median": round(statistics.median(made), 3) if made else None,
        "saved": round(math.fsum(saved), 3),
        "ended_early": sum(r.partial for r in here),
        **_images_of(looked_at, here),
    }


def _images_of(looked_at: Sequence[Record], here: Sequence[Record]) -> dict[str, int | None]:
    """Return at how many images those evaluated here looked, and at how many they need not have looked."""
    counts = [int(r.stats["images"]) for r in here if "images" in r.stats]
    if not counts or len(counts) < len(here):
        return {"images": None, "images_saved": None}
    most = max(int(r.stats.get("images", 0)) for r in looked_at)
    return {"images": sum(counts), "images_saved": most * len(counts) - sum(counts)}


def joint_hypervolumes(result: SearchResult) -> list[float]:
    """Return the hypervolume of AP and all traded costs together after each evaluation, exact.

    AP's reference is 0; each cost's is :meth:`SearchResult.reference`. A network adds the volume of its own
    box less what of it the front dominates already (While, Bradstreet & Barone 2012, "A Fast Way of
    Calculating Exact Hypervolumes": the exclusive hypervolume).
    """
    if not result.evaluated:
        return []
    reference = np.array([result.reference(o) if o.is_cost else 0.0 for o in result.objectives])
    signs = np.array([1.0 if o.is_cost else -1.0 for o in result.objectives])
    minimise: list[Direction] = ["minimize"] * len(signs)
    bound = signs * reference
    front = np.empty((0, len(signs)))
    volumes: list[float] = []
    for record in result.evaluated:
        losses = signs * np.array([record.value(o) for o in result.objectives])
        box = float(np.maximum(bound - losses, 0.0).prod())
        shared = np.maximum(front, losses)
        gain = box - hypervolume(shared[pareto_front(shared, minimise)], bound, minimise)
        volumes.append((volumes[-1] if volumes else 0.0) + max(gain, 0.0))
        front = np.vstack([front, losses])
        front = front[pareto_front(front, minimise)]
    return volumes


def analyse(result: SearchResult) -> dict[str, Any]:
    """Return all of it, as ``result.json`` keeps it.

    ``hypervolume`` holds, per traded cost and for all objectives together (``joint``, where there is more
    than one cost), the reference costs and the value after each evaluation; AP's reference is 0.
    ``importances`` (:mod:`nas.search.importance`) is None where too few networks were evaluated.
    """
    costs = [o for o in result.objectives if o.is_cost] or [result.axis()]
    volumes: dict[str, Any] = {str(o): _volumes(result, [o], result.hypervolumes(o).tolist()) for o in costs}
    if len(costs) > 1:
        volumes["joint"] = _volumes(result, costs, joint_hypervolumes(result))
    found = importances(result.evaluated)
    return {
        "seconds": seconds_of(result),
        "hypervolume": volumes,
        "importances": None if found is None else found.to_json(),
    }


def _volumes(result: SearchResult, costs: list[Objective], values: list[float]) -> dict[str, Any]:
    reference = {str(o): result.reference(o) for o in costs} if result.evaluated else {}
    return {"reference": reference, "values": values}
