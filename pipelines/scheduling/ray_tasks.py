"""Steps of a long job as tasks on a Ray cluster: a thin wrapper around the same functions, for users of Ray (extra `ray`).

A step is a task of one CPU. Ray places it on any node, and calls it again elsewhere if its worker or its node dies. Plans, files
and resumption stay those of the job.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any, Literal, TypeVar

from forecaster.errors import ClusterError
from forecaster.installation import require_package
from forecaster.storage.addresses import redact_addresses

ADDRESS_VARIABLE = "RAY_ADDRESS"
MAX_RETRIES = 3  # of a step whose worker died; an exception of our own would be raised again, and ends the job at once
_STORE_BYTES = 100 << 20  # of a cluster on this machine: tasks pass plans and records, and data only through files

_StepT = TypeVar("_StepT")
_ResultT = TypeVar("_ResultT")

WorkPlace = Literal["local", "ray"]
"""Where steps run: on this machine, or as tasks on a Ray cluster."""


@dataclass(frozen=True)
class RayTasks:
    """Runs steps as tasks on the connected cluster (`forecaster.progress.steps.RunSteps`).

    Attributes:
        workers: Tasks that are submitted at the same time. The next one follows when one has finished, so that the memory of
            the driver and the queue of the cluster stay small.
    """

    workers: int

    def __call__(self, function: Callable[[_StepT], _ResultT], steps: Sequence[_StepT], /) -> Iterator[_ResultT]:
        """Yields the results of a function for each step as they finish.

        Raises ClusterError if a step lost its worker on every attempt; other errors as the function raises them.
        """
        ray = import_module("ray")
        task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=False)(_run_step)
        stored, remaining = ray.put(function), iter(steps)  # stored once, read by every node once
        pending = [task.remote(stored, step) for step in islice(remaining, self.workers)]
        try:
            while pending:
                [done], pending = ray.wait(pending, num_returns=1)
                pending += [task.remote(stored, step) for step in islice(remaining, 1)]
                yield _get_result(ray, done)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def require_ray() -> None:
    """Imports Ray; raises MissingPackage if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it on import, and sends statistics by default
    require_package("ray", purpose="tasks on a Ray cluster")


@contextmanager
def open_cluster(*, workers: int | None) -> Iterator[RayTasks]:
    """Connects to the cluster that the program has connected to, else to that of RAY_ADDRESS, else starts one on this machine.

    A connection of its own ends with the block, and so does a cluster that was started.

    Args:
        workers: Tasks at the same time; by default one for each CPU of the cluster.
    Raises:
        MissingPackage: Ray is not installed.
        ClusterError: The cluster does not respond, or has another version of Ray or Python.
    """
    require_ray()
    ray = import_module("ray")
    is_own = not ray.is_initialized()
    if is_own:
        _connect(ray, workers)
    try:
        yield RayTasks(workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
    finally:
        if is_own:
            ray.shutdown()


@contextmanager
def open_runner(place: WorkPlace, *, workers: int | None) -> Iterator[RayTasks | None]:
    """Yields what runs steps on a cluster (`open_cluster`); None for this machine, whose processes each job starts itself."""
    if place == "local":
        yield None
        return
    with open_cluster(workers=workers) as tasks:
        yield tasks


def _connect(ray: Any, workers: int | None) -> None:
    address = os.environ.get(ADDRESS_VARIABLE)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if not address:
        options |= {"num_cpus": workers, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, ray.exceptions.RayError) as error:
        shown = redact_addresses(address or "this machine")
        raise ClusterError(
            f"Expected a Ray cluster at {shown}; {_shorten(error)}. Check {ADDRESS_VARIABLE}, and that all nodes have the "
            "versions of Ray and Python that are installed here.",
            where=ADDRESS_VARIABLE,
        ) from error


def _run_step(function: Callable[[_StepT], _ResultT], step: _StepT) -> _ResultT:
    """Calls a function with a step; the task, whose process keeps the model that the function loads for the next one."""
    return function(step)


def _get_result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # the function raised; Ray has wrapped it
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"Expected a worker of the Ray cluster to finish each step within {1 + MAX_RETRIES} attempts; it died every time: "
            f"{_shorten(error)}. Finished steps are kept: run the same command again, with more memory for each worker if they "
            "lacked it.",
            where=ADDRESS_VARIABLE,
        ) from error


def _shorten(error: BaseException) -> str:
    """Returns the first line of an error, which Ray follows with pages of advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
