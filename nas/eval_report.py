"""What ``nas eval`` tells people: the figures of ``nas.evaluation.evaluate_model`` as lines and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.console import print_table, show

__all__ = ["difference_line", "interval_words", "print_evaluation"]

_PEOPLE = {"missed": "missed people", "duplicates": "duplicates", "background": "background"}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def interval_words(interval: Mapping[str, Any], signed: bool = False) -> str:
    """Return in words where a figure lies."""
    low, high = (_signed(interval[end]) if signed else f"{interval[end]:.4f}" for end in ("low", "high"))
    return f"{100 * interval['confidence']:g}% interval {low} to {high}"


def difference_line(difference: Mapping[str, Any], model: str, other: str) -> str:
    """Return in words what a paired comparison shows."""
    value = difference["value"]
    better, worse = (model, other) if value > 0 else (other, model)
    verdict = f"{better} is better than {worse}" if difference["shown"] else "no difference shown"
    chance = difference["probability"]
    return (
        f"{_signed(value)} AP ({interval_words(difference, signed=True)};"
        f" ahead in {_percent(chance)} of {difference['resamples']:,} resamples): {verdict}"
    )


def print_evaluation(report: Mapping[str, Any]) -> None:
    """Print what :func:`nas.evaluation.evaluate_model` returned."""
    lines = {name: f"{value:.4f}" for name, value in report["stats"].items()}
    if "interval" in report:
        interval = report["interval"]
        lines["AP"] += f"  ({interval_words(interval)}, {interval['resamples']:,} resamples of the images)"
    lines["images"] = f"{report['images']:,}, {report['people_found']:,} people found"
    lines["joints scored"] = f"{len(report['joints_scored'])}, by the {report['protocol']} protocol"
    lines |= _measured(report)
    if "detections" in report:
        lines["detections"] = report["detections"]
    if "compare" in report:
        other = report["compare"]
        lines[f"AP of {other['model']}"] = f"{other['stats']['AP']:.4f}"
        lines |= {f"{what} of {other['model']}": value for what, value in _measured(other).items()}
        lines["difference"] = difference_line(other["difference"], report["model"], other["model"])
    show(lines)
    _print_joints(report)
    _print_errors(report)


def _measured(report: Mapping[str, Any]) -> dict[str, str]:
    """Return how a network ran; nothing for detections that were only read."""
    if "resolution" not in report:
        return {}
    if "boxes" in report:
        how = [
            f"people {report['resolution']} px high in boxes: {report['boxes']}",
            f"decoding {report['decoding']}",
            *(what for what in ("flip",) if report[what]),
        ]
    else:
        how = [
            f"short side {report['resolution']} px",
            *(what for what in ("flip", "project") if report[what]),
        ]
    if "fitted_into" in report:
        how.append(f"pictures fitted into {'x'.join(map(str, report['fitted_into']))}, the file's size")
    if report.get("scales", [1.0]) != [1.0]:
        how.append("scales " + "/".join(f"{scale:g}" for scale in report["scales"]))
    return {
        "run": ", ".join(how),
        "time": f"{report['network_ms_per_image']} ms network + {report['decode_ms_per_image']} ms decoding"
        f" per image: {report['images_per_second']} images/s",
    }


def _print_joints(report: Mapping[str, Any]) -> None:
    pck, errors = report["pck"], report["errors"]
    rows = []
    for at, joint in enumerate(pck["joints"]):
        found = sum(counts[at] for counts in errors["counts"].values())
        shares = [_percent(counts[at] / found if found else None) for counts in errors["counts"].values()]
        accuracy = (_percent(pck["of_found"][at]), _percent(pck["of_all"][at]))
        rows.append((joint, f"{found + errors['unfound'][at]:,}", *accuracy, *shares))
    means = (_percent(pck["mean_of_found"]), _percent(pck["mean_of_all"]))
    total = sum(map(sum, errors["counts"].values())) + sum(errors["unfound"])
    rows.append(("all", f"{total:,}", *means, *map(_percent, errors["share"].values())))
    columns = ("joint", "labelled", f"PCK@{pck['fraction']:g}", "of all", *errors["counts"])
    title = (
        f"Joints of {errors['people'] - errors['missed']:,} people found; PCK within {pck['fraction']:g} of"
        f" the {pck['reference']}, 'of all' also of people missed"
    )
    print_table(title, columns, rows)


def _print_errors(report: Mapping[str, Any]) -> None:
    errors = report["errors"]
    rows = []
    for kind, ap in errors["AP_repaired"].items():
        if kind in errors["counts"]:
            count = f"{sum(errors['counts'][kind]):,} joints"
        elif kind in _PEOPLE:
            whole = errors["people"] if kind == "missed" else errors["detections"]
            count = f"{errors[kind]:,} of {whole:,}"
        else:
            count = ""
        rows.append((_PEOPLE.get(kind, kind), count, f"{ap:.4f}", _signed(ap - errors["AP"])))
    print_table("What each kind of error costs", ("error", "count", "AP without", "gain"), rows)
