"""A long data frame `unique_id, ds, y` in, a Panel out: checked, sorted, on one frequency; or an error that says where."""

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

_MAX_LISTED_IDS = 3  # ids that a repair names


class ColumnNames(NamedTuple):
    """What a frame calls the three columns."""

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
    """Checks a long frame and cuts it into series. What happens in which case is told in docs/data.md.

    Args:
        frame: One row a series and stamp. NaN in `y` means not observed, and so does an absent row, if the frequency is
            declared or proven.
        freq: A pandas offset alias, or a whole number; None to infer it from the longest series, if it is certain.
        columns: The names of the columns, if not `unique_id, ds, y`.
        zone: The time zone of stamps that carry none; those that do are told in it.
        covariates: Columns that are known ahead. Rows without `y` after the last observed one are then the known future.
        static: Columns that say one thing of a whole series.
        channels: Columns of which the past alone is known. As in `y`, NaN means not observed.
    Raises:
        InputError's kinds: with the series and the first offending row or stamp.
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
    places = grid.compute_grid_positions(rows.ds, declared, first)
    _validate_positions(rows, places, declared, allow_gaps=gaps_allowed, is_inferred=freq is None)
    lengths = grid.compute_series_lengths(places, bounds, ids=rows.ids, freq=declared)
    laid = _align_to_grid(rows, places, bounds, lengths, repairs)
    return Panel(_build_series(rows, laid, bounds, lengths, declared, repairs), declared, tuple(repairs))


def to_frame(panel: Panel) -> pd.DataFrame:
    """The long frame of a panel, with covariates, their known future, static columns and channels: the inverse of `to_panel`."""
    return pd.concat([_series_to_frame(one) for one in panel.series], ignore_index=True)


def infer_series_frequency(sorted_timestamps: Timestamps, *, unique_id: str) -> str:
    """The frequency of sorted stamps, when it is certain; names the odd stamp when one spoils a regular grid."""
    if not isinstance(sorted_timestamps, pd.DatetimeIndex):
        timestamps.reject_date_like_numbers(sorted_timestamps, where=unique_id)
    try:
        return infer_frequency(sorted_timestamps, where=unique_id)
    except FrequencyUnknown:
        _raise_for_irregular_step(sorted_timestamps, unique_id)
        raise


class _ParsedRows(NamedTuple):
    """The columns of a frame, read."""

    ids: Any  # object array: the ids, by code
    codes: Int[np.ndarray, "row"]
    ds: Timestamps
    y: Float64[np.ndarray, "row"]
    covariates: Mapping[str, np.ndarray]
    static: Mapping[str, np.ndarray]
    channels: Mapping[str, Float64[np.ndarray, "row"]]

    def take(self, selection: np.ndarray) -> _ParsedRows:
        """Some rows, by mask or number."""
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
        """Where each series begins, and where the last ends; of sorted rows."""
        inner = np.flatnonzero(np.diff(self.codes)) + 1
        return np.concatenate([[0], inner, [len(self.codes)]])

    def id_at(self, row: SupportsIndex) -> str:
        """Whose row it is."""
        return str(self.ids[self.codes[row]])

    def format_timestamp_at(self, row: SupportsIndex) -> str:
        """Its stamp, for a message."""
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
    read = timestamps.parse_timestamp_column(
        frame[names.ds], column=names.ds, freq=freq, zone=zone, series_codes=ids.codes
    )
    repairs.extend(read.repairs)
    rows = _ParsedRows(
        ids.ids,
        ids.codes,
        read.timestamps,
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
                f"{rows.format_timestamp_at(row)}. Fill it in, or leave the column out.",
                where=rows.id_at(row),
            )
    return rows


def _sort_rows(rows: _ParsedRows, repairs: list[str]) -> _ParsedRows:
    """The rows sorted by series and stamp, series numbered in that order."""
    code, ticks = rows.codes, timestamps_to_int64(rows.ds)
    same = code[1:] == code[:-1]
    back = same & (ticks[1:] < ticks[:-1])
    pieces = int((~same).sum()) + 1
    if not back.any() and pieces == len(rows.ids):
        return rows
    rank = np.empty(len(rows.ids), dtype=np.int64)
    by_name = np.argsort(rows.ids)
    rank[by_name] = np.arange(len(by_name))
    ranked = rows._replace(ids=rows.ids[by_name], codes=rank[code])
    order = np.lexsort((ticks, ranked.codes))
    moved = int((order != np.arange(len(order))).sum())
    repairs.append(f"rows were not in order: sorted by series and stamp ({moved} of {len(order)} moved)")
    return ranked.take(order)


def _drop_duplicates(rows: _ParsedRows, repairs: list[str]) -> _ParsedRows:
    ticks = timestamps_to_int64(rows.ds)
    again = np.concatenate([[False], (ticks[1:] == ticks[:-1]) & (rows.codes[1:] == rows.codes[:-1])])
    if not again.any():
        return rows
    repeats = np.flatnonzero(again)
    agree = np.ones(len(repeats), dtype=bool)
    for values in (rows.y, *rows.covariates.values(), *rows.static.values(), *rows.channels.values()):
        one, other = values[repeats], values[repeats - 1]
        agree &= (one == other) | (cells.is_missing(one) & cells.is_missing(other))
    if not agree.all():
        row = int(repeats[np.argmin(agree)])
        here = (ticks == ticks[row]) & (rows.codes == rows.codes[row])
        distinct = list(dict.fromkeys(rows.y[here].tolist()))
        told = f"{distinct}" if len(distinct) > 1 else "two rows that differ in another column"
        raise DuplicateStamp(
            f"Expected one value a stamp; series {rows.id_at(row)!r} has {told} at {rows.format_timestamp_at(row)}. "
            "Keep one of them, or add them up; if a clock was put back there, declare the zone.",
            where=rows.id_at(row),
        )
    repairs.append(f"{len(repeats)} repeated rows were dropped")
    return rows.take(~again)


def _infer_panel_frequency(rows: _ParsedRows, bounds: Int[np.ndarray, "_"]) -> tuple[str, bool]:
    """The frequency of the longest series, and whether it is proven well enough to call absent rows gaps."""
    longest = int(np.argmax(np.diff(bounds)))
    a, b = bounds[longest], bounds[longest + 1]
    moments, name = rows.ds[a:b], rows.id_at(a)
    try:
        return infer_frequency(moments, where=name), bool(b - a > grid.MIN_CONFIRMING_RUN)
    except FrequencyUnknown as unknown:
        if len(moments) > grid.MIN_CONFIRMING_RUN:
            first = np.zeros(len(moments), dtype=np.int64)
            proven = [
                freq
                for freq in candidate_frequencies(moments)
                if grid.confirms_frequency(grid.compute_grid_positions(moments, freq, first))
            ]
            if len(proven) == 1:
                return proven[0], True
        _raise_for_irregular_step(moments, name)
        raise unknown


def _raise_for_irregular_step(sorted_timestamps: Timestamps, unique_id: str) -> None:
    gaps = np.diff(timestamps_to_int64(sorted_timestamps))
    if len(gaps) >= 3 and len(np.unique(gaps)) > 1:
        usual = float(np.median(gaps))
        odd = int(np.argmax(np.abs(gaps - usual) > 0.15 * usual))
        if abs(gaps[odd] - usual) > 0.15 * usual:  # months and quarters differ by less
            raise IrregularStamps(
                f"Expected regular stamps; series {unique_id!r} goes from {format_timestamp(timestamp_at(sorted_timestamps, odd))} to "
                f"{format_timestamp(timestamp_at(sorted_timestamps, odd + 1))}, unlike its other steps. Fill the gap with empty values, or declare the "
                "frequency (--freq) if this is regular.",
                where=unique_id,
            )


def _validate_positions(
    rows: _ParsedRows, positions: grid.GridPositions, freq: str, *, allow_gaps: bool, is_inferred: bool
) -> None:
    """Raises IrregularStamps with the first stamp that is off the grid, or after a gap where none may be."""
    within = np.concatenate([[False], rows.codes[1:] == rows.codes[:-1]])
    gap = np.concatenate([[False], np.diff(positions.step) != 1]) & within
    wrong = positions.is_off_grid if allow_gaps else positions.is_off_grid | gap
    if wrong.any():
        row = int(np.argmax(wrong))
        told = f"goes from {rows.format_timestamp_at(row - 1)} to {rows.format_timestamp_at(row)}"
        if positions.is_off_grid[row]:
            told = f"has a stamp at {rows.format_timestamp_at(row)}, which is not on that grid"
        zoned = isinstance(rows.ds, pd.DatetimeIndex) and rows.ds.tz is not None
        summer = "; if days are of a zone with summer time, declare the zone (--zone)" if zoned else ""
        raise IrregularStamps(
            f"Expected stamps one {freq!r} apart; series {rows.id_at(row)!r} {told}. "
            f"Fill gaps with empty values, or declare the right frequency (--freq){summer}.",
            where=rows.id_at(row),
        )
    if is_inferred and gap.any():
        series = len(rows.ids)
        holes, steps = np.bincount(rows.codes[gap], minlength=series), np.bincount(rows.codes[within], minlength=series)
        sparse = (2 * holes > steps) & (steps > 1)
        if sparse.any():
            one = int(np.argmax(sparse))
            row = int(np.argmax(gap & (rows.codes == one)))
            raise IrregularStamps(
                f"Expected stamps one {freq!r} apart, as in the longest series; series {rows.id_at(row)!r} has gaps in most "
                f"places, the first from {rows.format_timestamp_at(row - 1)} to {rows.format_timestamp_at(row)}. Declare the frequency "
                "(--freq) if these are gaps; give series of another frequency a file of their own.",
                where=rows.id_at(row),
            )


def _align_to_grid(
    rows: _ParsedRows,
    positions: grid.GridPositions,
    bounds: Int[np.ndarray, "_"],
    lengths: Int[np.ndarray, "series"],
    repairs: list[str],
) -> _ParsedRows:
    """The rows with a step for every step of the grid, NaN where none was; `codes` and `ds` stay those of the rows."""
    absent = lengths - np.diff(bounds)
    if not absent.any():
        return rows
    worst = int(np.argmax(absent))
    if rows.covariates:
        worst = int(np.argmax(absent > 0))
        row = int(bounds[worst] + np.argmax(np.diff(positions.step[bounds[worst] : bounds[worst + 1]]) != 1))
        raise CovariateUnknown(
            f"Expected covariates at every step; series {rows.id_at(row)!r} has no row after {rows.format_timestamp_at(row)} for "
            f"{absent[worst]} steps in all. Put rows there with the covariates, and `y` empty.",
            where=rows.id_at(row),
        )
    repairs.append(
        f"{int(absent.sum())} absent rows in {int((absent > 0).sum())} of {len(lengths)} series were put on the grid as not "
        f"observed (most in {rows.id_at(int(bounds[worst]))!r}: {int(absent[worst])})"
    )
    at = np.repeat(np.cumsum(lengths) - lengths, np.diff(bounds)) + positions.step

    def laid(values: Float64[np.ndarray, "row"]) -> Float64[np.ndarray, "step"]:
        steps = np.full(int(lengths.sum()), np.nan)
        steps[at] = values
        return steps

    return rows._replace(y=laid(rows.y), channels={name: laid(values) for name, values in rows.channels.items()})


def _build_series(
    rows: _ParsedRows,
    aligned: _ParsedRows,
    bounds: Int[np.ndarray, "_"],
    lengths: Int[np.ndarray, "series"],
    freq: str,
    repairs: list[str],
) -> list[Series]:
    """One Series a run of steps; those never observed are left out."""
    begin = np.cumsum(lengths) - lengths
    seen = np.where(np.isnan(aligned.y), -1, np.arange(len(aligned.y)))
    last = np.maximum.reduceat(seen, begin) - begin  # negative where nothing was observed
    _validate_static(rows)
    blank = last < 0
    ids, starts = rows.ids[rows.codes[bounds[:-1]]], rows.ds[bounds[:-1]].tolist()
    if blank.all():
        raise NoData(
            f"Expected at least one observed value; all {len(ids)} series, such as {str(ids[0])!r}, are empty. Send a history.",
            where=str(ids[0]),
        )
    if blank.any():
        repairs.append(f"{int(blank.sum())} series without any observed value were left out: {_format_ids(ids[blank])}")
    ends = begin + (last + 1 if rows.covariates else lengths)
    if rows.covariates:
        repairs.extend(
            cells.describe_dropped_channel_values(
                aligned.channels, history_ends=np.where(blank, begin + lengths, ends), lengths=lengths
            )
        )
    spans = zip(range(len(ids)), begin.tolist(), ends.tolist(), lengths.tolist(), strict=True)
    firsts = bounds[:-1].tolist()
    return [
        Series(
            str(ids[k]),
            starts[k],
            freq,
            aligned.y[a:b],
            {name: values[a : a + long] for name, values in aligned.covariates.items()},
            {name: str(values[firsts[k]]) for name, values in rows.static.items()},
            {name: values[a:b] for name, values in aligned.channels.items()},
        )
        for k, a, b, long in spans
        if not blank[k]
    ]


def _validate_static(rows: _ParsedRows) -> None:
    within = rows.codes[1:] == rows.codes[:-1]
    for name, values in rows.static.items():
        changes = within & (values[1:] != values[:-1])
        if changes.any():
            row = int(np.argmax(changes)) + 1
            raise StaticChanges(
                f"Expected one value of {name!r} for the whole of series {rows.id_at(row)!r}; it goes from {values[row - 1]!r} "
                f"to {values[row]!r} at {rows.format_timestamp_at(row)}. Correct it, or call the column a covariate.",
                where=rows.id_at(row),
            )


def _format_ids(ids: Any) -> str:
    told = ", ".join(repr(str(one)) for one in ids[:_MAX_LISTED_IDS])
    return told if len(ids) <= _MAX_LISTED_IDS else f"{told} and {len(ids) - _MAX_LISTED_IDS} more"


def _series_to_frame(series: Series) -> pd.DataFrame:
    following = (
        series.future_timestamps(series.covariate_horizon) if series.covariate_horizon else series.timestamps[:0]
    )
    return pd.DataFrame(
        {
            "unique_id": series.id,
            "ds": series.timestamps.append(following),
            "y": np.append(series.y, np.full(series.covariate_horizon, np.nan)),
            **series.covariates,
            **series.static,
            **{
                name: np.append(values, np.full(series.covariate_horizon, np.nan))
                for name, values in series.channels.items()
            },
        }
    )
