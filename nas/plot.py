"""Pictures of a search: AP against each cost with its Pareto front, and the search's progress."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from nas.beside import Beside, Landmark, PublishedData
from nas.plot_style import FAINT, GRID, INK, MUTED, STYLE, picture_files, save_figure
from nas.search import noise
from nas.search.objectives import AP, MACS, PARAMS, Constraint, Objective
from search_spaces import RunError
from search_spaces.registry import named_archs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from latency_tables import Prediction
    from nas.search.result import Record, SearchResult
    from search_spaces import Arch
    from supernet.pose.bootstrap import Interval

__all__ = ["FRONT", "Reference", "View", "plot_front", "plot_progress", "require_evaluated"]

_TIE: Final[Any] = (0, (1.0, 1.6))
FRONT: Final = "#1c2733"
_CHOSEN, _BUDGET, _PUBLISHED = "#d1273f", "#b45309", "#7c3aed"
# Samples of viridis: small inputs are light, large ones dark, also in grey and for colour-blind eyes.
_RAMP = ("#a5db36", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e")
_CALLOUTS: Final = 3
"""More networks than so many are marked by letters, which the caption explains."""
_LONG: Final = 30
"""So are those with longer names."""


@dataclass(frozen=True)
class Reference:
    """A network that the search did not evaluate, drawn for comparison.

    Attributes
    ----------
    costs
        Its costs, in the objectives' stored units; it is drawn in the panels whose cost it states.
    ap
        Its AP. Only comparable if it was measured in the same way.
    """

    costs: Mapping[Objective, float]
    ap: float


@dataclass(frozen=True)
class View:
    """One search as it is drawn: which costs, budgets and networks are shown, and what stands beside them.

    Attributes
    ----------
    result
        What the search found.
    budgets
        Bounds that are drawn.
    marked
        Chosen networks by name.
    named
        Further networks by name.
    beside
        Latency intervals and published networks.
    own_budgets
        Judge the networks on each axis by the loosest budget on its own cost only.
    """

    result: SearchResult
    budgets: tuple[Constraint, ...]
    marked: Mapping[str, Record]
    named: Mapping[str, Record | Reference] = field(default_factory=dict)
    beside: Beside = field(default_factory=Beside)
    own_budgets: bool = False

    @classmethod
    def of(
        cls,
        result: SearchResult,
        *,
        chosen: Record | Mapping[str, Record] | None = None,
        budgets: Sequence[Constraint] | None = None,
        named: Mapping[str, Record | Reference] | None = None,
        beside: Beside | None = None,
        own_budgets: bool = False,
    ) -> View:
        """Return the view; arguments are those of :func:`plot_front`."""
        require_evaluated(result)
        bounds = result.constraints if budgets is None else tuple(budgets)
        for budget in bounds:
            result.axis(budget.objective)
        if chosen is None:
            meets = any(_within(record, bounds) for record in result.evaluated)
            marked = {"chosen": result.best(bounds)} if meets else {}
        else:
            marked = dict(chosen) if isinstance(chosen, Mapping) else {"chosen": chosen}
        archs = {arch: name for name, arch in named_archs().items()}
        known = {archs[r.arch]: r for r in result.evaluated if r.arch in archs}
        return cls(result, bounds, marked, {**known, **(named or {})}, beside or Beside(), own_budgets)

    def axes(self, x: str | Objective | Sequence[str | Objective] | None = None) -> tuple[Objective, ...]:
        """Return the costs named; by default MACs and every latency target priced."""
        if x is None:
            targets = (self.result.axis(f"latency[{target}]") for target in self.result.targets)
            return (MACS, *targets)
        if isinstance(x, str | Objective):
            x = (x,)
        return tuple(self.result.axis(item) for item in x)

    def every_axis(self) -> tuple[Objective, ...]:
        """Return all costs that a reader may ask for: MACs, parameters, every latency target priced."""
        return (MACS, PARAMS, *self.axes()[1:])

    @property
    def first_axis(self) -> Objective:
        """The cost that a reader is shown first: the first budget's, else what AP was traded against."""
        traded = (objective for objective in self.result.objectives if objective != AP)
        asked = (*(budget.objective for budget in self.budgets), *traded)
        return next((objective for objective in asked if objective in self.every_axis()), MACS)

    def judged(self, objective: Objective) -> tuple[Constraint, ...]:
        """Return the bounds that a network has to meet on an axis."""
        if not self.own_budgets:
            return self.budgets
        own = [budget for budget in self.budgets if budget.objective == objective]
        return (max(own, key=lambda budget: budget.upper),) if own else ()

    def front(self, objective: Objective) -> tuple[Record, ...]:
        """Return the Pareto front on an axis, by rising cost."""
        return self.result.front(objective, self.judged(objective))

    def inside(self, objective: Objective) -> list[Record]:
        """Return the evaluated networks that are within what is judged on an axis."""
        return [r for r in self.result.evaluated if _within(r, self.judged(objective))]

    def outside(self, objective: Objective) -> list[Record]:
        """Return the evaluated networks that are beyond it."""
        return [r for r in self.result.evaluated if not _within(r, self.judged(objective))]

    def reach(self, objective: Objective) -> float:
        """Return up to which cost the front is known: the budget, or the dearest network evaluated."""
        dearest = max(record.value(objective) for record in self.result.evaluated)
        return min([dearest, *(b.upper for b in self.judged(objective) if b.objective == objective)])

    def barred(self, objective: Objective) -> list[Record]:
        """Return the networks that get error bars on an axis: those of the front, and the chosen ones."""
        every = {record.trial: record for record in (*self.front(objective), *self.marked.values())}
        return list(every.values())

    def lines(self, objective: Objective) -> tuple[Landmark, ...]:
        """Return the published networks on an axis that the search did not evaluate itself."""
        seen = {record.arch for record in self.result.evaluated}
        found = self.beside.landmarks.get(objective, ())
        return tuple(mark for mark in found if mark.arch not in seen)

    def bars(self, objective: Objective) -> list[tuple[Record, Interval | None, Prediction | None]]:
        """Return what is drawn with error bars on an axis, with both intervals as far as they are known."""
        return [
            (record, noise.interval(record), self.beside.prediction(record, objective))
            for record in self.barred(objective)
        ]

    def limits(self, objective: Objective) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return the ends of the axes of cost and AP, in the units that people read.

        They fit the networks, the error bars, and a budget that lies not too far off.
        """
        spots = [_spot(item, objective) for item in (*self.result.evaluated, *self.named.values())]
        for record, ap, latency in self.bars(objective):
            cost = record.value(objective) / objective.scale
            if ap is not None:
                spots += [(cost, ap.low), (cost, ap.high)]
            if latency is not None:
                spots.append((latency.low_ms, record.require_ap()))
        xs, ys = np.array([spot for spot in spots if spot is not None]).T
        left, right = float(xs.min()), float(xs.max())
        for budget in self.budgets:
            bound = budget.upper / objective.scale
            if budget.objective == objective and bound <= right + (right - left) * 0.6 + 0.05 * right:
                right = max(right, bound)
        wide = max(right - left, 0.05 * right)
        across = (max(0.0, left - 0.07 * wide), right + 0.07 * wide)
        if self.beside.comparable:
            near = [mark.ap for mark in self.lines(objective) if _between(mark, objective, across)]
            ys = np.array([*ys, *(ap for ap in near if ap is not None)])
        tall = max(float(np.ptp(ys)), 0.02 * max(float(ys.max()), 1e-9), 1e-6)
        return across, (float(ys.min()) - 0.1 * tall, float(ys.max()) + 0.25 * tall)

    def shown_lines(self, objective: Objective) -> list[Landmark]:
        """Return the published networks that lie within an axis."""
        across, _ = self.limits(objective)
        return [mark for mark in self.lines(objective) if _between(mark, objective, across)]

    @cached_property
    def stars(self) -> tuple[tuple[tuple[str, ...], Record], ...]:
        """The chosen networks, each once with all its names, the highest AP first."""
        names: dict[Arch, list[str]] = {}
        for name, record in self.marked.items():
            names.setdefault(record.arch, []).append(name)
        records = {record.arch: record for record in self.marked.values()}
        found = [(tuple(names[arch]), record) for arch, record in records.items()]
        return tuple(sorted(found, key=lambda star: -star[1].require_ap()))

    @cached_property
    def letters(self) -> Mapping[str, str]:
        """The letter that marks each chosen network, by name; empty where there is room for their names."""
        if len(self.marked) <= _CALLOUTS and all(len(name) <= _LONG for name in self.marked):
            return {}
        return {name: string.ascii_uppercase[i % 26] for i, name in enumerate(self.marked)}

    @cached_property
    def colours(self) -> Mapping[int | None, str]:
        """A colour per resolution of the input; one colour for all if the resolution does not vary."""
        found = sorted({r for r in map(resolution, self.result.evaluated) if r is not None})
        if len(found) < 2 or len(found) > len(_RAMP):
            return dict.fromkeys((*found, None), _RAMP[2])
        places = np.linspace(0, len(_RAMP) - 1, len(found)).round().astype(int)
        return {side: _RAMP[place] for side, place in zip(found, places, strict=True)}


def plot_front(
    result: SearchResult,
    path: str | Path,
    x: str | Objective | Sequence[str | Objective] | None = None,
    *,
    chosen: Record | Mapping[str, Record] | None = None,
    budgets: Sequence[Constraint] | None = None,
    named: Mapping[str, Record | Reference] | None = None,
    beside: Beside | None = None,
    title: str | None = None,
    caption: str | None = None,
    own_budgets: bool = False,
) -> tuple[Path, ...]:
    """Draw AP against one or several costs: every evaluated network, the Pareto front, budgets, the choice.

    Networks beyond a budget are grey and hollow; networks that were priced only, because they exceed a
    constraint of the search, are ticks on the cost axis. Colour tells the input's resolution where it varies.
    The front is dotted where a step's gain in AP is within the noise of the images. Bars on the front are
    95% intervals of AP over the images, and of latency what the table predicts: a spot stands at the upper
    end, which budgets are held against.

    Parameters
    ----------
    result
        What the search found.
    path
        A ``.png`` or ``.svg`` file; without a suffix, both are written.
    x
        The costs, one panel each; by default MACs and every latency target priced.
    chosen
        The network or networks (by name) to mark with their numbers; by default the best under the budgets.
    budgets
        Bounds to draw; by default the search's constraints.
    named
        Further networks to mark, by name; evaluated networks that have a name are always marked.
    beside
        Latency intervals and published networks. The latter's costs are lines; their APs are spots only where
        they were measured on the same images, else they stand in a strip of their own above the panel.
    title
        Heading of the picture.
    caption
        Stands below it, such as how far the ranking can be trusted.
    own_budgets
        Judge the networks of each panel by the loosest budget on its own cost only: for a picture that brings
        searches under different budgets together.

    Returns
    -------
    tuple of Path
        The files written.

    Raises
    ------
    InputError
        If the suffix is another one, or a cost was not priced.
    RunError
        If no network was evaluated yet, or the file cannot be written.
    """
    files = picture_files(path)
    view = View.of(
        result, chosen=chosen, budgets=budgets, named=named, beside=beside, own_budgets=own_budgets
    )
    axes_of = view.axes(x)
    data = None if view.beside.comparable else view.beside.data
    apart = data is not None and any(view.shown_lines(x) for x in axes_of)
    with rc_context(STYLE):
        columns = min(len(axes_of), 2)
        rows = -(-len(axes_of) // columns)
        width = 7.2 if columns == 1 else 12.4
        tall = 4.9 + 1.3 * apart
        figure = Figure(
            figsize=(width, tall * rows + 0.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        )
        heights = [1.0, 3.4] * rows if apart else [1.0] * rows
        grid = figure.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
        panels = list(grid[1::2].flat if apart else grid.flat)
        strips = list(grid[0::2].flat) if apart else []
        for panel in (*panels[len(axes_of) :], *strips[len(axes_of) :]):
            panel.set_visible(False)
        for panel, objective in zip(panels, axes_of, strict=False):
            _front_panel(panel, view, objective)
        for strip, panel, objective in zip(strips, panels, axes_of, strict=False):
            if data is not None:
                _published_strip(strip, panel, view, objective, data)
        figure.suptitle(
            title or f"{result.space}: {len(result.evaluated)} networks evaluated",
            x=0.012,
            ha="left",
            fontsize=12.5,
            fontweight="bold",
        )
        lines = [] if caption is None else [caption]
        for name, letter in view.letters.items():
            record = view.marked[name]
            costs = ", ".join(x.format(record.value(x)) for x in axes_of)
            lines.append(f"{letter}: {name}: AP {record.require_ap():.3f}, {costs}")
        if lines:
            # Share the first panel's heading, which a picture of a front leaves free.
            words = "\n".join(textwrap.fill(line, 100 if columns == 1 else 170) for line in lines)
            top = strips[0] if apart else panels[0]
            top.set_title(words, fontsize=8.5, fontweight="normal", color=MUTED, linespacing=1.4)
        figure.legend(
            handles=_legend(view, axes_of),
            loc="outside lower center",
            ncols=5 if columns == 1 else 8,
            frameon=False,
            fontsize=8.5,
            handletextpad=0.4,
            columnspacing=1.3,
        )
        return save_figure(figure, files)


def plot_progress(
    result: SearchResult, path: str | Path, x: str | Objective | None = None
) -> tuple[Path, ...]:
    """Draw the best AP and the hypervolume of (AP, cost) over the evaluations.

    Parameters
    ----------
    result
        What the search found.
    path
        A ``.png`` or ``.svg`` file; without a suffix, both are written.
    x
        The cost of the hypervolume, by default the first that the search traded off. It is shown as a
        share of its last value, with AP's reference at 0 and the cost's just beyond the dearest network
        evaluated.

    Raises
    ------
    InputError, RunError
        As :func:`plot_front`.
    """
    files = picture_files(path)
    require_evaluated(result)
    objective = result.axis(x)
    aps = np.array([record.require_ap() for record in result.evaluated])
    volumes = result.hypervolumes(objective)
    share = volumes / volumes[-1] if volumes[-1] > 0 else np.ones_like(volumes)
    number = np.arange(1, len(aps) + 1)
    generations = np.array([record.generation for record in result.evaluated])
    starts = number[np.flatnonzero(np.diff(generations)) + 1] - 0.5
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.6), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        for panel in (top, bottom):
            panel.grid(axis="y", color=GRID, linewidth=0.8)
            panel.set_axisbelow(True)
            for start in starts:
                panel.axvline(start, color=GRID, linewidth=0.8, zorder=0)
        reused = np.array([record.reused for record in result.evaluated])
        for which, label, style in (
            (~reused, "evaluated", {"color": _RAMP[4], "alpha": 0.45, "linewidths": 0}),
            (
                reused,
                "taken from another search",
                {"facecolors": "none", "edgecolors": _RAMP[4], "alpha": 0.7},
            ),
        ):
            if which.any():
                top.scatter(number[which], aps[which], s=14, label=label, **style)
        best = np.maximum.accumulate(aps)
        top.step(number, best, where="post", color=_CHOSEN, linewidth=1.8, label="best so far")
        top.annotate(
            f"{best[-1]:.3f}", (number[-1], best[-1]), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=9, color=_CHOSEN, fontweight="bold", annotation_clip=False,
        )  # fmt: skip
        top.set_ylabel("AP")
        top.legend(
            frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.3
        )
        top.set_title("Search progress")
        bottom.fill_between(number, share, step="post", color=_RAMP[4], alpha=0.12, linewidth=0)
        bottom.step(number, share, where="post", color=_RAMP[4], linewidth=1.8)
        bottom.set_ylabel("Hypervolume\nshare of its last value")
        bottom.set_title(f"Hypervolume of AP and {objective.label.rsplit(' (', 1)[0]}", fontsize=9.5)
        bottom.set_ylim(0, 1.04)
        bottom.set_xlabel("Networks evaluated (vertical lines: generations)")
        bottom.set_xlim(0.5, max(2, len(aps)) + 0.5)
        return save_figure(figure, files)


# -- parts -----------------------------------------------------------------------------------------------


def require_evaluated(result: SearchResult) -> None:
    """Raise :class:`RunError` where a search has evaluated nothing."""
    if not result.evaluated:
        raise RunError(
            f"the search '{result.study}' has evaluated no network yet, so there is nothing to draw"
        )


def _between(mark: Landmark, objective: Objective, across: tuple[float, float]) -> bool:
    return across[0] <= mark.cost / objective.scale <= across[1]


def _within(record: Record, budgets: Sequence[Constraint]) -> bool:
    return all(budget.holds(record.value(budget.objective)) for budget in budgets)


def resolution(record: Record) -> int | None:
    """Return the side of a network's input, where its family has one."""
    return record.arch.number("resolution") if "resolution" in list(record.arch) else None


