"""Evaluations on Ray Tune: on the cores and GPUs of this machine, or on a cluster.

A Tune trial is the life of one worker, not one evaluation. Tune places workers, reserves what they ask for,
and starts another where one has died. What they evaluate they fetch from a desk, an actor beside the driver,
and bring back there. So an evaluation costs two short messages, whatever Tune's loop is doing, and a worker
unpacks the evaluator and fills its caches once. (One trial per evaluation was measured before: Tune's loop
then starts and ends eight of them a second, and sixty-four workers wait for it.)

Each arch has a ticket. The desk notes which worker holds it; if Tune tells that the worker is gone, the
ticket waits for the next one. The first answer to a ticket counts, and there is exactly one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from nas.search.evaluator import Evaluation, Evaluator, evaluated
from nas.search.executors import Rivals, Session
from search_spaces import (
    Arch,
    BudgetError,
    InputError,
    LitePoseNasError,
    MissingLayerError,
    RunError,
    UnavailableError,
    arch_from_json,
)

_ERRORS: Mapping[str, type[LitePoseNasError]] = {
    error.__name__: error
    for error in (InputError, BudgetError, MissingLayerError, UnavailableError, RunError)
}
_QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_VERSIONED = ("litepose-nas", "torch", "onnxruntime", "numpy", "opencv-python-headless")
_JOIN_SECONDS = 30.0
_KNOCK_SECONDS = 10.0
_JOINTS = 17
"""For telling which of several networks takes longer: of any number, their order is the same."""
_STEP_SECONDS = 10.0
"""How long a worker works, or waits for work, between two signs of life to Tune."""
_LOOK_SECONDS = 0.5
"""How often it is looked whether the search is over, or Tune."""


def require_ray() -> Any:
    """Return the module ``ray``, with Tune.

    Raises
    ------
    UnavailableError
        If Ray is not installed.
    """
    try:
        import ray
        import ray.tune
    except ImportError:
        raise UnavailableError(
            "the Ray executor needs Ray Tune: pip install 'litepose-nas[ray]', or use the in-process executor"
        ) from None
    return ray


@dataclass(frozen=True)
class RayExecutor:
    """Evaluates several archs at once on Ray Tune.

    The evaluator is put into the object store once and unpacked once per worker. A worker that dies, or
    raises anything but one of our own errors, is replaced and its arch tried again.

    Attributes
    ----------
    workers
        How many archs are evaluated at the same time.
    address
        Of a running cluster (``auto``, ``10.0.0.1:6379``, ``ray://10.0.0.1:10001``); None starts Ray on this
        machine.
    cpus_per_worker, gpus_per_worker
        What each worker reserves; fractions of a GPU share it. A worker computes with as many threads as it
        has whole CPUs, at least 1.
    retries
        How often an arch is tried again after its worker failed, and a worker is started again that failed
        to start.
    """

    workers: int = 2
    address: str | None = None
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    retries: int = 2

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"Ray needs at least 1 worker, not {self.workers}")
        if self.retries < 0 or self.cpus_per_worker < 0 or self.gpus_per_worker < 0:
            raise InputError("Ray's retries, CPUs and GPUs per worker are numbers from 0 up")
        for name, value in (("CPUs", self.cpus_per_worker), ("GPUs", self.gpus_per_worker)):
            if value > 1 and value != int(value):
                raise InputError(f"Ray takes fractions of one, or whole {name}, per worker, not {value:g}")

    @property
    def threads(self) -> int:
        """Threads of each worker."""
        return max(1, int(self.cpus_per_worker))

    @contextmanager
    def session(self, evaluator: Evaluator) -> Iterator[Session]:
        """Start Ray (unless it runs already), yield a session, and stop what was started.

        Raises
        ------
        UnavailableError
            If Ray is not installed, no cluster answers at the address, or the workers do not fit.
        """
        ray = require_ray()
        started = not ray.is_initialized()
        with ExitStack() as stack:
            stack.enter_context(_environment(_QUIET))
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="litepose-nas-ray-"))
            if started:
                stack.enter_context(_silence(ray))
                stack.callback(ray.shutdown)
                self._start(ray)
            self._check_resources(ray)
            session = _RaySession(self, evaluator, Path(scratch))
            stack.callback(session.close)
            yield session

    def _start(self, ray: Any) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            # Offering what the workers reserve, so that a small machine can run more workers than cores.
            cpus = max(1, int(-(-self.workers * self.cpus_per_worker // 1)))
            options.update(address="local", num_cpus=cpus, include_dashboard=False)
        else:
            options.update(address=self.address)
        try:
            _knock(self.address or "")
            with _own_handlers():
                ray.init(**options)
        except Exception as error:  # Ray raises a dozen kinds here; all mean that it cannot be reached
            where = f"at '{self.address}'" if self.address else "on this machine"
            raise UnavailableError(
                f"Ray cannot be reached {where}: {_reason(error)}; check the address, or use the in-process"
                " executor"
            ) from None

    def _check_resources(self, ray: Any) -> None:
        # Of the largest machine: a worker does not span several.
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        for name, wanted in (("CPU", self.cpus_per_worker), ("GPU", self.gpus_per_worker)):
            offered = max((node.get(name, 0) for node in nodes), default=0)
            if wanted > offered:
                raise UnavailableError(
                    f"each Ray worker asks for {wanted:g} {name}, but no machine of Ray's offers more than"
                    f" {offered:g}; ask for less, or add machines"
                )


def _knock(address: str) -> None:
    """Raise ``OSError`` if nothing answers at ``HOST:PORT``; Ray itself would try for minutes."""
    if (place := re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)) is not None:
        socket.create_connection((place[1], int(place[2])), timeout=_KNOCK_SECONDS).close()


def _reason(error: BaseException) -> str:
    """Return an error in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _cause(error: BaseException | None) -> str:
    """Return in a line why a worker is gone, from the traceback that Ray tells where it raised something."""
    lines = [line.strip() for line in str(error).splitlines()]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt)\b", line)]
    return raised[-1] if raised else "its process died"


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set yet; undone on leaving."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep who hears SIGTERM: Ray would end the process with that number, which tells nobody how to go on."""
    heard = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and heard is not None:
            signal.signal(signal.SIGTERM, heard)


