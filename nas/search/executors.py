"""Where evaluations run. Whichever executor is used, a search with the same seed gives the same result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from nas.search.evaluator import Evaluation, Evaluator, evaluated
from search_spaces import Arch

Rivals = Sequence[Evaluation | None]
"""For each arch what is known of a network that it must not be sure to lose against, or None."""


class Session(Protocol):
    """An evaluator that is set up to be used many times."""

    def run(self, archs: Sequence[Arch], rivals: Rivals) -> Iterator[tuple[int, Evaluation]]:
        """Yield ``(index into archs, evaluation)`` exactly once per arch, in the order in which they finish.

        Each arch is evaluated against its rival, where it has one.

        Raises
        ------
        LitePoseNasError
            What the evaluator raised, or :class:`RunError` if an arch could not be evaluated.
        """
        ...


class Executor(Protocol):
    """Runs evaluations somewhere."""

    def session(self, evaluator: Evaluator) -> AbstractContextManager[Session]:
        """Set the evaluator up where it will run, and release everything on leaving the context.

        Raises
        ------
        UnavailableError
            If this machine lacks what the executor needs.
        """
        ...


@dataclass(frozen=True)
class _Direct:
    evaluator: Evaluator

    def run(self, archs: Sequence[Arch], rivals: Rivals) -> Iterator[tuple[int, Evaluation]]:
        for index, (arch, rival) in enumerate(zip(archs, rivals, strict=True)):
            yield index, evaluated(self.evaluator, arch, rival)


@dataclass(frozen=True)
class InProcess:
    """Evaluates one arch after the other, here."""

    @contextmanager
    def session(self, evaluator: Evaluator) -> Iterator[Session]:
        """Yield a session that calls the evaluator directly."""
        yield _Direct(evaluator)


@dataclass
class Kept:
    """Another executor whose session stays open between searches that use the same evaluator.

    Starting one may take longer than a search. Use it as a context: leaving it ends the session.
    """

    executor: Executor
    _open: ExitStack = field(default_factory=ExitStack)
    _kept: tuple[Evaluator, Session] | None = None

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        self._kept = None
        self._open.close()

    @contextmanager
    def session(self, evaluator: Evaluator) -> Iterator[Session]:
        """Yield the session that is open, or open one."""
        if self._kept is None or self._kept[0] is not evaluator:
            self.__exit__()
            self._kept = evaluator, self._open.enter_context(self.executor.session(evaluator))
        yield self._kept[1]
