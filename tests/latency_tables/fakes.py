"""A runtime whose layers take exactly as long as the test says, on a clock of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np

from latency_tables import ProfileSettings, Runtime, Target, profile
from latency_tables.bench import LocalBench
from latency_tables.profiler import CANARY, MEMORY_CANARY
from latency_tables.runtimes import Prepared, Program
from search_spaces import InputError, Layer, Piece, layers_of

TARGET = Target("test-bench", "a clock", "fake", threads=2)
OVERHEAD_MS = 0.004

LAYERS = tuple(Layer("conv", 8 * (i + 1), 16, 1, 1, 1, 8, 8, norm=True) for i in range(40))

QUICK = ProfileSettings(seconds_per_layer=0.06, rounds=3, max_rounds=3, min_runs=3)


def true_ms(piece: Piece) -> float:
    """What a layer or a block takes, the cost of the call not included."""
    return sum(layer.macs for layer in layers_of(piece)) / 1e5


class FakeRuntime(Runtime):
    """Advances a clock instead of computing; ``slowdown(visit)`` stretches the visits one by one.

    Canaries are stretched likewise, or as a function of their own says.
    """

    name: ClassVar[str] = "fake"
    install: ClassVar[str] = "it cannot be installed"

    def __init__(
        self,
        slowdown: Callable[[int], float] = lambda visit: 1.0,
        version: str = "1.0",
        canaries: Callable[[int], float] | None = None,
    ) -> None:
        self.now = 0.0
        self.visits: Counter[str] = Counter()
        self.order: list[str] = []
        self._slowdown = slowdown
        self._version = version
        self._canaries = canaries

    def bench(self, precision: str = "fp32") -> LocalBench:
        """Where the fake is timed, on its own clock."""
        return LocalBench(self, TARGET.threads, precision, self.clock)

    def clock(self) -> float:
        return self.now

    def unavailable(self) -> str | None:
        return None

    def version(self) -> str:
        return self._version

    @contextmanager
    def prepare(self, piece: Piece | Program, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        assert not isinstance(piece, Program)
        self.visits[piece.key] += 1
        if piece not in (CANARY, MEMORY_CANARY):
            self.order.append(piece.key)
            yield self._takes(lambda: (true_ms(piece) + OVERHEAD_MS) * self._slowdown(len(self.order)))
        else:
            speed = self._canaries or self._slowdown
            yield self._takes(lambda: (true_ms(piece) + OVERHEAD_MS) * speed(len(self.order)))

    @contextmanager
    def prepare_empty(self, threads: int, precision: str = "fp32") -> Iterator[Prepared]:
        yield self._takes(lambda: OVERHEAD_MS)

    @contextmanager
    def prepare_model(
        self, path: Path, size: tuple[int, int], threads: int, precision: str = "fp32"
    ) -> Iterator[Prepared]:
        raise InputError(f"the network '{path}' cannot run on a clock")
        yield

    def _takes(self, ms: Callable[[], float]) -> Prepared:
        def run() -> None:
            self.now += ms() / 1e3

        return Prepared(run, lambda: (np.zeros((1, 1, 1, 1), dtype=np.float32),))


def profile_and_die(folder: str, after: int) -> None:
    """Profile until ``after`` visits have begun, then be killed the hard way."""
    runtime = FakeRuntime()

    def progress(done: int, total: int, text: str) -> None:
        if done >= after:
            os.kill(os.getpid(), signal.SIGKILL)

    profile(TARGET, LAYERS, out=folder, settings=QUICK, bench=runtime.bench(), progress=progress)


if __name__ == "__main__":
    profile_and_die(sys.argv[1], int(sys.argv[2]))
