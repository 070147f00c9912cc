"""Calibrated intervals for a fitted forecaster, from rolling origins that it was not fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from forecaster.conformal import calibrate
from forecaster.evaluation.backtest import Backtest, backtest
from forecaster.predict import Forecaster, Predictor
from forecaster.series import Panel
from forecaster.shapes import Float64


def calibrated(forecaster: Forecaster, panel: Panel, *, windows: int) -> Forecaster:
    """The forecaster with calibrated quantiles.

    Args:
        forecaster: Fitted without the last `windows` horizons of the panel. Early stopping may have looked at them: it chose
            among a few networks, which makes their errors there slightly too small.
        panel: All that was known at the fit.
        windows: Rolling origins, a horizon apart.
    """
    spec, predictor = forecaster.spec, Predictor(forecaster)
    result = backtest(
        panel,
        {"own": predictor},
        horizon=spec.horizon,
        windows=windows,
        season=forecaster.season,
        keep=spec.least,
    )
    errors = result.actual - result.forecasts["own"]
    groups = [predictor.group(one) for one in result.series]
    return replace(forecaster, calibration=calibrate(errors, _scales(predictor, result), groups=groups))


def coverage(forecaster: Forecaster, result: Backtest, name: str, *, intervals: Sequence[float]) -> dict[float, float]:
    """The share of a backtest's actuals within the calibrated intervals about its forecasts, by nominal share."""
    assert forecaster.calibration is not None, "it was calibrated"
    predictor, windows = Predictor(forecaster), result.actual.shape[1]
    scales = np.nan_to_num(_scales(predictor, result)).ravel()
    groups = [predictor.group(one) for one in result.series for _ in range(windows)]
    found = {}
    for interval in intervals:
        levels = ((1 - interval) / 2, (1 + interval) / 2)
        offsets = forecaster.calibration.offsets(levels, horizon=result.horizon, scales=scales, groups=groups)
        bounds = result.forecasts[name][..., None] + offsets.reshape(*result.actual.shape, 2)
        keep = np.isfinite(result.actual) & np.isfinite(bounds).all(axis=-1)
        inside = (bounds[..., 0] <= result.actual) & (result.actual <= bounds[..., 1])
        found[interval] = float(inside[keep].mean()) if keep.any() else float("nan")
    return found


def _scales(predictor: Predictor, result: Backtest) -> Float64[np.ndarray, "series window"]:
    """The scale of what was known at each origin."""
    return np.array([[predictor.scale(one.y[: len(one) - left]) for left in result.lefts] for one in result.series])
