"""How far this machine's latency tables can be believed: networks that were predicted, then measured.

For every target (runtime x threads) the blocks of the native space (245,760 networks, five resolutions)
are profiled together with whole networks drawn at random. The table is calibrated on the first of them; the
others are held out and compared with their predictions. Then networks are chosen under random latency
budgets, the way a search chooses them (the upper end of the interval within the budget), and measured
afterwards: how many exceed their budget?

Without further measurements the same is told of tables of which only a share of the blocks was measured and
the rest fitted, and of the plain sums of blocks.

Stopped? The same command goes on; what is measured is kept.

Run: python experiments/latency_study.py [--output FOLDER] [--only TARGET ...] [--record]
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from scipy import stats

from latency_tables import (
    LatencyPredictor,
    LatencyTable,
    MeasuredNetwork,
    NetworkJob,
    ProfileSettings,
    calibrate,
    fill_table,
    local_target,
    measure_against,
    profile,
    select_pieces,
)
from nas.console import note, print_table, progress_bar
from nas.latency import network_file
from nas.plot_style import FAINT, MUTED, STYLE, save_figure
from search_spaces import Arch, SearchSpace, litepose_native
from search_spaces.files import read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish, machine  # noqa: E402

JOINTS = 14
TARGETS = {"onnxruntime-1t": ("onnxruntime", 1), "onnxruntime-2t": ("onnxruntime", 2), "ncnn-1t": ("ncnn", 1)}
SHARES = (0.5, 0.3, 0.15)


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes
    ----------
    resolutions
        Of the space.
    calibration, held_out, budgets
        Networks to calibrate on, to compare with predictions, and to choose under random budgets.
    """

    resolutions: tuple[int, ...] = (256, 320, 384, 448, 512)
    calibration: int = 20
    held_out: int = 30
    budgets: int = 20


def drawn(space: SearchSpace, n: int, seed: int) -> list[Arch]:
    """Return networks drawn at random, all different."""
    found: dict[Arch, None] = {}
    rng = np.random.default_rng(seed)
    while len(found) < n:
        found.setdefault(space.sample(rng))
    return list(found)


def measured(
    target: str, space: SearchSpace, archs: Sequence[Arch], folder: Path, settings: ProfileSettings
) -> LatencyTable:
    """Return the table with every block of the space and these networks, measured now or before."""
    runtime, threads = TARGETS[target]
    described = local_target(runtime, threads)
    with tempfile.TemporaryDirectory() as scratch, progress_bar(target) as bar:
        jobs = []
        for arch in archs:
            export = cache(partial(network_file, described, arch, JOINTS, Path(scratch)))
            jobs.append(NetworkJob(arch, JOINTS, export))
        return profile(
            described,
            space.distinct_blocks(),
            out=folder,
            networks=jobs,
            settings=settings,
            progress=lambda done, total, name: bar.update(done, total, name),
            command="python experiments/latency_study.py",
        )


def timed_alone(
    table: LatencyTable, archs: Sequence[Arch], file: Path, seconds: float = 2.0
) -> tuple[list[float], list[float]]:
    """Return milliseconds of networks timed one after the other, and the machine's speed at each.

    Nothing is taken out; the speed is how many times as long as when the table was profiled networks take by
    what the canaries tell. Both are kept in a file, and taken from there if it holds those of these networks.
    """
    ids = [arch.id for arch in archs]
    if file.is_file() and (kept := read_json(file)).get("archs") == ids and "paces" in kept:
        return list(kept["ms"]), list(kept["paces"])
    found, paces = [], []
    for arch in archs:
        with tempfile.TemporaryDirectory() as scratch:
            path = network_file(table.target, arch, JOINTS, Path(scratch))
            timing, pace = measure_against(table, path, arch.size, seconds=seconds)
        found.append(timing.median_ms)
        paces.append(1.0 if pace is None else pace)
    write_json(file, {"archs": ids, "ms": found, "paces": paces})
    return found, paces


