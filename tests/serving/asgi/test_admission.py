"""Admission control: the number of requests in progress, their deadlines and their disconnects."""

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
    async def scenario() -> None:
        admission = Admission(threads=1, capacity=2, timeout_s=5)
        tasks = [asyncio.create_task(admission.run(admission_gate.wait)) for _ in range(2)]
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError) as error:
            await admission.run(admission_gate.wait)
        assert (error.value.status, error.value.headers["retry-after"]) == (429, "1")
        admission_gate.set()
        assert await asyncio.gather(*tasks) == [True, True]
        assert await admission.run(lambda number: number + 1, 1) == 2
        admission.close()

    asyncio.run(scenario())


def test_overdue_work_is_abandoned_and_keeps_its_slot_until_done(admission_gate: threading.Event) -> None:
    async def scenario() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=0.05)
        with pytest.raises(ApiError) as error:
            await admission.run(admission_gate.wait)
        assert error.value.status == 504
        with pytest.raises(ApiError) as error:
            await admission.run(admission_gate.wait)
        assert error.value.status == 429
        admission_gate.set()
        await asyncio.sleep(0.05)
        assert await admission.run(lambda: "next") == "next"
        admission.close()

    asyncio.run(scenario())


def test_a_rejected_request_gets_the_expected_queue_time(admission_gate: threading.Event) -> None:
    async def scenario() -> None:
        admission = Admission(threads=1, capacity=30, timeout_s=5)
        for _ in range(20):
            await admission.run(time.sleep, 0.1)
        tasks = [asyncio.create_task(admission.run(admission_gate.wait)) for _ in range(30)]
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError) as error:
            await admission.run(admission_gate.wait)
        admission_gate.set()
        await asyncio.gather(*tasks)
        admission.close()
        assert 2 <= int(error.value.headers["retry-after"]) <= 5, "30 queued requests of 0.1 s each"

    asyncio.run(scenario())


def test_work_that_checks_its_deadline_releases_its_thread() -> None:
    def work(deadline: Deadline) -> None:
        while True:
            deadline.check()
            time.sleep(0.005)

    async def scenario() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        deadline = admission.new_deadline().capped(30)
        with pytest.raises(ApiError) as error:
            await admission.run(work, deadline, deadline=deadline)
        assert error.value.status == 504
        await asyncio.sleep(0.05)
        assert await admission.run(lambda: "next") == "next"
        admission.close()

    asyncio.run(scenario())


def test_a_deadline_can_only_be_shortened() -> None:
    deadline = Deadline.after(1)
    assert deadline.capped(None) == deadline == deadline.capped(5000)
    assert deadline.capped(100).timeout_s == 0.1
    assert 0 < deadline.remaining_s <= 1
    assert Deadline(0.0, 0.0, threading.Event()).remaining_s == 0


def test_exceptions_of_the_work_propagate(admission_gate: threading.Event) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await admission.run(fails)
        admission.close()

    asyncio.run(scenario())


def test_work_for_a_disconnected_client_is_cancelled(admission_gate: threading.Event) -> None:
    async def scenario() -> None:
        admission, started_at = Admission(threads=1, capacity=2, timeout_s=20), time.monotonic()
        disconnected = asyncio.Event()

        async def wait_for_disconnect() -> None:
            await disconnected.wait()

        def work(deadline: Deadline) -> None:
            while not admission_gate.wait(0.01):
                deadline.check()

        deadlines = [admission.new_deadline() for _ in range(2)]
        tasks = [
            asyncio.create_task(
                admission.run(work, deadline, deadline=deadline, wait_for_disconnect=wait_for_disconnect)
            )
            for deadline in deadlines
        ]
        await asyncio.sleep(0.3)
        disconnected.set()
        for task in tasks:
            with pytest.raises(ApiError) as error:
                await task
            assert error.value.status == 499
        assert await admission.run(lambda: "next") == "next", "the thread is released"
        assert time.monotonic() - started_at < 10
        admission.close()

    asyncio.run(scenario())


def test_short_work_runs_inline_when_idle(admission_gate: threading.Event) -> None:
    async def scenario() -> None:
        admission, event_loop_thread = Admission(threads=1, capacity=3, timeout_s=5), threading.get_ident()
        calls: list[str] = []

        def run_in_thread() -> int:
            calls.append("thread")
            return threading.get_ident()

        async def run_work() -> int:
            return await admission.run(
                run_in_thread, run_immediately=threading.get_ident, on_admitted=lambda: calls.append("queued")
            )

        assert await run_work() == event_loop_thread
        assert calls == [], "it is not queued for a thread"
        threads = await asyncio.gather(run_work(), run_work())
        assert event_loop_thread not in threads
        assert sorted(calls) == ["queued", "queued", "thread", "thread"]
        blocker = asyncio.create_task(admission.run(admission_gate.wait))
        await asyncio.sleep(0.05)
        queued = asyncio.create_task(run_work())
        await asyncio.sleep(0.05)
        admission_gate.set()
        assert await queued != event_loop_thread
        assert await blocker
        assert await run_work() == event_loop_thread
        admission.close()

    asyncio.run(scenario())


def test_longer_work_is_queued() -> None:
    async def scenario() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        assert await admission.run(lambda: "thread", run_immediately=lambda: None) == "thread"
        admission.close()

    asyncio.run(scenario())


def test_inline_work_releases_its_slot_and_respects_the_deadline() -> None:
    def fails() -> str:
        raise ZeroDivisionError

    async def scenario() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                await admission.run(lambda: "thread", run_immediately=fails)
            with pytest.raises(ApiError) as error:
                await admission.run(lambda: "thread", run_immediately=lambda: "late", deadline=Deadline.after(0))
            assert error.value.status == 504
            assert await admission.run(lambda: "thread", run_immediately=lambda: "inline") == "inline"
        admission.close()

    asyncio.run(scenario())


def test_a_full_queue_also_rejects_inline_work(admission_gate: threading.Event) -> None:
    async def scenario() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        tasks = asyncio.create_task(admission.run(admission_gate.wait))
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError) as error:
            await admission.run(lambda: "thread", run_immediately=lambda: "inline")
        assert error.value.status == 429
        admission_gate.set()
        await tasks
        admission.close()

    asyncio.run(scenario())
