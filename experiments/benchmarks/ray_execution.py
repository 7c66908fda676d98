"""Evaluations on Ray: what one costs besides itself, what workers gain, how many the driver keeps busy.

1. *Overhead*: evaluations that do nothing, handed to workers and brought back.
2. *Death*: a worker is killed with SIGKILL while it has work. Others must go on, nothing may come from the
   dead, and the study must end with the front that it has in one process. (That the very evaluation is
   completed elsewhere is held by a test.)
3. *Speed-up*, with ``--run``: networks of a trained supernet on its search images, by one worker and two, and
   in this process. All APs must agree.
4. *Many workers, simulated*: as many processes as a cluster would have, all on this machine, with evaluations
   that sleep. Searching, Tune, the desk and the messages are the real ones. How long workers are busy, and
   what they wait for when they are not.

Run: python experiments/benchmarks/ray_execution.py [--run RUN] [--workers 64] [--record]
"""

from __future__ import annotations

import math
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import command, finish, machine, parser, record_page

from nas.console import print_table
from nas.data import open_datasets
from nas.run import RunDirectory
from nas.search import Evaluation, InProcess, Kept, Progress, RayExecutor, SearchResult, search
from nas.search.executors import Executor, Session
from nas.searching import SearchEvaluator
from nas.train import make_evaluator, open_supernet
from search_spaces import Arch, RunError, SearchSpace, litepose_native
from search_spaces.files import write_json, write_text

SPREAD = 0.3
"""Of the simulated evaluations: standard deviation of the logarithm of their seconds."""
KILL_AFTER = 5
WARM_UP_SECONDS = 0.5
START_LIMIT_SECONDS = 900.0


@dataclass(frozen=True)
class Sleeping:
    """An evaluator that sleeps, for a time that is the network's own, and tells when and where.

    A network has an AP that grows with its cost. A rival says how long to sleep, in its ``seconds``.
    """

    seconds: float

    def evaluate(self, arch: Arch, rival: Evaluation | None = None) -> Evaluation:
        """Return a made-up AP after some seconds."""
        rng = np.random.default_rng(list(arch.id.encode()))
        length = self.seconds * math.exp(SPREAD * rng.standard_normal())
        began = time.time()
        time.sleep(length if rival is None else rival.seconds)
        ap = 0.7 * (1 - math.exp(-arch.cost(17).macs / 3e9)) + 0.01 * rng.standard_normal()
        stats = {"began": began, "ended": time.time(), "worker": float(os.getpid())}
        return Evaluation(max(ap, 0.0), stats, 0.0)


def lasting(seconds: float) -> Evaluation:
    """Return a rival against which evaluations take so long."""
    return Evaluation(0.0, seconds=seconds)


def some(space: SearchSpace, n: int, seed: int = 0) -> list[Arch]:
    """Return different networks of a space."""
    found = np.unique(space.sample_genotypes(np.random.default_rng(seed), 2 * n), axis=0)
    order = np.random.default_rng(seed).permutation(len(found))[:n]
    return [space.decode(genotype) for genotype in found[order]]


@contextmanager
def started(workers: int, evaluator: Any, seconds: float) -> Iterator[tuple[Kept, Session, float]]:
    """Yield an executor and its session once every worker is at work, and how long that took."""
    began, seen = time.perf_counter(), set[float]()
    warm = some(litepose_native(), 2 * workers)
    with Kept(RayExecutor(workers=workers)) as executor, executor.session(evaluator) as session:
        while len(seen) < workers:
            if time.perf_counter() - began > START_LIMIT_SECONDS:
                raise RunError(f"only {len(seen)} of {workers} workers started in {START_LIMIT_SECONDS:g} s")
            for _, found in session.run(warm, [lasting(seconds)] * len(warm)):
                seen.add(found.stats["worker"])
        yield executor, session, time.perf_counter() - began


def short(value: float) -> float:
    """Return the value to four digits."""
    return float(f"{value:.4g}")


# -- overhead ----------------------------------------------------------------------------------------------


def overhead(session: Session, n: int, repeats: int) -> dict[str, Any]:
    """Return what evaluations cost that do nothing: milliseconds each, of wall clock and of the driver."""
    archs, wall, cpu = some(litepose_native(), n, seed=1), [], []
    for _ in range(repeats):
        begun, busy = time.perf_counter(), time.process_time()
        done = sum(1 for _ in session.run(archs, [lasting(0.0)] * n))
        assert done == n
        wall.append(1e3 * (time.perf_counter() - begun) / n)
        cpu.append(1e3 * (time.process_time() - busy) / n)
    return {
        "evaluations": n,
        "ms_each": short(statistics.median(wall)),
        "all_ms_each": [*map(short, wall)],
        "driver_cpu_ms_each": short(statistics.median(cpu)),
    }


