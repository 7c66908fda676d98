"""From one trained supernet to a network for each of several budgets: what is found, and what it costs.

All budgets are searched in one go, so that no network is evaluated for two of them; the network chosen for
each is emitted, and its AP measured on the val images, which nothing was chosen by. The wall clock of every
part is taken. With ``--table`` (of all networks of the space: ``experiments/tabular.py --networks all``) it
is told how far each choice is from the best one that there is within the budget.

What the run was searched for before is left out of account: the script works in a copy of the run without
former studies, evaluations and recalibrated statistics.

Run: python experiments/full_job.py RUN [--budget WORDS ...] [--evaluations 24] [--record]
"""

from __future__ import annotations

import argparse
import csv
import math
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latency_tables import LatencyPredictor
from nas.console import note, print_table
from nas.data import open_datasets
from nas.emitting import emit
from nas.latency import UpperEnd
from nas.plot import plot_front
from nas.run import RunDirectory
from nas.search import Pricing
from nas.search.tabular import Table, read_table
from nas.searching import Studies, Study, run_searches
from search_spaces import RunError
from search_spaces.files import write_json, write_text

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish, machine, record_page  # noqa: E402

BUDGETS = (
    *("macs<=1.35G", "macs<=1.5G", "macs<=1.65G"),
    *("latency@snapdragon-855<=50ms", "latency@raspberry-pi-4<=215ms", "latency@jetson-nano<=48ms"),
)
COLUMNS = (
    *("budget", "network", "MACs (G)", "of the budget", "AP search", "AP val", "95% interval"),
    *("evaluated", "reused", "found by"),
)


def copied(run: RunDirectory, folder: Path) -> RunDirectory:
    """Return a copy of a run as it was before anything was searched or emitted."""
    left_out = {run.evaluations.name, "bn-statistics", "search", "emitted", ".lock"}
    shutil.copytree(run.folder, folder, ignore=lambda _, names: [n for n in names if n in left_out])
    return RunDirectory.open(folder)


