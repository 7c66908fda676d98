"""The profiler: times layers on this machine into a table, resumably, and refuses what drifted.

Layers are visited in several rounds, each in another random order, so that a slow change of the machine's
speed (heat, frequency, neighbours) spreads over all layers instead of hitting the last ones. A canary layer
is timed again and again in between; if a round's canary leaves the others, the round is void.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np

from latency_tables.bench import Bench, LocalBench
from latency_tables.journal import Journal, Measurements, journaled_keys, open_journal
from latency_tables.runtimes import Runtime, get_runtime
from latency_tables.table import LatencyTable, Row, csv_path
from latency_tables.target import Target
from latency_tables.timing import Clock, Samples, Timing, summarise, take_samples
from search_spaces.errors import InputError, RunError
from search_spaces.layers import Layer, Piece, piece_from_key

Progress = Callable[[int, int, str], None]
"""Called with (visits done, visits in all, what is being timed)."""

CANARY = Layer("conv", 96, 96, 1, 1, 1, 32, 32, norm=True, activation="relu6", name="canary")
"""The layer that is timed throughout: 9.4 MMACs, the middle of what pose networks execute."""

_CANARY_EVERY = 16
_CANARY_SECONDS = 0.03
_DECIMALS = 7
_LEAST_SHARE = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """How thoroughly to measure.

    Attributes
    ----------
    seconds_per_layer
        Time per layer, all rounds together, warm-up included.
    rounds
        Visits to each layer.
    min_runs
        Fewest timed runs per layer, all rounds together.
    max_drift
        By how much a round's canary may differ from the median of all canaries, as a share.
    on_drift
        ``refuse``: void the rounds that drifted, save nothing; the same command measures them anew.
        ``warn``: save the table, with the drift in its metadata and a warning.
    seed
        Of the order in which layers are visited.

    Raises
    ------
    InputError
        On construction, naming the setting that is wrong.
    """

    seconds_per_layer: float = 0.25
    rounds: int = 5
    min_runs: int = 20
    max_drift: float = 0.15
    on_drift: Literal["refuse", "warn"] = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        for what in ("seconds_per_layer", "max_drift"):
            value = getattr(self, what)
            if not 0 < value < math.inf:
                raise InputError(f"{what} is a positive number, not {value!r}")
        for what, least in (("rounds", 1), ("min_runs", 1), ("seed", 0)):
            value = getattr(self, what)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{what} is a whole number from {least}, not {value!r}")
        if self.on_drift not in ("refuse", "warn"):
            raise InputError(f"on_drift is 'refuse' or 'warn', not '{self.on_drift}'")


def profile(
    target: Target,
    layers: Iterable[Piece],
    *,
    out: str | Path,
    settings: ProfileSettings | None = None,
    bench: Bench | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> LatencyTable:
    """Time layers on this machine and return the table, which is also saved.

    Measurements go to a journal (``NAME.partial.jsonl``) as they arrive: after Ctrl-C, kill -9 or a power cut
    the same call continues where it stopped. If the table exists, only layers that it lacks are measured.

    Parameters
    ----------
    target
        What is measured; must be this machine.
    layers
        The work list: layers, or blocks that are timed as a whole, e.g. ``space.distinct_blocks()``.
    out
        Folder for the table (file name: the target's name), or the path of its CSV file.
    settings
        How thoroughly to measure.
    bench
        Where it is timed; by default in this process, with the runtime, threads and precision of the target.
    progress
        Called before every visit.
    command
        What the user typed, for the metadata.

    Raises
    ------
    InputError
        If the work list is empty, or the table at ``out`` is of another target or runtime version.
    UnavailableError
        If the runtime is not installed, or does not offer the target's precision.
    RunError
        If the canary drifted too far, or the journal belongs to other settings or is in use.
    """
    settings = settings or ProfileSettings()
    bench = bench or LocalBench(get_runtime(target.runtime), target.threads, target.precision)
    if bench.runtime != target.runtime:
        raise InputError(f"the target '{target.name}' runs on '{target.runtime}', not on '{bench.runtime}'")
    work = tuple(dict.fromkeys(layers))
    if not work:
        raise InputError("there is nothing to profile: the work list holds no layer")
    path = csv_path(out) if Path(out).suffix == ".csv" else Path(out) / f"{target.name}.csv"
    former = _former_table(path, target, bench)
    todo = work if former is None else tuple(piece for piece in work if piece not in former.rows)
    partial = path.with_suffix(".partial.jsonl")
    if former is not None and not todo:
        if journaled_keys(partial) <= {layer.key for layer in former.rows}:
            partial.unlink(missing_ok=True)  # the table was saved, then the process was killed
        return former
    header = {
        "target": target.to_dict(),
        "runtime_version": bench.version(),
        **{k: v for k, v in asdict(settings).items() if k not in ("max_drift", "on_drift")},
    }
    with open_journal(partial, header) as journal:
        journal.write("start", facts={"date": _now(), "command": command, **bench.machine()})
        _measure(journal, bench, todo, settings, progress)
        drift = _check_drift(journal, former, settings)
        table = _table(journal.found, target, bench, settings, drift)
        if former is not None:
            table = former.merge(table)
        table.save(path)
        journal.remove()
    return table


def measure_model(
    runtime: Runtime,
    path: str | Path,
    size: tuple[int, int],
    threads: int,
    *,
    seconds: float = 2.0,
    min_runs: int = 10,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Time a whole exported network on one picture of ``size`` (height, width).

    Raises
    ------
    InputError
        If the file is missing or is no network that takes such a picture.
    UnavailableError
        If the runtime is not installed.
    """
    runtime.check(threads)
    with runtime.prepare_model(Path(path), size, threads) as network:
        samples = take_samples(network.run, seconds=seconds, min_runs=min_runs, clock=clock)
    return summarise(samples.ms, len(samples.ms) * samples.loop)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _former_table(path: Path, target: Target, bench: Bench) -> LatencyTable | None:
    if not path.exists():
        return None
    table = LatencyTable.load(path)
    if table.target != target:
        raise InputError(
            f"the latency table '{path}' is of {table.target}, not of {target}: profile into another folder"
        )
    versions = {str(session["runtime_version"]) for session in table.sessions if "runtime_version" in session}
    if versions - {bench.version()}:
        raise InputError(
            f"the latency table '{path}' was measured with {bench.runtime} {', '.join(sorted(versions))},"
            f" here is {bench.version()}: profile into another folder"
        )
    return table


def _measure(
    journal: Journal,
    bench: Bench,
    layers: Sequence[Piece],
    settings: ProfileSettings,
    progress: Progress | None,
) -> None:
    """Visit every layer once per round, skipping the visits that the journal already holds."""
    found = journal.found
    every = sorted(layers, key=lambda layer: layer.key)
    seconds = settings.seconds_per_layer / settings.rounds
    min_runs = math.ceil(settings.min_runs / settings.rounds)
    done, total = 0, settings.rounds * len(every)

    def canary(index: int) -> None:
        journal.samples("canary", index, bench.time(CANARY, _CANARY_SECONDS, min_runs))
        journal.samples("overhead", index, bench.time(None, _CANARY_SECONDS / 3, min_runs))

    for index in range(settings.rounds):
        order = np.random.default_rng((settings.seed, index)).permutation(len(every))
        known = found.visits.get(index, {})
        waiting = [every[i] for i in order if every[i].key not in known]
        done += len(every) - len(waiting)
        for position, layer in enumerate(waiting):
            if progress is not None:
                progress(done, total, f"round {index + 1}/{settings.rounds}: {layer.key}")
            if position % _CANARY_EVERY == 0:
                canary(index)
            journal.samples("layer", index, bench.time(layer, seconds, min_runs), key=layer.key)
            done += 1
        if waiting:
            canary(index)
    if progress is not None:
        progress(total, total, "done")


@dataclass(frozen=True, slots=True)
class _Drift:
    """The canary's story: its median over all rounds, and the largest relative step away from it."""

    canary_ms: float
    by_round: dict[int, float]
    since_former: float | None

    @property
    def worst(self) -> float:
        steps = [abs(step) for step in self.by_round.values()]
        return max([*steps, abs(self.since_former or 0.0)])


def _check_drift(journal: Journal, former: LatencyTable | None, settings: ProfileSettings) -> _Drift:
    """Return the drift; raise :class:`RunError` if it is too large and is to be refused."""
    rounds = {
        index: float(np.median([ms for samples in visits for ms in samples.ms]))
        for index, visits in sorted(journal.found.canary.items())
    }
    middle = float(np.median(list(rounds.values())))
    sessions = () if former is None else former.sessions
    before = [ms for each in sessions if isinstance(ms := each.get("canary_ms"), float) and ms > 0]
    drift = _Drift(
        canary_ms=middle,
        by_round={index: ms / middle - 1 for index, ms in rounds.items()},
        since_former=middle / before[-1] - 1 if before else None,
    )
    if drift.worst <= settings.max_drift:
        return drift
    bad = [index for index, step in drift.by_round.items() if abs(step) > settings.max_drift]
    told = [f"round {index + 1} by {drift.by_round[index]:+.0%}" for index in bad]
    if drift.since_former is not None and abs(drift.since_former) > settings.max_drift:
        told.append(f"all rounds by {drift.since_former:+.0%} since the rows measured before")
        bad = list(rounds)
    story = (
        f"the machine's speed drifted while profiling: the canary layer left its median"
        f" ({', '.join(told)}; allowed {settings.max_drift:.0%})"
    )
    if settings.on_drift == "refuse":
        journal.discard(bad)
        raise RunError(
            f"{story}; no table was saved: free the machine and run the same command again, which measures"
            f" only {'that round' if len(bad) == 1 else 'those rounds'} anew, or allow more drift"
        )
    _log.warning("%s; the table is saved all the same, with the drift in its metadata", story)
    return drift


def _table(
    found: Measurements, target: Target, bench: Bench, settings: ProfileSettings, drift: _Drift
) -> LatencyTable:
    """Return the table of all layers that every round has visited, net of the cost of calling the runtime."""
    rounds = range(settings.rounds)
    overhead = float(np.median([ms for visits in found.overhead.values() for s in visits for ms in s.ms]))
    source = f"{bench.runtime} {bench.version()}"
    keys = sorted(set.intersection(*(set(found.visits.get(index, {})) for index in rounds)))
    rows: dict[Piece, Row] = {}
    for key in keys:
        visits = [found.visits[index][key] for index in rounds]
        timing = _net(visits, overhead)
        rows[piece_from_key(key)] = Row(
            median_ms=timing.median_ms,
            p10_ms=timing.p10_ms,
            p90_ms=timing.p90_ms,
            runs=timing.runs,
            provenance="measured-here",
            source=source,
        )
    session = {
        "date": found.starts[0]["date"],
        "finished": _now(),
        "command": found.starts[-1]["command"],
        "layers": len(rows),
        "runtime_version": bench.version(),
        **{key: value for key, value in asdict(settings).items() if key != "on_drift"},
        "processes": len(found.starts),
        **bench.system(),
        "machine_before": {k: v for k, v in found.starts[0].items() if k not in ("date", "command")},
        "machine_after": dict(bench.machine()),
        "overhead_ms": round(overhead, _DECIMALS),
        "canary": CANARY.key,
        "canary_ms": round(drift.canary_ms, _DECIMALS),
        "canary_by_round": [round(step, 4) for _, step in sorted(drift.by_round.items())],
        "drift": round(drift.worst, 4),
        "drifted": drift.worst > settings.max_drift,
    }
    return LatencyTable(target=target, rows=rows, sessions=(session,))


def _net(visits: Sequence[Samples], overhead: float) -> Timing:
    """Return the summary over all rounds after subtracting the overhead of each call.

    At least a tenth of the gross time stays: what remains of a layer as fast as an empty call is noise, but
    it is never nothing.
    """
    gross = np.array([ms for samples in visits for ms in samples.ms])
    net = np.maximum(gross - overhead, _LEAST_SHARE * gross)
    found = summarise(net.tolist(), sum(len(samples.ms) * samples.loop for samples in visits))
    p10, median, p90 = (
        max(round(value, _DECIMALS), 10**-_DECIMALS)
        for value in (found.p10_ms, found.median_ms, found.p90_ms)
    )
    return Timing(median_ms=median, p10_ms=p10, p90_ms=p90, runs=found.runs)
