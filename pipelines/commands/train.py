"""The commands `forecaster train` and `forecaster retrain`."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from forecaster.errors import LedgerError, MissingPackage, RefusedByGate
from forecaster.installation import DISTRIBUTION, describe_missing_module
from pipelines.commands.console import name_options, print_scores, print_verdict, warn, warn_about_partial_periods
from pipelines.commands.model_options import resolve_bundle
from pipelines.commands.options import (
    DataOptions,
    DeviceOptions,
    RootOptions,
    SpecOptions,
    validate_counts,
)
from pipelines.commands.schedule import ScheduleOptions, schedule_command
from pipelines.scheduling.ray_tasks import WorkPlace

if TYPE_CHECKING:
    from forecaster.series import Panel
    from pipelines.settings import Root

_ROOT_OPTIONS, _DATA_OPTIONS = RootOptions(), DataOptions()
_SPEC_OPTIONS, _SCHEDULE_OPTIONS, _DEVICE_OPTIONS = SpecOptions(), ScheduleOptions(), DeviceOptions()


def train(
    data: str | None = None,
    *,
    spec_options: SpecOptions = _SPEC_OPTIONS,
    start_from: str | None = None,
    seed: int | None = None,
    test_windows: int = 1,
    on_disk: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    on: WorkPlace = "local",
    device_options: DeviceOptions = _DEVICE_OPTIONS,
    data_options: DataOptions = _DATA_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Fits a model, backtests it on held-out windows, and writes its bundle. After an interruption, the same command resumes it.

    Parameters
    ----------
    data
        A CSV or Parquet file with the columns unique_id, ds, y; a folder of such files, where later ones (by name) correct
        earlier ones; a file or folder in an object store (s3://bucket/sales.parquet); or a built-in data set: hospital,
        sine_trend.
    start_from
        A bundle folder, or a registered model as NAME or NAME@ALIAS, whose weights to start from. Its specification is used
        unless --config is given.
    seed
        Seed; overrides the specification.
    test_windows
        Rolling origins that are held out from the fit to test the model; 0 trains on all data.
    on_disk
        Keep the values in a file in the root rather than in memory, for data larger than the memory: DATA is then a Parquet
        file, or a folder of Parquet files in which the rows of each series are together. The weights are the same.
    on
        Where the variants of a preset are compared, if there is no --config: one after the other on this machine, or at the same
        time, each on one CPU, on the Ray cluster that RAY_ADDRESS names (docs/batch.md). The model is trained on this machine.
    """
    from forecaster.bundle import artifact
    from forecaster.progress.display import create_display
    from pipelines.sources.on_disk import read_training_panel
    from pipelines.training import train as training

    progress = create_display()
    source = spec_options.columns.apply(data_options.to_data_source(data))
    initial = None if start_from is None else artifact.load_bundle(resolve_bundle(start_from, root_options))
    root = root_options.open_root()
    options = training.TrainOptions(
        test_windows=test_windows,
        record=can_record(root),
        accelerator=device_options.accelerator,
        devices=device_options.devices,
    )
    device_options.validate(allow_several=True)
    if on == "ray":
        device_options.validate_cluster(on_disk=on_disk)
    spec = spec_options.read_spec(seed=seed, fallback=None if initial is None else initial.spec)
    now = datetime.now(UTC)
    folder = root.path if on_disk else None
    panel = read_training_panel(source.for_spec(spec), folder=folder, now=now, progress=progress)
    warn_about_partial_periods(panel, now=now)
    with spec_options.select_spec(
        spec,
        panel,
        source,
        root,
        seed=seed,
        test_windows=test_windows,
        device_options=device_options,
        on=on,
        progress=progress,
    ) as selection:
        options = replace(options, candidates=selection.candidates, selection_reason=selection.reason)
        result = training.train(source, selection.spec, root, options, panel=panel, initial=initial, progress=progress)
    scale_note = None if result.backtest is None else result.backtest.scale_note
    print_scores(result.scores, scale_note, season=result.model.season)
    run_id = result.run_id or f"not recorded: MLflow is not installed (pip install '{DISTRIBUTION}[track]')"
    print(f"bundle  {result.bundle}\nrun     {run_id}\ndigest  {result.digest}")
    if result.advice is not None:
        warn(name_options(result.advice))


def can_record(root: Root) -> bool:
    """Whether MLflow is installed, for the database of a root as well (MLflow's small distribution lacks it).

    Raises MissingPackage if it is not, and a tracking server was declared.
    """
    if root.tracking_uri is not None:
        _require_mlflow("the tracking server")
        return True
    return all(find_spec(name) is not None for name in ("mlflow", "alembic"))


def _require_mlflow(purpose: str) -> None:
    """Raises MissingPackage if MLflow is not installed, before a training that would be in vain; does not import it."""
    if find_spec("mlflow") is None:
        raise describe_missing_module("mlflow", purpose=purpose)


