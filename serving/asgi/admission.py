"""Admission control: which work of one worker runs next, and which is rejected because it could not finish in time.

Work is measured in steps before it is computed (series times steps, plus series times horizon), and its expected seconds follow
from the speed of earlier work of the same kind. Short work has a thread of its own, so it never waits for a long computation.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from serving.deadline import Deadline
from serving.errors import ApiError

ItemT = TypeVar("ItemT")
T = TypeVar("T")
ComputeGroup = Callable[[Sequence[Any]], Sequence[Any]]  # items -> one result or exception for each

MAX_SHORT_STEPS = 1 << 14  # a full group of short work takes tens of milliseconds
MAX_GROUP_ITEMS = 32
# Work is overtaken by shorter work that arrives later, by up to so many times the difference of their expected seconds.
_OVERTAKING_FACTOR = 4.0
_INITIAL_SECONDS_PER_STEP = 1e-6  # until the first measurement of a kind of work
_RATE_SMOOTHING = 0.2  # weight of the latest measurement in the moving average
_MAX_RATE_GROWTH = (
    8.0  # of a measurement over the average, so that one import or one pause says little about the next request
)
_MAX_RETRY_AFTER_S = 60  # an estimate further ahead is worth little
_CAPACITY_POLL_S = 0.02  # between attempts to enter a full queue
_DISCONNECT_CHECK_DELAY_S = 0.1  # most requests finish before, and need no watcher


class _QueuedWork(NamedTuple):
    """Work in a queue; the fields before `number` are its order, and `number` is unique."""

    priority: float
    number: int
    kind: Hashable
    compute: ComputeGroup
    item: Any
    steps: int
    expected_s: float
    is_groupable: bool
    future: Future[Any]


class _WorkQueue:
    """Waiting work in the order of its priority, and the threads that compute it."""

    def __init__(self, name: str, *, threads: int, capacity: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._capacity = capacity
        self._lock = Lock()
        self._waiting: list[_QueuedWork] = []  # a heap
        self._running: dict[int, tuple[float, float]] = {}  # by number: start, and expected seconds
        self._seconds_per_step: dict[Hashable, float] = {}
        self._last_number = 0
        self._in_progress = 0  # waiting, or running, even after the deadline
        self._waiting_s = 0.0  # expected seconds of all waiting work
        self._active_threads = 0

    def submit(
        self, kind: Hashable, compute: ComputeGroup, item: Any, *, steps: int, is_groupable: bool, deadline: Deadline
    ) -> Future[Any]:
        """Queues work and returns its future.

        Raises ApiError (429) at full capacity, or if the work before it is not expected to end by the deadline. The future can be
        cancelled until a thread takes the work; work that has started counts against the capacity until it ends.
        """
        with self._lock:
            expected_s = self._seconds_per_step.get(kind, _INITIAL_SECONDS_PER_STEP) * steps
            priority = time.monotonic() + _OVERTAKING_FACTOR * expected_s
            # All of the waiting work is an upper bound of the work before this one, and enough in most cases.
            is_full, wait_s = self._in_progress >= self._capacity, self._waiting_s + self._running_seconds()
            if is_full or wait_s > self._threads * deadline.remaining_s:
                wait_s = self._running_seconds() + self._seconds_before(priority)
                if is_full or wait_s > self._threads * deadline.remaining_s:
                    raise _overload_error(wait_s / self._threads)
            self._in_progress += 1
            self._last_number += 1
            future: Future[Any] = Future()
            work = _QueuedWork(
                priority, self._last_number, kind, compute, item, steps, expected_s, is_groupable, future
            )
            heapq.heappush(self._waiting, work)
            self._waiting_s += expected_s
            needs_thread = self._active_threads < self._threads
            self._active_threads += needs_thread
        future.add_done_callback(self._leave)
        if needs_thread:
            self._executor.submit(self._compute_all)
        return future

    def close(self) -> None:
        """Cancels waiting work, without waiting for running work."""
        with self._lock:
            waiting, self._waiting, self._waiting_s = self._waiting, [], 0.0
        for work in waiting:
            work.future.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _running_seconds(self) -> float:
        """Returns the expected remaining seconds of the running work."""
        now = time.monotonic()
        return sum(max(0.0, started_at + expected_s - now) for started_at, expected_s in self._running.values())

    def _seconds_before(self, priority: float) -> float:
        """Returns the expected seconds of the waiting work that would be computed before `priority`."""
        return sum(
            work.expected_s for work in self._waiting if work.priority <= priority and not work.future.cancelled()
        )

    def _leave(self, _: Future[Any]) -> None:
        with self._lock:
            self._in_progress -= 1

    def _compute_all(self) -> None:
        """Computes the waiting work, group by group, until none is left."""
        while group := self._take_group():
            self._compute(group)

    def _compute(self, group: Sequence[_QueuedWork]) -> None:
        started_at = time.monotonic()
        try:
            results: Sequence[Any] = group[0].compute([work.item for work in group])
        except BaseException as error:
            results = [error] * len(group)
        self._observe(group, time.monotonic() - started_at)
        for work, result in zip(group, results, strict=True):
            if isinstance(result, BaseException):
                work.future.set_exception(result)
            else:
                work.future.set_result(result)

    def _take_group(self) -> list[_QueuedWork]:
        """Takes the first waiting work, and with it the groupable work that follows it directly; none ends the thread's task."""
        group: list[_QueuedWork] = []
        with self._lock:
            while self._waiting and len(group) < MAX_GROUP_ITEMS:
                first = self._waiting[0]
                if group and not (first.is_groupable and first.kind == group[0].kind):
                    break
                heapq.heappop(self._waiting)
                self._waiting_s -= first.expected_s
                if first.future.set_running_or_notify_cancel():
                    group.append(first)
                    self._running[first.number] = time.monotonic(), first.expected_s
                if group and not group[0].is_groupable:
                    break
            self._active_threads -= not group
        return group

    def _observe(self, group: Sequence[_QueuedWork], seconds: float) -> None:
        """Updates the speed of this kind of work, and removes the group from the running work."""
        kind, measured = group[0].kind, seconds / max(1, sum(work.steps for work in group))
        with self._lock:
            previous = self._seconds_per_step.get(kind)
            measured = min(measured, _MAX_RATE_GROWTH * (previous or _INITIAL_SECONDS_PER_STEP))
            smoothing = 1.0 if previous is None else _RATE_SMOOTHING
            self._seconds_per_step[kind] = (1 - smoothing) * (previous or 0.0) + smoothing * measured
            for work in group:
                del self._running[work.number]


