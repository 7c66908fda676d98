"""Small charts as parts of a page: lines over steps, and bars per block. Their colours are the page's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from nas.markup import Markup, number, tag

__all__ = ["Bar", "Line", "bars", "lines", "thinned"]

_POINTS: Final = 240
"""Points of a line at most: more cannot be told apart on a page."""
_WIDTH, _HEIGHT = 520, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 26, 40
_COLOURS: Final = ("accent", "budget", "published", "chosen")


@dataclass(frozen=True)
class Line:
    """Figures over steps.

    Attributes
    ----------
    name
        What they are.
    xs, ys
        Where and what; both of shape (n,).
    steps
        Whether a value holds until the next one.
    """

    name: str
    xs: npt.ArrayLike
    ys: npt.ArrayLike
    steps: bool = False


def thinned(
    xs: npt.ArrayLike, ys: npt.ArrayLike, most: int = _POINTS
) -> tuple[list[float], list[float], int]:
    """Return a line of at most ``most`` points, means of as many neighbours each, and how many those are."""
    a, b = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    each = max(1, math.ceil(len(a) / most))
    parts = [(a[i : i + each].mean(), b[i : i + each].mean()) for i in range(0, len(a), each)]
    return [float(x) for x, _ in parts], [float(y) for _, y in parts], each


def lines(title: str, every: Sequence[Line], across: str, *, logarithmic: bool = False) -> Markup | None:
    """Return a chart of one or several lines over a common axis; None where no line has a point.

    Parameters
    ----------
    title
        Stands above it.
    every
        The lines, four at most.
    across
        What the horizontal axis is.
    logarithmic
        Whether the vertical axis is; only where all figures are positive.
    """
    drawn = [(line, *thinned(line.xs, line.ys)[:2]) for line in every[: len(_COLOURS)]]
    drawn = [(line, xs, ys) for line, xs, ys in drawn if xs]
    if not drawn:
        return None
    lowest, highest = (f(f(ys) for _, _, ys in drawn) for f in (min, max))
    bend = logarithmic and lowest > 0 and highest / lowest > 1.5
    first, last = (f(f(xs) for _, xs, _ in drawn) for f in (min, max))
    ends = [math.log10(lowest), math.log10(highest)] if bend else [lowest, highest]
    room = (ends[1] - ends[0]) or abs(ends[1]) * 0.1 or 1.0
    low, high = ends[0] - 0.06 * room, ends[1] + 0.1 * room
    if not bend and lowest >= 0:
        low = max(low, 0.0)
    ticks = _ticks(first, last, 6, False) if last > first else [first]
    if last == first:  # a single step stands in the middle
        first, last = first - 1.0, last + 1.0
    span = last - first

    def x(value: float) -> float:
        return _LEFT + (value - first) / span * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        at = math.log10(value) if bend else value
        return _HEIGHT - _BOTTOM - (at - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    bottom = _HEIGHT - _BOTTOM
    parts = [tag("text", title, x=4, y=14, class_="label")]
    for value in _ticks(low, high, 5, bend):
        parts.append(tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y(value), y2=y(value), class_="grid"))
        parts.append(tag("text", _told(value), x=_LEFT - 7, y=y(value) + 4, text_anchor="end"))
    for value in ticks:
        parts.append(tag("text", _told(value), x=x(value), y=bottom + 17, text_anchor="middle"))
    parts.append(tag("path", d=f"M{_LEFT},{_TOP}V{bottom}H{_WIDTH - _RIGHT}", class_="frame"))
    parts.append(tag("text", across, x=(_LEFT + _WIDTH - _RIGHT) / 2, y=_HEIGHT - 6, text_anchor="middle"))
    names = []
    for (line, xs, ys), colour in zip(drawn, _COLOURS, strict=False):
        points = [f"{number(x(a))},{number(y(b))}" for a, b in zip(xs, ys, strict=True)]
        if line.steps:
            path = (
                "M"
                + points[0]
                + "".join(f"H{number(x(a))}V{number(y(b))}" for a, b in zip(xs[1:], ys[1:], strict=True))
            )
        else:
            path = "M" + "L".join(points)
        parts.append(tag("path", d=path, class_=f"line {colour}"))
        if len(xs) <= 12 and not line.steps:
            parts += [
                tag("circle", cx=x(a), cy=y(b), r=3, class_=f"spot {colour}")
                for a, b in zip(xs, ys, strict=True)
            ]
        names.append((line.name, colour))
    if len(names) > 1:
        parts += _names(names)
    words = "; ".join(f"{line.name} from {_told(ys[0])} to {_told(ys[-1])}" for line, _, ys in drawn)
    told = f"{title} over {across}: {words}"
    return tag("svg", parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=told, class_="plot")


def _names(names: Sequence[tuple[str, str]]) -> list[Markup]:
    """Name the lines, at the chart's upper right."""
    parts, at = [], float(_WIDTH - _RIGHT)
    for name, colour in reversed(names):
        at -= 6.6 * len(name)
        parts.append(tag("text", name, x=at, y=14))
        parts.append(tag("line", x1=at - 19, x2=at - 5, y1=10, y2=10, class_=f"line {colour}"))
        at -= 30
    return parts


def _ticks(low: float, high: float, about: int, bend: bool) -> list[float]:
    """Return round values between two ends; these are logarithms where the axis is bent."""
    if bend:
        factors = (1, 2, 5) if high - low > 0.8 else (1, 1.5, 2, 3, 4, 5, 6, 8)
        found = [
            factor * 10.0**power
            for power in range(math.floor(low), math.ceil(high) + 1)
            for factor in factors
            if low <= math.log10(factor) + power <= high
        ]
        return found[:: max(1, math.ceil(len(found) / (about + 2)))]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(each * power for each in (1, 2, 5, 10) if each * power >= raw * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _told(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


@dataclass(frozen=True)
class Bar:
    """One row of bars.

    Attributes
    ----------
    name
        What it is of.
    values
        A figure per column; None where it is not known.
    marked
        Whether the figures of a column are fitted or estimated, which is drawn hollow.
    words
        What a reader sees who points at it.
    """

    name: str
    values: Sequence[float | None]
    marked: Sequence[bool] = ()
    words: str = ""


def bars(title: str, columns: Sequence[str], rows: Sequence[Bar]) -> Markup:
    """Return bars in columns, each column with a scale of its own from 0."""
    left, step, head = 118, 17, 40
    width = 720 if len(columns) > 1 else 520
    room = (width - left) / len(columns)
    most = [max((row.values[i] or 0.0 for row in rows), default=0.0) or 1.0 for i in range(len(columns))]
    parts = [tag("text", column, x=left + i * room, y=24, class_="label") for i, column in enumerate(columns)]
    for place, row in enumerate(rows):
        y = head + place * step
        parts.append(tag("text", row.name, x=left - 10, y=y + 10, text_anchor="end"))
        for i, value in enumerate(row.values):
            at = left + i * room
            if value is None:
                parts.append(tag("text", "not known", x=at, y=y + 10, class_="unknown"))
                continue
            long = value / most[i] * (room - 74)
            hollow = i < len(row.marked) and row.marked[i]
            kind = f"bar {_COLOURS[i % 2]}{' hollow' if hollow else ''}"
            parts.append(
                tag(
                    "g", tag("title", row.words or row.name),
                    tag("rect", x=at, y=y + 1, width=max(long, 0.6), height=11, rx=1.5, class_=kind),
                    tag("text", f"{value:.3g}", x=at + long + 6, y=y + 10),
                )
            )  # fmt: skip
    height = head + len(rows) * step + 6
    return tag(
        "svg", parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=title, class_="plot wide"
    )
