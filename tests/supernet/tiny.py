"""A supernet, drawn people and a training that take seconds: what tests of training and evaluation share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from search_spaces import SearchSpace, space_from_config
from supernet.base import Supernet
from supernet.distillation import Teacher
from supernet.pose.synthetic import SyntheticPeople
from supernet.registry import build_supernet
from supernet.state import read_tensors
from supernet.training import TrainConfig, Trainer, Validate

SPACE: dict[str, Any] = {
    "kind": "litepose-extended",
    "base": {
        **{"stem": 8, "stages": [8, 16, 16, 24], "deconvs": [16, 16, 8]},
        **{"depths": [1, 1, 1, 1], "kernels": 3, "expansions": 2},
    },
    "resolutions": [64, 96],
    "multipliers": [1, 0.5],
    "depths": [1],
    "kernels": [3],
    "expansions": [2],
    "deconv_kernels": [2, 4],
}
"""512 networks, as a recipe writes it."""


def space(**changes: Any) -> SearchSpace:
    """Return the tiny space for 17 joints."""
    return space_from_config({**SPACE, **changes}, joints=17)


@cache
def people(count: int = 6, seed: int = 1) -> SyntheticPeople:
    """Return drawn people, 96 x 96 pixels; drawn once, since data sets do not change."""
    return SyntheticPeople(count, seed, size=(96, 96), people=(1, 2))


def supernet(seed: int = 0, **changes: Any) -> Supernet:
    """Return a fresh supernet of the tiny space."""
    return build_supernet(space(**changes), torch.Generator().manual_seed(seed))


def config(**changes: Any) -> TrainConfig:
    """Return a training of 12 steps over :func:`people`."""
    chosen: dict[str, Any] = {
        "epochs": 4,
        "batch_size": 2,
        "rule": "uniform",
        "validate_every": 2,
        "workers": 0,
        "device": "cpu",
    }
    return TrainConfig(**{**chosen, **changes})


def trainer(
    folder: Path,
    *,
    seed: int = 0,
    validate: Validate | None = None,
    images: int = 6,
    teacher: Teacher | None = None,
    **changes: Any,
) -> Trainer:
    """Return a trainer of a fresh tiny supernet; ``changes`` are settings of its training."""
    return Trainer(
        supernet(),
        people(images),
        config(**changes),
        seed=seed,
        folder=folder,
        validate=validate,
        teacher=teacher,
    )


def weights_sum(network: torch.nn.Module) -> dict[str, float]:
    """Score a network by a number that every weight moves; a deterministic stand-in for AP."""
    return {"score": float(sum(p.detach().double().sin().sum() for p in network.parameters()))}


def same_checkpoint(first: Path, second: Path) -> bool:
    """Return whether two checkpoints hold the same bits under the same names, and say the same."""
    (a, said), (b, told) = read_tensors(first), read_tensors(second)
    return said == told and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
