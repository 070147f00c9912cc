"""Maps rows to the regular time grid of a frequency, and checks that the resulting grid is plausible."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from forecaster.errors import BadStamp, GridTooLarge, IrregularStamps
from forecaster.frequency.local_time import is_late_midnight, is_shifted_forward, skipped_days
from forecaster.frequency.timestamps import Timestamps, parse_frequency, timestamps_to_int64
from forecaster.shapes import Bool, Int

MAX_TOTAL_STEPS = 10**8  # of all series together; more means a wrong frequency
MAX_CALENDAR_STEPS = 10**6  # of a calendar that is enumerated, such as business hours
MAX_MISSING_SHARE = 0.9  # a larger share of absent steps means a wrong frequency, not gaps
MIN_CONFIRMING_RUN = 12  # consecutive steps that prove a frequency, whatever is absent elsewhere
_DAY_MICROSECONDS = 86_400_000_000
_ROWS_AT_ONCE = 1 << 18  # bounds the memory of a check


class GridPositions(NamedTuple):
    """The grid position of each row, in steps from the first row of its series."""

    step: Int[np.ndarray, "row"]
    is_off_grid: Bool[np.ndarray, "row"]  # where True, `step` is meaningless


def compute_grid_positions(timestamps: Timestamps, freq: str, first_rows: Int[np.ndarray, "row"]) -> GridPositions:
    """Computes the grid positions of sorted timestamps.

    Integers and steps of seconds to hours are counted in absolute time. Days and longer steps are counted in local time,
    where a day may have 23 or 25 hours.

    Args:
        timestamps: In microseconds, or integers; each series may have its own phase.
        freq: A pandas offset alias for datetimes, or an integer for integer timestamps.
        first_rows: For each row, the index of the first row of its series.
    Raises:
        GridTooLarge, BadStamp: The calendar of the frequency cannot be enumerated over the span of the timestamps.
    """
    step = parse_frequency(freq)
    ticks = timestamps_to_int64(timestamps)
    if isinstance(step, (int, pd.offsets.Tick)):
        steps, remainder = np.divmod(
            ticks - ticks[first_rows], step if isinstance(step, int) else _step_microseconds(step)
        )
        return GridPositions(steps, remainder != 0)
    assert isinstance(timestamps, pd.DatetimeIndex), "integer timestamps have an integer frequency"
    local_time = ticks if timestamps.tz is None else timestamps.tz_localize(None).asi8
    day, time_of_day = np.divmod(local_time, _DAY_MICROSECONDS)
    skipped = skipped_days(timestamps.tz).to_numpy().astype("datetime64[D]").astype(np.int64)
    calendar_index, is_on_calendar = _compute_calendar_indices(day, local_time, step, skipped)
    steps, remainder = np.divmod(calendar_index - calendar_index[first_rows], step.n)
    is_off_grid = ~is_on_calendar | (remainder != 0)
    if not _is_intraday(step):
        usual_time = time_of_day.copy()
        late_starts = np.unique(first_rows)
        late_starts = late_starts[time_of_day[late_starts] != 0]
        usual_time[late_starts[is_late_midnight(timestamps[late_starts])]] = 0
        shifted_rows = np.flatnonzero(time_of_day != usual_time[first_rows])
        intended = day[shifted_rows] * _DAY_MICROSECONDS + usual_time[first_rows][shifted_rows]
        is_off_grid[shifted_rows] |= ~is_shifted_forward(
            timestamps[shifted_rows], pd.DatetimeIndex(intended.astype("datetime64[us]"))
        )
    return GridPositions(steps, is_off_grid)


def is_regular(timestamps: Timestamps, freq: str, bounds: Int[np.ndarray, "_"]) -> bool:
    """Returns whether sorted timestamps are certainly on the grid of a frequency, without absent rows.

    This is a fast check of the usual case, in a little memory; it may be False where `compute_grid_positions` finds the same.

    Args:
        timestamps: In microseconds, or integers.
        freq: A pandas offset alias for datetimes, or an integer for integer timestamps.
        bounds: The first row of each series, and the end of the last series.
    """
    step, ticks = parse_frequency(freq), timestamps_to_int64(timestamps)
    if isinstance(step, (int, pd.offsets.Tick)):
        size = step if isinstance(step, int) else _step_microseconds(step)
        return _have_steps(ticks, bounds, size)
    if isinstance(timestamps, pd.DatetimeIndex) and timestamps.tz is not None:
        return False
    if isinstance(step, pd.offsets.Day):
        return _have_steps(ticks, bounds, step.n * _DAY_MICROSECONDS)
    starts, ends = ticks[bounds[:-1]], ticks[bounds[1:] - 1]
    if _is_intraday(step) or isinstance(step, pd.offsets.CustomBusinessDay) or (starts % _DAY_MICROSECONDS).any():
        return False
    calendar = _build_calendar(int(starts.min()), int(ends.max()), step.base)
    first = np.searchsorted(calendar, starts)
    last = first + (np.diff(bounds) - 1) * step.n
    if not len(calendar) or int(last.max()) >= len(calendar):
        return False
    for series in _split_bounds(bounds):
        rows = slice(bounds[series.start], bounds[series.stop])
        sizes = np.diff(bounds[series.start : series.stop + 1])
        within = np.arange(rows.stop - rows.start) - np.repeat(bounds[series] - rows.start, sizes)
        if (calendar[np.repeat(first[series], sizes) + within * step.n] != ticks[rows]).any():
            return False
    return True


def _have_steps(ticks: Int[np.ndarray, "row"], bounds: Int[np.ndarray, "_"], size: int) -> bool:
    """Returns whether all steps within a series are of one size."""
    for series in _split_bounds(bounds):
        rows = ticks[bounds[series.start] : bounds[series.stop]]
        is_step = np.diff(rows) == size
        is_step[bounds[series.start + 1 : series.stop] - bounds[series.start] - 1] = True  # to the next series
        if not is_step.all():
            return False
    return True


def _split_bounds(bounds: Int[np.ndarray, "_"]) -> Iterator[slice]:
    """Yields spans of series with about _ROWS_AT_ONCE rows."""
    first = 0
    while first < len(bounds) - 1:
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _ROWS_AT_ONCE, side="right")) - 1)
        yield slice(first, last)
        first = last


def compute_series_lengths(
    positions: GridPositions, bounds: Int[np.ndarray, "_"], *, ids: Any, freq: str
) -> Int[np.ndarray, "series"]:
    """Returns the number of steps of each series on its grid. Raises before arrays of that length are allocated.

    Args:
        positions: The grid positions of all rows.
        bounds: The first row of each series, and the end of the last series.
        ids: The id of each series.
        freq: The frequency, for the message.
    Raises:
        GridTooLarge: All series together have more than MAX_TOTAL_STEPS steps.
        IrregularStamps: The share of absent steps of a series is above MAX_MISSING_SHARE.
    """
    row_counts = np.diff(bounds)
    lengths = positions.step[bounds[1:] - 1] + 1
    total = float(lengths.sum(dtype=np.float64))
    if total > MAX_TOTAL_STEPS:
        longest = str(ids[int(np.argmax(lengths))])
        raise GridTooLarge(
            f"Expected at most {MAX_TOTAL_STEPS:.0e} steps between the first and last timestamps; at {freq!r} there are "
            f"{total:.3g}, of which series {longest!r} has {float(lengths.max()):.3g}. Correct its timestamps, or declare "
            "a coarser frequency.",
            where=longest,
        )
    is_too_sparse = lengths - row_counts > MAX_MISSING_SHARE * lengths
    if is_too_sparse.any():
        sparse = int(np.argmax(is_too_sparse))
        raise IrregularStamps(
            f"Expected rows for most steps; at {freq!r} series {str(ids[sparse])!r} would have {lengths[sparse]} steps and "
            f"rows for only {row_counts[sparse]} of them. The frequency is probably wrong: declare a coarser one. If the "
            "first or last timestamp is wrong, correct it.",
            where=str(ids[sparse]),
        )
    return np.asarray(lengths)


def confirms_frequency(positions: GridPositions) -> bool:
    """Returns whether the rows of one series prove a frequency although some rows are absent.

    This requires that all rows are on the grid, at least half of the differences are one step, and at least
    MIN_CONFIRMING_RUN consecutive differences are one step.
    """
    is_single_step = np.diff(positions.step) == 1
    if positions.is_off_grid.any() or 2 * int(is_single_step.sum()) < len(is_single_step):
        return False
    breaks = np.flatnonzero(np.concatenate([[True], ~is_single_step, [True]]))
    return bool(np.diff(breaks).max() - 1 >= MIN_CONFIRMING_RUN)


def _step_microseconds(step: pd.offsets.Tick) -> int:
    """Returns the length of one step in microseconds, capped at 2**62 so that it fits into int64."""
    if isinstance(step, pd.offsets.Nano):
        return step.n // 1000
    unit: Any = step.base
    return int(min(step.n * (pd.Timedelta(unit) // pd.Timedelta(microseconds=1)), 2**62))


def _is_intraday(step: pd.offsets.BaseOffset) -> bool:
    return isinstance(step, pd.offsets.BusinessHour)


def _compute_calendar_indices(
    day: Int[np.ndarray, "row"],
    local_time: Int[np.ndarray, "row"],
    step: pd.offsets.BaseOffset,
    skipped: Int[np.ndarray, "_"],
) -> tuple[Int[np.ndarray, "row"], Bool[np.ndarray, "row"]]:
    """Returns the index of each row among the days, weeks, months... of the calendar, and whether it is exactly one of them.

    The days that the time zone skipped are not counted.
    """
    if isinstance(step, pd.offsets.Day):
        index = day if step.n % 7 == 0 else day - np.searchsorted(skipped, day)
        return index, np.ones(len(day), dtype=bool)
    if isinstance(step, pd.offsets.CustomBusinessDay):
        holidays = np.concatenate([step.calendar.holidays, skipped.astype("datetime64[D]")])
        working_days = np.busdaycalendar(step.calendar.weekmask, holidays)
        dates = day.astype("datetime64[D]")
        index = np.busday_count(np.datetime64("1970-01-01"), dates, busdaycal=working_days)
        return index, np.is_busday(dates, busdaycal=working_days)
    weekday = getattr(step, "weekday", None)
    if isinstance(step, pd.offsets.Week) and weekday is not None:
        week, row_weekday = np.divmod(day + 3, 7)  # 1970-01-01 was a Thursday
        return week, row_weekday == weekday
    targets = local_time if _is_intraday(step) else day * _DAY_MICROSECONDS
    calendar = _build_calendar(int(targets.min()), int(targets.max()), step.base)
    if isinstance(step, pd.offsets.BusinessDay) and len(skipped):
        calendar = calendar[~np.isin(calendar, skipped * _DAY_MICROSECONDS)]
    index = np.searchsorted(calendar, targets)
    return index, np.append(calendar, -1)[index] == targets


def _build_calendar(first: int, last: int, step: pd.offsets.BaseOffset) -> Int[np.ndarray, "index"]:
    """Returns the timestamps of a frequency from `first` to `last`, in microseconds."""
    start, end = pd.Timestamp(np.datetime64(first, "us")), pd.Timestamp(np.datetime64(last, "us"))
    reference = pd.Timestamp("2000-01-01")
    mean_length = (reference + 1000 * step - reference) / 1000
    if (
        end - start
    ) / mean_length > MAX_CALENDAR_STEPS and step.freqstr != "B":  # pandas enumerates business days quickly
        raise GridTooLarge(
            f"Expected at most {MAX_CALENDAR_STEPS:.0e} steps of {step.freqstr!r} between {start.isoformat()} and "
            f"{end.isoformat()}. Correct the timestamps, or declare a coarser frequency.",
            where="ds",
        )
    try:
        return pd.date_range(start, end, freq=step).as_unit("us").asi8
    except (ValueError, OverflowError) as error:  # pandas also computes neighbours, which may be out of bounds
        raise BadStamp(
            f"Timestamps from {start.isoformat()} to {end.isoformat()} are too close to the end of the calendar for steps of "
            f"{step.freqstr!r}. Correct them.",
            where="ds",
        ) from error
