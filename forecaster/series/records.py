"""The input and output records of the library: Series (a history), Panel (series of one frequency) and Forecast."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from forecaster.frequency.timestamps import (
    Timestamp,
    Timestamps,
    add_steps,
    build_timestamps,
    format_timestamp,
    next_timestamps,
    timestamp_at,
    validate_timestamp_kind,
)
from forecaster.series.history_summary import HistorySummary
from forecaster.shapes import Float64

MAX_ABS_VALUE = 1e100  # sums of squares of larger values would overflow float64


@dataclass(frozen=True, eq=False)
class Series:
    """One regularly spaced series, oldest value first.

    Attributes:
        id: The series id, which the forecast carries too.
        start: Timestamp of the first value: a datetime, whose time zone (if any) is kept, or an integer.
        freq: Frequency as a pandas offset alias ("D", "h", "MS", "100ms"), or as an integer ("1", "10").
        y: Float64 values, one per step; NaN marks a step that was not observed.
        covariates: Known-future covariates by name: one value for each step of `y` and for `covariate_horizon` steps after
            it; float64, or text in an object array.
        static: Static features of the series by name.
        channels: Past-only columns by name: one value for each step of `y`; NaN marks a step that was not observed.
        history_summary: For a truncated history: the summary of the dropped steps.

    Raises BadStamp if an integer timestamp has a calendar frequency, or a datetime an integer frequency.
    """

    id: str
    start: Timestamp
    freq: str
    y: Float64[np.ndarray, "step"]
    covariates: Mapping[str, np.ndarray] = field(default_factory=dict)
    static: Mapping[str, str] = field(default_factory=dict)
    channels: Mapping[str, Float64[np.ndarray, "step"]] = field(default_factory=dict)
    history_summary: HistorySummary | None = None

    def __post_init__(self) -> None:
        validate_timestamp_kind(self.start, self.freq, owner=f"series {self.id!r}", where=self.id)
        if self.covariates:
            lengths = {len(values) for values in self.covariates.values()}
            assert len(lengths) == 1, f"covariates of different lengths: {sorted(lengths)}"
            assert min(lengths) >= len(self), "covariates end before the history does"
        assert all(len(values) == len(self) for values in self.channels.values()), (
            "channels and history differ in length"
        )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def covariate_horizon(self) -> int:
        """The number of steps after the last value for which covariates are known; 0 without covariates."""
        return max((len(values) for values in self.covariates.values()), default=len(self)) - len(self)

    @property
    def timestamps(self) -> Timestamps:
        """The timestamp of every value."""
        return build_timestamps(self.start, freq=self.freq, steps=len(self))

    @property
    def end(self) -> Timestamp:
        """The timestamp of the last value."""
        return self.timestamp_at(len(self) - 1)

    def timestamp_at(self, index: int) -> Timestamp:
        """Returns the timestamp of the value at an index, 0 for the first."""
        try:
            return add_steps(self.start, self.freq, index)
        except ValueError:  # a clock change made this local time nonexistent or ambiguous
            return timestamp_at(self.timestamps, index)

    def take_first(self, steps: int) -> Series:
        """Returns the series as it was known after `steps` values: with all covariates, and with channels cut to `steps`."""
        assert 0 < steps <= len(self), f"{steps} of {len(self)} steps"
        return replace(
            self, y=self.y[:steps], channels={name: values[:steps] for name, values in self.channels.items()}
        )

    def future_timestamps(self, horizon: int) -> Timestamps:
        """Returns the `horizon` timestamps after the last value; raises BadStamp if they leave the calendar."""
        start, end = self.start, self.end
        if isinstance(start, int) or isinstance(end, int) or end.tz is None or end.time() == start.time():
            return next_timestamps(end, freq=self.freq, steps=horizon)
        # A clock change may have shifted the local time of the end, so the timestamps are counted from the start.
        return build_timestamps(self.start, freq=self.freq, steps=len(self) + horizon)[len(self) :]


@dataclass(frozen=True, eq=False)
class Forecast:
    """The forecast of one series.

    Attributes:
        id: The series id.
        ds: The timestamp of each step ahead.
        mean: Float64 point forecasts, one per step ahead, in the units of the series.
        warnings: Messages about problems with this forecast.
        quantiles: Quantiles by level, calibrated or of the network's head, one per step ahead; only the requested levels.
        has_fallback: Whether a fallback replaced the network or a part of a blend; a warning has the reason.
    """

    id: str
    ds: Timestamps
    mean: Float64[np.ndarray, "horizon"]
    warnings: tuple[str, ...] = ()
    quantiles: Mapping[float, Float64[np.ndarray, "horizon"]] = field(default_factory=dict)
    has_fallback: bool = False


@dataclass(frozen=True, eq=False)
class Panel:
    """Series of one frequency, and messages about the repairs that were needed to make them regular.

    Attributes:
        series: The series.
        freq: Their frequency.
        repairs: Messages about the repairs.
        dropped_partial: Ids of the series whose last step is treated as missing because its period is incomplete; None if this
            was not requested.
        vocabulary: The symbols with the codes 1, 2 and so on, if the values are codes of symbols; 0 is an unknown one.
    """

    series: Sequence[Series]
    freq: str
    repairs: Sequence[str] = ()
    dropped_partial: Sequence[str] | None = None
    vocabulary: tuple[str, ...] = ()

    @property
    def cutoff(self) -> Timestamp:
        """The last timestamp of any series."""
        longest: dict[Any, Series] = {}  # by first timestamp and its zone, of which there are usually few
        for series in self.series:
            key = series.start, getattr(series.start, "tz", None)
            if key not in longest or len(series) > len(longest[key]):
                longest[key] = series
        ends: list[Any] = [series.end for series in longest.values()]  # all integers, or all datetimes
        latest: Timestamp = max(ends)
        return latest

    @cached_property
    def digest(self) -> str:
        """The identity of the data: the sha256 over ids, starts, frequency and values. It is computed once."""
        sha256 = hashlib.sha256(self.freq.encode())
        if self.vocabulary:
            sha256.update(repr(self.vocabulary).encode())
        for series in self.series:
            sha256.update(f"\n{len(series)} {format_timestamp(series.start)} {series.id}\n".encode())
            sha256.update(_to_little_endian(series.y))
            for name, values in series.covariates.items():
                sha256.update(f"\n{len(values)} {name}\n".encode())
                sha256.update(_to_little_endian(values) if values.dtype != object else repr(values.tolist()).encode())
            for name, values in series.channels.items():
                sha256.update(f"\nchannel {name}\n".encode())
                sha256.update(_to_little_endian(values))
            if series.static:
                sha256.update(repr(sorted(series.static.items())).encode())
        return sha256.hexdigest()


def _to_little_endian(values: np.ndarray) -> memoryview:
    """Returns the bytes of the values as float64, without a copy of an array that is contiguous and has this type."""
    return np.ascontiguousarray(values, dtype="<f8").data
