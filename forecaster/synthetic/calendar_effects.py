"""Calendar effects by day: weekdays, the month's course, the year, and fixed and movable holidays, averaged over each step."""

from __future__ import annotations

import numpy as np
import pandas as pd

from forecaster.errors import InputError
from forecaster.frequency.timestamps import build_timestamps, is_integer_frequency, synthetic_start
from forecaster.shapes import Float64, Int
from forecaster.synthetic.sampling import (
    SeriesShape,
    draw_choice,
    draw_log_uniform,
    draw_signs,
    draw_uniform,
)
from forecaster.synthetic.seasons import draw_pattern

_EASTER_OFFSETS = (-2, 1, 39, 50)  # Good Friday, Easter Monday, Ascension Day, Whit Monday
_FIXED_HOLIDAYS = ((1, 1), (5, 1), (7, 4), (10, 3), (12, 25), (12, 26))
_MAX_HOLIDAY_REACH = 3  # days before and after a holiday that it changes


def draw_calendar_effects(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """Draws positive factors of the calendar for every step of the frequency of the shape, around 1.

    Each series has weekdays, a yearly course and its own choice of holidays. Steps longer than a day have the mean of their days,
    so that months with more working days or with Easter differ; shorter steps have the factor of their day times a daily pattern.

    Raises InputError if the season belongs to no calendar frequency.
    """
    if is_integer_frequency(shape.freq):
        raise InputError(
            f"Expected a season that a calendar has (1, 4, 7, 12, 24, 48, 52 or 96 steps); found {shape.season}. Use one of "
            "them, or families without calendar.",
            where="season",
        )
    timestamps = pd.DatetimeIndex(
        build_timestamps(synthetic_start(shape.freq), freq=shape.freq, steps=shape.first_step + shape.length + 1)
    )[shape.first_step :]
    days = pd.date_range(timestamps[0].normalize(), timestamps[-1].normalize(), freq="D")
    factors = draw_day_factors(days, shape.num_series, rng)
    first_day = np.searchsorted(days, timestamps.normalize())
    num_days = np.diff(first_day)
    if (num_days == 0).any():  # several steps per day
        pattern = np.exp(0.5 * draw_pattern(shape.num_series, shape.season, rng))
        return factors[:, first_day[:-1]] * pattern[:, np.arange(shape.length) % shape.season]
    sums = np.add.reduceat(factors[:, : first_day[-1]], first_day[:-1], axis=1)
    return sums / num_days


def draw_day_factors(
    days: pd.DatetimeIndex, num_series: int, rng: np.random.Generator
) -> Float64[np.ndarray, "series day"]:
    """Draws one positive factor per series and day."""
    weekday = 0.2 * rng.standard_normal((num_series, 7))
    weekday[:, 5:] -= draw_log_uniform(0.05, 1.5, num_series, rng) * draw_choice(0.7, num_series, rng)
    month_course = 0.1 * rng.standard_normal((num_series, 1)) * draw_choice(0.3, num_series, rng)
    year_size = draw_log_uniform(0.02, 0.4, num_series, rng)
    year_phase = 2 * np.pi * (np.asarray(days.day_of_year) / 365.25 + draw_uniform(0.0, 1.0, num_series, rng))
    year_course = np.sin(year_phase) + draw_uniform(0.0, 0.6, num_series, rng) * np.sin(
        2 * year_phase + draw_uniform(0.0, 2 * np.pi, num_series, rng)
    )
    week_growth = draw_choice(0.5, num_series, rng) * draw_uniform(-0.4, 1.0, num_series, rng)
    week_size = 1 + week_growth * np.arange(len(days)) / len(days)
    logarithm = week_size * weekday[:, np.asarray(days.day_of_week)] + year_size * year_course
    logarithm += month_course * (np.asarray(days.day) - 15.5) / 15.5
    for index in range(len(_EASTER_OFFSETS) + len(_FIXED_HOLIDAYS)):
        distance = measure_holiday_distance(days, index)
        is_kept = draw_choice(0.5, num_series, rng)
        size = draw_log_uniform(0.1, 1.5, num_series, rng) * draw_signs(0.3, num_series, rng)
        before = draw_uniform(-0.5, 0.5, num_series, rng)  # of the day before, as a share of the holiday
        near = (np.abs(distance) <= _MAX_HOLIDAY_REACH) & (distance != 0)
        logarithm += is_kept * size * ((distance == 0) + before * near / np.maximum(np.abs(distance), 1))
    return np.asarray(np.exp(logarithm))


def measure_holiday_distance(days: pd.DatetimeIndex, index: int) -> Int[np.ndarray, "day"]:
    """Returns the days after the nearest occurrence of a holiday (negative: before it): the movable, then the fixed ones."""
    years = range(int(days[0].year) - 1, int(days[-1].year) + 2)
    if index < len(_EASTER_OFFSETS):
        dates = [
            pd.Timestamp(year, 1, 1) + pd.offsets.Easter() + pd.Timedelta(days=_EASTER_OFFSETS[index]) for year in years
        ]
    else:
        month, day = _FIXED_HOLIDAYS[index - len(_EASTER_OFFSETS)]
        dates = [pd.Timestamp(year, month, day) for year in years]
    occurrences = np.asarray(pd.DatetimeIndex(dates).to_numpy(), dtype="datetime64[D]").astype(np.int64)
    numbers = np.asarray(days.to_numpy(), dtype="datetime64[D]").astype(np.int64)
    after = np.searchsorted(occurrences, numbers, side="right")  # at least one occurrence is before every day
    since, until = numbers - occurrences[after - 1], occurrences[after] - numbers
    return np.where(since <= until, since, -until)
