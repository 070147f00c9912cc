"""Stamps, as text or as whole numbers: read strictly, written back in the style they came in, and kept on the calendar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
from pydantic import Discriminator, Field, Tag

from forecaster.data.frames.panel import infer
from forecaster.errors import BadStamp, DuplicateStamp, FrequencyUnknown, IrregularStamps
from forecaster.frequency import (
    LAST_NUMBER,
    Stamp,
    Stamps,
    Step,
    alias,
    at,
    check_kind,
    counts,
    is_numbered,
    ladder,
    last,
    offset,
    tell,
)

Unit = Literal["D", "m", "s", "us"]

_STAMP = re.compile(
    r"\d{4}-\d\d-\d\d(?:(?P<separator>[T ])\d\d:\d\d(?P<second>:\d\d(?:\.\d{1,6})?)?(?P<zone>Z|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)
_FREQ = re.compile(r"\d{0,6}(?P<name>[A-Za-z]+)(?:-[A-Z0-9]{1,5})?", re.ASCII)
# The aliases of pandas that are not deprecated (those warn, or raise, as versions go by) and not below a microsecond.
_NAMES = frozenset("us ms s min h bh cbh D B C W MS ME SMS SME BMS BME CBMS CBME".split())  # noqa: SIM905
_NAMES |= frozenset("QS QE BQS BQE YS YE BYS BYE WOM LWOM".split())  # noqa: SIM905
_UNITS: tuple[Unit, ...] = ("D", "m", "s", "us")
_ENOUGH = 64  # stamps that tell a frequency if any number does: leap years and weekends are among them


def _kind(value: Any) -> str:
    one = value[0] if isinstance(value, list) and value else value
    return "number" if isinstance(one, int) and not isinstance(one, bool) else "text"


_StampText = Annotated[str, Field(max_length=40, examples=["2026-01-31T00:00:00Z"])]
_FreqText = Annotated[str, Field(max_length=32, examples=["h", "D", "MS", "15min", "1"])]
AskedStamp = Annotated[Annotated[_StampText, Tag("text")] | Annotated[int, Tag("number")], Discriminator(_kind)]
AskedFreq = Annotated[Annotated[_FreqText, Tag("text")] | Annotated[int, Tag("number")], Discriminator(_kind)]
AskedStamps = Annotated[
    Annotated[list[_StampText], Tag("text")] | Annotated[list[int], Field(min_length=1), Tag("number")],
    Discriminator(_kind),
]


class Style(NamedTuple):
    """How stamps are written: in the answer as in the request."""

    separator: str  # between day and time
    unit: Unit  # the coarsest that the request wrote: "D", "m" or "s"
    zone: str  # "", "Z", or an offset like "+02:00"

    def write(self, stamps: Stamps) -> list[str]:
        """The stamps as text, in finer units than the request's only where something would be lost."""
        moments = cast("pd.DatetimeIndex", stamps)
        wall: Any = moments if moments.tz in (None, UTC) else moments.tz_localize(None)
        local: Any = np.asarray(wall, dtype="datetime64[us]")  # of UTC, where there is a zone
        finer = _UNITS[_UNITS.index(self.unit) :]
        unit = next(unit for unit in finer if bool((local.astype(f"datetime64[{unit}]") == local).all()))
        zone = "" if unit == "D" else self.zone
        return [text.replace("T", self.separator) + zone for text in np.datetime_as_string(local, unit=unit).tolist()]


class Numbers:
    """Numbers are written as numbers."""

    def write(self, stamps: Stamps) -> list[int]:
        """The stamps as integers."""
        return cast("list[int]", stamps.tolist())


class Read(NamedTuple):
    """Stamps that were read, and how they were written."""

    stamps: Stamps
    style: Style | Numbers


def read(written: Sequence[str | int], *, where: str) -> Read:
    """Reads ISO 8601 stamps, or whole numbers; raises BadStamp with the first that is not one.

    Args:
        written: At least one. Text has offsets from UTC in all of them or in none; where the offsets differ (summer time), the
            last one is the answer's.
        where: The id of the series.
    """
    if isinstance(written[0], int):
        return _read_numbers(cast("Sequence[int]", written), where=where)
    return _read_texts(cast("Sequence[str]", written), where=where)


def read_one(written: str | int, *, where: str) -> tuple[Stamp, Style | Numbers]:
    """Reads a single stamp, as `read` does, at a thirtieth of its cost."""
    if isinstance(written, int):
        numbers = _read_numbers([written], where=where)
        return at(numbers.stamps, 0), numbers.style
    moment = _read_moment(written, 0, where=where)
    try:
        return pd.Timestamp(moment), _style(written)
    except (ValueError, OverflowError) as error:
        raise _beyond(where) from error


def _read_numbers(numbers: Sequence[int], *, where: str) -> Read:
    for place, number in enumerate(numbers):
        if abs(number) > LAST_NUMBER:
            raise BadStamp(
                f"Expected whole numbers from -{LAST_NUMBER} to {LAST_NUMBER}; series {where!r} has {number} at place {place}. "
                "Correct it, or count from nearer.",
                where=where,
            )
    return Read(pd.Index(np.array(numbers, dtype=np.int64)), Numbers())


def _read_texts(texts: Sequence[str], *, where: str) -> Read:
    moments = [_read_moment(text, place, where=where) for place, text in enumerate(texts)]
    if len({moment.tzinfo is None for moment in moments}) > 1:
        raise BadStamp(
            f"Expected an offset from UTC in all stamps or in none; series {where!r} mixes them. Write all in UTC.",
            where=where,
        )
    zone = moments[-1].tzinfo
    try:
        index = pd.DatetimeIndex(moments) if zone is None else pd.to_datetime(moments, utc=True).tz_convert(zone)
    except (ValueError, OverflowError) as error:
        raise _beyond(where) from error
    return Read(index, _style(texts[-1]))


