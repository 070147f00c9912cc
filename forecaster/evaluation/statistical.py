"""Baselines that fit a statistical model to every history anew: Naive 2, and ETS, Theta and ARIMA of statsforecast.

Nothing here needs torch, so that the processes of `jobs` start quickly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib import import_module
from multiprocessing import get_context
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from forecaster.errors import ForecasterError, InputError, MissingPackage, TrainingError
from forecaster.metrics import nanmean
from forecaster.series import Forecast, Series
from forecaster.shapes import Float64

if TYPE_CHECKING:
    from forecaster.evaluation.baselines import Ask

MODELS = {"auto_ets": "AutoETS", "dynamic_optimized_theta": "DynamicOptimizedTheta", "auto_arima": "AutoARIMA"}
"""What statsforecast calls them."""
STATISTICAL = ("naive2", *MODELS)
LONGEST_ETS_SEASON = 24  # statsforecast fits no seasonal ETS to longer ones

_SEASONAL_AT = 1.645  # of the normal distribution: M4's test of seasonality, at 90 %
_CHUNK = 16  # histories that a process takes at once

Progress = Callable[[int, int], None]
"""Told how many histories are done, of how many."""


def statistical(name: str, *, season: int, jobs: int = 1, progress: Progress | None = None) -> Ask:
    """The forecaster that fits one of STATISTICAL to each history it is shown.

    Missing values at the start are cut off, gaps are drawn straight between their neighbours, and where values are
    missing at the end the model is fitted up to the last one observed and asked so many steps further. A history that
    it cannot be fitted to (too short, say), or for which its forecast is not finite, is answered by seasonal naive,
    with a warning in the forecast.

    Args:
        name: One of STATISTICAL. `auto_ets` leaves out a season of more than 24 steps.
        season: Steps of a season.
        jobs: Processes beside each other.
        progress: Told after every history.
    Raises:
        InputError: no baseline has this name.
        MissingPackage: statsforecast is not installed; told here, before anything is asked.
    """
    if name not in STATISTICAL:
        raise InputError(
            f"Expected a statistical baseline: {', '.join(STATISTICAL)}; found {name!r}. Name one of them.",
            where="baselines",
        )
    if name in MODELS:
        _models(name)

    def ask(series: Sequence[Series], horizon: int) -> list[Forecast | ForecasterError]:
        outcomes: list[Forecast | ForecasterError] = []
        answers = _answers([_Task(name, one.y, season, horizon) for one in series], jobs)
        for one, answer in zip(series, answers, strict=True):
            outcomes.append(_outcome(one, answer, name, season=season, horizon=horizon))
            if progress is not None:
                progress(len(outcomes), len(series))
        return outcomes

    return ask


def naive2(y: Float64[np.ndarray, "step"], *, season: int, horizon: int) -> Float64[np.ndarray, "horizon"]:
    """Naive 2 of the M competitions (Makridakis et al. 2020): the last value, seasonally adjusted where there is a season.

    There is one if three whole seasons or more have an autocorrelation at its lag that is significant at 90 %; it is
    taken out by classical multiplicative decomposition. Histories with values of zero and below are not adjusted.

    Args:
        y: Without missing values.
        season: Steps of a season.
        horizon: Steps ahead.
    """
    if season == 1 or len(y) < 3 * season or (y <= 0).any() or not _seasonal(y, season):
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


def filled(y: Float64[np.ndarray, "_"]) -> Float64[np.ndarray, "_"]:
    """From the first observed value to the last, gaps drawn straight between their neighbours; empty if there is none."""
    seen = np.flatnonzero(~np.isnan(y))
    return y[:0] if not len(seen) else np.interp(np.arange(seen[0], seen[-1] + 1), seen, y[seen])


class _Task(NamedTuple):
    """What a process is given: a history, and what to fit to it."""

    name: str
    y: Float64[np.ndarray, "_"]
    season: int
    horizon: int


def _answers(tasks: Sequence[_Task], jobs: int) -> Iterator[np.ndarray | str]:
    if jobs == 1 or len(tasks) == 1:
        yield from map(_answer, tasks)
        return
    # Not by forking: threads of torch may hold locks here that nobody would open there.
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_answer, tasks, chunksize=max(1, min(_CHUNK, len(tasks) // (4 * jobs))))
        except BrokenProcessPool as error:
            raise TrainingError(
                f"Expected {jobs} processes to fit {tasks[0].name}; one of them was ended from outside. Look whether memory "
                "ran out, and ask for fewer --jobs.",
                where="jobs",
            ) from error


def _answer(task: _Task) -> np.ndarray | str:
    """The point forecast, or why there is none."""
    y = filled(task.y)
    if not len(y):
        return "nothing was observed"
    late = len(task.y) - 1 - int(np.flatnonzero(~np.isnan(task.y))[-1])
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            told = _fitted(task, y, task.horizon + late)[late:]
    except Exception as error:  # of any kind: one history must not cost the others
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return told if np.isfinite(told).all() else "its forecast is not finite"


def _fitted(task: _Task, y: Float64[np.ndarray, "_"], steps: int) -> Float64[np.ndarray, "_"]:
    if task.name == "naive2":
        return naive2(y, season=task.season, horizon=steps)
    model = getattr(_models(task.name), MODELS[task.name])(season_length=task.season)
    return np.asarray(model.forecast(y, steps)["mean"], dtype=np.float64)


def _models(name: str) -> object:
    try:
        return import_module("statsforecast.models")
    except ImportError as error:
        raise MissingPackage(
            f"Expected the package 'statsforecast' for the baseline {name}; it is not installed. Install the extra that has "
            "it: pip install 'forecaster[baselines]'.",
            where="baselines",
        ) from error


def _outcome(one: Series, answer: np.ndarray | str, name: str, *, season: int, horizon: int) -> Forecast:
    if not isinstance(answer, str):
        return Forecast(one.id, one.stamps_ahead(horizon), answer)
    from forecaster.predict import repeat_season

    warning = f"{name} could not be fitted ({answer}); seasonal naive stands in"
    return Forecast(one.id, one.stamps_ahead(horizon), repeat_season(one.y, season, horizon), (warning,))


def _seasonal(y: Float64[np.ndarray, "_"], season: int) -> bool:
    """Whether the autocorrelation at the lag of a season is further from zero than Bartlett's formula lets chance be."""
    apart = y - y.mean()
    power = float(apart @ apart)
    if power == 0:
        return False
    found = np.array([apart[lag:] @ apart[:-lag] for lag in range(1, season + 1)]) / power
    limit = _SEASONAL_AT * np.sqrt((1 + 2 * (found[:-1] ** 2).sum()) / len(y))
    return bool(abs(found[-1]) > limit)