# -- death -------------------------------------------------------------------------------------------------


@dataclass
class Watch:
    """Notes the course of a search, and may kill a worker once so many networks are evaluated.

    Attributes
    ----------
    kill_after
        None kills nobody.
    course
        Of each evaluation: generation, seconds since the epoch, processor seconds of this process.
    killed
        Process id of the worker that was killed.
    """

    kill_after: int | None = None
    course: list[tuple[int, float, float]] = field(default_factory=list)
    killed: int | None = None
    when: float = 0.0

    def __call__(self, progress: Progress) -> None:
        """Called by the search."""
        self.course.append((progress.generation, time.time(), time.process_time()))
        latest = progress.latest
        if latest is not None and progress.evaluated == self.kill_after:
            # Whose evaluation has just been noted is at its next one.
            self.killed, self.when = int(latest.stats["worker"]), time.time()
            os.kill(self.killed, signal.SIGKILL)


def searched(
    evaluator: Any, executor: Executor, trials: int, population: int, watch: Watch, sampler: str = "guided"
) -> SearchResult:
    """Search the native space."""
    with tempfile.TemporaryDirectory() as folder:
        return search(
            litepose_native(),
            evaluator,
            storage=Path(folder) / "study.journal",
            trials=trials,
            population=population,
            sampler=sampler,
            executor=executor,
            progress=watch,
        )


def front_of(result: SearchResult) -> list[tuple[str, float | None]]:
    """Return the networks of the front with their APs."""
    return [(record.arch.id, record.ap) for record in result.front()]


def death(executor: Executor, evaluator: Sleeping) -> dict[str, Any]:
    """Kill a worker in the middle of a study, and return how the study went on."""
    watch = Watch(KILL_AFTER)
    result = searched(evaluator, executor, 24, 8, watch)
    alone = searched(Sleeping(0.0), InProcess(), 24, 8, Watch())
    begun = {r.arch.id: r.stats for r in result.evaluated}
    elsewhere = [s for s in begun.values() if s["worker"] != watch.killed and s["began"] >= watch.when]
    late = [s for s in begun.values() if s["worker"] == watch.killed and s["ended"] > watch.when]
    if front_of(result) != front_of(alone) or late or not elsewhere:
        raise SystemExit("a worker was killed, and the study is not what it is in one process")
    return {
        "networks": len(result.evaluated),
        "killed_after": KILL_AFTER,
        "front": len(result.front()),
        "front_as_in_one_process": True,
        "answers_of_the_dead": len(late),
        "evaluated_afterwards_elsewhere": len(elsewhere),
    }


# -- speed-up ----------------------------------------------------------------------------------------------


def speed_up(folder: Path, networks: int, tell: Any) -> dict[str, Any]:
    """Return how long the same networks of a trained run take in each way."""
    run = RunDirectory.open(folder)
    data = open_datasets(run.recipe)
    space = run.recipe.build_space(data.skeleton)
    archs = some(space, networks + 4)
    warm, timed = archs[networks:], archs[:networks]
    found: dict[str, Any] = {}
    aps: list[list[float]] = []
    threads = torch.get_num_threads()
    ways: list[tuple[str, int, Executor]] = [
        ("this process, 1 thread", 1, InProcess()),
        ("this process, 2 threads", 2, InProcess()),
        ("Ray, 1 worker of 1 thread", 1, RayExecutor(workers=1)),
        ("Ray, 2 workers of 1 thread", 1, RayExecutor(workers=2)),
    ]
    for name, count, executor in ways:
        torch.set_num_threads(count)
        # Nothing is kept between the ways: neither pictures nor statistics.
        subnets = make_evaluator(run, data, open_supernet(run, space), fixed=True, keep_statistics=False)
        try:
            with executor.session(SearchEvaluator(subnets)) as session:
                begun = time.perf_counter()
                list(session.run(warm, [None] * len(warm)))
                warmed = time.perf_counter()
                results = dict(session.run(timed, [None] * len(timed)))
                wall = time.perf_counter() - warmed
        finally:
            torch.set_num_threads(threads)
        aps.append([results[i].ap for i in range(networks)])
        found[name] = {
            "seconds": short(wall),
            "first_seconds": short(warmed - begun),
            "seconds_each": short(statistics.median(r.seconds for r in results.values())),
        }
        tell(name)
    if any(each != aps[0] for each in aps):
        raise SystemExit("the ways disagree in AP")
    return {"run": run.recipe.name, "images": len(data.search), "networks": networks, "ways": found}


# -- many workers ------------------------------------------------------------------------------------------