def _front_panel(panel: Axes, view: View, objective: Objective) -> None:
    def place(record: Record) -> tuple[float, float]:
        return record.value(objective) / objective.scale, record.require_ap()

    def points(records: Sequence[Record]) -> tuple[list[float], list[float]]:
        placed = [place(record) for record in records]
        return [cost for cost, _ in placed], [ap for _, ap in placed]

    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    inside, outside = view.inside(objective), view.outside(objective)
    front = view.front(objective)
    on_front = {record.trial for record in front}
    if outside:
        panel.scatter(
            *points(outside),
            s=20, facecolors="none", edgecolors=FAINT, linewidths=0.9, zorder=2,
        )  # fmt: skip
    for side, colour in view.colours.items():
        group = [r for r in inside if resolution(r) == side and r.trial not in on_front]
        if group:
            panel.scatter(*points(group), s=22, color=colour, alpha=0.6, linewidths=0, zorder=3)
    if front:
        steps = np.array([place(record) for record in front])
        level = np.array([[view.reach(objective) / objective.scale, steps[-1, 1]]])
        line = np.concatenate([steps, level]) if level[0, 0] > steps[-1, 0] else steps
        ties = [step.tie for step in noise.steps(front)]
        for piece, tie in zip(pairwise(line), [*ties, False], strict=False):
            style = _TIE if tie else "-"
            xs, ys = np.array(piece).T
            panel.step(xs, ys, where="post", color=FRONT, linewidth=1.4, linestyle=style, zorder=4)
        panel.scatter(
            steps[:, 0], steps[:, 1], s=38, zorder=5, linewidths=1.1, edgecolors=FRONT,
            c=[view.colours[resolution(record)] for record in front],
        )  # fmt: skip
    _error_bars(panel, view, objective)
    panel.set_xlabel(objective.label + (", upper end" if objective.target else ""))
    panel.set_ylabel("AP")
    across, up = view.limits(objective)
    panel.set_xlim(across)
    panel.set_ylim(up)
    if objective == MACS and across[1] * objective.scale <= 1e8:
        panel.xaxis.set_major_formatter(lambda value, _: f"{value * 1e3:g}")
        panel.set_xlabel("MACs (M)")
    _price_only(panel, view.result, objective)
    _landmark_lines(panel, view, objective)
    _budget_lines(panel, view, objective)
    for name, item in view.named.items():
        spot = _spot(item, objective)
        if spot is not None:
            panel.scatter(*spot, marker="D", s=30, color="white", edgecolors=INK, linewidths=1.1, zorder=6)
            panel.annotate(
                name, spot, xytext=(7, -3), textcoords="offset points", fontsize=8, color=INK, va="top",
                zorder=7, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8},
            )  # fmt: skip
    _mark(panel, view, objective)


