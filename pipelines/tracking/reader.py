"""Reads MLflow runs: resolves a reference to a run, and loads its scores, specification and raw forecasts."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from forecaster.errors import InputError, NoSuchModel
from forecaster.registry import registry
from forecaster.registry.registry import CHALLENGER, CHAMPION, Registry
from pipelines.settings import Root
from pipelines.tracking.backtests import BACKTEST_FOLDER, SCORED_TAG, StoredBacktest, read_backtest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_RUN_ID_PATTERN = re.compile(r"[0-9a-f]{4,32}")  # an MLflow run id, or a prefix of one
_RUN_ID_LENGTH = 32


class RunRecord(NamedTuple):
    """One run.

    Attributes:
        label: Display name that distinguishes the run in a comparison.
        run_id: MLflow's run id.
        name: The run's name in MLflow.
        params: The flattened specification.
        metrics: The last value of each metric.
        tags: The run's tags, without those of MLflow.
        dataset_context: What its data set was used for, training or evaluation; None if it has no data set.
        stored_backtest: Raw forecasts of its backtest; None if it has none.
    """

    label: str
    run_id: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    dataset_context: str | None
    stored_backtest: StoredBacktest | None


def load_run(reference: str, root: Root) -> RunRecord:
    """Loads the run with the given id or prefix of an id, or that of the model NAME, NAME@ALIAS or NAME@VERSION.

    Raises InputError if no run matches, or more than one.
    """
    client = registry.create_client(root.store_uri)
    run_id, label = _resolve_run(client, reference, root)
    with registry.translate_store_errors(f"run '{run_id}'"):
        run = client.get_run(run_id)
    inputs: list[Any] = [] if run.inputs is None else run.inputs.dataset_inputs
    contexts = [tag.value for dataset in inputs for tag in dataset.tags if tag.key == "mlflow.data.context"]
    data = run.data
    return RunRecord(
        label or f"{data.params.get('name', run.info.run_name)} {run_id[:6]}",
        run_id,
        str(run.info.run_name),
        data.params,
        data.metrics,
        {key: value for key, value in data.tags.items() if not key.startswith("mlflow.")},
        contexts[0] if contexts else None,
        _load_stored_backtest(client, run),
    )


def _resolve_run(client: MlflowClient, reference: str, root: Root) -> tuple[str, str | None]:
    """Returns the id of a run, and the label NAME@ALIAS or NAME@VERSION if it was referenced as a model."""
    if _RUN_ID_PATTERN.fullmatch(reference):
        run_ids = _find_runs_by_prefix(client, reference)
        if len(run_ids) == 1:
            return run_ids[0], None
        if run_ids:
            raise InputError(
                f"Expected an unambiguous prefix of a run id; {reference!r} matches {len(run_ids)}: {', '.join(run_ids[:4])}. "
                "Give a longer prefix.",
                where=reference,
            )
    name, _, alias_or_number = reference.partition("@")
    model_registry = Registry(root.store_uri)
    try:
        version = (
            model_registry.get_version(name, alias_or_number)
            if alias_or_number.isdecimal()
            else model_registry.resolve(name, alias_or_number or CHAMPION)
        )
    except NoSuchModel as error:
        raise InputError(
            f"Expected a run id (or a prefix) or a model as NAME@ALIAS or NAME@VERSION; found {reference!r}, which does "
            f"not exist in {root.path if root.tracking_uri is None else 'the tracking server'}. Look it up in the MLflow UI.",
            where=reference,
        ) from error
    if version.run_id is None:
        raise InputError(f"Expected a version with a run; {version} has none. Give a run id instead.", where=reference)
    return version.run_id, f"{name}@{alias_or_number or CHAMPION}"


def _find_runs_by_prefix(client: MlflowClient, prefix: str) -> list[str]:
    with registry.translate_store_errors(f"run '{prefix}'"):
        if len(prefix) == _RUN_ID_LENGTH:
            try:
                return [str(client.get_run(prefix).info.run_id)]
            except Exception as error:
                if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise
        experiments = [experiment.experiment_id for experiment in client.search_experiments(max_results=1000)]
        return [
            str(run.info.run_id)
            for start in range(0, len(experiments), 100)
            for run in client.search_runs(
                experiments[start : start + 100], f"attributes.run_id LIKE '{prefix}%'", max_results=10
            )
        ]


def _load_stored_backtest(client: MlflowClient, run: Run) -> StoredBacktest | None:
    with registry.translate_store_errors(f"the forecasts of run '{run.info.run_id}'"):
        file_names = {Path(file.path).name for file in client.list_artifacts(run.info.run_id, BACKTEST_FOLDER)}
        if "forecasts.parquet" not in file_names:
            return None
        with tempfile.TemporaryDirectory(prefix="forecaster-") as folder:
            local_folder = client.download_artifacts(run.info.run_id, BACKTEST_FOLDER, folder)
            return read_backtest(Path(local_folder), model_column=run.data.tags.get(SCORED_TAG, CHALLENGER))
