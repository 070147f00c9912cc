"""Quantiles that bound whole paths, from the quantiles of single steps at wider levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from forecaster.errors import ForecasterError, LevelOutOfRange
from forecaster.intervals.calibration import Calibration
from forecaster.series import Forecast


def forecast_joint_bands(
    calibration: Calibration | None,
    levels: Sequence[float],
    *,
    horizon: int,
    forecast: Callable[[Sequence[float]], list[Forecast | ForecasterError]],
) -> list[Forecast | ForecasterError]:
    """Returns the outcomes of a forecast with, at each level, the quantiles that bound whole paths.

    A path of actuals lies between those of 0.1 and 0.9 with a probability of 80 %, all its steps together.

    Args:
        calibration: That of the model.
        levels: The levels of the bounds.
        horizon: Steps ahead, the length of the paths.
        forecast: Returns the outcomes with the quantiles of single steps at given levels.
    Raises:
        LevelOutOfRange: The model has no table of such bands, or there are no levels.
    """
    if not levels:
        raise LevelOutOfRange(
            "Expected the levels of the bands of whole paths; found none. Add levels, such as 0.1 and 0.9 for a band of 80 %, or "
            "leave joint out.",
            where="joint",
        )
    if calibration is None:
        raise LevelOutOfRange(
            "Expected a calibrated model, for bands of whole paths; found one without a calibration. Train it with validation "
            "windows, or request intervals of single steps.",
            where="joint",
        )
    widened = dict(zip(levels, calibration.widen_levels(levels, horizon=horizon), strict=True))
    return [
        replace(outcome, quantiles={level: outcome.quantiles[widened[level]] for level in sorted(widened)})
        if isinstance(outcome, Forecast)
        else outcome
        for outcome in forecast(list(widened.values()))
    ]