def _error_bars(panel: Axes, view: View, objective: Objective) -> None:
    style: dict[str, Any] = {"color": FRONT, "linewidth": 1.0, "zorder": 4.5}
    bars = view.bars(objective)
    alpha = min(0.45, 10 / max(len(bars), 1))  # many are fainter, so that the front stays in front
    for record, ap, latency in bars:
        if ap is not None:
            panel.vlines(record.value(objective) / objective.scale, ap.low, ap.high, alpha=alpha, **style)
        if latency is not None:
            at = record.require_ap()
            panel.hlines(at, latency.low_ms, latency.high_ms, alpha=0.7 * alpha, **style)
            panel.plot([latency.ms], [at], marker="|", markersize=5, alpha=alpha, **style)


def _spot(item: Record | Reference, objective: Objective) -> tuple[float, float] | None:
    if isinstance(item, Reference):
        cost = item.costs.get(objective)
        return None if cost is None else (cost / objective.scale, item.ap)
    return item.value(objective) / objective.scale, item.require_ap()


def _price_only(panel: Axes, result: SearchResult, objective: Objective) -> None:
    low, high = panel.get_xlim()
    costs = [record.value(objective) / objective.scale for record in result.infeasible]
    shown = [cost for cost in costs if low <= cost <= high]
    if shown:
        panel.plot(
            shown, np.full(len(shown), 0.012), transform=panel.get_xaxis_transform(), linestyle="none",
            marker="|", markersize=7, markeredgewidth=0.9, color=FAINT, zorder=2,
        )  # fmt: skip


