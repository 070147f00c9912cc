"""Calendar knowledge: the inference of frequencies, their default season and horizon, and calendar features of timestamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import BadSpec, BadStamp, FrequencyUnknown, MissingPackage
from forecaster.frequency.local_time import skipped_days, to_calendar_time
from forecaster.frequency.names import canonical_frequency, name_months
from forecaster.frequency.timestamps import (
    Offset,
    Timestamps,
    build_timestamps,
    is_integer_frequency,
    parse_frequency,
    timestamp_at,
    timestamps_to_int64,
)
from forecaster.shapes import Float64

_DAY_SECONDS = 86_400.0
_MIN_ROWS_OF_WORKING_DAYS = 14  # that show which weekdays have rows
_WEEK_SECONDS = 7 * _DAY_SECONDS
_CALENDAR_SEASONS = {"B": 5, "W": 52, "MS": 12, "ME": 12, "BMS": 12, "BME": 12, "QS": 4, "QE": 4, "BQS": 4, "BQE": 4}


def step_seconds(step: Offset) -> float | None:
    """Returns the seconds of a step if all steps are equally long (days and weeks too, as in naive or UTC time), else None."""
    if isinstance(step, pd.offsets.Tick):
        return pd.Timedelta(step).total_seconds()
    if isinstance(step, pd.offsets.Day):
        return step.n * _DAY_SECONDS
    if isinstance(step, pd.offsets.Week) and getattr(step, "weekday", None) is None:
        return step.n * _WEEK_SECONDS
    return None


def default_season(freq: str) -> int:
    """Returns the usual season of this frequency in steps; 1 if there is none, and for integer frequencies.

    It is a day for steps from a minute to below a day, a week for days and working days, and a year for weeks, months and
    quarters.
    """
    step = parse_frequency(freq)
    if isinstance(step, int):
        return 1
    seconds = step_seconds(step)
    if isinstance(step, pd.offsets.CustomBusinessDay):
        season = int(np.sum(step.calendar.weekmask))
        return season // step.n if season % step.n == 0 else 1
    if seconds is None:
        season = _CALENDAR_SEASONS.get(step.rule_code.split("-")[0], 1)
        return season // step.n if season % step.n == 0 else 1
    if seconds < 60:
        return 1
    period = (
        _DAY_SECONDS if seconds < _DAY_SECONDS else _WEEK_SECONDS if seconds < _WEEK_SECONDS else 52 * _WEEK_SECONDS
    )
    return int(period // seconds) if period % seconds == 0 else 1


def default_horizon(freq: str) -> int:
    """Returns the usual horizon of this frequency in steps.

    It is a day for steps shorter than a day, else the horizon of the M4 competition (Makridakis, Spiliotis and Assimakopoulos
    2020): 14 days, 13 weeks, 18 months, 8 quarters, 6 years.
    """
    season = default_season(freq)
    step = parse_frequency(freq)
    seconds = step_seconds(step)
    if seconds is not None and seconds < _DAY_SECONDS:
        return season if season > 1 else 24
    if isinstance(step, pd.offsets.CustomBusinessDay):
        return 2 * season
    return {7: 14, 5: 10, 52: 13, 12: 18, 4: 8, 1: 6}.get(season, season)


def infer_frequency(timestamps: Timestamps, *, where: str | None = None) -> str:
    """Returns the canonical name of the frequency that generates exactly these timestamps.

    Three Wednesdays fit only a step of seven days. The starts of July, August and September fit 31 days and a month, so the
    next timestamp is ambiguous. In a zone with daylight saving time, days are counted in local time. Rarer calendars (business
    months, half months, weeks of a month, business hours) are considered if no other frequency fits.

    Raises FrequencyUnknown if no frequency fits, or several do.
    """
    for candidates in _gapless_candidates(timestamps):
        matches = [freq for freq in candidates if _matches_frequency(timestamps, freq)]
        if len(matches) == 1:
            return canonical_frequency(matches[0], timestamps[:1])
        if matches:
            raise FrequencyUnknown(
                f"The frequency cannot be inferred from {len(timestamps)} timestamps: {' and '.join(matches)} all fit. "
                f"Declare it (for instance `freq`={matches[-1]!r}).",
                where=where,
            )
    raise FrequencyUnknown(
        f"The frequency cannot be inferred from {len(timestamps)} timestamps: no regular frequency fits. "
        f"{_advise_on_irregular_timestamps(timestamps)}",
        where=where,
    )


def candidate_frequencies(timestamps: Timestamps) -> list[list[str]]:
    """Returns the frequencies that sorted timestamps with missing rows may have, in tiers of decreasing precedence.

    The first has the shortest gap, business days and months; the second has rarer calendars.
    """
    if not isinstance(timestamps, pd.DatetimeIndex):
        return [[str(gap) for gap in np.unique(np.diff(timestamps_to_int64(timestamps)))[:1] if gap > 0]]
    local_gaps, absolute_gaps = _unique_gaps(timestamps)
    day = int(_DAY_SECONDS * 1e6)
    is_daily = local_gaps.min() > 0 and local_gaps.min() % day == 0
    shortest = int(local_gaps.min()) if is_daily else int(absolute_gaps.min())
    common, rare = _calendar_frequencies(timestamps, allow_gaps=True)
    return [[*([_format_tick(shortest)] if shortest > 0 else []), *common], rare]


def _gapless_candidates(timestamps: Timestamps) -> list[list[str]]:
    if len(timestamps) < 2:
        return []
    if not isinstance(timestamps, pd.DatetimeIndex):
        return candidate_frequencies(timestamps)
    local_gaps, absolute_gaps = _unique_gaps(timestamps)
    day = int(_DAY_SECONDS * 1e6)
    ticks = []
    if len(local_gaps) == 1 and local_gaps[0] > 0 and (local_gaps[0] % day == 0 or len(absolute_gaps) == 1):
        ticks = [_format_tick(int(local_gaps[0]))]
    elif len(absolute_gaps) == 1 and absolute_gaps[0] > 0:
        days, remainder = divmod(int(absolute_gaps[0]), day)
        # Where clocks change, 24 hours are not a day.
        ticks = [_format_tick(int(absolute_gaps[0])) if remainder else f"{24 * days}h"]
    common, rare = _calendar_frequencies(timestamps, allow_gaps=False)
    return [[*ticks, *common], rare]


def _calendar_frequencies(timestamps: pd.DatetimeIndex, *, allow_gaps: bool) -> tuple[list[str], list[str]]:
    """Returns the common and the rare calendar frequencies that the months, days and hours of the timestamps suggest."""
    local = to_calendar_time(timestamps)
    common, rare = ["B"], []
    months = np.unique(np.diff(local.year * 12 + local.month))
    if months[0] > 0 and (allow_gaps or len(months) == 1):
        step, first = int(months[0]), [local[0].month]
        common += [name_months(unit, step, first) for unit in ("MS", "ME")]
        rare += [name_months(unit, step, first) for unit in ("BMS", "BME")]
        if step == 1:
            weekday = local[0].strftime("%a").upper()
            rare += [f"WOM-{(local[0].day - 1) // 7 + 1}{weekday}"] if local[0].day <= 28 else []
            rare.append(f"LWOM-{weekday}")
    days = np.unique(local.day)
    if len(days) == 2 and days[0] == 1 and days[1] < 28:
        rare.append(f"SMS-{days[1]}")
    if len(days) > 1 and days[0] < 28 and days[1] >= 28:
        rare.append(f"SME-{days[0]}")
    if (local.minute == 0).all() and set(np.unique(np.diff(local.asi8 // 3_600_000_000)).tolist()) <= {1, 17, 65}:
        rare.append("bh")
    return common, rare


def _advise_on_irregular_timestamps(timestamps: Timestamps) -> str:
    """Returns what to do about timestamps that no frequency generates, as sentences."""
    if not isinstance(timestamps, pd.DatetimeIndex):
        return "Fill gaps with empty values, or declare the step (for instance `freq`='1')."
    fixed_day = describe_fixed_day(timestamps)
    if fixed_day:
        return fixed_day
    zone_advice = (
        " If these are days in a zone with daylight saving time, declare the zone (`zone`)."
        if timestamps.tz is not None and len(timestamps) > 1
        else ""
    )
    return f"Declare it (for instance `freq`='D') if rows are absent, else correct the timestamps.{zone_advice}"


def describe_fixed_day(timestamps: Timestamps) -> str:
    """Returns what to do about timestamps on one day of the month, such as every 15th, which no frequency has; or no text."""
    if not isinstance(timestamps, pd.DatetimeIndex) or len(timestamps) < 2:
        return ""
    local = to_calendar_time(timestamps)
    day, months = int(local[0].day), np.diff(local.year * 12 + local.month)
    if day in (1, 31) or (local.day != day).any() or (months < 1).any():
        return ""
    name = name_months("MS", int(months.min()), [local[0].month])
    return (
        f"They are day {day} of the month, and no frequency has such steps. Move them to the first of the month "
        f"({local[0].replace(day=1).date().isoformat()}), and declare `freq`={name!r}."
    )


def list_working_days(timestamps: pd.DatetimeIndex) -> list[str]:
    """Returns the custom business days whose weekdays are those of the timestamps, such as C-1111110; none for usual weeks."""
    weekdays = set(to_calendar_time(timestamps).day_of_week.tolist())
    if len(timestamps) < _MIN_ROWS_OF_WORKING_DAYS or not 1 < len(weekdays) < 7 or weekdays == set(range(5)):
        return []
    return ["C-" + "".join("1" if weekday in weekdays else "0" for weekday in range(7))]


def _unique_gaps(timestamps: pd.DatetimeIndex) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct gaps in microseconds: in local time, and in absolute time."""
    in_microseconds = timestamps.as_unit("us")
    local = to_calendar_time(in_microseconds)
    skipped = skipped_days(timestamps.tz)
    local_gaps = np.unique(np.diff(local.asi8))
    if len(skipped) and len(local_gaps) > 1:  # weeks are counted with the skipped days, days without them
        local_gaps = np.unique(
            np.diff(local.asi8 - np.searchsorted(skipped.asi8, local.asi8) * int(_DAY_SECONDS * 1e6))
        )
    return local_gaps, np.unique(np.diff(in_microseconds.asi8))


