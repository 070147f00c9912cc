"""Timestamps of requests, as text or integers: strict parsing, frequency, range checks, and formatting in the same style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
from pydantic import Discriminator, Field, Tag

from forecaster.data.frames.panel import infer_series_frequency
from forecaster.errors import BadStamp, DuplicateStamp, FrequencyUnknown, IrregularStamps
from forecaster.frequency.business_days import parse_custom_business_days
from forecaster.frequency.names import are_same_grid
from forecaster.frequency.timestamps import (
    MAX_INTEGER_TIMESTAMP,
    Offset,
    Timestamp,
    Timestamps,
    build_unchecked_timestamps,
    describe_upper_limit,
    format_frequency,
    format_timestamp,
    is_integer_frequency,
    parse_frequency,
    timestamp_at,
    timestamps_to_int64,
    validate_timestamp_kind,
)

Unit = Literal["D", "m", "s", "us"]

_TIMESTAMP_PATTERN = re.compile(
    r"\d{4}-\d\d-\d\d(?:(?P<separator>[T ])\d\d:\d\d(?P<second>:\d\d(?:\.\d{1,6})?)?(?P<zone>Z|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)
_FREQ_PATTERN = re.compile(r"\d{0,6}(?P<name>[A-Za-z]+)(?:-[A-Z0-9]{1,5})?", re.ASCII)
# The aliases of pandas that are not deprecated (those warn or raise, depending on the version) and not below a microsecond.
_FREQ_ALIASES = frozenset("us ms s min h bh cbh D B C W MS ME SMS SME BMS BME CBMS CBME".split())  # noqa: SIM905
_FREQ_ALIASES |= frozenset("QS QE BQS BQE YS YE BYS BYE WOM LWOM".split())  # noqa: SIM905
_UNITS: tuple[Unit, ...] = ("D", "m", "s", "us")
_INFERENCE_STEPS = 64  # timestamps that suffice to infer any frequency, across leap years and weekends


def _value_kind(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value
    return "number" if isinstance(first, int) and not isinstance(first, bool) else "text"


_TimestampText = Annotated[str, Field(max_length=40, examples=["2026-01-31T00:00:00Z"])]
_FreqText = Annotated[str, Field(max_length=2048, examples=["h", "D", "MS", "15min", "1"])]
TimestampField = Annotated[
    Annotated[_TimestampText, Tag("text")] | Annotated[int, Tag("number")], Discriminator(_value_kind)
]
FreqField = Annotated[Annotated[_FreqText, Tag("text")] | Annotated[int, Tag("number")], Discriminator(_value_kind)]
TimestampsField = Annotated[
    Annotated[list[_TimestampText], Field(fail_fast=True), Tag("text")]
    | Annotated[list[int], Field(fail_fast=True), Field(min_length=1), Tag("number")],
    Discriminator(_value_kind),
]


class TimestampStyle(NamedTuple):
    """The format of text timestamps; responses use the format of the request."""

    separator: str  # between date and time
    unit: Unit  # the unit of the request: "D", "m" or "s"
    zone: str  # "", "Z", or an offset such as "+02:00"

    def format(self, timestamps: Timestamps) -> list[str]:
        """Returns the timestamps as text, in a finer unit than the request's only if precision would be lost otherwise."""
        index = cast("pd.DatetimeIndex", timestamps)
        local_index: Any = index if index.tz in (None, UTC) else index.tz_localize(None)
        local: Any = np.asarray(local_index, dtype="datetime64[us]")
        units = _UNITS[_UNITS.index(self.unit) :]
        unit = next(unit for unit in units if bool((local.astype(f"datetime64[{unit}]") == local).all()))
        zone = "" if unit == "D" else self.zone
        return [text.replace("T", self.separator) + zone for text in np.datetime_as_string(local, unit=unit).tolist()]


class IntegerStyle:
    """The format of integer timestamps."""

    def format(self, timestamps: Timestamps) -> list[int]:
        """Returns the timestamps as integers."""
        return cast("list[int]", timestamps.tolist())


class ParsedTimestamps(NamedTuple):
    """Parsed timestamps and their format in the request."""

    timestamps: Timestamps
    style: TimestampStyle | IntegerStyle


