"""Lightning's logger for an MLflow run: a queue, and a thread that empties it in batches."""

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
MAX_PARAMS_PER_CALL = 100  # and tags
MAX_PARAM_LENGTH = 6000

_log = logging.getLogger(__name__)


class TrackingClient(Protocol):
    """What a RunLogger needs of a client: `mlflow.MlflowClient`, or a stub."""

    def log_batch(
        self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = (), tags: Sequence[RunTag] = ()
    ) -> Any:
        """Stores at most 1000 metrics, 100 parameters or 100 tags."""

    def set_tag(self, run_id: str, key: str, value: Any) -> Any:
        """Stores one tag."""

    def set_terminated(self, run_id: str, status: str | None = None) -> Any:
        """Ends the run."""


class RunLogger(Logger):
    """Lightning's logger for one MLflow run: a queue, and a thread that empties it in batches.

    Logging only appends; the thread sends every `interval_s`, and at `flush`. What cannot be sent is kept for the next
    attempt, up to `capacity` metrics: then the oldest go, and are counted. Values that are not finite are not sent,
    because MLflow would store an infinity as 1.797e308: the tag `nonfinite` names them instead.

    What else there is to record, such as a file, may be handed over as an errand: it is run at once, beside the training.

    Lightning's `finalize` does not end the run, because backtests follow the fit: `close` does.
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
            assert not self._closed, "metrics after the end of the run"
            for point in points:
                if math.isfinite(point.value):
                    self._metrics.append(point)
                elif point.key not in self._nonfinite:
                    self._nonfinite[point.key] = f"{point.key} = {point.value} at step {point.step}"
                    _log.warning("A metric is not finite and is left out: %s.", self._nonfinite[point.key])
            self._drop_oldest()
            self._condition.notify()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Queues parameters, nested names joined by dots."""
        with self._condition:
            self._params.update(flatten_params(vars(params) if isinstance(params, Namespace) else params))
            self._condition.notify()

    def log_tag(self, key: str, value: str) -> None:
        """Queues a tag for the next batch."""
        with self._condition:
            assert not self._closed, "a tag after the end of the run"
            self._tags[key] = value
            self._condition.notify()

    def submit(self, description: str, action: Callable[[], object]) -> None:
        """Has the thread do something small for the run; what fails is a warning that names it."""
        with self._condition:
            assert not self._closed, f"{description} after the end of the run"
            self._tasks.append(_BackgroundTask(description, action))
            self._condition.notify()

    def flush(self) -> None:
        """Has the queue sent now, at the end of an epoch say, without waiting for it."""
        with self._condition:
            self._flush_requested = True
            self._condition.notify()

    def finalize(self, status: str) -> None:
        """Lightning's end of a fit, which is not the end of the run."""
        self.flush()

    def close(self, status: RunStatus) -> None:
        """Does what is queued, and ends the run. Again: nothing."""
        with self._condition:
            if self._closed:
                return
            self._closed = True
            self._condition.notify()
        self._thread.join(timeout=60.0)
        lost = self._dropped + sum(map(len, (self._metrics, self._params, self._tags, self._tasks)))
        if lost:
            _log.warning("%d values of run %s could not be recorded.", lost, self._run_id)
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
                errand = self._tasks[0] if self._tasks else None
                closed = self._closed and errand is None
                if errand is None:
                    self._flush_requested = False
                    metrics, params, tags = list(self._metrics), dict(self._params), dict(self._tags)
                    for queue in (self._metrics, self._params, self._tags):
                        queue.clear()
            if errand is None:
                self._send_batch(metrics, params, tags)
            else:
                with log_tracking_errors(errand.description):
                    errand.run()
                self._tasks.popleft()  # not before it is done: what is left at the end is told

    def _send_batch(self, metrics: Sequence[_MetricPoint], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        sent = 0
        try:
            for some in iter_chunks(params.items(), MAX_PARAMS_PER_CALL):
                self._send_params(some)
                params = {key: value for key, value in params.items() if key not in dict(some)}
            for some in iter_chunks(tags.items(), MAX_PARAMS_PER_CALL):
                self._send_tags(some)
                tags = {key: value for key, value in tags.items() if key not in dict(some)}
            for points in iter_chunks(metrics, MAX_METRICS_PER_CALL):
                self._send_metrics(points)
                sent += len(points)
        except Exception as error:  # of any kind: this thread must live
            if not self._failing:
                _log.warning(
                    "Metrics of run %s wait, because the store failed: %s", self._run_id, _to_single_line(error)
                )
            self._failing = True
            with self._condition:
                self._params = {**params, **self._params}  # what was logged meanwhile is newer
                self._tags = {**tags, **self._tags}
                self._metrics.extendleft(reversed(metrics[sent:]))
                self._drop_oldest()
        else:
            if self._failing:
                _log.warning("The store takes the metrics of run %s again.", self._run_id)
            self._failing = False

    def _send_metrics(self, points: Sequence[_MetricPoint]) -> None:
        from mlflow.entities import Metric

        def send(some: Sequence[_MetricPoint]) -> None:
            self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in some])

        self._send_with_bisection(points, send)

    def _send_params(self, params: Sequence[tuple[str, str]]) -> None:
        from mlflow.entities import Param

        def send(some: Sequence[tuple[str, str]]) -> None:
            self._client.log_batch(self._run_id, params=[Param(key, value) for key, value in some])

        self._send_with_bisection(params, send)

    def _send_tags(self, tags: Sequence[tuple[str, str]]) -> None:
        from mlflow.entities import RunTag

        def send(some: Sequence[tuple[str, str]]) -> None:
            self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in some])

        self._send_with_bisection(tags, send)

    def _send_with_bisection(self, items: Sequence[T], send: Any) -> None:
        """Halves a batch that MLflow refuses, until only the culprit is left out."""
        from mlflow.exceptions import MlflowException

        try:
            send(items)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            if len(items) == 1:
                _log.warning("MLflow refuses %s: %s", items[0], _to_single_line(error))
                return
            middle = len(items) // 2
            self._send_with_bisection(items[:middle], send)
            self._send_with_bisection(items[middle:], send)

    def _drop_oldest(self) -> None:
        while len(self._metrics) > self._capacity:
            self._metrics.popleft()
            self._dropped += 1


def flatten_params(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Parameters as MLflow takes them: nested names joined by dots, values as text of at most 6000 characters."""
    params: dict[str, str] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            params |= flatten_params(value, f"{prefix}{key}.")
        else:
            params[f"{prefix}{key}"] = str(value)[:MAX_PARAM_LENGTH]
    return params


@contextlib.contextmanager
def log_tracking_errors(description: str) -> Iterator[None]:
    """What cannot be recorded is told in the log; the training goes on."""
    try:
        yield
    except Exception as error:  # of any kind: hours of training hang on it
        _log.warning("Could not record %s: %s", description, _to_single_line(error))


def iter_chunks(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """The items, so many at a time."""
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, size)), [])


class _MetricPoint(NamedTuple):
    """A metric, in the order of MLflow's entity."""

    key: str
    value: float
    timestamp: int
    step: int


class _BackgroundTask(NamedTuple):
    """Something to do, and its name for a warning."""

    description: str
    run: Callable[[], object]


def _to_single_line(error: Exception) -> str:
    return " ".join(str(error).split())
