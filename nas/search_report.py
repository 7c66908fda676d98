"""What is said beside the claims of a search: how far its ranking is known, and which steps are ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nas.search.noise import Step, steps, tied
from nas.search.result import Record, SearchResult
from nas.trust.standing import Standing

__all__ = ["caveats", "claims_json", "gain_words", "ties_of", "ties_words"]


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


def ties_of(chosen: Record, result: SearchResult) -> dict[str, Any]:
    """Return which evaluated networks are within the noise of a chosen one, and the cheapest of them.

    ``known`` tells whether the chosen network's noise is known at all.
    """
    found = tied(chosen, result.evaluated)
    cheapest = min(found, key=lambda record: (record.macs, record.arch.id), default=None)
    saves = cheapest is not None and cheapest.macs < chosen.macs
    return {
        "known": bool(chosen.resamples),
        "networks": len(found),
        "cheapest": {"id": cheapest.arch.id, "macs": cheapest.macs, "search_ap": cheapest.ap}
        if saves and cheapest is not None
        else None,
    }


def ties_words(ties: Mapping[str, Any]) -> str:
    """Return what :func:`ties_of` found, in words."""
    if not ties["known"]:
        return "not known: the study is from before resamples were kept"
    if not ties["networks"]:
        return "no other network of the study is within its noise"
    cheapest = ties["cheapest"]
    words = "none of them with fewer MACs"
    if cheapest is not None:
        words = f"the cheapest {cheapest['id']} with {cheapest['macs'] / 1e9:.4f} GMACs: a tie is not a win"
    return f"{ties['networks']} of the study are within the noise of its AP, {words}"
