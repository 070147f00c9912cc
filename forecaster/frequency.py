"""How stamps step: moments by an offset of the calendar, numbered steps by a whole number. Who steps, asks here."""

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
"""A DatetimeIndex of moments, or an index of whole numbers."""

Timestamp = pd.Timestamp | int
Offset = pd.offsets.BaseOffset | int

MAX_YEAR = 9999  # Python's calendar ends there
MAX_INTEGER_TIMESTAMP = 2**62 - 1  # so that the machine's integers hold the difference of any two
_MAX_CACHED_STEPS = 4096  # of a history whose stamps are kept for the next series
_INTEGER_PATTERN = re.compile(r"-?(?:0|[1-9]\d{0,17})", re.ASCII)


@lru_cache(maxsize=256)
def is_integer_frequency(freq: str) -> bool:
    """Whether a frequency is a whole number: its stamps are then numbers too, and have no calendar."""
    return _INTEGER_PATTERN.fullmatch(freq) is not None


def parse_frequency(freq: str, *, where: str | None = None) -> Offset:
    """The step of a frequency: a pandas offset, or a whole number.

    Raises FrequencyUnknown for anything else, and for steps that do not go forward or are finer than the microseconds of
    a stamp.
    """
    try:
        step: Offset | None = int(freq) if is_integer_frequency(freq) else _parse_pandas_offset(freq)
    except (ValueError, TypeError, OverflowError, Warning) as error:  # a Warning: an alias of former days
        raise FrequencyUnknown(
            f"Frequency {freq!r} is not known; expected a pandas offset alias such as 'h', 'D', 'MS', 'QS' or '15min', or a "
            "whole number where steps are numbered.",
            where=where,
        ) from error
    if step is None or (step if isinstance(step, int) else step.n) < 1:
        raise FrequencyUnknown(
            f"Frequency {freq!r} does not step forward; expected one such as 'h' or 'D', or 1.", where=where
        )
    if isinstance(step, pd.offsets.Nano) and step.n % 1000:
        raise FrequencyUnknown(
            f"Frequency {freq!r} is finer than a microsecond, the finest that stamps tell. Declare a coarser one.",
            where=where,
        )
    return step


def normalize_frequency(freq: str | int, *, where: str) -> str:
    """The name of a declared frequency (a pandas offset is taken too); raises FrequencyUnknown."""
    name = str(getattr(freq, "freqstr", freq))
    parse_frequency(name, where=where)
    return name


def format_frequency(offset: Offset) -> str:
    """The frequency of a step."""
    return str(offset) if isinstance(offset, int) else str(offset.freqstr)


def validate_timestamp_kind(timestamp: Timestamp, freq: str, *, owner: str, where: str) -> None:
    """Raises BadStamp where a number is to step on the calendar, or a moment by a whole number.

    Args:
        stamp: One of them.
        freq: How they step.
        of: Whose they are, for the message: "series 'a'".
        where: The same, for machines.
    """
    if isinstance(timestamp, int) == is_integer_frequency(freq):
        return
    expected, found, advice = (
        ("time stamps", "the whole number ", "Write stamps such as 2026-01-31, or declare a whole number such as 1")
        if isinstance(timestamp, int)
        else ("whole numbers as stamps", "", "Number the steps, or declare a frequency of the calendar such as D")
    )
    raise BadStamp(
        f"Expected {expected}, since the frequency is {freq!r}; {owner} has {found}{format_timestamp(timestamp)}. {advice}.",
        where=where,
    )


def build_timestamps(start: Timestamp, *, freq: str, steps: int) -> Timestamps:
    """`steps` stamps from `start` on: hours follow the sun, days and longer steps the clock on the wall.

    Where a clock change leaves no such local time, the next that there is; where it leaves two, the first.

    Raises BadStamp if the last would come after the year 9999, or the last number.
    """
    if isinstance(start, int) or steps > _MAX_CACHED_STEPS:
        return _build_timestamps(start, freq, steps)
    return _cached_timestamps(start, start.tz, start.unit, freq, steps)


@lru_cache(maxsize=256)
def _cached_timestamps(start: pd.Timestamp, _zone: Any, _unit: str, freq: str, steps: int) -> Timestamps:
    """Series of a panel often begin and end together. Moments of two zones, or of two units, may be equal."""
    return _build_timestamps(start, freq, steps)


