"""A picture of each choice of a space: what its values are worth at equal cost, and which the front takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nas.plot import FRONT, require_evaluated
from nas.plot_style import FAINT, GRID, INK, MUTED, STYLE, picture_files, save_figure
from nas.search.importance import FEWEST, Importance, different_values, importances
from search_spaces import RunError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from nas.search.objectives import Constraint, Objective
    from nas.search.result import Record, SearchResult
    from search_spaces.arch import Value

__all__ = ["Marginal", "choice_marginals", "cost_residuals", "plot_choices"]

_COLUMNS: Final = 4
_SPOT, _MEDIAN = "#277f8e", "#d1273f"
_QUADRATIC: Final = 12
"""From so many different costs on AP is expected by a parabola of the logarithm of the cost."""
_LEFT_IN, _TOP_IN, _BOTTOM_IN = 0.85, 1.0, 0.72
_PANEL_IN: Final = 2.1


@dataclass(frozen=True)
class Marginal:
    """One choice, as far as the evaluated networks differ in it.

    Attributes
    ----------
    name
        Of the choice.
    residuals
        By value, ascending: AP less what is expected at the cost, of each network that has the value.
    evaluated, front
        By value: the share of the evaluated networks, and of those on the front, that have it.
    importance
        How much the choice matters for AP; None where too few networks were evaluated.
    """

    name: str
    residuals: Mapping[Value, tuple[float, ...]]
    evaluated: Mapping[Value, float]
    front: Mapping[Value, float]
    importance: Importance | None


def cost_residuals(records: Sequence[Record], objective: Objective) -> np.ndarray:
    """Return each network's AP less the AP expected at its cost, float64 (n,).

    AP is expected by least squares on the logarithm of the cost, by a parabola where there are many different
    costs and by a line where there are few: dear networks are not credited with what their cost alone buys.
    """
    ap = np.array([record.require_ap() for record in records])
    cost = np.log([record.value(objective) for record in records])
    different = len(np.unique(cost))
    degree = 2 if different >= _QUADRATIC else 1 if different >= 3 else 0
    spread = float(np.ptp(cost)) or 1.0
    terms = np.vander((cost - cost.mean()) / spread, degree + 1)
    weights = np.linalg.lstsq(terms, ap, rcond=None)[0]
    residuals: np.ndarray = ap - terms @ weights
    return residuals


def choice_marginals(
    result: SearchResult, x: str | Objective | None = None, constraints: Sequence[Constraint] = ()
) -> tuple[Marginal, ...]:
    """Return the choices in which evaluated networks differ, the most important first.

    Without importances they are in the order of the family.

    Parameters
    ----------
    result
        What the search found.
    x
        The cost that AP is held against, by default the first that the search traded off.
    constraints
        Bounds that the networks of the front meet.
    """
    objective, records = result.axis(x), result.evaluated
    if not records:
        return ()
    residuals = cost_residuals(records, objective)
    on_front = {record.arch for record in result.front(objective, constraints)}
    fronts = np.array([record.arch in on_front for record in records])
    told = importances(records)
    found = []
    for name, different in different_values(records).items():
        of = {value: np.array([record.arch[name] == value for record in records]) for value in different}
        found.append(
            Marginal(
                name,
                {value: tuple(residuals[mask].tolist()) for value, mask in of.items()},
                {value: float(mask.mean()) for value, mask in of.items()},
                {value: float(mask[fronts].mean()) if fronts.any() else 0.0 for value, mask in of.items()},
                None if told is None else told.choices.get(name),
            )
        )
    return tuple(sorted(found, key=lambda each: -each.importance.share if each.importance else 0.0))


def plot_choices(
    result: SearchResult,
    path: str | Path,
    x: str | Objective | None = None,
    *,
    constraints: Sequence[Constraint] = (),
    title: str | None = None,
) -> tuple[Path, ...]:
    """Draw what each value of each choice is worth, and how much of the front has it.

    A panel per choice in which evaluated networks differ, the most important first: above, every network's
    AP less the AP expected at its cost, with the median of each value; below, how many of the evaluated
    networks have the value, and how many of those on the front. What the search did not try cannot be seen:
    a guided one tries what it believes in.

    Parameters
    ----------
    result
        What the search found.
    path
        A ``.png`` or ``.svg`` file; without a suffix, both are written.
    x
        The cost that AP is held against, by default the first that the search traded off.
    constraints
        Bounds that the networks of the front meet.
    title
        Heading of the picture.

    Returns
    -------
    tuple of Path
        The files written.

    Raises
    ------
    InputError
        If the suffix is another one, or the cost was not priced.
    RunError
        If no network was evaluated, or no two that differ, or the file cannot be written.
    """
    files = picture_files(path)
    require_evaluated(result)
    shown = choice_marginals(result, x, constraints)
    if not shown:
        raise RunError(
            f"the networks that the search '{result.study}' has evaluated do not differ, so there are no"
            " choices to draw"
        )
    cost = result.axis(x)
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    width = max(7.2, 0.4 + 3.0 * columns)
    height = _TOP_IN + _BOTTOM_IN + _PANEL_IN * rows
    every = np.concatenate([values for each in shown for values in each.residuals.values()])
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        grid = figure.add_gridspec(
            rows, columns, left=_LEFT_IN / width, right=1 - 0.2 / width, top=1 - _TOP_IN / height,
            bottom=_BOTTOM_IN / height, hspace=0.42, wspace=0.16,
        )  # fmt: skip
        for place, each in enumerate(shown):
            panel = figure.add_subplot(grid[place // columns, place % columns])
            _choice_panel(panel, each, float(every.min()), float(every.max()))
            panel.tick_params(labelleft=place % columns == 0)
        figure.text(
            0.012, 1 - 0.16 / height,
            title or f"{result.space}: what each choice is worth, {len(result.evaluated)} networks evaluated",
            va="top", fontsize=12.5, fontweight="bold",
        )  # fmt: skip
        figure.text(
            0.012, 1 - 0.45 / height,
            f"Spots: AP less the AP expected of a network with its {_words(cost)}. {_told(shown, result)}",
            va="top", fontsize=8.5, color=MUTED,
        )  # fmt: skip
        figure.legend(handles=_legend(), loc="lower center", ncols=5, frameon=False, fontsize=8.5)
        return save_figure(figure, files)


def _choice_panel(panel: Axes, each: Marginal, low: float, high: float) -> None:
    """Draw the spots of one choice between ``low`` and ``high``, and the bars of its shares beneath."""
    rng = np.random.default_rng(0)  # scatters spots aside, the same way each time
    tall = max(high - low, 1e-6)
    floor, full = low - 0.5 * tall, 0.36 * tall
    panel.axhline(0, color=FAINT, linewidth=0.9, zorder=1)
    panel.axhline(floor + full, color=GRID, linewidth=0.8, zorder=0)
    places = np.arange(len(each.residuals))
    spots = [(place, value) for place, values in enumerate(each.residuals.values()) for value in values]
    across, up = np.array(spots).T
    panel.scatter(
        across + rng.uniform(-0.22, 0.22, len(across)),
        up,
        s=11,
        color=_SPOT,
        alpha=0.5,
        linewidths=0,
        zorder=2,
    )
    medians = [float(np.median(values)) for values in each.residuals.values()]
    panel.hlines(medians, places - 0.3, places + 0.3, color=_MEDIAN, linewidth=2.0, zorder=3)
    for aside, shares, colour in ((-0.18, each.evaluated, FAINT), (0.18, each.front, FRONT)):
        heights = full * np.array(list(shares.values()))
        panel.bar(places + aside, heights, 0.34, bottom=floor, color=colour, linewidth=0)
    panel.set_ylim(floor, high + 0.08 * tall)
    panel.set_xlim(-0.6, len(places) - 0.4)
    panel.set_xticks(places, [str(value) for value in each.residuals], color=INK)
    steps = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(low, high)
    panel.set_yticks([step for step in steps if low - 0.05 * tall <= step <= high])
    panel.set_title(each.name, fontsize=9.5, pad=4)
    told = each.importance
    if told is not None:
        panel.annotate(
            f"{told.share:.0%}  [{told.low:.0%}, {told.high:.0%}]", (1, 1), xycoords="axes fraction",
            xytext=(0, 4), textcoords="offset points", ha="right", fontsize=8, color=MUTED,
            annotation_clip=False,
        )  # fmt: skip


def _told(shown: Sequence[Marginal], result: SearchResult) -> str:
    if any(each.importance is not None for each in shown):
        return "Per cent: the choice's share in what all of them explain of AP [95%]."
    few = f"{len(result.evaluated)} networks" if len(result.evaluated) < FEWEST else "these networks"
    return f"How much each choice matters cannot be told from {few}."


def _words(cost: Objective) -> str:
    return {"macs": "MACs", "params": "parameters", "size": "size"}.get(
        cost.kind, f"latency on {cost.target}"
    )


def _legend() -> list[Line2D | Patch]:
    return [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markersize=5,
            color=_SPOT,
            label="a network: AP beyond its cost",
        ),
        Line2D([], [], color=_MEDIAN, linewidth=2.0, label="median"),
        Patch(color=FAINT, label="share of the networks evaluated"),
        Patch(color=FRONT, label="share of the front"),
    ]
