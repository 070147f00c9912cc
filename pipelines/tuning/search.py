"""Hyperparameter search: finds the specification with the smallest free-running error on the validation windows."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml

from forecaster.bundle.pretrained.base import zero_shot_predictor
from forecaster.data.calendar import default_season
from forecaster.data.split import hold_out
from forecaster.errors import BadSpec, InputError, NonFiniteLoss, TrainingError
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.baselines import SEASONAL_NAIVE, build_baselines, format_baseline
from forecaster.evaluation.validation import compute_error_scale
from forecaster.metrics import nanmean
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Panel
from forecaster.spec import Spec
from forecaster.storage import atomic
from forecaster.training.datamodule import split_panel
from forecaster.training.fit import FitResult, fit
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.tracking.run import RunDataset, TrackedRun, mark_runs_killed, open_run
from pipelines.tuning.plots import plot_optimization_history, plot_param_importances
from pipelines.tuning.search_space import (
    SearchScope,
    SearchSpace,
    apply_params,
    build_search_space,
    format_params,
    get_current_values,
)
from pipelines.tuning.study import DONE, PRUNED, REFUSED, PruningCallback, Study, Trial, TrialResult, open_study

_TRIGGER = "tune"
_WARM_UP_DIVISOR = 4  # no trial is pruned in the first epochs: a trial's usual number over this
_log = logging.getLogger(__name__)


class TuningResult(NamedTuple):
    """The result of a search.

    Attributes:
        spec: Specification of the best trial.
        best_value: Its free-running error on the validation windows, scaled by seasonal naive's error in training (MASE).
        baseline_values: The same error of every baseline, by name.
        season: Steps of the season by which errors are scaled.
        trials: All finished trials, in order.
        output_path: File that the specification was written to.
        run_id: Id of the search's MLflow run.
    """

    spec: Spec
    best_value: float
    baseline_values: Mapping[str, float]
    season: int
    trials: list[TrialResult]
    output_path: Path
    run_id: str

    @property
    def seasonal_naive_value(self) -> float:
        """The error of seasonal naive."""
        return self.baseline_values[SEASONAL_NAIVE]

    @property
    def ranked_trials(self) -> list[TrialResult]:
        """The completed trials, the best first."""
        return _rank(self.trials)


class _SearchContext(NamedTuple):
    """What every trial of a search needs."""

    panel: Panel
    base_spec: Spec  # the center of the search
    space: SearchSpace
    dataset: RunDataset
    root: Root
    study: Study
    parent_run: TrackedRun
    n_trials: int
    accelerator: str
    devices: str
    progress: Progress


def tune(
    data: DataSource,
    spec: Spec,
    root: Root,
    *,
    panel: Panel | None = None,
    output_path: Path,
    n_trials: int = 40,
    timeout: float | None = None,
    seed: int = 0,
    test_windows: int = 1,
    accelerator: str = "auto",
    devices: str = "1",
    progress: Progress = NO_PROGRESS,
) -> TuningResult:
    """Fits one specification per trial, the given one first, and keeps that with the best rollout on the validation windows.

    The test windows are removed before anything else is done with the data. All trials are scored on the same series: those
    that are long enough for the given specification. A killed search is resumed with its remaining trials.

    Args:
        data: Source of the panel.
        spec: Center of the search. Fields that are not in `search_space.SEARCH_DIMENSIONS` keep their values.
        root: Folder of all state.
        panel: The panel of the data, if it was read already.
        output_path: File to write the best specification to.
        n_trials: Number of trials to train, including those of earlier calls with the same arguments.
        timeout: Seconds after which no further trial is started; None for no limit.
        seed: Seed of the search. Every network is trained with the seed of the specification.
        test_windows: Number of windows of one horizon at the end of every series that the search does not use.
        accelerator, devices: As for `forecaster.training.fit.fit`.
        progress: Receives a phase for each trial.
    """
    validate_search(spec, n_trials=n_trials, timeout=timeout, seed=seed, test_windows=test_windows)
    started = time.monotonic()
    panel = read_panel(data.for_spec(spec)) if panel is None else panel
    for repair in panel.repairs:
        _log.warning("%s: %s", data.source, repair)
    search_panel = _select_search_panel(panel, spec, test_windows=test_windows)
    split_panel(search_panel, spec)  # rejects data that cannot be trained on before a run is opened
    space = build_search_space(SearchScope.from_panel(search_panel, spec))
    name = _build_study_name(search_panel, spec, space, seed=seed)
    season = spec.season or default_season(panel.freq)
    baseline_values = _score_baselines(search_panel, spec, season=season)
    dataset = RunDataset(data.name, search_panel.digest, data.source, search_panel.cutoff)
    with open_study(
        root.checkpoints, root.studies_url, name, space, seed=seed, warm_up_epochs=_count_warm_up_epochs(spec)
    ) as study:
        _resume_study(study, root, name=name, n_trials=n_trials)
        with open_run(
            spec,
            dataset,
            root=root.path,
            tracking_uri=root.tracking_uri,
            trigger=_TRIGGER,
            action="tune",
            run_id=_find_unfinished_run(study, root),
        ) as parent_run:
            study.run = {"id": parent_run.id, "store": root.store_uri}
            search = _SearchContext(
                search_panel,
                spec,
                space,
                dataset,
                root,
                study,
                parent_run,
                n_trials,
                accelerator,
                devices,
                progress,
            )
            while _count_trained(study) < n_trials:
                with _explain_interrupt(study, n_trials=n_trials):
                    _run_trial(search)
                if timeout is not None and time.monotonic() - started >= timeout:
                    _log.info("The timeout was reached after %d of %d trials.", _count_trained(study), n_trials)
                    break
            results = study.get_results()
            best = _select_best(results)
            best_spec = apply_params(spec, best.params)
            header = _format_header(
                best_spec, best, data, baseline_values=baseline_values, n_trials=_count_trained(study)
            )
            atomic.write_text(output_path, header + yaml.safe_dump(best_spec.model_dump(mode="json"), sort_keys=False))
            _record_search(search, best_spec, best, baseline_values=baseline_values, output_path=output_path)
        study.run = None  # further trials get a run of their own
    return TuningResult(best_spec, _get_value(best), baseline_values, season, results, output_path, parent_run.id)


def validate_search(spec: Spec, *, n_trials: int, timeout: float | None, seed: int, test_windows: int) -> None:
    """Validates the options of a search, and that a search can start from its specification; raises InputError."""
    if spec.training.initial == "base":
        raise BadSpec(
            "Expected training.initial 'random', because a search changes the network, to which the pretrained weights would not "
            "fit; found 'base'. Search from another specification, or fine-tune this one with `forecaster train --config`.",
            where="training.initial",
        )
    for option, value, minimum in (
        ("--trials", n_trials, 1),
        ("--test-windows", test_windows, 0),
        ("--valid-windows", spec.training.valid_windows, 1),
        ("--seed", seed, 0),
    ):
        if value < minimum:
            raise InputError(
                f"Expected {option} of at least {minimum}; found {value}. Use another number.",
                where=option.strip("-"),
            )
    if timeout is not None and not timeout > 0:
        raise InputError(f"Expected --timeout of more than 0 seconds; found {timeout:g}. Omit it for no limit.")


def select_history(panel: Panel, spec: Spec, *, test_windows: int) -> Panel:
    """Removes the test windows, and the series that are too short for the specification; raises HistoryTooShort."""
    return hold_out(panel, test_windows * spec.horizon, min_history=spec.min_steps + 1).history


def _select_search_panel(panel: Panel, spec: Spec, *, test_windows: int) -> Panel:
    """Removes the test windows, and the series that are too short for all trials; raises HistoryTooShort."""
    min_history = spec.validation_steps + spec.min_steps + 1
    return hold_out(panel, test_windows * spec.horizon, min_history=min_history).history


def _build_study_name(panel: Panel, spec: Spec, space: SearchSpace, *, seed: int) -> str:
    digest = hashlib.sha256(f"{panel.digest}{spec.to_identity_json()}{space!r}{seed}".encode()).hexdigest()
    return f"{spec.name}-{digest[:16]}"


def _score_baselines(panel: Panel, spec: Spec, *, season: int) -> dict[str, float]:
    """Scores the baselines on the validation windows like the trials (MASE).

    All series are used, also where an epoch of a trial is scored on a sample of them.
    """
    windows, stride = spec.training.valid_windows, spec.training.valid_stride
    pretrained = zero_shot_predictor(panel.freq, horizon=spec.horizon, season=season)
    forecasters = build_baselines(season=season, pretrained=pretrained)
    result = backtest(
        panel,
        forecasters,
        horizon=spec.horizon,
        windows=windows,
        stride=stride,
        season=season,
        min_history=spec.min_steps,
    )
    scales = np.array(
        [
            compute_error_scale(series.y[: len(series) - spec.validation_steps], season=season)
            for series in result.series
        ]
    )
    return {
        name: float(nanmean(np.abs(result.actual - forecasts) / scales[:, None, None]))
        for name, forecasts in result.forecasts.items()
    }


def _count_warm_up_epochs(spec: Spec) -> int:
    return max(1, spec.training.steps // spec.training.epoch_steps // _WARM_UP_DIVISOR)


def _resume_study(study: Study, root: Root, *, name: str, n_trials: int) -> None:
    """Ends the trials and runs that a killed process left open, and logs the progress of the search."""
    stale_run_ids = study.fail_stale_trials()
    mark_runs_killed(
        [run_id for run_id in stale_run_ids if run_id is not None], root=root.path, tracking_uri=root.tracking_uri
    )
    if stale_run_ids or study.get_results():
        repeated = f", {len(stale_run_ids)} was interrupted and is repeated" if stale_run_ids else ""
        _log.info("Search %s is resumed: %d of %d trials are done%s.", name, _count_trained(study), n_trials, repeated)


def _find_unfinished_run(study: Study, root: Root) -> str | None:
    run = study.run
    return run["id"] if run is not None and run["store"] == root.store_uri else None


def _count_trained(study: Study) -> int:
    return sum(result.state != REFUSED for result in study.get_results())


@contextmanager
def _explain_interrupt(study: Study, *, n_trials: int) -> Iterator[None]:
    """Adds a note to an interrupt that says which trials are kept."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(
            f"{_count_trained(study)} of {n_trials} trials are kept; the same command continues after them."
        )
        raise


