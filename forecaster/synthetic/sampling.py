"""The shape of a batch of generated series, and the random draws that all families share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from forecaster.shapes import Bool, Float64

MIN_LENGTH = 2  # steps of a series
_LONG_SEASONS = {7: 365, 24: 168, 48: 336, 96: 672}
_FREQUENCIES = {1: "YS", 4: "QS", 12: "MS", 52: "W-MON", 7: "D", 24: "h", 48: "30min", 96: "15min"}


class SeriesShape(NamedTuple):
    """The size of a batch, and its place in the calendar.

    Attributes:
        num_series: Number of series.
        length: Steps per series.
        season: Season in steps; 1 for none.
        second_season: The longer season in steps; 0 for none, None for the usual one.
        first_step: Steps from the usual start of generated series to the first one, which decides its date.
    """

    num_series: int
    length: int
    season: int
    second_season: int | None = None
    first_step: int = 0

    @property
    def long_season(self) -> int:
        """The second, longer season in steps, such as the week of hourly series; 0 where there is none."""
        return find_long_season(self.season) if self.second_season is None else self.second_season

    @property
    def freq(self) -> str:
        """The frequency that usually has this season; integer steps where there is none."""
        return _FREQUENCIES.get(self.season, "1")

    @property
    def steps(self) -> Float64[np.ndarray, "length"]:
        """The index of every step."""
        return np.arange(self.length, dtype=np.float64)


def find_long_season(season: int) -> int:
    """Returns the longer season that usually comes with a season, in steps; 0 where there is none."""
    return _LONG_SEASONS.get(season, 0)


Draw = Callable[[SeriesShape, np.random.Generator], np.ndarray]
"""Draws the values of a batch, "series step"."""


def draw_log_uniform(
    low: float, high: float, num_series: int, rng: np.random.Generator
) -> Float64[np.ndarray, "series 1"]:
    """Draws one positive number per series, whose logarithm is uniform between those of the bounds."""
    return np.exp(rng.uniform(np.log(low), np.log(high), (num_series, 1)))


def draw_uniform(low: float, high: float, num_series: int, rng: np.random.Generator) -> Float64[np.ndarray, "series 1"]:
    """Draws one number per series, uniform between the bounds."""
    return rng.uniform(low, high, (num_series, 1))


def draw_choice(share: float, num_series: int, rng: np.random.Generator) -> Bool[np.ndarray, "series 1"]:
    """Draws for each series whether it has a property that this share of the series has."""
    return rng.random((num_series, 1)) < share


def draw_signs(positive_share: float, num_series: int, rng: np.random.Generator) -> Float64[np.ndarray, "series 1"]:
    """Draws 1 or -1 per series."""
    return np.where(draw_choice(positive_share, num_series, rng), 1.0, -1.0)


def draw_kinds(
    draws: Sequence[Draw], weights: Sequence[float], shape: SeriesShape, rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Draws each series by one of several functions, chosen with these weights."""
    shares = np.asarray(weights, dtype=np.float64)
    kinds = rng.choice(len(draws), shape.num_series, p=shares / shares.sum())
    values = np.empty((shape.num_series, shape.length))
    for kind, draw in enumerate(draws):
        rows = np.flatnonzero(kinds == kind)
        if len(rows):
            values[rows] = draw(shape._replace(num_series=len(rows)), rng)
    return values


def scale_to_unit(values: Float64[np.ndarray, "series step"]) -> Float64[np.ndarray, "series step"]:
    """Returns the series with a mean of 0 and a standard deviation of 1; constant series become 0."""
    centred = values - values.mean(axis=1, keepdims=True)
    deviation = centred.std(axis=1, keepdims=True)
    return np.asarray(centred / np.where(deviation > 0, deviation, 1.0))


def measure_step_size(values: Float64[np.ndarray, "series step"]) -> Float64[np.ndarray, "series 1"]:
    """Returns the mean absolute change from one step to the next, per series."""
    if values.shape[1] < 2:
        return np.ones((len(values), 1))
    return np.asarray(np.abs(np.diff(values, axis=1)).mean(axis=1, keepdims=True))
