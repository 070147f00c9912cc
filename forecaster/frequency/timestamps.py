"""Frequencies and the timestamps they generate: datetimes step by a calendar offset, integer timestamps by an integer.

The local time of zones is in `local_time.py`, the comparison with the present in `clock.py`.
"""

from __future__ import annotations

import re
import warnings
from datetime import time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from forecaster.errors import BadStamp, FrequencyUnknown
from forecaster.frequency.business_days import describe_custom_offset, parse_custom_business_days
from forecaster.frequency.local_time import has_equal_days, is_late_midnight, localize, skipped_days
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
            f"Frequency {freq[:60]!r} is not known; expected a pandas offset alias such as 'h', 'D', 'MS', 'QS' or '15min', "
            f"working days such as 'C-1111110', or a whole number such as '1' for integer timestamps.{_find_hint(error)}",
            where=where,
        ) from error
    if step is None or (step if isinstance(step, int) else step.n) < 1:
        raise FrequencyUnknown(
            f"Frequency {freq!r} does not step forward; expected a positive step such as 'h', 'D' or 1.", where=where
        )
    if getattr(step, "offset", None):
        raise FrequencyUnknown(
            f"Frequency {freq!r} has an offset within the day; expected one such as 'B', whose timestamps have the time of day "
            "of the first. Leave the offset out.",
            where=where,
        )
    if isinstance(step, pd.offsets.Nano) and step.n % 1000:
        raise FrequencyUnknown(
            f"Frequency {freq!r} is finer than a microsecond, the resolution of timestamps. Declare a coarser frequency.",
            where=where,
        )
    return step


def normalize_frequency(freq: str | int | pd.offsets.BaseOffset | timedelta, *, where: str) -> str:
    """Returns the name of a declared frequency, which may also be a pandas offset.

    Raises FrequencyUnknown, also for an offset with properties that its name would lose, such as opening hours.
    """
    if isinstance(freq, timedelta):
        freq = pd.tseries.frequencies.to_offset(freq)
    if not isinstance(freq, pd.offsets.BaseOffset):
        name = str(freq)
        parse_frequency(name, where=where)
        return name
    offset: Any = freq
    if isinstance(freq, pd.offsets.Week) and offset.weekday is None:
        return f"{7 * freq.n}D"
    if isinstance(freq, pd.offsets.CustomBusinessDay) and not offset.offset and not offset.normalize:
        name = describe_custom_offset(freq).name
    else:
        name = str(freq.freqstr)
        _validate_complete_name(freq, name, where)
    parse_frequency(name, where=where)
    return name


def _validate_complete_name(offset: pd.offsets.BaseOffset, name: str, where: str) -> None:
    """Raises FrequencyUnknown if the name of a pandas offset does not describe the offset completely."""
    try:
        is_complete = bool(_parse_pandas_offset(name) == offset)
    except (ValueError, TypeError, OverflowError, Warning):
        is_complete = False
    if not is_complete or getattr(offset, "offset", None):
        raise FrequencyUnknown(
            f"Expected an offset that its name describes completely; {type(offset).__name__} is written {name!r} and would lose "
            "its hours, holidays or other properties. Use a pandas alias such as 'bh' or 'BME', custom business days such as "
            "'C-1111110', or aggregate the data to such steps.",
            where=where,
        )


def format_frequency(offset: Offset) -> str:
    """Returns the name of the frequency with this step."""
    if isinstance(offset, pd.offsets.CustomBusinessDay):
        return describe_custom_offset(offset).name
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
    occurrence is used. A day without midnight starts at its first moment, also if the timestamps start there. Days that a zone
    skipped entirely are not counted.

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
    step = parse_frequency(freq)
    if not _follows_irregular_days(start, step):
        try:
            timestamps: Timestamps = _build_in_order(start, step, steps)
            return timestamps
        except ValueError as error:
            if start.tz is None or isinstance(error, pd.errors.OutOfBoundsDatetime):
                raise
    return localize(_build_local_timestamps(start, step, steps), start.tz)


def _build_in_order(start: pd.Timestamp, step: Offset, steps: int) -> Any:
    """Builds timestamps of a calendar without clock changes between days."""
    if not isinstance(step, pd.offsets.CustomBusinessDay):
        assert not isinstance(step, int), "datetimes have a calendar frequency"
        return pd.date_range(start, periods=steps, freq=step)
    local: Any = start.tz_localize(None)
    days = np.busday_offset(
        np.datetime64(local, "D"), step.n * np.arange(steps), roll="forward", busdaycal=step.calendar
    )
    index: Any = pd.DatetimeIndex(days.astype("datetime64[us]") + np.timedelta64(local - local.normalize(), "us"))
    return index.as_unit(start.unit).tz_localize(start.tz)


def _build_local_timestamps(start: pd.Timestamp, step: Offset, steps: int) -> Any:
    """Builds the local times of steps in a zone with clock changes; days that the zone skipped entirely are no days."""
    local_start = start.tz_localize(None)
    if is_late_midnight(pd.DatetimeIndex([start]))[0]:
        local_start = local_start.normalize()
    local_timestamps = _build_in_order(local_start, step, steps)
    skipped = skipped_days(start.tz)
    if not _counts_days(step) or not steps or not _is_within(skipped, local_timestamps[0], local_timestamps[-1]):
        return local_timestamps
    assert isinstance(step, pd.offsets.BaseOffset)
    days = _build_in_order(local_start, step.base, steps * step.n + len(skipped))
    return days[~days.normalize().isin(skipped)][:: step.n][:steps]


def _counts_days(step: Offset) -> bool:
    """Whether a step is a number of days, or of working days; whole weeks keep their weekday."""
    if isinstance(step, pd.offsets.Day):
        return step.n % 7 != 0
    return isinstance(step, (pd.offsets.BusinessDay, pd.offsets.CustomBusinessDay))


def _is_within(days: Any, first: pd.Timestamp, last: pd.Timestamp) -> bool:
    return bool(((days >= first.normalize()) & (days <= last)).any())


def _follows_irregular_days(start: pd.Timestamp, step: Offset) -> bool:
    """Whether steps from `start` follow the days of a zone, and either the start or a later day is unlike other days."""
    if (
        start.tz is None
        or has_equal_days(start.tz)
        or isinstance(step, (int, pd.offsets.Tick, pd.offsets.BusinessHour))
    ):
        return False
    if start.time() != time() and bool(is_late_midnight(pd.DatetimeIndex([start]))[0]):
        return True
    local_start = start.tz_localize(None)
    return _counts_days(step) and bool((skipped_days(start.tz) >= local_start.normalize()).any())


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
    step = parse_frequency(freq)
    if not isinstance(start, int) and _follows_irregular_days(start, step):
        return timestamp_at(build_unchecked_timestamps(start, freq=freq, steps=steps + 1), steps)
    end: Timestamp = origin + steps * step
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


def _find_hint(error: BaseException) -> str:
    """Returns the alias that pandas suggests in its message, as a sentence; empty without one."""
    match = re.search(r"Did you mean ([^?\s]+)\?|use '([^']+)' instead", str(error))
    return "" if match is None else f" Did you mean {match[1] or match[2]!r}?"


@lru_cache(maxsize=256)
def _parse_pandas_offset(freq: str) -> Any:
    custom = parse_custom_business_days(freq)
    if custom is not None:
        return custom.to_offset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return pd.tseries.frequencies.to_offset(freq)