def course_of(result: SearchResult, watch: Watch, workers: int) -> dict[str, Any]:
    """Return how busy the workers were, and why not, over the generations but the first.

    Of all seconds that the workers had: *evaluating*; *proposing*, from the last evaluation of a generation
    to the first of the next, when all wait for the driver; *last*, from a worker's last evaluation of a
    generation to the last of all, when it waits for slower ones; *between*, the rest: from one evaluation to
    the worker's next.
    """
    generations: dict[int, list[Mapping[str, float]]] = {}
    for record in result.evaluated:
        generations.setdefault(record.generation, []).append(record.stats)
    ends = {number: max(s["ended"] for s in found) for number, found in generations.items()}
    busy = proposing = last = total = 0.0
    pauses = []
    for number in sorted(generations)[1:]:
        found, before = generations[number], ends[number - 1]
        busy += sum(s["ended"] - s["began"] for s in found)
        pauses.append(min(s["began"] for s in found) - before)
        proposing += workers * pauses[-1]
        own: dict[float, float] = {}
        for s in found:
            own[s["worker"]] = max(own.get(s["worker"], 0.0), s["ended"])
        idle = workers - len(own)  # more workers than networks
        last += sum(ends[number] - end for end in own.values()) + idle * (ends[number] - before - pauses[-1])
        total += workers * (ends[number] - before)
    numbers = [number for number, _, _ in watch.course]
    first = numbers.index(1)
    cpu = watch.course[-1][2] - watch.course[first - 1][2]
    after = len(watch.course) - first
    return {
        "evaluations": after,
        "generations": len(pauses),
        "evaluating": short(busy / total),
        "waiting_for_the_slowest": short(last / total),
        "waiting_for_proposals": short(proposing / total),
        "between_evaluations": short(1 - (busy + last + proposing) / total),
        "pause_seconds": short(statistics.median(pauses)),
        "driver_cpu_seconds_per_generation": short(cpu / len(pauses)),
        "driver_cpu_ms_per_evaluation": short(1e3 * cpu / after),
    }


def many(workers: int, seconds: float, generations: int, tell: Any) -> dict[str, Any]:
    """Return what a study with many workers does with their time."""
    evaluator = Sleeping(seconds)  # the same one for all: another would get workers of its own
    with started(workers, evaluator, WARM_UP_SECONDS) as (executor, session, took):
        tell(f"{workers} workers started in {took:.0f} s")
        idle = overhead(session, 8 * workers, 3)
        found: dict[str, Any] = {}
        for sampler in ("guided", "nsga2"):
            for population in (workers, 2 * workers):
                watch = Watch()
                trials = population * (generations + 1)
                result = searched(evaluator, executor, trials, population, watch, sampler)
                name = f"{sampler}, population {population}"
                found[name] = {
                    "sampler": sampler,
                    "population": population,
                    **course_of(result, watch, workers),
                }
                tell(name)
    return {
        "workers": workers,
        "seconds": seconds,
        "start_seconds": short(took),
        "most_evaluations_per_second": short(1e3 / idle["ms_each"]),
        "nothing": idle,
        "studies": found,
    }


# -- telling -----------------------------------------------------------------------------------------------

COLUMNS = ("", "wall (ms)", "driver's CPU (ms)")
SPEED_COLUMNS = ("way", "seconds", "median of one (s)", "speed-up")
MANY_COLUMNS = (
    "study", "evaluating", "for the slowest", "for proposals", "between", "pause (s)", "driver's CPU (ms)"
)  # fmt: skip


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table for the page."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def overhead_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the table's rows."""
    named = {f"{n} worker{'s' * (n != '1')}": each for n, each in report["overhead"].items()}
    if report["many"]:
        named[f"{report['many']['workers']} workers"] = report["many"]["nothing"]
    return [[name, f"{e['ms_each']:.1f}", f"{e['driver_cpu_ms_each']:.1f}"] for name, e in named.items()]


def speed_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the table's rows; the speed-up is over the first of its kind."""
    rows = []
    for name, each in found["ways"].items():
        first = next(e for n, e in found["ways"].items() if n[:3] == name[:3])
        rows.append(
            [
                name,
                f"{each['seconds']:.1f}",
                f"{each['seconds_each']:.2f}",
                f"{first['seconds'] / each['seconds']:.2f}",
            ]
        )
    return rows


def many_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the table's rows."""
    shares = ("evaluating", "waiting_for_the_slowest", "waiting_for_proposals", "between_evaluations")
    return [
        [
            name,
            *(f"{100 * each[share]:.1f}%" for share in shares),
            f"{each['pause_seconds']:.2f}",
            f"{each['driver_cpu_ms_per_evaluation']:.1f}",
        ]
        for name, each in found["studies"].items()
    ]