def networks_of(table: LatencyTable, archs: Sequence[Arch]) -> tuple[MeasuredNetwork, ...]:
    """Return the measurements of these networks, in their order."""
    known = {network.arch: network for network in table.networks}
    return tuple(known[arch] for arch in archs)


def judged(table: LatencyTable, networks: Sequence[MeasuredNetwork]) -> dict[str, Any]:
    """Return how predictions compare with measured networks that the table was not calibrated on."""
    predictor = LatencyPredictor(table)
    predictions = [predictor.predict(network.blocks) for network in networks]
    times = np.array([network.row.median_ms for network in networks])
    errors = np.array([each.ms for each in predictions]) / times - 1
    inside = [p.low_ms <= ms <= p.high_ms for p, ms in zip(predictions, times, strict=True)]
    return {
        "median_error": float(np.median(np.abs(errors))),
        "within_10": float(np.mean(np.abs(errors) <= 0.1)),
        "worst_error": float(np.abs(errors).max()),
        "bias": float(np.median(errors)),
        "spearman": float(stats.spearmanr([p.ms for p in predictions], times).statistic),
        "coverage": float(np.mean(inside)),
        "interval": float(np.median([p.high_ms / p.ms for p in predictions])),
        "predicted_ms": [p.ms for p in predictions],
        "high_ms": [p.high_ms for p in predictions],
        "measured_ms": times.tolist(),
    }


def chosen_under_budgets(
    table: LatencyTable, space: SearchSpace, n: int, seed: int
) -> list[tuple[float, Arch]]:
    """Return random budgets, and for each the dearest of 2,000 random networks whose upper end is within."""
    rng = np.random.default_rng(seed)
    predictor = LatencyPredictor(table)
    found = []
    for _ in range(n):
        genotypes = space.sample_genotypes(rng, 2000)
        upper = predictor.upper_ms(space, genotypes)
        low, high = np.quantile(upper, (0.02, 0.98))
        budget = float(np.exp(rng.uniform(np.log(low), np.log(high))))
        fitting = np.flatnonzero(upper <= budget)
        best = fitting[int(upper[fitting].argmax())]
        found.append((budget, space.decode(genotypes[best])))
    return found


def study(target: str, sizes: Sizes, folder: Path, settings: ProfileSettings) -> dict[str, Any]:
    """Return everything that is told of one target."""
    space = litepose_native(joints=JOINTS, resolutions=sizes.resolutions)
    archs = drawn(space, sizes.calibration + sizes.held_out, seed=0)
    note(f"{target}: {len(space.distinct_blocks())} blocks, {len(archs)} networks")
    table = measured(target, space, archs, folder, settings)
    first, others = (
        networks_of(table, archs[: sizes.calibration]),
        networks_of(table, archs[sizes.calibration :]),
    )
    bare = replace(table, networks=first, calibration=None)
    whole = calibrate(bare)
    rows = {"all blocks": judged(whole, others), "plain sum of blocks": judged(bare, others)}
    weights = space.block_frequencies()
    for share in SHARES:
        kept = set(select_pieces(weights, share))
        part = replace(bare, rows={piece: row for piece, row in bare.rows.items() if piece in kept})
        rows[f"{share:.0%} of the blocks"] = judged(calibrate(fill_table(part, weights)), others)
    chosen = chosen_under_budgets(whole, space, sizes.budgets, seed=1)
    later = measured(target, space, [*archs, *(arch for _, arch in chosen)], folder, settings)
    took = [network.row.median_ms for network in networks_of(later, [arch for _, arch in chosen])]
    alone, paces = timed_alone(later, [arch for _, arch in chosen], folder / f"{target}-alone.json")
    at_speed = [ms / pace for ms, pace in zip(alone, paces, strict=True)]
    budgets = [budget for budget, _ in chosen]
    predictor = LatencyPredictor(whole)
    expected = [predictor.predict(space.blocks(arch)) for _, arch in chosen]
    return {
        "target": table.target.to_dict(),
        "blocks": len(table.rows),
        "rows": rows,
        "calibration": asdict(whole.calibration) if whole.calibration is not None else None,
        "budgets_ms": budgets,
        "took_ms": took,
        "alone_ms": alone,
        "paces": paces,
        "off": float(np.median([ms / each.ms for ms, each in zip(took, expected, strict=True)]) - 1),
        "inside": sum(p.low_ms <= ms <= p.high_ms for ms, p in zip(took, expected, strict=True)),
        "exceeded": sum(ms > budget for ms, budget in zip(took, budgets, strict=True)),
        "exceeded_alone": sum(ms > budget for ms, budget in zip(alone, budgets, strict=True)),
        "exceeded_at_speed": sum(ms > budget for ms, budget in zip(at_speed, budgets, strict=True)),
        "sessions": [
            {
                key: session[key]
                for key in (
                    *("date", "finished", "runtime_version", "rounds", "max_rounds", "seconds_per_layer"),
                    *("drift", "canary_ms", "processes", "speed"),
                )
                if key in session
            }
            for session in later.sessions
        ],
    }


