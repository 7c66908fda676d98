"""What each rewrite of an ONNX model gains over the file that torch's exporter writes, pair by pair.

``exported.py`` times twenty ways to run a network, minutes apart; on a shared machine whose speed drifts by a
third that hides gains of a tenth. Here only files for one runtime stand side by side: in each round every
file is run once untimed and twice timed, in a new random order, and the ratio to the plain file is taken
within the round. Of one thread the processor's time is measured, which neighbours on the machine hardly
touch; of several the wall clock. The median of the ratios is told with its 95% interval (bootstrap over
rounds). Before anything is timed the outputs of all files must agree to 3e-5 of the largest value.

Run: python experiments/benchmarks/rewrites.py [--runtimes onnxruntime openvino] [--record]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from _common import command, finish, machine, parser, record, record_page
from exported import fp32_files, made_network
from numpy.typing import NDArray

from latency_tables.runtimes import RUNTIMES
from nas.console import print_table
from search_spaces.errors import InputError
from supernet.fusing import REWRITES

NETWORKS = ("litepose-xs", "litepose-s", "litepose-m", "deconv-reduced")
CASES: Final[Mapping[str, str]] = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PLAIN = "plain export"
COLUMNS = ("network", "file", "median ms", "fastest ms", "times as fast as the plain export")
WARM_ROUNDS, RUNS, RESAMPLES = 3, 2, 5000
AGREE: Final = 3e-5
REST_S: Final = 0.01
"""Between two files: until the worker threads of the one before have fallen asleep."""


def wanted(files: Mapping[str, Path], runtime: str) -> dict[str, Path]:
    """Return the files that a runtime is timed with: plain, folded, and the rewrites that may be for it."""
    names = tuple(REWRITES) if runtime == "onnxruntime" else ("phases",)
    known = {PLAIN, "batch norm folded", *(", ".join(names[: place + 1]) for place in range(len(names)))}
    return {what: path for what, path in files.items() if what in known}


def agreeing(outputs: Mapping[str, list[NDArray[np.float32]]], name: str) -> dict[str, float]:
    """Return how far each file's outputs are from the plain one's, relative to the largest value.

    Raises
    ------
    SystemExit
        If one differs by more than ``AGREE``.
    """
    off = {}
    for what, found in outputs.items():
        pairs = zip(outputs[PLAIN], found, strict=True)
        off[what] = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
        if not off[what] <= AGREE:
            raise SystemExit(f"{name}, {what}: the outputs are off by {off[what]:.2g} of the largest value")
    return off


def timed(
    ways: Mapping[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return milliseconds per run of each way, by round; each round visits them in another order."""
    order = np.random.default_rng(1)
    taken: dict[str, list[float]] = {what: [] for what in ways}
    for turn in range(rounds + WARM_ROUNDS):
        for what in order.permutation(list(ways)):
            time.sleep(REST_S)
            ways[what]()
            start = clock()
            for _ in range(RUNS):
                ways[what]()
            if turn >= WARM_ROUNDS:
                taken[what].append(1e3 * (clock() - start) / RUNS)
    return taken


def told(taken: Mapping[str, list[float]], off: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return what is told of each file: times, and the ratio to the plain file with its interval."""
    rounds = len(taken[PLAIN])
    resampled = np.random.default_rng(0).integers(rounds, size=(RESAMPLES, rounds))
    figures = {}
    for what, ms in taken.items():
        ratios = np.array(taken[PLAIN]) / np.array(ms)
        low, high = np.quantile(np.median(ratios[resampled], axis=1), (0.025, 0.975))
        figures[what] = {
            "median_ms": float(f"{np.median(ms):.4g}"),
            "fastest_ms": float(f"{min(ms):.4g}"),
            "ratio": float(f"{np.median(ratios):.4g}"),
            "ratio_95": [float(f"{low:.4g}"), float(f"{high:.4g}")],
            "off": float(f"{off[what]:.2g}"),
        }
    return figures


def one_case(name: str | Path, runtime: str, threads: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Return the figures of a network's files in a runtime."""
    with ExitStack() as stack:
        network = made_network(name)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="litepose-nas-")))
        files, _ = fp32_files(network, folder)
        prepared = {
            what: stack.enter_context(
                RUNTIMES[runtime].prepare_model(path, network.arch.size, threads, "fp32")
            )
            for what, path in wanted(files, runtime).items()
        }
        off = agreeing({what: list(each.outputs()) for what, each in prepared.items()}, str(name))
        clock = time.process_time if threads == 1 else time.perf_counter
        return told(timed({what: each.run for what, each in prepared.items()}, rounds, clock), off)


