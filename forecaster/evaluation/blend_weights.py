"""Weights of a network and statistical models in a blend, chosen on the validation windows alone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np

from forecaster.engines.statistical.blend import NETWORK, combine_forecasts, forecast_component
from forecaster.evaluation.backtest import backtest
from forecaster.evaluation.calibration import calibrate_on_backtest, clip_at_origins
from forecaster.evaluation.rolling_origins import ForecastArray
from forecaster.metrics import nanmean
from forecaster.prediction.bounds import without_bounds
from forecaster.prediction.predictor import FittedModel, Predictor
from forecaster.progress import NO_PROGRESS, Progress
from forecaster.series import Panel
from forecaster.shapes import Float64

logger = logging.getLogger(__name__)

BlendCandidate = Literal["network", "equal", "optimal"]

_SMOOTHING = 1e-4  # of a scaled error: the absolute value is smoothed this close to zero
_TOLERANCE = 1e-6  # iteration ends when no weight moves further than this
_MAX_ITERATIONS = 1000


class BlendWeights(NamedTuple):
    """The weights of a blend, and how they were chosen.

    Attributes:
        weights: By forecast, whole hundredths that add to one: the reported weights are exactly the ones used.
        chosen: Which of the three candidates they are.
        errors: MASE of each candidate on the windows it was chosen by; empty where no series has a scale.
    """

    weights: Mapping[str, float]
    chosen: BlendCandidate
    errors: Mapping[str, float]


class BlendResult(NamedTuple):
    """A blended model, calibrated on its blended forecasts, and how its weights were chosen."""

    model: FittedModel
    weights: BlendWeights


def fit_blend(
    model: FittedModel,
    panel: Panel,
    *,
    windows: int,
    stride: int | None = None,
    progress: Progress = NO_PROGRESS,
) -> BlendResult:
    """Returns the model as the blend of its specification, with weights from the origins that `calibrate_model` uses.

    Args:
        model: Fitted without the steps ahead of these origins.
        panel: All data up to the fit.
        windows: Rolling origins.
        stride: Steps between them; defaults to the horizon.
        progress: Receives the phases "calibration" and "blend".
    Raises:
        MissingPackage: statsforecast is not installed.
    """
    spec, season = model.spec, model.season
    network_only = without_bounds(replace(model, blend_weights={}))  # bounds apply to the blend
    result = backtest(
        panel,
        {NETWORK: Predictor(network_only)},
        horizon=spec.horizon,
        windows=windows,
        season=season,
        min_history=spec.min_steps,
        stride=stride,
        progress=progress,
        phase="calibration",
    )
    histories = [item.y[: len(item) - offset] for item in result.series for offset in result.origin_offsets]
    forecasts = dict(result.forecasts)
    for name in spec.blend:
        with progress.phase("blend"):
            progress.update(0, f"{name}, {len(histories)} histories")
            component = forecast_component(name, histories, season=season, horizon=spec.horizon)
        forecasts[name] = component.forecasts.reshape(result.actual.shape)
        if errors := [error for error in component.failures if error is not None]:
            logger.warning(
                "%s could not be fitted to %d of %d histories; the network's forecast is used there. First error: %s",
                name,
                len(errors),
                len(histories),
                errors[0],
            )
    weights = choose_weights(result.actual, forecasts, result.scale)
    blended_model = replace(model, blend_weights=weights.weights)
    blended = clip_at_origins(Predictor(blended_model), result, combine_forecasts(forecasts, weights.weights))
    return BlendResult(
        calibrate_on_backtest(blended_model, replace(result, forecasts={"model": blended}), "model"), weights
    )


def choose_weights(
    actual: ForecastArray, forecasts: Mapping[str, ForecastArray], scale: Float64[np.ndarray, "series"]
) -> BlendWeights:
    """Chooses the weights of a blend by its MASE: absolute errors over the series' scale, averaged over series.

    There are three candidates: the network alone, equal weights, and the weights that are optimal on these very windows. The
    optimal weights are never worse here, at least by luck (the forecast combination puzzle: Stock and Watson 2004, Smith and
    Wallis 2009). They are therefore chosen only if they are clearly better than the better of the other two, which fit
    nothing: if the mean gain over series exceeds its standard error times the root of half the number of forecasts. Where
    equal weights are true this happens by chance about once in twenty (decision 15). With one series, gains are compared over
    windows; with one window, no gain is clear.

    Args:
        actual: The actuals; NaN where nothing was observed.
        forecasts: By name, the network's first; where another is NaN, the network's is used.
        scale: Scale of each series; a series without one (NaN) does not count. If no series has one, the network is used alone.
    """
    names = list(forecasts)
    assert names[0] == NETWORK, "the network's forecast comes first"
    filled = {name: np.where(np.isnan(values), forecasts[NETWORK], values) for name, values in forecasts.items()}
    scaled_errors = np.stack([filled[name] - actual for name in names], axis=-1) / scale[:, None, None, None]
    valid = np.isfinite(scaled_errors).all(axis=-1)
    series_weights = 1.0 / valid.sum(axis=(1, 2)).clip(1)
    simple_candidates: dict[BlendCandidate, Float64[np.ndarray, "forecast"]] = {
        "network": np.eye(len(names))[0],
        "equal": _round_to_hundredths(np.full(len(names), 1 / len(names))),
    }
    if not valid.any():
        return BlendWeights(dict(zip(names, simple_candidates["network"].tolist(), strict=True)), "network", {})
    error_weights = np.broadcast_to(series_weights[:, None, None], valid.shape)[valid]
    candidates = simple_candidates | {
        "optimal": _round_to_hundredths(optimal_weights(scaled_errors[valid], error_weights / error_weights.sum()))
    }
    unit_errors = {
        name: _mean_by_unit(np.where(valid, np.abs(scaled_errors @ weights), np.nan))
        for name, weights in candidates.items()
    }
    errors = {name: float(nanmean(values)) for name, values in unit_errors.items()}
    better: BlendCandidate = "network" if errors["network"] <= errors["equal"] else "equal"
    chosen: BlendCandidate = (
        "optimal" if _is_clear_gain(unit_errors[better] - unit_errors["optimal"], num_forecasts=len(names)) else better
    )
    return BlendWeights(dict(zip(names, candidates[chosen].tolist(), strict=True)), chosen, errors)


def optimal_weights(
    errors: Float64[np.ndarray, "error forecast"], error_weights: Float64[np.ndarray, "error"]
) -> Float64[np.ndarray, "forecast"]:
    """Returns the non-negative weights adding to one that minimise the weighted sum of the blend's absolute errors.

    As the weights add to one, an error of the blend is the blend of the errors. The problem is convex. Each iteration bounds
    every absolute value (smoothed at zero) by a parabola that touches it at the current blend, and moves to the minimum of
    their sum; the errors fall with every iteration (iteratively reweighted least squares; Hunter and Lange 2004, section
    3.2). The result is within 1e-4 of the smallest sum where the error weights add to one.

    Args:
        errors: Errors of each forecast, in units in which most are about one.
        error_weights: Weight of each error in the sum.
    """
    weights = np.full(errors.shape[1], 1 / errors.shape[1])
    for _ in range(_MAX_ITERATIONS):
        curvature = error_weights / np.sqrt((errors @ weights) ** 2 + _SMOOTHING**2)
        updated = _simplex_least_squares(errors.T @ (curvature[:, None] * errors))
        converged = np.abs(updated - weights).max() < _TOLERANCE
        weights = updated
        if converged:
            break
    return weights


def _simplex_least_squares(gram: Float64[np.ndarray, "forecast forecast"]) -> Float64[np.ndarray, "forecast"]:
    """Returns the non-negative weights w adding to one with the smallest w' gram w: the best over all faces of the simplex."""
    size = len(gram)
    best, least = np.eye(size)[0], gram[0, 0]
    for face in (list(indices) for count in range(1, size + 1) for indices in combinations(range(size), count)):
        unnormalized = np.linalg.pinv(gram[np.ix_(face, face)], hermitian=True).sum(axis=1)
        weights = np.zeros(size)
        weights[face] = unnormalized / unnormalized.sum() if unnormalized.sum() > 0 else 1 / len(face)
        value = weights @ gram @ weights
        if (weights >= 0).all() and value < least:
            best, least = weights, value
    return np.asarray(best)


def _round_to_hundredths(weights: Float64[np.ndarray, "forecast"]) -> Float64[np.ndarray, "forecast"]:
    """Rounds to hundredths that add to one: the largest remainders are rounded up, ties in order."""
    percent = np.round(100 * weights, 9)
    whole = np.floor(percent)
    rounded_up = np.argsort(whole - percent, kind="stable")[: round(100 - whole.sum())]
    whole[rounded_up] += 1
    return np.asarray(whole / 100)


def _mean_by_unit(errors: ForecastArray) -> Float64[np.ndarray, "unit"]:
    """Returns the mean error of each series; for a single series, of each window."""
    return nanmean(errors, axis=(1, 2)) if len(errors) > 1 else nanmean(errors[0], axis=1)


def _is_clear_gain(gains: Float64[np.ndarray, "unit"], *, num_forecasts: int) -> bool:
    """Returns whether the mean gain exceeds zero by more standard errors than fitting `num_forecasts` forecasts explains."""
    finite = gains[np.isfinite(gains)]
    return len(finite) > 1 and bool(finite.mean() > np.sqrt(num_forecasts / 2 / len(finite)) * finite.std(ddof=1))
