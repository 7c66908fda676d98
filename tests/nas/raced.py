"""A stand-in for evaluating real networks in searches that race, and what holds of every such search."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, cast

import numpy as np

from nas.search import MACS, Constraint, SearchResult
from nas.searching import SearchEvaluator
from search_spaces import Arch
from supernet.evaluator import SubnetEvaluator, SubnetResult
from supernet.pose.evaluate import EvalResult
from supernet.pose.matching import Matches
from supernet.racing import EarlyStop, Look, Looks, Rival, Verdict
from tests.nas.problems import analytic_ap, small_space
from tests.supernet.races import simulated

SPACE = small_space()
IMAGES = 80
RULE = EarlyStop(least=10, resamples=60)


@cache
def everything(arch: Arch) -> Matches:
    """Return what a network finds on all images; how much that is is half a matter of luck."""
    hard = np.random.default_rng(0).normal(size=(IMAGES, 2))
    rng = np.random.default_rng(int.from_bytes(arch.id.encode()))
    return simulated(rng, hard, 0.8, 6 * (analytic_ap(arch) - 0.6) + rng.normal())


@cache
def looked(arch: Arch, rule: EarlyStop, count: int) -> tuple[Matches, Look]:
    matches = everything(arch)
    seen = matches.subset(rule.order(matches.image_ids.tolist())[:count])
    return seen, rule.look(seen)


@dataclass
class Drawn:
    """Stands in for a :class:`SubnetEvaluator`.

    Attributes
    ----------
    early_stop
        The rule by which it stops; None never stops.
    looked
        At how many images each evaluation looked, in order.
    """

    early_stop: EarlyStop | None = field(default_factory=lambda: RULE)
    looked: list[tuple[str, int]] = field(default_factory=list)

    def evaluate(self, arch: Arch, rival: Rival | None = None) -> SubnetResult:
        matches, rule = everything(arch), self.early_stop
        looks: Looks = {}
        counts = {} if rule is None else rule.looks(IMAGES)
        for name, count in counts.items():
            assert rule is not None
            seen, look = looked(arch, rule, count)
            looks = {**looks, name: look}
            verdict = None if rival is None else self.verdict(looks, rival)
            if verdict is not None:
                return self._result(arch, seen, looks, verdict)
        return self._result(arch, matches, looks, None)

    def _result(self, arch: Arch, seen: Matches, looks: Looks, verdict: Verdict | None) -> SubnetResult:
        self.looked.append((arch.id, len(seen)))
        stats = {**seen.stats(), **{name: look.ap for name, look in looks.items()}}
        found = SubnetResult(stats, [], len(seen), 0.0, 0.0, looks=looks, verdict=verdict)
        return replace(found, detections=[{"arch": arch}])

    def matches(self, result: EvalResult) -> Matches:
        return everything(result.detections[0]["arch"])

    def verdict(self, looks: Looks, rival: Rival) -> Verdict | None:
        rule = self.early_stop
        return None if rule is None else rule.verdict(looks, rival, rule.looks(IMAGES), IMAGES)


def racing(drawn: Drawn | None = None) -> SearchEvaluator:
    return SearchEvaluator(cast(SubnetEvaluator, drawn or Drawn()))


def course(result: SearchResult) -> list[tuple[Any, ...]]:
    return [(r.arch.id, r.ap, r.generation, r.origin, r.partial, r.stats) for r in result.records]


def finalists_are_whole(result: SearchResult) -> None:
    """Hold that whatever may be chosen was looked at to the end, and that every loser has who beats it."""
    assert result.partial, "nothing was stopped: this says nothing"
    for axis in ("macs", "params", "size"):
        assert all(r.stats["images"] == IMAGES and not r.partial for r in result.front(axis))
    for bound in np.quantile([r.macs for r in result.evaluated], [0.1, 0.5, 1.0]):
        for least in (None, 0.01):
            chosen = replace(result, min_ap=least).best([Constraint(MACS, float(bound))])
            assert chosen.stats["images"] == IMAGES and not chosen.partial
    for loser in result.partial:
        assert loser.stats["images"] in RULE.looks(IMAGES).values()
        better = [
            r
            for r in result.evaluated
            if r.macs <= loser.macs and r.params <= loser.params and r.require_ap() > loser.require_ap()
        ]
        assert any(r.generation < loser.generation for r in better)
