"""Activity by the hour: days of the week whose profiles differ in shape, with a level and an amplitude that wander slowly."""

from __future__ import annotations

import numpy as np

from forecaster.shapes import Float64
from forecaster.synthetic.noise import draw_innovations, draw_noise
from forecaster.synthetic.sampling import (
    SeriesShape,
    draw_choice,
    draw_log_uniform,
    draw_signs,
    draw_uniform,
)
from forecaster.synthetic.seasons import draw_pattern


def draw_weekly_profiles(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws a profile per day of the week, repeated with a wandering amplitude, on a level that grows and wanders.

    The deviation of the profiles is 1. Without a longer season all days have the same profile; without a season there is none.
    """
    season = shape.season
    days_per_week = shape.long_season // season if season > 1 and shape.long_season % season == 0 else 0
    num_days = -(-shape.length // season) + 1
    profiles = _draw_profiles(shape.num_series, season, max(days_per_week, 1), rng)
    first_day = rng.integers(0, max(days_per_week, 1), (shape.num_series, 1))
    days = (np.arange(num_days) + first_day) % max(days_per_week, 1)
    amplitude_steps = draw_log_uniform(0.002, 0.15, shape.num_series, rng) * rng.standard_normal(
        (shape.num_series, num_days)
    )
    amplitude = np.exp(np.clip(np.cumsum(amplitude_steps, axis=1), -2, 2))
    by_day = np.take_along_axis(profiles, days[:, :, None], axis=1) * amplitude[:, :, None]
    start = rng.integers(0, season, (shape.num_series, 1))
    activity = np.take_along_axis(by_day.reshape(shape.num_series, -1), np.arange(shape.length) + start, axis=1)
    return np.asarray(
        activity
        + _draw_level(shape, rng)
        + draw_log_uniform(0.005, 0.5, shape.num_series, rng) * draw_noise(shape, rng)
    )


def _draw_profiles(
    num_series: int, season: int, num_days: int, rng: np.random.Generator
) -> Float64[np.ndarray, "series day phase"]:
    """Draws the profiles of a week: working days are similar, one or two days of rest differ in level, amplitude and shape."""
    working, resting = draw_pattern(num_series, max(season, 2), rng), draw_pattern(num_series, max(season, 2), rng)
    own_share = draw_choice(0.6, num_series, rng) * draw_uniform(0.0, 1.0, num_series, rng)
    amplitude = draw_uniform(0.3, 1.1, num_series, rng)
    level = draw_choice(0.7, num_series, rng) * draw_log_uniform(0.1, 2.0, num_series, rng)
    level *= draw_signs(0.15, num_series, rng)  # mostly lower
    resting = amplitude * ((1 - own_share) * working + own_share * resting) + level
    has_weekend = draw_choice(0.65, num_series, rng)
    first_rest = np.where(draw_choice(0.2, num_series, rng), num_days - 1, num_days - 2)
    is_rest = (np.arange(num_days) >= first_rest) & has_weekend & (num_days > 1)
    profiles = np.where(is_rest[:, :, None], resting[:, None], working[:, None])[:, :, :season]
    day_size = draw_log_uniform(0.01, 0.3, num_series, rng) * (num_days > 1)
    profiles = profiles + (day_size * rng.standard_normal((num_series, num_days)))[:, :, None]
    return profiles * (season > 1)


def _draw_level(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws a level that grows along a line, wanders, or does both."""
    num_series, cycles = shape.num_series, shape.length / max(shape.season, 2)
    growth = draw_choice(0.6, num_series, rng) * draw_log_uniform(0.01, 1.0, num_series, rng)
    line = growth * draw_signs(0.75, num_series, rng) * cycles * shape.steps / shape.length
    per_cycle = draw_choice(0.6, num_series, rng) * draw_log_uniform(0.02, 0.6, num_series, rng)
    walk = per_cycle / np.sqrt(max(shape.season, 2)) * np.cumsum(draw_innovations(shape, rng), axis=1)
    return np.asarray(line + walk)