def _budget_lines(panel: Axes, view: View, objective: Objective) -> None:
    low, high = panel.get_xlim()
    own = sorted(b.upper / objective.scale for b in view.budgets if b.objective == objective)
    for row, bound in enumerate(bound for bound in dict.fromkeys(own) if low <= bound <= high):
        panel.axvline(bound, color=_BUDGET, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2.5)
        if bound == own[-1]:
            panel.axvspan(bound, high, color=_BUDGET, alpha=0.05, linewidth=0, zorder=0)
        right_half = bound > (low + high) / 2
        panel.annotate(
            f"budget {objective.format(bound * objective.scale)}", (bound, 1.0),
            xycoords=("data", "axes fraction"), xytext=(-4 if right_half else 4, -3 - 11 * row),
            textcoords="offset points", va="top", ha="right" if right_half else "left", fontsize=8,
            color=_BUDGET,
        )  # fmt: skip


def _landmark_lines(panel: Axes, view: View, objective: Objective) -> None:
    """Draw where published networks lie on the axis; and their APs, where these can be compared."""
    for mark in view.shown_lines(objective):
        at = mark.cost / objective.scale
        panel.axvline(at, color=_PUBLISHED, linewidth=1.0, linestyle=(0, (1, 2)), alpha=0.8, zorder=1.5)
        panel.annotate(
            mark.words(objective), (at, 0.03), xycoords=("data", "axes fraction"), xytext=(-2, 0),
            textcoords="offset points", rotation=90, ha="right", va="bottom", fontsize=7.5,
            color=_PUBLISHED, zorder=1.6,
        )  # fmt: skip
        if view.beside.comparable and mark.ap is not None:
            panel.scatter(at, mark.ap, **_PUBLISHED_SPOT)


