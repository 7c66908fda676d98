"""What is said beside the claims of a search: how far its ranking is known, and which steps are ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latency_tables import LatencyPredictor
from nas.search.noise import Step, compare, interval, steps, tied
from nas.search.objectives import Constraint, Objective
from nas.search.pricing import Pricing
from nas.search.result import Record, SearchResult
from nas.trust.standing import Standing
from search_spaces import BudgetError
from supernet.pose.bootstrap import Comparison

__all__ = [
    "Neighbours",
    "caveats",
    "chosen_words",
    "claims_json",
    "cost_words",
    "error_bar",
    "gain_words",
    "neighbours",
    "out_of_reach",
    "shortfall",
    "ties_of",
    "ties_words",
]


@dataclass(frozen=True)
class Neighbours:
    """The networks next to a chosen one on a front: what less would lose, and what more would buy.

    Attributes
    ----------
    cost
        By which they are next to it.
    cheaper, dearer
        Up to and from the chosen one; None at an end of the front.
    """

    cost: Objective
    cheaper: Step | None
    dearer: Step | None

    def to_json(self) -> dict[str, Any]:
        """Return them as a JSON-able mapping: of each the network and its AP less the chosen one's."""
        sides = {"cheaper": self.cheaper, "dearer": self.dearer}
        return {
            "by": str(self.cost),
            **{side: None if step is None else self._side(step, side) for side, step in sides.items()},
        }

    def _side(self, step: Step, side: str) -> dict[str, Any]:
        record = step.cheaper if side == "cheaper" else step.dearer
        ap, gain = _beside(step, side)
        return {
            **{"id": record.arch.id, "ap": record.ap, "cost": record.value(self.cost), "difference": ap},
            "interval": None if gain is None else gain.to_json(),
            "tie": None if gain is None else step.tie,
        }

    def words(self, side: str) -> str:
        """Return one of them in a few words: ``412.3 MMACs: -0.0110 [-0.0310, 0.0080] tie``."""
        step = self.cheaper if side == "cheaper" else self.dearer
        if step is None:
            return "none"
        record = step.cheaper if side == "cheaper" else step.dearer
        ap, gain = _beside(step, side)
        told = f"{self.cost.format(record.value(self.cost))}: {ap:+.4f}"
        return told if gain is None else f"{told} [{gain.low:.4f}, {gain.high:.4f}]{' tie' * step.tie}"


def _beside(step: Step, side: str) -> tuple[float, Comparison | None]:
    """Return the AP of the neighbour less that of the chosen network, and the same with its interval."""
    near, far = (step.cheaper, step.dearer) if side == "cheaper" else (step.dearer, step.cheaper)
    return near.require_ap() - far.require_ap(), compare(near, far)


def neighbours(chosen: Record, front: Sequence[Record], cost: Objective) -> Neighbours:
    """Return what is next to a network on a front, in ascending order of this cost."""
    at = chosen.value(cost)
    below = [record for record in front if record.value(cost) < at]
    above = [record for record in front if record.value(cost) > at]
    return Neighbours(
        cost,
        Step(below[-1], chosen, compare(chosen, below[-1])) if below else None,
        Step(chosen, above[0], compare(above[0], chosen)) if above else None,
    )


def error_bar(
    constraint: Constraint, pricing: Pricing, predictors: Mapping[str, LatencyPredictor]
) -> str | None:
    """Return what has to be said where a latency budget lies within the error bar of the target's table.

    A budget is held against the upper end of each network's interval. Where it is nearer to the upper end of
    the fastest network of the space than that interval is wide, the table can hardly tell the networks that
    meet it from the fastest one: the search then chooses among what fits by luck of the table. Where it lies
    inside that interval, no network is sure to meet it, though the fastest one may.

    Returns
    -------
    str or None
        One line; None for other costs, and for budgets that are beyond doubt on either side.
    """
    target = constraint.objective.target
    if target is None:
        return None
    least = pricing.smallest(constraint.objective)
    found = predictors[target].predict(pricing.space.decode(least.genotype).blocks(pricing.space.joints))
    if not found.low_ms <= constraint.upper < 2 * found.high_ms - found.low_ms:
        return None
    bar = f"{found.ms:.4g} ms ({found.low_ms:.4g} to {found.high_ms:.4g})"
    budget = f"the budget of {constraint.upper:.4g} ms on {target} lies"
    if constraint.upper < found.high_ms:
        return (
            f"{budget} inside the error bar of the space's fastest network, {bar}: that one may meet it, but"
            " a budget is held against the upper end"
        )
    return (
        f"{budget} within the table's error bar: the space's fastest network takes {bar}, and the table"
        " hardly tells those within the budget from it"
    )


def out_of_reach(
    constraint: Constraint, pricing: Pricing, predictors: Mapping[str, LatencyPredictor]
) -> str | None:
    """Return what has to be said where the networks that use up a latency budget are unlike all measured.

    How wide an interval has to be is known from the networks that a table is calibrated on. Of networks that
    are much faster or slower it is a guess, and so is whether they keep the budget.

    Returns
    -------
    str or None
        One line; None for other costs, and for budgets within the calibration.
    """
    target = constraint.objective.target
    if target is None:
        return None
    predictor, space = predictors[target], pricing.space
    blocks = space.largest().blocks(space.joints)
    largest = predictor.predict(blocks)
    beyond = predictor.beyond(largest.ms * min(constraint.upper / largest.high_ms, 1.0))
    if unseen := predictor.unseen(blocks, space.family.name):
        return f"latencies on {target} are guesses: {unseen}"
    return f"networks that use up {constraint.upper:.4g} ms on {target} are {beyond}" if beyond else None


