"""Activity by the hour: days of the week whose profiles differ in shape, with a level and an amplitude that wander slowly."""

from __future__ import annotations

import numpy as np

from forecaster.shapes import Bool, Float64
from forecaster.synthetic.noise import draw_innovations, draw_noise
from forecaster.synthetic.sampling import SeriesShape, draw_choice, draw_log_uniform, draw_signs, draw_uniform
from forecaster.synthetic.seasons import draw_pattern

_REGULAR_SHARE = 0.45  # of the series, whose noise and changes are small beside their profile


def draw_weekly_profiles(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws a profile per day of the week, repeated with a wandering amplitude, on a level that grows and wanders.

    The deviation of the profiles is 1. Without a longer season all days have the same profile; without a season there is none.
    """
    num_series, season = shape.num_series, shape.season
    has_week = season > 1 and shape.long_season > season and shape.long_season % season == 0
    num_days = shape.long_season // season if has_week else 1
    is_regular = draw_choice(_REGULAR_SHARE, num_series, rng)
    profiles = _draw_profiles(num_series, season, num_days, rng)
    num_cycles = -(-shape.length // season) + 1
    days = (np.arange(num_cycles) + rng.integers(0, num_days, (num_series, 1))) % num_days
    change = np.where(is_regular, 0.1, 1.0) * draw_log_uniform(0.002, 0.15, num_series, rng)
    amplitude = np.exp(np.clip(np.cumsum(change * rng.standard_normal(days.shape), axis=1), -2, 2))
    by_cycle = np.take_along_axis(profiles, days[:, :, None], axis=1) * amplitude[:, :, None]
    steps = np.arange(shape.length) + rng.integers(0, season, (num_series, 1))
    activity = np.take_along_axis(by_cycle.reshape(num_series, -1), steps, axis=1)
    noise = np.where(is_regular, 0.05, 1.0) * draw_log_uniform(0.01, 0.5, num_series, rng) * draw_noise(shape, rng)
    return np.asarray(activity + _draw_level(shape, rng, is_regular=is_regular) + noise)


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
    has_weekend = draw_choice(0.6, num_series, rng) & (num_days > 1)
    first_rest = np.where(draw_choice(0.2, num_series, rng), num_days - 1, num_days - 2)
    is_rest = (np.arange(num_days) >= first_rest) & has_weekend
    profiles = np.where(is_rest[:, :, None], resting[:, None], working[:, None])[:, :, :season]
    day_size = draw_log_uniform(0.01, 0.3, num_series, rng) * has_weekend
    profiles = profiles + (day_size * rng.standard_normal((num_series, num_days)))[:, :, None]
    return np.asarray(profiles * (season > 1))


def _draw_level(
    shape: SeriesShape, rng: np.random.Generator, *, is_regular: Bool[np.ndarray, "series 1"]
) -> Float64[np.ndarray, "series step"]:
    """Draws a level that grows along a line, wanders, or does both; half of the walks are means of up to two seasons."""
    num_series, season = shape.num_series, max(shape.season, 2)
    growth = draw_choice(0.6, num_series, rng) * draw_log_uniform(0.01, 0.6, num_series, rng)
    line = growth * draw_signs(0.75, num_series, rng) * shape.steps / season
    longest = 2 * season
    walk = np.cumsum(draw_innovations(shape._replace(length=shape.length + longest), rng), axis=1)
    sums = np.cumsum(walk, axis=1)
    reach = np.where(draw_choice(0.5, num_series, rng), rng.integers(1, longest + 1, (num_series, 1)), 1)
    steps = np.arange(longest, shape.length + longest)
    smooth = (sums[:, longest:] - np.take_along_axis(sums, steps - reach, axis=1)) / reach
    per_season = draw_choice(0.7, num_series, rng) * draw_log_uniform(0.02, 0.6, num_series, rng) / np.sqrt(season)
    return np.asarray(np.where(is_regular, 0.2, 1.0) * (line + per_season * smooth))
