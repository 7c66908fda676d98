"""Threads before and behind: order, bounds, errors at the right place, nothing lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from supernet.pose.pipeline import WriteBehind, read_ahead


def test_items_come_in_order_and_only_a_few_ahead() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for n in range(20):
            made.append(n)
            yield n

    for count, item in enumerate(read_ahead(source(), depth=3)):
        assert item == count
        time.sleep(0.002)
        assert len(made) <= count + 1 + 3
    assert made == list(range(20))
    assert list(read_ahead([], depth=2)) == []


def test_an_error_comes_where_its_item_would_have() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("third")

    ahead = read_ahead(source())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(ahead)


def test_a_consumer_that_stops_leaves_no_thread() -> None:
    before = threading.active_count()
    with closing(read_ahead(iter(range(1000)))) as ahead:
        assert next(ahead) == 0
    assert threading.active_count() == before


def test_work_is_done_in_order_beside_the_caller() -> None:
    done: list[tuple[int, int]] = []

    def work(item: int) -> None:
        time.sleep(0.001)
        done.append((item, threading.get_ident()))

    with WriteBehind(work, depth=2) as behind:
        for item in range(20):
            behind(item)
            assert len(done) >= item - 2  # never more than depth items behind
    assert [item for item, _ in done] == list(range(20))
    assert {thread for _, thread in done} - {threading.get_ident()} == {thread for _, thread in done}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_what_was_handed_over_is_worked_off_whatever_happens(stop: type[BaseException]) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        time.sleep(0.01)
        done.append(item)

    with pytest.raises(stop), WriteBehind(work, depth=5) as behind:
        for item in range(4):
            behind(item)
        raise stop
    assert done == [0, 1, 2, 3]


def test_a_failing_worker_is_heard_and_stops() -> None:
    tried: list[int] = []

    def work(item: int) -> None:
        tried.append(item)
        if item == 2:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), WriteBehind(work, depth=2) as behind:
        for item in range(100):
            behind(item)
    assert tried == [0, 1, 2]
    with pytest.raises(OSError, match="disk full"), WriteBehind(work, depth=9) as behind:
        behind(2)  # heard on leaving
