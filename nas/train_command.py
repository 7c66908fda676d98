"""What ``nas train`` does for its user, and every command that has to train first: progress, one writer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nas.console import note, progress_bar
from nas.recipe import Recipe
from nas.run import RunDirectory
from nas.train import prepare
from nas.train import train as train_run
from search_spaces.files import read_json
from supernet.distributed import joined

__all__ = ["is_first", "train_into"]


def is_first() -> bool:
    """Return whether this is the one process that writes and tells; torchrun numbers those that it starts."""
    return os.environ.get("RANK", "0") == "0"


def _is_done(folder: Path) -> bool:
    """Return whether a training is done that no checkpoint is left to go on from: it would begin anew."""
    checkpoints = folder / "checkpoints"
    there = (folder / "trained.json").is_file() and (checkpoints / "best.safetensors").is_file()
    return there and not (checkpoints / "last.safetensors").is_file()


def _done(folder: Path, recipe: Recipe) -> tuple[RunDirectory, dict[str, Any]]:
    """Return what is known of a training that is done."""
    run = RunDirectory.find(folder, recipe) or RunDirectory(folder, recipe)
    if is_first():
        note(f"the training of '{folder}' is done, and its last checkpoint was removed: nothing is trained")
    told = read_json(folder / "trained.json", "note of a finished training")
    told = told if isinstance(told, dict) else {}
    return run, {
        "steps": told.get("steps"),
        "best_validation_AP": told.get("best"),
        "checkpoint": str(run.best),
    }


def train_into(folder: Path, recipe: Recipe) -> tuple[RunDirectory, dict[str, Any]]:
    """Train the recipe in a run directory, new or begun; nothing is written if it cannot begin.

    A training that is done is left as it is, also where its last checkpoint was removed since.
    """
    if _is_done(folder):
        return _done(folder, recipe)
    if not is_first():  # it computes its part of every batch and touches no file of the run
        with joined(recipe.train.device) as ranks:
            run = RunDirectory(folder, recipe)
            train_run(run, prepare(recipe, begun=folder), ranks=ranks)
        return run, {}
    RunDirectory.find(folder, recipe)
    prepared = prepare(recipe, begun=folder)
    data = prepared.data
    run = RunDirectory.create(folder, recipe)
    note(
        f"{len(data.train)} training, {len(data.calibrate)} calibration, {len(data.search)} search and"
        f" {len(data.val)} val images,"
        f" {len(data.skeleton)} joints; run directory {run.folder}"
    )
    for line in prepared.started:
        note(line)
    with run.locked(), joined(recipe.train.device) as ranks, progress_bar("training") as bar:
        latest: dict[str, float] = {}

        def show_step(step: int, steps: int, row: Mapping[str, float]) -> None:
            ap = f"  AP {latest['AP_smallest']:.3f}..{latest['AP_largest']:.3f}" if latest else ""
            bar.update(step, steps, f"loss {row['total']:.5f}  {row['images_per_s']:.0f} images/s{ap}")

        report = train_run(
            run, prepared, progress=show_step, validated=latest.update, noticed=note, ranks=ranks
        )
    return run, {
        "steps": report.steps,
        "best_validation_AP": None if report.best != report.best else round(report.best, 5),
        "seconds": round(report.seconds, 1),
        "checkpoint": str(run.best),
    }
