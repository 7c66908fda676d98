"""Pictures of ``nas trust``: stand-alone AP against the supernet's, and AP against calibration images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator

from nas.plot_style import CANVASES, FAINT, GRID, INK, MUTED, STYLE, save_figure
from nas.trust.standing import interval_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nas.trust.report import ArchTrust, TrustReport
    from nas.trust.sensitivity import Sensitivity
    from nas.trust.statistics import Ranking

__all__ = ["plot_sensitivity", "plot_trust"]

# The middle of viridis: what is small is light and what is large dark, also in grey.
_RAMP: Final = LinearSegmentedColormap.from_list(
    "macs", ("#a5db36", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e")
)
_MARK: Final = "#d1273f"
_TAU, _RHO = "\N{GREEK SMALL LETTER TAU}", "\N{GREEK SMALL LETTER RHO}"
_LEAST_ERROR: Final = 1e-5
"""The least error that is drawn, since the axis is logarithmic."""


def plot_trust(report: TrustReport, path: Path, title: str = "") -> tuple[Path, ...]:
    """Draw stand-alone AP against supernet AP, and beside it against MACs alone; return the files.

    Every network is a spot with the 95% intervals of its APs over the images, coloured by MACs. On the dashed
    line both APs are equal: networks above it are better alone than in the supernet. What counts for a search
    is not how near they are to it but whether the spots rise: that is what tau says.

    Parameters
    ----------
    report
        What ``nas trust`` found.
    path
        Without suffix: a PNG and an SVG are written.
    title
        Heading of the picture; by default how many networks are compared.
    """
    told = report.statistics
    truth = np.array([arch.standalone_ap for arch in report.archs])
    supernet = np.array([arch.supernet.value for arch in report.archs])
    macs = np.array([arch.macs for arch in report.archs], np.float64)
    scale, unit = (1e9, "G") if macs.max() >= 1e9 else (1e6, "M")
    colours = ScalarMappable(Normalize(macs.min() / scale, macs.max() / scale), _RAMP)
    with rc_context(STYLE):
        figure = Figure(figsize=(11.6, 5.4), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        left, right = figure.subplots(1, 2, sharey=True)
        spans = np.array([_span(arch) for arch in report.archs]).T
        across = np.array([(arch.supernet.low, arch.supernet.high) for arch in report.archs]).T
        for panel, places in ((left, supernet), (right, macs / scale)):
            panel.grid(color=GRID, linewidth=0.8)
            panel.set_axisbelow(True)
            panel.errorbar(
                places, truth, yerr=_about(truth, spans), linestyle="none",
                xerr=_about(supernet, across) if panel is left else None,
                ecolor=FAINT, elinewidth=0.9, zorder=2,
            )  # fmt: skip
            panel.scatter(
                places, truth, s=46, c=colours.to_rgba(macs / scale), edgecolors="white", linewidths=0.8,
                zorder=3,
            )  # fmt: skip
        _identity(left, np.concatenate([supernet, truth, across.ravel(), spans.ravel()]))
        left.set_xlabel("AP in the supernet")
        left.set_ylabel("AP trained stand-alone")
        right.set_xlabel(f"MACs ({unit})")
        left.set_title(_words("Supernet", told.supernet))
        right.set_title(_words("MACs alone", told.macs))
        bar = figure.colorbar(colours, ax=right, fraction=0.045, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(f"MACs ({unit})")
        heading = title or f"{told.networks} networks, in the supernet and trained stand-alone"
        figure.suptitle(heading, x=0.012, ha="left", fontsize=12.5, fontweight="bold")
        figure.supxlabel(_foot(report), x=0.012, ha="left", fontsize=8.5, color=MUTED)
        return save_figure(figure, [path.with_suffix(suffix) for suffix in CANVASES])


def _span(arch: ArchTrust) -> tuple[float, float]:
    """Return the range of a network's stand-alone AP: the mean of its trainings' intervals."""
    lows, highs = [each.ap.low for each in arch.standalone], [each.ap.high for each in arch.standalone]
    return float(np.mean(lows)), float(np.mean(highs))


def _about(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the lengths (2, n) of bars from values to the ends of their intervals."""
    return np.maximum([values - ends[0], ends[1] - values], 0)


def _words(name: str, ranking: Ranking) -> str:
    return f"{name}:  {_TAU} {interval_words(ranking.kendall)},  {_RHO} {interval_words(ranking.spearman)}"


def _foot(report: TrustReport) -> str:
    told = report.statistics
    first = "/".join(map(str, told.supernet.regret))
    below = "/".join(f"{value:.3f}" for value in told.supernet.regret.values())
    basis = "two trainings agree" if told.ceiling.basis == "seeds" else "two draws of the images agree"
    return (
        "Bars: 95% intervals over the images. Brackets: 95% intervals over the networks.\n"
        f"Best of the supernet's first {first}: {below} AP below the best of all."
        f"  Within reach: {_TAU} {interval_words(told.ceiling.kendall)}, as {basis}."
    )