def retrain(
    data: str | None = None,
    *,
    spec_options: SpecOptions = _SPEC_OPTIONS,
    warm: bool = False,
    seed: int | None = None,
    test_windows: int = 1,
    policy: Path | None = None,
    trigger: str = "cli",
    again: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    if_needed: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    min_new: int | None = None,
    on_disk: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    schedule_options: ScheduleOptions = _SCHEDULE_OPTIONS,
    device_options: DeviceOptions = _DEVICE_OPTIONS,
    data_options: DataOptions = _DATA_OPTIONS,
    root_options: RootOptions = _ROOT_OPTIONS,
) -> None:
    """Trains a challenger, and promotes it if it is better than champion and baselines on the same origins.

    Exits with 0 if it was promoted and with 3 if it was not, so it can be run from cron. The same data, specification, policy
    and code give one version: a repeated call, also after an interruption, returns the recorded verdict.

    Parameters
    ----------
    data
        Input data, as for train.
    warm
        Start from the champion's weights, if there is a champion; the specification has to have the same network.
    seed
        Seed; overrides the specification.
    test_windows
        Rolling origins on which the challenger is judged, one horizon apart.
    policy
        Thresholds of the promotion gate in YAML (see docs/retraining.md); omitted fields keep their defaults.
    trigger
        What started the retraining, for the run's tags.
    again
        Train and judge again, even if the same retraining was done before.
    if_needed
        Train only if there is a reason: no champion, new data, or a finding of monitoring. Prints the reasons; exits with 0
        if there are none.
    min_new
        With --if-needed: number of new steps that trigger a retraining; by default the champion's horizon.
    on_disk
        Keep the values in a file in the root, as for train. The version and the verdict are the same.
    """
    arguments = {name: value for name, value in locals().items() if name not in ("schedule_options", "root_options")}
    from forecaster.progress.display import create_display
    from pipelines.promotion.policy import read_policy
    from pipelines.retraining import retrain as retraining
    from pipelines.sources import derive_model_name
    from pipelines.sources.on_disk import read_training_panel

    validate_counts(min_new=min_new)
    source = spec_options.columns.apply(data_options.to_data_source(data))
    options = retraining.RetrainOptions(
        test_windows=test_windows,
        trigger=trigger,
        warm_start=warm,
        policy=read_policy(policy),
        force_retrain=again,
        accelerator=device_options.accelerator,
        devices=device_options.devices,
    )
    spec = spec_options.read_spec(seed=seed)
    name = derive_model_name(source.name) if spec is None else spec.name
    if schedule_options.cron is not None:
        arguments["trigger"] = "schedule" if trigger == "cli" else trigger
        schedule_command(name, "retrain", arguments, schedule_options, root_options)
        return
    _require_mlflow("the registry of a retraining")
    device_options.validate(allow_several=True)  # a scheduled job may run on another machine
    root, progress = root_options.open_root(), create_display()
    now = datetime.now(UTC)
    folder = root.path if on_disk else None
    panel = read_training_panel(source.for_spec(spec), folder=folder, now=now, progress=progress)
    warn_about_partial_periods(panel, now=now)
    if if_needed and not _needs_retraining(
        name, panel, root, min_new_steps=min_new, max_days_ahead=options.policy.days_ahead
    ):
        return
    with spec_options.select_spec(
        spec,
        panel,
        source,
        root,
        seed=seed,
        test_windows=test_windows,
        device_options=device_options,
        progress=progress,
    ) as selection:
        options = replace(options, candidates=selection.candidates, selection_reason=selection.reason)
        result = retraining.retrain(source, selection.spec, root, options, panel=panel, progress=progress)
    print(f"key     {result.key}{' (done before; this is the recorded verdict)' if result.already_done else ''}")
    scale_note = None if result.training.backtest is None else result.training.backtest.scale_note
    print_scores(result.training.scores, scale_note, season=result.training.model.season)
    print_verdict(result.verdict)
    print(f"report  {result.report_path}")
    version = f"{result.version.name} version {result.version.number}"
    reasons = "; ".join(result.verdict.reasons)
    if result.training.advice is not None:
        warn(name_options(result.training.advice))
    if not result.verdict.should_promote:
        raise RefusedByGate(f"{version} was registered but not promoted: {reasons}.")
    if result.champion_version == result.version:
        print(f"{version} is the champion: {reasons}")
    else:
        champion = "none" if result.champion_version is None else f"version {result.champion_version.number}"
        print(f"{version} was promoted before and is not the champion now; the champion is {champion}")


def _find_ledger_reasons(name: str, root: Root) -> list[str]:
    """Returns the reasons from the ledger of served forecasts; if it cannot be read, it gives a warning and no reasons."""
    from pipelines.monitoring.monitor import find_retrain_reasons

    try:
        return find_retrain_reasons(root, name, url=os.environ.get("FORECASTER_SERVING_LEDGER"))
    except (LedgerError, MissingPackage) as error:
        warn(f"the ledger was not checked; {error.message}")
        return []


def _needs_retraining(name: str, panel: Panel, root: Root, *, min_new_steps: int | None, max_days_ahead: float) -> bool:
    from pipelines.retraining.triggers import check_triggers

    result = check_triggers(
        name,
        panel,
        root,
        min_new_steps=min_new_steps,
        checks=[lambda: _find_ledger_reasons(name, root)],
        max_days_ahead=max_days_ahead,
    )
    if result:
        print(f"needed  {'; '.join(result.reasons)}")
    else:
        print(f"nothing to do: {result.summary}")
    return bool(result)
