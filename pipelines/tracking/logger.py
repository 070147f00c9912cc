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

Status = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")

# MLflow's limits.
METRICS_A_CALL = 1000
PARAMS_A_CALL = 100  # and tags
PARAM_LENGTH = 6000

_log = logging.getLogger(__name__)


class Sink(Protocol):
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

    Logging only appends; the thread sends every `seconds`, and at `flush`. What cannot be sent is kept for the next
    attempt, up to `capacity` metrics: then the oldest go, and are counted. Values that are not finite are not sent,
    because MLflow would store an infinity as 1.797e308: the tag `nonfinite` names them instead.

    What else there is to record, such as a file, may be handed over as an errand: it is run at once, beside the training.

    Lightning's `finalize` does not end the run, because backtests follow the fit: `close` does.
    """

    def __init__(
        self, client: Sink, run_id: str, *, name: str = "", seconds: float = 2.0, capacity: int = 100_000
    ) -> None:
        super().__init__()
        self._client = client
        self._run_id = run_id
        self._name = name
        self._seconds = seconds
        self._capacity = capacity
        self._changed = threading.Condition()
        self._metrics: deque[_Point] = deque()
        self._params: dict[str, str] = {}
        self._tags: dict[str, str] = {}
        self._errands: deque[_Errand] = deque()
        self._nonfinite: dict[str, str] = {}
        self._dropped = 0
        self._failing = False
        self._hurried = False
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
        points = [_Point(key, float(value), now, step or 0) for key, value in metrics.items()]
        with self._changed:
            assert not self._closed, "metrics after the end of the run"
            for point in points:
                if math.isfinite(point.value):
                    self._metrics.append(point)
                elif point.key not in self._nonfinite:
                    self._nonfinite[point.key] = f"{point.key} = {point.value} at step {point.step}"
                    _log.warning("A metric is not finite and is left out: %s.", self._nonfinite[point.key])
            self._drop_oldest()
            self._changed.notify()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Queues parameters, nested names joined by dots."""
        with self._changed:
            self._params.update(flat(vars(params) if isinstance(params, Namespace) else params))
            self._changed.notify()

    def log_tag(self, key: str, value: str) -> None:
        """Queues a tag for the next batch."""
        with self._changed:
            assert not self._closed, "a tag after the end of the run"
            self._tags[key] = value
            self._changed.notify()

    def later(self, what: str, errand: Callable[[], object]) -> None:
        """Has the thread do something small for the run; what fails is a warning that names it."""
        with self._changed:
            assert not self._closed, f"{what} after the end of the run"
            self._errands.append(_Errand(what, errand))
            self._changed.notify()

    def flush(self) -> None:
        """Has the queue sent now, at the end of an epoch say, without waiting for it."""
        with self._changed:
            self._hurried = True
            self._changed.notify()

    def finalize(self, status: str) -> None:
        """Lightning's end of a fit, which is not the end of the run."""
        self.flush()

    def close(self, status: Status) -> None:
        """Does what is queued, and ends the run. Again: nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=60.0)
        lost = self._dropped + sum(map(len, (self._metrics, self._params, self._tags, self._errands)))
        if lost:
            _log.warning("%d values of run %s could not be recorded.", lost, self._run_id)
        with recording(f"the end of run {self._run_id}"):
            if self._nonfinite:
                self._client.set_tag(self._run_id, "nonfinite", "; ".join(self._nonfinite.values())[:5000])
            self._client.set_terminated(self._run_id, status)

    def _send_until_closed(self) -> None:
        closed = False
        while not closed:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._metrics or self._params or self._tags or self._errands or self._closed
                )
                self._changed.wait_for(lambda: self._hurried or self._errands or self._closed, timeout=self._seconds)
                errand = self._errands[0] if self._errands else None
                closed = self._closed and errand is None
                if errand is None:
                    self._hurried = False
                    metrics, params, tags = list(self._metrics), dict(self._params), dict(self._tags)
                    for queue in (self._metrics, self._params, self._tags):
                        queue.clear()
            if errand is None:
                self._send(metrics, params, tags)
            else:
                with recording(errand.what):
                    errand.run()
                self._errands.popleft()  # not before it is done: what is left at the end is told

    def _send(self, metrics: Sequence[_Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        sent = 0
        try:
            for some in chunks(params.items(), PARAMS_A_CALL):
                self._send_params(some)
                params = {key: value for key, value in params.items() if key not in dict(some)}
            for some in chunks(tags.items(), PARAMS_A_CALL):
                self._send_tags(some)
                tags = {key: value for key, value in tags.items() if key not in dict(some)}
            for points in chunks(metrics, METRICS_A_CALL):
                self._send_metrics(points)
                sent += len(points)
        except Exception as error:  # of any kind: this thread must live
            if not self._failing:
                _log.warning("Metrics of run %s wait, because the store failed: %s", self._run_id, _one_line(error))
            self._failing = True
            with self._changed:
                self._params = {**params, **self._params}  # what was logged meanwhile is newer
                self._tags = {**tags, **self._tags}
                self._metrics.extendleft(reversed(metrics[sent:]))
                self._drop_oldest()
        else:
            if self._failing:
                _log.warning("The store takes the metrics of run %s again.", self._run_id)
            self._failing = False

    def _send_metrics(self, points: Sequence[_Point]) -> None:
        from mlflow.entities import Metric

        def send(some: Sequence[_Point]) -> None:
            self._client.log_batch(self._run_id, metrics=[Metric(*point) for point in some])

        self._send_but_refused(points, send)

    def _send_params(self, params: Sequence[tuple[str, str]]) -> None:
        from mlflow.entities import Param

        def send(some: Sequence[tuple[str, str]]) -> None:
            self._client.log_batch(self._run_id, params=[Param(key, value) for key, value in some])

        self._send_but_refused(params, send)

    def _send_tags(self, tags: Sequence[tuple[str, str]]) -> None:
        from mlflow.entities import RunTag

        def send(some: Sequence[tuple[str, str]]) -> None:
            self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in some])

        self._send_but_refused(tags, send)

    def _send_but_refused(self, items: Sequence[T], send: Any) -> None:
        """Halves a batch that MLflow refuses, until only the culprit is left out."""
        from mlflow.exceptions import MlflowException

        try:
            send(items)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            if len(items) == 1:
                _log.warning("MLflow refuses %s: %s", items[0], _one_line(error))
                return
            middle = len(items) // 2
            self._send_but_refused(items[:middle], send)
            self._send_but_refused(items[middle:], send)

    def _drop_oldest(self) -> None:
        while len(self._metrics) > self._capacity:
            self._metrics.popleft()
            self._dropped += 1


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Parameters as MLflow takes them: nested names joined by dots, values as text of at most 6000 characters."""
    params: dict[str, str] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            params |= flat(value, f"{prefix}{key}.")
        else:
            params[f"{prefix}{key}"] = str(value)[:PARAM_LENGTH]
    return params


@contextlib.contextmanager
def recording(what: str) -> Iterator[None]:
    """What cannot be recorded is told in the log; the training goes on."""
    try:
        yield
    except Exception as error:  # of any kind: hours of training hang on it
        _log.warning("Could not record %s: %s", what, _one_line(error))


def chunks(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """The items, so many at a time."""
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, size)), [])


class _Point(NamedTuple):
    """A metric, in the order of MLflow's entity."""

    key: str
    value: float
    timestamp: int
    step: int


class _Errand(NamedTuple):
    """Something to do, and its name for a warning."""

    what: str
    run: Callable[[], object]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