def _run_trial(search: _SearchContext) -> None:
    """Trains one specification; an inconsistent one is rejected without training and does not count as a trial."""
    trial = search.study.ask(get_current_values(search.base_spec, search.space))
    trial_number = _count_trained(search.study) + 1
    try:
        spec = apply_params(search.base_spec, trial.params)
    except BadSpec as error:
        search.study.finish_trial(trial, None, fault=error.message)
        return
    started, pruning_callback = time.monotonic(), PruningCallback(trial)
    with search.progress.phase(f"trial {trial_number} of {search.n_trials}", spec.training.steps):
        search.progress.update(0, format_params(trial.params))
        try:
            fitted, fault = _fit_trial(search, spec, trial, pruning_callback, trial_number=trial_number), None
        except NonFiniteLoss as error:
            fitted, fault = None, error.message
        value = None if fitted is None or pruning_callback.was_pruned else fitted.scores["valid/rollout"]
        search.study.finish_trial(trial, value, seconds=time.monotonic() - started, fault=fault)
        _report_trial(search, search.study.get_results()[-1], fitted)


def _fit_trial(
    search: _SearchContext, spec: Spec, trial: Trial, pruning_callback: PruningCallback, *, trial_number: int
) -> FitResult:
    """Fits one specification and records it in a child run of the search's run; raises NonFiniteLoss."""
    root, started = search.root, time.monotonic()
    with open_run(
        spec,
        search.dataset,
        root=root.path,
        tracking_uri=root.tracking_uri,
        trigger=_TRIGGER,
        parent_run_id=search.parent_run.id,
        run_name=f"trial {trial_number}",
        tags={"trial": str(trial_number)},
    ) as run:
        search.study.start_trial(trial, trial_number=trial_number, run_id=run.id)
        fitted = fit(
            search.panel,
            spec,
            loggers=[run.logger],
            callbacks=[pruning_callback],
            accelerator=search.accelerator,
            devices=search.devices,
            progress=search.progress,
        )
        seconds = time.monotonic() - started
        run.log_headline_metrics(
            {"train/seconds": seconds, "train/windows_per_s": fitted.steps * spec.training.batch / seconds}
        )
        run.set_tag("state", PRUNED if pruning_callback.was_pruned else DONE)
        run.logger.log_metrics({"tune/value": fitted.scores["valid/rollout"]}, fitted.epochs)
    return fitted


