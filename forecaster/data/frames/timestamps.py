"""A column of stamps, read strictly: moments to microseconds, from the year 1 to 9999, in one time zone or in none; or whole
numbers.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from forecaster.errors import BadStamp, ZoneUnknown
from forecaster.frequency import (
    MAX_INTEGER_TIMESTAMP,
    MAX_YEAR,
    Timestamps,
    is_integer_frequency,
    timestamp_at,
    timestamps_to_int64,
    validate_timestamp_kind,
)
from forecaster.shapes import Int

_DAY_MICROSECONDS = 86_400_000_000  # microseconds
_MIN_MICROSECONDS = int(np.datetime64("0001-01-01", "us").astype(np.int64))
_MAX_MICROSECONDS = int(np.datetime64(f"{MAX_YEAR}-12-31T23:59:59.999999", "us").astype(np.int64))
_INTEGER_TEXT = re.compile(r"-?\d{1,30}", re.ASCII)
_NUMERIC_KINDS = ("integer", "mixed-integer", "mixed-integer-float", "floating", "decimal", "boolean", "complex")


class TimestampColumn(NamedTuple):
    """The stamps of all rows, and what had to be repaired."""

    timestamps: Timestamps  # moments in microseconds, or int64
    repairs: tuple[str, ...]


def parse_timestamp_column(
    raw: pd.Series, *, column: str, freq: str | None, zone: str | None, series_codes: Int[np.ndarray, "row"]
) -> TimestampColumn:
    """Reads a column of stamps.

    Args:
        raw: ISO 8601 text, dates, datetimes or periods (which stand for their first moment); or integers, which may be text
            where the frequency is a whole number.
        column: Its name.
        freq: The frequency, if it was declared.
        zone: The zone whose local time stamps without an offset are, and in which those with one are to be told.
        series: Which series each row is of: an hour that a clock shows twice is told apart by the order of its rows.
    Raises:
        BadStamp, with the first row; ZoneUnknown.
    """
    if isinstance(raw.dtype, pd.CategoricalDtype):
        raw = raw.astype(object if raw.hasnans else raw.cat.categories.dtype)
    numbered = freq is not None and is_integer_frequency(freq)
    if _is_integer_column(raw, allow_text=numbered):
        return TimestampColumn(_parse_integers(raw, column, freq=freq, zone=zone), ())
    if numbered:
        row = _first_true_row(np.array([not _is_integer(one) for one in raw]))
        raise BadStamp(
            f"Expected whole numbers in column {column!r}, since the frequency is {freq!r}; row {row} holds "
            f"{str(raw.iloc[row])[:60]!r}. Number the steps (astype('int64') makes integers of whole floats), or declare a "
            "frequency of the calendar such as D.",
            where=column,
        )
    moments, repairs = _parse_datetimes(raw, column)
    _validate_no_missing(moments.isna(), column)
    moments = _to_microseconds(moments, column)
    if zone is not None:
        known = _load_time_zone(zone)
        moments = (
            moments.tz_convert(known) if moments.tz is not None else _localize(moments, known, series_codes, column)
        )
    return TimestampColumn(moments, repairs if zone is None else ())


def reject_date_like_numbers(numbers: Timestamps, *, where: str) -> None:
    """Raises BadStamp for whole numbers that all read as dates, such as 20260131 or 202601.

    Counted as numbers, a day would follow the 31st at 20260132, and the gap to the next month would be absent steps.
    """
    years, rest = np.divmod(timestamps_to_int64(numbers), 10_000)
    months, days = np.divmod(rest, 100)
    if years.max() < 1000:  # six digits
        years, (months, days) = years * 100 + months, (days, np.ones_like(days))
    dates = (years >= 1900) & (years < 2100) & (months >= 1) & (months <= 12) & (days >= 1) & (days <= 31)
    if dates.all():
        raise BadStamp(
            f"Expected stamps that are certainly numbers, or certainly dates; all of {where!r}, such as {numbers[0]}, may be "
            "either. Write dates like 2026-01-31, or declare a whole number for the frequency, such as 1.",
            where=where,
        )


def _is_integer_column(raw: pd.Series, *, allow_text: bool) -> bool:
    """Whether the column is one of whole numbers, some cells perhaps empty; as text too, if that is allowed."""
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
    whole: pd.Series = raw if pd.api.types.is_integer_dtype(raw) else raw.map(int)
    outside = ((whole > MAX_INTEGER_TIMESTAMP) | (whole < -MAX_INTEGER_TIMESTAMP)).to_numpy(dtype=bool)
    if outside.any():
        row = _first_true_row(outside)
        raise BadStamp(
            f"Expected whole numbers from -{MAX_INTEGER_TIMESTAMP} to {MAX_INTEGER_TIMESTAMP} in column {column!r}; row {row} holds "
            f"{whole.iloc[row]}. Correct it, or count from nearer.",
            where=column,
        )
    numbers: Timestamps = pd.Index(whole.astype("int64").to_numpy())
    if zone is not None:
        raise BadStamp(
            f"Expected time stamps, since a zone ({zone}) is declared; column {column!r} has the whole number {numbers[0]}, "
            "and numbers are of no zone. Write ISO 8601 stamps, or leave the zone out.",
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
            f"Expected a stamp in every row; column {column!r} is empty in row {_first_true_row(empty)}. Fill or drop it.",
            where=column,
        )


def _parse_datetimes(raw: pd.Series, column: str) -> tuple[pd.DatetimeIndex, tuple[str, ...]]:
    if isinstance(raw.dtype, pd.PeriodDtype):
        return pd.DatetimeIndex(raw.dt.to_timestamp()), ()
    if pd.api.types.is_datetime64_any_dtype(raw):
        return pd.DatetimeIndex(raw), ()
    numeric = pd.api.types.is_numeric_dtype(raw)
    if numeric or (raw.dtype == object and pd.api.types.infer_dtype(raw, skipna=True) in _NUMERIC_KINDS):
        bare = raw if numeric else raw[[not isinstance(value, str) and not pd.isna(value) for value in raw]]
        raise BadStamp(
            f"Expected time stamps, or whole numbers, throughout column {column!r}; found numbers such as {bare.iloc[0]} that "
            "are not whole, or are mixed with others. Write ISO 8601 stamps such as 2026-01-31T00:00:00 in every row, or "
            "integers in every row (astype('int64') makes them of whole floats).",
            where=column,
        )
    relative = raw.isin(["now", "today"]).to_numpy()
    if relative.any():
        raise BadStamp(_format_not_iso_message(raw, _first_true_row(relative), column), where=column)
    try:
        return pd.DatetimeIndex(pd.to_datetime(raw, format="ISO8601")), ()
    except (ValueError, TypeError, OverflowError) as error:
        return _parse_mixed_offsets(raw, column, error)


def _parse_mixed_offsets(raw: pd.Series, column: str, error: Exception) -> tuple[pd.DatetimeIndex, tuple[str, ...]]:
    """Stamps that name their offsets, different ones, are moments all the same."""
    try:
        moments = pd.DatetimeIndex(pd.to_datetime(raw, format="ISO8601", utc=True))
    except (ValueError, TypeError, OverflowError):
        raise BadStamp(_format_not_iso_message(raw, _first_unparsable_row(raw), column), where=column) from error
    naive = np.array([not pd.isna(one) and pd.Timestamp(one).tz is None for one in raw])
    if naive.any():
        raise BadStamp(
            f"Expected an offset from UTC in all stamps of column {column!r} or in none; row {_first_true_row(naive)} has none and "
            "others have one. Stamps with and without time zones are mixed: write them all in UTC.",
            where=column,
        ) from error
    return moments, ("stamps of several offsets from UTC were turned to UTC (declare the zone to keep local time)",)


def _first_unparsable_row(raw: pd.Series) -> int:
    for row, value in enumerate(raw):
        try:
            pd.to_datetime([value], format="ISO8601")
        except (ValueError, TypeError, OverflowError):
            return row
    return 0


def _format_not_iso_message(raw: pd.Series, row: int, column: str) -> str:
    numbers = " Or declare a whole number for the frequency, such as 1, if steps are numbered." * _is_integer(
        raw.iloc[row]
    )
    return (
        f"Expected ISO 8601 stamps in column {column!r}; row {row} holds {str(raw.iloc[row])[:60]!r}. "
        f"Write it like 2026-01-31, 2026-01-31T09:00:00 or 2026-01-31T09:00:00Z: the year first, with four digits.{numbers}"
    )


def _to_microseconds(moments: pd.DatetimeIndex, column: str) -> pd.DatetimeIndex:
    try:
        exact = moments.as_unit("us")
    except (pd.errors.OutOfBoundsDatetime, OverflowError) as error:
        raise BadStamp(
            f"Expected years from 1 to {MAX_YEAR} in column {column!r}; some lie far outside. Correct them.",
            where=column,
        ) from error
    ticks = exact.asi8
    room = 0 if exact.tz is None else _DAY_MICROSECONDS  # local time is up to a day from UTC
    outside = (ticks < _MIN_MICROSECONDS + room) | (ticks > _MAX_MICROSECONDS - room)
    if outside.any():
        row = _first_true_row(outside)
        year = int(np.datetime64(int(ticks[row]), "us").astype("datetime64[Y]").astype(np.int64)) + 1970
        raise BadStamp(
            f"Expected years from 1 to {MAX_YEAR} in column {column!r}; row {row} is of the year {year}. Correct it.",
            where=column,
        )
    if moments.unit == "ns":
        finer = np.asarray(moments.asi8 % 1000 != 0)
        if finer.any():
            raise BadStamp(
                f"Expected stamps of whole microseconds in column {column!r}; row {_first_true_row(finer)} is finer. Round it.",
                where=column,
            )
    return exact


def _load_time_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise ZoneUnknown(
            f"No time zone is called {name!r}; expected a name such as 'Europe/Berlin' or 'UTC'. Correct it.",
            where=name,
        ) from error


def _localize(
    naive: pd.DatetimeIndex, zone: ZoneInfo, series_codes: Int[np.ndarray, "row"], column: str
) -> pd.DatetimeIndex:
    """Local times of a zone as moments; days, whose midnight a clock change may skip or repeat, begin when they can."""
    wall: Any = naive
    rows = len(naive)
    if not (naive.asi8 % _DAY_MICROSECONDS).any():
        days: pd.DatetimeIndex = wall.tz_localize(
            zone, ambiguous=np.ones(rows, dtype=bool), nonexistent="shift_forward"
        )
        return days
    early: pd.DatetimeIndex = wall.tz_localize(zone, ambiguous=np.ones(rows, dtype=bool), nonexistent="NaT")
    skipped = np.asarray(early.isna())
    if skipped.any():
        row = _first_true_row(skipped)
        raise BadStamp(
            f"Row {row} of column {column!r} is at {naive[row].isoformat()}, which no clock in {zone.key} showed: it was put "
            "forward over it. Correct the stamp or the zone, or write stamps in UTC.",
            where=column,
        )
    late: pd.DatetimeIndex = wall.tz_localize(zone, ambiguous=np.zeros(rows, dtype=bool), nonexistent="NaT")
    twice = np.flatnonzero(early.asi8 != late.asi8)
    if not len(twice):
        return early
    shown = pd.DataFrame({"series": series_codes[twice], "wall": naive.asi8[twice]}).groupby(["series", "wall"])
    second = np.zeros(rows, dtype=bool)
    second[twice] = shown.cumcount().to_numpy() == 1
    moments = early.where(~second, late)
    unclear = np.zeros(rows, dtype=bool)
    unclear[twice] = shown["wall"].transform("size").to_numpy() != 2
    backwards = np.zeros(rows, dtype=bool)
    backwards[1:] = (np.diff(moments.asi8) <= 0) & (series_codes[1:] == series_codes[:-1])
    unclear |= backwards & np.isin(series_codes, series_codes[twice])
    if unclear.any():
        row = _first_true_row(unclear)
        raise BadStamp(
            f"Row {row} of column {column!r} is at {naive[row].isoformat()}, and clocks in {zone.key} show some hours of that "
            "series twice: rows in order, each such stamp there twice, would tell which is meant. Write stamps in UTC, or "
            "with their offsets.",
            where=column,
        )
    return moments


def _first_true_row(mask: np.ndarray) -> int:
    return int(np.argmax(mask))
