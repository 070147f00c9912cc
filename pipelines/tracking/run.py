"""Records each training or backtest as one MLflow run, with the same names of metrics, tags and files in all runs.

Once a run is open, a failure of the tracking store is logged as a warning and never ends a training.
"""

from __future__ import annotations

import contextlib
import json
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from forecaster.errors import NoSuchModel, RegistryError
from forecaster.frequency.timestamps import Timestamp, format_timestamp
from forecaster.registry import registry
from forecaster.registry.download import download_file
from forecaster.registry.registry import CHALLENGER
from forecaster.spec import Spec
from pipelines.redaction import redact
from pipelines.settings import resolve_tracking_uri
from pipelines.tracking import figures
from pipelines.tracking.artifact_paths import artifact_location
from pipelines.tracking.interrupted_runs import end_interrupted_runs, make_process_tags
from pipelines.tracking.logger import DiscardingLogger, RunLogger, RunStatus, flatten_params, log_tracking_errors

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
        "bt/msis_95",
        "bt/coverage_80",
        "bt/coverage_95",
        "bt/width_80",
        "bt/width_95",
        "bt/skill_vs_snaive",
        "bt/exposure_gap",
        "bt_pure/mase",  # the network of a blend alone
        "bt_pure/rmsse",
        "bt_pure/smape",
        "train/seconds",
        "train/windows_per_s",
        "serve/p50_ms",
    }
)

_MAX_DATASET_DIGEST_LENGTH = 36  # the longest that MLflow stores
_CARD_FILE = "model_card.md"
_DESCRIPTION_TAG = "mlflow.note.content"  # Markdown, which the UI shows at the top of a run
_MAX_DESCRIPTION_LENGTH = 5000  # of a tag; earlier versions of MLflow store no longer one


class RunDataset(NamedTuple):
    """The data set that a run was trained or evaluated on.

    Attributes:
        name: Display name.
        digest: Digest of its content, in hex.
        source: Path, URL or database address; a password in it is not recorded.
        cutoff: The last timestamp of the training and validation data.
        context: What it was used for, as MLflow shows it: training or evaluation.
    """

    name: str
    digest: str
    source: str
    cutoff: Timestamp
    context: str = "training"


