"""Reading ahead and writing behind: disk and codec work beside the network, in order, a few items at most."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

__all__ = ["WriteBehind", "read_ahead"]

T = TypeVar("T")
_END: Final = object()


def read_ahead(items: Iterable[T], depth: int = 3) -> Generator[T, None, None]:
    """Yield the items in order, while a thread gets up to ``depth`` of them ready.

    What getting an item raises is raised where the item would have come. When the consumer stops early the
    thread ends after the item that it is at.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        waiting: deque[Future[object]] = deque()

        def ask() -> None:
            waiting.append(pool.submit(next, source, _END))

        try:
            for _ in range(depth):
                ask()
            while (item := waiting.popleft().result()) is not _END:
                ask()
                yield item  # type: ignore[misc]
        finally:
            for each in waiting:
                each.cancel()


class WriteBehind(Generic[T]):
    """Calls a function on items in order, in a thread that may lie ``depth`` items behind.

    Used as a context. On leaving, also on Ctrl-C or an error, everything handed over is still worked off.
    What the function raises is raised at the next call or on leaving, and no later item is worked on.
    """

    def __init__(self, work: Callable[[T], None], depth: int = 3) -> None:
        self._work = work
        self._depth = depth
        self._pool = ThreadPoolExecutor(1, "write-behind")
        self._waiting: deque[Future[None]] = deque()
        self._failed = False

    def __call__(self, item: T) -> None:
        """Hand over an item; waits while ``depth`` of them lie before it."""
        while len(self._waiting) >= self._depth:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._do, item))

    def _do(self, item: T) -> None:
        if self._failed:
            return
        try:
            self._work(item)
        except BaseException:
            self._failed = True
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        while self._waiting:
            self._waiting.popleft().result()