@contextmanager
def _silence(ray: Any) -> Iterator[None]:
    """Keep Ray from printing what it thinks of dying workers to standard output, which is the command's.

    It has no setting for that: ``log_to_driver`` concerns what workers print.
    """
    tune, module = logging.getLogger("ray.tune"), ray._private.worker
    level, shown = tune.level, getattr(module, "_worker_logs_enabled", True)
    tune.setLevel(logging.CRITICAL)
    module._worker_logs_enabled = False
    try:
        yield
    finally:
        tune.setLevel(level)
        module._worker_logs_enabled = shown


def _versions() -> dict[str, str]:
    """Return what an AP may depend on; machines that differ in it must not share a study."""
    found = {}
    for name in _VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


# -- the desk ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    """An arch to evaluate: all of it is text, which any version of Python unpacks."""

    ticket: int
    arch: str
    rival: str


@dataclass(frozen=True)
class _Answer:
    """What became of a ticket: an evaluation, or an error by its name.

    Errors that concern no arch have ticket -1.
    """

    ticket: int
    evaluation: Mapping[str, Any] | None = None
    error: str = ""
    message: str = ""


@dataclass
class Desk:
    """Where the driver puts jobs and takes answers, and workers take jobs and put answers. A Ray actor.

    All of it runs in one event loop, so that nothing happens in the middle of anything else.

    Attributes
    ----------
    retries
        How often a job is given out again.
    waiting
        Jobs that no worker has.
    held
        The job of each worker that has one, by the worker's name.
    living
        Workers that have reported for work and are not known to be gone.
    tries
        How often a job was given out and not answered, by ticket.
    answered
        Tickets that have their answer.
    answers
        Those that the driver has not fetched.
    failed_starts
        Workers that never reported for work, since the last that did.
    """

    retries: int
    waiting: deque[_Job] = field(default_factory=deque)
    held: dict[str, _Job] = field(default_factory=dict)
    living: set[str] = field(default_factory=set)
    tries: dict[int, int] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    answers: list[_Answer] = field(default_factory=list)
    failed_starts: int = 0
    closed: bool = False
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    # What the driver calls.

    async def put(self, jobs: Sequence[_Job]) -> None:
        """Take jobs in, to be done in this order."""
        async with self.changed:
            self.waiting.extend(jobs)
            self.changed.notify_all()

    async def take(self) -> list[_Answer]:
        """Return all new answers, once there are any."""
        async with self.changed:
            await self.changed.wait_for(lambda: self.answers)
            found, self.answers = self.answers, []
            return found

    async def withdraw(self) -> None:
        """Take back the jobs that no worker has yet."""
        self.waiting.clear()

    async def close(self) -> None:
        """Send everybody home."""
        async with self.changed:
            self.closed = True
            self.waiting.clear()
            self.changed.notify_all()

    async def is_closed(self) -> bool:
        """Return whether :meth:`close` was called."""
        return self.closed

    # What workers call, and Tune of them.

    async def report_for_work(self, worker: str) -> None:
        """Say that the worker is ready."""
        self.living.add(worker)
        self.failed_starts = 0

    async def next(self, worker: str, seconds: float, answer: _Answer | None = None) -> _Job | bool:
        """Take an answer in, if there is one, and return a job.

        True if no job came within the time, False if there is no more work.
        """
        async with self.changed:
            if answer is not None:
                self._bring(worker, answer)
            with suppress(TimeoutError):
                await asyncio.wait_for(
                    self.changed.wait_for(
                        lambda: self.closed or worker not in self.living or bool(self.waiting)
                    ),
                    seconds,
                )
            if self.closed or worker not in self.living:
                return False
            if not self.waiting:
                return True
            self.held[worker] = job = self.waiting.popleft()
            return job

    async def answer(self, worker: str, answer: _Answer) -> None:
        """Take an answer in without giving a job out."""
        async with self.changed:
            self._bring(worker, answer)

    def _bring(self, worker: str, answer: _Answer) -> None:
        if worker in self.held and self.held[worker].ticket == answer.ticket:
            del self.held[worker]
        self._answer(answer)

    async def refuse(self, error: str, message: str) -> None:
        """End the search with an error that no other worker would mend."""
        async with self.changed:
            self._answer(_Answer(-1, None, error, message))

    async def lost(self, worker: str, reason: str) -> None:
        """Give what the worker held to another one; Tune calls this when the worker is gone."""
        async with self.changed:
            if worker not in self.living:
                self.failed_starts += 1
                if self.failed_starts > self.retries:
                    self._answer(_Answer(-1, None, "RunError", _NO_START.format(self.failed_starts, reason)))
                return
            self.living.discard(worker)
            self.changed.notify_all()
            job = self.held.pop(worker, None)
            if job is None or job.ticket in self.answered:
                return
            self.tries[job.ticket] = tries = self.tries.get(job.ticket, 0) + 1
            if tries <= self.retries:
                self.waiting.appendleft(job)
            else:
                arch = arch_from_json(json.loads(job.arch)).id
                times = "once" if tries == 1 else f"{tries} times"
                self._answer(_Answer(job.ticket, None, "RunError", _FAILED.format(arch, times, reason)))

    def _answer(self, answer: _Answer) -> None:
        if answer.ticket not in self.answered:
            if answer.ticket >= 0:
                self.answered.add(answer.ticket)
            self.answers.append(answer)
            self.changed.notify_all()


