"""A run of the tiny recipe whose networks have known APs: what tests of budgets share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables import Calibration, LatencyTable, Target
from latency_tables.table import Row
from nas.search import Evaluation
from nas.search.noise import RESAMPLES, pack
from search_spaces import Arch, space_from_config
from tests.nas import tiny
from tests.nas.conftest import Outcome
from tests.nas.problems import analytic_ap

SPACE = space_from_config(tiny.RECIPE["space"], joints=17)
MACS = np.sort(SPACE.costs(SPACE.genotypes()).macs)
PHONE = Target("pixel-9", "a phone", "litert", threads=4)


def million(quantile: float) -> str:
    """Return the MACs that this share of the space's networks meets, as the command takes them."""
    return f"{int(np.quantile(MACS, quantile)) / 1e6:.2f}M"


def evaluation(arch: Arch) -> Evaluation:
    """Return a network's known AP with noise, as if it had been evaluated."""
    ap = 2.0 * analytic_ap(arch)
    noise = np.random.default_rng(len(arch.id)).normal(0, 0.01, RESAMPLES)
    own = np.random.default_rng(int(arch.id[-6:], 16)).normal(0, 0.01, RESAMPLES)
    return Evaluation(ap, {"AP50": ap}, 0.5, resamples=pack(np.clip(ap + noise + own, 0, 1)))


def save_table(run: Path, half_width: float = 0.05) -> None:
    """Write a table for a phone: 1 ms per million MACs."""
    rows = {
        layer: Row(*[max(layer.macs / 1e6, 1e-6)] * 3, 9, "measured-here", "a test")
        for layer in SPACE.distinct_layers()
    }
    fit = Calibration(0.0, 1.0, 20, 0.01, 0.02, 0.01, half_width, 0.9)
    LatencyTable(PHONE, rows, calibration=fit).save(run / "tables" / f"{PHONE.name}.csv")


def ok(told: Outcome) -> Any:
    assert told.code == 0, told.err
    return json.loads(told.out)


def refused(told: Outcome, message: str) -> None:
    assert (told.code, told.out) == (2, "")
    assert message in told.err.splitlines()[-1], told.err
