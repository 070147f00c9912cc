"""The result of a search: the best specification, what it is compared with, and its record in the run of the search."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from forecaster.errors import TrainingError
from forecaster.evaluation.baselines import SEASONAL_NAIVE, format_baseline
from forecaster.spec import Spec
from pipelines.sources import DataSource
from pipelines.tracking.run import TrackedRun
from pipelines.tuning.plots import plot_optimization_history, plot_param_importances
from pipelines.tuning.study import DONE, Study, TrialResult


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
        return rank_trials(self.trials)


def rank_trials(results: list[TrialResult]) -> list[TrialResult]:
    """Returns the completed trials, the best first; among equal values the earlier first."""
    return sorted((result for result in results if result.state == DONE), key=get_value)


def get_value(result: TrialResult) -> float:
    """Returns the value of a completed trial."""
    assert result.value is not None, "a completed trial has a value"
    return result.value


def select_best(results: list[TrialResult]) -> TrialResult:
    """Returns the best trial; raises TrainingError if none was completed."""
    ranked = rank_trials(results)
    if not ranked:
        faults = [result.fault for result in results if result.fault is not None]
        raise TrainingError(
            f"Expected at least one trial that completes; none of {len(results)} did. The last error: {faults[-1]}",
            where="trials",
        )
    return ranked[0]


def format_header(
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


def record_search(
    run: TrackedRun,
    study: Study,
    best_spec: Spec,
    best_result: TrialResult,
    *,
    baseline_values: Mapping[str, float],
    output_path: Path,
) -> None:
    """Records the result, the plots and the table of trials in the run of the search."""
    results, name = study.get_results(), best_spec.name
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
    importances = study.compute_importances()
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
