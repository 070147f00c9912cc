"""Reference signals that the states of a network may follow: of a single series (value, level, trend ...), and of the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from forecaster.data.calendar import step_seconds
from forecaster.explain.states import StateTrace
from forecaster.frequency.timestamps import build_timestamps, parse_frequency
from forecaster.series import Series
from forecaster.shapes import Float64, Int

MEANINGS: Mapping[str, str] = {
    "value": "the value of the step, of a segment the mean of its values",
    "level": "the mean of the last season, or of the last 8 steps if there is none",
    "trend": "the change of the level over as many steps",
    "volatility": "the mean absolute change from step to step, over the steps of the level",
    "zeros": "steps since the last value other than zero",
    "gaps": "steps since the last observed value",
    "time": "steps since the network began to read",
    "season": "the season of the model",
    "day": "the time of the day",
    "week": "the day of the week",
    "year": "the time of the year",
}
_MIN_WINDOW = 8  # steps of the level of data without a season
_YEAR_SECONDS = 365.2425 * 86_400
_CYCLE_SECONDS = {"day": 86_400.0, "week": 7 * 86_400.0, "year": _YEAR_SECONDS}
_STEPS_OF_YEAR = {"MS": 12, "ME": 12, "BMS": 12, "BME": 12, "QS": 4, "QE": 4, "BQS": 4, "BQE": 4}
MAX_HARMONICS = 3
_MIN_SHARE = 0.02  # of zeros or gaps, from which they are a signal


def compute_series_signals(trace: StateTrace, *, season: int) -> dict[str, Float64[np.ndarray, "step"]]:
    """Computes the signals of one series at every step of a trace, each from values up to that step alone.

    Missing values repeat the last observed one. A signal is NaN where its window reaches before the first value.
    """
    y = pd.Series(trace.series.y)
    filled = y.ffill().bfill()
    steps = season if season >= _MIN_WINDOW // 2 else _MIN_WINDOW
    level = filled.rolling(steps).mean()
    signals = {
        "value": filled.rolling(trace.segment, min_periods=1).mean(),
        "level": level,
        "trend": level - level.shift(steps),
        "volatility": filled.diff().abs().rolling(steps).mean(),
        "zeros": _count_since(filled.to_numpy() != 0),
        "gaps": _count_since(y.notna().to_numpy()),
    }
    return {name: np.asarray(values, dtype=np.float64)[trace.indices] for name, values in signals.items()}


def select_series_signals(panel: Sequence[Mapping[str, Float64[np.ndarray, "_"]]]) -> list[str]:
    """Returns the signals that vary in the data: zeros and gaps are rare in most."""
    always = ["value", "level", "trend", "volatility"]
    rare = [
        name for name in ("zeros", "gaps") if np.mean([np.mean(signals[name] > 0) for signals in panel]) >= _MIN_SHARE
    ]
    return always + rare


def _count_since(events: np.ndarray) -> pd.Series:
    """Returns the number of steps since the last event, counted from the first step before there was one."""
    index = np.arange(len(events))
    latest = np.maximum.accumulate(np.where(events, index, 0))
    return pd.Series((index - latest).astype(np.float64))


class Clock(NamedTuple):
    """A cycle of the calendar or of the season.

    Attributes:
        name: Its name in MEANINGS.
        period: Its length in steps of the recurrence.
        orders: The harmonics that are its own: at most three, without those that are the first of a shorter cycle.
    """

    name: str
    period: float
    orders: tuple[int, ...]


def list_clocks(series: Series, *, season: int, segment: int) -> list[Clock]:
    """Returns the cycles of at least two steps of the recurrence: the season, and those of the calendar that differ from it."""
    periods = {"season": float(season)}
    periods |= {
        name: period
        for name, period in _list_calendar_periods(series.freq).items()
        if not _agree(period, float(season))
    }
    periods = {name: period / segment for name, period in periods.items() if period / segment >= 2}
    return [
        Clock(
            name,
            period,
            tuple(
                order
                for order in range(1, MAX_HARMONICS + 1)
                if order <= period / 2
                and not any(_agree(period / order, other) for other in periods.values() if other < 0.99 * period)
            ),
        )
        for name, period in periods.items()
    ]


def _list_calendar_periods(freq: str) -> dict[str, float]:
    """Returns the cycles of the calendar in steps of a frequency; none for integers and for steps of unequal length."""
    step = parse_frequency(freq)
    if isinstance(step, int):
        return {}
    seconds = step_seconds(step)
    if seconds is not None:
        return {name: cycle / seconds for name, cycle in _CYCLE_SECONDS.items()}
    in_year = _STEPS_OF_YEAR.get(step.rule_code.split("-")[0])
    return {} if in_year is None else {"year": in_year / step.n}


def _agree(period: float, other: float) -> bool:
    return abs(period / other - 1) <= 0.01


def align_steps(traces: Sequence[StateTrace]) -> list[Int[np.ndarray, "_"]]:
    """Returns the position of each step of each trace on one grid of time points that all series share, from their first one."""
    starts = [trace.series.start for trace in traces]
    ends = [trace.series.end for trace in traces]
    first, last = min(starts), max(ends)
    freq, longest = traces[0].series.freq, max(len(trace.series) for trace in traces)
    grid = build_timestamps(first, freq=freq, steps=longest)
    while grid[-1] < last:
        longest *= 2
        grid = build_timestamps(first, freq=freq, steps=longest)
    return [np.asarray(grid.searchsorted(trace.ds)) for trace in traces]
