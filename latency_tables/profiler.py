"""The profiler: times layers on this machine into a table, resumably, and refuses what drifted.

Layers are visited in several rounds, each in another random order, so that a slow change of the machine's
speed (heat, frequency, neighbours) spreads over all layers instead of hitting the last ones. A canary layer
is timed again and again in between; if a round's canary leaves the others, the round is void. Where the bench
can, two canaries are timed with every visit, and their speed of the moment is taken out of what was timed
(:mod:`latency_tables.speed`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latency_tables.bench import Bench, LocalBench
from latency_tables.holding import held_table, settle_table
from latency_tables.journal import Journal, Measurements, journaled_keys, open_journal
from latency_tables.runtimes import Runtime, get_runtime
from latency_tables.speed import SessionSpeed, Speed, learn_speed
from latency_tables.table import LatencyTable, MeasuredNetwork, Row, csv_path
from latency_tables.target import Target, system_kind
from latency_tables.timing import Clock, Samples, Timing, middle_of, summarise, take_samples
from search_spaces.arch import Arch
from search_spaces.errors import InputError, RunError
from search_spaces.layers import Layer, Piece, piece_from_key

Progress = Callable[[int, int, str], None]
"""Called with (visits done, visits in all, what is being timed)."""

CANARY = Layer("conv", 96, 96, 1, 1, 1, 32, 32, norm=True, activation="relu6", name="canary")
"""The layer that is timed throughout: 9.4 MMACs, the middle of what pose networks execute."""

MEMORY_CANARY = Layer("conv", 24, 24, 3, 1, 24, 192, 192, norm=True, activation="relu6", name="memory canary")
"""Timed with every visit beside :data:`CANARY`: a depthwise layer that moves 7 MB for 8 MMACs."""

_WATCHED = (CANARY, MEMORY_CANARY)
_EXPONENTS = ("exponents", "network_exponents")

_CANARY_EVERY = 16
_NETWORK = "network "
_CANARY_SECONDS = 0.03
_FEWEST_NETWORK_RUNS = 2
_DECIMALS = 7
_LEAST_SHARE = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NetworkJob:
    """A whole network to be timed among the layers and blocks.

    Attributes
    ----------
    arch, joints
        The network.
    model
        Returns the file of the exported network, in the form that the target's runtime reads; called when it
        is needed.
    """

    arch: Arch
    joints: int
    model: Callable[[], Path]

    @property
    def key(self) -> str:
        """What the journal calls it."""
        return _network_key(self.arch, self.joints)


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """How thoroughly to measure.

    Attributes
    ----------
    seconds_per_layer
        Time per layer or block in the first ``rounds`` rounds together, warm-up included.
    seconds_per_network
        The same for whole networks.
    rounds
        Visits to each layer, block and network.
    max_rounds
        Rounds at most: what is not known to ``tightness`` after ``rounds`` is visited again.
    tightness
        Standard error of the median over rounds, as a share of it, that ends the visits; after a single
        round it is unknown.
    min_runs
        Fewest timed runs per layer, all rounds together.
    max_drift
        By how much a round's canary may differ from the median of all canaries, as a share. Where canaries
        are timed with every visit, and how far timings follow them was learnt, it is twice that.
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
    seconds_per_network: float = 1.0
    rounds: int = 5
    max_rounds: int = 10
    tightness: float = 0.03
    min_runs: int = 20
    max_drift: float = 0.15
    on_drift: Literal["refuse", "warn"] = "refuse"
    seed: int = 0

    def __post_init__(self) -> None:
        for what in ("seconds_per_layer", "seconds_per_network", "tightness", "max_drift"):
            value = getattr(self, what)
            if not 0 < value < math.inf:
                raise InputError(f"{what} is a positive number, not {value!r}")
        for what, least in (("rounds", 1), ("max_rounds", 1), ("min_runs", 1), ("seed", 0)):
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
    networks: Iterable[NetworkJob] = (),
    settings: ProfileSettings | None = None,
    bench: Bench | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> LatencyTable:
    """Time layers, blocks and whole networks on a target and return the table, which is also saved.

    Measurements go to a journal (``NAME.partial.jsonl``) as they arrive: after Ctrl-C, kill -9 or a power cut
    the same call continues where it stopped. If the table exists, only layers that it lacks are measured.

    Parameters
    ----------
    target
        What is measured.
    layers
        The work list: layers, or blocks that are timed as a whole, e.g. ``space.distinct_blocks()``.
    out
        Folder for the table (file name: the target's name), or the path of its CSV file.
    networks
        Whole networks that are timed in the same rounds; they are kept in the table for a calibration.
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
    settle_table(path)
    former = _former_table(path, target, bench)
    whole = {job.key: job for job in networks}
    jobs: list[Piece | NetworkJob] = [*work, *whole.values()]
    known = frozenset[str]() if former is None else _measured_keys(former)
    todo = [job for job in jobs if job.key not in known]
    partial = path.with_suffix(".partial.jsonl")
    if former is not None and not todo:
        if journaled_keys(partial) <= known:
            partial.unlink(missing_ok=True)  # the table was saved, then the process was killed
        return former
    header = {
        "target": target.to_dict(),
        "runtime_version": bench.version(),
        **_identity(bench.system()),
        **{k: v for k, v in asdict(settings).items() if k not in ("max_drift", "on_drift")},
    }
    speed = None if former is None else _former_speed(former)
    with open_journal(partial, header) as journal:
        journal.write("start", facts={"date": _now(), "command": command, **bench.machine()})
        with bench.watching(_WATCHED):
            _measure(journal, bench, todo, settings, progress, former)
        drift = _check_drift(journal, former, settings)
        rows, measured, session = _results(journal.found, bench, settings, drift, whole, speed)
        with held_table(path):
            # Another command may have added to the table while this one measured.
            latest = _former_table(path, target, bench)
            if latest is None:
                table = LatencyTable(target, rows, (session,), networks=measured)
            else:
                table = _added(latest, rows, measured, session)
            table.save(path)
        journal.remove()
    return table


def _added(
    former: LatencyTable,
    rows: Mapping[Piece, Row],
    networks: Sequence[MeasuredNetwork],
    session: Mapping[str, Any],
) -> LatencyTable:
    """Return a table with what was measured now; what it had measured before stays."""
    known = _measured_keys(former)
    kept = {piece: row for piece, row in former.rows.items() if piece.key in known}
    new = (each for each in networks if _network_key(each.arch, each.joints) not in known)
    return replace(
        former,
        rows={**rows, **kept},
        sessions=(*former.sessions, session),
        networks=(*former.networks, *new),
        calibration=None,  # these were fitted on other rows
        fit=None,
    )


def measure_model(
    runtime: Runtime,
    path: str | Path,
    size: tuple[int, int],
    threads: int,
    *,
    precision: str = "fp32",
    seconds: float = 2.0,
    min_runs: int = 10,
    clock: Clock = time.perf_counter,
) -> Timing:
    """Time a whole exported network on one picture of ``size`` (height, width).

    Parameters
    ----------
    runtime
        What runs it.
    path
        A file of the kind that the runtime reads.
    size
        Height and width of the picture, pixels.
    threads
        CPU threads.
    precision
        Number format that the file is run in.
    seconds, min_runs
        How long it is timed, in seconds, and how often at least.
    clock
        Seconds that pass.

    Raises
    ------
    InputError
        If the file is missing or is no network that takes such a picture.
    UnavailableError
        If the runtime is not installed, or does not offer the precision.
    """
    runtime.check(threads, precision)
    with runtime.prepare_model(Path(path), size, threads, precision) as network:
        samples = take_samples(network.run, seconds=seconds, min_runs=min_runs, clock=clock)
    return summarise(samples.ms, len(samples.ms) * samples.loop)


def measure_against(
    table: LatencyTable, path: str | Path, size: tuple[int, int], *, seconds: float = 2.0, min_runs: int = 10
) -> tuple[Timing, float | None]:
    """Time a whole network in this process as a table's target says, and compare the machine's speed.

    Returns
    -------
    Timing, float or None
        What it takes now, nothing taken out; and how many times as long as at the speed that the table's
        timings were brought to networks take beside what the canaries take now. None if the table does not
        tell that speed.

    Raises
    ------
    InputError, UnavailableError
        As :func:`measure_model`.
    """
    target = table.target
    bench = LocalBench(get_runtime(target.runtime), target.threads, target.precision)
    found = measure_rounds(bench, path, size, table=table, seconds=seconds, rounds=1, min_runs=min_runs)
    return found.timing, found.pace


@dataclass(frozen=True, slots=True)
class MeasuredRounds:
    """A whole network timed in several rounds, nothing taken out.

    Attributes
    ----------
    timing
        Of all runs together.
    medians
        Milliseconds of each round.
    pace
        How many times as long as at the speed that a table's timings were brought to networks take beside
        what the canaries took, median of the rounds; None if there is no table or it does not tell that
        speed, or the bench watches no canaries.
    """

    timing: Timing
    medians: tuple[float, ...]
    pace: float | None

    @property
    def drift(self) -> float:
        """How far a round's median lies from the median of all rounds, at most, as a share."""
        medians = np.array(self.medians)
        return float(np.abs(medians / np.median(medians) - 1).max())


