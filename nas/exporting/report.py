"""What ``nas export`` tells people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nas.console import note, print_table, show

__all__ = ["failure", "print_exports"]

_COLUMNS = ("file", "MB", "error, val", "error, all", "AP", "AP - torch's", "95% of it", "")


def _row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    if "certificate" not in entry:
        return (entry["file"], "-", "-", "-", "-", "-", "-", "refused")
    outputs, ap = entry["certificate"]["outputs"], entry["certificate"]["ap"]
    errors = ["no number" if e is None else f"{e:.1e}" for e in (outputs["max_rel_val"], outputs["max_rel"])]
    size = f"{entry['size_bytes'] / 1e6:.2f}"
    status = "" if entry["status"] == "certified" else "refused"
    if ap is None:
        return (entry["file"], size, *errors, "-", "-", "-", status)
    difference = ap["difference"]
    return (
        *(entry["file"], size, *errors, f"{ap['file']['value']:.4f}", f"{difference['value']:+.4f}"),
        *(f"{difference['low']:+.4f} to {difference['high']:+.4f}", status),
    )


def print_exports(report: Mapping[str, Any]) -> None:
    """Print the files with their figures, and what has to be known of them.

    Errors are the largest of an output over its largest value: on val pictures, and on all.
    """
    entries = report["exports"]
    measured = [each["certificate"]["ap"] for each in entries if "certificate" in each]
    scored = [each for each in measured if each is not None]
    print_table("exported files", _COLUMNS, [_row(each) for each in entries])
    lines = {"folder": report["folder"]}
    if scored:
        torch = scored[0]["torch"]
        lines["AP of torch"] = f"{torch['value']:.4f} (95%: {torch['low']:.4f} to {torch['high']:.4f})"
        fitted = scored[0]["fitted_into"]
        how = "" if fitted is None else f", fitted into {fitted[0]}x{fitted[1]}"
        lines["on"] = f"{scored[0]['on']}{how}"
    for entry in entries:
        if kept := entry.get("kept_in_float"):
            lines[f"in float in {entry['file']}"] = f"{len(kept)} layers"
        if entry["why"]:
            lines[f"{entry['file']} refused"] = entry["why"]
    if report["tensorrt"]:
        lines["TensorRT (not run here)"] = report["tensorrt"]["command"]
    show(lines)
    if scored and not scored[0]["telling"]:
        note(
            f"the AP of the network is {scored[0]['torch']['value']:.4f}, no more than the tolerance: any"
            " file keeps that; only the errors of the outputs tell something"
        )
    elif any(not each["sure"] and each["within"] for each in scored):
        note(
            "the interval of a difference reaches beyond the tolerance: on so few pictures the loss is within"
            " it as measured, but not shown to be"
        )


def failure(report: Mapping[str, Any]) -> str | None:
    """Return the line that says which files were refused, or None if none was."""
    refused = [each for each in report["exports"] if each["status"] == "refused"]
    if not refused:
        return None
    made = len(report["exports"]) - len(refused)
    others = "" if not made else f", the other {made} are there" if made > 1 else ", the other one is there"
    return (
        f"{len(refused)} of {len(report['exports'])} files refused{others}"
        f" ('{report['record']}' has the figures): {refused[0]['file']}: {refused[0]['why']}"
    )
