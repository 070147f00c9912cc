"""Rows on the grid of a frequency: which step each stamp is, and whether so many steps can be data at all."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import BadStamp, GridTooLarge, IrregularStamps
from forecaster.frequency import Timestamps, parse_frequency, timestamps_to_int64
from forecaster.shapes import Bool, Int

MAX_TOTAL_STEPS = 10**8  # of all series together; more is a wrong frequency, not a history
MAX_CALENDAR_STEPS = 10**6  # of a calendar that has to be walked, such as business hours
MAX_MISSING_SHARE = 0.9  # more absent steps than this is a wrong frequency, not a history with gaps
MIN_CONFIRMING_RUN = 12  # steps in a row that prove a frequency, whatever is absent elsewhere
_DAY_MICROSECONDS = 86_400_000_000  # microseconds


class GridPositions(NamedTuple):
    """Where each row lies, in steps from the first row of its series."""

    step: Int[np.ndarray, "row"]
    is_off_grid: Bool[np.ndarray, "row"]  # not on the grid at all; `step` means nothing there


def compute_grid_positions(timestamps: Timestamps, freq: str, first_rows: Int[np.ndarray, "row"]) -> GridPositions:
    """Places sorted stamps on the grid of their series.

    Numbers, and seconds to hours, are counted in truth, days and longer steps on the wall, where a day may have 23 or 25 hours.

    Args:
        stamps: In microseconds, or numbers; each series may have its own phase.
        freq: A pandas offset alias, or a whole number, as the stamps are.
        first: For each row, the first row of its series.
    """
    step = parse_frequency(freq)
    moments = timestamps_to_int64(timestamps)
    if isinstance(step, (int, pd.offsets.Tick)):
        steps, rest = np.divmod(
            moments - moments[first_rows], step if isinstance(step, int) else _step_microseconds(step)
        )
        return GridPositions(steps, rest != 0)
    assert isinstance(timestamps, pd.DatetimeIndex), "what is numbered steps by a number"
    wall = moments if timestamps.tz is None else timestamps.tz_localize(None).asi8
    day, clock = np.divmod(wall, _DAY_MICROSECONDS)
    rung, on = _compute_calendar_indices(day, wall, step)
    steps, rest = np.divmod(rung - rung[first_rows], step.n)
    off = ~on | (rest != 0)
    if not _is_intraday(step):
        shifted = np.flatnonzero(clock != clock[first_rows])
        meant = day[shifted] * _DAY_MICROSECONDS + clock[first_rows][shifted]
        off[shifted] |= ~_is_shifted_forward(timestamps[shifted], meant)
    return GridPositions(steps, off)


def compute_series_lengths(
    positions: GridPositions, bounds: Int[np.ndarray, "_"], *, ids: Any, freq: str
) -> Int[np.ndarray, "series"]:
    """How many steps each series has on its grid; raises before anything as long is built.

    Args:
        steps: Of all rows.
        bounds: Where each series begins among the rows, and where the last ends.
        ids: Of the series.
        freq: For the message.
    Raises:
        GridTooLarge: more than MOST_STEPS altogether.
        IrregularStamps: a series would be nearly all holes.
    """
    rows = np.diff(bounds)
    long = positions.step[bounds[1:] - 1] + 1
    total = float(long.sum(dtype=np.float64))
    if total > MAX_TOTAL_STEPS:
        longest = str(ids[int(np.argmax(long))])
        raise GridTooLarge(
            f"Expected at most {MAX_TOTAL_STEPS:.0e} steps between the first and last stamps; at {freq!r} they have {total:.3g}, "
            f"series {longest!r} {float(long.max()):.3g} of them. Correct its stamps, or declare a coarser frequency.",
            where=longest,
        )
    hollow = long - rows > MAX_MISSING_SHARE * long
    if hollow.any():
        one = int(np.argmax(hollow))
        raise IrregularStamps(
            f"Expected rows for most steps; at {freq!r} series {str(ids[one])!r} would have {long[one]} steps and rows for only "
            f"{rows[one]} of them. That is a wrong frequency, or a wrong first or last stamp: declare a coarser one, or "
            "correct the stamps.",
            where=str(ids[one]),
        )
    return np.asarray(long)


def confirms_frequency(positions: GridPositions) -> bool:
    """Whether the rows of one series prove a frequency although some are absent.

    All are on its grid, most follow one another by one step, and a long run does so without a gap.
    """
    ones = np.diff(positions.step) == 1
    if positions.is_off_grid.any() or 2 * int(ones.sum()) < len(ones):
        return False
    breaks = np.flatnonzero(np.concatenate([[True], ~ones, [True]]))
    return bool(np.diff(breaks).max() - 1 >= MIN_CONFIRMING_RUN)


def _step_microseconds(step: pd.offsets.Tick) -> int:
    """Of one step; what no calendar holds is cut to what an integer of the machine does."""
    if isinstance(step, pd.offsets.Nano):
        return step.n // 1000
    unit: Any = step.base
    return int(min(step.n * (pd.Timedelta(unit) // pd.Timedelta(microseconds=1)), 2**62))


def _is_intraday(step: pd.offsets.BaseOffset) -> bool:
    return isinstance(step, pd.offsets.BusinessHour)


def _compute_calendar_indices(
    day: Int[np.ndarray, "row"], local_time: Int[np.ndarray, "row"], step: pd.offsets.BaseOffset
) -> tuple[Int[np.ndarray, "row"], Bool[np.ndarray, "row"]]:
    """The number of each row among all days, weeks, months... of the calendar, and whether it is one of them."""
    if isinstance(step, pd.offsets.Day):
        return day, np.ones(len(day), dtype=bool)
    weekday = getattr(step, "weekday", None)
    if isinstance(step, pd.offsets.Week) and weekday is not None:
        week, found = np.divmod(day + 3, 7)  # 1970-01-01 was a Thursday
        return week, found == weekday
    sought = local_time if _is_intraday(step) else day * _DAY_MICROSECONDS
    grid = _build_calendar(int(sought.min()), int(sought.max()), step.base)
    rung = np.searchsorted(grid, sought)
    return rung, np.append(grid, -1)[rung] == sought


def _build_calendar(first: int, last: int, step: pd.offsets.BaseOffset) -> Int[np.ndarray, "rung"]:
    """The stamps of a step from first to last, in microseconds."""
    start, end = pd.Timestamp(np.datetime64(first, "us")), pd.Timestamp(np.datetime64(last, "us"))
    mid = pd.Timestamp("2000-01-01")
    usual = (mid + 1000 * step - mid) / 1000
    if (end - start) / usual > MAX_CALENDAR_STEPS and step.freqstr != "B":  # pandas counts those without walking
        raise GridTooLarge(
            f"Expected at most {MAX_CALENDAR_STEPS:.0e} steps of {step.freqstr!r} between {start.isoformat()} and {end.isoformat()}. "
            "Correct the stamps, or declare a coarser frequency.",
            where="ds",
        )
    try:
        return pd.date_range(start, end, freq=step).as_unit("us").asi8
    except (ValueError, OverflowError) as error:  # pandas looks at neighbours, which may be outside the calendar
        raise BadStamp(
            f"Stamps from {start.isoformat()} to {end.isoformat()} are too near the end of the calendar for steps of "
            f"{step.freqstr!r}. Correct them.",
            where="ds",
        ) from error


def _is_shifted_forward(timestamps: pd.DatetimeIndex, intended: Int[np.ndarray, "row"]) -> Bool[np.ndarray, "row"]:
    """Whether each stamp is what a clock that was put forward over the local time meant, in microseconds, shows."""
    if timestamps.tz is None:
        return np.zeros(len(timestamps), dtype=bool)
    wall: Any = pd.DatetimeIndex(intended.astype("datetime64[us]"))
    shown = wall.tz_localize(timestamps.tz, ambiguous=np.ones(len(wall), dtype=bool), nonexistent="shift_forward")
    return np.asarray(shown.asi8 == timestamps.asi8)