_FAILED = (
    "evaluating {} failed on Ray, tried {} (the last time: {}); run the same search again to continue, or use"
    " the in-process executor to see why"
)
_NO_START = (
    "Ray's workers do not start, tried {} times (the last time: {}); every machine needs the same version of"
    " litepose-nas with its packages, and memory for a worker"
)


# -- the driver's side ---------------------------------------------------------------------------------------


class _RaySession:
    """The desk, and one Tune experiment whose trials are the workers, for as long as the search lasts."""

    def __init__(self, options: RayExecutor, evaluator: Evaluator, folder: Path) -> None:
        import ray as installed

        ray: Any = installed
        self.ray, self.options, self.evaluator, self.folder = ray, options, evaluator, folder
        self.tickets = 0
        self.ended: str | None = None
        self.thread = threading.Thread(target=self._tune, name="ray-tune", daemon=True)
        # It takes no core from the workers. Every worker may wait at it at once.
        actor = ray.remote(num_cpus=0, max_concurrency=4 * options.workers + 16)(Desk)
        if not ray.util.client.ray.is_connected():  # else the driver is on no machine of the cluster
            here = ray.get_runtime_context().get_node_id()
            strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
            actor = actor.options(scheduling_strategy=strategy)
        self.desk = actor.remote(options.retries)

    def run(self, archs: Sequence[Arch], rivals: Rivals) -> Iterator[tuple[int, Evaluation]]:
        first = self.tickets
        self.tickets += len(archs)
        jobs = [
            _Job(
                first + index,
                json.dumps(arch.to_json()),
                json.dumps(None if rival is None else rival.to_json()),
            )
            for index, (arch, rival) in enumerate(zip(archs, rivals, strict=True))
        ]
        # The longest first: the last ones to be done, which the other workers wait for, are then short.
        jobs.sort(key=lambda job: archs[job.ticket - first].cost(_JOINTS).macs, reverse=True)
        self._ask(self.desk.put.remote(jobs))
        if self.thread.ident is None:
            self.thread.start()
        left = set(range(first, self.tickets))
        try:
            while left:
                for answer in self._ask(self.desk.take.remote()):
                    if answer.ticket >= 0 and answer.ticket not in left:
                        continue  # of an earlier search, which ended without it
                    if answer.error:
                        raise _ERRORS[answer.error](answer.message)
                    left.discard(answer.ticket)
                    yield answer.ticket - first, Evaluation.from_json(answer.evaluation)
        finally:
            if left:
                self.desk.withdraw.remote()

    def _ask(self, reference: Any) -> Any:
        """Return what the desk answers, unless it or Tune is gone."""
        while not self.ray.wait([reference], timeout=_LOOK_SECONDS)[0]:
            if self.ended is not None:
                raise RunError(self.ended)
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            raise RunError(
                f"Ray lost the process that hands out evaluations: {_reason(error)}; what was evaluated is"
                " kept: run the same search again to continue"
            ) from None

    def close(self) -> None:
        """End the experiment, whatever it is doing."""
        with suppress(self.ray.exceptions.RayError):
            self.ray.get(self.desk.close.remote(), timeout=_JOIN_SECONDS)
        if self.thread.ident is not None:
            self.thread.join(_JOIN_SECONDS)
        self.ray.kill(self.desk)

    def _tune(self) -> None:
        """Run the experiment to its end; however it ends, the waiting search is told."""
        try:
            _experiment(self)
            self.ended = "Ray Tune ended before the search did; run the same search again to continue"
        except Exception as error:  # whatever Tune raises must reach the waiting search, not die in a thread
            self.ended = (
                f"Ray Tune stopped: {type(error).__name__}: {_reason(error)}; run the same search again"
                " to continue"
            )


