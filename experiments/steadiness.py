"""How well profiles agree with each other on a machine that is shared: with and without canaries.

The same blocks and whole networks are profiled several times, in turn without canaries around the visits and
with them (:mod:`latency_tables.speed`). Told is how far the profiles of each way are apart, as the standard
deviation of a row's logarithm between profiles: as they are; brought to one speed by what the canaries took,
as the profiler does when it adds to a table; and relative to each other, the mean over all rows taken out.

Beside all of it a neighbour computes on and off, with one thread, as on a machine that is shared; its times
are random, from a fixed seed. Let nothing else run: where more computes than the machine has processors, the
scheduler cuts timings, which no canary sees.

Run: python experiments/steadiness.py [--repeats N] [--record]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latency_tables import LatencyTable, NetworkJob, ProfileSettings, get_runtime, local_target, profile
from latency_tables.bench import Bench, LocalBench
from nas.console import note, print_table, progress_bar
from nas.latency import network_file
from search_spaces import litepose_native
from search_spaces.files import write_json, write_text

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "benchmarks"))

from _common import RESULTS, finish, machine  # noqa: E402

JOINTS = 14
SETTINGS = ProfileSettings(
    seconds_per_layer=0.12, seconds_per_network=1.0, rounds=4, max_rounds=4, on_drift="warn"
)
HEADER = ("way", "of", "as profiled", "at one speed", "relative to each other", "seconds a profile")

Array = npt.NDArray[np.float64]


@contextmanager
def neighbour() -> Iterator[None]:
    """Let another process compute inside the block, on and off for up to three seconds at a time."""
    work = (
        "import numpy as np, time\n"
        "rng = np.random.default_rng(0)\n"
        "a = rng.random((512, 512), dtype=np.float32)\n"
        "big = np.zeros(4_000_000, dtype=np.float32)\n"
        "while True:\n"
        "    time.sleep(rng.uniform(0, 3))\n"
        "    end = time.monotonic() + rng.uniform(0, 3)\n"
        "    while time.monotonic() < end:\n"
        "        a @ a\n"
        "        big += 1\n"
    )
    single = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", work], env=single)
    try:
        yield
    finally:
        process.kill()
        process.wait()


class PlainBench(LocalBench):
    """Times without canaries."""

    watching = Bench.watching


WAYS = {"without canaries": PlainBench, "with canaries": LocalBench}


def spread(logs: Array) -> float:
    """Return the standard deviation between profiles, the root of its mean square over rows."""
    return float(np.sqrt(logs.var(axis=0, ddof=1).mean()))


def at_one_speed(logs: Array, speeds: list[dict[str, Any] | None], exponents: str) -> Array | None:
    """Return logarithms of milliseconds, shape (profiles, rows), at the speed of the first; None: untold."""
    told = [speed for speed in speeds if speed is not None]
    if len(told) < len(speeds):
        return None
    steps = [
        np.dot(np.log(np.divide(speed["canaries_ms"], told[0]["canaries_ms"])), speed[exponents])
        for speed in told
    ]
    return np.asarray(logs - np.array(steps)[:, None])


def spreads(logs: Array, speeds: list[dict[str, Any] | None], exponents: str) -> dict[str, float | None]:
    """Return the spreads that are told of one way's profiles."""
    corrected = at_one_speed(logs, speeds, exponents)
    return {
        "as_profiled": spread(logs),
        "at_one_speed": None if corrected is None else spread(corrected),
        "relative": spread(logs - logs.mean(axis=1, keepdims=True)),
    }


