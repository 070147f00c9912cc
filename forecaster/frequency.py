"""Frequencies and the timestamps they generate: datetimes step by a calendar offset, integer timestamps by an integer.

All timestamp arithmetic of the project is in this module.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forecaster.errors import BadStamp, FrequencyUnknown
from forecaster.shapes import Int

if TYPE_CHECKING:
    Timestamps = pd.Index[Any]
else:
    Timestamps = pd.Index
"""A DatetimeIndex, or an index of integers."""

Timestamp = pd.Timestamp | int
Offset = pd.offsets.BaseOffset | int

MAX_YEAR = 9999  # the last year of Python's datetime
MAX_INTEGER_TIMESTAMP = 2**62 - 1  # the difference of any two fits into int64
_MAX_TIMESTAMP_LENGTH = 64  # characters of a timestamp in a file
_MAX_CACHED_STEPS = 4096  # timestamps of longer histories are not cached
_INTEGER_PATTERN = re.compile(r"-?(?:0|[1-9]\d{0,17})", re.ASCII)


@lru_cache(maxsize=256)
def is_integer_frequency(freq: str) -> bool:
    """Whether a frequency is an integer. Its timestamps are then integers too, without a calendar."""
    return _INTEGER_PATTERN.fullmatch(freq) is not None


def parse_frequency(freq: str, *, where: str | None = None) -> Offset:
    """Returns the step of a frequency: a pandas offset, or an integer.

    Raises FrequencyUnknown for any other text, for steps that are not positive, and for steps finer than a microsecond, the
    resolution of timestamps.
    """
    try:
        step: Offset | None = int(freq) if is_integer_frequency(freq) else _parse_pandas_offset(freq)
    except (ValueError, TypeError, OverflowError, Warning) as error:  # pandas warns about deprecated aliases
        raise FrequencyUnknown(
            f"Frequency {freq!r} is not known; expected a pandas offset alias such as 'h', 'D', 'MS', 'QS' or '15min', or a "
            "whole number such as '1' for integer timestamps.",
            where=where,
        ) from error
    if step is None or (step if isinstance(step, int) else step.n) < 1:
        raise FrequencyUnknown(
            f"Frequency {freq!r} does not step forward; expected a positive step such as 'h', 'D' or 1.", where=where
        )
    if isinstance(step, pd.offsets.Nano) and step.n % 1000:
        raise FrequencyUnknown(
            f"Frequency {freq!r} is finer than a microsecond, the resolution of timestamps. Declare a coarser frequency.",
            where=where,
        )
    return step


def normalize_frequency(freq: str | int, *, where: str) -> str:
    """Returns the name of a declared frequency, which may also be a pandas offset; raises FrequencyUnknown."""
    name = str(getattr(freq, "freqstr", freq))
    parse_frequency(name, where=where)
    return name


def format_frequency(offset: Offset) -> str:
    """Returns the name of the frequency with this step."""
    return str(offset) if isinstance(offset, int) else str(offset.freqstr)


def validate_timestamp_kind(timestamp: Timestamp, freq: str, *, owner: str, where: str) -> None:
    """Raises BadStamp if an integer timestamp has a calendar frequency, or a datetime an integer frequency.

    Args:
        timestamp: Any timestamp of the series or column.
        freq: The frequency of the timestamps.
        owner: What has the timestamps, for the message: "series 'a'".
        where: The location, for the `where` attribute of the error.
    """
    if isinstance(timestamp, int) == is_integer_frequency(freq):
        return
    expected, prefix, advice = (
        ("timestamps", "the whole number ", "Send timestamps such as 2026-01-31, or declare a whole number such as 1")
        if isinstance(timestamp, int)
        else ("whole numbers as timestamps", "", "Send whole numbers, or declare a calendar frequency such as D")
    )
    raise BadStamp(
        f"Expected {expected}, since the frequency is {freq!r}; {owner} has {prefix}{format_timestamp(timestamp)}. {advice}.",
        where=where,
    )


def build_timestamps(start: Timestamp, *, freq: str, steps: int) -> Timestamps:
    """Returns `steps` timestamps from `start` on. Hours and shorter steps are absolute time; days and longer follow local time.

    A local time that a clock change skips is replaced by the next one that exists; of an ambiguous local time, the first
    occurrence is used.

    Raises BadStamp if the last timestamp lies after the year 9999, or above the largest integer timestamp.
    """
    if isinstance(start, int) or steps > _MAX_CACHED_STEPS:
        return _build_timestamps(start, freq, steps)
    return _cached_timestamps(start, start.tz, start.unit, freq, steps)


@lru_cache(maxsize=256)
def _cached_timestamps(start: pd.Timestamp, _zone: Any, _unit: str, freq: str, steps: int) -> Timestamps:
    """Caches by start, because the series of a panel often start and end together.

    Zone and unit are part of the key: datetimes of different zones or units may compare equal.
    """
    return _build_timestamps(start, freq, steps)


def next_timestamps(timestamp: Timestamp, *, freq: str, steps: int) -> Timestamps:
    """Returns the `steps` timestamps after `timestamp`; raises BadStamp as `build_timestamps` does."""
    if isinstance(timestamp, int) or steps >= _MAX_CACHED_STEPS:
        return build_timestamps(timestamp, freq=freq, steps=steps + 1)[1:]
    return _cached_next_timestamps(timestamp, timestamp.tz, timestamp.unit, freq, steps)


@lru_cache(maxsize=256)
def _cached_next_timestamps(timestamp: pd.Timestamp, _zone: Any, _unit: str, freq: str, steps: int) -> Timestamps:
    return build_timestamps(timestamp, freq=freq, steps=steps + 1)[1:]


def _build_timestamps(start: Timestamp, freq: str, steps: int) -> Timestamps:
    cause: Exception | None = None
    try:
        timestamps = build_unchecked_timestamps(start, freq=freq, steps=steps)
        if not steps or isinstance(start, int) or timestamps[-1].year <= MAX_YEAR:
            return timestamps
    except (pd.errors.OutOfBoundsDatetime, OverflowError, NotImplementedError) as error:
        cause = error
    raise BadStamp(
        f"Expected timestamps up to {describe_upper_limit(start)}; {steps} steps of {freq!r} from {format_timestamp(start)} "
        "exceed it. Correct the timestamps or the frequency, or request fewer steps.",
        where=format_timestamp(start),
    ) from cause


def build_unchecked_timestamps(start: Timestamp, *, freq: str, steps: int) -> Timestamps:
    """Builds timestamps as `build_timestamps` does, without its check of the range.

    Timestamps that leave the calendar raise an exception of pandas or OverflowError, or continue after the year 9999.
    """
    if isinstance(start, int):
        size = add_steps(0, freq, 1)
        assert isinstance(size, int)
        if max(abs(start), abs(start + max(steps - 1, 0) * size)) > MAX_INTEGER_TIMESTAMP:
            raise OverflowError(start)
        return pd.RangeIndex(start, start + steps * size, size)
    try:
        return pd.date_range(start, periods=steps, freq=freq)
    except ValueError as error:
        if start.tz is None or isinstance(error, pd.errors.OutOfBoundsDatetime):
            raise
    local_timestamps: Any = pd.date_range(start.tz_localize(None), periods=steps, freq=freq)
    timestamps: Timestamps = local_timestamps.tz_localize(
        start.tz, ambiguous=np.ones(steps, dtype=bool), nonexistent="shift_forward"
    )
    return timestamps


def add_steps(start: Timestamp, freq: str, steps: int) -> Timestamp:
    """Returns the timestamp `steps` steps after `start`.

    Raises ValueError if a clock change makes that local time nonexistent or ambiguous.
    """
    return (
        _add_steps(start, freq, steps)
        if isinstance(start, int)
        else _cached_add_steps(start, start.tz, start.unit, freq, steps)
    )


@lru_cache(maxsize=4096)
def _cached_add_steps(start: pd.Timestamp, _zone: Any, _unit: str, freq: str, steps: int) -> Timestamp:
    return _add_steps(start, freq, steps)


def _add_steps(start: Timestamp, freq: str, steps: int) -> Timestamp:
    origin: Any = start
    end: Timestamp = origin + steps * parse_frequency(freq)
    return end


def synthetic_start(freq: str) -> Timestamp:
    """Returns the first timestamp of synthetic histories."""
    return 0 if is_integer_frequency(freq) else pd.Timestamp("2001-01-01")


def describe_upper_limit(timestamp: Timestamp) -> str:
    """Returns the upper limit of timestamps of this kind, for messages."""
    return f"{MAX_INTEGER_TIMESTAMP}" if isinstance(timestamp, int) else f"the year {MAX_YEAR}"


def is_earlier(first: Timestamp, second: Timestamp) -> bool:
    """Whether `first` is certainly before `second`.

    False if they cannot be compared: an integer and a datetime, or two datetimes of which only one has a zone.
    """
    if isinstance(first, int) or isinstance(second, int):
        return isinstance(first, int) and isinstance(second, int) and first < second
    return (first.tz is None) == (second.tz is None) and first < second


def format_timestamp(timestamp: Timestamp) -> str:
    """Formats a timestamp for messages and files: ISO 8601, or digits."""
    return str(timestamp) if isinstance(timestamp, int) else timestamp.isoformat()


def parse_timestamp(text: str, *, freq: str) -> Timestamp:
    """Parses the output of `format_timestamp`; raises ValueError for other text."""
    return int(text) if is_integer_frequency(freq) else pd.Timestamp(text)


def parse_bounded_timestamp(text: str, *, freq: str) -> Timestamp:
    """Parses as `parse_timestamp` does; raises ValueError also for a timestamp that is missing or out of range."""
    if len(text) <= _MAX_TIMESTAMP_LENGTH:
        timestamp: Any = int(text) if is_integer_frequency(freq) else pd.Timestamp(text)
        if abs(timestamp) <= MAX_INTEGER_TIMESTAMP if isinstance(timestamp, int) else timestamp is not pd.NaT:
            parsed: Timestamp = timestamp
            return parsed
    raise ValueError(f"expected a timestamp, found {text[:_MAX_TIMESTAMP_LENGTH]!r}")


def timestamp_at(timestamps: Timestamps, index: int) -> Timestamp:
    """Returns the timestamp at an index; integers as Python int."""
    timestamp: Timestamp = timestamps[index]
    return timestamp if isinstance(timestamp, pd.Timestamp) else int(timestamp)


def timestamps_to_int64(timestamps: Timestamps) -> Int[np.ndarray, "row"]:
    """Returns timestamps as int64: datetimes in the unit of the index (microseconds, say), or the integers themselves."""
    return np.asarray(timestamps.astype("int64"))


@lru_cache(maxsize=256)
def _parse_pandas_offset(freq: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return pd.tseries.frequencies.to_offset(freq)