def _experiment(session: _RaySession) -> None:
    """Run one Tune experiment that keeps the workers alive until the desk closes."""
    import ray
    from ray import tune
    from ray.tune.search import Searcher

    class Hiring(Searcher):
        """Suggests another worker whenever there are too few."""

        def __init__(self, desk: Any) -> None:
            super().__init__()
            self.desk = desk

        def suggest(self, trial_id: str) -> Any:
            if ray.get(self.desk.is_closed.remote()):
                return Searcher.FINISHED
            return {"worker": trial_id}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            """Learn nothing: workers have no results."""

        def save(self, checkpoint_path: str) -> None:
            """Keep nothing: the search's own study is the record."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing: see :meth:`save`."""

    class Obituaries(tune.Callback):
        """Tells the desk of workers that are gone."""

        def __init__(self, desk: Any) -> None:
            self.desk = desk

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ray.get(self.desk.lost.remote(trial.trial_id, _cause(trial.get_error())))

    class Closing(tune.Stopper):
        """Stops everything once the desk is closed."""

        def __init__(self, desk: Any) -> None:
            self.desk, self.looked = desk, 0.0

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            if time.monotonic() - self.looked < _LOOK_SECONDS:
                return False
            self.looked = time.monotonic()
            return bool(ray.get(self.desk.is_closed.remote()))

    options = session.options
    worker = tune.with_parameters(
        _worker_class(),
        evaluator=session.evaluator,
        desk=session.desk,
        threads=options.threads,
        versions=_versions(),
        folder=Path.cwd(),
    )
    tuner = tune.Tuner(
        tune.with_resources(worker, {"cpu": options.cpus_per_worker, "gpu": options.gpus_per_worker}),
        tune_config=tune.TuneConfig(
            search_alg=Hiring(session.desk),
            num_samples=-1,
            max_concurrent_trials=options.workers,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(session.folder.resolve()),
            stop=Closing(session.desk),
            callbacks=[Obituaries(session.desk)],
            verbose=0,
        ),
    )
    tuner.fit()


