"""Calibrated intervals for a fitted forecaster, from rolling origins that it was not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from forecaster.evaluation.backtest import Backtest, BacktestQuantileArray, backtest
from forecaster.intervals.conformal import calibrate
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel
from forecaster.shapes import Float64


def calibrate_model(model: FittedModel, panel: Panel, *, windows: int, stride: int | None = None) -> FittedModel:
    """The forecaster with calibrated quantiles.

    Args:
        forecaster: Fitted without the steps that these origins look ahead to. Early stopping may have looked at them: it chose
            among a few networks, which makes their errors there slightly too small.
        panel: All that was known at the fit.
        windows: Rolling origins.
        stride: Steps between them; a horizon, if not given. Errors of windows that overlap are alike, and tell less than as
            many others.
    """
    spec = model.spec
    result = backtest(
        panel,
        {"own": Predictor(model)},
        horizon=spec.horizon,
        windows=windows,
        season=model.season,
        min_history=spec.min_steps,
        stride=stride,
    )
    return calibrate_on_backtest(model, result, "own")


def calibrate_on_backtest(model: FittedModel, result: Backtest, name: str) -> FittedModel:
    """The forecaster with quantiles calibrated on a backtest of windows that it was not fitted to; `name` is its name there."""
    predictor = Predictor(model)
    errors = result.actual - result.forecasts[name]
    groups = [predictor.interval_group(one) for one in result.series]
    return replace(model, calibration=calibrate(errors, _history_scales(predictor, result), groups=groups))


def backtest_quantiles(
    model: FittedModel, result: Backtest, name: str, *, levels: Sequence[float]
) -> BacktestQuantileArray:
    """The calibrated quantiles about a backtest's forecasts, as the predictor gives them at each origin.

    Args:
        forecaster: Who made the forecasts; it was calibrated.
        result: The backtest.
        name: The forecaster's name there.
        levels: Rising.
    """
    assert model.calibration is not None, "it was calibrated"
    predictor, windows = Predictor(model), result.actual.shape[1]
    scales = np.nan_to_num(_history_scales(predictor, result)).ravel()
    groups = [predictor.interval_group(one) for one in result.series for _ in range(windows)]
    offsets = model.calibration.compute_offsets(levels, horizon=result.horizon, scales=scales, groups=groups)
    return np.asarray(result.forecasts[name][..., None] + offsets.reshape(*result.actual.shape, len(levels)))


def add_quantiles(result: Backtest, models: Mapping[str, FittedModel], *, levels: Sequence[float]) -> Backtest:
    """The backtest with the quantiles of those forecasters that were calibrated."""
    rising = sorted(set(levels))
    found = {
        name: backtest_quantiles(one, result, name, levels=rising)
        for name, one in models.items()
        if one.calibration is not None
    }
    return replace(result, levels=rising, quantiles=found)


def interval_coverage(
    model: FittedModel, result: Backtest, name: str, *, intervals: Sequence[float]
) -> dict[float, float]:
    """The share of a backtest's actuals within the calibrated intervals about its forecasts, by nominal share."""
    found = {}
    for interval in intervals:
        bounds = backtest_quantiles(model, result, name, levels=((1 - interval) / 2, (1 + interval) / 2))
        keep = np.isfinite(result.actual) & np.isfinite(bounds).all(axis=-1)
        inside = (bounds[..., 0] <= result.actual) & (result.actual <= bounds[..., 1])
        found[interval] = float(inside[keep].mean()) if keep.any() else float("nan")
    return found


def _history_scales(predictor: Predictor, result: Backtest) -> Float64[np.ndarray, "series window"]:
    """The scale of what was known at each origin."""
    return np.array(
        [[predictor.compute_scale(one.y[: len(one) - left]) for left in result.origin_offsets] for one in result.series]
    )
