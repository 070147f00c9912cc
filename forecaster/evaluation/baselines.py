"""What any forecaster must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from forecaster.errors import ForecasterError
from forecaster.histories import repeat_season
from forecaster.series import Forecast, Series

Ask = Callable[[Sequence[Series], int], Sequence[Forecast | ForecasterError]]
"""Anything that forecasts: histories and a horizon in, one outcome each; `Predictor.forecast_each` is one."""

SEASONAL_NAIVE = "seasonal_naive"
"""What it is called wherever forecasters stand beside each other."""


def seasonal_naive(season: int) -> Ask:
    """The forecaster that repeats the last season (season 1: the last value)."""

    def ask(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        return [Forecast(one.id, one.stamps_ahead(horizon), repeat_season(one.y, season, horizon)) for one in series]

    return ask