class Admission:
    """Two queues of work: short work, and all other work. Work that cannot finish in time is rejected at once with 429."""

    def __init__(self, *, threads: int, capacity: int, timeout_s: float) -> None:
        """Creates the queues.

        Args:
            threads: Threads for work of more than `MAX_SHORT_STEPS` steps; short work has one thread.
            capacity: Largest number of requests in progress in each queue.
            timeout_s: Seconds until the deadline of a request.
        """
        self._short = _WorkQueue("short", threads=1, capacity=capacity)
        self._long = _WorkQueue("long", threads=threads, capacity=capacity)
        self._timeout_s = timeout_s

    def new_deadline(self) -> Deadline:
        """Returns the deadline of a request that arrives now."""
        return Deadline.after(self._timeout_s)

    async def run(
        self,
        function: Callable[..., T],
        *args: Any,
        steps: int = 0,
        deadline: Deadline | None = None,
        wait_for_capacity: bool = False,
        wait_for_disconnect: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> T:
        """Runs `function(*args)` in a thread; see `run_grouped`, where a call is the item and the function is the kind."""
        return await self.run_grouped(
            _call_one_by_one,
            partial(function, *args),
            kind=function,
            steps=steps,
            deadline=deadline,
            wait_for_capacity=wait_for_capacity,
            wait_for_disconnect=wait_for_disconnect,
        )

    async def run_grouped(
        self,
        compute: Callable[[Sequence[ItemT]], Sequence[T | Exception]],
        item: ItemT,
        *,
        kind: Hashable,
        steps: int,
        is_groupable: bool = False,
        deadline: Deadline | None = None,
        wait_for_capacity: bool = False,
        wait_for_disconnect: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> T:
        """Computes one item in a thread, and returns its result or raises its exception.

        Raises ApiError if the work is not admitted (429), after the deadline (504), or after a disconnect (499). The work itself
        must check the deadline and stop.

        Args:
            compute: Computes a group of items: one result or exception for each.
            item: The item.
            kind: Work of one kind has one speed and can form groups. There are few kinds.
            steps: The size of the work. It decides the queue, the order and the expected seconds.
            is_groupable: Whether the item may be computed together with other items of this kind.
            deadline: The deadline of the request; a new one by default.
            wait_for_capacity: Wait for the queue instead of raising 429. For further parts of a response that has started.
            wait_for_disconnect: Returns when the client has disconnected.
        """
        deadline = deadline or self.new_deadline()
        queue = self._short if steps <= MAX_SHORT_STEPS else self._long
        while True:
            try:
                future = queue.submit(kind, compute, item, steps=steps, is_groupable=is_groupable, deadline=deadline)
                break
            except ApiError:
                if not wait_for_capacity or not deadline.remaining_s:
                    raise
            await asyncio.sleep(_CAPACITY_POLL_S)
        pending: asyncio.Future[T] = asyncio.wrap_future(future)
        watcher = None if wait_for_disconnect is None else _DisconnectWatcher(wait_for_disconnect, pending, deadline)
        try:
            return await asyncio.wait_for(pending, deadline.remaining_s)
        except TimeoutError as error:
            raise deadline.timeout_error() from error
        except asyncio.CancelledError:
            if watcher is not None and watcher.disconnected:
                raise deadline.client_disconnected_error() from None
            raise
        finally:
            if watcher is not None:
                watcher.stop()

    def close(self) -> None:
        """Rejects new work and cancels waiting work, without waiting for running work."""
        self._short.close()
        self._long.close()


class _DisconnectWatcher:
    """Watches for a disconnect of the client during a slow request, and then cancels its work."""

    def __init__(
        self,
        wait_for_disconnect: Callable[[], Coroutine[Any, Any, None]],
        result: asyncio.Future[Any],
        deadline: Deadline,
    ) -> None:
        self._wait_for_disconnect, self._result, self._deadline = wait_for_disconnect, result, deadline
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_DISCONNECT_CHECK_DELAY_S, self._start)
        self.disconnected = False

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        await self._wait_for_disconnect()
        self.disconnected = True
        self._deadline.client_disconnected.set()
        self._result.cancel()


def one_by_one(compute: Callable[[ItemT], T]) -> Callable[[Sequence[ItemT]], list[T | Exception]]:
    """Returns a function that computes the items of a group one by one."""

    def compute_group(items: Sequence[ItemT]) -> list[T | Exception]:
        results: list[T | Exception] = []
        for item in items:
            try:
                results.append(compute(item))
            except Exception as error:  # the error of one item does not affect the others
                results.append(error)
        return results

    return compute_group


def _call(function: Callable[[], Any]) -> Any:
    return function()


_call_one_by_one = one_by_one(_call)


def _overload_error(wait_s: float) -> ApiError:
    seconds = min(_MAX_RETRY_AFTER_S, max(1, math.ceil(wait_s)))
    return ApiError(
        "too_many_requests",
        f"Too many requests are in progress. Try again in {seconds} s.",
        headers={"retry-after": str(seconds)},
    )
