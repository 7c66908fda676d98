"""Evaluations on Ray Tune: on the cores and GPUs of this machine, or on a cluster."""

from __future__ import annotations

import json
import os
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    "TUNE_RESULT_BUFFER_LENGTH": "0",
    "TUNE_WARN_THRESHOLD_S": "3600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_JOIN_SECONDS = 30.0
_POLL_SECONDS = 0.05
"""How long Tune's loop rests where the queue is empty, so that it leaves the interpreter to the search."""


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
        Of a running cluster (``auto``, ``ray://host:10001``); None starts Ray on this machine.
    cpus_per_worker, gpus_per_worker
        What each worker reserves; fractions of a GPU share it.
    retries
        How often an arch is tried again after its worker failed.
    storage
        Where Tune keeps its own bookkeeping; a temporary folder by default. A cluster of several machines
        needs a folder that all of them see.
    """

    workers: int = 2
    address: str | None = None
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    retries: int = 2
    storage: Path | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"Ray needs at least 1 worker, not {self.workers}")
        if self.retries < 0 or self.cpus_per_worker < 0 or self.gpus_per_worker < 0:
            raise InputError("Ray's retries, CPUs and GPUs per worker are numbers from 0 up")

    @contextmanager
    def session(self, evaluator: Evaluator) -> Iterator[Session]:
        """Start Ray (unless it runs already), yield a session, and stop what was started.

        Raises
        ------
        UnavailableError
            If Ray is not installed, no cluster answers at the address, or the workers do not fit.
        """
        try:
            import ray
            import ray.tune
        except ImportError:
            raise UnavailableError(
                "the Ray executor needs Ray Tune: pip install 'litepose-nas[ray]',"
                " or use the in-process executor"
            ) from None
        with _environment(_QUIET), tempfile.TemporaryDirectory(prefix="litepose-nas-ray-") as scratch:
            started = not ray.is_initialized()
            if started:
                self._start(ray)
            try:
                self._check_resources(ray)
                session = _TuneSession(self, evaluator, self.storage or Path(scratch))
                try:
                    yield session
                finally:
                    session.close()
            finally:
                if started:
                    ray.shutdown()

    def _start(self, ray: Any) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            # Offering what the workers reserve, so that a small machine can run more workers than cores.
            options.update(
                num_cpus=max(1, -(-self.workers * self.cpus_per_worker // 1)), include_dashboard=False
            )
        else:
            options.update(address=self.address)
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises a dozen kinds here; all mean that it cannot be reached
            where = f"at '{self.address}'" if self.address else "on this machine"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnavailableError(
                f"Ray cannot be reached {where}: {reason}; check the address, or use the in-process executor"
            ) from None

    def _check_resources(self, ray: Any) -> None:
        offered = ray.cluster_resources()
        for name, wanted in (("CPU", self.cpus_per_worker), ("GPU", self.gpus_per_worker)):
            if wanted > offered.get(name, 0):
                raise UnavailableError(
                    f"each Ray worker asks for {wanted:g} {name}, but Ray offers {offered.get(name, 0):g} in"
                    " all; ask for less, or add machines"
                )


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


@dataclass(frozen=True)
class _Outcome:
    """What became of one arch: an evaluation, or an error."""

    ticket: int
    evaluation: Evaluation | None = None
    error: LitePoseNasError | None = None


@dataclass
class _TuneSession:
    """One Tune experiment that lasts as long as the search; archs are handed to it through a queue.

    Starting an experiment takes seconds, so there is one for all generations: its searcher suggests what the
    queue holds, and its completion calls put outcomes into another queue, each ticket once.
    """

    options: RayExecutor
    evaluator: Evaluator
    folder: Path
    tickets: int = 0
    waiting: queue.Queue[tuple[int, Arch, Evaluation | None]] = field(default_factory=queue.Queue)
    outcomes: queue.Queue[_Outcome] = field(default_factory=queue.Queue)
    closing: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def run(self, archs: Sequence[Arch], rivals: Rivals) -> Iterator[tuple[int, Evaluation]]:
        open_tickets: dict[int, int] = {}
        for index, (arch, rival) in enumerate(zip(archs, rivals, strict=True)):
            open_tickets[self.tickets] = index
            self.waiting.put((self.tickets, arch, rival))
            self.tickets += 1
        if self.thread is None:
            self.thread = threading.Thread(target=self._tune, name="ray-tune", daemon=True)
            self.thread.start()
        while open_tickets:
            outcome = self.outcomes.get()
            if outcome.error is not None:
                raise outcome.error
            if outcome.ticket in open_tickets and outcome.evaluation is not None:
                yield open_tickets.pop(outcome.ticket), outcome.evaluation

    def close(self) -> None:
        """End the experiment, whatever it is doing."""
        self.closing.set()
        if self.thread is not None:
            self.thread.join(_JOIN_SECONDS)

    def _tune(self) -> None:
        """Run the experiment to its end; any failure of Tune itself becomes the outcome of all tickets."""
        try:
            _experiment(self)
        except Exception as error:  # whatever Tune raises must reach the waiting search, not die in a thread
            if not self.closing.is_set():
                reason = str(error).splitlines()[0] if str(error) else ""
                self.outcomes.put(
                    _Outcome(-1, error=RunError(f"Ray Tune stopped: {type(error).__name__}: {reason}"))
                )
        else:
            if not self.closing.is_set():
                self.outcomes.put(
                    _Outcome(-1, error=RunError("Ray Tune ended before the search did; run again"))
                )


@dataclass(frozen=True)
class _Channel:
    """The session as Tune's own objects hold it: Tune copies and saves those, but the session stays here."""

    session: _TuneSession

    def __deepcopy__(self, memo: object) -> _Channel:
        return self

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()


def _experiment(session: _TuneSession) -> None:
    """Run one Tune experiment that is fed by the session until it closes."""
    from ray import tune
    from ray.tune.search import Searcher

    class Feed(Searcher):
        """Suggests the archs of the queue, and hands each outcome back once."""

        def __init__(self, channel: _Channel) -> None:
            super().__init__()
            self.channel = channel
            self.running: dict[str, tuple[int, Arch]] = {}

        def suggest(self, trial_id: str) -> Any:
            if self.channel.session.closing.is_set():
                return Searcher.FINISHED
            try:
                ticket, arch, rival = self.channel.session.waiting.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                return None
            self.running[trial_id] = (ticket, arch)
            known = None if rival is None else rival.to_json()
            return {"arch": json.dumps(arch.to_json()), "rival": json.dumps(known)}

        def on_trial_complete(
            self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
        ) -> None:
            entry = self.running.pop(trial_id, None)
            if entry is not None:
                self.channel.session.outcomes.put(
                    _outcome(*entry, None if error else result, self.channel.session.options.retries)
                )

        def save(self, checkpoint_path: str) -> None:
            """Keep nothing: the search's own study is the record."""

        def restore(self, checkpoint_path: str) -> None:
            """Restore nothing: see :meth:`save`."""

    class Closing(tune.Stopper):
        """Stops everything once the session closes."""

        def __init__(self, channel: _Channel) -> None:
            self.channel = channel

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return self.channel.session.closing.is_set()

    channel = _Channel(session)
    options = session.options
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_worker_class(), evaluator=session.evaluator),
            {"cpu": options.cpus_per_worker, "gpu": options.gpus_per_worker},
        ),
        tune_config=tune.TuneConfig(
            search_alg=Feed(channel),
            num_samples=-1,
            max_concurrent_trials=options.workers,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(session.folder.resolve()),
            stop=Closing(channel),
            failure_config=tune.FailureConfig(max_failures=options.retries),
            verbose=0,
        ),
    )
    tuner.fit()


