"""Statistical models, fitted to every history anew: Naive 2, and ETS, Theta and ARIMA of statsforecast.

Nothing here needs torch, so that the processes of `jobs` start quickly.
"""

from __future__ import annotations

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
from forecaster.shapes import Float64

STATSFORECAST_CLASSES = {
    "auto_ets": "AutoETS",
    "dynamic_optimized_theta": "DynamicOptimizedTheta",
    "auto_arima": "AutoARIMA",
}
"""What statsforecast calls them."""
STATISTICAL_MODELS = ("naive2", *STATSFORECAST_CLASSES)
MAX_ETS_SEASON = 24  # statsforecast fits no seasonal ETS to longer ones

_SEASONALITY_Z_SCORE = 1.645  # of the normal distribution: M4's test of seasonality, at 90 %
_MAX_CHUNK_SIZE = 16  # histories that a process takes at once
_WARNING_FILTER_LOCK = (
    Lock()
)  # filters of warnings belong to the process: threads that set them would not leave them as found


class FitTask(NamedTuple):
    """A history, and what to fit to it.

    Attributes:
        name: One of STATISTICAL.
        y: Oldest value first; NaN was not observed.
        season: Steps of a season. `auto_ets` leaves out one of more than LONGEST_ETS_SEASON steps.
        horizon: Steps ahead.
    """

    model: str
    y: Float64[np.ndarray, "_"]
    season: int
    horizon: int


def forecast_tasks(tasks: Sequence[FitTask], *, jobs: int = 1) -> Iterator[Float64[np.ndarray, "_"] | str]:
    """The point forecast of each task in turn, or why there is none: the history is too short, say.

    Missing values at the start are cut off, gaps are drawn straight between their neighbours, and where values are
    missing at the end the model is fitted up to the last one observed and asked so many steps further.

    Args:
        tasks: Histories, and what to fit.
        jobs: Processes beside each other.
    """
    if jobs == 1 or len(tasks) == 1:
        yield from map(_forecast_task, tasks)
        return
    # Not by forking: threads of torch may hold locks here that nobody would open there.
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_forecast_task, tasks, chunksize=max(1, min(_MAX_CHUNK_SIZE, len(tasks) // (4 * jobs))))
        except BrokenProcessPool as error:
            raise TrainingError(
                f"Expected {jobs} processes to fit {tasks[0].model}; one of them was ended from outside. Look whether memory "
                "ran out, and ask for fewer --jobs.",
                where="jobs",
            ) from error


def require_model_package(name: str, *, purpose: str = "the baseline") -> None:
    """Raises MissingPackage where one of STATISTICAL cannot be fitted here."""
    if name in STATSFORECAST_CLASSES:
        _import_statsforecast_models(name, purpose)


def naive2(y: Float64[np.ndarray, "step"], *, season: int, horizon: int) -> Float64[np.ndarray, "horizon"]:
    """Naive 2 of the M competitions (Makridakis et al. 2020): the last value, seasonally adjusted where there is a season.

    There is one if three whole seasons or more have an autocorrelation at its lag that is significant at 90 %; it is
    taken out by classical multiplicative decomposition. Histories with values of zero and below are not adjusted.

    Args:
        y: Without missing values.
        season: Steps of a season.
        horizon: Steps ahead.
    """
    if season == 1 or len(y) < 3 * season or (y <= 0).any() or not _is_seasonal(y, season):
        return np.full(horizon, y[-1])
    weights = np.ones(season) if season % 2 else np.concatenate([[0.5], np.ones(season - 1), [0.5]])
    trend = np.convolve(y, weights / season, mode="valid")
    half = len(weights) // 2
    ratios = np.full(-(-len(y) // season) * season, np.nan)
    ratios[half : half + len(trend)] = y[half : half + len(trend)] / trend
    indices = nanmean(ratios.reshape(-1, season), axis=0)
    indices = indices / indices.mean()
    ahead = np.arange(len(y), len(y) + horizon) % season
    return np.asarray(y[-1] / indices[(len(y) - 1) % season] * indices[ahead])


def interpolate_gaps(y: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
    """From the first observed value to the last, gaps drawn straight between their neighbours; empty if there is none."""
    seen = np.flatnonzero(~np.isnan(y))
    return y[:0] if not len(seen) else np.interp(np.arange(seen[0], seen[-1] + 1), seen, y[seen])


def _forecast_task(task: FitTask) -> np.ndarray | str:
    """The point forecast, or why there is none."""
    y = interpolate_gaps(task.y)
    if not len(y):
        return "nothing was observed"
    late = len(task.y) - 1 - int(np.flatnonzero(~np.isnan(task.y))[-1])
    try:
        with _WARNING_FILTER_LOCK, warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            told = _fit_and_forecast(task, y, task.horizon + late)[late:]
    except Exception as error:  # of any kind: one history must not cost the others
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return told if np.isfinite(told).all() else "its forecast is not finite"


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
        raise MissingPackage(
            f"Expected the package 'statsforecast' for {purpose} {name}; it is not installed. Install the extra that has it: "
            "pip install 'forecaster[baselines]'.",
            where=name,
        ) from error


def _is_seasonal(y: Float64[np.ndarray, "_"], season: int) -> bool:
    """Whether the autocorrelation at the lag of a season is further from zero than Bartlett's formula lets chance be."""
    apart = y - y.mean()
    power = float(apart @ apart)
    if power == 0:
        return False
    found = np.array([apart[lag:] @ apart[:-lag] for lag in range(1, season + 1)]) / power
    limit = _SEASONALITY_Z_SCORE * np.sqrt((1 + 2 * (found[:-1] ** 2).sum()) / len(y))
    return bool(abs(found[-1]) > limit)