def _report_trial(search: _SearchContext, result: TrialResult, fitted: FitResult | None) -> None:
    """Reports the result of a trial, and records the best one so far."""
    outcome = (
        result.state
        if result.state != PRUNED
        else f"pruned after {result.epochs} epochs"
        if result.fault is None
        else "diverged"
    )
    ranked = _rank(search.study.get_results())
    best = f"; the best is {ranked[0].value:.4g} of trial {ranked[0].trial}" if ranked else ""
    value = "" if result.value is None else f"MASE {result.value:.4g}, "
    search.progress.update(0 if fitted is None else fitted.steps, f"{value}{outcome}{best}")
    if ranked:
        search.parent_run.logger.log_metrics({"tune/value": _get_value(ranked[0])}, result.trial)


def _rank(results: list[TrialResult]) -> list[TrialResult]:
    """Returns the completed trials, the best first; among equal values the earlier first."""
    return sorted((result for result in results if result.state == DONE), key=_get_value)


def _get_value(result: TrialResult) -> float:
    assert result.value is not None, "a completed trial has a value"
    return result.value


def _select_best(results: list[TrialResult]) -> TrialResult:
    ranked = _rank(results)
    if not ranked:
        faults = [result.fault for result in results if result.fault is not None]
        raise TrainingError(
            f"Expected at least one trial that completes; none of {len(results)} did. The last error: {faults[-1]}",
            where="trials",
        )
    return ranked[0]