def _format_tick(microseconds: int) -> str:
    days, remainder = divmod(microseconds, int(_DAY_SECONDS * 1e6))
    step = pd.Timedelta(microseconds, unit="us") if remainder else pd.offsets.Day(days)
    return str(pd.tseries.frequencies.to_offset(step).freqstr)


def _matches_frequency(timestamps: Timestamps, freq: str) -> bool:
    try:
        return bool(build_timestamps(timestamp_at(timestamps, 0), freq=freq, steps=len(timestamps)).equals(timestamps))
    except BadStamp:  # at this frequency the timestamps leave the calendar
        return False


class _Cycle(NamedTuple):
    """The phase of a datetime within a cycle, from 0 to 1, and the highest order of harmonics that the cycle resolves."""

    phase: Callable[[Any], Any]
    max_order: int


_CYCLES = {
    "minute": _Cycle(lambda local: (local.minute + local.second / 60) / 60, 30),
    "hour": _Cycle(lambda local: (local.hour + local.minute / 60 + local.second / 3600) / 24, 12),
    "weekday": _Cycle(lambda local: local.day_of_week / 7, 3),
    "monthday": _Cycle(lambda local: (local.day - 1) / local.days_in_month, 15),
    "month": _Cycle(lambda local: (local.month - 1) / 12, 5),
    "yearday": _Cycle(lambda local: (local.day_of_year - 1) / (365 + local.is_leap_year), 182),
}


