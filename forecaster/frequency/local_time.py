"""Local times of time zones: clock changes, and the days that a zone skipped."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from forecaster.shapes import Bool

_ZONE_YEARS = range(1840, 2040)  # of the changes of time zones
_MIN_DATE_CHANGE = timedelta(hours=20)  # larger changes of the offset from UTC skip a day


def has_equal_days(zone: Any) -> bool:
    """Whether all days of a time zone (None: no time zone) have 24 hours."""
    return zone is None or zone.utcoffset(None) is not None


def is_late_midnight(timestamps: pd.DatetimeIndex) -> Bool[np.ndarray, "row"]:
    """Returns whether each timestamp is the first moment of a day whose midnight a clock change skips."""
    if has_equal_days(timestamps.tz):
        return np.zeros(len(timestamps), dtype=bool)
    local: Any = timestamps.tz_localize(None)
    midnights = local.normalize()
    return np.asarray((local != midnights) & is_shifted_forward(timestamps, midnights))


def is_shifted_forward(timestamps: pd.DatetimeIndex, intended: Any) -> Bool[np.ndarray, "row"]:
    """Returns whether each timestamp equals its intended local time, shifted forward if a clock change skips that time."""
    if timestamps.tz is None:
        return np.zeros(len(timestamps), dtype=bool)
    shifted = localize(intended, timestamps.tz)
    return np.asarray(shifted == timestamps)


def to_calendar_time(timestamps: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """Returns local times without a zone, at the time of day of the other rows where a clock change shifts it forward.

    Days whose midnight does not exist are at 00:00 if all other rows are.
    """
    local: Any = timestamps.tz_localize(None)
    if has_equal_days(timestamps.tz) or not len(local):
        return pd.DatetimeIndex(local)
    midnights = local.normalize()
    times_of_day = local - midnights
    is_midnight = (local == midnights) | is_late_midnight(timestamps)
    intended = midnights if is_midnight.all() else midnights + times_of_day[0]
    is_same = is_shifted_forward(timestamps, intended)
    return pd.DatetimeIndex(local.where(~is_same, intended))


def localize(local_timestamps: Any, zone: Any) -> pd.DatetimeIndex:
    """Returns local times in a zone: the first occurrence of a repeated one, the next existing one for a skipped one."""
    skipped = skipped_days(zone)
    if len(skipped):  # pandas shifts within a day only
        days = local_timestamps.normalize()
        local_timestamps = local_timestamps.where(~days.isin(skipped), days + pd.Timedelta(days=1))
    timestamps: pd.DatetimeIndex = local_timestamps.tz_localize(
        zone, ambiguous=np.ones(len(local_timestamps), dtype=bool), nonexistent="shift_forward"
    )
    return timestamps


@lru_cache(maxsize=64)
def skipped_days(zone: Any) -> pd.DatetimeIndex:
    """Returns the days that do not exist in a time zone, such as 2011-12-30 in Pacific/Apia, which crossed the date line."""
    days: list[datetime] = []
    moments = [] if has_equal_days(zone) else [datetime(year, 1, 1, tzinfo=UTC) for year in _ZONE_YEARS]
    for before, after in pairwise(moments):
        if _utc_offset(after, zone) - _utc_offset(before, zone) < _MIN_DATE_CHANGE:
            continue
        while after - before > timedelta(seconds=1):
            middle = before + (after - before) / 2
            is_after = _utc_offset(middle, zone) - _utc_offset(before, zone) >= _MIN_DATE_CHANGE
            before, after = (before, middle) if is_after else (middle, after)
        resumed = (after + _utc_offset(after, zone)).replace(tzinfo=None, microsecond=0)
        days.append(datetime.combine(resumed, time()) - timedelta(days=1))
    return pd.DatetimeIndex(days, dtype="datetime64[us]")


def _utc_offset(moment: datetime, zone: Any) -> timedelta:
    return moment.astimezone(zone).utcoffset() or timedelta()
