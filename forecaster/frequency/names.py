"""Canonical names of frequencies, and whether two frequencies give the same timestamps.

A grid has many names: QS-JAN and QS-APR, 7D and W-SUN, 3MS and QS-APR, 60min and h. Frequencies are therefore compared by the
timestamps that they give, never by name, and a panel carries the canonical name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from forecaster.frequency.business_days import CustomBusinessDays, describe_custom_offset, parse_custom_business_days
from forecaster.frequency.local_time import has_equal_days
from forecaster.frequency.timestamps import (
    Timestamp,
    Timestamps,
    format_frequency,
    is_integer_frequency,
    parse_frequency,
)

_MONTH_OFFSETS: dict[str, dict[str, int]] = {  # by unit: the months of one step of each offset
    "MS": {"MonthBegin": 1, "QuarterBegin": 3, "HalfYearBegin": 6, "YearBegin": 12},
    "ME": {"MonthEnd": 1, "QuarterEnd": 3, "HalfYearEnd": 6, "YearEnd": 12},
    "BMS": {"BusinessMonthBegin": 1, "BQuarterBegin": 3, "BHalfYearBegin": 6, "BYearBegin": 12},
    "BME": {"BusinessMonthEnd": 1, "BQuarterEnd": 3, "BHalfYearEnd": 6, "BYearEnd": 12},
}
_UNIT_AND_MONTHS = {
    getattr(pd.offsets, name): (unit, months)
    for unit, offsets in _MONTH_OFFSETS.items()
    for name, months in offsets.items()
    if hasattr(pd.offsets, name)  # half years are new in pandas 3.1
}
_TICKS = {"h": 3_600_000_000, "min": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1}  # in microseconds
_DAY_MICROSECONDS = 86_400_000_000
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MONDAY_TO_FRIDAY = "1111100"


@dataclass(frozen=True)
class _Period:
    """The distance of neighbouring timestamps. Frequencies with equal periods give the same timestamps from a common start."""

    unit: str
    count: int


def are_same_grid(first: str, second: str, timestamps: Iterable[Timestamp], *, where: str | None = None) -> bool:
    """Whether two frequencies continue each of these timestamps in the same way.

    Raises FrequencyUnknown, with `where`, if the first of two different names is invalid.
    """
    if first == second:
        return True
    parse_frequency(first, where=where)
    return all(
        is_integer_frequency(first) == is_integer_frequency(second) == isinstance(timestamp, int)
        and _find_period(first, _days_are_equal(timestamp)) == _find_period(second, _days_are_equal(timestamp))
        and _is_on_grid(timestamp, first)
        and _is_on_grid(timestamp, second)
        for timestamp in timestamps
    )


def have_equal_periods(first: str, second: str, timestamp: Timestamp) -> bool:
    """Whether two frequencies have equally long steps in the zone of a timestamp, whose position is not compared."""
    equal_days = _days_are_equal(timestamp)
    return first == second or _find_period(first, equal_days) == _find_period(second, equal_days)


def canonical_frequency(freq: str, starts: Timestamps | None = None) -> str:
    """Returns the canonical name of a frequency; raises FrequencyUnknown for an invalid frequency.

    Args:
        freq: Any name of the frequency.
        starts: Timestamps on its grid: the name of a multiple of a month depends on them, since 3MS from April is QS-JAN and
            from February QS-FEB. It is 3MS if they differ in this, or if there are none.
    """
    equal_days = has_equal_days(starts.tz) if isinstance(starts, pd.DatetimeIndex) else False
    period = _find_period(freq, equal_days)
    unit, count = period.unit, period.count
    if unit == "microsecond":
        unit = next(name for name, size in _TICKS.items() if count % size == 0)
        count //= _TICKS[unit]
    if unit in _MONTH_OFFSETS:
        months = np.asarray(starts.month) if isinstance(starts, pd.DatetimeIndex) else _anchor_months(freq)
        return name_months(unit, count, months)
    return f"{count}" if not unit else _multiply(unit, count)


def name_months(unit: str, count: int, months: Any) -> str:
    """Returns the canonical name of a multiple of MS, ME, BMS or BME, given the months (1 to 12) of some of its timestamps."""
    phases = np.unique((np.asarray(months) - 1) % 12)
    prefix, edge = unit[:-2], unit[-1]  # B or nothing; S for starts and E for ends
    if count == 3 and len(np.unique(phases % 3)) == 1:
        phase = int(phases[0]) % 3
        return f"{prefix}Q{edge}-{_MONTHS[phase if edge == 'S' else phase + 9]}"
    if count % 12 == 0 and len(phases) == 1:
        return f"{'' if count == 12 else count // 12}{prefix}Y{edge}-{_MONTHS[int(phases[0])]}"
    return _multiply(unit, count)


def _multiply(unit: str, count: int) -> str:
    return unit if count == 1 else f"{count}{unit}"


def _anchor_months(freq: str) -> list[int]:
    """Returns the month of a quarter's or year's name, such as 4 for QS-APR and YS-APR; none for multiples of quarters."""
    step: Any = parse_frequency(freq)
    month = getattr(step, "startingMonth", None) if step.n == 1 else None
    return [month] if month is not None else [step.month] if hasattr(step, "month") else []


def _days_are_equal(timestamp: Timestamp) -> bool:
    return isinstance(timestamp, int) or has_equal_days(timestamp.tz)


def _is_on_grid(timestamp: Timestamp, freq: str) -> bool:
    step = parse_frequency(freq)
    return isinstance(step, int) or isinstance(timestamp, int) or bool(step.is_on_offset(timestamp))


@lru_cache(maxsize=1024)
def _find_period(freq: str, equal_days: bool) -> _Period:
    """Returns the distance of neighbouring timestamps; `equal_days`: all days have 24 hours, so that 24h is a day."""
    step: Any = parse_frequency(freq)
    if isinstance(step, int):
        return _Period("", step)
    if isinstance(step, pd.offsets.Tick):
        microseconds = pd.Timedelta(step) // pd.Timedelta(microseconds=1)
        days, rest = divmod(microseconds, _DAY_MICROSECONDS)
        return _Period("D", days) if equal_days and not rest else _Period("microsecond", microseconds)
    if type(step) in _UNIT_AND_MONTHS:
        unit, months = _UNIT_AND_MONTHS[type(step)]
        return _Period(unit, months * step.n)
    if isinstance(step, pd.offsets.Week):
        return _Period("D", 7 * step.n)
    custom = _describe_working_days(freq, step)
    if custom is None:
        return _Period(format_frequency(step.base), step.n)
    working_days = custom.weekmask.count("1")
    if not custom.location and not custom.dates:
        if custom.count % working_days == 0:
            return _Period("D", custom.count // working_days * 7 if working_days < 7 else custom.count)
        if custom.weekmask == _MONDAY_TO_FRIDAY:
            return _Period("B", custom.count)
    return _Period(replace(custom, count=1).name, custom.count)


def _describe_working_days(freq: str, step: pd.offsets.BaseOffset) -> CustomBusinessDays | None:
    if isinstance(step, pd.offsets.CustomBusinessDay):
        return parse_custom_business_days(freq) or describe_custom_offset(step)
    return CustomBusinessDays(step.n, _MONDAY_TO_FRIDAY) if type(step) is pd.offsets.BusinessDay else None
