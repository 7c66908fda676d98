"""How well subnets of differently trained supernets rank: the trust study and its ablations, on drawn people.

Every variant is the recipe `recipes/trust-people.yaml` with some settings changed: a supernet is trained
(`nas train`), and its ranking is held against the same stand-alone trainings (`nas trust`), which are made
once and shared. Rows of one table have the same networks, images and stand-alone APs, so they differ by the
supernet alone; each supernet is trained once, with one seed.

Besides what `nas trust` reports, each network's subnet is scored with the statistics that its supernet's
normalisations gathered in training, which belong to all networks and to none: what recalibration is for. And
the largest stand-alone network is taken as a pretrained one that a supernet starts from, with its channels in
their own order and in order of importance, without any training of the supernet.

Stopped? The same command goes on; what is finished is not done again.

Run: python experiments/trust_study.py [--output FOLDER] [--jobs 2] [--only VARIANT ...] [--record]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.console import note, print_table
from nas.data import Datasets, open_datasets
from nas.recipe import load_recipe
from nas.run import RunDirectory
from nas.train import make_evaluator, open_supernet
from nas.trust.plots import plot_trust
from nas.trust.report import TrustReport, report_path
from nas.trust.standalone import StandaloneFolder, Task, single_arch_space
from nas.trust.statistics import CLOSE, Bootstrap, close_pairs, kendall_tau
from search_spaces import Arch, RunError
from search_spaces.files import read_json, write_json, write_text
from supernet.base import Subnet, Supernet
from supernet.evaluator import SubnetEvaluator
from supernet.importance import CRITERIA, order_channels_by_importance
from supernet.registry import build_supernet
from supernet.state import load_weights

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish, machine  # noqa: E402

RECIPE = HERE / "recipes" / "trust-people.yaml"


@dataclass(frozen=True)
class Variant:
    """One way of training a supernet.

    Attributes
    ----------
    label
        What it is called.
    changes
        What it changes in the recipe.
    alike
        Whether the change would leave stand-alone trainings as they are. Where it would not, ``nas trust``
        wants others; here all supernets are held against the same ones.
    """

    label: str
    changes: Mapping[str, str]
    alike: bool = True


NO_TEACHER = {"train.distill.source": "none"}
VARIANTS: Mapping[str, Variant] = {
    "inplace": Variant("sandwich, in-place distillation", {}),
    "uniform": Variant(
        "uniform single path, the same compute", {"train.rule": "uniform", "train.epochs": "59"} | NO_TEACHER
    ),
    "sandwich": Variant("sandwich, no distillation", NO_TEACHER),
    "small-batches": Variant(
        "sandwich, in-place distillation, batches of 6: twice the steps",
        {"train.batch_size": "6"},
        alike=False,
    ),
    "late-long": Variant(
        "sandwich, batches of 6, in-place distillation in the second half; 30 epochs: steps as uniform",
        {"train.batch_size": "6", "train.epochs": "30", "train.distill.start": "0.5"},
        alike=False,
    ),
    "transform": Variant(
        "sandwich, in-place distillation, kernel transforms",
        {"train.kernels": "transform"},
    ),
    "inplace-half": Variant("sandwich, in-place distillation, half as long", {"train.epochs": "6"}),
    "sandwich-half": Variant("sandwich, no distillation, half as long", {"train.epochs": "6"} | NO_TEACHER),
}


class AsTrained(SubnetEvaluator):
    """Scores subnets with the running statistics of training, which all networks of the supernet share."""

    def subnet(self, arch: Arch) -> Subnet:
        """Return the extracted network as it is."""
        network: Subnet = self.supernet.extract(arch).eval()
        return network


@dataclass
class Study:
    """Where runs lie, and how they are made."""

    output: Path
    recipe: Path
    overrides: Sequence[str]

    @property
    def alone(self) -> Path:
        """Folder of the stand-alone trainings."""
        return self.output / "standalone"

    def run(self, name: str) -> Path:
        """Return the run directory of a variant."""
        return self.output / name

    def command(self, *words: str, log: str) -> float:
        """Run ``nas`` with these words on one core, its output into a file; return the seconds it took."""
        began = time.monotonic()
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / f"{log}.log"
        with path.open("a", encoding="utf-8") as stream:
            done = subprocess.run(
                [sys.executable, "-m", "nas", *words],
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                check=False,
            )
        if done.returncode:
            *_, last = ["", *path.read_text(encoding="utf-8").splitlines()]
            raise RunError(f"'nas {words[0]}' ended with {done.returncode}, see '{path}': {last}")
        return time.monotonic() - began

    def train(self, name: str) -> None:
        """Train a variant's supernet, or go on."""
        run, changes = self.run(name), VARIANTS[name].changes
        sets = [f"{key}={value}" for key, value in changes.items()] + [*self.overrides]
        arguments = [word for each in sets for word in ("--set", each)]
        if not (run / "trained.json").is_file():
            note(f"training: {VARIANTS[name].label}")
            took = self.command("train", str(self.recipe), "-o", str(run), "--resume", *arguments, log=name)
            write_json(run / "took.json", {"seconds": round(took, 1)})

    def open(self, name: str) -> tuple[RunDirectory, Datasets, Supernet]:
        """Return a variant's run, its data and its trained supernet."""
        run = RunDirectory.open(self.run(name))
        data = open_datasets(run.recipe)
        return run, data, open_supernet(run, run.recipe.build_space(data.skeleton))


