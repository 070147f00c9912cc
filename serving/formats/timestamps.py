"""Stamps, as text or as whole numbers: read strictly, written back in the style they came in, and kept on the calendar."""

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
from forecaster.frequency import (
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
# The aliases of pandas that are not deprecated (those warn, or raise, as versions go by) and not below a microsecond.
_FREQ_ALIASES = frozenset("us ms s min h bh cbh D B C W MS ME SMS SME BMS BME CBMS CBME".split())  # noqa: SIM905
_FREQ_ALIASES |= frozenset("QS QE BQS BQE YS YE BYS BYE WOM LWOM".split())  # noqa: SIM905
_UNITS: tuple[Unit, ...] = ("D", "m", "s", "us")
_INFERENCE_STEPS = 64  # stamps that tell a frequency if any number does: leap years and weekends are among them


def _value_kind(value: Any) -> str:
    one = value[0] if isinstance(value, list) and value else value
    return "number" if isinstance(one, int) and not isinstance(one, bool) else "text"


_TimestampText = Annotated[str, Field(max_length=40, examples=["2026-01-31T00:00:00Z"])]
_FreqText = Annotated[str, Field(max_length=32, examples=["h", "D", "MS", "15min", "1"])]
TimestampField = Annotated[
    Annotated[_TimestampText, Tag("text")] | Annotated[int, Tag("number")], Discriminator(_value_kind)
]
FreqField = Annotated[Annotated[_FreqText, Tag("text")] | Annotated[int, Tag("number")], Discriminator(_value_kind)]
TimestampsField = Annotated[
    Annotated[list[_TimestampText], Tag("text")] | Annotated[list[int], Field(min_length=1), Tag("number")],
    Discriminator(_value_kind),
]


class TimestampStyle(NamedTuple):
    """How stamps are written: in the answer as in the request."""

    separator: str  # between day and time
    unit: Unit  # the coarsest that the request wrote: "D", "m" or "s"
    zone: str  # "", "Z", or an offset like "+02:00"

    def format(self, timestamps: Timestamps) -> list[str]:
        """The stamps as text, in finer units than the request's only where something would be lost."""
        moments = cast("pd.DatetimeIndex", timestamps)
        wall: Any = moments if moments.tz in (None, UTC) else moments.tz_localize(None)
        local: Any = np.asarray(wall, dtype="datetime64[us]")  # of UTC, where there is a zone
        finer = _UNITS[_UNITS.index(self.unit) :]
        unit = next(unit for unit in finer if bool((local.astype(f"datetime64[{unit}]") == local).all()))
        zone = "" if unit == "D" else self.zone
        return [text.replace("T", self.separator) + zone for text in np.datetime_as_string(local, unit=unit).tolist()]


class IntegerStyle:
    """Numbers are written as numbers."""

    def format(self, timestamps: Timestamps) -> list[int]:
        """The stamps as integers."""
        return cast("list[int]", timestamps.tolist())


class ParsedTimestamps(NamedTuple):
    """Stamps that were read, and how they were written."""

    timestamps: Timestamps
    style: TimestampStyle | IntegerStyle


def parse_timestamps(values: Sequence[str | int], *, where: str) -> ParsedTimestamps:
    """Reads ISO 8601 stamps, or whole numbers; raises BadStamp with the first that is not one.

    Args:
        written: At least one. Text has offsets from UTC in all of them or in none; where the offsets differ (summer time), the
            last one is the answer's.
        where: The id of the series.
    """
    if isinstance(values[0], int):
        return _parse_integers(cast("Sequence[int]", values), where=where)
    return _parse_texts(cast("Sequence[str]", values), where=where)


def parse_single_timestamp(value: str | int, *, where: str) -> tuple[Timestamp, TimestampStyle | IntegerStyle]:
    """Reads a single stamp, as `parse_timestamps` does, at a thirtieth of its cost."""
    if isinstance(value, int):
        numbers = _parse_integers([value], where=where)
        return timestamp_at(numbers.timestamps, 0), numbers.style
    moment = _parse_datetime(value, 0, where=where)
    try:
        return pd.Timestamp(moment), _detect_style(value)
    except (ValueError, OverflowError) as error:
        raise _timestamp_out_of_range(where) from error


def _parse_integers(numbers: Sequence[int], *, where: str) -> ParsedTimestamps:
    for place, number in enumerate(numbers):
        if abs(number) > MAX_INTEGER_TIMESTAMP:
            raise BadStamp(
                f"Expected whole numbers from -{MAX_INTEGER_TIMESTAMP} to {MAX_INTEGER_TIMESTAMP}; series {where!r} has {number} at place {place}. "
                "Correct it, or count from nearer.",
                where=where,
            )
    return ParsedTimestamps(pd.Index(np.array(numbers, dtype=np.int64)), IntegerStyle())


def _parse_texts(texts: Sequence[str], *, where: str) -> ParsedTimestamps:
    moments = [_parse_datetime(text, place, where=where) for place, text in enumerate(texts)]
    if len({moment.tzinfo is None for moment in moments}) > 1:
        raise BadStamp(
            f"Expected an offset from UTC in all stamps or in none; series {where!r} mixes them. Write all in UTC.",
            where=where,
        )
    zone = moments[-1].tzinfo
    try:
        index = pd.DatetimeIndex(moments) if zone is None else pd.to_datetime(moments, utc=True).tz_convert(zone)
    except (ValueError, OverflowError) as error:
        raise _timestamp_out_of_range(where) from error
    return ParsedTimestamps(index, _detect_style(texts[-1]))


def parse_step(freq: str | int, *, where: str) -> Offset:
    """The step of a declared frequency; raises FrequencyUnknown."""
    name = str(freq)
    match = _FREQ_PATTERN.fullmatch(name)
    if not is_integer_frequency(name) and (match is None or match["name"] not in _FREQ_ALIASES):
        raise FrequencyUnknown(
            f"Frequency {name[:40]!r} of series {where!r} is not known; expected a pandas offset alias such as "
            "'h', 'D', 'W-MON', 'MS', 'QS' or '15min', or a whole number where steps are numbered.",
            where=where,
        )
    return parse_frequency(name, where=where)


def normalize_frequency(freq: str | int, start: Timestamp, *, where: str) -> str:
    """The declared frequency by its usual name; raises FrequencyUnknown, and BadStamp if `start` cannot step by it."""
    name = format_frequency(parse_step(freq, where=where))
    validate_timestamp_kind(start, name, owner=f"series {where!r}", where=where)
    return name


def resolve_frequency(timestamps: Timestamps, *, declared: str | int | None, model_freq: str, where: str) -> str:
    """The frequency that gives exactly these stamps: the declared one, or the only one that can be.

    One frequency has several names (QS-JAN and QS-OCT, 24h and D): where nothing was declared and `model_freq` gives the
    same stamps as what was inferred, it is called `model_freq`.

    Raises DuplicateStamp and IrregularStamps with the first stamp that does not follow, FrequencyUnknown if nothing is
    certain, BadStamp if numbers were declared to step on the calendar, or moments by a number.
    """
    gaps = np.diff(timestamps_to_int64(timestamps))
    if (gaps <= 0).any():
        place = int(np.argmax(gaps <= 0))
        found, following = (
            format_timestamp(timestamp_at(timestamps, place)),
            format_timestamp(timestamp_at(timestamps, place + 1)),
        )
        if gaps[place] == 0:
            raise DuplicateStamp(
                f"Expected one value a stamp; series {where!r} has {found} twice. Keep one.", where=where
            )
        raise IrregularStamps(
            f"Expected stamps in order; series {where!r} goes back from {found} to {following}. Sort the series.",
            where=where,
        )
    start, steps = timestamp_at(timestamps, 0), len(timestamps)
    try:
        if declared is not None:
            freq = normalize_frequency(declared, start, where=where)
        else:
            freq = infer_series_frequency(timestamps[:_INFERENCE_STEPS], unique_id=where)
        expected = build_unchecked_timestamps(start, freq=freq, steps=steps)
        comparable = declared is None and is_integer_frequency(model_freq) == is_integer_frequency(freq)
        if comparable and build_unchecked_timestamps(start, freq=model_freq, steps=steps).equals(expected):
            freq = model_freq
    except (pd.errors.OutOfBoundsDatetime, OverflowError) as error:
        raise _range_out_of_bounds(start, where) from error
    if not expected.equals(timestamps):
        place = int(np.argmax(np.asarray(expected != timestamps)))
        raise IrregularStamps(
            f"Expected stamps one {freq!r} apart; series {where!r} has {format_timestamp(timestamp_at(timestamps, place))} at place {place} "
            f"instead of {format_timestamp(timestamp_at(expected, place))}. Send null where nothing was observed, or fix the frequency.",
            where=where,
        )
    return freq


def validate_range(start: Timestamp, step: Offset, steps: int, *, where: str) -> None:
    """Raises IrregularStamps if `start` is not on the step's grid, BadStamp if `steps` steps go too far for a stamp.

    Arithmetic only: nothing as long as `steps` is built.
    """
    if isinstance(start, int) or isinstance(step, int):
        assert isinstance(start, int), "the kinds were checked"
        assert isinstance(step, int), "the kinds were checked"
        if start + step * (steps - 1) > MAX_INTEGER_TIMESTAMP:
            raise _range_out_of_bounds(start, where)
        return
    try:
        on_grid, end = step.is_on_offset(start), start + step * steps
    except (ValueError, OverflowError) as error:  # OutOfBoundsDatetime is a ValueError
        raise _range_out_of_bounds(start, where) from error
    if end.year > 9999 - 1:  # a year's room for the offset from UTC and the grid's rounding
        raise _range_out_of_bounds(start, where)
    if not on_grid:
        raise IrregularStamps(
            f"Expected a start on the grid of {step.freqstr!r}; series {where!r} starts at {start.isoformat()}, the "
            f"next stamp of that grid is {(start + step).isoformat()}. Send the stamp of the first value.",
            where=where,
        )


def _parse_datetime(text: str, index: int, *, where: str) -> datetime:
    moment = _parse_iso_datetime(text)
    if moment is None:
        raise BadStamp(
            f"Expected ISO 8601 stamps; series {where!r} has {text[:40]!r} at place {index}. "
            "Write it like 2026-01-31, 2026-01-31T09:00:00 or 2026-01-31T09:00:00Z; the number of a step without quotes.",
            where=where,
        )
    return moment


def _parse_iso_datetime(text: str) -> datetime | None:
    if _TIMESTAMP_PATTERN.fullmatch(text) is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # a thirteenth month, an hour 25, the year 0
        return None


def _detect_style(text: str) -> TimestampStyle:
    match = _TIMESTAMP_PATTERN.fullmatch(text)
    assert match is not None, "it was read"
    unit: Unit = "D" if match["separator"] is None else "m" if match["second"] is None else "s"
    return TimestampStyle(match["separator"] or "T", unit, match["zone"] or "")


def _timestamp_out_of_range(where: str) -> BadStamp:
    return BadStamp(f"A stamp of series {where!r} is too far from our time. Correct it.", where=where)


def _range_out_of_bounds(start: Timestamp, where: str) -> BadStamp:
    return BadStamp(
        f"The stamps of series {where!r} would pass {describe_upper_limit(start)}. Correct the start or the frequency.",
        where=where,
    )
