"""A Lightning logger for an MLflow run that sends metrics in batches from a background thread."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from forecaster.training.lightning import Logger

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

# MLflow's limits. Its client splits a batch further where it has more than 100 parameters or tags.
MAX_VALUES_PER_CALL = 1000
MAX_PARAM_LENGTH = 6000
_MAX_TAG_LENGTH = 5000

INCOMPLETE_TAG = "incomplete"  # names what is missing from the record of a run
_MAX_RETRY_DELAY_S = 60.0
_CLOSE_TIMEOUT_S = 60.0

_log = logging.getLogger(__name__)


class RunLogger(Logger):
    """Lightning's logger for one MLflow run: a queue, and a thread that sends it in batches.

    Logging only appends to the queue; the thread sends it every `interval_s` seconds and at `flush`. Values that the store does
    not accept now stay queued for the next attempt, up to `capacity` values; beyond that the oldest are dropped and counted.
    MLflow's own asynchronous batches have no second attempt, and store every call in a transaction of its own. Values that are
    not finite are not sent, because MLflow would store an infinity as 1.797e308; the tag `nonfinite` names them.

    Other recording work, such as uploading a file, can be submitted as a background task; the thread runs it at once, in
    parallel with the training. A task that fails is repeated until the run ends, and once more then. What is lost nevertheless is
    named in a warning and in the tag `incomplete`.

    Lightning's `finalize` does not end the run, because backtests follow the fit; `close` ends it.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, *, name: str = "", interval_s: float = 2.0, capacity: int = 100_000
    ) -> None:
        super().__init__()
        self._client = client
        self._run_id = run_id
        self._name = name
        self._interval_s = interval_s
        self._capacity = capacity
        self._condition = threading.Condition()
        self._values: deque[Metric | Param | RunTag] = deque()
        self._sending: Sequence[Metric | Param | RunTag] = ()  # the values that the thread has taken from the queue
        self._tasks: deque[_BackgroundTask] = deque()
        self._failed_tasks: list[_BackgroundTask] = []
        self._retry_delay_s = interval_s
        self._retry_at = 0.0
        self._lost_names: set[str] = set()  # of values that were dropped or rejected
        self._nonfinite: dict[str, str] = {}
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
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        finite = []
        for key, value in metrics.items():
            if math.isfinite(value):
                finite.append(Metric(key, float(value), now, step or 0))
            elif key not in self._nonfinite:
                self._nonfinite[key] = f"{key} = {float(value)} at step {step or 0}"
                _log.warning("A metric is not finite and is not recorded: %s.", self._nonfinite[key])
        self._enqueue(finite)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Queues parameters; nested names are joined by dots."""
        from mlflow.entities import Param

        flat = flatten_params(vars(params) if isinstance(params, Namespace) else params)
        self._enqueue([Param(*pair) for pair in flat.items()])

    def log_tag(self, key: str, value: str) -> None:
        """Queues a tag for the next batch."""
        from mlflow.entities import RunTag

        self._enqueue([RunTag(key, value)])

    def submit(self, description: str, action: Callable[[], object]) -> None:
        """Queues a task for the background thread; a failure is logged as a warning, and the task is repeated later."""
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
        self._thread.join(timeout=_CLOSE_TIMEOUT_S)
        lost = self._find_lost_names()
        if lost:
            _log.warning("Run %s is incomplete; could not be recorded: %s.", self._run_id, "; ".join(lost))
        for key, parts in ((INCOMPLETE_TAG, lost), ("nonfinite", self._nonfinite.values())):
            with log_tracking_errors(f"the tag '{key}' of run {self._run_id}"):
                if parts:
                    self._client.set_tag(self._run_id, key, "; ".join(parts)[:_MAX_TAG_LENGTH])
        with log_tracking_errors(f"the end of run {self._run_id}"):
            self._client.set_terminated(self._run_id, status)

    def _enqueue(self, values: Iterable[Metric | Param | RunTag]) -> None:
        with self._condition:
            assert not self._closed, "values must be logged before the run ends"
            self._values.extend(values)
            self._drop_oldest()

    def _send_until_closed(self) -> None:
        closed = False
        while not closed:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._flush_requested or self._tasks or self._closed, timeout=self._interval_s
                )
                task = self._tasks[0] if self._tasks else None
                closed = self._closed and task is None
                if task is None:
                    self._flush_requested = False
                    self._sending = values = list(self._values)
                    self._values.clear()
            if task is None:
                self._send(values)
                self._repeat_failed_tasks(at_end=closed)
            else:
                if not self._run_task(task):
                    self._failed_tasks.append(task)
                    self._retry_at = max(self._retry_at, time.monotonic() + self._retry_delay_s)
                self._tasks.popleft()  # only after it has run: tasks left at the end are lost

    def _run_task(self, task: _BackgroundTask) -> bool:
        """Runs a task; returns whether it succeeded. Only its first failure is logged."""
        try:
            task.run()
        except Exception as error:  # of any kind: the thread must survive
            if task not in self._failed_tasks:
                _log.warning("Could not record %s yet: %s", task.description, _to_single_line(error))
            return False
        return True

    def _repeat_failed_tasks(self, *, at_end: bool) -> None:
        """Runs the failed tasks again if it is time, which is later after every failure."""
        if not self._failed_tasks or (time.monotonic() < self._retry_at and not at_end):
            return
        for task in list(self._failed_tasks):
            if self._run_task(task):
                self._failed_tasks.remove(task)
        self._retry_delay_s = min(2 * self._retry_delay_s, _MAX_RETRY_DELAY_S)
        self._retry_at = time.monotonic() + self._retry_delay_s

    def _find_lost_names(self) -> list[str]:
        """Returns the names of the values and the descriptions of the tasks that were not recorded, without repetition."""
        with self._condition:
            names = {value.key for value in (*self._values, *self._sending)} | self._lost_names
            tasks = [task.description for task in (*self._failed_tasks, *self._tasks)]
        return [*dict.fromkeys(tasks), *sorted(names)]

    def _send(self, values: Sequence[Metric | Param | RunTag]) -> None:
        """Sends values in batches; if the store fails, the remaining ones are queued again."""
        sent = 0
        try:
            for sent in range(0, len(values), MAX_VALUES_PER_CALL):
                self._send_batch(values[sent : sent + MAX_VALUES_PER_CALL])
        except Exception as error:  # of any kind: the thread must survive
            if not self._failing:
                _log.warning(
                    "Metrics of run %s are queued, because the store failed: %s", self._run_id, _to_single_line(error)
                )
            self._failing = True
            with self._condition:
                self._values.extendleft(reversed(values[sent:]))
                self._sending = ()
                self._drop_oldest()
        else:
            self._sending = ()
            if self._failing:
                _log.warning("The store accepts the metrics of run %s again.", self._run_id)
            self._failing = False

    def _send_batch(self, values: Sequence[Metric | Param | RunTag]) -> None:
        """Sends one batch; halves it if MLflow rejects it, until only the invalid value is left out."""
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException

        metrics = [value for value in values if isinstance(value, Metric)]
        params = {value.key: value for value in values if isinstance(value, Param)}
        tags = {value.key: value for value in values if isinstance(value, RunTag)}
        try:
            self._client.log_batch(self._run_id, metrics, list(params.values()), list(tags.values()))
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            if len(values) == 1:
                _log.warning("MLflow rejects %s: %s", values[0], _to_single_line(error))
                self._lost_names.add(values[0].key)
                return
            middle = len(values) // 2
            self._send_batch(values[:middle])
            self._send_batch(values[middle:])

    def _drop_oldest(self) -> None:
        while len(self._values) > self._capacity:
            self._lost_names.add(self._values.popleft().key)


class DiscardingLogger(RunLogger):
    """Stands for the logger of a run where nothing is recorded; it needs no MLflow and has no thread."""

    def __init__(self, run_id: str, *, name: str = "") -> None:
        Logger.__init__(self)
        self._run_id, self._name = run_id, name

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Discards metrics."""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Discards parameters."""

    def log_tag(self, key: str, value: str) -> None:
        """Discards a tag."""

    def submit(self, description: str, action: Callable[[], object]) -> None:
        """Discards a task."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self, status: RunStatus) -> None:
        """Does nothing."""


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


class _BackgroundTask(NamedTuple):
    """A task for the background thread, and its description for a warning."""

    description: str
    run: Callable[[], object]


def _to_single_line(error: Exception) -> str:
    return " ".join(str(error).split())
