"""Calibrated intervals of a fitted model, from rolling origins that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from forecaster.evaluation.backtest import Backtest, BacktestQuantileArray, backtest
from forecaster.intervals.conformal import calibrate
from forecaster.prediction.head_quantiles import has_quantiles
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Forecast, Panel
from forecaster.shapes import Float64


def calibrate_model(
    model: FittedModel,
    panel: Panel,
    *,
    windows: int,
    stride: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> FittedModel:
    """Returns the model with calibrated quantiles.

    Args:
        model: Fitted without the steps ahead of these origins. Early stopping may have used them: it chose among a few networks,
            which makes their errors there slightly too small.
        panel: All data up to the fit.
        windows: Rolling origins.
        stride: Steps between them; defaults to the horizon. Errors of overlapping windows are correlated, and carry less
            information than as many independent ones.
        progress: Receives the phase "calibration".
    """
    spec = model.spec
    result = backtest(
        panel,
        {"model": Predictor(model)},
        horizon=spec.horizon,
        windows=windows,
        season=model.season,
        min_history=spec.min_steps,
        stride=stride,
        progress=progress,
        phase="calibration",
    )
    return calibrate_on_backtest(model, result, "model")


def calibrate_on_backtest(model: FittedModel, result: Backtest, name: str) -> FittedModel:
    """Returns the model with quantiles calibrated on a backtest of unseen windows; `name` is its name there."""
    predictor = Predictor(model)
    errors = result.actual - result.forecasts[name]
    groups = [predictor.interval_group(item) for item in result.series]
    return replace(
        model, calibration=calibrate(errors, _history_scales(result, predictor.compute_scale), groups=groups)
    )


def backtest_quantiles(
    model: FittedModel, result: Backtest, name: str, *, levels: Sequence[float]
) -> BacktestQuantileArray:
    """Returns the quantiles of a backtest's forecasts, as the predictor gives them at each origin.

    Args:
        model: The model that made the forecasts, which is calibrated or has a head with quantiles.
        result: The backtest.
        name: The model's name there.
        levels: Levels of the quantiles, ascending.
    """
    if model.calibration is None:
        return _head_quantiles(Predictor(model), result, levels)
    predictor, windows = Predictor(model), result.actual.shape[1]
    scales = np.nan_to_num(_history_scales(result, predictor.compute_interval_scale)).ravel()
    groups = [predictor.interval_group(item) for item in result.series for _ in range(windows)]
    offsets = model.calibration.compute_offsets(levels, horizon=result.horizon, scales=scales, groups=groups)
    quantiles = np.asarray(result.forecasts[name][..., None] + offsets.reshape(*result.actual.shape, len(levels)))
    return clip_at_origins(predictor, result, quantiles)


def clip_at_origins(
    predictor: Predictor, result: Backtest, values: Float64[np.ndarray, "series window *axes"]
) -> Float64[np.ndarray, "series window *axes"]:
    """Returns values at the origins of a backtest within the bounds of a predictor."""
    if not predictor.bounds.is_active:
        return values
    history_lengths = np.array([len(item) for item in result.series])[:, None] - np.array(result.origin_offsets)
    return predictor.bounds.at_origins(result.series, history_lengths).clip(values)


def add_quantiles(result: Backtest, models: Mapping[str, FittedModel], *, levels: Sequence[float]) -> Backtest:
    """Returns the backtest with the quantiles of those models that have any."""
    ascending = sorted(set(levels))
    quantiles = {
        name: backtest_quantiles(model, result, name, levels=ascending)
        for name, model in models.items()
        if has_quantiles(model)
    }
    return replace(result, levels=ascending, quantiles=quantiles)


def interval_coverage(
    model: FittedModel, result: Backtest, name: str, *, intervals: Sequence[float]
) -> dict[float, float]:
    """Returns the share of a backtest's actuals within the calibrated intervals, by nominal share."""
    coverage = {}
    for interval in intervals:
        bounds = backtest_quantiles(model, result, name, levels=((1 - interval) / 2, (1 + interval) / 2))
        valid = np.isfinite(result.actual) & np.isfinite(bounds).all(axis=-1)
        inside = (bounds[..., 0] <= result.actual) & (result.actual <= bounds[..., 1])
        coverage[interval] = float(inside[valid].mean()) if valid.any() else float("nan")
    return coverage


def _history_scales(
    result: Backtest, compute_scale: Callable[[Float64[np.ndarray, "_"]], float]
) -> Float64[np.ndarray, "series window"]:
    """Returns the scale of the history at each origin."""
    return np.array(
        [[compute_scale(item.y[: len(item) - offset]) for offset in result.origin_offsets] for item in result.series]
    )


def _head_quantiles(predictor: Predictor, result: Backtest, levels: Sequence[float]) -> BacktestQuantileArray:
    """Returns the quantiles of a model without calibration, from one forecast of all histories at each origin."""
    quantiles = np.full((*result.actual.shape, len(levels)), np.nan)
    for window, offset in enumerate(result.origin_offsets):
        histories = [item.take_first(len(item) - offset) for item in result.series]
        outcomes = predictor.forecast_batch(histories, result.horizon, levels=levels)
        for index, outcome in enumerate(outcomes):
            if isinstance(outcome, Forecast):
                quantiles[index, window] = np.stack([outcome.quantiles[level] for level in levels], axis=1)
    return quantiles
