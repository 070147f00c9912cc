"""Runs as MLflow has them: found by what people call them, read with their scores, specification and raw forecasts."""

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

_RUN_ID_PATTERN = re.compile(r"[0-9a-f]{4,32}")  # MLflow's, or their beginning
_RUN_ID_LENGTH = 32


class RunRecord(NamedTuple):
    """One run.

    Attributes:
        label: What it is called beside others.
        run_id: MLflow's.
        name: Of the run, as MLflow shows it.
        params: The specification, flat.
        metrics: The last value of each.
        tags: As they are.
        context: What its data set was used for: training or evaluation; None where it names none.
        kept: Raw forecasts, where it was tested.
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
    """The run that is meant by its id, the beginning of its id, NAME, NAME@ALIAS or NAME@VERSION.

    Raises InputError where there is none, or more than one.
    """
    client = registry.create_client(root.store_uri)
    run_id, label = _resolve_run(client, reference, root)
    with registry.translate_store_errors(f"run '{run_id}'"):
        run = client.get_run(run_id)
    inputs: list[Any] = [] if run.inputs is None else run.inputs.dataset_inputs
    contexts = [tag.value for one in inputs for tag in one.tags if tag.key == "mlflow.data.context"]
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
    """The id of a run, and what it is called where it was named as a model."""
    if _RUN_ID_PATTERN.fullmatch(reference):
        found = _find_runs_by_prefix(client, reference)
        if len(found) == 1:
            return found[0], None
        if found:
            raise InputError(
                f"Expected the beginning of one run's id; {reference!r} begins {len(found)} of them: {', '.join(found[:4])}. "
                "Give more of it.",
                where=reference,
            )
    name, _, which = reference.partition("@")
    store = Registry(root.store_uri)
    try:
        version = store.get_version(name, which) if which.isdecimal() else store.resolve(name, which or CHAMPION)
    except NoSuchModel as error:
        raise InputError(
            f"Expected a run's id (its beginning is enough) or a model as NAME@ALIAS or NAME@VERSION; found {reference!r}, which is "
            f"neither in {root.path if root.tracking_uri is None else 'the tracking server'}. The MLflow UI lists them.",
            where=reference,
        ) from error
    if version.run_id is None:
        raise InputError(f"Expected a version with a run; {version} has none. Name a run instead.", where=reference)
    return version.run_id, f"{name}@{which or CHAMPION}"


def _find_runs_by_prefix(client: MlflowClient, prefix: str) -> list[str]:
    with registry.translate_store_errors(f"run '{prefix}'"):
        if len(prefix) == _RUN_ID_LENGTH:
            try:
                return [str(client.get_run(prefix).info.run_id)]
            except Exception as error:
                if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                    return []
                raise
        experiments = [one.experiment_id for one in client.search_experiments(max_results=1000)]
        return [
            str(one.info.run_id)
            for start in range(0, len(experiments), 100)
            for one in client.search_runs(
                experiments[start : start + 100], f"attributes.run_id LIKE '{prefix}%'", max_results=10
            )
        ]


def _load_stored_backtest(client: MlflowClient, run: Run) -> StoredBacktest | None:
    with registry.translate_store_errors(f"the forecasts of run '{run.info.run_id}'"):
        there = {Path(one.path).name for one in client.list_artifacts(run.info.run_id, BACKTEST_FOLDER)}
        if "forecasts.parquet" not in there:
            return None
        with tempfile.TemporaryDirectory(prefix="forecaster-") as folder:
            copied = client.download_artifacts(run.info.run_id, BACKTEST_FOLDER, folder)
            return read_backtest(Path(copied), model_column=run.data.tags.get(SCORED_TAG, CHALLENGER))
