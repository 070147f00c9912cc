"""Whether a history is like those that a network with a running scale has learned from, by numbers without units.

The inputs of such a network are in range for any history (`forecaster.prediction.scaled_range` does not apply), so its shape is
compared: how its changes are distributed, and how they follow each other. Computed in numpy, for workers without torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.batching import pad_histories
from forecaster.shapes import Float64

SHAPE_RANGE_FACT = "shape_ranges"  # among the facts of a bundle
SHAPE_FEATURES: Mapping[str, str] = {
    "season": "the mean change over a season relative to that from step to step",
    "repeats": "the share of steps that repeat the value before",
    "jump": "the largest change relative to the mean change",
    "range": "the distance of the highest from the lowest value relative to the mean change over a season",
    "memory": "the autocorrelation of the changes from step to step",
    "walk": "the variance of changes over four seasons relative to four times that over one",
    "volatility": "the mean change in the last third relative to that before",
    "missing": "the share of missing steps",
}
"""By name: what each feature measures; ratios are logarithms in the ranges."""

_LOGARITHMIC = ("season", "jump", "range", "walk", "volatility")
_QUANTILES = (0.001, 0.999)  # of the learned series: the range of a feature
_MAX_STEPS = 1000  # of a history, the latest
_MAX_BATCH_VALUES = 1 << 21
_LONG_CHANGE = 4
_TINY = 1e-12

ShapeRanges = Mapping[str, tuple[float, float]]


class UnfamiliarFeature(NamedTuple):
    """A feature outside the learned range: its name, its value, and the bounds."""

    name: str
    value: float
    low: float
    high: float

    def describe(self) -> str:
        """Describes the feature in a clause."""
        value, low, high = (
            float(np.exp(number)) if self.name in _LOGARITHMIC else number
            for number in (self.value, self.low, self.high)
        )
        return f"{SHAPE_FEATURES[self.name]} is {value:.3g} (there {low:.3g} to {high:.3g})"


def compute_shape_features(
    histories: Sequence[Float64[np.ndarray, "_"]], *, season: int
) -> Float64[np.ndarray, "series feature"]:
    """Computes the features of each history, in the order of SHAPE_FEATURES; NaN where a history is too short or constant."""
    order = np.argsort([len(history) for history in histories], kind="stable")
    features = np.empty((len(histories), len(SHAPE_FEATURES)))
    first = 0
    while first < len(order):
        rows, longest = 1, len(histories[order[first]])
        while first + rows < len(order):
            longest = min(_MAX_STEPS, len(histories[order[first + rows]]))
            if longest * (rows + 1) > _MAX_BATCH_VALUES:
                break
            rows += 1
        batch = order[first : first + rows]
        steps = min(_MAX_STEPS, max(len(histories[index]) for index in batch))
        values = pad_histories([histories[index] for index in batch], context=steps, fill_value=np.nan)
        features[batch] = _features_of(values, season)
        first += rows
    return features


def learn_shape_ranges(features: Float64[np.ndarray, "series feature"]) -> dict[str, tuple[float, float]]:
    """Returns the range of each feature over all but a few thousandths of the series."""
    return {
        name: (float(np.nanquantile(values, _QUANTILES[0])), float(np.nanquantile(values, _QUANTILES[1])))
        for name, values in zip(SHAPE_FEATURES, features.T, strict=True)
    }


def read_shape_ranges(facts: Mapping[str, Any]) -> ShapeRanges | None:
    """Returns the ranges recorded in the facts of a model; None if there are none."""
    ranges = facts.get(SHAPE_RANGE_FACT)
    return (
        None
        if ranges is None
        else {name: (low, high) for name, (low, high) in ranges.items() if name in SHAPE_FEATURES}
    )


def find_unfamiliar_features(
    histories: Sequence[Float64[np.ndarray, "_"]], ranges: ShapeRanges, *, season: int
) -> Iterator[list[UnfamiliarFeature]]:
    """Yields for each history the features outside the learned ranges."""
    features = compute_shape_features(histories, season=season)
    bounds = np.array([ranges.get(name, (-np.inf, np.inf)) for name in SHAPE_FEATURES])
    is_outside = (features < bounds[:, 0]) | (features > bounds[:, 1])
    names = list(SHAPE_FEATURES)
    for row, outside in zip(features, is_outside, strict=True):
        yield [UnfamiliarFeature(names[index], row[index], *bounds[index]) for index in np.flatnonzero(outside)]


def _features_of(values: Float64[np.ndarray, "row step"], season: int) -> Float64[np.ndarray, "row feature"]:
    observed = ~np.isnan(values)
    started = np.maximum.accumulate(observed, axis=1)
    change = np.diff(values, axis=1, prepend=np.nan)
    size, seasonal = np.abs(change), _lagged_change(values, season)
    mean_size, mean_seasonal = _mean(size), _mean(np.abs(seasonal))
    is_late = np.arange(values.shape[1]) >= values.shape[1] - started.sum(axis=1, keepdims=True) / 3
    products = change[:, 1:] * change[:, :-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (function.reduce(values, axis=1, where=observed, initial=edge) for function, edge in _EXTREMES)
        columns = (
            np.log(mean_seasonal / mean_size),
            _mean(np.where(np.isnan(change), np.nan, change == 0)),
            np.log(np.fmax.reduce(size, axis=1) / mean_size),
            np.log((high - low) / mean_seasonal),
            _mean(products) / _mean(change**2),
            np.log(_mean(_lagged_change(values, _LONG_CHANGE * season) ** 2) / (_LONG_CHANGE * _mean(seasonal**2))),
            np.log(_mean(np.where(is_late, size, np.nan)) / _mean(np.where(is_late, np.nan, size))),
            1 - observed.sum(axis=1) / np.maximum(started.sum(axis=1), 1),
        )
    features = np.stack(columns, axis=1)
    return np.where(np.isfinite(features), features, np.nan)


_EXTREMES = ((np.minimum, np.inf), (np.maximum, -np.inf))


def _lagged_change(values: Float64[np.ndarray, "row step"], lag: int) -> Float64[np.ndarray, "row lagged"]:
    if lag >= values.shape[1]:
        return np.full((len(values), 1), np.nan)
    return np.asarray(values[:, lag:] - values[:, :-lag])


def _mean(values: Float64[np.ndarray, "row step"]) -> Float64[np.ndarray, "row"]:
    """Returns the mean of the values that are not NaN; NaN where there are fewer than three."""
    observed = ~np.isnan(values)
    count = observed.sum(axis=1)
    total = np.where(observed, values, 0.0).sum(axis=1)
    return np.where(count >= 3, total / np.maximum(count, 1), np.nan)
