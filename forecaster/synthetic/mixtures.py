"""Mixtures of families: the training data of a network that has to forecast series of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from forecaster.synthetic.sampling import Draw, SeriesShape, draw_kinds, scale_to_unit

_CONVEX_SHARE, _SHIFT_SHARE, _OUTLIER_SHARE = 0.1, 0.08, 0.12
_OFFSET = 4.0  # deviation of the levels, in deviations of the series


class Mixture(NamedTuple):
    """The weights of the families, and the shares of the series that are observed in other ways than as they are."""

    weights: Mapping[str, float]
    multiplicative: float = 0.38
    counts: float = 0.07
    clipped: float = 0.04
    rounded: float = 0.05
    missing: float = 0.08


_COMMON = {
    "components": 38.0,
    "smoothed_level_with_drift": 6.0,
    "smoothed_level": 4.0,
    "random_walk": 3.0,
    "ets": 24.0,
    "sarima": 11.0,
    "gaussian_process": 7.0,
    "growing_sine": 1.0,
    "cycle": 1.0,
    "intermittent": 1.0,
}
_HOURLY = Mixture(_COMMON | {"several_seasons": 25.0})
_MIXTURES = {
    1: Mixture(_COMMON | {"smoothed_level_with_drift": 10.0, "growing_sine": 0.0, "intermittent": 0.0}),
    4: Mixture(_COMMON | {"smoothed_level_with_drift": 8.0, "intermittent": 0.5}),
    12: Mixture(_COMMON | {"calendar": 2.0}),
    7: Mixture(_COMMON | {"several_seasons": 12.0, "calendar": 12.0, "random_walk": 8.0}),
    24: Mixture(_COMMON | {"several_seasons": 25.0, "calendar": 5.0}),
    48: _HOURLY,
    96: _HOURLY,
}


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
    effects = (make_multiplicative, draw_counts, clip_below, _round_and_offset)
    bounds = np.cumsum((mixture.multiplicative, mixture.counts, mixture.clipped, mixture.rounded))
    kinds = np.searchsorted(bounds, rng.random(len(values)), side="right")
    for kind, effect in enumerate((*effects, _offset)):
        values = _apply(effect, kinds == kind, values, rng)
    return values


def _round_and_offset(
    values: Float64[np.ndarray, "series step"], rng: np.random.Generator
) -> Float64[np.ndarray, "series step"]:
    return round_values(_offset(values, rng), rng)


def _offset(values: Float64[np.ndarray, "series step"], rng: np.random.Generator) -> Float64[np.ndarray, "series step"]:
    return values + _OFFSET * rng.standard_normal((len(values), 1))


def _apply(
    effect: Callable[[np.ndarray, np.random.Generator], np.ndarray],
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
    return lambda shape, rng: draw(shape, rng).values
