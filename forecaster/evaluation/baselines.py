"""What any forecaster must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from forecaster.errors import ForecasterError
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64

Ask = Callable[[Sequence[Series], int], Sequence[Forecast | ForecasterError]]
"""Anything that forecasts: histories and a horizon in, one outcome each; `Predictor.forecast_each` is one."""


def seasonal_naive(season: int) -> Ask:
    """The forecaster that repeats the last season (season 1: the last value)."""

    def ask(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        return [Forecast(one.id, one.stamps_ahead(horizon), _repeat(one.y, season, horizon)) for one in series]

    return ask


def _repeat(history: Float64[np.ndarray, "_"], season: int, horizon: int) -> Float64[np.ndarray, "_"]:
    """The last season over and over; each place takes its latest observed value, or the latest of all where it has none."""
    observed = history[~np.isnan(history)]
    last = observed[-1] if len(observed) else np.nan
    cycle = np.full(season, last)
    for place in range(1, season + 1):
        same = history[-place::-season]
        same = same[~np.isnan(same)]
        if len(same):
            cycle[season - place] = same[0]
    return np.resize(cycle, horizon)
