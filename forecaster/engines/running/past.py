"""What a network with a running scale sees of the past, in numpy: `forecaster.model.running`, once for each segment.

Features that repeat with the season are computed once; the engine sums the weights of the repeated ones instead.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from forecaster.model.running_sizes import (
    INDEX_DECAY,
    LONG_CHANGE,
    LONG_DECAY,
    MAX_FEATURE,
    MAX_UNITS,
    NUM_FORECASTS,
    NUM_SCALARS,
    TINY,
    TINY_SQUARE,
)
from forecaster.shapes import Bool, Float, Float64, Int
from forecaster.spec import LONG_CYCLES, RUNNING_CYCLES, RUNNING_LAGS, running_lookback

_MAX_WINDOW_VALUES = 1 << 21  # of all windows that are viewed at once


class PastSizes(NamedTuple):
    """Sizes of what a network reads of the past.

    Attributes:
        season: Steps of a season.
        long_season: Steps of a second, longer season; None for the season before the last.
        segment: Steps between two views of the past.
        block: Steps of the simple forecasts.
        lookback: Number of latest values that a view reads.
    """

    season: int
    long_season: int | None
    segment: int
    block: int
    lookback: int

    @property
    def num_phases(self) -> int:
        """Distinct values of a forecast that repeats the season."""
        return min(self.block, self.season)

    @property
    def num_older(self) -> int:
        """Distinct values of the forecast that repeats an older season."""
        return self.num_phases if self.long_season is None else self.block

    @property
    def num_features(self) -> int:
        """Distinct features of a view."""
        return RUNNING_LAGS + 2 * self.num_phases + self.num_older + NUM_SCALARS

    @property
    def feature_sources(self) -> Int[np.ndarray, "feature"]:
        """The distinct feature that each input of the network equals."""
        ahead = np.arange(self.block)
        older = ahead % self.num_older
        starts = RUNNING_LAGS + self.num_phases * np.arange(3)
        repeated = [starts[0] + ahead % self.num_phases, starts[1] + ahead % self.num_phases, starts[2] + older]
        scalars = starts[2] + self.num_older + np.arange(NUM_SCALARS)
        return np.concatenate([np.arange(RUNNING_LAGS), *repeated, scalars])


class Past(NamedTuple):
    """What a network sees of the past of each row.

    Attributes:
        features: Distinct features after each segment; zeros before the first observed one.
        scales: Level and unit after each segment, in scaled units.
        forecasts: Simple forecasts after the last segment, relative to its level and in its unit.
        statistics: Sums over all steps up to the last one.
    """

    features: Float[np.ndarray, "row segment feature"]
    scales: Float[np.ndarray, "row segment 2"]
    forecasts: Float[np.ndarray, "row forecast block"]
    statistics: Float64[np.ndarray, "row statistic"]


def read_past(
    filled_values: Float[np.ndarray, "row back_and_step"],
    started: Bool[np.ndarray, "row step"],
    missing: Bool[np.ndarray, "row step"],
    statistics: Float64[np.ndarray, "row statistic"],
    sizes: PastSizes,
) -> Past:
    """Views the past after each segment, given the statistics before the first step.

    Args:
        filled_values: The latest values before the first step, followed by those of the steps, scaled, gaps filled.
        started: Whether the row has been observed by each step.
        missing: Whether the step was not observed.
        statistics: Sums over the steps before; zeros before the first step of a row.
        sizes: Sizes of the views.
    """
    num_segments = started.shape[1] // sizes.segment
    by_segment = update_statistics(statistics, filled_values, started, missing, sizes)
    features = np.zeros((len(started), num_segments, sizes.num_features), dtype=np.float32)
    scales = np.zeros((len(started), num_segments, 2), dtype=np.float32)
    scales[..., 1] = 1.0
    forecasts = np.zeros((len(started), NUM_FORECASTS, sizes.block), dtype=np.float32)
    rows, segments = np.nonzero(started[:, sizes.segment - 1 :: sizes.segment])
    levels = _season_means(filled_values, sizes.season)
    at_once = max(1, _MAX_WINDOW_VALUES // sizes.lookback)
    for first in range(0, len(rows), at_once):
        row, segment = rows[first : first + at_once], segments[first : first + at_once]
        ends = sizes.lookback + sizes.segment * (segment + 1)
        view = _View(filled_values, levels, by_segment[row, segment], row, ends, sizes)
        features[row, segment], scales[row, segment] = view.features(), np.stack([view.level, view.unit], axis=1)
        is_last = segment == num_segments - 1
        forecasts[row[is_last]] = view.forecasts()[is_last] if is_last.any() else 0.0
    return Past(features, scales, forecasts, by_segment[:, -1])


def update_statistics(
    before: Float64[np.ndarray, "row statistic"],
    filled_values: Float[np.ndarray, "row back_and_step"],
    started: Bool[np.ndarray, "row step"],
    missing: Bool[np.ndarray, "row step"],
    sizes: PastSizes,
) -> Float64[np.ndarray, "row segment statistic"]:
    """Returns the statistics after every segment: see `forecaster.model.running.update_statistics`."""
    season, values = sizes.season, filled_values.astype(np.float64)
    first, last = values.shape[1] - started.shape[1], values.shape[1]
    steps = before[:, :1] + np.cumsum(started, axis=1)
    current = values[:, first:]

    def change(lag: int, *, ago: int = 0) -> Float64[np.ndarray, "row step"]:
        difference = values[:, first - ago : last - ago] - values[:, first - ago - lag : last - ago - lag]
        return np.asarray(difference * (started & (steps > lag + ago)))

    step_change, seasonal_change = change(1), change(season)
    increments = (
        started,
        np.abs(step_change),
        np.abs(seasonal_change),
        current * (started & (steps <= season)),
        started & missing,
        step_change**2,
        step_change * change(1, ago=1),
        seasonal_change**2,
        seasonal_change * change(season, ago=1),
        change(LONG_CHANGE * season) ** 2,
    )
    ends = slice(sizes.segment - 1, None, sizes.segment)
    after = np.empty((*steps[:, ends].shape, before.shape[1]))
    columns = [column for column in range(before.shape[1]) if column not in (4, 5)]
    for column, increment in zip(columns, increments, strict=True):
        after[..., column] = before[:, column, None] + np.cumsum(increment, axis=1, dtype=np.float64)[:, ends]
    observed = np.where(started, current, 0.0)
    after[..., 4] = np.minimum(before[:, 4, None], np.minimum.accumulate(observed, axis=1)[:, ends])
    after[..., 5] = np.maximum(before[:, 5, None], np.maximum.accumulate(observed, axis=1)[:, ends])
    return after


class _View:
    """Views of the past of some rows at some steps: `forecaster.model.running.view_past`, by the same names."""

    def __init__(
        self,
        filled_values: Float[np.ndarray, "row back_and_step"],
        levels: Float[np.ndarray, "row back_and_step"],
        statistics: Float64[np.ndarray, "view statistic"],
        rows: Int[np.ndarray, "view"],
        ends: Int[np.ndarray, "view"],
        sizes: PastSizes,
    ) -> None:
        """Views `filled_values[rows, :ends]`."""
        self._sizes, season = sizes, sizes.season
        self._values, self._levels, self._rows, self._ends = filled_values, levels, rows, ends
        self._sums = [np.ascontiguousarray(column) for column in statistics.astype(np.float32).T]
        steps, change, seasonal_change = self._sums[:3]
        self._steps, self._mean_change = steps, change / np.maximum(steps - 1, 1)
        unit = (seasonal_change + self._mean_change) / (np.maximum(steps - season, 0) + 1) + 0.02 * self._mean_change
        self.unit = np.where(unit > 0, unit, np.float32(1.0))
        # Values before the first step are 0, so the sum of a season is that of the steps read.
        self.level = levels[rows, ends - 1] * season / np.clip(steps, 1, season)
        recent = running_lookback(season)
        self._window = sliding_window_view(filled_values, recent, axis=1)[rows, ends - recent]
        index = self._seasonal_index()  # in the order of the next season
        lags = self._window[:, : -RUNNING_LAGS - 1 : -1]
        is_read = np.arange(RUNNING_LAGS) < steps[:, None]
        self._lags = self._to_units(lags - index[:, (-1 - np.arange(RUNNING_LAGS)) % season]) * is_read
        self._set_seasons(index)
        spans = (season, 3 * season if season > 1 else 4)
        self._slopes = [self._slope(span) / self.unit for span in spans]
        self._first_level = self._sums[3] / np.clip(steps, 1, season)
        whole = np.where(steps > season, (self.level - self._first_level) / np.maximum(steps - season, 1), 0.0)
        self._slopes.append(whole / self.unit)

    def features(self) -> Float[np.ndarray, "view feature"]:
        """Returns the distinct features."""
        older_index = self._index[:, np.arange(self._sizes.num_older) % self._sizes.num_phases]
        compressed = np.concatenate(
            [self._lags, self._last_season - self._index, self._index, self._older - older_index], axis=1
        )
        compressed /= np.sqrt(1 + np.abs(compressed))
        return np.concatenate([compressed, self._scalars()], axis=1, dtype=np.float32)

    def forecasts(self) -> Float[np.ndarray, "view forecast block"]:
        """Returns the simple forecasts, relative to the level and in units."""
        ahead = np.arange(self._sizes.block)
        distance = ahead + 1 + np.float32((self._sizes.season - 1) / 2)
        forecasts = np.empty((len(self._rows), NUM_FORECASTS, len(ahead)), dtype=np.float32)
        phases = ahead % self._sizes.num_phases
        forecasts[:, 0], forecasts[:, 1] = self._last_season[:, phases], self._index[:, phases]
        forecasts[:, 2] = self._older[:, ahead % self._sizes.num_older]
        forecasts[:, 3], forecasts[:, 4] = self._lags[:, :1], self._lags[:, :3].mean(axis=1, keepdims=True)
        for number, slope in enumerate(self._slopes, start=5):
            forecasts[:, number] = np.clip(slope[:, None] * distance, -MAX_UNITS, MAX_UNITS)
        return forecasts

    def _to_units(self, values: Float[np.ndarray, "view _"]) -> Float[np.ndarray, "view _"]:
        return np.asarray(np.clip((values - self.level[:, None]) / self.unit[:, None], -MAX_UNITS, MAX_UNITS))

    def _seasonal_index(self) -> Float[np.ndarray, "view phase"]:
        """Returns the index of each step of the next season."""
        season, width = self._sizes.season, RUNNING_CYCLES * self._sizes.season
        if season == 1:
            return np.zeros((len(self._rows), 1), dtype=np.float32)
        levels = sliding_window_view(self._levels, width, axis=1)[self._rows, self._ends - width]
        age = np.arange(width)[::-1]
        weight = (INDEX_DECAY ** (age // season)).astype(np.float32) * (age + season <= self._steps[:, None])
        deviation = (self._window[:, -width:] - levels) * weight
        sums, weights = (part.reshape(-1, RUNNING_CYCLES, season).sum(axis=1) for part in (deviation, weight))
        index = sums / np.maximum(weights, np.float32(TINY))
        return np.asarray(index - index.mean(axis=1, keepdims=True))

    def _set_seasons(self, index: Float[np.ndarray, "view phase"]) -> None:
        """Sets the distinct values of the three forecasts that repeat a season."""
        season, long_season, phases = self._sizes.season, self._sizes.long_season, self._sizes.num_phases
        if season == 1:
            zeros = np.zeros((len(self._rows), 1), dtype=np.float32)
            self._has_older, self._last_season, self._index = zeros[:, 0], zeros, zeros
            self._older = np.zeros((len(self._rows), self._sizes.num_older), dtype=np.float32)
            return
        ahead = np.arange(phases)
        is_read = season - 1 - ahead < self._steps[:, None]
        self._last_season = self._to_units(self._window[:, -season + ahead]) * is_read
        self._index = np.clip(index[:, ahead] / self.unit[:, None], -MAX_UNITS, MAX_UNITS)
        if long_season is None:
            has_older = 2 * season <= self._steps
            older = self._window[:, -2 * season + ahead] - self._levels[self._rows, self._ends - 1 - season][:, None]
        else:
            has_older, older = self._long_seasons(long_season)
        self._older = np.clip(older / self.unit[:, None], -MAX_UNITS, MAX_UNITS) * has_older[:, None]
        self._has_older = has_older.astype(np.float32)

    def _long_seasons(self, long_season: int) -> tuple[Bool[np.ndarray, "view"], Float[np.ndarray, "view block"]]:
        """Returns whether a long season was read, and the mean of the long seasons before the block; late ones weigh more."""
        ahead = np.arange(self._sizes.block) % long_season
        total, weights = np.zeros((len(self._rows), len(ahead)), dtype=np.float32), np.zeros_like(self.unit)
        for cycle in range(LONG_CYCLES):
            age = (cycle + 1) * long_season
            weight = np.float32(LONG_DECAY**cycle) * (age + self._sizes.season <= self._steps)
            level = self._levels[self._rows, self._ends - 1 - age]
            values = self._values[self._rows[:, None], self._ends[:, None] - age + ahead]
            total += weight[:, None] * (values - level[:, None])
            weights += weight
        return weights > 0, total / np.maximum(weights, np.float32(TINY))[:, None]

    def _slope(self, span: int) -> Float[np.ndarray, "view"]:
        distance = np.clip(self._steps - self._sizes.season, 0, span)
        earlier = self._levels[self._rows, self._ends - 1 - distance.astype(np.int64)]
        latest = self._levels[self._rows, self._ends - 1]
        return np.asarray((latest - earlier) / np.maximum(distance, 1))

    def _scalars(self) -> Float[np.ndarray, "view scalar"]:
        season, steps, unit = self._sizes.season, self._steps, self.unit
        changes = np.diff(self._window, axis=1)[:, ::-1]  # the latest first
        changes = changes * (np.arange(1, self._window.shape[1]) < steps[:, None])
        sizes, few = np.abs(changes), max(season, 6)
        unexplained = self._lags[:, :-1] - self._lags[:, 1:]
        unexplained = unexplained * (np.arange(1, RUNNING_LAGS) < steps[:, None])
        num_changes = np.maximum(steps - 1, 1)
        one = np.float32(1.0)
        ratios = [
            _log_ratio(self._mean_change, unit),
            _log_ratio(sizes[:, :few].sum(axis=1) / np.minimum(num_changes, few), self._mean_change),
            _log_ratio(sizes.sum(axis=1) / np.minimum(num_changes, self._window.shape[1] - 1), self._mean_change),
            _log_ratio(np.abs(unexplained).sum(axis=1) / np.minimum(num_changes, RUNNING_LAGS - 1), one),
        ]
        repeats = self._index[:, np.arange(self._sizes.block) % self._sizes.num_phases]
        scalars = [
            np.log(np.maximum(steps, 1)) - 3,
            np.log(steps / season + np.float32(0.1)) - 1,
            np.full_like(unit, math.log(season) - 1.5),
            np.full_like(unit, float(season == 1)),
            *ratios,
            _autocorrelation(changes),
            _autocorrelation(unexplained),
            np.arcsinh((self.level - self._sums[4]) / unit),
            np.arcsinh((self._sums[5] - self.level) / unit),
            self._sums[6] / np.maximum(steps, 1),
            *(np.arcsinh(season * slope) for slope in self._slopes),
            np.log1p(np.sqrt((repeats**2).mean(axis=1))),
            *self._variance_ratios(),
            _log_ratio(sizes[:, :3].mean(axis=1), self._mean_change),
        ]
        clipped = np.clip(np.stack(scalars, axis=1), -MAX_FEATURE, MAX_FEATURE)
        return np.concatenate([clipped, self._has_older[:, None]], axis=1)

    def _variance_ratios(self) -> list[Float[np.ndarray, "view"]]:
        """Returns autocorrelations since the start, and ratios of the variances of long and short changes."""
        season, steps = self._sizes.season, self._steps
        squared, product, seasonal_squared, seasonal_product, long_squared = self._sums[7:]
        tiny = np.float32(TINY)
        long_variance = long_squared / np.maximum(steps - LONG_CHANGE * season, 1) / LONG_CHANGE
        seasonal_variance = seasonal_squared / np.maximum(steps - season, 1)
        return [
            product / np.maximum(squared, tiny),
            seasonal_product / np.maximum(seasonal_squared, tiny),
            _log_ratio(long_variance, seasonal_variance) * (steps > LONG_CHANGE * season),
            _log_ratio(seasonal_variance, season * squared / np.maximum(steps - 1, 1)),
            np.arcsinh((self.level - self._first_level) / np.maximum(np.sqrt(squared), tiny)),
        ]


def _season_means(filled_values: Float[np.ndarray, "row step"], season: int) -> Float[np.ndarray, "row step"]:
    """Returns the mean of the season that ends at each step; 0 within the first season."""
    sums = np.zeros((len(filled_values), filled_values.shape[1] + 1))
    np.cumsum(filled_values, axis=1, dtype=np.float64, out=sums[:, 1:])
    means = np.zeros_like(filled_values)
    means[:, season - 1 :] = (sums[:, season:] - sums[:, :-season]) / season
    return means


def _log_ratio(first: Float[np.ndarray, "view"], second: np.ndarray | np.float32) -> Float[np.ndarray, "view"]:
    return np.asarray(np.log(first / np.maximum(second, np.float32(TINY)) + np.float32(1e-3)))


def _autocorrelation(values: Float[np.ndarray, "view step"]) -> Float[np.ndarray, "view"]:
    squares = np.maximum(np.einsum("ij,ij->i", values, values), np.float32(TINY_SQUARE))
    return np.asarray(np.einsum("ij,ij->i", values[:, 1:], values[:, :-1]) / squares)