def step_of(freq: str | int, *, where: str) -> Step:
    """The step of a declared frequency; raises FrequencyUnknown."""
    name = str(freq)
    match = _FREQ.fullmatch(name)
    if not is_numbered(name) and (match is None or match["name"] not in _NAMES):
        raise FrequencyUnknown(
            f"Frequency {name[:40]!r} of series {where!r} is not known; expected a pandas offset alias such as "
            "'h', 'D', 'W-MON', 'MS', 'QS' or '15min', or a whole number where steps are numbered.",
            where=where,
        )
    return offset(name, where=where)


def declared_frequency(freq: str | int, start: Stamp, *, where: str) -> str:
    """The declared frequency by its usual name; raises FrequencyUnknown, and BadStamp if `start` cannot step by it."""
    name = alias(step_of(freq, where=where))
    check_kind(start, name, of=f"series {where!r}", where=where)
    return name


def frequency(stamps: Stamps, *, declared: str | int | None, served: str, where: str) -> str:
    """The frequency that gives exactly these stamps: the declared one, or the only one that can be.

    One frequency has several names (QS-JAN and QS-OCT, 24h and D): where nothing was declared and `served` gives the
    same stamps as what was inferred, it is called `served`.

    Raises DuplicateStamp and IrregularStamps with the first stamp that does not follow, FrequencyUnknown if nothing is
    certain, BadStamp if numbers were declared to step on the calendar, or moments by a number.
    """
    gaps = np.diff(counts(stamps))
    if (gaps <= 0).any():
        place = int(np.argmax(gaps <= 0))
        found, following = tell(at(stamps, place)), tell(at(stamps, place + 1))
        if gaps[place] == 0:
            raise DuplicateStamp(
                f"Expected one value a stamp; series {where!r} has {found} twice. Keep one.", where=where
            )
        raise IrregularStamps(
            f"Expected stamps in order; series {where!r} goes back from {found} to {following}. Sort the series.",
            where=where,
        )
    start, steps = at(stamps, 0), len(stamps)
    try:
        if declared is not None:
            freq = declared_frequency(declared, start, where=where)
        else:
            freq = infer(stamps[:_ENOUGH], unique_id=where)
        expected = ladder(start, freq=freq, steps=steps)
        comparable = declared is None and is_numbered(served) == is_numbered(freq)
        if comparable and ladder(start, freq=served, steps=steps).equals(expected):
            freq = served
    except (pd.errors.OutOfBoundsDatetime, OverflowError) as error:
        raise _too_far(start, where) from error
    if not expected.equals(stamps):
        place = int(np.argmax(np.asarray(expected != stamps)))
        raise IrregularStamps(
            f"Expected stamps one {freq!r} apart; series {where!r} has {tell(at(stamps, place))} at place {place} "
            f"instead of {tell(at(expected, place))}. Send null where nothing was observed, or fix the frequency.",
            where=where,
        )
    return freq


def check_room(start: Stamp, step: Step, steps: int, *, where: str) -> None:
    """Raises IrregularStamps if `start` is not on the step's grid, BadStamp if `steps` steps go too far for a stamp.

    Arithmetic only: nothing as long as `steps` is built.
    """
    if isinstance(start, int) or isinstance(step, int):
        assert isinstance(start, int), "the kinds were checked"
        assert isinstance(step, int), "the kinds were checked"
        if start + step * (steps - 1) > LAST_NUMBER:
            raise _too_far(start, where)
        return
    try:
        on_grid, end = step.is_on_offset(start), start + step * steps
    except (ValueError, OverflowError) as error:  # OutOfBoundsDatetime is a ValueError
        raise _too_far(start, where) from error
    if end.year > 9999 - 1:  # a year's room for the offset from UTC and the grid's rounding
        raise _too_far(start, where)
    if not on_grid:
        raise IrregularStamps(
            f"Expected a start on the grid of {step.freqstr!r}; series {where!r} starts at {start.isoformat()}, the "
            f"next stamp of that grid is {(start + step).isoformat()}. Send the stamp of the first value.",
            where=where,
        )


def _read_moment(text: str, place: int, *, where: str) -> datetime:
    moment = _moment(text)
    if moment is None:
        raise BadStamp(
            f"Expected ISO 8601 stamps; series {where!r} has {text[:40]!r} at place {place}. "
            "Write it like 2026-01-31, 2026-01-31T09:00:00 or 2026-01-31T09:00:00Z; the number of a step without quotes.",
            where=where,
        )
    return moment


def _moment(text: str) -> datetime | None:
    if _STAMP.fullmatch(text) is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:  # a thirteenth month, an hour 25, the year 0
        return None


def _style(text: str) -> Style:
    match = _STAMP.fullmatch(text)
    assert match is not None, "it was read"
    unit: Unit = "D" if match["separator"] is None else "m" if match["second"] is None else "s"
    return Style(match["separator"] or "T", unit, match["zone"] or "")


def _beyond(where: str) -> BadStamp:
    return BadStamp(f"A stamp of series {where!r} is too far from our time. Correct it.", where=where)


def _too_far(start: Stamp, where: str) -> BadStamp:
    return BadStamp(
        f"The stamps of series {where!r} would pass {last(start)}. Correct the start or the frequency.", where=where
    )