_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
HEADER = (
    "target",
    "table",
    "median error",
    "within 10%",
    "worst",
    "Spearman",
    "in the interval",
    "upper end",
)


def lines(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the rows of the table that is printed and recorded."""
    return [
        [
            target,
            name,
            f"{row['median_error']:.1%}",
            f"{row['within_10']:.0%}",
            f"{row['worst_error']:.1%}",
            f"{row['spearman']:.4f}",
            f"{row['coverage']:.0%}",
            f"{row['interval']:.2f} x",
        ]
        for target, report in found.items()
        for name, row in report["rows"].items()
    ]


def followed(session: dict[str, Any]) -> str:
    """Return how far the session's timings followed the canaries, if it tells."""
    if "speed" not in session:
        return ""
    pieces, networks = (sum(session["speed"][name]) for name in ("exponents", "network_exponents"))
    return f"; canaries followed by blocks to {pieces:.0%}, by networks to {networks:.0%}"


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw predicted against measured milliseconds on logarithmic axes, a panel per target."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(found), 4.3), layout="constrained")
        panels: Any = figure.subplots(1, len(found), squeeze=False)[0]
        for axis, (target, report) in zip(panels, found.items(), strict=True):
            row = report["rows"]["all blocks"]
            times, ms, high = (np.array(row[key]) for key in ("measured_ms", "predicted_ms", "high_ms"))
            axis.errorbar(
                times, ms, yerr=[ms - ms**2 / high, high - ms], fmt="o", ms=4, lw=1, color="#2463a8"
            )
            ends = np.array(
                [min(times.min(), (ms**2 / high).min()) / 1.15, 1.15 * max(times.max(), high.max())]
            )
            axis.plot(ends, ends, color=MUTED, lw=1, zorder=0)
            for factor, label in ((1.1, "10% off"), (0.9, None)):
                axis.plot(ends, factor * ends, "--", color=FAINT, lw=1, zorder=0, label=label)
            axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends, title=target)
            ticks = [tick for tick in _TICKS if ends[0] <= tick <= ends[1]]
            for each in (axis.xaxis, axis.yaxis):
                each.set_ticks(ticks)
                each.set_major_formatter(ScalarFormatter())
                each.set_minor_formatter(NullFormatter())
            axis.set(xlabel="measured, ms", ylabel="predicted, ms (90% interval)")
            axis.legend(loc="upper left", frameon=False)
        save_figure(figure, [path])


