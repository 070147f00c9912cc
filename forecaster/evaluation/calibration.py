"""Calibrated intervals for a fitted forecaster, from rolling origins that it was not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from forecaster.evaluation.backtest import Backtest, QuantileCube, backtest
from forecaster.intervals.conformal import calibrate
from forecaster.prediction.predictor import Forecaster, Predictor
from forecaster.series import Panel
from forecaster.shapes import Float64


def calibrated(forecaster: Forecaster, panel: Panel, *, windows: int, stride: int | None = None) -> Forecaster:
    """The forecaster with calibrated quantiles.

    Args:
        forecaster: Fitted without the steps that these origins look ahead to. Early stopping may have looked at them: it chose
            among a few networks, which makes their errors there slightly too small.
        panel: All that was known at the fit.
        windows: Rolling origins.
        stride: Steps between them; a horizon, if not given. Errors of windows that overlap are alike, and tell less than as
            many others.
    """
    spec = forecaster.spec
    result = backtest(
        panel,
        {"own": Predictor(forecaster)},
        horizon=spec.horizon,
        windows=windows,
        season=forecaster.season,
        keep=spec.least,
        stride=stride,
    )
    return calibrated_on(forecaster, result, "own")


def calibrated_on(forecaster: Forecaster, result: Backtest, name: str) -> Forecaster:
    """The forecaster with quantiles calibrated on a backtest of windows that it was not fitted to; `name` is its name there."""
    predictor = Predictor(forecaster)
    errors = result.actual - result.forecasts[name]
    groups = [predictor.group(one) for one in result.series]
    return replace(forecaster, calibration=calibrate(errors, _scales(predictor, result), groups=groups))


def quantiles(forecaster: Forecaster, result: Backtest, name: str, *, levels: Sequence[float]) -> QuantileCube:
    """The calibrated quantiles about a backtest's forecasts, as the predictor gives them at each origin.

    Args:
        forecaster: Who made the forecasts; it was calibrated.
        result: The backtest.
        name: The forecaster's name there.
        levels: Rising.
    """
    assert forecaster.calibration is not None, "it was calibrated"
    predictor, windows = Predictor(forecaster), result.actual.shape[1]
    scales = np.nan_to_num(_scales(predictor, result)).ravel()
    groups = [predictor.group(one) for one in result.series for _ in range(windows)]
    offsets = forecaster.calibration.offsets(levels, horizon=result.horizon, scales=scales, groups=groups)
    return np.asarray(result.forecasts[name][..., None] + offsets.reshape(*result.actual.shape, len(levels)))


def with_quantiles(result: Backtest, forecasters: Mapping[str, Forecaster], *, levels: Sequence[float]) -> Backtest:
    """The backtest with the quantiles of those forecasters that were calibrated."""
    rising = sorted(set(levels))
    found = {
        name: quantiles(one, result, name, levels=rising)
        for name, one in forecasters.items()
        if one.calibration is not None
    }
    return replace(result, levels=rising, quantiles=found)


def coverage(forecaster: Forecaster, result: Backtest, name: str, *, intervals: Sequence[float]) -> dict[float, float]:
    """The share of a backtest's actuals within the calibrated intervals about its forecasts, by nominal share."""
    found = {}
    for interval in intervals:
        bounds = quantiles(forecaster, result, name, levels=((1 - interval) / 2, (1 + interval) / 2))
        keep = np.isfinite(result.actual) & np.isfinite(bounds).all(axis=-1)
        inside = (bounds[..., 0] <= result.actual) & (result.actual <= bounds[..., 1])
        found[interval] = float(inside[keep].mean()) if keep.any() else float("nan")
    return found


def _scales(predictor: Predictor, result: Backtest) -> Float64[np.ndarray, "series window"]:
    """The scale of what was known at each origin."""
    return np.array([[predictor.scale(one.y[: len(one) - left]) for left in result.lefts] for one in result.series])