def next_timestamps(timestamp: Timestamp, *, freq: str, steps: int) -> Timestamps:
    """The `steps` stamps after one; raises BadStamp as `build_timestamps` does."""
    if isinstance(timestamp, int) or steps >= _MAX_CACHED_STEPS:
        return build_timestamps(timestamp, freq=freq, steps=steps + 1)[1:]
    return _cached_next_timestamps(timestamp, timestamp.tz, timestamp.unit, freq, steps)


@lru_cache(maxsize=256)
def _cached_next_timestamps(timestamp: pd.Timestamp, _zone: Any, _unit: str, freq: str, steps: int) -> Timestamps:
    return build_timestamps(timestamp, freq=freq, steps=steps + 1)[1:]


def _build_timestamps(start: Timestamp, freq: str, steps: int) -> Timestamps:
    fault: Exception | None = None
    try:
        stamps = build_unchecked_timestamps(start, freq=freq, steps=steps)
        if not steps or isinstance(start, int) or stamps[-1].year <= MAX_YEAR:
            return stamps
    except (pd.errors.OutOfBoundsDatetime, OverflowError, NotImplementedError) as error:
        fault = error
    raise BadStamp(
        f"Expected stamps up to {describe_upper_limit(start)}; {steps} steps of {freq!r} from {format_timestamp(start)} pass it. "
        "Correct the stamps or the frequency, or ask for fewer steps.",
        where=format_timestamp(start),
    ) from fault


def build_unchecked_timestamps(start: Timestamp, *, freq: str, steps: int) -> Timestamps:
    """As `build_timestamps`, but what leaves the calendar raises what pandas raises, or OverflowError, or goes on after it."""
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
    wall: Any = pd.date_range(start.tz_localize(None), periods=steps, freq=freq)
    stamps: Timestamps = wall.tz_localize(start.tz, ambiguous=np.ones(steps, dtype=bool), nonexistent="shift_forward")
    return stamps


def add_steps(start: Timestamp, freq: str, steps: int) -> Timestamp:
    """The stamp so many steps after another; raises ValueError where a clock change left no such local time, or two."""
    return (
        _add_steps(start, freq, steps)
        if isinstance(start, int)
        else _cached_add_steps(start, start.tz, start.unit, freq, steps)
    )


@lru_cache(maxsize=4096)
def _cached_add_steps(start: pd.Timestamp, _zone: Any, _unit: str, freq: str, steps: int) -> Timestamp:
    return _add_steps(start, freq, steps)


def _add_steps(start: Timestamp, freq: str, steps: int) -> Timestamp:
    moved: Any = start
    found: Timestamp = moved + steps * parse_frequency(freq)
    return found


def synthetic_start(freq: str) -> Timestamp:
    """Where made-up histories begin."""
    return 0 if is_integer_frequency(freq) else pd.Timestamp("2001-01-01")


def describe_upper_limit(timestamp: Timestamp) -> str:
    """What no stamp of this kind may pass, in words."""
    return f"{MAX_INTEGER_TIMESTAMP}" if isinstance(timestamp, int) else f"the year {MAX_YEAR}"


def is_earlier(first: Timestamp, second: Timestamp) -> bool:
    """Whether a stamp is certainly before another: a number and a moment, or moments of which one has no zone, cannot tell."""
    if isinstance(first, int) or isinstance(second, int):
        return isinstance(first, int) and isinstance(second, int) and first < second
    return (first.tz is None) == (second.tz is None) and first < second


def format_timestamp(timestamp: Timestamp) -> str:
    """A stamp as text, for messages and files: ISO 8601, or digits."""
    return str(timestamp) if isinstance(timestamp, int) else timestamp.isoformat()


def parse_timestamp(text: str, *, freq: str) -> Timestamp:
    """The stamp that `format_timestamp` wrote; raises ValueError for other text."""
    return int(text) if is_integer_frequency(freq) else pd.Timestamp(text)


def timestamp_at(timestamps: Timestamps, index: int) -> Timestamp:
    """One of the stamps, a number as an int of Python."""
    found: Timestamp = timestamps[index]
    return found if isinstance(found, pd.Timestamp) else int(found)


def timestamps_to_int64(timestamps: Timestamps) -> Int[np.ndarray, "row"]:
    """What stamps are counted by: their microseconds (or whatever the unit of the index is), or the numbers themselves."""
    return np.asarray(timestamps.astype("int64"))


@lru_cache(maxsize=256)
def _parse_pandas_offset(freq: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return pd.tseries.frequencies.to_offset(freq)
