"""How fast a whole search space is priced: table look-up against summing over each network's layers.

Three prices, each obtained in two ways for LitePose's native space (245,760 distinct networks):

- parameters and MACs: ``space.costs(genotypes)`` against ``arch.cost(joints)`` for one arch after another;
- latency from a table: ``LatencyPredictor.predict_genotypes`` against ``predict(arch.layers(joints))``. The
  table is filled with seeded random numbers: what is timed is the look-up, not a device;
- latency on all three devices whose tables come with the package, estimates by their rooflines included.

Every repeat makes a new space, so the look-up pays for building its tables (``cold``), and runs the look-up
again with the tables at hand (``warm``). Both ways run in turn within the same repeat, on one thread; the
ratio is taken per repeat, and medians over the repeats are told. The straightforward way is timed on a random
sample, with the archs decoded beforehand, which favours it. Both ways must agree (costs to the integer,
latency to nine digits), or the benchmark fails.

Run: python experiments/benchmarks/pricing.py [--record]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from latency_tables import Calibration, LatencyPredictor, LatencyTable, Row, Target
from latency_tables.machine import processor_name
from latency_tables.table import packaged_folder
from nas.console import print_table
from search_spaces import SPACES, Arch, Genotypes, SearchSpace
from search_spaces.files import write_json, write_text

RESULTS = Path(__file__).resolve().parents[1] / "results"
JOINTS = 14
T = TypeVar("T")


@dataclass(frozen=True)
class Timed:
    """Seconds of wall clock and of processor time that a call took."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Repeat:
    """One repeat of one price: the straightforward way, and look-up with and without building its tables.

    Attributes
    ----------
    each_rate
        Networks per second one by one.
    cold_s, warm_s
        Seconds for all networks by look-up.
    cold_ratio, warm_ratio
        How many times as many networks per second the look-up prices.
    threads
        Processor time over wall-clock time of the look-ups: about 1 where one thread works.
    """

    each_rate: float
    cold_s: float
    warm_s: float
    cold_ratio: float
    warm_ratio: float
    threads: float


def timed(call: Callable[[], T]) -> tuple[T, Timed]:
    """Return what ``call`` returns, and how long it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Timed(time.perf_counter() - wall, time.process_time() - cpu)


def made_up_table(space: SearchSpace) -> LatencyTable:
    """Return a calibrated table that holds a seeded random time for every layer of the space."""
    rng = np.random.default_rng(0)
    rows = {}
    for layer in space.distinct_layers():
        ms = float(rng.uniform(0.01, 1.0))
        rows[layer] = Row(ms, 0.9 * ms, 1.2 * ms, 0, "calibrated-estimate", "random numbers of a benchmark")
    return LatencyTable(
        Target("made-up", "none", "none"),
        rows,
        calibration=Calibration(0.5, 1.2, 12, 0.02, 0.05, 0.2, 0.04, 0.9),
    )


def compare(
    looked_up: Callable[[], T], one_by_one: Callable[[Arch], Any], archs: Sequence[Arch], networks: int
) -> tuple[Repeat, T, list[Any]]:
    """Time one repeat; return it with what both ways found."""
    found, cold = timed(looked_up)
    each, slow = timed(lambda: [one_by_one(arch) for arch in archs])
    _, warm = timed(looked_up)
    rate = len(archs) / slow.wall
    repeat = Repeat(
        each_rate=rate,
        cold_s=cold.wall,
        warm_s=warm.wall,
        cold_ratio=networks / cold.wall / rate,
        warm_ratio=networks / warm.wall / rate,
        threads=(cold.cpu + warm.cpu) / (cold.wall + warm.wall),
    )
    return repeat, found, each


def one_repeat(
    kind: str,
    genotypes: Genotypes,
    sample: np.ndarray[Any, np.dtype[np.int64]],
    table: LatencyTable,
    shipped: Sequence[Path],
) -> dict[str, Repeat]:
    """Price the genotypes of a new space of that kind in all ways, and check that the ways agree."""
    space = SPACES[kind](JOINTS)
    archs = [space.decode(genotypes[i]) for i in sample]
    costs_repeat, costs, each = compare(
        lambda: space.costs(genotypes), lambda arch: arch.cost(JOINTS), archs, len(genotypes)
    )
    for place, cost in zip(sample, each, strict=True):
        if (cost.params, cost.macs, cost.macs_paper) != (
            costs.params[place],
            costs.macs[place],
            costs.macs_paper[place],
        ):
            raise SystemExit(f"network {place}: look-up and sum over layers disagree on its cost")

    space = SPACES[kind](JOINTS)  # the tables of the costs are no help here
    predictor = LatencyPredictor(table)
    latency_repeat, predictions, singles = compare(
        lambda: predictor.predict_genotypes(space, genotypes),
        lambda arch: predictor.predict(arch.layers(JOINTS)),
        archs,
        len(genotypes),
    )
    expected = np.array([single.ms for single in singles])
    if not np.allclose(predictions.ms[sample], expected, rtol=1e-9, atol=0):
        raise SystemExit("look-up and sum over layers disagree on a latency")

    space = SPACES[kind](JOINTS)
    predictors = [LatencyPredictor(LatencyTable.load(path)) for path in shipped]
    shipped_repeat, upper, singles = compare(
        lambda: np.stack([each.upper_ms(space, genotypes) for each in predictors], axis=1),
        lambda arch: [each.predict(arch.blocks(JOINTS)).high_ms for each in predictors],
        archs,
        len(genotypes),
    )
    if not np.allclose(upper[sample], np.array(singles), rtol=1e-9, atol=0):
        raise SystemExit("look-up and sum over blocks disagree on a latency of a shipped table")
    return {
        "parameters, MACs": costs_repeat,
        "latency": latency_repeat,
        f"latency on {len(shipped)} shipped targets": shipped_repeat,
    }


def _short(value: float) -> float:
    """Return the value with five significant digits."""
    return float(f"{value:.5g}")


def run(kind: str, repeats: int, sample: int, networks: int | None) -> dict[str, Any]:
    """Run the benchmark; return everything that is told and recorded."""
    space = SPACES[kind](JOINTS)
    count = space.count() if networks is None else min(networks, space.count())
    genotypes = space.genotypes(0, count)
    rng = np.random.default_rng(0)
    chosen = rng.choice(count, size=min(sample, count), replace=False)
    table = made_up_table(space)
    shipped = sorted(packaged_folder().glob("*.csv"))
    taken = [one_repeat(kind, genotypes, chosen, table, shipped) for _ in range(repeats)]
    prices = {}
    for name in taken[0]:
        rows = [repeat[name] for repeat in taken]
        figures = {}
        for what in Repeat.__dataclass_fields__:
            values = [float(getattr(row, what)) for row in rows]
            figures[what] = {"median": _short(statistics.median(values)), "all": [*map(_short, values)]}
        prices[name] = figures
    return {
        "benchmark": "pricing",
        "space": kind,
        "joints": JOINTS,
        "networks": count,
        "sampled": len(chosen),
        "repeats": repeats,
        "distinct_layers": len(space.distinct_layers()),
        "prices": prices,
        "machine": {
            "processor": processor_name(),
            "cpus": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "numpy": np.__version__,
            "litepose-nas": metadata.version("litepose-nas"),
        },
        "date": datetime.now(UTC).date().isoformat(),
    }


def rows_of(report: dict[str, Any]) -> list[Sequence[str]]:
    """Return the table's rows: medians, and the range of the ratios."""
    rows: list[Sequence[str]] = []
    for name, figures in report["prices"].items():
        ratio = figures["cold_ratio"]
        rows.append(
            (
                name,
                f"{figures['each_rate']['median']:,.0f}",
                f"{figures['cold_s']['median']:.3f}",
                f"{figures['warm_s']['median']:.3f}",
                f"{ratio['median']:,.0f} ({min(ratio['all']):,.0f} to {max(ratio['all']):,.0f})",
                f"{figures['warm_ratio']['median']:,.0f}",
                f"{figures['threads']['median']:.2f}",
            )
        )
    return rows


