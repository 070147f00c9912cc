"""Admission control: the number of requests in progress, their deadlines and their disconnects."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from serving.asgi.admission import MAX_GROUP_ITEMS, MAX_SHORT_STEPS, Admission
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


def test_short_work_does_not_wait_for_long_work(admission_gate: threading.Event) -> None:
    async def scenario() -> None:
        admission = Admission(threads=1, capacity=1, timeout_s=5)
        long_work = asyncio.create_task(admission.run(admission_gate.wait, steps=MAX_SHORT_STEPS + 1))
        await asyncio.sleep(0.05)
        assert await admission.run(lambda: "short", steps=MAX_SHORT_STEPS) == "short"
        with pytest.raises(ApiError) as error:
            await admission.run(admission_gate.wait, steps=MAX_SHORT_STEPS + 1)
        assert error.value.status == 429, "the capacity of long work is used"
        admission_gate.set()
        assert await long_work
        admission.close()

    asyncio.run(scenario())


def test_the_shortest_expected_work_is_next_unless_longer_work_has_waited(admission_gate: threading.Event) -> None:
    order: list[str] = []

    async def scenario() -> None:
        admission = Admission(threads=1, capacity=9, timeout_s=20)
        # One measurement: 0.1 s for 20,000 steps, so the others are expected to take 0.4, 0.8 and 0.15 s.
        await admission.run(_record, order, "measured", 0.1, steps=20_000)
        blocker = asyncio.create_task(admission.run(admission_gate.wait, steps=20_000))
        await asyncio.sleep(0.05)
        tasks = [
            asyncio.create_task(admission.run(_record, order, name, 0.0, steps=steps))
            for name, steps in [("long", 80_000), ("longer", 160_000), ("shorter", 30_000)]
        ]
        await asyncio.sleep(
            1.6
        )  # four times the difference of the expected seconds is 1.0 for "long", and 2.6 for "longer"
        late = asyncio.create_task(admission.run(_record, order, "late", 0.0, steps=30_000))
        await asyncio.sleep(0.05)
        admission_gate.set()
        await asyncio.gather(blocker, late, *tasks)
        admission.close()

    asyncio.run(scenario())
    assert order == ["measured", "shorter", "long", "late", "longer"]


def test_work_that_could_not_start_before_its_deadline_is_rejected(admission_gate: threading.Event) -> None:
    order: list[str] = []

    async def scenario() -> None:
        admission = Admission(threads=1, capacity=9, timeout_s=20)
        await admission.run(_record, order, "measured", 0.05, steps=20_000)
        blocker = asyncio.create_task(admission.run(admission_gate.wait, steps=20_000))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(admission.run(_record, order, "waiting", 0.0, steps=1_200_000))
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError) as error:
            await admission.run(
                _record, order, "rejected", 0.0, steps=1_300_000, deadline=admission.new_deadline().capped(2000)
            )
        assert error.value.status == 429
        assert 3 <= int(error.value.headers["retry-after"]) <= 5, "the waiting work is expected to take 3 s or more"
        admission_gate.set()
        await asyncio.gather(blocker, waiting)
        long_work = admission.run(_record, order, "idle", 0.0, steps=10**9, deadline=admission.new_deadline())
        assert await long_work is None, "an idle queue accepts work of any expected length"
        admission.close()

    asyncio.run(scenario())
    assert order == ["measured", "waiting", "idle"]


def test_one_slow_computation_says_little_about_the_next(admission_gate: threading.Event) -> None:
    order: list[str] = []

    async def scenario() -> None:
        admission = Admission(threads=1, capacity=9, timeout_s=20)
        await admission.run(_record, order, "imports a package", 0.5, steps=20_000)
        blocker = asyncio.create_task(admission.run(admission_gate.wait, steps=20_000))
        await asyncio.sleep(0.05)
        # At the measured 25 µs per step these would be 25 s each, and the second would be rejected.
        tasks = [
            asyncio.create_task(admission.run(_record, order, name, 0.0, steps=1_000_000))
            for name in ("first", "second")
        ]
        await asyncio.sleep(0.05)
        admission_gate.set()
        await asyncio.gather(blocker, *tasks)
        admission.close()

    asyncio.run(scenario())
    assert order == ["imports a package", "first", "second"]


def test_groupable_work_of_one_kind_that_waits_together_is_computed_together(admission_gate: threading.Event) -> None:
    groups: list[list[int]] = []

    def compute(numbers: Sequence[int]) -> list[int | Exception]:
        groups.append(list(numbers))
        admission_gate.wait(10)
        return [ZeroDivisionError() if number == 3 else 10 * number for number in numbers]

    async def scenario() -> None:
        admission = Admission(threads=1, capacity=99, timeout_s=5)

        def send(number: int, *, kind: str = "a", is_groupable: bool = True) -> asyncio.Task[int]:
            return asyncio.create_task(
                admission.run_grouped(compute, number, kind=kind, steps=1, is_groupable=is_groupable)
            )

        tasks = [send(0)]
        await asyncio.sleep(0.05)
        tasks += [send(number) for number in range(1, 5)]
        tasks += [send(5, kind="b"), send(6, is_groupable=False), *(send(number) for number in range(7, 50))]
        tasks[2].cancel()
        await asyncio.sleep(0.05)
        admission_gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        admission.close()
        assert isinstance(results[2], asyncio.CancelledError)
        assert isinstance(results[3], ZeroDivisionError)
        assert [result for index, result in enumerate(results) if index not in (2, 3)] == [
            10 * number for number in range(50) if number not in (2, 3)
        ]

    asyncio.run(scenario())
    assert groups[:4] == [[0], [1, 3, 4], [5], [6]]
    assert [len(group) for group in groups[4:]] == [MAX_GROUP_ITEMS, 43 - MAX_GROUP_ITEMS]


def _record(order: list[str], name: str, seconds: float) -> None:
    order.append(name)
    time.sleep(seconds)