class _CalendarFeature(NamedTuple):
    kind: str  # the name of a cycle, or "holiday"
    argument: str  # the highest order, or the country


def validate_calendar_features(names: Sequence[str], *, freq: str) -> None:
    """Raises BadSpec if calendar features are requested for an integer frequency."""
    if names and is_integer_frequency(freq):
        raise _no_calendar_error(names)


def compute_calendar_features(timestamps: Timestamps, names: Sequence[str]) -> Float64[np.ndarray, "step feature"]:
    """Computes calendar features of timestamps in their local time, identically in training and serving.

    Args:
        timestamps: Timestamps with a time zone are evaluated in the local time of the zone, not in UTC.
        names: `minute, hour, weekday, monthday, month, yearday` give a sine and a cosine; `yearday:3` those of the orders
            1 to 3. `holiday:US` and `holiday:US-CA` give 1 on public holidays (package `holidays`).
    Raises:
        BadSpec: A name is unknown or occurs twice, or the timestamps are integers.
        MissingPackage: Holidays are requested and the package is not installed.
    """
    if not isinstance(timestamps, pd.DatetimeIndex):
        raise _no_calendar_error(names)
    local: Any = timestamps.tz_localize(None)
    columns: list[np.ndarray] = []
    for feature in _parse_calendar_features(names):
        if feature.kind == "holiday":
            columns.append(_compute_holiday_indicator(local, feature.argument))
        else:
            angle = 2 * np.pi * np.asarray(_CYCLES[feature.kind].phase(local), dtype=np.float64)
            for order in range(1, int(feature.argument) + 1):
                columns += [np.sin(order * angle), np.cos(order * angle)]
    return np.stack(columns, axis=1) if columns else np.empty((len(timestamps), 0))


