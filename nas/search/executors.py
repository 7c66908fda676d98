"""Where evaluations run. Whichever executor is used, a search with the same seed gives the same result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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
