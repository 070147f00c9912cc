"""What a frequency means: how it is read, inferred when certain, and the season people usually see in it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from forecaster.errors import FrequencyUnknown

_DAY = 86_400.0
_WEEK = 7 * _DAY
_CALENDAR_SEASONS = {"B": 5, "W": 52, "MS": 12, "ME": 12, "BMS": 12, "BME": 12, "QS": 4, "QE": 4, "BQS": 4, "BQE": 4}


def offset(freq: str, *, where: str | None = None) -> pd.offsets.BaseOffset:
    """The pandas offset of an alias; raises FrequencyUnknown for anything else, and for steps that do not go forward."""
    try:
        step = pd.tseries.frequencies.to_offset(freq)
    except (ValueError, TypeError) as error:
        raise FrequencyUnknown(
            f"Frequency {freq!r} is not known; expected a pandas offset alias such as 'h', 'D', 'MS', 'QS' or '15min'.",
            where=where,
        ) from error
    if step is None or step.n < 1:
        raise FrequencyUnknown(
            f"Frequency {freq!r} does not step forward; expected one such as 'h' or 'D'.", where=where
        )
    return step


def step_seconds(step: pd.offsets.BaseOffset) -> float | None:
    """Seconds of one step where all steps are equally long (days and weeks too, on naive or UTC stamps), else None."""
    if isinstance(step, pd.offsets.Tick):
        return pd.Timedelta(step).total_seconds()
    if isinstance(step, pd.offsets.Day):
        return step.n * _DAY
    if isinstance(step, pd.offsets.Week) and getattr(step, "weekday", None) is None:
        return step.n * _WEEK
    return None


def usual_season(freq: str) -> int:
    """Steps of the season that data of this frequency usually shows; 1 where there is none.

    A day for steps from a minute to below a day, a week for days, a year for weeks, months and quarters.
    """
    step = offset(freq)
    seconds = step_seconds(step)
    if seconds is None:
        season = _CALENDAR_SEASONS.get(step.rule_code.split("-")[0], 1)
        return season // step.n if season % step.n == 0 else 1
    if seconds < 60:
        return 1
    period = _DAY if seconds < _DAY else _WEEK if seconds < _WEEK else 52 * _WEEK
    return int(period // seconds) if period % seconds == 0 else 1


def certain_frequency(stamps: pd.DatetimeIndex, *, where: str | None = None) -> str:
    """The one frequency that gives exactly these stamps; raises FrequencyUnknown if none does, or more than one.

    Three Wednesdays are seven days apart and nothing else; July, August and September begin 31 days apart *and* a month
    apart, so nobody can tell from them what comes next.
    """
    fitting = [freq for freq in _candidates(stamps) if _fits(stamps, freq)]
    if len(fitting) == 1:
        return fitting[0]
    found = f"{' and '.join(fitting)} all fit" if fitting else "no regular frequency fits"
    raise FrequencyUnknown(
        f"The frequency is not certain from {len(stamps)} stamps: {found}. Declare it (for instance freq='MS').",
        where=where,
    )


def _candidates(stamps: pd.DatetimeIndex) -> list[str]:
    if len(stamps) < 2:
        return []
    clocks = (stamps, stamps.tz_localize(None))  # hours are equal in time, days on the wall
    gaps = [np.unique(np.diff(clock.as_unit("us").asi8)) for clock in clocks]
    ticks = sorted({_tick(int(gap[0])) for gap in gaps if len(gap) == 1 and gap[0] > 0})
    month = stamps[0].strftime("%b").upper()
    return [*ticks, "B", "MS", "ME", f"QS-{month}", f"QE-{month}", f"YS-{month}", f"YE-{month}"]


def _tick(microseconds: int) -> str:
    days, rest = divmod(microseconds, int(_DAY * 1e6))
    step = pd.Timedelta(microseconds, unit="us") if rest else pd.offsets.Day(days)
    return str(pd.tseries.frequencies.to_offset(step).freqstr)


def _fits(stamps: pd.DatetimeIndex, freq: str) -> bool:
    return bool(pd.date_range(stamps[0], periods=len(stamps), freq=freq).equals(stamps))
