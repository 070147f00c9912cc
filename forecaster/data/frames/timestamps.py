"""Strict parser for a timestamp column: integers, or datetimes in microseconds.

Datetimes are from the year 1 to 9999, in one time zone or without a time zone.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from forecaster.errors import BadStamp, ZoneUnknown
from forecaster.frequency.local_time import localize, skipped_days
from forecaster.frequency.timestamps import (
    MAX_INTEGER_TIMESTAMP,
    MAX_YEAR,
    Timestamps,
    is_integer_frequency,
    timestamp_at,
    timestamps_to_int64,
    validate_timestamp_kind,
)
from forecaster.shapes import Int

_DAY_MICROSECONDS = 86_400_000_000
_MIN_MICROSECONDS = int(np.datetime64("0001-01-01", "us").astype(np.int64))
_MAX_MICROSECONDS = int(np.datetime64(f"{MAX_YEAR}-12-31T23:59:59.999999", "us").astype(np.int64))
_INTEGER_TEXT = re.compile(r"-?\d{1,30}", re.ASCII)
_NUMERIC_KINDS = ("integer", "mixed-integer", "mixed-integer-float", "floating", "decimal", "boolean", "complex")


class TimestampColumn(NamedTuple):
    """The timestamps of all rows, and the messages of repairs."""

    timestamps: Timestamps  # datetimes in microseconds, or int64
    repairs: tuple[str, ...]


def parse_timestamp_column(
    raw: pd.Series, *, column: str, freq: str | None, zone: str | None, series_codes: Int[np.ndarray, "row"]
) -> TimestampColumn:
    """Parses a timestamp column.

    Args:
        raw: ISO 8601 text, dates, datetimes or periods (taken as their start); or integers, which may be text if the
            frequency is an integer.
        column: The name of the column, for messages.
        freq: The frequency, if it was declared.
        zone: The time zone of timestamps without an offset; timestamps with an offset are converted to it.
        series_codes: The series of each row. The order of the rows of a series distinguishes the two occurrences of a
            repeated hour.
    Raises:
        BadStamp: With the first invalid row.
        ZoneUnknown: The time zone does not exist.
    """
    if isinstance(raw.dtype, pd.CategoricalDtype):
        raw = raw.astype(object if raw.hasnans else raw.cat.categories.dtype)
    is_numbered = freq is not None and is_integer_frequency(freq)
    if _is_integer_column(raw, allow_text=is_numbered):
        return TimestampColumn(_parse_integers(raw, column, freq=freq, zone=zone), ())
    if is_numbered:
        row = _first_true_row(np.array([not _is_integer(value) for value in raw]))
        raise BadStamp(
            f"Expected whole numbers in column {column!r}, since the frequency is {freq!r}; row {row} holds "
            f"{str(raw.iloc[row])[:60]!r}. Number the steps (astype('int64') converts integral floats), or declare a "
            "calendar frequency such as D.",
            where=column,
        )
    datetimes, repairs = _parse_datetimes(raw, column)
    _validate_no_missing(datetimes.isna(), column)
    datetimes = _to_microseconds(datetimes, column)
    if zone is not None:
        time_zone = load_time_zone(zone)
        if datetimes.tz is not None:
            datetimes = datetimes.tz_convert(time_zone)
        else:
            datetimes = _localize(datetimes, time_zone, series_codes, column)
    return TimestampColumn(datetimes, repairs if zone is None else ())


def reject_date_like_numbers(numbers: Timestamps, *, where: str) -> None:
    """Raises BadStamp for integers that all look like dates, such as 20260131 or 202601.

    As integers, the step after 20260131 would be 20260132, and the gap to the next month would count as absent steps.
    """
    years, rest = np.divmod(timestamps_to_int64(numbers), 10_000)
    months, days = np.divmod(rest, 100)
    if years.max() < 1000:  # six digits: year and month
        years, (months, days) = years * 100 + months, (days, np.ones_like(days))
    dates = (years >= 1900) & (years < 2100) & (months >= 1) & (months <= 12) & (days >= 1) & (days <= 31)
    if dates.all():
        raise BadStamp(
            f"Expected timestamps that are clearly numbers, or clearly dates; all of {where!r}, such as {numbers[0]}, may be "
            "either. Write dates like 2026-01-31, or declare a whole number for the frequency, such as 1.",
            where=where,
        )


def _is_integer_column(raw: pd.Series, *, allow_text: bool) -> bool:
    """Returns whether all cells that are not empty are integers, or integers as text if `allow_text`."""
    if pd.api.types.is_integer_dtype(raw):
        return True
    if allow_text and (raw.dtype == object or pd.api.types.is_string_dtype(raw)):
        return all(map(_is_integer, raw.dropna()))
    return raw.dtype == object and pd.api.types.infer_dtype(raw, skipna=True) == "integer"


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return _INTEGER_TEXT.fullmatch(value) is not None
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _parse_integers(raw: pd.Series, column: str, *, freq: str | None, zone: str | None) -> Timestamps:
    _validate_no_missing(raw.isna(), column)
    integers: pd.Series = raw if pd.api.types.is_integer_dtype(raw) else raw.map(int)
    is_outside = ((integers > MAX_INTEGER_TIMESTAMP) | (integers < -MAX_INTEGER_TIMESTAMP)).to_numpy(dtype=bool)
    if is_outside.any():
        row = _first_true_row(is_outside)
        raise BadStamp(
            f"Expected whole numbers from -{MAX_INTEGER_TIMESTAMP} to {MAX_INTEGER_TIMESTAMP} in column {column!r}; "
            f"row {row} holds {integers.iloc[row]}. Correct it, or count from a later origin.",
            where=column,
        )
    numbers: Timestamps = pd.Index(integers.astype("int64").to_numpy())
    if zone is not None:
        raise BadStamp(
            f"Expected ISO 8601 timestamps, since a zone ({zone}) is declared; column {column!r} has the whole number "
            f"{numbers[0]}, and numbers have no time zone. Write ISO 8601 timestamps, or omit the zone.",
            where=column,
        )
    if freq is None:
        reject_date_like_numbers(numbers, where=column)
    else:
        validate_timestamp_kind(timestamp_at(numbers, 0), freq, owner=f"column {column!r}", where=column)
    return numbers


def _validate_no_missing(missing: Any, column: str) -> None:
    empty = np.asarray(missing, dtype=bool)
    if empty.any():
        raise BadStamp(
            f"Expected a timestamp in every row; column {column!r} is empty in row {_first_true_row(empty)}. "
            "Fill it in, or drop the row.",
            where=column,
        )


def _parse_datetimes(raw: pd.Series, column: str) -> tuple[pd.DatetimeIndex, tuple[str, ...]]:
    if isinstance(raw.dtype, pd.PeriodDtype):
        return pd.DatetimeIndex(raw.dt.to_timestamp()), ()
    if pd.api.types.is_datetime64_any_dtype(raw):
        return pd.DatetimeIndex(raw), ()
    is_numeric = pd.api.types.is_numeric_dtype(raw)
    if is_numeric or (raw.dtype == object and pd.api.types.infer_dtype(raw, skipna=True) in _NUMERIC_KINDS):
        numbers = raw if is_numeric else raw[[not isinstance(value, str) and not pd.isna(value) for value in raw]]
        raise BadStamp(
            f"Expected timestamps, or whole numbers, throughout column {column!r}; found numbers such as {numbers.iloc[0]} "
            "that are not integers, or are mixed with other types. Write ISO 8601 timestamps such as 2026-01-31T00:00:00 in "
            "every row, or integers in every row (astype('int64') converts integral floats).",
            where=column,
        )
    is_relative = raw.isin(["now", "today"]).to_numpy()
    if is_relative.any():
        raise BadStamp(_format_not_iso_message(raw, _first_true_row(is_relative), column), where=column)
    try:
        return pd.DatetimeIndex(pd.to_datetime(raw, format="ISO8601")), ()
    except (ValueError, TypeError, OverflowError) as error:
        return _parse_mixed_offsets(raw, column, error)


def _parse_mixed_offsets(raw: pd.Series, column: str, error: Exception) -> tuple[pd.DatetimeIndex, tuple[str, ...]]:
    """Parses timestamps with different offsets from UTC, and converts them to UTC."""
    try:
        datetimes = pd.DatetimeIndex(pd.to_datetime(raw, format="ISO8601", utc=True))
    except (ValueError, TypeError, OverflowError):
        raise BadStamp(_format_not_iso_message(raw, _first_unparsable_row(raw), column), where=column) from error
    is_naive = np.array([not pd.isna(value) and pd.Timestamp(value).tz is None for value in raw])
    if is_naive.any():
        raise BadStamp(
            f"Expected an offset from UTC in all timestamps of column {column!r} or in none; row "
            f"{_first_true_row(is_naive)} has none and others have one. Write all timestamps in UTC.",
            where=column,
        ) from error
    return datetimes, (
        "timestamps with several offsets from UTC were converted to UTC (declare the zone to keep local time)",
    )


def _first_unparsable_row(raw: pd.Series) -> int:
    for row, value in enumerate(raw):
        try:
            pd.to_datetime([value], format="ISO8601")
        except (ValueError, TypeError, OverflowError):
            return row
    return 0


def _format_not_iso_message(raw: pd.Series, row: int, column: str) -> str:
    advice = " Or declare a whole number for the frequency, such as 1, if steps are numbered."
    integer_advice = advice if _is_integer(raw.iloc[row]) else ""
    return (
        f"Expected ISO 8601 timestamps in column {column!r}; row {row} holds {str(raw.iloc[row])[:60]!r}. "
        f"Write it like 2026-01-31, 2026-01-31T09:00:00 or 2026-01-31T09:00:00Z: the year first, with four digits."
        f"{integer_advice}"
    )


def _to_microseconds(datetimes: pd.DatetimeIndex, column: str) -> pd.DatetimeIndex:
    try:
        exact = datetimes if datetimes.unit == "us" else datetimes.as_unit("us")
    except (pd.errors.OutOfBoundsDatetime, OverflowError) as error:
        raise BadStamp(
            f"Expected years from 1 to {MAX_YEAR} in column {column!r}; some timestamps are far outside. Correct them.",
            where=column,
        ) from error
    ticks = exact.asi8
    margin = 0 if exact.tz is None else _DAY_MICROSECONDS  # local time differs from UTC by up to a day
    is_outside = (ticks < _MIN_MICROSECONDS + margin) | (ticks > _MAX_MICROSECONDS - margin)
    if is_outside.any():
        row = _first_true_row(is_outside)
        year = int(np.datetime64(int(ticks[row]), "us").astype("datetime64[Y]").astype(np.int64)) + 1970
        raise BadStamp(
            f"Expected years from 1 to {MAX_YEAR} in column {column!r}; row {row} is of the year {year}. Correct it.",
            where=column,
        )
    if datetimes.unit == "ns":
        is_finer = np.asarray(datetimes.asi8 % 1000 != 0)
        if is_finer.any():
            raise BadStamp(
                f"Expected timestamps in whole microseconds in column {column!r}; row {_first_true_row(is_finer)} is finer. "
                "Round it.",
                where=column,
            )
    return exact


def load_time_zone(name: str) -> ZoneInfo:
    """Returns the time zone of a name; raises ZoneUnknown."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ZoneUnknown(
            f"Expected a time zone such as 'Europe/Berlin' or 'UTC'; found {name!r}, which does not exist. Correct it.",
            where=name,
        ) from error