_PUBLISHED_SPOT: Final[Any] = {
    **{"marker": "s", "s": 34, "facecolors": "none", "edgecolors": _PUBLISHED, "linewidths": 1.3, "zorder": 6}
}


def _published_strip(strip: Axes, panel: Axes, view: View, objective: Objective, data: PublishedData) -> None:
    """Draw APs that were measured on other images, over the panel whose costs they share."""
    strip.set_xlim(panel.get_xlim())
    strip.tick_params(labelbottom=False)
    strip.grid(color=GRID, linewidth=0.8)
    strip.set_axisbelow(True)
    strip.set_ylabel(f"AP published\non {data.name}", color=_PUBLISHED, fontsize=8)
    strip.set_ylim(min(data.ap.values()) - 0.1, max(data.ap.values()) + 0.16)
    left, right = strip.get_xlim()
    told = sorted(
        ((mark.cost / objective.scale, mark) for mark in view.shown_lines(objective)), key=lambda m: m[0]
    )
    for place, (at, mark) in enumerate(told):
        if mark.ap is None:
            continue
        strip.axvline(at, color=_PUBLISHED, linewidth=1.0, linestyle=(0, (1, 2)), alpha=0.8, zorder=1.5)
        strip.scatter(at, mark.ap, **_PUBLISHED_SPOT)
        share = (at - left) / (right - left)
        side = "left" if share < 0.1 else "right" if share > 0.9 else "center"
        # In turn below and above: those with similar costs have similar APs.
        under = place % 2 == 0
        strip.annotate(
            f"{mark.name} {mark.ap:.3f}", (at, mark.ap), xytext=(0, -7 if under else 7),
            textcoords="offset points", va="top" if under else "bottom", ha=side, fontsize=8,
            color=_PUBLISHED,
        ).set_in_layout(False)  # fmt: skip
    strip.annotate(
        "measured on other images: not comparable with the panel below", (0.008, 0.94),
        xycoords="axes fraction", va="top", fontsize=8, color=MUTED,
    )  # fmt: skip


