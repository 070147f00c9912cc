"""What goes into the ledger and comes out of it."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.frequency import Timestamp, Timestamps, timestamps_to_int64

RECORDED_LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
"""The quantiles that are kept of every calibrated forecast, whatever was asked for: live coverage needs them."""
INTERVAL_LEVELS = {0.8: (0.1, 0.9), 0.95: (0.025, 0.975)}
_KEY_LENGTH = 32  # hex digits; 128 bits do not meet by chance


class ForecastRecord(NamedTuple):
    """One served forecast. Stamps are microseconds of UTC (those without a zone are taken for UTC), or numbers of steps.

    Attributes:
        at: When it was made, in seconds since 1970.
        name: Of the model.
        version: Of the model.
        digest: Of the model's bundle.
        key: The series, as `series_key` names it.
        id: The series in clear, where that may be kept.
        group: What the model's intervals are grouped by.
        origin: The stamp of the last value that was known.
        scale: The mean absolute change over a season (seasonal naive's error); None where there is none.
        stamps: Of the steps ahead.
        mean: By step.
        quantiles: By level, by step; as served, and those of LEVELS.
        units: By step, how far a shift of one spread moves a quantile; empty without calibration.
        shifts: By level, the shift in spreads that the quantiles hold already.
        inputs: What the history was like, by feature.
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
    """What came: some values of one series, by stamp."""

    key: str
    timestamps: Sequence[int]
    values: Sequence[float]


class ObservationResult(NamedTuple):
    """What became of the values of one series.

    Attributes:
        stored: That the ledger had not.
        corrected: That replaced others.
        scored: Forecasts that one of them is the truth of, or is so again.
        by_step: The same by step ahead; a forecast counts at each step that it is told the truth of.
    """

    stored: int
    corrected: int
    scored: int
    by_step: Mapping[int, int]


class ForecastFilter(NamedTuple):
    """Which forecasts are meant; None leaves that open.

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
    """A model that forecasts in the ledger are of."""

    name: str
    version: str
    digest: str


class ForecastSpan(NamedTuple):
    """How many forecasts there are, and when the first and the last were made, in seconds since 1970."""

    forecasts: int
    first: float | None
    last: float | None


def series_key(salt: bytes, series_id: str, timestamp: Timestamp) -> str:
    """How a series is named in the ledger: HMAC-SHA256 of its id, with the ledger's own salt.

    Series of numbered steps and of moments are told apart, so that a number is never taken for a moment.
    """
    kind = "number" if isinstance(timestamp, int) else "moment"
    return hmac.new(salt, f"{kind}:{series_id}".encode(), hashlib.sha256).hexdigest()[:_KEY_LENGTH]


def encode_timestamps(timestamps: Timestamps) -> list[int]:
    """Stamps as the ledger keeps them."""
    index: Any = timestamps
    told: list[int] = (
        index.as_unit("us").asi8 if isinstance(timestamps, pd.DatetimeIndex) else timestamps_to_int64(timestamps)
    ).tolist()
    return told


def encode_timestamp(timestamp: Timestamp) -> int:
    """One stamp as the ledger keeps it."""
    return timestamp if isinstance(timestamp, int) else int(timestamp.as_unit("us").asm8.astype("int64"))


def encode_body(record: ForecastRecord) -> str:
    """What is kept of the steps besides their stamps, as JSON."""
    told = {
        "mean": _to_floats(record.mean),
        "quantiles": {repr(float(level)): _to_floats(values) for level, values in record.quantiles.items()},
        "units": _to_floats(record.units),
        "shifts": {repr(float(level)): shift for level, shift in record.shifts.items()},
        "inputs": dict(record.inputs),
    }
    return json.dumps(told, separators=(",", ":"), allow_nan=False)


def _to_floats(values: Sequence[float]) -> list[float]:
    told: list[float] = np.asarray(values, dtype=np.float64).tolist()
    return told
