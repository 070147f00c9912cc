"""Calendar knowledge: the inference of frequencies, their default season and horizon, and calendar features of timestamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import BadSpec, BadStamp, FrequencyUnknown, MissingPackage
from forecaster.frequency import (
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

    It is a day for steps from a minute to below a day, a week for days, and a year for weeks, months and quarters.
    """
    step = parse_frequency(freq)
    if isinstance(step, int):
        return 1
    seconds = step_seconds(step)
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
    seconds = step_seconds(parse_frequency(freq))
    if seconds is not None and seconds < _DAY_SECONDS:
        return season if season > 1 else 24
    return {7: 14, 5: 10, 52: 13, 12: 18, 4: 8, 1: 6}.get(season, season)


def infer_frequency(timestamps: Timestamps, *, where: str | None = None) -> str:
    """Returns the frequency that generates exactly these timestamps; raises FrequencyUnknown if none or several do.

    Three Wednesdays fit only a step of seven days. The starts of July, August and September fit 31 days and a month, so the
    next timestamp is ambiguous. In a zone with daylight saving time, days are counted in local time.
    """
    matches = [freq for freq in _gapless_candidates(timestamps) if _matches_frequency(timestamps, freq)]
    if len(matches) == 1:
        return matches[0]
    finding = f"{' and '.join(matches)} all fit" if matches else "no regular frequency fits"
    zone, example = (timestamps.tz, "MS") if isinstance(timestamps, pd.DatetimeIndex) else (None, "1")
    zone_advice = (
        " If these are days in a zone with daylight saving time, declare the zone." if zone is not None else ""
    )
    raise FrequencyUnknown(
        f"The frequency cannot be inferred from {len(timestamps)} timestamps: {finding}. "
        f"Declare it (for instance freq={example!r}).{zone_advice}",
        where=where,
    )


def candidate_frequencies(timestamps: Timestamps) -> list[str]:
    """Returns the frequencies that sorted timestamps with missing rows may have: the shortest gap, and calendar frequencies."""
    if not isinstance(timestamps, pd.DatetimeIndex):
        return [str(gap) for gap in np.unique(np.diff(timestamps_to_int64(timestamps)))[:1] if gap > 0]
    local_gaps, absolute_gaps = _unique_gaps(timestamps)
    day = int(_DAY_SECONDS * 1e6)
    is_daily = local_gaps.min() > 0 and local_gaps.min() % day == 0
    shortest = int(local_gaps.min()) if is_daily else int(absolute_gaps.min())
    return [*([_format_tick(shortest)] if shortest > 0 else []), *_calendar_frequencies(timestamps)]


def _gapless_candidates(timestamps: Timestamps) -> list[str]:
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
    return [*ticks, *_calendar_frequencies(timestamps)]


def _calendar_frequencies(timestamps: pd.DatetimeIndex) -> list[str]:
    month = timestamps[0].strftime("%b").upper()
    return ["B", "MS", "ME", f"QS-{month}", f"QE-{month}", f"YS-{month}", f"YE-{month}"]


def _unique_gaps(timestamps: pd.DatetimeIndex) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct gaps in microseconds: in local time, and in absolute time."""
    in_microseconds = timestamps.as_unit("us")
    return np.unique(np.diff(in_microseconds.tz_localize(None).asi8)), np.unique(np.diff(in_microseconds.asi8))


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
            "that has it: pip install 'forecaster[train]' (or [serve]).",
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
