"""Calibrated intervals for a fitted forecaster, from rolling origins that it was not fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from forecaster.conformal import calibrate
from forecaster.evaluation.backtest import backtest
from forecaster.predict import Forecaster, Predictor
from forecaster.series import Panel


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
        {"own": predictor.forecast_each},
        horizon=spec.horizon,
        windows=windows,
        season=forecaster.season,
        keep=spec.least,
    )
    ends = [len(one) - left for one in result.series for left in range(windows * spec.horizon, 0, -spec.horizon)]
    histories = [
        one.y[:end] for one, end in zip(np.repeat(np.array(result.series, dtype=object), windows), ends, strict=True)
    ]
    scales = np.array([predictor.scale(history) for history in histories]).reshape(-1, windows)
    return replace(forecaster, calibration=calibrate(result.actual - result.forecasts["own"], scales))
