"""Seasonal patterns that repeat, evolve, change their amplitude, or have a second and longer season."""

from __future__ import annotations

import numpy as np

from forecaster.shapes import Float64
from forecaster.synthetic.sampling import SeriesShape, draw_choice, draw_log_uniform, draw_uniform, scale_to_unit

_PATTERN_SHARES = (0.45, 0.25, 0.15, 0.15)
_FACTOR_RANGE = (0.2, 1.0)  # how much a day of the week changes level and amplitude


def draw_pattern(num_series: int, season: int, rng: np.random.Generator) -> Float64[np.ndarray, "series phase"]:
    """Draws seasonal patterns of mean 0 and deviation 1: harmonics, free values, a few special phases, or bumps of a day."""
    kinds = rng.choice(4, (num_series, 1), p=_PATTERN_SHARES)
    harmonics = draw_harmonics(num_series, season, rng)
    free = rng.standard_normal((num_series, season))
    if season > 12:  # neighbouring phases of a long season are similar
        reach = season // 12
        free = sum((np.roll(free, shift, axis=1) for shift in range(-reach, reach + 1)), np.zeros_like(free))
    is_special = rng.random((num_series, season)) < max(1.2 / season, 0.08)
    special = is_special * rng.uniform(1, 2, (num_series, season)) + 0.15 * rng.standard_normal((num_series, season))
    patterns = [harmonics, free, special, _draw_bumps(num_series, season, rng)]
    return scale_to_unit(np.choose(kinds, patterns))


def draw_season(
    shape: SeriesShape, rng: np.random.Generator, *, long_season_share: float = 0.7
) -> Float64[np.ndarray, "series step"]:
    """Draws seasons with a deviation of about 1: about half repeat, the others evolve, and the amplitude of a quarter drifts.

    This share of the series has the longer season too, where there is one (`SeriesShape.long_season`).
    """
    values = _repeat_pattern(shape, rng)
    time = shape.steps / shape.length
    low, high = draw_uniform(-0.2, 1.0, shape.num_series, rng), draw_uniform(0.3, 2.5, shape.num_series, rng)
    values = np.where(draw_choice(0.25, shape.num_series, rng), values * (low + (high - low) * time), values)
    if not 0 < shape.long_season < shape.length:
        return values
    has_long_season = draw_choice(long_season_share, shape.num_series, rng)
    return np.where(has_long_season, _add_long_season(values, shape, rng), values)


def _add_long_season(
    values: Float64[np.ndarray, "series step"], shape: SeriesShape, rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Adds the longer season: a yearly pattern to daily series; a level and an amplitude per day of the week to hourly ones."""
    num_series, long_season = shape.num_series, shape.long_season
    if long_season % shape.season:  # the year of days: smooth, at any phase
        pattern = draw_harmonics(num_series, long_season, rng)
        phases = (np.arange(shape.length) + rng.integers(0, long_season, (num_series, 1))) % long_season
        size = draw_log_uniform(0.1, 3.0, num_series, rng)
        return np.asarray(values + size * scale_to_unit(np.take_along_axis(pattern, phases, axis=1)))
    num_cycles = long_season // shape.season
    factors = 0.3 * rng.standard_normal((num_series, num_cycles))
    weekend = -draw_log_uniform(0.3, 2.5, num_series, rng) * draw_choice(0.6, num_series, rng)
    factors[:, -2:] += weekend
    cycles = (np.arange(shape.length) // shape.season + rng.integers(0, num_cycles, (num_series, 1))) % num_cycles
    by_step = np.take_along_axis(factors, cycles, axis=1)
    amplitude, level = draw_uniform(*_FACTOR_RANGE, num_series, rng), draw_uniform(*_FACTOR_RANGE, num_series, rng)
    return values * np.maximum(1 + 0.6 * amplitude * by_step, 0) + level * by_step


def _repeat_pattern(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Repeats patterns over the cycles; those of about half of the series change from cycle to cycle."""
    num_cycles = -(-shape.length // shape.season)
    pattern = draw_pattern(shape.num_series, shape.season, rng)
    change = np.where(draw_choice(0.9, shape.num_series, rng), 0.4, 1.0) * draw_uniform(
        0.05, 1.0, shape.num_series, rng
    )
    evolving = np.flatnonzero(rng.random(shape.num_series) < 0.55)
    cycles = np.repeat(pattern[:, None], num_cycles, axis=1)
    changes = rng.standard_normal((len(evolving), num_cycles - 1, shape.season)) * change[evolving, :, None] ** 2
    cycles[evolving, 1:] += np.cumsum(changes, axis=1)
    return cycles.reshape(shape.num_series, -1)[:, : shape.length]


def draw_harmonics(num_series: int, season: int, rng: np.random.Generator) -> Float64[np.ndarray, "series phase"]:
    """Draws sums of up to six sine waves whose amplitudes decrease with their order."""
    phases = np.arange(season) / season
    decrease = draw_uniform(0.3, 2.0, num_series, rng)
    values = np.zeros((num_series, season))
    for order in range(1, min(6, max(season // 2, 1)) + 1):
        amplitude = rng.standard_normal((num_series, 1)) * float(order) ** -decrease
        is_present = draw_choice(1.0 if order == 1 else 0.7, num_series, rng)
        values += is_present * amplitude * np.sin(2 * np.pi * (order * phases + rng.random((num_series, 1))))
    return values


def _draw_bumps(num_series: int, season: int, rng: np.random.Generator) -> Float64[np.ndarray, "series phase"]:
    """Draws one or two bumps, such as the busy hours of a day."""
    phases = np.arange(season) / season
    width = draw_log_uniform(0.05, 0.3, num_series, rng)
    values = np.zeros((num_series, season))
    for _ in range(2):
        distance = np.abs(phases - rng.random((num_series, 1)))
        distance = np.minimum(distance, 1 - distance)
        values += draw_uniform(0.2, 1.0, num_series, rng) * np.exp(-((distance / width) ** 2))
    return values