def parse_timestamps(values: Sequence[str | int], *, where: str) -> ParsedTimestamps:
    """Parses ISO 8601 timestamps, or integers; raises BadStamp for the first that is neither.

    Args:
        values: At least one timestamp. Either all texts have an offset from UTC or none has; if the offsets differ (daylight
            saving time), the response uses the last one.
        where: The id of the series.
    """
    if isinstance(values[0], int):
        return _parse_integers(cast("Sequence[int]", values), where=where)
    return _parse_texts(cast("Sequence[str]", values), where=where)


def parse_single_timestamp(value: str | int, *, where: str) -> tuple[Timestamp, TimestampStyle | IntegerStyle]:
    """Parses a single timestamp as `parse_timestamps` does, at a thirtieth of the cost."""
    if isinstance(value, int):
        parsed = _parse_integers([value], where=where)
        return timestamp_at(parsed.timestamps, 0), parsed.style
    timestamp = _parse_datetime(value, 0, where=where)
    try:
        return pd.Timestamp(timestamp), _detect_style(value)
    except (ValueError, OverflowError) as error:
        raise _timestamp_out_of_range(where) from error


def _parse_integers(numbers: Sequence[int], *, where: str) -> ParsedTimestamps:
    for index, number in enumerate(numbers):
        if abs(number) > MAX_INTEGER_TIMESTAMP:
            raise BadStamp(
                f"Expected integer timestamps from -{MAX_INTEGER_TIMESTAMP} to {MAX_INTEGER_TIMESTAMP}; series {where!r} has "
                f"{number} at index {index}. Correct it, or number the steps from a later origin.",
                where=where,
            )
    return ParsedTimestamps(pd.Index(np.array(numbers, dtype=np.int64)), IntegerStyle())


def _parse_texts(texts: Sequence[str], *, where: str) -> ParsedTimestamps:
    datetimes = [_parse_datetime(text, index, where=where) for index, text in enumerate(texts)]
    if len({value.tzinfo is None for value in datetimes}) > 1:
        raise BadStamp(
            f"Expected an offset from UTC in all timestamps or in none; series {where!r} mixes them. Write all in UTC.",
            where=where,
        )
    zone = datetimes[-1].tzinfo
    try:
        index = pd.DatetimeIndex(datetimes) if zone is None else pd.to_datetime(datetimes, utc=True).tz_convert(zone)
    except (ValueError, OverflowError) as error:
        raise _timestamp_out_of_range(where) from error
    return ParsedTimestamps(index, _detect_style(texts[-1]))


def parse_step(freq: str | int, *, where: str) -> Offset:
    """Returns the step of a declared frequency; raises FrequencyUnknown."""
    name = str(freq)
    match = _FREQ_PATTERN.fullmatch(name)
    is_known = is_integer_frequency(name) or parse_custom_business_days(name) is not None
    if not is_known and (match is None or match["name"] not in _FREQ_ALIASES):
        raise FrequencyUnknown(
            "Expected a pandas offset alias such as 'h', 'D', 'W-MON', 'MS', 'QS' or '15min', working days such as 'C-1111110', "
            f"or an integer if timestamps are integers; the frequency of series {where!r} is {name[:40]!r}. Correct it.",
            where=where,
        )
    return parse_frequency(name, where=where)


def normalize_frequency(freq: str | int, start: Timestamp, *, where: str) -> str:
    """Returns the canonical name of a declared frequency; raises FrequencyUnknown, and BadStamp if `start` is of another kind."""
    step = parse_step(freq, where=where)
    name = str(freq) if parse_custom_business_days(str(freq)) else format_frequency(step)
    validate_timestamp_kind(start, name, owner=f"series {where!r}", where=where)
    return name