def _mark(panel: Axes, view: View, objective: Objective) -> None:
    """Mark the chosen networks: with their numbers, or by letters where they are many."""
    for place, (names, record) in enumerate(view.stars):
        spot = record.value(objective) / objective.scale, record.require_ap()
        panel.scatter(*spot, marker="*", s=230, color=_CHOSEN, edgecolors="white", linewidths=1.0, zorder=8)
        if view.letters:
            told = panel.annotate(
                " ".join(view.letters[name] for name in names), spot, xytext=(-7, 7),
                textcoords="offset points", fontsize=9.5, fontweight="bold", color=_CHOSEN, ha="right",
                zorder=9,
            )  # fmt: skip
            told.set_in_layout(False)
        else:
            cost = objective.format(record.value(objective))
            _callout(panel, ", ".join(names), spot, cost, record, first=place == 0)


def _callout(
    panel: Axes, name: str, spot: tuple[float, float], cost: str, record: Record, first: bool = True
) -> None:
    side = resolution(record)
    text = f"{name}: AP {record.require_ap():.3f}\n{cost}" + (f", {side} px" if side else "")
    low, high = panel.get_xlim()
    # Left of and above a network on the front nothing is drawn; where that leaves no room, right and above.
    left = (spot[0] - low) / (high - low) > 0.36
    # A lower one hangs below its spot, where a higher one's text cannot reach.
    away = ((-24, 18) if left else (18, 18)) if first else ((-24, -58) if left else (18, -58))
    told = panel.annotate(
        text, spot, xytext=away, textcoords="offset points", va="bottom" if first else "top",
        ha="right" if left else "left", fontsize=8.5, color=_CHOSEN, zorder=9, linespacing=1.35,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": _CHOSEN, "linewidth": 0.8},
        arrowprops={"arrowstyle": "-", "color": _CHOSEN, "linewidth": 0.8, "shrinkB": 7},
    )  # fmt: skip
    told.set_in_layout(False)