def _outcome(ticket: int, arch: Arch, result: Mapping[str, Any] | None, retries: int) -> _Outcome:
    if result is None or "outcome" not in result:
        times = f"{retries + 1} times" if retries else "once"
        message = (
            f"evaluating {arch.id} failed on Ray, tried {times}; run the same search again to continue,"
            " or use the in-process executor to see why"
        )
        return _Outcome(ticket, error=RunError(message))
    outcome = json.loads(result["outcome"])
    if "error" in outcome:
        return _Outcome(ticket, error=_ERRORS[outcome["error"]](outcome["message"]))
    return _Outcome(ticket, evaluation=Evaluation.from_json(outcome))


def _worker_class() -> type:
    """Return the Trainable that runs on the workers: set up once, reset for each further arch."""
    from ray import tune

    class Evaluate(tune.Trainable):
        """Evaluates one arch per trial."""

        def setup(self, config: dict[str, Any], evaluator: Evaluator | None = None) -> None:
            if evaluator is None:
                raise RunError("a Ray worker was set up without its evaluator")
            self.evaluator = evaluator

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.config = new_config
            return True

        def step(self) -> dict[str, Any]:
            arch = arch_from_json(json.loads(self.config["arch"]))
            try:
                known = json.loads(self.config["rival"])
                rival = None if known is None else Evaluation.from_json(known)
                outcome: dict[str, Any] = evaluated(self.evaluator, arch, rival).to_json()
            except tuple(_ERRORS.values()) as error:
                kind = next(name for name, known in _ERRORS.items() if isinstance(error, known))
                outcome = {"error": kind, "message": str(error)}
            return {"outcome": json.dumps(outcome), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
            return {}

        def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
            """Nothing to load: each arch is evaluated in one step."""

    return Evaluate
