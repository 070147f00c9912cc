"""Baselines of a backtest: seasonal naive, and the statistical models. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from forecaster.data.batching import repeat_season
from forecaster.errors import ForecasterError, InputError
from forecaster.series import Forecast, Series
from forecaster.statistical.models import STATISTICAL_MODELS, FitTask, forecast_tasks, require_model_package

ForecastFunction = Callable[[Sequence[Series], int], Sequence[Forecast | ForecasterError]]
"""Anything that forecasts: histories and a horizon in, one outcome each; `Predictor.forecast_batch` is one."""

SEASONAL_NAIVE = "seasonal_naive"
"""What it is called wherever forecasters stand beside each other."""


def seasonal_naive(season: int) -> ForecastFunction:
    """The forecaster that repeats the last season (season 1: the last value)."""

    def ask(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        return [
            Forecast(one.id, one.future_timestamps(horizon), repeat_season(one.y, season, horizon)) for one in series
        ]

    return ask


FitProgressCallback = Callable[[int, int], None]
"""Told how many histories are done, of how many."""


def statistical_baseline(
    name: str, *, season: int, jobs: int = 1, progress: FitProgressCallback | None = None
) -> ForecastFunction:
    """The forecaster that fits one of STATISTICAL to each history it is shown, as `forecaster.statistical_baseline.models.forecast_tasks` does.

    A history that it cannot be fitted to (too short, say), or for which its forecast is not finite, is answered by
    seasonal naive, with a warning in the forecast.

    Args:
        name: One of STATISTICAL. `auto_ets` leaves out a season of more than 24 steps.
        season: Steps of a season.
        jobs: Processes beside each other.
        progress: Told after every history.
    Raises:
        InputError: no baseline has this name.
        MissingPackage: statsforecast is not installed; told here, before anything is asked.
    """
    if name not in STATISTICAL_MODELS:
        raise InputError(
            f"Expected a statistical baseline: {', '.join(STATISTICAL_MODELS)}; found {name!r}. Name one of them.",
            where="baselines",
        )
    require_model_package(name)

    def ask(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        outcomes: list[Forecast | ForecasterError] = []
        answers = forecast_tasks([FitTask(name, one.y, season, horizon) for one in series], jobs=jobs)
        for one, answer in zip(series, answers, strict=True):
            outcomes.append(_to_forecast(one, answer, name, season=season, horizon=horizon))
            if progress is not None:
                progress(len(outcomes), len(series))
        return outcomes

    return ask


def _to_forecast(series: Series, result: np.ndarray | str, name: str, *, season: int, horizon: int) -> Forecast:
    if not isinstance(result, str):
        return Forecast(series.id, series.future_timestamps(horizon), result)
    warning = f"{name} could not be fitted ({result}); seasonal naive stands in"
    return Forecast(series.id, series.future_timestamps(horizon), repeat_season(series.y, season, horizon), (warning,))