def _localize(
    naive: pd.DatetimeIndex, zone: ZoneInfo, series_codes: Int[np.ndarray, "row"], column: str
) -> pd.DatetimeIndex:
    """Localizes local times to a time zone.

    In series whose rows are all at midnight, a day whose midnight is skipped by a clock change starts at the first time after
    it, and a day with two midnights at the first.
    """
    local_times: Any = naive
    row_count = len(naive)
    has_time_of_day = np.bincount(series_codes, weights=naive.asi8 % _DAY_MICROSECONDS != 0) > 0
    is_date = ~has_time_of_day[series_codes]
    early: Any = localize(local_times, zone)
    is_skipped = np.asarray(early.tz_localize(None) != naive)
    is_skipped &= ~is_date | np.asarray(local_times.normalize().isin(skipped_days(zone)))
    if is_skipped.any():
        row = _first_true_row(is_skipped)
        raise BadStamp(
            f"Expected local times of {zone.key}; row {row} of column {column!r} has {naive[row].isoformat()}, which "
            "clocks skipped when they were set forward. Correct the timestamp or the zone, or write timestamps in UTC.",
            where=column,
        )
    if is_date.all():
        return pd.DatetimeIndex(early)
    late: pd.DatetimeIndex = local_times.tz_localize(
        zone, ambiguous=np.zeros(row_count, dtype=bool), nonexistent="shift_forward"
    )
    repeated_rows = np.flatnonzero((early.asi8 != late.asi8) & ~is_date)
    if not len(repeated_rows):
        return pd.DatetimeIndex(early)
    occurrences = pd.DataFrame({"series": series_codes[repeated_rows], "wall": naive.asi8[repeated_rows]}).groupby(
        ["series", "wall"]
    )
    is_second = np.zeros(row_count, dtype=bool)
    is_second[repeated_rows] = occurrences.cumcount().to_numpy() == 1
    datetimes = pd.DatetimeIndex(early.where(~is_second, late))
    is_ambiguous = np.zeros(row_count, dtype=bool)
    is_ambiguous[repeated_rows] = occurrences["wall"].transform("size").to_numpy() != 2
    is_backward = np.zeros(row_count, dtype=bool)
    is_backward[1:] = (np.diff(datetimes.asi8) <= 0) & (series_codes[1:] == series_codes[:-1])
    is_ambiguous |= is_backward & np.isin(series_codes, series_codes[repeated_rows])
    if is_ambiguous.any():
        row = _first_true_row(is_ambiguous)
        raise BadStamp(
            f"Expected unambiguous local times of {zone.key}; row {row} of column {column!r} has {naive[row].isoformat()}, "
            "and some hours of that series occur twice when clocks are set back. They can be distinguished only if rows are "
            "in order and contain each such timestamp twice. Write timestamps in UTC, or with their offsets.",
            where=column,
        )
    return datetimes


def _first_true_row(mask: np.ndarray) -> int:
    return int(np.argmax(mask))
