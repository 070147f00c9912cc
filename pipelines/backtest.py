"""A backtest as people ask for it: models, their rivals and baselines on the same rolling origins, scored, drawn, tracked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.bundle import artifact
from forecaster.errors import LevelOutOfRange
from forecaster.evaluation.backtest import Backtest
from forecaster.evaluation.backtest import backtest as ask_all
from forecaster.evaluation.baselines import SEASONAL_NAIVE, ForecastFunction, seasonal_naive, statistical_baseline
from forecaster.evaluation.calibration import add_quantiles
from forecaster.evaluation.scores import SCORED_LEVELS, group_series, overall_scores, score_table
from forecaster.evaluation.significance import SignificanceResult, compare_forecasters
from forecaster.frequency import is_earlier
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel
from forecaster.statistical.blend import format_blend_weights as tell_blend
from forecaster.statistical.models import MAX_ETS_SEASON
from pipelines.settings import Root
from pipelines.sources import DataSource, read_panel
from pipelines.tracking import backtests
from pipelines.tracking.run import RunDataset, open_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ProgressCallback = Callable[[str, int, int], None]
"""Told whose histories are done, how many, and of how many."""

_MAX_WARNINGS = 3  # warnings of one forecaster that are told one by one


class LoadedBundle(NamedTuple):
    """A model that takes part."""

    bundle: Path
    forecaster: FittedModel


class BacktestReport(NamedTuple):
    """What a backtest found.

    Attributes:
        model: The name of the model that the others are held against.
        panel: All that was read.
        result: Raw forecasts beside the truth.
        scores: `score_table`.
        against: Of each other forecaster, how its errors differ from the model's.
        told: What people should know of it.
    """

    model_name: str
    panel: Panel
    result: Backtest
    scores: pd.DataFrame
    comparisons: Mapping[str, SignificanceResult]
    messages: Sequence[str]

    @property
    def overall_scores(self) -> dict[str, dict[str, float]]:
        """By forecaster, then by metric: the scores over all series and steps."""
        return overall_scores(self.scores)


def backtest(
    bundles: Mapping[str, LoadedBundle],
    data: DataSource,
    *,
    baselines: Sequence[str] = (),
    horizon: int | None = None,
    windows: int = 1,
    stride: int | None = None,
    levels: Sequence[float] = (),
    group_by: str | None = None,
    n_jobs: int = 1,
    progress: ProgressCallback | None = None,
) -> BacktestReport:
    """Asks models and baselines at the same origins, and scores them.

    Args:
        contenders: By name; the first is the model that the others are held against, and sets horizon and season.
        data: Where the panel comes from; what any contender reads besides is read with it.
        baselines: Statistical ones, besides seasonal naive.
        horizon: Steps ahead; the model's own, if not given.
        windows: Rolling origins of each series.
        stride: Steps between them; a horizon, if not given.
        levels: Of quantiles to keep, besides those that scores need.
        by: A static column whose groups are scored too.
        jobs: Processes that fit baselines beside each other.
        progress: Told of every history that a statistical baseline is done with.
    """
    name, model = next((name, one.forecaster) for name, one in bundles.items())
    _validate_levels(levels, model)
    asked: dict[str, ForecastFunction | Predictor] = {each: Predictor(one.forecaster) for each, one in bundles.items()}
    asked[SEASONAL_NAIVE] = seasonal_naive(model.season)
    for each in dict.fromkeys(baselines):
        tell = None if progress is None else partial(progress, each)
        asked[each] = statistical_baseline(each, season=model.season, jobs=n_jobs, progress=tell)
    panel = read_panel(_add_required_columns(data, [one.forecaster for one in bundles.values()], group_by))
    group_series(panel.series, group_by)  # told before the work, not after it
    result = ask_all(
        panel,
        asked,
        horizon=horizon or model.spec.horizon,
        windows=windows,
        season=model.season,
        min_history=model.spec.min_steps,
        stride=stride,
    )
    forecasters = {each: one.forecaster for each, one in bundles.items()}
    result = add_quantiles(result, forecasters, levels=(*SCORED_LEVELS, *levels))
    against = {each: compare_forecasters(result, name, each) for each in asked if each != name}
    scores = pd.concat([score_table(result, by=group_by), _build_difference_table(against)], ignore_index=True)
    return BacktestReport(
        name, panel, result, scores, against, _collect_messages(panel, result, forecasters, model.season)
    )


def draw_figures(report: BacktestReport) -> dict[str, Figure]:
    """By file name: error by step ahead, calibration where there are intervals, the best and the worst series."""
    from forecaster.evaluation.plots import plot_best_and_worst, plot_calibration, plot_error_by_step

    drawn = {
        "error_by_horizon.png": plot_error_by_step(report.result),
        "best_and_worst.png": plot_best_and_worst(report.result, report.model_name),
    }
    if report.result.quantiles:
        drawn["calibration.png"] = plot_calibration(report.result)
    return drawn


def save_figures(report: BacktestReport, path: Path) -> None:
    """Draws the error by step ahead into a file, or all pictures into a folder (a path without an ending), made if need be."""
    if path.suffix and not path.is_dir():
        from forecaster.evaluation.plots import plot_error_by_step

        plot_error_by_step(report.result).savefig(path)
        return
    path.mkdir(exist_ok=True)
    for name, figure in draw_figures(report).items():
        figure.savefig(path / name)


def track_backtest(report: BacktestReport, bundles: Mapping[str, LoadedBundle], data: DataSource, root: Root) -> str:
    """Tracks a backtest as a run of the model's experiment, under the names that trainings use; the run's id.

    The model's own scores are `bt/mase` and `bt_h/mase`, those of the others `bt/RELEASE/mase` and `bt_h/RELEASE/mase`.
    """
    bundle, model = bundles[report.model_name]
    source = RunDataset(data.name, report.panel.digest(), data.source, model.cutoff, context="evaluation")
    tags = {"bundle_digest": artifact.compute_bundle_digest(bundle), "trained_by": str(model.facts.get("run_id", ""))}
    with open_run(
        model.spec, source, root=root.path, tracking_uri=root.tracking_uri, trigger="backtest", tags=tags
    ) as run:
        backtests.record_backtest(
            run, report.result, report.scores, model_name=report.model_name, levels=report.result.levels
        )
        for name, figure in draw_figures(report).items():
            run.log_figure(f"plots/{name}", figure)
        return run.id


def _validate_levels(levels: Sequence[float], model: FittedModel) -> None:
    odd = [level for level in levels if not 0 < level < 1]
    if odd:
        raise LevelOutOfRange(f"Expected levels between 0 and 1; found {odd[0]}. Write 0.9 for 90 %.", where="levels")
    if levels and model.calibration is None:
        raise LevelOutOfRange(
            f"Expected no levels: {model.spec.name!r} was not calibrated, so it has point forecasts only. "
            "Train it with valid_windows of 1 or more, or ask without levels.",
            where="levels",
        )


def _add_required_columns(data: DataSource, models: Sequence[FittedModel], group_by: str | None) -> DataSource:
    """The source, with the columns that any of the models reads besides, and the one to score groups by."""
    each = [data.for_spec(one.spec) for one in models]
    static = [*(name for one in each for name in one.static), *([] if group_by is None else [group_by])]
    return data._replace(
        covariates=tuple(dict.fromkeys(name for one in each for name in one.covariates)),
        static=tuple(dict.fromkeys(static)),
        channels=tuple(dict.fromkeys(name for one in each for name in one.channels)),
    )


def _build_difference_table(comparisons: Mapping[str, SignificanceResult]) -> pd.DataFrame:
    rows = [
        (name, metric, value)
        for name, one in comparisons.items()
        for metric, value in (
            ("mase_less_model", one.difference),
            ("mase_less_model_low", one.low),
            ("mase_less_model_high", one.high),
            ("p_value", one.p),
            ("p_value_bootstrap", one.bootstrap_p),
        )
    ]
    frame = pd.DataFrame(rows, columns=["forecaster", "metric", "value"])
    return frame.assign(
        group=pd.array([None] * len(frame), dtype="str"), step=pd.array([None] * len(frame), dtype="Int64")
    )


def _collect_messages(panel: Panel, result: Backtest, models: Mapping[str, FittedModel], season: int) -> list[str]:
    told = list(panel.repairs)
    if result.excluded_ids:
        told.append(f"{len(result.excluded_ids)} of {len(panel.series)} series are too short and were left out")
    firsts: list[Any] = [cutoffs[0] for cutoffs in result.cutoffs]  # all numbers, or all moments
    first = min(firsts)
    for name, one in models.items():
        if one.blend_weights:
            told.append(f"{name} is a blend: {tell_blend(one.blend_weights)}")
        if is_earlier(first, one.cutoff):
            told.append(f"{name} saw data up to {one.cutoff}; origins from {first} on are not out of sample for it")
    comparable = result.comparable_mask()
    for name, cube in result.forecasts.items():
        missing = int((~np.isfinite(cube).all(axis=2)).sum())
        if missing:
            told.append(f"{name} has no answer at {missing} of {comparable.size} windows")
    if not comparable.all():
        told.append(
            f"scores are of the {int(comparable.sum())} of {comparable.size} windows that every forecaster answered "
            "(one that answered none does not count)"
        )
    for name, lines in result.warnings.items():
        told += lines[:_MAX_WARNINGS]
        told.append(f"{name}: so at {len(lines)} of {comparable.size} windows")
    if "auto_ets" in result.forecasts and season > MAX_ETS_SEASON:
        told.append(f"auto_ets fits no season of more than {MAX_ETS_SEASON} steps; here one has {season}")
    return told
