"""The report of ``nas trust``: ``RUN/trust/trust.json`` (format 1), and its rows as ``trust.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from nas.context import placeless
from nas.trust.statistics import CLOSE, ClosePairs, TrustStatistics
from search_spaces import Arch, InputError, RunError, arch_from_json
from search_spaces.files import read_json, write_json, write_text
from supernet.pose.bootstrap import Interval

__all__ = ["ArchTrust", "StandaloneAP", "TrustReport", "report_path", "verdict_of"]

_FORMAT: Final = 1


_GRADES: Final = {
    "high": "The supernet's ranking can be trusted: search by it.",
    "fair": "The supernet's ranking is a guide: search by it, and train the last few candidates alone.",
    "low": "The supernet's ranking is a weak guide: it rules out the worst, but cannot choose the best.",
    "none": "The supernet's ranking cannot be trusted: that it agrees with the stand-alone APs is not shown.",
}


def verdict_of(found: TrustStatistics) -> tuple[str, ...]:
    """Return what the statistics say in plain words, a sentence each."""
    if found.nothing_to_rank:
        return (
            f"All {found.networks} networks score alike when trained alone, so there is nothing to be ranked:"
            " train them longer (trust.epochs) or take more search images.",
        )
    tau, macs, gain = found.supernet.kendall, found.macs.kendall, found.gain
    said = [
        _GRADES[found.grade],
        f"Of 100 pairs of networks it orders about {50 * (1 + tau.value):.0f} as their stand-alone trainings"
        f" do: Kendall tau {_interval(tau)}, Spearman rho {_interval(found.supernet.spearman)},"
        f" over {found.networks} networks.",
        f"Ranking by MACs alone reaches tau {_interval(macs)}; the supernet's less that is {gain.value:+.2f}"
        f" ({gain.low:+.2f} to {gain.high:+.2f}): that it is {'better' if gain.value >= 0 else 'worse'} is"
        f" {'shown' if gain.shown else 'not shown'}.",
        *_close_words(found.close),
        "The best of the supernet's "
        + ", ".join(f"first {top} is {regret:.4f}" for top, regret in found.supernet.regret.items())
        + " AP below the best of all.",
    ]
    ceiling = found.ceiling.kendall
    if found.ceiling.basis == "seeds":
        said.append(
            f"Two stand-alone trainings of these networks agree with each other by tau {_interval(ceiling)}."
        )
    else:
        said.append(
            "Two scorings of the stand-alone networks, each on a draw of the images of its own, agree by tau"
            f" {_interval(ceiling)}; what chance in a training takes from that is unknown"
            " (trust.repeats=2 tells)."
        )
    least = found.trusted_difference
    said.append(
        "No difference of supernet APs is large enough to be right in 95% of the pairs."
        if least is None
        else f"Differences of {least:.4f} supernet AP and more were right in at least 95% of the pairs."
    )
    said.append(
        f"Subnets score {abs(found.shift):.4f} AP {'above' if found.shift >= 0 else 'below'} their"
        f" stand-alone trainings in the mean (standard deviation {found.spread:.4f})."
    )
    return tuple(said)


def _close_words(close: ClosePairs | None) -> list[str]:
    if close is None:
        return []
    if close.pairs == 0:
        return [
            f"No two networks have similar MACs (ratio at most {CLOSE:g}): nothing is known of networks"
            " within one budget."
        ]
    return [
        f"Of {close.pairs} pairs of networks with similar MACs (ratio at most {CLOSE:g}), such as a search"
        f" within a budget compares, it orders {close.supernet:g} as their stand-alone trainings do; MACs"
        f" alone order {close.macs:g} of them so."
    ]


def _interval(interval: Interval) -> str:
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def report_path(run_folder: Path) -> Path:
    """Return where a run's report is kept."""
    return run_folder / "trust" / "trust.json"


@dataclass(frozen=True)
class StandaloneAP:
    """What one stand-alone training reached.

    Attributes
    ----------
    seed
        Of the training.
    ap
        AP on the search images, with its 95% interval over them.
    steps, seconds
        Of the training; seconds are those of the process that finished it.
    """

    seed: int
    ap: Interval
    steps: int
    seconds: float


