"""Batches of the mixture for pretraining: which seasons and lengths they have, and their values. Determined by the generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from forecaster.errors import InputError
from forecaster.shapes import Float32
from forecaster.synthetic.mixtures import draw_mixture
from forecaster.synthetic.sampling import MIN_LENGTH, SeriesShape, find_long_season


class BatchShape(NamedTuple):
    """The season of a batch (1 for none) and the length of its histories, both in steps."""

    season: int
    length: int


class LengthRange(NamedTuple):
    """The shortest and the longest history of a season, in steps."""

    shortest: int
    longest: int


SEASON_WEIGHTS: Mapping[int, float] = {
    1: 9.0,
    4: 11.0,
    12: 24.0,
    24: 38.0,
    7: 10.0,
    52: 3.0,
    48: 2.0,
    **dict.fromkeys((2, 3, 5, 6, 8, 10, 13, 18, 30, 96), 0.3),
}
"""How frequent the seasons are among the batches, in percent."""
_LENGTHS = {
    1: LengthRange(14, 60),
    4: LengthRange(16, 100),
    12: LengthRange(40, 180),
    24: LengthRange(120, 700),
    7: LengthRange(50, 800),
    52: LengthRange(104, 400),
    48: LengthRange(144, 800),
    96: LengthRange(200, 800),
}
_STEPS_PER_CALENDAR_CYCLE = {4: 4, 12: 12, 52: 52, 7: 1461, 24: 8766, 48: 17532}
"""The steps within which the first date of a batch is drawn, so that holidays fall on any step."""


def draw_shape(rng: np.random.Generator) -> BatchShape:
    """Draws the season of a batch with `SEASON_WEIGHTS`, and a length that is uniform in the range of the season."""
    seasons, weights = list(SEASON_WEIGHTS), np.array(list(SEASON_WEIGHTS.values()))
    season = int(rng.choice(seasons, p=weights / weights.sum()))
    shortest, longest = find_length_range(season)
    return BatchShape(season, int(rng.integers(shortest, longest + 1)))


def find_length_range(season: int) -> LengthRange:
    """Returns the lengths of a season's histories; those of seasons without calendar are 3 to 13 seasons."""
    return _LENGTHS.get(season, LengthRange(max(16, 3 * season), max(60, 13 * season)))


def draw_batch(
    rng: np.random.Generator, *, season: int, second_season: int | None = None, length: int, count: int
) -> Float32[np.ndarray, "series step"]:
    """Draws series of the mixture of a season. The same state of the generator and the same arguments give the same series.

    Args:
        season: Season in steps; 1 for none.
        second_season: The longer season in steps; 0 for none, None for the usual one (`find_long_season`).
        length: Steps per series, at least 2: history and horizon together.
        count: Number of series; they have the same dates.
    Returns:
        Values without units, NaN where a value is missing.
    Raises:
        InputError: A number is too small.
    """
    second_season = find_long_season(season) if second_season is None else second_season
    minima = {"season": 1, "second_season": 0, "length": MIN_LENGTH, "count": 1}
    numbers = {"season": season, "second_season": second_season, "length": length, "count": count}
    for name, number in numbers.items():
        if number < minima[name]:
            raise InputError(
                f"Expected `{name}` of at least {minima[name]}; found {number}. Use a larger number.", where=name
            )
    first_step = int(rng.integers(0, _STEPS_PER_CALENDAR_CYCLE.get(season, 1)))
    shape = SeriesShape(count, length, season, second_season, first_step)
    return draw_mixture(shape, rng).astype(np.float32)
