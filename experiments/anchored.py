"""A supernet anchored at a trained network: AP of its subnets on val, before and after the training.

The recipe's supernet starts from the checkpoint in ``init`` and learns from several data sets and from a
teacher. Measured are the largest network, the smallest and some drawn at random, each extracted with BN
statistics of its own, as the supernet starts and as it ends; and the checkpoint itself, with its own BN
statistics. Intervals are bootstraps over the val images; those of differences compare on the same resamples.

Killed at any moment, the same command continues: what is measured is kept in the run's folder, and the
training goes on from its newest checkpoint. The exit code is 1 if the largest network has lost more than 2 AP
(0.02) against the checkpoint.

The pictures and weights are not part of the project; the recipe looks for them in a folder ``shared`` beside
the repository.

Run: python experiments/anchored.py [RECIPE] [--output RUN] [--record]
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from nas.console import note, print_table, progress_bar
from nas.recipe import Recipe, load_recipe
from nas.run import RunDirectory
from nas.train import Prepared, load_plain_network, make_evaluator, open_supernet, prepare, train
from search_spaces import Arch, InputError, SearchSpace
from search_spaces.files import read_json, write_json, write_text
from supernet.base import Supernet
from supernet.export import fold_batchnorm
from supernet.pose.bootstrap import compare_resamples, interval_of, resample_ap
from supernet.pose.evaluate import evaluate, scored_joints
from supernet.pose.matching import Matches, match_detections

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish, machine, record_page  # noqa: E402

COLUMNS = ("network", "GMACs", "params (M)", "AP before", "AP after", "gained")
MAY_LOSE = 0.02
"""AP that the largest network may lose against the checkpoint."""
_STREAM = 31


def chosen_archs(space: SearchSpace, count: int, rng: np.random.Generator) -> dict[str, Arch]:
    """Return the largest and smallest arch and ``count`` others at random (fewer in a smaller space)."""
    archs = {"largest": space.largest(), "smallest": space.smallest()}
    for genotype in space.sample_genotypes(rng, 50 * count):
        arch = space.decode(genotype)
        if len(archs) < count + 2 and arch not in archs.values():
            archs[f"random {len(archs) - 1}"] = arch
    return archs


@dataclass(frozen=True)
class Measured:
    """An AP and what it is on resamples of the images."""

    ap: float
    ap50: float
    resampled: np.ndarray

    @classmethod
    def of(cls, stats: Mapping[str, float], matches: Matches, resamples: int) -> Measured:
        """Measure; equal counts of resamples give equal resamples, so that two networks can be compared."""
        drawn = resample_ap(matches, resamples, np.random.default_rng(0))
        return cls(stats["AP"], stats["AP50"], drawn)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Measured:
        """Return what :meth:`to_json` wrote."""
        drawn = [math.nan if each is None else each for each in value["resampled"]]
        return cls(value["AP"], value["AP50"], np.array(drawn, dtype=np.float64))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON; resamples that show nobody are null."""
        drawn = [None if math.isnan(each) else each for each in self.resampled.tolist()]
        return {"AP": self.ap, "AP50": self.ap50, "resampled": drawn}

    @cached_property
    def ends(self) -> tuple[float, float]:
        """The 95% interval."""
        interval = interval_of(self.ap, self.resampled)
        return interval.low, interval.high

    def minus(self, other: Measured) -> tuple[float, float, float]:
        """Return the difference in AP and its 95% interval."""
        found = compare_resamples(self.ap - other.ap, self.resampled - other.resampled)
        return self.ap - other.ap, found.low, found.high


class Measurements:
    """What is measured in a run, each kept in a file of the run's folder."""

    def __init__(self, run: RunDirectory, resamples: int) -> None:
        self.folder, self.resamples = run.folder / "anchored", resamples

    def get(self, name: str, measure: Callable[[], Measured]) -> Measured:
        """Return what was measured before under this name and with as many resamples, or measure it now."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            kept = Measured.from_json(read_json(path, "measurement"))
            if len(kept.resampled) == self.resamples:
                return kept
        found = measure()
        write_json(path, found.to_json())
        note(f"{name}: AP {found.ap:.4f}")
        return found


def measure_subnets(
    run: RunDirectory,
    prepared: Prepared,
    supernet: Supernet,
    archs: Mapping[str, Arch],
    when: str,
    kept: Measurements,
) -> dict[str, Measured]:
    """Return the subnets' AP on val; ``when`` names the supernet's state."""
    evaluator = make_evaluator(run, prepared.data, supernet, on="val", fixed=True)

    def measure(arch: Arch) -> Measured:
        result = evaluator.evaluate(arch)
        return Measured.of(result.stats, evaluator.matches(result), kept.resamples)

    try:
        return {name: kept.get(f"{when}-{arch.id}", partial(measure, arch)) for name, arch in archs.items()}
    finally:
        evaluator.close()


def measure_checkpoint(recipe: Recipe, prepared: Prepared, resolution: int, resamples: int) -> Measured:
    """Return the AP of the recipe's checkpoint on val, with its own BN statistics."""
    assert recipe.init is not None
    network = fold_batchnorm(load_plain_network(recipe.init, resolution).eval())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    val, config = prepared.data.val, recipe.evaluate.at(resolution)
    result = evaluate(network, val, config, protocol=recipe.evaluate.protocol)
    sides = val.ground_truth(), result.detections, val.skeleton.sigmas, scored_joints(val)
    matches = match_detections(*sides, recipe.evaluate.protocol, config.max_detections)
    return Measured.of(result.stats, matches, resamples)


