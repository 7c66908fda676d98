"""``nas demo``: the whole promise on drawn people, with the same calls that the other commands make."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from latency_tables import LatencyPredictor, ProfileSettings, local_target
from nas.config import apply_overrides
from nas.console import note, print_table, progress_bar
from nas.data import Datasets, open_datasets
from nas.drawing import draw_result
from nas.emitting import Emitted, emit_from_run
from nas.latency import UpperEnd, profile_space
from nas.recipe import Recipe, recipe_from_mapping
from nas.run import RunDirectory
from nas.searching import run_searches
from nas.train import make_evaluator, prepare, train
from search_spaces import SearchSpace, arch_from_json
from search_spaces.files import write_bytes, write_json
from supernet.checkpoint import load_network
from supernet.pose.draw import contact_sheet, draw_people
from supernet.pose.finding import find_people
from supernet.registry import build_supernet

__all__ = ["demo_recipe", "run_demo"]

_MACS_SHARE = 0.85
"""The MACs budget: this share of the way from the smallest network's to the largest network's."""
_LATENCY_QUANTILE = 0.75
"""The latency budget: what this share of random networks meets on this very machine."""
_GRID = 12


def demo_recipe(overrides: list[str] | None = None) -> Recipe:
    """Return the demo's recipe, with ``key=value`` overrides applied."""
    text = resources.files("nas").joinpath("recipes/demo.yaml").read_text(encoding="utf-8")
    return recipe_from_mapping(
        apply_overrides(yaml.safe_load(text), overrides or []), "demo recipe", Path.cwd()
    )


