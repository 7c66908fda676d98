"""Stand-alone trainings side by side, in processes of one torch thread each.

Networks small enough for phones gain little from threads inside a layer, so cores are best used by as many
trainings. Since each has one thread, what comes out does not depend on how many run at a time.

A process works for as long as its parent lives: killed in whatever way, the parent leaves none behind, and
the same command goes on from the trainings' own checkpoints.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType
from typing import Final, NoReturn, Protocol

import torch

from nas.data import Datasets
from nas.recipe import Recipe
from nas.trust.standalone import StandaloneFolder, Task, Workbench
from search_spaces import LitePoseNasError, RunError
from supernet.training import pick_device

__all__ = ["Told", "train_all", "usual_jobs"]

_TELL_EVERY_S: Final = 0.5
_STOP_WITHIN_S: Final = 60.0
"""Time in which a stopped training writes its checkpoint."""


class Told(Protocol):
    """Told how trainings go: after steps of one, and once it is finished (``done == steps``)."""

    def __call__(self, task: Task, done: int, steps: int) -> None: ...


def usual_jobs(recipe: Recipe) -> int:
    """Return how many trainings run at a time unless told otherwise: one per core, or one on a GPU."""
    if pick_device(recipe.train.device).type != "cpu":
        return 1
    return max(1, len(os.sched_getaffinity(0)) // recipe.train.shards)


def train_all(
    recipe: Recipe, folder: StandaloneFolder, tasks: Sequence[Task], jobs: int, told: Told, data: Datasets
) -> None:
    """Train what is not trained yet, ``jobs`` at a time; one that fails does not keep the others from it.

    Raises
    ------
    RunError
        If trainings failed: naming them and why, after all others are finished.
    """
    open_tasks = [task for task in tasks if folder.score(task) is None]
    if not open_tasks:
        return
    if jobs == 1 or len(open_tasks) == 1:
        failed = _one_after_another(Workbench(recipe, folder, data), open_tasks, told)
    else:
        with _Team(recipe, folder, min(jobs, len(open_tasks))) as team:
            failed = team.train(open_tasks, told)
    if failed:
        (first, why), *others = failed.items()
        more = f" (and {len(others)} more failed)" if others else ""
        raise RunError(f"the stand-alone training {first.name} failed{more}: {why}")


def _one_after_another(bench: Workbench, tasks: Sequence[Task], told: Told) -> dict[Task, str]:
    failed: dict[Task, str] = {}
    with _one_thread(bench.recipe):
        for task in tasks:
            try:
                _train(bench, task, told)
            except LitePoseNasError as error:
                failed[task] = str(error)
    return failed


def _train(bench: Workbench, task: Task, told: Told) -> None:
    """Train one network; only once it is scored is it told to be finished."""
    last = 0.0

    def after_step(step: int, steps: int, row: Mapping[str, float]) -> None:
        nonlocal last
        if step < steps and time.monotonic() - last > _TELL_EVERY_S:
            last = time.monotonic()
            told(task, step, steps)

    steps = int(bench.train(task, after_step).about["steps"])
    told(task, steps, steps)


@contextmanager
def _one_thread(recipe: Recipe) -> Iterator[None]:
    """On a CPU, let torch work with one thread while the block runs."""
    before = torch.get_num_threads()
    if pick_device(recipe.train.device).type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- processes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """What a process tells of its training."""

    done: int
    steps: int


@dataclass(frozen=True)
class _Failed:
    """Why a training cannot be finished."""

    why: str


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)  # as by kill -9: nothing more is written where another command may be at work by now


def _serve(link: Connection, recipe: Recipe, folder: StandaloneFolder) -> None:
    """Train what comes over the link until it is closed."""
    os.setsid()  # a terminal's Ctrl-C goes to the parent, which ends its processes in order
    threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()

    def tell(task: Task, done: int, steps: int) -> None:
        link.send(_Step(done, steps))

    with suppress(EOFError, KeyboardInterrupt, BrokenPipeError), _one_thread(recipe):
        bench: Workbench | None = None
        while True:
            task: Task = link.recv()
            try:
                bench = bench or Workbench(recipe, folder)
                _train(bench, task, tell)
            except LitePoseNasError as error:
                link.send(_Failed(str(error)))


@dataclass
class _Worker:
    """A process, and what it trains at the moment."""

    process: SpawnProcess
    link: Connection
    task: Task


@dataclass
class _Team:
    """Processes that train; ended in order when the block is left, however that comes."""

    recipe: Recipe
    folder: StandaloneFolder
    size: int
    _workers: list[_Worker] = field(default_factory=list)
    _restore: Callable[[], object] = lambda: None

    def train(self, tasks: Sequence[Task], told: Told) -> dict[Task, str]:
        """Train all; return those that failed, with the reason."""
        waiting, failed = deque(tasks), dict[Task, str]()
        while waiting and len(self._workers) < self.size:
            self._workers.append(self._start(waiting.popleft()))
        while self._workers:
            ready = wait([worker.link for worker in self._workers])
            for worker in [each for each in self._workers if each.link in ready]:
                try:
                    said = worker.link.recv()
                except (EOFError, ConnectionError):
                    worker.process.join()
                    failed[worker.task] = (
                        f"its process ended with code {worker.process.exitcode};"
                        " -9 means it was killed, as for want of memory (fewer --jobs)"
                    )
                    self._workers.remove(worker)
                    if waiting:
                        self._workers.append(self._start(waiting.popleft()))
                    continue
                if isinstance(said, _Failed):
                    failed[worker.task] = said.why
                else:
                    told(worker.task, said.done, said.steps)
                    if said.done < said.steps:
                        continue
                if waiting:
                    worker.task = waiting.popleft()
                    _hand(worker.link, worker.task)
                else:
                    self._workers.remove(worker)
                    worker.link.close()
                    worker.process.join()
        return failed

    def _start(self, task: Task) -> _Worker:
        context = multiprocessing.get_context("spawn")
        mine, its = context.Pipe()
        process = context.Process(
            target=_serve, args=(its, self.recipe, self.folder), name=f"train-{task.name}"
        )
        process.start()
        its.close()
        _hand(mine, task)
        return _Worker(process, mine, task)

    def __enter__(self) -> _Team:
        # The command line has a handler of its own, which does the same.
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            former = signal.signal(signal.SIGTERM, _interrupt)
            self._restore = lambda: signal.signal(signal.SIGTERM, former)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            for worker in self._workers:
                worker.process.terminate()  # a training writes its checkpoint first
            until = time.monotonic() + _STOP_WITHIN_S
            for worker in self._workers:
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.link.close()
            self._restore()


def _hand(link: Connection, task: Task) -> None:
    """Give a task to a process; one that has ended is noticed when its link is read."""
    with suppress(ConnectionError):
        link.send(task)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