def list_calendar_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the name of each column of `compute_calendar_features`; raises BadSpec as it does."""
    columns: list[str] = []
    for feature in _parse_calendar_features(names):
        if feature.kind == "holiday":
            columns.append(f"holiday:{feature.argument}")
        else:
            orders = range(1, int(feature.argument) + 1)
            columns += [f"{feature.kind} {wave} {order}" for order in orders for wave in ("sin", "cos")]
    return tuple(columns)


def _no_calendar_error(names: Sequence[str]) -> BadSpec:
    return BadSpec(
        f"Expected datetimes for the calendar features {', '.join(names)}; the timestamps of these data are integers, which "
        "have no hours, days or holidays. Leave `calendar` empty, or send datetimes.",
        where="calendar",
    )


def _parse_calendar_features(names: Sequence[str]) -> list[_CalendarFeature]:
    features: list[_CalendarFeature] = []
    for name in names:
        kind, _, argument = name.partition(":")
        cycle = _CYCLES.get(kind)
        is_valid = bool(argument) if cycle is None else argument == "" or (argument.isascii() and argument.isdecimal())
        if not is_valid or (cycle is None and kind != "holiday"):
            raise BadSpec(
                f"Calendar feature {name!r} is not known; expected one of {', '.join(_CYCLES)}, with an optional order "
                "(yearday:3), or holiday:COUNTRY (holiday:US, holiday:US-CA). Correct the name.",
                where=name,
            )
        if cycle is not None and not 1 <= int(argument or 1) <= cycle.max_order:
            raise BadSpec(
                f"Expected an order from 1 to {cycle.max_order} for {kind!r}; found {name!r}. Choose a lower order.",
                where=name,
            )
        if any(feature.kind == kind and (cycle is not None or feature.argument == argument) for feature in features):
            raise BadSpec(
                f"Expected every calendar feature once; {kind!r} occurs again as {name!r}. Remove one of them.",
                where=name,
            )
        features.append(_CalendarFeature(kind, argument or "1"))
    return features


def _compute_holiday_indicator(local: Any, location: str) -> np.ndarray:
    try:
        package = import_module("holidays")
    except ImportError as error:
        raise MissingPackage(
            f"The calendar feature 'holiday:{location}' needs the package 'holidays', which is not installed. Install the extra "
            "that has it: pip install 'recurrent-forecaster[train]' (or [serve]).",
            where=f"holiday:{location}",
        ) from error
    country, _, region = location.partition("-")
    try:
        days = package.country_holidays(country, subdiv=region or None, years=sorted(set(local.year)))
    except NotImplementedError as error:
        raise BadSpec(
            f"No holidays are known for {location!r}; expected a country such as US or DE, or a subdivision such as US-CA.",
            where=f"holiday:{location}",
        ) from error
    return np.asarray(local.normalize().isin(pd.DatetimeIndex(sorted(days))), dtype=np.float64)
