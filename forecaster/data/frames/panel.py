"""Converts a long data frame `unique_id, ds, y` to a validated, sorted Panel of one frequency, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import pandas as pd

from forecaster.data.calendar import candidate_frequencies, infer_frequency
from forecaster.data.frames import columns as cells
from forecaster.data.frames import grid, timestamps
from forecaster.errors import (
    CovariateUnknown,
    DuplicateStamp,
    FrequencyUnknown,
    IrregularStamps,
    NoData,
    StaticChanges,
)
from forecaster.frequency import Timestamps, format_timestamp, normalize_frequency, timestamp_at, timestamps_to_int64
from forecaster.series import Panel, Series
from forecaster.shapes import Float64, Int

_MAX_LISTED_IDS = 3  # ids listed in a repair message


class ColumnNames(NamedTuple):
    """The names of the three required columns."""

    unique_id: str = "unique_id"
    ds: str = "ds"
    y: str = "y"


def to_panel(
    frame: pd.DataFrame,
    *,
    freq: str | int | None = None,
    columns: ColumnNames | None = None,
    zone: str | None = None,
    covariates: Sequence[str] = (),
    static: Sequence[str] = (),
    channels: Sequence[str] = (),
) -> Panel:
    """Validates a long frame and splits it into series. docs/data.md lists every case and its outcome.

    Args:
        frame: One row per series and timestamp. NaN in `y` means not observed. An absent row means the same if the
            frequency is declared or proven.
        freq: A pandas offset alias, or an integer; None infers it from the longest series if it is unambiguous.
        columns: The column names, if they are not `unique_id, ds, y`.
        zone: The time zone of timestamps without an offset; timestamps with an offset are converted to it.
        covariates: Columns with a known future. Rows without `y` after the last observed step are then that future.
        static: Columns that are constant within a series.
        channels: Columns known for the past only. As in `y`, NaN means not observed.
    Raises:
        InputError: A subclass of it, with the series and the first invalid row or timestamp.
    """
    names = columns or ColumnNames()
    cells.validate_columns(frame, required=names, optional=[*covariates, *static, *channels])
    repairs: list[str] = []
    declared = None if freq is None else normalize_frequency(freq, where="freq")
    rows = _parse_columns(
        frame, names, freq=declared, zone=zone, covariates=covariates, static=static, channels=channels, repairs=repairs
    )
    rows = _drop_duplicates(_sort_rows(rows, repairs), repairs)
    bounds = rows.series_bounds()
    first = np.repeat(bounds[:-1], np.diff(bounds))
    if declared is None:
        declared, gaps_allowed = _infer_panel_frequency(rows, bounds)
    else:
        gaps_allowed = True
    positions = grid.compute_grid_positions(rows.ds, declared, first)
    _validate_positions(rows, positions, declared, allow_gaps=gaps_allowed, is_inferred=freq is None)
    lengths = grid.compute_series_lengths(positions, bounds, ids=rows.ids, freq=declared)
    aligned = _align_to_grid(rows, positions, bounds, lengths, repairs)
    return Panel(_build_series(rows, aligned, bounds, lengths, declared, repairs), declared, tuple(repairs))


def to_frame(panel: Panel) -> pd.DataFrame:
    """Returns the long frame of a panel, the inverse of `to_panel`.

    It contains covariates with their known future, static columns and channels.
    """
    return pd.concat([_series_to_frame(series) for series in panel.series], ignore_index=True)


def infer_series_frequency(sorted_timestamps: Timestamps, *, unique_id: str) -> str:
    """Returns the frequency of sorted timestamps.

    Raises FrequencyUnknown if it is ambiguous, and IrregularStamps with the first irregular step if there is one.
    """
    if not isinstance(sorted_timestamps, pd.DatetimeIndex):
        timestamps.reject_date_like_numbers(sorted_timestamps, where=unique_id)
    try:
        return infer_frequency(sorted_timestamps, where=unique_id)
    except FrequencyUnknown:
        _raise_for_irregular_step(sorted_timestamps, unique_id)
        raise


class _ParsedRows(NamedTuple):
    """The parsed columns of a frame."""

    ids: Any  # object array: the id of each code
    codes: Int[np.ndarray, "row"]
    ds: Timestamps
    y: Float64[np.ndarray, "row"]
    covariates: Mapping[str, np.ndarray]
    static: Mapping[str, np.ndarray]
    channels: Mapping[str, Float64[np.ndarray, "row"]]

    def take(self, selection: np.ndarray) -> _ParsedRows:
        """Returns the selected rows; `selection` is a mask or an array of row indices."""
        return _ParsedRows(
            self.ids,
            self.codes[selection],
            self.ds[selection],
            self.y[selection],
            {name: values[selection] for name, values in self.covariates.items()},
            {name: values[selection] for name, values in self.static.items()},
            {name: values[selection] for name, values in self.channels.items()},
        )

    def series_bounds(self) -> Int[np.ndarray, "_"]:
        """Returns the first row of each series, and the end of the last series. The rows must be sorted."""
        inner = np.flatnonzero(np.diff(self.codes)) + 1
        return np.concatenate([[0], inner, [len(self.codes)]])

    def id_at(self, row: SupportsIndex) -> str:
        """Returns the id of the series that the row belongs to."""
        return str(self.ids[self.codes[row]])

    def format_timestamp_at(self, row: SupportsIndex) -> str:
        """Returns the timestamp of the row as text for a message."""
        return format_timestamp(timestamp_at(self.ds, int(row)))


def _parse_columns(
    frame: pd.DataFrame,
    names: ColumnNames,
    *,
    freq: str | None,
    zone: str | None,
    covariates: Sequence[str],
    static: Sequence[str],
    channels: Sequence[str],
    repairs: list[str],
) -> _ParsedRows:
    ids = cells.parse_ids(frame[names.unique_id], column=names.unique_id)
    timestamp_column = timestamps.parse_timestamp_column(
        frame[names.ds], column=names.ds, freq=freq, zone=zone, series_codes=ids.codes
    )
    repairs.extend(timestamp_column.repairs)
    rows = _ParsedRows(
        ids.ids,
        ids.codes,
        timestamp_column.timestamps,
        cells.parse_numbers(frame[names.y], column=names.y),
        {name: cells.parse_covariate(frame[name], column=name) for name in covariates},
        {name: cells.parse_labels(frame[name]) for name in static},
        {name: cells.parse_numbers(frame[name], column=name) for name in channels},
    )
    for name, values in {**rows.covariates, **rows.static}.items():
        empty = cells.is_missing(values)
        if empty.any():
            row = int(np.argmax(empty))
            raise CovariateUnknown(
                f"Expected a value of {name!r} in every row; series {rows.id_at(row)!r} has none at "
                f"{rows.format_timestamp_at(row)}. Fill it in, or omit the column.",
                where=rows.id_at(row),
            )
    return rows


def _sort_rows(rows: _ParsedRows, repairs: list[str]) -> _ParsedRows:
    """Returns the rows sorted by id and timestamp, with series codes in the same order."""
    code, ticks = rows.codes, timestamps_to_int64(rows.ds)
    is_same_series = code[1:] == code[:-1]
    is_backward = is_same_series & (ticks[1:] < ticks[:-1])
    run_count = int((~is_same_series).sum()) + 1
    if not is_backward.any() and run_count == len(rows.ids):
        return rows
    rank = np.empty(len(rows.ids), dtype=np.int64)
    id_order = np.argsort(rows.ids)
    rank[id_order] = np.arange(len(id_order))
    ranked = rows._replace(ids=rows.ids[id_order], codes=rank[code])
    order = np.lexsort((ticks, ranked.codes))
    moved_count = int((order != np.arange(len(order))).sum())
    repairs.append(f"rows were not in order: sorted by series and timestamp ({moved_count} of {len(order)} moved)")
    return ranked.take(order)


def _drop_duplicates(rows: _ParsedRows, repairs: list[str]) -> _ParsedRows:
    ticks = timestamps_to_int64(rows.ds)
    is_duplicate = np.concatenate([[False], (ticks[1:] == ticks[:-1]) & (rows.codes[1:] == rows.codes[:-1])])
    if not is_duplicate.any():
        return rows
    duplicate_rows = np.flatnonzero(is_duplicate)
    agree = np.ones(len(duplicate_rows), dtype=bool)
    for values in (rows.y, *rows.covariates.values(), *rows.static.values(), *rows.channels.values()):
        current, previous = values[duplicate_rows], values[duplicate_rows - 1]
        agree &= (current == previous) | (cells.is_missing(current) & cells.is_missing(previous))
    if not agree.all():
        row = int(duplicate_rows[np.argmin(agree)])
        is_same_key = (ticks == ticks[row]) & (rows.codes == rows.codes[row])
        distinct = list(dict.fromkeys(rows.y[is_same_key].tolist()))
        difference = f"{distinct}" if len(distinct) > 1 else "two rows that differ in another column"
        raise DuplicateStamp(
            f"Expected one value per timestamp; series {rows.id_at(row)!r} has {difference} at "
            f"{rows.format_timestamp_at(row)}. Keep one of them, or sum them; if clocks were set back at that time, "
            "declare the zone.",
            where=rows.id_at(row),
        )
    repairs.append(f"{len(duplicate_rows)} repeated rows were dropped")
    return rows.take(~is_duplicate)


def _infer_panel_frequency(rows: _ParsedRows, bounds: Int[np.ndarray, "_"]) -> tuple[str, bool]:
    """Returns the frequency of the longest series, and whether it is proven, so that absent rows can count as gaps."""
    longest = int(np.argmax(np.diff(bounds)))
    start, end = bounds[longest], bounds[longest + 1]
    series_timestamps, unique_id = rows.ds[start:end], rows.id_at(start)
    try:
        return infer_frequency(series_timestamps, where=unique_id), bool(end - start > grid.MIN_CONFIRMING_RUN)
    except FrequencyUnknown as error:
        if len(series_timestamps) > grid.MIN_CONFIRMING_RUN:
            first = np.zeros(len(series_timestamps), dtype=np.int64)
            proven = [
                freq
                for freq in candidate_frequencies(series_timestamps)
                if grid.confirms_frequency(grid.compute_grid_positions(series_timestamps, freq, first))
            ]
            if len(proven) == 1:
                return proven[0], True
        _raise_for_irregular_step(series_timestamps, unique_id)
        raise error


def _raise_for_irregular_step(sorted_timestamps: Timestamps, unique_id: str) -> None:
    gaps = np.diff(timestamps_to_int64(sorted_timestamps))
    if len(gaps) >= 3 and len(np.unique(gaps)) > 1:
        usual = float(np.median(gaps))
        odd = int(np.argmax(np.abs(gaps - usual) > 0.15 * usual))
        if abs(gaps[odd] - usual) > 0.15 * usual:  # lengths of months and quarters differ by less
            before = format_timestamp(timestamp_at(sorted_timestamps, odd))
            after = format_timestamp(timestamp_at(sorted_timestamps, odd + 1))
            raise IrregularStamps(
                f"Expected regular timestamps; series {unique_id!r} goes from {before} to {after}, unlike its other steps. "
                "Fill the gap with empty values, or declare the frequency (--freq) if this is regular.",
                where=unique_id,
            )


def _validate_positions(
    rows: _ParsedRows, positions: grid.GridPositions, freq: str, *, allow_gaps: bool, is_inferred: bool
) -> None:
    """Raises IrregularStamps for the first timestamp that is off the grid or, if gaps are not allowed, follows a gap.

    An inferred frequency is also rejected if most steps of another series are gaps.
    """
    within = np.concatenate([[False], rows.codes[1:] == rows.codes[:-1]])
    gap = np.concatenate([[False], np.diff(positions.step) != 1]) & within
    wrong = positions.is_off_grid if allow_gaps else positions.is_off_grid | gap
    if wrong.any():
        row = int(np.argmax(wrong))
        problem = f"goes from {rows.format_timestamp_at(row - 1)} to {rows.format_timestamp_at(row)}"
        if positions.is_off_grid[row]:
            problem = f"has a timestamp at {rows.format_timestamp_at(row)}, which is not on that grid"
        zoned = isinstance(rows.ds, pd.DatetimeIndex) and rows.ds.tz is not None
        zone_advice = (
            "; if these are days in a zone with daylight saving time, declare the zone (--zone)" if zoned else ""
        )
        raise IrregularStamps(
            f"Expected timestamps one {freq!r} apart; series {rows.id_at(row)!r} {problem}. "
            f"Fill gaps with empty values, or declare the right frequency (--freq){zone_advice}.",
            where=rows.id_at(row),
        )
    if is_inferred and gap.any():
        series_count = len(rows.ids)
        gap_counts = np.bincount(rows.codes[gap], minlength=series_count)
        step_counts = np.bincount(rows.codes[within], minlength=series_count)
        sparse = (2 * gap_counts > step_counts) & (step_counts > 1)
        if sparse.any():
            sparse_code = int(np.argmax(sparse))
            row = int(np.argmax(gap & (rows.codes == sparse_code)))
            raise IrregularStamps(
                f"Expected timestamps one {freq!r} apart, as in the longest series; series {rows.id_at(row)!r} has gaps "
                f"between most of its rows, the first from {rows.format_timestamp_at(row - 1)} to "
                f"{rows.format_timestamp_at(row)}. Declare the frequency (--freq) if these are gaps; put series of another "
                "frequency in a separate file.",
                where=rows.id_at(row),
            )


def _align_to_grid(
    rows: _ParsedRows,
    positions: grid.GridPositions,
    bounds: Int[np.ndarray, "_"],
    lengths: Int[np.ndarray, "series"],
    repairs: list[str],
) -> _ParsedRows:
    """Returns `y` and channels with one value per step of the grid, NaN for absent rows.

    All other fields, also `codes` and `ds`, keep one value per row.
    """
    absent = lengths - np.diff(bounds)
    if not absent.any():
        return rows
    worst = int(np.argmax(absent))
    if rows.covariates:
        worst = int(np.argmax(absent > 0))
        row = int(bounds[worst] + np.argmax(np.diff(positions.step[bounds[worst] : bounds[worst + 1]]) != 1))
        raise CovariateUnknown(
            f"Expected covariates at every step; series {rows.id_at(row)!r} has no row after "
            f"{rows.format_timestamp_at(row)}; {absent[worst]} rows are absent in total. Add these rows with their "
            "covariates and an empty `y`.",
            where=rows.id_at(row),
        )
    repairs.append(
        f"{int(absent.sum())} absent rows in {int((absent > 0).sum())} of {len(lengths)} series were inserted as not "
        f"observed (most in {rows.id_at(int(bounds[worst]))!r}: {int(absent[worst])})"
    )
    grid_index = np.repeat(np.cumsum(lengths) - lengths, np.diff(bounds)) + positions.step

    def spread_over_grid(values: Float64[np.ndarray, "row"]) -> Float64[np.ndarray, "step"]:
        steps = np.full(int(lengths.sum()), np.nan)
        steps[grid_index] = values
        return steps

    return rows._replace(
        y=spread_over_grid(rows.y), channels={name: spread_over_grid(values) for name, values in rows.channels.items()}
    )


def _build_series(
    rows: _ParsedRows,
    aligned: _ParsedRows,
    bounds: Int[np.ndarray, "_"],
    lengths: Int[np.ndarray, "series"],
    freq: str,
    repairs: list[str],
) -> list[Series]:
    """Builds one Series per id; series without any observed value are excluded and reported in `repairs`."""
    step_starts = np.cumsum(lengths) - lengths
    observed_step = np.where(np.isnan(aligned.y), -1, np.arange(len(aligned.y)))
    last_observed = np.maximum.reduceat(observed_step, step_starts) - step_starts  # negative if nothing was observed
    _validate_static(rows)
    is_empty = last_observed < 0
    ids, start_timestamps = rows.ids[rows.codes[bounds[:-1]]], rows.ds[bounds[:-1]].tolist()
    if is_empty.all():
        raise NoData(
            f"Expected at least one observed value; all {len(ids)} series, such as {str(ids[0])!r}, are empty. "
            "Send a history.",
            where=str(ids[0]),
        )
    if is_empty.any():
        repairs.append(
            f"{int(is_empty.sum())} series without any observed value were excluded: {_format_ids(ids[is_empty])}"
        )
    step_ends = step_starts + (last_observed + 1 if rows.covariates else lengths)
    if rows.covariates:
        repairs.extend(
            cells.describe_dropped_channel_values(
                aligned.channels, history_ends=np.where(is_empty, step_starts + lengths, step_ends), lengths=lengths
            )
        )
    spans = zip(range(len(ids)), step_starts.tolist(), step_ends.tolist(), lengths.tolist(), strict=True)
    first_rows = bounds[:-1].tolist()
    return [
        Series(
            str(ids[index]),
            start_timestamps[index],
            freq,
            aligned.y[start:end],
            {name: values[start : start + length] for name, values in aligned.covariates.items()},
            {name: str(values[first_rows[index]]) for name, values in rows.static.items()},
            {name: values[start:end] for name, values in aligned.channels.items()},
        )
        for index, start, end, length in spans
        if not is_empty[index]
    ]


def _validate_static(rows: _ParsedRows) -> None:
    within = rows.codes[1:] == rows.codes[:-1]
    for name, values in rows.static.items():
        changes = within & (values[1:] != values[:-1])
        if changes.any():
            row = int(np.argmax(changes)) + 1
            raise StaticChanges(
                f"Expected one value of {name!r} for the whole of series {rows.id_at(row)!r}; it goes from {values[row - 1]!r} "
                f"to {values[row]!r} at {rows.format_timestamp_at(row)}. Correct it, or declare the column as a covariate.",
                where=rows.id_at(row),
            )


def _format_ids(ids: Any) -> str:
    listed = ", ".join(repr(str(series_id)) for series_id in ids[:_MAX_LISTED_IDS])
    return listed if len(ids) <= _MAX_LISTED_IDS else f"{listed} and {len(ids) - _MAX_LISTED_IDS} more"


def _series_to_frame(series: Series) -> pd.DataFrame:
    future_timestamps = (
        series.future_timestamps(series.covariate_horizon) if series.covariate_horizon else series.timestamps[:0]
    )
    return pd.DataFrame(
        {
            "unique_id": series.id,
            "ds": series.timestamps.append(future_timestamps),
            "y": np.append(series.y, np.full(series.covariate_horizon, np.nan)),
            **series.covariates,
            **series.static,
            **{
                name: np.append(values, np.full(series.covariate_horizon, np.nan))
                for name, values in series.channels.items()
            },
        }
    )
