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
from serving.errors import Problem

T = TypeVar("T")
_MOST_WAIT_S = 60  # that a client is told; by then everything may be otherwise
_PAUSE_S = 0.02  # between looks at a full house
_SOON_S = 0.1  # after which it is worth to look whether the client still waits
_SHARE = 0.2  # of the latest work in the mean


class _Watch:
    """Looks whether the client is still there, where the answer takes longer than most; work for nobody is given up."""

    def __init__(
        self, leaves: Callable[[], Coroutine[Any, Any, None]], answer: asyncio.Future[Any], deadline: Deadline
    ) -> None:
        self._leaves, self._answer, self._deadline = leaves, answer, deadline
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_SOON_S, self._begin)
        self.left = False

    def end(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        await self._leaves()
        self.left = True
        self._deadline.left_alone.set()
        self._answer.cancel()


class _Places:
    """Those that are taken, of so many. They are taken where requests come in, and given back by threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = Lock()
        self.taken = 0

    def take(self) -> bool:
        """Whether there was one left."""
        with self._lock:
            if self.taken == self._most:
                return False
            self.taken += 1
            return True

    def give_back(self) -> None:
        """One is free again."""
        with self._lock:
            self.taken -= 1


class Admission:
    """A few threads with a short queue in front; whoever finds it full is sent away at once."""

    def __init__(self, *, threads: int, places: int, timeout_s: float) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="rollout")
        self._places = _Places(places)
        self._timeout_s = timeout_s
        self._rounds = places / threads  # that a full house has to work through
        self._mean_s = 0.0
        self._came = 0  # those who would have been answered at once

    def deadline(self) -> Deadline:
        """That of a request which comes now."""
        return Deadline.after(self._timeout_s)

    async def run(
        self,
        work: Callable[..., T],
        *args: Any,
        deadline: Deadline | None = None,
        wait: bool = False,
        leaves: Callable[[], Coroutine[Any, Any, None]] | None = None,
        admitted: Callable[[], None] = lambda: None,
        at_once: Callable[[], T | None] | None = None,
    ) -> T:
        """Runs `work(*args)` in a thread; raises Problem if the house is full, the deadline passes or the client leaves.

        With `wait` a full house is waited for: what was begun is gone on with. `leaves` returns when the client has left;
        `admitted` is called when there is a place and the work waits for its turn. `at_once` is asked first, here and not
        in a thread, where nothing else is under way: it gives the answer, if that takes no more than a moment, or None.

        Work that has begun keeps its place until it is done, so late work counts as work; it is for the work to look at
        the deadline and to end.
        """
        deadline = deadline or self.deadline()
        while not self._places.take():
            if not wait or not deadline.left:
                raise self._full()
            await asyncio.sleep(_PAUSE_S)
        try:
            found = None if at_once is None else await self._at_once(at_once)
            if found is None:
                admitted()
                future: Future[T] = self._executor.submit(self._timed, work, *args)
        except BaseException:
            self._places.give_back()
            raise
        if found is not None:
            self._places.give_back()
            deadline.check()
            return found
        future.add_done_callback(lambda _: self._places.give_back())
        answer = asyncio.wrap_future(future)
        watch = None if leaves is None else _Watch(leaves, answer, deadline)
        try:
            return await asyncio.wait_for(answer, deadline.left)
        except TimeoutError as error:
            raise deadline.problem() from error
        except asyncio.CancelledError:
            if watch is not None and watch.left:
                raise deadline.nobody() from None
            raise
        finally:
            if watch is not None:
                watch.end()

    def close(self) -> None:
        """Takes nothing more, and waits for no one."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _at_once(self, work: Callable[[], T | None]) -> T | None:
        self._came += 1
        number = self._came
        if self._places.taken > 1:
            return None
        await asyncio.sleep(0)  # who came along takes a place meanwhile; they are answered in company
        return self._timed(work) if self._came == number and self._places.taken == 1 else None

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
