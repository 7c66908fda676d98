"""The desk between driver and workers, without Ray: every ticket is answered once, whoever dies when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.search.ray_executor import Desk, _Answer, _cause, _Job
from tests.nas.problems import small_space

ARCH = json.dumps(small_space().sample(np.random.default_rng(0)).to_json())


def job(ticket: int) -> _Job:
    return _Job(ticket, ARCH, "null")


def at_desk(scene: Callable[[Desk], Awaitable[Any]], retries: int = 2) -> Any:
    async def go() -> Any:
        return await asyncio.wait_for(scene(Desk(retries)), 10)

    return asyncio.run(go())


async def hired(desk: Desk, *workers: str) -> None:
    for worker in workers:
        await desk.report_for_work(worker)


def test_jobs_are_handed_out_in_order_and_answers_fetched_once() -> None:
    async def scene(desk: Desk) -> None:
        await hired(desk, "a", "b")
        await desk.put([job(0), job(1), job(2)])
        assert [await desk.next("a", 1), await desk.next("b", 1)] == [job(0), job(1)]
        assert await desk.next("a", 1, _Answer(0, {"ap": 0.5})) == job(2)
        assert await desk.take() == [_Answer(0, {"ap": 0.5})]
        await desk.answer("b", _Answer(1, {"ap": 0.25}))
        assert await desk.take() == [_Answer(1, {"ap": 0.25})]

    at_desk(scene)


def test_who_waits_gets_the_job_that_comes_and_may_go_home_at_the_end() -> None:
    async def scene(desk: Desk) -> None:
        await hired(desk, "a", "b")
        assert await desk.next("a", 0.01) is True
        waiting = [asyncio.create_task(desk.next(worker, 9)) for worker in "ab"]
        await asyncio.sleep(0)
        await desk.put([job(0)])
        done, left = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [job(0)]
        await desk.close()
        assert await desk.is_closed()
        assert [await task for task in left] == [False]
        assert await desk.next("a", 9) is False

    at_desk(scene)


def test_the_job_of_a_dead_worker_is_the_next_one() -> None:
    async def scene(desk: Desk) -> None:
        await hired(desk, "a")
        await desk.put([job(0), job(1)])
        assert await desk.next("a", 1) == job(0)
        await desk.lost("a", "its process died")
        await hired(desk, "b")
        assert await desk.next("b", 1) == job(0)
        # Tune was wrong: the worker had only been out of reach. Whose answer comes first counts.
        await desk.answer("a", _Answer(0, {"ap": 0.5}))
        assert await desk.next("b", 1, _Answer(0, {"ap": 0.5})) == job(1)
        assert await desk.take() == [_Answer(0, {"ap": 0.5})]
        assert await desk.next("a", 9) is False, "and it gets no further job"

    at_desk(scene)


def test_a_worker_that_dies_waiting_takes_no_job_along() -> None:
    async def scene(desk: Desk) -> None:
        await hired(desk, "a")
        ghost = asyncio.create_task(desk.next("a", 9))
        await asyncio.sleep(0)
        await desk.lost("a", "its process died")
        await desk.put([job(0)])
        assert await ghost is False
        await hired(desk, "b")
        assert await desk.next("b", 1) == job(0)

    at_desk(scene)


@pytest.mark.parametrize(("retries", "times"), [(0, "once"), (2, "3 times")])
def test_what_kills_every_worker_is_given_up(retries: int, times: str) -> None:
    async def scene(desk: Desk) -> None:
        await desk.put([job(0)])
        for attempt in range(retries + 1):
            await hired(desk, f"w{attempt}")
            assert await desk.next(f"w{attempt}", 1) == job(0)
            last = attempt == retries
            await desk.lost(f"w{attempt}", "ValueError: no such stage" if last else "its process died")
        (answer,) = await desk.take()
        assert answer.error == "RunError"
        assert f"tried {times} (the last time: ValueError: no such stage)" in answer.message

    at_desk(scene, retries)


def test_workers_that_never_start_end_the_search() -> None:
    async def scene(desk: Desk) -> None:
        await desk.lost("a", "its process died")
        await hired(desk, "b")  # one that starts: the others were bad luck
        for worker in "cde":
            assert not desk.answers
            await desk.lost(worker, "its process died")
        (answer,) = await desk.take()
        assert answer.ticket == -1
        assert "Ray's workers do not start, tried 3 times (the last time: its process died)" in answer.message

    at_desk(scene)


def test_what_no_other_worker_would_mend_ends_the_search() -> None:
    async def scene(desk: Desk) -> None:
        await desk.refuse("UnavailableError", "another version")
        assert await desk.take() == [_Answer(-1, None, "UnavailableError", "another version")]

    at_desk(scene)


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.integers(1, 8),
    deeds=st.lists(
        st.tuples(st.sampled_from(["fetch", "finish", "die", "late"]), st.integers(0, 3)), max_size=60
    ),
)
def test_any_course_of_deaths_answers_every_ticket_once(jobs: int, deeds: list[tuple[str, int]]) -> None:
    async def scene(desk: Desk) -> None:
        await desk.put([job(ticket) for ticket in range(jobs)])
        lives = [0, 0, 0, 0]
        holds: dict[str, _Job] = {}
        fetched: list[int] = []
        for slot in range(4):
            await hired(desk, f"{slot}.0")
        for deed, slot in [*deeds, *(("finish", slot) for slot in range(4))]:
            worker = f"{slot}.{lives[slot]}"
            if deed == "fetch" and worker not in holds:
                found = await desk.next(worker, 0)
                if isinstance(found, _Job):
                    holds[worker] = found
            elif deed in ("finish", "late") and worker in holds:
                answer = _Answer(holds.pop(worker).ticket, {"by": worker})
                if deed == "late":
                    await desk.lost(worker, "its process died")
                    lives[slot] += 1
                    await hired(desk, f"{slot}.{lives[slot]}")
                await desk.answer(worker, answer)
            elif deed == "die":
                holds.pop(worker, None)
                await desk.lost(worker, "its process died")
                lives[slot] += 1
                await hired(desk, f"{slot}.{lives[slot]}")
        worker = f"0.{lives[0]}"
        while isinstance(found := await desk.next(worker, 0), _Job):
            await desk.answer(worker, _Answer(found.ticket, {"by": worker}))
        fetched = [answer.ticket for answer in await desk.take()]
        assert sorted(fetched) == list(range(jobs))
        assert not desk.held
        assert not desk.waiting

    at_desk(scene, retries=10**6)


def test_why_a_worker_is_gone_is_told_in_a_line() -> None:
    raised = "The actor died\n  File 'x.py', line 3\n    load()\nModuleNotFoundError: No module named 'x'\n"
    assert _cause(RuntimeError(raised)) == "ModuleNotFoundError: No module named 'x'"
    assert _cause(RuntimeError("The actor died unexpectedly.\n\tpid: 3")) == "its process died"
    assert _cause(None) == "its process died"
