"""How much a network and statistical models count in a blend: weights from the validation windows, and from nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.calibration import calibrate_on_backtest
from forecaster.evaluation.rolling_origins import ForecastArray
from forecaster.metrics import nanmean
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.series import Panel
from forecaster.shapes import Float64
from forecaster.statistical.blend import NETWORK, combine_forecasts, forecast_component

logger = logging.getLogger(__name__)

BlendCandidate = Literal["network", "equal", "optimal"]

_SMOOTHING = 1e-4  # of a scaled error: within it of zero an absolute value is taken for smooth
_TOLERANCE = 1e-6  # a round that moves no weight further is the last
_MAX_ITERATIONS = 1000


class BlendWeights(NamedTuple):
    """The weights of a blend, and how they were chosen.

    Attributes:
        weights: By forecast, whole hundredths that add to one: what is told is what is used.
        chosen: Which of the three candidates they are.
        errors: MASE of each candidate on the windows it was chosen by; empty where no series has a scale.
    """

    weights: Mapping[str, float]
    chosen: BlendCandidate
    errors: Mapping[str, float]


class BlendResult(NamedTuple):
    """A forecaster that blends, calibrated on its blended forecasts, and how its weights were chosen."""

    model: FittedModel
    weights: BlendWeights


def fit_blend(model: FittedModel, panel: Panel, *, windows: int, stride: int | None = None) -> BlendResult:
    """The forecaster as the blend that its specification asks for, on the origins that `calibrated` looks at.

    Args:
        forecaster: Fitted without the steps that these origins look ahead to.
        panel: All that was known at the fit.
        windows: Rolling origins.
        stride: Steps between them; a horizon, if not given.
    Raises:
        MissingPackage: statsforecast is not installed.
    """
    spec, season = model.spec, model.season
    alone = Predictor(replace(model, blend_weights={}))
    result = backtest(
        panel,
        {NETWORK: alone},
        horizon=spec.horizon,
        windows=windows,
        season=season,
        min_history=spec.min_steps,
        stride=stride,
    )
    histories = [one.y[: len(one) - left] for one in result.series for left in result.origin_offsets]
    forecasts = dict(result.forecasts)
    for name in spec.blend:
        found = forecast_component(name, histories, season=season, horizon=spec.horizon)
        forecasts[name] = found.forecasts.reshape(result.actual.shape)
        if faults := [fault for fault in found.failures if fault is not None]:
            logger.warning(
                "%s could not be fitted to %d of %d histories, the network stands in there; the first: %s",
                name,
                len(faults),
                len(histories),
                faults[0],
            )
    weighed = choose_weights(result.actual, forecasts, result.scale)
    mixed = replace(result, forecasts={"own": combine_forecasts(forecasts, weighed.weights)})
    return BlendResult(calibrate_on_backtest(replace(model, blend_weights=weighed.weights), mixed, "own"), weighed)


def choose_weights(
    actual: ForecastArray, forecasts: Mapping[str, ForecastArray], scale: Float64[np.ndarray, "series"]
) -> BlendWeights:
    """The weights that a blend is given, for its MASE: the mean over series of their absolute errors over their scale.

    Three candidates: the network alone, equal weights, and the weights that are best on these very windows. The latter
    are never worse here, by luck if by nothing else (the forecast combination puzzle: Stock and Watson 2004, Smith and
    Wallis 2009). So they are taken only if they are clearly better than the better of the other two, which have nothing
    to fit: if the mean gain over series is more than its standard error, times the root of half the number of forecasts.
    Where equal weights are true this happens by chance about once in twenty (decision 15). Of one series the windows are
    counted instead; of one window nothing is clear.

    Args:
        actual: What came; NaN was not observed.
        forecasts: By name, the network's first; where another's is NaN, the network's stands in.
        scale: Of each series; one that has none (NaN) does not count. If none has any, the network stays alone.
    """
    names = list(forecasts)
    assert names[0] == NETWORK, "the network's forecast comes first"
    whole = {name: np.where(np.isnan(each), forecasts[NETWORK], each) for name, each in forecasts.items()}
    gaps = np.stack([whole[name] - actual for name in names], axis=-1) / scale[:, None, None, None]
    there = np.isfinite(gaps).all(axis=-1)
    of_series = 1.0 / there.sum(axis=(1, 2)).clip(1)
    simple: dict[BlendCandidate, Float64[np.ndarray, "forecast"]] = {
        "network": np.eye(len(names))[0],
        "equal": _round_to_hundredths(np.full(len(names), 1 / len(names))),
    }
    if not there.any():
        return BlendWeights(dict(zip(names, simple["network"].tolist(), strict=True)), "network", {})
    counts = np.broadcast_to(of_series[:, None, None], there.shape)[there]
    candidates = simple | {"optimal": _round_to_hundredths(optimal_weights(gaps[there], counts / counts.sum()))}
    units = {chosen: _mean_by_unit(np.where(there, np.abs(gaps @ each), np.nan)) for chosen, each in candidates.items()}
    errors = {chosen: float(nanmean(each)) for chosen, each in units.items()}
    better: BlendCandidate = "network" if errors["network"] <= errors["equal"] else "equal"
    chosen: BlendCandidate = (
        "optimal" if _is_clear_gain(units[better] - units["optimal"], num_forecasts=len(names)) else better
    )
    return BlendWeights(dict(zip(names, candidates[chosen].tolist(), strict=True)), chosen, errors)


def optimal_weights(
    errors: Float64[np.ndarray, "error forecast"], error_weights: Float64[np.ndarray, "error"]
) -> Float64[np.ndarray, "forecast"]:
    """The weights, none negative and adding to one, that make the counted sum of absolute errors of the blend smallest.

    As the weights add to one, an error of the blend is the blend of the errors. The problem is convex. Each round puts a
    parabola over every absolute value (rounded off at zero) that touches it at the blend so far, and goes to the least
    point of their sum: the errors fall with every round (iteratively reweighted least squares; Hunter and Lange 2004,
    section 3.2). The result is within 1e-4 of the smallest sum where the counts add to one.

    Args:
        gaps: Errors of each forecast, in units in which most are about one.
        counts: How much each error counts.
    """
    weights = np.full(errors.shape[1], 1 / errors.shape[1])
    for _ in range(_MAX_ITERATIONS):
        steep = error_weights / np.sqrt((errors @ weights) ** 2 + _SMOOTHING**2)
        moved = _simplex_least_squares(errors.T @ (steep[:, None] * errors))
        still = np.abs(moved - weights).max() < _TOLERANCE
        weights = moved
        if still:
            break
    return weights


def _simplex_least_squares(gram: Float64[np.ndarray, "forecast forecast"]) -> Float64[np.ndarray, "forecast"]:
    """The weights w, none negative and adding to one, with the least w' gram w: the best of all faces of the simplex."""
    size = len(gram)
    best, least = np.eye(size)[0], gram[0, 0]
    for some in (list(one) for count in range(1, size + 1) for one in combinations(range(size), count)):
        free = np.linalg.pinv(gram[np.ix_(some, some)], hermitian=True).sum(axis=1)
        weights = np.zeros(size)
        weights[some] = free / free.sum() if free.sum() > 0 else 1 / len(some)
        value = weights @ gram @ weights
        if (weights >= 0).all() and value < least:
            best, least = weights, value
    return np.asarray(best)


def _round_to_hundredths(weights: Float64[np.ndarray, "forecast"]) -> Float64[np.ndarray, "forecast"]:
    """Rounded to hundredths that add to one: those with the largest remainders are rounded up, the first of equals first."""
    percent = np.round(100 * weights, 9)
    whole = np.floor(percent)
    up = np.argsort(whole - percent, kind="stable")[: round(100 - whole.sum())]
    whole[up] += 1
    return np.asarray(whole / 100)


def _mean_by_unit(errors: ForecastArray) -> Float64[np.ndarray, "unit"]:
    """The mean error of each series; of one series alone, of each window."""
    return nanmean(errors, axis=(1, 2)) if len(errors) > 1 else nanmean(errors[0], axis=1)


def _is_clear_gain(gains: Float64[np.ndarray, "unit"], *, num_forecasts: int) -> bool:
    """Whether the mean gain is so many of its standard errors above zero that fitting so many forecasts does not explain it."""
    known = gains[np.isfinite(gains)]
    return len(known) > 1 and bool(known.mean() > np.sqrt(num_forecasts / 2 / len(known)) * known.std(ddof=1))