@dataclass(frozen=True)
class ArchTrust:
    """One network, as a part of the supernet and trained alone.

    Attributes
    ----------
    arch
        The network.
    macs, params
        What it costs.
    supernet
        AP of the subnet on the search images, with its 95% interval over them.
    standalone
        APs of the stand-alone trainings, by seed.
    """

    arch: Arch
    macs: int
    params: int
    supernet: Interval
    standalone: tuple[StandaloneAP, ...]

    @property
    def standalone_ap(self) -> float:
        """Mean AP of the stand-alone trainings."""
        return sum(each.ap.value for each in self.standalone) / len(self.standalone)

    def to_json(self) -> dict[str, Any]:
        """Return the network and its APs as a JSON-able mapping."""
        return {
            "id": self.arch.id,
            "arch": self.arch.to_json(),
            "macs": self.macs,
            "params": self.params,
            "supernet": self.supernet.to_json(),
            "standalone": [
                {"seed": s.seed, "ap": s.ap.to_json(), "steps": s.steps, "seconds": s.seconds}
                for s in self.standalone
            ],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_json` described."""
        return cls(
            arch=arch_from_json(value["arch"], f"the arch {value['id']}"),
            macs=int(value["macs"]),
            params=int(value["params"]),
            supernet=Interval(**value["supernet"]),
            standalone=tuple(
                StandaloneAP(int(s["seed"]), Interval(**s["ap"]), int(s["steps"]), float(s["seconds"]))
                for s in value["standalone"]
            ),
        )


@dataclass(frozen=True)
class TrustReport:
    """How far a supernet's ranking can be trusted, and what that rests on.

    Attributes
    ----------
    archs
        The networks, by rising MACs.
    statistics
        What they say; see :class:`nas.trust.statistics.TrustStatistics`.
    verdict
        The same in plain words, a sentence each.
    context
        What the supernet's APs rest on, as for a search (:func:`nas.known.search_context`).
    standalone
        What the stand-alone APs rest on (:func:`nas.trust.standalone.standalone_identity`).
    settings
        The recipe's section ``trust``.
    """

    archs: tuple[ArchTrust, ...]
    statistics: TrustStatistics
    verdict: tuple[str, ...]
    context: Mapping[str, str]
    standalone: Mapping[str, Any]
    settings: Mapping[str, Any]

    def stale(self, context: Mapping[str, str]) -> list[str]:
        """Return the names of what the supernet's APs rested on when this was made and no longer do.

        Such as ``supernet``, where it was trained on since. A report that is stale tells nothing of the
        weights as they are.
        """
        return sorted(
            name for name in {*self.context, *context} if self.context.get(name) != context.get(name)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON-able mapping that :meth:`from_json` reads back without loss."""
        return {
            "format": _FORMAT,
            "verdict": list(self.verdict),
            "statistics": self.statistics.to_json(),
            "settings": dict(self.settings),
            "context": dict(self.context),
            "standalone": dict(self.standalone),
            "archs": [arch.to_json() for arch in self.archs],
        }

    @classmethod
    def from_json(cls, value: object, where: str = "trust report") -> Self:
        """Return the report that :meth:`to_json` described.

        Raises
        ------
        RunError
            If the value is not such a description; the message names ``where``.
        """
        if not isinstance(value, dict) or value.get("format") != _FORMAT:
            raise RunError(f"{where} is not a report of format {_FORMAT}; run 'nas trust' again")
        try:
            return cls(
                archs=tuple(ArchTrust.from_json(arch) for arch in value["archs"]),
                statistics=TrustStatistics.from_json(value["statistics"]),
                verdict=tuple(map(str, value["verdict"])),
                context=placeless({str(k): str(v) for k, v in value["context"].items()}),
                standalone=dict(value["standalone"]),
                settings=dict(value["settings"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, InputError) as error:
            raise RunError(f"{where} is damaged ({error}); delete it, and run 'nas trust' again") from None

    def to_csv(self) -> str:
        """Return the networks as CSV text, one a row; the arch's values in columns of their own."""
        names = list(self.archs[0].arch)
        seeds = [each.seed for each in self.archs[0].standalone]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            [
                *("id", "macs", "params", "supernet_ap", "supernet_low", "supernet_high"),
                *("standalone_ap", *(f"standalone_ap_seed_{seed}" for seed in seeds)),
                *names,
            ]
        )
        for a in self.archs:
            writer.writerow(
                [
                    *(a.arch.id, a.macs, a.params, a.supernet.value, a.supernet.low, a.supernet.high),
                    *(a.standalone_ap, *(each.ap.value for each in a.standalone)),
                    *(a.arch[name] for name in names),
                ]
            )
        return text.getvalue()

    def save(self, run_folder: Path) -> Path:
        """Write the report into a run directory; return its file."""
        path = report_path(run_folder)
        write_text(path.with_suffix(".csv"), self.to_csv())
        write_json(path, self.to_json())
        return path

    @classmethod
    def load(cls, run_folder: Path) -> Self | None:
        """Return a run's report, None if there is none.

        Raises
        ------
        RunError
            If it is damaged.
        """
        path = report_path(run_folder)
        if not path.is_file():
            return None
        try:
            return cls.from_json(read_json(path, "trust report"), f"trust report '{path}'")
        except InputError as error:
            raise RunError(f"{error}; delete it, and run 'nas trust' again") from None
