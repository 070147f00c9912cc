"""Noise: independent innovations with heavy tails and changing volatility, and coloured noise made of them."""

from __future__ import annotations

import numpy as np

from forecaster.shapes import Float64
from forecaster.synthetic.sampling import (
    SeriesShape,
    draw_choice,
    draw_log_uniform,
    draw_uniform,
    scale_to_unit,
)

_HEAVY_SHARE, _VOLATILE_SHARE, _SEASONAL_VOLATILITY_SHARE, _COLOURED_SHARE = 0.3, 0.25, 0.15, 0.4


def draw_innovations(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws innovations of a standard deviation of about 1 that cannot be predicted: their mean is 0 given all earlier ones.

    Some series have heavy tails (Student's t with 3 to 6 degrees of freedom), a volatility that wanders, or one that depends on
    the season.
    """
    values = rng.standard_normal((shape.num_series, shape.length))
    heavy = np.flatnonzero(rng.random(shape.num_series) < _HEAVY_SHARE)
    if len(heavy):
        freedom = draw_uniform(3.0, 6.0, len(heavy), rng)
        chi_square = 2 * rng.standard_gamma(freedom / 2, (len(heavy), shape.length)) / freedom
        values[heavy] *= np.sqrt((freedom - 2) / freedom / np.maximum(chi_square, 1e-3))
    volatile = np.flatnonzero(rng.random(shape.num_series) < _VOLATILE_SHARE)
    if len(volatile):
        size = draw_log_uniform(0.1, 1.2, len(volatile), rng) / np.sqrt(shape.length)
        log_volatility = np.cumsum(size * rng.standard_normal((len(volatile), shape.length)), axis=1)
        values[volatile] *= np.exp(log_volatility - log_volatility.mean(axis=1, keepdims=True))
    seasonal = np.flatnonzero(rng.random(shape.num_series) < _SEASONAL_VOLATILITY_SHARE)
    if shape.season > 1 and len(seasonal):
        volatility = np.exp(0.4 * rng.standard_normal((len(seasonal), shape.season)))
        values[seasonal] *= volatility[:, np.arange(shape.length) % shape.season]
    return values


def draw_noise(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws noise: innovations, which some series colour by an ARMA(2, 1) process."""
    values = draw_innovations(shape, rng)
    coloured = np.flatnonzero(rng.random(shape.num_series) < _COLOURED_SHARE)
    if len(coloured):
        values[coloured] = scale_to_unit(colour_noise(values[coloured], rng))
    return values


def colour_noise(
    innovations: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Filters innovations by stationary ARMA(2, 1) processes with real roots, one per series (Box and Jenkins 1970)."""
    num_series, length = innovations.shape
    first_root = rng.uniform(-0.5, 0.9, num_series)
    second_root = np.where(rng.random(num_series) < 0.4, rng.uniform(-0.6, 0.8, num_series), 0.0)
    moving = np.where(draw_choice(0.4, num_series, rng)[:, 0], rng.uniform(-0.7, 0.7, num_series), 0.0)
    first, second = first_root + second_root, -first_root * second_root
    by_step = np.ascontiguousarray(innovations.T)
    values = np.empty_like(by_step)
    previous = before = last_innovation = np.zeros(num_series)
    for step in range(length):
        values[step] = first * previous + second * before + by_step[step] + moving * last_innovation
        previous, before, last_innovation = values[step], previous, by_step[step]
    return values.T
