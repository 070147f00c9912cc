"""The range of the scaled inputs of a network: learned from its training data, and compared with that of a history.

Computed in numpy, for workers without torch; tests compare the scales with those of `forecaster.model.scaling`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from forecaster.data.batching import pad_histories
from forecaster.engines.kernel import measure_scale
from forecaster.series import Panel, Series
from forecaster.shapes import Float, Float64
from forecaster.spec import Spec

SCALED_RANGE_FACT = "scaled_range"  # among the facts of a bundle; absent from those of earlier versions
ASINH_LIFT, LOG_WIDTH = 10.0, 0.1  # as in forecaster.model.scaling
TOLERANCE = 0.25  # of either bound: a history may be so much further from zero than the training data
_MAX_BATCH_VALUES = 1 << 20
_SERIES_AT_ONCE = 10_000  # whose windows are listed together


class ScaledRange(NamedTuple):
    """The smallest and the largest scaled value; NaN if there is none."""

    low: float
    high: float

    def exceeds(self, learned: ScaledRange) -> bool:
        """Whether this range leaves a learned one by more than the tolerance."""
        low = learned.low - TOLERANCE * abs(learned.low) - 1e-6
        high = learned.high + TOLERANCE * abs(learned.high) + 1e-6
        return self.low < low or self.high > high


def learn_scaled_range(panel: Panel, spec: Spec, *, season: int) -> ScaledRange | None:
    """Returns the range over windows that overlap by half, or over whole series if the network reads them.

    None for a running scale, because what the network reads is in its range for any series, and for symbols.
    """
    if spec.scaling == "running" or spec.head.is_symbolic:
        return None
    ranges = [
        _find_extremes(panel.series[first : first + _SERIES_AT_ONCE], spec, season=season)
        for first in range(0, len(panel.series), _SERIES_AT_ONCE)
    ]
    low, high = (np.array([getattr(part, name) for part in ranges]) for name in ScaledRange._fields)
    is_observed = np.isfinite(low)
    return ScaledRange(float(low[is_observed].min()), float(high[is_observed].max())) if is_observed.any() else None


def _find_extremes(series: Sequence[Series], spec: Spec, *, season: int) -> ScaledRange:
    """Returns the range over the windows of some series, without windows that have none; NaN if no window has one."""
    windows = [
        window
        for item in series
        for window in ([item.y] if spec.reads == "history" else _split_windows(item.y, spec.context))
    ]
    ranges = np.array(compute_scaled_ranges(windows, spec, season=season)).reshape(-1, 2)
    observed = ranges[np.isfinite(ranges).all(axis=1)]
    return (
        ScaledRange(float(observed[:, 0].min()), float(observed[:, 1].max()))
        if len(observed)
        else ScaledRange(np.nan, np.nan)
    )


def read_scaled_range(facts: dict[str, Any]) -> ScaledRange | None:
    """Returns the range recorded in the facts of a model; None if there is none."""
    bounds = facts.get(SCALED_RANGE_FACT)
    return None if bounds is None else ScaledRange(*bounds)


def find_scaled_ranges(series: Sequence[Series], spec: Spec, *, season: int) -> list[ScaledRange]:
    """Returns the range of the scaled values that a network reads of each series.

    A network that reads whole histories has scaled a truncated one before; its range is NaN, which exceeds no other.
    """
    unknown = np.array([np.nan])
    return compute_scaled_ranges(
        [unknown if spec.reads == "history" and item.history_summary is not None else item.y for item in series],
        spec,
        season=season,
    )


def compute_scaled_ranges(
    histories: Sequence[Float64[np.ndarray, "_"]], spec: Spec, *, season: int
) -> list[ScaledRange]:
    """Returns the range of each history, in the scale that the network gives it."""
    lengths = np.array([len(y) if spec.reads == "history" else min(len(y), spec.context) for y in histories])
    order = np.argsort(lengths, kind="stable")
    ranges: list[ScaledRange] = [ScaledRange(np.nan, np.nan)] * len(histories)
    first = 0
    while first < len(order):
        sizes = lengths[order[first:]] * np.arange(1, len(order) - first + 1)
        rows = order[first : first + max(1, int((sizes <= _MAX_BATCH_VALUES).sum()))]
        padded = pad_histories([histories[row] for row in rows], context=int(lengths[rows[-1]]), fill_value=np.nan)
        with np.errstate(over="ignore"):  # a value too large for float32 is infinite, and so out of any range
            scaled = scale_histories(padded, spec, season=season)
        low, high = np.fmin.reduce(scaled, axis=1), np.fmax.reduce(scaled, axis=1)  # NaN only if all values are
        for row, *bounds in zip(rows.tolist(), low.tolist(), high.tolist(), strict=True):
            ranges[row] = ScaledRange(*bounds)
        first += len(rows)
    return ranges


def scale_histories(
    values: Float64[np.ndarray, "row step"], spec: Spec, *, season: int
) -> Float[np.ndarray, "row step"]:
    """Returns the scaled values; the scale of a network that reads whole histories is that of their first context."""
    measured, first = values, None
    if spec.reads == "history" and values.shape[1] > spec.context:
        observed = ~np.isnan(values)
        first = np.where(observed.any(1), observed.argmax(1), values.shape[1])
        steps = first[:, None] + np.arange(spec.context)
        measured = np.take_along_axis(values, steps.clip(max=values.shape[1] - 1), axis=1)
        measured[steps >= values.shape[1]] = np.nan
    if spec.transform == "log":
        size = measure_scale(measured, "mean_abs").width[:, None]
        lift = ASINH_LIFT / np.where(size == 0, 1.0, size)
        measured, values = np.arcsinh(measured * lift), np.arcsinh(values * lift)
        scale = measure_scale(measured, spec.scaling, season=season)
        scale = scale._replace(width=LOG_WIDTH * (size[:, 0] > 0))
    else:
        scale = measure_scale(measured, spec.scaling, season=season)
    return (scale if first is None else scale.starting_at(-first)).apply(values)


def _split_windows(y: Float64[np.ndarray, "_"], context: int) -> Iterator[Float64[np.ndarray, "_"]]:
    """Yields windows that overlap by half, the last of them at the end."""
    for end in range(len(y), 0, -max(1, context // 2)):
        yield y[max(0, end - context) : end]
        if end <= context:
            return