def shortfall(result: SearchResult) -> list[str]:
    """Return what has to be said of the AP asked for, if any: that none reaches it, or only just."""
    if result.min_ap is None or not result.evaluated:
        return []
    try:
        chosen = result.best()
    except BudgetError as error:
        return [str(error)]
    known = interval(chosen)
    if known is not None and known.low < result.min_ap:
        return [
            f"AP {result.min_ap:g} is reached within the noise of the search images only: {known.value:.4f}"
            f" [{known.low:.4f}, {known.high:.4f}]"
        ]
    return []


def cost_words(seconds: Mapping[str, Any]) -> str:
    """Return what :func:`nas.search.analysis.seconds_of` found, in words."""
    looked_at = seconds["made"] + seconds["reused"]
    made = f"{seconds['made']} evaluated in {seconds['sum']:.1f} s"
    if seconds["median"] is not None:
        made += f" (median {seconds['median']:.2f} s)"
    if seconds["ended_early"]:
        made += f"; {seconds['ended_early']} of them ended early, having lost"
        if seconds["images_saved"]:
            saved, of = seconds["images_saved"], seconds["images_saved"] + seconds["images"]
            made += f": {saved:,} of {of:,} looks at an image saved ({saved / of:.0%})"
    if not seconds["reused"]:
        return made
    taken = f"{seconds['reused']} of {looked_at} taken from earlier studies"
    return f"{taken} (there {seconds['saved']:.1f} s), {made}"


def gain_words(step: Step) -> str:
    """Return the gain of a step with its 95% interval: ``+0.0120 [-0.0040, 0.0310] tie``."""
    if step.gain is None:
        return f"{step.dearer.require_ap() - step.cheaper.require_ap():+.4f}"
    gain = step.gain
    return f"{gain.value:+.4f} [{gain.low:.4f}, {gain.high:.4f}]{' tie' if step.tie else ''}"


def caveats(front: Sequence[Record], trust: Standing) -> list[str]:
    """Return what has to be said beside a front, a line each: the run's standing first.

    Parameters
    ----------
    front
        Its networks by rising cost.
    trust
        What is known of the ranking.
    """
    lines = [f"supernet's ranking: {trust.line()}"]
    found = steps(front)
    unknown, ties = [s for s in found if s.gain is None], [s for s in found if s.tie]
    if unknown:
        lines.append(
            f"noise of {len(unknown)} of {_count(len(found))} of the front is not known: they were evaluated"
            " before resamples were kept"
        )
    if ties:
        lines.append(
            f"{len(ties)} of {_count(len(found))} of the front {'is' if len(ties) == 1 else 'are'} within the"
            " noise of the search images (95%, the same images): a tie is not a win"
        )
    least = trust.report.statistics.trusted_difference if trust.known and trust.report is not None else None
    if least is not None:
        small = [s for s in found if s.dearer.require_ap() - s.cheaper.require_ap() < least]
        if small:
            lines.append(
                f"{len(small)} of {_count(len(found))} gain less than {least:.4f} AP, from which on the"
                " supernet orders 95% of pairs as stand-alone training does"
            )
    return lines


def _count(number: int) -> str:
    return f"{number} step{'' if number == 1 else 's'}"


def claims_json(front: Sequence[Record], trust: Standing) -> dict[str, Any]:
    """Return the same for programs: ``trust``, ``steps`` of the front and ``caveats``."""
    return {
        "trust": trust.to_json(),
        "steps": [step.to_json() for step in steps(front)],
        "caveats": caveats(front, trust),
    }


def ties_of(chosen: Record, evaluated: Sequence[Record]) -> dict[str, Any]:
    """Return which evaluated networks are within the noise of a chosen one, and the cheapest of them.

    ``known`` tells whether the chosen network's noise is known at all.
    """
    found = tied(chosen, evaluated)
    cheapest = min(found, key=lambda record: (record.macs, record.arch.id), default=None)
    saves = cheapest is not None and cheapest.macs < chosen.macs
    return {
        "known": bool(chosen.resamples),
        "networks": len(found),
        "cheapest": {"id": cheapest.arch.id, "macs": cheapest.macs, "search_ap": cheapest.ap}
        if saves and cheapest is not None
        else None,
    }


def chosen_words(chosen: Mapping[str, Any]) -> str:
    """Return how a card says that its network was chosen, in words."""
    known, budget = chosen["known"], ", ".join(chosen["budget"]) or "any budget"
    studies = "1 study" if known["studies"] == 1 else f"{known['studies']} studies"
    return (
        f"best of {known['within_budget']} within {budget}; {known['networks']} evaluated in {studies},"
        f" this one in '{chosen['found_in']}'"
    )


def ties_words(ties: Mapping[str, Any]) -> str:
    """Return what :func:`ties_of` found, in words."""
    if not ties["known"]:
        return "not known: the study is from before resamples were kept"
    if not ties["networks"]:
        return "no other network known is within its noise"
    cheapest = ties["cheapest"]
    words = "none of them with fewer MACs"
    if cheapest is not None:
        words = f"the cheapest {cheapest['id']} with {cheapest['macs'] / 1e9:.4f} GMACs: a tie is not a win"
    return f"{ties['networks']} of those known are within the noise of its AP, {words}"