def paragraphs(report: Mapping[str, Any]) -> list[str]:
    """Return the page's parts after the first table."""
    dead = report["death"]
    parts = [
        "Evaluations that do nothing, through the session that a search uses: wall clock and the driver's"
        " processor time for each, medians. Workers, desk and driver share this machine's processors.",
        f"**A killed worker.** In a study of {dead['networks']} networks with 2 workers one was killed"
        f" with SIGKILL after {dead['killed_after']} evaluations. Nothing came from it afterwards; others"
        f" made the rest, and the front of {dead['front']} networks is that of the same study in one"
        " process.",
    ]
    if report["speed_up"]:
        found = report["speed_up"]
        parts += [
            f"**Speed-up.** {found['networks']} networks of the run '{found['run']}' on its"
            f" {found['images']} search images, after 4 that fill the caches; batch-norm statistics computed"
            " for every one. All ways give the same APs, to the last digit. *Speed-up*: over the first of its"
            " kind.",
            table_of(SPEED_COLUMNS, speed_rows(found)),
        ]
    if report["many"]:
        found = report["many"]
        rate = found["most_evaluations_per_second"]
        parts += [
            f"**{found['workers']} workers, simulated.** As many Ray processes on this machine, which offers"
            f" Ray {found['workers']} logical CPUs; evaluations sleep {found['seconds']:g} s (median;"
            f" log-normal, standard deviation of the logarithm {SPREAD:g}; unrelated to the network's cost)."
            " Search of LitePose's native space over AP and MACs; the generations after the first. Where the"
            " workers' time goes: *evaluating*; waiting *for the slowest* evaluation of a generation; waiting"
            " *for proposals*, the *pause* between generations; *between* two evaluations. *Driver's CPU*:"
            " per evaluation, with the proposals' share.",
            table_of(MANY_COLUMNS, many_rows(found)),
            f"The workers started in {found['start_seconds']:.0f} s. Evaluations that do nothing came back at"
            f" {rate:.0f} a second: so many workers would be served if evaluations took a second, and"
            f" {rate * found['seconds']:.0f} at {found['seconds']:g} s.",
        ]
    return parts


def main() -> None:
    """Measure, tell and record."""
    options = parser("ray_execution", "What evaluations on Ray cost, and what workers gain.", repeats=5)
    options.add_argument(
        "--run", type=Path, help="a trained run, for the speed-up; without it that is left out"
    )
    options.add_argument("--networks", type=int, default=8, help="of the run (default: %(default)s)")
    options.add_argument("--workers", type=int, default=64, help="simulated; 0: none (default: %(default)s)")
    options.add_argument("--seconds", type=float, default=4.0, help="of a simulated evaluation")
    options.add_argument("--generations", type=int, default=3, help="measured of each simulated study")
    given = options.parse_args()
    if min(given.repeats, given.networks, given.generations) < 1:
        options.error("--repeats, --networks and --generations are at least 1")
    began = time.perf_counter()

    def tell(text: str) -> None:
        print(f"[{time.perf_counter() - began:5.0f} s] {text}", flush=True)

    report: dict[str, Any] = {"benchmark": "ray_execution", "overhead": {}, "death": {}}
    for workers in (1, 2):
        evaluator = Sleeping(0.3)
        with started(workers, evaluator, WARM_UP_SECONDS) as (executor, session, took):
            report["overhead"][str(workers)] = {
                **overhead(session, 100 * workers, given.repeats),
                "start_seconds": short(took),
            }
            if workers == 2:
                report["death"] = death(executor, evaluator)
        tell(f"{workers} worker(s)")
    report["speed_up"] = None if given.run is None else speed_up(given.run, given.networks, tell)
    report["many"] = many(given.workers, given.seconds, given.generations, tell) if given.workers else None
    report["machine"] = machine()
    report["date"] = datetime.now(UTC).date().isoformat()
    report["command"] = command(options, given)
    print_table("overhead", COLUMNS, overhead_rows(report))
    if report["speed_up"]:
        print_table("speed-up", SPEED_COLUMNS, speed_rows(report["speed_up"]))
    if report["many"]:
        print_table(f"{given.workers} workers", MANY_COLUMNS, many_rows(report["many"]))
    if given.record:
        before = "What an evaluation costs besides itself when it is made by a worker of Ray's."
        text = record_page(
            "Execution on Ray", before, COLUMNS, overhead_rows(report), paragraphs(report), report
        )
        write_json(given.results / "ray_execution.json", report)
        write_text(given.results / "ray_execution.md", text)
        print(f"recorded in {given.results / 'ray_execution'}.json and .md")


if __name__ == "__main__":
    finish(main)