class TrackedRun:
    """An open run, with a method for everything that is recorded in it."""

    is_recorded = True

    def __init__(self, client: MlflowClient, run_id: str, *, name: str) -> None:
        self.id = run_id
        self.logger = RunLogger(client, run_id, name=name)
        self._client = client

    def log_headline_metrics(self, scores: Mapping[str, float]) -> None:
        """Logs metrics that runs are compared by; their names must be in HEADLINE_METRICS."""
        assert scores.keys() <= HEADLINE_METRICS, f"unknown headline metrics {sorted(scores.keys() - HEADLINE_METRICS)}"
        self.logger.log_metrics(scores)

    def log_curve(self, name: str, values: Iterable[float]) -> None:
        """Logs one value per step ahead: `bt_h/mase` at step 1 is the error at the first step of the horizon."""
        for step, value in enumerate(values, start=1):
            self.logger.log_metrics({name: value}, step)

    def log_figure(self, name: str, figure: Figure) -> None:
        """Logs a figure under a name such as `plots/forecast.png`, and for the image grid of the UI, which shows all runs.

        The figure is rendered and stored by the background thread; the caller must not change it afterwards.
        """
        self.logger.submit(
            name, lambda: self._upload_files(figures.build_image_files(name, figures.render_pixels(figure)))
        )
        self.set_tag("mlflow.loggedImages", "True")

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Uploads a file under its own name."""
        assert path.is_file(), f"{path} is not a file"
        self._upload(
            path.name,
            lambda: self._client.log_artifact(self.id, str(path), folder),
            lambda: {f"{folder}/{path.name}" if folder else path.name: path.read_bytes()},
        )

    def log_artifacts(self, path: Path, name: str) -> None:
        """Uploads all files of a folder into the run's folder `name`."""
        self._upload(
            name,
            lambda: self._client.log_artifacts(self.id, str(path), name),
            lambda: {
                f"{name}/{file.relative_to(path)}": file.read_bytes() for file in path.rglob("*") if file.is_file()
            },
        )

    def log_model_card(self, text: str) -> None:
        """Logs the model card as `model_card.md`, and as the description of the run in the UI."""
        self.set_tag(_DESCRIPTION_TAG, text[:_MAX_DESCRIPTION_LENGTH])
        self._upload(
            _CARD_FILE,
            lambda: self._client.log_text(self.id, text, _CARD_FILE),
            lambda: {_CARD_FILE: text.encode()},
        )

    def set_tag(self, key: str, value: str) -> None:
        """Sets a tag with the next batch; tags known at the start of the run are passed to `open_run`."""
        self.logger.log_tag(key, value)

    def _upload(
        self, description: str, upload: Callable[[], object], read_files: Callable[[], Mapping[str, bytes]]
    ) -> None:
        """Uploads now; if the store fails, the background thread repeats it with the content that the files have now."""
        try:
            upload()
        except Exception:  # of any kind; the thread logs it if it is repeated in vain
            with log_tracking_errors(description):
                files = read_files()
                self.logger.submit(description, lambda: self._upload_files(files))

    def _upload_files(self, files: Mapping[str, bytes]) -> None:
        """Uploads files, given by their paths in the run, in one call."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            self._client.log_artifacts(self.id, folder)


class UnrecordedRun(TrackedRun):
    """Stands for a run where MLflow is not installed: what is logged is discarded. Its id only names the bundle."""

    is_recorded = False

    def __init__(self, *, name: str) -> None:
        self.id = uuid4().hex
        self.logger = DiscardingLogger(self.id, name=name)

    def _upload(
        self, description: str, upload: Callable[[], object], read_files: Callable[[], Mapping[str, bytes]]
    ) -> None:
        """Discards files."""


@contextlib.contextmanager
def open_run(
    spec: Spec,
    dataset: RunDataset,
    *,
    root: Path,
    trigger: str,
    action: str = "train",
    tracking_uri: str | None = None,
    parent_run_id: str | None = None,
    run_id: str | None = None,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
    """Opens a run for as long as the block lasts, in the experiment that has the spec's name.

    The run ends as FINISHED; as FAILED if the block raises; as KILLED if it is interrupted or terminated (SIGTERM, which
    raises SystemExit in the block unless another handler is set). A process that is killed with SIGKILL leaves it RUNNING, until
    the next run of this machine in the same store marks it as KILLED.

    Args:
        spec: Recorded as flat parameters.
        dataset: Recorded as the run's data set; its digest and cutoff are also tags.
        root: The folder of all state; database and artifacts are in it unless `tracking_uri` names a server.
        trigger: What started the training ("cli", "schedule", "monitor").
        action: What the run does ("train", "retrain", "tune", "backtest"), for its name.
        tracking_uri: Another MLflow store than that of `root`.
        parent_run_id: Id of the run that this one is part of (for a tuning trial).
        run_id: Id of a run to resume; it must have been opened with the same spec.
        run_name: Name of a new run in the UI; by default the spec's name, the action and the time (UTC).
        tags: Further tags; a new run has them from its creation.

    Raises RegistryError if the store cannot be opened, NoSuchModel if the run to resume does not exist.
    """
    from mlflow.entities import RunTag

    all_tags = (
        _build_tags(dataset, trigger=trigger, parent_run_id=parent_run_id) | make_process_tags() | dict(tags or {})
    )
    with _convert_sigterm_to_exit():
        client = registry.create_client(resolve_tracking_uri(root, tracking_uri))
        with registry.translate_store_errors(f"run '{run_id}'" if run_id else f"a run of '{spec.name}'"):
            if run_id is None:
                experiment = _get_or_create_experiment(
                    client, spec.name, None if tracking_uri else artifact_location(root)
                )
                run_name = run_name or _build_run_name(spec.name, action)
                run_id = str(client.create_run(experiment, tags=all_tags, run_name=run_name).info.run_id)
            else:
                _validate_resumable(client, run_id, spec)
                client.update_run(run_id, status="RUNNING")
                client.log_batch(run_id, tags=[RunTag(key, value) for key, value in all_tags.items()])
        run = TrackedRun(client, run_id, name=spec.name)
        status: RunStatus = "FAILED"
        try:
            run.logger.log_hyperparams(spec.model_dump())
            run.logger.flush()
            run.logger.submit("the end of interrupted runs", lambda: _end_interrupted_runs(client))
            run.logger.submit("the data set", lambda: client.log_inputs(run.id, [_build_dataset_input(dataset)]))
            yield run
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            run.logger.close(status)


def _build_run_name(model_name: str, action: str) -> str:
    return f"{model_name} {action} {datetime.now(UTC):%Y-%m-%d %H:%M}"


def mark_runs_killed(run_ids: Iterable[str], *, root: Path, tracking_uri: str | None = None) -> None:
    """Ends runs that a kill left open as KILLED; raises RegistryError if the store cannot be opened."""
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
        for key, metric_value in (headline_metrics or {}).items():
            client.log_metric(run_id, key, metric_value)


def record_finished_run(
    spec: Spec,
    *,
    action: str,
    root: Path,
    tracking_uri: str | None,
    tags: Mapping[str, str],
    metric_values: Mapping[str, float],
    texts: Mapping[str, str],
) -> str:
    """Records something that is done already as one finished run in the experiment of the model's trainings; returns its id.

    Args:
        spec: Specification of the model.
        action: What was done ("check", "register"), for the name of the run.
        root: The folder of all state.
        tracking_uri: Another MLflow store than that of `root`.
        tags: Tags of the run.
        metric_values: Metrics by name.
        texts: Contents of text files by name; the model card is also the description of the run.

    Raises RegistryError.
    """
    from mlflow.entities import Metric, RunTag

    if _CARD_FILE in texts:
        tags = {**tags, _DESCRIPTION_TAG: texts[_CARD_FILE][:_MAX_DESCRIPTION_LENGTH]}
    client = registry.create_client(resolve_tracking_uri(root, tracking_uri))
    with registry.translate_store_errors(f"a run of '{spec.name}'"):
        experiment = _get_or_create_experiment(client, spec.name, None if tracking_uri else artifact_location(root))
        run = client.create_run(experiment, run_name=_build_run_name(spec.name, action))
        now = run.info.start_time
        run_id = str(run.info.run_id)
        metrics = [Metric(name, value, now, 0) for name, value in metric_values.items()]
        client.log_batch(run_id, metrics=metrics, tags=[RunTag(*pair) for pair in tags.items()])
        for name, text in texts.items():
            client.log_text(run_id, text, name)
        client.set_terminated(run_id)
    return run_id


def record_imported_bundle(
    spec: Spec,
    facts: Mapping[str, Any],
    *,
    root: Path,
    tracking_uri: str | None,
    cutoff: Timestamp,
    digest: str,
    card: str,
) -> str:
    """Records a bundle that was trained elsewhere as a run with its scores and its card; returns the run's id.

    Args:
        spec: Specification of the model.
        facts: Facts of the bundle.
        root: The folder of all state.
        tracking_uri: Another MLflow store than that of `root`.
        cutoff: The last timestamp of its training data.
        digest: Digest of the bundle.
        card: Model card of the bundle.
    """
    scores = facts.get("backtest", {}).get(CHALLENGER, {})
    tags = {
        "trigger": "register",
        "cutoff": format_timestamp(cutoff),
        "data_digest": str(facts.get("data_digest", "")),
        "bundle_digest": digest,
        "trained_by": str(facts.get("run_id", "")),
    }
    return record_finished_run(
        spec,
        action="register",
        root=root,
        tracking_uri=tracking_uri,
        tags={name: value for name, value in tags.items() if value},
        metric_values={
            f"bt/{name}": value
            for name, value in scores.items()
            if value is not None and f"bt/{name}" in HEADLINE_METRICS
        },
        texts={_CARD_FILE: card},
    )


def has_run(run_id: str, *, store_uri: str) -> bool:
    """Whether the store has this run. Raises RegistryError."""
    client = registry.create_client(store_uri)
    try:
        with registry.translate_store_errors(f"run '{run_id}'"):
            client.get_run(run_id)
    except NoSuchModel:
        return False
    return True


def read_run_text(run_id: str, artifact_path: str, *, store_uri: str) -> str | None:
    """Reads a text file of a run; returns None if the run does not have it. Raises RegistryError."""
    client = registry.create_client(store_uri)
    folder, _, _ = artifact_path.rpartition("/")
    with (
        registry.translate_store_errors(f"run '{run_id}'"),
        tempfile.TemporaryDirectory(prefix="forecaster-") as target,
    ):
        sizes = {file.path: file.file_size for file in client.list_artifacts(run_id, folder or None)}
        if artifact_path not in sizes:
            return None
        location, path = client.get_run(run_id).info.artifact_uri, Path(target) / "text"
        download_file(location, artifact_path, path, uri=store_uri, num_bytes=sizes[artifact_path] or 0)
        return path.read_text()


def _end_interrupted_runs(client: MlflowClient) -> None:
    """Ends runs that were interrupted; a failure is logged and does not make the record of the current run incomplete."""
    with log_tracking_errors("the end of interrupted runs"):
        end_interrupted_runs(client)


def _validate_resumable(client: MlflowClient, run_id: str, spec: Spec) -> None:
    before, now = client.get_run(run_id).data.params, flatten_params(spec.model_dump())
    changed = [f"{key} = {before[key]}, now {now[key]}" for key in now if before.get(key, now[key]) != now[key]]
    if changed:
        raise RegistryError(
            f"Run '{run_id}' must be resumed with the spec it was opened with; changed: {'; '.join(changed)}. "
            "Resume it with its own spec, or open a new run.",
            where=run_id,
        )


def _build_tags(dataset: RunDataset, *, trigger: str, parent_run_id: str | None) -> dict[str, str]:
    """Builds the tags by which every run can be found."""
    tags = {"trigger": trigger, "cutoff": format_timestamp(dataset.cutoff), "data_digest": dataset.digest}
    if parent_run_id is not None:
        tags |= {"parent": parent_run_id, "mlflow.parentRunId": parent_run_id}  # the UI nests runs by the second
    return tags


def _build_dataset_input(dataset: RunDataset) -> DatasetInput:
    """Builds MLflow's record of the data set, without a password in its source."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = redact(dataset.source)
    kind, key = ("http", "url") if source.startswith(("http://", "https://")) else ("local", "uri")
    digest = dataset.digest[:_MAX_DATASET_DIGEST_LENGTH]
    mlflow_dataset = Dataset(dataset.name, digest, kind, json.dumps({key: source}))
    return DatasetInput(mlflow_dataset, [InputTag("mlflow.data.context", dataset.context)])


def _get_or_create_experiment(client: MlflowClient, name: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        return client.create_experiment(name, artifact_location=location)
    except MlflowException as error:
        experiment = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return str(experiment.experiment_id)  # another process created it in the meantime


@contextlib.contextmanager
def _convert_sigterm_to_exit() -> Iterator[None]:
    """Makes SIGTERM raise SystemExit once in the block, so that the run is closed before the process ends.

    A handler that is already set is kept. During a fit, Lightning installs its own handler in front of this one.
    """

    def raise_exit(signal_number: int, _: object) -> None:
        signal.signal(signal_number, signal.SIG_IGN)  # the run is being closed
        raise SystemExit(128 + signal_number)

    is_default = (
        threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not is_default:
        yield
        return
    signal.signal(signal.SIGTERM, raise_exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