class _Clock:
    """Seconds per part of the demo."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str, told: str) -> Iterator[None]:
        note(f"[{len(self.seconds) + 1}] {told}")
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)


def _budgets(space: SearchSpace, predictor: LatencyPredictor) -> tuple[str, str]:
    """Return a MACs and a latency budget that leave out the largest networks of the space on this machine."""
    small, large = space.cost(space.smallest()).macs, space.cost(space.largest()).macs
    macs = small + _MACS_SHARE * (large - small)
    drawn = space.sample_genotypes(np.random.default_rng(0), 1000)
    ms = float(np.quantile(UpperEnd(predictor).latency_ms(space, drawn), _LATENCY_QUANTILE))
    return f"{macs / 1e6:.0f}M", f"{ms:.2f}ms@{predictor.name}"


def _untrained_ap(run: RunDirectory, data: Datasets, space: SearchSpace, emitted: Emitted) -> float:
    """Return the val AP of the emitted arch with random weights: what 'nothing learned' scores."""
    fresh = build_supernet(
        space, torch.Generator().manual_seed(run.recipe.seed + 1), run.recipe.train.kernels
    )
    arch = arch_from_json(emitted.card["arch"])
    return max(0.0, make_evaluator(run, data, fresh, on="val").evaluate(arch).stats["AP"])


def draw_predictions(run: RunDirectory, data: Datasets, emitted: Emitted, path: Path) -> None:
    """Draw what the emitted network finds in the first val images into one picture."""
    network, _ = load_network(emitted.folder / "model.safetensors")
    resolution = network.arch.number("resolution")
    ids = data.val.ids[:_GRID]
    found = find_people(network, data.val, run.recipe.evaluation(resolution), ids=ids).detections
    tiles = []
    for i, image_id in enumerate(ids):
        image = np.repeat(np.repeat(data.val.load_image(i), 2, axis=0), 2, axis=1)
        people = [
            np.array(d["keypoints"], dtype=np.float32).reshape(-1, 3)
            for d in found
            if d["image_id"] == image_id and d["score"] > 0.35
        ]
        drawn = np.stack(people) if people else np.zeros((0, len(data.skeleton), 3), np.float32)
        drawn[..., :2] = drawn[..., :2] * 2 + 0.5
        tiles.append(draw_people(image, drawn, data.skeleton, threshold=0.2))
    sheet = contact_sheet(tiles, 4)
    write_bytes(path, cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))[1].tobytes())


def run_demo(folder: Path, overrides: list[str], *, quiet: bool = False) -> dict[str, Any]:
    """Carry out the demo in a run directory; the same call continues one that was stopped.

    Returns
    -------
    dict
        The two emitted networks, budgets, files and seconds per part, as printed and kept in ``demo.json``.
    """
    clock = _Clock()
    run = RunDirectory.create(folder, demo_recipe(overrides))
    with clock.part("data", "drawing people"):
        data = open_datasets(run.recipe)
    space = run.recipe.build_space(data.skeleton)
    note(
        f"    {len(data.train)} training, {len(data.calibrate)} calibration, {len(data.search)} search and"
        f" {len(data.val)} val images;"
        f" {space.count():,} networks in the space"
    )
    with clock.part("train", "training the supernet once"):
        if not run.trained:
            with run.locked(), progress_bar("training") as bar:
                train(
                    run,
                    prepare(run.recipe, data),
                    progress=lambda step, steps, row: bar.update(
                        step, steps, f"loss {row['total']:.5f}  {row['images_per_s']:.0f} images/s"
                    ),
                )
    with clock.part("profile", "profiling this machine"):
        rng = np.random.default_rng(run.recipe.seed)
        archs = [(space.sample(rng), space.joints) for _ in range(10)]
        # A demo measures quickly and says so; a table for real use takes the defaults of `nas profile`.
        settings = ProfileSettings(
            seconds_per_layer=0.06,
            seconds_per_network=0.3,
            rounds=3,
            max_rounds=5,
            min_runs=10,
            on_drift="warn",
        )
        table = profile_space(
            local_target("onnxruntime"),
            space.block_frequencies(),
            archs,
            run.folder / "tables",
            settings=settings,
        )
    predictor = LatencyPredictor(table)
    max_macs, max_latency = _budgets(space, predictor)
    duration, _, target = max_latency.partition("@")
    budgets = {"macs": f"macs<={max_macs}", "latency": f"latency@{target}<={duration}"}
    with clock.part("search", f"searching under {max_macs} MACs, then under {max_latency}"):
        searched = run_searches(run, list(budgets.values()), data=data)
    emitted = {}
    with clock.part("emit", "emitting the two networks"):
        for name, budget in budgets.items():
            emitted[name] = emit_from_run(run, budget=budget, folder=run.folder / "emitted" / name, data=data)
        chosen = {
            f"best under {short}": study.answer.record
            for short, study in zip((max_macs, duration), searched.studies, strict=True)
        }
        with run.locked():
            draw_result(run, searched.together, run.folder, chosen, choices=False, own_budgets=True)
            draw_predictions(run, data, emitted["macs"], run.folder / "predictions.png")
        untrained = _untrained_ap(run, data, space, emitted["macs"])
    report = _report(
        run, clock, emitted, untrained, {"macs": max_macs, "latency": max_latency}, predictor.name
    )
    write_json(run.folder / "demo.json", report)
    if not quiet:
        _show(report, predictor.name)
    return report


def _report(
    run: RunDirectory,
    clock: _Clock,
    emitted: dict[str, Emitted],
    untrained: float,
    budgets: dict[str, str],
    target: str,
) -> dict[str, Any]:
    networks = {}
    for name, each in emitted.items():
        card = each.card
        latency = card["latency"].get(target)
        measured = None if latency is None else latency["measured_here"]
        networks[name] = {
            "budget": budgets[name],
            "folder": str(each.folder),
            "id": card["id"],
            "resolution": card["arch"]["resolution"],
            "ap_val": round(card["ap"]["stats"]["AP"], 4),
            "ap50_val": round(card["ap"]["stats"]["AP50"], 4),
            "ap_search": round(card["chosen"]["search_ap"], 4),
            **card["cost"],
            "latency_ms": None if latency is None else latency["ms"],
            "latency_high_ms": None if latency is None else latency["high_ms"],
            "measured_ms": None if measured is None else measured["median_ms"],
        }
    return {
        "run": str(run.folder),
        "networks": networks,
        "untrained_ap_val": round(untrained, 4),
        "target": target,
        "files": [
            *(f"pareto.{kind}" for kind in ("png", "svg", "html")),
            "predictions.png",
            *(f"emitted/{name}" for name in emitted),
        ],
        "seconds": {**clock.seconds, "all": round(sum(clock.seconds.values()), 1)},
    }


def _show(report: dict[str, Any], target: str) -> None:
    def ms(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = [
        (
            f"best under {n['budget'].split('@')[0]}",
            n["resolution"],
            f"{n['ap_val']:.3f}",
            f"{n['ap50_val']:.3f}",
            f"{n['macs'] / 1e6:.1f}",
            f"{n['params'] / 1e3:.0f}",
            f"{ms(n['latency_ms'])} (to {ms(n['latency_high_ms'])})",
            ms(n["measured_ms"]),
        )
        for n in report["networks"].values()
    ]
    columns = ("network", "px", "AP val", "AP50", "MACs (M)", "params (k)", "ms predicted", "ms measured")
    print_table(f"found in {report['seconds']['all']:.0f} s; latency on {target}", columns, rows)
    print(f"the same network untrained: AP {report['untrained_ap_val']:.3f}")
    print(
        f"look at {report['run']}/pareto.png (or .html) and predictions.png; the networks are in"
        f" {report['run']}/emitted"
    )
