"""What measuring does to a series: growth by factors, counts, rounding, level shifts, outliers and missing values."""

from __future__ import annotations

import numpy as np

from forecaster.shapes import Bool, Float64
from forecaster.synthetic.sampling import (
    draw_choice,
    draw_log_uniform,
    draw_uniform,
    measure_step_size,
    scale_to_unit,
)

_MAX_EXPONENT, _MAX_RATE = 8.0, 1e6


def make_multiplicative(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator, *, smallest: float = 0.03
) -> Float64[np.ndarray, "series step"]:
    """Returns positive series around 1 whose logarithms have the shape of the values: the season grows with the level.

    The deviation of the logarithms is log-uniform between `smallest` and 1.
    """
    size = draw_log_uniform(smallest, 1.0, len(values), rng)
    return np.asarray(np.exp(np.clip(scale_to_unit(values) * size, -_MAX_EXPONENT, _MAX_EXPONENT)))


def draw_counts(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator, *, lowest: float = 0.2, highest: float = 100.0
) -> Float64[np.ndarray, "series step"]:
    """Draws counts whose rate has the shape of the values: Poisson, or negative binomial in half of the series.

    The mean rate of a series is log-uniform between `lowest` and `highest`.
    """
    num_series = len(values)
    rate = draw_log_uniform(lowest, highest, num_series, rng) * make_multiplicative(values, rng)
    dispersion = draw_log_uniform(1.0, 50.0, num_series, rng)
    dispersed = rng.gamma(dispersion, np.maximum(rate, 1e-4) / dispersion)
    rate = np.where(draw_choice(0.5, num_series, rng), dispersed, rate)
    return rng.poisson(np.minimum(rate, _MAX_RATE)).astype(np.float64)


def draw_intermittent(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Draws demand that is zero at most steps (Croston 1972): whether it occurs has the shape of the values, its size has not."""
    num_series = len(values)
    odds = draw_log_uniform(0.05, 0.8, num_series, rng) * make_multiplicative(values, rng)
    occurs = rng.random(values.shape) < odds / (1 + odds)
    sizes = 1 + rng.poisson(rng.gamma(1.0, draw_log_uniform(0.2, 20.0, num_series, rng), values.shape))
    return np.asarray(occurs * sizes.astype(np.float64))


def round_values(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Rounds to multiples of a unit that is 3 to 50 % of the deviation of the series."""
    unit = values.std(axis=1, keepdims=True) * draw_log_uniform(0.03, 0.5, len(values), rng)
    unit = np.where(unit > 0, unit, 1.0)
    return np.round(values / unit) * unit


def clip_below(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Returns series that are never negative: up to half of the values are at the lower limit, which becomes 0."""
    ordered = np.sort(values, axis=1)
    indices = rng.integers(0, max(values.shape[1] // 2, 1), (len(values), 1))
    return np.asarray(np.maximum(values - np.take_along_axis(ordered, indices, axis=1), 0.0))


def shift_level(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Adds one permanent change of the level, of some mean absolute changes from step to step."""
    num_series, length = values.shape
    start = rng.integers(0, length, (num_series, 1))
    size = 6 * measure_step_size(values) * rng.standard_normal((num_series, 1))
    return values + (np.arange(length) >= start) * size


def add_outliers(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Adds large errors of single values to 0.3 to 4 % of the steps."""
    is_outlier = rng.random(values.shape) < draw_uniform(0.003, 0.04, len(values), rng)
    return values + is_outlier * (6 * measure_step_size(values) * rng.standard_normal(values.shape))


def draw_missing(shape: tuple[int, int], rng: np.random.Generator) -> Bool[np.ndarray, "series step"]:
    """Draws which values are missing: 1 to 20 % at random, and one gap of up to a tenth. The first and last are observed."""
    num_series, length = shape
    missing = rng.random(shape) < draw_uniform(0.01, 0.2, num_series, rng)
    start = rng.integers(0, length, (num_series, 1))
    gap = rng.integers(0, max(2, length // 10), (num_series, 1))
    steps = np.arange(length)
    missing |= (steps >= start) & (steps < start + gap)
    missing[:, [0, -1]] = False
    return missing


def remove_values(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Replaces values by NaN, as `draw_missing` says."""
    return np.where(draw_missing((len(values), values.shape[1]), rng), np.nan, values)