def training_seconds(run: RunDirectory) -> float:
    """Return the seconds of the run's training steps, from its log; validations are not in it.

    Raises
    ------
    RunError
        If the log does not tell.
    """
    with (run.folder / "metrics.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    try:
        batch = run.recipe.train.batch_size
        return math.fsum(batch / float(row["images_per_s"]) for row in rows)
    except (KeyError, ValueError, ZeroDivisionError):
        raise RunError(f"'{run.folder / 'metrics.csv'}' does not tell the images per second") from None


def share_of_budget(study: Study) -> float:
    """Return how much of the (tightest) bound the chosen network uses up."""
    chosen = study.answer.record
    return max(chosen.value(c.objective) / c.upper for c in study.result.constraints)


def best_within(study: Study, table: Table, predictors: Mapping[str, LatencyPredictor]) -> dict[str, Any]:
    """Return the highest AP of all networks within a budget, and how many there are."""
    pricers = [UpperEnd(predictors[target]) for target in study.result.targets]
    pricing = Pricing(table.space, study.result.constraints, pricers)
    within = pricing.feasible(pricing.prices(table.genotypes))
    return {"best_ap_search": float(table.aps[within].max()), "networks_within": int(within.sum())}


def described(budget: str, study: Study, card: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what one budget's search came to."""
    summary, answer = study.summary(), study.answer
    found: dict[str, Any] = {
        "budget": budget,
        "evaluations": summary["evaluations"],
        "duplicates": summary["duplicates"],
        "caveats": summary["caveats"],
        "found_in": None if answer.found is None else answer.found.study,
        "no_answer": answer.why or None,
    }
    if answer.chosen is not None and card is not None:
        found |= {
            "id": answer.chosen.arch.id,
            "arch": answer.chosen.arch.to_json(),
            "macs": answer.chosen.macs,
            "latency_ms": dict(answer.chosen.latency_ms),
            "share_of_budget": round(share_of_budget(study), 4),
            "ap_search": answer.chosen.require_ap(),
            "ap_val": card["ap"]["stats"]["AP"],
            "ap_val_interval": card["ap"]["interval"],
        }
    return found


def row_of(each: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a table's row."""
    made = each["evaluations"]
    counts = (str(made["made"]), str(made["reused"]), each["found_in"] or "-")
    if "id" not in each:
        return (each["budget"], "none", *("-",) * 5, *counts)
    interval = each["ap_val_interval"]
    best = f" (best {each['best_ap_search']:.4f})" if "best_ap_search" in each else ""
    return (
        *(each["budget"], each["id"], f"{each['macs'] / 1e9:.4f}", f"{each['share_of_budget']:.1%}"),
        *(f"{each['ap_search']:.4f}{best}", f"{each['ap_val']:.4f}"),
        f"{interval['low']:.4f} to {interval['high']:.4f}",
        *counts,
    )


def cost_words(report: Mapping[str, Any]) -> str:
    """Return what everything cost, in words."""
    seconds, made = report["seconds"], report["evaluations"]
    alone = made["made"] + made["reused"]
    return (
        f"Cost: training the supernet {seconds['training'] / 60:.0f} min (its steps, from the run's log, on"
        f" the machine that trained it); searching under {len(report['answers'])} budgets"
        f" {seconds['search'] / 60:.1f} min of wall clock for {made['made']} evaluations of"
        f" {made['median']:.1f} s (median), {made['reused']} more were taken from another budget's search"
        f" ({alone} without sharing); emitting {report['emitted']} networks {seconds['emit'] / 60:.1f} min,"
        f" AP on val images included. Of the searches' time {1 - made['sum'] / seconds['search']:.0%} was not"
        " evaluation: pricing, proposing, opening data and weights, drawing."
    )


def carry_out(
    run: RunDirectory,
    budgets: Sequence[str],
    evaluations: int,
    sampler: str,
    table: Table | None,
    picture: Path | None,
) -> dict[str, Any]:
    """Search, emit and measure; return the report."""
    data = open_datasets(run.recipe)
    seconds = {"training": training_seconds(run)}
    began = time.perf_counter()
    studies: Studies = run_searches(run, budgets, evaluations=evaluations, sampler=sampler, data=data)
    seconds["search"], began = time.perf_counter() - began, time.perf_counter()
    cards: dict[str, Mapping[str, Any]] = {}
    found = [study.answer.chosen for study in studies.studies]
    for record in found:
        if record is not None and (arch := record.arch).id not in cards:
            cards[arch.id] = emit(run, data, arch, run.folder / "emitted" / arch.id).card
    seconds["emit"] = time.perf_counter() - began
    answers = [
        described(text, study, None if record is None else cards[record.arch.id])
        for text, study, record in zip(budgets, studies.studies, found, strict=True)
    ]
    if table is not None:
        for each, study in zip(answers, studies.studies, strict=True):
            each |= best_within(study, table, studies.predictors)
    if picture is not None:
        chosen = dict(zip(budgets, found, strict=True))
        plot_front(
            studies.together,
            picture,
            chosen={name: record for name, record in chosen.items() if record is not None},
            budgets=studies.together.constraints,
            own_budgets=True,
            title=f"{run.recipe.name}: {len(studies.together.evaluated)} networks for {len(budgets)} budgets",
        )
    return {
        "answers": answers,
        "evaluations": studies.seconds(),
        "networks": len(studies.together.evaluated),
        "emitted": len(cards),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "images": {"search": len(data.search), "val": len(data.val)},
    }


def page(report: Mapping[str, Any], name: str) -> str:
    """Return the record for people."""
    images = report["images"]
    answers = report["answers"]
    told = dict.fromkeys(text for each in answers for text in each["caveats"])
    widths = [
        each["ap_val_interval"]["high"] - each["ap_val_interval"]["low"] for each in answers if "id" in each
    ]
    noise = f" (intervals of the AP on val are {statistics.median(widths):.3f} wide)" if widths else ""
    return record_page(
        f"One supernet, {len(answers)} budgets",
        f"'{report['run']}' ({report['networks_in_space']:,} networks): at most {report['most']} networks"
        f" looked at for each budget, AP on {images['search']} search images; the emitted networks' AP on"
        f" {images['val']} val images{noise}. A latency budget is held against the upper end of the"
        " prediction by the shipped table, a calibrated estimate; nothing was measured on those devices.",
        COLUMNS,
        [row_of(each) for each in answers],
        (
            cost_words(report),
            "*of the budget*: what the chosen network uses up of it. *best*: the highest AP on the search"
            " images of all networks within the budget, where the whole space was measured. *evaluated*,"
            " *reused*: by and for this budget's search. *found by*: the first search that looked at the"
            " network.",
            *(f"Told by the command: {text}." for text in told),
            f"![what was found]({name}.png)",
        ),
        report,
    )


def main() -> None:
    """Carry the job out, tell and record."""
    options = argparse.ArgumentParser(prog="python experiments/full_job.py", description=__doc__)
    options.add_argument("run", type=Path, help="a run directory with a trained supernet")
    options.add_argument("--budget", action="append", help=f"in words (default: {', '.join(BUDGETS)})")
    options.add_argument("--evaluations", type=int, default=24, help="for each budget (default: %(default)s)")
    options.add_argument("--sampler", default="guided", help="of the searches (default: %(default)s)")
    options.add_argument("--table", type=Path, help="a recorded table of the whole space")
    options.add_argument("--name", help="of the record (default: full-job-RECIPE)")
    options.add_argument("--record", action="store_true", help="write NAME.json, NAME.md and NAME.png")
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    given = options.parse_args()
    source = RunDirectory.open(given.run)
    name = given.name or f"full-job-{source.recipe.name}"
    budgets = given.budget or list(BUDGETS)
    table = None if given.table is None else read_table(given.table)
    with tempfile.TemporaryDirectory(prefix="full-job-") as scratch:
        run = copied(source, Path(scratch) / "run")
        picture = given.results / f"{name}.png" if given.record else None
        report = carry_out(run, budgets, given.evaluations, given.sampler, table, picture)
        space = run.recipe.build_space(open_datasets(run.recipe).skeleton)
    words = "".join(f" --budget {shlex.quote(text)}" for text in given.budget or ())
    report |= {
        "run": source.recipe.name,
        "networks_in_space": space.count(),
        "most": given.evaluations,
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python experiments/full_job.py RUN{words} --evaluations {given.evaluations}"
        f" --sampler {given.sampler}" + (" --table TABLE" if given.table else "") + " --record",
    }
    print_table(f"{report['run']}: {len(budgets)} budgets", COLUMNS, [row_of(a) for a in report["answers"]])
    note(cost_words(report))
    if given.record:
        write_json(given.results / f"{name}.json", report)
        write_text(given.results / f"{name}.md", page(report, name))
        print(f"recorded in {name}.json, .md and .png")


if __name__ == "__main__":
    finish(main)
