"""Latencies in words, as ``nas cost`` and ``nas emit`` print them: predicted, published, budget, measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["emitted_lines", "prediction_line", "published_line"]

_ALIKE = 0.03
"""Change of a machine's speed that is not worth telling."""


def prediction_line(value: Mapping[str, Any]) -> str:
    """Return a prediction (:func:`nas.latency.prediction_json`) with its interval and what it rests on."""
    held = f" with probability {value['coverage']:.0%}" if value.get("coverage") else ""
    held += f", as far as {value['networks']} networks tell" if held and value.get("networks") else ""
    text = f"{value['ms']:.2f} ms ({value['low_ms']:.2f} to {value['high_ms']:.2f}{held})"
    calibrated = "" if value.get("calibrated", True) else ", sum of blocks, not calibrated"
    fitted = f", {value['fitted']:.0%} of it fitted" if value.get("fitted") else ""
    beyond = f"; {value['beyond']}" if value.get("beyond") else ""
    return f"{text}, {value['provenance']}{calibrated}{fitted}{beyond}"


def published_line(value: Mapping[str, Any]) -> str:
    """Return a published latency (:func:`nas.latency.published_json`) with its citation."""
    about = "about " if value["kind"] == "chart" else ""
    chart = ", read off a chart" if value["kind"] == "chart" else ""
    witness = "; the estimate was fitted on it, too" if value["fitted_on_it"] else ""
    return (
        f"{about}{value['ms']:.4g} ms ({value['provenance']}{chart}; runtime: {value['runtime']}{witness}):"
        f" {value['source']}"
    )


def emitted_lines(name: str, value: Mapping[str, Any]) -> dict[str, str]:
    """Return what a card says of a target: the prediction, the budget if there is one, the measurement."""
    lines = {f"latency on {name}": f"predicted {prediction_line(value)}"}
    budget, measured = value["budget"], value["measured_here"]
    if budget is not None:
        held = "within it" if budget["upper_end_within"] else f"OVER it by {_over(value['high_ms'], budget)}"
        lines[f"budget on {name}"] = (
            f"{budget['ms']:g} ms, by {budget['by']}; the predicted upper end is {held}"
        )
    if measured is None:
        lines[f"measured on {name}"] = f"no: {value['not_measured']}"
        return lines
    precision = value["target"]["precision"]
    copy = "" if precision == "fp32" else f", a copy quantised to {precision}"
    against = ["within the predicted interval" if measured["within_interval"] else _beside(value, measured)]
    if budget is not None:
        over = f"OVER the budget by {_over(measured['median_ms'], budget)}"
        against.insert(0, "within the budget" if budget["measured_within"] else over)
    lines[f"measured on {name}"] = (
        f"{measured['median_ms']:.2f} ms here (p10 {measured['p10_ms']:.2f}, p90 {measured['p90_ms']:.2f},"
        f" {measured['runs']} runs{copy}): {', '.join(against)}"
    )
    return lines


def _over(ms: float, budget: Mapping[str, Any]) -> str:
    return f"{ms / budget['ms'] - 1:.1%}"


def _beside(value: Mapping[str, Any], measured: Mapping[str, Any]) -> str:
    way = "above" if measured["median_ms"] > value["high_ms"] else "below"
    told = f"{way} the predicted interval"
    pace = measured.get("pace")
    if pace is None:
        return f"{told}: the machine has changed since it was profiled, or is busy"
    change = f"{abs(pace - 1):.0%} {'slower' if pace > 1 else 'faster'}"
    if abs(pace - 1) < _ALIKE:
        return f"{told}, though the machine is about as fast as when it was profiled"
    at_that = measured["median_ms"] / pace
    inside = "within" if value["low_ms"] <= at_that <= value["high_ms"] else "outside"
    return f"{told}: the machine is {change} than when it was profiled; at that speed it would be {inside}"