COLUMNS = (
    "price",
    "one by one (networks/s)",
    "look-up of all (s)",
    "again (s)",
    "ratio",
    "ratio, again",
    "CPU / wall",
)


def title_of(report: dict[str, Any]) -> str:
    """Return what was priced, in a line."""
    return (
        f"{report['networks']:,} networks of {report['space']} ({report['joints']} joints),"
        f" one by one: a sample of {report['sampled']}; medians of {report['repeats']} repeats"
    )


def markdown(report: dict[str, Any]) -> str:
    """Return the record for people."""
    machine = report["machine"]
    lines = [
        "# Pricing a whole search space",
        "",
        f"{title_of(report)}.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|---|" + "---:|" * (len(COLUMNS) - 1),
        *("| " + " | ".join(row) + " |" for row in rows_of(report)),
        "",
        "*Look-up of all*: `space.costs`, and `LatencyPredictor.predict_genotypes`, on every network,"
        " building their tables included; *again*: with the tables at hand. *One by one*: `arch.cost`, and"
        " `LatencyPredictor.predict`, with archs decoded beforehand. *Ratio*: networks per second, look-up"
        " over one by one, taken within each repeat: median (least to most). *CPU / wall* is about 1 where"
        " one thread works. The first latency table holds random numbers; of the shipped ones the upper"
        " ends of the intervals are priced.",
        "",
        f"Machine: {machine['processor']}, {machine['cpus']} logical processors, {machine['system']};"
        f" Python {machine['python']}, NumPy {machine['numpy']}, litepose-nas {machine['litepose-nas']};"
        f" {report['date']}.",
        "",
        f"Command: `{report['command']}`",
    ]
    return "\n".join(lines) + "\n"


def _command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """Return what measures the same again: every option that is not the default."""
    words = ["python experiments/benchmarks/pricing.py"]
    for name in ("space", "repeats", "sample", "networks"):
        if getattr(options, name) != parser.get_default(name):
            words += [f"--{name}", str(getattr(options, name))]
    return " ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Pricing throughput: look-up against one network at a time.")
    parser.add_argument("--space", choices=sorted(SPACES), default="litepose-native")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sample", type=int, default=300, help="networks priced one by one")
    parser.add_argument("--networks", type=int, help="price only the first N of the space")
    parser.add_argument("--record", action="store_true", help="write pricing.json and pricing.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the record")
    options = parser.parse_args(arguments)
    if min(options.repeats, options.sample, options.networks or 1) < 1:
        parser.error("--repeats, --sample and --networks are at least 1")
    if options.networks is None and SPACES[options.space](JOINTS).count() > 10**7:
        parser.error(f"--space {options.space} is too large to be priced whole; give --networks")
    report = run(options.space, options.repeats, options.sample, options.networks)
    report["command"] = _command(parser, options)
    print_table(title_of(report), COLUMNS, rows_of(report))
    if options.record:
        write_json(options.results / "pricing.json", report)
        write_text(options.results / "pricing.md", markdown(report))
        print(f"recorded in {options.results / 'pricing.json'} and pricing.md")


if __name__ == "__main__":
    main()
