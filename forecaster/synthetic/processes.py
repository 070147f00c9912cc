"""Stochastic processes that statistical models assume: exponential smoothing, seasonal ARIMA and Gaussian processes."""

from __future__ import annotations

import numpy as np

from forecaster.shapes import Float64
from forecaster.synthetic.noise import colour_noise, draw_innovations, draw_noise
from forecaster.synthetic.sampling import (
    SeriesShape,
    draw_choice,
    draw_log_uniform,
    draw_signs,
    draw_uniform,
    scale_to_unit,
)
from forecaster.synthetic.season_priors import find_season_prior
from forecaster.synthetic.seasons import draw_pattern


def smooth_exponentially(
    noise: Float64[np.ndarray, "series step"],
    *,
    weight: Float64[np.ndarray, "series 1"],
    drift: Float64[np.ndarray, "series 1"],
) -> Float64[np.ndarray, "series step"]:
    """Returns series whose best forecast is simple exponential smoothing with drift (Hyndman and Billah 2003, equation 8).

    With l the level, y_t = l_(t-1) + drift + e_t and l_t = l_(t-1) + drift + weight e_t.
    """
    changes = drift + weight * noise
    level_before = np.cumsum(changes, axis=1) - changes
    return np.asarray(level_before + drift + noise)


def draw_ets(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws innovations state space models (Hyndman et al. 2008, table 2.2): additive errors, damped trend, additive season."""
    num_series, season, prior = shape.num_series, shape.season, find_season_prior(shape.season)
    level_weight = np.where(rng.random(num_series) < 0.15, 1.0, rng.beta(*prior.level_weight, num_series))
    slope_weight = level_weight * np.where(rng.random(num_series) < 0.68, 0.0, rng.beta(1, 7, num_series))
    damping = np.where(rng.random(num_series) < 0.6, 1.0, rng.uniform(0.8, 1.0, num_series))
    has_season = (rng.random(num_series) < prior.seasonal_share) & (season > 1)
    season_weight = (1 - level_weight) * np.where(rng.random(num_series) < 0.4, 0.0, rng.beta(1, 3, num_series))
    season_weight = season_weight * has_season
    slope_size = np.abs(rng.standard_normal((num_series, 1))) * draw_log_uniform(0.005, 0.8, num_series, rng)
    slope = prior.growth * slope_size * draw_signs(prior.upward_share, num_series, rng)
    slope = (slope * draw_choice(prior.drift_share, num_series, rng))[:, 0]
    sizes = draw_log_uniform(*prior.season_sizes, num_series, rng)[:, 0] * has_season
    pattern = (draw_pattern(num_series, max(season, 2), rng)[:, :season] * sizes[:, None]).T.copy()
    errors, values = np.ascontiguousarray(draw_noise(shape, rng).T), np.empty((shape.length, num_series))
    level = np.zeros(num_series)
    for step in range(shape.length):
        phase, error = step % season, errors[step]
        forecast = level + damping * slope
        values[step] = forecast + pattern[phase] + error
        level = forecast + level_weight * error
        slope = damping * slope + slope_weight * error
        pattern[phase] += season_weight * error
    return values.T


def draw_sarima(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws seasonal ARIMA processes: ARMA noise with a seasonal AR and MA root, integrated zero, one or two times."""
    num_series, season = shape.num_series, shape.season
    noise = colour_noise(draw_innovations(shape._replace(length=shape.length + season), rng), rng)
    if season > 1:
        kind = rng.random(num_series)
        root = np.where(kind < 0.3, 0.0, np.where(kind < 0.65, 1.0, rng.uniform(0.3, 1.0, num_series)))
        moving = -root * rng.beta(2, 1.3, num_series)
        by_step = np.ascontiguousarray(noise.T)
        values = np.empty_like(by_step)
        values[:season] = by_step[:season] * draw_log_uniform(0.5, 5.0, num_series, rng)[:, 0]
        for step in range(season, len(by_step)):
            values[step] = root * values[step - season] + by_step[step] + moving * by_step[step - season]
        noise = values.T
    stationary = noise[:, season:]
    prior = find_season_prior(season)
    drift = prior.growth * np.abs(rng.standard_normal((num_series, 1))) * draw_log_uniform(0.05, 1.0, num_series, rng)
    drift *= draw_signs(prior.upward_share, num_series, rng) * draw_choice(prior.drift_share, num_series, rng)
    once = np.cumsum(stationary + drift, axis=1)
    twice = np.cumsum(np.cumsum(stationary, axis=1) * draw_log_uniform(0.02, 0.3, num_series, rng), axis=1)
    order = rng.choice(3, (num_series, 1), p=(0.3, 0.65, 0.05))
    return np.choose(order, [stationary, once, twice + 0.3 * stationary])


def draw_gaussian_process(
    shape: SeriesShape, rng: np.random.Generator, *, shortest: float = 2.0, longest: float | None = None
) -> Float64[np.ndarray, "series step"]:
    """Draws stationary Gaussian processes of unit deviation by their spectrum, on a circle twice as long (Dietrich 1997).

    Kernels: squared exponential, Matern with nu 1/2, 3/2 and 5/2, and spectra that are a power of the frequency. Length scales
    are log-uniform from `shortest` to `longest`, twice the length by default.
    """
    num_series, circle = shape.num_series, 2 * shape.length
    frequency = np.fft.rfftfreq(circle)
    scale = draw_log_uniform(shortest, max(longest or 2.0 * shape.length, 2 * shortest), num_series, rng)
    kind = rng.integers(0, 3, (num_series, 1))
    smoothness = rng.choice((0.5, 1.5, 2.5), (num_series, 1))
    squared = (np.pi * frequency * scale) ** 2
    spectrum = np.choose(
        kind,
        [
            np.exp(-2 * squared),
            (1 + 2 * squared / smoothness) ** -(smoothness + 0.5),
            np.maximum(frequency, 1 / circle) ** -draw_uniform(1.0, 3.0, num_series, rng),
        ],
    )
    waves = rng.standard_normal(spectrum.shape) + 1j * rng.standard_normal(spectrum.shape)
    return scale_to_unit(np.fft.irfft(waves * np.sqrt(spectrum), circle, axis=1)[:, : shape.length])
