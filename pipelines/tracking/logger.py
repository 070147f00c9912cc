"""A Lightning logger for an MLflow run that sends metrics in batches from a background thread."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from pytorch_lightning.loggers import Logger

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, RunTag

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")

# MLflow's limits.
MAX_METRICS_PER_CALL = 1000
MAX_PARAMS_PER_CALL = 100  # also the limit of tags per call
MAX_PARAM_LENGTH = 6000

_log = logging.getLogger(__name__)


class TrackingClient(Protocol):
    """The methods of `mlflow.MlflowClient` that a RunLogger uses."""

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> Any:
        """Stores at most 1000 metrics, 100 parameters or 100 tags."""

    def set_tag(self, run_id: str, key: str, value: Any) -> Any:
        """Stores one tag."""

    def set_terminated(self, run_id: str, status: str | None = None) -> Any:
        """Ends the run."""


class RunLogger(Logger):
    """Lightning's logger for one MLflow run: a queue, and a thread that sends it in batches.

    Logging only appends to the queue; the thread sends it every `interval_s` seconds and at `flush`. Metrics that cannot be
    sent stay queued for the next attempt, up to `capacity` metrics; beyond that the oldest are dropped and counted. Values
    that are not finite are not sent, because MLflow would store an infinity as 1.797e308; the tag `nonfinite` names them.

    Other recording work, such as uploading a file, can be submitted as a background task; the thread runs it at once, in
    parallel with the training.

    Lightning's `finalize` does not end the run, because backtests follow the fit; `close` ends it.
    """

    def __init__(
        self, client: TrackingClient, run_id: str, *, name: str = "", interval_s: float = 2.0, capacity: int = 100_000
    ) -> None:
        super().__init__()
        self._client = client
        self._run_id = run_id
        self._name = name
        self._interval_s = interval_s
        self._capacity = capacity
        self._condition = threading.Condition()
        self._metrics: deque[_MetricPoint] = deque()
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._tasks: deque[_BackgroundTask] = deque()
        self._nonfinite: dict[str, str] = {}
        self._dropped = 0
        self._failing = False
        self._flush_requested = False
        self._closed = False
        self._thread = threading.Thread(target=self._send_until_closed, name=f"run-{run_id}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._name

    @property
    def version(self) -> str:
        """The run's id."""
        return self._run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Queues metrics for the next batch."""
        now = int(time.time() * 1000)
        points = [_MetricPoint(key, float(value), now, step or 0) for key, value in metrics.items()]
        with self._condition:
            assert not self._closed, "metrics must be logged before the run ends"
            for point in points:
                if math.isfinite(point.value):
                    self._metrics.append(point)
                elif point.key not in self._nonfinite:
                    self._nonfinite[point.key] = f"{point.key} = {point.value} at step {point.step}"
                    _log.warning("A metric is not finite and is not recorded: %s.", self._nonfinite[point.key])
            self._drop_oldest()
            self._condition.notify()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Queues parameters; nested names are joined by dots."""
        with self._condition:
            self._params.update(flatten_params(vars(params) if isinstance(params, Namespace) else params))
            self._condition.notify()

    def log_tag(self, key: str, value: str) -> None:
        """Queues a tag for the next batch."""
        with self._condition:
            assert not self._closed, "tags must be logged before the run ends"
            self._tags[key] = value
            self._condition.notify()

    def submit(self, description: str, action: Callable[[], object]) -> None:
        """Queues a task for the background thread; a failure is logged as a warning with its description."""
        with self._condition:
            assert not self._closed, f"{description} must be submitted before the run ends"
            self._tasks.append(_BackgroundTask(description, action))
            self._condition.notify()

    def flush(self) -> None:
        """Requests that the queue is sent now, for example at the end of an epoch, and returns immediately."""
        with self._condition:
            self._flush_requested = True
            self._condition.notify()

    def finalize(self, status: str) -> None:
        """Flushes the queue when Lightning ends a fit; the run stays open."""
        self.flush()

    def close(self, status: RunStatus) -> None:
        """Sends the queue, waits for its tasks and ends the run; a second call does nothing."""
        with self._condition:
            if self._closed:
                return
            self._closed = True
            self._condition.notify()
        self._thread.join(timeout=60.0)
        lost_count = self._dropped + sum(map(len, (self._metrics, self._params, self._tags, self._tasks)))
        if lost_count:
            _log.warning("%d values of run %s could not be recorded.", lost_count, self._run_id)
        with log_tracking_errors(f"the end of run {self._run_id}"):
            if self._nonfinite:
                self._client.set_tag(self._run_id, "nonfinite", "; ".join(self._nonfinite.values())[:5000])
            self._client.set_terminated(self._run_id, status)

    def _send_until_closed(self) -> None:
        closed = False
        while not closed:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._metrics or self._params or self._tags or self._tasks or self._closed
                )
                self._condition.wait_for(
                    lambda: self._flush_requested or self._tasks or self._closed, timeout=self._interval_s
                )
                task = self._tasks[0] if self._tasks else None
                closed = self._closed and task is None
                if task is None:
                    self._flush_requested = False
                    metrics, params, tags = list(self._metrics), dict(self._params), dict(self._tags)
                    for queue in (self._metrics, self._params, self._tags):
                        queue.clear()
            if task is None:
                self._send_batch(metrics, params, tags)
            else:
                with log_tracking_errors(task.description):
                    task.run()
                self._tasks.popleft()  # only after it has run: tasks left at the end are counted as lost

    def _send_batch(self, metrics: Sequence[_MetricPoint], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        sent = 0
        try:
            for chunk in iter_chunks(params.items(), MAX_PARAMS_PER_CALL):
                self._send_params(chunk)
                params = {key: value for key, value in params.items() if key not in dict(chunk)}
            for chunk in iter_chunks(tags.items(), MAX_PARAMS_PER_CALL):
                self._send_tags(chunk)
                tags = {key: value for key, value in tags.items() if key not in dict(chunk)}
            for points in iter_chunks(metrics, MAX_METRICS_PER_CALL):
                self._send_metrics(points)
                sent += len(points)
        except Exception as error:  # of any kind: the thread must survive
            if not self._failing:
                _log.warning(
                    "Metrics of run %s are queued, because the store failed: %s", self._run_id, _to_single_line(error)
                )
            self._failing = True
            with self._condition:
                self._params = {**params, **self._params}  # values logged in the meantime are newer
                self._tags = {**tags, **self._tags}
                self._metrics.extendleft(reversed(metrics[sent:]))
                self._drop_oldest()
        else:
            if self._failing:
                _log.warning("The store accepts the metrics of run %s again.", self._run_id)
            self._failing = False

    def _send_metrics(self, points: Sequence[_MetricPoint]) -> None:
        from mlflow.entities import Metric

        def send(chunk: Sequence[_MetricPoint]) -> None:
            self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in chunk])

        self._send_with_bisection(points, send)

    def _send_params(self, params: Sequence[tuple[str, str]]) -> None:
        from mlflow.entities import Param

        def send(chunk: Sequence[tuple[str, str]]) -> None:
            self._client.log_batch(self._run_id, params=[Param(key, value) for key, value in chunk])

        self._send_with_bisection(params, send)

    def _send_tags(self, tags: Sequence[tuple[str, str]]) -> None:
        from mlflow.entities import RunTag

        def send(chunk: Sequence[tuple[str, str]]) -> None:
            self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in chunk])

        self._send_with_bisection(tags, send)

    def _send_with_bisection(self, items: Sequence[T], send: Any) -> None:
        """Sends a batch; halves it if MLflow rejects it, until only the invalid item is left out."""
        from mlflow.exceptions import MlflowException

        try:
            send(items)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            if len(items) == 1:
                _log.warning("MLflow rejects %s: %s", items[0], _to_single_line(error))
                return
            middle = len(items) // 2
            self._send_with_bisection(items[:middle], send)
            self._send_with_bisection(items[middle:], send)

    def _drop_oldest(self) -> None:
        while len(self._metrics) > self._capacity:
            self._metrics.popleft()
            self._dropped += 1


def flatten_params(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flattens parameters for MLflow: nested names are joined by dots, values are text of at most 6000 characters."""
    params: dict[str, str] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            params |= flatten_params(value, f"{prefix}{key}.")
        else:
            params[f"{prefix}{key}"] = str(value)[:MAX_PARAM_LENGTH]
    return params


@contextlib.contextmanager
def log_tracking_errors(description: str) -> Iterator[None]:
    """Logs an exception of the block as a warning and suppresses it, so that the training continues."""
    try:
        yield
    except Exception as error:  # of any kind: it must not end hours of training
        _log.warning("Could not record %s: %s", description, _to_single_line(error))


def iter_chunks(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """Iterates over the items in chunks of `size`."""
    iterator = iter(items)
    return iter(lambda: list(itertools.islice(iterator, size)), [])


class _MetricPoint(NamedTuple):
    """A metric, with its fields in the order of MLflow's `Metric`."""

    key: str
    value: float
    timestamp: int
    step: int


class _BackgroundTask(NamedTuple):
    """A task for the background thread, and its description for a warning."""

    description: str
    run: Callable[[], object]


def _to_single_line(error: Exception) -> str:
    return " ".join(str(error).split())