def agreement(truth: Sequence[float], scores: Sequence[float]) -> dict[str, float]:
    """Return Kendall's tau with its 95% interval over the networks (percentile bootstrap)."""
    first, second = np.array(truth), np.array(scores)
    over = Bootstrap.over(len(first), 2000, np.random.default_rng(0))
    found, _ = over(lambda weights: kendall_tau(first, second, weights))
    return {"value": found.value, "low": found.low, "high": found.high}


def scored(path: Path, archs: Sequence[Arch], evaluator: Callable[[], SubnetEvaluator]) -> list[float]:
    """Return the APs of these networks; they are kept in a file."""
    known: dict[str, float] = read_json(path, "scores") if path.is_file() else {}
    if any(arch.id not in known for arch in archs):
        made = evaluator()
        known |= {arch.id: made.evaluate(arch).stats["AP"] for arch in archs if arch.id not in known}
        made.close()
        write_json(path, known)
    return [known[arch.id] for arch in archs]


def close_of(report: TrustReport, scores: Sequence[float]) -> dict[str, float]:
    """Return how many pairs of networks of similar MACs a ranking orders as stand-alone."""
    truth, macs = ([getattr(arch, what) for arch in report.archs] for what in ("standalone_ap", "macs"))
    pairs, right = close_pairs(np.array(truth), np.array(scores), np.array(macs, np.float64))
    return {"pairs": pairs, "right": right}


def within(report: TrustReport, scores: Sequence[float]) -> dict[str, float]:
    """Return Kendall's tau among the networks of each resolution: what is left once that is not ranked."""
    at = np.array([arch.arch.number("resolution") for arch in report.archs])
    truth = np.array([arch.standalone_ap for arch in report.archs])
    return {
        f"{resolution:g}": float(kendall_tau(truth[at == resolution], np.array(scores)[at == resolution])[0])
        for resolution in np.unique(at)
    }


def row(label: str, report: TrustReport, aps: Sequence[float] | None = None, **more: Any) -> dict[str, Any]:
    """Return what the record holds of one supernet; ``aps`` stand in for the report's."""
    found = report.statistics
    scores = [arch.supernet.value for arch in report.archs] if aps is None else list(aps)
    truth = [arch.standalone_ap for arch in report.archs]
    own = found.supernet.kendall
    tau = (
        agreement(truth, scores)
        if aps is not None
        else {"value": own.value, "low": own.low, "high": own.high}
    )
    return {
        "supernet": label,
        "tau": tau,
        "mean_ap": float(np.mean(scores)),
        "ap_smallest": scores[0],
        "ap_largest": scores[-1],
        "close": close_of(report, scores),
        "within": within(report, scores),
        "aps": scores,
        **more,
    }


def report_of(study: Study, name: str) -> TrustReport:
    """Return the trust report of a variant that is finished."""
    report = TrustReport.load(study.run(name))
    if report is None:
        raise RunError(f"variant '{name}' is not finished; start the study again without --tell")
    return report


def finished(study: Study, names: Sequence[str]) -> list[str]:
    """Return the variants that are ready to be told of, one with a trust report first."""
    ready = {
        name: report_path(study.run(name)) if VARIANTS[name].alike else study.run(name) / "trained.json"
        for name in names
    }
    found = [name for name, path in ready.items() if path.is_file()]
    if not any(VARIANTS[name].alike for name in found):
        raise RunError(f"no variant is finished in '{study.output}'; start the study without --tell")
    return sorted(found, key=lambda name: not VARIANTS[name].alike)


