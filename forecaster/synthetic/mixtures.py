"""Mixtures of families: the training data of a network that has to forecast series of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from forecaster.shapes import Bool, Float64
from forecaster.synthetic.families import PURE_FAMILIES
from forecaster.synthetic.observation import (
    add_outliers,
    clip_below,
    draw_counts,
    make_multiplicative,
    remove_values,
    round_values,
    shift_level,
)
from forecaster.synthetic.sampling import (
    Draw,
    SeriesShape,
    draw_choice,
    draw_kinds,
    draw_log_uniform,
    measure_step_size,
    scale_to_unit,
)
from forecaster.synthetic.season_priors import find_season_prior
from forecaster.synthetic.seasons import draw_season

_CONVEX_SHARE, _SHIFT_SHARE, _OUTLIER_SHARE = 0.1, 0.08, 0.12
_OFFSET = 4.0  # deviation of the levels, in deviations of the series

_Effect = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class Mixture(NamedTuple):
    """The weights of the families, and the shares of the series that are observed in other ways than as they are.

    `smallest_growth` is the smallest deviation of the logarithms of multiplicative series.
    """

    weights: Mapping[str, float]
    multiplicative: float = 0.38
    smallest_growth: float = 0.03
    counts: float = 0.07
    clipped: float = 0.04
    rounded: float = 0.05
    missing: float = 0.08


_COMMON = {
    "components": 36.0,
    "random_walk_with_drift": 9.0,
    "random_walk": 5.0,
    "smoothed_level_with_drift": 9.0,
    "smoothed_level": 4.0,
    "ets": 24.0,
    "sarima": 11.0,
    "gaussian_process": 6.0,
    "growing_sine": 1.0,
    "cycle": 1.0,
    "intermittent": 1.0,
}
_HOURLY_WEIGHTS = _COMMON | {
    "components": 30.0,
    "ets": 15.0,
    "sarima": 6.0,
    "several_seasons": 15.0,
    "weekly_profiles": 70.0,
}
_HOURLY = Mixture(_HOURLY_WEIGHTS, multiplicative=0.3)
_MIXTURES = {
    1: Mixture(
        _COMMON
        | {"components": 30.0, "random_walk_with_drift": 24.0, "random_walk": 14.0, "smoothed_level_with_drift": 14.0}
        | {"ets": 18.0, "sarima": 9.0, "gaussian_process": 4.0, "growing_sine": 0.0, "intermittent": 0.0},
        multiplicative=0.5,
        smallest_growth=0.12,
    ),
    4: Mixture(
        _COMMON | {"random_walk_with_drift": 12.0, "random_walk": 8.0, "intermittent": 0.5}, smallest_growth=0.06
    ),
    12: Mixture(_COMMON | {"calendar": 2.0}),
    7: Mixture(_COMMON | {"several_seasons": 20.0, "calendar": 30.0, "random_walk": 8.0}),
    24: Mixture(_HOURLY_WEIGHTS | {"calendar": 3.0}, multiplicative=0.3),
    48: _HOURLY,
    96: _HOURLY,
}
_LEVELS = ("random_walk_with_drift", "random_walk", "smoothed_level_with_drift", "smoothed_level")
_SEASONAL_LEVEL_SHARE = 0.65  # of the levels that have a season, times the share of the prior


def find_mixture(season: int) -> Mixture:
    """Returns the mixture for series of a season: drifts, longer seasons and calendars are as frequent as they are there."""
    return _MIXTURES.get(season, Mixture(_COMMON))


def draw_mixture(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    """All families that are usual at the season, combined, and observed in various ways: the training data of a network."""
    mixture = find_mixture(shape.season)
    weights = {name: weight for name, weight in mixture.weights.items() if weight > 0}
    values = draw_kinds([_draw_values_of(name) for name in weights], list(weights.values()), shape, rng)
    values = _combine(values, rng)
    values = _apply(shift_level, rng.random(len(values)) < _SHIFT_SHARE, values, rng)
    values = _apply(add_outliers, rng.random(len(values)) < _OUTLIER_SHARE, values, rng)
    values = _observe(values, mixture, rng)
    return _apply(remove_values, rng.random(len(values)) < mixture.missing, values, rng)


def _combine(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Returns the series at a deviation of 1; some become convex combinations with another series (Zhang et al. 2018)."""
    unit = scale_to_unit(values)
    weight = rng.beta(1.5, 1.5, (len(unit), 1))
    partner = rng.integers(0, len(unit), len(unit))
    return np.where(rng.random((len(unit), 1)) < _CONVEX_SHARE, weight * unit + (1 - weight) * unit[partner], unit)


def _observe(
    values: Float64[np.ndarray, "series step"], mixture: Mixture, rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Observes each series in one of the ways of a mixture."""
    grow = partial(make_multiplicative, smallest=mixture.smallest_growth)
    effects: list[_Effect] = [grow, draw_counts, clip_below, _round_and_offset, _offset]
    bounds = np.cumsum((mixture.multiplicative, mixture.counts, mixture.clipped, mixture.rounded))
    kinds = np.searchsorted(bounds, rng.random(len(values)), side="right")
    for kind, effect in enumerate(effects):
        values = _apply(effect, kinds == kind, values, rng)
    return values


def _round_and_offset(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    return round_values(_offset(values, rng), rng)


def _offset(values: Float64[np.ndarray, "series step"], rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    return values + _OFFSET * rng.standard_normal((len(values), 1))


def _apply(
    effect: _Effect,
    is_chosen: Bool[np.ndarray, "series"],
    values: Float64[np.ndarray, "series step"],
    rng: np.random.Generator,
) -> Float64[np.ndarray, "series step"]:
    """Returns the series with an effect on the chosen ones."""
    rows = np.flatnonzero(is_chosen)
    if not len(rows):
        return values
    changed = values.copy()
    changed[rows] = effect(values[rows], rng)
    return changed


def _draw_values_of(name: str) -> Draw:
    draw = PURE_FAMILIES[name].draw

    def draw_values(shape: SeriesShape, rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
        values = draw(shape, rng).values
        return _add_season(values, shape, rng) if name in _LEVELS and shape.season > 1 else values

    return draw_values


def _add_season(
    values: Float64[np.ndarray, "series step"], shape: SeriesShape, rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    """Adds a season to most of the series, in units of half their changes from step to step."""
    prior = find_season_prior(shape.season)
    size = 0.5 * measure_step_size(values) * draw_log_uniform(*prior.season_sizes, len(values), rng)
    has_season = draw_choice(_SEASONAL_LEVEL_SHARE * prior.seasonal_share, len(values), rng)
    return np.asarray(values + has_season * size * draw_season(shape, rng))
