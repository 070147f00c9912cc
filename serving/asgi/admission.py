"""Admission control: how many requests may be in progress in one worker, and for how long. The work runs in threads."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

from serving.deadline import Deadline
from serving.errors import ApiError

T = TypeVar("T")
_MAX_RETRY_AFTER_S = 60  # an estimate further ahead is worth little
_CAPACITY_POLL_S = 0.02  # between attempts to acquire capacity
_DISCONNECT_CHECK_DELAY_S = 0.1  # most requests finish before, and need no watcher
_MEAN_SMOOTHING = 0.2  # weight of the latest duration in the moving average


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


class _Capacity:
    """A counter of requests in progress, up to a limit. The event loop acquires it and threads release it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self.in_use = 0

    def try_acquire(self) -> bool:
        """Takes one unit and returns True, or returns False at the limit."""
        with self._lock:
            if self.in_use == self._limit:
                return False
            self.in_use += 1
            return True

    def release(self) -> None:
        """Returns one unit."""
        with self._lock:
            self.in_use -= 1


class Admission:
    """A small thread pool with a short queue; a request that finds it full is rejected immediately with 429."""

    def __init__(self, *, threads: int, capacity: int, timeout_s: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="rollout")
        self._capacity = _Capacity(capacity)
        self._timeout_s = timeout_s
        self._queue_depth = capacity / threads  # requests per thread at full capacity
        self._mean_s = 0.0
        self._arrivals = 0  # requests that tried to run immediately

    def new_deadline(self) -> Deadline:
        """Returns the deadline of a request that arrives now."""
        return Deadline.after(self._timeout_s)

    async def run(
        self,
        work: Callable[..., T],
        *args: Any,
        deadline: Deadline | None = None,
        wait_for_capacity: bool = False,
        wait_for_disconnect: Callable[[], Coroutine[Any, Any, None]] | None = None,
        on_admitted: Callable[[], None] = lambda: None,
        run_immediately: Callable[[], T | None] | None = None,
    ) -> T:
        """Runs `work(*args)` in a thread; raises ApiError at full capacity (429), after the deadline (504) or a disconnect.

        Work that has started counts against the capacity until it ends, even after its deadline. The work itself must check the
        deadline and stop.

        Args:
            work: The function to run.
            args: Its arguments.
            deadline: The deadline of the request; a new one by default.
            wait_for_capacity: Wait at full capacity instead of raising. For further parts of a response that has started.
            wait_for_disconnect: Returns when the client has disconnected.
            on_admitted: Called when capacity was acquired, before the work is queued for a thread.
            run_immediately: Called first if no other request is in progress, in the event loop rather than in a thread. Returns
                the result if that takes only a few milliseconds, else None.
        """
        deadline = deadline or self.new_deadline()
        while not self._capacity.try_acquire():
            if not wait_for_capacity or not deadline.remaining_s:
                raise self._overload_error()
            await asyncio.sleep(_CAPACITY_POLL_S)
        try:
            result = None if run_immediately is None else await self._run_immediately(run_immediately)
            if result is None:
                on_admitted()
                future: Future[T] = self._executor.submit(self._run_timed, work, *args)
        except BaseException:
            self._capacity.release()
            raise
        if result is not None:
            self._capacity.release()
            deadline.check()
            return result
        future.add_done_callback(lambda _: self._capacity.release())
        pending = asyncio.wrap_future(future)
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
        """Rejects new work and cancels queued work, without waiting for running work."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _run_immediately(self, work: Callable[[], T | None]) -> T | None:
        self._arrivals += 1
        number = self._arrivals
        if self._capacity.in_use > 1:
            return None
        await asyncio.sleep(0)  # requests that arrived together acquire capacity meanwhile, and are batched instead
        return self._run_timed(work) if self._arrivals == number and self._capacity.in_use == 1 else None

    def _run_timed(self, work: Callable[..., T], *args: Any) -> T:
        started_at = time.monotonic()
        try:
            return work(*args)
        finally:
            self._mean_s += _MEAN_SMOOTHING * (time.monotonic() - started_at - self._mean_s)

    def _overload_error(self) -> ApiError:
        seconds = min(_MAX_RETRY_AFTER_S, max(1, math.ceil(self._queue_depth * self._mean_s)))
        return ApiError(
            "too_many_requests",
            f"Too many requests are in progress. Try again in {seconds} s.",
            headers={"retry-after": str(seconds)},
        )