def _format_header(
    spec: Spec, best_result: TrialResult, data: DataSource, *, baseline_values: Mapping[str, float], n_trials: int
) -> str:
    """Formats the YAML comment that precedes the best specification."""
    return (
        f"# Found by `forecaster tune` on {data.name}: the best of {n_trials} trials, by the free-running error on the last "
        f"{spec.training.valid_windows} validation windows.\n"
        f"# MASE {best_result.value:.4g}, {format_baseline_values(baseline_values)}.\n"
    )


def format_baseline_values(values: Mapping[str, float]) -> str:
    """Formats the errors of the baselines: seasonal naive 1.02, the last value 1.31."""
    return ", ".join(f"{format_baseline(name)} {value:.4g}" for name, value in values.items())


def _record_search(
    search: _SearchContext,
    best_spec: Spec,
    best_result: TrialResult,
    *,
    baseline_values: Mapping[str, float],
    output_path: Path,
) -> None:
    """Records the result, the plots and the table of trials in the run of the search."""
    run, results, name = search.parent_run, search.study.get_results(), search.base_spec.name
    run.logger.log_hyperparams({"best": best_spec.model_dump(), "best.trial": best_result.trial})
    run.logger.log_metrics(
        {
            **{f"tune/{name}": value for name, value in baseline_values.items()},
            "tune/trials": len([result for result in results if result.trial]),
        }
    )
    points = [
        (result.trial, result.value, result.state == DONE)
        for result in results
        if result.trial is not None and result.value is not None
    ]
    title = f"{name}: free-running error on the validation windows by trial"
    run.log_figure(
        "plots/optimization_history.png",
        plot_optimization_history(
            points,
            baseline_values={name.replace("_", " "): value for name, value in baseline_values.items()},
            title=title,
        ),
    )
    importances = search.study.compute_importances()
    if importances:
        title = f"{name}: parameter importance"
        run.log_figure("plots/parameter_importance.png", plot_param_importances(importances, title=title))
    run.log_artifact(output_path)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trials.csv"
        _build_trials_table(results).to_csv(path, index=False)
        run.log_artifact(path, "tune")


def _build_trials_table(results: list[TrialResult]) -> pd.DataFrame:
    """Builds a table with one row per trial, including rejected ones."""
    return pd.DataFrame([{**result._asdict(), **result.params} for result in results]).drop(columns="params")
