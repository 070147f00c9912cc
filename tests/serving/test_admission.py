"""How many requests may be under way, and how long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from serving.admission import Admission
from serving.deadline import Deadline
from serving.problem import Problem


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def test_who_finds_the_house_full_is_sent_away_at_once(gate: threading.Event) -> None:
    async def story() -> None:
        admission = Admission(threads=1, places=2, timeout_s=5)
        inside = [asyncio.create_task(admission.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(Problem) as problem:
            await admission.run(gate.wait)
        assert (problem.value.status, problem.value.headers["retry-after"]) == (429, "1")
        gate.set()
        assert await asyncio.gather(*inside) == [True, True]
        assert await admission.run(lambda number: number + 1, 1) == 2
        admission.close()

    asyncio.run(story())


def test_work_that_is_late_is_given_up_and_keeps_its_place_until_it_is_done(gate: threading.Event) -> None:
    async def story() -> None:
        admission = Admission(threads=1, places=1, timeout_s=0.05)
        with pytest.raises(Problem) as problem:
            await admission.run(gate.wait)
        assert problem.value.status == 504
        with pytest.raises(Problem) as problem:
            await admission.run(gate.wait)
        assert problem.value.status == 429
        gate.set()
        await asyncio.sleep(0.05)
        assert await admission.run(lambda: "next") == "next"
        admission.close()

    asyncio.run(story())


def test_who_is_sent_away_is_told_how_long_the_queue_takes(gate: threading.Event) -> None:
    async def story() -> None:
        admission = Admission(threads=1, places=30, timeout_s=5)
        for _ in range(20):
            await admission.run(time.sleep, 0.1)
        inside = [asyncio.create_task(admission.run(gate.wait)) for _ in range(30)]
        await asyncio.sleep(0.05)
        with pytest.raises(Problem) as problem:
            await admission.run(gate.wait)
        gate.set()
        await asyncio.gather(*inside)
        admission.close()
        assert 2 <= int(problem.value.headers["retry-after"]) <= 5, "30 places, 0.1 s each"

    asyncio.run(story())


def test_work_that_looks_at_its_deadline_gives_its_thread_back() -> None:
    def work(deadline: Deadline) -> None:
        while True:
            deadline.check()
            time.sleep(0.005)

    async def story() -> None:
        admission = Admission(threads=1, places=1, timeout_s=5)
        deadline = admission.deadline().within(30)
        with pytest.raises(Problem) as problem:
            await admission.run(work, deadline, deadline=deadline)
        assert problem.value.status == 504
        await asyncio.sleep(0.05)
        assert await admission.run(lambda: "next") == "next"
        admission.close()

    asyncio.run(story())


def test_a_deadline_is_only_ever_made_sooner() -> None:
    deadline = Deadline.after(1)
    assert deadline.within(None) == deadline == deadline.within(5000)
    assert deadline.within(100).seconds == 0.1
    assert 0 < deadline.left <= 1
    assert Deadline(0.0, 0.0, threading.Event()).left == 0


def test_what_the_work_raises_comes_out(gate: threading.Event) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    async def story() -> None:
        admission = Admission(threads=1, places=1, timeout_s=5)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await admission.run(fails)
        admission.close()

    asyncio.run(story())


def test_work_for_a_client_who_left_is_given_up(gate: threading.Event) -> None:
    async def story() -> None:
        admission, began = Admission(threads=1, places=2, timeout_s=20), time.monotonic()
        left = asyncio.Event()

        async def leaves() -> None:
            await left.wait()

        def work(deadline: Deadline) -> None:
            while not gate.wait(0.01):
                deadline.check()

        deadlines = [admission.deadline() for _ in range(2)]
        asked = [asyncio.create_task(admission.run(work, one, deadline=one, leaves=leaves)) for one in deadlines]
        await asyncio.sleep(0.3)
        left.set()
        for one in asked:
            with pytest.raises(Problem) as problem:
                await one
            assert problem.value.status == 499
        assert await admission.run(lambda: "next") == "next", "the thread is free again"
        assert time.monotonic() - began < 10
        admission.close()

    asyncio.run(story())
