"""Accuracy measures as plain functions of arrays; NaN means no value, and is left out of every mean."""

from __future__ import annotations

import warnings

import numpy as np

from forecaster.shapes import Float64

Errors = Float64[np.ndarray, "*rows horizon"]


def nanmean(
    values: Float64[np.ndarray, "..."], axis: int | tuple[int, ...] | None = None
) -> Float64[np.ndarray, "..."]:
    """The mean of what is there; NaN, quietly, where nothing is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.asarray(np.nanmean(values, axis=axis))


def seasonal_error(history: Float64[np.ndarray, "step"], *, season: int, power: int = 1) -> float:
    """Mean of |y_t - y_(t-season)| ** power over a history: the scale of MASE (power 1) and RMSSE (2).

    Hyndman and Koehler 2006, section 2.5. NaN where the history has no such pair, or they never differ.
    """
    if len(history) <= season:
        return float("nan")
    scale = float(nanmean(np.abs(history[season:] - history[:-season]) ** power))
    return scale if scale > 0 else float("nan")


def mae(actual: Errors, forecast: Errors) -> Float64[np.ndarray, "*rows"]:
    """Mean absolute error of each row."""
    return nanmean(np.abs(actual - forecast), axis=-1)


def mse(actual: Errors, forecast: Errors) -> Float64[np.ndarray, "*rows"]:
    """Mean squared error of each row."""
    return nanmean((actual - forecast) ** 2, axis=-1)


def smape(actual: Errors, forecast: Errors) -> Float64[np.ndarray, "*rows"]:
    """Symmetric mean absolute percentage error of each row, 0 to 200 (Makridakis et al. 2018, M4); 0/0 counts as 0."""
    size = np.abs(actual) + np.abs(forecast)
    gap = np.abs(actual - forecast)
    return nanmean(np.where(size > 0, 200 * gap / np.where(size > 0, size, 1), gap), axis=-1)
