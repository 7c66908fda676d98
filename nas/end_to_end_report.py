"""What ``nas time`` tells: tables for people, JSON and CSV for programs, a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from nas.console import note, print_table, show
from nas.end_to_end import STAGES, FrameTimes, PhotoTimes, TimeReport
from nas.plot_style import GRID, INK, MUTED, STYLE, save_figure
from search_spaces.files import make_folder, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from latency_tables import Timing

__all__ = ["draw_report", "print_report", "report_json", "write_report"]

_COLOURS: Final = {
    "read": "#b9c2cc",
    "prepare": "#8b98a5",
    "network": "#277f8e",
    "merge": "#8ed0b8",
    "decode": "#d97706",
    "place": "#7c3aed",
}
_MEASURED: Final = (
    "stages timed by themselves, the total in one piece, one frame after the other; visited in interleaved"
    " rounds of random order; medians, 10th and 90th percentiles"
)


# -- for programs --------------------------------------------------------------------------------------------


def report_json(report: TimeReport) -> dict[str, Any]:
    """Return everything that was measured, as plain JSON values; milliseconds are rounded to 0.1 us."""
    settings = report.settings
    return {
        "model": report.model,
        "trained": report.trained,
        "arch": report.arch.to_json(),
        "skeleton": report.skeleton,
        "joints": report.joints,
        "input": {"height": report.size[0], "width": report.size[1]},
        "frame": {"height": settings.frame[0], "width": settings.frame[1]},
        "target": {**report.target.to_dict(), "name": report.target.name},
        "provenance": "measured-here",
        "method": _MEASURED,
        "seconds_per_stage": settings.seconds,
        "rounds": settings.rounds,
        "max_people": settings.max_people,
        "maps": "drawn: exactly so many people, found by the decoder; nothing else reaches the threshold",
        "frames": [_frame_json(report, each) for each in report.frames],
        "predictions": {name: asdict(each) for name, each in report.predictions.items()},
        "photos": [
            {**asdict(each), "total_ms": _short(each.total_ms), "decode_ms": _short(each.decode_ms)}
            for each in report.photos
        ],
        "photos_by_people": [_group_json(people, each) for people, each in _by_people(report.photos)],
        "notices": list(report.notices),
        **report.circumstances,
    }


def _frame_json(report: TimeReport, each: FrameTimes) -> dict[str, Any]:
    found: dict[str, Any] = {
        "people": each.people,
        "groups": each.groups,
        "stages": {name: _timing_json(each.stages[name]) for name in STAGES},
        "sum_ms": _short(each.sum_ms),
        "total": _timing_json(each.total),
        "total_over_sum": round(each.total.median_ms / each.sum_ms, 4),
        "fps": round(each.fps, 2),
        "other_share": round(each.other_share, 4),
    }
    if report.predictions:
        found["on"] = {
            name: {key: _short(value) for key, value in each.on_target(network).items()}
            for name, network in report.predictions.items()
        }
    return found


def _timing_json(timing: Timing) -> dict[str, Any]:
    return {key: value if key == "runs" else _short(value) for key, value in asdict(timing).items()}


def _short(ms: float) -> float:
    return round(ms, 4)


def _by_people(photos: Sequence[PhotoTimes]) -> list[tuple[int, list[PhotoTimes]]]:
    counts = sorted({each.people for each in photos})
    return [(count, [each for each in photos if each.people == count]) for count in counts]


def _group_json(people: int, photos: Sequence[PhotoTimes]) -> dict[str, Any]:
    p10, median, p90 = np.percentile([each.total_ms for each in photos], (10, 50, 90)).tolist()
    decode = float(np.median([each.decode_ms for each in photos]))
    return {
        "people": people,
        "pictures": len(photos),
        "total": {"median_ms": _short(median), "p10_ms": _short(p10), "p90_ms": _short(p90)},
        "decode_ms": _short(decode),
        "fps": round(1e3 / median, 2),
    }


def _csv(report: TimeReport) -> str:
    """Return one row per number of people and stage, the total as the last."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("people", "stage", "median_ms", "p10_ms", "p90_ms", "runs", "provenance"))
    for each in report.frames:
        for name, timing in (*((name, each.stages[name]) for name in STAGES), ("total", each.total)):
            figures = map(_short, (timing.median_ms, timing.p10_ms, timing.p90_ms))
            writer.writerow((each.people, name, *figures, timing.runs, "measured-here"))
    return text.getvalue()


def write_report(report: TimeReport, folder: Path) -> list[Path]:
    """Write ``time.json``, ``time.csv``, ``time.png`` and ``time.svg`` into a folder; return the files."""
    make_folder(folder)
    data, rows = folder / "time.json", folder / "time.csv"
    write_json(data, report_json(report))
    write_text(rows, _csv(report))
    return [data, rows, *draw_report(report, (folder / "time.png", folder / "time.svg"))]


# -- for people ----------------------------------------------------------------------------------------------


def print_report(report: TimeReport) -> None:
    """Print what was measured on standard output, notices on standard error."""
    (height, width), (high, wide) = report.settings.frame, report.size
    columns = ("people", *STAGES, "sum", "in one piece (p10 to p90)", "fps", "not network")
    rows = [
        (
            each.people,
            *(_ms(each.stages[name].median_ms) for name in STAGES),
            _ms(each.sum_ms),
            _spread(each.total.median_ms, each.total.p10_ms, each.total.p90_ms),
            f"{each.fps:.1f}",
            f"{each.other_share:.0%}",
        )
        for each in report.frames
    ]
    print_table(f"milliseconds per frame of {width}x{height} pixels", columns, rows)
    for name, network in report.predictions.items():
        _print_prediction(report, name, network)
    if report.photos:
        _print_photos(report)
    weights = "its own weights" if report.trained else "random weights, which change no layer's time"
    show(
        {
            "network": f"{report.model}, input {high}x{wide}, {report.joints} joints; {weights}",
            "target": f"{report.target.name}: {report.target.processor}",
            "maps": "drawn for exactly so many people, all of them found; pictures (--images) may show more",
            "provenance": f"measured-here; {_MEASURED}",
        }
    )
    for line in report.notices:
        note(line)


