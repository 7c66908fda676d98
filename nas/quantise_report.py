"""What ``nas quantise`` tells people."""

from __future__ import annotations

from typing import Any

from nas.console import print_table, show

__all__ = ["print_quantisation", "unit_rows"]

UNIT_COLUMNS = (
    "layers",
    "MACs (M)",
    "alone (dB)",
    "all but (dB)",
    "AP alone",
    "AP all but",
    "kept in float",
)


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def unit_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each layer or block: what its rounding does."""
    kept = set(report["kept_in_float"])
    return [
        (
            unit["name"],
            f"{unit['macs'] / 1e6:.1f}",
            _db(unit["snr_alone_db"]),
            _db(unit["snr_all_but_db"]),
            _score(unit["score_alone"]),
            _score(unit["score_all_but"]),
            "yes" if kept.issuperset(unit["layers"]) else "",
        )
        for unit in report["search"]["units"]
    ]


def kind_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a row for each kind of layer: what rounding all layers of it, and no others, does."""
    return [
        (
            kind,
            str(told["layers"]),
            _db(told["snr_alone_db"]),
            _db(told["snr_all_but_db"]),
            f"{told['loss_alone']:+.4f}",
        )
        for kind, told in report["kinds"].items()
    ]


KIND_COLUMNS = ("kind", "layers", "alone (dB)", "all but (dB)", "loss alone")


def print_quantisation(report: dict[str, Any]) -> None:
    """Print the tables of what was measured, and what came out."""
    precision = report["settings"]["precision"]
    if "search" in report:
        print_table(
            "signal-to-noise of the outputs, in 8 bits alone and left out", UNIT_COLUMNS, unit_rows(report)
        )
        print_table("all layers of one kind in 8 bits", KIND_COLUMNS, kind_rows(report))
    lines = {"file": report["file"]}
    for name, told in report["val"].items():
        if name == "snr_db":
            lines["signal-to-noise"] = ", ".join(f"{out} {_db(value)} dB" for out, value in told.items())
            continue
        lines[f"AP, {name}"] = f"{told['value']:.4f} (95%: {told['low']:.4f} to {told['high']:.4f})"
    for name, told in report.get("difference", {}).items():
        lines[f"AP, {name} - fp32"] = f"{told['value']:+.4f} (95%: {told['low']:+.4f} to {told['high']:+.4f})"
    if report.get("kept_in_float") is not None:
        executed = list(report["executed"].values())
        lines["in float"] = f"{len(report['kept_in_float'])} of {len(executed)} layers"
        lines["ONNX Runtime runs in 8 bits"] = f"{executed.count('int8')} of {len(executed)} layers"
    here = report["latency_here"]
    for name, told in here.items():
        if isinstance(told, dict):
            lines[f"ms here, {name}"] = (
                f"{told['median_ms']:.1f} ({told['least_ms']:.1f} to {told['most_ms']:.1f}),"
                f" {here['threads']} thread(s)"
            )
    lines["size"] = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in report["size_bytes"].items())
    lines["loss"] = f"{report['loss']:.4f}, tolerance {report['settings']['tolerance']:g} ({precision})"
    show(lines)