def measure_rounds(
    bench: Bench,
    path: str | Path,
    size: tuple[int, int],
    *,
    table: LatencyTable | None = None,
    seconds: float = 2.0,
    rounds: int = 5,
    min_runs: int = 10,
    progress: Progress | None = None,
) -> MeasuredRounds:
    """Time a whole network where a bench is, in rounds, with the profiler's canaries around and amid them.

    Parameters
    ----------
    bench
        Where it is timed.
    path, size
        The network's file, and (height, width) of the one picture that it is timed on.
    table
        Whose speed the machine's is compared with.
    seconds, min_runs
        Time and fewest runs, all rounds together.
    rounds
        How often it is visited.
    progress
        Told of rounds done, in all, and what is timed.

    Raises
    ------
    InputError, UnavailableError, RunError
        As :meth:`latency_tables.Bench.time_model`.
    """
    former = None if table is None else _former_speed(table)
    visits: list[Samples] = []
    with bench.watching(_WATCHED if former is not None else ()):
        for turn in range(rounds):
            share = seconds / rounds, max(1, -(-min_runs // rounds))
            visits.append(bench.time_model(Path(path), size, *share))
            if progress is not None:
                progress(turn + 1, rounds, "network")
    runs = sum(len(each.ms) * each.loop for each in visits)
    timing = summarise([ms for each in visits for ms in each.ms], runs)
    watched = [each.canaries for each in visits if each.canaries]
    pace = None
    if former is not None and watched:
        pace = float(np.median([former.networks.factor(canaries) for canaries in watched]))
    return MeasuredRounds(timing, tuple(float(np.median(each.ms)) for each in visits), pace)


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
    here = _identity(bench.system())
    for session in reversed(table.sessions):
        before = _identity({key: str(value) for key, value in session.items()})
        for what, value in here.items():
            if before.get(what, value) != value:
                raise InputError(
                    f"the latency table '{path}' was measured with {what} '{session[what]}', here it is"
                    f" '{value}': profile into another folder"
                )
    return table


def _identity(system: Mapping[str, str]) -> dict[str, str]:
    """Return what of a system its timings depend on; they never mix with those of another."""
    found = {key: system[key] for key in ("processor", "system", "pinned", "benchmark") if key in system}
    return {key: system_kind(value) if key == "system" else value for key, value in found.items()}


def _former_speed(table: LatencyTable) -> SessionSpeed | None:
    """Return the speed of the first session that tells it with these canaries; None if none does."""
    told = (SessionSpeed.of(session) for session in table.sessions)
    keys = tuple(canary.key for canary in _WATCHED)
    return next((speed for speed in told if speed is not None and speed.canaries == keys), None)


def _former_canary(table: LatencyTable) -> float | None:
    """Return what the first canary took in the first session that tells it, timed among visits."""
    for session in table.sessions:
        ms = session.get("canary_ms")
        if isinstance(ms, int | float) and not isinstance(ms, bool) and 0 < ms < math.inf:
            return None if "speed" in session else float(ms)
    return None


def _network_key(arch: Arch, joints: int) -> str:
    return f"{_NETWORK}{arch.id} {joints}"


def _measured_keys(table: LatencyTable) -> frozenset[str]:
    """Return the keys of what a table holds measurements of; estimates do not count."""
    rows = (piece.key for piece, row in table.rows.items() if row.provenance != "calibrated-estimate")
    return frozenset((*rows, *(_network_key(network.arch, network.joints) for network in table.networks)))


def _measure(
    journal: Journal,
    bench: Bench,
    jobs: Sequence[Piece | NetworkJob],
    settings: ProfileSettings,
    progress: Progress | None,
    former: LatencyTable | None,
) -> None:
    """Visit all once per round, then what is still loose in further ones; skip what the journal holds."""
    found = journal.found
    every = sorted(jobs, key=lambda job: job.key)
    min_runs = math.ceil(settings.min_runs / settings.rounds)
    done, total = 0, settings.rounds * len(every)

    def canary(index: int) -> None:
        overhead = bench.time(None, _CANARY_SECONDS / 3, min_runs)
        journal.samples("overhead", index, overhead)
        if not overhead.canaries:  # else they come with every visit
            journal.samples("canary", index, bench.time(CANARY, _CANARY_SECONDS, min_runs))

    def visit(job: Piece | NetworkJob) -> Samples:
        if isinstance(job, NetworkJob):
            seconds = settings.seconds_per_network / settings.rounds
            return bench.time_model(job.model(), job.arch.size, seconds, min(min_runs, _FEWEST_NETWORK_RUNS))
        return bench.time(job, settings.seconds_per_layer / settings.rounds, min_runs)

    for index in range(max(settings.rounds, settings.max_rounds)):
        further = index >= settings.rounds
        wanted = every
        if further:
            so_far = _Visited(found, index)
            wanted = [job for job in every if so_far.spread(job.key) > settings.tightness]
            total += len(wanted)
        order = np.random.default_rng((settings.seed, index)).permutation(len(wanted))
        known = found.visits.get(index, {})
        waiting = [wanted[i] for i in order if wanted[i].key not in known]
        done += len(wanted) - len(waiting)
        name = f"round {index + 1}/{settings.rounds}"
        if further:
            name = f"further round {index + 1 - settings.rounds}, {len(wanted)} still loose"
        for position, job in enumerate(waiting):
            if progress is not None:
                progress(done, total, f"{name}: {job.key}")
            if position % _CANARY_EVERY == 0:
                canary(index)
            journal.samples("layer", index, visit(job), key=job.key)
            done += 1
        if waiting:
            canary(index)
        if former is not None and index == 0 and settings.on_drift == "refuse":
            _check_drift(journal, former, settings)  # hours are not spent on what would be refused
    if progress is not None:
        progress(total, total, "done")


class _Visited:
    """What the rounds before one have found, brought to one speed.

    Parameters
    ----------
    found
        Measurements.
    before
        The first round that does not count.
    former
        The speed to bring timings to, and how far they followed the canaries then; by default the speed in
        the middle of these. What is too little to learn from follows them as it did then, and networks as
        pieces do.
    """

    def __init__(self, found: Measurements, before: int, former: SessionSpeed | None = None) -> None:
        self._rounds = [found.visits[index] for index in sorted(found.visits) if index < before]
        keys = sorted({key for visited in self._rounds for key in visited})
        whole = [key for key in keys if key.startswith(_NETWORK)]
        others = [key for key in keys if not key.startswith(_NETWORK)]
        reference = None if former is None else former.reference
        self.pieces = learn_speed(
            self._rounds, others, reference, None if former is None else former.pieces.exponents
        )
        self.networks = learn_speed(
            self._rounds,
            whole,
            reference,
            self.pieces.exponents if former is None else former.networks.exponents,
        )

    def visits(self, key: str) -> list[Samples]:
        """Return the corrected samples of what was visited, a round each."""
        speed = self.networks if key.startswith(_NETWORK) else self.pieces
        return [speed.corrected(visited[key]) for visited in self._rounds if key in visited]

    def spread(self, key: str) -> float:
        """Return the standard error of the median over the rounds, as a share of the median.

        It is that of normally distributed rounds, 1.2533 times their deviation over the root of their number,
        the deviation taken as half the distance from the 16th to the 84th percentile: a single bad round
        counts while there are few, and no longer when there are many.
        """
        rounds = [float(np.median(samples.ms)) for samples in self.visits(key)]
        if len(rounds) < 2:
            return math.inf
        middle = float(np.median(rounds))
        low, high = np.percentile(rounds, (16, 84)).tolist()
        deviation = (high - low) / 2
        return float(1.2533 * deviation / math.sqrt(len(rounds)) / middle)


@dataclass(frozen=True, slots=True)
class _Drift:
    """The canaries' story.

    Attributes
    ----------
    canary_ms
        The first one's median over all rounds.
    allowed
        How far the speed may be from that of reference.
    by_round, by_start
        How much longer than at that speed pieces took in each round, and after each start, as a share.
    since_former
        The same of all rounds, held against the table's first session; None if there is none that tells.
    """

    canary_ms: float
    allowed: float
    by_round: dict[int, float]
    by_start: dict[int, float]
    since_former: float | None

    @property
    def worst(self) -> float:
        steps = [abs(step) for step in (*self.by_round.values(), *self.by_start.values())]
        return max([*steps, abs(self.since_former or 0.0)])


def _check_drift(journal: Journal, former: LatencyTable | None, settings: ProfileSettings) -> _Drift:
    """Return the drift; raise :class:`RunError` if it is too large and is to be refused.

    Where canaries are timed with each visit, it is what was taken out of the timings, and twice as much is
    allowed if it was learnt how far they follow the canaries; further rounds, as short as a single visit, do
    not count. Where the first canary is timed among visits, it is what that moved by.
    """
    found = journal.found
    watched = _watched(found)
    pulses: dict[int, list[tuple[float, ...]]] = {}
    for (_, index), taken in sorted(found.pulses.items()):
        if index < settings.rounds or not watched:
            pulses.setdefault(index, []).extend(taken)
    middle = middle_of(middle_of(taken) for taken in pulses.values())
    former_speed = None if former is None else _former_speed(former)
    speed, since = Speed(middle, (1.0,)), None
    if watched:
        now = _Visited(found, max(found.visits) + 1, former_speed).pieces
        speed = replace(now, reference=middle)
        since = None if former_speed is None else now.factor(middle) - 1
    elif former is not None and (before := _former_canary(former)) is not None:
        since = middle[0] / before - 1

    def step(canaries: tuple[float, ...]) -> float:
        return speed.factor(canaries) - 1

    drift = _Drift(
        canary_ms=middle[0],
        allowed=settings.max_drift * (2 if speed.learnt else 1),
        by_round={index: step(middle_of(taken)) for index, taken in pulses.items()},
        by_start={start: step(pulse) for start, pulse in _canaries_by_start(found).items()},
        since_former=since,
    )
    if drift.worst <= drift.allowed:
        return drift
    bad = [index for index, step_ in drift.by_round.items() if abs(step_) > drift.allowed]
    told = [f"round {index + 1} by {drift.by_round[index]:+.0%}" for index in bad]
    for start, step_ in drift.by_start.items():
        if abs(step_) > drift.allowed:
            told.append(f"the process started {_ordinal(start)} by {step_:+.0%}")
            bad = sorted({*bad, *found.rounds_of_start.get(start, ())})
    if drift.since_former is not None and abs(drift.since_former) > drift.allowed:
        told.append(f"all rounds by {drift.since_former:+.0%} since the table's first rows")
        bad = list(found.visits)
    story = (
        f"the machine's speed drifted while profiling: what the canaries tell left the median"
        f" ({', '.join(told)}; allowed {drift.allowed:.0%})"
    )
    if settings.on_drift == "refuse":
        journal.discard(bad)
        raise RunError(
            f"{story}; no table was saved: free the machine and run the same command again, which measures"
            f" only {'that round' if len(bad) == 1 else 'those rounds'} anew, or allow more drift"
            " (--on-drift warn)"
        )
    _log.warning("%s; the table is saved all the same, with the drift in its metadata", story)
    return drift


def _canaries_by_start(found: Measurements) -> dict[int, tuple[float, ...]]:
    """Return the canaries' medians after each start that timed them often enough; nothing of a single start.

    That is twice; ten times where they are timed with every visit, as briefly as that.
    """
    if len(found.starts) < 2:
        return {}
    least = 10 if _watched(found) else 2
    every: dict[int, list[tuple[float, ...]]] = {}
    for (start, _), taken in found.pulses.items():
        every.setdefault(start, []).extend(taken)
    return {start: middle_of(taken) for start, taken in every.items() if len(taken) >= least}


def _watched(found: Measurements) -> bool:
    """Return whether canaries were timed with every visit, not only among visits."""
    return any(samples.canaries for visited in found.visits.values() for samples in visited.values())


def _ordinal(number: int) -> str:
    """Return 'first' for 0, and so on."""
    return ("first", "second", "third")[number] if number < 3 else f"{number + 1}th"


def _results(
    found: Measurements,
    bench: Bench,
    settings: ProfileSettings,
    drift: _Drift,
    whole: Mapping[str, NetworkJob],
    former: SessionSpeed | None,
) -> tuple[dict[Piece, Row], tuple[MeasuredNetwork, ...], dict[str, Any]]:
    """Return rows and networks of all that every round has visited, and the session's circumstances.

    Rows are net of the cost of calling the runtime. Whole networks are called as they are here, so their
    times are gross. ``former`` is the speed that they are brought to; by default that of the middle.
    """
    rounds = range(settings.rounds)
    visited = _Visited(found, max(found.visits, default=0) + 1, former)
    overhead = float(np.median([ms for visits in found.overhead.values() for s in visits for ms in s.ms]))
    source = f"{bench.runtime} {bench.version()}"
    keys = sorted(set.intersection(*(set(found.visits.get(index, {})) for index in rounds)))
    rows: dict[Piece, Row] = {}
    networks = []
    for key in keys:
        row = _row(_net(visited.visits(key), 0.0 if key in whole else overhead), source)
        if key in whole:
            networks.append(MeasuredNetwork(whole[key].arch, whole[key].joints, row))
        elif not key.startswith(_NETWORK):
            rows[piece_from_key(key)] = row
    session = {
        "date": found.starts[0]["date"],
        "finished": _now(),
        "command": found.starts[-1]["command"],
        "layers": len(rows),
        "networks": len(networks),
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
        **_told_speed(visited, found),
        "drift": round(drift.worst, 4),
        "drifted": drift.worst > drift.allowed,
    }
    return rows, tuple(networks), session


def _told_speed(visited: _Visited, found: Measurements) -> dict[str, Any]:
    """Return how far timings followed the canaries; nothing where none was watched."""
    if not visited.pieces.reference:
        return {}
    speeds = dict(zip(_EXPONENTS, (visited.pieces, visited.networks), strict=True))
    own = middle_of(s.canaries for visits in found.visits.values() for s in visits.values())
    return {
        "speed": {
            "canaries": [canary.key for canary in _WATCHED],
            "canaries_ms": [round(ms, _DECIMALS) for ms in visited.pieces.reference],
            "own_canaries_ms": [round(ms, _DECIMALS) for ms in own],
            **{name: [round(each, 4) for each in speed.exponents] for name, speed in speeds.items()},
            "learnt": [speed.learnt for speed in speeds.values()],
        }
    }


def _row(timing: Timing, source: str) -> Row:
    return Row(timing.median_ms, timing.p10_ms, timing.p90_ms, timing.runs, "measured-here", source)


def _net(visits: Sequence[Samples], overhead: float) -> Timing:
    """Return the summary over all rounds after subtracting the overhead of each call.

    The median is that of the visits' medians, so that each round counts alike. At least a tenth of the gross
    time stays: what remains of a layer as fast as an empty call is noise, but it is never nothing.
    """
    net = [np.maximum(gross - overhead, _LEAST_SHARE * gross) for gross in (np.array(s.ms) for s in visits)]
    found = summarise(np.concatenate(net).tolist(), sum(len(s.ms) * s.loop for s in visits))
    middle = float(np.median([np.median(each) for each in net]))
    p10, median, p90 = (
        max(round(value, _DECIMALS), 10**-_DECIMALS)
        for value in (min(found.p10_ms, middle), middle, max(found.p90_ms, middle))
    )
    return Timing(median_ms=median, p10_ms=p10, p90_ms=p90, runs=found.runs)
