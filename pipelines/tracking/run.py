"""One MLflow run for each training or backtest, with the same names everywhere.

Recording never costs a training: once a run is open, a store that fails is a warning in the log.
"""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forecaster.errors import RegistryError
from forecaster.frequency import Timestamp, format_timestamp
from forecaster.registry import registry
from forecaster.spec import Spec
from pipelines.redaction import redact
from pipelines.settings import resolve_tracking_uri
from pipelines.tracking import figures
from pipelines.tracking.logger import RunLogger, RunStatus, flatten_params, log_tracking_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

HEADLINE_METRICS = frozenset(
    {
        "bt/mase",
        "bt/rmsse",
        "bt/smape",
        "bt/mae",
        "bt/mse",
        "bt/owa",
        "bt/owa_naive2",
        "bt/crps",
        "bt/wql",
        "bt/coverage_80",
        "bt/coverage_95",
        "bt/width_80",
        "bt/width_95",
        "bt/skill_vs_snaive",
        "bt/exposure_gap",
        "bt_pure/mase",  # of a blend: its network alone
        "bt_pure/rmsse",
        "bt_pure/smape",
        "train/seconds",
        "train/windows_per_s",
        "serve/p50_ms",
    }
)

_MAX_DATASET_DIGEST_LENGTH = 36  # the longest that MLflow stores


class RunDataset(NamedTuple):
    """What a run was trained on, or scored on.

    Attributes:
        name: What people call it.
        digest: Of its content, in hex.
        source: A path, URL or database address; a password in it is not recorded.
        cutoff: The last stamp that training and validation saw.
        context: What it was used for, as MLflow shows it: training or evaluation.
    """

    name: str
    digest: str
    source: str
    cutoff: Timestamp
    context: str = "training"


class TrackedRun:
    """An open run: what to record, under the names that every run shares."""

    def __init__(self, client: MlflowClient, run_id: str, *, name: str) -> None:
        self.id = run_id
        self.logger = RunLogger(client, run_id, name=name)
        self._client = client

    def log_headline_metrics(self, scores: Mapping[str, float]) -> None:
        """The numbers that runs are compared by; their names are those of HEADLINE."""
        assert scores.keys() <= HEADLINE_METRICS, f"unknown headline metrics {sorted(scores.keys() - HEADLINE_METRICS)}"
        self.logger.log_metrics(scores)

    def log_curve(self, name: str, values: Iterable[float]) -> None:
        """One value for each step ahead: `bt_h/mase` at step 1 is the error of the first step of the horizon."""
        for step, value in enumerate(values, start=1):
            self.logger.log_metrics({name: value}, step)

    def log_figure(self, name: str, figure: Figure) -> None:
        """A picture, under a name such as `plots/forecast.png`, and for the UI's grid of images, which shows those of all runs.

        It is drawn and stored beside what comes next, and belongs to the run from here on.
        """
        self.logger.submit(
            name, lambda: self._upload_files(figures.build_image_files(name, figures.render_pixels(figure)))
        )
        self.set_tag("mlflow.loggedImages", "True")

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """A file, under its own name."""
        assert path.is_file(), f"{path} is no file"
        with log_tracking_errors(path.name):
            self._client.log_artifact(self.id, str(path), folder)

    def log_artifacts(self, path: Path, name: str) -> None:
        """All files of a folder, in the run's folder of this name."""
        with log_tracking_errors(name):
            self._client.log_artifacts(self.id, str(path), name)

    def log_model_card(self, text: str) -> None:
        """The model card, as `model_card.md`."""
        with log_tracking_errors("model_card.md"):
            self._client.log_text(self.id, text, "model_card.md")

    def set_tag(self, key: str, value: str) -> None:
        """A tag, sent with the next batch; one that is known when the run begins is an argument of `open_run`."""
        self.logger.log_tag(key, value)

    def _upload_files(self, files: Mapping[str, bytes]) -> None:
        """Files, by their names in the run, in one call."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._client.log_artifacts(self.id, folder)


@contextlib.contextmanager
def open_run(
    spec: Spec,
    dataset: RunDataset,
    *,
    root: Path,
    trigger: str,
    tracking_uri: str | None = None,
    parent_run_id: str | None = None,
    run_id: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
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
        title: What the UI calls a new run; the spec's name, the cutoff and the trigger, if not given.
        tags: What else is known of the run; a new one has them from its first moment.

    Raises RegistryError when the store cannot be opened, NoSuchModel when there is no run to go on with.
    """
    from mlflow.entities import RunTag

    told = _build_tags(dataset, trigger=trigger, parent_run_id=parent_run_id) | dict(tags or {})
    with _convert_sigterm_to_exit():
        client = registry.create_client(resolve_tracking_uri(root, tracking_uri))
        with registry.translate_store_errors(f"run '{run_id}'" if run_id else f"a run of '{spec.name}'"):
            if run_id is None:
                experiment = _get_or_create_experiment(
                    client, spec.name, None if tracking_uri else artifact_location(root)
                )
                run_name = run_name or f"{spec.name} {format_timestamp(dataset.cutoff).partition('T')[0]} {trigger}"
                run_id = str(client.create_run(experiment, tags=told, run_name=run_name).info.run_id)
            else:
                _validate_resumable(client, run_id, spec)
                client.update_run(run_id, status="RUNNING")
                client.log_batch(run_id, tags=[RunTag(key, value) for key, value in told.items()])
        run = TrackedRun(client, run_id, name=spec.name)
        status: RunStatus = "FAILED"
        try:
            run.logger.log_hyperparams(spec.model_dump())
            run.logger.flush()
            run.logger.submit("the data set", lambda: client.log_inputs(run.id, [_build_dataset_input(dataset)]))
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            run.logger.close(status)


