"""Statistical models, fitted to each history at prediction time: Naive 2, and ETS, Theta and ARIMA of statsforecast.

The module does not import torch, so that worker processes start quickly.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import get_context
from threading import Lock
from typing import NamedTuple

import numpy as np

from forecaster.errors import MissingPackage, TrainingError
from forecaster.metrics import nanmean
from forecaster.progress.steps import RunSteps
from forecaster.shapes import Float64

STATSFORECAST_CLASSES = {
    "auto_ets": "AutoETS",
    "dynamic_optimized_theta": "DynamicOptimizedTheta",
    "auto_arima": "AutoARIMA",
}
"""The class names in `statsforecast.models`."""
STATISTICAL_MODELS = ("naive2", *STATSFORECAST_CLASSES)
MAX_ETS_SEASON = 24  # statsforecast fits no seasonal ETS to longer seasons

_SEASONALITY_Z_SCORE = 1.645  # quantile of the normal distribution: M4's test of seasonality, at 90 %
_MAX_CHUNK_SIZE = 16  # tasks that a worker process receives at once
# Warning filters are global to the process, so threads that change and restore them must take turns.
_WARNING_FILTER_LOCK = Lock()


class FitTask(NamedTuple):
    """A history, and the model to fit to it.

    Attributes:
        model: One of STATISTICAL_MODELS.
        y: Oldest value first; NaN marks a step that was not observed.
        season: Steps of a season. `auto_ets` ignores a season of more than MAX_ETS_SEASON steps.
        horizon: Steps ahead.
    """

    model: str
    y: Float64[np.ndarray, "_"]
    season: int
    horizon: int


def forecast_tasks(
    tasks: Sequence[FitTask], *, jobs: int = 1, run_steps: RunSteps | None = None
) -> Iterator[Float64[np.ndarray, "_"] | str]:
    """Yields the point forecast of each task in order, or the reason why there is none: the history is too short, say.

    Missing values at the start are dropped, and gaps are interpolated linearly. Where values are missing at the end, the model
    is fitted up to the last observed value, and its horizon is extended by the number of missing values.

    Args:
        tasks: Histories, and the models to fit.
        jobs: The number of parallel processes.
        run_steps: What fits the models elsewhere, some tasks at a time; by default `jobs` processes of this machine.
    Raises:
        TrainingError: A worker process was killed.
    """
    if run_steps is not None:
        yield from _forecast_elsewhere(tasks, run_steps)
        return
    if jobs == 1 or len(tasks) == 1:
        yield from map(_forecast_task, tasks)
        return
    # Spawned rather than forked: a forked process would inherit locks that threads of torch may hold, and never release them.
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_forecast_task, tasks, chunksize=max(1, min(_MAX_CHUNK_SIZE, len(tasks) // (4 * jobs))))
        except BrokenProcessPool as error:
            raise TrainingError(
                f"Expected {jobs} processes to fit {tasks[0].model}; one of them was killed. Check whether memory ran out, and "
                "choose fewer --jobs.",
                where="jobs",
            ) from error


def _forecast_elsewhere(tasks: Sequence[FitTask], run_steps: RunSteps) -> Iterator[np.ndarray | str]:
    """Yields the results in the order of the tasks, each chunk as soon as those before it are there."""
    chunks = [_Chunk(first, tasks[first : first + _MAX_CHUNK_SIZE]) for first in range(0, len(tasks), _MAX_CHUNK_SIZE)]
    finished: dict[int, _ChunkResult] = {}
    expected = 0
    for result in run_steps(_forecast_chunk, chunks):
        finished[result.first] = result
        while expected in finished:
            forecasts = finished.pop(expected).forecasts
            yield from forecasts
            expected += len(forecasts)


def require_model_package(name: str, *, purpose: str = "the baseline") -> None:
    """Raises MissingPackage if the package that fits a model of STATISTICAL_MODELS is not installed."""
    if name in STATSFORECAST_CLASSES:
        _import_statsforecast_models(name, purpose)


def naive2(y: Float64[np.ndarray, "step"], *, season: int, horizon: int) -> Float64[np.ndarray, "horizon"]:
    """Naive 2 of the M competitions (Makridakis et al. 2020): the last value, with seasonal adjustment of seasonal histories.

    A history is seasonal if it has at least three whole seasons, and if its autocorrelation at the seasonal lag is significant
    at 90 %. The season is removed by classical multiplicative decomposition. Histories with values of zero or below are not
    adjusted.

    Args:
        y: The history, without missing values.
        season: Steps of a season.
        horizon: Steps ahead.
    """
    if season == 1 or len(y) < 3 * season or (y <= 0).any() or not _is_seasonal(y, season):
        return np.full(horizon, y[-1])
    weights = np.ones(season) if season % 2 else np.concatenate([[0.5], np.ones(season - 1), [0.5]])
    trend = np.convolve(y, weights / season, mode="valid")
    half_width = len(weights) // 2
    ratios = np.full(-(-len(y) // season) * season, np.nan)
    ratios[half_width : half_width + len(trend)] = y[half_width : half_width + len(trend)] / trend
    indices = nanmean(ratios.reshape(-1, season), axis=0)
    indices = indices / indices.mean()
    future_phases = np.arange(len(y), len(y) + horizon) % season
    return np.asarray(y[-1] / indices[(len(y) - 1) % season] * indices[future_phases])


def interpolate_gaps(y: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
    """Returns the values from the first observed to the last, with linear interpolation of gaps; empty if none is observed."""
    observed_steps = np.flatnonzero(~np.isnan(y))
    return (
        y[:0]
        if not len(observed_steps)
        else np.interp(np.arange(observed_steps[0], observed_steps[-1] + 1), observed_steps, y[observed_steps])
    )


class _Chunk(NamedTuple):
    """Consecutive tasks, and the index of the first one."""

    first: int
    tasks: Sequence[FitTask]


class _ChunkResult(NamedTuple):
    """The outcome of each task of a chunk."""

    first: int
    forecasts: list[np.ndarray | str]


def _forecast_chunk(chunk: _Chunk) -> _ChunkResult:
    return _ChunkResult(chunk.first, [_forecast_task(task) for task in chunk.tasks])


def _forecast_task(task: FitTask) -> np.ndarray | str:
    """Returns the point forecast, or the reason why there is none."""
    y = interpolate_gaps(task.y)
    if not len(y):
        return "nothing was observed"
    trailing_missing = len(task.y) - 1 - int(np.flatnonzero(~np.isnan(task.y))[-1])
    try:
        with _WARNING_FILTER_LOCK, warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            forecast = _fit_and_forecast(task, y, task.horizon + trailing_missing)[trailing_missing:]
    except Exception as error:  # of any class: a failure on one history must not affect the others
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return forecast if np.isfinite(forecast).all() else "its forecast is not finite"


def _fit_and_forecast(task: FitTask, y: Float64[np.ndarray, "_"], steps: int) -> Float64[np.ndarray, "_"]:
    if task.model == "naive2":
        return naive2(y, season=task.season, horizon=steps)
    model = getattr(_import_statsforecast_models(task.model, "the model"), STATSFORECAST_CLASSES[task.model])(
        season_length=task.season
    )
    return np.asarray(model.forecast(y, steps)["mean"], dtype=np.float64)


def _import_statsforecast_models(name: str, purpose: str) -> object:
    try:
        return import_module("statsforecast.models")
    except ImportError as error:
        # No release of statsforecast supports both Python 3.14 and pandas 3, so the extra is empty there.
        is_available = sys.version_info < (3, 14)
        advice = (
            "Install its extra: pip install 'recurrent-forecaster[baselines]'."
            if is_available
            else "No release of it supports pandas 3 on Python 3.14: use Python 3.13, or leave the statistical models out."
        )
        raise MissingPackage(
            f"Expected the package 'statsforecast' for {purpose} {name}; it is not installed. {advice}", where=name
        ) from error


def _is_seasonal(y: Float64[np.ndarray, "_"], season: int) -> bool:
    """Whether the autocorrelation at the seasonal lag is significant by Bartlett's formula."""
    centered = y - y.mean()
    sum_of_squares = float(centered @ centered)
    if sum_of_squares == 0:
        return False
    autocorrelations = np.array([centered[lag:] @ centered[:-lag] for lag in range(1, season + 1)]) / sum_of_squares
    limit = _SEASONALITY_Z_SCORE * np.sqrt((1 + 2 * (autocorrelations[:-1] ** 2).sum()) / len(y))
    return bool(abs(autocorrelations[-1]) > limit)
