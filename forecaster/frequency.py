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
    Stamps = pd.Index[Any]
else:
    Stamps = pd.Index
"""A DatetimeIndex of moments, or an index of whole numbers."""

Stamp = pd.Timestamp | int
Step = pd.offsets.BaseOffset | int

LAST_YEAR = 9999  # Python's calendar ends there
LAST_NUMBER = 2**62 - 1  # so that the machine's integers hold the difference of any two
_KEPT_STEPS = 4096  # of a history whose stamps are kept for the next series
_WHOLE = re.compile(r"-?(?:0|[1-9]\d{0,17})", re.ASCII)


@lru_cache(maxsize=256)
def is_numbered(freq: str) -> bool:
    """Whether a frequency is a whole number: its stamps are then numbers too, and have no calendar."""
    return _WHOLE.fullmatch(freq) is not None


def offset(freq: str, *, where: str | None = None) -> Step:
    """The step of a frequency: a pandas offset, or a whole number.

    Raises FrequencyUnknown for anything else, and for steps that do not go forward or are finer than the microseconds of
    a stamp.
    """
    try:
        step: Step | None = int(freq) if is_numbered(freq) else _parse(freq)
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


def named(freq: str | int, *, where: str) -> str:
    """The name of a declared frequency (a pandas offset is taken too); raises FrequencyUnknown."""
    name = str(getattr(freq, "freqstr", freq))
    offset(name, where=where)
    return name


def alias(step: Step) -> str:
    """The frequency of a step."""
    return str(step) if isinstance(step, int) else str(step.freqstr)


def check_kind(stamp: Stamp, freq: str, *, of: str, where: str) -> None:
    """Raises BadStamp where a number is to step on the calendar, or a moment by a whole number.

    Args:
        stamp: One of them.
        freq: How they step.
        of: Whose they are, for the message: "series 'a'".
        where: The same, for machines.
    """
    if isinstance(stamp, int) == is_numbered(freq):
        return
    expected, found, advice = (
        ("time stamps", "the whole number ", "Write stamps such as 2026-01-31, or declare a whole number such as 1")
        if isinstance(stamp, int)
        else ("whole numbers as stamps", "", "Number the steps, or declare a frequency of the calendar such as D")
    )
    raise BadStamp(
        f"Expected {expected}, since the frequency is {freq!r}; {of} has {found}{tell(stamp)}. {advice}.", where=where
    )


def regular(start: Stamp, *, freq: str, steps: int) -> Stamps:
    """`steps` stamps from `start` on: hours follow the sun, days and longer steps the clock on the wall.

    Where a clock change leaves no such local time, the next that there is; where it leaves two, the first.

    Raises BadStamp if the last would come after the year 9999, or the last number.
    """
    if isinstance(start, int) or steps > _KEPT_STEPS:
        return _regular(start, freq, steps)
    return _kept_regular(start, start.tz, start.unit, freq, steps)


@lru_cache(maxsize=256)
def _kept_regular(start: pd.Timestamp, _zone: Any, _unit: str, freq: str, steps: int) -> Stamps:
    """Series of a panel often begin and end together. Moments of two zones, or of two units, may be equal."""
    return _regular(start, freq, steps)


def _regular(start: Stamp, freq: str, steps: int) -> Stamps:
    fault: Exception | None = None
    try:
        stamps = ladder(start, freq=freq, steps=steps)
        if not steps or isinstance(start, int) or stamps[-1].year <= LAST_YEAR:
            return stamps
    except (pd.errors.OutOfBoundsDatetime, OverflowError, NotImplementedError) as error:
        fault = error
    raise BadStamp(
        f"Expected stamps up to {last(start)}; {steps} steps of {freq!r} from {tell(start)} pass it. "
        "Correct the stamps or the frequency, or ask for fewer steps.",
        where=tell(start),
    ) from fault


def ladder(start: Stamp, *, freq: str, steps: int) -> Stamps:
    """As `regular`, but what leaves the calendar raises what pandas raises, or OverflowError, or goes on after it."""
    if isinstance(start, int):
        size = after(0, freq, 1)
        assert isinstance(size, int)
        if max(abs(start), abs(start + max(steps - 1, 0) * size)) > LAST_NUMBER:
            raise OverflowError(start)
        return pd.RangeIndex(start, start + steps * size, size)
    try:
        return pd.date_range(start, periods=steps, freq=freq)
    except ValueError as error:
        if start.tz is None or isinstance(error, pd.errors.OutOfBoundsDatetime):
            raise
    wall: Any = pd.date_range(start.tz_localize(None), periods=steps, freq=freq)
    stamps: Stamps = wall.tz_localize(start.tz, ambiguous=np.ones(steps, dtype=bool), nonexistent="shift_forward")
    return stamps


def after(start: Stamp, freq: str, steps: int) -> Stamp:
    """The stamp so many steps after another; raises ValueError where a clock change left no such local time, or two."""
    return (
        _after(start, freq, steps) if isinstance(start, int) else _kept_after(start, start.tz, start.unit, freq, steps)
    )


@lru_cache(maxsize=4096)
def _kept_after(start: pd.Timestamp, _zone: Any, _unit: str, freq: str, steps: int) -> Stamp:
    return _after(start, freq, steps)


def _after(start: Stamp, freq: str, steps: int) -> Stamp:
    moved: Any = start
    found: Stamp = moved + steps * offset(freq)
    return found


def origin(freq: str) -> Stamp:
    """Where made-up histories begin."""
    return 0 if is_numbered(freq) else pd.Timestamp("2001-01-01")


def last(stamp: Stamp) -> str:
    """What no stamp of this kind may pass, in words."""
    return f"{LAST_NUMBER}" if isinstance(stamp, int) else f"the year {LAST_YEAR}"


def earlier(one: Stamp, other: Stamp) -> bool:
    """Whether a stamp is certainly before another: a number and a moment, or moments of which one has no zone, cannot tell."""
    if isinstance(one, int) or isinstance(other, int):
        return isinstance(one, int) and isinstance(other, int) and one < other
    return (one.tz is None) == (other.tz is None) and one < other


def tell(stamp: Stamp) -> str:
    """A stamp as text, for messages and files: ISO 8601, or digits."""
    return str(stamp) if isinstance(stamp, int) else stamp.isoformat()


def untell(text: str, *, freq: str) -> Stamp:
    """The stamp that `tell` wrote; raises ValueError for other text."""
    return int(text) if is_numbered(freq) else pd.Timestamp(text)


def at(stamps: Stamps, place: int) -> Stamp:
    """One of the stamps, a number as an int of Python."""
    found: Stamp = stamps[place]
    return found if isinstance(found, pd.Timestamp) else int(found)


def counts(stamps: Stamps) -> Int[np.ndarray, "row"]:
    """What stamps are counted by: their microseconds (or whatever the unit of the index is), or the numbers themselves."""
    return np.asarray(stamps.astype("int64"))


@lru_cache(maxsize=256)
def _parse(freq: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return pd.tseries.frequencies.to_offset(freq)