def _identity(panel: Axes, values: np.ndarray) -> None:
    """Draw the line on which both APs are equal, as far as there are spots."""
    low, high = float(values.min()), float(values.max())
    room = 0.04 * max(high - low, 0.01)
    ends = (max(0.0, low - room), high + room)
    panel.plot(ends, ends, color=MUTED, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1)
    panel.set_xlim(ends)
    panel.set_ylim(ends)
    at = ends[0] + 0.86 * (ends[1] - ends[0])
    panel.annotate(
        "equal APs", (at, at), xytext=(5, -5), textcoords="offset points", va="top", fontsize=8, color=MUTED
    )


def plot_sensitivity(found: Sensitivity, path: Path, title: str = "") -> tuple[Path, ...]:
    """Draw AP against the number of calibration images, and how far one draw's AP is off; return the files.

    Parameters
    ----------
    found
        What was measured.
    path
        Without suffix: a PNG and an SVG are written.
    title
        Heading of the picture.
    """
    counts = np.array(found.counts, np.float64)
    macs = np.array(found.macs, np.float64)
    scale, unit = (1e9, "G") if macs.max() >= 1e9 else (1e6, "M")
    with rc_context({**STYLE, "text.parse_math": True}):  # numbers on logarithmic axes are written so
        figure = Figure(figsize=(11.6, 4.9), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        left, right = figure.subplots(1, 2)
        for panel in (left, right):
            panel.grid(color=GRID, linewidth=0.8)
            panel.set_axisbelow(True)
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_locator(FixedLocator(list(counts)))
            panel.xaxis.set_minor_locator(NullLocator())
            panel.set_xticklabels([f"{count:g}" for count in counts])
            panel.set_xlabel("Calibration images")
            panel.axvline(found.given, color=MUTED, linewidth=1.0, linestyle=(0, (5, 3)), zorder=1)
        places = np.linspace(0, 1, len(found.archs))
        for arch, cost, aps, place in zip(found.archs, found.macs, found.aps, places, strict=True):
            colour, means = _RAMP(float(place)), aps.mean(axis=1)
            shift = 2 ** (0.16 * (place - 0.5))  # side by side, so that bars do not hide each other
            side = f", {arch.number('resolution')} px" if "resolution" in list(arch) else ""
            left.errorbar(
                counts * shift, means, yerr=_about(means, np.array([aps.min(axis=1), aps.max(axis=1)])),
                color=colour, linewidth=1.5, marker="o", markersize=5, elinewidth=1.1, capsize=2.5,
                label=f"{cost / scale:.3g} {unit}{side}",
            )  # fmt: skip
        left.set_ylabel("AP (bars: all draws)")
        left.set_title(f"AP of {len(found.archs)} networks, {found.draws} draws each")
        handles, labels = left.get_legend_handles_labels()
        left.legend(
            handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False,
            fontsize=8.5, title="MACs", title_fontsize=8.5, alignment="left",
        )  # fmt: skip
        _errors(right, found, counts)
        heading = title or "AP against the images that BN statistics are of"
        figure.suptitle(heading, x=0.012, ha="left", fontsize=12.5, fontweight="bold")
        return save_figure(figure, [path.with_suffix(suffix) for suffix in CANVASES])


def _errors(panel: Axes, found: Sensitivity, counts: np.ndarray) -> None:
    """Draw the error of one draw, what is within the noise of most images, and the scored images' noise."""
    errors = np.maximum(found.deviations, _LEAST_ERROR)
    noise = max(found.tolerance, _LEAST_ERROR)
    lines = [(noise, f"noise of {found.counts[-1]} calibration images")]
    if found.image_noise > _LEAST_ERROR:
        lines.append((found.image_noise, "noise of the scored images"))
    heights = [*errors, *(height for height, _ in lines)]
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.set_ylim(min(heights) / 2, max(heights) * 2)
    panel.axhspan(min(heights) / 2, noise, color=_RAMP(0.4), alpha=0.14, linewidth=0, zorder=0)
    panel.plot(counts, errors, color=_RAMP(0.8), linewidth=1.8, marker="o", markersize=5.5, zorder=3)
    enough = found.counts.index(found.enough)
    panel.scatter(
        counts[enough], errors[enough], s=130, facecolors="none", edgecolors=_MARK, linewidths=1.6, zorder=4
    )
    side = "right" if enough else "left"
    panel.annotate(
        f"enough: {found.enough}", (counts[enough], errors[enough]), xytext=(-9 if enough else 9, -13),
        textcoords="offset points", ha=side, fontsize=9, color=_MARK, fontweight="bold",
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip
    for height, text in lines:
        panel.axhline(height, color=FAINT, linewidth=1.1, zorder=1)
        panel.annotate(
            text, (0.0, height), xycoords=("axes fraction", "data"), xytext=(4, 3),
            textcoords="offset points", fontsize=8, color=MUTED,
        )  # fmt: skip
    panel.annotate(
        "the run's", (found.given, 1.0), xycoords=("data", "axes fraction"), xytext=(4, -10),
        textcoords="offset points", fontsize=8, color=MUTED,
    )  # fmt: skip
    panel.set_ylabel("Error of AP (root mean square)")
    panel.set_title("How far the AP of one draw is off", color=INK)
