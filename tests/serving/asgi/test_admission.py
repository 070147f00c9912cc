"""How many requests may be under way, and how long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from serving.asgi.admission import Admission
from serving.deadline import Deadline
from serving.errors import ApiError


@pytest.fixture
def admission_gate() -> Iterator[threading.Event]:
    opened = threading.Event()
    yield opened
    opened.set()


def test_a_full_queue_rejects_immediately(admission_gate: threading.Event) -> None:
    async def story() -> None:
        admission = Admission(threads=1, capacity=2, timeout_s=5)
        inside = [asyncio.create_task(admission.run(admission_gate.wait)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError) as problem:
            await admission.run(admission_gate.wait)
        assert (problem.value.status, problem.value.headers["retry-after"]) == (429, "1")
        admission_gate.set()
        assert await asyncio.gather(*inside) == [True, True]
        assert await admission.run(lambda number: number + 1, 1) == 2
        admission.close()

    asyncio.run(story())


def test_overdue_work_is_abandoned_and_keeps_its_slot_until_done(admission_gate: threading.Event) -> None:
    async def story() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=0.05)
        with pytest.raises(ApiError) as problem:
            await admission.run(admission_gate.wait)
        assert problem.value.status == 504
        with pytest.raises(ApiError) as problem:
            await admission.run(admission_gate.wait)
        assert problem.value.status == 429
        admission_gate.set()
        await asyncio.sleep(0.05)
        assert await admission.run(lambda: "next") == "next"
        admission.close()

    asyncio.run(story())


def test_a_rejected_request_gets_the_expected_queue_time(admission_gate: threading.Event) -> None:
    async def story() -> None:
        admission = Admission(threads=1, capacity=30, timeout_s=5)
        for _ in range(20):
            await admission.run(time.sleep, 0.1)
        inside = [asyncio.create_task(admission.run(admission_gate.wait)) for _ in range(30)]
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError) as problem:
            await admission.run(admission_gate.wait)
        admission_gate.set()
        await asyncio.gather(*inside)
        admission.close()
        assert 2 <= int(problem.value.headers["retry-after"]) <= 5, "30 places, 0.1 s each"

    asyncio.run(story())


def test_work_that_checks_its_deadline_releases_its_thread() -> None:
    def work(deadline: Deadline) -> None:
        while True:
            deadline.check()
            time.sleep(0.005)

    async def story() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        deadline = admission.new_deadline().capped(30)
        with pytest.raises(ApiError) as problem:
            await admission.run(work, deadline, deadline=deadline)
        assert problem.value.status == 504
        await asyncio.sleep(0.05)
        assert await admission.run(lambda: "next") == "next"
        admission.close()

    asyncio.run(story())


def test_a_deadline_can_only_be_shortened() -> None:
    deadline = Deadline.after(1)
    assert deadline.capped(None) == deadline == deadline.capped(5000)
    assert deadline.capped(100).timeout_s == 0.1
    assert 0 < deadline.remaining_s <= 1
    assert Deadline(0.0, 0.0, threading.Event()).remaining_s == 0


def test_exceptions_of_the_work_propagate(admission_gate: threading.Event) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    async def story() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await admission.run(fails)
        admission.close()

    asyncio.run(story())


def test_work_for_a_disconnected_client_is_cancelled(admission_gate: threading.Event) -> None:
    async def story() -> None:
        admission, began = Admission(threads=1, capacity=2, timeout_s=20), time.monotonic()
        left = asyncio.Event()

        async def leaves() -> None:
            await left.wait()

        def work(deadline: Deadline) -> None:
            while not admission_gate.wait(0.01):
                deadline.check()

        deadlines = [admission.new_deadline() for _ in range(2)]
        asked = [
            asyncio.create_task(admission.run(work, one, deadline=one, wait_for_disconnect=leaves)) for one in deadlines
        ]
        await asyncio.sleep(0.3)
        left.set()
        for one in asked:
            with pytest.raises(ApiError) as problem:
                await one
            assert problem.value.status == 499
        assert await admission.run(lambda: "next") == "next", "the thread is free again"
        assert time.monotonic() - began < 10
        admission.close()

    asyncio.run(story())


def test_short_work_runs_inline_when_idle(admission_gate: threading.Event) -> None:
    async def story() -> None:
        admission, here = Admission(threads=1, capacity=3, timeout_s=5), threading.get_ident()
        ways: list[str] = []

        def turn() -> int:
            ways.append("turn")
            return threading.get_ident()

        async def ask() -> int:
            return await admission.run(
                turn, run_immediately=threading.get_ident, on_admitted=lambda: ways.append("waits")
            )

        assert await ask() == here
        assert ways == [], "it waits for no turn"
        found = await asyncio.gather(ask(), ask())
        assert here not in found
        assert sorted(ways) == ["turn", "turn", "waits", "waits"]
        slow = asyncio.create_task(admission.run(admission_gate.wait))
        await asyncio.sleep(0.05)
        behind = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        admission_gate.set()
        assert await behind != here
        assert await slow
        assert await ask() == here
        admission.close()

    asyncio.run(story())


def test_longer_work_is_queued() -> None:
    async def story() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        assert await admission.run(lambda: "turn", run_immediately=lambda: None) == "turn"
        admission.close()

    asyncio.run(story())


def test_inline_work_releases_its_slot_and_respects_the_deadline() -> None:
    def fails() -> str:
        raise ZeroDivisionError

    async def story() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await admission.run(lambda: "turn", run_immediately=fails)
            with pytest.raises(ApiError) as problem:
                await admission.run(lambda: "turn", run_immediately=lambda: "late", deadline=Deadline.after(0))
            assert problem.value.status == 504
            assert await admission.run(lambda: "turn", run_immediately=lambda: "here") == "here"
        admission.close()

    asyncio.run(story())


def test_a_full_queue_also_rejects_inline_work(admission_gate: threading.Event) -> None:
    async def story() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        inside = asyncio.create_task(admission.run(admission_gate.wait))
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError) as problem:
            await admission.run(lambda: "turn", run_immediately=lambda: "here")
        assert problem.value.status == 429
        admission_gate.set()
        await inside
        admission.close()

    asyncio.run(story())