def _print_prediction(report: TimeReport, name: str, network: Any) -> None:
    found = [(each.people, each.on_target(network)) for each in report.frames]
    rows = [
        (
            people,
            _spread(network.ms, network.low_ms, network.high_ms),
            _ms(each["here_ms"]),
            _spread(each["ms"], each["low_ms"], each["high_ms"]),
            f"{each['fps']:.1f}",
        )
        for people, each in found
    ]
    columns = ("people", f"network on {name}", "the rest, HERE", "together", "fps")
    calibrated = "" if network.calibrated else ", sum of layers, not calibrated"
    print_table(
        f"with the network's part predicted for {name} ({network.provenance}{calibrated})", columns, rows
    )
    note(
        f"only the network's part is of {name}: reading, resizing, merging and decoding were measured on this"
        " machine and will take another time there"
    )


def _print_photos(report: TimeReport) -> None:
    rows = [
        (
            each["people"],
            each["pictures"],
            _ms(each["decode_ms"]),
            _spread(each["total"]["median_ms"], each["total"]["p10_ms"], each["total"]["p90_ms"]),
            f"{each['fps']:.1f}",
        )
        for each in (_group_json(people, photos) for people, photos in _by_people(report.photos))
    ]
    columns = ("people found", "pictures", "decode", "in one piece (p10 to p90)", "fps")
    print_table(
        f"milliseconds per picture, {len(report.photos)} pictures, the network's own maps", columns, rows
    )


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _spread(middle: float, low: float, high: float) -> str:
    return f"{_ms(middle)} ({_ms(low)} to {_ms(high)})"


def draw_report(report: TimeReport, files: Sequence[Path]) -> tuple[Path, ...]:
    """Draw the stages by the number of people with the frames per second, and pictures; write it to files."""
    with rc_context(STYLE):
        panels = 2 if report.photos else 1
        figure = Figure(
            figsize=(7.6 if panels == 1 else 12.8, 4.9), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        )
        first, *others = figure.subplots(1, panels, squeeze=False)[0]
        _stages_panel(first, report)
        for panel in others:
            _photos_panel(panel, report)
        (height, width), (high, wide) = report.settings.frame, report.size
        name = Path(report.model).name
        figure.suptitle(
            f"{name}, input {high}x{wide}, on frames of {width}x{height} pixels",
            **{"x": 0.012, "ha": "left", "fontsize": 12.5, "fontweight": "bold", "color": INK},
        )
        figure.supxlabel(
            f"measured on this machine: {report.target.processor}; {report.target.runtime},"
            f" {report.target.precision}, {report.target.threads} thread(s)",
            **{"fontsize": 8.5, "color": MUTED},
        )
        return save_figure(figure, files)


def _stages_panel(axes: Axes, report: TimeReport) -> None:
    places = np.arange(len(report.frames))
    base = np.zeros(len(places))
    for name in STAGES:
        heights = np.array([each.stages[name].median_ms for each in report.frames])
        axes.bar(places, heights, 0.66, bottom=base, color=_COLOURS[name], label=name, zorder=2)
        base += heights
    totals = [each.total for each in report.frames]
    medians = np.array([each.median_ms for each in totals])
    spread = [
        np.maximum(0.0, medians - [each.p10_ms for each in totals]),
        np.maximum(0.0, [each.p90_ms for each in totals] - medians),
    ]
    style: Any = {"fmt": "o", "ms": 4, "color": INK, "capsize": 3, "lw": 1, "zorder": 4}
    axes.errorbar(places, medians, spread, label="in one piece, p10 to p90", **style)
    top = 1.42 * max(float(base.max()), float(np.max(medians + spread[1])))
    axes.set_ylim(0, top)
    axes.set_xticks(places, [str(each.people) for each in report.frames])
    axes.set_xlabel("people in the frame")
    axes.set_ylabel("milliseconds per frame")
    axes.grid(axis="y", color=GRID, zorder=0)
    rate = axes.twinx()
    rate.plot(places, [each.fps for each in report.frames], "D--", ms=4, lw=1, color="#d1273f", label="fps")
    rate.set_ylim(0, 1.42 * max(each.fps for each in report.frames))
    rate.set_ylabel("frames per second", color="#d1273f")
    rate.tick_params(axis="y", colors="#d1273f")
    rate.spines["right"].set_visible(True)
    handles = [*axes.get_legend_handles_labels()[0], *rate.get_legend_handles_labels()[0]]
    axes.legend(handles=handles, loc="upper center", ncols=4, frameon=False, fontsize=8.5)


def _photos_panel(axes: Axes, report: TimeReport) -> None:
    people = [each.people for each in report.photos]
    whole, decode = [each.total_ms for each in report.photos], [each.decode_ms for each in report.photos]
    for values, colour, label in ((whole, INK, "in one piece"), (decode, _COLOURS["decode"], "decode")):
        axes.plot(people, values, "o", ms=4, alpha=0.5, color=colour, label=label)
    axes.set_ylim(0, 1.25 * max(whole))
    axes.set_xlabel("people found in the picture")
    axes.set_ylabel("milliseconds per picture")
    axes.set_title(f"{len(report.photos)} pictures, the network's own maps")
    axes.grid(axis="y", color=GRID, zorder=0)
    axes.legend(loc="upper left", ncols=2, frameon=False, fontsize=8.5)
