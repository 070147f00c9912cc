"""How many requests may be under way in one worker, and how long one may take. The work itself is done in threads."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, TypeVar

from serving.deadline import Deadline
from serving.problem import Problem

T = TypeVar("T")
_MOST_WAIT_S = 60  # that a client is told; by then everything may be otherwise
_PAUSE_S = 0.02  # between looks at a full house
_SHARE = 0.2  # of the latest work in the mean


class Admission:
    """A few threads with a short queue in front; whoever finds it full is sent away at once."""

    def __init__(self, *, threads: int, places: int, timeout_s: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="rollout")
        self._places = BoundedSemaphore(places)
        self._timeout_s = timeout_s
        self._rounds = places / threads  # that a full house has to work through
        self._mean_s = 0.0

    def deadline(self) -> Deadline:
        """That of a request which comes now."""
        return Deadline.after(self._timeout_s)

    async def run(self, work: Callable[..., T], *args: Any, deadline: Deadline | None = None, wait: bool = False) -> T:
        """Runs `work(*args)` in a thread; raises Problem if the house is full or the deadline passes.

        With `wait` a full house is waited for: what was begun is gone on with.

        Work that has begun keeps its place until it is done, so late work counts as work; it is for the work to look at
        the deadline and to end.
        """
        deadline = deadline or self.deadline()
        while not self._places.acquire(blocking=False):
            if not wait or not deadline.left:
                raise self._full()
            await asyncio.sleep(_PAUSE_S)
        try:
            future: Future[T] = self._executor.submit(self._timed, work, *args)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), deadline.left)
        except TimeoutError as error:
            raise deadline.problem() from error

    def close(self) -> None:
        """Takes nothing more, and waits for no one."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _timed(self, work: Callable[..., T], *args: Any) -> T:
        began = time.monotonic()
        try:
            return work(*args)
        finally:
            self._mean_s += _SHARE * (time.monotonic() - began - self._mean_s)

    def _full(self) -> Problem:
        seconds = min(_MOST_WAIT_S, max(1, math.ceil(self._rounds * self._mean_s)))
        return Problem(
            "too_many_requests",
            f"Too many requests are under way. Try again in {seconds} s.",
            headers={"retry-after": str(seconds)},
        )