def mark_runs_killed(run_ids: Iterable[str], *, root: Path, tracking_uri: str | None = None) -> None:
    """Ends runs that a kill left open; raises RegistryError when the store cannot be opened."""
    client = registry.create_client(resolve_tracking_uri(root, tracking_uri))
    for run_id in run_ids:
        with log_tracking_errors(f"the end of run {run_id}"):
            client.set_terminated(run_id, "KILLED")


def append_to_run(
    run_id: str,
    files: Iterable[Path],
    *,
    folder: str,
    tags: Mapping[str, str],
    store_uri: str,
    headline_metrics: Mapping[str, float] | None = None,
) -> None:
    """Adds files, tags and headline metrics to a run that has ended; raises RegistryError."""
    assert (headline_metrics or {}).keys() <= HEADLINE_METRICS
    client = registry.create_client(store_uri)
    with registry.translate_store_errors(f"run '{run_id}'"):
        for path in files:
            client.log_artifact(run_id, str(path), folder)
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        for key, number in (headline_metrics or {}).items():
            client.log_metric(run_id, key, number)


def record_monitoring_run(
    spec: Spec,
    *,
    root: Path,
    tracking_uri: str | None,
    tags: Mapping[str, str],
    metric_values: Mapping[str, float],
    texts: Mapping[str, str],
) -> str:
    """One finished run for a look at a model in use, in the experiment of its trainings; answers its id. Raises RegistryError.

    Args:
        spec: Of the model.
        root: The folder of all state.
        uri: Another MLflow store than that of `root`.
        tags: What is said of the run.
        scores: Its metrics.
        texts: Files, by name.
    """
    from mlflow.entities import Metric, RunTag

    client = registry.create_client(resolve_tracking_uri(root, tracking_uri))
    with registry.translate_store_errors(f"a check of '{spec.name}'"):
        experiment = _get_or_create_experiment(client, spec.name, None if tracking_uri else artifact_location(root))
        run = client.create_run(experiment, run_name=f"{spec.name} check")
        now = run.info.start_time
        run_id = str(run.info.run_id)
        metrics = [Metric(name, value, now, 0) for name, value in metric_values.items()]
        client.log_batch(run_id, metrics=metrics, tags=[RunTag(*pair) for pair in tags.items()])
        for name, text in texts.items():
            client.log_text(run_id, text, name)
        client.set_terminated(run_id)
    return run_id


def read_run_text(run_id: str, artifact_path: str, *, store_uri: str) -> str | None:
    """The text of a file that a run keeps; None where it keeps none. Raises RegistryError."""
    client = registry.create_client(store_uri)
    folder, _, _ = artifact_path.rpartition("/")
    with registry.translate_store_errors(f"run '{run_id}'"), tempfile.TemporaryDirectory(prefix="forecaster-") as place:
        if artifact_path not in {one.path for one in client.list_artifacts(run_id, folder or None)}:
            return None
        return Path(client.download_artifacts(run_id, artifact_path, place)).read_text()


def artifact_location(root: Path) -> str:
    """Where the runs and models of a root folder keep their files."""
    return (root.absolute() / "mlruns").as_uri()


def _validate_resumable(client: MlflowClient, run_id: str, spec: Spec) -> None:
    before, now = client.get_run(run_id).data.params, flatten_params(spec.model_dump())
    changed = [f"{key} = {before[key]}, now {now[key]}" for key in now if before.get(key, now[key]) != now[key]]
    if changed:
        raise RegistryError(
            f"Run '{run_id}' is resumed with the spec it was opened with; changed: {'; '.join(changed)}. "
            "Resume it with its own spec, or open a new run.",
            where=run_id,
        )


def _build_tags(dataset: RunDataset, *, trigger: str, parent_run_id: str | None) -> dict[str, str]:
    """What every run is found by."""
    tags = {"trigger": trigger, "cutoff": format_timestamp(dataset.cutoff), "data_digest": dataset.digest}
    if parent_run_id is not None:
        tags |= {"parent": parent_run_id, "mlflow.parentRunId": parent_run_id}  # the second is what the UI nests by
    return tags


def _build_dataset_input(dataset: RunDataset) -> DatasetInput:
    """The data set as MLflow shows it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = redact(dataset.source)
    kind, key = ("http", "url") if source.startswith(("http://", "https://")) else ("local", "uri")
    digest = dataset.digest[:_MAX_DATASET_DIGEST_LENGTH]
    recorded = Dataset(dataset.name, digest, kind, json.dumps({key: source}))
    return DatasetInput(recorded, [InputTag("mlflow.data.context", dataset.context)])


def _get_or_create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
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


@contextlib.contextmanager
def _convert_sigterm_to_exit() -> Iterator[None]:
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