def profiled(way: str, blocks: int, networks: int, folder: Path) -> tuple[LatencyTable, float]:
    """Return one profile and the seconds that it took."""
    space = litepose_native(joints=JOINTS, resolutions=(256, 384))
    rng = np.random.default_rng(0)
    every = space.distinct_blocks()
    work = [every[i] for i in rng.permutation(len(every))[:blocks]]
    archs = [space.sample(rng) for _ in range(networks)]
    target = local_target("onnxruntime", 1)
    jobs = [
        NetworkJob(arch, JOINTS, cache(partial(network_file, target, arch, JOINTS, folder))) for arch in archs
    ]
    bench = WAYS[way](get_runtime("onnxruntime"), 1)
    start = time.perf_counter()
    with progress_bar(way) as bar:
        table = profile(
            target,
            work,
            out=folder,
            networks=jobs,
            settings=SETTINGS,
            bench=bench,
            progress=lambda done, total, name: bar.update(done, total, name),
        )
    return table, time.perf_counter() - start


def study(repeats: int, blocks: int, networks: int) -> dict[str, Any]:
    """Return the spreads of both ways, whose profiles take turns."""
    found: dict[str, list[tuple[LatencyTable, float]]] = {way: [] for way in WAYS}
    for number in range(repeats):
        for way, profiles in found.items():
            with tempfile.TemporaryDirectory() as folder:
                profiles.append(profiled(way, blocks, networks, Path(folder)))
            note(f"profile {number + 1} of {repeats}, {way}: {profiles[-1][1]:.0f} s")
    report: dict[str, Any] = {}
    for way, profiles in found.items():
        speeds = [table.sessions[0].get("speed") for table, _ in profiles]
        rows = sorted(profiles[0][0].rows, key=lambda piece: piece.key)
        archs = [network.arch for network in profiles[0][0].networks]
        ms = {
            "blocks": [[table.rows[piece].median_ms for piece in rows] for table, _ in profiles],
            "whole networks": [
                [{n.arch: n.row.median_ms for n in table.networks}[arch] for arch in archs]
                for table, _ in profiles
            ],
        }
        report[way] = {
            "seconds": [seconds for _, seconds in profiles],
            "drift": [table.sessions[0]["drift"] for table, _ in profiles],
            "speeds": speeds,
            **{
                what: spreads(np.log(times), speeds, exponents)
                for (what, times), exponents in zip(
                    ms.items(), ("exponents", "network_exponents"), strict=True
                )
            },
        }
    return report


def lines(report: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the table that is printed and recorded."""
    return [
        [
            way,
            what,
            *(
                "-" if found[what][each] is None else f"{found[what][each]:.1%}"
                for each in ("as_profiled", "at_one_speed", "relative")
            ),
            f"{np.mean(found['seconds']):.0f}",
        ]
        for way, found in report.items()
        for what in ("blocks", "whole networks")
    ]


def main() -> None:
    """Run the study that the command line describes."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=4)
    options.add_argument("--blocks", type=int, default=60)
    options.add_argument("--networks", type=int, default=10)
    options.add_argument("--record", action="store_true", help="write the results folder")
    options.add_argument("--results", type=Path, default=RESULTS)
    given = options.parse_args()
    with neighbour():
        report = study(given.repeats, given.blocks, given.networks)
    print_table("how far profiles are apart", HEADER, lines(report))
    if given.record:
        write_json(given.results / "steadiness.json", {"machine": machine(), **report})
        told = [
            "# How well profiles of a shared machine agree",
            "",
            f"{given.blocks} blocks and {given.networks} whole networks of the native space, ONNX "
            f"Runtime fp32 with one thread, profiled {given.repeats} times each way, in turn, beside a "
            "neighbour that computes on and off. Standard deviations between profiles: *as profiled*; "
            "*at one speed*: brought to what canaries took in the first profile, as the profiler does "
            "when it adds to a table; *relative to each other*: the mean over all rows taken out. "
            "Written by `python experiments/steadiness.py --record`.",
            "",
            "| " + " | ".join(HEADER) + " |",
            "|" + "---|" * len(HEADER),
            *("| " + " | ".join(each) + " |" for each in lines(report)),
            "",
            f"Machine: {machine()}.",
        ]
        write_text(given.results / "steadiness.md", "\n".join(told) + "\n")


if __name__ == "__main__":
    finish(main)
