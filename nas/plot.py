"""Pictures of a search: AP against each cost with its Pareto front, and the search's progress."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from nas.plot_style import CANVASES, FAINT, GRID, INK, MUTED, STYLE, save_figure
from nas.search import noise
from nas.search.objectives import MACS, Constraint, Objective
from search_spaces import InputError, RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nas.search.result import Record, SearchResult

__all__ = ["Reference", "plot_front", "plot_progress"]

_TIE: Final[Any] = (0, (1.0, 1.6))
_FRONT, _CHOSEN, _BUDGET = "#1c2733", "#d1273f", "#b45309"
# Samples of viridis: small inputs are light, large ones dark, also in grey and for colour-blind eyes.
_RAMP = ("#a5db36", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e")


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


def plot_front(
    result: SearchResult,
    path: str | Path,
    x: str | Objective | Sequence[str | Objective] | None = None,
    *,
    chosen: Record | Mapping[str, Record] | None = None,
    budgets: Sequence[Constraint] | None = None,
    named: Mapping[str, Record | Reference] | None = None,
    title: str | None = None,
    caption: str | None = None,
    own_budgets: bool = False,
) -> tuple[Path, ...]:
    """Draw AP against one or several costs: every evaluated network, the Pareto front, budgets, the choice.

    Networks beyond a budget are grey and hollow; networks that were priced only, because they exceed a
    constraint of the search, are ticks on the cost axis. Colour tells the input's resolution where it varies.
    The front is dotted where a step's gain in AP is within the noise of the images.

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
        Further networks to mark, by name.
    title
        Heading of the picture.
    caption
        Stands below it, such as how far the ranking can be trusted.
    own_budgets
        Judge the networks of each panel by the budget on its own cost only: for a picture that brings
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
    files = _files(path)
    _require_evaluated(result)
    axes_of = _axes(result, x)
    budgets = result.constraints if budgets is None else tuple(budgets)
    for budget in budgets:
        result.axis(budget.objective)
    marked = _marked(result, chosen, budgets)
    with rc_context(STYLE):
        columns = min(len(axes_of), 2)
        rows = -(-len(axes_of) // columns)
        width = 7.2 if columns == 1 else 12.4
        figure = Figure(
            figsize=(width, 4.9 * rows + 0.5), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        )
        grid = figure.subplots(rows, columns, squeeze=False)
        panels = list(grid.flat)
        for panel in panels[len(axes_of) :]:
            panel.set_visible(False)
        colours = _colours(result)
        for panel, objective in zip(panels, axes_of, strict=False):
            judged = [b for b in budgets if b.objective == objective] if own_budgets else budgets
            _front_panel(panel, result, objective, judged, marked, named or {}, colours)
        figure.suptitle(
            title or f"{result.space}: {len(result.evaluated)} networks evaluated",
            x=0.012,
            ha="left",
            fontsize=12.5,
            fontweight="bold",
        )
        if caption is not None:
            # Shares the first panel's heading, which a picture of a front leaves free.
            words = textwrap.fill(caption, 100 if columns == 1 else 170)
            panels[0].set_title(words, fontsize=8.5, fontweight="normal", color=MUTED)
        figure.legend(
            handles=_legend(result, budgets, marked, named or {}, colours),
            loc="outside lower center",
            ncols=5 if columns == 1 else 9,
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
    files = _files(path)
    _require_evaluated(result)
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
        bottom.set_ylabel(f"Hypervolume (AP, {objective.label.rsplit(' (', 1)[0]})\nshare of its last value")
        bottom.set_ylim(0, 1.04)
        bottom.set_xlabel("Networks evaluated (vertical lines: generations)")
        bottom.set_xlim(0.5, max(2, len(aps)) + 0.5)
        return save_figure(figure, files)


# -- parts -----------------------------------------------------------------------------------------------


def _files(path: str | Path) -> tuple[Path, ...]:
    path = Path(path)
    if path.suffix == "":
        return tuple(path.with_suffix(suffix) for suffix in CANVASES)
    if path.suffix.lower() not in CANVASES:
        raise InputError(f"a plot is written as {' or '.join(CANVASES)}, not as '{path.name}'")
    return (path,)


def _require_evaluated(result: SearchResult) -> None:
    if not result.evaluated:
        raise RunError(
            f"the search '{result.study}' has evaluated no network yet, so there is nothing to draw"
        )


def _axes(
    result: SearchResult, x: str | Objective | Sequence[str | Objective] | None
) -> tuple[Objective, ...]:
    if x is None:
        return (MACS, *(result.axis(f"latency[{target}]") for target in result.targets))
    if isinstance(x, str | Objective):
        x = (x,)
    return tuple(result.axis(item) for item in x)


def _marked(
    result: SearchResult, chosen: Record | Mapping[str, Record] | None, budgets: Sequence[Constraint]
) -> dict[str, Record]:
    if chosen is None:
        meets = [r for r in result.evaluated if _within(r, budgets)]
        return {"chosen": result.best(budgets)} if meets else {}
    return dict(chosen) if isinstance(chosen, Mapping) else {"chosen": chosen}


def _within(record: Record, budgets: Sequence[Constraint]) -> bool:
    return all(budget.holds(record.value(budget.objective)) for budget in budgets)


def _resolution(record: Record) -> int | None:
    return record.arch.number("resolution") if "resolution" in list(record.arch) else None


def _colours(result: SearchResult) -> dict[int | None, str]:
    """Return a colour per resolution; one colour for all if the resolution does not vary."""
    found = sorted({r for r in map(_resolution, result.evaluated) if r is not None})
    if len(found) < 2 or len(found) > len(_RAMP):
        return dict.fromkeys((*found, None), _RAMP[2])
    places = np.linspace(0, len(_RAMP) - 1, len(found)).round().astype(int)
    return {resolution: _RAMP[place] for resolution, place in zip(found, places, strict=True)}


def _front_panel(
    panel: Axes,
    result: SearchResult,
    objective: Objective,
    budgets: Sequence[Constraint],
    marked: Mapping[str, Record],
    named: Mapping[str, Record | Reference],
    colours: Mapping[int | None, str],
) -> None:
    def place(record: Record) -> tuple[float, float]:
        return record.value(objective) / objective.scale, record.require_ap()

    def points(records: Sequence[Record]) -> tuple[list[float], list[float]]:
        placed = [place(record) for record in records]
        return [cost for cost, _ in placed], [ap for _, ap in placed]

    panel.grid(color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    inside = [r for r in result.evaluated if _within(r, budgets)]
    outside = [r for r in result.evaluated if not _within(r, budgets)]
    front = result.front(objective, budgets)
    on_front = {record.trial for record in front}
    if outside:
        panel.scatter(
            *points(outside),
            s=20, facecolors="none", edgecolors=FAINT, linewidths=0.9, zorder=2,
        )  # fmt: skip
    for resolution, colour in colours.items():
        group = [r for r in inside if _resolution(r) == resolution and r.trial not in on_front]
        if group:
            panel.scatter(*points(group), s=22, color=colour, alpha=0.6, linewidths=0, zorder=3)
    if front:
        steps = np.array([place(record) for record in front])
        level = np.array([[_reach(result, objective, budgets) / objective.scale, steps[-1, 1]]])
        line = np.concatenate([steps, level]) if level[0, 0] > steps[-1, 0] else steps
        ties = [step.tie for step in noise.steps(front)]
        for piece, tie in zip(pairwise(line), [*ties, False], strict=False):
            style = _TIE if tie else "-"
            xs, ys = np.array(piece).T
            panel.step(xs, ys, where="post", color=_FRONT, linewidth=1.4, linestyle=style, zorder=4)
        panel.scatter(
            steps[:, 0], steps[:, 1], s=38, zorder=5, linewidths=1.1, edgecolors=_FRONT,
            c=[colours[_resolution(record)] for record in front],
        )  # fmt: skip
    panel.set_xlabel(objective.label)
    panel.set_ylabel("AP")
    _limits(panel, result, objective, budgets, named)
    if objective == MACS and panel.get_xlim()[1] * objective.scale <= 1e8:
        panel.xaxis.set_major_formatter(lambda value, _: f"{value * 1e3:g}")
        panel.set_xlabel("MACs (M)")
    _price_only(panel, result, objective)
    _budget_lines(panel, objective, budgets)
    for name, item in named.items():
        spot = _spot(item, objective)
        if spot is not None:
            panel.scatter(*spot, marker="D", s=30, color="white", edgecolors=INK, linewidths=1.1, zorder=6)
            panel.annotate(
                name, spot, xytext=(7, -3), textcoords="offset points", fontsize=8, color=INK, va="top",
                zorder=7, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8},
            )  # fmt: skip
    for name, record in sorted(marked.items(), key=lambda item: -item[1].require_ap()):
        cost = objective.format(record.value(objective))
        _callout(panel, name, place(record), cost, record, first=record.arch == _highest(marked).arch)


def _reach(result: SearchResult, objective: Objective, budgets: Sequence[Constraint]) -> float:
    """Return up to which cost the front is known: the budget, or the dearest network evaluated."""
    dearest = max(record.value(objective) for record in result.evaluated)
    return min([dearest, *(b.upper for b in budgets if b.objective == objective)])


def _spot(item: Record | Reference, objective: Objective) -> tuple[float, float] | None:
    if isinstance(item, Reference):
        cost = item.costs.get(objective)
        return None if cost is None else (cost / objective.scale, item.ap)
    return item.value(objective) / objective.scale, item.require_ap()


def _limits(
    panel: Axes,
    result: SearchResult,
    objective: Objective,
    budgets: Sequence[Constraint],
    named: Mapping[str, Record | Reference],
) -> None:
    """Fit the axes to the evaluated networks, the named ones, and a budget that lies not too far off."""
    spots = [s for s in (_spot(item, objective) for item in (*result.evaluated, *named.values())) if s]
    xs, ys = np.array(spots).T
    left, right = xs.min(), xs.max()
    for budget in budgets:
        bound = budget.upper / objective.scale
        if budget.objective == objective and bound <= right + (right - left) * 0.6 + 0.05 * right:
            right = max(right, bound)
    wide = max(right - left, 0.05 * right)
    tall = max(ys.max() - ys.min(), 0.02 * max(ys.max(), 1e-9), 1e-6)
    panel.set_xlim(max(0, left - 0.07 * wide), right + 0.07 * wide)
    panel.set_ylim(ys.min() - 0.1 * tall, ys.max() + 0.25 * tall)


def _price_only(panel: Axes, result: SearchResult, objective: Objective) -> None:
    low, high = panel.get_xlim()
    costs = [record.value(objective) / objective.scale for record in result.infeasible]
    shown = [cost for cost in costs if low <= cost <= high]
    if shown:
        panel.plot(
            shown, np.full(len(shown), 0.012), transform=panel.get_xaxis_transform(), linestyle="none",
            marker="|", markersize=7, markeredgewidth=0.9, color=FAINT, zorder=2,
        )  # fmt: skip


def _budget_lines(panel: Axes, objective: Objective, budgets: Sequence[Constraint]) -> None:
    low, high = panel.get_xlim()
    for budget in budgets:
        bound = budget.upper / objective.scale
        if budget.objective != objective or not low <= bound <= high:
            continue
        panel.axvline(bound, color=_BUDGET, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2.5)
        panel.axvspan(bound, high, color=_BUDGET, alpha=0.05, linewidth=0, zorder=0)
        right_half = bound > (low + high) / 2
        panel.annotate(
            f"budget {objective.format(budget.upper)}", (bound, 1.0), xycoords=("data", "axes fraction"),
            xytext=(-4 if right_half else 4, -3), textcoords="offset points", va="top",
            ha="right" if right_half else "left", fontsize=8, color=_BUDGET,
        )  # fmt: skip


def _highest(marked: Mapping[str, Record]) -> Record:
    return max(marked.values(), key=lambda record: record.require_ap())


def _callout(
    panel: Axes, name: str, spot: tuple[float, float], cost: str, record: Record, first: bool = True
) -> None:
    panel.scatter(*spot, marker="*", s=230, color=_CHOSEN, edgecolors="white", linewidths=1.0, zorder=8)
    resolution = _resolution(record)
    text = f"{name}: AP {record.require_ap():.3f}\n{cost}" + (f", {resolution} px" if resolution else "")
    low, high = panel.get_xlim()
    # Left of and above a network on the front nothing is drawn; where that leaves no room, right and above.
    left = (spot[0] - low) / (high - low) > 0.36
    # A lower one hangs below its spot, where a higher one's text cannot reach.
    away = ((-24, 4) if left else (18, 16)) if first else ((-24, -58) if left else (18, -58))
    panel.annotate(
        text, spot, xytext=away, textcoords="offset points", va="bottom" if first else "top",
        ha="right" if left else "left", fontsize=8.5, color=_CHOSEN, zorder=9, linespacing=1.35,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": _CHOSEN, "linewidth": 0.8},
        arrowprops={"arrowstyle": "-", "color": _CHOSEN, "linewidth": 0.8, "shrinkB": 7},
    )  # fmt: skip


def _legend(
    result: SearchResult,
    budgets: Sequence[Constraint],
    marked: Mapping[str, Record],
    named: Mapping[str, Record | Reference],
    colours: Mapping[int | None, str],
) -> list[Line2D]:
    def dot(label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", label=label, **style)

    inside = {_resolution(r) for r in result.evaluated if _within(r, budgets)}
    handles = []
    if len(set(colours.values())) > 1:
        handles += [
            dot(f"{resolution} px", marker="o", markersize=6, color=colour)
            for resolution, colour in colours.items()
            if resolution in inside
        ]
    else:
        handles.append(dot("evaluated", marker="o", markersize=6, color=next(iter(colours.values()))))
    handles.append(
        Line2D(
            [],
            [],
            color=_FRONT,
            linewidth=1.4,
            marker="o",
            markersize=6,
            markerfacecolor="white",
            markeredgecolor=_FRONT,
            label="Pareto front",
        )
    )
    shown = [front for x in _axes(result, None) for front in (result.front(x, budgets),)]
    if any(step.tie for front in shown for step in noise.steps(front)):
        handles.append(Line2D([], [], color=_FRONT, linewidth=1.4, linestyle=_TIE, label="tie: within noise"))
    if marked:
        handles.append(dot("chosen", marker="*", markersize=12, color=_CHOSEN, markeredgecolor="white"))
    if named:
        handles.append(dot("named", marker="D", markersize=5.5, markerfacecolor="white", markeredgecolor=INK))
    if any(not _within(record, budgets) for record in result.evaluated):
        handles.append(
            dot("over budget", marker="o", markersize=5, markerfacecolor="none", markeredgecolor=FAINT)
        )
    if result.infeasible:
        handles.append(dot("priced only", marker="|", markersize=8, color=FAINT, markeredgewidth=1.2))
    return handles