def resolve_frequency(timestamps: Timestamps, *, declared: str | int | None, model_freq: str | None, where: str) -> str:
    """Returns the frequency that gives exactly these timestamps: the declared one, or else the inferred one.

    One frequency has several names (QS-JAN and QS-OCT, 24h and D): if none was declared and `model_freq` is the same grid as
    the inferred one, the result is `model_freq`. A model without a frequency (None) takes the inferred name.

    Raises DuplicateStamp and IrregularStamps with the first timestamp that is wrong, FrequencyUnknown if the frequency is
    ambiguous, and BadStamp if integer timestamps have a calendar frequency, or the reverse.
    """
    gaps = np.diff(timestamps_to_int64(timestamps))
    if (gaps <= 0).any():
        position = int(np.argmax(gaps <= 0))
        current, following = (
            format_timestamp(timestamp_at(timestamps, position)),
            format_timestamp(timestamp_at(timestamps, position + 1)),
        )
        if gaps[position] == 0:
            raise DuplicateStamp(
                f"Expected one value for each timestamp; series {where!r} has {current} twice. Keep one of them.",
                where=where,
            )
        raise IrregularStamps(
            f"Expected timestamps in ascending order; series {where!r} has {following} after {current}. Sort the series.",
            where=where,
        )
    start, steps = timestamp_at(timestamps, 0), len(timestamps)
    try:
        if declared is not None:
            freq = normalize_frequency(declared, start, where=where)
        else:
            freq = infer_series_frequency(timestamps[:_INFERENCE_STEPS], unique_id=where)
        if declared is None and model_freq is not None and are_same_grid(freq, model_freq, [start]):
            freq = model_freq
        expected = build_unchecked_timestamps(start, freq=freq, steps=steps)
    except (pd.errors.OutOfBoundsDatetime, OverflowError) as error:
        raise _range_out_of_bounds(start, where) from error
    if not expected.equals(timestamps):
        position = int(np.argmax(np.asarray(expected != timestamps)))
        raise IrregularStamps(
            f"Expected timestamps with the frequency {freq!r}; series {where!r} has "
            f"{format_timestamp(timestamp_at(timestamps, position))} at index {position} instead of "
            f"{format_timestamp(timestamp_at(expected, position))}. Send null for missing values, or correct the frequency.",
            where=where,
        )
    return freq


def validate_range(start: Timestamp, step: Offset, steps: int, *, where: str) -> None:
    """Raises IrregularStamps if `start` is not on the grid of `step`, and BadStamp if `steps` steps pass the largest timestamp.

    The check is arithmetic; no index of `steps` timestamps is built.
    """
    if isinstance(start, int) or isinstance(step, int):
        assert isinstance(start, int), "normalize_frequency and resolve_frequency validate the kind"
        assert isinstance(step, int), "normalize_frequency and resolve_frequency validate the kind"
        if start + step * (steps - 1) > MAX_INTEGER_TIMESTAMP:
            raise _range_out_of_bounds(start, where)
        return
    try:
        on_grid, end = step.is_on_offset(start), start + step * steps
    except (ValueError, OverflowError) as error:  # OutOfBoundsDatetime is a ValueError
        raise _range_out_of_bounds(start, where) from error
    if end.year > 9999 - 1:  # leaves a year for the offset from UTC and rounding to the grid
        raise _range_out_of_bounds(start, where)
    if not on_grid:
        raise IrregularStamps(
            f"Expected a start on the grid of the frequency {step.freqstr!r}; series {where!r} starts at {start.isoformat()}, "
            f"and the next timestamp on the grid is {(start + step).isoformat()}. Send the timestamp of the first value.",
            where=where,
        )


def _parse_datetime(text: str, index: int, *, where: str) -> datetime:
    value = _parse_iso_datetime(text)
    if value is None:
        raise BadStamp(
            f"Expected ISO 8601 timestamps; series {where!r} has {text[:40]!r} at index {index}. "
            "Write it like 2026-01-31, 2026-01-31T09:00:00 or 2026-01-31T09:00:00Z, and integers without quotes.",
            where=where,
        )
    return value


def _parse_iso_datetime(text: str) -> datetime | None:
    if _TIMESTAMP_PATTERN.fullmatch(text) is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # month 13, hour 25, year 0
        return None


def _detect_style(text: str) -> TimestampStyle:
    match = _TIMESTAMP_PATTERN.fullmatch(text)
    assert match is not None, "the text was parsed before"
    unit: Unit = "D" if match["separator"] is None else "m" if match["second"] is None else "s"
    return TimestampStyle(match["separator"] or "T", unit, match["zone"] or "")


def _timestamp_out_of_range(where: str) -> BadStamp:
    return BadStamp(
        f"Expected timestamps that can be represented; series {where!r} has one too far in the past or future. Correct it.",
        where=where,
    )


def _range_out_of_bounds(start: Timestamp, where: str) -> BadStamp:
    return BadStamp(
        f"Expected timestamps up to {describe_upper_limit(start)}; those of series {where!r}, with the forecast, would pass it. "
        "Correct the start or the frequency.",
        where=where,
    )
