"""A recipe of the second family whose whole way from training to an emitted network takes seconds."""

from __future__ import annotations

from typing import Any

SPACE: dict[str, Any] = {
    "kind": "deconv-mbv2",
    "base": {
        **{"stem": 8, "stages": [8, 8, 8, 16, 16, 16, 16], "last": 32},
        **{
            "depths": [1, 1, 1, 1, 1, 1, 1],
            "kernels": [3, 3, 3, 3, 3, 3, 3],
            "expansions": [1, 2, 2, 2, 2, 2, 2],
        },
    },
    "resolutions": [64],
    "multipliers": [1.0],
    "depths": "base",
    "kernels": "base",
    "expansions": "base",
    "last_widths": [0, 32],
    "deconvs": [2, 3],
    "deconv_widths": [8, 16],
    "deconv_kernels": [2, 4],
}
"""160 networks."""

RECIPE: dict[str, Any] = {
    "name": "tiny-top-down",
    "data": {
        "train": {"synthetic": {"images": 24, "seed": 1, "size": [96, 96], "people": [1, 2]}},
        "val": {"synthetic": {"images": 6, "seed": 2, "size": [96, 96], "people": [1, 2]}},
    },
    "space": SPACE,
    "train": {"epochs": 2, "batch_size": 4, "rule": "uniform", "validate_every": 1},
    "evaluate": {"calibration_images": 8},
    "search": {"evaluations": 4, "population": 2},
    "trust": {"probes": 0},
}