def rows_of(study: Study, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for every variant."""
    rows = []
    first = report_of(study, names[0])
    for name in names:
        took, label = study.run(name) / "took.json", VARIANTS[name].label
        seconds = read_json(took, "time")["seconds"] if took.is_file() else None
        if not VARIANTS[name].alike:
            aps = scored(
                study.output / "further" / f"{name}.json",
                [arch.arch for arch in first.archs],
                partial(evaluator_of, study, name),
            )
            rows.append(row(label, first, aps, seconds=seconds))
            continue
        report = report_of(study, name)
        found = report.statistics
        rows.append(
            row(
                label,
                report,
                rho=found.supernet.spearman.value,
                regret=found.supernet.regret,
                gain={"value": found.gain.value, "low": found.gain.low, "high": found.gain.high},
                seconds=seconds,
            )
        )
    return rows


def evaluator_of(study: Study, name: str) -> SubnetEvaluator:
    """Return what scores subnets of a variant's supernet."""
    run, data, supernet = study.open(name)
    return make_evaluator(run, data, supernet, keep_statistics=False)


def further_rows(study: Study, name: str) -> list[dict[str, Any]]:
    """Return the rows of what needs no training of a supernet: no recalibration, and pretrained starts."""
    report = report_of(study, name)
    archs = [each.arch for each in report.archs]
    run, data, supernet = study.open(name)

    def as_trained() -> SubnetEvaluator:
        made = make_evaluator(run, data, supernet, keep_statistics=False)
        made.__class__ = AsTrained
        return made

    kept = study.output / "further"
    rows = [
        row(
            f"{VARIANTS[name].label}; statistics of training instead of recalibrated ones",
            report,
            scored(kept / f"{name}-as-trained.json", archs, as_trained),
        )
    ]
    largest = archs[-1]
    task = Task(largest, run.recipe.trust.seed)
    alone = build_supernet(single_arch_space(largest, supernet.space.joints))
    load_weights(
        StandaloneFolder(study.alone).place(task) / "checkpoints" / "best.safetensors", alone, alone.space
    )
    plain = alone.extract(largest).eval()
    images = list(
        make_evaluator(run, data, alone, keep_statistics=False).calibration.batches(
            largest.number("resolution")
        )
    )
    orders: dict[str, Callable[[], Subnet]] = {"channels as they came": lambda: plain} | {
        f"channels by importance ('{by}')": partial(order_channels_by_importance, plain, by, images)
        for by in CRITERIA
    }
    for number, (what, network) in enumerate(orders.items()):

        def started(network: Callable[[], Subnet] = network) -> SubnetEvaluator:
            made = build_supernet(supernet.space)
            made.load_plain(network())
            return make_evaluator(run, data, made, keep_statistics=False)

        rows.append(
            row(
                f"no training: cut out of the largest stand-alone network, {what}",
                report,
                scored(kept / f"cut-{number}.json", archs, started),
            )
        )
    return rows


HEADER = (
    "supernet",
    "Kendall tau (95%)",
    "over MACs (95%)",
    "tau within resolutions",
    "pairs of similar MACs",
    "regret 1 / 3 / 5",
    "AP smallest",
    "AP mean",
    "AP largest",
    "minutes",
)


def cells(found: Mapping[str, Any]) -> list[str]:
    """Return a row of the table."""
    tau, gain, regret = found["tau"], found.get("gain"), found.get("regret")
    seconds = found.get("seconds")
    return [
        found["supernet"],
        f"{tau['value']:.2f} ({tau['low']:.2f} to {tau['high']:.2f})",
        "" if gain is None else f"{gain['value']:+.2f} ({gain['low']:+.2f} to {gain['high']:+.2f})",
        ", ".join(f"{value:.2f} at {resolution}" for resolution, value in found["within"].items()),
        f"{found['close']['right']:g} of {found['close']['pairs']}",
        "" if regret is None else " / ".join(f"{value:.3f}" for value in regret.values()),
        *(f"{found[key]:.3f}" for key in ("ap_smallest", "mean_ap", "ap_largest")),
        "" if seconds is None else f"{seconds / 60:.0f}",
    ]


_CEILINGS = {
    "seeds": "Two trainings of the same networks alone, with different seeds,",
    "images": "Two scorings of the stand-alone networks, each on a draw of the images of its own,",
}


def tell(study: Study, names: Sequence[str], results: Path | None, *, further: bool) -> None:
    """Print the table, and record it where a folder is given."""
    names = finished(study, names)
    rows, report = rows_of(study, names), report_of(study, names[0])
    found = report.statistics
    if further and "inplace" in names:
        rows += further_rows(study, "inplace")
    macs = found.macs
    baseline: dict[str, Any] = {
        "supernet": "none: networks ranked by their MACs",
        "tau": {"value": macs.kendall.value, "low": macs.kendall.low, "high": macs.kendall.high},
        "regret": macs.regret,
    }
    alone = [arch.standalone_ap for arch in report.archs]
    baseline |= {"ap_smallest": alone[0], "mean_ap": float(np.mean(alone)), "ap_largest": alone[-1]}
    baseline["within"] = within(report, [float(arch.macs) for arch in report.archs])
    baseline["close"] = close_of(report, [float(arch.macs) for arch in report.archs])
    table = [cells(baseline), *(cells(each) for each in rows)]
    print_table("the trust study", HEADER, table)
    if results is None:
        return
    recipe = load_recipe(study.recipe, list(study.overrides))
    value = {
        "machine": machine(),
        "recipe": recipe.to_plain(),
        "baseline": baseline,
        "rows": rows,
        "networks": [each.to_json() for each in report.archs],
        "ceiling": {"basis": found.ceiling.basis, "tau": found.ceiling.kendall.value},
    }
    write_json(results / "trust.json", value)
    images = report.standalone["images"]["train"].split()[0]
    only = "" if list(names) == list(VARIANTS) else " --only " + " ".join(names)
    lines = [
        "# How far a supernet's ranking can be trusted",
        "",
        f"{len(report.archs)} networks spread over the space of `recipes/{study.recipe.name}` by MACs, each"
        f" trained alone ({recipe.trust.epochs} epochs of {images} drawn images, fresh"
        " weights), against the AP that each has as a part of a supernet. Written by"
        f" `python experiments/trust_study.py{only} --record`, supernets and stand-alone networks trained"
        " with one thread each.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
        *("| " + " | ".join(each) + " |" for each in table),
        "",
        "The first row's APs are those of the stand-alone trainings. *Tau within resolutions* leaves out how"
        " networks of different resolutions compare. *Pairs of similar MACs* (ratio at most"
        f" {CLOSE}): how many are ordered as alone, which is what a search within a budget needs."
        " *Regret*: by how much the best of the ranking's first 1, 3, 5 is below the best of all, in"
        " stand-alone AP. Intervals are over the networks; that of a difference is paired. Every supernet was"
        " trained once, with one seed.",
        "",
        f"{_CEILINGS[found.ceiling.basis]} agree by tau {found.ceiling.kendall.value:.2f}: a ranking that"
        " agrees as well is as good as can be asked.",
    ]
    write_text(results / "trust.md", "\n".join(lines) + "\n")
    plot_trust(report, results / "trust.png", VARIANTS[names[0]].label)
    print(f"recorded in {results}")


def main() -> None:
    """Run the study that the command line describes."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--output", type=Path, default=Path("runs/trust-study"), help="folder of the runs")
    options.add_argument("--recipe", type=Path, default=RECIPE)
    options.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    options.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    options.add_argument("--tell", action="store_true", help="train nothing, tell what is there")
    options.add_argument(
        "--trained-only", action="store_true", help="leave out the rows that need no training of a supernet"
    )
    options.add_argument("--record", action="store_true", help="write the results folder")
    options.add_argument("--results", type=Path, default=RESULTS)
    given = options.parse_args()
    torch.set_num_threads(given.jobs)
    study = Study(given.output, given.recipe, given.sets)
    if not given.tell:
        study.command(
            *("trust", str(study.recipe), "--standalone", str(study.alone), "--only-standalone"),
            *("--jobs", str(given.jobs)),
            *(word for each in study.overrides for word in ("--set", each)),
            log="standalone",
        )
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(study.train, given.only))
        for name in (each for each in given.only if VARIANTS[each].alike):
            study.command("trust", str(study.run(name)), "--standalone", str(study.alone), log=name)
    tell(study, given.only, given.results if given.record else None, further=not given.trained_only)


if __name__ == "__main__":
    finish(main)
