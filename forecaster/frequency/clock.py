"""Timestamps compared with the present: how far ahead a step is, and whether its period has ended."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pandas as pd

from forecaster.frequency.local_time import localize
from forecaster.frequency.timestamps import Timestamp, add_steps, parse_frequency


def compute_days_ahead(timestamp: Timestamp, freq: str, now: datetime) -> float | None:
    """Returns by how many days the step before a timestamp begins after `now` (with a time zone); 0 if it does not.

    One step is allowed, because the timestamp of a step may mark its end. A timestamp without a time zone is compared as if
    it were in UTC. None for integers, which no clock knows.
    """
    if isinstance(timestamp, int):
        return None
    wall_time = timestamp.tz_localize(None)
    present = pd.Timestamp(now).tz_convert(timestamp.tz or UTC).tz_localize(None)
    if wall_time <= present:
        return 0.0
    return max(0.0, (add_steps(wall_time, freq, -1) - present) / pd.Timedelta(days=1))  # type: ignore[operator]


def find_period_end(timestamp: Timestamp, freq: str) -> pd.Timestamp | None:
    """Returns when the period that a timestamp marks has ended; None for integers, which no clock knows.

    A period is marked by its begin, and ends where the next one begins. These are marked by their last day: periods of the
    frequencies that pandas names after their end (ME, QE, YE), and weeks that do not begin on a Monday. Working days end with
    the day, business hours after their hours.
    """
    if isinstance(timestamp, int):
        return None
    return _cached_period_end(timestamp, timestamp.tz, timestamp.unit, freq)


@lru_cache(maxsize=4096)
def _cached_period_end(timestamp: pd.Timestamp, _zone: Any, _unit: str, freq: str) -> pd.Timestamp:
    step = parse_frequency(freq)
    if isinstance(step, pd.offsets.BusinessHour):
        return timestamp + pd.Timedelta(hours=step.n)
    is_week = isinstance(step, (pd.offsets.Day, pd.offsets.Week)) and freq.removesuffix("D").isdecimal()
    is_marked_by_last_day = (
        "End" in type(step).__name__
        or isinstance(step, pd.offsets.BusinessDay)
        or (is_week and int(freq[:-1]) % 7 == 0 and timestamp.day_of_week > 0)
    )
    wall_time, zone = timestamp.tz_localize(None), timestamp.tz
    if is_marked_by_last_day:
        return _localize_one(wall_time.normalize() + pd.Timedelta(days=1), zone)
    try:
        end = add_steps(timestamp, freq, 1)
    except ValueError:  # a clock change skips or repeats the local time of the end
        end = _localize_one(add_steps(wall_time, freq, 1), zone)
    assert not isinstance(end, int)
    return end


def _localize_one(wall_time: Any, zone: Any) -> pd.Timestamp:
    timestamp: pd.Timestamp = wall_time if zone is None else localize(pd.DatetimeIndex([wall_time]), zone)[0]
    return timestamp


def is_period_running(timestamp: Timestamp, freq: str, now: datetime) -> bool:
    """Whether the period that a timestamp marks contains `now` (with a time zone).

    A timestamp without a time zone is compared as if it were in UTC. False for integers, and for timestamps more than a step
    after the present, which are wrong or planned.
    """
    end = find_period_end(timestamp, freq)
    if end is None or isinstance(timestamp, int):
        return False
    return end > _to_present(now, has_zone=end.tz is not None) and compute_days_ahead(timestamp, freq, now) == 0


@lru_cache(maxsize=4)
def _to_present(now: datetime, *, has_zone: bool) -> pd.Timestamp:
    present = pd.Timestamp(now)
    return present if has_zone else present.tz_convert(UTC).tz_localize(None)
