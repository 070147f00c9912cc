"""Records that are written to the ledger and read from it."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.frequency.timestamps import Timestamp, Timestamps, timestamps_to_int64

RECORDED_LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
"""The quantile levels recorded for every calibrated forecast, whatever was requested: live coverage needs them."""
INTERVAL_LEVELS = {0.8: (0.1, 0.9), 0.95: (0.025, 0.975)}
_KEY_LENGTH = 32  # hex digits; 128 bits make collisions improbable


class ForecastRecord(NamedTuple):
    """One served forecast. Timestamps are microseconds of UTC (those without a zone are taken as UTC), or integer steps.

    Attributes:
        made_at: When it was made, in seconds since 1970.
        name: Of the model.
        version: Of the model.
        digest: Of the model's bundle.
        key: The series, as named by `series_key`.
        id: The plain id of the series, where it may be stored.
        group: The value by which the model's intervals are grouped.
        origin: The timestamp of the last observed step.
        scale: The mean absolute change over a season (seasonal naive's error); None where there is none.
        timestamps: Of the steps ahead.
        mean: By step.
        quantiles: By level, by step; those served, and those of RECORDED_LEVELS.
        units: By step, how far a shift of one spread moves a quantile; empty without calibration.
        shifts: By level, the shift in spreads that the quantiles already include.
        inputs: Features of the history, by name.
    """

    made_at: float
    name: str
    version: str
    digest: str
    key: str
    id: str | None
    group: str | None
    origin: int
    scale: float | None
    timestamps: Sequence[int]
    mean: Sequence[float]
    quantiles: Mapping[float, Sequence[float]]
    units: Sequence[float] = ()
    shifts: Mapping[float, float] = {}
    inputs: Mapping[str, float] = {}


class ObservedSeries(NamedTuple):
    """Actuals of one series, by timestamp."""

    key: str
    timestamps: Sequence[int]
    values: Sequence[float]


class ObservationResult(NamedTuple):
    """The result of storing the actuals of one series.

    Attributes:
        stored: Values that are new to the ledger.
        corrected: Values that replaced different ones.
        scored: Forecasts with an actual among these values, new or repeated.
        by_step: The same by step ahead; a forecast counts at each step with such an actual.
    """

    stored: int
    corrected: int
    scored: int
    by_step: Mapping[int, int]


class ForecastFilter(NamedTuple):
    """Selects forecasts; None does not restrict.

    Attributes:
        name: Of the model.
        version: Of the model.
        digest: Of its bundle.
        since: Made at this time or later, in seconds since 1970.
    """

    name: str | None = None
    version: str | None = None
    digest: str | None = None
    since: float | None = None


class ModelIdentity(NamedTuple):
    """The identity of a model with forecasts in the ledger."""

    name: str
    version: str
    digest: str


class ForecastSpan(NamedTuple):
    """The number of forecasts, and when the first and the last were made, in seconds since 1970."""

    forecasts: int
    first: float | None
    last: float | None


def series_key(salt: bytes, series_id: str, timestamp: Timestamp) -> str:
    """Returns the name of a series in the ledger: HMAC-SHA256 of its id, with the ledger's own salt.

    Series with integer steps and with timestamps have different keys, so that an integer is never taken for a timestamp.
    """
    kind = "number" if isinstance(timestamp, int) else "moment"
    return hmac.new(salt, f"{kind}:{series_id}".encode(), hashlib.sha256).hexdigest()[:_KEY_LENGTH]


def encode_timestamps(timestamps: Timestamps) -> list[int]:
    """Returns timestamps as the ledger stores them."""
    index: Any = timestamps
    encoded: list[int] = (
        index.as_unit("us").asi8 if isinstance(timestamps, pd.DatetimeIndex) else timestamps_to_int64(timestamps)
    ).tolist()
    return encoded


def encode_timestamp(timestamp: Timestamp) -> int:
    """Returns one timestamp as the ledger stores it."""
    return timestamp if isinstance(timestamp, int) else int(timestamp.as_unit("us").asm8.astype("int64"))


def encode_body(record: ForecastRecord) -> str:
    """Returns the values of the steps, without their timestamps, as JSON."""
    body = {
        "mean": _to_floats(record.mean),
        "quantiles": {repr(float(level)): _to_floats(values) for level, values in record.quantiles.items()},
        "units": _to_floats(record.units),
        "shifts": {repr(float(level)): shift for level, shift in record.shifts.items()},
        "inputs": dict(record.inputs),
    }
    return json.dumps(body, separators=(",", ":"), allow_nan=False)


def _to_floats(values: Sequence[float]) -> list[float]:
    floats: list[float] = np.asarray(values, dtype=np.float64).tolist()
    return floats