def summary_of(
    space: SearchSpace,
    archs: Mapping[str, Arch],
    before: Mapping[str, Measured],
    after: Mapping[str, Measured],
    own: Measured,
) -> dict[str, Any]:
    """Return the record's figures."""
    costs = {name: space.cost(arch) for name, arch in archs.items()}

    def plain(measured: Measured) -> dict[str, Any]:
        return {"AP": measured.ap, "AP50": measured.ap50, "interval": list(measured.ends)}

    rows = []
    for name, arch in archs.items():
        gained, low, high = after[name].minus(before[name])
        rows.append({
            "network": name,
            "id": arch.id,
            "macs": costs[name].macs,
            "params": costs[name].params,
            "before": plain(before[name]),
            "after": plain(after[name]),
            "gained": {"AP": gained, "interval": [low, high]},
        })  # fmt: skip
    difference, low, high = after["largest"].minus(own)
    against = {"AP": difference, "interval": [low, high], "may_lose": MAY_LOSE}
    return {"checkpoint": plain(own), "networks": rows, "largest_against_checkpoint": against}


def trained_minutes(run: RunDirectory) -> float:
    """Return how long the steps of all calls together took."""
    with (run.folder / "metrics.csv").open(encoding="utf-8", newline="") as lines:
        rates = [float(row["images_per_s"]) for row in csv.DictReader(lines)]
    return run.recipe.train.batch_size * sum(1 / rate for rate in rates) / 60


def table_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the table: a row per network, the checkpoint first."""

    def told(what: Mapping[str, Any], sign: str = "") -> str:
        low, high = what["interval"]
        return f"{what['AP']:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"

    rows: list[tuple[str, ...]] = [("the checkpoint", "", "", told(record["checkpoint"]), "", "")]
    rows += [
        (
            each["network"]
            if each["network"] in ("largest", "smallest")
            else f"{each['network']} `{each['id']}`",
            f"{each['macs'] / 1e9:.3f}",
            f"{each['params'] / 1e6:.2f}",
            told(each["before"]),
            told(each["after"]),
            told(each["gained"], "+"),
        )
        for each in record["networks"]
    ]
    return rows


def page(record: Mapping[str, Any], rows: Sequence[tuple[str, ...]]) -> str:
    """Return the record for people."""
    against = record["largest_against_checkpoint"]
    low, high = against["interval"]
    return record_page(
        "A supernet anchored at a trained network",
        f"Recipe `{record['recipe']}`: {record['steps']} steps in {record['train_minutes']:.0f} minutes,"
        f" {record['images']['train']} training images, AP on {record['images']['val']} val images"
        f" ({record['joints_scored']} joints scored) with 95% intervals.",
        COLUMNS,
        rows,
        (
            "*The checkpoint* is the network that the supernet starts from, with its own BN statistics;"
            " the others are subnets with statistics recalibrated on training images. Intervals are"
            " bootstraps over val images, those of *gained* on equal resamples before and after.",
            f"The largest network after the training against the checkpoint: {against['AP']:+.3f} AP"
            f" ({low:+.3f} to {high:+.3f}); it may lose {against['may_lose']:g}.",
        ),
        record,
    )


def main() -> int:
    """Measure, train, measure, tell and record."""
    options = argparse.ArgumentParser(prog="python experiments/anchored.py", description=__doc__)
    options.add_argument("recipe", nargs="?", type=Path, default=HERE / "recipes/coco-lspet-anchored.yaml")
    options.add_argument("--output", type=Path, help="run directory; by default runs/NAME")
    options.add_argument("--random", type=int, default=10, help="networks drawn at random")
    options.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--record", action="store_true", help="write anchored.json and anchored.md")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    recipe = load_recipe(given.recipe)
    if recipe.init is None:
        raise InputError(f"recipe '{given.recipe}' has no 'init': there is no checkpoint to be anchored at")
    prepared = prepare(recipe)
    space = prepared.supernet.space
    archs = chosen_archs(space, given.random, np.random.default_rng([recipe.seed, _STREAM]))
    run = RunDirectory.create(given.output or Path("runs") / recipe.name, recipe)
    kept = Measurements(run, given.resamples)
    with run.locked():
        resolution = int(space.largest().number("resolution"))
        own = kept.get("checkpoint", lambda: measure_checkpoint(recipe, prepared, resolution, kept.resamples))
        before = measure_subnets(run, prepared, prepared.supernet.eval(), archs, "before", kept)
        with progress_bar("training") as bar:
            report = train(
                run, prepared, progress=lambda step, steps, row: bar.update(step, steps), noticed=note
            )
        after = measure_subnets(run, prepared, open_supernet(run, space), archs, "after", kept)
    data = prepared.data
    record: dict[str, Any] = {
        "recipe": f"experiments/recipes/{given.recipe.name}",
        "command": f"python experiments/anchored.py experiments/recipes/{given.recipe.name}"
        f" --threads {given.threads} --random {given.random} --resamples {given.resamples} --record",
        **summary_of(space, archs, before, after, own),
        "images": {name: len(getattr(data, name)) for name in ("train", "calibrate", "search", "val")},
        "joints_scored": int(data.val.labelled.sum()),
        "steps": report.steps,
        "train_minutes": trained_minutes(run),
        "machine": machine(),
        "threads": given.threads,
        "date": datetime.now(UTC).date().isoformat(),
    }
    rows = table_rows(record)
    print_table(f"{recipe.name}: AP on {len(data.val)} val images", COLUMNS, rows)
    difference = record["largest_against_checkpoint"]["AP"]
    print(f"largest against the checkpoint: {difference:+.4f} AP")
    if given.record:
        write_json(given.results / "anchored.json", record)
        write_text(given.results / "anchored.md", page(record, rows))
        print("recorded in anchored.json and .md")
    if difference < -MAY_LOSE:
        print(f"the largest network has lost more than {MAY_LOSE:g} AP", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    finish(main)