def _legend(view: View, axes: Sequence[Objective]) -> list[Line2D]:
    def dot(label: str, **style: Any) -> Line2D:
        return Line2D([], [], **{"linestyle": "none", "markersize": 6, **style}, label=label)

    inside = {resolution(r) for x in axes for r in view.inside(x)}
    handles = []
    if len(set(view.colours.values())) > 1:
        handles += [
            dot(f"{side} px", marker="o", color=colour)
            for side, colour in view.colours.items()
            if side in inside
        ]
    else:
        handles.append(dot("evaluated", marker="o", color=next(iter(view.colours.values()))))
    edge: dict[str, Any] = {"color": FRONT, "linewidth": 1.4, "linestyle": "-"}
    handles.append(dot("Pareto front", marker="o", markerfacecolor="white", markeredgecolor=FRONT, **edge))
    if any(step.tie for x in axes for step in noise.steps(view.front(x))):
        handles.append(dot("tie: within noise", **{**edge, "linestyle": _TIE}))
    bars = [bar for x in axes for bar in view.bars(x)]
    bar: dict[str, Any] = {"color": FRONT, "alpha": 0.45, "markersize": 11}
    if any(ap is not None for _, ap, _ in bars):
        handles.append(dot("AP: 95% over the images", marker="|", **bar))
    if any(latency is not None for _, _, latency in bars):
        handles.append(dot("latency: predicted interval", marker="_", **bar))
    star: dict[str, Any] = {"color": _CHOSEN, "markeredgecolor": "white"}
    if view.marked:
        handles.append(dot("chosen", **star, marker="*", **{"markersize": 12}))
    if view.named:
        handles.append(dot("named", marker="D", markerfacecolor="white", markeredgecolor=INK))
    if any(view.outside(x) for x in axes):
        handles.append(dot("over budget", marker="o", markerfacecolor="none", markeredgecolor=FAINT))
    if view.result.infeasible:
        handles.append(dot("priced only", marker="|", color=FAINT, markeredgewidth=1.2))
    data = view.beside.data
    if data is not None and any(view.shown_lines(x) for x in axes):
        label = f"published, {data.name}" + ("" if view.beside.comparable else ": other images")
        handles.append(dot(label, marker="s", markerfacecolor="none", markeredgecolor=_PUBLISHED))
    return handles