def record(found: dict[str, dict[str, Any]], sizes: Sizes, results: Path, name: str) -> None:
    """Write the record: JSON, page, picture."""
    write_json(results / f"{name}.json", {"machine": machine(), "sizes": asdict(sizes), "targets": found})
    table = lines(found)
    told = [
        "# Predicted and measured latency on this machine",
        "",
        f"The blocks of the native space ({', '.join(map(str, sizes.resolutions))} px, {JOINTS} joints),"
        f" {sizes.calibration} random networks to calibrate on and {sizes.held_out} others that the"
        " predictions are compared with. Written by `python experiments/latency_study.py --only"
        f" {' '.join(found)} --resolutions {' '.join(map(str, sizes.resolutions))} --networks"
        f" {sizes.calibration} {sizes.held_out} {sizes.budgets} --record`; rounds are told below.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
        *("| " + " | ".join(each) + " |" for each in table),
        "",
        "*In the interval*: share of the held-out networks within the interval that promises 90%. *Upper"
        " end*: of the interval, in predictions. A plain sum of blocks has no such interval: what is told is"
        " the spread of the runs. Tables of a share of the blocks have fitted rows for the others; they are"
        " cut from the same measurements.",
        "",
        "| target | blocks | networks chosen under random budgets | exceeded | largest share of a budget |"
        " measured / predicted - 1, median | within the interval | timed alone: exceeded | largest share |"
        " machine's speed then, times as slow | exceeded at the profile's speed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {target} | {report['blocks']} | {len(report['took_ms'])} | {report['exceeded']} |"
            f" {max(np.array(report['took_ms']) / np.array(report['budgets_ms'])):.1%} |"
            f" {report['off']:+.1%} | {report['inside']} | {report['exceeded_alone']} |"
            f" {max(np.array(report['alone_ms']) / np.array(report['budgets_ms'])):.1%} |"
            f" {np.median(report['paces']):.2f} ({min(report['paces']):.2f} to {max(report['paces']):.2f}) |"
            f" {report['exceeded_at_speed']} |"
            for target, report in found.items()
        ),
        "",
        "These networks were measured after the search, in a session of their own, and brought to the"
        " speed of the first session by what the canaries took (`latency_tables/speed.py`). How much faster"
        " or slower than predicted they were, and how many lay within the interval, is told beside. *Timed"
        " alone*: the same networks once more, one after the other for two seconds each, at whatever speed"
        " the machine had by then, nothing taken out: no table can promise what a shared machine does at"
        " another hour. Beside it what canaries timed with them tell of that speed.",
        "",
        *(
            f"- {target}, session of {session['date']}: {session['rounds']} to"
            f" {session['max_rounds']} rounds, canary {session['canary_ms']:.4f} ms, drift"
            f" {session['drift']:.1%}" + followed(session)
            for target, report in found.items()
            for session in report["sessions"]
        ),
        "",
        f"Machine: {machine()}.",
    ]
    write_text(results / f"{name}.md", "\n".join(told) + "\n")
    draw(found, results / f"{name}.png")
    print(f"recorded in {results}")


def main() -> None:
    """Run the study that the command line describes."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--output", type=Path, default=Path("runs/latency-study"), help="folder of the tables"
    )
    options.add_argument("--only", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    options.add_argument(
        "--seconds", type=float, default=0.12, help="per block, in the first rounds together"
    )
    options.add_argument("--resolutions", type=int, nargs="+", default=list(Sizes.resolutions))
    options.add_argument("--networks", type=int, nargs=3, default=[20, 30, 20], metavar="N")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--max-rounds", type=int, default=7)
    options.add_argument("--on-drift", choices=["refuse", "warn"], default="refuse")
    options.add_argument("--record", action="store_true", help="write the results folder")
    options.add_argument("--results", type=Path, default=RESULTS)
    options.add_argument("--name", default="latency-here", help="of the recorded files")
    given = options.parse_args()
    logging.basicConfig(level=logging.WARNING)
    sizes = Sizes(tuple(given.resolutions), *given.networks)
    settings = ProfileSettings(
        seconds_per_layer=given.seconds,
        seconds_per_network=8 * given.seconds,
        rounds=given.rounds,
        max_rounds=given.max_rounds,
        on_drift=given.on_drift,
    )
    found = {target: study(target, sizes, given.output, settings) for target in given.only}
    print_table("predicted and measured", HEADER, lines(found))
    for target, report in found.items():
        print(f"{target}: {report['exceeded']} of {len(report['took_ms'])} networks exceed their budget")
    if given.record:
        record(found, sizes, given.results, given.name)


if __name__ == "__main__":
    finish(main)
