"""Bench: where layers, blocks and networks are timed, this process or a device at the end of a link."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from latency_tables.machine import machine_state, processor_name, system_name
from latency_tables.runtimes import Prepared, Runtime
from latency_tables.timing import Clock, Samples, middle_of, take_pulse, take_samples
from search_spaces.layers import Piece

__all__ = ["Bench", "LocalBench"]

_PULSE_S = 2e-3


class Bench(ABC):
    """Times one thing after the other with one runtime, number of threads and precision.

    A context manager: what it holds (a connection, an agent) is let go at the end of the block.
    """

    runtime: str
    """Name of the runtime."""

    @abstractmethod
    def version(self) -> str:
        """Return the runtime's version where it runs."""

    @abstractmethod
    def machine(self) -> Mapping[str, Any]:
        """Return what tells about the machine's speed now; see :mod:`latency_tables.machine`."""

    @abstractmethod
    def system(self) -> Mapping[str, str]:
        """Return ``processor`` and ``system``: what the machine is, in words."""

    @abstractmethod
    def time(self, piece: Piece | None, seconds: float, min_runs: int) -> Samples:
        """Return timings of a layer or a block; of None: of a call that computes next to nothing.

        Parameters
        ----------
        piece
            What is timed.
        seconds
            Time to spend, warm-up included.
        min_runs
            Fewest timed runs.

        Raises
        ------
        UnavailableError
            If the runtime cannot run it.
        RunError
            If the device cannot be reached any more.
        """

    @abstractmethod
    def time_model(self, path: Path, size: tuple[int, int], seconds: float, min_runs: int) -> Samples:
        """Return timings of a whole exported network on one picture of ``size`` (height, width).

        Raises
        ------
        InputError
            If the file is missing or is no network that takes such a picture.
        """

    @contextmanager
    def watching(self, canaries: Sequence[Piece]) -> Iterator[None]:
        """Inside the block time these pieces before, after and amid everything else, see :class:`Samples`.

        A bench where each timing is a process of its own cannot, and returns samples without.
        """
        yield

    def close(self) -> None:  # noqa: B027  (most hold nothing)
        """Let go of what is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalBench(Bench):
    """Times in this process.

    Parameters
    ----------
    runtime
        The inference engine.
    threads
        Threads that it uses.
    precision
        Number format.
    clock
        Source of seconds.

    Raises
    ------
    UnavailableError
        If the runtime is not installed, or does not offer the precision.
    """

    def __init__(
        self, runtime: Runtime, threads: int, precision: str = "fp32", clock: Clock = time.perf_counter
    ) -> None:
        runtime.check(threads, precision)
        self.runtime = runtime.name
        self._engine, self._threads, self._precision, self._clock = runtime, threads, precision, clock
        self._watched: tuple[Prepared, ...] = ()

    def version(self) -> str:
        return self._engine.version()

    def machine(self) -> Mapping[str, Any]:
        return machine_state()

    def system(self) -> Mapping[str, str]:
        return {"processor": processor_name(), "system": system_name()}

    def time(self, piece: Piece | None, seconds: float, min_runs: int) -> Samples:
        prepared = (
            self._engine.prepare_empty(self._threads, self._precision)
            if piece is None
            else self._engine.prepare(piece, self._threads, self._precision)
        )
        with prepared as ready:
            return self._samples(ready, seconds, min_runs)

    def time_model(self, path: Path, size: tuple[int, int], seconds: float, min_runs: int) -> Samples:
        with self._engine.prepare_model(path, size, self._threads, self._precision) as network:
            return self._samples(network, seconds, min_runs)

    @contextmanager
    def watching(self, canaries: Sequence[Piece]) -> Iterator[None]:
        with ExitStack() as held:
            ready = (self._engine.prepare(piece, self._threads, self._precision) for piece in canaries)
            self._watched = tuple(map(held.enter_context, ready))
            try:
                yield
            finally:
                self._watched = ()

    def _samples(self, ready: Prepared, seconds: float, min_runs: int) -> Samples:
        pulses: list[list[float]] = []

        def pulse() -> None:
            pulses.append([take_pulse(c.run, seconds=_PULSE_S, clock=self._clock) for c in self._watched])

        samples = take_samples(
            ready.run,
            seconds=seconds,
            min_runs=min_runs,
            clock=self._clock,
            between=pulse if self._watched else None,
        )
        return replace(samples, canaries=middle_of(map(tuple, pulses)))
