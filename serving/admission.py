"""How many requests may be under way in one worker, and how long one may take. The work itself is done in threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, TypeVar

from serving.problem import Problem

T = TypeVar("T")


class Admission:
    """A few threads with a short queue in front; whoever finds it full is sent away at once."""

    def __init__(self, *, threads: int, places: int, timeout_s: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="rollout")
        self._places = BoundedSemaphore(places)
        self._timeout_s = timeout_s

    async def run(self, work: Callable[..., T], *args: Any) -> T:
        """Runs `work(*args)` in a thread; raises Problem if the house is full or the deadline passes.

        Work that has begun cannot be stopped: it keeps its place until it is done, so late work counts as work.
        """
        if not self._places.acquire(blocking=False):
            raise Problem(
                "too_many_requests",
                "Too many requests are under way. Try again in a second.",
                headers={"retry-after": "1"},
            )
        try:
            future: Future[T] = self._executor.submit(work, *args)
        except BaseException:
            self._places.release()
            raise
        future.add_done_callback(lambda _: self._places.release())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout_s)
        except TimeoutError as error:
            message = f"The forecast was not done after {self._timeout_s:g} s. Send fewer series, or try again later."
            raise Problem("deadline_passed", message) from error

    def close(self) -> None:
        """Takes nothing more, and waits for no one."""
        self._executor.shutdown(wait=False, cancel_futures=True)
