"""A recipe whose whole way from training to an emitted network takes seconds."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from nas.recipe import Recipe, load_recipe
from tests.supernet.tiny import SPACE

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "data": {
        "train": {"synthetic": {"images": 24, "seed": 1, "size": [96, 96], "people": [1, 2]}},
        "val": {"synthetic": {"images": 6, "seed": 2, "size": [96, 96], "people": [1, 2]}},
    },
    "space": SPACE,
    "train": {"epochs": 2, "batch_size": 4, "rule": "uniform", "validate_every": 1},
    "evaluate": {"multiple": 32, "calibration_images": 8},
    "search": {"evaluations": 4, "population": 2},
    "trust": {"probes": 0},
}


def values(**settings: Any) -> dict[str, Any]:
    """Return the recipe's mapping with ``train__epochs=3`` style changes."""
    changed = copy.deepcopy(RECIPE)
    for key, value in settings.items():
        place = changed
        *path, last = key.split("__")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return changed


def write(folder: Path, **settings: Any) -> Path:
    """Write the recipe with changes to ``folder/tiny.yaml``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values(**settings)), encoding="utf-8")
    return path


def recipe(folder: Path, **settings: Any) -> Recipe:
    """Return the recipe with changes, by way of a file."""
    return load_recipe(write(folder, **settings))
