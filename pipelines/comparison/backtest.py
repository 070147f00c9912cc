"""Backtests of models, baselines and other models on the same rolling origins: scores, figures, and a tracked run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.bundle import artifact
from forecaster.bundle.pretrained.base import BASE_FOLDER, specialize_to_panel, zero_shot_predictor
from forecaster.engines.statistical.blend import format_blend_weights
from forecaster.engines.statistical.models import MAX_ETS_SEASON, require_model_package
from forecaster.errors import LevelOutOfRange
from forecaster.evaluation.backtest import Backtest, explain_missing_forecasts
from forecaster.evaluation.backtest import backtest as run_backtest
from forecaster.evaluation.baselines import (
    ZERO_SHOT,
    ForecastFunction,
    build_baselines,
    statistical_baseline,
)
from forecaster.evaluation.calibration import add_quantiles
from forecaster.evaluation.scores import SCORED_LEVELS, group_series, overall_scores, score_table
from forecaster.evaluation.significance import SignificanceResult, compare_forecasters
from forecaster.frequency.timestamps import is_earlier
from forecaster.prediction.fitted_model import as_fitted_model
from forecaster.prediction.head_quantiles import has_quantiles
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.progress.steps import RunSteps
from forecaster.series import Panel
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.tracking import backtests
from pipelines.tracking.run import RunDataset, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_WARNINGS = 3  # warnings of one forecaster that are reported individually


class LoadedBundle(NamedTuple):
    """A model that takes part in a backtest, and the folder of its bundle."""

    bundle: Path
    model: FittedModel

    @property
    def is_pretrained(self) -> bool:
        """Whether this is the pretrained network that ships with the package."""
        return self.bundle == BASE_FOLDER

    def specialize(self, panel: Panel, *, horizon: int | None, season: int | None) -> LoadedBundle:
        """Returns the pretrained network for the data of a panel; other models as they are."""
        if not self.is_pretrained:
            return self
        return self._replace(model=specialize_to_panel(panel, horizon=horizon, season=season).to_fitted_model())


class BacktestReport(NamedTuple):
    """The result of a backtest.

    Attributes:
        model_name: The name of the model that the other forecasters are compared with.
        panel: The whole panel that was read.
        result: The raw forecasts and the actuals.
        scores: The table of `score_table`.
        comparisons: For each other forecaster, how its errors differ from the model's.
        messages: Warnings for the user, one line each.
        season: Steps of the season by which errors are scaled.
        dash_reasons: Why scores in the table are missing, one line each.
    """

    model_name: str
    panel: Panel
    result: Backtest
    scores: pd.DataFrame
    comparisons: Mapping[str, SignificanceResult]
    messages: Sequence[str]
    season: int
    dash_reasons: Sequence[str] = ()

    @property
    def overall_scores(self) -> dict[str, dict[str, float]]:
        """The scores over all series and steps, by forecaster, then by metric."""
        return overall_scores(self.scores)


def backtest(
    bundles: Mapping[str, LoadedBundle],
    data: DataSource,
    *,
    baselines: Sequence[str] = (),
    horizon: int | None = None,
    windows: int = 1,
    stride: int | None = None,
    season: int | None = None,
    levels: Sequence[float] = (),
    group_by: str | None = None,
    n_jobs: int = 1,
    run_steps: RunSteps | None = None,
    progress: Progress = NO_PROGRESS,
    now: datetime | None = None,
) -> BacktestReport:
    """Runs models and baselines at the same origins, and scores them.

    Args:
        bundles: Models by name; the others are compared with the first, which also sets horizon and season.
        data: Where the panel comes from; the additional columns of all models are read with it.
        baselines: Statistical baselines; seasonal naive and the last value are always included, and the pretrained network unless
            it is one of the models.
        horizon: Steps ahead; by default the first model's horizon.
        windows: Rolling origins of each series.
        stride: Steps between the origins; by default one horizon.
        levels: Levels of the quantiles to keep, in addition to those that scores need.
        season: Steps of the season by which errors are scaled, and of the baselines; by default the first model's. The pretrained
            network has this season too, by default that of the frequency.
        group_by: A static column; the groups of its values are scored too.
        n_jobs: Processes that fit baselines in parallel.
        run_steps: What fits the baselines elsewhere; by default these processes. Networks forecast all origins in this one.
        progress: Receives the phases: reading, backtest.
        now: The present, for data whose incomplete last periods are dropped.
    """
    model_name, model = next((name, loaded.model) for name, loaded in bundles.items())
    _validate_levels(levels, model)
    for name in baselines:
        require_model_package(name)
    panel = read_panel(_add_required_columns(data, list(bundles.values()), group_by), now=now, progress=progress)
    bundles = {name: loaded.specialize(panel, horizon=horizon, season=season) for name, loaded in bundles.items()}
    model = bundles[model_name].model
    season = season or model.season
    forecasters: dict[str, ForecastFunction | Predictor] = {
        name: Predictor(loaded.model) for name, loaded in bundles.items()
    }
    models = {name: loaded.model for name, loaded in bundles.items()}
    pretrained = zero_shot_predictor(
        panel.freq, horizon=horizon or model.spec.horizon, season=season, models=models.values()
    )
    forecasters |= build_baselines(season=season, pretrained=pretrained)
    for name in dict.fromkeys(baselines):
        on_history = partial(_count_histories, progress, len(forecasters))
        forecasters[name] = statistical_baseline(
            name, season=season, jobs=n_jobs, run_steps=run_steps, progress=on_history
        )
    group_series(panel.series, group_by)  # raises before the work rather than after it
    result = run_backtest(
        panel,
        forecasters,
        horizon=horizon or model.spec.horizon,
        windows=windows,
        season=season,
        min_history=model.spec.min_steps,
        stride=stride,
        progress=progress,
    )
    with_quantiles = dict(models)
    if pretrained is not None and any(map(has_quantiles, models.values())):
        with_quantiles[ZERO_SHOT] = as_fitted_model(pretrained.fitted_model)
    result = add_quantiles(result, with_quantiles, levels=(*SCORED_LEVELS, *levels))
    comparisons = {name: compare_forecasters(result, model_name, name) for name in forecasters if name != model_name}
    scores = pd.concat([score_table(result, by=group_by), _build_difference_table(comparisons)], ignore_index=True)
    messages = _collect_messages(panel, result, models, season)
    dash_reasons = tuple(_explain_dashes(result, models, overall_scores(scores)))
    return BacktestReport(model_name, panel, result, scores, comparisons, messages, season, dash_reasons)


def _count_histories(progress: Progress, forecasters_before: int, done: int, total: int) -> None:
    progress.update(forecasters_before * total + done)


def draw_figures(report: BacktestReport) -> dict[str, Figure]:
    """Draws figures by file name: error by step ahead, best and worst series; with intervals their calibration and bands."""
    from forecaster.evaluation.interval_plots import plot_interval_bands, plot_reliability
    from forecaster.evaluation.plots import plot_best_and_worst, plot_calibration, plot_error_by_step

    figures = {
        "error_by_horizon.png": plot_error_by_step(report.result),
        "best_and_worst.png": plot_best_and_worst(report.result, report.model_name),
    }
    if report.result.quantiles:
        figures["calibration.png"] = plot_calibration(report.result)
        figures["reliability.png"] = plot_reliability(report.result)
    if report.model_name in report.result.quantiles:
        figures["intervals.png"] = plot_interval_bands(report.result, report.model_name)
    return figures


def save_figures(report: BacktestReport, path: Path, *, is_folder: bool) -> None:
    """Saves the error by step ahead as a file, or all figures in a folder, which is created."""
    if not is_folder:
        from forecaster.evaluation.plots import plot_error_by_step

        plot_error_by_step(report.result).savefig(path)
        return
    path.mkdir(exist_ok=True)
    for name, figure in draw_figures(report).items():
        figure.savefig(path / name)


def track_backtest(report: BacktestReport, bundles: Mapping[str, LoadedBundle], data: DataSource, root: Root) -> str:
    """Records a backtest as a run of the model's experiment, under the metric names of trainings; returns the run's id.

    The scores of the model are `bt/mase` and `bt_h/mase`, those of the others `bt/NAME/mase` and `bt_h/NAME/mase`.
    """
    bundle, model = bundles[report.model_name]
    dataset = RunDataset(data.name, report.panel.digest, data.source, model.cutoff, context="evaluation")
    tags = {"bundle_digest": artifact.compute_bundle_digest(bundle), "trained_by": str(model.facts.get("run_id", ""))}
    with open_run(
        model.spec,
        dataset,
        root=root.path,
        tracking_uri=root.tracking_uri,
        trigger="backtest",
        action="backtest",
        tags=tags,
    ) as run:
        backtests.record_backtest(
            run, report.result, report.scores, model_name=report.model_name, levels=report.result.levels
        )
        for name, figure in draw_figures(report).items():
            run.log_figure(f"plots/{name}", figure)
        return run.id


def _validate_levels(levels: Sequence[float], model: FittedModel) -> None:
    invalid = [level for level in levels if not 0 < level < 1]
    if invalid:
        raise LevelOutOfRange(
            f"Expected levels between 0 and 1; found {invalid[0]}. Write 0.9 for 90 %.", where="levels"
        )
    if levels and not has_quantiles(model):
        raise LevelOutOfRange(
            f"Expected no levels: {model.spec.name!r} was not calibrated, so it gives point forecasts only. "
            "Train it with valid_windows of 1 or more, or leave the levels out.",
            where="levels",
        )


def _add_required_columns(data: DataSource, bundles: Sequence[LoadedBundle], group_by: str | None) -> DataSource:
    """Returns the source with the additional columns that any of the models reads, and the column of the groups.

    A covariate is read as text if any model has learned it as text.
    """
    if group_by is None and all(loaded.is_pretrained for loaded in bundles):
        return data._replace(values_only=True)
    models = [loaded.model for loaded in bundles]
    sources = [data.for_spec(model.spec) for model in models]
    static = [*(name for source in sources for name in source.static), *([] if group_by is None else [group_by])]
    return data._replace(
        covariates=tuple(dict.fromkeys(name for source in sources for name in source.covariates)),
        static=tuple(dict.fromkeys(static)),
        channels=tuple(dict.fromkeys(name for source in sources for name in source.channels)),
        text_covariates=tuple(dict.fromkeys(name for model in models for name in model.encoding.categories)),
    )


def _build_difference_table(comparisons: Mapping[str, SignificanceResult]) -> pd.DataFrame:
    rows = [
        (name, metric, value)
        for name, comparison in comparisons.items()
        for metric, value in (
            ("mase_less_model", comparison.difference),
            ("mase_less_model_low", comparison.low),
            ("mase_less_model_high", comparison.high),
            ("p_value", comparison.p),
            ("p_value_bootstrap", comparison.bootstrap_p),
        )
    ]
    frame = pd.DataFrame(rows, columns=["forecaster", "metric", "value"])
    return frame.assign(
        group=pd.array([None] * len(frame), dtype="str"), step=pd.array([None] * len(frame), dtype="Int64")
    )


def _explain_dashes(
    result: Backtest, models: Mapping[str, FittedModel], scores: Mapping[str, Mapping[str, float]]
) -> Iterator[str]:
    """Yields why scores are missing from the table: for a forecaster, or for a column."""
    without_forecast = [name for name, forecasts in result.forecasts.items() if not np.isfinite(forecasts).any()]
    for name in without_forecast:
        causes = explain_missing_forecasts(result, name, models[name]) if name in models else ["it failed"]
        yield f"{name}, all columns: it has no forecast; {'; '.join(causes)}"
    if not np.isfinite(np.where(result.comparable_mask()[:, :, None], result.actual, np.nan)).any():
        yield "all columns: the windows have no observed value"
        return
    others = {name: values for name, values in scores.items() if name not in without_forecast}
    if all(math.isnan(values["mase"]) for values in others.values()):
        scaled = "MASE, RMSSE, OWA, MSIS, +MASE, p" if result.quantiles else "MASE, RMSSE, OWA, +MASE, p"
        yield f"{scaled}: every series is constant before the first cutoff"
    elif all(math.isnan(values["owa"]) for values in others.values()):
        yield "OWA: seasonal naive makes no error in these windows"
    uncalibrated = [name for name in others if name not in result.quantiles]
    if result.quantiles and uncalibrated:
        yield f"WQL, MSIS, in 80%, in 95% of {', '.join(uncalibrated)}: no calibrated intervals"


def _collect_messages(panel: Panel, result: Backtest, models: Mapping[str, FittedModel], season: int) -> list[str]:
    messages = list(panel.repairs)
    if result.excluded_ids:
        messages.append(f"{len(result.excluded_ids)} of {len(panel.series)} series are too short and were excluded")
    first_cutoffs: list[Any] = [cutoffs[0] for cutoffs in result.cutoffs]  # all integers, or all timestamps
    first_cutoff = min(first_cutoffs)
    for name, model in models.items():
        if model.blend_weights:
            messages.append(f"{name} is a blend: {format_blend_weights(model.blend_weights)}")
        if is_earlier(first_cutoff, model.cutoff):
            messages.append(
                f"{name} was trained on data up to {model.cutoff}; origins from {first_cutoff} on are not out of sample for it"
            )
    comparable = result.comparable_mask()
    for name, forecasts in result.forecasts.items():
        num_missing = int((~np.isfinite(forecasts).all(axis=2)).sum())
        if num_missing:
            causes = explain_missing_forecasts(result, name, models[name]) if name in models else []
            reason = f": {'; '.join(causes)}" if causes else ""
            messages.append(f"{name} has no forecast at {num_missing} of {comparable.size} windows{reason}")
    if not comparable.all():
        messages.append(
            f"scores cover the {int(comparable.sum())} of {comparable.size} windows with a forecast of every forecaster "
            "(a forecaster without any forecast is not counted)"
        )
    for name, warnings in result.warnings.items():
        messages += warnings[:_MAX_WARNINGS]
        messages.append(f"{name}: warnings at {len(warnings)} of {comparable.size} windows")
    if "auto_ets" in result.forecasts and season > MAX_ETS_SEASON:
        messages.append(f"auto_ets fits no season longer than {MAX_ETS_SEASON} steps; the season here is {season}")
    return messages
