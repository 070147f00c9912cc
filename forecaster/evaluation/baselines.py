"""Baselines of a backtest: naive forecasts, the pretrained network and the statistical models. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from forecaster.data.batching import repeat_season
from forecaster.engines.statistical.models import STATISTICAL_MODELS, FitTask, forecast_tasks, require_model_package
from forecaster.errors import ForecasterError, InputError
from forecaster.progress.steps import RunSteps
from forecaster.series import Forecast, Series

if TYPE_CHECKING:
    from forecaster.prediction.predictor import Predictor

ForecastFunction = Callable[[Sequence[Series], int], Sequence[Forecast | ForecasterError]]
"""A function from histories and a horizon to one outcome per series, such as `Predictor.forecast_batch`."""

SEASONAL_NAIVE = "seasonal_naive"
"""The name of the seasonal naive forecaster wherever forecasters are compared."""

LAST_VALUE = "last_value"
"""The name of the forecaster that repeats the last value."""

ZERO_SHOT = "zero_shot"
"""The name of the pretrained network without a training."""

NAIVE_BASELINES = (SEASONAL_NAIVE, LAST_VALUE)
"""The naive forecasters; a model that is worse than any of them is not promoted."""

BASELINES = (*NAIVE_BASELINES, ZERO_SHOT)
"""The names of `build_baselines`, in the order of tables; a model that is clearly worse than the last is not promoted either."""

_SENTENCE_NAMES = {LAST_VALUE: "the last value", ZERO_SHOT: "the pretrained network"}


def build_baselines(*, season: int, pretrained: Predictor | None = None) -> dict[str, ForecastFunction | Predictor]:
    """Returns the baselines that every model is compared with, by name; without a season the last value is seasonal naive.

    Args:
        season: Steps of a season.
        pretrained: The predictor of the pretrained network (`bundle.pretrained.base.zero_shot_predictor`); None leaves it out.
    """
    forecasters: dict[str, ForecastFunction | Predictor] = {SEASONAL_NAIVE: seasonal_naive(season)}
    if season > 1:
        forecasters[LAST_VALUE] = seasonal_naive(1)
    if pretrained is not None:
        forecasters[ZERO_SHOT] = zero_shot(pretrained, season=season)
    return forecasters


def format_baseline(name: str) -> str:
    """Returns the name of a baseline as it is written in a sentence."""
    return _SENTENCE_NAMES.get(name, name.replace("_", " "))


def seasonal_naive(season: int) -> ForecastFunction:
    """Returns a forecaster that repeats the last season (season 1: the last value)."""

    def forecast(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        return [
            Forecast(item.id, item.future_timestamps(horizon), repeat_season(item.y, season, horizon))
            for item in series
        ]

    return forecast


def zero_shot(predictor: Predictor, *, season: int) -> ForecastFunction:
    """Returns the pretrained network as a forecaster of all histories at once, without the warnings about each.

    Where it has no forecast (for example, of a history without a recent observed value), the seasonal naive forecast is
    returned, with a warning, so that every window of a backtest is scored.
    """

    def forecast(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        outcomes = predictor.forecast_batch(series, horizon)
        return [
            Forecast(item.id, item.future_timestamps(horizon), outcome.mean)
            if isinstance(outcome, Forecast)
            else _replace_forecast(item, ZERO_SHOT, outcome.code, season=season, horizon=horizon)
            for item, outcome in zip(series, outcomes, strict=True)
        ]

    return forecast


FitProgressCallback = Callable[[int, int], None]
"""Called with the number of finished histories and their total."""


def statistical_baseline(
    name: str,
    *,
    season: int,
    jobs: int = 1,
    run_steps: RunSteps | None = None,
    progress: FitProgressCallback | None = None,
) -> ForecastFunction:
    """Returns a forecaster that fits one of STATISTICAL_MODELS to each history (`statistical.models.forecast_tasks`).

    Where the model cannot be fitted to a history (for example, too short) or its forecast is not finite, the seasonal naive
    forecast is returned, with a warning.

    Args:
        name: One of STATISTICAL_MODELS. `auto_ets` ignores a season of more than 24 steps.
        season: Steps of a season.
        jobs: Parallel processes.
        run_steps: What fits the models elsewhere, as for `forecast_tasks`.
        progress: Called after every history.
    Raises:
        InputError: no baseline has this name.
        MissingPackage: statsforecast is not installed; raised here, before any forecast.
    """
    if name not in STATISTICAL_MODELS:
        raise InputError(
            f"Expected one of the statistical baselines {', '.join(STATISTICAL_MODELS)}; found {name!r}. Use one of these names.",
            where="baselines",
        )
    require_model_package(name)

    def forecast(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        outcomes: list[Forecast | ForecasterError] = []
        tasks = [FitTask(name, item.y, season, horizon) for item in series]
        results = forecast_tasks(tasks, jobs=jobs, run_steps=run_steps)
        for item, result in zip(series, results, strict=True):
            outcomes.append(_to_forecast(item, result, name, season=season, horizon=horizon))
            if progress is not None:
                progress(len(outcomes), len(series))
        return outcomes

    return forecast


def _to_forecast(series: Series, result: np.ndarray | str, name: str, *, season: int, horizon: int) -> Forecast:
    if not isinstance(result, str):
        return Forecast(series.id, series.future_timestamps(horizon), result)
    return _replace_forecast(series, name, result, season=season, horizon=horizon)


def _replace_forecast(series: Series, name: str, reason: str, *, season: int, horizon: int) -> Forecast:
    """Returns the seasonal naive forecast in place of one that a baseline cannot make."""
    verb = "forecast the series" if name == ZERO_SHOT else "be fitted"
    warning = f"{name} could not {verb} ({reason}); the seasonal naive forecast is used instead"
    return Forecast(series.id, series.future_timestamps(horizon), repeat_season(series.y, season, horizon), (warning,))
