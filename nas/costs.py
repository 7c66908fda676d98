"""What ``nas cost`` and ``nas spaces`` tell: costs of archs, and of networks known by their layers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from search_spaces import Arch, Cost, get_network, listed_networks, named_archs

__all__ = ["cost_lines", "cost_report", "layer_rows", "listed_json", "named_rows"]

_COUNTED = {
    "true": "the convolutions' multiply-accumulates",
    "gibi": "the convolutions' multiply-accumulates, in units of 2^30",
    "output": "the convolutions', transposed ones at output resolution",
    "paper": "as LitePose's tables count",
}


def cost_report(
    name: str,
    joints: int,
    size: tuple[int, int] | None = None,
    *,
    latency: Sequence[str] = (),
    tables: Sequence[Path] | None = None,
    strict: bool = False,
    layers: bool = False,
) -> dict[str, Any]:
    """Return what a network costs, JSON-able.

    Parameters
    ----------
    name
        What :func:`search_spaces.get_network` knows.
    joints
        Keypoints that it predicts.
    size
        Input (height, width) in pixels; by default its own.
    latency
        Targets to predict it on.
    tables
        Folders of latency tables.
    strict
        Whether to predict from measurements alone.
    layers
        Whether to list every layer, too.
    """
    network = get_network(name)
    cost = network.cost(joints, size)
    height, width = size or network.size
    report: dict[str, Any] = {
        **_plain(cost),
        "resolution": network["resolution"] if isinstance(network, Arch) else network.size[0],
        "height": height,
        "width": width,
        "joints": joints,
        "arch": network.to_json() if isinstance(network, Arch) else None,
    }
    if not isinstance(network, Arch):
        report["listed"] = listed_json(name)
    if latency:
        from nas.latency import load_predictors, prediction_json, published_json

        own_size = (height, width) == network.size
        report["latency"] = {}
        for target, predictor in load_predictors(latency, tables, strict=strict).items():
            prediction = (
                predictor.predict(network.blocks(joints, size), network.family.name)
                if isinstance(network, Arch)
                else predictor.predict_layout(network.layout(joints, size), network.rules)
            )
            report["latency"][target] = {
                **prediction_json(predictor, prediction),
                "published": published_json(network, predictor) if own_size else None,
            }
    if layers:
        every = network.layers(joints, size)
        report["layers"] = [{"name": x.name, "key": x.key, "macs": x.macs, "params": x.params} for x in every]
        if not isinstance(network, Arch):
            passes = network.layout(joints, size).passes
            report["passes"] = [{"name": x.name, "kind": x.kind, "values": x.values} for x in passes]
    return report


def _plain(cost: Cost) -> dict[str, int]:
    return {"params": cost.params, "macs": cost.macs, "macs_paper": cost.macs_paper}


def listed_json(name: str) -> dict[str, Any]:
    """Return what is known of a listed network, JSON-able: its source, published costs beside our counts."""
    network = listed_networks()[name]
    return {
        "title": network.title,
        "rules": network.rules,
        "settings": dict(network.settings),
        "size": list(network.size),
        "source": network.source,
        "published": [
            {
                **asdict(each),
                "size": list(each.size or network.size),
                "ours_g": round(network.counted_g(each), 4),
            }
            for each in network.published
        ],
    }


def layer_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the rows of a table of layers, and of passes between them."""
    rows = [(x["name"], x["key"], f"{x['macs'] / 1e6:.2f}", f"{x['params']:,}") for x in report["layers"]]
    return rows + [
        (x["name"], f"{x['kind']} of {x['values']:,} values", "-", "-") for x in report.get("passes", ())
    ]


def cost_lines(report: Mapping[str, Any]) -> dict[str, str]:
    """Return a report in words, line by line."""
    from nas.latency_report import prediction_line, published_line

    listed = report.get("listed")
    lines = {
        "input": f"{report['height']} x {report['width']}, {report['joints']} joints",
        "parameters": f"{report['params']:,}",
        "MACs": f"{report['macs'] / 1e9:.4f} G (true: every convolution, once)",
        "MACs, paper's count": f"{report['macs_paper'] / 1e9:.4f} G (as LitePose's tables print it)",
    }
    if listed is not None:
        lines = {"network": f"{listed['title']}, known by its layers alone: to compare with", **lines}
        for i, each in enumerate(listed["published"]):
            height, width = each["size"]
            params = "" if each["params_m"] is None else f", {each['params_m']:g} M parameters"
            lines["published" + (f" ({i + 1})" if i else "")] = (
                f"{each['macs_g']:g} G at {height} x {width}, {each['joints']} joints{params}"
                f" ({_COUNTED[each['counted']]}: {each['ours_g']:.2f} G by our count): {each['source']}"
            )
        lines["layers from"] = listed["source"]
    for name, value in report.get("latency", {}).items():
        lines[f"latency on {name}"] = prediction_line(value)
        if (published := value["published"]) is not None:
            lines[f"published on {published['device']}"] = published_line(published)
    return lines


def named_rows(joints: int, *, listed: bool = False) -> list[tuple[str, str, str, str, str]]:
    """Return the rows of a table of named networks: name, input, parameters, MACs both ways."""
    networks = listed_networks() if listed else named_archs()
    rows = []
    for name, network in networks.items():
        cost = network.cost(joints)
        height, width = network.size
        rows.append(
            (
                name,
                str(height) if height == width else f"{height}x{width}",
                f"{cost.params / 1e6:.2f}",
                f"{cost.macs / 1e9:.3f}",
                f"{cost.macs_paper / 1e9:.2f}",
            )
        )
    return rows
