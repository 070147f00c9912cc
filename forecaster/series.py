"""What goes in and what comes out: a Series (the history that was known) and a Forecast (what we say comes next)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from forecaster.frequency import (
    Timestamp,
    Timestamps,
    add_steps,
    build_timestamps,
    format_timestamp,
    next_timestamps,
    timestamp_at,
    validate_timestamp_kind,
)
from forecaster.history_summary import HistorySummary
from forecaster.shapes import Float64

MAX_ABS_VALUE = 1e100  # squares of larger ones, summed, would leave float64


@dataclass(frozen=True, eq=False)
class Series:
    """One regular series, oldest value first.

    Attributes:
        id: The name that comes back with the forecast.
        start: Stamp of the first value: a moment, whose time zone, if it has one, is kept; or the number of its step.
        freq: Frequency as a pandas offset alias ("D", "h", "MS", "100ms"), or as a whole number ("1", "10").
        y: Float64 values, one a step; NaN marks a step that was not observed.
        covariates: By name, what is known ahead: one value for each step of `y` and for `covariate_horizon` steps after it; float64,
            or text in an object array.
        static: By name, what is true of the whole series.
        channels: By name, what is known of the past alone: one value for each step of `y`; NaN was not observed.
        past: Of a history of which only the last steps are held: what is remembered of those before.

    Raises BadStamp where a number is to step on the calendar, or a moment by a whole number.
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
        assert all(len(values) == len(self) for values in self.channels.values()), "channels end with the history"

    def __len__(self) -> int:
        return len(self.y)

    @property
    def covariate_horizon(self) -> int:
        """For how many steps after the last value the covariates are known; 0 without covariates."""
        return max((len(values) for values in self.covariates.values()), default=len(self)) - len(self)

    @property
    def timestamps(self) -> Timestamps:
        """The stamp of every value."""
        return build_timestamps(self.start, freq=self.freq, steps=len(self))

    @property
    def end(self) -> Timestamp:
        """The stamp of the last value."""
        return self.timestamp_at(len(self) - 1)

    def timestamp_at(self, index: int) -> Timestamp:
        """The stamp of one value, 0 for the first."""
        try:
            return add_steps(self.start, self.freq, index)
        except ValueError:  # a clock change left no such local time, or two
            return timestamp_at(self.timestamps, index)

    def take_first(self, steps: int) -> Series:
        """The first `steps` values: what was known then. Covariates are known ahead, so all of them were; channels are not."""
        assert 0 < steps <= len(self), f"{steps} of {len(self)} steps"
        return replace(
            self, y=self.y[:steps], channels={name: values[:steps] for name, values in self.channels.items()}
        )

    def future_timestamps(self, horizon: int) -> Timestamps:
        """The `horizon` stamps that follow the last value; raises BadStamp where they leave the calendar."""
        start, end = self.start, self.end
        if isinstance(start, int) or isinstance(end, int) or end.tz is None or end.time() == start.time():
            return next_timestamps(end, freq=self.freq, steps=horizon)
        return build_timestamps(self.start, freq=self.freq, steps=len(self) + horizon)[
            len(self) :
        ]  # the end may be a shifted one


@dataclass(frozen=True, eq=False)
class Forecast:
    """The forecast of one series.

    Attributes:
        id: The series' id.
        ds: The stamp of each step ahead.
        mean: Float64 point forecasts, one a step ahead, in the units of the series.
        warnings: What a reader should know of it.
        quantiles: By level, calibrated quantiles, one a step ahead; only those that were asked for.
    """

    id: str
    ds: Timestamps
    mean: Float64[np.ndarray, "horizon"]
    warnings: tuple[str, ...] = ()
    quantiles: Mapping[float, Float64[np.ndarray, "horizon"]] = field(default_factory=dict)


class Panel(NamedTuple):
    """Series of one frequency, and what had to be repaired to make them so."""

    series: Sequence[Series]
    freq: str
    repairs: Sequence[str] = ()

    @property
    def cutoff(self) -> Timestamp:
        """The last stamp of any series: the panel knows nothing later."""
        ends: list[Any] = [one.end for one in self.series]  # all numbers, or all moments
        latest: Timestamp = max(ends)
        return latest

    def digest(self) -> str:
        """Identifies the data: sha256 over ids, starts, frequency and values."""
        total = hashlib.sha256(self.freq.encode())
        for one in self.series:
            total.update(f"\n{len(one)} {format_timestamp(one.start)} {one.id}\n".encode())
            total.update(one.y.astype("<f8").tobytes())
            for name, values in one.covariates.items():
                total.update(f"\n{len(values)} {name}\n".encode())
                total.update(
                    values.astype("<f8").tobytes() if values.dtype != object else repr(values.tolist()).encode()
                )
            for name, values in one.channels.items():
                total.update(f"\nchannel {name}\n".encode() + values.astype("<f8").tobytes())
            if one.static:
                total.update(repr(sorted(one.static.items())).encode())
        return total.hexdigest()
