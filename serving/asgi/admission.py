"""How many requests may be under way in one worker, and how long one may take. The work itself is done in threads."""

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
_MAX_RETRY_AFTER_S = 60  # that a client is told; by then everything may be otherwise
_CAPACITY_POLL_S = 0.02  # between looks at a full house
_DISCONNECT_CHECK_DELAY_S = 0.1  # after which it is worth to look whether the client still waits
_MEAN_SMOOTHING = 0.2  # of the latest work in the mean


class _DisconnectWatcher:
    """Looks whether the client is still there, where the answer takes longer than most; work for nobody is given up."""

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
    """Those that are taken, of so many. They are taken where requests come in, and given back by threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self.in_use = 0

    def try_acquire(self) -> bool:
        """Whether there was one left."""
        with self._lock:
            if self.in_use == self._limit:
                return False
            self.in_use += 1
            return True

    def release(self) -> None:
        """One is free again."""
        with self._lock:
            self.in_use -= 1


class Admission:
    """A few threads with a short queue in front; whoever finds it full is sent away at once."""

    def __init__(self, *, threads: int, capacity: int, timeout_s: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="rollout")
        self._capacity = _Capacity(capacity)
        self._timeout_s = timeout_s
        self._queue_depth = capacity / threads  # that a full house has to work through
        self._mean_s = 0.0
        self._arrivals = 0  # those who would have been answered at once

    def new_deadline(self) -> Deadline:
        """That of a request which comes now."""
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
        """Runs `work(*args)` in a thread; raises Problem if the house is full, the deadline passes or the client leaves.

        With `wait_for_capacity` a full house is waited for: what was begun is gone on with. `wait_for_disconnect` returns when the client has left;
        `on_admitted` is called when there is a place and the work waits for its turn. `run_immediately` is asked first, here and not
        in a thread, where nothing else is under way: it gives the answer, if that takes no more than a moment, or None.

        Work that has begun keeps its place until it is done, so late work counts as work; it is for the work to look at
        the deadline and to end.
        """
        deadline = deadline or self.new_deadline()
        while not self._capacity.try_acquire():
            if not wait_for_capacity or not deadline.remaining_s:
                raise self._overload_error()
            await asyncio.sleep(_CAPACITY_POLL_S)
        try:
            found = None if run_immediately is None else await self._run_immediately(run_immediately)
            if found is None:
                on_admitted()
                future: Future[T] = self._executor.submit(self._run_timed, work, *args)
        except BaseException:
            self._capacity.release()
            raise
        if found is not None:
            self._capacity.release()
            deadline.check()
            return found
        future.add_done_callback(lambda _: self._capacity.release())
        answer = asyncio.wrap_future(future)
        watch = None if wait_for_disconnect is None else _DisconnectWatcher(wait_for_disconnect, answer, deadline)
        try:
            return await asyncio.wait_for(answer, deadline.remaining_s)
        except TimeoutError as error:
            raise deadline.timeout_error() from error
        except asyncio.CancelledError:
            if watch is not None and watch.disconnected:
                raise deadline.client_disconnected_error() from None
            raise
        finally:
            if watch is not None:
                watch.stop()

    def close(self) -> None:
        """Takes nothing more, and waits for no one."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _run_immediately(self, work: Callable[[], T | None]) -> T | None:
        self._arrivals += 1
        number = self._arrivals
        if self._capacity.in_use > 1:
            return None
        await asyncio.sleep(0)  # who came along takes a place meanwhile; they are answered in company
        return self._run_timed(work) if self._arrivals == number and self._capacity.in_use == 1 else None

    def _run_timed(self, work: Callable[..., T], *args: Any) -> T:
        began = time.monotonic()
        try:
            return work(*args)
        finally:
            self._mean_s += _MEAN_SMOOTHING * (time.monotonic() - began - self._mean_s)

    def _overload_error(self) -> ApiError:
        seconds = min(_MAX_RETRY_AFTER_S, max(1, math.ceil(self._queue_depth * self._mean_s)))
        return ApiError(
            "too_many_requests",
            f"Too many requests are under way. Try again in {seconds} s.",
            headers={"retry-after": str(seconds)},
        )