# -- the worker's side ---------------------------------------------------------------------------------------


def _use_threads(count: int) -> None:
    """Compute with so many threads, whatever the environment says: other workers have the other cores."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)
    if (cv2 := sys.modules.get("cv2")) is not None:
        cv2.setNumThreads(count)


def _worker_class() -> type:
    """Return the Trainable that runs on the workers: it takes one job after the other from the desk."""
    import ray
    from ray import tune

    class Worker(tune.Trainable):
        """Evaluates archs until the desk closes. A step of Tune's is some seconds of that."""

        def setup(
            self,
            config: dict[str, Any],
            evaluator: Evaluator | None = None,
            desk: Any = None,
            threads: int = 1,
            versions: Mapping[str, str] | None = None,
            folder: Path = Path(),
        ) -> None:
            if evaluator is None:
                raise RunError("a Ray worker was set up without its evaluator")
            with suppress(OSError):  # where images are named by relative paths, it has to be there
                os.chdir(folder)
            self.evaluator, self.desk, self.name, self.done = evaluator, desk, config["worker"], 0
            here = _versions()
            for name, version in (versions or {}).items():
                if here.get(name) != version:
                    message = (
                        f"Ray's machine '{socket.gethostname()}' has {name} {here.get(name, '(none)')}, but"
                        f" the search runs with {version}, and their APs may differ: install the same there"
                    )
                    ray.get(desk.refuse.remote("UnavailableError", message))
            _use_threads(threads)
            ray.get(desk.report_for_work.remote(self.name))

        def step(self) -> dict[str, Any]:
            until, answer = time.monotonic() + _STEP_SECONDS, None
            while (left := until - time.monotonic()) > 0:
                job = ray.get(self.desk.next.remote(self.name, left, answer))
                if isinstance(job, bool):
                    return {"evaluated": self.done, "done": not job}
                answer = self._evaluated(job)
                self.done += 1
            ray.get(self.desk.answer.remote(self.name, answer))
            return {"evaluated": self.done}

        def _evaluated(self, job: _Job) -> _Answer:
            try:
                arch = arch_from_json(json.loads(job.arch))
                known = json.loads(job.rival)
                rival = None if known is None else Evaluation.from_json(known)
                return _Answer(job.ticket, evaluated(self.evaluator, arch, rival).to_json())
            except tuple(_ERRORS.values()) as error:
                kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
                return _Answer(job.ticket, None, kind, str(error))
            # Anything else ends the worker: a GPU that failed once fails again in the same process.

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            """Nothing to load: the search's own study is the record."""

    return Worker