def rows_of(case: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[tuple[str, ...]]:
    """Return the rows of a table: all networks of one runtime at one number of threads."""
    rows = []
    for network, files in case.items():
        for what, each in files.items():
            low, high = each["ratio_95"]
            ratio = "1" if what == PLAIN else f"{each['ratio']:.3f} ({low:.3f} to {high:.3f})"
            rows.append((network, what, f"{each['median_ms']:.3g}", f"{each['fastest_ms']:.3g}", ratio))
    return rows


def heading(case: Mapping[str, Any]) -> str:
    """Return what a table is of."""
    threads = case["threads"]
    clock = "one thread, processor time" if threads == 1 else f"{threads} threads, wall clock"
    return f"{CASES[case['runtime']]}, {clock}"


def page(report: Mapping[str, Any]) -> str:
    """Return the record for people."""
    first, *others = report["cases"]
    tables = []
    for case in others:
        lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
        lines += ["| " + " | ".join(row) + " |" for row in rows_of(case["networks"])]
        tables += [f"## {heading(case)}", "\n".join(lines)]
    notes = [
        *tables,
        "*Plain export* is what torch's exporter writes of the network as it is, *batch norm folded* what"
        " `export_onnx` writes, the rewrites (`supernet/fusing.py`) add up. *Times as fast*: the plain file's"
        " time by this one's within each round, the median over rounds with its 95% interval. The outputs of"
        f" all files agree to {AGREE:g} of the largest value, or the benchmark fails.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in report["versions"].items()) + ".",
    ]
    return record_page(
        "What rewriting an ONNX file gains",
        f"fp32, batch 1; {report['rounds']} rounds, each file {RUNS} times a round after an untimed run, in"
        " random order."
        f"\n\n## {heading(first)}",
        COLUMNS,
        rows_of(first["networks"]),
        notes,
        report,
    )


def options_and_given() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and what it read."""
    options = parser("rewrites", (__doc__ or "").splitlines()[0], repeats=30)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names or files of archs")
    options.add_argument("--runtimes", nargs="+", default=["onnxruntime"], choices=list(CASES))
    given = options.parse_args()
    given.networks = [Path(name) if Path(name).is_file() else name for name in given.networks]
    if min(given.repeats, *given.threads) < 1:
        options.error("--repeats and --threads are at least 1")
    return options, given


def main() -> None:
    """Run the benchmark that the command line describes."""
    options, given = options_and_given()
    missing = {name: why for name in given.runtimes if (why := RUNTIMES[name].unavailable()) is not None}
    if missing:
        raise InputError(
            "; ".join(f"{CASES[name]}: {why}" for name, why in missing.items()) + "; leave it out: --runtimes"
        )
    report: dict[str, Any] = {"benchmark": "rewrites", "rounds": given.repeats, "cases": []}
    for runtime in given.runtimes:
        for threads in given.threads:
            torch.set_num_threads(threads)
            found = {
                Path(name).stem: one_case(name, runtime, threads, given.repeats) for name in given.networks
            }
            case = {"runtime": runtime, "threads": threads, "networks": found}
            report["cases"].append(case)
            print_table(heading(case), COLUMNS, rows_of(found))
    report |= {
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in given.runtimes},
        "date": datetime.now(UTC).date().isoformat(),
        "command": command(options, given),
    }
    if given.record:
        record(given, "rewrites", report, page(report))


if __name__ == "__main__":
    finish(main)
