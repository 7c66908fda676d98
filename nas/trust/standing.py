"""How far a run's ranking can be trusted, in one line beside every claim that rests on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.trust.report import TrustReport
from search_spaces import RunError
from supernet.pose.bootstrap import Interval

__all__ = ["Standing", "interval_words", "standing"]


@dataclass(frozen=True)
class Standing:
    """What is known of a run's ranking at present.

    Attributes
    ----------
    report
        The run's report, None where there is none (or none that can be read).
    stale
        What it rests on and has changed since, by name; it then tells nothing of the run as it is.
    problem
        Why the report cannot be read; empty where it can.
    """

    report: TrustReport | None
    stale: tuple[str, ...]
    problem: str

    @property
    def known(self) -> bool:
        """Whether there is a report of the run as it is."""
        return self.report is not None and not self.stale

    def line(self) -> str:
        """Return what is to be shown beside a claim."""
        advice = "run 'nas trust RUN'"
        if self.problem:
            return f"not readable: {self.problem}"
        if self.report is None:
            return f"not measured; {advice}"
        told = self.report.statistics
        if self.stale:
            return (
                f"not known any more: another {', another '.join(self.stale)} since it was measured; {advice}"
            )
        return (
            f"Kendall tau {interval_words(told.supernet.kendall)} against {told.networks} networks trained"
            f" stand-alone ({told.grade}); by MACs alone {told.macs.kendall.value:.2f}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the gist as a JSON-able mapping; tau is null where it is not known at present."""
        told = self.report.statistics if self.known and self.report is not None else None
        return {
            "state": "measured"
            if told
            else "stale"
            if self.report
            else "damaged"
            if self.problem
            else "absent",
            "says": self.line(),
            "networks": None if told is None else told.networks,
            "kendall": None if told is None else told.supernet.kendall.to_json(),
            "kendall_macs": None if told is None else told.macs.kendall.to_json(),
            "grade": None if told is None else told.grade,
            "trusted_difference": None if told is None else told.trusted_difference,
        }


def interval_words(interval: Interval) -> str:
    """Return a coefficient with its interval: ``0.83 [0.71, 0.92]``."""
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def standing(run: Path, context: Mapping[str, str]) -> Standing:
    """Return what is known of the ranking of the run in folder ``run``; a damaged report stops nothing.

    Parameters
    ----------
    run
        The run's folder.
    context
        What its APs rest on now (:func:`nas.known.search_context`).
    """
    try:
        report = TrustReport.load(run)
    except RunError as error:
        return Standing(None, (), str(error))
    stale = () if report is None else tuple(report.stale(context))
    return Standing(report, stale, "")
