"""What goes in and what comes out: a Series (the history that was known) and a Forecast (what we say comes next)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.shapes import Float64


@dataclass(frozen=True, eq=False)
class Series:
    """One regular series, oldest value first.

    Attributes:
        id: The name that comes back with the forecast.
        start: Stamp of the first value; its time zone, if it has one, is kept.
        freq: Frequency as a pandas offset alias ("D", "h", "MS", "100ms").
        y: Float64 values, one a step; NaN marks a step that was not observed.
    """

    id: str
    start: pd.Timestamp
    freq: str
    y: Float64[np.ndarray, "step"]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def stamps(self) -> pd.DatetimeIndex:
        """The stamp of every value."""
        return pd.date_range(self.start, periods=len(self.y), freq=self.freq)

    @property
    def end(self) -> pd.Timestamp:
        """The stamp of the last value."""
        return self.start + (len(self.y) - 1) * pd.tseries.frequencies.to_offset(self.freq)

    def until(self, steps: int) -> Series:
        """The first `steps` values: what was known then."""
        assert 0 < steps <= len(self), f"{steps} of {len(self)} steps"
        return Series(self.id, self.start, self.freq, self.y[:steps])

    def stamps_ahead(self, horizon: int) -> pd.DatetimeIndex:
        """The `horizon` stamps that follow the last value."""
        return pd.date_range(self.end, periods=horizon + 1, freq=self.freq)[1:]


@dataclass(frozen=True, eq=False)
class Forecast:
    """The forecast of one series.

    Attributes:
        id: The series' id.
        ds: The stamp of each step ahead.
        mean: Float64 point forecasts, one a step ahead, in the units of the series.
        warnings: What a reader should know of it.
    """

    id: str
    ds: pd.DatetimeIndex
    mean: Float64[np.ndarray, "horizon"]
    warnings: tuple[str, ...] = ()


class Panel(NamedTuple):
    """Series of one frequency, and what had to be repaired to make them so."""

    series: Sequence[Series]
    freq: str
    repairs: Sequence[str] = ()

    @property
    def cutoff(self) -> pd.Timestamp:
        """The last stamp of any series: the panel knows nothing later."""
        return max(one.end for one in self.series)

    def digest(self) -> str:
        """Identifies the data: sha256 over ids, starts, frequency and values."""
        total = hashlib.sha256(self.freq.encode())
        for one in self.series:
            total.update(f"\n{len(one)} {one.start.isoformat()} {one.id}\n".encode())
            total.update(one.y.astype("<f8").tobytes())
        return total.hexdigest()
