"""How many requests may be under way, and how long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from serving.asgi.admission import Admission
from serving.deadline import Deadline
from serving.errors import Problem


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


def test_work_of_a_moment_is_done_at_once_where_nothing_else_is_under_way(gate: threading.Event) -> None:
    async def story() -> None:
        admission, here = Admission(threads=1, places=3, timeout_s=5), threading.get_ident()
        ways: list[str] = []

        def turn() -> int:
            ways.append("turn")
            return threading.get_ident()

        async def ask() -> int:
            return await admission.run(turn, at_once=threading.get_ident, admitted=lambda: ways.append("waits"))

        assert await ask() == here
        assert ways == [], "it waits for no turn"
        found = await asyncio.gather(ask(), ask())
        assert here not in found
        assert sorted(ways) == ["turn", "turn", "waits", "waits"]
        slow = asyncio.create_task(admission.run(gate.wait))
        await asyncio.sleep(0.05)
        behind = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        gate.set()
        assert await behind != here
        assert await slow
        assert await ask() == here
        admission.close()

    asyncio.run(story())


def test_work_that_is_more_than_a_moments_gets_its_turn() -> None:
    async def story() -> None:
        admission = Admission(threads=1, places=1, timeout_s=5)
        assert await admission.run(lambda: "turn", at_once=lambda: None) == "turn"
        admission.close()

    asyncio.run(story())


def test_what_is_done_at_once_gives_its_place_back_and_keeps_to_the_deadline() -> None:
    def fails() -> str:
        raise ZeroDivisionError

    async def story() -> None:
        admission = Admission(threads=1, places=1, timeout_s=5)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await admission.run(lambda: "turn", at_once=fails)
            with pytest.raises(Problem) as problem:
                await admission.run(lambda: "turn", at_once=lambda: "late", deadline=Deadline.after(0))
            assert problem.value.status == 504
            assert await admission.run(lambda: "turn", at_once=lambda: "here") == "here"
        admission.close()

    asyncio.run(story())


def test_who_finds_the_house_full_is_not_answered_at_once_either(gate: threading.Event) -> None:
    async def story() -> None:
        admission = Admission(threads=1, places=1, timeout_s=5)
        inside = asyncio.create_task(admission.run(gate.wait))
        await asyncio.sleep(0.05)
        with pytest.raises(Problem) as problem:
            await admission.run(lambda: "turn", at_once=lambda: "here")
        assert problem.value.status == 429
        gate.set()
        await inside
        admission.close()

    asyncio.run(story())
