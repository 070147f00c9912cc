"""Trends: functions of time, wandering levels with and without drift, and cycles. The unit is the deviation of the noise."""

from __future__ import annotations

import numpy as np

from forecaster.shapes import Float64
from forecaster.synthetic.noise import colour_noise, draw_innovations
from forecaster.synthetic.processes import draw_gaussian_process
from forecaster.synthetic.sampling import (
    SeriesShape,
    draw_choice,
    draw_kinds,
    draw_log_uniform,
    draw_signs,
    draw_uniform,
    scale_to_unit,
)
from forecaster.synthetic.season_priors import find_season_prior


def draw_flat(shape: SeriesShape, _: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws no trend."""
    return np.zeros((shape.num_series, shape.length))


def draw_linear(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws straight lines."""
    return np.asarray(_draw_growth(shape, rng) * shape.steps / shape.length)


def draw_piecewise_linear(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws lines whose slope changes one to four times."""
    slopes = np.zeros((shape.num_series, shape.length))
    num_changes = rng.integers(1, 5, (shape.num_series, 1))
    for change in range(4):
        start = rng.integers(0, shape.length, (shape.num_series, 1))
        size = rng.standard_normal((shape.num_series, 1)) * draw_log_uniform(0.5, 40.0, shape.num_series, rng)
        slopes += ((shape.steps >= start) & (change < num_changes)) * size / shape.length
    return np.cumsum(slopes, axis=1)


def draw_growth_curves(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws saturating, exponential and logistic growth."""
    time = shape.steps / shape.length
    rate = draw_log_uniform(1.0, 12.0, shape.num_series, rng)
    middle = draw_uniform(0.0, 1.2, shape.num_series, rng)
    kind = rng.integers(0, 3, (shape.num_series, 1))
    curves = np.where(
        kind == 0,
        1 - np.exp(-rate * time),
        np.where(
            kind == 1, np.expm1(rate * time / 2) / np.expm1(rate / 2), 1 / (1 + np.exp(-2 * rate * (time - middle)))
        ),
    )
    return _draw_growth(shape, rng) * curves


def draw_random_walk(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws sums of innovations, without drift."""
    return np.asarray(
        draw_log_uniform(*find_season_prior(shape.season).walk_sizes, shape.num_series, rng)
        * np.cumsum(draw_innovations(shape, rng), axis=1)
    )


def draw_drifting_walk(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws random walks with a persistent drift; the changes of a third are autocorrelated."""
    drift = draw_drift(shape, rng)
    changes = draw_kinds((draw_innovations, _draw_coloured), (2.0, 1.0), shape, rng)
    return np.asarray(
        draw_log_uniform(*find_season_prior(shape.season).walk_sizes, shape.num_series, rng)
        * np.cumsum(changes + drift, axis=1)
    )


def draw_local_trend(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws damped local linear trends: a slope that wanders and returns to zero, and a level that follows it."""
    num_series = shape.num_series
    damping = np.where(rng.random(num_series) < 0.25, 1.0, rng.uniform(0.7, 1.0, num_series))
    slope_size = draw_log_uniform(0.003, 0.5, num_series, rng)[:, 0]
    level_size = np.where(rng.random(num_series) < 0.5, 0.0, draw_log_uniform(0.03, 1.0, num_series, rng)[:, 0])
    slope_changes = slope_size * rng.standard_normal((shape.length, num_series))
    level_changes = level_size * rng.standard_normal((shape.length, num_series))
    slope, level = slope_size * (1 + 4 * rng.standard_normal(num_series)), np.zeros(num_series)
    values = np.empty((shape.length, num_series))
    for step in range(shape.length):
        slope = damping * slope + slope_changes[step]
        level = level + slope + level_changes[step]
        values[step] = level
    return values.T


def draw_smooth(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws smooth curves: Gaussian processes whose length scale is at least six steps."""
    curves = draw_gaussian_process(shape, rng, shortest=6.0, longest=4.0 * shape.length)
    return np.asarray(curves * np.abs(_draw_growth(shape, rng)) / 2)


def draw_mean_reverting(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws autoregressions of order 1, which return to their mean."""
    persistence = rng.uniform(0.6, 0.995, shape.num_series)
    changes = draw_innovations(shape, rng).T * np.sqrt(1 - persistence**2)
    value, values = rng.standard_normal(shape.num_series), np.empty((shape.length, shape.num_series))
    for step in range(shape.length):
        value = persistence * value + changes[step]
        values[step] = value
    return np.asarray(values.T * draw_log_uniform(0.3, 10.0, shape.num_series, rng))


def draw_cycle(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws waves whose period is no season, and whose phase wanders, as in business cycles and sunspots."""
    shortest = max(5.0, 1.5 * shape.season)
    period = draw_log_uniform(shortest, max(12.0, 10.0 * shape.season), shape.num_series, rng)
    wandering = np.cumsum(0.03 * rng.standard_normal((shape.num_series, shape.length)), axis=1)
    phase = 2 * np.pi * (shape.steps / period + draw_uniform(0.0, 1.0, shape.num_series, rng)) + wandering
    return np.asarray(draw_log_uniform(0.5, 8.0, shape.num_series, rng) * np.sin(phase))


def draw_drift(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series 1"]:
    """Draws the drift per step of each series, in deviations of its changes; it is zero for some series.

    A step of a year has more of it beside its noise than a step of a month.
    """
    prior = find_season_prior(shape.season)
    size = np.abs(rng.standard_normal((shape.num_series, 1))) * draw_log_uniform(0.05, 1.2, shape.num_series, rng)
    has_drift = draw_choice(prior.drift_share, shape.num_series, rng)
    return np.asarray(prior.growth * size * draw_signs(prior.upward_share, shape.num_series, rng) * has_drift)


def draw_trend(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws trends of all kinds; random walks with drift are the most frequent."""
    weights = _TREND_WEIGHTS | {draw_linear: find_season_prior(shape.season).line_weight}
    return draw_kinds(list(weights), list(weights.values()), shape, rng)


def _draw_coloured(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    return scale_to_unit(colour_noise(draw_innovations(shape, rng), rng))


def _draw_growth(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series 1"]:
    """Draws the change of a trend from the start of the series to its end."""
    return np.asarray(draw_log_uniform(0.3, 40.0, shape.num_series, rng) * draw_signs(0.65, shape.num_series, rng))


_TREND_WEIGHTS = {
    draw_flat: 8.0,
    draw_linear: 12.0,
    draw_drifting_walk: 34.0,
    draw_random_walk: 10.0,
    draw_local_trend: 9.0,
    draw_piecewise_linear: 6.0,
    draw_growth_curves: 6.0,
    draw_smooth: 5.0,
    draw_mean_reverting: 6.0,
    draw_cycle: 4.0,
}
