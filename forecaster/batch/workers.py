"""Processes that run the steps of a batch, each with its own single-threaded engine; one worker is this process itself."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection
from typing import TypeVar

import pyarrow as pa  # type: ignore[import-untyped]

from forecaster.errors import BatchInterrupted

_StepT = TypeVar("_StepT")
_ResultT = TypeVar("_ResultT")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_QUEUED_PER_WORKER = 2


def run_in_processes(
    function: Callable[[_StepT], _ResultT], steps: Sequence[_StepT], *, workers: int
) -> Iterator[_ResultT]:
    """Yields the results of a function for each step as they finish.

    With one worker the steps run in this process, in order. Otherwise each of the spawned processes runs one step at a time, and
    ends with this process, however that ends.

    Raises BatchInterrupted if a process died, for example for lack of memory; other errors as the function raises them.
    """
    if workers == 1 or len(steps) <= 1:
        yield from map(function, steps)
        return
    with _single_threaded(), _open_pool(min(workers, len(steps))) as pool:
        remaining = iter(steps)
        pending: set[Future[_ResultT]] = set()
        try:
            pending |= {pool.submit(function, step) for step in islice(remaining, workers * _QUEUED_PER_WORKER)}
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= {pool.submit(function, step) for step in islice(remaining, len(done))}
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise BatchInterrupted(
                "Expected every worker to finish its shard; one was killed, as a system does that lacks memory. Run the same "
                "command again to continue; with fewer --workers it needs less memory."
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def count_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    """Limits a worker to one thread, and ends it when its parent has ended, even if that was killed."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_with, args=([parent.sentinel],), daemon=True).start()


def _exit_with(sentinels: Iterable[int]) -> None:
    connection.wait(list(sentinels))
    os._exit(1)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Sets the variables that limit numerical libraries to one thread, for the processes that start within the block."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
