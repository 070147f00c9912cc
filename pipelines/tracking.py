"""One MLflow run for each training, with the same names everywhere.

Recording never costs a training: once a run is open, a store that fails is a warning in the log.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import re
import signal
import threading
import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import pandas as pd
from pytorch_lightning.loggers import Logger

from forecaster import registry
from forecaster.errors import RegistryError
from forecaster.spec import Spec

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

Status = Literal["FINISHED", "FAILED", "KILLED"]
T = TypeVar("T")

HEADLINE = frozenset(
    {
        "bt/mase",
        "bt/rmsse",
        "bt/smape",
        "bt/crps",
        "bt/coverage_80",
        "bt/coverage_95",
        "bt/skill_vs_snaive",
        "bt/exposure_gap",
        "train/seconds",
        "train/windows_per_s",
        "serve/p50_ms",
    }
)

# MLflow's limits, and the longest digest of a data set that it stores.
_METRICS_A_CALL = 1000
_PARAMS_A_CALL = 100
_PARAM_LENGTH = 6000
_DATASET_DIGEST_LENGTH = 36

_log = logging.getLogger(__name__)


class DataSet(NamedTuple):
    """What a run was trained on.

    Attributes:
        name: What people call it.
        digest: Of its content, in hex.
        source: A path, URL or database address; a password in it is not recorded.
        cutoff: The last stamp that training and validation saw.
    """

    name: str
    digest: str
    source: str
    cutoff: pd.Timestamp


class Sink(Protocol):
    """What a RunLogger needs of a client: `mlflow.MlflowClient`, or a stub."""

    def log_batch(self, run_id: str, metrics: Sequence[Metric] = (), params: Sequence[Param] = ()) -> Any:
        """Stores at most 1000 metrics or 100 parameters."""

    def set_tag(self, run_id: str, key: str, value: Any) -> Any:
        """Stores one tag."""

    def set_terminated(self, run_id: str, status: str | None = None) -> Any:
        """Ends the run."""


class RunLogger(Logger):
    """Lightning's logger for one MLflow run: a queue, and a thread that empties it in batches.

    Logging only appends; the thread sends every `seconds`, and at `flush`. What cannot be sent is kept for the next
    attempt, up to `capacity` metrics: then the oldest go, and are counted. Values that are not finite are not sent,
    because MLflow would store an infinity as 1.797e308: the tag `nonfinite` names them instead.

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

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Queues parameters, nested names joined by dots."""
        with self._changed:
            self._params.update(flat(vars(params) if isinstance(params, Namespace) else params))
            self._changed.notify()

    def flush(self) -> None:
        """Has the queue sent now, at the end of an epoch say, without waiting for it."""
        with self._changed:
            self._hurried = True
            self._changed.notify()

    def finalize(self, status: str) -> None:  # noqa: ARG002
        """Lightning's end of a fit, which is not the end of the run."""
        self.flush()

    def close(self, status: Status) -> None:
        """Sends what is queued, and ends the run. Again: nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout=60.0)
        lost = self._dropped + len(self._metrics) + len(self._params)
        if lost:
            _log.warning("%d values of run %s could not be recorded.", lost, self._run_id)
        with _recording(f"the end of run {self._run_id}"):
            if self._nonfinite:
                self._client.set_tag(self._run_id, "nonfinite", "; ".join(self._nonfinite.values())[:5000])
            self._client.set_terminated(self._run_id, status)

    def _send_until_closed(self) -> None:
        closed = False
        while not closed:
            with self._changed:
                self._changed.wait_for(lambda: self._metrics or self._params or self._closed)
                self._changed.wait_for(lambda: self._hurried or self._closed, timeout=self._seconds)
                self._hurried, closed = False, self._closed
                metrics, params = list(self._metrics), dict(self._params)
                self._metrics.clear()
                self._params.clear()
            self._send(metrics, params)

    def _send(self, metrics: Sequence[_Point], params: Mapping[str, str]) -> None:
        sent = 0
        try:
            for some in _chunks(params.items(), _PARAMS_A_CALL):
                self._send_params(some)
                params = {key: value for key, value in params.items() if key not in dict(some)}
            for points in _chunks(metrics, _METRICS_A_CALL):
                self._send_metrics(points)
                sent += len(points)
        except Exception as error:  # of any kind: this thread must live
            if not self._failing:
                _log.warning("Metrics of run %s wait, because the store failed: %s", self._run_id, _one_line(error))
            self._failing = True
            with self._changed:
                self._params = {**params, **self._params}  # what was logged meanwhile is newer
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


class Run:
    """An open run: what to record, under the names that every run shares."""

    def __init__(self, client: MlflowClient, run_id: str, *, name: str) -> None:
        self.id = run_id
        self.logger = RunLogger(client, run_id, name=name)
        self._client = client

    def headline(self, scores: Mapping[str, float]) -> None:
        """The numbers that runs are compared by; their names are those of HEADLINE."""
        assert scores.keys() <= HEADLINE, f"unknown headline metrics {sorted(scores.keys() - HEADLINE)}"
        self.logger.log_metrics(scores)

    def curve(self, name: str, values: Iterable[float]) -> None:
        """One value for each step ahead: `bt_h/mase` at step 1 is the error of the first step of the horizon."""
        for step, value in enumerate(values, start=1):
            self.logger.log_metrics({name: value}, step)

    def figure(self, name: str, figure: Figure) -> None:
        """A picture, under a name such as `plots/forecast.png`."""
        with _recording(name):
            self._client.log_figure(self.id, figure, name)

    def file(self, path: Path, folder: str | None = None) -> None:
        """A file, under its own name."""
        assert path.is_file(), f"{path} is no file"
        with _recording(path.name):
            self._client.log_artifact(self.id, str(path), folder)

    def card(self, text: str) -> None:
        """The model card, as `model_card.md`."""
        with _recording("model_card.md"):
            self._client.log_text(self.id, text, "model_card.md")

    def tag(self, key: str, value: str) -> None:
        """A tag."""
        with _recording(f"tag {key}"):
            self._client.set_tag(self.id, key, value)


@contextlib.contextmanager
def open_run(
    spec: Spec,
    data: DataSet,
    *,
    root: Path,
    trigger: str,
    uri: str | None = None,
    parent: str | None = None,
    run_id: str | None = None,
) -> Iterator[Run]:
    """Opens a run for as long as the block lasts, in the experiment that has the spec's name.

    The run ends FINISHED; FAILED when the block raises; KILLED when it is interrupted or told to end (SIGTERM, which
    raises SystemExit in the block where nobody else handles it). A process that is killed outright leaves RUNNING.

    Args:
        spec: Recorded as flat parameters.
        data: Recorded as the run's data set, its digest and cutoff also as tags.
        root: The folder of all state; database and artefacts are in it unless `uri` names a server.
        trigger: What started the training ("cli", "schedule", "monitor").
        uri: Another MLflow store than that of `root`.
        parent: Id of the run that this one is a part of (a tuning trial's).
        run_id: A run to go on with; it must have been opened with the same spec.

    Raises RegistryError when the store cannot be opened, NoSuchModel when there is no run to go on with.
    """
    with _sigterm_as_exit():
        client = registry.connect(tracking_uri(root, uri))
        with registry.door(f"run '{run_id}'" if run_id else f"a run of '{spec.name}'"):
            if run_id is None:
                experiment = _experiment(client, spec.name, None if uri else artifact_location(root))
                title = f"{spec.name} {data.cutoff:%Y-%m-%d} {trigger}"
                run_id = str(client.create_run(experiment, run_name=title).info.run_id)
            else:
                _check_resumable(client, run_id, spec)
                client.update_run(run_id, status="RUNNING")
        run = Run(client, run_id, name=spec.name)
        status: Status = "FAILED"
        try:
            with registry.door(f"run '{run_id}'"):
                _describe(client, run_id, spec, data, trigger=trigger, parent=parent)
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            run.logger.close(status)


def tracking_uri(root: Path, uri: str | None = None) -> str:
    """The MLflow store of a root folder, unless a URI names another.

    Raises RegistryError for the few paths that a database URI cannot carry: MLflow makes the folder of the path as it
    stands, and opens the path decoded, so quoting does not help.
    """
    folder = root.absolute()
    if uri is None and re.search(r"\?|%[0-9A-Fa-f]{2}", str(folder)):
        raise RegistryError(
            f"A root folder needs a path without '?' and without '%' before two hex digits; it is {folder}. "
            "Use another folder.",
            where=str(folder),
        )
    return uri or f"sqlite:///{folder}/mlflow.db"


def artifact_location(root: Path) -> str:
    """Where the runs and models of a root folder keep their files."""
    return (root.absolute() / "mlruns").as_uri()


def flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Parameters as MLflow takes them: nested names joined by dots, values as text of at most 6000 characters."""
    params: dict[str, str] = {}
    for key, value in fields.items():
        if isinstance(value, Mapping) and value:
            params |= flat(value, f"{prefix}{key}.")
        else:
            params[f"{prefix}{key}"] = str(value)[:_PARAM_LENGTH]
    return params


class _Point(NamedTuple):
    """A metric, in the order of MLflow's entity."""

    key: str
    value: float
    timestamp: int
    step: int


def _check_resumable(client: MlflowClient, run_id: str, spec: Spec) -> None:
    before, now = client.get_run(run_id).data.params, flat(spec.model_dump())
    changed = [f"{key} = {before[key]}, now {now[key]}" for key in now if before.get(key, now[key]) != now[key]]
    if changed:
        raise RegistryError(
            f"Run '{run_id}' is resumed with the spec it was opened with; changed: {'; '.join(changed)}. "
            "Resume it with its own spec, or open a new run.",
            where=run_id,
        )


def _describe(
    client: MlflowClient, run_id: str, spec: Spec, data: DataSet, *, trigger: str, parent: str | None
) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    tags = {"trigger": trigger, "cutoff": data.cutoff.isoformat(), "data_digest": data.digest}
    if parent is not None:
        tags |= {"parent": parent, "mlflow.parentRunId": parent}  # the second is what the UI nests by
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    for some in _chunks(flat(spec.model_dump()).items(), _PARAMS_A_CALL):
        client.log_batch(run_id, params=[Param(key, value) for key, value in some])
    source = _without_password(data.source)
    kind, key = ("http", "url") if source.startswith(("http://", "https://")) else ("local", "uri")
    digest = data.digest[:_DATASET_DIGEST_LENGTH]
    recorded = Dataset(data.name, digest, kind, json.dumps({key: source}))
    client.log_inputs(run_id, [DatasetInput(recorded, [InputTag("mlflow.data.context", "training")])])


def _experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        found = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
            raise
        return str(found.experiment_id)  # another process made it meanwhile


def _without_password(source: str) -> str:
    password = urlsplit(source).password
    return source.replace(f":{password}@", ":***@") if password else source


@contextlib.contextmanager
def _recording(what: str) -> Iterator[None]:
    """What cannot be recorded is told in the log; the training goes on."""
    try:
        yield
    except Exception as error:  # of any kind: hours of training hang on it
        _log.warning("Could not record %s: %s", what, _one_line(error))


@contextlib.contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM raises SystemExit in the block, once, where its default would end the process without a word.

    A handler that is set already stays. Lightning, while it fits, puts its own in front of ours.
    """

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # the run is being closed
        raise SystemExit(128 + number)

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _chunks(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    rest = iter(items)
    return iter(lambda: list(itertools.islice(rest, size)), [])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
